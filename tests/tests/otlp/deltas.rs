//! Deltas, and histograms with explicit bounds: what a collector adds up is what was counted, whatever it does.

use super::*;

const DELTA: (&str, &str) = ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta");
const EXPLICIT: (&str, &str) =
    ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "explicit_bucket_histogram");
const HTTP: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");

/// Sum over the deltas of one metric; each begins where those before it ended, or later.
fn sum(points: &[Point], name: &str) -> f64 {
    let mut end = 0;
    let mut sum = 0.0;
    for point in find(points, name) {
        assert_eq!(point.cumulative, Some(false), "{point:?}");
        assert!(end <= point.start && point.start < point.time, "{end}: {point:?}");
        end = point.time;
        sum += match &point.value {
            PointValue::Sum { value, .. } | PointValue::Gauge(value) => *value,
            PointValue::Exponential { count, .. } | PointValue::Explicit { count, .. } => *count as f64,
        };
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_collector_adds_up_is_what_was_counted_whatever_it_does() -> Result<()> {
    let answer = |status| Fault::Answer { status, headers: Vec::new(), body: Vec::new() };
    let refuse = |code| Fault::Refuse(Status::new(code, "not now"));
    for (receiver, env, faults) in [
        (Receiver::start()?, vec![DELTA], [refuse(Code::PermissionDenied), refuse(Code::Unavailable)]),
        (Receiver::start_http()?, vec![DELTA, HTTP], [answer(403), answer(503)]),
    ] {
        let mut agent = Agent::start(&receiver.endpoint(), &env)?;
        let read = [attr(key::SYSCALL_NAME, "read"), attr(key::SYSCALL_CLASS, "work")];
        let mut ticks = 0u32;
        for fault in [Fault::None, faults[0].clone(), Fault::None, faults[1].clone(), Fault::None] {
            let well = matches!(fault, Fault::None);
            receiver.set_fault(fault);
            for _ in 0..5 {
                agent.store.record(&Entity::Host, metrics::SYSCALL_DURATION, &read, Duration::from_millis(3));
                agent.store.set(&Entity::Host, metrics::SYSCALL_IN_FLIGHT, &read[..1], ticks.into());
                ticks += 1;
                let calls = receiver.calls();
                agent.tick();
                if well {
                    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
                } else {
                    receiver.wait_for("an attempt", DEADLINE, |r| (r.calls() > calls).then_some(()))?;
                }
            }
        }
        let points = receiver.points();
        assert_eq!(sum(&points, "system.network.tcp.retransmits"), f64::from(ticks));
        assert_eq!(sum(&points, "process.syscall.duration"), f64::from(ticks));
        let levels = find(&points, "process.syscall.in_flight");
        assert!(levels.iter().all(|level| level.cumulative.is_none()));
        assert_eq!(levels.last().map(|level| &level.value), Some(&PointValue::Gauge(f64::from(ticks - 1))));
        assert!(agent.failed_in_all() > 0, "it was refused");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_for_long_gets_everything_when_it_is_back() -> Result<()> {
    let receiver = Receiver::start()?;
    let (address, endpoint) = (receiver.address(), receiver.endpoint());
    drop(receiver);
    let mut agent = Agent::start(&endpoint, &[DELTA, EXPLICIT])?;
    let read = [attr(key::SYSCALL_NAME, "read"), attr(key::SYSCALL_CLASS, "work")];
    for i in 0..500 {
        agent.store.record(&Entity::Host, metrics::SYSCALL_DURATION, &read, Duration::from_millis(i));
        agent.tick();
    }
    let mut ticks = 500;
    // An attempt is given up for the sake of what is newer: where the first one began late, nothing newer is to come of itself.
    eventually("an attempt", || {
        agent.tick();
        ticks += 1;
        agent.failed_in_all() > 0
    })?;
    let receiver = Receiver::start_on(address)?;
    agent.tick();
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    let points = receiver.points();
    assert_eq!(sum(&points, "system.network.tcp.retransmits"), f64::from(ticks + 1));
    assert_eq!(sum(&points, "process.syscall.duration"), 500.0);
    // One, or two: an attempt at what was there first may meet the collector that has just come back.
    let (mut seconds, mut short) = (0.0, 0);
    for point in find(&points, "process.syscall.duration") {
        let PointValue::Explicit { count, sum, bounds, buckets } = &point.value else { panic!("{point:?}") };
        assert_eq!((buckets.iter().sum::<u64>(), buckets.len()), (*count, bounds.len() + 1));
        assert_eq!((bounds.len(), bounds[18], point.unit.as_str()), (24, 0.25, "s"));
        seconds += sum;
        // One a power of two: up to 2^-2 s are 0 to 249 ms; what is on an edge is counted above it.
        short += bounds.iter().zip(buckets).filter(|(bound, _)| **bound <= 0.25).map(|(_, n)| n).sum::<u64>();
    }
    assert!((seconds - 124.75).abs() < 1e-6, "{seconds}");
    assert_eq!(short, 250);
    assert_eq!(points[0].start, START);
    Ok(())
}

/// Too large at once: those parts that are refused come again, and no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_goes_in_parts_only_what_was_refused_comes_again() -> Result<()> {
    let largest = 48 << 10;
    let receiver = Receiver::http(Settings { largest: Some(largest), ..Settings::default() })?;
    let mut agent = Agent::start(&receiver.endpoint(), &[DELTA, HTTP])?;
    let mut expected = 0.0;
    for round in 0..4 {
        let series = fill(&mut agent) as f64;
        expected += series * 1_001.0 / 2.0;
        // While it has some of the parts, it begins to refuse.
        if round % 2 == 0 {
            let calls = receiver.calls();
            receiver.wait_for("some parts", DEADLINE, |r| (r.calls() >= calls + 3).then_some(()))?;
            receiver.set_fault(Fault::Answer { status: 403, headers: Vec::new(), body: Vec::new() });
        }
        assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
        receiver.set_fault(Fault::None);
    }
    let total: f64 = receiver
        .points()
        .iter()
        .map(|point| if let PointValue::Sum { value, .. } = point.value { value } else { f64::NAN })
        .sum();
    assert_eq!(total, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_own_are_deltas_too() -> Result<()> {
    let receiver = Receiver::start()?;
    let config = config(&receiver.endpoint(), &[DELTA])?;
    let target = config.metrics.context("a target for metrics")?;
    let stats = Arc::new(SelfStats::new());
    stats.add(metrics::PROBE_EVENTS, &[attr(key::SIGNAL, "tcp")], 7);
    let temporality = config.preferences.temporality;
    let every = Duration::from_millis(50);
    let telemetry = Telemetry::start(&target, temporality, &resources()?, every, &stats)?;
    let point = receiver.wait_for("its own metrics", DEADLINE, |r| {
        r.points().into_iter().find(|point| point.name == "probe.events")
    })?;
    assert_eq!(
        (point.cumulative, &point.value),
        (Some(false), &PointValue::Sum { value: 7.0, monotonic: true })
    );
    assert!(telemetry.shutdown(DEADLINE).await);
    let memory = receiver.points();
    let memory = find(&memory, "process.memory.usage");
    assert!(memory.iter().all(|point| point.cumulative == Some(true)), "a level stays one");
    Ok(())
}
