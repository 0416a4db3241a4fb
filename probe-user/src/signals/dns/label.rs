//! The name that was asked for, as an attribute of metrics: as much of it as is wanted, and of no more names than is bearable.

use std::collections::{HashMap, HashSet};
use std::iter;
use std::sync::Arc;

use foldhash::fast::RandomState;
use psl::Psl as _;

use crate::config::{DnsOptions, QuestionNames};
use crate::entity::Entity;
use crate::series::{Store, Value};

/// What the names beyond the limit have in common.
pub(super) const OTHER: &str = "_other";
/// Names over all containers: a quarter of the series that a metric may have ([`crate::series::Limits`]), since a name has
/// several, by type, code and server. Those beyond a limit of series lose all attributes, those beyond this one only the name.
/// Nobody has more of them than are left for all others.
pub(crate) const MOST_NAMES: usize = 2_500;

/// Where addresses are looked up by reversed names: what is below is digits, and not registered by anybody.
const REVERSE: [&str; 2] = ["in-addr.arpa", "ip6.arpa"];

/// The names that are attributes of somebody's series: first come, first served. They stay for as long as that somebody has series.
#[derive(Debug)]
pub(super) struct Labels {
    names: QuestionNames,
    /// Of one container, or of the host.
    most: usize,
    known: HashMap<Entity, HashSet<Arc<str>, RandomState>, RandomState>,
    /// Over all of them.
    count: usize,
    warned: bool,
}

impl Labels {
    pub(super) fn new(options: &DnsOptions) -> Self {
        Self {
            names: options.names,
            most: options.names_max,
            known: HashMap::default(),
            count: 0,
            warned: false,
        }
    }

    /// Other names, or more of them, from now on. Those that are known stay: their series do.
    pub(super) fn change(&mut self, options: &DnsOptions) {
        self.names = options.names;
        self.most = options.names_max;
        self.warned = false;
    }

    /// What a lookup's series say of its name, which is in presentation format; `None`: nothing.
    pub(super) fn of(&mut self, entity: &Entity, name: &str) -> Option<Value> {
        let label = match self.names {
            QuestionNames::Off => return None,
            QuestionNames::Suffix => registered(name),
            QuestionNames::Full => name,
        };
        let known = self.known.get(entity);
        if let Some(label) = known.and_then(|known| known.get(label)) {
            return Some(Value::Shared(Arc::clone(label)));
        }
        // What is free shrinks with each name, so however many ask for however much, something is left for the next.
        let free = MOST_NAMES.saturating_sub(self.count);
        if known.map_or(0, HashSet::len) >= self.most.min(free) {
            self.warn(entity);
            return Some(Value::Static(OTHER));
        }
        let label: Arc<str> = label.into();
        self.known.entry(entity.clone()).or_default().insert(Arc::clone(&label));
        self.count += 1;
        Some(Value::Shared(label))
    }

    /// Names of those who have ended have no series any more: they are room for others.
    pub(super) fn forget_ended(&mut self, store: &Store) {
        let Self { known, count, .. } = self;
        known.retain(|entity, names| {
            let stays = store.has(entity);
            *count -= if stays { 0 } else { names.len() };
            stays
        });
    }

    /// Once: how many they are, the series of [`OTHER`] say.
    fn warn(&mut self, entity: &Entity) {
        if !std::mem::replace(&mut self.warned, true) {
            let container = entity.container().map_or("the host", |container| &container.container_id);
            tracing::warn!(
                container,
                names = self.count,
                "lookups of further names are counted as dns.question.name={OTHER}; \
                 --dns-names-max says how many names a container may have, {MOST_NAMES} is the most over all, and none has more than are left for the others"
            );
        }
    }
}

/// The part of a name that somebody registered: one label more than a suffix of the public suffix list, private ones included. A
/// name that is such a suffix is its own; where the list knows nothing of the last label, that is the suffix (the list's rule `*`).
fn registered(name: &str) -> &str {
    let suffix = psl::List.find(labels(name).map(str::as_bytes)).len;
    let suffix = name.len().saturating_sub(suffix);
    if let Some(reverse) = name.get(suffix..).filter(|suffix| REVERSE.contains(suffix)) {
        return reverse;
    }
    starts(name).find(|start| *start < suffix).and_then(|start| name.get(start..)).unwrap_or(name)
}

/// Where labels begin, from the last to the first.
fn starts(name: &str) -> impl Iterator<Item = usize> {
    let dots = name.match_indices('.').rev().map(|(at, _)| at);
    // An escaped dot is part of its label; a backslash may be escaped itself.
    let ends = dots.filter(|at| {
        let before = name.get(..*at).unwrap_or_default();
        before.bytes().rev().take_while(|octet| *octet == b'\\').count() % 2 == 0
    });
    ends.map(|at| at + 1).chain(iter::once(0))
}

/// Labels from the last to the first, escaped as they are.
fn labels(name: &str) -> impl Iterator<Item = &str> {
    let mut end = name.len();
    starts(name).map(move |start| {
        let label = name.get(start..end).unwrap_or_default();
        end = start.saturating_sub(1);
        label
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::entity::ContainerIdentity;
    use crate::event::key;
    use crate::series::{Data, Limits, Store, attr, metrics};

    fn container(id: usize) -> Entity {
        let container_id = format!("{id:064x}");
        Entity::Container(Arc::new(ContainerIdentity {
            container_id,
            runtime: None,
            pod_uid: None,
            names: crate::entity::Names::default(),
        }))
    }

    fn labels_of(names: QuestionNames, names_max: usize) -> Labels {
        Labels::new(&DnsOptions { names, names_max, ..DnsOptions::default() })
    }

    #[test]
    fn the_registered_part_of_a_name() {
        for (what, name, want) in [
            ("ordinary", "www.example.org", "example.org"),
            ("nothing before it", "example.org", "example.org"),
            ("a suffix of two labels", "a.b.example.co.uk", "example.co.uk"),
            ("a suffix itself", "co.uk", "co.uk"),
            ("one label of the list", "org", "org"),
            ("one label", "localhost", "localhost"),
            ("the root", ".", "."),
            ("a cluster's", "db.prod.svc.cluster.local", "cluster.local"),
            ("a search list's", "example.org.prod.svc.cluster.local", "cluster.local"),
            ("a cloud's own", "ip-10-0-0-1.eu-west-1.compute.internal", "compute.internal"),
            ("a rule with a star", "a.b.any.ck", "b.any.ck"),
            ("its exception", "a.www.ck", "www.ck"),
            ("a private suffix", "a.someone.github.io", "someone.github.io"),
            ("an IDN", "a.xn--85x722f.xn--55qx5d.cn", "xn--85x722f.xn--55qx5d.cn"),
            ("reverse", "4.3.2.1.in-addr.arpa", "in-addr.arpa"),
            ("reverse, IPv6", "1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", "ip6.arpa"),
            ("where reverse names are", "in-addr.arpa", "in-addr.arpa"),
            ("a name below arpa", "_dns.resolver.arpa", "resolver.arpa"),
            ("an escaped dot", r"a\.b.example.com", "example.com"),
            ("one in the registered label", r"www.a\.b.com", r"a\.b.com"),
            ("one before the suffix", r"www.example\.com", r"www.example\.com"),
            ("nothing but one label with dots", r"www\.example\.com", r"www\.example\.com"),
            ("an escaped backslash", r"a\\.b.example.com", "example.com"),
            ("one in the registered label", r"a.b\\.com", r"b\\.com"),
            ("one, and an escaped dot", r"a.b\\\.c.com", r"b\\\.c.com"),
            ("octets that are no text", r"www.\000\255.\027[m", r"\000\255.\027[m"),
            ("service labels", "_http._tcp.mirror.example.org", "example.org"),
        ] {
            assert_eq!(registered(name), want, "{what}");
        }
    }

    #[test]
    fn nothing_is_said_unless_it_is_asked_for() {
        let mut labels = labels_of(QuestionNames::Off, 10);
        assert_eq!(labels.of(&Entity::Host, "www.example.org"), None);
        let mut labels = labels_of(QuestionNames::Full, 10);
        assert_eq!(labels.of(&Entity::Host, "www.example.org"), Some("www.example.org".into()));
        let mut labels = labels_of(QuestionNames::Suffix, 10);
        assert_eq!(labels.of(&Entity::Host, "www.example.org"), Some("example.org".into()));
    }

    #[test]
    fn names_beyond_the_limit_have_one_in_common() {
        let mut labels = labels_of(QuestionNames::Suffix, 2);
        let (here, there) = (container(1), container(2));
        for (entity, name, want) in [
            (&here, "www.example.org", "example.org"),
            (&here, "www.example.net", "example.net"),
            (&here, "www.example.com", OTHER),
            (&here, "ftp.example.org", "example.org"),
            (&there, "www.example.com", "example.com"),
            (&here, "www.example.com", OTHER),
        ] {
            assert_eq!(labels.of(entity, name), Some(want.into()), "{name}");
        }
    }

    #[test]
    fn what_is_told_of_names_can_change() {
        let mut labels = labels_of(QuestionNames::Off, 1);
        assert_eq!(labels.of(&Entity::Host, "www.example.org"), None);
        labels.change(&DnsOptions { names: QuestionNames::Full, names_max: 1, ..DnsOptions::default() });
        assert_eq!(labels.of(&Entity::Host, "www.example.org"), Some("www.example.org".into()));
        assert_eq!(labels.of(&Entity::Host, "www.example.net"), Some(OTHER.into()));
        labels.change(&DnsOptions { names: QuestionNames::Suffix, names_max: 2, ..DnsOptions::default() });
        assert_eq!(labels.of(&Entity::Host, "www.example.net"), Some("example.net".into()));
        assert_eq!(labels.of(&Entity::Host, "www.example.com"), Some(OTHER.into()));
    }

    #[test]
    fn one_with_thousands_of_names_leaves_room_for_the_others() {
        let mut labels = labels_of(QuestionNames::Full, MOST_NAMES);
        let known = |labels: &Labels, id| labels.known.get(&container(id)).map_or(0, HashSet::len);
        for name in 0..10_000 {
            labels.of(&container(0), &format!("{name}.example.org"));
        }
        assert_eq!(known(&labels, 0), MOST_NAMES / 2);
        for id in 1..=5 {
            for name in 0..10_000 {
                labels.of(&container(id), &format!("{name}.example.org"));
            }
        }
        // Half of what is left, each time.
        let taken: Vec<usize> = (0..=5).map(|id| known(&labels, id)).collect();
        assert_eq!(taken, [1_250, 625, 313, 156, 78, 39]);
        assert_eq!(labels.of(&container(6), "0.example.org"), Some("0.example.org".into()));
        assert_eq!(labels.of(&container(0), "9999.example.org"), Some(OTHER.into()));
    }

    #[test]
    fn names_end_with_their_container() {
        let limits = Limits { idle: 3, ..Limits::default() };
        let (mut labels, mut store) = (labels_of(QuestionNames::Full, 100), Store::new(limits, 1));
        for id in 0..30 {
            for name in 0..100 {
                labels.of(&container(id), &format!("{name}.example.org"));
            }
            store.add(&container(id), metrics::DNS_LOOKUP_UNANSWERED, &[], 1);
        }
        labels.forget_ended(&store);
        assert_eq!(labels.of(&container(29), "new.example.org"), Some(OTHER.into()));
        for now in 2..10 {
            store.add(&container(29), metrics::DNS_LOOKUP_UNANSWERED, &[], 1);
            store.snapshot(now);
        }
        labels.forget_ended(&store);
        assert_eq!(labels.known.keys().collect::<Vec<_>>(), [&container(29)]);
        assert_eq!(labels.count, labels.known[&container(29)].len());
        assert_eq!(labels.of(&container(29), "new.example.org"), Some("new.example.org".into()));
    }

    #[test]
    fn names_are_bounded_over_all_containers() {
        let mut labels = labels_of(QuestionNames::Full, 100);
        for entity in 0..100 {
            for name in 0..100 {
                labels.of(&container(entity), &format!("{name}.example.org"));
            }
        }
        assert_eq!(labels.known.values().map(HashSet::len).sum::<usize>(), MOST_NAMES);
        assert_eq!(labels.count, MOST_NAMES);
        assert_eq!(labels.of(&container(100), "0.example.org"), Some(OTHER.into()));
        assert_eq!(labels.of(&container(0), "0.example.org"), Some("0.example.org".into()));
        assert!(labels.known.len() <= MOST_NAMES);
    }

    proptest! {
        #[test]
        fn a_part_of_any_name_is_found(name in r"([a-c.\\]|\\[.\\0]|org|co\.uk|in-addr\.arpa){1,12}") {
            let part = registered(&name);
            prop_assert!(name.ends_with(part));
            let before = &name[..name.len() - part.len()];
            // Cut between labels, or not at all.
            prop_assert!(starts(&name).any(|start| start == before.len()));
            let whole: Vec<&str> = labels(&name).collect::<Vec<_>>().into_iter().rev().collect();
            prop_assert_eq!(&whole.join("."), &name);
        }

        #[test]
        fn no_lookup_is_lost_and_no_container_has_more_names_than_it_may(
            lookups in prop::collection::vec((0_usize..4, 0_usize..30, any::<bool>()), 0..300),
            most in 1_usize..12,
            full in any::<bool>(),
        ) {
            let mut labels = labels_of(if full { QuestionNames::Full } else { QuestionNames::Suffix }, most);
            let mut store = Store::new(Limits::default(), 1);
            let mut asked: BTreeMap<usize, u64> = BTreeMap::new();
            for (entity, name, answered) in &lookups {
                *asked.entry(*entity).or_default() += 1;
                let entity = container(*entity);
                let name = format!("{name}.example{}.org", name / 2);
                let attrs: Vec<_> =
                    labels.of(&entity, &name).map(|label| attr(key::DNS_QUESTION_NAME, label)).into_iter().collect();
                if *answered {
                    store.record(&entity, metrics::DNS_LOOKUP_DURATION, &attrs, Duration::from_millis(1));
                } else {
                    store.add(&entity, metrics::DNS_LOOKUP_UNANSWERED, &attrs, 1);
                }
            }
            let snapshot = store.snapshot(2);
            for (entity, count) in asked {
                let entity = container(entity);
                let of = snapshot.entities().find(|of| *of.entity == entity).unwrap();
                let (mut total, mut names) = (0, HashSet::new());
                for series in of.metrics().flat_map(|(_, series)| series) {
                    names.extend(series.attrs().iter().map(|(_, value)| value.as_str().unwrap().to_owned()));
                    total += match series.data() {
                        Data::Count(count) => *count,
                        Data::Times(histogram) => histogram.count(),
                        Data::Level(_) => panic!("no level"),
                    };
                }
                prop_assert_eq!(total, count);
                prop_assert!(names.len() <= most + 1, "{:?}", names);
            }
        }
    }
}
