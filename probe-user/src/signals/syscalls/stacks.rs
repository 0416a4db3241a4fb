//! Stacks of calls: a thread of their own gives them names and adds them up, because it reads the files of strangers, and their file
//! systems may hang.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use probe_common::syscalls::{StackRecord, SyscallId};
use probe_common::wire::Owner;

use super::names;
use crate::signals::who::comm;
use crate::stacks::{Folded, FoldedLimits, Frame, KernelSymbols, Limits, Symbolizer, Unresolved, Weight};

/// Records that wait for their names.
const WAITING: usize = 4_096;
/// How long a slow call waits for the names of its stack; it is told without then.
const PATIENCE: Duration = Duration::from_millis(200);
/// The same at the end, for all that still waits.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// What all stacks come to.
#[derive(Debug)]
pub struct Sampled {
    /// Stacks and their weights.
    pub folded: Folded,
    /// What had no name.
    pub unresolved: Unresolved,
    /// Why the kernel's functions have no names, and what to do, if so.
    pub remedy: Option<String>,
    /// Stacks that came faster than they could be named.
    pub lost: u64,
}

enum Order {
    Add(Box<StackRecord>),
    /// Of a slow call: its text is wanted now.
    Tell(Box<StackRecord>, SyncSender<String>),
}

/// The thread, and what is sent to it.
pub(super) struct Stacks {
    kernel: Arc<KernelSymbols>,
    /// Begun with the first record: until all is attached there must be one thread, for capabilities belong to threads.
    running: Option<(SyncSender<Order>, JoinHandle<Sampled>)>,
    /// The stack of the slow call that is told next.
    slow: Option<(u32, String)>,
    lost: u64,
}

impl Stacks {
    pub(super) fn new(kernel: Arc<KernelSymbols>) -> Self {
        Self { kernel, running: None, slow: None, lost: 0 }
    }

    /// Takes a record in.
    pub(super) fn take(&mut self, record: Box<StackRecord>) {
        let kernel = &self.kernel;
        let (orders, _) = self.running.get_or_insert_with(|| {
            let (send, receive) = sync_channel(WAITING);
            let kernel = Arc::clone(kernel);
            (send, std::thread::spawn(move || name_all(&receive, kernel)))
        });
        let (tid, is_slow) = (record.tid, record.is_slow != 0);
        let (answer, hear) = sync_channel(1);
        let order = if is_slow { Order::Tell(record, answer) } else { Order::Add(record) };
        match orders.try_send(order) {
            Ok(()) if is_slow => {
                // None: it takes too long.
                self.slow = hear.recv_timeout(PATIENCE).ok().map(|text| (tid, text));
            }
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.lost += 1,
        }
    }

    /// The stack of a thread's slow call, folded; it came just before the call itself.
    pub(super) fn of_slow(&mut self, tid: u32) -> Option<Box<str>> {
        let (_, text) = self.slow.take().filter(|(of, _)| *of == tid)?;
        Some(text.into())
    }

    /// Ends the thread: what all came to. `None` if it does not end, or nothing came.
    pub(super) fn end(&mut self) -> Option<Sampled> {
        let (orders, thread) = self.running.take()?;
        drop(orders);
        let deadline = std::time::Instant::now() + LAST_PATIENCE;
        while !thread.is_finished() && std::time::Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        if !thread.is_finished() {
            tracing::warn!("stacks are missing: a file system hangs that has a program or library of theirs");
            return None;
        }
        let mut sampled = thread.join().ok()?;
        sampled.lost = self.lost;
        Some(sampled)
    }
}

/// What the thread does.
fn name_all(orders: &Receiver<Order>, kernel: Arc<KernelSymbols>) -> Sampled {
    let remedy = kernel.remedy();
    let mut symbolizer = Symbolizer::new(kernel, Limits::default());
    let mut folded = Folded::new(FoldedLimits::default());
    while let Ok(order) = orders.recv() {
        match order {
            Order::Add(record) => {
                let (user, kernel) = frames(&mut symbolizer, &record);
                add(&mut folded, &record, &user, &kernel);
            }
            Order::Tell(record, answer) => {
                let (user, kernel) = frames(&mut symbolizer, &record);
                let parts = user.iter().chain(&kernel).map(|frame| frame.name.as_ref());
                // Whoever asked may have gone on.
                let _late = answer.send(parts.collect::<Vec<_>>().join(";"));
                add(&mut folded, &record, &user, &kernel);
            }
        }
    }
    Sampled { folded, unresolved: symbolizer.unresolved().clone(), remedy, lost: 0 }
}

fn frames(symbolizer: &mut Symbolizer, record: &StackRecord) -> (Vec<Frame>, Vec<Frame>) {
    let Owner { tgid, start_ns, .. } = record.owner;
    let user = symbolizer.user(tgid, start_ns, until_zero(&record.user));
    (user, without_switch(symbolizer.kernel(until_zero(&record.kernel))))
}

fn until_zero(addresses: &[u64]) -> &[u64] {
    let len = addresses.iter().take_while(|address| **address != 0).count();
    addresses.get(..len).unwrap_or_default()
}

/// The kernel's frames without the innermost: the scheduler's, the tracepoint's and our own program's.
fn without_switch(mut frames: Vec<Frame>) -> Vec<Frame> {
    let first = frames.iter().position(|frame| is_scheduler(&frame.name));
    frames.truncate(first.unwrap_or(frames.len()));
    frames
}

/// The same of names alone. (Newer kernels leave them out themselves.)
pub(super) fn down_to_sleep(functions: &mut Vec<String>) {
    let first = functions.iter().position(|name| is_scheduler(name));
    functions.truncate(first.unwrap_or(functions.len()));
}

/// Functions of kernel/sched/core.c and kernel/time/ through which all go that sleep.
fn is_scheduler(name: &str) -> bool {
    matches!(
        name,
        "schedule"
            | "__schedule"
            | "io_schedule"
            | "io_schedule_timeout"
            | "schedule_idle"
            | "schedule_preempt_disabled"
            | "schedule_rtlock"
            | "schedule_timeout"
            | "schedule_timeout_interruptible"
            | "schedule_timeout_uninterruptible"
            | "schedule_timeout_killable"
            | "schedule_hrtimeout_range"
            | "schedule_hrtimeout_range_clock"
            | "preempt_schedule_irq"
            | "preempt_schedule_common"
    )
}

/// Time on the CPU is nobody's in the kernel: nothing looks at it there. So it stands under the call itself, and the rest under where
/// the call slept last.
fn add(folded: &mut Folded, record: &StackRecord, user: &[Frame], kernel: &[Frame]) {
    let name = comm(&record.owner.comm);
    let syscall = names::name(record.id as SyscallId);
    let (ns, calls) = (record.weight_ns, u64::from(record.weight_calls));
    let off_ns = match record.duration_ns {
        0 => 0,
        whole => {
            let share = u128::from(ns) * u128::from(record.off_cpu_ns.min(whole)) / u128::from(whole);
            u64::try_from(share).unwrap_or(ns)
        }
    };
    let slept = off_ns != 0 && !kernel.is_empty();
    if slept {
        folded.add(&name, user, syscall, kernel, Weight { ns: off_ns, calls });
    }
    let rest = if slept { Weight { ns: ns - off_ns, calls: 0 } } else { Weight { ns, calls } };
    if rest != Weight::default() {
        folded.add(&name, user, syscall, &[], rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stacks::Unit;

    fn record(weight_ns: u64, duration_ns: u64, off_cpu_ns: u64) -> Box<StackRecord> {
        let mut record: StackRecord = bytemuck::Zeroable::zeroed();
        record.owner.tgid = u32::MAX;
        record.owner.comm[..2].copy_from_slice(b"db");
        (record.weight_ns, record.weight_calls) = (weight_ns, 3);
        (record.duration_ns, record.off_cpu_ns) = (duration_ns, off_cpu_ns);
        record.user[0] = 0x1000;
        record.kernel[..2].copy_from_slice(&[0xffff_ffff_8100_0000, 0xffff_ffff_8200_0000]);
        Box::new(record)
    }

    #[test]
    fn time_asleep_stands_where_it_slept_and_the_rest_under_the_call() {
        let mut stacks = Stacks::new(Arc::new(KernelSymbols::Hidden));
        stacks.take(record(1_000, 100, 75));
        stacks.take(record(500, 100, 0));
        let sampled = stacks.end().expect("the thread ends");
        let lines = sampled.folded.lines(Unit::Time);
        let call = "db;[process gone];syscall:";
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines.iter().all(|line| line.starts_with(call)), "{lines:?}");
        let total: u64 = lines.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
        assert_eq!((total, sampled.folded.total().calls), (1_500, 6));
        assert!(lines.iter().any(|line| line.contains("[kernel]") && line.ends_with(" 750")), "{lines:?}");
        assert!(sampled.remedy.is_some());
    }

    #[test]
    fn a_slow_calls_stack_is_its_own() {
        let mut stacks = Stacks::new(Arc::new(KernelSymbols::Hidden));
        let mut slow = record(0, 100, 0);
        (slow.weight_calls, slow.is_slow, slow.tid) = (0, 1, 7);
        stacks.take(slow);
        assert_eq!(stacks.of_slow(8), None, "another thread's");
        let mut slow = record(0, 100, 0);
        (slow.weight_calls, slow.is_slow, slow.tid) = (0, 1, 7);
        stacks.take(slow);
        assert!(stacks.of_slow(7).is_some_and(|text| text.starts_with("[process gone]")));
        assert_eq!(stacks.of_slow(7), None, "once");
        assert_eq!(stacks.end().map(|sampled| sampled.folded.stacks()), Some(0), "it weighs nothing");
    }

    #[test]
    fn what_all_sleepers_go_through_is_left_out() {
        let frame = |name: &str| Frame { name: name.into(), known: true };
        let names =
            |frames: Vec<Frame>| frames.iter().map(|frame| frame.name.to_string()).collect::<Vec<_>>();
        let stack = ["do_syscall_64", "vfs_read", "pipe_read", "schedule", "__schedule", "bpf_trace_run4"];
        let kept = without_switch(stack.map(frame).to_vec());
        assert_eq!(names(kept), ["do_syscall_64", "vfs_read", "pipe_read"]);
    }
}
