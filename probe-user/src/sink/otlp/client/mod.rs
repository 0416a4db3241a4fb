//! One endpoint: sending a body that is already encoded, and judging what came back.

mod grpc;
mod http;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use prost::Message;

use self::grpc::Grpc;
use self::http::Http;
use super::config::{Protocol, Target};
use super::parts::Items;

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
    /// A file of certificates, or of a key.
    #[error("{key}: {path:?} cannot be used: {why}; give {wanted}")]
    File {
        /// Flag or environment variable that names it.
        key: String,
        /// As configured.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What would be right.
        wanted: &'static str,
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

const UNPACK: &str = "it may not unpack what it is sent: --otlp-compression gzip, or none";
const AUTHORITY: &str = "name the authority that signed the collector's certificate by --otlp-certificate or OTEL_EXPORTER_OTLP_CERTIFICATE";

/// What is most often wrong where the transports say this: a port of the other protocol, TLS with one that has none. Their errors
/// have no kinds for that, only words.
fn way_out(message: &str) -> Option<&'static str> {
    let ways = [
        // Its greeting comes as an answer, or before anything was asked.
        ("invalid HTTP version", "is it a port for gRPC (4317)? then --otlp-protocol grpc"),
        ("unexpected message from connection", "is it a port for gRPC (4317)? then --otlp-protocol grpc"),
        ("grpc-status header missing", "is it a port for HTTP (4318)? then --otlp-protocol http/protobuf"),
        // tonic, grpc-go; then HTTP.
        ("which isn't supported", UNPACK),
        ("Decompressor is not installed", UNPACK),
        ("415 Unsupported Media Type", UNPACK),
        ("InvalidContentType", "does it speak TLS? if not, http:// and not https://"),
        ("UnknownIssuer", AUTHORITY),
        // Another authority of the same name: the one before, perhaps.
        ("BadSignature", AUTHORITY),
        ("certificate expired", "renew the collector's certificate, or set this host's clock"),
        ("certificate not valid yet", "the collector's certificate is of the future: set this host's clock"),
        ("not valid for name", "the endpoint has to have a name that is in the collector's certificate"),
        ("CaUsedAsEndEntity", "the collector needs a certificate that is no authority's"),
    ];
    ways.into_iter().find(|(said, _)| message.contains(said)).map(|(_, way_out)| way_out)
}

/// The same of a connection that had TLS, where the collector broke it off: in TLS 1.3 it says what it thinks of a client's certificate, or
/// that there is none, after the client may send, and then it depends on who is faster whether that is heard.
fn way_out_of_tls(message: &str, has_certificate: bool) -> Option<&'static str> {
    let broken = ["received fatal alert", "broken pipe", "Connection reset", "connection closed"];
    if !broken.iter().any(|said| message.contains(said)) {
        None
    } else if has_certificate {
        Some(
            "it may not take the certificate of --otlp-client-certificate or OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: check who signed it, and until when it is valid",
        )
    } else {
        Some(
            "it may ask who probe is: --otlp-client-certificate and --otlp-client-key, or OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY",
        )
    }
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
    /// It is too large; less of it may be taken.
    Smaller,
}

/// An answer that may say how much of the request was refused.
pub(super) trait Response: Message + Default + 'static {
    /// What it answers.
    type Request: Items + Message + Default;
    /// Path of the gRPC method.
    const SERVICE: &'static str;
    fn partial(self) -> Option<(i64, String)>;
}

impl Response for ExportMetricsServiceResponse {
    type Request = ExportMetricsServiceRequest;
    const SERVICE: &'static str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
    fn partial(self) -> Option<(i64, String)> {
        self.partial_success.map(|partial| (partial.rejected_data_points, partial.error_message))
    }
}

impl Response for ExportLogsServiceResponse {
    type Request = ExportLogsServiceRequest;
    const SERVICE: &'static str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
    fn partial(self) -> Option<(i64, String)> {
        self.partial_success.map(|partial| (partial.rejected_log_records, partial.error_message))
    }
}

/// To one endpoint.
#[derive(Debug)]
pub(super) struct Client<R> {
    timeout: Duration,
    is_tls: bool,
    /// There are certificates in files, which may be renewed.
    reads_files: bool,
    /// One of them is probe's own.
    has_certificate: bool,
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
        let (is_tls, has_certificate) = (target.is_tls(), target.client.is_some());
        let reads_files = is_tls && (target.certificate.is_some() || has_certificate);
        let transport = match target.protocol {
            Protocol::Grpc => Transport::Grpc(Box::new(Grpc::new(target)?)),
            Protocol::HttpProtobuf => Transport::Http(Box::new(Http::new(target)?)),
        };
        Ok(Self { timeout, is_tls, reads_files, has_certificate, transport })
    }

    /// Gives the connection up; the next one has certificates as they are by then.
    fn reconnect(&mut self) {
        match &mut self.transport {
            Transport::Grpc(grpc) => grpc.reconnect(),
            Transport::Http(http) => http.reconnect(),
        }
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
                if failure.unreachable && self.reads_files {
                    self.reconnect();
                }
                let of_tls =
                    || self.is_tls.then(|| way_out_of_tls(&failure.message, self.has_certificate)).flatten();
                if let Some(way_out) = way_out(&failure.message).or_else(of_tls) {
                    failure.message.push_str("; ");
                    failure.message.push_str(way_out);
                }
                Outcome::Failed(failure)
            }
            Err(_elapsed) => {
                // The peer may be gone without a word, and then this connection stays silent until the
                // kernel gives up, a quarter of an hour later.
                self.reconnect();
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
