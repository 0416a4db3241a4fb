//! What a kernel hides from BPF programs, told by the kernel's other tracer.
//!
//! The kernel of the reference host runs no BPF program while a thread of process 1 (the machine's own agent) is on the
//! CPU, and TCP's timers interrupt whatever is on the CPU. ftrace sees those moments. A test that lost an event to one
//! of them tells nothing about `probe`, and may try again; a test that fails without one has failed.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// The tracepoints of `probe tcp` that can be hit anywhere.
const EVENTS: [&str; 6] = [
    "sock/inet_sock_set_state",
    "tcp/tcp_cong_state_set",
    "tcp/tcp_receive_reset",
    "tcp/tcp_retransmit_skb",
    "tcp/tcp_retransmit_synack",
    "tcp/tcp_send_reset",
];

/// Watches tracepoints with ftrace, in a trace of its own; it goes when this is dropped.
#[derive(Debug)]
pub struct BlindSpot {
    instance: PathBuf,
    /// A mount that nobody else sees.
    _tracefs: OwnedFd,
}

impl BlindSpot {
    /// Begins to watch.
    ///
    /// # Errors
    ///
    /// No ftrace, or not root.
    pub fn watch() -> Result<Self> {
        let context = rustix::mount::fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let tracefs = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let instances = format!("/proc/self/fd/{}/instances", tracefs.as_raw_fd());
        let instance = Path::new(&instances).join(format!("probe-test-{}", std::process::id()));
        std::fs::create_dir(&instance).with_context(|| format!("cannot make {}", instance.display()))?;
        let blind_spot = Self { instance, _tracefs: tracefs };
        for event in EVENTS {
            // Older kernels lack some.
            let switch = blind_spot.instance.join("events").join(event).join("enable");
            if switch.exists() {
                std::fs::write(&switch, "1").with_context(|| switch.display().to_string())?;
            }
        }
        Ok(blind_spot)
    }

    /// How often a tracepoint was hit while a thread of process 1 was on the CPU.
    ///
    /// # Errors
    ///
    /// The trace does not read.
    pub fn hits(&self) -> Result<usize> {
        let threads: Vec<String> = std::fs::read_dir("/proc/1/task")?
            .map(|thread| Ok(thread?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        let trace = std::fs::read_to_string(self.instance.join("trace"))?;
        let hidden = |line: &&str| task(line).is_some_and(|tid| threads.iter().any(|thread| thread == tid));
        Ok(trace.lines().filter(hidden).count())
    }
}

/// The thread of a line of a trace: `  comm-123   [001] ..s1.  8797.132255: tcp_retransmit_skb: …`
fn task(line: &str) -> Option<&str> {
    let (task, _) = line.split_once(" [")?;
    Some(task.trim_end().rsplit_once('-')?.1)
}

impl Drop for BlindSpot {
    fn drop(&mut self) {
        for event in EVENTS {
            let switch = self.instance.join("events").join(event).join("enable");
            let _absent = std::fs::write(switch, "0");
        }
        let _left = std::fs::remove_dir(&self.instance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_read_from_traces() {
        let line = " tokio-rt-worker-69      [001] ..s1.  8797.132255: tcp_retransmit_skb: skbaddr=0 err=0";
        assert_eq!(task(line), Some("69"));
        assert_eq!(task("          <idle>-0       [000] ..s2.  1.0: tcp_send_reset: x"), Some("0"));
        assert_eq!(task("#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION"), None);
    }
}
