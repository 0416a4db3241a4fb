//! Calls that have not returned for longer than their threshold: a walk over all threads (BPF iterator `task`), whenever user
//! space has seen that there are some.

use core::ffi::c_void;
use core::ptr::addr_of;

use aya_ebpf::helpers::generated::{bpf_get_task_stack, bpf_seq_write, bpf_task_pt_regs};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use probe_common::fields::KernelPointer;
use probe_common::loss::Counter;
use probe_common::syscalls::{
    ABI_COMPAT, CLASS_READS, CLASS_RECEIVES, InFlight, STACK_LEN, Sleeper, SyscallId,
};
use probe_ebpf::{Error, Result, emit, kread, socket, task};

use crate::blocks::PROCESSES;
use crate::sleepers::SLEEPERS;
use crate::{NEUTRAL, now, rules, subject};

/// Where a record is made: it is too large for the stack. Walks come one after the other, from one thread of user space.
#[map]
static WALKED: Array<InFlight> = Array::with_max_entries(1, 0);

/// 1: programs at raw tracepoints can lose their CPU (see the head of syscalls.rs); such a kernel has `bpf_task_pt_regs`.
/// Read-only data, set before loading.
#[unsafe(no_mangle)]
static BACKED: u8 = 0;

/// `struct bpf_iter__task` of kernel/bpf/task_iter.c: every member takes eight bytes.
#[repr(C)]
struct Visit {
    meta: *mut Meta,
    /// Null at the end of the walk.
    task: *mut c_void,
}

/// `struct bpf_iter_meta` of include/linux/bpf.h: likewise.
#[repr(C)]
struct Meta {
    seq: *mut c_void,
}

/// `bpf_iter_task(struct bpf_iter_meta *meta, struct task_struct *task)`: writes an [`InFlight`] for each call that is late.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn calls_in_flight(visit: *mut c_void) -> i32 {
    let visit = visit.cast::<Visit>();
    // SAFETY: the context of this hook.
    let (meta, task) =
        unsafe { (addr_of!((*visit).meta).read_volatile(), addr_of!((*visit).task).read_volatile()) };
    if task.is_null() {
        return NEUTRAL;
    }
    // SAFETY: the kernel's own, typed by its BTF.
    let seq = unsafe { addr_of!((*meta).seq).read_volatile() };
    if let Err(Error::Read) = visit_task(seq, task) {
        emit::count(Counter::KernelRead, 1);
    }
    NEUTRAL
}

#[inline(always)]
fn visit_task(seq: *mut c_void, typed: *mut c_void) -> Result<()> {
    let task = kread::address_of(typed)?;
    let tid = kread!(task, TASK_PID)? as u32;
    let sleeper = SLEEPERS.get_ptr(tid).ok_or(Error::NotOurs)?;
    // SAFETY: a value of the map; it may go, and become another's, while it is read: then it is told wrong once, with the
    // thread's stack of the moment.
    let Sleeper { start_ns, regs, id, tgid, .. } = unsafe { *sleeper };
    let id = id as SyscallId;
    let compat = is_compat(tgid);
    let rule = rules::rule(id, compat).ok_or(Error::NotOurs)?;
    let now_ns = now();
    let elapsed_ns = now_ns.saturating_sub(start_ns);
    if elapsed_ns < rule.slow_ns && elapsed_ns < rule.waited_ns {
        return Err(Error::NotOurs);
    }
    // SAFETY: a static; volatile, because the compiler sees only the zero that user space overwrites.
    let backed = unsafe { addr_of!(BACKED).read_volatile() } != 0;
    // SAFETY: the walk's own task.
    let regs = if backed { unsafe { bpf_task_pt_regs(typed.cast()) as KernelPointer } } else { regs };
    let waits =
        rule.class == CLASS_RECEIVES || rule.class == CLASS_READS && !reads_a_disk(task, regs, compat);
    if elapsed_ns < if waits { rule.waited_ns } else { rule.slow_ns } {
        return Err(Error::NotOurs);
    }
    let owner = task::owner_of(task)?;
    let record = WALKED.get_ptr_mut(0).ok_or(Error::NotOurs)?;
    // SAFETY: the one value, ours alone.
    let record = unsafe { &mut *record };
    clear(record);
    record.start_ns = start_ns;
    record.now_ns = now_ns;
    record.owner = owner;
    record.cgroup_id = cgroup_id(task).unwrap_or(0);
    record.tid = tid;
    record.id = u32::from(id) | if compat { u32::from(ABI_COMPAT) } else { 0 };
    // SAFETY: the walk's own task, and as many bytes as the array has. What it returns is how many it wrote, or that the thread
    // is gone: then there are zeros.
    let _written = unsafe {
        bpf_get_task_stack(typed.cast(), (&raw mut record.stack).cast(), (STACK_LEN * 8) as u32, 0)
    };
    subject::describe(&mut record.subject, task, regs, rule, compat, false);
    // SAFETY: `seq` is the kernel's. No room: the kernel comes by once more when user space has read what is there.
    let _written =
        unsafe { bpf_seq_write(seq.cast(), (&raw mut *record).cast(), size_of::<InFlight>() as u32) };
    Ok(())
}

/// Whether a process is a 32-bit one.
#[inline(always)]
fn is_compat(tgid: u32) -> bool {
    // SAFETY: a value of the map, of which one word is read.
    PROCESSES.get_ptr(tgid).is_some_and(|process| unsafe { (*process).abi } & u32::from(ABI_COMPAT) != 0)
}

#[inline(always)]
fn cgroup_id(task: KernelPointer) -> Result<u64> {
    socket::cgroup_id(kread!(kread!(task, TASK_CGROUPS)?, CSS_SET_DFL_CGRP)?)
}

#[inline(always)]
fn reads_a_disk(task: KernelPointer, regs: KernelPointer, compat: bool) -> bool {
    let descriptor = if compat { kread!(regs, REGS_BX) } else { kread!(regs, REGS_ARG0) };
    descriptor.and_then(|descriptor| subject::is_fed_file(task, descriptor)).is_ok_and(|is_fed| !is_fed)
}

#[inline(always)]
fn clear(record: &mut InFlight) {
    for word in 0..size_of::<InFlight>() / 8 {
        // SAFETY: inside the record, which is plain integers.
        unsafe { (&raw mut *record).cast::<u64>().add(word).write_volatile(0) };
    }
}
