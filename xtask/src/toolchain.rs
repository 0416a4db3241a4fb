//! The pinned BPF toolchain: every version and place of it, here and nowhere else.
//!
//! It is Debian's own, because one apt line installs it and it stays put: a `rustc` with a ready-made `core` for
//! the BPF target (so no nightly, no rust-src) and the LLVM that `bpf-linker` links against. It lives beside
//! whatever toolchain the rest of the workspace is built with and never mixes with it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::process::output;

/// Debian packages (bookworm and later).
pub(crate) const APT_PACKAGES: [&str; 8] = [
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev-bpf",
    "llvm-22",
    "llvm-22-dev",
    "libpolly-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
];
/// The compiler for BPF programs. By path: the first `rustc` in PATH may be rustup's.
pub(crate) const RUSTC: &str = "/usr/bin/rustc";
/// The cargo of that compiler.
pub(crate) const CARGO: &str = "/usr/bin/cargo";
/// The target of every BPF program.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// Where the pinned compiler keeps its `core` for [`TARGET`].
const TARGET_LIBRARY: &str = "/usr/lib/rustlib/bpfel-unknown-none";
/// Where llvm-22 lives.
pub(crate) const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
/// The linker from crates.io that turns LLVM bitcode into a BPF object.
pub(crate) const BPF_LINKER: &str = "0.13.0";
/// The cargo feature of bpf-linker that picks [`LLVM_PREFIX`]'s major version.
pub(crate) const BPF_LINKER_LLVM: &str = "llvm-22";
/// Licences, sources and bans; no part of the objects.
pub(crate) const CARGO_DENY: &str = "0.20.2";
/// What reads OTLP in a live test, from PyPI.
pub(crate) const OTLP_DECODER: [&str; 2] = ["grpcio==1.85.1", "opentelemetry-proto==1.45.2"];

/// What Grafana itself takes for a dashboard, from PyPI.
pub(crate) const GRAFANA_SCHEMA: [&str; 1] = ["grafana-foundation-sdk==1769699998!10.1.0"];
/// What draws the dashboards' panels, from PyPI.
pub(crate) const PLOTTER: [&str; 2] = ["matplotlib==3.11.2", "numpy==2.4.6"];

/// How every program is compiled. These decide bytes, so the manifest repeats them. Expanded in order, each memset would be a call
/// of a loop over octets, and each copy octets one by one.
pub(crate) const RUSTFLAGS: [&str; 3] =
    ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Clink-arg=--disable-expand-memcpy-in-order"];

/// The versions that decide an object's bytes, as found on a machine or as written in the manifest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Versions {
    pub(crate) rustc: String,
    pub(crate) bpf_linker: String,
    pub(crate) llvm: String,
    pub(crate) rustflags: Vec<String>,
}

/// What is installed here.
pub(crate) fn installed(root: &Path) -> Result<Versions> {
    const REMEDY: &str = "the pinned BPF toolchain is not complete: run `cargo xtask setup`";
    ensure!(Path::new(TARGET_LIBRARY).is_dir(), "{TARGET_LIBRARY} is missing; {REMEDY}");
    Ok(Versions {
        rustc: output(Command::new(RUSTC).arg("--version")).context(REMEDY)?,
        bpf_linker: bpf_linker_version(root).context(REMEDY)?,
        llvm: output(Command::new(llvm_tool("llvm-config")).arg("--version")).context(REMEDY)?,
        rustflags: RUSTFLAGS.map(str::to_owned).into(),
    })
}

/// The version of the bpf-linker under `target/tools`.
pub(crate) fn bpf_linker_version(root: &Path) -> Result<String> {
    let version = output(Command::new(tools_dir(root).join("bin/bpf-linker")).arg("--version"))?;
    Ok(version.trim_start_matches("bpf-linker").trim().to_owned())
}

/// Tools that belong to this tree and not to the machine.
pub(crate) fn tools_dir(root: &Path) -> PathBuf {
    root.join("target/tools")
}

/// A program of the pinned LLVM.
pub(crate) fn llvm_tool(name: &str) -> PathBuf {
    Path::new(LLVM_PREFIX).join("bin").join(name)
}

/// The pinned cargo with the pinned compiler, and nothing of the toolchain that runs this task.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(CARGO);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(belongs_to_another_toolchain) {
            command.env_remove(name);
        }
    }
    command.env("RUSTC", RUSTC);
    command
}

/// `cargo xtask` runs inside another cargo, which leaves its own variables behind; a developer's shell may hold
/// flags too. Both would change the bytes, or which compiler makes them. What says where crates come from stays.
fn belongs_to_another_toolchain(variable: &str) -> bool {
    const KEPT: [&str; 6] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_TERM_"];
    const DROPPED: [&str; 5] = ["CARGO", "RUSTC", "RUSTUP_", "RUSTFLAGS", "LD_LIBRARY_PATH"];
    let starts = |prefix: &&str| variable.starts_with(*prefix);
    DROPPED.iter().any(starts) && !KEPT.iter().any(starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_change_the_compiler_are_dropped() {
        for (variable, dropped) in [
            ("CARGO", true),
            ("CARGO_ENCODED_RUSTFLAGS", true),
            ("CARGO_MANIFEST_DIR", true),
            ("CARGO_PROFILE_RELEASE_LTO", true),
            ("LD_LIBRARY_PATH", true),
            ("RUSTC_WRAPPER", true),
            ("RUSTFLAGS", true),
            ("RUSTUP_TOOLCHAIN", true),
            ("CARGO_HOME", false),
            ("CARGO_HTTP_CAINFO", false),
            ("CARGO_REGISTRIES_MIRROR_INDEX", false),
            ("HOME", false),
            ("PATH", false),
        ] {
            assert_eq!(belongs_to_another_toolchain(variable), dropped, "{variable}");
        }
    }
}
