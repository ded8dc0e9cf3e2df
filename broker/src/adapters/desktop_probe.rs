//! Looks at a desktop over its own protocol.
//!
//! For RDP: X.224 negotiation (MS-RDPBCGR §2.2.1.1, §2.2.1.2), then a TLS
//! handshake, then the certificate. Nothing is sent beyond that. The handshake's
//! signature is checked, so the desktop holds the key of what it shows; whether
//! it is the right certificate is decided by its pin.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tegata_domain::desktop::Probe;
use tegata_gateway::dial::{DialError, TargetPolicy, lacks_means};
use tegata_gateway::proof::sha256;
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
    targets: TargetPolicy,
    tls: TlsConnector,
}

impl DesktopProbe {
    /// Prepares the handshakes with desktops of this list; no other address is touched.
    ///
    /// # Errors
    ///
    /// The cryptography offers no TLS version.
    pub fn new(targets: TargetPolicy) -> Result<Self, rustls::Error> {
        // Desktops are not ours: many still speak TLS 1.2 only, for which our own
        // choice of suites has none.
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Arc::new(AnyCertificate(Arc::clone(&provider)));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.enable_sni = false;
        Ok(Self { targets, tls: TlsConnector::from(Arc::new(config)) })
    }

    async fn reach(&self, target: &ProbeTarget) -> io::Result<TcpStream> {
        self.targets.dial(target.address).await.map_err(|error| match error {
            DialError::Refused(error) | DialError::Exhausted(error) => error,
            DialError::NotAllowed | DialError::Silent => io::Error::other(error),
        })
    }

    async fn certificate(&self, target: &ProbeTarget) -> io::Result<Sha256> {
        let mut stream = self.reach(target).await?;
        let wanted = match target.security {
            Some(Security::Nla) => PROTOCOL_HYBRID,
            Some(Security::Tls) | None => PROTOCOL_SSL,
        };
        stream.write_all(&connection_request(wanted)).await?;
        let mut confirm = [0; CONFIRM_LEN];
        stream.read_exact(&mut confirm).await?;
        if selected_protocol(&confirm) != Some(wanted) {
            return Err(io::Error::other("the desktop does not offer its pool's security"));
        }
        let name = ServerName::IpAddress(target.address.ip().into());
        let stream = self.tls.connect(name, stream).await?;
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.ok_or_else(|| io::Error::other("no certificate"))?;
        Ok(sha256(certificate))
    }
}

#[async_trait]
impl Prober for DesktopProbe {
    async fn full(&self, target: &ProbeTarget) -> Option<Probe> {
        let certificate = async {
            match target.protocol {
                Protocol::Tcp => self.reach(target).await.map(|_| None),
                Protocol::Rdp => self.certificate(target).await.map(Some),
            }
        };
        match seen(target, certificate).await {
            Ok(certificate) => Some(Probe::Answered(certificate)),
            Err(failed) => failed,
        }
    }

    async fn connect(&self, target: &ProbeTarget) -> Option<Probe> {
        seen(target, self.reach(target)).await.err().flatten()
    }
}

/// Returns what is seen of a desktop in time, or what it means that nothing was.
async fn seen<T>(
    target: &ProbeTarget,
    looking: impl Future<Output = io::Result<T>>,
) -> Result<T, Option<Probe>> {
    let looked = tokio::time::timeout(PROBE_LIMIT, looking).await;
    looked.map_err(io::Error::from).flatten().map_err(|error| {
        tracing::debug!(desktop = %target.name, %error, "Desktop not ready");
        (!lacks_means(&error)).then_some(Probe::Failed)
    })
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
    use rcgen::{CertificateParams, KeyPair};
    use rustls::{ServerConfig, SupportedProtocolVersion, version};
    use tegata_gateway::dial::TargetRule;
    use tegata_proto::id::DesktopId;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A list of these addresses with all their ports.
    fn of(prefix: &str) -> TargetPolicy {
        TargetPolicy::new([TargetRule { prefix: prefix.parse().unwrap(), ports: 1..=u16::MAX }])
    }

    fn target(listener: &TcpListener, security: Security) -> ProbeTarget {
        ProbeTarget {
            desktop: DesktopId(uuid::Uuid::nil()),
            name: "keiri-0001".parse().unwrap(),
            address: listener.local_addr().unwrap(),
            protocol: Protocol::Rdp,
            security: Some(security),
            in_doubt: true,
        }
    }

    #[tokio::test]
    async fn what_is_not_in_the_list_is_never_connected_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = target(&listener, Security::Tls);
        let prober = DesktopProbe::new(of("127.0.0.2/32")).unwrap();
        assert_eq!(prober.full(&target).await, Some(Probe::Failed));
        assert_eq!(prober.connect(&target).await, Some(Probe::Failed));
        let came = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
        assert!(came.is_err(), "{came:?}");
    }

    /// What a probe finds of a desktop that answers with these bytes, then speaks
    /// TLS of this version; and the digest of the desktop's certificate.
    async fn probe(
        answer: &[u8],
        version: &'static SupportedProtocolVersion,
        security: Security,
    ) -> (Option<Probe>, Sha256) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["desktop".into()]).unwrap().self_signed(&key).unwrap();
        let digest = sha256(certificate.der());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                key.serialize_der().try_into().unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = target(&listener, security);
        let prober = DesktopProbe::new(of("127.0.0.1/32")).unwrap();
        let desktop = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 19];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(answer).await.unwrap();
            // A probe that does not like the answer leaves here.
            if let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await {
                let _ = stream.read(&mut [0]).await;
            }
        };
        let (found, ()) = tokio::join!(prober.full(&target), desktop);
        (found, digest)
    }

    #[tokio::test]
    async fn a_desktop_is_known_by_its_certificate_in_either_version_of_tls() {
        for version in [&version::TLS12, &version::TLS13] {
            let (found, certificate) = probe(&confirm(1), version, Security::Tls).await;
            assert_eq!(found, Some(Probe::Answered(Some(certificate))), "{version:?}");
        }
    }

    #[tokio::test]
    async fn a_desktop_that_chooses_other_security_than_its_pool_is_not_ready() {
        for (selected, security) in [(0, Security::Tls), (1, Security::Nla), (2, Security::Tls)] {
            let (found, _) = probe(&confirm(selected), &version::TLS13, security).await;
            assert_eq!(found, Some(Probe::Failed), "{selected} for {security:?}");
        }
        let (found, _) = probe(b"SSH-2.0-OpenSSH_9.2", &version::TLS13, Security::Tls).await;
        assert_eq!(found, Some(Probe::Failed), "no desktop at all");
    }

    fn confirm(selected: u8) -> [u8; CONFIRM_LEN] {
        [3, 0, 0, 19, 14, 0xd0, 0, 0, 0x12, 0x34, 0, 2, 0, 8, 0, selected, 0, 0, 0]
    }

    #[test]
    fn only_a_whole_negotiation_response_selects_a_protocol() {
        let good = confirm(1);
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
