//! Each capability: what it is for, and whether it is held. What is lost without the optional ones, `further` says.

use caps::Capability;

use super::{Check, Host, Status};
use crate::kernel::privileges::{BPF, NET_ADMIN, Need, PERFMON, Privileges};

/// Good for more than the signals need.
const OPTIONAL: &[(Capability, &str)] = &[
    (Capability::CAP_SYS_PTRACE, "see the executables of other users' processes"),
    (
        Capability::CAP_SYS_ADMIN,
        "mount cgroup v2 where the host has it mounted nowhere, and for --program-stats",
    ),
    (Capability::CAP_SYS_RESOURCE, "raise the limit for locked memory, which counts before 5.11"),
    (Capability::CAP_SETPCAP, "empty the bounding set after attaching"),
];

pub(super) fn checks(host: &Host) -> Vec<Check> {
    let privileges = match &host.privileges {
        Ok(privileges) => privileges,
        Err(error) => return vec![Check::of_error(Status::Unavailable, "capabilities", error)],
    };
    let required = [BPF, PERFMON, NET_ADMIN].into_iter().map(|need| required(need, privileges));
    required
        .chain(OPTIONAL.iter().map(|(capability, use_)| optional(*capability, use_, privileges)))
        .collect()
}

fn required(need: Need, privileges: &Privileges) -> Check {
    let Some(&least) = need.any_of.first() else { return Check::ok("capabilities", "none needed") };
    match need.any_of.iter().find(|&&capability| privileges.has(capability)) {
        Some(&held) if held == least => Check::ok(least.to_string(), format!("held; to {}", need.purpose)),
        Some(held) => Check::ok(least.to_string(), format!("{held} stands in for it; to {}", need.purpose)),
        None => Check::unavailable(least.to_string(), format!("missing: cannot {}", need.purpose))
            .fix(format!("run as root, or grant {least}")),
    }
}

fn optional(capability: Capability, purpose: &str, privileges: &Privileges) -> Check {
    let held = if privileges.has(capability) { "held" } else { "not held" };
    Check::ok(capability.to_string(), format!("{held}; optional, to {purpose}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::host::tests::host;

    #[test]
    fn every_capability_has_a_row_whoever_asks() {
        let mut nobody = host();
        nobody.privileges = Ok(Privileges::of(&[]));
        let mut stand_in = host();
        stand_in.privileges = Ok(Privileges::of(&[Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN]));
        for (host, missing) in [(host(), 0), (nobody, 3), (stand_in, 0)] {
            let checks = checks(&host);
            let names: Vec<&str> = checks.iter().map(|check| check.check.as_str()).collect();
            let expected = ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"];
            assert!(names.starts_with(&expected), "{names:?}");
            let bad = checks.iter().filter(|check| check.status != Status::Ok);
            assert_eq!(bad.filter(|check| check.remedy.is_some()).count(), missing, "{checks:?}");
        }
    }
}
