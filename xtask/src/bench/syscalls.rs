//! What tracing adds to a system call: a getppid loop.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};
use aya::{Ebpf, EbpfLoader, programs::RawTracePoint};

use super::tracer::Tracer;
use super::{installed, spread};
use crate::process::say;

const CALLS: u32 = 1_000_000;
const WARM_UP: u32 = 100_000;
/// Programs of `probe syscalls`: five that stay, and a walk.
pub(super) const PROGRAMS: usize = 6;

/// What runs beside the loop.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Nothing,
    Empty,
    Probe,
    ProbeSampled,
    ProbeCounts,
    ProbeElsewhere,
    ProbeOthersName,
    Syscount,
    Bpftrace,
}

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Empty => "empty programs on sys_enter and sys_exit",
            Self::Probe => "probe syscalls",
            Self::ProbeSampled => "probe syscalls --latency-sample 16",
            Self::ProbeCounts => "probe syscalls --no-latency",
            Self::ProbeElsewhere => "probe syscalls --pid OTHER",
            Self::ProbeOthersName => "probe syscalls --comm OTHER",
            Self::Syscount => "syscount -L (libbpf-tools)",
            Self::Bpftrace => "bpftrace, one-line histogram",
        }
    }
}

/// Whatever traces; dropped, it is gone.
pub(super) enum Tracing {
    None,
    Programs { _ebpf: Box<Ebpf> },
    Process { _tracer: Tracer },
}

pub(super) fn run(root: &Path, probe: &Path, rounds: u32) -> Result<()> {
    let mut variants = vec![
        Variant::Nothing,
        Variant::Empty,
        Variant::Probe,
        Variant::ProbeSampled,
        Variant::ProbeCounts,
        Variant::ProbeElsewhere,
        Variant::ProbeOthersName,
    ];
    if installed("syscount") {
        variants.push(Variant::Syscount);
    }
    if installed("bpftrace") {
        variants.push(Variant::Bpftrace);
    }
    let mut figures: Vec<Vec<f64>> = vec![Vec::new(); variants.len()];
    for _ in 0..rounds {
        for (variant, figures) in variants.iter().zip(&mut figures) {
            let tracing = start(*variant, root, probe)?;
            measure(WARM_UP);
            figures.push(measure(CALLS));
            drop(tracing);
        }
    }
    let mut rows = Vec::new();
    for (variant, figures) in variants.iter().zip(&mut figures) {
        rows.push((*variant, spread(figures)));
    }
    let median_of = |wanted: Variant| {
        rows.iter().find(|(variant, _)| *variant == wanted).map(|(_, (_, middle, _))| *middle)
    };
    let nothing = median_of(Variant::Nothing).unwrap_or(f64::NAN);
    let added = |variant| median_of(variant).map(|middle| middle - nothing);
    say(format_args!("getppid, ns per call, {rounds} rounds of {CALLS} calls, variants in turn"));
    say(format_args!(
        "{:<42} {:>7} {:>7} {:>7} {:>7} {:>10} {:>12}",
        "", "min", "median", "max", "added", "of empty", "of syscount"
    ));
    for (variant, (min, middle, max)) in &rows {
        let ratio = |other| match added(other) {
            Some(base) if *variant != Variant::Nothing => format!("{:.2}", (middle - nothing) / base),
            _ => String::new(),
        };
        say(format_args!(
            "{:<42} {min:>7.1} {middle:>7.1} {max:>7.1} {:>7.1} {:>10} {:>12}",
            variant.name(),
            middle - nothing,
            ratio(Variant::Empty),
            ratio(Variant::Syscount)
        ));
    }
    Ok(())
}

/// Nanoseconds per call.
fn measure(calls: u32) -> f64 {
    let begun = Instant::now();
    for _ in 0..calls {
        std::hint::black_box(rustix::process::getppid());
    }
    begun.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
}

fn start(variant: Variant, root: &Path, probe: &Path) -> Result<Tracing> {
    let process =
        |command: &mut Command, programs| Ok(Tracing::Process { _tracer: Tracer::start(command, programs)? });
    let traced =
        |flags: &[&str]| process(Command::new(probe).args(["syscalls", "-o", "json"]).args(flags), PROGRAMS);
    match variant {
        Variant::Nothing => Ok(Tracing::None),
        Variant::Empty => Ok(Tracing::Programs {
            _ebpf: empty(root, &[("empty_enter", "sys_enter"), ("empty_exit", "sys_exit")])?,
        }),
        Variant::Probe => traced(&[]),
        Variant::ProbeSampled => traced(&["--latency-sample", "16"]),
        Variant::ProbeCounts => traced(&["--no-latency"]),
        // Process 1 is never us.
        Variant::ProbeElsewhere => traced(&["--pid", "1"]),
        Variant::ProbeOthersName => traced(&["--comm", "nobody"]),
        // It wants tracefs: mounted for it alone.
        Variant::Syscount => process(
            Command::new("unshare").args([
                "--mount",
                "sh",
                "-c",
                "mount -t tracefs none /sys/kernel/tracing && exec syscount -L -i 3600",
            ]),
            1,
        ),
        Variant::Bpftrace => process(
            Command::new("unshare").args([
                "--mount",
                "sh",
                "-c",
                "mount -t tracefs none /sys/kernel/tracing && exec bpftrace -e '\
                 tracepoint:raw_syscalls:sys_enter { @start[tid] = nsecs; } \
                 tracepoint:raw_syscalls:sys_exit /@start[tid]/ \
                 { @time[pid, args->id] = hist(nsecs - @start[tid]); delete(@start[tid]); }'",
            ]),
            2,
        ),
    }
}

/// Programs that do nothing, at raw tracepoints.
pub(super) fn empty(root: &Path, programs: &[(&str, &str)]) -> Result<Box<Ebpf>> {
    let object = root.join("probe-ebpf/prebuilt/testempty.bpf.o");
    let mut ebpf =
        EbpfLoader::new().load_file(&object).with_context(|| format!("cannot load {}", object.display()))?;
    for (name, tracepoint) in programs {
        let program: &mut RawTracePoint =
            ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
        program.load()?;
        program.attach(tracepoint)?;
    }
    Ok(Box::new(ebpf))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::median;

    #[test]
    fn a_call_takes_time() {
        assert!(median(&mut [measure(1000), measure(1000), measure(1000)]) > 1.0);
    }
}
