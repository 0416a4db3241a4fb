//! A virtual machine under QEMU, fully emulated: it needs no KVM, only time.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{RecvTimeoutError, sync_channel},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::apt::Apt;
use crate::{
    live::Results,
    process::{output, say, show},
};

const PROGRAM: &str = "qemu-system-x86_64";
/// Where Debian's packages have firmware.
const FIRMWARE: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];
/// Between two events, beyond what a test may take: the machine has died without a word.
const SILENCE: Duration = Duration::from_secs(120);
/// Lines of the console shown when a machine dies.
const LAST_LINES: usize = 30;

/// How to start QEMU.
#[derive(Clone, Debug)]
pub(crate) struct Qemu {
    program: PathBuf,
    /// Unpacked packages with its libraries and firmware; none where it is installed.
    tree: Option<PathBuf>,
}

/// What to boot.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) vmlinuz: &'a Path,
    pub(crate) initrd: &'a Path,
    /// Possible CPUs; two are online.
    pub(crate) possible_cpus: u32,
    /// How long one test may take there.
    pub(crate) timeout: Duration,
    /// For its console's output.
    pub(crate) console: &'a Path,
    /// In front of what is said about it.
    pub(crate) prefix: &'a str,
}

impl Qemu {
    /// The host's, or Debian's, unpacked under `directory`.
    pub(crate) fn obtain(directory: &Path) -> Result<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        if let Some(program) = env::split_paths(&path).map(|dir| dir.join(PROGRAM)).find(|p| p.is_file()) {
            return Ok(Self { program, tree: None });
        }
        let tree = directory.join("qemu");
        let program = tree.join("usr/bin").join(PROGRAM);
        if !program.exists() {
            let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
            let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
            let Some(codename) = codename else {
                bail!("{PROGRAM} is not installed, and this is no Debian to take it from: install it");
            };
            let apt = Apt::update(directory.join("apt-qemu"), &[codename, &format!("{codename}-security")])
                .with_context(|| format!("cannot fetch {PROGRAM}; or install it yourself"))?;
            let unpacked = directory.join("qemu.unpacked");
            let _none = fs::remove_dir_all(&unpacked);
            for package in apt.missing_for("qemu-system-x86")? {
                say(format_args!("+ {} {}", package.name, package.version));
                apt.unpack(&package, &unpacked)?;
            }
            fs::rename(&unpacked, &tree)?;
        }
        Ok(Self { program, tree: Some(tree) })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(tree) = &self.tree {
            // Some libraries are in directories of their own, which their packages link by alternatives.
            let libraries = tree.join("usr/lib/x86_64-linux-gnu");
            let places = [libraries.clone(), libraries.join("pulseaudio"), tree.join("lib/x86_64-linux-gnu")];
            if let Ok(path) = env::join_paths(places) {
                command.env("LD_LIBRARY_PATH", path);
            }
            for place in FIRMWARE {
                command.arg("-L").arg(tree.join(place));
            }
        }
        command
    }

    /// Its version.
    pub(crate) fn version(&self) -> Result<String> {
        let text = output(self.command().arg("--version"))?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    /// Boots a machine and hears it out.
    pub(crate) fn run(&self, machine: &Machine<'_>) -> Result<Results> {
        let mut command = self.command();
        // Nehalem: what tcg emulates of later ones has had bugs that 6.12 trips over.
        // One thread for all its CPUs: with one each, CPUs of 5.10 were seen to hang where the kernel patches its own code; and
        // machines side by side leave no core idle.
        command.args(["-accel", "tcg,thread=single", "-cpu", "Nehalem", "-m", "1024"]);
        command.arg("-smp").arg(format!("2,maxcpus={}", machine.possible_cpus));
        command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        command.arg("-serial").arg(format!("file:{}", machine.console.display()));
        command.args(["-chardev", "stdio,id=events,signal=off", "-serial", "chardev:events"]);
        command.arg("-kernel").arg(machine.vmlinuz).arg("-initrd").arg(machine.initrd);
        // An emulated CPU leaks nothing, but page tables that change with each system call empty what the emulator has translated;
        // and of its clocks, this alone is read without leaving the machine. Tests take two fifths of the time.
        command.args([
            "-append",
            "console=ttyS0 loglevel=5 panic=-1 mitigations=off tsc=reliable clocksource=tsc",
        ]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", show(&command)))?;
        let (sender, receiver) = sync_channel(64);
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                let lines = BufReader::new(stdout).split(b'\n').map_while(Result::ok);
                // The receiver is gone when the machine is given up.
                lines.map(|line| sender.send(line)).take_while(Result::is_ok).for_each(drop);
            });
        }
        let mut results = Results::default();
        let ended = loop {
            match receiver.recv_timeout(machine.timeout + SILENCE) {
                Ok(line) => match results.take(&String::from_utf8_lossy(&line), machine.prefix) {
                    Ok(false) => {}
                    ended => break ended,
                },
                Err(RecvTimeoutError::Disconnected) => break Ok(false),
                Err(RecvTimeoutError::Timeout) => break Ok(false),
            }
        };
        // It is off, or of no more use.
        let _off = child.kill();
        child.wait()?;
        match ended {
            Ok(true) => {}
            Ok(false) => say(format_args!(
                "{}the machine died. The end of its console:\n{}",
                machine.prefix,
                last_lines(machine.console)
            )),
            Err(error) => say(format_args!("{}{error:#}", machine.prefix)),
        }
        Ok(results)
    }
}

fn last_lines(console: &Path) -> String {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().collect::<Vec<_>>();
    lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default().join("\n")
}
