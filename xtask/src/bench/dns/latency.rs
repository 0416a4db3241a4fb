//! How right the latencies are: lookup by lookup beside tshark's, from the packets' own times.

use std::collections::HashMap;
use std::env::temp_dir;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, ensure};

use super::{OF_DNS, SETTLE, each_line, middle, tell};
use crate::bench::tracer::Tracer;
use crate::bench::{Workload, installed_with};
use crate::process::say;

/// Lookups a second: a capture keeps up with that.
const OFFERED: u32 = 2000;
const MEASURED_MS: u32 = 10_000;
/// Each has 20,000 lookups.
const MOST_ROUNDS: u32 = 3;
const BUFFER_MIB: &str = "64";

/// What came of a round.
struct Round {
    answered: u64,
    by_tshark: usize,
    by_probe: usize,
    /// Microseconds that probe says more than tshark, in order of size without sign.
    errors: Vec<f64>,
}

pub(super) fn run(load: &mut Workload, probe: &Path, rounds: u32) -> Result<()> {
    if !installed_with("tshark", "tshark") || !installed_with("dumpcap", "wireshark-common") {
        return Ok(());
    }
    let rounds = rounds.min(MOST_ROUNDS);
    let file = Scratch(temp_dir().join(format!("probe-bench-dns-{}.pcapng", std::process::id())));
    let mut outcomes = Vec::new();
    for _ in 0..rounds {
        outcomes.push(measure(load, probe, &file.0)?);
    }
    say(format_args!(
        "latency beside tshark's dns.time, lookup by lookup: {OFFERED} lookups/s, answers after 0 to 20 ms, {MEASURED_MS} ms, \
         {rounds} rounds"
    ));
    say(format_args!(
        "{:<10} {:>8} {:>8} {:>8} {:>8}   {:>9} {:>9} {:>9} {:>9}",
        "", "served", "tshark", "probe", "in both", "median µs", "p99 µs", "max µs", "shift µs"
    ));
    let of = |figure: &dyn Fn(&Round) -> f64| middle(&outcomes, figure);
    let sized = |round: &Round, share: f64| quantile(&round.errors, share).abs();
    say(format_args!(
        "{:<10} {:>8.0} {:>8.0} {:>8.0} {:>8.0}   {:>9.1} {:>9.1} {:>9.1} {:>9.1}",
        "medians",
        of(&|round| round.answered as f64),
        of(&|round| round.by_tshark as f64),
        of(&|round| round.by_probe as f64),
        of(&|round| round.errors.len() as f64),
        of(&|round| sized(round, 0.5)),
        of(&|round| sized(round, 0.99)),
        of(&|round| sized(round, 1.0)),
        of(&|round| middle(&round.errors, |error| *error)),
    ));
    say("errors without sign; shift: the middle one with it; wanted: median under 50 µs, p99 under 1000");
    Ok(())
}

fn measure(load: &mut Workload, probe: &Path, file: &Path) -> Result<Round> {
    let netns = load.tell("netns")?;
    let inside = format!("--net={netns}");
    let capture = file.to_str().context("the directory of temporary files is no UTF-8")?;
    let mut dumpcap = Command::new("nsenter");
    dumpcap.arg(&inside).args([
        "dumpcap",
        "-q",
        "-i",
        "lo",
        "-f",
        "udp port 53",
        "-s",
        "256",
        "-B",
        BUFFER_MIB,
        "-w",
        capture,
    ]);
    let capture_runs = Tracer::start(&mut dumpcap, 0)?;
    let (tracer, stdout) = Tracer::start_piped(Command::new(probe).args(["dns", "-o", "json"]), OF_DNS)?;
    let reader = thread::spawn(move || {
        let mut lookups = Vec::new();
        each_line(stdout, |line| lookups.extend(lookup(line)));
        lookups
    });
    let tally = tell(load, &format!("delayed {OFFERED} {MEASURED_MS}"))?;
    thread::sleep(SETTLE);
    tracer.stop()?;
    let by_probe = reader.join().ok().context("the reader panicked")?;
    capture_runs.stop()?;
    let fields = ["-T", "fields", "-e", "dns.qry.name", "-e", "dns.time"];
    let text = Command::new("tshark").args(["-n", "-r", capture, "-Y", "dns.time"]).args(fields).output()?;
    // It complains about root each time.
    ensure!(text.status.success(), "tshark: {}: {}", text.status, String::from_utf8_lossy(&text.stderr));
    let text = String::from_utf8_lossy(&text.stdout);
    let by_tshark: HashMap<&str, f64> = text.lines().filter_map(answer).collect();
    Ok(Round {
        answered: tally.answered,
        by_tshark: by_tshark.len(),
        by_probe: by_probe.len(),
        errors: errors(&by_probe, &by_tshark),
    })
}

/// Name and latency, seconds, of an answered lookup that probe printed. Every lookup of the load has a name of its own.
fn lookup(line: &[u8]) -> Option<(String, f64)> {
    let line: serde_json::Value = serde_json::from_slice(line).ok()?;
    if line.get("dns.outcome")?.as_str()? != "answered" {
        return None;
    }
    Some((line.get("dns.question.name")?.as_str()?.to_owned(), line.get("duration")?.as_f64()?))
}

/// Name and latency, seconds, of a line of tshark's.
fn answer(line: &str) -> Option<(&str, f64)> {
    let (name, seconds) = line.split_once('\t')?;
    Some((name, seconds.trim().parse().ok()?))
}

/// Microseconds that probe says more, of lookups that both have; in order of size without sign.
fn errors(by_probe: &[(String, f64)], by_tshark: &HashMap<&str, f64>) -> Vec<f64> {
    let error = |(name, seconds): &(String, f64)| Some((seconds - by_tshark.get(name.as_str())?) * 1e6);
    let mut errors: Vec<f64> = by_probe.iter().filter_map(error).collect();
    errors.sort_by(|one, other| one.abs().total_cmp(&other.abs()));
    errors
}

/// Of figures in order: the least that is no less than this share of them.
fn quantile(figures: &[f64], share: f64) -> f64 {
    let rank = (figures.len() as f64 * share).ceil() as usize;
    figures.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// A file that goes when this does.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _never_made = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        assert_eq!(answer("h0000001.load.test\t0.012361000"), Some(("h0000001.load.test", 0.012361)));
        assert_eq!(answer("h0000001.load.test\t"), None);
        assert_eq!(answer("Running as user \"root\""), None);
        let line =
            br#"{"dns.outcome":"answered","dns.question.name":"a.test","duration":0.5,"event":"dns.lookup"}"#;
        assert_eq!(lookup(line), Some(("a.test".to_owned(), 0.5)));
        assert_eq!(lookup(br#"{"dns.outcome":"unanswered","dns.question.name":"a.test"}"#), None);
        assert_eq!(lookup(b"not JSON"), None);
    }

    #[test]
    fn lookups_are_compared_by_name() {
        let by_tshark = HashMap::from([("a", 0.000_010), ("b", 0.000_010), ("c", 1.0)]);
        let by_probe =
            [("b", 0.000_013), ("d", 5.0), ("a", 0.000_008)].map(|(name, time)| (name.to_owned(), time));
        let rounded: Vec<f64> = errors(&by_probe, &by_tshark).iter().map(|error| error.round()).collect();
        assert_eq!(rounded, [-2.0, 3.0]);
    }

    #[test]
    fn quantiles() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&hundred, 0.5), 50.0);
        assert_eq!(quantile(&hundred, 0.99), 99.0);
        assert_eq!(quantile(&hundred, 1.0), 100.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
