//! `cargo xtask deploy-check`: what is under deploy/ is right, as far as that can be told without a cluster. All steps run; the failures
//! are named at the end.

mod chart;
mod config;
mod expected;
mod manifests;
mod notes;
mod policy;
mod readme;
mod refused;
mod rights;
mod schemas;
mod security;
mod tools;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use self::tools::Tools;
use crate::{
    check::{self, Outcome},
    image, observe, package,
    process::repo_root,
};

/// The chart, below the repository's root.
const CHART: &str = "deploy/helm/probe";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write what is made from the chart (deploy/kubernetes, the table of values in its README) instead of comparing it
    #[arg(long)]
    write: bool,
    /// Only steps whose name contains this
    #[arg(long, value_name = "WORDS")]
    only: Option<String>,
    /// The probe that is asked whether it takes the configurations that the chart makes [default: built of these sources]
    #[arg(long, value_name = "FILE")]
    probe: Option<PathBuf>,
}

/// What every step gets.
struct Deploy {
    root: PathBuf,
    /// Where steps put what they look at; made anew by each run.
    scratch: PathBuf,
    tools: Tools,
    write: bool,
    probe: Option<PathBuf>,
}

type Step = (&'static str, fn(&Deploy) -> Result<Outcome>);

const STEPS: [Step; 13] = [
    ("chart: lint", chart::lint),
    ("chart: what Kubernetes' schemas say", schemas::check),
    ("chart: policy", policy::check),
    ("chart: values that are refused", refused::check),
    ("chart: notes", notes::check),
    ("chart: keys of probe.yaml", config::keys),
    ("chart: configurations, as probe reads them", config::check),
    ("chart: capabilities, as doctor lists them", rights::check),
    ("chart: table of values", readme::check),
    ("plain manifests", manifests::check),
    ("rules, dashboards, collectors", |deploy| observe::check(&deploy.root)),
    ("Debian package", |deploy| package::check(&deploy.root)),
    ("container image", |deploy| image::check(&deploy.root)),
];

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = repo_root()?;
    let deploy = Deploy {
        scratch: tools::scratch(&root)?,
        tools: tools::ensure(&root)?,
        root,
        write: args.write,
        probe: args.probe.clone(),
    };
    let only = args.only.as_deref().unwrap_or_default();
    ensure!(STEPS.iter().any(|(name, _)| name.contains(only)), "no step is named `{only}`");
    check::all(STEPS.into_iter().filter(|(name, _)| name.contains(only)), |step| step(&deploy))
}

/// One error of all that is wrong, if anything is.
fn all_of(faults: Vec<String>) -> Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{} found:\n  {}", faults.len(), faults.join("\n  "));
}
