//! `probe doctor` on the running kernel: what it says, how it ends, and that it leaves nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use probe_tests::bpf::preempts_programs;
use probe_tests::guest::PERF_PARANOID;
use probe_tests::privileges::{NOBODY, PublicCopy, as_nobody, least_to_be_exact, without_tracefs};
use probe_tests::probe::{
    DEADLINE, Probe, command, fdinfo, in_guest, poll, programs_here, require_root, run,
};
use probe_tests::require;
use probe_tests::require::kernel_before;
use probe_user::signals;
use serde_json::Value;

/// What a line of the table must fit into.
const COLUMNS: usize = 120;

/// A file or directory of this test alone, gone at its end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("probe-doctor-{}-{name}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What is left in /tmp does no harm.
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

/// The lines of `-o json` by their `check`.
fn checks(output: &Output) -> Result<BTreeMap<String, Value>> {
    let text = std::str::from_utf8(&output.stdout)?;
    let mut checks = BTreeMap::new();
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        let of = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let status = of("status").context("a check without status")?;
        ensure!(["ok", "degraded", "unavailable"].contains(&status.as_str()), "{line}");
        ensure!(of("detail").is_some_and(|detail| !detail.is_empty()), "{line}");
        ensure!(of("remedy") != Some(String::new()), "{line}");
        let name = of("check").context("a check without name")?;
        ensure!(checks.insert(name, value).is_none(), "twice: {line}");
    }
    Ok(checks)
}

fn status<'a>(checks: &'a BTreeMap<String, Value>, name: &str) -> &'a str {
    checks.get(name).and_then(|check| check.get("status")).and_then(Value::as_str).unwrap_or("absent")
}

/// Names of the rows of every signal and program.
fn rows() -> Vec<String> {
    let mut rows = Vec::new();
    for object in signals::ALL.iter().map(|kind| kind.object()) {
        rows.push(format!("signal {}", object.name));
        rows.extend(programs_here(object).map(|program| format!("program {}/{}", object.name, program.name)));
    }
    rows
}

/// What a row says on this kernel. Why a reset was sent is told from 6.10 on.
fn expected(row: &str) -> Result<&'static str> {
    Ok(if row == "signal tcp" && kernel_before("6.10")? { "degraded" } else { "ok" })
}

#[test]
fn everything_works_here_and_nothing_stays() -> Result<()> {
    require_root()?;
    let programs =
        || aya::programs::loaded_programs().flatten().map(|program| program.id()).collect::<BTreeSet<_>>();
    let maps = || aya::maps::loaded_maps().flatten().map(|map| map.id()).collect::<BTreeSet<_>>();
    let before = (programs(), maps());

    let output = run(["doctor", "-o", "json"])?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    ensure!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let checks = checks(&output)?;
    for name in rows() {
        ensure!(status(&checks, &name) == expected(&name)?, "{name}: {:?}", checks.get(&name));
    }
    for name in [
        "kernel",
        "btf",
        "cgroup v2",
        "tracefs",
        "jit",
        "lockdown",
        "unprivileged_bpf_disabled",
        "seccomp",
        "security modules",
        "memlock",
        "pid namespace",
        "user namespace",
        "cpus",
        "memory",
        "kernel fields",
        "CAP_BPF",
        "CAP_PERFMON",
        "CAP_NET_ADMIN",
        "CAP_SYS_PTRACE",
        "CAP_SYS_ADMIN",
        "CAP_SYS_RESOURCE",
        "CAP_SETPCAP",
        "no_new_privs",
        "capabilities kept",
        "capabilities dropped",
        "other users' executables",
        "owners of older sockets",
        "names of peers",
        "names of short-lived containers",
        "destinations behind NAT",
        "kernel stacks",
        "bpf statistics",
        "private cgroup mount",
        "pinned programs",
    ] {
        ensure!(status(&checks, name) != "absent", "no check {name}");
        ensure!(status(&checks, name) != "unavailable", "{name}: {:?}", checks.get(name));
    }

    // The kernel takes programs and maps back after a grace period.
    poll("programs and maps are gone", DEADLINE, || {
        let (programs, maps) = (programs(), maps());
        Ok((programs.is_subset(&before.0) && maps.is_subset(&before.1)).then_some(()))
    })
}

#[test]
fn the_table_says_the_same_and_fits() -> Result<()> {
    require_root()?;
    let output = run(["doctor"])?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    for name in rows() {
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        let line = line.with_context(|| name.clone())?;
        ensure!(line.contains(&format!(" {} ", expected(&name)?)), "{line}");
    }
    for line in text.lines() {
        ensure!(line.chars().count() <= COLUMNS, "too wide: {line}");
    }
    ensure!(text.ends_with("tcp, dns, syscalls can run\n"), "{text}");
    Ok(())
}

#[test]
fn without_privileges_the_capabilities_are_named() -> Result<()> {
    require_root()?;
    let copy = PublicCopy::new("nobody")?;
    let mut command = command(["doctor", "-o", "json"])?;
    copy.put_into(&mut command);
    let output = command.uid(NOBODY).gid(NOBODY).output()?;
    ensure!(output.status.code() == Some(4), "{output:?}");
    let checks = checks(&output)?;
    for name in rows().iter().map(String::as_str).chain(["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]) {
        ensure!(status(&checks, name) == "unavailable", "{name}: {:?}", checks.get(name));
        let check = checks.get(name).map(Value::to_string).unwrap_or_default();
        ensure!(check.contains("grant CAP_"), "no remedy: {check}");
    }
    let dns = checks.get("signal dns").map(Value::to_string).unwrap_or_default();
    ensure!(dns.contains("CAP_BPF and CAP_PERFMON and CAP_NET_ADMIN"), "{dns}");
    Ok(())
}

/// Kinds of the links of a process, by the kernel.
fn link_kinds(pid: u32) -> Result<BTreeMap<String, usize>> {
    let mut kinds = BTreeMap::new();
    for info in fdinfo(pid)? {
        if let Some(kind) = info.lines().find_map(|line| line.strip_prefix("link_type:")) {
            *kinds.entry(kind.trim().to_owned()).or_default() += 1;
        }
    }
    Ok(kinds)
}

/// Where the kernel lets programs at raw tracepoints lose their CPU, perf's take their place; without tracefs they cannot, and
/// what that costs is said.
#[test]
fn perf_serves_where_raw_tracepoints_lose_their_cpu() -> Result<()> {
    require_root()?;
    require!(preempts_programs()?, "programs at raw tracepoints that lose their CPU", since = "7.0");
    let exact = checks(&run(["doctor", "-o", "json"])?)?;
    let without = {
        let mut command = command(["doctor", "-o", "json"])?;
        without_tracefs(&mut command);
        let output = command.output()?;
        ensure!(output.status.code() == Some(0), "it can still run: {output:?}");
        checks(&output)?
    };
    let text =
        |checks: &BTreeMap<String, Value>, row| checks.get(row).map(Value::to_string).unwrap_or_default();
    for (row, hook) in [
        ("program syscalls/sys_enter", "raw_syscalls:sys_enter"),
        ("program syscalls/sys_exit", "raw_syscalls:sys_exit"),
        ("program syscalls/sched_process_exit", "sched:sched_process_exit"),
        ("program syscalls/sched_process_exec", "sched:sched_process_exec"),
    ] {
        let (exact, without) = (text(&exact, row), text(&without, row));
        ensure!(exact.contains(&format!("attached to perf tracepoint {hook}")), "{exact}");
        ensure!(without.contains("degraded") && without.contains("mount -t tracefs"), "{without}");
    }
    for row in ["signal syscalls", "tracefs"] {
        ensure!((status(&exact, row), status(&without, row)) == ("ok", "degraded"), "{row}");
    }

    if in_guest() {
        // As Debian sets it.
        std::fs::write(PERF_PARANOID, "3")?;
        let copy = PublicCopy::new("paranoid")?;
        let mut command = command(["doctor", "-o", "json"])?;
        copy.put_into(&mut command);
        as_nobody(&mut command, least_to_be_exact()?);
        let output = command.output()?;
        std::fs::write(PERF_PARANOID, "2")?;
        let row = text(&checks(&output)?, "program syscalls/sys_enter");
        ensure!(row.contains("degraded") && row.contains("kernel.perf_event_paranoid is 3"), "{row}");
        ensure!(row.contains("sysctl -w kernel.perf_event_paranoid=2"), "{row}");
    }

    let probe = Probe::start(&["syscalls", "--interval", "1h"])?;
    let kinds = link_kinds(probe.pid())?;
    // The walk over calls that hang is one, too; two are those that learn of cgroups.
    let expected = [("iter".to_owned(), 1), ("perf".to_owned(), 4), ("raw_tracepoint".to_owned(), 7)];
    ensure!(kinds == expected.into(), "{kinds:?}");
    probe.stop()?.require_complete()?;
    let mut command = command(["syscalls", "--duration", "300ms"])?;
    without_tracefs(&mut command);
    let output = command.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(0) && stderr.contains("tracefs"), "{stderr}");
    Ok(())
}

#[test]
fn without_kernel_types_nothing_runs() -> Result<()> {
    require_root()?;
    let directory = Temporary::new("btf")?;
    let garbage = directory.0.join("garbage");
    std::fs::write(&garbage, "no BTF at all, but more than a header's worth of bytes")?;
    for file in [garbage, directory.0.join("absent")] {
        let output = command(["doctor", "-o", "json", "--btf"])?.arg(&file).output()?;
        ensure!(output.status.code() == Some(3), "{file:?}: {output:?}");
        let checks = checks(&output)?;
        for name in rows().iter().map(String::as_str).chain(["btf"]) {
            ensure!(status(&checks, name) == "unavailable", "{file:?}: {name}: {:?}", checks.get(name));
        }
        let btf = checks.get("btf").map(Value::to_string).unwrap_or_default();
        ensure!(btf.contains("--btf FILE"), "no way out: {btf}");
    }
    Ok(())
}

#[test]
fn the_hosts_own_types_from_a_file_do() -> Result<()> {
    require_root()?;
    let directory = Temporary::new("own")?;
    let copy = directory.0.join("vmlinux");
    std::fs::copy("/sys/kernel/btf/vmlinux", &copy)?;
    let output = command(["doctor", "-o", "json", "--btf"])?.arg(&copy).output()?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    ensure!(status(&checks(&output)?, "btf") == "ok");
    Ok(())
}

#[test]
fn a_closed_pipe_ends_it_quietly() -> Result<()> {
    require_root()?;
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let output = command(["doctor"])?.stdout(writer).output()?;
    ensure!(output.status.code() == Some(0) && output.stderr.is_empty(), "{output:?}");
    Ok(())
}
