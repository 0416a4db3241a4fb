//! An OTLP collector in the test's own process: a real server, of gRPC or HTTP, that keeps what arrives, and that can be
//! told to misbehave.
//!
//! It runs on threads of its own, so that tests need not be async. Nothing here sleeps to synchronise:
//! [`Receiver::wait_for`] is woken by arrivals.

mod http;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, NumberDataPoint, metric, number_data_point,
};
use tokio::runtime::Runtime;
use tonic::codec::CompressionEncoding;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// How the receiver treats requests. Those that it does not accept are counted, not kept.
#[derive(Clone, Debug, Default)]
pub enum Fault {
    /// Accepts everything.
    #[default]
    None,
    /// Answers with this status.
    Refuse(Status),
    /// Never answers.
    Hang,
    /// Keeps everything, and says that so many items were rejected.
    Partial {
        /// Data points or log records.
        rejected: i64,
        /// With this reason.
        message: String,
    },
    /// Over HTTP: answers with this, whatever was asked.
    Answer {
        /// 100 to 999.
        status: u16,
        /// Names in lower case.
        headers: Vec<(&'static str, String)>,
        /// Of any kind.
        body: Vec<u8>,
    },
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Arrived<T> {
    /// The message.
    pub message: T,
    /// Request headers in lower case.
    pub headers: BTreeMap<String, String>,
}

/// What a data point holds.
#[derive(Clone, Debug, PartialEq)]
pub enum PointValue {
    /// Of a sum.
    Sum {
        /// The value.
        value: f64,
        /// Whether it only rises.
        monotonic: bool,
    },
    /// Of a gauge.
    Gauge(f64),
    /// Of an exponential histogram.
    Exponential {
        /// Values counted.
        count: u64,
        /// Seconds of all values together.
        sum: f64,
        /// Buckets an octave, as a power of two.
        scale: i32,
        /// OTLP index of the first bucket.
        offset: i32,
        /// By bucket.
        buckets: Vec<u64>,
    },
    /// Of a histogram with explicit bounds.
    Explicit {
        /// Values counted.
        count: u64,
        /// Of all values.
        sum: f64,
        /// Upper bounds of all buckets but the last.
        bounds: Vec<f64>,
        /// By bucket.
        buckets: Vec<u64>,
    },
}

/// One data point with everything that belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Attributes of the resource.
    pub resource: BTreeMap<String, String>,
    /// Schema of the resource.
    pub schema_url: String,
    /// Name of the instrumentation scope.
    pub scope: String,
    /// Name of the metric.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Its description.
    pub description: String,
    /// Attributes of the point.
    pub attributes: BTreeMap<String, String>,
    /// Whether the value counts from the start time on (true), or from the last export (false). `None` for
    /// a gauge.
    pub cumulative: Option<bool>,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// What was measured.
    pub value: PointValue,
}

/// One log record with everything that belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Attributes of the resource.
    pub resource: BTreeMap<String, String>,
    /// Name of the event.
    pub event: String,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Attributes of the record.
    pub attributes: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct Inbox {
    fault: Fault,
    metrics: Vec<Arrived<ExportMetricsServiceRequest>>,
    logs: Vec<Arrived<ExportLogsServiceRequest>>,
    calls: usize,
}

#[derive(Debug, Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    arrived: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to answer: items rejected and why.
    async fn admit(&self) -> Result<Option<(i64, String)>, Status> {
        match self.next_fault() {
            Fault::None => Ok(None),
            Fault::Refuse(status) => Err(status),
            Fault::Hang => std::future::pending().await,
            Fault::Partial { rejected, message } => Ok(Some((rejected, message))),
            Fault::Answer { status, .. } => Err(Status::unknown(format!("{status} is one of HTTP"))),
        }
    }

    /// Counts a request; how it is to be treated.
    fn next_fault(&self) -> Fault {
        let mut inbox = self.lock();
        inbox.calls += 1;
        self.arrived.notify_all();
        inbox.fault.clone()
    }
}

fn arrived<T>(request: Request<T>) -> Arrived<T> {
    let headers = request.metadata().clone().into_headers();
    let headers = headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    Arrived { message: request.into_inner(), headers }
}

#[derive(Clone)]
struct Service(Arc<Shared>);

#[tonic::async_trait]
impl MetricsService for Service {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let partial = self.0.admit().await?;
        self.0.lock().metrics.push(arrived(request));
        self.0.arrived.notify_all();
        let partial_success = partial.map(|(rejected_data_points, error_message)| {
            ExportMetricsPartialSuccess { rejected_data_points, error_message }
        });
        Ok(Response::new(ExportMetricsServiceResponse { partial_success }))
    }
}

#[tonic::async_trait]
impl LogsService for Service {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let partial = self.0.admit().await?;
        self.0.lock().logs.push(arrived(request));
        self.0.arrived.notify_all();
        let partial_success = partial.map(|(rejected_log_records, error_message)| ExportLogsPartialSuccess {
            rejected_log_records,
            error_message,
        });
        Ok(Response::new(ExportLogsServiceResponse { partial_success }))
    }
}

/// How a receiver is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it listens.
    pub address: SocketAddr,
    /// Octets of the largest message that it takes; over gRPC 4 MiB unless told otherwise.
    pub largest: Option<usize>,
    /// It speaks TLS.
    pub tls: Option<Tls>,
}

/// What a receiver is known by, and what it knows others by; PEM.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Its certificate.
    pub certificate: String,
    /// The key of that.
    pub key: String,
    /// Who has signed the certificates that it demands of others; `None`: it demands none.
    pub clients: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 0)), largest: None, tls: None }
    }
}

/// A collector; it ends when it is dropped.
#[derive(Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
    scheme: &'static str,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Receiver {
    /// Over gRPC, on a free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// The system gives no socket or thread.
    pub fn start() -> Result<Self> {
        Self::grpc(Settings::default())
    }

    /// Listens on a certain address: that of a receiver that was dropped before.
    ///
    /// # Errors
    ///
    /// The address is taken, or the system gives no socket or thread.
    pub fn start_on(address: SocketAddr) -> Result<Self> {
        Self::grpc(Settings { address, ..Settings::default() })
    }

    /// Over HTTP, on a free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// The system gives no socket or thread.
    pub fn start_http() -> Result<Self> {
        Self::http(Settings::default())
    }

    /// Over gRPC.
    ///
    /// # Errors
    ///
    /// The address is taken, or the system gives no socket or thread.
    pub fn grpc(settings: Settings) -> Result<Self> {
        let Settings { address, largest, tls } = settings;
        let runtime = runtime()?;
        let shared = Arc::new(Shared::default());
        let incoming = {
            let _inside = runtime.enter();
            TcpIncoming::bind(address).with_context(|| format!("cannot listen on {address}"))?
        };
        let address = incoming.local_addr()?;
        let service = Service(shared.clone());
        let mut metrics = MetricsServiceServer::new(service.clone())
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd);
        let mut logs = LogsServiceServer::new(service)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd);
        if let Some(largest) = largest {
            metrics = metrics.max_decoding_message_size(largest);
            logs = logs.max_decoding_message_size(largest);
        }
        let (mut server, scheme) = (Server::builder(), scheme(tls.as_ref()));
        if let Some(Tls { certificate, key, clients }) = tls {
            let mut config = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
            if let Some(clients) = clients {
                config = config.client_ca_root(Certificate::from_pem(clients));
            }
            server = server.tls_config(config)?;
        }
        runtime.spawn(server.add_service(metrics).add_service(logs).serve_with_incoming(incoming));
        Ok(Self { shared, scheme, address, runtime: Some(runtime) })
    }

    /// Over HTTP.
    ///
    /// # Errors
    ///
    /// The address is taken, or the system gives no socket or thread.
    pub fn http(settings: Settings) -> Result<Self> {
        let Settings { address, largest, tls } = settings;
        let runtime = runtime()?;
        let shared = Arc::new(Shared::default());
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let scheme = scheme(tls.as_ref());
        let acceptor = tls.as_ref().map(http::acceptor).transpose()?;
        let largest = largest.unwrap_or(usize::MAX);
        runtime.spawn(http::serve(listener, acceptor, Arc::clone(&shared), largest));
        Ok(Self { shared, scheme, address, runtime: Some(runtime) })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Misbehaves from the next request on.
    pub fn set_fault(&self, fault: Fault) {
        self.shared.lock().fault = fault;
    }

    /// Requests that came, accepted or not.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.shared.lock().calls
    }

    /// Metrics requests that were accepted, in order.
    #[must_use]
    pub fn metrics(&self) -> Vec<Arrived<ExportMetricsServiceRequest>> {
        self.shared.lock().metrics.clone()
    }

    /// Log requests that were accepted, in order.
    #[must_use]
    pub fn logs(&self) -> Vec<Arrived<ExportLogsServiceRequest>> {
        self.shared.lock().logs.clone()
    }

    /// Every data point that was accepted, in order.
    #[must_use]
    pub fn points(&self) -> Vec<Point> {
        self.metrics().iter().flat_map(|arrived| points(&arrived.message)).collect()
    }

    /// The data points that were accepted after the first so many requests, in order, and how many requests there are now.
    #[must_use]
    pub fn points_after(&self, requests: usize) -> (Vec<Point>, usize) {
        let inbox = self.shared.lock();
        let new = inbox.metrics.get(requests..).unwrap_or_default();
        (new.iter().flat_map(|arrived| points(&arrived.message)).collect(), inbox.metrics.len())
    }

    /// Every log record that was accepted, in order.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.logs().iter().flat_map(|arrived| records(&arrived.message)).collect()
    }

    /// Asks `found` after every arrival until it finds something.
    ///
    /// # Errors
    ///
    /// `what` did not come within `deadline`.
    pub fn wait_for<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut found: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + deadline;
        loop {
            let calls = {
                let inbox = self.shared.lock();
                inbox.calls + inbox.metrics.len() + inbox.logs.len()
            };
            if let Some(found) = found(self) {
                return Ok(found);
            }
            let inbox = self.shared.lock();
            if inbox.calls + inbox.metrics.len() + inbox.logs.len() != calls {
                continue;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (calls, metrics, logs) = (inbox.calls, inbox.metrics.len(), inbox.logs.len());
                bail!(
                    "{what} did not arrive within {deadline:?} ({calls} calls, {metrics} metrics and {logs} logs requests accepted)"
                );
            }
            drop(self.shared.arrived.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

const fn scheme(tls: Option<&Tls>) -> &'static str {
    if tls.is_some() { "https" } else { "http" }
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .thread_name("otlp-receiver")
        .build()
        .context("cannot start the receiver's runtime")
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Drops the listener and all connections with their tasks; waiting for that is what lets the
            // next receiver have the address. A runtime must not be dropped inside another's task.
            drop(std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(5))).join());
        }
    }
}

/// The data points of a request.
#[must_use]
pub fn points(request: &ExportMetricsServiceRequest) -> Vec<Point> {
    let mut all = Vec::new();
    for of_resource in &request.resource_metrics {
        let resource = of_resource.resource.as_ref().map(|r| attributes(&r.attributes)).unwrap_or_default();
        for of_scope in &of_resource.scope_metrics {
            for metric in &of_scope.metrics {
                let point = |of: &[KeyValue], cumulative, start, time, value| Point {
                    resource: resource.clone(),
                    schema_url: of_resource.schema_url.clone(),
                    scope: of_scope.scope.as_ref().map(|s| s.name.clone()).unwrap_or_default(),
                    name: metric.name.clone(),
                    unit: metric.unit.clone(),
                    description: metric.description.clone(),
                    attributes: attributes(of),
                    cumulative,
                    start,
                    time,
                    value,
                };
                let cumulative = |temporality: AggregationTemporality| {
                    Some(temporality == AggregationTemporality::Cumulative)
                };
                match &metric.data {
                    Some(metric::Data::Sum(sum)) => all.extend(sum.data_points.iter().map(|p| {
                        let value = PointValue::Sum { value: number(p), monotonic: sum.is_monotonic };
                        let cumulative = cumulative(sum.aggregation_temporality());
                        point(&p.attributes, cumulative, p.start_time_unix_nano, p.time_unix_nano, value)
                    })),
                    Some(metric::Data::Gauge(gauge)) => all.extend(gauge.data_points.iter().map(|p| {
                        let value = PointValue::Gauge(number(p));
                        point(&p.attributes, None, p.start_time_unix_nano, p.time_unix_nano, value)
                    })),
                    Some(metric::Data::ExponentialHistogram(histogram)) => {
                        all.extend(histogram.data_points.iter().map(|p| {
                            let Buckets { offset, bucket_counts } = p.positive.clone().unwrap_or_default();
                            let value = PointValue::Exponential {
                                count: p.count,
                                sum: p.sum.unwrap_or(f64::NAN),
                                scale: p.scale,
                                offset,
                                buckets: bucket_counts,
                            };
                            let cumulative = cumulative(histogram.aggregation_temporality());
                            point(&p.attributes, cumulative, p.start_time_unix_nano, p.time_unix_nano, value)
                        }));
                    }
                    Some(metric::Data::Histogram(histogram)) => {
                        all.extend(histogram.data_points.iter().map(|p| {
                            let value = PointValue::Explicit {
                                count: p.count,
                                sum: p.sum.unwrap_or(f64::NAN),
                                bounds: p.explicit_bounds.clone(),
                                buckets: p.bucket_counts.clone(),
                            };
                            let cumulative = cumulative(histogram.aggregation_temporality());
                            point(&p.attributes, cumulative, p.start_time_unix_nano, p.time_unix_nano, value)
                        }));
                    }
                    Some(metric::Data::Summary(_)) | None => {}
                }
            }
        }
    }
    all
}

/// The log records of a request.
#[must_use]
pub fn records(request: &ExportLogsServiceRequest) -> Vec<Record> {
    let mut all = Vec::new();
    for of_resource in &request.resource_logs {
        let resource = of_resource.resource.as_ref().map(|r| attributes(&r.attributes)).unwrap_or_default();
        for record in of_resource.scope_logs.iter().flat_map(|of_scope| &of_scope.log_records) {
            all.push(Record {
                resource: resource.clone(),
                event: record.event_name.clone(),
                time: record.time_unix_nano,
                attributes: attributes(&record.attributes),
            });
        }
    }
    all
}

fn number(point: &NumberDataPoint) -> f64 {
    match point.value {
        Some(number_data_point::Value::AsDouble(value)) => value,
        Some(number_data_point::Value::AsInt(value)) => value as f64,
        None => f64::NAN,
    }
}

fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    attributes.iter().map(|kv| (kv.key.clone(), text(kv.value.as_ref()))).collect()
}

/// A value as text: lists in brackets, maps in braces.
fn text(value: Option<&AnyValue>) -> String {
    let Some(value) = value.and_then(|any| any.value.as_ref()) else { return String::new() };
    match value {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::BoolValue(yes) => yes.to_string(),
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::DoubleValue(number) => number.to_string(),
        any_value::Value::ArrayValue(array) => {
            let values: Vec<_> = array.values.iter().map(|value| text(Some(value))).collect();
            format!("[{}]", values.join(","))
        }
        any_value::Value::KvlistValue(list) => {
            let values: Vec<_> =
                list.values.iter().map(|kv| format!("{}={}", kv.key, text(kv.value.as_ref()))).collect();
            format!("{{{}}}", values.join(","))
        }
        any_value::Value::BytesValue(bytes) => format!("{bytes:?}"),
        any_value::Value::StringValueStrindex(index) => format!("#{index}"),
    }
}
