//! Asks the running kernel's verifier about objects. Nothing is attached, nothing stays.

use anyhow::{Context as _, Result, bail};
use aya::{Btf, EbpfLoader, programs::Program};

use crate::process::say;

use super::manifest::Objects;

/// Lines of a verifier's log that are shown: the verdict is at its end, and all of it may be megabytes.
const LOG_LINES: usize = 40;

/// Loads every program of every object with its globals as they are, and names what the kernel refuses.
pub(super) fn load_all(objects: &Objects) -> Result<()> {
    let refused = objects.iter().filter_map(|(name, bytes)| load(name, bytes).err()).collect::<Vec<_>>();
    if !refused.is_empty() {
        bail!(
            "{}",
            refused.iter().map(|error| shorten(&format!("{error:#}"))).collect::<Vec<_>>().join("\n")
        );
    }
    say(format_args!("{} objects: this kernel's verifier accepts every program", objects.len()));
    Ok(())
}

fn load(object: &str, bytes: &[u8]) -> Result<()> {
    let mut ebpf =
        EbpfLoader::new().load(bytes).with_context(|| format!("this kernel refuses the maps of {object}"))?;
    let kernel_types = Btf::from_sys_fs().context("cannot read the kernel's types")?;
    for (name, program) in ebpf.programs_mut() {
        match program {
            Program::RawTracePoint(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::KProbe(program) => program.load(),
            Program::TracePoint(program) => program.load(),
            Program::SocketFilter(program) => program.load(),
            Program::Iter(program) => {
                // aya does not keep what the section says.
                let over = match name {
                    "open_connections" => "bpf_map_elem",
                    "calls_in_flight" | "older_calls" => "task",
                    _ => "task_file",
                };
                program.load(over, &kernel_types)
            }
            other => bail!(
                "{object}: {name} is of type {:?}, which xtask/src/ebpf/load.rs cannot load yet: add it there",
                other.prog_type()
            ),
        }
        .with_context(|| format!("this kernel refuses {name} of {object}"))?;
    }
    Ok(())
}

/// The first line, which says what was refused, and the last ones, which say why.
fn shorten(error: &str) -> String {
    let mut lines = error.lines();
    let first = lines.next().unwrap_or_default();
    let log = lines.collect::<Vec<_>>();
    match log.len().checked_sub(LOG_LINES) {
        None | Some(0) => error.to_owned(),
        Some(left_out) => {
            let end = log.into_iter().skip(left_out).collect::<Vec<_>>().join("\n");
            format!("{first}\n({left_out} lines of the verifier's log left out)\n{end}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_keeps_both_ends() {
        let short = "refused\n1\n2";
        assert_eq!(shorten(short), short);
        let long = (0..=LOG_LINES + 2).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
        let kept = shorten(&long);
        assert!(kept.starts_with("0\n(2 lines of the verifier's log left out)\n3\n"), "{kept}");
        assert!(kept.ends_with(&format!("\n{}", LOG_LINES + 2)), "{kept}");
    }
}
