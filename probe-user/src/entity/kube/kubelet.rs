//! One question to the kubelet: which pods are on this node? (`GET /pods`, what `kubectl` and the kubelet's own read-only port have.)

use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body_util::{BodyExt as _, Empty};
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderValue, USER_AGENT};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::pods::{PodList, parse};
use crate::tls::{self, TlsError};

/// How long an answer may take, from the connection to the last octet.
const DEADLINE: Duration = Duration::from_secs(5);
/// Octets of an answer: a pod has some ten thousand of them.
const MOST: usize = 32 << 20;
/// Octets of a token or of certificates.
const MOST_FILE: u64 = 1 << 20;
/// Pieces of an answer that wait to be read.
const PIECES: usize = 4;
const AGENT: &str = concat!("probe/", env!("CARGO_PKG_VERSION"));

/// Where Kubernetes puts what a pod may say who it is with.
pub const TOKEN_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const CA_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
/// Ports of kubelets: the usual one, and the one that only tells.
const PORT: u16 = 10_250;
const READ_ONLY_PORT: u16 = 10_255;

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct KubeletFlags {
    /// `--kubelet`, `PROBE_KUBELET`: a URL, `off`, or `auto`.
    pub kubelet: Option<String>,
    /// `--kubelet-token-file`.
    pub token_file: Option<PathBuf>,
    /// `--kubelet-ca`.
    pub ca: Option<PathBuf>,
    /// `--kubelet-insecure-tls`.
    pub insecure_tls: bool,
    /// `--kube-labels`.
    pub labels: Vec<String>,
}

/// Where the kubelet is, and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeletConfig {
    /// Its list of pods.
    pub url: Uri,
    /// What is sent with each request.
    pub token_file: Option<PathBuf>,
    /// Whose certificates are believed.
    pub trust: Trust,
    /// Keys of the labels that are wanted.
    pub labels: Vec<String>,
    /// The name of this node, as far as it is known.
    pub node: Option<String>,
}

/// Whose certificates are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Those that the authorities in this file signed.
    File(PathBuf),
    /// Those that the system's authorities signed.
    System,
    /// Anybody's.
    Anything,
}

/// Flags or variables that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{key}={value}: {allowed}")]
pub struct KubeletError {
    /// The flag.
    pub key: &'static str,
    /// What was given.
    pub value: String,
    /// What is allowed.
    pub allowed: &'static str,
}

impl KubeletConfig {
    /// Of flags, the environment, and what files there are; `host` is the name of this host. None: no kubelet is asked.
    ///
    /// # Errors
    ///
    /// A URL or a label's key that is none.
    pub fn resolve(
        flags: KubeletFlags,
        lookup: &dyn Fn(&str) -> Option<String>,
        exists: &dyn Fn(&Path) -> bool,
        host: &str,
    ) -> Result<Option<Self>, KubeletError> {
        let KubeletFlags { kubelet, token_file, ca, insecure_tls, labels } = flags;
        if let Some(label) = labels.iter().find(|label| !is_label_key(label)) {
            return Err(KubeletError {
                key: "--kube-labels",
                value: label.clone(),
                allowed: "keys of labels are allowed, with commas between them: app,app.kubernetes.io/name",
            });
        }
        for (key, file) in [("--kubelet-token-file", &token_file), ("--kubelet-ca", &ca)] {
            if let Some(file) = file.as_deref().filter(|file| !exists(file)) {
                let value = file.display().to_string();
                return Err(KubeletError {
                    key,
                    value,
                    allowed: "there is no such file; a file that is there is allowed",
                });
            }
        }
        let lookup =
            |key: &str| lookup(key).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let node = lookup("K8S_NODE_NAME").or_else(|| lookup("NODE_NAME"));
        let url = match kubelet.as_deref().map(str::trim) {
            Some("off") => return Ok(None),
            None | Some("" | "auto") => {
                let is_pod = lookup("KUBERNETES_SERVICE_HOST").is_some() || exists(Path::new(TOKEN_FILE));
                if !is_pod {
                    return Ok(None);
                }
                let at = lookup("NODE_IP").or_else(|| lookup("PROBE_NODE_IP"));
                let at = at.or_else(|| node.clone()).unwrap_or_else(|| host.to_owned());
                let at = if at.parse().is_ok_and(|ip: IpAddr| ip.is_ipv6()) { format!("[{at}]") } else { at };
                url(&format!("https://{at}"))
            }
            Some(text) => url(text),
        };
        let url = url.ok_or_else(|| KubeletError {
            key: "--kubelet",
            value: kubelet.unwrap_or_else(|| "auto".to_owned()),
            allowed: "a URL is allowed (https://10.0.0.7:10250, http://127.0.0.1:10255), `auto`, or `off`",
        })?;
        let is_tls = url.scheme() == Some(&Scheme::HTTPS);
        // A token that nobody named is not sent where everybody can read it.
        let token_file =
            token_file.or_else(|| Some(PathBuf::from(TOKEN_FILE)).filter(|path| is_tls && exists(path)));
        let trust = match (insecure_tls, ca) {
            (true, _) => Trust::Anything,
            (false, Some(file)) => Trust::File(file),
            (false, None) if exists(Path::new(CA_FILE)) => Trust::File(CA_FILE.into()),
            (false, None) => Trust::System,
        };
        Ok(Some(Self { url, token_file, trust, labels, node }))
    }

    /// Whether a certificate is asked for.
    fn is_tls(&self) -> bool {
        self.url.scheme() == Some(&Scheme::HTTPS)
    }
}

/// The URL of the pods of the kubelet at `text`.
fn url(text: &str) -> Option<Uri> {
    let mut parts = text.parse::<Uri>().ok()?.into_parts();
    let scheme = parts.scheme.as_ref()?;
    let port = if *scheme == Scheme::HTTPS {
        PORT
    } else if *scheme == Scheme::HTTP {
        READ_ONLY_PORT
    } else {
        return None;
    };
    let authority = parts.authority.as_ref().filter(|authority| !authority.host().is_empty())?;
    // Names and passwords are no part of it.
    if authority.as_str().contains('@') {
        return None;
    }
    if authority.port().is_none() {
        parts.authority = Some(Authority::try_from(format!("{authority}:{port}")).ok()?);
    }
    match parts.path_and_query.as_ref().map(PathAndQuery::as_str) {
        None | Some("/" | "/pods" | "/pods/") => {
            parts.path_and_query = Some(PathAndQuery::from_static("/pods"))
        }
        Some(_) => return None,
    }
    Uri::from_parts(parts).ok()
}

fn is_label_key(key: &str) -> bool {
    (1..=317).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/'))
}

/// Why there is no list of pods.
#[derive(Debug)]
pub(super) struct AskError {
    /// `error.type`.
    pub(super) kind: &'static str,
    /// What happened, and what would help.
    pub(super) message: String,
}

impl AskError {
    fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// The pods of this node, asked once and waited for: before there is a runtime. A thread that it takes has ended when it returns.
///
/// # Errors
///
/// There is no answer, or none that is a list of pods.
pub fn pods_now(config: &KubeletConfig) -> Result<PodList, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let answer = runtime.block_on(ask(config));
    // A resolver of names that hangs does not hold the command up.
    runtime.shutdown_timeout(DEADLINE);
    answer.map_err(|AskError { kind: _, message }| message)
}

/// The pods of this node.
pub(super) async fn ask(config: &KubeletConfig) -> Result<PodList, AskError> {
    match tokio::time::timeout(DEADLINE, ask_for_long(config)).await {
        Ok(answer) => answer,
        Err(_late) => {
            Err(AskError::new("timeout", format!("no whole answer within {} s", DEADLINE.as_secs())))
        }
    }
}

async fn ask_for_long(config: &KubeletConfig) -> Result<PodList, AskError> {
    let gone = |error| AskError::new("internal", format!("a thread ended: {error}"));
    let (token, tls) = {
        let config = config.clone();
        spawn_blocking(move || credentials(&config)).await.map_err(gone)??
    };
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = config.url.clone();
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    headers.extend(token.map(|token| (AUTHORIZATION, token)));

    let mut http = HttpConnector::new();
    http.enforce_http(false);
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(http);
    // One request now and then: a connection kept would be one that has been cut by the next time.
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
    let answer = client.request(request).await.map_err(|error| unreachable(config, &error))?;
    judge(config, answer.status())?;

    let mut body = answer.into_body();
    let (pieces, waiting) = mpsc::channel(PIECES);
    let (node, labels) = (config.node.clone(), config.labels.clone());
    let reader =
        spawn_blocking(move || parse(Pieces { waiting, piece: Bytes::new() }, node.as_deref(), &labels));
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let why = tls::with_causes(&error.to_string(), &error);
            AskError::new("connection", format!("the answer breaks off: {why}"))
        })?;
        let piece = frame.into_data().unwrap_or_default();
        length += piece.len();
        if length > MOST {
            return Err(AskError::new("too_large", format!("the answer is longer than {} MiB", MOST >> 20)));
        }
        // Who reads has seen enough: it is no list.
        if pieces.send(piece).await.is_err() {
            break;
        }
    }
    drop(pieces);
    let parsed = reader.await.map_err(gone)?;
    parsed.map_err(|error| {
        AskError::new(
            "malformed",
            format!("the answer is no list of pods ({error}); is it a kubelet's address?"),
        )
    })
}

/// An answer as it comes, for who reads it on a thread of its own.
struct Pieces {
    waiting: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let Some(piece) = self.waiting.blocking_recv() else { return Ok(0) };
            self.piece = piece;
        }
        let length = self.piece.len().min(buffer.len());
        if let Some(room) = buffer.get_mut(..length) {
            self.piece.copy_to_slice(room);
        }
        Ok(length)
    }
}

/// The header that says who asks, and whom to believe: read each time, since both are replaced while probe runs.
fn credentials(config: &KubeletConfig) -> Result<(Option<HeaderValue>, ClientConfig), AskError> {
    let token = config.token_file.as_deref().map(token).transpose()?;
    let tls = if !config.is_tls() {
        tls::trusting_nobody()
    } else {
        match &config.trust {
            Trust::Anything => tls::trusting_anybody(),
            Trust::System => tls::trusting_the_system(),
            Trust::File(path) => {
                tls::trusting(&read(path, "the certificate authorities", "--kubelet-ca FILE")?)
            }
        }
    };
    let tls = tls.map_err(|error: TlsError| {
        let of = match &config.trust {
            Trust::File(path) => format!("{}: ", path.display()),
            Trust::System | Trust::Anything => String::new(),
        };
        AskError::new("certificates", format!("{of}{error}; --kubelet-ca FILE names others"))
    })?;
    Ok((token, tls))
}

fn token(path: &Path) -> Result<HeaderValue, AskError> {
    let bytes = read(path, "the token", "--kubelet-token-file FILE")?;
    let text = String::from_utf8_lossy(&bytes);
    let mut value = HeaderValue::try_from(format!("Bearer {}", text.trim()))
        .map_err(|_not_a_header| AskError::new("token", format!("{} holds no token", path.display())))?;
    value.set_sensitive(true);
    Ok(value)
}

fn read(path: &Path, what: &str, way_out: &str) -> Result<Vec<u8>, AskError> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MOST_FILE).read_to_end(&mut bytes));
    match read {
        Ok(_length) => Ok(bytes),
        Err(error) => {
            let uid = rustix::process::geteuid().as_raw();
            let who = if error.kind() == io::ErrorKind::PermissionDenied {
                // CAP_DAC_OVERRIDE is given back once the programs are attached.
                format!(" (by mode and owner alone uid {uid} may not)")
            } else {
                String::new()
            };
            let message =
                format!("cannot read {what} {}: {error}{who}; {way_out} names another", path.display());
            Err(AskError::new("credentials", message))
        }
    }
}

fn judge(config: &KubeletConfig, status: StatusCode) -> Result<(), AskError> {
    let (kind, help) = match status {
        StatusCode::OK => return Ok(()),
        StatusCode::UNAUTHORIZED => {
            let help = match &config.token_file {
                Some(_) => {
                    "it does not believe the token: webhook authentication must be on (--authentication-token-webhook)"
                }
                None => "it wants a token: --kubelet-token-file FILE",
            };
            ("unauthorized", help)
        }
        StatusCode::FORBIDDEN => {
            ("forbidden", "the service account needs `get` of `nodes/proxy` (or `nodes/pods`)")
        }
        _ if status.is_redirection() => ("redirection", "redirections are not followed"),
        _ if status.is_client_error() => ("client_error", "is it a kubelet's address?"),
        _ => ("server_error", "it is tried again"),
    };
    Err(AskError::new(kind, format!("it answers {status}; {help}")))
}

/// What a connection that was not made says.
fn unreachable(config: &KubeletConfig, error: &hyper_util::client::legacy::Error) -> AskError {
    let mut message = tls::with_causes(&error.to_string(), error);
    if message.contains("certificate") && config.trust != Trust::Anything {
        message.push_str(
            "; kubelets often sign their own certificates: --kubelet-ca FILE names who is believed, --kubelet-insecure-tls believes anybody",
        );
    }
    AskError::new("connection", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(
        kubelet: Option<&str>,
        env: &[(&str, &str)],
        files: &[&str],
    ) -> Result<Option<KubeletConfig>, KubeletError> {
        let flags = KubeletFlags { kubelet: kubelet.map(str::to_owned), ..KubeletFlags::default() };
        let lookup = |key: &str| env.iter().find(|(k, _)| *k == key).map(|(_, value)| (*value).to_owned());
        KubeletConfig::resolve(
            flags,
            &lookup,
            &|path| files.iter().any(|file| Path::new(file) == path),
            "host-7",
        )
    }

    #[test]
    fn where_the_kubelet_is() {
        let pod = ("KUBERNETES_SERVICE_HOST", "10.96.0.1");
        type Case<'a> = (Option<&'a str>, &'a [(&'a str, &'a str)], &'a [&'a str], Option<&'a str>);
        let cases: &[Case<'_>] = &[
            (None, &[], &[], None),
            (Some("auto"), &[("NODE_IP", "10.0.0.7")], &[], None),
            (None, &[pod], &[], Some("https://host-7:10250/pods")),
            (None, &[], &[TOKEN_FILE], Some("https://host-7:10250/pods")),
            (None, &[pod, ("NODE_NAME", "n7")], &[], Some("https://n7:10250/pods")),
            (
                None,
                &[pod, ("NODE_NAME", "n7"), ("PROBE_NODE_IP", "10.0.0.7")],
                &[],
                Some("https://10.0.0.7:10250/pods"),
            ),
            (None, &[pod, ("NODE_IP", "fd00::7")], &[], Some("https://[fd00::7]:10250/pods")),
            (Some("off"), &[pod], &[TOKEN_FILE], None),
            (Some("http://127.0.0.1"), &[], &[], Some("http://127.0.0.1:10255/pods")),
            (Some("https://10.0.0.7/"), &[], &[], Some("https://10.0.0.7:10250/pods")),
            (Some("https://10.0.0.7:443/pods"), &[pod], &[], Some("https://10.0.0.7:443/pods")),
        ];
        for (kubelet, env, files, want) in cases {
            let found = resolve(*kubelet, env, files).unwrap().map(|config| config.url.to_string());
            assert_eq!(found.as_deref(), *want, "{kubelet:?} {env:?}");
        }
        for bad in
            ["10.0.0.7:10250", "ftp://a", "https://", "https://u:p@a", "https://a/b", "on", "http://a b"]
        {
            let error = resolve(Some(bad), &[], &[]).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("https://10.0.0.7:10250"), "{error}");
        }
        let labels = vec!["app".to_owned(), "a b".to_owned()];
        let flags = KubeletFlags { labels, ..KubeletFlags::default() };
        let error = KubeletConfig::resolve(flags, &|_| None, &|_| false, "h").unwrap_err();
        assert_eq!((error.key, error.value.as_str()), ("--kube-labels", "a b"));
        let flags = KubeletFlags { ca: Some("/nonexistent".into()), ..KubeletFlags::default() };
        let error = KubeletConfig::resolve(flags, &|_| None, &|_| false, "h").unwrap_err();
        assert_eq!((error.key, error.value.as_str()), ("--kubelet-ca", "/nonexistent"));
    }

    #[test]
    fn tokens_and_authorities() {
        let both = [TOKEN_FILE, CA_FILE];
        let config = resolve(Some("https://a"), &[], &both).unwrap().unwrap();
        assert_eq!((config.token_file, config.trust), (Some(TOKEN_FILE.into()), Trust::File(CA_FILE.into())));
        let config = resolve(Some("http://a"), &[], &both).unwrap().unwrap();
        assert_eq!(config.token_file, None, "not where everybody can read it");
        let config = resolve(Some("https://a"), &[], &[]).unwrap().unwrap();
        assert_eq!((config.token_file, config.trust), (None, Trust::System));
        let missing = token(Path::new("/nonexistent/token")).unwrap_err();
        assert!(
            missing.message.contains("/nonexistent/token")
                && missing.message.contains("--kubelet-token-file")
        );
    }
}
