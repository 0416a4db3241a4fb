//! OTLP over gRPC.

use std::marker::PhantomData;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::super::config::{Compression, Target};
use super::tls::Pem;
use super::{CONNECT_TIMEOUT, ClientError, Failure, LONGEST_ASKED_WAIT, Response, Retry};
use crate::tls::with_causes;

/// A connection that is made when it is first needed, and again when it hung.
#[derive(Debug)]
pub(super) struct Grpc<R> {
    target: Target,
    endpoint: Endpoint,
    channel: Channel,
    response: PhantomData<fn() -> R>,
}

/// The transport settings of a target.
pub(crate) fn endpoint(target: &Target) -> Result<Endpoint, ClientError> {
    let refuse = |source: tonic::transport::Error| ClientError::refused(target, source);
    let mut endpoint = Endpoint::from(target.endpoint.clone())
        .user_agent(super::USER_AGENT)
        .map_err(refuse)?
        .connect_timeout(target.timeout.min(CONNECT_TIMEOUT))
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(60)));
    if target.is_tls() {
        let Pem { authorities, client, config: _ } = Pem::of(target)?;
        let tls = ClientTlsConfig::new();
        let tls = match authorities {
            None => tls.with_native_roots(),
            Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
        };
        let tls = match client {
            None => tls,
            Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
        };
        endpoint = endpoint.tls_config(tls).map_err(refuse)?;
    }
    Ok(endpoint)
}

impl<R: Response> Grpc<R> {
    /// Must be called inside a runtime.
    pub(super) fn new(target: Target) -> Result<Self, ClientError> {
        let endpoint = endpoint(&target)?;
        let channel = endpoint.connect_lazy();
        Ok(Self { target, endpoint, channel, response: PhantomData })
    }

    /// Gives the connection up.
    pub(super) fn reconnect(&mut self) {
        // Files may have become unreadable since; then what they were goes on.
        if let Ok(endpoint) = endpoint(&self.target) {
            self.endpoint = endpoint;
        }
        self.channel = self.endpoint.connect_lazy();
    }

    pub(super) async fn call(&self, body: Bytes) -> Result<R, Failure> {
        self.unary(body).await.map_err(|status| judge(&status))
    }

    async fn unary(&self, body: Bytes) -> Result<R, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        match self.target.compression {
            Compression::None => {}
            Compression::Gzip => grpc = grpc.send_compressed(CompressionEncoding::Gzip),
            Compression::Zstd => grpc = grpc.send_compressed(CompressionEncoding::Zstd),
        }
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(body);
        for header in &self.target.headers {
            request.metadata_mut().insert(header.key.clone(), header.value.clone());
        }
        let path = PathAndQuery::from_static(R::SERVICE);
        Ok(grpc.unary(request, path, Encoded::<R>(PhantomData)).await?.into_inner())
    }
}

/// What a status means for the request that got it.
fn judge(status: &Status) -> Failure {
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let back_off = asked.map_or(Retry::BackOff, |wait| Retry::After(wait.min(LONGEST_ASKED_WAIT)));
    let is_too_large = asked.is_none() && speaks_of_size(status.message());
    let (kind, retry) = match status.code() {
        Code::Ok => ("ok", Retry::Never),
        Code::Cancelled => ("cancelled", back_off),
        Code::DeadlineExceeded => ("deadline_exceeded", back_off),
        Code::Aborted => ("aborted", back_off),
        Code::OutOfRange if is_too_large => ("out_of_range", Retry::Smaller),
        Code::OutOfRange => ("out_of_range", back_off),
        Code::Unavailable => ("unavailable", back_off),
        Code::DataLoss => ("data_loss", back_off),
        // Only with RetryInfo does it mean "later" and not "never".
        Code::ResourceExhausted if asked.is_some() => ("resource_exhausted", back_off),
        Code::ResourceExhausted if is_too_large => ("resource_exhausted", Retry::Smaller),
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
    let message = with_causes(status.message(), status);
    // A status with a cause was made here, when the connection broke or talked nonsense; it says nothing about
    // the request, whatever its code.
    if std::error::Error::source(status).is_some() && retry == Retry::Never {
        return Failure { kind: "connection", message, unreachable: true, retry: Retry::BackOff };
    }
    let unreachable = matches!(status.code(), Code::Unavailable | Code::Cancelled);
    Failure { kind, message, unreachable, retry }
}

/// Whether a refusal is one of a message's size. There is no code for that alone, so servers use one of two, and words.
fn speaks_of_size(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    // grpc-go and grpc-core (C++, Python); grpc-java; tonic, for what was compressed; tonic and others.
    ["larger than max", "exceeds maximum size", "size limit", "too large"]
        .iter()
        .any(|words| message.contains(words))
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

    #[test]
    fn what_is_too_large_is_told_by_the_words_that_servers_use() {
        let later = Retry::After(Duration::from_secs(7));
        for (code, message, want) in [
            (Code::ResourceExhausted, "grpc: received message larger than max (5 vs. 4)", Retry::Smaller),
            (
                Code::ResourceExhausted,
                "grpc: received message after decompression larger than max 4",
                Retry::Smaller,
            ),
            (Code::ResourceExhausted, "SERVER: Received message larger than max (5 vs. 4)", Retry::Smaller),
            (Code::ResourceExhausted, "gRPC message exceeds maximum size 4: 5", Retry::Smaller),
            (
                Code::OutOfRange,
                "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes",
                Retry::Smaller,
            ),
            (
                Code::ResourceExhausted,
                "Error decompressing: size limit, of 4 bytes, exceeded while decompressing message",
                Retry::Smaller,
            ),
            (Code::ResourceExhausted, "quota of the month", Retry::Never),
            (Code::OutOfRange, "a timestamp of yesterday", Retry::BackOff),
            (Code::InvalidArgument, "a label is too large", Retry::Never),
        ] {
            assert_eq!(judge(&Status::new(code, message)).retry, want, "{message}");
            let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(7)));
            let asked = judge(&Status::with_error_details(code, message, details)).retry;
            assert_eq!(asked, if code == Code::InvalidArgument { Retry::Never } else { later }, "{message}");
        }
    }
}
