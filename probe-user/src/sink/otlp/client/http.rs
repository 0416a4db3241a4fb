//! OTLP over HTTP with protobuf bodies (OTLP specification, "OTLP/HTTP").

use std::io::Write as _;
use std::marker::PhantomData;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use tonic_types::pb::Status;

use super::super::config::{Compression, Target};
use super::tls::Pem;
use super::{CONNECT_TIMEOUT, ClientError, Failure, LONGEST_ASKED_WAIT, Response, Retry, USER_AGENT};
use crate::tls::{self, with_causes};

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";
/// Octets of an answer that are read.
const ANSWER: usize = 4 << 20;
/// Characters of an answer that is no protobuf which are told.
const TOLD: usize = 200;
/// How long a connection that is not used is kept.
const KEPT: Duration = Duration::from_secs(90);

/// An answer as it came.
pub(crate) type Answer = hyper::Response<Bytes>;

/// A pool of connections to one endpoint, and what every request to it carries.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    target: Target,
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Connection {
    pub(crate) fn new(target: Target) -> Result<Self, ClientError> {
        let pool = pool(&target)?;
        Ok(Self { target, pool })
    }

    /// Posts a body, with the headers that are configured.
    pub(crate) async fn post(&self, body: Bytes) -> Result<Answer, hyper_util::client::legacy::Error> {
        let mut request = Request::new(Full::new(match self.target.compression {
            Compression::None => body,
            Compression::Gzip => gzip(&body),
            Compression::Zstd => zstd(&body),
        }));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = self.target.endpoint.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
        headers.insert(hyper::header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        if let Some(coding) = self.target.compression.coding() {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        for header in &self.target.headers {
            // Both were checked when they were read: names and values of gRPC are narrower than those of HTTP.
            if let (Ok(name), Ok(mut value)) = (
                HeaderName::from_bytes(header.key.as_str().as_bytes()),
                HeaderValue::from_bytes(header.value.as_encoded_bytes()),
            ) {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
        let (head, body) = self.pool.request(request).await?.into_parts();
        // What is longer, or breaks off, is no answer that could be understood.
        let body = Limited::new(body, ANSWER).collect().await.map(http_body_util::Collected::to_bytes);
        Ok(hyper::Response::from_parts(head, body.unwrap_or_else(|_cut| Bytes::from_static(b"\xff"))))
    }
}

fn pool(target: &Target) -> Result<Pool<HttpsConnector<HttpConnector>, Full<Bytes>>, ClientError> {
    let mut http = HttpConnector::new();
    http.set_connect_timeout(Some(target.timeout.min(CONNECT_TIMEOUT)));
    http.set_nodelay(true);
    http.set_keepalive(Some(Duration::from_secs(60)));
    http.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls(target)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    Ok(Pool::builder(TokioExecutor::new()).pool_idle_timeout(KEPT).build(connector))
}

fn tls(target: &Target) -> Result<ClientConfig, ClientError> {
    if target.is_tls() {
        return Ok(Pem::of(target)?.config);
    }
    tls::trusting_nobody().map_err(|error| ClientError::refused(target, error))
}

fn gzip(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Level::default());
    // Cannot fail: a Vec grows.
    let written = encoder.write_all(body).and_then(|()| encoder.finish());
    written.map(Bytes::from).unwrap_or_default()
}

fn zstd(body: &[u8]) -> Bytes {
    // Cannot fail: a Vec grows.
    zstd::encode_all(body, zstd::DEFAULT_COMPRESSION_LEVEL).map(Bytes::from).unwrap_or_default()
}

/// To one endpoint, for one kind of answer.
#[derive(Debug)]
pub(super) struct Http<R> {
    connection: Connection,
    response: PhantomData<fn() -> R>,
}

impl<R: Response> Http<R> {
    pub(super) fn new(target: Target) -> Result<Self, ClientError> {
        Ok(Self { connection: Connection::new(target)?, response: PhantomData })
    }

    /// Gives all connections up.
    pub(super) fn reconnect(&mut self) {
        // It could be made once; the certificates may have become unreadable since, then the old ones go on.
        if let Ok(pool) = pool(&self.connection.target) {
            self.connection.pool = pool;
        }
    }

    pub(super) async fn call(&self, body: Bytes) -> Result<R, Failure> {
        match self.connection.post(body).await {
            Ok(answer) => judge(&answer, SystemTime::now()),
            Err(error) => Err(broken(with_causes(&error.to_string(), &error))),
        }
    }
}

/// The connection, and not the request, is what went wrong.
fn broken(message: String) -> Failure {
    Failure { kind: "connection", message, unreachable: true, retry: Retry::BackOff }
}

/// What an answer means for the request that got it.
fn judge<R: Response>(answer: &Answer, now: SystemTime) -> Result<R, Failure> {
    let (status, body) = (answer.status(), answer.body());
    if status.is_success() {
        // Some answer nothing, some in JSON whatever they were asked in: it is taken all the same.
        if body.is_empty() || has_type(answer.headers(), JSON) {
            return Ok(R::default());
        }
        let garbage =
            || format!("{status}, but what came with it is no answer of a collector: {}", told(body));
        return R::decode(body.clone()).map_err(|_garbage| broken(garbage()));
    }
    let asked = retry_after(answer.headers(), now);
    let later = asked.map_or(Retry::BackOff, |wait| Retry::After(wait.min(LONGEST_ASKED_WAIT)));
    let (kind, retry) = match status {
        StatusCode::TOO_MANY_REQUESTS => ("too_many_requests", later),
        StatusCode::BAD_GATEWAY => ("bad_gateway", later),
        StatusCode::SERVICE_UNAVAILABLE => ("service_unavailable", later),
        StatusCode::GATEWAY_TIMEOUT => ("gateway_timeout", later),
        StatusCode::BAD_REQUEST => ("bad_request", Retry::Never),
        StatusCode::UNAUTHORIZED => ("unauthorized", Retry::Never),
        StatusCode::FORBIDDEN => ("forbidden", Retry::Never),
        StatusCode::NOT_FOUND => ("not_found", Retry::Never),
        StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", Retry::Never),
        StatusCode::PAYLOAD_TOO_LARGE => ("content_too_large", Retry::Smaller),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => ("unsupported_media_type", Retry::Never),
        StatusCode::INTERNAL_SERVER_ERROR => ("internal_server_error", Retry::Never),
        _ if status.is_redirection() => ("redirection", Retry::Never),
        _ if status.is_client_error() => ("client_error", Retry::Never),
        _ => ("server_error", Retry::Never),
    };
    let unreachable = matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    );
    let said = if has_type(answer.headers(), PROTOBUF) {
        <Status as prost::Message>::decode(body.clone()).map(|status| status.message).unwrap_or_default()
    } else {
        told(body)
    };
    let message = if said.is_empty() { status.to_string() } else { format!("{status}: {said}") };
    Err(Failure { kind, message, unreachable, retry })
}

fn has_type(headers: &HeaderMap, wanted: &str) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(wanted))
}

/// The beginning of a text of a stranger's, in one line.
fn told(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TOLD).collect();
    line.trim().to_owned()
}

/// `Retry-After` (RFC 9110, 10.2.3): seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    // One that has passed: at once.
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::logs::v1::{
        ExportLogsPartialSuccess, ExportLogsServiceResponse,
    };
    use prost::Message as _;

    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Answer {
        let mut answer = Answer::new(Bytes::copy_from_slice(body));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in headers {
            answer.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
        }
        answer
    }

    fn judged(answer: &Answer) -> Result<ExportLogsServiceResponse, Failure> {
        judge(answer, SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777))
    }

    #[test]
    fn what_is_taken() {
        let partial = ExportLogsPartialSuccess { rejected_log_records: 3, error_message: "old".to_owned() };
        let response = ExportLogsServiceResponse { partial_success: Some(partial) };
        let found = judged(&answer(200, &[("content-type", PROTOBUF)], &response.encode_to_vec())).unwrap();
        assert_eq!(found.partial(), Some((3, "old".to_owned())));
        for (status, headers, body) in [
            (200, &[][..], &b""[..]),
            (202, &[], b""),
            (200, &[("content-type", "application/json; x")], b"{}"),
        ] {
            assert_eq!(judged(&answer(status, headers, body)), Ok(ExportLogsServiceResponse::default()));
        }
    }

    #[test]
    fn a_page_of_somebody_else_is_no_success() {
        let failure =
            judged(&answer(200, &[("content-type", "text/html")], b"<html>\nlog in</html>")).unwrap_err();
        assert_eq!((failure.kind, failure.retry, failure.unreachable), ("connection", Retry::BackOff, true));
        assert!(failure.message.contains("<html> log in"), "{failure:?}");
    }

    #[test]
    fn retryable_codes_are_those_of_the_specification() {
        let retryable = [429, 502, 503, 504];
        for status in 300..600 {
            let failure = judged(&answer(status, &[], b"")).unwrap_err();
            assert_eq!(failure.retry == Retry::BackOff, retryable.contains(&status), "{status}");
        }
        let after = |seconds| Retry::After(Duration::from_secs(seconds));
        for (status, value, want) in [
            (429, "7", after(7)),
            (503, "86400", Retry::After(LONGEST_ASKED_WAIT)),
            (503, "Sun, 06 Nov 1994 08:49:47 GMT", after(10)),
            (503, "Sun, 06 Nov 1994 08:49:00 GMT", after(0)),
            (503, "soon", Retry::BackOff),
            (400, "7", Retry::Never),
        ] {
            let failure = judged(&answer(status, &[("retry-after", value)], b"")).unwrap_err();
            assert_eq!(failure.retry, want, "{status} {value}");
        }
    }

    #[test]
    fn what_a_collector_says_is_told() {
        let status = Status { code: 3, message: "not like this".to_owned(), details: Vec::new() };
        for (kind, body) in [(PROTOBUF, status.encode_to_vec()), ("text/plain", b"not like this\n".to_vec())]
        {
            let failure = judged(&answer(413, &[("content-type", kind)], &body)).unwrap_err();
            assert_eq!(failure.kind, "content_too_large");
            assert_eq!(failure.message, "413 Payload Too Large: not like this");
        }
        let long = judged(&answer(500, &[], &[b'x'; 5_000])).unwrap_err();
        assert!(long.message.len() < 300, "{}", long.message.len());
    }
}
