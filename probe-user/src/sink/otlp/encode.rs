//! From a snapshot to request bodies.
//!
//! Messages are built and encoded owner by owner, so that what exists as messages at one time is one
//! request's worth, however many series there are. An `ExportMetricsServiceRequest` is nothing but a repeated
//! field 1, so encoded `ResourceMetrics` are appended to one another behind that field's key.

use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, DataPointFlags, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge,
    Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
    exponential_histogram_data_point::Buckets, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use probe_common::hist;
use prost::Message;

use super::config::{Histograms, Preferences};
use super::resource::{Resources, SCHEMA_URL, key_value};
use crate::series::{Data, Kind, MetricDef, Series, Snapshot, Value};

/// Where a request is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Bytes of an uncompressed body. Receivers refuse more than 4 MiB by default.
    pub bytes: usize,
    /// Data points, or log records.
    pub items: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { bytes: 3 << 20, items: 4_000 }
    }
}

/// One request, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedRequest {
    /// The message.
    pub body: Bytes,
    /// Position of its first item among all that were encoded with it.
    pub first: u64,
    /// Data points, or log records, in it.
    pub items: u64,
}

/// Key of field 1, length-delimited: `resource_metrics` of a metrics request, `resource_logs` of a logs one.
const FIELD_1: u8 = 0x0a;
/// What key and length of a nested message take at most, rounded up.
const NESTING: usize = 8;

/// Bodies under way, of metrics or of logs.
#[derive(Debug)]
pub(super) struct Cutter {
    limits: RequestLimits,
    body: Vec<u8>,
    items: usize,
    done: Vec<EncodedRequest>,
}

impl Cutter {
    pub(super) const fn new(limits: RequestLimits) -> Self {
        Self { limits, body: Vec::new(), items: 0, done: Vec::new() }
    }

    /// Whether so much more still fits the current request.
    pub(super) const fn fits(&self, bytes: usize, items: usize) -> bool {
        self.body.len() + bytes <= self.limits.bytes && self.items + items <= self.limits.items
    }

    /// Appends one `ResourceMetrics` or `ResourceLogs`.
    pub(super) fn append(&mut self, message: &impl Message, items: usize) {
        let len = message.encoded_len();
        self.body.reserve(len + NESTING);
        self.body.push(FIELD_1);
        // Cannot fail: a Vec grows.
        if message.encode_length_delimited(&mut self.body).is_ok() {
            self.items += items;
        }
    }

    /// Ends the current request.
    pub(super) fn cut(&mut self) {
        if self.items > 0 {
            let body = std::mem::take(&mut self.body);
            let items = u64::try_from(self.items).unwrap_or(u64::MAX);
            let first = self.done.last().map_or(0, |before| before.first.saturating_add(before.items));
            self.done.push(EncodedRequest { body: body.into(), first, items });
            self.items = 0;
        }
    }

    pub(super) fn finish(mut self) -> Vec<EncodedRequest> {
        self.cut();
        self.done
    }
}

/// The scope of everything that probe observed.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: env!("CARGO_PKG_NAME").trim_end_matches("-user").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// Encodes everything in `snapshot`: sums, gauges and histograms, one point a series, in the snapshot's order.
#[must_use]
pub fn encode_metrics(
    snapshot: &Snapshot<'_>,
    resources: &Resources,
    preferences: Preferences,
    limits: RequestLimits,
) -> Vec<EncodedRequest> {
    let mut cutter = Cutter::new(limits);
    let time = snapshot.time_unix_ns();
    for of_entity in snapshot.entities() {
        let mut part = Part::new(resources.of(of_entity.entity), preferences);
        for (def, series) in of_entity.metrics() {
            part.begin(def);
            for one in series {
                part.push(def, one, time, &mut cutter);
            }
        }
        part.flush(&mut cutter);
    }
    cutter.finish()
}

/// One owner's share of one request.
struct Part {
    preferences: Preferences,
    resource: Resource,
    /// Encoded length without metrics, about.
    empty_len: usize,
    metrics: Vec<Metric>,
    len: usize,
    points: usize,
}

impl Part {
    fn new(resource: Resource, preferences: Preferences) -> Self {
        let empty_len = resource.encoded_len() + scope().encoded_len() + 2 * SCHEMA_URL.len() + 8 * NESTING;
        Self { preferences, resource, empty_len, metrics: Vec::new(), len: empty_len, points: 0 }
    }

    fn begin(&mut self, def: &MetricDef) {
        let cumulative = AggregationTemporality::Cumulative.into();
        let aggregation_temporality = if self.preferences.temporality.is_delta() {
            AggregationTemporality::Delta.into()
        } else {
            cumulative
        };
        let data = match def.kind {
            Kind::Counter => metric::Data::Sum(Sum {
                data_points: Vec::new(),
                aggregation_temporality,
                is_monotonic: true,
            }),
            Kind::UpDownCounter => metric::Data::Sum(Sum {
                data_points: Vec::new(),
                aggregation_temporality: cumulative,
                is_monotonic: false,
            }),
            Kind::Gauge => metric::Data::Gauge(Gauge::default()),
            Kind::Histogram => match self.preferences.histograms {
                Histograms::Exponential => metric::Data::ExponentialHistogram(ExponentialHistogram {
                    data_points: Vec::new(),
                    aggregation_temporality,
                }),
                Histograms::Explicit => {
                    metric::Data::Histogram(Histogram { data_points: Vec::new(), aggregation_temporality })
                }
            },
        };
        let metric = Metric {
            name: def.name.to_owned(),
            description: def.description.to_owned(),
            unit: def.unit.to_owned(),
            metadata: Vec::new(),
            data: Some(data),
        };
        self.len += metric.encoded_len() + 2 * NESTING;
        self.metrics.push(metric);
    }

    fn push(&mut self, def: &MetricDef, series: &Series, time: u64, cutter: &mut Cutter) {
        let point = Point::new(series, time, self.preferences.histograms);
        let len = point.encoded_len() + NESTING;
        if !cutter.fits(self.len + len, self.points + 1) {
            self.flush(cutter);
            cutter.cut();
            self.begin(def);
        }
        self.len += len;
        self.points += 1;
        match (self.metrics.last_mut().and_then(|metric| metric.data.as_mut()), point) {
            (Some(metric::Data::Sum(sum)), Point::Number(point)) => sum.data_points.push(point),
            (Some(metric::Data::Gauge(gauge)), Point::Number(point)) => gauge.data_points.push(point),
            (Some(metric::Data::ExponentialHistogram(histogram)), Point::Exponential(point)) => {
                histogram.data_points.push(point);
            }
            (Some(metric::Data::Histogram(histogram)), Point::Explicit(point)) => {
                histogram.data_points.push(point);
            }
            // A series' data is of its metric's kind: the store makes both from one definition.
            _ => self.points -= 1,
        }
    }

    fn flush(&mut self, cutter: &mut Cutter) {
        let mut metrics = std::mem::take(&mut self.metrics);
        // One that was begun just before a cut has no points here.
        metrics.retain(has_points);
        let points = std::mem::take(&mut self.points);
        self.len = self.empty_len;
        if metrics.is_empty() {
            return;
        }
        let scope_metrics =
            vec![ScopeMetrics { scope: Some(scope()), metrics, schema_url: SCHEMA_URL.to_owned() }];
        let message = ResourceMetrics {
            resource: Some(self.resource.clone()),
            scope_metrics,
            schema_url: SCHEMA_URL.to_owned(),
        };
        cutter.append(&message, points);
    }
}

fn has_points(metric: &Metric) -> bool {
    match &metric.data {
        Some(metric::Data::Sum(sum)) => !sum.data_points.is_empty(),
        Some(metric::Data::Gauge(gauge)) => !gauge.data_points.is_empty(),
        Some(metric::Data::ExponentialHistogram(histogram)) => !histogram.data_points.is_empty(),
        Some(metric::Data::Histogram(histogram)) => !histogram.data_points.is_empty(),
        Some(metric::Data::Summary(_)) | None => false,
    }
}

enum Point {
    Number(NumberDataPoint),
    Exponential(ExponentialHistogramDataPoint),
    Explicit(HistogramDataPoint),
}

impl Point {
    fn new(series: &Series, time_unix_nano: u64, histograms: Histograms) -> Self {
        let attributes = series.attrs().iter().map(|(key, value)| attribute(key, value)).collect();
        let start_time_unix_nano = series.start_unix_ns();
        let point = match series.data() {
            Data::Count(count) => Self::Number(NumberDataPoint {
                attributes,
                start_time_unix_nano,
                time_unix_nano,
                value: Some(number_data_point::Value::AsInt(i64::try_from(*count).unwrap_or(i64::MAX))),
                ..NumberDataPoint::default()
            }),
            Data::Level(level) => Self::Number(NumberDataPoint {
                attributes,
                time_unix_nano,
                value: Some(number_data_point::Value::AsInt(*level)),
                ..NumberDataPoint::default()
            }),
            Data::Times(histogram) if histograms == Histograms::Explicit => {
                let octaves = histogram.by_octave();
                // The last has no upper bound, and none is written.
                let bounds = octaves.iter().map(|(bound, _)| *bound).filter(|bound| bound.is_finite());
                Self::Explicit(HistogramDataPoint {
                    attributes,
                    start_time_unix_nano,
                    time_unix_nano,
                    count: histogram.count(),
                    sum: Some(histogram.sum_seconds()),
                    explicit_bounds: bounds.collect(),
                    bucket_counts: octaves.iter().map(|(_, count)| *count).collect(),
                    ..HistogramDataPoint::default()
                })
            }
            Data::Times(histogram) => {
                let (first, counts) = histogram.buckets();
                let first = i32::try_from(first).unwrap_or_default();
                Self::Exponential(ExponentialHistogramDataPoint {
                    attributes,
                    start_time_unix_nano,
                    time_unix_nano,
                    count: histogram.count(),
                    sum: Some(histogram.sum_seconds()),
                    scale: hist::SCALE,
                    positive: Some(Buckets {
                        offset: hist::OTLP_OFFSET + first,
                        bucket_counts: counts.to_vec(),
                    }),
                    ..ExponentialHistogramDataPoint::default()
                })
            }
        };
        if series.is_ended() { point.without_value() } else { point }
    }

    /// The last of a series: without a value (data model, "No recorded value").
    fn without_value(self) -> Self {
        let flags = DataPointFlags::NoRecordedValueMask as u32;
        match self {
            Self::Number(point) => Self::Number(NumberDataPoint { value: None, flags, ..point }),
            Self::Explicit(point) => {
                let HistogramDataPoint { attributes, start_time_unix_nano, time_unix_nano, .. } = point;
                Self::Explicit(HistogramDataPoint {
                    attributes,
                    start_time_unix_nano,
                    time_unix_nano,
                    flags,
                    ..HistogramDataPoint::default()
                })
            }
            Self::Exponential(point) => {
                let ExponentialHistogramDataPoint {
                    attributes, start_time_unix_nano, time_unix_nano, ..
                } = point;
                Self::Exponential(ExponentialHistogramDataPoint {
                    attributes,
                    start_time_unix_nano,
                    time_unix_nano,
                    flags,
                    ..ExponentialHistogramDataPoint::default()
                })
            }
        }
    }

    fn encoded_len(&self) -> usize {
        match self {
            Self::Number(point) => point.encoded_len(),
            Self::Exponential(point) => point.encoded_len(),
            Self::Explicit(point) => point.encoded_len(),
        }
    }
}

fn attribute(key: &str, value: &Value) -> KeyValue {
    let value = match value {
        Value::Static(text) => any_value::Value::StringValue((*text).to_owned()),
        Value::Shared(text) => any_value::Value::StringValue(text.as_ref().to_owned()),
        Value::Int(number) => any_value::Value::IntValue(*number),
        Value::Bool(yes) => any_value::Value::BoolValue(*yes),
    };
    key_value(key, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::{ContainerIdentity, Entity};
    use crate::event::key;
    use crate::series::{Limits, Store, attr, metrics};
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
    use std::time::Duration;

    fn resources() -> Resources {
        Resources::resolve(&|_| None, "node1", "1234").unwrap()
    }

    fn decode(requests: &[EncodedRequest]) -> Vec<ExportMetricsServiceRequest> {
        requests
            .iter()
            .map(|request| ExportMetricsServiceRequest::decode(request.body.clone()).unwrap())
            .collect()
    }

    #[test]
    fn a_histogram_keeps_its_buckets_count_and_sum() {
        let mut store = Store::new(Limits::default(), 5);
        for ms in [1, 1, 250, 1_000] {
            let attrs = [attr(key::SYSCALL_NAME, "read"), attr(key::SYSCALL_CLASS, "work")];
            store.record(&Entity::Host, metrics::SYSCALL_DURATION, &attrs, Duration::from_millis(ms));
        }
        let requests = decode(&encode_metrics(
            &store.snapshot(9),
            &resources(),
            Preferences::default(),
            RequestLimits::default(),
        ));
        let of_host = &requests[0].resource_metrics[0];
        assert_eq!(of_host.schema_url, SCHEMA_URL);
        assert_eq!(of_host.scope_metrics[0].scope.as_ref().unwrap().name, "probe");
        let metric = &of_host.scope_metrics[0].metrics[0];
        assert_eq!((metric.name.as_str(), metric.unit.as_str()), ("process.syscall.duration", "s"));
        let Some(metric::Data::ExponentialHistogram(histogram)) = &metric.data else { panic!("{metric:?}") };
        assert_eq!(histogram.aggregation_temporality(), AggregationTemporality::Cumulative);
        let point = &histogram.data_points[0];
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (5, 9));
        assert_eq!((point.count, point.sum, point.scale), (4, Some(1.252), 2));
        let positive = point.positive.as_ref().unwrap();
        assert_eq!(positive.bucket_counts.iter().sum::<u64>(), 4);
        // Bucket i of scale 2 holds (2^(i/4), 2^((i+1)/4)] seconds.
        for (i, count) in positive.bucket_counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            let lower = (f64::from(positive.offset + i as i32) / 4.0).exp2();
            let upper = (f64::from(positive.offset + i as i32 + 1) / 4.0).exp2();
            let inside = [0.001, 0.001, 0.25, 1.0].iter();
            // A power of two is on an edge; the kernel's buckets put it above.
            let inside = inside.filter(|s| lower * 0.999_999 < **s && **s <= upper * 1.000_001).count();
            assert_eq!(inside as u64, *count, "({lower}, {upper}]");
        }
        assert_eq!(point.attributes[0].key, "syscall.class");
    }

    #[test]
    fn requests_are_cut_by_items_and_by_bytes_and_nothing_is_lost() {
        let mut store = Store::new(Limits { per_metric: 20_000, per_entity: 20_000, ..Limits::default() }, 0);
        for i in 0..9_001i64 {
            store.add(&Entity::Host, metrics::SYSCALL_ERRORS, &[attr(key::SYSCALL_NAME, i)], 1);
        }
        let name: std::sync::Arc<str> = "x".repeat(200).into();
        for i in 0..300i64 {
            let attrs = [attr(key::DNS_QUESTION_TYPE, i), attr(key::SERVER_ADDRESS, name.clone())];
            store.record(&Entity::Host, metrics::DNS_LOOKUP_DURATION, &attrs, Duration::from_millis(3));
        }
        let limits = [
            RequestLimits::default(),
            RequestLimits { bytes: 20_000, items: 4_000 },
            RequestLimits { bytes: 3 << 20, items: 7 },
        ];
        for limits in limits {
            let encoded = encode_metrics(&store.snapshot(1), &resources(), Preferences::default(), limits);
            assert_eq!(encoded.iter().map(|request| request.items).sum::<u64>(), 9_301);
            let mut points = 0;
            for (request, bytes) in decode(&encoded).iter().zip(encoded.iter().map(|r| r.body.len())) {
                assert!(bytes <= limits.bytes, "{bytes} bytes in a request");
                assert_eq!(request.resource_metrics.len(), 1);
                let mut here = 0;
                for metric in &request.resource_metrics[0].scope_metrics[0].metrics {
                    assert!(has_points(metric));
                    here += match metric.data.as_ref().unwrap() {
                        metric::Data::Sum(sum) => sum.data_points.len(),
                        metric::Data::ExponentialHistogram(histogram) => histogram.data_points.len(),
                        other => panic!("{other:?}"),
                    };
                }
                assert!(here <= limits.items);
                points += here;
            }
            assert_eq!(points, 9_301);
        }
    }

    #[test]
    fn what_ends_has_a_last_point_without_a_value() {
        let mut store = Store::new(Limits { idle: 1, ..Limits::default() }, 5);
        let (container_id, runtime, pod_uid) = ("c".to_owned(), None, None);
        let container = Entity::Container(std::sync::Arc::new(ContainerIdentity {
            container_id,
            runtime,
            pod_uid,
            names: crate::entity::Names::default(),
        }));
        store.record(&container, metrics::DNS_LOOKUP_DURATION, &[], Duration::from_millis(1));
        store.add(&container, metrics::TCP_RETRANSMITS, &[attr(key::NETWORK_TYPE, "ipv4")], 1);
        store.snapshot(6);
        let requests = decode(&encode_metrics(
            &store.snapshot(9),
            &resources(),
            Preferences::default(),
            RequestLimits::default(),
        ));
        let no_value = DataPointFlags::NoRecordedValueMask as u32;
        let mut kinds = Vec::new();
        for metric in &requests[0].resource_metrics[0].scope_metrics[0].metrics {
            match metric.data.as_ref().unwrap() {
                metric::Data::Sum(sum) => {
                    let point = &sum.data_points[0];
                    assert_eq!((point.flags, point.value, point.time_unix_nano), (no_value, None, 9));
                    assert_eq!(point.attributes.len(), 1);
                    kinds.push("sum");
                }
                metric::Data::ExponentialHistogram(histogram) => {
                    let point = &histogram.data_points[0];
                    assert_eq!((point.flags, point.count, point.sum), (no_value, 0, None));
                    assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (5, 9));
                    kinds.push("histogram");
                }
                other => panic!("{other:?}"),
            }
        }
        kinds.sort_unstable();
        assert_eq!(kinds, ["histogram", "sum"]);
        assert_eq!(
            encode_metrics(
                &store.snapshot(10),
                &resources(),
                Preferences::default(),
                RequestLimits::default()
            ),
            []
        );
    }

    #[test]
    fn nothing_counted_is_no_request() {
        let mut store = Store::new(Limits::default(), 0);
        assert_eq!(
            encode_metrics(
                &store.snapshot(1),
                &resources(),
                Preferences::default(),
                RequestLimits::default()
            ),
            []
        );
    }
}
