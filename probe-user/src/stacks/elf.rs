//! Functions of an ELF file: symbol tables, compressed ones (.gnu_debugdata), the build id that names a file of debug symbols.
//!
//! The file is a stranger's, and may change while it is read: so it is read piece by piece into memory of ours and never mapped
//! (whoever cuts off a mapped file kills who reads it), and every count and length in it is held against a limit before anything is
//! done for it. What it says of itself costs time and memory in proportion to nothing but those limits.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::symbols::{Builder, Function, MAX_NAME, Symbols, TooMany};

/// Program and section headers looked at; the largest programs have some hundred.
const MAX_HEADERS: u16 = 4_096;
/// Symbols looked at in one table, and bytes that their names may lie in.
const MAX_SYMBOLS: u64 = 2_000_000;
const MAX_STRINGS: u64 = 256 << 20;
/// Compressed symbols: bytes in the file, bytes once unpacked, and KiB that unpacking may take besides.
const MAX_PACKED: u64 = 16 << 20;
const MAX_UNPACKED: u64 = 64 << 20;
const UNPACKING_KIB: u32 = 32 << 10;
/// Notes looked at, and the longest build id; SHA-1's has 20 bytes.
const MAX_NOTES: u64 = 4_096;
const MAX_BUILD_ID: usize = 64;
/// Bytes read at once.
const PIECE: usize = 64 << 10;

const SHT_SYMTAB: u32 = 2;
const SHT_NOTE: u32 = 7;
const SHT_NOBITS: u32 = 8;
const SHT_DYNSYM: u32 = 11;
const SHF_EXECINSTR: u64 = 4;
const SHF_COMPRESSED: u64 = 0x800;
const PT_LOAD: u32 = 1;
const PF_X: u32 = 1;
const NT_GNU_BUILD_ID: u32 = 3;
const STT_NOTYPE: u8 = 0;
const STT_FUNC: u8 = 2;
const STT_GNU_IFUNC: u8 = 10;
const STB_LOCAL: u8 = 0;

/// Why a file has no functions for us.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// It begins with something else.
    #[error("no ELF file")]
    NotElf,
    /// For machines of the other byte order.
    #[error("an ELF file of another byte order")]
    Foreign,
    /// It contradicts itself, or is cut off.
    #[error("a broken ELF file: {0}")]
    Broken(&'static str),
    /// It goes beyond a limit.
    #[error("{0}")]
    TooMany(#[from] TooMany),
    /// It cannot be read.
    #[error("{0}")]
    Read(#[source] io::Error),
}

impl From<io::Error> for ElfError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Broken("it ends too early"),
            _ => Self::Read(error),
        }
    }
}

/// Bytes at a place.
pub trait ReadAt {
    /// All of `into`, from `offset` on.
    ///
    /// # Errors
    ///
    /// The system's, or there is less.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let found =
            usize::try_from(offset).ok().and_then(|start| self.get(start..start.checked_add(into.len())?));
        into.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Which bytes of the file are where in its own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    offset: u64,
    length: u64,
    address: u64,
    executable: bool,
}

/// What is kept of an ELF file.
#[derive(Debug, Default)]
pub struct Elf {
    segments: Box<[Segment]>,
    /// Its functions, by its own addresses.
    pub symbols: Symbols,
    /// By which its debug symbols are found, if they are in another file.
    pub build_id: Option<Box<[u8]>>,
    /// Its full table of symbols has been stripped off: what there is are those that it lends to others.
    pub stripped: bool,
}

impl Elf {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// It is none, or breaks off where there should be more, or has too much.
    pub fn read(file: &(impl ReadAt + ?Sized)) -> Result<Self, ElfError> {
        let header = Header::read(file)?;
        let segments = header.segments(file)?;
        let sections = header.sections(file)?;
        let mut found = Found::default();
        for kind in [SHT_SYMTAB, SHT_DYNSYM] {
            found.table(file, &header, &sections, kind)?;
        }
        let build_id = sections
            .iter()
            .filter(|section| section.kind == SHT_NOTE && section.size <= MAX_NOTES)
            .find_map(|section| build_id(&section.bytes(file).ok()?));
        if !found.full
            && let Some(packed) = header.named(file, &sections, b".gnu_debugdata")
            && packed.size <= MAX_PACKED
        {
            // What cannot be unpacked is as good as not there: the other symbols are.
            if let Ok(bytes) = unpack(&packed.bytes(file)?) {
                found.packed(&bytes)?;
            }
        }
        let Found { builder, full } = found;
        let code = sections.iter().filter(|section| section.flags & SHF_EXECINSTR != 0);
        let ends = code.map(|section| section.address.saturating_add(section.size)).collect();
        Ok(Self { segments, symbols: builder.build(ends), build_id, stripped: !full })
    }

    /// The address by which the file itself knows what is at this offset in it.
    #[must_use]
    pub fn address_of(&self, offset: u64) -> Option<u64> {
        let within = |segment: &&Segment| offset.wrapping_sub(segment.offset) < segment.length;
        // Linkers let segments share a page of the file: code is what runs.
        let mut segments = self.segments.iter().filter(within);
        let first = segments.clone().find(|segment| segment.executable).or_else(|| segments.next())?;
        Some(first.address.wrapping_add(offset.wrapping_sub(first.offset)))
    }

    /// Memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let Self { segments, symbols, build_id, stripped: _ } = self;
        size_of::<Self>()
            + size_of_val(&**segments)
            + symbols.bytes()
            + build_id.as_ref().map_or(0, |id| id.len())
    }
}

/// Functions in the making.
#[derive(Default)]
struct Found {
    builder: Builder,
    /// A full table of symbols was among them.
    full: bool,
}

impl Found {
    fn packed(&mut self, bytes: &[u8]) -> Result<(), ElfError> {
        let header = Header::read(bytes)?;
        let sections = header.sections(bytes)?;
        self.table(bytes, &header, &sections, SHT_SYMTAB)
    }

    /// Functions of the table of symbols of that kind, of which a file has one.
    fn table(
        &mut self,
        file: &(impl ReadAt + ?Sized),
        header: &Header,
        sections: &[Section],
        kind: u32,
    ) -> Result<(), ElfError> {
        let Some(table) = sections.iter().find(|section| section.kind == kind) else {
            return Ok(());
        };
        let entry = header.symbol_bytes();
        let count = table.size / entry as u64;
        let strings =
            sections.get(table.link as usize).ok_or(ElfError::Broken("no names for its symbols"))?;
        let missing = |section: &Section| section.kind == SHT_NOBITS || section.flags & SHF_COMPRESSED != 0;
        // Files of debug symbols leave out what the program's file has.
        if missing(table) || missing(strings) || count == 0 {
            return Ok(());
        }
        if count > MAX_SYMBOLS || strings.size > MAX_STRINGS {
            return Err(TooMany.into());
        }
        self.full |= kind == SHT_SYMTAB;
        let mut functions = Vec::new();
        let mut piece = vec![0; PIECE / entry * entry];
        let mut left = usize::try_from(count).map_err(|_| TooMany)? * entry;
        let mut at = table.offset;
        while left > 0 {
            let length = left.min(piece.len());
            let piece = piece.get_mut(..length).unwrap_or_default();
            file.read_at(at, piece)?;
            functions.extend(piece.chunks_exact(entry).filter_map(|symbol| {
                let Symbol { name, value, size, info, section } = header.symbol(symbol)?;
                let executable = || {
                    let section = sections.get(usize::from(section));
                    section.is_some_and(|section| section.flags & SHF_EXECINSTR != 0)
                };
                let function = match info & 0xf {
                    STT_FUNC | STT_GNU_IFUNC => section != 0,
                    // Written in assembler, without a word of what it is.
                    STT_NOTYPE => executable(),
                    _ => false,
                };
                // Between the few symbols that a library lends lies much that is not theirs.
                let known = size != 0 || kind == SHT_SYMTAB;
                (function && known).then_some(Function {
                    start: value,
                    size,
                    rank: u8::from(info >> 4 == STB_LOCAL),
                    name,
                })
            }));
            left -= length;
            at = at.saturating_add(length as u64);
        }
        self.names(file, strings, functions)
    }

    /// Names are read in their order in the file, so that no more of it is in memory than a piece.
    fn names(
        &mut self,
        file: &(impl ReadAt + ?Sized),
        strings: &Section,
        mut functions: Vec<Function>,
    ) -> Result<(), ElfError> {
        functions.sort_unstable_by_key(|function| (function.name, function.start));
        let mut piece = vec![0; PIECE];
        let mut held = 0..0;
        for function in functions {
            let at = u64::from(function.name);
            if at >= strings.size {
                return Err(ElfError::Broken("names of symbols lie elsewhere"));
            }
            let wanted = at..(at + MAX_NAME as u64).min(strings.size);
            if !(held.start <= wanted.start && wanted.end <= held.end) {
                held = at..(at + PIECE as u64).min(strings.size);
                let length = usize::try_from(held.end - held.start).unwrap_or_default();
                let into = piece.get_mut(..length).unwrap_or_default();
                file.read_at(strings.offset.saturating_add(at), into)?;
            }
            let place = |at: u64| usize::try_from(at.saturating_sub(held.start)).unwrap_or(usize::MAX);
            let name = piece.get(place(wanted.start)..place(wanted.end)).unwrap_or_default();
            // `$x` and alike are marks of the assembler's on arm.
            if !name.starts_with(b"$") {
                self.builder.push(function, name)?;
            }
        }
        Ok(())
    }
}

fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    lzma_rust2::XzReader::new_mem_limit(packed, false, UNPACKING_KIB)
        .take(MAX_UNPACKED)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The build id among notes: each has the lengths of name and content, a kind, the name, the content, the last two rounded up to four.
fn build_id(notes: &[u8]) -> Option<Box<[u8]>> {
    let mut rest = notes;
    loop {
        let name_length = word(rest, 0)? as usize;
        let length = word(rest, 4)? as usize;
        let kind = word(rest, 8)?;
        let name = rest.get(12..)?.get(..name_length)?;
        let content = rest.get(12..)?.get(name_length.checked_next_multiple_of(4)?..)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return content.get(..length).filter(|id| (2..=MAX_BUILD_ID).contains(&id.len())).map(Into::into);
        }
        rest = content.get(length.checked_next_multiple_of(4)?..)?;
    }
}

struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    address: u64,
    offset: u64,
    size: u64,
    link: u32,
}

impl Section {
    /// All of it. Callers have held its size against a limit.
    fn bytes(&self, file: &(impl ReadAt + ?Sized)) -> io::Result<Vec<u8>> {
        let length = if self.kind == SHT_NOBITS { 0 } else { self.size };
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        file.read_at(self.offset, &mut bytes)?;
        Ok(bytes)
    }
}

struct Symbol {
    name: u32,
    value: u64,
    size: u64,
    info: u8,
    section: u16,
}

/// The beginning of the file.
struct Header {
    wide: bool,
    segments: (u64, u16),
    sections: (u64, u16),
    names: u16,
}

impl Header {
    fn read(file: &(impl ReadAt + ?Sized)) -> Result<Self, ElfError> {
        let mut start = [0; 52];
        file.read_at(0, &mut start).map_err(|error| match error.into() {
            ElfError::Broken(_) => ElfError::NotElf,
            error => error,
        })?;
        let [0x7f, b'E', b'L', b'F', class, order, ..] = start else {
            return Err(ElfError::NotElf);
        };
        if order != if cfg!(target_endian = "little") { 1 } else { 2 } {
            return Err(ElfError::Foreign);
        }
        let mut bytes = [0; 64];
        let wide = match class {
            1 => false,
            2 => true,
            _ => return Err(ElfError::Broken("neither 32 nor 64 bits")),
        };
        let length = if wide { 64 } else { 52 };
        file.read_at(0, bytes.get_mut(..length).unwrap_or_default())?;
        let read = || {
            let (segments, sections, sizes) = if wide {
                (long(&bytes, 32)?, long(&bytes, 40)?, 54)
            } else {
                (word(&bytes, 28)?.into(), word(&bytes, 32)?.into(), 42)
            };
            let each = [half(&bytes, sizes)?, half(&bytes, sizes + 4)?];
            let header = Self {
                wide,
                segments: (segments, half(&bytes, sizes + 2)?),
                sections: (sections, half(&bytes, sizes + 6)?),
                names: half(&bytes, sizes + 8)?,
            };
            Some((header, each))
        };
        let (header, [segment, section]) = read().ok_or(ElfError::Broken("its header"))?;
        let (segments, sections) = header.header_bytes();
        let fits = |count: u16, size: u16, want: usize| count == 0 || usize::from(size) == want;
        if !fits(header.segments.1, segment, segments) || !fits(header.sections.1, section, sections) {
            return Err(ElfError::Broken("headers of another size"));
        }
        if header.segments.1 > MAX_HEADERS || header.sections.1 > MAX_HEADERS {
            return Err(TooMany.into());
        }
        Ok(header)
    }

    fn header_bytes(&self) -> (usize, usize) {
        if self.wide { (56, 64) } else { (32, 40) }
    }

    fn symbol_bytes(&self) -> usize {
        if self.wide { 24 } else { 16 }
    }

    fn table(file: &(impl ReadAt + ?Sized), (offset, count): (u64, u16), each: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::from(count) * each];
        file.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }

    fn segments(&self, file: &(impl ReadAt + ?Sized)) -> Result<Box<[Segment]>, ElfError> {
        let each = self.header_bytes().0;
        let bytes = Self::table(file, self.segments, each)?;
        let segments = bytes.chunks_exact(each).filter(|segment| word(segment, 0) == Some(PT_LOAD));
        let read = |segment: &[u8]| {
            let number = |at| self.number(segment, at);
            Some(if self.wide {
                Segment {
                    offset: number(8)?,
                    length: number(32)?,
                    address: number(16)?,
                    executable: word(segment, 4)? & PF_X != 0,
                }
            } else {
                Segment {
                    offset: number(4)?,
                    length: number(16)?,
                    address: number(8)?,
                    executable: word(segment, 24)? & PF_X != 0,
                }
            })
        };
        segments.map(read).collect::<Option<_>>().ok_or(ElfError::Broken("its segments"))
    }

    fn sections(&self, file: &(impl ReadAt + ?Sized)) -> Result<Vec<Section>, ElfError> {
        let each = self.header_bytes().1;
        let bytes = Self::table(file, self.sections, each)?;
        let read = |section: &[u8]| {
            let number = |at| self.number(section, at);
            let [flags, address, offset, size, link] =
                if self.wide { [8, 16, 24, 32, 40] } else { [8, 12, 16, 20, 24] };
            Some(Section {
                name: word(section, 0)?,
                kind: word(section, 4)?,
                flags: number(flags)?,
                address: number(address)?,
                offset: number(offset)?,
                size: number(size)?,
                link: word(section, link)?,
            })
        };
        bytes.chunks_exact(each).map(read).collect::<Option<_>>().ok_or(ElfError::Broken("its sections"))
    }

    fn named<'a>(
        &self,
        file: &(impl ReadAt + ?Sized),
        sections: &'a [Section],
        name: &[u8],
    ) -> Option<&'a Section> {
        let names = sections.get(usize::from(self.names))?;
        sections.iter().find(|section| {
            let mut found = [0; 32];
            let found = found.get_mut(..=name.len()).unwrap_or_default();
            let at = names.offset.saturating_add(section.name.into());
            file.read_at(at, found).is_ok() && found.split_last() == Some((&0, name))
        })
    }

    fn symbol(&self, symbol: &[u8]) -> Option<Symbol> {
        let number = |at| self.number(symbol, at);
        let name = word(symbol, 0)?;
        Some(if self.wide {
            Symbol {
                name,
                value: number(8)?,
                size: number(16)?,
                info: *symbol.get(4)?,
                section: half(symbol, 6)?,
            }
        } else {
            Symbol {
                name,
                value: number(4)?,
                size: number(8)?,
                info: *symbol.get(12)?,
                section: half(symbol, 14)?,
            }
        })
    }

    /// An address, an offset or a size.
    fn number(&self, bytes: &[u8], at: usize) -> Option<u64> {
        if self.wide { long(bytes, at) } else { word(bytes, at).map(Into::into) }
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_ne_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_ne_bytes)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_ne_bytes)
}

#[cfg(test)]
pub(super) mod tests;
