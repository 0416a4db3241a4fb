//! Ring records of all three signals, on the way that they take in the agent: length, version and kind, decoding, owner,
//! series, and the sinks for people and for machines.
//!
//! An input is a sequence of frames, so that records that belong together (a question given up, its late answer) can meet.
//! One octet says what to do ([`REPAIR`] and a signal), two the length, then comes the record.

#![no_main]

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use probe_common::dns::{
    Asked, HEADER, KIND_ORPHAN, LookupHead, LookupRecord, NAME_ROOM, Pending, ROLE_SERVER, SEGMENT_ROOM,
    SegmentRecord,
};
use probe_common::syscalls::{HAS_ARGS, HAS_SOCKET, SlowRecord};
use probe_common::tcp::{
    ABSENT, ABSENT_OCTETS, CloseRecord, ConnectRecord, ResetRecord, RetransmitRecord, Socket,
};
use probe_common::wire::{Address, FAMILY_IPV4, RecordHeader, WIRE_VERSION};
use probe_user::collect::{self, DecodeError};
use probe_user::config::DnsOptions;
use probe_user::entity::{Entities, ProcessLimits, Processes};
use probe_user::event::{AttrValue, Attributes, key};
use probe_user::kernel::cgroup::TreeLimits;
use probe_user::kernel::clock::Clock;
use probe_user::series::{Data, Limits, Store};
use probe_user::signals::{Context, Event, Owners, cgroups, dns, names, syscalls, tcp};
use probe_user::sink::{console, json};
use serde_json::Value;

/// Give the record a header that is in order except for the kind: what lies behind it is then decoded.
const REPAIR: u8 = 0x80;
/// Too few for what an input can hold, so that series are folded too.
const LIMITS: Limits = Limits { per_metric: 6, per_entity: 4, entities: 2, idle: 1 };

fuzz_target!(|input: &[u8]| {
    let nowhere = Path::new("/dev/null/proc");
    let clock = Clock::new();
    let mut owners = Owners::new(
        Entities::at(None, Some(nowhere), TreeLimits::default()),
        Processes::at(nowhere, ProcessLimits::default()),
    );
    let mut store = Store::new(LIMITS, 1);
    let tcp = tcp::Records::new([(1, "no_socket".into())].into());
    let mut lookups = dns::Lookups::new(DnsOptions::default());
    let mut dns_events = 0;

    for (what, bytes) in Frames(input) {
        let mut events = Vec::new();
        let mut push = |event| events.push(event);
        let mut context =
            Context { clock: &clock, owners: &mut owners, store: &mut store, events: Some(&mut push) };
        let mut bytes = bytes.to_vec();
        if what & REPAIR != 0 {
            repair(&mut bytes);
        }
        let result = match what & 0b111 {
            0 => tcp.record(&bytes, &mut context),
            1 => lookups.record(&bytes, &mut context),
            2 => syscalls::record(&bytes, &mut context),
            4 => names::record(&bytes, &mut context),
            5 => cgroups::record(&bytes, &mut context),
            _ => {
                if let Ok(record) = collect::record::<LookupRecord>(&bytes) {
                    let mut pending = Pending { asked: record.lookup.asked, name: [0; NAME_ROOM] };
                    pending.name.copy_from_slice(&record.octets[HEADER..HEADER + NAME_ROOM]);
                    lookups.give_up(record.lookup.header.time_ns, record.lookup.key, pending, &mut context);
                }
                Ok(())
            }
        };
        match result {
            // Many questions can come to their end with one segment: those that wait, and those that it asks and sends again.
            Ok(()) if is_segment(&bytes) => assert!(events.len() <= 256 + SEGMENT_ROOM / HEADER),
            Ok(()) => assert!(events.len() <= 1),
            Err(error) => {
                assert!(events.is_empty(), "refused, and reported all the same");
                check_error(error, &bytes);
            }
        }
        for event in &events {
            dns_events += u64::from(matches!(event, Event::Lookup(_)));
            check_event(event, &bytes);
        }
    }

    // Whatever was folded, the figures are those of the events.
    let summary = lookups.take_summary();
    let (answers, none) =
        (summary.durations.count() + summary.served.count(), summary.unanswered + summary.not_served);
    assert_eq!(dns_events, answers + none + summary.late + summary.served_late);
    assert_eq!(summary.durations.count(), summary.rcodes.values().sum::<u64>());
    let (mut answered, mut counted) = (0, 0);
    for of_entity in store.snapshot(2).entities() {
        for (metric, series) in of_entity.metrics() {
            assert!(series.len() <= LIMITS.per_entity + 1, "{}: {} series", metric.name, series.len());
            for series in series {
                match series.data() {
                    Data::Times(times) => answered += times.count(),
                    Data::Count(count) => counted += count,
                    Data::Level(_) => panic!("no record makes a gauge"),
                }
            }
        }
    }
    assert_eq!((answered, counted), (answers, none + summary.lost_twins + summary.search_misses));
});

/// Splits an input into frames.
struct Frames<'a>(&'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let ([what, low, high], rest) = self.0.split_first_chunk::<3>()?;
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (record, rest) = rest.split_at(len);
        self.0 = rest;
        Some((*what, record))
    }
}

fn repair(bytes: &mut [u8]) {
    let len = bytes.len() as u32;
    if let Some(head) = bytes.get_mut(..size_of::<RecordHeader>()) {
        let mut header: RecordHeader = bytemuck::pod_read_unaligned(head);
        header.kind %= 7;
        header.version = WIRE_VERSION;
        header.len = len;
        head.copy_from_slice(bytemuck::bytes_of(&header));
    }
}

fn is_segment(bytes: &[u8]) -> bool {
    bytes.len() == size_of::<SegmentRecord>()
}

fn check_error(error: DecodeError, bytes: &[u8]) {
    match error {
        DecodeError::Length(len) => assert_eq!(len, bytes.len()),
        DecodeError::Version(version) => assert_ne!(version, WIRE_VERSION),
        // The header was in order.
        DecodeError::Kind(kind) => assert_eq!(collect::header(bytes).map(|header| header.kind), Ok(kind)),
        DecodeError::Value(what) => assert!(!what.is_empty() && collect::header(bytes).is_ok()),
    }
    assert!(!error.to_string().is_empty());
}

fn check_event(event: &Event, bytes: &[u8]) {
    let mut keys = Vec::new();
    event.visit(&mut |key, value| {
        keys.push(key);
        match value {
            AttrValue::Float(number) => assert!(number.is_finite() && number >= 0.0, "{key}: {number}"),
            AttrValue::Int(number) => assert!(number >= 0, "{key}: {number}"),
            AttrValue::Str(text) => assert!(!text.is_empty(), "{key} is empty"),
            AttrValue::Bool(_) | AttrValue::List(_) | AttrValue::Map(_) => {}
        }
    });
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), count, "an attribute twice");

    let mut line = Vec::new();
    console::event(&mut line, event).expect("a vector takes everything");
    let line = String::from_utf8(line).expect("text");
    let text = line.strip_suffix('\n').expect("a line");
    assert!(!text.chars().any(steers), "{text:?}");

    let mut line = Vec::new();
    json::write(&mut line, event).expect("a vector takes everything");
    let line = String::from_utf8(line).expect("text");
    assert!(!line.strip_suffix('\n').expect("a line").chars().any(steers), "{line:?}");
    let value: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(value.as_object().map(serde_json::Map::len), Some(count + 2));
    assert_eq!(value["event"], event.event_name());
    event.visit(&mut |key, attribute| match attribute {
        AttrValue::Str(text) => assert_eq!(value[key], text, "{key}"),
        AttrValue::Int(number) => assert_eq!(value[key], number, "{key}"),
        AttrValue::Float(_) | AttrValue::Bool(_) | AttrValue::List(_) | AttrValue::Map(_) => {}
    });
    check_meaning(event, &value, bytes);
}

/// What could steer a terminal, or turn a line round.
fn steers(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// That the event says what the record says.
fn check_meaning(event: &Event, value: &Value, bytes: &[u8]) {
    fn read<T: bytemuck::Pod>(bytes: &[u8]) -> T {
        collect::record(bytes).expect("it was decoded")
    }
    match event {
        Event::Retransmit(_) => {
            let record: RetransmitRecord = read(bytes);
            check_socket(&record.socket, value);
            assert_eq!(value[key::SEGMENTS], record.segments);
        }
        Event::Reset(_) => check_socket(&read::<ResetRecord>(bytes).socket, value),
        Event::Connect(connect) => {
            let record: ConnectRecord = read(bytes);
            check_socket(&record.socket, value);
            assert_eq!(connect.error.is_none(), record.errno == 0);
            assert_eq!(connect.duration.unwrap_or_default(), Duration::from_nanos(record.duration_ns));
        }
        Event::Close(close) => {
            let record: CloseRecord = read(bytes);
            check_socket(&record.socket, value);
            assert_eq!(close.duration.unwrap_or_default(), Duration::from_nanos(record.duration_ns));
            for (key, octets) in
                [(key::TCP_BYTES_SENT, record.bytes_sent), (key::TCP_BYTES_RECEIVED, record.bytes_received)]
            {
                let known = (octets != ABSENT_OCTETS).then(|| i64::try_from(octets).unwrap_or(i64::MAX));
                assert_eq!(value.get(key).and_then(Value::as_i64), known, "{key}");
            }
            assert_eq!(value.get(key::TCP_SEGMENTS_SENT).is_some(), record.segments_sent != ABSENT);
            assert_eq!(value.get(key::TCP_RECOVERIES_UNDONE).is_some(), record.recoveries_undone != ABSENT);
        }
        Event::Lookup(lookup) => {
            assert!(lookup.name.bytes().all(|octet| (0x20..0x7f).contains(&octet)), "{:?}", lookup.name);
            assert_eq!(
                lookup.outcome != dns::Outcome::Unanswered,
                value.get(key::DNS_RESPONSE_CODE).is_some()
            );
            assert_eq!(lookup.transport == dns::Transport::Tcp, is_segment(bytes));
            if is_segment(bytes) {
                // Which other records it took, the target dns_streams knows.
                return;
            }
            let (head, octets) = bytes.split_at(size_of::<LookupHead>());
            let LookupHead { header, key, asked, .. } = read(head);
            // A late answer is told with what was remembered of the question.
            if header.kind == KIND_ORPHAN && lookup.outcome == dns::Outcome::Late {
                return;
            }
            let Asked { name_len, qtype, sent_ns, role, .. } = asked;
            let name = &octets[HEADER..HEADER + usize::from(name_len)];
            assert_eq!(Some(&lookup.name), dns::name_text(name).as_ref());
            assert_eq!(lookup.qtype, dns::type_text(qtype));
            assert_eq!(lookup.duration, Duration::from_nanos(header.time_ns.saturating_sub(sent_ns)));
            assert_eq!(lookup.peer.map(|peer| peer.port()).unwrap_or_default(), key.port);
            assert_eq!(lookup.role == dns::Role::Server, role == ROLE_SERVER);
        }
        Event::SyscallSlow(slow) => {
            let record: SlowRecord = read(bytes);
            assert_eq!((slow.tid, slow.who.pid.unwrap_or(0)), (record.tid, record.owner.tgid));
            assert_eq!(slow.off_cpu, Some(Duration::from_nanos(record.off_cpu_ns)));
            let subject = &record.subject;
            assert_eq!(slow.subject.args, (subject.has & HAS_ARGS != 0).then_some(subject.args));
            let ends = [slow.subject.local, slow.subject.peer];
            assert!(ends.iter().all(Option::is_none) || subject.has & HAS_SOCKET != 0);
            assert_eq!(slow.duration, Duration::from_nanos(record.duration_ns));
            assert_eq!(slow.error.is_some(), (-4095..0).contains(&record.ret));
        }
        Event::SyscallSummary(_) | Event::SyscallInFlight(_) | Event::Loss(_) => {
            panic!("no record makes {event:?}")
        }
    }
}

fn check_socket(socket: &Socket, value: &Value) {
    for (address, port, text, number) in [
        (socket.local, socket.local_port, key::NETWORK_LOCAL_ADDRESS, key::NETWORK_LOCAL_PORT),
        (socket.peer, socket.peer_port, key::NETWORK_PEER_ADDRESS, key::NETWORK_PEER_PORT),
    ] {
        let shown: IpAddr = value[text].as_str().and_then(|text| text.parse().ok()).expect("an address");
        assert_eq!(shown.is_ipv4(), socket.family == FAMILY_IPV4);
        assert_eq!(octets(shown), if shown.is_ipv4() { first_four(address) } else { address });
        assert_eq!(value[number], port);
    }
    assert_eq!(
        value.get(key::PROCESS_PID).and_then(Value::as_u64).unwrap_or(0),
        u64::from(socket.owner.tgid)
    );
}

fn first_four(address: Address) -> Address {
    let mut four = [0; 16];
    four[..4].copy_from_slice(&address[..4]);
    four
}

fn octets(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&v4.octets());
            wide
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}
