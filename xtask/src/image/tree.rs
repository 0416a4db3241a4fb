//! What is in the image: the program, what it is linked to, whom to trust, and papers.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    package::{
        dist::{self, Dist},
        materials::Materials,
    },
    process::output,
};

/// Authorities that may have signed a collector's certificate.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Writes `target/image/tree`.
pub(crate) fn write(root: &Path, dist: &Dist) -> Result<PathBuf> {
    let tree = dist::target_dir(root).join("image/tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    put(&tree, "/probe", &dist.binary, 0o755)?;
    let mut packages = Vec::new();
    for (name, path) in dist::libraries(&dist.binary)? {
        let real = path.canonicalize()?;
        // The loader is asked for by its path; the loader asks for the others by their names, here.
        let place = if name.starts_with('/') { name } else { format!("/lib/x86_64-linux-gnu/{name}") };
        put(&tree, &place, &real, 0o755)?;
        let package = package_of(&real)?;
        if !packages.contains(&package) {
            packages.push(package);
        }
    }
    put(&tree, AUTHORITIES, Path::new(AUTHORITIES), 0o644)
        .context("the authorities of the host go into the image: apt-get install ca-certificates")?;

    let papers = "/usr/share/doc/probe";
    for license in ["LICENSE-MIT", "LICENSE-APACHE"] {
        put(&tree, &format!("{papers}/{license}"), &root.join(license), 0o644)?;
    }
    let mut further = Vec::new();
    for (package, version, architecture) in &packages {
        let copyright = format!("/usr/share/doc/{package}/copyright");
        put(&tree, &copyright, Path::new(&copyright), 0o644)?;
        further.push(component(package, version, architecture));
    }
    let materials = Materials::read(root)?;
    let bill = serde_json::to_string_pretty(&materials.bill(&dist.version, further))?;
    for (name, text) in [("THIRD-PARTY", materials.notices()?), ("sbom.cdx.json", bill)] {
        let path = tree.join(papers.trim_start_matches('/')).join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644))?;
    }
    Ok(tree)
}

fn put(tree: &Path, place: &str, from: &Path, mode: u32) -> Result<()> {
    let to = tree.join(place.trim_start_matches('/'));
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, &to).with_context(|| from.display().to_string())?;
    fs::set_permissions(&to, PermissionsExt::from_mode(mode))?;
    Ok(())
}

/// Name, version and architecture of the package that a file of Debian is from. /lib may be a link to /usr/lib, which dpkg does not know.
fn package_of(path: &Path) -> Result<(String, String, String)> {
    let path = path.display().to_string();
    let merged = path.strip_prefix("/usr").unwrap_or(&path);
    let said = [path.as_str(), merged]
        .iter()
        .find_map(|path| output(Command::new("dpkg").args(["-S", path])).ok())
        .with_context(|| format!("no package of Debian has {path}"))?;
    let package = said.split(": ").next().unwrap_or_default();
    let format = "-f=${Package} ${Version} ${Architecture}";
    let said = output(Command::new("dpkg-query").args(["-W", format, package]))?;
    let mut words = said.split(' ').map(str::to_owned);
    match (words.next(), words.next(), words.next()) {
        (Some(name), Some(version), Some(architecture)) => Ok((name, version, architecture)),
        _ => anyhow::bail!("dpkg-query said {said:?}"),
    }
}

fn component(package: &str, version: &str, architecture: &str) -> Value {
    let purl = format!("pkg:deb/debian/{package}@{}?arch={architecture}", version.replace('+', "%2B"));
    json!({ "type": "library", "bom-ref": purl, "name": package, "version": version, "purl": purl })
}
