//! `probe` does no harm: however it ends, whatever fills up, and wherever the clock jumps.
#![expect(clippy::print_stdout, reason = "the figures are what a reader wants to see")]

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use probe_tests::bpf::{Objects, hooks};
use probe_tests::probe::{Probe, attached_links, binary, command, fdinfo, handles_interrupt, poll};
use probe_tests::traffic::Traffic;
use probe_user::kernel::cgroup::CgroupRoot;
use rustix::process::{Pid, Signal, kill_process};

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
    let all: usize = probe_user::signals::ALL.iter().map(|kind| kind.object().programs.len()).sum();
    match part {
        Part::Start => std::thread::sleep(life.start.mul_f64(share)),
        Part::Run | Part::Stop => {
            poll("probe is ready", GONE, || {
                Ok((attached_links(id)? >= all && handles_interrupt(id)?).then_some(()))
            })?;
            if part == Part::Stop {
                kill_process(i32::try_from(id).ok().and_then(Pid::from_raw).context("no pid")?, Signal::INT)?;
                std::thread::sleep(life.stop.mul_f64(share));
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
    const BUDGET: Duration = Duration::from_secs(75);
    const LEAST: usize = 12;

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
    let times = ((BUDGET.as_secs_f64() / each.as_secs_f64()) as usize).clamp(LEAST, TIMES);
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
