//! `cargo xtask docs`: writes the pages under docs/ that are made from the code. A test fails when they are stale.

use anyhow::Result;

use crate::process::{self, repo_root};

pub(crate) fn run() -> Result<()> {
    process::run(
        process::cargo()
            .current_dir(repo_root()?)
            .args(["test", "--quiet", "--locked", "--package", "probe-user", "--test", "docs"])
            .env("PROBE_WRITE_DOCS", "1"),
    )
}
