//! What goes beyond the signals' needs: what each takes, and what is lost without.

use std::path::Path;

use caps::Capability;

use super::signals::Tried;
use super::{Check, Diagnosis, Host};
use crate::kernel::cgroup::{CgroupError, CgroupRoot};
use crate::load::{PIN_DIRECTORY, Pinned};

pub(super) fn checks(host: &Host, cgroup: &Result<CgroupRoot, CgroupError>, tried: &Tried) -> Vec<Check> {
    let held = |capability| match &host.privileges {
        Ok(privileges) => privileges.has(capability),
        Err(_) => false,
    };
    vec![
        executables(host.host_pids, held(Capability::CAP_SYS_PTRACE)),
        older_sockets(host.host_pids, tried.older.as_ref()),
        names(tried.names.as_ref()),
        short_lived(tried.cgroups.as_ref(), cgroup),
        destinations(held(Capability::CAP_NET_ADMIN)),
        stacks(held(Capability::CAP_PERFMON), held(Capability::CAP_SYSLOG)),
        statistics(host.features.bpf_stats, held(Capability::CAP_SYS_ADMIN)),
        private_cgroup(cgroup),
        pinned(Pinned::at(Path::new(PIN_DIRECTORY))),
    ]
}

fn pinned(found: Pinned) -> Check {
    const NAME: &str = "pinned programs";
    match found {
        Pinned::Nothing => Check::ok(NAME, format!("none; `probe run --pin` leaves some in {PIN_DIRECTORY}")),
        Pinned::Running => Check::ok(NAME, format!("{PIN_DIRECTORY} is in use by an agent that runs")),
        Pinned::Waiting(links) => Check::degraded(
            NAME,
            format!(
                "{links} in {PIN_DIRECTORY} run, and no agent reads what they find; they cost what they cost"
            ),
        )
        .fix(format!("go on with them: `probe run --pin`; or end them: rm -r {PIN_DIRECTORY}")),
    }
}

const fn word(held: bool) -> &'static str {
    if held { "held" } else { "not held" }
}

fn executables(host_pids: bool, ptrace: bool) -> Check {
    const NAME: &str = "other users' executables";
    match (host_pids, ptrace) {
        (true, true) => Check::ok(NAME, "read from /proc, with CAP_SYS_PTRACE"),
        (true, false) => Check::degraded(
            NAME,
            "CAP_SYS_PTRACE is not held; lost: process.executable.name of other users' processes (their comm is \
             known all the same)",
        )
        .fix("grant CAP_SYS_PTRACE"),
        (false, _) => Check::degraded(NAME, "lost, whatever the capabilities: pids are not the host's here")
            .fix("run in the host's pid namespace (Kubernetes: hostPID: true)"),
    }
}

fn older_sockets(host_pids: bool, older: Option<&Result<(), Diagnosis>>) -> Check {
    const NAME: &str = "owners of older sockets";
    const LOST: &str =
        "lost: pid and comm of connections that began before probe, their segments and round-trip times";
    match older {
        Some(Ok(())) if !host_pids => Check::degraded(
            NAME,
            format!("found where their processes are of this pid namespace; {LOST}, else"),
        )
        .fix("run in the host's pid namespace (Kubernetes: hostPID: true)"),
        Some(Ok(())) => Check::ok(
            NAME,
            "found, in every network namespace: a program walks once over all open files (iter/task_file)",
        ),
        Some(Err(Diagnosis { detail, remedy, .. })) => {
            let fix = remedy.as_deref().unwrap_or("start probe before what it is to watch");
            Check::degraded(NAME, format!("{detail}; {LOST}")).fix(fix)
        }
        None => Check::degraded(NAME, format!("not looked for, because tcp cannot run; {LOST}"))
            .fix("see the check `signal tcp`"),
    }
}

fn names(tried: Option<&Result<(), Diagnosis>>) -> Check {
    const NAME: &str = "names of peers";
    const LOST: &str = "lost: network.peer.name of tcp's events";
    match tried {
        Some(Ok(())) => Check::ok(NAME, "out of DNS answers over UDP, in every network namespace"),
        Some(Err(Diagnosis { detail, remedy, .. })) => {
            let check = Check::degraded(NAME, format!("{detail}; {LOST}"));
            check.fix(remedy.as_deref().unwrap_or("see the check `signal dns`"))
        }
        None => Check::degraded(NAME, format!("not tried; {LOST}")).fix("see the check `signal dns`"),
    }
}

fn short_lived(tried: Option<&Result<(), Diagnosis>>, cgroup: &Result<CgroupRoot, CgroupError>) -> Check {
    const NAME: &str = "names of short-lived containers";
    const LOST: &str = "lost: container.id of what lives for less than a second";
    match tried {
        Some(Ok(())) if cgroup.is_err() => {
            Check::degraded(NAME, format!("of no use without cgroup v2; {LOST}"))
                .fix("see the check `cgroup v2`")
        }
        Some(Ok(())) => Check::ok(NAME, "learned as their cgroups are made"),
        Some(Err(Diagnosis { detail, remedy, .. })) => {
            let check = Check::degraded(NAME, format!("{detail}; {LOST}"));
            check.fix(remedy.as_deref().unwrap_or("see the check `signal tcp`"))
        }
        None => Check::degraded(NAME, format!("not tried; {LOST}")).fix("see the check `signal tcp`"),
    }
}

fn destinations(net_admin: bool) -> Check {
    // Not tried: a question would make the kernel load its modules.
    let detail = format!(
        "not asked; nothing is lost but them. --nat asks the connection tracking of this network namespace, which takes \
         CAP_NET_ADMIN ({}), and keeps it",
        word(net_admin)
    );
    Check::ok("destinations behind NAT", detail)
}

fn stacks(perfmon: bool, syslog: bool) -> Check {
    let detail = format!(
        "not used; nothing is lost. They take CAP_PERFMON ({}), and names for their addresses CAP_SYSLOG ({})",
        word(perfmon),
        word(syslog)
    );
    Check::ok("kernel stacks", detail)
}

fn statistics(enabled: Option<bool>, sys_admin: bool) -> Check {
    let detail = match enabled {
        Some(true) => {
            "on: the kernel takes the time of every run of a program (kernel.bpf_stats_enabled)".to_owned()
        }
        Some(false) => format!(
            "off; nothing is lost but run time and number of runs of each program. `probe run --program-stats` has them counted \
             while it runs, which takes CAP_SYS_ADMIN at its start ({}); kernel.bpf_stats_enabled=1 has them counted always",
            word(sys_admin)
        ),
        None => "not known: kernel.bpf_stats_enabled does not read here; only --program-stats needs them"
            .to_owned(),
    };
    Check::ok("bpf statistics", detail)
}

fn private_cgroup(cgroup: &Result<CgroupRoot, CgroupError>) -> Check {
    const NAME: &str = "private cgroup mount";
    match cgroup {
        Ok(root) if root.is_private() => Check::ok(NAME, "in use, with CAP_SYS_ADMIN"),
        Ok(_) => Check::ok(NAME, "not needed: cgroup v2 is mounted (without a mount it takes CAP_SYS_ADMIN)"),
        Err(CgroupError::NotMounted(error)) => Check::unavailable(
            NAME,
            format!("cgroup v2 is mounted nowhere, and mounting it failed: {error}; lost: dns, and names of cgroups"),
        )
        .fix("grant CAP_SYS_ADMIN, or run: mount -t cgroup2 none /sys/fs/cgroup/unified"),
        Err(_) => Check::ok(NAME, "of no help: see the check `cgroup v2`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;
    use crate::doctor::host::tests::host;
    use crate::kernel::privileges::Privileges;

    fn status(host: &Host, cgroup: &Result<CgroupRoot, CgroupError>, name: &str) -> Status {
        checks(host, cgroup, &Tried::default()).into_iter().find(|check| check.check == name).unwrap().status
    }

    #[test]
    fn what_is_lost_by_what_is_missing() {
        use Status::{Degraded, Ok, Unavailable};
        let namespaced = || Err(CgroupError::Namespaced { path: "/sys/fs/cgroup".into(), inode: 7 });
        let unmounted = || Err(CgroupError::NotMounted(std::io::ErrorKind::PermissionDenied.into()));
        let least = host();
        let mut tracing = host();
        tracing.privileges = Result::Ok(Privileges::of(&[Capability::CAP_SYS_PTRACE]));
        let mut contained = tracing.clone();
        contained.host_pids = false;
        let cases = [
            (&least, namespaced(), "other users' executables", Degraded),
            (&tracing, namespaced(), "other users' executables", Ok),
            (&contained, namespaced(), "other users' executables", Degraded),
            (&least, namespaced(), "private cgroup mount", Ok),
            (&least, unmounted(), "private cgroup mount", Unavailable),
            (&least, namespaced(), "owners of older sockets", Degraded),
            (&least, namespaced(), "kernel stacks", Ok),
        ];
        for (host, cgroup, name, expected) in cases {
            assert_eq!(status(host, &cgroup, name), expected, "{name}");
            for check in checks(host, &cgroup, &Tried::default()) {
                assert!(check.status == Ok || check.remedy.is_some(), "{check:?}");
            }
        }
    }
}
