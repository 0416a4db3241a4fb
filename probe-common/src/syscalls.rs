//! Records, keys and values of the syscalls signal.

use crate::hist::BUCKETS;
use crate::wire::RecordHeader;

/// [`SlowRecord`].
pub const KIND_SLOW: u16 = 1;

/// A system call in one word: the ABI in the two upper bits, the number in the lower fourteen.
pub type SyscallId = u16;
/// Bits of a [`SyscallId`] that hold the number.
pub const NUMBER_MASK: u16 = 0x3fff;
/// Any number that does not fit.
pub const NUMBER_UNKNOWN: u16 = 0x3fff;
/// The 32-bit table of a 64-bit kernel (i386 on x86-64). Asking costs too much for every call, so it is noted with the
/// process ([`Process::abi`]) and added when names are looked up.
pub const ABI_COMPAT: u16 = 1 << 14;
/// x32 on x86-64.
pub const ABI_X32: u16 = 1 << 15;

/// In place of a process id: calls counted without their process. No process has it, and no [`block_key`] with it is 0, which
/// means a free block.
pub const TGID_FOLDED: u32 = u32::MAX;

/// Key of a block: who, which call, counted by which [`writer`]. A block has one writer, so plain increments are exact.
#[must_use]
#[inline(always)]
pub const fn block_key(tgid: u32, id: SyscallId, writer: u32) -> u64 {
    ((tgid as u64) << 32) | ((id as u64) << 16) | (writer as u64 & 0xffff)
}

/// The first program at a hook (`place` 0), or its backup (1), on one CPU. CPU numbers take 13 bits: `NR_CPUS` is 8,192 at most on
/// x86-64, 4,096 on arm64.
#[must_use]
#[inline(always)]
pub const fn writer(cpu: u32, place: u32) -> u32 {
    (place << 13) | (cpu & 0x1fff)
}

/// The process of a [`block_key`].
#[must_use]
pub const fn key_tgid(key: u64) -> u32 {
    (key >> 32) as u32
}

/// The system call of a [`block_key`].
#[must_use]
pub const fn key_id(key: u64) -> SyscallId {
    (key >> 16) as u16
}

/// Errnos that a block tells apart; further ones are counted together.
pub const ERRNO_SLOTS: usize = 6;

/// How often a call failed with one errno.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrnoCount {
    /// Positive errno; 0: the slot is free.
    pub errno: u32,
    /// Wraps around: read it as a difference.
    pub count: u32,
}

/// Shortest and longest call of one interval.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peak {
    /// Nanoseconds.
    pub min_ns: u64,
    /// Nanoseconds.
    pub max_ns: u64,
    /// `settings::Settings::interval` that these belong to.
    pub interval: u32,
    /// Zero.
    pub _pad: u32,
}
const _: () = assert!(size_of::<Peak>() == 24);

/// Cumulative figures of one (process, system call) on one CPU. User space maps the array of them into its
/// memory and reads them without a system call; it writes only to blocks of processes that are gone.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// [`block_key`]; 0: the block is free.
    pub key: u64,
    /// Calls that returned.
    pub calls: u64,
    /// Sum of their durations, nanoseconds.
    pub sum_ns: u64,
    /// Calls that returned an error (-4095 to -1).
    pub errors: u64,
    /// By parity of the interval, so that one can be read while the other is written.
    pub peaks: [Peak; 2],
    /// Errors by errno.
    pub errnos: [ErrnoCount; ERRNO_SLOTS],
    /// Durations by `hist::bucket`. They wrap around: read them as differences.
    pub buckets: [u32; BUCKETS],
}
const _: () = assert!(size_of::<Block>() == 576);

/// Lines in a CPU's cache of block indices; a power of two.
pub const CACHE_LINES: usize = 256;

/// Where the block of a key is. Checked against the block's own key before use.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheLine {
    /// [`block_key`].
    pub key: u64,
    /// Index into the blocks.
    pub index: u32,
    /// Zero.
    pub _pad: u32,
}

/// What one CPU is doing.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// When the call that runs here began, CLOCK_MONOTONIC nanoseconds.
    pub start_ns: u64,
    /// Thread inside a call on this CPU; 0: none.
    pub tid: u32,
    /// Its system call.
    pub id: u32,
    /// Rises whenever a thread leaves the CPU. It wraps around.
    pub switches: u32,
    /// The last event that a program has dealt with, and its thread; 0 after a thread has left the CPU.
    pub done: u32,
    /// Recently used blocks.
    pub cache: [CacheLine; CACHE_LINES],
}
const _: () = assert!(size_of::<CpuState>() == 24 + 16 * CACHE_LINES);

/// A call whose thread lost the CPU inside it (`SLEEPERS`, keyed by thread id).
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sleeper {
    /// When the call began, CLOCK_MONOTONIC nanoseconds.
    pub start_ns: u64,
    /// Its [`SyscallId`].
    pub id: u32,
    /// Process.
    pub tgid: u32,
}
const _: () = assert!(size_of::<Sleeper>() == 16);

/// A process that has blocks (`PROCESSES`, keyed by process id).
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Nanoseconds since boot, CLOCK_BOOTTIME, at which it began.
    pub start_ns: u64,
    /// cgroup v2 id.
    pub cgroup_id: u64,
    /// When its last thread exited, CLOCK_MONOTONIC nanoseconds; 0: it lives.
    pub dead_ns: u64,
    /// Name of its leader, NUL-padded.
    pub comm: [u8; 16],
    /// [`ABI_COMPAT`] for a 32-bit process on a 64-bit kernel, else 0.
    pub abi: u32,
    /// Zero.
    pub _pad: u32,
}
const _: () = assert!(size_of::<Process>() == 48);

/// A call that took longer than its threshold.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowRecord {
    /// Kind [`KIND_SLOW`]; time: when it returned.
    pub header: RecordHeader,
    /// Nanoseconds.
    pub duration_ns: u64,
    /// cgroup v2 id of the process.
    pub cgroup_id: u64,
    /// What it returned.
    pub ret: i64,
    /// Process.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// [`SyscallId`].
    pub id: u32,
    /// 1: `args` were read.
    pub has_args: u32,
    /// Nanoseconds since boot, CLOCK_BOOTTIME, at which the process began.
    pub start_ns: u64,
    /// Name of the process's leader, NUL-padded.
    pub comm: [u8; 16],
    /// The six argument registers as they stand at return.
    pub args: [u64; 6],
}
const _: () = assert!(size_of::<SlowRecord>() == 128);
/// Threshold (`THRESHOLDS`, indexed by number): never slow, because the call waits by design.
pub const THRESHOLD_NEVER: u64 = u64::MAX;
/// Entries of `THRESHOLDS`.
pub const THRESHOLD_COUNT: u32 = 1024;
