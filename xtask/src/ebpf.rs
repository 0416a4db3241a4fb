//! `cargo xtask ebpf`: rebuild the BPF objects that ship; `--check`: prove that they are what the sources say.

mod build;
mod load;
mod manifest;
mod prove;
pub(crate) mod rustc;

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    process::{repo_root, say},
    toolchain,
};

use self::manifest::Manifest;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail when sources, manifest, committed bytes and rebuilt bytes disagree
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = repo_root()?;
    if args.check {
        return check(&root);
    }

    let versions = toolchain::installed(&root)?;
    // Hashed before the build: whatever is edited meanwhile leaves a manifest that --check refuses.
    let sources = manifest::hash_sources(&root)?;
    let objects = build::build(&root, &root.join("target/ebpf"))?;
    prove::no_private_paths(&root, &objects)?;

    let prebuilt = root.join(manifest::PREBUILT);
    fs::create_dir_all(&prebuilt).with_context(|| format!("cannot create {}", prebuilt.display()))?;
    for name in manifest::read_objects(&root)?.keys().filter(|name| !objects.contains_key(*name)) {
        let stale = prebuilt.join(name);
        fs::remove_file(&stale).with_context(|| format!("cannot remove {}", stale.display()))?;
        say(format_args!("removed {name}: no program of that name any more"));
    }
    for (name, bytes) in &objects {
        manifest::replace(&prebuilt.join(name), bytes)?;
        say(format_args!("{name}: {} bytes", bytes.len()));
    }
    Manifest::new(versions, sources, &objects).write(&root)?;
    prove::verify(&objects)
}

/// Fails, with the remedy, unless the committed objects are what the sources make.
pub(crate) fn check(root: &Path) -> Result<()> {
    prove::run(root)
}
