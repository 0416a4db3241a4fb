//! syscalls: exact figures out of the blocks; slow calls out of the records.

mod event;
mod group;
mod harvest;
mod in_flight;
pub mod names;
mod paths;
mod rules;
mod stacks;
mod subject;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData, MapError};
use probe_common::fields;
use probe_common::loss::Counter;
use probe_common::settings::{FILTER_SYSCALL, Settings};
use probe_common::syscalls::{
    Block, CpuState, KIND_SLOW, KIND_STACK, Rule, SlowRecord, StackRecord, SyscallId,
};

pub use self::event::{InFlight, Row, Slow, Subject, Summary, standard_error};
use self::harvest::{Harvest, Latency};
use self::in_flight::Watch;
pub use self::stacks::Sampled;
use self::stacks::Stacks;
use super::{Context, Event, Signal, SignalKind, errno_name};
use crate::collect::{self, DecodeError};
use crate::config::{Config, Sizes, SyscallOptions, Thresholds};
use crate::handover::EntryState;
use crate::kernel::clock;
use crate::kernel::fields::Resolved;
use crate::load::{Hook, LoadError, Loaded, ObjectSpec, Older, Plain, ProgramSpec};
use crate::stacks::{KernelSymbols, Unit};

/// Blocks for calls counted without their process: all system calls a host makes, on some CPUs.
const FOLDED_BLOCKS: u32 = 1024;

/// A stack is taken whenever calls have taken so long on a CPU.
const STACK_EVERY_NS: u64 = 1_000_000;
/// A stack is taken of one call in so many: a prime, so that no pattern of calls is in step with it.
const STACK_EVERY_CALLS: u32 = 97;

/// The signal.
#[derive(Debug)]
pub struct Syscalls;

static OBJECT: ObjectSpec = ObjectSpec {
    name: "syscalls",
    bit: fields::SYSCALLS,
    elf: aya::include_bytes_aligned!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../probe-ebpf/prebuilt/syscalls.bpf.o"
    )),
    // What ends calls before what begins them, so that none is left behind.
    programs: &[
        ProgramSpec::raw("sched_process_exit")
            .perf("process_exit_perf", "sched")
            .backup("process_exit_backup"),
        ProgramSpec::raw("sched_process_exec")
            .perf("process_exec_perf", "sched")
            .backup("process_exec_backup"),
        // Runs with interrupts off on every kernel.
        ProgramSpec::raw("sched_switch"),
        ProgramSpec::raw("sys_exit").perf("sys_exit_perf", "raw_syscalls").backup("sys_exit_backup"),
        ProgramSpec::raw("sys_enter").perf("sys_enter_perf", "raw_syscalls").backup("sys_enter_backup"),
    ],
    older: Some(Older {
        program: "older_calls",
        over: Hook::Tasks,
        without: "calls that hang since before probe began are not seen",
    }),
    walk: Some("calls_in_flight"),
};

impl SignalKind for Syscalls {
    fn object(&self) -> &'static ObjectSpec {
        &OBJECT
    }

    fn about(&self) -> &'static str {
        "system calls per process: counts, errors, latency, slow ones"
    }

    fn sizes(&self, config: &Config) -> Vec<(&'static str, u32)> {
        let sizes = &config.sizes;
        let blocks = sizes.syscall_blocks;
        vec![
            ("RING", sizes.ring_bytes()),
            ("CPUS", config.cpu_ids),
            ("BLOCKS", blocks + FOLDED_BLOCKS),
            ("INDEX", blocks + FOLDED_BLOCKS),
            ("FREE", blocks),
            ("FREE_FOLDED", FOLDED_BLOCKS),
            ("SLEEPERS", sizes.syscall_threads),
            ("PROCESSES", max_processes(sizes)),
            ("SLEEPS", if config.syscalls.stacks.is_some() { sizes.syscall_threads } else { 1 }),
        ]
    }

    fn settings(&self, config: &Config, settings: &mut Settings) {
        let options = &config.syscalls;
        settings.slow_ns = rules::least_ns(&options.slower_than);
        settings.latency_every = options.latency_every;
        settings.tick_ns = clock::tick_ns();
        match options.stacks {
            Some(Unit::Time) => settings.stack_every_ns = STACK_EVERY_NS,
            Some(Unit::Calls) => settings.stack_every_calls = STACK_EVERY_CALLS,
            None => {}
        }
        settings.stack_waits = u32::from(!options.names.is_empty());
        if !options.names.is_empty() {
            settings.filters |= FILTER_SYSCALL;
            for position in rules::positions(&options.names) {
                if let Some(word) = settings.syscall_set.get_mut(position / 64) {
                    *word |= 1 << (position % 64);
                }
            }
        }
    }

    fn start(
        &self,
        config: &Config,
        kernel: &Resolved,
        loaded: &mut Loaded,
    ) -> Result<Box<dyn Signal>, LoadError> {
        let error = |map, source| LoadError::Map { signal: OBJECT.name, map, source: Box::new(source) };
        let options = &config.syscalls;
        let mut rules = loaded.take_array("RULES")?;
        set_rules(&mut rules, &options.slower_than).map_err(|source| error("RULES", source))?;
        let mut free = loaded.take_queue("FREE")?;
        let mut folded = loaded.take_queue("FREE_FOLDED")?;
        if !loaded.is_adopted() {
            for index in 0..config.sizes.syscall_blocks {
                free.push(index, 0).map_err(|source| error("FREE", source))?;
            }
            for index in config.sizes.syscall_blocks..config.sizes.syscall_blocks + FOLDED_BLOCKS {
                folded.push(index, 0).map_err(|source| error("FREE_FOLDED", source))?;
            }
        }
        let walk = loaded.walk_tasks(kernel);
        if let Err(error) = &walk {
            tracing::info!("calls in flight have no arguments and no stack: {error}");
        }
        // Now: later this process may not any more.
        let symbols = Arc::new(KernelSymbols::read());
        Ok(Box::new(Running {
            harvest: Harvest::new(
                loaded.take_blocks("BLOCKS")?,
                loaded.take_hash("INDEX")?,
                loaded.take_hash("PROCESSES")?,
                free,
                Latency::of(options.latency_every),
            ),
            watch: Watch::new(
                loaded.take_hash("SLEEPERS")?,
                walk.ok(),
                &options.slower_than,
                Arc::clone(&symbols),
            ),
            rules,
            stacks: options.stacks.map(|_unit| Stacks::new(symbols)),
            sizes: config.sizes.clone(),
            options: options.clone(),
            interval: 1,
            since: Instant::now(),
            read: Instant::now(),
            ending: false,
        }))
    }
}

fn set_rules(rules: &mut Array<MapData, Plain<Rule>>, thresholds: &Thresholds) -> Result<(), MapError> {
    (0..).zip(rules::all(thresholds)).try_for_each(|(number, rule)| rules.set(number, Plain(rule), 0))
}

/// Entries of `PROCESSES`.
fn max_processes(sizes: &Sizes) -> u32 {
    (sizes.syscall_threads / 2).max(64)
}

/// Bytes of maps that depend on the number of blocks and CPUs: what docs/memory.md states.
#[must_use]
pub fn map_bytes(blocks: u32, cpu_ids: u32) -> usize {
    (blocks + FOLDED_BLOCKS) as usize * size_of::<Block>() + cpu_ids as usize * size_of::<CpuState>()
}

/// How often blocks are read at least: in less than this no count of theirs goes round its 32 bits.
const READ_PERIOD: Duration = Duration::from_secs(60);

struct Running {
    harvest: Harvest,
    watch: Watch,
    rules: Array<MapData, Plain<Rule>>,
    /// If they are wanted.
    stacks: Option<Stacks>,
    sizes: Sizes,
    options: SyscallOptions,
    /// Number of the current interval, as the programs know it.
    interval: u32,
    /// When it began.
    since: Instant,
    /// When all blocks were read last.
    read: Instant,
    /// The next interval to end is the last.
    ending: bool,
}

/// Takes a record in, as [`Signal::record`]: needs no kernel.
///
/// # Errors
///
/// When it is none of this signal's.
pub fn record(bytes: &[u8], context: &mut Context<'_>) -> Result<(), DecodeError> {
    take_record(bytes, None, context)
}

fn take_record(
    bytes: &[u8],
    stacks: Option<&mut Stacks>,
    context: &mut Context<'_>,
) -> Result<(), DecodeError> {
    match collect::header(bytes)?.kind {
        KIND_SLOW => slow(&collect::record(bytes)?, stacks, context),
        KIND_STACK => {
            let record: StackRecord = collect::record(bytes)?;
            system_call(record.id)?;
            if let Some(stacks) = stacks {
                stacks.take(Box::new(record));
            }
            Ok(())
        }
        other => Err(DecodeError::Kind(other)),
    }
}

fn system_call(id: u32) -> Result<SyscallId, DecodeError> {
    SyscallId::try_from(id).map_err(|_too_large| DecodeError::Value("system call"))
}

fn slow(
    record: &SlowRecord,
    stacks: Option<&mut Stacks>,
    context: &mut Context<'_>,
) -> Result<(), DecodeError> {
    let id = system_call(record.id)?;
    let stack = stacks.and_then(|stacks| stacks.of_slow(record.tid));
    if let Some(events) = &mut context.events {
        let errno = (-4095..0).contains(&record.ret).then(|| record.ret.unsigned_abs());
        events(Event::SyscallSlow(Slow {
            time_unix_ns: context.clock.wall(record.header.time_ns),
            who: context.owners.who(&record.owner, record.cgroup_id, 0),
            tid: record.tid,
            syscall: names::name(id),
            duration: Duration::from_nanos(record.duration_ns),
            off_cpu: Some(Duration::from_nanos(record.off_cpu_ns)),
            subject: subject::of(&record.subject, record.owner.tgid),
            error: errno.and_then(|errno| u32::try_from(errno).ok()).map(errno_name),
            stack,
        }));
    }
    Ok(())
}

impl Signal for Running {
    fn record(&mut self, bytes: &[u8], context: &mut Context<'_>) -> Result<(), DecodeError> {
        take_record(bytes, self.stacks.as_mut(), context)
    }

    fn change(&mut self, config: &Config, settings: &mut Settings) -> io::Result<()> {
        let thresholds = &config.syscalls.slower_than;
        if *thresholds != self.options.slower_than {
            set_rules(&mut self.rules, thresholds).map_err(io::Error::other)?;
            settings.slow_ns = rules::least_ns(thresholds);
            self.watch.change(thresholds);
            self.options.slower_than = thresholds.clone();
        }
        Ok(())
    }

    fn tick(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.read.elapsed() >= READ_PERIOD {
            self.read = Instant::now();
            self.harvest.read(self.interval, context)?;
        }
        self.harvest.recycle(self.interval, context)
    }

    fn detaching(&mut self, _context: &mut Context<'_>) -> io::Result<()> {
        self.ending = true;
        Ok(())
    }

    fn interval(&mut self, next: u32, context: &mut Context<'_>) -> io::Result<Option<super::Summary>> {
        self.read = Instant::now();
        self.harvest.read(self.interval, context)?;
        self.harvest.recycle(self.interval, context)?;
        self.interval = next;
        let covers = std::mem::replace(&mut self.since, self.read).elapsed();
        let sampled =
            if self.ending { self.stacks.as_mut().and_then(Stacks::end).map(Arc::new) } else { None };
        let look = self.watch.look(context)?;
        let rows = self.harvest.take_rows(&look.unreturned, self.ending, context)?;
        let mut rows = group::by(self.options.by, rows);
        rows.retain(|row| !self.options.errors_only || row.errors_total() != 0);
        self.options.sort.order(&mut rows);
        if let Some(events) = &mut context.events {
            // A table is cut where it is drawn, and says by how much.
            for row in rows.iter().take(self.options.top.unwrap_or(usize::MAX)) {
                events(Event::SyscallSummary(row.clone()));
            }
        }
        Ok(Some(super::Summary::Syscalls(Summary {
            covers,
            rows,
            in_flight: look.late,
            latency_every: self.options.latency_every,
            sampled,
        })))
    }

    fn leave(&self) -> Vec<EntryState> {
        self.harvest.leave()
    }

    fn go_on(&mut self, interval: u32, entries: &[EntryState]) -> Result<(), DecodeError> {
        self.interval = interval;
        self.harvest.go_on(entries).ok_or(DecodeError::Value("entry left for this agent"))
    }

    fn fill(&mut self) -> io::Result<Vec<(&'static str, u64, u64)>> {
        let (blocks, processes) = self.harvest.fill();
        let fill = [
            (Counter::CallsLost, blocks, self.sizes.syscall_blocks),
            (Counter::SleepersFull, self.watch.sleepers(), self.sizes.syscall_threads),
            (Counter::ProcessesFull, processes, max_processes(&self.sizes)),
        ];
        Ok(fill.map(|(full, entries, limit)| (full.place(), entries, u64::from(limit))).to_vec())
    }
}
