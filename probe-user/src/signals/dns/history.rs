//! What one lookup has to do with others: tries of the same question, its twin for the other kind of address, what a search list
//! made of a name, an answer over UDP that was cut.
//!
//! All of it is bounded, and keeps to what is certain: where something had to be forgotten, a reading is too small, never too large.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::num::NonZeroUsize;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use lru::LruCache;
use probe_common::dns::{Asked, NAME_ROOM};

/// Questions whose tries are kept.
const QUESTIONS: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");
/// Tries of one question that are kept.
const TRIES: usize = 64;
/// Places for questions that had an answer: 1 MiB.
const SETTLED: usize = 65_536;
/// Processes whose names that do not exist are kept, and how many of each.
const ASKERS: NonZeroUsize = NonZeroUsize::new(512).expect("not zero");
const MISSES: usize = 16;
/// Answered questions for addresses that are kept, in each of two halves.
const ANSWERED: usize = 65_536;

/// Tries this close to each other are one: resolvers ask several servers at once. Who repeats for want of an answer waits longer.
const TOGETHER_NS: u64 = 20_000_000;
/// Questions for A and AAAA this close to each other are of one mind.
const TWINS_NS: u64 = 200_000_000;
/// A name that was missed longer ago than this is missed anew: its other type comes at once, who asks again later begins again.
const SAME_SEARCH_NS: u64 = 3_000_000_000;
/// What lies further back than this has nothing to do with what happens now. (glibc: 5 s a try, by default.)
const RELATED_NS: u64 = 30_000_000_000;

/// QTYPEs (RFC 1035, RFC 3596).
const A: u16 = 1;
const AAAA: u16 = 28;

/// Who asks: the process, where it is known, else the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Asker {
    Process(u32),
    Socket(u64),
}

impl Asker {
    pub(super) fn of(asked: &Asked, cookie: u64) -> Self {
        if asked.owner.tgid == 0 { Self::Socket(cookie) } else { Self::Process(asked.owner.tgid) }
    }
}

/// A name in wire format, in lower case (RFC 4343).
pub(super) struct Folded {
    octets: [u8; NAME_ROOM],
    len: usize,
}

impl Folded {
    pub(super) fn of(name: &[u8]) -> Self {
        let mut folded = Self { octets: [0; NAME_ROOM], len: name.len().min(NAME_ROOM) };
        for (to, from) in folded.octets.iter_mut().zip(name) {
            // A label's length is below 64, so never taken for a letter.
            *to = from.to_ascii_lowercase();
        }
        folded
    }

    fn name(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or_default()
    }
}

/// Tries of questions that are not answered yet.
#[derive(Debug)]
pub(super) struct Tries {
    by_question: LruCache<(Asker, u32), Rounds>,
    hasher: RandomState,
    /// Questions that had an answer of use lately, each in the place that its hash names: hash, and when that was. A question asked of
    /// two servers is settled though one of them never answers.
    settled: Box<[(u64, u64)]>,
}

#[derive(Debug, Default)]
struct Rounds {
    /// In the order in which they were noted.
    rounds: Vec<Round>,
    /// Those that had no room there any more.
    further: u16,
    /// When an answer came that was cut; 0: none did.
    cut_ns: u64,
}

/// Questions to one server or to several at once.
#[derive(Clone, Copy, Debug)]
struct Round {
    begun_ns: u64,
    /// When an answer came that was of no use; `u64::MAX`: none so far.
    failed_ns: u64,
}

impl Round {
    /// Whether it was before what was sent then. Who was refused asks elsewhere at once.
    fn is_before(&self, sent_ns: u64) -> bool {
        sent_ns >= self.begun_ns + TOGETHER_NS || sent_ns >= self.failed_ns
    }
}

impl Default for Tries {
    fn default() -> Self {
        Self {
            by_question: LruCache::new(QUESTIONS),
            hasher: RandomState::default(),
            settled: vec![(0, 0); SETTLED].into(),
        }
    }
}

impl Tries {
    /// A question waits, or nobody answered it.
    pub(super) fn tried(&mut self, asker: Asker, question: u32, sent_ns: u64) {
        self.note(asker, question, Round { begun_ns: sent_ns, failed_ns: u64::MAX });
    }

    /// A question had an answer that is of no use.
    pub(super) fn failed(&mut self, asker: Asker, question: u32, sent_ns: u64, now_ns: u64) {
        self.note(asker, question, Round { begun_ns: sent_ns, failed_ns: now_ns });
    }

    fn note(&mut self, asker: Asker, question: u32, round: Round) {
        let sent_ns = round.begun_ns;
        let settled_ns = self.settled_ns(asker, question);
        if sent_ns <= settled_ns {
            return;
        }
        let known = self.by_question.get_or_insert_mut((asker, question), Rounds::default);
        known.rounds.retain(|known| known.begun_ns > settled_ns);
        let latest = known.rounds.iter().map(|round| round.begun_ns).max();
        if latest.is_none_or(|latest| sent_ns > latest + RELATED_NS) {
            *known = Rounds { cut_ns: known.cut_ns, ..Rounds::default() };
        }
        let same = |known: &&mut Round| {
            known.begun_ns.abs_diff(sent_ns) < TOGETHER_NS
                && !known.is_before(sent_ns)
                && !round.is_before(known.begun_ns)
        };
        if let Some(same) = known.rounds.iter_mut().find(same) {
            same.failed_ns = same.failed_ns.min(round.failed_ns);
            return;
        }
        if known.rounds.len() == TRIES {
            known.rounds.remove(0);
            known.further = known.further.saturating_add(1);
        }
        known.rounds.push(round);
    }

    /// Which try it was that was sent then.
    pub(super) fn number(&self, asker: Asker, question: u32, sent_ns: u64) -> u16 {
        let Some(known) = self.by_question.peek(&(asker, question)) else { return 1 };
        let settled_ns = self.settled_ns(asker, question);
        let counts = |round: &&Round| {
            round.is_before(sent_ns) && (sent_ns <= settled_ns || round.begun_ns > settled_ns)
        };
        let before = known.rounds.iter().filter(counts);
        let (count, latest) =
            before.fold((0u16, 0), |(count, latest), round| (count + 1, latest.max(round.begun_ns)));
        if count == 0 || sent_ns.saturating_sub(latest) > RELATED_NS {
            return 1;
        }
        count.saturating_add(known.further).saturating_add(1)
    }

    /// An answer came that is of use to what was sent then: no try before another, and who asks again, begins anew.
    pub(super) fn settled(&mut self, asker: Asker, question: u32, sent_ns: u64, now_ns: u64) {
        let hash = self.hasher.hash_one((asker, question));
        if let Some(place) = self.settled.get_mut(hash as usize % SETTLED) {
            *place = (hash, now_ns);
        }
        if let Some(known) = self.by_question.peek_mut(&(asker, question)) {
            known.rounds.retain(|round| round.begun_ns.abs_diff(sent_ns) >= TOGETHER_NS);
        }
    }

    /// When a question had an answer of use last; 0: not lately.
    fn settled_ns(&self, asker: Asker, question: u32) -> u64 {
        let hash = self.hasher.hash_one((asker, question));
        let place = self.settled.get(hash as usize % SETTLED);
        place.filter(|(settled, _)| *settled == hash).map_or(0, |(_, at)| *at)
    }

    /// An answer came that was cut.
    pub(super) fn cut(&mut self, asker: Asker, question: u32, now_ns: u64) {
        self.by_question.get_or_insert_mut((asker, question), Rounds::default).cut_ns = now_ns;
    }

    /// Whether a question was sent because the answer had been cut. True once for each such answer.
    pub(super) fn take_cut(&mut self, asker: Asker, question: u32, sent_ns: u64) -> bool {
        let Some(rounds) = self.by_question.peek_mut(&(asker, question)) else { return false };
        let cut_ns = rounds.cut_ns;
        let follows = cut_ns != 0 && sent_ns >= cut_ns && sent_ns - cut_ns <= RELATED_NS;
        if follows {
            rounds.cut_ns = 0;
        }
        follows
    }
}

/// Questions for addresses that were answered lately: in two halves, of which the older is dropped as a whole.
#[derive(Debug)]
pub(super) struct Twins {
    hasher: RandomState,
    /// Hash of asker, type, name and about when it was asked (who asks again does not hide the time before) to when exactly.
    young: HashMap<u64, u64, RandomState>,
    old: HashMap<u64, u64, RandomState>,
    /// How long a half is filled.
    period_ns: u64,
    begun_ns: u64,
}

impl Twins {
    /// For questions that are given up after `timeout`.
    pub(super) fn new(timeout: Duration) -> Self {
        let period_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).saturating_add(1_000_000_000);
        Self {
            hasher: RandomState::default(),
            young: HashMap::default(),
            old: HashMap::default(),
            period_ns,
            begun_ns: 0,
        }
    }

    /// One was answered.
    pub(super) fn answered(&mut self, asker: Asker, name: &Folded, qtype: u16, sent_ns: u64, now_ns: u64) {
        if qtype != A && qtype != AAAA {
            return;
        }
        if now_ns.saturating_sub(self.begun_ns) > self.period_ns {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
            self.begun_ns = now_ns;
        }
        let key = self.key(asker, name, qtype, sent_ns / TWINS_NS);
        if self.young.len() < ANSWERED {
            self.young.insert(key, sent_ns);
        }
    }

    /// Whether of a question that nobody answered the other, asked beside it, was answered. Not where another server did answer it.
    pub(super) fn is_lost(&self, asker: Asker, name: &Folded, qtype: u16, sent_ns: u64) -> bool {
        let other = match qtype {
            A => AAAA,
            AAAA => A,
            _ => return false,
        };
        self.was_answered(asker, name, other, sent_ns) && !self.was_answered(asker, name, qtype, sent_ns)
    }

    /// Whether one was answered that was asked about then.
    fn was_answered(&self, asker: Asker, name: &Folded, qtype: u16, sent_ns: u64) -> bool {
        let span = sent_ns / TWINS_NS;
        (span.saturating_sub(1)..=span + 1).any(|span| {
            let key = self.key(asker, name, qtype, span);
            [&self.young, &self.old]
                .iter()
                .any(|half| half.get(&key).is_some_and(|sent| sent.abs_diff(sent_ns) <= TWINS_NS))
        })
    }

    fn key(&self, asker: Asker, name: &Folded, qtype: u16, span: u64) -> u64 {
        self.hasher.hash_one((asker, qtype, span, name.name()))
    }
}

/// Names that did not exist, by who asked for them.
#[derive(Debug)]
pub(super) struct SearchLists(LruCache<Asker, VecDeque<Miss>>);

#[derive(Debug)]
struct Miss {
    name: Box<[u8]>,
    last_ns: u64,
    count: u32,
}

impl Default for SearchLists {
    fn default() -> Self {
        Self(LruCache::new(ASKERS))
    }
}

impl SearchLists {
    /// A name does not exist.
    pub(super) fn miss(&mut self, asker: Asker, name: &Folded, now_ns: u64) {
        let misses = self.0.get_or_insert_mut(asker, VecDeque::new);
        if let Some(known) = misses.iter_mut().find(|miss| *miss.name == *name.name()) {
            let is_same = now_ns.saturating_sub(known.last_ns) <= SAME_SEARCH_NS;
            known.count = if is_same { known.count.saturating_add(1) } else { 1 };
            known.last_ns = now_ns;
            return;
        }
        if misses.len() == MISSES {
            misses.pop_front();
        }
        misses.push_back(Miss { name: name.name().into(), last_ns: now_ns, count: 1 });
    }

    /// A name was found: how many lookups went before it for names that a search list had made of it. They count once.
    pub(super) fn found(&mut self, asker: Asker, name: &Folded, now_ns: u64) -> u32 {
        let Some(misses) = self.0.peek_mut(&asker) else { return 0 };
        misses.retain(|miss| now_ns.saturating_sub(miss.last_ns) <= RELATED_NS);
        let mut count = 0;
        misses.retain(|miss| {
            let expanded = is_expansion(&miss.name, name.name());
            count += if expanded { miss.count } else { 0 };
            !expanded
        });
        if misses.is_empty() {
            self.0.pop(&asker);
        }
        count
    }
}

/// Whether a search list that leads to `found` can have made `tried` before: both begin with the same labels, which are what was
/// asked for, and `found` goes on with the end of what `tried` goes on with (or with nothing): `db.prod.default.svc.test` and
/// `db.prod.svc.test`. What search lists of unrelated domains make is not told apart from other names, and not counted.
fn is_expansion(tried: &[u8], found: &[u8]) -> bool {
    if tried.len() <= found.len() {
        return false;
    }
    let mut at = 0;
    loop {
        let Some(label) = found.get(at).map(|len| usize::from(*len)).filter(|len| *len != 0) else {
            return false;
        };
        at += label + 1;
        let (Some(stem), Some(rest)) = (found.get(..at), found.get(at..)) else { return false };
        if !tried.starts_with(stem) {
            return false;
        }
        // Both at the borders of labels: they have the same stem, and the rest must begin where a label does.
        if tried.ends_with(rest) && begins_label(tried, tried.len() - rest.len()) {
            return true;
        }
    }
}

/// Whether a label of a name begins there, or its end does.
fn begins_label(name: &[u8], position: usize) -> bool {
    let mut at = 0;
    while at < position {
        let Some(len) = name.get(at).filter(|len| **len != 0) else { return false };
        at += usize::from(*len) + 1;
    }
    at == position
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const WHO: Asker = Asker::Process(7);

    fn name(text: &str) -> Folded {
        let labels = text.split('.').filter(|label| !label.is_empty());
        let wire: Vec<u8> =
            labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).chain([0]).collect();
        Folded::of(&wire)
    }

    #[test]
    fn tries_are_numbered_until_one_is_of_use() {
        let mut tries = Tries::default();
        assert_eq!(tries.number(WHO, 1, 100 * MS), 1);
        // Two servers at once, then again.
        for sent in [100, 101, 2_600, 2_601] {
            tries.tried(WHO, 1, sent * MS);
        }
        // A look at what waits says the same again.
        tries.tried(WHO, 1, 100 * MS);
        for (sent, number) in [(100, 1), (101, 1), (2_600, 2), (2_601, 2), (5_100, 3)] {
            assert_eq!(tries.number(WHO, 1, sent * MS), number, "{sent} ms");
        }
        assert_eq!(tries.number(Asker::Process(8), 1, 5_100 * MS), 1, "another process");
        assert_eq!(tries.number(WHO, 2, 5_100 * MS), 1, "another question");
        tries.settled(WHO, 1, 5_100 * MS, 5_200 * MS);
        assert_eq!(tries.number(WHO, 1, 5_100 * MS), 3, "the other server's answer to that try");
        assert_eq!(tries.number(WHO, 1, 5_300 * MS), 1, "asked anew");
        tries.tried(WHO, 1, 5_300 * MS);
        assert_eq!(tries.number(WHO, 1, 6_300 * MS), 2);
        // Nobody waits that long.
        tries.tried(WHO, 1, 5_300 * MS + 2 * RELATED_NS);
        assert_eq!(tries.number(WHO, 1, 5_300 * MS + 2 * RELATED_NS), 1);
        for sent in 1..=200 {
            tries.tried(WHO, 3, sent * 1_000 * MS);
        }
        assert_eq!(tries.number(WHO, 3, 201_000 * MS), 201);
    }

    #[test]
    fn what_was_answered_is_no_try_before() {
        let mut tries = Tries::default();
        // Two servers at once, of which one never answers: seen waiting only after the other's answer.
        tries.settled(WHO, 1, 100 * MS, 110 * MS);
        tries.tried(WHO, 1, 100 * MS);
        assert_eq!(tries.number(WHO, 1, 1_100 * MS), 1, "asked anew");
        // Two threads ask the same, one a little later, and both have their answer.
        for sent in [2_000, 2_150] {
            tries.tried(WHO, 1, sent * MS);
        }
        assert_eq!(tries.number(WHO, 1, 2_000 * MS), 1);
        tries.settled(WHO, 1, 2_000 * MS, 2_300 * MS);
        assert_eq!(tries.number(WHO, 1, 2_150 * MS), 1);
    }

    #[test]
    fn who_is_refused_asks_elsewhere_at_once() {
        let mut tries = Tries::default();
        // Two servers at once; one refuses, and the same is asked again, while the other still waits.
        tries.tried(WHO, 1, 100 * MS);
        tries.failed(WHO, 1, 100 * MS + 5, 101 * MS);
        tries.tried(WHO, 1, 101 * MS + 5);
        tries.tried(WHO, 1, 100 * MS);
        for (sent, number) in
            [(100 * MS, 1), (100 * MS + 5, 1), (101 * MS + 5, 2), (103 * MS, 2), (121 * MS + 5, 3)]
        {
            assert_eq!(tries.number(WHO, 1, sent), number, "{sent} ns");
        }
    }

    #[test]
    fn a_cut_answer_is_asked_for_again_once() {
        let mut tries = Tries::default();
        tries.cut(WHO, 1, 100 * MS);
        assert!(!tries.take_cut(WHO, 1, 99 * MS), "asked before");
        assert!(!tries.take_cut(WHO, 2, 101 * MS));
        assert!(tries.take_cut(WHO, 1, 101 * MS));
        assert!(!tries.take_cut(WHO, 1, 102 * MS));
        tries.cut(WHO, 1, 200 * MS);
        assert!(!tries.take_cut(WHO, 1, 201 * MS + RELATED_NS));
    }

    #[test]
    fn a_twin_is_lost_when_the_other_was_answered() {
        let mut twins = Twins::new(Duration::from_secs(5));
        let db = name("db.test");
        twins.answered(WHO, &name("DB.test"), A, 1_000 * MS, 1_002 * MS);
        twins.answered(WHO, &db, 16, 1_000 * MS, 1_002 * MS);
        assert!(twins.is_lost(WHO, &db, AAAA, 1_000 * MS));
        assert!(!twins.is_lost(WHO, &db, A, 1_000 * MS), "the other kind is silent");
        assert!(!twins.is_lost(WHO, &db, 16, 1_000 * MS), "no address");
        assert!(!twins.is_lost(WHO, &db, AAAA, 2_000 * MS), "another time");
        assert!(!twins.is_lost(WHO, &name("db2.test"), AAAA, 1_000 * MS));
        assert!(!twins.is_lost(Asker::Socket(7), &db, AAAA, 1_000 * MS));
        // It is still known when the question is given up, and not for ever.
        twins.answered(WHO, &name("x.test"), A, 7_500 * MS, 7_500 * MS);
        assert!(twins.is_lost(WHO, &db, AAAA, 1_000 * MS));
        twins.answered(WHO, &name("x.test"), A, 14_500 * MS, 14_500 * MS);
        assert!(!twins.is_lost(WHO, &db, AAAA, 1_000 * MS));
        for i in 0..ANSWERED + 10 {
            twins.answered(WHO, &name(&format!("n{i}.test")), A, 14_501 * MS, 14_501 * MS);
        }
        assert_eq!(twins.young.len(), ANSWERED);
    }

    /// glibc asks again for what was answered, after five seconds, before it asks again for what was not.
    #[test]
    fn a_twin_stays_lost_when_the_other_is_asked_for_again() {
        let mut twins = Twins::new(Duration::from_secs(5));
        let db = name("db.test");
        for sent in [100_000, 105_000] {
            twins.answered(WHO, &db, A, sent * MS, (sent + 1) * MS);
        }
        assert!(twins.is_lost(WHO, &db, AAAA, 100_000 * MS));
    }

    /// musl asks all servers at once: one of them may be down.
    #[test]
    fn no_twin_is_lost_that_another_server_answered() {
        let mut twins = Twins::new(Duration::from_secs(5));
        let db = name("db.test");
        for qtype in [A, AAAA] {
            twins.answered(WHO, &db, qtype, 1_000 * MS, 1_010 * MS);
        }
        assert!(!twins.is_lost(WHO, &db, A, 1_000 * MS));
        assert!(!twins.is_lost(WHO, &db, AAAA, 1_001 * MS));
    }

    #[test]
    fn search_lists() {
        for (what, tried, found, want) in [
            ("tried last as it is", "api.example.com.default.svc.test", "api.example.com", true),
            ("found in a domain above", "db.prod.default.svc.test", "db.prod.svc.test", true),
            ("one label", "db.default.svc.test", "db.svc.test", true),
            ("another name", "web.prod.default.svc.test", "db.prod.svc.test", false),
            ("another domain", "db.prod.example", "db.prod.svc.test", false),
            ("letters, not labels", "db.production.test", "db.prod.test", false),
            ("itself", "db.test", "db.test", false),
            ("shorter", "db.test", "db.prod.test", false),
            ("the end of a label", "db.default-svc.test", "db.svc.test", false),
            ("root", "db.test", "", false),
        ] {
            assert_eq!(is_expansion(name(tried).name(), name(found).name()), want, "{what}");
        }
        let mut lists = SearchLists::default();
        for suffix in ["default.svc.test", "svc.test", "test"] {
            for _type in [A, AAAA] {
                lists.miss(WHO, &name(&format!("api.example.com.{suffix}")), 5 * MS);
            }
        }
        lists.miss(WHO, &name("typo.example.com"), 6 * MS);
        assert_eq!(lists.found(Asker::Process(8), &name("api.example.com"), 7 * MS), 0);
        assert_eq!(lists.found(WHO, &name("api.example.com"), 7 * MS), 6);
        assert_eq!(lists.found(WHO, &name("api.example.com"), 7 * MS), 0, "they count once");
        // Asked for every five seconds while it was not there: one search of them was for the name that is found.
        for search in 0..100 {
            for _type in [A, AAAA] {
                lists.miss(Asker::Process(9), &name("db.default.svc.test"), search * 5_000 * MS);
            }
        }
        assert_eq!(lists.found(Asker::Process(9), &name("db.svc.test"), 99 * 5_000 * MS + MS), 2);
        lists.miss(WHO, &name("late.test.svc.test"), 8 * MS);
        assert_eq!(lists.found(WHO, &name("late.test"), 9 * MS + RELATED_NS), 0);
        assert!(lists.0.is_empty());
        for i in 0..100 {
            lists.miss(WHO, &name(&format!("n{i}.test")), 9 * MS);
        }
        assert_eq!(lists.0.peek(&WHO).map(VecDeque::len), Some(MISSES));
    }
}
