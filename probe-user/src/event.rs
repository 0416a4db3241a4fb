//! What an event looks like to a sink, and every name that leaves the process.
//!
//! A signal's event type implements [`Attributes`]; the NDJSON sink, the console and the OTLP log exporter
//! only ever see that trait. So a name is written once, in [`key`] or [`name`], and no sink knows a signal.

/// One attribute's value, borrowed from the event for the length of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttrValue<'a> {
    /// Text. It may have come from the network or from another process: a text sink escapes it.
    Str(&'a str),
    /// A count, port, process id or other integer.
    Int(i64),
    /// Seconds, or another fraction.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// Several texts in order: `syscall.args`.
    List(&'a [&'a str]),
    /// Counts by name: `errors` of a syscall summary.
    Map(&'a [(&'a str, i64)]),
}

impl<'a> From<&'a str> for AttrValue<'a> {
    fn from(text: &'a str) -> Self {
        Self::Str(text)
    }
}

/// An event: a name, a time, and attributes.
///
/// `visit` leaves out what is not known: an absent attribute means "unknown", never zero.
pub trait Attributes {
    /// A constant of [`name`].
    fn event_name(&self) -> &'static str;

    /// When it happened: nanoseconds since 1970, CLOCK_REALTIME.
    fn time_unix_ns(&self) -> u64;

    /// Hands every known attribute to `visitor`, the important ones first. Keys are constants of [`key`];
    /// `time` and `event` are not among them.
    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>));
}

/// Names of events.
pub mod name {
    /// One retransmission.
    pub const TCP_RETRANSMIT: &str = "tcp.retransmit";
    /// One reset, sent or received.
    pub const TCP_RESET: &str = "tcp.reset";
    /// One handshake that ended, either way.
    pub const TCP_CONNECT: &str = "tcp.connect";
    /// One connection that closed.
    pub const TCP_CLOSE: &str = "tcp.close";
    /// One DNS lookup that ended.
    pub const DNS_LOOKUP: &str = "dns.lookup";
    /// What one process did with one system call during an interval.
    pub const SYSCALL_SUMMARY: &str = "syscall.summary";
    /// One call that took longer than the threshold.
    pub const SYSCALL_SLOW: &str = "syscall.slow";
    /// One call that has not returned for longer than the threshold.
    pub const SYSCALL_IN_FLIGHT: &str = "syscall.in_flight";
    /// What was lost since the last line.
    pub const PROBE_LOSS: &str = "probe.loss";
}

/// Names of attributes, of events and of metrics. OpenTelemetry semantic conventions where one exists.
pub mod key {
    /// Process id (thread group), initial pid namespace.
    pub const PROCESS_PID: &str = "process.pid";
    /// Name of the process's leading thread.
    pub const PROCESS_COMM: &str = "process.comm";
    /// Base name of the executable.
    pub const PROCESS_EXECUTABLE_NAME: &str = "process.executable.name";
    /// Thread id, where the thread matters.
    pub const THREAD_ID: &str = "thread.id";
    /// Full container id.
    pub const CONTAINER_ID: &str = "container.id";
    /// Runtime of the container: `containerd`, `cri-o`, `docker`, `podman`.
    pub const CONTAINER_RUNTIME: &str = "container.runtime.name";
    /// systemd unit of what is in no container.
    pub const SYSTEMD_UNIT_NAME: &str = "systemd.unit.name";
    /// Pod uid.
    pub const K8S_POD_UID: &str = "k8s.pod.uid";
    /// Pod name.
    pub const K8S_POD_NAME: &str = "k8s.pod.name";
    /// Namespace of the pod.
    pub const K8S_NAMESPACE_NAME: &str = "k8s.namespace.name";
    /// Name of the container inside its pod.
    pub const K8S_CONTAINER_NAME: &str = "k8s.container.name";
    /// Name of the node.
    pub const K8S_NODE_NAME: &str = "k8s.node.name";
    /// Deployment that the pod is of.
    pub const K8S_DEPLOYMENT_NAME: &str = "k8s.deployment.name";
    /// Daemon set that the pod is of.
    pub const K8S_DAEMONSET_NAME: &str = "k8s.daemonset.name";
    /// Stateful set that the pod is of.
    pub const K8S_STATEFULSET_NAME: &str = "k8s.statefulset.name";
    /// Job that the pod is of.
    pub const K8S_JOB_NAME: &str = "k8s.job.name";
    /// What stands before the key of a pod's label.
    pub const K8S_POD_LABEL: &str = "k8s.pod.label.";
    /// Name of the container's image.
    pub const CONTAINER_IMAGE_NAME: &str = "container.image.name";
    /// Tags of the container's image.
    pub const CONTAINER_IMAGE_TAGS: &str = "container.image.tags";
    /// Cgroup path below the cgroup mount.
    pub const LINUX_CGROUP_PATH: &str = "linux.cgroup.path";
    /// Inode number of the network namespace.
    pub const LINUX_NETNS: &str = "linux.netns";

    /// `syn`, `syn_ack`, `timeout`, `slow_start`, `fast`, `tail_loss_probe`.
    pub const TCP_RETRANSMIT_TYPE: &str = "network.tcp.retransmit.type";
    /// `client` or `server`.
    pub const TCP_HANDSHAKE_ROLE: &str = "network.tcp.handshake.role";
    /// `ipv4` or `ipv6`.
    pub const NETWORK_TYPE: &str = "network.type";
    /// `udp` or `tcp`.
    pub const NETWORK_TRANSPORT: &str = "network.transport";
    /// `transmit` or `receive`.
    pub const NETWORK_IO_DIRECTION: &str = "network.io.direction";
    /// Local IP address.
    pub const NETWORK_LOCAL_ADDRESS: &str = "network.local.address";
    /// Local port.
    pub const NETWORK_LOCAL_PORT: &str = "network.local.port";
    /// Remote IP address.
    pub const NETWORK_PEER_ADDRESS: &str = "network.peer.address";
    /// Remote port.
    pub const NETWORK_PEER_PORT: &str = "network.peer.port";
    /// Name for which a DNS server gave the remote IP address out, the last before the connection began, in its network namespace.
    pub const NETWORK_PEER_NAME: &str = "network.peer.name";
    /// IP address to which NAT sends what goes to the peer.
    pub const DESTINATION_ADDRESS: &str = "destination.address";
    /// Port there.
    pub const DESTINATION_PORT: &str = "destination.port";
    /// State of the connection: `established`, `syn_sent`, …
    pub const NETWORK_CONNECTION_STATE: &str = "network.connection.state";
    /// Segments that were sent again.
    pub const SEGMENTS: &str = "segments";
    /// Smoothed round-trip time, seconds.
    pub const TCP_SRTT: &str = "tcp.srtt";
    /// Congestion window, segments.
    pub const TCP_CWND: &str = "tcp.cwnd";
    /// Segments in flight, not yet acknowledged.
    pub const TCP_UNACKED: &str = "tcp.unacked";
    /// Octets of data sent, each once.
    pub const TCP_BYTES_SENT: &str = "tcp.bytes_sent";
    /// Octets of data received in order.
    pub const TCP_BYTES_RECEIVED: &str = "tcp.bytes_received";
    /// Segments sent, those sent again included.
    pub const TCP_SEGMENTS_SENT: &str = "tcp.segments_sent";
    /// Segments received.
    pub const TCP_SEGMENTS_RECEIVED: &str = "tcp.segments_received";
    /// Segments sent again.
    pub const TCP_SEGMENTS_RETRANSMITTED: &str = "tcp.segments_retransmitted";
    /// Segments sent again though the first had arrived (D-SACK, or a recovery that the kernel took back).
    pub const TCP_SEGMENTS_SPURIOUS: &str = "tcp.segments_spurious";
    /// Segments received out of order.
    pub const TCP_SEGMENTS_OUT_OF_ORDER: &str = "tcp.segments_out_of_order";
    /// Recoveries that the kernel took back: nothing had been lost.
    pub const TCP_RECOVERIES_UNDONE: &str = "tcp.recoveries_undone";
    /// Reason of a reset, as the kernel names it.
    pub const TCP_RESET_REASON: &str = "tcp.reset.reason";
    /// How a handshake ended: `established` or `failed`.
    pub const OUTCOME: &str = "outcome";

    /// Errno name, or what else went wrong. Absent on success.
    pub const ERROR_TYPE: &str = "error.type";
    /// Seconds.
    pub const DURATION: &str = "duration";

    /// The name that was asked for.
    pub const DNS_QUESTION_NAME: &str = "dns.question.name";
    /// Record type: `A`, `AAAA`, `TYPE65`, …
    pub const DNS_QUESTION_TYPE: &str = "dns.question.type";
    /// `NOERROR`, `NXDOMAIN`, `RCODE17`, …
    pub const DNS_RESPONSE_CODE: &str = "dns.response_code";
    /// `answered`, `unanswered`, `late`.
    pub const DNS_OUTCOME: &str = "dns.outcome";
    /// The answer did not fit.
    pub const DNS_TRUNCATED: &str = "dns.truncated";
    /// 1: first try.
    pub const DNS_ATTEMPT: &str = "dns.attempt";
    /// Records in the answer section.
    pub const DNS_ANSWERS: &str = "dns.answers";
    /// The smallest time to live in the answer section, seconds.
    pub const DNS_TTL: &str = "dns.ttl";
    /// `server`: seen where it was answered. Absent: where it was asked.
    pub const DNS_ROLE: &str = "dns.role";
    /// `true`: asked over TCP because the answer over UDP had been cut.
    pub const DNS_FALLBACK: &str = "dns.fallback";
    /// `true`: of A and AAAA, asked beside each other, the other was answered and this one was not.
    pub const DNS_LOST_TWIN: &str = "dns.lost_twin";
    /// Lookups of names that do not exist that went before this one for the sake of a search list.
    pub const DNS_SEARCH_MISSES: &str = "dns.search_misses";
    /// Address of who asked, on what was seen at the server.
    pub const CLIENT_ADDRESS: &str = "client.address";
    /// Port of who asked.
    pub const CLIENT_PORT: &str = "client.port";
    /// Address of the server.
    pub const SERVER_ADDRESS: &str = "server.address";
    /// Port of the server.
    pub const SERVER_PORT: &str = "server.port";

    /// Name of the system call.
    pub const SYSCALL_NAME: &str = "syscall.name";
    /// `work`, or `wait` for calls that sleep by design.
    pub const SYSCALL_CLASS: &str = "syscall.class";
    /// Six arguments, hexadecimal.
    pub const SYSCALL_ARGS: &str = "syscall.args";
    /// Calls in the interval.
    pub const COUNT: &str = "count";
    /// Calls that had not returned at the end of the interval.
    pub const IN_FLIGHT: &str = "in_flight";
    /// Failed calls by errno name.
    pub const ERRORS: &str = "errors";
    /// Seconds spent in all calls together.
    pub const DURATION_SUM: &str = "duration.sum";
    /// Median, seconds.
    pub const DURATION_P50: &str = "duration.p50";
    /// 99th percentile, seconds.
    pub const DURATION_P99: &str = "duration.p99";
    /// Longest, seconds.
    pub const DURATION_MAX: &str = "duration.max";
    /// Shortest, seconds.
    pub const DURATION_MIN: &str = "duration.min";
    /// Seconds of all that in which the thread did not have the CPU.
    pub const DURATION_OFF_CPU: &str = "duration.off_cpu";
    /// `true`: it is longer; that is since when probe knows.
    pub const DURATION_AT_LEAST: &str = "duration.at_least";
    /// The kernel's function that a call waits in.
    pub const SYSCALL_WCHAN: &str = "syscall.wchan";
    /// The file that a call is about: a path, `pipe:[INODE]`, `socket:[INODE]`.
    pub const FILE_PATH: &str = "file.path";
    /// Call stack, folded.
    pub const STACK: &str = "stack";

    /// Where something was lost.
    pub const WHERE: &str = "where";
    /// What to do about a loss.
    pub const REMEDY: &str = "remedy";

    /// On the agent's own metrics: `tcp`, `dns`, `syscalls`.
    pub const SIGNAL: &str = "signal";
    /// Name of a BPF map.
    pub const MAP: &str = "map";
    /// Name of a BPF program.
    pub const PROGRAM: &str = "program";
    /// Name of a metric.
    pub const METRIC: &str = "metric";
    /// Name of a sink.
    pub const SINK: &str = "sink";
    /// `user` or `system`.
    pub const CPU_MODE: &str = "cpu.mode";
    /// `true` on the series that took in what was over the limit (metrics SDK specification).
    pub const METRIC_OVERFLOW: &str = "otel.metric.overflow";
}
