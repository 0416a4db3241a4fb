//! Connections that end: what they carried.

use core::mem::MaybeUninit;

use probe_common::fields::{self, Field, KernelPointer};
use probe_common::settings::Settings;
use probe_common::tcp::{ABSENT, ABSENT_OCTETS, CloseRecord, KIND_CLOSE};
use probe_ebpf::{Result, emit, kread, socket};

use crate::owners::{SOCKETS, set_owner};
use crate::{TCP_CLOSE, TCP_ESTABLISHED, blank, header, now, passes, undo};

const TCP_FIN_WAIT1: u32 = 4;
const TCP_FIN_WAIT2: u32 = 5;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;
const ENDING: u32 =
    1 << TCP_FIN_WAIT1 | 1 << TCP_FIN_WAIT2 | 1 << TCP_CLOSE_WAIT | 1 << TCP_LAST_ACK | 1 << TCP_CLOSING;

/// States between the end of the handshake and that of the connection, include/net/tcp_states.h. (TIME_WAIT is no state of a full
/// socket: that has closed by then.)
#[inline(always)]
pub(crate) fn ends(old: i32, new: i32) -> bool {
    const MADE: u32 = ENDING | 1 << TCP_ESTABLISHED;
    new == TCP_CLOSE && (MADE >> (old as u32 & 31)) & 1 != 0
}

/// Whether a state is one of those in which a connection waits for its end: nothing is to be done when it comes there.
#[inline(always)]
pub(crate) fn is_on_its_way(new: i32) -> bool {
    (ENDING >> (new as u32 & 31)) & 1 != 0
}

/// Reports a connection that ends, where anybody wants to know.
#[inline(always)]
pub(crate) fn report(settings: &Settings, sk: KernelPointer) -> Result<()> {
    if settings.tcp_kinds & (1 << KIND_CLOSE) == 0 {
        return Ok(());
    }
    let mut socket = MaybeUninit::uninit();
    let socket = blank(&mut socket);
    socket::describe(sk, socket)?;
    // The hook comes before the change.
    socket.state = TCP_CLOSE as u8;
    let since_ns = set_owner(socket, sk);
    if !passes(settings, socket, sk)? {
        return Ok(());
    }
    let Some(record) = emit::reserve::<CloseRecord>() else { return Ok(()) };
    record.header = header::<CloseRecord>(KIND_CLOSE);
    kread::copy(socket, &mut record.socket);
    record.duration_ns = if since_ns == 0 { 0 } else { now().saturating_sub(since_ns) };
    // Both grow with each transmission, and the second with each but the first.
    record.bytes_sent = octets(sk, fields::BYTES_SENT);
    if record.bytes_sent != ABSENT_OCTETS {
        record.bytes_sent = match octets(sk, fields::BYTES_RETRANS) {
            ABSENT_OCTETS => ABSENT_OCTETS,
            again => record.bytes_sent.saturating_sub(again),
        };
    }
    record.bytes_received = received(sk);
    record.segments_sent = segments(sk, fields::SEGS_OUT);
    record.segments_received = segments(sk, fields::SEGS_IN);
    record.segments_retransmitted = segments(sk, fields::TOTAL_RETRANS);
    record.segments_spurious = segments(sk, fields::DSACK_DUPS);
    record.segments_out_of_order = segments(sk, fields::RCV_OOOPACK);
    record.srtt_us = kread::read_or_zero(sk, fields::SRTT_US) >> 3;
    record.recoveries_undone = ABSENT;
    if kread::present(fields::CONG_STATE)
        && let Some(state) = SOCKETS.get_ptr(sk)
    {
        if record.segments_spurious != ABSENT {
            record.segments_spurious = undo::or_reported(state, record.segments_spurious);
        }
        record.recoveries_undone = undo::recoveries(state);
    }
    emit::submit(record);
    Ok(())
}

#[inline(always)]
fn octets(sk: KernelPointer, field: Field<u64>) -> u64 {
    if kread::present(field) { kread::read_or_zero(sk, field) } else { ABSENT_OCTETS }
}

/// Octets of data received.
#[inline(always)]
fn received(sk: KernelPointer) -> u64 {
    /// `tcp_fin` of net/ipv4/tcp_input.c sets it, and nobody else of TCP's.
    const SOCK_DONE: u64 = 1 << 1;
    match (octets(sk, fields::BYTES_RECEIVED), octets(sk, fields::SKC_FLAGS)) {
        (ABSENT_OCTETS, _) | (_, ABSENT_OCTETS) => ABSENT_OCTETS,
        // Without the peer's FIN.
        (octets, flags) => octets - (flags & SOCK_DONE) / SOCK_DONE,
    }
}

#[inline(always)]
fn segments(sk: KernelPointer, field: Field<u32>) -> u32 {
    if kread::present(field) { kread::read_or_zero(sk, field) } else { ABSENT }
}
