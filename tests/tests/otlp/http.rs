//! The same over HTTP.

use probe_tests::probe::in_guest;

use super::*;

const HTTP: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_and_events_arrive_with_headers_and_compressed() -> Result<()> {
    let receiver = Receiver::start_http()?;
    for compression in ["none", "gzip", "zstd"] {
        let env = [
            HTTP,
            ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20t0ken,x-tenant=a"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", compression),
        ];
        let mut agent = Agent::start(&receiver.endpoint(), &env)?;
        agent.tick();
        agent.exporter.event(&container("c0ffee", None, None), &Retransmit(START + 5));
        assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
        assert_eq!((agent.sent(), agent.failed_in_all()), (1, 0), "{compression}");
        let (metrics, logs) = (receiver.metrics(), receiver.logs());
        let last = [metrics.last().map(|m| &m.headers), logs.last().map(|l| &l.headers)];
        for headers in last {
            let of = |name: &str| headers.and_then(|headers| headers.get(name)).map(String::as_str);
            assert_eq!(of("authorization"), Some("Bearer t0ken"));
            assert_eq!(of("x-tenant"), Some("a"));
            assert_eq!(of("content-type"), Some("application/x-protobuf"));
            assert_eq!(of("content-encoding"), (compression != "none").then_some(compression));
            assert!(of("user-agent").is_some_and(|agent| agent.starts_with("probe/")));
        }
        let points = receiver.points();
        let point = points.last().context("a point")?;
        assert_eq!(point.value, PointValue::Sum { value: 1.0, monotonic: true });
        assert_eq!(point.resource.get("k8s.node.name").map(String::as_str), Some("node-7"));
        let records = receiver.records();
        let record = records.last().context("a record")?;
        assert_eq!((record.event.as_str(), record.time), ("tcp.retransmit", START + 5));
        assert_eq!(record.resource.get("container.id").map(String::as_str), Some("c0ffee"));
    }
    Ok(())
}

fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Fault {
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Fault::Answer { status, headers, body: body.as_bytes().to_vec() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_for_good_is_counted_and_not_tried_again() -> Result<()> {
    for (kind, status) in [
        ("bad_request", 400),
        ("unauthorized", 401),
        ("content_too_large", 413),
        ("internal_server_error", 500),
        ("redirection", 302),
    ] {
        let fault = answer(status, &[("location", "http://127.0.0.1:1/")], "not like this");
        is_counted_and_not_tried_again(&Receiver::start_http()?, fault, &[HTTP], kind).await?;
    }
    Ok(())
}

/// Who does not unpack what it is sent is told with what it may unpack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compression_that_is_not_known_is_told_with_the_way_out() -> Result<()> {
    let zstd = ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd");
    let of_grpc = Status::unimplemented("Content is encoded with `zstd` which isn't supported");
    for (receiver, fault, env) in [
        (Receiver::start_http()?, answer(415, &[], ""), vec![HTTP, zstd]),
        (Receiver::start()?, Fault::Refuse(of_grpc), vec![zstd]),
    ] {
        receiver.set_fault(fault);
        let mut agent = Agent::start(&receiver.endpoint(), &env)?;
        agent.tick();
        assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
        let said = said(&receiver.endpoint());
        assert!(said.iter().any(|line| line.contains("--otlp-compression gzip, or none")), "{said:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_for_now_is_tried_again() -> Result<()> {
    for fault in [
        answer(429, &[], ""),
        answer(502, &[], ""),
        answer(503, &[], "later"),
        answer(504, &[], ""),
        // Somebody else's page is no success.
        answer(200, &[("content-type", "text/html")], "<html>log in</html>"),
    ] {
        is_tried_again(&Receiver::start_http()?, fault, &[HTTP]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_arrives_in_parts() -> Result<()> {
    let largest = 48 << 10;
    let receiver = Receiver::http(Settings { largest: Some(largest), ..Settings::default() })?;
    arrives_in_parts(&receiver, largest, &[HTTP]).await
}

/// Who refuses even a little for its size is not asked a thousand times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_finds_everything_too_large_is_asked_a_few_times() -> Result<()> {
    let receiver = Receiver::http(Settings { largest: Some(1), ..Settings::default() })?;
    let mut agent = Agent::start(&receiver.endpoint(), &[HTTP])?;
    let series = fill(&mut agent) as u64;
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    let failed = |sink| agent.failed(sink, "content_too_large");
    assert_eq!((failed("otlp_metrics"), failed("otlp_logs")), (series, 2_000));
    assert_eq!((agent.sent(), agent.failed_in_all()), (0, series + 2_000));
    assert!((10..30).contains(&receiver.calls()), "{} calls", receiver.calls());
    let lines = said(&receiver.endpoint());
    let refused = lines.iter().filter(|line| line.contains("WARN") && line.contains("is refused"));
    assert_eq!(refused.count(), 1, "{lines:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_after_is_honoured() -> Result<()> {
    let receiver = Receiver::start_http()?;
    receiver.set_fault(answer(429, &[("retry-after", "1")], ""));
    let mut agent = Agent::start(&receiver.endpoint(), &[HTTP])?;
    agent.tick();
    receiver.wait_for("an attempt", DEADLINE, |r| (r.calls() == 1).then_some(()))?;
    let asked = Instant::now();
    receiver.set_fault(Fault::None);
    receiver.wait_for("the snapshot", DEADLINE, |r| r.points().first().cloned())?;
    // The agent's own first wait would have been 20 ms. What passed before the first attempt was seen here is not in it.
    assert!(asked.elapsed() > Duration::from_millis(800), "{:?}", asked.elapsed());
    assert_eq!((receiver.calls(), agent.failed_in_all()), (2, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_success_is_counted_and_not_sent_again() -> Result<()> {
    let receiver = Receiver::start_http()?;
    receiver.set_fault(Fault::Partial { rejected: 1, message: "too old".to_owned() });
    let mut agent = Agent::start(&receiver.endpoint(), &[HTTP])?;
    agent.tick();
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    assert_eq!((receiver.calls(), agent.sent(), agent.failed("otlp_metrics", "rejected")), (1, 0, 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_or_hangs_up_costs_no_total() -> Result<()> {
    let receiver = Receiver::start_http()?;
    receiver.set_fault(Fault::Hang);
    let mut agent = Agent::start(&receiver.endpoint(), &[HTTP, ("OTEL_EXPORTER_OTLP_TIMEOUT", "100")])?;
    for _ in 0..100 {
        agent.tick();
    }
    receiver.wait_for("a second attempt", DEADLINE, |r| (r.calls() >= 2).then_some(()))?;
    receiver.set_fault(Fault::None);
    receiver.wait_for("the newest snapshot", DEADLINE, |r| {
        r.points()
            .last()
            .filter(|point| point.value == PointValue::Sum { value: 100.0, monotonic: true })
            .cloned()
    })?;

    // One that breaks off in the middle of its answer, and one that does not speak HTTP.
    for nonsense in ["HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort", "SSH-2.0-OpenSSH_9.2\r\n", ""] {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let mut agent = Agent::start(&endpoint, &[HTTP])?;
        agent.tick();
        for _ in 0..2 {
            let (mut stream, _) = listener.accept()?;
            let mut request = [0; 16];
            let _read = stream.read(&mut request)?;
            stream.write_all(nonsense.as_bytes())?;
        }
        eventually("it is counted, or tried on", || said(&endpoint).len() == 1)?;
        assert_eq!(agent.sent(), 0, "{nonsense:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_metrics_arrive_and_shutdown_ends() -> Result<()> {
    let receiver = Receiver::start_http()?;
    let env =
        [HTTP, ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a"), ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")];
    let target = config(&receiver.endpoint(), &env)?.metrics.context("a target for metrics")?;
    let stats = Arc::new(SelfStats::new());
    stats.add(metrics::PROBE_EVENTS, &[attr(key::SIGNAL, "tcp")], 7);
    let telemetry =
        Telemetry::start(&target, Temporality::Cumulative, &resources()?, Duration::from_millis(50), &stats)?;
    let point = receiver.wait_for("its own metrics", DEADLINE, |r| {
        r.points().into_iter().find(|point| point.name == "probe.events")
    })?;
    assert_eq!(point.value, PointValue::Sum { value: 7.0, monotonic: true });
    assert_eq!(receiver.metrics()[0].headers.get("x-tenant").map(String::as_str), Some("a"));
    assert!(telemetry.shutdown(DEADLINE).await);
    Ok(())
}

/// What goes wrong first: the port of the other protocol, and TLS where there is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_port_or_scheme_is_named_with_the_way_out() -> Result<()> {
    let (grpc, http) = (Receiver::start()?, Receiver::start_http()?);
    let mut cases = vec![(grpc.endpoint(), "--otlp-protocol grpc")];
    // Virtual machines of the tests have no certificate authorities, without which TLS is not begun.
    if !in_guest() {
        let secure = format!("https://localhost:{}", http.address().port());
        cases.push((secure, "http:// and not https://"));
    }
    for (endpoint, way_out) in cases {
        let mut agent = Agent::start(&endpoint, &[HTTP])?;
        agent.tick();
        eventually("it is said", || !said(&endpoint).is_empty())?;
        assert!(said(&endpoint)[0].contains(way_out), "{:?}", said(&endpoint));
    }
    Ok(())
}
