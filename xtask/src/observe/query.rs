//! Pieces of queries that rules and dashboards share.

/// What tells one agent from another.
pub(super) const AGENT: &str = "cluster, job, instance";
/// Whose a figure is, as [`by_workload`] has it.
pub(super) const WORKLOAD: &str = "cluster, node, k8s_namespace_name, workload";
/// The agents themselves: the head of their pages.
pub(super) const AGENTS: &str = "target_info{service_name=\"probe\"}";

/// Names for whom it is, in one label on Kubernetes and on bare hosts: `workload` is the Deployment, StatefulSet, DaemonSet, Job
/// (of a CronJob, the CronJob), pod, container (twelve digits), systemd unit, or `host`, whichever is known first in this order;
/// `node` is the agent's `instance`, and empty for pods, whose workload is one wherever it runs. `vector` has to have the owner's
/// labels still.
///
/// The join puts all candidates beside each other, and the first that is not empty is taken out again: two functions instead of
/// two for each candidate.
pub(super) fn with_workload(vector: &str) -> String {
    const STEPS: [(&str, &str); 7] = [
        ("label_replace", r#""workload", "$1", "container_id", "(.{12}).*""#),
        (
            "label_join",
            r#""owner", ";", "k8s_deployment_name", "k8s_statefulset_name", "k8s_daemonset_name", "k8s_job_name", "k8s_pod_name", "workload", "systemd_unit_name""#,
        ),
        ("label_replace", r#""workload", "$1", "owner", ";*([^;]+).*""#),
        ("label_replace", r#""workload", "host", "owner", ";*""#),
        ("label_replace", r#""workload", "$1", "k8s_job_name", "(.+)-[0-9]{8}""#),
        ("label_replace", r#""node", "$1", "instance", "(.*)""#),
        ("label_replace", r#""node", "", "k8s_pod_name", ".+""#),
    ];
    // The functions from the last to the first, then what they are applied to, then their arguments in the order of application.
    let functions: String = STEPS.iter().rev().map(|(function, _)| format!("{function}(")).collect();
    let arguments: String = STEPS.iter().map(|(_, arguments)| format!(",\n  {arguments})")).collect();
    format!("{functions}\n  {}{arguments}", vector.trim())
}

/// Summed for each workload, and each value of further labels.
pub(super) fn by_workload(vector: &str, more: &[&str]) -> String {
    let labels: Vec<&str> = [WORKLOAD].into_iter().chain(more.iter().copied()).collect();
    format!("sum by ({}) (\n  {}\n)", labels.join(", "), with_workload(vector).replace('\n', "\n  "))
}

/// How much counters grew in a window. `increase()` does not see the first value of a series, and series of what goes wrong are
/// born as it does: where the agent was read before, and the series is new, all of it is growth.
pub(super) fn growth(selector: &str, window: &str) -> String {
    format!(
        "({selector} unless {selector} offset {window}) and on ({AGENT}) ({AGENTS} offset {window}) or increase({selector}[{window}])"
    )
}

/// A share that is 0, and not absent, where there is only the whole.
pub(super) fn share(part: &str, whole: &str) -> String {
    format!("({part} or 0 * {whole}) / ({whole} > 0)")
}

/// As people write it: a call or parenthesis that does not fit a line is broken up, unless that was done already.
pub(super) fn pretty(query: &str) -> anyhow::Result<String> {
    if query.contains('\n') {
        return Ok(query.to_owned());
    }
    promql_parser::parser::parse(query)
        .map(|parsed| parsed.prettify())
        .map_err(|error| anyhow::anyhow!("no PromQL: {error}: {query}"))
}
