//! The way data takes: rings and maps → signals → series and events → sinks. One task; nothing waits but at its top.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use probe_common::loss::Counter;
use probe_common::settings::Settings;
use tokio::signal::unix::{SignalKind as UnixSignal, signal};
use tokio::sync::mpsc;

mod start;

pub use self::start::{StartError, resolve_fields};
use crate::collect::{self, Ring, woken};
use crate::config::Config;
use crate::entity::kube::{Asking, KubeletConfig};
use crate::entity::{Directory, Entity};
use crate::event::key;
use crate::handover::{Handover, SignalState};
use crate::kernel::cgroup::CgroupRoot;
use crate::kernel::clock::{self, Clock};
use crate::kernel::runs::Runs;
use crate::load::{self, Counters, Loaded, Pins, RunStats, SettingsMap};
use crate::series::{Snapshot, Store, attr, metrics};
use crate::signals::tcp::Tcp;
use crate::signals::{
    self, Context, Event, Loss, Owners, Signal, SignalKind as _, Summary, cgroups, names, next_interval,
};
use crate::telemetry::SelfStats;

/// How often rings are looked into without a wake-up: how old a live line can get.
const DRAIN_PERIOD: Duration = Duration::from_millis(100);
/// How often maps are looked after.
const TICK_PERIOD: Duration = Duration::from_millis(250);
/// Records taken from one ring before the others have their turn.
const BATCH: usize = 4096;
/// Visitors that wait for an answer; further ones wait to be let in.
const VISITORS: usize = 16;
/// Turns of all rings before everything else has its own: the clock, the end, ticks and exports.
const TURNS: usize = 4;
/// Where runs of programs get lost that the kernel skips.
pub const SKIPPED: &str = "programs";
const SKIPPED_REMEDY: &str = "`probe doctor` says where it can be helped: the kernel skips a program on a CPU that is inside it; figures are short by at most so many";

/// Where events and summaries go.
pub trait Sink {
    /// Whether events are wanted at all: so that none is made for nobody.
    fn wants_events(&self) -> bool;

    /// Something happened.
    ///
    /// # Errors
    ///
    /// The output's; `BrokenPipe` ends the command quietly.
    fn event(&mut self, event: &Event) -> io::Result<Flow>;

    /// An interval has ended, with this as what everything has come to.
    ///
    /// # Errors
    ///
    /// As [`Self::event`].
    fn interval(&mut self, summaries: &[Summary], snapshot: &Snapshot<'_>) -> io::Result<()>;

    /// What was written so far should be seen.
    ///
    /// # Errors
    ///
    /// As [`Self::event`].
    fn flush(&mut self) -> io::Result<()>;
}

/// Whether a sink has had enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// More, please.
    More,
    /// As many events as were asked for.
    Enough,
}

/// A question to the store, asked from another task and answered between two turns, once the rings have been read.
pub type Visit = Box<dyn FnOnce(&Store) + Send>;

/// How a run ended.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Records decoded, by signal.
    pub records: BTreeMap<&'static str, u64>,
    /// What was lost in all, by signal and place: how many, and the remedy.
    pub losses: BTreeMap<(&'static str, &'static str), (u64, &'static str)>,
    /// Packets looked at and left alone, by place.
    pub ignored: BTreeMap<&'static str, u64>,
}

/// Running signals and what they work with.
pub struct Pipeline {
    signals: Vec<Running>,
    owners: Owners,
    clock: Clock,
    store: Store,
    stats: Arc<SelfStats>,
    report: Report,
    interval: Duration,
    /// Length of the first interval.
    first: Duration,
    duration: Option<Duration>,
    visits: Option<mpsc::Receiver<Visit>>,
    /// Who is asked for the names of pods, and where they are written down.
    kubelet: Option<(KubeletConfig, Arc<Directory>)>,
    /// The kernel takes the time of programs for as long as this is there.
    run_stats: Option<RunStats>,
    changes: Option<mpsc::Receiver<Box<Config>>>,
    /// Where everything is left for the next agent.
    pins: Option<Pins>,
    /// `service.instance.id`.
    instance: String,
    /// Whether it goes on where an earlier agent has left.
    is_successor: bool,
    _cgroup: Option<CgroupRoot>,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").finish_non_exhaustive()
    }
}

struct Running {
    name: &'static str,
    signal: Box<dyn Signal>,
    ring: Ring,
    counters: Counters,
    settings: Settings,
    settings_map: SettingsMap,
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    /// Runs of its programs that the kernel skipped and no backup made up for, as far as said.
    skipped: u64,
    /// Runs that a backup made up for.
    made_up: u64,
    /// Programs and links live as long as this.
    loaded: Loaded,
}

/// One whose records say what those of others mean, in the course of a turn. Rings have no order between them, but records have
/// their time.
struct Teacher<'a> {
    running: &'a mut Running,
    /// Whose records it is for; `None`: everybody's.
    pupil: Option<&'static str>,
    /// Until when everything is known (CLOCK_MONOTONIC nanoseconds).
    known_ns: u64,
    /// Records that it may still take in this turn.
    left: usize,
}

impl<'a> Teacher<'a> {
    fn new(running: &'a mut Running) -> Self {
        let pupil = (running.name == names::NAME).then(|| Tcp.object().name);
        Self { running, pupil, known_ns: 0, left: BATCH }
    }

    /// Before a record of that time is understood: whoever asked for a name connects after the answer, and a cgroup is made
    /// before there is anybody in it.
    fn teach_until(
        &mut self,
        time_ns: u64,
        pupil: &'static str,
        context: &mut Context<'_>,
        report: &mut Report,
        stats: &SelfStats,
    ) {
        if time_ns >= self.known_ns && self.pupil.is_none_or(|own| own == pupil) {
            self.teach(context, report, stats);
        }
    }

    fn teach(&mut self, context: &mut Context<'_>, report: &mut Report, stats: &SelfStats) {
        if self.left != 0 {
            self.known_ns = clock::monotonic_ns();
            self.left -= self.running.take_records(self.left, context, report, stats, |_, _, _| {});
        }
    }
}

impl Running {
    /// Whether it is there for the others.
    fn teaches(&self) -> bool {
        signals::AUXILIARY.iter().any(|kind| kind.object().name == self.name)
    }

    /// Takes up to `most` records out of the ring, and says how many; `before` comes before each, with its time.
    fn take_records(
        &mut self,
        most: usize,
        context: &mut Context<'_>,
        report: &mut Report,
        stats: &SelfStats,
        mut before: impl FnMut(u64, &mut Context<'_>, &mut Report),
    ) -> usize {
        let Self { name, signal, ring, logger, .. } = self;
        let mut refused = 0;
        let taken = ring.drain(most, |bytes| {
            // What has no header has no time: it is refused below.
            before(collect::header(bytes).map_or(0, |header| header.time_ns), context, report);
            if let Err(error) = signal.record(bytes, context) {
                refused += 1;
                tracing::debug!(signal = name, %error, "record not understood");
            }
        });
        let understood = u64::try_from(taken).unwrap_or(u64::MAX) - refused;
        if understood != 0 {
            *report.records.entry(name).or_default() += understood;
            stats.add(metrics::PROBE_EVENTS, &[attr(key::SIGNAL, *name)], understood);
        }
        if refused != 0 {
            lose(report, stats, name, "decode", refused, "report it: `probe doctor -o json`");
        }
        if let Some(logger) = logger {
            logger.flush();
        }
        taken
    }
}

impl Pipeline {
    /// Names of the signals that run.
    #[must_use]
    pub fn signals(&self) -> Vec<&'static str> {
        self.signals.iter().map(|running| running.name).collect()
    }

    /// Whether it goes on with the programs and totals of an earlier agent; then as which instance.
    #[must_use]
    pub fn successor_of(&self) -> Option<&str> {
        self.is_successor.then_some(self.instance.as_str())
    }

    /// What has been counted so far: by an earlier agent.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot<'_> {
        self.store.peek()
    }

    /// Makes the first interval shorter, so that many agents started together do not all export together.
    pub fn begin_with(&mut self, first: Duration) {
        self.first = first.min(self.interval);
    }

    /// A way to ask for what there is while it runs.
    pub fn visitors(&mut self) -> mpsc::Sender<Visit> {
        let (visitors, visits) = mpsc::channel(VISITORS);
        self.visits = Some(visits);
        visitors
    }

    /// A way to tell it a new configuration while it runs, of which it takes what can change without a restart: the interval, and
    /// what [`Signal::change`] of each signal takes. Totals and series go on.
    pub fn changes(&mut self) -> mpsc::Sender<Box<Config>> {
        let (sender, changes) = mpsc::channel(1);
        self.changes = Some(changes);
        sender
    }

    /// Runs until the time is up, the sink has enough, or SIGINT or SIGTERM comes. The last, incomplete interval is handed
    /// to the sink like every other.
    ///
    /// # Errors
    ///
    /// The sink's, and what the kernel refuses while running.
    pub async fn run(&mut self, sink: &mut dyn Sink) -> io::Result<Report> {
        let mut interrupt = signal(UnixSignal::interrupt())?;
        let mut terminate = signal(UnixSignal::terminate())?;
        for running in &mut self.signals {
            running.ring.listen()?;
        }
        // Asks beside the loop, until this ends.
        let _asking = self
            .kubelet
            .take()
            .map(|(config, directory)| Asking::start(config, directory, Arc::clone(&self.stats)));
        let begun = Instant::now();
        let end = self.duration.map(|duration| begun + duration);
        let mut drain = tokio::time::interval(DRAIN_PERIOD);
        drain.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut next_tick = begun + TICK_PERIOD;
        let mut next_interval = begun + self.first;
        let mut stop = false;
        let mut more = false;
        let mut visits = self.visits.take();
        let mut changes = self.changes.take();
        while !stop {
            let rings: Vec<&Ring> = self.signals.iter().map(|running| &running.ring).collect();
            let (mut visit, mut change) = (None, None);
            tokio::select! {
                // The end first, and no waiting at all while the rings hold more.
                biased;
                _ = interrupt.recv() => stop = true,
                _ = terminate.recv() => stop = true,
                () = tokio::task::yield_now(), if more => {}
                config = next(&mut changes) => change = Some(config),
                asked = next(&mut visits) => visit = Some(asked),
                ready = woken(&rings) => ready?,
                _ = drain.tick() => {}
            }
            let now = Instant::now();
            stop |= end.is_some_and(|end| now >= end);
            let flow;
            (flow, more) = self.drain(sink)?;
            if flow == Flow::Enough {
                break;
            }
            if let Some(visit) = visit {
                visit(&self.store);
            }
            if let Some(config) = change {
                self.change(&config)?;
                // Sooner, if that is what was wanted; whatever was counted meanwhile belongs to the interval that is under way.
                next_interval = next_interval.min(now + self.interval);
            }
            if now >= next_tick && self.tick(sink)? == Flow::Enough {
                break;
            }
            if now >= next_tick {
                next_tick = now + TICK_PERIOD;
            }
            if now >= next_interval && !stop {
                if self.end_interval(sink)? == Flow::Enough {
                    break;
                }
                // Keeps to the beat; an interval that was missed altogether is not made up for.
                next_interval += self.interval;
                if next_interval <= now {
                    next_interval = now + self.interval;
                }
            }
            sink.flush()?;
        }
        if stop && self.drain_to_the_end(sink)? == Flow::More && self.tick(sink)? == Flow::More {
            self.end_interval(sink)?;
        }
        sink.flush()?;
        self.count_losses(None);
        self.leave();
        Ok(self.report.clone())
    }

    /// Leaves everything to the next agent, if there may be one.
    fn leave(&mut self) {
        let Self { signals, owners, store, pins: Some(pins), instance, .. } = self else { return };
        let signal = |running: &Running| SignalState {
            name: running.name.to_owned(),
            counters: running.counters.last().to_vec(),
            skipped: running.skipped,
            made_up: running.made_up,
            interval: running.settings.interval,
            entries: running.signal.leave(),
        };
        let left = Handover {
            instance: instance.clone(),
            signals: signals.iter().map(signal).collect(),
            owners: store.leave(Entity::leave),
            cgroups: owners.entities().leave_cgroups(),
            collected_unix_ns: store.collected_unix_ns(),
        };
        let written = left.pack().map_err(|error| error.to_string());
        match written.and_then(|octets| pins.leave(&octets).map_err(|error| error.to_string())) {
            Ok(()) => tracing::info!(
                "programs go on under {}, and wait for the next agent (rm -r ends them)",
                pins.directory().display()
            ),
            Err(error) => tracing::warn!("{error}; the next agent begins anew"),
        }
    }

    /// Takes over what can change while everything runs.
    fn change(&mut self, config: &Config) -> io::Result<()> {
        self.interval = config.interval;
        self.store.change_interval(config.interval);
        for running in &mut self.signals {
            running.signal.change(config, &mut running.settings)?;
            running.settings_map.set(&running.settings).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Ends the programs, then empties the rings: what they have produced is either delivered or counted as lost. Programs that the
    /// next agent takes over are left alone, and what comes from now on is that one's.
    fn drain_to_the_end(&mut self, sink: &mut dyn Sink) -> io::Result<Flow> {
        if self.pins.is_some() {
            self.signals.iter_mut().for_each(|running| running.signal.leaving());
            return Ok(self.drain(sink)?.0);
        }
        for running in &mut self.signals {
            let mut context = Context {
                clock: &self.clock,
                owners: &mut self.owners,
                store: &mut self.store,
                events: None,
            };
            running.signal.detaching(&mut context)?;
        }
        for running in &mut self.signals {
            running.loaded.detach();
        }
        load::wait_for_programs();
        loop {
            let (flow, more) = self.drain(sink)?;
            if flow == Flow::Enough || !more {
                return Ok(flow);
            }
        }
    }

    /// Empties the rings, a batch of each at a time, for a few turns. True: there is more.
    fn drain(&mut self, sink: &mut dyn Sink) -> io::Result<(Flow, bool)> {
        // The wall clock may have been set.
        self.clock.refresh();
        for _turn in 0..TURNS {
            let mut events = Vec::new();
            let full = self.turn(sink.wants_events().then_some(&mut |event| events.push(event)));
            if hand_over(sink, &events)? == Flow::Enough {
                return Ok((Flow::Enough, false));
            }
            if !full {
                return Ok((Flow::More, false));
            }
        }
        Ok((Flow::More, true))
    }

    /// A batch of each ring. True: one of them was full.
    fn turn<'a>(&'a mut self, events: Option<&'a mut (dyn FnMut(Event) + 'a)>) -> bool {
        let Self { signals, owners, clock, store, stats, report, .. } = self;
        let mut context = Context { clock, owners, store, events };
        let (auxiliary, others): (Vec<_>, Vec<_>) = signals.iter_mut().partition(|running| running.teaches());
        let mut teachers: Vec<Teacher<'_>> = auxiliary.into_iter().map(Teacher::new).collect();
        let mut full = false;
        for running in others {
            let name = running.name;
            let taken =
                running.take_records(BATCH, &mut context, report, stats, |time_ns, context, report| {
                    for teacher in &mut teachers {
                        teacher.teach_until(time_ns, name, context, report, stats);
                    }
                });
            full |= taken == BATCH;
        }
        // Also where nobody needs to know yet.
        for teacher in &mut teachers {
            teacher.teach(&mut context, report, stats);
            full |= teacher.left == 0;
        }
        full
    }

    /// Learns which cgroups were made: before what the maps have of them is told.
    fn learn_cgroups(&mut self) {
        let Self { signals, owners, clock, store, stats, report, .. } = self;
        let mut context = Context { clock, owners, store, events: None };
        for running in signals.iter_mut().filter(|running| running.name == cgroups::NAME) {
            Teacher::new(running).teach(&mut context, report, stats);
        }
    }

    /// Looks after the maps, and says what was lost.
    fn tick(&mut self, sink: &mut dyn Sink) -> io::Result<Flow> {
        self.learn_cgroups();
        let mut events = Vec::new();
        for running in &mut self.signals {
            let mut keep = |event| events.push(event);
            let mut context = Context {
                clock: &self.clock,
                owners: &mut self.owners,
                store: &mut self.store,
                events: sink.wants_events().then_some(&mut keep),
            };
            running.signal.tick(&mut context)?;
        }
        hand_over(sink, &events)
    }

    fn end_interval(&mut self, sink: &mut dyn Sink) -> io::Result<Flow> {
        self.clock.refresh();
        let now = self.clock.wall(clock::monotonic_ns());
        self.learn_cgroups();
        let mut losses = Vec::new();
        self.count_losses(Some((now, &mut losses)));
        let mut events = Vec::new();
        let mut summaries = Vec::new();
        for running in &mut self.signals {
            let next = next_interval(running.settings.interval);
            running.settings.interval = next;
            running.settings_map.set(&running.settings).map_err(io::Error::other)?;
            let mut keep = |event| events.push(event);
            let mut context = Context {
                clock: &self.clock,
                owners: &mut self.owners,
                store: &mut self.store,
                events: sink.wants_events().then_some(&mut keep),
            };
            summaries.extend(running.signal.interval(next, &mut context)?);
            for (map, entries, limit) in running.signal.fill()? {
                let attrs = [attr(key::MAP, map)];
                self.stats.set(metrics::PROBE_MAP_ENTRIES, &attrs, entries);
                self.stats.set(metrics::PROBE_MAP_LIMIT, &attrs, limit);
            }
        }
        events.append(&mut losses);
        self.count_runs();
        self.stats.observe_series(&self.store);
        let flow = hand_over(sink, &events)?;
        sink.interval(&summaries, &self.store.snapshot(now))?;
        Ok(flow)
    }

    /// What came of each program, if the kernel was asked to count.
    fn count_runs(&self) {
        if self.run_stats.is_none() {
            return;
        }
        for (name, runs) in self.signals.iter().flat_map(|running| running.loaded.runs()) {
            let attrs = [attr(key::PROGRAM, Arc::<str>::from(name))];
            let Runs { count, time_ns, skipped } = runs;
            self.stats.set(metrics::PROBE_PROGRAM_RUN_TIME, &attrs, time_ns);
            self.stats.set(metrics::PROBE_PROGRAM_RUNS, &attrs, count);
            if let Some(skipped) = skipped {
                self.stats.set(metrics::PROBE_PROGRAM_MISSES, &attrs, skipped);
            }
        }
    }

    /// Reads the programs' counters.
    fn count_losses(&mut self, mut say: Option<(u64, &mut Vec<Event>)>) {
        let Self { signals, report, stats, .. } = self;
        let mut ignored = std::mem::take(&mut report.ignored);
        for running in signals {
            let name = running.name;
            let Running { signal, counters, loaded, skipped, made_up, .. } = running;
            let mut lost = |place, count, remedy| {
                lose(report, stats, name, place, count, remedy);
                if let Some((time_unix_ns, events)) = &mut say {
                    let time_unix_ns = *time_unix_ns;
                    events.push(Event::Loss(Loss { time_unix_ns, signal: name, place, count, remedy }));
                }
            };
            // Before the counters, so that nothing is missing that is already made up for.
            let skipped_runs = loaded.skipped_runs();
            let read = counters.deltas(|counter: Counter, delta| {
                signal.counted(counter, delta);
                let place = counter.place();
                if counter == Counter::MadeUp {
                    *made_up += delta;
                }
                if let Some(map) = full_map(counter) {
                    stats.add(metrics::PROBE_MAP_INSERT_FAILURES, &[attr(key::MAP, map)], delta);
                }
                if is_ignored(counter) {
                    *ignored.entry(place).or_default() += delta;
                    let attrs = [attr(key::SIGNAL, name), attr(key::WHERE, place)];
                    stats.add(metrics::PROBE_PACKETS_IGNORED, &attrs, delta);
                }
                if let Some(remedy) = counter.remedy() {
                    lost(place, delta, remedy);
                }
            });
            if let Err(error) = read {
                tracing::warn!(signal = name, %error, "the loss counters do not read");
            }
            for (counter, count) in signal.lost() {
                if let Some(remedy) = counter.remedy().filter(|_| count != 0) {
                    lost(counter.place(), count, remedy);
                }
            }
            let missing = skipped_runs.saturating_sub(*made_up);
            if missing > *skipped {
                lost(SKIPPED, missing - *skipped, SKIPPED_REMEDY);
                *skipped = missing;
            }
        }
        report.ignored = ignored;
    }
}

/// The next question or change; never, where nobody can send one.
async fn next<T>(queue: &mut Option<mpsc::Receiver<T>>) -> T {
    if let Some(queue) = queue
        && let Some(sent) = queue.recv().await
    {
        return sent;
    }
    std::future::pending().await
}

/// The map that did not take an entry whenever a counter rose; [`Signal::fill`] calls it the same.
const fn full_map(counter: Counter) -> Option<&'static str> {
    match counter {
        Counter::SocketsFull
        | Counter::ListenersFull
        | Counter::TotalsFull
        | Counter::HandshakesFull
        | Counter::SegmentsFull
        | Counter::PendingFull
        | Counter::SleepersFull
        | Counter::ProcessesFull => Some(counter.place()),
        // No block for a process; those lost altogether were counted here as well.
        Counter::CallsFolded => Some(Counter::CallsLost.place()),
        Counter::Produced
        | Counter::RingFull
        | Counter::KernelRead
        | Counter::DnsStreams
        | Counter::DnsMalformed
        | Counter::DnsOrphans
        | Counter::MadeUp
        | Counter::CallsLost => None,
    }
}

/// Whether a counter is of packets that are nothing to report by themselves.
const fn is_ignored(counter: Counter) -> bool {
    matches!(counter, Counter::DnsMalformed | Counter::DnsOrphans)
}

/// Counts a loss.
fn lose(
    report: &mut Report,
    stats: &SelfStats,
    signal: &'static str,
    place: &'static str,
    count: u64,
    remedy: &'static str,
) {
    report.losses.entry((signal, place)).or_insert((0, remedy)).0 += count;
    stats.add(metrics::PROBE_EVENTS_LOST, &[attr(key::SIGNAL, signal), attr(key::WHERE, place)], count);
}

fn hand_over(sink: &mut dyn Sink, events: &[Event]) -> io::Result<Flow> {
    for event in events {
        if sink.event(event)? == Flow::Enough {
            return Ok(Flow::Enough);
        }
    }
    Ok(Flow::More)
}
