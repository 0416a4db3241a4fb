//! From installation to purge.

use std::{fs, path::Path};

use anyhow::{Result, bail, ensure};

use super::{boot, chroot::Chroot, debian, dist::Dist};
use crate::process::say;

/// What has to be there and be gone.
const FILES: [&str; 8] = [
    "/usr/bin/probe",
    "/usr/lib/systemd/system/probe.service",
    "/usr/share/man/man1/probe.1.gz",
    "/usr/share/man/man1/probe-run.1.gz",
    "/usr/share/bash-completion/completions/probe",
    "/usr/share/zsh/vendor-completions/_probe",
    "/usr/share/fish/vendor_completions.d/probe.fish",
    "/usr/share/doc/probe/THIRD-PARTY.gz",
];
const CONFIG: &str = "/etc/probe/probe.yaml";

pub(crate) fn live(root: &Path, dist: &Dist, package: &Path) -> Result<()> {
    let chroot = Chroot::unpack(root)?;
    let before = chroot.files()?;
    install(&chroot, package)?;
    for file in FILES {
        ensure!(chroot.0.join(file.trim_start_matches('/')).exists(), "{file} was not installed");
    }
    // Files as the package has them; the configuration is the group's to read.
    chroot
        .run("dpkg --verify probe && stat -c '%U:%G %a %n' /etc/probe/probe.yaml && getent passwd probe")?;
    let owner = chroot.run(&format!("stat -c '%U:%G %a' {CONFIG}"))?;
    ensure!(owner == "root:probe 640", "{CONFIG}: {owner}");
    chroot.refuses("test -e /etc/systemd/system/multi-user.target.wants/probe.service")?;
    work(&chroot)?;
    upgrade(root, dist, &chroot)?;

    chroot.run("apt-get remove -qy probe")?;
    for file in FILES {
        ensure!(!chroot.0.join(file.trim_start_matches('/')).exists(), "{file} stays after the removal");
    }
    ensure!(chroot.0.join("etc/probe/probe.yaml").exists(), "{CONFIG} is gone with the removal");
    // As the agent would have left it.
    chroot.run("install -d -o probe -m 0700 /var/lib/probe/spool && apt-get purge -qy probe")?;
    let left: Vec<String> = chroot.files()?.difference(&before).cloned().collect();
    ensure!(left.is_empty(), "the purge leaves {left:?}");
    let gone: Vec<String> = before.difference(&chroot.files()?).cloned().collect();
    ensure!(gone.is_empty(), "the purge took {gone:?} with it");
    chroot.refuses("getent passwd probe")?;
    say("nothing is left of the package");

    install(&chroot, package)?;
    boot::serve(&chroot)
}

fn install(chroot: &Chroot, package: &Path) -> Result<()> {
    let Some(name) = package.file_name().map(|name| name.to_string_lossy()) else {
        bail!("{} has no name", package.display());
    };
    fs::copy(package, chroot.0.join("tmp").join(&*name))?;
    chroot.run(&format!("cd /tmp && apt-get install -qy ./{name}"))?;
    Ok(())
}

/// The program does what it is for: on this kernel, from in there.
fn work(chroot: &Chroot) -> Result<()> {
    chroot.run("probe --version")?;
    let doctor = chroot.run("probe doctor")?;
    ensure!(doctor.contains("signal tcp"), "doctor says nothing of signals");
    let summary = chroot.run("probe run --duration 2s --interval 1s")?;
    for said in ["segments retransmitted", "lookups answered", "calls,", "nothing was lost"] {
        ensure!(summary.contains(said), "`probe run` does not say {said:?}");
    }
    chroot.run(&format!("probe run --check-config --config {CONFIG}"))?;
    Ok(())
}

/// What the administrator wrote stays.
fn upgrade(root: &Path, dist: &Dist, chroot: &Chroot) -> Result<()> {
    chroot.run(&format!("echo 'interval: 30s' >> {CONFIG} && chmod 0600 {CONFIG}"))?;
    let newer = debian::build(root, dist, debian::REVISION + 1)?;
    let installed = install(chroot, &newer);
    fs::remove_file(&newer)?;
    installed?;
    let version = chroot.run("dpkg-query -W -f '${Version}' probe")?;
    ensure!(version.ends_with(&format!("-{}", debian::REVISION + 1)), "{version} is installed");
    let kept = chroot.run(&format!("tail -1 {CONFIG} && stat -c %a {CONFIG}"))?;
    ensure!(kept == "interval: 30s\n600", "the upgrade made {kept:?} of {CONFIG}");
    Ok(())
}
