//! Reads the blocks, attributes what they rose by, and gives the blocks of dead processes back.
//!
//! Live blocks are never written from here: they are read as cumulative figures and subtracted. A block is zeroed only
//! when its process is gone for a while, so that no program can be writing it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;

use aya::maps::{HashMap as BpfHashMap, MapData, Queue};
use hashbrown::HashMap;
use probe_common::hist::BUCKETS;
use probe_common::syscalls::{Block, Process, SyscallId, key_id, key_tgid};
use probe_common::wire::Owner;

use super::{Row, names};
use crate::event::key;
use crate::kernel::clock;
use crate::load::{Blocks, Plain, lookup_batch};
use crate::series::{Histogram, attr, metrics};
use crate::signals::{Context, Who, errno_name};

/// How long a process must be dead before its blocks are taken: its last thread's programs are long done.
const MOURNING_NS: u64 = 50_000_000;

pub(super) struct Harvest {
    blocks: Blocks,
    index: BpfHashMap<MapData, Plain<u64>, Plain<u32>>,
    processes: BpfHashMap<MapData, Plain<u32>, Plain<Process>>,
    free: Queue<MapData, u32>,
    /// What every block in use said last.
    last: Vec<Option<Box<Block>>>,
    /// Processes that have blocks, as of the last look.
    known: HashMap<u32, Process>,
    /// What rose since the interval began.
    rows: HashMap<(u32, SyscallId), Tally>,
    used: u64,
}

/// What one (process, call) rose by.
#[derive(Default)]
struct Tally {
    /// As it was known last: it may be gone before the interval ends.
    process: Process,
    durations: Histogram,
    errors: BTreeMap<u32, u64>,
    errors_total: u64,
}

impl Harvest {
    pub(super) fn new(
        blocks: Blocks,
        index: BpfHashMap<MapData, Plain<u64>, Plain<u32>>,
        processes: BpfHashMap<MapData, Plain<u32>, Plain<Process>>,
        free: Queue<MapData, u32>,
    ) -> Self {
        let last = std::iter::repeat_with(|| None).take(blocks.len() as usize).collect();
        Self {
            blocks,
            index,
            processes,
            free,
            last,
            known: HashMap::default(),
            rows: HashMap::default(),
            used: 0,
        }
    }

    /// Takes in what rose since the last time. `interval` is the one whose peaks are meant.
    pub(super) fn read(&mut self, interval: u32, context: &mut Context<'_>) -> io::Result<()> {
        self.known.clear();
        let known = &mut self.known;
        lookup_batch(&self.processes, |tgid: &u32, process: &Process| {
            known.insert(*tgid, *process);
        })?;
        self.used = 0;
        for at in 0..self.blocks.len() {
            let (key, calls) = self.blocks.head(at);
            if key == 0 {
                continue;
            }
            self.used += 1;
            let Some(last) = self.last.get_mut(at as usize) else { continue };
            if last.as_ref().is_some_and(|last| last.key == key && last.calls == calls) {
                continue;
            }
            let now = self.blocks.read(at);
            let before = last.take().filter(|last| last.key == key);
            let delta = Delta::between(before.as_deref(), &now, interval);
            let process = self.known.get(&key_tgid(key));
            let id = key_id(key) | process.map_or(0, |process| process.abi as SyscallId);
            delta.to_series(id, process, key_tgid(key), context);
            let tally = self.rows.entry((key_tgid(key), id)).or_default();
            delta.to_tally(tally);
            tally.process = process.copied().unwrap_or(tally.process);
            // The box of the block before is used again.
            *last = Some(match before {
                Some(mut room) => {
                    *room = now;
                    room
                }
                None => Box::new(now),
            });
        }
        Ok(())
    }

    /// Gives the blocks of processes back that have been dead for a while. Call it after [`Self::read`].
    pub(super) fn recycle(&mut self) -> io::Result<()> {
        let now_ns = clock::monotonic_ns();
        let gone =
            |process: &Process| process.dead_ns != 0 && now_ns.saturating_sub(process.dead_ns) > MOURNING_NS;
        if !self.known.values().any(gone) {
            return Ok(());
        }
        for at in 0..self.blocks.len() {
            let (key, _) = self.blocks.head(at);
            if key == 0 || !self.known.get(&key_tgid(key)).is_some_and(gone) {
                continue;
            }
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

    /// Ends the interval: its rows, in no order.
    pub(super) fn take_rows(&mut self, context: &mut Context<'_>) -> Vec<Row> {
        let time_unix_ns = context.clock.wall(clock::monotonic_ns());
        let mut who: HashMap<u32, Who> = HashMap::default();
        self.rows
            .drain()
            .map(|((tgid, id), tally)| {
                let who = who.entry(tgid).or_insert_with(|| {
                    let process = tally.process;
                    let owner = Owner { start_ns: process.start_ns, tgid, _pad: 0, comm: process.comm };
                    context.owners.who(&owner, process.cgroup_id, 0)
                });
                tally.into_row(time_unix_ns, who.clone(), id)
            })
            .collect()
    }

    pub(super) fn fill(&self) -> Vec<(&'static str, u64, u64)> {
        vec![("syscalls.blocks", self.used, u64::from(self.blocks.len()))]
    }
}

impl Tally {
    fn into_row(self, time_unix_ns: u64, who: Who, id: SyscallId) -> Row {
        let named: u64 = self.errors.values().sum();
        let mut errors: Vec<(Cow<'static, str>, u64)> =
            self.errors.into_iter().map(|(errno, count)| (errno_name(errno), count)).collect();
        if self.errors_total > named {
            // More kinds of errors than a block tells apart.
            errors.push(("_other".into(), self.errors_total - named));
        }
        let syscall = names::name(id);
        Row { time_unix_ns, who, syscall, waits: names::waits(syscall), durations: self.durations, errors }
    }
}

/// What a block rose by.
struct Delta {
    calls: u64,
    sum_ns: u64,
    max_ns: Option<u64>,
    errors: u64,
    errnos: Vec<(u32, u64)>,
    buckets: [u64; BUCKETS],
}

impl Delta {
    fn between(before: Option<&Block>, now: &Block, interval: u32) -> Self {
        let zero: Block = bytemuck::Zeroable::zeroed();
        let before = before.unwrap_or(&zero);
        let mut buckets = [0; BUCKETS];
        let mut calls = 0;
        for ((delta, now), before) in buckets.iter_mut().zip(now.buckets).zip(before.buckets) {
            *delta = u64::from(now.wrapping_sub(before));
            calls += *delta;
        }
        let errnos = now
            .errnos
            .iter()
            .zip(&before.errnos)
            .filter(|(now, _)| now.errno != 0)
            .map(|(now, before)| (now.errno, u64::from(now.count.wrapping_sub(before.count))))
            .filter(|(_, count)| *count != 0)
            .collect();
        let peak = now.peaks.iter().find(|peak| peak.interval == interval);
        Self {
            calls,
            sum_ns: now.sum_ns.saturating_sub(before.sum_ns),
            max_ns: peak.map(|peak| peak.max_ns),
            errors: now.errors.saturating_sub(before.errors),
            errnos,
            buckets,
        }
    }

    fn to_tally(&self, tally: &mut Tally) {
        tally.durations.merge_counts(&self.buckets, self.sum_ns, self.max_ns);
        tally.errors_total += self.errors;
        for (errno, count) in &self.errnos {
            *tally.errors.entry(*errno).or_default() += count;
        }
    }

    fn to_series(&self, id: SyscallId, process: Option<&Process>, tgid: u32, context: &mut Context<'_>) {
        let entity = context
            .owners
            .entity(process.map_or(0, |process| process.cgroup_id), (tgid != 0).then_some(tgid));
        let syscall = names::name(id);
        let name = attr(key::SYSCALL_NAME, syscall);
        if self.calls != 0 {
            let attrs = [name.clone(), attr(key::SYSCALL_CLASS, names::class(names::waits(syscall)))];
            let (buckets, sum_ns, max_ns) = (&self.buckets, self.sum_ns, self.max_ns);
            context.store.merge_counts(&entity, metrics::SYSCALL_DURATION, &attrs, buckets, sum_ns, max_ns);
        }
        for (errno, count) in &self.errnos {
            let attrs = [name.clone(), attr(key::ERROR_TYPE, errno_name(*errno))];
            context.store.add(&entity, metrics::SYSCALL_ERRORS, &attrs, *count);
        }
        let named: u64 = self.errnos.iter().map(|(_, count)| count).sum();
        if self.errors > named {
            let attrs = [name, attr(key::ERROR_TYPE, "_OTHER")];
            context.store.add(&entity, metrics::SYSCALL_ERRORS, &attrs, self.errors - named);
        }
    }
}
