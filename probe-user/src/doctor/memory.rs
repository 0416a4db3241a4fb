//! What maps take, in the kernel's own words: /proc/self/fdinfo.

use std::collections::BTreeMap;

use super::{Check, mib};

/// A map as fdinfo tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MapInfo {
    id: u32,
    kind: u32,
    key_size: u64,
    value_size: u64,
    entries: u64,
    /// What the kernel says that it takes. From 5.11 to 6.3 it knew nothing of per-CPU values and of its own
    /// book-keeping.
    memlock: u64,
}

impl MapInfo {
    /// Total over any text; `None`: it is no map's.
    fn parse(fdinfo: &str) -> Option<Self> {
        let number = |wanted: &str| {
            fdinfo.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                (name == wanted).then(|| value.trim().parse::<u64>().ok())?
            })
        };
        Some(Self {
            id: number("map_id")?.try_into().ok()?,
            kind: number("map_type")?.try_into().ok()?,
            key_size: number("key_size")?,
            value_size: number("value_size")?,
            entries: number("max_entries")?,
            memlock: number("memlock").unwrap_or(0),
        })
    }

    /// entries × (key + value), values of per-CPU maps as often as there are possible CPUs; a ring's entries are bytes.
    fn least_bytes(&self, possible_cpus: u64) -> u64 {
        // include/uapi/linux/bpf.h, enum bpf_map_type.
        const PERCPU_HASH: u32 = 5;
        const PERCPU_ARRAY: u32 = 6;
        const LRU_PERCPU_HASH: u32 = 10;
        const RINGBUF: u32 = 27;
        let value = self.value_size.saturating_add(7) & !7;
        let value = match self.kind {
            RINGBUF => return self.entries,
            PERCPU_HASH | PERCPU_ARRAY | LRU_PERCPU_HASH => value.saturating_mul(possible_cpus),
            _ => value,
        };
        self.entries.saturating_mul(self.key_size.saturating_add(value))
    }

    fn bytes(&self, possible_cpus: u64) -> u64 {
        self.memlock.max(self.least_bytes(possible_cpus))
    }
}

/// Bytes of all maps that this process holds open. `None` where /proc does not tell of any.
pub(super) fn of_open_maps(possible_cpus: u64) -> Option<u64> {
    let mut maps = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo").ok()?.flatten() {
        if let Some(map) = std::fs::read_to_string(entry.path()).ok().as_deref().and_then(MapInfo::parse) {
            maps.insert(map.id, map.bytes(possible_cpus));
        }
    }
    (!maps.is_empty()).then(|| maps.values().sum())
}

/// What each signal's maps take at the default sizes.
pub(super) fn check(signals: &[(&'static str, u64)]) -> Option<Check> {
    if signals.is_empty() {
        return None;
    }
    let each: Vec<String> = signals.iter().map(|(name, bytes)| format!("{name} {}", mib(*bytes))).collect();
    let all = signals.iter().map(|(_, bytes)| bytes).sum();
    let detail = format!("maps and rings at the default sizes: {} ({})", mib(all), each.join(", "));
    Some(Check::ok("memory", detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fdinfo(kind: u32, key: u32, value: u32, entries: u32, memlock: u32) -> String {
        format!(
            "pos:\t0\nflags:\t02000002\nmap_type:\t{kind}\nkey_size:\t{key}\nvalue_size:\t{value}\n\
             max_entries:\t{entries}\nmap_flags:\t0x0\nmemlock:\t{memlock}\nmap_id:\t7\nfrozen:\t0\n"
        )
    }

    #[test]
    fn maps_take_what_the_kernel_says_and_at_least_their_contents() {
        let cases = [
            ("the kernel knows", fdinfo(1, 8, 8, 10, 4096), Some(4096)),
            ("array", fdinfo(2, 4, 12, 10, 0), Some(10 * 20)),
            ("per-CPU hash", fdinfo(5, 16, 8, 10, 300), Some(10 * (16 + 4 * 8))),
            ("ring", fdinfo(27, 0, 0, 262_144, 0), Some(262_144)),
            ("huge", fdinfo(5, u32::MAX, u32::MAX, u32::MAX, 0), Some(u64::MAX)),
            ("a file", "pos:\t0\nflags:\t00\n".to_owned(), None),
            ("nothing", String::new(), None),
            ("nonsense", "map_id: x\nmap_type\n:::\n".to_owned(), None),
        ];
        for (name, text, expected) in cases {
            assert_eq!(MapInfo::parse(&text).map(|map| map.bytes(4)), expected, "{name}");
        }
    }
}
