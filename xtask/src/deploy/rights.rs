//! The capabilities that the profile `least-privilege` adds, tried out: with them `probe doctor` says on this host that every signal can
//! run, and without any one of them that something cannot. So they are neither too few nor too many.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    Deploy, all_of,
    chart::{cases, list, text},
    config,
    expected::ALWAYS,
    tools,
};
use crate::{
    check::Outcome,
    process::{is_root, say},
};

/// A case, a check of doctor's, and its status with the rights of that case.
const STATUS: [(&str, &str, &str); 3] = [
    ("least-privilege", "other users' executables", "degraded"),
    ("least-privilege-executables", "other users' executables", "ok"),
    ("least-privilege", "owners of older sockets", "ok"),
];

pub(super) fn check(deploy: &Deploy) -> Result<Outcome> {
    if !is_root() {
        say("only root can start a process with capabilities of choice");
        return Ok(Outcome::NotChecked);
    }
    let probe = config::probe(deploy)?;
    let mut faults = Vec::new();
    for case in cases(deploy)?.iter().filter(|case| case.name.starts_with("least-privilege")) {
        let documents = deploy.documents(case, &[])?;
        let set = documents
            .iter()
            .find(|document| text(document, "/kind") == "DaemonSet")
            .context("no DaemonSet")?;
        let add = list(set, "/spec/template/spec/containers/0/securityContext/capabilities/add");
        let add: Vec<&str> = add.iter().filter_map(Value::as_str).collect();
        let with = doctor(&probe, &add)?;
        if !with.runs {
            faults.push(format!("{}: with {} doctor says: {}", case.name, add.join(", "), with.error));
        }
        for (_, check, wanted) in STATUS.iter().filter(|(name, ..)| *name == case.name) {
            let found = with
                .checks
                .iter()
                .find(|found| text(found, "/check") == *check)
                .map(|found| text(found, "/status"));
            if found != Some(*wanted) {
                faults.push(format!("{}: `{check}` is {found:?}, not {wanted}", case.name));
            }
        }
    }
    for without in ALWAYS {
        let others: Vec<&str> = ALWAYS.into_iter().filter(|capability| *capability != without).collect();
        let found = doctor(&probe, &others)?;
        let named = found.checks.iter().any(|check| {
            text(check, "/check") == format!("CAP_{without}") && text(check, "/status") == "unavailable"
        });
        if found.runs || !named {
            faults
                .push(format!("without {without} doctor misses nothing: least-privilege should not add it"));
        }
    }
    all_of(faults)?;
    say(format_args!("{} says so, started with the capabilities of each case", probe.display()));
    Ok(Outcome::Passed)
}

struct Doctor {
    runs: bool,
    checks: Vec<Value>,
    error: String,
}

/// As a container's runtime would start it: root, with these capabilities and no way to more.
fn doctor(probe: &Path, capabilities: &[&str]) -> Result<Doctor> {
    let bounding: String =
        capabilities.iter().map(|name| format!(",+{}", name.to_ascii_lowercase())).collect();
    let mut setpriv = Command::new("setpriv");
    setpriv.arg(format!("--bounding-set=-all{bounding}")).args(["--inh-caps=-all", "--no-new-privs"]);
    let (runs, said, error) = tools::outputs(setpriv.arg(probe).args(["doctor", "-o", "json"]))?;
    let checks = said.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
    let checks = checks.with_context(|| format!("doctor's answer is no NDJSON: {error}"))?;
    Ok(Doctor { runs, checks, error: error.trim().to_owned() })
}
