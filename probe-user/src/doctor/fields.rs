//! Kernel fields that are absent, and what is lost without each.

use probe_common::fields::{FIELDS, SYSCALLS, TCP};

use super::{Check, Status};
use crate::kernel::fields::Resolved;
use crate::signals;

/// What it means that an optional field is absent.
struct Detail {
    /// Rows of the table of fields.
    paths: &'static [&'static str],
    /// Signals that read them.
    signals: u8,
    effect: Effect,
}

#[derive(Clone, Copy)]
enum Effect {
    /// This is lost when any of them is absent.
    Lost(&'static str),
    /// One of them is enough, kernels differ; this is lost when all are absent.
    LostWithoutAll(&'static str),
    /// Nothing is lost, and why.
    Harmless(&'static str),
}

/// Every optional row of `probe_common::fields::FIELDS`; a test compares.
const DETAILS: &[Detail] = &[
    Detail {
        paths: &["task_struct.thread_info.status"],
        signals: SYSCALLS,
        effect: Effect::Lost("32-bit programs: their system calls go under the names of 64-bit ones"),
    },
    Detail {
        paths: &["pt_regs.di", "pt_regs.si", "pt_regs.dx", "pt_regs.r10", "pt_regs.r8", "pt_regs.r9"],
        signals: SYSCALLS,
        effect: Effect::Lost("arguments of slow system calls"),
    },
    Detail {
        paths: &["pt_regs.bx", "pt_regs.cx", "pt_regs.bp"],
        signals: SYSCALLS,
        effect: Effect::Lost("arguments of slow system calls of 32-bit programs"),
    },
    Detail {
        paths: &["task_struct.files", "files_struct.fdt", "fdtable.max_fds", "fdtable.fd", "inode.i_mode"],
        signals: SYSCALLS,
        effect: Effect::Lost(
            "reads that wait (pipes, terminals) count as work; files and sockets of slow system calls",
        ),
    },
    Detail {
        paths: &["inode.i_ino", "file.f_path.dentry", "dentry.d_name.name"],
        signals: SYSCALLS,
        effect: Effect::Lost("files and sockets of slow system calls"),
    },
    Detail {
        paths: &["pt_regs.orig_ax"],
        signals: SYSCALLS,
        effect: Effect::Lost("system calls that hang since before probe began"),
    },
    Detail {
        paths: &["task_struct.__state", "task_struct.state"],
        signals: SYSCALLS,
        effect: Effect::LostWithoutAll("system calls that hang since before probe began"),
    },
    Detail {
        paths: &["task_struct.cgroups", "css_set.dfl_cgrp"],
        signals: SYSCALLS,
        effect: Effect::Lost("the filters --cgroup and --container: with them, nothing is shown"),
    },
    Detail {
        paths: &["sock_common.skc_cookie.counter"],
        signals: TCP,
        effect: Effect::Lost("the kernel's own id of a connection"),
    },
    Detail {
        paths: &[
            "sock_common.skc_v6_daddr",
            "sock_common.skc_v6_rcv_saddr",
            "request_sock.__req_common.skc_v6_daddr",
            "request_sock.__req_common.skc_v6_rcv_saddr",
        ],
        signals: TCP,
        effect: Effect::Lost("connections over IPv6 (a kernel without IPv6 has none)"),
    },
    Detail {
        paths: &["sock.sk_cgrp_data.cgroup", "sock.sk_cgrp_data.val"],
        signals: TCP,
        effect: Effect::LostWithoutAll("the cgroup, and so the container, of connections"),
    },
    Detail {
        paths: &[
            "file.f_inode",
            "file.private_data",
            "inode.i_sb",
            "super_block.s_magic",
            "socket.sk",
            "socket.type",
        ],
        signals: TCP,
        effect: Effect::Lost("owners of connections that began before probe"),
    },
    Detail {
        paths: &["cgroup.level"],
        signals: TCP | SYSCALLS,
        effect: Effect::Lost("the filters --cgroup and --container: with them, nothing is shown"),
    },
    Detail {
        paths: &["cgroup.ancestors", "cgroup.ancestor_ids"],
        signals: TCP | SYSCALLS,
        effect: Effect::LostWithoutAll("the filters --cgroup and --container: with them, nothing is shown"),
    },
    Detail {
        paths: &["tcp_sock.srtt_us"],
        signals: TCP,
        effect: Effect::Lost("tcp.srtt of retransmits, system.network.tcp.rtt"),
    },
    Detail { paths: &["tcp_sock.delivered"], signals: TCP, effect: Effect::Lost("system.network.tcp.rtt") },
    Detail { paths: &["tcp_sock.snd_cwnd"], signals: TCP, effect: Effect::Lost("tcp.cwnd of retransmits") },
    Detail {
        paths: &["tcp_sock.packets_out"],
        signals: TCP,
        effect: Effect::Lost("tcp.unacked of retransmits"),
    },
    Detail {
        paths: &[
            "tcp_sock.bytes_sent",
            "tcp_sock.bytes_retrans",
            "tcp_sock.bytes_received",
            "sock_common.skc_flags",
            "tcp_sock.total_retrans",
            "tcp_sock.rcv_ooopack",
        ],
        signals: TCP,
        effect: Effect::Lost("what connections carried, in tcp.close"),
    },
    Detail {
        paths: &["tcp_sock.segs_out", "tcp_sock.segs_in"],
        signals: TCP,
        effect: Effect::Lost("segments in tcp.close, system.network.tcp.segments"),
    },
    Detail {
        paths: &["tcp_sock.dsack_dups"],
        signals: TCP,
        effect: Effect::Lost("spurious segments in tcp.close, system.network.tcp.retransmits.spurious"),
    },
    Detail {
        paths: &["tcp_sock.undo_marker", "tcp_sock.retrans_out", "tcp_cong_state_set:ca_state"],
        signals: TCP,
        effect: Effect::Lost(
            "spurious segments that no peer reports, but TCP's undo reveals, in tcp.close and \
             system.network.tcp.retransmits.spurious; tcp.recoveries_undone",
        ),
    },
    Detail {
        paths: &["tcp_retransmit_skb:err"],
        signals: TCP,
        effect: Effect::Harmless("this kernel reports only segments that were sent"),
    },
    Detail { paths: &["tcp_send_reset:reason"], signals: TCP, effect: Effect::Lost("why resets were sent") },
];

/// One row for the whole table, and one for each field that is absent.
pub(super) fn checks(resolved: &Resolved) -> Vec<Check> {
    let required = resolved.absent.iter().any(|field| field.required_by != 0);
    let status = match (required, losses(resolved, u8::MAX).is_empty()) {
        (true, _) => Status::Unavailable,
        (false, false) => Status::Degraded,
        (false, true) => Status::Ok,
    };
    let found = FIELDS.len() - resolved.absent.len();
    let mut checks = vec![Check::new(status, "kernel fields", format!("{found} of {} found", FIELDS.len()))];
    checks.extend(resolved.absent.iter().map(|field| {
        let name = format!("field {}", field.path);
        let because = Check::of_error(Status::Ok, "", &field.reason);
        let with_remedy = |check: Check| Check { remedy: because.remedy.clone(), ..check };
        if field.required_by != 0 {
            let detail = format!("{}; cannot run: {}", because.detail, names(field.required_by));
            return with_remedy(Check::unavailable(name, detail));
        }
        match detail_of(field.path).map(|detail| (detail.effect, alternative(detail, resolved))) {
            Some((Effect::Harmless(why), _)) => Check::ok(name, format!("absent; nothing is lost: {why}")),
            Some((Effect::LostWithoutAll(_), Some(other))) => {
                Check::ok(name, format!("absent; nothing is lost: {other} serves instead"))
            }
            Some((Effect::Lost(lost) | Effect::LostWithoutAll(lost), _)) => {
                with_remedy(Check::degraded(name, format!("{}; lost: {lost}", because.detail)))
            }
            None => with_remedy(Check::degraded(name, because.detail.clone())),
        }
    }));
    checks
}

/// What the signals of `bits` lose for want of optional fields.
pub(super) fn losses(resolved: &Resolved, bits: u8) -> Vec<&'static str> {
    let absent = |path: &&str| resolved.absent.iter().any(|field| field.path == *path);
    DETAILS
        .iter()
        .filter(|detail| detail.signals & bits != 0)
        .filter_map(|detail| match detail.effect {
            Effect::Lost(lost) => detail.paths.iter().any(absent).then_some(lost),
            Effect::LostWithoutAll(lost) => detail.paths.iter().all(absent).then_some(lost),
            Effect::Harmless(_) => None,
        })
        .collect()
}

fn detail_of(path: &str) -> Option<&'static Detail> {
    DETAILS.iter().find(|detail| detail.paths.contains(&path))
}

/// A row of the same meaning that is there.
fn alternative(detail: &Detail, resolved: &Resolved) -> Option<&'static str> {
    let absent = |path: &str| resolved.absent.iter().any(|field| field.path == path);
    detail.paths.iter().copied().find(|path| !absent(path))
}

/// Names of the signals of `bits`.
fn names(bits: u8) -> String {
    let objects = signals::ALL.iter().map(|kind| kind.object());
    objects.filter(|object| object.bit & bits != 0).map(|object| object.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::kernel::fields::{AbsentField, FieldError};

    fn without(paths: &[&'static str]) -> Resolved {
        let absent = FIELDS
            .iter()
            .filter(|field| paths.contains(&field.path))
            .map(|field| AbsentField {
                path: field.path,
                required_by: field.required_by,
                reason: FieldError::NoStruct("x".into()),
            })
            .collect();
        let reset_reasons = std::collections::HashMap::new();
        let bpf = crate::kernel::bpf::Bpf::default();
        Resolved {
            slots: Vec::new(),
            absent,
            reset_reasons,
            bpf,
            open_files: None,
            map_entries: None,
            tasks: None,
        }
    }

    #[test]
    fn every_optional_field_has_its_loss_and_no_other() {
        let optional: BTreeSet<&str> =
            FIELDS.iter().filter(|field| field.required_by == 0).map(|field| field.path).collect();
        let told: Vec<&str> = DETAILS.iter().flat_map(|detail| detail.paths).copied().collect();
        assert_eq!(told.iter().copied().collect::<BTreeSet<_>>(), optional);
        assert_eq!(told.len(), optional.len(), "each once");
    }

    #[test]
    fn losses_by_field() {
        use Status::{Degraded, Ok, Unavailable};
        let cases: &[(&[&str], Status, &[Status])] = &[
            (&[], Ok, &[]),
            (&["sock.sk_cgrp_data.val", "cgroup.ancestor_ids"], Ok, &[Ok, Ok]),
            (&["sock.sk_cgrp_data.val", "sock.sk_cgrp_data.cgroup"], Degraded, &[Degraded, Degraded]),
            (&["tcp_retransmit_skb:err"], Ok, &[Ok]),
            (&["tcp_send_reset:reason"], Degraded, &[Degraded]),
            (&["sock_common.skc_num", "pt_regs.di"], Unavailable, &[Degraded, Unavailable]),
        ];
        for (paths, whole, each) in cases {
            let checks = checks(&without(paths));
            let found: Vec<Status> = checks.iter().map(|check| check.status).collect();
            assert_eq!(found.split_first(), Some((whole, *each)), "{paths:?}");
        }
    }

    #[test]
    fn signals_that_cannot_run_are_named() {
        let checks = checks(&without(&["task_struct.comm"]));
        let detail = &checks.last().unwrap().detail;
        assert!(detail.ends_with("cannot run: tcp, dns, syscalls"), "{detail}");
    }
}
