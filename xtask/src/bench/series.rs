//! What collecting and aggregating cost by themselves, without a kernel: figures of one core.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::median;
use crate::process::{self, say};

/// What is aimed at: milliseconds and MiB of a collection at 100,000 series, and MiB before it, by number of series.
const TARGETS: [(u32, &str); 2] = [
    (10_000, "in all under 64 MiB"),
    (100_000, "wanted: under 150 ms, under 32 MiB added, in all under 256 MiB"),
];

pub(super) fn run(root: &Path, rounds: u32) -> Result<()> {
    // A program of the tests, so that xtask need not be built with them.
    let build =
        ["build", "--quiet", "--release", "--locked", "--package", "probe-tests", "--bin", "aggregation"];
    process::run(process::cargo().current_dir(root).args(build))?;
    let program = root.join("target/release/aggregation");
    for (count, target) in TARGETS {
        let runs: Vec<Vec<f64>> =
            (0..rounds).map(|_| figures(&program, &["series", &count.to_string()])).collect::<Result<_>>()?;
        let middle = |index: usize| {
            median(&mut runs.iter().filter_map(|run| run.get(index).copied()).collect::<Vec<_>>())
        };
        say(format_args!(
            "{count} series: one collection with its encoding {:.1} ms; {:.1} MiB before, {:.1} MiB added meanwhile; {:.0} \
             requests of {:.1} MiB together ({target})",
            middle(0),
            middle(1),
            middle(2),
            middle(3),
            middle(4)
        ));
    }
    for kind in ["dns", "tcp"] {
        let mut runs: Vec<f64> = (0..rounds)
            .map(|_| figures(&program, &["records", kind])?.first().copied().context("no figure"))
            .collect::<Result<_>>()?;
        say(format_args!(
            "records of {kind}, decoded, attributed and aggregated: {:.2} million a second (wanted 1.5)",
            median(&mut runs) / 1e6
        ));
    }
    Ok(())
}

fn figures(program: &Path, args: &[&str]) -> Result<Vec<f64>> {
    let output = Command::new(program).args(args).output()?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace().map(|figure| figure.parse().context("no figure")).collect()
}
