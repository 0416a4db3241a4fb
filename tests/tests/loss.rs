//! Rings too small for what is made: delivered and lost together are what was produced, to the record.
//!
//! What was produced is told by who produced it, and by the kernel's own counters.
#![expect(clippy::print_stdout, reason = "the sums are what a reader wants to see")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use probe_common::syscalls::SlowRecord;
use probe_tests::blind::BlindSpot;
use probe_tests::counters::Counters;
use probe_tests::drop::Cgroup;
use probe_tests::flood::flood;
use probe_tests::flooding::Reflector;
use probe_tests::netns::Netns;
use probe_tests::probe::{Line, Probe, require_root};
use probe_tests::workload::Workload;
use rustix::process::Signal;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const SERVER: &str = "127.0.0.2:53";
/// Port 1 of loopback: nobody listens in a namespace of our own.
const NOBODY: &str = "127.0.0.1:1";
/// The smallest ring there is, and how it is asked for.
const SMALL: [&str; 2] = ["--ring-kib", "4"];
const SMALL_BYTES: u64 = 4096;
/// How long a flood lasts.
const LONG: &str = "700";

/// A flood of one signal.
struct Flood {
    signal: &'static str,
    /// More arguments for `probe`.
    options: &'static [&'static str],
    /// What the workload does, without how long and where.
    order: [&'static str; 2],
    /// Events that are delivered records.
    event: &'static str,
    /// Bytes of a record, its header in the ring included, and how many of the smallest rings this one is.
    record: u64,
    rings: u64,
    /// How often the kernel says that it happened in the network namespace, where it does.
    kernel: Option<&'static str>,
}

const FLOODS: [Flood; 3] = [
    Flood {
        signal: "dns",
        options: &["--timeout", "10m"],
        order: ["lookups", SERVER],
        event: "dns.lookup",
        record: 376 + 8,
        rings: 4,
        // Each lookup is two datagrams.
        kernel: Some("UdpInDatagrams"),
    },
    Flood {
        signal: "tcp",
        options: &["--kind", "failed"],
        order: ["refused", NOBODY],
        event: "tcp.connect",
        record: 128 + 8,
        rings: 1,
        kernel: Some("TcpAttemptFails"),
    },
    Flood {
        signal: "syscalls",
        options: &["--syscall", "getppid", "--slower-than", "1ns"],
        order: ["getppid", ""],
        event: "syscall.slow",
        record: 440 + 8,
        rings: 1,
        kernel: None,
    },
];

impl Flood {
    /// Floods for a while. Returns how often it happened.
    fn run(&self, workload: &mut Workload, milliseconds: &str) -> Result<u64> {
        let [what, target] = self.order;
        Ok(workload.tell(&format!("flood {what} {milliseconds} {target}"))?.parse()?)
    }

    fn test(&self) -> Result<()> {
        let netns = Netns::new()?;
        let _server = netns.run(|| Reflector::start(SERVER.parse::<SocketAddr>()?))??;
        let cgroup = Cgroup::new()?;
        let mut workload = netns.run(|| Workload::start(WORKLOAD))??;
        cgroup.add(workload.pid())?;
        // So that all that the programs produce, and all that they lose, is this workload's.
        let arguments = [&[self.signal, "--cgroup", cgroup.path()], self.options, &SMALL].concat();
        let blind_spot = BlindSpot::watch();
        let probe = Probe::start(&arguments)?;
        let kernel = |name| -> Result<u64> { Ok(Counters::read(&netns)?.get(name)?.try_into()?) };
        let before = self.kernel.map(kernel).transpose()?;

        // Nobody reads: only so much as there is room for is kept.
        probe.signal(Signal::STOP)?;
        let unread = self.run(&mut workload, "200")?;
        let room = self.rings * SMALL_BYTES / self.record;
        ensure!(unread > room, "{unread} would have had room");
        probe.signal(Signal::CONT)?;
        // And with the reader at work.
        let produced = unread + self.run(&mut workload, LONG)?;
        let after = self.kernel.map(kernel).transpose()?;
        let finished = probe.stop()?;

        if let (Some(before), Some(after)) = (before, after) {
            let each = if self.signal == "dns" { 2 } else { 1 };
            ensure!(
                after - before == each * produced,
                "the kernel says {before} and {after}, not {produced}"
            );
        }
        let delivered = finished.delivered(self.signal)?;
        let ring = finished.lost(self.signal, "ring")?;
        let skipped = finished.lost(self.signal, "programs")?.count;
        let hidden = blind_spot.map_or(0, |blind_spot| blind_spot.hits().unwrap_or(0));
        println!(
            "{}: produced {produced}, delivered {delivered}, lost {} (skipped runs {skipped}, hidden {hidden})",
            self.signal, ring.count
        );
        let accounted = delivered + ring.count;
        // Runs that the kernel left out, if there were any, made no record.
        let left_out = skipped + u64::try_from(hidden)?;
        ensure!(
            accounted <= produced && produced - accounted <= left_out,
            "{} of {produced} are accounted for, {left_out} runs were left out: {}",
            accounted,
            finished.stderr
        );
        ensure!(ring.count >= unread - room - left_out, "nobody read {unread}, there was room for {room}");
        ensure!(ring.remedy == "raise --ring-kib", "{}", finished.stderr);

        // Every record delivered is a line, and what the lines say is lost is what was lost.
        let lines = |event: &str| finished.lines.iter().filter(|line| line.event() == event).count();
        ensure!(u64::try_from(lines(self.event))? == delivered, "{} lines", lines(self.event));
        let of_ring = |line: &&Line| line.event() == "probe.loss" && line.text("where") == Some("ring");
        let told: i64 = finished.lines.iter().filter(of_ring).filter_map(|line| line.int("count")).sum();
        ensure!(u64::try_from(told)? == ring.count, "the lines tell of {told}");
        workload.end()
    }
}

fn flood_of(signal: &str) -> Result<()> {
    FLOODS.iter().find(|flood| flood.signal == signal).context("no flood of that signal")?.test()
}

#[test]
fn lookups_that_a_small_ring_does_not_hold_are_counted() -> Result<()> {
    flood_of("dns")
}

#[test]
fn connections_that_a_small_ring_does_not_hold_are_counted() -> Result<()> {
    flood_of("tcp")
}

#[test]
fn slow_calls_that_a_small_ring_does_not_hold_are_counted() -> Result<()> {
    flood_of("syscalls")
}

/// The remedy helps: what found no room finds it in a larger ring.
#[test]
fn a_larger_ring_holds_what_a_small_one_lost() -> Result<()> {
    let mut workload = Workload::start(WORKLOAD)?;
    let pid = workload.pid().to_string();
    let calls = 2 * SMALL_BYTES / (size_of::<SlowRecord>() as u64 + 8);
    for (ring_kib, all) in [("4", false), ("16", true)] {
        let options = ["--syscall", "getppid", "--slower-than", "1ns", "--ring-kib", ring_kib];
        let probe = Probe::start(&[&["syscalls", "--pid", &pid], &options[..]].concat())?;
        probe.signal(Signal::STOP)?;
        workload.tell(&format!("getppid {calls}"))?;
        probe.signal(Signal::CONT)?;
        let finished = probe.stop()?;
        let (delivered, lost) = (finished.delivered("syscalls")?, finished.lost("syscalls", "ring")?.count);
        ensure!(delivered + lost == calls, "{ring_kib} KiB: {delivered} and {lost} of {calls}");
        ensure!((lost == 0) == all, "{ring_kib} KiB: {lost} of {calls} were lost");
    }
    workload.end()
}

/// A million a second and more, through the code that all programs emit with and the reader that the agent reads with.
#[test]
fn a_flood_through_the_emit_code_is_accounted_for_to_the_record() -> Result<()> {
    require_root()?;
    for (ring_kib, long) in [(4, false), (256, false), (16_384, true)] {
        let outcome = flood(ring_kib * 1024, Duration::from_millis(if long { 200 } else { 500 }))?;
        let (offered, delivered) = outcome.rates();
        println!(
            "ring of {ring_kib} KiB: {outcome:?}; {offered:.0} offered a second, {delivered:.0} delivered"
        );
        ensure!(outcome.delivered + outcome.lost == outcome.offered, "{outcome:?}");
        ensure!(outcome.delivered == outcome.produced, "{outcome:?}");
        // Both ways were taken: the small ring overflowed, and went round many times.
        let room = u64::from(ring_kib) * 1024 / 136;
        ensure!(ring_kib > 4 || (outcome.lost > 0 && outcome.delivered > 10 * room), "{outcome:?}");
    }
    Ok(())
}
