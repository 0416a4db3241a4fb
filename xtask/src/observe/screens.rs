//! Every query of the dashboards against a Prometheus that has data, and pictures of what it says.

use std::{fs, path::Path, process::Command};

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
    let venv = tools.join("plotter");
    let (note, pins) = (venv.join("pins"), PLOTTER.join("\n"));
    if !fs::read_to_string(&note).is_ok_and(|noted| noted == pins) {
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        process::run(Command::new(venv.join("bin/pip")).args(["install", "--quiet"]).args(PLOTTER))?;
        fs::write(&note, pins).with_context(|| format!("cannot write {}", note.display()))?;
    }
    let files = dashboards::files()?.into_iter().map(|(path, _)| root.join(path)).collect::<Vec<_>>();
    let spec = json!({
        "url": url,
        "dashboards": files,
        "may_be_empty": dashboards::may_be_empty(),
        "out": root.join(OUT),
    });
    let path = tools.join("screens.json");
    fs::write(&path, spec.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    process::run(Command::new(venv.join("bin/python")).arg(root.join(OUT).join("plot.py")).arg(path))
}
