//! cgroups that are made, by id and path, and removed: so that a container has its name even if it is gone before anybody looks.
#![no_std]
#![no_main]

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use probe_common::cgroups::{KIND_MADE, KIND_REMOVED, MadeRecord, RemovedRecord};
use probe_common::fields::KernelPointer;
use probe_common::wire::RecordHeader;
use probe_ebpf::{Error, Result, emit, kread};

/// What the tracepoint goes on with.
const NEUTRAL: i32 = 0;

/// `cgroup_mkdir(struct cgroup *cgrp, const char *path)`, the same since 5.0. The path is the kernel's own, from the root on.
#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: RawTracePointContext) -> i32 {
    if let Err(error) = try_mkdir(&ctx) {
        emit::give_up(&ctx, error);
    }
    NEUTRAL
}

/// `cgroup_rmdir(struct cgroup *cgrp, const char *path)`, likewise.
#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
pub fn cgroup_rmdir(ctx: RawTracePointContext) -> i32 {
    if let Err(error) = try_rmdir(&ctx) {
        emit::give_up(&ctx, error);
    }
    NEUTRAL
}

fn try_mkdir(ctx: &RawTracePointContext) -> Result<()> {
    let id = id_in_v2(ctx.arg(0))?;
    let Some(record) = emit::reserve::<MadeRecord>() else { return Ok(()) };
    record.header = header::<MadeRecord>(KIND_MADE);
    record.id = id;
    record.len = kread::text_at(ctx.arg(1), &mut record.path);
    emit::submit(record);
    Ok(())
}

fn try_rmdir(ctx: &RawTracePointContext) -> Result<()> {
    let id = id_in_v2(ctx.arg(0))?;
    let Some(record) = emit::reserve::<RemovedRecord>() else { return Ok(()) };
    record.header = header::<RemovedRecord>(KIND_REMOVED);
    record.id = id;
    emit::submit(record);
    Ok(())
}

/// The id of a cgroup, if it is one of v2.
#[inline(always)]
fn id_in_v2(cgroup: KernelPointer) -> Result<u64> {
    // v1's hierarchies number their directories likewise, each from the beginning. The default one, v2's, is hierarchy 0.
    if kread!(kread!(cgroup, CGROUP_ROOT)?, CGROUP_ROOT_HIERARCHY_ID)? != 0 {
        return Err(Error::NotOurs);
    }
    kread!(kread!(cgroup, CGROUP_KN)?, KERNFS_ID)
}

#[inline(always)]
fn header<T>(kind: u16) -> RecordHeader {
    // SAFETY: the helper has no requirement.
    RecordHeader::of::<T>(kind, unsafe { bpf_ktime_get_ns() })
}
