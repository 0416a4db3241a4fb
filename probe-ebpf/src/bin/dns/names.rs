//! Answers that reach a socket, as they are: user space reads which addresses a name leads to, for events of tcp.
//!
//! Attached beside tcp, without the programs that pair questions with answers. So that not anybody gives names to addresses, an
//! answer counts only if it has the address and port of a server that the socket addressed: of a connected socket the kernel sees
//! to that, and what others address is noted. Ids are not compared.

use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr, map};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use probe_common::dns::{AddressedKey, HEADER, KIND_MESSAGE, MessageRecord};
use probe_common::wire::{FAMILY_IPV4, FAMILY_IPV6, RecordHeader};
use probe_ebpf::socket::words;
use probe_ebpf::{Error, Result, emit};

use super::address::{addressed, addressed_server, watched, watched_port};
use super::packet::{DnsHeader, OPCODE, Packet, RESPONSE, load, netns, source};
use super::{BPF_ANY, NEUTRAL, cookie, now};

/// RCODE of the flags (RFC 1035, 4.1.1); 0: no error.
const RCODE: u16 = 0x000f;

/// Whom sockets addressed that are not connected: several at once, as musl's resolver does. It forgets the longest unused, then a
/// name is not learned; and CPUs keep entries apart for themselves (128 each, LOCAL_FREE_TARGET of kernel/bpf/bpf_lru_list.c), so
/// user space makes it as large as there are CPUs.
#[map]
static ADDRESSED: LruHashMap<AddressedKey, u8> = LruHashMap::with_max_entries(1_024, 0);

/// `sendto(2)` and kin with an IPv4 address, UDP, in the process that calls it.
#[cgroup_sock_addr(sendmsg4)]
pub fn names_sendmsg4(ctx: SockAddrContext) -> i32 {
    note_addressed(&ctx, FAMILY_IPV4);
    NEUTRAL
}

/// `sendto(2)` and kin with an IPv6 address, UDP, in the process that calls it.
#[cgroup_sock_addr(sendmsg6)]
pub fn names_sendmsg6(ctx: SockAddrContext) -> i32 {
    note_addressed(&ctx, FAMILY_IPV6);
    NEUTRAL
}

#[inline(always)]
fn note_addressed(ctx: &SockAddrContext, family: u8) {
    let Ok(port) = watched_port(ctx.sock_addr) else { return };
    let mut key = AddressedKey { cookie: 0, server: [0; 16], port: u32::from(port), _pad: 0 };
    key.cookie = addressed(ctx.sock_addr, family, &mut key.server);
    // An LRU map makes room for itself.
    let _full = ADDRESSED.insert(key, 1, BPF_ANY);
}

/// Packets that reach a socket.
#[cgroup_skb(ingress)]
pub fn names_ingress(ctx: SkBuffContext) -> i32 {
    if let Err(error) = try_names(&ctx) {
        emit::give_up(&ctx, error);
    }
    NEUTRAL
}

fn try_names(ctx: &SkBuffContext) -> Result<()> {
    // Before anything else: most packets are none.
    let packet = Packet::of(ctx)?;
    if packet.is_tcp {
        return Err(Error::NotOurs);
    }
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    if !watched(settings, packet.source_port) {
        return Err(Error::NotOurs);
    }
    let mut header = DnsHeader([0; HEADER]);
    load(ctx, packet.message(), &mut header.0)?;
    if header.flags() & (RESPONSE | OPCODE | RCODE) != RESPONSE || header.answers() == 0 {
        return Err(Error::NotOurs);
    }
    if !was_addressed(ctx, &packet) {
        return Err(Error::NotOurs);
    }
    // Names belong to a namespace.
    let netns = netns(ctx);
    if netns == 0 {
        return Err(Error::NotOurs);
    }
    let Some(record) = emit::reserve::<MessageRecord>() else { return Ok(()) };
    record.header = RecordHeader::of::<MessageRecord>(KIND_MESSAGE, now());
    record.netns = netns;
    // A record must be handed over once there is one; without octets it says nothing.
    (_, record.len) = packet.copy_message(ctx, &mut record.octets);
    emit::submit(record);
    Ok(())
}

/// Whether this packet's socket has sent to where it comes from.
#[inline(always)]
fn was_addressed(ctx: &SkBuffContext, packet: &Packet) -> bool {
    let mut connected = [0; 16];
    let connected_port = addressed_server(ctx, None, &mut connected);
    let mut from = AddressedKey { cookie: 0, server: [0; 16], port: u32::from(packet.source_port), _pad: 0 };
    source(ctx, &mut from.server);
    if connected_port != 0 {
        return connected_port == packet.source_port && words(&connected) == words(&from.server);
    }
    from.cookie = cookie(ctx);
    ADDRESSED.get_ptr(from).is_some()
}
