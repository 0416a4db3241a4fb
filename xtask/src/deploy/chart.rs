//! The chart, rendered: with each file of values under ci/, whose names say what they are.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{CHART, Deploy, all_of, tools};
use crate::check::Outcome;

/// Where releases of all cases are.
pub(super) const NAMESPACE: &str = "observability";
pub(super) const RELEASE: &str = "probe";

/// A file of values.
pub(super) struct Case {
    /// Its file's, without `-values.yaml`.
    pub(super) name: String,
    pub(super) file: PathBuf,
}

/// All of them, by name.
pub(super) fn cases(deploy: &Deploy) -> Result<Vec<Case>> {
    let folder = deploy.root.join(CHART).join("ci");
    let mut cases = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let file = entry?.path();
        let name = file
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix("-values.yaml"));
        let name = name.with_context(|| format!("{} is not named NAME-values.yaml", file.display()))?;
        cases.push(Case { name: name.to_owned(), file: file.clone() });
    }
    ensure!(!cases.is_empty(), "{} is empty", folder.display());
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

impl Deploy {
    /// What helm makes of a case. `more` are further arguments.
    pub(super) fn render(&self, case: &Case, more: &[&str]) -> Result<String> {
        let mut helm = self.tools.helm();
        helm.args(["template", RELEASE]).arg(self.root.join(CHART)).args([
            "--namespace",
            NAMESPACE,
            "--values",
        ]);
        helm.arg(&case.file).args(more);
        tools::printed(&mut helm)
    }

    pub(super) fn documents(&self, case: &Case, more: &[&str]) -> Result<Vec<Value>> {
        let text = self.render(case, more)?;
        self.tools
            .documents(&text)
            .with_context(|| format!("{} renders to something else than YAML", case.name))
    }
}

/// A text inside a document, by its JSON pointer.
pub(super) fn text<'a>(document: &'a Value, pointer: &str) -> &'a str {
    document.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A list inside a document; what is absent is empty.
pub(super) fn list<'a>(document: &'a Value, pointer: &str) -> &'a [Value] {
    document.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// KIND/NAME.
pub(super) fn name_of(document: &Value) -> String {
    format!("{}/{}", text(document, "/kind"), text(document, "/metadata/name"))
}

pub(super) fn lint(deploy: &Deploy) -> Result<Outcome> {
    let mut faults = Vec::new();
    for case in cases(deploy)? {
        let mut helm = deploy.tools.helm();
        helm.args(["lint", "--strict", "--quiet"])
            .arg(deploy.root.join(CHART))
            .arg("--values")
            .arg(&case.file);
        let (passed, said, error) = tools::outputs(&mut helm)?;
        if !passed {
            faults.push(format!("{}: {} {}", case.name, said.trim(), error.trim()));
        }
    }
    all_of(faults)?;
    Ok(Outcome::Passed)
}
