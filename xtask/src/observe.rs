//! `cargo xtask observe`: rules, dashboards and configurations of collectors under deploy/, made and checked.

mod collector;
mod contract;
mod dashboards;
mod promql;
mod query;
mod rules;
mod screens;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use contract::Contract;

use crate::{
    check::Outcome,
    process::{self, repo_root, say},
    setup,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write what is made, in place of comparing it
    #[arg(long)]
    write: bool,

    /// Run every query of the dashboards against this Prometheus, and draw them into deploy/grafana/screens
    #[arg(long, value_name = "URL", conflicts_with = "write")]
    screens: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = repo_root()?;
    if args.write {
        for (path, text) in files()? {
            fs::write(root.join(path), text).with_context(|| format!("cannot write {path}"))?;
        }
    }
    if let Some(url) = &args.screens {
        return screens::run(&root, url);
    }
    match check(&root)? {
        Outcome::Passed => Ok(()),
        Outcome::NotChecked => bail!("not all could be checked here"),
    }
}

/// All that is made from the code, by path.
fn files() -> Result<Vec<(&'static str, String)>> {
    Ok([rules::files()?, dashboards::files()?].concat())
}

pub(crate) fn check(root: &Path) -> Result<Outcome> {
    for (path, text) in files()? {
        let there = fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))?;
        ensure!(there == text, "{path} is stale: cargo xtask observe --write");
    }
    let mut contract = Contract::read(root)?;
    // Before the rules: dashboards have to do without what those record.
    let queries = dashboards::queries(&contract)?;
    say(format_args!("dashboards: {queries} queries name what there is"));
    dashboards::round_trip(root)?;
    let queries = rules::queries(&mut contract)?;
    say(format_args!("rules: {queries} queries name what there is"));
    say(format_args!("collector: {} configurations hold together", collector::check(root)?));
    promtool(root)
}

/// Debian's word on rules, and their tests.
fn promtool(root: &Path) -> Result<Outcome> {
    let directory = root.join("deploy/prometheus");
    let tests = yaml_files(&directory.join("tests"))?;
    let parsed = tests.iter().map(|file| yaml(file)).collect::<Result<Vec<_>>>()?;
    rules::are_tested(&parsed)?;
    setup::ensure_prometheus()?;
    let run = |arguments: &[&str], files: &[PathBuf]| {
        process::run(Command::new("promtool").current_dir(&directory).args(arguments).args(files))
    };
    run(&["check", "rules", "probe.rules.yml"], &[])?;
    run(&["test", "rules"], &tests)?;
    Ok(Outcome::Passed)
}

fn yaml_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yml" || extension == "yaml"));
    files.sort();
    ensure!(!files.is_empty(), "no YAML in {}", directory.display());
    Ok(files)
}

fn yaml(file: &Path) -> Result<serde_json::Value> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))
}
