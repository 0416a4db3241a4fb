//! The question of a DNS message (RFC 1035, 4.1.2), found and hashed where it lies.
//!
//! The programs run this on packets, tests and fuzzers on bytes: it is the one parser that every packet of strangers meets.

use core::hint::black_box;

use crate::dns::{NAME_MAX, NAME_ROOM};

/// What a question is read from.
pub trait Octets {
    /// Copies `len` octets (1 to `N`) from position `at` on; false where there are fewer.
    fn load<const N: usize>(&self, at: u32, room: &mut [u8; N], len: u32) -> bool;

    /// The same number, of which a verifier knows nothing any more. `None`: cannot be.
    fn forget(number: &u32) -> Option<u32>;
}

/// [`parse`] found none. A name has a length of 1 at least.
pub const NO_QUESTION: u64 = 0;

/// The question at `start`: its hash in the upper half, then 16 bits of type, 16 of the name's length, the closing zero
/// included.
///
/// Two passes, because verifiers (that of 5.10 above all) follow every way out of a loop: the first goes from label to label,
/// the second takes eight bytes at a time, and neither leaves its loop with anything they know for certain.
#[inline(always)]
pub fn parse<O: Octets>(octets: &O, start: u32) -> u64 {
    const MAX_LABELS: u32 = 128;
    const WORDS: u64 = NAME_ROOM as u64 / 8;
    /// 64-bit FNV prime and offset basis, taking words for octets.
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

    let mut len = 0u32;
    // 64 bits wide, here as below: BPF compares no others without shifting them.
    let mut at = 0u64;
    for _ in 0..MAX_LABELS {
        let mut label = [0u8; 1];
        // A compression pointer (RFC 1035, 4.1.4) has nothing before it to point to.
        if !octets.load(start + at as u32, &mut label, 1) || label[0] > 63 {
            return NO_QUESTION;
        }
        at += u64::from(label[0]) + 1;
        if at > NAME_MAX as u64 {
            return NO_QUESTION;
        }
        if label[0] == 0 {
            len = at as u32;
            break;
        }
    }
    if len == 0 {
        return NO_QUESTION;
    }

    // From here on the length is a number like any other: what the verifier learned of it on each way out would be followed
    // apart.
    let Some(len) = O::forget(&len) else { return NO_QUESTION };

    let mut tail = [0u8; 4];
    if !octets.load(start + len, &mut tail, 4) {
        return NO_QUESTION;
    }
    let mut hash = (BASIS ^ u64::from(u32::from_be_bytes(tail))).wrapping_mul(PRIME);
    for word in 0..WORDS {
        let at = word * 8;
        if at >= u64::from(len) {
            break;
        }
        // Beyond the name there are zeros. As many as are left of it, 8 at most; by arithmetic, for a branch would be two ways.
        let mut eight = [0u8; 8];
        let beyond_8 = black_box(u64::from(len).wrapping_sub(at + 8)) as i64;
        let size = ((beyond_8 & black_box(beyond_8 >> 63)).wrapping_sub(1) & 7) as u32 + 1;
        if !octets.load(start + at as u32, &mut eight, size) {
            return NO_QUESTION;
        }
        hash = (hash ^ lower_case(u64::from_ne_bytes(eight))).wrapping_mul(PRIME);
        hash ^= hash >> 32;
    }
    let qtype = u16::from_be_bytes([tail[0], tail[1]]);
    (hash & !0xffff_ffff) | (u64::from(qtype) << 16) | u64::from(len)
}

/// Eight octets with A to Z in lower case (RFC 4343, section 3). A label's length is below 64, so never taken for a letter.
#[inline(always)]
fn lower_case(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low = word & (0x7f * EACH);
    // The highest bit of each octet: from A on, beyond Z, beyond ASCII.
    let from_a = low + (0x80 - b'A' as u64) * EACH;
    let beyond_z = low + (0x80 - b'Z' as u64 - 1) * EACH;
    word | ((from_a & !beyond_z & !word & (0x80 * EACH)) >> 2)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    struct Bytes<'a>(&'a [u8]);

    impl Octets for Bytes<'_> {
        fn load<const N: usize>(&self, at: u32, room: &mut [u8; N], len: u32) -> bool {
            assert!((1..=N as u32).contains(&len), "a verifier would not have it");
            let Some(octets) = self.0.get(at as usize..(at + len) as usize) else { return false };
            room[..len as usize].copy_from_slice(octets);
            true
        }

        fn forget(number: &u32) -> Option<u32> {
            Some(*number)
        }
    }

    /// Type and length of the name, and the hash.
    fn parsed(octets: &[u8]) -> Option<(u16, u16, u32)> {
        let packed = parse(&Bytes(octets), 0);
        (packed != NO_QUESTION).then_some(((packed >> 16) as u16, packed as u16, (packed >> 32) as u32))
    }

    fn name(labels: &[&[u8]]) -> Vec<u8> {
        let mut name = Vec::new();
        for label in labels {
            name.push(label.len() as u8);
            name.extend_from_slice(label);
        }
        name.push(0);
        name
    }

    #[test]
    fn questions() {
        let x = [b'x'; 64];
        for (what, name, found) in [
            ("root", name(&[]), true),
            ("ordinary", name(&[b"www", b"example", b"org"]), true),
            ("eight octets", name(&[b"abcdef"]), true),
            ("nine octets", name(&[b"abcdefg"]), true),
            ("any octets", name(&[b"\x00\xff.\x1b"]), true),
            ("longest", name(&[&x[..63], &x[..63], &x[..63], &x[..61]]), true),
            ("most labels", name(&[b"a".as_slice(); 127]), true),
            ("256 octets", name(&[&x[..63], &x[..63], &x[..63], &x[..62]]), false),
            ("label of 64", name(&[&x]), false),
            ("pointer", [b"\x03www\xc0\x0c".as_slice(), &[0; 8]].concat(), false),
            ("reserved", [b"\x80".as_slice(), &[0; 200]].concat(), false),
        ] {
            let question = [&name[..], &[0, 28, 0, 1]].concat();
            let want = found.then_some((28, name.len() as u16));
            assert_eq!(parsed(&question).map(|(qtype, len, _)| (qtype, len)), want, "{what}");
            for cut in 0..question.len() {
                assert_eq!(parsed(&question[..cut]), None, "{what}, {cut} octets of it");
            }
            assert_eq!(parsed(&[&question[..], b"behind it"].concat()), parsed(&question), "{what}");
        }
    }

    #[test]
    fn one_question_one_hash() {
        let of = |labels: &[&[u8]], tail: [u8; 4]| parsed(&[&name(labels)[..], &tail].concat()).unwrap().2;
        let (a, aaaa, chaos) = ([0, 1, 0, 1], [0, 28, 0, 1], [0, 1, 0, 3]);
        let one = of(&[b"www", b"example", b"org"], a);
        assert_eq!(of(&[b"WWW", b"eXample", b"ORG"], a), one, "case means nothing");
        for (what, other) in [
            ("type", of(&[b"www", b"example", b"org"], aaaa)),
            ("class", of(&[b"www", b"example", b"org"], chaos)),
            ("label", of(&[b"www", b"example", b"net"], a)),
            ("cut of labels", of(&[b"www.example", b"org"], a)),
            ("longer", of(&[b"www", b"example", b"org", b"\x00"], a)),
        ] {
            assert_ne!(other, one, "{what}");
        }
        // Octets next to the letters are none, and neither are those with the highest bit set.
        for octet in 0..=u8::MAX {
            let folded = octet.to_ascii_lowercase();
            for at in 0..8 {
                let (mut here, mut there) = ([b'-'; 8], [b'-'; 8]);
                (here[at], there[at]) = (octet, folded);
                assert_eq!(
                    lower_case(u64::from_ne_bytes(here)),
                    u64::from_ne_bytes(there),
                    "{octet} at {at}"
                );
            }
        }
    }
}
