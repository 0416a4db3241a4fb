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
    let mut answer = Answer { rcode, truncated: flags & TRUNCATED != 0, answers, ttl: None };
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

#[cfg(test)]
mod tests {
    use super::*;

    const A: u16 = 1;
    const OPT: u16 = 41;

    /// A record of the root (RFC 1035, 4.1.3): type, class, the next four octets; data, if it is an address.
    fn record(rtype: u16, class: u16, ttl: u32) -> Vec<u8> {
        let head = [&[0][..], &rtype.to_be_bytes(), &class.to_be_bytes(), &ttl.to_be_bytes()].concat();
        let data = if rtype == OPT { vec![0, 0] } else { vec![0, 4, 192, 0, 2, 1] };
        [head, data].concat()
    }

    /// A message: its flags, then the records of answer, authority and additional section.
    fn message(flags: u16, sections: [&[Vec<u8>]; 3]) -> Vec<u8> {
        let counts = sections.map(|records| records.len() as u16);
        let words = [7, 0x8180 | flags, 1, counts[0], counts[1], counts[2]];
        let mut message: Vec<u8> = words.into_iter().flat_map(u16::to_be_bytes).collect();
        message.extend([0, 0, 1, 0, 1]);
        message.extend(sections.into_iter().flatten().flatten());
        message
    }

    #[test]
    fn answers() {
        let of = |ttl: u32| record(A, 1, ttl);
        let chaos = record(16, 3, 0);
        // The upper octet of an extended code is the first of what is the time to live elsewhere (RFC 6891, 6.1.3).
        let opt = |upper: u32| vec![record(OPT, 1_232, upper << 24)];
        for (what, flags, sections, rcode, truncated, ttl) in [
            ("nothing", 0, [&[][..], &[], &[]], 0, false, None),
            ("does not exist", 3, [&[], &[of(900)], &[]], 3, false, None),
            ("the smallest", 0, [&[of(300), of(60), of(3_600)], &[of(5)], &[of(1)]], 0, false, Some(60)),
            ("zero", 0, [&[of(300), of(0)], &[], &[]], 0, false, Some(0)),
            ("with the highest bit", 0, [&[of(300), of(0x8000_0001)], &[], &[]], 0, false, Some(0)),
            ("of another class", 0, [&[of(300), chaos], &[], &[]], 0, false, Some(300)),
            ("cut", 0x0200, [&[], &[], &[]], 0, true, None),
            ("plain code, EDNS", 2, [&[], &[], &opt(0)], 2, false, None),
            ("BADVERS", 0, [&[], &[], &opt(1)], 16, false, None),
            ("BADCOOKIE", 7, [&[of(9)], &[], &opt(1)], 23, false, Some(9)),
            ("the highest", 15, [&[], &[], &opt(255)], 4_095, false, None),
        ] {
            let octets = message(flags, sections);
            let answers = sections[0].len() as u16;
            assert_eq!(answer(&octets), Some(Answer { rcode, truncated, answers, ttl }), "{what}");
            // What is missing is not made up.
            for len in 0..octets.len() {
                let Some(part) = answer(&octets[..len]) else {
                    assert!(len < HEADER, "{what}, {len} octets");
                    continue;
                };
                assert_eq!((part.truncated, part.answers), (truncated, answers), "{what}, {len} octets");
                assert!(part.rcode == rcode || part.rcode == flags & 0xf, "{what}, {len} octets");
                assert!(part.ttl.is_none() || part.ttl == ttl, "{what}, {len} octets");
            }
        }
    }
}
