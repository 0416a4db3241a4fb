//! Events on disk (`--spool`): what the collector does not take now, it gets later, from another run of probe if need be.
//!
//! [`segment`] is the form of a file, `store` the directory. Here is what the tasks of the exporter do with it: all that touches the
//! disk runs on threads that may wait ([`tokio::task::spawn_blocking`]), one call at a time.

pub mod segment;
mod store;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::store::SpoolError;
use self::store::{Lost, Store};
use super::encode::{EncodedRequest, RequestLimits};
use super::logs::{self, EventQueue};
use super::resource::Resources;
use crate::event::key;
use crate::series::{attr, metrics};
use crate::telemetry::SelfStats;

/// `sink` of what is counted.
const SINK: &str = "otlp_logs";

/// Requests of which it is not known yet what has come of them.
pub(super) type UnderWay = Mutex<VecDeque<EncodedRequest>>;

/// The right to send.
pub(super) type Turn = Arc<tokio::sync::OwnedMutexGuard<()>>;

/// A directory in which events wait. It outlives exporters, which may change.
#[derive(Debug)]
pub struct Spool {
    store: Mutex<Store>,
    /// Whose turn it is to send out of it: one exporter's.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// The last attempt to deliver events failed.
    is_away: AtomicBool,
    /// Log records that wait, as of the last call.
    waiting: AtomicU64,
    is_unsynced: AtomicBool,
    /// Some of them are not on disk, which does not take them.
    is_held_up: AtomicBool,
    /// Whether it has been said that something is wrong with the disk, and that some were dropped.
    said: AtomicBool,
    said_full: AtomicBool,
    stats: Arc<SelfStats>,
}

/// What encoding takes.
#[derive(Clone, Debug)]
pub(super) struct Encoding {
    pub(super) resources: Arc<Resources>,
    pub(super) limits: RequestLimits,
    /// Events together at most.
    pub(super) batch: usize,
}

impl Spool {
    /// Takes a directory, and looks through what is there.
    ///
    /// # Errors
    ///
    /// It cannot be written to, others may, or another probe has it.
    pub fn open(dir: &Path, most_octets: u64, stats: &Arc<SelfStats>) -> Result<Self, SpoolError> {
        let store = Store::open(dir, most_octets)?;
        let spool = Self {
            store: Mutex::new(store),
            turn: Arc::default(),
            is_away: AtomicBool::new(false),
            waiting: AtomicU64::new(0),
            is_unsynced: AtomicBool::new(false),
            is_held_up: AtomicBool::new(false),
            said: AtomicBool::new(false),
            said_full: AtomicBool::new(false),
            stats: Arc::clone(stats),
        };
        spool.with(|store| {
            let (items, _) = store.items();
            if items > 0 {
                tracing::info!("{}: {items} events of before are sent first", store.dir().display());
            }
        });
        Ok(spool)
    }

    /// Events that wait, as of the last call.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Acquire)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    /// Whether events go to disk as they come, because nobody takes them.
    pub(super) fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Acquire)
    }

    pub(super) fn set_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Release);
        if !is_away {
            self.said_full.store(false, Ordering::Release);
        }
    }

    /// Whether the disk should be waited for some time.
    pub(super) fn is_unsynced(&self) -> bool {
        self.is_unsynced.load(Ordering::Acquire)
    }

    /// One sender at a time: what is under way is not taken twice. Calls that outlive their sender hold it, too.
    pub(super) async fn turn(&self) -> Turn {
        Arc::new(Arc::clone(&self.turn).lock_owned().await)
    }

    /// The oldest, if there are any on disk.
    pub(super) fn take(&self, limits: RequestLimits) -> Option<EncodedRequest> {
        self.with(|store| store.take(limits))
    }

    /// What was taken has been delivered, or refused for good.
    pub(super) fn done(&self) {
        self.with(Store::done);
    }

    /// Whether there is something that the disk does not take.
    pub(super) fn is_held_up(&self) -> bool {
        self.is_held_up.load(Ordering::Acquire)
    }

    /// What the disk does not take, to be delivered as if there were none.
    pub(super) fn take_held(&self) -> Option<EncodedRequest> {
        self.with(Store::take_held)
    }

    /// Takes over what was not delivered.
    pub(super) fn absorb(&self, under_way: &UnderWay) {
        self.with(|store| {
            // Under the store's lock: whoever comes second finds nothing.
            for request in std::mem::take(&mut *lock(under_way)) {
                store.append(request);
            }
        });
    }

    /// Moves the oldest events of a queue to disk, but for so many. What the disk does not take stays in the queue.
    pub(super) fn spill(&self, queue: &EventQueue, keep: usize, encoding: &Encoding) {
        self.with(|store| {
            let limits = store.limits(encoding.limits);
            // Others wait for the store, so what comes meanwhile is the next call's.
            let mut more = queue.len().saturating_sub(keep);
            while more > 0 && store.write_held() {
                let batch = queue.take(more.min(encoding.batch));
                more = more.saturating_sub(batch.len().max(1));
                for request in logs::encode(batch, &encoding.resources, limits) {
                    store.append(request);
                }
                store.sync(false);
            }
            store.sync(false);
        });
    }

    /// The end: everything is on disk when this returns, as far as that takes it. Returns how many log records it did not take.
    pub(super) fn close(&self, queue: &EventQueue, under_way: &UnderWay, encoding: &Encoding) -> u64 {
        self.absorb(under_way);
        self.spill(queue, 0, encoding);
        // Another exporter may be sending already.
        let turn = self.turn.try_lock();
        self.with(|store| {
            if turn.is_ok() {
                store.give_back();
            }
            store.sync(true);
            store.items().1
        })
    }

    /// Does something with the store, and tells what has come of it.
    fn with<T>(&self, act: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = lock(&self.store);
        let result = act(&mut store);
        let Lost { full, unwritten, damaged } = store.lost();
        let (on_disk, held) = store.items();
        self.waiting.store(on_disk.saturating_add(held), Ordering::Release);
        self.is_unsynced.store(store.is_unsynced(), Ordering::Release);
        self.is_held_up.store(held > 0, Ordering::Release);
        for (kind, items) in
            [("spool_full", full), ("spool_unwritten", unwritten), ("spool_damaged", damaged)]
        {
            if items > 0 {
                let attrs = [attr(key::SINK, SINK), attr(key::ERROR_TYPE, kind)];
                self.stats.add(metrics::PROBE_EXPORT_FAILED, &attrs, items);
            }
        }
        self.stats.set(metrics::PROBE_SPOOL_EVENTS, &[], on_disk);
        self.stats.set(metrics::PROBE_SPOOL_SIZE, &[], store.octets());
        if full > 0 && !self.said_full.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                "{}: is full, {full} of the oldest events are dropped; raise --spool-mib to keep more",
                store.dir().display()
            );
        }
        match store.trouble() {
            Some(error) if !self.said.swap(true, Ordering::AcqRel) => tracing::warn!(
                "{}: {error}; events wait in memory, the newest of them, until the disk takes them",
                store.dir().display()
            ),
            None if self.said.swap(false, Ordering::AcqRel) => {
                tracing::info!("{}: takes events again", store.dir().display());
            }
            Some(_) | None => {}
        }
        result
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
