//! Names of system calls, from the tables of the crate `syscalls` (generated from the kernel's own).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use probe_common::syscalls::{ABI_COMPAT, ABI_X32, NUMBER_MASK, NUMBER_UNKNOWN, SyscallId};
use syscalls::{x86, x86_64};

/// As attribute `syscall.class`.
#[must_use]
pub const fn class(waits: bool) -> &'static str {
    if waits { "wait" } else { "work" }
}

/// The name of a call of this machine's native table, `syscall_N` where it has none.
fn native(number: u32) -> &'static str {
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

/// `syscall_N`, made once for each of the 8,191 numbers that can occur.
fn unnamed(number: u32) -> &'static str {
    static MADE: Mutex<BTreeMap<u32, &'static str>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    made.entry(number).or_insert_with(|| Box::leak(format!("syscall_{number}").into_boxed_str()))
}

/// The name as the tables have it: the native one's, or the 32-bit one's.
#[must_use]
pub fn known(wanted: &str) -> Option<&'static str> {
    all().find(|name| *name == wanted)
}

/// The names of both tables; those that both have come twice.
pub fn all() -> impl Iterator<Item = &'static str> {
    let numbers = || 0..probe_common::syscalls::RULE_COUNT as SyscallId;
    let ids = numbers().chain(numbers().map(|number| number | ABI_COMPAT));
    ids.map(name).filter(|name| !name.starts_with("syscall_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn tables() {
        assert_eq!(name(39), "getpid");
        assert_eq!(name(ABI_COMPAT | 20), "getpid");
        assert_eq!(name(ABI_X32 | 39), "getpid");
        assert_eq!(name(5000), "syscall_5000");
        assert_eq!(name(NUMBER_UNKNOWN), "syscall_unknown");
        assert_eq!(name(ABI_COMPAT | 7), "waitpid");
        assert_eq!([known("getppid"), known("waitpid")], [Some("getppid"), Some("waitpid")]);
        assert_eq!(known("nonsense"), None);
    }
}
