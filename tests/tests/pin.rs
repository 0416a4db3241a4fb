//! `probe run --pin`: what one agent has counted the next goes on with, and what happened in between is counted; who cannot go on says
//! why, and begins anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use probe_tests::blind::BlindSpot;
use probe_tests::bpf::Objects;
use probe_tests::counters::Counters;
use probe_tests::netns::Netns;
use probe_tests::otlp_receiver::{Point, PointValue, Receiver};
use probe_tests::probe::{Finished, Probe, in_guest, poll, require_root, run};
use probe_tests::require::own_host;
use probe_tests::workload::Workload;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

const STEADY: &str = env!("CARGO_BIN_EXE_steady");
const LONG: Duration = Duration::from_secs(60);

/// A BPF file system of the test's own.
struct BpfFs(PathBuf);

impl BpfFs {
    fn mount(name: &str) -> Result<Self> {
        require_root()?;
        let path = std::env::temp_dir().join(format!("probe-pin-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        mount("bpf", &path, "bpf", MountFlags::empty(), None).context("cannot mount a BPF file system")?;
        Ok(Self(path))
    }

    fn pins(&self) -> PathBuf {
        self.0.join("probe")
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        // With it goes everything that is pinned there.
        let _unmounted = unmount(&self.0, UnmountFlags::DETACH);
        let _removed = std::fs::remove_dir(&self.0);
    }
}

/// Somebody who calls, asks, connects and loses packets, in a cgroup and a network namespace of its own.
struct Load {
    netns: Netns,
    workload: Workload,
    cgroup: String,
}

/// Of each how many: what the load made, or what was told of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    calls: u64,
    lookups: u64,
    connections: u64,
    retransmits: u64,
}

impl Load {
    fn start() -> Result<Self> {
        let netns = Netns::new()?;
        let workload = netns.run(|| Workload::start(STEADY))??;
        let pid = workload.pid();
        let cgroup = poll("the load is in its cgroup", LONG, || {
            let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
            let path = text.lines().find_map(|line| line.strip_prefix("0::"));
            Ok(path.filter(|path| path.contains(&format!("probe-test-{pid}"))).map(str::to_owned))
        })?;
        Ok(Self { netns, workload, cgroup })
    }

    fn begin(&mut self, milliseconds: u32) -> Result<()> {
        self.workload.order(&format!("steady 2000 200 60 20 {milliseconds}"))
    }

    fn made(&mut self) -> Result<Counts> {
        let answer = self.workload.hear()?;
        let numbers: Vec<u64> = answer.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [calls, lookups, connections, _] = *numbers.as_slice() else {
            anyhow::bail!("{answer}");
        };
        // Every fourth of its calls is getppid.
        Ok(Counts { calls: calls / 4, lookups, connections, retransmits: self.retransmits()? })
    }

    /// What the kernel has counted of segments sent again, in the load's network namespace: without those that did not leave.
    fn retransmits(&self) -> Result<u64> {
        let counters = Counters::read(&self.netns)?;
        Ok(u64::try_from(counters.get("TcpRetransSegs")? - counters.get("TcpExtTCPRetransFail")?)?)
    }

    fn agent(&self, receiver: &Receiver, pin: Option<&Path>, more: &[&str]) -> Result<Probe> {
        let endpoint = receiver.endpoint();
        let mut args =
            vec!["run", "--interval", "500ms", "--otlp-endpoint", &endpoint, "--otlp-events", "none"];
        args.extend(["--cgroup", &self.cgroup, "--ring-kib", "1024"]);
        let pin = pin.map(|pin| format!("--pin={}", pin.display()));
        args.extend(pin.as_deref());
        args.extend(more);
        Probe::start(&args)
    }
}

/// Whether all was told that was made, but for segments sent again that the kernel showed to no BPF program.
fn is_whole(made: Counts, told: Counts, hidden: u64) -> bool {
    Counts { retransmits: 0, ..told } == Counts { retransmits: 0, ..made }
        && (made.retransmits.saturating_sub(hidden)..=made.retransmits).contains(&told.retransmits)
}

/// Which of the counts.
type Place = fn(&mut Counts) -> &mut u64;

/// What a point stands for, if it is one of the load's.
fn counted(point: &Point) -> Option<(Place, u64)> {
    let value = match &point.value {
        PointValue::Sum { value, .. } => *value as u64,
        PointValue::Exponential { count, .. } | PointValue::Explicit { count, .. } => *count,
        PointValue::Gauge(_) => return None,
    };
    let is = |key: &str, value: &str| point.attributes.get(key).is_some_and(|found| found == value);
    let place: Place = match point.name.as_str() {
        "process.syscall.duration" if is("syscall.name", "getppid") => |counts| &mut counts.calls,
        "dns.lookup.duration" | "dns.lookup.unanswered" => |counts| &mut counts.lookups,
        "system.network.tcp.connections"
            if is("network.tcp.handshake.role", "client") && !point.attributes.contains_key("error.type") =>
        {
            |counts| &mut counts.connections
        }
        "system.network.tcp.retransmits" => |counts| &mut counts.retransmits,
        _ => return None,
    };
    Some((place, value))
}

/// What a backend makes of cumulative points: of each series, by its start, the last.
fn told(points: &[Point]) -> Counts {
    let mut series = BTreeMap::new();
    for point in points {
        if let Some((place, value)) = counted(point) {
            let key = (&point.resource, &point.name, &point.attributes, point.start);
            series.insert(key, (place, value));
        }
    }
    let mut sum = Counts::default();
    for (place, value) in series.into_values() {
        *place(&mut sum) += value;
    }
    sum
}

/// No series falls, and none begins anew.
fn never_falls(points: &[Point]) -> Result<()> {
    let mut series: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for point in points {
        if let Some((_, value)) = counted(point) {
            let key = (&point.resource, &point.name, &point.attributes);
            let (start, before) = series.entry(key).or_insert((point.start, value));
            ensure!(*start == point.start && *before <= value, "{before} since {start}, then {point:?}");
            *before = value;
        }
    }
    ensure!(!series.is_empty(), "no series at all");
    Ok(())
}

struct Restart {
    made: Counts,
    points: Vec<Point>,
    /// Segments sent again between the end of the first agent and the start of the second, by the kernel's count.
    between: u64,
    /// How often the kernel hid one of TCP's hooks from BPF programs: [`BlindSpot`].
    hidden: u64,
}

/// One agent after the other beside a load that goes on.
fn restart(pin: Option<&Path>, more: &[&str]) -> Result<Restart> {
    // Without ftrace nothing is excused.
    let blind_spot = BlindSpot::watch().ok();
    let (receiver, mut load) = (Receiver::start()?, Load::start()?);
    let first = load.agent(&receiver, pin, more)?;
    load.begin(8_000)?;
    receiver.wait_for("what the first agent tells", LONG, |receiver| {
        (told(&receiver.points()).retransmits != 0).then_some(())
    })?;
    let ending = load.retransmits()?;
    first.stop()?.require_complete()?;
    // The kernel's own word that time has passed in which something happened.
    poll("losses while no agent runs", LONG, || Ok((load.retransmits()? >= ending + 8).then_some(())))?;
    let second = load.agent(&receiver, pin, more)?;
    let between = load.retransmits()? - ending;
    let made = load.made()?;
    let finished = second.stop()?;
    finished.require_complete()?;
    let hidden = blind_spot.map_or(Ok(0), |blind_spot| blind_spot.hits())?;
    Ok(Restart { made, points: receiver.points(), between, hidden: hidden.try_into()? })
}

/// Its load wants two CPUs of its own.
const SLOW: &str = "a restart under load";

#[test]
fn a_successor_misses_nothing() -> Result<()> {
    if in_guest() {
        return own_host(SLOW);
    }
    let files = BpfFs::mount("successor")?;
    let Restart { made, points, between, hidden } = restart(Some(&files.pins()), &[])?;
    println!(
        "with --pin: made {made:?}, told {:?}; {between} segments sent again in between, {hidden} hidden",
        told(&points)
    );
    never_falls(&points)?;
    ensure!(
        is_whole(made, told(&points), hidden),
        "made {made:?}, told {:?}, {hidden} hidden",
        told(&points)
    );
    Ok(())
}

#[test]
fn without_pins_what_happened_in_between_is_missing_and_no_more() -> Result<()> {
    if in_guest() {
        return own_host(SLOW);
    }
    let Restart { made, points, between, hidden } = restart(None, &[])?;
    let told = told(&points);
    println!(
        "without --pin: made {made:?}, told {told:?}; {between} segments sent again in between, {hidden} hidden"
    );
    for (what, made, told) in [
        ("calls", made.calls, told.calls),
        ("lookups", made.lookups, told.lookups),
        ("connections", made.connections, told.connections),
        ("retransmits", made.retransmits, told.retransmits),
    ] {
        ensure!(told < made, "{what}: {told} told of {made}: nothing happened in between");
    }
    ensure!(
        made.retransmits - told.retransmits <= between + hidden,
        "{between} in between, {hidden} hidden: {made:?}, {told:?}"
    );
    Ok(())
}

#[test]
fn deltas_go_on_too() -> Result<()> {
    if in_guest() {
        return own_host(SLOW);
    }
    let files = BpfFs::mount("deltas")?;
    let Restart { made, points, hidden, .. } =
        restart(Some(&files.pins()), &["--otlp-temporality", "delta"])?;
    let mut told = Counts::default();
    for point in &points {
        if let Some((place, value)) = counted(point) {
            ensure!(point.cumulative == Some(false), "{point:?}");
            *place(&mut told) += value;
        }
    }
    ensure!(is_whole(made, told, hidden), "made {made:?}, told {told:?}, {hidden} hidden");
    Ok(())
}

fn agent(pins: &Path, more: &[&str]) -> Result<Probe> {
    let pin = format!("--pin={}", pins.display());
    Probe::start(&[&["run", "--interval", "300ms", "-v", &pin], more].concat())
}

fn says(finished: &Finished, words: &str) -> Result<()> {
    ensure!(finished.stderr.contains(words), "not {words:?}: {}", finished.stderr);
    Ok(())
}

#[test]
fn who_cannot_go_on_says_why_and_begins_anew() -> Result<()> {
    let files = BpfFs::mount("anew")?;
    let pins = files.pins();
    says(&agent(&pins, &[])?.stop()?, "wait for the next agent")?;
    says(&agent(&pins, &[])?.stop()?, "going on where the agent before has left")?;
    says(&agent(&pins, &["--ring-kib", "512"])?.stop()?, "cannot be taken over: its maps have other sizes")?;
    // Who is killed leaves programs, and no totals.
    let killed = agent(&pins, &["--ring-kib", "512"])?;
    let pid = Pid::from_raw(i32::try_from(killed.pid())?).context("a pid")?;
    kill_process(pid, Signal::KILL)?;
    drop(killed);
    says(&agent(&pins, &["--ring-kib", "512"])?.stop()?, "left no totals")?;
    says(&agent(&pins, &["--ring-kib", "512"])?.stop()?, "going on where the agent before has left")?;
    Ok(())
}

#[test]
fn two_at_once_are_refused_and_so_is_no_bpf_file_system() -> Result<()> {
    let files = BpfFs::mount("refused")?;
    let pins = files.pins();
    let first = agent(&pins, &[])?;
    let refused = |directory: &Path, words: &str| -> Result<()> {
        let ended = run(["run", "--duration", "1s", &format!("--pin={}", directory.display())])?;
        let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
        ensure!(ended.status.code() == Some(2) && stderr.contains(words), "{:?}: {stderr}", ended.status);
        Ok(())
    };
    refused(&pins, "another probe uses it")?;
    refused(&std::env::temp_dir().join("probe-pins"), "no BPF file system")?;
    refused(&files.0.join("absent/probe"), "No such file")?;
    first.stop()?.require_complete()
}

#[test]
fn removing_the_directory_ends_everything() -> Result<()> {
    let files = BpfFs::mount("removed")?;
    let before = Objects::now();
    agent(&files.pins(), &[])?.stop()?.require_complete()?;
    let names: std::collections::BTreeSet<String> = Objects::now()
        .maps
        .into_iter()
        .filter(|(id, _)| !before.maps.contains_key(id))
        .map(|(_, name)| name)
        .collect();
    let left = Objects::now().of_probe_since(&before, &names);
    ensure!(!left.links.is_empty() && !left.maps.is_empty(), "nothing is pinned: {left:?}");
    std::fs::remove_dir_all(files.pins())?;
    let taken_back = || {
        poll("the kernel takes everything back", LONG, || {
            Ok(Objects::now().of_probe_since(&before, &names).is_empty().then_some(()))
        })
    };
    taken_back()?;
    // Under an agent that runs, too: it goes on, and leaves nothing.
    let running = agent(&files.pins(), &[])?;
    std::fs::remove_dir_all(files.pins())?;
    let ended = running.stop()?;
    ended.require_complete()?;
    says(&ended, "it was removed while probe ran")?;
    taken_back()
}
