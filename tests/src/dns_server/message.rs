//! Messages on the wire (RFC 1035, section 4), as far as the server and those who ask it need them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::slice;

use super::{Script, Served, Transport};

/// QTYPE of IPv4 addresses.
pub const A: u16 = 1;
/// QTYPE of IPv6 addresses.
pub const AAAA: u16 = 28;
/// QTYPE of text.
pub const TXT: u16 = 16;
const CNAME: u16 = 5;
/// RCODE of a name that does not exist.
pub const NXDOMAIN: u8 = 3;
/// RCODE of a server that failed.
pub const SERVFAIL: u8 = 2;

/// RFC 1035, 4.1.1.
const HEADER: usize = 12;
const ANCOUNT: Range<usize> = 6..8;
/// Octets of a record beside its data, where its name is a pointer.
const RECORD: usize = 12;
/// Octets of text in one record.
const TEXT: usize = 4_000;

/// The question of a message, as far as the server needs it.
pub(super) struct Question {
    pub(super) id: u16,
    /// In lower case, labels joined by dots.
    pub(super) name: String,
    pub(super) qtype: u16,
    /// Name, type and class as they came.
    wire: Vec<u8>,
}

impl Question {
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
        if word(2)? & 0x8000 != 0 || word(4)? != 1 {
            return None;
        }
        let mut labels = Vec::new();
        let mut at = HEADER;
        loop {
            let len = usize::from(*packet.get(at)?);
            if len == 0 {
                break;
            }
            labels.push(String::from_utf8_lossy(packet.get(at + 1..at + 1 + len)?).to_ascii_lowercase());
            at += 1 + len;
        }
        let end = at + 5;
        let wire = packet.get(HEADER..end)?.to_vec();
        Some(Self { id: word(0)?, name: labels.join("."), qtype: word(at + 1)?, wire })
    }

    /// As the log has it.
    pub(super) fn served(
        &self,
        (server, transport): (SocketAddr, Transport),
        client: SocketAddr,
        received_ns: u64,
    ) -> Served {
        let Self { id, name, qtype, .. } = self;
        let (name, answered_ns) = (name.clone(), Vec::new());
        Served { server, transport, client, id: *id, name, qtype: *qtype, received_ns, answered_ns }
    }

    pub(super) fn answer(&self, script: &Script, transport: Transport) -> Vec<u8> {
        let truncated = script.truncated && transport == Transport::Udp;
        // QR, RD, RA.
        let flags = 0x8180 | if truncated { 0x0200 } else { 0 } | u16::from(script.rcode & 0xf);
        let of_type = script.addresses.iter().filter(|address| address.is_ipv6() == (self.qtype == AAAA));
        let mut addresses: Vec<IpAddr> = of_type.copied().collect();
        if script.addresses.is_empty() {
            let nobody: IpAddr = if self.qtype == AAAA {
                Ipv6Addr::from([0x20; 16]).into()
            } else {
                Ipv4Addr::new(192, 0, 2, 1).into()
            };
            addresses = vec![nobody; usize::from(script.answers)];
        }
        let mut packet = Vec::new();
        for word in [self.id, flags, 1, 0, 0, u16::from(script.edns.is_some())] {
            packet.extend(word.to_be_bytes());
        }
        let wire = if script.shouts { self.wire.to_ascii_uppercase() } else { self.wire.clone() };
        packet.extend(wire);
        let mut answers = Answers { packet, count: 0, ttls: script.ttls.iter() };
        // A pointer to the question's name, and from then on to that of the last alias.
        let mut owner = HEADER;
        for alias in &script.aliases {
            answers.record(owner, CNAME, &wire_name(alias.split('.').map(str::as_bytes)));
            owner = answers.packet.len() - alias.len() - 2;
        }
        for address in addresses {
            match address {
                IpAddr::V4(v4) => answers.record(owner, self.qtype, &v4.octets()),
                IpAddr::V6(v6) => answers.record(owner, self.qtype, &v6.octets()),
            }
        }
        let opt = script.edns.map(|rcode| [0, 0, 41, 4, 208, rcode, 0, 0, 0, 0, 0]);
        answers.fill(owner, script.octets.saturating_sub(opt.map_or(0, |opt| opt.len())));
        let Answers { mut packet, count, .. } = answers;
        packet.splice(ANCOUNT, count.to_be_bytes());
        packet.extend(opt.into_iter().flatten());
        packet
    }
}

/// A message up to its answers.
struct Answers<'a> {
    packet: Vec<u8>,
    count: u16,
    ttls: slice::Iter<'a, u32>,
}

impl Answers<'_> {
    /// A record of the name at `owner`; class IN.
    fn record(&mut self, owner: usize, rtype: u16, data: &[u8]) {
        self.packet.extend((0xc000 | owner as u16).to_be_bytes());
        self.packet.extend(rtype.to_be_bytes());
        self.packet.extend([0, 1]);
        self.packet.extend(self.ttls.next().copied().unwrap_or(60).to_be_bytes());
        self.packet.extend((data.len() as u16).to_be_bytes());
        self.packet.extend(data);
        self.count += 1;
    }

    /// TXT records, until the message has so many octets, or one that is too small for any is missing.
    fn fill(&mut self, owner: usize, octets: usize) {
        while let Some(room @ 1..) = octets.saturating_sub(self.packet.len()).checked_sub(RECORD) {
            // The rest is enough for another, or there is none.
            let len = if room > TEXT + RECORD { TEXT } else { room };
            let texts = vec![b't'; len];
            let data: Vec<u8> = texts
                .chunks(256)
                .flat_map(|text| [&[(text.len() - 1) as u8], text.get(1..).unwrap_or_default()].concat())
                .collect();
            self.record(owner, TXT, &data);
        }
    }
}

/// A name on the wire.
fn wire_name<'a>(labels: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut wire: Vec<u8> = labels.flat_map(|label| [&[label.len() as u8], label].concat()).collect();
    wire.push(0);
    wire
}

/// A query as a stub resolver sends it.
#[must_use]
pub fn query(id: u16, name: &str, qtype: u16) -> Vec<u8> {
    let labels: Vec<&[u8]> = name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes).collect();
    query_of(id, &labels, qtype)
}

/// A query for a name of any octets.
#[must_use]
pub fn query_of(id: u16, labels: &[&[u8]], qtype: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    // RD; one question.
    for word in [id, 0x0100, 1, 0, 0, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend(wire_name(labels.iter().copied()));
    packet.extend(qtype.to_be_bytes());
    packet.extend([0, 1]);
    packet
}
