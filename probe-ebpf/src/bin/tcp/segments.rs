//! Segments of all connections, and their round-trip times: the ratio's denominator, at no cost to a segment.
//!
//! The kernel counts them in each socket (RFC 4898, `tcpEStatsPerfSegsIn` and `…Out`). So nothing is done while they come and go:
//! a connection's are added up where it ends, and those of open ones are read by a walk over all of them, which user space begins.

use core::ffi::c_void;
use core::ptr::addr_of;

use aya_ebpf::helpers::generated::bpf_seq_write;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuHashMap;
use probe_common::fields::{self, KernelPointer};
use probe_common::loss::Counter;
use probe_common::tcp::{Home, OpenConnection, Segments, SocketState};
use probe_ebpf::{Error, Result, emit, kread, socket};

use crate::owners::{SOCKETS, set_owner};
use crate::undo;
use crate::{BPF_NOEXIST, NEUTRAL, TCP_CLOSE, TCP_LISTEN, TCP_SYN_RECV, blank, passes};

/// Of connections that have ended.
#[map]
static SEGMENTS: PerCpuHashMap<Home, Segments> = PerCpuHashMap::with_max_entries(1_024, 0);

/// A connection ends: what it carried is counted, once.
#[inline(always)]
pub(crate) fn account(sk: KernelPointer, state: *mut SocketState) -> Result<()> {
    // SAFETY: a value of the map; what happens to one socket happens under its lock.
    unsafe {
        if (*state).ended != 0 {
            return Ok(());
        }
        (*state).ended = 1;
    }
    let (segments, ..) = carried(sk, state)?;
    // Listeners have none.
    if segments.sent | segments.received == 0 {
        return Ok(());
    }
    add(&home_of(sk, state)?, &segments)
}

/// A connection is older than the programs: what it carried until now is not to be counted.
#[inline(always)]
pub(crate) fn begin(sk: KernelPointer, state: &mut SocketState) {
    state.sent = kread::read_or_zero(sk, fields::SEGS_OUT);
    state.received = kread::read_or_zero(sk, fields::SEGS_IN);
    state.sent_before = state.sent;
    state.received_before = state.received;
    state.spurious_before = kread::read_or_zero(sk, fields::DSACK_DUPS);
    state.delivered = delivered(sk);
}

/// Segments that the peer has acknowledged.
#[inline(always)]
fn delivered(sk: KernelPointer) -> u32 {
    kread::read_or_zero(sk, fields::TCP_DELIVERED)
}

/// Where a connection is counted, if that was looked up before.
#[inline(always)]
fn known_home(state: *const SocketState) -> Option<Home> {
    // SAFETY: a value of the map; both are written under the socket's lock, the family last.
    let known = unsafe { Home { cgroup_id: (*state).cgroup_id, family: (*state).family, _pad: [0; 7] } };
    (known.family != 0).then_some(known)
}

/// [`home`] of a connection that is known, which is looked up once.
#[inline(always)]
pub(crate) fn home_of(sk: KernelPointer, state: *mut SocketState) -> Result<Home> {
    if let Some(known) = known_home(state) {
        return Ok(known);
    }
    let home = home(sk)?;
    // SAFETY: a value of the map; what happens to one socket happens under its lock.
    unsafe {
        (*state).cgroup_id = home.cgroup_id;
        (*state).family = home.family;
    }
    Ok(home)
}

/// Where a connection is counted. Nowhere, if the filter does not let it through.
#[inline(always)]
pub(crate) fn home(sk: KernelPointer) -> Result<Home> {
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    if settings.filters != 0 && is_filtered_out(sk) != 0 {
        return Err(Error::NotOurs);
    }
    Ok(Home { cgroup_id: socket::known_cgroup_id(sk), family: socket::family(sk)?, _pad: [0; 7] })
}

/// Apart, because few look: the verifier follows it where it is called, and nothing of it stays behind.
#[inline(never)]
fn is_filtered_out(sk: KernelPointer) -> u64 {
    let mut socket = core::mem::MaybeUninit::uninit();
    let socket = blank(&mut socket);
    let Some(settings) = emit::settings() else { return 1 };
    if socket::describe(sk, socket).is_err() {
        return 1;
    }
    set_owner(socket, sk);
    u64::from(!passes(settings, socket, sk).unwrap_or(false))
}

/// A count of 32 bits of the kernel's, and how often it has begun anew.
#[derive(Clone, Copy)]
struct Count {
    now: u32,
    wraps: u16,
}

impl Count {
    /// What it is now. `before`: at the last walk. Without a branch, for the verifier's sake. It begins anew where its top bit
    /// goes: the walk comes by more often than 2^31 segments do, and what is merely smaller would be another connection's at the
    /// same place.
    #[inline(always)]
    fn after(now: u32, before: Self) -> Self {
        let again = ((before.now & !now) >> 31) as u16;
        Self { now, wraps: before.wraps.wrapping_add(again) }
    }

    /// By how much it has risen since it was `beginning`, for the first time.
    #[inline(always)]
    fn since(self, beginning: u32) -> u64 {
        (u64::from(self.wraps) << 32 | u64::from(self.now)).wrapping_sub(u64::from(beginning))
    }
}

/// Words of a `struct tcp_sock` that hold its counts of segments: up to 6.1 and in 7.2 all three, in between all but one.
const COUNTS: usize = 14;

/// What a connection carried so far; and the two counts for the next walk.
#[inline(always)]
fn carried(sk: KernelPointer, state: *const SocketState) -> Result<(Segments, Count, Count)> {
    // SAFETY: a value of the map, plain numbers.
    let (sent, received, beginning) = unsafe {
        (
            Count { now: (*state).sent, wraps: (*state).sent_wraps },
            Count { now: (*state).received, wraps: (*state).received_wraps },
            ((*state).sent_before, (*state).received_before, (*state).spurious_before),
        )
    };
    let mut room = kread::Room::<COUNTS>::uninit();
    let counts = kread::Stretch::read(&mut room, sk, fields::SEGS_IN)?;
    let sent = Count::after(counts.get(fields::SEGS_OUT), sent);
    let received = Count::after(counts.get(fields::SEGS_IN), received);
    // 32 bits as in the kernel.
    let reported = counts.get(fields::DSACK_DUPS).wrapping_sub(beginning.2);
    let segments = Segments {
        sent: sent.since(beginning.0),
        received: received.since(beginning.1),
        spurious: u64::from(undo::or_reported(state, reported)),
    };
    Ok((segments, sent, received))
}

#[inline(always)]
fn add(home: &Home, by: &Segments) -> Result<()> {
    let segments = match SEGMENTS.get_ptr_mut(home) {
        Some(segments) => segments,
        None if SEGMENTS.insert(home, by, BPF_NOEXIST).is_ok() => return Ok(()),
        // Another CPU has made it between the two; or there is no room.
        None => match SEGMENTS.get_ptr_mut(home) {
            Some(segments) => segments,
            None => {
                emit::count(Counter::SegmentsFull, 1);
                return Ok(());
            }
        },
    };
    // SAFETY: a value of the map.
    unsafe {
        emit::add(&raw mut (*segments).sent, by.sent);
        emit::add(&raw mut (*segments).received, by.received);
        // Hardly ever.
        if by.spurious != 0 {
            emit::add(&raw mut (*segments).spurious, by.spurious);
        }
    }
    Ok(())
}

/// `struct bpf_iter__bpf_map_elem` of kernel/bpf/map_iter.c: every member takes eight bytes.
#[repr(C)]
struct Visit {
    meta: *mut Meta,
    map: *mut c_void,
    /// Null at the end of the walk.
    key: *mut c_void,
    value: *mut c_void,
}

/// `struct bpf_iter_meta` of include/linux/bpf.h: likewise.
#[repr(C)]
struct Meta {
    seq: *mut c_void,
    session_id: u64,
}

/// `bpf_iter_bpf_map_elem(struct bpf_iter_meta *meta, struct bpf_map *map, void *key, void *value)`, over [`SOCKETS`]: writes an
/// [`OpenConnection`] for each. In the process that reads, under RCU.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub fn open_connections(visit: *mut c_void) -> i32 {
    let visit = visit.cast::<Visit>();
    // SAFETY: the context of this hook.
    let (meta, key) =
        unsafe { (addr_of!((*visit).meta).read_volatile(), addr_of!((*visit).key).read_volatile()) };
    // SAFETY: the kernel's own, typed by its BTF.
    let (seq, walk) =
        unsafe { (addr_of!((*meta).seq).read_volatile(), addr_of!((*meta).session_id).read_volatile()) };
    let sk = kread::address_of(key).and_then(|key| if key == 0 { Ok(0) } else { kread::read_at(key) });
    if let Ok(sk) = sk {
        let _not_open = visit_connection(seq, walk as u32, sk);
    }
    NEUTRAL
}

/// A socket's memory may become another's at any time, and then its entry in the map has gone before. So what is read counts
/// only if the entry is still there afterwards.
#[inline(always)]
fn visit_connection(seq: *mut c_void, walk: u32, sk: KernelPointer) -> Result<()> {
    let state = SOCKETS.get_ptr_mut(sk).ok_or(Error::NotOurs)?;
    // SAFETY: a value of the map.
    let (done, last_walk) = unsafe { ((*state).ended, (*state).walk) };
    // The kernel may come by twice where entries come and go.
    if done != 0 || last_walk == walk {
        return Err(Error::NotOurs);
    }
    let tcp_state = i32::from(kread!(sk, SKC_STATE)?);
    // One that is being born may have no addresses yet.
    if tcp_state == TCP_LISTEN || tcp_state == TCP_CLOSE || tcp_state == TCP_SYN_RECV {
        return Err(Error::NotOurs);
    }
    // Here it is not noted where it was not: that is for hooks, which hold the socket's lock.
    let home = match known_home(state) {
        Some(home) => home,
        None => home(sk)?,
    };
    let (segments, sent, received) = carried(sk, state)?;
    // SAFETY: as above.
    let acknowledged = unsafe { (*state).delivered };
    let delivered = delivered(sk);
    let srtt_us = if delivered == acknowledged { 0 } else { kread::read_or_zero(sk, fields::SRTT_US) >> 3 };
    let open = OpenConnection { home, segments, srtt_us, _pad: 0 };
    let state = SOCKETS.get_ptr_mut(sk).ok_or(Error::NotOurs)?;
    // SAFETY: a value of the map.
    if unsafe { (*state).ended } != 0 {
        return Err(Error::NotOurs);
    }
    // SAFETY: `seq` is the kernel's, `open` lives on our stack.
    let written = unsafe {
        bpf_seq_write(seq.cast(), (&raw const open).cast_mut().cast(), size_of::<OpenConnection>() as u32)
    };
    // No room: the kernel comes by once more when user space has read what is there.
    if written == 0 {
        // SAFETY: a value of the map. At worst it has become another connection's just now, which nothing comes of but a sample.
        unsafe {
            (*state).sent = sent.now;
            (*state).sent_wraps = sent.wraps;
            (*state).received = received.now;
            (*state).received_wraps = received.wraps;
            (*state).delivered = delivered;
            (*state).walk = walk;
        }
    }
    Ok(())
}
