//! What an interval brought, for the summary of `probe run`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::event::{Lookup, Outcome, Transport};
use crate::series::Histogram;

/// What one interval brought.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Of answered lookups.
    pub durations: Histogram,
    /// Answered lookups by response code.
    pub rcodes: BTreeMap<Cow<'static, str>, u64>,
    /// Lookups that nobody answered in time.
    pub unanswered: u64,
    /// Those of them whose twin (A, AAAA) was answered.
    pub lost_twins: u64,
    /// Answers that came after that.
    pub late: u64,
    /// Lookups, answered or not, that were no first try.
    pub retries: u64,
    /// Answers over UDP that were cut, and lookups over TCP because of that.
    pub truncated: u64,
    /// See there.
    pub fallbacks: u64,
    /// Names found after lookups of names that do not exist, for the sake of a search list; and those lookups.
    pub searched: u64,
    /// See there.
    pub search_misses: u64,
    /// Of lookups answered by servers of this host, seen there.
    pub served: Histogram,
    /// Lookups that servers of this host did not answer in time, and those answered after that.
    pub not_served: u64,
    /// See there.
    pub served_late: u64,
    /// Questions that waited for their answer as the interval ended, and not for so long that they were given up.
    pub waiting: u64,
    /// Packets to or from the DNS port that hold no single well-formed question.
    pub malformed: u64,
    /// Answers to questions that nobody is known to have asked.
    pub unsolicited: u64,
}

impl Summary {
    pub(super) fn add(&mut self, lookup: &Lookup) {
        match lookup.outcome {
            Outcome::Answered => {
                self.durations.record(lookup.duration);
                *self.rcodes.entry(lookup.rcode.clone().unwrap_or_default()).or_default() += 1;
            }
            Outcome::Unanswered => self.unanswered += 1,
            Outcome::Late => self.late += 1,
        }
        if lookup.outcome != Outcome::Late {
            self.retries += u64::from(lookup.attempt > 1);
        }
        self.lost_twins += u64::from(lookup.lost_twin);
        self.truncated += u64::from(lookup.truncated && lookup.transport == Transport::Udp);
        self.fallbacks += u64::from(lookup.fallback);
        self.searched += u64::from(lookup.search_misses != 0);
        self.search_misses += u64::from(lookup.search_misses);
    }

    pub(super) fn add_served(&mut self, lookup: &Lookup) {
        match lookup.outcome {
            Outcome::Answered => self.served.record(lookup.duration),
            Outcome::Unanswered => self.not_served += 1,
            Outcome::Late => self.served_late += 1,
        }
    }
}
