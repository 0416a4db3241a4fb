//! The names behind cgroup ids, bounded, and remembered beyond the cgroups' end.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Cgroup, ROOT_ID};

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

    /// Notes all cgroups that there are, so that they have names even if they are gone when somebody asks. Blocks for a scan; the
    /// next may come at once.
    pub fn note_all(&mut self, now: Instant) {
        self.scan(ROOT_ID, now);
    }

    /// A cgroup was made, so the kernel says, with this path below the root. Nothing is read.
    pub fn made(&mut self, id: u64, path: &str, now: Instant) {
        let level =
            u32::try_from(path.split('/').filter(|part| !part.is_empty()).count()).unwrap_or(u32::MAX);
        self.unknown.remove(&id);
        self.insert(Cgroup { id, level, path: path.into() }, id, now);
    }

    /// A cgroup was removed, so the kernel says. Its name is kept, until room is short or a scan finds that its time is over.
    pub fn removed(&mut self, id: u64, now: Instant) {
        if let Some(known) = self.known.get_mut(&id) {
            known.gone.get_or_insert(now);
        }
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

    /// Ids and paths of those that have names.
    pub fn paths(&self) -> impl Iterator<Item = (u64, &str)> {
        self.known.iter().map(|(id, known)| (*id, &*known.cgroup.path))
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
        if self.known.len() >= self.limits.entries && !self.known.contains_key(&cgroup.id) {
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
#[cfg(test)]
mod tests {
    use super::super::tests::Directory;
    use super::*;

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
    fn what_the_kernel_tells_needs_no_directory() {
        let directory = Directory::new("announced");
        let there = directory.add("there");
        let limits = TreeLimits { entries: 3, ..TreeLimits::default() };
        let mut tree = CgroupTree::new(&directory.0, limits);
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        tree.made(1 << 40, "/a/b", at(0));
        assert_eq!(path(&mut tree, 1 << 40, at(0)), Some(("/a/b".into(), 2)));
        tree.removed(1 << 40, at(1));
        tree.removed(u64::MAX, at(1));
        assert_eq!(
            path(&mut tree, 1 << 40, at(2)),
            Some(("/a/b".into(), 2)),
            "its last figures are still to come"
        );
        assert_eq!(tree.stats().scans, 0);
        // Where room is short, what is gone goes first, however lately it was asked for.
        assert_eq!(path(&mut tree, there, at(3)), Some(("/there".into(), 1)));
        assert_eq!(path(&mut tree, 1 << 40, at(4)), Some(("/a/b".into(), 2)));
        tree.made(2 << 40, "/c", at(5));
        assert_eq!(path(&mut tree, 2 << 40, at(5)), Some(("/c".into(), 1)));
        assert_eq!(path(&mut tree, there, at(5)), Some(("/there".into(), 1)));
        assert_eq!(path(&mut tree, 1 << 40, at(5)), None);
        assert_eq!(tree.stats().evicted, 1);
        // An id that nobody knew is looked for no longer once it has been told.
        assert_eq!(path(&mut tree, 3 << 40, at(10)), None);
        tree.made(3 << 40, "/late", at(10));
        assert_eq!(path(&mut tree, 3 << 40, at(10)), Some(("/late".into(), 1)));
    }

    #[test]
    fn all_that_there_are_can_be_noted() {
        let directory = Directory::new("noted");
        let inner = directory.add("a/b");
        let mut tree = CgroupTree::new(&directory.0, TreeLimits::default());
        let now = Instant::now();
        tree.note_all(now);
        // In this order: file systems give numbers out again.
        let late = directory.add("late");
        directory.remove("a");
        assert_eq!(path(&mut tree, inner, now), Some(("/a/b".into(), 2)));
        assert_eq!(path(&mut tree, late, now), Some(("/late".into(), 1)), "the next scan has not to wait");
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
}
