//! What tracing takes from TCP: octets, round trips and connections a second.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::tracer::Tracer;
use super::workload::Workload;
use super::{installed, spread, start_workload};
use crate::process::say;

/// How long each variant is measured in a round, after a warm-up: milliseconds.
const MEASURED_MS: u32 = 1500;

/// What the program `tcp_load` of the tests does.
struct Load {
    /// Its name there.
    order: &'static str,
    title: &'static str,
    /// Units of the figure, in those that it is shown in.
    scale: f64,
    /// The share of untraced that probe is to leave.
    wanted: f64,
}

const LOADS: [Load; 3] = [
    Load { order: "bulk", title: "one connection, writes of 64 KiB: MiB/s", scale: 1048576.0, wanted: 0.98 },
    Load { order: "ping_pong", title: "one octet there and back: round trips/s", scale: 1.0, wanted: 0.97 },
    Load { order: "connect_close", title: "connect, accept, close: connections/s", scale: 1.0, wanted: 0.92 },
];

/// A program of libbpf-tools.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Tool {
    name: &'static str,
    /// BPF programs that it loads.
    programs: usize,
}

const TOOLS: [Tool; 3] = [
    Tool { name: "tcpstates", programs: 1 },
    Tool { name: "tcplife", programs: 1 },
    Tool { name: "tcpconnlat", programs: 3 },
];

/// What runs beside a load.
#[derive(Clone, PartialEq, Eq)]
enum Variant {
    Nothing,
    /// The same once more: what differs is noise.
    NothingAgain,
    Probe,
    ProbeWithoutNames,
    ProbeAllKinds,
    Tool(Tool),
    /// All at once.
    Tools(Vec<Tool>),
}

impl Variant {
    fn name(&self) -> String {
        match self {
            Self::Nothing => "nothing".to_owned(),
            Self::NothingAgain => "nothing, once more".to_owned(),
            Self::Probe => "probe tcp".to_owned(),
            Self::ProbeWithoutNames => "probe tcp --no-names".to_owned(),
            Self::ProbeAllKinds => "probe tcp --kind retransmit,reset,connect,close".to_owned(),
            Self::Tool(tool) => tool.name.to_owned(),
            Self::Tools(tools) => tools.iter().map(|tool| tool.name).collect::<Vec<_>>().join(" + "),
        }
    }

    fn start(&self, probe: &Path) -> Result<Vec<Tracer>> {
        /// That of tcp where programs need no backups; where they do, there are more.
        const PROGRAMS: usize = 8;
        /// Those that learn the names of peers.
        const NAMES: usize = 3;
        let start =
            |args: &[&str], programs| Ok(vec![Tracer::start(Command::new(probe).args(args), programs)?]);
        let one = |args: &[&str]| start(args, PROGRAMS + NAMES);
        match self {
            Self::Nothing | Self::NothingAgain => Ok(Vec::new()),
            Self::Probe => one(&["tcp", "-o", "json"]),
            Self::ProbeWithoutNames => start(&["tcp", "--no-names", "-o", "json"], PROGRAMS),
            Self::ProbeAllKinds => one(&["tcp", "--kind", "retransmit,reset,connect,close", "-o", "json"]),
            Self::Tool(tool) => Ok(vec![tool.start()?]),
            Self::Tools(tools) => tools.iter().map(Tool::start).collect(),
        }
    }
}

impl Tool {
    /// They want tracefs: mounted for each alone.
    fn start(&self) -> Result<Tracer> {
        let script = format!("mount -t tracefs none /sys/kernel/tracing && exec {}", self.name);
        Tracer::start(Command::new("unshare").args(["--mount", "sh", "-c", &script]), self.programs)
    }
}

/// What came of a variant.
struct Outcome {
    variant: Variant,
    /// Figures by load and round.
    figures: [Vec<f64>; LOADS.len()],
    /// Events that tracers said they lost, in all rounds.
    lost: u64,
}

pub(super) fn run(root: &Path, probe: &Path, rounds: u32) -> Result<()> {
    let mut notes = Vec::new();
    let mut outcomes: Vec<Outcome> = variants(&mut notes)
        .into_iter()
        .map(|variant| Outcome { variant, figures: Default::default(), lost: 0 })
        .collect();
    let mut load = start_workload(root, "tcp_load")?;
    for _ in 0..rounds {
        for outcome in &mut outcomes {
            outcome.measure(&mut load, probe)?;
        }
        // Another begins each round.
        outcomes.rotate_left(1);
    }
    load.end()?;
    let turned = usize::try_from(rounds)? % outcomes.len();
    outcomes.rotate_right(turned);

    say(format_args!(
        "TCP on loopback, {rounds} rounds, variants in turn, {MEASURED_MS} ms each; both ends on a CPU of their own"
    ));
    let untraced = outcomes.first().context("no variants")?.figures.clone();
    for (index, load) in LOADS.iter().enumerate() {
        say(format_args!(""));
        table(load, index, &untraced, &outcomes);
    }
    say(format_args!(""));
    for outcome in &outcomes {
        let Outcome { variant, figures: _, lost } = outcome;
        if *lost > 0 {
            say(format_args!("{} lost {lost} of its events, by its own word", variant.name()));
        }
    }
    for note in notes {
        say(note);
    }
    Ok(())
}

/// Those that run here; about the others a note.
fn variants(notes: &mut Vec<String>) -> Vec<Variant> {
    let mut tools = Vec::new();
    for tool in TOOLS {
        if installed(tool.name) {
            match tool.start() {
                Ok(_ended) => tools.push(tool),
                Err(error) => notes.push(format!("{}: not runnable here: {error:#}", tool.name)),
            }
        }
    }
    use Variant::{Nothing, NothingAgain, Probe, ProbeAllKinds, ProbeWithoutNames};
    let mut variants = vec![Nothing, NothingAgain, Probe, ProbeWithoutNames, ProbeAllKinds];
    variants.extend(tools.iter().copied().map(Variant::Tool));
    if tools.len() > 1 {
        variants.push(Variant::Tools(tools));
    }
    variants
}

impl Outcome {
    /// One round.
    fn measure(&mut self, workload: &mut Workload, probe: &Path) -> Result<()> {
        let tracers = self.variant.start(probe)?;
        for (load, figures) in LOADS.iter().zip(&mut self.figures) {
            let rate: f64 = workload.tell(&format!("{} {MEASURED_MS}", load.order))?.parse()?;
            figures.push(rate / load.scale);
        }
        for tracer in tracers {
            self.lost += lost(&tracer.stop()?);
        }
        Ok(())
    }
}

/// Shares of untraced are taken round by round: what a machine does in between to all alike is in none of them.
fn table(load: &Load, index: usize, untraced: &[Vec<f64>; LOADS.len()], outcomes: &[Outcome]) {
    let Load { order: _, title, scale: _, wanted } = load;
    say(format_args!("{title}; of untraced, {wanted} or more is wanted of probe"));
    say(format_args!(
        "{:<48} {:>9} {:>9} {:>9}   {:>6} {:>6} {:>6}",
        "", "min", "median", "max", "min", "median", "max"
    ));
    let of_load = |figures: &[Vec<f64>; LOADS.len()]| figures.get(index).cloned().unwrap_or_default();
    let untraced = of_load(untraced);
    for Outcome { variant, figures, lost: _ } in outcomes {
        let mut figures = of_load(figures);
        let mut shares: Vec<f64> =
            figures.iter().zip(&untraced).map(|(figure, untraced)| figure / untraced).collect();
        let (min, median, max) = spread(&mut figures);
        let (least, middle, most) = spread(&mut shares);
        say(format_args!(
            "{:<48} {min:>9.0} {median:>9.0} {max:>9.0}   {least:>6.3} {middle:>6.3} {most:>6.3}",
            variant.name()
        ));
    }
}

/// Events that a tracer says it lost: `lost: 5 of tcp at ring: …` (probe), `lost 5 events on CPU #0` (libbpf-tools).
pub(super) fn lost(stderr: &str) -> u64 {
    let of_line = |line: &str| {
        line.strip_prefix("lost")?.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
    };
    stderr.lines().filter_map(of_line).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_read() {
        assert_eq!(lost("records: tcp 40\nlost: 5 of tcp at ring: raise --ring-kib\n"), 5);
        assert_eq!(lost("lost 7 events on CPU #1\nlost 2 events on CPU #0\n"), 9);
        assert_eq!(lost("records: tcp 40; nothing was lost\n"), 0);
    }
}
