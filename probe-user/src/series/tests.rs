//! What a store keeps, folds and forgets.

use super::*;
use crate::entity::ContainerIdentity;
use std::sync::Arc;

fn container(id: &str) -> Entity {
    Entity::Container(Arc::new(ContainerIdentity {
        container_id: id.to_owned(),
        runtime: None,
        pod_uid: None,
        names: crate::entity::Names::default(),
    }))
}

fn one(store: &mut Store, now: u64, entity: &Entity, def: &MetricDef, attrs: &[Attr]) -> Option<(u64, Data)> {
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
    store.record(&Entity::Host, metrics::SYSCALL_DURATION, &[a.clone(), b.clone()], Duration::from_millis(1));
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
    assert!(seen(&mut store, 200).contains(&("stays".to_owned(), false, 100)), "one that is used never ends");
}

#[test]
fn what_is_idle_stays_ten_minutes() {
    for (interval, want) in [(10, 60), (1, 600), (600, 6), (86_400, 6)] {
        assert_eq!(Limits::with_interval(Duration::from_secs(interval)).idle, want);
    }
}
