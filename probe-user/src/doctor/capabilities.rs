//! Each capability: what it is for, and what is lost without it.

use caps::Capability;

use super::{Check, Host};
use crate::kernel::privileges::{BPF, NET_ADMIN, Need, PERFMON, Privileges};

/// What more than the signals' needs is good for.
struct Further {
    capability: Capability,
    purpose: &'static str,
    /// What is lost without it; `None`: nothing on this host that works otherwise.
    lost: Option<&'static str>,
}

const FURTHER: &[Further] = &[
    Further {
        capability: Capability::CAP_SYS_PTRACE,
        purpose: "see the executables of other users' processes",
        lost: Some("names of executables of other users' processes (their comm is known all the same)"),
    },
    Further {
        capability: Capability::CAP_SYS_ADMIN,
        purpose: "mount cgroup v2 for itself where the host has it mounted nowhere",
        lost: None,
    },
];

pub(super) fn checks(host: &Host) -> Vec<Check> {
    let privileges = match &host.privileges {
        Ok(privileges) => privileges,
        Err(error) => return vec![Check::of_error(super::Status::Unavailable, "capabilities", error)],
    };
    let mut checks: Vec<Check> =
        [BPF, PERFMON, NET_ADMIN].iter().map(|need| required(*need, privileges)).collect();
    checks.extend(FURTHER.iter().map(|further| optional(further, privileges)));
    checks
}

fn required(need: Need, privileges: &Privileges) -> Check {
    let Some(&least) = need.any_of.first() else { return Check::ok("capabilities", "none needed") };
    match need.any_of.iter().find(|&&capability| privileges.has(capability)) {
        Some(&held) if held == least => Check::ok(least.to_string(), need.purpose),
        Some(held) => Check::ok(least.to_string(), format!("{}: {held} stands in for it", need.purpose)),
        None => Check::unavailable(least.to_string(), format!("missing: cannot {}", need.purpose))
            .fix(format!("run as root, or grant {least}")),
    }
}

fn optional(further: &Further, privileges: &Privileges) -> Check {
    let Further { capability, purpose, lost } = further;
    match lost {
        _ if privileges.has(*capability) => {
            Check::ok(capability.to_string(), format!("not required; to {purpose}"))
        }
        Some(lost) => Check::degraded(capability.to_string(), format!("missing; lost: {lost}"))
            .fix(format!("grant {capability}")),
        None => Check::ok(capability.to_string(), format!("not held and not required; only to {purpose}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;
    use crate::doctor::host::tests::host;

    #[test]
    fn every_capability_has_a_row_whoever_asks() {
        let checks = checks(&host());
        let names: Vec<&str> = checks.iter().map(|check| check.check.as_str()).collect();
        assert_eq!(names, ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]);
        for check in &checks {
            assert!(check.status == Status::Ok || check.remedy.is_some(), "{check:?}");
        }
    }
}
