//! Containers and systemd units: who is in which, however short it lived, by Kubernetes', systemd's and real Docker's cgroups.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use probe_tests::drop::Cgroup;
use probe_tests::probe::{Finished, Line, Probe, in_guest};
use probe_tests::workload::Workload;

#[path = "containers/docker.rs"]
mod docker;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

/// How long a daemon may take to start.
const LONG: Duration = Duration::from_secs(30);

/// Calls of munlockall(2) by container, of a whole run.
fn calls_of(finished: &Finished) -> BTreeMap<String, i64> {
    calls_by(finished, "container.id")
}

fn calls_by(finished: &Finished, key: &str) -> BTreeMap<String, i64> {
    let mut calls = BTreeMap::new();
    let of_them = |line: &&Line| line.text("syscall.name") == Some("munlockall");
    for line in finished.lines.iter().filter(of_them) {
        if let Some(id) = line.text(key) {
            *calls.entry(id.to_owned()).or_default() += line.int("count").unwrap_or_default();
        }
    }
    calls
}

/// Gone, cgroup and all, before an interval ends in which anybody could look.
#[test]
fn containers_that_live_for_a_moment_are_named() -> Result<()> {
    let count = if in_guest() { 12 } else { 60 };
    let outer = Cgroup::new()?;
    let pod = outer.below("kubepods-burstable-podb3a9c1d2_0e4f_4a5b_8c6d_7e8f9a0b1c2d.slice")?;
    // Nobody looks before the end.
    let probe = Probe::start(&["syscalls", "--syscall", "munlockall", "--interval", "1h"])?;
    let mut expected = BTreeMap::new();
    for number in 1..=count {
        let id = format!("{number:064x}");
        let cgroup = pod.below(&format!("cri-containerd-{id}.scope"))?;
        let mut workload = Workload::start(WORKLOAD)?;
        cgroup.add(workload.pid())?;
        workload.tell(&format!("munlockall {number}"))?;
        workload.end()?;
        drop(cgroup);
        expected.insert(id, i64::from(number));
    }
    let finished = probe.stop()?;
    finished.require_complete()?;
    let found = calls_of(&finished);
    ensure!(found == expected, "{} of {}: {found:?}", found.len(), expected.len());
    let uid = "b3a9c1d2-0e4f-4a5b-8c6d-7e8f9a0b1c2d";
    let of_pod = |line: &&Line| line.text("k8s.pod.uid") == Some(uid);
    ensure!(finished.lines.iter().filter(of_pod).count() >= expected.len(), "pods are not named");
    Ok(())
}

#[test]
fn units_are_owners() -> Result<()> {
    let slice = Cgroup::slice()?;
    let service = slice.below("probe-test.service")?;
    let worker = service.below("worker")?;
    let probe =
        Probe::start(&["syscalls", "--syscall", "munlockall", "--by", "container", "--interval", "1h"])?;
    for (cgroup, order) in [(&service, "munlockall 3"), (&worker, "munlockall 4")] {
        let mut workload = Workload::start(WORKLOAD)?;
        cgroup.add(workload.pid())?;
        workload.tell(order)?;
        workload.end()?;
    }
    let finished = probe.stop()?;
    finished.require_complete()?;
    let found = calls_by(&finished, "systemd.unit.name");
    ensure!(found == [("probe-test.service".to_owned(), 7)].into(), "{found:?}");
    Ok(())
}
