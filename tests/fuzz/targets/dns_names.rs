//! Names of DNS questions as text, against two other readers: simple-dns on the wire side, and RFC 1035's rules for text on
//! the other. The text must say exactly what was on the wire, whatever was on the wire.

#![no_main]

use libfuzzer_sys::fuzz_target;
use probe_user::signals::dns::name_text;
use simple_dns::Packet;

fuzz_target!(|wire: &[u8]| {
    let text = name_text(wire);
    let labels = labels_of(wire);
    match (&text, &labels) {
        (None, None) => {}
        (Some(text), Some(labels)) => {
            assert!(text.bytes().all(|octet| (0x20..0x7f).contains(&octet)), "{text:?}");
            assert!(!text.bytes().any(|octet| octet.is_ascii_uppercase()), "{text:?}");
            assert_eq!(&unescape(text), labels, "{text:?}");
        }
        (Some(_), None) | (None, Some(_)) => panic!("one takes it: {text:?}, {labels:?}"),
    }
    // Names that differ in case only are one name, and no others are.
    let other_case: Vec<u8> =
        wire.iter().map(|octet| if *octet > 63 { octet.to_ascii_uppercase() } else { *octet }).collect();
    assert_eq!(name_text(&other_case), text);
});

/// The labels of an uncompressed name that takes all of `wire`, in lower case.
fn labels_of(wire: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut message = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(wire);
    message.extend_from_slice(&[0, 1, 0, 1]);
    let packet = Packet::parse(&message).ok()?;
    let name = &packet.questions.first()?.qname;
    let labels: Vec<Vec<u8>> = name.as_bytes().map(<[u8]>::to_ascii_lowercase).collect();
    // It follows compression pointers, and does not mind what is behind: only what would be written so again is such a name. (Lengths
    // of labels are below any letter.)
    let mut again: Vec<u8> =
        labels.iter().flat_map(|label| [&[label.len() as u8], &label[..]].concat()).collect();
    again.push(0);
    (again == wire.to_ascii_lowercase()).then_some(labels)
}

/// Labels of a name in presentation format (RFC 1035, 5.1).
fn unescape(text: &str) -> Vec<Vec<u8>> {
    if text == "." {
        return Vec::new();
    }
    let mut labels = vec![Vec::new()];
    let mut octets = text.bytes();
    while let Some(octet) = octets.next() {
        let octet = match octet {
            b'.' => {
                labels.push(Vec::new());
                continue;
            }
            b'\\' => match octets.next().expect("an escaped octet") {
                hundreds @ b'0'..=b'9' => {
                    let digits = [
                        hundreds,
                        octets.next().expect("three digits"),
                        octets.next().expect("three digits"),
                    ];
                    let number = digits.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
                    u8::try_from(number).expect("an octet")
                }
                other => other,
            },
            other => other,
        };
        labels.last_mut().expect("there is one").push(octet.to_ascii_lowercase());
    }
    labels
}
