//! The live tests: built once, run on this host and in virtual machines by the same runner (`tests/src/bin/live.rs`).

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    process::{self, output, say, show},
    protocol::{Event, Outcome, Plan, Suite},
};

/// Tells the live tests which `probe` to drive.
const PROBE_BIN: &str = "PROBE_BIN";
/// A test that takes longer on a host hangs.
const HOST_TIMEOUT_S: u64 = 180;

/// What the tests are made of.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    /// Programs of tests, by the name of their source file.
    suites: Vec<(String, PathBuf)>,
    pub(crate) probe: PathBuf,
    pub(crate) runner: PathBuf,
    /// Programs that tests start, by the path they know them by.
    pub(crate) tools: Vec<PathBuf>,
}

/// How a test ended, and how long it took.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) seconds: f64,
    /// Its first try failed.
    pub(crate) retried: bool,
}

/// Results of one kernel, by suite and test.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Results {
    /// `uname -r`; empty: it did not come up.
    pub(crate) kernel: String,
    pub(crate) tests: BTreeMap<String, Ended>,
}

impl Live {
    /// Builds tests, tools and `probe`, all optimised: emulated machines are slow enough.
    pub(crate) fn build(root: &Path) -> Result<Self> {
        let tests = executables(root, &["test", "--no-run", "--package", "probe-tests", "--test", "*"])?;
        let of_kind = |kind: &str| {
            let built = tests.iter().filter(|built| built.kind == kind);
            built.map(|built| (built.name.clone(), built.path.clone())).collect::<Vec<_>>()
        };
        let mut suites = of_kind("test");
        suites.sort();
        let bins = executables(root, &["build", "--package", "probe-tests", "--bins"])?;
        let probe = executables(root, &["build", "--package", "probe-user", "--bin", "probe"])?;
        let path_of = |all: &[Executable], name: &str| {
            let found = all.iter().find(|built| built.name == name).map(|built| built.path.clone());
            found.with_context(|| format!("cargo named no executable {name}"))
        };
        ensure!(!suites.is_empty(), "cargo named no programs of tests");
        let (probe, runner) = (path_of(&probe, "probe")?, path_of(&bins, "live")?);
        // Cargo names them in the order in which it happened to build them.
        let mut tools = bins.into_iter().map(|built| built.path).collect::<Vec<_>>();
        tools.retain(|path| *path != runner);
        tools.sort();
        Ok(Self { suites, probe, runner, tools })
    }

    /// The tests whose `suite::name` contains `filter`.
    pub(crate) fn plan(&self, filter: Option<&str>) -> Result<Plan> {
        let mut plan = Plan { timeout_s: HOST_TIMEOUT_S, ..Plan::default() };
        plan.env.insert(PROBE_BIN.into(), self.probe.to_string_lossy().into_owned());
        for (name, program) in &self.suites {
            let list = output(Command::new(program).args(["--list", "--format=terse"]))?;
            let wanted = |test: &&str| filter.is_none_or(|part| format!("{name}::{test}").contains(part));
            let tests = list.lines().filter_map(|line| line.strip_suffix(": test"));
            let tests = tests.filter(wanted).map(str::to_owned).collect::<Vec<_>>();
            if !tests.is_empty() {
                plan.suites.push(Suite { name: name.clone(), program: program.clone(), tests });
            }
        }
        Ok(plan)
    }

    /// All programs.
    pub(crate) fn programs(&self) -> impl Iterator<Item = &Path> {
        let suites = self.suites.iter().map(|(_name, path)| path);
        suites.chain([&self.probe, &self.runner]).chain(&self.tools).map(PathBuf::as_path)
    }

    /// Runs a plan on this host. Says each test's end.
    pub(crate) fn run_on_host(&self, root: &Path, plan: &Plan) -> Result<Results> {
        let directory = root.join("target/live");
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        let plan_path = directory.join("plan.json");
        fs::write(&plan_path, serde_json::to_vec(plan)?)?;
        let mut command = Command::new(&self.runner);
        command.arg(&plan_path).arg("/dev/stdout").current_dir(root.join("tests"));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", show(&command)))?;
        let mut results = Results::default();
        let mut ended = false;
        for line in child.stdout.take().map(BufReader::new).into_iter().flat_map(|pipe| pipe.lines()) {
            ended |= results.take(&line?, "")?;
        }
        let status = child.wait()?;
        ensure!(status.success() && ended, "`{}` failed: {status}", show(&command));
        Ok(results)
    }
}

impl Results {
    /// Takes one event of the runner and says it, after `prefix`. True: it was the last.
    pub(crate) fn take(&mut self, line: &str, prefix: &str) -> Result<bool> {
        let event = serde_json::from_str(line.trim()).with_context(|| format!("no event: {line:?}"))?;
        match event {
            Event::Started { kernel } => self.kernel = kernel,
            Event::Output { line } => say(line),
            Event::Ended { code } => {
                if let Some(code) = code.filter(|code| *code != 0) {
                    say(format_args!("{prefix}exit code {code}"));
                }
                return Ok(true);
            }
            Event::Test { name, outcome, seconds, first_failure } => {
                if let Some(output) = &first_failure {
                    say(format_args!("{prefix}test {name} ... FAILED, and is tried once more"));
                    output.lines().for_each(|line| say(format_args!("{prefix}    {line}")));
                }
                match &outcome {
                    Outcome::Passed => say(format_args!("{prefix}test {name} ... ok ({seconds:.1} s)")),
                    Outcome::Skipped { reason } => {
                        say(format_args!("{prefix}test {name} ... SKIPPED: {reason}"));
                    }
                    Outcome::Failed { output } => {
                        say(format_args!("{prefix}test {name} ... FAILED ({seconds:.1} s)"));
                        output.lines().for_each(|line| say(format_args!("{prefix}    {line}")));
                    }
                }
                let twice =
                    self.tests.insert(name, Ended { outcome, seconds, retried: first_failure.is_some() });
                ensure!(twice.is_none(), "a test ran twice: {line}");
            }
        }
        Ok(false)
    }

    /// Tests of the plan that did not report: a machine that dies half-way must not pass.
    pub(crate) fn missing(&self, plan: &Plan) -> Vec<String> {
        names(plan).filter(|name| !self.tests.contains_key(name)).collect()
    }

    /// How many ended in a way.
    pub(crate) fn count(&self, wanted: impl Fn(&Outcome) -> bool) -> usize {
        self.tests.values().filter(|ended| wanted(&ended.outcome)).count()
    }
}

/// `suite::test` of every test of a plan.
pub(crate) fn names(plan: &Plan) -> impl Iterator<Item = String> {
    plan.suites.iter().flat_map(|suite| suite.tests.iter().map(|test| format!("{}::{test}", suite.name)))
}

struct Executable {
    name: String,
    kind: String,
    path: PathBuf,
}

/// Builds, and reads from cargo's messages where everything is.
fn executables(root: &Path, args: &[&str]) -> Result<Vec<Executable>> {
    let mut command = process::cargo();
    command.current_dir(root).args(args).args(["--profile", "live", "--locked"]);
    command.arg("--message-format=json-render-diagnostics");
    let messages = output(&mut command)?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let found = messages.filter_map(|message| {
        let target = message.get("target")?;
        Some(Executable {
            name: target.get("name")?.as_str()?.to_owned(),
            kind: target.get("kind")?.get(0)?.as_str()?.to_owned(),
            path: message.get("executable")?.as_str()?.into(),
        })
    });
    let found = found.collect::<Vec<_>>();
    if found.is_empty() {
        bail!("`{}` named no executable", show(&command));
    }
    Ok(found)
}
