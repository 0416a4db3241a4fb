//! The form of a segment: a header, then frames. A frame is one body of `ExportLogsServiceRequest`, which carries resources and times.
//!
//! ```text
//! header   magic[8] version:u32 crc:u32        crc of the twelve octets before it
//! frame    state:u32 len:u32 items:u32 head:u32 body:u32 octets[len]
//! ```
//!
//! Numbers are little-endian, checksums CRC-32. `head` is of `len` and `items`, so that what is lost with a damaged body is known, and
//! what comes after it found; `body` is of the octets. `state` is no part of either: it is written over once the collector has taken
//! the frame, so that little is sent twice after a crash.

use std::ops::Range;

/// What a segment begins with.
pub const MAGIC: [u8; 8] = *b"probespl";
/// Of the form described here.
pub const VERSION: u32 = 1;
/// Octets of a header.
pub const HEADER: usize = 16;
/// Octets of a frame before its body.
pub const FRAME_HEAD: usize = 20;
/// Octets of the largest body; what says that it is larger is no frame.
pub const MOST_BODY: usize = 8 << 20;
/// `state` of a frame that a collector has taken; of one that waits it is 0, and whatever else it is, it waits.
pub const SENT: [u8; 4] = *b"sent";

/// A header as it is written.
#[must_use]
pub fn header() -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let version = VERSION.to_le_bytes();
    let head = MAGIC.into_iter().chain(version);
    let crc = crc32fast::hash(&head.clone().collect::<Vec<u8>>()).to_le_bytes();
    for (slot, byte) in header.iter_mut().zip(head.chain(crc)) {
        *slot = byte;
    }
    header
}

/// A frame as it is written; `None`: its body is larger than any may be.
#[must_use]
pub fn frame(body: &[u8], items: u32) -> Option<Vec<u8>> {
    let len = u32::try_from(body.len()).ok().filter(|_| body.len() <= MOST_BODY)?;
    let mut frame = Vec::with_capacity(FRAME_HEAD + body.len());
    frame.extend([0; 4]);
    frame.extend(len.to_le_bytes());
    frame.extend(items.to_le_bytes());
    frame.extend(crc_of_head(len, items).to_le_bytes());
    frame.extend(crc32fast::hash(body).to_le_bytes());
    frame.extend(body);
    Some(frame)
}

fn crc_of_head(len: u32, items: u32) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&len.to_le_bytes());
    crc.update(&items.to_le_bytes());
    crc.finalize()
}

/// What has become of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody has taken it.
    Waiting,
    /// A collector has.
    Sent,
    /// Its body is not what was written.
    Damaged,
}

/// A frame that is there from its beginning to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it begins, which is where its state is.
    pub at: usize,
    /// Log records in it.
    pub items: u32,
    /// Where its body is.
    pub body: Range<usize>,
    /// See [`State`].
    pub state: State,
}

/// The end of a segment that is no whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// How long it is.
    pub octets: usize,
    /// Log records in it, as far as that is known.
    pub items: u32,
}

/// What a segment has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// In the order in which they were written.
    pub frames: Vec<Frame>,
    /// Where the last of them ends.
    pub end: usize,
    /// What comes after that.
    pub tail: Option<Tail>,
}

/// Why something is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The beginning of a header, and no more: a crash came first.
    Begun,
    /// A later probe's, perhaps.
    Version(u32),
    /// No segment.
    Foreign,
}

/// Reads a segment.
///
/// # Errors
///
/// It does not begin as one.
pub fn read(bytes: &[u8]) -> Result<Contents, Unreadable> {
    let header = header();
    let Some((found, _)) = bytes.split_at_checked(HEADER) else {
        return Err(if header.starts_with(bytes) { Unreadable::Begun } else { Unreadable::Foreign });
    };
    if found != header {
        let (head, crc) = found.split_at(HEADER - 4);
        let is_ours = found.starts_with(&MAGIC) && crc == crc32fast::hash(head).to_le_bytes();
        let version = word(found, MAGIC.len()).filter(|_| is_ours);
        return Err(version.map_or(Unreadable::Foreign, Unreadable::Version));
    }
    let mut contents = Contents { end: HEADER, ..Contents::default() };
    while let Some(rest) = bytes.get(contents.end..).filter(|rest| !rest.is_empty()) {
        let (frame, items) = one(rest, contents.end);
        match frame {
            Some(frame) => {
                contents.end = frame.body.end;
                contents.frames.push(frame);
            }
            None => {
                contents.tail = Some(Tail { octets: rest.len(), items });
                break;
            }
        }
    }
    Ok(contents)
}

/// The frame at the beginning of some octets. Where there is no whole one: how many records it would have had, one at least.
fn one(bytes: &[u8], at: usize) -> (Option<Frame>, u32) {
    let head = || Some((word(bytes, 4)?, word(bytes, 8)?, word(bytes, 12)?, word(bytes, 16)?));
    let Some((len, items, of_head, of_body)) = head() else { return (None, 1) };
    if of_head != crc_of_head(len, items) {
        return (None, 1);
    }
    let Some(len) = usize::try_from(len).ok().filter(|len| *len <= MOST_BODY) else {
        return (None, items.max(1));
    };
    let Some(body) = bytes.get(FRAME_HEAD..FRAME_HEAD + len) else { return (None, items.max(1)) };
    let state = if bytes.starts_with(&SENT) {
        State::Sent
    } else if crc32fast::hash(body) == of_body {
        State::Waiting
    } else {
        State::Damaged
    };
    (Some(Frame { at, items, body: at + FRAME_HEAD..at + FRAME_HEAD + len, state }), items)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(bodies: &[&[u8]]) -> Vec<u8> {
        let mut bytes = header().to_vec();
        for (n, body) in bodies.iter().enumerate() {
            bytes.extend(frame(body, n as u32 + 1).unwrap());
        }
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let bodies: [&[u8]; 3] = [b"one", b"", &[7; 5_000]];
        let bytes = segment(&bodies);
        let contents = read(&bytes).unwrap();
        assert_eq!((contents.end, contents.tail), (bytes.len(), None));
        for (n, (frame, body)) in contents.frames.iter().zip(bodies).enumerate() {
            assert_eq!((&bytes[frame.body.clone()], frame.items as usize), (body, n + 1));
            assert_eq!(frame.state, State::Waiting);
        }
        assert_eq!(contents.frames.len(), 3);
        assert_eq!(frame(&vec![0; MOST_BODY + 1], 1), None);
    }

    /// Wherever a crash cuts it off, what is whole before that is read, and what is torn is known where its head is there.
    #[test]
    fn a_torn_tail_costs_no_more_than_itself() {
        let bytes = segment(&[b"one", b"second", b"the third"]);
        let all = read(&bytes).unwrap().frames;
        for len in 0..bytes.len() {
            match read(&bytes[..len]) {
                Err(why) => assert_eq!((why, len < HEADER), (Unreadable::Begun, true)),
                Ok(contents) => {
                    let whole = all.iter().take_while(|frame| frame.body.end <= len).count();
                    assert_eq!(contents.frames, all[..whole]);
                    assert_eq!(contents.end + contents.tail.map_or(0, |tail| tail.octets), len);
                    if let Some(tail) = contents.tail {
                        let knows = tail.octets >= FRAME_HEAD;
                        assert_eq!(tail.items, if knows { all[whole].items } else { 1 });
                    }
                }
            }
            // A crash of the machine may leave zeros.
            let mut zeros = bytes[..len].to_vec();
            zeros.resize(len + 100, 0);
            if let Ok(contents) = read(&zeros) {
                assert!(contents.frames.iter().filter(|frame| frame.state == State::Waiting).count() <= 3);
            }
        }
    }

    #[test]
    fn what_is_damaged_or_sent_does_not_hide_what_comes_after() {
        let mut bytes = segment(&[b"one", b"second", b"third"]);
        let frames = read(&bytes).unwrap().frames;
        bytes[frames[1].body.start] ^= 1;
        bytes[frames[0].at..frames[0].at + 4].copy_from_slice(&SENT);
        let states: Vec<State> = read(&bytes).unwrap().frames.iter().map(|frame| frame.state).collect();
        assert_eq!(states, [State::Sent, State::Damaged, State::Waiting]);
    }

    #[test]
    fn what_is_no_segment_is_told_apart() {
        let mut later = header();
        later[8] = 9;
        let crc = crc32fast::hash(&later[..12]).to_le_bytes();
        later[12..].copy_from_slice(&crc);
        let mut damaged = header();
        damaged[15] ^= 1;
        for (bytes, why) in [
            (&b"a letter, and not a short one"[..], Unreadable::Foreign),
            (b"x", Unreadable::Foreign),
            (b"", Unreadable::Begun),
            (&MAGIC, Unreadable::Begun),
            (&later, Unreadable::Version(9)),
            (&damaged, Unreadable::Foreign),
        ] {
            assert_eq!(read(bytes), Err(why), "{bytes:?}");
        }
    }
}
