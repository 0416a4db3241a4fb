//! What is asked of the types: members, sizes, enums, prototypes. Total over any bytes that [`KernelBtf`] took.

use super::KernelBtf;
use super::format::{Kind, TYPE_LEN, Type, type_at, u32_at};

/// Longest name that is looked at, its closing zero included; the kernel allows as much.
const MAX_NAME: usize = 512;
/// Limit for chains of typedefs and qualifiers, arrays of arrays and structs in structs.
const MAX_DEPTH: u32 = 32;
/// Limit for the members visited in one search; `task_struct` has some three hundred.
const MAX_STEPS: u32 = 1 << 12;
/// Variants of an enum that are listed; the kernel's longest has some hundred. A name may be shared, so the list could take a
/// hundred times the file's size.
const MAX_VARIANTS: u32 = 4_096;

/// Where a member is inside the outermost struct of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Bits from the start of the outermost struct.
    pub(crate) bit: u64,
    /// Id of its type.
    pub(crate) type_id: u32,
    /// Width of a bit-field in bits; 0 for an ordinary member.
    pub(crate) width: u32,
}

/// One variant of an enum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Its name as in the kernel's source.
    pub name: String,
    /// Its value. Unsigned 64-bit values beyond `i64::MAX` keep their bits.
    pub value: i64,
}

impl KernelBtf {
    /// Whether the kernel has a tracepoint of this name, by the prototype that raw tracepoints are checked
    /// against.
    pub fn tracepoint_exists(&self, name: &str) -> bool {
        self.tracepoint_prototype(name).is_some()
    }

    /// The value of an enum's variant, such as `("sk_rst_reason", "SK_RST_REASON_NO_SOCKET")`.
    pub fn enum_value(&self, name: &str, variant: &str) -> Option<i64> {
        self.enums(name).find_map(|ty| {
            (0..ty.vlen).find_map(|index| {
                let (name, value) = self.enum_element(ty, index)?;
                self.name_is(name, variant.as_bytes()).then_some(value)
            })
        })
    }

    /// The variants of an enum (the first 4,096), in the order of the kernel's source; none where the kernel has no such enum.
    pub fn enum_variants(&self, name: &str) -> Vec<Variant> {
        let Some(ty) = self.enums(name).next() else { return Vec::new() };
        (0..ty.vlen.min(MAX_VARIANTS))
            .filter_map(|index| {
                let (name, value) = self.enum_element(ty, index)?;
                Some(Variant { name: String::from_utf8_lossy(self.name_at(name)?).into_owned(), value })
            })
            .collect()
    }

    fn enums(&self, name: &str) -> impl Iterator<Item = Type> {
        self.named(name).filter(|ty| matches!(ty.kind, Kind::Enum | Kind::Enum64))
    }

    /// Types of this name, of any kind, in file order. Walks all types: the caller keeps what it finds.
    pub(crate) fn named(&self, name: &str) -> impl Iterator<Item = Type> {
        self.types.iter().filter_map(move |&at| {
            let at = at as usize;
            let wanted = self.name_is(u32_at(&self.bytes, at)?, name.as_bytes());
            if wanted { type_at(&self.bytes, at) } else { None }
        })
    }

    fn by_id(&self, id: u32) -> Option<Type> {
        let at = *self.types.get((id as usize).checked_sub(1)?)?;
        type_at(&self.bytes, at as usize)
    }

    /// The type behind typedefs and qualifiers. None for void, unknown ids and endless chains.
    fn strip(&self, id: u32) -> Option<Type> {
        let mut ty = self.by_id(id)?;
        for _ in 0..MAX_DEPTH {
            if !ty.kind.is_modifier() {
                return Some(ty);
            }
            ty = self.by_id(ty.size_or_type)?;
        }
        None
    }

    /// Bytes that a value of the type takes.
    pub(crate) fn size_of(&self, id: u32) -> Option<u64> {
        let (mut id, mut count) = (id, 1_u64);
        for _ in 0..MAX_DEPTH {
            let ty = self.strip(id)?;
            let one = match ty.kind {
                Kind::Int | Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Float => {
                    ty.size_or_type
                }
                Kind::Ptr => 8,
                Kind::Array => {
                    count = count.checked_mul(self.element_u32(ty, 8)?.into())?;
                    id = self.element_u32(ty, 0)?;
                    continue;
                }
                Kind::Fwd
                | Kind::Typedef
                | Kind::Volatile
                | Kind::Const
                | Kind::Restrict
                | Kind::Func
                | Kind::FuncProto
                | Kind::Var
                | Kind::DataSec
                | Kind::DeclTag
                | Kind::TypeTag => return None,
            };
            return count.checked_mul(one.into());
        }
        None
    }

    /// Bytes of one element, if the type is an array.
    pub(crate) fn element_size(&self, id: u32) -> Option<u64> {
        let array = self.strip(id).filter(|ty| ty.kind == Kind::Array)?;
        self.size_of(self.element_u32(array, 0)?)
    }

    /// The kind behind typedefs and qualifiers.
    pub(crate) fn kind_of(&self, id: u32) -> Option<Kind> {
        self.strip(id).map(|ty| ty.kind)
    }

    /// Whether the type, behind typedefs and qualifiers, is an enum of this name.
    pub(crate) fn is_enum(&self, id: u32, name: &str) -> bool {
        self.strip(id).is_some_and(|ty| {
            matches!(ty.kind, Kind::Enum | Kind::Enum64) && self.name_is(ty.name, name.as_bytes())
        })
    }

    /// Finds a member by its path below a struct or union: through embedded structs and anonymous ones, never
    /// through a pointer. Returns the name that was not found as the error.
    pub(crate) fn member<'p>(
        &self,
        outer: Type,
        path: impl Iterator<Item = &'p str>,
    ) -> Result<Member, &'p str> {
        let mut found: Option<Member> = None;
        let mut within = Some(outer);
        let mut steps = MAX_STEPS;
        for name in path {
            let base = found.map_or(0, |member| member.bit);
            let inner = within
                .and_then(|ty| self.member_of(ty, name.as_bytes(), MAX_DEPTH, &mut steps))
                .ok_or(name)?;
            let bit = base.checked_add(inner.bit).ok_or(name)?;
            found = Some(Member { bit, ..inner });
            within = self.strip(inner.type_id);
        }
        found.ok_or("")
    }

    fn member_of(&self, outer: Type, name: &[u8], depth: u32, steps: &mut u32) -> Option<Member> {
        if !matches!(outer.kind, Kind::Struct | Kind::Union) {
            return None;
        }
        let depth = depth.checked_sub(1)?;
        for index in 0..outer.vlen {
            *steps = steps.checked_sub(1)?;
            let at = index.checked_mul(12)?;
            let member_name = self.element_u32(outer, at)?;
            let type_id = self.element_u32(outer, at + 4)?;
            let place = self.element_u32(outer, at + 8)?;
            let (bit, width) = if outer.flag { (place & 0x00ff_ffff, place >> 24) } else { (place, 0) };
            let member = Member { bit: bit.into(), type_id, width };
            if self.name_at(member_name).is_some_and(<[u8]>::is_empty) {
                let inner =
                    self.strip(type_id).and_then(|anonymous| self.member_of(anonymous, name, depth, steps));
                if let Some(inner) = inner {
                    return Some(Member { bit: member.bit.checked_add(inner.bit)?, ..inner });
                }
            } else if self.name_is(member_name, name) {
                return Some(self.old_bit_field(member).unwrap_or(member));
            }
        }
        None
    }

    /// Before bit-fields were marked in the struct, the integer type itself said which bits are used.
    fn old_bit_field(&self, member: Member) -> Option<Member> {
        let ty = self.strip(member.type_id)?;
        if ty.kind != Kind::Int || member.width != 0 {
            return None;
        }
        let encoding = self.element_u32(ty, 0)?;
        let (start, bits) = ((encoding >> 16) & 0xff, encoding & 0xff);
        let whole = u64::from(bits) == u64::from(ty.size_or_type) * 8 && start == 0;
        if whole || bits == 0 {
            return None;
        }
        Some(Member { bit: member.bit.checked_add(start.into())?, width: bits, ..member })
    }

    /// The prototype of a raw tracepoint: `typedef void (*btf_trace_NAME)(void *__data, …)`.
    pub(crate) fn tracepoint_prototype(&self, name: &str) -> Option<Type> {
        let typedef = self.named(&format!("btf_trace_{name}")).find(|ty| ty.kind == Kind::Typedef)?;
        let pointer = self.strip(typedef.size_or_type).filter(|ty| ty.kind == Kind::Ptr)?;
        self.strip(pointer.size_or_type).filter(|ty| ty.kind == Kind::FuncProto)
    }

    /// The prototype of a function of the kernel.
    pub(crate) fn function_prototype(&self, name: &str) -> Option<Type> {
        let function = self.named(name).find(|ty| ty.kind == Kind::Func)?;
        self.by_id(function.size_or_type).filter(|ty| ty.kind == Kind::FuncProto)
    }

    /// Number of a function of the kernel among its types.
    pub(crate) fn function_id(&self, name: &str) -> Option<u32> {
        let is_wanted = |&at: &u32| {
            let ty = type_at(&self.bytes, at as usize).filter(|ty| ty.kind == Kind::Func)?;
            self.name_is(ty.name, name.as_bytes()).then_some(())
        };
        let index = self.types.iter().position(|at| is_wanted(at).is_some())?;
        u32::try_from(index + 1).ok()
    }

    /// Names and type ids of a prototype's parameters; the names may be empty.
    pub(crate) fn parameters(&self, prototype: Type) -> impl Iterator<Item = (&[u8], u32)> {
        let count = if prototype.kind == Kind::FuncProto { prototype.vlen } else { 0 };
        (0..count).map_while(move |index| {
            let at = index.checked_mul(8)?;
            let name = self.element_u32(prototype, at)?;
            Some((self.name_at(name).unwrap_or_default(), self.element_u32(prototype, at + 4)?))
        })
    }

    fn enum_element(&self, ty: Type, index: u32) -> Option<(u32, i64)> {
        if ty.kind == Kind::Enum64 {
            let at = index.checked_mul(12)?;
            let low = self.element_u32(ty, at + 4)?;
            let high = self.element_u32(ty, at + 8)?;
            let value = u64::from(low) | u64::from(high) << 32;
            return Some((self.element_u32(ty, at)?, value.cast_signed()));
        }
        let at = index.checked_mul(8)?;
        let value = self.element_u32(ty, at + 4)?;
        // Kernels before 6.0 do not mark signed enums; taking theirs for unsigned is right for all that are asked
        // for, which are counted from 0.
        let value = if ty.flag { i64::from(value.cast_signed()) } else { i64::from(value) };
        Some((self.element_u32(ty, at)?, value))
    }

    /// A word of what follows `struct btf_type`.
    fn element_u32(&self, ty: Type, at: u32) -> Option<u32> {
        u32_at(&self.bytes, ty.at.checked_add(TYPE_LEN)?.checked_add(at as usize)?)
    }

    fn strings_from(&self, name: u32) -> &[u8] {
        let at = self.strings_at.saturating_add(name as usize);
        self.bytes.get(at..self.strings_end).unwrap_or_default()
    }

    /// None where no zero ends it.
    fn name_at(&self, name: u32) -> Option<&[u8]> {
        let rest = self.strings_from(name);
        let len = rest.iter().take(MAX_NAME).position(|&byte| byte == 0)?;
        rest.get(..len)
    }

    fn name_is(&self, name: u32, wanted: &[u8]) -> bool {
        // The end first: it tells most apart, without a call.
        let strings = self.strings_from(name);
        strings.get(wanted.len()) == Some(&0) && strings.starts_with(wanted)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::btf_blob::Blob;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn enums_are_read_signed_unsigned_and_wide() -> TestResult {
        let mut blob = Blob::new();
        blob.enumeration("small", true, &[("MINUS", -1), ("TWO", 2)]);
        blob.enumeration("mask", false, &[("HIGH", 0xffff_0000_u32.cast_signed())]);
        blob.enumeration64("wide", &[("BIG", 1 << 40), ("ALL", u64::MAX)]);
        blob.int("small", 4); // another type of the same name
        let btf = KernelBtf::from_bytes(blob.bytes())?;
        let cases = [
            ("small", "MINUS", Some(-1)),
            ("small", "TWO", Some(2)),
            ("small", "TW", None),
            ("small", "TWOO", None),
            ("mask", "HIGH", Some(0xffff_0000)),
            ("wide", "BIG", Some(1 << 40)),
            ("wide", "ALL", Some(-1)),
            ("none", "BIG", None),
        ];
        for (name, variant, expected) in cases {
            assert_eq!(btf.enum_value(name, variant), expected, "{name}.{variant}");
        }
        let names: Vec<_> = btf.enum_variants("small").into_iter().map(|v| (v.name, v.value)).collect();
        assert_eq!(names, [("MINUS".to_owned(), -1), ("TWO".to_owned(), 2)]);
        assert!(btf.enum_variants("none").is_empty());
        Ok(())
    }

    #[test]
    fn a_list_of_variants_is_bounded() -> TestResult {
        let mut blob = Blob::new();
        let name = "N".repeat(MAX_NAME - 1);
        let at = blob.raw(&name, 16, false, 0, 4, &[]); // its name is the first string, at 1
        assert_eq!(at, 1);
        let tail: Vec<u32> = (0..3 * MAX_VARIANTS).flat_map(|value| [1, value]).collect();
        blob.raw("hostile", 6, false, 3 * MAX_VARIANTS, 4, &tail);
        let btf = KernelBtf::from_bytes(blob.bytes())?;
        let variants = btf.enum_variants("hostile");
        assert_eq!(variants.len(), MAX_VARIANTS as usize);
        assert!(variants.iter().all(|variant| variant.name.len() == MAX_NAME - 1));
        Ok(())
    }

    #[test]
    fn a_name_that_nothing_ends_is_none() -> TestResult {
        let mut blob = Blob::new();
        let long = blob.raw(&"N".repeat(MAX_NAME), 16, false, 0, 4, &[]); // at 1 of the strings
        let beyond = u32::MAX;
        blob.raw("e", 6, false, 3, 4, &[1, 10, beyond, 11, 0, 12]);
        let int = blob.int("int", 4);
        let inner = blob.structure("", 4, &[("x", int, 0)]);
        blob.raw("s", 4, false, 1, 4, &[beyond, inner, 0]);
        let btf = KernelBtf::from_bytes(blob.bytes())?;
        assert_eq!(long, 1);
        assert_eq!(btf.enum_variants("e"), [Variant { name: String::new(), value: 12 }]);
        let outer = btf.named("s").next().ok_or("no struct")?;
        assert_eq!(
            btf.member(outer, ["x"].into_iter()),
            Err("x"),
            "a member without a name is not an anonymous one"
        );
        Ok(())
    }

    #[test]
    fn sizes_go_through_qualifiers_and_arrays_and_end_on_loops() -> TestResult {
        let mut blob = Blob::new();
        let short = blob.int("short", 2);
        let alias = blob.typedef("u16", short);
        let qualified = blob.raw("", 9, false, 0, alias, &[]);
        let row = blob.array(qualified, 3);
        let table = blob.array(row, 5);
        let pointer = blob.ptr(table);
        let itself = blob.typedef("ouroboros", pointer + 1);
        let huge = blob.array(pointer + 3, u32::MAX); // of itself
        assert_eq!(huge, pointer + 2);
        let huger = blob.array(huge, u32::MAX);
        assert_eq!(huger, pointer + 3);
        let btf = KernelBtf::from_bytes(blob.bytes())?;
        let cases = [
            (alias, Some(2)),
            (table, Some(30)),
            (pointer, Some(8)),
            (itself, None),
            (huge, None),
            (0, None),
        ];
        for (id, expected) in cases {
            assert_eq!(btf.size_of(id), expected, "type {id}");
        }
        assert_eq!(btf.size_of(u32::MAX), None);
        Ok(())
    }

    /// A struct as it is declared: members, and where each of them is anonymous what is inside.
    #[derive(Clone, Debug)]
    enum Shape {
        Word(u8),
        Anonymous { union: bool, members: Vec<Shape> },
        Named(Vec<Shape>),
    }

    fn shape() -> impl Strategy<Value = Shape> {
        let word = prop_oneof![Just(1_u8), Just(2), Just(4), Just(8)].prop_map(Shape::Word);
        word.prop_recursive(4, 24, 4, |inner| {
            let members = prop::collection::vec(inner, 1..4);
            prop_oneof![
                (any::<bool>(), members.clone())
                    .prop_map(|(union, members)| Shape::Anonymous { union, members }),
                members.prop_map(Shape::Named),
            ]
        })
    }

    /// Puts members into a blob one after another, and says by which path each word is found, and at which bit.
    fn lay_out(
        blob: &mut Blob,
        union: bool,
        members: &[Shape],
        prefix: &str,
        base: u32,
        words: &mut Vec<(String, u32)>,
    ) -> (Vec<(String, u32, u32)>, u32) {
        let (mut laid_out, mut end, mut largest) = (Vec::new(), 0, 0);
        for member in members {
            let at = if union { 0 } else { end };
            // Every name is used once, so a path means one word.
            let name = format!("m{}", words.len());
            let (name, ty, size) = match member {
                Shape::Word(size) => {
                    words.push((format!("{prefix}{name}"), base + at));
                    let size = u32::from(*size);
                    (name, blob.int("int", size), size)
                }
                Shape::Anonymous { union, members } => {
                    let (inner, size) = lay_out(blob, *union, members, prefix, base + at, words);
                    (String::new(), record(blob, "", *union, size, &inner), size)
                }
                Shape::Named(members) => {
                    words.push((format!("{prefix}{name}"), base + at));
                    let path = format!("{prefix}{name}.");
                    let (inner, size) = lay_out(blob, false, members, &path, base + at, words);
                    (name, record(blob, "named", false, size, &inner), size)
                }
            };
            laid_out.push((name, ty, at * 8));
            end = at + size;
            largest = end.max(largest);
        }
        (laid_out, largest)
    }

    fn record(blob: &mut Blob, name: &str, union: bool, size: u32, members: &[(String, u32, u32)]) -> u32 {
        let members: Vec<_> = members.iter().map(|(name, ty, bit)| (name.as_str(), *ty, *bit)).collect();
        if union { blob.union(name, size, &members) } else { blob.structure(name, size, &members) }
    }

    proptest! {
        #[test]
        fn every_member_is_found_where_it_was_put(members in prop::collection::vec(shape(), 1..6)) {
            let mut blob = Blob::new();
            let mut words = Vec::new();
            let (laid_out, size) = lay_out(&mut blob, false, &members, "", 0, &mut words);
            let outer = record(&mut blob, "outer", false, size, &laid_out);
            let btf = KernelBtf::from_bytes(blob.bytes()).unwrap();
            prop_assert_eq!(btf.size_of(outer), Some(size.into()));
            let outer = btf.named("outer").next().unwrap();
            for (path, at) in words {
                let found = btf.member(outer, path.split('.')).map(|member| member.bit);
                prop_assert_eq!(found, Ok(u64::from(at) * 8), "{}", path);
            }
            prop_assert_eq!(btf.member(outer, ["absent"].into_iter()), Err("absent"));
        }

        #[test]
        fn any_sections_are_read_or_refused(types in prop::collection::vec(any::<u8>(), 0..400), strings in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = vec![0x9f, 0xeb, 1, 0];
            for word in [24, 0, types.len(), types.len(), strings.len()] {
                bytes.extend_from_slice(&(word as u32).to_le_bytes());
            }
            bytes.extend([types, strings].concat());
            if let Ok(btf) = KernelBtf::from_bytes(bytes) {
                for id in 0..100 {
                    let _ = (btf.size_of(id), btf.element_size(id), btf.kind_of(id));
                }
            }
        }
    }

    #[test]
    fn structs_that_contain_themselves_end_the_search() -> TestResult {
        let mut blob = Blob::new();
        // A fan of anonymous members, all of the struct's own type: 16^32 paths.
        let members = vec![("", 1, 0); 16];
        blob.structure("knot", 4, &members);
        let btf = KernelBtf::from_bytes(blob.bytes())?;
        let knot = btf.named("knot").next().ok_or("no struct")?;
        assert_eq!(btf.member(knot, ["x"].into_iter()), Err("x"));
        Ok(())
    }

    #[test]
    fn tracepoints_are_known_by_their_prototype() -> TestResult {
        let mut blob = Blob::new();
        let int = blob.int("int", 4);
        blob.tracepoint("known", &[int]);
        blob.typedef("btf_trace_odd", int);
        let btf = KernelBtf::from_bytes(blob.bytes())?;
        assert!(btf.tracepoint_exists("known"));
        assert!(!btf.tracepoint_exists("odd"));
        assert!(!btf.tracepoint_exists("unknown"));
        Ok(())
    }
}
