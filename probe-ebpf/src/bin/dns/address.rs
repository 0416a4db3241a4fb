//! Whom processes address, and who they are.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use probe_common::dns::Asker;
use probe_common::settings::Settings;
use probe_common::wire::{Address, FAMILY_IPV4, Owner};
use probe_ebpf::{Error, Result, emit, kread, socket, task};

use super::packet::{family, socket_ends};
use super::{BPF_ANY, cookie};

/// Who asks, by socket cookie; and who answers. It forgets the longest unused: then an owner is absent.
#[map]
static ASKERS: LruHashMap<u64, Asker> = LruHashMap::with_max_entries(8_192, 0);

const NOTED_SLOTS: u32 = 4_096;
/// The sockets that addressed a server just now without being connected, as [`mark`] has them, each in the slot that the last bits of
/// its port name: what follows from there goes to a server, wherever NAT sends it. Asked of every packet, and nearly always the port
/// alone says no, without a call of a helper.
#[map]
static NOTED: Array<u64> = Array::with_max_entries(NOTED_SLOTS, 0);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Connect,
    Send,
}

#[inline(always)]
pub(crate) fn note(ctx: &SockAddrContext, family: u8, call: Call) {
    if let Err(error) = try_note(ctx.sock_addr, family, call) {
        emit::give_up(ctx, error);
    }
}

#[inline(always)]
fn try_note(addr: *mut bpf_sock_addr, family: u8, call: Call) -> Result<()> {
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    let port = addressed_port(addr);
    if !watched(settings, port) {
        if call == Call::Send {
            let local_port = local_port(addr);
            forget(addr, local_port);
            if settings.dns_servers != 0 && watched(settings, local_port) {
                return note_server(addressing_cookie(addr));
            }
        }
        return Err(Error::NotOurs);
    }
    let mut asker = Asker { owner: task::owner_of_socket()?, server: [0; 16], port, family, _pad: [0; 5] };
    let cookie = addressed(addr, family, &mut asker.server);
    if call == Call::Send {
        let local_port = local_port(addr);
        if let Some(slot) = noted_slot(local_port) {
            // SAFETY: a word of a map value; a slot that another CPU takes at this moment costs one lookup behind NAT.
            unsafe { slot.write_volatile(mark(local_port, cookie)) };
        }
    }
    // An LRU map makes room for itself.
    let _full = ASKERS.insert(cookie, asker, BPF_ANY);
    Ok(())
}

/// A server answers: from now on its socket has an owner.
#[inline(always)]
fn note_server(cookie: u64) -> Result<()> {
    if let Some(known) = ASKERS.get_ptr(cookie) {
        // SAFETY: a value of the map.
        let tgid = unsafe { (*known).owner.tgid };
        // SAFETY: the helper has no requirement.
        if u64::from(tgid) == unsafe { aya_ebpf::helpers::generated::bpf_get_current_pid_tgid() } >> 32 {
            return Ok(());
        }
    }
    let asker = Asker { owner: task::owner_of_socket()?, server: [0; 16], port: 0, family: 0, _pad: [0; 5] };
    let _full = ASKERS.insert(cookie, asker, BPF_ANY);
    Ok(())
}

/// A socket's port and the last 48 bits of its cookie, of which a host does not see the others.
#[inline(always)]
fn mark(port: u16, cookie: u64) -> u64 {
    u64::from(port) << 48 | (cookie & ((1 << 48) - 1))
}

#[inline(always)]
fn noted_slot(port: u16) -> Option<*mut u64> {
    NOTED.get_ptr_mut(u32::from(port) % NOTED_SLOTS)
}

/// A socket addresses something else now. It has a port already: a send binds before it comes to the hook.
#[inline(always)]
fn forget(addr: *mut bpf_sock_addr, local_port: u16) {
    let Some(slot) = noted_slot(local_port) else { return };
    // SAFETY: a word of a map value.
    unsafe {
        let noted = slot.read_volatile();
        if noted >> 48 == u64::from(local_port) && noted == mark(local_port, addressing_cookie(addr)) {
            slot.write_volatile(0);
        }
    }
}

/// Whether what a socket sends now goes to a server.
#[inline(always)]
pub(crate) fn noted(ctx: &SkBuffContext) -> bool {
    let port = own_port(ctx);
    let Some(slot) = noted_slot(port) else { return false };
    // SAFETY: a word of a map value.
    let noted = unsafe { slot.read_volatile() };
    port != 0 && noted >> 48 == u64::from(port) && noted == mark(port, cookie(ctx))
}

/// Who has the socket of a packet, and whom it addressed.
#[inline(always)]
pub(crate) fn asker(cookie: u64) -> Option<*const Asker> {
    ASKERS.get_ptr(cookie)
}

#[inline(always)]
pub(crate) fn set_owner(owner: &mut Owner, asker: Option<*const Asker>) {
    if let Some(asker) = asker {
        // SAFETY: a value of the map, copied at once.
        kread::copy(unsafe { &raw const (*asker).owner }, owner);
    }
}

/// The port that a process addresses.
#[inline(always)]
fn addressed_port(addr: *mut bpf_sock_addr) -> u16 {
    // SAFETY: the context of this hook; this member may be read.
    u16::from_be(unsafe { (*addr).user_port } as u16)
}

/// The port that a process addresses, if DNS is looked for there.
#[inline(always)]
pub(crate) fn watched_port(addr: *mut bpf_sock_addr) -> Result<u16> {
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    let port = addressed_port(addr);
    if watched(settings, port) { Ok(port) } else { Err(Error::NotOurs) }
}

/// The port of the socket that addresses somebody; 0: none so far.
#[inline(always)]
fn local_port(addr: *mut bpf_sock_addr) -> u16 {
    // SAFETY: the context of this hook; its socket is a full one.
    unsafe {
        let sk = (*addr).__bindgen_anon_1.sk;
        if sk.is_null() { 0 } else { (&raw const (*sk).src_port).read_volatile() as u16 }
    }
}

/// Fills in the address that a process addresses. Returns the cookie of its socket.
#[inline(always)]
pub(crate) fn addressed(addr: *mut bpf_sock_addr, family: u8, server: &mut Address) -> u64 {
    if family == FAMILY_IPV4 {
        // SAFETY: the context of this hook; this member may be read.
        let ip = unsafe { (*addr).user_ip4 };
        socket::set_ipv4(server, ip.to_ne_bytes());
    } else {
        // SAFETY: as above; word by word, because the verifier allows no other access.
        let ip = unsafe {
            [
                (&raw const (*addr).user_ip6[0]).read_volatile(),
                (&raw const (*addr).user_ip6[1]).read_volatile(),
                (&raw const (*addr).user_ip6[2]).read_volatile(),
                (&raw const (*addr).user_ip6[3]).read_volatile(),
            ]
        };
        set_ipv6(server, ip);
    }
    addressing_cookie(addr)
}

/// Cookie of the socket that addresses somebody.
#[inline(always)]
fn addressing_cookie(addr: *mut bpf_sock_addr) -> u64 {
    // SAFETY: the context is a socket address, from which the helper finds the socket.
    unsafe { bpf_get_socket_cookie(addr.cast()) }
}

/// Whether DNS is looked for on a port.
#[inline(always)]
pub(crate) fn watched(settings: &Settings, port: u16) -> bool {
    let [a, b, c, d] = settings.dns_ports;
    port != 0 && (port == a || port == b || port == c || port == d)
}

/// The port that the socket of a packet is connected to; 0: none.
#[inline(always)]
pub(crate) fn connected_port(ctx: &SkBuffContext) -> u16 {
    let sk = socket_ends(ctx);
    if sk.is_null() { 0 } else { destination_port(sk) }
}

/// The port of a packet's socket; 0: none.
#[inline(always)]
pub(crate) fn own_port(ctx: &SkBuffContext) -> u16 {
    let sk = socket_ends(ctx);
    // SAFETY: the ends of a socket; host byte order (include/uapi/linux/bpf.h).
    if sk.is_null() { 0 } else { unsafe { (&raw const (*sk).src_port).read_volatile() as u16 } }
}

/// The server as the process addressed it: a connected socket knows it; else the send that this packet comes from has
/// just noted it; else it stays zero. Returns the port.
#[inline(always)]
pub(crate) fn addressed_server(
    ctx: &SkBuffContext,
    asker: Option<*const Asker>,
    server: &mut Address,
) -> u16 {
    let sk = socket_ends(ctx);
    if !sk.is_null() {
        let port = destination_port(sk);
        if port != 0 {
            if family(ctx) == FAMILY_IPV4 {
                // SAFETY: the ends of a socket.
                let ip = unsafe { (*sk).dst_ip4 };
                socket::set_ipv4(server, ip.to_ne_bytes());
            } else {
                // SAFETY: the ends of a socket; word by word, because the verifier allows no other access.
                let ip = unsafe {
                    [
                        (&raw const (*sk).dst_ip6[0]).read_volatile(),
                        (&raw const (*sk).dst_ip6[1]).read_volatile(),
                        (&raw const (*sk).dst_ip6[2]).read_volatile(),
                        (&raw const (*sk).dst_ip6[3]).read_volatile(),
                    ]
                };
                set_ipv6(server, ip);
            }
            return port;
        }
    }
    if let Some(asker) = asker {
        // SAFETY: a value of the map, copied at once.
        let (addressed, port, family) = unsafe { ((*asker).server, (*asker).port, (*asker).family) };
        if port != 0 && family == self::family(ctx) {
            *server = addressed;
            return port;
        }
    }
    0
}

/// `bpf_sock.dst_port` is two bytes in network byte order (include/uapi/linux/bpf.h), wherever they lie in its word.
#[inline(always)]
fn destination_port(sk: *const bpf_sock) -> u16 {
    // SAFETY: the ends of a socket; the verifier allows a two-byte load there.
    u16::from_be(unsafe { (&raw const (*sk).dst_port).cast::<u16>().read_volatile() })
}

#[inline(always)]
fn set_ipv6(address: &mut Address, words: [u32; 4]) {
    let target = (&raw mut *address).cast::<u32>();
    // SAFETY: 16 bytes.
    unsafe {
        target.write_unaligned(words[0]);
        target.add(1).write_unaligned(words[1]);
        target.add(2).write_unaligned(words[2]);
        target.add(3).write_unaligned(words[3]);
    }
}
