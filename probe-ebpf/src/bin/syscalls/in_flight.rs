//! Calls that have not returned for longer than their threshold: a walk over all threads (BPF iterator `task`), whenever user
//! space has seen that there are some. And once, when the other programs are attached, a walk for calls that began before: what
//! hangs has often hung for a while when somebody comes to look.

use core::ffi::c_void;
use core::ptr::addr_of;

use aya_ebpf::helpers::generated::{bpf_get_task_stack, bpf_seq_write, bpf_task_pt_regs};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use probe_common::fields::{self, KernelPointer};
use probe_common::settings::FILTER_SYSCALL;
use probe_common::syscalls::{
    ABI_COMPAT, CLASS_READS, CLASS_RECEIVES, InFlight, OLDER, SLEPT, STACK_LEN, Sleeper, SyscallId,
};
use probe_ebpf::{Error, Result, emit, filter, kread, socket, task};

use crate::sleepers::SLEEPERS;
use crate::{NEUTRAL, is_selected, now, rules, subject, syscall_id};

const BPF_NOEXIST: u64 = 1;

/// Where a record is made: it is too large for the stack. Walks come one after the other, from one thread of user space.
#[map]
static WALKED: Array<InFlight> = Array::with_max_entries(1, 0);

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
    if let Some((seq, task)) = visited(visit) {
        // What does not read is on its way out.
        let _nothing = visit_task(seq, task);
    }
    NEUTRAL
}

/// What is visited: where to write, and the thread. None at the end of the walk.
#[inline(always)]
fn visited(visit: *mut c_void) -> Option<(*mut c_void, *mut c_void)> {
    let visit = visit.cast::<Visit>();
    // SAFETY: the context of this hook.
    let (meta, task) =
        unsafe { (addr_of!((*visit).meta).read_volatile(), addr_of!((*visit).task).read_volatile()) };
    if task.is_null() {
        return None;
    }
    // SAFETY: the kernel's own, typed by its BTF.
    Some((unsafe { addr_of!((*meta).seq).read_volatile() }, task))
}

/// The same hook, for a walk of its own: notes the calls in which threads sleep that nobody has seen begin.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn older_calls(visit: *mut c_void) -> i32 {
    if let Some((_, task)) = visited(visit) {
        // As above.
        let _nothing = note_older(task);
    }
    NEUTRAL
}

#[inline(always)]
fn note_older(typed: *mut c_void) -> Result<()> {
    let task = kread::address_of(typed)?;
    if !task::has_helpers() || !sleeps(task)? || task::is_kernels(task)? {
        return Err(Error::NotOurs);
    }
    // SAFETY: the walk's own task.
    let regs = unsafe { bpf_task_pt_regs(typed.cast()) as KernelPointer };
    let number = kread!(regs, REGS_NUMBER)?;
    if number as i32 == -1 {
        return Err(Error::NotOurs);
    }
    let id = syscall_id(number, task::is_compat(task));
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    let owner = task::owner_of(task)?;
    if !filter::owner(settings, &owner)
        || !filter::cgroup(settings, cgroup(task)?)?
        || settings.filters & FILTER_SYSCALL != 0 && !is_selected(settings, id)
    {
        return Err(Error::NotOurs);
    }
    let now_ns = now();
    let sleeper = Sleeper {
        start_ns: now_ns,
        regs,
        left_ns: now_ns,
        off_cpu_ns: 0,
        id: u32::from(id) | OLDER,
        tgid: owner.tgid,
    };
    let tid = kread!(task, TASK_PID)? as u32;
    // What has begun since is known better.
    let _known = SLEEPERS.insert(tid, sleeper, BPF_NOEXIST);
    Ok(())
}

/// Whether a thread waits for something.
#[inline(always)]
fn sleeps(task: KernelPointer) -> Result<bool> {
    if kread::present(fields::TASK_STATE) {
        return Ok(kread!(task, TASK_STATE)? != 0);
    }
    Ok(kread!(task, TASK_STATE_LONG)? != 0)
}

#[inline(always)]
fn visit_task(seq: *mut c_void, typed: *mut c_void) -> Result<()> {
    let task = kread::address_of(typed)?;
    let tid = kread!(task, TASK_PID)? as u32;
    let sleeper = SLEEPERS.get_ptr(tid).ok_or(Error::NotOurs)?;
    // SAFETY: a value of the map; it may go, and become another's, while it is read: then it is told wrong once, with the
    // thread's stack of the moment.
    let Sleeper { start_ns, regs, left_ns, id, .. } = unsafe { *sleeper };
    if left_ns == 0 {
        return Err(Error::NotOurs);
    }
    let older = id & OLDER;
    if older != 0 && !sleeps(task)? {
        // It has returned from that before it could be noted.
        return Err(Error::NotOurs);
    }
    let id = id as SyscallId;
    let compat = id & ABI_COMPAT != 0;
    let rule = rules::rule(id).ok_or(Error::NotOurs)?;
    let now_ns = now();
    let elapsed_ns = now_ns.saturating_sub(start_ns);
    if elapsed_ns < rule.slow_ns && elapsed_ns < rule.waited_ns {
        return Err(Error::NotOurs);
    }
    // SAFETY: the walk's own task.
    let regs =
        if task::has_helpers() { unsafe { bpf_task_pt_regs(typed.cast()) as KernelPointer } } else { regs };
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
    record.cgroup_id = cgroup(task).and_then(socket::cgroup_id).unwrap_or(0);
    record.tid = tid;
    record.id = u32::from(id) | older | if sleeps(task)? { SLEPT } else { 0 };
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

#[inline(always)]
fn cgroup(task: KernelPointer) -> Result<KernelPointer> {
    kread!(kread!(task, TASK_CGROUPS)?, CSS_SET_DFL_CGRP)
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
