//! What this host has, as far as loaders and the doctor care. Absent means that the host does not tell.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::btf::KernelBtf;

/// The state of the kernel's lockdown, /sys/kernel/security/lockdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// Nothing is forbidden.
    None,
    /// Modifying the running kernel is forbidden; BPF that reads works.
    Integrity,
    /// Reading kernel memory is forbidden too: no program of ours that looks into structures loads.
    Confidentiality,
}

/// Who may use bpf(2) without privileges, kernel.unprivileged_bpf_disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnprivilegedBpf {
    /// 0: anybody, within limits.
    Allowed,
    /// 1: nobody, until the next boot.
    Never,
    /// 2: nobody, an administrator may change it.
    Disabled,
}

/// The just-in-time compiler for BPF, net.core.bpf_jit_enable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jit {
    /// 0: programs are interpreted, several times slower.
    Off,
    /// 1: programs are compiled.
    On,
    /// 2: compiled, and every program is printed to the kernel's log.
    Debug,
}

/// Facts about the running kernel and its settings.
#[derive(Clone, Debug)]
pub struct Features {
    /// Release, as `uname -r` prints it.
    pub release: String,
    /// Whether the kernel publishes its types.
    pub btf: bool,
    /// Possible CPUs: what per-CPU maps have room for; at least the online ones.
    pub possible_cpus: Option<usize>,
    /// The just-in-time compiler. Kernels without CONFIG_BPF_JIT have no such setting; where the kernel is built
    /// with CONFIG_BPF_JIT_ALWAYS_ON it is always on.
    pub jit: Option<Jit>,
    /// Lockdown; absent where securityfs is not mounted or the kernel has none.
    pub lockdown: Option<Lockdown>,
    /// bpf(2) without privileges.
    pub unprivileged_bpf: Option<UnprivilegedBpf>,
    /// Where tracefs is mounted, if anywhere. Needed only where perf's tracepoints are (`load::Hook::PerfTracepoint`).
    pub tracefs: Option<PathBuf>,
    /// Limit for locked memory in bytes; `None`: unlimited. Kernels before 5.11 charge BPF maps to it.
    pub memlock: Option<u64>,
    /// Security modules in force, /sys/kernel/security/lsm; empty where the host does not tell.
    pub security_modules: Vec<String>,
    /// Whether the kernel measures programs, kernel.bpf_stats_enabled.
    pub bpf_stats: Option<bool>,
    /// Who may use perf, kernel.perf_event_paranoid. Debian knows 3: only CAP_SYS_ADMIN.
    pub perf_event_paranoid: Option<i32>,
    /// Whether a seccomp filter is on this process: it may refuse bpf(2) whatever the capabilities.
    pub seccomp: bool,
}

impl Features {
    /// Looks around. Total: what cannot be read is absent.
    pub fn of_this_host() -> Self {
        Self::under(Path::new("/"))
    }

    fn under(root: &Path) -> Self {
        let read = |path: &str| read_line(&root.join(path));
        let number = |path: &str| read(path).and_then(|text| text.parse::<u32>().ok());
        let mounts = read_text(&root.join("proc/self/mountinfo"), 1 << 20).unwrap_or_default();
        Self {
            release: rustix::system::uname().release().to_string_lossy().into_owned(),
            btf: Path::new(KernelBtf::HOST_PATH).exists(),
            possible_cpus: aya::util::nr_cpus().ok(),
            jit: number("proc/sys/net/core/bpf_jit_enable").and_then(|value| match value {
                0 => Some(Jit::Off),
                1 => Some(Jit::On),
                2 => Some(Jit::Debug),
                _ => None,
            }),
            lockdown: read("sys/kernel/security/lockdown").and_then(|text| parse_lockdown(&text)),
            unprivileged_bpf: number("proc/sys/kernel/unprivileged_bpf_disabled").and_then(
                |value| match value {
                    0 => Some(UnprivilegedBpf::Allowed),
                    1 => Some(UnprivilegedBpf::Never),
                    2 => Some(UnprivilegedBpf::Disabled),
                    _ => None,
                },
            ),
            tracefs: mount_of("tracefs", &mounts),
            memlock: rustix::process::getrlimit(rustix::process::Resource::Memlock).current,
            security_modules: read("sys/kernel/security/lsm")
                .map(|text| text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
                .unwrap_or_default(),
            bpf_stats: number("proc/sys/kernel/bpf_stats_enabled").map(|value| value != 0),
            perf_event_paranoid: read("proc/sys/kernel/perf_event_paranoid")
                .and_then(|text| text.parse().ok()),
            seccomp: read_text(&root.join("proc/self/status"), 1 << 16).is_some_and(|status| {
                status
                    .lines()
                    .any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() != "0"))
            }),
        }
    }

    /// Major and minor number of the release, for messages; what the kernel can do is asked of its types and
    /// of bpf(2), not of its version.
    pub fn version(&self) -> Option<(u32, u32)> {
        parse_version(&self.release)
    }
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// `none [integrity] confidentiality`: the state in force is in brackets.
fn parse_lockdown(text: &str) -> Option<Lockdown> {
    let (_, rest) = text.split_once('[')?;
    match rest.split_once(']')?.0 {
        "none" => Some(Lockdown::None),
        "integrity" => Some(Lockdown::Integrity),
        "confidentiality" => Some(Lockdown::Confidentiality),
        _ => None,
    }
}

/// The first mount of a file system type, from the text of a mountinfo file.
fn mount_of(kind: &str, mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        (source.split(' ').next()? == kind).then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

fn read_line(path: &Path) -> Option<String> {
    read_text(path, 4096).map(|text| text.trim().to_owned())
}

fn read_text(path: &Path, limit: u64) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(limit).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_absent_ones_are_absent() {
        let root = std::env::temp_dir().join(format!("probe-features-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let empty = Features::under(&root);
        assert_eq!(
            (empty.jit, empty.lockdown, empty.unprivileged_bpf, empty.seccomp),
            (None, None, None, false)
        );
        assert_eq!((empty.tracefs, empty.security_modules.len()), (None, 0));

        write("proc/sys/net/core/bpf_jit_enable", "1\n");
        write("proc/sys/kernel/unprivileged_bpf_disabled", "2\n");
        write("proc/sys/kernel/bpf_stats_enabled", "1\n");
        write("sys/kernel/security/lockdown", "none integrity [confidentiality]\n");
        write("sys/kernel/security/lsm", "lockdown,capability,apparmor,bpf");
        write("proc/self/status", "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n");
        write(
            "proc/self/mountinfo",
            "29 22 0:12 / /sys/kernel/tracing rw,nosuid shared:9 - tracefs tracefs rw\n",
        );
        let full = Features::under(&root);
        assert_eq!(full.jit, Some(Jit::On));
        assert_eq!(full.unprivileged_bpf, Some(UnprivilegedBpf::Disabled));
        assert_eq!(full.lockdown, Some(Lockdown::Confidentiality));
        assert_eq!(full.security_modules, ["lockdown", "capability", "apparmor", "bpf"]);
        assert_eq!(full.tracefs.as_deref(), Some(Path::new("/sys/kernel/tracing")));
        assert!(full.seccomp);
        assert_eq!((empty.bpf_stats, full.bpf_stats), (None, Some(true)));

        write("proc/sys/net/core/bpf_jit_enable", "7\n");
        write("sys/kernel/security/lockdown", "]none[\n");
        write("proc/self/mountinfo", "\u{fffd} - tracefs\n - \n\n");
        let odd = Features::under(&root);
        assert_eq!((odd.jit, odd.lockdown, odd.tracefs), (None, None, None));
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn versions() {
        let cases = [
            ("6.18.44-fc", Some((6, 18))),
            ("5.10.0-32-cloud-amd64", Some((5, 10))),
            ("7.2.13+deb14-cloud-amd64", Some((7, 2))),
            ("6", None),
            ("", None),
            ("x.y", None),
        ];
        for (release, expected) in cases {
            assert_eq!(parse_version(release), expected, "{release}");
        }
    }

    #[test]
    fn this_host_has_a_release_and_cpus() {
        let features = Features::of_this_host();
        assert!(features.version().is_some(), "{}", features.release);
        assert!(features.possible_cpus.is_some_and(|cpus| cpus > 0));
    }
}
