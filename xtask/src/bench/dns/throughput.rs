//! 100,000 lookups a second: whether they are reached, whether all are seen, and for how much CPU.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::{OF_DNS, OF_RUN, Probe, Seen, Tally, middle, tell};
use crate::bench::Workload;
use crate::process::say;

/// Lookups a second.
const OFFERED: u32 = 100_000;
const MEASURED_MS: u32 = 5000;
/// Lookups a second that CPU shares are told for.
const SHARE_OF: f64 = 10_000.0;

/// What runs beside the load.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Nothing,
    Dns,
    Run,
}

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Dns => "probe dns -o json",
            Self::Run => "probe run",
        }
    }

    fn start(self, probe: &Path) -> Result<Option<Probe>> {
        match self {
            Self::Nothing => Ok(None),
            Self::Dns => Probe::start(probe, &["dns", "-o", "json"], OF_DNS).map(Some),
            // The last table is printed when it ends.
            Self::Run => Probe::start(probe, &["run", "--interval", "1s"], OF_RUN).map(Some),
        }
    }
}

pub(super) fn run(load: &mut Workload, probe: &Path, rounds: u32) -> Result<()> {
    let mut outcomes = [Variant::Nothing, Variant::Dns, Variant::Run].map(|variant| (variant, Vec::new()));
    for _ in 0..rounds {
        for (variant, figures) in &mut outcomes {
            // Attached before the first question.
            let probe = variant.start(probe)?;
            let tally = tell(load, &format!("paced {OFFERED} {MEASURED_MS}"))?;
            let seen = probe.map(Probe::stop).transpose()?;
            figures.push((tally, seen.unwrap_or_default()));
        }
    }
    let [(_, untraced), ..] = &outcomes;
    say(format_args!(
        "DNS over UDP on loopback, {OFFERED} lookups/s offered, {MEASURED_MS} ms, {rounds} rounds, variants in turn; client and \
         server share the CPUs with probe"
    ));
    say(format_args!(
        "{:<18} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7} {:>7} {:>9} {:>9} {:>8}",
        "medians",
        "reached/s",
        "served",
        "answered",
        "records",
        "others",
        "lost",
        "missed",
        "load CPU",
        "of untr.",
        "probe"
    ));
    for (variant, rounds) in &outcomes {
        row(*variant, rounds, untraced)?;
    }
    say(format_args!(
        "served: answers by the server's count; answered, others: lookups that probe printed; missed: served less answered, of \
         all rounds; load CPU: µs a lookup, both sides and what BPF adds there, and its share of untraced; probe: its own CPU, \
         per cent of one for each {SHARE_OF} lookups/s"
    ));
    for (variant, rounds) in &outcomes {
        for (round, (_, seen)) in rounds.iter().enumerate().filter(|(_, (_, seen))| !seen.losses.is_empty()) {
            say(format_args!("{}, round {}: lost {}", variant.name(), round + 1, seen.losses.join("; ")));
        }
    }
    say("wanted: all offered reached, nothing missed, nothing lost");
    Ok(())
}

fn row(variant: Variant, rounds: &[(Tally, Seen)], untraced: &[(Tally, Seen)]) -> Result<()> {
    let of = |figure: &dyn Fn(&Tally, &Seen) -> f64| middle(rounds, |(tally, seen)| figure(tally, seen));
    let shares: Vec<f64> = rounds
        .iter()
        .zip(untraced)
        .map(|((tally, _), (without, _))| tally.cpu_micros() / without.cpu_micros())
        .collect();
    let [reached, served, load] = [
        of(&|tally, _| tally.rate()),
        of(&|tally, _| tally.answered as f64),
        of(&|tally, _| tally.cpu_micros()),
    ];
    let share = middle(&shares, |share| *share);
    let name = variant.name();
    if variant == Variant::Nothing {
        say(format_args!(
            "{name:<18} {reached:>9.0} {served:>9.0} {:>9} {:>9} {:>8} {:>7} {:>7} {load:>9.2} {share:>9.3}",
            "", "", "", "", ""
        ));
        return Ok(());
    }
    let answered = of(&|_, seen| seen.printed.answered as f64);
    let records = of(&|_, seen| seen.records as f64);
    let others = of(&|_, seen| seen.printed.others as f64);
    let lost = of(&|_, seen| seen.lost as f64);
    let missed: i64 = rounds
        .iter()
        .map(|(tally, seen)| {
            Some(i64::try_from(tally.answered).ok()? - i64::try_from(seen.printed.answered).ok()?)
        })
        .sum::<Option<i64>>()
        .context("more lookups than there can be")?;
    let probe = of(&|tally, seen| seen.cpu / tally.took / tally.rate() * SHARE_OF * 100.0);
    say(format_args!(
        "{name:<18} {reached:>9.0} {served:>9.0} {answered:>9.0} {records:>9.0} {others:>8.0} {lost:>7.0} {missed:>7} \
         {load:>9.2} {share:>9.3} {probe:>7.2}%"
    ));
    Ok(())
}
