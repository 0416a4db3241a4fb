//! What works on this host, what does not, why, and what would fix it.
//!
//! The checks are functions of facts, so that every host can be had in a unit test; [`examine`] collects the facts and
//! loads and attaches every program of every signal for real, to take it away again at once.

mod afterwards;
mod capabilities;
mod fields;
mod further;
mod host;
mod memory;
mod refusal;
mod signals;

use serde::Serialize;

pub use self::host::Host;
pub use self::refusal::{Diagnosis, diagnose};
use crate::config::Config;
use crate::kernel::btf::KernelBtf;
use crate::kernel::cgroup::CgroupRoot;
use crate::kernel::fields::resolve;
use crate::kernel::least::{Plan, Uses};

/// How well something works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should.
    Ok,
    /// Something is lost; the detail says what.
    Degraded,
    /// Not at all.
    Unavailable,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Unavailable => "unavailable",
        })
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub check: String,
    /// How well it works.
    pub status: Status,
    /// What was found; what is lost, and why.
    pub detail: String,
    /// The command or setting that would change it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    fn new(status: Status, check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check: check.into(), status, detail: detail.into(), remedy: None }
    }

    fn ok(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Status::Ok, check, detail)
    }

    fn degraded(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Status::Degraded, check, detail)
    }

    fn unavailable(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Status::Unavailable, check, detail)
    }

    fn fix(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Of an error, which by our custom ends with its remedy in parentheses.
    fn of_error(status: Status, check: impl Into<String>, error: impl std::fmt::Display) -> Self {
        let text = error.to_string();
        let (detail, remedy) = split_remedy(&text);
        Self { check: check.into(), status, detail: detail.to_owned(), remedy: remedy.map(str::to_owned) }
    }
}

/// Whether a signal can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It can.
    Runs,
    /// Not with these privileges.
    Privileges,
    /// Not on this kernel.
    Kernel,
}

/// Everything found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// In the order in which they are to be read.
    pub checks: Vec<Check>,
    /// Each signal's.
    pub verdicts: Vec<(&'static str, Verdict)>,
}

impl Findings {
    /// The worst of the signals. Privileges come before the kernel, as in every command: who may not load anything
    /// learns nothing about the kernel.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let any = |wanted| self.verdicts.iter().any(|(_, verdict)| *verdict == wanted);
        if any(Verdict::Privileges) {
            Verdict::Privileges
        } else if any(Verdict::Kernel) {
            Verdict::Kernel
        } else {
            Verdict::Runs
        }
    }
}

/// Looks at this host as a run with `config` would find it. Total: what fails is a finding.
#[must_use]
pub fn examine(config: &Config) -> Findings {
    // As every command does, so that the limit found is the one that counts.
    crate::load::raise_memlock();
    let host = Host::look();
    let btf = match &config.btf {
        Some(path) => KernelBtf::from_file(path),
        None => KernelBtf::from_host(),
    };
    let cgroup = CgroupRoot::find();
    let resolved = btf.as_ref().ok().map(|btf| resolve(btf, probe_common::fields::FIELDS));
    let programs = signals::try_all(config, &host, resolved.as_ref(), &cgroup);

    let mut checks = vec![
        host::kernel(&host.features),
        host::btf(config.btf.as_deref(), btf.as_ref().map(|_| ())),
        host::cgroup(&cgroup),
    ];
    checks.extend(host::settings(&host, &programs));
    checks.extend(capabilities::checks(&host));
    let plan = programs.maps_read.as_ref().map(|read| plan(&host, read));
    checks.extend(afterwards::checks(plan.as_ref(), host.no_new_privs));
    checks.extend(further::checks(&host, &cgroup, &programs));
    checks.extend(host::cpus(&host.features));
    checks.extend(memory::check(&programs.memory));
    if let Some(resolved) = &resolved {
        checks.extend(fields::checks(resolved));
    }
    checks.extend(programs.checks);
    Findings { checks, verdicts: programs.verdicts }
}

/// What a command would do with its privileges after attaching.
fn plan(host: &Host, maps_read: &Result<bool, String>) -> Result<Plan, String> {
    let uses = Uses::new(host.host_pids, false, *maps_read.as_ref().map_err(String::clone)?, &host.features);
    Plan::make(uses).map_err(|error| error.to_string())
}

/// `what went wrong (what to do about it)` in its two parts.
fn split_remedy(text: &str) -> (&str, Option<&str>) {
    let Some(body) = text.strip_suffix(')') else { return (text, None) };
    let mut open = 1_u32;
    for (at, byte) in body.bytes().enumerate().rev() {
        match byte {
            b')' => open += 1,
            b'(' => open -= 1,
            _ => {}
        }
        if open == 0 {
            let detail = body.get(..at).unwrap_or_default().trim_end();
            return if detail.is_empty() { (text, None) } else { (detail, body.get(at + 1..)) };
        }
    }
    (text, None)
}

/// `3.1 MiB`.
fn mib(bytes: u64) -> String {
    // A figure for people: precision beyond 2^53 bytes is not missed.
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_are_split_off() {
        let cases = [
            ("no BTF (boot another kernel)", ("no BTF", Some("boot another kernel"))),
            ("a (b) c (d (e) f)", ("a (b) c", Some("d (e) f"))),
            ("a (b) c", ("a (b) c", None)),
            ("(all of it)", ("(all of it)", None)),
            ("a) (b", ("a) (b", None)),
            ("a)", ("a)", None)),
            ("", ("", None)),
        ];
        for (text, expected) in cases {
            assert_eq!(split_remedy(text), expected, "{text}");
        }
    }

    #[test]
    fn the_worst_signal_decides() {
        use Verdict::{Kernel, Privileges, Runs};
        for (verdicts, expected) in [
            (vec![Runs, Runs], Runs),
            (vec![Runs, Kernel], Kernel),
            (vec![Kernel, Privileges, Runs], Privileges),
            (vec![], Runs),
        ] {
            let findings = Findings {
                checks: Vec::new(),
                verdicts: verdicts.iter().map(|verdict| ("x", *verdict)).collect(),
            };
            assert_eq!(findings.verdict(), expected, "{verdicts:?}");
        }
    }
}
