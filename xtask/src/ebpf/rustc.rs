//! Stands between the pinned cargo and the pinned compiler, for one thing only: stable symbol names.
//!
//! Cargo derives a crate's `-C metadata`, and with it the hash in every mangled symbol, from where a path
//! dependency lies whenever that is outside the workspace, as `../probe-common` is for probe-ebpf. Symbol names
//! are in the symbol table and in BTF, so without this the objects' bytes would depend on the directory that the
//! repository was cloned into. Names of the crates take the place of cargo's hash.

use std::{
    env,
    ffi::OsString,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use crate::{process::say, toolchain::TARGET};

/// Set by [`super::build`] when it makes this program cargo's `RUSTC_WRAPPER`.
pub(super) const MARKER: &str = "PROBE_XTASK_AS_RUSTC";

/// Whether cargo, not a developer, has started this process.
pub(crate) fn is_called() -> bool {
    env::var_os(MARKER).is_some()
}

/// Called as `xtask <rustc> <arguments of rustc>`; becomes that compiler.
pub(crate) fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let Some(rustc) = args.next() else {
        say("error: cargo passed no compiler to its wrapper; unset RUSTC_WRAPPER");
        return ExitCode::FAILURE;
    };
    let package = env::var("CARGO_PKG_NAME").unwrap_or_default();
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let error = Command::new(&rustc).args(stable_metadata(args.collect(), &package, &version)).exec();
    say(format_args!("error: cannot run {}: {error}", rustc.display()));
    ExitCode::FAILURE
}

/// Replaces cargo's metadata hash for crates of the BPF target; those of the host never reach an object.
fn stable_metadata(mut args: Vec<OsString>, package: &str, version: &str) -> Vec<OsString> {
    if args.iter().any(|arg| arg == TARGET) {
        // Our own version is left out: a release alone must not change an object that has been tested.
        let id =
            if package.starts_with("probe-") { package.to_owned() } else { format!("{package}-{version}") };
        for arg in &mut args {
            if arg.to_str().is_some_and(|arg| arg.starts_with("metadata=")) {
                *arg = format!("metadata={id}").into();
            }
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(args: &[&str], package: &str) -> Vec<OsString> {
        stable_metadata(args.iter().map(OsString::from).collect(), package, "1.2.3")
    }

    #[test]
    fn metadata_of_the_bpf_target_names_the_package() {
        let args = ["--crate-name", "tcp", "-C", "metadata=0123abcd", "--target", TARGET];
        assert_eq!(
            rewritten(&args, "probe-ebpf"),
            ["--crate-name", "tcp", "-C", "metadata=probe-ebpf", "--target", TARGET]
        );
        assert!(rewritten(&args, "aya-ebpf").contains(&"metadata=aya-ebpf-1.2.3".into()));
    }

    #[test]
    fn crates_of_the_host_stay_as_cargo_wants_them() {
        let args = ["--crate-name", "syn", "-C", "metadata=0123abcd"];
        assert_eq!(rewritten(&args, "syn"), args);
    }
}
