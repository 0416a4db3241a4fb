//! The parser that the programs run on every DNS packet, on the octets behind the message's header, against simple-dns and
//! against the reader of names in user space.

#![no_main]

use libfuzzer_sys::fuzz_target;
use probe_common::question::{self, NO_QUESTION, Octets};
use probe_user::signals::dns::name_text;
use simple_dns::Packet;

/// A packet as `bpf_skb_load_bytes` reads it.
struct Bytes<'a>(&'a [u8]);

impl Octets for Bytes<'_> {
    fn load<const N: usize>(&self, at: u32, room: &mut [u8; N], len: u32) -> bool {
        assert!((1..=N as u32).contains(&len), "the kernel's verifier would not have it");
        let (at, len) = (at as usize, len as usize);
        let Some(octets) = self.0.get(at..at + len) else { return false };
        room[..len].copy_from_slice(octets);
        true
    }

    fn forget(number: &u32) -> Option<u32> {
        Some(*number)
    }
}

fuzz_target!(|octets: &[u8]| {
    let parsed = question::parse(&Bytes(octets), 0);
    let mut message = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(octets);
    if parsed == NO_QUESTION {
        if let Ok(packet) = Packet::parse(&message) {
            let question = packet.questions.first().expect("it was said to hold one");
            assert!(octets.iter().any(|octet| *octet >= 0xc0), "not taken: {question:?}");
        }
        return;
    }

    let len = usize::from(parsed as u16);
    let name = &octets[..len];
    let qtype = octets.get(len..len + 2).expect("a type");
    assert_eq!(qtype, ((parsed >> 16) as u16).to_be_bytes());
    // Any type and class will do for the programs; simple-dns knows some only.
    message.get_mut(12 + len..12 + len + 4).expect("a type and a class").copy_from_slice(&[0, 1, 0, 1]);
    let packet = Packet::parse(&message).expect("a question is a question");
    let question = packet.questions.first().expect("it was said to hold one");
    let theirs: Vec<u8> = question
        .qname
        .as_bytes()
        .flat_map(|label| std::iter::once(label.len() as u8).chain(label.iter().copied()))
        .chain([0])
        .collect();
    assert_eq!(theirs, name);
    assert!(name_text(name).is_some(), "user space takes what the programs take");

    // Octets behind the question mean nothing, nor does where it begins, nor case.
    let end = len + 4;
    let parse = |octets: &[u8], start| question::parse(&Bytes(octets), start);
    assert_eq!(parse(&octets[..end], 0), parsed);
    let mut moved = vec![0xff; 7];
    moved.extend_from_slice(&octets[..end]);
    assert_eq!(parse(&moved, 7), parsed);
    let mut other = octets[..end].to_vec();
    for octet in &mut other[..len] {
        // A label's length is below 64, and so no letter.
        *octet =
            if octet.is_ascii_lowercase() { octet.to_ascii_uppercase() } else { octet.to_ascii_lowercase() };
    }
    assert_eq!(parse(&other, 0), parsed);
    assert_eq!(parse(&octets[..end - 1], 0), NO_QUESTION);
});
