//! Cumulative state: what has been counted since the agent started, by owner, metric and attributes.
//!
//! One [`Store`] belongs to the task that aggregates. A sink gets a [`Snapshot`], which borrows: nothing is
//! cloned for it, so a hundred thousand series cost their encoding and no more.
//!
//! Everything is bounded ([`Limits`]). What is over a limit is not dropped but counted under one overflow
//! series of its metric and owner, so that totals stay exact.
//!
//! Containers come and go, so what has been idle for long ends: it is in one more snapshot, marked ([`Series::is_ended`]), and then
//! forgotten. A series that is not idle never ends, and neither does one that is, of an owner who is not, while there is room: a
//! counter that rises once a day would begin again each time.

mod attr;
mod carry;
mod histogram;
pub mod metrics;

use std::hash::BuildHasher;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::hash_table::Entry;
use hashbrown::{HashMap, HashTable};
use probe_common::hist::BUCKETS;

pub use self::attr::{Attr, Attrs, Value, attr};
pub use self::histogram::Histogram;
pub use self::metrics::{Counter, Gauge, Kind, MetricDef, Timer};
use crate::entity::Entity;
use crate::event::key;

/// How many series may exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Series of one metric, over all owners. What is beyond goes to an overflow series.
    pub per_metric: usize,
    /// Series of one metric and one owner: no container can use up everybody's share.
    pub per_entity: usize,
    /// Owners (containers and the host). What is beyond goes to the host's overflow series.
    pub entities: usize,
    /// After so many snapshots in which nothing of it was counted, a container ends; and where a metric's room is short, a series.
    pub idle: u32,
}

/// Where room for owners is short, those idle longest end, if nothing of them was counted in so many snapshots at least.
const IDLE_WHERE_SHORT: u32 = 3;
/// How long what is idle stays.
const IDLE: Duration = Duration::from_secs(600);

impl Limits {
    /// The usual ones, for snapshots so far apart.
    #[must_use]
    pub fn with_interval(interval: Duration) -> Self {
        let snapshots = IDLE.as_nanos() / interval.as_nanos().max(1);
        let idle = u32::try_from(snapshots).unwrap_or(u32::MAX / 2).clamp(2 * IDLE_WHERE_SHORT, u32::MAX / 2);
        Self { idle, ..Self::default() }
    }
}

/// Whether more than three quarters are taken.
const fn is_short(taken: usize, room: usize) -> bool {
    taken > room - room / 4
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_metric: 10_000, per_entity: 2_500, entities: 4_096, idle: 60 }
    }
}

/// What one series has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Of a counter.
    Count(u64),
    /// Of a gauge.
    Level(i64),
    /// Of a histogram.
    Times(Histogram),
}

impl Data {
    /// What has been counted since it was as `before`; `None` where that is nothing. A level is what it is.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Self> {
        match (self, before) {
            (Self::Count(now), Self::Count(before)) if now == before => None,
            (Self::Count(now), Self::Count(before)) => Some(Self::Count(now.saturating_sub(*before))),
            (Self::Times(now), Self::Times(before)) if now.count() == before.count() => None,
            (Self::Times(now), Self::Times(before)) => Some(Self::Times(now.since(before))),
            // Of one series, both are of one kind.
            (Self::Count(_) | Self::Level(_) | Self::Times(_), _) => Some(self.clone()),
        }
    }
}

/// One series.
#[derive(Clone, Debug)]
pub struct Series {
    attrs: Attrs,
    start_unix_ns: u64,
    data: Data,
    /// [`Store::snapshots`] when it was counted in last.
    touched: u32,
    ended: bool,
}

impl Series {
    fn new(attrs: Attrs, kind: Kind, start_unix_ns: u64, now: u32) -> Self {
        let data = match kind {
            Kind::Counter => Data::Count(0),
            Kind::Gauge | Kind::UpDownCounter => Data::Level(0),
            Kind::Histogram => Data::Times(Histogram::new()),
        };
        Self { attrs, start_unix_ns, data, touched: now, ended: false }
    }

    /// Its attributes.
    #[must_use]
    pub const fn attrs(&self) -> &Attrs {
        &self.attrs
    }

    /// Since when it counts, nanoseconds since 1970: the last collection before its first value.
    #[must_use]
    pub const fn start_unix_ns(&self) -> u64 {
        self.start_unix_ns
    }

    /// What it has come to.
    #[must_use]
    pub const fn data(&self) -> &Data {
        &self.data
    }

    /// Whether this is the last that is seen of it: what it came to was in the snapshots before.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        self.ended
    }

    fn is_overflow(&self) -> bool {
        self.attrs.get(key::METRIC_OVERFLOW).is_some()
    }
}

/// The series of one owner: a table for each metric, by position in [`metrics::ALL`].
type Tables = Vec<HashTable<Series>>;

#[derive(Debug)]
struct Owned {
    tables: Tables,
    /// As [`Series::touched`], of any.
    touched: u32,
    /// So are all its series.
    ended: bool,
}

/// Of one metric, over all owners.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    active: usize,
    folded: u64,
    ended: u64,
}

impl Usage {
    /// A series is gone. Overflow series are not counted.
    fn forget(&mut self, series: &Series) {
        self.active -= usize::from(!series.is_overflow());
        self.ended += 1;
    }
}

/// What a metric takes up, for the agent's own telemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricUsage {
    /// The metric.
    pub metric: &'static MetricDef,
    /// Series kept, overflow series not counted.
    pub active: usize,
    /// Values that went to an overflow series, since start.
    pub folded: u64,
    /// Series that were idle and are forgotten, since start.
    pub ended: u64,
}

/// All series.
#[derive(Debug)]
pub struct Store {
    limits: Limits,
    /// Seeded at random: keys come from strangers.
    hasher: RandomState,
    entities: HashMap<Entity, Owned, RandomState>,
    /// How many there were; goes round.
    snapshots: u32,
    /// By position in [`metrics::ALL`].
    usage: Vec<Usage>,
    /// Nanoseconds since 1970 of the last collection, or of the store's making: the start of a series that
    /// begins now.
    collected_unix_ns: u64,
}

impl Store {
    /// Snapshots are so far apart from now on; what is idle is told by their number.
    pub fn change_interval(&mut self, interval: Duration) {
        self.limits.idle = Limits::with_interval(interval).idle;
    }

    /// An empty store; `now_unix_ns` (nanoseconds since 1970) is the start of what is counted before the
    /// first snapshot.
    #[must_use]
    pub fn new(limits: Limits, now_unix_ns: u64) -> Self {
        Self {
            limits,
            hasher: RandomState::default(),
            entities: HashMap::with_hasher(RandomState::default()),
            snapshots: 0,
            usage: vec![Usage::default(); metrics::ALL.len()],
            collected_unix_ns: now_unix_ns,
        }
    }

    /// Counts `by` more.
    pub fn add(&mut self, entity: &Entity, metric: Counter, attrs: &[Attr], by: u64) {
        if let Some(Data::Count(count)) = self.data(entity, metric.0, attrs) {
            *count = count.saturating_add(by);
        }
    }

    /// Sets a level.
    pub fn set(&mut self, entity: &Entity, metric: Gauge, attrs: &[Attr], level: i64) {
        if let Some(Data::Level(current)) = self.data(entity, metric.0, attrs) {
            *current = level;
        }
    }

    /// Records one duration.
    pub fn record(&mut self, entity: &Entity, metric: Timer, attrs: &[Attr], duration: Duration) {
        if let Some(Data::Times(histogram)) = self.data(entity, metric.0, attrs) {
            histogram.record(duration);
        }
    }

    /// Adds what the kernel counted since the last time: see [`Histogram::merge_counts`].
    pub fn merge_counts(
        &mut self,
        entity: &Entity,
        metric: Timer,
        attrs: &[Attr],
        deltas: &[u64; BUCKETS],
        sum_ns: u64,
        max_ns: Option<u64>,
    ) {
        if deltas.iter().all(|&n| n == 0) {
            return;
        }
        if let Some(Data::Times(histogram)) = self.data(entity, metric.0, attrs) {
            histogram.merge_counts(deltas, sum_ns, max_ns);
        }
    }

    /// Adds what was counted elsewhere between `start_unix_ns` and now: the series begins then, unless it began before. A level
    /// replaces the one that is there.
    pub(crate) fn merge(
        &mut self,
        entity: &Entity,
        metric: &'static MetricDef,
        attrs: &Attrs,
        data: &Data,
        start_unix_ns: u64,
    ) {
        let Some(series) = self.series(entity, metric, attrs.as_slice()) else { return };
        series.start_unix_ns = series.start_unix_ns.min(start_unix_ns);
        match (&mut series.data, data) {
            (Data::Count(count), Data::Count(more)) => *count = count.saturating_add(*more),
            (Data::Level(level), Data::Level(newer)) => *level = *newer,
            (Data::Times(histogram), Data::Times(more)) => histogram.merge(more),
            // Both are of the metric's kind.
            (Data::Count(_) | Data::Level(_) | Data::Times(_), _) => {}
        }
    }

    /// Everything there is, as of `now_unix_ns` (nanoseconds since 1970). A series that begins afterwards
    /// starts at this time. A clock that was set back does not make a point older than its start.
    ///
    /// What has been idle for too long is marked in it, and gone in the next.
    pub fn snapshot(&mut self, now_unix_ns: u64) -> Snapshot<'_> {
        self.forget();
        self.snapshots = self.snapshots.wrapping_add(1);
        self.end_idle_owners();
        self.end_idle_series();
        self.collected_unix_ns = now_unix_ns.max(self.collected_unix_ns.saturating_add(1));
        Snapshot { time_unix_ns: self.collected_unix_ns, entities: &self.entities }
    }

    /// Everything there is, as of the last [`Self::snapshot`]: no series begins anew.
    #[must_use]
    pub const fn peek(&self) -> Snapshot<'_> {
        Snapshot { time_unix_ns: self.collected_unix_ns, entities: &self.entities }
    }

    /// Everything there is, as of another time (nanoseconds since 1970).
    pub(crate) const fn as_of(&self, time_unix_ns: u64) -> Snapshot<'_> {
        Snapshot { time_unix_ns, entities: &self.entities }
    }

    /// Series kept and values folded, by metric.
    pub fn usage(&self) -> impl Iterator<Item = MetricUsage> {
        metrics::ALL.iter().zip(&self.usage).map(|(metric, usage)| MetricUsage {
            metric,
            active: usage.active,
            folded: usage.folded,
            ended: usage.ended,
        })
    }

    /// Whether an owner has series.
    #[must_use]
    pub fn has(&self, entity: &Entity) -> bool {
        self.entities.contains_key(entity)
    }

    /// A value has gone to this series, which several share because there was no room for another value of an attribute: counts that. What
    /// went to the overflow series instead is counted already.
    pub fn fold(&mut self, entity: &Entity, metric: &'static MetricDef, attrs: &[Attr]) {
        let attrs = Attrs::new(attrs);
        let hash = self.hasher.hash_one(attrs.as_slice());
        let table = self.entities.get(entity).and_then(|owned| owned.tables.get(metric.index));
        let is_there = table.is_some_and(|table| table.find(hash, |series| series.attrs == attrs).is_some());
        if let Some(usage) = self.usage.get_mut(metric.index).filter(|_| is_there) {
            usage.folded = usage.folded.saturating_add(1);
        }
    }

    /// Removes what has ended.
    fn forget(&mut self) {
        let Self { entities, usage, .. } = self;
        entities.retain(|_, owned| {
            for (table, usage) in owned.tables.iter_mut().zip(usage.iter_mut()) {
                table.retain(|series| {
                    if series.ended {
                        usage.forget(series);
                    }
                    !series.ended
                });
            }
            !owned.ended
        });
    }

    /// Snapshots since something was touched.
    const fn age(&self, touched: u32) -> u32 {
        self.snapshots.wrapping_sub(touched)
    }

    fn end_idle_owners(&mut self) {
        let (idle, room) = (self.limits.idle, self.limits.entities);
        let mut ages: Vec<(u32, Entity)> = self
            .entities
            .iter()
            .filter(|(entity, _)| **entity != Entity::Host)
            .map(|(entity, owned)| (self.age(owned.touched), entity.clone()))
            .filter(|(age, _)| *age > IDLE_WHERE_SHORT.min(idle))
            .collect();
        ages.sort_unstable_by_key(|(age, _)| std::cmp::Reverse(*age));
        let mut left = self.entities.len();
        for (age, entity) in ages {
            if age <= idle && !is_short(left, room) {
                break;
            }
            let Some(owned) = self.entities.get_mut(&entity) else { continue };
            owned.ended = true;
            owned.tables.iter_mut().flat_map(HashTable::iter_mut).for_each(|series| series.ended = true);
            left -= 1;
        }
    }

    /// Of metrics that have little room left.
    fn end_idle_series(&mut self) {
        let Self { limits, entities, usage, snapshots, .. } = self;
        for owned in entities.values_mut() {
            for (table, usage) in owned.tables.iter_mut().zip(usage.iter()) {
                if !is_short(usage.active, limits.per_metric) && !is_short(table.len(), limits.per_entity) {
                    continue;
                }
                for series in table.iter_mut() {
                    series.ended |= snapshots.wrapping_sub(series.touched) > limits.idle;
                }
            }
        }
    }

    fn data(&mut self, entity: &Entity, def: &'static MetricDef, attrs: &[Attr]) -> Option<&mut Data> {
        self.series(entity, def, attrs).map(|series| &mut series.data)
    }

    /// The series, made when it is not there yet. `None` cannot be: a handle is only made by the
    /// registry whose length the tables have.
    fn series(&mut self, entity: &Entity, def: &'static MetricDef, attrs: &[Attr]) -> Option<&mut Series> {
        let sorted;
        let mut attrs = attrs;
        if !attr::is_sorted(attrs) {
            sorted = Attrs::new(attrs);
            attrs = sorted.as_slice();
        }
        let Self { limits, hasher, entities, usage, collected_unix_ns, snapshots } = self;
        let now = *snapshots;
        let usage = usage.get_mut(def.index)?;

        let has_place = entities.len() < limits.entities || entities.contains_key(entity);
        let entity = if has_place { entity } else { &Entity::Host };
        if !entities.contains_key(entity) {
            let tables = (0..metrics::ALL.len()).map(|_| HashTable::new()).collect();
            entities.insert(entity.clone(), Owned { tables, touched: now, ended: false });
        }
        let owned = entities.get_mut(entity)?;
        owned.touched = now;
        // It has come back: what has ended goes, and what is counted from here on is another series.
        owned.ended = false;
        let table = owned.tables.get_mut(def.index)?;

        let hash_of = |attrs: &[Attr]| hasher.hash_one(attrs);
        let mut hash = hash_of(attrs);
        let known = has_place && table.find(hash, |series| series.attrs.as_slice() == attrs).is_some();
        let overflow = [attr(key::METRIC_OVERFLOW, true)];
        if !known {
            if has_place && usage.active < limits.per_metric && table.len() < limits.per_entity {
                usage.active += 1;
            } else {
                usage.folded = usage.folded.saturating_add(1);
                attrs = &overflow;
                hash = hash_of(attrs);
            }
        }
        let entry = table.entry(
            hash,
            |series| series.attrs.as_slice() == attrs,
            |series| hash_of(series.attrs.as_slice()),
        );
        let series = match entry {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(room) => {
                room.insert(Series::new(Attrs::new(attrs), def.kind, *collected_unix_ns, now)).into_mut()
            }
        };
        if series.ended {
            *series = Series::new(series.attrs.clone(), def.kind, *collected_unix_ns, now);
        }
        series.touched = now;
        Some(series)
    }
}

/// Everything there was at one moment, grouped by owner.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    time_unix_ns: u64,
    entities: &'a HashMap<Entity, Owned, RandomState>,
}

impl<'a> Snapshot<'a> {
    /// The moment, nanoseconds since 1970.
    #[must_use]
    pub const fn time_unix_ns(&self) -> u64 {
        self.time_unix_ns
    }

    /// Owners, in no order.
    pub fn entities(&self) -> impl Iterator<Item = EntitySeries<'a>> + use<'a> {
        self.entities.iter().map(|(entity, owned)| EntitySeries { entity, tables: &owned.tables })
    }

    /// Number of series.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entities.values().flat_map(|owned| &owned.tables).map(HashTable::len).sum()
    }

    /// Whether nothing has been counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The series of one owner.
#[derive(Clone, Copy, Debug)]
pub struct EntitySeries<'a> {
    /// Whose they are.
    pub entity: &'a Entity,
    tables: &'a [HashTable<Series>],
}

impl<'a> EntitySeries<'a> {
    /// Its metrics, in the order of [`metrics::ALL`], each with its series in no order.
    pub fn metrics(
        &self,
    ) -> impl Iterator<Item = (&'static MetricDef, hashbrown::hash_table::Iter<'a, Series>)> + use<'a> {
        let tables = metrics::ALL.iter().zip(self.tables).filter(|(_, table)| !table.is_empty());
        tables.map(|(def, table)| (*def, table.iter()))
    }
}

#[cfg(test)]
mod tests;
