//! The agent's own metrics, as any service has them: through the OpenTelemetry SDK and `opentelemetry-otlp`.
//!
//! Modules count in [`SelfStats`], which needs no SDK and no endpoint; [`Telemetry`] exports it where there
//! is one. What probe observes does not come this way: see [`crate::sink::otlp`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use opentelemetry::metrics::{Histogram, Meter, MeterProvider as _};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    Compression as SdkCompression, MetricExporter, Protocol as SdkProtocol, WithExportConfig, WithHttpConfig,
    WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::periodic_reader_with_async_runtime::PeriodicReader;
use opentelemetry_sdk::metrics::{SdkMeterProvider, Temporality as SdkTemporality};
use opentelemetry_sdk::runtime;
use tokio::sync::watch;

use crate::event::key;
use crate::series::{self, Attr, Attrs, Kind, MetricDef, Value, metrics};
use crate::sink::otlp::{
    self, ClientError, Compression, Connection, Protocol, Resources, SCHEMA_URL, Target, Temporality,
};

type Values = HashMap<(&'static str, Attrs), u64, RandomState>;

/// What the agent counts about itself. Shared by all modules; update it once a batch or tick, not for each
/// event: it takes a lock.
///
/// Its size is bounded by the code: attributes are names of signals, maps, metrics, sinks and errors, never
/// anything observed.
#[derive(Debug, Default)]
pub struct SelfStats {
    values: Mutex<Values>,
    /// By sink: as the SDK sums them up, and for who asks ([`Self::export_durations`]).
    export_duration: OnceLock<Histogram<f64>>,
    export_durations: Mutex<BTreeMap<&'static str, series::Histogram>>,
}

impl SelfStats {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts `by` more of a counter of [`metrics::OWN`]. 0 makes it visible.
    pub fn add(&self, metric: &'static MetricDef, attrs: &[Attr], by: u64) {
        let mut values = self.lock();
        let value = values.entry((metric.name, Attrs::new(attrs))).or_default();
        *value = value.saturating_add(by);
    }

    /// Sets a gauge of [`metrics::OWN`], or a counter that is counted elsewhere; one in seconds has nanoseconds here
    /// ([`in_seconds`]).
    pub fn set(&self, metric: &'static MetricDef, attrs: &[Attr], value: u64) {
        self.lock().insert((metric.name, Attrs::new(attrs)), value);
    }

    /// What a metric with these attributes has come to.
    #[must_use]
    pub fn get(&self, metric: &'static MetricDef, attrs: &[Attr]) -> u64 {
        self.lock().get(&(metric.name, Attrs::new(attrs))).copied().unwrap_or(0)
    }

    /// What a metric has come to, by attributes.
    #[must_use]
    pub fn all(&self, metric: &'static MetricDef) -> Vec<(Attrs, u64)> {
        let values = self.lock();
        let of_metric = values.iter().filter(|((name, _), _)| *name == metric.name);
        of_metric.map(|((_, attrs), value)| (attrs.clone(), *value)).collect()
    }

    /// Takes over what a store of series takes up.
    pub fn observe_series(&self, store: &series::Store) {
        for usage in store.usage() {
            let attrs = [(key::METRIC, Value::Static(usage.metric.name))];
            self.set(metrics::PROBE_SERIES_ACTIVE, &attrs, u64::try_from(usage.active).unwrap_or(u64::MAX));
            self.set(metrics::PROBE_SERIES_FOLDED, &attrs, usage.folded);
            self.set(metrics::PROBE_SERIES_ENDED, &attrs, usage.ended);
        }
    }

    /// Records the time of one export request.
    pub fn export_took(&self, sink: &'static str, duration: Duration) {
        if let Some(histogram) = self.export_duration.get() {
            histogram.record(duration.as_secs_f64(), &[KeyValue::new(key::SINK, sink)]);
        }
        let mut durations = self.export_durations.lock().unwrap_or_else(PoisonError::into_inner);
        durations.entry(sink).or_default().record(duration);
    }

    /// Times of export requests, by sink.
    #[must_use]
    pub fn export_durations(&self) -> BTreeMap<&'static str, series::Histogram> {
        self.export_durations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, Values> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the agent's own metrics cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The connection's settings.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The SDK did not take the settings.
    #[error("cannot export the agent's own metrics: {0}; check the OTEL_EXPORTER_OTLP_* variables")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Exports [`SelfStats`], CPU time and memory.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkMeterProvider,
    route: Route,
    interval: watch::Sender<Duration>,
}

/// Stands for the interval as it is when it is waited for: the SDK's reader knows one only.
const INTERVAL: Duration = Duration::MAX;
/// The reader's own limit for an export, beyond those that exports have ([`Route`]).
const LONGEST_EXPORT: Duration = Duration::from_secs(3_600);

/// Where the SDK's exports go at present. The reader and what it has summed up outlive a change, so that series go on.
#[derive(Clone, Debug)]
struct Route {
    present: Arc<Mutex<(Arc<MetricExporter>, Duration)>>,
    /// What has been summed up was summed up for this.
    temporality: Temporality,
}

impl Route {
    fn to(target: &Target, temporality: Temporality) -> Result<Self, TelemetryError> {
        let present = Arc::new(Mutex::new(Self::exporter(target, temporality)?));
        Ok(Self { present, temporality })
    }

    fn exporter(
        target: &Target,
        temporality: Temporality,
    ) -> Result<(Arc<MetricExporter>, Duration), TelemetryError> {
        let exporter = match target.protocol {
            Protocol::Grpc => over_grpc(target, temporality)?,
            Protocol::HttpProtobuf => over_http(target, temporality)?,
        };
        Ok((Arc::new(exporter), target.timeout))
    }

    fn change(&self, target: &Target) -> Result<(), TelemetryError> {
        let exporter = Self::exporter(target, self.temporality)?;
        *self.present.lock().unwrap_or_else(PoisonError::into_inner) = exporter;
        Ok(())
    }

    fn present(&self) -> (Arc<MetricExporter>, Duration) {
        self.present.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl PushMetricExporter for Route {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let (exporter, timeout) = self.present();
        match tokio::time::timeout(timeout, exporter.export(metrics)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(OTelSdkError::Timeout(timeout)),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.present().0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.present().0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> SdkTemporality {
        of_sdk(self.temporality)
    }
}

/// tokio, with an interval that can change.
#[derive(Clone, Debug)]
struct Beat(watch::Receiver<Duration>);

impl runtime::Runtime for Beat {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
        runtime::Tokio.spawn(future);
    }

    fn delay(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        let mut interval = self.0.clone();
        async move {
            if duration != INTERVAL {
                return tokio::time::sleep(duration).await;
            }
            loop {
                let present = *interval.borrow_and_update();
                let changed = async {
                    if interval.changed().await.is_err() {
                        // Nobody is left to change it.
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    () = tokio::time::sleep(present) => return,
                    () = changed => {}
                }
            }
        }
    }
}

impl Telemetry {
    /// Starts to export every `interval`. Must be called inside a multi-thread runtime: the SDK's reader
    /// runs as one of its tasks, because on a thread of its own tonic would find no reactor.
    ///
    /// # Errors
    ///
    /// The target's settings are of no use to the transport.
    pub fn start(
        target: &Target,
        temporality: Temporality,
        resources: &Resources,
        interval: Duration,
        stats: &Arc<SelfStats>,
    ) -> Result<Self, TelemetryError> {
        let route = Route::to(target, temporality)?;
        let (interval, beat) = watch::channel(interval);
        let reader = PeriodicReader::builder(route.clone(), Beat(beat))
            .with_interval(INTERVAL)
            .with_timeout(LONGEST_EXPORT)
            .build();
        let attributes = resources.host().map(|(key, value)| KeyValue::new(key.to_owned(), value.to_owned()));
        let resource = Resource::builder_empty().with_schema_url(attributes, SCHEMA_URL).build();
        let provider = SdkMeterProvider::builder().with_resource(resource).with_reader(reader).build();
        let scope =
            InstrumentationScope::builder("probe.self").with_version(env!("CARGO_PKG_VERSION")).build();
        register(&provider.meter_with_scope(scope), stats);
        Ok(Self { provider, route, interval })
    }

    /// Sends to another target from now on; series and their start times stay.
    ///
    /// # Errors
    ///
    /// As [`Self::start`]; then nothing has changed.
    pub fn change_target(&self, target: &Target) -> Result<(), TelemetryError> {
        self.route.change(target)
    }

    /// Exports so often from now on.
    pub fn change_interval(&self, interval: Duration) {
        self.interval.send_if_modified(|present| std::mem::replace(present, interval) != interval);
    }

    /// Exports once more and ends, within `deadline`. True: it ended in time and the last export went well.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        let Self { provider, route: _, interval: _ } = self;
        // It blocks the calling thread until a task of this runtime has answered: on a worker that would
        // be a deadlock as soon as there is no other.
        let shutdown = tokio::task::spawn_blocking(move || provider.shutdown());
        matches!(tokio::time::timeout(deadline, shutdown).await, Ok(Ok(Ok(()))))
    }
}

/// The SDK's word for it.
const fn of_sdk(temporality: Temporality) -> SdkTemporality {
    match temporality {
        Temporality::Cumulative => SdkTemporality::Cumulative,
        Temporality::Delta => SdkTemporality::Delta,
        Temporality::LowMemory => SdkTemporality::LowMemory,
    }
}

/// The SDK's exporter over gRPC.
fn over_grpc(target: &Target, temporality: Temporality) -> Result<MetricExporter, TelemetryError> {
    // The SDK's own channel has no keep-alive and no limit for connecting.
    let channel = otlp::endpoint(target)?
        .http2_keep_alive_interval(target.timeout / 2)
        .keep_alive_timeout(target.timeout / 2)
        .connect_lazy();
    let headers = target.headers.clone();
    let mut builder = MetricExporter::builder()
        .with_tonic()
        .with_channel(channel)
        .with_timeout(target.timeout)
        .with_temporality(of_sdk(temporality))
        // The SDK reads the variable for headers by itself; what was resolved here has the last word.
        .with_interceptor(move |mut request: tonic::Request<()>| {
            for header in &headers {
                request.metadata_mut().insert(header.key.clone(), header.value.clone());
            }
            Ok(request)
        });
    match target.compression {
        Compression::None => {}
        Compression::Gzip => builder = builder.with_compression(SdkCompression::Gzip),
        Compression::Zstd => builder = builder.with_compression(SdkCompression::Zstd),
    }
    Ok(builder.build()?)
}

/// The same over HTTP; requests are made by probe's own client.
fn over_http(target: &Target, temporality: Temporality) -> Result<MetricExporter, TelemetryError> {
    let client = OwnClient(Connection::new(target.clone())?, target.timeout);
    let exporter = MetricExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(SdkProtocol::HttpBinary)
        .with_endpoint(target.endpoint.to_string())
        .with_timeout(target.timeout)
        .with_temporality(of_sdk(temporality));
    Ok(exporter.build()?)
}

/// Address, headers and compression are the target's, whatever the SDK has read from the environment.
#[derive(Debug)]
struct OwnClient(Connection, Duration);

#[async_trait::async_trait]
impl HttpClient for OwnClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let Self(connection, timeout) = self;
        Ok(tokio::time::timeout(*timeout, connection.post(request.into_body())).await??)
    }
}

/// Makes an instrument for every metric of [`metrics::OWN`].
fn register(meter: &Meter, stats: &Arc<SelfStats>) {
    for def in metrics::OWN {
        let def: &'static MetricDef = def;
        if def.name == metrics::PROCESS_CPU_TIME.name {
            let counter = meter.f64_observable_counter(def.name).with_unit(def.unit);
            counter
                .with_description(def.description)
                .with_callback(|observer| {
                    let (user, system) = cpu_seconds();
                    for (mode, seconds) in [("user", user), ("system", system)] {
                        observer.observe(seconds, &[KeyValue::new(key::CPU_MODE, mode)]);
                    }
                })
                .build();
            continue;
        }
        if def.name == metrics::PROCESS_MEMORY_USAGE.name {
            let counter = meter.i64_observable_up_down_counter(def.name).with_unit(def.unit);
            counter
                .with_description(def.description)
                .with_callback(|observer| {
                    if let Some(bytes) = resident_bytes() {
                        observer.observe(bytes, &[]);
                    }
                })
                .build();
            continue;
        }
        let stats_of = stats.clone();
        let values = move || {
            stats_of.all(def).into_iter().map(|(attrs, value)| {
                let attrs: Vec<_> = attrs.iter().map(|(key, value)| key_value(key, value)).collect();
                (attrs, value)
            })
        };
        match def.kind {
            Kind::Counter if def.unit == "s" => {
                let counter = meter.f64_observable_counter(def.name).with_unit(def.unit);
                counter
                    .with_description(def.description)
                    .with_callback(move |observer| {
                        values().for_each(|(attrs, value)| observer.observe(in_seconds(value), &attrs));
                    })
                    .build();
            }
            Kind::Counter => {
                let counter = meter.u64_observable_counter(def.name).with_unit(def.unit);
                counter
                    .with_description(def.description)
                    .with_callback(move |observer| {
                        values().for_each(|(attrs, value)| observer.observe(value, &attrs));
                    })
                    .build();
            }
            Kind::Gauge | Kind::UpDownCounter => {
                let gauge = meter.u64_observable_gauge(def.name).with_unit(def.unit);
                gauge
                    .with_description(def.description)
                    .with_callback(move |observer| {
                        values().for_each(|(attrs, value)| observer.observe(value, &attrs));
                    })
                    .build();
            }
            // There is one: probe.export.duration. A second start of telemetry keeps the first's.
            Kind::Histogram => {
                let histogram = meter
                    .f64_histogram(def.name)
                    .with_unit(def.unit)
                    .with_description(def.description)
                    .with_boundaries(vec![
                        0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
                    ])
                    .build();
                drop(stats.export_duration.set(histogram));
            }
        }
    }
}

/// A counter in seconds as it is told.
pub(crate) const fn in_seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn key_value(key: &'static str, value: &Value) -> KeyValue {
    match value {
        Value::Static(text) => KeyValue::new(key, *text),
        Value::Shared(text) => KeyValue::new(key, text.clone()),
        Value::Int(number) => KeyValue::new(key, *number),
        Value::Bool(yes) => KeyValue::new(key, *yes),
    }
}

/// CPU time of this process in seconds, user and system, exited threads included.
pub(crate) fn cpu_seconds() -> (f64, f64) {
    let Ok(stat) = procfs::process::Process::myself().and_then(|me| me.stat()) else { return (0.0, 0.0) };
    let ticks = procfs::ticks_per_second() as f64;
    (stat.utime as f64 / ticks, stat.stime as f64 / ticks)
}

/// Resident memory of this process.
pub(crate) fn resident_bytes() -> Option<i64> {
    let statm = procfs::process::Process::myself().and_then(|me| me.statm()).ok()?;
    i64::try_from(statm.resident.saturating_mul(procfs::page_size())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::attr;

    #[test]
    fn counts_by_attributes() {
        let stats = SelfStats::new();
        let tcp = [attr(key::SIGNAL, "tcp")];
        stats.add(metrics::PROBE_EVENTS, &tcp, 2);
        stats.add(metrics::PROBE_EVENTS, &tcp, 3);
        stats.add(metrics::PROBE_EVENTS, &[attr(key::SIGNAL, "dns")], 0);
        stats.set(metrics::PROBE_MAP_LIMIT, &[attr(key::MAP, "TCP_OWNERS")], 10);
        stats.set(metrics::PROBE_MAP_LIMIT, &[attr(key::MAP, "TCP_OWNERS")], 20);
        assert_eq!(stats.get(metrics::PROBE_EVENTS, &tcp), 5);
        assert_eq!(stats.all(metrics::PROBE_EVENTS).len(), 2);
        assert_eq!(stats.get(metrics::PROBE_MAP_LIMIT, &[attr(key::MAP, "TCP_OWNERS")]), 20);
        assert!(resident_bytes().is_some_and(|bytes| bytes > 100_000));
    }
}
