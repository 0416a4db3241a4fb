//! Calls that take long: an event each.

use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_current_task};
use probe_common::fields::KernelPointer;
use probe_common::loss::Counter;
use probe_common::syscalls::{ABI_COMPAT, KIND_SLOW, SlowRecord, SyscallId, WAITED};
use probe_common::wire::RecordHeader;
use probe_ebpf::{Result, emit, task};

use crate::{now, rules, subject};

/// A call above the least threshold.
pub(crate) struct Slow {
    pub(crate) regs: KernelPointer,
    pub(crate) pid_tgid: u64,
    pub(crate) duration_ns: u64,
    pub(crate) off_cpu_ns: u64,
    pub(crate) ret: i64,
    pub(crate) id: SyscallId,
}

/// Is it above its own threshold, and is it one that may take long?
#[inline(never)]
pub(crate) fn report(slow: &Slow) {
    if try_report(slow).is_err() {
        emit::count(Counter::KernelRead, 1);
    }
}

#[inline(always)]
fn try_report(slow: &Slow) -> Result<()> {
    let Some(rule) = rules::rule(slow.id) else { return Ok(()) };
    let waited = slow.id & WAITED != 0;
    if slow.duration_ns < if waited { rule.waited_ns } else { rule.slow_ns } {
        return Ok(());
    }
    let owner = task::owner()?;
    // SAFETY: the helpers have no requirement.
    let (cgroup_id, task) = unsafe { (bpf_get_current_cgroup_id(), bpf_get_current_task()) };
    let Some(record) = emit::reserve::<SlowRecord>() else { return Ok(()) };
    record.header = RecordHeader::of::<SlowRecord>(KIND_SLOW, now());
    record.duration_ns = slow.duration_ns;
    record.off_cpu_ns = slow.off_cpu_ns;
    record.cgroup_id = cgroup_id;
    record.ret = slow.ret;
    record.owner = owner;
    record.tid = slow.pid_tgid as u32;
    record.id = u32::from(slow.id & !WAITED);
    let compat = slow.id & ABI_COMPAT != 0;
    subject::describe(&mut record.subject, task, slow.regs, rule, compat, true);
    emit::submit(record);
    Ok(())
}
