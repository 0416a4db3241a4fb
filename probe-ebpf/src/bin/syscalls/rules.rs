//! What is known of each system call: whether it waits by design, from when on it is slow, what it is about.

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use probe_common::fields::KernelPointer;
use probe_common::syscalls::{
    ABI_COMPAT, CLASS_READS, CLASS_RECEIVES, NUMBER_MASK, RULE_COUNT, Rule, SyscallId,
};

use crate::subject;

/// By number: the native table, and behind it the 32-bit one.
#[map]
static RULES: Array<Rule> = Array::with_max_entries(2 * RULE_COUNT, 0);

/// That of a call.
#[inline(always)]
pub(crate) fn rule(id: SyscallId) -> Option<&'static Rule> {
    let number = u32::from(id & NUMBER_MASK);
    if number >= RULE_COUNT {
        return None;
    }
    // SAFETY: a value of an array, written before the programs were attached.
    RULES.get_ptr(number + if id & ABI_COMPAT != 0 { RULE_COUNT } else { 0 }).map(|rule| unsafe { &*rule })
}

/// Whether the current thread's call, which slept, did so until somebody else did something: recv(2) on a socket, or read(2) on
/// what is no file of a disk. (Whether it slept at all is asked first: without, it was work.)
#[inline(never)]
pub(crate) fn waited(id: SyscallId, regs: KernelPointer) -> bool {
    match rule(id) {
        Some(rule) => {
            rule.class == CLASS_RECEIVES
                || rule.class == CLASS_READS && subject::is_fed(regs, id & ABI_COMPAT != 0)
        }
        None => false,
    }
}
