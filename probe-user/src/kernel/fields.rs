//! The table of kernel fields, resolved for the running kernel.
//!
//! Each row of `probe_common::fields::FIELDS` becomes a slot of read-only data of the BPF objects. A row that
//! does not resolve is absent, with its reason; nothing is guessed.

use std::collections::HashMap;
use std::sync::Arc;

use probe_common::fields::{FieldKind, FieldSlot, FieldSpec};

use super::bpf::Bpf;
use super::btf::{KernelBtf, Kind, Type};

/// The function that stands for the iterator over open files in a kernel's types.
pub(crate) const OPEN_FILES: &str = "bpf_iter_task_file";
/// The one that stands for the iterator over the entries of a map.
pub(crate) const MAP_ENTRIES: &str = "bpf_iter_bpf_map_elem";
/// The same over all threads.
pub(crate) const TASKS: &str = "bpf_iter_task";

/// Why a row has no place in this kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The row is not of the form `struct.member` or `tracepoint:argument`.
    #[error("the path is not of the form struct.member or tracepoint:argument (correct the table of fields)")]
    BadPath,
    /// No struct or union of that name.
    #[error(
        "this kernel has no struct {0} (give the BTF of the running kernel with --btf FILE, or do without)"
    )]
    NoStruct(String),
    /// The struct has no such member.
    #[error(
        "struct {outer} of this kernel has no member {member} (newer or older kernels may; see docs/kernels.md)"
    )]
    NoMember {
        /// Name of the outermost struct.
        outer: String,
        /// The part of the path that was not found.
        member: String,
    },
    /// The member's size is not what the programs read.
    #[error("is {found} bytes in this kernel, the programs read {expected} (report the kernel's release)")]
    Size {
        /// Bytes that the programs read.
        expected: u8,
        /// Bytes that the kernel's member takes.
        found: u64,
    },
    /// A pointer has taken the place of a value, or the other way round.
    #[error(
        "is {} in this kernel, the programs take it for {} (report the kernel's release)",
        pointer_or_value(*.pointer),
        pointer_or_value(!*.pointer)
    )]
    Kind {
        /// Whether it is a pointer in this kernel.
        pointer: bool,
    },
    /// No load of the size that the programs use holds the whole bit-field.
    #[error(
        "is a bit-field at bit {bit}, {width} wide: no load of {size} bytes holds it (widen the row's type)"
    )]
    Straddles {
        /// Bits from the start of the outermost struct.
        bit: u64,
        /// Its width in bits.
        width: u32,
        /// Bytes that the programs load.
        size: u8,
    },
    /// The member lies further out than a slot can say.
    #[error("lies {0} bits into its struct (give the BTF of the running kernel with --btf FILE)")]
    TooFar(u64),
    /// No such tracepoint.
    #[error("this kernel has no tracepoint {0} (newer or older kernels may; see docs/kernels.md)")]
    NoTracepoint(String),
    /// The tracepoint lacks the argument.
    #[error(
        "tracepoint {tracepoint} of this kernel has no argument {argument} (newer kernels may; see docs/kernels.md)"
    )]
    NoArgument {
        /// Name of the tracepoint.
        tracepoint: String,
        /// Name of the argument.
        argument: String,
    },
}

const fn pointer_or_value(pointer: bool) -> &'static str {
    if pointer { "a pointer" } else { "a value" }
}

/// A row that this kernel lacks.
#[derive(Clone, Debug)]
pub struct AbsentField {
    /// The row's path.
    pub path: &'static str,
    /// Signals that cannot run without it, bits as in `FieldSpec::required_by`; 0: only detail is lost.
    pub required_by: u8,
    /// Why it is absent.
    pub reason: FieldError,
}

/// The table of fields, resolved.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// One slot a row, in the order of the table.
    pub slots: Vec<FieldSlot>,
    /// The rows that are absent, in the order of the table.
    pub absent: Vec<AbsentField>,
    /// Why resets are sent, by value: `enum sk_rst_reason` in lower case, without its prefix. Empty where there is none.
    pub reset_reasons: HashMap<u32, Arc<str>>,
    /// What its bpf(2) knows.
    pub bpf: Bpf,
    /// BTF id of its iterator over open files; none in a kernel without.
    pub open_files: Option<u32>,
    /// The same of its iterator over the entries of a map.
    pub map_entries: Option<u32>,
    /// The same of its iterator over threads.
    pub tasks: Option<u32>,
}

impl Resolved {
    /// Paths of the absent rows that a signal (`fields::TCP`, …) cannot run without.
    pub fn missing(&self, signal: u8) -> Vec<&'static str> {
        self.absent.iter().filter(|field| field.required_by & signal != 0).map(|field| field.path).collect()
    }
}

/// Looks every row up. Total: what cannot be found is absent.
pub fn resolve(btf: &KernelBtf, specs: &[FieldSpec]) -> Resolved {
    let mut structs = Structs { btf, seen: HashMap::new() };
    let mut resolved = Resolved {
        slots: Vec::with_capacity(specs.len()),
        absent: Vec::new(),
        reset_reasons: reset_reasons(btf),
        bpf: Bpf::of(btf),
        open_files: btf.function_id(OPEN_FILES),
        map_entries: btf.function_id(MAP_ENTRIES),
        tasks: btf.function_id(TASKS),
    };
    for spec in specs {
        let slot = match spec.kind {
            FieldKind::Member | FieldKind::Pointer => structs.member(spec),
            FieldKind::TraceArg => trace_argument(btf, spec),
        };
        resolved.slots.push(slot.unwrap_or_else(|reason| {
            resolved.absent.push(AbsentField { path: spec.path, required_by: spec.required_by, reason });
            FieldSlot::default()
        }));
    }
    resolved
}

fn reset_reasons(btf: &KernelBtf) -> HashMap<u32, Arc<str>> {
    const PREFIX: &str = "SK_RST_REASON_";
    let variants = btf.enum_variants("sk_rst_reason").into_iter();
    variants
        .filter_map(|variant| {
            let name = variant.name.strip_prefix(PREFIX)?;
            Some((u32::try_from(variant.value).ok()?, name.to_ascii_lowercase().into()))
        })
        .collect()
}

/// Structs and unions by name: many rows share one, and finding one walks all types.
struct Structs<'a> {
    btf: &'a KernelBtf,
    seen: HashMap<&'static str, Vec<Type>>,
}

impl Structs<'_> {
    fn member(&mut self, spec: &FieldSpec) -> Result<FieldSlot, FieldError> {
        let (outer, path) = spec.path.split_once('.').ok_or(FieldError::BadPath)?;
        let btf = self.btf;
        let candidates = self.seen.entry(outer).or_insert_with(|| {
            btf.named(outer).filter(|ty| matches!(ty.kind, Kind::Struct | Kind::Union)).take(8).collect()
        });
        // Unrelated structs may share a name: the first that has the member, in the right size, is meant.
        let mut why = FieldError::NoStruct(outer.to_owned());
        for &candidate in candidates.iter() {
            match member_slot(btf, candidate, outer, path, spec) {
                Ok(slot) => return Ok(slot),
                Err(reason) => why = reason,
            }
        }
        Err(why)
    }
}

fn member_slot(
    btf: &KernelBtf,
    ty: Type,
    outer: &str,
    path: &str,
    spec: &FieldSpec,
) -> Result<FieldSlot, FieldError> {
    let size = spec.size;
    let member = btf
        .member(ty, path.split('.'))
        .map_err(|member| FieldError::NoMember { outer: outer.to_owned(), member: member.to_owned() })?;
    let pointer = btf.kind_of(member.type_id) == Some(Kind::Ptr);
    if pointer != (spec.kind == FieldKind::Pointer) {
        return Err(FieldError::Kind { pointer });
    }
    if member.width != 0 {
        return bit_field_slot(member.bit, member.width, size);
    }
    let found = btf.size_of(member.type_id).unwrap_or(0);
    let fits = match btf.element_size(member.type_id) {
        // Of an array any beginning may be read; a flexible one at the struct's end has no size of its own.
        Some(element) => found.max(element) >= size.into(),
        None => found == u64::from(size),
    };
    if !fits {
        return Err(FieldError::Size { expected: size, found });
    }
    if member.bit % 8 != 0 {
        return Err(FieldError::Straddles { bit: member.bit, width: u32::from(size) * 8, size });
    }
    let offset = u32::try_from(member.bit / 8).map_err(|_| FieldError::TooFar(member.bit))?;
    Ok(FieldSlot { offset, present: 1, ..FieldSlot::default() })
}

/// Finds the load that holds the bit-field: naturally aligned, as the compiler would do it, else from the byte
/// where it begins.
fn bit_field_slot(bit: u64, width: u32, size: u8) -> Result<FieldSlot, FieldError> {
    let straddles = FieldError::Straddles { bit, width, size };
    let load_bits = u64::from(size) * 8;
    if load_bits == 0 {
        return Err(straddles);
    }
    for start in [bit - bit % load_bits, bit - bit % 8] {
        let shift = bit - start;
        if shift + u64::from(width) > load_bits {
            continue;
        }
        let offset = u32::try_from(start / 8).map_err(|_| FieldError::TooFar(bit))?;
        if let (Ok(shift), Ok(width)) = (u8::try_from(shift), u8::try_from(width)) {
            return Ok(FieldSlot { offset, shift, width, present: 1, _pad: 0 });
        }
    }
    Err(straddles)
}

/// What an argument is called and what it looks like, for kernels whose BTF names no arguments.
struct KnownArgument {
    path: &'static str,
    /// Its index, `__data` not counted.
    index: u32,
    shape: Shape,
}

enum Shape {
    Int,
    Enum(&'static str),
}

const KNOWN_ARGUMENTS: &[KnownArgument] = &[
    KnownArgument { path: "tcp_cong_state_set:ca_state", index: 1, shape: Shape::Int },
    KnownArgument { path: "tcp_retransmit_skb:err", index: 2, shape: Shape::Int },
    KnownArgument { path: "tcp_send_reset:reason", index: 2, shape: Shape::Enum("sk_rst_reason") },
];

/// An argument of a raw tracepoint.
///
/// How many there are is said by `btf_trace_NAME`, which is also what the kernel checks programs against, but
/// a function type carries no names; they are on functions with the same parameters.
fn trace_argument(btf: &KernelBtf, spec: &FieldSpec) -> Result<FieldSlot, FieldError> {
    let (tracepoint, argument) = spec.path.split_once(':').ok_or(FieldError::BadPath)?;
    let prototype = btf
        .tracepoint_prototype(tracepoint)
        .ok_or_else(|| FieldError::NoTracepoint(tracepoint.to_owned()))?;
    let absent =
        || FieldError::NoArgument { tracepoint: tracepoint.to_owned(), argument: argument.to_owned() };
    let types: Vec<u32> = btf.parameters(prototype).skip(1).map(|(_, ty)| ty).take(16).collect();

    let names = ["__traceiter_", "__bpf_trace_", "__probestub_"]
        .iter()
        .filter_map(|prefix| btf.function_prototype(&format!("{prefix}{tracepoint}")))
        .chain([prototype])
        .map(|function| btf.parameters(function).skip(1).map(|(name, _)| name).take(17).collect::<Vec<_>>())
        .find(|names| names.len() == types.len() && names.iter().all(|name| !name.is_empty()));

    let (index, ty) = match names {
        Some(names) => {
            let index = names.iter().position(|name| is_called(name, argument)).ok_or_else(absent)?;
            (u32::try_from(index).map_err(|_| absent())?, types.get(index))
        }
        None => {
            let known = KNOWN_ARGUMENTS.iter().find(|known| known.path == spec.path).ok_or_else(absent)?;
            let ty = types.get(known.index as usize);
            let alike = ty.is_some_and(|&ty| match known.shape {
                Shape::Int => btf.kind_of(ty) == Some(Kind::Int),
                Shape::Enum(name) => btf.is_enum(ty, name),
            });
            if !alike {
                return Err(absent());
            }
            (known.index, ty)
        }
    };
    let found = ty.and_then(|&ty| btf.size_of(ty)).unwrap_or(0);
    if found != u64::from(spec.size) {
        return Err(FieldError::Size { expected: spec.size, found });
    }
    Ok(FieldSlot { offset: index, present: 1, ..FieldSlot::default() })
}

/// The kernel marks arguments for the verifier by a suffix, as in `skb__nullable`.
fn is_called(name: &[u8], wanted: &str) -> bool {
    name.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"__"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf_blob::Blob;
    use probe_common::fields::{FIELDS, TCP};

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    const fn row(path: &'static str, size: u8) -> FieldSpec {
        FieldSpec { path, kind: FieldKind::Member, size, required_by: TCP }
    }

    const fn pointer(path: &'static str) -> FieldSpec {
        FieldSpec { path, kind: FieldKind::Pointer, size: 8, required_by: TCP }
    }

    const fn argument(path: &'static str, size: u8) -> FieldSpec {
        FieldSpec { path, kind: FieldKind::TraceArg, size, required_by: 0 }
    }

    /// offset, shift, width.
    fn place(btf: &KernelBtf, spec: FieldSpec) -> Result<(u32, u8, u8), String> {
        let resolved = resolve(btf, &[spec]);
        match (resolved.slots.as_slice(), resolved.absent.as_slice()) {
            (&[slot], []) if slot.present == 1 => Ok((slot.offset, slot.shift, slot.width)),
            (&[slot], [absent]) if slot == FieldSlot::default() => Err(absent.reason.to_string()),
            other => Err(format!("impossible: {other:?}")),
        }
    }

    #[test]
    fn members_are_found_wherever_they_hide() -> TestResult {
        let mut blob = Blob::new();
        let byte = blob.int("unsigned char", 1);
        let int = blob.int("unsigned int", 4);
        let alias = blob.typedef("__be32", int);
        let flexible = blob.array(int, 0);
        let constant = blob.raw("", 10, false, 0, alias, &[]);
        let text = blob.array(byte, 16);
        let inner_pair = blob.structure("", 8, &[("daddr", constant, 0), ("rcv_saddr", alias, 32)]);
        let either = blob.union("", 8, &[("both", byte, 0), ("", inner_pair, 0)]);
        let counter = blob.structure("", 4, &[("counter", int, 0)]);
        let atomic = blob.typedef("atomic_t", counter);
        let common = blob.structure("common", 32, &[("", either, 64), ("live", atomic, 128)]);
        let to_common = blob.ptr(common);
        let constant_pointer = blob.raw("", 10, false, 0, to_common, &[]);
        let named_pointer = blob.typedef("common_t", constant_pointer);
        let pointers = blob.array(to_common, 1);
        blob.structure(
            "outer",
            80,
            &[
                ("first", int, 0),
                ("__common", common, 64),
                ("far", to_common, 320),
                ("qualified", named_pointer, 384),
                ("text", text, 448),
                ("pointers", pointers, 576),
            ],
        );
        blob.packed(
            "bits",
            8,
            &[("plain", int, 0, 0), ("state", byte, 40, 5), ("late", int, 44, 3), ("over", int, 30, 4)],
        );
        let seven = blob.raw("seven", 1, false, 0, 4, &[3 << 16 | 7]); // an old kernel's bit-field
        blob.structure("old", 8, &[("pad", int, 0), ("field", seven, 32)]);
        blob.structure("tail", 4, &[("count", int, 0), ("entries", flexible, 32)]);
        blob.structure("twin", 4, &[("a", int, 0)]);
        blob.structure("twin", 8, &[("a", int, 0), ("b", int, 32)]);
        let btf = KernelBtf::from_bytes(blob.bytes())?;

        let cases = [
            (row("outer.first", 4), Ok((0, 0, 0))),
            (row("outer.__common.daddr", 4), Ok((16, 0, 0))),
            (row("outer.__common.rcv_saddr", 4), Ok((20, 0, 0))),
            (row("outer.__common.live.counter", 4), Ok((24, 0, 0))),
            (pointer("outer.far"), Ok((40, 0, 0))),
            (pointer("outer.qualified"), Ok((48, 0, 0))),
            (row("outer.text", 16), Ok((56, 0, 0))),
            (row("outer.text", 1), Ok((56, 0, 0))),
            (row("bits.plain", 4), Ok((0, 0, 0))),
            (row("bits.state", 1), Ok((5, 0, 5))),
            (row("bits.late", 1), Ok((5, 4, 3))),
            (row("bits.late", 4), Ok((4, 12, 3))),
            (row("bits.over", 8), Ok((0, 30, 4))),
            (row("bits.over", 2), Ok((3, 6, 4))),
            (row("old.field", 4), Ok((4, 3, 7))),
            (row("tail.entries", 0), Ok((4, 0, 0))),
            (row("tail.entries", 4), Ok((4, 0, 0))),
            (row("tail.entries", 5), Err("is 0 bytes")),
            (row("twin.b", 4), Ok((4, 0, 0))),
            (row("outer.text", 17), Err("is 16 bytes")),
            (row("outer.first", 2), Err("is 4 bytes")),
            (row("outer.far", 8), Err("is a pointer in this kernel")),
            (row("outer.qualified", 8), Err("is a pointer in this kernel")),
            (row("outer.far", 4), Err("is a pointer in this kernel")),
            (pointer("outer.first"), Err("is a value in this kernel")),
            (pointer("outer.text"), Err("is a value in this kernel")),
            (pointer("outer.pointers"), Err("is a value in this kernel")),
            (row("outer.far.daddr", 4), Err("no member daddr")),
            (row("outer.__common", 4), Err("is 32 bytes")),
            (row("outer.missing", 4), Err("no member missing")),
            (row("bits.over", 1), Err("bit-field at bit 30, 4 wide")),
            (row("nothing.at", 4), Err("no struct nothing")),
            (row("outer", 4), Err("not of the form")),
            (row("outer.", 4), Err("no member")),
            (row("outer..first", 4), Err("no member")),
        ];
        for (spec, expected) in cases {
            let found = place(&btf, spec);
            let same = match (&found, expected) {
                (Ok(found), Ok(expected)) => *found == expected,
                (Err(found), Err(expected)) => found.contains(expected),
                (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
            };
            assert!(same, "{} ({} bytes): {found:?}, expected {expected:?}", spec.path, spec.size);
        }
        Ok(())
    }

    #[test]
    fn reasons_of_resets_in_lower_case() -> TestResult {
        let mut blob = Blob::new();
        let variants = [("SK_RST_REASON_NOT_SPECIFIED", 0), ("SK_RST_REASON_NO_SOCKET", 1), ("OTHER", 2)];
        blob.enumeration("sk_rst_reason", false, &variants);
        let btf = KernelBtf::from_bytes(blob.bytes())?;
        let reasons = resolve(&btf, &[]).reset_reasons;
        assert_eq!(reasons.get(&1).map(AsRef::as_ref), Some("no_socket"));
        assert_eq!(reasons.len(), 2);

        // A kernel that counts otherwise: 6.10 had no reasons of TCP's own between these.
        let mut blob = Blob::new();
        let variants = [("SK_RST_REASON_NO_SOCKET", 1), ("SK_RST_REASON_MPTCP_RST_EUNSPEC", 2)];
        blob.enumeration("sk_rst_reason", false, &variants);
        let reasons = resolve(&KernelBtf::from_bytes(blob.bytes())?, &[]).reset_reasons;
        assert_eq!(reasons.get(&2).map(AsRef::as_ref), Some("mptcp_rst_eunspec"));
        Ok(())
    }

    /// Linux 5.10.0, before stable took the pointer over: no fixture has this layout.
    #[test]
    fn the_older_cgroup_of_a_socket_is_a_number_in_a_union() -> TestResult {
        let mut blob = Blob::new();
        let byte = blob.int("unsigned char", 1);
        let short = blob.int("unsigned short", 2);
        let int = blob.int("unsigned int", 4);
        let long = blob.int("unsigned long long", 8);
        let bits = blob.packed(
            "",
            8,
            &[
                ("is_data", byte, 0, 1),
                ("no_refcnt", byte, 1, 1),
                ("unused", byte, 2, 6),
                ("padding", byte, 8, 0),
                ("prioidx", short, 16, 0),
                ("classid", int, 32, 0),
            ],
        );
        let either = blob.union("", 8, &[("", bits, 0), ("val", long, 0)]);
        let data = blob.structure("sock_cgroup_data", 8, &[("", either, 0)]);
        blob.structure("sock", 680, &[("sk_cgrp_data", data, 664 * 8)]);
        let btf = KernelBtf::from_bytes(blob.bytes())?;
        assert_eq!(place(&btf, row("sock.sk_cgrp_data.val", 8)), Ok((664, 0, 0)));
        assert_eq!(place(&btf, row("sock.sk_cgrp_data.no_refcnt", 1)), Ok((664, 1, 1)));
        let newer = place(&btf, pointer("sock.sk_cgrp_data.cgroup"));
        assert!(newer.is_err_and(|why| why.contains("no member cgroup")));
        Ok(())
    }

    #[test]
    fn tracepoint_arguments_by_name_else_by_place_and_type() -> TestResult {
        let blob_of = |arguments: &[&str], names: Option<(&str, &[&str])>| {
            let mut blob = Blob::new();
            let int = blob.int("int", 4);
            let pointer = blob.ptr(0);
            let reason = blob.enumeration("sk_rst_reason", false, &[("A", 0)]);
            let other = blob.enumeration("other", false, &[("A", 0)]);
            let of = |name: &str| match name {
                "int" => int,
                "reason" => reason,
                "other" => other,
                _ => pointer,
            };
            let types: Vec<u32> = arguments.iter().map(|name| of(name)).collect();
            blob.tracepoint("tcp_retransmit_skb", &types);
            blob.tracepoint("tcp_send_reset", &types);
            if let Some((prefix, names)) = names {
                for tracepoint in ["tcp_retransmit_skb", "tcp_send_reset"] {
                    let parameters: Vec<_> = [("__data", pointer)]
                        .into_iter()
                        .chain(names.iter().copied().zip(types.iter().copied()))
                        .collect();
                    let prototype = blob.prototype(&parameters);
                    blob.function(&format!("{prefix}{tracepoint}"), prototype);
                }
            }
            KernelBtf::from_bytes(blob.bytes())
        };
        let p = "ptr";
        let err = argument("tcp_retransmit_skb:err", 4);
        let reason = argument("tcp_send_reset:reason", 4);

        let named = blob_of(&[p, p, "int"], Some(("__traceiter_", &["sk", "skb__nullable", "err"])))?;
        assert_eq!(place(&named, err), Ok((2, 0, 0)));
        assert!(place(&named, reason).is_err_and(|why| why.contains("no argument reason")));
        assert_eq!(place(&named, argument("tcp_retransmit_skb:skb", 8)), Ok((1, 0, 0)));
        assert!(
            place(&named, argument("tcp_retransmit_skb:skb", 4)).is_err_and(|why| why.contains("is 8 bytes"))
        );
        assert!(
            place(&named, argument("tcp_probe:sk", 8))
                .is_err_and(|why| why.contains("no tracepoint tcp_probe"))
        );

        let other_names = blob_of(&["int", p], Some(("__bpf_trace_", &["err", "sk"])))?;
        assert_eq!(place(&other_names, err), Ok((0, 0, 0)));

        let nameless = blob_of(&[p, p, "int"], None)?;
        assert_eq!(place(&nameless, err), Ok((2, 0, 0)));
        assert!(place(&nameless, reason).is_err());
        let nameless = blob_of(&[p, p, "reason"], None)?;
        assert_eq!(place(&nameless, reason), Ok((2, 0, 0)));
        assert!(place(&nameless, err).is_err());
        let nameless = blob_of(&[p, p, "other"], None)?;
        assert!(place(&nameless, reason).is_err());

        let older = blob_of(&[p, p], Some(("__traceiter_", &["sk", "skb"])))?;
        assert!(place(&older, err).is_err_and(|why| why.contains("no argument err")));
        Ok(())
    }

    #[test]
    fn missing_names_the_rows_of_a_signal() -> TestResult {
        let mut blob = Blob::new();
        let int = blob.int("int", 4);
        blob.structure("task_struct", 4, &[("tgid", int, 0)]);
        let btf = KernelBtf::from_bytes(blob.bytes())?;
        let resolved = resolve(&btf, FIELDS);
        assert_eq!(resolved.slots.len(), FIELDS.len());
        let missing = resolved.missing(TCP);
        assert!(missing.contains(&"sock_common.skc_daddr"));
        assert!(!missing.contains(&"task_struct.tgid"), "present");
        assert!(!missing.contains(&"tcp_sock.srtt_us"), "detail only");
        assert!(resolved.absent.iter().any(|field| field.path == "tcp_sock.srtt_us"));
        Ok(())
    }

    /// A xorshift generator: the same bytes are spoilt in every run.
    fn next(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn spoilt_bytes_never_panic() {
        let mut blob = Blob::new();
        let int = blob.int("int", 4);
        let pair = blob.structure("", 8, &[("skc_daddr", int, 0), ("skc_rcv_saddr", int, 32)]);
        let either = blob.union("", 8, &[("skc_addrpair", int, 0), ("", pair, 0)]);
        let common = blob.structure("sock_common", 16, &[("", either, 0), ("skc_num", int, 64)]);
        let text = blob.array(int, 4);
        blob.structure("task_struct", 16, &[("comm", text, 0)]);
        blob.structure("request_sock", 16, &[("__req_common", common, 0)]);
        blob.packed("inet_connection_sock", 4, &[("icsk_ca_state", int, 3, 5)]);
        blob.enumeration("sk_rst_reason", false, &[("A", 0)]);
        blob.enumeration64("skb_drop_reason", &[("A", 0)]);
        blob.tracepoint("tcp_retransmit_skb", &[int, int, int]);
        let prototype = blob.prototype(&[("__data", int), ("sk", int), ("skb", int), ("err", int)]);
        blob.function("__traceiter_tcp_retransmit_skb", prototype);
        let whole = blob.bytes();

        let mut state = 0x9e37_79b9_7f4a_7c15;
        let mut accepted = 0;
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..next(&mut state) % 6 {
                let at = next(&mut state) as usize % bytes.len();
                if let Some(place) = bytes.get_mut(at) {
                    *place = match next(&mut state) % 4 {
                        0 => 0,
                        1 => 0xff,
                        2 => *place ^ 1 << (next(&mut state) % 8),
                        _ => next(&mut state) as u8,
                    };
                }
            }
            if next(&mut state).is_multiple_of(8) {
                bytes.truncate(next(&mut state) as usize % bytes.len());
            }
            let Ok(btf) = KernelBtf::from_bytes(bytes) else { continue };
            accepted += 1;
            assert_eq!(resolve(&btf, FIELDS).slots.len(), FIELDS.len());
            let _ = (btf.enum_variants("sk_rst_reason"), btf.enum_value("skb_drop_reason", "A"));
        }
        assert!(accepted > 2_000, "most blobs must get past the header, {accepted} did");
    }

    /// What a kernel's own compiler knows, on the machine that runs the tests.
    #[test]
    fn the_running_kernel_has_every_required_field() -> TestResult {
        let btf = match KernelBtf::from_host() {
            Ok(btf) => btf,
            Err(why) => {
                eprintln!("not compared on this machine: {why}");
                return Ok(());
            }
        };
        let resolved = resolve(&btf, FIELDS);
        let required: Vec<_> = resolved.absent.iter().filter(|field| field.required_by != 0).collect();
        assert!(required.is_empty(), "{required:?}");
        let offset = |path: &str| {
            let index = FIELDS.iter().position(|spec| spec.path == path)?;
            resolved.slots.get(index).filter(|slot| slot.present == 1).map(|slot| slot.offset)
        };
        // struct sock_common begins with these in every kernel from 3.9 on.
        assert_eq!(offset("sock_common.skc_daddr"), Some(0));
        assert_eq!(offset("sock_common.skc_rcv_saddr"), Some(4));
        assert_eq!(offset("sock_common.skc_dport"), Some(12));
        assert_eq!(offset("sock_common.skc_num"), Some(14));
        assert_eq!(offset("sock_common.skc_family"), Some(16));
        assert_eq!(offset("sock_common.skc_state"), Some(18));
        assert_eq!(offset("request_sock.__req_common.skc_dport"), Some(12));
        assert_eq!(
            offset("task_struct.tgid").zip(offset("task_struct.pid")).map(|(tgid, pid)| tgid - pid),
            Some(4)
        );
        Ok(())
    }
}
