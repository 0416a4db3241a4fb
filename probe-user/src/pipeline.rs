//! The way data takes: rings and maps → signals → series and events → sinks. One task; nothing waits but at its top.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use probe_common::fields::FIELDS;
use probe_common::loss::Counter;
use probe_common::settings::{FILTER_CGROUP, FILTER_COMM, FILTER_TGID, Settings};
use tokio::signal::unix::{SignalKind as UnixSignal, signal};

use crate::collect::{Ring, woken};
use crate::config::{CgroupFilter, Config};
use crate::doctor::{Diagnosis, Host, diagnose};
use crate::entity::{Entities, ProcessLimits, Processes, sees_host_pids};
use crate::event::key;
use crate::kernel::btf::{BtfError, KernelBtf};
use crate::kernel::cgroup::{Cgroup, CgroupError, CgroupRoot, TreeLimits};
use crate::kernel::clock::{self, Clock};
use crate::kernel::conntrack::{Conntrack, ConntrackError};
use crate::kernel::features::Features;
use crate::kernel::fields::{Resolved, resolve};
use crate::kernel::least::{self, Plan, Uses};
use crate::kernel::privileges::{self, PrivilegeError};
use crate::load::{self, Counters, LoadError, Loaded, Loader, SettingsMap};
use crate::series::{Limits, Store, attr, metrics};
use crate::signals::{Context, Event, Loss, Owners, Signal, SignalKind, Summary, next_interval};
use crate::telemetry::SelfStats;

/// How often rings are looked into without a wake-up: how old a live line can get.
const DRAIN_PERIOD: Duration = Duration::from_millis(100);
/// How often maps are looked after.
const TICK_PERIOD: Duration = Duration::from_millis(250);
/// Records taken from one ring before the others have their turn.
const BATCH: usize = 4096;
/// Turns of all rings before everything else has its own: the clock, the end, ticks and exports.
const TURNS: usize = 4;
/// Where runs of programs get lost that the kernel skips.
const SKIPPED: &str = "programs";
const SKIPPED_REMEDY: &str = "`probe doctor` says where it can be helped: the kernel skips a program on a CPU that is inside it; figures are short by at most so many";
/// How much of a ring fills before the programs wake us.
const WAKE_SHARE: u32 = 4;

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

    /// An interval has ended.
    ///
    /// # Errors
    ///
    /// As [`Self::event`].
    fn interval(&mut self, summaries: &[Summary], store: &mut Store, now_unix_ns: u64) -> io::Result<()>;

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

/// Why a pipeline does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Capabilities are missing.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// The kernel's BTF does not read.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A signal does not load or attach.
    #[error("{signal}: {diagnosis}")]
    Signal {
        /// Which.
        signal: &'static str,
        /// Why, and what would help.
        diagnosis: Diagnosis,
    },
    /// The root of cgroup v2 is not to be had.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Connection tracking was to be asked, and does not answer.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// The filter names nothing.
    #[error("{0}")]
    Filter(String),
}

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

impl Pipeline {
    /// Loads and attaches the signals of `kinds`. With `degrade`, those that this host cannot run are left out with a
    /// warning, as long as one remains; without, each must run. Gives up what privileges that takes.
    ///
    /// To be called while the process has one thread, so before there is a runtime: capabilities belong to threads, and
    /// those that exist would keep theirs.
    ///
    /// # Errors
    ///
    /// What is missing, and what would help.
    pub fn start(
        config: &Config,
        kinds: &[&'static dyn SignalKind],
        degrade: bool,
        stats: Arc<SelfStats>,
    ) -> Result<Self, StartError> {
        // All at once: who grants one capability should not have to come back for the next.
        privileges::check(kinds.iter().fold(0, |signals, kind| signals | kind.object().bit))?;
        load::raise_memlock();
        let fields = resolve_fields(config)?;
        let wants_cgroup = kinds.iter().any(|kind| kind.object().needs_cgroup());
        let cgroup = match CgroupRoot::find() {
            Err(error) if wants_cgroup && !degrade => return Err(error.into()),
            found => found.inspect_err(|error| tracing::warn!("{error}")),
        };
        let filter = filter_settings(config, cgroup.as_ref().ok())?;

        let mut signals = Vec::new();
        let mut refused = None;
        let mut loader = Loader::new(&fields, &config.program_log_level);
        for kind in kinds {
            match start_signal(*kind, config, &mut loader, cgroup.as_ref().ok(), filter) {
                Ok(running) => signals.push(running),
                Err(error) => {
                    let signal = kind.object().name;
                    let diagnosis = diagnose(&error, &Host::look(), cgroup.as_ref().err());
                    if !degrade {
                        return Err(StartError::Signal { signal, diagnosis });
                    }
                    tracing::warn!("{signal} is off: {diagnosis}");
                    refused = Some(StartError::Signal { signal, diagnosis });
                }
            }
        }
        if let (true, Some(error)) = (signals.is_empty(), refused) {
            return Err(error);
        }
        let cgroup = cgroup.ok();
        let conntrack = config.tcp.nat.then(Conntrack::open).transpose()?;
        give_back_privileges(&signals, conntrack.is_some());
        let clock = Clock::new();
        let now = clock.wall(clock::monotonic_ns());
        let tree = Entities::new(cgroup.as_ref().map(|root| root.path.as_path()), TreeLimits::default());
        Ok(Self {
            signals,
            owners: Owners::new(tree, Processes::new(ProcessLimits::default())).with_conntrack(conntrack),
            clock,
            store: Store::new(Limits::default(), now),
            stats,
            report: Report::default(),
            interval: config.interval,
            first: config.interval,
            duration: config.duration,
            _cgroup: cgroup,
        })
    }

    /// Names of the signals that run.
    #[must_use]
    pub fn signals(&self) -> Vec<&'static str> {
        self.signals.iter().map(|running| running.name).collect()
    }

    /// Makes the first interval shorter, so that many agents started together do not all export together.
    pub fn begin_with(&mut self, first: Duration) {
        self.first = first.min(self.interval);
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
        let begun = Instant::now();
        let end = self.duration.map(|duration| begun + duration);
        let mut drain = tokio::time::interval(DRAIN_PERIOD);
        drain.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut next_tick = begun + TICK_PERIOD;
        let mut next_interval = begun + self.first;
        let mut stop = false;
        let mut more = false;
        while !stop {
            let rings: Vec<&Ring> = self.signals.iter().map(|running| &running.ring).collect();
            tokio::select! {
                // The end first, and no waiting at all while the rings hold more.
                biased;
                _ = interrupt.recv() => stop = true,
                _ = terminate.recv() => stop = true,
                () = tokio::task::yield_now(), if more => {}
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
        Ok(self.report.clone())
    }

    /// Ends the programs, then empties the rings: what they have produced is either delivered or counted as lost.
    fn drain_to_the_end(&mut self, sink: &mut dyn Sink) -> io::Result<Flow> {
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
            let mut full = false;
            let mut events = Vec::new();
            for running in &mut self.signals {
                let Running { name, signal, ring, logger, .. } = running;
                let mut keep = |event| events.push(event);
                let mut context = Context {
                    clock: &self.clock,
                    owners: &mut self.owners,
                    store: &mut self.store,
                    events: sink.wants_events().then_some(&mut keep),
                };
                let mut refused = 0;
                let taken = ring.drain(BATCH, |bytes| {
                    if let Err(error) = signal.record(bytes, &mut context) {
                        refused += 1;
                        tracing::debug!(signal = name, %error, "record not understood");
                    }
                });
                full |= taken == BATCH;
                let taken = u64::try_from(taken).unwrap_or(u64::MAX) - refused;
                if taken != 0 {
                    *self.report.records.entry(name).or_default() += taken;
                    self.stats.add(metrics::PROBE_EVENTS, &[attr(key::SIGNAL, *name)], taken);
                }
                if refused != 0 {
                    lose(
                        &mut self.report,
                        &self.stats,
                        name,
                        "decode",
                        refused,
                        "report it: `probe doctor -o json`",
                    );
                }
                if let Some(logger) = logger {
                    logger.flush();
                }
            }
            if hand_over(sink, &events)? == Flow::Enough {
                return Ok((Flow::Enough, false));
            }
            if !full {
                return Ok((Flow::More, false));
            }
        }
        Ok((Flow::More, true))
    }

    /// Looks after the maps, and says what was lost.
    fn tick(&mut self, sink: &mut dyn Sink) -> io::Result<Flow> {
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
            summaries.push(running.signal.interval(next, &mut context)?);
            for (map, entries, limit) in running.signal.fill()? {
                let attrs = [attr(key::MAP, map)];
                self.stats.set(metrics::PROBE_MAP_ENTRIES, &attrs, entries);
                self.stats.set(metrics::PROBE_MAP_LIMIT, &attrs, limit);
            }
        }
        events.append(&mut losses);
        self.stats.observe_series(&self.store);
        let flow = hand_over(sink, &events)?;
        sink.interval(&summaries, &mut self.store, now)?;
        Ok(flow)
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
            let missing = skipped_runs.saturating_sub(*made_up);
            if missing > *skipped {
                lost(SKIPPED, missing - *skipped, SKIPPED_REMEDY);
                *skipped = missing;
            }
        }
        report.ignored = ignored;
    }
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

/// Offsets of everything the programs read, on this host.
///
/// # Errors
///
/// When there is no BTF, or it does not parse.
pub fn resolve_fields(config: &Config) -> Result<Resolved, BtfError> {
    let btf = match &config.btf {
        Some(path) => KernelBtf::from_file(path)?,
        None => KernelBtf::from_host()?,
    };
    Ok(resolve(&btf, FIELDS))
}

fn start_signal(
    kind: &'static dyn SignalKind,
    config: &Config,
    loader: &mut Loader<'_>,
    cgroup: Option<&CgroupRoot>,
    filter: Settings,
) -> Result<Running, LoadError> {
    let object = kind.object();
    let sizes = kind.sizes(config);
    let mut loaded = loader.load(object, &sizes)?;
    let mut settings = filter;
    let ring_bytes = sizes.iter().find(|(map, _)| *map == "RING").map_or(0, |(_, bytes)| *bytes);
    settings.wake_bytes = ring_bytes / WAKE_SHARE;
    kind.settings(config, &mut settings);
    let mut settings_map = loaded.take_settings()?;
    settings_map.set(&settings)?;
    let signal = kind.start(config, loader.fields(), &mut loaded)?;
    let ring = Ring::new(loaded.take_ring()?);
    let counters = loaded.take_counters()?;
    let logger = if config.program_log_level == 0 { None } else { loaded.logger() };
    // Last: from here on the programs run.
    loaded.attach(cgroup)?;
    if let Err(error) = loaded.look_for_older(loader.fields()) {
        tracing::warn!(
            "{error}; connections that began before have no owner, and their segments are not counted"
        );
    }
    if let Some(error) = loaded.attached().iter().find_map(|attached| attached.fallback.as_ref()) {
        tracing::warn!(
            "{error}; so the kernel may skip programs, and what it skips is counted as lost at {SKIPPED}"
        );
    }
    Ok(Running {
        name: object.name,
        signal,
        ring,
        counters,
        settings,
        settings_map,
        logger,
        skipped: 0,
        made_up: 0,
        loaded,
    })
}

/// What was needed to load and attach is not needed to run. A host that does not allow giving it back runs all the same.
fn give_back_privileges(signals: &[Running], conntrack: bool) {
    let given_back = || -> io::Result<Plan> {
        let read = |running: &Running| least::reads_without(|| running.counters.try_read());
        let read = signals.first().map_or(Ok(true), read)?;
        let plan = Plan::make(Uses::new(sees_host_pids(), conntrack, read, &Features::of_this_host()))?;
        plan.carry_out()?;
        Ok(plan)
    };
    match given_back() {
        Ok(Plan { keeps, drops: _, bounding: _ }) => {
            let kept: Vec<String> = keeps.iter().map(|kept| kept.capability.to_string()).collect();
            tracing::debug!(?kept, "capabilities given back");
        }
        Err(error) => tracing::warn!("capabilities that are no longer needed stay: {error}"),
    }
}

/// The filter as the programs apply it.
fn filter_settings(config: &Config, root: Option<&CgroupRoot>) -> Result<Settings, StartError> {
    let mut settings = Settings::DEFAULT;
    if let Some(pid) = config.filter.pid {
        settings.filters |= FILTER_TGID;
        settings.tgid = pid;
    }
    if let Some(comm) = config.filter.comm {
        settings.filters |= FILTER_COMM;
        settings.comm = comm;
    }
    if let Some(filter) = &config.filter.cgroup {
        let root = root.ok_or_else(|| {
            StartError::Filter(
                "--cgroup and --container need the host's cgroup v2 mount, and there is none".to_owned(),
            )
        })?;
        let cgroup = match filter {
            CgroupFilter::Path(path) => root.locate(path)?,
            CgroupFilter::Container(prefix) => find_container(root, prefix)?,
        };
        settings.filters |= FILTER_CGROUP;
        settings.cgroup_id = cgroup.id;
        settings.cgroup_level = cgroup.level;
    }
    Ok(settings)
}

/// The cgroup of the one container whose id begins with `prefix`.
fn find_container(root: &CgroupRoot, prefix: &str) -> Result<Cgroup, StartError> {
    let containers = crate::entity::containers_below(&root.path);
    let matching: BTreeMap<&str, _> = containers
        .iter()
        .filter(|(id, _)| id.starts_with(prefix))
        .map(|(id, path)| (id.as_str(), path))
        .collect();
    let mut found = matching.iter();
    match (found.next(), found.next()) {
        (Some((_, path)), None) => Ok(root.locate(path)?),
        (None, _) => {
            let known: Vec<&str> = containers.keys().map(|id| id.get(..12).unwrap_or(id)).take(20).collect();
            let known = if known.is_empty() {
                "there is none".to_owned()
            } else {
                format!("there are {}", known.join(", "))
            };
            Err(StartError::Filter(format!("--container {prefix}: no container's id begins so; {known}")))
        }
        (Some(_), Some(_)) => {
            let ids: Vec<&str> = matching.keys().map(|id| id.get(..16).unwrap_or(id)).collect();
            Err(StartError::Filter(format!("--container {prefix}: several begin so: {}", ids.join(", "))))
        }
    }
}
