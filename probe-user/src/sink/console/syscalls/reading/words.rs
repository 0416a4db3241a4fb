//! What the names of errors and of the kernel's functions say to who has to act on them.

/// Where a call waits, and for whom. Functions are of the kernel's, from 5.10 on; the first that fits.
const PLACES: &[(&[&str], &str)] = &[
    (&["wait_for_partner", "fifo_open"], "nobody has opened the other end of the FIFO"),
    (&["pipe_read", "pipe_wait_readable", "anon_pipe_read", "fifo_pipe_read"], "nobody writes into the pipe"),
    (
        &["pipe_write", "pipe_wait_writable", "anon_pipe_write", "fifo_pipe_write"],
        "nobody reads what is in the pipe, and it is full",
    ),
    (&["request_wait_answer", "fuse_"], "the server of the FUSE file system does not answer"),
    (&["rpc_wait_bit_killable", "nfs_", "nfs4_"], "the NFS server does not answer"),
    (
        &["flock_lock_inode_wait", "posix_lock_inode_wait", "locks_lock_inode_wait", "fcntl_setlk"],
        "somebody else holds the lock on the file",
    ),
    (
        &["rwsem_down_", "__mutex_lock", "mutex_lock", "down_read", "down_write"],
        "another thread holds a lock of the kernel's",
    ),
    (
        &["jbd2_", "wait_transaction_locked", "xlog_", "xfs_log_"],
        "the file system's journal waits for the disk",
    ),
    (
        &[
            "folio_wait_bit_",
            "wait_on_page_bit_",
            "bit_wait_io",
            "submit_bio_wait",
            "blk_mq_get_tag",
            "blkdev_",
            "io_schedule",
            "wait_on_buffer",
        ],
        "the disk, or what stands for it, does not answer",
    ),
    (
        &["sk_stream_wait_memory", "sock_alloc_send_pskb", "sock_wait_for_wmem"],
        "the peer does not take what is sent",
    ),
    (
        &[
            "sk_wait_data",
            "tcp_recvmsg",
            "unix_stream_",
            "__skb_wait_for_more_packets",
            "inet_wait_for_connect",
        ],
        "the peer does not answer",
    ),
    (&["n_tty_read"], "nobody types at the terminal"),
];

/// What a place says. None: its name has to do.
pub(super) fn place(wchan: &str) -> Option<&'static str> {
    let fits = |names: &[&str]| {
        names.iter().any(|name| if name.ends_with('_') { wchan.starts_with(name) } else { wchan == *name })
    };
    PLACES.iter().find(|(names, _)| fits(names)).map(|(_, meaning)| *meaning)
}

/// Errors that say that something is used up or broken, whoever gets them.
pub(super) fn limit(call: &str, errno: &str) -> Option<&'static str> {
    match (call, errno) {
        ("inotify_init" | "inotify_init1", "EMFILE") => {
            Some("fs.inotify.max_user_instances is reached, or the process's limit of open files")
        }
        ("inotify_add_watch", "ENOSPC") => Some("fs.inotify.max_user_watches is reached"),
        ("epoll_ctl", "ENOSPC") => Some("fs.epoll.max_user_watches is reached"),
        (_, "EMFILE") => Some("it has as many files open as it may (ulimit -n, LimitNOFILE=), or leaks them"),
        (_, "ENFILE") => Some("the host has as many files open as fs.file-max lets it"),
        (
            "write" | "pwrite64" | "writev" | "pwritev" | "pwritev2" | "fallocate" | "ftruncate" | "open"
            | "openat" | "openat2" | "creat" | "mkdir" | "mkdirat" | "symlink" | "symlinkat" | "link"
            | "linkat" | "rename" | "renameat" | "renameat2" | "copy_file_range" | "sendfile" | "splice"
            | "fsync" | "fdatasync" | "close",
            "ENOSPC",
        ) => Some("the file system is full, of data or of inodes (df, df -i)"),
        (_, "EDQUOT") => Some("a quota is used up"),
        (
            "read" | "pread64" | "readv" | "write" | "pwrite64" | "writev" | "fsync" | "fdatasync"
            | "sync_file_range" | "msync" | "getdents64" | "openat" | "newfstatat" | "statx",
            "EIO",
        ) => {
            Some("a disk, a file system or a server of one reports an error (dmesg), or a terminal has gone")
        }
        _ => None,
    }
}

/// Errors that are an answer like any other.
pub(super) fn is_ordinary(call: &str, errno: &str) -> bool {
    matches!(
        (call, errno),
        ("connect", "EINPROGRESS")
            | ("futex" | "futex_wait" | "futex_waitv", "ETIMEDOUT")
            | ("rt_sigtimedwait" | "semtimedop", "EAGAIN")
            | ("wait4" | "waitid", "ECHILD")
            | ("ioctl", "ENOTTY")
            | ("readlink" | "readlinkat", "EINVAL")
    )
}

/// What an error says about who gets it time and again.
pub(super) fn meaning(call: &str, errno: &str) -> Option<&'static str> {
    let is_restart = errno == "EINTR" || errno.starts_with("ERESTART");
    match (call, errno) {
        ("futex" | "futex_wait", "EAGAIN") => {
            Some("what it was to wait for had changed already: threads contend for a lock")
        }
        (_, "EAGAIN") => Some(
            "there was nothing to be had yet, and it was asked again instead of waited for (epoll, poll)",
        ),
        (_, "ENOENT") => Some(
            "names that do not exist, as where a search path is gone through (libraries, modules, headers, locales)",
        ),
        ("close", "EBADF") => Some(
            "it closes what is not open, as who closes all descriptors one by one (close_range does it in one call)",
        ),
        (_, "EBADF") => Some("it uses descriptors that are not open"),
        (_, "EACCES" | "EPERM") => {
            Some("it may not: permissions, capabilities, a security module or a sandbox")
        }
        (_, "ENOSYS") => Some("this kernel, or a sandbox, does not have it, and it is tried each time"),
        (_, "EPIPE" | "ECONNRESET") => Some("the other end has gone"),
        (_, "ECONNREFUSED") => Some("nobody listens there"),
        (_, "ETIMEDOUT") => Some("nobody answered in time"),
        _ if is_restart => Some("signals interrupt it: timers, profilers, children that end"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_by_their_names() {
        for (wchan, want) in [
            ("fuse_simple_request", Some("the server of the FUSE file system does not answer")),
            ("folio_wait_bit_common", Some("the disk, or what stands for it, does not answer")),
            ("jbd2_log_wait_commit", Some("the file system's journal waits for the disk")),
            ("pipe_readable", None),
            ("wait_woken", None),
        ] {
            assert_eq!(place(wchan), want, "{wchan}");
        }
    }
}
