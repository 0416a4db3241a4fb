//! What can go wrong between an object and its attached programs.

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

use super::Hook;

/// Why a signal cannot run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel has not what the programs read.
    #[error(
        "{signal}: this kernel's BTF has no {fields}, which the programs read; `probe doctor` shows what runs without it"
    )]
    MissingFields {
        /// Signal.
        signal: &'static str,
        /// Paths of the fields.
        fields: String,
    },
    /// The kernel refused what it has never heard of. That 5.10 and later know all that is asked for, a test holds.
    #[error(
        "{signal}: this kernel has no {unknown}, which {part} needs (boot 5.10 or a later one; what the kernel said \
         is in the log with RUST_LOG=debug)"
    )]
    Unknown {
        /// Signal.
        signal: &'static str,
        /// Program, or `its maps`.
        part: &'static str,
        /// Helpers or kinds of maps.
        unknown: String,
        /// What the kernel said.
        source: Box<LoadError>,
    },
    /// The kernel refused a map, or the object does not parse.
    #[error("{signal}: cannot create the maps: {}; {}", chain(source), advice(source))]
    Object {
        /// Signal.
        signal: &'static str,
        /// Cause.
        source: Box<EbpfError>,
    },
    /// The kernel's verifier refused a program.
    #[error("{signal}: the kernel refused program {program}: {}; {}", chain(source), advice(source))]
    Program {
        /// Signal.
        signal: &'static str,
        /// Program.
        program: &'static str,
        /// Cause.
        source: Box<ProgramError>,
    },
    /// A program does not attach.
    #[error("{signal}: cannot attach {program} to {hook}: {}; {}", chain(source), advice(source))]
    Attach {
        /// Signal.
        signal: &'static str,
        /// Program.
        program: &'static str,
        /// Where to.
        hook: Hook,
        /// Cause.
        source: Box<ProgramError>,
    },
    /// There is no cgroup to attach to.
    #[error(
        "{signal}: program {program} needs the root of cgroup v2: mount it (mount -t cgroup2 none /sys/fs/cgroup/unified)"
    )]
    NoCgroup {
        /// Signal.
        signal: &'static str,
        /// Program.
        program: &'static str,
    },
    /// A map does not read or write.
    #[error("{signal}: map {map}: {}", chain(source))]
    Map {
        /// Signal.
        signal: &'static str,
        /// Map.
        map: &'static str,
        /// Cause.
        source: Box<MapError>,
    },
    /// A map does not map into memory.
    #[error("{signal}: cannot map {map} into memory: {source}; is RLIMIT_AS or the memory cgroup too small?")]
    Mapping {
        /// Signal.
        signal: &'static str,
        /// Map.
        map: &'static str,
        /// Cause.
        source: std::io::Error,
    },
    /// The object and this code disagree.
    #[error(
        "{signal}: the BPF object has no usable {part}: it was built from other sources (`cargo xtask ebpf --check`)"
    )]
    Broken {
        /// Signal.
        signal: &'static str,
        /// Program or map.
        part: &'static str,
    },
}

impl LoadError {
    /// Whether the kernel said that privileges are missing.
    #[must_use]
    pub fn is_permission_denied(&self) -> bool {
        std::error::Error::source(self).is_some_and(is_denied)
    }

    /// Names what the kernel did not know, where that is why it refused: it says no more than "invalid argument".
    pub(super) fn or_unknown(
        self,
        signal: &'static str,
        part: &'static str,
        unknown: impl FnOnce() -> Vec<String>,
    ) -> Self {
        if self.is_permission_denied() {
            return self;
        }
        let unknown = unknown();
        if unknown.is_empty() {
            return self;
        }
        tracing::debug!("{self}");
        Self::Unknown { signal, part, unknown: unknown.join(", "), source: Box::new(self) }
    }

    /// What the kernel or aya said, on one line.
    #[must_use]
    pub fn cause(&self) -> String {
        std::error::Error::source(self).map(chain).unwrap_or_default()
    }
}

fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::PermissionDenied;
        }
        cause = error.source();
    }
    false
}

/// A bare EPERM says nothing: names the gates that may have been shut.
fn advice(source: &(dyn std::error::Error + 'static)) -> String {
    if is_denied(source) {
        return format!("why: {}", crate::doctor::explain_refusal(&crate::doctor::Host::look()));
    }
    "`probe doctor` tells what this host lacks".to_owned()
}

/// An error with its causes, on one line; the verifier's log is cut to its last lines, which name the reason.
fn chain(error: &dyn std::error::Error) -> String {
    const LONGEST: usize = 600;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let further = error.to_string();
        if !text.contains(&further) {
            text.push_str(": ");
            text.push_str(&further);
        }
        cause = error.source();
    }
    let tail = text.char_indices().rev().nth(LONGEST).map_or(0, |(at, _)| at);
    if tail == 0 { text } else { format!("…{}", text.get(tail..).unwrap_or_default()) }
}
