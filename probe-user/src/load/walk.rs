//! Walks: programs that the kernel runs for each of many things, whenever somebody reads (BPF iterators: open files 5.8, entries
//! of a map 5.9). aya 0.14 loads and attaches them, except to a map.

#![expect(unsafe_code, reason = "bpf(2) takes pointers")]

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use aya::Btf;
use aya::maps::{HashMap, MapData};
use aya::programs::{Iter, Program};
use aya_obj::btf::{BtfType, Func, FuncLinkage, Int, IntEncoding};
use bytemuck::Pod;

use super::batch::MapFd as _;
use super::{Hook, LoadError, Loaded, Older, Plain};
use crate::kernel::fields::{MAP_ENTRIES, OPEN_FILES, Resolved, TASKS};

/// `BPF_LINK_CREATE` of `enum bpf_cmd`.
const BPF_LINK_CREATE: libc::c_int = 28;
/// `BPF_ITER_CREATE`.
const BPF_ITER_CREATE: libc::c_int = 33;
/// `BPF_TRACE_ITER` of `enum bpf_attach_type`.
const BPF_TRACE_ITER: u32 = 28;

/// Fields that the walk over open files reads.
const OPEN_FILES_NEED: [&str; 6] =
    ["file.f_inode", "file.private_data", "inode.i_sb", "super_block.s_magic", "socket.sk", "socket.type"];

/// A walk that can be made again and again: over the entries of a map, by a program that writes a record for some.
#[derive(Debug)]
pub struct Walk {
    link: OwnedFd,
    /// What was read and not yet handed on.
    buffer: Vec<u8>,
}

impl Loaded {
    /// Has the object's program look for what was there before, if it has one. To be called once the others are attached, so
    /// that nothing falls in between.
    ///
    /// # Errors
    ///
    /// When this kernel has no such iterator or field, or refuses the program. The signal runs all the same.
    pub fn look_for_older(&mut self, fields: &Resolved) -> Result<(), LoadError> {
        let (signal, Some(older)) = (self.spec.name, self.spec.older) else { return Ok(()) };
        let Older { program, over, without: _ } = older;
        let (function, id) = match over {
            Hook::OpenFiles => (OPEN_FILES, fields.open_files),
            Hook::Tasks => (TASKS, fields.tasks),
            Hook::RawTracepoint(_)
            | Hook::PerfTracepoint(..)
            | Hook::CgroupEgress
            | Hook::CgroupIngress
            | Hook::CgroupSockAddr
            | Hook::MapEntries => return Err(self.spec.broken(program)),
        };
        let absent = |path: &&str| fields.absent.iter().any(|field| field.path == *path);
        let missing: Vec<&str> = OPEN_FILES_NEED.into_iter().filter(absent).collect();
        if over == Hook::OpenFiles && !missing.is_empty() {
            return Err(LoadError::MissingFields { signal, fields: missing.join(", ") });
        }
        let (iter, link) = self.walker(program, over, function, id, None)?;
        // The program writes nothing, so there is nothing to read but the end.
        let ended = begin(&link).and_then(|walk| read(walk, |_nothing| {}));
        // It has done its work.
        let unloaded = iter.unload();
        ended.map_err(|source| LoadError::Walk { signal, program, source })?;
        unloaded.map_err(|source| LoadError::Program { signal, program, source: Box::new(source) })
    }

    /// A walk over the entries of a map, by the object's program for that.
    ///
    /// # Errors
    ///
    /// When this kernel has no such iterator, or refuses the program.
    pub fn walk<K: Pod, V: Pod>(
        &mut self,
        map: &HashMap<MapData, Plain<K>, Plain<V>>,
        fields: &Resolved,
    ) -> Result<Walk, LoadError> {
        let program = self.spec.walk.ok_or_else(|| self.spec.broken("walk"))?;
        let (_loaded, link) =
            self.walker(program, Hook::MapEntries, MAP_ENTRIES, fields.map_entries, Some(map.map_fd()))?;
        Ok(Walk { link, buffer: Vec::new() })
    }

    /// A walk over all threads, by the object's program for that.
    ///
    /// # Errors
    ///
    /// As [`Self::walk`].
    pub fn walk_tasks(&mut self, fields: &Resolved) -> Result<Walk, LoadError> {
        let program = self.spec.walk.ok_or_else(|| self.spec.broken("walk"))?;
        let (_loaded, link) = self.walker(program, Hook::Tasks, TASKS, fields.tasks, None)?;
        Ok(Walk { link, buffer: Vec::new() })
    }

    /// Loads a program and links it to what it walks over: the iterator whose function in the kernel's types is `function`.
    fn walker(
        &mut self,
        program: &'static str,
        hook: Hook,
        function: &'static str,
        id: Option<u32>,
        map: Option<BorrowedFd<'_>>,
    ) -> Result<(&mut Iter, OwnedFd), LoadError> {
        let signal = self.spec.name;
        let id = id.ok_or_else(|| LoadError::MissingFields { signal, fields: function.to_owned() })?;
        let refused = |source| LoadError::Program { signal, program, source: Box::new(source) };
        let broken = LoadError::Broken { signal, part: program };
        // aya puts the beginning before it by itself.
        let (Some(name), Some(Program::Iter(iter))) =
            (function.strip_prefix("bpf_iter_"), self.ebpf.program_mut(program))
        else {
            return Err(broken);
        };
        iter.load(name, &with_function(function, id)).map_err(refused)?;
        let link = link(iter.fd().map_err(refused)?.as_fd(), map).map_err(|source| LoadError::Link {
            signal,
            program,
            hook,
            source,
        })?;
        Ok((iter, link))
    }
}

impl Walk {
    /// Walks, and calls `each` with every record that the program writes.
    ///
    /// # Errors
    ///
    /// What bpf(2) and read(2) return.
    pub fn records<T: Pod>(&mut self, mut each: impl FnMut(&T)) -> io::Result<()> {
        let Self { link, buffer } = self;
        buffer.clear();
        read(begin(link)?, |bytes| {
            buffer.extend_from_slice(bytes);
            let records = buffer.chunks_exact(size_of::<T>());
            let rest = records.remainder().len();
            records.for_each(|record| each(&bytemuck::pod_read_unaligned(record)));
            buffer.drain(..buffer.len() - rest);
        })
    }
}

/// Links an iterator's program to all there is, or to one map.
fn link(program: BorrowedFd<'_>, map: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    /// The member `link_create` of `union bpf_attr`.
    #[repr(C)]
    struct Attr {
        prog_fd: i32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
        iter_info: u64,
        iter_info_len: u32,
        _pad: u32,
    }
    /// `union bpf_iter_link_info`, as far as 5.10 knows it.
    #[repr(C)]
    struct Info {
        map_fd: i32,
    }
    let info = map.map(|map| Info { map_fd: map.as_raw_fd() });
    let attr = Attr {
        prog_fd: program.as_raw_fd(),
        target_fd: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        iter_info: info.as_ref().map_or(0, |info| (&raw const *info) as u64),
        iter_info_len: if info.is_some() { size_of::<Info>() as u32 } else { 0 },
        _pad: 0,
    };
    // SAFETY: `attr` is the kernel's structure for this command; what it points to is alive.
    unsafe { descriptor(BPF_LINK_CREATE, (&raw const attr).cast(), size_of::<Attr>()) }
}

/// Begins a walk.
fn begin(link: &OwnedFd) -> io::Result<File> {
    /// The member `iter_create` of `union bpf_attr`.
    #[repr(C)]
    struct Attr {
        link_fd: i32,
        flags: u32,
    }
    let attr = Attr { link_fd: link.as_raw_fd(), flags: 0 };
    // SAFETY: `attr` is the kernel's structure for this command.
    unsafe { descriptor(BPF_ITER_CREATE, (&raw const attr).cast(), size_of::<Attr>()) }.map(File::from)
}

/// bpf(2), of a command that returns a descriptor.
///
/// # Safety
///
/// `attr` must point to the command's structure, of `size` bytes.
unsafe fn descriptor(command: libc::c_int, attr: *const libc::c_void, size: usize) -> io::Result<OwnedFd> {
    // SAFETY: the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size) };
    match i32::try_from(result) {
        // SAFETY: a new descriptor, nobody else's.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reads to the end: the kernel walks meanwhile.
fn read(mut walk: File, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    // What the kernel keeps ready at most (bpf_seq_read of kernel/bpf/bpf_iter.c: eight pages).
    let mut bytes = [0; 32 * 1024];
    loop {
        match walk.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => each(bytes.get(..count).unwrap_or_default()),
            // After a million things without output the kernel comes up for air (MAX_ITER_OBJECTS, likewise).
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Types among which a function has this id: aya wants a whole kernel's to look up one number, which is known already.
fn with_function(name: &str, id: u32) -> Btf {
    let mut btf = Btf::new();
    for _ in 1..id {
        btf.add_type(BtfType::Int(Int::new(0, 4, IntEncoding::None, 0)));
    }
    let name = btf.add_string(name);
    btf.add_type(BtfType::Func(Func::new(name, 0, FuncLinkage::Static)));
    btf
}

#[cfg(test)]
mod tests {
    use aya_obj::btf::BtfKind;

    use super::*;

    #[test]
    fn the_function_has_its_number() {
        for id in [1, 2, 64_252] {
            let found = with_function(OPEN_FILES, id).id_by_type_name_kind(OPEN_FILES, BtfKind::Func);
            assert_eq!(found.ok(), Some(id));
        }
    }
}
