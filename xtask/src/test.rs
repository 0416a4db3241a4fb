//! `cargo xtask test`: unit tests and, as root, the live tests on the running kernel.
//!
//! It needs the repository and the crate registry; as root it installs the packages `ip` and `nft` come in, if they are missing. Its last line is always the sum over all runs,
//! `N passed, N failed`.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::{
    live::{self, Live},
    process::{self, is_root, repo_root, say, show},
    protocol::{Outcome, Plan},
    setup, vm,
};

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
    if !args.unit {
        let live = Live::build(&root)?;
        let plan = live.plan(args.filter.as_deref())?;
        if is_root() {
            setup::ensure_test_tools(&root);
            tally.add(run_live(&root, &live, &plan, args.filter.is_none(), &mut complaints)?);
        } else {
            complaints.extend(not_run(&live::names(&plan).collect::<Vec<_>>()));
        }
    }

    let Tally { passed, failed, ignored, skipped } = tally;
    if passed + failed + skipped == 0 {
        complaints
            .push(format!("No test ran: none has {:?} in its name.", args.filter.as_deref().unwrap_or("")));
    }
    if ignored > 0 {
        say(format_args!("{ignored} ignored"));
    }
    complaints.iter().for_each(say);
    if skipped > 0 {
        say(format_args!(
            "{skipped} skipped, each for the reason given: the kernel may lack what it tests, or the host must not be disturbed"
        ));
    }
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
    let Tally { passed, failed, ignored: _, skipped: _ } = tally;
    say(format_args!(
        "---- {passed} passed, {failed} failed, {:.1} s with compiling",
        start.elapsed().as_secs_f64()
    ));
    Ok(tally)
}

/// Runs the live tests. Of a run of all, the results are kept for the table of kernels.
fn run_live(root: &Path, live: &Live, plan: &Plan, all: bool, complaints: &mut Vec<String>) -> Result<Tally> {
    say("==== live tests");
    let start = Instant::now();
    let results = live.run_on_host(root, plan)?;
    let missing = results.missing(plan);
    complaints.extend(missing.iter().map(|name| format!("NOT RUN: {name}")));
    if all {
        vm::keep_host_results(root, live, &results)?;
    }
    let count = |wanted: fn(&Outcome) -> bool| u32::try_from(results.count(wanted)).unwrap_or(u32::MAX);
    let tally = Tally {
        passed: count(|outcome| matches!(outcome, Outcome::Passed)),
        failed: count(|outcome| matches!(outcome, Outcome::Failed { .. })),
        skipped: count(|outcome| matches!(outcome, Outcome::Skipped { .. })),
        ignored: 0,
    };
    let Tally { passed, failed, skipped, ignored: _ } = tally;
    say(format_args!(
        "---- {passed} passed, {failed} failed, {skipped} skipped, {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    Ok(tally)
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

/// How many tests went which way.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
    skipped: u32,
}

impl Tally {
    fn add(&mut self, other: Self) {
        let Self { passed, failed, ignored, skipped } = other;
        self.passed += passed;
        self.failed += failed;
        self.ignored += ignored;
        self.skipped += skipped;
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
            assert_eq!(Tally::of_line(line), Tally { passed, failed, ignored, skipped: 0 }, "{line}");
        }
    }
}
