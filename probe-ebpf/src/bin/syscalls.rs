//! syscalls: exact counts, errors and latency histograms per (process, system call). Raw tracepoints only.
//!
//! The fast path makes no hash look-up. A call in flight is kept in its CPU's slot; only when its thread loses the CPU
//! inside the call does the slot move to a hash (`SLEEPERS`, by thread). Figures are kept in blocks of one (process,
//! call, writer) each: a block has a single writer, so plain additions are exact, and memory follows what really ran
//! instead of possible CPUs times keys. Each CPU remembers where its recent blocks are; a block names its key, so a
//! line gone stale is noticed.
//!
//! A call's time off the CPU costs a clock read at each switch and nothing else: when a call ends that was away, its thread has
//! had this CPU since the last switch here ([`CpuState::switched_ns`]).
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
    bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_jiffies64, bpf_task_pt_regs,
};
use aya_ebpf::macros::{map, raw_tracepoint, tracepoint};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::{RawTracePointContext, TracePointContext};
use aya_log_ebpf::debug;
use probe_common::fields::KernelPointer;
use probe_common::loss::Counter;
use probe_common::settings::{
    FILTER_CGROUP, FILTER_COMM, FILTER_SYSCALL, FILTER_TGID, SYSCALL_SET_BITS, Settings,
};
use probe_common::syscalls::{
    ABI_COMPAT, ABI_X32, CpuState, NUMBER_MASK, NUMBER_UNKNOWN, OLDER, ROUGHLY, SLEPT, Sleeper, SyscallId,
    WAITED,
};
use probe_ebpf::{Error, Result, emit, filter, kread, task};

#[path = "syscalls/blocks.rs"]
mod blocks;
#[path = "syscalls/in_flight.rs"]
mod in_flight;
#[path = "syscalls/rules.rs"]
mod rules;
#[path = "syscalls/sleepers.rs"]
mod sleepers;
#[path = "syscalls/slow.rs"]
mod slow;
#[path = "syscalls/stacks.rs"]
mod stacks;
#[path = "syscalls/subject.rs"]
mod subject;

use blocks::{Call, PROCESSES};
use sleepers::SLEEPERS;

/// Raw tracepoints have no verdict; 0 is what the kernel expects.
const NEUTRAL: i32 = 0;

const BPF_ANY: u64 = 0;

/// One entry a possible CPU; sized at load time.
#[map]
static CPUS: Array<CpuState> = Array::with_max_entries(1, 0);

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

/// What a program knows when it begins its work.
struct Here {
    /// The current process and thread, as `bpf_get_current_pid_tgid` has them.
    pid_tgid: u64,
    /// A program has dealt with a call of this thread since it got the CPU: if it is inside one, the slot has it.
    slot_only: bool,
}

/// Runs `work` for an event of the current thread; a backup only if the first was skipped.
#[inline(always)]
fn handle<const PLACE: Place>(
    ctx: &impl EbpfContext,
    event: Done,
    work: impl FnOnce(&mut CpuState, &Settings, Here) -> Result<()>,
) -> i32 {
    let (Some(cpu), Some(settings)) = (cpu_state(), emit::settings()) else { return NEUTRAL };
    // A backup may lose the CPU, and with it the slot, at any time.
    let slot_only = PLACE == FIRST && seen(&cpu.who) != 0;
    // At exec the thread has become another.
    let pid_tgid =
        if PLACE == BACKUP || matches!(event, Done::Exec) { current() } else { who(cpu, slot_only) };
    // Before all else: whoever is not asked about should pay next to nothing.
    if settings.filters & FILTER_TGID != 0 && (pid_tgid >> 32) as u32 != settings.tgid {
        return NEUTRAL;
    }
    let done = event as u32 | pid_tgid as u32;
    if PLACE == BACKUP {
        if seen(&cpu.done) == done {
            return NEUTRAL;
        }
        // Or the thread lost the CPU since. Then `work` finds nothing left to do.
        emit::count(Counter::MadeUp, 1);
    }
    if let Err(error) = work(cpu, settings, Here { pid_tgid, slot_only }) {
        emit::give_up(ctx, error);
    }
    put(&mut cpu.done, done);
    NEUTRAL
}

/// The thread that has the CPU: asked once, until it leaves.
#[inline(always)]
fn who(cpu: &mut CpuState, is_known: bool) -> u64 {
    if is_known {
        return seen(&cpu.who);
    }
    let pid_tgid = current();
    put(&mut cpu.who, pid_tgid);
    pid_tgid
}

#[inline(always)]
fn current() -> u64 {
    // SAFETY: the helper has no requirement.
    unsafe { bpf_get_current_pid_tgid() }
}

/// `sys_enter(struct pt_regs *regs, long id)`, in the calling thread.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn sys_enter(ctx: RawTracePointContext) -> i32 {
    handle::<FIRST>(&ctx, Done::Enter, |cpu, settings, here| {
        enter::<FIRST>(cpu, settings, here, ctx.arg(1), ctx.arg(0))
    })
}

/// `raw_syscalls:sys_enter`, include/trace/events/syscalls.h: `long id` at 8.
#[tracepoint(category = "raw_syscalls", name = "sys_enter")]
pub fn sys_enter_perf(ctx: TracePointContext) -> i32 {
    handle::<FIRST>(&ctx, Done::Enter, |cpu, settings, here| {
        enter::<FIRST>(cpu, settings, here, field(&ctx, 8), 0)
    })
}

/// [`sys_enter_perf`], where that was skipped.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn sys_enter_backup(ctx: RawTracePointContext) -> i32 {
    handle::<BACKUP>(&ctx, Done::Enter, |cpu, settings, here| {
        enter::<BACKUP>(cpu, settings, here, ctx.arg(1), ctx.arg(0))
    })
}

/// A field of a tracepoint's record, by its place in /sys/kernel/tracing/events/…/format. The first eight bytes are not to be read.
#[inline(always)]
fn field<T: Copy>(ctx: &TracePointContext, offset: usize) -> T {
    // SAFETY: the verifier refuses what is outside the record, and the kernel to attach what is outside this tracepoint's.
    unsafe { ctx.as_ptr().add(offset).cast::<T>().read_volatile() }
}

/// `regs` is 0 where the hook does not tell.
#[inline(always)]
fn enter<const PLACE: Place>(
    cpu: &mut CpuState,
    settings: &Settings,
    here: Here,
    number: u64,
    regs: KernelPointer,
) -> Result<()> {
    let (tgid, tid) = ((here.pid_tgid >> 32) as u32, here.pid_tgid as u32);
    if PLACE == BACKUP && sleepers::has_call(tid) {
        // It began, and the thread lost the CPU.
        return Err(Error::NotOurs);
    }
    if settings.filters & (FILTER_CGROUP | FILTER_COMM) != 0 && !passes(cpu, settings)? {
        return Err(Error::NotOurs);
    }
    let id = syscall_id(number, task::in_compat_call());
    if settings.filters & FILTER_SYSCALL != 0 && !is_selected(settings, id) {
        return Err(Error::NotOurs);
    }
    let every = settings.latency_every;
    let rough = every > 1 && !is_measured(cpu, every);
    let id = u32::from(id) | if rough { ROUGHLY } else { 0 };
    let switches = seen(&cpu.switches);
    put(&mut cpu.id, id);
    put(&mut cpu.regs, regs);
    put(&mut cpu.tid, tid);
    // Last, so that what the programs take is not measured.
    let start_ns = match every {
        0 => 0,
        _ if rough => ticks(),
        _ => now(),
    };
    put(&mut cpu.start_ns, start_ns);
    if seen(&cpu.switches) != switches {
        // Meanwhile the slot was others'. It may hold half of what they left.
        let sleeper = Sleeper { start_ns: now(), regs, left_ns: now(), off_cpu_ns: 0, id, tgid };
        if seen(&cpu.tid) == tid {
            put(&mut cpu.tid, 0);
            sleepers::keep(tid, &sleeper);
        } else {
            // Moved already, half written; or counted, where there was no room for it.
            let _moved = sleepers::overwrite(tid, &sleeper);
        }
    }
    Ok(())
}

/// Whether a call is one of those that are measured: at random, so that no pattern of calls is in step with it.
#[inline(always)]
fn is_measured(cpu: &mut CpuState, every: u32) -> bool {
    if cpu.until_measured > 1 {
        cpu.until_measured -= 1;
        return false;
    }
    // From 1 to twice as many, less one: on average, so many.
    // SAFETY: the helper has no requirement.
    cpu.until_measured = 1 + unsafe { bpf_get_prandom_u32() } % (2 * every - 1);
    true
}

#[inline(always)]
pub(crate) fn syscall_id(number: u64, compat: bool) -> SyscallId {
    /// `__X32_SYSCALL_BIT`, arch/x86/include/uapi/asm/unistd.h.
    const X32_BIT: u64 = 0x4000_0000;
    let x32 = !compat && number & X32_BIT != 0 && number < 2 * X32_BIT;
    let number = if x32 { number & !X32_BIT } else { number };
    let id = if number < u64::from(NUMBER_UNKNOWN) { number as u16 } else { NUMBER_UNKNOWN };
    let abi = if compat {
        ABI_COMPAT
    } else if x32 {
        ABI_X32
    } else {
        0
    };
    id | abi
}

/// Whether cgroup and name of the current process are the filter's. What was found is kept while the thread has the CPU, for an
/// interval at most: names are not read at every call.
#[inline(always)]
fn passes(cpu: &mut CpuState, settings: &Settings) -> Result<bool> {
    let (passed, failed) = (settings.interval << 1 | 1, settings.interval << 1);
    let verdict = seen(&cpu.verdict);
    if verdict == passed || verdict == failed {
        return Ok(verdict == passed);
    }
    let passes = filter::cgroup(settings, task::cgroup()?)? && filter::owner(settings, &task::owner()?);
    put(&mut cpu.verdict, if passes { passed } else { failed });
    Ok(passes)
}

/// Whether a call is one of those that were asked for.
#[inline(always)]
fn is_selected(settings: &Settings, id: SyscallId) -> bool {
    let number = usize::from(id & NUMBER_MASK);
    if number >= SYSCALL_SET_BITS {
        return false;
    }
    let at = number + if id & ABI_COMPAT != 0 { SYSCALL_SET_BITS } else { 0 };
    // Laundered, or the compiler leaves the mask out and the verifier finds no bound.
    let word = settings.syscall_set[black_box(at / 64) & (2 * SYSCALL_SET_BITS / 64 - 1)];
    word >> (number & 63) & 1 != 0
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
    handle::<FIRST>(&ctx, Done::Exit, |cpu, settings, here| exit::<FIRST>(&ctx, cpu, settings, here))
}

/// `raw_syscalls:sys_exit`: `long id` at 8, `long ret` at 16.
#[tracepoint(category = "raw_syscalls", name = "sys_exit")]
pub fn sys_exit_perf(ctx: TracePointContext) -> i32 {
    handle::<FIRST>(&ctx, Done::Exit, |cpu, settings, here| exit::<FIRST>(&ctx, cpu, settings, here))
}

/// [`sys_exit_perf`], where that was skipped.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn sys_exit_backup(ctx: RawTracePointContext) -> i32 {
    handle::<BACKUP>(&ctx, Done::Exit, |cpu, settings, here| exit::<BACKUP>(&ctx, cpu, settings, here))
}

#[inline(always)]
fn exit<const PLACE: Place>(
    ctx: &impl Exit,
    cpu: &mut CpuState,
    settings: &Settings,
    here: Here,
) -> Result<()> {
    let pid_tgid = here.pid_tgid;
    let (tgid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    if here.slot_only && seen(&cpu.tid) != tid {
        // A call that a filter left out: most of them, where there is one.
        return Err(Error::NotOurs);
    }
    let (every, slow_ns) = (settings.latency_every, settings.slow_ns);
    // As early as can be, so that what the programs take is hardly measured.
    let mut end_ns = if every == 1 { now() } else { 0 };
    let mut begun = beginning(cpu, tid, here.slot_only).ok_or(Error::NotOurs)?;
    if begun.id & OLDER != 0 {
        return Err(Error::NotOurs);
    }
    if every > 1 {
        end_ns = end_of(&mut begun, settings);
    }
    let is_measured = end_ns != 0;
    let duration_ns = if is_measured { end_ns.saturating_sub(begun.start_ns) } else { 0 };
    let is_slow = is_measured && duration_ns >= slow_ns;
    let mut id = begun.id as SyscallId;
    if begun.id & SLEPT != 0 && rules::waited(id, ctx.regs()) {
        id |= WAITED;
    }
    let ret = ctx.ret();
    let call = Call {
        interval: settings.interval,
        is_measured,
        // What is slow is always measured, and stands for itself.
        stands_alone: every == 1 || is_slow,
        duration_ns,
        off_cpu_ns: begun.off_cpu_ns,
        ret,
    };
    blocks::count::<PLACE>(cpu, tgid, id, &call)?;
    if stacks::are_wanted(settings) && is_measured {
        let sample = stacks::Sample { pid_tgid, id, is_slow, duration_ns, off_cpu_ns: call.off_cpu_ns };
        stacks::consider(ctx.as_ptr(), cpu, settings, &sample);
    }
    if is_slow {
        let slow =
            slow::Slow { regs: ctx.regs(), pid_tgid, duration_ns, off_cpu_ns: call.off_cpu_ns, ret, id };
        slow::report(&slow);
    }
    Ok(())
}

/// When a call ends, where one in so many is measured; 0: it is none of them, and not slow either. None that is slow is missed:
/// where only the tick is known in which it began, it is taken to have begun with that.
#[inline(always)]
fn end_of(begun: &mut Sleeper, settings: &Settings) -> u64 {
    if begun.id & ROUGHLY == 0 {
        return now();
    }
    if begun.left_ns == 0 {
        let elapsed_ns = elapsed_ns(begun.start_ns, settings);
        if elapsed_ns < settings.slow_ns {
            return 0;
        }
        let end_ns = now();
        begun.start_ns = end_ns.saturating_sub(elapsed_ns);
        return end_ns;
    }
    let end_ns = now();
    if end_ns.saturating_sub(begun.start_ns) < settings.slow_ns { 0 } else { end_ns }
}

/// How long it is at most since that tick, nanoseconds.
#[inline(always)]
fn elapsed_ns(tick: u64, settings: &Settings) -> u64 {
    (ticks().saturating_sub(tick) + 1) * u64::from(settings.tick_ns)
}

/// Ticks of the kernel's clock, `jiffies_64`: read in a nanosecond.
#[inline(always)]
fn ticks() -> u64 {
    // SAFETY: the helper has no requirement.
    unsafe { bpf_jiffies64() }
}

/// Takes the beginning of the current thread's call; `slot_only`: as in [`Here`].
#[inline(always)]
fn beginning(cpu: &mut CpuState, tid: u32, slot_only: bool) -> Option<Sleeper> {
    let switches = seen(&cpu.switches);
    // Before the thread's id: where that is still ours, these were.
    let (start_ns, id, regs) = (seen(&cpu.start_ns), seen(&cpu.id), seen(&cpu.regs));
    if seen(&cpu.tid) == tid {
        put(&mut cpu.tid, 0);
        if seen(&cpu.switches) != switches {
            // It may have been moved just before that.
            sleepers::end(tid);
        }
        return Some(Sleeper { start_ns, regs, left_ns: 0, off_cpu_ns: 0, id, tgid: 0 });
    }
    if slot_only { None } else { sleepers::take(cpu, tid) }
}

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next[, unsigned int prev_state])`. `prev`
/// is still the current task. A call that sleeps, or is preempted, leaves its CPU's slot here.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn sched_switch(ctx: RawTracePointContext) -> i32 {
    let Some(cpu) = cpu_state() else { return NEUTRAL };
    let slot_only = cpu.who != 0;
    let pid_tgid = if slot_only { cpu.who } else { current() };
    cpu.switches = cpu.switches.wrapping_add(1);
    cpu.done = 0;
    cpu.who = 0;
    cpu.verdict = 0;
    let now_ns = now();
    // Not the idle task.
    if pid_tgid as u32 != 0 {
        let preempted: u64 = ctx.arg(0);
        let sleeps = preempted as u8 == 0;
        if sleepers::leave(cpu, pid_tgid, slot_only, sleeps, now_ns) && sleeps {
            stacks::note(ctx.as_ptr(), pid_tgid as u32);
        }
    }
    cpu.switched_ns = now_ns;
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
fn thread_exit(cpu: &mut CpuState, _settings: &Settings, here: Here) -> Result<()> {
    let (tgid, tid) = ((here.pid_tgid >> 32) as u32, here.pid_tgid as u32);
    if seen(&cpu.tid) == tid {
        put(&mut cpu.tid, 0);
    }
    // Even if it was in its slot: it may have been moved just now. It fails when nothing is there, which is as good.
    let _absent = SLEEPERS.remove(tid);
    stacks::forget(tid);
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
    handle::<FIRST>(&ctx, Done::Exec, |cpu, _settings, here| exec(&ctx, cpu, here, ctx.arg(1)))
}

/// `sched:sched_process_exec`: `pid_t old_pid` at 16.
#[tracepoint(category = "sched", name = "sched_process_exec")]
pub fn process_exec_perf(ctx: TracePointContext) -> i32 {
    handle::<FIRST>(&ctx, Done::Exec, |cpu, _settings, here| exec(&ctx, cpu, here, field(&ctx, 16)))
}

/// [`process_exec_perf`], where that was skipped.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec_backup(ctx: RawTracePointContext) -> i32 {
    handle::<BACKUP>(&ctx, Done::Exec, |cpu, _settings, here| exec(&ctx, cpu, here, ctx.arg(1)))
}

/// Done twice it is as good as once.
#[inline(always)]
fn exec(ctx: &impl EbpfContext, cpu: &mut CpuState, here: Here, old_tid: u32) -> Result<()> {
    let (tgid, tid) = ((here.pid_tgid >> 32) as u32, here.pid_tgid as u32);
    // Another thread, another name; and its call may be kept, from here on.
    put(&mut cpu.who, 0);
    put(&mut cpu.verdict, 0);
    if old_tid != tid {
        debug!(ctx, "thread {} of process {} runs another program and becomes its leader", old_tid, tgid);
        if let Some(begun) = beginning(cpu, old_tid, false) {
            sleepers::keep(tid, &Sleeper { left_ns: now(), tgid, ..begun });
        }
        // Nobody exits with that id.
        let _absent = SLEEPERS.remove(old_tid);
    }
    if let Some(process) = PROCESSES.get_ptr_mut(tgid) {
        let owner = task::owner()?;
        // SAFETY: a value of the map; user space may read half a name, once.
        let process = unsafe { &mut *process };
        process.comm = owner.comm;
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
