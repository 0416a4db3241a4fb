//! Where calls come from: user stacks of some of them, and where in the kernel they slept (`probe syscalls --stacks`).
//!
//! What a stack stands for is what passed since the last: so the weights of all samples add up to all the time, or all the calls.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_F_USER_STACK;
use aya_ebpf::helpers::generated::bpf_get_stack;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use probe_common::settings::Settings;
use probe_common::syscalls::{
    CLASS_WAITS, CpuState, KIND_STACK, STACK_LEN, StackRecord, SyscallId, USER_STACK_LEN, WAITED,
};
use probe_common::wire::RecordHeader;
use probe_ebpf::{emit, kread, task};

use crate::{BPF_ANY, now, rules};

/// Between two samples of a CPU, at least: however many calls there are, at most so many stacks are taken.
const LEAST_GAP_NS: u64 = 200_000;

/// Where threads inside a call went to sleep last, by thread id. One entry, unless stacks are wanted.
#[map]
static SLEEPS: HashMap<u32, [u64; STACK_LEN]> = HashMap::with_max_entries(1, 0);

/// A call that has returned.
pub(crate) struct Sample {
    pub(crate) pid_tgid: u64,
    pub(crate) id: SyscallId,
    pub(crate) is_slow: bool,
    pub(crate) duration_ns: u64,
    pub(crate) off_cpu_ns: u64,
}

#[inline(always)]
pub(crate) fn are_wanted(settings: &Settings) -> bool {
    settings.stack_every_ns != 0 || settings.stack_every_calls != 0
}

/// The current thread goes to sleep inside a call: notes where, if stacks are wanted.
#[inline(always)]
pub(crate) fn note(ctx: *mut c_void, tid: u32) {
    if emit::settings().is_some_and(are_wanted) {
        note_stack(ctx, tid);
    }
}

#[inline(never)]
fn note_stack(ctx: *mut c_void, tid: u32) {
    if SLEEPS.get_ptr(tid).is_none() {
        // No room: then it is a sample without.
        let _full = SLEEPS.insert(tid, [0u64; STACK_LEN], BPF_ANY);
    }
    if let Some(stack) = SLEEPS.get_ptr_mut(tid) {
        // SAFETY: a value of the map, of that length; what is left of it, the helper zeroes.
        let _bytes = unsafe { bpf_get_stack(ctx.cast(), stack.cast(), (STACK_LEN * 8) as u32, 0) };
    }
}

/// Takes the stack of a call, if it is its turn.
#[inline(always)]
pub(crate) fn consider(ctx: *mut c_void, cpu: &mut CpuState, settings: &Settings, sample: &Sample) {
    let waits =
        sample.id & WAITED != 0 || rules::rule(sample.id).is_some_and(|rule| rule.class == CLASS_WAITS);
    let counts = !waits || settings.stack_waits != 0;
    let mut weight_ns = 0;
    let mut weight_calls = 0;
    if counts {
        cpu.unsampled_ns += sample.duration_ns;
        cpu.unsampled_calls = cpu.unsampled_calls.wrapping_add(1);
        let every_calls = settings.stack_every_calls;
        let is_due = settings.stack_every_ns != 0 && cpu.unsampled_ns >= settings.stack_every_ns
            || every_calls != 0 && cpu.unsampled_calls >= every_calls;
        if is_due && now().saturating_sub(cpu.sampled_ns) >= LEAST_GAP_NS {
            weight_ns = cpu.unsampled_ns;
            weight_calls = cpu.unsampled_calls;
        }
    }
    if weight_calls == 0 && !sample.is_slow {
        forget(sample.pid_tgid as u32);
        return;
    }
    let weight = Weight { ns: weight_ns, calls: weight_calls };
    if take(ctx, sample, &weight) != 0 && weight_calls != 0 {
        cpu.unsampled_ns = 0;
        cpu.unsampled_calls = 0;
        cpu.sampled_ns = now();
    }
}

struct Weight {
    ns: u64,
    calls: u32,
}

/// Where it slept belongs to a call that is over.
#[inline(always)]
pub(crate) fn forget(tid: u32) {
    if emit::settings().is_some_and(are_wanted) {
        let _absent = SLEEPS.remove(tid);
    }
}

/// 1: it was taken. 0: there was no room for it, so the next one stands for what it would have.
#[inline(never)]
fn take(ctx: *mut c_void, sample: &Sample, weight: &Weight) -> u32 {
    let Ok(owner) = task::owner() else { return 0 };
    let tid = sample.pid_tgid as u32;
    let Some(record) = emit::reserve::<StackRecord>() else { return 0 };
    record.header = RecordHeader::of::<StackRecord>(KIND_STACK, now());
    record.owner = owner;
    record.tid = tid;
    record.id = u32::from(sample.id & !WAITED);
    record.duration_ns = sample.duration_ns;
    record.off_cpu_ns = sample.off_cpu_ns;
    record.weight_ns = weight.ns;
    record.weight_calls = weight.calls;
    record.is_slow = u32::from(sample.is_slow);
    if sample.off_cpu_ns != 0
        && let Some(stack) = SLEEPS.get_ptr(tid)
    {
        kread::copy(stack, &mut record.kernel);
    }
    // SAFETY: the array and its length; what is left of it, the helper zeroes.
    let _bytes = unsafe {
        bpf_get_stack(
            ctx.cast(),
            (&raw mut record.user).cast(),
            (USER_STACK_LEN * 8) as u32,
            u64::from(BPF_F_USER_STACK),
        )
    };
    emit::submit(record);
    forget(tid);
    1
}
