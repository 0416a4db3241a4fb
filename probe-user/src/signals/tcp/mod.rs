//! tcp: exact counts of the maps; events of the records ([`events`]).

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap as StdHashMap};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{HashMap as BpfHashMap, MapData, PerCpuHashMap};
use hashbrown::HashMap;
use probe_common::fields;
use probe_common::hist::BUCKETS;
use probe_common::loss::Counter;
use probe_common::settings::{FILTER_LOCAL_PORT, FILTER_PEER, FILTER_PEER_PORT, Settings};
use probe_common::tcp::{
    CAUSES, Durations, KIND_CLOSE, KIND_CONNECT, KIND_RESET, KIND_RETRANSMIT, ListenerKey, Listeners,
    RESET_SENT, ROLE_CLIENT, SocketState, TOTAL_CONNECTIONS, TOTAL_RESETS, TOTAL_RETRANSMITS, TotalKey,
};
use probe_common::wire::{Address, FAMILY_IPV4, FAMILY_IPV6};

pub(in crate::signals) mod events;
mod segments;

pub(super) use self::events::address;
pub use self::events::{Close, Connect, Connection, Reset, Retransmit};
use self::events::{direction, network_type, role};
use self::segments::Segments;
use super::{Context, Event, Owners, Signal, SignalKind, errno_name};
use crate::collect::{self, DecodeError};
use crate::config::{Config, Output, Sizes, TcpKind};
use crate::event::key;
use crate::handover::EntryState;
use crate::kernel::fields::Resolved;
use crate::load::{
    Hook, LoadError, Loaded, ObjectSpec, Older, Plain, ProgramSpec, count_entries, lookup_batch_per_cpu,
};
use crate::series::{Histogram, attr, metrics};

/// How long an entry of a removed cgroup must not have changed before it is given back. Sockets that outlive their cgroup
/// may still send; what they add in the microseconds between the last look and the removal would be missed.
const IDLE: Duration = Duration::from_secs(10);
/// Numbers of maps in what is left for the next agent.
const LEFT_TOTALS: u32 = 0;
const LEFT_HANDSHAKES: u32 = 1;
const LEFT_SEGMENTS: u32 = 2;
const LEFT_WRONG: DecodeError = DecodeError::Value("entry left for this agent");
/// How often such entries are looked for.
const RECLAIM_PERIOD: Duration = Duration::from_secs(5);

/// The signal.
#[derive(Debug)]
pub struct Tcp;

static OBJECT: ObjectSpec = ObjectSpec {
    name: "tcp",
    bit: fields::TCP,
    elf: aya::include_bytes_aligned!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../probe-ebpf/prebuilt/tcp.bpf.o"
    )),
    // The sockets' owners first, so that no event finds them missing for want of order.
    programs: &[
        ProgramSpec::raw("tcp_destroy_sock").backup("destroy_sock_backup"),
        ProgramSpec::raw("inet_sock_set_state").backup("set_state_backup"),
        ProgramSpec::raw("tcp_cong_state_set").backup("cong_state_set_backup").needs(fields::CONG_STATE),
        ProgramSpec::raw("tcp_retransmit_skb").backup("retransmit_skb_backup"),
        ProgramSpec::raw("tcp_retransmit_synack").backup("retransmit_synack_backup"),
        ProgramSpec::raw("tcp_send_reset").backup("send_reset_backup"),
        ProgramSpec::raw("tcp_receive_reset").backup("receive_reset_backup"),
    ],
    older: Some(Older {
        program: "older_sockets",
        over: Hook::OpenFiles,
        without: "connections that began before have no owner, and their segments are not counted",
    }),
    walk: Some("open_connections"),
};

impl SignalKind for Tcp {
    fn object(&self) -> &'static ObjectSpec {
        &OBJECT
    }

    fn about(&self) -> &'static str {
        "TCP retransmits by cause, resets, connection outcomes"
    }

    fn sizes(&self, config: &Config) -> Vec<(&'static str, u32)> {
        let MapSizes { sockets, listeners, totals, handshakes, segments } = MapSizes::of(&config.sizes);
        vec![
            ("RING", config.sizes.ring_bytes()),
            ("SOCKETS", sockets),
            ("LISTENERS", listeners),
            ("TOTALS", totals),
            ("HANDSHAKES", handshakes),
            ("SEGMENTS", segments),
        ]
    }

    fn settings(&self, config: &Config, settings: &mut Settings) {
        let options = &config.tcp;
        settings.tcp_kinds = options.kinds.iter().fold(0, |kinds, kind| kinds | kind.bits());
        if let Some(port) = options.local_port {
            settings.filters |= FILTER_LOCAL_PORT;
            settings.local_port = port;
        }
        if let Some(port) = options.peer_port {
            settings.filters |= FILTER_PEER_PORT;
            settings.peer_port = port;
        }
        if let Some(network) = options.peer {
            settings.filters |= FILTER_PEER;
            let (family, address, mask) = match network {
                ipnet::IpNet::V4(v4) => (FAMILY_IPV4, IpAddr::V4(v4.network()), IpAddr::V4(v4.netmask())),
                ipnet::IpNet::V6(v6) => (FAMILY_IPV6, IpAddr::V6(v6.network()), IpAddr::V6(v6.netmask())),
            };
            settings.peer_family = u32::from(family);
            settings.peer_network = to_wire(address);
            settings.peer_mask = to_wire(mask);
        }
    }

    fn start(
        &self,
        config: &Config,
        kernel: &Resolved,
        loaded: &mut Loaded,
    ) -> Result<Box<dyn Signal>, LoadError> {
        let sockets: Sockets = loaded.take_hash("SOCKETS")?;
        // Events alone, as JSON, say nothing of segments.
        let wanted = config.output != Output::Json || config.otlp.is_some();
        let walk = loaded.walk(&sockets, kernel)?;
        Ok(Box::new(Running {
            totals: loaded.take_per_cpu_hash("TOTALS")?,
            handshakes: loaded.take_per_cpu_hash("HANDSHAKES")?,
            segments: Segments::new(loaded.take_per_cpu_hash("SEGMENTS")?, walk, wanted),
            sum: Summary::default(),
            sockets,
            listeners: loaded.take_hash("LISTENERS")?,
            sizes: MapSizes::of(&config.sizes),
            last_totals: HashMap::default(),
            last_handshakes: HashMap::default(),
            reclaimed: Instant::now(),
            records: Records::new(kernel.reset_reasons.clone()),
        }))
    }
}

/// Entries of the maps.
struct MapSizes {
    sockets: u32,
    listeners: u32,
    totals: u32,
    handshakes: u32,
    segments: u32,
}

impl MapSizes {
    fn of(sizes: &Sizes) -> Self {
        Self {
            sockets: sizes.tcp_sockets,
            listeners: (sizes.tcp_sockets / 8).max(64),
            // Six causes, two families, and the outcomes of connections.
            totals: sizes.max_cgroups.saturating_mul(16),
            handshakes: sizes.max_cgroups,
            // Two families.
            segments: sizes.max_cgroups.saturating_mul(2),
        }
    }
}

impl TcpKind {
    /// Its bit in `Settings::tcp_kinds`. Established connections are a kind of their own there: one record each is for
    /// who asked for them.
    fn bits(self) -> u32 {
        match self {
            Self::Retransmit => 1 << KIND_RETRANSMIT,
            Self::Reset => 1 << KIND_RESET,
            Self::Failed => 1 << KIND_CONNECT,
            Self::Connect => 0b11 << KIND_CONNECT,
            Self::Close => 1 << KIND_CLOSE,
        }
    }
}

type Sockets = BpfHashMap<MapData, Plain<u64>, Plain<SocketState>>;

struct Running {
    totals: PerCpuHashMap<MapData, Plain<TotalKey>, Plain<u64>>,
    handshakes: PerCpuHashMap<MapData, Plain<u64>, Plain<Durations>>,
    segments: Segments,
    /// Of this interval so far.
    sum: Summary,
    /// Read only to tell how full they are.
    sockets: Sockets,
    listeners: BpfHashMap<MapData, Plain<ListenerKey>, Plain<Listeners>>,
    sizes: MapSizes,
    last_totals: HashMap<TotalKey, Last<u64>>,
    last_handshakes: HashMap<u64, Last<Box<Sums>>>,
    /// When entries were last looked through for cgroups that are gone.
    reclaimed: Instant,
    records: Records,
}

/// What the records mean: needs no kernel.
#[derive(Debug)]
pub struct Records {
    /// Names of `enum sk_rst_reason`.
    reset_reasons: StdHashMap<u32, Arc<str>>,
}

impl Records {
    /// With the names of `enum sk_rst_reason` by value, as `kernel::fields` finds them.
    #[must_use]
    pub fn new(reset_reasons: StdHashMap<u32, Arc<str>>) -> Self {
        Self { reset_reasons }
    }

    /// Takes a record in, as [`Signal::record`].
    ///
    /// # Errors
    ///
    /// When it is none of this signal's.
    pub fn record(&self, bytes: &[u8], context: &mut Context<'_>) -> Result<(), DecodeError> {
        let header = collect::header(bytes)?;
        let event = match header.kind {
            KIND_RETRANSMIT => Event::Retransmit(Retransmit::decode(bytes, context)?),
            KIND_RESET => Event::Reset(Reset::decode(bytes, &self.reset_reasons, context)?),
            KIND_CONNECT => Event::Connect(Connect::decode(bytes, context)?),
            KIND_CLOSE => Event::Close(Close::decode(bytes, context)?),
            kind => return Err(DecodeError::Kind(kind)),
        };
        if let Some(events) = &mut context.events {
            events(event);
        }
        Ok(())
    }
}

/// What an entry said last.
struct Last<T> {
    value: T,
    /// When it last said something else.
    changed: Instant,
}

impl<T> Last<T> {
    fn new(value: T) -> Self {
        Self { value, changed: Instant::now() }
    }

    fn idle(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.changed) >= IDLE
    }
}

/// [`Durations`] summed over CPUs; buckets wrap around as in the kernel.
#[derive(Clone, Copy)]
struct Sums {
    sum_ns: u64,
    buckets: [u32; BUCKETS],
}

impl Sums {
    fn of(Durations { sum_ns, buckets }: Durations) -> Self {
        Self { sum_ns, buckets }
    }

    fn left(&self) -> Durations {
        Durations { sum_ns: self.sum_ns, buckets: self.buckets }
    }

    const ZERO: Self = Self { sum_ns: 0, buckets: [0; BUCKETS] };
}

impl Signal for Running {
    fn record(&mut self, bytes: &[u8], context: &mut Context<'_>) -> Result<(), DecodeError> {
        self.records.record(bytes, context)
    }

    fn tick(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.segments.tick(context, &mut self.sum);
        Ok(())
    }

    fn detaching(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.segments.stop(context, &mut self.sum);
        Ok(())
    }

    fn interval(&mut self, _next: u32, context: &mut Context<'_>) -> io::Result<Option<super::Summary>> {
        self.segments.tick(context, &mut self.sum);
        let mut summary = std::mem::take(&mut self.sum);
        self.read_totals(context, &mut summary)?;
        self.read_handshakes(context, &mut summary)?;
        self.reclaim(context.owners);
        Ok(Some(super::Summary::Tcp(summary)))
    }

    fn leave(&self) -> Vec<EntryState> {
        let totals =
            self.last_totals.iter().map(|(key, last)| EntryState::new(LEFT_TOTALS, key, &last.value));
        let handshakes = self.last_handshakes.iter();
        let handshakes =
            handshakes.map(|(key, last)| EntryState::new(LEFT_HANDSHAKES, key, &last.value.left()));
        totals.chain(handshakes).chain(self.segments.leave()).collect()
    }

    fn go_on(&mut self, _interval: u32, entries: &[EntryState]) -> Result<(), DecodeError> {
        for entry in entries {
            match entry.map {
                LEFT_TOTALS => {
                    let (key, value) = entry.read().ok_or(LEFT_WRONG)?;
                    self.last_totals.insert(key, Last::new(value));
                }
                LEFT_HANDSHAKES => {
                    let (key, value): (u64, Durations) = entry.read().ok_or(LEFT_WRONG)?;
                    self.last_handshakes.insert(key, Last::new(Box::new(Sums::of(value))));
                }
                LEFT_SEGMENTS => {
                    let (key, value) = entry.read().ok_or(LEFT_WRONG)?;
                    self.segments.go_on(key, value);
                }
                _ => return Err(LEFT_WRONG),
            }
        }
        Ok(())
    }

    fn fill(&mut self) -> io::Result<Vec<(&'static str, u64, u64)>> {
        let entries = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let fill = [
            (Counter::SocketsFull, count_entries(&self.sockets)?, &self.sizes.sockets),
            (Counter::ListenersFull, count_entries(&self.listeners)?, &self.sizes.listeners),
            // What is in these maps is remembered here.
            (Counter::TotalsFull, entries(self.last_totals.len()), &self.sizes.totals),
            (Counter::HandshakesFull, entries(self.last_handshakes.len()), &self.sizes.handshakes),
            (Counter::SegmentsFull, entries(self.segments.entries()), &self.sizes.segments),
        ];
        Ok(fill.map(|(full, entries, limit)| (full.place(), entries, u64::from(*limit))).to_vec())
    }
}

impl Running {
    fn read_totals(&mut self, context: &mut Context<'_>, summary: &mut Summary) -> io::Result<()> {
        let last_totals = &mut self.last_totals;
        lookup_batch_per_cpu(&self.totals, |key: &TotalKey, values| {
            let now: u64 = values.sum();
            let last = last_totals.entry(*key).or_insert_with(|| Last::new(0));
            let delta = now.saturating_sub(last.value);
            if delta != 0 {
                *last = Last::new(now);
                count(key, delta, context, summary);
            }
        })
    }

    /// They count the connections that they made, too.
    fn read_handshakes(&mut self, context: &mut Context<'_>, summary: &mut Summary) -> io::Result<()> {
        let last_handshakes = &mut self.last_handshakes;
        lookup_batch_per_cpu(
            &self.handshakes,
            |cgroup_id: &u64, values: &mut dyn Iterator<Item = Durations>| {
                let mut now = Sums::ZERO;
                for value in values {
                    now.sum_ns += value.sum_ns;
                    for (sum, bucket) in now.buckets.iter_mut().zip(value.buckets) {
                        *sum = sum.wrapping_add(bucket);
                    }
                }
                let last =
                    last_handshakes.entry(*cgroup_id).or_insert_with(|| Last::new(Box::new(Sums::ZERO)));
                let mut deltas = [0u64; BUCKETS];
                for ((delta, now), last) in deltas.iter_mut().zip(now.buckets).zip(last.value.buckets) {
                    *delta = u64::from(now.wrapping_sub(last));
                }
                let sum_ns = now.sum_ns.saturating_sub(last.value.sum_ns);
                if deltas.iter().any(|delta| *delta != 0) {
                    *last.value = now;
                    last.changed = Instant::now();
                    let entity = context.owners.entity(*cgroup_id, None);
                    let attrs = [attr(key::TCP_HANDSHAKE_ROLE, "client")];
                    context.store.merge_counts(
                        &entity,
                        metrics::TCP_HANDSHAKE_DURATION,
                        &attrs,
                        &deltas,
                        sum_ns,
                        None,
                    );
                    summary.handshakes.merge_counts(&deltas, sum_ns, None);
                    let made = TotalKey {
                        cgroup_id: *cgroup_id,
                        what: TOTAL_CONNECTIONS,
                        detail: ROLE_CLIENT,
                        ..TotalKey::default()
                    };
                    count(&made, deltas.iter().sum(), context, summary);
                }
            },
        )
    }
}

impl Running {
    /// Gives the entries of cgroups back that are removed and whose sockets have been silent for a while. A socket that
    /// speaks again begins a new entry, from zero.
    fn reclaim(&mut self, owners: &mut Owners) {
        let now = Instant::now();
        if now.saturating_duration_since(self.reclaimed) < RECLAIM_PERIOD {
            return;
        }
        self.reclaimed = now;
        let mut known: HashMap<u64, bool> = HashMap::default();
        let mut gone = |cgroup_id: u64| *known.entry(cgroup_id).or_insert_with(|| owners.is_gone(cgroup_id));
        let Self { totals, handshakes, segments, last_totals, last_handshakes, .. } = self;
        segments.reclaim(now, &mut gone);
        // An entry that is not there any more, or does not go, is no reason to end.
        last_totals.retain(|key, last| {
            !(last.idle(now) && gone(key.cgroup_id) && totals.remove(&Plain(*key)).is_ok())
        });
        last_handshakes.retain(|cgroup_id, last| {
            !(last.idle(now) && gone(*cgroup_id) && handshakes.remove(&Plain(*cgroup_id)).is_ok())
        });
    }
}

/// Puts what a total rose by into series and summary.
fn count(total: &TotalKey, delta: u64, context: &mut Context<'_>, summary: &mut Summary) {
    let entity = context.owners.entity(total.cgroup_id, None);
    let network_type = attr(key::NETWORK_TYPE, network_type(total.family));
    match total.what {
        TOTAL_RETRANSMITS => {
            let index = usize::from(total.detail);
            let Some(cause) = CAUSES.get(index).copied() else { return };
            let attrs = [attr(key::TCP_RETRANSMIT_TYPE, cause), network_type];
            context.store.add(&entity, metrics::TCP_RETRANSMITS, &attrs, delta);
            if let Some(cell) = summary.retransmits.get_mut(index) {
                *cell += delta;
            }
        }
        TOTAL_RESETS => {
            let attrs = [attr(key::NETWORK_IO_DIRECTION, direction(total.detail))];
            context.store.add(&entity, metrics::TCP_RESETS, &attrs, delta);
            match total.detail {
                RESET_SENT => summary.resets_sent += delta,
                _ => summary.resets_received += delta,
            }
        }
        TOTAL_CONNECTIONS => {
            let role = attr(key::TCP_HANDSHAKE_ROLE, role(total.detail));
            if total.errno == 0 {
                context.store.add(&entity, metrics::TCP_CONNECTIONS, &[role], delta);
                match total.detail {
                    ROLE_CLIENT => summary.connected += delta,
                    _ => summary.accepted += delta,
                }
            } else {
                let errno = errno_name(total.errno);
                *summary.failed.entry(errno.clone()).or_default() += delta;
                let attrs = [attr(key::ERROR_TYPE, errno), role];
                context.store.add(&entity, metrics::TCP_CONNECTIONS, &attrs, delta);
            }
        }
        _ => {}
    }
}

/// Exact counts of one interval.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Segments sent again, by cause in the order of `probe_common::tcp::CAUSES`.
    pub retransmits: [u64; CAUSES.len()],
    /// Resets.
    pub resets_sent: u64,
    /// Resets.
    pub resets_received: u64,
    /// Connections made.
    pub connected: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections that failed, by errno.
    pub failed: BTreeMap<Cow<'static, str>, u64>,
    /// Handshakes of connections made.
    pub handshakes: Histogram,
    /// Segments sent, those sent again included.
    pub segments_sent: u64,
    /// Segments received.
    pub segments_received: u64,
    /// Segments sent again though the first had arrived.
    pub spurious: u64,
    /// Smoothed round-trip times, a sample a second of each connection in use.
    pub rtts: Histogram,
}

fn to_wire(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            let mut wide = [0; 16];
            for (to, from) in wide.iter_mut().zip([a, b, c, d]) {
                *to = from;
            }
            wide
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}
