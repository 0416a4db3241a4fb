//! Another process that traces while we measure.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::show;

/// How long a tracer may take to attach.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running tracer; interrupted when dropped.
pub(super) struct Tracer {
    child: Child,
    /// What it writes to stderr.
    stderr: File,
}

impl Tracer {
    /// Starts it, and waits until it holds that many BPF programs and its start has settled.
    pub(super) fn start(command: &mut Command, programs: usize) -> Result<Self> {
        let stderr = File::from(memfd_create("stderr", MemfdFlags::CLOEXEC)?);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start `{}`", show(command)))?;
        let mut tracer = Self { child, stderr };
        let deadline = Instant::now() + PATIENCE;
        while tracer.programs() < programs {
            tracer.require_running(command)?;
            if Instant::now() > deadline {
                bail!("`{}` loaded no programs in {PATIENCE:?}", show(command));
            }
            thread::sleep(Duration::from_millis(20));
        }
        // Loaded is not yet attached, and none of these tools says when it is.
        thread::sleep(Duration::from_millis(700));
        tracer.require_running(command)?;
        Ok(tracer)
    }

    fn require_running(&mut self, command: &Command) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            // What follows is most often a consequence.
            let said = self.said()?;
            let first = said.lines().find(|line| !line.is_empty()).unwrap_or("it said nothing");
            bail!("`{}` ended, {status}: {first}", show(command));
        }
        Ok(())
    }

    /// What it has written to stderr.
    fn said(&self) -> Result<String> {
        let mut bytes = vec![0; usize::try_from(self.stderr.metadata()?.len())?];
        // The offset of the descriptor is the writer's.
        self.stderr.read_exact_at(&mut bytes, 0)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Ends it as Ctrl-C does. Returns what it wrote to stderr.
    pub(super) fn stop(mut self) -> Result<String> {
        self.end()?;
        self.said()
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many BPF programs it holds: the kernel's word for each descriptor.
    fn programs(&self) -> usize {
        let Ok(entries) = fs::read_dir(format!("/proc/{}/fdinfo", self.pid())) else { return 0 };
        let is_program = |path| fs::read_to_string(path).is_ok_and(|text| text.contains("prog_type:"));
        entries.flatten().filter(|entry| is_program(entry.path())).count()
    }

    /// MiB of its memory that no file stands behind.
    pub(super) fn anonymous(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
            .with_context(|| format!("{path} has no RssAnon"))?;
        Ok(kib / 1024.0)
    }

    /// MiB that the kernel charges it for its BPF objects: the `memlock` of each map and program it holds, once.
    pub(super) fn memlock(&self) -> Result<f64> {
        let pid = self.pid();
        let mut seen = BTreeSet::new();
        let mut sum = 0.0;
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            // Descriptors come and go meanwhile.
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
            let id = value("map_id:")
                .map(|id| ("map", id.to_owned()))
                .or_else(|| value("prog_id:").map(|id| ("prog", id.to_owned())));
            if let (Some(id), Some(bytes)) = (id, value("memlock:"))
                && seen.insert(id)
            {
                sum += bytes.parse::<f64>().unwrap_or(0.0);
            }
        }
        ensure!(sum > 0.0, "process {pid} holds no BPF map");
        Ok(sum / 1048576.0)
    }

    /// Does nothing where it has ended already: its pid may be another's.
    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("no such pid")?;
            kill_process(pid, Signal::INT)?;
            self.child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ended = self.end();
    }
}
