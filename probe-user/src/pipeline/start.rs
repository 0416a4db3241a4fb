//! The start of a pipeline: what it takes, what it loads, and what it gives back once that is done.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use probe_common::fields::FIELDS;
use probe_common::settings::{FILTER_CGROUP, FILTER_COMM, FILTER_TGID, Settings};

use super::{Pipeline, Report, Running, SKIPPED};
use crate::collect::Ring;
use crate::config::{CgroupFilter, Config};
use crate::doctor::{Diagnosis, Host, diagnose};
use crate::entity::kube::{KubeletConfig, Pod, pods_now};
use crate::entity::{Directory, Entities, ProcessLimits, Processes, sees_host_pids};
use crate::kernel::btf::{BtfError, KernelBtf};
use crate::kernel::cgroup::{Cgroup, CgroupError, CgroupRoot, TreeLimits};
use crate::kernel::clock::{self, Clock};
use crate::kernel::conntrack::{Conntrack, ConntrackError};
use crate::kernel::features::Features;
use crate::kernel::fields::{Resolved, resolve};
use crate::kernel::least::{self, Plan, Uses};
use crate::kernel::privileges::{self, PrivilegeError};
use crate::load::{self, LoadError, Loader, RunStats, RunStatsError};
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
        if config.tcp.names && signals.iter().any(|running| running.name == Tcp.object().name) {
            signals.extend(start_names(config, &mut loader, cgroup.as_ref().ok(), filter));
        }
        signals.extend(start_cgroups(config, &mut loader, cgroup.as_ref().ok(), filter));
        let cgroup = cgroup.ok();
        let root = cgroup.as_ref().map(|root| root.path.as_path());
        let mut entities = Entities::new(root, TreeLimits::default());
        // From here on programs tell what is new. While directories still open that only their owners may enter.
        entities.note_cgroups(Instant::now());
        give_back_privileges(&signals, conntrack.is_some());
        let clock = Clock::new();
        let now = clock.wall(clock::monotonic_ns());
        let kubelet = config.kubelet.clone().map(|kubelet| (kubelet, Arc::new(Directory::default())));
        Ok(Self {
            signals,
            owners: Owners::new(
                entities.with_kube(kubelet.as_ref().map(|(_, directory)| Arc::clone(directory))),
                Processes::new(ProcessLimits::default()),
            )
            .with_conntrack(conntrack),
            clock,
            store: Store::new(Limits::with_interval(config.interval), now),
            stats,
            report: Report::default(),
            interval: config.interval,
            first: config.interval,
            duration: config.duration,
            visits: None,
            kubelet,
            run_stats,
            changes: None,
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
    if let (Err(error), Some(older)) = (loaded.look_for_older(loader.fields()), object.older) {
        tracing::warn!("{error}; {}", older.without);
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

/// Names of peers, where this process may attach to cgroups and has one to attach to; nothing else depends on them.
fn start_names(
    config: &Config,
    loader: &mut Loader<'_>,
    cgroup: Option<&CgroupRoot>,
    filter: Settings,
) -> Option<Running> {
    // Nobody asked for them: what this host or process does without on purpose is no warning.
    let Some(cgroup) = cgroup else {
        tracing::info!("peers have no names: there is no cgroup v2");
        return None;
    };
    if let Err(error) = privileges::check(Names.object().bit) {
        tracing::info!("peers have no names: {error}");
        return None;
    }
    match start_signal(&Names, config, loader, Some(cgroup), filter) {
        Ok(running) => Some(running),
        Err(error) => {
            tracing::warn!("peers have no names: {}", diagnose(&error, &Host::look(), None));
            None
        }
    }
}

/// Names of cgroups as they are made, where there is a hierarchy to have them; nothing else depends on them.
fn start_cgroups(
    config: &Config,
    loader: &mut Loader<'_>,
    cgroup: Option<&CgroupRoot>,
    filter: Settings,
) -> Option<Running> {
    // Without v2 its ids mean nothing here.
    let cgroup = cgroup?;
    match start_signal(&Cgroups, config, loader, Some(cgroup), filter) {
        Ok(running) => Some(running),
        Err(error) => {
            let diagnosis = diagnose(&error, &Host::look(), None);
            tracing::warn!("containers that live for less than a second may have no name: {diagnosis}");
            None
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
