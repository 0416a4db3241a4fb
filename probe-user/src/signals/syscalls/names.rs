//! Names of system calls and errnos, from the tables of the crate `syscalls` (generated from the kernel's own), and which
//! calls wait by design.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use probe_common::syscalls::{ABI_COMPAT, ABI_X32, NUMBER_MASK, NUMBER_UNKNOWN, SyscallId};
use syscalls::{x86, x86_64};

/// Calls that wait for somebody else by design: their durations say nothing about the kernel's work.
const WAITS: &[&str] = &[
    "accept",
    "accept4",
    "clock_nanosleep",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "futex",
    "futex_wait",
    "futex_waitv",
    "io_getevents",
    "io_pgetevents",
    "io_uring_enter",
    "mq_timedreceive",
    "msgrcv",
    "nanosleep",
    "pause",
    "poll",
    "ppoll",
    "pselect6",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "restart_syscall",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "select",
    "semop",
    "semtimedop",
    "wait4",
    "waitid",
    "waitpid",
];

/// Whether a call waits by design.
#[must_use]
pub fn waits(name: &str) -> bool {
    WAITS.binary_search(&name).is_ok()
}

/// As attribute `syscall.class`.
#[must_use]
pub const fn class(waits: bool) -> &'static str {
    if waits { "wait" } else { "work" }
}

/// The name of a call of this machine's native table, `syscall_N` where it has none.
#[must_use]
pub fn native(number: u32) -> &'static str {
    #[cfg(target_arch = "x86_64")]
    let name = x86_64::Sysno::new(number as usize).map(|sysno| sysno.name());
    #[cfg(target_arch = "aarch64")]
    let name = syscalls::aarch64::Sysno::new(number as usize).map(|sysno| sysno.name());
    name.unwrap_or_else(|| unnamed(number))
}

/// The name of a call, of whichever ABI.
#[must_use]
pub fn name(id: SyscallId) -> &'static str {
    let number = u32::from(id & NUMBER_MASK);
    if id & NUMBER_MASK == NUMBER_UNKNOWN {
        return "syscall_unknown";
    }
    if id & ABI_COMPAT != 0 {
        return x86::Sysno::new(number as usize).map_or_else(|| unnamed(number), |sysno| sysno.name());
    }
    if id & ABI_X32 != 0 {
        // x32 shares the 64-bit table below 512.
        return x86_64::Sysno::new(number as usize).map_or_else(|| unnamed(number), |sysno| sysno.name());
    }
    native(number)
}

/// `syscall_N`, made once for each of the 16,383 numbers that can occur.
fn unnamed(number: u32) -> &'static str {
    static MADE: Mutex<BTreeMap<u32, &'static str>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    made.entry(number).or_insert_with(|| Box::leak(format!("syscall_{number}").into_boxed_str()))
}

/// The number of a call of the native table by its name.
#[must_use]
pub fn by_name(wanted: &str) -> Option<SyscallId> {
    numbers().find(|number| native(*number) == wanted).and_then(|number| SyscallId::try_from(number).ok())
}

/// The names of the native table.
pub fn all() -> impl Iterator<Item = &'static str> {
    numbers().map(native).filter(|name| !name.starts_with("syscall_"))
}

/// Numbers below which native tables keep their calls.
fn numbers() -> std::ops::Range<u32> {
    0..probe_common::syscalls::THRESHOLD_COUNT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_known() {
        assert!(WAITS.is_sorted());
        for name in WAITS {
            let known = (0..1024).any(|n| native(n) == *name || self::name(ABI_COMPAT | n as u16) == *name);
            assert!(known, "{name} is in no table");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn tables() {
        assert_eq!(name(39), "getpid");
        assert_eq!(name(ABI_COMPAT | 20), "getpid");
        assert_eq!(name(ABI_X32 | 39), "getpid");
        assert_eq!(name(9000), "syscall_9000");
        assert_eq!(name(NUMBER_UNKNOWN), "syscall_unknown");
        assert_eq!(by_name("getppid"), Some(110));
        assert_eq!(by_name("nonsense"), None);
    }
}
