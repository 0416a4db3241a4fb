//! Recording and alerting rules: deploy/prometheus/probe.rules.yml, and the same as an object for the Prometheus operator.

mod alert;
mod record;
mod tests_cover;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::{contract::Contract, promql, query::pretty};
use alert::Alert;
use record::Record;

/// What Prometheus loads.
#[derive(Serialize)]
struct File {
    groups: Vec<Group>,
}

#[derive(Serialize)]
struct Group {
    name: &'static str,
    rules: Vec<Rule>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Rule {
    Record {
        record: &'static str,
        expr: String,
    },
    Alert {
        alert: &'static str,
        expr: String,
        r#for: &'static str,
        labels: AlertLabels,
        annotations: Annotations,
    },
}

#[derive(Serialize)]
struct AlertLabels {
    severity: &'static str,
    component: &'static str,
}

#[derive(Serialize)]
struct Annotations {
    summary: &'static str,
    description: &'static str,
    runbook: &'static str,
}

/// For the operator; which Prometheus takes it is decided by labels that the chart or kustomization adds.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: File,
}

#[derive(Serialize)]
struct Metadata {
    name: &'static str,
    labels: ObjectLabels,
}

#[derive(Serialize)]
struct ObjectLabels {
    #[serde(rename = "app.kubernetes.io/name")]
    name: &'static str,
}

const HEAD: &str = "# Written by `cargo xtask observe --write`; not to be edited. README.md beside this file says what to do with it.\n";

type Signal = (&'static str, fn() -> Vec<Record>, fn() -> Vec<Alert>);

const SIGNALS: [Signal; 4] = [
    ("probe-tcp", record::tcp, alert::tcp),
    ("probe-dns", record::dns, alert::dns),
    ("probe-syscalls", record::syscalls, alert::syscalls),
    ("probe-agent", record::agent, alert::agent),
];

/// Both files and the table for people, by path.
pub(super) fn files() -> Result<Vec<(&'static str, String)>> {
    let groups = || {
        SIGNALS
            .into_iter()
            .map(|(name, records, alerts)| {
                let records = records()
                    .into_iter()
                    .map(|record| Ok(Rule::Record { record: record.name, expr: pretty(&record.query)? }));
                let alerts = alerts().into_iter().map(|alert| {
                    Ok(Rule::Alert {
                        alert: alert.name,
                        expr: pretty(&alert.query)?,
                        r#for: alert.hold,
                        labels: AlertLabels { severity: alert.severity, component: alert.component },
                        annotations: Annotations {
                            summary: alert.summary,
                            description: alert.description,
                            runbook: alert.runbook,
                        },
                    })
                });
                Ok(Group { name, rules: records.chain(alerts).collect::<Result<_>>()? })
            })
            .collect::<Result<Vec<_>>>()
    };
    let object = Object {
        api_version: "monitoring.coreos.com/v1",
        kind: "PrometheusRule",
        metadata: Metadata { name: "probe", labels: ObjectLabels { name: "probe" } },
        spec: File { groups: groups()? },
    };
    Ok(vec![
        ("deploy/prometheus/probe.rules.yml", yaml(&File { groups: groups()? })?),
        ("deploy/prometheus/prometheusrule.yaml", yaml(&object)?),
        ("deploy/prometheus/alerts.md", page()),
    ])
}

fn yaml(value: &impl Serialize) -> Result<String> {
    Ok(format!("{HEAD}{}", serde_saphyr::to_string(value).context("cannot write YAML")?))
}

/// All that is recorded and alerted on, for people.
fn page() -> String {
    use std::fmt::Write as _;
    let mut page = String::from(
        "<!-- Written by `cargo xtask observe --write`; not to be edited. -->\n\n# Alerts and recorded series\n",
    );
    for (name, records, alerts) in SIGNALS {
        let _memory = write!(page, "\n## {name}\n");
        for Alert { name, hold, severity, summary: _, description, runbook, .. } in alerts() {
            let for_how_long = if hold == "0s" { String::new() } else { format!(", for {hold}") };
            let description = description.replace("{{ $value | humanize }} values", "Values");
            let _memory = write!(page, "\n### {name}\n\n{severity}{for_how_long}. {description}\n\n");
            for line in runbook.lines() {
                let _memory = writeln!(page, "{line}  ");
            }
        }
        let _memory = write!(page, "\n| recorded | meaning |\n|---|---|\n");
        for Record { name, meaning, .. } in records() {
            let _memory = writeln!(page, "| `{name}` | {meaning} |");
        }
    }
    page
}

/// All queries are right by the contract, to which what is recorded is added; so are the labels in alerts' texts.
pub(super) fn queries(contract: &mut Contract) -> Result<usize> {
    let mut count = 0;
    for (_, records, alerts) in SIGNALS {
        for Record { name, meaning, query } in records() {
            ensure!(meaning.ends_with('.'), "{name}: a sentence ends with a full stop");
            let labels = promql::check(&query, contract).with_context(|| format!("record {name}"))?;
            contract.record(name, labels);
            count += 1;
        }
        for alert in alerts() {
            let name = alert.name;
            let mut labels =
                promql::check(&alert.query, contract).with_context(|| format!("alert {name}"))?;
            for label in ["severity", "component"] {
                ensure!(labels.insert(label.to_owned()), "alert {name} would hide its series' label {label}");
            }
            for text in [alert.summary, alert.description, alert.runbook] {
                for label in text.split("$labels.").skip(1) {
                    let label: String =
                        label.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                    ensure!(
                        labels.contains(&label),
                        "alert {name} tells a label {label} that it has not: {labels:?}"
                    );
                }
            }
            count += 1;
        }
    }
    Ok(count)
}

/// Each alert has a test in which it fires and one in which it does not, and each record one that asks for it.
pub(super) fn are_tested(tests: &[serde_json::Value]) -> Result<()> {
    let alerts = SIGNALS.iter().flat_map(|(_, _, alerts)| alerts()).map(|alert| alert.name);
    let records = SIGNALS.iter().flat_map(|(_, records, _)| records()).map(|record| record.name);
    tests_cover::check(&alerts.collect::<Vec<_>>(), &records.collect::<Vec<_>>(), tests)
}
