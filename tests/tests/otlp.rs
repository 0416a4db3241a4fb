//! What arrives at a collector, and what happens when the collector misbehaves. No privileges needed.
#![expect(clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking, its helpers too")]

#[path = "otlp/deltas.rs"]
mod deltas;
#[path = "otlp/http.rs"]
mod http;
#[path = "otlp/spool.rs"]
mod spool;
#[path = "otlp/tls.rs"]
mod tls;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use probe_tests::otlp_receiver::{Fault, Point, PointValue, Receiver, Settings};
use probe_tests::probe::patient;
use probe_user::entity::{ContainerIdentity, Entity, Names, Runtime};
use probe_user::event::{AttrValue, Attributes, key, name};
use probe_user::series::{Limits, Store, attr, metrics};
use probe_user::sink::otlp::{Exporter, Flushed, Options, OtlpConfig, OtlpFlags, Resources, Temporality};
use probe_user::telemetry::{SelfStats, Telemetry};
use prost::Message as _;
use tonic::{Code, Status};

const DEADLINE: Duration = Duration::from_secs(20);
const START: u64 = 1_700_000_000_000_000_000;

/// An exporter as `probe run` makes it, from environment variables.
struct Agent {
    exporter: Exporter,
    stats: Arc<SelfStats>,
    store: Store,
    now: u64,
}

fn config(endpoint: &str, env: &[(&str, &str)]) -> Result<OtlpConfig> {
    log();
    let lookup = |key: &str| {
        let set = env.iter().find(|(k, _)| *k == key).map(|(_, value)| (*value).to_owned());
        set.or_else(|| (key == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| endpoint.to_owned()))
    };
    OtlpConfig::resolve(&OtlpFlags::default(), &lookup)?.context("an endpoint is set")
}

fn resources() -> Result<Resources> {
    let env = BTreeMap::from([
        ("NODE_NAME", "node-7"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ]);
    Ok(Resources::resolve(&|key| env.get(key).map(|value| (*value).to_owned()), "host-7", "run-1")?)
}

impl Agent {
    fn start(endpoint: &str, env: &[(&str, &str)]) -> Result<Self> {
        Self::start_with(endpoint, env, Options::default())
    }

    fn start_with(endpoint: &str, env: &[(&str, &str)], options: Options) -> Result<Self> {
        let stats = Arc::new(SelfStats::new());
        let options = Options {
            first_back_off: Duration::from_millis(20),
            longest_back_off: Duration::from_millis(200),
            event_delay: Duration::from_millis(50),
            ..options
        };
        let exporter =
            Exporter::start(&config(endpoint, env)?, Arc::new(resources()?), stats.clone(), options)?;
        Ok(Self { exporter, stats, store: Store::new(Limits::default(), START), now: START })
    }

    /// Counts one more retransmit, and submits.
    fn tick(&mut self) {
        let attrs = [attr(key::TCP_RETRANSMIT_TYPE, "timeout"), attr(key::NETWORK_TYPE, "ipv4")];
        self.store.add(&Entity::Host, metrics::TCP_RETRANSMITS, &attrs, 1);
        self.now += 1_000_000_000;
        self.exporter.submit(&self.store.snapshot(self.now));
    }

    fn sent(&self) -> u64 {
        self.stats.get(metrics::PROBE_EXPORT_SENT, &[attr(key::SINK, "otlp_metrics")])
    }

    fn failed(&self, sink: &'static str, kind: &'static str) -> u64 {
        self.stats.get(metrics::PROBE_EXPORT_FAILED, &[attr(key::SINK, sink), attr(key::ERROR_TYPE, kind)])
    }

    fn failed_in_all(&self) -> u64 {
        self.stats.all(metrics::PROBE_EXPORT_FAILED).iter().map(|(_, n)| n).sum()
    }
}

/// Polls until it is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        ensure!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    Ok(())
}

/// Everything that was logged at level info or above, by all tests of this process.
fn log() -> Arc<Mutex<Vec<u8>>> {
    struct Writer(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Arc::new(Mutex::new(Vec::new()));
        let of_writer = log.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || Writer(of_writer.clone())).init();
        log
    })
    .clone()
}

/// The lines of one endpoint.
fn said(endpoint: &str) -> Vec<String> {
    let log = log();
    let log = log.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&log).lines().filter(|line| line.contains(endpoint)).map(str::to_owned).collect()
}

fn container(id: &str, runtime: Option<Runtime>, pod: Option<&str>) -> Entity {
    let pod_uid = pod.map(str::to_owned);
    Entity::Container(Arc::new(ContainerIdentity {
        container_id: id.to_owned(),
        runtime,
        pod_uid,
        names: Names::default(),
    }))
}

struct Retransmit(u64);

impl Attributes for Retransmit {
    fn event_name(&self) -> &'static str {
        name::TCP_RETRANSMIT
    }

    fn time_unix_ns(&self) -> u64 {
        self.0
    }

    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        visitor(key::TCP_RETRANSMIT_TYPE, "fast".into());
        visitor(key::SEGMENTS, AttrValue::Int(2));
    }
}

fn find<'a>(points: &'a [Point], name: &str) -> Vec<&'a Point> {
    points.iter().filter(|point| point.name == name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_units_kinds_start_times_resources_and_headers_arrive() -> Result<()> {
    let receiver = Receiver::start()?;
    let env = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20t0ken,x-tenant=a"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
    ];
    let mut agent = Agent::start(&receiver.endpoint(), &env)?;
    agent.tick();
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    let (pod, bare) =
        (container("c0ffee", Some(Runtime::CriO), Some("pod-uid-1")), container("beef", None, None));
    let read = [attr(key::SYSCALL_NAME, "read"), attr(key::SYSCALL_CLASS, "work")];
    for ms in [1, 2, 400] {
        agent.store.record(&pod, metrics::SYSCALL_DURATION, &read, Duration::from_millis(ms));
    }
    let failed = [attr(key::TCP_HANDSHAKE_ROLE, "client"), attr(key::ERROR_TYPE, "ECONNREFUSED")];
    agent.store.add(&bare, metrics::TCP_CONNECTIONS, &failed, 3);
    agent.tick();
    agent.exporter.event(&pod, &Retransmit(START + 5));
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);

    let points = receiver.points();
    let host = find(&points, "system.network.tcp.retransmits");
    let last = host.last().context("retransmits of the host")?;
    assert_eq!(last.value, PointValue::Sum { value: 2.0, monotonic: true });
    assert_eq!((last.unit.as_str(), last.cumulative), ("{segment}", Some(true)));
    assert_eq!((last.start, last.time), (START, START + 2_000_000_000));
    assert_eq!(last.attributes.get("network.tcp.retransmit.type").map(String::as_str), Some("timeout"));
    assert_eq!(last.scope, "probe");
    assert!(last.schema_url.starts_with("https://opentelemetry.io/schemas/"));

    let reads = find(&points, "process.syscall.duration");
    let [reads] = reads.as_slice() else { panic!("one series: {reads:?}") };
    let PointValue::Exponential { count, sum, scale, offset, buckets } = &reads.value else {
        panic!("{:?}", reads.value)
    };
    assert_eq!((*count, *scale, reads.unit.as_str(), reads.cumulative), (3, 2, "s", Some(true)));
    assert!((sum - 0.403).abs() < 1e-9);
    assert_eq!(buckets.iter().sum::<u64>(), 3);
    assert!(buckets.first() == Some(&1) && buckets.last() == Some(&1), "trimmed: {buckets:?}");
    let lowest = (f64::from(*offset) / 4.0).exp2();
    assert!(lowest < 0.001 && 0.001 < lowest * 1.19, "the first bucket begins at {lowest} s");
    // It began between the first and the second collection.
    assert_eq!((reads.start, reads.time), (START + 1_000_000_000, START + 2_000_000_000));

    let connections = find(&points, "system.network.tcp.connections");
    let mut instances = Vec::new();
    for (point, id, pod) in [
        (*last, None, None),
        (reads, Some("c0ffee"), Some("pod-uid-1")),
        (connections[0], Some("beef"), None),
    ] {
        let of = |key: &str| point.resource.get(key).map(String::as_str);
        assert_eq!(of("host.name"), Some("host-7"));
        assert_eq!(of("k8s.node.name"), Some("node-7"));
        assert_eq!(of("service.name"), Some("probe"));
        assert_eq!(of("os.type"), Some("linux"));
        assert_eq!(of("deployment.environment.name"), Some("test"));
        assert_eq!((of("container.id"), of("k8s.pod.uid")), (id, pod));
        assert_eq!(of("container.runtime.name").is_some(), pod.is_some(), "only where it is known");
        instances.push(of("service.instance.id").context("service.instance.id")?.to_owned());
    }
    assert_eq!(instances, ["run-1", "run-1/c0ffee", "run-1/beef"]);

    let records = receiver.records();
    assert_eq!((records.len(), records[0].event.as_str(), records[0].time), (1, "tcp.retransmit", START + 5));
    assert_eq!(records[0].attributes.get("segments").map(String::as_str), Some("2"));
    assert_eq!(records[0].resource.get("container.id").map(String::as_str), Some("c0ffee"));

    let headers = [receiver.metrics()[0].headers.clone(), receiver.logs()[0].headers.clone()];
    for headers in headers {
        assert_eq!(headers.get("authorization").map(String::as_str), Some("Bearer t0ken"));
        assert_eq!(headers.get("x-tenant").map(String::as_str), Some("a"));
        assert_eq!(headers.get("grpc-encoding").map(String::as_str), Some("gzip"));
        assert!(headers.get("user-agent").is_some_and(|agent| agent.starts_with("probe/")));
    }
    assert_eq!(agent.failed_in_all(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_went_away_gets_right_totals_when_it_is_back_and_it_is_said_once() -> Result<()> {
    let receiver = Receiver::start()?;
    let (address, endpoint) = (receiver.address(), receiver.endpoint());
    let mut agent = Agent::start(&endpoint, &[])?;
    agent.tick();
    receiver.wait_for("the first snapshot", DEADLINE, |r| r.points().last().cloned())?;
    drop(receiver);
    // "Superseded" snapshots were never tried; these were.
    let attempts = |agent: &Agent| agent.failed_in_all() - agent.failed("otlp_metrics", "superseded");
    let mut ticks = 0;
    for attempt in 1..=10 {
        agent.exporter.event(&Entity::Host, &Retransmit(START + attempt));
        eventually("an attempt that failed", || {
            agent.tick();
            ticks += 1;
            attempts(&agent) >= attempt
        })?;
    }
    assert_eq!(agent.sent(), 1);
    let lines = said(&endpoint);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("WARN") && lines[0].contains("cannot export"), "{lines:?}");

    let receiver = Receiver::start_on(address)?;
    let last = receiver.wait_for("the newest snapshot", DEADLINE, |r| r.points().last().cloned())?;
    assert_eq!(last.value, PointValue::Sum { value: f64::from(ticks + 1), monotonic: true });
    assert_eq!(last.start, START);
    assert_eq!(receiver.points().len(), 1, "older snapshots are not sent");
    let events =
        receiver.wait_for("all events", DEADLINE, |r| Some(r.records()).filter(|r| r.len() >= 10))?;
    assert_eq!(events.iter().map(|e| e.time - START).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    agent.tick();
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    eventually("the recovery is said", || said(&endpoint).len() == 2)?;
    assert!(said(&endpoint)[1].contains("INFO") && said(&endpoint)[1].contains("works again"));
    assert_eq!(agent.sent(), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_for_good_is_counted_and_not_tried_again() -> Result<()> {
    let cases = [
        ("permission_denied", Code::PermissionDenied),
        ("resource_exhausted", Code::ResourceExhausted),
        ("unimplemented", Code::Unimplemented),
    ];
    for (kind, code) in cases {
        let fault = Fault::Refuse(Status::new(code, "not like this"));
        is_counted_and_not_tried_again(&Receiver::start()?, fault, &[], kind).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_for_now_is_tried_again() -> Result<()> {
    for code in [Code::Unavailable, Code::Aborted, Code::DataLoss] {
        is_tried_again(&Receiver::start()?, Fault::Refuse(Status::new(code, "later")), &[]).await?;
    }
    Ok(())
}

/// A collector that misbehaves so, and then does not, has everything.
async fn is_tried_again(receiver: &Receiver, fault: Fault, env: &[(&str, &str)]) -> Result<()> {
    let what = format!("{fault:?}");
    receiver.set_fault(fault);
    let mut agent = Agent::start(&receiver.endpoint(), env)?;
    agent.tick();
    receiver.wait_for("a second attempt", DEADLINE, |r| (r.calls() >= 2).then_some(()))?;
    receiver.set_fault(Fault::None);
    let point = receiver.wait_for("the snapshot", DEADLINE, |r| r.points().first().cloned())?;
    assert_eq!(point.value, PointValue::Sum { value: 1.0, monotonic: true });
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    assert_eq!((agent.sent(), agent.failed_in_all()), (1, 0), "{what}");
    Ok(())
}

/// One that refuses for good is asked once for each snapshot, which is counted under `kind`; said once; and the total is right
/// when it no longer does.
async fn is_counted_and_not_tried_again(
    receiver: &Receiver,
    fault: Fault,
    env: &[(&str, &str)],
    kind: &'static str,
) -> Result<()> {
    receiver.set_fault(fault);
    let mut agent = Agent::start(&receiver.endpoint(), env)?;
    for tick in 1..=3 {
        agent.tick();
        assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
        assert_eq!((receiver.calls(), agent.failed("otlp_metrics", kind)), (tick, tick as u64), "{kind}");
    }
    let said = said(&receiver.endpoint());
    assert!(said.len() == 1 && said[0].contains("not like this"), "{said:?}");
    receiver.set_fault(Fault::None);
    agent.tick();
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    assert_eq!(receiver.points()[0].value, PointValue::Sum { value: 4.0, monotonic: true });
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_collector_costs_a_timeout_and_no_more() -> Result<()> {
    let receiver = Receiver::start()?;
    receiver.set_fault(Fault::Hang);
    let mut agent = Agent::start(&receiver.endpoint(), &[("OTEL_EXPORTER_OTLP_TIMEOUT", "100")])?;
    let started = Instant::now();
    for _ in 0..1_000 {
        agent.tick();
    }
    assert!(
        started.elapsed() < patient(Duration::from_secs(2)),
        "nobody waits for the network: {:?}",
        started.elapsed()
    );
    receiver.wait_for("a second attempt", DEADLINE, |r| (r.calls() >= 2).then_some(()))?;
    let flushing = Instant::now();
    assert_eq!(agent.exporter.flush(Duration::from_millis(300)).await, Flushed::DeadlinePassed);
    assert!(flushing.elapsed() < patient(Duration::from_millis(1_500)), "{:?}", flushing.elapsed());
    assert!(agent.failed("otlp_metrics", "timeout") + agent.failed("otlp_metrics", "superseded") >= 998);
    assert_eq!(said(&receiver.endpoint()).len(), 1);
    receiver.set_fault(Fault::None);
    let last = receiver.wait_for("the newest snapshot", DEADLINE, |r| r.points().last().cloned())?;
    assert_eq!(last.value, PointValue::Sum { value: 1000.0, monotonic: true });

    receiver.set_fault(Fault::Hang);
    agent.tick();
    agent.exporter.event(&Entity::Host, &Retransmit(START));
    let ending = Instant::now();
    assert_eq!(agent.exporter.shutdown(Duration::from_millis(300)).await, Flushed::DeadlinePassed);
    assert!(ending.elapsed() < patient(Duration::from_millis(1_500)), "{:?}", ending.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_success_is_counted_and_not_sent_again() -> Result<()> {
    let receiver = Receiver::start()?;
    receiver.set_fault(Fault::Partial { rejected: 1, message: "too old".to_owned() });
    let mut agent = Agent::start(&receiver.endpoint(), &[])?;
    agent.store.add(&container("c", None, None), metrics::TCP_RESETS, &[], 1);
    agent.tick();
    agent.exporter.event(&Entity::Host, &Retransmit(START));
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    assert_eq!((receiver.calls(), agent.sent()), (2, 1), "one request a signal; one of two points taken");
    assert_eq!((agent.failed("otlp_metrics", "rejected"), agent.failed("otlp_logs", "rejected")), (1, 1));
    let lines = said(&receiver.endpoint());
    assert!(lines.len() == 1 && lines[0].contains("too old"), "{lines:?}");
    Ok(())
}

/// Counters of a thousand calls for each of three owners, and two thousand events.
fn fill(agent: &mut Agent) -> usize {
    let owners = [Entity::Host, container("c0ffee", None, None), container("beef", None, None)];
    for owner in &owners {
        for call in 1..=1_000i64 {
            let attrs = [attr(key::SYSCALL_NAME, call), attr(key::ERROR_TYPE, "EINVAL")];
            agent.store.add(owner, metrics::SYSCALL_ERRORS, &attrs, call.unsigned_abs());
        }
    }
    for i in 0..2_000 {
        agent.exporter.event(&owners[i % 3], &Retransmit(START + i as u64));
    }
    agent.now += 1_000_000_000;
    agent.exporter.submit(&agent.store.snapshot(agent.now));
    owners.len() * 1_000
}

/// What a collector finds too large arrives in parts, nothing of it twice.
async fn arrives_in_parts(receiver: &Receiver, largest: usize, env: &[(&str, &str)]) -> Result<()> {
    let mut agent = Agent::start(&receiver.endpoint(), env)?;
    let series = fill(&mut agent);
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    assert_eq!((agent.sent(), agent.failed_in_all()), (series as u64, 0));
    let mut found = BTreeMap::new();
    for point in receiver.points() {
        let of = |attributes: &BTreeMap<String, String>, key| attributes.get(key).cloned();
        let call = of(&point.attributes, "syscall.name").context("a name")?;
        assert_eq!(point.value, PointValue::Sum { value: call.parse()?, monotonic: true });
        assert_eq!((point.unit.as_str(), point.scope.as_str()), ("{error}", "probe"));
        let before = found.insert((of(&point.resource, "container.id"), call), ());
        assert_eq!(before, None, "{point:?} came twice");
    }
    assert_eq!(found.len(), series);
    let mut times: Vec<_> = receiver.records().iter().map(|record| record.time).collect();
    times.sort_unstable();
    assert_eq!(times, (START..START + 2_000).collect::<Vec<_>>());
    let sizes: Vec<_> = receiver.metrics().iter().map(|arrived| arrived.message.encoded_len()).collect();
    assert!(sizes.len() > 2 && sizes.iter().all(|size| *size <= largest), "{sizes:?}");
    let lines = said(&receiver.endpoint());
    assert!(lines.iter().all(|line| line.contains("INFO") && line.contains("sent in parts")), "{lines:?}");
    assert_eq!(lines.len(), 2, "once a signal: {lines:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_arrives_in_parts() -> Result<()> {
    let largest = 48 << 10;
    for compression in ["none", "gzip", "zstd"] {
        let receiver = Receiver::grpc(Settings { largest: Some(largest), ..Settings::default() })?;
        arrives_in_parts(&receiver, largest, &[("OTEL_EXPORTER_OTLP_COMPRESSION", compression)]).await?;
    }
    Ok(())
}

/// A server that answers every connection with `answer`, and hangs up.
fn nonsense(answer: &'static [u8]) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut some = [0; 1024];
            drop(stream.read(&mut some));
            drop(stream.write_all(answer));
        }
    });
    Ok(address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_and_hang_ups_are_survived() -> Result<()> {
    let cases: [(&str, &[u8]); 4] = [
        ("nothing", b""),
        ("http/1.1", b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"),
        ("zeros", &[0; 4096]),
        ("half a frame", b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03"),
    ];
    for (case, answer) in cases {
        let endpoint = format!("http://{}", nonsense(answer)?);
        let mut agent = Agent::start(&endpoint, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "500")])?;
        for tick in 1..=3 {
            agent.tick();
            // A newer snapshot, or a refusal: either way the older one is counted.
            eventually(case, || agent.failed_in_all() + 1 >= tick)?;
        }
        assert_eq!(agent.sent(), 0, "{case}");
        eventually(case, || !said(&endpoint).is_empty())?;
        assert!(said(&endpoint).len() <= 2, "{case}: {:#?}", said(&endpoint));
        agent.exporter.shutdown(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_wait_in_a_bounded_queue_and_the_oldest_go_first() -> Result<()> {
    let receiver = Receiver::start()?;
    let (address, endpoint) = (receiver.address(), receiver.endpoint());
    drop(receiver);
    let options = Options { event_queue: 100, event_batch: 10, ..Options::default() };
    let agent = Agent::start_with(&endpoint, &[], options)?;
    for i in 0..1_000 {
        agent.exporter.event(&Entity::Host, &Retransmit(START + i));
    }
    assert!(agent.exporter.waiting_events() <= 100);
    let dropped = agent.failed("otlp_logs", "queue_full");
    let receiver = Receiver::start_on(address)?;
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    let records = receiver.records();
    assert_eq!(records.len() as u64 + dropped, 1_000, "every event arrived or is counted");
    assert_eq!(records.last().map(|record| record.time), Some(START + 999));
    Ok(())
}

fn own_metrics(workers: usize) -> Result<()> {
    let receiver = Receiver::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    let stats = Arc::new(SelfStats::new());
    let config = config(&receiver.endpoint(), &[("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=own")])?;
    let target = config.metrics.context("a target for metrics")?;
    runtime.block_on(async {
        let telemetry = Telemetry::start(
            &target,
            Temporality::Cumulative,
            &resources()?,
            Duration::from_millis(50),
            &stats,
        )?;
        stats.add(metrics::PROBE_EVENTS, &[attr(key::SIGNAL, "tcp")], 41);
        stats.add(metrics::PROBE_EVENTS_LOST, &[attr(key::SIGNAL, "tcp"), attr(key::WHERE, "ring_full")], 0);
        stats.set(metrics::PROBE_MAP_LIMIT, &[attr(key::MAP, "SOCKETS")], 4_096);
        stats.export_took("otlp_metrics", Duration::from_millis(3));
        let all = [
            "probe.events",
            "probe.events.lost",
            "probe.map.limit",
            "probe.export.duration",
            "process.cpu.time",
            "process.memory.usage",
        ];
        receiver.wait_for("all own metrics, on the reader's interval", DEADLINE, |r| {
            let points = r.points();
            all.iter().all(|name| points.iter().any(|point| point.name == *name)).then_some(())
        })?;
        stats.add(metrics::PROBE_EVENTS, &[attr(key::SIGNAL, "tcp")], 1);
        let ending = Instant::now();
        assert!(telemetry.shutdown(Duration::from_secs(10)).await, "the last export went well");
        assert!(ending.elapsed() < patient(Duration::from_secs(5)), "{:?}", ending.elapsed());
        anyhow::Ok(())
    })?;
    let points = receiver.points();
    let events = find(&points, "probe.events");
    let last = events.last().context("probe.events")?;
    assert_eq!(last.value, PointValue::Sum { value: 42.0, monotonic: true });
    assert_eq!((last.unit.as_str(), last.cumulative), ("{event}", Some(true)));
    assert_eq!(last.attributes.get("signal").map(String::as_str), Some("tcp"));
    assert_eq!(last.resource.get("service.instance.id").map(String::as_str), Some("run-1"));
    assert_eq!(find(&points, "probe.events.lost")[0].value, PointValue::Sum { value: 0.0, monotonic: true });
    assert_eq!(find(&points, "probe.map.limit")[0].value, PointValue::Gauge(4096.0));
    assert!(matches!(find(&points, "probe.export.duration")[0].value, PointValue::Explicit { count: 1, .. }));
    let PointValue::Sum { value: memory, monotonic: false } = find(&points, "process.memory.usage")[0].value
    else {
        panic!("{points:?}")
    };
    assert!(memory > 1e6, "{memory} bytes");
    assert_eq!(receiver.metrics()[0].headers.get("x-tenant").map(String::as_str), Some("own"));
    Ok(())
}

#[test]
fn own_metrics_arrive_and_shutdown_ends() -> Result<()> {
    own_metrics(2)
}

#[test]
fn own_metrics_arrive_and_shutdown_ends_with_a_single_worker() -> Result<()> {
    own_metrics(1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_metrics_do_not_hold_up_the_end_when_the_collector_hangs() -> Result<()> {
    let receiver = Receiver::start()?;
    receiver.set_fault(Fault::Hang);
    let config = config(&receiver.endpoint(), &[("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")])?;
    let target = config.metrics.context("a target for metrics")?;
    let stats = Arc::new(SelfStats::new());
    let telemetry =
        Telemetry::start(&target, Temporality::Cumulative, &resources()?, Duration::from_millis(50), &stats)?;
    receiver.wait_for("an export", DEADLINE, |r| (r.calls() > 0).then_some(()))?;
    let ending = Instant::now();
    assert!(!telemetry.shutdown(Duration::from_millis(300)).await);
    assert!(ending.elapsed() < patient(Duration::from_secs(1)), "{:?}", ending.elapsed());
    Ok(())
}
