//! Runs of programs, as the kernel counts them.

use std::os::fd::RawFd;
use std::path::PathBuf;

/// What came of a program since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// How often it ran; counted only while the kernel is asked to ([`crate::load::RunStats`]).
    pub count: u64,
    /// Nanoseconds that took, over all CPUs; likewise.
    pub time_ns: u64,
    /// Runs that the kernel skipped: it does not run a program on a CPU that is inside the same one already. Nothing before 5.12,
    /// which does not tell.
    pub skipped: Option<u64>,
}

/// Of the program behind a descriptor of this process. `BPF_OBJ_GET_INFO_BY_FD` says the same, and before 5.19 takes CAP_BPF; this takes
/// no capability.
#[must_use]
pub fn of(fd: RawFd) -> Option<Runs> {
    parse(&std::fs::read_to_string(PathBuf::from(format!("/proc/self/fdinfo/{fd}"))).ok()?)
}

/// kernel/bpf/syscall.c, `bpf_prog_show_fdinfo`.
fn parse(fdinfo: &str) -> Option<Runs> {
    let number = |name: &str| {
        fdinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
    };
    let (count, time_ns) = (number("run_cnt")?, number("run_time_ns")?);
    Some(Runs { count, time_ns, skipped: number("recursion_misses") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_tell_and_nothing_else_does() {
        let program = "pos:\t0\nprog_type:\t17\nrun_time_ns:\t812\nrun_cnt:\t3\n";
        let runs = Runs { count: 3, time_ns: 812, skipped: None };
        assert_eq!(parse(program), Some(runs), "before 5.12");
        let newer = format!("{program}recursion_misses:\t7\nverified_insns:\t5\n");
        assert_eq!(parse(&newer), Some(Runs { skipped: Some(7), ..runs }));
        for other in
            ["", "pos:\t0\nmap_type:\t1\n", "run_cnt:\tx\nrun_time_ns:\t1\n", "run_cnt:\t1\n", "run_cnt"]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
