//! `probe run`'s metrics of all segments and of round-trip times, against what the kernel counts in a namespace.
//!
//! Every test has a network namespace and a cgroup of its own, and `probe` keeps to that cgroup.
#![expect(clippy::print_stdout, reason = "the sums beside the kernel's are what a reader wants to see")]
#![expect(clippy::indexing_slicing, reason = "a test fails by panicking, its helpers too")]

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use probe_common::fields::{CONG_STATE, FIELDS};
use probe_common::testdrop::{BARE, DATA};
use probe_tests::counters::Counters;
use probe_tests::drop::{RuleExt as _, lose};
use probe_tests::live;
use probe_tests::otlp_receiver::{Point, PointValue, Receiver};
use probe_tests::probe::{DEADLINE, Probe, patient, poll};
use probe_user::kernel::btf::KernelBtf;
use probe_user::kernel::fields::resolve;

#[expect(dead_code, reason = "tests/tests/tcp.rs uses the rest")]
#[path = "tcp/scene.rs"]
mod scene;

use scene::{Connection, LOOPBACKS, SEGMENT, Scene};

const SEGMENTS: &str = "system.network.tcp.segments";
const SPURIOUS: &str = "system.network.tcp.retransmits.spurious";
const RTT: &str = "system.network.tcp.rtt";

live! {
    segments_are_those_the_kernel_counts
    spurious_retransmits_are_those_that_peers_report
    round_trip_times_of_connections_in_use
}

fn watch(scene_has: &Receiver) -> Result<Scene> {
    let endpoint = scene_has.endpoint();
    Scene::watched_by(|cgroup| start(cgroup.path(), &endpoint))
}

fn start(cgroup: &str, endpoint: &str) -> Result<Probe> {
    Probe::start(&["run", "--interval", "1s", "--cgroup", cgroup, "--otlp-endpoint", endpoint])
}

/// The newest value of each series of a counter.
fn latest(receiver: &Receiver, metric: &str) -> BTreeMap<BTreeMap<String, String>, i64> {
    let points = receiver.points().into_iter().filter(|point| point.name == metric);
    points
        .filter_map(|Point { attributes, value, .. }| match value {
            PointValue::Sum { value, .. } => Some((attributes, value as i64)),
            _ => None,
        })
        .collect()
}

fn sum(receiver: &Receiver, metric: &str, direction: &str) -> i64 {
    let series = latest(receiver, metric);
    let of = |attributes: &BTreeMap<String, String>| {
        direction.is_empty() || attributes.get("network.io.direction").is_some_and(|it| it == direction)
    };
    series.iter().filter(|(attributes, _)| of(attributes)).map(|(_, value)| value).sum()
}

/// Waits until a connection's ends have nothing in flight: what was sent is acknowledged, so that counters rest.
fn exchange(scene: &mut Scene, connection: &Connection, segments: u32) -> Result<()> {
    scene.send(connection, segments)?;
    scene.receive(connection, segments)?;
    scene.server.tell(&format!("send {} {SEGMENT} {segments}", connection.server))?;
    let octets = SEGMENT.parse::<u32>()? * segments;
    scene.client.tell(&format!("receive {} {octets}", connection.client))?;
    Ok(())
}

/// What sockets sent and received, as the kernel counts in the namespace. TcpOutSegs is without those sent again (RFC 1213).
/// Left out is what no connection's socket does: the SYN-ACK of a request, and in TIME_WAIT an ACK for a FIN. What is lost on its
/// way into a socket is in TcpInSegs.
fn kernels(scene: &Scene, time_waits: i64) -> Result<(i64, i64)> {
    let counters = Counters::read(&scene.netns)?;
    let get = |name: &str| counters.get(name);
    let lost = i64::try_from(scene.loss.counts(0)?.dropped)?;
    Ok((
        get("TcpOutSegs")? + get("TcpRetransSegs")? - get("TcpPassiveOpens")? - time_waits,
        get("TcpInSegs")? - lost - time_waits,
    ))
}

/// States of the namespace's sockets, in the numbers of /proc/net/tcp.
fn states(scene: &Scene) -> Result<Vec<String>> {
    let tables = [scene.netns.proc_net("tcp")?, scene.netns.proc_net("tcp6")?];
    let state = |line: &str| line.split_whitespace().nth(3).map(str::to_owned);
    Ok(tables.iter().flat_map(|table| table.lines().skip(1).filter_map(state)).collect())
}

fn segments_are_those_the_kernel_counts() -> Result<()> {
    const FIN_WAIT_1: &str = "04";
    const OPEN: usize = 20;
    let receiver = Receiver::start()?;
    let mut scene = watch(&receiver)?;
    // Those of connections that are older than probe are not counted, what they carry from then on is.
    let mut connections = Vec::new();
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        for _ in 0..OPEN / 4 {
            connections.push(scene.connect(address, port, "")?);
        }
    }
    for connection in &connections {
        exchange(&mut scene, connection, 7)?;
    }
    // What the first one counted is in series of its own; the second begins with none.
    let receiver = Receiver::start()?;
    let first = std::mem::replace(&mut scene.probe, start(scene.cgroup.path(), &receiver.endpoint())?);
    first.stop()?;
    let before = kernels(&scene, 0)?;

    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        for _ in 0..OPEN / 4 {
            connections.push(scene.connect(address, port, "")?);
        }
    }
    // Some are sent again, and are segments all the same.
    let first_port = connections[0].client_port;
    scene.loss.set(&[lose(DATA).sent_from(first_port).after(2, 1)])?;
    for connection in &connections {
        exchange(&mut scene, connection, 12)?;
    }
    require(&receiver, &scene, "open connections", before, 0)?;

    // They end, half of them by the client. Who ends first waits, and answers the other's FIN, once its own is acknowledged.
    let (by_client, by_server): (Vec<_>, Vec<_>) =
        connections.iter().enumerate().partition(|(i, _)| i % 2 == 0);
    by_client.iter().try_for_each(|(_, it)| scene.client.tell(&format!("close {}", it.client)).map(drop))?;
    by_server.iter().try_for_each(|(_, it)| scene.server.tell(&format!("close {}", it.server)).map(drop))?;
    poll("the acknowledgement of every FIN", DEADLINE, || {
        Ok((!states(&scene)?.contains(&FIN_WAIT_1.to_owned())).then_some(()))
    })?;
    by_client.iter().try_for_each(|(_, it)| scene.server.tell(&format!("close {}", it.server)).map(drop))?;
    by_server.iter().try_for_each(|(_, it)| scene.client.tell(&format!("close {}", it.client)).map(drop))?;
    let ended = i64::try_from(connections.len())?;
    require(&receiver, &scene, "ended connections", before, ended)?;
    scene.finish()?;
    Ok(())
}

/// `probe` has what the kernel has, and keeps to it.
fn require(
    receiver: &Receiver,
    scene: &Scene,
    what: &str,
    before: (i64, i64),
    time_waits: i64,
) -> Result<()> {
    let mut seen = (0, 0, 0, 0);
    let arrived = receiver.wait_for(what, patient(DEADLINE), |receiver| {
        let (out, taken) = kernels(scene, time_waits).ok()?;
        let (sent, received) = (sum(receiver, SEGMENTS, "transmit"), sum(receiver, SEGMENTS, "receive"));
        seen = (sent, out - before.0, received, taken - before.1);
        (sent == out - before.0 && received == taken - before.1).then_some(())
    });
    let (sent, out, received, taken) = seen;
    println!("{what}: sent {sent} = {out}, received {received} = {taken}");
    arrived
        .with_context(|| format!("{what}: sent {sent}, kernel {out}; received {received}, kernel {taken}"))?;
    // And does not rise when connections rest.
    let exports = receiver.metrics().len();
    receiver.wait_for("two more exports", patient(DEADLINE), |receiver| {
        (receiver.metrics().len() >= exports + 2).then_some(())
    })?;
    let after = (sum(receiver, SEGMENTS, "transmit"), sum(receiver, SEGMENTS, "receive"));
    ensure!(after == (sent, received), "{what}: {after:?} after {:?}", (sent, received));
    let types = latest(receiver, SEGMENTS);
    ensure!(
        types.len() == 4 && types.values().all(|value| *value > 0),
        "two directions, two families: {types:?}"
    );
    Ok(())
}

fn spurious_retransmits_are_those_that_peers_report() -> Result<()> {
    const TIMEOUTS: &str = "TcpExtTCPTimeouts";
    const REPORTS: &str = "TcpExtTCPDSACKRecvSegs";
    let counter = |scene: &Scene, name: &str| Counters::read(&scene.netns)?.get(name);
    let receiver = Receiver::start()?;
    let mut scene = watch(&receiver)?;
    // A tail loss probe is known from reports alone, and the first of those are lost.
    scene.netns.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_early_retrans", "0"))??;
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        let connection = scene.connect(address, port, "cc=cubic mss=512")?;
        exchange(&mut scene, &connection, 10)?;
        // The data arrives, what the peer says about it does not: until a timeout has been in vain.
        let (timeouts, reports) = (counter(&scene, TIMEOUTS)?, counter(&scene, REPORTS)?);
        scene.loss.set(&[lose(BARE).sent_from(port)])?;
        scene.send(&connection, 8)?;
        scene.receive(&connection, 8)?;
        poll("a timeout", DEADLINE, || Ok((counter(&scene, TIMEOUTS)? > timeouts).then_some(())))?;
        scene.loss.heal()?;
        // At the latest the next timeout's segment is answered by a report.
        poll("a report", DEADLINE, || Ok((counter(&scene, REPORTS)? > reports).then_some(())))?;
        exchange(&mut scene, &connection, 3)?;
    }
    let counters = |scene: &Scene| Counters::read(&scene.netns);
    // What the kernel took back is known, too: then it is all that the peers had already.
    let slots = resolve(&KernelBtf::from_host()?, FIELDS).slots;
    let sees_undo = slots.get(CONG_STATE.index).is_some_and(|slot| slot.present != 0);
    let known = if sees_undo { "TcpExtDelayedACKLost" } else { REPORTS };
    let mut seen = (0, 0);
    let arrived = receiver.wait_for("spurious retransmits", patient(DEADLINE), |receiver| {
        let kernel = counters(&scene).ok()?.get(known).ok()?;
        seen = (sum(receiver, SPURIOUS, ""), kernel);
        (kernel > 0 && seen.0 == kernel).then_some(())
    });
    let counters = counters(&scene)?;
    for name in
        ["TCPDSACKRecv", "TCPDSACKRecvSegs", "TCPFullUndo", "TCPLossUndo", "TCPSpuriousRTOs", "TCPTimeouts"]
    {
        println!("{name} {}", counters.get(&format!("TcpExt{name}"))?);
    }
    println!("{SPURIOUS}: {} = {known} {}", seen.0, seen.1);
    arrived?;
    ensure!(seen.0 >= counters.get(REPORTS)?, "{} spurious segments, but more were reported", seen.0);
    ensure!(latest(&receiver, SPURIOUS).len() == 2, "both families: {:?}", latest(&receiver, SPURIOUS));
    scene.finish()?;
    Ok(())
}

/// Samples and their sum in seconds, by family.
fn times(receiver: &Receiver) -> BTreeMap<String, (u64, f64)> {
    let points = receiver.points().into_iter().filter(|point| point.name == RTT);
    points
        .filter_map(|Point { attributes, value, .. }| match value {
            PointValue::Exponential { count, sum, .. } => {
                Some((attributes.get("network.type")?.clone(), (count, sum)))
            }
            _ => None,
        })
        .collect()
}

fn round_trip_times_of_connections_in_use() -> Result<()> {
    const SAMPLES: u64 = 3;
    let receiver = Receiver::start()?;
    let mut scene = watch(&receiver)?;
    let begun = Instant::now();
    for (address, family) in LOOPBACKS.into_iter().zip(["ipv4", "ipv6"]) {
        let port = scene.server.listen(address, "")?;
        let connection = scene.connect(address, port, "")?;
        // Idle beside it: no more than its handshake.
        let idle = scene.connect(address, port, "")?;
        let mut rtts = Vec::new();
        // In use until there are some samples: its own, and one each of the idle one and of the servers' ends at most.
        let end = Instant::now() + patient(DEADLINE);
        while times(&receiver).get(family).is_none_or(|(count, _)| *count < SAMPLES + 3) {
            ensure!(Instant::now() < end, "too few samples: {:?}", times(&receiver));
            exchange(&mut scene, &connection, 1)?;
            for (peer, number) in
                [(&mut scene.client, &connection.client), (&mut scene.server, &connection.server)]
            {
                rtts.push(peer.tell(&format!("srtt {number}"))?.parse::<u32>()?);
            }
        }
        rtts.push(scene.client.tell(&format!("srtt {}", idle.client))?.parse()?);
        let (count, sum) = times(&receiver)[family];
        let mean = sum / count as f64;
        let [least, most] =
            [rtts.iter().min(), rtts.iter().max()].map(|us| f64::from(*us.unwrap_or(&0)) / 1e6);
        println!("{family}: {count} samples, mean {mean}; TCP_INFO: {least} to {most}");
        // Handshakes are slower than what follows; and TCP_INFO is read between samples.
        ensure!(
            mean >= least / 2.0 && mean <= most * 2.0,
            "{mean} s, but TCP_INFO said {least} to {most}: {:?}",
            times(&receiver)
        );
        // Four ends, a sample a second each, and one for the second that has begun.
        let limit = 4 * (begun.elapsed().as_secs() + 1);
        ensure!(count <= limit, "{count} samples in {:?}", begun.elapsed());
        // Silent from here on: nothing is sampled any more.
        scene.part(&connection)?;
        scene.client.tell(&format!("close {}", idle.client))?;
        scene.server.tell("unlisten")?;
    }
    let settled = times(&receiver);
    let exports = |receiver: &Receiver| receiver.metrics().len();
    let before = exports(&receiver);
    receiver.wait_for("three more exports", patient(DEADLINE), |receiver| {
        (exports(receiver) >= before + 3).then_some(())
    })?;
    let after = times(&receiver);
    for (family, (count, _)) in &after {
        let known = settled.get(family).map_or(0, |(count, _)| *count);
        // What ended in the second before may have been seen once more.
        ensure!(*count <= known + 4, "connections that are silent were sampled: {settled:?}, {after:?}");
    }
    scene.finish()?;
    Ok(())
}
