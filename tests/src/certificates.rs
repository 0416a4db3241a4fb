//! Certificates for tests, made as they are needed: no authority of the system's is asked.

use std::sync::Arc;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio_rustls::rustls::{
    self, ServerConfig,
    pki_types::pem::PemObject as _,
    pki_types::{CertificateDer, PrivateKeyDer},
};

/// An authority, with its own certificate.
pub struct Authority {
    /// It.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A certificate and its key, as PEM.
#[derive(Debug)]
pub struct Identity {
    /// The certificate.
    pub pem: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// One of this name.
    ///
    /// # Errors
    ///
    /// No key can be made.
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    /// A certificate for a host (a name or an address), from 2000 to the begin of that year.
    ///
    /// # Errors
    ///
    /// No key can be made, or a name that is none.
    pub fn sign(&self, name: &str, last_year: i32) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(last_year, 1, 1);
        let pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity { pem, key: key.serialize_pem() })
    }
}

impl Identity {
    /// Of a server that shows this and asks nobody who they are.
    ///
    /// # Errors
    ///
    /// It does not read.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config.with_safe_default_protocol_versions()?.with_no_client_auth();
        let certificate = CertificateDer::from_pem_slice(self.pem.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())?;
        Ok(Arc::new(config.with_single_cert(vec![certificate], key)?))
    }
}
