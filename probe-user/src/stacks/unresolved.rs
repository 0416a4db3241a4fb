//! What had no name, and why: for the sentence at the end.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Reasons kept apart; what comes after is counted with [`Reason::Other`].
const MAX_REASONS: usize = 256;

/// Why an address has no name. Names of files are strangers': whoever writes them as text escapes them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The process had ended before anybody looked at where it has its code.
    Gone,
    /// The process has no code there.
    Unmapped,
    /// Code in memory of no file, of which nobody tells.
    Anonymous,
    /// The file has no symbol there.
    NoSymbol {
        /// Base name.
        file: Arc<str>,
    },
    /// The file cannot be read.
    Unreadable {
        /// Base name.
        file: Arc<str>,
        /// Why.
        error: Arc<str>,
    },
    /// The kernel's, with no function known there.
    Kernel,
    /// One of more reasons than are kept apart.
    Other,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => write!(f, "the process had ended"),
            Self::Unmapped => write!(f, "the process has no code there (a program without frame pointers?)"),
            Self::Anonymous => {
                write!(
                    f,
                    "code made while running, of which there is no /tmp/perf-PID.map (ask its runtime for one)"
                )
            }
            Self::NoSymbol { file } => write!(f, "{file} has no symbol there (install its debug symbols)"),
            Self::Unreadable { file, error } => write!(f, "{file} cannot be read: {error}"),
            Self::Kernel => write!(f, "no function of the kernel is known there"),
            Self::Other => write!(f, "further reasons"),
        }
    }
}

/// Addresses looked at, and those that have no name, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unresolved {
    looked_at: u64,
    reasons: HashMap<Reason, u64>,
}

impl Unresolved {
    pub(super) fn looked_at(&mut self, addresses: usize) {
        self.looked_at = self.looked_at.saturating_add(addresses as u64);
    }

    pub(super) fn count(&mut self, reason: Reason, addresses: usize) {
        let Self { looked_at: _, reasons } = self;
        let known = reasons.len() < MAX_REASONS || reasons.contains_key(&reason);
        let count = reasons.entry(if known { reason } else { Reason::Other }).or_default();
        *count = count.saturating_add(addresses as u64);
    }

    /// Addresses that a name was looked for.
    #[must_use]
    pub fn addresses(&self) -> u64 {
        self.looked_at
    }

    /// Those of them that have none.
    #[must_use]
    pub fn without_name(&self) -> u64 {
        self.reasons.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Why, most frequent first.
    #[must_use]
    pub fn reasons(&self) -> Vec<(&Reason, u64)> {
        let mut reasons: Vec<(&Reason, u64)> =
            self.reasons.iter().map(|(reason, count)| (reason, *count)).collect();
        reasons.sort_by(|(one, few), (other, many)| many.cmp(few).then_with(|| one.cmp(other)));
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_and_bounded() {
        let mut unresolved = Unresolved::default();
        unresolved.looked_at(1_000);
        unresolved.count(Reason::Gone, 3);
        unresolved.count(Reason::Unmapped, 4);
        unresolved.count(Reason::Gone, 2);
        for file in 0..MAX_REASONS {
            unresolved.count(Reason::NoSymbol { file: format!("lib{file:03}.so").into() }, 1);
        }
        unresolved.count(Reason::Gone, 1);
        let reasons = unresolved.reasons();
        assert_eq!(reasons[..2], [(&Reason::Gone, 6), (&Reason::Unmapped, 4)]);
        assert_eq!(reasons[2], (&Reason::Other, 2));
        assert_eq!(reasons[3].0.to_string(), "lib000.so has no symbol there (install its debug symbols)");
        assert_eq!(reasons.len(), MAX_REASONS + 1);
        assert_eq!((unresolved.addresses(), unresolved.without_name()), (1_000, 10 + MAX_REASONS as u64));
    }
}
