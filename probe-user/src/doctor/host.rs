//! The kernel and its settings.

use std::path::Path;

use super::refusal::{MEMLOCK_FIX, TRACEFS_REMEDY, judges_bpf};
use super::signals::Tried;
use super::{Check, Status, mib};
use crate::entity::sees_host_pids;
use crate::kernel::bpf::Bpf;
use crate::kernel::btf::{BtfError, KernelBtf};
use crate::kernel::cgroup::{CgroupError, CgroupRoot};
use crate::kernel::features::{Features, Jit, Lockdown, UnprivilegedBpf};
use crate::kernel::privileges::Privileges;

/// The oldest kernel that is known to have what the programs use.
const OLDEST: (u32, u32) = (5, 10);

/// Facts about this host and this process.
#[derive(Clone, Debug)]
pub struct Host {
    /// The kernel and its settings.
    pub features: Features,
    /// What this process may do; the message where that cannot be read.
    pub privileges: Result<Privileges, String>,
    /// Whether pids mean here what they mean to the programs.
    pub host_pids: bool,
    /// Whether this process is in the initial user namespace: only there do capabilities count for bpf(2).
    pub host_users: bool,
    /// Whether this kernel charges maps to RLIMIT_MEMLOCK, by its own types. One that does not tell is suspected.
    pub charges_memlock: bool,
    /// Whether programs at raw tracepoints can lose their CPU ([`Bpf::preempts_programs`]).
    pub preempts_programs: bool,
    /// Whether no_new_privs is set.
    pub no_new_privs: bool,
    /// Whether the kernel itself answers bpf(2), and nobody before it refuses.
    pub bpf_answers: bool,
}

impl Host {
    /// Looks around. Total: what cannot be read is absent.
    #[must_use]
    pub fn look() -> Self {
        let bpf = KernelBtf::from_host().map(|btf| Bpf::of(&btf)).ok();
        Self {
            features: Features::of_this_host(),
            privileges: Privileges::of_this_process().map_err(|error| error.to_string()),
            host_pids: sees_host_pids(),
            // PROC_USER_INIT_INO of include/linux/proc_ns.h. A host that does not tell gets the benefit of the doubt.
            host_users: std::fs::read_link("/proc/self/ns/user")
                .map_or(true, |name| name == Path::new("user:[4026531837]")),
            charges_memlock: bpf.as_ref().is_none_or(|bpf| bpf.charges_memlock),
            preempts_programs: bpf.is_some_and(|bpf| bpf.preempts_programs),
            no_new_privs: rustix::thread::no_new_privs().unwrap_or_default(),
            bpf_answers: crate::load::bpf_answers(),
        }
    }
}

pub(super) fn kernel(features: &Features) -> Check {
    let release = &features.release;
    match features.version() {
        Some(version) if version >= OLDEST => Check::ok("kernel", release),
        // The programs themselves are tried below: what counts is what this kernel makes of them.
        Some(_) => Check::degraded("kernel", format!("{release}; the oldest that was ever tried is 5.10"))
            .fix("boot a kernel from 5.10 on"),
        None => Check::degraded("kernel", format!("{release}: not a release that can be compared with 5.10")),
    }
}

pub(super) fn btf(given: Option<&Path>, read: Result<(), &BtfError>) -> Check {
    let path = given.unwrap_or(Path::new(KernelBtf::HOST_PATH));
    match read {
        Ok(()) => {
            let size = std::fs::metadata(path).map(|metadata| mib(metadata.len())).unwrap_or_default();
            let detail = format!("{}, {size}", path.display());
            if given.is_some_and(differs_from_hosts) {
                return Check::degraded("btf", format!("{detail}; it differs from the running kernel's own"))
                    .fix("leave --btf out");
            }
            Check::ok("btf", detail)
        }
        Err(error) => Check::of_error(Status::Unavailable, "btf", error),
    }
}

fn differs_from_hosts(given: &Path) -> bool {
    matches!((std::fs::read(KernelBtf::HOST_PATH), std::fs::read(given)), (Ok(own), Ok(given)) if own != given)
}

pub(super) fn cgroup(root: &Result<CgroupRoot, CgroupError>) -> Check {
    match root {
        Ok(root) if root.is_private() => {
            Check::ok("cgroup v2", "mounted for this process alone: the host has it mounted nowhere")
        }
        Ok(root) => Check::ok("cgroup v2", format!("{} is the hierarchy's root", root.path.display())),
        Err(error) => Check::of_error(Status::Unavailable, "cgroup v2", error),
    }
}

/// What an administrator, or whoever started this process, has set.
pub(super) fn settings(host: &Host, tried: &Tried) -> Vec<Check> {
    let Host {
        features,
        host_pids,
        host_users,
        charges_memlock,
        preempts_programs,
        bpf_answers,
        no_new_privs: _,
        privileges: _,
    } = host;
    vec![
        tracefs(features, *preempts_programs),
        jit(features),
        lockdown(features),
        unprivileged_bpf(features),
        seccomp(features, *bpf_answers),
        security_modules(features, tried.any_loaded),
        memlock(features, *charges_memlock, tried.any_loaded),
        pids(*host_pids),
        users(*host_users),
    ]
}

fn tracefs(features: &Features, needed: bool) -> Check {
    let found = features.tracefs.as_ref().map(|path| path.display().to_string());
    match (found, needed) {
        (Some(path), true) => Check::ok("tracefs", format!("{path}; syscalls is exact with it")),
        (None, true) => Check::degraded(
            "tracefs",
            "not mounted; lost: calls at hooks where this kernel skips programs, each counted",
        )
        .fix(TRACEFS_REMEDY),
        (found, false) => {
            Check::ok("tracefs", format!("{}; not needed", found.as_deref().unwrap_or("not mounted")))
        }
    }
}

fn jit(features: &Features) -> Check {
    match features.jit {
        Some(Jit::On) => Check::ok("jit", "programs are compiled"),
        Some(Jit::Debug) => Check::degraded("jit", "programs are compiled, and dumped to the kernel's log")
            .fix("sysctl -w net.core.bpf_jit_enable=1"),
        Some(Jit::Off) => Check::degraded("jit", "off: programs are interpreted, several times slower")
            .fix("sysctl -w net.core.bpf_jit_enable=1"),
        None => Check::ok("jit", "not known: net.core.bpf_jit_enable does not read here"),
    }
}

fn lockdown(features: &Features) -> Check {
    match features.lockdown {
        Some(Lockdown::None) => Check::ok("lockdown", "none"),
        Some(Lockdown::Integrity) => Check::ok("lockdown", "integrity; programs that read still load"),
        Some(Lockdown::Confidentiality) => {
            Check::unavailable("lockdown", "confidentiality: programs may not read kernel structures")
                .fix("boot without lockdown=confidentiality")
        }
        None => Check::ok("lockdown", "not known: the kernel has none, or securityfs is not mounted"),
    }
}

fn unprivileged_bpf(features: &Features) -> Check {
    let detail = match features.unprivileged_bpf {
        Some(UnprivilegedBpf::Allowed) => "0: anybody may load programs; not needed",
        Some(UnprivilegedBpf::Never) => "1: only with capabilities, until the next boot",
        Some(UnprivilegedBpf::Disabled) => "2: only with capabilities",
        None => "not known",
    };
    Check::ok("unprivileged_bpf_disabled", detail)
}

fn seccomp(features: &Features, bpf_answers: bool) -> Check {
    match (features.seccomp, bpf_answers) {
        (false, _) => Check::ok("seccomp", "no filter on this process"),
        (true, true) => Check::ok("seccomp", "a filter is on this process; it lets bpf(2) through"),
        (true, false) => Check::unavailable("seccomp", "a filter is on this process, and bpf(2) is refused")
            .fix("let the seccomp profile allow bpf(2)"),
    }
}

fn security_modules(features: &Features, loaded: bool) -> Check {
    let modules = &features.security_modules;
    if modules.is_empty() {
        return Check::ok("security modules", "not known: securityfs is not mounted");
    }
    let listed = modules.join(", ");
    if loaded || !modules.iter().any(|name| judges_bpf(name)) {
        return Check::ok("security modules", listed);
    }
    Check::degraded("security modules", format!("{listed}: one may refuse bpf(2) by its policy"))
        .fix("look for denials in the kernel's log (dmesg)")
}

fn memlock(features: &Features, charged: bool, loaded: bool) -> Check {
    let limit = match features.memlock {
        None => "unlimited".to_owned(),
        Some(bytes) => mib(bytes),
    };
    if !charged {
        return Check::ok("memlock", format!("{limit}; this kernel does not count maps towards it"));
    }
    match (features.memlock, loaded) {
        (None, _) => Check::ok("memlock", limit),
        (Some(_), true) => {
            Check::ok("memlock", format!("{limit}; this kernel counts maps towards it; they fit"))
        }
        (Some(_), false) => {
            Check::degraded("memlock", format!("{limit}; this kernel counts maps towards it"))
                .fix(MEMLOCK_FIX)
        }
    }
}

fn pids(host_pids: bool) -> Check {
    if host_pids {
        return Check::ok("pid namespace", "the host's");
    }
    Check::degraded(
        "pid namespace",
        "not the host's; lost: executables and cgroups from other processes' /proc",
    )
    .fix("run in the host's pid namespace (Kubernetes: hostPID: true)")
}

fn users(host_users: bool) -> Check {
    if host_users {
        return Check::ok("user namespace", "the host's");
    }
    Check::unavailable("user namespace", "not the host's: capabilities held here do not count for bpf(2)")
        .fix("run in the host's user namespace")
}

pub(super) fn cpus(features: &Features) -> Option<Check> {
    let possible = features.possible_cpus?;
    Some(Check::ok("cpus", format!("{possible} possible: per-CPU maps hold each value as often")))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernel::privileges::{BPF, NET_ADMIN, PERFMON};

    /// A host on which everything works, with no more privileges than that takes.
    pub(in crate::doctor) fn host() -> Host {
        let mut host = Host::look();
        host.features = Features {
            release: "6.12.1".into(),
            btf: true,
            possible_cpus: Some(2),
            jit: Some(Jit::On),
            lockdown: Some(Lockdown::None),
            unprivileged_bpf: Some(UnprivilegedBpf::Disabled),
            tracefs: None,
            memlock: None,
            security_modules: Vec::new(),
            seccomp: false,
            perf_event_paranoid: None,
            bpf_stats: Some(false),
        };
        host.privileges = Ok(Privileges::of(&[BPF, PERFMON, NET_ADMIN].map(|need| need.any_of[0])));
        host.host_users = true;
        host.host_pids = true;
        host.charges_memlock = false;
        host.no_new_privs = false;
        host.bpf_answers = true;
        host
    }

    #[test]
    fn settings_and_what_they_cost() {
        use Status::{Degraded, Ok, Unavailable};
        type Make = fn(&mut Features);
        type Look = fn(&Features) -> Check;
        let cases: &[(&str, Make, Look, Status)] = &[
            ("new kernel", |_| {}, kernel, Ok),
            ("5.10", |features| features.release = "5.10.0-32".into(), kernel, Ok),
            ("5.4", |features| features.release = "5.4.0-1".into(), kernel, Degraded),
            ("odd release", |features| features.release = "mine".into(), kernel, Degraded),
            ("interpreted", |features| features.jit = Some(Jit::Off), jit, Degraded),
            ("no word on jit", |features| features.jit = None, jit, Ok),
            ("integrity", |features| features.lockdown = Some(Lockdown::Integrity), lockdown, Ok),
            (
                "confidentiality",
                |features| features.lockdown = Some(Lockdown::Confidentiality),
                lockdown,
                Unavailable,
            ),
            ("seccomp refuses", |features| features.seccomp = true, |f| seccomp(f, false), Unavailable),
            ("seccomp allows", |features| features.seccomp = true, |f| seccomp(f, true), Ok),
            (
                "apparmor, nothing loaded",
                |features| features.security_modules = vec!["apparmor".into()],
                |f| security_modules(f, false),
                Degraded,
            ),
            (
                "yama, nothing loaded",
                |features| features.security_modules = vec!["yama".into()],
                |f| security_modules(f, false),
                Ok,
            ),
            ("memlock, new kernel", |features| features.memlock = Some(0), |f| memlock(f, false, false), Ok),
            (
                "memlock, charged",
                |features| features.memlock = Some(65_536),
                |f| memlock(f, true, false),
                Degraded,
            ),
        ];
        for (name, make, look, expected) in cases {
            let mut features = host().features;
            make(&mut features);
            let check = look(&features);
            assert_eq!(check.status, *expected, "{name}: {check:?}");
        }
        assert_eq!(pids(true).status, Ok);
        assert_eq!(pids(false).status, Degraded);
        assert_eq!(users(true).status, Ok);
        assert_eq!(users(false).status, Unavailable);
    }

    #[test]
    fn no_btf_names_the_way_out() {
        let check = btf(None, Err(&BtfError::Absent("/sys/kernel/btf/vmlinux".into())));
        assert_eq!(check.status, Status::Unavailable);
        assert!(check.remedy.unwrap().contains("--btf FILE"));
        let own = Path::new(KernelBtf::HOST_PATH);
        if own.exists() {
            assert_eq!(btf(Some(own), Ok(())).status, Status::Ok);
        }
        assert_eq!(btf(Some(Path::new("/nowhere")), Ok(())).status, Status::Ok, "read before, gone since");
    }
}
