//! Reading a whole hash map in few system calls.
//!
//! Walking a map key by key takes two calls an entry, and starts anew whenever the key just read has been deleted.
//! `BPF_MAP_LOOKUP_BATCH` (hash maps: 5.6, include/uapi/linux/bpf.h) copies buckets as they are; aya 0.14 has no call for it.

#![expect(unsafe_code, reason = "bpf(2) takes pointers")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::maps::{HashMap, IterableMap, MapData, PerCpuHashMap};
use bytemuck::Pod;

use super::Plain;

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd`.
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
/// Entries asked for at a time. One bucket must fit; it grows when one does not.
const CHUNK: usize = 512;

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls `each` with every entry of a hash map. Entries that come or go meanwhile may or may not be seen; none is
/// seen twice.
///
/// # Errors
///
/// What bpf(2) returns.
pub fn lookup_batch<K: Pod, V: Pod>(
    map: &HashMap<MapData, Plain<K>, Plain<V>>,
    mut each: impl FnMut(&K, &V),
) -> io::Result<()> {
    lookup::<K>(map.map_fd(), size_of::<V>().next_multiple_of(8), |key, value| {
        if let Some(value) = value.get(..size_of::<V>()) {
            each(key, &bytemuck::pod_read_unaligned(value));
        }
    })
}

/// How many entries a hash map has: a look at every one, for the kernel does not tell.
///
/// # Errors
///
/// What bpf(2) returns.
pub fn count_entries<K: Pod, V: Pod>(map: &HashMap<MapData, Plain<K>, Plain<V>>) -> io::Result<u64> {
    let mut count = 0;
    lookup_batch(map, |_: &K, _: &V| count += 1)?;
    Ok(count)
}

/// Calls `each` with every entry of a per-CPU hash map, values in order of possible CPUs.
///
/// # Errors
///
/// What bpf(2) returns.
pub fn lookup_batch_per_cpu<K: Pod, V: Pod>(
    map: &PerCpuHashMap<MapData, Plain<K>, Plain<V>>,
    mut each: impl FnMut(&K, &mut dyn Iterator<Item = V>),
) -> io::Result<()> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    let stride = size_of::<V>().next_multiple_of(8);
    lookup::<K>(map.map_fd(), stride * cpus, |key, values| {
        let mut values = values
            .chunks_exact(stride)
            .filter_map(|value| value.get(..size_of::<V>()))
            .map(bytemuck::pod_read_unaligned);
        each(key, &mut values);
    })
}

fn lookup<K: Pod>(fd: BorrowedFd<'_>, value_size: usize, mut each: impl FnMut(&K, &[u8])) -> io::Result<()> {
    let mut room = CHUNK;
    let mut keys = vec![0u8; room * size_of::<K>()];
    let mut values = vec![0u8; room * value_size];
    // An opaque position: for hash maps the kernel writes 4 bytes.
    let (mut position, mut next) = (0u64, 0u64);
    let mut first = true;
    loop {
        let mut attr = Attr {
            in_batch: if first { 0 } else { (&raw const position) as u64 },
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(room).unwrap_or(u32::MAX),
            map_fd: fd.as_raw_fd().cast_unsigned(),
            ..Attr::default()
        };
        // SAFETY: `attr` is the kernel's structure for this command; its pointers lead to live buffers that hold
        // `count` keys and values of the map's sizes (value sizes are rounded up to 8, as the kernel does).
        let failed =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attr, size_of::<Attr>()) }
                != 0;
        let error = io::Error::last_os_error();
        if failed && error.raw_os_error() == Some(libc::ENOSPC) {
            room *= 2;
            keys.resize(room * size_of::<K>(), 0);
            values.resize(room * value_size, 0);
            continue;
        }
        // ENOENT: the last batch.
        let last = failed && error.raw_os_error() == Some(libc::ENOENT);
        if failed && !last {
            return Err(error);
        }
        let entries = keys.chunks_exact(size_of::<K>()).zip(values.chunks_exact(value_size));
        for (key, value) in entries.take(attr.count as usize) {
            each(&bytemuck::pod_read_unaligned(key), value);
        }
        if last {
            return Ok(());
        }
        position = next;
        first = false;
    }
}

/// The descriptor behind aya's typed maps.
pub(super) trait MapFd {
    fn map_fd(&self) -> BorrowedFd<'_>;
}

impl<K: aya::Pod, V: aya::Pod> MapFd for HashMap<MapData, K, V> {
    fn map_fd(&self) -> BorrowedFd<'_> {
        self.map().fd().as_fd()
    }
}

impl<K: aya::Pod, V: aya::Pod> MapFd for PerCpuHashMap<MapData, K, V> {
    fn map_fd(&self) -> BorrowedFd<'_> {
        self.map().fd().as_fd()
    }
}
