//! `probe run --program-stats`: what the kernel says of each program is what is exported, and without the privilege it is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use probe_tests::bpf::preempts_programs;
use probe_tests::otlp_receiver::{Point, PointValue, Receiver};
use probe_tests::privileges::{LEAST, PublicCopy, as_nobody, of_threads};
use probe_tests::probe::{Probe, command, fdinfo, patient, require_root};
use probe_tests::workload::Workload;
use rustix::thread::CapabilitySet;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const LONG: Duration = Duration::from_secs(30);
const CALLS: u64 = 5_000;
/// The kernel keeps so many characters of a name, so that two programs may share one.
const NAME: usize = 15;

/// Runs and nanoseconds of programs, by the name that the kernel keeps.
type Runs = BTreeMap<String, (u64, f64)>;

/// As BPF_OBJ_GET_INFO_BY_FD tells it of the programs that `pid` has.
fn of_kernel(pid: u32) -> Result<Runs> {
    let is_program = |info: &&String| info.lines().any(|line| line.starts_with("prog_type:"));
    let id = |info: &String| info.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
    let ids: BTreeSet<u32> = fdinfo(pid)?.iter().filter(is_program).filter_map(id).collect();
    let mut runs = Runs::new();
    for program in loaded_programs().flatten().filter(|program| ids.contains(&program.id())) {
        let name = program.name_as_str().context("a program without a name")?.to_owned();
        let (count, time) = runs.entry(name).or_default();
        *count += program.run_count();
        *time += program.run_time().as_nanos() as f64;
    }
    Ok(runs)
}

/// The last that was exported of each, likewise.
fn exported(points: &[Point]) -> Runs {
    let last = |name: &str| -> BTreeMap<String, f64> {
        let of_name = points.iter().filter(|point| point.name == name);
        let values = of_name.filter_map(|point| match &point.value {
            PointValue::Sum { value, .. } => Some((point.attributes.get("program")?.clone(), *value)),
            PointValue::Gauge(_) | PointValue::Exponential { .. } | PointValue::Explicit { .. } => None,
        });
        values.collect()
    };
    let (counts, times) = (last("probe.program.runs"), last("probe.program.run.time"));
    let mut runs = Runs::new();
    for (name, count) in counts {
        let (of_count, of_time) = runs.entry(name.chars().take(NAME).collect()).or_default();
        *of_count += count as u64;
        *of_time += times.get(&name).copied().unwrap_or_default() * 1e9;
    }
    runs
}

/// All of `most` is at least what `least` has: time to the nanosecond, as far as a float of seconds can say.
fn covers(most: &Runs, least: &Runs) -> bool {
    least.iter().all(|(name, (count, time))| {
        most.get(name).is_some_and(|(of_count, of_time)| of_count >= count && of_time + 1_000.0 >= *time)
    })
}

#[test]
fn runs_are_those_that_the_kernel_counts() -> Result<()> {
    let mut workload = Workload::start(WORKLOAD)?;
    let receiver = Receiver::start()?;
    let endpoint = receiver.endpoint();
    let probe =
        Probe::start(&["run", "--interval", "300ms", "--otlp-endpoint", &endpoint, "--program-stats"])?;
    let enters = if preempts_programs()? { "sys_enter_perf" } else { "sys_enter" };
    let runs_of = |runs: &Runs| runs.get(enters).map_or(0, |(count, _)| *count);
    let before = of_kernel(probe.pid())?;
    workload.tell(&format!("getppid {CALLS}"))?;
    let least = of_kernel(probe.pid())?;
    ensure!(runs_of(&least) >= runs_of(&before) + CALLS, "{before:?} {least:?}");
    let found = receiver.wait_for("what the kernel has counted", patient(LONG), |receiver| {
        let found = exported(&receiver.points());
        covers(&found, &least).then_some(found)
    });
    let found = found.with_context(|| format!("{least:#?} {:#?}", exported(&receiver.points())))?;
    let most = of_kernel(probe.pid())?;
    ensure!(covers(&most, &found), "{found:#?} {most:#?}");
    // Between two equal readings there is no doubt: somebody of them was quiet.
    ensure!(least.iter().any(|(name, runs)| most.get(name) == Some(runs)), "{least:#?} {most:#?}");
    ensure!(found.get(enters).is_some_and(|(_, time)| *time > 0.0), "{found:#?}");
    for thread in of_threads(probe.pid())? {
        ensure!(!thread.permitted.contains(CapabilitySet::SYS_ADMIN), "{thread:?}");
    }
    probe.stop()?.require_complete()?;
    workload.end()
}

#[test]
fn without_the_flag_nothing_is_told() -> Result<()> {
    let receiver = Receiver::start()?;
    let probe = Probe::start(&["run", "--interval", "300ms", "--otlp-endpoint", &receiver.endpoint()])?;
    let has_own =
        |receiver: &Receiver| receiver.points().iter().any(|point| point.name == "process.memory.usage");
    receiver
        .wait_for("the agent's own metrics", patient(LONG), |receiver| has_own(receiver).then_some(()))?;
    probe.stop()?.require_complete()?;
    ensure!(!receiver.points().iter().any(|point| point.name.starts_with("probe.program.")));
    Ok(())
}

#[test]
fn without_its_capability_it_is_refused() -> Result<()> {
    require_root()?;
    let copy = PublicCopy::new("program-stats")?;
    let mut run = command(["run", "--program-stats", "--duration", "1s"])?;
    copy.put_into(&mut run);
    as_nobody(&mut run, LEAST);
    let output = run.stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    // Where an administrator has it done for good, nobody has to ask.
    let always = std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled")?.trim() == "1";
    let (code, words) = if always { (0, "nothing was lost") } else { (4, "grant CAP_SYS_ADMIN") };
    ensure!(output.status.code() == Some(code) && stderr.contains(words), "{output:?}");
    Ok(())
}
