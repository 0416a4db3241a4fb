//! What can go wrong between an object and its attached programs. What that means on this host, `doctor` knows.

use std::error::Error;
use std::io;

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
    #[error("{signal}: cannot create the maps: {}", chain(source.as_ref()))]
    Object {
        /// Signal.
        signal: &'static str,
        /// Cause.
        source: Box<EbpfError>,
    },
    /// The kernel refused a program.
    #[error("{signal}: cannot load program {program}: {}", chain(source.as_ref()))]
    Program {
        /// Signal.
        signal: &'static str,
        /// Program.
        program: &'static str,
        /// Cause.
        source: Box<ProgramError>,
    },
    /// A program does not attach.
    #[error("{signal}: cannot attach {program} to {hook}: {}", chain(source.as_ref()))]
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
    /// The kernel does not link a program to what it is to walk over.
    #[error("{signal}: cannot attach {program} to {hook}: {source}")]
    Link {
        /// Signal.
        signal: &'static str,
        /// Program.
        program: &'static str,
        /// What it walks over.
        hook: Hook,
        /// Cause.
        source: io::Error,
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
    /// The walk over what was there before did not come to its end.
    #[error("{signal}: {program} did not come to the end of its walk: {source}")]
    Walk {
        /// Signal.
        signal: &'static str,
        /// Program.
        program: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// A map does not read or write.
    #[error("{signal}: map {map}: {}", chain(source.as_ref()))]
    Map {
        /// Signal.
        signal: &'static str,
        /// Map.
        map: &'static str,
        /// Cause.
        source: Box<MapError>,
    },
    /// Something is not pinned, or what is pinned is not to be had.
    #[error(
        "{signal}: {what}: cannot be pinned, or found where it was: {source} (remove the directory of --pin, and start again)"
    )]
    Pin {
        /// Signal.
        signal: &'static str,
        /// What.
        what: String,
        /// Cause.
        source: io::Error,
    },
    /// A map does not map into memory.
    #[error("{signal}: cannot map {map} into memory: {source}; is RLIMIT_AS or the memory cgroup too small?")]
    Mapping {
        /// Signal.
        signal: &'static str,
        /// Map.
        map: &'static str,
        /// Cause.
        source: io::Error,
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
    /// The signal.
    #[must_use]
    pub const fn signal(&self) -> &'static str {
        match self {
            Self::MissingFields { signal, .. }
            | Self::Pin { signal, .. }
            | Self::Unknown { signal, .. }
            | Self::Object { signal, .. }
            | Self::Program { signal, .. }
            | Self::Attach { signal, .. }
            | Self::Link { signal, .. }
            | Self::NoCgroup { signal, .. }
            | Self::Walk { signal, .. }
            | Self::Map { signal, .. }
            | Self::Mapping { signal, .. }
            | Self::Broken { signal, .. } => signal,
        }
    }

    /// Whether the kernel, or somebody before it, said that this process may not. The verifier says EACCES of programs that
    /// it finds unsafe: that is no matter of privileges.
    #[must_use]
    pub fn is_permission_denied(&self) -> bool {
        let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        self.verifier().is_none() && self.system_error().is_some_and(denied)
    }

    /// What the system said, if it was the system.
    #[must_use]
    pub fn system_error(&self) -> Option<&io::Error> {
        let mut cause = self.inner();
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref() {
                return Some(io);
            }
            cause = error.source();
        }
        None
    }

    /// What the verifier found, when it was the verifier that refused.
    #[must_use]
    pub fn verifier(&self) -> Option<String> {
        match self {
            Self::Program { source, .. } => verifier(source),
            Self::Unknown { source, .. } => source.verifier(),
            Self::MissingFields { .. }
            | Self::Object { .. }
            | Self::Attach { .. }
            | Self::Link { .. }
            | Self::NoCgroup { .. }
            | Self::Pin { .. }
            | Self::Walk { .. }
            | Self::Map { .. }
            | Self::Mapping { .. }
            | Self::Broken { .. } => None,
        }
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
        self.inner().map(chain).unwrap_or_default()
    }

    /// The cause as it is: [`Error::source`] has it in its box, which is another type.
    fn inner(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Object { source, .. } => Some(source.as_ref()),
            Self::Program { source, .. } | Self::Attach { source, .. } => Some(source.as_ref()),
            Self::Map { source, .. } => Some(source.as_ref()),
            Self::Link { source, .. }
            | Self::Mapping { source, .. }
            | Self::Pin { source, .. }
            | Self::Walk { source, .. } => Some(source),
            Self::Unknown { source, .. } => source.inner(),
            Self::MissingFields { .. } | Self::NoCgroup { .. } | Self::Broken { .. } => None,
        }
    }
}

fn verifier(error: &ProgramError) -> Option<String> {
    match error {
        ProgramError::LoadError { io_error: _, verifier_log } => reason(&verifier_log.to_string()),
        _ => None,
    }
}

/// The last words of a verifier's log about the program: after them come only its own statistics.
fn reason(log: &str) -> Option<String> {
    const LINES: usize = 2;
    const STATISTICS: [&str; 4] = ["processed ", "verification time ", "stack depth ", "insns "];
    let telling = |line: &&str| !line.is_empty() && !STATISTICS.iter().any(|word| line.starts_with(word));
    let mut last: Vec<&str> = log.lines().rev().map(str::trim).filter(telling).take(LINES).collect();
    last.reverse();
    (!last.is_empty()).then(|| last.join(" / "))
}

/// An error with its causes, on one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    if let Some(ProgramError::LoadError { io_error, .. }) = error.downcast_ref() {
        // aya's own text has the whole log in it, or the words for it and then nothing.
        return io_error.to_string();
    }
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
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_reason_is_found_and_its_statistics_are_not() {
        let cases = [
            ("", None),
            ("\n\n", None),
            ("processed 0 insns (limit 1000000) max_states_per_insn 0 total_states 0\n", None),
            (
                "0: R1=ctx()\n; let x\n5: (61) r0 = *(u32 *)(r1 +400)\ninvalid bpf_context access off=400 size=4\n\
                 verification time 30 usec\nprocessed 6 insns (limit 1000000)\n",
                Some("5: (61) r0 = *(u32 *)(r1 +400) / invalid bpf_context access off=400 size=4"),
            ),
        ];
        for (log, expected) in cases {
            assert_eq!(reason(log).as_deref(), expected, "{log}");
        }
    }

    #[test]
    fn refusals_are_told_from_other_failures() {
        let denied = || io::Error::from_raw_os_error(libc::EPERM);
        let map = |io_error| {
            let source =
                Box::new(EbpfError::MapError(MapError::CreateError { name: "RING".into(), io_error }));
            LoadError::Object { signal: "tcp", source }
        };
        assert!(map(denied()).is_permission_denied());
        assert!(!map(io::Error::from_raw_os_error(libc::ENOMEM)).is_permission_denied());
        assert_eq!(map(denied()).cause().matches("not permitted").count(), 1, "{}", map(denied()).cause());
        let call = aya::sys::SyscallError { call: "bpf_link_create", io_error: denied() };
        let attach = LoadError::Attach {
            signal: "dns",
            program: "dns_egress",
            hook: Hook::CgroupEgress,
            source: Box::new(ProgramError::SyscallError(call)),
        };
        assert!(attach.is_permission_denied());
        assert!(attach.to_string().contains("cannot attach dns_egress"), "{attach}");
    }
}
