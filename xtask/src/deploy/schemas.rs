//! What the chart renders, against the schemas of Kubernetes itself: the five latest minors, and the oldest that the chart admits.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    CHART, Deploy, all_of,
    chart::{cases, text},
    tools,
};
use crate::{check::Outcome, process::say};

/// Cases that set what came with a minor: they are for clusters from then on.
const SINCE: [(&str, u32, &str); 1] = [("least-privilege-all-options", 30, "appArmorProfile")];
/// Kinds that are not Kubernetes' own, and the schemas for them.
const CUSTOM: [(&str, &str); 1] = [("PodMonitor", include_str!("podmonitor.schema.json"))];

const MINORS: &str =
    "import kubernetes_validate.utils as u; print(*{v.split('.')[1] for v in u.all_versions()})";
const VALIDATE: &str = r#"
import json, sys, jsonschema
schema, file = sys.argv[1:]
validator = jsonschema.Draft7Validator(json.loads(schema))
validator.check_schema(json.loads(schema))
wrong = [(d["metadata"]["name"], e) for d in json.load(open(file)) for e in validator.iter_errors(d)]
for name, error in wrong:
    print(name, error.json_path, error.message)
"#;

pub(super) fn check(deploy: &Deploy) -> Result<Outcome> {
    let minors = minors(deploy)?;
    let (mut faults, mut documents) = (Vec::new(), 0);
    let mut custom: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for &minor in &minors {
        let version = format!("1.{minor}");
        let folder = deploy.scratch.join(&version);
        fs::create_dir_all(&folder)?;
        let mut files = Vec::new();
        for case in cases(deploy)? {
            if let Some((_, since, what)) =
                SINCE.iter().find(|(name, since, _)| *name == case.name && minor < *since)
            {
                say(format_args!("{version}: not {}, for {what} is of 1.{since}", case.name));
                continue;
            }
            let mut own = String::new();
            for document in deploy.documents(&case, &["--kube-version", &version])? {
                let kind = text(&document, "/kind").to_owned();
                if CUSTOM.iter().any(|(name, _)| *name == kind) {
                    custom.entry(kind).or_default().push(document);
                    continue;
                }
                documents += 1;
                own.push_str("---\n");
                own.push_str(&document.to_string());
                own.push('\n');
            }
            let file = folder.join(format!("{}.yaml", case.name));
            fs::write(&file, own)?;
            files.push(file);
        }
        let mut validate = deploy.tools.kubernetes_validate();
        validate.args(["--strict", "-k", &version]).args(&files);
        let (passed, said, error) = tools::outputs(&mut validate)?;
        // A kind that it has no schema for is a warning to it, and a mistake to us: it would go unchecked.
        let wrong =
            said.lines().chain(error.lines()).filter(|line| !line.starts_with("INFO") && !line.is_empty());
        let before = faults.len();
        faults.extend(wrong.map(|line| format!("{version}: {line}")));
        ensure!(
            passed || faults.len() > before,
            "kubernetes-validate failed for {version} and does not say why"
        );
    }
    for (kind, found) in &custom {
        faults.extend(custom_faults(deploy, kind, found)?);
    }
    all_of(faults)?;
    let minors = minors.iter().map(|minor| format!("1.{minor}")).collect::<Vec<_>>().join(", ");
    let custom = custom.iter().map(|(kind, found)| format!(", {} {kind}", found.len())).collect::<String>();
    say(format_args!("{documents} documents, for {minors}{custom} (by a schema of this repository)"));
    Ok(Outcome::Passed)
}

fn custom_faults(deploy: &Deploy, kind: &str, found: &[Value]) -> Result<Vec<String>> {
    let schema =
        CUSTOM.iter().find(|(name, _)| *name == kind).map(|(_, schema)| *schema).context("no schema")?;
    let file = deploy.scratch.join(format!("{kind}.json"));
    fs::write(&file, serde_json::to_string(found)?)?;
    let said = tools::printed(deploy.tools.python(VALIDATE).arg(schema).arg(&file))?;
    Ok(said.lines().map(|line| format!("{kind} {line}")).collect())
}

/// The five latest that there are schemas of, and the chart's oldest.
fn minors(deploy: &Deploy) -> Result<Vec<u32>> {
    let said = tools::printed(&mut deploy.tools.python(MINORS))?;
    let mut known = said.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    known.sort_unstable();
    let oldest = oldest(&deploy.root)?;
    ensure!(
        known.contains(&oldest),
        "Chart.yaml admits 1.{oldest}, of which kubernetes-validate has no schema"
    );
    let latest = known.iter().rev().take(5).rev().copied().filter(|minor| *minor > oldest);
    Ok(std::iter::once(oldest).chain(latest).collect())
}

fn oldest(root: &Path) -> Result<u32> {
    let file = root.join(CHART).join("Chart.yaml");
    let chart = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let line = chart.lines().find_map(|line| line.strip_prefix("kubeVersion: \">=1."));
    let minor = line.and_then(|rest| rest.split('.').next()).and_then(|minor| minor.parse().ok());
    minor.context("Chart.yaml has no line kubeVersion: \">=1.N.0-0\"")
}
