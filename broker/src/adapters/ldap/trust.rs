//! Whom a directory server's certificate is believed from. There is no way to
//! believe it unseen.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

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

    /// Returns how a server's certificate is checked: for the host that it is
    /// reached as, or for this address, whatever the host is called.
    pub(super) fn client_config(&self, address: Option<Ipv6Addr>) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3");
        let Some(address) = address else {
            let roots = Arc::clone(&self.0);
            return Arc::new(builder.with_root_certificates(roots).with_no_client_auth());
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.0), provider)
            .build()
            .expect("there is an authority, and no list of revocations to be wrong");
        let address = ServerName::IpAddress(IpAddr::V6(address).into());
        let mut config = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AtAddress { verifier, address }))
            .with_no_client_auth();
        config.enable_sni = false;
        Arc::new(config)
    }
}

/// Checks certificates as always, but for an address in place of the host's name.
#[derive(Debug)]
struct AtAddress {
    verifier: Arc<WebPkiServerVerifier>,
    address: ServerName<'static>,
}

impl ServerCertVerifier for AtAddress {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _named: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let address = &self.address;
        self.verifier.verify_server_cert(end_entity, intermediates, address, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
