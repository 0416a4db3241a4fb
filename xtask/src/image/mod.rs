//! `cargo xtask image`: the container image, and whether it traces the host that it runs on.

mod docker;
mod run;
mod tree;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use self::docker::Docker;
use crate::{
    check::Outcome,
    package::dist::{self, Dist, ensure_packages},
    process::{self, is_root, output, repo_root, say},
};

/// Name of the image here; whoever publishes one gives it another.
const IMAGE: &str = "probe:check";
/// What it may take, unpacked.
const LIMIT: u64 = 25 << 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only write what the image is to contain, target/image/tree: what the Dockerfile does
    #[arg(long, conflicts_with_all = ["full"])]
    tree_only: bool,
    /// Build with all stages of the Dockerfile, on a base made of this host's Debian and Rust, without a network
    #[arg(long)]
    full: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = repo_root()?;
    if args.tree_only {
        let dist = dist::build(&root)?;
        say(tree::write(&root, &dist)?.display());
        return Ok(());
    }
    let outcome = if args.full { build_and_run(&root, true)? } else { check(&root)? };
    if let Outcome::NotChecked = outcome {
        say("WARNING: not checked");
    }
    Ok(())
}

/// Builds the image out of what is built here, and runs it both ways.
pub(crate) fn check(root: &Path) -> Result<Outcome> {
    build_and_run(root, false)
}

fn build_and_run(root: &Path, full: bool) -> Result<Outcome> {
    let dist = dist::build(root)?;
    let tree = tree::write(root, &dist)?;
    if !is_root() {
        say("THE IMAGE WAS NOT BUILT AND NOT RUN: that takes root.");
        return Ok(Outcome::NotChecked);
    }
    ensure_packages(&["docker.io", "iproute2"])?;
    let docker = match Docker::start() {
        Ok(docker) => docker,
        Err(error) => {
            say(format_args!("THE IMAGE WAS NOT BUILT AND NOT RUN: no Docker runs here: {error:#}"));
            return Ok(Outcome::NotChecked);
        }
    };
    if full {
        docker.import_base(&dist::target_dir(root).join("image"))?;
        build(&docker, &dist, root, &root.join("deploy/container/Dockerfile"), root)?;
    } else {
        build(&docker, &dist, root, &last_stage(root, &tree)?, &tree)?;
    }
    let size = docker.size(IMAGE)?;
    say(format_args!("image: {size} bytes, {:.1} MiB", size as f64 / f64::from(1 << 20)));
    ensure!(size < LIMIT, "the image is larger than {LIMIT} bytes");
    run::traces_the_host(&docker, IMAGE, &tree)?;
    Ok(Outcome::Passed)
}

fn build(docker: &Docker, dist: &Dist, root: &Path, file: &Path, context: &Path) -> Result<()> {
    let revision = output(Command::new("git").current_dir(root).args(["rev-parse", "HEAD"]))?;
    let created =
        output(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ", &format!("-d@{}", dist.epoch)]))?;
    let mut command = docker.command(["build", "--network=none", "--tag", IMAGE]);
    // The builder of Debian's Docker; a newer client would look for a plugin.
    command.env("DOCKER_BUILDKIT", "0");
    for (name, value) in [
        ("RUST_IMAGE", docker::BASE),
        ("SOURCE_DATE_EPOCH", &dist.epoch.to_string()),
        ("VERSION", &dist.version),
        ("REVISION", &revision),
        ("CREATED", &created),
    ] {
        command.arg("--build-arg").arg(format!("{name}={value}"));
    }
    process::run(command.arg("--file").arg(file).arg(context))
}

/// The last stage of the Dockerfile, with the tree that is there in place of the one that the stage before would make.
fn last_stage(root: &Path, tree: &Path) -> Result<PathBuf> {
    let all = fs::read_to_string(root.join("deploy/container/Dockerfile"))?;
    let path = tree.with_file_name("Dockerfile");
    fs::write(&path, last_stage_of(&all)?)?;
    Ok(path)
}

fn last_stage_of(all: &str) -> Result<String> {
    const COPY: &str = "COPY --from=build /src/target/image/tree/ /\n";
    let (_, stage) = all.rsplit_once("\nFROM ").context("the Dockerfile has no second stage")?;
    ensure!(stage.contains(COPY), "the Dockerfile's last stage has no line {:?}", COPY.trim());
    Ok(format!("FROM {}", stage.replace(COPY, "COPY . /\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_stage_stands_alone() {
        let all = fs::read_to_string(repo_root().unwrap().join("deploy/container/Dockerfile")).unwrap();
        let stage = last_stage_of(&all).unwrap();
        assert!(stage.starts_with("FROM scratch\nCOPY . /\n"), "{stage}");
        assert!(stage.contains("ENTRYPOINT [\"/probe\"]") && !stage.contains("--from"), "{stage}");
    }
}
