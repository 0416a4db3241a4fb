//! Debian's cloud kernels: the newest of each series, fetched once and kept under target/.

use std::{
    cmp::Ordering,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::apt::{Apt, Package, compare_versions};
use crate::process::{output, say};

/// The series that are tested: the oldest that can do it, those of Debian's stable releases, the newest.
pub(crate) const SERIES: [&str; 4] = ["5.10", "6.1", "6.12", "7.2"];
/// Where they are.
const SUITES: [&str; 7] =
    ["bullseye", "bullseye-security", "bookworm", "bookworm-security", "trixie", "trixie-security", "sid"];
/// Modules that tests need and cloud kernels have not built in.
const MODULES: [&str; 1] = ["tcp_bbr"];

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) series: String,
    pub(crate) vmlinuz: PathBuf,
    pub(crate) modules: Vec<PathBuf>,
}

/// The kernels of `series`, fetched where they are not there yet or `refresh` asks for the newest.
pub(crate) fn obtain(directory: &Path, series: &[String], refresh: bool) -> Result<Vec<Kernel>> {
    let mut apt = None;
    let mut kernels = Vec::new();
    for series in series {
        let place = directory.join("kernels").join(series);
        if refresh {
            let _none = fs::remove_dir_all(&place);
        }
        if !place.join("vmlinuz").exists() {
            let apt = match &apt {
                Some(apt) => apt,
                None => apt.insert(Apt::update(directory.join("apt"), &SUITES)?),
            };
            fetch(apt, series, &place).with_context(|| format!("cannot fetch a kernel {series}"))?;
        }
        let modules = MODULES.map(|name| place.join(format!("{name}.ko"))).into_iter().collect();
        kernels.push(Kernel { series: series.clone(), vmlinuz: place.join("vmlinuz"), modules });
    }
    Ok(kernels)
}

fn fetch(apt: &Apt, series: &str, place: &Path) -> Result<()> {
    let packages = apt.search("^linux-(image|binary|modules)-[0-9].*-cloud-amd64$")?;
    let Some(newest) = newest(&packages, series)? else {
        let mut known: Vec<&str> = packages.iter().filter_map(|package| series_of(package)).collect();
        known.sort_unstable();
        known.dedup();
        bail!("Debian has none; there are: {}", known.join(", "));
    };
    say(format_args!("+ kernel {series}: {} {}", newest.name, newest.version));
    let tree = place.with_extension("unpacked");
    let _none = fs::remove_dir_all(&tree);
    apt.unpack(newest, &tree)?;
    // Newer packages have the modules apart.
    if let Some(release) = newest.name.strip_prefix("linux-binary-") {
        let modules = format!("linux-modules-{release}");
        let modules = packages.iter().find(|p| p.name == modules && p.version == newest.version);
        apt.unpack(modules.with_context(|| format!("no modules for {release}"))?, &tree)?;
    }
    let files = files(&tree)?;
    let find = |part: &str| {
        let named =
            |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(part));
        files.iter().find(named).with_context(|| format!("{} has no {part}", newest.name))
    };
    fs::create_dir_all(place)?;
    for module in MODULES {
        let from = find(&format!("{module}.ko"))?;
        let to = place.join(format!("{module}.ko"));
        match from.extension().and_then(|extension| extension.to_str()) {
            Some("ko") => drop(fs::copy(from, to)?),
            Some("xz") => {
                let unpacked =
                    Command::new("xz").arg("-dc").arg(from).output().context("cannot start `xz`")?;
                ensure!(unpacked.status.success(), "cannot unpack {}", from.display());
                fs::write(to, unpacked.stdout)?;
            }
            _ => bail!("{} is packed in an unknown way", from.display()),
        }
    }
    // Last: it says that all is there.
    fs::copy(find("vmlinuz")?, place.join("vmlinuz"))?;
    Ok(fs::remove_dir_all(&tree)?)
}

/// The package with the kernel of a series; newer ones have it in linux-binary, where linux-image is only a name for it.
fn newest<'a>(packages: &'a [Package], series: &str) -> Result<Option<&'a Package>> {
    let mut newest: Option<&Package> = None;
    for package in packages.iter().filter(|package| series_of(package) == Some(series)) {
        let newer = match newest {
            None => true,
            Some(so_far) => match compare_versions(&package.version, &so_far.version)? {
                Ordering::Greater => true,
                Ordering::Less => false,
                Ordering::Equal => package.name.starts_with("linux-binary-"),
            },
        };
        if newer {
            newest = Some(package);
        }
    }
    Ok(newest)
}

/// `linux-image-5.10.0-46-cloud-amd64` → `5.10`. Backports to older releases (deb11) are other builds.
fn series_of(package: &Package) -> Option<&str> {
    let name = &package.name;
    let release = name.strip_prefix("linux-image-").or_else(|| name.strip_prefix("linux-binary-"))?;
    let mut dots = release.match_indices('.').map(|(at, _)| at);
    let (_major, minor) = (dots.next()?, dots.next()?);
    (!name.contains(".deb11.")).then(|| release.get(..minor))?
}

/// All files below a directory.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let list = output(Command::new("find").arg(directory).args(["-type", "f"]))?;
    Ok(list.lines().map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series_is_found() {
        let packages = [
            ("linux-image-5.10.0-32-cloud-amd64", "5.10.223-1"),
            ("linux-image-5.10.0-46-cloud-amd64", "5.10.262-1"),
            ("linux-image-6.1-cloud-amd64", "6.1.170-1"),
            ("linux-image-6.1.0-0.deb11.52-cloud-amd64", "6.1.192-2~deb11u1"),
            ("linux-image-6.1.0-50-cloud-amd64", "6.1.176-1"),
            ("linux-binary-7.2.13+deb14-cloud-amd64", "7.2.13-1"),
            ("linux-image-7.2.13+deb14-cloud-amd64", "7.2.13-1"),
            ("linux-modules-7.2.13+deb14-cloud-amd64", "7.2.13-1"),
        ]
        .map(|(name, version)| Package { name: name.to_owned(), version: version.to_owned() });
        for (series, name) in [
            ("5.10", Some("linux-image-5.10.0-46-cloud-amd64")),
            ("6.1", Some("linux-image-6.1.0-50-cloud-amd64")),
            ("7.2", Some("linux-binary-7.2.13+deb14-cloud-amd64")),
            ("7", None),
            ("6.12", None),
        ] {
            let found = newest(&packages, series).unwrap();
            assert_eq!(found.map(|package| package.name.as_str()), name, "{series}");
        }
    }
}
