//! Names of peers: what DNS answers say about addresses, for events of tcp. Runs beside tcp; no signal of its own to anybody.

use std::io;
use std::net::IpAddr;

use domain::base::{Message, Name};
use domain::rdata::{A, Aaaa};
use probe_common::dns::{KIND_MESSAGE, MessageRecord};
use probe_common::fields;
use probe_common::settings::Settings;

use super::{Context, Signal, SignalKind, Summary, dns};
use crate::collect::{self, DecodeError};
use crate::config::Config;
use crate::kernel::fields::Resolved;
use crate::load::{Hook, LoadError, Loaded, ObjectSpec, ProgramSpec};

/// What it is called where records and losses are told.
pub const NAME: &str = "names";
/// Servers that sockets addressed without being connected; those longest unused give way.
const ADDRESSED: u32 = 1_024;

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
        // No question waits here, and nobody is asked for.
        vec![("RING", config.sizes.ring_bytes()), ("PENDING", 1), ("ASKERS", 1), ("ADDRESSED", ADDRESSED)]
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

    fn tick(&mut self, _context: &mut Context<'_>) -> io::Result<()> {
        Ok(())
    }

    fn interval(&mut self, _next: u32, _context: &mut Context<'_>) -> io::Result<Option<Summary>> {
        Ok(None)
    }

    fn fill(&mut self) -> io::Result<Vec<(&'static str, u64, u64)>> {
        Ok(Vec::new())
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
    if let Some((name, addresses)) = given_out(octets) {
        context.owners.learn(record.netns, &name, &addresses);
    }
    Ok(())
}

/// The name that a message is asked about, and the addresses that its answer section gives it, directly or by way of CNAMEs
/// (RFC 1034, 3.6.2). Other records may be of anybody, and are passed over; so is what is cut off at the end.
#[must_use]
pub fn given_out(message: &[u8]) -> Option<(String, Vec<IpAddr>)> {
    let message = Message::from_octets(message).ok()?;
    let asked = message.first_question()?.into_qname();
    let canonical = message.canonical_name()?;
    let answer = message.answer().ok()?;
    let (v4, v6) = (answer.limit_to_in::<A>().flatten(), answer.limit_to_in::<Aaaa>().flatten());
    let v4 = v4.filter(|record| *record.owner() == canonical).map(|record| IpAddr::V4(record.data().addr()));
    let v6 = v6.filter(|record| *record.owner() == canonical).map(|record| IpAddr::V6(record.data().addr()));
    let addresses: Vec<IpAddr> = v4.chain(v6).collect();
    if addresses.is_empty() {
        return None;
    }
    let wire: Name<Vec<u8>> = domain::base::ToName::to_name(&asked);
    Some((dns::name_text(wire.as_slice())?, addresses))
}
