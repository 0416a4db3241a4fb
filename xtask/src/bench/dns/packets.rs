//! What UDP pays for being looked at that is not DNS: to and fro on loopback, on a port that nobody watches.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

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
    Dns,
    Tcp,
    Run,
    /// The packets are DNS's.
    DnsWatches,
}

const VARIANTS: [Variant; 6] =
    [Variant::Nothing, Variant::NothingAgain, Variant::Dns, Variant::Tcp, Variant::Run, Variant::DnsWatches];

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::NothingAgain => "nothing, once more",
            Self::Dns => "probe dns",
            Self::Tcp => "probe tcp",
            Self::Run => "probe run",
            Self::DnsWatches => "probe dns --port 5300: it is DNS",
        }
    }

    fn start(self, probe: &Path) -> Result<Option<Tracer>> {
        let start =
            |args: &[&str], programs| Tracer::start(Command::new(probe).args(args), programs).map(Some);
        match self {
            Self::Nothing | Self::NothingAgain => Ok(None),
            Self::Dns => start(&["dns", "-o", "json"], OF_DNS),
            Self::Tcp => start(&["tcp", "-o", "json"], OF_TCP),
            Self::Run => start(&["run", "--interval", "1s"], OF_RUN),
            Self::DnsWatches => start(&["dns", "-o", "json", "--port", PORT], OF_DNS),
        }
    }
}

/// What came of a variant: nanoseconds a packet by form and round.
struct Outcome {
    variant: Variant,
    figures: [Vec<f64>; FORMS.len()],
    /// By probe's own word, in all rounds.
    lost: u64,
}

pub(super) fn run(load: &mut Workload, probe: &Path, rounds: u32) -> Result<()> {
    let mut outcomes = VARIANTS.map(|variant| Outcome { variant, figures: Default::default(), lost: 0 });
    for _ in 0..rounds {
        for Outcome { variant, figures, lost } in &mut outcomes {
            let tracer = variant.start(probe)?;
            for (form, figures) in FORMS.iter().zip(figures) {
                figures.push(load.tell(&format!("{form} {PORT} {MEASURED_MS}"))?.parse()?);
            }
            if let Some(tracer) = tracer {
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
