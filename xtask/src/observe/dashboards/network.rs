//! Network health: who loses packets, and how.

use super::{
    Dashboard, Row,
    filter::{quantile, rate, worst},
    panel::{Panel, Query, Shape},
};
use crate::observe::query::share;

pub(super) fn dashboard() -> Dashboard {
    let sent = || rate("system_network_tcp_segments_total", "network_io_direction=\"transmit\"");
    let again = || rate("system_network_tcp_retransmits_total", "network_tcp_retransmit_type!=\"syn_ack\"");
    let syn = || rate("system_network_tcp_retransmits_total", "network_tcp_retransmit_type=\"syn\"");
    let asked = || rate("system_network_tcp_connections_total", "network_tcp_handshake_role=\"client\"");
    let failed = || {
        rate(
            "system_network_tcp_connections_total",
            "network_tcp_handshake_role=\"client\", error_type!=\"\"",
        )
    };
    let resets = |direction: &str| {
        rate("system_network_tcp_resets_total", &format!("network_io_direction=\"{direction}\""))
    };
    let of_all = |part: &str, whole: &str| format!("(sum({part}) or vector(0)) / (sum({whole}) > 0)");
    let of_each = |part: &str, whole: &str| {
        share(&super::filter::by_workload(part), &super::filter::by_workload(whole))
    };
    Dashboard {
        uid: "probe-network",
        file: "deploy/grafana/network.json",
        title: "probe / Network health",
        description: "Which workloads lose TCP segments, cannot connect, or are slow to be answered.",
        of_workloads: true,
        rows: vec![
            Row {
                title: "Is something wrong?",
                panels: vec![
                    Panel::stat("Sent again", "percentunit", of_all(&again(), &sent()),
                        "Share of the TCP segments sent that were sent again. Within a data centre 0.1 % is ordinary, over the Internet 1 %.")
                        .red_from(0.01, 0.05),
                    Panel::stat("Connects that fail", "percentunit", of_all(&failed(), &asked()),
                        "Share of the connections asked for that ended with an error. By error: below.")
                        .red_from(0.02, 0.1),
                    Panel::stat("SYNs again, for each connect", "percentunit", of_all(&syn(), &asked()),
                        "A SYN that nobody answered costs whoever connects a second, the next one three.")
                        .red_from(0.01, 0.05),
                    Panel::stat("Resets received", "cps", format!("sum({}) or vector(0)", resets("receive")),
                        "Connections that the other side tore down, or refused."),
                    Panel::stat("Round trip, p99", "s", quantile("0.99", "system_network_tcp_rtt_seconds", "", ""),
                        "Smoothed round-trip times, sampled about once a second and connection; buckets are powers of two."),
                    Panel::stat("Alerts that fire", "short",
                        "count(ALERTS{alertstate=\"firing\", component=\"tcp\", cluster=~\"$cluster\"}) or vector(0)",
                        "Of the rules for TCP, where Prometheus has them loaded.")
                        .red_from(1.0, 1.0),
                ],
            },
            Row {
                title: "Where?",
                panels: vec![
                    Panel {
                        title: "Workloads by what they send again",
                        description: "The ten that send most segments again. A high share of few segments is noise; much of much is loss. Empty node: pods, wherever they run.",
                        shape: Shape::Table(&["again [cps]", "share [percentunit]", "sent [cps]", "SYNs again [cps]", "connects failed [cps]"]),
                        unit: "short",
                        queries: vec![
                            Query::new(worst(10, &again()), ""),
                            Query::new(of_each(&again(), &sent()), ""),
                            Query::new(super::filter::by_workload(&sent()), ""),
                            Query::new(super::filter::by_workload(&syn()), ""),
                            Query::new(super::filter::by_workload(&failed()), ""),
                        ],
                        thresholds: None,
                        width: 24,
                    },
                    Panel::lines("Share sent again, by workload", "percentunit",
                        vec![Query::new(format!("topk(8, {})", of_each(&again(), &sent())), "{{k8s_namespace_name}} {{workload}} {{node}}")],
                        "One line above the others: that workload's peers or limits. All lines of one node: its link. All lines: the network.")
                        .red_from(0.02, 0.1),
                    Panel::lines("Share sent again, by node", "percentunit",
                        vec![Query::new(share(&format!("sum by (instance) ({})", again()), &format!("sum by (instance) ({})", sent())), "{{instance}}")],
                        "A node that stands out has a bad link, driver or neighbour."),
                ],
            },
            Row {
                title: "How?",
                panels: vec![
                    Panel::stack("Sent again, by cause", "cps",
                        vec![Query::new(format!("sum by (network_tcp_retransmit_type) ({})", rate("system_network_tcp_retransmits_total", "")), "{{network_tcp_retransmit_type}}")],
                        "fast: a gap, while later segments arrived. timeout, slow_start: nothing came back. tail_loss_probe: the end of a burst, or its ACK. syn, syn_ack: handshakes."),
                    Panel::stack("Connects, by outcome", "cps",
                        vec![
                            Query::new(format!("sum by (error_type) ({})", failed()), "{{error_type}}"),
                            Query::new(format!("sum({})", rate("system_network_tcp_connections_total", "network_tcp_handshake_role=\"client\", error_type=\"\"")), "established"),
                        ],
                        "ECONNREFUSED: nobody listens, an answer comes. ETIMEDOUT: no answer. EHOSTUNREACH: no way. EADDRNOTAVAIL: out of local ports."),
                    Panel::lines("SYNs sent again, by workload", "cps",
                        vec![Query::new(worst(8, &syn()), "{{k8s_namespace_name}} {{workload}} {{node}}")],
                        "Nobody answers: a policy that drops, a peer that is gone, a listener whose queue is full."),
                    Panel::lines("Sent again although it had arrived", "cps",
                        vec![
                            Query::new(format!("sum({})", again()), "sent again"),
                            Query::new(format!("sum({}) or vector(0)", rate("system_network_tcp_retransmits_spurious_total", "")), "of them needlessly, at least"),
                        ],
                        "The peer said it got them twice, or the kernel took its recovery back: delay and reordering, not loss."),
                    Panel::lines("Round trips", "s",
                        vec![
                            Query::new(quantile("0.5", "system_network_tcp_rtt_seconds", "", ""), "p50"),
                            Query::new(quantile("0.9", "system_network_tcp_rtt_seconds", "", ""), "p90"),
                            Query::new(quantile("0.99", "system_network_tcp_rtt_seconds", "", ""), "p99"),
                        ],
                        "Smoothed round-trip times of all connections. Buckets are powers of two: steps of a factor of two are no change."),
                    Panel::lines("Handshakes of clients", "s",
                        vec![
                            Query::new(quantile("0.5", "system_network_tcp_handshake_duration_seconds", "network_tcp_handshake_role=\"client\"", ""), "p50"),
                            Query::new(quantile("0.99", "system_network_tcp_handshake_duration_seconds", "network_tcp_handshake_role=\"client\"", ""), "p99"),
                        ],
                        "From the first SYN to the established connection. A p99 at a second or three is a SYN sent again."),
                    Panel::lines("Resets", "cps",
                        vec![
                            Query::new(format!("sum({})", resets("transmit")), "sent").only("a reset was sent"),
                            Query::new(format!("sum({})", resets("receive")), "received").only("a reset was received"),
                        ],
                        "Sent: closed with data unread, or nobody listened. Received: the other side did so."),
                    Panel::lines("Segments", "cps",
                        vec![Query::new(format!("sum by (network_io_direction, network_type) ({})", rate("system_network_tcp_segments_total", "")), "{{network_io_direction}} {{network_type}}")],
                        "What the shares are of."),
                ],
            },
        ],
    }
}
