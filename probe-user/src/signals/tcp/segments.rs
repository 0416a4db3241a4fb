//! Segments of all connections, and round-trip times: what the walk over open connections finds, and what those that ended
//! have left.

use std::io;
use std::time::{Duration, Instant};

use aya::maps::{MapData, MapError, PerCpuHashMap};
use hashbrown::HashMap;
use probe_common::hist::{self, BUCKETS};
use probe_common::tcp::{Home, OpenConnection, Segments as Counts};

use super::super::Context;
use super::events::network_type;
use super::{IDLE, LEFT_SEGMENTS, Last, Summary};
use crate::event::key;
use crate::handover::EntryState;
use crate::load::{Plain, Walk, lookup_batch_per_cpu};
use crate::series::{attr, metrics};

/// How often connections are walked over, at most; each time, the round-trip times of those in use are sampled.
const PERIOD: Duration = Duration::from_secs(1);
/// By so much a timer may be early.
const EARLY: Duration = Duration::from_millis(50);
/// Of many connections a walk takes its time; it shall not take more than this share of all.
const SHARE: u32 = 100;

pub(super) struct Segments {
    /// Of connections that have ended.
    ended: PerCpuHashMap<MapData, Plain<Home>, Plain<Counts>>,
    /// Entries of that map, the last time.
    entries: usize,
    walk: Walk,
    /// Somebody wants to know; and the programs that keep the map of sockets true are there.
    active: bool,
    told: HashMap<Home, Told>,
    /// What the last walk found.
    open: HashMap<Home, Counts>,
    next: Instant,
}

/// What has been told of a cgroup.
struct Told {
    last: Last<Counts>,
    /// When a walk last found a connection of it.
    open: Instant,
}

/// Round-trip times of one walk.
struct Times {
    sum_ns: u64,
    buckets: [u64; BUCKETS],
}

impl Segments {
    pub(super) fn new(
        ended: PerCpuHashMap<MapData, Plain<Home>, Plain<Counts>>,
        walk: Walk,
        wanted: bool,
    ) -> Self {
        let (told, open) = (HashMap::default(), HashMap::default());
        Self { ended, entries: 0, walk, active: wanted, told, open, next: Instant::now() + PERIOD }
    }

    /// Counts what was sent and received since the last time, when it is time.
    pub(super) fn tick(&mut self, context: &mut Context<'_>, summary: &mut Summary) {
        if Instant::now() + EARLY >= self.next {
            self.update(context, summary);
        }
    }

    /// The last time: without the programs, nothing says any more which sockets there are.
    pub(super) fn stop(&mut self, context: &mut Context<'_>, summary: &mut Summary) {
        self.update(context, summary);
        self.active = false;
    }

    /// What cannot be read now is read the next time: nothing of it is lost.
    fn update(&mut self, context: &mut Context<'_>, summary: &mut Summary) {
        let begun = Instant::now();
        if let Err(error) = self.try_update(begun, context, summary) {
            tracing::warn!(%error, "segments of connections do not read; tried again");
        }
        self.next = begun + PERIOD.max(begun.elapsed() * SHARE);
    }

    /// A connection that ends between the two looks is missing this time, and there the next. In the other order it would be
    /// counted twice.
    fn try_update(
        &mut self,
        begun: Instant,
        context: &mut Context<'_>,
        summary: &mut Summary,
    ) -> io::Result<()> {
        if !self.active {
            return Ok(());
        }
        let mut all: HashMap<Home, Counts> = HashMap::default();
        lookup_batch_per_cpu(&self.ended, |home: &Home, values| {
            let counts = all.entry(*home).or_default();
            values.for_each(|value| add(counts, &value));
        })?;
        self.entries = all.len();
        let mut times: HashMap<Home, Box<Times>> = HashMap::default();
        let mut open: HashMap<Home, Counts> = HashMap::default();
        let walked = self.walk.records(|connection: &OpenConnection| {
            let OpenConnection { home, segments, srtt_us, .. } = connection;
            add(open.entry(*home).or_default(), segments);
            if *srtt_us != 0 {
                let ns = u64::from(*srtt_us) * 1_000;
                let empty = || Box::new(Times { sum_ns: 0, buckets: [0; BUCKETS] });
                let times = times.entry(*home).or_insert_with(empty);
                times.sum_ns = times.sum_ns.saturating_add(ns);
                if let Some(count) = times.buckets.get_mut(hist::bucket(ns)) {
                    *count += 1;
                }
            }
        });
        if walked.is_ok() {
            self.open = open;
        }
        for (home, counts) in &self.open {
            add(all.entry(*home).or_default(), counts);
        }
        for (home, counts) in all {
            self.tell(home, &counts, begun, context, summary);
        }
        for (home, times) in times {
            let Times { sum_ns, buckets } = *times;
            let entity = context.owners.entity(home.cgroup_id, None);
            let attrs = [attr(key::NETWORK_TYPE, network_type(home.family))];
            context.store.merge_counts(&entity, metrics::TCP_RTT, &attrs, &buckets, sum_ns, None);
            summary.rtts.merge_counts(&buckets, sum_ns, None);
        }
        walked
    }

    /// Counts by how much the segments of a cgroup have risen above what was told.
    fn tell(
        &mut self,
        home: Home,
        now: &Counts,
        at: Instant,
        context: &mut Context<'_>,
        summary: &mut Summary,
    ) {
        let nothing = || Told { last: Last::new(Counts::default()), open: at };
        let Told { last, open } = self.told.entry(home).or_insert_with(nothing);
        if self.open.contains_key(&home) {
            *open = at;
        }
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

    /// Gives the entries of cgroups back that are removed and have had no open connection for a while.
    pub(super) fn reclaim(&mut self, now: Instant, mut gone: impl FnMut(u64) -> bool) {
        let Self { ended, told, .. } = self;
        told.retain(|home, Told { last, open }| {
            let closed = now.saturating_duration_since(*open) >= IDLE;
            if !(closed && last.idle(now) && gone(home.cgroup_id)) {
                return true;
            }
            // One whose connections were all open until they were missed has no entry.
            let absent = matches!(ended.get(&Plain(*home), 0), Err(MapError::KeyNotFound));
            !(absent || ended.remove(&Plain(*home)).is_ok())
        });
    }

    /// What has been told, for the next agent.
    pub(super) fn leave(&self) -> impl Iterator<Item = EntryState> {
        self.told.iter().map(|(home, told)| EntryState::new(LEFT_SEGMENTS, home, &told.last.value))
    }

    /// So much of this cgroup has an earlier agent told.
    pub(super) fn go_on(&mut self, home: Home, counts: Counts) {
        self.told.insert(home, Told { last: Last::new(counts), open: Instant::now() });
    }

    /// Entries of its map.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }
}

fn add(sum: &mut Counts, by: &Counts) {
    sum.sent = sum.sent.saturating_add(by.sent);
    sum.received = sum.received.saturating_add(by.received);
    sum.spurious = sum.spurious.saturating_add(by.spurious);
}

/// What is told from now on, and how much more that is. What was missed for once (see [`Segments::try_update`]) takes nothing back.
fn risen(told: &Counts, now: &Counts) -> (Counts, Counts) {
    let sent = told.sent.max(now.sent);
    let received = told.received.max(now.received);
    let spurious = told.spurious.max(now.spurious);
    let more = Counts {
        sent: sent - told.sent,
        received: received - told.received,
        spurious: spurious - told.spurious,
    };
    (Counts { sent, received, spurious }, more)
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
