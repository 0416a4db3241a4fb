//! Which series there are and which labels they have: docs/metrics.md as Prometheus spells it, and the few that others bring.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};

/// Attributes of a resource that are labels on a page for Prometheus; with [`KEYS`] a test of theirs.
const OWNER: [&str; 12] = [
    "container.id",
    "container.runtime.name",
    "k8s.pod.uid",
    "k8s.pod.name",
    "k8s.namespace.name",
    "k8s.container.name",
    "k8s.deployment.name",
    "k8s.daemonset.name",
    "k8s.statefulset.name",
    "k8s.job.name",
    "systemd.unit.name",
    // No owner, but on any series, as they are.
    "otel.metric.overflow",
];
/// Where the agent's code has the names of attributes.
const KEYS: &str = "probe-user/src/event.rs";
/// What Prometheus itself puts on every series that it scrapes; `cluster` comes from its configuration, where there are several.
const TARGET: [&str; 3] = ["cluster", "instance", "job"];
/// What is not in docs/metrics.md: of Prometheus, of the page's head, of kube-state-metrics.
const OTHERS: [(&str, &[&str]); 6] = [
    ("up", &[]),
    ("scrape_duration_seconds", &[]),
    ("scrape_samples_scraped", &[]),
    (
        "ALERTS",
        &[
            "alertname",
            "alertstate",
            "severity",
            "component",
            "k8s_namespace_name",
            "workload",
            "workload_kind",
            "node",
        ],
    ),
    (
        "target_info",
        &["host_name", "k8s_node_name", "os_type", "service_instance_id", "service_name", "service_version"],
    ),
    ("kube_node_info", &["node"]),
];

pub(super) type Labels = BTreeSet<String>;

/// Series by name, with the labels that they may have.
#[derive(Debug, Default)]
pub(super) struct Contract(BTreeMap<String, Labels>);

impl Contract {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let keys = fs::read_to_string(root.join(KEYS)).with_context(|| format!("cannot read {KEYS}"))?;
        for owner in OWNER {
            ensure!(keys.contains(&format!("\"{owner}\"")), "{KEYS} knows no attribute {owner}");
        }
        let page = fs::read_to_string(root.join("docs/metrics.md")).context("cannot read docs/metrics.md")?;
        let contract = Self::of(&page)?;
        ensure!(contract.0.len() > 40, "docs/metrics.md has no tables of the form that is read here");
        Ok(contract)
    }

    /// Out of the tables of a page: `| name | kind unit | attributes | meaning |`, the first three in backticks.
    fn of(page: &str) -> Result<Self> {
        let mut contract = Self::default();
        for line in page.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, name, kind, attributes, ..] = cells.as_slice() else {
                bail!("no row of metrics: {line}")
            };
            let name = name.trim_matches('`').replace('.', "_");
            let (kind, unit) = kind.split_once(' ').with_context(|| format!("no kind and unit: {line}"))?;
            let labels: Labels = attributes
                .split('`')
                .filter(|word| word.contains(|c: char| c.is_ascii_lowercase()))
                .map(label)
                .collect();
            let unit = match unit.trim_matches('`') {
                "s" => "_seconds",
                "By" => "_bytes",
                braced if braced.starts_with('{') => "",
                other => bail!("how does Prometheus spell the unit {other}? ({line})"),
            };
            match kind {
                "counter" => contract.add(&format!("{name}{unit}_total"), labels),
                "gauge" | "updowncounter" => contract.add(&format!("{name}{unit}"), labels),
                "histogram" => {
                    contract.add(&format!("{name}{unit}_count"), labels.clone());
                    contract.add(&format!("{name}{unit}_sum"), labels.clone());
                    let bucket = labels.into_iter().chain(["le".to_owned()]).collect();
                    contract.add(&format!("{name}{unit}_bucket"), bucket);
                }
                other => bail!("what is a {other}? ({line})"),
            }
        }
        for (name, labels) in OTHERS {
            let labels = labels.iter().copied().chain(TARGET).map(str::to_owned).collect();
            contract.0.insert(name.to_owned(), labels);
        }
        Ok(contract)
    }

    fn add(&mut self, name: &str, labels: Labels) {
        let labels = labels.into_iter().chain(OWNER.map(label)).chain(TARGET.map(str::to_owned)).collect();
        self.0.insert(name.to_owned(), labels);
    }

    /// What a rule records.
    pub(super) fn record(&mut self, name: &str, labels: Labels) {
        self.0.insert(name.to_owned(), labels);
    }

    pub(super) fn labels(&self, name: &str) -> Option<&Labels> {
        self.0.get(name)
    }

    /// The one that is spelled most like it, for whoever mistyped.
    pub(super) fn like(&self, name: &str) -> &str {
        let common = |known: &String| name.bytes().zip(known.bytes()).take_while(|(a, b)| a == b).count();
        self.0.keys().max_by_key(|known| common(known)).map_or("", String::as_str)
    }
}

fn label(attribute: &str) -> String {
    attribute.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spelled_as_prometheus_does() {
        let page = "| metric | kind, unit | attributes | meaning |\n|---|---|---|---|\n\
            | `dns.lookup.duration` | histogram `s` | `server.address`, `dns.role` | Time. |\n\
            | `process.cpu.time` | counter `s` | `cpu.mode` | Time. |\n\
            | `probe.spool.size` | gauge `By` |  | Room. |\n";
        let contract = Contract::of(page).unwrap();
        for (name, label) in [
            ("dns_lookup_duration_seconds_bucket", "le"),
            ("dns_lookup_duration_seconds_count", "dns_role"),
            ("dns_lookup_duration_seconds_sum", "systemd_unit_name"),
            ("process_cpu_time_seconds_total", "cpu_mode"),
            ("probe_spool_size_bytes", "instance"),
        ] {
            assert!(contract.labels(name).unwrap().contains(label), "{name} {label}");
        }
        assert!(!contract.labels("dns_lookup_duration_seconds_count").unwrap().contains("le"));
        assert!(contract.labels("process_cpu_time_total").is_none());
        assert_eq!(contract.like("probe_spool_size"), "probe_spool_size_bytes");
        assert!(Contract::of("| `x` | gauge `furlong` | | y |\n").is_err());
    }
}
