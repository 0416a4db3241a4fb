//! Paths that calls in flight were given, out of the memory of their processes.
//!
//! Who reads that waits for the process's memory to be free, and where file systems hang that may be never. So a thread of its own
//! does, one path at a time; while it waits, no other is asked for.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use probe_common::syscalls::PATH_LEN;

/// How long a path may take.
const PATIENCE: Duration = Duration::from_millis(50);
/// Memory comes and goes by pages; a path may end just before one that is not there.
const PAGE: u64 = 4096;

/// The answer; none where nothing reads.
type Answer = Option<Box<str>>;

struct Order {
    tgid: u32,
    address: u64,
    answer: SyncSender<Answer>,
}

/// Asks for paths.
#[derive(Default)]
pub(super) struct Paths {
    /// Begun with the first one: until all is attached there must be one thread, for capabilities belong to threads.
    orders: Option<SyncSender<Order>>,
    /// The answer that did not come in time: until it does, the thread hangs.
    late: Option<Receiver<Answer>>,
}

impl Paths {
    /// The text at an address of a process; none if it does not read, or not soon. Other users' processes need CAP_SYS_PTRACE.
    pub(super) fn at(&mut self, tgid: u32, address: u64) -> Answer {
        if let Some(late) = &self.late {
            if late.try_recv() == Err(TryRecvError::Empty) {
                return None;
            }
            self.late = None;
        }
        let orders = self.orders.get_or_insert_with(|| {
            let (send, receive) = sync_channel::<Order>(1);
            std::thread::spawn(move || {
                while let Ok(Order { tgid, address, answer }) = receive.recv() {
                    // Whoever asked may have gone.
                    let _late = answer.send(read(tgid, address));
                }
            });
            send
        });
        let (answer, hear) = sync_channel(1);
        orders.try_send(Order { tgid, address, answer }).ok()?;
        match hear.recv_timeout(PATIENCE) {
            Ok(path) => path,
            Err(RecvTimeoutError::Timeout) => {
                self.late = Some(hear);
                None
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }
}

fn read(tgid: u32, address: u64) -> Answer {
    text_at(&File::open(format!("/proc/{tgid}/mem")).ok()?, address)
}

fn text_at(memory: &File, address: u64) -> Answer {
    let mut bytes = [0; PATH_LEN];
    let whole = u64::try_from(PATH_LEN).ok()?;
    let first = usize::try_from((PAGE - address % PAGE).min(whole)).ok()?;
    let (here, beyond) = bytes.split_at_mut(first);
    memory.read_exact_at(here, address).ok()?;
    if !here.contains(&0) && !beyond.is_empty() {
        // What is there is there.
        let _absent = memory.read_exact_at(beyond, address.checked_add(first.try_into().ok()?)?);
    }
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(bytes.get(..end)?);
    (!text.is_empty()).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_out_of_memory() {
        let mut paths = Paths::default();
        let own = std::process::id();
        let text = c"/mnt/nfs/report";
        let long = "x".repeat(500);
        for (address, want) in [
            (text.as_ptr().addr(), Some("/mnt/nfs/report")),
            (long.as_ptr().addr(), Some(&long[..PATH_LEN])),
            (c"".as_ptr().addr(), None),
            (0, None),
            (usize::MAX, None),
        ] {
            assert_eq!(paths.at(own, address as u64).as_deref(), want, "{address:#x}");
        }
        assert_eq!(paths.at(u32::MAX, 4096), None, "no such process");
    }

    #[test]
    fn a_path_may_end_where_memory_does() {
        let memory = File::from(rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        memory.write_all_at(b"/end", PAGE - 4).unwrap();
        assert_eq!(text_at(&memory, PAGE - 4).as_deref(), Some("/end"), "without a NUL");
        memory.write_all_at(b"less", PAGE).unwrap();
        assert_eq!(text_at(&memory, PAGE - 4).as_deref(), Some("/endless"));
        assert_eq!(text_at(&memory, 2 * PAGE), None);
    }
}
