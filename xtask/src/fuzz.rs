//! `cargo xtask fuzz`: every fuzz target under tests/fuzz for a while, on stable Rust.
//!
//! The targets are laid out as cargo-fuzz wants them, but it is not needed: what it adds on a stable compiler is the list of
//! flags below, and what it wants beyond that is nightly. AddressSanitizer is one such thing: none of the code that is fuzzed
//! is unsafe, and without it a build is twice as fast, and so is every run. Assertions and overflow checks are on.
//!
//! The seeds are in the tree; what a run adds to them, and what crashed, stays under target/.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process::{self, output, repo_root, say, show};

/// A workspace of its own; its binaries are the targets.
const CRATE: &str = "tests/fuzz";
/// What libFuzzer needs to know of a program: where it has been, and what it compared.
const RUSTFLAGS: [&str; 7] = [
    "--cfg",
    "fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// Longest input, seconds for one, and MiB for all: a parser that needs more of one has failed.
const LIMITS: [&str; 3] = ["-max_len=8192", "-timeout=10", "-rss_limit_mb=1024"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long each target runs
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Only this target
    #[arg(long)]
    target: Option<String>,
    /// Run the target with this input once, as after a crash
    #[arg(long, requires = "target", value_name = "FILE")]
    input: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = repo_root()?;
    let targets = targets(&root)?;
    let chosen: Vec<&String> =
        targets.iter().filter(|name| args.target.as_ref().is_none_or(|wanted| wanted == *name)).collect();
    ensure!(!chosen.is_empty(), "no such target; there are: {}", targets.join(", "));
    let programs = build(&root)?;
    if let (Some(input), [target]) = (&args.input, chosen.as_slice()) {
        return process::run(Command::new(programs.join(target)).args(LIMITS).arg(input));
    }
    let mut rows = Vec::new();
    for target in chosen {
        rows.push((target, fuzz(&root, &programs, target, args.seconds)?));
    }
    say(format_args!(
        "{:<12} {:>12} {:>8} {:>9} {:>7}",
        "TARGET", "EXECUTIONS", "EXEC/S", "COVERAGE", "CRASHES"
    ));
    for (target, Figures { executions, rate, coverage, crashes }) in &rows {
        say(format_args!("{target:<12} {executions:>12} {rate:>8} {coverage:>9} {:>7}", crashes.len()));
    }
    let crashes: Vec<String> = rows
        .iter()
        .flat_map(|(target, figures)| figures.crashes.iter().map(move |input| (target, input)))
        .map(|(target, input)| format!("cargo xtask fuzz --target {target} --input {}", input.display()))
        .collect();
    if !crashes.is_empty() {
        bail!("found something. To see it again:\n    {}", crashes.join("\n    "));
    }
    Ok(())
}

/// The names of the targets, as cargo knows them.
fn targets(root: &Path) -> Result<Vec<String>> {
    let mut command = process::cargo();
    command.current_dir(root.join(CRATE)).args(["metadata", "--locked", "--no-deps", "--format-version=1"]);
    let metadata: serde_json::Value = serde_json::from_str(&output(&mut command)?)
        .with_context(|| format!("`{}` printed no JSON", show(&command)))?;
    let names = metadata
        .pointer("/packages/0/targets")
        .and_then(serde_json::Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|target| Some(target.get("name")?.as_str()?.to_owned()))
        .collect();
    Ok(names)
}

/// Builds all targets and returns the directory they are in.
fn build(root: &Path) -> Result<PathBuf> {
    let has_cxx = Command::new("c++").arg("--version").output().is_ok_and(|version| version.status.success());
    ensure!(has_cxx, "libFuzzer is C++: install a compiler for it (apt-get install -y g++)");
    let host = output(Command::new(rustc()).arg("-vV"))?
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .context("rustc does not say which host it is for")?;
    let directory = root.join("target/fuzz");
    let mut command = process::cargo();
    // With --target, build scripts and macros are built without the flags.
    command
        .current_dir(root.join(CRATE))
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"))
        .args(["build", "--locked", "--release", "--target", &host, "--target-dir"])
        .arg(&directory);
    process::run(&mut command)?;
    Ok(directory.join(host).join("release"))
}

/// The compiler that goes with [`process::cargo`].
fn rustc() -> PathBuf {
    std::env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from)
}

/// What a run came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    executions: u64,
    /// Executions a second.
    rate: u64,
    /// Edges of the program.
    coverage: u64,
    /// Inputs that crashed it, took too long or too much memory.
    crashes: Vec<PathBuf>,
}

impl Figures {
    /// Reads a line of libFuzzer's.
    fn take_in(&mut self, line: &str) {
        let number = |text: &str| text.trim().parse().ok();
        if let Some((name, value)) = line.strip_prefix("stat::").and_then(|stat| stat.split_once(':')) {
            match name {
                "number_of_executed_units" => self.executions = number(value).unwrap_or(self.executions),
                "average_exec_per_sec" => self.rate = number(value).unwrap_or(self.rate),
                _ => {}
            }
        } else if let Some((_, input)) = line.split_once("Test unit written to ") {
            self.crashes.push(input.trim().into());
        } else if let Some((_, rest)) = line.split_once(" cov: ") {
            self.coverage = rest.split(' ').next().and_then(number).unwrap_or(self.coverage);
        }
    }
}

fn fuzz(root: &Path, programs: &Path, target: &str, seconds: u32) -> Result<Figures> {
    let place = |what: &str| root.join("target/fuzz").join(what).join(target);
    let (corpus, artifacts) = (place("corpus"), place("artifacts"));
    for directory in [&corpus, &artifacts] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut command = Command::new(programs.join(target));
    command
        .args(LIMITS)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1", "-use_value_profile=1"])
        // It writes into the first only.
        .arg(&corpus)
        .arg(root.join(CRATE).join("corpus").join(target));
    say(format_args!("==== {target}, {seconds} s"));
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", show(&command)))?;
    let mut figures = Figures::default();
    let mut lines = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.with_context(|| format!("cannot read the output of `{}`", show(&command)))?;
            let line = String::from_utf8_lossy(&line).into_owned();
            figures.take_in(&line);
            lines.push(line);
            // Thousands of lines tell what was new.
            if lines.len() > 200 {
                lines.drain(..100);
            }
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{}`", show(&command)))?;
    if !status.success() {
        lines.iter().for_each(say);
        ensure!(!figures.crashes.is_empty(), "`{}` failed: {status}", show(&command));
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_output() {
        let mut figures = Figures::default();
        for line in [
            "INFO: seed corpus: files: 9 min: 1b max: 376b total: 900b rss: 44Mb",
            "#10\tINITED cov: 120 ft: 130 corp: 9/900b exec/s: 0 rss: 44Mb",
            "#4096\tpulse  cov: 377 ft: 612 corp: 40/9000b lim: 4 exec/s: 2048 rss: 60Mb",
            "artifact_prefix='/x/'; Test unit written to /x/crash-0123",
            "stat::number_of_executed_units: 4711",
            "stat::average_exec_per_sec:     235",
            "stat::slowest_unit_time_sec:    9",
        ] {
            figures.take_in(line);
        }
        let want =
            Figures { executions: 4711, rate: 235, coverage: 377, crashes: vec!["/x/crash-0123".into()] };
        assert_eq!(figures, want);
    }
}
