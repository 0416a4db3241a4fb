//! Calls whose thread lost the CPU inside.
//!
//! An entry stays with its thread until that is gone: a call that is over leaves it there to the next one that sleeps. To write
//! into it costs a look-up; to remove it and to make it again costs three times that, and a request that is waited for is such a
//! call.

use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use probe_common::loss::Counter;
use probe_common::syscalls::{CpuState, ROUGHLY, SLEPT, Sleeper};
use probe_ebpf::emit;

use crate::{BPF_ANY, elapsed_ns, seen};

/// By thread id.
#[map]
pub(crate) static SLEEPERS: HashMap<u32, Sleeper> = HashMap::with_max_entries(16_384, 0);

/// Keeps the beginning of a thread's call.
#[inline(always)]
pub(crate) fn keep(tid: u32, sleeper: &Sleeper) {
    if !overwrite(tid, sleeper) && SLEEPERS.insert(tid, sleeper, BPF_ANY).is_err() {
        emit::count(Counter::SleepersFull, 1);
    }
}

/// Writes into the entry that a thread has. Returns whether it has one.
#[inline(always)]
pub(crate) fn overwrite(tid: u32, sleeper: &Sleeper) -> bool {
    match SLEEPERS.get_ptr_mut(tid) {
        // SAFETY: a value of the map; only this thread, running here, changes or removes it.
        Some(entry) => unsafe {
            *entry = *sleeper;
            true
        },
        None => false,
    }
}

/// Whether a thread's call is kept.
#[inline(always)]
pub(crate) fn has_call(tid: u32) -> bool {
    // SAFETY: a value of the map.
    SLEEPERS.get_ptr(tid).is_some_and(|sleeper| unsafe { (*sleeper).left_ns } != 0)
}

/// A thread's call is over.
#[inline(always)]
pub(crate) fn end(tid: u32) {
    if let Some(sleeper) = SLEEPERS.get_ptr_mut(tid) {
        // SAFETY: as in `overwrite`.
        unsafe { (*sleeper).left_ns = 0 };
    }
}

/// The current thread leaves its CPU, of its own will or not. If it is inside a call, that is kept from now on; if it was kept
/// before, it has had the CPU since the last switch here. Returns whether it is inside a call.
///
/// `slot_only`: if it is inside a call, the slot has it.
#[inline(always)]
pub(crate) fn leave(cpu: &mut CpuState, pid_tgid: u64, slot_only: bool, sleeps: bool, now_ns: u64) -> bool {
    let tid = pid_tgid as u32;
    let slept = if sleeps { SLEPT } else { 0 };
    if cpu.tid == tid {
        cpu.tid = 0;
        let start_ns = beginning(cpu, now_ns);
        let (regs, id, tgid) = (cpu.regs, cpu.id | slept, (pid_tgid >> 32) as u32);
        keep(tid, &Sleeper { start_ns, regs, left_ns: now_ns, off_cpu_ns: 0, id, tgid });
        return true;
    }
    if slot_only {
        return false;
    }
    let Some(sleeper) = SLEEPERS.get_ptr_mut(tid) else { return false };
    // SAFETY: as in `overwrite`.
    let sleeper = unsafe { &mut *sleeper };
    if sleeper.left_ns == 0 {
        return false;
    }
    sleeper.off_cpu_ns += cpu.switched_ns.saturating_sub(sleeper.left_ns);
    sleeper.left_ns = now_ns;
    sleeper.id |= slept;
    true
}

/// When the call in the slot began, CLOCK_MONOTONIC.
#[inline(always)]
fn beginning(cpu: &CpuState, now_ns: u64) -> u64 {
    if cpu.start_ns == 0 {
        return now_ns;
    }
    if cpu.id & ROUGHLY == 0 {
        return cpu.start_ns;
    }
    match emit::settings() {
        Some(settings) => now_ns.saturating_sub(elapsed_ns(cpu.start_ns, settings)),
        None => now_ns,
    }
}

/// Takes the beginning of the current thread's call, its time off the CPU made up.
#[inline(always)]
pub(crate) fn take(cpu: &CpuState, tid: u32) -> Option<Sleeper> {
    let sleeper = SLEEPERS.get_ptr_mut(tid)?;
    // SAFETY: as in `overwrite`.
    let sleeper = unsafe { &mut *sleeper };
    let mut begun = *sleeper;
    if begun.left_ns == 0 {
        return None;
    }
    sleeper.left_ns = 0;
    begun.off_cpu_ns += seen(&cpu.switched_ns).saturating_sub(begun.left_ns);
    Some(begun)
}
