//! What a call was about, in words: what the programs have read of it, and what /proc adds while the process is there.

use std::net::SocketAddr;

use probe_common::syscalls::{HAS_ARGS, HAS_FILE, HAS_PATH, HAS_SOCKET, Subject as Raw};

use super::Subject;
use crate::entity::descriptor_target;
use crate::signals::tcp::events::address;

/// Kinds of files, `st_mode` of inode(7).
const S_IFMT: u32 = 0o170_000;
const S_IFSOCK: u32 = 0o140_000;
const S_IFIFO: u32 = 0o010_000;

/// In words; `tgid` is the process whose call it is, 0 where it is not known.
pub(super) fn of(raw: &Raw, tgid: u32) -> Subject {
    let has = |what: u32| raw.has & what != 0;
    let args = has(HAS_ARGS).then_some(raw.args);
    // An empty path stands for the descriptor beside it (AT_EMPTY_PATH), or for nothing.
    let path = text(&raw.path);
    let file = if has(HAS_PATH) && !path.is_empty() {
        Some(path.into_owned().into_boxed_str())
    } else if has(HAS_FILE) {
        file(raw, tgid)
    } else {
        None
    };
    let [local, peer] = if has(HAS_SOCKET) { ends(raw) } else { [None; 2] };
    Subject { args, file, local, peer }
}

/// The kernel side knows the last part of the path for certain; /proc has all of it, if the descriptor is still the same.
fn file(raw: &Raw, tgid: u32) -> Option<Box<str>> {
    match raw.mode & S_IFMT {
        S_IFIFO if raw.name.first() == Some(&0) => return Some(format!("pipe:[{}]", raw.inode).into()),
        S_IFSOCK => return Some(format!("socket:[{}]", raw.inode).into()),
        0 => return Some(format!("anon_inode:{}", text(&raw.name)).into()),
        _ => {}
    }
    let name = text(&raw.name);
    // A descriptor is the first argument wherever one is looked at.
    let descriptor = raw.args.first().map(|descriptor| *descriptor as u32);
    let whole = descriptor.and_then(|descriptor| descriptor_target(tgid, descriptor));
    let whole = whole.filter(|path| {
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        path.rsplit('/').next().is_some_and(|last| {
            last == name || !last.is_empty() && name.len() + 1 >= raw.name.len() && last.starts_with(&*name)
        }) || path == name
    });
    whole.or_else(|| (!name.is_empty()).then(|| format!("…/{name}").into()))
}

fn ends(raw: &Raw) -> [Option<SocketAddr>; 2] {
    let socket = &raw.socket;
    let end = |ip, port| {
        let ip = address(socket.family, ip).ok()?;
        (port != 0).then(|| SocketAddr::new(ip, port))
    };
    [end(&socket.local, socket.local_port), end(&socket.peer, socket.peer_port)]
}

/// Up to the NUL; what is no UTF-8 becomes U+FFFD.
fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use probe_common::wire::FAMILY_IPV4;

    use super::*;

    fn raw(has: u32, mode: u32, name: &str) -> Raw {
        let mut raw: Raw = bytemuck::Zeroable::zeroed();
        raw.has = HAS_ARGS | has;
        raw.mode = mode;
        raw.inode = 47;
        raw.args[0] = u64::MAX;
        for (slot, byte) in raw.name.iter_mut().zip(name.bytes()) {
            *slot = byte;
        }
        raw
    }

    #[test]
    fn files_are_named_as_proc_names_them() {
        for (mode, name, want) in [
            (S_IFIFO, "", Some("pipe:[47]")),
            (S_IFIFO, "queue", Some("…/queue")),
            (S_IFSOCK, "", Some("socket:[47]")),
            (0, "[eventfd]", Some("anon_inode:[eventfd]")),
            (0o100_000, "log", Some("…/log")),
            (0o100_000, "", None),
        ] {
            assert_eq!(of(&raw(HAS_FILE, mode, name), 0).file.as_deref(), want, "{mode:o} {name}");
        }
        assert_eq!(of(&raw(0, 0, "x"), 0), Subject { args: Some(raw(0, 0, "").args), ..Subject::default() });
    }

    #[test]
    fn the_whole_path_comes_from_proc_if_it_is_the_same_file() {
        use std::os::fd::AsRawFd as _;
        let own = std::fs::File::open("/proc/self/maps").unwrap();
        let mut raw = raw(HAS_FILE, 0o100_000, "maps");
        raw.args[0] = own.as_raw_fd() as u64;
        let tgid = std::process::id();
        assert_eq!(of(&raw, tgid).file.as_deref(), Some(&*format!("/proc/{tgid}/maps")));
        raw.name[0] = b'x';
        assert_eq!(of(&raw, tgid).file.as_deref(), Some("…/xaps"), "another's by now");
    }

    #[test]
    fn a_path_and_the_ends_of_a_socket() {
        let mut raw = raw(HAS_PATH | HAS_SOCKET, 0, "");
        raw.path[..4].copy_from_slice(b"/a\xff\n");
        raw.socket.family = FAMILY_IPV4;
        raw.socket.local[..4].copy_from_slice(&[127, 0, 0, 1]);
        raw.socket.local_port = 80;
        let subject = of(&raw, 0);
        assert_eq!(subject.file.as_deref(), Some("/a\u{fffd}\n"));
        assert_eq!(subject.local, "127.0.0.1:80".parse().ok());
        assert_eq!(subject.peer, None, "it has none");
        raw.path = [0; _];
        assert_eq!(of(&raw, 0).file, None, "an empty path is none");
    }
}
