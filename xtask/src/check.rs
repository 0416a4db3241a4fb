//! `cargo xtask check`: everything CI asks before the tests. All steps run; the failures are named at the end.

use std::{path::Path, time::Instant};

use anyhow::{Result, bail};

use crate::{
    deny, ebpf,
    process::{self, repo_root, say},
    setup,
};

/// How a step that did not fail ended.
pub(crate) enum Outcome {
    Passed,
    /// The tool for it could not be had here. Said at the step and again at the end.
    NotChecked,
}

type Step = (&'static str, fn(&Path) -> Result<Outcome>);

const STEPS: [Step; 4] = [
    ("format", format),
    ("clippy", clippy),
    ("licences, bans, sources", deny::run),
    ("BPF objects", objects),
];

pub(crate) fn run() -> Result<()> {
    let root = repo_root()?;
    all(STEPS, |step| step(&root))
}

/// Runs steps by their names, all of them. An error names those that failed.
pub(crate) fn all<S>(
    steps: impl IntoIterator<Item = (&'static str, S)>,
    mut take: impl FnMut(S) -> Result<Outcome>,
) -> Result<()> {
    let (mut failed, mut not_checked) = (Vec::new(), Vec::new());
    for (name, step) in steps {
        say(format_args!("==== {name}"));
        let start = Instant::now();
        let outcome = match take(step) {
            Ok(Outcome::Passed) => "ok",
            Ok(Outcome::NotChecked) => {
                not_checked.push(name);
                "NOT CHECKED"
            }
            Err(error) => {
                say(format_args!("error: {error:#}"));
                failed.push(name);
                "FAILED"
            }
        };
        say(format_args!("---- {name}: {outcome}, {:.1} s", start.elapsed().as_secs_f64()));
    }
    if !not_checked.is_empty() {
        say(format_args!("WARNING: not checked: {}", not_checked.join("; ")));
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    Ok(())
}

fn format(root: &Path) -> Result<Outcome> {
    process::run(process::cargo().current_dir(root).args(["fmt", "--all", "--check"]))?;
    for other in ["probe-ebpf", "tests/fuzz"] {
        process::run(process::cargo().current_dir(root.join(other)).args(["fmt", "--check"]))?;
    }
    Ok(Outcome::Passed)
}

fn clippy(root: &Path) -> Result<Outcome> {
    let mut command = process::cargo();
    command.current_dir(root).args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]);
    process::run(&mut command)?;
    Ok(Outcome::Passed)
}

fn objects(root: &Path) -> Result<Outcome> {
    setup::ensure(root)?;
    ebpf::check(root)?;
    Ok(Outcome::Passed)
}
