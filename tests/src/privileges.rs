//! `probe` with fewer privileges than its caller: another user, fewer capabilities, seccomp, a user namespace.
#![expect(unsafe_code, reason = "a child's privileges are set between fork and exec")]

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{Gid, Resource, Rlimit, Uid, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, configure_capability_in_ambient_set, set_capabilities,
    set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};

use crate::bpf::preempts_programs;
use crate::probe::{binary, require_root};

/// A user of no privileges, `nobody` nearly everywhere.
pub const NOBODY: u32 = 65_534;

/// All that the three signals take.
pub const LEAST: CapabilitySet =
    CapabilitySet::BPF.union(CapabilitySet::PERFMON).union(CapabilitySet::NET_ADMIN);

/// [`LEAST`], and where programs at raw tracepoints lose their CPU what it takes to look into tracefs, which is root's alone.
///
/// # Errors
///
/// The kernel's BTF does not read.
pub fn least_to_be_exact() -> Result<CapabilitySet> {
    let more = if preempts_programs()? { CapabilitySet::DAC_READ_SEARCH } else { CapabilitySet::empty() };
    Ok(LEAST | more)
}

/// A copy of the binary where every user may run it; gone at the end.
#[derive(Debug)]
pub struct PublicCopy {
    directory: PathBuf,
}

impl PublicCopy {
    /// Copies it.
    ///
    /// # Errors
    ///
    /// Not root, or no room.
    pub fn new(name: &str) -> Result<Self> {
        require_root()?;
        let directory = std::env::temp_dir().join(format!("probe-{name}-{}", std::process::id()));
        std::fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        let copy = Self { directory };
        std::fs::copy(binary()?, copy.path())?;
        for path in [&copy.directory, &copy.path()] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))?;
        }
        Ok(copy)
    }

    fn path(&self) -> PathBuf {
        self.directory.join("probe")
    }

    /// Makes `command` run the copy in place of what it would.
    pub fn put_into(&self, command: &mut Command) {
        let mut copy = Command::new(self.path());
        copy.args(command.get_args()).current_dir(Path::new("/")).stdin(std::process::Stdio::null());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => copy.env(name, value),
                None => copy.env_remove(name),
            };
        }
        *command = copy;
    }
}

impl Drop for PublicCopy {
    fn drop(&mut self) {
        // What is left in /tmp does no harm.
        let _left = std::fs::remove_dir_all(&self.directory);
    }
}

/// Makes `command` run as [`NOBODY`] with exactly these capabilities, in its ambient set too. As a service manager would,
/// it lifts the limit for locked memory.
pub fn as_nobody(command: &mut Command, capabilities: CapabilitySet) {
    let become_nobody = move || {
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        // Refused on hosts whose root lacks CAP_SYS_RESOURCE; kernels that look at the limit are not among them.
        let _refused = limit_memlock(None);
        set_keep_capabilities(true)?;
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        let (effective, permitted, inheritable) = (capabilities, capabilities, capabilities);
        set_capabilities(None, CapabilitySets { effective, permitted, inheritable })?;
        for capability in capabilities.iter() {
            configure_capability_in_ambient_set(capability, true)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe { command.pre_exec(become_nobody) };
}

/// Gives `command` a limit for locked memory that it cannot raise without CAP_SYS_RESOURCE. To be called after
/// [`as_nobody`], which lifts it.
pub fn with_memlock(command: &mut Command, bytes: u64) {
    // SAFETY: between fork and exec only one system call is made.
    unsafe { command.pre_exec(move || limit_memlock(Some(bytes))) };
}

fn limit_memlock(bytes: Option<u64>) -> io::Result<()> {
    Ok(setrlimit(Resource::Memlock, Rlimit { current: bytes, maximum: bytes })?)
}

/// Makes `command` run under a seccomp filter that answers every bpf(2) with EPERM, as profiles of container runtimes do.
pub fn without_bpf(command: &mut Command) {
    let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let number = u32::try_from(libc::SYS_bpf).unwrap_or(u32::MAX);
    let mut filter = [
        // The number of the call is the first word of `struct seccomp_data`.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, refuse, 0, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let install = move || {
        let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
        // SAFETY: the program lives until the kernel has copied it; `len` statements are there.
        let failed =
            unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec only prctl is called.
    unsafe { command.pre_exec(install) };
}

/// Makes `command` run as root of a user namespace of its own, with every capability there and none outside.
pub fn in_user_namespace(command: &mut Command) {
    let enter = || {
        // SAFETY: the child is about to exec and shares nothing.
        unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?;
        for (file, text) in [
            (c"/proc/self/uid_map", &b"0 0 1"[..]),
            (c"/proc/self/setgroups", b"deny"),
            (c"/proc/self/gid_map", b"0 0 1"),
        ] {
            let file = openat(CWD, file, OFlags::WRONLY, Mode::empty())?;
            rustix::io::write(file, text)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe { command.pre_exec(enter) };
}

/// Takes tracefs away from `command`, which gets a mount namespace of its own.
pub fn without_tracefs(command: &mut Command) {
    let take = || {
        // SAFETY: the child is about to exec and shares nothing.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        for place in [c"/sys/kernel/tracing", c"/sys/kernel/debug"] {
            match unmount(place, UnmountFlags::DETACH) {
                // Nothing is mounted there.
                Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe { command.pre_exec(take) };
}

/// What a thread may do, by its /proc/PID/task/TID/status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadPrivileges {
    /// CapEff.
    pub effective: CapabilitySet,
    /// CapPrm.
    pub permitted: CapabilitySet,
    /// CapInh.
    pub inheritable: CapabilitySet,
    /// CapAmb.
    pub ambient: CapabilitySet,
    /// CapBnd.
    pub bounding: CapabilitySet,
    /// NoNewPrivs.
    pub no_new_privs: bool,
}

/// Those of every thread of a process.
///
/// # Errors
///
/// It is gone, or the kernel writes something else.
pub fn of_threads(pid: u32) -> Result<Vec<ThreadPrivileges>> {
    let mut threads = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            value.with_context(|| format!("no {name} in: {status}"))
        };
        let set = |name: &str| -> Result<CapabilitySet> {
            Ok(CapabilitySet::from_bits_retain(u64::from_str_radix(field(name)?, 16)?))
        };
        threads.push(ThreadPrivileges {
            effective: set("CapEff")?,
            permitted: set("CapPrm")?,
            inheritable: set("CapInh")?,
            ambient: set("CapAmb")?,
            bounding: set("CapBnd")?,
            no_new_privs: field("NoNewPrivs")? == "1",
        });
    }
    ensure!(!threads.is_empty(), "no threads");
    Ok(threads)
}
