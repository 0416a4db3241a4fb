//! What a program pays that resolves names with getaddrinfo(3), beside gethostlatency of libbpf-tools, which times that function.

use std::path::Path;
use std::process::{ChildStdout, Command};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};

use super::{OF_DNS, Probe, Tally, each_line, middle, tell};
use crate::bench::tracer::Tracer;
use crate::bench::{Workload, installed, tcp};
use crate::process::say;

const MEASURED_MS: u32 = 2000;
const PEER: &str = "gethostlatency";
/// Those of getaddrinfo, gethostbyname and gethostbyname2: one program for each way in, one for each way out, or one for all.
const OF_PEER: usize = 2;

/// What runs beside the load.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Nothing,
    Probe,
    Peer,
}

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Probe => "probe dns -o json",
            Self::Peer => PEER,
        }
    }

    /// One round: what the load counted, and how many events the tracer printed, and lost.
    fn measure(self, load: &mut Workload, probe: &Path) -> Result<(Tally, u64, u64)> {
        let mut resolve = || tell(load, &format!("getaddrinfo {MEASURED_MS}"));
        match self {
            Self::Nothing => Ok((resolve()?, 0, 0)),
            Self::Probe => {
                let probe = Probe::start(probe, &["dns", "-o", "json"], OF_DNS)?;
                let tally = resolve()?;
                let seen = probe.stop()?;
                Ok((tally, seen.printed.answered, seen.lost))
            }
            Self::Peer => {
                let (peer, stdout) = start_peer()?;
                let printed = count(stdout);
                let tally = resolve()?;
                let lost = tcp::lost(&peer.stop()?);
                Ok((tally, printed.join().ok().context("the reader panicked")?, lost))
            }
        }
    }
}

pub(super) fn run(load: &mut Workload, probe: &Path, rounds: u32) -> Result<()> {
    let mut variants = vec![Variant::Nothing, Variant::Probe];
    if installed(PEER) {
        match start_peer() {
            Ok(_ended) => variants.push(Variant::Peer),
            Err(error) => say(format_args!("{PEER}: not runnable here: {error:#}")),
        }
    }
    let mut outcomes: Vec<_> = variants.into_iter().map(|variant| (variant, Vec::new())).collect();
    for _ in 0..rounds {
        for (variant, figures) in &mut outcomes {
            figures.push(variant.measure(load, probe)?);
        }
    }
    say(format_args!(
        "getaddrinfo, A and AAAA each time, from one thread, {rounds} rounds, variants in turn, {MEASURED_MS} ms each"
    ));
    say(format_args!(
        "{:<18} {:>9} {:>9} {:>9} {:>8} {:>9} {:>9} {:>7}",
        "medians", "calls/s", "CPU µs", "of untr.", "calls", "queries", "printed", "lost"
    ));
    let untraced = outcomes.first().context("no variants")?.1.clone();
    for (variant, rounds) in &outcomes {
        let of = |figure: &dyn Fn(&Tally, u64, u64) -> f64| {
            middle(rounds, |(tally, printed, lost)| figure(tally, *printed, *lost))
        };
        let shares: Vec<f64> = rounds
            .iter()
            .zip(&untraced)
            .map(|((tally, ..), (without, ..))| tally.cpu_micros() / without.cpu_micros())
            .collect();
        say(format_args!(
            "{:<18} {:>9.0} {:>9.1} {:>9.3} {:>8.0} {:>9.0} {:>9.0} {:>7.0}",
            variant.name(),
            of(&|tally, _, _| tally.rate()),
            of(&|tally, _, _| tally.cpu_micros()),
            middle(&shares, |share| *share),
            of(&|tally, _, _| tally.asked as f64),
            of(&|tally, _, _| tally.received as f64),
            of(&|_, printed, _| printed as f64),
            of(&|_, _, lost| lost as f64),
        ));
    }
    say(format_args!(
        "CPU: of a call, client and server, and its share of untraced; queries: by the server's count, all of which probe is to \
         print; {PEER} prints calls, and sees those of the C library only"
    ));
    Ok(())
}

/// It wants tracefs: mounted for it alone.
fn start_peer() -> Result<(Tracer, ChildStdout)> {
    let script = format!("mount -t tracefs none /sys/kernel/tracing && exec {PEER}");
    Tracer::start_piped(Command::new("unshare").args(["--mount", "sh", "-c", &script]), OF_PEER)
}

/// Counts lines to the end, but for the headline.
fn count(stdout: ChildStdout) -> JoinHandle<u64> {
    thread::spawn(move || {
        let mut lines = 0_u64;
        each_line(stdout, |_| lines += 1);
        lines.saturating_sub(1)
    })
}
