//! Whose a socket is: noted when its process connects or listens, inherited from its listener when it is accepted.

use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use probe_common::fields::{self, KernelPointer};
use probe_common::loss::Counter;
use probe_common::tcp::{ListenerKey, Listeners, Socket, SocketState};
use probe_common::wire::{FAMILY_IPV4, Owner};
use probe_ebpf::{Error, Result, emit, kread, socket};

use crate::{BPF_ANY, BPF_NOEXIST, now};

/// include/uapi/linux/in.h
const IPPROTO_TCP: u16 = 6;

/// What is known of a socket (by its kernel address), from its connect, listen or birth until it is destroyed.
#[map]
pub(crate) static SOCKETS: HashMap<u64, SocketState> = HashMap::with_max_entries(32_768, 0);

/// Owner by listening address: accepted sockets are born with it.
#[map]
pub(crate) static LISTENERS: HashMap<ListenerKey, Listeners> = HashMap::with_max_entries(4_096, 0);

/// Says who owns it and how old it is, where that is known, and returns since when it has been so (0: unknown;
/// [`SocketState::since_ns`]).
#[inline(always)]
pub(crate) fn set_owner(socket: &mut Socket, sk: KernelPointer) -> u64 {
    let Some(state) = SOCKETS.get_ptr(sk) else { return 0 };
    // SAFETY: a value of the map, copied at once.
    let since_ns = unsafe {
        kread::copy(&raw const (*state).owner, &mut socket.owner);
        (*state).since_ns
    };
    socket.age = Socket::age_since(since_ns, now());
    since_ns
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

/// Words at the beginning of a `struct sock_common`, up to its addresses of IPv6.
const COMMON: usize = 11;

/// The port is that of `inet_sport`: as a listener closes, the kernel takes a port that it chose itself out of `skc_num`
/// before it calls the hook.
#[inline(always)]
pub(crate) fn listener_key(sk: KernelPointer) -> Result<ListenerKey> {
    let local_port = u16::from_be_bytes(kread!(sk, INET_SPORT)?);
    let mut room = kread::Room::uninit();
    key(kread::Stretch::read(&mut room, sk, fields::SKC_DADDR)?, local_port)
}

#[inline(always)]
fn key(common: kread::Stretch<'_, COMMON>, local_port: u16) -> Result<ListenerKey> {
    let family = common.get(fields::SKC_FAMILY);
    let mut key =
        ListenerKey { local: [0; 16], netns: common.get(fields::SKC_NET), local_port, family, _pad: 0 };
    match family {
        socket::AF_INET => socket::set_ipv4(&mut key.local, common.get(fields::SKC_RCV_SADDR)),
        socket::AF_INET6 => key.local = common.get(fields::SKC_V6_RCV_SADDR),
        _ => return Err(Error::NotOurs),
    }
    Ok(key)
}

/// Notes a newborn socket: its listeners' owner; and where it is counted, if that takes no more than a look at theirs.
#[inline(always)]
pub(crate) fn remember_newborn(sk: KernelPointer) -> Result<()> {
    let mut room = kread::Room::uninit();
    let common = kread::Stretch::read(&mut room, sk, fields::SKC_DADDR)?;
    let mut state = new_state(Owner::UNKNOWN, 0);
    if let Some(listeners) = find_listeners(common)? {
        // SAFETY: a value of the map; at worst it is being replaced by another of the same address.
        let listeners = unsafe { &*listeners };
        state.owner = listeners.owner;
        // Which of two families one of IPv6 has is not known yet. What is filtered out is not counted.
        if common.get(fields::SKC_FAMILY) == socket::AF_INET
            && listeners.cgroup != 0
            && listeners.cgroup == kread::read_or_zero(sk, fields::SK_CGROUP)
            && emit::settings().is_some_and(|settings| settings.filters == 0)
        {
            state.cgroup_id = listeners.cgroup_id;
            state.family = FAMILY_IPV4;
        }
    }
    remember(sk, &state);
    Ok(())
}

/// The listeners that a newborn socket can come from. It is cloned from its listener; older kernels (6.1) call the hook
/// before they give it its own address, newer ones (6.18) after. Where somebody listens at that very address, the kernel
/// prefers him to one who listens at any.
#[inline(always)]
fn find_listeners(common: kread::Stretch<'_, COMMON>) -> Result<Option<*const Listeners>> {
    let mut key = key(common, common.get(fields::SKC_NUM))?;
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
pub(crate) fn add_listener(sk: KernelPointer, key: &ListenerKey, owner: &Owner, shared: bool) {
    let owner = if shared { &Owner::UNKNOWN } else { owner };
    if let Some(listeners) = LISTENERS.get_ptr_mut(key) {
        // SAFETY: a value of the map.
        let listeners = unsafe { &mut *listeners };
        emit::add32(&raw mut listeners.count, 1);
        listeners.cgroup = 0;
        if listeners.owner.tgid != owner.tgid {
            listeners.owner = Owner::UNKNOWN;
        }
        return;
    }
    let listeners = Listeners {
        owner: *owner,
        count: 1,
        _pad: 0,
        cgroup: kread::read_or_zero(sk, fields::SK_CGROUP),
        cgroup_id: socket::known_cgroup_id(sk),
    };
    if LISTENERS.insert(key, listeners, BPF_NOEXIST).is_err() {
        // Another CPU may have made the entry between the two: only with SO_REUSEPORT, so it is nobody's.
        match LISTENERS.get_ptr_mut(key) {
            // SAFETY: a value of the map.
            Some(listeners) => unsafe {
                emit::add32(&raw mut (*listeners).count, 1);
                (*listeners).cgroup = 0;
            },
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
