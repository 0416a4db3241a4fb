//! Segments of any octets, and segments that were ours before something happened to them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use probe_user::sink::otlp::spool::segment::{Contents, FRAME_HEAD, HEADER, State, frame, header, read};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(contents) = read(bytes) {
        holds(bytes, &contents);
    }
    // Frames of these octets, cut off somewhere, and one of them turned: what lies before that is as it was.
    let [cut, turned, body @ ..] = bytes else { return };
    let mut segment = header().to_vec();
    let mut ends = Vec::new();
    for (n, part) in body.chunks(97).enumerate() {
        segment.extend(frame(part, n as u32 + 1).expect("a small one"));
        ends.push(segment.len());
    }
    let whole = read(&segment).expect("ours");
    holds(&segment, &whole);
    assert_eq!(whole.frames.iter().map(|frame| frame.body.end).collect::<Vec<_>>(), ends);
    assert!(whole.tail.is_none() && whole.frames.iter().all(|frame| frame.state == State::Waiting));
    let len = HEADER + (segment.len() - HEADER) * usize::from(*cut) / 255;
    let torn = read(&segment[..len]).expect("the header is there");
    holds(&segment[..len], &torn);
    let before = ends.iter().take_while(|end| **end <= len).count();
    assert_eq!(torn.frames, whole.frames[..before]);
    if segment.len() > HEADER {
        let at = HEADER + (segment.len() - HEADER - 1) * usize::from(*turned) / 255;
        segment[at] ^= 0x10;
        let hit = ends.iter().take_while(|end| **end <= at).count();
        let found = read(&segment).expect("the header is there");
        holds(&segment, &found);
        assert_eq!(found.frames[..hit], whole.frames[..hit]);
        if let Some(frame) = found.frames.get(hit).filter(|_| at >= whole.frames[hit].body.start) {
            assert_eq!(frame.state, State::Damaged);
            assert_eq!(found.frames[hit + 1..], whole.frames[hit + 1..]);
        }
    }
});

/// Every octet is header, frame or tail, in this order.
fn holds(bytes: &[u8], contents: &Contents) {
    let mut at = HEADER;
    for frame in &contents.frames {
        assert_eq!((frame.at, frame.body.start), (at, at + FRAME_HEAD));
        assert!(frame.body.end <= bytes.len());
        at = frame.body.end;
    }
    assert_eq!((contents.end, contents.end + contents.tail.map_or(0, |tail| tail.octets)), (at, bytes.len()));
    assert!(contents.tail.is_none_or(|tail| tail.items > 0 && tail.octets > 0));
}
