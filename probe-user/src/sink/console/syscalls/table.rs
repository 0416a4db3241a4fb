//! What an interval brought, as a table.

use std::time::Duration;

use super::super::colours::{Colours, Tone};
use super::super::owners::{self, OWNER_LEAST, owner};
use super::super::text::{cut, rate, seconds, share};
use super::super::time_of_day;
use super::grid::{self, Cell, Heading};
use super::{COLUMNS, errors, off_cpu_share, shown, tone_of};
use crate::config::SyscallBy;
use crate::entity::Entity;
use crate::signals::Who;
use crate::signals::syscalls::{Row, Summary};

/// Rows that a table shows unless told otherwise.
const TOP: usize = 20;
/// Rows of each class that are kept to be drawn again: more than a terminal has lines.
const KEPT: usize = 500;
/// A call's longest name, but for two or three.
const CALL_MOST: usize = 22;
/// What all columns but the owner's take, errors included, as a rule.
const OTHERS: usize = 92;

/// How a table is to look.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What its rows add up.
    pub by: SyscallBy,
    /// How many rows it shows; `None`: its own choice.
    pub top: Option<usize>,
    /// Characters of a line.
    pub columns: usize,
    /// Whether it has colours.
    pub colours: Colours,
}

impl Shape {
    /// For a pipe.
    #[must_use]
    pub const fn new(by: SyscallBy, top: Option<usize>) -> Self {
        Self { by, top, columns: COLUMNS, colours: Colours::Off }
    }
}

/// What an interval brought, as much of it as can be looked at.
#[derive(Clone, Debug)]
pub struct Interval {
    /// When it ended.
    time_unix_ns: u64,
    covers: Duration,
    /// In the order asked for, each class on its own.
    rows: Vec<Row>,
    /// Rows that there were.
    all: usize,
    calls: u64,
    failed: u64,
    /// Of calls that work.
    work_ns: u128,
    in_flight: u64,
    /// As in [`Summary`].
    latency_every: u32,
}

impl Interval {
    /// Of what it brought, and when it ended.
    #[must_use]
    pub fn of(summary: &Summary, time_unix_ns: u64) -> Self {
        let Summary { covers, rows, in_flight, latency_every, sampled: _ } = summary;
        Self {
            time_unix_ns,
            covers: *covers,
            rows: shown(rows.iter(), 2 * KEPT, KEPT, |row| row.waits).into_iter().cloned().collect(),
            all: rows.len(),
            calls: rows.iter().map(|row| row.calls).sum(),
            failed: rows.iter().map(Row::errors_total).sum(),
            work_ns: work(rows.iter()),
            in_flight: *in_flight,
            latency_every: *latency_every,
        }
    }

    /// How long it was.
    pub(super) const fn covers(&self) -> Duration {
        self.covers
    }

    /// Time and totals.
    fn heading(&self, by: SyscallBy) -> String {
        let time = time_of_day(self.time_unix_ns);
        let time = time.get(..8).unwrap_or_default();
        let covers =
            if self.covers.is_zero() { String::new() } else { format!(" in {}", seconds(self.covers)) };
        format!("── {time} UTC  {}{covers}", self.totals(by))
    }

    fn totals(&self, by: SyscallBy) -> String {
        let Self { covers, all, calls, failed, work_ns, in_flight, latency_every, .. } = self;
        let mut parts = if covers.is_zero() {
            vec![format!("{calls} calls"), format!("{failed} failed")]
        } else {
            vec![
                format!("{} calls/s", rate(*calls, *covers)),
                format!("{} failed/s", rate(*failed, *covers)),
                // Little's law.
                format!("{:.2} threads at work", *work_ns as f64 / covers.as_nanos() as f64),
            ]
        };
        if *in_flight != 0 {
            parts.push(format!("{in_flight} hang"));
        }
        parts.push(pairs(*all, by));
        if *latency_every > 1 {
            parts.push(format!("times of one call in {latency_every}"));
        }
        parts.join(", ")
    }

    /// The table, its heading included; `most`: in so many lines.
    #[must_use]
    pub fn lines(&self, shape: &Shape, most: Option<usize>) -> Vec<String> {
        let mut lines = vec![self.heading(shape.by)];
        // The names of the columns, and how many rows there are besides.
        let (table, more) = self.table(shape, most.map(|most| most.saturating_sub(3)));
        lines.extend(table);
        if more != 0 {
            lines.push(format!("… and {more} more (--top N, or -o json for all)"));
        }
        lines
    }

    /// Beside other signals: without the time, which they have in common.
    #[must_use]
    pub fn among_others(&self, shape: &Shape) -> Vec<String> {
        let (Self { calls, failed, in_flight, all, .. }, by) = (self, shape.by);
        let in_flight = if *in_flight == 0 { String::new() } else { format!(", {in_flight} hang") };
        let mut lines =
            vec![format!("syscalls  {calls} calls, {failed} failed{in_flight}, {}", pairs(*all, by))];
        let (table, more) = self.table(shape, None);
        lines.extend(table.iter().map(|line| format!("    {line}")));
        if more != 0 {
            lines.push(format!("    … and {more} more"));
        }
        lines
    }

    /// And how many rows it does not show.
    fn table(&self, shape: &Shape, fits: Option<usize>) -> (Vec<String>, usize) {
        if self.rows.is_empty() {
            return (Vec::new(), 0);
        }
        let (most, kept) = match (shape.top, fits) {
            // As many as were asked for, in the order asked for.
            (Some(top), fits) => (top.min(fits.unwrap_or(top)), 0),
            (None, fits) => {
                let fits = fits.unwrap_or(TOP);
                (fits, fits / 4)
            }
        };
        let rows = shown(self.rows.iter(), most, kept, |row| row.waits);
        let owner_room = shape.columns.saturating_sub(OTHERS).clamp(OWNER_LEAST, owners::OWNER);
        let cells: Vec<[Cell; 9]> = rows.iter().map(|row| self.cells(row, shape.by, owner_room)).collect();
        let headings: [Heading; 9] = [
            (if shape.by == SyscallBy::Container { "CONTAINER" } else { "OWNER" }, false),
            ("SYSCALL", false),
            (if self.covers.is_zero() { "CALLS" } else { "CALLS/S" }, true),
            ("SHARE", true),
            ("P50", true),
            ("P99", true),
            ("MAX", true),
            ("OFF-CPU", true),
            ("IN-FLIGHT", true),
        ];
        let of_last = |row: usize, room: usize| match rows.get(row) {
            Some(row) => Cell {
                text: errors(row.errors.iter().map(|(errno, count)| (errno, *count)), room),
                // More often than not; what waits is woken by errors too.
                tone: (!row.waits && row.errors_total() * 2 > row.calls).then_some(Tone::Odd),
            },
            None => Cell::default(),
        };
        let lines = grid::lines(headings, &cells, "ERRORS", &of_last, shape.columns, shape.colours);
        (lines, self.all - rows.len())
    }

    fn cells(&self, row: &Row, by: SyscallBy, owner_room: usize) -> [Cell; 9] {
        let Row {
            time_unix_ns: _,
            who,
            syscall,
            waits,
            calls,
            durations,
            min: _,
            off_cpu,
            errors: _,
            in_flight,
        } = row;
        let of = |duration: Option<Duration>| Cell {
            text: duration.map(seconds).unwrap_or_default(),
            tone: duration.filter(|_| !waits).map(tone_of),
        };
        let ns = |ns: u128| u64::try_from(ns).unwrap_or(u64::MAX);
        let time_ns = durations.sum_ns();
        let off_cpu = off_cpu.and_then(|off_cpu| off_cpu_share(off_cpu, time_ns));
        [
            whose(who, by, owner_room).into(),
            cut(syscall, CALL_MOST).into_owned().into(),
            if self.covers.is_zero() { calls.to_string() } else { rate(*calls, self.covers) }.into(),
            if *waits {
                "wait".to_owned()
            } else if *calls == 0 {
                String::new()
            } else {
                share(ns(time_ns), ns(self.work_ns))
            }
            .into(),
            of(durations.quantile(0.5)),
            of(durations.quantile(0.99)),
            of(durations.max()),
            off_cpu.map(|share| format!("{share}%")).unwrap_or_default().into(),
            if *in_flight == 0 { String::new() } else { in_flight.to_string() }.into(),
        ]
    }
}

/// Time of those that work.
fn work<'a>(rows: impl Iterator<Item = &'a Row>) -> u128 {
    rows.filter(|row| !row.waits).map(|row| row.durations.sum_ns()).sum()
}

fn pairs(count: usize, by: SyscallBy) -> String {
    match by {
        SyscallBy::Process => format!("{count} (process, call) pairs"),
        SyscallBy::Container => format!("{count} (container, call) pairs"),
        SyscallBy::Syscall => format!("{count} kinds of calls"),
    }
}

/// Whose a row is, in at most so many characters; nothing where it is everybody's.
fn whose(who: &Who, by: SyscallBy, most: usize) -> String {
    match (by, &who.entity) {
        (SyscallBy::Syscall, _) => String::new(),
        (SyscallBy::Container, Entity::Host) if who.cgroup.is_some() => "host".to_owned(),
        (SyscallBy::Container, Entity::Host) => "-".to_owned(),
        (SyscallBy::Process, _) | (SyscallBy::Container, Entity::Container(_) | Entity::Unit(_)) => {
            owner(who, most)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::owners::tests::{CONTAINER, who};
    use super::super::super::text::width;
    use super::super::tests::{NOON, brought, failing, off_cpu, row, waiting};
    use super::*;

    fn rows() -> Vec<Row> {
        let app = || who("app", 12, CONTAINER);
        let nginx = || who("nginx", 4_711, "/system.slice/nginx.service");
        vec![
            off_cpu(97, row(app(), "fsync", 3, 120_000)),
            off_cpu(0, failing(&[("ENOENT", 320), ("EACCES", 4)], row(nginx(), "openat", 400, 100))),
            Row { in_flight: 1, ..off_cpu(99, waiting(row(nginx(), "epoll_wait", 20, 50_000))) },
        ]
    }

    fn text(rows: Vec<Row>, by: SyscallBy, most: Option<usize>) -> String {
        let lines = Interval::of(&brought(rows), NOON).lines(&Shape::new(by, None), most);
        format!("\n{}\n", lines.join("\n"))
    }

    #[test]
    fn what_processes_did() {
        let want = "
── 12:00:00 UTC  423 calls/s, 324 failed/s, 0.40 threads at work, 3 (process, call) pairs in 1.00s
OWNER                 SYSCALL     CALLS/S  SHARE     P50     P99     MAX  OFF-CPU  IN-FLIGHT  ERRORS
3f37e9702f39 app[12]  fsync           3.0    90%   115ms   115ms   120ms      97%
nginx[4711]           openat          400    10%  94.1µs  94.1µs   100µs       0%             ENOENT 320 EACCES 4
nginx[4711]           epoll_wait       20   wait  48.2ms  48.2ms  50.0ms      99%          1
";
        let text = text(rows(), SyscallBy::Process, None);
        assert_eq!(text, want, "{text}");
    }

    #[test]
    fn what_is_not_known_has_no_column() {
        let unmeasured =
            |row: Row| Row { durations: crate::series::Histogram::new(), off_cpu: None, in_flight: 0, ..row };
        let rows: Vec<_> = rows().into_iter().map(unmeasured).collect();
        let summary = Summary { covers: Duration::ZERO, rows, in_flight: 2, latency_every: 1, sampled: None };
        let lines = Interval::of(&summary, NOON).lines(&Shape::new(SyscallBy::Process, None), None);
        let want = "
── 12:00:00 UTC  423 calls, 324 failed, 2 hang, 3 (process, call) pairs
OWNER                 SYSCALL     CALLS  SHARE  ERRORS
3f37e9702f39 app[12]  fsync           3
nginx[4711]           openat        400         ENOENT 320 EACCES 4
nginx[4711]           epoll_wait     20   wait
";
        assert_eq!(format!("\n{}\n", lines.join("\n")), want);
    }

    #[test]
    fn containers_and_everybody() {
        let nobody = |path: &str| who("", 0, path);
        let rows = || {
            vec![
                row(nobody(CONTAINER), "fsync", 3, 120_000),
                row(nobody("/"), "fsync", 2, 120_000),
                row(nobody(""), "fsync", 1, 120_000),
            ]
        };
        let text_of = |by| text(rows(), by, None);
        let lines = text_of(SyscallBy::Container);
        let firsts: Vec<&str> =
            lines.lines().skip(2).filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(firsts, ["CONTAINER", "3f37e9702f39", "host", "-"], "{lines}");
        assert!(lines.contains(", 3 (container, call) pairs in"), "{lines}");
        let lines = text_of(SyscallBy::Syscall);
        assert!(lines.contains("\nSYSCALL  CALLS/S  ") && lines.contains("3 kinds of calls"), "{lines}");
    }

    #[test]
    fn tables_are_cut_and_say_by_how_much() {
        let many = |waits| {
            (0..30)
                .map(move |pid| Row { waits, ..row(who("w", pid + 1, "/"), "read", 1, 100 - u64::from(pid)) })
        };
        let all = || many(false).chain(many(true)).collect::<Vec<_>>();
        let told = |text: &str| {
            let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("w[")).collect();
            let waiting = rows.iter().filter(|row| row.contains("wait")).count();
            (rows.len() - waiting, waiting)
        };
        for (most, want, more) in [
            (None, (15, 5), 40),
            (Some(23), (15, 5), 40),
            (Some(13), (8, 2), 50),
            (Some(63), (30, 30), 0),
            (Some(2), (0, 0), 60),
        ] {
            let text = text(all(), SyscallBy::Process, most);
            assert_eq!(told(&text), want, "{most:?}: {text}");
            let lines = text.trim().lines().count();
            assert!(most.is_none_or(|most| lines <= most.max(3)), "{most:?}: {lines} lines: {text}");
            let cut = format!("… and {more} more (--top N, or -o json for all)");
            assert_eq!(text.contains("… and"), more != 0, "{most:?}: {text}");
            assert!(more == 0 || text.contains(&cut), "{most:?}: {text}");
        }
        // What was asked for comes in its order.
        let shape = Shape::new(SyscallBy::Process, Some(12));
        let text = Interval::of(&brought(all()), NOON).lines(&shape, None).join("\n");
        assert_eq!(told(&text), (12, 0), "{text}");
    }

    #[test]
    fn lines_fit_and_strangers_steer_no_terminal() {
        let hostile = who("a\u{1b}[2J\n\u{202e}longer-than-most", 4_194_304, CONTAINER);
        let errors = [("ENOTRECOVERABLE", 1_234_567), ("ERESTART_RESTARTBLOCK", 7_654_321), ("EAGAIN", 1)];
        let row = failing(&errors, off_cpu(97, row(hostile, "process_vm_readv", 1, 123_456)));
        let row = Row { calls: 12_345_678, in_flight: 12_345, ..row };
        let text = text(vec![row], SyscallBy::Process, None);
        for line in text.lines() {
            assert!(width(line) <= COLUMNS, "{} columns: {line}", width(line));
        }
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
    }

    #[test]
    fn beside_other_signals() {
        let lines = Interval::of(&brought(rows()), 0).among_others(&Shape::new(SyscallBy::Process, Some(2)));
        let want = "
syscalls  423 calls, 324 failed, 3 (process, call) pairs
    OWNER                 SYSCALL  CALLS/S  SHARE     P50     P99    MAX  OFF-CPU  ERRORS
    3f37e9702f39 app[12]  fsync        3.0    90%   115ms   115ms  120ms      97%
    nginx[4711]           openat       400    10%  94.1µs  94.1µs  100µs       0%  ENOENT 320 EACCES 4
    … and 1 more
";
        assert_eq!(format!("\n{}\n", lines.join("\n")), want);
    }
}
