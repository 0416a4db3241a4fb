//! System calls: what processes spend their time on inside the kernel.

use super::{
    Dashboard, Row,
    filter::{OWNERS, by_workload, quantile, rate, worst},
    panel::{Panel, Query, Shape},
};

pub(super) fn dashboard() -> Dashboard {
    let calls = |more: &str| rate("process_syscall_duration_seconds_count", more);
    let time = |more: &str| rate("process_syscall_duration_seconds_sum", more);
    let errors = || rate("process_syscall_errors_total", "");
    let stuck = || format!("process_syscall_in_flight{{{OWNERS}}}");
    const WORK: &str = "syscall_class=\"work\"";
    const WHO: &str = "{{k8s_namespace_name}} {{workload}} {{node}}";
    Dashboard {
        uid: "probe-syscalls",
        file: "deploy/grafana/syscalls.json",
        title: "probe / Syscalls",
        description: "What processes spend their system calls on, what fails, and what does not return.",
        of_workloads: true,
        rows: vec![
            Row {
                title: "Is something wrong?",
                panels: vec![
                    Panel::stat("Calls that do not return", "short", format!("sum({}) or vector(0)", stuck()),
                        "Working calls that have not returned for longer than the threshold (100 ms), at the last look.")
                        .red_from(1.0, 10.0),
                    Panel::stat("Threads at work in calls", "short", format!("sum({})", time(WORK)),
                        "Seconds a second spent in calls that work, not wait by design: on the CPU or asleep on a disk or lock."),
                    Panel::stat("Calls", "cps", format!("sum({})", calls("")), "System calls a second."),
                    Panel::stat("Of them failed", "percentunit", format!("(sum({}) or vector(0)) / (sum({}) > 0)", errors(), calls("")),
                        "Many programs live with failing calls (EAGAIN, ENOENT): a change says more than the level."),
                    Panel::stat("p99 of working calls", "s", quantile("0.99", "process_syscall_duration_seconds", WORK, ""),
                        "Of all working calls together; by call below."),
                    Panel::stat("Alerts that fire", "short",
                        "count(ALERTS{alertstate=\"firing\", component=\"syscalls\", cluster=~\"$cluster\"}) or vector(0)",
                        "Of the rules for system calls, where Prometheus has them loaded.")
                        .red_from(1.0, 1.0),
                ],
            },
            Row {
                title: "Where?",
                panels: vec![
                    Panel {
                        title: "Workloads by time in calls",
                        description: "The ten whose calls work longest; 1 s/s is one thread all the time. What hangs is in the last column.",
                        shape: Shape::Table(&["at work [s]", "calls [cps]", "errors [cps]", "not returned [short]"]),
                        unit: "short",
                        queries: vec![
                            Query::new(worst(10, &time(WORK)), ""),
                            Query::new(by_workload(&calls("")), ""),
                            Query::new(by_workload(&errors()), ""),
                            Query::new(by_workload(&stuck()), ""),
                        ],
                        thresholds: None,
                        width: 24,
                    },
                    Panel::lines("Time at work, by workload", "s",
                        vec![Query::new(worst(8, &time(WORK)), WHO)],
                        "Seconds a second: threads inside calls."),
                    Panel::lines("Calls that do not return, by call and workload", "short",
                        vec![Query::new(format!("topk(8, {} > 0)", super::filter::by_workload_and(&stuck(), &["syscall_name"])), "{{syscall_name}} {{k8s_namespace_name}} {{workload}} {{node}}")],
                        "A line that stays is a hang: `probe syscalls` on that node shows path, wait channel and kernel stack."),
                ],
            },
            Row {
                title: "How?",
                panels: vec![
                    Panel::stack("Time at work, by call", "s",
                        vec![Query::new(format!("topk(10, sum by (syscall_name) ({}))", time(WORK)), "{{syscall_name}}")],
                        "What the time goes into: fsync is a disk, openat and stat a file system, futex is no work and not here."),
                    Panel::lines("p99, by call", "s",
                        vec![Query::new(format!("topk(10, {})", quantile("0.99", "process_syscall_duration_seconds", WORK, "syscall_name")), "{{syscall_name}}")],
                        "The ten slowest working calls; buckets are powers of two."),
                    Panel::stack("Calls, by call", "cps",
                        vec![Query::new(format!("topk(10, sum by (syscall_name) ({}))", calls("")), "{{syscall_name}}")],
                        "The ten most frequent."),
                    Panel::stack("Errors, by errno", "cps",
                        vec![Query::new(format!("topk(10, sum by (error_type) ({}))", errors()), "{{error_type}}")],
                        "EAGAIN: nothing there yet. ENOENT: search paths. EMFILE, ENOSPC, EDQUOT, EIO: act."),
                    Panel::lines("Errors, by call, errno and workload", "cps",
                        vec![Query::new(format!("topk(10, {})", super::filter::by_workload_and(&errors(), &["syscall_name", "error_type"])), "{{syscall_name}} {{error_type}} {{k8s_namespace_name}} {{workload}} {{node}}")],
                        "Whose."),
                    Panel::lines("Time waiting, by call", "s",
                        vec![Query::new(format!("topk(10, sum by (syscall_name) ({}))", time("syscall_class=\"wait\"")), "{{syscall_name}}")],
                        "Calls that wait by design (epoll_wait, futex, nanosleep): idle threads, mostly. No trouble by itself."),
                ],
            },
        ],
    }
}
