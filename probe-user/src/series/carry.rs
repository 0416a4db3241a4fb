//! All series as the next agent takes them over (`--pin`): with what they have come to, and since when.

use std::collections::HashSet;
use std::sync::Arc;

use hashbrown::HashTable;
use std::hash::BuildHasher as _;

use super::{Attr, Attrs, Data, Histogram, MetricDef, Owned, Series, Store, Value, metrics};
use crate::entity::Entity;
use crate::event::key;
use crate::handover::{AttributeState, OwnerState, SeriesState};

impl Store {
    /// Everything there is: each owner with its series.
    pub fn leave(&self, mut owner: impl FnMut(&Entity) -> OwnerState) -> Vec<OwnerState> {
        let owners = self.entities.iter().filter(|(_, owned)| !owned.ended);
        owners
            .map(|(entity, owned)| {
                let tables = metrics::ALL.iter().zip(&owned.tables);
                let series = tables.flat_map(|(def, table)| table.iter().map(|series| leave(def, series)));
                OwnerState { series: series.collect(), ..owner(entity) }
            })
            .collect()
    }

    /// Nanoseconds since 1970 of the last collection.
    #[must_use]
    pub const fn collected_unix_ns(&self) -> u64 {
        self.collected_unix_ns
    }

    /// Goes on with series of an owner. What has no room is left out, and begins anew when it is counted again; so is a metric or
    /// an attribute that nobody knows any more.
    pub fn go_on(&mut self, entity: &Entity, series: &[SeriesState], collected_unix_ns: u64) {
        self.collected_unix_ns = self.collected_unix_ns.min(collected_unix_ns);
        if self.entities.len() >= self.limits.entities && !self.entities.contains_key(entity) {
            return;
        }
        let now = self.snapshots;
        let mut texts: HashSet<Arc<str>> = HashSet::new();
        let Self { limits, hasher, entities, usage, .. } = self;
        let tables = || (0..metrics::ALL.len()).map(|_| HashTable::new()).collect();
        let owned = entities.entry(entity.clone()).or_insert_with(|| Owned {
            tables: tables(),
            touched: now,
            ended: false,
        });
        for state in series {
            let Some(def) = metrics::ALL.iter().find(|def| def.name == state.metric) else { continue };
            let (Some(attrs), Some(data)) = (attributes(def, state, &mut texts), data(state)) else {
                continue;
            };
            let (Some(table), Some(usage)) = (owned.tables.get_mut(def.index), usage.get_mut(def.index))
            else {
                continue;
            };
            let mut series = Series::new(attrs, def.kind, state.start_unix_ns, now);
            let has_room = usage.active < limits.per_metric && table.len() < limits.per_entity;
            let is_of_kind = std::mem::discriminant(&series.data) == std::mem::discriminant(&data);
            if !is_of_kind || !(series.is_overflow() || has_room) {
                continue;
            }
            series.data = data;
            usage.active += usize::from(!series.is_overflow());
            let hash = hasher.hash_one(series.attrs.as_slice());
            table.insert_unique(hash, series, |series| hasher.hash_one(series.attrs.as_slice()));
        }
    }
}

fn leave(def: &MetricDef, series: &Series) -> SeriesState {
    let attribute = |(key, value): &Attr| {
        let state = AttributeState { key: (*key).to_owned(), ..AttributeState::default() };
        match value {
            Value::Static(text) => AttributeState { text: Some((*text).to_owned()), ..state },
            Value::Shared(text) => AttributeState { text: Some(text.to_string()), ..state },
            Value::Int(number) => AttributeState { number: Some(*number), ..state },
            Value::Bool(yes) => AttributeState { yes: Some(*yes), ..state },
        }
    };
    let state = SeriesState {
        metric: def.name.to_owned(),
        attributes: series.attrs.iter().map(attribute).collect(),
        start_unix_ns: series.start_unix_ns,
        ..SeriesState::default()
    };
    match &series.data {
        Data::Count(count) => SeriesState { count: Some(*count), ..state },
        Data::Level(level) => SeriesState { level: Some(*level), ..state },
        Data::Times(times) => SeriesState { times: Some(times.leave()), ..state },
    }
}

fn data(state: &SeriesState) -> Option<Data> {
    match state {
        SeriesState { count: Some(count), .. } => Some(Data::Count(*count)),
        SeriesState { level: Some(level), .. } => Some(Data::Level(*level)),
        SeriesState { times: Some(times), .. } => Histogram::go_on(times).map(Data::Times),
        _ => None,
    }
}

/// Attributes under the names of this program. Texts are shared.
fn attributes(def: &MetricDef, state: &SeriesState, texts: &mut HashSet<Arc<str>>) -> Option<Attrs> {
    let names = || def.attributes.iter().chain([&key::METRIC_OVERFLOW]);
    let attribute = |state: &AttributeState| -> Option<Attr> {
        let name = names().find(|name| **name == state.key)?;
        let value = match state {
            AttributeState { text: Some(text), .. } => {
                let shared = texts.get(text.as_str()).cloned().unwrap_or_else(|| {
                    let shared: Arc<str> = text.as_str().into();
                    texts.insert(Arc::clone(&shared));
                    shared
                });
                Value::from(shared)
            }
            AttributeState { number: Some(number), .. } => Value::from(*number),
            AttributeState { yes: Some(yes), .. } => Value::from(*yes),
            _ => return None,
        };
        Some((*name, value))
    };
    let attributes: Option<Vec<Attr>> = state.attributes.iter().map(attribute).collect();
    Some(Attrs::new(&attributes?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::handover::HistogramState;
    use crate::series::{Limits, attr};

    const LIMITS: Limits = Limits { per_metric: 3, per_entity: 3, entities: 2, idle: 60 };

    fn lines(store: &Store) -> Vec<String> {
        let mut lines = Vec::new();
        for owner in store.peek().entities() {
            for (def, all) in owner.metrics() {
                for series in all {
                    let (entity, attrs) = (owner.entity, series.attrs());
                    let start = series.start_unix_ns();
                    lines.push(format!(
                        "{entity:?} {} {attrs:?} since {start}: {:?}",
                        def.name,
                        series.data()
                    ));
                }
            }
        }
        lines.sort();
        lines
    }

    #[test]
    fn series_go_on_as_they_were() {
        let mut store = Store::new(LIMITS, 1_000);
        let unit = Entity::Unit("nginx.service".into());
        for entity in [&Entity::Host, &unit] {
            let attrs = [attr(key::TCP_RETRANSMIT_TYPE, "fast"), attr(key::NETWORK_TYPE, "ipv4")];
            store.add(entity, metrics::TCP_RETRANSMITS, &attrs, 7);
            let attrs =
                [attr(key::DNS_QUESTION_TYPE, "A"), attr(key::SERVER_ADDRESS, "192.0.2.1".to_owned())];
            store.record(entity, metrics::DNS_LOOKUP_DURATION, &attrs, Duration::from_micros(3));
            store.record(entity, metrics::DNS_LOOKUP_DURATION, &attrs, Duration::from_secs(70));
        }
        let _collected = store.snapshot(2_000);
        for number in 0..4 {
            let attrs = [attr(key::TCP_RETRANSMIT_TYPE, format!("k{number}"))];
            store.add(&unit, metrics::TCP_RETRANSMITS, &attrs, 1);
        }
        let left = store.leave(|entity| OwnerState {
            unit: if let Entity::Unit(unit) = entity { Some(unit.to_string()) } else { None },
            ..OwnerState::default()
        });
        let mut next = Store::new(LIMITS, 9_000);
        for owner in &left {
            let entity = owner.unit.as_deref().map_or(Entity::Host, |unit| Entity::Unit(unit.into()));
            next.go_on(&entity, &owner.series, store.collected_unix_ns());
        }
        assert_eq!(lines(&next), lines(&store));
        assert!(lines(&next).iter().any(|line| line.contains("overflow")), "{:?}", lines(&next));
        let active = |store: &Store| store.usage().map(|usage| usage.active).collect::<Vec<_>>();
        assert_eq!(active(&next), active(&store));
        // They are the same series, and what begins now begins where the last collection ended.
        let attrs = [attr(key::TCP_RETRANSMIT_TYPE, "fast"), attr(key::NETWORK_TYPE, "ipv4")];
        for store in [&mut store, &mut next] {
            store.add(&Entity::Host, metrics::TCP_RETRANSMITS, &attrs, 5);
            store.add(&Entity::Host, metrics::TCP_RESETS, &[attr(key::NETWORK_IO_DIRECTION, "transmit")], 1);
        }
        assert_eq!(lines(&next), lines(&store));
        assert!(lines(&next).iter().any(|line| line.contains("since 1000: Count(12)")));
        assert!(lines(&next).iter().any(|line| line.contains("resets") && line.contains("since 2000")));
    }

    #[test]
    fn what_nobody_knows_is_left_out() {
        let series = |metric: &str, key: &str| SeriesState {
            metric: metric.to_owned(),
            attributes: vec![AttributeState {
                key: key.to_owned(),
                text: Some("x".into()),
                ..AttributeState::default()
            }],
            count: Some(1),
            ..SeriesState::default()
        };
        let name = metrics::TCP_RETRANSMITS.def().name;
        let histogram = metrics::DNS_LOOKUP_DURATION.def().name;
        let all = [
            series(name, key::TCP_RETRANSMIT_TYPE),
            series(name, "gone"),
            series("gone", key::TCP_RETRANSMIT_TYPE),
            series(histogram, key::DNS_QUESTION_TYPE),
            SeriesState { count: None, ..series(name, key::TCP_RETRANSMIT_TYPE) },
        ];
        let mut store = Store::new(LIMITS, 1);
        store.go_on(&Entity::Host, &all, 1);
        assert_eq!(lines(&store).len(), 1, "{:?}", lines(&store));
        for number in 0..3 {
            let entity = Entity::Unit(format!("{number}.service").into());
            store.go_on(&entity, &all, 1);
        }
        assert_eq!(store.entities.len(), LIMITS.entities);
    }

    #[test]
    fn a_histogram_that_is_none_is_refused() {
        let state = |first, counts: &[u64]| HistogramState {
            first,
            counts: counts.to_vec(),
            ..HistogramState::default()
        };
        assert!(Histogram::go_on(&state(0, &[1])).is_some());
        assert!(Histogram::go_on(&state(0, &[])).is_some());
        assert!(Histogram::go_on(&state(111, &[1])).is_some());
        assert!(Histogram::go_on(&state(112, &[1])).is_none());
        assert!(Histogram::go_on(&state(u32::MAX, &[1, 2])).is_none());
    }
}
