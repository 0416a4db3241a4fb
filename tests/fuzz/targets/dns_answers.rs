//! What an answer gives out, against simple-dns: the addresses of the name asked for, by way of CNAMEs or directly; and how long it
//! holds.

#![no_main]

use std::collections::BTreeSet;
use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use probe_user::signals::dns::answer;
use probe_user::signals::names::addresses_of_answer;
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, ResourceRecord};

/// As many as the other parser follows.
const MOST_ALIASES: usize = 20;

fuzz_target!(|message: &[u8]| {
    let ours = addresses_of_answer(message);
    if let Some((name, addresses)) = &ours {
        assert!(!addresses.is_empty());
        assert!(name.bytes().all(|octet| (0x20..0x7f).contains(&octet)), "{name}");
        assert!(!name.bytes().any(|octet| octet.is_ascii_uppercase()), "{name}");
    }
    check_header(message);
    let Ok(mut packet) = Packet::parse(message) else { return };
    let Some(theirs) = by_the_other(&packet) else { return };
    let addresses =
        |ours: Option<(String, Vec<IpAddr>)>| ours.into_iter().flat_map(|(_, addresses)| addresses).collect();
    let ours: BTreeSet<IpAddr> = addresses(ours);
    let anywhere: BTreeSet<IpAddr> = packet.answers.iter().filter_map(address).collect();
    assert!(ours.is_subset(&anywhere), "{ours:?} {anywhere:?}");
    // A record with octets behind what its type holds is none (RFC 1035, 3.3.1, 3.4.1; RFC 3596, 2.2), which the other parser
    // does not mind. Written anew, there is no such;
    // of other types neither, which it may write otherwise than it reads.
    packet.answers.retain(|record| matches!(record.rdata, RData::A(_) | RData::AAAA(_) | RData::CNAME(_)));
    packet.name_servers.clear();
    packet.additional_records.clear();
    let Ok(anew) = packet.build_bytes_vec() else { return };
    let ours: BTreeSet<IpAddr> = addresses(addresses_of_answer(&anew));
    assert_eq!(ours, theirs);
    let ttl = packet.answers.iter().filter(is_internet).map(ttl).min();
    assert_eq!(answer(&anew).expect("it has a header").ttl, ttl);
});

/// Code, count and flag are where RFC 1035, 4.1.1, has them, whatever comes after; the code's upper bits come from elsewhere.
fn check_header(message: &[u8]) {
    let Some(answer) = answer(message) else {
        assert!(message.len() < 12);
        return;
    };
    assert_eq!(answer.rcode & 0xf, u16::from(message[3] & 0xf));
    assert!(answer.rcode < 1 << 12 && (answer.rcode < 1 << 4 || message[10..12] != [0, 0]));
    assert_eq!(answer.truncated, message[2] & 2 != 0);
    assert_eq!(answer.answers.to_be_bytes(), message[6..8]);
    assert!(answer.ttl.is_none() || answer.answers != 0);
}

/// The highest bit of a class is another thing to mDNS (RFC 6762, 10.2), which the other parser reads too.
fn is_internet(record: &&ResourceRecord) -> bool {
    record.class == CLASS::IN && !record.cache_flush
}

/// Beyond 31 bits it is zero (RFC 2181, 8).
fn ttl(record: &ResourceRecord) -> u32 {
    if record.ttl >> 31 == 0 { record.ttl } else { 0 }
}

/// `None`: nothing to compare with.
fn by_the_other(packet: &Packet) -> Option<BTreeSet<IpAddr>> {
    let mut name: Vec<u8> = folded(&packet.questions.first()?.qname);
    for step in 0.. {
        if step == MOST_ALIASES {
            return Some(BTreeSet::new());
        }
        let alias = packet.answers.iter().find_map(|record| match &record.rdata {
            RData::CNAME(alias) if folded(&record.name) == name => Some(folded(&alias.0)),
            _ => None,
        });
        match alias {
            Some(alias) => name = alias,
            None => break,
        }
    }
    let addresses = packet.answers.iter().filter(is_internet).filter(|record| folded(&record.name) == name);
    Some(addresses.filter_map(address).collect())
}

fn address(record: &ResourceRecord) -> Option<IpAddr> {
    match &record.rdata {
        RData::A(a) => Some(IpAddr::V4(a.address.into())),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.address.into()).to_canonical()),
        _ => None,
    }
}

/// A name's labels in lower case, as on the wire.
fn folded(name: &Name) -> Vec<u8> {
    name.as_bytes()
        .flat_map(|label| std::iter::once(label.len() as u8).chain(label.iter().map(u8::to_ascii_lowercase)))
        .collect()
}
