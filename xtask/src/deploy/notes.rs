//! What is said after an installation.

use anyhow::Result;

use super::{
    CHART, Deploy, all_of,
    chart::{NAMESPACE, RELEASE, cases},
    tools,
};
use crate::check::Outcome;

/// Said in every case, whatever the values.
const ALWAYS: [&str; 4] = [
    "kubectl label namespace observability pod-security.kubernetes.io/enforce=privileged",
    "rollout status daemonset/",
    "helm test probe -n observability --logs",
    "-- /probe doctor",
];

/// Case, what it says, and what it does not.
const SOMETIMES: [(&str, &str, bool); 8] = [
    ("minimal", "NOBODY READS IT YET", true),
    ("minimal", "kubelet.insecureTLS=true", true),
    ("prometheus", "NOBODY READS IT YET", false),
    ("prometheus", "PodMonitor monitoring/probe", true),
    ("collector-mtls", "Exported to https://otel.example.com (http/protobuf)", true),
    ("least-privilege", "(the least-privilege one, too)", true),
    ("least-privilege", "No kubelet is asked", true),
    ("pin-host-network-nat", "rm -r /sys/fs/bpf/probe-blue", true),
];

pub(super) fn check(deploy: &Deploy) -> Result<Outcome> {
    let mut faults = Vec::new();
    for case in cases(deploy)? {
        let mut helm = deploy.tools.helm();
        helm.args(["install", RELEASE]).arg(deploy.root.join(CHART)).args(["--namespace", NAMESPACE]);
        let said = tools::printed(helm.args(["--dry-run=client", "--values"]).arg(&case.file))?;
        let Some((_, notes)) = said.split_once("\nNOTES:\n") else {
            faults.push(format!("{}: no notes", case.name));
            continue;
        };
        let of_case = SOMETIMES.iter().filter(|(name, ..)| *name == case.name);
        let expected =
            ALWAYS.iter().map(|text| (*text, true)).chain(of_case.map(|(_, text, is)| (*text, *is)));
        // Of values that are not there, and of templates that are not closed.
        let never = ["<no value>", "%!", "{{", "}}"].iter().map(|text| (*text, false));
        for (text, wanted) in expected.chain(never) {
            if notes.contains(text) != wanted {
                faults.push(format!(
                    "{}: {} `{text}`",
                    case.name,
                    if wanted { "does not say" } else { "says" }
                ));
            }
        }
    }
    all_of(faults)?;
    Ok(Outcome::Passed)
}
