//! `cargo xtask check`: everything CI asks before the tests. All steps run; the failures are named at the end.

use std::{path::Path, time::Instant};

use anyhow::{Result, bail};

use crate::{
    deny, ebpf,
    process::{self, repo_root, say},
    setup,
};

type Step = (&'static str, fn(&Path) -> Result<()>);

const STEPS: [Step; 4] = [
    ("format", format),
    ("clippy", clippy),
    ("licences, bans, sources", deny::run),
    ("BPF objects", objects),
];

pub(crate) fn run() -> Result<()> {
    let root = repo_root()?;
    let mut failed = Vec::new();
    for (name, step) in STEPS {
        say(format_args!("==== {name}"));
        let start = Instant::now();
        let outcome = match step(&root) {
            Ok(()) => "ok",
            Err(error) => {
                say(format_args!("error: {error:#}"));
                failed.push(name);
                "FAILED"
            }
        };
        say(format_args!("---- {name}: {outcome}, {:.1} s", start.elapsed().as_secs_f64()));
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    Ok(())
}

fn format(root: &Path) -> Result<()> {
    process::run(process::cargo().current_dir(root).args(["fmt", "--all", "--check"]))?;
    process::run(process::cargo().current_dir(root.join("probe-ebpf")).args(["fmt", "--check"]))
}

fn clippy(root: &Path) -> Result<()> {
    process::run(process::cargo().current_dir(root).args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))
}

fn objects(root: &Path) -> Result<()> {
    setup::ensure(root)?;
    ebpf::check(root)
}
