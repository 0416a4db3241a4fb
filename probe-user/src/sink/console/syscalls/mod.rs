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
    let Slow { time_unix_ns, who, tid, syscall, duration, off_cpu, subject, error, stack: _ } = slow;
    let mut details = thread(who, *tid);
    details.extend(error.as_deref().map(str::to_owned));
    details.extend(off_cpu.and_then(|off_cpu| off_cpu_share(off_cpu, duration.as_nanos())).map(off_cpu_text));
    let (what, took) = (("slow", tone_of(*duration)), age(*duration));
    line(*time_unix_ns, what, syscall, &took, who, details, subject, columns, colours)
}

/// One that has not returned.
pub(super) fn hangs(call: &InFlight, columns: usize, colours: Colours) -> String {
    let InFlight { time_unix_ns, who, tid, syscall, duration, is_older, subject, wchan, stack: _ } = call;
    let mut details = thread(who, *tid);
    details.extend(wchan.as_deref().map(|wchan| format!("in {}", escape(wchan))));
    let took = so_far(*duration, *is_older);
    line(*time_unix_ns, ("hang", Tone::Bad), syscall, &took, who, details, subject, columns, colours)
}

#[expect(clippy::too_many_arguments, reason = "what slow and hanging calls have in common")]
fn line(
    time_unix_ns: u64,
    (kind, tone): (&str, Tone),
    syscall: &str,
    took: &str,
    who: &Who,
    mut details: Vec<String>,
    subject: &Subject,
    columns: usize,
    colours: Colours,
) -> String {
    let time = time_of_day(time_unix_ns);
    let took = format!("{took:>7}");
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

/// How long a call has taken; more than that, where its beginning was not seen.
fn so_far(duration: Duration, is_older: bool) -> String {
    format!("{}{}", if is_older { ">" } else { "" }, age(duration))
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

#[cfg(test)]
pub(super) mod tests {
    use super::super::owners::tests::{CONTAINER, who};
    use super::*;
    use crate::series::Histogram;
    use crate::signals::Event;
    use crate::signals::syscalls::{Row, Summary};

    pub(super) const NOON: u64 = 1_767_355_200_000_000_000;

    /// So many calls of so many microseconds each.
    pub(super) fn row(who: Who, syscall: &'static str, calls: u64, us: u64) -> Row {
        let mut durations = Histogram::new();
        (0..calls).for_each(|_| durations.record(Duration::from_micros(us)));
        Row {
            time_unix_ns: NOON,
            who,
            syscall,
            waits: false,
            calls,
            min: durations.max(),
            durations,
            off_cpu: None,
            errors: Vec::new(),
            in_flight: 0,
        }
    }

    pub(super) fn waiting(row: Row) -> Row {
        Row { waits: true, ..row }
    }

    pub(super) fn failing(errors: &[(&'static str, u64)], row: Row) -> Row {
        Row { errors: errors.iter().map(|(errno, count)| ((*errno).into(), *count)).collect(), ..row }
    }

    /// So many hundredths of the time without the CPU.
    pub(super) fn off_cpu(percent: u64, row: Row) -> Row {
        let ns = row.durations.sum_ns() * u128::from(percent) / 100;
        Row { off_cpu: Some(Duration::from_nanos(u64::try_from(ns).unwrap())), ..row }
    }

    pub(super) fn brought(rows: Vec<Row>) -> Summary {
        Summary { covers: Duration::from_secs(1), rows, in_flight: 0, latency_every: 1, sampled: None }
    }

    pub(super) fn file(path: &str) -> Subject {
        Subject { file: Some(path.into()), ..Subject::default() }
    }

    pub(super) fn was_slow(syscall: &'static str, ms: u64) -> Slow {
        Slow {
            time_unix_ns: NOON,
            who: who("postgres", 4_711, "/"),
            tid: 4_711,
            syscall,
            duration: Duration::from_millis(ms),
            off_cpu: None,
            subject: Subject::default(),
            error: None,
            stack: None,
        }
    }

    pub(super) fn in_flight(syscall: &'static str, ms: u64, wchan: Option<&str>) -> InFlight {
        InFlight {
            time_unix_ns: NOON,
            who: who("postgres", 4_711, "/"),
            tid: 4_711,
            syscall,
            duration: Duration::from_millis(ms),
            is_older: false,
            subject: Subject::default(),
            wchan: wchan.map(Into::into),
            stack: None,
        }
    }

    /// In a pipe.
    fn line(event: Event) -> String {
        let mut out = Vec::new();
        super::super::event(&mut out, &event).unwrap();
        String::from_utf8(out).unwrap().trim_end_matches('\n').to_owned()
    }

    #[test]
    fn lines_say_what_matters() {
        let ends = |local: Option<&str>, peer: Option<&str>| Subject {
            local: local.map(|end| end.parse().unwrap()),
            peer: peer.map(|end| end.parse().unwrap()),
            ..file("socket:[47]")
        };
        let slow = was_slow("fsync", 123);
        let hang = in_flight("openat", 12_300, Some("wait_for_partner"));
        for (event, want) in [
            (Event::SyscallSlow(slow.clone()), "slow fsync              123ms postgres[4711]"),
            (
                Event::SyscallSlow(Slow { tid: 4_712, error: Some("EIO".into()), ..slow.clone() }),
                "slow fsync              123ms postgres[4711]         tid 4712, EIO",
            ),
            (
                Event::SyscallSlow(Slow {
                    off_cpu: Some(Duration::from_millis(120)),
                    subject: file("/var/lib/pg/wal"),
                    ..slow.clone()
                }),
                "slow fsync              123ms postgres[4711]         97% off-cpu, /var/lib/pg/wal",
            ),
            (
                Event::SyscallInFlight(InFlight { subject: file("/run/fifo"), ..hang.clone() }),
                "hang openat             12.3s postgres[4711]         in wait_for_partner, /run/fifo",
            ),
            (
                Event::SyscallInFlight(InFlight {
                    wchan: None,
                    subject: ends(Some("10.0.0.1:40000"), Some("10.0.0.2:5432")),
                    ..hang.clone()
                }),
                "hang openat             12.3s postgres[4711]         10.0.0.1:40000 → 10.0.0.2:5432",
            ),
            (
                Event::SyscallInFlight(InFlight { subject: ends(None, Some("[::1]:53")), ..hang.clone() }),
                "hang openat             12.3s postgres[4711]         in wait_for_partner, → [::1]:53",
            ),
            (
                Event::SyscallInFlight(InFlight { subject: ends(Some("[::1]:53"), None), ..hang.clone() }),
                "hang openat             12.3s postgres[4711]         in wait_for_partner, [::1]:53",
            ),
            (
                Event::SyscallInFlight(InFlight { is_older: true, wchan: None, ..hang.clone() }),
                "hang openat            >12.3s postgres[4711]",
            ),
            (
                Event::SyscallInFlight(InFlight {
                    duration: Duration::from_secs(100_000),
                    wchan: None,
                    ..hang
                }),
                "hang openat            27h46m postgres[4711]",
            ),
        ] {
            assert_eq!(line(event), format!("12:00:00.000 {want}"));
        }
    }

    #[test]
    fn lines_fit_and_both_ends_of_a_path_stay() {
        let path =
            "/var/lib/kubelet/pods/0f9d1a5e/volumes/kubernetes.io~nfs/shared/reports/2026/november.parquet";
        let call = Slow {
            who: who("nginx-ingress-c", 4_194_304, CONTAINER),
            tid: 4_194_303,
            off_cpu: Some(Duration::from_millis(100)),
            error: Some("ERESTARTSYS".into()),
            subject: file(path),
            ..was_slow("copy_file_range", 100)
        };
        let line = line(Event::SyscallSlow(call));
        assert!(width(&line) <= COLUMNS, "{} columns: {line}", width(&line));
        for part in [" 3f37e9702f39  ", "tid 4194303, ERESTARTSYS, 100% off-cpu, /var/", ".parquet"] {
            assert!(line.contains(part), "no {part:?}: {line}");
        }
    }

    #[test]
    fn strangers_steer_no_terminal() {
        let hostile = "a\u{1b}[2J\n\u{202e}b";
        let who = who(hostile, 7, CONTAINER);
        let hang = InFlight {
            who: who.clone(),
            subject: file(hostile),
            wchan: Some(hostile.into()),
            ..in_flight("openat", 1, None)
        };
        for line in [
            slow(&Slow { who, subject: file(hostile), ..was_slow("read", 1) }, COLUMNS, Colours::Off),
            hangs(&hang, COLUMNS, Colours::Off),
        ] {
            assert!(!line.contains(['\u{1b}', '\u{202e}', '\n']), "{line:?}");
            assert!(line.ends_with("a\\u{1b}[2J\\u{a}\\u{202e}b"), "{line}");
        }
    }

    #[test]
    fn colours_are_few_and_change_nothing_else() {
        let (red, yellow) = ("\u{1b}[31m", "\u{1b}[33m");
        for (ms, tone) in [(99, ""), (100, yellow), (999, yellow), (1_000, red)] {
            let call = was_slow("fsync", ms);
            let (on, off) = (slow(&call, COLUMNS, Colours::On), slow(&call, COLUMNS, Colours::Off));
            assert!(on.contains(&format!("{tone}slow")), "{on:?}");
            assert_eq!(on.matches('\u{1b}').count(), if tone.is_empty() { 0 } else { 4 }, "{on:?}");
            let plain = [red, yellow, "\u{1b}[0m"].iter().fold(on, |text, code| text.replace(code, ""));
            assert_eq!(plain, off);
        }
        let on = hangs(&in_flight("openat", 1, None), COLUMNS, Colours::On);
        assert!(on.contains(&format!("{red}hang\u{1b}[0m openat")), "{on:?}");
    }

    #[test]
    fn errors_in_little_room() {
        let of = |counts: &[(&'static str, u64)], room| {
            let counts: Vec<(Cow<'static, str>, u64)> =
                counts.iter().map(|(errno, count)| ((*errno).into(), *count)).collect();
            errors(counts.iter().map(|(errno, count)| (errno, *count)), room)
        };
        let several = [("EAGAIN", 4), ("ENOENT", 320), ("EACCES", 4), ("_OTHER", 1)];
        for (room, want) in [
            (40, "ENOENT 320 EACCES 4 EAGAIN 4 _OTHER 1"),
            (36, "ENOENT 320 EACCES 4 EAGAIN 4 +1 more"),
            (35, "ENOENT 320 EACCES 4 +2 more"),
            (20, "ENOENT 320 +3 more"),
            (12, "329 failed"),
            (6, "329 f…"),
        ] {
            let text = of(&several, room);
            assert_eq!(text, want, "in {room}");
            assert!(width(&text) <= room);
        }
        assert_eq!(of(&[], 40), "");
        assert_eq!(of(&[("ENOENT", 320)], 10), "ENOENT 320");
    }

    #[test]
    fn some_rows_are_kept_for_what_waits() {
        let rows = [1, -1, 2, -2, 3, -3, 4];
        for (most, kept, want) in [
            (7, 2, &[1, 2, 3, 4, -1, -2, -3][..]),
            (6, 2, &[1, 2, 3, 4, -1, -2]),
            (4, 2, &[1, 2, -1, -2]),
            (4, 0, &[1, 2, 3, 4]),
            (5, 0, &[1, 2, 3, 4, -1]),
            (0, 2, &[]),
        ] {
            let got = shown(rows.into_iter(), most, kept, |row| *row < 0);
            assert_eq!(got, want, "{most} {kept}");
        }
        assert_eq!(shown([1, 2, 3].into_iter(), 2, 2, |row| *row < 0), [1, 2], "nothing waits");
    }
}
