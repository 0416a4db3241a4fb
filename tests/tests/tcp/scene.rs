//! Two processes at the ends of connections, what is lost between them, and the probe that watches.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use probe_common::tcp::CAUSES;
use probe_tests::attempts;
use probe_tests::counters::Counters;
use probe_tests::drop::{Cgroup, Loss};
use probe_tests::netns::Netns;
use probe_tests::probe::{Line, Probe, poll};
use probe_tests::workload::Workload;

const PEER: &str = env!("CARGO_BIN_EXE_tcp_peer");
const CLIENT: &str = "test-client";
const SERVER: &str = "test-server";
/// Octets of a write that fills a segment: another than full ones would be merged when they are sent again.
pub(crate) const SEGMENT: &str = "500";

pub(crate) const LOOPBACKS: [&str; 2] = ["127.0.0.1", "::1"];
/// So that [`SEGMENT`] does: 12 octets are for timestamps.
pub(crate) const FULL: &str = "cc=cubic mss=512";

/// Who an event is to name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub(crate) pid: u32,
    pub(crate) comm: &'a str,
    pub(crate) executable: &'a str,
}

/// A process at one end.
pub(crate) struct Peer {
    pub(crate) workload: Workload,
    pub(crate) name: &'static str,
}

impl Peer {
    pub(crate) fn start(name: &'static str, netns: &Netns, cgroup: &Cgroup) -> Result<Self> {
        let mut workload = netns.run(|| Workload::start(PEER))??;
        cgroup.add(workload.pid())?;
        workload.tell(&format!("name {name}"))?;
        Ok(Self { workload, name })
    }

    pub(crate) fn tell(&mut self, order: &str) -> Result<String> {
        self.workload.tell(order)
    }

    /// Listens at a free port of an address, which it returns.
    pub(crate) fn listen(&mut self, address: &str, options: &str) -> Result<u16> {
        Ok(self.tell(&format!("listen {} {options}", at(address, 0)))?.parse()?)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.workload.pid()
    }

    pub(crate) fn owner(&self) -> Owner<'_> {
        Owner { pid: self.pid(), comm: self.name, executable: "tcp_peer" }
    }
}

/// An address and a port as one.
pub(crate) fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Everything that a test needs. In the order in which it must go.
pub(crate) struct Scene {
    pub(crate) client: Peer,
    pub(crate) server: Peer,
    pub(crate) loss: Loss,
    pub(crate) probe: Probe,
    pub(crate) cgroup: Cgroup,
    pub(crate) netns: Netns,
}

/// A connection, as both ends know it.
pub(crate) struct Connection {
    /// Number at the client, and the port there.
    pub(crate) client: String,
    pub(crate) client_port: u16,
    /// Number at the server, and its port.
    pub(crate) server: String,
}

/// What is left after a test: the events of its namespace, and the kernel's counters.
pub(crate) struct Outcome {
    pub(crate) events: Vec<Line>,
    pub(crate) counters: Counters,
    /// Runs of programs that the kernel left out, and what `probe` says in the end.
    pub(crate) misses: u64,
    pub(crate) stderr: String,
}

impl Scene {
    /// With `probe tcp --kind KINDS`.
    pub(crate) fn new(kinds: &str) -> Result<Self> {
        Self::watched_by(|_cgroup| Probe::start(&["tcp", "--kind", kinds]))
    }

    /// With the `probe` that this begins.
    pub(crate) fn watched_by(begin: impl FnOnce(&Cgroup) -> Result<Probe>) -> Result<Self> {
        let netns = Netns::new()?;
        netns.run(|| -> Result<()> {
            // Writes are to be segments, and no connection is to learn from another.
            std::fs::write("/proc/sys/net/ipv4/tcp_autocorking", "0")?;
            Ok(std::fs::write("/proc/sys/net/ipv4/tcp_no_metrics_save", "1")?)
        })??;
        let cgroup = Cgroup::new()?;
        let loss = Loss::attach(&cgroup)?;
        let probe = begin(&cgroup)?;
        let client = Peer::start(CLIENT, &netns, &cgroup)?;
        let server = Peer::start(SERVER, &netns, &cgroup)?;
        Ok(Self { client, server, loss, probe, cgroup, netns })
    }

    /// From here on there is another probe: all that is there is older than it.
    pub(crate) fn begin_anew(&mut self, kinds: &str) -> Result<()> {
        let before = std::mem::replace(&mut self.probe, Probe::start(&["tcp", "--kind", kinds])?);
        before.stop()?;
        Ok(())
    }

    /// Connects the client to the newest listener of the server.
    pub(crate) fn connect(&mut self, address: &str, server_port: u16, options: &str) -> Result<Connection> {
        self.meet(&format!("connect {} {options}", at(address, server_port)))
    }

    /// The client connects by this order, and the server accepts.
    pub(crate) fn meet(&mut self, order: &str) -> Result<Connection> {
        self.client.workload.order(order)?;
        let accepted = self.server.tell("accept")?;
        let connected = self.client.workload.hear()?;
        let (server, _) = accepted.split_once(' ').context(accepted.clone())?;
        let (client, client_port) = connected.split_once(' ').context(connected.clone())?;
        let (client, server) = (client.to_owned(), server.to_owned());
        Ok(Connection { client, client_port: client_port.parse()?, server })
    }

    /// The client sends so many segments of [`SEGMENT`].
    pub(crate) fn send(&mut self, connection: &Connection, segments: u32) -> Result<String> {
        self.client.tell(&format!("send {} {SEGMENT} {segments}", connection.client))
    }

    /// The server has received so many segments of [`SEGMENT`].
    pub(crate) fn receive(&mut self, connection: &Connection, segments: u32) -> Result<String> {
        let octets = SEGMENT.parse::<u32>()? * segments;
        self.server.tell(&format!("receive {} {octets}", connection.server))
    }

    /// Both ends close it, the client first.
    pub(crate) fn part(&mut self, connection: &Connection) -> Result<()> {
        self.client.tell(&format!("close {}", connection.client))?;
        self.server.tell(&format!("close {}", connection.server))?;
        Ok(())
    }

    pub(crate) fn is_ours(&self, line: &Line) -> bool {
        line.int("linux.netns") == Some(self.netns.inode().into())
    }

    /// The first retransmit of a kind from a local port.
    pub(crate) fn retransmit(&self, kind: &str, local_port: u16) -> Result<Line> {
        self.probe.line(&format!("a retransmit of kind {kind} from port {local_port}"), |line| {
            self.is_ours(line)
                && line.text("network.tcp.retransmit.type") == Some(kind)
                && line.int("network.local.port") == Some(local_port.into())
        })
    }

    /// The first event of a name from a local to a peer port.
    pub(crate) fn event(&self, name: &str, local_port: u16, peer_port: u16) -> Result<Line> {
        self.probe.line(&format!("{name} from port {local_port} to {peer_port}"), |line| {
            self.is_ours(line)
                && line.event() == name
                && line.int("network.local.port") == Some(local_port.into())
                && line.int("network.peer.port") == Some(peer_port.into())
        })
    }

    /// Checks everything that an event says about its connection, seen from `local`.
    pub(crate) fn check(
        &self,
        event: &Line,
        local: (&str, u16),
        peer: (&str, u16),
        owner: &Peer,
    ) -> Result<()> {
        self.check_owner(event, local, peer, owner.owner())
    }

    /// As [`Self::check`], for a process that is no peer any more, or another than that began as one.
    pub(crate) fn check_owner(
        &self,
        event: &Line,
        local: (&str, u16),
        peer: (&str, u16),
        owner: Owner<'_>,
    ) -> Result<()> {
        let Owner { pid, comm, executable } = owner;
        let expected = [
            ("network.type", if local.0.contains(':') { "ipv6" } else { "ipv4" }),
            ("network.local.address", local.0),
            ("network.peer.address", peer.0),
            ("process.comm", comm),
            ("process.executable.name", executable),
            ("linux.cgroup.path", self.cgroup.path()),
        ];
        for (key, value) in expected {
            ensure!(event.text(key) == Some(value), "{key} is not {value}: {}", event.0);
        }
        let expected = [
            ("network.local.port", u32::from(local.1)),
            ("network.peer.port", u32::from(peer.1)),
            ("process.pid", pid),
            ("linux.netns", self.netns.inode()),
        ];
        for (key, value) in expected {
            ensure!(event.int(key) == Some(value.into()), "{key} is not {value}: {}", event.0);
        }
        Ok(())
    }

    /// Ends the processes, waits until no connection of theirs is left, and compares what `probe` saw with what the kernel
    /// counted.
    pub(crate) fn finish(mut self) -> Result<Outcome> {
        self.loss.heal()?;
        let Self { client, server, loss: _loss, probe, cgroup: _cgroup, netns } = self;
        client.workload.end()?;
        server.workload.end()?;
        poll("the end of all connections", Duration::from_secs(20), || {
            Ok((open_connections(&netns)? == 0).then_some(()))
        })?;
        let counters = Counters::read(&netns)?;
        let misses = probe.program_misses()?;
        attempts::skipped(misses);
        let finished = probe.stop()?;
        finished.require_complete()?;
        let ours = |line: &Line| line.int("linux.netns") == Some(netns.inode().into());
        let events = finished.lines.into_iter().filter(ours).collect();
        Ok(Outcome { events, counters, misses, stderr: finished.stderr })
    }
}

/// Connections of a namespace that may still send data: all but those in TIME_WAIT.
fn open_connections(netns: &Netns) -> Result<usize> {
    const TIME_WAIT: &str = "06";
    let mut open = 0;
    for file in ["tcp", "tcp6"] {
        let table = netns.proc_net(file)?;
        open +=
            table.lines().skip(1).filter(|line| line.split_whitespace().nth(3) != Some(TIME_WAIT)).count();
    }
    Ok(open)
}

impl Outcome {
    /// Segments by kind, as `probe` saw them.
    pub(crate) fn segments(&self) -> BTreeMap<&str, i64> {
        let mut segments: BTreeMap<&str, i64> = CAUSES.iter().map(|kind| (*kind, 0)).collect();
        for line in &self.events {
            if let Some(kind) = line.text("network.tcp.retransmit.type") {
                *segments.entry(kind).or_default() += line.int("segments").unwrap_or(0);
            }
        }
        segments
    }

    /// Segment by segment the same as in the kernel's counters.
    pub(crate) fn require_kernels_sums(&self, test: &str) -> Result<()> {
        let segments = self.segments();
        let kind = |name: &str| segments.get(name).copied().unwrap_or(0);
        let counter = |name: &str| self.counters.get(name);
        let sums = [
            (
                "all = TcpRetransSegs - TCPRetransFail",
                segments.values().sum(),
                counter("TcpRetransSegs")? - counter("TcpExtTCPRetransFail")?,
            ),
            ("fast = TCPFastRetrans", kind("fast"), counter("TcpExtTCPFastRetrans")?),
            ("slow_start = TCPSlowStartRetrans", kind("slow_start"), counter("TcpExtTCPSlowStartRetrans")?),
            ("syn + syn_ack = TCPSynRetrans", kind("syn") + kind("syn_ack"), counter("TcpExtTCPSynRetrans")?),
        ];
        println!("{test}: {segments:?}");
        for (what, probe, kernel) in sums {
            println!("{test}: {what}: {probe} = {kernel}");
        }
        for (what, probe, kernel) in sums {
            let Self { misses, stderr, .. } = self;
            ensure!(
                probe == kernel,
                "{test}: {what}: probe has {probe}, the kernel {kernel}; {misses} runs missed, {stderr}"
            );
        }
        Ok(())
    }
}
