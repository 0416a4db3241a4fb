//! Why the kernel may have refused bpf(2), gate by gate: capabilities, user namespace, lockdown, seccomp, security
//! modules, locked memory.

use probe_common::fields;

use super::Host;
use crate::kernel::features::{Features, Lockdown};

/// Every gate that is shut or may be, each with what would open it; in the order in which the kernel asks.
#[must_use]
pub fn explain(host: &Host) -> String {
    let capabilities = match &host.privileges {
        Ok(privileges) => privileges.check(ANY_SIGNAL).err().map(|missing| missing.to_string()),
        Err(unknown) => Some(unknown.clone()),
    };
    let gates: Vec<String> = capabilities.into_iter().chain(further_gates(host)).collect();
    if gates.is_empty() {
        return "capabilities, user namespace, lockdown, seccomp, security modules and memlock do not explain it \
                (look into the kernel's log)"
            .to_owned();
    }
    gates.join("; ")
}

const ANY_SIGNAL: u8 = fields::TCP | fields::DNS | fields::SYSCALLS;

fn further_gates(host: &Host) -> Vec<String> {
    let mut gates = Vec::new();
    if !host.host_users {
        gates.push(
            "capabilities of a user namespace do not count for bpf(2) (run in the host's user namespace)"
                .to_owned(),
        );
    }
    let Features { lockdown, seccomp, security_modules, memlock, .. } = &host.features;
    if *lockdown == Some(Lockdown::Confidentiality) {
        gates.push("kernel lockdown is `confidentiality` (boot without lockdown=confidentiality)".to_owned());
    }
    if *seccomp {
        gates.push("a seccomp filter is on this process (let its profile allow bpf(2))".to_owned());
    }
    let suspects: Vec<&str> =
        security_modules.iter().map(String::as_str).filter(|name| judges_bpf(name)).collect();
    if !suspects.is_empty() {
        gates.push(format!(
            "a security module may have refused: {} (look into the kernel's log)",
            suspects.join(", ")
        ));
    }
    if let (true, Some(limit)) = (host.charges_memlock, memlock) {
        gates.push(format!(
            "maps are charged to RLIMIT_MEMLOCK, which is {} KiB (ulimit -l unlimited, or LimitMEMLOCK=infinity)",
            limit / 1024
        ));
    }
    gates
}

/// Security modules that can refuse bpf(2) by policy; the others do not look at it.
pub(super) fn judges_bpf(module: &str) -> bool {
    matches!(module, "selinux" | "apparmor" | "smack" | "tomoyo" | "bpf")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::host::tests::host;

    #[test]
    fn each_gate_is_named() {
        assert_eq!(further_gates(&host()), Vec::<String>::new());
        let mut unknown = host();
        unknown.privileges = Err("cannot tell".into());
        assert_eq!(explain(&unknown), "cannot tell");

        type Shut = fn(&mut Host);
        let cases: &[(&str, Shut)] = &[
            ("RLIMIT_MEMLOCK, which is 64 KiB", |host| {
                host.charges_memlock = true;
                host.features.memlock = Some(65_536);
            }),
            ("user namespace", |host| host.host_users = false),
            ("confidentiality", |host| host.features.lockdown = Some(Lockdown::Confidentiality)),
            ("seccomp", |host| host.features.seccomp = true),
            ("apparmor", |host| {
                host.features.security_modules = vec!["capability".into(), "apparmor".into()]
            }),
        ];
        for (expected, shut) in cases {
            let mut host = host();
            shut(&mut host);
            let found = further_gates(&host);
            assert!(found.len() == 1 && found.concat().contains(expected), "{expected}: {found:?}");
        }
    }
}
