//! BTF as values: read whole, written anew. The format is that of Documentation/bpf/btf.rst.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

const MAGIC_AND_VERSION: u32 = 0x0001_eb9f;
const HEADER_LEN: u32 = 24;

/// Id of a type; 0 is void.
pub(super) type Id = u32;

/// One type. Ids are those of the [`Btf`] it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Int {
        name: String,
        size: u32,
        encoding: u32,
    },
    Pointer {
        to: Id,
    },
    Array {
        element: Id,
        index: Id,
        count: u32,
    },
    /// Struct or union.
    Record {
        union: bool,
        name: String,
        size: u32,
        /// The places of members hold the width of bit-fields.
        widths: bool,
        members: Vec<Member>,
    },
    Enum {
        name: String,
        size: u32,
        signed: bool,
        variants: Vec<(String, u32)>,
    },
    Enum64 {
        name: String,
        size: u32,
        signed: bool,
        variants: Vec<(String, u64)>,
    },
    Forward {
        name: String,
        union: bool,
    },
    /// Typedef, const, volatile, restrict or type tag: `kind` as in the file.
    Modifier {
        kind: u32,
        name: String,
        to: Id,
    },
    Function {
        name: String,
        linkage: u32,
        prototype: Id,
    },
    Prototype {
        result: Id,
        parameters: Vec<(String, Id)>,
    },
    Float {
        name: String,
        size: u32,
    },
    /// Variables, sections and tags of declarations, which nothing here refers to.
    Other,
}

/// A member of a struct or union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) ty: Id,
    /// First bit, and the width above it where the record says so.
    pub(super) place: u32,
}

const TYPEDEF: u32 = 8;

impl Type {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Int { name, .. }
            | Self::Record { name, .. }
            | Self::Enum { name, .. }
            | Self::Enum64 { name, .. }
            | Self::Forward { name, .. }
            | Self::Modifier { name, .. }
            | Self::Function { name, .. }
            | Self::Float { name, .. } => name,
            Self::Pointer { .. } | Self::Array { .. } | Self::Prototype { .. } | Self::Other => "",
        }
    }

    pub(super) fn is_typedef(&self) -> bool {
        matches!(self, Self::Modifier { kind: TYPEDEF, .. })
    }
}

/// All types of a file.
#[derive(Debug, Default)]
pub(super) struct Btf {
    /// Entry i is type i + 1.
    types: Vec<Type>,
}

impl Btf {
    pub(super) fn len(&self) -> usize {
        self.types.len()
    }

    pub(super) fn get(&self, id: Id) -> Option<&Type> {
        self.types.get((id as usize).checked_sub(1)?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Id, &Type)> {
        (1..).zip(&self.types)
    }

    pub(super) fn push(&mut self, ty: Type) {
        self.types.push(ty);
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut header = Words { bytes, at: 0 };
        ensure!(header.next()? == MAGIC_AND_VERSION, "no little-endian BTF of version 1");
        let start = header.next()?;
        let mut section = || -> Result<&[u8]> {
            let (at, len) = (start as usize + header.next()? as usize, header.next()? as usize);
            bytes.get(at..at + len).context("a section lies beyond the end of the file")
        };
        let (types, strings) = (section()?, section()?);
        let mut words = Words { bytes: types, at: 0 };
        let mut btf = Self::default();
        while words.at < types.len() {
            btf.push(read(&mut words, strings).with_context(|| format!("type {}", btf.len() + 1))?);
        }
        Ok(btf)
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut out = Writer { types: Vec::new(), strings: Strings::default() };
        out.strings.at("");
        for ty in &self.types {
            out.write(ty)?;
        }
        let (types, strings) = (out.types.len(), out.strings.bytes.len());
        let (types, strings) = (u32::try_from(types)?, u32::try_from(strings)?);
        let header = [MAGIC_AND_VERSION, HEADER_LEN, 0, types, types, strings];
        let mut bytes: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
        bytes.extend(out.types);
        bytes.extend(out.strings.bytes);
        Ok(bytes)
    }
}

struct Words<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Words<'_> {
    fn next(&mut self) -> Result<u32> {
        let rest = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<4>());
        self.at += 4;
        Ok(u32::from_le_bytes(*rest.context("cut short")?))
    }
}

fn read(words: &mut Words<'_>, strings: &[u8]) -> Result<Type> {
    let text = |at: u32| -> Result<String> {
        let rest = strings.get(at as usize..).context("a name beyond the end of the strings")?;
        let name = rest.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8(name.to_vec())?)
    };
    let (name, info, third) = (text(words.next()?)?, words.next()?, words.next()?);
    let (flag, kind, count) = (info >> 31 == 1, (info >> 24) & 0x7f, info & 0x00ff_ffff);
    Ok(match kind {
        1 => Type::Int { name, size: third, encoding: words.next()? },
        2 => Type::Pointer { to: third },
        3 => Type::Array { element: words.next()?, index: words.next()?, count: words.next()? },
        4 | 5 => {
            let member =
                |_| Ok(Member { name: text(words.next()?)?, ty: words.next()?, place: words.next()? });
            let members = (0..count).map(member).collect::<Result<_>>()?;
            Type::Record { union: kind == 5, name, size: third, widths: flag, members }
        }
        6 => {
            let variants = (0..count).map(|_| Ok((text(words.next()?)?, words.next()?)));
            Type::Enum { name, size: third, signed: flag, variants: variants.collect::<Result<_>>()? }
        }
        7 => Type::Forward { name, union: flag },
        8..=11 | 18 => Type::Modifier { kind, name, to: third },
        12 => Type::Function { name, linkage: count, prototype: third },
        13 => {
            let parameters = (0..count).map(|_| Ok((text(words.next()?)?, words.next()?)));
            Type::Prototype { result: third, parameters: parameters.collect::<Result<_>>()? }
        }
        16 => Type::Float { name, size: third },
        14 | 17 => {
            words.next()?;
            Type::Other
        }
        15 => {
            for _ in 0..count * 3 {
                words.next()?;
            }
            Type::Other
        }
        19 => {
            let variants = (0..count).map(|_| {
                Ok((text(words.next()?)?, u64::from(words.next()?) | u64::from(words.next()?) << 32))
            });
            Type::Enum64 { name, size: third, signed: flag, variants: variants.collect::<Result<_>>()? }
        }
        kind => bail!("kind {kind} is not known here"),
    })
}

struct Writer {
    types: Vec<u8>,
    strings: Strings,
}

impl Writer {
    fn head(&mut self, name: &str, flag: bool, kind: u32, count: usize, third: u32) -> Result<()> {
        let count = u32::try_from(count).ok().filter(|count| *count < 1 << 16);
        let count = count.context("more members than BTF can count")?;
        let name = self.strings.at(name);
        self.words([name, u32::from(flag) << 31 | kind << 24 | count, third]);
        Ok(())
    }

    fn words<const N: usize>(&mut self, words: [u32; N]) {
        self.types.extend(words.into_iter().flat_map(u32::to_le_bytes));
    }

    fn write(&mut self, ty: &Type) -> Result<()> {
        match ty {
            Type::Int { name, size, encoding } => {
                self.head(name, false, 1, 0, *size)?;
                self.words([*encoding]);
            }
            Type::Pointer { to } => self.head("", false, 2, 0, *to)?,
            Type::Array { element, index, count } => {
                self.head("", false, 3, 0, 0)?;
                self.words([*element, *index, *count]);
            }
            Type::Record { union, name, size, widths, members } => {
                self.head(name, *widths, if *union { 5 } else { 4 }, members.len(), *size)?;
                for Member { name, ty, place } in members {
                    let name = self.strings.at(name);
                    self.words([name, *ty, *place]);
                }
            }
            Type::Enum { name, size, signed, variants } => {
                self.head(name, *signed, 6, variants.len(), *size)?;
                for (name, value) in variants {
                    let name = self.strings.at(name);
                    self.words([name, *value]);
                }
            }
            Type::Enum64 { name, size, signed, variants } => {
                self.head(name, *signed, 19, variants.len(), *size)?;
                for (name, value) in variants {
                    let name = self.strings.at(name);
                    // The low half, then the high one.
                    self.words([name, *value as u32, (*value >> 32) as u32]);
                }
            }
            Type::Forward { name, union } => self.head(name, *union, 7, 0, 0)?,
            Type::Modifier { kind, name, to } => self.head(name, false, *kind, 0, *to)?,
            Type::Function { name, linkage, prototype } => {
                self.head(name, false, 12, *linkage as usize, *prototype)?;
            }
            Type::Prototype { result, parameters } => {
                self.head("", false, 13, parameters.len(), *result)?;
                for (name, ty) in parameters {
                    let name = self.strings.at(name);
                    self.words([name, *ty]);
                }
            }
            Type::Float { name, size } => self.head(name, false, 16, 0, *size)?,
            Type::Other => bail!("a variable, a section or a tag cannot be written"),
        }
        Ok(())
    }
}

/// The string section; each string is in it once, in the order of first use.
#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
    places: BTreeMap<String, u32>,
}

impl Strings {
    fn at(&mut self, text: &str) -> u32 {
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        // Fixtures are a few KiB; `Btf::to_bytes` checks the sum.
        let place = self.bytes.len() as u32;
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.places.insert(text.to_owned(), place);
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Btf {
        let name = |text: &str| text.to_owned();
        Btf {
            types: vec![
                Type::Int { name: name("int"), size: 4, encoding: 0x0100_0020 },
                Type::Pointer { to: 4 },
                Type::Array { element: 1, index: 1, count: 3 },
                Type::Record {
                    union: false,
                    name: name("s"),
                    size: 8,
                    widths: true,
                    members: vec![
                        Member { name: name("a"), ty: 1, place: 5 << 24 | 3 },
                        Member { name: name(""), ty: 5, place: 32 },
                    ],
                },
                Type::Record { union: true, name: name(""), size: 4, widths: false, members: vec![] },
                Type::Enum { name: name("e"), size: 4, signed: true, variants: vec![(name("A"), u32::MAX)] },
                Type::Enum64 {
                    name: name("w"),
                    size: 8,
                    signed: false,
                    variants: vec![(name("B"), 1 << 40)],
                },
                Type::Forward { name: name("f"), union: true },
                Type::Modifier { kind: TYPEDEF, name: name("t"), to: 1 },
                Type::Modifier { kind: 10, name: name(""), to: 9 },
                Type::Prototype { result: 0, parameters: vec![(name("a"), 1), (name(""), 2)] },
                Type::Function { name: name("a"), linkage: 1, prototype: 11 },
                Type::Float { name: name("double"), size: 8 },
            ],
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let btf = one_of_each();
        let read = Btf::parse(&btf.to_bytes().unwrap()).unwrap();
        assert_eq!(read.types, btf.types);
    }

    #[test]
    fn cut_files_are_refused_at_every_length() {
        let bytes = one_of_each().to_bytes().unwrap();
        for len in 0..bytes.len() {
            assert!(Btf::parse(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
        }
    }
}
