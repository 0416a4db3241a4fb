//! What following DNS costs, how much of it is seen, and how right its times are. The load is the program `dns_load` of the tests.

mod getaddrinfo;
mod latency;
mod packets;
mod throughput;

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{ChildStdout, Command};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::start_workload;
use super::tracer::Tracer;
use crate::process::say;

/// Programs that probe holds at the least once it has begun: it may well be more.
const OF_DNS: usize = 4;
const OF_TCP: usize = 8;
const OF_RUN: usize = 12;
/// What is on its way when the load ends is done after this.
const SETTLE: Duration = Duration::from_secs(1);

pub(super) fn run(root: &Path, probe: &Path, rounds: u32) -> Result<()> {
    let mut load = start_workload(root, "dns_load")?;
    throughput::run(&mut load, probe, rounds)?;
    say("");
    latency::run(&mut load, probe, rounds)?;
    say("");
    packets::run(&mut load, root, probe, rounds)?;
    say("");
    getaddrinfo::run(&mut load, probe, rounds)?;
    load.end()
}

/// What the load counted.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tally {
    asked: u64,
    heard: u64,
    received: u64,
    answered: u64,
    /// Seconds from the first question to the last.
    took: f64,
    /// Seconds of CPU, client and server together.
    cpu: f64,
}

impl Tally {
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let (asked, heard, received, answered) = (next()?, next()?, next()?, next()?);
        let (took, cpu) = (Duration::from_nanos(next()?), Duration::from_nanos(next()?));
        Some(Self { asked, heard, received, answered, took: took.as_secs_f64(), cpu: cpu.as_secs_f64() })
    }

    /// Lookups a second.
    fn rate(&self) -> f64 {
        self.asked as f64 / self.took
    }

    /// Microseconds of CPU that a lookup takes both sides, and the kernel's programs there.
    fn cpu_micros(&self) -> f64 {
        self.cpu * 1e6 / self.asked as f64
    }
}

/// What the load says about an order.
fn tell(load: &mut super::Workload, order: &str) -> Result<Tally> {
    let line = load.tell(order)?;
    Tally::parse(&line).with_context(|| format!("{order}: what is {line:?}?"))
}

/// probe beside the load.
struct Probe {
    tracer: Tracer,
    /// Reads what it prints.
    printed: JoinHandle<Printed>,
    /// Seconds of CPU that its start took.
    start: f64,
}

/// What probe did, by its own word.
#[derive(Clone, Debug, Default)]
struct Seen {
    printed: Printed,
    /// Records of DNS that came through the ring.
    records: u64,
    /// Of DNS.
    lost: u64,
    /// Its lines about losses of any kind.
    losses: Vec<String>,
    /// Seconds of CPU since its start.
    cpu: f64,
}

/// Lookups that probe printed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Printed {
    answered: u64,
    /// All others: unanswered, late.
    others: u64,
}

impl Probe {
    fn start(probe: &Path, args: &[&str], programs: usize) -> Result<Self> {
        let (tracer, stdout) = Tracer::start_piped(Command::new(probe).args(args), programs)?;
        let printed = thread::spawn(move || read(stdout));
        Ok(Self { start: tracer.cpu()?, tracer, printed })
    }

    fn stop(self) -> Result<Seen> {
        thread::sleep(SETTLE);
        let Self { tracer, printed, start } = self;
        let cpu = tracer.cpu()? - start;
        let said = tracer.stop()?;
        let printed = printed.join().ok().context("the reader panicked")?;
        Ok(Seen { printed, records: records(&said), lost: lost(&said), losses: losses(&said), cpu })
    }
}

/// Counts lookups to the end.
fn read(stdout: ChildStdout) -> Printed {
    let mut printed = Printed::default();
    each_line(stdout, |line| printed.add(line));
    printed
}

/// Hands over line after line, in a way that leaves the CPUs to others.
fn each_line(from: impl Read, mut of: impl FnMut(&[u8])) {
    let mut from = BufReader::with_capacity(64 * 1024, from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        of(&line);
        line.clear();
    }
}

impl Printed {
    /// A line of `probe dns -o json`, or of the tables of `probe run`.
    fn add(&mut self, line: &[u8]) {
        const OUTCOME: &[u8] = br#""dns.outcome":""#;
        const ANSWERED: &[u8] = b"answered\"";
        if line.first() == Some(&b'{') {
            let outcome = line.windows(OUTCOME.len()).position(|octets| octets == OUTCOME);
            let outcome = outcome.and_then(|at| line.get(at + OUTCOME.len()..));
            match outcome {
                Some(rest) if rest.starts_with(ANSWERED) => self.answered += 1,
                Some(_) => self.others += 1,
                None => {}
            }
        } else if line.starts_with(b"dns ") {
            let line = String::from_utf8_lossy(line);
            self.answered += before(&line, " lookups answered");
            self.others += before(&line, " unanswered") + before(&line, " answered late");
        }
    }
}

/// The number before some words; 0: there is none.
fn before(line: &str, words: &str) -> u64 {
    line.split_once(words)
        .and_then(|(before, _)| before.rsplit([' ', '\t']).next()?.parse().ok())
        .unwrap_or(0)
}

/// Of the closing line, `records: dns 100, names 2; nothing was lost`.
fn records(stderr: &str) -> u64 {
    let of_line = |line: &str| {
        let counts = line.strip_prefix("records: ")?.split([',', ';']);
        counts.map(str::trim).find_map(|count| count.strip_prefix("dns ")?.parse::<u64>().ok())
    };
    stderr.lines().find_map(of_line).unwrap_or(0)
}

/// Of lines such as `lost: 5 of dns at ring: raise --ring-kib`.
fn lost(stderr: &str) -> u64 {
    let of_line = |line: &str| {
        let (count, place) = line.strip_prefix("lost: ")?.split_once(" of ")?;
        place.starts_with("dns ").then(|| count.parse::<u64>().ok())?
    };
    stderr.lines().filter_map(of_line).sum()
}

/// Those lines, without what would help.
fn losses(stderr: &str) -> Vec<String> {
    let place = |line: &str| Some(line.strip_prefix("lost: ")?.split(": ").next()?.to_owned());
    stderr.lines().filter_map(place).collect()
}

/// The middle of a figure of some rounds.
fn middle<T>(rounds: &[T], figure: impl Fn(&T) -> f64) -> f64 {
    super::median(&mut rounds.iter().map(figure).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_are_read() {
        let tally = Tally::parse("500000 499999 500000 499998 5000000000 2500000000").unwrap();
        let Tally { asked, heard, received, answered, took, cpu } = tally;
        assert_eq!((asked, heard, received, answered), (500_000, 499_999, 500_000, 499_998));
        assert_eq!((took, cpu, tally.rate()), (5.0, 2.5, 100_000.0));
        assert_eq!(Tally::parse("1 2 3 4 5"), None);
        assert_eq!(Tally::parse("1 2 x 4 5 6"), None);
    }

    #[test]
    fn lookups_are_counted_in_either_form() {
        let mut printed = Printed::default();
        let lines = concat!(
            r#"{"dns.attempt":1,"dns.outcome":"answered","dns.question.name":"a","event":"dns.lookup"}"#,
            "\n",
            r#"{"dns.attempt":1,"dns.outcome":"unanswered","dns.question.name":"a"}"#,
            "\n",
            r#"{"dns.attempt":1,"dns.outcome":"late","dns.question.name":"a"}"#,
            "\n",
            r#"{"count":105,"event":"syscall.summary"}"#,
            "\ntcp       0 segments retransmitted\n",
            "dns       40 lookups answered (NOERROR 40; p50 1ms, p99 2ms, max 2ms); 3 unanswered, 2 answered late\n",
            "    other  dns 7 lookups answered",
        );
        each_line(lines.as_bytes(), |line| printed.add(line));
        assert_eq!(printed, Printed { answered: 41, others: 7 });
    }

    #[test]
    fn the_closing_line_is_read() {
        assert_eq!(records("\nrecords: dns 40, tcp 7; nothing was lost\n"), 40);
        assert_eq!(records("records: names 3, dns 41\nlost: 5 of dns at ring: raise --ring-kib\n"), 41);
        assert_eq!(records("records: none; nothing was lost\n"), 0);
        let said = "records: dns 41\nlost: 5 of dns at ring: raise --ring-kib\nlost: 7 of names at ring: the same\n\
                    lost: 2 of dns at table: raise it\n";
        assert_eq!(lost(said), 7);
        assert_eq!(losses(said), ["5 of dns at ring", "7 of names at ring", "2 of dns at table"]);
        assert_eq!(records(""), 0);
    }

    #[test]
    fn the_middle_of_rounds() {
        assert_eq!(middle(&[(1, 5.0), (2, 3.0), (3, 4.0)], |(_, figure)| *figure), 4.0);
    }
}
