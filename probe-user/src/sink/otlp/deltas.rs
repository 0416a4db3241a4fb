//! What has been counted since it was delivered last: for collectors that want deltas.
//!
//! The store of series stays cumulative. Here is what of it has been seen ([`Deltas::count`]), and what came since the last
//! delivery, in a store of its own: so the same limits hold, however long the collector is away. What was taken to be delivered and
//! was not comes back ([`Deltas::put_back`]) and is part of the next delivery.

use std::ops::Range;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::entity::Entity;
use crate::series::{Attrs, Data, Limits, Snapshot, Store};

/// A series as it was in the last snapshot.
#[derive(Debug)]
struct Seen {
    start_unix_ns: u64,
    data: Data,
}

type Map<K, V> = HashMap<K, V, RandomState>;

/// See the module.
#[derive(Debug)]
pub(super) struct Deltas {
    limits: Limits,
    /// By owner, metric and attributes: what there was in the last snapshot.
    seen: Map<Entity, Map<&'static str, Map<Attrs, Seen>>>,
    /// Nanoseconds since 1970 of that snapshot.
    seen_unix_ns: u64,
    /// What came since the last delivery.
    waiting: Store,
}

/// What is being delivered.
#[derive(Debug)]
pub(super) struct Taken {
    store: Store,
    time_unix_ns: u64,
}

impl Taken {
    /// For encoding: always in the same order.
    pub(super) const fn snapshot(&self) -> Snapshot<'_> {
        self.store.as_of(self.time_unix_ns)
    }
}

/// Nothing waits. When a series of it begins, [`Store::merge`] says, and nothing is later than this.
fn empty(limits: Limits) -> Store {
    Store::new(limits, u64::MAX)
}

impl Deltas {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, seen: Map::default(), seen_unix_ns: 0, waiting: empty(limits) }
    }

    /// Takes in what is new in a snapshot. Each snapshot of the store has to come here: what ends is in one more, and then gone.
    pub(super) fn count(&mut self, snapshot: &Snapshot<'_>) {
        for owner in snapshot.entities() {
            let of_owner = self.seen.entry(owner.entity.clone()).or_default();
            for (def, all) in owner.metrics() {
                let of_metric = of_owner.entry(def.name).or_default();
                for series in all {
                    let (attrs, start) = (series.attrs(), series.start_unix_ns());
                    // One with another start has ended in between, and begun anew.
                    let before = of_metric.get_mut(attrs).filter(|before| before.start_unix_ns == start);
                    let (new, since) = match &before {
                        Some(before) => (series.data().since(&before.data), self.seen_unix_ns),
                        None => (Some(series.data().clone()), start),
                    };
                    if let Some(new) = &new {
                        self.waiting.merge(owner.entity, def, attrs, new, since);
                    }
                    match before {
                        _ if series.is_ended() => drop(of_metric.remove(attrs)),
                        Some(before) if new.is_some() => before.data.clone_from(series.data()),
                        Some(_unchanged) => {}
                        None => {
                            let seen = Seen { start_unix_ns: start, data: series.data().clone() };
                            of_metric.insert(attrs.clone(), seen);
                        }
                    }
                }
            }
        }
        self.seen.retain(|_, of_owner| {
            of_owner.retain(|_, of_metric| !of_metric.is_empty());
            !of_owner.is_empty()
        });
        self.seen_unix_ns = snapshot.time_unix_ns();
    }

    /// Takes what is in a snapshot for told.
    pub(super) fn go_on(&mut self, snapshot: &Snapshot<'_>) {
        self.count(snapshot);
        drop(self.take());
    }

    /// Hands out what has come since the last time.
    pub(super) fn take(&mut self) -> Taken {
        let store = std::mem::replace(&mut self.waiting, empty(self.limits));
        Taken { store, time_unix_ns: self.seen_unix_ns }
    }

    /// Takes back what did not arrive: the items at these positions of what was taken, in the order of its encoding.
    pub(super) fn put_back(&mut self, taken: &Taken, unsent: &[Range<u64>]) {
        if unsent.is_empty() {
            return;
        }
        let mut position = 0u64;
        for owner in taken.snapshot().entities() {
            for (def, all) in owner.metrics() {
                for series in all {
                    let is_unsent = unsent.iter().any(|range| range.contains(&position));
                    position += 1;
                    match series.data() {
                        // The next snapshot has a newer one.
                        Data::Level(_) => {}
                        data @ (Data::Count(_) | Data::Times(_)) if is_unsent => {
                            let start = series.start_unix_ns();
                            self.waiting.merge(owner.entity, def, series.attrs(), data, start);
                        }
                        Data::Count(_) | Data::Times(_) => {}
                    }
                }
            }
        }
    }

    /// Series that are kept, those that wait included.
    #[cfg(test)]
    fn len(&self) -> usize {
        let seen: usize = self.seen.values().flat_map(|of| of.values()).map(HashMap::len).sum();
        seen + self.waiting.peek().len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::entity::ContainerIdentity;
    use crate::event::key;
    use crate::series::{Attr, attr, metrics};

    fn container(id: u32) -> Entity {
        let container_id = format!("c{id}");
        Entity::Container(Arc::new(ContainerIdentity {
            container_id,
            runtime: None,
            pod_uid: None,
            names: crate::entity::Names::default(),
        }))
    }

    fn call(name: i64) -> [Attr; 1] {
        [attr(key::SYSCALL_NAME, name)]
    }

    /// Name of the call (or metric) → start, and count.
    fn told(taken: &Taken) -> BTreeMap<String, (u64, u64)> {
        let mut all = BTreeMap::new();
        for owner in taken.snapshot().entities() {
            for (def, series) in owner.metrics() {
                for one in series {
                    let count = match one.data() {
                        Data::Count(count) => *count,
                        Data::Level(level) => level.unsigned_abs(),
                        Data::Times(histogram) => histogram.count(),
                    };
                    let name =
                        one.attrs().get(key::SYSCALL_NAME).map_or(def.name.into(), ToString::to_string);
                    all.insert(name, (one.start_unix_ns(), count));
                }
            }
        }
        all
    }

    fn of<const N: usize>(all: [(&str, u64, u64); N]) -> BTreeMap<String, (u64, u64)> {
        all.into_iter().map(|(name, start, count)| (name.to_owned(), (start, count))).collect()
    }

    #[test]
    fn each_delivery_has_what_came_since_the_last_and_its_start() {
        let mut store = Store::new(Limits::default(), 10);
        let mut deltas = Deltas::new(Limits::default());
        let errors = metrics::SYSCALL_ERRORS;
        store.add(&Entity::Host, errors, &call(1), 5);
        deltas.count(&store.snapshot(20));
        assert_eq!(told(&deltas.take()), of([("1", 10, 5)]));
        store.add(&Entity::Host, errors, &call(1), 2);
        store.add(&Entity::Host, errors, &call(2), 7);
        deltas.count(&store.snapshot(30));
        let taken = deltas.take();
        assert_eq!((told(&taken), taken.snapshot().time_unix_ns()), (of([("1", 20, 2), ("2", 20, 7)]), 30));
        deltas.count(&store.snapshot(40));
        assert!(told(&deltas.take()).is_empty(), "what stands still is not told");
        // Two intervals in one delivery.
        store.add(&Entity::Host, errors, &call(1), 1);
        deltas.count(&store.snapshot(50));
        store.add(&Entity::Host, errors, &call(1), 1);
        deltas.count(&store.snapshot(60));
        assert_eq!(told(&deltas.take()), of([("1", 40, 2)]));
        // A level is what it is.
        store.set(&Entity::Host, metrics::SYSCALL_IN_FLIGHT, &call(3), 9);
        deltas.count(&store.snapshot(70));
        deltas.take();
        deltas.count(&store.snapshot(80));
        assert_eq!(told(&deltas.take()).get("3").map(|(_, level)| *level), Some(9));
    }

    #[test]
    fn what_did_not_arrive_is_part_of_the_next() {
        let mut store = Store::new(Limits::default(), 10);
        let mut deltas = Deltas::new(Limits::default());
        let time = metrics::SYSCALL_DURATION;
        let mut expected = [0u64; 100];
        let mut arrived = [0u64; 100];
        for round in 0..20u64 {
            for (i, expected) in expected.iter_mut().enumerate() {
                let times = (i as u64 * round) % 3;
                for _ in 0..times {
                    store.record(&Entity::Host, time, &call(i as i64), Duration::from_millis(i as u64));
                }
                *expected += times;
            }
            deltas.count(&store.snapshot(20 + round));
            let taken = deltas.take();
            // Every third lot of seven is lost on the way; the last round brings everything.
            let unsent: Vec<Range<u64>> =
                if round == 19 { Vec::new() } else { (0..5).map(|i| i * 21..i * 21 + 7).collect() };
            let mut position = 0;
            for owner in taken.snapshot().entities() {
                for series in owner.metrics().flat_map(|(_, series)| series) {
                    let name = series.attrs().get(key::SYSCALL_NAME).unwrap().to_string();
                    if !unsent.iter().any(|range| range.contains(&position))
                        && let Data::Times(histogram) = series.data()
                    {
                        let (_, counts) = histogram.buckets();
                        assert_eq!(counts.iter().sum::<u64>(), histogram.count());
                        assert_eq!(
                            histogram.sum_ns(),
                            u128::from(histogram.count()) * name.parse::<u128>().unwrap() * 1_000_000
                        );
                        arrived[name.parse::<usize>().unwrap()] += histogram.count();
                    }
                    position += 1;
                }
            }
            deltas.put_back(&taken, &unsent);
        }
        assert_eq!(arrived, expected);
    }

    #[test]
    fn what_ends_is_forgotten_and_begins_anew() {
        let mut store = Store::new(Limits { idle: 2, ..Limits::default() }, 10);
        let mut deltas = Deltas::new(Limits::default());
        let errors = metrics::SYSCALL_ERRORS;
        store.add(&container(1), errors, &call(1), 5);
        for now in 11..20 {
            deltas.count(&store.snapshot(now));
        }
        assert_eq!(told(&deltas.take()), of([("1", 10, 5)]));
        assert_eq!((deltas.len(), store.peek().len()), (0, 0));
        store.add(&container(1), errors, &call(1), 3);
        deltas.count(&store.snapshot(20));
        assert_eq!(told(&deltas.take()), of([("1", 19, 3)]), "less than before, and all of it");
    }

    #[test]
    fn containers_that_come_and_go_while_nothing_is_delivered_are_bounded_and_counted() {
        let limits = Limits { entities: 8, idle: 1, ..Limits::default() };
        let mut store = Store::new(limits, 10);
        let mut deltas = Deltas::new(limits);
        for id in 0..200 {
            store.add(&container(id), metrics::SYSCALL_ERRORS, &call(1), 1);
            deltas.count(&store.snapshot(u64::from(id) + 20));
            assert!(deltas.len() < 30, "{}", deltas.len());
            let taken = deltas.take();
            deltas.put_back(&taken, std::slice::from_ref(&(0..u64::MAX)));
        }
        let sum: u64 = deltas
            .take()
            .snapshot()
            .entities()
            .flat_map(|owner| owner.metrics().flat_map(|(_, series)| series).collect::<Vec<_>>())
            .map(|series| if let Data::Count(count) = series.data() { *count } else { 0 })
            .sum();
        assert_eq!(sum, 200);
    }
}
