//! The array of syscall blocks, mapped into memory (BPF_F_MMAPABLE, 5.5): read without a system call.

#![expect(unsafe_code, reason = "memory shared with programs that write it at any time")]

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use aya::maps::{Array, IterableMap, MapData};
use probe_common::syscalls::Block;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::Plain;

const WORDS: usize = size_of::<Block>() / size_of::<u64>();
/// Words of [`Block::key`] and [`Block::calls`].
const KEY: usize = std::mem::offset_of!(Block, key) / size_of::<u64>();
const CALLS: usize = std::mem::offset_of!(Block, calls) / size_of::<u64>();

/// All blocks. The programs write blocks that have a key; only free ones, and those of processes that are gone, are ours.
pub struct Blocks {
    first: NonNull<Block>,
    len: u32,
    /// Keeps the map alive.
    _map: Array<MapData, Plain<Block>>,
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks").finish_non_exhaustive()
    }
}

// SAFETY: a mapping, not bound to a thread; every access goes through volatile reads and writes.
unsafe impl Send for Blocks {}

impl Blocks {
    pub(super) fn map(map: Array<MapData, Plain<Block>>) -> io::Result<Self> {
        let len = map.len();
        let bytes = len as usize * size_of::<Block>();
        // SAFETY: a new mapping at an address that the kernel chooses.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map.map().fd().as_fd(),
                0,
            )?
        };
        let first = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { first, len, _map: map })
    }

    /// How many there are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Address of a word of a block.
    fn word(&self, index: u32, word: usize) -> Option<NonNull<u64>> {
        if index >= self.len || word >= WORDS {
            return None;
        }
        // SAFETY: inside the mapping, by the check.
        Some(unsafe { self.first.cast::<u64>().add(index as usize * WORDS + word) })
    }

    /// A word of a block, 0 outside.
    fn load(&self, index: u32, word: usize) -> u64 {
        // SAFETY: inside the mapping and aligned; the programs write whole words.
        self.word(index, word).map_or(0, |word| unsafe { word.read_volatile() })
    }

    /// The key of a block, 0 when it is free, and its number of calls: enough to tell whether it changed.
    #[must_use]
    pub fn head(&self, index: u32) -> (u64, u64) {
        (self.load(index, KEY), self.load(index, CALLS))
    }

    /// A copy of a block. Each word is whole; words of a block in use may be one call apart.
    #[must_use]
    pub fn read(&self, index: u32) -> Block {
        let mut copy = [0u64; WORDS];
        for (word, slot) in copy.iter_mut().enumerate() {
            *slot = self.load(index, word);
        }
        bytemuck::cast(copy)
    }

    /// Zeroes a block that no program writes any more, its key last.
    pub fn clear(&mut self, index: u32) {
        for word in (0..WORDS).rev() {
            if let Some(word) = self.word(index, word) {
                // SAFETY: inside the mapping and aligned; only we write it now.
                unsafe { word.write_volatile(0) };
            }
        }
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        let bytes = self.len as usize * size_of::<Block>();
        // SAFETY: our own mapping, which nobody refers to any more. An error would leave it mapped, which is harmless.
        let _unmapped = unsafe { munmap(self.first.as_ptr().cast(), bytes) };
    }
}
