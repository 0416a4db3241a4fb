//! dns: lookups, from the records; unanswered ones, from the questions that still wait.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use aya::maps::MapData;
use domain::base::iana::{Rcode, Rtype};
use domain::base::name::Name;
use hashbrown::HashMap;
use probe_common::dns::{KIND_ANSWERED, KIND_ORPHAN, KIND_RESENT, LookupRecord, Pending, PendingKey};
use probe_common::fields;
use probe_common::loss::Counter;
use probe_common::settings::Settings;

use super::{Context, Event, Signal, SignalKind, Who, tcp};
use crate::collect::{self, DecodeError};
use crate::config::{Config, DnsOptions};
use crate::event::{AttrValue, Attributes, key, name};
use crate::kernel::clock;
use crate::kernel::fields::Resolved;
use crate::load::{Hook, LoadError, Loaded, ObjectSpec, Plain, ProgramSpec, lookup_batch};
use crate::series::{Histogram, attr, metrics};

/// TC of the flags, RFC 1035, 4.1.1.
const TRUNCATED: u16 = 0x0200;
/// RCODE of the flags, RFC 1035, 4.1.1.
const RCODE_MASK: u16 = 0x000f;
/// How many questions given up are remembered, in case their answer comes late.
const GIVEN_UP: usize = 4096;
/// For how long, nanoseconds.
const GIVEN_UP_NS: u64 = 60_000_000_000;

/// The signal.
#[derive(Debug)]
pub struct Dns;

/// Of this signal and of [`super::names`].
pub(super) static ELF: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../probe-ebpf/prebuilt/dns.bpf.o"));

static OBJECT: ObjectSpec = ObjectSpec {
    name: "dns",
    bit: fields::DNS,
    elf: ELF,
    // Answers first: a question must not be seen by a host that cannot see its answer.
    programs: &[
        ProgramSpec::new("dns_ingress", Hook::CgroupIngress),
        ProgramSpec::new("dns_connect4", Hook::CgroupSockAddr),
        ProgramSpec::new("dns_connect6", Hook::CgroupSockAddr),
        ProgramSpec::new("dns_sendmsg4", Hook::CgroupSockAddr),
        ProgramSpec::new("dns_sendmsg6", Hook::CgroupSockAddr),
        ProgramSpec::new("dns_egress", Hook::CgroupEgress),
    ],
    older: None,
    walk: None,
};

impl SignalKind for Dns {
    fn object(&self) -> &'static ObjectSpec {
        &OBJECT
    }

    fn about(&self) -> &'static str {
        "DNS lookups over UDP with latency, and those that nobody answers"
    }

    fn sizes(&self, config: &Config) -> Vec<(&'static str, u32)> {
        let sizes = &config.sizes;
        vec![
            // A record is three times the size of the others'.
            ("RING", sizes.ring_bytes().saturating_mul(4)),
            ("PENDING", sizes.dns_pending),
            ("ASKERS", sizes.dns_pending),
            // Of [`super::names`] alone.
            ("ADDRESSED", 1),
        ]
    }

    fn settings(&self, config: &Config, settings: &mut Settings) {
        settings.dns_ports = [0; 4];
        for (slot, port) in settings.dns_ports.iter_mut().zip(&config.dns.ports) {
            *slot = *port;
        }
    }

    fn start(
        &self,
        config: &Config,
        _kernel: &Resolved,
        loaded: &mut Loaded,
    ) -> Result<Box<dyn Signal>, LoadError> {
        Ok(Box::new(Running {
            timeout: config.dns.timeout,
            pending: loaded.take_hash("PENDING")?,
            lookups: Lookups::new(config.dns.clone()),
            orphans: 0,
            late: 0,
            unsolicited: 0,
            waiting: 0,
            limit: config.sizes.dns_pending,
        }))
    }
}

struct Running {
    timeout: Duration,
    pending: aya::maps::HashMap<MapData, Plain<PendingKey>, Plain<Pending>>,
    lookups: Lookups,
    /// Answers without a waiting question, as the programs count them.
    orphans: u64,
    /// Those of them that were late.
    late: u64,
    /// The rest, as far as it was told.
    unsolicited: u64,
    /// Questions that waited at the last tick.
    waiting: u64,
    limit: u32,
}

/// What becomes of lookups: needs no kernel.
#[derive(Debug)]
pub struct Lookups {
    options: DnsOptions,
    given_up: GivenUp,
    summary: Summary,
}

/// Questions reported as unanswered lately, by key; bounded, oldest out first.
#[derive(Debug, Default)]
struct GivenUp {
    by_key: HashMap<PendingKey, (u64, Pending)>,
    /// Every insertion. A key that was taken or inserted again has entries here that mean nothing any more.
    order: VecDeque<(u64, PendingKey)>,
}

impl GivenUp {
    fn insert(&mut self, now_ns: u64, key: PendingKey, pending: Pending) {
        self.expire(now_ns);
        while self.order.len() >= GIVEN_UP
            && let Some((at, oldest)) = self.order.pop_front()
        {
            self.forget(at, &oldest);
        }
        self.by_key.insert(key, (now_ns, pending));
        self.order.push_back((now_ns, key));
    }

    fn expire(&mut self, now_ns: u64) {
        while let Some((at, key)) = self.order.front().copied()
            && now_ns.saturating_sub(at) > GIVEN_UP_NS
        {
            self.order.pop_front();
            self.forget(at, &key);
        }
    }

    /// Forgets what was inserted then, and nothing later.
    fn forget(&mut self, at: u64, key: &PendingKey) {
        if self.by_key.get(key).is_some_and(|(inserted, _)| *inserted == at) {
            self.by_key.remove(key);
        }
    }

    /// The question that a late answer belongs to. A question whose server was not known waited under none.
    fn take(&mut self, key: &PendingKey) -> Option<Pending> {
        self.by_key.remove(key).or_else(|| self.by_key.remove(&anywhere(key))).map(|(_, pending)| pending)
    }

    /// How often a question was asked before it was given up: who asks it again goes on counting there.
    fn attempts(&self, key: &PendingKey) -> u16 {
        let given_up = self.by_key.get(key).or_else(|| self.by_key.get(&anywhere(key)));
        given_up.map_or(0, |(_, pending)| pending.attempt)
    }
}

/// The key of a question whose server is not known.
fn anywhere(key: &PendingKey) -> PendingKey {
    PendingKey { server: [0; 16], port: 0, ..*key }
}

impl Signal for Running {
    fn record(&mut self, bytes: &[u8], context: &mut Context<'_>) -> Result<(), DecodeError> {
        self.lookups.record(bytes, context)
    }

    fn tick(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let timeout_ns = u64::try_from(self.timeout.as_nanos()).unwrap_or(u64::MAX);
        let now_ns = clock::monotonic_ns();
        let mut silent = Vec::new();
        let mut waiting = 0;
        lookup_batch(&self.pending, |key: &PendingKey, pending: &Pending| {
            waiting += 1;
            // A question is complete once its time is set.
            if pending.sent_ns != 0 && now_ns.saturating_sub(pending.sent_ns) > timeout_ns {
                silent.push((*key, *pending));
            }
        })?;
        self.waiting = waiting;
        for (key, pending) in silent {
            // Who removes it, reports it: the answer may have come this very moment.
            if self.pending.remove(&Plain(key)).is_ok() {
                self.lookups.give_up(now_ns, key, pending, context);
            }
        }
        Ok(())
    }

    fn counted(&mut self, counter: Counter, by: u64) {
        match counter {
            Counter::DnsMalformed => self.lookups.summary.malformed += by,
            Counter::DnsOrphans => self.orphans += by,
            _ => {}
        }
    }

    fn interval(&mut self, _next: u32, _context: &mut Context<'_>) -> io::Result<Option<super::Summary>> {
        // The programs cannot tell an answer that is late from one that nobody waited for. Records may come after their count.
        let mut summary = self.lookups.take_summary();
        self.late += summary.late;
        let unsolicited = self.orphans.saturating_sub(self.late);
        summary.unsolicited = unsolicited.saturating_sub(self.unsolicited);
        self.unsolicited = self.unsolicited.max(unsolicited);
        Ok(Some(super::Summary::Dns(summary)))
    }

    fn fill(&mut self) -> io::Result<Vec<(&'static str, u64, u64)>> {
        Ok(vec![(Counter::PendingFull.place(), self.waiting, u64::from(self.limit))])
    }
}

impl Lookups {
    /// None yet.
    #[must_use]
    pub fn new(options: DnsOptions) -> Self {
        Self { options, given_up: GivenUp::default(), summary: Summary::default() }
    }

    /// Takes a record in, as [`Signal::record`].
    ///
    /// # Errors
    ///
    /// When it is none of this signal's.
    pub fn record(&mut self, bytes: &[u8], context: &mut Context<'_>) -> Result<(), DecodeError> {
        let header = collect::header(bytes)?;
        let mut record: LookupRecord = collect::record(bytes)?;
        let outcome = match header.kind {
            KIND_ANSWERED => {
                record.pending.attempt =
                    record.pending.attempt.saturating_add(self.given_up.attempts(&record.key));
                self.given_up.take(&record.key);
                Outcome::Answered
            }
            KIND_RESENT => {
                record.pending.attempt =
                    record.pending.attempt.saturating_add(self.given_up.attempts(&record.key));
                Outcome::Unanswered
            }
            KIND_ORPHAN => match self.given_up.take(&record.key) {
                Some(pending) => {
                    record.pending = pending;
                    Outcome::Late
                }
                // Counted by the programs.
                None => return Ok(()),
            },
            kind => return Err(DecodeError::Kind(kind)),
        };
        let lookup = Lookup::decode(&record, outcome, context)?;
        self.take_in(lookup, context);
        Ok(())
    }

    /// Reports a question that has waited too long, and remembers it in case its answer comes late.
    pub fn give_up(&mut self, now_ns: u64, key: PendingKey, mut pending: Pending, context: &mut Context<'_>) {
        pending.attempt = pending.attempt.saturating_add(self.given_up.attempts(&key));
        let header = probe_common::wire::RecordHeader { time_ns: now_ns, ..Default::default() };
        let record = LookupRecord { header, key, flags: 0, answers: 0, _pad: 0, pending };
        match Lookup::decode(&record, Outcome::Unanswered, context) {
            Ok(lookup) => self.take_in(lookup, context),
            Err(error) => tracing::debug!(%error, "a waiting question does not decode"),
        }
        self.given_up.insert(now_ns, key, pending);
    }

    /// Ends an interval: what it brought, except what only the programs' counters tell.
    pub fn take_summary(&mut self) -> Summary {
        std::mem::take(&mut self.summary)
    }

    fn take_in(&mut self, lookup: Lookup, context: &mut Context<'_>) {
        let entity = &lookup.who.entity;
        let server = lookup.server.map(|(address, _)| attr(key::SERVER_ADDRESS, address.to_string()));
        let qtype = attr(key::DNS_QUESTION_TYPE, lookup.qtype.clone());
        match lookup.outcome {
            Outcome::Answered => {
                let rcode = attr(key::DNS_RESPONSE_CODE, lookup.rcode.clone().unwrap_or_default());
                let failed = lookup.rcode.clone().filter(|rcode| rcode != "NOERROR");
                let mut attrs = vec![qtype, rcode];
                attrs.extend(server);
                attrs.extend(failed.map(|rcode| attr(key::ERROR_TYPE, rcode)));
                context.store.record(entity, metrics::DNS_LOOKUP_DURATION, &attrs, lookup.duration);
                self.summary.durations.record(lookup.duration);
                *self.summary.rcodes.entry(lookup.rcode.clone().unwrap_or_default()).or_default() += 1;
            }
            Outcome::Unanswered => {
                let mut attrs = vec![qtype, attr(key::NETWORK_TRANSPORT, "udp")];
                attrs.extend(server);
                context.store.add(entity, metrics::DNS_LOOKUP_UNANSWERED, &attrs, 1);
                self.summary.unanswered += 1;
            }
            // The metrics have it as unanswered already.
            Outcome::Late => self.summary.late += 1,
        }
        if self.options.wants(&lookup)
            && let Some(events) = &mut context.events
        {
            events(Event::Lookup(lookup));
        }
    }
}

impl DnsOptions {
    /// Whether an event passes the filters that only user space can apply.
    fn wants(&self, lookup: &Lookup) -> bool {
        self.name.as_ref().is_none_or(|glob| glob.matches(&lookup.name))
            && (self.types.is_empty()
                || self.types.iter().any(|qtype| qtype.eq_ignore_ascii_case(&lookup.qtype)))
            && (self.rcodes.is_empty()
                || lookup
                    .rcode
                    .as_ref()
                    .is_some_and(|rcode| self.rcodes.iter().any(|wanted| wanted.eq_ignore_ascii_case(rcode))))
            && self.slower_than.is_none_or(|least| lookup.duration >= least)
    }
}

/// What one interval brought.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Of answered lookups.
    pub durations: Histogram,
    /// Answered lookups by response code.
    pub rcodes: BTreeMap<Cow<'static, str>, u64>,
    /// Lookups that nobody answered in time.
    pub unanswered: u64,
    /// Answers that came after that.
    pub late: u64,
    /// Packets to or from the DNS port that hold no single well-formed question.
    pub malformed: u64,
    /// Answers to questions that nobody is known to have asked.
    pub unsolicited: u64,
}

/// How a lookup ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer.
    Answered,
    /// Without one, by the timeout or because the question was sent again.
    Unanswered,
    /// With an answer after it was reported as unanswered.
    Late,
}

impl Outcome {
    /// As attribute `dns.outcome`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Unanswered => "unanswered",
            Self::Late => "late",
        }
    }
}

/// A lookup came to its end.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// When the answer came, or the lookup was given up.
    pub time_unix_ns: u64,
    /// Who asked.
    pub who: Who,
    /// Name in presentation format (RFC 1035, 5.1), lower case, without the closing dot.
    pub name: String,
    /// Type, `TYPE65` style where it has no name.
    pub qtype: Cow<'static, str>,
    /// Response code, `RCODE17` style where it has no name.
    pub rcode: Option<Cow<'static, str>>,
    /// How it ended.
    pub outcome: Outcome,
    /// From the question to the answer; without an answer, to when it was given up.
    pub duration: Duration,
    /// Server as the process addressed it.
    pub server: Option<(IpAddr, u16)>,
    /// The answer was cut.
    pub truncated: bool,
    /// 1: first try.
    pub attempt: u16,
    /// Records in the answer section.
    pub answers: Option<u16>,
}

impl Lookup {
    fn decode(
        record: &LookupRecord,
        outcome: Outcome,
        context: &mut Context<'_>,
    ) -> Result<Self, DecodeError> {
        let LookupRecord { header, key, flags, answers, _pad, pending } = record;
        let answered = outcome != Outcome::Unanswered;
        let server =
            if key.port == 0 { None } else { Some((tcp::address(pending.family, &key.server)?, key.port)) };
        Ok(Self {
            time_unix_ns: context.clock.wall(header.time_ns),
            who: context.owners.who(&pending.owner, pending.cgroup_id, pending.netns),
            name: name_text(pending.name.get(..usize::from(pending.name_len)).unwrap_or_default())
                .ok_or(DecodeError::Value("name"))?,
            qtype: type_text(pending.qtype),
            rcode: answered.then(|| rcode_text(flags & RCODE_MASK)),
            outcome,
            duration: Duration::from_nanos(header.time_ns.saturating_sub(pending.sent_ns)),
            server,
            truncated: answered && flags & TRUNCATED != 0,
            attempt: pending.attempt,
            answers: answered.then_some(*answers),
        })
    }

    /// Whether somebody who reads logs wants to know: no answer, a late one, or one that says that the server failed. That
    /// a name does not exist is everyday (search lists).
    #[must_use]
    pub fn is_notable(&self) -> bool {
        self.outcome != Outcome::Answered || !matches!(self.rcode.as_deref(), Some("NOERROR" | "NXDOMAIN"))
    }
}

impl Attributes for Lookup {
    fn event_name(&self) -> &'static str {
        name::DNS_LOOKUP
    }
    fn time_unix_ns(&self) -> u64 {
        self.time_unix_ns
    }
    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        visitor(key::DNS_QUESTION_NAME, AttrValue::Str(&self.name));
        visitor(key::DNS_QUESTION_TYPE, AttrValue::Str(&self.qtype));
        visitor(key::DNS_OUTCOME, AttrValue::Str(self.outcome.as_str()));
        if let Some(rcode) = &self.rcode {
            visitor(key::DNS_RESPONSE_CODE, AttrValue::Str(rcode));
        }
        visitor(key::DURATION, AttrValue::Float(self.duration.as_secs_f64()));
        visitor(key::NETWORK_TRANSPORT, AttrValue::Str("udp"));
        if let Some((address, port)) = self.server {
            visitor(key::SERVER_ADDRESS, AttrValue::Str(&address.to_string()));
            visitor(key::SERVER_PORT, AttrValue::Int(i64::from(port)));
        }
        if self.rcode.is_some() {
            visitor(key::DNS_TRUNCATED, AttrValue::Bool(self.truncated));
        }
        visitor(key::DNS_ATTEMPT, AttrValue::Int(i64::from(self.attempt)));
        if let Some(answers) = self.answers {
            visitor(key::DNS_ANSWERS, AttrValue::Int(i64::from(answers)));
        }
        self.who.visit(visitor);
    }
}

/// A wire-format name as text: lower case, unusual octets escaped (RFC 1035, 5.1), the root as a dot. `None`: no name.
#[must_use]
pub fn name_text(wire: &[u8]) -> Option<String> {
    let name = Name::from_octets(wire).ok()?;
    if name.is_root() {
        return Some(".".to_owned());
    }
    // Capitals fold; an escaped octet is digits, which do not.
    Some(name.to_string().to_ascii_lowercase())
}

/// The mnemonic of a type; RFC 3597's `TYPE65` where there is none.
#[must_use]
pub fn type_text(qtype: u16) -> Cow<'static, str> {
    Rtype::from_int(qtype).to_mnemonic_str().map_or_else(|| format!("TYPE{qtype}").into(), Cow::Borrowed)
}

/// The mnemonic of a response code; `RCODE17` where there is none.
#[must_use]
pub fn rcode_text(rcode: u16) -> Cow<'static, str> {
    u8::try_from(rcode)
        .ok()
        .and_then(|rcode| Rcode::checked_from_int(rcode)?.to_mnemonic_str())
        .map_or_else(|| format!("RCODE{rcode}").into(), Cow::Borrowed)
}

/// A type by its mnemonic or as `TYPE65`, as events name it.
#[must_use]
pub fn type_named(text: &str) -> Option<Cow<'static, str>> {
    text.parse::<Rtype>().ok().map(|rtype| type_text(rtype.to_int()))
}

/// The response codes that an answer can carry, as events name them.
pub fn rcodes() -> impl Iterator<Item = Cow<'static, str>> {
    (0..=RCODE_MASK).map(rcode_text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The labels of a name in presentation format (RFC 1035, 5.1).
    fn unescape(text: &str) -> Vec<Vec<u8>> {
        let mut labels = vec![Vec::new()];
        let mut rest = text.as_bytes();
        while let Some((&octet, tail)) = rest.split_first() {
            let (octet, tail) = match (octet, tail) {
                (b'.', _) => {
                    labels.push(Vec::new());
                    rest = tail;
                    continue;
                }
                (b'\\', [a, b, c, tail @ ..]) if a.is_ascii_digit() => {
                    let digits = [*a, *b, *c];
                    (std::str::from_utf8(&digits).unwrap().parse().unwrap(), tail)
                }
                (b'\\', [escaped, tail @ ..]) => (*escaped, tail),
                (octet, tail) => (octet, tail),
            };
            labels.last_mut().unwrap().push(octet);
            rest = tail;
        }
        labels
    }

    proptest! {
        #[test]
        fn text_says_what_was_on_the_wire(
            labels in prop::collection::vec(prop::collection::vec(prop_oneof![any::<u8>(), Just(b'.'), Just(b'\\')], 1..=63), 1..=3),
            cut in 0_usize..200,
        ) {
            let mut wire: Vec<u8> = labels.iter().flat_map(|label| [&[label.len() as u8], &label[..]].concat()).collect();
            wire.push(0);
            let text = name_text(&wire).unwrap();
            prop_assert!(text.bytes().all(|octet| (0x20..0x7f).contains(&octet)), "{}", text);
            let folded: Vec<Vec<u8>> = labels.iter().map(|label| label.to_ascii_lowercase()).collect();
            prop_assert_eq!(unescape(&text), folded);
            // A part of a name is none, and neither is more than one.
            prop_assert_eq!(name_text(wire.get(..cut.min(wire.len() - 1)).unwrap()), None);
            wire.push(0);
            prop_assert_eq!(name_text(&wire), None);
        }
    }

    #[test]
    fn every_type_and_code_has_a_name_of_its_own() {
        let types: std::collections::HashSet<_> = (0..=u16::MAX).map(type_text).collect();
        assert_eq!(types.len(), 1 << 16);
        for qtype in 0..=u16::MAX {
            assert_eq!(type_named(&type_text(qtype)), Some(type_text(qtype)));
        }
        let codes: std::collections::HashSet<_> = (0..=u16::MAX).map(rcode_text).collect();
        assert_eq!(codes.len(), 1 << 16);
    }

    #[test]
    fn names() {
        for (what, wire, want) in [
            ("ordinary", &b"\x03www\x07Example\x03ORG\x00"[..], Some("www.example.org")),
            ("root", b"\x00", Some(".")),
            ("a dot in a label", b"\x03a.b\x00", Some(r"a\.b")),
            ("an escape sequence", b"\x03\x1b[m\x00", Some(r"\027[m")),
            ("cut", b"\x03ww", None),
            ("empty", b"", None),
            ("pointer", b"\xc0\x00", None),
            ("octets after it", b"\x00\x00", None),
        ] {
            assert_eq!(name_text(wire).as_deref(), want, "{what}");
        }
    }

    #[test]
    fn mnemonics() {
        assert_eq!(type_text(28), "AAAA");
        assert_eq!(type_text(61_234), "TYPE61234");
        assert_eq!(rcode_text(3), "NXDOMAIN");
        assert_eq!(rcode_text(0), "NOERROR");
        assert_eq!(rcode_text(13), "RCODE13");
        assert_eq!(type_named("aaaa").as_deref(), Some("AAAA"));
        assert_eq!(type_named("TYPE28").as_deref(), Some("AAAA"));
        assert_eq!(type_named("TYPE61234").as_deref(), Some("TYPE61234"));
        for nonsense in ["", "FOO", "TYPE", "TYPE65536", "28"] {
            assert_eq!(type_named(nonsense), None, "{nonsense}");
        }
        assert_eq!(rcodes().count(), 16);
    }

    #[test]
    fn questions_given_up_are_bounded_and_forgotten() {
        let mut given_up = GivenUp::default();
        let pending: Pending = bytemuck::Zeroable::zeroed();
        let key = |id: u32| PendingKey { question: id, ..PendingKey::default() };
        for id in 0..GIVEN_UP as u32 + 10 {
            given_up.insert(1, key(id), pending);
        }
        assert_eq!(given_up.by_key.len(), GIVEN_UP);
        assert!(given_up.take(&key(0)).is_none());
        assert!(given_up.take(&key(GIVEN_UP as u32)).is_some());
        given_up.insert(1 + GIVEN_UP_NS + 1, key(1), pending);
        assert_eq!(given_up.by_key.len(), 1);
    }

    #[test]
    fn a_question_given_up_again_is_kept_from_then_on() {
        let mut given_up = GivenUp::default();
        let mut pending: Pending = bytemuck::Zeroable::zeroed();
        let key = |id: u32| PendingKey { question: id, ..PendingKey::default() };
        for round in 1..=3 {
            pending.attempt = 1 + given_up.attempts(&key(7));
            assert_eq!(pending.attempt, round);
            given_up.insert(u64::from(round), key(7), pending);
        }
        // The second entry's time is up, not the third's.
        given_up.expire(2 + GIVEN_UP_NS + 1);
        assert_eq!(given_up.attempts(&key(7)), 3);
        let elsewhere = PendingKey { port: 53, server: [1; 16], ..key(7) };
        assert_eq!(given_up.attempts(&elsewhere), 3, "it waited under no server");
        assert!(given_up.take(&elsewhere).is_some_and(|pending| pending.attempt == 3));
        assert_eq!(given_up.attempts(&key(7)), 0);
        // Whatever comes and goes, neither part grows.
        for round in 0..3 * GIVEN_UP as u64 {
            given_up.insert(GIVEN_UP_NS + 10 + round, key(8), pending);
            given_up.take(&key(8));
        }
        assert!(given_up.by_key.len() <= GIVEN_UP && given_up.order.len() <= GIVEN_UP);
    }
}
