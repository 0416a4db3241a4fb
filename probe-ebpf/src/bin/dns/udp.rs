//! Messages over UDP: questions wait here for their answers.

use aya_ebpf::helpers::generated::bpf_skb_cgroup_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::SkBuffContext;
use aya_log_ebpf::debug;
use probe_common::dns::{
    Asked, Asker, KIND_ANSWERED, KIND_ORPHAN, KIND_RESENT, LookupRecord, Pending, PendingKey, ROLE_CLIENT,
    ROLE_SERVER,
};
use probe_common::loss::Counter;
use probe_common::settings::Settings;
use probe_common::wire::RecordHeader;
use probe_ebpf::{Error, Result, emit, kread};

use super::address::{addressed_server, asker, set_owner};
use super::packet::{DnsHeader, Packet, Question, blank, destination, family, netns, skb, source};
use super::{BPF_ANY, cookie, now, passes};

/// Questions that wait for their answer. User space takes out those that waited too long.
#[map]
static PENDING: HashMap<PendingKey, Pending> = HashMap::with_max_entries(8_192, 0);

/// Zeros to insert, then filled in place: a whole value is too large for the stack, and per-CPU memory is not safe to
/// work in, because egress may be preempted.
#[map]
static NOTHING: Array<Pending> = Array::with_max_entries(1, 0);

/// A question passes the socket of who asks (`ROLE_CLIENT`) or of who is asked.
#[inline(always)]
pub(crate) fn asked(
    ctx: &SkBuffContext,
    settings: &Settings,
    packet: &Packet,
    header: &DnsHeader,
    role: u8,
) -> Result<()> {
    let now_ns = now();
    let question = packet.question(ctx)?;
    let mut key =
        PendingKey { cookie: cookie(ctx), peer: [0; 16], port: 0, id: header.id(), question: question.hash };
    let asker = asker(key.cookie);
    if role == ROLE_CLIENT {
        key.port = addressed_server(ctx, asker, &mut key.peer);
    } else {
        key.port = packet.source_port;
        source(ctx, &mut key.peer);
    }
    // Who answers may become known only as it does.
    if !(passes(ctx, settings, asker) || role == ROLE_SERVER && asker.is_none()) {
        return Ok(());
    }
    if let Some(before) = PENDING.get_ptr_mut(key) {
        // SAFETY: a value of the map; the process that would send this question again is here.
        let before = unsafe { &mut *before };
        // The same question under the same id again: the try before stays unanswered.
        if let Some(record) = emit::reserve::<LookupRecord>() {
            record.header = RecordHeader::of::<LookupRecord>(KIND_RESENT, now_ns);
            kread::copy(&key, &mut record.key);
            kread::copy(&before.asked, &mut record.asked);
            (record.message_len, record.len) = packet.copy_message(ctx, &mut record.octets);
            emit::submit(record);
        }
        before.asked.attempt = before.asked.attempt.saturating_add(1);
        before.asked.sent_ns = now_ns;
        return Ok(());
    }
    let nothing = NOTHING.get_ptr(0).ok_or(Error::NotOurs)?;
    // SAFETY: never written.
    if PENDING.insert(key, unsafe { &*nothing }, BPF_ANY).is_err() {
        if emit::count_first(Counter::PendingFull) {
            debug!(ctx, "no room for waiting questions; further ones are only counted");
        }
        return Ok(());
    }
    let pending = PENDING.get_ptr_mut(key).ok_or(Error::NotOurs)?;
    // SAFETY: just inserted; user space leaves it alone until `sent_ns` is set.
    let pending = unsafe { &mut *pending };
    packet.copy_name(ctx, &question, &mut pending.name);
    describe(ctx, &question, asker, &mut pending.asked);
    pending.asked.attempt = 1;
    pending.asked.role = role;
    pending.asked.sent_ns = now_ns;
    Ok(())
}

/// An answer passes the socket of who asked (`ROLE_CLIENT`) or of who was asked.
#[inline(always)]
pub(crate) fn answered(
    ctx: &SkBuffContext,
    settings: &Settings,
    packet: &Packet,
    header: &DnsHeader,
    role: u8,
) -> Result<()> {
    let now_ns = now();
    let question = packet.question(ctx)?;
    let mut key =
        PendingKey { cookie: cookie(ctx), peer: [0; 16], port: 0, id: header.id(), question: question.hash };
    let asker = asker(key.cookie);
    if role == ROLE_CLIENT {
        key.port = packet.source_port;
        source(ctx, &mut key.peer);
    } else {
        key.port = packet.destination_port;
        destination(ctx, &mut key.peer);
    }
    let mut pending = PENDING.get_ptr(key);
    if pending.is_none() && role == ROLE_CLIENT {
        // A question whose addressed server was not known waits under no server.
        blank(&mut key.peer);
        key.port = 0;
        pending = PENDING.get_ptr(key);
    }
    if pending.is_none() {
        emit::count(Counter::DnsOrphans, 1);
    }
    // Those that wait have passed already, unless it was not known who would answer.
    if (pending.is_none() || role == ROLE_SERVER) && !passes(ctx, settings, asker) {
        let _gone = PENDING.remove(key);
        return Ok(());
    }
    let Some(record) = emit::reserve::<LookupRecord>() else {
        // Answered all the same: it must not be reported as unanswered later.
        let _gone = PENDING.remove(key);
        return Ok(());
    };
    record.header = RecordHeader::of::<LookupRecord>(KIND_ORPHAN, now_ns);
    kread::copy(&key, &mut record.key);
    if role == ROLE_CLIENT {
        source(ctx, &mut record.key.peer);
        record.key.port = packet.source_port;
    }
    (record.message_len, record.len) = packet.copy_message(ctx, &mut record.octets);
    if let Some(pending) = pending {
        // Before it is removed.
        // SAFETY: a value of the map, copied at once.
        kread::copy(unsafe { &raw const (*pending).asked }, &mut record.asked);
        // Who removes it, reports it: user space may have given it up this very moment.
        if PENDING.remove(key).is_ok() {
            record.header.kind = KIND_ANSWERED;
        }
    } else {
        // User space knows whether it gave the question up lately.
        describe(ctx, &question, asker, &mut record.asked);
        record.asked.role = role;
    }
    if role == ROLE_SERVER {
        set_owner(&mut record.asked.owner, asker);
    }
    emit::submit(record);
    Ok(())
}

#[inline(always)]
fn describe(ctx: &SkBuffContext, question: &Question, asker: Option<*const Asker>, asked: &mut Asked) {
    asked.name_len = question.name_len;
    asked.qtype = question.qtype;
    asked.family = family(ctx);
    asked.netns = netns(ctx);
    // SAFETY: the context of this hook.
    asked.cgroup_id = unsafe { bpf_skb_cgroup_id(skb(ctx)) };
    set_owner(&mut asked.owner, asker);
}
