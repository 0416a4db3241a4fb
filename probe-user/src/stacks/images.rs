//! Tables of functions of files, read once for all processes and kept within a budget.

use std::fs::{File, Metadata};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use lru::LruCache;

use super::elf::Elf;
use super::perf_map;
use super::process::{Process, debug_file, read_whole};
use super::symbols::Symbols;

/// Files remembered, those that could not be understood included.
const MAX_FILES: usize = 2_048;

/// A file as it was: one that changes becomes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Key {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
        }
    }
}

/// What a file has for us.
#[derive(Debug)]
pub(super) struct Image {
    /// Never given twice.
    number: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Elf {
        elf: Elf,
        /// Symbols that were stripped off and lie elsewhere.
        debug: Option<Symbols>,
    },
    /// Written by a just-in-time compiler: addresses are the process's.
    PerfMap(Symbols),
    /// What is wrong with it.
    Bad(Arc<str>),
}

/// A function, named by its image's number and its own; what it is called in the file.
pub(super) type Function<'a> = ((u64, u64), &'a [u8]);

impl Image {
    /// The function at an offset in the file, or else the file's own address of it; and what is wrong with the file, if anything is.
    pub(super) fn find(&self, offset: u64) -> Result<Function<'_>, (Option<u64>, Option<&Arc<str>>)> {
        let (elf, debug) = match &self.content {
            Content::Elf { elf, debug } => (elf, debug),
            Content::PerfMap(_) => return Err((None, None)),
            Content::Bad(why) => return Err((None, Some(why))),
        };
        let address = elf.address_of(offset).ok_or((None, None))?;
        let tables = [debug.as_ref(), Some(&elf.symbols)];
        let found = tables.into_iter().enumerate().find_map(|(table, symbols)| {
            let (index, name) = symbols?.find(address)?;
            Some(((self.number, (index as u64) << 1 | table as u64), name))
        });
        found.ok_or((Some(address), None))
    }

    fn find_compiled(&self, address: u64) -> Option<Function<'_>> {
        let Content::PerfMap(symbols) = &self.content else { return None };
        let (index, name) = symbols.find(address)?;
        Some(((self.number, index as u64), name))
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
            + match &self.content {
                Content::Elf { elf, debug } => elf.bytes() + debug.as_ref().map_or(0, Symbols::bytes),
                Content::PerfMap(symbols) => symbols.bytes(),
                Content::Bad(why) => why.len(),
            }
    }
}

/// Those that were used last.
pub(super) struct Images {
    images: LruCache<Key, Image>,
    bytes: usize,
    limit: usize,
    numbers: u64,
    vdso: RandomState,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("files", &self.images.len()).field("bytes", &self.bytes).finish()
    }
}

impl Images {
    pub(super) fn new(limit: usize) -> Self {
        Self { images: LruCache::unbounded(), bytes: 0, limit, numbers: 0, vdso: RandomState::new() }
    }

    pub(super) fn get(&mut self, key: &Key) -> Option<&Image> {
        self.images.get(key)
    }

    /// The function at an address of the process's, in what its compiler wrote.
    pub(super) fn compiled(&mut self, key: Option<&Key>, address: u64) -> Option<Function<'_>> {
        self.images.get(key?)?.find_compiled(address)
    }

    /// Memory that tables take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A file that a process has mapped; it is read if it is not known.
    pub(super) fn mapped(&mut self, process: &Process, file: File) -> std::io::Result<Key> {
        let key = Key::of(&file.metadata()?);
        self.once(key, || match Elf::read(&file) {
            Ok(elf) => {
                let id = elf.build_id.as_deref().filter(|_| elf.stripped);
                let debug = id.and_then(|id| {
                    let debug = Elf::read(&debug_file(process, id)?).ok()?;
                    (debug.build_id.as_deref() == Some(id)).then_some(debug.symbols)
                });
                Content::Elf { elf, debug }
            }
            Err(error) => Content::Bad(error.to_string().into()),
        });
        Ok(key)
    }

    /// The vDSO, which is the same for all processes of a kind.
    pub(super) fn vdso(&mut self, bytes: &[u8]) -> Key {
        let key = Key {
            device: u64::MAX,
            inode: self.vdso.hash_one(bytes),
            size: bytes.len() as u64,
            modified: (0, 0),
        };
        self.once(key, || match Elf::read(bytes) {
            Ok(elf) => Content::Elf { elf, debug: None },
            Err(error) => Content::Bad(error.to_string().into()),
        });
        key
    }

    /// What a just-in-time compiler wrote; `before` is what it had written when it was last looked at.
    pub(super) fn perf_map(&mut self, file: File, before: Option<Key>) -> std::io::Result<Key> {
        let key = Key::of(&file.metadata()?);
        if let Some(before) = before.filter(|before| *before != key) {
            self.forget(&before);
        }
        self.once(key, || match read_whole(file, perf_map::MAX_FILE) {
            Ok(text) => Content::PerfMap(perf_map::parse(&text)),
            Err(error) => Content::Bad(error.to_string().into()),
        });
        Ok(key)
    }

    fn once(&mut self, key: Key, read: impl FnOnce() -> Content) {
        if self.images.get(&key).is_some() {
            return;
        }
        let image = Image { number: self.numbers, content: read() };
        self.numbers += 1;
        self.bytes += image.bytes();
        self.images.put(key, image);
        while (self.bytes > self.limit && self.images.len() > 1) || self.images.len() > MAX_FILES {
            let Some((_, oldest)) = self.images.pop_lru() else { break };
            self.bytes -= oldest.bytes();
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(image) = self.images.pop(key) {
            self.bytes -= image.bytes();
        }
    }
}
