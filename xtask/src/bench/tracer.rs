//! Another process that traces while we measure.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::show;

/// How long a tracer may take to attach.
const PATIENCE: Duration = Duration::from_secs(20);
/// What CPU time is counted in, to user space: USER_HZ, which is the same wherever probe runs.
const TICKS_A_SECOND: f64 = 100.0;

/// A running tracer; interrupted when dropped.
pub(super) struct Tracer {
    child: Child,
    /// What it writes to stderr.
    stderr: File,
}

impl Tracer {
    /// Starts it, and waits until it holds that many BPF programs and its start has settled.
    pub(super) fn start(command: &mut Command, programs: usize) -> Result<Self> {
        Self::start_into(command, programs, Stdio::null())
    }

    /// The same, and what it prints comes out of a pipe.
    pub(super) fn start_piped(command: &mut Command, programs: usize) -> Result<(Self, ChildStdout)> {
        let mut tracer = Self::start_into(command, programs, Stdio::piped())?;
        let stdout = tracer.child.stdout.take().context("stdout is piped")?;
        Ok((tracer, stdout))
    }

    fn start_into(command: &mut Command, programs: usize, stdout: Stdio) -> Result<Self> {
        let stderr = File::from(memfd_create("stderr", MemfdFlags::CLOEXEC)?);
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
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

    /// MiB of its memory, its program's own pages with it; without BPF maps that it sees in its memory, which [`Self::memlock`] has.
    pub(super) fn resident(&self) -> Result<f64> {
        let path = format!("/proc/{}/smaps", self.pid());
        let smaps = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        resident_of_smaps(&smaps).with_context(|| format!("{path} has no Rss"))
    }

    /// Seconds of CPU that it has used, all its threads, the kernel's part with it.
    pub(super) fn cpu(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.pid());
        let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        cpu_of_stat(&stat).with_context(|| format!("{path} has no utime and stime"))
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

    /// How often its BPF programs ran, and for how many nanoseconds, while the kernel kept accounts of it.
    pub(super) fn programs_ran(&self) -> Result<(f64, f64)> {
        let (mut seen, mut sums) = (BTreeSet::new(), (0.0, 0.0));
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.pid()))? {
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
            if let (Some(id), Some(runs), Some(ran)) =
                (value("prog_id:"), value("run_cnt:"), value("run_time_ns:"))
                && value("link_id:").is_none()
                && seen.insert(id.to_owned())
            {
                sums = (sums.0 + runs.parse::<f64>()?, sums.1 + ran.parse::<f64>()?);
            }
        }
        ensure!(!seen.is_empty(), "process {} holds no BPF program", self.pid());
        Ok(sums)
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

/// utime and stime, fields 14 and 15 of proc_pid_stat(5), in seconds. The name, field 2, may have anything in it.
fn cpu_of_stat(stat: &str) -> Option<f64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let (user, system) = (fields.next()?.parse::<f64>().ok()?, fields.next()?.parse::<f64>().ok()?);
    Some((user + system) / TICKS_A_SECOND)
}

/// MiB of proc_pid_smaps(5): a head that ends with what is mapped, and lines of keys and values.
fn resident_of_smaps(smaps: &str) -> Option<f64> {
    let (mut is_map, mut kib) = (false, None);
    for line in smaps.lines() {
        let (first, rest) = line.split_once(char::is_whitespace)?;
        if !first.ends_with(':') {
            is_map = rest.ends_with("anon_inode:bpf-map");
        } else if first == "Rss:" && !is_map {
            let more: f64 = rest.split_whitespace().next()?.parse().ok()?;
            kib = Some(kib.unwrap_or(0.0) + more);
        }
    }
    kib.map(|kib| kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_no_memory_of_the_processs_own() {
        let smaps = "55-56 rw-p 0 00:00 0                     [heap]\nSize:   4096 kB\nRss:    2048 kB\nVmFlags: rd wr\n\
            57-58 rw-s 0 00:0f 9                     anon_inode:bpf-map\nRss:    8192 kB\n\
            59-60 rw-p 0 00:00 0 \nRss:    1024 kB\n";
        assert_eq!(resident_of_smaps(smaps), Some(3.0));
        assert_eq!(resident_of_smaps(""), None);
    }

    #[test]
    fn cpu_time_is_read_whatever_the_name() {
        let stat = "4711 (a b) c 9) S 1 4711 4711 0 -1 4194560 8342 0 12 0 150 75 3 4 20 0 5 0 1234 1 2";
        assert_eq!(cpu_of_stat(stat), Some(2.25));
        assert_eq!(cpu_of_stat("4711 (cut short) S 1 4711"), None);
        assert_eq!(cpu_of_stat(""), None);
    }
}
