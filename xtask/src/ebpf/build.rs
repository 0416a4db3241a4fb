//! Compiles the programs with the pinned toolchain and strips them to what a kernel and aya need.
//!
//! The same sources give the same bytes, wherever the tree, the target directory and the cargo home lie.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{process::run, toolchain};

use super::{manifest::Objects, rustc};

/// Builds every `probe-ebpf/src/bin/*.rs`, with `target_dir` for cargo's intermediate files.
pub(super) fn build(root: &Path, target_dir: &Path) -> Result<Objects> {
    let programs = programs(root)?;
    let ebpf = root.join("probe-ebpf");
    // Fetched first: what is to be remapped is known only when the sources of the crates are there.
    run(toolchain::cargo().current_dir(&ebpf).args(["fetch", "--quiet", "--locked"]))?;
    run(toolchain::cargo()
        .current_dir(&ebpf)
        .args(["build", "--release", "--locked", "--bins", "--target", toolchain::TARGET])
        .env("CARGO_TARGET_DIR", target_dir)
        // `--btf` and friends are ordinary options of a compiler that calls itself stable.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(root)?.join("\u{1f}"))
        .env("RUSTC_WRAPPER", env::current_exe().context("cannot find the running xtask")?)
        .env(rustc::MARKER, "1")
        // Otherwise aya-ebpf takes the builder's architecture for the kernel's.
        .env("AYA_BPF_TARGET_ARCH", "x86_64"))?;

    let mut objects = Objects::new();
    for program in programs {
        let built = target_dir.join(toolchain::TARGET).join("release").join(&program);
        let object = format!("{program}.bpf.o");
        let stripped = target_dir.join(&object);
        strip(&built, &stripped)?;
        let bytes = fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
        objects.insert(object, bytes);
    }
    Ok(objects)
}

/// Drops DWARF, which is most of the file. BTF stays: line information for the verifier's messages, types of maps.
/// Relocations of BTF go too: loaders never read them.
fn strip(built: &Path, stripped: &Path) -> Result<()> {
    run(Command::new(toolchain::llvm_tool("llvm-strip"))
        .args(["--strip-debug", "--remove-section=.rel.BTF", "--remove-section=.rel.BTF.ext", "-o"])
        .arg(stripped)
        .arg(built))
}

/// One signal, one file, one object.
fn programs(root: &Path) -> Result<Vec<String>> {
    let dir = root.join("probe-ebpf/src/bin");
    let mut names = Vec::new();
    for path in entries(&dir)? {
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
        {
            names.push(name.to_owned());
        }
    }
    ensure!(!names.is_empty(), "{} holds no program", dir.display());
    Ok(names)
}

fn rustflags(root: &Path) -> Result<Vec<String>> {
    let linker = toolchain::tools_dir(root).join("bin/bpf-linker");
    let mut flags = toolchain::RUSTFLAGS.map(str::to_owned).to_vec();
    flags.push(format!("-Clinker={}", linker.display()));
    // Line information carries paths. Those in the compiler's messages stay real, so that one can click them.
    flags.push("--remap-path-scope=object".into());
    flags.push(format!("--remap-path-prefix={}=probe", root.display()));
    // The last that matches wins, so a cargo home inside the repository is still called cargo.
    for registry in entries(&cargo_home()?.join("registry/src"))? {
        flags.push(format!("--remap-path-prefix={}=cargo", registry.display()));
    }
    Ok(flags)
}

/// Where cargo keeps the sources of crates.
pub(super) fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    match env::var_os("HOME") {
        Some(home) => Ok(Path::new(&home).join(".cargo")),
        None => {
            bail!("neither CARGO_HOME nor HOME is set, so the sources of crates cannot be found: set one")
        }
    }
}

/// The paths in a directory, sorted: the order that a file system returns is no input of a build.
pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>())
        .with_context(|| format!("cannot list {}", dir.display()))?;
    paths.sort();
    Ok(paths)
}
