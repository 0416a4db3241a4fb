//! The binary that is handed out, in packages and images alike.
//!
//! It is linked to glibc dynamically. A static one resolves names through modules of the host's glibc all the same, and dies where
//! that is another version: linked on Debian 12, of SIGFPE on Debian 13 as soon as nsswitch.conf names `myhostname`. What an image
//! lacks is put beside it.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    process::{self, output, say},
    setup,
};

/// What is built, and of when.
pub(crate) struct Dist {
    pub(crate) binary: PathBuf,
    /// As in Cargo.toml.
    pub(crate) version: String,
    /// Seconds since 1970 of the sources: no file that is handed out is younger.
    pub(crate) epoch: u64,
}

/// Builds it. The same sources give the same bytes wherever they lie.
pub(crate) fn build(root: &Path) -> Result<Dist> {
    let epoch = epoch(root)?;
    let mut command = process::cargo();
    // What the cargo that runs this task tells of xtask: scripts of dependencies would take it for a change, and build all anew.
    for (name, _) in env::vars_os() {
        let is_xtasks =
            ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of| name.to_string_lossy().starts_with(of));
        if is_xtasks {
            command.env_remove(name);
        }
    }
    command
        .current_dir(root)
        .args(["build", "--locked", "--profile", "dist", "--package", "probe-user", "--bin", "probe"])
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(root))
        .env("CFLAGS", format!("-ffile-prefix-map={}=/cargo", cargo_home()?.display()));
    process::run(&mut command)?;
    let binary = target_dir(root).join("dist/probe");
    let said = output(Command::new(&binary).arg("--version"))?;
    let version = said.strip_prefix("probe ").with_context(|| format!("`probe --version` said {said:?}"))?;
    let bytes = std::fs::metadata(&binary)?.len();
    let mib = bytes / (1 << 20);
    say(format_args!("{}: {version}, {bytes} bytes ({mib} MiB)", binary.display()));
    Ok(Dist { binary, version: version.to_owned(), epoch })
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |given| root.join(given))
}

/// Paths of this machine must not get into the bytes.
fn rustflags(root: &Path) -> OsString {
    let mut flags = OsString::from("--remap-path-prefix=");
    flags.push(root);
    flags.push("=/probe");
    if let Ok(home) = cargo_home() {
        flags.push("\u{1f}--remap-path-prefix=");
        flags.push(home);
        flags.push("=/cargo");
    }
    flags
}

fn cargo_home() -> Result<PathBuf> {
    let given = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    given.or(home).context("neither CARGO_HOME nor HOME is set")
}

/// Of the last commit, unless told otherwise.
fn epoch(root: &Path) -> Result<u64> {
    if let Some(given) = env::var_os("SOURCE_DATE_EPOCH") {
        let given = given.to_string_lossy().into_owned();
        return given.parse().with_context(|| format!("SOURCE_DATE_EPOCH={given}: seconds are allowed"));
    }
    let said = output(Command::new("git").current_dir(root).args(["log", "-1", "--format=%ct"]))
        .context("no time of the sources: outside a git checkout set SOURCE_DATE_EPOCH")?;
    said.parse().with_context(|| format!("git said {said:?}"))
}

/// The shared libraries that it is linked to, its loader among them: name as it asks for it, and where it is.
pub(crate) fn libraries(binary: &Path) -> Result<Vec<(String, PathBuf)>> {
    let said = output(Command::new("ldd").arg(binary))?;
    let libraries: Vec<(String, PathBuf)> = said.lines().filter_map(library).collect();
    ensure!(libraries.iter().any(|(name, _)| name.starts_with("libc.so")), "ldd named no libc: {said}");
    Ok(libraries)
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &str) -> Option<(String, PathBuf)> {
    let (before, _address) = line.trim().split_once(" (")?;
    let (name, path) = before.split_once(" => ").unwrap_or((before, before));
    path.starts_with('/').then(|| (name.to_owned(), PathBuf::from(path)))
}

/// Installs packages of Debian that are missing, as CI has to.
pub(crate) fn ensure_packages(packages: &[&str]) -> Result<()> {
    for mut command in setup::missing_packages(packages) {
        say(format_args!("+ {}", process::show(&command)));
        process::run(&mut command)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_ldd() {
        let found = |line| library(line).map(|(name, path)| (name, path.display().to_string()));
        let own = |name: &str, path: &str| Some((name.to_owned(), path.to_owned()));
        assert_eq!(found("\tlinux-vdso.so.1 (0x00007f24b4cfe000)"), None);
        assert_eq!(
            found("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f24b3a1e000)"),
            own("libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6")
        );
        assert_eq!(
            found("\t/lib64/ld-linux-x86-64.so.2 (0x00007f24b4d00000)"),
            own("/lib64/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2")
        );
        assert_eq!(found("\tstatically linked"), None);
    }
}
