//! The package itself: what lies where, and what lintian and systemd say of it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    dist::{self, Dist, ensure_packages},
    materials::Materials,
};
use crate::process::{self, output, say};

/// Of the package, with the same sources.
pub(crate) const REVISION: u32 = 1;
/// A build that goes further than its builder names somebody here.
const MAINTAINER: &str = "PROBE_MAINTAINER";
const NOBODY: &str = "The probe authors <maintainer@probe.invalid>";
/// dpkg-shlibdeps, lintian; whose word is taken for units and completions.
const TOOLS: [&str; 6] = ["dpkg-dev", "lintian", "systemd", "zsh", "fish", "man-db"];
const SHELLS: [(&str, &str, &[&str]); 3] = [
    ("bash", "usr/share/bash-completion/completions/probe", &["-n"]),
    ("zsh", "usr/share/zsh/vendor-completions/_probe", &["-n"]),
    ("fish", "usr/share/fish/vendor_completions.d/probe.fish", &["--no-execute"]),
];
/// Where an exposure of 10 is everything: what `systemd-analyze security` may find in all.
const EXPOSURE: f64 = 2.8;

/// Builds `target/package/probe_VERSION_ARCHITECTURE.deb`.
pub(crate) fn build(root: &Path, dist: &Dist, revision: u32) -> Result<PathBuf> {
    ensure_packages(&TOOLS)?;
    let out = dist::target_dir(root).join("package");
    let tree = out.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    let version = format!("{}-{revision}", dist.version);
    let stage = Stage { tree: tree.clone(), epoch: dist.epoch };
    let deploy = root.join("deploy");

    stage.put("usr/bin/probe", &fs::read(&dist.binary)?, 0o755)?;
    stage.put(
        "usr/lib/systemd/system/probe.service",
        &fs::read(deploy.join("systemd/probe.service"))?,
        0o644,
    )?;
    let config = fs::read_to_string(deploy.join("config/probe.yaml"))?;
    stage.put("etc/probe/probe.yaml", configuration(&config)?.as_bytes(), 0o644)?;
    for (shell, path, _) in SHELLS {
        let script = output(Command::new(&dist.binary).args(["completions", shell]))?;
        stage.put(path, format!("{script}\n").as_bytes(), 0o644)?;
    }
    let pages = out.join("man");
    fs::create_dir_all(&pages)?;
    process::run(Command::new(&dist.binary).arg("man").arg(&pages))?;
    for page in fs::read_dir(&pages)? {
        let page = page?;
        stage.put_compressed(
            &format!("usr/share/man/man1/{}", page.file_name().to_string_lossy()),
            &fs::read(page.path())?,
        )?;
    }
    let doc = |name: &str| format!("usr/share/doc/probe/{name}");
    let mit = fs::read_to_string(root.join("LICENSE-MIT"))?;
    let copyright = fs::read_to_string(deploy.join("debian/copyright"))?;
    stage.put(&doc("copyright"), copyright.replace("@MIT@\n", &field(&mit)).as_bytes(), 0o644)?;
    stage.put_compressed(&doc("THIRD-PARTY"), Materials::read(root)?.notices()?.as_bytes())?;
    stage.put_compressed(&doc("changelog"), &fs::read(root.join("CHANGELOG.md"))?)?;
    let maintainer = std::env::var(MAINTAINER).unwrap_or_else(|_unset| NOBODY.to_owned());
    let date = output(Command::new("date").args(["-u", "-R", &format!("-d@{}", dist.epoch)]))?;
    let changes = format!(
        "probe ({version}) unstable; urgency=medium\n\n  * Built from the sources of this version; changelog.gz says what is new.\n\n -- {maintainer}  {date}\n"
    );
    stage.put_compressed(&doc("changelog.Debian"), changes.as_bytes())?;

    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let control = fs::read_to_string(deploy.join("debian/control"))?;
    let control = [
        ("@VERSION@", version.as_str()),
        ("@ARCHITECTURE@", &architecture),
        ("@MAINTAINER@", &maintainer),
        ("@SIZE@", &kib_of(&tree)?.to_string()),
        ("@DEPENDS@", &depends(&out, &dist.binary)?),
    ]
    .iter()
    .fold(control, |control, (what, by)| control.replace(what, by));
    ensure!(
        !control.contains('@') || maintainer.contains('@'),
        "deploy/debian/control has a place for nothing"
    );
    stage.put("DEBIAN/control", control.as_bytes(), 0o644)?;
    stage.put("DEBIAN/conffiles", b"/etc/probe/probe.yaml\n", 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        stage.put(&format!("DEBIAN/{script}"), &fs::read(deploy.join("debian").join(script))?, 0o755)?;
    }
    stage.sums()?;

    let package = out.join(format!("probe_{version}_{architecture}.deb"));
    process::run(
        Command::new("dpkg-deb")
            .env("SOURCE_DATE_EPOCH", dist.epoch.to_string())
            .args(["--root-owner-group", "-Zxz", "--build"])
            .args([&tree, &package]),
    )?;
    Ok(package)
}

/// As it is installed: with a page to look at, since a summary every ten seconds is nothing for a journal.
fn configuration(all: &str) -> Result<String> {
    const OFF: &str = "\n#prometheus-listen: 127.0.0.1:9464\n";
    ensure!(all.contains(OFF), "deploy/config/probe.yaml has no line {:?}", OFF.trim());
    Ok(all.replace(OFF, &OFF.replace('#', "")))
}

/// As a field of many lines has it.
fn field(text: &str) -> String {
    text.lines().map(|line| if line.is_empty() { " .\n".to_owned() } else { format!(" {line}\n") }).collect()
}

/// What dpkg-shlibdeps finds the binary linked to; it asks for a source package around it.
fn depends(out: &Path, binary: &Path) -> Result<String> {
    fs::create_dir_all(out.join("debian"))?;
    fs::write(out.join("debian/control"), "Source: probe\n\nPackage: probe\nArchitecture: any\n")?;
    let said = output(Command::new("dpkg-shlibdeps").current_dir(out).arg("-O").arg(binary.canonicalize()?))?;
    let found = said.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    Ok(found.with_context(|| format!("dpkg-shlibdeps said {said:?}"))?.to_owned())
}

fn kib_of(tree: &Path) -> Result<u64> {
    let said = output(Command::new("du").args(["--apparent-size", "-sk"]).arg(tree))?;
    let size = said.split_whitespace().next().and_then(|size| size.parse().ok());
    size.with_context(|| format!("du said {said:?}"))
}

/// What is to be in the package.
struct Stage {
    tree: PathBuf,
    epoch: u64,
}

impl Stage {
    fn put(&self, path: &str, bytes: &[u8], mode: u32) -> Result<PathBuf> {
        let full = self.tree.join(path);
        if let Some(parent) = full.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&full, bytes).with_context(|| full.display().to_string())?;
        fs::set_permissions(&full, PermissionsExt::from_mode(mode))?;
        Ok(full)
    }

    /// Without a name or a time in it.
    fn put_compressed(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let full = self.put(path, bytes, 0o644)?;
        process::run(Command::new("gzip").args(["-9nf"]).arg(full))
    }

    /// Sums of all files, and directories as everybody may read them, whoever's umask this is.
    fn sums(&self) -> Result<()> {
        let script = format!(
            "find . -type d -exec chmod 0755 {{}} + && find . -path ./DEBIAN -prune -o -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 md5sum > DEBIAN/md5sums && chmod 0644 DEBIAN/md5sums && find . -exec touch -h -d @{} {{}} +",
            self.epoch
        );
        process::run(Command::new("sh").current_dir(&self.tree).args(["-ec", &script]))
    }
}

/// What those say whose subject it is: lintian, systemd, the shells, man.
pub(crate) fn look_at(root: &Path, package: &Path) -> Result<()> {
    let tree = dist::target_dir(root).join("package/tree");
    // No source package, and no archive for which it is meant.
    let tags = "initial-upload-closes-no-bugs,bogus-mail-host";
    process::run(
        Command::new("lintian")
            .args(["--allow-root", "--fail-on", "error,warning", "--suppress-tags", tags])
            .arg(package),
    )?;
    for (shell, path, flags) in SHELLS {
        process::run(Command::new(shell).args(flags).arg(tree.join(path)))?;
    }
    let commands = output(Command::new(tree.join("usr/bin/probe")).arg("--help"))?;
    let commands = commands.lines().skip_while(|line| *line != "Commands:").skip(1);
    // What goes on in the next line is indented further.
    let commands = commands.map_while(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
    let commands = commands.filter_map(|line| line.split_whitespace().next());
    let commands: Vec<&str> = commands.filter(|name| *name != "help").collect();
    ensure!(commands.len() > 4, "--help names {commands:?}");
    for command in commands {
        let page = tree.join(format!("usr/share/man/man1/probe-{command}.1.gz"));
        let mut man = Command::new("man");
        man.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "100").args(["--warnings", "--local-file"]).arg(&page);
        let said = man.stdin(Stdio::null()).output().context("cannot start man")?;
        let warned = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(said.status.success() && warned.is_empty(), "{}: {warned}", page.display());
        ensure!(String::from_utf8_lossy(&said.stdout).contains(command), "{} is empty", page.display());
    }
    unit(&tree)
}

/// As systemd reads it, with the program where it lies for now.
fn unit(tree: &Path) -> Result<()> {
    let text = fs::read_to_string(tree.join("usr/lib/systemd/system/probe.service"))?;
    let copy = tree.with_file_name("unit").join("probe.service");
    fs::create_dir_all(copy.with_file_name(""))?;
    fs::write(&copy, text.replace("/usr/bin/probe", &tree.join("usr/bin/probe").display().to_string()))?;
    let mut verify = Command::new("systemd-analyze");
    let said = verify.args(["verify", "--man=no"]).arg(&copy).output()?;
    let complaints = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(said.status.success() && complaints.trim().is_empty(), "systemd-analyze verify: {complaints}");
    let said = output(
        Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--no-pager", &format!("--threshold={}", EXPOSURE * 10.0)])
            .arg(&copy),
    )?;
    say(said.lines().last().unwrap_or_default());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installed_configuration_has_a_page_and_nothing_else() {
        let all = "a\n#interval: 30s\n#prometheus-listen: 127.0.0.1:9464\nb\n";
        assert_eq!(configuration(all).unwrap(), "a\n#interval: 30s\nprometheus-listen: 127.0.0.1:9464\nb\n");
        assert!(configuration("a\n").is_err());
    }

    #[test]
    fn fields_of_many_lines() {
        assert_eq!(field("a\n\nb\n"), " a\n .\n b\n");
    }
}
