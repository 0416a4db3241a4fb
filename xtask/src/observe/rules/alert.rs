//! What wakes or tells somebody, with what to do about it.

use crate::observe::query::{AGENT, AGENTS, growth};

/// One alert. Texts are Prometheus' templates.
pub(super) struct Alert {
    pub(super) name: &'static str,
    /// For how long it has to hold.
    pub(super) hold: &'static str,
    /// `critical` wakes somebody, `warning` is for working hours, `info` explains other alerts.
    pub(super) severity: &'static str,
    /// `tcp`, `dns`, `syscalls`, or `probe`: the agent itself.
    pub(super) component: &'static str,
    pub(super) query: String,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    pub(super) runbook: &'static str,
}

/// How a workload is told in a summary.
macro_rules! whose {
    () => {
        "{{ with $labels.k8s_namespace_name }}{{ . }}/{{ end }}{{ $labels.workload }}{{ with $labels.node }} on {{ . }}{{ end }}"
    };
}

/// Without a floor, the one packet that a quiet workload lost in the night is a third of all it sent: so many in five minutes.
fn above(ratio: &str, threshold: &str, rate: &str, in_five_minutes: &str) -> String {
    format!("{ratio} > {threshold} and {rate} * 300 >= {in_five_minutes}")
}

pub(super) fn tcp() -> Vec<Alert> {
    let retransmits = |share, floor| {
        above(
            "workload:tcp_retransmits:ratio_rate5m",
            share,
            "workload:tcp_segments_retransmitted:rate5m",
            floor,
        )
    };
    vec![
        Alert {
            name: "ProbeTcpRetransmitsHigh",
            hold: "10m",
            severity: "warning",
            component: "tcp",
            query: retransmits("0.02", "50"),
            summary: concat!(whose!(), " sends {{ $value | humanizePercentage }} of its TCP segments again"),
            description: "Over 2 % for ten minutes, and at least 50 segments in five. Within a data centre 0.1 % is ordinary, over the Internet 1 %.",
            runbook: "1. Dashboard \"Network health\", by cause. Mostly fast: packets are lost or reordered on the way while others arrive. Mostly timeout: \
                nothing arrives for a while. Mostly tail_loss_probe: the end of a request or an answer is lost, or its ACK.\n\
                2. One workload only, on all nodes: its peers, or its own limits (a full receive queue, a NIC's rate limit of the instance type). \
                All workloads of one node: that node's link, driver or `nstat -az | grep -i drop`. All nodes: the network between them.\n\
                3. To whom: `probe tcp --kind retransmit --duration 60s` on the node (with `--pod NAMESPACE/NAME`) ends with shares by peer and says how they read.\n\
                4. Retransmits that the peer had already (`system_network_tcp_retransmits_spurious_total`) are no loss but delay or reordering.",
        },
        Alert {
            name: "ProbeTcpRetransmitsVeryHigh",
            hold: "5m",
            severity: "critical",
            component: "tcp",
            query: retransmits("0.1", "200"),
            summary: concat!(whose!(), " sends {{ $value | humanizePercentage }} of its TCP segments again"),
            description: "Over 10 % for five minutes, and at least 200 segments in five: throughput has collapsed, and requests wait for hundreds of milliseconds.",
            runbook: "As ProbeTcpRetransmitsHigh. At this share first ask what changed: a link that flaps, a wrong MTU (large packets vanish, small ones \
                pass: `ping -M do -s 1472 PEER`), a full conntrack table (`dmesg | grep conntrack`), a policer. Move the workload away from the node if only that one has it.",
        },
        Alert {
            name: "ProbeTcpSynRetransmits",
            hold: "5m",
            severity: "warning",
            component: "tcp",
            query: above(
                "workload:tcp_syn_retransmits:ratio_rate5m",
                "0.05",
                "workload:tcp_syn_retransmits:rate5m",
                "10",
            ),
            summary: concat!(
                whose!(),
                " has to ask again for connections: {{ $value | humanize }} SYNs again for each"
            ),
            description: "SYNs were sent again for more than one in twenty connections, at least 10 in five minutes. Each costs whoever connects a second, the next three.",
            runbook: "Nobody answers a SYN where a firewall or network policy drops it, where the address has nobody (a pod that is gone, a stale \
                endpoint), or where the listener's queue is full.\n\
                1. `probe tcp --kind retransmit,failed` on the node names the peers.\n\
                2. Peer is a pod: does it run, is it ready, does a NetworkPolicy allow the port?\n\
                3. On the peer's node `nstat -az TcpExtListenDrops TcpExtListenOverflows`: if they grow, the server accepts too slowly; raise its backlog and net.core.somaxconn, or add replicas.\n\
                4. `syn_ack` retransmits on the peer's side instead mean that the way back is broken.",
        },
        Alert {
            name: "ProbeTcpConnectsFailing",
            hold: "5m",
            severity: "warning",
            component: "tcp",
            query: above(
                "workload:tcp_connects_failed:ratio_rate5m",
                "0.1",
                "workload:tcp_connects_failed:rate5m",
                "20",
            ),
            summary: concat!(whose!(), ": {{ $value | humanizePercentage }} of its connects fail"),
            description: "More than one in ten connections asked for failed, at least 20 in five minutes.",
            runbook: "The errno says which way (`sum by (error_type) (rate(system_network_tcp_connections_total{error_type!=\"\"}[5m]))`, dashboard \"Network health\"):\n\
                ECONNREFUSED: the host answers and nobody listens, or a firewall rejects: is the process up, is the port right?\n\
                ETIMEDOUT: nobody answers: see ProbeTcpSynRetransmits.\n\
                EHOSTUNREACH, ENETUNREACH: routing, or the address has no neighbour.\n\
                EADDRNOTAVAIL: out of local ports: connections are not kept and used again.\n\
                `probe tcp --kind failed` names peers and processes.",
        },
    ]
}

pub(super) fn dns() -> Vec<Alert> {
    let unanswered = |share, floor| {
        above(
            "workload:dns_lookups_unanswered:ratio_rate5m",
            share,
            "workload:dns_lookups_unanswered:rate5m",
            floor,
        )
    };
    vec![
        Alert {
            name: "ProbeDnsUnanswered",
            hold: "5m",
            severity: "warning",
            component: "dns",
            query: unanswered("0.01", "5"),
            summary: concat!(
                whose!(),
                ": {{ $value | humanizePercentage }} of its DNS lookups get no answer"
            ),
            description: "More than 1 % of lookups got no response within 5 s, at least 5 in five minutes. Each is a resolver's timeout for whoever asked.",
            runbook: "1. Dashboard \"DNS\", unanswered by server: one server of several is down or overloaded; or all of them, then the way there.\n\
                2. Only A or only AAAA: see ProbeDnsLostTwin.\n\
                3. Only on some nodes: node-local cache, conntrack table, kube-proxy rules of those nodes.\n\
                4. CoreDNS: its CPU throttling, its memory, `coredns_forward_requests_total` for the upstream that does not answer.\n\
                5. `probe dns` on the node shows name, server and process for each.",
        },
        Alert {
            name: "ProbeDnsUnansweredMostly",
            hold: "2m",
            severity: "critical",
            component: "dns",
            query: unanswered("0.5", "10"),
            summary: concat!(
                whose!(),
                ": {{ $value | humanizePercentage }} of its DNS lookups get no answer"
            ),
            description: "More than half of its lookups got no response, at least 10 in five minutes: for this workload DNS is down.",
            runbook: "As ProbeDnsUnanswered. If many workloads have it at once, it is the server or the way to it: query the server from the node (`dig @SERVER name`), then \
                from a pod. If only one, look for a NetworkPolicy that forgot port 53 over UDP and TCP, or a resolv.conf that names a server that is gone.",
        },
        Alert {
            name: "ProbeDnsServfail",
            hold: "10m",
            severity: "warning",
            component: "dns",
            query: above(
                "workload:dns_lookups_servfail:ratio_rate5m",
                "0.05",
                "workload:dns_lookups_servfail:rate5m",
                "20",
            ),
            summary: concat!(
                whose!(),
                ": {{ $value | humanizePercentage }} of its DNS answers are SERVFAIL or REFUSED"
            ),
            description: "The server answers, but could not or would not find out: more than 5 % of the answers, at least 20 in five minutes.",
            runbook: "SERVFAIL: the server's own upstream is silent, or DNSSEC validation fails. REFUSED: it does not serve this client or zone. \
                `probe dns --rcode SERVFAIL,REFUSED` names what is asked; one zone only is that zone's trouble, all names the upstream's.",
        },
        Alert {
            name: "ProbeDnsSlow",
            hold: "10m",
            severity: "warning",
            component: "dns",
            query: above(
                "workload:dns_lookup_duration_seconds:p99_5m",
                "0.5",
                "workload:dns_lookups_answered:rate5m",
                "100",
            ),
            summary: concat!(
                whose!(),
                ": one DNS lookup in a hundred takes {{ $value | humanizeDuration }} or longer"
            ),
            description: "The 99th percentile of the answers' times is over half a second (buckets are powers of two), with at least 100 answers in five minutes.",
            runbook: "Dashboard \"DNS\", latency by server. All names slow: the server is overloaded, or far away. Some: answers that have to be fetched; \
                a cache near the clients helps (NodeLocal DNSCache, unbound). Many NXDOMAIN before each answer (`dns_lookup_search_misses_total`): \
                search lists; ask for names with a dot at the end, or lower ndots. `probe dns --slower-than 500ms` names them.",
        },
        Alert {
            name: "ProbeDnsLostTwin",
            hold: "0s",
            severity: "warning",
            component: "dns",
            query: "workload:dns_lost_twins:increase10m >= 3".to_owned(),
            summary: concat!(
                whose!(),
                ": {{ $value | humanize }} lookups waited 5 s for the other of A and AAAA at {{ $labels.server_address }}"
            ),
            description: "getaddrinfo asks for A and AAAA at once and waits for both; one was answered and the other was not, three times or more in ten minutes: the \
                well-known delay of five seconds.",
            runbook: "1. `probe dns -o json | jq 'select(.\"dns.lost_twin\")'` on the node: is it always AAAA (a server or firewall that drops that type), or now one, now \
                the other (a race)?\n\
                2. A race: both packets leave one socket at the same moment, and conntrack drops one of them when DNAT to the service's address is confirmed twice: \
                `conntrack -S` shows insert_failed growing. Remedies: NodeLocal DNSCache, `options use-vc` or `single-request-reopen` in resolv.conf (dnsConfig of the pod), a kernel from 5.0 on.\n\
                3. Always AAAA: have the server answer NOERROR without data instead of silence.",
        },
    ]
}

pub(super) fn syscalls() -> Vec<Alert> {
    vec![Alert {
        name: "ProbeSyscallStuck",
        hold: "5m",
        severity: "warning",
        component: "syscalls",
        query: "workload:syscalls_in_flight:sum > 0".to_owned(),
        summary: concat!(whose!(), ": {{ $value }} calls of {{ $labels.syscall_name }} do not return"),
        description: "At every look for five minutes at least one call that should work, not wait, had not returned for longer than the threshold (100 ms).",
        runbook: "1. `probe syscalls --syscall NAME` on the node shows what is in flight with process, path, wait channel and kernel stack.\n\
            2. openat, stat, read of a path on NFS, CIFS, FUSE: that server is gone. fsync, write, unlink: the disk (`iostat -x 1`, `dmesg`). mmap, munmap, clone: \
            memory pressure or a lock on the address space (`cat /proc/PID/stack`, /proc/pressure/memory).\n\
            3. A process in state D for minutes is not killed by signals: free the resource that it waits for.\n\
            4. Many short ones instead of one that hangs look the same here: see the p99 of that call on the dashboard \"Syscalls\".",
    }]
}

pub(super) fn agent() -> Vec<Alert> {
    vec![
        Alert {
            name: "ProbeDown",
            hold: "5m",
            severity: "warning",
            component: "probe",
            query: format!("up == 0 and on ({AGENT}) last_over_time({AGENTS}[1h])"),
            summary: "probe on {{ $labels.instance }} does not answer",
            description: "Prometheus has read this agent's page within the last hour and cannot now: the host is not observed, and its other alerts are silent.",
            runbook: "Kubernetes: `kubectl get pods -o wide` for that node, then `kubectl logs --previous`: exit code 3 is the kernel, 4 a missing privilege, OOMKilled the memory \
                limit (docs/memory.md). systemd: `journalctl -u probe`. It runs: does a NetworkPolicy or a firewall allow Prometheus to its port, does it listen on an address other than loopback?",
        },
        Alert {
            name: "ProbeAbsent",
            hold: "10m",
            severity: "critical",
            component: "probe",
            query: format!("absent({AGENTS})"),
            summary: "no probe anywhere reports",
            description: "Not one agent's page is read: none of the alerts about hosts can fire.",
            runbook: "Is there a PodMonitor or a scrape job for probe, and does Prometheus select it (labels, namespaces)? Prometheus' page \"Targets\" says what it tries. \
                Over a collector: does its Prometheus remote write work, and does it write target_info?",
        },
        Alert {
            name: "ProbeMissingOnNode",
            hold: "15m",
            severity: "warning",
            component: "probe",
            query: format!(
                "group by (cluster, node) (kube_node_info) unless on (cluster, node) group by (cluster, node) \
                 (label_replace({AGENTS}, \"node\", \"$1\", \"k8s_node_name\", \"(.+)\"))"
            ),
            summary: "node {{ $labels.node }} has no probe",
            description: "kube-state-metrics knows this node, and no agent reports from it. Takes K8S_NODE_NAME on the agent; without kube-state-metrics this alert never fires.",
            runbook: "`kubectl get pods -o wide --field-selector spec.nodeName=NODE`: no pod: taints that the DaemonSet does not tolerate, or a node selector. Pending: requests do not fit. \
                CrashLoopBackOff: `kubectl logs`, and `probe doctor` in the pod says what the kernel lacks. Virtual nodes (Fargate, virtual kubelet) cannot have it: leave them out by a label here.",
        },
        Alert {
            name: "ProbeRestarting",
            hold: "0s",
            severity: "warning",
            component: "probe",
            query: format!(
                "count by ({AGENT}) (count by ({AGENT}, service_instance_id) (count_over_time({AGENTS}[1h]))) > 3"
            ),
            summary: "probe on {{ $labels.instance }} was started {{ $value }} times in an hour",
            description: "Each start has an instance id of its own; more than three of them were seen in the last hour.",
            runbook: "`kubectl describe pod` (OOMKilled, a liveness probe that fails) or `journalctl -u probe`. OOMKilled: raise the limit or lower what sets the memory (docs/memory.md). \
                Liveness fails: the agent does not keep up, see ProbeLosingEvents and its CPU limit; it should have none.",
        },
        Alert {
            name: "ProbeLosingEvents",
            hold: "5m",
            severity: "warning",
            component: "probe",
            query: "instance:probe_events_lost:increase15m >= 10".to_owned(),
            summary: "probe on {{ $labels.instance }} lost {{ $value | humanize }} events of {{ $labels.signal }} at {{ $labels.where }}",
            description: "Figures of this signal on this host are too low by about so many in the last quarter of an hour.",
            runbook: "The place says why, and the agent's log names the remedy. A ring: bursts faster than they are read: `--ring-kib` doubled, and no CPU limit on the agent. A map that is \
                full: see ProbeMapFull. `programs`: runs that the kernel skipped. Once after the start of something large is no reason to act.",
        },
        Alert {
            name: "ProbeMapFull",
            hold: "5m",
            severity: "warning",
            component: "probe",
            query: format!(
                "sum by ({AGENT}, map) ({}) >= 10",
                growth("probe_map_insert_failures_total", "15m")
            ),
            summary: "probe on {{ $labels.instance }}: map {{ $labels.map }} is full, {{ $value | humanize }} entries found no room",
            description: "What found no room in the last quarter of an hour is not accounted for on its own, or not at all.",
            runbook: "The host has more of something than the defaults provide for. tcp.sockets: `--tcp-sockets`; tcp.totals: `--max-cgroups`; dns.pending: `--dns-pending`; syscalls.blocks: `--syscall-blocks`; \
                syscalls.sleepers: `--syscall-threads`. Each costs memory: docs/memory.md says how much.",
        },
        Alert {
            name: "ProbeSeriesFolded",
            hold: "15m",
            severity: "info",
            component: "probe",
            query: "instance:probe_series_folded:increase15m > 0".to_owned(),
            summary: "probe on {{ $labels.instance }} has more series of {{ $labels.metric }} than it keeps",
            description: "{{ $value | humanize }} values of the last quarter of an hour went into an overflow series: totals are right, their split is not.",
            runbook: "Too many owners, servers, names or error codes on one host. With `--dns-names full` take `suffix`, or a larger `--dns-names-max`. Series with `otel_metric_overflow=\"true\"` hold what was folded.",
        },
        Alert {
            name: "ProbeExportFailing",
            hold: "10m",
            severity: "warning",
            component: "probe",
            query: "instance:probe_export_failed:increase15m > 0".to_owned(),
            summary: "probe on {{ $labels.instance }}: {{ $labels.sink }} could not deliver {{ $value | humanize }} items ({{ $labels.error_type }})",
            description: "For ten minutes the collector has not taken all. Cumulative totals lose nothing by that; events do, once they find no room.",
            runbook: "By error.type: `timeout` or `unavailable`: is the collector up, and reachable from the host's network? `resource_exhausted`: its memory_limiter refuses; give it more memory or more replicas. \
                `unauthenticated`, `permission_denied`: token or certificate. `spool_full`: the collector has been away for too long for `--spool-mib`. `spool_damaged`: a crash or the disk.",
        },
        Alert {
            name: "ProbeSpoolWaiting",
            hold: "30m",
            severity: "info",
            component: "probe",
            query: format!("sum by ({AGENT}) (probe_spool_events) > 0"),
            summary: "probe on {{ $labels.instance }}: {{ $value }} events have been waiting on disk for half an hour",
            description: "The collector does not take events; beyond `--spool-mib` the oldest will be dropped.",
            runbook: "See ProbeExportFailing. When the collector answers again they are sent by themselves, the oldest first.",
        },
        Alert {
            name: "ProbeKubeletFailing",
            hold: "15m",
            severity: "warning",
            component: "probe",
            query: format!(
                "sum by ({AGENT}) (increase(probe_kubelet_requests_total{{error_type!=\"\"}}[15m])) > 0 unless \
                 sum by ({AGENT}) (increase(probe_kubelet_requests_total{{error_type=\"\"}}[15m])) > 0"
            ),
            summary: "probe on {{ $labels.instance }} gets no names of pods from its kubelet",
            description: "All requests of a quarter of an hour failed: new containers are told by id and pod uid only, and grouped as such here.",
            runbook: "`sum by (error_type) (increase(probe_kubelet_requests_total[15m]))`. 403: the service account lacks `get` of nodes/proxy. Certificate: the kubelet signs its own; `--kubelet-ca`, or \
                `--kubelet-insecure-tls`. Timeout: NODE_IP, or a policy that forbids port 10250. `--kubelet off` where the collector's k8sattributes does it.",
        },
    ]
}
