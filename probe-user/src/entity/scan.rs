//! Containers and pods that run now, found by walking the cgroup tree: for `--container` and `--pod`.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::container::pod_of;
use super::container_of;

/// Directories visited at most: a tree made to be endless must not hold the command up.
const MOST: usize = 100_000;

/// Container ids and the topmost cgroup of each, below the root directory of cgroup v2. What cannot be read is passed over:
/// cgroups come and go meanwhile.
#[must_use]
pub fn containers_below(root: &Path) -> BTreeMap<String, PathBuf> {
    let mut containers = BTreeMap::new();
    walk(root, |path| {
        let below = path.strip_prefix(root).unwrap_or(path);
        if let Some(container) = container_of(&[b"/", below.as_os_str().as_bytes()].concat()) {
            // What lies below a container's cgroup belongs to it, unless it is a container of its own.
            containers.entry(container.container_id).or_insert_with(|| path.to_owned());
        }
    });
    containers
}

/// The same of Kubernetes' pods, by uid.
#[must_use]
pub fn pods_below(root: &Path) -> BTreeMap<String, PathBuf> {
    let mut pods = BTreeMap::new();
    walk(root, |path| {
        if let Some(uid) = path.file_name().and_then(|name| pod_of(name.as_bytes())) {
            pods.entry(uid).or_insert_with(|| path.to_owned());
        }
    });
    pods
}

/// Shows every directory below the root, parents first.
fn walk(root: &Path, mut show: impl FnMut(&Path)) {
    let mut waiting = vec![root.to_owned()];
    let mut visited = 0;
    while let Some(directory) = waiting.pop() {
        visited += 1;
        if visited > MOST {
            tracing::warn!("more than {MOST} cgroups: containers may be missing");
            break;
        }
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = entry.path();
            show(&path);
            waiting.push(path);
        }
    }
}
