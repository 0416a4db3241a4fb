//! `probe run` with all signals beside an ordinarily busy host: what it and its programs take of the machine.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::page::{page, sum};
use super::start_workload;
use super::tracer::Tracer;
use super::workload::Workload;
use crate::process::say;

/// A second: system calls, lookups, connections, segments sent again.
const LOAD: &str = "20000 500 200 50";
/// Before anything is read.
const WARM_UP_SECONDS: u64 = 20;
/// Turns the kernel's accounts of programs' run time on; kernel/sysctl.c.
const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Of the part `steady`.
#[derive(clap::Args)]
#[group(id = "steady")]
#[command(next_help_heading = "Part `steady`")]
pub(super) struct Options {
    /// How long the load is kept up: once for the agent's figures, once for those of its programs
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    steady_seconds: u64,
}

pub(super) fn run(root: &Path, probe: &Path, options: &Options) -> Result<()> {
    let seconds = options.steady_seconds;
    let mut workload = start_workload(root, "steady")?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = Command::new(probe);
    command.args(["run", "--interval", "10s", "--prometheus-listen", &address.to_string()]);
    let agent = Tracer::start(&mut command, 21)?;
    busy(&mut workload, WARM_UP_SECONDS)?;

    let (cpu, before) = (agent.cpu()?, counted(&page(address)?));
    let made = busy(&mut workload, seconds)?;
    let cpu = agent.cpu()? - cpu;
    let told = counted(&page(address)?);
    say(format_args!(
        "probe run beside {LOAD} system calls, lookups, connections and segments sent again a second, {seconds} s:"
    ));
    let names = ["system calls", "lookups", "connections asked for", "segments sent again"];
    for (((name, made), told), before) in names.iter().zip(made).zip(told).zip(before) {
        say(format_args!("  {name:<22} made {made:>9}, on the page {:>9}", told - before));
    }
    let (resident, maps) = (agent.resident()?, agent.memlock()?);
    say(format_args!(
        "  the agent: {:.2} % of a core (wanted: under 1 %); resident {resident:.1} MiB, {:.1} of it anonymous, maps, rings and \
         programs {maps:.1} MiB, together {:.1} (wanted: under 60)",
        100.0 * cpu / seconds as f64,
        agent.anonymous()?,
        resident + maps
    ));

    let stats = Stats::on()?;
    let before = agent.programs_ran()?;
    busy(&mut workload, seconds)?;
    let after = agent.programs_ran()?;
    drop(stats);
    let (runs, ran) = (after.0 - before.0, (after.1 - before.1) / 1e9);
    say(format_args!(
        "  its programs, in whoever they run: {:.2} % of a core, {:.0} runs a second of {:.0} ns (bpf_stats, which has its own part)",
        100.0 * ran / seconds as f64,
        runs / seconds as f64,
        ran * 1e9 / runs
    ));
    for line in agent.stop()?.lines() {
        say(format_args!("probe: {line}"));
    }
    workload.end()
}

/// How much was made of each.
fn busy(workload: &mut Workload, seconds: u64) -> Result<Vec<f64>> {
    let answer = workload.tell(&format!("steady {LOAD} {}", seconds * 1000))?;
    let made: Vec<f64> =
        answer.split(' ').map(|made| made.parse().context("no figure")).collect::<Result<_>>()?;
    ensure!(made.len() == 4, "what was made? {answer}");
    Ok(made)
}

/// The same, of the whole host, as the page has it.
fn counted(page: &str) -> [f64; 4] {
    [
        "process_syscall_duration_seconds_count{",
        "dns_lookup_duration_seconds_count{",
        "system_network_tcp_connections_total{",
        "system_network_tcp_retransmits_total{",
    ]
    .map(|series| sum(page, series))
}

/// The kernel's accounts of run time, while this is there.
struct Stats(String);

impl Stats {
    fn on() -> Result<Self> {
        let before = std::fs::read_to_string(STATS).with_context(|| format!("cannot read {STATS}"))?;
        std::fs::write(STATS, "1").with_context(|| format!("cannot write {STATS}"))?;
        Ok(Self(before))
    }
}

impl Drop for Stats {
    fn drop(&mut self) {
        let _restored = std::fs::write(STATS, self.0.trim());
    }
}
