//! The ring to user space, the counters, and the settings: the maps that every object has.

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{bpf_ringbuf_query, bpf_ringbuf_reserve, bpf_ringbuf_submit};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray, RingBuf};
use aya_log_ebpf::debug;
use probe_common::loss::{COUNTER_COUNT, Counter};
use probe_common::settings::Settings;

use crate::Error;

/// Records for user space. Its size is set at load time (`--ring-kib`).
#[map]
static RING: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// `probe_common::loss::Counter`.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_COUNT, 0);

/// One entry, written by user space at any time.
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The current settings. Always there: an array of one.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    // SAFETY: the one entry lives as long as the program; user space writes single fields, each of which is
    // read once.
    SETTINGS.get_ptr(0).map(|settings| unsafe { &*settings })
}

/// Adds to a counter.
#[inline(always)]
pub fn count(counter: Counter, n: u64) {
    if let Some(cell) = COUNTERS.get_ptr_mut(counter as u32) {
        add(cell, n);
    }
}

/// Adds to a cell of a map, atomically: even on one CPU a softirq may come in between. `BPF_XADD`, in every kernel that has
/// BPF; in assembly, because rustc's BPF target calls itself single-threaded and would make it a plain addition.
#[inline(always)]
pub fn add(cell: *mut u64, n: u64) {
    // SAFETY: the caller's cell is an aligned word of a map value.
    unsafe { asm!("lock *(u64 *)({cell} + 0) += {n}", cell = in(reg) cell, n = in(reg) n) };
}

/// [`add`] for half words.
#[inline(always)]
pub fn add32(cell: *mut u32, n: u32) {
    // SAFETY: the caller's cell is an aligned half word of a map value.
    unsafe { asm!("lock *(u32 *)({cell} + 0) += {n}", cell = in(reg) cell, n = in(reg) u64::from(n)) };
}

/// Adds one to a counter, and says whether that was this CPU's first: what is worth a line in the log, once.
#[inline(always)]
pub fn count_first(counter: Counter) -> bool {
    let Some(cell) = COUNTERS.get_ptr_mut(counter as u32) else { return false };
    add(cell, 1);
    // SAFETY: a word of a map value. Two at the same moment make two lines, or none; no count depends on it.
    unsafe { cell.read_volatile() == 1 }
}

/// Counts what made a program give up. The counter is what everybody sees; which program it was, only who asks for its log:
/// the verifier follows the code of a message eight times, in every program that has one.
#[inline(always)]
pub fn give_up(ctx: &impl EbpfContext, error: Error) {
    match error {
        Error::Read => {
            if count_first(Counter::KernelRead) {
                debug!(ctx, "kernel memory did not read; further ones are only counted");
            }
        }
        Error::NotOurs => {}
    }
}

/// Room for one record in the ring, zeroed: reserved memory holds what was there before. It must be submitted.
#[inline(always)]
pub fn reserve<T>() -> Option<&'static mut T> {
    // SAFETY: RING is a ring buffer map.
    let room = unsafe { bpf_ringbuf_reserve(ring(), size_of::<T>() as u64, 0) }.cast::<T>();
    if room.is_null() {
        count(Counter::RingFull, 1);
        return None;
    }
    // SAFETY: not null, so `size_of::<T>()` bytes, aligned to eight, ours until submitted. Records are plain
    // integers, for which zeros are valid.
    unsafe {
        zero_words::<T>(room);
        Some(&mut *room)
    }
}

/// Zeroes a record by words; a loop the compiler unrolls, for BPF has no memset.
#[inline(always)]
unsafe fn zero_words<T>(room: *mut T) {
    const { assert!(size_of::<T>() % 8 == 0 && align_of::<T>() == 8) };
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: inside the record.
        unsafe { room.cast::<u64>().add(word).write_volatile(0) };
    }
}

/// Hands a reserved record to user space.
#[inline(always)]
pub fn submit<T>(record: &'static mut T) {
    let flags = wake_flags(size_of::<T>() as u64);
    // SAFETY: `record` came from `reserve` and is not used after.
    unsafe { bpf_ringbuf_submit((&raw mut *record).cast(), flags) };
    count(Counter::Produced, 1);
}

/// User space is woken only when the bytes waiting cross the watermark; below it, its timer finds them. Waking
/// for each record would cost twenty times the record itself.
#[inline(always)]
fn wake_flags(len: u64) -> u64 {
    let wake_bytes = settings().map_or(0, |settings| u64::from(settings.wake_bytes));
    // SAFETY: RING is a ring buffer map.
    let waiting = unsafe { bpf_ringbuf_query(ring(), u64::from(BPF_RB_AVAIL_DATA)) };
    // What waits includes this record, whose room is its length and a header of 8 bytes, rounded up to 8.
    let before = waiting.saturating_sub((len + 15) & !7);
    if before <= wake_bytes && waiting > wake_bytes {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}

#[inline(always)]
fn ring() -> *mut c_void {
    (&raw const RING).cast_mut().cast()
}
