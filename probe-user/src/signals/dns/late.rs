//! Questions that were given up, in case their answer comes late.

use std::num::NonZeroUsize;

use lru::LruCache;
use probe_common::dns::{Pending, PendingKey};

/// How many are remembered.
const GIVEN_UP: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// For how long, nanoseconds.
const GIVEN_UP_NS: u64 = 60_000_000_000;

/// Questions reported as unanswered lately, each with its time and with the number of the try that was told; bounded, oldest out
/// first.
#[derive(Debug)]
pub(super) struct GivenUp(LruCache<PendingKey, (u64, Pending)>);

impl Default for GivenUp {
    fn default() -> Self {
        Self(LruCache::new(GIVEN_UP))
    }
}

impl GivenUp {
    pub(super) fn insert(&mut self, now_ns: u64, key: PendingKey, pending: Pending) {
        self.0.put(key, (now_ns, pending));
    }

    /// The question that a late answer belongs to. A question whose server was not known waited under none.
    pub(super) fn take(&mut self, now_ns: u64, key: &PendingKey) -> Option<Pending> {
        let anywhere = PendingKey { peer: [0; 16], port: 0, ..*key };
        let (at, pending) = self.0.pop(key).or_else(|| self.0.pop(&anywhere))?;
        (now_ns.saturating_sub(at) <= GIVEN_UP_NS).then_some(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_given_up_are_bounded_and_forgotten() {
        let mut given_up = GivenUp::default();
        let pending: Pending = bytemuck::Zeroable::zeroed();
        let key = |id: usize| PendingKey { question: id as u32, ..PendingKey::default() };
        for id in 0..GIVEN_UP.get() + 10 {
            given_up.insert(1, key(id), pending);
        }
        assert_eq!(given_up.0.len(), GIVEN_UP.get());
        assert!(given_up.take(1, &key(0)).is_none(), "the oldest went first");
        assert!(given_up.take(1 + GIVEN_UP_NS, &key(100)).is_some());
        assert!(given_up.take(1, &key(100)).is_none(), "an answer is late once");
        assert!(given_up.take(2 + GIVEN_UP_NS, &key(101)).is_none(), "too late to be an answer");
        // Given up again: from then on.
        given_up.insert(1 + GIVEN_UP_NS, key(102), pending);
        let elsewhere = PendingKey { port: 53, peer: [1; 16], ..key(102) };
        assert!(given_up.take(1 + 2 * GIVEN_UP_NS, &elsewhere).is_some(), "it waited under no server");
    }
}
