//! syscalls: exact counts, errors and latency histograms per (process, system call). Raw tracepoints only.
//!
//! The fast path makes no hash look-up. A call in flight is kept in its CPU's slot; only when its thread loses the CPU
//! inside the call does the slot move to a hash (`SLEEPERS`, by thread). Figures are kept in blocks of one (process,
//! call, writer) each: a block has a single writer, so plain additions are exact, and memory follows what really ran
//! instead of possible CPUs times keys. Each CPU remembers where its recent blocks are; a block names its key, so a
//! line gone stale is noticed.
//!
//! From Linux 7.0 on a raw tracepoint program can lose its CPU (`__bpf_trace_run` of kernel/trace/bpf_trace.c takes
//! `rcu_read_lock_dont_migrate`; nothing keeps preemption off any more), and until it goes on, the kernel skips every other run
//! of the same program on that CPU. So there the programs named `…_perf` take the place of those at raw tracepoints: the same at
//! perf's tracepoints, which keep preemption off. Those the kernel skips on a CPU where a thread has lost it inside bpf(2)
//! (`bpf_disable_instrumentation`); so behind each comes one named `…_backup`, at the raw tracepoint, which acts only where it
//! was skipped. It sees that by what the other would have left behind: [`CpuState::done`], and the beginning of the call,
//! which exists once. `sched_switch` runs with interrupts off everywhere; it counts itself ([`CpuState::switches`]), so that a
//! program which lost the CPU between two words of the slot sees it.
#![no_std]
#![no_main]

use core::hint::black_box;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf,
    bpf_get_smp_processor_id, bpf_task_pt_regs,
};
use aya_ebpf::macros::{map, raw_tracepoint, tracepoint};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::{RawTracePointContext, TracePointContext};
use aya_log_ebpf::debug;
use probe_common::fields::KernelPointer;
use probe_common::loss::Counter;
use probe_common::settings::{
    FILTER_CGROUP, FILTER_COMM, FILTER_SYSCALL, FILTER_TGID, SYSCALL_SET_BITS, Settings,
};
use probe_common::syscalls::{ABI_X32, CpuState, NUMBER_UNKNOWN, Sleeper, SyscallId};
use probe_ebpf::{Error, Result, emit, filter, kread, task};

#[path = "syscalls/blocks.rs"]
mod blocks;
#[path = "syscalls/slow.rs"]
mod slow;

use blocks::{Call, PROCESSES, abi};

/// Raw tracepoints have no verdict; 0 is what the kernel expects.
const NEUTRAL: i32 = 0;

const BPF_ANY: u64 = 0;
const BPF_EXIST: u64 = 2;

/// One entry a possible CPU; sized at load time.
#[map]
static CPUS: Array<CpuState> = Array::with_max_entries(1, 0);

/// Calls whose thread lost the CPU inside, by thread id.
#[map]
static SLEEPERS: HashMap<u32, Sleeper> = HashMap::with_max_entries(16_384, 0);

/// Whose place a program has.
type Place = u32;
/// At the hook alone, or before its backup.
const FIRST: Place = 0;
/// Behind another, for when that is skipped.
const BACKUP: Place = 1;

/// What a program has dealt with, in [`CpuState::done`]: above the thread's id, which takes 22 bits (`PID_MAX_LIMIT`).
#[derive(Clone, Copy)]
enum Done {
    Enter = 1 << 24,
    Exit = 2 << 24,
    ThreadExit = 3 << 24,
    Exec = 4 << 24,
}

/// Runs `work` for an event of the current thread, given as its process and thread id; a backup only if the first was skipped.
#[inline(always)]
fn handle<const PLACE: Place>(
    ctx: &impl EbpfContext,
    event: Done,
    work: impl FnOnce(&mut CpuState, u64) -> Result<()>,
) -> i32 {
    // SAFETY: the helper has no requirement.
    let pid_tgid = unsafe { bpf_get_current_pid_tgid() };
    let Some(cpu) = cpu_state() else { return NEUTRAL };
    let done = event as u32 | pid_tgid as u32;
    if PLACE == BACKUP {
        if seen(&cpu.done) == done {
            return NEUTRAL;
        }
        // Or the thread lost the CPU since. Then `work` finds nothing left to do.
        emit::count(Counter::MadeUp, 1);
    }
    if let Err(error) = work(cpu, pid_tgid) {
        emit::give_up(ctx, error);
    }
    put(&mut cpu.done, done);
    NEUTRAL
}

/// `sys_enter(struct pt_regs *regs, long id)`, in the calling thread.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn sys_enter(ctx: RawTracePointContext) -> i32 {
    handle::<FIRST>(&ctx, Done::Enter, |cpu, who| enter::<FIRST>(cpu, who, ctx.arg(1)))
}

/// `raw_syscalls:sys_enter`, include/trace/events/syscalls.h: `long id` at 8.
#[tracepoint(category = "raw_syscalls", name = "sys_enter")]
pub fn sys_enter_perf(ctx: TracePointContext) -> i32 {
    handle::<FIRST>(&ctx, Done::Enter, |cpu, who| enter::<FIRST>(cpu, who, field(&ctx, 8)))
}

/// [`sys_enter_perf`], where that was skipped.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn sys_enter_backup(ctx: RawTracePointContext) -> i32 {
    handle::<BACKUP>(&ctx, Done::Enter, |cpu, who| enter::<BACKUP>(cpu, who, ctx.arg(1)))
}

/// A field of a tracepoint's record, by its place in /sys/kernel/tracing/events/…/format. The first eight bytes are not to be read.
#[inline(always)]
fn field<T: Copy>(ctx: &TracePointContext, offset: usize) -> T {
    // SAFETY: the verifier refuses what is outside the record, and the kernel to attach what is outside this tracepoint's.
    unsafe { ctx.as_ptr().add(offset).cast::<T>().read_volatile() }
}

#[inline(always)]
fn enter<const PLACE: Place>(cpu: &mut CpuState, pid_tgid: u64, number: u64) -> Result<()> {
    let (tgid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    if PLACE == BACKUP && SLEEPERS.get_ptr(tid).is_some() {
        // It began, and the thread lost the CPU.
        return Err(Error::NotOurs);
    }
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    if settings.filters != 0 && !passes(settings, tgid, number)? {
        return Err(Error::NotOurs);
    }
    let id = u32::from(syscall_id(number));
    let switches = seen(&cpu.switches);
    put(&mut cpu.id, id);
    put(&mut cpu.tid, tid);
    // Last, so that what the programs take is not measured.
    put(&mut cpu.start_ns, now());
    if seen(&cpu.switches) != switches {
        // Meanwhile the slot was others'. It may hold half of what they left.
        let sleeper = Sleeper { start_ns: now(), id, tgid };
        if seen(&cpu.tid) == tid {
            put(&mut cpu.tid, 0);
            if SLEEPERS.insert(tid, sleeper, BPF_ANY).is_err() {
                emit::count(Counter::SleepersFull, 1);
            }
        } else {
            // Moved already, half written; or counted, where there was no room for it.
            let _absent = SLEEPERS.insert(tid, sleeper, BPF_EXIST);
        }
    }
    Ok(())
}

#[inline(always)]
fn syscall_id(number: u64) -> SyscallId {
    /// `__X32_SYSCALL_BIT`, arch/x86/include/uapi/asm/unistd.h.
    const X32_BIT: u64 = 0x4000_0000;
    let x32 = number & X32_BIT != 0 && number < 2 * X32_BIT;
    let number = if x32 { number & !X32_BIT } else { number };
    let id = if number < u64::from(NUMBER_UNKNOWN) { number as u16 } else { NUMBER_UNKNOWN };
    if x32 { id | ABI_X32 } else { id }
}

/// Whether the filter lets the current process's call through.
#[inline(always)]
fn passes(settings: &Settings, tgid: u32, number: u64) -> Result<bool> {
    let filters = settings.filters;
    if filters & FILTER_TGID != 0 && tgid != settings.tgid {
        return Ok(false);
    }
    if filters & FILTER_SYSCALL != 0 {
        if number >= SYSCALL_SET_BITS as u64 {
            return Ok(false);
        }
        // Laundered, or the compiler leaves the mask out and the verifier finds no bound.
        let word = settings.syscall_set[black_box(number as usize / 64) & (SYSCALL_SET_BITS / 64 - 1)];
        if word >> (number & 63) & 1 == 0 {
            return Ok(false);
        }
    }
    if filters & FILTER_CGROUP != 0 && !filter::cgroup(settings, task::cgroup()?)? {
        return Ok(false);
    }
    Ok(filters & FILTER_COMM == 0 || filter::owner(settings, &task::owner()?))
}

/// The end of a call.
trait Exit: EbpfContext {
    /// What it returned.
    fn ret(&self) -> i64;
    /// The registers as they stand at return, a `struct pt_regs *`.
    fn regs(&self) -> KernelPointer;
}

impl Exit for RawTracePointContext {
    #[inline(always)]
    fn ret(&self) -> i64 {
        self.arg(1)
    }
    #[inline(always)]
    fn regs(&self) -> KernelPointer {
        self.arg(0)
    }
}

impl Exit for TracePointContext {
    #[inline(always)]
    fn ret(&self) -> i64 {
        field(self, 16)
    }
    #[inline(always)]
    fn regs(&self) -> KernelPointer {
        // SAFETY: the helper has no requirement.
        let task = unsafe { bpf_get_current_task_btf() };
        // SAFETY: the current task.
        unsafe { bpf_task_pt_regs(task) as KernelPointer }
    }
}

/// `sys_exit(struct pt_regs *regs, long ret)`, in the calling thread. An exit without a beginning is none of ours: the
/// first return of a new thread, or a call begun before the programs were attached.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn sys_exit(ctx: RawTracePointContext) -> i32 {
    handle::<FIRST>(&ctx, Done::Exit, |cpu, who| exit::<FIRST>(&ctx, cpu, who))
}

/// `raw_syscalls:sys_exit`: `long id` at 8, `long ret` at 16.
#[tracepoint(category = "raw_syscalls", name = "sys_exit")]
pub fn sys_exit_perf(ctx: TracePointContext) -> i32 {
    handle::<FIRST>(&ctx, Done::Exit, |cpu, who| exit::<FIRST>(&ctx, cpu, who))
}

/// [`sys_exit_perf`], where that was skipped.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn sys_exit_backup(ctx: RawTracePointContext) -> i32 {
    handle::<BACKUP>(&ctx, Done::Exit, |cpu, who| exit::<BACKUP>(&ctx, cpu, who))
}

#[inline(always)]
fn exit<const PLACE: Place>(ctx: &impl Exit, cpu: &mut CpuState, pid_tgid: u64) -> Result<()> {
    let (tgid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    if settings.filters & FILTER_TGID != 0 && tgid != settings.tgid {
        // It has no beginning either: spares the others the search for one.
        return Err(Error::NotOurs);
    }
    // As early as can be, so that what the programs take is hardly measured.
    let end_ns = now();
    let (start_ns, id) = beginning(cpu, tid).ok_or(Error::NotOurs)?;
    let duration_ns = end_ns.saturating_sub(start_ns);
    let ret = ctx.ret();

    blocks::count::<PLACE>(cpu, tgid, id, &Call { interval: settings.interval, duration_ns, ret })?;
    if settings.slow_ns != 0 && duration_ns >= settings.slow_ns {
        slow::report(ctx.regs(), pid_tgid, id, duration_ns, ret);
    }
    Ok(())
}

/// Takes the beginning of the current thread's call: when it began, and which it is.
#[inline(always)]
fn beginning(cpu: &mut CpuState, tid: u32) -> Option<(u64, SyscallId)> {
    let switches = seen(&cpu.switches);
    // Before the thread's id: where that is still ours, these were.
    let (start_ns, id) = (seen(&cpu.start_ns), seen(&cpu.id) as SyscallId);
    if seen(&cpu.tid) == tid {
        put(&mut cpu.tid, 0);
        if seen(&cpu.switches) != switches {
            // It may have been moved just before that.
            let _absent = SLEEPERS.remove(tid);
        }
        return Some((start_ns, id));
    }
    let sleeper = SLEEPERS.get_ptr(tid)?;
    // SAFETY: a value of the map; only this thread, running here, removes or replaces it.
    let begun = unsafe { ((*sleeper).start_ns, (*sleeper).id as SyscallId) };
    // Cannot fail: it was just there.
    let _absent = SLEEPERS.remove(tid);
    Some(begun)
}

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next[, unsigned int prev_state])`. `prev`
/// is still the current task. A call that sleeps, or is preempted, leaves its CPU's slot here.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn sched_switch(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: the helper has no requirement.
    let pid_tgid = unsafe { bpf_get_current_pid_tgid() };
    let tid = pid_tgid as u32;
    let Some(cpu) = cpu_state() else { return NEUTRAL };
    cpu.switches = cpu.switches.wrapping_add(1);
    cpu.done = 0;
    if tid != 0 && cpu.tid == tid {
        cpu.tid = 0;
        let sleeper = Sleeper { start_ns: cpu.start_ns, id: cpu.id, tgid: (pid_tgid >> 32) as u32 };
        if SLEEPERS.insert(tid, sleeper, BPF_ANY).is_err() {
            emit::count(Counter::SleepersFull, 1);
        }
    }
    NEUTRAL
}

/// `sched_process_exit(struct task_struct *p)`; from about 6.16 also `bool group_dead`. `p` is the current task, inside
/// the call that it does not return from.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn sched_process_exit(ctx: RawTracePointContext) -> i32 {
    handle::<FIRST>(&ctx, Done::ThreadExit, thread_exit)
}

/// `sched:sched_process_exit`, include/trace/events/sched.h.
#[tracepoint(category = "sched", name = "sched_process_exit")]
pub fn process_exit_perf(ctx: TracePointContext) -> i32 {
    handle::<FIRST>(&ctx, Done::ThreadExit, thread_exit)
}

/// [`process_exit_perf`], where that was skipped.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit_backup(ctx: RawTracePointContext) -> i32 {
    handle::<BACKUP>(&ctx, Done::ThreadExit, thread_exit)
}

/// Done twice it is as good as once.
#[inline(always)]
fn thread_exit(cpu: &mut CpuState, pid_tgid: u64) -> Result<()> {
    let (tgid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    if seen(&cpu.tid) == tid {
        put(&mut cpu.tid, 0);
    }
    // Even if it was in its slot: it may have been moved just now. It fails when nothing is there, which is as good.
    let _absent = SLEEPERS.remove(tid);
    // SAFETY: the helper has no requirement.
    let task = unsafe { bpf_get_current_task() };
    if kread!(kread!(task, TASK_SIGNAL)?, SIGNAL_LIVE)? == 0
        && let Some(process) = PROCESSES.get_ptr_mut(tgid)
    {
        // SAFETY: a value of the map; nobody else writes this word.
        unsafe { (*process).dead_ns = now() };
    }
    Ok(())
}

/// `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, in the new program's thread: it
/// has taken the process's id, whichever thread called execve, and the process has another name.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn sched_process_exec(ctx: RawTracePointContext) -> i32 {
    handle::<FIRST>(&ctx, Done::Exec, |cpu, who| exec(&ctx, cpu, who, ctx.arg(1)))
}

/// `sched:sched_process_exec`: `pid_t old_pid` at 16.
#[tracepoint(category = "sched", name = "sched_process_exec")]
pub fn process_exec_perf(ctx: TracePointContext) -> i32 {
    handle::<FIRST>(&ctx, Done::Exec, |cpu, who| exec(&ctx, cpu, who, field(&ctx, 16)))
}

/// [`process_exec_perf`], where that was skipped.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec_backup(ctx: RawTracePointContext) -> i32 {
    handle::<BACKUP>(&ctx, Done::Exec, |cpu, who| exec(&ctx, cpu, who, ctx.arg(1)))
}

/// Done twice it is as good as once.
#[inline(always)]
fn exec(ctx: &impl EbpfContext, cpu: &mut CpuState, pid_tgid: u64, old_tid: u32) -> Result<()> {
    let (tgid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    if old_tid != tid {
        debug!(ctx, "thread {} of process {} runs another program and becomes its leader", old_tid, tgid);
        if let Some((start_ns, id)) = beginning(cpu, old_tid) {
            let sleeper = Sleeper { start_ns, id: u32::from(id), tgid };
            if SLEEPERS.insert(tid, sleeper, BPF_ANY).is_err() {
                emit::count(Counter::SleepersFull, 1);
            }
        }
    }
    if let Some(process) = PROCESSES.get_ptr_mut(tgid) {
        let owner = task::owner()?;
        // SAFETY: a value of the map; user space may read half a name, once.
        let process = unsafe { &mut *process };
        process.comm = owner.comm;
        process.abi = abi();
        // It may have been moved since its first call: container runtimes do just that before they run the program.
        // SAFETY: the helper has no requirement.
        process.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    }
    Ok(())
}

#[inline(always)]
fn cpu_state() -> Option<&'static mut CpuState> {
    // SAFETY: this CPU's entry; programs do not migrate while they run. Where one loses its CPU to another, see the head of
    // this file: the words of the slot are read and written one by one, in an order that counts.
    CPUS.get_ptr_mut(cpu_number()).map(|state| unsafe { &mut *state })
}

/// A word as it is now: a program may lose its CPU between any two instructions.
#[inline(always)]
fn seen<T: Copy>(word: &T) -> T {
    // SAFETY: a reference.
    unsafe { core::ptr::from_ref(word).read_volatile() }
}

/// Writes a word here and now.
#[inline(always)]
fn put<T: Copy>(word: &mut T, value: T) {
    // SAFETY: a reference.
    unsafe { core::ptr::from_mut(word).write_volatile(value) };
}

#[inline(always)]
fn cpu_number() -> u32 {
    // SAFETY: the helper has no requirement.
    unsafe { bpf_get_smp_processor_id() }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no requirement.
    unsafe { bpf_ktime_get_ns() }
}
