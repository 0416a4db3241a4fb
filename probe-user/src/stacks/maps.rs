//! Where a process has its code: the executable part of /proc/PID/maps.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

/// Executable mappings kept of one process, and bytes of their paths; what runs has some ten, Electron some hundred.
pub const MAX_MAPPINGS: usize = 4_096;
const MAX_PATHS: usize = 256 << 10;
/// Of a process with the most mappings that Linux allows by default (65,530) the file is 7 MB.
const MAX_TEXT: u64 = 32 << 20;
/// What the kernel appends to the path of a file that has none any more.
const DELETED: &[u8] = b" (deleted)";

/// What lies behind addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A file.
    File {
        /// Its path where the process has its root, with `\012` for a line feed as the kernel writes it.
        path: Arc<[u8]>,
        /// That path is nobody's, or another file's, today.
        deleted: bool,
        /// Device and inode, as the memory manager knows them: on overlayfs the device need not be the one that stat(2) tells.
        device: (u32, u32),
        /// See `device`.
        inode: u64,
    },
    /// Something with a name in brackets: `[vdso]`, `[heap]`.
    Special(Arc<[u8]>),
    /// Memory alone: what a just-in-time compiler writes.
    Nothing,
}

/// Executable memory of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
    /// What offset in the file the first address has.
    pub offset: u64,
    /// What is there.
    pub backing: Backing,
}

/// Executable mappings, in order of their addresses. Lines that are not understood are skipped: the kernel writes none.
///
/// # Errors
///
/// The system's.
pub fn parse(text: impl Read) -> io::Result<Vec<Mapping>> {
    let mut text = io::BufReader::with_capacity(32 << 10, text.take(MAX_TEXT));
    let mut line = Vec::new();
    let mut mappings: Vec<Mapping> = Vec::new();
    let mut paths = 0;
    while mappings.len() < MAX_MAPPINGS && paths <= MAX_PATHS && text.read_until(b'\n', &mut line)? > 0 {
        if let Some((mut mapping, path)) = parse_line(line.trim_ascii_end()) {
            // A library's parts follow each other.
            let last = mappings.last().map(|last| &last.backing);
            if let Some(Backing::File { path: before, .. }) = last
                && let Backing::File { path: again, .. } = &mut mapping.backing
                && **before == **again
            {
                *again = Arc::clone(before);
            } else {
                paths += path;
            }
            mappings.push(mapping);
        }
        line.clear();
    }
    mappings.sort_unstable_by_key(|mapping| mapping.start);
    Ok(mappings)
}

/// One line, if it is of executable memory, and the length of its path: `START-END r-xp OFFSET MAJOR:MINOR INODE   PATH`.
fn parse_line(line: &[u8]) -> Option<(Mapping, usize)> {
    let mut words = line.splitn(6, |&byte| byte == b' ');
    let (start, end) = split(words.next()?, b'-')?;
    if *words.next()?.get(2)? != b'x' {
        return None;
    }
    let offset = hex(words.next()?)?;
    let (major, minor) = split(words.next()?, b':')?;
    let inode = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let name = words.next().unwrap_or_default().trim_ascii_start();
    let backing = match name {
        [] => Backing::Nothing,
        [b'/', ..] => {
            let (path, deleted) = name.strip_suffix(DELETED).map_or((name, false), |path| (path, true));
            let device = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
            Backing::File { path: path.into(), deleted, device, inode }
        }
        _ => Backing::Special(name.into()),
    };
    (start < end).then_some((Mapping { start, end, offset, backing }, name.len()))
}

/// The one that an address is in.
#[must_use]
pub fn find(mappings: &[Mapping], address: u64) -> Option<(usize, &Mapping)> {
    let after = mappings.partition_point(|mapping| mapping.start <= address);
    let index = after.checked_sub(1)?;
    let mapping = mappings.get(index)?;
    (address < mapping.end).then_some((index, mapping))
}

fn split(word: &[u8], at: u8) -> Option<(u64, u64)> {
    let middle = word.iter().position(|&byte| byte == at)?;
    Some((hex(word.get(..middle)?)?, hex(word.get(middle + 1..)?)?))
}

/// A hexadecimal number as /proc and perf maps have them.
pub(super) fn hex(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(number << 4 | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_the_kernel_writes_them() {
        let text = b"\
555ea0621000-555ea0626000 r-xp 00002000 fe:01 1234    /usr/bin/sleep\n\
555ea0627000-555ea0628000 r--p 00008000 fe:01 1234    /usr/bin/sleep\n\
7f0000000000-7f0000001000 rwxp 00000000 00:00 0 \n\
7f0000002000-7f0000003000 r-xp 00001000 00:2a 77   /memfd:doublemapper (deleted)\n\
7f0000003000-7f0000004000 r-xp 00002000 00:2a 77   /a b/with\\012feed\n\
7f0000004000-7f0000005000 r-xp 00003000 00:2a 77   /a b/with\\012feed\n\
7ffff0000000-7ffff0002000 r-xp 00000000 00:00 0    [vdso]\n\
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0    [vsyscall]\n\
what is this\n";
        let mappings = parse(&text[..]).unwrap();
        let file = |path: &str, deleted, device, inode| Backing::File {
            path: path.as_bytes().into(),
            deleted,
            device,
            inode,
        };
        let special = |name: &str| Backing::Special(name.as_bytes().into());
        let want = [
            file("/usr/bin/sleep", false, (0xfe, 1), 1234),
            Backing::Nothing,
            file("/memfd:doublemapper", true, (0, 0x2a), 77),
            file("/a b/with\\012feed", false, (0, 0x2a), 77),
            file("/a b/with\\012feed", false, (0, 0x2a), 77),
            special("[vdso]"),
            special("[vsyscall]"),
        ];
        assert_eq!(mappings.iter().map(|mapping| mapping.backing.clone()).collect::<Vec<_>>(), want);
        let (Backing::File { path: one, .. }, Backing::File { path: two, .. }) =
            (&mappings[3].backing, &mappings[4].backing)
        else {
            panic!("no files");
        };
        assert!(Arc::ptr_eq(one, two));
        for (address, want) in [
            (0, None),
            (0x555ea0620fff, None),
            (0x555ea0621000, Some((0, 0x2000))),
            (0x555ea0625fff, Some((0, 0x2000))),
            (0x555ea0626000, None),
            (0xffffffffff600fff, Some((6, 0))),
            (u64::MAX, None),
        ] {
            let found = find(&mappings, address).map(|(index, mapping)| (index, mapping.offset));
            assert_eq!(found, want, "{address:#x}");
        }
        assert_eq!(find(&[], 7), None);
    }

    #[test]
    fn what_is_no_line() {
        let cases: &[&[u8]] = &[
            b"",
            b"-",
            b"1-2",
            b"1-2 r-x",
            b"1-2 r-xp 0 0:0",
            b"2-1 r-xp 0 0:0 0",
            b"1-2 r-xp g 0:0 0",
            b"1-2 r-xp 0 0:0 x",
            b"11111111111111111-2 r-xp 0 0:0 0",
        ];
        for case in cases {
            assert_eq!(parse_line(case), None, "{}", String::from_utf8_lossy(case));
        }
        assert!(parse_line(b"1-2 r-xp 0 0:0 0").is_some());
    }

    #[test]
    fn no_more_than_so_many() {
        let line = |n: usize| {
            format!("{:x}-{:x} r-xp 0 0:0 {n} /{n}{}\n", n * 16, n * 16 + 8, "x".repeat(n % 2 * 200))
        };
        let many: String = (0..MAX_MAPPINGS + 10).map(|n| line(n * 2)).collect();
        assert_eq!(parse(many.as_bytes()).unwrap().len(), MAX_MAPPINGS);
        let long: String = (0..MAX_MAPPINGS).map(|n| line(n * 2 + 1)).collect();
        let paths = parse(long.as_bytes()).unwrap().len();
        assert!((1_000..2_000).contains(&paths), "{paths}");
    }

    #[test]
    fn this_process() {
        let mappings = parse(std::fs::File::open("/proc/self/maps").unwrap()).unwrap();
        let (_, own) = find(&mappings, this_process as fn() as usize as u64).unwrap();
        let Backing::File { path, deleted: false, inode, .. } = &own.backing else { panic!("{own:?}") };
        let exe = std::env::current_exe().unwrap();
        assert_eq!(**path, *std::os::unix::ffi::OsStrExt::as_bytes(exe.as_os_str()));
        assert_eq!(*inode, std::os::unix::fs::MetadataExt::ino(&exe.metadata().unwrap()));
    }
}
