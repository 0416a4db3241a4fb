//! `config` and the probe.yaml that comes of it: its keys against those that there are, and the whole as probe itself reads it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::Value;

use super::{
    CHART, Deploy, all_of,
    chart::{cases, list, text},
    tools,
};
use crate::{
    check::Outcome,
    process::{self, say},
};

/// Keys of probe.yaml that `config` does not take, and why.
const NOT_IN_CONFIG: [(&str, &str); 19] = [
    ("duration", "an agent that ends is started again"),
    ("count", "an agent that ends is started again"),
    ("pid", "of one node"),
    ("otlp-endpoint", "collector.endpoint"),
    ("otlp-protocol", "collector.protocol"),
    ("otlp-compression", "collector.compression"),
    ("otlp-headers", "collector.headers: a secret"),
    ("otlp-certificate", "collector.tls"),
    ("otlp-client-certificate", "collector.tls"),
    ("otlp-client-key", "collector.tls"),
    ("spool", "spool.enabled"),
    ("spool-mib", "spool.mib"),
    ("prometheus-listen", "metrics.port"),
    ("kubelet", "kubelet.enabled"),
    ("kubelet-token-file", "the service account's"),
    ("kubelet-ca", "kubelet.caConfigMap"),
    ("kubelet-insecure-tls", "kubelet.insecureTLS"),
    ("kube-labels", "kubelet.labels"),
    ("pin", "pin.enabled"),
];

/// A key that probe learns is one that the chart says something of.
pub(super) fn keys(deploy: &Deploy) -> Result<Outcome> {
    let file = deploy.root.join("deploy/config/probe.yaml");
    let known = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    // `#interval: 30s`; prose has a blank behind the #.
    let known: BTreeSet<&str> = known
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.split_once(": "))
        .map(|(key, _)| key)
        .filter(|key| {
            key.bytes().all(|octet| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-')
        })
        .collect();
    let schema = fs::read_to_string(deploy.root.join(CHART).join("values.schema.json"))?;
    let schema: Value = serde_json::from_str(&schema).context("values.schema.json is no JSON")?;
    let taken = schema.pointer("/properties/config/properties").and_then(Value::as_object);
    let taken: BTreeSet<&str> = taken.context("no schema of config")?.keys().map(String::as_str).collect();
    let left_out: BTreeSet<&str> = NOT_IN_CONFIG.iter().map(|(key, _)| *key).collect();
    let mut faults = Vec::new();
    for key in known.difference(&taken).filter(|key| !left_out.contains(*key)) {
        faults.push(format!("{key} is a key of probe.yaml: config in values.schema.json should have it, or NOT_IN_CONFIG a reason"));
    }
    faults.extend(
        taken.difference(&known).map(|key| format!("config takes {key}, which is no key of probe.yaml")),
    );
    faults.extend(
        taken.intersection(&left_out).map(|key| format!("config takes {key}, which the chart sets itself")),
    );
    let gone = NOT_IN_CONFIG.iter().filter(|(key, _)| !known.contains(key));
    faults.extend(gone.map(|(key, _)| format!("{key} is no key of probe.yaml (NOT_IN_CONFIG)")));
    all_of(faults)?;
    say(format_args!("{} keys: config takes {}, other values set the rest", known.len(), taken.len()));
    Ok(Outcome::Passed)
}

/// Where a pod may find itself.
const PLACES: [(&str, &str, &str); 2] =
    [("IPv4", "10.244.1.7", "192.0.2.7"), ("IPv6", "fd00:10:244::7", "2001:db8::7")];

/// `probe run --check-config` of what each case renders to: arguments, environment and file.
pub(super) fn check(deploy: &Deploy) -> Result<Outcome> {
    let probe = probe(deploy)?;
    say(format_args!("asking {}", probe.display()));
    let etc = deploy.scratch.join("etc");
    let mut faults = Vec::new();
    for case in cases(deploy)? {
        let documents = deploy.documents(&case, &[])?;
        let of_kind = |kind: &str| documents.iter().find(|document| text(document, "/kind") == kind);
        let (Some(map), Some(set)) = (of_kind("ConfigMap"), of_kind("DaemonSet")) else {
            bail!("{} has no agent", case.name)
        };
        let container = set.pointer("/spec/template/spec/containers/0").context("no container")?;
        let args: Vec<&str> = list(container, "/args").iter().filter_map(Value::as_str).collect();
        // What a cluster would mount, it finds below another directory.
        let moved = |text: &str| text.replace("/etc/probe/", &format!("{}/", etc.display()));
        let mounts = list(container, "/volumeMounts").iter().map(|mount| text(mount, "/mountPath"));
        files(&etc, mounts, &moved(text(map, "/data/probe.yaml")))?;
        for (place, pod, node) in PLACES {
            let known = [("$(POD_IP)", pod), ("$(NODE_IP)", node), ("$(K8S_NODE_NAME)", "node-7")];
            let filled =
                |text: &str| known.iter().fold(moved(text), |text, (name, value)| text.replace(name, value));
            let mut command = Command::new(&probe);
            command.env_clear().args(args.iter().map(|arg| filled(arg))).arg("--check-config");
            for variable in list(container, "/env") {
                let of_field = format!("$({})", text(variable, "/name"));
                let value = variable.get("value").and_then(Value::as_str).map(&filled);
                let value = value
                    .or_else(|| variable.pointer("/valueFrom/secretKeyRef").map(|_| "key=secret".to_owned()));
                command.env(text(variable, "/name"), value.unwrap_or_else(|| filled(&of_field)));
            }
            let unbracketed = place == "IPv6"
                && command.get_envs().any(|(_, value)| {
                    value
                        .and_then(|value| value.to_str())
                        .is_some_and(|value| value.contains(&format!("//{node}")))
                });
            if unbracketed {
                // Of these a URL is to be written with brackets, as values.yaml says.
                continue;
            }
            let (passed, said, error) = tools::outputs(&mut command)?;
            if !passed {
                faults.push(format!("{}, {place}: {} {}", case.name, said.trim(), error.trim()));
            }
        }
    }
    all_of(faults)?;
    Ok(Outcome::Passed)
}

/// The configuration, and a certificate with its key wherever one could be looked for.
fn files<'a>(etc: &Path, mounts: impl Iterator<Item = &'a str>, config: &str) -> Result<()> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["probe".to_owned()])?;
    for below in mounts.filter_map(|mount| mount.strip_prefix("/etc/probe/")) {
        let folder = etc.join(below);
        fs::create_dir_all(&folder)?;
        for (name, pem) in
            [("ca.crt", cert.pem()), ("tls.crt", cert.pem()), ("tls.key", signing_key.serialize_pem())]
        {
            fs::write(folder.join(name), pem)?;
        }
    }
    fs::write(etc.join("config/probe.yaml"), config).context("the ConfigMap is mounted nowhere")
}

/// The one that was named, else that of these sources.
pub(super) fn probe(deploy: &Deploy) -> Result<PathBuf> {
    if let Some(named) = &deploy.probe {
        return fs::canonicalize(named).with_context(|| format!("cannot find {}", named.display()));
    }
    let target = deploy.root.join("target");
    let mut build = process::cargo();
    build.current_dir(&deploy.root).args([
        "build",
        "--quiet",
        "--locked",
        "-p",
        "probe-user",
        "--bin",
        "probe",
    ]);
    process::run(build.arg("--target-dir").arg(&target))?;
    Ok(target.join("debug/probe"))
}
