//! Asking the kernel to count the runs of programs, and the time that they take.

use std::io;
use std::os::fd::OwnedFd;

use aya::sys::{Stats, SyscallError, enable_stats};

/// The kernel counts for as long as this lives: the runs of every program of the host.
#[derive(Debug)]
pub struct RunStats {
    /// `None`: it does anyhow.
    _asked: Option<OwnedFd>,
}

/// Why the kernel does not count.
#[derive(Debug, thiserror::Error)]
pub enum RunStatsError {
    /// CAP_SYS_ADMIN is missing.
    #[error(
        "--program-stats asks the kernel to take the time of programs, which takes CAP_SYS_ADMIN: {0} (run as root, or grant CAP_SYS_ADMIN, \
         which is dropped once that is done; or have it done for good: sysctl kernel.bpf_stats_enabled=1)"
    )]
    Privileges(io::Error),
    /// It cannot be asked.
    #[error(
        "--program-stats asks the kernel to take the time of programs, and it cannot be asked: {0} (Linux 5.8 and later can; before that: sysctl \
         kernel.bpf_stats_enabled=1; or do without --program-stats)"
    )]
    Kernel(io::Error),
}

impl RunStats {
    /// Asks; `enabled` is whether the kernel counts anyhow (kernel.bpf_stats_enabled).
    ///
    /// # Errors
    ///
    /// It refuses, and does not.
    pub fn ask(enabled: Option<bool>) -> Result<Self, RunStatsError> {
        Self::of(enable_stats(Stats::RunTime).map_err(|SyscallError { call: _, io_error }| io_error), enabled)
    }

    fn of(asked: io::Result<OwnedFd>, enabled: Option<bool>) -> Result<Self, RunStatsError> {
        match asked {
            Ok(asked) => Ok(Self { _asked: Some(asked) }),
            Err(_) if enabled == Some(true) => Ok(Self { _asked: None }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(RunStatsError::Privileges(error))
            }
            Err(error) => Err(RunStatsError::Kernel(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_learns_what_would_help() {
        let asked = || Ok(OwnedFd::from(std::fs::File::open("/dev/null")?));
        let refused = || Err(io::Error::from_raw_os_error(libc::EPERM));
        let unknown = || Err(io::Error::from_raw_os_error(libc::EINVAL));
        for (what, asked, enabled, says) in [
            ("asked", asked(), Some(false), ""),
            ("asked, nobody knows", asked(), None, ""),
            ("refused, and done for good", refused(), Some(true), ""),
            ("refused", refused(), Some(false), "grant CAP_SYS_ADMIN"),
            ("refused, nobody knows", refused(), None, "sysctl kernel.bpf_stats_enabled=1"),
            ("before 5.8", unknown(), Some(false), "Linux 5.8"),
            ("before 5.8, done for good", unknown(), Some(true), ""),
        ] {
            let said = RunStats::of(asked, enabled).err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(says.is_empty(), said.is_empty(), "{what}: {said}");
            assert!(said.contains(says), "{what}: {said}");
        }
    }
}
