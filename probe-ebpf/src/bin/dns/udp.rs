//! Messages over UDP: questions wait here for their answers.

use aya_ebpf::helpers::generated::bpf_skb_cgroup_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::SkBuffContext;
use aya_log_ebpf::debug;
use probe_common::dns::{
    Asked, Asker, KIND_ANSWERED, KIND_ORPHAN, KIND_RESENT, LookupHead, LookupRecord, Pending, PendingKey,
    ROLE_CLIENT, ROLE_SERVER, SHORT_ROOM, ShortLookupRecord,
};
use probe_common::loss::Counter;
use probe_common::settings::Settings;
use probe_common::wire::RecordHeader;
use probe_ebpf::{Error, Result, emit, kread};

use super::address::{addressed_server, asker, connected_port, set_owner, watched};
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
    // Who answers is known once it has answered for the first time.
    if !passes(ctx, settings, asker) {
        return Ok(());
    }
    if let Some(before) = PENDING.get_ptr_mut(key) {
        // SAFETY: a value of the map; the process that would send this question again is here. User space may give it up at this very
        // moment: then what is written is lost, or, where another question has its place already, that one's time.
        let before = unsafe { &mut *before };
        // The same question under the same id again: the try before stays unanswered.
        if packet.message_len(ctx) <= SHORT_ROOM as u32 {
            resent::<ShortLookupRecord>(ctx, packet, &key, &before.asked, now_ns);
        } else {
            resent::<LookupRecord>(ctx, packet, &key, &before.asked, now_ns);
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
        if !passes(ctx, settings, asker) {
            return Ok(());
        }
        emit::count(Counter::DnsOrphans, 1);
        // Of a socket that has asked nobody it cannot be late: anybody may send from such a port.
        if role == ROLE_CLIENT && asker.is_none() && !watched(settings, connected_port(ctx)) {
            return Ok(());
        }
    }
    let answer = Answer { packet, question: &question, key: &key, pending, asker, role, now_ns };
    if packet.message_len(ctx) <= SHORT_ROOM as u32 {
        answer.report::<ShortLookupRecord>(ctx);
    } else {
        answer.report::<LookupRecord>(ctx);
    }
    Ok(())
}

/// A record of either length.
trait Record: Sized + 'static {
    fn head(&mut self) -> &mut LookupHead;
    /// Copies the message, or as much of it as there is room for.
    fn copy_message(&mut self, ctx: &SkBuffContext, packet: &Packet);
}

impl Record for ShortLookupRecord {
    #[inline(always)]
    fn head(&mut self) -> &mut LookupHead {
        &mut self.lookup
    }
    #[inline(always)]
    fn copy_message(&mut self, ctx: &SkBuffContext, packet: &Packet) {
        (self.lookup.message_len, self.lookup.len) = packet.copy_message(ctx, &mut self.octets);
    }
}

impl Record for LookupRecord {
    #[inline(always)]
    fn head(&mut self) -> &mut LookupHead {
        &mut self.lookup
    }
    #[inline(always)]
    fn copy_message(&mut self, ctx: &SkBuffContext, packet: &Packet) {
        (self.lookup.message_len, self.lookup.len) = packet.copy_message(ctx, &mut self.octets);
    }
}

/// The try before stays unanswered.
#[inline(always)]
fn resent<R: Record>(ctx: &SkBuffContext, packet: &Packet, key: &PendingKey, before: &Asked, now_ns: u64) {
    let Some(record) = emit::reserve::<R>() else { return };
    let head = record.head();
    head.header = RecordHeader::of::<R>(KIND_RESENT, now_ns);
    kread::copy(key, &mut head.key);
    kread::copy(before, &mut head.asked);
    record.copy_message(ctx, packet);
    emit::submit(record);
}

/// What there is to report of an answer.
struct Answer<'a> {
    packet: &'a Packet,
    question: &'a Question,
    key: &'a PendingKey,
    pending: Option<*const Pending>,
    asker: Option<*const Asker>,
    role: u8,
    now_ns: u64,
}

impl Answer<'_> {
    #[inline(always)]
    fn report<R: Record>(&self, ctx: &SkBuffContext) {
        let Self { packet, question, key, pending, asker, role, now_ns } = *self;
        let Some(record) = emit::reserve::<R>() else {
            // Answered all the same: it must not be reported as unanswered later.
            let _gone = PENDING.remove(key);
            return;
        };
        record.copy_message(ctx, packet);
        let head = record.head();
        head.header = RecordHeader::of::<R>(KIND_ORPHAN, now_ns);
        kread::copy(key, &mut head.key);
        if role == ROLE_CLIENT {
            source(ctx, &mut head.key.peer);
            head.key.port = packet.source_port;
        }
        if let Some(pending) = pending {
            // Before it is removed.
            // SAFETY: a value of the map, copied at once.
            kread::copy(unsafe { &raw const (*pending).asked }, &mut head.asked);
            // Who removes it, reports it: user space may have given it up this very moment.
            if PENDING.remove(key).is_ok() {
                head.header.kind = KIND_ANSWERED;
            }
        } else {
            // User space knows whether it gave the question up lately.
            describe(ctx, question, asker, &mut head.asked);
            head.asked.role = role;
        }
        if role == ROLE_SERVER {
            set_owner(&mut head.asked.owner, asker);
        }
        emit::submit(record);
    }
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
