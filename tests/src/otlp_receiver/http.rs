//! The same collector over HTTP.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Read as _;
use std::sync::Arc;

use anyhow::Result;
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

use super::{Arrived, Fault, Shared, Tls};

type Reply = Response<Full<Bytes>>;

/// Shows a certificate to those who connect, and may demand one of them.
pub(super) fn acceptor(tls: &Tls) -> Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let config = config.with_safe_default_protocol_versions()?;
    let config = match &tls.clients {
        None => config.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            config.with_client_cert_verifier(verifier)
        }
    };
    let certificate = CertificateDer::from_pem_slice(tls.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(tls.key.as_bytes())?;
    Ok(Arc::new(config.with_single_cert(vec![certificate], key)?).into())
}

pub(super) async fn serve(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    largest: usize,
) {
    while let Ok((stream, _peer)) = listener.accept().await {
        let (shared, acceptor) = (Arc::clone(&shared), acceptor.clone());
        tokio::spawn(async move {
            match acceptor {
                None => talk(stream, shared, largest).await,
                // Who does not trust it, or is not trusted, is gone.
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        talk(stream, shared, largest).await;
                    }
                }
            }
        });
    }
}

async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>, largest: usize) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(&shared, request, largest).await) }
    });
    // Whoever breaks off has its own reasons.
    let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
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
        Some("zstd") => zstd::decode_all(&body[..]),
        Some(_) => return plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "gzip, zstd or nothing"),
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
