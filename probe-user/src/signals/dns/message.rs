//! What an answer says, beyond its question.

use domain::base::Message;
use domain::base::iana::Class;
use probe_common::dns::HEADER;

/// RCODE of the flags, RFC 1035, 4.1.1.
const RCODE: u16 = 0x000f;
/// TC of the flags, RFC 1035, 4.1.1.
const TRUNCATED: u16 = 0x0200;

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Response code; with an OPT record, the extended one (RFC 6891, 6.1.3).
    pub rcode: u16,
    /// TC.
    pub truncated: bool,
    /// ANCOUNT.
    pub answers: u16,
    /// The smallest time to live in the answer section, seconds; `None` where there is none, or not all of it is there.
    pub ttl: Option<u32>,
}

/// Reads a message, or its beginning. `None`: not even a header.
#[must_use]
pub fn answer(octets: &[u8]) -> Option<Answer> {
    let word = |at: usize| Some(u16::from_be_bytes([*octets.get(at)?, *octets.get(at + 1)?]));
    let (flags, answers, additional) = (word(2)?, word(6)?, word(10)?);
    let rcode = flags & RCODE;
    let mut answer =
        Answer { rcode, truncated: flags & TRUNCATED != 0, answers, ttl: None };
    octets.get(..HEADER)?;
    let Ok(message) = Message::from_octets(octets) else { return Some(answer) };
    if answers != 0 {
        answer.ttl = smallest_ttl(message, answers);
    }
    if additional != 0
        && let Some(opt) = message.opt()
    {
        answer.rcode = opt.rcode(message.header()).to_int();
    }
    Some(answer)
}

fn smallest_ttl(message: Message<&[u8]>, answers: u16) -> Option<u32> {
    let section = message.answer().ok()?;
    let mut smallest = None;
    let mut seen = 0;
    for record in section {
        let record = record.ok()?;
        seen += 1;
        if record.class() == Class::IN {
            // With the highest bit set it is zero (RFC 2181, 8).
            let ttl = i32::try_from(record.ttl().as_secs()).map_or(0, i32::unsigned_abs);
            smallest = Some(smallest.map_or(ttl, |smallest: u32| smallest.min(ttl)));
        }
    }
    smallest.filter(|_| seen == answers)
}
