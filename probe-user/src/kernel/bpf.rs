//! What bpf(2) of a kernel knows: its helpers and kinds of maps, by its own enums; and what an object asks for of it.
//!
//! The verifier has the last word: it may never come to a call that the kernel does not know, because a field that is
//! absent makes it dead code. So nothing is refused beforehand; when the kernel has refused, its "invalid argument" is
//! given a name.

use std::collections::HashSet;

use aya_obj::Object;
use aya_obj::generated::{BPF_CALL, BPF_JMP, bpf_func_id, bpf_insn, bpf_map_type};

use super::btf::{KernelBtf, Kind};

/// Helpers that the programs call, so that one can be named on a kernel that has never heard of it. A test compares
/// with the objects.
const CALLED: &[bpf_func_id] = &[
    bpf_func_id::BPF_FUNC_map_lookup_elem,
    bpf_func_id::BPF_FUNC_map_update_elem,
    bpf_func_id::BPF_FUNC_map_delete_elem,
    bpf_func_id::BPF_FUNC_ktime_get_ns,
    bpf_func_id::BPF_FUNC_get_smp_processor_id,
    bpf_func_id::BPF_FUNC_get_current_pid_tgid,
    bpf_func_id::BPF_FUNC_skb_load_bytes,
    bpf_func_id::BPF_FUNC_get_current_task,
    bpf_func_id::BPF_FUNC_get_socket_cookie,
    bpf_func_id::BPF_FUNC_skb_cgroup_id,
    bpf_func_id::BPF_FUNC_get_current_cgroup_id,
    bpf_func_id::BPF_FUNC_skb_ancestor_cgroup_id,
    bpf_func_id::BPF_FUNC_map_pop_elem,
    bpf_func_id::BPF_FUNC_sk_fullsock,
    bpf_func_id::BPF_FUNC_get_prandom_u32,
    bpf_func_id::BPF_FUNC_jiffies64,
    bpf_func_id::BPF_FUNC_get_task_stack,
    bpf_func_id::BPF_FUNC_get_stack,
    bpf_func_id::BPF_FUNC_probe_read_user_str,
    bpf_func_id::BPF_FUNC_probe_read_kernel,
    bpf_func_id::BPF_FUNC_probe_read_kernel_str,
    bpf_func_id::BPF_FUNC_seq_write,
    bpf_func_id::BPF_FUNC_get_current_task_btf,
    bpf_func_id::BPF_FUNC_task_pt_regs,
    bpf_func_id::BPF_FUNC_ringbuf_reserve,
    bpf_func_id::BPF_FUNC_ringbuf_submit,
    bpf_func_id::BPF_FUNC_ringbuf_discard,
    bpf_func_id::BPF_FUNC_ringbuf_query,
];

/// What a kernel's bpf(2) knows. Of an enum that is not in its BTF nothing is known, and nothing is missed.
#[derive(Clone, Debug, Default)]
pub struct Bpf {
    /// Numbers of `enum bpf_func_id`.
    helpers: HashSet<u32>,
    /// Numbers of `enum bpf_map_type`.
    map_types: HashSet<u32>,
    /// Whether maps are charged to RLIMIT_MEMLOCK: then a map knows its share. Since 5.11 it knows a memory cgroup instead.
    pub charges_memlock: bool,
    /// Whether programs at raw tracepoints can lose their CPU (from 7.0 on, with CONFIG_PREEMPT_RCU): the kernel then skips what
    /// else would run them there meanwhile.
    pub preempts_programs: bool,
    /// Whether it has `bpf_task_pt_regs` (5.15), and `bpf_get_current_task_btf` (5.11) with it.
    pub has_task_helpers: bool,
}

impl Bpf {
    /// Reads them from a kernel's types. Total.
    pub fn of(btf: &KernelBtf) -> Self {
        let numbers = |name: &str, prefix: &str| -> HashSet<u32> {
            let variants = btf.enum_variants(name).into_iter();
            variants
                // 0 is "unspecified"; the names of an enum's end begin with underscores.
                .filter(|variant| variant.value != 0 && variant.name.starts_with(prefix))
                .filter_map(|variant| u32::try_from(variant.value).ok())
                .collect()
        };
        let has = |outer, member| {
            let mut structs = btf.named(outer).filter(|ty| ty.kind == Kind::Struct);
            structs.any(|ty| btf.member(ty, [member].into_iter()).is_ok())
        };
        let helpers: HashSet<u32> = numbers("bpf_func_id", "BPF_FUNC_");
        // 7.0 guards tracepoints by SRCU's fast flavour, no longer by keeping preemption off. That flavour is older by one release
        // at most, and known by its function.
        let has_fast_srcu = btf.function_prototype("init_srcu_struct_fast").is_some();
        Self {
            has_task_helpers: helpers.contains(&(bpf_func_id::BPF_FUNC_task_pt_regs as u32)),
            helpers,
            map_types: numbers("bpf_map_type", "BPF_MAP_TYPE_"),
            charges_memlock: has("bpf_map", "memory"),
            preempts_programs: has_fast_srcu && has("task_struct", "rcu_read_lock_nesting"),
        }
    }

    /// Kinds of maps of an object that this kernel does not know, by name.
    pub fn unknown_maps(&self, elf: &[u8]) -> Vec<String> {
        let Ok(object) = Object::parse(elf) else { return Vec::new() };
        let kinds = object.maps.values().map(aya_obj::Map::map_type);
        named(kinds, &self.map_types, |number| match bpf_map_type::try_from(number) {
            Ok(kind) => format!("map type {}", last(&format!("{kind:?}"), "BPF_MAP_TYPE_")),
            Err(_) => format!("map type {number}"),
        })
    }

    /// Helpers that a program calls and this kernel does not know, by name.
    pub fn unknown_helpers(&self, elf: &[u8], program: &str) -> Vec<String> {
        named(called(elf, program).into_iter(), &self.helpers, |number| {
            match CALLED.iter().find(|helper| **helper as u32 == number) {
                Some(helper) => format!("helper bpf_{}", last(&format!("{helper:?}"), "BPF_FUNC_")),
                None => format!("helper {number}"),
            }
        })
    }
}

fn named(
    numbers: impl Iterator<Item = u32>,
    known: &HashSet<u32>,
    name: impl Fn(u32) -> String,
) -> Vec<String> {
    if known.is_empty() {
        return Vec::new();
    }
    let mut unknown: Vec<u32> = numbers.filter(|number| !known.contains(number)).collect();
    unknown.sort_unstable();
    unknown.dedup();
    unknown.into_iter().map(name).collect()
}

fn last<'a>(name: &'a str, prefix: &str) -> &'a str {
    name.strip_prefix(prefix).unwrap_or(name)
}

/// Numbers of the helpers that a program calls, itself or through its functions.
fn called(elf: &[u8], program: &str) -> HashSet<u32> {
    let Ok(mut object) = Object::parse(elf) else { return HashSet::new() };
    // As aya does before it loads: behind a program's own instructions come those of the functions that it calls.
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    if object.relocate_calls(&sections).is_err() {
        return HashSet::new();
    }
    let key = object.programs.get(program).map(aya_obj::Program::function_key);
    let function = key.and_then(|key| object.functions.get(&key));
    function.map(|function| function.instructions.iter().filter_map(helper).collect()).unwrap_or_default()
}

/// The helper that an instruction calls.
fn helper(instruction: &bpf_insn) -> Option<u32> {
    // A register other than 0 means a function of the program's own, or one of the kernel's by its BTF id.
    let calls = u32::from(instruction.code) == (BPF_JMP | BPF_CALL) && instruction.src_reg() == 0;
    calls.then(|| u32::try_from(instruction.imm).ok())?
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::kernel::btf_blob::Blob;
    use crate::kernel::fixtures::{self, KERNELS};
    use crate::signals;

    /// All objects with each of the programs that a kernel is given.
    fn programs(preempts_programs: bool) -> impl Iterator<Item = (&'static [u8], &'static str)> {
        let objects = signals::every().map(|kind| kind.object());
        objects.flat_map(move |object| {
            let specs = object.programs.iter();
            let names = specs.flat_map(move |spec| spec.names(preempts_programs));
            let names = names.chain(object.older.map(|older| older.program)).chain(object.walk);
            names.map(|name| (object.elf, name))
        })
    }

    #[test]
    fn every_helper_that_is_called_has_its_name() {
        let by_programs: BTreeSet<u32> = programs(true).flat_map(|(elf, name)| called(elf, name)).collect();
        let listed: BTreeSet<u32> = CALLED.iter().map(|helper| *helper as u32).collect();
        assert_eq!(listed, by_programs);
        for (elf, name) in programs(true) {
            assert!(!called(elf, name).is_empty(), "{name} does nothing without a map");
        }
        // The name that the kernel itself has for the number.
        let variants = fixtures::btf("7.2").enum_variants("bpf_func_id");
        for helper in CALLED {
            let of_kernel = variants.iter().find(|variant| variant.value == i64::from(*helper as u32));
            assert_eq!(of_kernel.map(|variant| &*variant.name), Some(&*format!("{helper:?}")));
        }
    }

    #[test]
    fn every_kernel_knows_what_the_objects_ask_for() {
        for (kernel, _) in KERNELS {
            let bpf = Bpf::of(&fixtures::btf(kernel));
            for kind in signals::every() {
                assert_eq!(bpf.unknown_maps(kind.object().elf), Vec::<String>::new(), "{kernel}");
            }
            for (elf, name) in programs(bpf.preempts_programs) {
                let mut unknown = bpf.unknown_helpers(elf, name);
                // The programs ask beforehand whether there are such.
                let asked_for = ["helper bpf_task_pt_regs", "helper bpf_get_current_task_btf"];
                unknown.retain(|helper| bpf.has_task_helpers || !asked_for.contains(&helper.as_str()));
                assert_eq!(unknown, Vec::<String>::new(), "{kernel}: {name}");
            }
        }
    }

    /// `bpftool btf dump file FULL`: `__BPF_FUNC_MAX_ID` is one more than the last helper; `bpf_map` has `memory`;
    /// there is a function `init_srcu_struct_fast`, and `task_struct` has `rcu_read_lock_nesting`.
    #[test]
    fn helpers_memlock_and_preemption_by_kernel() {
        let expected = [
            ("5.10", 155, true, false),
            ("6.1", 209, false, false),
            ("6.12", 211, false, false),
            ("6.18", 211, false, false),
            ("7.2", 211, false, true),
        ];
        let found = KERNELS.map(|(kernel, _)| {
            let bpf = Bpf::of(&fixtures::btf(kernel));
            (kernel, bpf.helpers.len(), bpf.charges_memlock, bpf.preempts_programs)
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn what_a_kernel_does_not_know_is_named() {
        let mut blob = Blob::new();
        let known = [
            ("BPF_FUNC_unspec", 0),
            ("BPF_FUNC_map_lookup_elem", 1),
            ("BPF_FUNC_map_update_elem", 2),
            ("BPF_FUNC_ktime_get_ns", 5),
            ("BPF_FUNC_probe_read_kernel", 113),
            ("__BPF_FUNC_MAX_ID", 131),
        ];
        blob.enumeration("bpf_func_id", false, &known);
        let known: Vec<_> = (0..27).map(|number| (format!("BPF_MAP_TYPE_{number}"), number)).collect();
        let known: Vec<_> = known.iter().map(|(name, number)| (name.as_str(), *number)).collect();
        blob.enumeration("bpf_map_type", false, &known);
        let old = Bpf::of(&KernelBtf::from_bytes(blob.bytes()).unwrap());
        let Some(tcp) = signals::ALL.iter().map(|kind| kind.object()).find(|object| object.name == "tcp")
        else {
            panic!("no signal tcp")
        };

        assert_eq!(old.unknown_maps(tcp.elf), ["map type RINGBUF"]);
        assert_eq!(
            old.unknown_helpers(tcp.elf, "tcp_retransmit_skb"),
            [
                "helper bpf_ringbuf_reserve",
                "helper bpf_ringbuf_submit",
                "helper bpf_ringbuf_discard",
                "helper bpf_ringbuf_query"
            ]
        );
        assert_eq!(old.unknown_helpers(tcp.elf, "tcp_destroy_sock"), ["helper bpf_map_delete_elem"]);
        assert_eq!(old.unknown_helpers(tcp.elf, "no such program"), Vec::<String>::new());

        // A kernel that does not tell lacks nothing, and bytes that are no object ask for nothing.
        let silent = Bpf::default();
        assert_eq!(silent.unknown_helpers(tcp.elf, "tcp_retransmit_skb"), Vec::<String>::new());
        assert_eq!(silent.unknown_maps(tcp.elf), Vec::<String>::new());
        assert_eq!(old.unknown_maps(b"\x7fELF"), Vec::<String>::new());
    }
}
