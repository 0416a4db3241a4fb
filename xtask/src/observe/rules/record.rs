//! What is worked out once for alerts, dashboards of one's own, and whoever asks at night.

use crate::observe::query::{AGENT, WORKLOAD, by_workload, growth, share};

/// Name, meaning, query.
pub(super) struct Record {
    pub(super) name: &'static str,
    pub(super) meaning: &'static str,
    pub(super) query: String,
}

fn record(name: &'static str, meaning: &'static str, query: String) -> Record {
    Record { name, meaning, query }
}

fn rate(name: &'static str, meaning: &'static str, selector: &str) -> Record {
    record(name, meaning, by_workload(&format!("rate({selector}[5m])"), &[]))
}

pub(super) fn tcp() -> Vec<Record> {
    vec![
        rate(
            "workload:tcp_segments_sent:rate5m",
            "TCP segments sent a second, those sent again included.",
            "system_network_tcp_segments_total{network_io_direction=\"transmit\"}",
        ),
        rate(
            "workload:tcp_segments_retransmitted:rate5m",
            "TCP segments sent again a second; without SYN-ACKs, which the segments sent do not have either.",
            "system_network_tcp_retransmits_total{network_tcp_retransmit_type!=\"syn_ack\"}",
        ),
        record(
            "workload:tcp_retransmits:ratio_rate5m",
            "Share of the segments sent that were sent again.",
            share("workload:tcp_segments_retransmitted:rate5m", "workload:tcp_segments_sent:rate5m"),
        ),
        rate(
            "workload:tcp_syn_retransmits:rate5m",
            "SYNs sent again a second: nobody answered the first, and whoever connects waits for a second at least.",
            "system_network_tcp_retransmits_total{network_tcp_retransmit_type=\"syn\"}",
        ),
        rate(
            "workload:tcp_connects:rate5m",
            "Connections asked for that ended a second, established or failed.",
            "system_network_tcp_connections_total{network_tcp_handshake_role=\"client\"}",
        ),
        rate(
            "workload:tcp_connects_failed:rate5m",
            "Connections asked for that failed a second.",
            "system_network_tcp_connections_total{network_tcp_handshake_role=\"client\", error_type!=\"\"}",
        ),
        record(
            "workload:tcp_connects_failed:ratio_rate5m",
            "Share of the connections asked for that failed.",
            share("workload:tcp_connects_failed:rate5m", "workload:tcp_connects:rate5m"),
        ),
        record(
            "workload:tcp_syn_retransmits:ratio_rate5m",
            "SYNs sent again for each connection asked for.",
            share("workload:tcp_syn_retransmits:rate5m", "workload:tcp_connects:rate5m"),
        ),
    ]
}

/// Seen from who asks: `dns_role` is `server` where a server of this host was looked at from its end.
pub(super) fn dns() -> Vec<Record> {
    vec![
        rate(
            "workload:dns_lookups_answered:rate5m",
            "DNS lookups answered a second, whatever the answer.",
            "dns_lookup_duration_seconds_count{dns_role=\"\"}",
        ),
        rate(
            "workload:dns_lookups_unanswered:rate5m",
            "DNS lookups a second that got no response within the timeout (5 s).",
            "dns_lookup_unanswered_total{dns_role=\"\"}",
        ),
        record(
            "workload:dns_lookups:rate5m",
            "DNS lookups that ended a second, answered or not.",
            // Either may be missing: a server that never answers has no durations.
            format!(
                "sum by ({WORKLOAD}) (label_replace(workload:dns_lookups_answered:rate5m, \"end\", \"answered\", \"__name__\", \".*\") \
                 or label_replace(workload:dns_lookups_unanswered:rate5m, \"end\", \"unanswered\", \"__name__\", \".*\"))"
            ),
        ),
        record(
            "workload:dns_lookups_unanswered:ratio_rate5m",
            "Share of the DNS lookups that got no response.",
            share("workload:dns_lookups_unanswered:rate5m", "workload:dns_lookups:rate5m"),
        ),
        rate(
            "workload:dns_lookups_servfail:rate5m",
            "DNS lookups answered with SERVFAIL or REFUSED a second.",
            "dns_lookup_duration_seconds_count{dns_role=\"\", dns_response_code=~\"SERVFAIL|REFUSED\"}",
        ),
        record(
            "workload:dns_lookups_servfail:ratio_rate5m",
            "Share of the DNS lookups answered that were answered with SERVFAIL or REFUSED.",
            share("workload:dns_lookups_servfail:rate5m", "workload:dns_lookups_answered:rate5m"),
        ),
        record(
            "workload:dns_lookup_duration_seconds:p99_5m",
            "Time within which 99 of 100 answers came. Buckets are powers of two: it is right to a factor of two.",
            format!(
                "histogram_quantile(0.99, {})",
                by_workload("rate(dns_lookup_duration_seconds_bucket{dns_role=\"\"}[5m])", &["le"])
            ),
        ),
        record(
            "workload:dns_lost_twins:increase10m",
            "Lookups for A or AAAA in ten minutes that got no response while the other, asked beside it, got one.",
            by_workload(&growth("dns_lookup_lost_twin_total", "10m"), &["server_address"]),
        ),
    ]
}

pub(super) fn syscalls() -> Vec<Record> {
    vec![
        rate(
            "workload:syscalls:rate5m",
            "System calls a second (of those measured, where `--syscall-latency-sample` has it so).",
            "process_syscall_duration_seconds_count",
        ),
        rate(
            "workload:syscall_errors:rate5m",
            "System calls that failed a second.",
            "process_syscall_errors_total",
        ),
        record(
            "workload:syscalls_in_flight:sum",
            "Working system calls that have not returned for longer than the threshold (100 ms).",
            by_workload("process_syscall_in_flight", &["syscall_name"]),
        ),
    ]
}

pub(super) fn agent() -> Vec<Record> {
    vec![
        record(
            "instance:probe_events_lost:increase15m",
            "What the agent lost in a quarter of an hour, by where.",
            format!("sum by ({AGENT}, signal, where) ({})", growth("probe_events_lost_total", "15m")),
        ),
        record(
            "instance:probe_export_failed:increase15m",
            "Data points and log records that could not be delivered in a quarter of an hour, by why.",
            format!("sum by ({AGENT}, sink, error_type) ({})", growth("probe_export_failed_total", "15m")),
        ),
        record(
            "instance:probe_series_folded:increase15m",
            "Values in a quarter of an hour that went into an overflow series, by metric.",
            format!("sum by ({AGENT}, metric) ({})", growth("probe_series_folded_total", "15m")),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::query::with_workload;

    #[test]
    fn dimensions_are_what_the_function_makes() {
        let made = with_workload("x");
        for label in WORKLOAD.split(", ").filter(|label| !matches!(*label, "cluster" | "k8s_namespace_name"))
        {
            assert!(made.contains(&format!("\"{label}\"")), "{label}: {made}");
        }
    }
}
