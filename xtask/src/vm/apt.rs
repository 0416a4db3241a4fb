//! Debian packages without installing them: an apt with a state of its own under target/, unpacked with dpkg-deb. The
//! host's apt stays as it is, and no root is needed.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::process::{self, output};

/// Debian's keys, of the package debian-archive-keyring: they sign all suites, also those of other releases.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The host's mirror, where its apt tells; else Debian's own.
const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";

/// An apt that knows some suites.
#[derive(Debug)]
pub(crate) struct Apt {
    directory: PathBuf,
}

/// One version of a package.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Apt {
    /// Fetches the lists of `suites` into `directory`.
    pub(crate) fn update(directory: PathBuf, suites: &[&str]) -> Result<Self> {
        let apt = Self { directory };
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = apt.directory.join(part);
            fs::create_dir_all(&part).with_context(|| part.display().to_string())?;
        }
        let (main, security) = mirrors();
        let lines = suites.iter().map(|suite| {
            let mirror = if suite.ends_with("-security") { &security } else { &main };
            format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n")
        });
        fs::write(apt.directory.join("sources.list"), lines.collect::<String>())?;
        process::run(apt.command("apt-get").args(["update", "-qq"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let directory = self.directory.display();
        let mut command = Command::new(program);
        command.args(["-o", "Dir::Etc::sourceparts=/dev/null", "-o", "Acquire::Languages=none"]);
        command.args(["-o", "Dir::State::status=/var/lib/dpkg/status", "-o", "APT::Sandbox::User="]);
        // Only lists of packages: what desktops want to know is as large again.
        for target in ["DEP-11", "DEP-11-icons", "DEP-11-icons-small", "DEP-11-icons-hidpi", "CNF"] {
            command.arg("-o").arg(format!("Acquire::IndexTargets::deb::{target}::DefaultEnabled=false"));
        }
        command.arg("-o").arg(format!("Dir::Etc::sourcelist={directory}/sources.list"));
        command.arg("-o").arg(format!("Dir::State={directory}"));
        command.arg("-o").arg(format!("Dir::State::lists={directory}/lists"));
        command.arg("-o").arg(format!("Dir::Cache={directory}/cache"));
        command
    }

    /// All versions of all packages whose name matches an extended regular expression.
    pub(crate) fn search(&self, regex: &str) -> Result<Vec<Package>> {
        let found = output(self.command("apt-cache").args(["search", "--names-only", regex]))?;
        let names = found.lines().filter_map(|line| line.split(' ').next()).collect::<Vec<_>>();
        ensure!(!names.is_empty(), "no package matches {regex}");
        Ok(stanzas(&output(self.command("apt-cache").arg("show").args(names))?))
    }

    /// Downloads one version of a package and unpacks it into `to`.
    pub(crate) fn unpack(&self, package: &Package, to: &Path) -> Result<()> {
        let debs = self.directory.join("debs").join(&package.name);
        // What an interrupted download left would be taken for this one.
        let _none = fs::remove_dir_all(&debs);
        fs::create_dir_all(&debs).with_context(|| debs.display().to_string())?;
        let mut download = self.command("apt-get");
        download.current_dir(&debs).args(["download", "-qq"]);
        process::run(download.arg(format!("{}={}", package.name, package.version)))?;
        fs::create_dir_all(to).with_context(|| to.display().to_string())?;
        for deb in fs::read_dir(&debs)? {
            process::run(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(to))?;
        }
        Ok(fs::remove_dir_all(&debs)?)
    }

    /// What the host lacks of a package and all that it depends on.
    pub(crate) fn missing_for(&self, name: &str) -> Result<Vec<Package>> {
        let plan = output(self.command("apt-get").args([
            "install",
            "--simulate",
            "--no-install-recommends",
            "-o",
            "Debug::NoLocking=1",
            name,
        ]))?;
        Ok(plan.lines().filter_map(simulated).collect())
    }
}

/// `Inst qemu-system-x86 (1:7.2+dfsg-7+deb12u18 Debian:12.12/oldstable [amd64]) []`; an upgrade has the old version in
/// brackets first.
fn simulated(line: &str) -> Option<Package> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    let version = rest.split_once('(')?.1.split(' ').next()?;
    Some(Package { name: name.to_owned(), version: version.to_owned() })
}

/// Name and version of each stanza of `apt-cache show`.
fn stanzas(text: &str) -> Vec<Package> {
    let of = |stanza: &str| {
        let fields = stanza.lines().filter_map(|line| line.split_once(": ")).collect::<BTreeMap<_, _>>();
        Some(Package {
            name: (*fields.get("Package")?).to_owned(),
            version: (*fields.get("Version")?).to_owned(),
        })
    };
    text.split("\n\n").filter_map(of).collect()
}

/// Debian's own order of versions.
pub(crate) fn compare_versions(one: &str, other: &str) -> Result<Ordering> {
    let is = |relation: &str| -> Result<bool> {
        let mut dpkg = Command::new("dpkg");
        let status = dpkg.args(["--compare-versions", one, relation, other]).status();
        Ok(status.context("cannot start `dpkg`")?.success())
    };
    Ok(match (is("lt")?, is("gt")?) {
        (true, _) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => Ordering::Equal,
    })
}

/// The host's mirrors of Debian: main archive, security.
fn mirrors() -> (String, String) {
    let mut apt_get = Command::new("apt-get");
    let targets = apt_get.args([
        "indextargets",
        "--format",
        "$(LABEL) $(SITE)",
        "Created-By: Packages",
        "Origin: Debian",
    ]);
    let targets = output(targets).unwrap_or_default();
    let site = |label: &str| {
        let mut lines = targets.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _site)| *name == label).map(|(_name, site)| site.to_owned())
    };
    (
        site("Debian").unwrap_or_else(|| MIRROR.to_owned()),
        site("Debian-Security").unwrap_or_else(|| SECURITY_MIRROR.to_owned()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_apt_are_understood() {
        let package =
            |name: &str, version: &str| Package { name: name.to_owned(), version: version.to_owned() };
        assert_eq!(
            simulated("Inst libfdt1 (1.6.1-4+b1 Debian:12.12/oldstable [amd64])"),
            Some(package("libfdt1", "1.6.1-4+b1"))
        );
        assert_eq!(
            simulated("Inst libc6 [2.36-9] (2.36-10 Debian:12.12/oldstable [amd64]) []"),
            Some(package("libc6", "2.36-10"))
        );
        assert_eq!(simulated("Conf libfdt1 (1.6.1-4+b1 Debian:12.12/oldstable [amd64])"), None);
        let shown = "Package: a\nVersion: 1-1\nDescription: x\n y\n\nPackage: a\nVersion: 1-2\n\n";
        assert_eq!(stanzas(shown), [package("a", "1-1"), package("a", "1-2")]);
    }

    #[test]
    fn versions_are_debians() {
        for (one, other, order) in [
            ("5.10.262-1", "5.10.99-1", Ordering::Greater),
            ("6.1.192-2~deb11u1", "6.1.192-2", Ordering::Less),
            ("7.2.13-1", "7.2.13-1", Ordering::Equal),
        ] {
            assert_eq!(compare_versions(one, other).unwrap(), order, "{one} {other}");
        }
    }
}
