//! The end of `probe syscalls`: what it came to, by call and by owner, the slowest, and how that reads.

use std::cmp::Reverse;
use std::io::{self, Write};
use std::time::Duration;

use super::super::colours::Colours;
use super::super::rows::{TOP, beyond, sentences};
use super::super::text::{age, counted, cut, rate, seconds, share};
use super::account::{Account, Long, Owner, Spread, Tally, Whose};
use super::grid::{Cell, Heading, lines};
use super::reading::readings;
use super::{COLUMNS, errors, hangs, shown, slow};
use crate::config::SyscallBy;
use crate::series::Histogram;

/// Rows of calls that wait, of all that a table shows.
const KEPT: usize = 3;
/// Characters of an owner: what columns of numbers leave, with some for errors.
const OWNER: usize = 26;
/// A call's longest name, but for two or three.
const CALL_MOST: usize = 22;

/// Writes the summary: nothing, if nothing happened. `lost`: calls that probe itself lost.
///
/// # Errors
///
/// What `out` returns.
pub fn write(out: &mut dyn Write, account: &Account, lasted: Duration, lost: u64) -> io::Result<()> {
    if account.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n── {}", total(account, lasted))?;
    if account.is_selective {
        writeln!(out, "of those that had errors in their interval (--errors): shares are of these alone")?;
    }
    if lost != 0 {
        writeln!(out, "lost: {}, by so many at most all figures are short", counted(lost, "record"))?;
    }
    if account.work.calls + account.waits.calls != 0 {
        by_call(out, account, lasted)?;
    }
    if account.by != SyscallBy::Syscall && !account.owners.rows.is_empty() {
        by_owner(out, account, lasted)?;
    }
    slowest(out, account)?;
    sentences(out, &readings(account, lasted, lost))
}

fn total(account: &Account, lasted: Duration) -> String {
    let Account { work, waits, slow, hangs, in_flight, .. } = account;
    let (calls, failed) = (work.calls + waits.calls, work.failed + waits.failed);
    let mut parts =
        vec![format!("{} in {} ({}/s)", counted(calls, "call"), age(lasted), rate(calls, lasted))];
    for (count, text) in [
        (u128::from(failed), format!("{failed} failed ({})", share(failed, calls))),
        (work.time_ns, format!("{} at work", age(work.time()))),
        (waits.time_ns, format!("{} waiting", age(waits.time()))),
        (u128::from(*slow), format!("{slow} slow")),
        (u128::from(*hangs), format!("{hangs} hung")),
        (u128::from(*in_flight), format!("{in_flight} hang at the end")),
    ] {
        parts.extend((count != 0).then_some(text));
    }
    parts.join(", ")
}

fn times(durations: &Histogram) -> [Cell; 3] {
    let of = |duration: Option<Duration>| duration.map(seconds).unwrap_or_default().into();
    [of(durations.quantile(0.5)), of(durations.quantile(0.99)), of(durations.max())]
}

fn time(tally: &Tally) -> Cell {
    if tally.time_ns == 0 { Cell::default() } else { age(tally.time()).into() }
}

fn share_of(part: &Tally, all: &Tally) -> Cell {
    let ns = |tally: &Tally| u64::try_from(tally.time_ns).unwrap_or(u64::MAX);
    share(ns(part), ns(all)).into()
}

fn errors_of(tallies: &[&Tally], room: usize) -> Cell {
    let mut by_name: Vec<(std::borrow::Cow<'static, str>, u64)> = Vec::new();
    let others = "others".into();
    for tally in tallies {
        let rest = (tally.errors.rest != 0).then_some((&others, &tally.errors.rest));
        for (errno, count) in tally.errors.rows.iter().chain(rest) {
            match by_name.iter_mut().find(|(known, _)| known == errno) {
                Some((_, sum)) => *sum += count,
                None => by_name.push((errno.clone(), *count)),
            }
        }
    }
    errors(by_name.iter().map(|(errno, count)| (errno, *count)), room).into()
}

/// Rows that are not shown.
fn more(out: &mut dyn Write, rows: usize, shown: usize, calls: u64) -> io::Result<()> {
    match rows.checked_sub(shown) {
        Some(more @ 1..) => writeln!(out, "… and {more} more with {}", counted(calls, "call")),
        Some(0) | None => Ok(()),
    }
}

fn by_call(out: &mut dyn Write, account: &Account, lasted: Duration) -> io::Result<()> {
    let mut calls: Vec<(&(&str, bool), &Spread)> = account.calls.rows.iter().collect();
    calls.sort_by_key(|((name, waits), call)| {
        (*waits, Reverse(call.tally.time_ns), Reverse(call.tally.calls), *name)
    });
    let top = shown(calls.iter().copied(), TOP, KEPT, |((_, waits), _)| *waits);
    let headings: [Heading; 10] = [
        ("SYSCALL", false),
        ("CALLS", true),
        ("CALLS/S", true),
        ("TIME", true),
        ("SHARE", true),
        ("P50", true),
        ("P99", true),
        ("MAX", true),
        ("OFF-CPU", true),
        ("IN-FLIGHT", true),
    ];
    let cells: Vec<[Cell; 10]> = top
        .iter()
        .map(|((name, waits), Spread { tally, durations, in_flight })| {
            let [p50, p99, max] = times(durations);
            [
                cut(name, CALL_MOST).into_owned().into(),
                tally.calls.to_string().into(),
                rate(tally.calls, lasted).into(),
                time(tally),
                if *waits { "wait".into() } else { share_of(tally, &account.work) },
                p50,
                p99,
                max,
                tally.off_cpu().map(|share| format!("{share}%")).unwrap_or_default().into(),
                if *in_flight == 0 { Cell::default() } else { in_flight.to_string().into() },
            ]
        })
        .collect();
    let of_last = |row: usize, room: usize| match top.get(row) {
        Some((_, call)) => errors_of(&[&call.tally], room),
        None => Cell::default(),
    };
    write_table(out, &lines(headings, &cells, "ERRORS", &of_last, COLUMNS, Colours::Off))?;
    let sum = |rows: &[(&(&str, bool), &Spread)]| rows.iter().map(|(_, call)| call.tally.calls).sum::<u64>();
    more(out, calls.len(), top.len(), sum(&calls) - sum(&top))?;
    beyond(out, "syscall", calls.len(), account.calls.rest.tally.calls, "call")
}

fn by_owner(out: &mut dyn Write, account: &Account, lasted: Duration) -> io::Result<()> {
    let mut owners: Vec<(String, &Owner)> =
        account.owners.rows.iter().map(|(whose, owner)| (name(whose, owner), owner)).collect();
    owners.sort_by(|(a, left), (b, right)| {
        let key = |owner: &Owner| (owner.work.tally.time_ns, owner.calls());
        key(right).cmp(&key(left)).then_with(|| a.cmp(b))
    });
    let headings: [Heading; 10] = [
        (if account.by == SyscallBy::Container { "CONTAINER" } else { "OWNER" }, false),
        ("CALLS", true),
        ("CALLS/S", true),
        ("TIME", true),
        ("SHARE", true),
        ("P50", true),
        ("P99", true),
        ("MAX", true),
        ("OFF-CPU", true),
        ("WAITED", true),
    ];
    let cells: Vec<[Cell; 10]> = owners
        .iter()
        .take(TOP)
        .map(|(name, owner)| {
            let Spread { tally, durations, in_flight: _ } = &owner.work;
            let [p50, p99, max] = times(durations);
            [
                name.as_str().into(),
                owner.calls().to_string().into(),
                rate(owner.calls(), lasted).into(),
                time(tally),
                share_of(tally, &account.work),
                p50,
                p99,
                max,
                tally.off_cpu().map(|share| format!("{share}%")).unwrap_or_default().into(),
                time(&owner.waits),
            ]
        })
        .collect();
    let of_last = |row: usize, room: usize| match owners.get(row) {
        Some((_, owner)) => errors_of(&[&owner.work.tally, &owner.waits], room),
        None => Cell::default(),
    };
    write_table(out, &lines(headings, &cells, "ERRORS", &of_last, COLUMNS, Colours::Off))?;
    more(out, owners.len(), TOP, owners.iter().skip(TOP).map(|(_, owner)| owner.calls()).sum())?;
    beyond(out, "owner", owners.len(), account.owners.rest.calls(), "call")
}

fn write_table(out: &mut dyn Write, lines: &[String]) -> io::Result<()> {
    writeln!(out)?;
    lines.iter().try_for_each(|line| writeln!(out, "{line}"))
}

fn slowest(out: &mut dyn Write, account: &Account) -> io::Result<()> {
    if account.slowest.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nSLOWEST CALLS")?;
    for long in &account.slowest {
        let line = match long {
            Long::Slow(call) => slow(call, COLUMNS, Colours::Off),
            Long::Hangs(call) => hangs(call, COLUMNS, Colours::Off),
        };
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// An owner's name.
pub(super) fn name(whose: &Whose, owner: &Owner) -> String {
    match whose {
        Whose::Owner(key) => key.name_within(owner.processes, OWNER),
        Whose::Host => "host".to_owned(),
        Whose::Nobody => "-".to_owned(),
    }
}
