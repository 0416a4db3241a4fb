//! Names of peers: what DNS answers say about addresses, for events of tcp. Runs beside tcp; no signal of its own to anybody.

use std::net::IpAddr;

use domain::base::{Message, Name};
use domain::rdata::{A, Aaaa};
use probe_common::dns::{KIND_MESSAGE, MessageRecord};
use probe_common::fields;
use probe_common::settings::Settings;

use super::{Context, Signal, SignalKind, dns};
use crate::collect::{self, DecodeError};
use crate::config::Config;
use crate::kernel::fields::Resolved;
use crate::load::{Hook, LoadError, Loaded, ObjectSpec, ProgramSpec};

/// What it is called where records and losses are told.
pub const NAME: &str = "names";
/// Servers that sockets addressed without being connected: entries for each CPU, which may keep half of them apart, and at least.
const ADDRESSED: (u32, u32) = (256, 1_024);

/// The signal.
#[derive(Debug)]
pub struct Names;

static OBJECT: ObjectSpec = ObjectSpec {
    name: NAME,
    bit: fields::DNS,
    elf: dns::ELF,
    programs: &[
        ProgramSpec::new("names_sendmsg4", Hook::CgroupSockAddr),
        ProgramSpec::new("names_sendmsg6", Hook::CgroupSockAddr),
        ProgramSpec::new("names_ingress", Hook::CgroupIngress),
    ],
    older: None,
    walk: None,
};

impl SignalKind for Names {
    fn object(&self) -> &'static ObjectSpec {
        &OBJECT
    }

    fn about(&self) -> &'static str {
        "names of peers, out of DNS answers"
    }

    fn sizes(&self, config: &Config) -> Vec<(&'static str, u32)> {
        let (per_cpu, least) = ADDRESSED;
        vec![
            // As large as that of dns: a record is no smaller.
            ("RING", config.sizes.ring_bytes().saturating_mul(4)),
            // No question waits here, and nobody is asked for.
            ("PENDING", 1),
            ("ASKERS", 1),
            ("ADDRESSED", config.cpu_ids.saturating_mul(per_cpu).max(least)),
        ]
    }

    fn settings(&self, config: &Config, settings: &mut Settings) {
        dns::Dns.settings(config, settings);
        // Whoever asked: a name serves every event that is let through.
        settings.filters = 0;
    }

    fn start(
        &self,
        _config: &Config,
        _kernel: &Resolved,
        _loaded: &mut Loaded,
    ) -> Result<Box<dyn Signal>, LoadError> {
        Ok(Box::new(Running))
    }
}

struct Running;

impl Signal for Running {
    fn record(&mut self, bytes: &[u8], context: &mut Context<'_>) -> Result<(), DecodeError> {
        record(bytes, context)
    }
}

/// Takes a record in, as [`Signal::record`].
///
/// # Errors
///
/// When it is none of this signal's.
pub fn record(bytes: &[u8], context: &mut Context<'_>) -> Result<(), DecodeError> {
    let header = collect::header(bytes)?;
    if header.kind != KIND_MESSAGE {
        return Err(DecodeError::Kind(header.kind));
    }
    let record: MessageRecord = collect::record(bytes)?;
    let octets = record.octets.get(..usize::from(record.len)).ok_or(DecodeError::Value("length"))?;
    // What gives out no address is no mistake: there are other types, and messages of anybody's making.
    if let Some((name, addresses)) = addresses_of_answer(octets) {
        context.owners.peer_names().learn(header.time_ns, record.netns, &name, &addresses);
    }
    Ok(())
}

/// The name that a message is asked about, and the addresses that its answer section gives it, directly or by way of CNAMEs
/// (RFC 1034, 3.6.2). Other records may be of anybody, and are passed over; so is what is cut off at the end.
#[must_use]
pub fn addresses_of_answer(message: &[u8]) -> Option<(String, Vec<IpAddr>)> {
    let message = Message::from_octets(message).ok()?;
    let asked = message.first_question()?.into_qname();
    let canonical = message.canonical_name()?;
    let answer = message.answer().ok()?;
    let (v4, v6) = (answer.limit_to_in::<A>().flatten(), answer.limit_to_in::<Aaaa>().flatten());
    let v4 = v4.filter(|record| *record.owner() == canonical).map(|record| IpAddr::V4(record.data().addr()));
    let v6 = v6
        .filter(|record| *record.owner() == canonical)
        .map(|record| IpAddr::V6(record.data().addr()).to_canonical());
    let addresses: Vec<IpAddr> = v4.chain(v6).collect();
    if addresses.is_empty() {
        return None;
    }
    let wire: Name<Vec<u8>> = domain::base::ToName::to_name(&asked);
    Some((dns::name_text(wire.as_slice())?, addresses))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Vec<u8> {
        let labels = text.split('.').map(|label| [&[label.len() as u8], label.as_bytes()].concat());
        labels.flatten().chain([0]).collect()
    }

    /// An answer to `question` about type `qtype`: records of owner, type and data.
    fn answer(question: &str, qtype: u16, records: &[(&str, u16, Vec<u8>)]) -> Vec<u8> {
        let words = [7, 0x8180, 1, records.len() as u16, 0, 0];
        let mut message: Vec<u8> = words.into_iter().flat_map(u16::to_be_bytes).collect();
        message.extend(name(question));
        message.extend([qtype.to_be_bytes(), [0, 1]].concat());
        for (owner, rtype, data) in records {
            message.extend(name(owner));
            message.extend([rtype.to_be_bytes(), [0, 1], [0, 0], [0, 60]].concat());
            message.extend((data.len() as u16).to_be_bytes());
            message.extend(data);
        }
        message
    }

    #[test]
    fn addresses_are_those_of_the_name_asked_for() {
        const A: u16 = 1;
        const CNAME: u16 = 5;
        const AAAA: u16 = 28;
        let v4 = |last: u8| vec![192, 0, 2, last];
        let v6 = || [vec![0x20, 0x01, 0x0d, 0xb8], vec![0; 11], vec![1]].concat();
        let asked = "Db.example";
        let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
            ("one", answer(asked, A, &[(asked, A, v4(1))]), &["192.0.2.1"]),
            (
                "another case, and two",
                answer(asked, A, &[("dB.exAmple", A, v4(1)), (asked, A, v4(2))]),
                &["192.0.2.1", "192.0.2.2"],
            ),
            ("of IPv6", answer(asked, AAAA, &[(asked, AAAA, v6())]), &["2001:db8::1"]),
            (
                "by way of aliases, in disorder",
                answer(
                    asked,
                    A,
                    &[
                        ("c.test", A, v4(3)),
                        ("b.test", CNAME, name("c.test")),
                        (asked, CNAME, name("b.test")),
                    ],
                ),
                &["192.0.2.3"],
            ),
            ("somebody else's", answer(asked, A, &[("bank.test", A, v4(1))]), &[]),
            ("an alias of itself", answer(asked, A, &[(asked, CNAME, name(asked)), (asked, A, v4(1))]), &[]),
            ("longer than an address", answer(asked, A, &[(asked, A, vec![192, 0, 2, 1, 0])]), &[]),
            ("none", answer(asked, A, &[]), &[]),
        ];
        for (what, message, want) in cases {
            let found = addresses_of_answer(&message);
            let want: Vec<IpAddr> = want.iter().map(|address| address.parse().unwrap()).collect();
            let want = (!want.is_empty()).then(|| ("db.example".to_owned(), want));
            assert_eq!(found, want, "{what}");
        }
        let two = answer(asked, A, &[(asked, A, v4(1)), (asked, A, v4(2))]);
        for len in 0..two.len() {
            // What is whole counts: the first record, once it is there.
            let first = two.len() - answer(asked, A, &[(asked, A, v4(1))]).len();
            let found = addresses_of_answer(&two[..len]);
            assert_eq!(found.is_some(), len >= two.len() - first, "{len} of {}", two.len());
        }
    }
}
