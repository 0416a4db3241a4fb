//! tcp: retransmits, resets, connection outcomes. Raw tracepoints only.
//!
//! Owners: the hooks run in softirq or timers, where the current task is a stranger. So the socket's owner is noted
//! when a process connects or listens (those run in the process), and looked up by the socket's address ever after.
//!
//! From Linux 7.0 on a program can lose its CPU, and the kernel skips every other run of it there meanwhile (see syscalls).
//! There each has a backup at the same hook, which acts where the first was skipped: [`HANDLED`] tells. What happens to one
//! socket happens under its lock, so its address names what is being dealt with. perf's tracepoints would not do: the kernel skips
//! those in a softirq that interrupts any program of perf's.
#![no_std]
#![no_main]

use core::mem::MaybeUninit;
use core::ptr::{addr_of, read_volatile};

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::{LruHashMap, PerCpuArray, PerCpuHashMap};
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::debug;
use probe_common::fields::{self, KernelPointer};
use probe_common::hist::{self, BUCKETS};
use probe_common::loss::Counter;
use probe_common::settings::{FILTER_CGROUP, Settings};
use probe_common::tcp::{
    ABSENT, Cause, ConnectRecord, Durations, Home, KIND_CONNECT, KIND_RESET, KIND_RETRANSMIT, RESET_RECEIVED,
    RESET_SENT, ROLE_CLIENT, ROLE_SERVER, ResetRecord, RetransmitRecord, Socket, SocketState,
    TOTAL_CONNECTIONS, TOTAL_RESETS, TOTAL_RETRANSMITS, TotalKey,
};
use probe_common::wire::RecordHeader;
use probe_ebpf::{Error, Result, emit, filter, kread, socket, task};

#[path = "tcp/close.rs"]
mod close;
#[path = "tcp/older.rs"]
mod older;
#[path = "tcp/owners.rs"]
mod owners;
#[path = "tcp/segments.rs"]
mod segments;
#[path = "tcp/undo.rs"]
mod undo;

use owners::{
    SOCKETS, add_listener, forget, is_tcp, listener_key, new_state, remember, remember_newborn,
    remove_listener, set_owner,
};

/// Raw tracepoints have no verdict; 0 is what the kernel expects.
const NEUTRAL: i32 = 0;

const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;

/// States, include/net/tcp_states.h.
const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_SENT: i32 = 2;
const TCP_SYN_RECV: i32 = 3;
const TCP_CLOSE: i32 = 7;
const TCP_LISTEN: i32 = 10;
/// `enum tcp_ca_state`, include/uapi/linux/tcp.h.
const TCP_CA_RECOVERY: u8 = 3;
const TCP_CA_LOSS: u8 = 4;
/// include/net/inet_connection_sock.h
const ICSK_TIME_LOSS_PROBE: u8 = 5;

/// Exact totals; user space reads them as differences.
#[map]
static TOTALS: PerCpuHashMap<TotalKey, u64> = PerCpuHashMap::with_max_entries(8_192, 0);

/// Handshake durations by cgroup id. A connection that is counted here is not in [`TOTALS`].
#[map]
static HANDSHAKES: PerCpuHashMap<u64, Durations> = PerCpuHashMap::with_max_entries(512, 0);

/// Zeros to insert: 456 bytes do not fit on the stack beside the rest.
#[map]
static NO_DURATIONS: PerCpuArray<Durations> = PerCpuArray::with_max_entries(1, 0);

/// What a first program has dealt with and its backup has not come to yet, as [`token`]s. One that its backup never comes to,
/// because that is skipped, is forgotten in time: hence LRU.
#[map]
static HANDLED: LruHashMap<u64, u8> = LruHashMap::with_max_entries(16_384, 0);

/// Whether there are backups. Set by user space before loading.
#[unsafe(no_mangle)]
static BACKED: u8 = 0;

/// Where something happened. In the low bits of an address, which are zero.
#[derive(Clone, Copy)]
enum Hook {
    Retransmit = 1,
    RetransmitSynack,
    SendReset,
    ReceiveReset,
    SetState,
    Destroy,
    CongState,
}

/// Something that happens to the object at an address.
#[inline(always)]
fn token(hook: Hook, address: KernelPointer) -> u64 {
    address | hook as u64
}

#[inline(always)]
fn first(ctx: &RawTracePointContext, hook: Hook, address: KernelPointer, result: Result<()>) -> i32 {
    if let Err(error) = result {
        emit::give_up(ctx, error);
    }
    // SAFETY: volatile, because the compiler sees only the zero that user space overwrites.
    if unsafe { read_volatile(addr_of!(BACKED)) } != 0 {
        // It always has room: the kernel takes an older one out.
        let _replaced = HANDLED.insert(token(hook, address), 1, BPF_ANY);
    }
    NEUTRAL
}

#[inline(always)]
fn backup(
    ctx: &RawTracePointContext,
    hook: Hook,
    address: KernelPointer,
    work: impl FnOnce() -> Result<()>,
) -> i32 {
    if HANDLED.remove(token(hook, address)).is_ok() {
        return NEUTRAL;
    }
    emit::count(Counter::MadeUp, 1);
    if let Err(error) = work() {
        emit::give_up(ctx, error);
    }
    NEUTRAL
}

/// `tcp_retransmit_skb(const struct sock *sk, const struct sk_buff *skb)`; from about 6.17 also `int err`, and then
/// called for failed transmissions too. Softirq, timer or process context.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn tcp_retransmit_skb(ctx: RawTracePointContext) -> i32 {
    first(&ctx, Hook::Retransmit, ctx.arg(0), try_retransmit(&ctx))
}

/// [`tcp_retransmit_skb`], where that was skipped.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn retransmit_skb_backup(ctx: RawTracePointContext) -> i32 {
    backup(&ctx, Hook::Retransmit, ctx.arg(0), || try_retransmit(&ctx))
}

fn try_retransmit(ctx: &RawTracePointContext) -> Result<()> {
    let (sk, skb): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    if kread::present(fields::RETRANSMIT_ERR) && ctx.arg::<i32>(2) != 0 {
        // Not sent, hence in no count of the kernel but TCPRetransFail.
        return Err(Error::NotOurs);
    }
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    let mut socket = MaybeUninit::uninit();
    let socket = blank(&mut socket);
    socket::describe(sk, socket)?;
    let segments = u32::from(kread::read_at::<u16>(
        kread::address(skb, fields::SKB_CB)? + kread::offset(fields::TCP_SKB_CB_GSO_SEGS),
    )?);
    let cause = cause(sk, i32::from(socket.state))?;
    set_owner(socket, sk);
    if !passes(settings, socket, sk)? {
        return Ok(());
    }
    total(&home_of(socket), TOTAL_RETRANSMITS, cause as u8, 0, u64::from(segments));
    if settings.tcp_kinds & (1 << KIND_RETRANSMIT) != 0 {
        let Some(record) = emit::reserve::<RetransmitRecord>() else { return Ok(()) };
        record.header = header::<RetransmitRecord>(KIND_RETRANSMIT);
        kread::copy(socket, &mut record.socket);
        record.segments = segments;
        record.srtt_us = kread!(sk, SRTT_US).map_or(ABSENT, |eighths| eighths >> 3);
        record.cwnd = kread!(sk, SND_CWND).unwrap_or(ABSENT);
        record.unacked = kread!(sk, PACKETS_OUT).unwrap_or(ABSENT);
        record.cause = cause as u8;
        emit::submit(record);
    }
    Ok(())
}

/// Why this socket sends old segments again. The order matters: a loss probe timer is often armed during recovery.
#[inline(always)]
fn cause(sk: KernelPointer, state: i32) -> Result<Cause> {
    let pending = kread::read_bits(sk, fields::ICSK_PENDING)?;
    Ok(match kread::read_bits(sk, fields::ICSK_CA_STATE)? {
        _ if state == TCP_SYN_SENT => Cause::Syn,
        TCP_CA_LOSS if pending == 0 => Cause::Timeout,
        TCP_CA_LOSS => Cause::SlowStart,
        TCP_CA_RECOVERY => Cause::Fast,
        _ if pending == ICSK_TIME_LOSS_PROBE => Cause::TailLossProbe,
        _ => Cause::Fast,
    })
}

/// `tcp_retransmit_synack(const struct sock *sk, const struct request_sock *req)`: `sk` is the listener. Called after
/// the kernel counted the segment. Timer context, or the receive path when a SYN came again.
#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
pub fn tcp_retransmit_synack(ctx: RawTracePointContext) -> i32 {
    // The request: a listener has many.
    first(&ctx, Hook::RetransmitSynack, ctx.arg(1), try_retransmit_synack(&ctx))
}

/// [`tcp_retransmit_synack`], where that was skipped.
#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
pub fn retransmit_synack_backup(ctx: RawTracePointContext) -> i32 {
    backup(&ctx, Hook::RetransmitSynack, ctx.arg(1), || try_retransmit_synack(&ctx))
}

fn try_retransmit_synack(ctx: &RawTracePointContext) -> Result<()> {
    let (listener, request): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    let mut socket = MaybeUninit::uninit();
    let socket = blank(&mut socket);
    socket::describe_request(listener, request, socket)?;
    set_owner(socket, listener);
    if !passes(settings, socket, listener)? {
        return Ok(());
    }
    total(&home_of(socket), TOTAL_RETRANSMITS, Cause::SynAck as u8, 0, 1);
    if settings.tcp_kinds & (1 << KIND_RETRANSMIT) != 0 {
        let Some(record) = emit::reserve::<RetransmitRecord>() else { return Ok(()) };
        record.header = header::<RetransmitRecord>(KIND_RETRANSMIT);
        kread::copy(socket, &mut record.socket);
        record.segments = 1;
        record.srtt_us = ABSENT;
        record.cwnd = ABSENT;
        record.unacked = ABSENT;
        record.cause = Cause::SynAck as u8;
        emit::submit(record);
    }
    Ok(())
}

/// `tcp_send_reset(const struct sock *sk, const struct sk_buff *skb)`; from about 6.10 also `enum sk_rst_reason`.
/// `sk` is null for a packet that no socket wanted.
#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn tcp_send_reset(ctx: RawTracePointContext) -> i32 {
    // The packet: there may be no socket, and a listener has many.
    first(&ctx, Hook::SendReset, ctx.arg(1), try_send_reset(&ctx))
}

/// [`tcp_send_reset`], where that was skipped.
#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn send_reset_backup(ctx: RawTracePointContext) -> i32 {
    backup(&ctx, Hook::SendReset, ctx.arg(1), || try_send_reset(&ctx))
}

#[inline(always)]
fn try_send_reset(ctx: &RawTracePointContext) -> Result<()> {
    let reason = if kread::present(fields::SEND_RESET_REASON) { ctx.arg::<u32>(2) } else { ABSENT };
    try_reset(ctx.arg(0), RESET_SENT, reason)
}

/// `tcp_receive_reset(struct sock *sk)`, in the receive path.
#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn tcp_receive_reset(ctx: RawTracePointContext) -> i32 {
    first(&ctx, Hook::ReceiveReset, ctx.arg(0), try_reset(ctx.arg(0), RESET_RECEIVED, ABSENT))
}

/// [`tcp_receive_reset`], where that was skipped.
#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn receive_reset_backup(ctx: RawTracePointContext) -> i32 {
    backup(&ctx, Hook::ReceiveReset, ctx.arg(0), || try_reset(ctx.arg(0), RESET_RECEIVED, ABSENT))
}

fn try_reset(sk: KernelPointer, direction: u8, reason: u32) -> Result<()> {
    if sk == 0 {
        return Err(Error::NotOurs);
    }
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    // TIME_WAIT and request sockets are smaller: only what `sock_common` holds may be read of them.
    let state = kread!(sk, SKC_STATE)?;
    if state == socket::TCP_TIME_WAIT || state == socket::TCP_NEW_SYN_RECV {
        return Err(Error::NotOurs);
    }
    let mut socket = MaybeUninit::uninit();
    let socket = blank(&mut socket);
    socket::describe(sk, socket)?;
    set_owner(socket, sk);
    if !passes(settings, socket, sk)? {
        return Ok(());
    }
    total(&home_of(socket), TOTAL_RESETS, direction, 0, 1);
    if settings.tcp_kinds & (1 << KIND_RESET) != 0 {
        let Some(record) = emit::reserve::<ResetRecord>() else { return Ok(()) };
        record.header = header::<ResetRecord>(KIND_RESET);
        kread::copy(socket, &mut record.socket);
        record.reason = reason;
        record.direction = direction;
        emit::submit(record);
    }
    Ok(())
}

/// `inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`. CLOSE → SYN_SENT and
/// → LISTEN run in the process that owns the socket; what follows may run anywhere.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn inet_sock_set_state(ctx: RawTracePointContext) -> i32 {
    first(&ctx, Hook::SetState, ctx.arg(0), try_set_state(&ctx))
}

/// [`inet_sock_set_state`], where that was skipped.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn set_state_backup(ctx: RawTracePointContext) -> i32 {
    backup(&ctx, Hook::SetState, ctx.arg(0), || try_set_state(&ctx))
}

#[inline(always)]
fn try_set_state(ctx: &RawTracePointContext) -> Result<()> {
    let (sk, old, new): (u64, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    // Half of all: before anything is read.
    if close::is_on_its_way(new) {
        return Err(Error::NotOurs);
    }
    let state = if new == TCP_ESTABLISHED || (new == TCP_CLOSE && old != TCP_LISTEN) {
        SOCKETS.get_ptr_mut(sk)
    } else {
        None
    };
    // Those that are known are TCP's.
    if state.is_none() && !is_tcp(sk)? {
        return Err(Error::NotOurs);
    }
    if let (Some(state), TCP_CLOSE) = (state, new) {
        // What is filtered out is not counted.
        let _not_counted = segments::account(sk, state);
    }
    let (role, errno) = match (old, new) {
        (TCP_CLOSE, TCP_SYN_SENT) => {
            remember(sk, &new_state(task::owner_of_socket()?, now()));
            return Ok(());
        }
        (TCP_CLOSE, TCP_LISTEN) => {
            let state = new_state(task::owner_of_socket()?, 0);
            debug!(ctx, "process {} listens", state.owner.tgid);
            remember(sk, &state);
            let key = listener_key(sk)?;
            // Whoever listens without having bound is given a port after this hook; its connections find no owner.
            if key.local_port != 0 {
                let shared = kread::read_bits(sk, fields::SKC_REUSEPORT)? != 0;
                add_listener(sk, &key, &state.owner, shared);
            }
            return Ok(());
        }
        (TCP_LISTEN, TCP_CLOSE) => return remove_listener(&listener_key(sk)?),
        (TCP_LISTEN, TCP_SYN_RECV) => return remember_newborn(sk),
        (TCP_SYN_SENT, TCP_ESTABLISHED) => (ROLE_CLIENT, 0),
        (TCP_SYN_RECV, TCP_ESTABLISHED) => (ROLE_SERVER, 0),
        (TCP_SYN_SENT, TCP_CLOSE) => match kread!(sk, SK_ERR)? {
            // Closed by its own process: not a failure. (Or it failed before a segment was sent, for want of a port or a
            // route: connect(2) alone says so, and nothing is seen of it here.)
            0 => return Err(Error::NotOurs),
            errno => (ROLE_CLIENT, errno as u32),
        },
        _ if close::ends(old, new) => return close::report(emit::settings().ok_or(Error::NotOurs)?, sk),
        _ => return Err(Error::NotOurs),
    };
    came_out(sk, state, role, errno)
}

/// `tcp_destroy_sock(struct sock *sk)`: its address may be another socket's from now on.
#[raw_tracepoint(tracepoint = "tcp_destroy_sock")]
pub fn tcp_destroy_sock(ctx: RawTracePointContext) -> i32 {
    let sk = ctx.arg(0);
    first(&ctx, Hook::Destroy, sk, try_destroy(sk))
}

/// [`tcp_destroy_sock`], where that was skipped.
#[raw_tracepoint(tracepoint = "tcp_destroy_sock")]
pub fn destroy_sock_backup(ctx: RawTracePointContext) -> i32 {
    let sk = ctx.arg(0);
    backup(&ctx, Hook::Destroy, sk, || try_destroy(sk))
}

#[inline(always)]
fn try_destroy(sk: KernelPointer) -> Result<()> {
    if let Some(state) = SOCKETS.get_ptr_mut(sk) {
        // It is counted already, unless the program that saw its end was skipped.
        let _not_counted = segments::account(sk, state);
        forget(sk);
    }
    Ok(())
}

/// `tcp_cong_state_set(struct sock *sk, const u8 ca_state)`, from 5.19 on: before `icsk_ca_state` becomes that. Also for each
/// socket that is accepted. Softirq, timer or process context.
#[raw_tracepoint(tracepoint = "tcp_cong_state_set")]
pub fn tcp_cong_state_set(ctx: RawTracePointContext) -> i32 {
    let (sk, new) = (ctx.arg(0), ctx.arg(1));
    // Before anything is looked up. The backup comes to the same.
    if !undo::is_of_recovery(sk, new) {
        return NEUTRAL;
    }
    first(&ctx, Hook::CongState, sk, undo::changes(sk, new))
}

/// [`tcp_cong_state_set`], where that was skipped.
#[raw_tracepoint(tracepoint = "tcp_cong_state_set")]
pub fn cong_state_set_backup(ctx: RawTracePointContext) -> i32 {
    let (sk, new) = (ctx.arg(0), ctx.arg(1));
    if !undo::is_of_recovery(sk, new) {
        return NEUTRAL;
    }
    backup(&ctx, Hook::CongState, sk, || undo::changes(sk, new))
}

/// A connection is made (errno 0), or is not.
#[inline(always)]
fn came_out(sk: KernelPointer, state: Option<*mut SocketState>, role: u8, errno: u32) -> Result<()> {
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    let now = now();
    let (since_ns, home) = match state {
        // SAFETY: a value of the map; what happens to one socket happens under its lock.
        Some(state) => unsafe {
            (core::mem::replace(&mut (*state).since_ns, now), segments::home_of(sk, state)?)
        },
        None => (0, segments::home(sk)?),
    };
    let duration_ns = if since_ns == 0 { 0 } else { now.saturating_sub(since_ns) };
    let measured = errno == 0 && role == ROLE_CLIENT && duration_ns != 0;
    // One whose handshake is counted is counted by that.
    if !(measured && handshake(home.cgroup_id, duration_ns)) {
        total(&home, TOTAL_CONNECTIONS, role, errno, 1);
    }
    // Established connections are counted; a record each is for who asked for them.
    let kind = if errno == 0 { KIND_CONNECT + 1 } else { KIND_CONNECT };
    if settings.tcp_kinds & (1 << kind) == 0 {
        return Ok(());
    }
    let mut socket = MaybeUninit::uninit();
    let socket = blank(&mut socket);
    socket::describe(sk, socket)?;
    // The hook comes before the change.
    socket.state = if errno == 0 { TCP_ESTABLISHED } else { TCP_CLOSE } as u8;
    set_owner(socket, sk);
    let Some(record) = emit::reserve::<ConnectRecord>() else { return Ok(()) };
    record.header = header::<ConnectRecord>(KIND_CONNECT);
    kread::copy(socket, &mut record.socket);
    record.duration_ns = duration_ns;
    record.errno = errno;
    record.role = role;
    emit::submit(record);
    Ok(())
}

/// Whether the filter lets an event of this socket through.
#[inline(always)]
fn passes(settings: &Settings, socket: &Socket, sk: KernelPointer) -> Result<bool> {
    if settings.filters == 0 {
        return Ok(true);
    }
    if !filter::owner(settings, &socket.owner) || !filter::endpoints(settings, socket) {
        return Ok(false);
    }
    if settings.filters & FILTER_CGROUP == 0 {
        return Ok(true);
    }
    // A socket without a readable cgroup is in none that anybody asked for.
    Ok(socket::cgroup(sk).and_then(|cgroup| filter::cgroup(settings, cgroup)).unwrap_or(false))
}

/// A socket with nothing in it.
#[inline(always)]
fn blank(socket: &mut MaybeUninit<Socket>) -> &mut Socket {
    kread::blank(socket);
    // SAFETY: zeros are valid for all its fields.
    unsafe { socket.assume_init_mut() }
}

/// Where what happens to a connection is counted.
#[inline(always)]
fn home_of(socket: &Socket) -> Home {
    Home { cgroup_id: socket.cgroup_id, family: socket.family, _pad: [0; 7] }
}

/// Adds to the exact totals.
#[inline(always)]
fn total(home: &Home, what: u8, detail: u8, errno: u32, n: u64) {
    let key = TotalKey { cgroup_id: home.cgroup_id, what, detail, family: home.family, _pad: 0, errno };
    if let Some(cell) = TOTALS.get_ptr_mut(key) {
        emit::add(cell, n);
    } else if TOTALS.insert(key, n, BPF_NOEXIST).is_err() {
        // Another CPU may have made the entry between the two.
        match TOTALS.get_ptr_mut(key) {
            Some(cell) => emit::add(cell, n),
            None => emit::count(Counter::TotalsFull, n),
        }
    }
}

/// Counts a handshake. Returns whether it did.
#[inline(always)]
fn handshake(cgroup_id: u64, duration_ns: u64) -> bool {
    let durations = match HANDSHAKES.get_ptr_mut(cgroup_id) {
        Some(durations) => durations,
        None => {
            let Some(zeros) = NO_DURATIONS.get_ptr(0) else { return false };
            // SAFETY: never written, so zeros. An error means that another CPU was first, or that the map is full:
            // the look-up below tells.
            let _exists = HANDSHAKES.insert(cgroup_id, unsafe { &*zeros }, BPF_NOEXIST);
            match HANDSHAKES.get_ptr_mut(cgroup_id) {
                Some(durations) => durations,
                None => {
                    emit::count(Counter::HandshakesFull, 1);
                    return false;
                }
            }
        }
    };
    let bucket = hist::bucket(duration_ns);
    if bucket >= BUCKETS {
        return false;
    }
    // SAFETY: a value of the map, the index checked.
    let (sum, bucket) = unsafe { (&raw mut (*durations).sum_ns, &raw mut (*durations).buckets[bucket]) };
    emit::add(sum, duration_ns);
    emit::add32(bucket, 1);
    true
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no requirement.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn header<T>(kind: u16) -> RecordHeader {
    RecordHeader::of::<T>(kind, now())
}
