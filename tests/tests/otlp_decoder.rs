//! What `probe run` sends, as somebody else reads it: OpenTelemetry's messages for Python, and gRPC's server for it.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Lines};
use std::net::TcpListener;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use probe_tests::drop::Cgroup;
use probe_tests::probe::{Probe, in_guest};
use probe_tests::require::own_host;
use probe_tests::workload::Workload;
use serde_json::Value;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
/// `cargo xtask test` makes it.
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/otlp-decoder/bin/python3");
const DECODER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/decoder/otlp_decoder.py");
const LONG: Duration = Duration::from_secs(30);

/// The decoder; killed when it is dropped.
struct Decoder {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    port: u64,
}

impl Decoder {
    fn start() -> Result<Self> {
        let child = Command::new(PYTHON).arg(DECODER).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| {
            format!("cannot start {PYTHON}; cargo xtask test makes it, with pip: python3-venv on Debian")
        })?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let first: Value = serde_json::from_str(&lines.next().context("the decoder ended at its start")??)?;
        let port = first.get("port").and_then(Value::as_u64).context("no port")?;
        Ok(Self { child, lines, port })
    }

    /// Reads on until a line that is wanted. The agent's exports come every second.
    fn read_until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + LONG;
        for line in self.lines.by_ref() {
            let line: Value = serde_json::from_str(&line?)?;
            ensure!(line.get("schema").and_then(Value::as_str).is_some_and(|url| !url.is_empty()), "{line}");
            if wanted(&line) {
                return Ok(line);
            }
            ensure!(Instant::now() < end, "{what}: not within {LONG:?}");
        }
        anyhow::bail!("{what}: the decoder ended")
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

fn text<'a>(line: &'a Value, pointer: &str) -> &'a str {
    line.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[test]
fn what_was_done_is_what_an_independent_decoder_reads() -> Result<()> {
    if in_guest() {
        return own_host("Python with grpcio");
    }
    let mut decoder = Decoder::start()?;
    let id = "5f6a7b8c".repeat(8);
    let outer = Cgroup::new()?;
    let docker = outer.below("docker")?;
    let cgroup = docker.below(&id)?;
    let mut workload = Workload::start(WORKLOAD)?;
    cgroup.add(workload.pid())?;
    let endpoint = format!("http://127.0.0.1:{}", decoder.port);
    let probe = Probe::start(&["run", "--interval", "1s", "--otlp-endpoint", &endpoint])?;
    workload.tell("getppid 2048")?;
    workload.tell("openat /nonexistent/file 17")?;

    let is_ours = |line: &Value| text(line, "/resource/container.id") == id;
    let is = |line: &Value, name: &str, call: &str| {
        is_ours(line) && text(line, "/name") == name && text(line, "/attributes/syscall.name") == call
    };
    let calls = decoder.read_until("all calls", |line| {
        is(line, "process.syscall.duration", "getppid")
            && line.pointer("/value/count").and_then(Value::as_u64) == Some(2_048)
    })?;
    ensure!(text(&calls, "/kind") == "exponential_histogram" && text(&calls, "/unit") == "s", "{calls}");
    ensure!(text(&calls, "/temporality") == "AGGREGATION_TEMPORALITY_CUMULATIVE", "{calls}");
    ensure!(text(&calls, "/attributes/syscall.class") == "work", "{calls}");
    let of = |key: &str| calls.pointer(&format!("/value/{key}")).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let (scale, offset, sum) = (of("scale"), of("offset"), of("sum"));
    let buckets = calls.pointer("/value/buckets").and_then(Value::as_array).context("buckets")?;
    let buckets: Vec<f64> = buckets.iter().filter_map(Value::as_f64).collect();
    ensure!(buckets.iter().sum::<f64>() == 2_048.0, "{calls}");
    // The data model: bucket i has what is above base^i and at most base^(i + 1), with base 2^(2^-scale).
    let base = (-scale).exp2().exp2();
    let least: f64 = (0..).zip(&buckets).map(|(i, n)| n * base.powf(offset + f64::from(i))).sum();
    ensure!(
        least <= sum && sum <= least * base * 1.000_001,
        "{sum} s, and {least} s by the buckets: {calls}"
    );

    let errors = decoder.read_until("all errors", |line| {
        is(line, "process.syscall.errors", "openat") && line.get("value").and_then(Value::as_u64) == Some(17)
    })?;
    ensure!(
        text(&errors, "/kind") == "sum" && text(&errors, "/attributes/error.type") == "ENOENT",
        "{errors}"
    );
    ensure!(errors.get("monotonic") == Some(&Value::Bool(true)), "{errors}");

    // Whose it is: the container's own instance, beside the host's and the agent's.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    let mut instances = BTreeSet::new();
    for (what, scope, container) in
        [("ours", "probe", true), ("host", "probe", false), ("own", "probe.self", false)]
    {
        let line = decoder.read_until(what, |line| {
            text(line, "/scope") == scope
                && is_ours(line) == container
                && (container || line.pointer("/resource/container.id").is_none())
        })?;
        ensure!(text(&line, "/resource/host.name") == host.trim_end(), "{line}");
        ensure!(text(&line, "/resource/service.name") == "probe", "{line}");
        instances.insert(text(&line, "/resource/service.instance.id").to_owned());
    }
    ensure!(instances.len() == 2, "of the container; of the host and the agent: {instances:?}");

    // A connection that is refused: an event. Nothing listens at a port that was free a moment ago.
    let refused = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    ensure!(workload.tell(&format!("connect {refused}")).is_err(), "somebody listens at {refused}");
    let port = i64::from(refused.port());
    let event = decoder.read_until("the event", |line| {
        // The reset that refused it is another one.
        text(line, "/event") == "tcp.connect"
            && line.pointer("/attributes/network.peer.port").and_then(Value::as_i64) == Some(port)
    })?;
    ensure!(text(&event, "/what") == "record", "{event}");
    for (key, want) in [
        ("outcome", "failed"),
        ("error.type", "ECONNREFUSED"),
        ("network.peer.address", "127.0.0.1"),
        ("process.executable.name", "workload"),
    ] {
        ensure!(text(&event, &format!("/attributes/{key}")) == want, "{key}: {event}");
    }
    ensure!(is_ours(&event) && text(&event, "/scope") == "probe", "{event}");
    probe.stop()?.require_complete()
}
