//! `cargo xtask <task>`: everything a developer of probe runs.
//!
//! This file parses and dispatches; each task is the file of its name.

mod bench;
mod btf;
mod check;
mod ci;
mod deny;
mod deploy;
mod docs;
mod ebpf;
mod fuzz;
mod image;
mod live;
mod observe;
mod package;
mod process;
#[expect(unreachable_pub, reason = "the tests' library exports it")]
#[path = "../../tests/src/protocol.rs"]
mod protocol;
mod setup;
mod test;
mod toolchain;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::process::say;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Everything a developer of probe runs", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install the pinned BPF toolchain (apt packages, and bpf-linker under target/tools)
    Setup(setup::Args),
    /// Rebuild the BPF objects under probe-ebpf/prebuilt, or prove them with --check
    Ebpf(ebpf::Args),
    /// Unit tests and, as root, the live tests on the running kernel
    Test(test::Args),
    /// The live tests on other kernels, in virtual machines, and the table of all
    Vm(vm::Args),
    /// Fuzz targets under tests/fuzz, each for some seconds
    Fuzz(fuzz::Args),
    /// What probe costs, side by side with others: as root
    Bench(bench::Args),
    /// Cut a kernel's BTF down to a fixture under tests/fixtures/btf
    Btf(btf::Args),
    /// Everything CI asks before the tests: format, clippy, licences, BPF objects
    Check,
    /// Everything under deploy/: chart and manifests against schemas, a policy and probe itself; rules, dashboards, collectors; package
    /// and image, installed and run
    DeployCheck(deploy::Args),
    /// Build the container image, and have it trace this host: as root
    Image(image::Args),
    /// Build the Debian package, and put it through its life in a clean Debian: as root
    Package(package::Args),
    /// Write the pages under docs/ that are made from the code
    Docs,
    /// Rules, dashboards and configurations of collectors under deploy/: check them, or write those that are made
    Observe(observe::Args),
    /// What CI runs, from the first step to the last
    Ci,
}

fn main() -> ExitCode {
    if ebpf::rustc::is_called() {
        return ebpf::rustc::main();
    }
    match dispatch(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup(args) => setup::run(&args)?,
        Task::Ebpf(args) => ebpf::run(&args)?,
        // Its sum is the last line, whatever the outcome, so it prints its own errors.
        Task::Test(args) => return test::run(&args),
        Task::Vm(args) => return vm::run(&args),
        Task::Fuzz(args) => fuzz::run(&args)?,
        Task::Bench(args) => bench::run(&args)?,
        Task::Btf(args) => btf::run(&args)?,
        Task::Check => check::run()?,
        Task::DeployCheck(args) => deploy::run(&args)?,
        Task::Image(args) => image::run(&args)?,
        Task::Package(args) => package::run(&args)?,
        Task::Docs => docs::run()?,
        Task::Observe(args) => observe::run(&args)?,
        Task::Ci => ci::run()?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn arguments_make_sense_to_clap() {
        Cli::command().debug_assert();
    }
}
