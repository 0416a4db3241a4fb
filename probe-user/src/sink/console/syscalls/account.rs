//! What all calls of a run come to: by call, by owner, by both; and the slowest. Bounded, whatever is called by whomever.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::super::owners::{OwnerKey, Processes};
use super::super::rows::Bounded;
use crate::config::SyscallBy;
use crate::entity::Entity;
use crate::series::Histogram;
use crate::signals::syscalls::{InFlight, Row, Slow, Summary};
use crate::signals::{Event, Who};

/// Calls that have a row of their own each: more than any table of the kernel's names.
pub(super) const CALLS: usize = 1_024;
/// Owners of whom the same is true.
pub(super) const OWNERS: usize = 1_024;
/// What one owner did with one call.
pub(super) const PAIRS: usize = 4_096;
/// Errors that are told apart in each.
pub(super) const ERRORS: usize = 16;
/// Calls that hang at the same time and are remembered.
pub(super) const HUNG: usize = 1_024;
/// The slowest calls that are kept.
pub(super) const SLOWEST: usize = 10;

/// Errors by name.
pub(super) type Errors = Bounded<Cow<'static, str>, u64>;

/// What calls came to.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    pub(super) calls: u64,
    pub(super) failed: u64,
    pub(super) errors: Errors,
    pub(super) time_ns: u128,
    /// Without the CPU, and of how much time that is known.
    pub(super) off_cpu_ns: u128,
    pub(super) told_ns: u128,
}

impl Default for Tally {
    fn default() -> Self {
        let (calls, failed, time_ns, off_cpu_ns, told_ns) = (0, 0, 0, 0, 0);
        Self { calls, failed, errors: Bounded::new(ERRORS), time_ns, off_cpu_ns, told_ns }
    }
}

impl Tally {
    fn add(&mut self, row: &Row) {
        let time_ns = row.durations.sum_ns();
        self.calls += row.calls;
        self.time_ns += time_ns;
        if let Some(off_cpu) = row.off_cpu {
            self.off_cpu_ns += off_cpu.as_nanos();
            self.told_ns += time_ns;
        }
        for (errno, count) in &row.errors {
            self.failed += count;
            *self.errors.row(errno.clone()) += count;
        }
    }

    pub(super) fn time(&self) -> Duration {
        nanoseconds(self.time_ns)
    }

    /// How many hundredths of the time the thread did not have the CPU.
    pub(super) fn off_cpu(&self) -> Option<u64> {
        super::off_cpu_share(nanoseconds(self.off_cpu_ns), self.told_ns)
    }
}

pub(super) fn nanoseconds(ns: u128) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

/// The same with how it is spread.
#[derive(Clone, Debug, Default)]
pub(super) struct Spread {
    pub(super) tally: Tally,
    pub(super) durations: Histogram,
    /// Not returned at the end of the last interval.
    pub(super) in_flight: u64,
}

impl Spread {
    fn add(&mut self, row: &Row) {
        self.tally.add(row);
        self.durations.merge(&row.durations);
        self.in_flight += row.in_flight;
    }
}

/// Whose calls are added up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    Owner(OwnerKey),
    /// All that is in no container and no unit.
    Host,
    /// Somebody's who is not known.
    Nobody,
}

impl Whose {
    /// None: everybody's together.
    fn of(who: &Who, by: SyscallBy) -> Option<Self> {
        match (by, &who.entity) {
            (SyscallBy::Syscall, _) => None,
            (SyscallBy::Container, Entity::Host) if who.cgroup.is_some() => Some(Self::Host),
            (SyscallBy::Container, Entity::Host) => Some(Self::Nobody),
            (SyscallBy::Process, _) | (SyscallBy::Container, Entity::Container(_) | Entity::Unit(_)) => {
                Some(Self::Owner(OwnerKey::of(who)))
            }
        }
    }
}

/// Whose calls they are that work, and those that wait.
#[derive(Clone, Debug, Default)]
pub(super) struct Owner {
    pub(super) work: Spread,
    pub(super) waits: Tally,
    pub(super) processes: Processes,
}

impl Owner {
    pub(super) fn calls(&self) -> u64 {
        self.work.tally.calls + self.waits.calls
    }
}

/// A call that took long, or takes long yet.
#[derive(Clone, Debug)]
pub(super) enum Long {
    Slow(Slow),
    Hangs(InFlight),
}

/// What makes a call that hangs the same when it is seen again: process, thread, call.
type Thread = (Option<u32>, u32, &'static str);

impl Long {
    pub(super) fn duration(&self) -> Duration {
        match self {
            Self::Slow(call) => call.duration,
            Self::Hangs(call) => call.duration,
        }
    }

    fn thread(&self) -> Thread {
        match self {
            Self::Slow(call) => (call.who.pid, call.tid, call.syscall),
            Self::Hangs(call) => (call.who.pid, call.tid, call.syscall),
        }
    }
}

/// The account of one run.
#[derive(Debug)]
pub struct Account {
    begun: Instant,
    pub(super) by: SyscallBy,
    /// Rows were let through for their errors.
    pub(super) is_selective: bool,
    /// As in [`Summary`].
    pub(super) latency_every: u32,
    pub(super) work: Tally,
    pub(super) waits: Tally,
    /// By name, and whether they wait.
    pub(super) calls: Bounded<(&'static str, bool), Spread>,
    pub(super) owners: Bounded<Whose, Owner>,
    /// What owners did with calls that work.
    pub(super) pairs: Bounded<(Whose, &'static str), Tally>,
    /// Calls that took longer than their threshold, as events.
    pub(super) slow: u64,
    /// Calls that hung, each once; and those of them of which nothing more has been heard than that.
    pub(super) hangs: u64,
    pub(super) hung: HashMap<Thread, InFlight, RandomState>,
    /// The slowest first.
    pub(super) slowest: Vec<Long>,
    /// At the end of the last interval.
    pub(super) in_flight: u64,
}

impl Account {
    /// That begins now. `is_selective`: of rows that were chosen for their errors, so that they say nothing about shares.
    #[must_use]
    pub fn new(by: SyscallBy, is_selective: bool) -> Self {
        Self {
            begun: Instant::now(),
            by,
            is_selective,
            latency_every: 1,
            work: Tally::default(),
            waits: Tally::default(),
            calls: Bounded::new(CALLS),
            owners: Bounded::new(OWNERS),
            pairs: Bounded::new(PAIRS),
            slow: 0,
            hangs: 0,
            hung: HashMap::default(),
            slowest: Vec::new(),
            in_flight: 0,
        }
    }

    /// Since the beginning.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.work.calls + self.waits.calls + self.slow + self.hangs + self.in_flight == 0
    }

    /// Takes in what an interval brought.
    pub fn interval(&mut self, summary: &Summary) {
        self.in_flight = summary.in_flight;
        self.latency_every = summary.latency_every;
        for spread in self.calls.rows.values_mut() {
            spread.in_flight = 0;
        }
        for row in &summary.rows {
            let all = if row.waits { &mut self.waits } else { &mut self.work };
            all.add(row);
            self.calls.row((row.syscall, row.waits)).add(row);
            let Some(whose) = Whose::of(&row.who, self.by) else { continue };
            if !row.waits {
                self.pairs.row((whose.clone(), row.syscall)).add(row);
            }
            let owner = self.owners.row(whose);
            owner.processes.add(row.who.pid);
            if row.waits { owner.waits.add(row) } else { owner.work.add(row) }
        }
    }

    /// Takes an event in; those of other signals are none of its business.
    pub fn add(&mut self, event: &Event) {
        match event {
            Event::SyscallSlow(call) => {
                self.slow += 1;
                let long = Long::Slow(call.clone());
                self.hung.remove(&long.thread());
                self.rank(long);
            }
            Event::SyscallInFlight(call) => {
                let long = Long::Hangs(call.clone());
                let thread = long.thread();
                // One that is younger than the one before is another.
                let before = self.hung.get(&thread).map(|before| before.duration);
                self.hangs += u64::from(before.is_none_or(|before| before > call.duration));
                if before.is_some() || self.hung.len() < HUNG {
                    self.hung.insert(thread, call.clone());
                }
                self.rank(long);
            }
            Event::Retransmit(_)
            | Event::Reset(_)
            | Event::Connect(_)
            | Event::Close(_)
            | Event::Lookup(_)
            | Event::SyscallSummary(_)
            | Event::Loss(_) => {}
        }
    }

    /// Puts a call among the slowest. What hung so far and goes on, or has returned, is the same call.
    fn rank(&mut self, long: Long) {
        let (thread, duration) = (long.thread(), long.duration());
        self.slowest.retain(|other| match other {
            Long::Hangs(call) => other.thread() != thread || call.duration > duration,
            Long::Slow(_) => true,
        });
        let place = self.slowest.partition_point(|other| other.duration() >= duration);
        self.slowest.insert(place, long);
        self.slowest.truncate(SLOWEST);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::owners::tests::{CONTAINER, who};
    use super::super::tests::{brought, failing, in_flight, off_cpu, row, waiting, was_slow};
    use super::*;

    #[test]
    fn each_row_counts_once_in_each_table() {
        let mut account = Account::new(SyscallBy::Process, false);
        let rows = || {
            vec![
                off_cpu(50, failing(&[("EAGAIN", 2)], row(who("a", 1, "/"), "read", 10, 100))),
                row(who("a", 2, "/"), "read", 10, 100),
                Row { in_flight: 3, ..waiting(row(who("a", 1, "/"), "read", 5, 1_000)) },
                row(who("b", 3, CONTAINER), "write", 1, 2_000),
            ]
        };
        account.interval(&Summary { in_flight: 7, ..brought(rows()) });
        account.interval(&Summary { in_flight: 1, ..brought(rows()) });
        assert_eq!((account.work.calls, account.waits.calls), (42, 10));
        assert_eq!((account.work.failed, account.work.time()), (4, Duration::from_micros(8_000)));
        assert_eq!(account.in_flight, 1, "those of the last interval");
        let read = &account.calls.rows[&("read", false)];
        assert_eq!((read.tally.calls, read.durations.count(), read.in_flight), (40, 40, 0));
        assert_eq!(read.tally.errors.rows["EAGAIN"], 4);
        assert_eq!(read.tally.off_cpu(), Some(50), "of the time of which it is known");
        assert_eq!(account.calls.rows[&("read", true)].in_flight, 3);
        let a = &account.owners.rows[&Whose::Owner(OwnerKey::of(&who("a", 1, "/")))];
        assert_eq!((a.work.tally.calls, a.waits.calls, a.processes), (40, 10, Processes::Several));
        assert_eq!(account.pairs.rows.len(), 2);
    }

    #[test]
    fn the_host_is_one_and_nobody_another() {
        let rows = || [CONTAINER, "/a", "/b", ""].map(|path| row(who("", 0, path), "read", 1, 1));
        let mut account = Account::new(SyscallBy::Container, false);
        account.interval(&brought(rows().to_vec()));
        assert_eq!(account.owners.rows.len(), 3);
        assert_eq!(account.owners.rows[&Whose::Host].calls(), 2);
        assert_eq!(account.owners.rows[&Whose::Nobody].calls(), 1);
        let mut account = Account::new(SyscallBy::Syscall, false);
        account.interval(&brought(rows().to_vec()));
        assert!(account.owners.rows.is_empty() && account.calls.rows[&("read", false)].tally.calls == 4);
    }

    /// A call that hangs is told of again and again, and then returns.
    #[test]
    fn one_call_is_one_call() {
        let mut account = Account::new(SyscallBy::Process, false);
        let hang = |tid, ms| Event::SyscallInFlight(InFlight { tid, ..in_flight("flock", ms, None) });
        for event in [hang(1, 100), hang(1, 200), hang(2, 150), hang(1, 400)] {
            account.add(&event);
        }
        assert_eq!((account.hangs, account.hung.len(), account.slowest.len()), (2, 2, 2));
        let slow = |tid, ms| Event::SyscallSlow(Slow { tid, ..was_slow("flock", ms) });
        account.add(&slow(1, 500));
        assert_eq!((account.slow, account.hangs, account.hung.len()), (1, 2, 1));
        let slowest = |account: &Account| -> Vec<_> {
            account.slowest.iter().map(|long| (long.thread().1, long.duration().as_millis())).collect()
        };
        assert_eq!(slowest(&account), [(1, 500), (2, 150)]);
        // The same thread once more.
        account.add(&hang(1, 120));
        account.add(&hang(2, 110));
        assert_eq!(account.hangs, 4);
        assert_eq!(slowest(&account), [(1, 500), (2, 150), (1, 120), (2, 110)]);
    }

    #[test]
    fn more_than_there_is_room_for() {
        const ROWS: u32 = 100_000;
        let mut account = Account::new(SyscallBy::Process, false);
        let errors: Vec<(Cow<'static, str>, u64)> =
            (0..100).map(|errno| (format!("ERRNO{errno}").into(), 1)).collect();
        let template = row(who("w", 1, "/"), "read", 1, 10);
        let names: Vec<&'static str> = (0..2_000).map(|n| &*format!("syscall_{n}").leak()).collect();
        let rows = (0..ROWS).map(|number| Row {
            who: who(&format!("w{number}"), 7, "/"),
            syscall: names[number as usize % names.len()],
            errors: if number < 50 { errors.clone() } else { Vec::new() },
            ..template.clone()
        });
        account.interval(&brought(rows.collect()));
        for tid in 0..10_000 {
            account.add(&Event::SyscallInFlight(InFlight { tid, ..in_flight("flock", tid.into(), None) }));
            account.add(&Event::SyscallSlow(Slow { tid: ROWS + tid, ..was_slow("fsync", tid.into()) }));
        }
        let rows = u64::from(ROWS);
        assert_eq!(
            (account.calls.rows.len(), account.owners.rows.len(), account.pairs.rows.len()),
            (CALLS, OWNERS, PAIRS)
        );
        let calls: u64 = account.calls.rows.values().map(|call| call.tally.calls).sum();
        assert_eq!(calls + account.calls.rest.tally.calls, rows);
        let owners: u64 = account.owners.rows.values().map(Owner::calls).sum();
        assert_eq!(owners + account.owners.rest.calls(), rows);
        assert_eq!(account.work.errors.rows.len(), ERRORS);
        assert_eq!((account.work.failed, account.work.errors.rest), (5_000, (100 - ERRORS as u64) * 50));
        assert_eq!((account.hangs, account.slow, account.hung.len()), (10_000, 10_000, HUNG));
        assert_eq!(account.slowest.len(), SLOWEST);
        assert_eq!(account.slowest[0].duration().as_millis(), 9_999);
    }
}
