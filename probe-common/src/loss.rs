//! Counters of the programs: what they produced and every place where something can get lost.
//!
//! One per-CPU array a BPF object (`COUNTERS`), indexed by [`Counter`]. A place with a remedy is a loss: it
//! appears in `probe.events.lost` and in the loss lines at the end of every command.

/// Declares [`Counter`], its count and its texts in one place.
macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident = $place:literal, $remedy:expr;)+) => {
        /// Index into the `COUNTERS` map.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Counter { $($(#[doc = $doc])* $name,)+ }

        impl Counter {
            /// All of them, in index order.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The name users see, as attribute `where` of `probe.events.lost`.
            #[must_use]
            pub const fn place(self) -> &'static str {
                match self { $(Self::$name => $place,)+ }
            }

            /// What to do about it; `None` where counting is no sign of a loss.
            #[must_use]
            pub const fn remedy(self) -> Option<&'static str> {
                match self { $(Self::$name => $remedy,)+ }
            }
        }
    };
}

counters! {
    /// Records that went into the ring.
    Produced = "produced", None;
    /// Records for which the ring had no room.
    RingFull = "ring", Some("raise --ring-kib");
    /// Skipped runs of a program that its backup made up for.
    MadeUp = "made_up", None;
    /// Records given up because kernel memory could not be read.
    KernelRead = "kernel_read", Some("run `probe doctor`: a field of this kernel does not read as its BTF says");
    /// tcp: sockets whose owner could not be kept.
    SocketsFull = "tcp.sockets", Some("raise --tcp-sockets: owners of the newest connections are missing, and their segments are not counted");
    /// tcp: listening sockets whose owner could not be kept.
    ListenersFull = "tcp.listeners", Some("raise --tcp-sockets: owners are missing from events of accepted connections");
    /// tcp: segments not in the totals, because too many cgroups had some.
    TotalsFull = "tcp.totals", Some("raise --max-cgroups");
    /// tcp: handshakes not in the durations, because too many cgroups had some.
    HandshakesFull = "tcp.handshakes", Some("raise --max-cgroups");
    /// tcp: connections whose segments are not counted, because too many cgroups had some.
    SegmentsFull = "tcp.segments", Some("raise --max-cgroups");
    /// dns: queries that could not wait for their answer.
    PendingFull = "dns.pending", Some("raise --dns-pending");
    /// dns: TCP connections whose messages could not be told apart for a while, each once; and questions beyond those that may wait on one.
    DnsStreams = "dns.streams", Some("raise --ring-kib if the ring lost records as well; else more passed on a connection than is put together, or what is no DNS: some of its lookups are missing");
    /// dns: packets to or from the DNS port that hold no single well-formed question.
    DnsMalformed = "dns.malformed", None;
    /// dns: answers without a question waiting for them (answered before, given up, or forged).
    DnsOrphans = "dns.orphans", None;
    /// syscalls: calls counted under their syscall without their process, for want of a block.
    CallsFolded = "syscalls.folded", Some("raise --syscall-blocks: totals per syscall are exact, processes are missing");
    /// syscalls: calls not counted at all.
    CallsLost = "syscalls.blocks", Some("raise --syscall-blocks");
    /// syscalls: calls that slept and whose beginning could not be kept: not counted. Where programs lose their CPU, one of them
    /// may be here twice.
    SleepersFull = "syscalls.sleepers", Some("raise --syscall-threads");
    /// syscalls: processes whose name and cgroup could not be kept.
    ProcessesFull = "syscalls.processes", Some("raise --syscall-threads");
}

/// Number of counters: the length of the `COUNTERS` map.
pub const COUNTER_COUNT: u32 = Counter::ALL.len() as u32;
