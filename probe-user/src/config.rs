//! What the user asked for, validated: nothing behind this sees flags or environment variables.

pub mod file;

use std::cmp::Reverse;
use std::path::PathBuf;
use std::time::Duration;

use wildmatch::WildMatch;

use crate::entity::kube::KubeletConfig;
use crate::signals::syscalls::Row;
use crate::sink::otlp::OtlpConfig;
use crate::stacks::Unit;

/// Everything a command works by.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a summary covers; for `run` also the export period.
    pub interval: Duration,
    /// When to stop by oneself.
    pub duration: Option<Duration>,
    /// After how many events to stop.
    pub count: Option<u64>,
    /// Form of the output.
    pub output: Output,
    /// Whose events are wanted.
    pub filter: Filter,
    /// BTF to use in place of the running kernel's.
    pub btf: Option<PathBuf>,
    /// Level of what the programs log (aya-log), 0 to 5.
    pub program_log_level: u8,
    /// How many numbers CPUs of this host may have ([`crate::kernel::cpus::possible_ids`]).
    pub cpu_ids: u32,
    /// How much memory the maps take.
    pub sizes: Sizes,
    /// Of the tcp signal.
    pub tcp: TcpOptions,
    /// Of the dns signal.
    pub dns: DnsOptions,
    /// Of the syscalls signal.
    pub syscalls: SyscallOptions,
    /// Whether the kernel is to take the time of the programs' runs.
    pub program_stats: bool,
    /// Who is asked for the names of pods; `None`: nobody.
    pub kubelet: Option<KubeletConfig>,
    /// Where metrics and events go; `None`: nowhere.
    pub otlp: Option<OtlpConfig>,
    /// Where links, programs and maps are left for the next agent; `None`: nowhere, they end with this one.
    pub pin: Option<PinConfig>,
}

/// What outlives the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinConfig {
    /// Directory on a BPF file system.
    pub directory: PathBuf,
    /// `service.instance.id` of this agent, unless it goes on as another.
    pub instance: String,
}

/// Form of the output on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Aligned text.
    Table,
    /// One JSON object a line.
    Json,
}

/// Which events go to the collector as log records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OtlpEvents {
    /// None: metrics only.
    None,
    /// All but lookups that went well, which a busy host makes by the thousand.
    Notable,
    /// Every one.
    All,
}

/// Whose events are wanted; all conditions together. The programs apply it.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Process id.
    pub pid: Option<u32>,
    /// Name of a process's leader, NUL-padded.
    pub comm: Option<[u8; 16]>,
    /// cgroup, and what is below it.
    pub cgroup: Option<CgroupFilter>,
}

/// How a cgroup is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupFilter {
    /// By its path, absolute or below the root.
    Path(PathBuf),
    /// By the beginning of the id of the container that it is.
    Container(String),
    /// By the namespace and name of the pod that it is.
    Pod(String, String),
}

/// Sizes of maps. Memory is set by these, not by traffic.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// KiB of one ring; a power of two. dns has four times that.
    pub ring_kib: u32,
    /// Sockets whose owner is kept.
    pub tcp_sockets: u32,
    /// Cgroups that have TCP totals.
    pub max_cgroups: u32,
    /// Questions that wait for their answer.
    pub dns_pending: u32,
    /// Blocks of (process, system call, CPU).
    pub syscall_blocks: u32,
    /// Threads that sleep inside a system call.
    pub syscall_threads: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            ring_kib: 256,
            tcp_sockets: 16_384,
            max_cgroups: 512,
            dns_pending: 8_192,
            syscall_blocks: 16_384,
            syscall_threads: 16_384,
        }
    }
}

impl Sizes {
    /// Bytes of one ring.
    #[must_use]
    pub const fn ring_bytes(&self) -> u32 {
        self.ring_kib * 1024
    }
}

/// Kinds of TCP events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum TcpKind {
    /// Segments sent again.
    Retransmit,
    /// Resets, sent and received.
    Reset,
    /// Connections that failed.
    Failed,
    /// Connections established and failed.
    Connect,
    /// Connections that ended, with what they carried.
    Close,
}

impl TcpKind {
    /// What is shown unless something else is asked for.
    pub const DEFAULT: &[Self] = &[Self::Retransmit, Self::Reset, Self::Failed];
}

/// Options of the tcp signal.
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// Kinds of events wanted.
    pub kinds: Vec<TcpKind>,
    /// Only this local port.
    pub local_port: Option<u16>,
    /// Only this peer port.
    pub peer_port: Option<u16>,
    /// Only peers in this network.
    pub peer: Option<ipnet::IpNet>,
    /// Whether connection tracking is asked where packets go.
    pub nat: bool,
    /// Whether DNS answers are looked into for the names of peers.
    pub names: bool,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            kinds: TcpKind::DEFAULT.to_vec(),
            local_port: None,
            peer_port: None,
            peer: None,
            nat: false,
            names: true,
        }
    }
}

/// Options of the dns signal.
#[derive(Clone, Debug)]
pub struct DnsOptions {
    /// Ports of servers; at most `probe_common::settings::DNS_PORTS`.
    pub ports: Vec<u16>,
    /// After how long a lookup counts as unanswered.
    pub timeout: Duration,
    /// Whether servers of this host are looked at too, from their end.
    pub servers: bool,
    /// What metrics tell of names.
    pub names: QuestionNames,
    /// How many names metrics tell of one container, or of the host.
    pub names_max: usize,
    /// Only events of names that match.
    pub name: Option<Glob>,
    /// Only events of these types.
    pub types: Vec<String>,
    /// Only events with these response codes.
    pub rcodes: Vec<String>,
    /// Only events of lookups that took at least so long.
    pub slower_than: Option<Duration>,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self {
            ports: vec![53],
            timeout: Duration::from_secs(5),
            servers: false,
            names: QuestionNames::Off,
            names_max: 100,
            name: None,
            types: Vec::new(),
            rcodes: Vec::new(),
            slower_than: None,
        }
    }
}

/// What metrics tell of the name that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum QuestionNames {
    /// Nothing.
    Off,
    /// The part that somebody registered, by the public suffix list: example.co.uk of a.b.example.co.uk.
    Suffix,
    /// All of it.
    Full,
}

/// A pattern with `*` and `?`, case-insensitive.
#[derive(Clone, Debug)]
pub struct Glob(WildMatch);

impl Glob {
    /// Of a pattern; any text is one. A closing dot is ignored, as it is in names.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        let pattern = pattern.strip_suffix('.').filter(|rest| !rest.is_empty()).unwrap_or(pattern);
        Self(WildMatch::new(&pattern.to_ascii_lowercase()))
    }

    /// Whether a name in lower case matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }
}

/// Options of the syscalls signal.
#[derive(Clone, Debug)]
pub struct SyscallOptions {
    /// Only these; empty: all.
    pub names: Vec<&'static str>,
    /// From how long on a call is an event of its own.
    pub slower_than: Thresholds,
    /// One call in so many is measured; 1: every one, 0: none.
    pub latency_every: u32,
    /// What stacks weigh, if they are wanted.
    pub stacks: Option<Unit>,
    /// Only rows with errors.
    pub errors_only: bool,
    /// Whose calls a row adds up.
    pub by: SyscallBy,
    /// Order of the rows.
    pub sort: SyscallSort,
    /// How many rows a table shows; `None`: a table its own choice, JSON all.
    pub top: Option<usize>,
}

impl Default for SyscallOptions {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            slower_than: Thresholds::default(),
            latency_every: 1,
            stacks: None,
            errors_only: false,
            by: SyscallBy::Process,
            sort: SyscallSort::Time,
            top: None,
        }
    }
}

/// Whose calls a row adds up, call by call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SyscallBy {
    /// A process's.
    Process,
    /// All of a container; all of the host outside of containers.
    Container,
    /// Everybody's.
    Syscall,
}

/// From how long on a call is slow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Calls that work.
    pub usual: Duration,
    /// Calls, by name, that have one of their own; it holds for them even where they wait.
    pub own: Vec<(&'static str, Duration)>,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { usual: Duration::from_millis(100), own: Vec::new() }
    }
}

impl Thresholds {
    /// The call's own.
    #[must_use]
    pub fn own(&self, name: &str) -> Option<Duration> {
        self.own.iter().find(|(own, _)| *own == name).map(|(_, threshold)| *threshold)
    }
}

/// Order of rows, largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SyscallSort {
    /// Time inside the call; calls that wait by design after those that work.
    Time,
    /// Number of calls.
    Count,
    /// Number of errors.
    Errors,
    /// 99th percentile of the duration.
    P99,
}

impl SyscallSort {
    /// Puts rows in order.
    pub fn order(self, rows: &mut [Row]) {
        // Work first wherever time is what counts: waiting always wins, and says nothing. Rows come in no order, and equal ones
        // should not change places from interval to interval.
        let equal = |row: &Row| (Reverse(row.calls), row.syscall, row.who.pid);
        match self {
            Self::Time => {
                rows.sort_unstable_by_key(|row| (row.waits, Reverse(row.durations.sum_ns()), equal(row)))
            }
            Self::Count => rows.sort_unstable_by_key(equal),
            Self::Errors => rows.sort_unstable_by_key(|row| (Reverse(row.errors_total()), equal(row))),
            Self::P99 => {
                rows.sort_by_cached_key(|row| (row.waits, Reverse(row.durations.quantile(0.99)), equal(row)))
            }
        }
    }
}
