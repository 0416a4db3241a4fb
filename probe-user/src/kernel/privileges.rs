//! What this process may do: its effective capabilities, and what each signal needs.

use std::fmt;

use caps::{CapSet, Capability, CapsHashSet};
use probe_common::fields;

/// A need that capabilities fill: one of these is enough, the first is the least.
///
/// CAP_BPF and CAP_PERFMON are of 5.8; CAP_SYS_ADMIN has always implied them, and the kernel still takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Any of them will do.
    pub any_of: &'static [Capability],
    /// What cannot be done without.
    pub purpose: &'static str,
}

/// Loading any program or map.
pub const BPF: Need =
    Need { any_of: &[Capability::CAP_BPF, Capability::CAP_SYS_ADMIN], purpose: "load BPF programs and maps" };
/// Raw tracepoints, and reading kernel memory.
pub const PERFMON: Need = Need {
    any_of: &[Capability::CAP_PERFMON, Capability::CAP_SYS_ADMIN],
    purpose: "attach to tracepoints and read kernel structures",
};
/// cgroup programs. CAP_SYS_ADMIN does not do everywhere: kernels before 6.9 ask for this one at attach.
pub const NET_ADMIN: Need =
    Need { any_of: &[Capability::CAP_NET_ADMIN], purpose: "attach programs to cgroups" };

/// What a signal (`fields::TCP`, …, or several) needs.
pub fn needs(signal: u8) -> Vec<Need> {
    let mut needs = Vec::new();
    if signal & (fields::TCP | fields::DNS | fields::SYSCALLS | fields::CGROUPS) != 0 {
        needs.extend([BPF, PERFMON]);
    }
    if signal & fields::DNS != 0 {
        needs.push(NET_ADMIN);
    }
    needs
}

/// Why a signal may not run.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Capabilities are missing.
    #[error(transparent)]
    Missing(#[from] MissingCapability),
    /// The process's own capabilities cannot be read.
    #[error("cannot read this process's capabilities: {0} (run as root)")]
    Unknown(String),
}

/// Capabilities that are missing for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingCapability {
    /// The needs that nothing fills.
    pub needs: Vec<Need>,
}

impl MissingCapability {
    /// The least capability for each need.
    pub fn capabilities(&self) -> impl Iterator<Item = Capability> {
        self.needs.iter().filter_map(|need| need.any_of.first().copied())
    }
}

impl fmt::Display for MissingCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |separator: &str| {
            self.capabilities().map(|capability| capability.to_string()).collect::<Vec<_>>().join(separator)
        };
        write!(f, "missing {} (run as root, or grant {})", list(", "), list(" and "))
    }
}

impl std::error::Error for MissingCapability {}

/// The effective capabilities of this process.
#[derive(Clone, Debug)]
pub struct Privileges {
    effective: CapsHashSet,
}

impl Privileges {
    /// Reads those of the calling thread.
    ///
    /// # Errors
    /// [`PrivilegeError::Unknown`] when the system does not tell.
    pub fn of_this_process() -> Result<Self, PrivilegeError> {
        let effective = caps::read(None, CapSet::Effective)
            .map_err(|error| PrivilegeError::Unknown(error.to_string()))?;
        Ok(Self { effective })
    }

    #[cfg(test)]
    pub(crate) fn of(effective: &[Capability]) -> Self {
        Self { effective: effective.iter().copied().collect() }
    }

    /// Whether a capability is effective.
    pub fn has(&self, capability: Capability) -> bool {
        self.effective.contains(&capability)
    }

    /// Whether one of the capabilities that fill a need is effective.
    pub fn fills(&self, need: Need) -> bool {
        need.any_of.iter().any(|&capability| self.has(capability))
    }

    /// Whether these signals may run.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn check(&self, signal: u8) -> Result<(), MissingCapability> {
        let needs: Vec<Need> = needs(signal).into_iter().filter(|&need| !self.fills(need)).collect();
        if needs.is_empty() { Ok(()) } else { Err(MissingCapability { needs }) }
    }
}

/// Whether this process may run a signal (`fields::TCP`, …, or several).
///
/// # Errors
/// Names the capabilities that are missing.
pub fn check(signal: u8) -> Result<(), PrivilegeError> {
    Ok(Privileges::of_this_process()?.check(signal)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use probe_common::fields::{DNS, SYSCALLS, TCP};

    #[test]
    fn what_is_missing_is_named_with_the_remedy() {
        use Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE};
        let cases: &[(&str, &[Capability], u8, Option<&str>)] = &[
            (
                "nothing at all",
                &[],
                TCP,
                Some("missing CAP_BPF, CAP_PERFMON (run as root, or grant CAP_BPF and CAP_PERFMON)"),
            ),
            (
                "an unrelated one",
                &[CAP_SYS_PTRACE],
                SYSCALLS,
                Some("missing CAP_BPF, CAP_PERFMON (run as root, or grant CAP_BPF and CAP_PERFMON)"),
            ),
            ("half", &[CAP_BPF], TCP, Some("missing CAP_PERFMON (run as root, or grant CAP_PERFMON)")),
            ("enough for tcp", &[CAP_BPF, CAP_PERFMON], TCP | SYSCALLS, None),
            (
                "dns needs more",
                &[CAP_BPF, CAP_PERFMON],
                TCP | DNS,
                Some("missing CAP_NET_ADMIN (run as root, or grant CAP_NET_ADMIN)"),
            ),
            ("enough for dns", &[CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN], DNS, None),
            ("before 5.8", &[CAP_SYS_ADMIN, CAP_NET_ADMIN], TCP | DNS | SYSCALLS, None),
            ("no signal", &[], 0, None),
        ];
        for (name, effective, signal, expected) in cases {
            let privileges = Privileges::of(effective);
            let found = privileges.check(*signal).err().map(|missing| missing.to_string());
            assert_eq!(found.as_deref(), *expected, "{name}");
        }
    }

    #[test]
    fn this_process_can_be_asked() {
        assert!(Privileges::of_this_process().is_ok());
    }
}
