//! `probe-ebpf/prebuilt/manifest.toml`: which sources and which toolchain the committed objects came from.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::toolchain::Versions;

use super::build::entries;

/// Where the objects that ship are.
pub(super) const PREBUILT: &str = "probe-ebpf/prebuilt";
/// Said wherever sources and objects have come apart.
pub(super) const REMEDY: &str = "run `cargo xtask ebpf`, then `cargo xtask test`, and commit probe-ebpf/prebuilt together with the sources";

/// Files and directories that decide the objects' bytes. One that is absent counts for nothing.
const SOURCES: [&str; 6] = [
    "probe-common/Cargo.toml",
    "probe-common/src",
    "probe-ebpf/.cargo",
    "probe-ebpf/Cargo.lock",
    "probe-ebpf/Cargo.toml",
    "probe-ebpf/src",
];
/// probe-common inherits this from the workspace; the rest of that file is user space's.
const EDITION: &str = "Cargo.toml workspace.package.edition";

const HEADER: &str = "\
# Written by `cargo xtask ebpf`, proved by `cargo xtask ebpf --check`; not to be edited.
# After a merge conflict, run the former.

";

/// File name -> contents of an object.
pub(super) type Objects = BTreeMap<String, Vec<u8>>;
/// Path in the repository -> sha256 of what is there.
pub(super) type Hashes = BTreeMap<String, String>;

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) toolchain: Versions,
    objects: BTreeMap<String, Object>,
    sources: Hashes,
}

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Object {
    /// In bytes.
    size: usize,
    sha256: String,
}

impl Object {
    fn new(bytes: &[u8]) -> Self {
        Self { size: bytes.len(), sha256: sha256(bytes) }
    }
}

impl Manifest {
    pub(super) fn new(toolchain: Versions, sources: Hashes, objects: &Objects) -> Self {
        let objects = objects.iter().map(|(name, bytes)| (name.clone(), Object::new(bytes))).collect();
        Self { toolchain, objects, sources }
    }

    pub(super) fn read(root: &Path) -> Result<Self> {
        let path = path(root);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}: {REMEDY}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is damaged: {REMEDY}", path.display()))
    }

    pub(super) fn write(&self, root: &Path) -> Result<()> {
        let text = toml::to_string(self).context("cannot write the manifest as TOML")?;
        replace(&path(root), format!("{HEADER}{text}").as_bytes())
    }

    /// Every way in which the tree is not what this manifest says, one line each.
    pub(super) fn differences(&self, sources: &Hashes, objects: &Objects) -> Vec<String> {
        let Self { toolchain: _, objects: known_objects, sources: known_sources } = self;
        let objects = objects.iter().map(|(name, bytes)| (name.clone(), Object::new(bytes))).collect();
        let mut lines = differing(known_sources, sources, "has changed since the objects were built");
        lines.extend(differing(known_objects, &objects, "is not the object that was built"));
        lines
    }
}

fn differing<T: PartialEq>(
    known: &BTreeMap<String, T>,
    found: &BTreeMap<String, T>,
    changed: &str,
) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, value) in known {
        match found.get(name) {
            None => lines.push(format!("{name} is in the manifest but not in the tree")),
            Some(other) if other != value => lines.push(format!("{name} {changed}")),
            Some(_) => {}
        }
    }
    let unknown = found.keys().filter(|name| !known.contains_key(*name));
    lines.extend(unknown.map(|name| format!("{name} is in the tree but not in the manifest")));
    lines
}

/// Hashes what decides the objects' bytes.
pub(super) fn hash_sources(root: &Path) -> Result<Hashes> {
    let mut hashes = Hashes::new();
    for source in SOURCES {
        hash_into(&mut hashes, root, &root.join(source))?;
    }
    let workspace = root.join("Cargo.toml");
    let text =
        fs::read_to_string(&workspace).with_context(|| format!("cannot read {}", workspace.display()))?;
    let table: toml::Table = text.parse().with_context(|| format!("{} is no TOML", workspace.display()))?;
    let edition =
        table.get("workspace").and_then(|workspace| workspace.get("package")?.get("edition")?.as_str());
    hashes.insert(EDITION.into(), sha256(edition.unwrap_or_default().as_bytes()));
    Ok(hashes)
}

fn hash_into(hashes: &mut Hashes, root: &Path, path: &Path) -> Result<()> {
    if path.is_dir() {
        return entries(path)?.iter().try_for_each(|entry| hash_into(hashes, root, entry));
    }
    if !path.exists() {
        return Ok(());
    }
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.strip_prefix(root).unwrap_or(path).display().to_string();
    hashes.insert(name, sha256(&bytes));
    Ok(())
}

/// The objects in the tree, whether the manifest knows them or not.
pub(super) fn read_objects(root: &Path) -> Result<Objects> {
    let mut objects = Objects::new();
    for path in entries(&root.join(PREBUILT))? {
        if path.extension().is_some_and(|extension| extension == "o")
            && let Some(name) = path.file_name().and_then(|name| name.to_str())
        {
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            objects.insert(name.to_owned(), bytes);
        }
    }
    Ok(objects)
}

/// Writes beside the file and renames: a build of user space that runs meanwhile never sees half an object.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn path(root: &Path) -> PathBuf {
    root.join(PREBUILT).join("manifest.toml")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources() -> Hashes {
        Hashes::from([("a.rs".into(), sha256(b"fn a() {}")), ("b.rs".into(), sha256(b""))])
    }

    fn objects() -> Objects {
        Objects::from([("tcp.bpf.o".into(), b"\x7fELF tcp".to_vec())])
    }

    fn manifest() -> Manifest {
        let toolchain = Versions {
            rustc: "rustc 1".into(),
            bpf_linker: "2".into(),
            llvm: "3".into(),
            rustflags: vec!["-C4".into()],
        };
        Manifest::new(toolchain, sources(), &objects())
    }

    #[test]
    fn the_tree_it_was_made_from_has_no_differences() {
        assert_eq!(manifest().differences(&sources(), &objects()), Vec::<String>::new());
    }

    #[test]
    fn every_difference_is_named() {
        type Change = fn(&mut Hashes, &mut Objects);
        let cases: [(&str, Change, &str); 5] = [
            ("one line", |s, _| drop(s.insert("a.rs".into(), sha256(b"fn a() { }"))), "a.rs has changed"),
            ("a new file", |s, _| drop(s.insert("c.rs".into(), sha256(b""))), "c.rs is in the tree but not"),
            ("a file gone", |s, _| drop(s.remove("b.rs")), "b.rs is in the manifest but not"),
            (
                "one byte",
                |_, o| drop(o.insert("tcp.bpf.o".into(), b"\x7fELF tcq".to_vec())),
                "tcp.bpf.o is not the object",
            ),
            (
                "a stray object",
                |_, o| drop(o.insert("x.bpf.o".into(), vec![])),
                "x.bpf.o is in the tree but not",
            ),
        ];
        for (case, change, expected) in cases {
            let (mut sources, mut objects) = (sources(), objects());
            change(&mut sources, &mut objects);
            let lines = manifest().differences(&sources, &objects);
            assert!(lines.len() == 1 && lines[0].starts_with(expected), "{case}: {lines:?}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let text = toml::to_string(&manifest()).unwrap();
        assert_eq!(toml::from_str::<Manifest>(&format!("{HEADER}{text}")).unwrap(), manifest());
    }
}
