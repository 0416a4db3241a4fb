//! dns: lookups over UDP, paired by the programs, from their records; over TCP put together here; unanswered ones, from the questions
//! that still wait.

mod event;
mod history;
mod label;
mod late;
mod lookups;
mod message;
mod server;
mod summary;
mod tcp;
mod text;

use std::io;
use std::time::Duration;

use aya::maps::MapData;
use probe_common::dns::{Pending, PendingKey};
use probe_common::fields;
use probe_common::loss::Counter;
use probe_common::settings::Settings;

pub use self::event::{Lookup, Outcome, Role, Transport};
pub(crate) use self::label::MOST_NAMES;
pub use self::lookups::Lookups;
pub use self::message::{Answer, answer};
pub use self::summary::Summary;
pub use self::tcp::{Connections, Ended, Exchange, Held};
pub use self::text::{name_text, rcode_text, rcodes, type_named, type_text};
use super::{Context, Signal, SignalKind};
use crate::collect::DecodeError;
use crate::config::Config;
use crate::kernel::clock;
use crate::kernel::fields::Resolved;
use crate::load::{Hook, LoadError, Loaded, ObjectSpec, Plain, ProgramSpec, lookup_batch};

/// The signal.
#[derive(Debug)]
pub struct Dns;

/// Of this signal and of [`super::names`].
pub(super) static ELF: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../probe-ebpf/prebuilt/dns.bpf.o"));

static OBJECT: ObjectSpec = ObjectSpec {
    name: "dns",
    bit: fields::DNS,
    elf: ELF,
    // Answers first: a question must not be seen by a host that cannot see its answer.
    programs: &[
        ProgramSpec::new("dns_ingress", Hook::CgroupIngress),
        ProgramSpec::new("dns_connect4", Hook::CgroupSockAddr),
        ProgramSpec::new("dns_connect6", Hook::CgroupSockAddr),
        ProgramSpec::new("dns_sendmsg4", Hook::CgroupSockAddr),
        ProgramSpec::new("dns_sendmsg6", Hook::CgroupSockAddr),
        ProgramSpec::new("dns_egress", Hook::CgroupEgress),
    ],
    older: None,
    walk: None,
};

impl SignalKind for Dns {
    fn object(&self) -> &'static ObjectSpec {
        &OBJECT
    }

    fn about(&self) -> &'static str {
        "DNS lookups with latency, and those that nobody answers"
    }

    fn sizes(&self, config: &Config) -> Vec<(&'static str, u32)> {
        let sizes = &config.sizes;
        vec![
            // Two hundred thousand lookups a second find room for 20 ms in it.
            ("RING", sizes.ring_bytes().saturating_mul(4)),
            ("PENDING", sizes.dns_pending),
            ("ASKERS", sizes.dns_pending),
            // Of [`super::names`] alone.
            ("ADDRESSED", 1),
        ]
    }

    fn settings(&self, config: &Config, settings: &mut Settings) {
        settings.dns_ports = [0; 4];
        for (slot, port) in settings.dns_ports.iter_mut().zip(&config.dns.ports) {
            *slot = *port;
        }
        settings.dns_servers = u64::from(config.dns.servers);
    }

    fn start(
        &self,
        config: &Config,
        _kernel: &Resolved,
        loaded: &mut Loaded,
    ) -> Result<Box<dyn Signal>, LoadError> {
        Ok(Box::new(Running {
            timeout: config.dns.timeout,
            pending: loaded.take_hash("PENDING")?,
            lookups: Lookups::new(config.dns.clone()),
            malformed: 0,
            orphans: 0,
            late: 0,
            unsolicited: 0,
            waiting: 0,
            left_behind: 0,
            limit: config.sizes.dns_pending,
        }))
    }
}

struct Running {
    timeout: Duration,
    pending: aya::maps::HashMap<MapData, Plain<PendingKey>, Plain<Pending>>,
    lookups: Lookups,
    /// Packets without a well-formed question, in this interval.
    malformed: u64,
    /// Answers without a waiting question, as the programs count them.
    orphans: u64,
    /// Those of them that were late.
    late: u64,
    /// The rest, as far as it was told.
    unsolicited: u64,
    /// Questions that waited at the last tick.
    waiting: u64,
    /// Questions over TCP that the next agent cannot take over.
    left_behind: u64,
    limit: u32,
}

impl Signal for Running {
    fn record(&mut self, bytes: &[u8], context: &mut Context<'_>) -> Result<(), DecodeError> {
        self.lookups.record(bytes, context)
    }

    fn tick(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let timeout_ns = u64::try_from(self.timeout.as_nanos()).unwrap_or(u64::MAX);
        let now_ns = clock::monotonic_ns();
        let mut silent = Vec::new();
        let mut waiting = 0;
        let lookups = &mut self.lookups;
        lookup_batch(&self.pending, |key: &PendingKey, pending: &Pending| {
            waiting += 1;
            // A question is complete once its time is set.
            if pending.asked.sent_ns == 0 {
                return;
            }
            lookups.waiting(key, &pending.asked);
            if now_ns.saturating_sub(pending.asked.sent_ns) > timeout_ns {
                silent.push((*key, *pending));
            }
        })?;
        self.waiting = waiting;
        // Those of one look are told in the order in which they were asked.
        silent.sort_unstable_by_key(|(_, pending)| pending.asked.sent_ns);
        for (key, pending) in silent {
            // Who removes it, reports it: the answer may have come this very moment.
            if self.pending.remove(&Plain(key)).is_ok() {
                self.lookups.give_up(now_ns, key, pending, context);
                self.waiting -= 1;
            }
        }
        self.lookups.tick(now_ns, context);
        Ok(())
    }

    fn change(&mut self, config: &Config, _settings: &mut Settings) -> io::Result<()> {
        self.lookups.change_names(&config.dns);
        Ok(())
    }

    fn counted(&mut self, counter: Counter, by: u64) {
        match counter {
            Counter::DnsMalformed => self.malformed += by,
            Counter::DnsOrphans => self.orphans += by,
            _ => {}
        }
    }

    fn lost(&mut self) -> Vec<(Counter, u64)> {
        vec![(Counter::DnsStreams, self.lookups.take_lost_streams() + std::mem::take(&mut self.left_behind))]
    }

    /// Questions over UDP wait in a map. What was read of streams is known here alone, so their answers will be nobody's.
    fn leaving(&mut self) {
        self.left_behind = self.lookups.still_waiting(0);
    }

    fn interval(&mut self, _next: u32, context: &mut Context<'_>) -> io::Result<Option<super::Summary>> {
        // The programs cannot tell an answer that is late from one that nobody waited for. Records may come after their count.
        self.lookups.forget_ended(context.store);
        let mut summary = self.lookups.take_summary();
        summary.waiting = self.lookups.still_waiting(self.waiting);
        summary.malformed = std::mem::take(&mut self.malformed);
        self.late += summary.late + summary.served_late;
        let unsolicited = self.orphans.saturating_sub(self.late);
        summary.unsolicited = unsolicited.saturating_sub(self.unsolicited);
        self.unsolicited = self.unsolicited.max(unsolicited);
        Ok(Some(super::Summary::Dns(summary)))
    }

    fn fill(&mut self) -> io::Result<Vec<(&'static str, u64, u64)>> {
        Ok(vec![(Counter::PendingFull.place(), self.waiting, u64::from(self.limit))])
    }
}
