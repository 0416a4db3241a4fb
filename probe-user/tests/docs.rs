//! docs/metrics.md is made from the registry of metrics; this fails when it is stale. `cargo xtask docs` writes it.

use std::path::Path;

use probe_user::series::MetricDef;
use probe_user::series::metrics::{ALL, OWN};

/// Set by `cargo xtask docs`.
const WRITE: &str = "PROBE_WRITE_DOCS";

fn table(text: &mut String, metrics: &[&MetricDef]) {
    text.push_str("| metric | kind, unit | attributes | meaning |\n|---|---|---|---|\n");
    for def in metrics {
        let attributes: Vec<String> = def.attributes.iter().map(|key| format!("`{key}`")).collect();
        let (name, kind, unit) = (def.name, def.kind.as_str(), def.unit);
        let attributes = attributes.join(", ");
        text.push_str(&format!("| `{name}` | {kind} `{unit}` | {attributes} | {} |\n", def.description));
    }
}

fn metrics_page() -> String {
    let mut text = String::from(
        "<!-- Written by `cargo xtask docs` from probe-user/src/series/metrics.rs; not to be edited. -->\n\n# Metrics\n\n\
         ## Of the observed workloads\n\nOne resource per container (`container.id`, `k8s.pod.uid` and, where the kubelet tells \
         them, `k8s.*` names: see the\n[README](../README.md#kubernetes-names)) and one for the host. Sums are cumulative; histograms \
         are exponential, four buckets to an octave.\n\n",
    );
    table(&mut text, ALL);
    text.push_str("\n## Of the agent itself\n\nScope `probe.self`, on the host's resource.\n\n");
    table(&mut text, OWN);
    text
}

#[test]
fn the_page_of_metrics_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = metrics_page();
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(written, page, "{} is stale: run `cargo xtask docs`", path.display());
}
