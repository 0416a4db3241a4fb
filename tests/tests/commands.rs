//! The commands as a user meets them: what is refused and how, how they end, and what they leave behind.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use probe_tests::bpf::preempts_programs;
use probe_tests::dns_server::{A, DnsServer, query};
use probe_tests::netns::Netns;
use probe_tests::probe::{DEADLINE, Probe, binary, command, expected_links, poll, require_root, run};
use probe_tests::workload::Workload;
use rustix::process::Signal;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const SERVER: &str = "127.0.0.2:53";
/// A user of no privileges, `nobody` nearly everywhere.
const NOBODY: u32 = 65_534;
const COMMANDS: [&str; 4] = ["tcp", "dns", "syscalls", "run"];

/// A directory of a test's own, gone at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("probe-commands-{name}-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        Ok(Self(path))
    }

    fn file(&self, name: &str, content: &[u8]) -> Result<String> {
        let path = self.0.join(name);
        std::fs::write(&path, content)?;
        Ok(path.display().to_string())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left for the next boot to clean.
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

/// Requires an exit code, nothing on stdout, and a message on stderr with all of these words in it.
fn refused(what: &dyn std::fmt::Debug, output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{what:?}: {} instead of {code}: {stderr}", output.status);
    ensure!(output.stdout.is_empty(), "{what:?}: stdout is for data");
    for word in words {
        ensure!(stderr.contains(word), "{what:?}: no {word:?} in: {stderr}");
    }
    Ok(())
}

#[test]
fn what_is_wrong_and_what_is_allowed_is_said() -> Result<()> {
    let cases: &[(&[&str], &[&str])] = &[
        (&["nonsense"], &["nonsense", "--help"]),
        (&["dns", "--nonsense"], &["--nonsense", "--help"]),
        (&["dns", "nonsense"], &["nonsense"]),
        (&["tcp", "--duration", "0s"], &["--duration", "0s", "longer than 0"]),
        (&["tcp", "--duration", "10"], &["--duration", "10", "unit"]),
        (&["tcp", "--duration", "-1s"], &["-1"]),
        (&["tcp", "--duration", ""], &["--duration"]),
        (&["run", "--interval", "1ms"], &["--interval", "1ms", "250ms"]),
        (&["run", "--interval", "99999999999999999999s"], &["--interval"]),
        (&["dns", "--count", "0"], &["--count", "1.."]),
        (&["dns", "--count", "x"], &["--count"]),
        (&["dns", "--output", "yaml"], &["--output", "yaml", "table, json"]),
        (&["dns", "--pid", "0"], &["--pid", "1.."]),
        (&["dns", "--pid", "-5"], &["-5"]),
        (&["dns", "--pid", "4294967296"], &["--pid", "4294967295"]),
        (&["dns", "--comm", ""], &["--comm", "1 to 15"]),
        (&["dns", "--comm", "0123456789abcdef"], &["--comm", "1 to 15"]),
        (&["dns", "--container", "../x"], &["--container", "letters and digits"]),
        (&["dns", "--container", "a", "--cgroup", "/"], &["--container", "--cgroup"]),
        (&["dns", "--ring-kib", "3"], &["--ring-kib", "power of two from 4 to 65536"]),
        (&["dns", "--ring-kib", "131072"], &["--ring-kib", "65536"]),
        (&["tcp", "--tcp-sockets", "1"], &["--tcp-sockets", "64..=4194304"]),
        (&["tcp", "--tcp-sockets", "4194305"], &["--tcp-sockets", "64..=4194304"]),
        (&["tcp", "--max-cgroups", "0"], &["--max-cgroups", "1..=65536"]),
        (&["tcp", "--max-cgroups", "65537"], &["--max-cgroups", "1..=65536"]),
        (&["dns", "--dns-pending", "15"], &["--dns-pending", "16..=1048576"]),
        (&["dns", "--dns-pending", "1048577"], &["--dns-pending", "16..=1048576"]),
        (&["syscalls", "--syscall-blocks", "63"], &["--syscall-blocks", "64..=1048576"]),
        (&["syscalls", "--syscall-blocks", "1048577"], &["--syscall-blocks", "64..=1048576"]),
        (&["syscalls", "--syscall-threads", "63"], &["--syscall-threads", "64..=4194304"]),
        (&["syscalls", "--syscall-threads", "1e9"], &["--syscall-threads"]),
        (&["syscalls", "--slower-than", "fsnyc=1s"], &["--slower-than", "fsnyc", "no such system call"]),
        (&["syscalls", "--slower-than", "fsync=1s,fsync=2s"], &["--slower-than", "fsync is there twice"]),
        (&["syscalls", "--latency-sample", "0"], &["--latency-sample", "1..=65536"]),
        (&["syscalls", "--latency-sample", "2", "--no-latency"], &["--latency-sample", "--no-latency"]),
        (&["syscalls", "--stacks", "--no-latency"], &["--stacks", "every call measured"]),
        (&["syscalls", "--flamegraph", "/nowhere/x.svg"], &["--flamegraph", "/nowhere/x.svg"]),
        (&["tcp", "--kind", "retransmits"], &["--kind", "retransmit, reset, failed, connect"]),
        (&["tcp", "--local-port", "0"], &["--local-port", "1..=65535"]),
        (&["tcp", "--peer-port", "65536"], &["--peer-port", "1..=65535"]),
        (&["tcp", "--peer", "10.0.0.0/33"], &["--peer", "192.0.2.0/24"]),
        (&["dns", "--type", "AAAAA"], &["--type", "AAAA"]),
        (&["dns", "--rcode", "NXDOMAINS"], &["--rcode", "NXDOMAIN", "SERVFAIL", "BADVERS", "BADCOOKIE"]),
        (&["dns", "--rcode", "RCODE24"], &["--rcode", "RCODE24", "BADCOOKIE"]),
        (&["dns", "--slower-than", "fast"], &["--slower-than"]),
        (&["dns", "--timeout", "0s"], &["--timeout", "longer than 0"]),
        (&["dns", "--port", "0"], &["--port", "1..=65535"]),
        (&["dns", "--port", "1,2,3,4,5"], &["--port", "at most 4"]),
        (&["run", "--dns-port", "0"], &["--dns-port", "1..=65535"]),
        (&["run", "--dns-port", "1,2,3,4,5"], &["--dns-port", "at most 4"]),
        (&["run", "--dns-timeout", "0s"], &["--dns-timeout", "longer than 0"]),
        (&["run", "--dns-timeout", "5"], &["--dns-timeout", "unit"]),
        (&["run", "--dns-servers=yes"], &["--dns-servers"]),
        (&["run", "--dns-names", "registered"], &["--dns-names", "off, suffix, full"]),
        (&["run", "--dns-names"], &["--dns-names", "off, suffix, full"]),
        (&["run", "--dns-names-max", "0"], &["--dns-names-max", "1..=2500"]),
        (&["run", "--dns-names-max", "2501"], &["--dns-names-max", "1..=2500"]),
        (&["dns", "--dns-names", "full"], &["--dns-names"]),
        (&["syscalls", "--syscall", "getpppid"], &["--syscall", "getpppid"]),
        (&["syscalls", "--slower-than", "-1ms"], &["-1"]),
        (&["syscalls", "--sort", "name"], &["--sort", "time, count, errors, p99"]),
        (&["syscalls", "--top", "0"], &["--top", "1..=65535"]),
        (&["run", "--otlp-endpoint", "ftp://x"], &["--otlp-endpoint", "ftp"]),
        (&["run", "--otlp-endpoint", "http://x:1", "--otlp-protocol", "udp"], &["--otlp-protocol", "grpc"]),
        (&["run", "--otlp-endpoint", "http://x:1", "--otlp-headers", "x"], &["--otlp-headers", "key=value"]),
        (&["run", "--otlp-timeout", "0s"], &["--otlp-timeout", "longer than 0"]),
    ];
    for (arguments, words) in cases {
        refused(arguments, &run(*arguments)?, 2, words)?;
    }
    // Without a subcommand: what there is.
    let output = run::<&str>([])?;
    refused(&"nothing", &output, 2, &["run", "tcp", "dns", "syscalls", "doctor"])?;
    Ok(())
}

#[test]
fn environment_variables_are_checked_like_flags() -> Result<()> {
    let cases: &[(&[&str], &str, &str, &[&str])] = &[
        (&["dns"], "RUST_LOG", "probe_user=loud", &["RUST_LOG=probe_user=loud", "debug"]),
        (&["run"], "OTEL_METRIC_EXPORT_INTERVAL", "soon", &["OTEL_METRIC_EXPORT_INTERVAL", "soon", "250"]),
        (&["run"], "OTEL_METRIC_EXPORT_INTERVAL", "0", &["OTEL_METRIC_EXPORT_INTERVAL", "250"]),
        (&["run"], "OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://x", &["OTEL_EXPORTER_OTLP_ENDPOINT"]),
    ];
    for (arguments, name, value, words) in cases {
        let output = command(*arguments)?.env(name, value).stdout(Stdio::piped()).output()?;
        refused(&(name, value), &output, 2, words)?;
    }
    Ok(())
}

#[test]
fn what_only_the_host_knows_is_checked_too() -> Result<()> {
    require_root()?;
    let cases: &[(&[&str], &[&str])] = &[
        (&["dns", "--cgroup", "/no/such/cgroup"], &["/no/such/cgroup"]),
        (&["dns", "--cgroup", "../../etc"], &["../../etc"]),
        (&["dns", "--container", "0123456789abcdef"], &["--container", "0123456789abcdef"]),
    ];
    for (arguments, words) in cases {
        refused(arguments, &run(*arguments)?, 2, words)?;
    }
    Ok(())
}

#[test]
fn missing_capabilities_are_named() -> Result<()> {
    require_root()?;
    let scratch = Scratch::new("nobody")?;
    // The build may lie where others may not look.
    let copy = scratch.0.join("probe");
    std::fs::copy(binary()?, &copy)?;
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755))?;
    for name in COMMANDS {
        let mut command = std::process::Command::new(&copy);
        command.arg(name).env_clear().current_dir("/").stdin(Stdio::null()).uid(NOBODY).gid(NOBODY);
        let net_admin: &[&str] = if matches!(name, "dns" | "run") { &["CAP_NET_ADMIN"] } else { &[] };
        refused(&name, &command.output()?, 4, &[&["CAP_BPF", "CAP_PERFMON"], net_admin].concat())?;
    }
    Ok(())
}

#[test]
fn kernel_types_that_do_not_read_are_refused_with_the_way_out() -> Result<()> {
    require_root()?;
    let scratch = Scratch::new("btf")?;
    let whole = std::fs::read("/sys/kernel/btf/vmlinux")?;
    let garbage: Vec<u8> = (0..100_000_u32).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
    // Well-formed, without any type: the header, and the empty string.
    let mut empty = vec![0x9f, 0xeb, 1, 0];
    for word in [24_u32, 0, 0, 0, 1] {
        empty.extend(word.to_ne_bytes());
    }
    empty.push(0);
    let files: [(String, &[&str]); 6] = [
        ("/nonexistent/vmlinux".to_owned(), &["--btf", "/nonexistent/vmlinux"]),
        ("/".to_owned(), &["--btf"]),
        (scratch.file("nothing", &[])?, &["--btf", "BTF"]),
        (scratch.file("garbage", &garbage)?, &["--btf", "BTF"]),
        (scratch.file("half", whole.get(..whole.len() / 2).context("half")?)?, &["--btf", "BTF"]),
        (scratch.file("no-types", &empty)?, &["task_struct.comm", "probe doctor"]),
    ];
    for name in COMMANDS {
        for (file, words) in &files {
            let arguments = [name, "--btf", file, "--duration", "1s"];
            refused(&arguments, &run(arguments)?, 3, words)?;
        }
    }
    Ok(())
}

/// The lines of `help` that say how a command is used.
fn example(help: &str) -> Option<&str> {
    help.lines().find_map(|line| line.trim().strip_prefix("Example: "))
}

/// Every subcommand shows an example, and the example runs.
#[test]
fn every_command_has_an_example_that_works() -> Result<()> {
    require_root()?;
    let all = String::from_utf8(run(["--help"])?.stdout)?;
    let commands: Vec<&str> = all
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    ensure!(COMMANDS.iter().all(|name| commands.contains(name)), "{commands:?}");
    for name in commands {
        let output = run([name, "--help"])?;
        ensure!(output.status.success() && output.stderr.is_empty(), "{name}: {output:?}");
        let help = String::from_utf8(output.stdout)?;
        let example = example(&help).with_context(|| format!("{name}: no example"))?;
        let (before, arguments) = example.split_once(&format!("probe {name}")).context(example.to_owned())?;
        let plain = arguments.split(['|', '>']).next().unwrap_or_default();
        let mut command = command([name])?;
        command.args(plain.split_whitespace().map(|word| word.trim_matches('\'')));
        for (variable, value) in before.split_whitespace().filter_map(|word| word.split_once('=')) {
            command.env(variable, value);
        }
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        // These end by themselves.
        if !["completions", "doctor"].contains(&name) {
            poll(example, DEADLINE, || {
                Ok((child.try_wait()?.is_some() || links(child.id())? > 0).then_some(()))
            })?;
            // A moment later it handles signals; until then it may be asked again.
            let ended = poll("the end of the example", DEADLINE, || {
                signal(&child, Signal::TERM)?;
                Ok(child.try_wait()?)
            });
            ended.with_context(|| example.to_owned())?;
        }
        let output = child.wait_with_output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(!stderr.contains("error:"), "{example}: {stderr}");
        ensure!(output.status.code() != Some(2), "{example}: {stderr}");
    }
    Ok(())
}

/// BPF links that a process holds.
fn links(pid: u32) -> Result<usize> {
    Ok(Kernel::held_by(pid).map(|kernel| kernel.links.len()).unwrap_or_default())
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).context("pid")?;
    // Gone already, and not waited for: no error either.
    Ok(rustix::process::kill_process(pid, signal)?)
}

/// Ctrl-C and SIGTERM: the last interval is printed, losses are summed up, and the kernel is as it was.
#[test]
fn interrupt_and_terminate_end_a_command_cleanly() -> Result<()> {
    let cases = [
        ("tcp", Signal::INT),
        ("dns", Signal::TERM),
        ("syscalls", Signal::INT),
        ("run", Signal::TERM),
        ("run", Signal::INT),
    ];
    for (name, how) in cases {
        let probe = Probe::start(&[name, "--interval", "1h"])?;
        let held = Kernel::held_by(probe.pid())?;
        ensure!(!held.programs.is_empty() && !held.maps.is_empty() && !held.links.is_empty(), "{held:?}");
        poll("they are loaded", DEADLINE, || {
            Ok(held.left().ok().filter(|left| left.links == held.links && left.maps.is_superset(&held.maps)))
        })?;
        // Something for the last interval, which is the only one.
        let mut workload = Workload::start(WORKLOAD)?;
        workload.tell("getppid 10")?;
        probe.signal(how)?;
        let finished = probe.finish()?;
        finished.require_complete().context(name)?;
        if matches!(name, "syscalls" | "run") {
            let found = finished.lines.iter().any(|line| {
                line.int("process.pid") == Some(i64::from(workload.pid()))
                    && line.text("syscall.name") == Some("getppid")
                    && line.int("count") == Some(10)
            });
            ensure!(found, "{name}: the last interval is not there");
        }
        held.wait_gone().context(name)?;
    }
    Ok(())
}

#[test]
fn a_command_ends_by_itself_when_it_was_told_when() -> Result<()> {
    require_root()?;
    let netns = Netns::new()?;
    let _server = netns.run(|| DnsServer::start(&[SERVER.parse()?], &[]))??;
    let probe = Probe::start(&["dns", "--count", "3"])?;
    let socket = client(&netns)?;
    for id in 1..=10 {
        lookup(&socket, id)?;
    }
    let finished = probe.finish()?;
    ensure!(finished.code == Some(0), "{finished:?}");
    ensure!(finished.lines.len() == 3, "{finished:?}");

    let output = run(["syscalls", "--count", "3", "-o", "json"])?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    ensure!(output.stdout.iter().filter(|byte| **byte == b'\n').count() == 3, "{output:?}");

    let begun = std::time::Instant::now();
    let output = run(["tcp", "--duration", "700ms", "-o", "json"])?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    ensure!(begun.elapsed() >= Duration::from_millis(700), "{:?}", begun.elapsed());
    Ok(())
}

/// `probe … | head -1`.
#[test]
fn a_closed_pipe_is_a_quiet_end() -> Result<()> {
    require_root()?;
    let cases: [&[&str]; 3] = [
        &["syscalls", "-o", "json", "--interval", "250ms"],
        &["syscalls", "--interval", "250ms"],
        &["run", "--interval", "250ms"],
    ];
    for arguments in cases {
        let mut child = command(arguments)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        drop(stdout);
        ensure!(!line.is_empty(), "{arguments:?}: no line");
        let status = poll("the end", DEADLINE, || Ok(child.try_wait()?));
        if status.is_err() {
            child.kill()?;
        }
        let mut stderr = String::new();
        child.stderr.take().context("stderr")?.read_to_string(&mut stderr)?;
        let status = status.with_context(|| format!("{arguments:?}: {stderr}"))?;
        ensure!(status.code() == Some(0), "{arguments:?}: {status}: {stderr}");
        ensure!(stderr.is_empty(), "{arguments:?}: {stderr}");
    }
    Ok(())
}

/// stdout has data and nothing else, every line of it with a time and a name.
#[test]
fn json_lines_say_when_and_what() -> Result<()> {
    require_root()?;
    for name in COMMANDS {
        let output = run([name, "-v", "-o", "json", "--interval", "250ms", "--duration", "600ms"])?;
        ensure!(output.status.code() == Some(0), "{name}: {output:?}");
        let mut events = BTreeSet::new();
        for line in String::from_utf8(output.stdout)?.lines() {
            let value: serde_json::Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            let text = |key: &str| value.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
            let shape: String =
                text("time").chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
            ensure!(shape == "0000-00-00T00:00:00.000000000Z", "{line}");
            events.insert(text("event").to_owned());
        }
        let known = ["tcp.", "dns.", "syscall.", "probe."];
        ensure!(
            events.iter().all(|event| known.iter().any(|prefix| event.starts_with(prefix))),
            "{events:?}"
        );
        if matches!(name, "syscalls" | "run") {
            ensure!(events.contains("syscall.summary"), "{name}: {events:?}");
        }
    }
    Ok(())
}

fn client(netns: &Netns) -> Result<UdpSocket> {
    let socket = netns.run(|| UdpSocket::bind("127.0.0.1:0"))??;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.connect(SERVER)?;
    Ok(socket)
}

fn lookup(socket: &UdpSocket, id: u16) -> Result<()> {
    socket.send(&query(id, "a.test", A))?;
    socket.recv(&mut [0; 512]).context("no answer")?;
    Ok(())
}

/// A process's name is what it says it is: in text it must not move the reader's cursor.
#[test]
fn hostile_names_are_harmless_on_a_terminal() -> Result<()> {
    require_root()?;
    let netns = Netns::new()?;
    let _server = netns.run(|| DnsServer::start(&[SERVER.parse::<SocketAddr>()?], &[]))??;
    let mut workload = netns.run(|| Workload::start(WORKLOAD))??;
    // ESC [ 2 J, BEL, DEL, C1's CSI, right-to-left override, newline: fifteen octets.
    let name = "\u{1b}[2J\u{7}\u{7f}\u{9b}\u{202e}x\n";
    let hex: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    workload.tell(&format!("name {hex}"))?;
    let pid = workload.pid().to_string();
    for (arguments, ask) in [
        (&["dns", "--pid", &pid, "--count", "1"][..], format!("ask {SERVER} 1 a.test")),
        (&["syscalls", "--pid", &pid, "--duration", "1s"], "getppid 10".to_owned()),
        (&["run", "--pid", &pid, "--duration", "1s"], "getppid 10".to_owned()),
        (&["syscalls", "--pid", &pid, "--duration", "1s", "-o", "json"], "getppid 10".to_owned()),
    ] {
        let mut child = command(arguments)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        // Again and again: only probe knows when it began to look.
        poll("the end", DEADLINE, || {
            workload.tell(&ask)?;
            Ok(child.try_wait()?)
        })?;
        let mut text = String::new();
        child.stdout.take().context("stdout")?.read_to_string(&mut text)?;
        let bad = |c: &char| c.is_control() && *c != '\n' || ('\u{202a}'..='\u{202e}').contains(c);
        if arguments.contains(&"json") {
            let line: serde_json::Value = serde_json::from_str(text.lines().next().context("no line")?)?;
            ensure!(line.get("process.comm").and_then(serde_json::Value::as_str) == Some(name), "{line}");
            ensure!(!text.contains('\u{1b}'), "{text:?}");
        } else {
            ensure!(text.chars().find(bad).is_none(), "{arguments:?}: {text:?}");
            // As much of it as there is room for.
            ensure!(text.contains(r"\u{1b}[2J\u{7}"), "{arguments:?}: {text}");
        }
    }
    workload.end()
}

/// What of BPF is in the kernel, by id.
#[derive(Debug, Default)]
struct Kernel {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Kernel {
    /// What a process holds.
    fn held_by(pid: u32) -> Result<Self> {
        let mut held = Self::default();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            // A descriptor may be closed while we look.
            let Ok(info) = std::fs::read_to_string(entry?.path()) else { continue };
            let id = |key: &str| -> Option<u32> {
                info.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
            };
            // A link's descriptor names its program too.
            held.links.extend(id("link_id:"));
            held.programs.extend(id("prog_id:"));
            held.maps.extend(id("map_id:"));
        }
        Ok(held)
    }

    /// Which of these are in the kernel.
    fn left(&self) -> Result<Self> {
        let mut left = Self::default();
        for program in aya::programs::loaded_programs() {
            left.programs.extend(Some(program?.id()).filter(|id| self.programs.contains(id)));
        }
        for map in aya::maps::loaded_maps() {
            left.maps.extend(Some(map?.id()).filter(|id| self.maps.contains(id)));
        }
        for link in aya::programs::loaded_links() {
            left.links.extend(Some(link?.id()).filter(|id| self.links.contains(id)));
        }
        Ok(left)
    }

    /// Waits until none of these is in the kernel: it frees them a moment after their last holder is gone.
    fn wait_gone(&self) -> Result<()> {
        let gone = poll("an empty kernel", DEADLINE, || {
            // An error is most often something that went between being found and being looked at: look again.
            Ok(self.left().ok().filter(Self::is_empty).map(drop))
        });
        gone.with_context(|| format!("left: {:?}", self.left()))
    }

    fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }
}

/// Stops a process, so that what it holds does not change, and says what that is.
fn freeze(child: &Child) -> Result<Kernel> {
    signal(child, Signal::STOP)?;
    poll("a stopped process", DEADLINE, || {
        let mut all_stopped = true;
        for task in std::fs::read_dir(format!("/proc/{}/task", child.id()))? {
            let status = std::fs::read_to_string(task?.path().join("status")).unwrap_or_default();
            all_stopped &= status.contains("State:\tT");
        }
        Ok(all_stopped.then_some(()))
    })?;
    Kernel::held_by(child.id())
}

#[test]
fn nothing_stays_in_the_kernel_after_kill_9() -> Result<()> {
    require_root()?;
    let netns = Netns::new()?;
    let _server = netns.run(|| DnsServer::start(&[SERVER.parse::<SocketAddr>()?], &[]))??;
    let listener = netns.run(|| TcpListener::bind("127.0.0.1:0"))??;
    // How many programs are attached when it is killed: in the middle of its start, at its end, and at work.
    // Where programs lose their CPU, each that has a backup brings it along.
    let backups = preempts_programs()?;
    let specs = probe_user::signals::every().flat_map(|kind| kind.object().programs);
    let backups = specs.filter(|spec| backups && spec.backup.is_some()).count();
    let auxiliary = probe_user::signals::AUXILIARY.iter().map(|kind| kind.object().programs.len());
    let all = expected_links("run") + auxiliary.sum::<usize>() + backups;
    let mut most = Kernel::default();
    for attached in [0, 1, all / 2, all - 1, all] {
        let mut child =
            command(["run", "-o", "json"])?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let found = poll("the moment", Duration::from_secs(20), || {
            ensure!(child.try_wait()?.is_none(), "it ended by itself");
            let held = Kernel::held_by(child.id())?;
            Ok((held.links.len() >= attached && !held.maps.is_empty()).then_some(()))
        });
        let held = found.and_then(|()| freeze(&child));
        child.kill()?;
        child.wait()?;
        let held = held?;
        ensure!(held.links.len() >= attached, "{held:?}");
        held.wait_gone().with_context(|| format!("killed with {attached} attached"))?;
        if held.links.len() > most.links.len() {
            most = held;
        }

        let mut there = netns.run(|| TcpStream::connect(listener.local_addr()?))??;
        let (mut here, _from) = listener.accept()?;
        there.write_all(b"still here")?;
        drop(there);
        let mut text = String::new();
        here.read_to_string(&mut text)?;
        ensure!(text == "still here", "{text}");
        lookup(&client(&netns)?, 1)?;
    }
    ensure!(most.links.len() == all && most.maps.len() > 10, "{most:?}");
    ensure!(most.programs.len() >= most.links.len(), "{most:?}");
    Ok(())
}

/// A process that reads nothing must not hold a command up for ever, nor lose it its end.
#[test]
fn stderr_may_be_closed() -> Result<()> {
    require_root()?;
    let mut child =
        command(["dns", "--duration", "500ms"])?.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    drop(child.stderr.take());
    let status = poll("the end", DEADLINE, || Ok(child.try_wait()?));
    if status.is_err() {
        child.kill()?;
    }
    ensure!(status?.code() == Some(0), "a closed stderr is no failure");
    Ok(())
}

/// What the usage errors rely on: arguments that are not even text.
#[test]
fn arguments_that_are_no_text_are_refused() -> Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    for argument in [&b"\xff\xfe"[..], b"--name=\xff", b"--comm=\xff"] {
        let output = run([OsStr::new("dns"), OsStr::from_bytes(argument)])?;
        if output.status.code() != Some(2) {
            bail!("{argument:?}: {output:?}");
        }
    }
    Ok(())
}
