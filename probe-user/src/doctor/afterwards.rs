//! What a command still may do once its programs are attached.

use super::Check;
use crate::kernel::least::Plan;

/// The rows; `plan` is absent where no signal runs, and a message where the system does not tell.
pub(super) fn checks(plan: Option<&Result<Plan, String>>, no_new_privs: bool) -> Vec<Check> {
    let set = if no_new_privs { "already set" } else { "set after attaching, here not" };
    let mut checks = vec![Check::ok("no_new_privs", set)];
    match plan {
        Some(Ok(plan)) => {
            checks.push(Check::ok("capabilities kept", kept(plan)));
            checks.push(Check::ok("capabilities dropped", dropped(plan)));
        }
        Some(Err(error)) => {
            let detail = format!("cannot be told, nor dropped: {error}; lost: the safety of having none");
            checks.push(
                Check::degraded("capabilities dropped", detail)
                    .fix("let a seccomp profile allow capset and prctl"),
            );
        }
        None => checks.push(Check::ok("capabilities dropped", "none: no signal runs")),
    }
    checks
}

fn kept(plan: &Plan) -> String {
    if plan.keeps.is_empty() {
        return "none: a running probe needs none".to_owned();
    }
    let kept: Vec<String> =
        plan.keeps.iter().map(|kept| format!("{} ({})", kept.capability, kept.purpose)).collect();
    kept.join(", ")
}

fn dropped(plan: &Plan) -> String {
    /// More are not listed: then it is all that root has.
    const FEW: usize = 6;
    let names: Vec<String> = plan.drops.iter().map(ToString::to_string).collect();
    let which = match names.len() {
        0 => "none: none is held".to_owned(),
        few if few <= FEW => names.join(", "),
        many => format!("all {many} others"),
    };
    let bounding = if plan.bounding {
        "and the whole bounding set"
    } else {
        "the bounding set stays (CAP_SETPCAP is not held), which no_new_privs makes useless"
    };
    format!("{which}, after attaching; {bounding}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;
    use crate::kernel::least::Kept;
    use caps::Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_SYS_PTRACE};

    #[test]
    fn what_is_kept_has_its_reason() {
        let keeps = vec![Kept { capability: CAP_SYS_PTRACE, purpose: "names" }];
        let plan = Plan { keeps, drops: vec![CAP_BPF, CAP_NET_ADMIN], bounding: false };
        let checks = checks(Some(&Ok(plan)), false);
        let details: Vec<&str> = checks.iter().map(|check| check.detail.as_str()).collect();
        assert_eq!(details[1], "CAP_SYS_PTRACE (names)");
        assert!(details[2].starts_with("CAP_BPF, CAP_NET_ADMIN, after attaching; the bounding set stays"));
    }

    #[test]
    fn root_loses_all() {
        let drops = caps::all().into_iter().collect();
        let plan = Plan { keeps: vec![], drops, bounding: true };
        let checks = checks(Some(&Ok(plan)), true);
        assert!(checks.iter().all(|check| check.status == Status::Ok));
        assert!(
            checks[2].detail.contains("others, after attaching; and the whole bounding set"),
            "{checks:?}"
        );
    }
}
