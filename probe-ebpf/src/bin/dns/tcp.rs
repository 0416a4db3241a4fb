//! DNS over TCP (RFC 1035, 4.2.2): what the streams to and from servers carry goes up as it passes, in pieces of bounded size; user space
//! puts it together. Egress sees what is sent again, too, and ingress comes before TCP's own checks.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_skb_cgroup_id, bpf_skb_load_bytes};
use aya_ebpf::programs::SkBuffContext;
use probe_common::dns::{
    KIND_SEGMENT, ROLE_CLIENT, ROLE_SERVER, SEGMENT_FIN, SEGMENT_QUERY, SEGMENT_ROOM, SEGMENT_RST,
    SEGMENT_SERVER, SEGMENT_SYN, SegmentRecord,
};
use probe_common::settings::Settings;
use probe_common::wire::RecordHeader;
use probe_ebpf::{Error, Result, emit};

use super::address::{addressed_server, asker, own_port, set_owner};
use super::packet::{Packet, family, full_socket, len, load, netns, provably_1_to, skb};
use super::{cookie, now, passes};

/// Pieces of one segment (which may be a whole GSO packet of 64 KiB) that go up: 16 KiB.
const PIECES: u32 = 16;
/// Ports of sockets that have asked for none begin here, if nobody has set net.ipv4.ip_local_port_range otherwise.
const EPHEMERAL: u16 = 32_768;
/// Flags of TCP (RFC 9293, 3.1).
const FIN: u8 = 1 << 0;
const SYN: u8 = 1 << 1;
const RST: u8 = 1 << 2;
/// Octets of the header up to the flags.
const HEADER: usize = 14;
/// In [`piece`]'s `flags`, beside `SEGMENT_*`: no further piece of this segment goes up.
const LAST: u32 = 1 << 8;

/// A segment passes; `query`: to who is asked.
#[inline(always)]
pub(crate) fn segment(
    ctx: &SkBuffContext,
    settings: &Settings,
    packet: &Packet,
    role: u8,
    query: bool,
) -> Result<()> {
    let mut header = [0u8; HEADER];
    load(ctx, packet.transport, &mut header)?;
    let mut seq = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let mut at = packet.transport + u32::from(header[12] >> 4) * 4;
    let mut left = len(ctx).saturating_sub(at);
    let bits = header[13];
    if left == 0 && bits & (SYN | FIN | RST) == 0 {
        return Err(Error::NotOurs);
    }
    let cookie = cookie(ctx);
    let asker = asker(cookie);
    // A listening socket, or a request on one, has strangers' segments, and is no connection yet.
    if cookie == 0 || !is_connection(ctx) || !passes(ctx, settings, asker) {
        return Err(Error::NotOurs);
    }
    // A stranger's port may be a server's, too: who asks has connected, or did so before we came, from a port of no service.
    if role == ROLE_CLIENT && asker.is_none() && own_port(ctx) < EPHEMERAL {
        return Err(Error::NotOurs);
    }
    let mut flags = if query { u32::from(SEGMENT_QUERY) } else { 0 };
    flags |= if role == ROLE_SERVER { u32::from(SEGMENT_SERVER) } else { 0 };
    if bits & SYN != 0 {
        piece(skb(ctx), at, seq, flags | u32::from(SEGMENT_SYN) | LAST, 0);
        seq = seq.wrapping_add(1);
        if left == 0 {
            return Ok(());
        }
    }
    flags |= if bits & FIN != 0 { u32::from(SEGMENT_FIN) } else { 0 };
    flags |= if bits & RST != 0 { u32::from(SEGMENT_RST) } else { 0 };
    for number in 1..=PIECES {
        let last = if left <= SEGMENT_ROOM as u32 || number == PIECES { LAST } else { 0 };
        piece(skb(ctx), at, seq, flags | last, left);
        if last != 0 {
            break;
        }
        at += SEGMENT_ROOM as u32;
        seq = seq.wrapping_add(SEGMENT_ROOM as u32);
        left -= SEGMENT_ROOM as u32;
    }
    Ok(())
}

/// Whether a packet's socket is one of two ends, and not one that listens.
#[inline(always)]
fn is_connection(ctx: &SkBuffContext) -> bool {
    /// include/net/tcp_states.h
    const TCP_LISTEN: u32 = 10;
    let sk = full_socket(ctx);
    // SAFETY: a full socket.
    !sk.is_null() && unsafe { (&raw const (*sk).state).read_volatile() } != TCP_LISTEN
}

/// Hands one piece up: octets of the packet from `at` on, of which `left` are there. A function of its own, so that its code is there
/// once; it returns a plain number.
#[inline(never)]
fn piece(skb: *mut __sk_buff, at: u32, seq: u32, flags: u32, left: u32) -> u64 {
    let ctx = &SkBuffContext::new(skb);
    let Some(record) = emit::reserve::<SegmentRecord>() else { return 0 };
    record.header = RecordHeader::of::<SegmentRecord>(KIND_SEGMENT, now());
    record.cookie = cookie(ctx);
    // SAFETY: the context of the hook.
    record.cgroup_id = unsafe { bpf_skb_cgroup_id(skb) };
    set_owner(&mut record.owner, asker(record.cookie));
    record.port = addressed_server(ctx, None, &mut record.peer);
    record.family = family(ctx);
    record.netns = netns(ctx);
    record.seq = seq;
    record.flags = flags as u8;
    if flags & LAST == 0 {
        record.flags &= !(SEGMENT_FIN | SEGMENT_RST);
    }
    if left != 0 {
        let len = provably_1_to::<SEGMENT_ROOM>(left.min(SEGMENT_ROOM as u32));
        // SAFETY: the context of the hook, and room for a piece.
        let failed = unsafe { bpf_skb_load_bytes(ctx.as_ptr(), at, record.octets.as_mut_ptr().cast(), len) };
        if failed == 0 {
            record.len = len as u16;
        }
        if flags & LAST != 0 {
            record.missing = left - u32::from(record.len);
        }
    }
    emit::submit(record);
    1
}
