//! Skips: what a kernel may lack, and from which one on it may not; what only a machine of the test's own may do.

use std::io::Write as _;

use anyhow::{Context as _, Result, bail};

use crate::probe::in_guest;

/// How a test says that it was skipped, in front of the reason.
pub(crate) const SKIP_MARK: &str = "@skipped ";

/// Ends a test early, with `Ok`, on a kernel that lacks a feature; on one that should have it the test fails.
/// `require!(has_reason, "argument reason of tcp_send_reset", since = "6.10")`
#[macro_export]
macro_rules! require {
    ($present:expr, $feature:expr, since = $since:expr) => {
        if !$present {
            return $crate::require::skip($feature, $since).map_err(Into::into);
        }
    };
}

/// Reports a skip.
///
/// # Errors
///
/// This kernel is `since` or later: it should have the feature.
pub fn skip(feature: &str, since: &str) -> Result<()> {
    if !kernel_before(since)? {
        bail!("{feature}: absent, though kernels have it from {since} on");
    }
    say(&format!("{feature}: from {since} on"))
}

/// Whether the test may do what would disturb a host. It is reported as skipped where not.
///
/// # Errors
///
/// stdout does not take the report.
pub fn own_machine(what: &str) -> Result<bool> {
    if !in_guest() {
        say(&format!("{what}: in virtual machines only"))?;
    }
    Ok(in_guest())
}

/// Reports a test as skipped that takes what virtual machines of the tests do not have.
///
/// # Errors
///
/// stdout does not take the report.
pub fn own_host(what: &str) -> Result<()> {
    say(&format!("{what}: on hosts only"))
}

/// Reports a test as skipped that takes what not every kernel is built with, whichever its version.
///
/// # Errors
///
/// stdout does not take the report.
pub fn own_kernel(what: &str) -> Result<()> {
    say(what)
}

fn say(reason: &str) -> Result<()> {
    // Not by a macro: the test harness would capture that.
    Ok(writeln!(std::io::stdout().lock(), "{SKIP_MARK}{reason}")?)
}

/// Whether the running kernel is older than `version`: for tests whose expectation differs.
///
/// # Errors
///
/// One of the two is no version.
pub fn kernel_before(version: &str) -> Result<bool> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let here = self::version(&release).with_context(|| format!("release {release:?}"))?;
    Ok(here < self::version(version).with_context(|| format!("version {version:?}"))?)
}

/// Major and minor number of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_fails_on_kernels_that_should_have_the_feature() {
        assert!(skip("bpf(2)", "3.18").is_err());
        assert!(skip("something to come", "nothing").is_err());
        assert!(skip("something to come", "99.0").is_ok());
    }

    #[test]
    fn versions() {
        assert_eq!(version("5.10.0-46-cloud-amd64"), Some((5, 10)));
        assert_eq!(version("7.2"), Some((7, 2)));
        assert_eq!(version("7"), None);
    }
}
