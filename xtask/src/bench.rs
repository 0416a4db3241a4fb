//! `cargo xtask bench`: what probe costs, side by side with others in one run. Medians and ratios; nothing here is a test.

mod agent;
mod churn;
mod connections;
mod dns;
mod load;
mod page;
mod series;
mod steady;
mod syscalls;
mod tcp;
mod tracer;
#[expect(dead_code, unreachable_pub, reason = "the tests' library exports it, and uses all of it")]
#[path = "../../tests/src/workload.rs"]
mod workload;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use workload::Workload;

use crate::process::{self, is_root, repo_root, say};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds; each round measures every variant once
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    #[command(flatten)]
    connections: connections::Options,
    #[command(flatten)]
    churn: churn::Options,
    #[command(flatten)]
    steady: steady::Options,
    /// Only this part; without, all but `connections` and `churn`, which take their time
    #[arg(value_enum)]
    part: Option<Part>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// A getppid loop: nothing, empty programs, probe, and where installed syscount and bpftrace
    Syscalls,
    /// How much longer a build takes beside `probe syscalls`
    Build,
    /// How many requests over loopback two CPUs still do beside `probe syscalls`, and beside programs that do nothing
    Requests,
    /// TCP in bulk, to and fro, and connections made and closed: nothing, probe, and where installed tcpstates and others
    Tcp,
    /// Lookups at 100,000 a second, their latency beside tshark, UDP that is not DNS, getaddrinfo beside gethostlatency
    Dns,
    /// `probe run`: time to the first event, memory of the agent and of its maps
    Agent,
    /// `probe run` beside an ordinarily busy host: CPU of the agent and of its programs, memory
    Steady,
    /// What one collection costs at 10,000 and at 100,000 series, and how many records a second one core takes in
    Series,
    /// Records a second through rings of several sizes, offered and delivered
    Flood,
    /// `probe run` beside many open connections, some of them closed and opened again all the time: whether its memory stays
    Connections,
    /// `probe run` beside containers that come and go: whether its memory stays
    Churn,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(is_root(), "bench attaches BPF programs: run it as root");
    let root = repo_root()?;
    process::run(process::cargo().current_dir(&root).args([
        "build",
        "--release",
        "--locked",
        "--package",
        "probe-user",
    ]))?;
    let probe = root.join("target/release/probe");
    let wanted = |part| args.part.is_none_or(|only| only == part);
    if wanted(Part::Syscalls) {
        syscalls::run(&root, &probe, args.rounds)?;
    }
    if wanted(Part::Build) {
        load::builds(&root, &probe, args.rounds)?;
    }
    if wanted(Part::Requests) {
        load::requests(&root, &probe, args.rounds)?;
    }
    if wanted(Part::Tcp) {
        tcp::run(&root, &probe, args.rounds)?;
    }
    if wanted(Part::Dns) {
        dns::run(&root, &probe, args.rounds)?;
    }
    if wanted(Part::Agent) {
        agent::run(&probe, args.rounds)?;
    }
    if wanted(Part::Steady) {
        steady::run(&root, &probe, &args.steady)?;
    }
    if wanted(Part::Series) {
        series::run(&root, args.rounds)?;
    }
    if wanted(Part::Flood) {
        // A program of the tests, so that xtask need not be built with them.
        let flood = ["run", "--quiet", "--release", "--locked", "--package", "probe-tests", "--bin", "flood"];
        process::run(process::cargo().current_dir(&root).args(flood))?;
    }
    if args.part == Some(Part::Connections) {
        connections::run(&root, &probe, &args.connections)?;
    }
    if args.part == Some(Part::Churn) {
        churn::run(&root, &probe, &args.churn)?;
    }
    Ok(())
}

/// Builds a program of the tests that takes orders, and starts it. (xtask need not be built with the tests for that.)
fn start_workload(root: &Path, name: &str) -> Result<Workload> {
    let build = ["build", "--quiet", "--release", "--locked", "--package", "probe-tests", "--bin", name];
    process::run(process::cargo().current_dir(root).args(build))?;
    let program = root.join("target/release").join(name);
    Workload::start(program.to_str().context("the repository's path is no UTF-8: move it")?)
}

/// The middle of some figures; of an even number, the lower of the two.
fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// Smallest, middle, largest.
fn spread(figures: &mut [f64]) -> (f64, f64, f64) {
    let middle = median(figures);
    (figures.first().copied().unwrap_or(f64::NAN), middle, figures.last().copied().unwrap_or(f64::NAN))
}

/// Whether a program is installed; one of those that most parts compare with.
fn installed(program: &str) -> bool {
    installed_with(program, "libbpf-tools bpftrace")
}

/// Whether a program is installed, which these Debian packages bring.
fn installed_with(program: &str, packages: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        say(format_args!("({program} is not installed: left out; Debian: apt-get install {packages})"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.0);
        assert!(median(&mut []).is_nan());
        assert_eq!(spread(&mut [3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
    }
}
