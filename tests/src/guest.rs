//! Process 1 of a virtual machine: makes a small host of it, runs the plan, and turns it off.

use std::ffi::CString;
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, WaitOptions};
use rustix::system::RebootCommand;

use crate::netns::loopback_up;
use crate::protocol::{GUEST_MODULES, GUEST_PLAN};
use crate::runner;

/// Where events go: the second serial port.
const GUEST_EVENTS: &str = "/dev/ttyS1";
/// For everybody.
const TMP: &str = "/tmp";
/// Who may use perf.
pub const PERF_PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";
/// File systems of a host, with their places and options. Those below the first have their directories from the kernel.
const MOUNTS: [(&str, &str, &str); 7] = [
    ("devtmpfs", "/dev", ""),
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devpts", "/dev/pts", "ptmxmode=666"),
    ("securityfs", "/sys/kernel/security", ""),
    ("tracefs", "/sys/kernel/tracing", ""),
    ("cgroup2", "/sys/fs/cgroup", ""),
];

/// Runs the virtual machine to its end. Called as process 1; does not return unless the machine cannot be turned off.
///
/// # Errors
///
/// The machine cannot be turned off.
pub fn main() -> Result<()> {
    if let Err(error) = live() {
        // The console is all there is; the other side sees that no end was told.
        tracing::error!("{error:#}");
    }
    rustix::system::reboot(RebootCommand::PowerOff).context("cannot turn the machine off")
}

fn live() -> Result<()> {
    for (kind, place, options) in MOUNTS {
        std::fs::create_dir_all(place).with_context(|| place.to_owned())?;
        let options = CString::new(options)?;
        mount(kind, place, kind, MountFlags::NOSUID, options.as_c_str())
            .with_context(|| format!("cannot mount {kind} at {place}"))?;
    }
    // Nothing is mounted there: the checkout, and with it what is to run, may be below it.
    std::fs::create_dir_all(TMP)?;
    std::fs::set_permissions(TMP, Permissions::from_mode(0o1777))?;
    // Debian's 3 keeps perf's tracepoints for CAP_SYS_ADMIN; the kernel itself knows up to 2, its default.
    std::fs::write(PERF_PARANOID, "2").context(PERF_PARANOID)?;
    loopback_up()?;
    load_modules(Path::new(GUEST_MODULES))?;
    // The runner is a child, so that this process has nothing to do but what process 1 must: bury orphans.
    let runner = Command::new("/proc/self/exe").arg(GUEST_PLAN).arg(GUEST_EVENTS).spawn()?;
    let runner = i32::try_from(runner.id()).ok().and_then(Pid::from_raw).context("no such pid")?;
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, _status))) if pid == runner => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the runner"),
        }
    }
}

fn load_modules(directory: &Path) -> Result<()> {
    let Ok(modules) = std::fs::read_dir(directory) else { return Ok(()) };
    for module in modules {
        let path = module?.path();
        rustix::system::finit_module(File::open(&path)?, c"", 0)
            .with_context(|| format!("cannot load {}", path.display()))?;
    }
    Ok(())
}

/// The runner: a plan's file, and where its events go.
///
/// # Errors
///
/// The plan does not read, or the events cannot be written.
pub fn run_plan(plan: &Path, events: &Path) -> Result<()> {
    let text = std::fs::read(plan).with_context(|| format!("cannot read {}", plan.display()))?;
    let plan = serde_json::from_slice(&text).with_context(|| plan.display().to_string())?;
    let mut events = OpenOptions::new()
        .append(true)
        .open(events)
        .with_context(|| format!("cannot write {}", events.display()))?;
    runner::run(&plan, &mut events)
}
