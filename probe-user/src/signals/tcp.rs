//! tcp: events of the records; exact counts of the maps.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap as StdHashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{HashMap as BpfHashMap, MapData, PerCpuHashMap};
use hashbrown::HashMap;
use probe_common::fields;
use probe_common::hist::BUCKETS;
use probe_common::loss::Counter;
use probe_common::settings::{FILTER_LOCAL_PORT, FILTER_PEER, FILTER_PEER_PORT, Settings};
use probe_common::tcp::{
    ABSENT, CAUSES, ConnectRecord, Durations, KIND_CONNECT, KIND_RESET, KIND_RETRANSMIT, ListenerKey,
    Listeners, RESET_RECEIVED, RESET_SENT, ROLE_CLIENT, ROLE_SERVER, ResetRecord, RetransmitRecord, Socket,
    SocketState, TOTAL_CONNECTIONS, TOTAL_RESETS, TOTAL_RETRANSMITS, TotalKey,
};
use probe_common::wire::{Address, FAMILY_IPV4, FAMILY_IPV6};

use super::{Context, Event, Owners, Signal, SignalKind, Who, errno_name};
use crate::collect::{self, DecodeError};
use crate::config::{Config, Sizes, TcpKind};
use crate::event::{AttrValue, Attributes, key, name};
use crate::kernel::fields::Resolved;
use crate::load::{LoadError, Loaded, ObjectSpec, Plain, ProgramSpec, count_entries, lookup_batch_per_cpu};
use crate::series::{Histogram, attr, metrics};

/// How long an entry of a removed cgroup must not have changed before it is given back. Sockets that outlive their cgroup
/// may still send; what they add in the microseconds between the last look and the removal would be missed.
const IDLE: Duration = Duration::from_secs(10);
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
        ProgramSpec::raw("tcp_retransmit_skb").backup("retransmit_skb_backup"),
        ProgramSpec::raw("tcp_retransmit_synack").backup("retransmit_synack_backup"),
        ProgramSpec::raw("tcp_send_reset").backup("send_reset_backup"),
        ProgramSpec::raw("tcp_receive_reset").backup("receive_reset_backup"),
    ],
    older: Some("older_sockets"),
};

impl SignalKind for Tcp {
    fn object(&self) -> &'static ObjectSpec {
        &OBJECT
    }

    fn about(&self) -> &'static str {
        "TCP retransmits by cause, resets, connection outcomes"
    }

    fn sizes(&self, config: &Config) -> Vec<(&'static str, u32)> {
        let MapSizes { sockets, listeners, totals, handshakes } = MapSizes::of(&config.sizes);
        vec![
            ("RING", config.sizes.ring_bytes()),
            ("SOCKETS", sockets),
            ("LISTENERS", listeners),
            ("TOTALS", totals),
            ("HANDSHAKES", handshakes),
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
        Ok(Box::new(Running {
            totals: loaded.take_per_cpu_hash("TOTALS")?,
            handshakes: loaded.take_per_cpu_hash("HANDSHAKES")?,
            sockets: loaded.take_hash("SOCKETS")?,
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
}

impl MapSizes {
    fn of(sizes: &Sizes) -> Self {
        Self {
            sockets: sizes.tcp_sockets,
            listeners: (sizes.tcp_sockets / 8).max(64),
            // Six causes, two families, and the outcomes of connections.
            totals: sizes.max_cgroups.saturating_mul(16),
            handshakes: sizes.max_cgroups,
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
        }
    }
}

struct Running {
    totals: PerCpuHashMap<MapData, Plain<TotalKey>, Plain<u64>>,
    handshakes: PerCpuHashMap<MapData, Plain<u64>, Plain<Durations>>,
    /// Read only to tell how full they are.
    sockets: BpfHashMap<MapData, Plain<u64>, Plain<SocketState>>,
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
    const ZERO: Self = Self { sum_ns: 0, buckets: [0; BUCKETS] };
}

impl Signal for Running {
    fn record(&mut self, bytes: &[u8], context: &mut Context<'_>) -> Result<(), DecodeError> {
        self.records.record(bytes, context)
    }

    fn tick(&mut self, _context: &mut Context<'_>) -> io::Result<()> {
        Ok(())
    }

    fn interval(&mut self, _next: u32, context: &mut Context<'_>) -> io::Result<super::Summary> {
        let mut summary = Summary::default();
        self.read_totals(context, &mut summary)?;
        self.read_handshakes(context, &mut summary)?;
        self.reclaim(context.owners);
        Ok(super::Summary::Tcp(summary))
    }

    fn fill(&mut self) -> io::Result<Vec<(&'static str, u64, u64)>> {
        let entries = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let fill = [
            (Counter::SocketsFull, count_entries(&self.sockets)?, &self.sizes.sockets),
            (Counter::ListenersFull, count_entries(&self.listeners)?, &self.sizes.listeners),
            // What is in these maps is remembered here.
            (Counter::TotalsFull, entries(self.last_totals.len()), &self.sizes.totals),
            (Counter::HandshakesFull, entries(self.last_handshakes.len()), &self.sizes.handshakes),
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
        let Self { totals, handshakes, last_totals, last_handshakes, .. } = self;
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
}

/// The connection of an event.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Whose.
    pub who: Who,
    /// Local address.
    pub local: IpAddr,
    /// Local port.
    pub local_port: u16,
    /// Peer address.
    pub peer: IpAddr,
    /// Peer port.
    pub peer_port: u16,
    /// TCP state.
    pub state: &'static str,
}

impl Connection {
    fn decode(socket: &Socket, context: &mut Context<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            who: context.owners.who(&socket.owner, socket.cgroup_id, socket.netns),
            local: address(socket.family, &socket.local)?,
            local_port: socket.local_port,
            peer: address(socket.family, &socket.peer)?,
            peer_port: socket.peer_port,
            state: state(socket.state)?,
        })
    }

    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        let Self { who, local, local_port, peer, peer_port, state } = self;
        visitor(key::NETWORK_TYPE, AttrValue::Str(if local.is_ipv4() { "ipv4" } else { "ipv6" }));
        visitor(key::NETWORK_LOCAL_ADDRESS, AttrValue::Str(&local.to_string()));
        visitor(key::NETWORK_LOCAL_PORT, AttrValue::Int(i64::from(*local_port)));
        visitor(key::NETWORK_PEER_ADDRESS, AttrValue::Str(&peer.to_string()));
        visitor(key::NETWORK_PEER_PORT, AttrValue::Int(i64::from(*peer_port)));
        visitor(key::NETWORK_CONNECTION_STATE, AttrValue::Str(state));
        who.visit(visitor);
    }
}

/// Segments were sent again.
#[derive(Clone, Debug)]
pub struct Retransmit {
    /// When.
    pub time_unix_ns: u64,
    /// Which connection.
    pub connection: Connection,
    /// One of `probe_common::tcp::CAUSES`.
    pub cause: &'static str,
    /// How many.
    pub segments: u32,
    /// Smoothed round-trip time.
    pub srtt: Option<Duration>,
    /// Congestion window, segments.
    pub cwnd: Option<u32>,
    /// Segments sent and not acknowledged.
    pub unacked: Option<u32>,
}

impl Retransmit {
    fn decode(bytes: &[u8], context: &mut Context<'_>) -> Result<Self, DecodeError> {
        let record: RetransmitRecord = collect::record(bytes)?;
        let known = |value: u32| (value != ABSENT).then_some(value);
        Ok(Self {
            time_unix_ns: context.clock.wall(record.header.time_ns),
            connection: Connection::decode(&record.socket, context)?,
            cause: CAUSES.get(usize::from(record.cause)).copied().ok_or(DecodeError::Value("cause"))?,
            segments: record.segments,
            // Before the first measurement the kernel's estimate is zero, which is no round-trip time.
            srtt: known(record.srtt_us).filter(|us| *us != 0).map(|us| Duration::from_micros(u64::from(us))),
            cwnd: known(record.cwnd),
            unacked: known(record.unacked),
        })
    }
}

impl Attributes for Retransmit {
    fn event_name(&self) -> &'static str {
        name::TCP_RETRANSMIT
    }
    fn time_unix_ns(&self) -> u64 {
        self.time_unix_ns
    }
    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        visitor(key::TCP_RETRANSMIT_TYPE, AttrValue::Str(self.cause));
        visitor(key::SEGMENTS, AttrValue::Int(i64::from(self.segments)));
        self.connection.visit(visitor);
        if let Some(srtt) = self.srtt {
            visitor(key::TCP_SRTT, AttrValue::Float(srtt.as_secs_f64()));
        }
        if let Some(cwnd) = self.cwnd {
            visitor(key::TCP_CWND, AttrValue::Int(i64::from(cwnd)));
        }
        if let Some(unacked) = self.unacked {
            visitor(key::TCP_UNACKED, AttrValue::Int(i64::from(unacked)));
        }
    }
}

/// A connection was reset.
#[derive(Clone, Debug)]
pub struct Reset {
    /// When.
    pub time_unix_ns: u64,
    /// Which connection.
    pub connection: Connection,
    /// `transmit` or `receive`.
    pub direction: &'static str,
    /// Why it was sent, as the kernel names it in lower case; its number where this kernel's names are not known.
    pub reason: Option<Arc<str>>,
}

impl Reset {
    fn decode(
        bytes: &[u8],
        reasons: &StdHashMap<u32, Arc<str>>,
        context: &mut Context<'_>,
    ) -> Result<Self, DecodeError> {
        let record: ResetRecord = collect::record(bytes)?;
        if !matches!(record.direction, RESET_SENT | RESET_RECEIVED) {
            return Err(DecodeError::Value("direction"));
        }
        Ok(Self {
            time_unix_ns: context.clock.wall(record.header.time_ns),
            connection: Connection::decode(&record.socket, context)?,
            direction: direction(record.direction),
            reason: (record.reason != ABSENT).then(|| {
                reasons.get(&record.reason).cloned().unwrap_or_else(|| record.reason.to_string().into())
            }),
        })
    }
}

impl Attributes for Reset {
    fn event_name(&self) -> &'static str {
        name::TCP_RESET
    }
    fn time_unix_ns(&self) -> u64 {
        self.time_unix_ns
    }
    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        visitor(key::NETWORK_IO_DIRECTION, AttrValue::Str(self.direction));
        self.connection.visit(visitor);
        if let Some(reason) = &self.reason {
            visitor(key::TCP_RESET_REASON, AttrValue::Str(reason));
        }
    }
}

/// A connection attempt came to its end.
#[derive(Clone, Debug)]
pub struct Connect {
    /// When.
    pub time_unix_ns: u64,
    /// Which connection.
    pub connection: Connection,
    /// `client` or `server`.
    pub role: &'static str,
    /// `None`: established; else the errno's name.
    pub error: Option<Cow<'static, str>>,
    /// From the SYN on; the client knows it.
    pub duration: Option<Duration>,
}

impl Connect {
    fn decode(bytes: &[u8], context: &mut Context<'_>) -> Result<Self, DecodeError> {
        let record: ConnectRecord = collect::record(bytes)?;
        if !matches!(record.role, ROLE_CLIENT | ROLE_SERVER) {
            return Err(DecodeError::Value("role"));
        }
        Ok(Self {
            time_unix_ns: context.clock.wall(record.header.time_ns),
            connection: Connection::decode(&record.socket, context)?,
            role: role(record.role),
            error: (record.errno != 0).then(|| errno_name(record.errno)),
            duration: (record.duration_ns != 0).then(|| Duration::from_nanos(record.duration_ns)),
        })
    }
}

impl Attributes for Connect {
    fn event_name(&self) -> &'static str {
        name::TCP_CONNECT
    }
    fn time_unix_ns(&self) -> u64 {
        self.time_unix_ns
    }
    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        let outcome = if self.error.is_none() { "established" } else { "failed" };
        visitor(key::OUTCOME, AttrValue::Str(outcome));
        if let Some(error) = &self.error {
            visitor(key::ERROR_TYPE, AttrValue::Str(error));
        }
        if let Some(duration) = self.duration {
            visitor(key::DURATION, AttrValue::Float(duration.as_secs_f64()));
        }
        visitor(key::TCP_HANDSHAKE_ROLE, AttrValue::Str(self.role));
        self.connection.visit(visitor);
    }
}

/// An address of the wire as the standard library's.
pub(super) fn address(family: u8, address: &Address) -> Result<IpAddr, DecodeError> {
    let [a, b, c, d, ..] = *address;
    match family {
        FAMILY_IPV4 => Ok(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
        FAMILY_IPV6 => Ok(IpAddr::V6(Ipv6Addr::from(*address))),
        _ => Err(DecodeError::Value("family")),
    }
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

const fn network_type(family: u8) -> &'static str {
    if family == FAMILY_IPV6 { "ipv6" } else { "ipv4" }
}

const fn direction(direction: u8) -> &'static str {
    if direction == RESET_RECEIVED { "receive" } else { "transmit" }
}

const fn role(role: u8) -> &'static str {
    if role == ROLE_SERVER { "server" } else { "client" }
}

/// Names of include/net/tcp_states.h in the words of the semantic conventions (`network.connection.state`).
fn state(state: u8) -> Result<&'static str, DecodeError> {
    const STATES: [&str; 13] = [
        "unknown",
        "established",
        "syn_sent",
        "syn_received",
        "fin_wait_1",
        "fin_wait_2",
        "time_wait",
        "closed",
        "close_wait",
        "last_ack",
        "listen",
        "closing",
        "syn_received",
    ];
    STATES.get(usize::from(state)).copied().ok_or(DecodeError::Value("state"))
}
