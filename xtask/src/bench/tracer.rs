//! Another process that traces while we measure.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::show;

/// How long a tracer may take to attach.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running tracer; killed when dropped.
pub(super) struct Tracer(Child);

impl Tracer {
    /// Starts it, and waits until it holds that many BPF programs and its start has settled.
    pub(super) fn start(command: &mut Command, programs: usize) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start `{}`", show(command)))?;
        let mut tracer = Self(child);
        let deadline = Instant::now() + PATIENCE;
        while tracer.programs() < programs {
            if let Some(status) = tracer.0.try_wait()? {
                bail!("`{}` ended: {status}", show(command));
            }
            if Instant::now() > deadline {
                bail!("`{}` loaded no programs in {PATIENCE:?}", show(command));
            }
            thread::sleep(Duration::from_millis(20));
        }
        // Loaded is not yet attached, and none of these tools says when it is.
        thread::sleep(Duration::from_millis(700));
        Ok(tracer)
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// How many BPF programs it holds: the kernel's word for each descriptor.
    fn programs(&self) -> usize {
        let Ok(entries) = fs::read_dir(format!("/proc/{}/fdinfo", self.pid())) else { return 0 };
        let is_program = |path| fs::read_to_string(path).is_ok_and(|text| text.contains("prog_type:"));
        entries.flatten().filter(|entry| is_program(entry.path())).count()
    }

    /// What /proc says about it.
    pub(super) fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.pid());
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may be gone already.
            let _gone = kill_process(pid, Signal::INT);
        }
        let _waited = self.0.wait();
    }
}
