//! Who the current task is: only for hooks that run in the process they are about.

use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf,
};
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

/// 1: this kernel has `bpf_task_pt_regs` (5.15), and `bpf_get_current_task_btf` with it. Read-only data, set before loading.
#[unsafe(no_mangle)]
static TASK_HELPERS: u8 = 0;

/// Whether this kernel has `bpf_task_pt_regs` and `bpf_get_current_task_btf`. The verifier knows, and leaves out what is not for it.
#[inline(always)]
pub fn has_helpers() -> bool {
    // SAFETY: a static; volatile, because the compiler sees only the zero that user space overwrites.
    unsafe { core::ptr::addr_of!(TASK_HELPERS).read_volatile() != 0 }
}

/// x86: TS_COMPAT of `thread_info.status`, arch/x86/include/asm/thread_info.h.
const TS_COMPAT: u32 = 0x2;

/// Whether the current task is inside a 32-bit system call. Asked for every call: where it can be had, a load and no helper.
#[inline(always)]
pub fn in_compat_call() -> bool {
    if !kread::present(fields::TASK_THREAD_STATUS) {
        return false;
    }
    if !has_helpers() {
        // SAFETY: the helper has no requirement.
        return is_compat(unsafe { bpf_get_current_task() });
    }
    // SAFETY: the helper has no requirement; the verifier knows the struct, and that the member lies there.
    let status = unsafe {
        let task = bpf_get_current_task_btf().cast::<u8>();
        task.add(kread::offset(fields::TASK_THREAD_STATUS) as usize).cast::<u32>().read_volatile()
    };
    status & TS_COMPAT != 0
}

/// The same of any task.
#[inline(always)]
pub fn is_compat(task: KernelPointer) -> bool {
    kread::present(fields::TASK_THREAD_STATUS)
        && kread!(task, TASK_THREAD_STATUS).is_ok_and(|status| status & TS_COMPAT != 0)
}
