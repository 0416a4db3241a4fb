//! The format itself: header, kinds, and the head of a type.

/// magic, version, flags, hdr_len and the two sections' offset and length.
pub(super) const HEADER_LEN: usize = 24;
/// `struct btf_type`: name_off, info, size or type.
pub(super) const TYPE_LEN: usize = 12;
pub(super) const MAGIC: u16 = 0xeb9f;

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
    pub(super) fn trailer(self) -> (usize, usize) {
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
    pub(super) fn is_modifier(self) -> bool {
        matches!(self, Self::Typedef | Self::Volatile | Self::Const | Self::Restrict | Self::TypeTag)
    }
}

/// The head of one type; what follows it is read when asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Type {
    /// Position of `struct btf_type` in the file.
    pub(super) at: usize,
    pub(super) name: u32,
    pub(crate) kind: Kind,
    pub(super) vlen: u32,
    /// For structs: members carry bit-field widths. For enums: values are signed.
    pub(super) flag: bool,
    /// Bytes of the type, or the id of the type it refers to: depends on the kind.
    pub(super) size_or_type: u32,
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|word| u32::from_le_bytes(*word))
}

pub(super) fn type_at(bytes: &[u8], at: usize) -> Option<Type> {
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
