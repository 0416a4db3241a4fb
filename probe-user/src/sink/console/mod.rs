//! Text for people: a line an event, a table an interval. Columns are aligned and fit 120 characters where names allow.

mod colours;
pub mod dns;
mod owners;
mod rows;
pub mod syscalls;
pub mod tcp;
mod text;

use std::io::{self, Write};

use probe_common::tcp::Cause;

pub use self::colours::Colours;
pub(in crate::sink) use self::text::is_hostile;
pub use self::text::{escape, seconds};
use crate::config::SyscallBy;
use crate::kernel::clock::rfc3339;
use crate::series::Histogram;
use crate::signals::{self, Event, Loss, Summary};

/// Rows of system calls in the summary of `run`, which has three signals to show.
const TOP: usize = 8;

/// The heading of a live command's lines; `None` for events that are shown as tables.
#[must_use]
pub fn heading(signal: &str) -> Option<String> {
    match signal {
        "tcp" => Some(tcp::heading()),
        "dns" => Some(dns::heading()),
        _ => None,
    }
}

/// Writes an event as one line, without colours. Summaries of system calls are shown as a table instead ([`summary`]).
///
/// # Errors
///
/// What `out` returns.
pub fn event(out: &mut dyn Write, event: &Event) -> io::Result<()> {
    line(out, event, Colours::Off)
}

/// The same in colours, if so it shall be, where a signal has them.
///
/// # Errors
///
/// What `out` returns.
pub fn line(out: &mut dyn Write, event: &Event, colours: Colours) -> io::Result<()> {
    match event {
        Event::Retransmit(event) => tcp::retransmit(out, event),
        Event::Reset(event) => tcp::reset(out, event),
        Event::Connect(event) => tcp::connect(out, event),
        Event::Close(event) => tcp::close(out, event),
        Event::Lookup(lookup) => dns::lookup(out, lookup, colours),
        Event::SyscallSlow(call) => writeln!(out, "{}", syscalls::slow(call, syscalls::COLUMNS, colours)),
        Event::SyscallInFlight(call) => {
            writeln!(out, "{}", syscalls::hangs(call, syscalls::COLUMNS, colours))
        }
        Event::Loss(event) => loss(out, event),
        Event::SyscallSummary(_) => Ok(()),
    }
}

/// `12:34:56.789`, UTC.
fn time_of_day(unix_ns: u64) -> String {
    rfc3339(unix_ns).get(11..23).unwrap_or_default().to_owned()
}

/// Writes what was lost, and what to do about it.
///
/// # Errors
///
/// What `out` returns.
pub fn loss(out: &mut dyn Write, loss: &Loss) -> io::Result<()> {
    writeln!(out, "lost: {} of {} at {}: {}", loss.count, loss.signal, loss.place, loss.remedy)
}

/// Writes what an interval brought, a signal beside others.
///
/// # Errors
///
/// What `out` returns.
pub fn summary(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    match summary {
        Summary::Tcp(summary) => tcp_summary(out, summary),
        Summary::Dns(summary) => dns_summary(out, summary),
        Summary::Syscalls(summary) => {
            let shape = syscalls::Shape::new(SyscallBy::Process, Some(TOP));
            let lines = syscalls::Interval::of(summary, 0).among_others(&shape);
            lines.iter().try_for_each(|line| writeln!(out, "{line}"))
        }
    }
}

fn tcp_summary(out: &mut dyn Write, summary: &signals::tcp::Summary) -> io::Result<()> {
    let signals::tcp::Summary {
        retransmits, resets_sent, resets_received, connected, accepted, failed, ..
    } = summary;
    let total: u64 = retransmits.iter().sum();
    write!(out, "tcp       {total} segments retransmitted")?;
    if total != 0 {
        let kinds: Vec<String> = probe_common::tcp::CAUSES
            .iter()
            .zip(retransmits)
            .filter(|(_, count)| **count != 0)
            .map(|(cause, count)| format!("{cause} {count}"))
            .collect();
        write!(out, " ({})", kinds.join(", "))?;
    }
    let syn_acks = retransmits.get(Cause::SynAck as usize).copied().unwrap_or(0);
    if let Some(share) = text::share_of_sent(total - syn_acks, summary.segments_sent) {
        write!(out, ", {share}")?;
    }
    write!(out, "; {connected} connected, {accepted} accepted")?;
    if let Some(p50) = summary.handshakes.quantile(0.5) {
        write!(out, " (handshake p50 {})", seconds(p50))?;
    }
    for (errno, count) in failed {
        write!(out, ", {count} failed {errno}")?;
    }
    write!(out, "; resets {resets_sent} sent, {resets_received} received")?;
    if let (Some(p50), Some(p99)) = (summary.rtts.quantile(0.5), summary.rtts.quantile(0.99)) {
        write!(out, "; rtt p50 {}, p99 {}", seconds(p50), seconds(p99))?;
    }
    writeln!(out)
}

fn dns_summary(out: &mut dyn Write, summary: &signals::dns::Summary) -> io::Result<()> {
    let signals::dns::Summary {
        durations,
        rcodes,
        unanswered,
        lost_twins,
        late,
        retries,
        truncated,
        fallbacks,
        searched,
        search_misses,
        served,
        not_served,
        served_late,
        waiting: _,
        malformed,
        unsolicited,
    } = summary;
    write!(out, "dns       {} lookups answered", durations.count())?;
    if durations.count() != 0 {
        let codes: Vec<String> = rcodes.iter().map(|(code, count)| format!("{code} {count}")).collect();
        write!(out, " ({}; {})", codes.join(", "), quantiles(durations))?;
    }
    write!(out, "; {unanswered} unanswered")?;
    if *lost_twins != 0 {
        write!(out, " ({lost_twins} of them lost twins)")?;
    }
    write!(out, ", {late} answered late")?;
    for (count, text) in [
        (*retries, format!("{retries} asked again")),
        (truncated + fallbacks, format!("{truncated} answers cut, {fallbacks} asked over TCP for that")),
        (*search_misses, format!("{search_misses} of names that do not exist before {searched} found")),
        (*malformed, format!("{malformed} malformed packets")),
        (*unsolicited, format!("{unsolicited} answers nobody waited for")),
    ] {
        if count != 0 {
            write!(out, ", {text}")?;
        }
    }
    if served.count() + not_served + served_late != 0 {
        write!(out, "; {} served here", served.count())?;
        if served.count() != 0 {
            write!(out, " ({})", quantiles(served))?;
        }
        write!(out, ", {not_served} not, {served_late} late")?;
    }
    writeln!(out)
}

fn quantiles(durations: &Histogram) -> String {
    let of = |q| durations.quantile(q).map(seconds).unwrap_or_default();
    let max = durations.max().map(seconds).unwrap_or_default();
    format!("p50 {}, p99 {}, max {max}", of(0.5), of(0.99))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn dns(summary: signals::dns::Summary) -> String {
        let mut out = Vec::new();
        super::summary(&mut out, &Summary::Dns(summary)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lookups_of_an_interval_in_a_line() {
        let quiet = signals::dns::Summary::default();
        assert_eq!(dns(quiet), "dns       0 lookups answered; 0 unanswered, 0 answered late\n");
        let mut summary = signals::dns::Summary {
            rcodes: [("NOERROR".into(), 1)].into(),
            unanswered: 5,
            lost_twins: 2,
            late: 1,
            retries: 4,
            truncated: 3,
            searched: 1,
            search_misses: 6,
            not_served: 7,
            malformed: 8,
            unsolicited: 9,
            ..signals::dns::Summary::default()
        };
        summary.durations.record(Duration::from_millis(10));
        summary.served.record(Duration::from_millis(10));
        let times = "p50 10.0ms, p99 10.0ms, max 10.0ms";
        let want = format!(
            "dns       1 lookups answered (NOERROR 1; {times}); 5 unanswered (2 of them lost twins), 1 answered late, \
             4 asked again, 3 answers cut, 0 asked over TCP for that, 6 of names that do not exist before 1 found, \
             8 malformed packets, 9 answers nobody waited for; 1 served here ({times}), 7 not, 0 late\n"
        );
        assert_eq!(dns(summary), want);
    }
}
