//! What the binary is made of: every crate that is linked into it, as a software bill of materials, and as the notices that are due to
//! whoever gets the binary.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::process::{self, output};

/// Licences that ask whoever passes a binary on to say where the source of that part is.
const SOURCE_DUE: [&str; 2] = ["MPL-2.0", "CDDL-1.0"];
/// Data that a crate brings, under another licence than its code.
const DATA: [(&str, &str); 1] =
    [("psl", "the public suffix list in it: MPL-2.0 (https://mozilla.org/MPL/2.0/)")];
/// How files with such texts begin.
const TEXTS: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

/// A crate.
#[derive(Clone, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    source: Option<String>,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Clone, Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `None`: linked.
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// All crates that are linked, by their ids, with those that each depends on.
pub(crate) struct Materials {
    own: Package,
    crates: BTreeMap<String, (Package, BTreeSet<String>)>,
    checksums: BTreeMap<(String, String), String>,
}

impl Materials {
    /// Asks cargo.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut command = process::cargo();
        command.current_dir(root).args([
            "metadata",
            "--locked",
            "--format-version=1",
            "--filter-platform=x86_64-unknown-linux-gnu",
        ]);
        let Metadata { packages, resolve } =
            serde_json::from_str(&output(&mut command)?).context("cargo metadata")?;
        let packages: BTreeMap<String, Package> =
            packages.into_iter().map(|package| (package.id.clone(), package)).collect();
        let nodes: BTreeMap<&str, &Node> =
            resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
        let own = packages.values().find(|package| package.name == "probe-user").cloned();
        let own = own.context("cargo knows no probe-user")?;

        let mut crates = BTreeMap::new();
        let mut open = vec![own.id.clone()];
        while let Some(id) = open.pop() {
            let (Some(package), Some(node)) = (packages.get(&id), nodes.get(id.as_str())) else { continue };
            // They run in the compiler, and so does what they are made of.
            let runs_elsewhere = |id: &str| {
                packages.get(id).is_some_and(|package| {
                    package.targets.iter().any(|t| t.kind.iter().any(|k| k == "proc-macro"))
                })
            };
            let linked: BTreeSet<String> = node
                .deps
                .iter()
                .filter(|dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()))
                .map(|dependency| dependency.pkg.clone())
                .filter(|id| !runs_elsewhere(id))
                .collect();
            open.extend(linked.iter().filter(|id| !crates.contains_key(*id)).cloned());
            crates.insert(id, (package.clone(), linked));
        }
        let lock: Lock = toml::from_str(&fs::read_to_string(root.join("Cargo.lock"))?)?;
        let checksums = lock
            .package
            .into_iter()
            .filter_map(|locked| Some(((locked.name, locked.version), locked.checksum?)))
            .collect();
        Ok(Self { own, crates, checksums })
    }

    /// Those that are not ours.
    fn foreign(&self) -> impl Iterator<Item = &Package> {
        self.crates.values().map(|(package, _)| package).filter(|package| package.source.is_some())
    }

    /// CycloneDX 1.5; `further` are components that are no crates.
    pub(crate) fn bill(&self, version: &str, further: Vec<Value>) -> Value {
        let component = |package: &Package| {
            let of = (package.name.clone(), package.version.clone());
            let optional = [
                (
                    "licenses",
                    package.license.as_ref().map(|license| json!([{ "expression": expression(license) }])),
                ),
                ("hashes", self.checksums.get(&of).map(|sum| json!([{ "alg": "SHA-256", "content": sum }]))),
                (
                    "externalReferences",
                    package.repository.as_ref().map(|url| json!([{ "type": "vcs", "url": url }])),
                ),
            ];
            let always = [
                ("type", json!("library")),
                ("bom-ref", json!(purl(package))),
                ("name", json!(package.name)),
                ("version", json!(package.version)),
                ("purl", json!(purl(package))),
            ];
            let optional = optional.into_iter().filter_map(|(key, value)| Some((key, value?)));
            let fields = always.into_iter().chain(optional);
            fields.map(|(key, value)| (key.to_owned(), value)).collect::<Value>()
        };
        let others = self.crates.values().filter(|(package, _)| package.id != self.own.id);
        let mut components: Vec<Value> = others.map(|(package, _)| component(package)).collect();
        components.extend(further);
        let dependencies: Vec<Value> = self
            .crates
            .values()
            .map(|(package, linked)| {
                let linked = linked.iter().filter_map(|id| self.crates.get(id));
                let mut linked: Vec<String> = linked.map(|(package, _)| purl(package)).collect();
                linked.sort();
                json!({ "ref": purl(package), "dependsOn": linked })
            })
            .collect();
        json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": { "component": {
                "type": "application",
                "bom-ref": purl(&self.own),
                "name": "probe",
                "version": version,
                "licenses": [{ "expression": self.own.license.as_deref().unwrap_or_default() }],
            }},
            "components": components,
            "dependencies": dependencies,
        })
    }

    /// Every crate with its licence and where its source is, then the texts.
    pub(crate) fn notices(&self) -> Result<String> {
        let mut notices = String::from(
            "Libraries that are part of the program `probe`, each under a licence of its own.\n\n\
             The source of every one, in exactly the form that was built, is the crate of that name and version on crates.io; that is where\n\
             the licences that ask for it (MPL-2.0, CDDL-1.0; first below) have it. Nothing was changed in any of them.\n\n",
        );
        let mut texts: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
        let due = |package: &Package| {
            DATA.iter().any(|(name, _)| *name == package.name)
                || package
                    .license
                    .as_ref()
                    .is_some_and(|license| SOURCE_DUE.iter().any(|due| license.contains(due)))
        };
        let (first, rest): (Vec<&Package>, Vec<&Package>) = self.foreign().partition(|package| due(package));
        ensure!(
            !first.is_empty(),
            "psl and inferno are gone: so may what deploy/debian/copyright says of them"
        );
        for package in first.into_iter().chain(rest) {
            let Package { name, version, license, repository, manifest_path, .. } = package;
            let license = license.as_deref().unwrap_or("see its text below");
            let repository = repository.as_deref().unwrap_or("crates.io alone");
            let data = DATA.iter().find(|(of, _)| of == name).map(|(_, data)| format!("; {data}"));
            writeln!(notices, "{name} {version}: {license}{}; {repository}", data.unwrap_or_default())?;
            let directory = manifest_path.parent().context("a manifest lies somewhere")?;
            for text in license_texts(directory)? {
                let hash: String =
                    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
                let (_, of) = texts.entry(hash).or_insert_with(|| (text, BTreeSet::new()));
                of.insert(format!("{name} {version}"));
            }
        }
        for (text, of) in texts.values() {
            let of: Vec<&str> = of.iter().map(String::as_str).collect();
            write!(notices, "\n{}\n{}\n\n{}\n", "=".repeat(80), of.join(", "), text.trim_end())?;
        }
        Ok(notices)
    }
}

/// A package URL, as scanners look vulnerabilities up by.
fn purl(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version.replace('+', "%2B"))
}

/// Some still write `MIT/Apache-2.0`.
fn expression(license: &str) -> String {
    license.replace('/', " OR ")
}

fn license_texts(directory: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().to_uppercase()).unwrap_or_default();
        if path.is_file() && TEXTS.iter().any(|text| name.starts_with(text)) {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::repo_root;

    #[test]
    fn what_is_linked_is_named_and_nothing_else() {
        let materials = Materials::read(&repo_root().unwrap()).unwrap();
        let bill = materials.bill("1.2.3", Vec::new());
        let names: BTreeSet<&str> =
            bill["components"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        for linked in ["aya", "inferno", "psl", "ring", "tokio", "probe-common"] {
            assert!(names.contains(linked), "{linked}");
        }
        for elsewhere in ["syn", "clap_derive", "proptest", "cc", "xtask", "probe-user"] {
            assert!(!names.contains(elsewhere), "{elsewhere}");
        }
        // Whoever is depended on is there.
        let refs: BTreeSet<&str> =
            bill["dependencies"].as_array().unwrap().iter().map(|d| d["ref"].as_str().unwrap()).collect();
        for dependency in bill["dependencies"].as_array().unwrap() {
            for on in dependency["dependsOn"].as_array().unwrap() {
                assert!(refs.contains(on.as_str().unwrap()), "{on}");
            }
        }
        let notices = materials.notices().unwrap();
        for due in ["\npsl 2.", "\ninferno 0.", "COMMON DEVELOPMENT AND DISTRIBUTION LICENSE", "MPL-2.0"] {
            assert!(notices.to_uppercase().contains(&due.to_uppercase()), "{due}");
        }
    }

    #[test]
    fn expressions_are_of_spdx() {
        assert_eq!(expression("MIT/Apache-2.0"), "MIT OR Apache-2.0");
        assert_eq!(expression("MIT OR Apache-2.0"), "MIT OR Apache-2.0");
    }
}
