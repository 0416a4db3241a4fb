//! What `probe` says in its closing lines: records delivered, and what was lost where.

use anyhow::{Context as _, Result, ensure};

use crate::probe::Finished;

/// A loss line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// How many.
    pub count: u64,
    /// What to do about it.
    pub remedy: String,
}

impl Finished {
    /// Records of a signal that were delivered.
    ///
    /// # Errors
    ///
    /// It ended badly, or without closing lines.
    pub fn delivered(&self, signal: &str) -> Result<u64> {
        ensure!(self.code == Some(0), "probe ended with {:?}: {}", self.code, self.stderr);
        delivered(&self.stderr, signal).with_context(|| format!("no closing lines: {}", self.stderr))
    }

    /// What a signal lost at a place; nothing where it says nothing.
    ///
    /// # Errors
    ///
    /// The line is not as expected.
    pub fn lost(&self, signal: &str, place: &str) -> Result<Lost> {
        lost(&self.stderr, signal, place)
    }
}

/// `records: dns 3, tcp 4; nothing was lost`
fn delivered(stderr: &str, signal: &str) -> Option<u64> {
    let records = stderr.lines().find_map(|line| line.strip_prefix("records: "))?;
    let records = records.split(';').next()?;
    let of_signal = records.split(", ").find_map(|part| part.strip_prefix(signal)?.trim().parse().ok());
    Some(of_signal.unwrap_or(0))
}

/// `lost: 5 of dns at ring: raise --ring-kib`
fn lost(stderr: &str, signal: &str, place: &str) -> Result<Lost> {
    let middle = format!(" of {signal} at {place}: ");
    let Some((count, remedy)) =
        stderr.lines().find_map(|line| line.strip_prefix("lost: ")?.split_once(&middle))
    else {
        return Ok(Lost::default());
    };
    Ok(Lost { count: count.parse()?, remedy: remedy.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_read() {
        let stderr = "records: dns 3, tcp 40\nlost: 5 of dns at ring: raise --ring-kib\n";
        assert_eq!(delivered(stderr, "dns"), Some(3));
        assert_eq!(delivered(stderr, "tcp"), Some(40));
        assert_eq!(delivered(stderr, "syscalls"), Some(0));
        assert_eq!(delivered("records: dns 3; nothing was lost", "dns"), Some(3));
        assert_eq!(delivered("error: no", "dns"), None);
        let ring = Lost { count: 5, remedy: "raise --ring-kib".to_owned() };
        assert_eq!(lost(stderr, "dns", "ring").unwrap(), ring);
        assert_eq!(lost(stderr, "tcp", "ring").unwrap(), Lost::default());
    }
}
