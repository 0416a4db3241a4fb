//! What UDP pays for being looked at that is not DNS: to and fro on loopback, on a port that nobody watches.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr};
use aya::{Ebpf, EbpfLoader};

use super::{OF_DNS, OF_RUN, OF_TCP};
use crate::bench::tracer::Tracer;
use crate::bench::{Workload, spread, tcp};
use crate::process::say;

/// A server's port that is not DNS's, unless we say so.
const PORT: &str = "5300";
const MEASURED_MS: u32 = 700;
/// Of the sockets.
const FORMS: [&str; 2] = ["connected", "unconnected"];

/// What runs beside the load.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Nothing,
    /// The same once more: what differs is noise.
    NothingAgain,
    /// What the kernel takes for calling programs at all, whatever they do.
    Empty,
    Dns,
    Tcp,
    Run,
    /// The packets are DNS's.
    DnsWatches,
}

const VARIANTS: [Variant; 7] = [
    Variant::Nothing,
    Variant::NothingAgain,
    Variant::Empty,
    Variant::Dns,
    Variant::Tcp,
    Variant::Run,
    Variant::DnsWatches,
];

/// Whatever is attached; dropped, it is gone.
enum Attached {
    Nothing,
    Programs { _ebpf: Box<Ebpf> },
    Process(Tracer),
}

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::NothingAgain => "nothing, once more",
            Self::Empty => "empty egress, ingress, sendmsg",
            Self::Dns => "probe dns",
            Self::Tcp => "probe tcp",
            Self::Run => "probe run",
            Self::DnsWatches => "probe dns --port 5300: it is DNS",
        }
    }

    fn start(self, root: &Path, probe: &Path) -> Result<Attached> {
        let start = |args: &[&str], programs| {
            Tracer::start(Command::new(probe).args(args), programs).map(Attached::Process)
        };
        match self {
            Self::Nothing | Self::NothingAgain => Ok(Attached::Nothing),
            Self::Empty => empty(root),
            Self::Dns => start(&["dns", "-o", "json"], OF_DNS),
            Self::Tcp => start(&["tcp", "-o", "json"], OF_TCP),
            Self::Run => start(&["run", "--interval", "1s"], OF_RUN),
            Self::DnsWatches => start(&["dns", "-o", "json", "--port", PORT], OF_DNS),
        }
    }
}

/// Attaches programs that do nothing where `probe dns` has its own, as far as packets of IPv4 pass them.
fn empty(root: &Path) -> Result<Attached> {
    let object = root.join("probe-ebpf/prebuilt/testempty.bpf.o");
    let mut ebpf =
        EbpfLoader::new().load_file(&object).with_context(|| format!("cannot load {}", object.display()))?;
    let cgroup = cgroup_root()?;
    for (name, hook) in
        [("empty_egress", CgroupSkbAttachType::Egress), ("empty_ingress", CgroupSkbAttachType::Ingress)]
    {
        let program: &mut CgroupSkb =
            ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
        program.load()?;
        program.attach(&cgroup, hook, CgroupAttachMode::Single)?;
    }
    for name in ["empty_connect4", "empty_sendmsg4"] {
        let program: &mut CgroupSockAddr =
            ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
        program.load()?;
        program.attach(&cgroup, CgroupAttachMode::Single)?;
    }
    Ok(Attached::Programs { _ebpf: Box::new(ebpf) })
}

/// The root of cgroup v2, wherever it is mounted.
fn cgroup_root() -> Result<File> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let root = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        (after.starts_with("cgroup2 ") && fields.next()? == "/").then(|| fields.next())?
    });
    let root = root.context("cgroup v2 is not mounted")?;
    File::open(root).with_context(|| format!("cannot open {root}"))
}

/// What came of a variant: nanoseconds a packet by form and round.
struct Outcome {
    variant: Variant,
    figures: [Vec<f64>; FORMS.len()],
    /// By probe's own word, in all rounds.
    lost: u64,
}

pub(super) fn run(load: &mut Workload, root: &Path, probe: &Path, rounds: u32) -> Result<()> {
    let mut outcomes = VARIANTS.map(|variant| Outcome { variant, figures: Default::default(), lost: 0 });
    for _ in 0..rounds {
        for Outcome { variant, figures, lost } in &mut outcomes {
            let attached = variant.start(root, probe)?;
            for (form, figures) in FORMS.iter().zip(figures) {
                figures.push(load.tell(&format!("{form} {PORT} {MEASURED_MS}"))?.parse()?);
            }
            if let Attached::Process(tracer) = attached {
                *lost += tcp::lost(&tracer.stop()?);
            }
        }
    }
    say(format_args!(
        "UDP to and fro on loopback, both ends on one CPU, ns a packet (its send and its receive), {rounds} rounds, variants in \
         turn, {MEASURED_MS} ms each; under 100 added is wanted of those that are not DNS"
    ));
    let [untraced, ..] = &outcomes;
    for (index, form) in FORMS.iter().enumerate() {
        say(format_args!(
            "{:<34} {:>7} {:>7} {:>7}   {:>7} {:>7} {:>7}   {:>8}",
            format!("{form} sockets"),
            "min",
            "median",
            "max",
            "added",
            "least",
            "most",
            "of untr."
        ));
        for outcome in &outcomes {
            row(outcome, index, untraced);
        }
    }
    for Outcome { variant, figures: _, lost } in &outcomes {
        if *lost > 0 {
            say(format_args!("{} lost {lost} of its events, by its own word", variant.name()));
        }
    }
    Ok(())
}

/// What is added is taken round by round: what a machine does in between to all alike is in none of it.
fn row(outcome: &Outcome, form: usize, untraced: &Outcome) {
    let of_form = |outcome: &Outcome| outcome.figures.get(form).cloned().unwrap_or_default();
    let (mut figures, untraced) = (of_form(outcome), of_form(untraced));
    let pairs = || figures.iter().zip(&untraced);
    let mut added: Vec<f64> = pairs().map(|(figure, without)| figure - without).collect();
    let mut shares: Vec<f64> = pairs().map(|(figure, without)| figure / without).collect();
    let (least, middle, most) = spread(&mut added);
    let (_, share, _) = spread(&mut shares);
    let (min, median, max) = spread(&mut figures);
    say(format_args!(
        "{:<34} {min:>7.0} {median:>7.0} {max:>7.0}   {middle:>7.0} {least:>7.0} {most:>7.0}   {share:>8.3}",
        outcome.variant.name()
    ));
}
