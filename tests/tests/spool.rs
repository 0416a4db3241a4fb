//! The agent whose collector is away: what the kernel told it survives it, or is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use probe_tests::drop::Cgroup;
use probe_tests::netns::Netns;
use probe_tests::otlp_receiver::{PointValue, Receiver, Record, records};
use probe_tests::probe::{Probe, in_guest, poll, require_root, run};
use probe_tests::require::own_host;
use probe_tests::workload::Workload;
use probe_user::sink::otlp::spool::segment::{self, State};
use prost::Message as _;
use rustix::process::Signal;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
/// Port 1 of loopback: nobody listens in a namespace of our own.
const NOBODY: &str = "127.0.0.1:1";
const LONG: Duration = Duration::from_secs(60);
/// What the queue in memory holds.
const QUEUE: u64 = 10_000;

/// A directory of the test's own; the spool is below it.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("probe-spool-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn spool(&self) -> Result<String> {
        self.0.join("spool").into_os_string().into_string().ok().context("UTF-8")
    }

    /// Events of refused connects that wait, as the files have them.
    fn refused(&self) -> Result<u64> {
        let mut all = 0;
        for entry in std::fs::read_dir(self.spool()?)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "spool") {
                let bytes = std::fs::read(&path)?;
                // One that was just begun.
                let Ok(contents) = segment::read(&bytes) else { continue };
                for frame in contents.frames.iter().filter(|frame| frame.state == State::Waiting) {
                    let body = bytes.get(frame.body.clone()).context("inside")?;
                    let here = records(&ExportLogsServiceRequest::decode(body)?);
                    all += u64::try_from(here.iter().filter(|record| is_refused(record)).count())?;
                }
            }
        }
        Ok(all)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A connect that is refused is two events: that it failed, and the reset that came.
fn is_refused(record: &Record) -> bool {
    let is = |key: &str, value: &str| record.attributes.get(key).is_some_and(|found| found == value);
    (record.event == "tcp.connect" && is("error.type", "ECONNREFUSED"))
        || (record.event == "tcp.reset" && is("network.io.direction", "receive"))
}

/// A process that connects where nobody listens, and whose events alone are told.
struct Scene {
    _netns: Netns,
    cgroup: Cgroup,
    workload: Workload,
}

impl Scene {
    fn new() -> Result<Self> {
        let netns = Netns::new()?;
        let workload = netns.run(|| Workload::start(WORKLOAD))??;
        let cgroup = Cgroup::new()?;
        cgroup.add(workload.pid())?;
        Ok(Self { _netns: netns, cgroup, workload })
    }

    /// With rings that hold a flood.
    fn probe(&self, endpoint: &str, spool: &[&str]) -> Result<Probe> {
        let common = ["run", "--interval", "1s", "--ring-kib", "16384", "--otlp-endpoint", endpoint];
        Probe::start(&[&common[..], &["--cgroup", self.cgroup.path()], spool].concat())
    }

    /// Connects until it is more than memory holds by far. Returns how many events that is.
    fn flood(&mut self) -> Result<u64> {
        let mut made = 0;
        while made < 3 * QUEUE {
            made += self.refused(300)?;
        }
        Ok(made)
    }

    /// Connects for so long. Returns how many events that is.
    fn refused(&mut self, milliseconds: u32) -> Result<u64> {
        Ok(2 * self.workload.tell(&format!("flood refused {milliseconds} {NOBODY}"))?.parse::<u64>()?)
    }
}

/// Nobody listens there, yet.
fn nobody() -> Result<(std::net::SocketAddr, String)> {
    let receiver = Receiver::start()?;
    Ok((receiver.address(), receiver.endpoint()))
}

/// Those that came, and how many of them differ: no two have time, port and event in common.
fn arrived(receiver: &Receiver) -> (u64, u64) {
    let all: Vec<_> = receiver.records().into_iter().filter(is_refused).collect();
    let port = |record: &Record| record.attributes.get("network.local.port").cloned();
    let different: BTreeSet<_> = all.iter().map(|one| (one.time, port(one), one.event.clone())).collect();
    (all.len() as u64, different.len() as u64)
}

#[test]
fn a_killed_agents_events_arrive_once_from_the_next() -> Result<()> {
    if in_guest() {
        return own_host("a flood of events to disk");
    }
    let dir = Dir::new("killed")?;
    let (address, endpoint) = nobody()?;
    let mut scene = Scene::new()?;
    let spool = dir.spool()?;
    let probe = scene.probe(&endpoint, &["--spool", &spool])?;
    let made = scene.flood()?;
    poll("all are on disk", LONG, || Ok((dir.refused()? >= made).then_some(())))?;
    let modes = |path: &str| -> Result<u32> { Ok(std::fs::metadata(path)?.permissions().mode() & 0o7777) };
    ensure!(modes(&spool)? == 0o700);
    probe.signal(Signal::KILL)?;
    drop(probe);
    ensure!(dir.refused()? == made, "{} of {made}", dir.refused()?);

    let probe = scene.probe(&endpoint, &["--spool", &spool])?;
    let receiver = Receiver::start_on(address)?;
    receiver.wait_for("all events", LONG, |receiver| (arrived(receiver).0 >= made).then_some(()))?;
    // What comes now comes after them, and from somebody else.
    let more = scene.refused(1)?;
    let finished = probe.stop()?;
    ensure!(finished.code == Some(0), "{}", finished.stderr);
    let (count, different) = arrived(&receiver);
    println!("made {made} and {more} events, arrived {count}, {different} of them different");
    ensure!(count == made + more && different == count, "{count} of {made} and {more}");
    let of_before: Vec<Record> =
        receiver.records().into_iter().filter(is_refused).take(usize::try_from(made)?).collect();
    ensure!(of_before.is_sorted_by_key(|record| record.time), "the oldest come first");
    let of = |resource: &BTreeMap<String, String>| resource.get("service.instance.id").cloned();
    let before: BTreeSet<_> = of_before.iter().map(|record| of(&record.resource)).collect();
    let now: BTreeSet<_> = receiver.points().iter().map(|point| of(&point.resource)).collect();
    ensure!(before.len() == 1 && before.is_disjoint(&now), "{before:?} and {now:?}");
    ensure!(dir.refused()? == 0);
    scene.workload.end()
}

/// What there is no room for is counted to the event.
#[test]
fn a_small_spool_keeps_the_newest_and_counts_the_others() -> Result<()> {
    if in_guest() {
        return own_host("a flood of events to disk");
    }
    let dir = Dir::new("small")?;
    let (address, endpoint) = nobody()?;
    let mut scene = Scene::new()?;
    let spool = dir.spool()?;
    let probe = scene.probe(&endpoint, &["--spool", &spool, "--spool-mib", "1"])?;
    let made = scene.flood()?;
    let receiver = Receiver::start_on(address)?;
    // For room on disk, and before that in memory: whatever the disk's pace.
    let lost_for = |receiver: &Receiver, kind: &str| -> u64 {
        let points = receiver.points();
        let last = points.iter().rev().find(|point| {
            let is = |key: &str, value: &str| point.attributes.get(key).is_some_and(|found| found == value);
            point.name == "probe.export.failed" && is("sink", "otlp_logs") && is("error.type", kind)
        });
        last.map_or(0, |point| match point.value {
            PointValue::Sum { value, .. } => value as u64,
            _ => 0,
        })
    };
    let lost = |receiver: &Receiver| lost_for(receiver, "spool_full") + lost_for(receiver, "queue_full");
    receiver.wait_for("all are told of", LONG, |receiver| {
        (arrived(receiver).0 + lost(receiver) >= made).then_some(())
    })?;
    let finished = probe.stop()?;
    let (count, different) = arrived(&receiver);
    let lost = lost(&receiver);
    println!("made {made} events, arrived {count}, lost {lost}");
    ensure!(different == count, "{} came twice", count - different);
    ensure!(lost > 0 && count + lost == made, "{count} and {lost} of {made}: {}", finished.stderr);
    ensure!(finished.stderr.contains("raise --spool-mib"), "{}", finished.stderr);
    scene.workload.end()
}

#[test]
fn a_directory_that_is_of_no_use_is_refused_before_anything_is_attached() -> Result<()> {
    require_root()?;
    let dir = Dir::new("refused")?;
    let (_address, endpoint) = nobody()?;
    let spool = dir.spool()?;
    let start = |spool: &str| -> Result<(Option<i32>, String)> {
        let output = run(["run", "--otlp-endpoint", &endpoint, "--spool", spool])?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    // Root may write there, but gives that right back.
    std::fs::create_dir(&spool)?;
    for (mode, wanted) in [(0o500, "Permission denied"), (0o777, "others than its owner may write to it")] {
        std::fs::set_permissions(&spool, Permissions::from_mode(mode))?;
        let (code, stderr) = start(&spool)?;
        ensure!(
            code == Some(2) && stderr.contains("--spool") && stderr.contains(wanted),
            "{code:?}: {stderr}"
        );
        ensure!(!stderr.contains("running"), "{stderr}");
    }
    std::fs::set_permissions(&spool, Permissions::from_mode(0o700))?;
    let first = Probe::start(&["run", "--otlp-endpoint", &endpoint, "--spool", &spool])?;
    let (code, stderr) = start(&spool)?;
    ensure!(code == Some(2) && stderr.contains("another probe uses it"), "{code:?}: {stderr}");
    first.stop()?;
    let (code, stderr) = start(&format!("{spool}/above/it"))?;
    ensure!(code == Some(2) && stderr.contains("make the directory above it"), "{code:?}: {stderr}");
    let output = run(["run", "--duration", "1s", "--spool", &spool])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && stderr.contains("--spool has nothing to keep"), "{stderr}");
    let (code, stderr) = start("/proc/spool")?;
    ensure!(code == Some(2) && stderr.contains("cannot be used"), "{code:?}: {stderr}");
    Ok(())
}
