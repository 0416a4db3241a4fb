//! One direction of a TCP connection: segments as they passed, in any order and again, put together to messages, each with its length
//! before it (RFC 1035, 4.2.2).
//!
//! What is known: where the stream stands (`next`, in step), which octets passed ahead of that, and how much of the message that is
//! under way is still to come. Only a message's head is kept. Out of step, octets are looked at until some look like a beginning.

use std::collections::BTreeMap;

use probe_common::dns::{HEADER, NAME_MAX};
use probe_common::question::{self, NO_QUESTION};

/// Octets of a query that are kept: more than the longest question takes.
pub(super) const QUERY_HEAD: usize = 512;
/// Octets of an answer that are kept: an answer with more has its times to live unread.
pub(super) const ANSWER_HEAD: usize = 4_096;
/// Octets that wait for others before them, of one direction.
pub(super) const AHEAD: usize = 64 << 10;
/// Pieces that they are in.
pub(super) const PIECES: usize = 128;
/// How far from where the stream stands a segment may lie. What is further away is forged or very old, unless it goes on like that.
const WINDOW: u32 = 1 << 20;
/// So many segments from elsewhere without one from here: the stream has moved.
const STRAYS: u8 = 8;
/// How long a hole is waited for once something passed behind it, nanoseconds: retransmissions have filled it by then, or it is a record that was lost.
const HOLE_NS: u64 = 2_000_000_000;
/// Octets that tell whether a message begins: length, header and question.
const BEGINNING: usize = 2 + HEADER + NAME_MAX + 4;
/// Opcode of the flags' upper octet, and QR there (RFC 1035, 4.1.1).
const OPCODE: u8 = 0x78;
const RESPONSE: u8 = 0x80;

/// Which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carries {
    Queries,
    Answers,
}

/// Octets as they passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) time_ns: u64,
    /// Sequence number of the first.
    pub(super) seq: u32,
    pub(super) octets: &'a [u8],
    /// Octets right behind them that passed unseen.
    pub(super) missing: u32,
}

impl Piece<'_> {
    /// Sequence number behind them all.
    pub(super) fn end(&self) -> u32 {
        // As many as a segment holds.
        self.seq.wrapping_add(self.octets.len() as u32).wrapping_add(self.missing)
    }
}

/// A message that has passed to its last octet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// When all octets up to its last had passed for the first time.
    pub(super) time_ns: u64,
    /// Its octets, up to the first that is not kept or not known.
    pub(super) head: &'a [u8],
}

/// Who takes messages.
pub(super) trait Listener {
    fn message(&mut self, message: Message<'_>);

    /// Whether a question with this id waits.
    fn waits(&self, id: u16) -> bool;
}

/// A slice as packets are read.
pub(super) struct Slice<'a>(pub(super) &'a [u8]);

impl question::Octets for Slice<'_> {
    fn load<const N: usize>(&self, at: u32, room: &mut [u8; N], len: u32) -> bool {
        let (at, len) = (at as usize, len as usize);
        let Some((room, octets)) = room.get_mut(..len).zip(self.0.get(at..at + len)) else { return false };
        room.copy_from_slice(octets);
        true
    }

    fn forget(number: &u32) -> Option<u32> {
        Some(*number)
    }
}

/// One direction.
#[derive(Debug)]
pub(super) struct Stream {
    carries: Carries,
    /// It is known where messages begin.
    in_step: bool,
    /// Sequence number of the first octet that has not passed.
    next: u32,
    /// The same, counted without wrapping from anywhere.
    at: u64,
    /// When the last octet before it passed, or one before that if it was later.
    passed_ns: u64,
    framing: Framing,
    /// What passed ahead of that, by where it begins; pieces may overlap. Empty when out of step.
    ahead: BTreeMap<u64, Ahead>,
    /// Octets there.
    ahead_octets: usize,
    /// Segments from elsewhere, one after the other.
    strays: u8,
    /// Where SYN said that it begins.
    first: Option<u32>,
    /// Out of step: what may be a beginning, but is too short to tell.
    guess: Option<Guess>,
    /// It has been out of step since this was last asked.
    lost: bool,
}

#[derive(Debug)]
enum Framing {
    /// Between messages, perhaps behind the first octet of a length.
    Length(Option<u8>),
    Body(Body),
}

#[derive(Debug)]
struct Body {
    /// Octets to come.
    left: u64,
    head: Vec<u8>,
    /// Octets to come that are kept.
    room: usize,
}

#[derive(Debug)]
struct Ahead {
    time_ns: u64,
    octets: Box<[u8]>,
    missing: u32,
}

#[derive(Debug)]
struct Guess {
    seq: u32,
    octets: Vec<u8>,
    /// Sequence number behind it.
    end: u32,
}

/// Whether octets are the beginning of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beginning {
    Yes,
    No,
    /// There are too few to tell.
    Short,
}

impl Stream {
    pub(super) fn new(carries: Carries) -> Self {
        Self {
            carries,
            in_step: false,
            next: 0,
            at: 0,
            passed_ns: 0,
            framing: Framing::Length(None),
            ahead: BTreeMap::new(),
            ahead_octets: 0,
            strays: 0,
            first: None,
            guess: None,
            lost: false,
        }
    }

    pub(super) fn in_step(&self) -> bool {
        self.in_step
    }

    /// Where SYN said that it begins.
    pub(super) fn first(&self) -> Option<u32> {
        self.first
    }

    /// The stream begins here, as SYN says.
    pub(super) fn begin(&mut self, seq: u32) {
        *self =
            Self { in_step: true, next: seq, first: Some(seq), lost: self.lost, ..Self::new(self.carries) };
    }

    /// Takes in what passed.
    pub(super) fn segment(&mut self, piece: Piece<'_>, listener: &mut dyn Listener) {
        self.take_in(piece, listener);
        self.expire(piece.time_ns, listener);
    }

    fn take_in(&mut self, piece: Piece<'_>, listener: &mut dyn Listener) {
        if piece.octets.is_empty() && piece.missing == 0 {
            return;
        }
        if self.in_step && self.is_elsewhere(piece.seq) {
            self.strays += 1;
            if self.strays < STRAYS {
                return;
            }
            self.lose();
            self.clear_ahead();
        }
        self.strays = 0;
        if !self.in_step {
            if self.find(piece, listener) {
                self.settle(self.at + u64::from(piece.missing), listener);
            }
        } else {
            let ahead = piece.seq.wrapping_sub(self.next);
            match ahead.cast_signed() {
                1.. => self.keep(self.at + u64::from(ahead), piece),
                behind => {
                    let new = piece.end().wrapping_sub(self.next).cast_signed();
                    if new <= 0 {
                        return;
                    }
                    let passed = self.at + u64::from(new.unsigned_abs());
                    let octets = piece.octets.get(behind.unsigned_abs() as usize..).unwrap_or_default();
                    self.octets(piece.time_ns, octets, listener);
                    self.settle(passed, listener);
                }
            }
            while self.ahead.len() > PIECES || self.ahead_octets > AHEAD {
                self.skip_hole(listener);
            }
        }
    }

    /// Waits no longer for what should have come by now.
    pub(super) fn expire(&mut self, now_ns: u64, listener: &mut dyn Listener) {
        let is_old = |kept: &Ahead| now_ns.saturating_sub(kept.time_ns) > HOLE_NS;
        while self.ahead.first_key_value().is_some_and(|(_, kept)| is_old(kept)) {
            self.skip_hole(listener);
        }
    }

    /// Whether what was to come next may be at this sequence number.
    pub(super) fn is_near(&self, seq: u32) -> bool {
        !self.in_step || (seq.wrapping_sub(self.next) <= WINDOW)
    }

    /// Nothing comes at this sequence number or behind it: a message that is under way there will not be whole.
    pub(super) fn end(&mut self, seq: u32) {
        if self.in_step && self.next == seq {
            self.framing = Framing::Length(None);
        }
    }

    /// Nothing comes any more.
    pub(super) fn close(&mut self) {
        let is_between = matches!(self.framing, Framing::Length(None)) && self.ahead.is_empty();
        // Between messages, what is sent again is still known as such.
        if !is_between {
            self.in_step = false;
            self.framing = Framing::Length(None);
            self.clear_ahead();
        }
        self.guess = None;
    }

    /// Whether it got out of step since this was asked last.
    pub(super) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// Octets on the heap, about.
    pub(super) fn held(&self) -> usize {
        /// B-tree nodes are at least half full.
        const PIECE: usize = 2 * (size_of::<u64>() + size_of::<Ahead>()) + 32;
        let head = match &self.framing {
            Framing::Length(_) => 0,
            Framing::Body(body) => body.head.capacity(),
        };
        let guess = self.guess.as_ref().map_or(0, |guess| guess.octets.capacity());
        head + guess + self.ahead_octets + self.ahead.len() * PIECE
    }

    fn head_room(&self) -> usize {
        match self.carries {
            Carries::Queries => QUERY_HEAD,
            Carries::Answers => ANSWER_HEAD,
        }
    }

    fn is_elsewhere(&self, seq: u32) -> bool {
        seq.wrapping_sub(self.next).cast_signed().unsigned_abs() > WINDOW
    }

    /// Keeps what passed before what comes before it.
    fn keep(&mut self, start: u64, piece: Piece<'_>) {
        let mut missing = piece.missing;
        if let Some(before) = self.ahead.get(&start) {
            if before.octets.len() >= piece.octets.len() {
                return;
            }
            let end = before.octets.len() + before.missing as usize;
            missing = missing.max(end.saturating_sub(piece.octets.len()) as u32);
        }
        let kept = Ahead { time_ns: piece.time_ns, octets: piece.octets.into(), missing };
        self.ahead_octets += kept.octets.len();
        if let Some(before) = self.ahead.insert(start, kept) {
            self.ahead_octets -= before.octets.len();
        }
    }

    fn first_ahead(&mut self) -> Option<(u64, Ahead)> {
        let (start, kept) = self.ahead.pop_first()?;
        self.ahead_octets -= kept.octets.len();
        Some((start, kept))
    }

    fn clear_ahead(&mut self) {
        self.ahead.clear();
        self.ahead_octets = 0;
    }

    /// Octets up to `passed` have passed: goes on as far as that, and as far as is known already.
    fn settle(&mut self, mut passed: u64, listener: &mut dyn Listener) {
        loop {
            let start = self.ahead.first_key_value().map(|(start, _)| *start);
            if !self.in_step || start.is_some_and(|start| start <= self.at) {
                let Some((start, kept)) = self.first_ahead() else { break };
                let Ahead { time_ns, octets, missing } = kept;
                let end = start + octets.len() as u64 + u64::from(missing);
                if self.in_step {
                    passed = passed.max(end);
                    // A piece in the middle of what passed has less than what passed.
                    let skipped = usize::try_from(self.at - start).unwrap_or(usize::MAX);
                    self.octets(time_ns, octets.get(skipped..).unwrap_or_default(), listener);
                } else if let Some(gap) = start.checked_sub(self.at) {
                    // Where they lie, as a number that wraps.
                    let seq = self.next.wrapping_add(gap as u32);
                    let piece = Piece { time_ns, seq, octets: &octets, missing };
                    if self.find(piece, listener) {
                        // Counted from elsewhere now, perhaps.
                        passed = self.at + u64::from(missing);
                    }
                }
            } else if passed > self.at {
                let until = start.map_or(passed, |start| start.min(passed));
                self.unseen(self.passed_ns, until - self.at, listener);
            } else {
                break;
            }
        }
    }

    /// Does without what has not come. Something is ahead.
    fn skip_hole(&mut self, listener: &mut dyn Listener) {
        let Some((start, kept)) = self.ahead.first_key_value() else { return };
        let hole = start.saturating_sub(self.at);
        let time_ns = kept.time_ns;
        // In the middle of a message it does no harm: where that ends is known.
        self.unseen(time_ns, hole, listener);
        self.settle(self.at, listener);
    }

    fn pass(&mut self, time_ns: u64, octets: u64) {
        self.passed_ns = self.passed_ns.max(time_ns);
        self.at += octets;
        self.next = self.next.wrapping_add(octets as u32);
    }

    /// The next octets of the stream.
    fn octets(&mut self, time_ns: u64, mut octets: &[u8], listener: &mut dyn Listener) {
        self.pass(time_ns, octets.len() as u64);
        let time_ns = self.passed_ns;
        let (carries, head_room) = (self.carries, self.head_room());
        while !octets.is_empty() {
            match &mut self.framing {
                Framing::Length(first) => {
                    let Some((octet, rest)) = octets.split_first() else { return };
                    octets = rest;
                    let Some(high) = *first else {
                        *first = Some(*octet);
                        continue;
                    };
                    let len = usize::from(u16::from_be_bytes([high, *octet]));
                    if len < HEADER {
                        self.lose();
                        return;
                    }
                    self.framing = Framing::Length(None);
                    if let Some((whole, rest)) = octets.split_at_checked(len) {
                        if !carries.fits(whole) {
                            self.lose();
                            return;
                        }
                        octets = rest;
                        listener.message(Message { time_ns, head: whole.get(..head_room).unwrap_or(whole) });
                    } else {
                        let room = len.min(head_room);
                        self.framing = Framing::Body(Body { left: len as u64, head: Vec::new(), room });
                    }
                }
                Framing::Body(body) => {
                    let left = usize::try_from(body.left).unwrap_or(usize::MAX);
                    let (of_it, rest) = octets.split_at(left.min(octets.len()));
                    octets = rest;
                    let kept = of_it.get(..body.room).unwrap_or(of_it);
                    body.head.extend_from_slice(kept);
                    body.room -= kept.len();
                    body.left -= of_it.len() as u64;
                    if !carries.fits(&body.head) {
                        self.lose();
                        return;
                    }
                    self.complete(time_ns, listener);
                }
            }
        }
    }

    /// The next octets of the stream, not known.
    fn unseen(&mut self, time_ns: u64, octets: u64, listener: &mut dyn Listener) {
        self.pass(time_ns, octets);
        match &mut self.framing {
            Framing::Body(body) if octets <= body.left => {
                body.left -= octets;
                body.room = 0;
                self.complete(self.passed_ns, listener);
            }
            Framing::Length(_) | Framing::Body(_) => self.lose(),
        }
    }

    /// Hands on the message under way if that was all of it.
    fn complete(&mut self, time_ns: u64, listener: &mut dyn Listener) {
        if let Framing::Body(Body { left: 0, head, .. }) = &mut self.framing {
            let head = std::mem::take(head);
            self.framing = Framing::Length(None);
            listener.message(Message { time_ns, head: &head });
        }
    }

    /// It is no longer known where messages begin.
    fn lose(&mut self) {
        self.in_step = false;
        self.framing = Framing::Length(None);
        self.lost = true;
    }

    /// Out of step: whether messages begin here, or began with what passed right before; then these octets are taken in.
    fn find(&mut self, piece: Piece<'_>, listener: &mut dyn Listener) -> bool {
        let Piece { time_ns, seq, octets, missing } = piece;
        let begun = self.guess.take_if(|guess| guess.end == seq);
        let joined = begun.as_ref().map(|guess| {
            let more = octets.get(..BEGINNING.saturating_sub(guess.octets.len())).unwrap_or(octets);
            [&guess.octets, more].concat()
        });
        let of_both = joined.as_ref().map_or(Beginning::No, |joined| self.carries.begins(joined, listener));
        let alone = self.carries.begins(octets, listener);
        if let Some(begun) = begun.as_ref().filter(|_| of_both == Beginning::Yes) {
            self.step_in(begun.seq);
            self.octets(time_ns, &begun.octets, listener);
        } else if alone == Beginning::Yes {
            self.step_in(seq);
        } else if missing == 0 && (of_both == Beginning::Short || alone == Beginning::Short) {
            // What looked like a beginning before goes on looking like one, or gives way to what looks like one alone.
            self.guess = match (of_both, begun, joined) {
                (Beginning::Short, Some(begun), Some(joined)) => {
                    Some(Guess { seq: begun.seq, octets: joined, end: piece.end() })
                }
                _ => Some(Guess { seq, octets: octets.to_vec(), end: piece.end() }),
            };
            return false;
        } else {
            return false;
        }
        if self.in_step {
            self.octets(time_ns, octets, listener);
        }
        true
    }

    fn step_in(&mut self, seq: u32) {
        // What is ahead keeps its place.
        self.at = match self.ahead.is_empty() {
            true => 0,
            false => self.at + u64::from(seq.wrapping_sub(self.next)),
        };
        self.in_step = true;
        self.next = seq;
        self.guess = None;
    }
}

impl Carries {
    /// Whether a message that begins like this may come this way.
    fn fits(self, message: &[u8]) -> bool {
        let answers = self == Self::Answers;
        message.get(2).is_none_or(|flags| (flags & RESPONSE != 0) == answers)
    }

    /// Whether a message begins here.
    fn begins(self, octets: &[u8], listener: &dyn Listener) -> Beginning {
        let word = |at: usize| Some(u16::from_be_bytes([*octets.get(at)?, *octets.get(at + 1)?]));
        let Some(len) = word(0).map(usize::from) else { return Beginning::Short };
        if len < HEADER {
            return Beginning::No;
        }
        let Some(message) = octets.get(2..) else { return Beginning::Short };
        let whole = message.len() >= len;
        let message = message.get(..len).unwrap_or(message);
        if !self.fits(message) || message.get(2).is_some_and(|flags| flags & OPCODE != 0) {
            return Beginning::No;
        }
        let (Some(id), Some(questions)) = (word(2), word(6)) else { return Beginning::Short };
        match (self, questions) {
            (Self::Queries | Self::Answers, 1) => {}
            (Self::Answers, 0) if listener.waits(id) => {
                return if message.len() < HEADER { Beginning::Short } else { Beginning::Yes };
            }
            (Self::Queries | Self::Answers, _) => return Beginning::No,
        }
        // A query holds no answers.
        if self == Self::Queries && word(8).is_some_and(|answers| answers != 0) {
            return Beginning::No;
        }
        if message.len() >= HEADER && question::parse(&Slice(message), HEADER as u32) != NO_QUESTION {
            return Beginning::Yes;
        }
        if whole || octets.len() >= BEGINNING { Beginning::No } else { Beginning::Short }
    }
}
