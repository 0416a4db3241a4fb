//! `cargo xtask ebpf --check`: the committed objects are what the sources and the pinned toolchain make.

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{is_root, say},
    toolchain,
};

use super::{
    build, load,
    manifest::{self, Manifest, Objects, REMEDY},
};

pub(super) fn run(root: &Path) -> Result<()> {
    let manifest = Manifest::read(root)?;
    let committed = manifest::read_objects(root)?;
    let differences = manifest.differences(&manifest::hash_sources(root)?, &committed);
    if !differences.is_empty() {
        bail!("{}\n{REMEDY}", differences.join("\n"));
    }
    no_private_paths(root, &committed)?;
    say(format_args!("{} objects: sources and bytes are those of the manifest", committed.len()));
    verify(&committed)?;

    let installed = toolchain::installed(root)?;
    let rebuilt = rebuild(root)?;
    no_private_paths(root, &rebuilt)?;
    if installed == manifest.toolchain {
        same_bytes(&committed, &rebuilt)?;
        say(format_args!("{} objects: rebuilt, byte for byte the same", rebuilt.len()));
        return Ok(());
    }
    // The distribution has moved on. Other bytes are no defect then, but a verifier must accept them too.
    verify(&rebuilt)?;
    say(format_args!(
        "BYTES WERE NOT COMPARED: the manifest says {}; installed is {}. To re-pin, {REMEDY}",
        describe(&manifest.toolchain),
        describe(&installed),
    ));
    Ok(())
}

/// Has the running kernel judge the objects, where that is allowed.
pub(super) fn verify(objects: &Objects) -> Result<()> {
    if is_root() {
        return load::load_all(objects);
    }
    say("NOT LOADED INTO THIS KERNEL, which needs root: no verifier has seen these objects here.");
    Ok(())
}

fn describe(versions: &toolchain::Versions) -> String {
    let toolchain::Versions { rustc, bpf_linker, llvm, rustflags } = versions;
    format!("{rustc}, bpf-linker {bpf_linker}, LLVM {llvm}, {}", rustflags.join(" "))
}

/// In a directory of its own: what an earlier build left behind proves nothing.
fn rebuild(root: &Path) -> Result<Objects> {
    let dir = root.join("target/ebpf-check");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    let objects = build::build(root, &dir)?;
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    Ok(objects)
}

fn same_bytes(committed: &Objects, rebuilt: &Objects) -> Result<()> {
    for (name, bytes) in rebuilt {
        let Some(known) = committed.get(name) else {
            bail!("{name} is not committed: {REMEDY}");
        };
        if known != bytes {
            let at = known.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            bail!(
                "{name} differs from its rebuild, first at byte {at} ({} bytes committed, {} rebuilt): {REMEDY}",
                known.len(),
                bytes.len()
            );
        }
    }
    match committed.keys().find(|name| !rebuilt.contains_key(*name)) {
        Some(name) => bail!("{name} is committed but no source builds it: {REMEDY}"),
        None => Ok(()),
    }
}

/// A path of the machine that built an object has no place in it.
pub(super) fn no_private_paths(root: &Path, objects: &Objects) -> Result<()> {
    let mut places = vec![root.to_owned(), build::cargo_home()?];
    places.extend(env::var_os("HOME").map(Into::into));
    for (name, bytes) in objects {
        if let Some(place) = places.iter().find_map(|place| path_in(bytes, &place.to_string_lossy())) {
            bail!(
                "{name} holds a path of the machine that built it, {place}: extend the remapping in xtask/src/ebpf/build.rs"
            );
        }
    }
    Ok(())
}

/// The first text in `bytes` that starts with the directory `place`.
fn path_in(bytes: &[u8], place: &str) -> Option<String> {
    let needle = format!("{}/", place.trim_end_matches('/'));
    if needle == "/" {
        return None;
    }
    let start = bytes.windows(needle.len()).position(|window| window == needle.as_bytes())?;
    let text = bytes.get(start..)?.iter().take_while(|byte| byte.is_ascii_graphic());
    Some(text.map(|byte| char::from(*byte)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(bytes: &[u8]) -> Objects {
        Objects::from([("tcp.bpf.o".into(), bytes.to_vec())])
    }

    #[test]
    fn one_byte_more_less_or_other_is_seen() {
        same_bytes(&objects(b"abc"), &objects(b"abc")).unwrap();
        for (committed, at) in [(&b"abd"[..], 2), (b"ab", 2), (b"abcd", 3), (b"", 0)] {
            let error = same_bytes(&objects(committed), &objects(b"abc")).unwrap_err().to_string();
            assert!(
                error.contains(&format!("tcp.bpf.o differs from its rebuild, first at byte {at} ")),
                "{error}"
            );
        }
    }

    #[test]
    fn an_object_too_many_or_too_few_is_seen() {
        let none = Objects::new();
        assert!(same_bytes(&none, &objects(b"")).unwrap_err().to_string().contains("is not committed"));
        assert!(same_bytes(&objects(b""), &none).unwrap_err().to_string().contains("no source builds it"));
    }

    #[test]
    fn private_paths_are_found() {
        for (bytes, place, found) in [
            (&b"\0/home/me/probe/src/a.rs\0b"[..], "/home/me", Some("/home/me/probe/src/a.rs")),
            (b"\0/home/me/probe/src/a.rs\0b", "/home/me/", Some("/home/me/probe/src/a.rs")),
            (b"\0/home/men/a.rs\0", "/home/me", None),
            (b"\0/usr/src/a.rs\0", "/", None),
            (b"probe/probe-ebpf/src/lib.rs", "/probe", None),
            (b"", "/home/me", None),
        ] {
            assert_eq!(path_in(bytes, place).as_deref(), found, "{place}");
        }
    }
}
