//! dns: lookups over UDP, paired in the kernel, and what TCP connections to DNS servers carry. cgroup programs at the root of cgroup v2:
//! they see the packets of every socket of the host, in every network namespace, once a socket.
//!
//! Egress sees a packet after NAT rewrote its destination, ingress after NAT has been undone. So question and answer are
//! paired by socket, transaction id, question, and the server *as the process addressed it*: of a connected socket the
//! socket knows it, else the connect and sendmsg hooks (in the asking process) noted it just before.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_skb_ancestor_cgroup_id};
use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use probe_common::dns::{Asker, ROLE_CLIENT, ROLE_SERVER};
use probe_common::settings::{FILTER_CGROUP, FILTER_COMM, FILTER_TGID, Settings};
use probe_common::wire::{FAMILY_IPV4, FAMILY_IPV6};
use probe_ebpf::{Error, Result, emit, filter};

use self::address::{Call, connected_port, note, noted, own_port, watched};
use self::packet::{OPCODE, Packet, RESPONSE, skb};

#[path = "dns/address.rs"]
mod address;
#[path = "dns/names.rs"]
mod names;
#[path = "dns/packet.rs"]
mod packet;
#[path = "dns/tcp.rs"]
mod tcp;
#[path = "dns/udp.rs"]
mod udp;

/// **1**: let it pass. 0 from a cgroup program drops the user's packet or refuses the user's call.
const NEUTRAL: i32 = 1;

const BPF_ANY: u64 = 0;

/// Packets that leave a socket.
#[cgroup_skb(egress)]
pub fn dns_egress(ctx: SkBuffContext) -> i32 {
    if let Err(error) = try_egress(&ctx) {
        emit::give_up(&ctx, error);
    }
    NEUTRAL
}

/// Packets that reach a socket.
#[cgroup_skb(ingress)]
pub fn dns_ingress(ctx: SkBuffContext) -> i32 {
    if let Err(error) = try_ingress(&ctx) {
        emit::give_up(&ctx, error);
    }
    NEUTRAL
}

/// `connect(2)` to IPv4, in the process that calls it.
#[cgroup_sock_addr(connect4)]
pub fn dns_connect4(ctx: SockAddrContext) -> i32 {
    note(&ctx, FAMILY_IPV4, Call::Connect);
    NEUTRAL
}

/// `connect(2)` to IPv6, in the process that calls it.
#[cgroup_sock_addr(connect6)]
pub fn dns_connect6(ctx: SockAddrContext) -> i32 {
    note(&ctx, FAMILY_IPV6, Call::Connect);
    NEUTRAL
}

/// `sendto(2)` and kin with an IPv4 address, UDP, in the process that calls it.
#[cgroup_sock_addr(sendmsg4)]
pub fn dns_sendmsg4(ctx: SockAddrContext) -> i32 {
    note(&ctx, FAMILY_IPV4, Call::Send);
    NEUTRAL
}

/// `sendto(2)` and kin with an IPv6 address, UDP, in the process that calls it.
#[cgroup_sock_addr(sendmsg6)]
pub fn dns_sendmsg6(ctx: SockAddrContext) -> i32 {
    note(&ctx, FAMILY_IPV6, Call::Send);
    NEUTRAL
}

fn try_egress(ctx: &SkBuffContext) -> Result<()> {
    let packet = Packet::of(ctx)?;
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    let to_server = goes_to_server(ctx, settings, &packet);
    let from_server = is_server(ctx, settings);
    if !to_server && !from_server {
        return Err(Error::NotOurs);
    }
    if packet.is_tcp {
        let role = if to_server { ROLE_CLIENT } else { ROLE_SERVER };
        return tcp::segment(ctx, settings, &packet, role, to_server);
    }
    let header = packet.dns_header(ctx)?;
    match header.flags() & (RESPONSE | OPCODE) {
        0 if to_server => udp::asked(ctx, settings, &packet, &header, ROLE_CLIENT),
        RESPONSE if from_server => udp::answered(ctx, settings, &packet, &header, ROLE_SERVER),
        _ => Err(Error::NotOurs),
    }
}

fn try_ingress(ctx: &SkBuffContext) -> Result<()> {
    let packet = Packet::of(ctx)?;
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    let from_server = watched(settings, packet.source_port);
    let to_server = is_server(ctx, settings);
    if !to_server && !from_server {
        return Err(Error::NotOurs);
    }
    if packet.is_tcp {
        let role = if from_server { ROLE_CLIENT } else { ROLE_SERVER };
        return tcp::segment(ctx, settings, &packet, role, !from_server);
    }
    let header = packet.dns_header(ctx)?;
    match header.flags() & (RESPONSE | OPCODE) {
        RESPONSE if from_server => udp::answered(ctx, settings, &packet, &header, ROLE_CLIENT),
        0 if to_server => udp::asked(ctx, settings, &packet, &header, ROLE_SERVER),
        _ => Err(Error::NotOurs),
    }
}

/// Whether a packet goes to a server, as the process addressed it: NAT may have rewritten the port.
#[inline(always)]
fn goes_to_server(ctx: &SkBuffContext, settings: &Settings, packet: &Packet) -> bool {
    let connected = connected_port(ctx);
    if connected != 0 && watched(settings, connected) {
        return true;
    }
    if packet.is_tcp {
        return false;
    }
    let there = watched(settings, packet.destination_port);
    // A connected socket may send elsewhere; what is not connected says so each time, or was there before us.
    if connected == 0 { there || noted(ctx) } else { there && noted(ctx) }
}

/// Whether a packet is one of a server's own socket, and that is asked for.
#[inline(always)]
fn is_server(ctx: &SkBuffContext, settings: &Settings) -> bool {
    settings.dns_servers != 0 && watched(settings, own_port(ctx))
}

/// Whether the filter lets a packet of this owner through.
#[inline(always)]
fn passes(ctx: &SkBuffContext, settings: &Settings, asker: Option<*const Asker>) -> bool {
    if settings.filters & (FILTER_TGID | FILTER_COMM | FILTER_CGROUP) == 0 {
        return true;
    }
    if settings.filters & FILTER_CGROUP != 0 {
        // SAFETY: the context of this hook; 0 where the level does not exist.
        let ancestor = unsafe { bpf_skb_ancestor_cgroup_id(skb(ctx), settings.cgroup_level as i32) };
        if ancestor != settings.cgroup_id {
            return false;
        }
    }
    match asker {
        // SAFETY: a value of the map.
        Some(asker) => filter::owner(settings, unsafe { &(*asker).owner }),
        None => settings.filters & (FILTER_TGID | FILTER_COMM) == 0,
    }
}

/// Cookie of a packet's socket; 0: it has none.
#[inline(always)]
fn cookie(ctx: &SkBuffContext) -> u64 {
    // SAFETY: the context of this hook.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no requirement.
    unsafe { bpf_ktime_get_ns() }
}
