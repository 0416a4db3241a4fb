//! `cargo xtask package`: the Debian package, and its life from installation to purge in a clean Debian.

mod boot;
mod chroot;
mod debian;
pub(crate) mod dist;
mod life;
pub(crate) mod materials;

use std::path::Path;

use anyhow::Result;

use crate::{
    check::Outcome,
    process::{is_root, repo_root, say},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only build target/package/probe_*.deb
    #[arg(long)]
    build_only: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = repo_root()?;
    if args.build_only {
        let dist = dist::build(&root)?;
        say(debian::build(&root, &dist, debian::REVISION)?.display());
        return Ok(());
    }
    if let Outcome::NotChecked = check(&root)? {
        say("WARNING: not checked");
    }
    Ok(())
}

/// Builds the package, looks at it, and puts it through its life.
pub(crate) fn check(root: &Path) -> Result<Outcome> {
    let dist = dist::build(root)?;
    let package = debian::build(root, &dist, debian::REVISION)?;
    debian::look_at(root, &package)?;
    if !is_root() {
        say("THE PACKAGE WAS NOT INSTALLED ANYWHERE: a clean Debian in a chroot takes root.");
        return Ok(Outcome::NotChecked);
    }
    life::live(root, &dist, &package)?;
    Ok(Outcome::Passed)
}
