//! Every query of the dashboards against a Prometheus that has data, and pictures of what it says.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::dashboards;
use crate::{
    process,
    toolchain::{self, PLOTTER},
};

const OUT: &str = "deploy/grafana/screens";

pub(super) fn run(root: &Path, url: &str) -> Result<()> {
    let tools = toolchain::tools_dir(root);
    let python = python(root, "plotter", &PLOTTER)?;
    let files = dashboards::files()?.into_iter().map(|(path, _)| root.join(path)).collect::<Vec<_>>();
    let spec = json!({
        "url": url,
        "dashboards": files,
        "may_be_empty": dashboards::may_be_empty(),
        "out": root.join(OUT),
    });
    let path = tools.join("screens.json");
    fs::write(&path, spec.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    process::run(Command::new(python).arg(root.join(OUT).join("plot.py")).arg(path))
}

/// A Python that has these packages and nothing else. Its pins are noted beside it once it is whole.
pub(super) fn python(root: &Path, name: &str, pins: &[&str]) -> Result<PathBuf> {
    let venv = toolchain::tools_dir(root).join(name);
    let (note, wanted) = (venv.join("pins"), pins.join("\n"));
    if !fs::read_to_string(&note).is_ok_and(|noted| noted == wanted) {
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        process::run(Command::new(venv.join("bin/pip")).args(["install", "--quiet"]).args(pins))?;
        fs::write(&note, wanted).with_context(|| format!("cannot write {}", note.display()))?;
    }
    Ok(venv.join("bin/python"))
}
