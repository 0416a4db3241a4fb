//! Whose a socket is: noted when its process connects or listens, inherited from its listener when it is accepted.

use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use probe_common::fields::{self, KernelPointer};
use probe_common::loss::Counter;
use probe_common::tcp::{ListenerKey, Listeners, Socket, SocketState};
use probe_common::wire::Owner;
use probe_ebpf::{Error, Result, emit, kread, socket};

use crate::{BPF_ANY, BPF_NOEXIST};

/// include/uapi/linux/in.h
const IPPROTO_TCP: u16 = 6;

/// What is known of a socket (by its kernel address), from its connect, listen or birth until it is destroyed.
#[map]
pub(crate) static SOCKETS: HashMap<u64, SocketState> = HashMap::with_max_entries(32_768, 0);

/// Owner by listening address: accepted sockets are born with it.
#[map]
pub(crate) static LISTENERS: HashMap<ListenerKey, Listeners> = HashMap::with_max_entries(4_096, 0);

/// Names the owner, where one is known, and returns since when it has been so (0: unknown; [`SocketState::since_ns`]).
#[inline(always)]
pub(crate) fn set_owner(socket: &mut Socket, sk: KernelPointer) -> u64 {
    let Some(state) = SOCKETS.get_ptr(sk) else { return 0 };
    // SAFETY: a value of the map, copied at once.
    unsafe {
        kread::copy(&raw const (*state).owner, &mut socket.owner);
        (*state).since_ns
    }
}

/// Of a socket that begins.
#[inline(always)]
pub(crate) fn new_state(owner: Owner, since_ns: u64) -> SocketState {
    SocketState {
        owner,
        since_ns,
        sent: 0,
        received: 0,
        sent_wraps: 0,
        received_wraps: 0,
        delivered: 0,
        walk: 0,
        found: 0,
        ended: 0,
        family: 0,
        _pad: 0,
        cgroup_id: 0,
        sent_before: 0,
        received_before: 0,
        spurious_before: 0,
        undone: 0,
        undo_marker: 0,
        retransmitted_before: 0,
        recoveries_undone: 0,
    }
}

#[inline(always)]
pub(crate) fn remember(sk: KernelPointer, state: &SocketState) {
    if SOCKETS.insert(sk, state, BPF_ANY).is_err() {
        emit::count(Counter::SocketsFull, 1);
    }
}

/// Its address may be another socket's from now on.
#[inline(always)]
pub(crate) fn forget(sk: KernelPointer) {
    // It fails when the socket is not in the map, which is as good.
    let _absent = SOCKETS.remove(sk);
}

/// Before 5.14 (MPTCP aside) the hook fires for DCCP and SCTP as well. `sk_protocol` is 16 bits wide since 5.6.
#[inline(always)]
pub(crate) fn is_tcp(sk: KernelPointer) -> Result<bool> {
    Ok(kread!(sk, SK_PROTOCOL)? == IPPROTO_TCP)
}

/// The port is that of `inet_sport`: as a listener closes, the kernel takes a port that it chose itself out of `skc_num`
/// before it calls the hook.
#[inline(always)]
pub(crate) fn listener_key(sk: KernelPointer) -> Result<ListenerKey> {
    let family = kread!(sk, SKC_FAMILY)?;
    let local_port = u16::from_be_bytes(kread!(sk, INET_SPORT)?);
    let mut key = ListenerKey { local: [0; 16], netns: socket::netns(sk)?, local_port, family };
    match family {
        socket::AF_INET => socket::set_ipv4(&mut key.local, kread!(sk, SKC_RCV_SADDR)?),
        socket::AF_INET6 => kread::read_into(sk, fields::SKC_V6_RCV_SADDR, &mut key.local)?,
        _ => return Err(Error::NotOurs),
    }
    Ok(key)
}

/// The listeners that a newborn socket can come from. It is cloned from its listener; older kernels (6.1) call the hook
/// before they give it its own address, newer ones (6.18) after. Where somebody listens at that very address, the kernel
/// prefers him to one who listens at any.
#[inline(always)]
pub(crate) fn find_listeners(sk: KernelPointer) -> Result<Option<*const Listeners>> {
    let mut key = listener_key(sk)?;
    let listeners = LISTENERS.get_ptr(key);
    if listeners.is_some() {
        return Ok(listeners);
    }
    key.local = [0; 16];
    Ok(LISTENERS.get_ptr(key))
}

/// With SO_REUSEPORT several processes may listen at one address, some of them since before this program ran, and nothing at
/// the birth of an accepted socket tells whose it is: then nobody's.
#[inline(always)]
pub(crate) fn add_listener(key: &ListenerKey, owner: &Owner, shared: bool) {
    let owner = if shared { &Owner::UNKNOWN } else { owner };
    if let Some(listeners) = LISTENERS.get_ptr_mut(key) {
        // SAFETY: a value of the map.
        let listeners = unsafe { &mut *listeners };
        emit::add32(&raw mut listeners.count, 1);
        if listeners.owner.tgid != owner.tgid {
            listeners.owner = Owner::UNKNOWN;
        }
        return;
    }
    if LISTENERS.insert(key, Listeners { owner: *owner, count: 1, _pad: 0 }, BPF_NOEXIST).is_err() {
        // Another CPU may have made the entry between the two: only with SO_REUSEPORT, so it is nobody's.
        match LISTENERS.get_ptr_mut(key) {
            // SAFETY: a value of the map.
            Some(listeners) => emit::add32(unsafe { &raw mut (*listeners).count }, 1),
            None => emit::count(Counter::ListenersFull, 1),
        }
    }
}

#[inline(always)]
pub(crate) fn remove_listener(key: &ListenerKey) -> Result<()> {
    let Some(listeners) = LISTENERS.get_ptr_mut(key) else { return Ok(()) };
    // SAFETY: as in `add_listener`.
    let listeners = unsafe { &mut *listeners };
    if listeners.count > 1 {
        emit::add32(&raw mut listeners.count, u32::MAX);
        return Ok(());
    }
    // It fails when somebody else has removed it, which is as good.
    let _absent = LISTENERS.remove(key);
    Ok(())
}
