//! DNS over TCP, put together from what passed: a true stream, however it is cut, repeated and mixed up, gives every question its
//! answer and both their times; anything else does no harm, and takes no more room than is said.

#![no_main]

use std::collections::BTreeMap;

use bytemuck::Zeroable as _;
use libfuzzer_sys::fuzz_target;
use probe_common::dns::{
    KIND_SEGMENT, SEGMENT_FIN, SEGMENT_QUERY, SEGMENT_ROOM, SEGMENT_RST, SEGMENT_SERVER, SEGMENT_SYN,
    SegmentRecord,
};
use probe_common::wire::{FAMILY_IPV4, RecordHeader};
use probe_user::signals::dns::{Connections, Ended, Exchange, Held, name_text};

/// Nanoseconds between what passes.
const STEP: u64 = 1_000_000;
const TIMEOUT: u64 = 5_000_000_000;

fuzz_target!(|input: &[u8]| {
    let Some((what, rest)) = input.split_first() else { return };
    let mut input = Input(rest);
    if what & 1 == 0 {
        true_stream(&mut input, what & 2 != 0);
    } else {
        anything(&mut input);
    }
});

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn octet(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.octet(), self.octet()])
    }

    fn long(&mut self) -> u32 {
        u32::from(self.word()) | u32::from(self.word()) << 16
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A message about one name, with its length before it.
fn framed(id: u16, flags: u16, label: u8, further: usize) -> Vec<u8> {
    let mut message = [id, flags, 1, 0, 0, 0].map(u16::to_be_bytes).concat();
    // As long in capitals.
    let label = vec![label; usize::from(label % 32) + 1];
    message.push(label.len() as u8);
    message.extend(label);
    message.extend([0, 0, 1, 0, 1]);
    message.extend(std::iter::repeat_n(0x55, further));
    [&(message.len() as u16).to_be_bytes()[..], &message].concat()
}

fn record(time_ns: u64, flags: u8, seq: u32, octets: &[u8]) -> SegmentRecord {
    let mut record = SegmentRecord::zeroed();
    record.header = RecordHeader::of::<SegmentRecord>(KIND_SEGMENT, time_ns);
    record.cookie = 1;
    record.family = FAMILY_IPV4;
    record.flags = flags;
    record.seq = seq;
    record.len = octets.len() as u16;
    record.octets[..octets.len()].copy_from_slice(octets);
    record
}

/// What passes in one direction, each part no longer than a record's, and when every octet passed first.
struct Passing {
    parts: Vec<(usize, usize)>,
    first: Vec<u64>,
}

impl Passing {
    fn of(len: usize, input: &mut Input<'_>) -> Self {
        let mut parts = Vec::new();
        let mut at = 0;
        while at < len {
            // Once the input has ended, as large as can be.
            let size = match input.octet() {
                0 => SEGMENT_ROOM,
                size @ 1..200 => usize::from(size),
                size => usize::from(size) * 4,
            };
            let end = len.min(at + size);
            parts.push((at, end));
            at = end;
        }
        // Each octet of the input holds a part back, or repeats something near it. Not for long: what waits is bounded.
        let mut passing = Vec::new();
        for (place, (start, end)) in parts.into_iter().enumerate() {
            match input.octet() {
                by @ 0..=16 => passing.push((place + usize::from(by), start, end)),
                by => {
                    let again = (usize::from(by) * 37 % len).clamp(end.saturating_sub(2_000), end);
                    passing.push((place, start, end));
                    passing.push((place, again, len.min(again + usize::from(by))));
                }
            }
        }
        passing.sort_by_key(|(place, ..)| *place);
        let parts = passing.into_iter().map(|(_, start, end)| (start, end)).collect();
        Self { parts, first: vec![u64::MAX; len] }
    }
}

fn true_stream(input: &mut Input<'_>, server: bool) {
    let count = u16::from(input.octet() % 12) + 1;
    let isns = [input.long(), input.long()];
    let mut queries = Vec::new();
    let mut answers = Vec::new();
    for id in 0..count {
        let label = b'a' + input.octet() % 26;
        let further = usize::from(input.octet());
        queries.push(framed(id, 0x0100, label, further));
        let further = further * usize::from(input.octet() % 40);
        answers.push((id, framed(id, 0x8180, label.to_ascii_uppercase(), further)));
        if input.octet() % 2 == 0 {
            answers.rotate_right(1);
        }
    }
    let mut connections = Connections::default();
    let mut ended: Vec<Exchange> = Vec::new();
    let mut now = 0;
    let mut times: Vec<BTreeMap<u16, u64>> = Vec::new();
    let queries: Vec<(u16, Vec<u8>)> = (0..).zip(queries).collect();
    for ((messages, isn), of_query) in
        [(&queries, isns[0]), (&answers, isns[1])].into_iter().zip([true, false])
    {
        let flags = if of_query { SEGMENT_QUERY } else { 0 } | if server { SEGMENT_SERVER } else { 0 };
        let octets: Vec<u8> = messages.iter().flat_map(|(_, message)| message).copied().collect();
        let mut take = |record: &SegmentRecord| {
            connections.segment(record, &mut |exchange| ended.push(exchange)).expect("in order");
        };
        take(&record(now, flags | SEGMENT_SYN, isn, &[]));
        let Passing { parts, mut first } = Passing::of(octets.len(), input);
        // What is behind a hole longer than this does not wait.
        let step = STEP.min(1_000_000_000 / parts.len() as u64);
        for (start, end) in parts {
            now += step;
            take(&record(now, flags, isn.wrapping_add(1 + start as u32), &octets[start..end]));
            first[start..end].iter_mut().for_each(|octet| *octet = (*octet).min(now));
        }
        let (mut at, mut latest) = (0, 0);
        let mut of_each = BTreeMap::new();
        for (id, message) in messages {
            latest = first[at..at + message.len()].iter().copied().fold(latest, u64::max);
            at += message.len();
            of_each.insert(*id, latest);
        }
        times.push(of_each);
    }
    assert_eq!(connections.take_lost(), 0);
    assert_eq!(ended.len(), answers.len());
    for (exchange, (id, _)) in ended.iter().zip(&answers) {
        assert!(matches!(exchange.ended, Ended::Answered(_)), "{exchange:?}");
        assert_eq!(&exchange.name[..], &queries[usize::from(*id)].1[14..][..exchange.name.len()]);
        assert_eq!((exchange.asked.sent_ns, exchange.time_ns), (times[0][id], times[1][id]), "{exchange:?}");
        assert_eq!((exchange.asked.attempt, exchange.asked.qtype), (1, 1));
    }
    let held = connections.held();
    assert_eq!((held.waiting, held.octets), (0, 0), "all has come");
}

fn anything(input: &mut Input<'_>) {
    const FLAGS: u8 = SEGMENT_QUERY | SEGMENT_SERVER | SEGMENT_SYN | SEGMENT_FIN | SEGMENT_RST;
    let mut connections = Connections::default();
    let mut told = 0;
    let mut now = 0;
    // Where a stream could be.
    let mut next = [[0_u32; 2]; 4];
    while !input.0.is_empty() {
        let (what, how) = (input.octet(), input.octet());
        let is_tick = what & 0x80 != 0 && how == 0;
        now += if is_tick { TIMEOUT / 2 } else { u64::from(how) * 10_000_000 };
        let mut check = |exchange: Exchange| {
            told += 1;
            assert!(name_text(&exchange.name).is_some());
            assert!(exchange.time_ns >= exchange.asked.sent_ns && exchange.time_ns <= now, "{exchange:?}");
            let waited = exchange.time_ns - exchange.asked.sent_ns;
            assert!(!matches!(exchange.ended, Ended::Late(_)) || waited > 0);
        };
        if is_tick {
            connections.expire(now, TIMEOUT, &mut check);
            continue;
        }
        let cookie = usize::from(what >> 5) % 4;
        let place = &mut next[cookie][usize::from(what & SEGMENT_QUERY)];
        // Mostly where the last one ended, or near.
        let seq = match how % 8 {
            0 => input.long(),
            1 => place.wrapping_add(u32::from(input.word())),
            2 => place.wrapping_sub(u32::from(input.word())),
            3 => place.wrapping_add(1 << 20),
            _ => *place,
        };
        let octets = match how / 8 % 4 {
            0 => framed(
                input.word() % 4,
                if what & SEGMENT_QUERY != 0 { 0x0100 } else { 0x8180 },
                input.octet(),
                0,
            ),
            1 => vec![input.octet(); usize::from(input.word()) % (SEGMENT_ROOM + 1)],
            _ => {
                let len = usize::from(input.octet());
                input.take(len).to_vec()
            }
        };
        // SYN, FIN and RST now and then only.
        let flags = what & if how & 0x40 != 0 { FLAGS } else { SEGMENT_QUERY | SEGMENT_SERVER };
        let mut segment = record(now, flags, seq, &octets);
        segment.cookie = cookie as u64;
        segment.missing = if how & 0x80 != 0 { u32::from(input.word()) } else { 0 };
        *place = seq.wrapping_add(segment.missing).wrapping_add(octets.len() as u32);
        connections.segment(&segment, &mut check).expect("in order");
        let held = connections.held();
        assert!(
            held.connections <= 4 && held.octets <= Held::MOST.octets && held.waiting <= 4 * 256,
            "{held:?}"
        );
        // Of each connection: both its streams, and its questions.
        assert!(held.octets <= 4 * (320 << 10), "{held:?}");
    }
    connections.expire(u64::MAX, TIMEOUT, &mut |exchange| assert!(name_text(&exchange.name).is_some()));
    assert_eq!(connections.held().waiting, 0, "{told} told");
}
