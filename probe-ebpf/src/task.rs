//! Who the current task is: only for hooks that run in the process they are about.

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_get_current_task};
use probe_common::fields::{self, KernelPointer};
use probe_common::wire::Owner;

use crate::{Result, kread};

/// The current process, named by its leading thread.
#[inline(always)]
pub fn owner() -> Result<Owner> {
    // SAFETY: the helper has no requirement.
    owner_of(unsafe { bpf_get_current_task() })
}

/// Who owns a socket that is being used now: the current process; nobody, if it is a thread of the kernel's own. Those connect for
/// others (further paths of an MPTCP connection, file systems over the network).
#[inline(always)]
pub fn owner_of_socket() -> Result<Owner> {
    // SAFETY: the helper has no requirement.
    let task = unsafe { bpf_get_current_task() };
    if is_kernels(task)? {
        return Ok(Owner::UNKNOWN);
    }
    // SAFETY: the helper has no requirement.
    let tgid = unsafe { bpf_get_current_pid_tgid() } >> 32;
    named(task, tgid as u32)
}

/// Whether a task is a thread of the kernel's own.
#[inline(always)]
pub fn is_kernels(task: KernelPointer) -> Result<bool> {
    /// include/linux/sched.h
    const PF_KTHREAD: u32 = 0x0020_0000;
    Ok(kread!(task, TASK_FLAGS)? & PF_KTHREAD != 0)
}

/// The process of a task.
#[inline(always)]
pub fn owner_of(task: KernelPointer) -> Result<Owner> {
    named(task, kread!(task, TASK_TGID)? as u32)
}

/// The process of a task, of which the id is known.
#[inline(always)]
fn named(task: KernelPointer, tgid: u32) -> Result<Owner> {
    let leader = kread!(task, TASK_GROUP_LEADER)?;
    Ok(Owner {
        start_ns: kread!(leader, TASK_START_BOOTTIME)?,
        tgid,
        _pad: 0,
        comm: kread::read_text(leader, fields::TASK_COMM)?,
    })
}

/// The `struct cgroup` of the current task in the v2 hierarchy. (5.10 has no helper for its ancestors in tracepoints.)
#[inline(always)]
pub fn cgroup() -> Result<KernelPointer> {
    // SAFETY: the helper has no requirement.
    let task = unsafe { bpf_get_current_task() };
    kread!(kread!(task, TASK_CGROUPS)?, CSS_SET_DFL_CGRP)
}

/// Whether the current task is inside a 32-bit system call (x86: TS_COMPAT in thread_info.status,
/// arch/x86/include/asm/thread_info.h).
#[inline(always)]
pub fn in_compat_call() -> bool {
    // SAFETY: the helper has no requirement.
    is_compat(unsafe { bpf_get_current_task() })
}

/// The same of a task.
#[inline(always)]
pub fn is_compat(task: KernelPointer) -> bool {
    const TS_COMPAT: u32 = 0x2;
    kread::present(fields::TASK_THREAD_STATUS)
        && kread!(task, TASK_THREAD_STATUS).is_ok_and(|status| status & TS_COMPAT != 0)
}
