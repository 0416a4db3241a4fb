//! What a dashboard's variables pick, and queries about it.

use crate::observe::query;

/// Of an agent.
pub(super) const HOSTS: &str = "cluster=~\"$cluster\", instance=~\"$node\"";
/// Of a workload. A label that is not there is empty, which `.*`, all of them, takes.
pub(super) const OWNERS: &str =
    "cluster=~\"$cluster\", instance=~\"$node\", k8s_namespace_name=~\"$namespace\", $by=~\"$workload\"";
/// What Grafana puts in for the variables, where all is picked.
const FILLED: [(&str, &str); 7] = [
    ("$__range", "1h"),
    ("$__rate_interval", "5m"),
    ("$cluster", ".*"),
    ("$node", ".*"),
    ("$namespace", ".*"),
    ("$workload", ".*"),
    ("$by", "k8s_deployment_name"),
];

/// Name, label, and what they are asked for with.
pub(super) fn variables(of_workloads: bool) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut variables = vec![
        ("cluster", "Cluster", "label_values(target_info{service_name=\"probe\"}, cluster)"),
        (
            "node",
            "Node",
            "label_values(target_info{service_name=\"probe\", cluster=~\"$cluster\"}, instance)",
        ),
    ];
    if of_workloads {
        variables.extend([
            (
                "namespace",
                "Namespace",
                "label_values(process_syscall_errors_total{cluster=~\"$cluster\", instance=~\"$node\"}, k8s_namespace_name)",
            ),
            (
                "by",
                "Workloads are",
                "Deployments : k8s_deployment_name, StatefulSets : k8s_statefulset_name, DaemonSets : k8s_daemonset_name, Jobs : k8s_job_name, Pods : k8s_pod_name, Containers : container_id, Units : systemd_unit_name",
            ),
            (
                "workload",
                "Workload",
                "label_values(process_syscall_errors_total{cluster=~\"$cluster\", instance=~\"$node\", k8s_namespace_name=~\"$namespace\"}, $by)",
            ),
        ]);
    }
    variables
}

pub(super) fn filled(query: &str) -> String {
    FILLED.iter().fold(query.to_owned(), |query, (variable, value)| query.replace(variable, value))
}

fn with(metric: &str, filter: &str, more: &str) -> String {
    let comma = if more.is_empty() { "" } else { ", " };
    format!("{metric}{{{filter}{comma}{more}}}")
}

/// Of the workloads that are picked, a second.
pub(super) fn rate(metric: &str, more: &str) -> String {
    format!("rate({}[$__rate_interval])", with(metric, OWNERS, more))
}

/// Of the agents that are picked, a second.
pub(super) fn host_rate(metric: &str) -> String {
    format!("rate({}[$__rate_interval])", with(metric, HOSTS, ""))
}

/// Of a histogram, over all, or for each value of a label.
pub(super) fn quantile(quantile: &str, histogram: &str, more: &str, by: &str) -> String {
    let comma = if by.is_empty() { "" } else { ", " };
    format!(
        "histogram_quantile({quantile}, sum by (le{comma}{by}) ({}))",
        rate(&format!("{histogram}_bucket"), more)
    )
}

pub(super) fn by_workload(vector: &str) -> String {
    query::by_workload(vector, &[])
}

pub(super) fn by_workload_and(vector: &str, more: &[&str]) -> String {
    query::by_workload(vector, more)
}

/// How much there was of what is rare, in the time that is shown; a rate of it is nothing nearly always.
pub(super) fn in_sight(metric: &str, filter: &str) -> String {
    format!("sum({}) or vector(0)", query::growth(&with(metric, filter, ""), "$__range"))
}

/// The workloads with most of it.
pub(super) fn worst(count: u32, vector: &str) -> String {
    format!("topk({count}, {} > 0)", by_workload(vector))
}
