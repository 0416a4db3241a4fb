//! Rows of processes added up: by container, or by call alone.

use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::Row;
use crate::config::SyscallBy;
use crate::entity::{ContainerIdentity, Entity};
use crate::signals::Who;

/// Whose calls are added up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Everybodys,
    Containers(Arc<ContainerIdentity>),
    Units(Arc<str>),
    Hosts,
    /// Their cgroup is not known: of some container, or of the host.
    Somebodys,
}

impl Whose {
    fn of_place(who: &Who) -> Self {
        match &who.entity {
            Entity::Container(container) => Self::Containers(Arc::clone(container)),
            Entity::Unit(unit) => Self::Units(Arc::clone(unit)),
            Entity::Host if who.cgroup.is_some() => Self::Hosts,
            Entity::Host => Self::Somebodys,
        }
    }
}

/// Adds up what is one row `by` what was asked for; rows are in no order afterwards.
pub(super) fn by(by: SyscallBy, rows: Vec<Row>) -> Vec<Row> {
    let whose: fn(&Who) -> Whose = match by {
        SyscallBy::Process => return rows,
        SyscallBy::Container => Whose::of_place,
        SyscallBy::Syscall => |_who| Whose::Everybodys,
    };
    let mut groups: HashMap<(Whose, &'static str, bool), Row> = HashMap::default();
    for mut row in rows {
        let whose = whose(&row.who);
        row.who = Who {
            pid: None,
            comm: None,
            executable: None,
            entity: if whose == Whose::Everybodys { Entity::Host } else { row.who.entity },
            cgroup: row.who.cgroup.filter(|_| whose != Whose::Everybodys),
            netns: None,
        };
        match groups.entry((whose, row.syscall, row.waits)) {
            Entry::Occupied(mut group) => add(group.get_mut(), row),
            Entry::Vacant(place) => {
                place.insert(row);
            }
        }
    }
    groups.into_values().collect()
}

/// Adds a row to another of the same call.
fn add(group: &mut Row, row: Row) {
    let Row { time_unix_ns, who, syscall: _, waits: _, calls, durations, min, off_cpu, errors, in_flight } =
        row;
    group.time_unix_ns = group.time_unix_ns.max(time_unix_ns);
    group.who.cgroup = match (group.who.cgroup.take(), who.cgroup) {
        (Some(one), Some(other)) => Some(in_common(one, &other)),
        (Some(_), None) | (None, _) => None,
    };
    group.calls = group.calls.saturating_add(calls);
    // Of calls that were not measured nothing is known, and nothing is missing.
    match (group.durations.count(), durations.count()) {
        (_, 0) => {}
        (0, _) => (group.min, group.off_cpu) = (min, off_cpu),
        (_, _) => {
            group.min = group.min.zip(min).map(|(one, other)| one.min(other));
            group.off_cpu = group.off_cpu.zip(off_cpu).map(|(one, other)| one.saturating_add(other));
        }
    }
    group.durations.merge(&durations);
    group.in_flight = group.in_flight.saturating_add(in_flight);
    for (errno, count) in errors {
        match group.errors.iter_mut().find(|(known, _)| *known == errno) {
            Some((_, sum)) => *sum = sum.saturating_add(count),
            None => group.errors.push((errno, count)),
        }
    }
}

/// The innermost cgroup that two have in common: themselves, if they are the same.
fn in_common(one: Arc<str>, other: &str) -> Arc<str> {
    if *one == *other {
        return one;
    }
    let parts = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
    let (one, other) = (parts(&one), parts(other));
    let same = one.iter().zip(&other).take_while(|(one, other)| one == other).count();
    match one.get(..same).unwrap_or_default().join("/") {
        path if path.is_empty() => "/".into(),
        path => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::series::Histogram;

    const CONTAINER: &str = "/docker/3f37e9702f3961bba773444f8be29ad8c0ffee00c0ffee00c0ffee00c0ffee00";

    fn row(pid: u32, cgroup: Option<&str>, syscall: &'static str, calls: u64) -> Row {
        let mut durations = Histogram::new();
        (1..=calls).for_each(|call| durations.record(Duration::from_micros(call * u64::from(pid))));
        Row {
            time_unix_ns: u64::from(pid),
            who: Who {
                pid: (pid != 0).then_some(pid),
                comm: Some("app".into()),
                executable: Some("app".into()),
                entity: cgroup.map_or(Entity::Host, |path| Entity::of_path(path.as_bytes())),
                cgroup: cgroup.map(Into::into),
                netns: None,
            },
            syscall,
            waits: false,
            calls,
            min: durations.max().map(|_| Duration::from_micros(pid.into())),
            off_cpu: Some(Duration::from_micros(1)),
            in_flight: u64::from(pid / 2),
            errors: vec![("ENOENT".into(), 1), (if pid < 3 { "EAGAIN" } else { "EINTR" }.into(), 2)],
            durations,
        }
    }

    fn named(rows: Vec<Row>) -> BTreeMap<(String, &'static str, bool), Row> {
        let name = |row: &Row| {
            let container = row.who.entity.container().map(|container| &container.container_id[..4]);
            format!("{}{}", container.unwrap_or_default(), row.who.cgroup.as_deref().unwrap_or("?"))
        };
        let count = rows.len();
        let rows: BTreeMap<_, _> =
            rows.into_iter().map(|row| ((name(&row), row.syscall, row.waits), row)).collect();
        assert_eq!(rows.len(), count, "one row a group");
        rows
    }

    fn rows() -> Vec<Row> {
        let inside = format!("{CONTAINER}/init.scope");
        vec![
            row(1, Some("/pool/a"), "read", 3),
            row(2, Some("/pool/b"), "read", 4),
            row(3, Some(&inside), "read", 5),
            row(4, Some(CONTAINER), "read", 6),
            row(4, Some(CONTAINER), "write", 7),
            Row { waits: true, ..row(4, Some(CONTAINER), "read", 8) },
            row(0, None, "read", 9),
        ]
    }

    #[test]
    fn processes_stay_as_they_are() {
        assert_eq!(by(SyscallBy::Process, rows()).len(), 7);
        assert_eq!(by(SyscallBy::Container, Vec::new()).len(), 0);
    }

    #[test]
    fn units_are_added_up_by_themselves() {
        let of = |pid, path| row(pid, Some(path), "read", 3);
        let rows = vec![
            of(1, "/system.slice/a.service/worker"),
            of(2, "/system.slice/b.service"),
            of(3, "/system.slice/a.service"),
            of(4, "/pool"),
        ];
        let groups = named(by(SyscallBy::Container, rows));
        let calls: Vec<_> = groups.iter().map(|((name, ..), row)| (&**name, row.calls)).collect();
        assert_eq!(calls, [("/pool", 3), ("/system.slice/a.service", 6), ("/system.slice/b.service", 3)]);
    }

    #[test]
    fn containers_the_host_and_what_is_neither_for_certain() {
        let groups = named(by(SyscallBy::Container, rows()));
        let container = format!("3f37{CONTAINER}");
        let calls: Vec<_> =
            groups.iter().map(|((name, call, waits), row)| (&**name, *call, *waits, row.calls)).collect();
        assert_eq!(
            calls,
            [
                ("/pool", "read", false, 7),
                (&*container, "read", false, 11),
                (&*container, "read", true, 8),
                (&*container, "write", false, 7),
                ("?", "read", false, 9),
            ]
        );
        for row in groups.values() {
            assert_eq!((row.who.pid, &row.who.comm, &row.who.executable), (None, &None, &None));
        }
        let host = &groups[&("/pool".to_owned(), "read", false)];
        let mut durations = Histogram::new();
        [1, 2, 3, 2, 4, 6, 8].iter().for_each(|us| durations.record(Duration::from_micros(*us)));
        assert_eq!(host.durations, durations);
        assert_eq!((host.time_unix_ns, host.min), (2, Some(Duration::from_micros(1))));
        assert_eq!(host.off_cpu, Some(Duration::from_micros(2)));
        assert_eq!(host.errors, [("ENOENT".into(), 2), ("EAGAIN".into(), 4)]);
        let read = &groups[&(container, "read", false)];
        assert_eq!(read.errors, [("ENOENT".into(), 2), ("EINTR".into(), 4)]);
    }

    #[test]
    fn everybodys_are_nobodys() {
        let groups = named(by(SyscallBy::Syscall, rows()));
        let calls: Vec<_> =
            groups.iter().map(|((name, call, waits), row)| (&**name, *call, *waits, row.calls)).collect();
        assert_eq!(calls, [("?", "read", false, 27), ("?", "read", true, 8), ("?", "write", false, 7)]);
        let read = &groups[&("?".to_owned(), "read", false)];
        assert!(read.who.entity.container().is_none());
        assert_eq!(read.off_cpu, Some(Duration::from_micros(5)));
        assert_eq!((read.errors_total(), read.in_flight), (15, 4));
    }

    #[test]
    fn what_is_not_known_of_all_is_not_known() {
        let one = || row(1, None, "read", 3);
        let unmeasured = || Row { durations: Histogram::new(), min: None, off_cpu: None, ..one() };
        let silent = || Row { min: None, off_cpu: None, ..one() };
        let us = |us| Some(Duration::from_micros(us));
        for (what, rows, min, off_cpu) in [
            ("both", [one(), one()], us(1), us(2)),
            ("one was not measured", [one(), unmeasured()], us(1), us(1)),
            ("nor the other", [unmeasured(), one()], us(1), us(1)),
            ("neither", [unmeasured(), unmeasured()], None, None),
            ("one does not tell", [one(), silent()], None, None),
        ] {
            let groups = by(SyscallBy::Syscall, rows.to_vec());
            assert_eq!((groups[0].min, groups[0].off_cpu, groups[0].calls), (min, off_cpu, 6), "{what}");
        }
    }

    #[test]
    fn what_cgroups_have_in_common() {
        for (one, other, want) in [
            ("/", "/", "/"),
            ("/a/b", "/a/b", "/a/b"),
            ("/a/b", "/a", "/a"),
            ("/a/b", "/a/bc", "/a"),
            ("/a/b", "/c/b", "/"),
            ("/a", "/", "/"),
        ] {
            assert_eq!(&*in_common(one.into(), other), want, "{one} {other}");
            assert_eq!(&*in_common(other.into(), one), want, "{other} {one}");
        }
    }
}
