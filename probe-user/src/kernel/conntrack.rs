//! Where NAT sends a connection's packets: what connection tracking says of it.
//!
//! Asked entry by entry over netlink (ctnetlink, net/netfilter/nf_conntrack_netlink.c), which takes CAP_NET_ADMIN each time. Tables
//! are one a network namespace; this is that of the namespace in which probe runs: on a Kubernetes node, where kube-proxy's rules
//! turn the addresses of services into those of pods, the host's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// How long an answer holds: a connection sends again many times, and its ports are not another's at once.
const HOLDS: Duration = Duration::from_secs(10);
/// Answers kept.
const KEPT: usize = 4_096;
/// Questions a second, at most; some 10 µs each. Further events are without.
const QUESTIONS: u32 = 1_000;

/// Why connection tracking cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The kernel does not let this process.
    #[error("--nat asks connection tracking, which takes CAP_NET_ADMIN: {0}")]
    Privileges(io::Error),
    /// The kernel cannot.
    #[error(
        "--nat asks connection tracking, and this kernel does not answer: {0} (modprobe nf_conntrack_netlink, or do without --nat)"
    )]
    Kernel(io::Error),
}

/// Asks connection tracking.
#[derive(Debug)]
pub struct Conntrack {
    socket: OwnedFd,
    /// Inode number of the namespace.
    netns: u32,
    sequence: u32,
    known: HashMap<(SocketAddr, SocketAddr), (Option<SocketAddr>, Instant)>,
    /// When this second began, and the questions in it.
    second: (Instant, u32),
}

impl Conntrack {
    /// Of the network namespace of this process. Asks once, to see whether it may.
    ///
    /// # Errors
    ///
    /// It may not, or the kernel cannot.
    pub fn open() -> Result<Self, ConntrackError> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(rustix::net::netlink::NETFILTER),
        )
        .map_err(|error| ConntrackError::Kernel(error.into()))?;
        let inode = std::fs::metadata("/proc/self/ns/net").map_err(ConntrackError::Kernel)?.ino();
        let mut conntrack = Self {
            socket,
            netns: u32::try_from(inode).unwrap_or(0),
            sequence: 0,
            known: HashMap::default(),
            second: (Instant::now(), 0),
        };
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        match conntrack.ask(nobody, nobody) {
            Ok(_) => Ok(conntrack),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(ConntrackError::Privileges(error))
            }
            Err(error) => Err(ConntrackError::Kernel(error)),
        }
    }

    /// Where the packets of a connection go that a process of namespace `netns` (inode number) opened from `local` to `peer`, if that
    /// is elsewhere. `None` also for a connection that came in.
    pub fn destination(
        &mut self,
        local: SocketAddr,
        peer: SocketAddr,
        netns: u32,
        now: Instant,
    ) -> Option<SocketAddr> {
        // Packets of another namespace's loopback do not come by here; those of its own may have the same addresses.
        if netns != self.netns && (local.ip().is_loopback() || peer.ip().is_loopback()) {
            return None;
        }
        if let Some((destination, at)) = self.known.get(&(local, peer))
            && now.saturating_duration_since(*at) < HOLDS
        {
            return *destination;
        }
        let (began, asked) = &mut self.second;
        if now.saturating_duration_since(*began) >= Duration::from_secs(1) {
            (*began, *asked) = (now, 0);
        }
        if *asked == QUESTIONS {
            return None;
        }
        *asked += 1;
        let destination = self.ask(local, peer).unwrap_or_else(|error| {
            tracing::warn!("connection tracking does not answer: {error}");
            None
        });
        if self.known.len() >= KEPT {
            self.known.clear();
        }
        self.known.insert((local, peer), (destination, now));
        destination
    }

    fn ask(&mut self, local: SocketAddr, peer: SocketAddr) -> io::Result<Option<SocketAddr>> {
        self.sequence = self.sequence.wrapping_add(1);
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(
            &self.socket,
            &question(local, peer, self.sequence),
            SendFlags::empty(),
            &kernel,
        )?;
        // The kernel answers while it takes the question.
        let mut bytes = [0; 4_096];
        loop {
            let (_, length) = rustix::net::recv(&self.socket, &mut bytes[..], RecvFlags::empty())?;
            let answer = bytes.get(..length).unwrap_or_default();
            if let Some(answer) = parse(answer, self.sequence, local, peer)? {
                return Ok(answer.elsewhere(peer));
            }
        }
    }
}

/// What connection tracking says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It does not know the connection, or not as one that was opened from here.
    Unknown,
    /// Who answers its packets.
    To(SocketAddr),
}

impl Answer {
    fn elsewhere(self, peer: SocketAddr) -> Option<SocketAddr> {
        match self {
            Self::To(destination) if destination != peer => Some(destination),
            Self::To(_) | Self::Unknown => None,
        }
    }
}

/// IPCTNL_MSG_CT_GET for the connection that began with a packet from `local` to `peer`.
fn question(local: SocketAddr, peer: SocketAddr, sequence: u32) -> Vec<u8> {
    let family = match local.ip() {
        IpAddr::V4(_) => NetfilterProtoFamily::IPv4,
        IpAddr::V6(_) => NetfilterProtoFamily::IPv6,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(
        header,
        NetlinkPayload::from(NetfilterMessage::new(
            NetfilterHeader::new(family, 0, 0),
            ConntrackMessage::Get(vec![ConntrackAttribute::CtaTupleOrig(tuple(local, peer))]),
        )),
    );
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// What identifies one direction of a connection.
fn tuple(from: SocketAddr, to: SocketAddr) -> Vec<Tuple> {
    vec![
        Tuple::Ip(vec![IPTuple::SourceAddress(from.ip()), IPTuple::DestinationAddress(to.ip())]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(Protocol::Tcp),
            ProtoTuple::SourcePort(from.port()),
            ProtoTuple::DestinationPort(to.port()),
        ]),
    ]
}

/// The answer to question `sequence`; `None`: this is another's.
fn parse(bytes: &[u8], sequence: u32, local: SocketAddr, peer: SocketAddr) -> io::Result<Option<Answer>> {
    let message = NetlinkMessage::<NetfilterMessage>::deserialize(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    if message.header.sequence_number != sequence {
        return Ok(None);
    }
    let attributes = match message.payload {
        NetlinkPayload::InnerMessage(NetfilterMessage {
            inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
            ..
        }) => attributes,
        NetlinkPayload::Error(error) => {
            let error = error.to_io();
            return match error.raw_os_error() {
                Some(libc::ENOENT) => Ok(Some(Answer::Unknown)),
                _ => Err(error),
            };
        }
        _ => return Ok(Some(Answer::Unknown)),
    };
    let (mut began, mut answers) = (None, None);
    for attribute in &attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => began = ends(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => answers = ends(tuple),
            _ => {}
        }
    }
    // Entries are found from either side: of one that came in, the question was its answers' direction.
    Ok(Some(match (began, answers) {
        (Some(began), Some((destination, _))) if began == (local, peer) => Answer::To(destination),
        _ => Answer::Unknown,
    }))
}

/// Source and destination.
fn ends(tuple: &[Tuple]) -> Option<(SocketAddr, SocketAddr)> {
    let (mut from, mut to) = ((None, None), (None, None));
    for part in tuple {
        match part {
            Tuple::Ip(addresses) => addresses.iter().for_each(|address| match address {
                IPTuple::SourceAddress(address) => from.0 = Some(*address),
                IPTuple::DestinationAddress(address) => to.0 = Some(*address),
                _ => {}
            }),
            Tuple::Proto(ports) => ports.iter().for_each(|port| match port {
                ProtoTuple::SourcePort(port) => from.1 = Some(*port),
                ProtoTuple::DestinationPort(port) => to.1 = Some(*port),
                _ => {}
            }),
            _ => {}
        }
    }
    Some((SocketAddr::new(from.0?, from.1?), SocketAddr::new(to.0?, to.1?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel would answer: a message of type NEW with both directions' tuples.
    fn answer(sequence: u32, began: (SocketAddr, SocketAddr), answers: (SocketAddr, SocketAddr)) -> Vec<u8> {
        let attributes = vec![
            ConntrackAttribute::CtaTupleOrig(tuple(began.0, began.1)),
            ConntrackAttribute::CtaTupleReply(tuple(answers.0, answers.1)),
        ];
        let mut header = NetlinkHeader::default();
        header.sequence_number = sequence;
        let mut message = NetlinkMessage::new(
            header,
            NetlinkPayload::from(NetfilterMessage::new(
                NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0),
                ConntrackMessage::New(attributes),
            )),
        );
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn who_answers_is_where_packets_go() {
        for [pod, service, backend, gateway] in [
            ["10.1.0.2:4000", "10.96.0.1:80", "10.2.0.2:8080", "10.2.0.1:4000"],
            ["[fd00:1::2]:4000", "[fd00:96::1]:80", "[fd00:2::2]:8080", "[fd00:2::1]:4000"],
        ] {
            let [pod, service, backend, gateway] =
                [pod, service, backend, gateway].map(|it| it.parse().unwrap());
            let ask = |bytes: &[u8], local, peer| parse(bytes, 7, local, peer);
            let elsewhere =
                |bytes: &[u8], local, peer| ask(bytes, local, peer).unwrap().unwrap().elsewhere(peer);
            let rewritten = answer(7, (pod, service), (backend, pod));
            assert_eq!(elsewhere(&rewritten, pod, service), Some(backend));
            // Its source is rewritten too: nothing that a process wants to know.
            let masqueraded = answer(7, (pod, service), (backend, gateway));
            assert_eq!(elsewhere(&masqueraded, pod, service), Some(backend));
            let plain = answer(7, (pod, backend), (backend, pod));
            assert_eq!(elsewhere(&plain, pod, backend), None);
            // Asked from the side that accepted, it is the answers' direction that was found.
            assert_eq!(elsewhere(&rewritten, backend, pod), None);
            assert!(ask(&answer(6, (pod, service), (backend, pod)), pod, service).unwrap().is_none());
        }
    }

    #[test]
    fn what_does_not_parse_is_an_error() {
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        let whole = answer(7, (nobody, nobody), (nobody, nobody));
        for end in 0..16 {
            assert!(parse(&whole[..end], 7, nobody, nobody).is_err(), "{end}");
        }
        // NLMSG_ERROR, with ENOENT and with EPERM.
        for (errno, known) in [(libc::ENOENT, true), (libc::EPERM, false)] {
            let mut error = Vec::new();
            error.extend(36_u32.to_ne_bytes());
            error.extend(2_u16.to_ne_bytes());
            error.extend([0; 2]);
            error.extend(7_u32.to_ne_bytes());
            error.extend([0; 4]);
            error.extend((-errno).to_ne_bytes());
            error.extend([0; 16]);
            assert_eq!(parse(&error, 7, nobody, nobody).is_ok(), known, "{errno}");
        }
    }
}
