//! Certificates and keys out of files, and what rustls makes of them.
//!
//! Both protocols come through here, though tonic wants PEM and makes its own of it: so what is wrong with a file is said before anything is
//! sent, in the same words, with the flag or variable that names it.

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, InconsistentKeys};

use super::super::config::{PemFile, Target};
use super::ClientError;
use crate::tls::{self, TlsError};

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
        let authorities = target.certificate.as_ref().map(|file| read(file, AUTHORITIES)).transpose()?;
        let roots = match (&target.certificate, &authorities) {
            (Some(file), Some(pem)) => {
                tls::roots(pem).map_err(|error| unusable(file, &error.to_string(), AUTHORITIES))?
            }
            _ => tls::system_roots().map_err(|error| no_authority(target, &error))?,
        };
        let config = tls::believing(roots).map_err(|error| ClientError::refused(target, error))?;
        let Some((certificate_file, key_file)) = &target.client else {
            return Ok(Self { authorities, client: None, config: config.with_no_client_auth() });
        };
        let (certificate_pem, key_pem) = (read(certificate_file, CERTIFICATE)?, read(key_file, KEY)?);
        let certificates = tls::certificates(&certificate_pem)
            .map_err(|error| unusable(certificate_file, &error.to_string(), CERTIFICATE))?;
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

fn no_authority(target: &Target, error: &TlsError) -> ClientError {
    let way_out = "name one by --otlp-certificate or OTEL_EXPORTER_OTLP_CERTIFICATE";
    ClientError::refused(target, format!("{error}; {way_out}"))
}
