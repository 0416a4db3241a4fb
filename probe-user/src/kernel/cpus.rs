//! Numbers of CPUs. The possible ones count: one that is not online yet may come, and numbers may have gaps.

use std::io;

const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// How many numbers CPUs may have: one more than the highest possible one. An array that the programs index by their CPU
/// needs so many entries. (A per-CPU map has one value a possible CPU instead, without gaps.)
///
/// # Errors
///
/// The kernel does not tell, or not in words that we know.
pub fn possible_ids() -> io::Result<u32> {
    let text = std::fs::read_to_string(POSSIBLE)
        .map_err(|error| io::Error::new(error.kind(), format!("{POSSIBLE}: {error}")))?;
    ids(&text).ok_or_else(|| io::Error::other(format!("{POSSIBLE} is no list of CPUs: {text:?}")))
}

/// Of a list like `0-3,8,10-11`.
fn ids(list: &str) -> Option<u32> {
    let highest = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some(last)
    };
    let mut most = 0;
    for range in list.trim_end().split(',') {
        most = most.max(highest(range)?.checked_add(1)?);
    }
    Some(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_count() {
        for (list, want) in [
            ("0\n", Some(1)),
            ("0-1\n", Some(2)),
            ("0,2-3\n", Some(4)),
            ("4-7,0-1", Some(8)),
            ("", None),
            ("\n", None),
            ("3-2\n", None),
            ("0-\n", None),
            ("4294967295\n", None),
        ] {
            assert_eq!(ids(list), want, "{list:?}");
        }
    }

    #[test]
    fn there_are_as_many_as_possible_cpus() {
        let ids = possible_ids().unwrap();
        let cpus = aya::util::nr_cpus().unwrap();
        assert!(usize::try_from(ids).unwrap() >= cpus, "{ids} numbers for {cpus} CPUs");
    }
}
