//! Certificates and keys out of files, and what rustls makes of them.
//!
//! Both protocols come through here, though tonic wants PEM and makes its own of it: so what is wrong with a file is said before anything is
//! sent, in the same words, with the flag or variable that names it.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore};

use super::super::config::{PemFile, Target};
use super::ClientError;

const AUTHORITIES: &str =
    "a PEM file that probe may read, with the certificates of authorities (BEGIN CERTIFICATE)";
const CERTIFICATE: &str =
    "a PEM file that probe may read, with probe's certificate and those that lead to its authority";
const KEY: &str =
    "a PEM file that probe may read, with the certificate's key, not encrypted (BEGIN PRIVATE KEY)";

/// The files of a target as they are now.
pub(super) struct Pem {
    pub(super) authorities: Option<Vec<u8>>,
    /// Certificate and key.
    pub(super) client: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) config: ClientConfig,
}

impl Pem {
    /// Reads what there is.
    pub(super) fn of(target: &Target) -> Result<Self, ClientError> {
        let refuse = |source: rustls::Error| ClientError::refused(target, source);
        let authorities = target.certificate.as_ref().map(|file| read(file, AUTHORITIES)).transpose()?;
        let roots = match (&target.certificate, &authorities) {
            (Some(file), Some(pem)) => given(file, pem)?,
            _ => system(target)?,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(refuse)?.with_root_certificates(roots);
        let Some((certificate_file, key_file)) = &target.client else {
            return Ok(Self { authorities, client: None, config: config.with_no_client_auth() });
        };
        let (certificate_pem, key_pem) = (read(certificate_file, CERTIFICATE)?, read(key_file, KEY)?);
        let certificates = certificates(certificate_file, &certificate_pem, CERTIFICATE)?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => unusable(key_file, "there is no key in it", KEY),
            other => unusable(key_file, &other.to_string(), KEY),
        })?;
        let config = config.with_client_auth_cert(certificates, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                let PemFile { key, path } = certificate_file;
                let why = format!("it is not the key of the certificate in {} ({key})", path.display());
                unusable(key_file, &why, KEY)
            }
            other => unusable(key_file, &other.to_string(), KEY),
        })?;
        Ok(Self { authorities, client: Some((certificate_pem, key_pem)), config })
    }
}

fn unusable(file: &PemFile, why: &str, wanted: &'static str) -> ClientError {
    let PemFile { key, path } = file.clone();
    ClientError::File { key, path, why: why.to_owned(), wanted }
}

fn read(file: &PemFile, wanted: &'static str) -> Result<Vec<u8>, ClientError> {
    std::fs::read(&file.path).map_err(|error| unusable(file, &error.to_string(), wanted))
}

/// All in a file; one at least.
fn certificates(
    file: &PemFile,
    pem: &[u8],
    wanted: &'static str,
) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| unusable(file, &error.to_string(), wanted))?;
    if all.is_empty() {
        return Err(unusable(file, "there is no certificate in it", wanted));
    }
    Ok(all)
}

fn given(file: &PemFile, pem: &[u8]) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, pem, AUTHORITIES)? {
        roots.add(certificate).map_err(|error| unusable(file, &error.to_string(), AUTHORITIES))?;
    }
    Ok(roots)
}

/// The system's authorities. Those that do not parse are as good as absent; none at all is said.
fn system(target: &Target) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(|| "there is none".to_owned(), ToString::to_string);
        let text = format!(
            "no certificate authority of the system's can be read: {why}; name one by --otlp-certificate or OTEL_EXPORTER_OTLP_CERTIFICATE"
        );
        return Err(ClientError::refused(target, text));
    }
    Ok(roots)
}

/// For a target without TLS, where nothing of it is used.
pub(super) fn none() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}
