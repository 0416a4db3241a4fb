//! `probe doctor`.

use std::process::ExitCode;

use super::Failure;

/// Flags.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// Runs it.
pub(super) fn main(_args: Args) -> Result<ExitCode, Failure> {
    Ok(ExitCode::SUCCESS)
}
