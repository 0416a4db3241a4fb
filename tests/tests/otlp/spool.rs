//! What waits on disk while a collector is away.

use std::path::{Path, PathBuf};

use probe_tests::probe::require_root;
use probe_user::sink::otlp::Spool;
use probe_user::sink::otlp::spool::segment::{self, FRAME_HEAD, HEADER};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;

const MIB: u64 = 1 << 20;

/// A directory of the test's own.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("probe-spooled-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn spool(&self) -> PathBuf {
        self.0.join("spool")
    }

    /// Oldest first.
    fn segments(&self) -> Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.spool())? {
            all.push(entry?.path());
        }
        all.retain(|path| path.extension().is_some_and(|extension| extension == "spool"));
        all.sort();
        Ok(all)
    }

    fn items(&self) -> Result<u64> {
        let mut items = 0;
        for path in self.segments()? {
            let contents = segment::read(&std::fs::read(&path)?).map_err(|why| anyhow::anyhow!("{why:?}"))?;
            let waiting = contents.frames.iter().filter(|frame| frame.state == segment::State::Waiting);
            items += waiting.map(|frame| u64::from(frame.items)).sum::<u64>();
        }
        Ok(items)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// An agent with a spool.
fn spooling(endpoint: &str, dir: &Path, most: u64, options: Options) -> Result<(Agent, Arc<Spool>)> {
    let stats = Arc::new(SelfStats::new());
    let spool = Arc::new(Spool::open(dir, most, &stats)?);
    Ok((with(endpoint, &spool, stats, options)?, spool))
}

/// An agent with a spool that is there.
fn with(endpoint: &str, spool: &Arc<Spool>, stats: Arc<SelfStats>, options: Options) -> Result<Agent> {
    let options = Options {
        first_back_off: Duration::from_millis(20),
        longest_back_off: Duration::from_millis(200),
        event_delay: Duration::from_millis(50),
        ..options
    };
    let (config, resources) = (config(endpoint, &[])?, Arc::new(resources()?));
    let spool = Some(Arc::clone(spool));
    let exporter = Exporter::start_with(&config, resources, stats.clone(), options, None, spool)?;
    Ok(Agent { exporter, stats, store: Store::new(Limits::default(), START), now: START })
}

/// Nobody listens there, yet.
fn nobody() -> Result<(SocketAddr, String)> {
    let receiver = Receiver::start()?;
    Ok((receiver.address(), receiver.endpoint()))
}

fn times(receiver: &Receiver) -> Vec<u64> {
    receiver.records().iter().map(|record| record.time - START).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_arrive_once_and_in_order_when_the_collector_is_back() -> Result<()> {
    let dir = Dir::new("back")?;
    let (address, endpoint) = nobody()?;
    let options = Options { event_queue: 100, event_batch: 10, ..Options::default() };
    let (agent, _spool) = spooling(&endpoint, &dir.spool(), MIB, options)?;
    let mut made = 0;
    while made < 10 {
        agent.exporter.event(&Entity::Host, &Retransmit(START + made));
        made += 1;
    }
    // What is under way in the first attempt that fails comes to disk after what had no room meanwhile.
    eventually("the first are on disk", || dir.items().is_ok_and(|items| items == made))?;
    // More than fit into the queue at a time, as fast as the disk takes them.
    while made < 1_000 {
        if agent.exporter.waiting_events() < 90 {
            agent.exporter.event(&Entity::Host, &Retransmit(START + made));
            made += 1;
        } else {
            tokio::task::yield_now().await;
        }
    }
    eventually("all but what is under way is on disk", || dir.items().is_ok_and(|items| items == made))?;
    let lines = said(&endpoint);
    assert!(lines.len() == 1 && lines[0].contains("events on disk (--spool)"), "{lines:?}");
    let receiver = Receiver::start_on(address)?;
    receiver.wait_for("all events", DEADLINE, |r| (times(r).len() as u64 >= made).then_some(()))?;
    assert_eq!(times(&receiver), (0..made).collect::<Vec<_>>());
    eventually("sent segments are gone", || dir.segments().is_ok_and(|segments| segments.is_empty()))?;
    // From then on nothing goes to disk.
    agent.exporter.event(&Entity::Host, &Retransmit(START + made));
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    assert_eq!((times(&receiver).last(), dir.segments()?.len()), (Some(&made), 0));
    assert_eq!(agent.failed_in_all(), 0);
    Ok(())
}

/// A queue that is nearly full goes to disk though the collector takes everything, slowly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_queue_has_no_room_for_goes_to_disk() -> Result<()> {
    let dir = Dir::new("slow")?;
    let receiver = Receiver::start()?;
    receiver.set_fault(Fault::Hang);
    let options = Options { event_queue: 100, event_batch: 10, ..Options::default() };
    let (agent, _spool) = spooling(&receiver.endpoint(), &dir.spool(), MIB, options)?;
    for event in 0..90 {
        agent.exporter.event(&Entity::Host, &Retransmit(START + event));
    }
    // The first request is under way for ten seconds.
    eventually("half of the queue is on disk", || agent.exporter.waiting_events() <= 50)?;
    assert!(dir.items()? >= 30);
    agent.exporter.shutdown(Duration::from_millis(100)).await;
    assert_eq!(dir.items()?, 90, "what was under way as well");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_sends_what_was_left_as_it_was_and_a_torn_tail_is_counted() -> Result<()> {
    let dir = Dir::new("restart")?;
    let (address, endpoint) = nobody()?;
    let (agent, spool) = spooling(&endpoint, &dir.spool(), MIB, Options::default())?;
    let owner = container("c0ffee", None, Some("pod-uid-1"));
    for event in 0..500 {
        agent.exporter.event(&owner, &Retransmit(START + event));
    }
    eventually("they are on disk", || dir.items().is_ok_and(|items| items == 500))?;
    for event in 500..600 {
        agent.exporter.event(&owner, &Retransmit(START + event));
    }
    let stats = agent.stats.clone();
    agent.exporter.shutdown(Duration::from_millis(100)).await;
    assert_eq!(dir.items()?, 600);
    assert!(stats.all(metrics::PROBE_EXPORT_FAILED).is_empty(), "nothing is lost");
    drop(spool);

    // As a crash would: the last frame is not there to its end.
    let last = dir.segments()?.pop().context("a segment")?;
    let bytes = std::fs::read(&last)?;
    let frames = segment::read(&bytes).map_err(|why| anyhow::anyhow!("{why:?}"))?.frames;
    let torn = frames.last().context("a frame")?;
    assert!(torn.at >= HEADER && torn.body.len() > FRAME_HEAD);
    std::fs::write(&last, &bytes[..torn.body.end - 1])?;
    let lost = u64::from(torn.items);

    let receiver = Receiver::start_on(address)?;
    let (agent, _spool) = spooling(&endpoint, &dir.spool(), MIB, Options::default())?;
    agent.exporter.event(&owner, &Retransmit(START + 600));
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    let wanted: Vec<u64> = (0..600 - lost).chain([600]).collect();
    assert_eq!(times(&receiver), wanted);
    assert_eq!((agent.failed("otlp_logs", "spool_damaged"), agent.failed_in_all()), (lost, lost));
    for record in receiver.records() {
        let of = |key: &str| record.resource.get(key).map(String::as_str);
        assert_eq!((of("service.instance.id"), of("k8s.pod.uid")), (Some("run-1/c0ffee"), Some("pod-uid-1")));
    }
    Ok(())
}

/// Delivered and lost together are what was made, whatever the collector says meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_holds_and_what_it_costs_is_counted() -> Result<()> {
    let dir = Dir::new("limit")?;
    let receiver = Receiver::start()?;
    receiver.set_fault(Fault::Refuse(Status::unavailable("later")));
    let (agent, _spool) = spooling(&receiver.endpoint(), &dir.spool(), MIB, Options::default())?;
    let mut made = 0u64;
    while agent.failed("otlp_logs", "spool_full") < 5_000 {
        if agent.exporter.waiting_events() < 9_000 {
            agent.exporter.event(&Entity::Host, &Retransmit(START + made));
            made += 1;
        } else {
            tokio::task::yield_now().await;
        }
    }
    let octets = |dir: &Dir| -> Result<u64> {
        dir.segments()?.iter().map(|path| Ok(std::fs::metadata(path)?.len())).sum()
    };
    assert!(octets(&dir)? <= MIB);
    receiver.set_fault(Fault::None);
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    let mut arrived = times(&receiver);
    let lost = agent.failed("otlp_logs", "spool_full");
    println!("made {made}, delivered {}, lost {lost}", arrived.len());
    assert_eq!((arrived.len() as u64 + lost, agent.failed_in_all()), (made, lost));
    assert_eq!(arrived.last(), Some(&(made - 1)), "the oldest went");
    arrived.sort_unstable();
    arrived.dedup();
    assert_eq!(arrived.len() as u64 + lost, made, "none came twice");
    Ok(())
}

/// What the collector refuses for good is not tried for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_for_good_does_not_stay() -> Result<()> {
    let dir = Dir::new("refused")?;
    let (address, endpoint) = nobody()?;
    let (agent, _spool) = spooling(&endpoint, &dir.spool(), MIB, Options::default())?;
    for event in 0..10 {
        agent.exporter.event(&Entity::Host, &Retransmit(START + event));
    }
    eventually("they are on disk", || dir.items().is_ok_and(|items| items == 10))?;
    let receiver = Receiver::start_on(address)?;
    receiver.set_fault(Fault::Refuse(Status::invalid_argument("not like this")));
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    assert_eq!((agent.failed("otlp_logs", "invalid_argument"), dir.items()?), (10, 0));
    Ok(())
}

/// Another collector gets what waits, once, from memory and disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_collector_takes_over_what_waits() -> Result<()> {
    let dir = Dir::new("other")?;
    let (_address, endpoint) = nobody()?;
    let (agent, spool) = spooling(&endpoint, &dir.spool(), MIB, Options::default())?;
    for event in 0..100 {
        agent.exporter.event(&Entity::Host, &Retransmit(START + event));
    }
    eventually("they are on disk", || dir.items().is_ok_and(|items| items == 100))?;
    for event in 100..200 {
        agent.exporter.event(&Entity::Host, &Retransmit(START + event));
    }
    let receiver = Receiver::start()?;
    let other = with(&receiver.endpoint(), &spool, agent.stats.clone(), Options::default())?;
    other.exporter.take_over(&agent.exporter);
    let (_, flushed) =
        tokio::join!(agent.exporter.shutdown(Duration::from_millis(200)), other.exporter.flush(DEADLINE));
    assert_eq!(flushed, Flushed::Done);
    // What the first was sending when it ended may have come to disk after that.
    receiver.wait_for("all events", DEADLINE, |r| (times(r).len() >= 200).then_some(()))?;
    let mut arrived = times(&receiver);
    arrived.sort_unstable();
    assert_eq!((arrived, other.failed_in_all()), ((0..200).collect(), 0));
    Ok(())
}

/// A file system of a certain size.
struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_leaves_events_in_memory_and_none_is_lost_unseen() -> Result<()> {
    require_root()?;
    let dir = Dir::new("full")?;
    mount("tmpfs", &dir.0, "tmpfs", MountFlags::empty(), c"size=256k")?;
    let _disk = SmallDisk(dir.0.clone());
    let (address, endpoint) = nobody()?;
    let options = Options { event_queue: 1_000, event_batch: 100, ..Options::default() };
    let (agent, _spool) = spooling(&endpoint, &dir.spool(), 64 * MIB, options)?;
    let mut made = 0u64;
    let is_full = || {
        let log = log();
        let log = log.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&log).contains("No space left on device")
    };
    let end = Instant::now() + DEADLINE;
    // More than the disk and the queue hold.
    while !made.is_multiple_of(100) || !is_full() || agent.failed("otlp_logs", "queue_full") < 100 {
        ensure!(Instant::now() < end, "{made} events, and the disk is not full");
        agent.exporter.event(&Entity::Host, &Retransmit(START + made));
        made += 1;
        tokio::task::yield_now().await;
    }
    let receiver = Receiver::start_on(address)?;
    assert_eq!(agent.exporter.flush(DEADLINE).await, Flushed::Done);
    let lost = agent.failed_in_all();
    let mut arrived = times(&receiver);
    println!("made {made}, delivered {}, lost {lost}", arrived.len());
    arrived.sort_unstable();
    arrived.dedup();
    assert_eq!(arrived.len() as u64 + lost, made);
    assert_eq!(arrived.last(), Some(&(made - 1)));
    Ok(())
}
