//! Calls that take long: an event each.

use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use probe_common::fields::KernelPointer;
use probe_common::loss::Counter;
use probe_common::syscalls::{KIND_SLOW, NUMBER_MASK, SlowRecord, SyscallId, THRESHOLD_COUNT};
use probe_common::wire::RecordHeader;
use probe_ebpf::{Result, emit, kread, task};

use crate::now;

/// From how many nanoseconds on a call is slow, by number (native table).
#[map]
static THRESHOLDS: Array<u64> = Array::with_max_entries(THRESHOLD_COUNT, 0);

/// A call above the least threshold: is it above its own, and is it one that may take long?
#[inline(never)]
pub(crate) fn report(regs: KernelPointer, pid_tgid: u64, id: SyscallId, duration_ns: u64, ret: i64) {
    if try_report(regs, pid_tgid, id, duration_ns, ret).is_err() {
        emit::count(Counter::KernelRead, 1);
    }
}

#[inline(always)]
fn try_report(regs: KernelPointer, pid_tgid: u64, id: SyscallId, duration_ns: u64, ret: i64) -> Result<()> {
    if task::in_compat_call() {
        // Thresholds are by native number.
        return Ok(());
    }
    let Some(threshold) = THRESHOLDS.get_ptr(u32::from(id & NUMBER_MASK)) else { return Ok(()) };
    // SAFETY: a value of an array, read once.
    if duration_ns < unsafe { *threshold } {
        return Ok(());
    }
    let owner = task::owner()?;
    // SAFETY: the helper has no requirement.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    let Some(record) = emit::reserve::<SlowRecord>() else { return Ok(()) };
    record.header = RecordHeader::of::<SlowRecord>(KIND_SLOW, now());
    record.duration_ns = duration_ns;
    record.cgroup_id = cgroup_id;
    record.ret = ret;
    record.tgid = (pid_tgid >> 32) as u32;
    record.tid = pid_tgid as u32;
    record.id = u32::from(id);
    record.start_ns = owner.start_ns;
    record.comm = owner.comm;
    record.has_args = u32::from(arguments(regs, &mut record.args).is_ok());
    emit::submit(record);
    Ok(())
}

#[inline(always)]
fn arguments(regs: KernelPointer, args: &mut [u64; 6]) -> Result<()> {
    args[0] = kread!(regs, REGS_ARG0)?;
    args[1] = kread!(regs, REGS_ARG1)?;
    args[2] = kread!(regs, REGS_ARG2)?;
    args[3] = kread!(regs, REGS_ARG3)?;
    args[4] = kread!(regs, REGS_ARG4)?;
    args[5] = kread!(regs, REGS_ARG5)?;
    Ok(())
}
