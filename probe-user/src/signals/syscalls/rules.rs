//! What is known of each system call before it is made: whether it waits by design, from when on it is slow, which of its
//! arguments is a descriptor and which a path.

use std::time::Duration;

use probe_common::settings::SYSCALL_SET_BITS;
use probe_common::syscalls::{
    ABI_COMPAT, CLASS_READS, CLASS_RECEIVES, CLASS_WAITS, CLASS_WORKS, NUMBER_MASK, RULE_COUNT, Rule,
    SyscallId,
};

use super::names;
use crate::config::Thresholds;

/// Calls that wait for somebody else by design: their durations say nothing about the kernel's work.
const WAITS: &[&str] = &[
    "clock_nanosleep",
    "clock_nanosleep_time64",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "futex",
    "futex_time64",
    "futex_wait",
    "futex_waitv",
    "io_getevents",
    "io_pgetevents",
    "io_pgetevents_time64",
    "io_uring_enter",
    "mq_timedreceive",
    "mq_timedreceive_time64",
    "msgrcv",
    "nanosleep",
    "pause",
    "poll",
    "ppoll",
    "ppoll_time64",
    "pselect6",
    "pselect6_time64",
    "restart_syscall",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "rt_sigtimedwait_time64",
    "select",
    "semop",
    "semtimedop",
    "semtimedop_time64",
    "sigsuspend",
    "wait4",
    "waitid",
    "waitpid",
];

/// Calls that wait where they sleep, for on a socket they sleep until somebody comes or sends.
const RECEIVES: &[&str] = &["accept", "accept4", "recvfrom", "recvmmsg", "recvmmsg_time64", "recvmsg"];

/// Calls that wait where they sleep, unless they read a file of a disk.
const READS: &[&str] = &["preadv2", "read", "readv"];

/// Whether a call waits by design, whatever it is about.
pub(super) fn waits(name: &str) -> bool {
    WAITS.binary_search(&name).is_ok()
}

/// Whether a call waits by design, or may, depending on what it is about.
pub(super) fn may_wait(name: &str) -> bool {
    class(name) != CLASS_WORKS
}

/// The class of a call, `CLASS_*`.
fn class(name: &str) -> u8 {
    if waits(name) {
        CLASS_WAITS
    } else if RECEIVES.contains(&name) {
        CLASS_RECEIVES
    } else if READS.contains(&name) {
        CLASS_READS
    } else {
        CLASS_WORKS
    }
}

/// Calls whose first argument is a descriptor (man 2).
const DESCRIPTOR_FIRST: &[&str] = &[
    "accept",
    "accept4",
    "bind",
    "close",
    "connect",
    "copy_file_range",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "fadvise64",
    "fallocate",
    "fchdir",
    "fchmod",
    "fchown",
    "fcntl",
    "fcntl64",
    "fdatasync",
    "fgetxattr",
    "finit_module",
    "flistxattr",
    "flock",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstat64",
    "fstatfs",
    "fstatfs64",
    "fsync",
    "ftruncate",
    "ftruncate64",
    "getdents",
    "getdents64",
    "getpeername",
    "getsockname",
    "getsockopt",
    "io_uring_enter",
    "ioctl",
    "listen",
    "lseek",
    "mq_timedreceive",
    "mq_timedsend",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readahead",
    "readv",
    "recvfrom",
    "recvmmsg",
    "recvmmsg_time64",
    "recvmsg",
    "sendfile",
    "sendfile64",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "splice",
    "sync_file_range",
    "syncfs",
    "tee",
    "vmsplice",
    "write",
    "writev",
];

/// Calls whose first argument is a path.
const PATH_FIRST: &[&str] = &[
    "access",
    "acct",
    "chdir",
    "chmod",
    "chown",
    "chroot",
    "creat",
    "execve",
    "getxattr",
    "lchown",
    "lgetxattr",
    "link",
    "listxattr",
    "llistxattr",
    "lremovexattr",
    "lsetxattr",
    "lstat",
    "lstat64",
    "mkdir",
    "mknod",
    "open",
    "pivot_root",
    "readlink",
    "removexattr",
    "rename",
    "rmdir",
    "setxattr",
    "stat",
    "stat64",
    "statfs",
    "statfs64",
    "swapoff",
    "swapon",
    "symlink",
    "truncate",
    "truncate64",
    "umount2",
    "unlink",
    "utime",
    "utimes",
];

/// Calls whose second argument is a path; the first says where a relative one begins, or what is mounted on it.
const PATH_SECOND: &[&str] = &[
    "execveat",
    "faccessat",
    "faccessat2",
    "fanotify_mark",
    "fchmodat",
    "fchmodat2",
    "fchownat",
    "fstatat64",
    "futimesat",
    "inotify_add_watch",
    "linkat",
    "mkdirat",
    "mknodat",
    "mount",
    "name_to_handle_at",
    "newfstatat",
    "open_tree",
    "openat",
    "openat2",
    "readlinkat",
    "renameat",
    "renameat2",
    "statx",
    "unlinkat",
    "utimensat",
    "utimensat_time64",
];

/// The rules of all calls, as the programs have them: the native table, and behind it the 32-bit one.
pub(super) fn all(thresholds: &Thresholds) -> impl Iterator<Item = Rule> + '_ {
    tables().map(|id| rule(names::name(id), thresholds))
}

/// The ids of both tables in the order of [`all`].
fn tables() -> impl Iterator<Item = SyscallId> {
    let numbers = || 0..RULE_COUNT as SyscallId;
    numbers().chain(numbers().map(|number| number | ABI_COMPAT))
}

fn rule(name: &str, thresholds: &Thresholds) -> Rule {
    let class = class(name);
    let own = thresholds.own(name).map(nanoseconds);
    let usual = own.unwrap_or(nanoseconds(thresholds.usual));
    Rule {
        // Who waits by design is slow only where that was asked for.
        slow_ns: if class == CLASS_WAITS { own.unwrap_or(u64::MAX) } else { usual },
        waited_ns: own.unwrap_or(u64::MAX),
        class,
        fd: u8::from(DESCRIPTOR_FIRST.binary_search(&name).is_ok()),
        path: if PATH_FIRST.binary_search(&name).is_ok() {
            1
        } else if PATH_SECOND.binary_search(&name).is_ok() {
            2
        } else {
            0
        },
        _pad: [0; 5],
    }
}

/// The rule of a call, in the order of [`all`].
fn of(rules: &[Rule], id: SyscallId) -> Option<&Rule> {
    let number = usize::from(id & NUMBER_MASK);
    let table = if id & ABI_COMPAT != 0 { RULE_COUNT as usize } else { 0 };
    rules.get(number + table).filter(|_rule| number < RULE_COUNT as usize)
}

/// Which argument of a call is a path, from 0.
pub(super) fn path_argument(rules: &[Rule], id: SyscallId) -> Option<usize> {
    usize::from(of(rules, id)?.path).checked_sub(1)
}

/// Whether a call that has taken so long may be late, depending on what it is about.
pub(super) fn may_be_late(rules: &[Rule], id: SyscallId, elapsed_ns: u64) -> bool {
    of(rules, id).is_some_and(|rule| elapsed_ns >= rule.slow_ns.min(rule.waited_ns))
}

/// Whether it is late whatever it is about.
pub(super) fn is_late_whatever(rules: &[Rule], id: SyscallId, elapsed_ns: u64) -> bool {
    of(rules, id).is_some_and(|rule| {
        let waits = [CLASS_READS, CLASS_RECEIVES].contains(&rule.class);
        elapsed_ns >= if waits { rule.waited_ns } else { rule.slow_ns }
    })
}

/// The least threshold of all: what is shorter need not be looked at.
pub(super) fn least_ns(thresholds: &Thresholds) -> u64 {
    all(thresholds).map(|rule| rule.slow_ns.min(rule.waited_ns)).min().unwrap_or(u64::MAX)
}

/// The numbers of calls by name, in both tables, as positions in `Settings::syscall_set`.
pub(super) fn positions(wanted: &[&'static str]) -> impl Iterator<Item = usize> {
    const { assert!(RULE_COUNT as usize == SYSCALL_SET_BITS) };
    let wanted = wanted.to_vec();
    tables()
        .enumerate()
        .filter(move |(_, id)| wanted.contains(&names::name(*id)))
        .map(|(position, _)| position)
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_known() {
        for list in [WAITS, RECEIVES, READS, DESCRIPTOR_FIRST, PATH_FIRST, PATH_SECOND] {
            assert!(list.is_sorted(), "{list:?}");
            for name in list {
                assert!(tables().any(|id| names::name(id) == *name), "{name} is in no table");
            }
        }
    }

    #[test]
    fn a_threshold_of_its_own_holds_even_for_what_waits() {
        let second = Duration::from_secs(1);
        let own = vec![("futex", second), ("read", second), ("openat", Duration::from_millis(10))];
        let thresholds = Thresholds { usual: Duration::from_millis(100), own };
        for (name, slow_ns, waited_ns) in [
            ("futex", 1_000_000_000, 1_000_000_000),
            ("nanosleep", u64::MAX, u64::MAX),
            ("read", 1_000_000_000, 1_000_000_000),
            ("recvfrom", 100_000_000, u64::MAX),
            ("openat", 10_000_000, 10_000_000),
            ("fsync", 100_000_000, u64::MAX),
        ] {
            let rule = rule(name, &thresholds);
            assert_eq!((rule.slow_ns, rule.waited_ns), (slow_ns, waited_ns), "{name}");
        }
        assert_eq!(least_ns(&thresholds), 10_000_000);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_name_means_the_call_in_both_tables() {
        let read: Vec<usize> = positions(&["read"]).collect();
        assert_eq!(read, [0, SYSCALL_SET_BITS + 3]);
        assert_eq!(positions(&["waitpid"]).collect::<Vec<_>>(), [SYSCALL_SET_BITS + 7], "of the 32-bit one");
    }
}
