//! The kernel's own type information (BTF), read in place.
//!
//! A reader of our own, because the libraries hold every type and name as objects of their own. Over the
//! reference host's 5.5 MB /sys/kernel/btf/vmlinux (126,586 types), release build: `btf` 0.5 took 213 ms, 3.0
//! million allocations and 69 MiB of anonymous memory, `btfparse` 1.3 took 121 ms, 0.7 million and 60 MiB;
//! the whole agent is to stay under 40 MiB. This one keeps the file's bytes and four bytes a type, which is 6
//! MB for the moment of start-up, and answers the table of fields in a few milliseconds. (`btf` also lets the
//! last of several types of one name win, and multiplies array sizes unchecked.)
//!
//! The format is that of Documentation/bpf/btf.rst. Every function is total over any bytes: lengths, ids and
//! offsets are checked where they are used, chains and nesting have limits.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Larger files are refused; the kernels of distributions have 5 to 12 MB.
const MAX_BYTES: u64 = 64 << 20;
/// Longest name that is looked at; the kernel allows 511 bytes.
const MAX_NAME: usize = 512;
/// Limit for chains of typedefs and qualifiers, arrays of arrays and structs in structs.
const MAX_DEPTH: u32 = 32;
/// Limit for the members visited in one search.
const MAX_STEPS: u32 = 1 << 16;

const MAGIC: u16 = 0xeb9f;
/// magic, version, flags, hdr_len and the two sections' offset and length.
const HEADER_LEN: usize = 24;
/// `struct btf_type`: name_off, info, size or type.
const TYPE_LEN: usize = 12;

/// Why BTF cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The running kernel does not publish its types.
    #[error(
        "this kernel has no BTF at {} (boot one built with CONFIG_DEBUG_INFO_BTF=y, or give its BTF with --btf FILE)",
        .0.display()
    )]
    Absent(PathBuf),
    /// The file cannot be read.
    #[error("cannot read BTF from {}: {source} (give a readable BTF file of the running kernel with --btf FILE)", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than any kernel's BTF.
    #[error(
        "BTF is larger than {MAX_BYTES} bytes (give the raw BTF of the running kernel with --btf FILE, not a whole vmlinux)"
    )]
    TooLarge,
    /// What is wrong with a file.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// [`Self::TooLarge`] or [`Self::Malformed`].
        source: Box<Self>,
    },
    /// These bytes are not BTF.
    #[error(
        "not BTF: {what} at byte {at} (give the raw BTF of the running kernel with --btf FILE; `bpftool btf dump file FILE` must accept it)"
    )]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where: bytes from the start of the file.
        at: usize,
    },
}

/// The kinds of type that BTF knows, `BTF_KIND_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Int,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    Fwd,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Func,
    FuncProto,
    Var,
    DataSec,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

impl Kind {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Int,
            2 => Self::Ptr,
            3 => Self::Array,
            4 => Self::Struct,
            5 => Self::Union,
            6 => Self::Enum,
            7 => Self::Fwd,
            8 => Self::Typedef,
            9 => Self::Volatile,
            10 => Self::Const,
            11 => Self::Restrict,
            12 => Self::Func,
            13 => Self::FuncProto,
            14 => Self::Var,
            15 => Self::DataSec,
            16 => Self::Float,
            17 => Self::DeclTag,
            18 => Self::TypeTag,
            19 => Self::Enum64,
            _ => return None,
        })
    }

    /// Bytes that follow `struct btf_type`: once, and for each of its `vlen` elements.
    fn trailer(self) -> (usize, usize) {
        match self {
            Self::Int | Self::Var | Self::DeclTag => (4, 0),
            Self::Array => (12, 0),
            Self::Struct | Self::Union | Self::DataSec | Self::Enum64 => (0, 12),
            Self::Enum | Self::FuncProto => (0, 8),
            Self::Ptr
            | Self::Fwd
            | Self::Typedef
            | Self::Volatile
            | Self::Const
            | Self::Restrict
            | Self::Func
            | Self::Float
            | Self::TypeTag => (0, 0),
        }
    }

    /// Only names or qualifies another type.
    fn is_modifier(self) -> bool {
        matches!(self, Self::Typedef | Self::Volatile | Self::Const | Self::Restrict | Self::TypeTag)
    }
}

/// The head of one type; what follows it is read when asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Type {
    /// Position of `struct btf_type` in the file.
    at: usize,
    name: u32,
    pub(crate) kind: Kind,
    vlen: u32,
    /// For structs: members carry bit-field widths. For enums: values are signed.
    flag: bool,
    /// Bytes of the type, or the id of the type it refers to: depends on the kind.
    size_or_type: u32,
}

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

/// The types of a kernel: the bytes of its BTF and where each type starts.
///
/// Needed while BPF programs are prepared; drop it afterwards.
pub struct KernelBtf {
    bytes: Vec<u8>,
    /// Position of every type in `bytes`; entry i is type id i + 1 (0 is void).
    types: Vec<u32>,
    strings_at: usize,
    strings_end: usize,
}

impl std::fmt::Debug for KernelBtf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bytes, types, .. } = self;
        f.debug_struct("KernelBtf").field("bytes", &bytes.len()).field("types", &types.len()).finish()
    }
}

impl KernelBtf {
    /// Where the running kernel publishes its types.
    pub const HOST_PATH: &str = "/sys/kernel/btf/vmlinux";

    /// Reads the BTF of the running kernel.
    ///
    /// # Errors
    /// [`BtfError::Absent`] where the kernel publishes none; others as for [`Self::from_file`].
    pub fn from_host() -> Result<Self, BtfError> {
        match Self::from_file(Path::new(Self::HOST_PATH)) {
            Err(BtfError::Read { path, source }) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(BtfError::Absent(path))
            }
            other => other,
        }
    }

    /// Reads BTF from a file: raw BTF, as in /sys/kernel/btf or from `pahole --btf_encode_detached`.
    ///
    /// # Errors
    /// The file cannot be read, is too large or is not little-endian BTF.
    pub fn from_file(path: &Path) -> Result<Self, BtfError> {
        let read = || -> std::io::Result<Vec<u8>> {
            let file = File::open(path)?;
            let len = file.metadata()?.len().min(MAX_BYTES);
            // The file is read once: room for all of it, and one byte more to see its end.
            let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0).saturating_add(1));
            file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|source| BtfError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(bytes)
            .map_err(|source| BtfError::File { path: path.to_owned(), source: Box::new(source) })
    }

    /// Takes raw BTF from memory. Total over any bytes.
    ///
    /// # Errors
    /// The bytes are too many or are not little-endian BTF.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, BtfError> {
        if bytes.len() as u64 > MAX_BYTES {
            return Err(BtfError::TooLarge);
        }
        let malformed = |what, at| BtfError::Malformed { what, at };
        let magic = bytes.first_chunk::<2>().map(|magic| u16::from_le_bytes(*magic));
        match magic {
            Some(MAGIC) => {}
            Some(other) if other.swap_bytes() == MAGIC => {
                return Err(malformed("big-endian types, these programs are little-endian", 0));
            }
            Some(_) | None => return Err(malformed("no BTF magic number", 0)),
        }
        if bytes.get(2) != Some(&1) {
            return Err(malformed("unknown version", 2));
        }
        let field = |at| u32_at(&bytes, at).map(|value| value as usize).ok_or(malformed("short header", at));
        let (header, type_off, type_len) = (field(4)?, field(8)?, field(12)?);
        let (str_off, str_len) = (field(16)?, field(20)?);
        if header < HEADER_LEN {
            return Err(malformed("header length too small", 4));
        }
        // Cannot overflow on 64 bits: each is a u32.
        let (types_at, strings_at) = (header + type_off, header + str_off);
        let (types_end, strings_end) = (types_at + type_len, strings_at + str_len);
        if types_end > bytes.len() {
            return Err(malformed("type section beyond the end", 8));
        }
        if strings_end > bytes.len() {
            return Err(malformed("string section beyond the end", 16));
        }

        let mut types = Vec::with_capacity(type_len / 30);
        let mut at = types_at;
        while at < types_end {
            let ty = type_at(&bytes, at).ok_or(malformed("type of unknown kind", at))?;
            let (once, each) = ty.kind.trailer();
            let next = at + TYPE_LEN + once + each * ty.vlen as usize;
            if next > types_end {
                return Err(malformed("type beyond the end of its section", at));
            }
            types.push(at as u32); // at < MAX_BYTES
            at = next;
        }
        Ok(Self { bytes, types, strings_at, strings_end })
    }

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

    /// All variants of an enum, in the order of the kernel's source; none where the kernel has no such enum.
    pub fn enum_variants(&self, name: &str) -> Vec<Variant> {
        let Some(ty) = self.enums(name).next() else { return Vec::new() };
        (0..ty.vlen)
            .filter_map(|index| {
                let (name, value) = self.enum_element(ty, index)?;
                Some(Variant { name: String::from_utf8_lossy(self.name_at(name)).into_owned(), value })
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
            if self.name_at(member_name).is_empty() {
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

    /// Names and type ids of a prototype's parameters; the names may be empty.
    pub(crate) fn parameters(&self, prototype: Type) -> impl Iterator<Item = (&[u8], u32)> {
        let count = if prototype.kind == Kind::FuncProto { prototype.vlen } else { 0 };
        (0..count).map_while(move |index| {
            let at = index.checked_mul(8)?;
            let name = self.element_u32(prototype, at)?;
            Some((self.name_at(name), self.element_u32(prototype, at + 4)?))
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

    fn name_at(&self, name: u32) -> &[u8] {
        let rest = self.strings_from(name);
        let rest = rest.get(..MAX_NAME).unwrap_or(rest);
        rest.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    fn name_is(&self, name: u32, wanted: &[u8]) -> bool {
        self.strings_from(name).strip_prefix(wanted).is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|word| u32::from_le_bytes(*word))
}

fn type_at(bytes: &[u8], at: usize) -> Option<Type> {
    let head = bytes.get(at..)?.first_chunk::<TYPE_LEN>()?;
    let info = u32_at(head, 4)?;
    Some(Type {
        at,
        name: u32_at(head, 0)?,
        // The bits that old kernels leave zero are read as well: newer ones give the count 24 bits and the
        // kind 7.
        kind: Kind::from_number((info >> 24) & 0x7f)?,
        vlen: info & 0x00ff_ffff,
        flag: info >> 31 == 1,
        size_or_type: u32_at(head, 8)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf_blob::Blob;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn bytes_that_are_not_btf_are_refused_with_the_place() {
        let whole = {
            let mut blob = Blob::new();
            let int = blob.int("int", 4);
            blob.structure("s", 4, &[("a", int, 0)]);
            blob.bytes()
        };
        let with = |at: usize, byte: u8| {
            let mut bytes = whole.clone();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes
        };
        let mut big_endian = whole.clone();
        if let Some(magic) = big_endian.get_mut(..2) {
            magic.reverse();
        }
        let cases: &[(&str, Vec<u8>, &str)] = &[
            ("empty", Vec::new(), "no BTF magic"),
            ("an ELF file", b"\x7fELF\x02\x01\x01".to_vec(), "no BTF magic"),
            ("big-endian", big_endian, "big-endian"),
            ("version 2", with(2, 2), "unknown version"),
            ("magic alone", vec![0x9f, 0xeb, 1], "short header"),
            ("header of 8 bytes", with(4, 8), "header length"),
            ("type section too long", with(15, 0x7f), "type section"),
            ("string section too long", with(23, 0x7f), "string section"),
            ("kind 31", with(24 + 7, 31), "unknown kind"),
            ("kind 0", with(24 + 7, 0), "unknown kind"),
            ("65,280 members", with(24 + 16 + 5, 0xff), "beyond the end of its section"),
        ];
        for (name, bytes, expected) in cases {
            let error = KernelBtf::from_bytes(bytes.clone()).map(drop).map_err(|error| error.to_string());
            assert!(error.as_ref().is_err_and(|text| text.contains(expected)), "{name}: {error:?}");
        }
        assert!(KernelBtf::from_bytes(whole).is_ok());
    }

    #[test]
    fn every_kind_is_stepped_over() -> TestResult {
        let mut blob = Blob::new();
        let int = blob.int("int", 4);
        for kind in [2, 7, 8, 9, 10, 11, 12, 16, 18] {
            blob.raw("x", kind, false, 0, int, &[]);
        }
        blob.raw("v", 14, false, 0, int, &[1]);
        blob.raw(".data", 15, false, 2, 8, &[1, 0, 4, 1, 4, 4]);
        blob.raw("tag", 17, false, 0, int, &[u32::MAX]);
        blob.array(int, 3);
        blob.prototype(&[("a", int)]);
        blob.enumeration("e", false, &[("A", 0)]);
        blob.enumeration64("e64", &[("B", 0)]);
        blob.union("u", 4, &[("a", int, 0)]);
        blob.structure("last", 4, &[("a", int, 0)]);
        let btf = KernelBtf::from_bytes(blob.bytes())?;
        assert_eq!(btf.named("last").map(|ty| ty.kind).collect::<Vec<_>>(), [Kind::Struct]);
        Ok(())
    }

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
