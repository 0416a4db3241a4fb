//! Retransmits that TCP itself took back as needless: what `probe` says of them, against the kernel's counters.
//!
//! What was sent again in vain is a number of the kernel's at the other end, too: `DelayedACKLost` counts data segments that had
//! arrived before.
#![expect(clippy::print_stdout, reason = "the sums beside the kernel's are what a reader wants to see")]

use anyhow::{Context as _, Result, ensure};
use probe_common::fields::{CONG_STATE, FIELDS};
use probe_common::testdrop::{BARE, DATA};
use probe_tests::counters::Counters;
use probe_tests::drop::{Cgroup, RuleExt as _, lose};
use probe_tests::netns::Netns;
use probe_tests::otlp_receiver::{PointValue, Receiver};
use probe_tests::path::{ADDRESSES, Path, To};
use probe_tests::probe::{DEADLINE, Line, Probe, in_guest, patient, poll};
use probe_tests::require::own_host;
use probe_tests::{attempts, live, require};
use probe_user::kernel::btf::KernelBtf;
use probe_user::kernel::fields::resolve;

#[expect(dead_code, reason = "tests/tests/tcp.rs uses the rest")]
#[path = "tcp/scene.rs"]
mod scene;

use scene::{LOOPBACKS, Peer, Scene, at};

const SPURIOUS: &str = "system.network.tcp.retransmits.spurious";
/// Octets of a segment: full ones, with timestamps and without, so that none are merged when they are sent again.
const OCTETS: u32 = 500;
/// More than the first window, so that there is always something new to send: F-RTO takes that.
const MANY: u32 = 30;

live! {
    timeouts_before_acknowledgements
    segments_that_were_overtaken
    timeouts_in_vain
    losses_are_not_taken_back
    mix_without_reports
}

/// What the ends agree on, and what then reveals that a retransmit was needless.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    timestamps: bool,
    sack: bool,
    reports: bool,
}

const CASES: [Case; 4] = [
    Case { name: "timestamps", timestamps: true, sack: true, reports: false },
    Case { name: "timestamps without SACK", timestamps: true, sack: false, reports: false },
    Case { name: "F-RTO", timestamps: false, sack: true, reports: false },
    Case { name: "timestamps and D-SACK", timestamps: true, sack: true, reports: true },
];

impl Case {
    fn set(self, netns: &Netns) -> Result<()> {
        let Self { timestamps, sack, reports, name: _ } = self;
        netns.run(|| -> Result<()> {
            for (name, value) in [
                ("tcp_autocorking", 0),
                ("tcp_no_metrics_save", 1),
                // Tail loss probes come before recoveries and are none.
                ("tcp_early_retrans", 0),
                // Without SACK a timeout is taken back twice: by timestamps, and again by F-RTO.
                ("tcp_frto", if sack { 2 } else { 0 }),
                ("tcp_timestamps", u8::from(timestamps)),
                ("tcp_sack", u8::from(sack)),
                ("tcp_dsack", u8::from(reports)),
            ] {
                std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value.to_string())
                    .with_context(|| name.to_owned())?;
            }
            Ok(())
        })?
    }

    fn options(self) -> String {
        format!("cc=cubic mss={}", OCTETS + if self.timestamps { 12 } else { 0 })
    }
}

/// Kernels that probe can see it on.
fn has_tracepoint() -> Result<bool> {
    let slots = resolve(&KernelBtf::from_host()?, FIELDS).slots;
    Ok(slots.get(CONG_STATE.index).is_some_and(|slot| slot.present != 0))
}

/// Recoveries that the kernel took back.
fn taken_back(counters: &Counters) -> Result<i64> {
    let names = ["TCPFullUndo", "TCPPartialUndo", "TCPLossUndo"];
    names.iter().map(|name| counters.get(&format!("TcpExt{name}"))).sum()
}

/// Two ends with a path between them, watched by `probe tcp` for each connection, and by `probe run` for all.
struct Ends {
    client: Peer,
    server: Peer,
    probe: Probe,
    agent: Probe,
    receiver: Receiver,
    path: Path,
    _cgroup: Cgroup,
}

/// A connection, as both ends know it.
struct Connection {
    client: String,
    server: String,
    port: u16,
}

impl Ends {
    fn new(case: Case) -> Result<Self> {
        let path = Path::new()?;
        case.set(&path.near)?;
        case.set(&path.far)?;
        let cgroup = Cgroup::new()?;
        let receiver = Receiver::start()?;
        let agent = Probe::start(&[
            "run",
            "--interval",
            "1s",
            "--cgroup",
            cgroup.path(),
            "--otlp-endpoint",
            &receiver.endpoint(),
        ])?;
        let probe = Probe::start(&["tcp", "--kind", "close", "--cgroup", cgroup.path()])?;
        let client = Peer::start("test-client", &path.near, &cgroup)?;
        let server = Peer::start("test-server", &path.far, &cgroup)?;
        Ok(Self { client, server, probe, agent, receiver, path, _cgroup: cgroup })
    }

    fn connect(&mut self, address: &str, options: &str) -> Result<Connection> {
        let port = self.server.listen(address, "")?;
        self.client.workload.order(&format!("connect {} {options}", at(address, port)))?;
        let accepted = self.server.tell("accept")?;
        let connected = self.client.workload.hear()?;
        let (server, _) = accepted.split_once(' ').context(accepted.clone())?;
        let (client, port) = connected.split_once(' ').context(connected.clone())?;
        Ok(Connection { client: client.to_owned(), server: server.to_owned(), port: port.parse()? })
    }

    fn send(&mut self, connection: &Connection, segments: u32) -> Result<String> {
        self.client.tell(&format!("send {} {OCTETS} {segments}", connection.client))
    }

    fn receive(&mut self, connection: &Connection, segments: u32) -> Result<String> {
        self.server.tell(&format!("receive {} {}", connection.server, OCTETS * segments))
    }

    /// The kernel's counters at the near end and the far one.
    fn counters(&self) -> Result<(Counters, Counters)> {
        Ok((Counters::read(&self.path.near)?, Counters::read(&self.path.far)?))
    }

    fn wait_for(&self, counter: &str, above: i64) -> Result<()> {
        poll(counter, DEADLINE, || Ok((Counters::read(&self.path.near)?.get(counter)? > above).then_some(())))
    }

    /// The sum of all series.
    fn metric(&self) -> i64 {
        let mut series = std::collections::BTreeMap::new();
        for point in self.receiver.points().into_iter().filter(|point| point.name == SPURIOUS) {
            if let PointValue::Sum { value, .. } = point.value {
                series.insert(point.attributes, value as i64);
            }
        }
        series.values().sum()
    }

    /// `probe`'s numbers of a connection that is open, and when it has ended, against the kernel's.
    fn require(&mut self, what: &str, connection: &Connection, before: &Before) -> Result<i64> {
        let (near, far) = self.counters()?;
        let now = Before::of(&near, &far)?;
        let again = now.sent_again - before.sent_again;
        let twice = now.twice - before.twice;
        let undone = now.undone - before.undone;
        let reported = now.reported - before.reported;
        ensure!(undone > 0 && twice > 0, "{what}: nothing was taken back");
        let arrived = self
            .receiver
            .wait_for(what, patient(DEADLINE), |_receiver| (self.metric() == now.twice).then_some(()));
        let metric = self.metric();
        self.client.tell(&format!("close {}", connection.client))?;
        self.server.tell(&format!("close {}", connection.server))?;
        let close = self.probe.line("tcp.close", |line| {
            line.event() == "tcp.close"
                && line.int("linux.netns") == Some(self.path.near.inode().into())
                && line.int("network.local.port") == Some(connection.port.into())
        })?;
        let int = |key: &str| close.int(key).with_context(|| format!("no {key}: {}", close.0));
        let (spurious, recoveries) = (int("tcp.segments_spurious")?, int("tcp.recoveries_undone")?);
        println!(
            "{what}: tcp.segments_spurious {spurious} = DelayedACKLost of the peer {twice}, TcpRetransSegs {again}, \
             TCPDSACKRecvSegs {reported}; tcp.recoveries_undone {recoveries} = undone {undone}; {SPURIOUS} {metric} = {}",
            now.twice
        );
        arrived.with_context(|| format!("{what}: {SPURIOUS} {metric}, kernel {}", now.twice))?;
        ensure!(spurious == twice, "{what}: {spurious} segments, but the peer had {twice} already");
        ensure!(recoveries == undone, "{what}: {recoveries} recoveries, but the kernel took {undone} back");
        Ok(reported)
    }

    fn end(self) -> Result<()> {
        let Self { client, server, probe, agent, receiver: _receiver, path, _cgroup } = self;
        client.workload.end()?;
        server.workload.end()?;
        for probe in [probe, agent] {
            attempts::skipped(probe.program_misses()?);
            probe.stop()?.require_complete()?;
        }
        path.end()
    }
}

/// Counters of the kernel's.
struct Before {
    sent_again: i64,
    /// Data segments that the far end had already.
    twice: i64,
    undone: i64,
    reported: i64,
}

impl Before {
    fn of(near: &Counters, far: &Counters) -> Result<Self> {
        Ok(Self {
            sent_again: near.get("TcpRetransSegs")?,
            twice: far.get("TcpExtDelayedACKLost")?,
            undone: taken_back(near)?,
            reported: near.get("TcpExtTCPDSACKRecvSegs")?,
        })
    }
}

/// Acknowledgements come after the timeout, or after two.
fn timeouts_before_acknowledgements() -> Result<()> {
    if in_guest() {
        return own_host("TUN devices");
    }
    for case in CASES {
        let mut ends = Ends::new(case)?;
        for ((_, address), timeouts) in ADDRESSES.into_iter().zip([1, 2]) {
            let connection = ends.connect(address, &case.options())?;
            ends.send(&connection, 4)?;
            ends.receive(&connection, 4)?;
            let (near, far) = ends.counters()?;
            let before = Before::of(&near, &far)?;
            let frto = near.get("TcpExtTCPSpuriousRTOs")?;
            ends.path.hold(To::Near);
            ends.send(&connection, MANY)?;
            ends.wait_for("TcpExtTCPTimeouts", near.get("TcpExtTCPTimeouts")? + timeouts - 1)?;
            ends.path.release(To::Near);
            ends.receive(&connection, MANY)?;
            // Above what it sent before: without SACK a recovery goes on until then.
            ends.send(&connection, 4)?;
            ends.receive(&connection, 4)?;
            poll("the end of the recovery", DEADLINE, || {
                let undone = taken_back(&Counters::read(&ends.path.near)?)?;
                Ok((undone > before.undone).then_some(()))
            })?;
            let what = format!("{}, {timeouts} timeouts, {address}", case.name);
            let reported = ends.require(&what, &connection, &before)?;
            let frto = Counters::read(&ends.path.near)?.get("TcpExtTCPSpuriousRTOs")? - frto;
            println!("{what}: TCPSpuriousRTOs {frto}");
            ensure!((reported > 0) == case.reports, "{what}: {reported} segments were reported");
            ensure!(case.timestamps || frto > 0, "{what}: no timeout was taken back by F-RTO");
        }
        ends.end()?;
    }
    Ok(())
}

/// A segment is overtaken by those behind it: it is sent again, and then arrives.
fn segments_that_were_overtaken() -> Result<()> {
    if in_guest() {
        return own_host("TUN devices");
    }
    for case in CASES.into_iter().filter(|case| case.timestamps) {
        let mut ends = Ends::new(case)?;
        for (_, address) in ADDRESSES {
            let connection = ends.connect(address, &case.options())?;
            ends.send(&connection, 4)?;
            ends.receive(&connection, 4)?;
            let (near, far) = ends.counters()?;
            let before = Before::of(&near, &far)?;
            ends.path.hold_segment(To::Far);
            ends.send(&connection, 8)?;
            ends.wait_for("TcpExtTCPFastRetrans", near.get("TcpExtTCPFastRetrans")?)?;
            ends.path.release(To::Far);
            ends.receive(&connection, 8)?;
            ends.wait_for("TcpExtTCPFullUndo", near.get("TcpExtTCPFullUndo")?)?;
            ends.send(&connection, 4)?;
            ends.receive(&connection, 4)?;
            // The copy comes behind the original.
            poll("the segment that was sent again", DEADLINE, || {
                let twice = Counters::read(&ends.path.far)?.get("TcpExtDelayedACKLost")?;
                Ok((twice > before.twice).then_some(()))
            })?;
            let what = format!("{}, overtaken, {address}", case.name);
            ends.require(&what, &connection, &before)?;
        }
        ends.end()?;
    }
    Ok(())
}

/// On loopback, with ends that do not say what they got twice.
const SILENT: Case = Case { name: "loopback", timestamps: true, sack: true, reports: false };

fn silent_scene() -> Result<Scene> {
    let scene =
        Scene::watched_by(|cgroup| Probe::start(&["tcp", "--kind", "close", "--cgroup", cgroup.path()]))?;
    SILENT.set(&scene.netns)?;
    Ok(scene)
}

/// A few segments that arrive and are acknowledged.
fn exchange(scene: &mut Scene, connection: &scene::Connection) -> Result<()> {
    scene.send(connection, 4)?;
    scene.receive(connection, 4)?;
    Ok(())
}

/// What `tcp.close` says, of all connections.
struct Sums {
    connections: usize,
    spurious: i64,
    recoveries: i64,
}

impl Sums {
    fn of(events: &[Line]) -> Self {
        let closes: Vec<&Line> = events.iter().filter(|line| line.event() == "tcp.close").collect();
        let sum = |key: &str| closes.iter().filter_map(|line| line.int(key)).sum();
        Self {
            connections: closes.len(),
            spurious: sum("tcp.segments_spurious"),
            recoveries: sum("tcp.recoveries_undone"),
        }
    }
}

/// Data arrives, acknowledgements do not: every timeout is in vain. The first acknowledgement after that reveals it, because it
/// echoes the timestamp of what came first, or because it is for more than what was sent again (F-RTO).
fn timeouts_in_vain() -> Result<()> {
    require!(has_tracepoint()?, "tracepoint tcp_cong_state_set", since = "5.19");
    let mut scene = silent_scene()?;
    for (address, timeouts) in LOOPBACKS.into_iter().flat_map(|address| [(address, 1), (address, 2)]) {
        let case = Case { timestamps: timeouts == 1, ..SILENT };
        case.set(&scene.netns)?;
        let port = scene.server.listen(address, "")?;
        let connection = scene.connect(address, port, &case.options())?;
        exchange(&mut scene, &connection)?;
        let counter = |scene: &Scene, name: &str| Counters::read(&scene.netns)?.get(name);
        let before = counter(&scene, "TcpExtTCPTimeouts")?;
        let undone = taken_back(&Counters::read(&scene.netns)?)?;
        scene.loss.set(&[lose(BARE).sent_from(port)])?;
        scene.send(&connection, MANY)?;
        poll("timeouts", DEADLINE, || {
            Ok((counter(&scene, "TcpExtTCPTimeouts")? >= before + timeouts).then_some(()))
        })?;
        scene.loss.heal()?;
        scene.receive(&connection, MANY)?;
        poll("a timeout that is taken back", DEADLINE, || {
            Ok((taken_back(&Counters::read(&scene.netns)?)? > undone).then_some(()))
        })?;
        exchange(&mut scene, &connection)?;
        scene.part(&connection)?;
    }
    let outcome = scene.finish()?;
    let sums = Sums::of(&outcome.events);
    let counter = |name: &str| outcome.counters.get(name);
    let (again, twice) = (counter("TcpRetransSegs")?, counter("TcpExtDelayedACKLost")?);
    let undone = taken_back(&outcome.counters)?;
    println!(
        "timeouts in vain: tcp.segments_spurious {} = TcpRetransSegs {again} = DelayedACKLost {twice}; \
         tcp.recoveries_undone {} = undone {undone} = TCPSpuriousRTOs {}",
        sums.spurious,
        sums.recoveries,
        counter("TcpExtTCPSpuriousRTOs")?
    );
    assert_eq!((counter("TcpExtTCPDSACKRecvSegs")?, counter("TcpExtTCPSpuriousRTOs")?), (0, 2));
    assert_eq!((sums.spurious, sums.recoveries), (again, undone));
    assert_eq!(again, twice);
    Ok(())
}

/// Segments are lost: one, so that it is sent again fast, and all that are under way, so that a timeout is needed.
fn losses_are_not_taken_back() -> Result<()> {
    require!(has_tracepoint()?, "tracepoint tcp_cong_state_set", since = "5.19");
    let mut scene = silent_scene()?;
    for address in LOOPBACKS {
        for lost in [1, MANY] {
            let port = scene.server.listen(address, "")?;
            let connection = scene.connect(address, port, "cc=cubic mss=512")?;
            exchange(&mut scene, &connection)?;
            let dropped = scene.loss.counts(0)?.dropped;
            scene.loss.set(&[lose(DATA).sent_from(connection.client_port).after(0, lost)])?;
            scene.send(&connection, MANY)?;
            scene.loss.wait_for_drops(0, dropped + 1)?;
            if lost != 1 {
                let timeouts = || Counters::read(&scene.netns)?.get("TcpExtTCPTimeouts");
                let before = timeouts()?;
                poll("a timeout", DEADLINE, || Ok((timeouts()? > before).then_some(())))?;
                scene.loss.heal()?;
            }
            scene.receive(&connection, MANY)?;
            exchange(&mut scene, &connection)?;
            scene.part(&connection)?;
        }
    }
    let outcome = scene.finish()?;
    let sums = Sums::of(&outcome.events);
    let counter = |name: &str| outcome.counters.get(name);
    let undone = taken_back(&outcome.counters)?;
    println!(
        "losses: TcpRetransSegs {}, TCPFastRetrans {}, TCPTimeouts {}; tcp.recoveries_undone {} = undone {undone}; \
         tcp.segments_spurious {}, DelayedACKLost {}",
        counter("TcpRetransSegs")?,
        counter("TcpExtTCPFastRetrans")?,
        counter("TcpExtTCPTimeouts")?,
        sums.recoveries,
        sums.spurious,
        counter("TcpExtDelayedACKLost")?
    );
    ensure!(counter("TcpExtTCPFastRetrans")? > 0 && counter("TcpExtTCPTimeouts")? > 0, "too little was lost");
    assert_eq!(undone, 0);
    assert_eq!((sums.recoveries, sums.spurious), (0, 0));
    Ok(())
}

/// Data is lost at random, and then acknowledgements. What is sent again for want of the former is needed, what for want of the
/// latter is not; nobody learns of every such segment, but what is said to have been needless had arrived.
fn mix_without_reports() -> Result<()> {
    const ROUNDS: u32 = 2;
    require!(has_tracepoint()?, "tracepoint tcp_cong_state_set", since = "5.19");
    let connections = if in_guest() { 4 } else { 20 };
    for congestion_control in ["cubic", "reno"] {
        let mut scene = silent_scene()?;
        let mut all = Vec::new();
        for address in LOOPBACKS {
            let port = scene.server.listen(address, "")?;
            for _ in 0..connections {
                all.push(scene.connect(address, port, &format!("mss=512 cc={congestion_control}"))?);
            }
        }
        for what in [DATA, BARE].repeat(ROUNDS as usize) {
            // Of data less: a segment that is lost again and again waits for ever longer timeouts.
            let percent = if what == DATA { 3 } else { 20 };
            scene.loss.set(&[lose(what).percent(percent)])?;
            for connection in &all {
                scene.send(connection, MANY)?;
            }
            for connection in &all {
                scene.receive(connection, MANY)?;
            }
            scene.loss.heal()?;
            // What it hears from there acknowledges all.
            for connection in &all {
                scene.server.tell(&format!("send {} {OCTETS} 1", connection.server))?;
                scene.client.tell(&format!("receive {} {OCTETS}", connection.client))?;
            }
        }
        for connection in &all {
            scene.part(connection)?;
        }
        let outcome = scene.finish()?;
        let sums = Sums::of(&outcome.events);
        let undone = taken_back(&outcome.counters)?;
        let twice = outcome.counters.get("TcpExtDelayedACKLost")?;
        let again = outcome.counters.get("TcpRetransSegs")?;
        println!(
            "mix, {congestion_control}: {} ends; tcp.recoveries_undone {} = undone {undone}; \
             tcp.segments_spurious {} of DelayedACKLost {twice}, TcpRetransSegs {again}",
            sums.connections, sums.recoveries, sums.spurious,
        );
        ensure!(undone > 0 && again > twice, "too little was lost in one of the ways");
        ensure!(sums.recoveries == undone, "{} recoveries, kernel {undone}", sums.recoveries);
        ensure!(sums.spurious <= twice, "{} segments, but only {twice} came twice", sums.spurious);
    }
    Ok(())
}
