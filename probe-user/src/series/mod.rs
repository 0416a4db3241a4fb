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

    /// Series kept and values folded, by metric.
    pub fn usage(&self) -> impl Iterator<Item = MetricUsage> {
        metrics::ALL.iter().zip(&self.usage).map(|(metric, usage)| MetricUsage {
            metric,
            active: usage.active,
            folded: usage.folded,
            ended: usage.ended,
        })
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

    /// The series' data, made when it is not there yet. `None` cannot be: a handle is only made by the
    /// registry whose length the tables have.
    fn data(&mut self, entity: &Entity, def: &'static MetricDef, attrs: &[Attr]) -> Option<&mut Data> {
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
        Some(&mut series.data)
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
mod tests {
    use super::*;
    use crate::entity::ContainerIdentity;
    use std::sync::Arc;

    fn container(id: &str) -> Entity {
        Entity::Container(Arc::new(ContainerIdentity {
            container_id: id.to_owned(),
            runtime: None,
            pod_uid: None,
        }))
    }

    fn one(
        store: &mut Store,
        now: u64,
        entity: &Entity,
        def: &MetricDef,
        attrs: &[Attr],
    ) -> Option<(u64, Data)> {
        let attrs = Attrs::new(attrs);
        store
            .snapshot(now)
            .entities()
            .filter(|of| of.entity == entity)
            .flat_map(|of| of.metrics().collect::<Vec<_>>())
            .filter(|(d, _)| d.name == def.name)
            .flat_map(|(_, series)| series)
            .find(|series| series.attrs == attrs)
            .map(|series| (series.start_unix_ns, series.data.clone()))
    }

    #[test]
    fn adds_up_and_starts_at_the_collection_before_the_first_value() {
        let mut store = Store::new(Limits::default(), 1_000);
        let (ipv4, ipv6) = ([attr(key::NETWORK_TYPE, "ipv4")], [attr(key::NETWORK_TYPE, "ipv6")]);
        store.add(&Entity::Host, metrics::TCP_RETRANSMITS, &ipv4, 2);
        assert_eq!(store.snapshot(2_000).len(), 1);
        store.add(&Entity::Host, metrics::TCP_RETRANSMITS, &ipv4, 3);
        store.add(&Entity::Host, metrics::TCP_RETRANSMITS, &ipv6, 1);
        store.add(&container("c1"), metrics::TCP_RETRANSMITS, &ipv4, 7);
        let def = metrics::TCP_RETRANSMITS.0;
        for (now, entity, attrs, want) in [
            (3_000, Entity::Host, &ipv4, (1_000, 5)),
            (3_001, Entity::Host, &ipv6, (2_000, 1)),
            (3_002, container("c1"), &ipv4, (2_000, 7)),
        ] {
            let (start, data) = one(&mut store, now, &entity, def, attrs).unwrap();
            assert_eq!((start, data), (want.0, Data::Count(want.1)));
        }
        // The clock was set back: a point is never older than its start.
        assert_eq!(store.snapshot(500).time_unix_ns(), 3_003);
    }

    #[test]
    fn the_order_of_attributes_does_not_matter() {
        let mut store = Store::new(Limits::default(), 0);
        let (a, b) = (attr(key::SYSCALL_CLASS, "work"), attr(key::SYSCALL_NAME, "read"));
        store.record(
            &Entity::Host,
            metrics::SYSCALL_DURATION,
            &[a.clone(), b.clone()],
            Duration::from_millis(1),
        );
        store.record(&Entity::Host, metrics::SYSCALL_DURATION, &[b, a], Duration::from_millis(2));
        assert_eq!(store.snapshot(1).len(), 1);
    }

    #[test]
    fn what_is_over_the_limit_is_folded_and_no_total_is_lost() {
        let limits = Limits { per_metric: 10, per_entity: 6, entities: 3, ..Limits::default() };
        let mut store = Store::new(limits, 0);
        let mut total = 0;
        for entity in [Entity::Host, container("a"), container("b"), container("c"), container("d")] {
            for name in 0..20i64 {
                store.add(&entity, metrics::SYSCALL_ERRORS, &[attr(key::SYSCALL_NAME, name)], 5);
                total += 5;
            }
        }
        let usage = store.usage().find(|u| u.metric == metrics::SYSCALL_ERRORS.0).unwrap();
        assert_eq!((usage.active, usage.folded), (10, 90));
        let snapshot = store.snapshot(1);
        assert_eq!(snapshot.entities().count(), 3);
        let overflow = Attrs::new(&[attr(key::METRIC_OVERFLOW, true)]);
        let (mut sum, mut overflowing) = (0, 0);
        for of in snapshot.entities() {
            for series in of.metrics().flat_map(|(_, series)| series) {
                overflowing += u32::from(*series.attrs() == overflow);
                if let Data::Count(count) = series.data() {
                    sum += count;
                }
            }
        }
        assert_eq!((sum, overflowing), (total, 3));
        // A series that is already there goes on counting.
        store.add(&Entity::Host, metrics::SYSCALL_ERRORS, &[attr(key::SYSCALL_NAME, 0i64)], 1);
        assert_eq!(store.usage().map(|u| u.folded).sum::<u64>(), 90);
    }

    #[test]
    fn nothing_merged_makes_no_series() {
        let mut store = Store::new(Limits::default(), 0);
        store.merge_counts(&Entity::Host, metrics::SYSCALL_DURATION, &[], &[0; BUCKETS], 0, None);
        assert!(store.snapshot(1).is_empty());
        let mut counts = [0; BUCKETS];
        counts[40] = 3;
        store.merge_counts(&Entity::Host, metrics::SYSCALL_DURATION, &[], &counts, 99, None);
        let (_, data) = one(&mut store, 2, &Entity::Host, metrics::SYSCALL_DURATION.0, &[]).unwrap();
        let Data::Times(histogram) = data else { panic!("{data:?}") };
        assert_eq!((histogram.buckets(), histogram.sum_ns()), ((40, &[3u64][..]), 99));
    }

    /// Owner, and whether it has ended, for each counter of retransmits.
    fn seen(store: &mut Store, now: u64) -> Vec<(String, bool, u64)> {
        let snapshot = store.snapshot(now);
        let mut seen: Vec<_> = snapshot
            .entities()
            .flat_map(|of| {
                let id = of.entity.container().map_or("host", |container| &container.container_id).to_owned();
                let series = of.metrics().flat_map(|(_, series)| series).collect::<Vec<_>>();
                series.into_iter().map(move |series| {
                    let Data::Count(count) = series.data() else { panic!("{series:?}") };
                    (id.clone(), series.is_ended(), *count)
                })
            })
            .collect();
        seen.sort();
        seen
    }

    #[test]
    fn idle_containers_end_once_and_begin_again() {
        let mut store = Store::new(Limits { idle: 3, ..Limits::default() }, 0);
        let attrs = [attr(key::NETWORK_TYPE, "ipv4")];
        let (host, gone, busy) = (Entity::Host, container("gone"), container("busy"));
        let add =
            |store: &mut Store, entity: &Entity, by| store.add(entity, metrics::TCP_RETRANSMITS, &attrs, by);
        add(&mut store, &host, 1);
        add(&mut store, &gone, 5);
        let row = |id: &str, ended, count| (id.to_owned(), ended, count);
        for now in 1..=3 {
            add(&mut store, &busy, 1);
            assert_eq!(
                seen(&mut store, now),
                [row("busy", false, now), row("gone", false, 5), row("host", false, 1)]
            );
        }
        // The fourth snapshot in which nothing of it was counted is its last; the host stays, however idle.
        add(&mut store, &busy, 1);
        assert_eq!(seen(&mut store, 4), [row("busy", false, 4), row("gone", true, 5), row("host", false, 1)]);
        add(&mut store, &busy, 1);
        assert_eq!(seen(&mut store, 5), [row("busy", false, 5), row("host", false, 1)]);
        let usage = store.usage().find(|u| u.metric == metrics::TCP_RETRANSMITS.0).unwrap();
        assert_eq!((usage.active, usage.ended), (2, 1));
        // Back again: from nothing, since then.
        add(&mut store, &gone, 2);
        let def = metrics::TCP_RETRANSMITS.0;
        assert_eq!(one(&mut store, 6, &gone, def, &attrs), Some((5, Data::Count(2))));
    }

    #[test]
    fn what_comes_back_while_it_ends_is_another_series() {
        let mut store = Store::new(Limits { idle: 1, ..Limits::default() }, 0);
        let attrs = [attr(key::NETWORK_TYPE, "ipv4")];
        let entity = container("c");
        store.add(&entity, metrics::TCP_RETRANSMITS, &attrs, 5);
        store.snapshot(10);
        assert_eq!(seen(&mut store, 20), [("c".to_owned(), true, 5)]);
        store.add(&entity, metrics::TCP_RETRANSMITS, &attrs, 1);
        let def = metrics::TCP_RETRANSMITS.0;
        assert_eq!(one(&mut store, 30, &entity, def, &attrs), Some((20, Data::Count(1))), "it ended at 20");
        assert_eq!(store.usage().map(|usage| usage.active).sum::<usize>(), 1);
    }

    #[test]
    fn a_series_ends_only_where_room_is_short() {
        let limits = Limits { per_metric: 100, per_entity: 8, idle: 2, ..Limits::default() };
        let mut store = Store::new(limits, 0);
        let (roomy, full) = (container("roomy"), container("full"));
        let add = |store: &mut Store, entity: &Entity, name: i64| {
            store.add(entity, metrics::TCP_RETRANSMITS, &[attr(key::NETWORK_TYPE, name)], 1);
        };
        for name in 0..7 {
            add(&mut store, &full, name);
            add(&mut store, &roomy, name.min(4));
        }
        for now in 1..=4 {
            // Neither is idle as a whole.
            add(&mut store, &full, 0);
            add(&mut store, &roomy, 0);
            store.snapshot(now);
        }
        let mut of = |id: &str| seen(&mut store, 9).iter().filter(|(owner, _, _)| owner == id).count();
        assert_eq!((of("full"), of("roomy")), (1, 5), "seven of eight are too many, five are not");
    }

    #[test]
    fn containers_that_come_and_go_leave_room_for_others() {
        let limits = Limits { entities: 48, idle: 1_000, ..Limits::default() };
        let mut store = Store::new(limits, 0);
        let attrs = [attr(key::NETWORK_TYPE, "ipv4")];
        for round in 0..100u64 {
            for of_round in 0..5 {
                store.add(&container(&format!("{round}-{of_round}")), metrics::TCP_RETRANSMITS, &attrs, 1);
            }
            store.add(&container("stays"), metrics::TCP_RETRANSMITS, &attrs, 1);
            let snapshot = store.snapshot(round + 1);
            assert!(snapshot.entities().count() <= 48);
        }
        let usage = store.usage().find(|u| u.metric == metrics::TCP_RETRANSMITS.0).unwrap();
        assert_eq!(usage.folded, 0, "{usage:?}");
        assert!(
            seen(&mut store, 200).contains(&("stays".to_owned(), false, 100)),
            "one that is used never ends"
        );
    }

    #[test]
    fn what_is_idle_stays_ten_minutes() {
        for (interval, want) in [(10, 60), (1, 600), (600, 6), (86_400, 6)] {
            assert_eq!(Limits::with_interval(Duration::from_secs(interval)).idle, want);
        }
    }
}
