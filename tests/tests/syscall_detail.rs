//! syscalls beyond counts: calls that hang, what calls were about, time off the CPU, what is measured of them, where they come from.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use probe_tests::drop::Cgroup;
use probe_tests::otlp_receiver::{PointValue, Receiver};
use probe_tests::probe::{self, DEADLINE, Line, Probe, patient, poll};
use probe_tests::require;
use probe_tests::workload::Workload;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const LONG: Duration = Duration::from_secs(30);

/// A directory with a FIFO that nobody writes to: opening it hangs. It goes when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("probe-detail-{name}-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, path.join("fifo"), rustix::fs::FileType::Fifo, mode, 0)?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Lets go whoever opens the FIFO.
    fn release(&self) -> Result<()> {
        drop(std::fs::OpenOptions::new().write(true).open(self.path("fifo"))?);
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left for the next boot to clean.
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

/// Waits until a process is blocked in a call.
fn wait_until_in(pid: u32, call: libc::c_long) -> Result<()> {
    poll("the workload is inside the call", DEADLINE, || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/syscall"))?;
        let number = text.split_whitespace().next().and_then(|number| number.parse().ok());
        Ok((number == Some(call)).then_some(()))
    })
}

fn is_row(line: &Line, call: &str) -> bool {
    line.event() == "syscall.summary"
        && line.text("syscall.name") == Some(call)
        && line.int("count") != Some(0)
}

fn count(lines: &[Line], call: &str) -> i64 {
    lines.iter().filter(|line| is_row(line, call)).filter_map(|line| line.int("count")).sum()
}

fn sum(lines: &[Line], call: &str, key: &str) -> f64 {
    lines.iter().filter(|line| is_row(line, call)).filter_map(|line| line.float(key)).sum()
}

fn wait_for_count(probe: &Probe, call: &str, want: i64) -> Result<()> {
    probe.wait_for(&format!("{want} {call}"), LONG, |lines| (count(lines, call) >= want).then_some(()))
}

fn is_in_flight(call: &str) -> impl Fn(&Line) -> bool {
    move |line| line.event() == "syscall.in_flight" && line.text("syscall.name") == Some(call)
}

/// A kernel stack and its innermost function, where this kernel shows its symbols to root.
fn require_stack(line: &Line, through: &str) -> Result<()> {
    let stack = line.text("stack").with_context(|| format!("no stack: {}", line.0))?;
    ensure!(stack.split(';').any(|function| function == through), "not through {through}: {stack}");
    let wchan = line.text("syscall.wchan").with_context(|| format!("no wait channel: {}", line.0))?;
    ensure!(stack.ends_with(wchan) && !wchan.contains("schedule"), "{wchan} of {stack}");
    Ok(())
}

#[test]
fn a_call_that_hangs_is_told_of_while_it_hangs() -> Result<()> {
    let scratch = Scratch::new("hangs")?;
    let mut workload = Workload::start(WORKLOAD)?;
    let pid = workload.pid();
    let probe = Probe::start(&["syscalls", "--pid", &pid.to_string(), "--interval", "300ms"])?;
    workload.order(&format!("slow {}", scratch.path("fifo")))?;
    let line = probe.line("the call that hangs", is_in_flight("openat"))?;
    assert!(line.float("duration").is_some_and(|duration| duration >= 0.1), "{}", line.0);
    assert_eq!(line.get("duration.at_least"), None, "its beginning was seen: {}", line.0);
    assert_eq!(
        (line.int("process.pid"), line.int("thread.id")),
        (Some(i64::from(pid)), Some(i64::from(pid)))
    );
    assert_eq!(line.text("process.comm"), Some("workload"));
    require_stack(&line, "fifo_open")?;
    assert_eq!(line.text("file.path"), Some(scratch.path("fifo").as_str()), "{}", line.0);
    let args = line.get("syscall.args").and_then(|args| args.as_array()).context("no arguments")?;
    assert_eq!(args[2].as_str(), Some("0x0"), "O_RDONLY: {}", line.0);
    // Again whenever it has taken twice as long, not at every look.
    let again = |lines: &[Line]| {
        let durations: Vec<f64> = lines
            .iter()
            .filter(|line| is_in_flight("openat")(line))
            .filter_map(|line| line.float("duration"))
            .collect();
        (durations.len() >= 3).then_some(durations)
    };
    let durations = probe.wait_for("it is told of again", LONG, again)?;
    assert!(durations.windows(2).all(|pair| pair[1] >= 2.0 * pair[0]), "{durations:?}");
    scratch.release()?;
    workload.hear()?;
    let slow = probe.line("it was slow", |line| line.event() == "syscall.slow")?;
    assert_eq!(slow.text("file.path"), Some(scratch.path("fifo").as_str()), "{}", slow.0);
    let (duration, off_cpu) = (slow.float("duration"), slow.float("duration.off_cpu"));
    assert!(off_cpu > duration.map(|duration| duration * 0.5), "it slept: {}", slow.0);
    assert!(off_cpu <= duration, "{}", slow.0);
    let finished = probe.stop()?;
    finished.require_complete()?;
    assert_eq!(count(&finished.lines, "openat"), 1, "counted once");
    workload.end()
}

#[test]
fn a_call_that_hung_before_probe_came_is_told_of_and_not_counted() -> Result<()> {
    let scratch = Scratch::new("older")?;
    let mut workload = Workload::start(WORKLOAD)?;
    let pid = workload.pid();
    workload.order(&format!("slow {}", scratch.path("fifo")))?;
    wait_until_in(pid, libc::SYS_openat)?;
    let probe = Probe::start(&["syscalls", "--pid", &pid.to_string(), "--interval", "300ms"])?;
    let told = probe.wait_for("an interval and more", patient(Duration::from_secs(3)), |lines| {
        lines.iter().find(|line| is_in_flight("openat")(line)).cloned()
    });
    require!(told.is_ok(), "bpf_task_pt_regs, for calls from before probe", since = "5.15");
    let line = told?;
    assert_eq!(line.get("duration.at_least").and_then(|yes| yes.as_bool()), Some(true), "{}", line.0);
    require_stack(&line, "fifo_open")?;
    assert_eq!(line.text("file.path"), Some(scratch.path("fifo").as_str()), "{}", line.0);
    scratch.release()?;
    workload.hear()?;
    workload.tell("getppid 5")?;
    wait_for_count(&probe, "getppid", 5)?;
    let finished = probe.stop()?;
    finished.require_complete()?;
    assert_eq!(count(&finished.lines, "openat"), 0, "it began before");
    assert!(!finished.lines.iter().any(|line| line.event() == "syscall.slow"));
    workload.end()
}

/// A peer that does not read, as one that is stopped (SIGSTOP) does not.
#[test]
fn the_peer_that_a_call_hangs_on_is_named() -> Result<()> {
    let peer = TcpListener::bind("127.0.0.1:0")?;
    let address = peer.local_addr()?;
    let mut workload = Workload::start(WORKLOAD)?;
    let pid = workload.pid().to_string();
    let probe = Probe::start(&["syscalls", "--pid", &pid, "--interval", "300ms"])?;
    workload.order(&format!("push {address}"))?;
    let line = probe.line("a write that hangs", is_in_flight("sendto"))?;
    assert_eq!(line.text("network.peer.address"), Some("127.0.0.1"), "{}", line.0);
    assert_eq!(line.int("network.peer.port"), Some(i64::from(address.port())), "{}", line.0);
    assert!(line.text("file.path").is_some_and(|path| path.starts_with("socket:[")), "{}", line.0);
    require_stack(&line, "tcp_sendmsg")?;
    probe.stop()?.require_complete()?;
    workload.kill()
}

/// The workload takes its orders from a pipe: that is waiting. Reading a file is work, however long it takes.
#[test]
fn reading_a_pipe_waits_and_reading_a_file_works() -> Result<()> {
    let scratch = Scratch::new("reads")?;
    std::fs::write(scratch.path("file"), vec![0; 1000])?;
    let mut workload = Workload::start(WORKLOAD)?;
    let pid = workload.pid();
    let probe = Probe::start(&["syscalls", "--pid", &pid.to_string(), "--slower-than", "1ms"])?;
    for _ in 0..4 {
        wait_until_in(pid, libc::SYS_read)?;
        workload.tell(&format!("read {} 25", scratch.path("file")))?;
    }
    workload.tell("getppid 1")?;
    wait_for_count(&probe, "getppid", 1)?;
    let finished = probe.stop()?;
    finished.require_complete()?;
    let of = |class: &str| -> i64 {
        let rows = finished.lines.iter().filter(|line| is_row(line, "read"));
        rows.filter(|line| line.text("syscall.class") == Some(class))
            .filter_map(|line| line.int("count"))
            .sum()
    };
    // The first order's read began before probe did. An order that came before the workload asked for it was not waited for.
    let (work, wait) = (of("work"), of("wait"));
    ensure!(work + wait == 104, "{work} worked, {wait} waited");
    ensure!((100..=101).contains(&work) && wait >= 3, "{work} worked, {wait} waited");
    let slow_read = |line: &Line| line.event() == "syscall.slow" && line.text("syscall.name") == Some("read");
    assert!(!finished.lines.iter().any(slow_read), "waiting is not slow");
    workload.end()
}

#[test]
fn time_off_the_cpu_is_told() -> Result<()> {
    let mut workload = Workload::start(WORKLOAD)?;
    let probe = Probe::start(&["syscalls", "--pid", &workload.pid().to_string()])?;
    workload.tell("nanosleep 20 10")?;
    workload.tell("getppid 1000")?;
    wait_for_count(&probe, "getppid", 1000)?;
    let finished = probe.stop()?;
    finished.require_complete()?;
    let of =
        |call| (sum(&finished.lines, call, "duration.off_cpu"), sum(&finished.lines, call, "duration.sum"));
    let (slept, whole) = of("nanosleep");
    ensure!((0.19..=whole).contains(&slept), "{slept} of {whole} s");
    let (slept, _) = of("getppid");
    // It may lose its CPU to others, but it never sleeps.
    ensure!(slept < 0.19, "{slept} s");
    for line in finished.lines.iter().filter(|line| is_row(line, "nanosleep")) {
        let [min, p50, max] = ["duration.min", "duration.p50", "duration.max"].map(|key| line.float(key));
        assert!(min >= Some(0.02) && min <= max && p50 <= max, "{}", line.0);
    }
    workload.end()
}

#[test]
fn counts_stay_exact_when_one_call_in_sixteen_is_measured() -> Result<()> {
    const HELD: Duration = Duration::from_millis(300);
    const CALLS: i64 = 50_000;
    let scratch = Scratch::new("sampled")?;
    let mut workload = Workload::start(WORKLOAD)?;
    let pid = workload.pid();
    let probe = Probe::start(&["syscalls", "--pid", &pid.to_string(), "--latency-sample", "16"])?;
    workload.tell(&format!("getppid {CALLS}"))?;
    workload.tell(&format!("openat {} 500", scratch.path("missing")))?;
    // Slow ones are all caught, whether it was their turn or not.
    for _ in 0..3 {
        workload.order(&format!("slow {}", scratch.path("fifo")))?;
        wait_until_in(pid, libc::SYS_openat)?;
        std::thread::sleep(HELD);
        scratch.release()?;
        workload.hear()?;
    }
    workload.tell("getppid 1")?;
    wait_for_count(&probe, "getppid", CALLS + 1)?;
    let finished = probe.stop()?;
    finished.require_complete()?;
    let lines = &finished.lines;
    assert_eq!((count(lines, "getppid"), count(lines, "openat")), (CALLS + 1, 503));
    let errors: i64 = lines
        .iter()
        .filter(|line| is_row(line, "openat"))
        .filter_map(|line| line.get("errors")?.get("ENOENT")?.as_i64())
        .sum();
    assert_eq!(errors, 500);
    let slow: Vec<f64> = lines
        .iter()
        .filter(|line| line.event() == "syscall.slow")
        .filter_map(|line| line.float("duration"))
        .collect();
    assert_eq!(slow.len(), 3, "{slow:?}");
    assert!(slow.iter().all(|seconds| *seconds >= HELD.as_secs_f64()), "{slow:?}");
    // What is measured stands for what is not: the slow ones for themselves alone.
    let seconds = sum(lines, "openat", "duration.sum");
    assert!((3.0 * HELD.as_secs_f64()..4.0 * HELD.as_secs_f64() + 3.0).contains(&seconds), "{seconds}");
    let measured = sum(lines, "getppid", "duration.sum");
    assert!(measured > CALLS as f64 * 20e-9, "{measured} s for all");
    workload.end()
}

/// Every call is counted where one in sixteen is measured, and a call that hangs is in a gauge until it returns.
#[test]
fn a_collector_has_all_counts_and_what_hangs() -> Result<()> {
    const CALLS: f64 = 3_000.0;
    let scratch = Scratch::new("collector")?;
    let container = "13579bdf".repeat(8);
    let outer = Cgroup::new()?;
    let docker = outer.below("docker")?;
    let cgroup = docker.below(&container)?;
    let mut workload = Workload::start(WORKLOAD)?;
    cgroup.add(workload.pid())?;
    let receiver = Receiver::start()?;
    let endpoint = receiver.endpoint();
    let probe = Probe::start(&[
        "run",
        "--interval",
        "300ms",
        "--otlp-endpoint",
        &endpoint,
        "--syscall-latency-sample",
        "16",
    ])?;
    let last = |receiver: &Receiver, metric: &str, call: &str| {
        let of = |point: &&probe_tests::otlp_receiver::Point| {
            point.name == metric
                && point.resource.get("container.id") == Some(&container)
                && point.attributes.get("syscall.name").is_some_and(|name| name == call)
        };
        match receiver.points().iter().rev().find(of)?.value {
            PointValue::Sum { value, .. } | PointValue::Gauge(value) => Some(value),
            PointValue::Exponential { count, .. } | PointValue::Explicit { count, .. } => Some(count as f64),
        }
    };
    let hangs = |receiver: &Receiver| last(receiver, "process.syscall.in_flight", "openat");
    workload.tell("getppid 3000")?;
    workload.order(&format!("slow {}", scratch.path("fifo")))?;
    receiver.wait_for("a call that hangs", LONG, |receiver| hangs(receiver).filter(|calls| *calls == 1.0))?;
    scratch.release()?;
    workload.hear()?;
    receiver.wait_for("none that hangs", LONG, |receiver| hangs(receiver).filter(|calls| *calls == 0.0))?;
    probe.stop()?.require_complete()?;
    let counted = |call| last(&receiver, "process.syscall.calls", call);
    assert_eq!((counted("getppid"), counted("openat")), (Some(CALLS), Some(1.0)));
    // Those after the last that was measured have none to stand for them: less than two in sixteen on each CPU.
    let stood_for = last(&receiver, "process.syscall.duration", "getppid").context("no durations")?;
    let cpus = std::thread::available_parallelism()?.get() as f64;
    assert!((CALLS - 31.0 * cpus..=CALLS).contains(&stood_for), "{stood_for}");
    workload.end()
}

#[test]
fn without_latency_counts_stay_exact() -> Result<()> {
    let scratch = Scratch::new("unmeasured")?;
    let mut workload = Workload::start(WORKLOAD)?;
    let probe = Probe::start(&["syscalls", "--pid", &workload.pid().to_string(), "--no-latency"])?;
    workload.tell("threads 4 5000")?;
    workload.tell(&format!("openat {} 300", scratch.path("missing")))?;
    wait_for_count(&probe, "openat", 300)?;
    let finished = probe.stop()?;
    finished.require_complete()?;
    let lines = &finished.lines;
    let counts = ["getppid", "sched_yield", "openat"].map(|call| count(lines, call));
    assert_eq!(counts, [20_000, 20_000, 300]);
    for line in lines.iter().filter(|line| line.event() == "syscall.summary") {
        for key in ["duration.sum", "duration.p50", "duration.max", "duration.off_cpu"] {
            assert_eq!(line.get(key), None, "{}", line.0);
        }
    }
    workload.end()
}

/// Even for a call that waits by design.
#[test]
fn a_call_has_a_threshold_of_its_own() -> Result<()> {
    let mut workload = Workload::start(WORKLOAD)?;
    let pid = workload.pid().to_string();
    let probe = Probe::start(&["syscalls", "--pid", &pid, "--slower-than", "10s,nanosleep=15ms"])?;
    workload.tell("nanosleep 20 3")?;
    workload.tell("nanosleep 2 5")?;
    workload.tell("getppid 1")?;
    wait_for_count(&probe, "getppid", 1)?;
    let finished = probe.stop()?;
    finished.require_complete()?;
    let slow: Vec<&Line> = finished.lines.iter().filter(|line| line.event() == "syscall.slow").collect();
    assert!(slow.iter().all(|line| line.text("syscall.name") == Some("nanosleep")), "{slow:#?}");
    assert!(slow.iter().all(|line| line.float("duration") >= Some(0.015)), "{slow:#?}");
    // In a virtual machine a sleep of 2 ms may take longer than 15.
    assert!(slow.len() >= 3 && (probe::in_guest() || slow.len() == 3), "{slow:#?}");
    workload.end()
}

/// Ends a process when it is dropped.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
fn stacks_lead_from_the_program_to_the_call_and_into_the_kernel() -> Result<()> {
    let scratch = Scratch::new("stacks")?;
    let picture = scratch.path("graph.svg");
    let mut workload = Workload::start(WORKLOAD)?;
    let pid = workload.pid().to_string();
    // Named, so that waiting counts too.
    let arguments =
        ["syscalls", "--pid", &pid, "--syscall", "getppid,nanosleep", "--stacks", "--flamegraph", &picture];
    let mut command = probe::command(arguments)?;
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn()?;
    let mut child = Killed(child);
    let probe_pid = child.0.id();
    let links = probe::expected_links("syscalls");
    poll("probe is attached", patient(LONG), || {
        Ok((probe::attached_links(probe_pid)? >= links && probe::handles_interrupt(probe_pid)?).then_some(()))
    })?;
    workload.tell("flood getppid 500")?;
    workload.tell("nanosleep 20 10")?;
    let end = rustix::process::Pid::from_raw(i32::try_from(probe_pid)?).context("no pid")?;
    rustix::process::kill_process(end, rustix::process::Signal::INT)?;
    let stdout = child.0.stdout.take().context("stdout")?;
    let text = std::io::read_to_string(stdout)?;
    let stderr = std::io::read_to_string(child.0.stderr.take().context("stderr")?)?;
    let status = child.0.wait()?;
    ensure!(status.success(), "{status}: {stderr}");
    let lines: Vec<(&str, u64)> = text
        .lines()
        .map(|line| {
            let (stack, weight) = line.rsplit_once(' ').with_context(|| format!("no weight: {line}"))?;
            Ok((stack, weight.parse()?))
        })
        .collect::<Result<_>>()?;
    ensure!(!lines.is_empty() && lines.iter().all(|(stack, _)| stack.starts_with("workload;")), "{text}");
    let of = |call: &str| -> Vec<(&str, u64)> {
        let frame = format!("syscall:{call}");
        lines.iter().filter(|(stack, _)| stack.split(';').any(|part| part == frame)).copied().collect()
    };
    let (getppid, nanosleep) = (of("getppid"), of("nanosleep"));
    let named = |stacks: &[(&str, u64)]| stacks.iter().any(|(stack, _)| stack.contains(";syscall;syscall:"));
    ensure!(named(&getppid) && named(&nanosleep), "libc's function made the call: {text}\n{stderr}");
    let asleep = nanosleep.iter().filter(|(stack, _)| stack.contains("hrtimer_nanosleep_[k]"));
    let asleep_ns: u64 = asleep.map(|(_, weight)| weight).sum();
    ensure!((150_000_000..5_000_000_000).contains(&asleep_ns), "asleep for {asleep_ns} ns: {text}");
    let svg = std::fs::read_to_string(&picture)?;
    ensure!(svg.contains("<svg") && svg.trim_end().ends_with("</svg>"), "{}", svg.len());
    ensure!(svg.contains("syscall:getppid") && svg.contains("hrtimer_nanosleep"), "{picture}");
    ensure!(stderr.contains("stacks: "), "{stderr}");
    workload.end()
}
