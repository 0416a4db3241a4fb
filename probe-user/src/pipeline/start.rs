//! The start of a pipeline: what it takes, what it loads, and what it gives back once that is done.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use probe_common::fields::FIELDS;
use probe_common::settings::{FILTER_CGROUP, FILTER_COMM, FILTER_TGID, Settings};

use super::{Pipeline, Report, Running, SKIPPED};
use crate::collect::Ring;
use crate::config::{CgroupFilter, Config, PinConfig};
use crate::doctor::{Diagnosis, Host, diagnose};
use crate::entity::kube::{KubeletConfig, Pod, pods_now};
use crate::entity::{Directory, Entities, ProcessLimits, Processes, sees_host_pids};
use crate::handover::{Handover, Identity};
use crate::kernel::btf::{BtfError, KernelBtf};
use crate::kernel::cgroup::{Cgroup, CgroupError, CgroupRoot, TreeLimits};
use crate::kernel::clock::{self, Clock};
use crate::kernel::conntrack::{Conntrack, ConntrackError};
use crate::kernel::features::Features;
use crate::kernel::fields::{Resolved, resolve};
use crate::kernel::least::{self, Plan, Uses};
use crate::kernel::privileges::{self, PrivilegeError};
use crate::load::{self, Left, LoadError, Loader, PinError, Pins, RunStats, RunStatsError};
use crate::series::{Limits, Store};
use crate::signals::cgroups::Cgroups;
use crate::signals::names::Names;
use crate::signals::tcp::Tcp;
use crate::signals::{Owners, SignalKind};
use crate::telemetry::SelfStats;

/// How much of a ring fills before the programs wake us.
const WAKE_SHARE: u32 = 4;

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
    /// The kernel was to count runs of programs, and does not.
    #[error(transparent)]
    RunStats(#[from] RunStatsError),
    /// The filter names nothing.
    #[error("{0}")]
    Filter(String),
    /// Nothing can be pinned, or taken over.
    #[error(transparent)]
    Pin(#[from] PinError),
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
        let conntrack = config.tcp.nat.then(Conntrack::open).transpose()?;
        let run_stats =
            config.program_stats.then(|| RunStats::ask(Features::of_this_host().bpf_stats)).transpose()?;
        load::raise_memlock();
        let fields = resolve_fields(config)?;
        let wants_cgroup = kinds.iter().any(|kind| kind.object().needs_cgroup());
        let cgroup = match CgroupRoot::find() {
            Err(error) if wants_cgroup && !degrade => return Err(error.into()),
            found => found.inspect_err(|error| tracing::warn!("{error}")),
        };
        let filter = filter_settings(config, cgroup.as_ref().ok())?;
        let (pins, left) = match &config.pin {
            Some(pin) => Some(predecessor(pin, config, kinds, &fields)?).unzip(),
            None => (None, None),
        };
        let left = left.flatten();

        let mut signals = Vec::new();
        let mut refused = None;
        let mut loader =
            Loader::new(&fields, &config.program_log_level).with_pins(pins.as_ref(), left.is_some());
        let mut start =
            Start { config, loader: &mut loader, cgroup: cgroup.as_ref().ok(), filter, left: left.as_ref() };
        for kind in kinds {
            match start.signal(*kind) {
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
        if config.tcp.names && signals.iter().any(|running| running.name == Tcp.object().name) {
            signals.extend(start.names());
        }
        signals.extend(start.cgroups());
        drop(loader);
        let cgroup = cgroup.ok();
        let root = cgroup.as_ref().map(|root| root.path.as_path());
        let mut entities = Entities::new(root, TreeLimits::default());
        if let Some(left) = &left {
            entities.go_on_cgroups(&left.cgroups);
        }
        // From here on programs tell what is new. While directories still open that only their owners may enter.
        entities.note_cgroups(Instant::now());
        give_back_privileges(&signals, conntrack.is_some());
        let clock = Clock::new();
        let now = clock.wall(clock::monotonic_ns());
        let kubelet = config.kubelet.clone().map(|kubelet| (kubelet, Arc::new(Directory::default())));
        let entities = entities.with_kube(kubelet.as_ref().map(|(_, directory)| Arc::clone(directory)));
        let mut store = Store::new(Limits::with_interval(config.interval), now);
        if let Some(left) = &left {
            for (entity, owner) in entities.go_on(&left.owners) {
                store.go_on(&entity, &owner.series, left.collected_unix_ns);
            }
        }
        let pins = pins.map(|mut pins| {
            pins.commit();
            pins
        });
        let own_instance = config.pin.as_ref().map(|pin| pin.instance.clone()).unwrap_or_default();
        Ok(Self {
            signals,
            owners: Owners::new(entities, Processes::new(ProcessLimits::default())).with_conntrack(conntrack),
            clock,
            store,
            stats,
            report: Report::default(),
            interval: config.interval,
            first: config.interval,
            duration: config.duration,
            visits: None,
            kubelet,
            run_stats,
            changes: None,
            pins,
            is_successor: left.is_some(),
            instance: left.map_or(own_instance, |left| left.instance),
            _cgroup: cgroup,
        })
    }
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

/// Locks the directory of pins, and says what an earlier agent has left there that can be taken over. Where that cannot be, everything
/// there is removed.
fn predecessor(
    pin: &PinConfig,
    config: &Config,
    kinds: &[&'static dyn SignalKind],
    fields: &Resolved,
) -> Result<(Pins, Option<Handover>), PinError> {
    let auxiliary: [&'static dyn SignalKind; 2] = [&Names, &Cgroups];
    let wanted = |kind: &&dyn SignalKind| config.tcp.names || kind.object().name != Names.object().name;
    let kinds: Vec<_> = kinds.iter().copied().chain(auxiliary.into_iter().filter(wanted)).collect();
    let sizes: Vec<_> = kinds.iter().map(|kind| kind.sizes(config)).collect();
    let objects = kinds.iter().map(|kind| kind.object()).zip(sizes.iter().map(Vec::as_slice));
    let identity = Identity::new(objects, bytemuck::cast_slice(&fields.slots), &[config.program_log_level]);
    let mut pins = Pins::open(&pin.directory, kinds.iter().map(|kind| kind.object()))?;
    let at = pins.directory().display().to_string();
    let left = match pins.look()? {
        Left::Nothing => None,
        Left::Orphans => {
            tracing::warn!(
                "{at}: the agent that pinned this left no totals (it was killed, or is of another version): beginning anew"
            );
            None
        }
        Left::All { identity: other, state } => match (identity.differs(&other), Handover::unpack(&state)) {
            (None, Some(left)) => {
                tracing::info!("{at}: going on where the agent before has left");
                Some(left)
            }
            (differs, _) => {
                let why = differs.unwrap_or("what it has left cannot be read");
                tracing::warn!(
                    "{at}: what the agent before has left cannot be taken over: {why}. Beginning anew: totals begin at zero, and \
                     what happened since that one ended is not counted"
                );
                None
            }
        },
    };
    if left.is_none() {
        pins.begin(identity.as_str())?;
    }
    Ok((pins, left))
}

/// What starting a signal takes.
struct Start<'a, 'b> {
    config: &'a Config,
    loader: &'a mut Loader<'b>,
    cgroup: Option<&'a CgroupRoot>,
    filter: Settings,
    /// What an earlier agent has left.
    left: Option<&'a Handover>,
}

impl Start<'_, '_> {
    /// One that does not start leaves nothing pinned.
    fn signal(&mut self, kind: &'static dyn SignalKind) -> Result<Running, LoadError> {
        let started = self.try_signal(kind);
        if started.is_err() {
            self.loader.forget(kind.object());
        }
        started
    }

    fn try_signal(&mut self, kind: &'static dyn SignalKind) -> Result<Running, LoadError> {
        let Self { config, loader, cgroup, filter, left } = self;
        let object = kind.object();
        let sizes = kind.sizes(config);
        let mut loaded = loader.load(object, &sizes)?;
        let broken = LoadError::Broken { signal: object.name, part: "state left for it" };
        let left = match loaded.is_adopted() {
            true => Some(left.and_then(|left| left.signal(object.name)).ok_or(broken)?),
            false => None,
        };
        let mut settings = *filter;
        let ring_bytes = sizes.iter().find(|(map, _)| *map == "RING").map_or(0, |(_, bytes)| *bytes);
        settings.wake_bytes = ring_bytes / WAKE_SHARE;
        kind.settings(config, &mut settings);
        settings.interval = left.map_or(settings.interval, |left| left.interval);
        let mut settings_map = loaded.take_settings()?;
        settings_map.set(&settings)?;
        let mut signal = kind.start(config, loader.fields(), &mut loaded)?;
        let ring = Ring::new(loaded.take_ring()?);
        let mut counters = loaded.take_counters()?;
        if let Some(left) = left {
            counters.go_on(&left.counters);
            signal
                .go_on(left.interval, &left.entries)
                .map_err(|_wrong| LoadError::Broken { signal: object.name, part: "state left for it" })?;
        }
        let logger = if config.program_log_level == 0 { None } else { loaded.logger() };
        if left.is_none() {
            // Last: from here on the programs run.
            loaded.attach(*cgroup)?;
            if let (Err(error), Some(older)) = (loaded.look_for_older(loader.fields()), object.older) {
                tracing::warn!("{error}; {}", older.without);
            }
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
            skipped: left.map_or(0, |left| left.skipped),
            made_up: left.map_or(0, |left| left.made_up),
            loaded,
        })
    }

    /// Names of peers, where this process may attach to cgroups and has one to attach to; nothing else depends on them.
    fn names(&mut self) -> Option<Running> {
        // Nobody asked for them: what this host or process does without on purpose is no warning.
        if self.cgroup.is_none() {
            tracing::info!("peers have no names: there is no cgroup v2");
            return None;
        }
        if let Err(error) = privileges::check(Names.object().bit) {
            tracing::info!("peers have no names: {error}");
            return None;
        }
        match self.signal(&Names) {
            Ok(running) => Some(running),
            Err(error) => {
                tracing::warn!("peers have no names: {}", diagnose(&error, &Host::look(), None));
                None
            }
        }
    }

    /// Names of cgroups as they are made, where there is a hierarchy to have them; nothing else depends on them.
    fn cgroups(&mut self) -> Option<Running> {
        // Without v2 its ids mean nothing here.
        self.cgroup?;
        match self.signal(&Cgroups) {
            Ok(running) => Some(running),
            Err(error) => {
                let diagnosis = diagnose(&error, &Host::look(), None);
                tracing::warn!("containers that live for less than a second may have no name: {diagnosis}");
                None
            }
        }
    }
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
                "--cgroup, --container and --pod need the host's cgroup v2 mount, and there is none"
                    .to_owned(),
            )
        })?;
        let cgroup = match filter {
            CgroupFilter::Path(path) => root.locate(path)?,
            CgroupFilter::Container(prefix) => find_container(root, prefix)?,
            CgroupFilter::Pod(namespace, name) => find_pod(root, namespace, name, config.kubelet.as_ref())?,
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

/// The cgroup of a pod: its uid is the kubelet's word, and its cgroup is named after that.
fn find_pod(
    root: &CgroupRoot,
    namespace: &str,
    name: &str,
    kubelet: Option<&KubeletConfig>,
) -> Result<Cgroup, StartError> {
    let refuse = |why: String| StartError::Filter(format!("--pod {namespace}/{name}: {why}"));
    let kubelet = kubelet.ok_or_else(|| {
        refuse("no kubelet to ask; say where it is: --kubelet https://NODE-IP:10250".to_owned())
    })?;
    let list = pods_now(kubelet).map_err(|error| refuse(format!("{}: {error}", kubelet.url)))?;
    let is_it = |pod: &&Pod| *pod.names.namespace == *namespace && *pod.names.pod == *name;
    let Some(pod) = list.pods.iter().find(is_it) else {
        let name = |pod: &Pod| format!("{}/{}", pod.names.namespace, pod.names.pod);
        let known: Vec<String> = list.pods.iter().map(name).take(20).collect();
        let known = if known.is_empty() {
            "there is none".to_owned()
        } else {
            format!("there are {}", known.join(", "))
        };
        return Err(refuse(format!("no pod of this node is called so; {known}")));
    };
    let cgroups = crate::entity::pods_below(&root.path);
    let path = pod.uids.iter().find_map(|uid| cgroups.get(&**uid));
    let path = path.ok_or_else(|| refuse("it has no cgroup here (v2): has it ended?".to_owned()))?;
    Ok(root.locate(path)?)
}
