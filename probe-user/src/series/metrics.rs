//! Every metric that probe produces: name, kind, unit, meaning, attributes. Declared here and nowhere else;
//! sinks, limits and documentation iterate [`ALL`] and [`OWN`].

use crate::event::key;

/// What a metric's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Only ever rises; exported as a monotonic sum.
    Counter,
    /// A level.
    Gauge,
    /// A level that may be added up over processes; exported as a non-monotonic sum.
    UpDownCounter,
    /// Durations in seconds by bucket.
    Histogram,
}

impl Kind {
    /// The word that documentation uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::UpDownCounter => "updowncounter",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric's definition.
#[derive(Debug, PartialEq, Eq)]
pub struct MetricDef {
    /// Name as exported over OTLP.
    pub name: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// UCUM unit.
    pub unit: &'static str,
    /// One sentence, for users.
    pub description: &'static str,
    /// Attributes that its series may carry.
    pub attributes: &'static [&'static str],
    /// Position in its registry.
    pub(super) index: usize,
}

/// A metric that is counted up with [`super::Store::add`].
#[derive(Clone, Copy, Debug)]
pub struct Counter(pub(super) &'static MetricDef);

/// A metric that is set with [`super::Store::set`].
#[derive(Clone, Copy, Debug)]
pub struct Gauge(pub(super) &'static MetricDef);

/// A metric that durations are recorded in: [`super::Store::record`] and its siblings.
#[derive(Clone, Copy, Debug)]
pub struct Timer(pub(super) &'static MetricDef);

macro_rules! handle {
    ($handle:ident) => {
        impl $handle {
            /// The metric.
            #[must_use]
            pub const fn def(self) -> &'static MetricDef {
                self.0
            }
        }
    };
}
handle!(Counter);
handle!(Gauge);
handle!(Timer);

/// Declares metrics and the list of them. In a `store` registry each constant is a handle of the metric's
/// kind, so that a counter cannot be recorded into; in an `sdk` registry it is the definition.
macro_rules! registry {
    (@kind Counter) => { Kind::Counter };
    (@kind Gauge) => { Kind::Gauge };
    (@kind UpDown) => { Kind::UpDownCounter };
    (@kind Timer) => { Kind::Histogram };
    (@const store $const:ident $handle:ident $description:literal) => {
        #[doc = $description]
        pub const $const: $handle = $handle(&defs::$const);
    };
    (@const sdk $const:ident $handle:ident $description:literal) => {
        #[doc = $description]
        pub const $const: &MetricDef = &own_defs::$const;
    };
    (
        $(#[$doc:meta])* $mode:ident $registry:ident in $module:ident;
        $($const:ident: $handle:ident = $name:literal, $unit:literal, $description:literal, [$($attribute:expr),* $(,)?];)+
    ) => {
        mod $module {
            use super::{Kind, MetricDef, key};

            #[expect(non_camel_case_types, reason = "named like the constants")]
            enum Position { $($const),+ }

            $(
                pub(super) static $const: MetricDef = MetricDef {
                    name: $name,
                    kind: registry!(@kind $handle),
                    unit: $unit,
                    description: $description,
                    attributes: &[$($attribute),*],
                    index: Position::$const as usize,
                };
            )+
        }

        $(registry!(@const $mode $const $handle $description);)+

        $(#[$doc])*
        pub static $registry: &[&MetricDef] = &[$(&$module::$const),+];
    };
}

registry! {
    /// Metrics of the observed workloads, kept in [`super::Store`].
    store ALL in defs;

    TCP_RETRANSMITS: Counter = "system.network.tcp.retransmits", "{segment}",
        "TCP segments sent again, by what made the kernel send them again.",
        [key::TCP_RETRANSMIT_TYPE, key::NETWORK_TYPE];
    TCP_SPURIOUS: Counter = "system.network.tcp.retransmits.spurious", "{segment}",
        "TCP segments sent again although the first had arrived: the peer said that it got them twice (D-SACK, RFC 2883), or the kernel took the recovery back in which they were sent (undo by timestamps, RFC 3522, or F-RTO, RFC 5682; Linux 5.19 on). Of each connection the greater of the two, since most peers report the latter too: at least so many.",
        [key::NETWORK_TYPE];
    TCP_SEGMENTS: Counter = "system.network.tcp.segments", "{segment}",
        "TCP segments of connections, those sent again included: what retransmits are a share of. Without SYN-ACKs, which are sent before there is a connection, and what is sent once it has closed (resets, ACKs in TIME_WAIT).",
        [key::NETWORK_IO_DIRECTION, key::NETWORK_TYPE];
    TCP_RTT: Timer = "system.network.tcp.rtt", "s",
        "Smoothed round-trip time of TCP connections (RFC 6298), sampled about once a second while something is acknowledged.",
        [key::NETWORK_TYPE];
    TCP_RESETS: Counter = "system.network.tcp.resets", "{reset}",
        "TCP resets sent and received.",
        [key::NETWORK_IO_DIRECTION];
    TCP_CONNECTIONS: Counter = "system.network.tcp.connections", "{connection}",
        "TCP handshakes that ended: connections established, and attempts that failed with `error.type`.",
        [key::TCP_HANDSHAKE_ROLE, key::ERROR_TYPE];
    TCP_HANDSHAKE_DURATION: Timer = "system.network.tcp.handshake.duration", "s",
        "Time from the first SYN to the established connection.",
        [key::TCP_HANDSHAKE_ROLE];
    DNS_LOOKUP_DURATION: Timer = "dns.lookup.duration", "s",
        "Time from the packet that completes a DNS query to the packet that completes its response. With `dns.question.name` only where `probe run --dns-names` asks for it: whole, or the part that somebody registered; `_other` are the names beyond `--dns-names-max`.",
        [key::DNS_QUESTION_NAME, key::DNS_QUESTION_TYPE, key::DNS_RESPONSE_CODE, key::ERROR_TYPE, key::SERVER_ADDRESS, key::DNS_ROLE];
    DNS_LOOKUP_UNANSWERED: Counter = "dns.lookup.unanswered", "{lookup}",
        "DNS lookups that got no response within the timeout. `dns.question.name` as in `dns.lookup.duration`.",
        [key::DNS_QUESTION_NAME, key::DNS_QUESTION_TYPE, key::SERVER_ADDRESS, key::NETWORK_TRANSPORT, key::DNS_ROLE];
    DNS_LOOKUP_LOST_TWIN: Counter = "dns.lookup.lost_twin", "{lookup}",
        "DNS lookups for A or AAAA that got no response, while the other, asked beside it, got one.",
        [key::SERVER_ADDRESS];
    DNS_LOOKUP_SEARCH_MISSES: Counter = "dns.lookup.search_misses", "{lookup}",
        "DNS lookups of names that do not exist, made for the sake of a search list before the name was found.",
        [key::SERVER_ADDRESS];
    SYSCALL_DURATION: Timer = "process.syscall.duration", "s",
        "Time from entry to exit of system calls; its count is the number of calls, unless only some of them are measured (`--syscall-latency-sample`): then each that is stands for those around it.",
        [key::SYSCALL_NAME, key::SYSCALL_CLASS];
    SYSCALL_CALLS: Counter = "process.syscall.calls", "{call}",
        "System calls that returned. Only where not every call is measured: else the count of `process.syscall.duration` says it.",
        [key::SYSCALL_NAME, key::SYSCALL_CLASS];
    SYSCALL_IN_FLIGHT: Gauge = "process.syscall.in_flight", "{call}",
        "System calls of the work class that have not returned for longer than the threshold.",
        [key::SYSCALL_NAME];
    SYSCALL_ERRORS: Counter = "process.syscall.errors", "{error}",
        "System calls that failed, by errno name.",
        [key::SYSCALL_NAME, key::ERROR_TYPE];
}

registry! {
    /// The agent's own metrics, recorded with the OpenTelemetry SDK (see [`crate::telemetry`]).
    sdk OWN in own_defs;

    PROBE_EVENTS: Counter = "probe.events", "{event}",
        "Records decoded, by signal.",
        [key::SIGNAL];
    PROBE_EVENTS_LOST: Counter = "probe.events.lost", "{event}",
        "Records, calls or events lost, by signal and by the place where they got lost.",
        [key::SIGNAL, key::WHERE];
    PROBE_PACKETS_IGNORED: Counter = "probe.packets.ignored", "{packet}",
        "Packets that were looked at and left alone: `dns.malformed` hold no single well-formed question, `dns.orphans` answer no waiting one.",
        [key::SIGNAL, key::WHERE];
    PROBE_MAP_ENTRIES: Gauge = "probe.map.entries", "{entry}",
        "Entries in a BPF map.",
        [key::MAP];
    PROBE_MAP_LIMIT: Gauge = "probe.map.limit", "{entry}",
        "Entries that a BPF map can hold.",
        [key::MAP];
    PROBE_MAP_INSERT_FAILURES: Counter = "probe.map.insert_failures", "{entry}",
        "Entries that a BPF map did not take, because it was full.",
        [key::MAP];
    PROBE_PROGRAM_RUN_TIME: Counter = "probe.program.run.time", "s",
        "Time that a BPF program of probe's ran, over all CPUs, since it was loaded. Only with `--program-stats`.",
        [key::PROGRAM];
    PROBE_PROGRAM_RUNS: Counter = "probe.program.runs", "{run}",
        "Runs of a BPF program of probe's since it was loaded. Only with `--program-stats`.",
        [key::PROGRAM];
    PROBE_PROGRAM_MISSES: Counter = "probe.program.misses", "{run}",
        "Runs of a BPF program of probe's that the kernel skipped, because the CPU was inside the same program already (Linux 5.12). Only with `--program-stats`; those that no other program made up for are in `probe.events.lost` at `programs`, always.",
        [key::PROGRAM];
    PROBE_SERIES_ACTIVE: Gauge = "probe.series.active", "{series}",
        "Series kept, by metric.",
        [key::METRIC];
    PROBE_SERIES_FOLDED: Counter = "probe.series.folded", "{value}",
        "Values that went into an overflow series because their metric was at its limit of series, or into one of `_other` because there were too many names (`--dns-names-max`).",
        [key::METRIC];
    PROBE_SERIES_ENDED: Counter = "probe.series.ended", "{series}",
        "Series that were idle and are forgotten: of containers that are gone, or where room was short.",
        [key::METRIC];
    PROBE_EXPORT_SENT: Counter = "probe.export.sent", "{item}",
        "Data points and log records that a sink's other end accepted.",
        [key::SINK];
    PROBE_EXPORT_FAILED: Counter = "probe.export.failed", "{item}",
        "Data points and log records that a sink could not deliver, by `error.type`.",
        [key::SINK, key::ERROR_TYPE];
    PROBE_EXPORT_DURATION: Timer = "probe.export.duration", "s",
        "Time of one export request, answered or not.",
        [key::SINK];
    PROBE_SPOOL_EVENTS: Gauge = "probe.spool.events", "{event}",
        "Events on disk (`--spool`) that the collector has yet to take.",
        [];
    PROBE_SPOOL_SIZE: Gauge = "probe.spool.size", "By",
        "What they take up there.",
        [];
    PROBE_KUBELET_REQUESTS: Counter = "probe.kubelet.requests", "{request}",
        "Requests for the names of pods to the kubelet, those that failed by `error.type`.",
        [key::ERROR_TYPE];
    PROBE_KUBELET_LEFT_OUT: Gauge = "probe.kubelet.left_out", "{item}",
        "What the kubelet's last answer had that was not taken: `name` of no form that Kubernetes allows, `node`: a pod of another node, `duplicate`: a uid or id that was there already, `limit`: a pod too many.",
        [key::ERROR_TYPE];
    PROCESS_CPU_TIME: Counter = "process.cpu.time", "s",
        "CPU time of the agent, by mode.",
        [key::CPU_MODE];
    PROCESS_MEMORY_USAGE: UpDown = "process.memory.usage", "By",
        "Resident memory of the agent.",
        [];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_at_its_position_and_has_a_name_of_its_own() {
        for registry in [ALL, OWN] {
            for (i, def) in registry.iter().enumerate() {
                assert_eq!(def.index, i, "{}", def.name);
                assert!(def.description.ends_with('.'), "{}: a sentence ends with a full stop", def.name);
                assert!(
                    def.kind != Kind::Histogram || def.unit == "s",
                    "{}: durations are in seconds",
                    def.name
                );
            }
        }
        let mut names: Vec<_> = ALL.iter().chain(OWN).map(|def| def.name).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before, "two metrics of one name");
    }
}
