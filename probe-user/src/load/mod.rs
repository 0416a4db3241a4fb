//! From a BPF object to attached programs: the one place that calls bpf(2) to load, attach and read maps.
//!
//! Unless it is asked for ([`Pins`]) nothing is pinned: programs, maps and links live as long as this process's descriptors, so
//! however it dies, the kernel takes them back.

mod batch;
mod blocks;
mod error;
mod knock;
mod pins;
mod plain;
mod stats;
mod walk;

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, Queue, RingBuf};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSkbAttachType, Program};
use aya::{Ebpf, EbpfLoader};
use bytemuck::Pod;
use probe_common::fields::Field;
use probe_common::loss::Counter;
use probe_common::settings::Settings;

pub use self::batch::{count_entries, lookup_batch, lookup_batch_per_cpu};
pub use self::blocks::Blocks;
pub use self::error::LoadError;
pub use self::knock::bpf_answers;
pub use self::pins::{Left, PIN_DIRECTORY, PinError, Pins};
pub use self::plain::Plain;
pub use self::stats::{RunStats, RunStatsError};
pub use self::walk::Walk;
use crate::kernel::bpf::Bpf;
use crate::kernel::cgroup::CgroupRoot;
use crate::kernel::fields::Resolved;
use crate::kernel::runs::{self, Runs};

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A raw tracepoint by name.
    RawTracepoint(&'static str),
    /// A tracepoint as perf_event_open(2) offers it: category and name. It keeps preemption off, costs more than a raw one, and
    /// takes tracefs.
    PerfTracepoint(&'static str, &'static str),
    /// Packets that leave the sockets of every cgroup.
    CgroupEgress,
    /// Packets that reach the sockets of every cgroup.
    CgroupIngress,
    /// A socket-address hook of every cgroup; which one, the program's section says.
    CgroupSockAddr,
    /// The open files of all processes, walked over once.
    OpenFiles,
    /// The entries of a map, walked over whenever asked.
    MapEntries,
    /// All threads, likewise.
    Tasks,
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RawTracepoint(name) => write!(f, "raw tracepoint {name}"),
            Self::PerfTracepoint(category, name) => write!(f, "perf tracepoint {category}:{name}"),
            Self::CgroupEgress => f.write_str("egress of the root cgroup"),
            Self::CgroupIngress => f.write_str("ingress of the root cgroup"),
            Self::CgroupSockAddr => f.write_str("socket addresses of the root cgroup"),
            Self::OpenFiles => f.write_str("the open files of all processes"),
            Self::MapEntries => f.write_str("the entries of a map"),
            Self::Tasks => f.write_str("all threads"),
        }
    }
}

/// One program of an object.
#[derive(Clone, Copy, Debug)]
pub struct ProgramSpec {
    /// Its name in the object.
    pub name: &'static str,
    /// Where it goes.
    pub hook: Hook,
    /// What takes its place on kernels that let programs at raw tracepoints lose their CPU ([`Bpf::preempts_programs`]), where
    /// it can be had: name and hook.
    pub perf: Option<(&'static str, Hook)>,
    /// Name of the one that, on such kernels, comes behind it at the same hook and makes up for runs that are skipped.
    pub backup: Option<&'static str>,
    /// Index of the field without which this kernel has nothing for it to do: it is then left out. What is lost, doctor says of
    /// the field.
    pub needs: Option<usize>,
}

impl ProgramSpec {
    /// A program that nothing takes the place of.
    #[must_use]
    pub const fn new(name: &'static str, hook: Hook) -> Self {
        Self { name, hook, perf: None, backup: None, needs: None }
    }

    /// A program at the raw tracepoint of its name.
    #[must_use]
    pub const fn raw(name: &'static str) -> Self {
        Self::new(name, Hook::RawTracepoint(name))
    }

    /// The one that takes its place, at perf's tracepoint of the same name.
    #[must_use]
    pub const fn perf(mut self, name: &'static str, category: &'static str) -> Self {
        self.perf = Some((name, Hook::PerfTracepoint(category, self.name)));
        self
    }

    /// The one behind it.
    #[must_use]
    pub const fn backup(mut self, name: &'static str) -> Self {
        self.backup = Some(name);
        self
    }

    /// It is for kernels that have this field.
    #[must_use]
    pub const fn needs<T>(mut self, field: Field<T>) -> Self {
        self.needs = Some(field.index);
        self
    }

    /// Whether a kernel has what it needs.
    #[must_use]
    pub fn has_work(&self, fields: &Resolved) -> bool {
        let present = |index: usize| fields.slots.get(index).is_some_and(|slot| slot.present != 0);
        self.needs.is_none_or(present)
    }

    /// Names of the program and, where the kernel lets programs lose their CPU, of those that stand in for it.
    pub fn names(&self, preempts_programs: bool) -> impl Iterator<Item = &'static str> {
        let stand_ins = [self.perf.map(|(name, _)| name), self.backup];
        let stand_ins = stand_ins.into_iter().flatten().filter(move |_| preempts_programs);
        std::iter::once(self.name).chain(stand_ins)
    }
}

/// A program that is attached.
#[derive(Debug)]
pub struct Attached {
    /// What it is for.
    pub spec: &'static ProgramSpec,
    /// Where it is.
    pub hook: Hook,
    /// Why the one that was to take its place does not.
    pub fallback: Option<LoadError>,
    /// What keeps it attached.
    _links: Vec<Link>,
}

type Link = Box<dyn Any + Send>;

/// One BPF object: the programs and maps of one signal.
#[derive(Clone, Copy, Debug)]
pub struct ObjectSpec {
    /// Name of the signal.
    pub name: &'static str,
    /// The signal's bit in `probe_common::fields::FieldSpec::required_by`.
    pub bit: u8,
    /// The ELF.
    pub elf: &'static [u8],
    /// Its programs, in the order in which they are attached.
    pub programs: &'static [ProgramSpec],
    /// The one that looks for what was there before them ([`Loaded::look_for_older`]).
    pub older: Option<Older>,
    /// The one that walks over a map of theirs ([`Loaded::walk`]).
    pub walk: Option<&'static str>,
}

/// A program that looks for what was there before the others.
#[derive(Clone, Copy, Debug)]
pub struct Older {
    /// Its name in the object.
    pub program: &'static str,
    /// What it walks over: [`Hook::OpenFiles`] or [`Hook::Tasks`].
    pub over: Hook,
    /// What is not known without it.
    pub without: &'static str,
}

impl ObjectSpec {
    /// Whether a program of it goes to a cgroup.
    #[must_use]
    pub fn needs_cgroup(&self) -> bool {
        self.programs.iter().any(|program| match program.hook {
            Hook::RawTracepoint(_)
            | Hook::PerfTracepoint(..)
            | Hook::OpenFiles
            | Hook::MapEntries
            | Hook::Tasks => false,
            Hook::CgroupEgress | Hook::CgroupIngress | Hook::CgroupSockAddr => true,
        })
    }
}

/// An object in the kernel.
#[derive(Debug)]
pub struct Loaded {
    spec: &'static ObjectSpec,
    ebpf: Ebpf,
    /// Whether this kernel lets programs at raw tracepoints lose their CPU.
    preempts_programs: bool,
    /// Those of its programs that have work on this kernel.
    programs: Vec<&'static ProgramSpec>,
    /// In the order of [`ObjectSpec::programs`].
    attached: Vec<Attached>,
    /// Where it is pinned, if it is.
    pinned: Option<PathBuf>,
    /// Programs that an earlier agent has loaded and attached.
    adopted: Vec<(&'static str, OwnedFd)>,
}

/// Names of maps and the number of entries (for a ring: bytes) that they are to have.
pub type MapSizes<'a> = &'a [(&'static str, u32)];

/// Loads objects. One for all of them: aya's loader reads and parses the kernel's BTF whenever one is made, wanted or not.
#[derive(Debug)]
pub struct Loader<'a> {
    aya: EbpfLoader<'a>,
    fields: &'a Resolved,
    pins: Option<&'a Pins>,
    /// Whether what is pinned already is taken over.
    adopts: bool,
}

impl<'a> Loader<'a> {
    /// `log_level` is that of aya-log (0: the programs do not log; the verifier then removes the code for it).
    #[must_use]
    pub fn new(fields: &'a Resolved, log_level: &'a u8) -> Self {
        let mut aya = EbpfLoader::new();
        // No relocations: fields come from our table.
        aya.btf(None);
        aya.override_global("FIELDS", bytemuck::cast_slice::<_, u8>(&fields.slots), false);
        aya.override_global(aya_log::LEVEL, log_level, false);
        let backed = if fields.bpf.preempts_programs { &1u8 } else { &0u8 };
        aya.override_global("BACKED", backed, false);
        let task_helpers = if fields.bpf.has_task_helpers { &1u8 } else { &0u8 };
        aya.override_global("TASK_HELPERS", task_helpers, false);
        if !fields.bpf.preempts_programs {
            // Used by backups alone.
            aya.map_max_entries("HANDLED", 1);
        }
        Self { aya, fields, pins: None, adopts: false }
    }

    /// Pins what is loaded and attached; or, if it `adopts`, takes over what an earlier agent has pinned, and pins the rest.
    #[must_use]
    pub fn with_pins(self, pins: Option<&'a Pins>, adopts: bool) -> Self {
        Self { pins, adopts, ..self }
    }

    /// Where the programs find what they read.
    #[must_use]
    pub fn fields(&self) -> &'a Resolved {
        self.fields
    }

    /// Makes the maps of an object and loads its programs, without attaching any.
    ///
    /// # Errors
    ///
    /// When a field that the signal needs is absent from this kernel, or the kernel refuses a map or a program.
    pub fn load(&mut self, spec: &'static ObjectSpec, sizes: MapSizes<'_>) -> Result<Loaded, LoadError> {
        let fields = self.fields;
        let missing = fields.missing(spec.bit);
        if !missing.is_empty() {
            return Err(LoadError::MissingFields { signal: spec.name, fields: missing.join(", ") });
        }
        for (map, entries) in sizes {
            self.aya.map_max_entries(map, *entries);
        }
        let pinned = self.pin_maps(spec)?;
        let ebpf = self.aya.load(spec.elf).map_err(|source| {
            LoadError::Object { signal: spec.name, source: Box::new(source) }.or_unknown(
                spec.name,
                "its maps",
                || fields.bpf.unknown_maps(spec.elf),
            )
        })?;
        let preempts_programs = fields.bpf.preempts_programs;
        let programs: Vec<_> = spec.programs.iter().filter(|program| program.has_work(fields)).collect();
        let mut loaded = Loaded {
            spec,
            ebpf,
            preempts_programs,
            programs: programs.clone(),
            attached: Vec::new(),
            pinned,
            adopted: Vec::new(),
        };
        if self.adopts && loaded.adopt()? {
            return Ok(loaded);
        }
        for program in programs {
            program.names(preempts_programs).try_for_each(|name| loaded.load_program(name, &fields.bpf))?;
        }
        Ok(loaded)
    }

    /// Removes what is pinned of an object that does not run.
    pub fn forget(&self, spec: &ObjectSpec) {
        if let Some(pins) = self.pins {
            pins.forget(spec.name);
        }
    }

    /// Has the maps of an object pinned as they are made, and those used that are pinned already.
    fn pin_maps(&mut self, spec: &ObjectSpec) -> Result<Option<PathBuf>, LoadError> {
        let Some(pins) = self.pins else { return Ok(None) };
        let refused = |source| LoadError::Pin { signal: spec.name, what: "its directory".to_owned(), source };
        let directory = pins.make(spec.name).map_err(refused)?;
        for map in pins.maps_of(spec.name) {
            self.aya.map_pin_path(map, directory.join(format!("map_{map}")));
        }
        Ok(Some(directory))
    }
}

impl ObjectSpec {
    fn broken(&self, part: &'static str) -> LoadError {
        LoadError::Broken { signal: self.name, part }
    }
}

impl Loaded {
    /// Takes over the programs that are pinned, which are attached. False: there are none.
    fn adopt(&mut self) -> Result<bool, LoadError> {
        let Some(directory) = &self.pinned else { return Ok(false) };
        let signal = self.spec.name;
        let link = |name: &str| directory.join(format!("link_{name}"));
        if !self
            .programs
            .iter()
            .any(|spec| spec.names(self.preempts_programs).any(|name| link(name).exists()))
        {
            return Ok(false);
        }
        for spec in &self.programs {
            for name in spec.names(self.preempts_programs).filter(|name| link(name).exists()) {
                let refused = |source| LoadError::Pin { signal, what: format!("program {name}"), source };
                let program = pins::get_pinned(&directory.join(format!("prog_{name}"))).map_err(refused)?;
                self.adopted.push((name, program));
            }
            let perf = spec.perf.filter(|(name, _)| link(name).exists());
            let hook = perf.map_or(spec.hook, |(_, hook)| hook);
            self.attached.push(Attached { spec, hook, fallback: None, _links: Vec::new() });
        }
        Ok(true)
    }

    /// Whether its programs are those of an earlier agent, which run all the time; its maps are then as that one left them.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        !self.adopted.is_empty()
    }

    fn load_program(&mut self, name: &'static str, kernel: &Bpf) -> Result<(), LoadError> {
        let spec = self.spec;
        let error = |source| {
            LoadError::Program { signal: spec.name, program: name, source: Box::new(source) }.or_unknown(
                spec.name,
                name,
                || kernel.unknown_helpers(spec.elf, name),
            )
        };
        match self.ebpf.program_mut(name).ok_or_else(|| spec.broken(name))? {
            Program::RawTracePoint(raw) => raw.load().map_err(error),
            Program::TracePoint(perf) => perf.load().map_err(error),
            Program::CgroupSkb(skb) => skb.load().map_err(error),
            Program::CgroupSockAddr(addr) => addr.load().map_err(error),
            _ => Err(spec.broken(name)),
        }
    }

    /// Attaches every program. All or none: on an error the caller drops this, which detaches what was attached.
    ///
    /// # Errors
    ///
    /// When the kernel refuses one, or one needs a cgroup and there is no `cgroup`.
    pub fn attach(&mut self, cgroup: Option<&CgroupRoot>) -> Result<(), LoadError> {
        if self.is_adopted() {
            return Ok(());
        }
        for spec in self.programs.clone() {
            let mut hook = spec.hook;
            let mut fallback = None;
            let mut links = Vec::new();
            if let Some((name, perf)) = spec.perf.filter(|_| self.preempts_programs) {
                match self.attach_one(name, perf, cgroup) {
                    Ok(link) => {
                        hook = perf;
                        links.push(link);
                    }
                    Err(error) => fallback = Some(error),
                }
            }
            if links.is_empty() {
                links.push(self.attach_one(spec.name, spec.hook, cgroup)?);
            }
            // After the first: programs at a tracepoint run in the order in which they came.
            if let Some(backup) = spec.backup.filter(|_| self.preempts_programs) {
                links.push(self.attach_one(backup, spec.hook, cgroup)?);
            }
            self.attached.push(Attached { spec, hook, fallback, _links: links });
        }
        Ok(())
    }

    fn attach_one(
        &mut self,
        name: &'static str,
        hook: Hook,
        cgroup: Option<&CgroupRoot>,
    ) -> Result<Link, LoadError> {
        let signal = self.spec.name;
        let error = |source| LoadError::Attach { signal, program: name, hook, source: Box::new(source) };
        let no_cgroup = || LoadError::NoCgroup { signal, program: name };
        let program = self.ebpf.program_mut(name).ok_or(LoadError::Broken { signal, part: name })?;
        // Links stack by themselves; BPF_LINK_CREATE takes no flags on a cgroup, hence `Single`.
        const MODE: CgroupAttachMode = CgroupAttachMode::Single;
        let pin = Pin { signal, program: name, directory: self.pinned.as_deref() };
        pin.program(program)?;
        match (program, hook) {
            (Program::RawTracePoint(raw), Hook::RawTracepoint(name)) => {
                let id = raw.attach(name).map_err(error)?;
                pin.link(raw.take_link(id).map_err(error)?)
            }
            (Program::TracePoint(perf), Hook::PerfTracepoint(category, name)) => {
                let id = perf.attach(category, name).map_err(error)?;
                pin.link(perf.take_link(id).map_err(error)?)
            }
            (Program::CgroupSkb(skb), Hook::CgroupEgress) => {
                let cgroup = cgroup.ok_or_else(no_cgroup)?;
                let id = skb.attach(cgroup.fd.as_fd(), CgroupSkbAttachType::Egress, MODE).map_err(error)?;
                pin.link(skb.take_link(id).map_err(error)?)
            }
            (Program::CgroupSkb(skb), Hook::CgroupIngress) => {
                let cgroup = cgroup.ok_or_else(no_cgroup)?;
                let id = skb.attach(cgroup.fd.as_fd(), CgroupSkbAttachType::Ingress, MODE).map_err(error)?;
                pin.link(skb.take_link(id).map_err(error)?)
            }
            (Program::CgroupSockAddr(addr), Hook::CgroupSockAddr) => {
                let cgroup = cgroup.ok_or_else(no_cgroup)?;
                let id = addr.attach(cgroup.fd.as_fd(), MODE).map_err(error)?;
                pin.link(addr.take_link(id).map_err(error)?)
            }
            _ => Err(LoadError::Broken { signal, part: name }),
        }
    }

    /// What is attached, in the order of [`ObjectSpec::programs`].
    #[must_use]
    pub fn attached(&self) -> &[Attached] {
        &self.attached
    }

    /// Runs of its programs that the kernel skipped so far: it does not run a program on a CPU that is inside the same one
    /// already. Those of backups are left out: they matter only where the first was skipped too. 0 before 5.12, which does not
    /// tell.
    #[must_use]
    pub fn skipped_runs(&self) -> u64 {
        let specs = self.programs.iter();
        let names = specs.flat_map(|spec| [Some(spec.name), spec.perf.map(|(name, _)| name)]);
        let runs = names.flatten().filter_map(|name| self.runs_of(name));
        runs.filter_map(|runs| runs.skipped).sum()
    }

    fn runs_of(&self, name: &str) -> Option<Runs> {
        match self.adopted.iter().find(|(adopted, _)| *adopted == name) {
            Some((_, program)) => runs::of(program.as_raw_fd()),
            None => runs_of(self.ebpf.program(name)?),
        }
    }

    /// What came of each of its programs that is in the kernel, by name.
    pub fn runs(&self) -> impl Iterator<Item = (&str, Runs)> {
        self.ebpf.programs().filter_map(|(name, _)| Some((name, self.runs_of(name)?)))
    }

    /// Detaches every program, in the reverse order. Maps and rings stay, to be read to their end; when
    /// [`wait_for_programs`] has returned, nothing writes to them any more.
    pub fn detach(&mut self) {
        while self.attached.pop().is_some() {}
    }

    /// Starts to forward what the programs log. `None` when they log nothing at all.
    #[must_use]
    pub fn logger(&mut self) -> Option<aya_log::EbpfLogger<&'static dyn log::Log>> {
        aya_log::EbpfLogger::init(&mut self.ebpf).ok()
    }

    /// The ring of the object's records. Once only.
    ///
    /// # Errors
    ///
    /// When the object has none, or it was taken before.
    pub fn take_ring(&mut self) -> Result<RingBuf<MapData>, LoadError> {
        RingBuf::try_from(self.take("RING")?).map_err(|source| self.map_error("RING", source))
    }

    /// The object's settings. Once only.
    ///
    /// # Errors
    ///
    /// As [`Self::take_ring`].
    pub fn take_settings(&mut self) -> Result<SettingsMap, LoadError> {
        let map =
            Array::try_from(self.take("SETTINGS")?).map_err(|source| self.map_error("SETTINGS", source))?;
        Ok(SettingsMap { map, signal: self.spec.name })
    }

    /// The object's counters. Once only.
    ///
    /// # Errors
    ///
    /// As [`Self::take_ring`].
    pub fn take_counters(&mut self) -> Result<Counters, LoadError> {
        let map = PerCpuArray::try_from(self.take("COUNTERS")?)
            .map_err(|source| self.map_error("COUNTERS", source))?;
        Ok(Counters { map, last: vec![0; Counter::ALL.len()] })
    }

    /// A hash map. Once only.
    ///
    /// # Errors
    ///
    /// As [`Self::take_ring`]; also when key or value have another size in the object.
    pub fn take_hash<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<HashMap<MapData, Plain<K>, Plain<V>>, LoadError> {
        HashMap::try_from(self.take(name)?).map_err(|source| self.map_error(name, source))
    }

    /// A per-CPU hash map. Once only.
    ///
    /// # Errors
    ///
    /// As [`Self::take_hash`].
    pub fn take_per_cpu_hash<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<PerCpuHashMap<MapData, Plain<K>, Plain<V>>, LoadError> {
        PerCpuHashMap::try_from(self.take(name)?).map_err(|source| self.map_error(name, source))
    }

    /// An array. Once only.
    ///
    /// # Errors
    ///
    /// As [`Self::take_hash`].
    pub fn take_array<V: Pod>(&mut self, name: &'static str) -> Result<Array<MapData, Plain<V>>, LoadError> {
        Array::try_from(self.take(name)?).map_err(|source| self.map_error(name, source))
    }

    /// A queue of indices. Once only.
    ///
    /// # Errors
    ///
    /// As [`Self::take_hash`].
    pub fn take_queue(&mut self, name: &'static str) -> Result<Queue<MapData, u32>, LoadError> {
        Queue::try_from(self.take(name)?).map_err(|source| self.map_error(name, source))
    }

    /// The array of blocks, mapped into memory. Once only.
    ///
    /// # Errors
    ///
    /// As [`Self::take_hash`]; also when the kernel does not map it.
    pub fn take_blocks(&mut self, name: &'static str) -> Result<Blocks, LoadError> {
        let array = self.take_array(name)?;
        Blocks::map(array).map_err(|source| LoadError::Mapping { signal: self.spec.name, map: name, source })
    }

    fn take(&mut self, name: &'static str) -> Result<Map, LoadError> {
        self.ebpf.take_map(name).ok_or(LoadError::Broken { signal: self.spec.name, part: name })
    }

    fn map_error(&self, map: &'static str, source: MapError) -> LoadError {
        LoadError::Map { signal: self.spec.name, map, source: Box::new(source) }
    }
}

/// Where what is attached is pinned, if it is.
struct Pin<'a> {
    signal: &'static str,
    program: &'static str,
    directory: Option<&'a Path>,
}

impl Pin<'_> {
    fn program(&self, program: &mut Program) -> Result<(), LoadError> {
        let Some(directory) = self.directory else { return Ok(()) };
        program.pin(directory.join(format!("prog_{}", self.program))).map_err(|error| self.refused(error))
    }

    /// What keeps a program attached: a pinned link does so without anybody.
    fn link<L: aya::programs::Link + Send + 'static>(&self, link: L) -> Result<Link, LoadError>
    where
        FdLink: TryFrom<L>,
    {
        let Some(directory) = self.directory else { return Ok(Box::new(link)) };
        // Before 5.15 perf's tracepoints have none; nothing is attached to them there.
        let link = FdLink::try_from(link).map_err(|_no_link| self.refused("the kernel made no link"))?;
        let path = directory.join(format!("link_{}", self.program));
        Ok(Box::new(link.pin(path).map_err(|error| self.refused(error))?))
    }

    fn refused(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> LoadError {
        let Self { signal, program, .. } = *self;
        LoadError::Pin { signal, what: format!("program {program}"), source: io::Error::other(error) }
    }
}

/// `None`: it is not loaded.
fn runs_of(program: &Program) -> Option<Runs> {
    runs::of(program.fd().ok()?.as_fd().as_raw_fd())
}

/// Before 5.11 maps are charged to RLIMIT_MEMLOCK, whose default is far too small. Later kernels do not look at it.
///
/// Without CAP_SYS_RESOURCE it goes up to the hard limit, which `ulimit -l` or systemd's LimitMEMLOCK= may have raised.
pub fn raise_memlock() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let unlimited = Rlimit { current: None, maximum: None };
    let maximum = getrlimit(Resource::Memlock).maximum;
    let hard = Rlimit { current: maximum, maximum };
    let raised =
        setrlimit(Resource::Memlock, unlimited).or_else(|_refused| setrlimit(Resource::Memlock, hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "RLIMIT_MEMLOCK stays as it is");
    }
}

/// Waits for programs that were running as they were detached: programs run inside RCU's read sections, and this is its
/// grace period (membarrier(2), MEMBARRIER_CMD_GLOBAL: 4.3). Some 30 ms.
#[expect(unsafe_code, reason = "membarrier(2) has no safe wrapper")]
pub fn wait_for_programs() {
    // SAFETY: the call takes three numbers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // On CPUs without a tick there is none: then a record of the last microseconds may be missed, as after the end.
        tracing::debug!(error = %io::Error::last_os_error(), "no grace period");
    }
}

/// The settings of an object's programs.
pub struct SettingsMap {
    map: Array<MapData, Plain<Settings>>,
    signal: &'static str,
}

impl std::fmt::Debug for SettingsMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SettingsMap").finish_non_exhaustive()
    }
}

impl SettingsMap {
    /// Puts settings in force.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to write the map.
    pub fn set(&mut self, settings: &Settings) -> Result<(), LoadError> {
        self.map.set(0, Plain(*settings), 0).map_err(|source| LoadError::Map {
            signal: self.signal,
            map: "SETTINGS",
            source: Box::new(source),
        })
    }
}

/// The counters of an object's programs.
pub struct Counters {
    map: PerCpuArray<MapData, u64>,
    last: Vec<u64>,
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Counters {
    /// What was read last, in the order of [`Counter::ALL`].
    #[must_use]
    pub fn last(&self) -> &[u64] {
        &self.last
    }

    /// Goes on where an earlier agent ended, of the same map.
    pub fn go_on(&mut self, last: &[u64]) {
        for (own, last) in self.last.iter_mut().zip(last) {
            *own = *last;
        }
    }

    /// Reads one: whether maps read at all.
    ///
    /// # Errors
    ///
    /// When they do not.
    pub fn try_read(&self) -> io::Result<()> {
        match self.map.get(&0, 0) {
            Ok(_values) => Ok(()),
            Err(MapError::SyscallError(error)) => Err(error.io_error),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Calls `each` with what every counter has risen by since the last call, where it has.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn deltas(&mut self, mut each: impl FnMut(Counter, u64)) -> Result<(), MapError> {
        for ((counter, index), last) in Counter::ALL.iter().zip(0u32..).zip(&mut self.last) {
            let now: u64 = self.map.get(&index, 0)?.iter().sum();
            let delta = now.saturating_sub(*last);
            *last = now;
            if delta != 0 {
                each(*counter, delta);
            }
        }
        Ok(())
    }
}
