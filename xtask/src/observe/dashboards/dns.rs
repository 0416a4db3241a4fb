//! DNS: slow or silent, for whom, at which server.

use super::{
    Dashboard, Row,
    filter::{by_workload, quantile, rate, worst},
    panel::{Panel, Query, Shape},
};

/// Seen from who asks.
const CLIENT: &str = "dns_role=\"\"";

pub(super) fn dashboard() -> Dashboard {
    let answered = |more: &str| rate("dns_lookup_duration_seconds_count", &format!("{CLIENT}{more}"));
    let unanswered = || rate("dns_lookup_unanswered_total", CLIENT);
    let failed = || answered(", dns_response_code=~\"SERVFAIL|REFUSED\"");
    let twins = || rate("dns_lookup_lost_twin_total", "");
    let misses = || rate("dns_lookup_search_misses_total", "");
    let zero = |query: &str| format!("(sum({query}) or vector(0))");
    let all = format!("({} + {})", zero(&answered("")), zero(&unanswered()));
    let each = |query: &str| by_workload(query);
    let duration = "dns_lookup_duration_seconds";
    Dashboard {
        uid: "probe-dns",
        file: "deploy/grafana/dns.json",
        title: "probe / DNS",
        description: "Whether lookups are slow or silent, for whom, and at which server.",
        of_workloads: true,
        rows: vec![
            Row {
                title: "Is something wrong?",
                panels: vec![
                    Panel::stat("Unanswered", "percentunit", format!("{} / ({all} > 0)", zero(&unanswered())),
                        "Share of the lookups without a response within 5 s. Each is a resolver's timeout for whoever asked.")
                        .red_from(0.001, 0.01),
                    Panel::stat("SERVFAIL and REFUSED", "percentunit", format!("{} / (sum({}) > 0)", zero(&failed()), answered("")),
                        "Share of the answers that say that the server could not, or would not.")
                        .red_from(0.01, 0.05),
                    Panel::stat("Lost twins", "short", super::filter::in_sight("dns_lookup_lost_twin_total", super::filter::OWNERS),
                        "In the time shown: lookups for A or AAAA that got no answer while the other did; getaddrinfo waits 5 s for it. There should be none.")
                        .red_from(1.0, 10.0),
                    Panel::stat("Answers, p99", "s", quantile("0.99", duration, CLIENT, ""),
                        "Time within which 99 of 100 answers came; buckets are powers of two.")
                        .red_from(0.1, 1.0),
                    Panel::stat("Lookups", "cps", all.clone(), "Lookups that ended, answered or not."),
                    Panel::stat("Of them for a search list", "percentunit", format!("{} / ({all} > 0)", zero(&misses())),
                        "Names that do not exist, asked for because of ndots before the one that does: wasted.")
                        .red_from(0.5, 0.8),
                ],
            },
            Row {
                title: "Where?",
                panels: vec![
                    Panel {
                        title: "Workloads by what they get no answer to",
                        description: "The ten with most lookups unanswered; how many they get answered, how late, and how often one of A and AAAA is lost.",
                        shape: Shape::Table(&["unanswered [cps]", "answered [cps]", "p99 [s]", "lost twins [cps]"]),
                        unit: "short",
                        queries: vec![
                            Query::new(worst(10, &unanswered()), ""),
                            Query::new(each(&answered("")), ""),
                            Query::new(
                                format!("histogram_quantile(0.99, {})", super::filter::by_workload_and(&rate("dns_lookup_duration_seconds_bucket", CLIENT), &["le"])),
                                "",
                            ),
                            Query::new(each(&twins()), ""),
                        ],
                        thresholds: None,
                        width: 24,
                    },
                    Panel::lines("Unanswered, by server", "cps",
                        vec![Query::new(format!("topk(8, sum by (server_address, network_transport) ({}))", unanswered()), "{{server_address}} {{network_transport}}")],
                        "One server of several: it is down or overloaded. All: the way there."),
                    Panel::lines("p99 of answers, by server", "s",
                        vec![Query::new(format!("topk(8, {})", quantile("0.99", duration, CLIENT, "server_address")), "{{server_address}}")],
                        "A server that is slower than the others is overloaded, or far away."),
                ],
            },
            Row {
                title: "How?",
                panels: vec![
                    Panel::stack("Answers, by code", "cps",
                        vec![
                            Query::new(format!("sum by (dns_response_code) ({})", answered("")), "{{dns_response_code}}"),
                            Query::new(format!("sum({})", unanswered()), "unanswered"),
                        ],
                        "NXDOMAIN is an answer; much of it is a search list (ndots)."),
                    Panel {
                        shape: Shape::Heatmap,
                        ..Panel::lines("Times of answers", "s",
                            vec![Query::new(format!("sum by (le) (increase(dns_lookup_duration_seconds_bucket{{{}, {CLIENT}}}[$__rate_interval]))", super::filter::OWNERS), "{{le}}")],
                            "Two bands are two populations: what a cache has, and what it has to fetch.")
                    },
                    Panel::lines("Times of answers, quantiles", "s",
                        vec![
                            Query::new(quantile("0.5", duration, CLIENT, ""), "p50"),
                            Query::new(quantile("0.9", duration, CLIENT, ""), "p90"),
                            Query::new(quantile("0.99", duration, CLIENT, ""), "p99"),
                        ],
                        "From the packet that completes the query to the one that completes the response."),
                    Panel::lines("Unanswered, by type", "cps",
                        vec![Query::new(format!("sum by (dns_question_type) ({})", unanswered()), "{{dns_question_type}}")],
                        "Only AAAA: somebody drops that type."),
                    Panel::lines("Lost twins, by server", "cps",
                        vec![Query::new(format!("sum by (server_address) ({})", twins()), "{{server_address}}")],
                        "The five-second delay: a race in conntrack, or a server or firewall that drops AAAA."),
                    Panel::lines("Wasted on search lists, by workload", "cps",
                        vec![Query::new(worst(8, &misses()), "{{k8s_namespace_name}} {{workload}} {{node}}").only("a resolver has a search list")],
                        "A dot at the end of names, or a lower ndots, saves these."),
                    Panel::lines("Lookups, by name", "cps",
                        vec![Query::new(format!("topk(10, sum by (dns_question_name) ({}))", answered(", dns_question_name!=\"\"")), "{{dns_question_name}}").only("--dns-names suffix")],
                        "Only with `--dns-names suffix` (or full). `_other` are names beyond `--dns-names-max`.")
                        .wide(),
                ],
            },
        ],
    }
}
