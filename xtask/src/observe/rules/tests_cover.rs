//! Whether the tests under deploy/prometheus/tests leave nothing out.

use anyhow::{Result, ensure};
use serde_json::Value;

pub(super) fn check(alerts: &[&str], records: &[&str], files: &[Value]) -> Result<()> {
    let tests: Vec<&Value> = files.iter().flat_map(|file| list(file, "tests")).collect();
    // promtool's own cases for alerts want every word of their texts; what fires can be asked for as any series.
    let asked: Vec<(&str, bool)> = tests
        .iter()
        .flat_map(|test| list(test, "promql_expr_test"))
        .filter_map(|case| Some((case.get("expr")?.as_str()?, list(case, "exp_samples").next().is_some())))
        .collect();
    for alert in alerts {
        let named = format!("alertname=\"{alert}\"");
        let cases =
            || asked.iter().filter(|(query, _)| query.starts_with("ALERTS{") && query.contains(&named));
        let fires = cases().any(|(query, found)| *found && query.contains("alertstate=\"firing\""));
        ensure!(fires, "no test in which {alert} fires");
        ensure!(cases().any(|(_, found)| !found), "no test in which {alert} does not fire");
    }
    for record in records {
        ensure!(
            asked.iter().any(|(query, found)| *found && query.contains(record)),
            "no test asks for {record}"
        );
    }
    for (query, _) in &asked {
        let name = query.split("alertname=\"").nth(1).and_then(|rest| rest.split('"').next());
        ensure!(
            name.is_none_or(|name| alerts.contains(&name)),
            "a test asks for an alert that there is not: {query}"
        );
    }
    Ok(())
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_left_out_is_named() {
        let case = |query: &str, found: bool| json!({ "expr": query, "exp_samples": if found { vec![json!({})] } else { vec![] } });
        let file = |cases: &[(&str, bool)]| {
            let cases: Vec<Value> = cases.iter().map(|(query, found)| case(query, *found)).collect();
            json!({ "tests": [{ "promql_expr_test": cases }] })
        };
        let (fires, silent) = ("ALERTS{alertname=\"A\", alertstate=\"firing\"}", "ALERTS{alertname=\"A\"}");
        for (file, missing) in [
            (file(&[(fires, true), (silent, false), ("sum(w:r)", true)]), None),
            (file(&[(fires, true), ("w:r", true)]), Some("does not fire")),
            (file(&[(silent, true), (silent, false), ("w:r", true)]), Some("A fires")),
            (file(&[(fires, true), (silent, false), ("x", true)]), Some("asks for w:r")),
            (file(&[(fires, true), (silent, false), ("w:r", false)]), Some("asks for w:r")),
            (
                file(&[(fires, true), (silent, false), ("w:r", true), ("ALERTS{alertname=\"B\"}", false)]),
                Some("there is not"),
            ),
        ] {
            let result = check(&["A"], &["w:r"], &[file]);
            match missing {
                None => result.unwrap(),
                Some(word) => assert!(result.unwrap_err().to_string().contains(word), "{word}"),
            }
        }
    }
}
