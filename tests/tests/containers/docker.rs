//! Debian's Docker, with everything of its in a directory of its own and no network.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use probe_tests::probe::{Probe, in_guest, poll, require_root};
use probe_tests::require::own_host;
use probe_tests::workload::Workload;
use rustix::process::{Pid, Signal, kill_process};

use crate::{LONG, WORKLOAD, calls_of};

const IMAGE: &str = "probe-test:empty";

struct Docker {
    daemon: Child,
    directory: PathBuf,
}

impl Docker {
    fn start() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("probe-docker-{}", std::process::id()));
        std::fs::create_dir(&directory)?;
        let place = |flag: &str, name: &str| format!("--{flag}={}", directory.join(name).display());
        let log = std::fs::File::create(directory.join("log"))?;
        let daemon = Command::new("dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .args([place("data-root", "data"), place("exec-root", "exec"), place("pidfile", "pid")])
            .arg(format!("--host={}", socket(&directory)))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start dockerd; Debian: apt-get install docker.io")?;
        let mut docker = Self { daemon, directory };
        poll("Docker answers", LONG, || {
            let ended = docker.daemon.try_wait()?;
            ensure!(ended.is_none(), "dockerd ended, {ended:?}: {}", docker.log());
            let answer = docker.command(["version"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
            Ok(answer.success().then_some(()))
        })?;
        // An image with nothing in it: programs come from the host.
        let import =
            docker.command(["import", "-", IMAGE]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let mut import = import?;
        // The end of an archive: two blocks of zeros.
        std::io::Write::write_all(&mut import.stdin.take().context("stdin is piped")?, &[0; 1_024])?;
        ensure!(import.wait()?.success(), "no image: {}", docker.log());
        Ok(docker)
    }

    fn command<const N: usize>(&self, args: [&str; N]) -> Command {
        let mut command = Command::new("docker");
        command.arg("--host").arg(socket(&self.directory)).args(args);
        command
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// A container that does what it is told, and its id.
    fn run(&self, name: &str) -> Result<(String, Workload)> {
        let id_file = self.directory.join(name);
        let program = Path::new(WORKLOAD).parent().context("the program lies somewhere")?;
        let mut command = self.command(["run", "--interactive", "--network=none", "--cidfile"]);
        command.arg(&id_file);
        for directory in ["/usr", "/lib", "/lib64"].map(Path::new).into_iter().filter(|path| path.exists()) {
            command.arg(format!("--volume={0}:{0}:ro", directory.display()));
        }
        command
            .arg(format!("--volume={}:/programs:ro", program.display()))
            .args([IMAGE, "/programs/workload"]);
        let mut workload = Workload::start_as(command)?;
        workload.tell("munlockall 1")?;
        Ok((std::fs::read_to_string(id_file)?, workload))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // SIGTERM: it ends its containers and gives its mounts back. What stays of a test that failed, stays.
        let _asked = kill_process(Pid::from_child(&self.daemon), Signal::TERM);
        let _ended = self.daemon.wait();
        let _left = std::fs::remove_dir_all(&self.directory);
    }
}

fn socket(directory: &Path) -> String {
    format!("unix://{}", directory.join("socket").display())
}

/// By the id that Docker itself gives; and one of them alone, by the beginning of its id.
#[test]
pub(crate) fn containers_of_docker() -> Result<()> {
    if in_guest() {
        return own_host("Docker");
    }
    require_root()?;
    let docker = Docker::start()?;
    let probe = Probe::start(&["syscalls", "--syscall", "munlockall", "--interval", "1h"])?;
    let (first, mut workload) = docker.run("first")?;
    // It saw the first begin as little as the second end.
    let filtered = ["syscalls", "--syscall", "munlockall", "--interval", "1h", "--container", &first[..12]];
    let only_first = Probe::start(&filtered)?;
    let (second, mut other) = docker.run("second")?;
    workload.tell("munlockall 76")?;
    other.tell("munlockall 22")?;
    workload.end()?;
    other.end()?;
    let (finished, only_first) = (probe.stop()?, only_first.stop()?);
    finished.require_complete()?;
    only_first.require_complete()?;
    // runc, which starts them, is in their cgroups for a moment; it makes no such call.
    let expected: BTreeMap<String, i64> = [(first.clone(), 77), (second, 23)].into();
    let found = calls_of(&finished);
    ensure!(found == expected, "{found:?} and not {expected:?}; {}", docker.log());
    ensure!(calls_of(&only_first) == [(first, 76)].into(), "{:?}", calls_of(&only_first));
    Ok(())
}
