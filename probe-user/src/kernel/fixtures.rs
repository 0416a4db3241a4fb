//! The types of five kernels, cut down to what probe asks of them: tests/fixtures/btf, made by `cargo xtask btf`.
//!
//! The numbers below are not ours. They were read from the whole BTF of each kernel (the manifest has its sha256) by
//! other readers of BTF, with the command that stands at each table.

use std::collections::BTreeMap;
use std::path::Path;

use probe_common::fields::{FIELDS, FieldKind, FieldSpec};
use sha2::{Digest as _, Sha256};

use super::btf::KernelBtf;
use super::fields::{FieldError, Resolved, resolve};
use crate::load::Hook;
use crate::signals;

/// Series and fixture, in order.
pub(crate) const KERNELS: [(&str, &[u8]); 5] = [
    ("5.10", include_bytes!("../../../tests/fixtures/btf/5.10.btf")),
    ("6.1", include_bytes!("../../../tests/fixtures/btf/6.1.btf")),
    ("6.12", include_bytes!("../../../tests/fixtures/btf/6.12.btf")),
    ("6.18", include_bytes!("../../../tests/fixtures/btf/6.18.btf")),
    ("7.2", include_bytes!("../../../tests/fixtures/btf/7.2.btf")),
];

pub(crate) fn btf(kernel: &str) -> KernelBtf {
    let fixture = KERNELS.iter().find(|(name, _)| *name == kernel).map(|(_, bytes)| bytes.to_vec());
    KernelBtf::from_bytes(fixture.expect("a kernel of the table")).expect("BTF")
}

fn resolved(kernel: &str) -> Resolved {
    resolve(&btf(kernel), FIELDS)
}

#[test]
fn fixtures_are_those_of_the_manifest() {
    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Entry {
        size: usize,
        sha256: String,
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/btf/manifest.toml");
    let manifest: BTreeMap<String, Entry> = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let found: BTreeMap<String, Entry> = KERNELS
        .iter()
        .map(|(kernel, bytes)| {
            let sha256 = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            (format!("{kernel}.btf"), Entry { size: bytes.len(), sha256 })
        })
        .collect();
    assert_eq!(found, manifest, "`cargo xtask btf` writes both");
}

/// Everything that a kernel lacks is known here, with the reason; nothing that a signal needs is ever among it.
#[test]
fn what_each_kernel_lacks() {
    const VAL: (&str, &str) = ("sock.sk_cgrp_data.val", "struct sock of this kernel has no member val");
    const ANCESTORS: (&str, &str) =
        ("cgroup.ancestors", "struct cgroup of this kernel has no member ancestors");
    const ANCESTOR_IDS: (&str, &str) =
        ("cgroup.ancestor_ids", "struct cgroup of this kernel has no member ancestor_ids");
    const ERR: (&str, &str) =
        ("tcp_retransmit_skb:err", "tracepoint tcp_retransmit_skb of this kernel has no argument err");
    const REASON: (&str, &str) =
        ("tcp_send_reset:reason", "tracepoint tcp_send_reset of this kernel has no argument reason");
    const CONG_STATE: (&str, &str) =
        ("tcp_cong_state_set:ca_state", "this kernel has no tracepoint tcp_cong_state_set");
    const STATE: (&str, &str) =
        ("task_struct.__state", "struct task_struct of this kernel has no member __state");
    const OLD_STATE: (&str, &str) =
        ("task_struct.state", "struct task_struct of this kernel has no member state");
    let expected: [(&str, &[(&str, &str)]); 5] = [
        ("5.10", &[STATE, VAL, ANCESTORS, ERR, REASON, CONG_STATE]),
        ("6.1", &[OLD_STATE, VAL, ANCESTOR_IDS, ERR, REASON]),
        ("6.12", &[OLD_STATE, VAL, ANCESTOR_IDS, ERR]),
        ("6.18", &[OLD_STATE, VAL, ANCESTOR_IDS]),
        ("7.2", &[OLD_STATE, VAL, ANCESTOR_IDS]),
    ];
    for (kernel, lacks) in expected {
        let absent = resolved(kernel).absent;
        assert!(absent.iter().all(|field| field.required_by == 0), "{kernel}: {absent:?}");
        assert_eq!(
            absent.len(),
            lacks.len(),
            "{kernel}: {absent:?} (a new row? `cargo xtask btf` for each kernel)"
        );
        for (field, (path, why)) in absent.iter().zip(lacks) {
            let reason = field.reason.to_string();
            assert!(field.path == *path && reason.starts_with(why), "{kernel}: {}: {reason}", field.path);
        }
    }
}

/// Offset of a field by kernel, in the order of [`KERNELS`]; shift and width of a bit-field.
struct Place {
    path: &'static str,
    offsets: [Option<u32>; 5],
    shift: u8,
    width: u8,
}

const fn place(path: &'static str, offsets: [u32; 5]) -> Place {
    let [a, b, c, d, e] = offsets;
    Place { path, offsets: [Some(a), Some(b), Some(c), Some(d), Some(e)], shift: 0, width: 0 }
}

/// `pahole -F btf -C STRUCT FULL`: the first number of the comment at each member is its offset, `1240: 0` a bit-field
/// that begins at bit 0 of that byte. Members of members: the sum of both.
const PLACES: &[Place] = &[
    // Moved from kernel to kernel.
    place("task_struct.tgid", [2236, 2420, 2436, 1268, 2812]),
    place("task_struct.comm", [2736, 2976, 2976, 1752, 3344]),
    place("task_struct.start_boottime", [2544, 2784, 2784, 1560, 3160]),
    place("task_struct.cgroups", [3328, 3600, 3584, 2376, 4000]),
    place("task_struct.files", [2808, 3048, 3048, 1824, 3416]),
    place("tcp_sock.srtt_us", [1632, 1672, 1728, 1680, 1784]),
    place("tcp_sock.snd_cwnd", [1736, 1776, 1500, 1444, 1484]),
    place("tcp_sock.packets_out", [1676, 1716, 1732, 1684, 1788]),
    place("inet_connection_sock.icsk_pending", [1234, 1282, 1290, 1250, 1282]),
    place("sock.sk_protocol", [540, 516, 574, 532, 540]),
    place("sock.sk_err", [568, 544, 284, 284, 284]),
    place("cgroup.kn", [248, 248, 256, 256, 296]),
    place("cgroup.level", [208, 208, 216, 216, 256]),
    // Inside another struct.
    place("sock.sk_cgrp_data.cgroup", [664, 648, 672, 672, 688]),
    place("sock_common.skc_net.net", [48, 48, 48, 48, 48]),
    place("request_sock.__req_common.skc_dport", [12, 12, 12, 12, 12]),
    place("task_struct.thread_info.status", [8, 16, 16, 16, 16]),
    // Inside anonymous unions and structs.
    place("sock_common.skc_daddr", [0, 0, 0, 0, 0]),
    place("sock_common.skc_rcv_saddr", [4, 4, 4, 4, 4]),
    place("tcp_skb_cb.tcp_gso_segs", [8, 8, 8, 8, 8]),
    // Renamed; on 7.2 inside an anonymous union with __empty_ancestors.
    Place {
        path: "cgroup.ancestors",
        offsets: [None, Some(1792), Some(2280), Some(2224), Some(2352)],
        shift: 0,
        width: 0,
    },
    Place { path: "cgroup.ancestor_ids", offsets: [Some(2688), None, None, None, None], shift: 0, width: 0 },
    // Bit-fields.
    Place {
        shift: 0,
        width: 5,
        ..place("inet_connection_sock.icsk_ca_state", [1232, 1280, 1288, 1248, 1280])
    },
    Place { shift: 4, width: 1, ..place("sock_common.skc_reuseport", [19, 19, 19, 19, 19]) },
];

#[test]
fn places_are_those_that_pahole_finds() {
    for (kernel, column) in KERNELS.iter().map(|(kernel, _)| kernel).zip(0..) {
        let resolved = resolved(kernel);
        for Place { path, offsets, shift, width } in PLACES {
            let index = FIELDS.iter().position(|field| field.path == *path).expect("a row of the table");
            let slot = resolved.slots[index];
            let found = (slot.present == 1).then_some((slot.offset, slot.shift, slot.width));
            assert_eq!(found, offsets[column].map(|at| (at, *shift, *width)), "{kernel}: {path}");
        }
    }
}

/// Arguments of every tracepoint that is attached to, by kernel, `__data` not counted. `bpftool btf dump file FULL`:
/// TYPEDEF 'btf_trace_NAME' names a PTR, that a FUNC_PROTO, and its vlen is one more. 0: there is no such tracepoint, and the program is not
/// loaded.
#[test]
fn tracepoints_have_the_arguments_that_bpftool_counts() {
    const ARGUMENTS: &[(&str, [usize; 5])] = &[
        ("cgroup_mkdir", [2, 2, 2, 2, 2]),
        ("cgroup_rmdir", [2, 2, 2, 2, 2]),
        ("inet_sock_set_state", [3, 3, 3, 3, 3]),
        ("sched_process_exec", [3, 3, 3, 3, 3]),
        ("sched_process_exit", [1, 1, 1, 2, 2]),
        ("sched_switch", [3, 4, 4, 4, 4]),
        ("sys_enter", [2, 2, 2, 2, 2]),
        ("sys_exit", [2, 2, 2, 2, 2]),
        ("tcp_cong_state_set", [0, 2, 2, 2, 2]),
        ("tcp_destroy_sock", [1, 1, 1, 1, 1]),
        ("tcp_receive_reset", [1, 1, 1, 1, 1]),
        ("tcp_retransmit_skb", [2, 2, 2, 3, 3]),
        ("tcp_retransmit_synack", [2, 2, 2, 2, 2]),
        ("tcp_send_reset", [2, 2, 3, 3, 3]),
    ];
    let mut hooks: Vec<&str> = signals::every()
        .flat_map(|kind| kind.object().programs)
        .filter_map(|program| match program.hook {
            Hook::RawTracepoint(name) => Some(name),
            Hook::PerfTracepoint(..)
            | Hook::CgroupEgress
            | Hook::CgroupIngress
            | Hook::CgroupSockAddr
            | Hook::OpenFiles
            | Hook::MapEntries
            | Hook::Tasks => None,
        })
        .collect();
    hooks.sort_unstable();
    let listed: Vec<&str> = ARGUMENTS.iter().map(|(name, _)| *name).collect();
    assert_eq!(listed, hooks, "TRACEPOINTS in xtask/src/btf/reduce.rs is the third of this kind");
    for (column, (kernel, _)) in KERNELS.iter().enumerate() {
        let btf = btf(kernel);
        for (name, counts) in ARGUMENTS {
            let found = btf.tracepoint_prototype(name).map(|prototype| btf.parameters(prototype).count());
            let expected = (counts[column] != 0).then_some(counts[column] + 1);
            assert_eq!(found, expected, "{kernel}: {name}");
        }
    }
}

/// Arguments that came later, by the names of `__traceiter_NAME`'s parameters: `bpftool btf dump file FULL`, FUNC and its
/// FUNC_PROTO.
#[test]
fn arguments_that_came_later() {
    let cases = [
        ("tcp_cong_state_set:ca_state", [None, Some(1), Some(1), Some(1), Some(1)]),
        ("tcp_retransmit_skb:err", [None, None, None, Some(2), Some(2)]),
        ("tcp_send_reset:reason", [None, None, Some(2), Some(2), Some(2)]),
    ];
    for (column, (kernel, _)) in KERNELS.iter().enumerate() {
        let resolved = resolved(kernel);
        for (path, indices) in cases {
            let slots = FIELDS.iter().zip(&resolved.slots);
            let mut of_path = slots.filter(|(field, _)| field.path == path).map(|(_, slot)| slot);
            let found = of_path.next().filter(|slot| slot.present == 1).map(|slot| slot.offset);
            assert_eq!(found, indices[column], "{kernel}: {path}");
        }
    }
}

/// `bpftool btf dump file FULL`: the enum's lines `'NAME' val=NUMBER`.
#[test]
fn enums_by_kernel() {
    for (kernel, reasons) in [("5.10", 0), ("6.1", 0), ("6.12", 26), ("6.18", 26), ("7.2", 26)] {
        let names = resolved(kernel).reset_reasons;
        assert_eq!(names.len(), reasons, "{kernel}");
        let name = |value: u32| names.get(&value).map(AsRef::as_ref);
        if reasons != 0 {
            assert_eq!(name(0), Some("not_specified"), "{kernel}");
            assert_eq!(name(1), Some("no_socket"), "{kernel}");
            assert_eq!(name(11), Some("tcp_abort_on_close"), "{kernel}");
            assert_eq!(name(17), Some("mptcp_rst_eunspec"), "{kernel}");
            assert_eq!(name(24), Some("error"), "{kernel}");
        }
        assert_eq!(name(26), None, "{kernel}");
        // The programs take these two for granted.
        let btf = btf(kernel);
        assert_eq!(btf.enum_value("tcp_ca_state", "TCP_CA_Recovery"), Some(3), "{kernel}");
        assert_eq!(btf.enum_value("tcp_ca_state", "TCP_CA_Loss"), Some(4), "{kernel}");
    }
}

/// What a field is not is told on every kernel.
#[test]
fn other_sizes_and_kinds_are_refused() {
    let row = |path, size, kind| FieldSpec { path, kind, size, required_by: 0 };
    let cases = [
        (row("tcp_sock.srtt_us", 8, FieldKind::Member), FieldError::Size { expected: 8, found: 4 }),
        (row("sock_common.skc_v6_daddr", 4, FieldKind::Member), FieldError::Size { expected: 4, found: 16 }),
        (row("task_struct.comm", 17, FieldKind::Member), FieldError::Size { expected: 17, found: 16 }),
        (row("task_struct.start_boottime", 8, FieldKind::Pointer), FieldError::Kind { pointer: false }),
        (row("task_struct.group_leader", 8, FieldKind::Member), FieldError::Kind { pointer: true }),
        (row("sock.sk_cgrp_data.cgroup", 8, FieldKind::Member), FieldError::Kind { pointer: true }),
        (
            row("task_struct.group_leader.pid", 4, FieldKind::Member),
            FieldError::NoMember { outer: "task_struct".into(), member: "pid".into() },
        ),
        (row("task_structure.pid", 4, FieldKind::Member), FieldError::NoStruct("task_structure".into())),
        (row("tcp_send_reset:skb", 4, FieldKind::TraceArg), FieldError::Size { expected: 4, found: 8 }),
    ];
    for (kernel, _) in KERNELS {
        let btf = btf(kernel);
        for (spec, expected) in &cases {
            let absent = resolve(&btf, &[*spec]).absent;
            assert_eq!(absent.first().map(|field| &field.reason), Some(expected), "{kernel}: {}", spec.path);
        }
    }
}
