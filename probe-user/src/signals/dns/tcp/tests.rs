use std::collections::BTreeMap;

use bytemuck::Zeroable as _;
use probe_common::dns::{KIND_SEGMENT, SEGMENT_ROOM};
use probe_common::wire::RecordHeader;
use proptest::prelude::*;

use super::stream::{AHEAD, ANSWER_HEAD, PIECES, QUERY_HEAD};
use super::*;

const SECOND: u64 = 1_000_000_000;
/// After it questions are given up.
const TIMEOUT: u64 = 5 * SECOND;
/// A, IN.
const A_IN: [u8; 4] = [0, 1, 0, 1];
const ANSWER: u16 = 0x8180;
const QUERY: u16 = 0x0100;

fn wire(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).chain([0]).collect()
}

fn message(id: u16, flags: u16, names: &[&str], further: usize) -> Vec<u8> {
    let counts = [id, flags, names.len() as u16, 0, 0, 0].map(u16::to_be_bytes).concat();
    let questions = names.iter().flat_map(|name| [&wire(name)[..], &A_IN].concat());
    counts.into_iter().chain(questions).chain(std::iter::repeat_n(0xaa, further)).collect()
}

fn query(id: u16, name: &str) -> Vec<u8> {
    message(id, QUERY, &[name], 0)
}

fn answer(id: u16, name: &str) -> Vec<u8> {
    message(id, ANSWER, &[name], 30)
}

fn framed<T: AsRef<[u8]>>(messages: &[T]) -> Vec<u8> {
    let one = |message: &T| [&(message.as_ref().len() as u16).to_be_bytes()[..], message.as_ref()].concat();
    messages.iter().flat_map(one).collect()
}

#[derive(Default)]
struct Heard {
    messages: Vec<(u64, Vec<u8>)>,
    waits: Vec<u16>,
}

impl Listener for Heard {
    fn message(&mut self, message: Message<'_>) {
        self.messages.push((message.time_ns, message.head.to_vec()));
    }

    fn waits(&self, id: u16) -> bool {
        self.waits.contains(&id)
    }
}

/// Three messages of 35 octets each, one of 3,035 (two for its length, 33 for header and question), and another of 35.
fn five() -> Vec<Vec<u8>> {
    let of = |id, further| message(id, QUERY, &["www.example.org"], further);
    vec![of(1, 0), of(2, 0), of(3, 0), of(4, 3_000), of(5, 0)]
}

#[test]
fn segments_become_messages() {
    /// First octet and the one behind the last, octets behind that unseen, milliseconds.
    type Passed = (usize, usize, usize, u64);
    type Case = (&'static str, Option<&'static str>, &'static [Passed], &'static [(u8, u64)], bool);
    let open = None;
    let begun = Some("SYN");
    let cases: [Case; 29] = [
        ("several in a segment", begun, &[(0, 105, 0, 1)], &[(1, 1), (2, 1), (3, 1)], false),
        ("one in several", begun, &[(0, 20, 0, 1), (20, 35, 0, 2)], &[(1, 2)], false),
        ("length apart", begun, &[(0, 2, 0, 1), (2, 35, 0, 2)], &[(1, 2)], false),
        ("length split", begun, &[(0, 1, 0, 1), (1, 35, 0, 2)], &[(1, 2)], false),
        ("the next one's length too", begun, &[(0, 36, 0, 1), (36, 70, 0, 2)], &[(1, 1), (2, 2)], false),
        ("swapped", begun, &[(35, 70, 0, 1), (0, 35, 0, 2)], &[(1, 2), (2, 2)], false),
        ("sent again", begun, &[(0, 35, 0, 1), (0, 35, 0, 2), (35, 70, 0, 3)], &[(1, 1), (2, 3)], false),
        ("sent again, with more", begun, &[(0, 40, 0, 1), (0, 70, 0, 2)], &[(1, 1), (2, 2)], false),
        (
            "overlapping ahead",
            begun,
            &[(30, 70, 0, 1), (20, 60, 0, 2), (0, 25, 0, 3)],
            &[(1, 3), (2, 3)],
            false,
        ),
        (
            "longer at the same place",
            begun,
            &[(30, 40, 0, 1), (30, 70, 0, 2), (0, 30, 0, 3)],
            &[(1, 3), (2, 3)],
            false,
        ),
        ("hole filled late", begun, &[(35, 70, 0, 1), (0, 35, 0, 1_900)], &[(1, 1_900), (2, 1_900)], false),
        (
            "hole never filled",
            begun,
            &[(0, 35, 0, 1), (70, 105, 0, 5), (105, 107, 0, 2_500)],
            &[(1, 1), (3, 5)],
            true,
        ),
        (
            "holes never filled",
            begun,
            &[
                (0, 35, 0, 1),
                (40, 70, 0, 2),
                (70, 105, 0, 3),
                (105, 140, 0, 4),
                (3_000, 3_175, 0, 5),
                (0, 1, 0, 2_600),
            ],
            &[(1, 1), (3, 3), (4, 5), (5, 5)],
            true,
        ),
        (
            "hole in a body",
            begun,
            &[(105, 1_000, 0, 1), (2_000, 3_175, 0, 5), (0, 105, 0, 9)],
            &[(1, 9), (2, 9), (3, 9)],
            false,
        ),
        (
            "hole in a body, given up",
            begun,
            &[(0, 1_000, 0, 1), (2_000, 3_175, 0, 5), (3_174, 3_175, 0, 2_500)],
            &[(1, 1), (2, 1), (3, 1), (4, 5), (5, 5)],
            false,
        ),
        (
            "unseen in a body",
            begun,
            &[(0, 1_000, 1_000, 1), (2_000, 3_175, 0, 5)],
            &[(1, 1), (2, 1), (3, 1), (4, 5), (5, 5)],
            false,
        ),
        (
            "unseen to a body's end",
            begun,
            &[(0, 1_000, 2_140, 1), (3_140, 3_175, 0, 5)],
            &[(1, 1), (2, 1), (3, 1), (4, 1), (5, 5)],
            false,
        ),
        (
            "unseen beyond a body's end",
            begun,
            &[(105, 1_000, 2_141, 1), (0, 105, 0, 2), (3_140, 3_175, 0, 3)],
            &[(1, 2), (2, 2), (3, 2), (5, 3)],
            true,
        ),
        (
            "unseen, then out of step",
            begun,
            &[(0, 35, 30, 1), (65, 80, 0, 2), (70, 105, 0, 3)],
            &[(1, 1), (3, 3)],
            true,
        ),
        (
            "unseen, sent again",
            begun,
            &[(105, 1_000, 1_000, 1), (1_000, 2_000, 0, 2), (0, 105, 0, 3), (2_000, 3_140, 0, 4)],
            &[(1, 3), (2, 3), (3, 3), (4, 4)],
            false,
        ),
        ("forged, far ahead", begun, &[(0, 20, 0, 1), (1 << 30, 0, 0, 2), (20, 35, 0, 3)], &[(1, 3)], false),
        ("open already", open, &[(20, 35, 0, 1), (35, 70, 0, 2)], &[(2, 2)], false),
        ("open, and length apart", open, &[(35, 37, 0, 1), (37, 70, 0, 2)], &[(2, 2)], false),
        (
            "open, and octet by octet",
            open,
            &[(35, 36, 0, 1), (36, 37, 0, 2), (37, 40, 0, 3), (40, 49, 0, 4), (49, 60, 0, 5), (60, 70, 0, 6)],
            &[(2, 6)],
            false,
        ),
        ("open, and not a beginning before one", open, &[(2, 12, 0, 1), (35, 70, 0, 2)], &[(2, 2)], false),
        (
            "open, in the middle of a body",
            open,
            &[(500, 1_000, 0, 1), (1_000, 3_140, 0, 2), (3_140, 3_175, 0, 3)],
            &[(5, 3)],
            false,
        ),
        ("open, several", open, &[(0, 70, 0, 1), (70, 105, 0, 2)], &[(1, 1), (2, 1), (3, 2)], false),
        ("open, swapped", open, &[(35, 70, 0, 1), (0, 35, 0, 2), (70, 105, 0, 3)], &[(2, 1), (3, 3)], false),
        ("nothing unseen, nothing seen", open, &[(35, 35, 0, 1), (35, 70, 0, 2)], &[(2, 2)], false),
    ];
    let messages = five();
    let octets = framed(&messages);
    for (what, syn, passed, want, is_lost) in cases {
        for isn in [0, 77_u32, u32::MAX - 1, u32::MAX - 50, 1 << 31] {
            let mut stream = Stream::new(Carries::Queries);
            let mut heard = Heard::default();
            if syn.is_some() {
                stream.begin(isn);
            }
            for &(start, end, missing, ms) in passed {
                let octets = octets.get(start..end).unwrap_or(&[0; 100]);
                let seq = isn.wrapping_add(start as u32);
                let piece = Piece { time_ns: ms * 1_000_000, seq, octets, missing: missing as u32 };
                stream.segment(piece, &mut heard);
            }
            let got: Vec<_> = heard.messages.iter().map(|(time, head)| (head[1], time / 1_000_000)).collect();
            assert_eq!(got, want, "{what}, from {isn} on");
            assert_eq!(stream.take_lost(), is_lost, "{what}");
            for (_, head) in &heard.messages {
                let whole = &messages[usize::from(head[1]) - 1];
                assert!(whole.starts_with(head), "{what}");
                assert!(head.len() >= whole.len().min(33), "{what}");
            }
        }
    }
}

#[test]
fn what_does_not_belong_puts_a_stream_out_of_step_until_something_does() {
    let good = framed(&[query(1, "www.example.org")]);
    for (what, bad) in [
        ("an answer among the queries", framed(&[answer(7, "www.example.org")])),
        ("an answer that has only begun", framed(&[answer(7, "www.example.org")])[..20].to_vec()),
        ("shorter than a header", framed(&[[0; 11]])),
        ("of no length", vec![0, 0]),
    ] {
        let mut stream = Stream::new(Carries::Queries);
        let mut heard = Heard::default();
        stream.begin(0);
        for (at, octets) in [(0, &good), (good.len(), &bad), (good.len() + bad.len(), &good)] {
            stream.segment(Piece { time_ns: 1, seq: at as u32, octets, missing: 0 }, &mut heard);
        }
        assert_eq!(heard.messages.len(), 2, "{what}");
        assert!(stream.take_lost() && !stream.take_lost(), "{what}");
    }
}

#[test]
fn a_stream_that_has_moved_is_followed() {
    let good = framed(&[query(1, "www.example.org")]);
    let mut stream = Stream::new(Carries::Queries);
    let mut heard = Heard::default();
    stream.begin(0);
    for step in 0..20 {
        let seq = (1 << 24) + step * good.len() as u32;
        stream.segment(Piece { time_ns: 1, seq, octets: &good, missing: 0 }, &mut heard);
    }
    assert_eq!(heard.messages.len(), 13, "seven are not believed");
    assert!(stream.take_lost());
}

#[test]
fn what_waits_ahead_is_bounded() {
    for (what, len) in [("many small", 1), ("large", 8 << 10)] {
        let octets = vec![0; len];
        let mut stream = Stream::new(Carries::Answers);
        stream.begin(0);
        let mut most = 0;
        for step in 0..1_000 {
            // Never the octet before it.
            let seq = 1 + step * (len as u32 + 1);
            let piece = Piece { time_ns: 1, seq, octets: &octets, missing: 0 };
            stream.segment(piece, &mut Heard::default());
            most = most.max(stream.held());
        }
        assert!(stream.take_lost(), "{what}");
        assert!(most <= AHEAD + (PIECES + 1) * 200 + ANSWER_HEAD, "{what}: {most}");
    }
}

#[test]
fn heads_are_bounded() {
    for (carries, flags, room) in
        [(Carries::Queries, QUERY, QUERY_HEAD), (Carries::Answers, ANSWER, ANSWER_HEAD)]
    {
        let octets = framed(&[message(1, flags, &["www.example.org"], 60_000)]);
        for size in [1, 1_024, octets.len()] {
            let mut stream = Stream::new(carries);
            let mut heard = Heard::default();
            let mut seq = 0;
            for part in octets.chunks(size) {
                stream.segment(Piece { time_ns: 1, seq, octets: part, missing: 0 }, &mut heard);
                seq += part.len() as u32;
                assert!(stream.held() <= 2 * room, "{carries:?}");
                if size == 1 && seq > 300 {
                    break;
                }
            }
            if size != 1 {
                assert_eq!(heard.messages.len(), 1);
                assert_eq!(heard.messages[0].1, octets[2..2 + room], "{carries:?}");
            }
        }
    }
}

/// Segments in the order in which they pass: what a stream is cut into, with parts of it again, each moved a little.
fn schedule(len: usize, cuts: &[usize], again: &[(usize, usize)], moves: &[u8]) -> Vec<(usize, usize)> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (len + 1)).chain([0, len]).collect();
    cuts.sort_unstable();
    let mut segments: Vec<(usize, usize)> = cuts.windows(2).map(|cut| (cut[0], cut[1])).collect();
    for (which, (start, size)) in again.iter().enumerate() {
        let start = start % (len + 1);
        let place = (which * 7) % (segments.len() + 1);
        segments.insert(place, (start, (start + size).min(len)));
    }
    let mut order: Vec<usize> = (0..segments.len()).collect();
    order.sort_by_key(|at| at * 4 + usize::from(moves.get(*at).copied().unwrap_or_default()));
    order.into_iter().map(|at| segments[at]).collect()
}

/// When every octet up to the end of each message had passed: what a stream has to say, found the slow way.
fn completed<T: AsRef<[u8]>>(messages: &[T], passed: &[(usize, usize)]) -> Vec<u64> {
    let len = framed(messages).len();
    let mut first = vec![u64::MAX; len];
    for (time, (start, end)) in passed.iter().enumerate() {
        for octet in &mut first[*start..*end] {
            *octet = (*octet).min(time as u64);
        }
    }
    let mut end = 0;
    let ends = messages.iter().map(|message| {
        end += 2 + message.as_ref().len();
        end
    });
    ends.map(|end| first[..end].iter().copied().max().unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn any_cut_in_any_order_gives_the_same_messages(
        sizes in prop::collection::vec(prop_oneof![4 => 0_usize..80, 1 => 0_usize..9_000], 1..8),
        isn in prop_oneof![any::<u32>(), (u32::MAX - 5_000)..=u32::MAX],
        cuts in prop::collection::vec(prop_oneof![any::<usize>(), 0_usize..120], 0..40),
        again in prop::collection::vec((any::<usize>(), 0_usize..1_500), 0..20),
        moves in prop::collection::vec(0_u8..20, 60),
        begun in any::<bool>(),
    ) {
        let messages: Vec<_> = (0_u16..).zip(&sizes).map(|(id, size)| message(id, QUERY, &["www.example.org"], *size)).collect();
        let octets = framed(&messages);
        let mut passed = schedule(octets.len(), &cuts, &again, &moves);
        if !begun {
            // It begins with the first that is seen.
            passed.insert(0, (0, 35));
        }
        let mut stream = Stream::new(Carries::Queries);
        let mut heard = Heard::default();
        if begun {
            stream.begin(isn);
        }
        for (time_ns, (start, end)) in (0..).zip(&passed) {
            let seq = isn.wrapping_add(*start as u32);
            stream.segment(Piece { time_ns, seq, octets: &octets[*start..*end], missing: 0 }, &mut heard);
        }
        let times = completed(&messages, &passed);
        prop_assert_eq!(heard.messages.len(), messages.len());
        for ((time, head), (want_time, want)) in heard.messages.iter().zip(times.iter().zip(&messages)) {
            prop_assert_eq!(time, want_time);
            prop_assert_eq!(head, &want[..want.len().min(QUERY_HEAD)]);
        }
        prop_assert!(!stream.take_lost());
        prop_assert_eq!(stream.held(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn a_stream_with_holes_is_followed_again(
        sizes in prop::collection::vec(prop_oneof![4 => 0_usize..80, 1 => 0_usize..9_000], 1..8),
        isn in prop_oneof![any::<u32>(), (u32::MAX - 5_000)..=u32::MAX],
        cuts in prop::collection::vec(prop_oneof![any::<usize>(), 0_usize..300], 0..40),
        lost in prop::collection::vec(any::<bool>(), 60),
        unseen in prop::collection::vec(any::<bool>(), 60),
    ) {
        let of = |(id, size): (u16, &usize)| message(id, QUERY, &["www.example.org"], *size);
        let mut messages: Vec<_> = (0_u16..).zip(&sizes).map(of).collect();
        let until = framed(&messages).len();
        let parts = schedule(until, &cuts, &[], &[]);
        messages.extend((100..103).map(|id| of((id, &500))));
        let octets = framed(&messages);
        let mut stream = Stream::new(Carries::Queries);
        let mut heard = Heard::default();
        stream.begin(isn);
        for (time_ns, (which, (start, end))) in (0..).zip(parts.iter().enumerate()) {
            if lost[which] {
                continue;
            }
            // What a record tells of what is in none.
            let missing = match parts.get(which + 1) {
                Some((start, end)) if lost[which + 1] && unseen[which] => end - start,
                _ => 0,
            };
            let seq = isn.wrapping_add(*start as u32);
            let piece = Piece { time_ns, seq, octets: &octets[*start..*end], missing: missing as u32 };
            stream.segment(piece, &mut heard);
        }
        // Then nothing is lost any more, and time passes.
        let mut start = until;
        for step in 0..6 {
            let len = if step % 2 == 0 { 100 } else { 435 };
            let seq = isn.wrapping_add(start as u32);
            let piece = Piece { time_ns: step * 3 * SECOND, seq, octets: &octets[start..start + len], missing: 0 };
            stream.segment(piece, &mut heard);
            stream.expire((step + 1) * 3 * SECOND, &mut heard);
            start += len;
        }
        prop_assert_eq!(start, octets.len());
        prop_assert!(heard.messages.is_sorted_by_key(|(time, _)| *time));
        // A hole may be where an id was.
        let ids: Vec<_> = heard.messages.iter().filter_map(|(_, head)| head.get(1).copied()).collect();
        prop_assert!(ids.is_sorted_by(|one, other| one < other), "{:?}", ids);
        prop_assert!(ids.ends_with(&[100, 101, 102]), "{:?}", ids);
        for (_, head) in &heard.messages {
            prop_assert!(messages.iter().any(|message| message.starts_with(head)));
        }
    }
}

/// A connection under test, and what came of it.
struct Net {
    connections: Connections,
    cookie: u64,
    role: u8,
    /// What the next octet has: of queries, of answers.
    next: [u32; 2],
    now_ns: u64,
    ended: Vec<Exchange>,
}

impl Net {
    fn new(role: u8) -> Self {
        Self {
            connections: Connections::default(),
            cookie: 1,
            role,
            next: [1_000, u32::MAX - 20],
            now_ns: 0,
            ended: Vec::new(),
        }
    }

    fn record(&self, flags: u8, octets: &[u8]) -> SegmentRecord {
        let mut record = SegmentRecord::zeroed();
        record.header = RecordHeader::of::<SegmentRecord>(KIND_SEGMENT, self.now_ns);
        record.cookie = self.cookie;
        record.peer = [192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        record.port = 53;
        record.owner.tgid = 4_711;
        record.family = FAMILY_IPV4;
        record.flags = flags | if self.role == ROLE_SERVER { SEGMENT_SERVER } else { 0 };
        record.seq = self.next[usize::from(flags & SEGMENT_QUERY == 0)];
        record.len = octets.len() as u16;
        record.octets[..octets.len()].copy_from_slice(octets);
        record
    }

    fn take(&mut self, record: &SegmentRecord) {
        self.connections.segment(record, &mut |exchange| self.ended.push(exchange)).unwrap();
    }

    /// A second later, octets pass.
    fn pass(&mut self, flags: u8, octets: &[u8]) {
        self.now_ns += SECOND;
        for part in octets.chunks(SEGMENT_ROOM) {
            self.take(&self.record(flags, part));
            let next = &mut self.next[usize::from(flags & SEGMENT_QUERY == 0)];
            *next = next.wrapping_add(part.len() as u32);
        }
    }

    /// A second later, something without octets passes.
    fn sign(&mut self, flags: u8) {
        self.now_ns += SECOND;
        self.take(&self.record(flags, &[]));
    }

    fn ask(&mut self, id: u16, name: &str) {
        self.pass(SEGMENT_QUERY, &framed(&[query(id, name)]));
    }

    fn reply(&mut self, id: u16, name: &str) {
        self.pass(0, &framed(&[answer(id, name)]));
    }

    fn expire(&mut self) {
        self.connections.expire(self.now_ns, TIMEOUT, &mut |exchange| self.ended.push(exchange));
    }

    /// Names, how they ended, and the seconds at which they were asked and ended; since the last time.
    fn ended(&mut self) -> Vec<(String, &'static str, u64, u64)> {
        let told = |exchange: Exchange| {
            let Exchange { cookie, time_ns, asked, peer, port, question, name, ended } = exchange;
            assert_eq!((cookie, peer[..4].to_vec(), port), (self.cookie, vec![192, 0, 2, 1], 53));
            assert_eq!((asked.role, asked.owner.tgid, asked.qtype), (self.role, 4_711, 1));
            assert_eq!(usize::from(asked.name_len), name.len());
            let packed = question::parse(&Slice(&[&name[..], &A_IN].concat()), 0);
            assert_eq!(question, (packed >> 32) as u32);
            let how = match (ended, asked.attempt) {
                (Ended::Answered(_), 1) => "answered",
                (Ended::Answered(_), 2) => "answered the second",
                (Ended::Unanswered, 1) => "unanswered",
                (Ended::Late(_), 1) => "late",
                other => panic!("{other:?}"),
            };
            (crate::signals::dns::name_text(&name).unwrap(), how, asked.sent_ns / SECOND, time_ns / SECOND)
        };
        self.ended.drain(..).map(told).collect()
    }

    #[track_caller]
    fn expect(&mut self, want: &[(&str, &str, u64, u64)]) {
        let ended = self.ended();
        let ended: Vec<_> =
            ended.iter().map(|(name, how, sent, at)| (name.as_str(), *how, *sent, *at)).collect();
        assert_eq!(ended, want);
    }
}

#[test]
fn answers_come_in_any_order() {
    for role in [ROLE_CLIENT, ROLE_SERVER] {
        let mut net = Net::new(role);
        net.sign(SEGMENT_QUERY | SEGMENT_SYN);
        net.sign(SEGMENT_SYN);
        net.next = net.next.map(|next| next.wrapping_add(1));
        net.pass(SEGMENT_QUERY, &framed(&[query(1, "one.test"), query(2, "two.test")]));
        net.ask(3, "three.test");
        net.pass(0, &framed(&[answer(3, "three.test"), answer(1, "ONE.test")]));
        net.reply(2, "two.test");
        net.expect(&[
            ("three.test", "answered", 4, 5),
            ("one.test", "answered", 3, 5),
            ("two.test", "answered", 3, 6),
        ]);
        assert_eq!(net.connections.take_lost(), 0);
    }
}

#[test]
fn a_connection_that_is_open_already_is_joined() {
    let mut net = Net::new(ROLE_CLIENT);
    net.pass(0, &answer(9, "nobody.asked")[5..]);
    net.ask(1, "one.test");
    net.reply(1, "one.test");
    net.expect(&[("one.test", "answered", 2, 3)]);
    assert_eq!(net.connections.take_lost(), 0);
}

#[test]
fn a_question_sent_again_is_another_attempt() {
    let mut net = Net::new(ROLE_CLIENT);
    net.ask(1, "one.test");
    net.ask(1, "one.test");
    net.ask(1, "two.test");
    net.reply(1, "one.test");
    net.reply(1, "one.test");
    net.expect(&[("one.test", "unanswered", 1, 2), ("one.test", "answered the second", 2, 4)]);
}

#[test]
fn an_answer_without_a_question_is_to_the_only_one_with_its_id() {
    let bare = framed(&[message(1, ANSWER | 1, &[], 0)]);
    let mut net = Net::new(ROLE_CLIENT);
    net.ask(1, "one.test");
    net.ask(1, "two.test");
    net.pass(0, &bare);
    net.expect(&[]);
    net.reply(1, "one.test");
    net.pass(0, &bare);
    net.pass(0, &bare);
    net.expect(&[("one.test", "answered", 1, 4), ("two.test", "answered", 2, 5)]);
}

#[test]
fn a_zone_transfer_is_answered_with_its_first_message() {
    let mut net = Net::new(ROLE_CLIENT);
    net.ask(1, "zone.test");
    let further = |names: &[&str]| message(1, ANSWER, names, 20_000);
    net.pass(0, &framed(&[further(&["zone.test"]), further(&["zone.test"]), further(&[]), further(&[])]));
    net.ask(2, "one.test");
    net.reply(2, "one.test");
    net.now_ns += 10 * SECOND;
    net.expire();
    net.expect(&[("zone.test", "answered", 1, 2), ("one.test", "answered", 3, 4)]);
    assert_eq!(net.connections.take_lost(), 0);
}

#[test]
fn messages_of_other_kinds_are_passed_over() {
    let mut net = Net::new(ROLE_CLIENT);
    let others = [
        message(1, 0x2800, &["update.test"], 0),
        message(2, QUERY, &[], 0),
        message(3, QUERY, &["one.test", "two.test"], 0),
        [&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0][..], &[0; 9]].concat(),
        query(4, "three.test"),
    ];
    net.sign(SEGMENT_QUERY | SEGMENT_SYN);
    net.next[0] += 1;
    net.pass(SEGMENT_QUERY, &framed(&others));
    net.now_ns += 10 * SECOND;
    net.expire();
    net.expect(&[("three.test", "unanswered", 2, 12)]);
    assert_eq!(net.connections.take_lost(), 0);
}

#[test]
fn an_answer_is_late_once() {
    let mut net = Net::new(ROLE_CLIENT);
    net.ask(1, "one.test");
    net.ask(2, "two.test");
    net.now_ns += 5 * SECOND;
    net.expire();
    net.expect(&[("one.test", "unanswered", 1, 7)]);
    net.reply(1, "one.test");
    net.reply(1, "one.test");
    net.reply(2, "two.test");
    net.expect(&[("one.test", "late", 1, 8), ("two.test", "answered", 2, 10)]);
    net.ask(3, "three.test");
    net.now_ns += 10 * SECOND;
    net.expire();
    net.now_ns += 60 * SECOND;
    net.reply(3, "three.test");
    net.expect(&[("three.test", "unanswered", 11, 21)]);
}

#[test]
fn an_answer_is_to_no_later_question() {
    let mut net = Net::new(ROLE_CLIENT);
    net.sign(SEGMENT_SYN);
    net.next[1] = net.next[1].wrapping_add(1 + 10);
    // Behind ten octets that never come, so it is read after the question.
    net.reply(1, "one.test");
    net.ask(1, "one.test");
    net.now_ns += 2 * SECOND;
    net.expire();
    assert_eq!(net.connections.take_lost(), 1);
    net.expect(&[]);
    net.reply(1, "one.test");
    net.expect(&[("one.test", "answered", 3, 6)]);
}

#[test]
fn questions_outlive_their_connection() {
    for last in [SEGMENT_FIN, SEGMENT_RST] {
        let mut net = Net::new(ROLE_CLIENT);
        net.ask(1, "one.test");
        // A part of an answer.
        net.pass(0, &framed(&[answer(1, "one.test")])[..40]);
        assert_ne!(net.connections.by_cookie.peek(&1).unwrap().answers.held(), 0);
        net.sign(last);
        assert_eq!(net.connections.by_cookie.peek(&1).unwrap().answers.held(), 0);
        // It was sent again, which means nothing.
        net.next[0] -= framed(&[query(1, "one.test")]).len() as u32;
        net.ask(1, "one.test");
        net.expire();
        net.expect(&[]);
        net.now_ns += 10 * SECOND;
        net.expire();
        net.expect(&[("one.test", "unanswered", 1, 14)]);
        assert_eq!(net.connections.held(), Held { connections: 0, waiting: 0, octets: 0 });
        assert_eq!(net.connections.held, 0);
        assert_eq!(net.connections.take_lost(), 0);
        // Nothing is remembered for what is over.
        net.sign(last);
        assert_eq!(net.connections.held().connections, 0);
    }
}

#[test]
fn a_socket_that_connects_anew_begins_anew() {
    let mut net = Net::new(ROLE_CLIENT);
    for next in [5, 1 << 30, 7] {
        net.next = [next, next];
        net.sign(SEGMENT_QUERY | SEGMENT_SYN);
        net.sign(SEGMENT_QUERY | SEGMENT_SYN);
        net.sign(SEGMENT_SYN);
        net.next = [next + 1, next + 1];
        net.ask(1, "one.test");
        // Made up, or very old.
        net.next[1] = 77;
        net.sign(SEGMENT_SYN);
        net.next[1] = next + 1;
        net.reply(1, "one.test");
        net.pass(0, &framed(&[answer(1, "one.test")])[..40]);
    }
    assert_eq!(net.ended().len(), 3);
    assert_eq!(net.connections.take_lost(), 0);
}

#[test]
fn what_the_query_did_not_tell_the_answer_may() {
    let mut net = Net::new(ROLE_SERVER);
    let mut record = net.record(SEGMENT_QUERY, &framed(&[query(1, "one.test")]));
    (record.owner, record.peer, record.port, record.cgroup_id) = (Owner::UNKNOWN, [0; 16], 0, 0);
    net.take(&record);
    net.reply(1, "one.test");
    net.expect(&[("one.test", "answered", 0, 1)]);
}

#[test]
fn records_out_of_order_are_refused() {
    let net = Net::new(ROLE_CLIENT);
    let good = net.record(SEGMENT_QUERY, &[0; 100]);
    let mut connections = Connections::default();
    for (record, why) in [
        (SegmentRecord { len: SEGMENT_ROOM as u16 + 1, ..good }, "length"),
        (SegmentRecord { missing: SEGMENT + 1, ..good }, "length"),
        (SegmentRecord { family: 0, ..good }, "family"),
    ] {
        assert_eq!(connections.segment(&record, &mut |_| ()), Err(DecodeError::Value(why)));
    }
    assert_eq!(connections.held().connections, 0);
}

#[test]
fn what_waits_on_a_connection_is_bounded() {
    let mut net = Net::new(ROLE_CLIENT);
    for id in 0..WAITING as u16 + 10 {
        net.ask(id, "one.test");
    }
    assert_eq!(net.connections.held().waiting, WAITING);
    assert_eq!(net.connections.take_lost(), 10, "questions");
    net.now_ns += 10 * SECOND;
    net.expire();
    assert_eq!(net.ended().len(), WAITING);
    net.ask(1, "one.test");
    assert_eq!(net.connections.take_lost(), 0, "counted once");
}

#[test]
fn what_waits_on_all_connections_is_bounded() {
    assert!(size_of::<Connection>() <= 512, "{}", size_of::<Connection>());
    assert!(size_of::<((u64, u16, u32), (u64, Question))>() + 255 <= 512);
    let name = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
    let mut net = Net::new(ROLE_CLIENT);
    let queries: Vec<_> = (0..100).map(|id| query(id, &name)).collect();
    for cookie in 0..2 * CONNECTIONS.get() as u64 {
        net.cookie = cookie;
        // One in sixteen takes much.
        let many = if cookie % 16 == 0 { &queries[..] } else { &queries[..1] };
        net.pass(SEGMENT_QUERY, &framed(many));
        assert!(net.connections.held <= HELD);
    }
    let held = net.connections.held();
    assert_eq!(held.octets, net.connections.held);
    assert!(held.octets <= Held::MOST.octets && held.connections <= Held::MOST.connections);
    assert!(held.octets > Held::MOST.octets - (100 << 10), "{held:?}");
    let lost = net.connections.take_lost();
    assert_eq!(lost, 2 * CONNECTIONS.get() as u64 - held.connections as u64);
    net.now_ns += 10 * SECOND;
    net.expire();
    assert_eq!(net.connections.held, 0);
    assert_eq!(net.connections.given_up.len(), GIVEN_UP.get());
}

/// What may happen on a connection.
#[derive(Clone, Debug)]
enum Step {
    Ask(u16, usize),
    Reply(u16, usize),
    /// Without a question.
    ReplyBare(u16),
    Expire,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn questions_are_paired(steps in prop::collection::vec(prop_oneof![
        4 => (0_u16..3, 0_usize..3).prop_map(|(id, name)| Step::Ask(id, name)),
        3 => (0_u16..3, 0_usize..3).prop_map(|(id, name)| Step::Reply(id, name)),
        1 => (0_u16..3).prop_map(Step::ReplyBare),
        1 => Just(Step::Expire),
    ], 1..60), server in any::<bool>()) {
        const NAMES: [&str; 3] = ["one.test", "Two.test", "three.longer.name.test"];
        type Told = (u16, usize, u64, u64, u16, &'static str);
        let mut net = Net::new(if server { ROLE_SERVER } else { ROLE_CLIENT });
        net.sign(SEGMENT_QUERY | SEGMENT_SYN);
        net.sign(SEGMENT_SYN);
        net.next = net.next.map(|next| next.wrapping_add(1));
        let mut waiting: BTreeMap<(u16, usize), (u64, u16)> = BTreeMap::new();
        let mut given_up: BTreeMap<(u16, usize), (u64, u16)> = BTreeMap::new();
        let mut want: Vec<Told> = Vec::new();
        for step in &steps {
            let then = net.now_ns + SECOND;
            match *step {
                Step::Ask(id, name) => {
                    net.ask(id, NAMES[name]);
                    let before = waiting.get(&(id, name)).copied();
                    want.extend(before.map(|(sent, attempt)| (id, name, sent, then, attempt, "unanswered")));
                    waiting.insert((id, name), (then, before.map_or(1, |(_, attempt)| attempt + 1)));
                }
                Step::Reply(id, name) => {
                    net.reply(id, NAMES[name]);
                    let key = (id, name);
                    let found = waiting.remove(&key).map(|found| (found, "answered"));
                    let found = found.or_else(|| given_up.remove(&key).map(|found| (found, "late")));
                    want.extend(found.map(|((sent, attempt), how)| (id, name, sent, then, attempt, how)));
                }
                Step::ReplyBare(id) => {
                    net.pass(0, &framed(&[message(id, ANSWER | 1, &[], 0)]));
                    let keys: Vec<_> = waiting.keys().filter(|key| key.0 == id).copied().collect();
                    if let [key] = keys[..] {
                        let (sent, attempt) = waiting.remove(&key).unwrap();
                        want.push((id, key.1, sent, then, attempt, "answered"));
                    }
                }
                Step::Expire => {
                    net.expire();
                    let now = net.now_ns;
                    waiting.retain(|key, (sent, attempt)| {
                        let is_over = now - *sent > TIMEOUT;
                        if is_over {
                            want.push((key.0, key.1, *sent, now, *attempt, "unanswered"));
                            given_up.insert(*key, (*sent, *attempt));
                        }
                        !is_over
                    });
                }
            }
        }
        let mut got: Vec<_> = net.ended.iter().map(|exchange| {
            let name = NAMES.iter().position(|name| wire(name) == *exchange.name).unwrap();
            let how = match exchange.ended {
                Ended::Answered(_) => "answered",
                Ended::Unanswered => "unanswered",
                Ended::Late(_) => "late",
            };
            (name, exchange.asked.sent_ns, exchange.time_ns, exchange.asked.attempt, how)
        }).collect();
        let mut want: Vec<_> = want.into_iter().map(|(_, name, sent, at, attempt, how)| (name, sent, at, attempt, how)).collect();
        // Of what is given up at one moment any may be the first.
        got.sort_by_key(|told| (told.2, told.0, told.1));
        want.sort_by_key(|told| (told.2, told.0, told.1));
        prop_assert_eq!(got, want);
        prop_assert_eq!(net.connections.held().waiting, waiting.len());
        prop_assert_eq!(net.connections.held().octets, net.connections.held);
        prop_assert_eq!(net.connections.take_lost(), 0);
    }
}
