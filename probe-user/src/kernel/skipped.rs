//! Runs of programs that the kernel skipped: it does not run a program on a CPU that is inside the same one already.

use std::os::fd::RawFd;
use std::path::PathBuf;

/// Runs skipped so far of the program behind a descriptor of this process. Nothing before 5.12, which does not tell.
#[must_use]
pub fn runs(fd: RawFd) -> Option<u64> {
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
