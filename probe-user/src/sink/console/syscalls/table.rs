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
}

impl Interval {
    /// Of what it brought, and when it ended.
    #[must_use]
    pub fn of(summary: &Summary, time_unix_ns: u64) -> Self {
        let Summary { covers, rows, in_flight } = summary;
        Self {
            time_unix_ns,
            covers: *covers,
            rows: shown(rows.iter(), 2 * KEPT, KEPT, |row| row.waits).into_iter().cloned().collect(),
            all: rows.len(),
            calls: rows.iter().map(|row| row.calls).sum(),
            failed: rows.iter().map(Row::errors_total).sum(),
            work_ns: work(rows.iter()),
            in_flight: *in_flight,
        }
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
        let Self { covers, all, calls, failed, work_ns, in_flight, .. } = self;
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
        parts.join(", ")
    }

    /// The table, its heading included; `most`: in so many lines.
    #[must_use]
    pub fn lines(&self, shape: &Shape, most: Option<usize>) -> Vec<String> {
        let mut lines = vec![self.heading(shape.by)];
        // The names of the columns, and how many rows there are besides.
        lines.extend(self.table(shape, most.map(|most| most.saturating_sub(3))));
        lines
    }

    /// Beside other signals: without the time, which they have in common.
    #[must_use]
    pub fn among_others(&self, shape: &Shape) -> Vec<String> {
        let (Self { calls, failed, in_flight, all, .. }, by) = (self, shape.by);
        let in_flight = if *in_flight == 0 { String::new() } else { format!(", {in_flight} hang") };
        let mut lines =
            vec![format!("syscalls  {calls} calls, {failed} failed{in_flight}, {}", pairs(*all, by))];
        lines.extend(self.table(shape, None).iter().map(|line| format!("    {line}")));
        lines
    }

    fn table(&self, shape: &Shape, fits: Option<usize>) -> Vec<String> {
        if self.rows.is_empty() {
            return Vec::new();
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
                // More often than not.
                tone: (row.errors_total() * 2 > row.calls).then_some(Tone::Odd),
            },
            None => Cell::default(),
        };
        let mut lines = grid::lines(headings, &cells, "ERRORS", &of_last, shape.columns, shape.colours);
        if self.all > rows.len() {
            lines.push(format!("… and {} more (--top N, or -o json for all)", self.all - rows.len()));
        }
        lines
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
        SyscallBy::Syscall => format!("{count} calls of a kind"),
    }
}

/// Whose a row is, in at most so many characters; nothing where it is everybody's.
fn whose(who: &Who, by: SyscallBy, most: usize) -> String {
    match (by, &who.entity) {
        (SyscallBy::Syscall, _) => String::new(),
        (SyscallBy::Container, Entity::Host) if who.cgroup.is_some() => "host".to_owned(),
        (SyscallBy::Container, Entity::Host) => "-".to_owned(),
        (SyscallBy::Process, _) | (SyscallBy::Container, Entity::Container(_)) => owner(who, most),
    }
}
