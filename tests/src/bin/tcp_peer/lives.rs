//! How orders go on to another process, or to another program: each has stdin and stdout from then on.
#![expect(unsafe_code, reason = "fork, clone3 and sockets that came through execve have no safe wrapper")]

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use rustix::io::FdFlags;
use rustix::process::{Pid, WaitOptions};
use socket2::Socket;

/// The sockets that came through execve; none: this process was not begun by [`become_program`] or [`start_as`].
pub(crate) fn inherited() -> Result<Option<Vec<Socket>>> {
    let Some(numbers) = std::env::args().nth(1) else { return Ok(None) };
    let sockets = numbers.split_terminator(',').map(|number| {
        let number = number.parse()?;
        // SAFETY: the program before this left it open for this one, which takes each once.
        Ok(unsafe { OwnedFd::from_raw_fd(number) }.into())
    });
    sockets.collect::<Result<_>>().map(Some)
}

/// A child with copies of everything, which takes the orders from now on. Returns in the child; this process calls `part`,
/// waits for its end, and ends as it does.
pub(crate) fn fork(part: impl FnOnce()) -> Result<()> {
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()).context("fork"),
        0 => Ok(()),
        child => {
            part();
            wait_for(child)
        }
    }
}

/// Starts a program as the process of this number, with no sockets, and ends as it does.
pub(crate) fn start_as(pid: i32, program: &str) -> Result<()> {
    // SAFETY: plain old data for which zero is valid.
    let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
    how.exit_signal = libc::SIGCHLD.cast_unsigned().into();
    how.set_tid = (&raw const pid).addr() as u64;
    how.set_tid_size = 1;
    // SAFETY: as fork: this process has one thread, and nothing is shared. Both structs live through the call.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const how, size_of_val(&how)) } {
        -1 => Err(std::io::Error::last_os_error()).with_context(|| format!("clone3 of process {pid}")),
        0 => become_program(program, &[]),
        child => wait_for(i32::try_from(child)?),
    }
}

/// Goes on as another program, with these sockets.
pub(crate) fn become_program(program: &str, sockets: &[&Socket]) -> Result<()> {
    for socket in sockets {
        rustix::io::fcntl_setfd(socket, FdFlags::empty())?;
    }
    let numbers: Vec<String> = sockets.iter().map(|socket| socket.as_raw_fd().to_string()).collect();
    let error = Command::new(program).arg(numbers.join(",")).exec();
    Err(error).with_context(|| program.to_owned())
}

fn wait_for(child: i32) -> Result<()> {
    match rustix::process::waitpid(Pid::from_raw(child), WaitOptions::empty())? {
        Some((_, status)) if status.exit_status() == Some(0) => std::process::exit(0),
        ended => bail!("the new process ended with {ended:?}"),
    }
}
