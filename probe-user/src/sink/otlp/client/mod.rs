//! One endpoint: sending a body that is already encoded, and judging what came back.

mod grpc;
mod http;

use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message;

use self::grpc::Grpc;
use self::http::Http;
use super::config::{Protocol, Target};

pub(crate) use self::grpc::endpoint;
pub(crate) use self::http::Connection;

/// Longest wait for a TCP and TLS connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait that a server may ask for.
const LONGEST_ASKED_WAIT: Duration = Duration::from_secs(300);
/// Who asks.
const USER_AGENT: &str = concat!("probe/", env!("CARGO_PKG_VERSION"));

/// Why an exporter cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Certificate file.
    #[error(
        "cannot read {path} (OTEL_EXPORTER_OTLP_CERTIFICATE, otlp-certificate): {source}; give a PEM file that probe may read"
    )]
    Certificate {
        /// As configured.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The endpoint or its TLS settings.
    #[error("cannot use OTLP endpoint {endpoint}: {source}; check its host name and the certificates")]
    Endpoint {
        /// As configured.
        endpoint: String,
        /// What the transport said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ClientError {
    fn refused(target: &Target, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Endpoint { endpoint: target.endpoint.to_string(), source: source.into() }
    }
}

/// The authorities to trust in place of the system's, PEM, where some were given.
fn certificate(target: &Target) -> Result<Option<Vec<u8>>, ClientError> {
    let Some(path) = &target.certificate else { return Ok(None) };
    let unreadable = |source| ClientError::Certificate { path: path.display().to_string(), source };
    std::fs::read(path).map(Some).map_err(unreadable)
}

/// What an error says, and what the errors behind it add to that.
fn with_causes(said: &str, error: &dyn std::error::Error) -> String {
    let mut message = said.to_owned();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !message.contains(&cause_text) {
            message.push_str(": ");
            message.push_str(&cause_text);
        }
        source = cause.source();
    }
    message
}

/// What is most often wrong where the transports say this: a port of the other protocol, TLS with one that has none. Their errors
/// have no kinds for that, only words.
fn way_out(message: &str) -> Option<&'static str> {
    let ways = [
        // Its greeting comes as an answer, or before anything was asked.
        ("invalid HTTP version", "is it a port for gRPC (4317)? then --otlp-protocol grpc"),
        ("unexpected message from connection", "is it a port for gRPC (4317)? then --otlp-protocol grpc"),
        ("grpc-status header missing", "is it a port for HTTP (4318)? then --otlp-protocol http/protobuf"),
        ("InvalidContentType", "does it speak TLS? if not, http:// and not https://"),
    ];
    ways.into_iter().find(|(said, _)| message.contains(said)).map(|(_, way_out)| way_out)
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Taken, less `rejected` items, with what the server had to say.
    Accepted { rejected: u64, message: String },
    /// Not taken; whether another attempt is allowed, and when.
    Failed(Failure),
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// `error.type`: the gRPC status or the one of HTTP, in lower case; `timeout`; or `connection` for one that broke.
    pub(super) kind: &'static str,
    pub(super) message: String,
    /// The server could not be reached or did not answer, as opposed to having refused.
    pub(super) unreachable: bool,
    pub(super) retry: Retry,
}

/// Whether to try again (OTLP specification, "Failures").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    Never,
    BackOff,
    /// The server named the wait.
    After(Duration),
}

/// An answer that may say how much of the request was refused.
pub(super) trait Response: Message + Default + 'static {
    /// Path of the gRPC method.
    const SERVICE: &'static str;
    fn partial(self) -> Option<(i64, String)>;
}

impl Response for ExportMetricsServiceResponse {
    const SERVICE: &'static str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
    fn partial(self) -> Option<(i64, String)> {
        self.partial_success.map(|partial| (partial.rejected_data_points, partial.error_message))
    }
}

impl Response for ExportLogsServiceResponse {
    const SERVICE: &'static str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
    fn partial(self) -> Option<(i64, String)> {
        self.partial_success.map(|partial| (partial.rejected_log_records, partial.error_message))
    }
}

/// To one endpoint.
#[derive(Debug)]
pub(super) struct Client<R> {
    timeout: Duration,
    transport: Transport<R>,
}

#[derive(Debug)]
enum Transport<R> {
    Grpc(Box<Grpc<R>>),
    Http(Box<Http<R>>),
}

impl<R: Response> Client<R> {
    /// Must be called inside a runtime.
    pub(super) fn new(target: Target) -> Result<Self, ClientError> {
        let timeout = target.timeout;
        let transport = match target.protocol {
            Protocol::Grpc => Transport::Grpc(Box::new(Grpc::new(target)?)),
            Protocol::HttpProtobuf => Transport::Http(Box::new(Http::new(target)?)),
        };
        Ok(Self { timeout, transport })
    }

    /// One attempt; never longer than the configured timeout.
    pub(super) async fn send(&mut self, body: Bytes) -> Outcome {
        let call = async {
            match &self.transport {
                Transport::Grpc(grpc) => grpc.call(body).await,
                Transport::Http(http) => http.call(body).await,
            }
        };
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(response)) => {
                let (rejected, message) = response.partial().unwrap_or_default();
                Outcome::Accepted { rejected: u64::try_from(rejected).unwrap_or(0), message }
            }
            Ok(Err(mut failure)) => {
                if let Some(way_out) = way_out(&failure.message) {
                    failure.message.push_str("; ");
                    failure.message.push_str(way_out);
                }
                Outcome::Failed(failure)
            }
            Err(_elapsed) => {
                // The peer may be gone without a word, and then this connection stays silent until the
                // kernel gives up, a quarter of an hour later.
                match &mut self.transport {
                    Transport::Grpc(grpc) => grpc.reconnect(),
                    Transport::Http(http) => http.reconnect(),
                }
                Outcome::Failed(Failure {
                    kind: "timeout",
                    message: format!("no answer within {:?}", self.timeout),
                    unreachable: true,
                    retry: Retry::BackOff,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_that_speaks_the_other_protocol_is_told_from_others() {
        // What a collector says that answers HTTP/2, but no gRPC on that port.
        let said = "grpc-status header missing, mapped from HTTP status code 404";
        assert!(way_out(said).is_some_and(|way_out| way_out.contains("http/protobuf")));
        assert_eq!(way_out("tcp connect error: Connection refused (os error 111)"), None);
    }
}
