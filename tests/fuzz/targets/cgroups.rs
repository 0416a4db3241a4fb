//! What /proc tells of cgroups and processes, and what the paths of strangers tell of containers.

#![no_main]

use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use probe_user::entity::container_of;
use probe_user::entity::process::parse_stat;
use probe_user::kernel::cgroup::{cgroup2_mounts, process_cgroups};

fuzz_target!(|bytes: &[u8]| {
    container(bytes);
    mounts(bytes);
    process(bytes);
});

fn container(path: &[u8]) {
    let found = container_of(path);
    if let Some(container) = &found {
        let id = container.container_id.as_bytes();
        assert!((12..=64).contains(&id.len()) && id.iter().all(u8::is_ascii_hexdigit), "{container:?}");
        assert!(path.windows(id.len()).any(|window| window == id), "an id out of nowhere: {container:?}");
        // Without a name of its own in the path, only a whole id is one.
        assert!(container.runtime.is_some() || id.len() == 64, "{container:?}");
        if let Some(uid) = &container.pod_uid {
            assert!(matches!(uid.len(), 32 | 36), "{container:?}");
            assert!(uid.bytes().all(|octet| octet.is_ascii_hexdigit() || octet == b'-'), "{container:?}");
        }
    }
    // Empty parts mean nothing, as for the kernel.
    if path.len() < 2_000 {
        let mut doubled = Vec::new();
        for &octet in path {
            doubled.push(octet);
            if octet == b'/' {
                doubled.push(octet);
            }
        }
        doubled.push(b'/');
        assert_eq!(container_of(&doubled), found);
    }
}

fn mounts(bytes: &[u8]) {
    let lines = bytes.split(|&octet| octet == b'\n').count();
    let found = cgroup2_mounts(bytes);
    assert!(found.len() <= lines);
    assert!(found.iter().all(|path| path.as_os_str().len() <= bytes.len()));
    // Any path, written down as the kernel does it, comes back as it was.
    let mut line = b"38 31 0:35 / ".to_vec();
    for &octet in bytes {
        if matches!(octet, b' ' | b'\t' | b'\n' | b'\\' | b'#') {
            line.extend_from_slice(format!("\\{octet:03o}").as_bytes());
        } else {
            line.push(octet);
        }
    }
    line.extend_from_slice(b" rw,relatime shared:9 - cgroup2 cgroup2 rw\n");
    let back = cgroup2_mounts(&line);
    assert_eq!(back.iter().map(|path| path.as_os_str().as_bytes()).collect::<Vec<_>>(), [bytes]);
}

fn process(bytes: &[u8]) {
    let cgroups = process_cgroups(bytes);
    let lines = bytes.split(|&octet| octet == b'\n').count();
    assert!(cgroups.legacy.len() + usize::from(cgroups.unified.is_some()) <= lines.min(64));
    for path in cgroups.unified.iter().chain(&cgroups.legacy) {
        assert!(!path.contains('\n'));
        container(path.as_bytes());
    }
    if let Ok(path) = std::str::from_utf8(bytes)
        && !path.contains('\n')
        && !path.ends_with(" (deleted)")
    {
        let text = format!("9:memory,pids:/legacy\n0::{path}\n");
        let back = process_cgroups(text.as_bytes());
        assert_eq!(
            (back.unified.as_deref(), back.legacy.as_slice()),
            (Some(path), &["/legacy".to_owned()][..])
        );
    }

    if let Some((comm, _)) = parse_stat(bytes) {
        assert!(comm.len() + 2 <= bytes.len());
    }
    // A name may hold whatever it likes: the last parenthesis ends it.
    let mut stat = b"7 (".to_vec();
    stat.extend_from_slice(bytes);
    stat.extend_from_slice(b") S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9\n");
    assert_eq!(parse_stat(&stat), Some((bytes, 4711)));
}
