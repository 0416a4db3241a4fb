//! `OTEL_EXPORTER_OTLP_*`: where to send, how, and with what, resolved once from flags and environment.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tonic::codegen::http::Uri;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};

use super::client::{ClientError, Connection, endpoint};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// What stands in a secret's place.
const HIDDEN: &str = "(hidden)";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What was typed on the command line; each beats its environment variable, for all signals.
#[derive(Clone, Debug, Default)]
pub struct OtlpFlags {
    /// `--otlp-endpoint`.
    pub endpoint: Option<String>,
    /// `--otlp-protocol`.
    pub protocol: Option<String>,
    /// `--otlp-headers`, as in the variable: `key=value,key=value`, percent-encoded.
    pub headers: Option<String>,
    /// `--otlp-timeout`.
    pub timeout: Option<Duration>,
    /// `--otlp-compression`.
    pub compression: Option<String>,
    /// `--otlp-certificate`.
    pub certificate: Option<String>,
    /// `--otlp-client-certificate`.
    pub client_certificate: Option<String>,
    /// `--otlp-client-key`.
    pub client_key: Option<String>,
    /// `--otlp-temporality`.
    pub temporality: Option<String>,
    /// `--otlp-histograms`.
    pub histograms: Option<String>,
}

impl OtlpFlags {
    /// Everything that cannot be used in itself, whatever the rest says: of a file, which is right or wrong as a whole.
    #[must_use]
    pub fn faults(&self) -> Vec<ConfigError> {
        let Self {
            endpoint,
            protocol: name,
            headers: list,
            timeout,
            compression: algorithm,
            certificate: _,
            client_certificate: _,
            client_key: _,
            temporality: since,
            histograms: buckets,
        } = self;
        let check = |key: &str, value: &Option<String>, read: &dyn Fn(&Setting) -> Option<ConfigError>| {
            let value = value.clone()?;
            read(&Setting { key: key.to_owned(), value, is_of_signal: false })
        };
        let faults = [
            check("otlp-endpoint", endpoint, &|setting| parse_endpoint(setting, false).err()),
            check("otlp-protocol", name, &|setting| protocol(setting).err()),
            check("otlp-headers", list, &|setting| headers(setting).err()),
            check("otlp-compression", algorithm, &|setting| compression(setting).err()),
            check("otlp-temporality", since, &|setting| temporality(setting).err()),
            check("otlp-histograms", buckets, &|setting| histograms(setting).err()),
            check_timeout("otlp-timeout", *timeout).err(),
        ];
        faults.into_iter().flatten().collect()
    }
}

/// A variable of the specification and the flag that says the same; [`OtlpConfig::variable`] is its name.
pub const OTLP_STANDARD: [(&str, &str); 10] = [
    ("otlp-endpoint", "ENDPOINT"),
    ("otlp-protocol", "PROTOCOL"),
    ("otlp-headers", "HEADERS"),
    ("otlp-timeout", "TIMEOUT"),
    ("otlp-compression", "COMPRESSION"),
    ("otlp-certificate", "CERTIFICATE"),
    ("otlp-client-certificate", "CLIENT_CERTIFICATE"),
    ("otlp-client-key", "CLIENT_KEY"),
    ("otlp-temporality", "METRICS_TEMPORALITY_PREFERENCE"),
    ("otlp-histograms", "METRICS_DEFAULT_HISTOGRAM_AGGREGATION"),
];

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {value:?} cannot be used; allowed: {allowed}")]
pub struct ConfigError {
    /// Flag or environment variable.
    pub key: String,
    /// What it said. A header's value is never repeated here.
    pub value: String,
    /// What it may say.
    pub allowed: String,
}

/// How requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP with protobuf bodies.
    HttpProtobuf,
}

/// How request bodies are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, the specification's.
    Gzip,
    /// zstd, which the OpenTelemetry Collector takes too.
    Zstd,
}

impl Compression {
    /// As `Content-Encoding` and `grpc-encoding` have it; `None`: there is none.
    #[must_use]
    pub const fn coding(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }
}

/// A request header.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    /// Lower-case name.
    pub key: AsciiMetadataKey,
    /// Value; likely a secret.
    pub value: AsciiMetadataValue,
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: (hidden)", self.key)
    }
}

/// Where one signal goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// gRPC or HTTP.
    pub protocol: Protocol,
    /// `http://` or `https://`, host and port; for HTTP the whole URL of the signal.
    pub endpoint: Uri,
    /// Sent with every request.
    pub headers: Vec<Header>,
    /// Limit of one request, connecting included.
    pub timeout: Duration,
    /// Of request bodies.
    pub compression: Compression,
    /// The certificate authorities to trust in place of the system's.
    pub certificate: Option<PemFile>,
    /// What probe shows to a collector that asks who it is: its certificate, and the key of that.
    pub client: Option<(PemFile, PemFile)>,
}

/// A file of certificates, or of a key. It is read where a connection is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemFile {
    /// Flag or environment variable that names it.
    pub key: String,
    /// Where it is.
    pub path: PathBuf,
}

impl PemFile {
    fn refuse(self, allowed: &str) -> ConfigError {
        let Self { key, path } = self;
        Setting { key, value: path.display().to_string(), is_of_signal: false }.refuse(allowed)
    }
}

impl Target {
    /// Whether the connection is encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.endpoint.scheme_str() == Some("https")
    }

    /// Whether it can be used at all, as far as that is known without a connection.
    ///
    /// # Errors
    ///
    /// The certificates do not read, or the endpoint is of no use to the transport.
    pub fn check(&self) -> Result<(), ClientError> {
        match self.protocol {
            Protocol::Grpc => endpoint(self).map(drop),
            Protocol::HttpProtobuf => Connection::new(self.clone()).map(drop),
        }
    }

    /// Whether it goes to the same collector.
    #[must_use]
    pub fn is_beside(&self, other: &Self) -> bool {
        self.endpoint.authority() == other.endpoint.authority()
            && self.endpoint.scheme() == other.endpoint.scheme()
    }
}

/// Since when points count (specification, "Metrics exporter, OTLP", temporality preference).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Temporality {
    /// Since their series began.
    #[default]
    Cumulative,
    /// Since the last delivery; up-down counters since they began.
    Delta,
    /// As [`Self::Delta`] for what is counted as it happens, which all that probe observes is; what is read off when it is exported
    /// (of the agent's own metrics) is cumulative.
    LowMemory,
}

impl Temporality {
    /// Whether counters and histograms of what is observed are deltas.
    #[must_use]
    pub const fn is_delta(self) -> bool {
        match self {
            Self::Cumulative => false,
            Self::Delta | Self::LowMemory => true,
        }
    }
}

/// What a histogram's buckets are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Histograms {
    /// Four an octave, as they are counted: a base-2 exponential histogram of scale 2.
    #[default]
    Exponential,
    /// One an octave, with explicit bounds: those of the page for Prometheus.
    Explicit,
}

/// How metrics are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preferences {
    /// Since when points count.
    pub temporality: Temporality,
    /// Of what is observed; the agent's own histogram has explicit bounds.
    pub histograms: Histograms,
}

/// Where metrics and events go. At least one of them goes somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpConfig {
    /// How metrics are written.
    pub preferences: Preferences,
    /// Metrics, the agent's own included.
    pub metrics: Option<Target>,
    /// Events, as log records.
    pub logs: Option<Target>,
}

impl OtlpConfig {
    /// Reads flags, then the variables of the OpenTelemetry specification through `lookup`. `None`: no
    /// endpoint is set, nothing is to be exported.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be used.
    pub fn resolve(
        flags: &OtlpFlags,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ConfigError> {
        Self::resolve_with(flags, lookup, &OtlpFlags::default())
    }

    /// The same, with what a file says where neither flags nor variables say anything.
    ///
    /// # Errors
    ///
    /// As [`Self::resolve`].
    pub fn resolve_with(
        flags: &OtlpFlags,
        lookup: &dyn Fn(&str) -> Option<String>,
        file: &OtlpFlags,
    ) -> Result<Option<Self>, ConfigError> {
        // The specification: an empty variable is an unset one.
        let lookup = |key: &str| lookup(key).filter(|value| !value.trim().is_empty());
        let metrics = target("METRICS", flags, &lookup, file)?;
        let logs = target("LOGS", flags, &lookup, file)?;
        if metrics.is_none() && logs.is_none() {
            return Ok(None);
        }
        Ok(Some(Self { preferences: preferences(flags, &lookup, file)?, metrics, logs }))
    }

    /// The environment variable of a setting: for all signals, or for one (`METRICS`, `LOGS`).
    #[must_use]
    pub fn variable(signal: Option<&str>, name: &str) -> String {
        match signal {
            Some(signal) => format!("OTEL_EXPORTER_OTLP_{signal}_{name}"),
            None => format!("OTEL_EXPORTER_OTLP_{name}"),
        }
    }
}

/// A setting and where it came from.
struct Setting {
    key: String,
    value: String,
    /// Of this signal alone.
    is_of_signal: bool,
}

impl Setting {
    fn refuse(&self, allowed: &str) -> ConfigError {
        // A URL may carry a password.
        let value = if self.value.contains('@') { HIDDEN } else { &self.value };
        ConfigError { key: self.key.clone(), value: value.to_owned(), allowed: allowed.to_owned() }
    }
}

fn target(
    signal: &str,
    flags: &OtlpFlags,
    lookup: &dyn Fn(&str) -> Option<String>,
    file: &OtlpFlags,
) -> Result<Option<Target>, ConfigError> {
    let variable = |name: &str| -> Option<Setting> {
        [(Some(signal), true), (None, false)].into_iter().find_map(|(signal, is_of_signal)| {
            let key = OtlpConfig::variable(signal, name);
            lookup(&key).map(|value| Setting { key, value, is_of_signal })
        })
    };
    let find = |flag: &Option<String>, name: &str, file: &Option<String>| -> Option<Setting> {
        let word = name.to_ascii_lowercase().replace('_', "-");
        let given = |prefix: &str, value: &Option<String>| {
            let value = value.clone()?;
            Some(Setting { key: format!("{prefix}otlp-{word}"), value, is_of_signal: false })
        };
        given("--", flag).or_else(|| variable(name)).or_else(|| given("", file))
    };

    let Some(endpoint) = find(&flags.endpoint, "ENDPOINT", &file.endpoint) else {
        return Ok(None);
    };
    let insecure = match variable("INSECURE") {
        None => false,
        Some(setting) => match setting.value.trim().to_ascii_lowercase().as_str() {
            "true" => true,
            "false" => false,
            _ => return Err(setting.refuse("true, false")),
        },
    };
    let protocol = match find(&flags.protocol, "PROTOCOL", &file.protocol) {
        None => Protocol::Grpc,
        Some(setting) => protocol(&setting)?,
    };
    let compression = match find(&flags.compression, "COMPRESSION", &file.compression) {
        None => Compression::None,
        Some(setting) => compression(&setting)?,
    };
    check_timeout("--otlp-timeout", flags.timeout)?;
    let timeout = match (flags.timeout, variable("TIMEOUT")) {
        (Some(timeout), _) => timeout,
        (None, None) => file.timeout.unwrap_or(DEFAULT_TIMEOUT),
        (None, Some(setting)) => match setting.value.trim().parse::<u64>() {
            Ok(ms) if ms > 0 => Duration::from_millis(ms),
            Ok(_) | Err(_) => return Err(setting.refuse("milliseconds, a whole number above 0")),
        },
    };
    let headers = match find(&flags.headers, "HEADERS", &file.headers) {
        None => Vec::new(),
        Some(setting) => headers(&setting)?,
    };
    let pem = |flag: &Option<String>, name: &str, file: &Option<String>| {
        let setting = find(flag, name, file)?;
        Some(PemFile { path: setting.value.trim().into(), key: setting.key })
    };
    let certificate = pem(&flags.certificate, "CERTIFICATE", &file.certificate);
    let client = match (
        pem(&flags.client_certificate, "CLIENT_CERTIFICATE", &file.client_certificate),
        pem(&flags.client_key, "CLIENT_KEY", &file.client_key),
    ) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(alone), None) => {
            return Err(alone.refuse(
                "a file beside that of its key: --otlp-client-key or OTEL_EXPORTER_OTLP_CLIENT_KEY",
            ));
        }
        (None, Some(alone)) => {
            return Err(alone.refuse(
                "a file beside that of its certificate: --otlp-client-certificate or OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
            ));
        }
    };
    let url = parse_endpoint(&endpoint, insecure)?;
    Ok(Some(Target {
        protocol,
        // The specification: what is set for one signal is used as it is.
        endpoint: match protocol {
            Protocol::HttpProtobuf if !endpoint.is_of_signal => {
                below(&url, &format!("v1/{}", signal.to_ascii_lowercase())).ok_or_else(|| {
                    endpoint.refuse("a URL to which /v1/metrics and /v1/logs are appended: without them, and without a query (for one signal: OTEL_EXPORTER_OTLP_METRICS_ENDPOINT, OTEL_EXPORTER_OTLP_LOGS_ENDPOINT)")
                })?
            }
            Protocol::HttpProtobuf | Protocol::Grpc => url,
        },
        headers,
        timeout,
        compression,
        certificate,
        client,
    }))
}

fn preferences(
    flags: &OtlpFlags,
    lookup: &dyn Fn(&str) -> Option<String>,
    file: &OtlpFlags,
) -> Result<Preferences, ConfigError> {
    let find = |key: &str, flag: &Option<String>, file: &Option<String>| {
        let setting = |key: String, value| Setting { key, value, is_of_signal: false };
        let variable = OTLP_STANDARD.iter().find(|(of, _)| *of == key);
        let variable = variable.map(|(_, name)| OtlpConfig::variable(None, name));
        flag.clone()
            .map(|value| setting(format!("--{key}"), value))
            .or_else(|| variable.and_then(|name| Some(setting(name.clone(), lookup(&name)?))))
            .or_else(|| file.clone().map(|value| setting(key.to_owned(), value)))
    };
    let temporality = find("otlp-temporality", &flags.temporality, &file.temporality);
    let histograms = find("otlp-histograms", &flags.histograms, &file.histograms);
    Ok(Preferences {
        temporality: temporality.as_ref().map(self::temporality).transpose()?.unwrap_or_default(),
        histograms: histograms.as_ref().map(self::histograms).transpose()?.unwrap_or_default(),
    })
}

fn temporality(setting: &Setting) -> Result<Temporality, ConfigError> {
    match setting.value.trim().to_ascii_lowercase().as_str() {
        "cumulative" => Ok(Temporality::Cumulative),
        "delta" => Ok(Temporality::Delta),
        "lowmemory" => Ok(Temporality::LowMemory),
        _ => Err(setting.refuse("cumulative, delta, lowmemory")),
    }
}

fn histograms(setting: &Setting) -> Result<Histograms, ConfigError> {
    match setting.value.trim().to_ascii_lowercase().as_str() {
        "base2_exponential_bucket_histogram" => Ok(Histograms::Exponential),
        "explicit_bucket_histogram" => Ok(Histograms::Explicit),
        _ => Err(setting.refuse("base2_exponential_bucket_histogram, explicit_bucket_histogram")),
    }
}

fn protocol(setting: &Setting) -> Result<Protocol, ConfigError> {
    match setting.value.trim() {
        "grpc" => Ok(Protocol::Grpc),
        "http/protobuf" => Ok(Protocol::HttpProtobuf),
        _ => Err(setting.refuse("grpc (port 4317 of a collector), http/protobuf (port 4318)")),
    }
}

fn compression(setting: &Setting) -> Result<Compression, ConfigError> {
    match setting.value.trim() {
        "gzip" => Ok(Compression::Gzip),
        "zstd" => Ok(Compression::Zstd),
        "none" => Ok(Compression::None),
        _ => Err(setting.refuse("gzip, zstd, none")),
    }
}

fn check_timeout(key: &str, timeout: Option<Duration>) -> Result<(), ConfigError> {
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        let setting = Setting { key: key.to_owned(), value: "0".to_owned(), is_of_signal: false };
        return Err(setting.refuse("more than 0"));
    }
    Ok(())
}

fn parse_endpoint(setting: &Setting, insecure: bool) -> Result<Uri, ConfigError> {
    let refuse = || {
        setting.refuse(&format!(
            "http://HOST:PORT, https://HOST:PORT, or HOST:PORT (then https, or http with {}=true)",
            ENDPOINT.replace("ENDPOINT", "INSECURE")
        ))
    };
    let text = setting.value.trim();
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else if insecure {
        format!("http://{text}")
    } else {
        format!("https://{text}")
    };
    let uri: Uri = with_scheme.parse().map_err(|_| refuse())?;
    let scheme_is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    let host_is_there = uri.host().is_some_and(|host| !host.is_empty());
    if scheme_is_known && host_is_there { Ok(uri) } else { Err(refuse()) }
}

/// A URL below another, unless that is one of a signal already.
fn below(url: &Uri, path: &str) -> Option<Uri> {
    let base = url.path().trim_end_matches('/');
    if url.query().is_some() || base.ends_with("/v1/metrics") || base.ends_with("/v1/logs") {
        return None;
    }
    let mut parts = url.clone().into_parts();
    parts.path_and_query = format!("{base}/{path}").parse().ok();
    Uri::from_parts(parts).ok()
}

/// `key=value,key=value`, values percent-encoded (W3C Baggage without properties).
fn headers(setting: &Setting) -> Result<Vec<Header>, ConfigError> {
    let refuse = |pair: &str, allowed: &str| ConfigError {
        key: setting.key.clone(),
        // Without a name, all of it may be the secret.
        value: pair.split_once('=').map_or(HIDDEN, |(name, _)| name).trim().to_owned(),
        allowed: allowed.to_owned(),
    };
    pairs(&setting.value)
        .map(|pair| {
            let (pair, parsed) = pair;
            let (key, value) = parsed.ok_or_else(|| refuse(pair, "key=value,key=value, percent-encoded"))?;
            let key = key.to_ascii_lowercase();
            let key = AsciiMetadataKey::from_bytes(key.as_bytes()).map_err(|_| {
                refuse(pair, "header names of letters, digits, - _ and ., not ending in -bin")
            })?;
            let printable = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
            let value = AsciiMetadataValue::try_from(value).ok().filter(|_| printable);
            let value = value.ok_or_else(|| refuse(pair, "header values of printable ASCII"))?;
            Ok(Header { key, value })
        })
        .collect()
}

/// The pairs of a list such as `OTEL_RESOURCE_ATTRIBUTES`: each as it was written, and decoded unless it is
/// malformed. Empty elements are skipped.
pub(super) fn pairs(list: &str) -> impl Iterator<Item = (&str, Option<(String, String)>)> {
    list.split(',').map(str::trim).filter(|pair| !pair.is_empty()).map(|pair| {
        let decoded = pair.split_once('=').and_then(|(key, value)| {
            let (key, value) = (percent_decode(key.trim())?, percent_decode(value.trim())?);
            (!key.is_empty()).then_some((key, value))
        });
        (pair, decoded)
    })
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high << 4 | low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: &OtlpFlags, env: &[(&str, &str)]) -> Result<Option<OtlpConfig>, ConfigError> {
        OtlpConfig::resolve(flags, &|key| {
            env.iter().find(|(k, _)| *k == key).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_is_exported_without_an_endpoint() {
        assert_eq!(resolve(&OtlpFlags::default(), &[]), Ok(None));
        assert_eq!(
            resolve(&OtlpFlags::default(), &[(ENDPOINT, " "), ("OTEL_EXPORTER_OTLP_TIMEOUT", "5")]),
            Ok(None)
        );
    }

    #[test]
    fn signals_have_their_own_and_flags_beat_all() {
        let env = [
            (ENDPOINT, "http://collector:4317"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://metrics:443"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Api-Key=se%20cret%3D, x-tenant = a ,"),
            ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "x=y"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/etc/ca.pem"),
        ];
        let config = resolve(&OtlpFlags::default(), &env).unwrap().unwrap();
        let (metrics, logs) = (config.metrics.unwrap(), config.logs.unwrap());
        assert_eq!(
            (metrics.endpoint.to_string(), metrics.is_tls()),
            ("https://metrics:443/".to_owned(), true)
        );
        assert_eq!((logs.endpoint.to_string(), logs.is_tls()), ("http://collector:4317/".to_owned(), false));
        let headers: Vec<_> =
            metrics.headers.iter().map(|h| (h.key.as_str(), h.value.to_str().unwrap())).collect();
        assert_eq!(headers, [("api-key", "se cret="), ("x-tenant", "a")]);
        assert_eq!(logs.headers.len(), 1);
        assert_eq!(
            (metrics.timeout, logs.timeout),
            (Duration::from_millis(2500), Duration::from_millis(2500))
        );
        assert_eq!((metrics.compression, logs.compression), (Compression::Gzip, Compression::None));
        let (key, path) = ("OTEL_EXPORTER_OTLP_CERTIFICATE".to_owned(), "/etc/ca.pem".into());
        assert_eq!((&logs.certificate, &logs.client), (&Some(PemFile { key, path }), &None));
        assert!(!format!("{metrics:?}").contains("cret"), "a header's value is a secret");

        let flags = OtlpFlags {
            endpoint: Some("http://[::1]:9".to_owned()),
            timeout: Some(Duration::from_secs(1)),
            ..OtlpFlags::default()
        };
        let config = resolve(&flags, &env).unwrap().unwrap();
        assert_eq!(
            config.metrics.as_ref().map(|t| t.endpoint.to_string()).as_deref(),
            Some("http://[::1]:9/")
        );
        assert_eq!(config.logs.map(|t| t.timeout), Some(Duration::from_secs(1)));
    }

    #[test]
    fn preferences_are_the_specifications_but_for_histograms() {
        let (temporality, histograms) = (
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
        );
        let of = |flags: &OtlpFlags, env: &[(&str, &str)]| {
            let env = [&[(ENDPOINT, "http://c:1")], env].concat();
            resolve(flags, &env).unwrap().unwrap().preferences
        };
        let none = OtlpFlags::default();
        let usual = Preferences { temporality: Temporality::Cumulative, histograms: Histograms::Exponential };
        assert_eq!(of(&none, &[]), usual);
        // Whatever the case, as the specification has it.
        let env = [(temporality, "LowMemory"), (histograms, "explicit_bucket_histogram")];
        let asked = Preferences { temporality: Temporality::LowMemory, histograms: Histograms::Explicit };
        assert_eq!(of(&none, &env), asked);
        let flags = OtlpFlags {
            temporality: Some("delta".to_owned()),
            histograms: Some("base2_exponential_bucket_histogram".to_owned()),
            ..OtlpFlags::default()
        };
        let typed = Preferences { temporality: Temporality::Delta, histograms: Histograms::Exponential };
        assert_eq!(of(&flags, &env), typed);
    }

    #[test]
    fn certificates_are_by_signal_too_and_none_is_without_its_key() {
        let env = [
            (ENDPOINT, "https://c:1"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca"),
            ("OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE", "/ca-of-logs"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/cert"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key"),
            ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE", "/cert-of-metrics"),
            ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY", "/key-of-metrics"),
        ];
        let paths = |flags: &OtlpFlags| {
            let config = resolve(flags, &env).unwrap().unwrap();
            [config.metrics.unwrap(), config.logs.unwrap()].map(|target| {
                let (certificate, key) = target.client.unwrap();
                [target.certificate.unwrap(), certificate, key].map(|file| file.path.display().to_string())
            })
        };
        assert_eq!(
            paths(&OtlpFlags::default()),
            [["/ca", "/cert-of-metrics", "/key-of-metrics"], ["/ca-of-logs", "/cert", "/key"]]
        );
        let flags = OtlpFlags { certificate: Some("/typed".to_owned()), ..OtlpFlags::default() };
        assert_eq!(paths(&flags).map(|[ca, ..]| ca), ["/typed", "/typed"]);
        for (left_out, named, wanted) in [
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "--otlp-client-key"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_KEY", "--otlp-client-cert"),
        ] {
            let env: Vec<_> = env.into_iter().filter(|(key, _)| *key != left_out).collect();
            let error = resolve(&OtlpFlags::default(), &env).unwrap_err();
            assert_eq!(error.key, named);
            assert!(error.allowed.contains(wanted), "{error}");
        }
    }

    #[test]
    fn over_http_each_signal_has_a_path() {
        for (base, metrics, logs) in [
            ("http://c:4318", "http://c:4318/v1/metrics", "http://c:4318/v1/logs"),
            ("https://c/otlp/", "https://c/otlp/v1/metrics", "https://c/otlp/v1/logs"),
        ] {
            let env = [(ENDPOINT, base), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
            let config = resolve(&OtlpFlags::default(), &env).unwrap().unwrap();
            let (of_metrics, of_logs) = (config.metrics.unwrap(), config.logs.unwrap());
            assert_eq!(
                (of_metrics.endpoint.to_string(), of_logs.endpoint.to_string()),
                (metrics.into(), logs.into())
            );
            assert!(of_metrics.is_beside(&of_logs));
        }
        let env = [
            (ENDPOINT, "http://c:4317"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m:8428/opentelemetry/api/v1/push?x=y"),
            ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf"),
        ];
        let config = resolve(&OtlpFlags::default(), &env).unwrap().unwrap();
        let (metrics, logs) = (config.metrics.unwrap(), config.logs.unwrap());
        assert_eq!(metrics.endpoint.to_string(), "http://m:8428/opentelemetry/api/v1/push?x=y", "as it is");
        assert_eq!((metrics.protocol, logs.protocol), (Protocol::HttpProtobuf, Protocol::Grpc));
        assert!(!metrics.is_beside(&logs));
        for base in ["http://c/?x=y", "http://c:4318/v1/metrics", "http://c:4318/v1/logs/"] {
            let env = [(ENDPOINT, base), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
            assert!(
                resolve(&OtlpFlags::default(), &env).unwrap_err().allowed.contains("are appended"),
                "{base}"
            );
        }
    }

    #[test]
    fn an_endpoint_without_scheme_is_https_unless_insecure() {
        for (insecure, want) in
            [(None, "https://c:1/"), (Some("true"), "http://c:1/"), (Some("False"), "https://c:1/")]
        {
            let mut env = vec![(ENDPOINT, "c:1")];
            env.extend(insecure.map(|value| ("OTEL_EXPORTER_OTLP_INSECURE", value)));
            let config = resolve(&OtlpFlags::default(), &env).unwrap().unwrap();
            assert_eq!(config.logs.unwrap().endpoint.to_string(), want);
        }
    }

    #[test]
    fn what_cannot_be_used_is_named_with_what_can() {
        for (key, value, allowed) in [
            (ENDPOINT, "ftp://x", "http://HOST:PORT"),
            (ENDPOINT, "http://", "http://HOST:PORT"),
            (ENDPOINT, "http://a b", "http://HOST:PORT"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/json", "grpc"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "milliseconds"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0", "milliseconds"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "lz4", "gzip, zstd, none"),
            ("OTEL_EXPORTER_OTLP_INSECURE", "yes", "true, false"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "deltas", "cumulative, delta, lowmemory"),
            (
                "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
                "exponential",
                "base2_exponential_bucket_histogram",
            ),
        ] {
            let env = [(key, value), (ENDPOINT, "http://c:1")];
            let error = resolve(&OtlpFlags::default(), &env).unwrap_err();
            assert_eq!((error.key.as_str(), error.value.as_str()), (key, value));
            assert!(error.allowed.contains(allowed), "{error}");
        }
        for secret in ["key-without-value", "k=se%cret", "k y=secret", "k=sec\u{e9}ret", "=secret"] {
            let env = [("OTEL_EXPORTER_OTLP_HEADERS", secret), (ENDPOINT, "http://c:1")];
            let error = resolve(&OtlpFlags::default(), &env).unwrap_err();
            assert_eq!(error.key, "OTEL_EXPORTER_OTLP_HEADERS");
            assert!(!error.to_string().contains("ret"), "{error}");
        }
    }
}
