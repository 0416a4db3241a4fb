//! The program under test: `probe` as a child process with `-o json`, its lines read as they come.

use std::ffi::OsStr;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use probe_common::fields::FIELDS;
use probe_user::kernel::btf::KernelBtf;
use probe_user::kernel::fields::{Resolved, resolve};
use probe_user::load::{ObjectSpec, ProgramSpec};
use probe_user::signals;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::protocol::IN_GUEST;

/// How long `probe` may take to start, and to end.
const START: Duration = Duration::from_secs(120);
const END: Duration = Duration::from_secs(60);
/// `probe` flushes its lines at least so often that anything missing after this never comes.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How many times longer everything may take in an emulated machine.
const EMULATED: u32 = 6;
/// Between two looks at something that cannot be waited for. In an emulated machine, looking takes the time of what is looked
/// at.
const POLL: Duration = Duration::from_millis(5);
const EMULATED_POLL: Duration = Duration::from_millis(40);

/// Fails unless this process is root: a live test that cannot run must not pass.
///
/// # Errors
///
/// Not root.
pub fn require_root() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "live tests load BPF programs, which needs root: run `cargo xtask test` as root"
    );
    Ok(())
}

/// Whether this is a virtual machine of `cargo xtask vm`: slow, and nobody else's.
#[must_use]
pub fn in_guest() -> bool {
    std::env::var_os(IN_GUEST).is_some()
}

/// A deadline as this machine needs it: stated for a host, longer in an emulated machine.
#[must_use]
pub fn patient(deadline: Duration) -> Duration {
    if in_guest() { deadline * EMULATED } else { deadline }
}

/// Asks until there is an answer. In an emulated machine the deadline is longer.
///
/// # Errors
///
/// `ask` fails, or has no answer within `deadline`.
pub fn poll<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = patient(deadline);
    let end = Instant::now() + deadline;
    loop {
        // Asked once more after the deadline: this thread may have slept through it.
        let late = Instant::now() >= end;
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if late {
            bail!("{what}: not within {deadline:?}");
        }
        std::thread::sleep(if in_guest() { EMULATED_POLL } else { POLL });
    }
}

/// One line that `probe` wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Line(pub Value);

impl Line {
    /// What happened: attribute `event`.
    #[must_use]
    pub fn event(&self) -> &str {
        self.text("event").unwrap_or_default()
    }

    /// An attribute's value.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// An attribute that is text.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// An attribute that is a count, a port, a pid.
    #[must_use]
    pub fn int(&self, key: &str) -> Option<i64> {
        self.get(key)?.as_i64()
    }

    /// An attribute that is a fraction, most often seconds.
    #[must_use]
    pub fn float(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }
}

/// What the child has written so far.
#[derive(Debug, Default)]
struct Lines {
    lines: Vec<Line>,
    /// The first line that is no JSON.
    broken: Option<String>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<Lines>,
    arrived: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running `probe`. It is killed when dropped; [`Probe::stop`] ends it as a user would.
#[derive(Debug)]
pub struct Probe {
    child: Child,
    shared: Arc<Shared>,
    stdout: Option<JoinHandle<()>>,
    stderr: Option<JoinHandle<String>>,
}

/// How it ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// All lines.
    pub lines: Vec<Line>,
    /// All of stderr.
    pub stderr: String,
    /// Exit code; `None`: it died of a signal.
    pub code: Option<i32>,
}

impl Finished {
    /// Whether it ended well and lost nothing, by its own account.
    ///
    /// # Errors
    ///
    /// Another exit code than 0, a `probe.loss` line, or a loss in the closing lines.
    pub fn require_complete(&self) -> Result<()> {
        ensure!(self.code == Some(0), "probe ended with {:?}: {}", self.code, self.stderr);
        if let Some(loss) = self.lines.iter().find(|line| line.event() == "probe.loss") {
            bail!("probe lost something: {}", loss.0);
        }
        ensure!(self.stderr.contains("nothing was lost"), "probe lost something: {}", self.stderr);
        Ok(())
    }
}

/// The binary: what `PROBE_BIN` names (`cargo xtask test` sets it), else a fresh debug build.
///
/// # Errors
///
/// It does not build.
pub fn binary() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(path) = std::env::var_os("PROBE_BIN") {
        return Ok(path.into());
    }
    BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

/// Builds it: a binary that lies about may be of another day's sources.
fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args(["build", "--quiet", "--package", "probe-user", "--bin", "probe", "--message-format=json"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo to build probe; set PROBE_BIN to the binary to test")?;
    ensure!(output.status.success(), "cannot build probe; set PROBE_BIN to the binary to test");
    let executable = output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .next_back();
    executable.context("cargo named no executable")
}

/// The command `probe ARGS`, for those who want to run it their own way. Nothing of the caller's configuration
/// reaches it.
///
/// # Errors
///
/// The binary does not build.
pub fn command<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null());
    for (name, _value) in std::env::vars_os() {
        if ["OTEL_", "PROBE_"].iter().any(|ours| name.to_string_lossy().starts_with(ours)) {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// Runs `probe ARGS` to its end, whatever that is.
///
/// # Errors
///
/// It does not start, or does not end in time.
pub fn run<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Result<Output> {
    let mut child = command(args)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let drain = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What a broken pipe leaves is what there is.
            let _broken = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
            bytes
        })
    };
    let stdout = drain(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = drain(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let status = poll("the end of probe", END, || Ok(child.try_wait()?));
    if status.is_err() {
        child.kill()?;
        child.wait()?;
    }
    Ok(Output {
        status: status?,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

impl Probe {
    /// Starts `probe ARGS -o json` and waits until every program of its signals is attached; the first of `args` is the
    /// subcommand.
    ///
    /// # Errors
    ///
    /// Not root; it does not start, ends at once (with its stderr), or is not ready in time.
    pub fn start(args: &[&str]) -> Result<Self> {
        Self::start_with(args, |_command| {})
    }

    /// As [`Self::start`], after `adjust` has had its way with the command: environment, working directory.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub fn start_with(args: &[&str], adjust: impl FnOnce(&mut Command)) -> Result<Self> {
        require_root()?;
        let mut command = command(args)?;
        command.args(["-o", "json"]);
        adjust(&mut command);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let shared = Arc::new(Shared::default());
        let stdout = child.stdout.take().map(|pipe| {
            let shared = shared.clone();
            std::thread::spawn(move || read_lines(BufReader::new(pipe), &shared))
        });
        let stderr = child.stderr.take().map(|mut pipe| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                // What a broken pipe leaves is what there is.
                let _broken = pipe.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        let mut probe = Self { child, shared, stdout, stderr };
        probe.wait_until_attached(expected_links(args.first().copied().unwrap_or_default()))?;
        Ok(probe)
    }

    fn wait_until_attached(&mut self, links: usize) -> Result<()> {
        let ready = poll("probe is ready", START, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("probe ended at its start, {status}");
            }
            Ok((attached_links(self.pid())? >= links && handles_interrupt(self.pid())?).then_some(()))
        });
        ready.or_else(|error| {
            // It may have ended by itself; either way its stderr is what the reader of this needs.
            let _ended = self.child.kill();
            self.child.wait()?;
            let stderr = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
            Err(error.context(format!("{links} programs were to be attached; probe's stderr: {stderr}")))
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.shared.lock().lines.clone()
    }

    /// Shows `found` all lines so far, after every arrival, until it finds something in them.
    ///
    /// # Errors
    ///
    /// `what` did not come within `deadline`, a line is no JSON, or `probe` closed its stdout; with the last lines.
    pub fn wait_for<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut found: impl FnMut(&[Line]) -> Option<T>,
    ) -> Result<T> {
        let deadline = patient(deadline);
        let end = Instant::now() + deadline;
        let mut lines = self.shared.lock();
        loop {
            if let Some(broken) = &lines.broken {
                bail!("a line is no JSON: {broken}");
            }
            if let Some(found) = found(&lines.lines) {
                return Ok(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || lines.closed {
                let last: Vec<String> =
                    lines.lines.iter().rev().take(30).map(|line| line.0.to_string()).collect();
                let why = if lines.closed { "stdout was closed" } else { "the time is up" };
                bail!(
                    "{what}: not among {} lines within {deadline:?}: {why}; {:?} runs of programs missed. The last lines, newest first:\n{}",
                    lines.lines.len(),
                    self.program_misses(),
                    last.join("\n")
                );
            }
            lines = self.shared.arrived.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How often the kernel did not run one of its programs, because that very program was running on the CPU already.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn program_misses(&self) -> Result<u64> {
        let mut misses = 0;
        for info in fdinfo(self.pid())? {
            let missed = info.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
            misses += missed.map_or(Ok(0), |missed| missed.trim().parse::<u64>())?;
        }
        Ok(misses)
    }

    /// Waits for a line that `wanted` accepts and returns the first.
    ///
    /// # Errors
    ///
    /// As [`Self::wait_for`], with [`DEADLINE`].
    pub fn line(&self, what: &str, wanted: impl Fn(&Line) -> bool) -> Result<Line> {
        self.wait_for(what, DEADLINE, |lines| lines.iter().find(|line| wanted(line)).cloned())
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("no such pid")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Ends it as Ctrl-C does, and collects what it wrote.
    ///
    /// # Errors
    ///
    /// It does not end in time, or a line is no JSON.
    pub fn stop(self) -> Result<Finished> {
        self.signal(Signal::INT)?;
        self.finish()
    }

    /// Waits for its end (`--duration`, `--count`) and collects what it wrote.
    ///
    /// # Errors
    ///
    /// As [`Self::stop`].
    pub fn finish(mut self) -> Result<Finished> {
        let status = poll("the end of probe", END, || Ok(self.child.try_wait()?))?;
        let stderr = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let _joined = self.stdout.take().map(JoinHandle::join);
        let mut lines = self.shared.lock();
        if let Some(broken) = &lines.broken {
            bail!("a line is no JSON: {broken}");
        }
        Ok(Finished { lines: std::mem::take(&mut lines.lines), stderr, code: status.code() })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn read_lines(stdout: impl std::io::BufRead, shared: &Shared) {
    for line in stdout.split(b'\n').map_while(Result::ok) {
        let mut lines = shared.lock();
        match serde_json::from_slice(&line) {
            Ok(value @ Value::Object(_)) => lines.lines.push(Line(value)),
            Ok(_) | Err(_) if lines.broken.is_some() => {}
            Ok(_) | Err(_) => lines.broken = Some(String::from_utf8_lossy(&line).into_owned()),
        }
        shared.arrived.notify_all();
    }
    shared.lock().closed = true;
    shared.arrived.notify_all();
}

/// Programs of an object that have work on this kernel.
pub fn programs_here(object: &ObjectSpec) -> impl Iterator<Item = &'static ProgramSpec> {
    static FIELDS_HERE: OnceLock<Option<Resolved>> = OnceLock::new();
    let fields = FIELDS_HERE.get_or_init(|| Some(resolve(&KernelBtf::from_host().ok()?, FIELDS)));
    object.programs.iter().filter(|spec| fields.as_ref().is_none_or(|fields| spec.has_work(fields)))
}

/// Links that a subcommand holds once it is ready, those of backups aside: of the signal of that name, else of all.
#[must_use]
pub fn expected_links(subcommand: &str) -> usize {
    let all = || signals::ALL.iter().map(|kind| kind.object());
    let links = |object: &ObjectSpec| programs_here(object).count() + usize::from(object.walk.is_some());
    match all().find(|object| object.name == subcommand) {
        Some(object) => links(object),
        None => all().map(links).sum(),
    }
}

/// What the kernel says about each descriptor of a process.
///
/// # Errors
///
/// It is gone.
pub fn fdinfo(pid: u32) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo"))?;
    // A descriptor may be closed while we look.
    Ok(entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok()).collect())
}

/// Links that a process holds: programs that are attached.
///
/// # Errors
///
/// It is gone.
pub fn attached_links(pid: u32) -> Result<usize> {
    let is_link = |info: &&String| info.lines().any(|line| line.starts_with("link_type:"));
    Ok(fdinfo(pid)?.iter().filter(is_link).count())
}

/// Whether a process catches SIGINT: one that does not yet would die of it instead of ending cleanly.
///
/// # Errors
///
/// It is gone.
pub fn handles_interrupt(pid: u32) -> Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let caught =
        status.lines().find_map(|line| line.strip_prefix("SigCgt:")).context("no SigCgt in the status")?;
    let caught = u64::from_str_radix(caught.trim(), 16)?;
    Ok(caught & (1 << (libc::SIGINT - 1)) != 0)
}
