//! `cargo xtask ci`: what CI runs. The steps are in `.ci/run`, so that there is one list of them.

use std::process::Command;

use anyhow::Result;

use crate::process::{self, repo_root};

pub(crate) fn run() -> Result<()> {
    process::run(Command::new("bash").arg(".ci/run").current_dir(repo_root()?))
}
