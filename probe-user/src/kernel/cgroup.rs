//! The root of cgroup v2, and the names behind cgroup ids.
//!
//! Programs on cgroup hooks see the sockets of the cgroup they are attached to and of those below, so they
//! must go to the real root: inside a cgroup namespace the visible "root" is the container's own, and the hook
//! would see nobody else without a word. The real root is known by its inode number, 1.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// Inode number, and so id, of the root of the cgroup v2 hierarchy.
pub const ROOT_ID: u64 = 1;

/// Why there is no usable cgroup v2.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The table of mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo: {0} (mount /proc)")]
    Mounts(#[source] io::Error),
    /// Only a container's own part of the hierarchy is visible.
    #[error(
        "cgroup v2 at {} is a container's own (inode {inode}, the root has 1): nobody else's packets would be seen (mount the host's cgroup v2 into the container, or start it with the host's cgroup namespace or pid namespace)",
        .path.display()
    )]
    Namespaced {
        /// Where it is mounted.
        path: PathBuf,
        /// Inode number of that directory.
        inode: u64,
    },
    /// It is mounted nowhere and cannot be mounted privately.
    #[error(
        "cgroup v2 is not mounted, and mounting it privately failed: {0} (grant CAP_SYS_ADMIN, or run: mount -t cgroup2 none /sys/fs/cgroup/unified)"
    )]
    NotMounted(#[source] io::Error),
    /// The root is there but cannot be opened.
    #[error("cannot open the cgroup v2 root {}: {source} (run as root, or allow reading that directory)", .path.display())]
    Open {
        /// Where it is mounted.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A cgroup that was asked for does not exist.
    #[error("no cgroup {}: {source} (give a directory below {}, or a path as in /proc/PID/cgroup)", .path.display(), .root.display())]
    NoCgroup {
        /// What was asked for.
        path: PathBuf,
        /// Root of the hierarchy.
        root: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path leads to something else than a cgroup of v2.
    #[error("{} is not a cgroup of v2 (give a directory below {}, or a path as in /proc/PID/cgroup)", .path.display(), .root.display())]
    NotACgroup {
        /// What was asked for.
        path: PathBuf,
        /// Root of the hierarchy.
        root: PathBuf,
    },
}

impl CgroupError {
    /// Whether the system said that privileges are missing.
    #[must_use]
    pub fn is_permission_denied(&self) -> bool {
        match self {
            Self::NotMounted(source) | Self::Mounts(source) | Self::Open { source, .. } => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            Self::Namespaced { .. } | Self::NoCgroup { .. } | Self::NotACgroup { .. } => false,
        }
    }
}

/// One cgroup, as found by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Inode number of its directory.
    pub id: u64,
    /// Depth below the root, which is 0.
    pub level: u32,
    /// Path below the root, as in /proc/PID/cgroup: begins with `/`. Bytes that are not UTF-8 are replaced.
    pub path: Arc<str>,
}

/// The root directory of cgroup v2, open: what programs are attached to.
#[derive(Debug)]
pub struct CgroupRoot {
    /// The directory.
    pub fd: OwnedFd,
    /// A path that leads to it in this process.
    pub path: PathBuf,
    device: u64,
    /// A mount of our own, detached from the file system; it goes when this is closed.
    private: Option<OwnedFd>,
}

impl AsFd for CgroupRoot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl CgroupRoot {
    /// Finds the root among this process's mounts, else through the mounts of process 1 (a container that
    /// shares the host's pid namespace), else mounts it privately.
    ///
    /// # Errors
    /// See [`CgroupError`]: no root is visible and none can be mounted.
    pub fn find() -> Result<Self, CgroupError> {
        let own = std::fs::read("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
        let hosts = std::fs::read("/proc/1/mountinfo").unwrap_or_default();
        let mut why = None;
        for path in cgroup2_mounts(&own) {
            match Self::open(path) {
                Ok(root) => return Ok(root),
                Err(error) => why = why.or(Some(error)),
            }
        }
        // The way through process 1 needs the right to trace it; without, it is as if it were not there.
        for path in cgroup2_mounts(&hosts) {
            let Ok(below) = path.strip_prefix("/") else { continue };
            if let Ok(root) = Self::open(Path::new("/proc/1/root").join(below)) {
                return Ok(root);
            }
        }
        // A mount of our own would show the same part of the hierarchy as the visible ones.
        match why {
            Some(error) => Err(error),
            None => Self::mount_privately(),
        }
    }

    /// Whether the hierarchy is mounted for this process alone, because the host has it mounted nowhere.
    pub fn is_private(&self) -> bool {
        self.private.is_some()
    }

    fn open(path: PathBuf) -> Result<Self, CgroupError> {
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = opened.map_err(|source| CgroupError::Open { path: path.clone(), source })?;
        if metadata.ino() != ROOT_ID {
            return Err(CgroupError::Namespaced { path, inode: metadata.ino() });
        }
        Ok(Self { fd: file.into(), path, device: metadata.dev(), private: None })
    }

    /// Mounts cgroup v2 without putting it anywhere into the file system: only the descriptors reach it.
    fn mount_privately() -> Result<Self, CgroupError> {
        let mount = || -> rustix::io::Result<OwnedFd> {
            let context = rustix::mount::fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
            rustix::mount::fsconfig_create(context.as_fd())?;
            let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        };
        let mount = mount().map_err(|errno| CgroupError::NotMounted(errno.into()))?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/", mount.as_raw_fd()));
        let root = Self::open(path)?;
        Ok(Self { private: Some(mount), ..root })
    }

    /// Finds a cgroup by a path below the root (as in /proc/PID/cgroup) or by the path of its directory.
    ///
    /// # Errors
    /// There is no such directory, or it is not part of this hierarchy.
    pub fn locate(&self, path: &Path) -> Result<Cgroup, CgroupError> {
        let below = path.strip_prefix(&self.path).or_else(|_| path.strip_prefix("/")).unwrap_or(path);
        let no_cgroup =
            |source| CgroupError::NoCgroup { path: path.to_owned(), root: self.path.clone(), source };
        let directory = self.path.join(below);
        let metadata = std::fs::metadata(&directory).map_err(no_cgroup)?;
        let plain = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !plain || !metadata.is_dir() || metadata.dev() != self.device {
            return Err(CgroupError::NotACgroup { path: path.to_owned(), root: self.path.clone() });
        }
        let level = u32::try_from(below.components().count()).unwrap_or(u32::MAX);
        let path = format!("/{}", below.to_string_lossy().trim_end_matches('/'));
        Ok(Cgroup { id: metadata.ino(), level, path: path.into() })
    }

    /// The id of a cgroup by its path, as for [`Self::locate`].
    ///
    /// # Errors
    /// There is no such directory, or it is not part of this hierarchy.
    pub fn id_of(&self, path: &Path) -> Result<u64, CgroupError> {
        self.locate(path).map(|cgroup| cgroup.id)
    }
}

/// Where cgroup v2 is mounted, from the text of a mountinfo file. Total over any bytes.
pub fn cgroup2_mounts(mountinfo: &[u8]) -> Vec<PathBuf> {
    mountinfo
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            // 38 31 0:35 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
            let mut words = line.split(|&byte| byte == b' ');
            let point = words.nth(4)?;
            words.find(|word| *word == b"-")?;
            (words.next()? == b"cgroup2")
                .then(|| PathBuf::from(std::ffi::OsString::from_vec(unescape(point))))
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

/// Limits of a [`CgroupTree`].
#[derive(Clone, Copy, Debug)]
pub struct TreeLimits {
    /// Names that are kept, those of removed cgroups included.
    pub entries: usize,
    /// Directories that one scan visits.
    pub visits: usize,
    /// Least time between two scans.
    pub pause: Duration,
    /// How long the name of a removed cgroup is kept.
    pub linger: Duration,
    /// How long an id that a scan did not find is taken for unknown without another scan.
    pub unknown: Duration,
}

impl Default for TreeLimits {
    fn default() -> Self {
        Self {
            entries: 8_192,
            visits: 65_536,
            pause: Duration::from_secs(1),
            linger: Duration::from_secs(300),
            unknown: Duration::from_secs(30),
        }
    }
}

/// Depth at which a scan turns round; the kernel's own limit is a setting, and users stay far below this.
const MAX_LEVEL: u32 = 64;
/// Ids remembered as unknown.
const MAX_UNKNOWN: usize = 1_024;

struct Known {
    cgroup: Cgroup,
    /// Last time that somebody asked.
    used: Instant,
    /// When a scan first missed it.
    gone: Option<Instant>,
}

/// What a [`CgroupTree`] holds and has done, for the agent's own telemetry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeStats {
    /// Names held, those of removed cgroups included.
    pub entries: usize,
    /// Scans made.
    pub scans: u64,
    /// Names dropped before their time because the limit was reached.
    pub evicted: u64,
    /// Scans that ended at their limit of visits.
    pub truncated: u64,
}

/// Names of cgroups by id. Reads the tree when asked for an id that it does not know.
pub struct CgroupTree {
    root: PathBuf,
    limits: TreeLimits,
    known: HashMap<u64, Known>,
    unknown: HashMap<u64, Instant>,
    scanned: Option<Instant>,
    stats: TreeStats,
}

impl std::fmt::Debug for CgroupTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CgroupTree").field("root", &self.root).field("stats", &self.stats()).finish()
    }
}

impl CgroupTree {
    /// An empty tree over the directory of the root; nothing is read yet.
    pub fn new(root: &Path, limits: TreeLimits) -> Self {
        Self {
            root: root.to_owned(),
            limits,
            known: HashMap::new(),
            unknown: HashMap::new(),
            scanned: None,
            stats: TreeStats::default(),
        }
    }

    /// The cgroup of an id. Blocks for a scan of the tree when the id is new, at most once in
    /// [`TreeLimits::pause`]; until then a new id is unknown.
    pub fn get(&mut self, id: u64, now: Instant) -> Option<&Cgroup> {
        if !self.known.contains_key(&id) {
            self.look_for(id, now);
        }
        let known = self.known.get_mut(&id)?;
        known.used = now;
        Some(&known.cgroup)
    }

    /// The cgroup of an id that should have this path below the root, when nothing is known of the id yet: one
    /// look at the directory instead of a scan, at any time. None when the directory there has another id.
    pub fn get_at(&mut self, id: u64, path: &str, now: Instant) -> Option<&Cgroup> {
        if !self.known.contains_key(&id) {
            let below = Path::new(path).strip_prefix("/").ok()?;
            let metadata = std::fs::metadata(self.root.join(below)).ok()?;
            if metadata.ino() != id || !metadata.is_dir() {
                return None;
            }
            let level = u32::try_from(below.components().count()).unwrap_or(u32::MAX);
            self.unknown.remove(&id);
            self.insert(Cgroup { id, level, path: path.into() }, id, now);
        }
        let known = self.known.get_mut(&id)?;
        known.used = now;
        Some(&known.cgroup)
    }

    /// Whether the cgroup of an id has been removed, as far as that can be told: false also for what nobody knows and for
    /// the root. Looks at the directory; for an id without a name it may scan, as [`Self::get`] does.
    pub fn is_gone(&mut self, id: u64, now: Instant) -> bool {
        if id == 0 || id == ROOT_ID {
            return false;
        }
        let Some(known) = self.known.get(&id) else {
            self.look_for(id, now);
            // A scan that did not get everywhere has not seen that it is not there.
            return self.stats.truncated == 0 && self.unknown.contains_key(&id);
        };
        let below = known.cgroup.path.trim_start_matches('/');
        match std::fs::metadata(self.root.join(below)) {
            Ok(metadata) => metadata.ino() != id,
            // A path that was not UTF-8 leads nowhere.
            Err(error) => error.kind() == io::ErrorKind::NotFound && !below.contains('\u{fffd}'),
        }
    }

    /// What it holds and has done.
    pub fn stats(&self) -> TreeStats {
        TreeStats { entries: self.known.len(), ..self.stats }
    }

    fn look_for(&mut self, id: u64, now: Instant) {
        let since = |then: Instant| now.saturating_duration_since(then);
        if self.unknown.get(&id).is_some_and(|&then| since(then) < self.limits.unknown)
            || self.scanned.is_some_and(|then| since(then) < self.limits.pause)
        {
            return;
        }
        self.scanned = Some(now);
        self.scan(id, now);
        if !self.known.contains_key(&id) {
            if self.unknown.len() >= MAX_UNKNOWN {
                self.unknown.clear();
            }
            self.unknown.insert(id, now);
        }
    }

    fn scan(&mut self, wanted: u64, now: Instant) {
        self.stats.scans += 1;
        let linger = self.limits.linger;
        self.known
            .retain(|_, known| known.gone.is_none_or(|gone| now.saturating_duration_since(gone) < linger));

        let mut seen = HashSet::new();
        let mut visits = self.limits.visits;
        let mut ahead: Vec<(PathBuf, u32)> = Vec::new();
        if let Ok(metadata) = std::fs::metadata(&self.root) {
            seen.insert(metadata.ino());
            self.insert(Cgroup { id: metadata.ino(), level: 0, path: "/".into() }, wanted, now);
            ahead.push((PathBuf::new(), 0));
        }
        let mut truncated = false;
        while let Some((below, level)) = ahead.pop() {
            // A directory that has gone in between is no news.
            let Ok(entries) = std::fs::read_dir(self.root.join(&below)) else { continue };
            for entry in entries.filter_map(Result::ok) {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                if visits == 0 || level >= MAX_LEVEL {
                    truncated = true;
                    break;
                }
                visits -= 1;
                let (id, path, level) = (entry.ino(), below.join(entry.file_name()), level + 1);
                seen.insert(id);
                if let Some(known) = self.known.get_mut(&id) {
                    known.gone = None;
                } else {
                    let text = format!("/{}", path.to_string_lossy());
                    self.insert(Cgroup { id, level, path: text.into() }, wanted, now);
                }
                ahead.push((path, level));
            }
        }
        self.unknown.retain(|id, _| !seen.contains(id));
        if truncated {
            // What was not visited is not gone.
            self.stats.truncated += 1;
            return;
        }
        for (id, known) in &mut self.known {
            if known.gone.is_none() && !seen.contains(id) {
                known.gone = Some(now);
            }
        }
    }

    /// Keeps a name while there is room; the one that is asked for also at the cost of another: first of one
    /// that is gone, else of the one that nobody asked for the longest.
    fn insert(&mut self, cgroup: Cgroup, wanted: u64, now: Instant) {
        if self.known.len() >= self.limits.entries {
            if cgroup.id != wanted {
                return;
            }
            let victim = self
                .known
                .iter()
                .min_by_key(|(_, known)| (known.gone.is_none(), known.used))
                .map(|(&id, _)| id);
            if let Some(victim) = victim {
                self.known.remove(&victim);
                self.stats.evicted += 1;
            }
        }
        self.known.insert(cgroup.id, Known { cgroup, used: now, gone: None });
    }
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
        let path = OsStr::from_bytes(path).to_string_lossy().into_owned();
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
    use super::*;

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

    /// A tree of plain directories stands in for a cgroup file system: ids are inode numbers there too.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("probe-cgroup-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
        fn add(&self, below: &str) -> u64 {
            let path = self.0.join(below);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("cgroup.procs"), "").unwrap();
            std::fs::metadata(path).unwrap().ino()
        }
        fn remove(&self, below: &str) {
            std::fs::remove_dir_all(self.0.join(below)).unwrap();
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn path(tree: &mut CgroupTree, id: u64, now: Instant) -> Option<(String, u32)> {
        tree.get(id, now).map(|cgroup| (cgroup.path.to_string(), cgroup.level))
    }

    #[test]
    fn ids_become_paths_and_scans_are_rare() {
        let directory = Directory::new("tree");
        let inner = directory.add("a/b");
        let mut tree = CgroupTree::new(&directory.0, TreeLimits::default());
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);

        assert_eq!(path(&mut tree, inner, at(0)), Some(("/a/b".into(), 2)));
        let root = std::fs::metadata(&directory.0).unwrap().ino();
        assert_eq!(path(&mut tree, root, at(0)), Some(("/".into(), 0)));
        assert_eq!(tree.stats(), TreeStats { entries: 3, scans: 1, evicted: 0, truncated: 0 });

        let late = directory.add("late");
        assert_eq!(path(&mut tree, late, at(900)), None, "within the pause");
        assert_eq!(path(&mut tree, late, at(1_000)), Some(("/late".into(), 1)));
        for ms in 2_000..2_010 {
            assert_eq!(path(&mut tree, u64::MAX, at(ms * 10)), None);
        }
        assert_eq!(tree.stats().scans, 3, "an unknown id is not looked for again and again");

        directory.remove("a");
        assert_eq!(path(&mut tree, inner, at(30_000)), Some(("/a/b".into(), 2)));
        assert_eq!(path(&mut tree, u64::MAX - 1, at(40_000)), None, "this scan notices");
        assert_eq!(path(&mut tree, inner, at(330_000)), Some(("/a/b".into(), 2)), "names outlive cgroups");
        assert_eq!(path(&mut tree, u64::MAX - 2, at(341_000)), None);
        assert_eq!(path(&mut tree, inner, at(341_000)), None, "for a while");
    }

    #[test]
    fn removed_cgroups_are_gone_and_nothing_else_is() {
        let directory = Directory::new("gone");
        let (here, there) = (directory.add("a/here"), directory.add("a/there"));
        let mut tree = CgroupTree::new(&directory.0, TreeLimits::default());
        let now = Instant::now();
        for id in [0, ROOT_ID, here, there] {
            assert!(!tree.is_gone(id, now), "{id}");
        }
        directory.remove("a/there");
        assert!(tree.is_gone(there, now) && !tree.is_gone(here, now));
        assert!(!tree.is_gone(u64::MAX, now), "not looked for yet: a scan was just made");
        assert!(tree.is_gone(u64::MAX, now + Duration::from_secs(2)), "a whole scan did not find it");
        let limits = TreeLimits { visits: 1, ..TreeLimits::default() };
        let mut tree = CgroupTree::new(&directory.0, limits);
        assert!(!tree.is_gone(u64::MAX, now), "a scan that was cut short proves nothing");
    }

    #[test]
    fn a_path_that_is_told_needs_no_scan() {
        let directory = Directory::new("told");
        let inner = directory.add("a/b");
        let mut tree = CgroupTree::new(&directory.0, TreeLimits::default());
        let now = Instant::now();
        assert_eq!(tree.get_at(inner, "/a", now), None, "another cgroup's path");
        assert_eq!(tree.get_at(inner, "/a/c", now), None, "no such path");
        assert_eq!(tree.get_at(inner, "a/b", now), None, "not a path below the root");
        let found = tree.get_at(inner, "/a/b", now).map(|cgroup| (cgroup.path.to_string(), cgroup.level));
        assert_eq!(found, Some(("/a/b".into(), 2)));
        assert_eq!(path(&mut tree, inner, now), Some(("/a/b".into(), 2)));
        assert_eq!(tree.stats().scans, 0);
    }

    #[test]
    fn names_and_visits_are_limited() {
        let directory = Directory::new("limits");
        let ids: Vec<u64> = (0..20).map(|index| directory.add(&format!("c{index}"))).collect();
        let limits = TreeLimits { entries: 5, pause: Duration::ZERO, ..TreeLimits::default() };
        let mut tree = CgroupTree::new(&directory.0, limits);
        let start = Instant::now();
        for (index, &id) in ids.iter().enumerate() {
            let now = start + Duration::from_secs(index as u64);
            assert_eq!(path(&mut tree, id, now), Some((format!("/c{index}"), 1)));
            assert!(tree.stats().entries <= 5);
        }
        let limits = TreeLimits { visits: 7, ..TreeLimits::default() };
        let mut tree = CgroupTree::new(&directory.0, limits);
        assert_eq!(path(&mut tree, u64::MAX, start), None);
        assert_eq!(tree.stats(), TreeStats { entries: 8, scans: 1, evicted: 0, truncated: 1 });
    }

    #[test]
    fn paths_lead_to_cgroups_of_this_hierarchy_only() {
        let directory = Directory::new("locate");
        let inner = directory.add("a/b");
        let fd = File::open(&directory.0).unwrap();
        let device = fd.metadata().unwrap().dev();
        let root = CgroupRoot { fd: fd.into(), path: directory.0.clone(), device, private: None };
        for given in ["/a/b", "a/b", "/a/b/"] {
            let found = root.locate(Path::new(given)).unwrap();
            assert_eq!((found.id, found.level, &*found.path), (inner, 2, "/a/b"), "{given}");
        }
        let whole = directory.0.join("a/b");
        assert_eq!(root.id_of(&whole).unwrap(), inner);
        assert_eq!(root.locate(Path::new("/")).unwrap().level, 0);
        assert_eq!(&*root.locate(&directory.0).unwrap().path, "/");
        for (given, expected) in
            [("/a/c", "no cgroup"), ("/a/../a", "not a cgroup"), ("a/b/cgroup.procs", "not a cgroup")]
        {
            let error = root.locate(Path::new(given)).unwrap_err().to_string();
            assert!(error.contains(expected), "{given}: {error}");
        }
    }
}
