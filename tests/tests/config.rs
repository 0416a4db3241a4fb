//! `probe run --config`: what is wrong is told before anything is attached, who beats whom, and SIGHUP, which loses nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use probe_tests::drop::Cgroup;
use probe_tests::netns::Netns;
use probe_tests::otlp_receiver::{Point, PointValue, Receiver};
use probe_tests::privileges::{PublicCopy, as_nobody};
use probe_tests::probe::{
    Probe, attached_links, command, expected_links, handles_interrupt, in_guest, patient, poll, require_root,
};
use probe_tests::require::own_host;
use probe_tests::workload::Workload;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::CapabilitySet;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const LONG: Duration = Duration::from_secs(30);
const CONTAINER: &str = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";

/// A directory that goes when the test does.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("probe-config-{}-{number}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Writes a file in one step, as whoever configures a running service should.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let (path, new) = (self.0.join(name), self.0.join("new"));
        std::fs::write(&new, text)?;
        std::fs::rename(&new, &path)?;
        Ok(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

/// An agent whose stderr can be read while it runs.
struct Agent {
    child: Child,
    stderr: PathBuf,
}

impl Agent {
    fn start(directory: &Directory, args: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn(directory, args)?;
        agent.ready()?;
        Ok(agent)
    }

    fn spawn(directory: &Directory, args: &[&str]) -> Result<Self> {
        require_root()?;
        let stderr = directory.0.join("stderr");
        let child = command(["run"].iter().chain(args))?
            .stdout(Stdio::null())
            .stderr(File::create(&stderr)?)
            .spawn()
            .context("cannot start probe")?;
        Ok(Self { child, stderr })
    }

    fn ready(&mut self) -> Result<()> {
        poll("the agent is ready", LONG, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended at its start, {status}: {}", self.said());
            }
            let pid = self.child.id();
            Ok((attached_links(pid)? >= expected_links("run") && handles_interrupt(pid)?).then_some(()))
        })
    }

    /// All that it has said so far.
    fn said(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// A hang-up, until what came of it was said.
    fn hang_up(&self, words: &str) -> Result<()> {
        let before = self.said().len();
        self.signal(Signal::HUP)?;
        let said = poll("what came of the hang-up", LONG, || {
            let said = self.said();
            let new = said.get(before..).unwrap_or_default().to_owned();
            let is_whole = |line: &str| line.contains("SIGHUP: ") && line.ends_with('\n');
            Ok(new.split_inclusive('\n').any(is_whole).then_some(new))
        });
        let said = said.with_context(|| self.said())?;
        ensure!(said.contains(words), "{words:?} is not in {said:?}");
        Ok(())
    }

    fn stop(mut self) -> Result<String> {
        self.signal(Signal::INT)?;
        let status: ExitStatus = poll("the end of probe", LONG, || Ok(self.child.try_wait()?))?;
        let said = self.said();
        ensure!(status.success() && said.contains("nothing was lost"), "{status}: {said}");
        Ok(said)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

fn check(args: &[&str], env: &[(&str, &str)]) -> Result<(Option<i32>, String, String)> {
    let output = command(["run"].iter().chain(args))?.envs(env.iter().copied()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

#[test]
fn files_are_checked_and_nothing_is_attached() -> Result<()> {
    let directory = Directory::new()?;
    let large = "#".repeat((1 << 20) + 1);
    let bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n";
    type Case<'a> = (&'a str, &'a str, &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        ("good.yaml", "interval: 30s\notlp-endpoint: http://localhost:4317\ndns-port: [53, 5353]\n", &[]),
        ("good.yml", "nat: true\n", &[]),
        ("good.toml", "interval = '30s'\ndns-port = [53, 5353]\nnat = false\n", &[]),
        ("empty.yaml", "", &[]),
        ("empty.toml", "# nothing\n", &[]),
        (
            "bad.yaml",
            "intervall: 30s\ninterval: 30\nring-kib: 100\notlp-headers: s3cret\ncgroup: /a\ncontainer: b\n",
            &[
                "bad.yaml:1:1: \"intervall\" is no key; did you mean interval?",
                "bad.yaml:2:1: interval: \"30\" cannot be used: ",
                "bad.yaml:3:1: ring-kib: \"100\" cannot be used: a power of two from 4 to 65536",
                "bad.yaml:4:1: otlp-headers: \"(hidden)\" cannot be used; allowed: key=value",
                "exclude each other",
            ],
        ),
        (
            "bad.toml",
            "interval = 30\n[otlp]\nendpoint = 'x'\n",
            &["bad.toml:1:1: interval: \"30\"", "bad.toml:2:2: otlp: a table"],
        ),
        (
            "ca.yaml",
            "otlp-endpoint: https://c:4317\notlp-certificate: /nonexistent.pem\n",
            &["/nonexistent.pem", "PEM file"],
        ),
        ("large.yaml", &large, &["large.yaml: is larger than the 1048576 bytes"]),
        (
            "bomb.yaml",
            bomb,
            &["bomb.yaml:1:1: a: anchors", "bomb.yaml:2:1: b: anchors", "bomb.yaml:3:1: c: anchors"],
        ),
        ("probe.conf", "interval: 30s\n", &["probe.conf: its name tells the format", ".yaml, .yml or .toml"]),
    ];
    for (name, contents, wrong) in cases {
        let path = directory.write(name, contents)?;
        let (code, stdout, stderr) = check(&["--check-config", "--config", text(&path)], &[])?;
        let want = if wrong.is_empty() { 0 } else { 2 };
        ensure!(code == Some(want), "{name}: {code:?}: {stderr}");
        ensure!(wrong.iter().all(|words| stderr.contains(words)), "{name}: {stderr}");
        ensure!(
            stdout.ends_with("ok\n") == wrong.is_empty() && !stderr.contains("s3cret"),
            "{name}: {stdout}{stderr}"
        );
        if !wrong.is_empty() {
            // The same words where it was meant to run.
            let (code, _, again) = check(&["--config", text(&path)], &[])?;
            ensure!(code == Some(2) && again == stderr, "{name}: {code:?}: {again}");
        }
    }
    let (code, _, stderr) = check(&["--check-config", "--config", "/nonexistent/probe.yaml"], &[])?;
    ensure!(
        code == Some(2) && stderr.contains("/nonexistent/probe.yaml: cannot be read: No such file"),
        "{stderr}"
    );
    Ok(())
}

#[test]
fn checking_takes_no_privileges() -> Result<()> {
    require_root()?;
    let directory = Directory::new()?;
    let path = directory.write("probe.yaml", "interval: 30s\nnat: true\n")?;
    let copy = PublicCopy::new("config")?;
    for (args, words) in
        [(["--check-config", "--config"], ": ok"), (["--print-config", "--config"], "interval: 30s # ")]
    {
        let mut probe = command(["run"].iter().chain(&args))?;
        probe.arg(&path);
        copy.put_into(&mut probe);
        as_nobody(&mut probe, CapabilitySet::empty());
        let output = probe.output()?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && stdout.contains(words), "{output:?}");
    }
    Ok(())
}

#[test]
fn flag_before_variable_before_file_before_default() -> Result<()> {
    let directory = Directory::new()?;
    let file = "interval: 30s\nring-kib: 512\nmax-cgroups: 64\notlp-endpoint: http://file:4317\n\
                otlp-headers: k=s3cret\ndns-timeout: 3s\n";
    let path = directory.write("probe.yaml", file)?;
    let env = [
        ("PROBE_CONFIG", text(&path)),
        ("PROBE_RING_KIB", "1024"),
        ("PROBE_MAX_CGROUPS", "128"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://variable:4317"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "20000"),
    ];
    let (code, stdout, stderr) = check(&["--print-config", "--max-cgroups", "256"], &env)?;
    ensure!(code == Some(0), "{stderr}");
    let place = |line| format!("{}:{line}:1", path.display());
    for line in [
        "max-cgroups: 256 # flag".to_owned(),
        "ring-kib: 1024 # PROBE_RING_KIB".to_owned(),
        "otlp-endpoint: \"http://variable:4317\" # OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(),
        "interval: 20000ms # OTEL_METRIC_EXPORT_INTERVAL".to_owned(),
        format!("# otlp-headers: (hidden) # {}", place(5)),
        format!("dns-timeout: 3s # {}", place(6)),
        "tcp-sockets: 16384 # default".to_owned(),
    ] {
        ensure!(stdout.lines().any(|found| found == line), "{line} is not in {stdout}");
    }
    ensure!(!stdout.contains("s3cret"), "{stdout}");
    // What was printed says the same again.
    let printed = directory.write("printed.yaml", &stdout)?;
    let (code, again, stderr) = check(&["--print-config", "--config", text(&printed)], &[])?;
    ensure!(code == Some(0), "{stderr}");
    let values = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| Some(line.split_once(" # ")?.0.to_owned())).collect()
    };
    ensure!(values(&again) == values(&stdout), "{again}\n{stdout}");
    Ok(())
}

/// What a counter's or histogram's last point says, by receiver.
fn last<'a>(points: &'a [Point], name: &str, attribute: (&str, &str)) -> Option<&'a Point> {
    points.iter().rev().find(|point| {
        point.name == name
            && point.resource.get("container.id").map(String::as_str) == Some(CONTAINER)
            && point.attributes.get(attribute.0).map(String::as_str) == Some(attribute.1)
    })
}

fn count(point: &Point) -> u64 {
    match &point.value {
        PointValue::Sum { value, .. } | PointValue::Gauge(value) => *value as u64,
        PointValue::Exponential { count, .. } | PointValue::Explicit { count, .. } => *count,
    }
}

/// Start times and last values of everything cumulative that a receiver has, the agent's own included.
type Series = BTreeMap<(BTreeMap<String, String>, String, BTreeMap<String, String>), (u64, u64)>;

fn series(points: &[Point]) -> Series {
    // This one falls, as memory does.
    let cumulative =
        points.iter().filter(|point| point.cumulative == Some(true) && point.name != "process.memory.usage");
    let of = |point: &Point| (point.resource.clone(), point.name.clone(), point.attributes.clone());
    cumulative.map(|point| (of(point), (point.start, count(point)))).collect()
}

#[test]
fn a_reload_under_load_sends_elsewhere_and_loses_nothing() -> Result<()> {
    if in_guest() {
        // Emulated, it takes minutes; and nothing of it is the kernel's.
        return own_host("a flood that is sent elsewhere");
    }
    let directory = Directory::new()?;
    let netns = Netns::new()?;
    let refusing = netns.run(|| -> Result<_> { Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?) })??;
    let (outer, mut caller, mut connector) =
        (Cgroup::new()?, Workload::start(WORKLOAD)?, netns.run(|| Workload::start(WORKLOAD))??);
    let docker = outer.below("docker")?;
    let cgroup = docker.below(CONTAINER)?;
    cgroup.add(caller.pid())?;
    cgroup.add(connector.pid())?;

    let (first, second) = (Receiver::start()?, Receiver::start_http()?);
    let file = |endpoint: &str, protocol: &str, ring: u32| {
        format!("interval: 300ms\notlp-endpoint: {endpoint}\notlp-protocol: {protocol}\nring-kib: {ring}\n")
    };
    let path = directory.write("probe.yaml", &file(&first.endpoint(), "grpc", 4096))?;
    let agent = Agent::start(&directory, &["--config", text(&path)])?;

    let load = format!("flood getppid {}", patient(Duration::from_secs(3)).as_millis());
    caller.order(&load)?;
    connector.order(&format!("flood refused {} {refusing}", patient(Duration::from_secs(3)).as_millis()))?;
    let calls = ("syscall.name", "getppid");
    let refused = ("error.type", "ECONNREFUSED");
    let connections = "system.network.tcp.connections";
    first.wait_for("figures at the first", patient(LONG), |first| {
        let points = first.points();
        let events = first.records();
        let has_event = events.iter().any(|record| record.event == "tcp.connect");
        let calls = last(&points, "process.syscall.duration", calls).filter(|_| has_event);
        calls.and(last(&points, connections, refused)).map(drop)
    })?;
    directory.write("probe.yaml", &file(&second.endpoint(), "http/protobuf", 8192))?;
    agent.hang_up("otlp-endpoint, otlp-protocol changed; ring-kib takes effect at the next start")?;
    second.wait_for("figures at the second", patient(LONG), |second| {
        last(&second.points(), "process.syscall.duration", calls).map(drop)
    })?;
    let made: u64 = caller.hear()?.trim().parse()?;
    let tried: u64 = connector.hear()?.trim().parse()?;
    agent.stop()?;

    let (at_first, at_second) = (first.points(), second.points());
    let all = last(&at_second, "process.syscall.duration", calls).context("no calls at the second")?;
    ensure!(count(all) == made, "{} of {made} calls: {all:?}", count(all));
    let all = last(&at_second, connections, refused).context("no connects at the second")?;
    ensure!(count(all) == tried, "{} of {tried} connects: {all:?}", count(all));
    // Of events, each went to one of the two, but for those that a receiver too slow for a flood left no room for: they are counted.
    let failed = series(&at_second).into_iter().filter(|((_, name, attributes), _)| {
        name == "probe.export.failed" && attributes.get("sink").map(String::as_str) == Some("otlp_logs")
    });
    let no_room: u64 = failed.map(|(_, (_, count))| count).sum();
    let of = |receiver: &Receiver| {
        let records = receiver.records();
        let ours = records
            .iter()
            .filter(|record| record.resource.get("container.id").map(String::as_str) == Some(CONTAINER));
        ours.filter(|record| record.event == "tcp.connect").count()
    };
    ensure!(of(&first) != 0 && of(&second) != 0, "{} and {} events", of(&first), of(&second));
    let arrived = (of(&first) + of(&second)) as u64;
    ensure!(
        arrived <= tried && arrived + no_room >= tried,
        "{} and {} of {tried} events, and no room for {no_room}",
        of(&first),
        of(&second)
    );
    // The same series with the same start, and none fell.
    let (before, after) = (series(&at_first), series(&at_second));
    ensure!(before.len() > 10, "{before:?}");
    for (key, (start, value)) in &before {
        let Some((start_after, value_after)) = after.get(key) else { bail!("{key:?} ended") };
        ensure!(start == start_after, "{key:?} began anew: {start} and {start_after}");
        ensure!(value <= value_after, "{key:?} fell from {value} to {value_after}");
    }
    caller.end()?;
    connector.end()
}

#[test]
fn a_bad_file_changes_nothing_and_the_next_good_one_does() -> Result<()> {
    let directory = Directory::new()?;
    let (first, second) = (Receiver::start()?, Receiver::start()?);
    let good = |endpoint: &str| format!("interval: 300ms\notlp-endpoint: {endpoint}\n");
    let path = directory.write("probe.yaml", &good(&first.endpoint()))?;
    let agent = Agent::start(&directory, &["--config", text(&path)])?;
    let more = |receiver: &Receiver| {
        let (_, seen) = receiver.points_after(0);
        receiver.wait_for("another export", patient(LONG), |receiver| {
            (!receiver.points_after(seen).0.is_empty()).then_some(())
        })
    };
    more(&first)?;
    directory.write("probe.yaml", &format!("{}intervall: 1s\nring-kib: 3\n", good(&second.endpoint())))?;
    agent.hang_up("nothing is taken over")?;
    let said = agent.said();
    for words in ["probe.yaml:3:1: \"intervall\" is no key", "probe.yaml:4:1: ring-kib: \"3\" cannot be used"]
    {
        ensure!(said.contains(words), "{said}");
    }
    more(&first)?;
    ensure!(second.calls() == 0, "what a bad file says was taken over");
    std::fs::remove_file(&path)?;
    agent.hang_up("nothing is taken over")?;
    more(&first)?;
    directory.write("probe.yaml", &good(&second.endpoint()))?;
    agent.hang_up("otlp-endpoint changed")?;
    more(&second)?;
    agent.hang_up("nothing has changed")?;
    more(&second)?;
    // And nowhere.
    directory.write("probe.yaml", "interval: 300ms\n")?;
    agent.hang_up("otlp-endpoint changed")?;
    agent.stop()?;
    Ok(())
}

#[test]
fn thresholds_of_slow_calls_change_while_it_runs() -> Result<()> {
    let directory = Directory::new()?;
    let receiver = Receiver::start()?;
    let mut workload = Workload::start(WORKLOAD)?;
    let file = |rest: &str| format!("interval: 300ms\notlp-endpoint: {}\n{rest}", receiver.endpoint());
    let path = directory.write("probe.yaml", &file("syscall-slower-than: 1h\n"))?;
    let agent = Agent::start(&directory, &["--config", text(&path)])?;
    let pid = workload.pid().to_string();
    let slow = |receiver: &Receiver| {
        let records = receiver.records();
        let ours = records.iter().filter(|record| record.attributes.get("process.pid") == Some(&pid));
        ours.filter(|record| record.event == "syscall.slow").count()
    };
    workload.tell("nanosleep 20 1")?;
    directory.write("probe.yaml", &file("syscall-slower-than: 1h,clock_nanosleep=10ms,nanosleep=10ms\n"))?;
    agent.hang_up("syscall-slower-than changed")?;
    poll("a slow call", LONG, || {
        workload.tell("nanosleep 20 1")?;
        Ok((slow(&receiver) != 0).then_some(()))
    })?;
    agent.stop()?;
    workload.end()
}

#[test]
fn without_a_file_a_hangup_is_said_and_survived() -> Result<()> {
    let directory = Directory::new()?;
    let agent = Agent::start(&directory, &["--interval", "300ms"])?;
    agent.hang_up("there is no file to read again (--config FILE, or PROBE_CONFIG)")?;
    agent.stop()?;
    Ok(())
}

#[test]
fn a_hangup_before_everything_is_attached_is_kept() -> Result<()> {
    let directory = Directory::new()?;
    let path = directory.write("probe.yaml", "interval: 300ms\n")?;
    let mut agent = Agent::spawn(&directory, &["--config", text(&path)])?;
    let pid = agent.child.id();
    // Looked at in this order: who waits with it until all is attached cannot seem to have been early.
    poll("a handler", LONG, || {
        let attached = attached_links(pid)?;
        let catches = catches_hangups(pid)?;
        ensure!(catches || attached == 0, "{attached} links, and a hang-up would still be the end");
        Ok(catches.then_some(()))
    })?;
    agent.signal(Signal::HUP)?;
    poll("what came of it", LONG, || {
        Ok(agent.said().contains("probe.yaml: nothing has changed").then_some(()))
    })?;
    agent.ready()?;
    agent.stop()?;
    Ok(())
}

/// Whether a process has said what is to become of SIGHUP.
fn catches_hangups(pid: u32) -> Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).context("no SigCgt")?;
    Ok(u64::from_str_radix(caught.trim(), 16)? & (1 << (libc::SIGHUP - 1)) != 0)
}

/// What the kernel would do: who tests may have been told to ignore hang-ups, and then its children are, too.
#[test]
fn a_live_command_leaves_hangups_to_the_kernel() -> Result<()> {
    let (live, directory) = (Probe::start(&["tcp"])?, Directory::new()?);
    let agent = Agent::start(&directory, &[])?;
    ensure!(!catches_hangups(live.pid())? && catches_hangups(agent.child.id())?);
    agent.stop()?;
    live.stop()?.require_complete()
}
