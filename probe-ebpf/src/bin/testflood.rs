//! Not shipped: makes records as fast as it can, through the code that all programs emit with.
//!
//! Run by BPF_PROG_TEST_RUN (raw tracepoints: 5.10); never attached.
#![no_std]
#![no_main]

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::RawTracePointContext;
use probe_common::testflood::{BURST, ECHOES, FloodRecord, KIND_FLOOD};
use probe_common::wire::RecordHeader;
use probe_ebpf::emit;

/// Records that were tried to be made, one counter.
#[map]
static TRIED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// `(u64 count, u64 producer, u64 first)`: tries to make so many records, numbered from `first`.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn flood(ctx: RawTracePointContext) -> i32 {
    let (count, producer, first): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    for tried in 0..BURST {
        if tried >= count {
            break;
        }
        if let Some(cell) = TRIED.get_ptr_mut(0) {
            emit::add(cell, 1);
        }
        one(producer, first + tried);
    }
    0
}

#[inline(always)]
fn one(producer: u64, number: u64) {
    let Some(record) = emit::reserve::<FloodRecord>() else { return };
    // SAFETY: the helper has no requirement.
    record.header = RecordHeader::of::<FloodRecord>(KIND_FLOOD, unsafe { bpf_ktime_get_ns() });
    record.producer = producer;
    record.number = number;
    for echo in 0..ECHOES {
        record.echoes[echo] = number;
    }
    emit::submit(record);
}
