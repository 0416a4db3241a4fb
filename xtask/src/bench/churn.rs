//! `probe run` beside containers that come and go: its memory must stay, however many there were.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::page::{page, sum};
use super::start_workload;
use super::tracer::Tracer;
use crate::process::say;

/// Looks at the agent on the way.
const LOOKS: u64 = 24;

/// Of the part `churn`.
#[derive(clap::Args)]
#[group(id = "churn")]
#[command(next_help_heading = "Part `churn`")]
pub(super) struct Options {
    /// How long containers come and go
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..))]
    churn_seconds: u64,
    /// How many of them a second
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    containers: u32,
}

pub(super) fn run(root: &Path, probe: &Path, options: &Options) -> Result<()> {
    let Options { churn_seconds, containers } = *options;
    let mut workload = start_workload(root, "churn")?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = Command::new(probe);
    command.args(["run", "--interval", "10s", "--prometheus-listen", &address.to_string()]);
    let agent = Tracer::start(&mut command, 21)?;
    say(format_args!(
        "probe run beside {containers} containers a second, each with a cgroup and a process of its own"
    ));
    say(format_args!(
        "{:>8} {:>11} {:>9} {:>14} {:>9} {:>8} {:>8}",
        "seconds", "containers", "RSS MiB", "anonymous MiB", "maps MiB", "owners", "series"
    ));
    let (begun, whole) = (Instant::now(), Duration::from_secs(churn_seconds));
    let step = Duration::from_millis(churn_seconds * 1000 / LOOKS).max(Duration::from_secs(1));
    let mut so_far = 0;
    loop {
        let page = page(address)?;
        let anonymous = agent.anonymous()?;
        let series = sum(&page, "probe_series_active{");
        let mut owners: Vec<&str> = page
            .lines()
            .filter_map(|line| line.split_once("container_id=\""))
            .map(|(_, rest)| rest.split('"').next().unwrap_or_default())
            .collect();
        owners.sort_unstable();
        owners.dedup();
        say(format_args!(
            "{:>8.0} {so_far:>11} {:>9.1} {anonymous:>14.1} {:>9.1} {:>8} {series:>8}  {}",
            begun.elapsed().as_secs_f64(),
            agent.resident()?,
            agent.memlock()?,
            owners.len(),
            // A plot of the anonymous memory: a sign a MiB.
            "#".repeat(anonymous as usize)
        ));
        let left = whole.saturating_sub(begun.elapsed());
        if left.is_zero() {
            break;
        }
        let answer = workload.tell(&format!("churn {containers} {}", step.min(left).as_millis().max(1)))?;
        so_far += answer.parse::<u64>().with_context(|| format!("how many were made? {answer}"))?;
    }
    for line in agent.stop()?.lines() {
        say(format_args!("probe: {line}"));
    }
    workload.end()
}
