//! The agent from the kernel to a collector: what the test did is what the collector gets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use probe_tests::dns_server::{DnsServer, NXDOMAIN, SERVFAIL, Script};
use probe_tests::drop::Cgroup;
use probe_tests::netns::Netns;
use probe_tests::otlp_receiver::{Fault, Point, PointValue, Receiver};
use probe_tests::probe::{DEADLINE, Line, Probe, command, patient, require_root};
use probe_tests::workload::Workload;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const SERVER: &str = "127.0.0.2:53";
/// An unanswered lookup is given up after five seconds.
const LONG: Duration = Duration::from_secs(20);
const INTERVAL: &[&str] = &["run", "--interval", "1s", "--otlp-endpoint"];

/// What a metric is: counter, gauge or histogram (`u`: an up-down counter), and its unit.
const METRICS: [(&str, char, &str); 34] = [
    ("system.network.tcp.retransmits", 'c', "{segment}"),
    ("system.network.tcp.retransmits.spurious", 'c', "{segment}"),
    ("system.network.tcp.segments", 'c', "{segment}"),
    ("system.network.tcp.rtt", 'h', "s"),
    ("system.network.tcp.resets", 'c', "{reset}"),
    ("system.network.tcp.connections", 'c', "{connection}"),
    ("system.network.tcp.handshake.duration", 'h', "s"),
    ("dns.lookup.duration", 'h', "s"),
    ("dns.lookup.unanswered", 'c', "{lookup}"),
    ("dns.lookup.lost_twin", 'c', "{lookup}"),
    ("dns.lookup.search_misses", 'c', "{lookup}"),
    ("process.syscall.duration", 'h', "s"),
    ("process.syscall.errors", 'c', "{error}"),
    ("process.syscall.calls", 'c', "{call}"),
    ("process.syscall.in_flight", 'g', "{call}"),
    ("probe.events", 'c', "{event}"),
    ("probe.events.lost", 'c', "{event}"),
    ("probe.map.entries", 'g', "{entry}"),
    ("probe.map.limit", 'g', "{entry}"),
    ("probe.program.run.time", 'c', "s"),
    ("probe.program.runs", 'c', "{run}"),
    ("probe.program.misses", 'c', "{run}"),
    ("probe.series.active", 'g', "{series}"),
    ("probe.series.folded", 'c', "{value}"),
    ("probe.series.ended", 'c', "{series}"),
    ("probe.export.sent", 'c', "{item}"),
    ("probe.export.failed", 'c', "{item}"),
    ("probe.export.duration", 'h', "s"),
    ("probe.spool.events", 'g', "{event}"),
    ("probe.spool.size", 'g', "By"),
    ("probe.kubelet.requests", 'c', "{request}"),
    ("probe.kubelet.left_out", 'g', "{item}"),
    ("process.cpu.time", 'c', "s"),
    ("process.memory.usage", 'u', "By"),
];

/// Attributes of metrics: few, and none that a stranger can multiply.
const ATTRIBUTES: [&str; 18] = [
    "network.tcp.retransmit.type",
    "network.type",
    "network.io.direction",
    "network.tcp.handshake.role",
    "error.type",
    "dns.question.type",
    "dns.response_code",
    "server.address",
    "network.transport",
    "syscall.name",
    "syscall.class",
    "signal",
    "where",
    "map",
    "program",
    "metric",
    "sink",
    "cpu.mode",
];

/// Count, or value, of a point.
fn number(point: &Point) -> f64 {
    match &point.value {
        PointValue::Sum { value, .. } | PointValue::Gauge(value) => *value,
        PointValue::Exponential { count, .. } | PointValue::Explicit { count, .. } => *count as f64,
    }
}

/// The last point of a series of one resource.
fn last(points: &[Point], container: Option<&str>, name: &str, attributes: &[(&str, &str)]) -> Option<Point> {
    let wanted: BTreeMap<String, String> =
        attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    points
        .iter()
        .rev()
        .find(|point| {
            point.name == name
                && point.attributes == wanted
                && point.resource.get("container.id").map(String::as_str) == container
        })
        .cloned()
}

/// Checks what holds for every point of every export.
fn check_contract(points: &[Point]) -> Result<()> {
    let mut series: BTreeMap<_, (u64, u64, f64)> = BTreeMap::new();
    for point in points {
        let what = || format!("{point:?}");
        let (_, kind, unit) = METRICS.iter().find(|(name, ..)| *name == point.name).with_context(what)?;
        let found = match point.value {
            PointValue::Sum { monotonic: true, .. } => 'c',
            PointValue::Sum { monotonic: false, .. } => 'u',
            PointValue::Gauge(_) => 'g',
            PointValue::Exponential { .. } | PointValue::Explicit { .. } => 'h',
        };
        ensure!(found == *kind && point.unit == *unit, "{point:?}");
        ensure!(point.attributes.keys().all(|key| ATTRIBUTES.contains(&key.as_str())), "{point:?}");
        ensure!(!point.description.is_empty(), "{point:?}");
        ensure!((found == 'g') == point.cumulative.is_none() && point.cumulative != Some(false), "{point:?}");
        if let PointValue::Exponential { count, sum, scale, buckets, .. } = &point.value {
            ensure!(*scale == 2 && buckets.iter().sum::<u64>() == *count && *sum >= 0.0, "{point:?}");
        }
        if found == 'g' {
            continue;
        }
        ensure!(point.start != 0 && point.start < point.time, "{point:?}");
        let of = (point.resource.clone(), point.scope.clone(), point.name.clone(), point.attributes.clone());
        if let Some((start, time, value)) = series.insert(of, (point.start, point.time, number(point))) {
            ensure!(start == point.start, "the start moved: {point:?}");
            ensure!(time < point.time, "two points of one time: {point:?}");
            ensure!(found == 'u' || value <= number(point), "it fell from {value}: {point:?}");
        }
    }
    Ok(())
}

#[test]
fn what_was_done_arrives_at_the_collector() -> Result<()> {
    let container = "0123456789abcdef".repeat(4);
    let scripts = [("no.test", Script::rcode(NXDOMAIN)), ("never.test", Script::never())];
    let netns = Netns::new()?;
    let _server = netns.run(|| DnsServer::start(&[SERVER.parse::<SocketAddr>()?], &scripts))??;
    let listener = netns.run(|| TcpListener::bind("127.0.0.1:0"))??;
    let target = listener.local_addr()?;
    let (outer, mut inside, mut outside) = (
        Cgroup::new()?,
        netns.run(|| Workload::start(WORKLOAD))??,
        netns.run(|| Workload::start(WORKLOAD))??,
    );
    let docker = outer.below("docker")?;
    let cgroup = docker.below(&container)?;
    cgroup.add(inside.pid())?;

    let receiver = Receiver::start()?;
    let endpoint = receiver.endpoint();
    let probe = Probe::start(&[INTERVAL, &[&endpoint, "--otlp-events", "all"]].concat())?;
    for (workload, times) in [(&mut inside, 1), (&mut outside, 2)] {
        for id in 0..10 * times {
            workload.tell(&format!("ask {SERVER} {id} yes.test"))?;
        }
        for id in 0..3 * times {
            workload.tell(&format!("ask {SERVER} {id} no.test"))?;
        }
        for _ in 0..4 * times {
            workload.tell(&format!("connect {target}"))?;
            listener.accept()?;
        }
        workload.tell(&format!("getppid {}", 3_210 * times))?;
        workload.tell(&format!("openat /nonexistent/file {}", 40 * times))?;
    }
    inside.tell(&format!("send {SERVER} 99 never.test"))?;
    let id = container.as_str();
    receiver.wait_for("the unanswered lookup", LONG, |receiver| {
        let attributes =
            [("dns.question.type", "A"), ("server.address", "127.0.0.2"), ("network.transport", "udp")];
        last(&receiver.points(), Some(id), "dns.lookup.unanswered", &attributes)
            .filter(|point| number(point) == 1.0)
    })?;
    // Exported at the end, however short the last interval.
    inside.tell("getppid 1")?;
    let finished = probe.stop()?;
    finished.require_complete()?;

    let points = receiver.points();
    check_contract(&points)?;
    let names: BTreeSet<&str> = points.iter().map(|point| point.name.as_str()).collect();
    for name in
        ["probe.events", "probe.map.entries", "probe.map.limit", "process.cpu.time", "process.memory.usage"]
    {
        ensure!(names.contains(name), "{name} is not among {names:?}");
    }
    let answered = |code: &'static str| {
        [("dns.question.type", "A"), ("dns.response_code", code), ("server.address", "127.0.0.2")]
    };
    let failed = [&answered("NXDOMAIN")[..], &[("error.type", "NXDOMAIN")]].concat();
    let role = |role| [("network.tcp.handshake.role", role)];
    let call = |name| [("syscall.name", name), ("syscall.class", "work")];
    let missing = [("syscall.name", "openat"), ("error.type", "ENOENT")];
    type Done<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);
    let done: [Done<'_>; 7] = [
        ("dns.lookup.duration", &answered("NOERROR"), 10.0),
        ("dns.lookup.duration", &failed, 3.0),
        ("system.network.tcp.connections", &role("client"), 4.0),
        ("system.network.tcp.handshake.duration", &role("client"), 4.0),
        ("process.syscall.duration", &call("getppid"), 3_211.0),
        ("process.syscall.duration", &call("openat"), 40.0),
        ("process.syscall.errors", &missing, 40.0),
    ];
    for (name, attributes, count) in done {
        let found = last(&points, Some(id), name, attributes).map(|point| number(&point));
        ensure!(found == Some(count), "{name} {attributes:?}: {found:?} instead of {count}");
        // Twice as much outside, where others live too.
        let least = if attributes == call("getppid") { 6_420.0 } else { count * 2.0 };
        let found = last(&points, None, name, attributes).map(|point| number(&point));
        ensure!(found >= Some(least), "{name} {attributes:?} on the host: {found:?} instead of {least}");
    }

    // Resources: one of the container, one of the host; identities that tell them apart.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    let of = |point: &Point, key: &str| point.resource.get(key).cloned().unwrap_or_default();
    let mut instances: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for point in &points {
        ensure!(of(point, "host.name") == host.trim_end(), "{point:?}");
        ensure!(of(point, "service.name") == "probe", "{point:?}");
        ensure!(!point.schema_url.is_empty(), "{point:?}");
        instances.entry(of(point, "container.id")).or_default().insert(of(point, "service.instance.id"));
    }
    let ours = [String::new(), container.clone()].map(|id| instances.remove(&id).unwrap_or_default());
    ensure!(ours.iter().all(|instances| instances.len() == 1), "{ours:?}");
    let [of_host, of_container] = &ours;
    ensure!(of_host.is_disjoint(of_container) && !of_host.contains(""), "{ours:?}");

    // Events, with the same attributes as on stdout.
    let lookups: Vec<_> = receiver
        .records()
        .into_iter()
        .filter(|record| {
            record.event == "dns.lookup" && record.resource.get("container.id") == Some(&container)
        })
        .collect();
    ensure!(lookups.len() == 14, "{lookups:#?}");
    for record in &lookups {
        let of = |key: &str| record.attributes.get(key).map(String::as_str);
        ensure!(of("process.pid") == Some(&*inside.pid().to_string()), "{record:?}");
        ensure!(of("linux.netns") == Some(&*netns.inode().to_string()), "{record:?}");
        ensure!(record.time != 0 && of("dns.outcome").is_some(), "{record:?}");
    }
    let on_stdout = |line: &&Line| line.event() == "dns.lookup" && line.text("container.id") == Some(id);
    ensure!(finished.lines.iter().filter(on_stdout).count() == 14, "stdout and collector get the same");
    inside.end()?;
    outside.end()
}

/// Names are attributes where they are asked for, cut to what somebody registered; those beyond the limit have one in common,
/// each container has a limit of its own, and no lookup is lost by that.
#[test]
fn names_are_attributes_within_a_limit() -> Result<()> {
    let ids = ["0a1b2c3d4e5f6789".repeat(4), "9876f5e4d3c2b1a0".repeat(4)];
    let scripts = [("never.example.org", Script::never()), ("never.example.net", Script::never())];
    let netns = Netns::new()?;
    let _server = netns.run(|| DnsServer::start(&[SERVER.parse::<SocketAddr>()?], &scripts))??;
    let outer = Cgroup::new()?;
    let docker = outer.below("docker")?;
    let cgroups = [docker.below(&ids[0])?, docker.below(&ids[1])?];
    let mut workloads =
        [netns.run(|| Workload::start(WORKLOAD))??, netns.run(|| Workload::start(WORKLOAD))??];
    for (cgroup, workload) in cgroups.iter().zip(&workloads) {
        cgroup.add(workload.pid())?;
    }

    let receiver = Receiver::start()?;
    let endpoint = receiver.endpoint();
    let flags = ["--dns-names", "suffix", "--dns-names-max", "3", "--dns-timeout", "1s"];
    let probe = Probe::start(&[INTERVAL, &[&endpoint], &flags].concat())?;
    let [many, few] = &mut workloads;
    let asked = [
        ("www.example.org", 4),
        ("db.prod.svc.cluster.local", 3),
        ("a.b.example.co.uk", 2),
        ("www.example.net", 5),
        ("www.example.com", 1),
        ("mail.example.org", 6),
    ];
    for (name, times) in asked {
        for id in 0..times {
            many.tell(&format!("ask {SERVER} {id} {name}"))?;
        }
    }
    // And by the thousand, each name another.
    for number in 0..2_000 {
        many.tell(&format!("ask {SERVER} {} www.n{number}.test", number % 60_000))?;
    }
    many.tell(&format!("send {SERVER} 98 never.example.org"))?;
    many.tell(&format!("send {SERVER} 99 never.example.net"))?;
    few.tell(&format!("ask {SERVER} 1 www.example.com"))?;

    let answered = |name| {
        let attributes =
            [("dns.question.type", "A"), ("dns.response_code", "NOERROR"), ("server.address", "127.0.0.2")];
        ("dns.lookup.duration", [&attributes[..], &[("dns.question.name", name)]].concat())
    };
    let unanswered = |name| {
        let attributes =
            [("dns.question.type", "A"), ("server.address", "127.0.0.2"), ("network.transport", "udp")];
        ("dns.lookup.unanswered", [&attributes[..], &[("dns.question.name", name)]].concat())
    };
    let done = [
        (0, answered("example.org"), 10.0),
        (0, answered("cluster.local"), 3.0),
        (0, answered("example.co.uk"), 2.0),
        (0, answered("_other"), 2_006.0),
        (0, unanswered("example.org"), 1.0),
        (0, unanswered("_other"), 1.0),
        (1, answered("example.com"), 1.0),
    ];
    for (container, (metric, attributes), count) in &done {
        receiver.wait_for(&format!("{metric} {attributes:?}"), LONG, |receiver| {
            last(&receiver.points(), Some(&ids[*container]), metric, attributes)
                .filter(|point| number(point) == *count)
        })?;
    }
    let finished = probe.stop()?;
    finished.require_complete()?;
    let said = finished.stderr.lines().filter(|line| line.contains("--dns-names-max")).count();
    ensure!(said == 1, "once: {}", finished.stderr);

    // The host's own lookups may be among them.
    for (metric, least) in [("dns.lookup.duration", 2_006.0), ("dns.lookup.unanswered", 1.0)] {
        let folded = last(&receiver.points(), None, "probe.series.folded", &[("metric", metric)]);
        ensure!(folded.as_ref().is_some_and(|point| number(point) >= least), "{metric}: {folded:?}");
    }

    // That is all there is of the two, and it is as much as was asked.
    for (container, id) in ids.iter().enumerate() {
        let series: BTreeMap<_, f64> = receiver
            .points()
            .iter()
            .filter(|point| point.resource.get("container.id") == Some(id))
            .filter(|point| matches!(&*point.name, "dns.lookup.duration" | "dns.lookup.unanswered"))
            .map(|point| ((point.name.clone(), point.attributes.clone()), number(point)))
            .collect();
        let expected = done.iter().filter(|(of, ..)| *of == container);
        ensure!(series.len() == expected.clone().count(), "{series:#?}");
        ensure!(
            series.values().sum::<f64>() == expected.map(|(.., count)| count).sum::<f64>(),
            "{series:#?}"
        );
    }
    for workload in workloads {
        workload.end()?;
    }
    Ok(())
}

/// Lookups that went well are in the metrics; each one as a log record would be a lot of log.
#[test]
fn only_notable_lookups_become_log_records() -> Result<()> {
    let scripts = [("broken.test", Script::rcode(SERVFAIL)), ("no.test", Script::rcode(NXDOMAIN))];
    let netns = Netns::new()?;
    let _server = netns.run(|| DnsServer::start(&[SERVER.parse::<SocketAddr>()?], &scripts))??;
    let mut workload = netns.run(|| Workload::start(WORKLOAD))??;
    let receiver = Receiver::start()?;
    let probe = Probe::start(&[INTERVAL, &[&receiver.endpoint()]].concat())?;
    for (id, name) in ["yes.test", "no.test", "broken.test", "yes.test"].into_iter().enumerate() {
        workload.tell(&format!("ask {SERVER} {id} {name}"))?;
    }
    let finished = probe.stop()?;
    finished.require_complete()?;
    let netns = netns.inode();
    let is_ours =
        |line: &&Line| line.event() == "dns.lookup" && line.int("linux.netns") == Some(netns.into());
    ensure!(finished.lines.iter().filter(is_ours).count() == 4, "stdout shows all of them");
    let names: Vec<_> = receiver
        .records()
        .into_iter()
        .filter(|record| record.attributes.get("linux.netns") == Some(&netns.to_string()))
        .filter_map(|record| record.attributes.get("dns.question.name").cloned())
        .collect();
    ensure!(names == ["broken.test"], "{names:?}");
    workload.end()
}

/// Waits until some intervals have passed.
fn intervals(probe: &Probe, count: usize) -> Result<()> {
    let before = probe.lines().len();
    probe.wait_for("intervals", LONG, |lines| {
        let times: BTreeSet<_> = lines
            .iter()
            .skip(before)
            .filter(|line| line.event() == "syscall.summary")
            .filter_map(|line| line.text("time"))
            .collect();
        (times.len() >= count).then_some(())
    })
}

/// The agent goes on without a collector, says so once, and loses no total.
#[test]
fn a_collector_that_comes_late_and_goes_in_between_gets_right_totals() -> Result<()> {
    let container = "fedcba9876543210".repeat(4);
    let outer = Cgroup::new()?;
    let docker = outer.below("docker")?;
    let cgroup = docker.below(&container)?;
    let mut workload = Workload::start(WORKLOAD)?;
    cgroup.add(workload.pid())?;
    // An address where nobody listens.
    let address = Receiver::start()?.address();
    let endpoint = format!("http://{address}");
    let probe =
        Probe::start_with(&["run", "--interval", "300ms", "--otlp-endpoint", &endpoint], |command| {
            command.env("RUST_LOG", "info");
        })?;
    let series = |receiver: &Receiver| {
        let call = [("syscall.name", "getppid"), ("syscall.class", "work")];
        last(&receiver.points(), Some(&container), "process.syscall.duration", &call)
    };
    let counted = |receiver: &Receiver| series(receiver).map(|point| number(&point));
    let start = |receiver: &Receiver| series(receiver).map(|point| point.start);
    workload.tell("getppid 100")?;
    intervals(&probe, 5)?;
    let receiver = Receiver::start_on(address)?;
    receiver.wait_for("what was done before it came", LONG, |receiver| {
        counted(receiver).filter(|n| *n == 100.0)
    })?;
    let begun = start(&receiver);

    drop(receiver);
    workload.tell("getppid 20")?;
    intervals(&probe, 5)?;
    let receiver = Receiver::start_on(address)?;
    receiver.wait_for("what was done while it was away", LONG, |r| counted(r).filter(|n| *n == 120.0))?;
    ensure!(start(&receiver) == begun, "a series begins where it began");
    check_contract(&receiver.points())?;
    workload.tell("getppid 3")?;
    let finished = probe.stop()?;
    finished.require_complete()?;
    ensure!(counted(&receiver) == Some(123.0), "{:?}", counted(&receiver));

    // It went twice: so often is that said at most, and not at every attempt. (Its return is said when events, which may
    // be retried later, have arrived as well as metrics.)
    let said = |what: &str| finished.stderr.lines().filter(|line| line.contains(what)).count();
    let (away, back) = (said("cannot export"), said("works again"));
    ensure!((1..=2).contains(&away) && (1..=2).contains(&back), "{}", finished.stderr);
    ensure!(said("WARN") + said("ERROR") == away, "{}", finished.stderr);
    workload.end()
}

/// A collector that takes requests and never answers costs neither data on stdout nor the end.
#[test]
fn a_hanging_collector_holds_nothing_up() -> Result<()> {
    let receiver = Receiver::start()?;
    receiver.set_fault(Fault::Hang);
    let endpoint = receiver.endpoint();
    let probe = Probe::start(&["run", "--interval", "300ms", "--otlp-endpoint", &endpoint])?;
    receiver.wait_for("a request", DEADLINE, |receiver| (receiver.calls() > 0).then_some(()))?;
    intervals(&probe, 5)?;
    let ending = Instant::now();
    probe.stop()?.require_complete()?;
    // Five seconds for the last export, and some for a busy host.
    ensure!(ending.elapsed() < patient(Duration::from_secs(9)), "{:?}", ending.elapsed());
    Ok(())
}

/// Without any configuration: a summary of all three signals, to read.
#[test]
fn without_a_collector_the_agent_prints_summaries() -> Result<()> {
    require_root()?;
    let output =
        command(["run", "--interval", "500ms", "--duration", "1200ms"])?.stderr(Stdio::piped()).output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.code() == Some(0), "{:?}", output.status);
    for line in ["tcp  ", "dns  ", "syscalls  ", "── "] {
        let count = text.lines().filter(|found| found.starts_with(line)).count();
        // Two whole intervals, and the rest.
        ensure!(count == 3, "{count} lines begin with {line:?}: {text}");
    }
    Ok(())
}
