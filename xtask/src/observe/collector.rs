//! Whether configurations of collectors hold together: there is no collector here that could say so.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

const DIRECTORY: &str = "deploy/collector";

/// Keys of components as their own documentation has them; `*` is any word, and a group of [`GROUPS`] stands for its keys.
const KEYS: [(&str, &str); 13] = [
    (
        "receivers/otlp",
        "protocols.grpc.endpoint protocols.grpc.max_recv_msg_size_mib protocols.grpc.tls.<tls> protocols.grpc.tls.client_ca_file \
         protocols.grpc.keepalive.server_parameters.max_connection_age protocols.grpc.keepalive.server_parameters.max_connection_age_grace",
    ),
    (
        "processors/memory_limiter",
        "check_interval limit_mib spike_limit_mib limit_percentage spike_limit_percentage",
    ),
    (
        "processors/k8sattributes",
        "auth_type filter.node_from_env_var pod_association.sources.from pod_association.sources.name extract.metadata \
         wait_for_metadata wait_for_metadata_timeout",
    ),
    (
        "processors/resourcedetection",
        "detectors timeout override system.hostname_sources system.resource_attributes.*.enabled",
    ),
    ("processors/resource", "attributes.key attributes.value attributes.from_attribute attributes.action"),
    ("processors/batch", "send_batch_size send_batch_max_size timeout"),
    (
        "exporters/loadbalancing",
        "routing_key resolver.dns.hostname resolver.dns.port resolver.dns.interval resolver.dns.timeout protocol.otlp.timeout \
         protocol.otlp.compression protocol.otlp.tls.<tls> protocol.otlp.sending_queue.<queue> protocol.otlp.retry_on_failure.<retry> \
         retry_on_failure.<retry> sending_queue.<queue>",
    ),
    (
        "exporters/prometheusremotewrite",
        "endpoint timeout resource_to_telemetry_conversion.enabled resource_to_telemetry_conversion.exclude_service_attributes \
         target_info.enabled remote_write_queue.enabled remote_write_queue.queue_size remote_write_queue.num_consumers retry_on_failure.<retry>",
    ),
    (
        "exporters/kafka",
        "brokers protocol_version metrics.topic metrics.encoding logs.topic logs.encoding partition_metrics_by_resource_attributes \
         partition_logs_by_resource_attributes tls.<tls> producer.max_message_bytes producer.required_acks producer.compression timeout \
         retry_on_failure.<retry> sending_queue.<queue>",
    ),
    (
        "exporters/otlp",
        "endpoint compression timeout headers.* tls.<tls> retry_on_failure.<retry> sending_queue.<queue>",
    ),
    ("extensions/health_check", "endpoint"),
    (
        "extensions/file_storage",
        "directory create_directory fsync timeout compaction.on_start compaction.on_rebound compaction.directory \
         compaction.rebound_needed_threshold_mib compaction.rebound_trigger_threshold_mib",
    ),
    ("service/telemetry", "logs.level"),
];
const GROUPS: [(&str, &str); 3] = [
    ("<tls>", "ca_file cert_file key_file reload_interval"),
    ("<retry>", "enabled initial_interval max_interval max_elapsed_time"),
    ("<queue>", "enabled storage queue_size num_consumers"),
];
/// Kinds of components by the sections that define them.
const SECTIONS: [&str; 3] = ["receivers", "processors", "exporters"];

/// Checks all files, and that the page names their variables. How many files there are.
pub(super) fn check(root: &Path) -> Result<usize> {
    let mut variables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let files = super::yaml_files(&root.join(DIRECTORY))?;
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(file)?;
        for variable in variables_of(&text) {
            variables.entry(variable).or_default().insert(name.clone());
        }
        one(&super::yaml(file)?).with_context(|| format!("{DIRECTORY}/{name}"))?;
    }
    let page =
        fs::read_to_string(root.join(DIRECTORY).join("README.md")).context("cannot read the README")?;
    let told = told(&page);
    ensure!(told == variables, "{DIRECTORY}/README.md names {told:?}, and the files use {variables:?}");
    Ok(files.len())
}

fn one(config: &Value) -> Result<()> {
    for section in object(config, "")?.keys() {
        let known =
            SECTIONS.contains(&section.as_str()) || matches!(section.as_str(), "extensions" | "service");
        ensure!(known, "no section of a collector: {section}");
    }
    let service = config.get("service").context("no service")?;
    let pipelines = object(service.get("pipelines").context("no pipelines")?, "pipelines")?;
    for section in SECTIONS {
        let defined = names(config.get(section), section)?;
        let mut used = BTreeSet::new();
        for (pipeline, parts) in pipelines {
            let parts =
                list(parts.get(section)).with_context(|| format!("pipeline {pipeline}: {section}"))?;
            ensure!(!parts.is_empty(), "pipeline {pipeline} has no {section}");
            ensure!(
                parts.iter().collect::<BTreeSet<_>>().len() == parts.len(),
                "pipeline {pipeline}: {section} twice"
            );
            used.extend(parts);
        }
        ensure!(defined == used, "{section}: defined are {defined:?}, used are {used:?}");
    }
    for (pipeline, parts) in pipelines {
        let signal = pipeline.split('/').next().unwrap_or_default();
        ensure!(matches!(signal, "metrics" | "logs"), "pipeline {pipeline}: probe sends metrics and logs");
        let processors = list(parts.get("processors"))?;
        ensure!(
            processors.first().is_some_and(|first| first == "memory_limiter"),
            "pipeline {pipeline}: memory_limiter has to be the first, or it protects nothing"
        );
        ensure!(
            processors.last().is_some_and(|last| last == "batch"),
            "pipeline {pipeline}: batch has to be the last: what is dropped is not batched"
        );
    }
    let defined = names(config.get("extensions"), "extensions")?;
    let started: BTreeSet<String> = list(service.get("extensions"))?.into_iter().collect();
    ensure!(defined == started, "extensions: defined are {defined:?}, started are {started:?}");
    keys(config, &defined)?;
    associations(config)
}

/// Every key of every component is one that it has, and what is stored is stored in an extension that is there.
fn keys(config: &Value, extensions: &BTreeSet<String>) -> Result<()> {
    for section in SECTIONS.into_iter().chain(["extensions", "service"]) {
        for (component, settings) in object(config.get(section).unwrap_or(&Value::Null), section)? {
            if section == "service" && matches!(component.as_str(), "extensions" | "pipelines") {
                continue;
            }
            let kind = format!("{section}/{}", component.split('/').next().unwrap_or_default());
            let (_, known) = KEYS
                .iter()
                .find(|(known, _)| *known == kind)
                .with_context(|| format!("no known component: {kind}"))?;
            let known: Vec<String> = known.split_whitespace().flat_map(expanded).collect();
            for (path, value) in leaves(settings) {
                ensure!(
                    known.iter().any(|known| is_like(&path, known)),
                    "{section}.{component}: no such key: {path}"
                );
                if path.ends_with("sending_queue.storage") {
                    let storage = value.as_str().unwrap_or_default();
                    ensure!(
                        extensions.contains(storage),
                        "{section}.{component}: no such extension: {storage}"
                    );
                }
            }
        }
    }
    Ok(())
}

/// By connection all of a node would be its agent's; that is also what no rule at all means.
fn associations(config: &Value) -> Result<()> {
    let processors = config.get("processors").unwrap_or(&Value::Null);
    for (name, settings) in
        object(processors, "processors")?.iter().filter(|(name, _)| name.starts_with("k8sattributes"))
    {
        let rules = settings.get("pod_association").and_then(Value::as_array).cloned().unwrap_or_default();
        let sources: Vec<(&str, &str)> = rules
            .iter()
            .flat_map(|rule| rule.get("sources").and_then(Value::as_array).into_iter().flatten())
            .map(|source| {
                let text = |key| source.get(key).and_then(Value::as_str).unwrap_or_default();
                (text("from"), text("name"))
            })
            .collect();
        let wanted = [("resource_attribute", "k8s.pod.uid"), ("resource_attribute", "container.id")];
        ensure!(
            sources == wanted && rules.len() == 2,
            "{name} associates by {sources:?}, and has to by {wanted:?} alone"
        );
    }
    Ok(())
}

/// `tls.<tls>` is each of that group.
fn expanded(key: &str) -> Vec<String> {
    match GROUPS.iter().find_map(|(group, keys)| Some((key.strip_suffix(group)?, keys))) {
        Some((prefix, keys)) => keys.split_whitespace().map(|key| format!("{prefix}{key}")).collect(),
        None => vec![key.to_owned()],
    }
}

fn is_like(path: &str, known: &str) -> bool {
    match known.split_once('*') {
        // The word may have dots: it is an attribute's name.
        Some((before, after)) => path
            .strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after))
            .is_some_and(|word| !word.is_empty()),
        None => path == known,
    }
}

/// Paths and values; items of a list have the list's path.
fn leaves(value: &Value) -> Vec<(String, &Value)> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| {
                leaves(value).into_iter().map(move |(path, leaf)| {
                    (if path.is_empty() { key.clone() } else { format!("{key}.{path}") }, leaf)
                })
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(leaves).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => vec![(String::new(), value)],
    }
}

fn object<'a>(value: &'a Value, what: &str) -> Result<&'a serde_json::Map<String, Value>> {
    value.as_object().with_context(|| format!("{what} is no map"))
}

fn names(section: Option<&Value>, what: &str) -> Result<BTreeSet<String>> {
    Ok(object(section.with_context(|| format!("no {what}"))?, what)?.keys().cloned().collect())
}

fn list(value: Option<&Value>) -> Result<Vec<String>> {
    let items = value.and_then(Value::as_array).context("no list")?;
    items
        .iter()
        .map(|item| match item {
            Value::String(name) => Ok(name.clone()),
            other => bail!("no name: {other}"),
        })
        .collect()
}

fn variables_of(text: &str) -> impl Iterator<Item = String> {
    text.split("${env:").skip(1).filter_map(|rest| Some(rest.split_once('}')?.0.to_owned())).chain(
        text.lines().filter_map(|line| Some(line.trim().strip_prefix("node_from_env_var: ")?.to_owned())),
    )
}

/// Rows of the page's table: variable, files.
fn told(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    page.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let variable = cells.next()?.trim_end_matches('`');
            variable
                .bytes()
                .all(|c| c.is_ascii_uppercase() || c == b'_' || c.is_ascii_digit())
                .then_some(())?;
            let files = cells.next()?.split(", ").map(|file| file.trim().to_owned()).collect();
            Some((variable.to_owned(), files))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn whole() -> Value {
        json!({
            "receivers": { "otlp": { "protocols": { "grpc": { "endpoint": "x" } } } },
            "processors": {
                "memory_limiter": { "limit_mib": 1 },
                "k8sattributes": { "pod_association": [
                    { "sources": [{ "from": "resource_attribute", "name": "k8s.pod.uid" }] },
                    { "sources": [{ "from": "resource_attribute", "name": "container.id" }] },
                ] },
                "batch": { "timeout": "1s" },
            },
            "exporters": { "otlp/a": { "endpoint": "x", "sending_queue": { "storage": "file_storage" } } },
            "extensions": { "file_storage": { "directory": "x" } },
            "service": { "extensions": ["file_storage"], "pipelines": { "logs": {
                "receivers": ["otlp"], "processors": ["memory_limiter", "k8sattributes", "batch"], "exporters": ["otlp/a"],
            } } },
        })
    }

    #[test]
    fn what_does_not_hold_together_is_named() {
        one(&whole()).unwrap();
        let changes: [(&str, Value, &str); 10] = [
            ("/receivers/otlp/protocols/grpc/endpont", json!("x"), "no such key: protocols.grpc.endpont"),
            ("/exporters/otlp~1b", json!({ "endpoint": "y" }), "defined are"),
            ("/service/pipelines/logs/exporters", json!(["otlp/a", "otlp/b"]), "used are"),
            (
                "/service/pipelines/logs/processors",
                json!(["k8sattributes", "memory_limiter", "batch"]),
                "first",
            ),
            (
                "/service/pipelines/logs/processors",
                json!(["memory_limiter", "batch", "k8sattributes"]),
                "last",
            ),
            (
                "/service/pipelines/traces",
                json!({ "receivers": ["otlp"], "processors": ["memory_limiter", "batch"], "exporters": ["otlp/a"] }),
                "probe sends",
            ),
            (
                "/processors/k8sattributes/pod_association/0/sources/0",
                json!({ "from": "connection" }),
                "associates by",
            ),
            ("/processors/k8sattributes/pod_association", json!([]), "associates by"),
            ("/exporters/otlp~1a/sending_queue/storage", json!("file_store"), "no such extension"),
            ("/extensions/zpages", json!({}), "extensions: defined are"),
        ];
        for (pointer, value, word) in changes {
            let mut config = whole();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            match config.pointer_mut(parent).unwrap() {
                Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
                map => map[key.replace("~1", "/")] = value,
            }
            let error = format!("{:#}", one(&config).expect_err(pointer));
            assert!(error.contains(word), "{pointer}: {error}");
        }
    }

    #[test]
    fn variables_are_found() {
        let text = "a: ${env:A_B}:1\n    node_from_env_var: NODE\n";
        assert_eq!(variables_of(text).collect::<Vec<_>>(), ["A_B", "NODE"]);
        let page =
            "| variable | files |\n| `A_B` | x.yaml, y.yaml | what |\n| `loadbalancing` | no | variable |\n";
        let told = told(page);
        assert_eq!(told.len(), 1);
        assert!(told["A_B"].contains("y.yaml"));
    }
}
