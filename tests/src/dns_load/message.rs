//! Questions and answers of the load, octet by octet: RFC 1035, 4.1.

use std::io::Write as _;

/// QTYPE of IPv4 addresses.
pub(super) const A: u16 = 1;
/// QTYPE of IPv6 addresses.
pub(super) const AAAA: u16 = 28;
/// What all names end in.
pub(super) const DOMAIN: &str = "load.test";
/// No message is longer.
pub(super) const MOST: usize = 512;

const QUERY: [u8; 10] = [0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
/// One question, one answer.
const ANSWER: [u8; 10] = [0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
/// Octets of the header.
const HEADER: usize = 12;
const END_OF_NAME_AND_CLASS: ([u8; 1], [u8; 2]) = ([0], [0, 1]);
/// Its name is that of the question; then type, class and 60 seconds to live.
const NAME_OF_QUESTION: [u8; 2] = [0xc0, 0x0c];
const CLASS_AND_TTL: [u8; 6] = [0, 1, 0, 0, 0, 60];

/// The first label of a name.
pub(super) fn label(number: u64) -> String {
    format!("h{number:07}")
}

/// Writes a question. `name` is the number in its first label.
pub(super) fn question(out: &mut Vec<u8>, id: u16, name: u64, qtype: u16) {
    out.clear();
    out.extend(id.to_be_bytes());
    out.extend(QUERY);
    // As in `label`: without its String.
    out.push(8);
    let _never_fails = write!(out, "h{name:07}");
    for label in DOMAIN.split('.') {
        out.push(u8::try_from(label.len()).unwrap_or(0));
        out.extend(label.as_bytes());
    }
    let (end, class) = END_OF_NAME_AND_CLASS;
    out.extend(end);
    out.extend(qtype.to_be_bytes());
    out.extend(class);
}

/// Writes the answer to a question, which has nothing behind it: one address of nobody in particular. False: it is no question.
pub(super) fn answer(out: &mut Vec<u8>, question: &[u8]) -> bool {
    let (Some((id, _)), Some((_, asked))) =
        (question.split_first_chunk::<2>(), question.split_at_checked(HEADER))
    else {
        return false;
    };
    let Some((_, &[high, low, _, _])) = asked.split_last_chunk::<4>() else { return false };
    let qtype = [high, low];
    out.clear();
    out.extend(id);
    out.extend(ANSWER);
    out.extend(asked);
    out.extend(NAME_OF_QUESTION);
    out.extend(qtype);
    out.extend(CLASS_AND_TTL);
    let octets: &[u8] = if u16::from_be_bytes(qtype) == AAAA { &[0xfd; 16] } else { &[192, 0, 2, 1] };
    out.extend([0, u8::try_from(octets.len()).unwrap_or(0)]);
    out.extend(octets);
    true
}

/// Gives a message another id.
pub(super) fn number(message: &mut [u8], id: u16) {
    for (octet, new) in message.iter_mut().zip(id.to_be_bytes()) {
        *octet = new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &[u8] = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x08h0000007\x04load\x04test\0\0\x1c\0\x01";

    #[test]
    fn a_question() {
        let mut octets = Vec::new();
        question(&mut octets, 0x1234, 7, AAAA);
        assert_eq!(octets, QUESTION);
        assert_eq!(label(7), "h0000007");
        number(&mut octets, 0x5678);
        assert_eq!(octets.get(..4), Some(b"\x56\x78\x01\x00".as_slice()));
    }

    #[test]
    fn an_answer() {
        let mut octets = Vec::new();
        assert!(answer(&mut octets, QUESTION));
        let mut wanted = QUESTION.to_vec();
        wanted.splice(2..8, *b"\x81\x80\0\x01\0\x01");
        wanted.extend(b"\xc0\x0c\0\x1c\0\x01\0\0\0\x3c\0\x10");
        wanted.extend([0xfd; 16]);
        assert_eq!(octets, wanted);
        assert!(!answer(&mut octets, b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x08h"));
        assert!(!answer(&mut octets, b""));
    }
}
