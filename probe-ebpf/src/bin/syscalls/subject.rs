//! What a call is about: its arguments, the file behind a descriptor, the ends of a socket, the path it was given.

use core::hint::black_box;

use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_probe_read_kernel_str, bpf_probe_read_user_str,
};
use probe_common::fields::KernelPointer;
use probe_common::syscalls::{HAS_ARGS, HAS_FILE, HAS_PATH, HAS_SOCKET, NAME_LEN, PATH_LEN, Rule, Subject};
use probe_ebpf::{Error, Result, kread, socket};

/// Kinds of files, `st_mode` of inode(7).
const S_IFMT: u32 = 0o170_000;
const S_IFSOCK: u32 = 0o140_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFREG: u32 = 0o100_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFDIR: u32 = 0o040_000;

/// Whether the first argument of the current task's call is a descriptor of what others feed: a pipe, a socket, a terminal, an
/// eventfd; no file of a disk.
#[inline(always)]
pub(crate) fn is_fed(regs: KernelPointer, compat: bool) -> bool {
    // SAFETY: the helper has no requirement.
    let task = unsafe { bpf_get_current_task() };
    let descriptor = if compat { kread!(regs, REGS_BX) } else { kread!(regs, REGS_ARG0) };
    descriptor.and_then(|descriptor| is_fed_file(task, descriptor)).unwrap_or(false)
}

/// The same of a descriptor of a task.
#[inline(always)]
pub(crate) fn is_fed_file(task: KernelPointer, descriptor: u64) -> Result<bool> {
    let inode = kread!(file(task, descriptor)?, FILE_INODE)?;
    let kind = u32::from(kread!(inode, INODE_MODE)?) & S_IFMT;
    Ok(kind != S_IFREG && kind != S_IFDIR && kind != S_IFBLK && kind != S_IFLNK)
}

/// The open file of a task's descriptor.
#[inline(always)]
fn file(task: KernelPointer, descriptor: u64) -> Result<KernelPointer> {
    let table = kread!(kread!(task, TASK_FILES)?, FILES_FDT)?;
    // A descriptor is an `unsigned int`, whatever the register holds.
    let descriptor = descriptor as u32;
    if descriptor >= kread!(table, FDT_MAX_FDS)? {
        return Err(Error::NotOurs);
    }
    kread::read_at(kread!(table, FDT_FD)? + u64::from(descriptor) * 8)
}

/// Fills in what reads; `subject` is all zeros. `own`: of the current task, whose memory can be read.
#[inline(always)]
pub(crate) fn describe(
    subject: &mut Subject,
    task: KernelPointer,
    regs: KernelPointer,
    rule: &Rule,
    compat: bool,
    own: bool,
) {
    if arguments(&mut subject.args, regs, compat).is_err() {
        return;
    }
    subject.has = HAS_ARGS;
    if let Some(descriptor) = argument(&subject.args, rule.fd)
        && let Ok(file) = file(task, descriptor)
        && describe_file(subject, file).is_ok()
    {
        subject.has |= HAS_FILE;
    }
    if let Some(path) = argument(&subject.args, rule.path)
        && own
    {
        // SAFETY: the helper checks the address, and writes no further than the length.
        let len = unsafe {
            bpf_probe_read_user_str((&raw mut subject.path).cast(), PATH_LEN as u32, path as *const _)
        };
        if len > 0 {
            subject.has |= HAS_PATH;
        }
    }
}

/// Argument number `which`, from 1; 0: none.
#[inline(always)]
fn argument(args: &[u64; 6], which: u8) -> Option<u64> {
    // Laundered, or the compiler leaves out what the verifier looks for.
    let at = black_box(u64::from(which).wrapping_sub(1));
    if at < 6 { Some(args[at as usize]) } else { None }
}

#[inline(always)]
fn arguments(args: &mut [u64; 6], regs: KernelPointer, compat: bool) -> Result<()> {
    if compat {
        // arch/x86/entry/syscall_32.c
        args[0] = kread!(regs, REGS_BX)?;
        args[1] = kread!(regs, REGS_CX)?;
        args[2] = kread!(regs, REGS_ARG2)?;
        args[3] = kread!(regs, REGS_ARG1)?;
        args[4] = kread!(regs, REGS_ARG0)?;
        args[5] = kread!(regs, REGS_BP)?;
        return Ok(());
    }
    args[0] = kread!(regs, REGS_ARG0)?;
    args[1] = kread!(regs, REGS_ARG1)?;
    args[2] = kread!(regs, REGS_ARG2)?;
    args[3] = kread!(regs, REGS_ARG3)?;
    args[4] = kread!(regs, REGS_ARG4)?;
    args[5] = kread!(regs, REGS_ARG5)?;
    Ok(())
}

#[inline(always)]
fn describe_file(subject: &mut Subject, file: KernelPointer) -> Result<()> {
    let inode = kread!(file, FILE_INODE)?;
    subject.inode = kread!(inode, INODE_INO)?;
    subject.mode = u32::from(kread!(inode, INODE_MODE)?);
    let name = kread!(kread!(file, FILE_DENTRY)?, DENTRY_NAME)?;
    // SAFETY: the helper checks the address, and writes no further than the length.
    let _len = unsafe {
        bpf_probe_read_kernel_str((&raw mut subject.name).cast(), NAME_LEN as u32, name as *const _)
    };
    if subject.mode & S_IFMT == S_IFSOCK {
        let sk = kread!(kread!(file, FILE_PRIVATE_DATA)?, SOCKET_SK)?;
        if socket::describe(sk, &mut subject.socket).is_ok() {
            subject.has |= HAS_SOCKET;
        }
    }
    Ok(())
}
