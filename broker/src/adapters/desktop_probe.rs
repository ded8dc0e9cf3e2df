//! Looks at a desktop over its own protocol.
//!
//! For RDP: X.224 negotiation (MS-RDPBCGR §2.2.1.1, §2.2.1.2), then a TLS
//! handshake, then the certificate. Nothing is sent beyond that. The handshake's
//! signature is checked, so the desktop holds the key of what it shows; whether
//! it is the right certificate is decided by its pin.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tegata_domain::desktop::Probe;
use tegata_proto::encoding::Sha256;
use tegata_proto::policy::{Protocol, Security};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::ports::prober::Prober;
use crate::ports::store::ProbeTarget;

/// How long one probe may take, from connect to certificate.
pub const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// Looks at desktops over the network.
pub struct DesktopProbe {
    tls: TlsConnector,
}

impl DesktopProbe {
    /// Prepares the handshakes.
    ///
    /// # Errors
    ///
    /// The provider offers no TLS version.
    pub fn new(provider: Arc<CryptoProvider>) -> Result<Self, rustls::Error> {
        let verifier = Arc::new(AnyCertificate(Arc::clone(&provider)));
        // Desktops are not ours: many still speak TLS 1.2 only.
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.enable_sni = false;
        Ok(Self { tls: TlsConnector::from(Arc::new(config)) })
    }

    async fn certificate(&self, target: &ProbeTarget) -> std::io::Result<Sha256> {
        let mut stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let wanted = match target.security {
            Some(Security::Nla) => PROTOCOL_HYBRID,
            Some(Security::Tls) | None => PROTOCOL_SSL,
        };
        stream.write_all(&connection_request(wanted)).await?;
        let mut confirm = [0; CONFIRM_LEN];
        stream.read_exact(&mut confirm).await?;
        if selected_protocol(&confirm) != Some(wanted) {
            return Err(std::io::Error::other("the desktop does not offer its pool's security"));
        }
        let name = ServerName::IpAddress(target.address.ip().into());
        let stream = self.tls.connect(name, stream).await?;
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.ok_or_else(|| std::io::Error::other("no certificate"))?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        let digest = digest.as_ref().try_into().map_err(std::io::Error::other)?;
        Ok(Sha256(digest))
    }
}

#[async_trait]
impl Prober for DesktopProbe {
    async fn full(&self, target: &ProbeTarget) -> Probe {
        match target.protocol {
            Protocol::Tcp if self.connect(target).await => Probe::Answered(None),
            Protocol::Tcp => Probe::Failed,
            Protocol::Rdp => {
                let seen = tokio::time::timeout(PROBE_LIMIT, self.certificate(target)).await;
                match seen.map_err(std::io::Error::from).flatten() {
                    Ok(certificate) => Probe::Answered(Some(certificate)),
                    Err(error) => {
                        tracing::debug!(desktop = %target.name, %error, "Desktop not ready");
                        Probe::Failed
                    }
                }
            }
        }
    }

    async fn connect(&self, target: &ProbeTarget) -> bool {
        let connected = tokio::time::timeout(PROBE_LIMIT, TcpStream::connect(target.address)).await;
        match connected.map_err(std::io::Error::from).flatten() {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(desktop = %target.name, %error, "Desktop not ready");
                false
            }
        }
    }
}

/// `requestedProtocols` and `selectedProtocol`: TLS.
const PROTOCOL_SSL: u32 = 1;
/// The same: `CredSSP`.
const PROTOCOL_HYBRID: u32 = 2;

/// TPKT header 4, X.224 header 7, negotiation 8.
const CONFIRM_LEN: usize = 19;

/// MS-RDPBCGR §2.2.1.1, without cookie.
fn connection_request(protocol: u32) -> [u8; 19] {
    let [p0, p1, p2, p3] = protocol.to_le_bytes();
    [3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, p0, p1, p2, p3]
}

/// MS-RDPBCGR §2.2.1.2: `selectedProtocol` of a `RDP_NEG_RSP`, if it is one.
fn selected_protocol(confirm: &[u8; CONFIRM_LEN]) -> Option<u32> {
    let framed = confirm[..4] == [3, 0, 0, 19] && confirm[4] == 14 && confirm[5] == 0xd0;
    let response = confirm[11] == 2 && confirm[13..15] == [8, 0];
    let [.., p0, p1, p2, p3] = *confirm;
    (framed && response).then(|| u32::from_le_bytes([p0, p1, p2, p3]))
}

/// Takes any certificate whose key the peer holds; the pin decides later.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
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
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_negotiation_response_selects_a_protocol() {
        let good = [3, 0, 0, 19, 14, 0xd0, 0, 0, 0x12, 0x34, 0, 2, 0, 8, 0, 1, 0, 0, 0];
        assert_eq!(selected_protocol(&good), Some(PROTOCOL_SSL));
        let mut standard = good;
        standard[15] = 0;
        assert_eq!(selected_protocol(&standard), Some(0), "standard RDP security");
        for at in [0, 3, 4, 5, 11, 13] {
            let mut bad = good;
            bad[at] ^= 0x40;
            assert_eq!(selected_protocol(&bad), None, "byte {at}");
        }
    }
}
