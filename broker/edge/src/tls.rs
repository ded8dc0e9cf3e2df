//! TLS 1.3 as both servers speak it, and which certificate a client is shown.
//!
//! The client's ALPN names the role it wants to talk to, and each role has a
//! certificate of its own. An offer that names none of our roles, or more than
//! one, is refused: it could not be told which certificate to show.

mod certificate;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

pub use certificate::{CertificateError, Party, RoleCertificate, keep_fresh};

/// The cryptography that every connection of ours uses: aws-lc-rs, with the
/// suite first that costs least on the machines we run on.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
}

/// Builds the server's side for the given roles, each an ALPN and a certificate.
///
/// # Errors
///
/// Passes on what rustls objects to.
pub(crate) fn server_config(
    roles: Vec<(&'static [u8], Arc<RoleCertificate>)>,
) -> Result<rustls::ServerConfig, rustls::Error> {
    let protocols = roles.iter().map(|(alpn, _)| alpn.to_vec()).collect();
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(RoleResolver { roles }));
    config.alpn_protocols = protocols;
    // The server's choice of suite, not the client's.
    config.ignore_client_order = true;
    // No tickets and no 0-RTT: each connection is a whole handshake,
    // so a proof of possession is never older than its connection.
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

#[derive(Debug)]
struct RoleResolver {
    roles: Vec<(&'static [u8], Arc<RoleCertificate>)>,
}

impl ResolvesServerCert for RoleResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let ours = |offer: &[u8]| self.roles.iter().find(|(alpn, _)| *alpn == offer);
        let mut wanted = hello.alpn()?.filter_map(ours);
        let (_, certificate) = wanted.next()?;
        match wanted.next() {
            None => Some(certificate.certified()),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConfig, ClientConnection, PeerIncompatible, RootCertStore};

    use super::*;

    #[test]
    fn tls_1_2_is_not_spoken() {
        let server = server_config(Vec::new()).unwrap();
        let mut server = rustls::ServerConnection::new(Arc::new(server)).unwrap();
        let old = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = "localhost".try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(old), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        server.read_tls(&mut &hello[..]).unwrap();
        let refused = server.process_new_packets().unwrap_err();
        let old = rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled);
        assert_eq!(refused, old);
    }

    #[test]
    fn the_cheapest_suite_comes_first() {
        let suites = provider().cipher_suites.clone();
        assert_eq!(suites[0].suite(), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert!(suites.iter().all(|suite| suite.tls13().is_some()));
    }
}
