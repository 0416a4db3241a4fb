//! `probe run` beside many open connections, some of them closed and opened again all the time: its memory must not grow.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::start_workload;
use super::tracer::Tracer;
use super::workload::Workload;
use crate::process::say;

/// Looks at the agent on the way, beside those at the beginning and the end.
const LOOKS: u64 = 12;
/// Between two of them at least.
const LEAST: Duration = Duration::from_secs(1);
/// Sockets of the host's own for which there is room in the agent's map, beside a twentieth of those that are made here.
const OTHERS: u64 = 4096;

/// Of the part `connections`.
#[derive(clap::Args)]
#[command(next_help_heading = "Part `connections`")]
pub(super) struct Options {
    /// Connections that are open all the time
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    connections: u64,
    /// How long some of them are closed and opened again
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// How many of them a second
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    reopened: u32,
}

pub(super) fn run(root: &Path, probe: &Path, options: &Options) -> Result<()> {
    let Options { connections, seconds, reopened } = *options;
    let mut workload = start_workload(root, "connections")?;
    let begun = Instant::now();
    let processes = workload.tell(&format!("hold {connections}"))?;
    say(format_args!(
        "{connections} connections on loopback, both ends held by {processes} processes, made in {:.1} s",
        begun.elapsed().as_secs_f64()
    ));
    // Both ends are this host's.
    let sockets = connections * 2;
    let room = sockets + sockets / 20 + OTHERS;
    let begun = Instant::now();
    let mut command = Command::new(probe);
    command.args(["run", "--interval", "1s", "--tcp-sockets", &room.to_string()]);
    let agent = Tracer::start(&mut command, 19)?;
    say(format_args!(
        "probe run --tcp-sockets {room} beside them, attached and settled in {:.1} s; then {reopened} a second are reopened",
        begun.elapsed().as_secs_f64()
    ));
    say(format_args!(
        "{:>8} {:>12} {:>16} {:>10} {:>16}",
        "seconds", "reopened", "anonymous MiB", "maps MiB", "SOCKETS entries"
    ));
    let mut so_far = 0;
    row(0.0, so_far, &agent, &mut workload)?;
    let begun = Instant::now();
    let whole = Duration::from_secs(seconds);
    let step = Duration::from_millis(seconds * 1000 / LOOKS).max(LEAST);
    while begun.elapsed() < whole {
        let next = step.min(whole.saturating_sub(begun.elapsed())).as_millis().max(1);
        let answer = workload.tell(&format!("reopen {reopened} {next}"))?;
        so_far += answer.parse::<u64>().with_context(|| format!("how many were reopened? {answer}"))?;
        row(begun.elapsed().as_secs_f64(), so_far, &agent, &mut workload)?;
    }
    for line in agent.stop()?.lines() {
        say(format_args!("probe: {line}"));
    }
    workload.end()
}

/// What the agent takes, and how many sockets it knows: of those here two a connection.
fn row(seconds: f64, reopened: u64, agent: &Tracer, workload: &mut Workload) -> Result<()> {
    let sockets = workload.tell(&format!("sockets {}", agent.pid()))?;
    say(format_args!(
        "{seconds:>8.1} {reopened:>12} {:>16.1} {:>10.1} {sockets:>16}",
        agent.anonymous()?,
        agent.memlock()?
    ));
    Ok(())
}
