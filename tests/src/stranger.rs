//! Somebody who speaks the protocol by hand, and so can break its rules.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tegata_proto::code::Code;
use tegata_proto::encoding::{Bytes, Secret, Sha256};
use tegata_proto::id::LinkNumber;
use tegata_proto::key::PublicKey;
use tegata_proto::login::{
    AgentMessage, BrokerMessage, Hello, Password, TicketAnswer, Transaction,
};
use tegata_proto::proof::{EXPORTER_LABEL, EXPORTER_LEN, Purpose, signed_bytes};
use tegata_proto::session::{self, Attach, Channel, GatewayMessage, Open, Resume, Right};
use tegata_proto::{ALPN_LOGIN, ALPN_SESSION, frame};

/// How often a connection that says nothing shows that it is there, as an agent's
/// does.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long the other side may be silent; as long as a server bears it.
const IDLE: Duration = Duration::from_mins(1);

/// How much may be sent ahead of a reader, in bytes: more than a server should
/// keep for one.
const WINDOW: u32 = 4 * 1024 * 1024;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(20);

/// Where a stranger calls from.
pub const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A pair of keys.
pub struct Keys(Ed25519KeyPair);

/// One connection with its control stream.
pub struct Line {
    _endpoint: quinn::Endpoint,
    /// The connection.
    pub connection: quinn::Connection,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
}

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

impl Line {
    /// Connects without asking who answers.
    ///
    /// # Errors
    ///
    /// When nobody takes the connection.
    pub async fn open(to: SocketAddr, alpn: &[u8]) -> Result<Self> {
        Self::open_from(Ipv4Addr::LOCALHOST, to, alpn).await
    }

    /// The same from another address of this machine.
    ///
    /// # Errors
    ///
    /// When nobody takes the connection.
    pub async fn open_from(from: Ipv4Addr, to: SocketAddr, alpn: &[u8]) -> Result<Self> {
        let mut transport = quinn::TransportConfig::default();
        transport
            .stream_receive_window(WINDOW.into())
            .keep_alive_interval(Some(KEEP_ALIVE))
            .max_idle_timeout(Some(IDLE.try_into()?));
        let mut config = quinn::ClientConfig::new(Arc::new(credulous(&[alpn])?));
        config.transport_config(Arc::new(transport));
        Self::open_with(config, from, to).await
    }

    /// Connects from an address of this machine, in a way of its own.
    ///
    /// # Errors
    ///
    /// When nobody takes the connection.
    pub async fn open_with(
        config: quinn::ClientConfig,
        from: Ipv4Addr,
        to: SocketAddr,
    ) -> Result<Self> {
        let endpoint = quinn::Endpoint::client(SocketAddr::from((from, 0)))?;
        let connection = endpoint.connect_with(config, to, "tegata")?.await?;
        let (send, receive) = connection.open_bi().await?;
        Ok(Self { _endpoint: endpoint, connection, send, receive })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.send.write_all(bytes).await?)
    }

    /// Ends the stream, in order or not.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
    pub fn end(&mut self, in_order: bool) -> Result<()> {
        if in_order { Ok(self.send.finish()?) } else { Ok(self.send.reset(0_u32.into())?) }
    }

    /// Returns the exporter that proofs on this connection are bound to.
    ///
    /// # Errors
    ///
    /// When TLS has none.
    pub fn exporter(&self) -> Result<[u8; EXPORTER_LEN]> {
        let mut exporter = [0; EXPORTER_LEN];
        let done = self.connection.export_keying_material(&mut exporter, EXPORTER_LABEL, b"");
        done.ok().context("no exporter")?;
        Ok(exporter)
    }

    /// Sends one frame.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
    pub async fn say<M: Serialize>(&mut self, message: &M) -> Result<()> {
        Ok(self.send.write_all(&frame::write(message, frame::LIMIT_AFTER)?).await?)
    }

    /// Opens the stream that carries the desktop, after `attached`.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
    pub async fn desktop(&self) -> Result<(quinn::SendStream, quinn::RecvStream)> {
        let (mut send, receive) = self.connection.open_bi().await?;
        let open = frame::write(&Open { channel: Channel::Rdp }, frame::LIMIT_AFTER)?;
        send.write_all(&open).await?;
        Ok((send, receive))
    }

    /// Takes leave, waits until that has arrived, and closes.
    ///
    /// # Errors
    ///
    /// When the connection is lost before.
    pub async fn bye(mut self, code: Code) -> Result<()> {
        self.say(&session::AgentMessage::Bye { code }).await?;
        self.send.finish()?;
        tokio::time::timeout(ANSWER, self.send.stopped()).await??;
        self.connection.close(0_u32.into(), b"");
        Ok(())
    }

    /// Receives one frame.
    ///
    /// # Errors
    ///
    /// When none comes in time.
    pub async fn hear<M: DeserializeOwned>(&mut self) -> Result<M> {
        Ok(frame::read(&self.hear_bytes().await?)?)
    }

    /// Receives one frame as it is on the wire, its length left out.
    ///
    /// # Errors
    ///
    /// When none comes in time.
    pub async fn hear_bytes(&mut self) -> Result<Vec<u8>> {
        tokio::time::timeout(ANSWER, async {
            let mut decoder = frame::Decoder::new();
            loop {
                let mut byte = vec![0; decoder.wanted(frame::LIMIT_AFTER)?];
                self.receive.read_exact(&mut byte).await?;
                if let Some(body) = decoder.take(&mut &byte[..], frame::LIMIT_AFTER)? {
                    return Ok(body);
                }
            }
        })
        .await?
    }
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
    let mut line = Line::open(to, ALPN_SESSION).await?;
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
