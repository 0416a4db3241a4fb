//! The addresses of servers as text: few, and in nearly every series.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

/// How many are kept. A host asks a handful; one that resolves for others asks thousands, most of them seldom.
const SERVERS: NonZeroUsize = NonZeroUsize::new(1_024).expect("not zero");

/// Addresses that were written lately, each with its text; bounded, oldest out first.
#[derive(Debug)]
pub(super) struct Servers(LruCache<IpAddr, Arc<str>>);

impl Default for Servers {
    fn default() -> Self {
        Self(LruCache::new(SERVERS))
    }
}

impl Servers {
    /// As [`IpAddr`] writes it.
    pub(super) fn text(&mut self, address: IpAddr) -> Arc<str> {
        Arc::clone(self.0.get_or_insert(address, || address.to_string().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_ever_and_bounded() {
        let mut servers = Servers::default();
        for number in 0..3 * SERVERS.get() as u128 {
            for address in [IpAddr::from((number as u32).to_be_bytes()), IpAddr::from(number.to_be_bytes())] {
                assert_eq!(&*servers.text(address), address.to_string());
                assert!(Arc::ptr_eq(&servers.text(address), &servers.text(address)));
            }
        }
        assert_eq!(servers.0.len(), SERVERS.get());
    }
}
