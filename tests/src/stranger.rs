//! Somebody who speaks the protocol by hand, and so can break its rules.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tegata_proto::code::Code;
use tegata_proto::encoding::{Bytes, Secret, Sha256};
use tegata_proto::id::LinkNumber;
use tegata_proto::key::PublicKey;
use tegata_proto::login::{
    AgentMessage, BrokerMessage, Hello, Password, TicketAnswer, Transaction,
};
use tegata_proto::proof::{EXPORTER_LEN, Purpose, signed_bytes};
use tegata_proto::session::{self, Attach, GatewayMessage, Resume, Right};
use tegata_proto::{ALPN_LOGIN, ALPN_SESSION, frame};

mod line;

pub use self::line::{Ended, Line, Receive, Send, Transport};

/// Where a stranger calls from.
pub const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A pair of keys.
pub struct Keys(Ed25519KeyPair);

impl Keys {
    /// Makes new ones.
    ///
    /// # Errors
    ///
    /// The machine has no random bytes.
    pub fn generate() -> Result<Self> {
        Ok(Self(Ed25519KeyPair::generate()?))
    }

    /// Returns the public half.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        PublicKey::new(bytes)
    }

    /// Signs a proof.
    pub fn prove(
        &self,
        purpose: Purpose,
        exporter: &[u8; EXPORTER_LEN],
        link: LinkNumber,
    ) -> Bytes<64> {
        let mut proof = [0; 64];
        proof.copy_from_slice(self.0.sign(&signed_bytes(purpose, exporter, link)).as_ref());
        Bytes(proof)
    }
}

/// Returns the purpose of a proof that goes with a ticket.
pub fn ticket_purpose(ticket: &Secret) -> Purpose {
    Purpose::Ticket(sha256(ticket))
}

/// Returns the purpose of a proof that goes with a grant.
pub fn grant_purpose(grant: &Secret) -> Purpose {
    Purpose::Resume(sha256(grant))
}

fn sha256(token: &Secret) -> Sha256 {
    let mut sha256 = Sha256([0; 32]);
    sha256.0.copy_from_slice(digest(&SHA256, token.expose().as_bytes()).as_ref());
    sha256
}

/// Returns the TLS of a client that believes anybody.
///
/// # Errors
///
/// When TLS cannot be set up.
pub fn credulous(alpns: &[&[u8]]) -> Result<QuicClientConfig> {
    Ok(QuicClientConfig::try_from(credulous_tls(alpns)?)?)
}

/// Returns the same, to be changed before it is used.
///
/// # Errors
///
/// When TLS cannot be set up.
pub fn credulous_tls(alpns: &[&[u8]]) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let anybody = Arc::new(Anybody(Arc::clone(&provider)));
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(anybody)
        .with_no_client_auth();
    tls.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    Ok(tls)
}

/// Logs in by hand and returns the answer.
///
/// # Errors
///
/// When the broker refuses.
pub async fn ticket(
    to: SocketAddr,
    keys: &Keys,
    name: &str,
    password: &str,
) -> Result<TicketAnswer> {
    match login(to, keys, name, password).await? {
        BrokerMessage::Ticket(answer) => Ok(*answer),
        other => bail!("{other:?}"),
    }
}

/// Logs in by hand and returns the last frame.
///
/// # Errors
///
/// When the conversation breaks off.
pub async fn login(
    to: SocketAddr,
    keys: &Keys,
    name: &str,
    password: &str,
) -> Result<BrokerMessage> {
    login_over(&mut Line::open(to, ALPN_LOGIN).await?, keys, name, password).await
}

/// Logs in over a line of one's own and returns the last frame.
///
/// # Errors
///
/// When the conversation breaks off.
pub async fn login_over(
    line: &mut Line,
    keys: &Keys,
    name: &str,
    password: &str,
) -> Result<BrokerMessage> {
    let txn = hello(line, keys).await?;
    say_password(line, txn, name, password).await
}

/// Says who it is, once welcome, and returns the last frame.
///
/// # Errors
///
/// When the conversation breaks off.
pub async fn say_password(
    line: &mut Line,
    txn: Transaction,
    name: &str,
    password: &str,
) -> Result<BrokerMessage> {
    let (name, password) = (name.to_owned(), Secret::new(password));
    line.say(&AgentMessage::Password(Password { txn, realm: None, name, password })).await?;
    loop {
        match line.hear().await? {
            BrokerMessage::Pools { .. }
            | BrokerMessage::Queued { .. }
            | BrokerMessage::Progress { .. } => {}
            last => return Ok(last),
        }
    }
}

/// The last frame of a login from an address, as it is on the wire, and how long
/// it took from the password on.
pub struct Tried {
    /// The frame.
    pub bytes: Vec<u8>,
    /// From the password to the frame.
    pub took: Duration,
}

impl Tried {
    /// Returns the code, or nothing where there was a ticket.
    ///
    /// # Errors
    ///
    /// When the frame is neither.
    pub fn code(&self) -> Result<Option<Code>> {
        match frame::read(&self.bytes)? {
            BrokerMessage::Error(failure) => Ok(Some(failure.code)),
            BrokerMessage::Ticket(_) => Ok(None),
            other => bail!("{other:?}"),
        }
    }
}

/// Tries a password from an address of this machine.
///
/// # Errors
///
/// When the conversation breaks off.
pub async fn try_from(from: Ipv4Addr, to: SocketAddr, name: &str, password: &str) -> Result<Tried> {
    let mut line = Line::open_from(from, to, ALPN_LOGIN).await?;
    let txn = hello(&mut line, &Keys::generate()?).await?;
    let (name, password) = (name.to_owned(), Secret::new(password));
    let message = AgentMessage::Password(Password { txn, realm: None, name, password });
    let began = Instant::now();
    line.say(&message).await?;
    loop {
        let bytes = line.hear_bytes().await?;
        let took = began.elapsed();
        match frame::read(&bytes)? {
            BrokerMessage::Pools { .. }
            | BrokerMessage::Queued { .. }
            | BrokerMessage::Progress { .. } => {}
            _last => return Ok(Tried { bytes, took }),
        }
    }
}

/// Says hello and returns the transaction.
///
/// # Errors
///
/// When the broker does not welcome.
pub async fn hello(line: &mut Line, keys: &Keys) -> Result<Transaction> {
    let proof = keys.prove(Purpose::Login, &line.exporter()?, LinkNumber::LOGIN);
    line.say(&AgentMessage::Hello(Hello {
        v: 1,
        agent_version: "0.1.0".to_owned(),
        locale: "ja".to_owned(),
        device_id: None,
        key: keys.public(),
        proof,
    }))
    .await?;
    match line.hear().await? {
        BrokerMessage::Welcome(welcome) => Ok(welcome.txn),
        other => bail!("{other:?}"),
    }
}

/// Attaches by the rules and returns the gateway's answer, with the line.
///
/// # Errors
///
/// When the conversation breaks off.
pub async fn attach(
    to: SocketAddr,
    keys: &Keys,
    ticket: &Secret,
    number: u64,
) -> Result<(GatewayMessage, Line)> {
    let line = Line::open(to, ALPN_SESSION).await?;
    let number = LinkNumber(number);
    let proof = keys.prove(ticket_purpose(ticket), &line.exporter()?, number);
    attach_with(line, keys.public(), ticket, number, proof).await
}

/// Attaches with whatever proof, and returns the gateway's answer.
///
/// # Errors
///
/// When the conversation breaks off.
pub async fn attach_with(
    mut line: Line,
    key: PublicKey,
    ticket: &Secret,
    number: LinkNumber,
    proof: Bytes<64>,
) -> Result<(GatewayMessage, Line)> {
    let right = Right::Ticket(ticket.clone());
    let attach = Attach { v: 1, right, key, link: number, proof, resume: None };
    line.say(&session::AgentMessage::Attach(attach)).await?;
    Ok((line.hear().await?, line))
}

/// Comes back by a grant, to where the last link stopped if that is given, and
/// returns the gateway's answer, with the line.
///
/// # Errors
///
/// When the conversation breaks off.
pub async fn come_back(
    to: SocketAddr,
    keys: &Keys,
    grant: &Secret,
    number: u64,
    resume: Option<Resume>,
) -> Result<(GatewayMessage, Line)> {
    come_back_over(Line::open(to, ALPN_SESSION).await?, keys, grant, number, resume).await
}

/// The same over a line of one's own.
///
/// # Errors
///
/// When the conversation breaks off.
pub async fn come_back_over(
    mut line: Line,
    keys: &Keys,
    grant: &Secret,
    number: u64,
    resume: Option<Resume>,
) -> Result<(GatewayMessage, Line)> {
    let (right, number) = (Right::Grant(grant.clone()), LinkNumber(number));
    let proof = keys.prove(grant_purpose(grant), &line.exporter()?, number);
    let attach = Attach { v: 1, right, key: keys.public(), link: number, proof, resume };
    line.say(&session::AgentMessage::Attach(attach)).await?;
    Ok((line.hear().await?, line))
}

/// Takes any certificate.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

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
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 was not offered".into()))
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
