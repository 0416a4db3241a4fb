//! The command line: one file a subcommand. clap is known only here; what was typed becomes a [`Config`] at once.

mod args;
mod collector;
mod dns;
mod doctor;
mod effective;
mod generate;
mod layers;
mod listen;
mod live;
mod logging;
mod notify;
mod output;
mod reload;
mod run;
mod stacks;
mod syscalls;
mod tcp;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Config;
use crate::doctor::Verdict;
use crate::kernel::cgroup::CgroupError;
use crate::kernel::conntrack::ConntrackError;
use crate::load::RunStatsError;
use crate::pipeline::StartError;

/// Watches TCP, DNS and system calls of a Linux host with eBPF.
#[derive(Debug, Parser)]
#[command(name = "probe", version, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The agent: all signals, aggregated, to OTLP; without an endpoint, a summary every interval
    Run(Box<run::Args>),
    /// Live TCP retransmits, resets and failed connects, one line an event
    Tcp(tcp::Args),
    /// Live DNS lookups with latency, one line a lookup
    Dns(dns::Args),
    /// System calls: who calls what, how often, how slow, failing how
    Syscalls(syscalls::Args),
    /// What works on this host, what does not, why, and what would fix it
    Doctor(doctor::Args),
    /// Print a shell's completions
    Completions(generate::CompletionsArgs),
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man(generate::ManArgs),
}

/// Why a command fails, with the exit code that says so.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// Failed while running: 1.
    pub fn running(error: impl std::fmt::Display) -> Self {
        Self { code: 1, message: error.to_string() }
    }

    /// Bad arguments or configuration: 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// This kernel cannot do it: 3.
    pub fn kernel(error: impl std::fmt::Display) -> Self {
        Self { code: 3, message: error.to_string() }
    }

    /// Privileges are missing: 4.
    pub fn privileges(error: impl std::fmt::Display) -> Self {
        Self { code: 4, message: error.to_string() }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match &error {
            StartError::Privileges(_) | StartError::Conntrack(ConntrackError::Privileges(_)) => {
                Self::privileges(error)
            }
            StartError::RunStats(RunStatsError::Privileges(_)) => Self::privileges(error),
            StartError::Conntrack(ConntrackError::Kernel(_))
            | StartError::RunStats(RunStatsError::Kernel(_)) => Self::kernel(error),
            StartError::Signal { diagnosis, .. } if diagnosis.verdict == Verdict::Privileges => {
                Self::privileges(error)
            }
            StartError::Cgroup(cgroup) if cgroup.is_permission_denied() => Self::privileges(error),
            // A filter that names no cgroup.
            StartError::Cgroup(CgroupError::NoCgroup { .. } | CgroupError::NotACgroup { .. }) => {
                Self::usage(error.to_string())
            }
            StartError::Btf(_) | StartError::Cgroup(_) | StartError::Signal { .. } => Self::kernel(error),
            StartError::Filter(message) => Self::usage(message),
            StartError::Pin(pin) => Self::usage(pin.to_string()),
        }
    }
}

/// Parses the command line, runs the command, and says how it went.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing to be done where not even the message can be written.
            let _unwritten = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = match cli.command {
        // It reads them again, with what lies below them.
        Command::Run(_flags) => run::main(),
        Command::Tcp(args) => tcp::main(args),
        Command::Dns(args) => dns::main(args),
        Command::Syscalls(args) => syscalls::main(args),
        Command::Doctor(args) => doctor::main(args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
    };
    logging::tell_rest();
    match result {
        Ok(code) => code,
        Err(Failure { code, message }) => {
            logging::stderr_line(tracing::Level::ERROR, format_args!("error: {message}"));
            ExitCode::from(code)
        }
    }
}

/// Runs a command's future. Two workers: the OpenTelemetry SDK needs one that its caller does not block.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::running)?;
    runtime.spawn(logging::tell_held());
    let result = runtime.block_on(future);
    // A collector that hangs must not hold the end up: the SDK's last export may still wait for it.
    runtime.shutdown_background();
    result
}

/// A configuration with nothing asked for.
fn defaults(interval: std::time::Duration) -> Result<Config, Failure> {
    let cpu_ids = crate::kernel::cpus::possible_ids().map_err(Failure::kernel)?;
    Ok(Config {
        interval,
        duration: None,
        count: None,
        output: crate::config::Output::Table,
        filter: crate::config::Filter::default(),
        btf: None,
        program_log_level: 0,
        cpu_ids,
        sizes: crate::config::Sizes::default(),
        tcp: crate::config::TcpOptions::default(),
        dns: crate::config::DnsOptions::default(),
        syscalls: crate::config::SyscallOptions::default(),
        program_stats: false,
        kubelet: None,
        otlp: None,
        pin: None,
    })
}
