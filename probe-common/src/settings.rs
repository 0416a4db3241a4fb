//! What user space can change while the programs run: one entry in the `SETTINGS` map of every object.
//!
//! These live in a map and not in read-only globals, so that filters and thresholds can change without loading
//! anything anew (and without the capabilities that loading takes).

/// Only events of process [`Filter::tgid`].
pub const FILTER_TGID: u32 = 1 << 0;
/// Only events of processes whose leader is called [`Filter::comm`].
pub const FILTER_COMM: u32 = 1 << 1;
/// Only events of cgroup [`Filter::cgroup_id`] and what is below it.
pub const FILTER_CGROUP: u32 = 1 << 2;
/// tcp: only [`Settings::local_port`].
pub const FILTER_LOCAL_PORT: u32 = 1 << 3;
/// tcp: only [`Settings::peer_port`].
pub const FILTER_PEER_PORT: u32 = 1 << 4;
/// tcp: only peers inside [`Settings::peer_network`].
pub const FILTER_PEER: u32 = 1 << 5;
/// syscalls: only those in [`Settings::syscall_set`].
pub const FILTER_SYSCALL: u32 = 1 << 6;

/// Ports that can be watched for DNS.
pub const DNS_PORTS: usize = 4;
/// System call numbers of one table that [`Settings::syscall_set`] can hold.
pub const SYSCALL_SET_BITS: usize = 1024;

/// Run-time settings. All zero: no filter, no slow calls, a wake-up for every record.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `FILTER_*` bits: what of the following applies. Every condition has to hold.
    pub filters: u32,
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// cgroup v2 id (inode number of its directory).
    pub cgroup_id: u64,
    /// Depth of that cgroup below the root.
    pub cgroup_level: u32,
    /// Bytes waiting in the ring at which user space is woken; below it, user space comes by timer.
    pub wake_bytes: u32,
    /// Name of a process's leader, NUL-padded.
    pub comm: [u8; 16],
    /// tcp: bit n: records of kind n go into the ring (totals are kept in any case).
    pub tcp_kinds: u32,
    /// tcp: host byte order.
    pub local_port: u16,
    /// tcp: host byte order.
    pub peer_port: u16,
    /// tcp: network address as in `wire::Address`.
    pub peer_network: [u8; 16],
    /// tcp: mask for `peer_network`.
    pub peer_mask: [u8; 16],
    /// tcp: `wire::FAMILY_*` of `peer_network`.
    pub peer_family: u32,
    /// syscalls: number of the current interval; starts at 1. Peaks (min, max) are kept per interval.
    pub interval: u32,
    /// syscalls: a call that takes at least so many nanoseconds is looked at for a record; [`u64::MAX`]: none is.
    pub slow_ns: u64,
    /// syscalls: one call in so many is measured, at random; 1: every one, 0: none.
    pub latency_every: u32,
    /// syscalls: nanoseconds of a tick of the kernel's.
    pub tick_ns: u32,
    /// dns: ports of servers, host byte order; 0: unused.
    pub dns_ports: [u16; DNS_PORTS],
    /// dns: 1: servers of this host are looked at too.
    pub dns_servers: u64,
    /// syscalls: a stack is taken whenever calls have taken so many nanoseconds on a CPU; 0: not for that.
    pub stack_every_ns: u64,
    /// syscalls: a stack is taken of one call in so many; 0: not for that.
    pub stack_every_calls: u32,
    /// syscalls: 1: stacks of calls that wait, too.
    pub stack_waits: u32,
    /// syscalls: one bit a system call number: the native table, and behind it the 32-bit one.
    pub syscall_set: [u64; 2 * SYSCALL_SET_BITS / 64],
}
const _: () = assert!(size_of::<Settings>() == 392);

impl Settings {
    /// No filter, every kind of record, DNS on port 53.
    pub const DEFAULT: Self = Self {
        filters: 0,
        tgid: 0,
        cgroup_id: 0,
        cgroup_level: 0,
        wake_bytes: 0,
        comm: [0; 16],
        tcp_kinds: u32::MAX,
        local_port: 0,
        peer_port: 0,
        peer_network: [0; 16],
        peer_mask: [0; 16],
        peer_family: 0,
        interval: 1,
        slow_ns: u64::MAX,
        latency_every: 1,
        tick_ns: 0,
        stack_every_ns: 0,
        stack_every_calls: 0,
        stack_waits: 0,
        dns_ports: [53, 0, 0, 0],
        dns_servers: 0,
        syscall_set: [0; 2 * SYSCALL_SET_BITS / 64],
    };
}
