//! Segments of all connections, and round-trip times: what the walk over open connections finds, and what those that ended
//! have left.

use std::io;
use std::time::{Duration, Instant};

use aya::maps::{MapData, PerCpuHashMap};
use hashbrown::HashMap;
use probe_common::hist::{self, BUCKETS};
use probe_common::tcp::{Home, OpenConnection, Segments as Counts};

use super::super::Context;
use super::events::network_type;
use super::{Last, Summary};
use crate::event::key;
use crate::load::{Plain, Walk, lookup_batch_per_cpu};
use crate::series::{attr, metrics};

/// How often connections are walked over, at most.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two samples of a connection's round-trip time: the period, less what a timer may be early.
const BETWEEN_SAMPLES: Duration = Duration::from_millis(950);
/// Of many connections a walk takes its time; it shall not take more than this share of all.
const SHARE: u32 = 100;

pub(super) struct Segments {
    /// Of connections that have ended.
    ended: PerCpuHashMap<MapData, Plain<Home>, Plain<Counts>>,
    walk: Walk,
    /// Entries of that map, the last time.
    entries: usize,
    /// What has been told.
    told: HashMap<Home, Last<Counts>>,
    /// What the last walk found.
    open: HashMap<Home, Counts>,
    next: Instant,
    sampled: Option<Instant>,
    /// The programs that keep the map true are there no more.
    stopped: bool,
}

/// Round-trip times of one walk.
struct Times {
    sum_ns: u64,
    buckets: [u64; BUCKETS],
}

impl Segments {
    pub(super) fn new(ended: PerCpuHashMap<MapData, Plain<Home>, Plain<Counts>>, walk: Walk) -> Self {
        let (told, open) = (HashMap::default(), HashMap::default());
        Self {
            ended,
            entries: 0,
            walk,
            told,
            open,
            next: Instant::now() + PERIOD,
            sampled: None,
            stopped: false,
        }
    }

    /// As [`Self::update`], when it is time.
    pub(super) fn tick(&mut self, context: &mut Context<'_>, summary: &mut Summary) -> io::Result<()> {
        if Instant::now() < self.next { Ok(()) } else { self.update(context, summary) }
    }

    /// The last time: without the programs, nothing says any more which sockets there are.
    pub(super) fn stop(&mut self, context: &mut Context<'_>, summary: &mut Summary) -> io::Result<()> {
        self.update(context, summary)?;
        self.stopped = true;
        Ok(())
    }

    /// Counts what was sent and received since the last time.
    ///
    /// A connection that ends between the two looks is missing this time, and there the next. In the other order it would be
    /// counted twice.
    pub(super) fn update(&mut self, context: &mut Context<'_>, summary: &mut Summary) -> io::Result<()> {
        if self.stopped {
            return Ok(());
        }
        let begun = Instant::now();
        let mut all: HashMap<Home, Counts> = HashMap::default();
        lookup_batch_per_cpu(&self.ended, |home: &Home, values| {
            let counts = all.entry(*home).or_default();
            values.for_each(|value| add(counts, &value));
        })?;
        self.entries = all.len();
        let due = self.sampled.is_none_or(|at| begun.saturating_duration_since(at) >= BETWEEN_SAMPLES);
        let mut times: HashMap<Home, Box<Times>> = HashMap::default();
        let open = &mut self.open;
        open.clear();
        self.walk.records(|connection: &OpenConnection| {
            let OpenConnection { home, segments, srtt_us, .. } = connection;
            add(open.entry(*home).or_default(), segments);
            if due && *srtt_us != 0 {
                let ns = u64::from(*srtt_us) * 1_000;
                let empty = || Box::new(Times { sum_ns: 0, buckets: [0; BUCKETS] });
                let times = times.entry(*home).or_insert_with(empty);
                times.sum_ns = times.sum_ns.saturating_add(ns);
                if let Some(count) = times.buckets.get_mut(hist::bucket(ns)) {
                    *count += 1;
                }
            }
        })?;
        if due {
            self.sampled = Some(begun);
        }
        for (home, counts) in &self.open {
            add(all.entry(*home).or_default(), counts);
        }
        for (home, counts) in all {
            self.tell(home, &counts, context, summary);
        }
        for (home, times) in times {
            let Times { sum_ns, buckets } = *times;
            let entity = context.owners.entity(home.cgroup_id, None);
            let attrs = [attr(key::NETWORK_TYPE, network_type(home.family))];
            context.store.merge_counts(&entity, metrics::TCP_RTT, &attrs, &buckets, sum_ns, None);
            summary.rtts.merge_counts(&buckets, sum_ns, None);
        }
        self.next = begun + PERIOD.max(begun.elapsed() * SHARE);
        Ok(())
    }

    /// Counts by how much the segments of a cgroup have risen above what was told.
    fn tell(&mut self, home: Home, now: &Counts, context: &mut Context<'_>, summary: &mut Summary) {
        let last = self.told.entry(home).or_insert_with(|| Last::new(Counts::default()));
        let (told, delta) = risen(&last.value, now);
        if delta == Counts::default() {
            return;
        }
        *last = Last::new(told);
        let entity = context.owners.entity(home.cgroup_id, None);
        let network_type = attr(key::NETWORK_TYPE, network_type(home.family));
        for (direction, by) in [("transmit", delta.sent), ("receive", delta.received)] {
            if by != 0 {
                let attrs = [attr(key::NETWORK_IO_DIRECTION, direction), network_type.clone()];
                context.store.add(&entity, metrics::TCP_SEGMENTS, &attrs, by);
            }
        }
        if delta.spurious != 0 {
            context.store.add(&entity, metrics::TCP_SPURIOUS, &[network_type], delta.spurious);
        }
        summary.segments_sent += delta.sent;
        summary.segments_received += delta.received;
        summary.spurious += delta.spurious;
    }

    /// Gives the entries of cgroups back that are removed and have no open connection.
    pub(super) fn reclaim(&mut self, now: Instant, mut gone: impl FnMut(u64) -> bool) {
        let Self { ended, told, open, .. } = self;
        told.retain(|home, last| {
            let over = last.idle(now) && !open.contains_key(home) && gone(home.cgroup_id);
            // One whose connections were all open until they were missed has no entry.
            let removed =
                over && (ended.get(&Plain(*home), 0).is_err() || ended.remove(&Plain(*home)).is_ok());
            !removed
        });
    }

    /// Entries of its map.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }
}

/// Those of connections that ended wrap around.
fn add(sum: &mut Counts, by: &Counts) {
    sum.sent = sum.sent.wrapping_add(by.sent);
    sum.received = sum.received.wrapping_add(by.received);
    sum.spurious = sum.spurious.wrapping_add(by.spurious);
}

/// What is told from now on, and how much more that is. What was missed for once (see [`Segments::update`]) takes nothing back.
fn risen(told: &Counts, now: &Counts) -> (Counts, Counts) {
    let one = |told: u64, now: u64| match now.wrapping_sub(told) {
        0 => (told, 0),
        // "Negative".
        less if less > u64::MAX / 2 => (told, 0),
        more => (now, more),
    };
    let (sent, more_sent) = one(told.sent, now.sent);
    let (received, more_received) = one(told.received, now.received);
    let (spurious, more_spurious) = one(told.spurious, now.spurious);
    (
        Counts { sent, received, spurious },
        Counts { sent: more_sent, received: more_received, spurious: more_spurious },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_twice_and_nothing_taken_back() {
        let counts = |sent, received, spurious| Counts { sent, received, spurious };
        let mut told = Counts::default();
        let mut sum = Counts::default();
        for (now, delta) in [
            (counts(10, 8, 0), counts(10, 8, 0)),
            // A connection with 6 and 5 ended between the looks, and came back.
            (counts(4, 3, 0), counts(0, 0, 0)),
            (counts(12, 8, 1), counts(2, 0, 1)),
            // An older connection's past was set aside before it was found open: below zero.
            (counts(u64::MAX - 99, 8, 1), counts(0, 0, 0)),
            (counts(13, 9, 1), counts(1, 1, 0)),
        ] {
            let (next, more) = risen(&told, &now);
            assert_eq!(more, delta);
            told = next;
            add(&mut sum, &more);
        }
        assert_eq!(sum, counts(13, 9, 1));
        assert_eq!(told, sum);
    }
}
