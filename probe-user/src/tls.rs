//! TLS as a client, with rustls and ring: whose certificates are believed.

use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Why there is nobody to believe.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The system has no authorities that can be read.
    #[error("no certificate authority of the system's can be read: {0}")]
    System(String),
    /// PEM without a certificate.
    #[error("there is no certificate in it")]
    Empty,
    /// PEM that does not parse.
    #[error("the certificates do not read: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// A certificate that is none.
    #[error(transparent)]
    Certificate(#[from] rustls::Error),
}

/// The system's authorities. Those that do not parse are as good as absent; none at all is said.
pub(crate) fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(|| "there is none".to_owned(), ToString::to_string);
        return Err(TlsError::System(why));
    }
    Ok(roots)
}

/// These authorities (PEM).
pub(crate) fn roots(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// All certificates of a file (PEM); one at least.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if all.is_empty() { Err(TlsError::Empty) } else { Ok(all) }
}

/// Whoever an authority of the system's vouches for.
pub(crate) fn trusting_the_system() -> Result<ClientConfig, TlsError> {
    Ok(believing(system_roots()?)?.with_no_client_auth())
}

/// Whoever one of these authorities (PEM) vouches for.
pub(crate) fn trusting(pem: &[u8]) -> Result<ClientConfig, TlsError> {
    Ok(believing(roots(pem)?)?.with_no_client_auth())
}

/// Nobody: for connections without TLS.
pub(crate) fn trusting_nobody() -> Result<ClientConfig, TlsError> {
    Ok(believing(RootCertStore::empty())?.with_no_client_auth())
}

/// Anybody, whatever the certificate. Only where somebody has said so.
pub(crate) fn trusting_anybody() -> Result<ClientConfig, TlsError> {
    let anybody = Arc::new(Anybody(provider()));
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(config.dangerous().with_custom_certificate_verifier(anybody).with_no_client_auth())
}

/// Whoever these authorities vouch for; what is still to be said is who probe is.
pub(crate) fn believing(
    roots: RootCertStore,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What an error says, and what the errors behind it add to that.
pub(crate) fn with_causes(said: &str, error: &dyn std::error::Error) -> String {
    let mut message = said.to_owned();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !message.contains(&cause_text) {
            message.push_str(": ");
            message.push_str(&cause_text);
        }
        source = cause.source();
    }
    message
}

/// Believes every certificate; that whoever shows it has its key is still checked.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
