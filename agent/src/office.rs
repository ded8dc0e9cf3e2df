//! For tests: an authority, and brokers and gateways that do as a test says.

mod desk;
mod guest;
mod wire;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, TokioRuntime, TransportConfig};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PublicKeyData as _,
    SanType, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tegata_proto::encoding::{Bytes, Secret, Sha256};
use tegata_proto::frame::{LIMIT_AFTER, LIMIT_BEFORE};
use tegata_proto::id::{
    GatewayId, Incarnation, LinkNumber, PoolName, RealmName, SeatName, SessionId,
};
use tegata_proto::key::PublicKey;
use tegata_proto::login::{
    self, BrokerMessage, Desktop, Gateway, Method, OfferState, Phase, PoolOffer, TicketAnswer,
    Welcome,
};
use tegata_proto::policy::{Policy, Protocol, Security, SignOn};
use tegata_proto::proof::{self, Proof, Purpose};
use tegata_proto::session::{
    self, Attach, Attached, GatewayMessage, GatewaySelf, Mode, Open, Right,
};
use tegata_proto::{ALPN_LOGIN, ALPN_SESSION};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::identity::{sha256, token_digest};
use crate::link::{self, Frames, LinkError, RecvStream, SendStream};
use crate::progress::{Event, Person};
use crate::{Agent, Authority, Wishes};

pub(crate) use desk::{Desk, known};
pub(crate) use guest::Guest;
pub(crate) use wire::Wire;

/// How long a test waits for what has to come.
pub(crate) const SOON: Duration = Duration::from_secs(40);

/// An authority and its key.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2100, 1, 1);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a CA"))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn issue(&self, uris: &[&str]) -> Leaf {
        self.issue_for_years(uris, 2000, 2100)
    }

    /// Issues a certificate that holds from one new year to another.
    pub(crate) fn issue_for_years(&self, uris: &[&str], from: i32, until: i32) -> Leaf {
        let mut params = CertificateParams::new(["host.example".into()]).expect("a name");
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().expect("ASCII")));
        }
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        Leaf { certificate: certificate.der().clone(), key }
    }
}

/// A certificate of a peer and its key.
pub(crate) struct Leaf {
    pub(crate) certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Leaf {
    pub(crate) fn spki_sha256(&self) -> Sha256 {
        sha256(&self.key.subject_public_key_info())
    }
}

/// A place with one authority; everything in it ends with it.
pub(crate) struct Office {
    pub(crate) ca: Ca,
    /// Whether what is started from now on is reached by TCP too.
    pub(crate) has_tcp: bool,
    /// Whether what is started from now on takes nobody in.
    pub(crate) is_full: bool,
    /// Who answers by TCP instead of what is started from now on.
    pub(crate) between: Option<Leaf>,
    /// Who serves sessions beside the logins that are started from now on.
    pub(crate) beside: Option<Leaf>,
    /// How many have come by TCP.
    pub(crate) tcp_comers: Arc<AtomicUsize>,
    /// What those who come by QUIC to what is started from now on may do.
    pub(crate) transport: Arc<TransportConfig>,
    tasks: JoinSet<()>,
}

impl Office {
    pub(crate) fn new() -> Self {
        let (has_tcp, is_full, between, beside) = (false, false, None, None);
        let tcp_comers = Arc::default();
        let (transport, tasks) = (Arc::default(), JoinSet::new());
        Self { ca: Ca::new(), has_tcp, is_full, between, beside, tcp_comers, transport, tasks }
    }

    pub(crate) fn agent(&self) -> Agent {
        let authority = Authority::from_pem(self.ca.pem().as_bytes()).expect("a CA");
        Agent::new(authority).expect("a socket")
    }

    /// Starts a broker that does this with each login, numbered from 0.
    pub(crate) fn broker<F, D>(&mut self, with_each: F) -> SocketAddr
    where
        F: Fn(usize, Peer) -> D + Send + 'static,
        D: Future<Output = Result<(), LinkError>> + Send + 'static,
    {
        let leaf = self.ca.issue(&["tegata:broker/b1"]);
        self.serve(&leaf, ALPN_LOGIN, with_each)
    }

    /// Starts a gateway that does this with each attach, numbered from 0.
    pub(crate) fn gateway<F, D>(&mut self, with_each: F) -> Gateway
    where
        F: Fn(usize, Peer) -> D + Send + 'static,
        D: Future<Output = Result<(), LinkError>> + Send + 'static,
    {
        let leaf = self.ca.issue(&["tegata:gateway/g1"]);
        let spki_sha256 = leaf.spki_sha256();
        let address = self.serve(&leaf, ALPN_SESSION, with_each);
        Gateway { id: GatewayId::new("g1").expect("a name"), addresses: vec![address], spki_sha256 }
    }

    /// Starts a peer with a certificate of the test's choice.
    #[allow(clippy::disallowed_methods, reason = "a fake has no limits to keep")]
    pub(crate) fn serve<F, D>(&mut self, leaf: &Leaf, alpn: &[u8], with_each: F) -> SocketAddr
    where
        F: Fn(usize, Peer) -> D + Send + 'static,
        D: Future<Output = Result<(), LinkError>> + Send + 'static,
    {
        let tls = server_config(leaf, alpn, self.beside.as_ref());
        let by_tcp = self.between.as_ref().unwrap_or(leaf);
        let by_tcp = server_config(by_tcp, alpn, self.beside.as_ref());
        let acceptor = TlsAcceptor::from(Arc::new(by_tcp));
        let crypto = QuicServerConfig::try_from(tls).expect("AES-128");
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(Arc::clone(&self.transport));
        let (socket, listener) = sockets(self.has_tcp);
        let address = socket.local_addr().expect("bound");
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, runtime)
            .expect("an endpoint");
        let (tcp_comers, is_full) = (Arc::clone(&self.tcp_comers), self.is_full);
        self.tasks.spawn(async move {
            let (mut coming, mut opening) = (JoinSet::new(), JoinSet::new());
            let mut peers = JoinSet::new();
            let mut number = 0;
            loop {
                tokio::select! {
                    incoming = endpoint.accept() => {
                        let Some(incoming) = incoming else { return };
                        if is_full {
                            incoming.refuse();
                            continue;
                        }
                        coming.spawn(async { Some(Guest::Quic(incoming.await.ok()?)) });
                    }
                    socket = accept(listener.as_ref()) => {
                        tcp_comers.fetch_add(1, Ordering::Relaxed);
                        if is_full {
                            continue;
                        }
                        coming.spawn(Guest::by_tcp(acceptor.clone(), socket));
                    }
                    Some(come) = coming.join_next() => {
                        // A peer that was not believed never becomes one.
                        let Ok(Some(connection)) = come else { continue };
                        opening.spawn(async move {
                            let (say, hear) = connection.accept().await.ok()?;
                            Some(Peer { connection, say, hear: Frames::new(hear) })
                        });
                    }
                    Some(opened) = opening.join_next() => {
                        let Ok(Some(peer)) = opened else { continue };
                        let connection = peer.connection.clone();
                        let done = with_each(number, peer);
                        number += 1;
                        peers.spawn(async move {
                            let _ = done.await;
                            connection.closed().await;
                        });
                    }
                }
            }
        });
        address
    }
}

/// Shows one certificate to those who ask for sessions, and the other to all else.
#[derive(Debug)]
struct Two {
    all: Arc<CertifiedKey>,
    sessions: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Two {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_session = hello.alpn().is_some_and(|mut alpn| alpn.any(|one| one == ALPN_SESSION));
        Some(self.sessions.as_ref().filter(|_| is_session).unwrap_or(&self.all).clone())
    }
}

fn server_config(leaf: &Leaf, alpn: &[u8], beside: Option<&Leaf>) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let certified = |leaf: &Leaf| {
        let key = PrivateKeyDer::try_from(leaf.key.serialize_der()).expect("a key");
        let key = provider.key_provider.load_private_key(key).expect("a key of its kind");
        Arc::new(CertifiedKey::new(vec![leaf.certificate.clone()], key))
    };
    let sessions = beside.map(certified);
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Two { all: certified(leaf), sessions }));
    let sessions = beside.map(|_| ALPN_SESSION);
    let spoken = [alpn].into_iter().chain(sessions).filter(|alpn| !alpn.is_empty());
    tls.alpn_protocols = spoken.map(<[u8]>::to_vec).collect();
    tls
}

/// Takes a port of this machine, by TCP too if that is wanted.
fn sockets(has_tcp: bool) -> (UdpSocket, Option<TcpListener>) {
    loop {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        if !has_tcp {
            return (socket, None);
        }
        let address = socket.local_addr().expect("bound");
        // Somebody else may have the other half of it.
        let Ok(listener) = std::net::TcpListener::bind(address) else { continue };
        listener.set_nonblocking(true).expect("a socket");
        return (socket, Some(TcpListener::from_std(listener).expect("a runtime")));
    }
}

async fn accept(listener: Option<&TcpListener>) -> tokio::net::TcpStream {
    match listener {
        Some(listener) => listener.accept().await.expect("it listens").0,
        None => std::future::pending().await,
    }
}

/// The other side of an agent's connection.
pub(crate) struct Peer {
    pub(crate) connection: Guest,
    pub(crate) say: SendStream,
    pub(crate) hear: Frames,
}

impl Drop for Peer {
    /// What was said still arrives.
    fn drop(&mut self) {
        self.say.finish();
    }
}

impl Peer {
    pub(crate) async fn hear<M: DeserializeOwned>(&mut self) -> Result<M, LinkError> {
        self.hear.next(LIMIT_AFTER).await
    }

    pub(crate) async fn say<M: Serialize>(&mut self, message: &M) -> Result<(), LinkError> {
        link::say(&mut self.say, message, LIMIT_AFTER).await
    }

    /// Hears an attach, checks its proof and returns it.
    pub(crate) async fn attach(&mut self) -> Result<Attach, LinkError> {
        let session::AgentMessage::Attach(attach) = self.hear().await? else {
            panic!("attach goes first");
        };
        let purpose = match &attach.right {
            Right::Ticket(ticket) => Purpose::Ticket(token_digest(ticket)),
            Right::Grant(grant) => Purpose::Resume(token_digest(grant)),
        };
        assert_proof(&self.connection, attach.key, purpose, attach.link, &attach.proof);
        Ok(attach)
    }

    /// Answers an attach, and returns the desktop's stream.
    pub(crate) async fn carry(
        &mut self,
        link: LinkNumber,
    ) -> Result<(SendStream, RecvStream), LinkError> {
        self.carry_as(attached(link)).await
    }

    /// Answers an attach so, and returns the desktop's stream.
    pub(crate) async fn carry_as(
        &mut self,
        attached: Attached,
    ) -> Result<(SendStream, RecvStream), LinkError> {
        self.say(&GatewayMessage::Attached(Box::new(attached))).await?;
        let (send, recv) = self.connection.accept().await?;
        let mut frames = Frames::new(recv);
        let _: Open = frames.next(LIMIT_BEFORE).await?;
        Ok((send, frames.into_rest()))
    }

    /// Goes through a good login up to the ticket.
    pub(crate) async fn admit(&mut self, answer: TicketAnswer) -> Result<(), LinkError> {
        self.welcome().await?;
        self.say(&pools(&["keiri"])).await?;
        self.say(&BrokerMessage::Progress { phase: Phase::Assigned, expected_ms: None }).await?;
        self.say(&BrokerMessage::Ticket(Box::new(answer))).await
    }

    /// Hears `hello`, says `welcome`, hears the password and returns it.
    pub(crate) async fn welcome(&mut self) -> Result<login::Password, LinkError> {
        let login::AgentMessage::Hello(hello) = self.hear().await? else {
            panic!("hello goes first");
        };
        let link = LinkNumber::LOGIN;
        assert_proof(&self.connection, hello.key, Purpose::Login, link, &hello.proof);
        self.say(&welcome()).await?;
        let login::AgentMessage::Password(password) = self.hear().await? else {
            panic!("the password goes second");
        };
        Ok(password)
    }
}

fn assert_proof(
    connection: &Guest,
    key: PublicKey,
    purpose: Purpose,
    link: LinkNumber,
    proof: &Proof,
) {
    let exporter = connection.exporter();
    UnparsedPublicKey::new(&ED25519, key.bytes())
        .verify(&proof::signed_bytes(purpose, &exporter, link), &proof.0)
        .expect("a proof of this connection");
}

pub(crate) fn welcome() -> BrokerMessage {
    BrokerMessage::Welcome(Welcome {
        v: 1,
        txn: Bytes([7; 16]),
        server_time_ms: 0,
        realms: vec![RealmName::new("honsho").expect("a name")],
        methods: vec![Method::Password],
        minimum_agent: "0.1.0".into(),
    })
}

pub(crate) fn pools(names: &[&str]) -> BrokerMessage {
    let offer = |name: &&str| PoolOffer {
        name: PoolName::new(*name).expect("a name"),
        label: name.to_uppercase(),
        state: OfferState::Ready,
    };
    BrokerMessage::Pools { display_name: "佐藤".into(), pools: names.iter().map(offer).collect() }
}

/// The answer for a desktop that speaks no RDP.
pub(crate) fn answer(gateways: Vec<Gateway>) -> TicketAnswer {
    TicketAnswer {
        ticket: Secret::new("the.one.ticket"),
        grant: Secret::new("the.resume.grant"),
        gateways,
        desktop: Desktop {
            name: SeatName::new("keiri-0001").expect("a name"),
            protocol: Protocol::Tcp,
            security: None,
            certificate_sha256: None,
            user_hint: Some("sato".into()),
        },
        policy: Policy::default(),
        sign_on: SignOn::Person,
    }
}

/// The answer for a desktop that speaks RDP, secured by TLS.
pub(crate) fn rdp_answer(gateways: Vec<Gateway>) -> TicketAnswer {
    let mut answer = answer(gateways);
    answer.desktop.protocol = Protocol::Rdp;
    answer.desktop.security = Some(Security::Tls);
    answer.desktop.certificate_sha256 = Some(Sha256([0xab; 32]));
    answer
}

pub(crate) fn attached(link: LinkNumber) -> Attached {
    Attached {
        sid: SessionId(uuid::Uuid::from_u128(1)),
        link,
        incarnation: Incarnation(1),
        received: std::collections::BTreeMap::default(),
        mode: Mode::Fresh,
        gateway: GatewaySelf {
            id: GatewayId::new("g1").expect("a name"),
            direct_addresses: vec![],
        },
        lease_s: 30,
        hold_s: 180,
        policy: Policy::default(),
        input_every_ms: None,
        grant: None,
    }
}

pub(crate) fn wishes() -> Wishes {
    Wishes::new("sato", Secret::new("hunter2")).expect("usable")
}

/// Remembers what it is told, passes it on, and chooses as the test says.
pub(crate) struct Recorder {
    pub(crate) events: Vec<Event>,
    pub(crate) choice: Option<PoolName>,
    pub(crate) live: tokio::sync::mpsc::Sender<Event>,
}

impl Recorder {
    pub(crate) fn new() -> (Self, tokio::sync::mpsc::Receiver<Event>) {
        let (live, watch) = tokio::sync::mpsc::channel(256);
        (Self { events: Vec::new(), choice: None, live }, watch)
    }
}

impl Person for Recorder {
    fn tell(&mut self, event: &Event) {
        self.events.push(event.clone());
        let _ = self.live.try_send(event.clone());
    }

    async fn choose(&mut self, _pools: &[PoolOffer]) -> Option<PoolName> {
        self.choice.clone()
    }
}

/// Waits for what has to come, but not for ever.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(SOON, what).await.expect("in time")
}
