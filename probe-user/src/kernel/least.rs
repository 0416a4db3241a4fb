//! Least privilege: what a running probe still uses of its capabilities, and giving back the rest.
//!
//! Capabilities belong to threads. All of this happens while the process has one thread; those that begin later inherit
//! what it has left.

use std::io;

use caps::Capability;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::features::{Features, UnprivilegedBpf};
use super::privileges::BPF;

/// From here on the kernel asks nobody who reads or writes a map by its descriptor.
const MAPS_BY_DESCRIPTOR: (u32, u32) = (5, 19);

/// A capability that steady state uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Which.
    pub capability: Capability,
    /// What for.
    pub purpose: &'static str,
}

/// What becomes of the capabilities of this thread once all programs are attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Held, and used from then on.
    pub keeps: Vec<Kept>,
    /// Held, and no longer used.
    pub drops: Vec<Capability>,
    /// Whether the bounding set can be emptied too, which takes CAP_SETPCAP.
    pub bounding: bool,
}

/// What steady state will do, as far as capabilities matter.
#[derive(Clone, Copy, Debug)]
pub struct Uses {
    /// It looks into /proc/PID of other users.
    pub processes: bool,
    /// It asks connection tracking.
    pub conntrack: bool,
    /// Maps read and write by their descriptors, whatever the capabilities: [`reads_without`] and [`Features`] tell.
    pub maps_for_all: bool,
}

impl Uses {
    /// `read` is whether maps did read when it was tried without capabilities.
    #[must_use]
    pub fn new(processes: bool, conntrack: bool, read: bool, features: &Features) -> Self {
        // At 0 an older kernel lets anybody read too, until an administrator sets another value: then the trial tells
        // nothing of what is to come, and the version has to.
        let settled = features.unprivileged_bpf != Some(UnprivilegedBpf::Allowed)
            || features.version().is_some_and(|version| version >= MAPS_BY_DESCRIPTOR);
        Self { processes, conntrack, maps_for_all: read && settled }
    }
}

impl Plan {
    /// For the capabilities that this thread holds.
    ///
    /// # Errors
    ///
    /// The system does not tell.
    pub fn make(uses: Uses) -> io::Result<Self> {
        let CapabilitySets { effective, permitted, inheritable } = capabilities(None)?;
        Ok(Self::of(uses, effective, effective | permitted | inheritable))
    }

    fn of(uses: Uses, effective: CapabilitySet, held: CapabilitySet) -> Self {
        let Uses { processes, conntrack, maps_for_all } = uses;
        let mut keeps = Vec::new();
        let of_bpf = BPF.any_of.iter().find(|capability| effective.contains(set_of(**capability)));
        if let (false, Some(&capability)) = (maps_for_all, of_bpf) {
            keeps.push(Kept { capability, purpose: "this kernel asks for it whenever a map is read" });
        }
        let ptrace = Capability::CAP_SYS_PTRACE;
        if processes && effective.contains(set_of(ptrace)) {
            keeps.push(Kept { capability: ptrace, purpose: "executables of other users' processes" });
        }
        let net_admin = Capability::CAP_NET_ADMIN;
        if conntrack && effective.contains(set_of(net_admin)) {
            keeps.push(Kept { capability: net_admin, purpose: "where NAT sends packets, asked with --nat" });
        }
        let is_kept = |capability: &Capability| keeps.iter().any(|kept| kept.capability == *capability);
        let mut drops: Vec<Capability> = caps::all()
            .into_iter()
            .filter(|capability| held.contains(set_of(*capability)) && !is_kept(capability))
            .collect();
        drops.sort_unstable_by_key(Capability::bitmask);
        Self { drops, keeps, bounding: effective.contains(CapabilitySet::SETPCAP) }
    }

    /// Puts it in force, for good: nothing that this process does or starts gets more again.
    ///
    /// # Errors
    ///
    /// The system's; or other threads exist, and keep what they have.
    pub fn carry_out(&self) -> io::Result<()> {
        let keep = self.keeps.iter().fold(CapabilitySet::empty(), |set, kept| set | set_of(kept.capability));
        set_no_new_privs(true)?;
        if self.bounding {
            empty_bounding_set()?;
        }
        clear_ambient_capability_set()?;
        let inheritable = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: keep, permitted: keep, inheritable })?;
        match std::fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(()),
            threads => Err(io::Error::other(format!("{threads} threads run already, and keep theirs"))),
        }
    }
}

/// What `read` says when nothing is in the effective set of this thread but what lets it look into processes. They are back
/// when this returns.
///
/// # Errors
///
/// The system's, or what `read` returns other than a refusal.
pub fn reads_without(read: impl FnOnce() -> io::Result<()>) -> io::Result<bool> {
    let own = capabilities(None)?;
    let effective = own.effective & CapabilitySet::SYS_PTRACE;
    set_capabilities(None, CapabilitySets { effective, ..own })?;
    let outcome = read();
    set_capabilities(None, own)?;
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}

/// What `act` comes to where permissions alone count. Capabilities are back when this returns.
///
/// # Errors
///
/// The system's.
pub fn without_capabilities<T>(act: impl FnOnce() -> T) -> io::Result<T> {
    let own = capabilities(None)?;
    set_capabilities(None, CapabilitySets { effective: CapabilitySet::empty(), ..own })?;
    let outcome = act();
    set_capabilities(None, own)?;
    Ok(outcome)
}

fn set_of(capability: Capability) -> CapabilitySet {
    CapabilitySet::from_bits_retain(capability.bitmask())
}

/// Of those that this kernel knows, whichever they are.
fn empty_bounding_set() -> io::Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(capability) {
            Ok(true) => remove_capability_from_bounding_set(capability)?,
            Ok(false) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SETPCAP, CAP_SYS_ADMIN, CAP_SYS_PTRACE};

    fn set(capabilities: &[Capability]) -> CapabilitySet {
        capabilities.iter().fold(CapabilitySet::empty(), |set, capability| set | set_of(*capability))
    }

    #[test]
    fn what_is_kept_is_held_and_used() {
        let all = Uses { processes: true, conntrack: false, maps_for_all: true };
        let old = Uses { processes: true, conntrack: false, maps_for_all: false };
        let blind = Uses { processes: false, conntrack: false, maps_for_all: true };
        let nat = Uses { processes: false, conntrack: true, maps_for_all: true };
        type Case<'a> = (&'a str, Uses, &'a [Capability], &'a [Capability], &'a [Capability]);
        let least = [CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF];
        let cases: &[Case<'_>] = &[
            ("nothing held", old, &[], &[], &[]),
            ("least, new kernel", all, &least, &[], &least),
            ("least, before 5.19", old, &least, &[CAP_BPF], &[CAP_NET_ADMIN, CAP_PERFMON]),
            ("stands in", old, &[CAP_SYS_ADMIN, CAP_NET_ADMIN], &[CAP_SYS_ADMIN], &[CAP_NET_ADMIN]),
            ("both", old, &[CAP_SYS_ADMIN, CAP_BPF], &[CAP_BPF], &[CAP_SYS_ADMIN]),
            (
                "names",
                all,
                &[CAP_SYS_PTRACE, CAP_SETPCAP, CAP_BPF],
                &[CAP_SYS_PTRACE],
                &[CAP_SETPCAP, CAP_BPF],
            ),
            ("nat", nat, &least, &[CAP_NET_ADMIN], &[CAP_PERFMON, CAP_BPF]),
            ("names of other numbers", blind, &[CAP_SYS_PTRACE], &[], &[CAP_SYS_PTRACE]),
        ];
        for (name, uses, held, keeps, drops) in cases {
            let plan = Plan::of(*uses, set(held), set(held));
            let kept: Vec<Capability> = plan.keeps.iter().map(|kept| kept.capability).collect();
            assert_eq!(set(&kept), set(keeps), "{name}");
            assert_eq!(set(&plan.drops), set(drops), "{name}");
            assert_eq!(plan.bounding, held.contains(&CAP_SETPCAP), "{name}");
        }
        let plan = Plan::of(all, CapabilitySet::empty(), set(&[CAP_SYS_PTRACE]));
        assert_eq!((plan.keeps, plan.drops), (vec![], vec![CAP_SYS_PTRACE]), "not effective is not used");
    }

    #[test]
    fn a_trial_counts_where_the_setting_cannot_change_it() {
        use UnprivilegedBpf::{Allowed, Disabled, Never};
        let cases = [
            ("5.10.1", Some(Disabled), false, false),
            ("5.10.1", Some(Allowed), true, false),
            ("5.19.0", Some(Allowed), true, true),
            ("6.1.0", Some(Disabled), true, true),
            ("6.1.0", Some(Never), true, true),
            ("6.1.0", Some(Disabled), false, false),
            ("5.10.1", None, true, true),
            ("mine", Some(Allowed), true, false),
        ];
        for (release, setting, read, expected) in cases {
            let mut features = Features::of_this_host();
            features.release = release.into();
            features.unprivileged_bpf = setting;
            let uses = Uses::new(true, false, read, &features);
            assert_eq!(uses.maps_for_all, expected, "{release} {setting:?} {read}");
        }
    }

    #[test]
    fn a_trial_gives_everything_back() {
        let before = capabilities(None).unwrap();
        let mut during = None;
        let read = reads_without(|| {
            during = Some(capabilities(None)?);
            Ok(())
        });
        assert!(read.unwrap());
        assert_eq!(during.unwrap().effective & !CapabilitySet::SYS_PTRACE, CapabilitySet::empty());
        assert!(!reads_without(|| Err(io::ErrorKind::PermissionDenied.into())).unwrap());
        assert!(reads_without(|| Err(io::ErrorKind::NotFound.into())).is_err());
        assert_eq!(capabilities(None).unwrap(), before);
    }
}
