//! Runs a program beside probe, and under those that it must agree with.
//!
//! Each tracer starts `launch`, made by hand, and that the program: so that everybody sees the program whole, from the return of
//! the fork that began it. What the launcher does itself is four calls and its end.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use probe_tests::elf::{Abi, Program};
use probe_tests::probe::{DEADLINE, Line, Probe, in_guest, poll};
use probe_tests::tracers::{
    Counts, PACKAGES, perf_stat, perf_trace, read_perf_stat, read_perf_trace, read_strace, strace,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Calls of the launcher that return, its own execve among them.
const LAUNCHER: [&str; 4] = ["execve", "rt_sigaction", "fork", "wait4"];
/// Entries that perf sees of it: its execve began before perf did, and from exit_group it does not return.
const LAUNCHER_ENTERS: i64 = 4;
const LAUNCHER_EXITS: i64 = 4;

/// In place of a call's number.
const RUNNING: i64 = -1;

/// Calls and errors, each by name.
pub(crate) type Rows = BTreeMap<String, (i64, BTreeMap<String, i64>)>;

/// A row as it is written in tests: call, how often, errors by errno.
pub(crate) type Row<'a> = (&'a str, i64, &'a [(&'a str, i64)]);

pub(crate) fn rows(rows: &[Row<'_>]) -> Rows {
    let errors =
        |errors: &[(&str, i64)]| errors.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    rows.iter().map(|(call, calls, failed)| ((*call).to_owned(), (*calls, errors(failed)))).collect()
}

/// A directory of programs, whose names nobody else's processes have.
pub(crate) struct Scene {
    directory: PathBuf,
    number: u32,
}

impl Scene {
    pub(crate) fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("probe-equality-{}-{number}", std::process::id()));
        std::fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        Ok(Self { directory, number })
    }

    /// What processes of the program are called: at most 15 octets.
    pub(crate) fn comm(&self, name: &str) -> String {
        format!("{name}{}{}", self.number, std::process::id())
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.join(self.comm(name)).display().to_string()
    }

    /// Writes a program.
    pub(crate) fn write(&self, name: &str, program: &Program) -> Result<()> {
        program.write(Path::new(&self.path(name)))
    }

    /// The launcher of a program.
    fn write_launcher(&self, argv: &[&str]) -> Result<()> {
        let mut launcher = Program::new(Abi::X86_64);
        // Under strace, signals that would be ignored interrupt calls nevertheless: none comes for a child that stops or goes on.
        let default = [0, libc::SA_NOCLDSTOP as u64, 0, 0].map(u64::to_le_bytes).concat();
        let default = launcher.data(&default);
        launcher.call(libc::SYS_rt_sigaction, &[libc::SIGCHLD, default, 0, 8]);
        launcher.beget(libc::SYS_fork, &[], |child| child.exec(libc::SYS_execve, argv));
        launcher.call(libc::SYS_wait4, &[-1, 0, 0, 0]);
        launcher.call(libc::SYS_exit_group, &[0]);
        self.write("launch", &launcher)
    }

    /// Runs program `argv[0]`, by path, beside probe and perf, then under strace, and once more for perf's own count. `drive` is
    /// called each time, to have it do what it does not do by itself.
    pub(crate) fn measure(
        &self,
        argv: &[&str],
        drive: impl Fn(&mut Running) -> Result<()>,
    ) -> Result<Outcome> {
        self.write_launcher(argv)?;
        let report = self.directory.join("report");
        let run = |tracer: Option<Command>| -> Result<Option<String>> {
            let traced = tracer.is_some();
            let mut running = Running::start(self, tracer, argv)?;
            drive(&mut running)?;
            running.end()?;
            let read = || std::fs::read_to_string(&report).with_context(|| report.display().to_string());
            traced.then(read).transpose()
        };
        let host = !in_guest();
        let probe = Probe::start(&["syscalls", "--interval", "1h"])?;
        let perf = run(host.then(|| perf_trace(&report)))?;
        let finished = probe.stop()?;
        finished.require_complete()?;
        let mut outcome = Outcome {
            lines: finished.lines,
            launcher: self.comm("launch"),
            perf: perf.as_deref().map(read_perf_trace).transpose()?,
            strace: None,
            stat: None,
        };
        if host {
            outcome.strace = run(Some(strace(&report)))?.as_deref().map(read_strace).transpose()?;
            outcome.stat = run(Some(perf_stat(&report)))?.as_deref().map(read_perf_stat).transpose()?;
        }
        Ok(outcome)
    }

    /// Looks at a program that waits in read, and lets it go on then: by probe, and by `perf stat` with entries and exits.
    pub(crate) fn measure_later(
        &self,
        path: &str,
        drive: impl Fn(&mut Running) -> Result<()>,
    ) -> Result<(Outcome, Option<(i64, i64)>)> {
        self.write_launcher(&[path])?;
        let mut running = Running::start(self, None, &[path])?;
        let pid = running.blocked(&[libc::SYS_read])?.to_string();
        let probe = Probe::start(&["syscalls", "--interval", "1h", "--pid", &pid])?;
        let report = self.directory.join("report");
        let perf = (!in_guest()).then(|| self.perf_stat_later(&report, &pid)).transpose()?;
        drive(&mut running)?;
        running.end()?;
        let finished = probe.stop()?;
        finished.require_complete()?;
        let outcome = Outcome {
            lines: finished.lines,
            launcher: self.comm("launch"),
            perf: None,
            strace: None,
            stat: None,
        };
        let Some(mut perf) = perf else { return Ok((outcome, None)) };
        // It ends with whom it looks at.
        let status = poll("the end of perf", Duration::from_secs(60), || Ok(perf.0.try_wait()?))?;
        ensure!(status.success(), "perf: {status}");
        Ok((outcome, Some(read_perf_stat(&std::fs::read_to_string(&report)?)?)))
    }

    /// `perf stat` of a process that runs, once it counts.
    fn perf_stat_later(&self, report: &Path, pid: &str) -> Result<Killed> {
        let [control, answer] = ["control", "answer"].map(|name| self.directory.join(name));
        for fifo in [&control, &answer] {
            mknodat(CWD, fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        }
        let mut command = perf_stat(report);
        // Disabled, until it is told.
        command.args(["--delay", "-1", "--control"]);
        command.arg(format!("fifo:{},{}", control.display(), answer.display())).args(["--pid", pid]);
        // Opened both ways: neither waits for the other end.
        let open = |path: &Path| std::fs::OpenOptions::new().read(true).write(true).open(path);
        let (mut tell, mut hear) = (open(&control)?, open(&answer)?);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let perf = Killed(command.spawn().with_context(|| format!("{command:?}: {PACKAGES}"))?);
        tell.write_all(b"enable\n")?;
        hear.read_exact(&mut [0; 4])?;
        Ok(perf)
    }
}

/// A process that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // The machine's own cleaning takes the rest.
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

/// A program that runs, under whatever tracer. All of them are killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    comm: String,
    /// Where stderr goes.
    log: PathBuf,
}

impl Running {
    fn start(scene: &Scene, tracer: Option<Command>, argv: &[&str]) -> Result<Self> {
        let launcher = scene.path("launch");
        let mut command = match tracer {
            Some(mut tracer) => {
                tracer.arg(launcher);
                tracer
            }
            None => Command::new(launcher),
        };
        let log = scene.directory.join("log");
        let stderr = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().with_context(|| format!("{command:?}: {PACKAGES}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("stdout is piped")?;
        let path = argv.first().map(Path::new).and_then(Path::file_name).context("no program")?;
        let comm = path.to_string_lossy().chars().take(15).collect();
        Ok(Self { child, stdin, stdout, comm, log })
    }

    /// The process id of the program, once there is one of its name.
    pub(crate) fn pid(&self) -> Result<u32> {
        poll("the program runs", DEADLINE, || {
            let named = |pid: &u32| {
                let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
                comm.is_ok_and(|comm| comm.trim_end() == self.comm)
            };
            let entries = std::fs::read_dir("/proc")?
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
            // The oldest: it may have children.
            Ok(entries.filter(named).min())
        })
    }

    /// Waits until so many of its threads are inside these calls, each as often as it is named.
    pub(crate) fn blocked(&self, calls: &[i64]) -> Result<u32> {
        let pid = self.pid()?;
        let mut want = calls.to_vec();
        want.sort_unstable();
        poll(&format!("threads inside {want:?}"), DEADLINE, || {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))?;
            let mut inside: Vec<i64> = tasks
                .filter_map(|task| {
                    // One that is gone has no file; one that runs is inside nothing.
                    let text = std::fs::read_to_string(task.ok()?.path().join("syscall")).ok()?;
                    Some(text.split_whitespace().next()?.parse().unwrap_or(RUNNING))
                })
                .collect();
            inside.sort_unstable();
            Ok((inside == want).then_some(()))
        })?;
        Ok(pid)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(pid(self.pid()?)?, signal)?)
    }

    /// Waits until it is stopped.
    pub(crate) fn stopped(&self) -> Result<()> {
        let pid = self.pid()?;
        poll("the program is stopped", DEADLINE, || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            // Under strace: t.
            Ok(state.filter(|state| matches!(state, 'T' | 't')).map(drop))
        })
    }

    /// Gives it an octet to read.
    pub(crate) fn say(&mut self) -> Result<()> {
        Ok(self.stdin.as_mut().context("stdin is closed")?.write_all(b".")?)
    }

    /// Waits for an octet that it writes.
    pub(crate) fn hear(&mut self) -> Result<()> {
        Ok(self.stdout.read_exact(&mut [0])?)
    }

    /// Gives it all of this to read, and no more after it.
    pub(crate) fn tell(&mut self, text: &str) -> Result<()> {
        let mut stdin = self.stdin.take().context("stdin is closed")?;
        Ok(stdin.write_all(text.as_bytes())?)
    }

    fn end(mut self) -> Result<()> {
        let status =
            poll("the end of the program", Duration::from_secs(60), || Ok(self.child.try_wait()?))?;
        ensure!(status.success(), "{status}: {}", std::fs::read_to_string(&self.log).unwrap_or_default());
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Of one that ended by itself, the number may be another's by now.
        if let (Ok(None), Ok(group)) = (self.child.try_wait(), pid(self.child.id())) {
            let _gone = kill_process_group(group, Signal::KILL);
        }
        drop(self.child.wait());
    }
}

fn pid(number: u32) -> Result<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw).context("no such pid")
}

/// What the tracers said.
pub(crate) struct Outcome {
    pub(crate) lines: Vec<Line>,
    launcher: String,
    /// By the name of the process.
    perf: Option<BTreeMap<String, Counts>>,
    strace: Option<Counts>,
    /// Entries and exits.
    stat: Option<(i64, i64)>,
}

/// How others differ from what was done, in calls and errors, and never by a tolerance.
#[derive(Default)]
pub(crate) struct Beyond<'a> {
    /// Calls of processes of some name that perf trace counts more or less often.
    pub(crate) perf: &'a [(&'a str, &'a str, i64, i64)],
    /// Calls that strace counts more or less often.
    pub(crate) strace: &'a [(&'a str, i64, i64)],
    /// Calls that nobody returns from, by whatever way threads end.
    pub(crate) ends: i64,
    /// perf knows threads by the name that they had as they died, probe by their process's: all under the one name.
    pub(crate) renamed: bool,
    /// Threads and processes that began: each returns once from a call that it has not made.
    pub(crate) born: i64,
}

impl Outcome {
    /// What probe counted, of the processes of that name.
    pub(crate) fn of(&self, comm: &str) -> Result<Rows> {
        let mut rows = Rows::new();
        for line in &self.lines {
            if line.event() != "syscall.summary" || line.text("process.comm") != Some(comm) {
                continue;
            }
            let row = rows.entry(line.text("syscall.name").context("no name")?.to_owned()).or_default();
            row.0 += line.int("count").context("no count")?;
            for (errno, count) in
                line.get("errors").and_then(|errors| errors.as_object()).context("no errors")?
            {
                *row.1.entry(errno.clone()).or_default() += count.as_i64().context("no count of errors")?;
            }
        }
        Ok(rows)
    }

    /// Seconds in a call of processes of that name: probe's, perf's and strace's.
    pub(crate) fn seconds(&self, comm: &str, call: &str) -> (f64, Option<f64>, Option<f64>) {
        let of_call = |line: &&Line| {
            line.text("process.comm") == Some(comm)
                && line.text("syscall.name") == Some(call)
                && line.event() == "syscall.summary"
        };
        let probe = self.lines.iter().filter(of_call).filter_map(|line| line.float("duration.sum")).sum();
        let seconds = |counts: &Counts| counts.get(call).map_or(0.0, |count| count.seconds);
        let perf = self.perf.as_ref().map(|perf| perf.get(comm).map_or(0.0, seconds));
        (probe, perf, self.strace.as_ref().map(seconds))
    }

    /// Compares what the processes of these names did, which are all that ran, with what others say of them, and probe. Where there
    /// are no others, with probe.
    pub(crate) fn compare(&self, all: &[(&str, &Rows)], beyond: &Beyond<'_>) -> Result<()> {
        self.compare_beside(all, &[], beyond)?;
        if let (Some(strace), Some(stat)) = (&self.strace, self.stat) {
            let ours = with_launcher(all);
            let want =
                beyond.strace.iter().map(|(call, calls, errors)| ((*call).to_owned(), (*calls, *errors)));
            assert_eq!(
                difference(strace, &ours),
                want.collect(),
                "strace beyond what was done: {ours:?}\n{strace:?}"
            );

            // The program itself is one that began.
            let returned: i64 = all.iter().flat_map(|(_, rows)| rows.values()).map(|(calls, _)| calls).sum();
            let enters = returned + LAUNCHER_ENTERS + beyond.ends;
            let exits = returned + LAUNCHER_EXITS + beyond.born + 1;
            assert_eq!(
                stat,
                (enters, exits),
                "entries and exits of perf stat, {returned} of which the program's"
            );
        }
        for (comm, rows) in all {
            assert_eq!(self.of(comm)?, **rows, "probe, and what was done: {comm}");
        }
        Ok(())
    }

    /// Compares with perf trace alone, which ran beside probe: every call was the same one. Where whatever begins is `made` by
    /// these calls, what perf counts more of them is what began.
    pub(crate) fn compare_beside(
        &self,
        all: &[(&str, &Rows)],
        made: &[&str],
        beyond: &Beyond<'_>,
    ) -> Result<()> {
        let Some(perf) = &self.perf else { return Ok(()) };
        let mut perf = perf.clone();
        if let ([(comm, _)], true) = (all, beyond.renamed) {
            let mut together = Counts::new();
            for (call, count) in
                perf.extract_if(.., |name, _| *name != self.launcher).flat_map(|(_, counts)| counts)
            {
                let sum = together.entry(call).or_default();
                sum.calls += count.calls;
                sum.errors += count.errors;
            }
            perf.insert((*comm).to_owned(), together);
        }
        let mut born = 0;
        for (comm, rows) in all {
            let want = beyond.perf.iter().filter(|row| row.0 == *comm);
            let want = want.map(|(_, call, calls, errors)| ((*call).to_owned(), (*calls, *errors))).collect();
            let counts = perf.get(*comm).with_context(|| format!("perf has no {comm}"))?;
            let mut more = difference(counts, &sums(&[(comm, rows)]));
            for call in made {
                born += more.remove(*call).map_or(0, |(calls, _)| calls);
            }
            assert_eq!(more, want, "perf trace beyond what was done: {comm}: {rows:?}\n{counts:?}");
        }
        ensure!(made.is_empty() || born == beyond.born + 1, "{born} processes began");
        let mut names: Vec<&str> =
            all.iter().map(|(comm, _)| *comm).chain([self.launcher.as_str()]).collect();
        names.sort_unstable();
        assert_eq!(perf.keys().collect::<Vec<_>>(), names, "processes of perf trace");
        Ok(())
    }

    /// Compares with strace, which ran apart, some calls of programs whose others depend on how threads and processes meet.
    pub(crate) fn compare_apart(&self, all: &[(&str, &Rows)], calls: &[&str]) {
        let Some(strace) = &self.strace else { return };
        let ours = with_launcher(all);
        for call in calls {
            let count = strace.get(*call).map(|count| (count.calls, count.errors));
            assert_eq!(count, ours.get(*call).copied(), "{call}: strace, and probe");
        }
    }
}

/// Calls and errors of all together.
fn sums(all: &[(&str, &Rows)]) -> BTreeMap<String, (i64, i64)> {
    let mut sums: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for (call, (calls, errors)) in all.iter().flat_map(|(_, rows)| rows.iter()) {
        let sum = sums.entry(call.clone()).or_default();
        *sum = (sum.0 + calls, sum.1 + errors.values().sum::<i64>());
    }
    sums
}

fn with_launcher(all: &[(&str, &Rows)]) -> BTreeMap<String, (i64, i64)> {
    let mut sums = sums(all);
    for call in LAUNCHER {
        sums.entry(call.to_owned()).or_default().0 += 1;
    }
    sums
}

/// What is counted beyond `ours`; below it where negative.
fn difference(counts: &Counts, ours: &BTreeMap<String, (i64, i64)>) -> BTreeMap<String, (i64, i64)> {
    let mut difference: BTreeMap<String, (i64, i64)> =
        counts.iter().map(|(call, count)| (call.clone(), (count.calls, count.errors))).collect();
    for (call, (calls, errors)) in ours {
        let row = difference.entry(call.clone()).or_default();
        *row = (row.0 - calls, row.1 - errors);
    }
    difference.retain(|_, row| *row != (0, 0));
    difference
}
