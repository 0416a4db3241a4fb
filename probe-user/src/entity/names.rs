//! Which name an address was given out under: a network namespace's latest DNS answers, bounded.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

/// Addresses that are remembered, in all network namespaces together; those longest unused give way.
const MOST: NonZeroUsize = NonZeroUsize::MIN.saturating_add(8_191);
/// How long an address keeps its name. Longer than answers live: connections outlast them, and whoever pools connections does not
/// ask again. No longer than this: addresses of pods become others'.
const HOLDS: Duration = Duration::from_secs(3_600);

/// Names by network namespace and address. Of several names that lead to one address, the one given out last.
#[derive(Debug)]
pub struct PeerNames {
    known: LruCache<(u32, IpAddr), (Arc<str>, Instant)>,
}

impl Default for PeerNames {
    fn default() -> Self {
        Self { known: LruCache::new(MOST) }
    }
}

impl PeerNames {
    /// A DNS server told a socket of this network namespace that `name` has these addresses.
    pub fn learn(&mut self, netns: u32, name: &str, addresses: &[IpAddr], now: Instant) {
        let name: Arc<str> = name.into();
        for address in addresses {
            self.known.put((netns, *address), (Arc::clone(&name), now));
        }
    }

    /// The name that was lately given out for an address.
    pub fn name_of(&mut self, netns: u32, address: IpAddr, now: Instant) -> Option<Arc<str>> {
        let (name, learned) = self.known.get(&(netns, address))?;
        (now.saturating_duration_since(*learned) < HOLDS).then(|| Arc::clone(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_its_namespaces_and_the_latest_for_a_while() {
        let mut names = PeerNames::default();
        let begin = Instant::now();
        let [a, b] = ["192.0.2.1", "2001:db8::1"].map(|address| address.parse().unwrap());
        names.learn(7, "old.example", &[a, b], begin);
        let later = begin + Duration::from_secs(60);
        names.learn(7, "new.example", &[a], later);
        let name = |names: &mut PeerNames, netns, address, now| names.name_of(netns, address, now);
        assert_eq!(name(&mut names, 7, a, later).as_deref(), Some("new.example"));
        assert_eq!(name(&mut names, 7, b, later).as_deref(), Some("old.example"));
        assert_eq!(name(&mut names, 8, a, later), None, "another network namespace");
        assert_eq!(name(&mut names, 7, b, begin + HOLDS), None, "too long ago");
        assert_eq!(name(&mut names, 7, a, begin + HOLDS).as_deref(), Some("new.example"));
    }

    #[test]
    fn they_are_bounded() {
        let mut names = PeerNames::default();
        let now = Instant::now();
        let address = |number: u32| IpAddr::V4(number.into());
        for number in 0..=MOST.get() as u32 {
            names.learn(1, "a.example", &[address(number)], now);
            // Used, and so not the one to give way.
            assert!(names.name_of(1, address(0), now).is_some());
        }
        assert_eq!(names.known.len(), MOST.get());
        assert_eq!(names.name_of(1, address(1), now), None);
    }
}
