//! `probe run --prometheus-listen`: what the test did is what a page says, and what Prometheus says that read it; who is alive says so.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use probe_tests::drop::Cgroup;
use probe_tests::http::{self, free_address};
use probe_tests::probe::{self, Probe, in_guest, patient, poll};
use probe_tests::require::own_host;
use probe_tests::workload::Workload;
use serde_json::Value;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const LONG: Duration = Duration::from_secs(30);

/// The agent, and where it answers.
fn start(more: &[&str]) -> Result<(Probe, SocketAddr)> {
    let address = free_address()?;
    let listen = address.to_string();
    let args = [&["run", "--interval", "300ms", "--prometheus-listen", &listen], more].concat();
    let probe = Probe::start(&args)?;
    poll("the agent is ready", LONG, || {
        Ok(http::get(address, "/readyz").ok().filter(|answer| answer.status == 200))
    })?;
    Ok((probe, address))
}

/// A container's cgroup with a process in it.
struct Container {
    id: String,
    workload: Workload,
    _cgroups: [Cgroup; 3],
}

impl Container {
    fn start(digits: &str) -> Result<Self> {
        let id = digits.repeat(64 / digits.len());
        let outer = Cgroup::new()?;
        let docker = outer.below("docker")?;
        let cgroup = docker.below(&id)?;
        let workload = Workload::start(WORKLOAD)?;
        cgroup.add(workload.pid())?;
        Ok(Self { id, workload, _cgroups: [cgroup, docker, outer] })
    }
}

/// The value of the series of a page that has these labels, among others.
fn value(page: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    page.lines().find_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let series = series.strip_prefix(name)?.strip_prefix('{')?;
        let has = |(key, value): &(&str, &str)| series.contains(&format!("{key}=\"{value}\""));
        labels.iter().all(has).then(|| value.parse().ok())?
    })
}

#[test]
fn a_page_says_what_was_done() -> Result<()> {
    let mut container = Container::start("0a1b2c3d")?;
    let (probe, address) = start(&[])?;
    container.workload.tell("getppid 1234")?;
    container.workload.tell("openat /nonexistent/file 40")?;
    let id = ("container_id", container.id.as_str());
    let calls = [id, ("syscall_class", "work"), ("syscall_name", "getppid")];
    let counted = |page: &str| value(page, "process_syscall_duration_seconds_count", &calls);
    let page = poll("a page with all calls", LONG, || {
        let page = http::get(address, "/metrics")?;
        Ok((counted(&page.body) == Some(1_234.0)).then_some(page))
    })?;
    ensure!(page.head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{}", page.head);
    let page = page.body;
    let errors = [id, ("error_type", "ENOENT"), ("syscall_name", "openat")];
    ensure!(value(&page, "process_syscall_errors_total", &errors) == Some(40.0), "{page}");
    // All calls are at or below infinity, and every bucket holds those below it.
    let buckets: Vec<f64> = page
        .lines()
        .filter(|line| line.starts_with("process_syscall_duration_seconds_bucket"))
        .filter(|line| line.contains(id.1) && line.contains("\"getppid\""))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    ensure!(buckets.len() == 25 && buckets.is_sorted() && buckets.last() == Some(&1_234.0), "{buckets:?}");
    for (name, label) in [
        ("target_info", ("service_name", "probe")),
        ("probe_map_limit", ("map", "tcp.sockets")),
        ("process_cpu_time_seconds_total", ("cpu_mode", "user")),
    ] {
        ensure!(value(&page, name, &[label]).is_some(), "no {name} in {page}");
    }
    ensure!(page.ends_with("# EOF\n"), "it is cut");
    let finished = probe.stop()?;
    finished.require_complete()?;
    container.workload.end()
}

#[test]
fn visitors_of_every_kind_do_no_harm() -> Result<()> {
    let (probe, address) = start(&[])?;
    for (request, status) in [
        ("GET / HTTP/1.1", 200),
        ("GET /healthz HTTP/1.1", 200),
        ("GET /metrics?x=y HTTP/1.1", 200),
        ("HEAD /metrics HTTP/1.1", 200),
        ("POST /metrics HTTP/1.1", 405),
        ("GET /metrics/../etc/passwd HTTP/1.1", 404),
        ("GET /nothing HTTP/1.1", 404),
    ] {
        let answer = http::ask(address, &format!("{request}\r\nHost: test\r\nConnection: close\r\n\r\n"))?;
        ensure!(answer.status == status, "{request}: {answer:?}");
        ensure!(!request.starts_with("HEAD") || answer.body.is_empty(), "{answer:?}");
    }
    let ready = http::get(address, "/readyz")?;
    ensure!(ready.body.starts_with("ready: ") && ready.body.contains("syscalls"), "{ready:?}");
    ensure!(http::ask(address, "\u{1}\u{2} nonsense\r\n\r\n")?.status == 400);
    // Who says nothing holds nobody up.
    let silent: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?;
    ensure!(http::get(address, "/metrics")?.status == 200);
    drop(silent);
    probe.stop()?.require_complete()
}

/// Whoever does not take the agent's output stops it: then it is not alive, and says so until it goes on.
#[test]
fn an_agent_that_stands_still_is_not_alive() -> Result<()> {
    probe::require_root()?;
    let address = free_address()?;
    let listen = address.to_string();
    let mut workload = Workload::start(WORKLOAD)?;
    let mut agent =
        probe::command(["run", "--interval", "300ms", "--prometheus-listen", &listen, "-o", "json"])?
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
    let status = |path| http::get(address, path).map(|answer| answer.status).ok();
    poll("the agent is ready", LONG, || Ok((status("/readyz") == Some(200)).then_some(())))?;
    // Rows of an interval are as many as there are calls of different kinds; nobody reads them.
    let stopped = poll("the agent stands still", LONG, || {
        workload.tell("getppid 1")?;
        Ok(status("/healthz").filter(|status| *status == 503))
    });
    let metrics = status("/metrics");
    let mut stdout = agent.stdout.take().context("stdout is piped")?;
    let reader = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    let again = poll("the agent goes on", LONG, || Ok(status("/healthz").filter(|status| *status == 200)));
    rustix::process::kill_process(rustix::process::Pid::from_child(&agent), rustix::process::Signal::INT)?;
    let ended = agent.wait()?;
    let _copied = reader.join();
    stopped?;
    again?;
    ensure!(metrics == Some(503), "{metrics:?}");
    ensure!(ended.success(), "{ended}");
    workload.end()
}

#[test]
fn an_address_that_is_taken_is_named_before_anything_is_attached() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    for (value, code, words) in [
        (address.as_str(), 1, [address.as_str(), "--prometheus-listen", "in use"]),
        ("9464", 2, ["9464", "--prometheus-listen", "127.0.0.1:9464"]),
    ] {
        let output = probe::run(["run", "--duration", "1s", "--prometheus-listen", value])?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code), "{:?}: {stderr}", output.status);
        ensure!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
    }
    Ok(())
}

/// Debian's Prometheus, with its data in a directory of its own.
struct Prometheus {
    child: Child,
    directory: PathBuf,
    address: SocketAddr,
}

impl Prometheus {
    fn start(target: SocketAddr) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("probe-prometheus-{}", std::process::id()));
        std::fs::create_dir(&directory)?;
        let file = directory.join("prometheus.yml");
        let config = format!(
            "global:\n  scrape_interval: 1s\nscrape_configs:\n- job_name: probe\n  static_configs:\n  - targets: ['{target}']\n"
        );
        std::fs::write(&file, config)?;
        let address = free_address()?;
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start prometheus; Debian: apt-get install prometheus")?;
        Ok(Self { child, directory, address })
    }

    /// The value of a query that has one.
    fn query(&self, query: &str) -> Result<Option<f64>> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = http::get(self.address, &format!("/api/v1/query?query={encoded}"))?;
        ensure!(answer.status == 200, "{query}: {answer:?}");
        let body: Value = serde_json::from_str(&answer.body)?;
        let value = body.pointer("/data/result/0/value/1").and_then(Value::as_str);
        Ok(value.map(str::parse).transpose()?)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
        let _left = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn prometheus_has_what_was_done() -> Result<()> {
    if in_guest() {
        return own_host("Prometheus");
    }
    let mut container = Container::start("4e5f6a7b")?;
    let (probe, address) = start(&[])?;
    let prometheus = Prometheus::start(address)?;
    container.workload.tell("getppid 2345")?;
    container.workload.tell("openat /nonexistent/file 17")?;
    let id = &container.id;
    let wait = |query: &str, want: f64| {
        let found = poll(query, patient(LONG), || {
            // It may not listen yet.
            let value = prometheus.query(query).unwrap_or_default();
            Ok(value.filter(|value| *value == want))
        });
        found.with_context(|| format!("{query} is {:?} and not {want}", prometheus.query(query)))
    };
    wait(
        &format!("process_syscall_duration_seconds_count{{container_id=\"{id}\",syscall_name=\"getppid\"}}"),
        2_345.0,
    )?;
    wait(&format!("sum by (error_type) (process_syscall_errors_total{{container_id=\"{id}\"}})"), 17.0)?;
    wait("up{job=\"probe\"}", 1.0)?;
    wait("count(target_info{service_name=\"probe\"})", 1.0)?;
    // A quantile out of buckets: a getppid takes more than a nanosecond and less than a second.
    let query = format!(
        "histogram_quantile(0.5, sum by (le) (process_syscall_duration_seconds_bucket{{container_id=\"{id}\",syscall_name=\"getppid\"}}))"
    );
    let median = prometheus.query(&query)?.context("no median")?;
    ensure!((1e-9..1.0).contains(&median), "{median}");
    drop(prometheus);
    probe.stop()?.require_complete()?;
    container.workload.end()
}
