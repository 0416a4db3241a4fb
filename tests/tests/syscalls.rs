//! syscalls against a process that makes exactly the calls it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use probe_tests::bpf::preempts_programs;
use probe_tests::drop::Cgroup;
use probe_tests::probe::{DEADLINE, Finished, Line, Probe, poll};
use probe_tests::workload::Workload;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
/// Calls that come to hundreds of thousands take their time where every one is traced and the host is busy.
const LONG: Duration = Duration::from_secs(30);

/// Figures of rows, added up.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sum {
    count: i64,
    errors: BTreeMap<String, i64>,
    seconds: f64,
}

/// A row of calls that returned; one of calls that did not is none.
fn is_row(line: &Line) -> bool {
    line.event() == "syscall.summary" && line.int("count") != Some(0)
}

/// Adds up the rows of the calls that `wanted` accepts, by name.
fn sums(lines: &[Line], wanted: impl Fn(&Line) -> bool) -> Result<BTreeMap<String, Sum>> {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    for line in lines.iter().filter(|line| is_row(line) && wanted(line)) {
        let sum = sums.entry(line.text("syscall.name").context("no name")?.to_owned()).or_default();
        sum.count += line.int("count").context("no count")?;
        sum.seconds += line.float("duration.sum").context("no sum")?;
        for (errno, count) in line.get("errors").and_then(|errors| errors.as_object()).context("no errors")? {
            *sum.errors.entry(errno.clone()).or_default() += count.as_i64().context("no count of errors")?;
        }
    }
    Ok(sums)
}

/// How often `call` was counted so far.
fn count(lines: &[Line], call: &str) -> i64 {
    let of_call = |line: &&Line| is_row(line) && line.text("syscall.name") == Some(call);
    lines.iter().filter(of_call).filter_map(|line| line.int("count")).sum()
}

fn of_process(pid: u32) -> impl Fn(&Line) -> bool {
    move |line| line.int("process.pid") == Some(i64::from(pid))
}

/// An empty directory that goes when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("probe-syscalls-{name}-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left for the next boot to clean.
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

/// Ends probe once it has counted `want` of `call`: what it counted more by then shows in what is returned.
fn stop_after(probe: Probe, call: &str, want: i64) -> Result<Finished> {
    probe.wait_for(&format!("{want} {call}"), LONG, |lines| (count(lines, call) >= want).then_some(()))?;
    probe.stop()
}

#[test]
fn counts_and_errors_are_exact() -> Result<()> {
    let scratch = Scratch::new("exact")?;
    let (here, missing) = (scratch.path("here"), scratch.path("missing"));
    std::fs::write(&here, "")?;
    let mut workload = Workload::start(WORKLOAD)?;
    workload.tell("getppid 1")?;
    let pid = workload.pid();
    // It is inside read(2) by now, most likely; and was, before the programs came.
    poll("the workload waits", DEADLINE, || Ok(call_of(pid, pid)?.filter(|call| *call == libc::SYS_read)))?;
    let probe = Probe::start(&["syscalls", "--pid", &pid.to_string(), "--interval", "300ms"])?;
    workload.tell("getppid 12345")?;
    probe.line("the first interval", is_row)?;
    workload.tell(&format!("openat {here} 700"))?;
    workload.tell(&format!("openat {missing} 300"))?;
    workload.tell("getppid 1")?;
    let finished = stop_after(probe, "getppid", 12_346)?;
    finished.require_complete()?;
    let all = sums(&finished.lines, |_| true)?;
    assert_eq!(all["getppid"].count, 12_346);
    assert_eq!(all["getppid"].errors, BTreeMap::new());
    assert_eq!(all["openat"].count, 1_000);
    assert_eq!(all["openat"].errors, BTreeMap::from([("ENOENT".to_owned(), 300)]));
    assert_eq!(all["close"].count, 700);
    // Orders came with one read each, the first of which began before the programs did; answers went with one write.
    assert_eq!((all["read"].count, all["write"].count), (3, 4));
    for line in finished.lines.iter().filter(|line| is_row(line)) {
        assert!(of_process(pid)(line), "{}", line.0);
        assert_eq!(line.text("process.comm"), Some("workload"), "{}", line.0);
        assert_eq!(line.text("process.executable.name"), Some("workload"), "{}", line.0);
        let figure = |key| line.float(key).unwrap_or(f64::NAN);
        let [p50, p99, max, sum] =
            ["duration.p50", "duration.p99", "duration.max", "duration.sum"].map(figure);
        assert!(0.0 < p50 && p50 <= p99 && p99 <= max * 1.1 && max <= sum, "{}", line.0);
    }
    // Calls of a microsecond or so: within reason, not within a factor.
    assert!((0.000_1..10.0).contains(&all["getppid"].seconds), "{:?}", all["getppid"]);
    let intervals: BTreeSet<_> = finished.lines.iter().filter_map(|line| line.text("time")).collect();
    assert!(intervals.len() >= 2, "{intervals:?}");
    workload.end()
}

/// Threads on all CPUs, calls in which they lose the CPU included.
#[test]
fn threads_are_added_up_exactly() -> Result<()> {
    let mut workload = Workload::start(WORKLOAD)?;
    let probe = Probe::start(&["syscalls", "--comm", "workload", "--syscall", "getppid,sched_yield"])?;
    workload.tell("threads 8 5000")?;
    probe
        .wait_for("40000 sched_yield", LONG, |lines| (count(lines, "sched_yield") >= 40_000).then_some(()))?;
    let finished = stop_after(probe, "getppid", 40_000)?;
    finished.require_complete()?;
    let all = sums(&finished.lines, of_process(workload.pid()))?;
    assert_eq!((all["getppid"].count, all["sched_yield"].count), (40_000, 40_000));
    assert_eq!(sums(&finished.lines, |_| true)?.len(), 2, "only these two were asked for");
    workload.end()
}

/// A command beside the agent that runs anyway: neither takes anything from the other.
#[test]
fn two_at_once_count_the_same() -> Result<()> {
    const THREADS: i64 = 8;
    const CALLS: i64 = 2_000;
    const ALL: i64 = THREADS * CALLS;
    let mut workload = Workload::start(WORKLOAD)?;
    let start = || Probe::start(&["syscalls", "--comm", "workload", "--syscall", "getppid,sched_yield"]);
    let probes = [start()?, start()?];
    workload.tell(&format!("threads {THREADS} {CALLS}"))?;
    // Known, and said in docs/kernels.md: where programs lose their CPU, two probes make each other lose a few calls.
    let least = if preempts_programs()? { ALL - ALL / 1_000 } else { ALL };
    for probe in probes {
        let finished = stop_after(probe, "getppid", least)?;
        finished.require_complete()?;
        let all = sums(&finished.lines, of_process(workload.pid()))?;
        for call in ["getppid", "sched_yield"] {
            let count = all[call].count;
            ensure!((least..=ALL).contains(&count), "{count} of {ALL} {call}");
        }
    }
    workload.end()
}

/// Processes that come and go within an interval have rows of their own, with the name of the program they ran: not with
/// their parent's, which they had for their first calls.
#[test]
fn short_lived_processes_are_counted_under_their_own_names() -> Result<()> {
    const CHILDREN: usize = 40;
    let mut workload = Workload::start(WORKLOAD)?;
    // "parent" in hexadecimal.
    workload.tell("name 706172656e74")?;
    let probe = Probe::start(&["syscalls", "--interval", "1h"])?;
    workload.tell(&format!("children {CHILDREN} 123"))?;
    workload.tell("getppid 77")?;
    let finished = probe.stop()?;
    finished.require_complete()?;
    let mut children = BTreeMap::new();
    for line in finished.lines.iter().filter(|line| line.text("syscall.name") == Some("getppid")) {
        let (pid, comm) = (line.int("process.pid").context("no pid")?, line.text("process.comm"));
        if pid == i64::from(workload.pid()) {
            assert_eq!((comm, line.int("count")), (Some("parent"), Some(77)), "{}", line.0);
        } else if comm == Some("workload") {
            assert_eq!(children.insert(pid, line.int("count")), None, "one row a process: {}", line.0);
        }
    }
    assert_eq!(children.len(), CHILDREN);
    assert!(children.values().all(|count| *count == Some(123)), "{children:?}");
    workload.end()
}

/// The kernel's number of the call that a thread is blocked in.
fn call_of(pid: u32, tid: u32) -> Result<Option<i64>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall"))?;
    Ok(text.split_whitespace().next().and_then(|number| number.parse().ok()))
}

/// A process with this id.
fn reborn(id: u32) -> Result<Workload> {
    poll("a process with the id of a dead thread", LONG, || {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (id - 1).to_string())?;
        Ok(Some(Workload::start(WORKLOAD)?).filter(|workload| workload.pid() == id))
    })
}

/// A thread that dies inside a call leaves nothing behind for the next one that gets its id: whoever is killed, and
/// whoever ends, which is a call that nobody returns from.
#[test]
fn a_call_that_is_never_returned_from_is_not_counted_elsewhere() -> Result<()> {
    let mut killed = Workload::start(WORKLOAD)?;
    let mut ended = Workload::start(WORKLOAD)?;
    let pids = [killed.pid(), ended.pid()];
    let probe = Probe::start(&["syscalls", "--comm", "workload", "--interval", "300ms"])?;
    let tid: u32 = killed.tell("hang 500")?.parse()?;
    let suspended = |call: &i64| *call == libc::SYS_rt_sigsuspend;
    poll("the thread is suspended", DEADLINE, || Ok(call_of(pids[0], tid)?.filter(suspended)))?;
    ended.tell("getppid 500")?;
    killed.kill()?;
    ended.end()?;
    for id in [tid, pids[1]] {
        let mut workload = reborn(id)?;
        workload.tell("getppid 100")?;
        workload.end()?;
    }
    let finished = stop_after(probe, "getppid", 1_200)?;
    finished.require_complete()?;
    assert_eq!(sums(&finished.lines, of_process(pids[0]))?["getppid"].count, 500);
    assert_eq!(sums(&finished.lines, of_process(tid))?["getppid"].count, 100);
    assert_eq!(sums(&finished.lines, of_process(pids[1]))?["getppid"].count, 600, "one after the other");
    // On its way to its death a thread still leaves the call that it slept in, as the kernel sees it.
    let all = sums(&finished.lines, |_| true)?;
    let suspended = sums(&finished.lines, of_process(tid))?.contains_key("rt_sigsuspend");
    assert!(!suspended && count(&finished.lines, "rt_sigsuspend") <= 1, "{all:?}");
    for never_returns in ["exit", "exit_group"] {
        assert_eq!(all.get(never_returns), None);
    }
    Ok(())
}

#[test]
fn calls_that_wait_are_told_apart_and_never_slow() -> Result<()> {
    let mut workload = Workload::start(WORKLOAD)?;
    let probe = Probe::start(&["syscalls", "--pid", &workload.pid().to_string(), "--slower-than", "1ms"])?;
    workload.tell("nanosleep 20 10")?;
    workload.tell("getppid 10")?;
    let finished = stop_after(probe, "getppid", 10)?;
    finished.require_complete()?;
    let all = sums(&finished.lines, |_| true)?;
    assert_eq!(all["nanosleep"].count, 10);
    assert!((0.2..2.0).contains(&all["nanosleep"].seconds), "{:?}", all["nanosleep"]);
    for line in finished.lines.iter().filter(|line| is_row(line)) {
        let call = line.text("syscall.name");
        if call == Some("nanosleep") {
            assert_eq!(line.text("syscall.class"), Some("wait"), "{}", line.0);
            assert!(line.float("duration.max").is_some_and(|max| max >= 0.02), "{}", line.0);
            // A bucket is 19 % wide.
            assert!(line.float("duration.p50").is_some_and(|p50| p50 >= 0.02 * 0.84), "{}", line.0);
        }
        if call == Some("getppid") {
            assert_eq!(line.text("syscall.class"), Some("work"), "{}", line.0);
        }
    }
    let slow =
        |line: &&Line| line.event() == "syscall.slow" && line.text("syscall.name") == Some("nanosleep");
    assert_eq!(finished.lines.iter().find(slow), None);
    workload.end()
}

/// Opening a pipe without a writer: work that takes as long as the test wants.
#[test]
fn a_slow_call_is_an_event_of_its_own() -> Result<()> {
    const HELD: Duration = Duration::from_millis(150);
    let scratch = Scratch::new("slow")?;
    let fifo = scratch.path("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )?;
    let mut workload = Workload::start(WORKLOAD)?;
    let pid = workload.pid();
    let probe = Probe::start(&["syscalls", "--pid", &pid.to_string(), "--slower-than", "100ms"])?;
    let before = Instant::now();
    workload.order(&format!("slow {fifo}"))?;
    poll("the workload is inside openat", DEADLINE, || {
        Ok(call_of(pid, pid)?.filter(|call| *call == libc::SYS_openat))
    })?;
    std::thread::sleep(HELD);
    drop(OpenOptions::new().write(true).open(&fifo)?);
    let answer = workload.hear()?;
    let at_most = before.elapsed();
    workload.tell("getppid 1")?;
    let (tid, path) = answer.split_once(' ').context("thread and path")?;
    let finished = stop_after(probe, "getppid", 1)?;
    finished.require_complete()?;
    let slow: Vec<&Line> = finished.lines.iter().filter(|line| line.event() == "syscall.slow").collect();
    let [line] = slow[..] else { panic!("{slow:#?}") };
    assert_eq!(line.text("syscall.name"), Some("openat"));
    assert_eq!((line.int("process.pid"), line.int("thread.id")), (Some(i64::from(pid)), Some(tid.parse()?)));
    assert_eq!(line.text("process.comm"), Some("workload"));
    assert_eq!(line.get("error.type"), None, "it went well");
    let duration = line.float("duration").context("no duration")?;
    assert!((HELD.as_secs_f64()..=at_most.as_secs_f64()).contains(&duration), "{}", line.0);
    let args = line.get("syscall.args").and_then(|args| args.as_array()).context("no arguments")?;
    let args: Vec<&str> = args.iter().filter_map(|arg| arg.as_str()).collect();
    assert_eq!(args.len(), 6, "{args:?}");
    let numbers: Vec<u64> = args
        .iter()
        .map(|arg| Ok(u64::from_str_radix(arg.strip_prefix("0x").context("no 0x")?, 16)?))
        .collect::<Result<_>>()?;
    assert_eq!(numbers[0] as i32, libc::AT_FDCWD);
    assert_eq!((args[1], numbers[2]), (path, libc::O_RDONLY as u64));
    workload.end()
}

/// A block tells six kinds of errors apart; the others are counted together.
#[test]
fn many_kinds_of_errors_add_up() -> Result<()> {
    let scratch = Scratch::new("errnos")?;
    let mut workload = Workload::start(WORKLOAD)?;
    let probe = Probe::start(&["syscalls", "--pid", &workload.pid().to_string()])?;
    workload.tell(&format!("errnos {} 100", scratch.0.display()))?;
    workload.tell("getppid 1")?;
    let finished = stop_after(probe, "getppid", 1)?;
    let mut openat = sums(&finished.lines, |_| true)?.remove("openat").context("no openat")?;
    assert_eq!(openat.count, 801, "and one that made the file");
    assert_eq!(openat.errors.values().sum::<i64>(), 800);
    let other = openat.errors.remove("_OTHER").unwrap_or_default();
    assert!(other <= 200, "{other}");
    assert!(openat.errors.len() >= 6, "{openat:?}");
    let known = ["ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG", "EFAULT", "EBADF", "EEXIST"];
    for (errno, count) in &openat.errors {
        assert!(known.contains(&errno.as_str()) && *count <= 100, "{openat:?}");
    }
    workload.end()
}

#[test]
fn filters_let_through_what_they_say() -> Result<()> {
    let container = "c0ffee".repeat(11)[..64].to_owned();
    let outer = Cgroup::new()?;
    let (docker, other) = (outer.below("docker")?, outer.below("other")?);
    let cgroup = docker.below(&container)?;
    let mut inside = Workload::start(WORKLOAD)?;
    let mut beside = Workload::start(WORKLOAD)?;
    cgroup.add(inside.pid())?;
    other.add(beside.pid())?;
    let cases: [(&[&str], bool); 6] = [
        (&["--cgroup", cgroup.path()], false),
        (&["--cgroup", docker.path()], false),
        (&["--cgroup", &cgroup.directory().display().to_string()], false),
        (&["--container", &container[..12]], false),
        (&["--cgroup", outer.path()], true),
        (&["--comm", "workload"], true),
    ];
    for (arguments, both) in cases {
        let probe = Probe::start(&[&["syscalls"], arguments].concat())?;
        beside.tell("getppid 33")?;
        inside.tell("getppid 44")?;
        let finished = probe.stop()?;
        finished.require_complete()?;
        let of = |workload: &Workload| -> Result<_> {
            Ok(sums(&finished.lines, of_process(workload.pid()))?.get("getppid").map(|sum| sum.count))
        };
        assert_eq!((of(&inside)?, of(&beside)?), (Some(44), both.then_some(33)), "{arguments:?}");
        for line in finished.lines.iter().filter(|line| is_row(line)) {
            let (id, path) = (line.text("container.id"), line.text("linux.cgroup.path"));
            if of_process(inside.pid())(line) {
                assert_eq!((id, path), (Some(container.as_str()), Some(cgroup.path())), "{}", line.0);
            } else if of_process(beside.pid())(line) {
                assert_eq!((id, path), (None, Some(other.path())), "{}", line.0);
            } else {
                assert_eq!(arguments[0], "--comm", "neither of the two: {}", line.0);
            }
        }
    }
    inside.end()?;
    beside.end()
}

#[test]
fn rows_are_selected_and_ordered_as_asked() -> Result<()> {
    let scratch = Scratch::new("rows")?;
    let missing = scratch.path("missing");
    let mut workload = Workload::start(WORKLOAD)?;
    let pid = workload.pid().to_string();
    let mut rows = |arguments: &[&str]| -> Result<Vec<Line>> {
        let probe = Probe::start(&[&["syscalls", "--pid", &pid, "--interval", "1h"], arguments].concat())?;
        workload.tell(&format!("openat {missing} 20"))?;
        workload.tell("getppid 2000")?;
        workload.tell("nanosleep 50 1")?;
        let finished = probe.stop()?;
        finished.require_complete()?;
        Ok(finished.lines.into_iter().filter(is_row).collect())
    };
    let names = |rows: &[Line]| -> Vec<String> {
        rows.iter().filter_map(|row| row.text("syscall.name")).map(str::to_owned).collect()
    };

    let all = rows(&["--sort", "count"])?;
    assert_eq!(names(&all)[..2], ["getppid", "openat"]);
    assert!(all.len() >= 5, "every row: {all:#?}");
    assert!(all.is_sorted_by_key(|row| std::cmp::Reverse(row.int("count"))), "{all:#?}");
    // Waiting comes last, however long.
    let by_time = rows(&[])?;
    assert_eq!(by_time.last().and_then(|row| row.text("syscall.name")), Some("nanosleep"));
    let errors = rows(&["--errors"])?;
    assert_eq!(names(&errors), ["openat"]);
    assert_eq!(names(&rows(&["--sort", "errors"])?)[..1], ["openat"]);
    assert_eq!(names(&rows(&["--sort", "count", "--top", "2"])?), ["getppid", "openat"]);
    assert_eq!(names(&rows(&["--syscall", "nanosleep,openat", "--sort", "count"])?), ["openat", "nanosleep"]);
    workload.end()
}

/// Without room for every process, calls are counted under their system call alone, to the call.
#[test]
fn totals_stay_exact_when_processes_do_not_fit() -> Result<()> {
    const CHILDREN: i64 = 40;
    let mut workload = Workload::start(WORKLOAD)?;
    let probe =
        Probe::start(&["syscalls", "--syscall-blocks", "64", "--interval", "1h", "--comm", "workload"])?;
    // A program that starts makes some twenty different calls: 64 blocks do not go far.
    workload.tell(&format!("children {CHILDREN} 100"))?;
    let mut others: Vec<Workload> = (0..8).map(|_| Workload::start(WORKLOAD)).collect::<Result<_>>()?;
    for other in &mut others {
        other.tell("getppid 1000")?;
    }
    let finished = probe.stop()?;
    assert_eq!(finished.code, Some(0));
    assert_eq!(count(&finished.lines, "getppid"), CHILDREN * 100 + 8_000);
    let nameless = sums(&finished.lines, |line| line.get("process.pid").is_none())?;
    assert!(!nameless.is_empty(), "64 blocks were enough");
    let losses: Vec<&Line> = finished.lines.iter().filter(|line| line.event() == "probe.loss").collect();
    for line in &losses {
        assert_eq!(line.text("where"), Some("syscalls.folded"), "{}", line.0);
        assert!(line.text("remedy").is_some_and(|remedy| remedy.contains("--syscall-blocks")), "{}", line.0);
    }
    let folded: i64 = losses.iter().filter_map(|line| line.int("count")).sum();
    assert!(folded > 0, "{losses:?}");
    assert!(
        finished.stderr.contains(&format!("lost: {folded} of syscalls at syscalls.folded")),
        "{}",
        finished.stderr
    );
    others.into_iter().try_for_each(Workload::end)?;
    workload.end()
}

/// What processes that are gone held is there for others: more come and go than there is room for at a time.
#[test]
fn room_comes_back_when_processes_go() -> Result<()> {
    const BATCHES: usize = 8;
    const CHILDREN: usize = 6;
    let mut workload = Workload::start(WORKLOAD)?;
    let calls = ["--syscall", "getppid,execve,openat,mmap", "--comm", "workload"];
    let probe =
        Probe::start(&[&["syscalls", "--syscall-blocks", "64", "--interval", "300ms"], &calls[..]].concat())?;
    for batch in 1..=BATCHES {
        workload.tell(&format!("children {CHILDREN} 10"))?;
        // Room is given back at the latest in the interval after the one that a process died in.
        for _ in 0..2 {
            let before = probe.lines().len();
            workload.tell("getppid 1")?;
            let of_workload = of_process(workload.pid());
            probe.wait_for("an interval", DEADLINE, |lines| {
                lines.get(before..)?.iter().any(|line| is_row(line) && of_workload(line)).then_some(())
            })?;
        }
        let blocks = 4 * batch * CHILDREN;
        ensure!(batch < BATCHES || blocks > 2 * 64, "{blocks} would have fitted");
    }
    let finished = probe.stop()?;
    finished.require_complete()?;
    let want = (BATCHES * (CHILDREN * 10 + 2)) as i64;
    assert_eq!(count(&finished.lines, "getppid"), want);
    workload.end()
}

/// Calls whose beginning could not be kept are counted as lost.
#[test]
fn sleepers_without_room_are_counted() -> Result<()> {
    const THREADS: i64 = 150;
    let mut workload = Workload::start(WORKLOAD)?;
    let arguments = ["syscalls", "--syscall", "nanosleep", "--syscall-threads", "64", "--comm", "workload"];
    let probe = Probe::start(&arguments)?;
    workload.tell(&format!("sleepers {THREADS} 300"))?;
    let lost_of = |lines: &[Line]| -> i64 {
        lines
            .iter()
            .filter(|line| line.text("where") == Some("syscalls.sleepers"))
            .filter_map(|l| l.int("count"))
            .sum()
    };
    let finished = probe.stop()?;
    let (seen, lost) = (count(&finished.lines, "nanosleep"), lost_of(&finished.lines));
    // A program that lost its CPU leaves a backup that cannot tell a call which found no room from one that was not seen.
    let twice = if preempts_programs()? { THREADS / 10 } else { 0 };
    ensure!((THREADS..=THREADS + twice).contains(&(seen + lost)), "{seen} seen, {lost} lost");
    assert!(seen >= 64, "as many as there is room for: {seen}");
    ensure!(lost > 0 && finished.stderr.contains("--syscall-threads"), "{}", finished.stderr);
    workload.end()
}
