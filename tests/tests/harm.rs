//! `probe` does no harm: however it ends, whatever fills up, and wherever the clock jumps.
#![expect(clippy::print_stdout, reason = "the figures are what a reader wants to see")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use probe_tests::bpf::{Objects, hooks};
use probe_tests::dns_server::{DnsServer, Script};
use probe_tests::drop::Cgroup;
use probe_tests::netns::Netns;
use probe_tests::otlp_receiver::{Point, PointValue, Receiver};
use probe_tests::probe::{
    Probe, attached_links, binary, command, expected_links, fdinfo, handles_interrupt, in_guest, poll,
};
use probe_tests::require::own_machine;
use probe_tests::traffic::Traffic;
use probe_tests::workload::Workload;
use probe_user::kernel::cgroup::CgroupRoot;
use probe_user::kernel::clock::rfc3339;
use rustix::process::{Pid, Signal, kill_process};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const PEER: &str = env!("CARGO_BIN_EXE_tcp_peer");
/// The agent with all that it does.
const AGENT: [&str; 5] = ["run", "--interval", "250ms", "-o", "json"];
/// How long the kernel may take to take back what a killed process held: it waits for grace periods.
const GONE: Duration = Duration::from_secs(20);

/// xorshift64: numbers that can be had again.
struct Random(u64);

impl Random {
    /// By the seed that `PROBE_TEST_SEED` gives, or another every time; it is printed.
    fn new() -> Result<Self> {
        let seed = match std::env::var("PROBE_TEST_SEED") {
            Ok(seed) => seed.parse()?,
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64,
        };
        println!("PROBE_TEST_SEED={seed}");
        Ok(Self(seed | 1))
    }

    /// From 0 to below 1.
    fn fraction(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How long a run goes on before it is killed: intervals end, maps are read.
const STEADY: Duration = Duration::from_millis(400);

/// When the agent is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Start,
    Run,
    Stop,
}

/// How long the parts of the agent's life take here that take their time.
#[derive(Debug)]
struct Life {
    start: Duration,
    stop: Duration,
    /// Names of all its maps.
    maps: BTreeSet<String>,
}

impl Life {
    fn measure(before: &Objects) -> Result<Self> {
        // It may have to be built first.
        binary()?;
        let begun = Instant::now();
        let probe = Probe::start(&["run", "--interval", "250ms"])?;
        let start = begun.elapsed();
        let ids: BTreeSet<u32> = fdinfo(probe.pid())?
            .iter()
            .filter_map(|info| {
                info.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok())
            })
            .collect();
        let now = Objects::now();
        let maps: BTreeSet<String> = ids.iter().filter_map(|id| now.maps.get(id).cloned()).collect();
        // So that nothing left means nothing left: what is there is seen.
        let ours = now.of_probe_since(before, &maps);
        let links = attached_links(probe.pid())?;
        ensure!(ours.programs.len() >= links && ours.links.len() >= links && links > 0, "{ours:?}");
        ensure!(maps.len() > 10 && ours.maps.len() >= maps.len(), "{ours:?}");
        let ending = Instant::now();
        probe.stop()?.require_complete()?;
        Ok(Self { start, stop: ending.elapsed(), maps })
    }
}

/// Starts the agent and kills it: while it starts, while it runs, or (told to end) while it stops, `share` of that part gone.
/// Returns what it was at.
fn live_until(part: Part, share: f64, life: &Life) -> Result<&'static str> {
    let mut child = command(AGENT)?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let id = child.id();
    let all = expected_links("run");
    match part {
        Part::Start => std::thread::sleep(life.start.mul_f64(share)),
        Part::Run | Part::Stop => {
            poll("probe is ready", GONE, || {
                Ok((attached_links(id)? >= all && handles_interrupt(id)?).then_some(()))
            })?;
            if part == Part::Stop {
                kill_process(i32::try_from(id).ok().and_then(Pid::from_raw).context("no pid")?, Signal::INT)?;
                // It takes less when it has done little.
                std::thread::sleep(life.stop.mul_f64(share / 2.0));
            } else {
                std::thread::sleep(STEADY.mul_f64(share));
            }
        }
    }
    let links = attached_links(id).unwrap_or(0);
    child.kill()?;
    let status = child.wait()?;
    Ok(match links {
        _ if status.code().is_some() => "ended before",
        _ if part == Part::Stop => "stopping",
        0 => "starting",
        links if links < all => "attaching",
        _ => "running",
    })
}

#[test]
fn killed_at_any_moment_it_leaves_nothing_and_disturbs_nothing() -> Result<()> {
    /// So many times, or as many as fit into this time where the machine is slow, but no fewer than that.
    const TIMES: usize = 50;
    const BUDGET: Duration = Duration::from_secs(100);
    const GUEST_BUDGET: Duration = Duration::from_secs(20);
    const LEAST: usize = 8;

    let mut random = Random::new()?;
    let root = CgroupRoot::find()?;
    let before = Objects::now();
    let hooks_before = hooks(root.fd.as_fd())?;
    let life = Life::measure(&before)?;
    let nothing_left = || {
        poll("nothing of a killed probe", GONE, || {
            let left = Objects::now().of_probe_since(&before, &life.maps);
            let hooked = hooks(root.fd.as_fd())? != hooks_before;
            Ok((left.is_empty() && !hooked).then_some(()))
        })
        .with_context(|| format!("left: {:?}", Objects::now().of_probe_since(&before, &life.maps)))
    };
    nothing_left()?;
    // Half of the times in the middle of its start, on average, else after it.
    let each = life.start.mul_f64(0.75) + STEADY / 2 + Duration::from_millis(100);
    let budget = if in_guest() { GUEST_BUDGET } else { BUDGET };
    let times = ((budget.as_secs_f64() / each.as_secs_f64()) as usize).clamp(LEAST, TIMES);
    println!("{times} times within a life of {life:?}");

    let traffic = Traffic::start()?;
    let mut parts: Vec<&str> = Vec::new();
    let mut longest = Duration::ZERO;
    for round in 0..times {
        // The start, where most happens, in even strata; the others at random.
        let part = [Part::Start, Part::Run, Part::Start, Part::Stop].get(round % 4).copied();
        let part = part.context("four")?;
        let fraction = random.fraction();
        let share = if part == Part::Start { (round as f64 + fraction) / times as f64 } else { fraction };
        parts.push(live_until(part, share, &life)?);
        let killed = Instant::now();
        nothing_left().with_context(|| format!("killed at {share} of its part, {parts:?}"))?;
        longest = longest.max(killed.elapsed());
        ensure!(traffic.goes_on(), "traffic came to its end: {:?}", traffic.stop());
    }
    let (lookups, connections) = traffic.stop()?;
    let count = |part| parts.iter().filter(|found| **found == part).count();
    let names = ["starting", "attaching", "running", "stopping", "ended before"];
    println!("killed while {:?}", names.map(|name| (name, count(name))));
    println!("the last of it was gone after {longest:?} at most; UDP {lookups:?}, TCP {connections:?}");
    ensure!(lookups.exchanges > 100 && connections.exchanges > 100, "hardly any traffic");
    ensure!(count("starting") + count("attaching") > 0 && count("running") > 0, "{parts:?}");
    // A short moment: a few throws may miss it.
    ensure!(times < TIMES || count("stopping") > 0, "{parts:?}");
    Ok(())
}

/// Where nobody answers.
const SILENT: &str = "127.0.0.9:53";
/// Port 1 of loopback: nobody listens in a namespace of our own.
const NOBODY: &str = "127.0.0.1:1";
/// Intervals and timeouts pass, on slow machines too.
const LONG: Duration = Duration::from_secs(180);

/// Maps as small as they get, their limits, and how full they may still be when the test's own is gone: entries for sockets
/// are not filtered, those of others are among them.
const SIZES: [&str; 12] = [
    "--tcp-sockets",
    "64",
    "--max-cgroups",
    "1",
    "--dns-pending",
    "16",
    "--syscall-blocks",
    "64",
    "--syscall-threads",
    "64",
    "--interval",
    "500ms",
];
const MAPS: [(&str, f64, f64); 9] = [
    ("tcp.sockets", 64.0, 20.0),
    ("tcp.listeners", 64.0, 20.0),
    ("tcp.totals", 16.0, 0.0),
    ("tcp.handshakes", 1.0, 0.0),
    // That of the cgroup that stays, if there was room when its connections ended.
    ("tcp.segments", 2.0, 1.0),
    ("dns.pending", 16.0, 0.0),
    ("syscalls.blocks", 64.0, 0.0),
    ("syscalls.sleepers", 64.0, 0.0),
    ("syscalls.processes", 64.0, 0.0),
];

/// What the agent says of its maps, export after export.
struct Said<'a> {
    receiver: &'a Receiver,
    /// Requests looked at.
    requests: usize,
    /// The newest value, by metric and map.
    newest: BTreeMap<(String, String), f64>,
    /// The first gauge that said more than its limit.
    beyond: Option<String>,
}

impl<'a> Said<'a> {
    fn by(receiver: &'a Receiver) -> Self {
        Self { receiver, requests: 0, newest: BTreeMap::new(), beyond: None }
    }

    /// Hears what is new.
    fn listen(&mut self) {
        let (points, requests) = self.receiver.points_after(self.requests);
        self.requests = requests;
        for point in points {
            let Some(map) = point.attributes.get("map") else { continue };
            let value = number(&point);
            let limit = MAPS.iter().find(|(name, ..)| name == map).map(|(_, limit, _)| *limit);
            if point.name == "probe.map.entries" && limit.is_none_or(|limit| value > limit) {
                self.beyond.get_or_insert_with(|| format!("{point:?}"));
            }
            self.newest.insert((point.name.clone(), map.clone()), value);
        }
    }

    fn get(&self, metric: &str, map: &str) -> Option<f64> {
        self.newest.get(&(metric.to_owned(), map.to_owned())).copied()
    }
}

fn number(point: &Point) -> f64 {
    match &point.value {
        PointValue::Sum { value, .. } | PointValue::Gauge(value) => *value,
        PointValue::Exponential { count, .. } | PointValue::Explicit { count, .. } => *count as f64,
    }
}

fn anonymous_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Puts more into every map than it takes, and ends all that it has put there. `parent` is the cgroup that is looked at.
fn overfill(netns: &Netns, parent: &Cgroup, listener: SocketAddr) -> Result<()> {
    let start = |program, cgroup: &Cgroup| -> Result<Workload> {
        let workload = netns.run(|| Workload::start(program))??;
        cgroup.add(workload.pid())?;
        Ok(workload)
    };
    // Totals and handshakes: cgroups that have some of each.
    for number in 0..8 {
        let cgroup = parent.below(&format!("totals-{number}"))?;
        let mut peer = start(PEER, &cgroup)?;
        peer.tell(&format!("connect {listener}"))?;
        peer.tell(&format!("connect {NOBODY}"))?;
        peer.end()?;
    }
    let mut peer = start(PEER, parent)?;
    // Sockets, and their other ends; listeners.
    for _ in 0..70 {
        peer.tell(&format!("connect {listener}"))?;
        peer.tell("listen 127.0.0.1:0")?;
    }
    let mut workload = start(WORKLOAD, parent)?;
    for id in 0..40 {
        workload.tell(&format!("send {SILENT} {id} silent.test"))?;
    }
    workload.tell("sleepers 150 300")?;
    // Processes, and more blocks than there are.
    workload.tell("crowd 80")?;
    peer.end()?;
    workload.end()
}

#[test]
fn full_maps_are_counted_cleaned_and_cost_no_memory() -> Result<()> {
    /// Times after the first.
    const AGAIN: usize = 3;
    /// What the allocator may keep.
    const FLAT_KIB: u64 = 2048;

    let netns = Netns::new()?;
    let listener = netns.run(|| TcpListener::bind("127.0.0.1:0"))??;
    let address = listener.local_addr()?;
    // Keeps connections until the other end closes them. It ends with this process.
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut &connection, &mut std::io::sink()));
        }
    });
    let _silent = netns.run(|| std::net::UdpSocket::bind(SILENT))??;
    let parent = Cgroup::new()?;
    let receiver = Receiver::start()?;
    let endpoint = receiver.endpoint();
    let arguments = ["run", "--otlp-events", "none", "--otlp-endpoint", &endpoint, "--cgroup", parent.path()];
    let probe = Probe::start(&[&arguments[..], &SIZES].concat())?;

    overfill(&netns, &parent, address)?;
    let mut said = Said::by(&receiver);
    receiver.wait_for("inserts that failed, of every map", LONG, |_| {
        said.listen();
        let failed = |map| said.get("probe.map.insert_failures", map).is_some_and(|count| count > 0.0);
        MAPS.iter().all(|(map, ..)| failed(map)).then_some(())
    })?;
    for (map, limit, _) in MAPS {
        ensure!(said.get("probe.map.limit", map) == Some(limit), "{map}: {:?}", said.newest);
    }
    let first_kib = anonymous_kib(probe.pid())?;
    for _ in 0..if in_guest() { 1 } else { AGAIN } {
        overfill(&netns, &parent, address)?;
    }
    // What was there is gone: sockets, listeners, processes and threads at once, questions by their timeout, cgroups after a
    // while.
    let emptied = receiver.wait_for("empty maps", LONG, |_| {
        said.listen();
        let emptied = |map, others| said.get("probe.map.entries", map).is_some_and(|n| n <= others);
        MAPS.iter().all(|(map, _, others)| emptied(map, *others)).then_some(())
    });
    emptied.with_context(|| format!("{:?}", said.newest))?;
    let last_kib = anonymous_kib(probe.pid())?;
    println!("anonymous memory {first_kib} KiB, in the end {last_kib} KiB; {:?}", said.newest);
    ensure!(last_kib <= first_kib + FLAT_KIB, "it grew from {first_kib} KiB to {last_kib} KiB");

    // No gauge ever said more than its limit; every map's loss is said, with what helps.
    ensure!(said.beyond.is_none(), "{:?}", said.beyond);
    let finished = probe.stop()?;
    for (map, ..) in MAPS {
        let signal = map.split('.').next().unwrap_or_default();
        let place = if map == "syscalls.blocks" { "syscalls.folded" } else { map };
        let lost = finished.lost(signal, place)?;
        ensure!(lost.count > 0 && lost.remedy.starts_with("raise --"), "{place}: {}", finished.stderr);
    }
    Ok(())
}

/// What the programs count per CPU is summed over all CPUs, and those that may still come are none too many.
#[test]
fn every_cpu_counts_and_those_that_may_come_do_no_harm() -> Result<()> {
    const CALLS: u32 = 1000;
    const CONNECTIONS: u32 = 5;

    let online = std::thread::available_parallelism()?.get();
    let possible = aya::util::nr_cpus().map_err(|(file, error)| anyhow::anyhow!("{file}: {error}"))?;
    if let Ok(told) = std::env::var("PROBE_TEST_POSSIBLE_CPUS") {
        ensure!(possible == told.parse::<usize>()?, "{possible} CPUs are possible, not {told}");
    }
    println!("{online} CPUs are online, {possible} possible");
    let cpus = aya::util::online_cpus().map_err(|(file, error)| anyhow::anyhow!("{file}: {error}"))?;
    let netns = Netns::new()?;
    let listener = netns.run(|| TcpListener::bind("127.0.0.1:0"))??;
    let target = listener.local_addr()?;
    let container = "00112233445566778899aabbccddeeff".repeat(2);
    let outer = Cgroup::new()?;
    let docker = outer.below("docker")?;
    let cgroup = docker.below(&container)?;
    let mut workload = netns.run(|| Workload::start(WORKLOAD))??;
    cgroup.add(workload.pid())?;
    let receiver = Receiver::start()?;
    let endpoint = receiver.endpoint();
    let probe = Probe::start(&["run", "--interval", "500ms", "--otlp-endpoint", &endpoint])?;
    for cpu in &cpus {
        workload.tell(&format!("pin {cpu}"))?;
        workload.tell(&format!("getppid {CALLS}"))?;
        for _ in 0..CONNECTIONS {
            workload.tell(&format!("connect {target}"))?;
            listener.accept()?;
        }
    }
    probe.stop()?.require_complete()?;
    let sum = |name: &str, key: &str, value: &str| {
        let of_ours = |point: &&Point| {
            point.name == name
                && point.resource.get("container.id") == Some(&container)
                && point.attributes.get(key).map(String::as_str) == Some(value)
        };
        receiver.points().iter().rfind(of_ours).map(number)
    };
    let times = |each: u32| Some(f64::from(each) * cpus.len() as f64);
    for (name, key, value, each) in [
        ("process.syscall.duration", "syscall.name", "getppid", CALLS),
        ("system.network.tcp.connections", "network.tcp.handshake.role", "client", CONNECTIONS),
        ("system.network.tcp.handshake.duration", "network.tcp.handshake.role", "client", CONNECTIONS),
    ] {
        let found = sum(name, key, value);
        ensure!(found == times(each), "{name}: {found:?} on {cpus:?}, {each} on each");
    }
    workload.end()
}

/// Sets the wall clock, and back when it is dropped: to what it would be by now.
struct WallClock {
    wall: Duration,
    since: Instant,
}

impl WallClock {
    fn now() -> Result<Self> {
        Ok(Self { wall: SystemTime::now().duration_since(UNIX_EPOCH)?, since: Instant::now() })
    }

    /// So many seconds off the truth.
    fn set_off(&self, seconds: i64) -> Result<()> {
        let truth = self.wall + self.since.elapsed();
        let time = rustix::time::Timespec {
            tv_sec: i64::try_from(truth.as_secs())? + seconds,
            tv_nsec: i64::from(truth.subsec_nanos()),
        };
        Ok(rustix::time::clock_settime(rustix::time::ClockId::Realtime, time)?)
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        if let Err(error) = self.set_off(0) {
            println!("the clock could not be set back: {error}");
        }
    }
}

/// Durations are differences of a clock that nobody sets; times of events are the wall clock's, whatever it says.
#[test]
fn a_clock_that_is_set_disturbs_no_duration() -> Result<()> {
    const HOUR: i64 = 3600;
    /// How long the answer takes, and the pipe: the clock is set meanwhile.
    const HELD: Duration = Duration::from_millis(600);
    const SERVER: &str = "127.0.0.2:53";
    const MINUTE_NS: u64 = 60_000_000_000;

    // Everything on a machine shares its clock.
    if !own_machine("setting the clock")? {
        return Ok(());
    }
    let netns = Netns::new()?;
    let scripts = [("held.test", Script::after(HELD))];
    let _server = netns.run(|| DnsServer::start(&[SERVER.parse::<SocketAddr>()?], &scripts))??;
    let cgroup = Cgroup::new()?;
    let mut workload = netns.run(|| Workload::start(WORKLOAD))??;
    cgroup.add(workload.pid())?;
    let probe = Probe::start(&["run", "--interval", "500ms", "--cgroup", cgroup.path()])?;
    let clock = WallClock::now()?;
    for (round, seconds) in [HOUR, 0, -HOUR, 0].into_iter().enumerate() {
        let begun = Instant::now();
        workload.order(&format!("ask {SERVER} {round} held.test"))?;
        std::thread::sleep(HELD / 4);
        clock.set_off(seconds)?;
        workload.hear()?;
        let at_most = begun.elapsed().as_secs_f64();
        let lines = probe.wait_for("the lookup", LONG, |lines| {
            let lookups: Vec<_> = lines.iter().filter(|line| line.event() == "dns.lookup").cloned().collect();
            (lookups.len() > round).then_some(lookups)
        })?;
        let line = lines.get(round).context("just seen")?;
        let duration = line.float("duration").context("no duration")?;
        ensure!((HELD.as_secs_f64()..=at_most).contains(&duration), "{seconds}: {}", line.0);
        let time = line.text("time").context("no time")?;
        let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
        // As text, as good as numbers: all digits are written.
        let around = rfc3339(now - MINUTE_NS)..rfc3339(now + MINUTE_NS);
        ensure!(around.contains(&time.to_owned()), "{seconds}: the clock says {around:?}: {}", line.0);
    }
    drop(clock);
    let finished = probe.stop()?;
    finished.require_complete()?;
    workload.end()
}
