//! The service under a systemd of its own: process 1 of a pid namespace, in the chroot, with a network namespace without a network.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::chroot::Chroot;
use crate::process::say;

const SCRIPT: &str = include_str!("boot.sh");
/// No default dependencies: of all that a boot does, only what the service asks for is done.
const TARGET: &str = "[Unit]\nDefaultDependencies=no\nRequires=check.service\nAllowIsolate=yes\n";
const SERVICE: &str = "[Unit]\nDefaultDependencies=no\nAfter=systemd-journald.socket\nRequires=systemd-journald.socket\n\
    SuccessAction=exit-force\nFailureAction=exit-force\n\
    [Service]\nType=oneshot\nTimeoutStartSec=150s\nExecStart=/bin/bash /boot.sh\n";
/// So that a hung agent need not be waited for a minute.
const DROP_IN: &str = "[Service]\nWatchdogSec=3s\nTimeoutAbortSec=2s\nRestartSec=100ms\n";
/// They would set up the host, whose kernel this is.
const MASKED: [&str; 6] = [
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-binfmt.service",
    "systemd-remount-fs.service",
];
/// What the kernel of the host has is read-only, but for a cgroup below which the new systemd makes its own.
const BOOT: &str = r#"
    root=$1
    ip link set lo up
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,bind,ro "$root/proc/sys"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for node in null zero full random urandom tty; do
        touch "$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"
    done
    mkdir "$root/dev/shm" "$root/dev/pts"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    # A chroot alone would not do: who makes mount namespaces, as systemd does for its services, changes roots.
    cd "$root"
    pivot_root . mnt
    umount -l /mnt
    exec env -i container=probe-check PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --unit=check.target --log-target=null
"#;

pub(crate) fn serve(chroot: &Chroot) -> Result<()> {
    chroot.run("apt-get update -qq && apt-get install -qqy --no-install-recommends systemd >/dev/null")?;
    let units = chroot.0.join("etc/systemd/system");
    fs::create_dir_all(units.join("probe.service.d"))?;
    for (path, text) in
        [("check.target", TARGET), ("check.service", SERVICE), ("probe.service.d/check.conf", DROP_IN)]
    {
        fs::write(units.join(path), text)?;
    }
    for unit in MASKED {
        std::os::unix::fs::symlink("/dev/null", units.join(unit))?;
    }
    fs::write(chroot.0.join("boot.sh"), SCRIPT)?;
    let cgroup = Cgroup::make()?;
    let mut command = Command::new("sh");
    // Into the cgroup before anything else, and with all of it gone when this ends.
    let enter = r#"echo 0 > "$1/cgroup.procs"; exec unshare --mount --pid --uts --ipc --net --fork --kill-child sh -ec "$2" sh "$3""#;
    command.args(["-ec", enter, "sh"]).arg(&cgroup.0).arg(BOOT).arg(&chroot.0);
    let ended = command.stdin(Stdio::null()).status().context("cannot start unshare")?;
    let log = fs::read_to_string(chroot.0.join("boot.log"))
        .with_context(|| format!("systemd did not come as far as the check, {ended}"))?;
    log.lines().for_each(say);
    ensure!(log.lines().last() == Some("PASSED"), "the service under systemd");
    Ok(())
}

/// Below the root of the v2 hierarchy, wherever that is mounted.
struct Cgroup(std::path::PathBuf);

impl Cgroup {
    fn make() -> Result<Self> {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let mount = mounts.into_iter().find(|mount| mount.join("cgroup.procs").exists());
        let path =
            mount.context("no cgroup v2 is mounted")?.join(format!("probe-check-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // From the leaves up: what a systemd made below it.
        let script = "find \"$1\" -depth -type d -exec rmdir {} +";
        let _left = Command::new("sh").args(["-c", script, "sh"]).arg(&self.0).status();
    }
}
