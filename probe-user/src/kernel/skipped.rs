//! Runs of programs that the kernel skipped: it does not run a program on a CPU that is inside the same one already.

use std::collections::BTreeSet;
use std::path::PathBuf;

/// The programs that this process holds open, as descriptors. Empty before 5.12, which does not tell.
#[must_use]
pub fn open_programs() -> BTreeSet<u32> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fdinfo") else { return BTreeSet::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|fd| misses(*fd).is_some())
        .collect()
}

/// Runs skipped so far of the programs behind these descriptors.
#[must_use]
pub fn skipped(programs: &BTreeSet<u32>) -> u64 {
    programs.iter().filter_map(|fd| misses(*fd)).sum()
}

fn misses(fd: u32) -> Option<u64> {
    parse(&std::fs::read_to_string(PathBuf::from(format!("/proc/self/fdinfo/{fd}"))).ok()?)
}

/// `recursion_misses` of kernel/bpf/syscall.c, `bpf_prog_show_fdinfo`.
fn parse(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_tell_and_nothing_else_does() {
        assert_eq!(parse("pos:\t0\nprog_type:\t17\nrun_cnt:\t0\nrecursion_misses:\t7\n"), Some(7));
        for other in ["", "pos:\t0\nmap_type:\t1\n", "recursion_misses:\tx\n", "recursion_misses"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
