//! The screen of `probe syscalls` as a person sees it: on a terminal drawn in one place, in a pipe one table after the other,
//! and what it all comes to beside what a process was told to do.
#![expect(clippy::print_stdout, reason = "a screen is there to be looked at")]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use probe_tests::drop::Cgroup;
use probe_tests::live;
use probe_tests::probe::{
    DEADLINE, Line, Probe, attached_links, command, expected_links, handles_interrupt, poll,
};
use probe_tests::workload::Workload;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
/// How long the kernel's verifier may take.
const START: Duration = Duration::from_secs(120);
/// The terminal.
const LINES: u16 = 30;
const COLUMNS: u16 = 110;
/// A frame's beginning and end, as docs have it: no line wraps meanwhile.
const FRAME: &str = "\u{1b}[?7l\u{1b}[H";
const FRAME_END: &str = "\u{1b}[J\u{1b}[?7h";

live! {
    a_table_in_one_place_and_totals
    a_pipe_has_one_table_after_the_other
    nothing_is_drawn_where_it_cannot_be
    containers_and_calls_add_up
}

/// `probe syscalls` without `-o json`.
struct Screen {
    child: Child,
    text: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Screen {
    /// On a terminal.
    fn on_terminal(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&terminal)?;
        unlockpt(&terminal)?;
        let size = Winsize { ws_row: LINES, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size)?;
        let inside = ioctl_tiocgptpeer(&terminal, OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        Self::start(arguments, environment, inside.into(), File::from(terminal))
    }

    fn in_pipe(arguments: &[&str]) -> Result<Self> {
        let (end, other) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Self::start(arguments, &[], other.into(), File::from(end))
    }

    fn start(
        arguments: &[&str],
        environment: &[(&str, &str)],
        stdout: Stdio,
        mut from: File,
    ) -> Result<Self> {
        let mut command = command(["syscalls"])?;
        command.env_remove("NO_COLOR").env("TERM", "xterm").envs(environment.iter().copied());
        let child = command.args(arguments).stdout(stdout).stderr(Stdio::piped()).spawn()?;
        drop(command);
        let text = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let (mut bytes, mut rest) = ([0; 4096], Vec::new());
            // The terminal is closed with an error when nobody is left on its other side.
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                rest.extend_from_slice(bytes.get(..count).unwrap_or_default());
                // A character may come in two parts.
                let whole = std::str::from_utf8(&rest).map_or_else(|error| error.valid_up_to(), str::len);
                let piece: Vec<u8> = rest.drain(..whole).collect();
                let mut text = shared.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&String::from_utf8_lossy(&piece));
            }
        });
        let screen = Self { child, text, reader };
        poll("the screen is ready", START, || {
            let (pid, links) = (screen.child.id(), expected_links("syscalls"));
            Ok((attached_links(pid)? >= links && handles_interrupt(pid)?).then_some(()))
        })?;
        Ok(screen)
    }

    /// Waits until what was written satisfies.
    fn wait_for(&self, what: &str, found: impl Fn(&str) -> bool) -> Result<()> {
        let is_there = || {
            let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(found(&text).then_some(()))
        };
        poll(what, DEADLINE, is_there)
            .with_context(|| self.text.lock().unwrap_or_else(PoisonError::into_inner).replace('\u{1b}', "␛"))
    }

    /// Ends it as Ctrl-C does, and returns all that was written.
    fn stop(mut self) -> Result<String> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("pid")?;
        kill_process(pid, Signal::INT)?;
        let status = poll("the end of the screen", DEADLINE, || Ok(self.child.try_wait()?))?;
        let mut stderr = String::new();
        self.child.stderr.take().context("stderr")?.read_to_string(&mut stderr)?;
        ensure!(status.code() == Some(0), "{status}: {stderr}");
        ensure!(stderr.contains("nothing was lost"), "{stderr}");
        ensure!(self.reader.join().is_ok(), "the reader");
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner).replace('\r', "");
        println!("{}", text.replace('\u{1b}', "␛"));
        Ok(text)
    }
}

/// A file that goes when it is dropped.
struct Fifo(PathBuf);

impl Fifo {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("probe-screen-{}", std::process::id()));
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)?;
        Ok(Self(path))
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        // Left for the next boot to clean.
        let _left = std::fs::remove_file(&self.0);
    }
}

/// A table's rows after its heading: the first word of each, and the number in a column.
fn rows(text: &str, heading: &str, column: &str) -> Result<BTreeMap<String, i64>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(heading));
    let head = lines.next().with_context(|| format!("no table {heading}: {text}"))?;
    let end = head.find(column).with_context(|| format!("no {column}: {head}"))? + column.len();
    let rows = lines.take_while(|line| !line.is_empty() && !line.starts_with('…')).map(|line| {
        let before: String = line.chars().take(end).collect();
        let mut words = before.split_whitespace();
        let name = words.next().context("an empty row")?.to_owned();
        let number = words.next_back().with_context(|| format!("no {column}: {line}"))?;
        Ok((name, number.parse().with_context(|| format!("{number:?} of {line}"))?))
    });
    rows.collect()
}

/// Makes calls of which it is known how many: 12,345 getppid, 300 openat of what does not exist.
fn make_calls(workload: &mut Workload) -> Result<()> {
    workload.tell("getppid 12345")?;
    workload.tell("openat /nowhere/at/all 300")?;
    Ok(())
}

/// The totals beside what the workload was told.
fn check_totals(text: &str, pid: u32) -> Result<()> {
    let end = text.rfind("\n── ").context("no summary")?;
    let totals = text.get(end..).context("no summary")?;
    let calls = rows(totals, "SYSCALL", "CALLS")?;
    ensure!(calls.get("getppid") == Some(&12_345), "{calls:?}: {totals}");
    ensure!(calls.get("openat") == Some(&301), "with the one that hung: {calls:?}: {totals}");
    let openat = totals.lines().find(|line| line.starts_with("openat ")).context("openat")?;
    ensure!(openat.ends_with("  ENOENT 300"), "{openat}");
    let owners = rows(totals, "OWNER", "CALLS")?;
    ensure!(owners.keys().eq([&format!("workload[{pid}]")]), "{owners:?}");
    ensure!(owners.values().eq([&calls.values().sum::<i64>()]), "{owners:?}, {calls:?}");
    ensure!(totals.contains(", 1 slow, 1 hung\n"), "{totals}");
    let reading = "→ openat: 300 of 301 calls (99%) failed, with ENOENT: names that do not exist";
    ensure!(totals.contains(reading), "{totals}");
    ensure!(!totals.contains("→ 1 call hung"), "it returned: {totals}");
    Ok(())
}

/// An open that hangs until it is seen to, and then returns.
fn hang(workload: &mut Workload, screen: &Screen) -> Result<()> {
    let fifo = Fifo::new()?;
    workload.order(&format!("slow {}", fifo.0.display()))?;
    screen.wait_for("a call that hangs", |text| text.contains(" hang") || text.contains("hang\u{1b}"))?;
    drop(OpenOptions::new().write(true).open(&fifo.0)?);
    workload.hear()?;
    let of_slow = |text: &str| text.lines().any(|line| line.contains("slow") && line.contains("openat"));
    screen.wait_for("the slow call", of_slow)
}

fn a_table_in_one_place_and_totals() -> Result<()> {
    let mut workload = Workload::start(WORKLOAD)?;
    let pid = workload.pid();
    let arguments = ["--pid", &pid.to_string(), "--interval", "300ms"];
    let screen = Screen::on_terminal(&arguments, &[])?;
    make_calls(&mut workload)?;
    screen.wait_for("a table", |text| text.contains("getppid"))?;
    hang(&mut workload, &screen)?;
    let frames_so_far = |text: &str| text.matches(FRAME).count();
    screen.wait_for("more tables", |text| frames_so_far(text) >= 4)?;
    let text = screen.stop()?;

    ensure!(!text.contains("\u{1b}[?1049"), "another screen: {text:?}");
    let mut frames = text.split(FRAME);
    let before = frames.next().context("nothing")?;
    ensure!(before == "\n".repeat(usize::from(LINES) - 1), "what was there goes up: {before:?}");
    let mut last = String::new();
    for frame in frames {
        let (frame, _after) = frame.split_once(FRAME_END).context("no end of a frame")?;
        ensure!(frame.lines().count() < usize::from(LINES), "{} lines: {frame}", frame.lines().count());
        ensure!(frame.lines().all(|line| line.starts_with("\u{1b}[K")), "{frame:?}");
        let plain = frame.replace("\u{1b}[K", "");
        ensure!(plain.starts_with("── ") && plain.contains(" UTC  "), "{plain}");
        for line in plain.lines().filter(|line| !line.contains('\u{1b}')) {
            ensure!(line.chars().count() <= usize::from(COLUMNS), "{} columns: {line}", line.chars().count());
        }
        last = plain;
    }
    // Newest last, in colours.
    let [hang, .., slow] = last.lines().filter(|line| line.contains("openat  ")).collect::<Vec<_>>()[..]
    else {
        anyhow::bail!("not two events: {last}")
    };
    ensure!(hang.contains("\u{1b}[31mhang\u{1b}[0m openat"), "{hang:?}");
    ensure!(slow.contains("slow\u{1b}[0m openat") && slow.contains("probe-screen-"), "{slow:?}");
    check_totals(&text, pid)?;
    workload.end()
}

fn a_pipe_has_one_table_after_the_other() -> Result<()> {
    let mut workload = Workload::start(WORKLOAD)?;
    let pid = workload.pid();
    let screen = Screen::in_pipe(&["--pid", &pid.to_string(), "--interval", "300ms"])?;
    make_calls(&mut workload)?;
    screen.wait_for("a table", |text| text.contains("getppid"))?;
    hang(&mut workload, &screen)?;
    screen.wait_for("more tables", |text| text.matches(" UTC  ").count() >= 4)?;
    let text = screen.stop()?;
    ensure!(!text.contains('\u{1b}'), "drawn in a pipe: {text:?}");
    for line in text.lines().filter(|line| !line.starts_with('→')) {
        ensure!(line.chars().count() <= 120, "{} columns: {line}", line.chars().count());
    }
    check_totals(&text, pid)?;
    workload.end()
}

/// Without colours a table is drawn in its place all the same; a terminal that knows nothing has tables one after the other.
fn nothing_is_drawn_where_it_cannot_be() -> Result<()> {
    for (environment, draws) in [(("NO_COLOR", "1"), true), (("TERM", "dumb"), false)] {
        let mut workload = Workload::start(WORKLOAD)?;
        let arguments = ["--pid", &workload.pid().to_string(), "--interval", "300ms"];
        let screen = Screen::on_terminal(&arguments, &[environment])?;
        workload.tell("openat /nowhere/at/all 300")?;
        screen.wait_for("a table", |text| text.contains("ENOENT 300"))?;
        let text = screen.stop()?;
        ensure!(
            text.contains(FRAME) == draws && text.contains('\u{1b}') == draws,
            "{environment:?}: {text:?}"
        );
        // Colours end so.
        ensure!(!text.contains("\u{1b}[0m"), "{environment:?}: {text:?}");
        workload.end()?;
    }
    Ok(())
}

/// `--by`, as JSON has it: what processes did is what their containers did, and what was called.
fn containers_and_calls_add_up() -> Result<()> {
    const ID: &str = "3f37e9702f3961bba773444f8be29ad8c0ffee00c0ffee00c0ffee00c0ffee00";
    let cgroup = Cgroup::new()?;
    let container = cgroup.below(&format!("docker-{ID}.scope"))?;
    let mut inside = [Workload::start(WORKLOAD)?, Workload::start(WORKLOAD)?];
    let mut outside = Workload::start(WORKLOAD)?;
    inside.iter().try_for_each(|workload| container.add(workload.pid()))?;
    cgroup.add(outside.pid())?;
    let start = |by: &str| {
        let filter = ["--cgroup", cgroup.path(), "--syscall", "getppid"];
        Probe::start(&[&["syscalls", "--by", by, "--interval", "300ms"], &filter[..]].concat())
    };
    let calls = |lines: &[Line]| -> i64 { lines.iter().filter_map(|line| line.int("count")).sum() };
    for (by, want) in [
        ("process", &[("container", 100), ("container", 200), ("host", 400)][..]),
        ("container", &[("container", 300), ("host", 400)]),
        ("syscall", &[("host", 700)]),
    ] {
        // All in one interval, or in several.
        let probe = start(by)?;
        inside[0].tell("getppid 100")?;
        inside[1].tell("getppid 200")?;
        outside.tell("getppid 400")?;
        probe.wait_for("700 getppid", DEADLINE, |lines| (calls(lines) >= 700).then_some(()))?;
        let finished = probe.stop()?;
        finished.require_complete()?;
        let mut sums: BTreeMap<(&str, Option<i64>), i64> = BTreeMap::new();
        for line in &finished.lines {
            ensure!(line.event() == "syscall.summary", "{}", line.0);
            let is_process = by == "process";
            for key in ["process.pid", "process.comm", "process.executable.name"] {
                ensure!(line.get(key).is_some() == is_process, "{by}, {key}: {}", line.0);
            }
            ensure!(line.get("linux.cgroup.path").is_some() == (by != "syscall"), "{by}: {}", line.0);
            let place = match line.text("container.id") {
                Some(id) => {
                    ensure!(id == ID, "{}", line.0);
                    "container"
                }
                None => "host",
            };
            *sums.entry((place, line.int("process.pid"))).or_default() +=
                line.int("count").context("count")?;
        }
        let mut got: Vec<(&str, i64)> = sums.into_iter().map(|((place, _), count)| (place, count)).collect();
        got.sort_unstable();
        ensure!(got == want, "{by}: {got:?}");
    }
    inside.into_iter().try_for_each(Workload::end)?;
    outside.end()
}
