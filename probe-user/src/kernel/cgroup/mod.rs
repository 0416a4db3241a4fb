//! The root of cgroup v2, and the names behind cgroup ids.
//!
//! Programs on cgroup hooks see the sockets of the cgroup they are attached to and of those below, so they
//! must go to the real root: inside a cgroup namespace the visible "root" is the container's own, and the hook
//! would see nobody else without a word. The real root is known by its inode number, 1.

mod text;
mod tree;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

pub use self::text::{ProcessCgroups, cgroup2_mounts, process_cgroups};
pub use self::tree::{CgroupTree, TreeLimits, TreeStats};

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
#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of plain directories stands in for a cgroup file system: ids are inode numbers there too.
    pub(super) struct Directory(pub(super) PathBuf);

    impl Directory {
        pub(super) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("probe-cgroup-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
        pub(super) fn add(&self, below: &str) -> u64 {
            let path = self.0.join(below);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("cgroup.procs"), "").unwrap();
            std::fs::metadata(path).unwrap().ino()
        }
        pub(super) fn remove(&self, below: &str) {
            std::fs::remove_dir_all(self.0.join(below)).unwrap();
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
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
