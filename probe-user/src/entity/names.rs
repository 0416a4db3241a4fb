//! Which name led to an address: what DNS servers lately told the sockets of a network namespace, bounded.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;

/// Addresses that are remembered, in all network namespaces together; those longest unused give way.
const MOST: NonZeroUsize = NonZeroUsize::MIN.saturating_add(8_191);
/// Names of an address that are remembered, one after the other: where more follow each other, older connections have none.
const HISTORY: usize = 4;
/// How long after an answer a connection may begin. Longer than most answers live, for programs ask once and connect again; not
/// long, for addresses of pods and numbers of network namespaces become others'.
const HOLDS: Duration = Duration::from_secs(600);

/// Names by network namespace and address. Several names lead to one address: a connection's is the one that was given out last
/// before it began, and stays so whatever is given out later.
#[derive(Debug)]
pub struct PeerNames {
    known: LruCache<(u32, IpAddr), Vec<Given>>,
}

/// A name that was given out, once or several times with no other in between.
#[derive(Debug)]
struct Given {
    name: Arc<str>,
    /// CLOCK_MONOTONIC nanoseconds.
    first_ns: u64,
    last_ns: u64,
}

impl Default for PeerNames {
    fn default() -> Self {
        Self { known: LruCache::new(MOST) }
    }
}

impl PeerNames {
    /// At that time (CLOCK_MONOTONIC nanoseconds) a DNS server told a socket of this network namespace that `name` has these
    /// addresses.
    pub fn learn(&mut self, time_ns: u64, netns: u32, name: &str, addresses: &[IpAddr]) {
        let name: Arc<str> = name.into();
        for address in addresses {
            let history = self.known.get_or_insert_mut((netns, *address), Vec::new);
            match history.last_mut() {
                Some(last) if last.name == name => last.last_ns = time_ns,
                _ => {
                    if history.len() == HISTORY {
                        history.remove(0);
                    }
                    history.push(Given { name: Arc::clone(&name), first_ns: time_ns, last_ns: time_ns });
                }
            }
        }
    }

    /// The name by which a connection to an address was made that began at that time (CLOCK_MONOTONIC nanoseconds).
    pub fn name_of(&mut self, began_ns: u64, netns: u32, address: IpAddr) -> Option<Arc<str>> {
        let history = self.known.get(&(netns, address))?;
        let given = history.iter().rev().find(|given| given.first_ns <= began_ns)?;
        (Duration::from_nanos(began_ns.saturating_sub(given.last_ns)) < HOLDS)
            .then(|| Arc::clone(&given.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLDS_NS: u64 = HOLDS.as_nanos() as u64;

    #[test]
    fn a_connection_has_the_name_that_led_to_it() {
        let mut names = PeerNames::default();
        let [a, b] = ["192.0.2.1", "2001:db8::1"].map(|address| address.parse().unwrap());
        names.learn(1_000, 7, "old.example", &[a, b]);
        names.learn(2_000, 7, "new.example", &[a]);
        names.learn(3_000, 7, "new.example", &[a]);
        let cases = [
            (999, 7, a, None, "before any answer"),
            (1_000, 7, a, Some("old.example"), "at once"),
            (1_999, 7, a, Some("old.example"), "before the other"),
            (2_000, 7, a, Some("new.example"), "after it"),
            (2_999, 7, a, Some("new.example"), "between two of the same"),
            (9_000, 7, b, Some("old.example"), "another address"),
            (9_000, 8, a, None, "another network namespace"),
            (2_999 + HOLDS_NS, 7, a, Some("new.example"), "just in time"),
            (3_000 + HOLDS_NS, 7, a, None, "too long after"),
        ];
        for (began_ns, netns, address, want, what) in cases {
            assert_eq!(names.name_of(began_ns, netns, address).as_deref(), want, "{what}");
        }
    }

    #[test]
    fn a_name_that_is_forgotten_is_no_other() {
        let mut names = PeerNames::default();
        let address = "192.0.2.1".parse().unwrap();
        for time_ns in 1..=100 {
            names.learn(time_ns * 10, 1, &format!("n{time_ns}.example"), &[address]);
        }
        assert_eq!(names.name_of(1_005, 1, address).as_deref(), Some("n100.example"));
        assert_eq!(names.name_of(975, 1, address).as_deref(), Some("n97.example"));
        assert_eq!(names.name_of(965, 1, address), None);
    }

    #[test]
    fn they_are_bounded() {
        let mut names = PeerNames::default();
        let address = |number: u32| IpAddr::V4(number.into());
        for number in 0..=MOST.get() as u32 {
            names.learn(1, 1, "a.example", &[address(number)]);
            // Used, and so not the one to give way.
            assert!(names.name_of(2, 1, address(0)).is_some());
        }
        assert_eq!(names.known.len(), MOST.get());
        assert_eq!(names.name_of(2, 1, address(1)), None);
    }
}
