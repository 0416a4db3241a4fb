//! Whose it is: cgroup id → container, systemd unit or host, process → names. Caches are bounded; what is unknown is absent.

mod carry;
pub mod container;
pub mod kube;
pub mod names;
pub mod process;
mod scan;
mod unit;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use container::{ContainerIdentity, Runtime, container_of};
pub use kube::{Directory, KubeNames, Names};
pub use names::PeerNames;
pub use process::{ProcessLimits, ProcessNames, Processes, living};
pub use scan::{containers_below, pods_below};
pub use unit::unit_of;

use crate::kernel::cgroup::{CgroupTree, ProcessCgroups, ROOT_ID, TreeLimits, TreeStats, process_cgroups};

/// Whose a series or an event is. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entity {
    /// The host: whatever is in no container and in no unit.
    Host,
    /// A systemd unit of the host, by its name as [`unit_of`] has it.
    Unit(Arc<str>),
    /// A container.
    Container(Arc<ContainerIdentity>),
}

impl Entity {
    /// The entity of a cgroup path.
    pub fn of_path(path: &[u8]) -> Self {
        match container_of(path) {
            Some(container) => Self::Container(Arc::new(container)),
            None => unit_of(path).map_or(Self::Host, |unit| Self::Unit(unit.into())),
        }
    }

    /// The container, if it is one.
    pub fn container(&self) -> Option<&ContainerIdentity> {
        match self {
            Self::Host | Self::Unit(_) => None,
            Self::Container(container) => Some(container),
        }
    }
}

/// The owner of something, as far as its cgroup tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Container, unit or host.
    pub entity: Entity,
    /// Path of the cgroup below its mount; for `linux.cgroup.path`. Text sinks must escape it.
    pub cgroup_path: Arc<str>,
}

/// Owners remembered beside the tree, each way; the tree has names for longer.
const MAX_OWNERS: usize = 8_192;
/// How long the cgroup of a process in the root of v2 is taken from memory: pids come again, processes move.
const PROCESS_MEMORY: Duration = Duration::from_secs(5);

/// What [`Entities`] holds and has done, for the agent's own telemetry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntityStats {
    /// Names of cgroups.
    pub cgroups: TreeStats,
    /// Questions that had no answer: the cgroup was gone, or not visible from here.
    pub unresolved: u64,
}

/// Finds owners by cgroup id.
#[derive(Debug)]
pub struct Entities {
    tree: Option<CgroupTree>,
    /// None: pids here are not the kernel's.
    proc: Option<PathBuf>,
    by_cgroup: HashMap<u64, Owner>,
    by_process: HashMap<u32, (Option<Owner>, Instant)>,
    unresolved: u64,
    /// None: nobody tells names of pods.
    kube: Option<Arc<Directory>>,
}

impl Entities {
    /// Over the root directory of cgroup v2; None where there is none: then only processes tell their
    /// containers. And processes tell only where this one sees the host's pids ([`sees_host_pids`]).
    pub fn new(cgroup_root: Option<&Path>, limits: TreeLimits) -> Self {
        let proc = sees_host_pids().then_some(Path::new("/proc"));
        Self::at(proc, cgroup_root, limits)
    }

    /// With another directory in place of /proc; None: processes tell nothing.
    pub fn at(proc: Option<&Path>, cgroup_root: Option<&Path>, limits: TreeLimits) -> Self {
        Self {
            tree: cgroup_root.map(|root| CgroupTree::new(root, limits)),
            proc: proc.map(Path::to_owned),
            by_cgroup: HashMap::new(),
            by_process: HashMap::new(),
            unresolved: 0,
            kube: None,
        }
    }

    /// With who knows the names of pods, or nobody.
    #[must_use]
    pub fn with_kube(self, kube: Option<Arc<Directory>>) -> Self {
        Self { kube, ..self }
    }

    /// The owner by cgroup id (v2), else by process. None: unknown.
    ///
    /// A process in the v2 root is looked up in /proc/PID/cgroup: where the kubelet still uses v1, every
    /// process is in the v2 root and the v1 paths tell the container. May block for a scan of the tree, at
    /// most once a second.
    pub fn resolve(&mut self, cgroup_id: u64, tgid: Option<u32>, now: Instant) -> Option<Owner> {
        let tgid = tgid.filter(|&tgid| tgid != 0);
        let owner = match (cgroup_id, tgid) {
            (0, None) => None,
            (0 | ROOT_ID, Some(tgid)) => self.of_process(cgroup_id, tgid, now),
            (_, Some(tgid)) if self.tree.is_none() => self.of_process(0, tgid, now),
            (_, _) => self.of_cgroup(cgroup_id, tgid, now),
        };
        self.unresolved += u64::from(owner.is_none());
        owner
    }

    /// The entity alone, with the host for what is unknown (which [`Self::stats`] counts).
    pub fn entity_of(&mut self, cgroup_id: u64, tgid: Option<u32>) -> Entity {
        self.resolve(cgroup_id, tgid, Instant::now()).map_or(Entity::Host, |owner| owner.entity)
    }

    /// Notes all cgroups (v2) that there are, as [`CgroupTree::note_all`].
    pub fn note_cgroups(&mut self, now: Instant) {
        if let Some(tree) = &mut self.tree {
            tree.note_all(now);
        }
    }

    /// The kernel said that a cgroup (v2) was made, with this path below the root.
    pub fn cgroup_made(&mut self, id: u64, path: &str, now: Instant) {
        if let Some(tree) = &mut self.tree {
            tree.made(id, path, now);
        }
    }

    /// The kernel said that a cgroup (v2) was removed. Its name is kept for what is still to be told of it.
    pub fn cgroup_removed(&mut self, id: u64, now: Instant) {
        if let Some(tree) = &mut self.tree {
            tree.removed(id, now);
        }
    }

    /// Whether a cgroup (v2) has been removed; false for what is not known, as [`CgroupTree::is_gone`].
    pub fn is_gone(&mut self, cgroup_id: u64) -> bool {
        self.tree.as_mut().is_some_and(|tree| tree.is_gone(cgroup_id, Instant::now()))
    }

    /// What it holds and has done.
    pub fn stats(&self) -> EntityStats {
        let cgroups = self.tree.as_ref().map(CgroupTree::stats).unwrap_or_default();
        EntityStats { cgroups, unresolved: self.unresolved }
    }

    fn of_cgroup(&mut self, id: u64, tgid: Option<u32>, now: Instant) -> Option<Owner> {
        if let Some(owner) = self.by_cgroup.get(&id) {
            return Some(owner.clone());
        }
        let tree = self.tree.as_mut()?;
        // The process usually still is where its socket was made: its own word, checked against the
        // directory's inode number, spares a scan and is there at once.
        let told = tgid
            .and_then(|tgid| read_cgroups(self.proc.as_deref(), tgid))
            .and_then(|cgroups| cgroups.unified);
        let path = told.and_then(|path| tree.get_at(id, &path, now).map(|cgroup| Arc::clone(&cgroup.path)));
        let path = path.or_else(|| tree.get(id, now).map(|cgroup| Arc::clone(&cgroup.path)))?;
        let owner =
            Owner { entity: entity_of(path.as_bytes(), self.kube.as_deref(), now), cgroup_path: path };
        if self.by_cgroup.len() >= MAX_OWNERS {
            self.by_cgroup.clear();
        }
        self.by_cgroup.insert(id, owner.clone());
        Some(owner)
    }

    /// For processes in the v2 root, and for those whose cgroup id nobody knows.
    fn of_process(&mut self, cgroup_id: u64, tgid: u32, now: Instant) -> Option<Owner> {
        let at_root = || Owner { entity: Entity::Host, cgroup_path: "/".into() };
        if let Some((owner, read)) = self.by_process.get(&tgid)
            && now.saturating_duration_since(*read) < PROCESS_MEMORY
        {
            return owner.clone().or_else(|| (cgroup_id == ROOT_ID).then(at_root));
        }
        let owner = read_cgroups(self.proc.as_deref(), tgid)
            .map(|cgroups| owner_of_process(&cgroups, self.kube.as_deref(), now));
        if self.by_process.len() >= MAX_OWNERS {
            self.by_process.clear();
        }
        self.by_process.insert(tgid, (owner.clone(), now));
        owner.or_else(|| (cgroup_id == ROOT_ID).then(at_root))
    }
}

/// Whether pids mean here what they mean to the kernel's programs: whether this process is in the initial pid
/// namespace. Elsewhere the same number is another process, or none; a container needs the host's pid
/// namespace (`hostPID: true`).
pub fn sees_host_pids() -> bool {
    // PROC_PID_INIT_INO of include/linux/proc_ns.h, the same in every kernel.
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name == Path::new("pid:[4026531836]"))
}

/// What a descriptor of a process is, as /proc names it: a path, `pipe:[INODE]`. A link is read, nothing is opened: a file system
/// that hangs does not hang who asks. Other users' processes need CAP_SYS_PTRACE.
#[must_use]
pub fn descriptor_target(tgid: u32, descriptor: u32) -> Option<Box<str>> {
    let sees_all = *SEES_HOST_PIDS.get_or_init(sees_host_pids);
    let link = sees_all.then(|| std::fs::read_link(format!("/proc/{tgid}/fd/{descriptor}")))?;
    Some(link.ok()?.to_string_lossy().into())
}

static SEES_HOST_PIDS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();

fn read_cgroups(proc: Option<&Path>, tgid: u32) -> Option<ProcessCgroups> {
    let text = process::read_limited(&proc?.join(tgid.to_string()).join("cgroup")).ok()?;
    Some(process_cgroups(&text))
}

/// The entity of a cgroup path; a container with the place for its names.
fn entity_of(path: &[u8], kube: Option<&Directory>, now: Instant) -> Entity {
    let mut entity = Entity::of_path(path);
    if let (Entity::Container(container), Some(kube)) = (&mut entity, kube) {
        kube.meet(Arc::make_mut(container), now);
    }
    entity
}

/// The path that names a container, v2's first; else one that names a unit; else v2's own.
fn owner_of_process(cgroups: &ProcessCgroups, kube: Option<&Directory>, now: Instant) -> Owner {
    let ProcessCgroups { unified, legacy } = cgroups;
    let mut found = Owner { entity: Entity::Host, cgroup_path: unified.as_deref().unwrap_or("/").into() };
    for path in unified.iter().chain(legacy) {
        let entity = entity_of(path.as_bytes(), kube, now);
        let is_container = entity.container().is_some();
        if is_container || entity != Entity::Host && found.entity == Entity::Host {
            found = Owner { entity, cgroup_path: path.as_str().into() };
        }
        if is_container {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const ID: &str = "3f37e9702f3961bba773444f8be29ad8c0ffee00c0ffee00c0ffee00c0ffee00";

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("probe-entity-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
        fn cgroup(&self, below: &str) -> u64 {
            let path = self.0.join("cgroup").join(below);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::metadata(path).unwrap().ino()
        }
        fn process(&self, tgid: u32, cgroups: &str) {
            let path = self.0.join("proc").join(tgid.to_string());
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("cgroup"), cgroups).unwrap();
        }
        fn entities(&self) -> Entities {
            Entities::at(Some(&self.0.join("proc")), Some(&self.0.join("cgroup")), TreeLimits::default())
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn container(owner: Option<&Owner>) -> Option<&str> {
        owner?.entity.container().map(|container| container.container_id.as_str())
    }

    #[test]
    fn owners_by_cgroup_by_process_and_unknown() {
        let directory = Directory::new("owners");
        let docker = directory.cgroup(&format!("docker/{ID}"));
        let service = directory.cgroup("system.slice/sshd.service");
        directory.process(10, &format!("9:memory:/docker/{ID}\n0::/\n"));
        directory.process(11, "9:memory:/user\n0::/\n");
        directory.process(12, "0::/system.slice/sshd.service\n");
        directory.process(13, "1:name=systemd:/system.slice/cron.service\n0::/\n");
        directory
            .process(14, &format!("2:memory:/docker/{ID}\n1:name=systemd:/system.slice/x.service\n0::/\n"));
        let mut entities = directory.entities();
        let now = Instant::now();
        let path = |owner: Option<Owner>| owner.map(|owner| (owner.entity, owner.cgroup_path.to_string()));

        let owner = entities.resolve(docker, None, now);
        assert_eq!(container(owner.as_ref()), Some(ID));
        assert_eq!(owner.unwrap().cgroup_path.as_ref(), format!("/docker/{ID}"));
        let service_path =
            Some((Entity::Unit("sshd.service".into()), "/system.slice/sshd.service".to_owned()));
        assert_eq!(path(entities.resolve(service, None, now)), service_path);

        let owner = entities.resolve(ROOT_ID, Some(10), now);
        assert_eq!(container(owner.as_ref()), Some(ID), "v1 tells the container");
        assert_eq!(
            path(entities.resolve(ROOT_ID, Some(13), now)),
            Some((Entity::Unit("cron.service".into()), "/system.slice/cron.service".into())),
            "v1 tells the unit"
        );
        assert_eq!(
            container(entities.resolve(ROOT_ID, Some(14), now).as_ref()),
            Some(ID),
            "rather than the unit"
        );
        assert_eq!(path(entities.resolve(ROOT_ID, Some(11), now)), Some((Entity::Host, "/".into())));
        assert_eq!(path(entities.resolve(ROOT_ID, Some(99), now)), Some((Entity::Host, "/".into())), "dead");
        assert_eq!(path(entities.resolve(0, Some(12), now)), service_path, "unknown id, known process");

        assert_eq!(entities.stats().unresolved, 0);
        assert_eq!(entities.resolve(0, None, now), None);
        assert_eq!(entities.resolve(0, Some(99), now), None);
        assert_eq!(entities.resolve(u64::MAX, Some(12), now), None, "a process elsewhere proves nothing");
        assert_eq!(entities.stats().unresolved, 3);
        assert_eq!(entities.entity_of(u64::MAX, None), Entity::Host);
    }

    #[test]
    fn a_new_container_is_known_at_once_through_its_process() {
        let directory = Directory::new("new");
        directory.cgroup("a");
        let mut entities = directory.entities();
        let now = Instant::now();
        assert_eq!(entities.resolve(u64::MAX, None, now), None, "the scan of this second is spent");
        let new = directory.cgroup(&format!("docker/{ID}"));
        assert_eq!(entities.resolve(new, None, now), None);
        directory.process(10, &format!("0::/docker/{ID}\n"));
        assert_eq!(container(entities.resolve(new, Some(10), now).as_ref()), Some(ID));
        assert_eq!(entities.stats().cgroups.scans, 1);
    }

    #[test]
    fn without_cgroup_v2_processes_still_tell() {
        let directory = Directory::new("without");
        directory.process(10, &format!("9:memory:/docker/{ID}\n"));
        let mut entities = Entities::at(Some(&directory.0.join("proc")), None, TreeLimits::default());
        assert_eq!(container(entities.resolve(0, Some(10), Instant::now()).as_ref()), Some(ID));
        assert_eq!(container(entities.resolve(77, Some(10), Instant::now()).as_ref()), Some(ID));
        assert_eq!(entities.resolve(77, None, Instant::now()), None);
        let mut blind = Entities::at(None, None, TreeLimits::default());
        assert_eq!(blind.resolve(0, Some(10), Instant::now()), None, "pids of another namespace");
    }
}
