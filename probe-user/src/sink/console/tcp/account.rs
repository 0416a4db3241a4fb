//! What all events of a run come to: by kind, by peer, by owner. Bounded, whoever the peers are.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};
use probe_common::tcp::{CAUSES, Cause};

use super::super::owners::{OwnerKey, Processes};
use super::super::rows::Bounded;
use super::super::text::{cut, escape};
use crate::signals::Event;
use crate::signals::tcp::{Close, Connect, Connection, Reset, Retransmit};

/// Peers, owners and doors that have a row of their own each; what comes after is counted in one row.
pub(super) const MOST: usize = 1_024;
/// Characters of a peer's name.
const NAME: usize = 40;
/// Connections that sent their SYN again, remembered to count each once.
const MOST_SYNS: usize = 4_096;

/// Why a connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// ECONNREFUSED.
    Refused,
    /// ETIMEDOUT.
    TimedOut,
    /// EHOSTUNREACH, ENETUNREACH.
    Unreachable,
    /// Any other.
    Other,
}

impl Failure {
    pub(super) const ALL: [Self; 4] = [Self::Refused, Self::TimedOut, Self::Unreachable, Self::Other];

    fn of(errno: &str) -> Self {
        match errno {
            "ECONNREFUSED" => Self::Refused,
            "ETIMEDOUT" => Self::TimedOut,
            "EHOSTUNREACH" | "ENETUNREACH" => Self::Unreachable,
            _ => Self::Other,
        }
    }

    pub(super) const fn in_words(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed out",
            Self::Unreachable => "unreachable",
            Self::Other => "failed otherwise",
        }
    }
}

/// Numbers of a kind, in the order of an enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts<const N: usize>([u64; N]);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> Counts<N> {
    fn add(&mut self, index: usize, count: u64) {
        if let Some(cell) = self.0.get_mut(index) {
            *cell += count;
        }
    }

    pub(super) fn sum(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        self.0.iter().copied()
    }
}

impl Counts<{ CAUSES.len() }> {
    pub(super) fn of(&self, cause: Cause) -> u64 {
        self.0.get(cause as usize).copied().unwrap_or(0)
    }

    /// Without SYNs: those have no connection yet.
    pub(super) fn of_connections(&self) -> u64 {
        self.sum() - self.of(Cause::Syn)
    }
}

impl Counts<{ Failure::ALL.len() }> {
    pub(super) fn of(&self, failure: Failure) -> u64 {
        self.0.get(failure as usize).copied().unwrap_or(0)
    }
}

/// What was sent again, and what was reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Segments by cause.
    pub(super) segments: Counts<{ CAUSES.len() }>,
    /// Events by cause.
    pub(super) events: Counts<{ CAUSES.len() }>,
    pub(super) resets_sent: u64,
    pub(super) resets_received: u64,
    pub(super) carried: Carried,
}

/// What connections that ended had carried. Segments of those only whose kernel tells both of a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) connections: u64,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    /// Segments sent, and those of them that were sent again.
    pub(super) sent: u64,
    pub(super) sent_again: u64,
    /// Segments sent again, and those of them that the peer had already.
    pub(super) judged: u64,
    pub(super) needless: u64,
}

impl Carried {
    fn add(&mut self, close: &Close) {
        self.connections += 1;
        self.bytes_sent += close.bytes_sent.unwrap_or(0);
        self.bytes_received += close.bytes_received.unwrap_or(0);
        let again = close.segments_retransmitted;
        if let (Some(sent), Some(again)) = (close.segments_sent, again) {
            self.sent += u64::from(sent);
            self.sent_again += u64::from(again);
        }
        if let (Some(again), Some(needless)) = (again, close.segments_spurious) {
            self.judged += u64::from(again);
            self.needless += u64::from(needless);
        }
    }
}

/// An address at the other end.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    pub(super) tally: Tally,
    /// Events that only something received from there explains.
    pub(super) heard: u64,
    /// Least and greatest smoothed round-trip time, and of how many.
    pub(super) srtt: Option<(Duration, Duration, u64)>,
}

/// An address and port to which processes of this host connect.
#[derive(Clone, Debug, Default)]
pub(super) struct Door {
    /// SYNs sent again.
    pub(super) syns: u64,
    /// The connections that did, each once; of as many SYNs.
    pub(super) connections: u64,
    pub(super) counted_syns: u64,
    pub(super) failed: Counts<{ Failure::ALL.len() }>,
    /// Events of connections to it that were made.
    pub(super) opened: u64,
}

impl Door {
    /// What speaks of trouble in connecting.
    pub(super) fn trouble(&self) -> u64 {
        self.syns + self.failed.sum()
    }
}

/// What an owner's connections sent again.
#[derive(Clone, Debug, Default)]
pub(super) struct Owner {
    pub(super) tally: Tally,
    pub(super) processes: Processes,
}

/// The account of one run.
#[derive(Debug)]
pub struct Account {
    begun: Instant,
    pub(super) all: Tally,
    /// Segments of all connections until the end of the last interval.
    sent: u64,
    /// Something was sent again after that end.
    is_behind: bool,
    /// Segments of some connections are missing from the sum.
    is_short: bool,
    pub(super) failed: Counts<{ Failure::ALL.len() }>,
    pub(super) connected: u64,
    pub(super) accepted: u64,
    pub(super) peers: Bounded<IpAddr, Peer>,
    pub(super) doors: Bounded<SocketAddr, Door>,
    pub(super) owners: Bounded<OwnerKey, Owner>,
    /// Names of peers.
    names: HashMap<IpAddr, Arc<str>, RandomState>,
    /// Local end and door of connections that sent their SYN again.
    syns: HashSet<(SocketAddr, SocketAddr), RandomState>,
}

impl Default for Account {
    fn default() -> Self {
        Self::new()
    }
}

impl Account {
    /// That begins now.
    #[must_use]
    pub fn new() -> Self {
        Self::with_room(MOST)
    }

    pub(super) fn with_room(most: usize) -> Self {
        Self {
            begun: Instant::now(),
            all: Tally::default(),
            sent: 0,
            is_behind: false,
            is_short: false,
            failed: Counts::default(),
            connected: 0,
            accepted: 0,
            peers: Bounded::new(most),
            doors: Bounded::new(most),
            owners: Bounded::new(most),
            names: HashMap::default(),
            syns: HashSet::default(),
        }
    }

    /// Since the beginning.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        let Tally { segments: _, events, resets_sent, resets_received, carried } = &self.all;
        let others = [*resets_sent, *resets_received, carried.connections, self.connected, self.accepted];
        events.sum() + self.failed.sum() + others.iter().sum::<u64>() == 0
    }

    /// Takes an event in; those of other signals are none of its business.
    pub fn add(&mut self, event: &Event) {
        match event {
            Event::Retransmit(event) => self.retransmit(event),
            Event::Reset(event) => self.reset(event),
            Event::Connect(event) => self.connect(event),
            Event::Close(event) => self.close(event),
            Event::Lookup(_)
            | Event::SyscallSummary(_)
            | Event::SyscallSlow(_)
            | Event::SyscallInFlight(_)
            | Event::Loss(_) => {}
        }
        // As many as there are rows for.
        if let Some(connection) = event.connection()
            && let Some(name) = &connection.peer_name
            && (self.peers.rows.contains_key(&connection.peer)
                || self.doors.rows.contains_key(&ends(connection).1))
        {
            self.names.insert(connection.peer, Arc::clone(name));
        }
    }

    /// A peer, or a door of it, with the name that is known.
    pub(super) fn with_name(&self, what: &impl Display, peer: &IpAddr) -> String {
        match self.names.get(peer) {
            Some(name) => format!("{what} ({})", cut(&escape(name), NAME)),
            None => what.to_string(),
        }
    }

    /// An interval has ended, in which connections sent so many segments.
    pub fn interval(&mut self, segments_sent: u64) {
        self.sent += segments_sent;
        self.is_behind = false;
    }

    /// Segments of connections were not counted: from now on their sum is not known.
    pub fn miss_segments(&mut self) {
        self.is_short = true;
    }

    /// Segments of all connections, those sent again among them; `None` where that is not known for the whole time.
    pub(super) fn sent(&self) -> Option<u64> {
        (!self.is_behind && !self.is_short).then_some(self.sent)
    }

    fn retransmit(&mut self, event: &Retransmit) {
        self.is_behind = true;
        let Retransmit { time_unix_ns: _, connection, cause, segments, srtt, cwnd: _, unacked: _ } = event;
        let Some(index) = CAUSES.iter().position(|name| name == cause) else { return };
        let segments = u64::from(*segments);
        self.tallies(connection, |tally| {
            tally.segments.add(index, segments);
            tally.events.add(index, 1);
        });
        if index == Cause::Syn as usize {
            let (local, peer) = ends(connection);
            let known = self.syns.contains(&(local, peer));
            let remembered = known || self.syns.len() < MOST_SYNS;
            if remembered && !known {
                self.syns.insert((local, peer));
            }
            let door = self.doors.row(peer);
            door.syns += segments;
            if remembered {
                door.connections += u64::from(!known);
                door.counted_syns += segments;
            }
            return;
        }
        let peer = self.heard(connection);
        if let Some(srtt) = *srtt {
            let (least, greatest, count) = peer.srtt.unwrap_or((srtt, srtt, 0));
            peer.srtt = Some((least.min(srtt), greatest.max(srtt), count + 1));
        }
        if index != Cause::SynAck as usize {
            self.opened(connection);
        }
    }

    fn reset(&mut self, event: &Reset) {
        let received = event.direction == "receive";
        self.tallies(&event.connection, |tally| {
            tally.resets_received += u64::from(received);
            tally.resets_sent += u64::from(!received);
        });
        // Ours too: it ends a connection that there was, or answers something.
        self.heard(&event.connection);
    }

    fn connect(&mut self, event: &Connect) {
        let Connect { time_unix_ns: _, connection, role, error, duration: _ } = event;
        match error {
            Some(errno) => {
                let failure = Failure::of(errno);
                self.failed.add(failure as usize, 1);
                let (_local, peer) = ends(connection);
                self.doors.row(peer).failed.add(failure as usize, 1);
                if failure == Failure::Refused {
                    self.heard(connection);
                }
            }
            None if *role == "server" => {
                self.accepted += 1;
                self.heard(connection);
            }
            None => {
                self.connected += 1;
                self.heard(connection);
                let (_local, door) = ends(connection);
                self.doors.row(door).opened += 1;
            }
        }
    }

    fn close(&mut self, event: &Close) {
        self.tallies(&event.connection, |tally| tally.carried.add(event));
        if event.segments_received != Some(0) {
            self.heard(&event.connection);
            self.opened(&event.connection);
        }
    }

    /// Everywhere a connection is counted.
    fn tallies(&mut self, connection: &Connection, count: impl Fn(&mut Tally)) {
        let Self { all, peers, owners, .. } = self;
        count(all);
        count(&mut peers.row(connection.peer).tally);
        let owner = owners.row(OwnerKey::of(&connection.who));
        count(&mut owner.tally);
        owner.processes.add(connection.who.pid);
    }

    /// Something came from the peer.
    fn heard(&mut self, connection: &Connection) -> &mut Peer {
        let peer = self.peers.row(connection.peer);
        peer.heard += 1;
        peer
    }

    /// There is a connection: if it is to a door, that opens.
    fn opened(&mut self, connection: &Connection) {
        let (_local, peer) = ends(connection);
        if let Some(door) = self.doors.rows.get_mut(&peer) {
            door.opened += 1;
        }
    }
}

fn ends(connection: &Connection) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(connection.local, connection.local_port),
        SocketAddr::new(connection.peer, connection.peer_port),
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::tests::{CONTAINER, connection, ended, sent_again, who};
    use super::*;

    fn from(peer: u32, pid: u32, comm: &str) -> Connection {
        let peer = Ipv4Addr::from_bits(0x0a00_0000 + peer);
        connection("10.9.9.9:40000", &format!("{peer}:80"), who(comm, pid, "/"))
    }

    #[test]
    fn causes_and_failures_are_in_their_order() {
        for (cause, name) in [
            (Cause::Syn, "syn"),
            (Cause::SynAck, "syn_ack"),
            (Cause::Timeout, "timeout"),
            (Cause::SlowStart, "slow_start"),
            (Cause::Fast, "fast"),
            (Cause::TailLossProbe, "tail_loss_probe"),
        ] {
            let mut account = Account::new();
            account.add(&Event::Retransmit(sent_again(name, 3, from(1, 1, "a"))));
            assert_eq!(account.all.segments.of(cause), 3, "{name}");
            assert_eq!(account.all.events.of(cause), 1, "{name}");
            assert_eq!(account.all.segments.sum(), 3);
        }
        for (index, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, index);
        }
    }

    /// Strangers choose their addresses, and can have as many as they like.
    #[test]
    fn more_peers_and_owners_than_there_is_room_for() {
        const ROOM: usize = 8;
        let mut account = Account::with_room(ROOM);
        for round in 1..=3 {
            for peer in 0..100 {
                let comm = format!("worker-{peer}");
                account.add(&Event::Retransmit(sent_again("fast", round, from(peer, 7, &comm))));
                account.add(&Event::Retransmit(sent_again("syn", 1, from(peer, 7, &comm))));
            }
        }
        assert_eq!(account.peers.rows.len(), ROOM);
        assert_eq!(account.owners.rows.len(), ROOM);
        assert_eq!(account.doors.rows.len(), ROOM);
        let all = 100 * (1 + 2 + 3) + 100 * 3;
        assert_eq!(account.all.segments.sum(), all);
        // Who has a row keeps it; nothing is counted twice, nothing is missing.
        let peers: u64 = account.peers.rows.values().map(|peer| peer.tally.segments.sum()).sum();
        let owners: u64 = account.owners.rows.values().map(|owner| owner.tally.segments.sum()).sum();
        assert_eq!((peers, owners), (ROOM as u64 * 9, ROOM as u64 * 9));
        assert_eq!(peers + account.peers.rest.tally.segments.sum(), all);
        assert_eq!(owners + account.owners.rest.tally.segments.sum(), all);
        let syns: u64 = account.doors.rows.values().map(|door| door.syns).sum();
        assert_eq!(syns + account.doors.rest.syns, 300);
    }

    #[test]
    fn connections_that_sent_their_syn_again_are_told_apart_up_to_a_limit() {
        let mut account = Account::new();
        let syn = |port: usize| {
            let local = format!("10.0.{}.{}:40000", port / 256, port % 256);
            Event::Retransmit(sent_again("syn", 1, connection(&local, "10.1.1.1:80", who("a", 1, "/"))))
        };
        for _twice in 0..2 {
            for port in 0..MOST_SYNS + 100 {
                account.add(&syn(port));
            }
        }
        let door = &account.doors.rows[&"10.1.1.1:80".parse::<SocketAddr>().unwrap()];
        assert_eq!(door.syns, 2 * (MOST_SYNS as u64 + 100));
        assert_eq!((door.connections, door.counted_syns), (MOST_SYNS as u64, 2 * MOST_SYNS as u64));
    }

    #[test]
    fn processes_of_one_name_are_one_owner() {
        let mut account = Account::new();
        for pid in [1, 2, 2] {
            account.add(&Event::Retransmit(sent_again("fast", 1, from(1, pid, "curl"))));
        }
        for _twice in 0..2 {
            account.add(&Event::Retransmit(sent_again("fast", 1, from(1, 9, "nginx"))));
        }
        let inside = connection("10.9.9.9:1", "10.0.0.1:80", who("curl", 3, CONTAINER));
        account.add(&Event::Retransmit(sent_again("fast", 1, inside)));
        let mut owners: Vec<_> = account
            .owners
            .rows
            .iter()
            .map(|(key, owner)| {
                let comm = key.comm.as_deref().unwrap_or_default();
                (comm, key.container.is_some(), owner.tally.segments.sum(), owner.processes)
            })
            .collect();
        owners.sort_by_key(|(comm, inside, ..)| (*comm, *inside));
        assert_eq!(
            owners,
            [
                ("curl", false, 3, Processes::Several),
                ("curl", true, 1, Processes::One(Some(3))),
                ("nginx", false, 2, Processes::One(Some(9)))
            ]
        );
    }

    #[test]
    fn segments_of_closed_connections_count_where_both_of_a_pair_are_known() {
        let mut account = Account::new();
        let close = |sent, again, needless| {
            Event::Close(Close {
                segments_sent: sent,
                segments_retransmitted: again,
                segments_spurious: needless,
                ..ended(from(1, 1, "a"))
            })
        };
        for event in [
            close(Some(100), Some(5), Some(2)),
            close(Some(1_000), None, Some(7)),
            close(None, Some(50), None),
            close(None, Some(4), Some(1)),
        ] {
            account.add(&event);
        }
        let Carried { connections, sent, sent_again, judged, needless, .. } = account.all.carried;
        assert_eq!((connections, sent, sent_again, judged, needless), (4, 100, 5, 9, 3));
    }
}
