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

mod format;
mod lookup;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use self::format::{HEADER_LEN, MAGIC, TYPE_LEN, type_at, u32_at};
pub(crate) use self::format::{Kind, Type};
pub use self::lookup::Variant;

/// Larger files are refused; the kernels of distributions have 5 to 12 MB.
const MAX_BYTES: u64 = 64 << 20;

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
}
