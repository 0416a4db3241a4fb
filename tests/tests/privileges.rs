//! Least privilege: what each command needs, what it does without the rest, and what it still holds while it runs.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use probe_tests::bpf::preempts_programs;
use probe_tests::dns_server::DnsServer;
use probe_tests::netns::Netns;
use probe_tests::privileges::{
    LEAST, PublicCopy, ThreadPrivileges, as_nobody, in_user_namespace, least_to_be_exact, of_threads,
    with_memlock, without_bpf,
};
use probe_tests::probe::{DEADLINE, Line, Probe, command, poll, programs_here, require_root};
use probe_tests::workload::Workload;
use probe_user::signals;
use rustix::thread::CapabilitySet;
use serde_json::Value;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const SERVER: &str = "127.0.0.2:53";
/// Nobody listens there.
const REFUSED: &str = "127.0.0.3:9";
const COMMANDS: [&str; 4] = ["tcp", "dns", "syscalls", "run"];

/// Something to see for each signal.
struct Stimulus {
    netns: Netns,
    _server: DnsServer,
    workload: Workload,
}

impl Stimulus {
    fn new() -> Result<Self> {
        let netns = Netns::new()?;
        let server = netns.run(|| DnsServer::start(&[SERVER.parse::<SocketAddr>()?], &[]))??;
        let workload = netns.run(|| Workload::start(WORKLOAD))??;
        Ok(Self { netns, _server: server, workload })
    }

    /// A connect that is refused, a lookup, ten calls of getppid.
    fn make(&mut self) -> Result<()> {
        let connected = self.netns.run(|| TcpStream::connect(REFUSED))?;
        ensure!(connected.is_err(), "somebody listens at {REFUSED}");
        self.workload.tell(&format!("ask {SERVER} 7 least.test"))?;
        self.workload.tell("getppid 10")?;
        Ok(())
    }

    fn is_connect(&self, line: &Line) -> bool {
        line.event() == "tcp.connect"
            && line.text("outcome") == Some("failed")
            && line.int("linux.netns") == Some(i64::from(self.netns.inode()))
    }

    fn is_lookup(&self, line: &Line) -> bool {
        line.text("dns.question.name") == Some("least.test")
            && line.int("process.pid") == Some(i64::from(self.workload.pid()))
    }

    fn is_call(&self, line: &Line) -> bool {
        line.event() == "syscall.summary"
            && line.text("syscall.name") == Some("getppid")
            && line.int("process.pid") == Some(i64::from(self.workload.pid()))
    }

    /// Makes traffic until a probe has seen all that `name` is about. Returns a line about the workload, where there is one.
    fn wait_seen(&mut self, name: &str, probe: &Probe) -> Result<Option<Line>> {
        poll("everything was seen", DEADLINE * 2, || {
            self.make()?;
            let lines = probe.lines();
            let seen = |is: &dyn Fn(&Line) -> bool| lines.iter().find(|line| is(line)).cloned();
            let connect = seen(&|line| self.is_connect(line));
            let lookup = seen(&|line| self.is_lookup(line));
            let call = seen(&|line| self.is_call(line));
            Ok(match name {
                "tcp" => connect.map(|_line| None),
                "dns" => lookup.map(Some),
                "syscalls" => call.map(Some),
                _ => connect.and(lookup).and(call).map(Some),
            })
        })
    }
}

/// What this kernel asks for whenever a map is read: nothing from 5.19 on.
fn for_maps() -> Result<CapabilitySet> {
    Ok(if kernel()? < (5, 19) { CapabilitySet::BPF } else { CapabilitySet::empty() })
}

fn kernel() -> Result<(u32, u32)> {
    let release = rustix::system::uname().release().to_str()?.to_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Ok((numbers.next().context("release")??, numbers.next().context("release")??))
}

/// All threads must have exactly this, and whatever bounding set they have.
fn require_threads(probe: &Probe, kept: CapabilitySet) -> Result<Vec<ThreadPrivileges>> {
    let threads = of_threads(probe.pid())?;
    ensure!(threads.len() > 2, "the runtime's threads are not there: {threads:?}");
    for thread in &threads {
        let expected = ThreadPrivileges {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
            ambient: CapabilitySet::empty(),
            bounding: thread.bounding,
            no_new_privs: true,
        };
        ensure!(*thread == expected, "{thread:?} and not {expected:?}");
    }
    Ok(threads)
}

#[test]
fn three_capabilities_are_enough_for_all_signals() -> Result<()> {
    let copy = PublicCopy::new("least")?;
    let least = least_to_be_exact()?;
    let mut stimulus = Stimulus::new()?;
    for name in COMMANDS {
        let probe = Probe::start_with(&[name, "--interval", "250ms"], |command| {
            copy.put_into(command);
            as_nobody(command, least);
        })?;
        let line = stimulus.wait_seen(name, &probe).context(name)?;
        if let Some(line) = line {
            let executable = line.text("process.executable.name");
            ensure!(executable.is_none(), "nobody may not know this: {}", line.0);
        }
        require_threads(&probe, for_maps()?).context(name)?;
        let finished = probe.stop()?;
        finished.require_complete().context(name)?;
        ensure!(!finished.stderr.contains("WARN"), "{name}: {}", finished.stderr);
    }
    Ok(())
}

#[test]
fn root_keeps_what_is_used_and_nothing_else() -> Result<()> {
    require_root()?;
    let mut stimulus = Stimulus::new()?;
    for name in COMMANDS {
        let probe = Probe::start(&[name, "--interval", "250ms"])?;
        let line = stimulus.wait_seen(name, &probe).context(name)?;
        if let Some(line) = line {
            let executable = line.text("process.executable.name");
            ensure!(executable == Some("workload"), "what CAP_SYS_PTRACE is kept for: {}", line.0);
        }
        for thread in require_threads(&probe, CapabilitySet::SYS_PTRACE | for_maps()?).context(name)? {
            ensure!(thread.bounding.is_empty(), "{name}: {thread:?}");
        }
        let finished = probe.stop()?;
        finished.require_complete().context(name)?;
        ensure!(!finished.stderr.contains("WARN"), "{name}: {}", finished.stderr);
    }
    Ok(())
}

#[test]
fn tcp_and_syscalls_do_without_net_admin() -> Result<()> {
    let copy = PublicCopy::new("without")?;
    let two = least_to_be_exact()? & !CapabilitySet::NET_ADMIN;
    for name in ["tcp", "syscalls"] {
        let output = output(&[name, "--duration", "300ms"], |command| {
            copy.put_into(command);
            as_nobody(command, two);
        })?;
        ensure!(output.status.code() == Some(0), "{name}: {output:?}");
    }
    let doctor = Doctor::run(|command| {
        copy.put_into(command);
        as_nobody(command, two);
    })?;
    ensure!(doctor.output.status.code() == Some(4), "{:?}", doctor.output);
    for (name, expected) in [
        // A signal's own row may be degraded, by what its kernel lacks.
        ("program tcp/tcp_retransmit_skb", "ok"),
        ("program syscalls/sys_enter", "ok"),
        ("signal dns", "unavailable"),
        ("names of peers", "degraded"),
        ("CAP_NET_ADMIN", "unavailable"),
        ("CAP_BPF", "ok"),
    ] {
        doctor.require(name, expected, "")?;
    }
    Ok(())
}

#[test]
fn what_is_missing_is_named() -> Result<()> {
    let copy = PublicCopy::new("missing")?;
    let cases: [(CapabilitySet, &str, &[&str]); 3] = [
        (CapabilitySet::BPF, "CAP_BPF", &COMMANDS),
        (CapabilitySet::PERFMON, "CAP_PERFMON", &COMMANDS),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN", &["dns", "run"]),
    ];
    for (missing, capability, commands) in cases {
        for name in commands {
            let output = output(&[name, "--duration", "300ms"], |command| {
                copy.put_into(command);
                as_nobody(command, LEAST & !missing);
            })?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(4), "{name} without {capability}: {output:?}");
            let told = format!("missing {capability} (run as root, or grant {capability})");
            ensure!(stderr.contains(&told), "{name}: no {told:?} in: {stderr}");
        }
    }
    Ok(())
}

/// A refusal is explained by what refused, in a command as in doctor.
#[test]
fn who_refuses_is_named_and_doctor_says_the_same() -> Result<()> {
    require_root()?;
    type Restrict = fn(&mut Command);
    let cases: [(Restrict, &str, &str, &str); 2] = [
        (without_bpf, "seccomp", "seccomp filter on this process refuses bpf(2)", "profile allow bpf(2)"),
        (
            in_user_namespace,
            "user namespace",
            "capabilities of a user namespace do not count",
            "host's user namespace",
        ),
    ];
    for (restrict, row, why, fix) in cases {
        let doctor = Doctor::run(restrict)?;
        ensure!(doctor.output.status.code() == Some(4), "{row}: {:?}", doctor.output);
        doctor.require(row, "unavailable", "")?;
        for object in signals::ALL.iter().map(|kind| kind.object()) {
            let (detail, remedy) = doctor.require(&format!("signal {}", object.name), "unavailable", why)?;
            ensure!(remedy.contains(fix), "{row}: {remedy}");
            for program in programs_here(object) {
                let name = format!("program {}/{}", object.name, program.name);
                doctor.require(&name, "unavailable", why)?;
            }

            let output = output(&[object.name, "--duration", "300ms"], restrict)?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(4), "{row}: {output:?}");
            let told = format!("error: {}: {detail} ({remedy})\n", object.name);
            // Before it aya may warn, where maps are charged to RLIMIT_MEMLOCK and that does not go up.
            ensure!(stderr.ends_with(&told), "{stderr:?} and not {told:?}");
        }
        // The agent says it of each signal before it gives up.
        let output = output(&["run", "--duration", "300ms"], restrict)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(4), "{row}: {output:?}");
        for name in ["tcp", "dns", "syscalls"] {
            let (detail, remedy) = doctor.require(&format!("signal {name}"), "unavailable", why)?;
            let told = format!("{name} is off: {detail} ({remedy})");
            ensure!(stderr.contains(&told), "no {told:?} in: {stderr}");
        }
    }
    Ok(())
}

/// Before 5.11 maps count towards RLIMIT_MEMLOCK, later kernels do not look at it.
#[test]
fn little_locked_memory_is_enough_or_the_way_to_more_is_named() -> Result<()> {
    let copy = PublicCopy::new("memlock")?;
    let restrict = |command: &mut Command| {
        copy.put_into(command);
        as_nobody(command, LEAST);
        with_memlock(command, 64 * 1024);
    };
    let doctor = Doctor::run(restrict)?;
    let output = output(&["syscalls", "--duration", "300ms"], restrict)?;
    if kernel()? >= (5, 11) {
        ensure!(doctor.output.status.code() == Some(0), "{:?}", doctor.output);
        ensure!(output.status.code() == Some(0), "{output:?}");
        return Ok(());
    }
    ensure!(doctor.output.status.code() == Some(4), "{:?}", doctor.output);
    doctor
        .require("memlock", "degraded", "64.0 KiB")
        .or_else(|_| doctor.require("memlock", "degraded", "0.1 MiB"))?;
    doctor.require("signal syscalls", "unavailable", "RLIMIT_MEMLOCK, which is 64 KiB")?;
    ensure!(output.status.code() == Some(4), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    for word in ["ulimit -l unlimited", "LimitMEMLOCK=infinity", "CAP_SYS_RESOURCE"] {
        ensure!(stderr.contains(word), "no {word:?} in: {stderr}");
    }
    Ok(())
}

#[test]
fn doctor_says_what_becomes_of_privileges() -> Result<()> {
    let copy = PublicCopy::new("doctor")?;
    let older = !for_maps()?.is_empty();
    let root = Doctor::run(|_command| {})?;
    root.require("capabilities kept", "ok", "CAP_SYS_PTRACE")?;
    root.require("capabilities dropped", "ok", "the whole bounding set")?;
    root.require("other users' executables", "ok", "")?;
    let least = Doctor::run(|command| {
        copy.put_into(command);
        as_nobody(command, LEAST);
    })?;
    ensure!(least.output.status.code() == Some(0), "{:?}", least.output);
    least.require("capabilities kept", "ok", if older { "CAP_BPF" } else { "none" })?;
    least.require("capabilities dropped", "ok", "CAP_NET_ADMIN, CAP_PERFMON")?;
    least.require("other users' executables", "degraded", "CAP_SYS_PTRACE")?;
    if preempts_programs()? {
        let (_, remedy) = least.require("program syscalls/sys_enter", "degraded", "may skip it")?;
        ensure!(remedy.contains("CAP_DAC_READ_SEARCH"), "{remedy}");
    }
    for doctor in [root, least] {
        doctor.require("no_new_privs", "ok", "after attaching")?;
        doctor.require("kernel stacks", "ok", "CAP_PERFMON")?;
        doctor.require("owners of older sockets", "ok", "every network namespace")?;
        doctor.require("bpf statistics", "ok", "")?;
        doctor.require("private cgroup mount", "ok", "CAP_SYS_ADMIN")?;
    }
    Ok(())
}

/// Runs `probe ARGS` to its end after `adjust`.
fn output(args: &[&str], adjust: impl FnOnce(&mut Command)) -> Result<Output> {
    let mut command = command(args)?;
    adjust(&mut command);
    Ok(command.stdout(Stdio::null()).stderr(Stdio::piped()).output()?)
}

/// What `probe doctor -o json` said.
struct Doctor {
    output: Output,
    checks: BTreeMap<String, Value>,
}

impl Doctor {
    fn run(adjust: impl FnOnce(&mut Command)) -> Result<Self> {
        require_root()?;
        let mut command = command(["doctor", "-o", "json"])?;
        adjust(&mut command);
        let output = command.output()?;
        let mut checks = BTreeMap::new();
        for line in std::str::from_utf8(&output.stdout)?.lines() {
            let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            let name = value.get("check").and_then(Value::as_str).context("a check without name")?;
            checks.insert(name.to_owned(), value.clone());
        }
        ensure!(!checks.is_empty(), "{output:?}");
        Ok(Self { output, checks })
    }

    /// Requires a row with a status and these words; returns its detail and remedy.
    fn require(&self, name: &str, status: &str, words: &str) -> Result<(String, String)> {
        let check = self.checks.get(name).with_context(|| format!("no check {name}"))?;
        let text = |key: &str| check.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        ensure!(text("status") == status, "not {status}: {check}");
        ensure!(text("detail").contains(words), "no {words:?} in: {check}");
        Ok((text("detail"), text("remedy")))
    }
}
