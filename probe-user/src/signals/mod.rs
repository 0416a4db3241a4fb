//! The signals: what their programs' records and maps mean. One registry, [`ALL`]; the commands, doctor and tests iterate it.

pub mod cgroups;
pub mod dns;
pub mod names;
pub mod syscalls;
pub mod tcp;
mod who;

use std::borrow::Cow;
use std::io;

use probe_common::loss::Counter;
use probe_common::settings::Settings;

pub use self::who::{Owners, Who};
use crate::collect::DecodeError;
use crate::config::Config;
use crate::event::{AttrValue, Attributes, key, name};
use crate::handover::EntryState;
use crate::kernel::clock::Clock;
use crate::kernel::fields::Resolved;
use crate::load::{LoadError, Loaded, ObjectSpec};
use crate::series::Store;

/// A signal that can be started.
pub trait SignalKind: Sync {
    /// Its object: name, programs, needs.
    fn object(&self) -> &'static ObjectSpec;

    /// One line for `doctor` and help.
    fn about(&self) -> &'static str;

    /// Sizes of its maps, by configuration.
    fn sizes(&self, config: &Config) -> Vec<(&'static str, u32)>;

    /// Completes the settings of its programs.
    fn settings(&self, config: &Config, settings: &mut Settings);

    /// Takes the maps it reads out of a loaded object, and fills those that programs read. Not attached yet. `kernel` names
    /// what the programs report as the kernel's numbers.
    ///
    /// # Errors
    ///
    /// When the object lacks a map, or the kernel refuses to fill one.
    fn start(
        &self,
        config: &Config,
        kernel: &Resolved,
        loaded: &mut Loaded,
    ) -> Result<Box<dyn Signal>, LoadError>;
}

/// Every signal there is.
pub static ALL: &[&dyn SignalKind] = &[&tcp::Tcp, &dns::Dns, &syscalls::Syscalls];

/// What runs for another's sake, and is no signal to anybody.
pub static AUXILIARY: &[&dyn SignalKind] = &[&names::Names, &cgroups::Cgroups];

/// Everything that may be loaded.
pub fn every() -> impl Iterator<Item = &'static dyn SignalKind> {
    ALL.iter().chain(AUXILIARY).copied()
}

/// A running signal.
pub trait Signal: Send {
    /// A record from the ring.
    ///
    /// # Errors
    ///
    /// When it is none of this signal's.
    fn record(&mut self, bytes: &[u8], context: &mut Context<'_>) -> Result<(), DecodeError>;

    /// Comes round a few times a second: what has to be looked after in time.
    ///
    /// # Errors
    ///
    /// When a map does not read or write.
    fn tick(&mut self, _context: &mut Context<'_>) -> io::Result<()> {
        Ok(())
    }

    /// Takes over what of a new configuration can change while it runs; `settings` are those of its programs, written when it is done.
    /// Everything counted so far stays.
    ///
    /// # Errors
    ///
    /// When a map does not write.
    fn change(&mut self, _config: &Config, _settings: &mut Settings) -> io::Result<()> {
        Ok(())
    }

    /// Its programs are about to be detached: what is true only as long as they run is read now.
    ///
    /// # Errors
    ///
    /// When a map does not read.
    fn detaching(&mut self, _context: &mut Context<'_>) -> io::Result<()> {
        Ok(())
    }

    /// A counter of its programs has risen by so much. Comes just before [`Self::interval`].
    fn counted(&mut self, _counter: Counter, _by: u64) {}

    /// What this side has lost since the last time, after all had come that the programs gave it.
    fn lost(&mut self) -> Vec<(Counter, u64)> {
        Vec::new()
    }

    /// An interval has ended: brings the series up to date, and sums the interval up. `next` is the number of the interval
    /// that begins; the programs have been told. `None`: it has nothing to say for itself.
    ///
    /// # Errors
    ///
    /// When a map does not read.
    fn interval(&mut self, _next: u32, _context: &mut Context<'_>) -> io::Result<Option<Summary>> {
        Ok(None)
    }

    /// Another agent is about to go on with its programs and maps, which stay as they are: comes before the last
    /// [`Self::interval`], for what cannot be left to that one.
    fn leaving(&mut self) {}

    /// After the last [`Self::interval`]: what its maps said when they were read last.
    fn leave(&self) -> Vec<EntryState> {
        Vec::new()
    }

    /// Goes on where an earlier agent has left ([`Self::leave`]), with its maps. Comes before anything else.
    ///
    /// # Errors
    ///
    /// When that is nothing that this signal has left.
    fn go_on(&mut self, _interval: u32, _entries: &[EntryState]) -> Result<(), DecodeError> {
        Ok(())
    }

    /// Fill of its maps: name, entries, limit.
    ///
    /// # Errors
    ///
    /// When a map does not read.
    fn fill(&mut self) -> io::Result<Vec<(&'static str, u64, u64)>> {
        Ok(Vec::new())
    }
}

/// What a signal works with while it handles data.
pub struct Context<'a> {
    /// To turn the kernel's clock into wall time.
    pub clock: &'a Clock,
    /// To say whose it was.
    pub owners: &'a mut Owners,
    /// Cumulative state for the metric sinks.
    pub store: &'a mut Store,
    /// Where events go; `None`: nobody wants any.
    pub events: Option<&'a mut dyn FnMut(Event)>,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

/// Anything that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Segments were sent again.
    Retransmit(tcp::Retransmit),
    /// A connection was reset.
    Reset(tcp::Reset),
    /// A connection attempt came to its end.
    Connect(tcp::Connect),
    /// A connection ended.
    Close(tcp::Close),
    /// A lookup came to its end.
    Lookup(dns::Lookup),
    /// What a process did with one system call in an interval.
    SyscallSummary(syscalls::Row),
    /// A system call was slow.
    SyscallSlow(syscalls::Slow),
    /// A system call has not returned yet.
    SyscallInFlight(syscalls::InFlight),
    /// Something was lost.
    Loss(Loss),
}

impl Attributes for Event {
    fn event_name(&self) -> &'static str {
        self.inner().event_name()
    }
    fn time_unix_ns(&self) -> u64 {
        self.inner().time_unix_ns()
    }
    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        self.inner().visit(visitor);
    }
}

impl Event {
    /// The connection that it happened to, if it is one of tcp's.
    #[must_use]
    pub fn connection(&self) -> Option<&tcp::Connection> {
        match self {
            Self::Retransmit(event) => Some(&event.connection),
            Self::Reset(event) => Some(&event.connection),
            Self::Connect(event) => Some(&event.connection),
            Self::Close(event) => Some(&event.connection),
            Self::Lookup(_)
            | Self::SyscallSummary(_)
            | Self::SyscallSlow(_)
            | Self::SyscallInFlight(_)
            | Self::Loss(_) => None,
        }
    }

    /// Whose it was; nobody's, where it is about probe itself.
    #[must_use]
    pub fn who(&self) -> Option<&Who> {
        match self {
            Self::Lookup(event) => Some(&event.who),
            Self::SyscallSummary(event) => Some(&event.who),
            Self::SyscallSlow(event) => Some(&event.who),
            Self::SyscallInFlight(event) => Some(&event.who),
            Self::Retransmit(_) | Self::Reset(_) | Self::Connect(_) | Self::Close(_) | Self::Loss(_) => {
                self.connection().map(|connection| &connection.who)
            }
        }
    }

    fn inner(&self) -> &dyn Attributes {
        match self {
            Self::Retransmit(event) => event,
            Self::Reset(event) => event,
            Self::Connect(event) => event,
            Self::Close(event) => event,
            Self::Lookup(event) => event,
            Self::SyscallSummary(event) => event,
            Self::SyscallSlow(event) => event,
            Self::SyscallInFlight(event) => event,
            Self::Loss(event) => event,
        }
    }
}

/// What was lost since the last time it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// When it was noticed.
    pub time_unix_ns: u64,
    /// Signal.
    pub signal: &'static str,
    /// Place.
    pub place: &'static str,
    /// How many.
    pub count: u64,
    /// What to do about it.
    pub remedy: &'static str,
}

impl Attributes for Loss {
    fn event_name(&self) -> &'static str {
        name::PROBE_LOSS
    }
    fn time_unix_ns(&self) -> u64 {
        self.time_unix_ns
    }
    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        visitor(key::SIGNAL, AttrValue::Str(self.signal));
        visitor(key::WHERE, AttrValue::Str(self.place));
        visitor(key::COUNT, AttrValue::Int(i64::try_from(self.count).unwrap_or(i64::MAX)));
        visitor(key::REMEDY, AttrValue::Str(self.remedy));
    }
}

/// What a signal saw in an interval.
#[derive(Clone, Debug)]
pub enum Summary {
    /// Of tcp.
    Tcp(tcp::Summary),
    /// Of dns.
    Dns(dns::Summary),
    /// Of syscalls: a row per process and call.
    Syscalls(syscalls::Summary),
}

/// Number of the interval after another. None is 0, which fresh peaks have.
#[must_use]
pub fn next_interval(interval: u32) -> u32 {
    interval.wrapping_add(1).max(1)
}

/// The name of an errno (`ECONNREFUSED`), its number where it has none.
#[must_use]
pub fn errno_name(errno: u32) -> Cow<'static, str> {
    match i32::try_from(errno).ok().and_then(|errno| ::syscalls::Errno::new(errno).name()) {
        Some(name) => name.into(),
        None => format!("ERRNO{errno}").into(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use probe_common::dns::{
        HEADER, LookupRecord, MessageRecord, NAME_ROOM, Pending, SEGMENT_ROOM, SegmentRecord,
        ShortLookupRecord,
    };
    use probe_common::syscalls::SlowRecord;
    use probe_common::tcp::{CloseRecord, ConnectRecord, ResetRecord, RetransmitRecord};
    use probe_common::wire::{RecordHeader, WIRE_VERSION};
    use proptest::prelude::*;

    use super::*;
    use crate::config::DnsOptions;
    use crate::entity::{Entities, ProcessLimits, Processes};
    use crate::kernel::cgroup::TreeLimits;
    use crate::series::Limits;
    use crate::sink::{console, json};

    /// A record of a length that some signal has, with a header that is in order; small numbers are likely, since many
    /// fields hold few.
    fn record() -> impl Strategy<Value = Vec<u8>> {
        let lengths = [
            size_of::<RetransmitRecord>(),
            size_of::<ResetRecord>(),
            size_of::<ConnectRecord>(),
            size_of::<CloseRecord>(),
            size_of::<SlowRecord>(),
            size_of::<LookupRecord>(),
            size_of::<ShortLookupRecord>(),
            size_of::<MessageRecord>(),
            size_of::<SegmentRecord>(),
        ];
        let octet = prop_oneof![3 => 0_u8..8, 1 => any::<u8>()];
        let body = prop::sample::select(lengths.to_vec())
            .prop_flat_map(move |len| prop::collection::vec(octet.clone(), len));
        (body, 0_u16..7, any::<u64>()).prop_map(|(mut bytes, kind, time_ns)| {
            let header = RecordHeader { kind, version: WIRE_VERSION, len: bytes.len() as u32, time_ns };
            bytes[..size_of::<RecordHeader>()].copy_from_slice(bytemuck::bytes_of(&header));
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn records_are_told_once_or_refused(records in prop::collection::vec((0..6, record()), 1..6)) {
            let clock = Clock::new();
            let mut owners = Owners::new(
                Entities::at(None, None, TreeLimits::default()),
                Processes::at(Path::new("/dev/null/proc"), ProcessLimits::default()),
            );
            let mut store = Store::new(Limits::default(), 1);
            let tcp = tcp::Records::new([(1, "no_socket".into())].into());
            let mut lookups = dns::Lookups::new(DnsOptions::default());
            let mut told = 0;
            for (signal, bytes) in &records {
                let mut events = Vec::new();
                let mut push = |event| events.push(event);
                let context = &mut Context { clock: &clock, owners: &mut owners, store: &mut store, events: Some(&mut push) };
                let result = match signal {
                    0 => tcp.record(bytes, context),
                    1 => lookups.record(bytes, context),
                    2 => syscalls::record(bytes, context),
                    3 => names::record(bytes, context),
                    4 => cgroups::record(bytes, context),
                    _ => {
                        if let Ok(record) = crate::collect::record::<LookupRecord>(bytes) {
                            let mut pending = Pending { asked: record.lookup.asked, name: [0; NAME_ROOM] };
                            pending.name.copy_from_slice(&record.octets[HEADER..HEADER + NAME_ROOM]);
                            lookups.give_up(record.lookup.header.time_ns, record.lookup.key, pending, context);
                        }
                        Ok(())
                    }
                };
                // Many questions can come to their end with one segment.
                let most = match result {
                    Ok(()) if bytes.len() == size_of::<SegmentRecord>() => 256 + SEGMENT_ROOM / HEADER,
                    Ok(()) => 1,
                    Err(_) => 0,
                };
                prop_assert!(events.len() <= most);
                for event in &events {
                    told += u64::from(matches!(event, Event::Lookup(_)));
                    let (mut line, mut text) = (Vec::new(), Vec::new());
                    json::write(&mut line, event).unwrap();
                    prop_assert!(serde_json::from_slice::<serde_json::Value>(&line).unwrap()["event"] == event.event_name());
                    console::event(&mut text, event).unwrap();
                    for line in [line, text] {
                        let line = String::from_utf8(line).unwrap();
                        prop_assert_eq!(line.chars().filter(|character| character.is_control()).collect::<String>(), "\n");
                    }
                }
            }
            let summary = lookups.take_summary();
            let asked = summary.durations.count() + summary.unanswered + summary.late;
            prop_assert_eq!(told, asked + summary.served.count() + summary.not_served + summary.served_late);
        }
    }
}
