//! What the kernel writes about cgroups: mountinfo and /proc/PID/cgroup. Pure functions of bytes, total over any.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Where cgroup v2 is mounted, from the text of a mountinfo file. Total over any bytes.
pub fn cgroup2_mounts(mountinfo: &[u8]) -> Vec<PathBuf> {
    mountinfo
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            // 38 31 0:35 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
            let mut words = line.split(|&byte| byte == b' ');
            let point = words.nth(4)?;
            words.find(|word| *word == b"-")?;
            (words.next()? == b"cgroup2").then(|| PathBuf::from(OsString::from_vec(unescape(point))))
        })
        .collect()
}

/// The kernel writes space, tab, newline and backslash of a path as `\040` and so on.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let octal = (byte == b'\\').then(|| tail.first_chunk::<3>()).flatten().and_then(|digits| {
            digits.iter().try_fold(0_u32, |value, digit| {
                (b'0'..=b'7').contains(digit).then(|| value * 8 + u32::from(digit - b'0'))
            })
        });
        match octal.and_then(|value| u8::try_from(value).ok()) {
            Some(value) => {
                out.push(value);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => out.push(byte),
        }
    }
    out
}
/// The v2 cgroup and the v1 cgroups of a process: the lines of /proc/PID/cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessCgroups {
    /// Path in v2, `0::PATH`.
    pub unified: Option<String>,
    /// Paths in the v1 hierarchies.
    pub legacy: Vec<String>,
}

/// Reads the text of /proc/PID/cgroup. Total over any bytes; those that are not UTF-8 are replaced.
pub fn process_cgroups(text: &[u8]) -> ProcessCgroups {
    let mut cgroups = ProcessCgroups::default();
    for line in text.split(|&byte| byte == b'\n').take(64) {
        // hierarchy-ID:controller-list:cgroup-path, and a path may hold colons.
        let mut parts = line.splitn(3, |&byte| byte == b':');
        let (Some(hierarchy), Some(_), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        // A process may outlive the directory.
        let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
        let path = String::from_utf8_lossy(path).into_owned();
        if hierarchy == b"0" {
            cgroups.unified = Some(path);
        } else {
            cgroups.legacy.push(path);
        }
    }
    cgroups
}
#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_mount_point_written_as_the_kernel_does_comes_back(path in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut line = b"38 31 0:35 / ".to_vec();
            for &byte in &path {
                // mangle_path of fs/seq_file.c, as show_mountinfo calls it.
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' | b'#' => line.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
                    _ => line.push(byte),
                }
            }
            line.extend_from_slice(b" rw,relatime shared:9 - cgroup2 cgroup2 rw\n");
            let found = cgroup2_mounts(&line);
            prop_assert_eq!(found.iter().map(|path| path.as_os_str().as_bytes()).collect::<Vec<_>>(), [&path[..]]);
            prop_assert!(cgroup2_mounts(&path).len() <= path.len());
        }

        #[test]
        fn the_cgroups_of_a_process_come_back(unified in "/[^\n]{0,40}", legacy in prop::collection::vec("/[^\n]{0,40}", 0..8)) {
            prop_assume!(legacy.iter().chain([&unified]).all(|path| !path.ends_with(" (deleted)")));
            let lines: Vec<String> = legacy.iter().map(|path| format!("9:cpu,cpuacct:{path}\n")).collect();
            let text = format!("{}0::{unified}\n", lines.concat());
            prop_assert_eq!(process_cgroups(text.as_bytes()), ProcessCgroups { unified: Some(unified), legacy });
        }

        #[test]
        fn any_bytes_are_some_cgroups(bytes in prop::collection::vec(prop_oneof![Just(b':'), Just(b'\n'), Just(b'0'), any::<u8>()], 0..60)) {
            let ProcessCgroups { unified, legacy } = process_cgroups(&bytes);
            prop_assert!(legacy.len() + usize::from(unified.is_some()) <= 64);
        }
    }

    #[test]
    fn mounts_of_cgroup2_among_others() {
        let cases: &[(&str, &[u8], &[&str])] = &[
            ("empty", b"", &[]),
            ("v1 only", b"32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n", &[]),
            (
                "hybrid",
                b"37 31 0:34 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                  38 31 0:35 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
                &["/sys/fs/cgroup/unified"],
            ),
            (
                "optional fields",
                b"29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 master:3 - cgroup2 cgroup2 rw,nsdelegate\n",
                &["/sys/fs/cgroup"],
            ),
            ("escaped", b"1 2 0:3 / /a\\040b\\134c\\011\\ rw - cgroup2 none rw", &["/a b\\c\t\\"]),
            ("two", b"1 2 0:3 / /a rw - cgroup2 none rw\n1 2 0:3 / /b rw - cgroup2 none rw", &["/a", "/b"]),
            ("named like it", b"1 2 0:3 / /cgroup2 rw - tmpfs cgroup2 rw", &[]),
            ("cut off", b"1 2 0:3 / /cgroup2 rw -", &[]),
            ("octal too large", b"1 2 0:3 / /a\\777 rw - cgroup2 none rw", &["/a\\777"]),
            ("rubbish", b"\xff\xfe \0 - - cgroup2 cgroup2\n\n   \n", &[]),
        ];
        for (name, text, expected) in cases {
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(cgroup2_mounts(text), expected, "{name}");
        }
    }

    #[test]
    fn lines_of_a_process() {
        let check = |name: &str, text: &[u8], unified: Option<&str>, legacy: &[&str]| {
            let found = process_cgroups(text);
            assert_eq!(found.unified.as_deref(), unified, "{name}");
            assert_eq!(found.legacy, legacy, "{name}");
        };
        check("v2", b"0::/user.slice\n", Some("/user.slice"), &[]);
        check("hybrid", b"9:name=systemd:/a\n8:pids:/b\n0::/\n", Some("/"), &["/a", "/b"]);
        check("colons", b"0::/system.slice/a:b:c\n", Some("/system.slice/a:b:c"), &[]);
        check("removed", b"0::/a (deleted)\n", Some("/a"), &[]);
        check("rubbish", b"\xff\n::\n0\n", None, &[""]);
        check("empty", b"", None, &[]);
    }
}
