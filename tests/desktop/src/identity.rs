//! The certificate and key an embedded desktop shows.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use crate::fingerprint::Fingerprint;

/// A certificate with its private key.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Makes a new self-signed certificate for `name`.
    ///
    /// # Errors
    ///
    /// Refuses a name that cannot stand in a certificate.
    pub fn self_signed(name: &str) -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()])
            .with_context(|| format!("cannot make a certificate for {name}"))?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
            .map_err(|reason| anyhow::anyhow!("cannot use the new key: {reason}"))?;
        Ok(Self { certificate: made.cert.into(), key })
    }

    /// Reads a certificate and its key from two PEM files.
    ///
    /// # Errors
    ///
    /// Fails when a file cannot be read or holds something else.
    pub fn read(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            certificate: CertificateDer::from_pem_file(certificate)
                .with_context(|| format!("cannot read {}", certificate.display()))?,
            key: PrivateKeyDer::from_pem_file(key)
                .with_context(|| format!("cannot read {}", key.display()))?,
        })
    }

    /// Returns what a viewer has to pin.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Returns the TLS side of the desktop.
    ///
    /// # Errors
    ///
    /// Refuses a key that is not the certificate's.
    pub fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
            .context("cannot use the certificate with this key")?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Returns the public key that network level authentication binds to.
    ///
    /// # Errors
    ///
    /// Refuses a certificate that cannot be read.
    pub fn public_key(&self) -> anyhow::Result<Vec<u8>> {
        public_key(&self.certificate).context("cannot read the certificate")
    }
}

/// Returns the bits of the subject's public key, to which network level authentication binds
/// (MS-CSSP 3.1.5), or nothing if the certificate cannot be read.
pub fn public_key(certificate: &[u8]) -> Option<Vec<u8>> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let key = certificate.tbs_certificate.subject_public_key_info.subject_public_key;
    key.as_bytes().map(<[u8]>::to_vec)
}
