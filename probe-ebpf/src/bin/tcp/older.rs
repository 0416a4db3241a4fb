//! Whose the sockets are that were there before: one walk over the open files of all processes, of every network namespace,
//! once the other programs are attached.
//!
//! A file is held while the program looks at it, so its socket does not go meanwhile.

use core::ffi::c_void;

use probe_common::fields::{self, KernelPointer};
use probe_common::loss::Counter;
use probe_common::tcp::Listeners;
use probe_common::wire::Owner;
use probe_ebpf::{Error, Result, emit, kread, socket, task};

use crate::owners::{
    LISTENERS, SOCKETS, add_listener, is_tcp, listener_key, new_state, remember, remove_listener,
};
use crate::{NEUTRAL, TCP_CLOSE, TCP_LISTEN, segments};

/// include/uapi/linux/magic.h
const SOCKFS_MAGIC: u64 = 0x534f_434b;

/// include/linux/net.h
const SOCK_STREAM: u16 = 1;

const BPF_EXIST: u64 = 2;

/// `struct bpf_iter__task_file` of kernel/bpf/task_iter.c: every member takes eight bytes.
#[repr(C)]
struct Visit {
    meta: *mut c_void,
    /// Null at the end of the walk.
    task: *mut c_void,
    descriptor: u64,
    /// Null at the end of the walk.
    file: *mut c_void,
}

/// `bpf_iter_task_file(struct bpf_iter_meta *meta, struct task_struct *task, u32 fd, struct file *file)`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub fn older_sockets(visit: *mut c_void) -> i32 {
    let visit = visit.cast::<Visit>();
    // SAFETY: the context of this hook.
    let (task, file) =
        unsafe { ((&raw const (*visit).task).read_volatile(), (&raw const (*visit).file).read_volatile()) };
    let looked = kread::address_of(task).and_then(|task| look_at(task, kread::address_of(file)?));
    if let Err(Error::Read) = looked {
        emit::count(Counter::KernelRead, 1);
    }
    NEUTRAL
}

#[inline(always)]
fn look_at(task: KernelPointer, file: KernelPointer) -> Result<()> {
    if task == 0 || file == 0 {
        return Err(Error::NotOurs);
    }
    if kread!(kread!(kread!(file, FILE_INODE)?, INODE_SB)?, SB_MAGIC)? != SOCKFS_MAGIC {
        return Err(Error::NotOurs);
    }
    // Null while it is being made or taken apart.
    let socket = kread!(file, FILE_PRIVATE_DATA)?;
    let sk = if socket == 0 { 0 } else { kread!(socket, SOCKET_SK)? };
    // A raw socket may have TCP's number, too.
    if sk == 0 || kread!(socket, SOCKET_TYPE)? != SOCK_STREAM {
        return Err(Error::NotOurs);
    }
    let family = kread!(sk, SKC_FAMILY)?;
    if (family != socket::AF_INET && family != socket::AF_INET6) || !is_tcp(sk)? {
        return Err(Error::NotOurs);
    }
    let state = i32::from(kread!(sk, SKC_STATE)?);
    if state == TCP_CLOSE {
        return Err(Error::NotOurs);
    }
    let owner = task::owner_of(task)?;
    found(sk, &owner, state == TCP_LISTEN)
}

/// A socket that a process has. What a hook has noted stays; of several who have it, it is the oldest's: he made it, the
/// others inherited it.
#[inline(always)]
fn found(sk: KernelPointer, owner: &Owner, listens: bool) -> Result<()> {
    let mut state = new_state(*owner, 0);
    state.found = 1;
    if let Some(known) = SOCKETS.get_ptr(sk) {
        // SAFETY: a value of the map.
        let (found, before) = unsafe { ((*known).found, (*known).owner) };
        if found != 0 && before.start_ns > owner.start_ns {
            segments::begin(sk, &mut state);
            remember(sk, &state);
            if listens {
                replace_listener(sk, &before, owner)?;
            }
        }
        return Ok(());
    }
    segments::begin(sk, &mut state);
    remember(sk, &state);
    if !listens {
        return Ok(());
    }
    let key = listener_key(sk)?;
    if key.local_port != 0 {
        let shared = kread::read_bits(sk, fields::SKC_REUSEPORT)? != 0;
        add_listener(sk, &key, owner, shared);
        if i32::from(kread!(sk, SKC_STATE)?) != TCP_LISTEN {
            // It ended just before it was added.
            remove_listener(&key)?;
        }
    }
    Ok(())
}

#[inline(always)]
fn replace_listener(sk: KernelPointer, before: &Owner, owner: &Owner) -> Result<()> {
    let key = listener_key(sk)?;
    if let Some(listeners) = LISTENERS.get_ptr(key) {
        // SAFETY: a value of the map, copied at once.
        let known = unsafe { *listeners };
        if known.owner.tgid == before.tgid {
            // It fails when the listener has just ended, which is as good.
            let _absent = LISTENERS.insert(key, Listeners { owner: *owner, ..known }, BPF_EXIST);
        }
    }
    Ok(())
}
