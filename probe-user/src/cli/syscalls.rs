//! `probe syscalls`.

use std::process::ExitCode;
use std::time::Duration;

use super::args::{CallArgs, Shared};
use super::stacks::StackArgs;
use super::{Failure, live};
use crate::config::{Output, SyscallBy, SyscallSort};
use crate::signals;
use crate::signals::syscalls::names;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: probe syscalls --comm nginx --sort p99 --duration 10s")]
pub(super) struct Args {
    #[command(flatten)]
    shared: Shared,
    /// Only these calls, e.g. read,write
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = syscall)]
    syscall: Vec<&'static str>,
    #[command(flatten)]
    calls: CallArgs,
    /// Only pairs with errors
    #[arg(long)]
    errors: bool,
    /// What a row adds up: the calls of a process, of a container or systemd unit (and of the rest of the host), or everybody's
    #[arg(long, value_name = "BY", default_value = "process")]
    by: SyscallBy,
    /// Order of the rows, largest first
    #[arg(long, value_name = "ORDER", default_value = "time")]
    sort: SyscallSort,
    /// Only so many rows an interval [default: as many as a terminal has room for, 20 in a pipe, all as JSON]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    top: Option<u16>,
    #[command(flatten)]
    stacks: StackArgs,
}

/// Runs it.
pub(super) fn main(args: Args) -> Result<ExitCode, Failure> {
    let mut config = args.shared.resolve(Duration::from_secs(1))?;
    config.syscalls.names = args.syscall;
    args.calls.apply(&mut config.syscalls)?;
    config.syscalls.errors_only = args.errors;
    config.syscalls.by = args.by;
    config.syscalls.sort = args.sort;
    config.syscalls.top = args.top.map(usize::from);
    config.syscalls.stacks = args.stacks.unit();
    if config.syscalls.stacks.is_some() && config.syscalls.latency_every != 1 {
        return Err(Failure::usage(
            "--stacks and --flamegraph need every call measured: not with --latency-sample or --no-latency",
        ));
    }
    let stacks = args.stacks.sink(config.output == Output::Table)?;
    live::show_with(&config, &signals::syscalls::Syscalls, stacks)
}

fn syscall(text: &str) -> Result<&'static str, String> {
    names::known(text).ok_or_else(|| unknown(text))
}

/// What to say of a name that no table has.
pub(super) fn unknown(text: &str) -> String {
    let mut alike: Vec<&str> =
        names::all().filter(|name| name.contains(text) || text.contains(name)).collect();
    alike.sort_unstable();
    alike.dedup();
    alike.truncate(5);
    let hint = if alike.is_empty() {
        "see `man 2 syscalls`".to_owned()
    } else {
        format!("like it: {}", alike.join(", "))
    };
    format!("this machine has no such system call; {hint}")
}
