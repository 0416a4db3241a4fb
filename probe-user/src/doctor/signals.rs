//! Each program of each signal: loaded and attached for real, and taken away again.

use super::{Check, Host, Status, Verdict, explain_refusal, fields, memory};
use crate::config::Config;
use crate::kernel::cgroup::{CgroupError, CgroupRoot};
use crate::kernel::fields::Resolved;
use crate::load::{self, Hook, LoadError, ObjectSpec, ProgramSpec};
use crate::signals::{self, SignalKind};

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) checks: Vec<Check>,
    pub(super) verdicts: Vec<(&'static str, Verdict)>,
    /// Bytes of the maps of each signal that loaded.
    pub(super) memory: Vec<(&'static str, u64)>,
    /// Whether the kernel took any program at all.
    pub(super) any_loaded: bool,
}

/// Why something does not run.
struct Obstacle {
    verdict: Verdict,
    detail: String,
    remedy: Option<String>,
}

impl Obstacle {
    fn of_error(verdict: Verdict, error: impl std::fmt::Display) -> Self {
        let Check { detail, remedy, .. } = Check::of_error(Status::Unavailable, "", error);
        Self { verdict, detail, remedy }
    }

    fn check(&self, name: String) -> Check {
        Check { remedy: self.remedy.clone(), ..Check::unavailable(name, self.detail.clone()) }
    }
}

/// What all signals are tried with.
struct Trial<'a> {
    config: &'a Config,
    host: &'a Host,
    /// `None`: there is no BTF.
    fields: Option<&'a Resolved>,
    cgroup: &'a Result<CgroupRoot, CgroupError>,
}

/// Tries every signal, one after the other: what one needs is given back before the next.
pub(super) fn try_all(
    config: &Config,
    host: &Host,
    fields: Option<&Resolved>,
    cgroup: &Result<CgroupRoot, CgroupError>,
) -> Tried {
    let trial = Trial { config, host, fields, cgroup };
    let mut tried = Tried::default();
    for kind in signals::ALL {
        trial.signal(*kind, &mut tried);
    }
    tried
}

impl Trial<'_> {
    fn signal(&self, kind: &'static dyn SignalKind, tried: &mut Tried) {
        let object = kind.object();
        let outcome = self.fields_for(object).and_then(|fields| self.whole(kind, fields, tried));
        let (check, verdict) = match &outcome {
            Ok(()) => (self.running(kind), Verdict::Runs),
            Err(obstacle) => (obstacle.check(format!("signal {}", object.name)), obstacle.verdict),
        };
        tried.verdicts.push((object.name, verdict));
        tried.checks.push(check);
        for program in object.programs {
            let name = format!("program {}/{}", object.name, program.name);
            let alone = match outcome {
                Ok(()) => Ok(()),
                Err(_) => self.fields_for(object).and_then(|fields| self.alone(kind, program, fields)),
            };
            tried.checks.push(match alone {
                Ok(()) => {
                    tried.any_loaded = true;
                    Check::ok(name, format!("attached to {}", program.hook))
                }
                Err(obstacle) => obstacle.check(name),
            });
        }
    }

    /// What the commands ask for before they load anything.
    fn fields_for(&self, object: &ObjectSpec) -> Result<&Resolved, Obstacle> {
        match &self.host.privileges {
            Ok(privileges) => {
                privileges
                    .check(object.bit)
                    .map_err(|missing| Obstacle::of_error(Verdict::Privileges, missing))?;
            }
            Err(unknown) => return Err(Obstacle::of_error(Verdict::Privileges, unknown)),
        }
        self.fields.ok_or_else(|| Obstacle {
            verdict: Verdict::Kernel,
            detail: "not tried: the layout of kernel structures is not known without BTF".to_owned(),
            remedy: None,
        })
    }

    /// The signal as the commands start it: maps, programs, what user space does with the maps, hooks.
    fn whole(
        &self,
        kind: &'static dyn SignalKind,
        fields: &Resolved,
        tried: &mut Tried,
    ) -> Result<(), Obstacle> {
        let object = kind.object();
        let start = || -> Result<Option<u64>, Box<LoadError>> {
            let mut loaded = load::load(object, fields, &kind.sizes(self.config), 0)?;
            let bytes = memory::of_open_maps(u64::from(self.config.cpu_ids));
            let _settings = loaded.take_settings()?;
            let _signal = kind.start(self.config, fields, &mut loaded)?;
            let _ring = loaded.take_ring()?;
            let _counters = loaded.take_counters()?;
            loaded.attach(self.cgroup.as_ref().ok())?;
            Ok(bytes)
        };
        let bytes = start().map_err(|error| self.obstacle(&error))?;
        tried.memory.extend(bytes.map(|bytes| (object.name, bytes)));
        Ok(())
    }

    /// One program of a signal that does not start, so that the others' state is known too.
    fn alone(
        &self,
        kind: &'static dyn SignalKind,
        program: &'static ProgramSpec,
        fields: &Resolved,
    ) -> Result<(), Obstacle> {
        // A few dozen bytes that live as long as this short command: the loader wants what lives for ever.
        let object: &'static ObjectSpec =
            Box::leak(Box::new(ObjectSpec { programs: std::slice::from_ref(program), ..*kind.object() }));
        let mut loaded =
            load::load(object, fields, &kind.sizes(self.config), 0).map_err(|error| self.obstacle(&error))?;
        loaded.attach(self.cgroup.as_ref().ok()).map_err(|error| self.obstacle(&error))
    }

    /// Of a signal that starts.
    fn running(&self, kind: &'static dyn SignalKind) -> Check {
        let object = kind.object();
        let name = format!("signal {}", object.name);
        let lost = self.fields.map(|fields| fields::losses(fields, object.bit)).unwrap_or_default();
        if lost.is_empty() {
            Check::ok(name, kind.about())
        } else {
            Check::degraded(name, format!("{}; lost: {}", kind.about(), lost.join("; ")))
        }
    }

    fn obstacle(&self, error: &LoadError) -> Obstacle {
        let verdict = if error.is_permission_denied() { Verdict::Privileges } else { Verdict::Kernel };
        let remedy = (verdict == Verdict::Privileges).then(|| explain_refusal(self.host));
        let cause = error.cause();
        let (detail, remedy) = match error {
            LoadError::NoCgroup { .. } => return self.no_cgroup(),
            LoadError::Unknown { .. } => return Obstacle::of_error(verdict, error),
            LoadError::MissingFields { fields, .. } => (
                format!("this kernel's BTF has no {fields}"),
                Some("boot another kernel, or give this one's BTF with --btf FILE".to_owned()),
            ),
            LoadError::Object { .. } => (format!("the kernel refused the maps: {cause}"), remedy),
            LoadError::Program { program, .. } => {
                (format!("the kernel refused program {program}: {cause}"), remedy)
            }
            LoadError::Attach { hook, .. } => {
                (format!("cannot attach to {hook}: {cause}"), remedy.or_else(|| hook_remedy(*hook)))
            }
            LoadError::Map { .. } | LoadError::Mapping { .. } | LoadError::Broken { .. } => {
                (error.to_string(), remedy)
            }
        };
        Obstacle { verdict, detail, remedy }
    }

    fn no_cgroup(&self) -> Obstacle {
        let Err(error) = self.cgroup else {
            return Obstacle { verdict: Verdict::Kernel, detail: "no cgroup v2".to_owned(), remedy: None };
        };
        let denied = match error {
            CgroupError::NotMounted(source) | CgroupError::Open { source, .. } => {
                source.kind() == std::io::ErrorKind::PermissionDenied
            }
            CgroupError::Mounts(_)
            | CgroupError::Namespaced { .. }
            | CgroupError::NoCgroup { .. }
            | CgroupError::NotACgroup { .. } => false,
        };
        let verdict = if denied { Verdict::Privileges } else { Verdict::Kernel };
        let detail = "no root of cgroup v2 to attach to: see the check `cgroup v2`".to_owned();
        Obstacle { detail, ..Obstacle::of_error(verdict, error) }
    }
}

fn hook_remedy(hook: Hook) -> Option<String> {
    match hook {
        Hook::RawTracepoint(name) => Some(format!("boot a kernel that has the tracepoint {name}")),
        Hook::CgroupEgress | Hook::CgroupIngress | Hook::CgroupSockAddr => {
            Some("boot a kernel built with CONFIG_CGROUP_BPF=y".to_owned())
        }
    }
}
