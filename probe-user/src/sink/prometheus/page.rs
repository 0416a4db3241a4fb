//! A page of metrics as Prometheus reads it: OpenMetrics text, names and labels as the OpenTelemetry specification translates
//! OTLP's ("Prometheus and OpenMetrics Compatibility"). There are no resources on a page: who a series is of is told by labels.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel as _, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder,
    LabelValueEncoder, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::entity::Entity;
use crate::event::key;
use crate::series::{Attrs, Data, Kind, MetricDef, Store, Value, metrics};
use crate::telemetry::{SelfStats, cpu_seconds, in_seconds, resident_bytes};

/// What a page is: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A label as it is written.
type Label = (Arc<str>, Value);

/// What is on a page. It is taken out of the store at once, and written as text by whoever asked for it.
#[derive(Debug)]
pub(super) struct Page {
    families: Vec<Family>,
    /// Attributes of the host's resource.
    target: BTreeMap<String, String>,
}

/// All series of a metric.
#[derive(Debug)]
struct Family {
    def: &'static MetricDef,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    labels: Labels,
    number: Number,
}

#[derive(Debug)]
enum Number {
    Count(u64),
    Seconds(f64),
    Level(i64),
    Times { sum: f64, count: u64, buckets: Box<[(f64, u64)]> },
}

impl Page {
    /// What has been observed.
    pub(super) fn of(store: &Store) -> Self {
        let mut names = Names::default();
        let mut families: Vec<Family> =
            metrics::ALL.iter().map(|def| Family { def, rows: Vec::new() }).collect();
        let now = Instant::now();
        for owner in store.peek().entities() {
            // Labels that change make other series: a new container waits for its names, if the kubelet may know them in a moment.
            if owner.entity.container().is_some_and(|container| container.names.are_awaited(now)) {
                continue;
            }
            let whose = names.owner(owner.entity);
            for (def, series) in owner.metrics() {
                let Some(family) = families.iter_mut().find(|family| family.def == def) else { continue };
                family.rows.extend(series.filter(|series| !series.is_ended()).map(|series| Row {
                    labels: names.labels(&whose, series.attrs()),
                    number: Number::of(series.data()),
                }));
            }
        }
        Self { families, target: BTreeMap::new() }
    }

    /// With what the agent counts about itself, and what is known of the host (attribute and value).
    pub(super) fn with_own<'a>(
        mut self,
        stats: &SelfStats,
        host: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut names = Names::default();
        for def in metrics::OWN {
            let def: &'static MetricDef = def;
            let mut rows: Vec<Row> = Vec::new();
            if def == metrics::PROCESS_CPU_TIME {
                let (user, system) = cpu_seconds();
                for (mode, seconds) in [("user", user), ("system", system)] {
                    let mode = Attrs::new(&[(key::CPU_MODE, Value::Static(mode))]);
                    rows.push(Row { labels: names.labels(&[], &mode), number: Number::Seconds(seconds) });
                }
            } else if def == metrics::PROCESS_MEMORY_USAGE {
                let none = Attrs::new(&[]);
                rows.extend(
                    resident_bytes()
                        .map(|bytes| Row { labels: names.labels(&[], &none), number: Number::Level(bytes) }),
                );
            } else if def == metrics::PROBE_EXPORT_DURATION {
                rows.extend(stats.export_durations().into_iter().map(|(sink, durations)| Row {
                    labels: names.labels(&[], &Attrs::new(&[(key::SINK, Value::Static(sink))])),
                    number: Number::of(&Data::Times(durations)),
                }));
            } else {
                rows.extend(stats.all(def).into_iter().map(|(attrs, value)| Row {
                    labels: names.labels(&[], &attrs),
                    number: match def.kind {
                        Kind::Counter if def.unit == "s" => Number::Seconds(in_seconds(value)),
                        Kind::Counter | Kind::Histogram => Number::Count(value),
                        Kind::Gauge | Kind::UpDownCounter => {
                            Number::Level(i64::try_from(value).unwrap_or(i64::MAX))
                        }
                    },
                }));
            }
            self.families.push(Family { def, rows });
        }
        for (key, value) in host {
            // Two that become the same name: both values, as the specification has it.
            let values: &mut String = self.target.entry(label_name(key)).or_default();
            if !values.is_empty() {
                values.push(';');
            }
            values.push_str(value);
        }
        self
    }

    /// As text.
    ///
    /// # Errors
    ///
    /// None that is known: the writer is memory.
    pub(super) fn write(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Number {
    fn of(data: &Data) -> Self {
        match data {
            Data::Count(count) => Self::Count(*count),
            Data::Level(level) => Self::Level(*level),
            Data::Times(histogram) => Self::Times {
                sum: histogram.sum_seconds(),
                count: histogram.count(),
                buckets: histogram.by_octave(),
            },
        }
    }

    fn encode(&self, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => encoder.encode_counter::<NoLabelSet, _, u64>(count, None),
            Self::Seconds(seconds) => encoder.encode_counter::<NoLabelSet, _, u64>(seconds, None),
            Self::Level(level) => encoder.encode_gauge(level),
            Self::Times { sum, count, buckets } => {
                encoder.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
            }
        }
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if !self.target.is_empty() {
            let labels: Vec<(&str, &str)> =
                self.target.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            let help = "What the metrics are of: attributes of the host's resource.";
            encoder.encode_descriptor("target", help, None, MetricType::Info)?.encode_info(&labels)?;
        }
        for Family { def, rows } in &self.families {
            if rows.is_empty() {
                continue;
            }
            let (name, unit) = name_of(def);
            let kind = match def.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge | Kind::UpDownCounter => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut family = encoder.encode_descriptor(&name, def.description, unit.as_ref(), kind)?;
            for Row { labels, number } in rows {
                if labels.0.is_empty() {
                    // The family's encoder would write braces around nothing.
                    number.encode(&mut family)?;
                } else {
                    number.encode(&mut family.encode_family(labels)?)?;
                }
            }
        }
        Ok(())
    }
}

/// Name without the unit that is appended to it, and that unit.
fn name_of(def: &MetricDef) -> (String, Option<Unit>) {
    let unit = match def.unit {
        "s" => Some(Unit::Seconds),
        "By" => Some(Unit::Bytes),
        // An annotation in braces is none.
        _ => None,
    };
    (def.name.replace('.', "_"), unit)
}

/// A label's name: letters, digits and underscores, no digit at the beginning.
fn label_name(attribute: &str) -> String {
    let mut name: String =
        attribute.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert_str(0, "key_");
    }
    name
}

/// Names of labels: each is made once.
#[derive(Debug, Default)]
struct Names(HashMap<&'static str, Arc<str>>);

impl Names {
    fn of(&mut self, attribute: &'static str) -> Arc<str> {
        Arc::clone(self.0.entry(attribute).or_insert_with(|| label_name(attribute).into()))
    }

    /// Who a series is of; the host's have no such labels.
    fn owner(&mut self, entity: &Entity) -> Vec<Label> {
        let shared = |text: &str| Value::Shared(text.into());
        let identity = match entity {
            Entity::Host => return Vec::new(),
            Entity::Unit(unit) => return vec![(self.of(key::SYSTEMD_UNIT_NAME), shared(unit))],
            Entity::Container(identity) => identity,
        };
        let mut labels = vec![(self.of(key::CONTAINER_ID), shared(&identity.container_id))];
        labels.extend(
            identity.runtime.map(|runtime| (self.of(key::CONTAINER_RUNTIME), Value::Static(runtime.name()))),
        );
        labels.extend(identity.pod_uid.as_deref().map(|uid| (self.of(key::K8S_POD_UID), shared(uid))));
        if let Some(names) = identity.names.get() {
            labels.extend(names.identity().map(|(key, name)| (self.of(key), shared(name))));
            for (key, value) in names.groups() {
                // Keys of labels that differ in a dot only are one label here, and a page must not have that twice.
                let name = label_name(key);
                if labels.iter().all(|(known, _)| **known != *name) {
                    labels.push((name.into(), shared(value)));
                }
            }
        }
        labels
    }

    fn labels(&mut self, owner: &[Label], attrs: &Attrs) -> Labels {
        let own = attrs.iter().map(|(key, value)| (self.of(key), value.clone()));
        Labels(owner.iter().cloned().chain(own).collect())
    }
}

#[derive(Debug)]
struct Labels(Box<[Label]>);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        for (name, value) in &self.0 {
            (name.as_ref(), Text(value)).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

/// A value as a label's; the encoder escapes it.
#[derive(Debug)]
struct Text<'a>(&'a Value);

impl EncodeLabelValue for Text<'_> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        write!(encoder, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::entity::kube::Pod;
    use crate::entity::{ContainerIdentity, Directory, KubeNames};
    use crate::series::{Limits, attr};

    fn container() -> Entity {
        let (container_id, pod_uid) = ("c0ffee".to_owned(), Some("pod-1".to_owned()));
        Entity::Container(Arc::new(ContainerIdentity {
            container_id,
            runtime: None,
            pod_uid,
            names: crate::entity::Names::default(),
        }))
    }

    #[test]
    fn names_units_and_owners_are_those_of_the_specification() {
        let mut store = Store::new(Limits::default(), 0);
        let ipv4 = [attr(key::NETWORK_TYPE, "ipv4")];
        store.add(&Entity::Host, metrics::TCP_RETRANSMITS, &ipv4, 2);
        store.add(&container(), metrics::TCP_RETRANSMITS, &ipv4, 3);
        let hostile = [attr(key::SYSCALL_NAME, "a\"b\\c\nd".to_owned())];
        store.set(&Entity::Host, metrics::SYSCALL_IN_FLIGHT, &hostile, 7);
        let stats = SelfStats::new();
        stats.add(metrics::PROBE_EVENTS, &[attr(key::SIGNAL, "tcp")], 5);
        stats.export_took("otlp_metrics", Duration::from_millis(3));
        stats.set(metrics::PROBE_PROGRAM_RUN_TIME, &[attr(key::PROGRAM, "sys_enter")], 1_500_000_000);
        let host = [("host.name", "node1"), ("1st", "x"), ("a.b", "y"), ("a_b", "z")];
        let text = Page::of(&store).with_own(&stats, host.into_iter()).write().unwrap();
        for want in [
            "# TYPE target info\n",
            "target_info{a_b=\"y;z\",host_name=\"node1\",key_1st=\"x\"} 1\n",
            "# TYPE system_network_tcp_retransmits counter\n",
            "system_network_tcp_retransmits_total{network_type=\"ipv4\"} 2\n",
            "system_network_tcp_retransmits_total{container_id=\"c0ffee\",k8s_pod_uid=\"pod-1\",network_type=\"ipv4\"} 3\n",
            "process_syscall_in_flight{syscall_name=\"a\\\"b\\\\c\\nd\"} 7\n",
            "probe_events_total{signal=\"tcp\"} 5\n",
            "probe_program_run_time_seconds_total{program=\"sys_enter\"} 1.5\n",
            "probe_export_duration_seconds_count{sink=\"otlp_metrics\"} 1\n",
            "probe_export_duration_seconds_bucket{le=\"0.00390625\",sink=\"otlp_metrics\"} 1\n",
            "# UNIT process_cpu_time_seconds seconds\n",
            "process_cpu_time_seconds_total{cpu_mode=\"user\"} ",
            "\nprocess_memory_usage_bytes ",
        ] {
            assert!(text.contains(want), "{want} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
        assert!(metrics::ALL.iter().chain(metrics::OWN).all(|def| !def.description.contains(['\n', '\\'])));
    }

    #[test]
    fn a_pod_waits_for_its_names_and_has_them_as_labels() {
        const UID: &str = "b3a9c1d2-0e4f-4a5b-8c6d-7e8f9a0b1c2d";
        let directory = Directory::default();
        let (container_id, pod_uid) = ("c0ffee00c0ff".to_owned(), Some(UID.to_owned()));
        let mut identity = ContainerIdentity {
            container_id,
            runtime: None,
            pod_uid,
            names: crate::entity::Names::default(),
        };
        directory.meet(&mut identity, Instant::now());
        let mut store = Store::new(Limits::default(), 0);
        let entity = Entity::Container(Arc::new(identity));
        store.add(&entity, metrics::TCP_RETRANSMITS, &[attr(key::NETWORK_TYPE, "ipv4")], 3);
        assert!(!Page::of(&store).write().unwrap().contains("c0ffee"), "its labels would change");

        let label =
            |key: &str| -> (Box<str>, Box<str>) { (format!("k8s.pod.label.{key}").into(), "x".into()) };
        let names = KubeNames {
            namespace: "shop".into(),
            pod: "web-1".into(),
            container: Some("nginx".into()),
            workload: Some((key::K8S_DEPLOYMENT_NAME, "web".into())),
            labels: [label("a.b"), label("a/b"), label("c")].into(),
            ..KubeNames::default()
        };
        let containers = vec![("c0ffee00c0ff".into(), names.clone())];
        directory.learn(vec![Pod { uids: vec![UID.into()], names, containers }], Instant::now());
        let text = Page::of(&store).write().unwrap();
        let want = format!(
            "system_network_tcp_retransmits_total{{container_id=\"c0ffee00c0ff\",k8s_pod_uid=\"{UID}\",k8s_namespace_name=\"shop\",k8s_pod_name=\"web-1\",k8s_container_name=\"nginx\",k8s_deployment_name=\"web\",k8s_pod_label_a_b=\"x\",k8s_pod_label_c=\"x\",network_type=\"ipv4\"}} 3\n"
        );
        assert!(text.contains(&want), "{want} is not in\n{text}");
    }

    #[test]
    fn a_histogram_has_cumulative_buckets() {
        let mut store = Store::new(Limits::default(), 0);
        store.record(&Entity::Host, metrics::SYSCALL_DURATION, &[], Duration::from_millis(3));
        let text = Page::of(&store).write().unwrap();
        for want in [
            "process_syscall_duration_seconds_sum 0.003\n",
            "process_syscall_duration_seconds_count 1\n",
            "process_syscall_duration_seconds_bucket{le=\"0.001953125\"} 0\n",
            "process_syscall_duration_seconds_bucket{le=\"0.00390625\"} 1\n",
            "process_syscall_duration_seconds_bucket{le=\"+Inf\"} 1\n",
        ] {
            assert!(text.contains(want), "{want} is not in\n{text}");
        }
    }
}
