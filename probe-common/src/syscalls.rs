//! Records, keys and values of the syscalls signal.

use crate::fields::KernelPointer;
use crate::hist::BUCKETS;
use crate::tcp::Socket;
use crate::wire::{Owner, RecordHeader};

/// [`SlowRecord`].
pub const KIND_SLOW: u16 = 1;
/// [`StackRecord`].
pub const KIND_STACK: u16 = 2;

/// A system call in one word: the ABI in the two upper bits, then whether it [`WAITED`], the number in the lower thirteen.
pub type SyscallId = u16;
/// Bits of a [`SyscallId`] that hold the number.
pub const NUMBER_MASK: u16 = 0x1fff;
/// Any number that does not fit.
pub const NUMBER_UNKNOWN: u16 = 0x1fff;
/// In the key of a block: calls that slept until somebody else did something, of a kind that need not ([`CLASS_READS`],
/// [`CLASS_RECEIVES`]).
pub const WAITED: u16 = 1 << 13;
/// The 32-bit table of a 64-bit kernel (i386 on x86-64).
pub const ABI_COMPAT: u16 = 1 << 14;
/// x32 on x86-64.
pub const ABI_X32: u16 = 1 << 15;

/// In [`CpuState::id`] and [`Sleeper::id`], above the [`SyscallId`]: the beginning is not measured, only the tick is known in which
/// it was (`jiffies_64`). In a [`Sleeper`] that is made a time, never too late.
pub const ROUGHLY: u32 = 1 << 16;
/// Likewise: the thread went to sleep inside the call, of its own will.
pub const SLEPT: u32 = 1 << 17;
/// Likewise: it began before the programs were there, and is not counted when it ends. Its beginning is when it was found.
pub const OLDER: u32 = 1 << 18;

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
    /// Part of `sum_ns` in which the thread did not have the CPU, nanoseconds.
    pub off_cpu_ns: u64,
    /// Calls that were not measured since the last that was: the next one stands for them too.
    pub unmeasured: u32,
    /// Zero.
    pub _pad: u32,
    /// By parity of the interval, so that one can be read while the other is written.
    pub peaks: [Peak; 2],
    /// Errors by errno.
    pub errnos: [ErrnoCount; ERRNO_SLOTS],
    /// Durations by `hist::bucket`. They wrap around: read them as differences.
    pub buckets: [u32; BUCKETS],
}
const _: () = assert!(size_of::<Block>() == 592);

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
    /// When the call that runs here began, CLOCK_MONOTONIC nanoseconds; with [`ROUGHLY`], in ticks; 0: latency is not measured.
    pub start_ns: u64,
    /// Its registers, a `struct pt_regs *` on the thread's kernel stack.
    pub regs: KernelPointer,
    /// When a thread last left this CPU, CLOCK_MONOTONIC nanoseconds: since then it has been with the one that runs.
    pub switched_ns: u64,
    /// The thread that has the CPU, once it has made a call: process and thread id as `bpf_get_current_pid_tgid` has them; 0: none
    /// since the last switch. While it is known, a call in flight is in this slot and nowhere else.
    pub who: u64,
    /// Thread inside a call on this CPU; 0: none.
    pub tid: u32,
    /// Its system call, and [`ROUGHLY`].
    pub id: u32,
    /// Rises whenever a thread leaves the CPU. It wraps around.
    pub switches: u32,
    /// The last event that a program has dealt with, and its thread; 0 after a thread has left the CPU.
    pub done: u32,
    /// Whether its process passes the filter: the number of the interval in which that was found, times two, plus one if it does;
    /// 0: not found yet.
    pub verdict: u32,
    /// Zero.
    pub _pad: u32,
    /// Calls still to begin here until one is measured (`settings::Settings::latency_every`).
    pub until_measured: u32,
    /// Calls that ended here since the last whose stack was taken.
    pub unsampled_calls: u32,
    /// Their time, nanoseconds.
    pub unsampled_ns: u64,
    /// When that one's was taken, CLOCK_MONOTONIC nanoseconds.
    pub sampled_ns: u64,
    /// Recently used blocks.
    pub cache: [CacheLine; CACHE_LINES],
}
const _: () = assert!(size_of::<CpuState>() == 80 + 16 * CACHE_LINES);

/// A call whose thread lost the CPU inside it (`SLEEPERS`, keyed by thread id); it stays there when it is over.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sleeper {
    /// When the call began, CLOCK_MONOTONIC nanoseconds; where latency is not measured, when its thread first lost the CPU.
    pub start_ns: u64,
    /// Its registers, as [`CpuState::regs`].
    pub regs: KernelPointer,
    /// When the thread last left a CPU, CLOCK_MONOTONIC nanoseconds; 0: the call is over.
    pub left_ns: u64,
    /// How long it was off its CPU before that, nanoseconds.
    pub off_cpu_ns: u64,
    /// Its [`SyscallId`], [`ROUGHLY`] and [`SLEPT`].
    pub id: u32,
    /// Process.
    pub tgid: u32,
}
const _: () = assert!(size_of::<Sleeper>() == 40);

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
}
const _: () = assert!(size_of::<Process>() == 40);

/// What a call is about, as far as it reads.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The six argument registers.
    pub args: [u64; 6],
    /// Inode number of the file behind the descriptor.
    pub inode: u64,
    /// Its kind and permissions, `st_mode` of inode(7).
    pub mode: u32,
    /// `HAS_*`: what was read.
    pub has: u32,
    /// The socket behind the descriptor: ends, family, state.
    pub socket: Socket,
    /// Last part of the file's path, NUL-padded; cut where it is longer.
    pub name: [u8; NAME_LEN],
    /// The path that was given, NUL-padded; cut where it is longer.
    pub path: [u8; PATH_LEN],
}
const _: () = assert!(size_of::<Subject>() == 352);

/// Octets of [`Subject::name`].
pub const NAME_LEN: usize = 64;
/// Octets of [`Subject::path`].
pub const PATH_LEN: usize = 128;
/// [`Subject::args`].
pub const HAS_ARGS: u32 = 1 << 0;
/// [`Subject::inode`], [`Subject::mode`] and [`Subject::name`].
pub const HAS_FILE: u32 = 1 << 1;
/// [`Subject::socket`].
pub const HAS_SOCKET: u32 = 1 << 2;
/// [`Subject::path`].
pub const HAS_PATH: u32 = 1 << 3;

/// A call that took longer than its threshold.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowRecord {
    /// Kind [`KIND_SLOW`]; time: when it returned.
    pub header: RecordHeader,
    /// Nanoseconds.
    pub duration_ns: u64,
    /// How much of that the thread did not have the CPU, nanoseconds.
    pub off_cpu_ns: u64,
    /// cgroup v2 id of the process.
    pub cgroup_id: u64,
    /// What it returned.
    pub ret: i64,
    /// Process.
    pub owner: Owner,
    /// Thread.
    pub tid: u32,
    /// [`SyscallId`].
    pub id: u32,
    /// Registers as they stand at return.
    pub subject: Subject,
}
const _: () = assert!(size_of::<SlowRecord>() == 440);

/// Functions of a kernel stack that are kept, innermost first.
pub const STACK_LEN: usize = 32;
/// The same of a user stack: as many as the kernel takes by default (`PERF_MAX_STACK_DEPTH`).
pub const USER_STACK_LEN: usize = 127;

/// Where a call came from, and where it slept last.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackRecord {
    /// Kind [`KIND_STACK`]; time: when it returned.
    pub header: RecordHeader,
    /// Process.
    pub owner: Owner,
    /// Thread.
    pub tid: u32,
    /// [`SyscallId`].
    pub id: u32,
    /// How long it took, nanoseconds.
    pub duration_ns: u64,
    /// How much of that the thread did not have the CPU, nanoseconds.
    pub off_cpu_ns: u64,
    /// Time of all the calls that it stands for, itself with them, nanoseconds; 0: it was not its turn.
    pub weight_ns: u64,
    /// Their number.
    pub weight_calls: u32,
    /// 1: it was slow, and its [`SlowRecord`] may follow.
    pub is_slow: u32,
    /// Where in the kernel it went to sleep, innermost first; 0: that was all.
    pub kernel: [u64; STACK_LEN],
    /// Where in the program it was made, likewise.
    pub user: [u64; USER_STACK_LEN],
}
const _: () = assert!(size_of::<StackRecord>() == 1360);

/// A call that has not returned for longer than its threshold: what the walk over all threads writes for each.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// When it began, as [`Sleeper::start_ns`].
    pub start_ns: u64,
    /// When it was looked at, CLOCK_MONOTONIC nanoseconds.
    pub now_ns: u64,
    /// cgroup v2 id of the process; 0: it does not read.
    pub cgroup_id: u64,
    /// Process.
    pub owner: Owner,
    /// Thread.
    pub tid: u32,
    /// [`SyscallId`], [`OLDER`], and [`SLEPT`]: it sleeps now.
    pub id: u32,
    /// Where the thread is in the kernel, innermost first; 0: that was all.
    pub stack: [u64; STACK_LEN],
    /// Registers as they stood when the call began.
    pub subject: Subject,
}
const _: () = assert!(size_of::<InFlight>() == 672);

/// What is to be known of a system call (`RULES`: the native table, and behind its [`RULE_COUNT`] the 32-bit one).
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// From how many nanoseconds on it is slow; [`u64::MAX`]: never.
    pub slow_ns: u64,
    /// The same where it waited.
    pub waited_ns: u64,
    /// `CLASS_*`.
    pub class: u8,
    /// Which argument is a descriptor, from 1; 0: none.
    pub fd: u8,
    /// Which argument is a path, from 1; 0: none.
    pub path: u8,
    /// Zero.
    pub _pad: [u8; 5],
}
const _: () = assert!(size_of::<Rule>() == 24);
/// Entries of a table in `RULES`.
pub const RULE_COUNT: u32 = 1024;

/// [`Rule::class`]: it works; what it takes is what it takes.
pub const CLASS_WORKS: u8 = 0;
/// It waits by design.
pub const CLASS_WAITS: u8 = 1;
/// It waits if it slept, unless the descriptor's file is one of a disk: read(2).
pub const CLASS_READS: u8 = 2;
/// It waits if it slept: recv(2), accept(2).
pub const CLASS_RECEIVES: u8 = 3;
