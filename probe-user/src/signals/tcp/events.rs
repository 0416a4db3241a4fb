//! Events of connections, as sinks see them.

use std::borrow::Cow;
use std::collections::HashMap as StdHashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use probe_common::tcp::{
    ABSENT, ABSENT_OCTETS, CAUSES, CloseRecord, ConnectRecord, RESET_RECEIVED, RESET_SENT, ROLE_CLIENT,
    ROLE_SERVER, ResetRecord, RetransmitRecord, Socket,
};
use probe_common::wire::{Address, FAMILY_IPV4, FAMILY_IPV6};

use super::super::{Context, Who, errno_name};
use crate::collect::{self, DecodeError};
use crate::event::{AttrValue, Attributes, key, name};

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
    /// Name by which the connection was made, as far as a DNS answer before it tells.
    pub peer_name: Option<Arc<str>>,
    /// Where NAT sends what goes to the peer, if that is elsewhere and probe asks.
    pub destination: Option<SocketAddr>,
    /// TCP state.
    pub state: &'static str,
}

impl Connection {
    /// At the time of its event, CLOCK_MONOTONIC nanoseconds.
    pub(super) fn decode(
        socket: &Socket,
        time_ns: u64,
        context: &mut Context<'_>,
    ) -> Result<Self, DecodeError> {
        let local = address(socket.family, &socket.local)?;
        let peer = address(socket.family, &socket.peer)?;
        let name_of = |began_ns| context.owners.peer_names().name_of(began_ns, socket.netns, peer);
        let peer_name = socket.began_ns(time_ns).and_then(name_of);
        let ends = (SocketAddr::new(local, socket.local_port), SocketAddr::new(peer, socket.peer_port));
        Ok(Self {
            who: context.owners.who(&socket.owner, socket.cgroup_id, socket.netns),
            local,
            local_port: socket.local_port,
            peer,
            peer_port: socket.peer_port,
            peer_name,
            destination: context.owners.destination(ends.0, ends.1, socket.netns),
            state: state(socket.state)?,
        })
    }

    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        let Self { who, local, local_port, peer, peer_port, peer_name, destination, state } = self;
        visitor(key::NETWORK_TYPE, AttrValue::Str(if local.is_ipv4() { "ipv4" } else { "ipv6" }));
        visitor(key::NETWORK_LOCAL_ADDRESS, AttrValue::Str(&local.to_string()));
        visitor(key::NETWORK_LOCAL_PORT, AttrValue::Int(i64::from(*local_port)));
        visitor(key::NETWORK_PEER_ADDRESS, AttrValue::Str(&peer.to_string()));
        visitor(key::NETWORK_PEER_PORT, AttrValue::Int(i64::from(*peer_port)));
        if let Some(name) = peer_name {
            visitor(key::NETWORK_PEER_NAME, AttrValue::Str(name));
        }
        if let Some(destination) = destination {
            visitor(key::DESTINATION_ADDRESS, AttrValue::Str(&destination.ip().to_string()));
            visitor(key::DESTINATION_PORT, AttrValue::Int(i64::from(destination.port())));
        }
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
    pub(super) fn decode(bytes: &[u8], context: &mut Context<'_>) -> Result<Self, DecodeError> {
        let record: RetransmitRecord = collect::record(bytes)?;
        let known = |value: u32| (value != ABSENT).then_some(value);
        Ok(Self {
            time_unix_ns: context.clock.wall(record.header.time_ns),
            connection: Connection::decode(&record.socket, record.header.time_ns, context)?,
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
    pub(super) fn decode(
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
            connection: Connection::decode(&record.socket, record.header.time_ns, context)?,
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
    pub(super) fn decode(bytes: &[u8], context: &mut Context<'_>) -> Result<Self, DecodeError> {
        let record: ConnectRecord = collect::record(bytes)?;
        if !matches!(record.role, ROLE_CLIENT | ROLE_SERVER) {
            return Err(DecodeError::Value("role"));
        }
        Ok(Self {
            time_unix_ns: context.clock.wall(record.header.time_ns),
            connection: Connection::decode(&record.socket, record.header.time_ns, context)?,
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

/// A connection ended.
#[derive(Clone, Debug)]
pub struct Close {
    /// When.
    pub time_unix_ns: u64,
    /// Which connection.
    pub connection: Connection,
    /// Since the end of the handshake; unknown of connections older than probe.
    pub duration: Option<Duration>,
    /// Octets of data sent, each once.
    pub bytes_sent: Option<u64>,
    /// Octets of data received in order.
    pub bytes_received: Option<u64>,
    /// Segments sent, those sent again included.
    pub segments_sent: Option<u32>,
    /// Segments received.
    pub segments_received: Option<u32>,
    /// Segments sent again.
    pub segments_retransmitted: Option<u32>,
    /// Segments sent again though the first had arrived, as far as is known: by the peer's word (D-SACK, RFC 2883), or because the
    /// kernel took the recovery back.
    pub segments_spurious: Option<u32>,
    /// Segments received out of order.
    pub segments_out_of_order: Option<u32>,
    /// Smoothed round-trip time, the last.
    pub srtt: Option<Duration>,
    /// Recoveries (fast, or after timeouts) that the kernel took back; unknown of connections older than probe.
    pub recoveries_undone: Option<u32>,
}

impl Close {
    pub(super) fn decode(bytes: &[u8], context: &mut Context<'_>) -> Result<Self, DecodeError> {
        let record: CloseRecord = collect::record(bytes)?;
        let octets = |octets: u64| (octets != ABSENT_OCTETS).then_some(octets);
        let count = |count: u32| (count != ABSENT).then_some(count);
        Ok(Self {
            time_unix_ns: context.clock.wall(record.header.time_ns),
            connection: Connection::decode(&record.socket, record.header.time_ns, context)?,
            duration: (record.duration_ns != 0).then(|| Duration::from_nanos(record.duration_ns)),
            bytes_sent: octets(record.bytes_sent),
            bytes_received: octets(record.bytes_received),
            segments_sent: count(record.segments_sent),
            segments_received: count(record.segments_received),
            segments_retransmitted: count(record.segments_retransmitted),
            segments_spurious: count(record.segments_spurious),
            segments_out_of_order: count(record.segments_out_of_order),
            srtt: (record.srtt_us != 0).then(|| Duration::from_micros(record.srtt_us.into())),
            recoveries_undone: count(record.recoveries_undone),
        })
    }
}

impl Attributes for Close {
    fn event_name(&self) -> &'static str {
        name::TCP_CLOSE
    }
    fn time_unix_ns(&self) -> u64 {
        self.time_unix_ns
    }
    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        if let Some(duration) = self.duration {
            visitor(key::DURATION, AttrValue::Float(duration.as_secs_f64()));
        }
        for (key, octets) in
            [(key::TCP_BYTES_SENT, self.bytes_sent), (key::TCP_BYTES_RECEIVED, self.bytes_received)]
        {
            if let Some(octets) = octets {
                visitor(key, AttrValue::Int(i64::try_from(octets).unwrap_or(i64::MAX)));
            }
        }
        for (key, count) in [
            (key::TCP_SEGMENTS_SENT, self.segments_sent),
            (key::TCP_SEGMENTS_RECEIVED, self.segments_received),
            (key::TCP_SEGMENTS_RETRANSMITTED, self.segments_retransmitted),
            (key::TCP_SEGMENTS_SPURIOUS, self.segments_spurious),
            (key::TCP_SEGMENTS_OUT_OF_ORDER, self.segments_out_of_order),
            (key::TCP_RECOVERIES_UNDONE, self.recoveries_undone),
        ] {
            if let Some(count) = count {
                visitor(key, AttrValue::Int(count.into()));
            }
        }
        if let Some(srtt) = self.srtt {
            visitor(key::TCP_SRTT, AttrValue::Float(srtt.as_secs_f64()));
        }
        self.connection.visit(visitor);
    }
}

/// An address of the wire as the standard library's.
pub(in crate::signals) fn address(family: u8, address: &Address) -> Result<IpAddr, DecodeError> {
    let [a, b, c, d, ..] = *address;
    match family {
        FAMILY_IPV4 => Ok(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
        FAMILY_IPV6 => Ok(IpAddr::V6(Ipv6Addr::from(*address))),
        _ => Err(DecodeError::Value("family")),
    }
}

pub(super) const fn network_type(family: u8) -> &'static str {
    if family == FAMILY_IPV6 { "ipv6" } else { "ipv4" }
}

pub(super) const fn direction(direction: u8) -> &'static str {
    if direction == RESET_RECEIVED { "receive" } else { "transmit" }
}

pub(super) const fn role(role: u8) -> &'static str {
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
