//! Asks the running kernel's verifier about an object. Nothing is attached, nothing stays.

use anyhow::{Context as _, Result, bail};
use aya::{EbpfLoader, programs::Program};

use crate::process::say;

/// Loads every program of an object with its globals as they are.
pub(super) fn load(object: &str, bytes: &[u8]) -> Result<()> {
    let mut ebpf =
        EbpfLoader::new().load(bytes).with_context(|| format!("this kernel refuses the maps of {object}"))?;
    let mut count = 0_usize;
    for (name, program) in ebpf.programs_mut() {
        match program {
            Program::RawTracePoint(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::KProbe(program) => program.load(),
            Program::TracePoint(program) => program.load(),
            Program::SocketFilter(program) => program.load(),
            other => bail!(
                "{object}: {name} is of type {:?}, which xtask/src/ebpf/load.rs cannot load yet: add it there",
                other.prog_type()
            ),
        }
        .with_context(|| format!("this kernel refuses {name} of {object}"))?;
        count += 1;
    }
    say(format_args!("{object}: {count} programs loaded"));
    Ok(())
}
