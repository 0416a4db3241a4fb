//! One gRPC endpoint: sending a body that is already encoded, and judging what came back.

use std::marker::PhantomData;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::config::{Compression, Target};

/// Longest wait for a TCP and TLS connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait that a server may ask for.
const LONGEST_ASKED_WAIT: Duration = Duration::from_secs(300);

/// Why an exporter cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Certificate file.
    #[error(
        "cannot read OTEL_EXPORTER_OTLP_CERTIFICATE {path}: {source}; give a PEM file that probe may read"
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
        source: tonic::transport::Error,
    },
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
    /// `error.type`: the gRPC status in lower case, `timeout`, or `connection` for one that broke.
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
    const PATH: &'static str;
    fn partial(self) -> Option<(i64, String)>;
}

impl Response for ExportMetricsServiceResponse {
    const PATH: &'static str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
    fn partial(self) -> Option<(i64, String)> {
        self.partial_success.map(|partial| (partial.rejected_data_points, partial.error_message))
    }
}

impl Response for ExportLogsServiceResponse {
    const PATH: &'static str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
    fn partial(self) -> Option<(i64, String)> {
        self.partial_success.map(|partial| (partial.rejected_log_records, partial.error_message))
    }
}

/// A connection that is made when it is first needed, and again when it hung.
#[derive(Debug)]
pub(super) struct Client<R> {
    target: Target,
    endpoint: Endpoint,
    channel: Channel,
    response: PhantomData<fn() -> R>,
}

/// The transport settings of a target.
pub(crate) fn endpoint(target: &Target) -> Result<Endpoint, ClientError> {
    let refuse = |source| ClientError::Endpoint { endpoint: target.endpoint.to_string(), source };
    let mut endpoint = Endpoint::from(target.endpoint.clone())
        .user_agent(concat!("probe/", env!("CARGO_PKG_VERSION")))
        .map_err(refuse)?
        .connect_timeout(target.timeout.min(CONNECT_TIMEOUT))
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(60)));
    if target.is_tls() {
        let mut tls = ClientTlsConfig::new();
        match &target.certificate {
            None => tls = tls.with_native_roots(),
            Some(path) => {
                let pem = std::fs::read(path).map_err(|source| ClientError::Certificate {
                    path: path.display().to_string(),
                    source,
                })?;
                tls = tls.ca_certificate(Certificate::from_pem(pem));
            }
        }
        endpoint = endpoint.tls_config(tls).map_err(refuse)?;
    }
    Ok(endpoint)
}

impl<R: Response> Client<R> {
    /// Must be called inside a runtime.
    pub(super) fn new(target: Target) -> Result<Self, ClientError> {
        let endpoint = endpoint(&target)?;
        let channel = endpoint.connect_lazy();
        Ok(Self { target, endpoint, channel, response: PhantomData })
    }

    /// One attempt; never longer than the configured timeout.
    pub(super) async fn send(&mut self, body: Bytes) -> Outcome {
        match tokio::time::timeout(self.target.timeout, self.call(body)).await {
            Ok(Ok(response)) => {
                let (rejected, message) = response.partial().unwrap_or_default();
                Outcome::Accepted { rejected: u64::try_from(rejected).unwrap_or(0), message }
            }
            Ok(Err(status)) => Outcome::Failed(judge(&status)),
            Err(_elapsed) => {
                // The peer may be gone without a word, and then this connection stays silent until the
                // kernel gives up, a quarter of an hour later.
                self.channel = self.endpoint.connect_lazy();
                Outcome::Failed(Failure {
                    kind: "timeout",
                    message: format!("no answer within {:?}", self.target.timeout),
                    unreachable: true,
                    retry: Retry::BackOff,
                })
            }
        }
    }

    async fn call(&self, body: Bytes) -> Result<R, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        match self.target.compression {
            Compression::None => {}
            Compression::Gzip => grpc = grpc.send_compressed(CompressionEncoding::Gzip),
        }
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(body);
        for header in &self.target.headers {
            request.metadata_mut().insert(header.key.clone(), header.value.clone());
        }
        let path = PathAndQuery::from_static(R::PATH);
        Ok(grpc.unary(request, path, Encoded::<R>(PhantomData)).await?.into_inner())
    }
}

/// What a status means for the request that got it.
fn judge(status: &Status) -> Failure {
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let back_off = asked.map_or(Retry::BackOff, |wait| Retry::After(wait.min(LONGEST_ASKED_WAIT)));
    let (kind, retry) = match status.code() {
        Code::Ok => ("ok", Retry::Never),
        Code::Cancelled => ("cancelled", back_off),
        Code::DeadlineExceeded => ("deadline_exceeded", back_off),
        Code::Aborted => ("aborted", back_off),
        Code::OutOfRange => ("out_of_range", back_off),
        Code::Unavailable => ("unavailable", back_off),
        Code::DataLoss => ("data_loss", back_off),
        // Only with RetryInfo does it mean "later" and not "never".
        Code::ResourceExhausted if asked.is_some() => ("resource_exhausted", back_off),
        Code::ResourceExhausted => ("resource_exhausted", Retry::Never),
        Code::Unknown => ("unknown", Retry::Never),
        Code::InvalidArgument => ("invalid_argument", Retry::Never),
        Code::NotFound => ("not_found", Retry::Never),
        Code::AlreadyExists => ("already_exists", Retry::Never),
        Code::PermissionDenied => ("permission_denied", Retry::Never),
        Code::FailedPrecondition => ("failed_precondition", Retry::Never),
        Code::Unimplemented => ("unimplemented", Retry::Never),
        Code::Internal => ("internal", Retry::Never),
        Code::Unauthenticated => ("unauthenticated", Retry::Never),
    };
    let mut message = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !message.contains(&cause_text) {
            message.push_str(": ");
            message.push_str(&cause_text);
        }
        source = cause.source();
    }
    // A status with a cause was made here, when the connection broke or talked nonsense; it says nothing about
    // the request, whatever its code.
    if std::error::Error::source(status).is_some() && retry == Retry::Never {
        return Failure { kind: "connection", message, unreachable: true, retry: Retry::BackOff };
    }
    let unreachable = matches!(status.code(), Code::Unavailable | Code::Cancelled);
    Failure { kind, message, unreachable, retry }
}

/// Passes an encoded body through; decodes the answer.
#[derive(Debug)]
struct Encoded<R>(PhantomData<fn() -> R>);

impl<R: Response> Codec for Encoded<R> {
    type Encode = Bytes;
    type Decode = R;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(PhantomData)
    }

    fn decoder(&mut self) -> Self {
        Self(PhantomData)
    }
}

impl<R> Encoder for Encoded<R> {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl<R: Response> Decoder for Encoded<R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        R::decode(buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn retryable_codes_are_those_of_the_specification() {
        let retryable =
            ["cancelled", "deadline_exceeded", "aborted", "out_of_range", "unavailable", "data_loss"];
        for code in (0..17).map(Code::from_i32) {
            let failure = judge(&Status::new(code, "x"));
            assert_eq!(
                failure.retry == Retry::BackOff,
                retryable.contains(&failure.kind),
                "{}",
                failure.kind
            );
        }
        let wait = |seconds| Some(Duration::from_secs(seconds));
        for (code, asked, want) in [
            (Code::ResourceExhausted, wait(7), Retry::After(Duration::from_secs(7))),
            (Code::Unavailable, wait(7), Retry::After(Duration::from_secs(7))),
            (Code::Unavailable, wait(86_400), Retry::After(LONGEST_ASKED_WAIT)),
            (Code::Internal, wait(7), Retry::Never),
        ] {
            let status = Status::with_error_details(code, "x", ErrorDetails::with_retry_info(asked));
            assert_eq!(judge(&status).retry, want, "{code:?}");
        }
    }
}
