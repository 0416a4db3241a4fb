//! syscalls: exact counts, errors and latency histograms per (process, system call). Raw tracepoints only.
//!
//! The fast path makes no hash look-up. A call in flight is kept in its CPU's slot; only when its thread loses the CPU
//! inside the call does the slot move to a hash (`SLEEPERS`, by thread). Figures are kept in blocks of one (process,
//! call, CPU) each: a block has a single writer, so plain additions are exact, and memory follows what really ran
//! instead of possible CPUs times keys. Each CPU remembers where its recent blocks are; a block names its key, so a
//! line gone stale is noticed.
#![no_std]
#![no_main]

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_smp_processor_id,
};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap, Queue};
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::debug;
use probe_common::fields::KernelPointer;
use probe_common::hist::{self, BUCKETS};
use probe_common::loss::Counter;
use probe_common::settings::{
    FILTER_CGROUP, FILTER_COMM, FILTER_SYSCALL, FILTER_TGID, SYSCALL_SET_BITS, Settings,
};
use probe_common::syscalls::{
    ABI_COMPAT, ABI_X32, Block, CACHE_LINES, CpuState, ERRNO_SLOTS, KIND_SLOW, NUMBER_MASK, NUMBER_UNKNOWN,
    Process, Sleeper, SlowRecord, SyscallId, TGID_FOLDED, THRESHOLD_COUNT, block_key,
};
use probe_common::wire::RecordHeader;
use probe_ebpf::{Error, Result, emit, filter, kread, task};

/// Raw tracepoints have no verdict; 0 is what the kernel expects.
const NEUTRAL: i32 = 0;

const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;
/// Errors are -4095 to -1, include/linux/err.h.
const MAX_ERRNO: i64 = 4095;
/// [`find_block`] has none.
const NO_BLOCK: u32 = u32::MAX;

/// One entry a possible CPU; sized at load time.
#[map]
static CPUS: Array<CpuState> = Array::with_max_entries(1, 0);

/// The figures. User space has them mapped.
#[map]
static BLOCKS: Array<Block> = Array::with_max_entries(16_384, BPF_F_MMAPABLE);

/// Where the block of a key is.
#[map]
static INDEX: HashMap<u64, u32> = HashMap::with_max_entries(16_384, 0);

/// Blocks nobody has. User space fills it, and returns the blocks of processes that are gone.
#[map]
static FREE: Queue<u32> = Queue::with_max_entries(16_384, 0);

/// Blocks for calls counted without their process, once `FREE` is empty.
#[map]
static FREE_FOLDED: Queue<u32> = Queue::with_max_entries(1_024, 0);

/// Calls whose thread lost the CPU inside, by thread id.
#[map]
static SLEEPERS: HashMap<u32, Sleeper> = HashMap::with_max_entries(16_384, 0);

/// Processes that have blocks, by process id.
#[map]
static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(8_192, 0);

/// From how many nanoseconds on a call is slow, by number (native table).
#[map]
static THRESHOLDS: Array<u64> = Array::with_max_entries(THRESHOLD_COUNT, 0);

/// `sys_enter(struct pt_regs *regs, long id)`, in the calling thread.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn sys_enter(ctx: RawTracePointContext) -> i32 {
    if let Err(error) = try_enter(&ctx) {
        emit::give_up(&ctx, error);
    }
    NEUTRAL
}

#[inline(always)]
fn try_enter(ctx: &RawTracePointContext) -> Result<()> {
    let number: u64 = ctx.arg(1);
    // SAFETY: the helper has no requirement.
    let pid_tgid = unsafe { bpf_get_current_pid_tgid() };
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    if settings.filters != 0 && !passes(settings, (pid_tgid >> 32) as u32, number)? {
        return Err(Error::NotOurs);
    }
    let cpu = cpu_state().ok_or(Error::NotOurs)?;
    cpu.id = u32::from(syscall_id(number));
    cpu.tid = pid_tgid as u32;
    // Last, so that what the programs take is not measured.
    cpu.start_ns = now();
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
        let word = settings.syscall_set[(number as usize / 64) & (SYSCALL_SET_BITS / 64 - 1)];
        if word >> (number & 63) & 1 == 0 {
            return Ok(false);
        }
    }
    if filters & FILTER_CGROUP != 0 && !filter::cgroup(settings, task::cgroup()?)? {
        return Ok(false);
    }
    Ok(filters & FILTER_COMM == 0 || filter::owner(settings, &task::owner()?))
}

/// `sys_exit(struct pt_regs *regs, long ret)`, in the calling thread. An exit without a beginning is none of ours: the
/// first return of a new thread, or a call begun before the programs were attached.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn sys_exit(ctx: RawTracePointContext) -> i32 {
    if let Err(error) = try_exit(&ctx) {
        emit::give_up(&ctx, error);
    }
    NEUTRAL
}

#[inline(always)]
fn try_exit(ctx: &RawTracePointContext) -> Result<()> {
    // SAFETY: the helper has no requirement.
    let pid_tgid = unsafe { bpf_get_current_pid_tgid() };
    let (tgid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    if settings.filters & FILTER_TGID != 0 && tgid != settings.tgid {
        // It has no beginning either: spares the others the search for one.
        return Err(Error::NotOurs);
    }
    // As early as can be, so that what the programs take is hardly measured.
    let end_ns = now();
    let cpu = cpu_state().ok_or(Error::NotOurs)?;
    let (start_ns, id) = if cpu.tid == tid {
        cpu.tid = 0;
        (cpu.start_ns, cpu.id as SyscallId)
    } else {
        let sleeper = SLEEPERS.get_ptr(tid).ok_or(Error::NotOurs)?;
        // SAFETY: a value of the map; only this thread, running here, removes or replaces it.
        let begun = unsafe { ((*sleeper).start_ns, (*sleeper).id as SyscallId) };
        // Cannot fail: it was just there.
        let _absent = SLEEPERS.remove(tid);
        begun
    };
    let duration_ns = end_ns.saturating_sub(start_ns);
    let ret: i64 = ctx.arg(1);

    let key = block_key(tgid, id, cpu_number());
    let line = &mut cpu.cache[cache_line(tgid, id)];
    let block = if line.key == key { BLOCKS.get_ptr_mut(line.index) } else { None };
    let block = match block {
        // SAFETY: a value of an array; `key` is written by this CPU, or by user space for processes that are gone.
        Some(block) if unsafe { (*block).key } == key => block,
        _ => {
            let index = find_block(tgid, id, key);
            if index == NO_BLOCK {
                return Err(Error::NotOurs);
            }
            line.key = key;
            line.index = index;
            BLOCKS.get_ptr_mut(index).ok_or(Error::NotOurs)?
        }
    };
    // SAFETY: this CPU is the block's one writer, and programs do not migrate while they run.
    add(unsafe { &mut *block }, settings.interval, duration_ns, ret);
    if settings.slow_ns != 0 && duration_ns >= settings.slow_ns {
        slow(ctx.arg(0), pid_tgid, id, duration_ns, ret);
    }
    Ok(())
}

#[inline(always)]
fn cache_line(tgid: u32, id: SyscallId) -> usize {
    (tgid.wrapping_mul(0x9e37_79b1) >> 16 ^ u32::from(id)) as usize & (CACHE_LINES - 1)
}

#[inline(always)]
fn add(block: &mut Block, interval: u32, duration_ns: u64, ret: i64) {
    block.sum_ns += duration_ns;
    let bucket = hist::bucket(duration_ns);
    if bucket < BUCKETS {
        block.buckets[bucket] = block.buckets[bucket].wrapping_add(1);
    }
    let peak = &mut block.peaks[interval as usize & 1];
    if peak.interval != interval {
        peak.min_ns = duration_ns;
        peak.max_ns = duration_ns;
        peak.interval = interval;
    } else if duration_ns > peak.max_ns {
        peak.max_ns = duration_ns;
    } else if duration_ns < peak.min_ns {
        peak.min_ns = duration_ns;
    }
    if (-MAX_ERRNO..0).contains(&ret) {
        block.errors += 1;
        let errno = -ret as u32;
        for slot in 0..ERRNO_SLOTS {
            let slot = &mut block.errnos[slot];
            if slot.errno == errno || slot.errno == 0 {
                slot.errno = errno;
                slot.count = slot.count.wrapping_add(1);
                break;
            }
        }
    }
    // Last: user space takes an unchanged number of calls for an unchanged block.
    // SAFETY: a plain word of the block.
    unsafe { (&raw mut block.calls).write_volatile(block.calls + 1) };
}

/// The block of a key that this CPU does not remember: look it up, or take a free one. Without a free one the call is
/// counted under its system call alone.
///
/// A function of its own, so that the fast path stays short. It returns a plain number ([`NO_BLOCK`] for none): a `Result` in
/// one register makes shifts that the verifier refuses.
#[inline(never)]
fn find_block(tgid: u32, id: SyscallId, key: u64) -> u32 {
    if let Some(index) = INDEX.get_ptr(key) {
        // SAFETY: a value of the map, read once.
        return unsafe { *index };
    }
    if note_process(tgid)
        && let Ok(Some(index)) = FREE.pop()
    {
        return take_block(key, index);
    }
    emit::count(Counter::CallsFolded, 1);
    let folded = block_key(TGID_FOLDED, id, cpu_number());
    if let Some(index) = INDEX.get_ptr(folded) {
        // SAFETY: as above.
        return unsafe { *index };
    }
    if let Ok(Some(index)) = FREE_FOLDED.pop() {
        return take_block(folded, index);
    }
    emit::count(Counter::CallsLost, 1);
    NO_BLOCK
}

#[inline(always)]
fn take_block(key: u64, index: u32) -> u32 {
    if INDEX.insert(key, index, BPF_NOEXIST).is_err() {
        emit::count(Counter::CallsLost, 1);
        return NO_BLOCK;
    }
    let Some(block) = BLOCKS.get_ptr_mut(index) else { return NO_BLOCK };
    // SAFETY: free blocks are zeroed by user space and now ours alone.
    unsafe { (*block).key = key };
    index
}

/// Notes who a process is, once. Blocks of a process that is not noted would never be given back.
#[inline(always)]
fn note_process(tgid: u32) -> bool {
    if PROCESSES.get_ptr(tgid).is_some() {
        return true;
    }
    let Ok(owner) = task::owner() else {
        emit::count(Counter::KernelRead, 1);
        return false;
    };
    // SAFETY: the helper has no requirement.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    let process =
        Process { start_ns: owner.start_ns, cgroup_id, dead_ns: 0, comm: owner.comm, abi: abi(), _pad: 0 };
    if PROCESSES.insert(tgid, process, BPF_ANY).is_err() {
        emit::count(Counter::ProcessesFull, 1);
        return false;
    }
    true
}

/// The table of system calls that the current process uses. In an exec the new program's is in force already
/// (`SET_PERSONALITY`); the few calls between fork and exec are then named by it too.
#[inline(always)]
fn abi() -> u32 {
    if task::in_compat_call() { u32::from(ABI_COMPAT) } else { 0 }
}

/// A call above the least threshold: is it above its own, and is it one that may take long?
#[inline(never)]
fn slow(regs: KernelPointer, pid_tgid: u64, id: SyscallId, duration_ns: u64, ret: i64) {
    if try_slow(regs, pid_tgid, id, duration_ns, ret).is_err() {
        emit::count(Counter::KernelRead, 1);
    }
}

#[inline(always)]
fn try_slow(regs: KernelPointer, pid_tgid: u64, id: SyscallId, duration_ns: u64, ret: i64) -> Result<()> {
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

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next[, unsigned int prev_state])`. `prev`
/// is still the current task. A call that sleeps, or is preempted, leaves its CPU's slot here.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn sched_switch(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: the helper has no requirement.
    let pid_tgid = unsafe { bpf_get_current_pid_tgid() };
    let tid = pid_tgid as u32;
    let Some(cpu) = cpu_state() else { return NEUTRAL };
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
    if let Err(error) = try_process_exit() {
        emit::give_up(&ctx, error);
    }
    NEUTRAL
}

fn try_process_exit() -> Result<()> {
    // SAFETY: the helper has no requirement.
    let pid_tgid = unsafe { bpf_get_current_pid_tgid() };
    let (tgid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    let cpu = cpu_state().ok_or(Error::NotOurs)?;
    if cpu.tid == tid {
        cpu.tid = 0;
    }
    // From 7.0 on this program can be preempted, and the slot be moved there meanwhile. It fails when nothing is there, which
    // is as good.
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
    if let Err(error) = try_process_exec(&ctx) {
        emit::give_up(&ctx, error);
    }
    NEUTRAL
}

fn try_process_exec(ctx: &RawTracePointContext) -> Result<()> {
    let old_tid: u32 = ctx.arg(1);
    // SAFETY: the helper has no requirement.
    let pid_tgid = unsafe { bpf_get_current_pid_tgid() };
    let (tgid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    if old_tid != tid {
        debug!(ctx, "thread {} of process {} runs another program and becomes its leader", old_tid, tgid);
        let cpu = cpu_state().ok_or(Error::NotOurs)?;
        if cpu.tid == old_tid {
            cpu.tid = tid;
        } else if let Some(sleeper) = SLEEPERS.get_ptr(old_tid) {
            // SAFETY: a value of the map, copied at once; its thread is this one.
            let sleeper = unsafe { *sleeper };
            // Cannot fail: it was just there.
            let _absent = SLEEPERS.remove(old_tid);
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
    // SAFETY: this CPU's entry; programs do not migrate while they run, and none runs inside another of these.
    CPUS.get_ptr_mut(cpu_number()).map(|state| unsafe { &mut *state })
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
