//! The probe itself: whether it runs everywhere, keeps up, and gets its data out.

use super::{
    Dashboard, Row,
    filter::{HOSTS, host_rate},
    panel::{Panel, Query, Shape},
};
use crate::observe::query::AGENT;

pub(super) fn dashboard() -> Dashboard {
    let agents = || format!("target_info{{service_name=\"probe\", {HOSTS}}}");
    // Programs of others have metrics of these names too.
    let ours = |query: &str| format!("({query}) and on ({AGENT}) {}", agents());
    let cpu = || ours(&format!("sum by ({AGENT}) ({})", host_rate("process_cpu_time_seconds_total")));
    let memory = || ours(&format!("sum by ({AGENT}) (process_memory_usage_bytes{{{HOSTS}}})"));
    let by = |labels: &str, metric: &str| format!("sum by ({labels}) ({})", host_rate(metric));
    let some = |query: String| format!("sum({query}) or vector(0)");
    Dashboard {
        uid: "probe-self",
        file: "deploy/grafana/probe.json",
        title: "probe / The probe itself",
        description: "Whether agents run on every node, keep up, and get their data out.",
        of_workloads: false,
        rows: vec![
            Row {
                title: "Is something wrong?",
                panels: vec![
                    Panel::stat("Agents", "short", format!("count(count by ({AGENT}) ({}))", agents()),
                        "Agents whose page is read."),
                    Panel::stat("Do not answer", "short",
                        format!("count(up{{{HOSTS}}} == 0 and on ({AGENT}) last_over_time(target_info{{service_name=\"probe\", {HOSTS}}}[1h])) or vector(0)"),
                        "Agents that were read within the last hour and cannot be now.")
                        .red_from(1.0, 1.0),
                    Panel::stat("Events lost", "short", super::filter::in_sight("probe_events_lost_total", HOSTS),
                        "In the time shown: figures are too low by so many. There should be none.")
                        .red_from(1.0, 1000.0),
                    Panel::stat("Exports that fail", "cps", some(host_rate("probe_export_failed_total")),
                        "Data points and log records a second that a sink could not deliver.")
                        .red_from(0.001, 1.0),
                    Panel::stat("CPU, the busiest agent", "percentunit", format!("max({})", cpu()),
                        "Of one core, without what its programs take inside the observed processes.")
                        .red_from(0.1, 0.5),
                    Panel::stat("Memory, the largest agent", "bytes", format!("max({})", memory()),
                        "Resident; BPF maps are another 26 to 48 MiB.")
                        .red_from(100.0 * 1_048_576.0, 200.0 * 1_048_576.0),
                ],
            },
            Row {
                title: "Where?",
                panels: vec![
                    Panel {
                        title: "Each agent",
                        description: "One row an agent: what it takes, how much it sees, and what it lost.",
                        shape: Shape::Table(&["CPU [percentunit]", "memory [bytes]", "events [cps]", "lost [cps]", "series [short]", "scrape [s]"]),
                        unit: "short",
                        queries: vec![
                            Query::new(cpu(), ""),
                            Query::new(memory(), ""),
                            Query::new(by(AGENT, "probe_events_total"), ""),
                            Query::new(by(AGENT, "probe_events_lost_total"), "").only("something was lost"),
                            Query::new(format!("sum by ({AGENT}) (probe_series_active{{{HOSTS}}})"), ""),
                            Query::new(ours(&format!("scrape_duration_seconds{{{HOSTS}}}")), ""),
                        ],
                        thresholds: None,
                        width: 24,
                    },
                    Panel::lines("Events, by signal", "cps",
                        vec![Query::new(by("signal", "probe_events_total"), "{{signal}}")],
                        "Records that the agent decoded. System calls are counted in the kernel, so there are few."),
                    Panel::lines("Lost, by place", "cps",
                        vec![Query::new(by("instance, signal, where", "probe_events_lost_total"), "{{instance}} {{signal}} {{where}}").only("something was lost")],
                        "A ring: `--ring-kib`, and no CPU limit. A full map: see below."),
                    Panel::lines("CPU", "percentunit",
                        vec![Query::new(format!("sum by (instance, cpu_mode) ({})", ours(&format!("sum by ({AGENT}, cpu_mode) ({})", host_rate("process_cpu_time_seconds_total")))), "{{instance}} {{cpu_mode}}")],
                        "Of one core."),
                    Panel::lines("Memory", "bytes", vec![Query::new(memory(), "{{instance}}")],
                        "Resident. It is set by configuration and the number of series, not by traffic."),
                ],
            },
            Row {
                title: "Limits",
                panels: vec![
                    Panel::lines("Maps, how full", "percentunit",
                        vec![Query::new(format!("topk(10, max by (instance, map) (probe_map_entries{{{HOSTS}}}) / max by (instance, map) (probe_map_limit{{{HOSTS}}}))"), "{{instance}} {{map}}")],
                        "Near 100 % entries find no room: the flag of that map is in the runbook of ProbeMapFull.")
                        .red_from(0.8, 0.95),
                    Panel::lines("Entries that found no room", "cps",
                        vec![Query::new(by("instance, map", "probe_map_insert_failures_total"), "{{instance}} {{map}}").only("a map was full")],
                        "There should be none."),
                    Panel::stack("Series, by metric", "short",
                        vec![Query::new(format!("sum by (metric) (probe_series_active{{{HOSTS}}})"), "{{metric}}")],
                        "What Prometheus or the collector has to keep: histograms are 27 lines a series on a page."),
                    Panel::lines("Values folded, series ended", "cps",
                        vec![
                            Query::new(by("metric", "probe_series_folded_total"), "{{metric}} folded"),
                            Query::new(some(host_rate("probe_series_ended_total")), "ended"),
                        ],
                        "Folded: beyond the limit of series, totals stay right. Ended: containers that are gone."),
                ],
            },
            Row {
                title: "Ways out",
                panels: vec![
                    Panel::lines("Delivered over OTLP", "cps",
                        vec![Query::new(by("sink", "probe_export_sent_total"), "{{sink}}").only("--otlp-endpoint")],
                        "Data points and log records that the collector accepted."),
                    Panel::lines("Not delivered, by why", "cps",
                        vec![Query::new(by("sink, error_type", "probe_export_failed_total"), "{{sink}} {{error_type}}").only("an export failed")],
                        "unavailable, timeout: the collector is away. resource_exhausted: its memory_limiter. spool_full: away for too long."),
                    Panel::lines("Time of an export, p99", "s",
                        vec![Query::new(format!("histogram_quantile(0.99, sum by (sink, le) ({}))", host_rate("probe_export_duration_seconds_bucket")), "{{sink}}").only("--otlp-endpoint")],
                        "One request, answered or not."),
                    Panel::lines("Waiting on disk", "short",
                        vec![
                            Query::new(format!("sum by (instance) (probe_spool_events{{{HOSTS}}})"), "{{instance}} events").only("--spool"),
                            Query::new(format!("sum by (instance) (probe_spool_size_bytes{{{HOSTS}}})"), "{{instance}} octets").only("--spool"),
                        ],
                        "Events that the collector has yet to take (`--spool`)."),
                    Panel::lines("Requests to the kubelet", "cps",
                        vec![Query::new(by("instance, error_type", "probe_kubelet_requests_total"), "{{instance}} {{error_type}}").only("--kubelet")],
                        "Without error_type: answered. 403: the service account lacks `get` of nodes/proxy."),
                    Panel::lines("What its programs take", "percentunit",
                        vec![Query::new(format!("topk(8, {})", by("program", "probe_program_run_time_seconds_total")), "{{program}}").only("--program-stats")],
                        "Of one core, inside whoever runs them. Only with `--program-stats`, which itself costs."),
                    Panel::lines("Left alone", "cps",
                        vec![Query::new(by("where", "probe_packets_ignored_total"), "{{where}}").only("such packets came")],
                        "dns.malformed: no well-formed question on a DNS port. dns.orphans: answers to no waiting question."),
                    Panel::lines("Scrapes", "s",
                        vec![Query::new(ours(&format!("scrape_duration_seconds{{{HOSTS}}}")), "{{instance}}")],
                        "How long a page takes; near the scrape's timeout there will be gaps."),
                ],
            },
        ],
    }
}
