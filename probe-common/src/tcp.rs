//! Records, keys and values of the tcp signal.

use crate::fields::KernelPointer;
use crate::hist::BUCKETS;
use crate::wire::{Address, Owner, RecordHeader};

/// [`RetransmitRecord`].
pub const KIND_RETRANSMIT: u16 = 1;
/// [`ResetRecord`].
pub const KIND_RESET: u16 = 2;
/// [`ConnectRecord`].
pub const KIND_CONNECT: u16 = 3;

/// [`CloseRecord`]. (4 stands for established connections in `Settings::tcp_kinds`.)
pub const KIND_CLOSE: u16 = 5;

/// A value that the kernel does not have.
pub const ABSENT: u32 = u32::MAX;
/// The same of a count of octets.
pub const ABSENT_OCTETS: u64 = u64::MAX;

/// A connection, as the kernel's socket describes it at the moment of the event.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// Local address; IPv4-mapped IPv6 is reported as the IPv4 it is.
    pub local: Address,
    /// Peer address.
    pub peer: Address,
    /// Host byte order.
    pub local_port: u16,
    /// Host byte order.
    pub peer_port: u16,
    /// `wire::FAMILY_*`.
    pub family: u8,
    /// TCP state, `enum` of include/net/tcp_states.h.
    pub state: u8,
    /// Zero.
    pub _pad: u16,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// How long ago the connection began ([`Socket::age_since`]).
    pub age: u32,
    /// cgroup v2 id of the socket; 0: unknown.
    pub cgroup_id: u64,
    /// Socket cookie; 0: the socket has none yet.
    pub cookie: u64,
    /// Process that connected, or listened.
    pub owner: Owner,
}
const _: () = assert!(size_of::<Socket>() == 96);

impl Socket {
    /// [`Self::age`] is in units of so many bits of nanoseconds: 1.05 ms.
    const AGE_BITS: u32 = 20;

    /// [`Self::age`] of what began at `since_ns`: units that have passed, and one; 0: not known, for `since_ns` is 0; [`u32::MAX`]:
    /// more than it holds, 52 days. Without a branch: the verifier would follow all that comes after twice.
    #[inline(always)]
    #[must_use]
    pub const fn age_since(since_ns: u64, now_ns: u64) -> u32 {
        let is_known = (since_ns | since_ns.wrapping_neg()) >> 63;
        let age = (now_ns.wrapping_sub(since_ns) >> Self::AGE_BITS).wrapping_add(1) * is_known;
        let too_much = ((age >> 32).wrapping_neg() as i64 >> 63) as u32;
        age as u32 | too_much
    }

    /// When the connection began, if it was so old at `now_ns`: the end of its handshake, or its SYN where there is no end yet. At
    /// most a unit of [`Self::age`] too late.
    #[must_use]
    pub const fn began_ns(&self, now_ns: u64) -> Option<u64> {
        match self.age {
            0 | u32::MAX => None,
            age => Some(now_ns.saturating_sub((age as u64 - 1) << Self::AGE_BITS)),
        }
    }
}

/// Why a segment was sent again, in the order of [`CAUSES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// The SYN, by its timer.
    Syn = 0,
    /// The SYN-ACK, by its timer or a SYN that came again.
    SynAck = 1,
    /// The retransmission timeout's own segment.
    Timeout = 2,
    /// What follows a retransmission timeout while the window grows again.
    SlowStart = 3,
    /// Fast retransmit in recovery.
    Fast = 4,
    /// A tail loss probe that sent old data.
    TailLossProbe = 5,
}

/// Names of [`Cause`], as attribute `network.tcp.retransmit.type`.
pub const CAUSES: [&str; 6] = ["syn", "syn_ack", "timeout", "slow_start", "fast", "tail_loss_probe"];

/// Segments were sent again.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetransmitRecord {
    /// Kind [`KIND_RETRANSMIT`].
    pub header: RecordHeader,
    /// Whose.
    pub socket: Socket,
    /// Segments on the wire that this stands for, as TcpRetransSegs counts them.
    pub segments: u32,
    /// Smoothed round-trip time, microseconds; [`ABSENT`].
    pub srtt_us: u32,
    /// Congestion window, segments; [`ABSENT`].
    pub cwnd: u32,
    /// Segments sent and not acknowledged; [`ABSENT`].
    pub unacked: u32,
    /// [`Cause`].
    pub cause: u8,
    /// Zero.
    pub _pad: [u8; 7],
}
const _: () = assert!(size_of::<RetransmitRecord>() == 136);

/// We sent a reset.
pub const RESET_SENT: u8 = 0;
/// The peer sent a reset.
pub const RESET_RECEIVED: u8 = 1;

/// A connection was reset.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetRecord {
    /// Kind [`KIND_RESET`].
    pub header: RecordHeader,
    /// Whose.
    pub socket: Socket,
    /// `enum sk_rst_reason` of the running kernel; [`ABSENT`].
    pub reason: u32,
    /// `RESET_SENT` or `RESET_RECEIVED`.
    pub direction: u8,
    /// Zero.
    pub _pad: [u8; 3],
}
const _: () = assert!(size_of::<ResetRecord>() == 120);

/// We connected.
pub const ROLE_CLIENT: u8 = 0;
/// We accepted.
pub const ROLE_SERVER: u8 = 1;

/// A connection attempt came to its end.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectRecord {
    /// Kind [`KIND_CONNECT`].
    pub header: RecordHeader,
    /// Whose.
    pub socket: Socket,
    /// Nanoseconds from SYN to the end of the handshake; 0: unknown (server side).
    pub duration_ns: u64,
    /// 0: established; else the errno of the failure.
    pub errno: u32,
    /// `ROLE_CLIENT` or `ROLE_SERVER`.
    pub role: u8,
    /// Zero.
    pub _pad: [u8; 3],
}
const _: () = assert!(size_of::<ConnectRecord>() == 128);

/// A connection ended.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseRecord {
    /// Kind [`KIND_CLOSE`].
    pub header: RecordHeader,
    /// Whose.
    pub socket: Socket,
    /// Nanoseconds since the end of the handshake; 0: unknown, it began before the programs did.
    pub duration_ns: u64,
    /// Octets of data sent, each once; [`ABSENT_OCTETS`].
    pub bytes_sent: u64,
    /// Octets of data received in order; [`ABSENT_OCTETS`].
    pub bytes_received: u64,
    /// Segments, those sent again included; [`ABSENT`].
    pub segments_sent: u32,
    /// Segments; [`ABSENT`].
    pub segments_received: u32,
    /// Segments sent again; [`ABSENT`].
    pub segments_retransmitted: u32,
    /// Segments sent again though the first had arrived, as [`Segments::spurious`]; [`ABSENT`].
    pub segments_spurious: u32,
    /// Segments received out of order; [`ABSENT`].
    pub segments_out_of_order: u32,
    /// Last smoothed round-trip time, microseconds; 0: never measured.
    pub srtt_us: u32,
    /// Recoveries that the kernel took back ([`SocketState::recoveries_undone`]); [`ABSENT`].
    pub recoveries_undone: u32,
    /// Zero.
    pub _pad: u32,
}
const _: () = assert!(size_of::<CloseRecord>() == 168);

/// What a socket's kernel address leads to, from its connect, listen or birth on until it is destroyed.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketState {
    /// Who connected or listened.
    pub owner: Owner,
    /// CLOCK_MONOTONIC nanoseconds: when the SYN was sent, and from the end of the handshake on, when that was; 0: not seen.
    pub since_ns: u64,
    /// Segments sent, as the last walk over all connections saw them: to notice when the kernel's 32 bits begin anew.
    pub sent: u32,
    /// The same of segments received.
    pub received: u32,
    /// How often `sent` began anew.
    pub sent_wraps: u16,
    /// How often `received` began anew.
    pub received_wraps: u16,
    /// Segments that the peer had acknowledged at the last walk.
    pub delivered: u32,
    /// The last walk that came by.
    pub walk: u32,
    /// 1: it was there before the programs were, and its owner is one who has it open.
    pub found: u8,
    /// 1: the connection has ended, and its segments are counted.
    pub ended: u8,
    /// With `cgroup_id`, where it is counted, once that was looked up: `wire::FAMILY_*`; 0: not yet.
    pub family: u8,
    /// Zero.
    pub _pad: u8,
    /// cgroup v2 id of the socket; 0: unknown.
    pub cgroup_id: u64,
    /// Segments that it had sent before the programs were there, which are not counted.
    pub sent_before: u32,
    /// The same of segments received.
    pub received_before: u32,
    /// The same of segments that the peer got twice.
    pub spurious_before: u32,
    /// Segments that were sent again in recoveries that the kernel took back, and had been acknowledged by then.
    pub undone: u32,
    /// `tcp_sock.undo_marker` of the recovery that goes on; 0: none does, or none that could be taken back.
    pub undo_marker: u32,
    /// Segments sent again before it, the lower half: of a recovery with 65,536 more, too few are counted.
    pub retransmitted_before: u16,
    /// Recoveries that the kernel took back; `u16::MAX`: or more.
    pub recoveries_undone: u16,
}
const _: () = assert!(size_of::<SocketState>() == 96);

/// What a listening socket's address leads to: accepted sockets copy it, so it finds their owner.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerKey {
    /// Bound address; zero: any.
    pub local: Address,
    /// Address of the network namespace's `struct net`, which is there as long as its listeners are.
    pub netns: KernelPointer,
    /// Host byte order.
    pub local_port: u16,
    /// AF_INET or AF_INET6.
    pub family: u16,
    /// Zero.
    pub _pad: u32,
}
const _: () = assert!(size_of::<ListenerKey>() == 32);

/// The listeners at one address (several with SO_REUSEPORT).
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    /// Their owner; unknown when they are of different processes.
    pub owner: Owner,
    /// How many.
    pub count: u32,
    /// Zero.
    pub _pad: u32,
    /// The `struct cgroup` of a single one, who holds it, so that nothing else comes to be at that address; 0: there were several.
    pub cgroup: KernelPointer,
    /// Its id.
    pub cgroup_id: u64,
}
const _: () = assert!(size_of::<Listeners>() == 56);

/// [`TotalKey::what`]: segments retransmitted; `detail` is the [`Cause`].
pub const TOTAL_RETRANSMITS: u8 = 0;
/// [`TotalKey::what`]: resets; `detail` is the direction.
pub const TOTAL_RESETS: u8 = 1;
/// [`TotalKey::what`]: connections; `detail` is the role, `errno` the outcome. Without those that are in [`Durations`].
pub const TOTAL_CONNECTIONS: u8 = 2;

/// Key of the exact totals (`TOTALS`, per CPU, value `u64`).
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TotalKey {
    /// cgroup v2 id of the socket; 0: unknown.
    pub cgroup_id: u64,
    /// `TOTAL_*`.
    pub what: u8,
    /// Depends on `what`.
    pub detail: u8,
    /// `wire::FAMILY_*`.
    pub family: u8,
    /// Zero.
    pub _pad: u8,
    /// Connections that failed: why.
    pub errno: u32,
}
const _: () = assert!(size_of::<TotalKey>() == 16);

/// Handshake durations of one cgroup (`HANDSHAKES`, per CPU, keyed by cgroup id): of connections that were made, which are counted
/// by them.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durations {
    /// Sum in nanoseconds.
    pub sum_ns: u64,
    /// Buckets of `hist`; they wrap around, read them as differences.
    pub buckets: [u32; BUCKETS],
}
const _: () = assert!(size_of::<Durations>() == 456);

/// What segments of connections that have ended are counted by (`SEGMENTS`, per CPU).
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Home {
    /// cgroup v2 id of the socket; 0: unknown.
    pub cgroup_id: u64,
    /// `wire::FAMILY_*`.
    pub family: u8,
    /// Zero.
    pub _pad: [u8; 7],
}
const _: () = assert!(size_of::<Home>() == 16);

/// Segments of connections, without what older ones carried before the programs were there.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    /// Sent, those sent again included.
    pub sent: u64,
    /// Received.
    pub received: u64,
    /// Sent again though the first had arrived: by the peer's word (D-SACK), or because the kernel took a recovery back, of each
    /// connection what tells of more. A peer that reports them reports those of such recoveries too.
    pub spurious: u64,
}
const _: () = assert!(size_of::<Segments>() == 24);

/// An open connection, as the walk over all of them writes it.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenConnection {
    /// Where it is counted.
    pub home: Home,
    /// What it carried so far.
    pub segments: Segments,
    /// Smoothed round-trip time, microseconds; 0: nothing was acknowledged since the walk before.
    pub srtt_us: u32,
    /// Zero.
    pub _pad: u32,
}
const _: () = assert!(size_of::<OpenConnection>() == 48);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_began_when_it_did_or_a_little_later() {
        const UNIT: u64 = 1 << Socket::AGE_BITS;
        const DAY: u64 = 86_400_000_000_000;
        let now_ns = 1_000 * DAY;
        for age in [0, 1, UNIT - 1, UNIT, UNIT + 1, 50 * DAY, 52 * DAY] {
            let socket = Socket { age: Socket::age_since(now_ns - age, now_ns), ..Socket::default() };
            let began_ns = socket.began_ns(now_ns);
            assert!(
                began_ns.is_some_and(|began| (now_ns - age..now_ns - age + UNIT).contains(&began)),
                "{age}"
            );
        }
        for since_ns in [0, now_ns - 53 * DAY, 1] {
            let socket = Socket { age: Socket::age_since(since_ns, now_ns), ..Socket::default() };
            assert_eq!(socket.began_ns(now_ns), None, "{since_ns}");
        }
    }
}
