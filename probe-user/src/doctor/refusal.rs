//! What it means that something does not load or attach, and what would help: gate by gate, as the kernel asks them:
//! seccomp, capabilities, user namespace, security modules, lockdown, locked memory.

use std::fmt;

use super::{Check, Host, Status, Verdict};
use crate::kernel::cgroup::CgroupError;
use crate::kernel::features::{Features, Lockdown};
use crate::kernel::privileges::{BPF, needs};
use crate::load::{Hook, LoadError};
use crate::signals;

/// Why something does not run on this host. Commands print it, and `probe doctor` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// Whose fault it is.
    pub verdict: Verdict,
    /// What went wrong, and why.
    pub detail: String,
    /// What would fix it.
    pub remedy: Option<String>,
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verdict: _, detail, remedy } = self;
        match remedy {
            Some(remedy) => write!(f, "{detail} ({remedy})"),
            None => f.write_str(detail),
        }
    }
}

impl Diagnosis {
    /// Of an error that says all itself.
    pub(super) fn of_error(verdict: Verdict, error: impl fmt::Display) -> Self {
        let Check { detail, remedy, .. } = Check::of_error(Status::Unavailable, "", error);
        Self { verdict, detail, remedy }
    }

    pub(super) fn check(&self, name: String) -> Check {
        Check { remedy: self.remedy.clone(), ..Check::unavailable(name, self.detail.clone()) }
    }
}

/// Explains why a signal did not start. `cgroup` is why there is no root of cgroup v2, where that is known.
#[must_use]
pub fn diagnose(error: &LoadError, host: &Host, cgroup: Option<&CgroupError>) -> Diagnosis {
    let cause = error.cause();
    let (detail, hook) = match error {
        LoadError::NoCgroup { .. } => return no_cgroup(cgroup),
        LoadError::Unknown { .. } => return Diagnosis::of_error(Verdict::Kernel, error),
        LoadError::MissingFields { fields, .. } => {
            return Diagnosis {
                verdict: Verdict::Kernel,
                detail: format!("this kernel's BTF has no {fields}, which the programs read"),
                remedy: Some(
                    "boot another kernel, or give this one's BTF with --btf FILE; `probe doctor` shows what runs \
                     without"
                        .to_owned(),
                ),
            };
        }
        LoadError::Object { .. } => match error.system_error().filter(|_| error.is_permission_denied()) {
            // Which was the first to be refused is chance.
            Some(denied) => (format!("cannot create the maps: {denied}"), None),
            None => (format!("cannot create the maps: {cause}"), None),
        },
        LoadError::Program { program, .. } => (format!("cannot load program {program}: {cause}"), None),
        LoadError::Attach { program, hook, .. } | LoadError::Link { program, hook, .. } => {
            (format!("cannot attach {program} to {hook}: {cause}"), Some(*hook))
        }
        LoadError::Walk { program, .. } => {
            (format!("{program} did not come to the end of its walk: {cause}"), Some(Hook::OpenFiles))
        }
        LoadError::Pin { .. } => return Diagnosis::of_error(Verdict::Kernel, error),
        LoadError::Map { map, .. } => (format!("map {map}: {cause}"), None),
        LoadError::Mapping { map, .. } => (format!("cannot map {map} into memory: {cause}"), None),
        LoadError::Broken { .. } => return Diagnosis::of_error(Verdict::Kernel, error),
    };
    if let Some(reason) = error.verifier() {
        let detail = format!("{detail}; the verifier says: {reason}");
        // Under this lockdown the helpers that read kernel memory do not exist, as far as the verifier tells.
        return match lockdown(&host.features) {
            Some(gate) => of_gates(Verdict::Kernel, detail, &[gate]),
            None => Diagnosis {
                verdict: Verdict::Kernel,
                detail,
                remedy: Some("report it, with the output of `probe doctor -o json`".to_owned()),
            },
        };
    }
    if error.is_permission_denied() {
        let bit = signals::every().map(|kind| kind.object()).find(|object| object.name == error.signal());
        let gates = shut(host, bit.map_or(0, |object| object.bit), hook);
        return of_gates(Verdict::Privileges, detail, &gates);
    }
    let remedy = match error.system_error().and_then(std::io::Error::raw_os_error) {
        Some(libc::ENOMEM) => Some(
            "raise the memory limit of its cgroup, or make the maps smaller: see Limits in --help".to_owned(),
        ),
        Some(_) | None => hook.map(|hook| match hook {
            Hook::RawTracepoint(name) => format!("boot a kernel that has the tracepoint {name}"),
            Hook::PerfTracepoint(..) if host.features.tracefs.is_some() => {
                // It is mounted for root alone.
                "run as root, or grant CAP_DAC_READ_SEARCH as well".to_owned()
            }
            Hook::PerfTracepoint(..) => TRACEFS_REMEDY.to_owned(),
            Hook::MapEntries | Hook::Tasks => "boot a kernel of 5.9 or later".to_owned(),
            Hook::OpenFiles => "start probe before what it is to watch".to_owned(),
            Hook::CgroupEgress | Hook::CgroupIngress | Hook::CgroupSockAddr => {
                "boot a kernel built with CONFIG_CGROUP_BPF=y".to_owned()
            }
        }),
    };
    Diagnosis { verdict: Verdict::Kernel, detail, remedy }
}

/// How to have perf's tracepoints.
pub(super) const TRACEFS_REMEDY: &str = "mount -t tracefs nodev /sys/kernel/tracing";

/// Something between a process and BPF that is shut.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gate {
    why: String,
    fix: String,
}

impl Gate {
    fn new(why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { why: why.into(), fix: fix.into() }
    }
}

fn of_gates(verdict: Verdict, mut detail: String, gates: &[Gate]) -> Diagnosis {
    for Gate { why, fix: _ } in gates {
        detail.push_str("; ");
        detail.push_str(why);
    }
    let fixes: Vec<&str> = gates.iter().map(|gate| gate.fix.as_str()).collect();
    Diagnosis { verdict, detail, remedy: Some(fixes.join("; or ")) }
}

/// The gates that refused the signals of `bits`: those that are shut for certain; where there is none, those that may be.
fn shut(host: &Host, bits: u8, hook: Option<Hook>) -> Vec<Gate> {
    /// Debian's addition to what kernel.perf_event_paranoid may be: perf for CAP_SYS_ADMIN alone.
    const PERF_FOR_ROOT: i32 = 3;
    let paranoid = host.features.perf_event_paranoid.filter(|level| *level >= PERF_FOR_ROOT);
    if let (Some(Hook::PerfTracepoint(..)), Some(level)) = (hook, paranoid) {
        return vec![Gate::new(
            format!("kernel.perf_event_paranoid is {level}"),
            "run as root, or sysctl -w kernel.perf_event_paranoid=2",
        )];
    }
    let certain = certain(host, bits);
    if !certain.is_empty() {
        return certain;
    }
    let possible = possible(host, hook);
    if possible.is_empty() {
        let why =
            "capabilities, user namespace, seccomp, security modules, lockdown and memlock do not explain it";
        return vec![Gate::new(why, "look for denials in the kernel's log (dmesg)")];
    }
    possible
}

fn certain(host: &Host, bits: u8) -> Vec<Gate> {
    let Host {
        features,
        privileges,
        host_users,
        bpf_answers,
        host_pids: _,
        no_new_privs: _,
        charges_memlock: _,
        preempts_programs: _,
    } = host;
    let mut gates = Vec::new();
    let mut may_ask = true;
    match privileges {
        Ok(privileges) => {
            may_ask = privileges.fills(BPF);
            let missing: Vec<String> = needs(bits)
                .into_iter()
                .filter(|need| !privileges.fills(*need))
                .filter_map(|need| need.any_of.first().map(ToString::to_string))
                .collect();
            if !missing.is_empty() {
                let fix = format!("run as root, or grant {}", missing.join(" and "));
                gates.push(Gate::new(format!("missing {}", missing.join(", ")), fix));
            }
        }
        Err(unknown) => gates.push(Gate::new(unknown, "run as root")),
    }
    if !host_users {
        let why = "capabilities of a user namespace do not count for bpf(2)";
        gates.push(Gate::new(why, "run in the host's user namespace"));
    }
    if !bpf_answers && features.seccomp {
        let why = "the seccomp filter on this process refuses bpf(2)";
        gates.push(Gate::new(why, "let its profile allow bpf(2)"));
    } else if !bpf_answers && may_ask && *host_users {
        let modules = features.security_modules.join(", ");
        let why = format!("a security module refuses bpf(2); in force: {modules}");
        gates.push(Gate::new(why, "look for denials in the kernel's log (dmesg), and allow it by policy"));
    }
    gates
}

/// Nothing tells whether it was one of these.
fn possible(host: &Host, hook: Option<Hook>) -> Vec<Gate> {
    let features = &host.features;
    let mut gates: Vec<Gate> = lockdown(features).into_iter().chain(memlock(host)).collect();
    let suspects: Vec<&str> =
        features.security_modules.iter().map(String::as_str).filter(|name| judges_bpf(name)).collect();
    if !suspects.is_empty() {
        let why = format!("a security module may have refused: {}", suspects.join(", "));
        gates.push(Gate::new(why, "look for denials in the kernel's log (dmesg)"));
    }
    match hook {
        Some(Hook::CgroupEgress | Hook::CgroupIngress | Hook::CgroupSockAddr) => gates.push(Gate::new(
            "a program of somebody else may hold the root cgroup for itself",
            "find it with `bpftool cgroup tree`, and attach it with BPF_F_ALLOW_MULTI",
        )),
        Some(
            Hook::PerfTracepoint(..)
            | Hook::RawTracepoint(_)
            | Hook::OpenFiles
            | Hook::MapEntries
            | Hook::Tasks,
        )
        | None => {}
    }
    gates
}

fn lockdown(features: &Features) -> Option<Gate> {
    let shut = features.lockdown == Some(Lockdown::Confidentiality);
    shut.then(|| {
        Gate::new("the kernel's lockdown is `confidentiality`", "boot without lockdown=confidentiality")
    })
}

/// Older kernels count maps and programs towards the limit for locked memory. It is as high as this process may set it.
fn memlock(host: &Host) -> Option<Gate> {
    let limit = host.features.memlock.filter(|_| host.charges_memlock)?;
    Some(Gate::new(
        format!("this kernel charges maps to RLIMIT_MEMLOCK, which is {} KiB", limit / 1024),
        MEMLOCK_FIX,
    ))
}

/// How the limit for locked memory goes up.
pub(super) const MEMLOCK_FIX: &str = "`ulimit -l unlimited` as root before the start, systemd: LimitMEMLOCK=infinity, or grant CAP_SYS_RESOURCE";

fn no_cgroup(why: Option<&CgroupError>) -> Diagnosis {
    let detail = "no root of cgroup v2 to attach to".to_owned();
    let Some(error) = why else {
        let remedy = Some("mount -t cgroup2 none /sys/fs/cgroup/unified".to_owned());
        return Diagnosis { verdict: Verdict::Kernel, detail, remedy };
    };
    let verdict = if error.is_permission_denied() { Verdict::Privileges } else { Verdict::Kernel };
    Diagnosis {
        detail: format!("{detail}: see the check `cgroup v2`"),
        ..Diagnosis::of_error(verdict, error)
    }
}

/// Security modules that can refuse bpf(2) by policy; the others do not look at it.
pub(super) fn judges_bpf(module: &str) -> bool {
    matches!(module, "selinux" | "apparmor" | "smack" | "tomoyo" | "bpf")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::host::tests::host;
    use probe_common::fields::TCP;

    fn refused() -> LoadError {
        let io_error = std::io::Error::from_raw_os_error(libc::EPERM);
        let source = aya::maps::MapError::CreateError { name: "RING".into(), io_error };
        LoadError::Object { signal: "tcp", source: Box::new(aya::EbpfError::MapError(source)) }
    }

    #[test]
    fn each_gate_is_named() {
        let open = host();
        assert_eq!(shut(&open, 0, None).len(), 1);
        assert!(shut(&open, 0, None).concat_why().contains("do not explain it"));
        type Shut = fn(&mut Host);
        let cases: &[(&str, &str, Shut)] = &[
            ("cannot tell", "run as root", |host| host.privileges = Err("cannot tell".into())),
            ("RLIMIT_MEMLOCK, which is 64 KiB", "LimitMEMLOCK=infinity", |host| {
                host.charges_memlock = true;
                host.features.memlock = Some(65_536);
            }),
            ("user namespace", "host's user namespace", |host| host.host_users = false),
            ("confidentiality", "boot without", |host| {
                host.features.lockdown = Some(Lockdown::Confidentiality);
            }),
            ("seccomp filter", "allow bpf(2)", |host| {
                host.features.seccomp = true;
                host.bpf_answers = false;
            }),
            ("apparmor", "dmesg", |host| {
                host.features.security_modules = vec!["capability".into(), "apparmor".into()];
            }),
            ("a security module refuses", "policy", |host| {
                host.features.security_modules = vec!["selinux".into()];
                host.bpf_answers = false;
            }),
        ];
        for (why, fix, shut_it) in cases {
            let mut host = host();
            shut_it(&mut host);
            let found = shut(&host, 0, None);
            assert!(found.len() == 1 && found.concat_why().contains(why), "{why}: {found:?}");
            let diagnosis = diagnose(&refused(), &host, None);
            assert!(diagnosis.remedy.as_ref().is_some_and(|remedy| remedy.contains(fix)), "{diagnosis}");
        }
    }

    trait ConcatWhy {
        fn concat_why(&self) -> String;
    }
    impl ConcatWhy for Vec<Gate> {
        fn concat_why(&self) -> String {
            self.iter().map(|gate| gate.why.as_str()).collect()
        }
    }

    #[test]
    fn what_is_certain_comes_before_what_may_be() {
        let mut host = host();
        host.features.security_modules = vec!["apparmor".into()];
        host.features.lockdown = Some(Lockdown::Confidentiality);
        host.host_users = false;
        let gates = shut(&host, TCP, None);
        assert!(
            !gates.concat_why().contains("apparmor") && !gates.concat_why().contains("lockdown"),
            "{gates:?}"
        );
    }

    #[test]
    fn an_exclusive_neighbour_is_suspected_on_cgroups_only() {
        let suspected = |hook| shut(&host(), 0, hook).concat_why().contains("somebody else");
        assert!(suspected(Some(Hook::CgroupEgress)));
        assert!(!suspected(Some(Hook::RawTracepoint("sys_enter"))));
    }
}
