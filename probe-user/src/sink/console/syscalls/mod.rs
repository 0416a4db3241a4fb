//! The screen of `probe syscalls`: a table an interval, on a terminal in one place; a line for each call that was slow or
//! hangs; and what all of it comes to at the end.

mod account;
mod grid;
mod reading;
mod screen;
mod summary;
mod table;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::time::Duration;

pub use self::account::Account;
pub use self::screen::Screen;
pub use self::summary::write as closing;
pub use self::table::{Interval, Shape};
use super::colours::{Colours, Tone};
use super::owners::{OWNER_LEAST, owner};
use super::text::{age, cut, cut_middle, escape, percent, width};
use super::time_of_day;
use crate::signals::Who;
use crate::signals::syscalls::{InFlight, Slow, Subject};

/// What lines and tables fit into where nothing else is known.
pub(super) const COLUMNS: usize = 120;
/// Characters of a call's name: few are longer.
const CALL: usize = 16;
/// Characters of an owner beside details that leave as much; less for the sake of those.
const OWNER: usize = 21;
/// What a file or a peer is not cut below.
const ABOUT_LEAST: usize = 16;

/// Calls that work and take so long are worth a look, and so long are waited for.
const SLOW: Duration = Duration::from_millis(100);
const VERY_SLOW: Duration = Duration::from_secs(1);

/// A call that was slow, as a line.
pub(super) fn slow(slow: &Slow, columns: usize, colours: Colours) -> String {
    let Slow { time_unix_ns, who, tid, syscall, duration, off_cpu, subject, error } = slow;
    let mut details = thread(who, *tid);
    details.extend(error.as_deref().map(str::to_owned));
    details.extend(off_cpu.and_then(|off_cpu| off_cpu_share(off_cpu, duration.as_nanos())).map(off_cpu_text));
    let what = ("slow", tone_of(*duration));
    line(*time_unix_ns, what, syscall, *duration, who, details, subject, columns, colours)
}

/// One that has not returned.
pub(super) fn hangs(call: &InFlight, columns: usize, colours: Colours) -> String {
    let InFlight { time_unix_ns, who, tid, syscall, duration, subject, wchan, stack: _ } = call;
    let mut details = thread(who, *tid);
    details.extend(wchan.as_deref().map(|wchan| format!("in {}", escape(wchan))));
    line(*time_unix_ns, ("hang", Tone::Bad), syscall, *duration, who, details, subject, columns, colours)
}

#[expect(clippy::too_many_arguments, reason = "what slow and hanging calls have in common")]
fn line(
    time_unix_ns: u64,
    (kind, tone): (&str, Tone),
    syscall: &str,
    duration: Duration,
    who: &Who,
    mut details: Vec<String>,
    subject: &Subject,
    columns: usize,
    colours: Colours,
) -> String {
    let time = time_of_day(time_unix_ns);
    let took = format!("{:>7}", age(duration));
    let before = width(&time) + width(kind) + width(syscall).max(CALL) + width(&took) + 4;
    let about = about(subject);
    let known: usize = details.iter().map(|detail| width(detail) + 2).sum();
    // An owner gives way before a file does.
    let left = columns.saturating_sub(before + 2 + known);
    let owner_room = left.saturating_sub(width(&about)).clamp(OWNER_LEAST, OWNER);
    let about_room = left.saturating_sub(owner_room).max(ABOUT_LEAST);
    if !about.is_empty() {
        details.push(cut_middle(&about, about_room).into_owned());
    }
    let kind = colours.paint(tone, kind.to_owned());
    let took = colours.paint(tone, took);
    let owner = owner(who, owner_room);
    let line = format!("{time} {kind} {syscall:<CALL$} {took} {owner:<owner_room$}  {}", details.join(", "));
    line.trim_end().to_owned()
}

/// The thread, where it is not the one that the process is called by.
fn thread(who: &Who, tid: u32) -> Vec<String> {
    (who.pid != Some(tid)).then(|| format!("tid {tid}")).into_iter().collect()
}

/// What a call is about: a socket's ends, else a file.
fn about(subject: &Subject) -> String {
    let Subject { args: _, file, local, peer } = subject;
    match (local, peer) {
        (Some(local), Some(peer)) => format!("{local} → {peer}"),
        (None, Some(peer)) => format!("→ {peer}"),
        (Some(local), None) => local.to_string(),
        (None, None) => file.as_deref().map(escape).unwrap_or_default(),
    }
}

/// How many hundredths of a time the thread did not have the CPU.
fn off_cpu_share(off_cpu: Duration, time_ns: u128) -> Option<u64> {
    let ns = |ns: u128| u64::try_from(ns).unwrap_or(u64::MAX);
    (time_ns != 0).then(|| percent(ns(off_cpu.as_nanos()), ns(time_ns)).min(100))
}

fn off_cpu_text(percent: u64) -> String {
    format!("{percent}% off-cpu")
}

fn tone_of(duration: Duration) -> Tone {
    if duration < SLOW {
        Tone::Plain
    } else if duration < VERY_SLOW {
        Tone::Odd
    } else {
        Tone::Bad
    }
}

/// Errors by name in so much room, the most frequent first.
fn errors<'a>(errors: impl Iterator<Item = (&'a Cow<'static, str>, u64)>, room: usize) -> String {
    let mut errors: Vec<(&str, u64)> = errors.map(|(errno, count)| (&**errno, count)).collect();
    errors.sort_by_key(|(errno, count)| (Reverse(*count), *errno));
    let text = |shown: usize| {
        let mut parts: Vec<String> =
            errors.iter().take(shown).map(|(errno, count)| format!("{errno} {count}")).collect();
        parts.extend((shown < errors.len()).then(|| format!("+{} more", errors.len() - shown)));
        parts.join(" ")
    };
    if errors.is_empty() {
        return String::new();
    }
    let fits = (1..=errors.len()).rev().map(text).find(|text| width(text) <= room);
    fits.unwrap_or_else(|| {
        let all: u64 = errors.iter().map(|(_, count)| count).sum();
        cut(&format!("{all} failed"), room).into_owned()
    })
}

/// The first so many rows, of which some are kept for calls that wait where there are any, and those stand behind the others.
fn shown<T>(rows: impl Iterator<Item = T>, most: usize, kept: usize, waits: impl Fn(&T) -> bool) -> Vec<T> {
    let (mut waiting, mut working) = (Vec::new(), Vec::new());
    for row in rows {
        if waits(&row) { waiting.push(row) } else { working.push(row) }
    }
    working.truncate(most.saturating_sub(kept.min(waiting.len())));
    waiting.truncate(most - working.len());
    working.append(&mut waiting);
    working
}
