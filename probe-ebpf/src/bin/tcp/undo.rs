//! Recoveries that TCP took back: what was sent again in them had arrived the first time.
//!
//! A recovery (fast, or after a timeout) begins with `undo_marker` set (`tcp_init_undo` of net/ipv4/tcp_input.c), before the
//! state changes. Where timestamps, F-RTO or D-SACKs show that nothing was lost, `tcp_undo_cwnd_reduction` clears it; an ordinary
//! end leaves it as it is. So one that had it at its beginning and has it no more at its end was taken back.
//!
//! Not looked at, because the marker says something else there: recoveries that begin without it (`tcp_simple_retransmit` of
//! path MTU discovery, timeouts while the window shrinks for congestion notified, CWR), and handshakes (`tcp_try_undo_spurious_syn`;
//! and some kernels take every timeout of a SYN back).

use probe_common::fields::{self, KernelPointer};
use probe_common::tcp::{ABSENT, SocketState};
use probe_ebpf::{Result, kread};

use crate::owners::SOCKETS;
use crate::{TCP_CA_LOSS, TCP_CA_RECOVERY, TCP_SYN_RECV, TCP_SYN_SENT};

/// Whether a recovery begins, goes on or ends where `icsk_ca_state` becomes `new`.
#[inline(always)]
pub(crate) fn is_of_recovery(sk: KernelPointer, new: u8) -> bool {
    new >= TCP_CA_RECOVERY
        || kread::read_bits(sk, fields::ICSK_CA_STATE).is_ok_and(|old| old >= TCP_CA_RECOVERY)
}

/// Notes the beginning of a recovery, and at its end whether it was taken back.
#[inline(always)]
pub(crate) fn changes(sk: KernelPointer, new: u8) -> Result<()> {
    let Some(state) = SOCKETS.get_ptr_mut(sk) else { return Ok(()) };
    let marker = kread!(sk, UNDO_MARKER)?;
    let retransmitted = kread!(sk, TOTAL_RETRANS)? as u16;
    // SAFETY: a value of the map; what happens to one socket happens under its lock.
    let state = unsafe { &mut *state };
    let begun = state.undo_marker;
    if new >= TCP_CA_RECOVERY {
        // The next timeout of the same, unless the kernel has begun anew because something was acknowledged in between.
        let goes_on = new == TCP_CA_LOSS && kread::read_bits(sk, fields::ICSK_CA_STATE)? == TCP_CA_LOSS;
        if !(goes_on && begun == marker) {
            let tcp_state = i32::from(kread!(sk, SKC_STATE)?);
            let in_handshake = tcp_state == TCP_SYN_SENT || tcp_state == TCP_SYN_RECV;
            state.undo_marker = if in_handshake { 0 } else { marker };
            state.retransmitted_before = retransmitted;
        }
        return Ok(());
    }
    state.undo_marker = 0;
    if begun != 0 && marker == 0 {
        // Of those that nobody has acknowledged yet, nothing is known: a timeout is taken back as soon as something else that
        // was sent before it has arrived (F-RTO, RFC 5682).
        let in_doubt = kread!(sk, RETRANS_OUT)?;
        let again = u32::from(retransmitted.wrapping_sub(state.retransmitted_before));
        state.undone = state.undone.wrapping_add(again.saturating_sub(in_doubt));
        state.recoveries_undone = state.recoveries_undone.saturating_add(1);
    }
    Ok(())
}

/// Segments that were sent again in vain, of a connection whose peer has reported so many.
#[inline(always)]
pub(crate) fn or_reported(state: *const SocketState, reported: u32) -> u32 {
    // SAFETY: a value of the map.
    let more = i64::from(unsafe { (*state).undone }) - i64::from(reported);
    // The greater of the two, without a branch: the verifier would follow all that comes after twice.
    reported + (more & !(more >> 63)) as u32
}

/// Recoveries that were taken back. Of connections older than the programs nobody knows.
#[inline(always)]
pub(crate) fn recoveries(state: *const SocketState) -> u32 {
    // SAFETY: a value of the map.
    unsafe { if (*state).found != 0 { ABSENT } else { u32::from((*state).recoveries_undone) } }
}
