//! A clean Debian to install into. Whatever is mounted for a command is mounted in a namespace that ends with the command, so that
//! nothing stays behind, however it ends.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::dist::{self, ensure_packages};
use crate::process::{self, say, show};

const SUITE: &str = "bookworm";
/// Mounts what a command expects, for it alone.
const ENTER: &str = r#"
    root=$1; shift
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    exec chroot "$root" "$@"
"#;

/// An unpacked Debian of the smallest kind; gone when dropped.
pub(crate) struct Chroot(pub(crate) PathBuf);

impl Chroot {
    /// From an archive that is made once.
    pub(crate) fn unpack(root: &Path) -> Result<Self> {
        ensure_packages(&["mmdebstrap"])?;
        let cache = dist::target_dir(root).join("chroot");
        fs::create_dir_all(&cache)?;
        let archive = cache.join(format!("{SUITE}.tar"));
        if !archive.exists() {
            let new = archive.with_extension("new.tar");
            process::run(Command::new("mmdebstrap").args(["--quiet", "--variant=minbase", SUITE]).arg(&new))?;
            fs::rename(new, &archive)?;
        }
        let chroot = Self(cache.join("root"));
        if chroot.0.exists() {
            fs::remove_dir_all(&chroot.0)?;
        }
        fs::create_dir(&chroot.0)?;
        process::run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&chroot.0))?;
        fs::copy("/etc/resolv.conf", chroot.0.join("etc/resolv.conf"))?;
        Ok(chroot)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", ENTER, "sh"]).arg(&self.0).args(["sh", "-ec", line]);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        command
    }

    /// Runs a line of shell in it, says what it wrote, and returns it: both outputs.
    pub(crate) fn run(&self, line: &str) -> Result<String> {
        say(format_args!("# {line}"));
        let mut command = self.command(&format!("exec 2>&1; {line}"));
        let ended = command.output().with_context(|| format!("cannot start `{}`", show(&command)))?;
        let said = String::from_utf8_lossy(&ended.stdout).trim_end().to_owned();
        let lines: Vec<&str> = said.lines().collect();
        let cut = lines.len().saturating_sub(20);
        lines.iter().skip(cut).for_each(say);
        ensure!(ended.status.success(), "`{line}` in a clean Debian: {}\n{said}", ended.status);
        Ok(said)
    }

    /// Fails unless the line fails.
    pub(crate) fn refuses(&self, line: &str) -> Result<()> {
        let ended = self.command(line).output()?;
        ensure!(!ended.status.success(), "`{line}` should fail: {}", String::from_utf8_lossy(&ended.stdout));
        Ok(())
    }

    /// Everything in it, but for what dpkg, apt and the logs write about themselves.
    pub(crate) fn files(&self) -> Result<BTreeSet<String>> {
        const THEIRS: [&str; 7] = [
            "/var/lib/dpkg/",
            "/var/lib/apt/",
            "/var/log/",
            "/var/cache/",
            "/tmp/",
            "/run/",
            "/etc/.pwd.lock",
        ];
        // Copies of before the last change, that adduser leaves.
        const COPIES: [&str; 4] = ["/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-"];
        let all = process::output(Command::new("find").current_dir(&self.0).args([".", "-printf", "/%P\n"]))?;
        let foreign =
            |path: &&str| !THEIRS.iter().any(|theirs| path.starts_with(theirs)) && !COPIES.contains(path);
        Ok(all.lines().filter(foreign).map(str::to_owned).collect())
    }
}

impl Drop for Chroot {
    fn drop(&mut self) {
        // What cannot be removed is removed before the next.
        let _left = fs::remove_dir_all(&self.0);
    }
}
