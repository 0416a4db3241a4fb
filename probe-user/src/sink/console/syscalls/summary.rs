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
use crate::signals::syscalls::standard_error;

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
    if account.latency_every > 1 {
        writeln!(out, "{}", estimate(account))?;
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

/// How good the times are: what all calls took together, and the slowest hundredth of them.
fn estimate(account: &Account) -> String {
    let every = account.latency_every;
    let calls = account.work.calls + account.waits.calls;
    let percent = |calls| format!("{:.0}%", (standard_error(every, calls) * 100.0).clamp(1.0, 100.0).ceil());
    format!(
        "times are of one call in {every}: of all calls good to about {}, of their slowest hundredth to {} (one standard error), of a row \
         with fewer calls less so; counts and errors are exact",
        percent(calls),
        percent(calls / 100)
    )
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

/// What both tables say of a row, between what it is of and what only one of them has.
const fn headings(first: &'static str, last: &'static str) -> [Heading; 10] {
    [
        (first, false),
        ("CALLS", true),
        ("CALLS/S", true),
        ("TIME", true),
        ("SHARE", true),
        ("P50", true),
        ("P99", true),
        ("MAX", true),
        ("OFF-CPU", true),
        (last, true),
    ]
}

fn by_call(out: &mut dyn Write, account: &Account, lasted: Duration) -> io::Result<()> {
    let mut calls: Vec<(&(&str, bool), &Spread)> = account.calls.rows.iter().collect();
    calls.sort_by_key(|((name, waits), call)| {
        (*waits, Reverse(call.tally.time_ns), Reverse(call.tally.calls), *name)
    });
    let top = shown(calls.iter().copied(), TOP, KEPT, |((_, waits), _)| *waits);
    let headings = headings("SYSCALL", "IN-FLIGHT");
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
    let whose = if account.by == SyscallBy::Container { "CONTAINER" } else { "OWNER" };
    let headings = headings(whose, "WAITED");
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

#[cfg(test)]
mod tests {
    use super::super::super::owners::tests::{CONTAINER, who};
    use super::super::super::text::width;
    use super::super::tests::{brought, failing, file, in_flight, off_cpu, row, waiting, was_slow};
    use super::*;
    use crate::signals::Event;
    use crate::signals::syscalls::{InFlight, Row, Slow, Summary};

    fn written(account: &Account, lost: u64) -> String {
        let mut out = Vec::new();
        write(&mut out, account, Duration::from_secs(10), lost).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(written(&Account::new(SyscallBy::Process, false), 0), "");
        assert_eq!(written(&Account::new(SyscallBy::Process, true), 3), "");
    }

    #[test]
    fn everything_at_once() {
        let mut account = Account::new(SyscallBy::Process, false);
        let app = || who("app", 12, CONTAINER);
        let nginx = |pid| who("nginx", pid, "/");
        let rows = vec![
            off_cpu(97, row(app(), "fsync", 10, 120_000)),
            off_cpu(0, failing(&[("ENOENT", 320), ("EACCES", 4)], row(nginx(1), "openat", 400, 100))),
            off_cpu(0, row(nginx(2), "openat", 100, 100)),
            Row { in_flight: 1, ..off_cpu(99, waiting(row(nginx(1), "epoll_wait", 20, 50_000))) },
        ];
        account.interval(&Summary { in_flight: 1, ..brought(rows) });
        account.add(&Event::SyscallSlow(Slow {
            who: app(),
            tid: 12,
            subject: file("/var/lib/pg/wal"),
            ..was_slow("fsync", 120)
        }));
        account.add(&Event::SyscallInFlight(InFlight {
            subject: file("/run/fifo"),
            ..in_flight("openat", 2_000, Some("wait_for_partner"))
        }));
        let want = "
── 530 calls in 10.0s (53/s), 324 failed (61%), 1.25s at work, 1.00s waiting, 1 slow, 1 hung, 1 hang at the end
lost: 2 records, by so many at most all figures are short

SYSCALL     CALLS  CALLS/S    TIME  SHARE     P50     P99     MAX  OFF-CPU  IN-FLIGHT  ERRORS
fsync          10      1.0   1.20s    96%   115ms   115ms   120ms      97%
openat        500       50  50.0ms     4%  94.1µs  94.1µs   100µs       0%             ENOENT 320 EACCES 4
epoll_wait     20      2.0   1.00s   wait  48.2ms  48.2ms  50.0ms      99%          1

OWNER                 CALLS  CALLS/S    TIME  SHARE     P50     P99    MAX  OFF-CPU  WAITED  ERRORS
3f37e9702f39 app[12]     10      1.0   1.20s    96%   115ms   115ms  120ms      97%
nginx[…]                520       52  50.0ms     4%  94.1µs  94.1µs  100µs       0%   1.00s  ENOENT 320 EACCES 4

SLOWEST CALLS
12:00:00.000 hang openat             2.00s postgres[4711]         in wait_for_partner, /run/fifo
12:00:00.000 slow fsync              120ms 3f37e9702f39 app[12]   /var/lib/pg/wal

→ 1 call hung, 1 at the end still; the longest for 2.00s: openat of postgres[4711] (/run/fifo), in wait_for_partner: nobody has opened the other end of the FIFO.
→ 3f37e9702f39 app[12] spends 1.20s of the 1.25s that calls were at work (96%) in fsync; 97% off-cpu: it waits, for a disk, a lock, a peer or its turn, and the kernel has little to do for it.
→ openat: 324 of 500 calls (64%) failed, 320 with ENOENT, most of nginx[…]: names that do not exist, as where a search path is gone through (libraries, modules, headers, locales).
";
        let text = written(&account, 2);
        assert_eq!(text, want, "{text}");
    }

    #[test]
    fn estimates_say_how_good_they_are() {
        let mut account = Account::new(SyscallBy::Process, false);
        let rows = vec![row(who("app", 1, "/"), "read", 100_000, 100)];
        account.interval(&Summary { latency_every: 16, ..brought(rows) });
        let text = written(&account, 0);
        // 4/3 * 16 / 100,000 is 0.0146 squared, and of a thousand calls ten times that.
        let want =
            "times are of one call in 16: of all calls good to about 2%, of their slowest hundredth to 15% (";
        assert!(text.contains(want), "{text}");
    }

    #[test]
    fn what_was_chosen_says_so_and_everybody_has_no_table_of_owners() {
        let mut account = Account::new(SyscallBy::Syscall, true);
        account.interval(&brought(vec![failing(&[("ENOENT", 3)], row(who("", 0, ""), "openat", 3, 1))]));
        let text = written(&account, 0);
        assert!(text.contains("\nof those that had errors in their interval (--errors)"), "{text}");
        assert!(!text.contains("OWNER") && !text.contains("SLOWEST") && !text.contains('→'), "{text}");
    }

    #[test]
    fn slow_calls_without_an_interval() {
        let mut account = Account::new(SyscallBy::Process, false);
        account.add(&Event::SyscallSlow(was_slow("fsync", 120)));
        let text = written(&account, 0);
        assert!(text.starts_with("\n── 0 calls in 10.0s (0/s), 1 slow\n\nSLOWEST CALLS\n"), "{text}");
    }

    #[test]
    fn long_tables_are_cut_and_say_so() {
        let mut account = Account::new(SyscallBy::Container, false);
        let names: Vec<&'static str> = (0..20).map(|n| &*format!("call{n:02}").leak()).collect();
        for (number, name) in names.iter().enumerate() {
            let container = format!("/docker/{number:064x}");
            let row = row(who("", 0, &container), name, 100 - number as u64, 10);
            account.interval(&brought(vec![row.clone(), waiting(row)]));
        }
        let text = written(&account, 0);
        let told = |from: &str| {
            let table = text.lines().skip_while(|line| !line.starts_with(from)).skip(1);
            table.take_while(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let calls = told("SYSCALL");
        let (first, waiting) = (&calls[0], calls.iter().filter(|row| row.contains(" wait ")).count());
        assert!(first.starts_with("call00 ") && waiting == KEPT && calls.len() == TOP + 1, "{text}");
        // 93 + … + 81, and 97 + … + 81.
        assert_eq!(calls[TOP], "… and 30 more with 2644 calls", "{text}");
        let owners = told("CONTAINER");
        assert!(owners.len() == TOP + 1 && owners[0].starts_with("000000000000 "), "{text}");
        assert_eq!(owners[TOP], "… and 10 more with 1710 calls", "{text}");
    }

    #[test]
    fn tables_fit_and_strangers_steer_no_terminal() {
        let hostile = who("a\u{1b}[2J\n\u{202e}longer-than-most", 4_194_304, CONTAINER);
        let errors = [("ENOTRECOVERABLE", 1_234_567), ("ERESTART_RESTARTBLOCK", 7_654_321)];
        let row = failing(&errors, off_cpu(97, row(hostile, "process_vm_readv", 1, 123_456_789)));
        let mut account = Account::new(SyscallBy::Process, false);
        let row = Row { calls: 9_123_456_789, in_flight: 12_345, ..row };
        account.interval(&brought(vec![waiting(row.clone()), row]));
        let text = written(&account, 0);
        for line in text.lines().filter(|line| !line.starts_with(['→', '─'])) {
            assert!(width(line) <= COLUMNS, "{} columns: {line}", width(line));
        }
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
    }
}
