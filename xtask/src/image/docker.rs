//! Debian's Docker, with everything of its in a directory of its own and no network; gone when dropped.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    package::dist::ensure_packages,
    process::{self, output, say},
};

/// What the first stage is built on with `--full`.
pub(super) const BASE: &str = "probe-check:base";
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

pub(super) struct Docker {
    daemon: Child,
    /// Short, for a socket is in it.
    directory: PathBuf,
}

impl Docker {
    pub(super) fn start() -> Result<Self> {
        let directory = env::temp_dir().join(format!("probe-image-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        let place = |flag: &str, name: &str| format!("--{flag}={}", directory.join(name).display());
        let daemon = Command::new("dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .args([place("data-root", "data"), place("exec-root", "exec"), place("pidfile", "pid")])
            .arg(format!("--host={}", socket(&directory)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.join("log"))?)
            .spawn()
            .context("cannot start dockerd")?;
        let mut docker = Self { daemon, directory };
        poll("Docker answers", PATIENCE, || {
            if let Some(status) = docker.daemon.try_wait()? {
                bail!("dockerd ended, {status}: {}", docker.log());
            }
            let mut asked = docker.command(["info", "--format={{.Driver}}"]);
            let answer = asked.stderr(Stdio::null()).stdin(Stdio::null()).output()?;
            Ok(answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).into_owned()))
        })
        .map(|driver| say(format_args!("Docker runs, on {}", driver.trim())))?;
        Ok(docker)
    }

    pub(super) fn command<const N: usize>(&self, args: [&str; N]) -> Command {
        let mut command = Command::new("docker");
        command.arg("--host").arg(socket(&self.directory)).args(args);
        command
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("\n")
    }

    /// Of an image, unpacked.
    pub(super) fn size(&self, image: &str) -> Result<u64> {
        let said = output(&mut self.command(["image", "inspect", "--format={{.Size}}", image]))?;
        said.parse().with_context(|| format!("docker said {said:?}"))
    }

    /// A Debian with this host's Rust and the crates that are already here: nothing is fetched in the build.
    pub(super) fn import_base(&self, work: &Path) -> Result<()> {
        ensure_packages(&["mmdebstrap"])?;
        let base = work.join("base");
        if !base.exists() {
            let new = work.join("base.new");
            let packages = "--include=gcc,libc6-dev,make,ca-certificates";
            process::run(
                Command::new("mmdebstrap")
                    .args(["--quiet", "--variant=minbase", packages, "bookworm"])
                    .arg(&new),
            )?;
            fs::rename(new, &base)?;
        }
        let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
        let registry = home.context("neither CARGO_HOME nor HOME is set")?.join("registry");
        // Three trees in one archive; where they go is what their names are changed to.
        let script = r#"
            archive=$1.tar
            tar -C "$1" -cf "$archive" --exclude=./dev .
            tar -C "$2" -rf "$archive" --transform='s,^\./,./usr/local/,S' --exclude=./share/doc ./bin ./lib
            tar -C "$3" -rf "$archive" --transform='s,^\./,./usr/local/cargo/registry/,S' ./index ./cache
            shift 3
            "$@" < "$archive"
            rm "$archive"
        "#;
        let mut import = self.command(["import"]);
        import.args(["--change", "ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
        import.args(["--change", "ENV CARGO_HOME=/usr/local/cargo CARGO_NET_OFFLINE=true", "-", BASE]);
        let mut command = Command::new("sh");
        command.args(["-ec", script, "sh"]).arg(&base).arg(sysroot).arg(registry);
        process::run(command.arg(import.get_program()).args(import.get_args()))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // SIGTERM: it ends its containers and gives its mounts back.
        let _asked = kill_process(Pid::from_child(&self.daemon), Signal::TERM);
        let _ended = self.daemon.wait();
        // The host's network namespace, which it holds on to for --network=host and leaves mounted.
        let held = self.directory.join("exec/netns/default");
        let _none = Command::new("umount").arg("--quiet").arg(held).status();
        let _left = fs::remove_dir_all(&self.directory);
    }
}

fn socket(directory: &Path) -> String {
    format!("unix://{}", directory.join("socket").display())
}

/// Asks until there is an answer.
pub(super) fn poll<T>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "{what}: not within {patience:?}");
        std::thread::sleep(POLL);
    }
}
