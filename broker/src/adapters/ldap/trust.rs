//! Whom a directory server's certificate is believed from. There is no way to
//! believe it unseen.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::ports::directory::Cause;

/// The authorities whose certificates are believed.
#[derive(Debug, Clone)]
pub struct Trust(Arc<RootCertStore>);

/// Why no authority could be taken.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file is not a readable list of PEM certificates.
    #[error("{path} is no file of PEM certificates")]
    Unreadable {
        /// The file, as configured.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Cause,
    },
    /// There is no certificate of an authority to be had.
    #[error("no certificate of an authority is found")]
    Empty,
}

impl Trust {
    /// Believes the authorities of a PEM file and no others.
    ///
    /// # Errors
    ///
    /// Refuses a file that cannot be read, has none, or has a broken one.
    pub fn from_file(path: &Path) -> Result<Self, TrustError> {
        let unreadable = |source| TrustError::Unreadable { path: path.to_owned(), source };
        let mut roots = RootCertStore::empty();
        let certificates =
            CertificateDer::pem_file_iter(path).map_err(|e| unreadable(Box::new(e)))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|e| unreadable(Box::new(e)))?;
            roots.add(certificate).map_err(|e| unreadable(Box::new(e)))?;
        }
        if roots.is_empty() { Err(TrustError::Empty) } else { Ok(Self(Arc::new(roots))) }
    }

    /// Believes the authorities that the operating system does.
    ///
    /// # Errors
    ///
    /// Refuses a system without any.
    pub fn system() -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() { Err(TrustError::Empty) } else { Ok(Self(Arc::new(roots))) }
    }

    pub(super) fn client_config(&self) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .with_root_certificates(Arc::clone(&self.0))
            .with_no_client_auth();
        Arc::new(config)
    }
}
