//! The table of values in the chart's README: made of values.yaml and its comments, so that there is one list.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{CHART, Deploy};
use crate::{check::Outcome, process::say};

const BEGIN: &str = "<!-- made by `cargo xtask deploy-check --write` from values.yaml; do not edit -->\n";
const END: &str = "<!-- end of what is made -->\n";

/// A key of values.yaml that has a comment.
#[derive(Debug, PartialEq)]
struct Row {
    path: Vec<String>,
    comment: String,
}

pub(super) fn check(deploy: &Deploy) -> Result<Outcome> {
    let folder = deploy.root.join(CHART);
    let values = fs::read_to_string(folder.join("values.yaml")).context("cannot read values.yaml")?;
    let parsed = deploy.tools.documents(&values)?;
    let table = table(&rows(&values)?, parsed.first().context("values.yaml is empty")?)?;
    let file = folder.join("README.md");
    let page = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let (before, rest) =
        page.split_once(BEGIN).with_context(|| format!("{} lacks the line {BEGIN}", file.display()))?;
    let (_, after) =
        rest.split_once(END).with_context(|| format!("{} lacks the line {END}", file.display()))?;
    let wanted = format!("{before}{BEGIN}\n{table}\n{END}{after}");
    if deploy.write && wanted != page {
        fs::write(&file, &wanted)?;
        say(format_args!("written: {}", file.display()));
    } else {
        ensure!(wanted == page, "{} is stale: cargo xtask deploy-check --write", file.display());
    }
    Ok(Outcome::Passed)
}

/// A comment directly above a key is the key's. A key without one is part of the value above it, or holds keys that have.
fn rows(values: &str) -> Result<Vec<Row>> {
    let (mut rows, mut comment, mut path) = (Vec::<Row>::new(), Vec::new(), Vec::<(usize, String)>::new());
    for line in values.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(words) = text.strip_prefix("# ") {
            comment.push(words.to_owned());
            continue;
        }
        let key = text.split_once(':').map(|(key, _)| key);
        let Some(key) = key.filter(|key| !text.is_empty() && !text.starts_with("- ") && !key.contains(' '))
        else {
            comment.clear();
            continue;
        };
        path.retain(|(of, _)| *of < indent);
        path.push((indent, key.to_owned()));
        let full: Vec<String> = path.iter().map(|(_, key)| key.clone()).collect();
        if !comment.is_empty() {
            rows.push(Row { path: full, comment: comment.join(" ") });
        } else {
            let inside = rows.iter().any(|row| full.len() > row.path.len() && full.starts_with(&row.path));
            let has_value = text.split_once(": ").is_some();
            if has_value && !inside {
                bail!("values.yaml: {} has no comment", full.join("."));
            }
        }
        comment.clear();
    }
    Ok(rows)
}

fn table(rows: &[Row], values: &Value) -> Result<String> {
    let mut table = "| value | default | |\n|---|---|---|\n".to_owned();
    for Row { path, comment } in rows {
        let default = values.pointer(&format!("/{}", path.join("/")));
        let default = default.with_context(|| format!("{} is not in values.yaml", path.join(".")))?;
        let default = match default {
            Value::Null => "required".to_owned(),
            other => format!("`{other}`"),
        };
        let comment = comment.replace('|', "\\|");
        table.push_str(&format!("| `{}` | {default} | {comment} |\n", path.join(".")));
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_those_of_the_key_below() {
        let values = "# Of the file.\n\na:\n  # One.\n  b: 1\n  # Two\n  # lines.\n  c:\n    d: x\n# Whole.\ne:\n  f/g.h: y\n  i:\n    - j: 1\n      k: 2\n";
        let found = rows(values).unwrap();
        let found: Vec<(String, &str)> =
            found.iter().map(|row| (row.path.join("."), row.comment.as_str())).collect();
        assert_eq!(
            found,
            [("a.b".to_owned(), "One."), ("a.c".to_owned(), "Two lines."), ("e".to_owned(), "Whole.")]
        );
        assert!(rows("# Yes.\na: 1\nb: 2\n").unwrap_err().to_string().contains("b has no comment"));
        assert!(rows("a:\n  b: 2\n").unwrap_err().to_string().contains("a.b has no comment"));
    }
}
