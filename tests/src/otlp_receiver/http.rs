//! The same collector over HTTP.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use flate2::read::GzDecoder;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceResponse,
};
use prost::Message;
use tokio::net::TcpListener;

use super::{Arrived, Fault, Shared};

type Reply = Response<Full<Bytes>>;

pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, largest: usize) {
    while let Ok((stream, _peer)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(&shared, request, largest).await) }
            });
            // Whoever breaks off has its own reasons.
            let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(shared: &Shared, request: Request<Incoming>, largest: usize) -> Reply {
    let (head, body) = request.into_parts();
    let headers: BTreeMap<String, String> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let Ok(body) = body.collect().await else { return plain(StatusCode::BAD_REQUEST, "it breaks off") };
    let body = body.to_bytes();
    let partial = match shared.next_fault() {
        Fault::None => None,
        Fault::Refuse(status) => return plain(StatusCode::INTERNAL_SERVER_ERROR, status.message()),
        Fault::Hang => std::future::pending().await,
        Fault::Partial { rejected, message } => Some((rejected, message)),
        Fault::Answer { status, headers, body } => return foreign(status, &headers, body),
    };
    let unpacked = match headers.get("content-encoding").map(String::as_str) {
        None => Ok(body.to_vec()),
        Some("gzip") => {
            let mut unpacked = Vec::new();
            GzDecoder::new(&body[..]).read_to_end(&mut unpacked).map(|_len| unpacked)
        }
        Some(_) => return plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "gzip or nothing"),
    };
    let Ok(unpacked) = unpacked else { return plain(StatusCode::BAD_REQUEST, "it does not unpack") };
    if unpacked.len() > largest {
        return plain(StatusCode::PAYLOAD_TOO_LARGE, "less at once");
    }
    match head.uri.path() {
        "/v1/metrics" => {
            let Ok(message) = Message::decode(&unpacked[..]) else {
                return plain(StatusCode::BAD_REQUEST, "no metrics");
            };
            shared.lock().metrics.push(Arrived { message, headers });
            shared.arrived.notify_all();
            let partial_success = partial.map(|(rejected_data_points, error_message)| {
                ExportMetricsPartialSuccess { rejected_data_points, error_message }
            });
            protobuf(&ExportMetricsServiceResponse { partial_success })
        }
        "/v1/logs" => {
            let Ok(message) = Message::decode(&unpacked[..]) else {
                return plain(StatusCode::BAD_REQUEST, "no logs");
            };
            shared.lock().logs.push(Arrived { message, headers });
            shared.arrived.notify_all();
            let partial_success = partial.map(|(rejected_log_records, error_message)| {
                ExportLogsPartialSuccess { rejected_log_records, error_message }
            });
            protobuf(&ExportLogsServiceResponse { partial_success })
        }
        _ => plain(StatusCode::NOT_FOUND, "/v1/metrics or /v1/logs"),
    }
}

fn plain(status: StatusCode, text: &str) -> Reply {
    let mut reply = Reply::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *reply.status_mut() = status;
    reply
}

fn protobuf(message: &impl Message) -> Reply {
    let mut reply = Reply::new(Full::new(message.encode_to_vec().into()));
    reply.headers_mut().insert("content-type", HeaderValue::from_static("application/x-protobuf"));
    reply
}

fn foreign(status: u16, headers: &[(&'static str, String)], body: Vec<u8>) -> Reply {
    let mut reply = Reply::new(Full::new(body.into()));
    *reply.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            reply.headers_mut().insert(*name, value);
        }
    }
    reply
}
