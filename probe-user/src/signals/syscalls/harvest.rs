//! Reads the blocks, attributes what they rose by, and gives the blocks of dead processes back.
//!
//! Live blocks are never written from here: they are read as cumulative figures and subtracted. A block is zeroed only
//! when its process is gone for a while, so that no program can be writing it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use aya::maps::{HashMap as BpfHashMap, MapData, Queue};
use hashbrown::{HashMap, HashSet};
use probe_common::hist::BUCKETS;
use probe_common::syscalls::{Block, Process, SyscallId, TGID_FOLDED, WAITED, key_id, key_tgid};
use probe_common::wire::Owner;

use super::in_flight::Unreturned;
use super::{Row, names, rules};
use crate::entity::{living, sees_host_pids};
use crate::event::key;
use crate::handover::EntryState;
use crate::kernel::clock;
use crate::load::{Blocks, Plain, lookup_batch};
use crate::series::{Histogram, attr, metrics};
use crate::signals::{Context, Who, errno_name, next_interval};

/// How long a process must be dead before its blocks are taken: its last thread's programs are long done.
const MOURNING_NS: u64 = 50_000_000;
/// Errors beyond those that a block tells apart; the semantic conventions' word.
const OTHER: &str = "_OTHER";

/// Number of the map of blocks in what is left for the next agent: the only one.
const LEFT_BLOCKS: u32 = 0;

/// How much of the calls' latency is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Latency {
    /// Every call's.
    Whole,
    /// Some calls', which stand for the others; or nobody's.
    Part,
}

impl Latency {
    /// Where one call in so many is measured.
    pub(super) const fn of(every: u32) -> Self {
        if every == 1 { Self::Whole } else { Self::Part }
    }
}

/// A (process, call), those that waited apart.
type RowKey = (u32, SyscallId, bool);

pub(super) struct Harvest {
    blocks: Blocks,
    index: BpfHashMap<MapData, Plain<u64>, Plain<u32>>,
    processes: BpfHashMap<MapData, Plain<u32>, Plain<Process>>,
    free: Queue<MapData, u32>,
    /// What every block in use said last.
    last: Vec<Option<Box<Seen>>>,
    /// Processes that have blocks, as of the last look.
    known: HashMap<u32, Process>,
    /// Processes that have blocks and are not among [`Self::known`]: since when, CLOCK_MONOTONIC nanoseconds.
    unknown: HashMap<u32, u64>,
    /// Whether /proc tells of the processes that the kernel means.
    sees_host_pids: bool,
    /// What rose since the interval began.
    rows: HashMap<RowKey, Tally>,
    used: u64,
    latency: Latency,
}

/// A block as it was read last.
struct Seen {
    block: Block,
    /// Errors under an errno so far. A block's own counts wrap around.
    named: u64,
    /// Errors under no errno so far.
    other: u64,
}

/// What one (process, call) rose by.
#[derive(Default)]
struct Tally {
    /// As it was known last: it may be gone before the interval ends.
    process: Process,
    calls: u64,
    durations: Histogram,
    min_ns: Option<u64>,
    off_cpu_ns: u64,
    errors: BTreeMap<u32, u64>,
    /// Errors under no errno.
    other: u64,
    /// Calls that have not returned.
    in_flight: u64,
}

impl Harvest {
    pub(super) fn new(
        blocks: Blocks,
        index: BpfHashMap<MapData, Plain<u64>, Plain<u32>>,
        processes: BpfHashMap<MapData, Plain<u32>, Plain<Process>>,
        free: Queue<MapData, u32>,
        latency: Latency,
    ) -> Self {
        let last = std::iter::repeat_with(|| None).take(blocks.len() as usize).collect();
        Self {
            blocks,
            index,
            processes,
            free,
            last,
            known: HashMap::default(),
            unknown: HashMap::default(),
            sees_host_pids: sees_host_pids(),
            rows: HashMap::default(),
            used: 0,
            latency,
        }
    }

    /// Takes in what rose since the last time. `interval` is the one whose peaks are meant.
    pub(super) fn read(&mut self, interval: u32, context: &mut Context<'_>) -> io::Result<()> {
        self.look_at_processes()?;
        self.used = 0;
        for at in 0..self.blocks.len() {
            let (key, _) = self.blocks.head(at);
            if key == 0 {
                continue;
            }
            let tgid = key_tgid(key);
            self.used += u64::from(tgid != TGID_FOLDED);
            if tgid != TGID_FOLDED && !self.known.contains_key(&tgid) {
                // Begun since the processes were read: a process is noted before its first block is.
                match self.processes.get(&Plain(tgid), 0) {
                    Ok(Plain(process)) => {
                        self.known.insert(tgid, process);
                    }
                    Err(_) => {
                        self.unknown.entry(tgid).or_insert_with(clock::monotonic_ns);
                    }
                }
            }
            self.read_block(at, interval, context);
        }
        Ok(())
    }

    /// Takes in what a block rose by.
    fn read_block(&mut self, at: u32, interval: u32, context: &mut Context<'_>) {
        let (key, calls) = self.blocks.head(at);
        let Some(last) = self.last.get_mut(at as usize) else { return };
        if last.as_ref().is_some_and(|last| last.block.key == key && last.block.calls == calls) {
            return;
        }
        let now = self.blocks.read(at);
        let before = last.take().filter(|last| last.block.key == key);
        let (delta, seen) = Delta::between(before.as_deref(), &now, interval);
        let tgid = key_tgid(key);
        let process = self.known.get(&tgid);
        let waited = key_id(key) & WAITED != 0;
        let id = key_id(key) & !WAITED;
        let call = CallOf { id, waits: waited || rules::waits(names::name(id)) };
        delta.to_series(call, process, tgid, self.latency, context);
        let tally = self.rows.entry((tgid, id, call.waits)).or_default();
        delta.to_tally(tally);
        tally.process = process.copied().unwrap_or(tally.process);
        // The box of the block before is used again.
        *last = Some(match before {
            Some(mut room) => {
                *room = seen;
                room
            }
            None => Box::new(seen),
        });
    }

    /// Reads who the processes are. One may have run another program, or been moved, since its calls were read: rows get the
    /// latest.
    fn look_at_processes(&mut self) -> io::Result<()> {
        let Self { known, rows, processes, .. } = self;
        known.clear();
        lookup_batch(processes, |tgid: &u32, process: &Process| {
            known.insert(*tgid, *process);
        })?;
        for ((tgid, ..), tally) in rows {
            // An id may be another process's by now.
            let same = |process: &&Process| [0, process.start_ns].contains(&tally.process.start_ns);
            tally.process = known.get(tgid).filter(same).copied().unwrap_or(tally.process);
        }
        Ok(())
    }

    /// Takes in what processes that have been dead for a while did last, and gives their blocks back.
    pub(super) fn recycle(&mut self, interval: u32, context: &mut Context<'_>) -> io::Result<()> {
        self.look_at_processes()?;
        let now_ns = clock::monotonic_ns();
        let mourned = |since_ns: u64| now_ns.saturating_sub(since_ns) > MOURNING_NS;
        let gone = |process: &Process| process.dead_ns != 0 && mourned(process.dead_ns);
        let Self { known, unknown, sees_host_pids, .. } = self;
        unknown.retain(|tgid, _| !known.contains_key(tgid));
        // Nobody says when these end; /proc says that they have.
        let lost: HashSet<u32> = unknown
            .iter()
            .filter(|(tgid, since_ns)| {
                *sees_host_pids && mourned(**since_ns) && !Path::new("/proc").join(tgid.to_string()).exists()
            })
            .map(|(tgid, _)| *tgid)
            .collect();
        unknown.retain(|tgid, _| !lost.contains(tgid));
        if lost.is_empty() && !self.known.values().any(gone) {
            return Ok(());
        }
        for at in 0..self.blocks.len() {
            let (key, _) = self.blocks.head(at);
            let tgid = key_tgid(key);
            if key == 0 || !(lost.contains(&tgid) || self.known.get(&tgid).is_some_and(gone)) {
                continue;
            }
            self.read_block(at, interval, context);
            // First nobody finds it any more, then it is emptied, then it can be had again.
            self.index.remove(&Plain(key)).map_err(io::Error::other)?;
            self.blocks.clear(at);
            if let Some(last) = self.last.get_mut(at as usize) {
                *last = None;
            }
            self.free.push(at, 0).map_err(io::Error::other)?;
        }
        for (tgid, _) in self.known.iter().filter(|(_, process)| gone(process)) {
            self.processes.remove(&Plain(*tgid)).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Ends the interval: its rows, in no order. `unreturned` is put beside them; at the `ending`, what has no row gets one.
    ///
    /// # Errors
    ///
    /// When a map does not read.
    pub(super) fn take_rows(
        &mut self,
        unreturned: &Unreturned,
        ending: bool,
        context: &mut Context<'_>,
    ) -> io::Result<Vec<Row>> {
        self.look_at_processes()?;
        for ((tgid, id), count) in unreturned {
            let process = self.known.get(tgid);
            let name = names::name(*id);
            // What may wait or not most likely does, while it is asleep.
            let waits = rules::may_wait(name);
            if ending || self.rows.contains_key(&(*tgid, *id, waits)) {
                let tally = self.rows.entry((*tgid, *id, waits)).or_default();
                tally.in_flight += count;
                tally.process = process.copied().unwrap_or(tally.process);
                if tally.process.start_ns == 0
                    && self.sees_host_pids
                    && let Some(Owner { start_ns, comm, .. }) = living(*tgid)
                {
                    // Nothing of it has returned so far, so the programs have not noted it; it is in the call, so it lives.
                    tally.process = Process { start_ns, comm, ..Process::default() };
                }
            }
        }
        let time_unix_ns = context.clock.wall(clock::monotonic_ns());
        let mut who: HashMap<u32, Who> = HashMap::default();
        let rows = self.rows.drain();
        Ok(rows
            .map(|((tgid, id, waits), tally)| {
                let who = who.entry(tgid).or_insert_with(|| {
                    let process = tally.process;
                    let tgid = pid(tgid).unwrap_or(0);
                    let owner = Owner { start_ns: process.start_ns, tgid, _pad: 0, comm: process.comm };
                    context.owners.who(&owner, process.cgroup_id, 0)
                });
                tally.into_row(time_unix_ns, who.clone(), CallOf { id, waits })
            })
            .collect())
    }

    /// What every block said last, for the next agent.
    pub(super) fn leave(&self) -> Vec<EntryState> {
        let seen = (0u32..).zip(&self.last).filter_map(|(at, last)| Some((at, last.as_deref()?)));
        seen.map(|(at, Seen { block, named, other })| EntryState {
            further: vec![*named, *other],
            ..EntryState::new(LEFT_BLOCKS, &at, block)
        })
        .collect()
    }

    /// What an earlier agent has read of the blocks. `None`: that is nothing that could be.
    pub(super) fn go_on(&mut self, entries: &[EntryState]) -> Option<()> {
        for entry in entries {
            let (at, block): (u32, Block) = entry.read()?;
            let [named, other] = *entry.further.as_slice() else { return None };
            *self.last.get_mut(at as usize)? = Some(Box::new(Seen { block, named, other }));
        }
        Some(())
    }

    /// Blocks in use (those of calls without their process left out), and processes known.
    pub(super) fn fill(&self) -> (u64, u64) {
        (self.used, u64::try_from(self.known.len()).unwrap_or(u64::MAX))
    }
}

/// The process of a block; calls counted without theirs have none.
fn pid(tgid: u32) -> Option<u32> {
    (tgid != TGID_FOLDED).then_some(tgid)
}

impl Tally {
    fn into_row(self, time_unix_ns: u64, who: Who, call: CallOf) -> Row {
        let mut errors: Vec<(Cow<'static, str>, u64)> =
            self.errors.into_iter().map(|(errno, count)| (errno_name(errno), count)).collect();
        if self.other != 0 {
            errors.push((OTHER.into(), self.other));
        }
        let is_measured = self.durations.count() != 0;
        Row {
            time_unix_ns,
            who,
            syscall: names::name(call.id),
            waits: call.waits,
            calls: self.calls,
            durations: self.durations,
            min: self.min_ns.map(Duration::from_nanos),
            off_cpu: is_measured.then(|| Duration::from_nanos(self.off_cpu_ns)),
            errors,
            in_flight: self.in_flight,
        }
    }
}

/// Which call, and whether it waits or waited.
#[derive(Clone, Copy)]
struct CallOf {
    id: SyscallId,
    waits: bool,
}

/// What a block rose by.
struct Delta {
    calls: u64,
    sum_ns: u64,
    off_cpu_ns: u64,
    min_ns: Option<u64>,
    max_ns: Option<u64>,
    errnos: Vec<(u32, u64)>,
    other: u64,
    buckets: [u64; BUCKETS],
}

impl Delta {
    /// What a block rose by since it was `seen`, and how it is seen now.
    fn between(seen: Option<&Seen>, now: &Block, interval: u32) -> (Self, Seen) {
        let nothing = Seen { block: bytemuck::Zeroable::zeroed(), named: 0, other: 0 };
        let seen = seen.unwrap_or(&nothing);
        let before = &seen.block;
        let mut buckets = [0; BUCKETS];
        for ((delta, now), before) in buckets.iter_mut().zip(now.buckets).zip(before.buckets) {
            *delta = u64::from(now.wrapping_sub(before));
        }
        let errnos: Vec<(u32, u64)> = now
            .errnos
            .iter()
            .zip(&before.errnos)
            .filter(|(now, _)| now.errno != 0)
            .map(|(now, before)| (now.errno, u64::from(now.count.wrapping_sub(before.count))))
            .filter(|(_, count)| *count != 0)
            .collect();
        // Words of a block are up to a call apart: a difference of two of them is one of cumulative figures, and what was
        // counted once is not taken back. While a slot is free, every error has one.
        let named = seen.named + errnos.iter().map(|(_, count)| count).sum::<u64>();
        let full = now.errnos.iter().all(|slot| slot.errno != 0);
        let other = if full { now.errors.saturating_sub(named).max(seen.other) } else { seen.other };
        // At the end of an interval the programs write into the next one's peak already.
        let intervals = [interval, next_interval(interval)];
        let peaks = || now.peaks.iter().filter(|peak| intervals.contains(&peak.interval));
        let delta = Self {
            calls: now.calls.saturating_sub(before.calls),
            sum_ns: now.sum_ns.saturating_sub(before.sum_ns),
            off_cpu_ns: now.off_cpu_ns.saturating_sub(before.off_cpu_ns),
            min_ns: peaks().map(|peak| peak.min_ns).min(),
            max_ns: peaks().map(|peak| peak.max_ns).max(),
            errnos,
            other: other - seen.other,
            buckets,
        };
        (delta, Seen { block: *now, named, other })
    }

    fn to_tally(&self, tally: &mut Tally) {
        tally.calls += self.calls;
        tally.durations.merge_counts(&self.buckets, self.sum_ns, self.max_ns);
        tally.min_ns = tally.min_ns.into_iter().chain(self.min_ns).min();
        tally.off_cpu_ns += self.off_cpu_ns;
        tally.other += self.other;
        for (errno, count) in &self.errnos {
            *tally.errors.entry(*errno).or_default() += count;
        }
    }

    fn to_series(
        &self,
        call: CallOf,
        process: Option<&Process>,
        tgid: u32,
        latency: Latency,
        context: &mut Context<'_>,
    ) {
        let entity = context.owners.entity(process.map_or(0, |process| process.cgroup_id), pid(tgid));
        let name = attr(key::SYSCALL_NAME, names::name(call.id));
        let attrs = [name.clone(), attr(key::SYSCALL_CLASS, names::class(call.waits))];
        if self.calls != 0 && latency == Latency::Part {
            context.store.add(&entity, metrics::SYSCALL_CALLS, &attrs, self.calls);
        }
        if self.buckets.iter().any(|count| *count != 0) {
            let (buckets, sum_ns, max_ns) = (&self.buckets, self.sum_ns, self.max_ns);
            context.store.merge_counts(&entity, metrics::SYSCALL_DURATION, &attrs, buckets, sum_ns, max_ns);
        }
        for (errno, count) in &self.errnos {
            let attrs = [name.clone(), attr(key::ERROR_TYPE, errno_name(*errno))];
            context.store.add(&entity, metrics::SYSCALL_ERRORS, &attrs, *count);
        }
        if self.other != 0 {
            let attrs = [name, attr(key::ERROR_TYPE, OTHER)];
            context.store.add(&entity, metrics::SYSCALL_ERRORS, &attrs, self.other);
        }
    }
}

#[cfg(test)]
mod tests {
    use probe_common::syscalls::{ERRNO_SLOTS, ErrnoCount, Peak};

    use super::*;

    fn block(errors: u64, errnos: [u32; ERRNO_SLOTS]) -> Block {
        let mut block: Block = bytemuck::Zeroable::zeroed();
        block.errors = errors;
        for ((slot, errno), count) in block.errnos.iter_mut().zip(1..).zip(errnos) {
            *slot = ErrnoCount { errno: if count == 0 { 0 } else { errno }, count };
        }
        block
    }

    #[test]
    fn errors_between_two_words_are_counted_once() {
        // Errors of the block and of its slots, and what becomes known as other.
        let steps = [
            ("a free slot: a torn read", block(3, [1, 1, 0, 0, 0, 0]), 0),
            ("all slots", block(6, [1; 6]), 0),
            ("one other", block(7, [1; 6]), 1),
            ("slots ahead of the sum", block(7, [2, 1, 1, 1, 1, 1]), 0),
            ("the sum has caught up", block(8, [2, 1, 1, 1, 1, 1]), 0),
            ("two more others", block(10, [2, 1, 1, 1, 1, 1]), 2),
        ];
        let mut seen = None;
        for (what, now, other) in steps {
            let (delta, next) = Delta::between(seen.as_ref(), &now, 1);
            assert_eq!(delta.other, other, "{what}");
            seen = Some(next);
        }
        // A slot's count wraps around.
        let mut now = block(10 + u64::from(u32::MAX), [2, 1, 1, 1, 1, 1]);
        now.errnos[0].count = 1;
        let (delta, _) = Delta::between(seen.as_ref(), &now, 1);
        assert_eq!((delta.errnos, delta.other), (vec![(1, u64::from(u32::MAX))], 0));
    }

    #[test]
    fn a_peak_of_the_interval_that_has_just_begun_counts() {
        let mut now: Block = bytemuck::Zeroable::zeroed();
        let peak = |max_ns, interval| Peak { min_ns: 1, max_ns, interval, _pad: 0 };
        for (peaks, want) in [
            ([peak(5, 6), peak(9, 7)], Some(9)),
            ([peak(5, 8), peak(9, 7)], Some(9)),
            ([peak(5, 8), peak(9, 5)], Some(5)),
            ([peak(5, 6), peak(9, 5)], None),
        ] {
            now.peaks = peaks;
            assert_eq!(Delta::between(None, &now, 7).0.max_ns, want);
        }
    }
}
