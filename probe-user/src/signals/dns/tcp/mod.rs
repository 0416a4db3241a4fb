//! Lookups over TCP (RFC 1035, 4.2.2; RFC 7766): segments as they passed, put together to messages, and questions paired with their
//! answers, connection by connection.
//!
//! Questions that wait when a connection ends are left to time out: who asked may well go on waiting, or ask again elsewhere.

mod stream;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use lru::LruCache;
use probe_common::dns::{
    Asked, HEADER, ROLE_CLIENT, ROLE_SERVER, SEGMENT_FIN, SEGMENT_QUERY, SEGMENT_RST, SEGMENT_SERVER,
    SEGMENT_SYN, SegmentRecord,
};
use probe_common::question::{self, NO_QUESTION};
use probe_common::wire::{Address, FAMILY_IPV4, FAMILY_IPV6, Owner};

use self::stream::{Carries, Listener, Message, Piece, Slice, Stream};
use super::message::{self, Answer};
use crate::collect::DecodeError;

/// Connections that are known. Each takes half a KiB, so 2 MiB.
const CONNECTIONS: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");
/// Octets on the heap for what waits on all connections together: names, pieces of streams. With the above and the below 12 MiB;
/// the least active connections are forgotten first.
const HELD: usize = 8 << 20;
/// Questions that wait on one connection: with their names 128 KiB. (Its streams: twice 90 KiB.)
const WAITING: usize = 256;
/// Questions that were given up, in case their answer comes late. Each takes half a KiB, so 2 MiB.
const GIVEN_UP: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");
/// For how long, nanoseconds.
const GIVEN_UP_NS: u64 = 60_000_000_000;
/// A segment has no more octets.
const SEGMENT: u32 = 1 << 16;
/// OPCODE of the flags (RFC 1035, 4.1.1).
const OPCODE: u16 = 0x7800;

/// How a question over TCP ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer.
    Answered(Answer),
    /// Without one.
    Unanswered,
    /// With an answer after it was given up.
    Late(Answer),
}

/// A question over TCP that has come to its end.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Of the socket.
    pub cookie: u64,
    /// When it ended, CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// The question.
    pub asked: Asked,
    /// Who was asked; at the one who is asked, who asked.
    pub peer: Address,
    /// Port there; 0: not known.
    pub port: u16,
    /// Hash of the question ([`probe_common::question::parse`]).
    pub question: u32,
    /// Name in wire format.
    pub name: Box<[u8]>,
    /// How.
    pub ended: Ended,
}

/// Connections to and from servers.
#[derive(Debug)]
pub struct Connections {
    by_cookie: LruCache<u64, Connection>,
    given_up: GivenUp,
    /// Octets that all of them hold on the heap.
    held: usize,
    lost: u64,
}

/// What [`Connections`] hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Connections.
    pub connections: usize,
    /// Questions that wait.
    pub waiting: usize,
    /// Octets of names, and of messages that are not whole.
    pub octets: usize,
}

impl Held {
    /// Never more.
    pub const MOST: Self =
        Self { connections: CONNECTIONS.get(), waiting: CONNECTIONS.get() * WAITING, octets: HELD };
}

#[derive(Debug)]
struct Connection {
    queries: Stream,
    answers: Stream,
    socket: Socket,
    waiting: Waiting,
    /// When something passed last.
    last_ns: u64,
    /// FIN or RST passed.
    ended: bool,
    /// Questions beyond [`WAITING`] that were let go, since this was last asked.
    too_many: u64,
    /// Counted as lost.
    lost: bool,
    /// Octets on the heap as accounted for.
    held: usize,
}

/// Whose a connection is, as far as its segments have told.
#[derive(Clone, Copy, Debug)]
struct Socket {
    cookie: u64,
    cgroup_id: u64,
    owner: Owner,
    peer: Address,
    port: u16,
    netns: u32,
    family: u8,
    role: u8,
}

/// A question.
#[derive(Clone, Debug)]
struct Question {
    asked: Asked,
    peer: Address,
    port: u16,
    name: Box<[u8]>,
}

/// Questions of a connection that wait, by id and hash.
#[derive(Debug, Default)]
struct Waiting {
    questions: BTreeMap<(u16, u32), Question>,
    /// Octets of their names.
    names: usize,
}

type GivenUp = LruCache<(u64, u16, u32), (u64, Question)>;

impl Default for Connections {
    fn default() -> Self {
        Self { by_cookie: LruCache::new(CONNECTIONS), given_up: LruCache::new(GIVEN_UP), held: 0, lost: 0 }
    }
}

impl Connections {
    /// Takes a part of a stream in, and hands on what has come to its end with it.
    ///
    /// # Errors
    ///
    /// When the record is out of order.
    pub fn segment(
        &mut self,
        record: &SegmentRecord,
        ended: &mut dyn FnMut(Exchange),
    ) -> Result<(), DecodeError> {
        let octets = record.octets.get(..usize::from(record.len)).ok_or(DecodeError::Value("length"))?;
        if record.missing > SEGMENT {
            return Err(DecodeError::Value("length"));
        }
        if !matches!(record.family, FAMILY_IPV4 | FAMILY_IPV6) {
            return Err(DecodeError::Value("family"));
        }
        if !self.by_cookie.contains(&record.cookie) {
            if octets.is_empty() && record.missing == 0 && record.flags & SEGMENT_SYN == 0 {
                return Ok(());
            }
            if let Some((_, evicted)) = self.by_cookie.push(record.cookie, Connection::new(record)) {
                self.forget(&evicted);
            }
        }
        let Some(connection) = self.by_cookie.get_mut(&record.cookie) else { return Ok(()) };
        connection.segment(record, octets, &mut self.given_up, ended);
        self.lost += connection.take_lost();
        self.held = connection.account(self.held);
        while self.held > HELD {
            let Some((_, evicted)) = self.by_cookie.pop_lru() else { break };
            self.forget(&evicted);
        }
        Ok(())
    }

    /// Says what waits: cookie of its socket, hash, question.
    pub fn waiting(&self, each: &mut dyn FnMut(u64, u32, &Asked)) {
        for (cookie, connection) in &self.by_cookie {
            for ((_, hash), question) in &connection.waiting.questions {
                each(*cookie, *hash, &question.asked);
            }
        }
    }

    /// Gives up what has waited longer than `timeout_ns`.
    pub fn expire(&mut self, now_ns: u64, timeout_ns: u64, ended: &mut dyn FnMut(Exchange)) {
        let mut over = Vec::new();
        for (cookie, connection) in &mut self.by_cookie {
            connection.expire(now_ns, timeout_ns, &mut self.given_up, ended);
            self.lost += connection.take_lost();
            self.held = connection.account(self.held);
            // Until then, what is sent again is known as such.
            let is_idle = now_ns.saturating_sub(connection.last_ns) > timeout_ns;
            if connection.ended && is_idle && connection.waiting.questions.is_empty() {
                over.push(*cookie);
            }
        }
        for cookie in over {
            if let Some(connection) = self.by_cookie.pop(&cookie) {
                self.held -= connection.held;
            }
        }
    }

    /// Connections whose messages could no longer be told apart, since the last time.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// What is held at the moment, counted anew.
    #[must_use]
    pub fn held(&self) -> Held {
        let connections = || self.by_cookie.iter().map(|(_, connection)| connection);
        Held {
            connections: self.by_cookie.len(),
            waiting: connections().map(|connection| connection.waiting.questions.len()).sum(),
            octets: connections().map(Connection::heap).sum(),
        }
    }

    /// One that had to make room.
    fn forget(&mut self, evicted: &Connection) {
        self.held -= evicted.held;
        self.lost += u64::from(evicted.held != 0 && !evicted.lost);
    }
}

impl Connection {
    fn new(record: &SegmentRecord) -> Self {
        Self {
            queries: Stream::new(Carries::Queries),
            answers: Stream::new(Carries::Answers),
            socket: Socket::of(record),
            waiting: Waiting::default(),
            last_ns: 0,
            ended: false,
            too_many: 0,
            lost: false,
            held: 0,
        }
    }

    fn segment(
        &mut self,
        record: &SegmentRecord,
        octets: &[u8],
        given_up: &mut GivenUp,
        ended: &mut dyn FnMut(Exchange),
    ) {
        let has = |flag| record.flags & flag != 0;
        let time_ns = record.header.time_ns;
        self.socket.learn(record);
        self.last_ns = self.last_ns.max(time_ns);
        // Sent by this host, so nobody has made it up.
        let is_ours = has(SEGMENT_QUERY) != has(SEGMENT_SERVER);
        let mut seq = record.seq;
        if has(SEGMENT_SYN) {
            seq = seq.wrapping_add(1);
            self.begin(seq, has(SEGMENT_QUERY), is_ours);
        }
        let piece = Piece { time_ns, seq, octets, missing: record.missing };
        let carries = if has(SEGMENT_QUERY) { Carries::Queries } else { Carries::Answers };
        self.hear(carries, given_up, ended, |stream, listener| stream.segment(piece, listener));
        let stream = self.stream(carries);
        if has(SEGMENT_FIN | SEGMENT_RST) && (is_ours || stream.is_near(piece.end())) {
            stream.end(piece.end());
            self.ended = true;
            if has(SEGMENT_RST) {
                self.queries.close();
                self.answers.close();
            }
        }
    }

    fn expire(
        &mut self,
        now_ns: u64,
        timeout_ns: u64,
        given_up: &mut GivenUp,
        ended: &mut dyn FnMut(Exchange),
    ) {
        for carries in [Carries::Queries, Carries::Answers] {
            self.hear(carries, given_up, ended, |stream, listener| stream.expire(now_ns, listener));
        }
        let Self { socket, waiting, .. } = self;
        let is_over =
            |_: &_, question: &mut Question| now_ns.saturating_sub(question.asked.sent_ns) > timeout_ns;
        for ((id, hash), question) in waiting.questions.extract_if(.., is_over) {
            waiting.names -= question.name.len();
            ended(question.clone().ended(socket, hash, now_ns, Ended::Unanswered));
            given_up.put((socket.cookie, id, hash), (now_ns, question));
        }
    }

    /// SYN passed. One that comes while the stream is under way is not believed: neither does TCP (RFC 5961, 4).
    fn begin(&mut self, seq: u32, from_client: bool, is_ours: bool) {
        let stream = if from_client { &mut self.queries } else { &mut self.answers };
        if stream.first() == Some(seq) {
            return;
        }
        if from_client && is_ours {
            // The same socket connects anew.
            self.queries.begin(seq);
            self.answers = Stream::new(Carries::Answers);
            (self.ended, self.lost) = (false, false);
        } else if !stream.in_step() {
            stream.begin(seq);
        }
    }

    fn stream(&mut self, carries: Carries) -> &mut Stream {
        match carries {
            Carries::Queries => &mut self.queries,
            Carries::Answers => &mut self.answers,
        }
    }

    /// Does something to a stream while what it brings is paired.
    fn hear(
        &mut self,
        carries: Carries,
        given_up: &mut GivenUp,
        ended: &mut dyn FnMut(Exchange),
        work: impl FnOnce(&mut Stream, &mut dyn Listener),
    ) {
        let Self { queries, answers, socket, waiting, too_many, .. } = self;
        let stream = match carries {
            Carries::Queries => queries,
            Carries::Answers => answers,
        };
        work(stream, &mut Pairing { carries, socket, waiting, given_up, too_many, ended });
    }

    /// Questions that were let go; and one, if the streams are out of step for the first time.
    fn take_lost(&mut self) -> u64 {
        let is_lost = self.queries.take_lost() | self.answers.take_lost();
        let is_new = is_lost && !self.lost;
        self.lost |= is_lost;
        u64::from(is_new) + std::mem::take(&mut self.too_many)
    }

    /// Octets on the heap, about.
    fn heap(&self) -> usize {
        /// B-tree nodes are at least half full.
        const QUESTION: usize = 2 * (size_of::<(u16, u32)>() + size_of::<Question>()) + 32;
        let Waiting { questions, names } = &self.waiting;
        self.queries.held() + self.answers.held() + questions.len() * QUESTION + names
    }

    /// What all connections hold, when they held `all` before this one changed.
    fn account(&mut self, all: usize) -> usize {
        let now = self.heap();
        all - std::mem::replace(&mut self.held, now) + now
    }
}

impl Socket {
    fn of(record: &SegmentRecord) -> Self {
        Self {
            cookie: record.cookie,
            cgroup_id: record.cgroup_id,
            owner: record.owner,
            peer: record.peer,
            port: record.port,
            netns: record.netns,
            family: record.family,
            role: if record.flags & SEGMENT_SERVER == 0 { ROLE_CLIENT } else { ROLE_SERVER },
        }
    }

    /// Takes over what a record knows.
    fn learn(&mut self, record: &SegmentRecord) {
        let told = Self::of(record);
        (self.family, self.role) = (told.family, told.role);
        if told.cgroup_id != 0 {
            self.cgroup_id = told.cgroup_id;
        }
        if told.owner.tgid != 0 {
            self.owner = told.owner;
        }
        if told.port != 0 {
            (self.peer, self.port) = (told.peer, told.port);
        }
        if told.netns != 0 {
            self.netns = told.netns;
        }
    }
}

impl Waiting {
    fn take(&mut self, key: (u16, u32)) -> Option<Question> {
        let question = self.questions.remove(&key)?;
        self.names -= question.name.len();
        Some(question)
    }

    /// The same, unless an answer that passed then cannot be to it: answers behind a hole are read when that is given up.
    fn take_asked_by(&mut self, time_ns: u64, key: (u16, u32)) -> Option<Question> {
        self.questions.get(&key).filter(|question| question.asked.sent_ns <= time_ns)?;
        self.take(key)
    }

    /// False: there is no room.
    fn insert(&mut self, key: (u16, u32), question: Question) -> bool {
        let has_room = self.questions.len() < WAITING;
        if has_room {
            self.names += question.name.len();
            self.questions.insert(key, question);
        }
        has_room
    }

    /// Hashes of the questions with an id.
    fn hashes(&self, id: u16) -> impl Iterator<Item = u32> {
        self.questions.range((id, 0)..=(id, u32::MAX)).map(|((_, hash), _)| *hash)
    }
}

impl Question {
    fn ended(self, socket: &Socket, question: u32, time_ns: u64, ended: Ended) -> Exchange {
        let Self { mut asked, mut peer, mut port, name } = self;
        // What an answer told about the socket, the query may not have.
        if asked.owner.tgid == 0 {
            asked.owner = socket.owner;
        }
        if asked.cgroup_id == 0 {
            asked.cgroup_id = socket.cgroup_id;
        }
        if port == 0 {
            (peer, port) = (socket.peer, socket.port);
        }
        Exchange { cookie: socket.cookie, time_ns, asked, peer, port, question, name, ended }
    }
}

/// Pairs what a stream brings.
struct Pairing<'a> {
    carries: Carries,
    socket: &'a Socket,
    waiting: &'a mut Waiting,
    given_up: &'a mut GivenUp,
    too_many: &'a mut u64,
    ended: &'a mut dyn FnMut(Exchange),
}

impl Listener for Pairing<'_> {
    fn message(&mut self, message: Message<'_>) {
        // Of other kinds of messages nothing is known that waits.
        let Some(header) = Header::of(message.head).filter(|header| header.flags & OPCODE == 0) else {
            return;
        };
        match self.carries {
            Carries::Queries => self.query(header, message),
            Carries::Answers => self.answer(header, message),
        }
    }

    fn waits(&self, id: u16) -> bool {
        self.waiting.hashes(id).next().is_some()
    }
}

impl Pairing<'_> {
    fn query(&mut self, header: Header, Message { time_ns, head }: Message<'_>) {
        let Some((hash, qtype, name)) = header.question(head) else { return };
        let key = (header.id, hash);
        let mut attempt = 1;
        if let Some(before) = self.waiting.take(key) {
            attempt = before.asked.attempt.saturating_add(1);
            (self.ended)(before.ended(self.socket, hash, time_ns, Ended::Unanswered));
        }
        let Socket { cookie: _, cgroup_id, owner, peer, port, netns, family, role } = *self.socket;
        let asked = Asked {
            sent_ns: time_ns,
            cgroup_id,
            owner,
            netns,
            qtype,
            attempt,
            family,
            // A name has no more.
            name_len: u8::try_from(name.len()).unwrap_or(u8::MAX),
            role,
            _pad: [0; 5],
        };
        let question = Question { asked, peer, port, name: name.into() };
        *self.too_many += u64::from(!self.waiting.insert(key, question));
    }

    fn answer(&mut self, header: Header, Message { time_ns, head }: Message<'_>) {
        let Some(answer) = message::answer(head) else { return };
        let hash = match header.questions {
            // An error that names no question: the only one that it can be about.
            0 if answer.rcode != 0 => {
                let mut hashes = self.waiting.hashes(header.id);
                hashes.next().filter(|_| hashes.next().is_none())
            }
            _ => header.question(head).map(|(hash, _, _)| hash),
        };
        let Some(hash) = hash else { return };
        // Further messages of a zone transfer find nobody waiting.
        if let Some(question) = self.waiting.take_asked_by(time_ns, (header.id, hash)) {
            (self.ended)(question.ended(self.socket, hash, time_ns, Ended::Answered(answer)));
            return;
        }
        let key = (self.socket.cookie, header.id, hash);
        let is_to = |(at_ns, question): &&(u64, Question)| {
            question.asked.sent_ns <= time_ns && time_ns.saturating_sub(*at_ns) <= GIVEN_UP_NS
        };
        if self.given_up.peek(&key).filter(is_to).is_some()
            && let Some((_, question)) = self.given_up.pop(&key)
        {
            (self.ended)(question.ended(self.socket, hash, time_ns, Ended::Late(answer)));
        }
    }
}

/// What is needed of a message's header (RFC 1035, 4.1.1).
#[derive(Clone, Copy)]
struct Header {
    id: u16,
    flags: u16,
    /// QDCOUNT.
    questions: u16,
}

impl Header {
    fn of(message: &[u8]) -> Option<Self> {
        let [id_high, id_low, flags_high, flags_low, questions_high, questions_low, ..] =
            *message.first_chunk::<HEADER>()?;
        Some(Self {
            id: u16::from_be_bytes([id_high, id_low]),
            flags: u16::from_be_bytes([flags_high, flags_low]),
            questions: u16::from_be_bytes([questions_high, questions_low]),
        })
    }

    /// Hash, type and name of the only question.
    fn question(self, message: &[u8]) -> Option<(u32, u16, &[u8])> {
        if self.questions != 1 {
            return None;
        }
        let packed = question::parse(&Slice(message), HEADER as u32);
        if packed == NO_QUESTION {
            return None;
        }
        let name = message.get(HEADER..)?.get(..usize::from(packed as u16))?;
        Some(((packed >> 32) as u32, (packed >> 16) as u16, name))
    }
}

#[cfg(test)]
mod tests;
