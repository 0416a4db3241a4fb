//! Files of a process, wherever it has its root.
//!
//! With CAP_SYS_PTRACE, which probe keeps, /proc/PID/exe and what lies below /proc/PID/root can be read, if the permissions of the file and
//! of the directories on the way let this user in; /proc/PID/map_files, which would also give files that have been deleted, asks for
//! CAP_CHECKPOINT_RESTORE (before 5.9 CAP_SYS_ADMIN), which probe gives back.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use super::maps::{self, Backing, Mapping};
use crate::entity::process::{TICK_NS, parse_stat};

/// Read of /proc/PID/stat and status; what is looked for stands at their beginning.
const MAX_SHORT: u64 = 4_096;
/// Memory of the vDSO that is read; it has two to four pages.
const MAX_VDSO: u64 = 64 << 10;

/// A process while it lives: if it ends, nothing of another one with its pid is read.
#[derive(Debug)]
pub(super) struct Process {
    /// Its directory in /proc, which belongs to that very process.
    directory: OwnedFd,
}

impl Process {
    /// The one with that pid which began at that time (CLOCK_BOOTTIME).
    pub(super) fn open(pid: u32, start_ns: u64) -> Option<Self> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let directory = openat(CWD, format!("/proc/{pid}"), flags, Mode::empty()).ok()?;
        let process = Self { directory };
        let (_, ticks) = parse_stat(&process.short("stat")?)?;
        // The kernel rounds down; one tick of grace for other roundings.
        (ticks.abs_diff(start_ns / TICK_NS) <= 1).then_some(process)
    }

    fn file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(openat(&self.directory, name, flags, Mode::empty())?.into())
    }

    /// The beginning of a short file.
    fn short(&self, name: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file(name).ok()?.take(MAX_SHORT).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Its executable mappings. Nobody's are seen of one that has ended and was not waited for.
    pub(super) fn mappings(&self) -> io::Result<Vec<Mapping>> {
        maps::parse(self.file("maps")?)
    }

    /// The pid by which it knows itself: the innermost of its namespaces.
    fn own_pid(&self) -> Option<u32> {
        let status = self.short("status")?;
        let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"NStgid:"))?;
        std::str::from_utf8(line.rsplit(u8::is_ascii_whitespace).next()?).ok()?.parse().ok()
    }

    /// What its just-in-time compiler says of its code.
    pub(super) fn perf_map(&self) -> io::Result<File> {
        let pid = self.own_pid().ok_or(io::ErrorKind::NotFound)?;
        self.open_in_root(format!("tmp/perf-{pid}.map").as_bytes())
    }

    /// A regular file below its root. Whatever its links say, they lead nowhere else; and nothing that opening would wake
    /// (a device, a FIFO) is opened.
    pub(super) fn open_in_root(&self, path: &[u8]) -> io::Result<File> {
        let root = openat(
            &self.directory,
            "root",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        open_regular(&root, path)
    }

    /// The file behind a mapping.
    pub(super) fn open_mapped(&self, mapping: &Mapping) -> io::Result<File> {
        let Backing::File { path, deleted, device, inode } = &mapping.backing else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let exact = format!("map_files/{:x}-{:x}", mapping.start, mapping.end);
        if let Ok(file) = self.file(&exact) {
            return Ok(file);
        }
        // It may have been deleted, or lie in a directory that is closed to us.
        let of_device =
            |found: &Metadata| (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev())) == *device;
        if let Ok(exe) = self.file("exe") {
            let found = exe.metadata()?;
            if found.ino() == *inode && (of_device(&found) || self.is_exe(path)) {
                return Ok(exe);
            }
        }
        if *deleted {
            return Err(io::Error::other("deleted since"));
        }
        let path = unescape(path);
        // Of overlayfs and btrfs, maps and stat tell different devices.
        let same = |found: &Metadata| found.ino() == *inode || !of_device(found);
        match self.open_in_root(&path) {
            Ok(file) if same(&file.metadata()?) => Ok(file),
            Ok(_) => Err(io::Error::other("replaced since")),
            // Of a process that has but changed its root (chroot), paths are told from ours.
            Err(error) => {
                let root =
                    openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
                match open_regular(&root, &path) {
                    Ok(file) if file.metadata()?.ino() == *inode => Ok(file),
                    _ => Err(error),
                }
            }
        }
    }

    fn is_exe(&self, path: &[u8]) -> bool {
        let link = rustix::fs::readlinkat(&self.directory, "exe", Vec::new());
        link.is_ok_and(|link| link.to_bytes().strip_suffix(b" (deleted)").unwrap_or(link.to_bytes()) == path)
    }

    /// Its vDSO: of 32-bit processes it is another than of others.
    pub(super) fn vdso(&self, mapping: &Mapping) -> io::Result<Vec<u8>> {
        let length = (mapping.end - mapping.start).min(MAX_VDSO);
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.file("mem")?.read_exact_at(&mut bytes, mapping.start)?;
        Ok(bytes)
    }
}

/// Debug symbols of the file with that build id, where distributions put them, below the process's root or ours.
pub(super) fn debug_file(process: &Process, build_id: &[u8]) -> Option<File> {
    let (first, rest) = build_id.split_first()?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let path = format!("usr/lib/debug/.build-id/{first:02x}/{}.debug", hex(rest));
    process.open_in_root(path.as_bytes()).ok().or_else(|| File::open(Path::new("/").join(path)).ok())
}

fn open_regular(root: &OwnedFd, path: &[u8]) -> io::Result<File> {
    let start = path.iter().position(|&byte| byte != b'/').unwrap_or(path.len());
    let path = std::ffi::OsStr::from_bytes(path.get(start..).unwrap_or_default());
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    if !rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode).is_file() {
        return Err(io::Error::other("no regular file"));
    }
    File::open(format!("/proc/self/fd/{}", found.as_fd().as_raw_fd()))
}

/// The kernel writes a line feed in a path as `\012`.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, after)) = rest.split_first() {
        match rest.strip_prefix(b"\\012") {
            Some(after) => {
                plain.push(b'\n');
                rest = after;
            }
            None => {
                plain.push(first);
                rest = after;
            }
        }
    }
    plain
}

/// All of a file, if it has no more than `most` bytes.
pub(super) fn read_whole(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other("too large"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_as_they_are() {
        for (told, want) in
            [("/a/b", "/a/b"), ("/a\\012b", "/a\nb"), ("/a\\01", "/a\\01"), ("\\012\\012", "\n\n")]
        {
            assert_eq!(unescape(told.as_bytes()), want.as_bytes());
        }
    }
}
