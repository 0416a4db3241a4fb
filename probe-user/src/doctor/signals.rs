//! Each program of each signal: loaded and attached for real, and taken away again.

use super::{Check, Diagnosis, Host, Status, Verdict, diagnose, fields, memory};
use crate::config::Config;
use crate::kernel::cgroup::{CgroupError, CgroupRoot};
use crate::kernel::fields::Resolved;
use crate::kernel::least;
use crate::load::{Attached, Hook, LoadError, Loaded, Loader, ObjectSpec, ProgramSpec};
use crate::signals::cgroups::Cgroups;
use crate::signals::names::Names;
use crate::signals::{self, SignalKind};

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) checks: Vec<Check>,
    pub(super) verdicts: Vec<(&'static str, Verdict)>,
    /// Bytes of the maps of each signal that loaded.
    pub(super) memory: Vec<(&'static str, u64)>,
    /// Whether maps read without capabilities, tried with the first signal that runs.
    pub(super) maps_read: Option<Result<bool, String>>,
    /// What came of the walk over what was there before.
    pub(super) older: Option<Result<(), Diagnosis>>,
    /// What came of what looks for the names of peers.
    pub(super) names: Option<Result<(), Diagnosis>>,
    /// Whether names of cgroups can be learned as they are made.
    pub(super) cgroups: Option<Result<(), Diagnosis>>,
    /// Whether the kernel took any program at all.
    pub(super) any_loaded: bool,
}

/// What all signals are tried with.
struct Trial<'a> {
    config: &'a Config,
    host: &'a Host,
    /// `None`: there is no BTF.
    fields: Option<&'a Resolved>,
    cgroup: &'a Result<CgroupRoot, CgroupError>,
    /// Made when first needed.
    loader: Option<Loader<'a>>,
}

/// Tries every signal, one after the other: what one needs is given back before the next.
pub(super) fn try_all(
    config: &Config,
    host: &Host,
    fields: Option<&Resolved>,
    cgroup: &Result<CgroupRoot, CgroupError>,
) -> Tried {
    let mut trial = Trial { config, host, fields, cgroup, loader: None };
    let mut tried = Tried::default();
    for kind in signals::ALL {
        trial.signal(*kind, &mut tried);
    }
    let names = trial.fields_for(Names.object()).and_then(|fields| trial.whole(&Names, fields, &mut tried));
    tried.names = Some(names.map(drop));
    let cgroups =
        trial.fields_for(Cgroups.object()).and_then(|fields| trial.whole(&Cgroups, fields, &mut tried));
    tried.cgroups = Some(cgroups.map(drop));
    tried
}

impl<'a> Trial<'a> {
    fn signal(&mut self, kind: &'static dyn SignalKind, tried: &mut Tried) {
        let object = kind.object();
        let outcome = self.fields_for(object).and_then(|fields| self.whole(kind, fields, tried));
        let (check, verdict) = match &outcome {
            Ok(programs) => (self.running(kind, programs), Verdict::Runs),
            Err(diagnosis) => (diagnosis.check(format!("signal {}", object.name)), diagnosis.verdict),
        };
        tried.verdicts.push((object.name, verdict));
        tried.checks.push(check);
        let fields = self.fields;
        let programs = outcome.unwrap_or_else(|_diagnosis| {
            let mut alone =
                |program| self.fields_for(object).and_then(|fields| self.alone(kind, program, fields));
            let row = |program| match alone(program) {
                Ok(check) => check,
                Err(diagnosis) => diagnosis.check(row_name(object, program)),
            };
            // Without types of this kernel nobody knows which have none to do: then all.
            let has_work = |program: &&ProgramSpec| fields.is_none_or(|fields| program.has_work(fields));
            object.programs.iter().filter(has_work).map(row).collect()
        });
        tried.any_loaded |= programs.iter().any(|program| program.status != Status::Unavailable);
        tried.checks.extend(programs);
    }

    /// What the commands ask for before they load anything.
    fn fields_for(&self, object: &ObjectSpec) -> Result<&'a Resolved, Diagnosis> {
        match &self.host.privileges {
            Ok(privileges) => {
                privileges
                    .check(object.bit)
                    .map_err(|missing| Diagnosis::of_error(Verdict::Privileges, missing))?;
            }
            Err(unknown) => return Err(Diagnosis::of_error(Verdict::Privileges, unknown)),
        }
        self.fields.ok_or_else(|| Diagnosis {
            verdict: Verdict::Kernel,
            detail: "not tried: the layout of kernel structures is not known without BTF".to_owned(),
            remedy: None,
        })
    }

    /// The signal as the commands start it: maps, programs, what user space does with the maps, hooks. A row for each program.
    fn whole(
        &mut self,
        kind: &'static dyn SignalKind,
        fields: &'a Resolved,
        tried: &mut Tried,
    ) -> Result<Vec<Check>, Diagnosis> {
        let object = kind.object();
        let loader = self.loader.get_or_insert_with(|| Loader::new(fields, &0));
        let loaded = loader.load(object, &kind.sizes(self.config));
        let start = || -> Result<_, Box<LoadError>> {
            let mut loaded = loaded?;
            let bytes = memory::of_open_maps(u64::from(self.config.cpu_ids));
            let _settings = loaded.take_settings()?;
            let _signal = kind.start(self.config, fields, &mut loaded)?;
            let _ring = loaded.take_ring()?;
            let counters = loaded.take_counters()?;
            loaded.attach(self.cgroup.as_ref().ok())?;
            let over_files = object.older.filter(|older| older.over == Hook::OpenFiles);
            let older = over_files.map(|_program| loaded.look_for_older(fields));
            Ok((bytes, counters, self.attached(object, &loaded), older))
        };
        let (bytes, counters, programs, older) = start().map_err(|error| self.diagnosis(&error))?;
        if let Some(older) = older {
            tried.older = Some(older.map_err(|error| self.diagnosis(&error)));
        }
        tried.maps_read.get_or_insert_with(|| {
            least::reads_without(|| counters.try_read()).map_err(|error| error.to_string())
        });
        tried.memory.extend(bytes.map(|bytes| (object.name, bytes)));
        Ok(programs)
    }

    /// One program of a signal that does not start, so that the others' state is known too.
    fn alone(
        &mut self,
        kind: &'static dyn SignalKind,
        program: &'static ProgramSpec,
        fields: &'a Resolved,
    ) -> Result<Check, Diagnosis> {
        // A few dozen bytes that live as long as this short command: the loader wants what lives for ever.
        let object: &'static ObjectSpec =
            Box::leak(Box::new(ObjectSpec { programs: std::slice::from_ref(program), ..*kind.object() }));
        let loader = self.loader.get_or_insert_with(|| Loader::new(fields, &0));
        let loaded = loader.load(object, &kind.sizes(self.config));
        let mut loaded = loaded.map_err(|error| self.diagnosis(&error))?;
        loaded.attach(self.cgroup.as_ref().ok()).map_err(|error| self.diagnosis(&error))?;
        let rows = self.attached(object, &loaded).into_iter();
        Ok(rows.last().unwrap_or_else(|| Check::ok(row_name(object, program), "attached")))
    }

    /// A row for each attached program.
    fn attached(&self, object: &ObjectSpec, loaded: &Loaded) -> Vec<Check> {
        let row = |attached: &Attached| {
            let Attached { spec, hook, fallback, .. } = attached;
            let name = row_name(object, spec);
            let Some(error) = fallback else { return Check::ok(name, format!("attached to {hook}")) };
            let Diagnosis { detail, remedy, .. } = self.diagnosis(error);
            Check {
                remedy,
                ..Check::degraded(
                    name,
                    format!("attached to {hook}, where this kernel may skip it; lost: those runs. {detail}"),
                )
            }
        };
        loaded.attached().iter().map(row).collect()
    }

    /// Of a signal that starts.
    fn running(&self, kind: &'static dyn SignalKind, programs: &[Check]) -> Check {
        let object = kind.object();
        let name = format!("signal {}", object.name);
        let mut lost = self.fields.map(|fields| fields::losses(fields, object.bit)).unwrap_or_default();
        if programs.iter().any(|program| program.status != Status::Ok) {
            lost.push("runs of programs that this kernel skips; each is counted");
        }
        if lost.is_empty() {
            Check::ok(name, kind.about())
        } else {
            Check::degraded(name, format!("{}; lost: {}", kind.about(), lost.join("; ")))
        }
    }

    fn diagnosis(&self, error: &LoadError) -> Diagnosis {
        diagnose(error, self.host, self.cgroup.as_ref().err())
    }
}

fn row_name(object: &ObjectSpec, program: &ProgramSpec) -> String {
    format!("program {}/{}", object.name, program.name)
}
