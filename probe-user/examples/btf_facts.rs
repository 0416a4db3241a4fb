//! `cargo run -p probe-user --example btf_facts -- FILE`: what probe takes from a kernel's BTF, one fact a line.
//!
//! For whoever wants to know what another kernel is like; and `cargo xtask btf` compares the facts of a fixture with
//! those of the whole kernel.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use probe_common::fields::FIELDS;
use probe_user::kernel::btf::KernelBtf;
use probe_user::kernel::fields::resolve;
use probe_user::load::Hook;
use probe_user::signals;

fn main() -> Result<()> {
    let file = std::env::args_os().nth(1).context("which BTF? (/sys/kernel/btf/vmlinux, or a file)")?;
    let btf = KernelBtf::from_file(Path::new(&file))?;
    let resolved = resolve(&btf, FIELDS);
    let mut out = io::stdout().lock();
    for (field, slot) in FIELDS.iter().zip(&resolved.slots) {
        match resolved.absent.iter().find(|absent| absent.path == field.path) {
            Some(absent) => writeln!(out, "{}: {}", field.path, absent.reason)?,
            None => writeln!(out, "{}: {slot:?}", field.path)?,
        }
    }
    for (value, name) in resolved.reset_reasons.iter().collect::<BTreeMap<_, _>>() {
        writeln!(out, "reason of resets {value}: {name}")?;
    }
    for name in ["bpf_func_id", "bpf_map_type", "tcp_ca_state"] {
        for variant in btf.enum_variants(name) {
            writeln!(out, "enum {name}: {} = {}", variant.name, variant.value)?;
        }
    }
    writeln!(out, "maps are charged to RLIMIT_MEMLOCK: {}", resolved.bpf.charges_memlock)?;
    writeln!(out, "programs lose their CPU: {}", resolved.bpf.preempts_programs)?;
    for object in signals::ALL.iter().map(|kind| kind.object()) {
        for map in resolved.bpf.unknown_maps(object.elf) {
            writeln!(out, "{}: the kernel has no {map}", object.name)?;
        }
        for program in object.programs {
            for helper in resolved.bpf.unknown_helpers(object.elf, program.name) {
                writeln!(out, "{}: the kernel has no {helper}", program.name)?;
            }
            if let Hook::RawTracepoint(name) = program.hook {
                writeln!(out, "raw tracepoint {name}: {}", btf.tracepoint_exists(name))?;
            }
        }
    }
    Ok(())
}
