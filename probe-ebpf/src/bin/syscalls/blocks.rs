//! The figures: where the block of a (process, call, writer) is, and what is added to it.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, Queue};
use probe_common::hist::{self, BUCKETS};
use probe_common::loss::Counter;
use probe_common::syscalls::{
    Block, CACHE_LINES, CpuState, ERRNO_SLOTS, Process, SyscallId, TGID_FOLDED, block_key, writer,
};
use probe_ebpf::{Error, Result, emit, task};

use crate::{BPF_ANY, FIRST, Place, cpu_number};

const BPF_NOEXIST: u64 = 1;
/// Errors are -4095 to -1, include/linux/err.h.
const MAX_ERRNO: i64 = 4095;
/// [`find`] has none.
const NO_BLOCK: u32 = u32::MAX;

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

/// Processes that have blocks, by process id.
#[map]
pub(crate) static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(8_192, 0);

/// A call that has returned.
pub(crate) struct Call {
    /// Number of the interval in which it did.
    pub(crate) interval: u32,
    /// `duration_ns` and `off_cpu_ns` are known.
    pub(crate) is_measured: bool,
    /// It stands for itself alone, and not for those before it that were not measured.
    pub(crate) stands_alone: bool,
    pub(crate) duration_ns: u64,
    /// Part of the duration.
    pub(crate) off_cpu_ns: u64,
    pub(crate) ret: i64,
}

/// Adds a call to its block.
#[inline(always)]
pub(crate) fn count<const PLACE: Place>(
    cpu: &mut CpuState,
    tgid: u32,
    id: SyscallId,
    call: &Call,
) -> Result<()> {
    let writer = writer(cpu_number(), PLACE);
    let key = block_key(tgid, id, writer);
    // The lines are the first's.
    let line = if PLACE == FIRST { Some(&mut cpu.cache[cache_line(tgid, id)]) } else { None };
    let remembered = match &line {
        Some(line) if line.key == key => BLOCKS.get_ptr_mut(line.index),
        _ => None,
    };
    let block = match remembered {
        // SAFETY: a value of an array; `key` is written by this writer, or by user space for processes that are gone.
        Some(block) if unsafe { (*block).key } == key => block,
        _ => {
            let index = find(tgid, id, writer);
            if index == NO_BLOCK {
                return Err(Error::NotOurs);
            }
            if let Some(line) = line {
                line.key = key;
                line.index = index;
            }
            BLOCKS.get_ptr_mut(index).ok_or(Error::NotOurs)?
        }
    };
    // SAFETY: the block's one writer: programs do not migrate, and the kernel runs none on a CPU that is inside the same one already.
    add(unsafe { &mut *block }, call);
    Ok(())
}

#[inline(always)]
fn cache_line(tgid: u32, id: SyscallId) -> usize {
    // What waited has a line beside that of what did not.
    (tgid.wrapping_mul(0x9e37_79b1) >> 16 ^ u32::from(id) ^ u32::from(id >> 6)) as usize & (CACHE_LINES - 1)
}

#[inline(always)]
fn add(block: &mut Block, call: &Call) {
    if call.is_measured {
        measure(block, call);
    } else {
        block.unmeasured = block.unmeasured.wrapping_add(1);
    }
    let ret = call.ret;
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

/// Adds what a call took; of those that stand for others, as often as there are.
#[inline(always)]
fn measure(block: &mut Block, call: &Call) {
    let Call { interval, duration_ns, off_cpu_ns, stands_alone, .. } = *call;
    let mut weight = 1;
    if !stands_alone {
        weight += block.unmeasured;
        block.unmeasured = 0;
    }
    block.sum_ns += duration_ns * u64::from(weight);
    block.off_cpu_ns += off_cpu_ns * u64::from(weight);
    let bucket = hist::bucket(duration_ns);
    if bucket < BUCKETS {
        block.buckets[bucket] = block.buckets[bucket].wrapping_add(weight);
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
}

/// The block of a key that its CPU does not remember: look it up, or take a free one. Without a free one the call is
/// counted under its system call alone.
///
/// A function of its own, so that the fast path stays short. It returns a plain number ([`NO_BLOCK`] for none): a `Result` in
/// one register makes shifts that the verifier refuses.
#[inline(never)]
fn find(tgid: u32, id: SyscallId, writer: u32) -> u32 {
    let key = block_key(tgid, id, writer);
    if let Some(index) = INDEX.get_ptr(key) {
        // SAFETY: a value of the map, read once.
        return unsafe { *index };
    }
    if note_process(tgid)
        && let Ok(Some(index)) = FREE.pop()
    {
        return take(key, index);
    }
    emit::count(Counter::CallsFolded, 1);
    let folded = block_key(TGID_FOLDED, id, writer);
    if let Some(index) = INDEX.get_ptr(folded) {
        // SAFETY: as above.
        return unsafe { *index };
    }
    if let Ok(Some(index)) = FREE_FOLDED.pop() {
        return take(folded, index);
    }
    emit::count(Counter::CallsLost, 1);
    NO_BLOCK
}

#[inline(always)]
fn take(key: u64, index: u32) -> u32 {
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
    let process = Process { start_ns: owner.start_ns, cgroup_id, dead_ns: 0, comm: owner.comm };
    if PROCESSES.insert(tgid, process, BPF_ANY).is_err() {
        emit::count(Counter::ProcessesFull, 1);
        return false;
    }
    true
}
