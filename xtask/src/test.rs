//! `cargo xtask test`: unit tests and, as root, the live tests on the running kernel.
//!
//! It needs the repository and the crate registry, nothing else. Its last line is always the sum over all runs,
//! `N passed, N failed`.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::process::{self, is_root, output, repo_root, say, show};

/// Live tests read counters of the whole host (system calls, loaded programs): side by side they would count
/// each other.
const LIVE_TEST_THREADS: &str = "--test-threads=1";
/// Tells the live tests which `probe` to drive.
const PROBE_BIN: &str = "PROBE_BIN";
const LIVE: [&str; 4] = ["--package", "probe-tests", "--test", "*"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the unit tests: needs no root
    #[arg(long)]
    unit: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = repo_root()?;
    let mut tally = Tally::default();
    let mut complaints = Vec::new();

    // Of probe-tests only what its tests share: they themselves are the live tests.
    for selection in
        [&["--workspace", "--exclude", "probe-tests"][..], &["--package", "probe-tests", "--lib"]]
    {
        tally.add(run_tests(cargo_test(&root, selection).arg("--").args(&args.filter))?);
    }
    let live = !args.unit;
    if live && is_root() {
        let mut command = cargo_test(&root, &LIVE);
        command.env(PROBE_BIN, build_probe(&root)?).args(["--", LIVE_TEST_THREADS]).args(&args.filter);
        tally.add(run_tests(&mut command)?);
    } else if live {
        complaints.extend(not_run(&list_live_tests(&root, args)?));
    }

    let Tally { passed, failed, ignored } = tally;
    if passed + failed == 0 {
        complaints
            .push(format!("No test ran: none has {:?} in its name.", args.filter.as_deref().unwrap_or("")));
    }
    if ignored > 0 {
        say(format_args!("{ignored} ignored"));
    }
    complaints.iter().for_each(say);
    say(format_args!("{passed} passed, {failed} failed"));
    Ok(if failed == 0 && complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo_test(root: &Path, selection: &[&str]) -> Command {
    let mut command = process::cargo();
    command.current_dir(root).args(["test", "--locked", "--no-fail-fast"]).args(selection);
    command
}

/// Passes the runner's output on line by line, and counts along.
fn run_tests(command: &mut Command) -> Result<Tally> {
    say(format_args!("==== {}", show(command)));
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", show(command)))?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.with_context(|| format!("cannot read the output of `{}`", show(command)))?;
            let line = String::from_utf8_lossy(&line);
            say(&line);
            tally.add(Tally::of_line(&line));
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{}`", show(command)))?;
    if !status.success() && tally.failed == 0 {
        // A test program that dies, or does not compile, prints no result; it must not pass for that.
        say(format_args!("`{}` failed: {status}", show(command)));
        tally.failed = 1;
    }
    let Tally { passed, failed, ignored: _ } = tally;
    say(format_args!(
        "---- {passed} passed, {failed} failed, {:.1} s with compiling",
        start.elapsed().as_secs_f64()
    ));
    Ok(tally)
}

/// Builds the binary that live tests drive; cargo says where it is.
fn build_probe(root: &Path) -> Result<PathBuf> {
    let mut command = process::cargo();
    command
        .current_dir(root)
        .args(["build", "--locked", "--package", "probe-user", "--bin", "probe"])
        .arg("--message-format=json-render-diagnostics");
    let messages = output(&mut command)?;
    let executable = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .next_back();
    match executable {
        Some(path) => Ok(path),
        None => bail!("`{}` named no executable", show(&command)),
    }
}

/// A test that did not run is a fact to report, not a test that passed.
fn not_run(names: &[String]) -> Vec<String> {
    if names.is_empty() {
        return Vec::new();
    }
    let mut lines =
        vec![format!("{} LIVE TESTS DID NOT RUN: they load BPF programs, which needs root.", names.len())];
    lines.extend(names.iter().map(|name| format!("    not run: {name}")));
    lines.push("Run `cargo xtask test` as root, or only the unit tests with `--unit`.".into());
    lines
}

fn list_live_tests(root: &Path, args: &Args) -> Result<Vec<String>> {
    let list = output(cargo_test(root, &LIVE).args(["--", "--list", "--format=terse"]).args(&args.filter))?;
    Ok(list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// How many tests went which way.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
}

impl Tally {
    fn add(&mut self, other: Self) {
        let Self { passed, failed, ignored } = other;
        self.passed += passed;
        self.failed += failed;
        self.ignored += ignored;
    }

    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`; any other line counts nothing.
    fn of_line(line: &str) -> Self {
        let mut tally = Self::default();
        let Some((_verdict, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return tally;
        };
        for (number, what) in counts.split("; ").filter_map(|count| count.split_once(' ')) {
            let slot = match what {
                "passed" => &mut tally.passed,
                "failed" => &mut tally.failed,
                "ignored" => &mut tally.ignored,
                _ => continue,
            };
            *slot = number.parse().unwrap_or(0);
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted() {
        for (line, passed, failed, ignored) in [
            (
                "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s",
                3,
                0,
                1,
            ),
            ("test result: FAILED. 12 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out", 12, 2, 0),
            ("test result: FAILED", 0, 0, 0),
            ("test probe::passed ... ok", 0, 0, 0),
            ("a test printed: test result: ok. 9 passed; 0 failed", 0, 0, 0),
            ("", 0, 0, 0),
        ] {
            assert_eq!(Tally::of_line(line), Tally { passed, failed, ignored }, "{line}");
        }
    }
}
