//! Whom the agent believes.
//!
//! Only certificates of the one authority that the agent was given count, for
//! the one role that the connection is for: a broker at login; at a session the
//! very gateway, by name and key, that the ticket answer named. Host names and
//! the system's roots count for nothing.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tegata_proto::encoding::Sha256;
use tegata_proto::id::GatewayId;
use tegata_proto::{ALPN_LOGIN, ALPN_SESSION, URI_BROKER, URI_GATEWAY};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::identity::sha256;

/// Begins every URI that names a role of ours.
const URI_OURS: &str = "tegata:";

/// The certificates that sign those of our brokers and gateways.
#[derive(Clone)]
pub struct Authority {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

/// Why a file does not hold an authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The text is not PEM.
    #[error("not PEM")]
    NotPem(#[source] rustls::pki_types::pem::Error),
    /// The text holds no certificate.
    #[error("no certificate in it")]
    Empty,
    /// A certificate cannot be an authority's.
    #[error("certificate {number} cannot be used")]
    Unusable {
        /// Which one, from 1.
        number: usize,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// Whom a connection must lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Any broker of the authority.
    Broker,
    /// Any gateway of the authority: to look at it. No session is opened there.
    AnyGateway,
    /// The one gateway with this name and this key.
    Gateway {
        /// The name in its certificate.
        id: GatewayId,
        /// SHA-256 of its `SubjectPublicKeyInfo`.
        spki_sha256: Sha256,
    },
}

/// Why a peer's certificate was not believed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Distrust {
    /// It is not one of the authority's.
    #[error("the certificate is not one of our authority's")]
    Authority(#[source] rustls::Error),
    /// It is, but not for the time that this machine's clock shows; the clock is
    /// the first thing to look at.
    #[error("the certificate does not hold at {now}, the time of this clock, but {validity}")]
    Clock {
        /// The clock, in Unix seconds.
        now: u64,
        /// When the certificate holds.
        validity: Validity,
    },
    /// It is, but of another role or another name.
    #[error("the certificate is not that of {wanted}")]
    Role {
        /// The role, and the name if it matters.
        wanted: String,
    },
    /// It has the right name but another key than the broker announced.
    #[error("the certificate's key is not the one that the broker announced")]
    Key,
}

/// The end of a certificate's time that the clock is beyond, in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// It begins to hold only then.
    From(u64),
    /// It held until then.
    Until(u64),
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(time) => write!(f, "from {time}"),
            Self::Until(time) => write!(f, "until {time}"),
        }
    }
}

impl Authority {
    /// Reads the authority's certificates.
    ///
    /// # Errors
    ///
    /// Refuses a text without a usable certificate, and one with an unusable.
    pub fn from_pem(pem: &[u8]) -> Result<Self, AuthorityError> {
        let mut roots = RootCertStore::empty();
        for (at, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
            roots
                .add(certificate.map_err(AuthorityError::NotPem)?)
                .map_err(|source| AuthorityError::Unusable { number: at + 1, source })?;
        }
        if roots.is_empty() {
            return Err(AuthorityError::Empty);
        }
        // AES-128 first: the cheapest on a server that carries many sessions.
        let cipher_suites = vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        let provider = CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() };
        Ok(Self { roots: Arc::new(roots), provider: Arc::new(provider) })
    }

    /// Returns the TLS side of one connection to `expected`, and where its
    /// verdict will be.
    pub(crate) fn client(
        &self,
        expected: Expected,
    ) -> Result<(ClientConfig, Arc<OnceLock<Distrust>>), rustls::Error> {
        let alpn = match expected {
            Expected::Broker => ALPN_LOGIN,
            Expected::AnyGateway | Expected::Gateway { .. } => ALPN_SESSION,
        };
        let verdict = Arc::new(OnceLock::new());
        let verifier =
            Verifier { authority: self.clone(), expected, verdict: Arc::clone(&verdict) };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        Ok((config, verdict))
    }

    /// Decides whether a peer is the one expected, at `now`.
    ///
    /// # Errors
    ///
    /// Says why it is not.
    pub fn judge(
        &self,
        expected: &Expected,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Distrust> {
        let parsed = ParsedCertificate::try_from(end_entity).map_err(Distrust::Authority)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )
        .map_err(|error| match error {
            rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
                time,
                not_after,
            }) => Distrust::Clock {
                now: time.as_secs(),
                validity: Validity::Until(not_after.as_secs()),
            },
            rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
                time,
                not_before,
            }) => Distrust::Clock {
                now: time.as_secs(),
                validity: Validity::From(not_before.as_secs()),
            },
            other => Distrust::Authority(other),
        })?;
        expected.names(end_entity)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("roots", &self.roots.len()).finish_non_exhaustive()
    }
}

impl Expected {
    /// Decides whether a certificate, already believed, has the role, the name
    /// and the key.
    fn names(&self, end_entity: &CertificateDer<'_>) -> Result<(), Distrust> {
        let wrong_role = || Distrust::Role { wanted: self.to_string() };
        let (rest, certificate) =
            X509Certificate::from_der(end_entity).map_err(|_| wrong_role())?;
        if !rest.is_empty() {
            return Err(wrong_role());
        }
        let names = certificate.subject_alternative_name().map_err(|_| wrong_role())?;
        let mut ours = names.iter().flat_map(|names| &names.value.general_names).filter_map(
            |name| match name {
                GeneralName::URI(uri) if uri.starts_with(URI_OURS) => Some(*uri),
                _ => None,
            },
        );
        // A certificate of two roles is a certificate of none.
        let (Some(uri), None) = (ours.next(), ours.next()) else { return Err(wrong_role()) };
        match self {
            Self::Broker => {
                let id = uri.strip_prefix(URI_BROKER).ok_or_else(wrong_role)?;
                if id.is_empty() { Err(wrong_role()) } else { Ok(()) }
            }
            Self::AnyGateway => {
                let id = uri.strip_prefix(URI_GATEWAY).ok_or_else(wrong_role)?;
                GatewayId::new(id).map(drop).map_err(|_| wrong_role())
            }
            Self::Gateway { id, spki_sha256 } => {
                if uri.strip_prefix(URI_GATEWAY) != Some(id.as_str()) {
                    return Err(wrong_role());
                }
                let key = sha256(certificate.public_key().raw);
                if key == *spki_sha256 { Ok(()) } else { Err(Distrust::Key) }
            }
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker => f.write_str("a broker"),
            Self::AnyGateway => f.write_str("a gateway"),
            Self::Gateway { id, .. } => write!(f, "gateway {id}"),
        }
    }
}

/// Returns the SHA-256 of a certificate's `SubjectPublicKeyInfo`.
pub(crate) fn key_of(certificate: &CertificateDer<'_>) -> Option<Sha256> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(sha256(certificate.public_key().raw))
}

/// Answers rustls, and keeps the reason for the person.
#[derive(Debug)]
struct Verifier {
    authority: Authority,
    expected: Expected,
    verdict: Arc<OnceLock<Distrust>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.authority.judge(&self.expected, end_entity, intermediates, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(distrust) => {
                // One verifier serves one connection; a second verdict is the same.
                let _ = self.verdict.set(distrust);
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.authority.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authority.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::office::{Ca, Leaf};

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_900_000_000))
    }

    fn judge(ca: &Ca, expected: &Expected, leaf: &Leaf) -> Result<(), Distrust> {
        let authority = Authority::from_pem(ca.pem().as_bytes()).expect("a CA");
        authority.judge(expected, &leaf.certificate, &[], now())
    }

    fn gateway(id: &str, spki_sha256: Sha256) -> Expected {
        Expected::Gateway { id: GatewayId::new(id).expect("a name"), spki_sha256 }
    }

    fn is_role(result: &Result<(), Distrust>) -> bool {
        matches!(result, Err(Distrust::Role { .. }))
    }

    #[test]
    fn a_login_believes_a_broker_of_our_authority_and_no_one_else() {
        let (ours, theirs) = (Ca::new(), Ca::new());
        let broker = ours.issue(&["tegata:broker/b1"]);
        assert_eq!(judge(&ours, &Expected::Broker, &broker), Ok(()));
        let stranger = theirs.issue(&["tegata:broker/b1"]);
        let judged = judge(&ours, &Expected::Broker, &stranger);
        assert!(matches!(judged, Err(Distrust::Authority(_))), "{judged:?}");
        for other in [
            &["tegata:gateway/g1"][..],
            &["tegata:broker/"],
            &["tegata:brokers/b1"],
            &["https://broker.example/"],
            &[],
            &["tegata:broker/b1", "tegata:gateway/g1"],
        ] {
            assert!(is_role(&judge(&ours, &Expected::Broker, &ours.issue(other))), "{other:?}");
        }
    }

    #[test]
    fn a_session_believes_the_announced_gateway_and_no_one_else() {
        let ca = Ca::new();
        let leaf = ca.issue(&["tegata:gateway/g1"]);
        let spki = leaf.spki_sha256();
        assert_eq!(judge(&ca, &gateway("g1", spki), &leaf), Ok(()));
        assert!(is_role(&judge(&ca, &gateway("g2", spki), &leaf)), "another name");
        assert_eq!(judge(&ca, &gateway("g1", Sha256([0; 32])), &leaf), Err(Distrust::Key));
        let broker = ca.issue(&["tegata:broker/g1"]);
        assert!(is_role(&judge(&ca, &gateway("g1", broker.spki_sha256()), &broker)));
        let stranger = Ca::new().issue(&["tegata:gateway/g1"]);
        let judged = judge(&ca, &gateway("g1", stranger.spki_sha256()), &stranger);
        assert!(matches!(judged, Err(Distrust::Authority(_))), "{judged:?}");
    }

    #[test]
    fn a_certificate_out_of_its_time_points_at_the_clock() {
        let ca = Ca::new();
        let leaf = ca.issue_for_years(&["tegata:broker/b1"], 2020, 2021);
        let judged = judge(&ca, &Expected::Broker, &leaf);
        let until = Validity::Until(1_609_459_200);
        let clock = |validity| Err(Distrust::Clock { now: 1_900_000_000, validity });
        assert_eq!(judged, clock(until), "until 2021-01-01");
        let leaf = ca.issue_for_years(&["tegata:broker/b1"], 2039, 2040);
        let judged = judge(&ca, &Expected::Broker, &leaf);
        assert_eq!(judged, clock(Validity::From(2_177_452_800)), "from 2039-01-01");
    }

    #[test]
    fn a_file_without_an_authority_is_refused() {
        assert!(matches!(Authority::from_pem(b""), Err(AuthorityError::Empty)));
        let broken = b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
        assert!(matches!(Authority::from_pem(broken), Err(AuthorityError::NotPem(_))));
        let empty = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(
            Authority::from_pem(empty),
            Err(AuthorityError::Unusable { number: 1, .. })
        ));
    }
}
