//! Fresh network namespaces: nothing in them but loopback, and counters that begin at zero.
#![expect(unsafe_code, reason = "unshare, setns, and the ioctl that brings loopback up have no safe wrapper")]

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::net::{AddressFamily, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::probe::require_root;

/// A network namespace with loopback up. It ends with the last thread, process, socket and clone of this in it.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    inode: u32,
}

impl Netns {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// Not root, or the kernel refuses.
    pub fn new() -> Result<Self> {
        require_root()?;
        let made = std::thread::spawn(|| {
            // SAFETY: the thread is new, shares no network state with others by intent, and ends right after.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("cannot make a network namespace")?;
            loopback_up()?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        let file =
            made.join().unwrap_or_else(|_panic| Err(anyhow!("the thread in the namespace panicked")))?;
        let inode = u32::try_from(file.metadata()?.ino())?;
        Ok(Self { file: Arc::new(file), inode })
    }

    /// Its inode number: attribute `linux.netns`.
    #[must_use]
    pub const fn inode(&self) -> u32 {
        self.inode
    }

    /// A path by which other processes can name it, as long as this process holds it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `inside` on a thread of its own in the namespace; threads that it spawns are in there too. A panic in it goes
    /// on in the caller.
    ///
    /// # Errors
    ///
    /// The kernel does not let the thread in.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<T> {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("cannot enter the network namespace")?;
                Ok(inside())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Makes `command` start inside the namespace.
    pub fn place(&self, command: &mut Command) {
        let file = self.file.clone();
        let enter = move || {
            // SAFETY: setns is async-signal-safe; the descriptor is open in the child.
            if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        };
        // SAFETY: between fork and exec only setns is called.
        unsafe { command.pre_exec(enter) };
    }

    /// Runs `program` with `words`, separated by spaces, inside the namespace.
    ///
    /// # Errors
    ///
    /// It is not there, or says that it failed.
    pub fn call(&self, program: &str, words: &str) -> Result<()> {
        let mut command = Command::new(program);
        self.place(command.args(words.split_whitespace()).stdin(Stdio::null()));
        let output = command.output().with_context(|| format!("{program}: install iproute2 and nftables"))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {words}: {}: {complaint}", output.status);
        Ok(())
    }

    /// Reads a file of `/proc/net` as the namespace sees it.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub fn proc_net(&self, name: &str) -> Result<String> {
        self.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")))?
            .with_context(|| format!("cannot read /proc/net/{name}"))
    }
}

/// Brings loopback of this thread's namespace up: 127.0.0.1 and ::1 with it.
///
/// # Errors
///
/// Not root.
pub fn loopback_up() -> Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: plain old data for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: an open socket, and a request that lives through the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot bring loopback up");
    }
    Ok(())
}
