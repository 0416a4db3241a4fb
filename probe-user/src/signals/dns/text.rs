//! What is on the wire as text: names, types, response codes.

use std::borrow::Cow;
use std::fmt::Write as _;

use domain::base::iana::{Rcode, Rtype, TsigRcode};
use domain::base::name::Name;

/// The server does not speak this version of EDNS.
const BADVERS: u16 = 16;
/// The last response code that IANA has given out (BADCOOKIE, RFC 7873, 8).
const LAST_RCODE: u16 = 23;

/// A wire-format name as text: lower case, unusual octets escaped (RFC 1035, 5.1), the root as a dot. `None`: no name.
#[must_use]
pub fn name_text(wire: &[u8]) -> Option<String> {
    let name = Name::from_octets(wire).ok()?;
    if name.is_root() {
        return Some(".".to_owned());
    }
    let mut text = String::with_capacity(wire.len());
    for label in name.iter().filter(|label| !label.is_root()) {
        if !text.is_empty() {
            text.push('.');
        }
        // Nearly all are of such octets, and there are thousands a second.
        match std::str::from_utf8(label.as_slice()) {
            Ok(plain) if plain.bytes().all(is_ordinary) => text.push_str(plain),
            _ => write!(text, "{label}").ok()?,
        }
    }
    // Capitals fold; an escaped octet is digits, which do not.
    text.make_ascii_lowercase();
    Some(text)
}

/// Stands for itself in presentation format.
const fn is_ordinary(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || octet == b'-' || octet == b'_'
}

/// The mnemonic of a type; RFC 3597's `TYPE65` where there is none.
#[must_use]
pub fn type_text(qtype: u16) -> Cow<'static, str> {
    Rtype::from_int(qtype).to_mnemonic_str().map_or_else(|| format!("TYPE{qtype}").into(), Cow::Borrowed)
}

/// The mnemonic of a response code, an extended one too (RFC 6895, 2.3); `RCODE13` where there is none.
#[must_use]
pub fn rcode_text(rcode: u16) -> Cow<'static, str> {
    let name = u8::try_from(rcode).ok().and_then(|rcode| Rcode::checked_from_int(rcode)?.to_mnemonic_str());
    // In a message's OPT 16 is no bad signature (RFC 6891, 9).
    name.or_else(|| (rcode == BADVERS).then_some("BADVERS"))
        .or_else(|| TsigRcode::from_int(rcode).to_mnemonic_str())
        .map_or_else(|| format!("RCODE{rcode}").into(), Cow::Borrowed)
}

/// A type by its mnemonic or as `TYPE65`, as events name it.
#[must_use]
pub fn type_named(text: &str) -> Option<Cow<'static, str>> {
    text.parse::<Rtype>().ok().map(|rtype| type_text(rtype.to_int()))
}

/// The response codes that an answer can be expected to carry, as events name them.
pub fn rcodes() -> impl Iterator<Item = Cow<'static, str>> {
    (0..=LAST_RCODE).map(rcode_text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The labels of a name in presentation format (RFC 1035, 5.1).
    fn unescape(text: &str) -> Vec<Vec<u8>> {
        let mut labels = vec![Vec::new()];
        let mut rest = text.as_bytes();
        while let Some((&octet, tail)) = rest.split_first() {
            let (octet, tail) = match (octet, tail) {
                (b'.', _) => {
                    labels.push(Vec::new());
                    rest = tail;
                    continue;
                }
                (b'\\', [a, b, c, tail @ ..]) if a.is_ascii_digit() => {
                    let digits = [*a, *b, *c];
                    (std::str::from_utf8(&digits).unwrap().parse().unwrap(), tail)
                }
                (b'\\', [escaped, tail @ ..]) => (*escaped, tail),
                (octet, tail) => (octet, tail),
            };
            labels.last_mut().unwrap().push(octet);
            rest = tail;
        }
        labels
    }

    proptest! {
        #[test]
        fn text_says_what_was_on_the_wire(
            labels in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(prop_oneof![any::<u8>(), Just(b'.'), Just(b'\\')], 1..=63),
                    "[A-Za-z0-9_-]{1,63}".prop_map(String::into_bytes),
                ],
                1..=3,
            ),
            cut in 0_usize..200,
        ) {
            let mut wire: Vec<u8> = labels.iter().flat_map(|label| [&[label.len() as u8], &label[..]].concat()).collect();
            wire.push(0);
            let text = name_text(&wire).unwrap();
            prop_assert!(text.bytes().all(|octet| (0x20..0x7f).contains(&octet)), "{}", text);
            let folded: Vec<Vec<u8>> = labels.iter().map(|label| label.to_ascii_lowercase()).collect();
            prop_assert_eq!(unescape(&text), folded);
            // A part of a name is none, and neither is more than one.
            prop_assert_eq!(name_text(wire.get(..cut.min(wire.len() - 1)).unwrap()), None);
            wire.push(0);
            prop_assert_eq!(name_text(&wire), None);
        }
    }

    #[test]
    fn every_type_and_code_has_a_name_of_its_own() {
        let types: std::collections::HashSet<_> = (0..=u16::MAX).map(type_text).collect();
        assert_eq!(types.len(), 1 << 16);
        for qtype in 0..=u16::MAX {
            assert_eq!(type_named(&type_text(qtype)), Some(type_text(qtype)));
        }
        let codes: std::collections::HashSet<_> = (0..=u16::MAX).map(rcode_text).collect();
        assert_eq!(codes.len(), 1 << 16);
    }

    #[test]
    fn names() {
        for (what, wire, want) in [
            ("ordinary", &b"\x03www\x07Example\x03ORG\x00"[..], Some("www.example.org")),
            ("root", b"\x00", Some(".")),
            ("a dot in a label", b"\x03a.b\x00", Some(r"a\.b")),
            ("an escape sequence", b"\x03\x1b[m\x00", Some(r"\027[m")),
            ("cut", b"\x03ww", None),
            ("empty", b"", None),
            ("pointer", b"\xc0\x00", None),
            ("octets after it", b"\x00\x00", None),
        ] {
            assert_eq!(name_text(wire).as_deref(), want, "{what}");
        }
    }

    #[test]
    fn mnemonics() {
        assert_eq!(type_text(28), "AAAA");
        assert_eq!(type_text(61_234), "TYPE61234");
        assert_eq!(rcode_text(3), "NXDOMAIN");
        assert_eq!(rcode_text(0), "NOERROR");
        assert_eq!(rcode_text(13), "RCODE13");
        assert_eq!(type_named("aaaa").as_deref(), Some("AAAA"));
        assert_eq!(type_named("TYPE28").as_deref(), Some("AAAA"));
        assert_eq!(type_named("TYPE61234").as_deref(), Some("TYPE61234"));
        for nonsense in ["", "FOO", "TYPE", "TYPE65536", "28"] {
            assert_eq!(type_named(nonsense), None, "{nonsense}");
        }
        for (rcode, name) in
            [(16, "BADVERS"), (17, "BADKEY"), (23, "BADCOOKIE"), (24, "RCODE24"), (4_095, "RCODE4095")]
        {
            assert_eq!(rcode_text(rcode), name);
        }
        assert_eq!(rcodes().count(), 24);
    }
}
