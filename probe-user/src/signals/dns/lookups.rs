//! What becomes of lookups. Needs no kernel.

use std::net::SocketAddr;
use std::time::Duration;

use probe_common::dns::{
    Asked, HEADER, KIND_ANSWERED, KIND_ORPHAN, KIND_RESENT, KIND_SEGMENT, LookupHead, LookupRecord,
    MESSAGE_ROOM, Pending, PendingKey, ROLE_CLIENT, ROLE_SERVER, SHORT_ROOM, SegmentRecord,
    ShortLookupRecord,
};
use probe_common::wire::Address;

use super::event::{Lookup, Outcome, Role, Transport};
use super::history::{Asker, Folded, SearchLists, Tries, Twins};
use super::label::{Labels, OTHER};
use super::late::GivenUp;
use super::message::{self, Answer};
use super::server::Servers;
use super::summary::Summary;
use super::tcp::{Connections, Ended, Exchange};
use super::text::{name_text, rcode_text, type_text};
use crate::collect::{self, DecodeError};
use crate::config::DnsOptions;
use crate::event::key;
use crate::series::{Attr, Store, attr, metrics};
use crate::signals::{Context, Event, tcp};

/// Response codes after which a resolver asks somebody else (RFC 1035, 4.1.1): FORMERR, SERVFAIL, NOTIMP, REFUSED.
const OF_NO_USE: [u16; 4] = [1, 2, 4, 5];
/// Response codes of names that exist and that do not.
const NOERROR: u16 = 0;
const NXDOMAIN: u16 = 3;

/// What becomes of lookups: needs no kernel.
#[derive(Debug)]
pub struct Lookups {
    options: DnsOptions,
    given_up: GivenUp,
    connections: Connections,
    tries: Tries,
    twins: Twins,
    search_lists: SearchLists,
    labels: Labels,
    servers: Servers,
    summary: Summary,
}

/// A question that has come to its end, wherever it waited.
struct Question<'a> {
    asked: &'a Asked,
    cookie: u64,
    peer: &'a Address,
    /// 0: peer and port are not known.
    port: u16,
    /// Hash of name, type and class ([`probe_common::question::parse`]).
    hash: u32,
    /// In wire format.
    name: &'a [u8],
    transport: Transport,
}

impl<'a> Question<'a> {
    fn over_udp(key: &'a PendingKey, asked: &'a Asked, name: &'a [u8]) -> Self {
        let PendingKey { cookie, peer, port, id: _, question } = key;
        Self { asked, cookie: *cookie, peer, port: *port, hash: *question, name, transport: Transport::Udp }
    }
}

/// How.
#[derive(Clone, Copy)]
enum End {
    Answered(Answer),
    Unanswered,
    Late(Answer),
}

impl Lookups {
    /// None yet.
    #[must_use]
    pub fn new(options: DnsOptions) -> Self {
        let (twins, labels) = (Twins::new(options.timeout), Labels::new(&options));
        Self {
            options,
            given_up: GivenUp::default(),
            connections: Connections::default(),
            tries: Tries::default(),
            twins,
            search_lists: SearchLists::default(),
            labels,
            servers: Servers::default(),
            summary: Summary::default(),
        }
    }

    /// What metrics tell of names, from now on.
    pub(super) fn change_names(&mut self, options: &DnsOptions) {
        self.labels.change(options);
    }

    /// An interval is over: who has no series any more has no names.
    pub(super) fn forget_ended(&mut self, store: &Store) {
        self.labels.forget_ended(store);
    }

    /// Takes a record in, as [`crate::signals::Signal::record`].
    ///
    /// # Errors
    ///
    /// When it is none of this signal's.
    pub fn record(&mut self, bytes: &[u8], context: &mut Context<'_>) -> Result<(), DecodeError> {
        let header = collect::header(bytes)?;
        match header.kind {
            KIND_ANSWERED | KIND_RESENT | KIND_ORPHAN => self.lookup(&lookup_record(bytes)?, context),
            KIND_SEGMENT => self.segment(&collect::record(bytes)?, context),
            kind => Err(DecodeError::Kind(kind)),
        }
    }

    /// One over UDP.
    fn lookup(&mut self, record: &LookupRecord, context: &mut Context<'_>) -> Result<(), DecodeError> {
        let LookupRecord { lookup, octets } = record;
        let LookupHead { header, key, asked, message_len: _, len, _pad } = lookup;
        let octets = octets.get(..usize::from(*len)).ok_or(DecodeError::Value("length"))?;
        let name = HEADER..HEADER + usize::from(asked.name_len);
        let name = octets.get(name).ok_or(DecodeError::Value("name"))?;
        let answer = message::answer(octets).ok_or(DecodeError::Value("message"))?;
        let question = Question::over_udp(key, asked, name);
        match header.kind {
            KIND_ANSWERED => self.end(&question, header.time_ns, End::Answered(answer), context),
            KIND_RESENT => self.end(&question, header.time_ns, End::Unanswered, context),
            // Where nobody waited, the programs have counted it.
            _ => match self.given_up.take(header.time_ns, key) {
                Some(Pending { asked, name }) => {
                    let name = name.get(..usize::from(asked.name_len)).unwrap_or_default();
                    let question = Question { asked: &asked, name, ..question };
                    self.end(&question, header.time_ns, End::Late(answer), context)
                }
                None => Ok(()),
            },
        }
    }

    /// A part of a TCP stream.
    fn segment(&mut self, record: &SegmentRecord, context: &mut Context<'_>) -> Result<(), DecodeError> {
        let mut ended = Vec::new();
        self.connections.segment(record, &mut |exchange| ended.push(exchange))?;
        self.exchanges(ended, context);
        Ok(())
    }

    /// A question waits since a while: whoever asks it again tries again.
    pub fn waiting(&mut self, key: &PendingKey, asked: &Asked) {
        if asked.role == ROLE_CLIENT {
            self.tries.tried(Asker::of(asked, key.cookie), key.question, asked.sent_ns);
        }
    }

    /// Reports a question over UDP that has waited too long, and remembers it in case its answer comes late.
    pub fn give_up(&mut self, now_ns: u64, key: PendingKey, mut pending: Pending, context: &mut Context<'_>) {
        let Pending { asked, name } = &pending;
        let name = name.get(..usize::from(asked.name_len)).unwrap_or_default();
        let question = Question::over_udp(&key, asked, name);
        let attempt = self.attempt(&question);
        if let Err(error) = self.end(&question, now_ns, End::Unanswered, context) {
            tracing::debug!(%error, "a waiting question does not decode");
        }
        pending.asked.attempt = attempt;
        self.given_up.insert(now_ns, key, pending);
    }

    /// Reports questions over TCP that have waited too long.
    pub fn tick(&mut self, now_ns: u64, context: &mut Context<'_>) {
        let mut ended = Vec::new();
        let tries = &mut self.tries;
        self.connections.waiting(&mut |cookie, question, asked| {
            if asked.role == ROLE_CLIENT {
                tries.tried(Asker::of(asked, cookie), question, asked.sent_ns);
            }
        });
        let timeout_ns = u64::try_from(self.options.timeout.as_nanos()).unwrap_or(u64::MAX);
        self.connections.expire(now_ns, timeout_ns, &mut |exchange| ended.push(exchange));
        self.exchanges(ended, context);
    }

    fn exchanges(&mut self, ended: Vec<Exchange>, context: &mut Context<'_>) {
        for Exchange { cookie, time_ns, asked, peer, port, question, name, ended } in ended {
            let question = Question {
                asked: &asked,
                cookie,
                peer: &peer,
                port,
                hash: question,
                name: &name,
                transport: Transport::Tcp,
            };
            let end = match ended {
                Ended::Answered(answer) => End::Answered(answer),
                Ended::Unanswered => End::Unanswered,
                Ended::Late(answer) => End::Late(answer),
            };
            if let Err(error) = self.end(&question, time_ns, end, context) {
                tracing::debug!(%error, "a message over TCP does not decode");
            }
        }
    }

    /// Questions that wait, with those over UDP; none where only some names or types are wanted, for nobody has looked at theirs.
    #[must_use]
    pub fn still_waiting(&self, over_udp: u64) -> u64 {
        if self.options.name.is_some() || !self.options.types.is_empty() {
            return 0;
        }
        over_udp + u64::try_from(self.connections.held().waiting).unwrap_or(0)
    }

    /// TCP connections whose messages could no longer be told apart, since the last time.
    pub fn take_lost_streams(&mut self) -> u64 {
        self.connections.take_lost()
    }

    /// Ends an interval: what it brought, except what only the programs' counters tell.
    pub fn take_summary(&mut self) -> Summary {
        std::mem::take(&mut self.summary)
    }

    fn attempt(&self, question: &Question<'_>) -> u16 {
        let Question { asked, cookie, hash, .. } = question;
        if asked.role == ROLE_SERVER {
            // How often it was sent, who asks knows.
            return asked.attempt.max(1);
        }
        self.tries.number(Asker::of(asked, *cookie), *hash, asked.sent_ns).max(asked.attempt)
    }

    fn end(
        &mut self,
        question: &Question<'_>,
        time_ns: u64,
        end: End,
        context: &mut Context<'_>,
    ) -> Result<(), DecodeError> {
        let Question { asked, cookie, peer, port, hash, name, transport } = *question;
        let (outcome, answer) = match end {
            End::Answered(answer) => (Outcome::Answered, Some(answer)),
            End::Unanswered => (Outcome::Unanswered, None),
            End::Late(answer) => (Outcome::Late, Some(answer)),
        };
        let mut lookup = Lookup {
            time_unix_ns: context.clock.wall(time_ns),
            who: context.owners.who(&asked.owner, asked.cgroup_id, asked.netns),
            name: name_text(name).ok_or(DecodeError::Value("name"))?,
            qtype: type_text(asked.qtype),
            rcode: answer.map(|answer| rcode_text(answer.rcode)),
            outcome,
            duration: Duration::from_nanos(time_ns.saturating_sub(asked.sent_ns)),
            role: if asked.role == ROLE_SERVER { Role::Server } else { Role::Client },
            peer: match port {
                0 => None,
                port => Some(SocketAddr::new(tcp::address(asked.family, peer)?, port)),
            },
            transport,
            truncated: answer.is_some_and(|answer| answer.truncated),
            fallback: false,
            attempt: self.attempt(question),
            answers: answer.map(|answer| answer.answers),
            ttl: answer.and_then(|answer| answer.ttl).map(|ttl| Duration::from_secs(ttl.into())),
            lost_twin: false,
            search_misses: 0,
        };
        if lookup.role == Role::Client {
            let asker = Asker::of(asked, cookie);
            let name = Folded::of(name);
            lookup.fallback = transport == Transport::Tcp
                && outcome != Outcome::Late
                && self.tries.take_cut(asker, hash, asked.sent_ns);
            match (outcome, answer) {
                (Outcome::Answered | Outcome::Late, Some(answer)) => {
                    if OF_NO_USE.contains(&answer.rcode) {
                        self.tries.failed(asker, hash, asked.sent_ns, time_ns);
                    } else {
                        self.tries.settled(asker, hash, asked.sent_ns, time_ns);
                        self.twins.answered(asker, &name, asked.qtype, asked.sent_ns, time_ns);
                    }
                    if answer.truncated && transport == Transport::Udp {
                        self.tries.cut(asker, hash, time_ns);
                    }
                    if answer.rcode == NXDOMAIN {
                        self.search_lists.miss(asker, &name, time_ns);
                    } else if answer.rcode == NOERROR && answer.answers != 0 {
                        lookup.search_misses = self.search_lists.found(asker, &name, time_ns);
                    }
                }
                _ => {
                    self.tries.tried(asker, hash, asked.sent_ns);
                    lookup.lost_twin = self.twins.is_lost(asker, &name, asked.qtype, asked.sent_ns);
                }
            }
        }
        self.take_in(lookup, context);
        Ok(())
    }

    fn take_in(&mut self, lookup: Lookup, context: &mut Context<'_>) {
        self.count(&lookup, context);
        match lookup.role {
            Role::Client => self.summary.add(&lookup),
            Role::Server => self.summary.add_served(&lookup),
        }
        if self.options.wants(&lookup)
            && let Some(events) = &mut context.events
        {
            events(Event::Lookup(lookup));
        }
    }

    /// Into the series.
    fn count(&mut self, lookup: &Lookup, context: &mut Context<'_>) {
        let entity = &lookup.who.entity;
        let store = &mut *context.store;
        let qtype = attr(key::DNS_QUESTION_TYPE, lookup.qtype.clone());
        // At the server it is who answers that counts; who asks are many.
        let end: Option<Attr> = match lookup.role {
            Role::Client => lookup.peer.map(|peer| attr(key::SERVER_ADDRESS, self.servers.text(peer.ip()))),
            Role::Server => Some(attr(key::DNS_ROLE, "server")),
        };
        // What a server is asked for, all its clients ask for: its container would have their names.
        let mut name = || match lookup.role {
            Role::Client => {
                self.labels.of(entity, &lookup.name).map(|name| attr(key::DNS_QUESTION_NAME, name))
            }
            Role::Server => None,
        };
        let folded = attr(key::DNS_QUESTION_NAME, OTHER);
        match lookup.outcome {
            Outcome::Answered => {
                let rcode = attr(key::DNS_RESPONSE_CODE, lookup.rcode.clone().unwrap_or_default());
                let failed = lookup.rcode.clone().filter(|rcode| rcode != "NOERROR");
                let mut attrs = Vec::with_capacity(5);
                attrs.extend([qtype, rcode]);
                attrs.extend(end.clone());
                attrs.extend(name());
                attrs.extend(failed.map(|rcode| attr(key::ERROR_TYPE, rcode)));
                store.record(entity, metrics::DNS_LOOKUP_DURATION, &attrs, lookup.duration);
                if attrs.contains(&folded) {
                    store.fold(entity, metrics::DNS_LOOKUP_DURATION.def(), &attrs);
                }
            }
            Outcome::Unanswered => {
                let mut attrs = vec![qtype, attr(key::NETWORK_TRANSPORT, lookup.transport.as_str())];
                attrs.extend(end.clone());
                attrs.extend(name());
                store.add(entity, metrics::DNS_LOOKUP_UNANSWERED, &attrs, 1);
                if attrs.contains(&folded) {
                    store.fold(entity, metrics::DNS_LOOKUP_UNANSWERED.def(), &attrs);
                }
            }
            // The metrics have it as unanswered already.
            Outcome::Late => {}
        }
        let end = end.as_slice();
        if lookup.lost_twin {
            store.add(entity, metrics::DNS_LOOKUP_LOST_TWIN, end, 1);
        }
        if lookup.search_misses != 0 {
            store.add(entity, metrics::DNS_LOOKUP_SEARCH_MISSES, end, lookup.search_misses.into());
        }
    }
}

/// A record of a lookup over UDP, of either length.
fn lookup_record(bytes: &[u8]) -> Result<LookupRecord, DecodeError> {
    let Ok(ShortLookupRecord { lookup, octets }) = collect::record(bytes) else {
        return collect::record(bytes);
    };
    let mut record = LookupRecord { lookup, octets: [0; MESSAGE_ROOM] };
    record.octets.get_mut(..SHORT_ROOM).ok_or(DecodeError::Value("length"))?.copy_from_slice(&octets);
    if usize::from(lookup.len) > SHORT_ROOM {
        return Err(DecodeError::Value("length"));
    }
    Ok(record)
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use probe_common::wire::{FAMILY_IPV4, RecordHeader};

    use super::*;
    use crate::config::QuestionNames;
    use crate::entity::{Entities, ProcessLimits, Processes};
    use crate::kernel::cgroup::TreeLimits;
    use crate::kernel::clock::Clock;
    use crate::series::Limits;
    use crate::signals::Owners;

    const MS: u64 = 1_000_000;
    const A: u16 = 1;
    const AAAA: u16 = 28;
    const SERVFAIL: u16 = 2;
    const TC: u16 = 0x0200;

    struct World {
        lookups: Lookups,
        clock: Clock,
        owners: Owners,
        store: Store,
    }

    impl World {
        fn new() -> Self {
            Self {
                lookups: Lookups::new(DnsOptions::default()),
                clock: Clock::new(),
                owners: Owners::new(
                    Entities::at(None, None, TreeLimits::default()),
                    Processes::at(Path::new("/dev/null/proc"), ProcessLimits::default()),
                ),
                store: Store::new(Limits::default(), 1),
            }
        }

        fn tell(&mut self, what: impl FnOnce(&mut Lookups, &mut Context<'_>)) -> Vec<Lookup> {
            let mut told = Vec::new();
            let mut push = |event| match event {
                Event::Lookup(lookup) => told.push(lookup),
                other => panic!("{other:?}"),
            };
            let mut context = Context {
                clock: &self.clock,
                owners: &mut self.owners,
                store: &mut self.store,
                events: Some(&mut push),
            };
            what(&mut self.lookups, &mut context);
            told
        }

        /// A question over UDP, sent and answered at these milliseconds; with this code and flags.
        fn answered(&mut self, try_: &Try, at_ms: u64, flags: u16) -> Lookup {
            let record = try_.record(KIND_ANSWERED, at_ms, flags);
            let told = self.tell(|lookups, context| {
                lookups.record(bytemuck::bytes_of(&record), context).unwrap();
            });
            told.into_iter().next().unwrap()
        }

        fn given_up(&mut self, try_: &Try, at_ms: u64) -> Lookup {
            let mut pending: Pending = bytemuck::Zeroable::zeroed();
            pending.asked = try_.asked();
            pending.name[..try_.name().len()].copy_from_slice(&try_.name());
            let told =
                self.tell(|lookups, context| lookups.give_up(at_ms * MS, try_.key(), pending, context));
            told.into_iter().next().unwrap()
        }
    }

    /// One try of a question.
    #[derive(Clone, Copy)]
    struct Try {
        name: &'static str,
        qtype: u16,
        cookie: u64,
        id: u16,
        sent_ms: u64,
    }

    impl Try {
        fn name(&self) -> Vec<u8> {
            let labels = self.name.split('.').map(|label| [&[label.len() as u8], label.as_bytes()].concat());
            labels.flatten().chain([0]).collect()
        }

        fn key(&self) -> PendingKey {
            let question = self.name.bytes().fold(u32::from(self.qtype), |hash, octet| {
                hash.wrapping_mul(31).wrapping_add(u32::from(octet))
            });
            let mut peer = [0; 16];
            peer[..4].copy_from_slice(&[192, 0, 2, 53]);
            PendingKey { cookie: self.cookie, peer, port: 53, id: self.id, question }
        }

        fn asked(&self) -> Asked {
            let mut asked: Asked = bytemuck::Zeroable::zeroed();
            asked.owner.tgid = 42;
            asked.sent_ns = self.sent_ms * MS;
            asked.qtype = self.qtype;
            asked.attempt = 1;
            asked.family = FAMILY_IPV4;
            asked.name_len = self.name().len() as u8;
            asked
        }

        fn record(&self, kind: u16, at_ms: u64, flags: u16) -> LookupRecord {
            let mut record: LookupRecord = bytemuck::Zeroable::zeroed();
            record.lookup.header = RecordHeader::of::<LookupRecord>(kind, at_ms * MS);
            record.lookup.key = self.key();
            record.lookup.asked = self.asked();
            let answers = u16::from(flags == 0);
            let mut message: Vec<u8> =
                [self.id, 0x8180 | flags, 1, answers, 0, 0].into_iter().flat_map(u16::to_be_bytes).collect();
            message.extend(self.name());
            message.extend([self.qtype.to_be_bytes(), [0, 1]].concat());
            message.extend(
                [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 0].into_iter().take(usize::from(answers) * 12),
            );
            record.lookup.message_len = message.len() as u32;
            record.lookup.len = message.len() as u16;
            record.octets[..message.len()].copy_from_slice(&message);
            record
        }
    }

    const ONE: Try = Try { name: "db.test", qtype: A, cookie: 1, id: 7, sent_ms: 1_000 };

    #[test]
    fn an_answer_says_what_it_says() {
        let mut world = World::new();
        let lookup = world.answered(&ONE, 1_020, 0);
        assert_eq!((lookup.name.as_str(), lookup.rcode.as_deref()), ("db.test", Some("NOERROR")));
        assert_eq!(lookup.duration, Duration::from_millis(20));
        assert_eq!(lookup.peer, Some("192.0.2.53:53".parse().unwrap()));
        assert_eq!((lookup.answers, lookup.ttl), (Some(1), Some(Duration::from_secs(60))));
        assert_eq!(
            (lookup.attempt, lookup.truncated, lookup.fallback, lookup.lost_twin),
            (1, false, false, false)
        );
    }

    #[test]
    fn tries_of_a_process_are_numbered_whatever_socket_they_come_from() {
        let mut world = World::new();
        let second = Try { cookie: 2, id: 8, sent_ms: 3_000, ..ONE };
        let third = Try { cookie: 3, id: 9, sent_ms: 3_500, ..ONE };
        // Seen while it waits.
        world.lookups.waiting(&ONE.key(), &ONE.asked());
        assert_eq!(world.answered(&second, 3_010, SERVFAIL).attempt, 2);
        assert_eq!(world.answered(&third, 3_520, 0).attempt, 3);
        assert_eq!(world.given_up(&ONE, 6_000).attempt, 1);
        assert_eq!(world.answered(&Try { sent_ms: 4_000, ..third }, 4_001, 0).attempt, 1, "asked anew");
        let summary = world.lookups.take_summary();
        assert_eq!((summary.retries, summary.unanswered, summary.durations.count()), (2, 1, 3));
    }

    #[test]
    fn lookups_of_names_beyond_the_limit_are_counted_as_folded() {
        use crate::series::Data;
        let mut world = World::new();
        world.lookups =
            Lookups::new(DnsOptions { names: QuestionNames::Full, names_max: 2, ..DnsOptions::default() });
        for (name, times) in [("a.test", 3), ("b.test", 1), ("c.test", 4), ("d.test", 2), ("a.test", 1)] {
            for _ in 0..times {
                world.answered(&Try { name, ..ONE }, 1_010, 0);
            }
        }
        world.given_up(&Try { name: "e.test", ..ONE }, 7_000);
        world.given_up(&Try { name: "a.test", ..ONE }, 7_000);
        let folded =
            |metric: &str| world.store.usage().find(|usage| usage.metric.name == metric).unwrap().folded;
        assert_eq!((folded("dns.lookup.duration"), folded("dns.lookup.unanswered")), (6, 1));
        // None is lost by it.
        let all = world.store.peek().entities().flat_map(|of| of.metrics()).flat_map(|(_, series)| series);
        let counts = all.map(|series| match series.data() {
            Data::Count(count) => *count,
            Data::Times(times) => times.count(),
            Data::Level(_) => 0,
        });
        assert_eq!(counts.sum::<u64>(), 13);
    }

    #[test]
    fn a_late_answer_keeps_the_number_of_its_try() {
        let mut world = World::new();
        assert_eq!(world.given_up(&ONE, 6_000).outcome, Outcome::Unanswered);
        let second = Try { sent_ms: 6_100, ..ONE };
        assert_eq!(world.given_up(&second, 11_200).attempt, 2);
        let record = second.record(KIND_ORPHAN, 12_000, 0);
        let bytes = bytemuck::bytes_of(&record);
        let late = world.tell(|lookups, context| lookups.record(bytes, context).unwrap());
        assert_eq!((late.len(), late[0].outcome, late[0].attempt), (1, Outcome::Late, 2));
        assert_eq!(late[0].duration, Duration::from_millis(5_900));
        assert!(world.tell(|lookups, context| lookups.record(bytes, context).unwrap()).is_empty());
    }

    #[test]
    fn twins_search_lists_and_cut_answers() {
        let mut world = World::new();
        let twin = Try { qtype: AAAA, id: 8, sent_ms: 1_001, ..ONE };
        world.answered(&ONE, 1_010, 0);
        assert!(world.given_up(&twin, 6_001).lost_twin);
        let both = [Try { name: "gone.test", ..ONE }, Try { name: "gone.test", ..twin }];
        assert!(both.iter().all(|silent| !world.given_up(silent, 6_002).lost_twin));

        let expanded = Try { name: "db.prod.default.svc.test", ..ONE };
        world.answered(&expanded, 1_030, 3);
        world.answered(&Try { qtype: AAAA, ..expanded }, 1_031, 3);
        let found = Try { name: "db.prod.svc.test", ..ONE };
        assert_eq!(world.answered(&found, 1_040, 0).search_misses, 2);

        assert!(world.answered(&Try { name: "big.test", ..ONE }, 1_050, TC).truncated);
        let summary = world.lookups.take_summary();
        assert_eq!((summary.lost_twins, summary.unanswered), (1, 3));
        assert_eq!((summary.searched, summary.search_misses, summary.truncated), (1, 2, 1));
        let counted = |name| world.store.usage().find(|usage| usage.metric.name == name).unwrap().active;
        assert_eq!((counted("dns.lookup.lost_twin"), counted("dns.lookup.search_misses")), (1, 1));
    }
}
