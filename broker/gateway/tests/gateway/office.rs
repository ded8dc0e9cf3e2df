//! What the stories need: a gateway behind its real endpoint, a broker that is
//! honest about tickets, people with keys, and desktops that are TCP listeners.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prometheus_client::registry::Registry;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use serde_json::{Value, json};
use tegata_edge::connection::Transport;
use tegata_edge::metrics::EdgeMetrics;
use tegata_edge::network::{NetworkClass, NetworkClasses};
use tegata_edge::tls::{Party, RoleCertificate, provider};
use tegata_edge::wire::{FrameReader, FrameWriter};
use tegata_edge::{Endpoint, EndpointConfig, Limits, Role};
use tegata_gateway::dial::{TargetPolicy, TargetRule};
use tegata_gateway::handler::{Gateway, Identity};
use tegata_gateway::metrics::Metrics;
use tegata_gateway::proof::{purpose_of, thumbprint};
use tegata_gateway::redeem::{
    Attached as Reached, Broker, Limits as Bounds, LinkReport, Moved, Place, RedeemRequest,
    Redeemed, Refused, RefusedAttach, Renewal, Renewed, Unreachable,
};
use tegata_gateway::sessions::Sessions;
use tegata_gateway::verify::TokenKeys;
use tegata_parts::streams::Streams;
use tegata_proto::ALPN_SESSION;
use tegata_proto::claims::{Claims, Confirmation, TYP_RESUME, TYP_TICKET};
use tegata_proto::code::Code;
use tegata_proto::encoding::{Bytes, Secret};
use tegata_proto::id::{
    Epoch, GatewayGroup, GatewayId, Incarnation, LinkNumber, SessionId, TicketId,
};
use tegata_proto::key::PublicKey;
use tegata_proto::policy::{Policy, Protocol};
use tegata_proto::proof::{EXPORTER_LABEL, Purpose, signed_bytes};
use tegata_proto::session::{Attach, Channel, Resume, Right};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{RwLock, RwLockWriteGuard, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) use self::call::{Call, Line, take};
use crate::transport::Connection;

mod call;

pub(crate) const ISSUER: &str = "tegata-test";
pub(crate) const KID: &str = "2026-a";

/// After how many bytes these agents acknowledge.
const ACK: usize = 64 * 1024;

/// Longest that a story waits for one thing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for something that must happen.
pub(crate) async fn within<F: Future>(what: F) -> F::Output {
    timeout(PATIENCE, what).await.expect("it happens in time")
}

pub(crate) fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + n)
}

/// A key of a person or a broker.
pub(crate) struct Key(Ed25519KeyPair);

impl Key {
    pub(crate) fn new() -> Self {
        Self(Ed25519KeyPair::generate().expect("a key"))
    }

    pub(crate) fn public(&self) -> PublicKey {
        PublicKey::new(self.0.public_key().as_ref().try_into().expect("32 bytes"))
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).as_ref().try_into().expect("64 bytes")
    }

    /// Signs any header and any claims as a compact JWT.
    pub(crate) fn token(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

/// The header that brokers write.
pub(crate) fn header(typ: &str) -> Value {
    json!({"alg": "EdDSA", "typ": typ, "kid": KID})
}

/// A person who has logged in.
pub(crate) struct Person {
    pub(crate) sid: SessionId,
    pub(crate) key: Key,
    pub(crate) ticket: String,
    pub(crate) grant: String,
    pub(crate) claims: Claims,
}

impl Person {
    pub(crate) fn ticket(&self) -> Right {
        Right::Ticket(Secret::new(&self.ticket))
    }

    pub(crate) fn grant(&self) -> Right {
        Right::Grant(Secret::new(&self.grant))
    }

    /// Makes a good `attach` for a connection.
    pub(crate) fn attach(&self, right: Right, link: u64, exporter: &[u8; 32]) -> Attach {
        let link = LinkNumber(link);
        self.attach_proven(purpose_of(&right), right, link, exporter)
    }

    /// Makes an `attach` that takes a session up again where it stopped.
    pub(crate) fn resume(
        &self,
        link: u64,
        exporter: &[u8; 32],
        incarnation: u64,
        received: u64,
    ) -> Attach {
        let incarnation = Incarnation(incarnation);
        let resume = Resume { incarnation, received: [(Channel::Rdp, received)].into() };
        Attach { resume: Some(resume), ..self.attach(self.grant(), link, exporter) }
    }

    /// Makes an `attach` whose proof is for another purpose.
    pub(crate) fn attach_proven(
        &self,
        purpose: Purpose,
        right: Right,
        link: LinkNumber,
        exporter: &[u8; 32],
    ) -> Attach {
        let proof = Bytes(self.key.sign(&signed_bytes(purpose, exporter, link)));
        Attach { v: 1, right, key: self.key.public(), link, proof, resume: None }
    }
}

/// What the broker has on its books.
#[derive(Debug, Default)]
pub(crate) struct Books {
    sessions: HashMap<SessionId, Session>,
    used: HashSet<TicketId>,
    /// How long sessions without a link are held.
    hold_s: u32,
    /// How long it has no time for anybody, if it has none.
    busy_for: Option<Duration>,
    /// When grants are renewed, if in the time of a test.
    renew_after: Option<Duration>,
    /// Whether a wish for a grant panics.
    panics: bool,
    /// What bounds links.
    limits: Bounds,
    /// What is said of links that move, by the class of their network; otherwise
    /// that nobody can say now.
    places: HashMap<&'static str, Result<Place, Refused>>,
    pub(crate) moved: Vec<Moved>,
    pub(crate) renewed: Vec<Renewal>,
    pub(crate) asked: usize,
    pub(crate) attached: Vec<SessionId>,
    pub(crate) reports: Vec<LinkReport>,
    pub(crate) unreachable: Vec<Unreachable>,
    pub(crate) refused: Vec<RefusedAttach>,
}

#[derive(Debug)]
struct Session {
    target: SocketAddr,
    highest: LinkNumber,
    incarnation: Incarnation,
    ended: bool,
}

/// A broker that opens a ticket once and knows which link is the highest.
pub(crate) struct Bookkeeper {
    books: watch::Sender<Books>,
    answering: RwLock<()>,
    committing: RwLock<()>,
    renewing: RwLock<()>,
}

impl Bookkeeper {
    /// Keeps every answer back, after its decision, until the guard is dropped.
    pub(crate) async fn hold(&self) -> RwLockWriteGuard<'_, ()> {
        self.answering.write().await
    }

    /// Keeps every attach off the books until the guard is dropped.
    pub(crate) async fn hold_books(&self) -> RwLockWriteGuard<'_, ()> {
        self.committing.write().await
    }

    /// Keeps every younger grant back, once it is asked for, until the guard is dropped.
    pub(crate) async fn hold_renewals(&self) -> RwLockWriteGuard<'_, ()> {
        self.renewing.write().await
    }

    /// Waits until the books say so, and returns what they hold then.
    pub(crate) async fn until<T>(&self, want: impl Fn(&Books) -> Option<T>) -> T {
        let mut books = self.books.subscribe();
        let now = within(books.wait_for(|books| want(books).is_some())).await;
        want(&now.expect("the bookkeeper lives")).expect("it was there")
    }

    /// Waits for the only report about a session.
    pub(crate) async fn report(&self, sid: SessionId) -> LinkReport {
        let of = |books: &Books| books.reports.iter().find(|report| report.sid == sid).cloned();
        self.until(of).await
    }

    /// Returns the attaches that were refused without asking.
    pub(crate) fn refused(&self) -> Vec<RefusedAttach> {
        self.books.borrow().refused.clone()
    }

    /// Returns how often it was asked to redeem.
    pub(crate) fn asked(&self) -> usize {
        self.books.borrow().asked
    }

    /// Bounds links by this from now on.
    pub(crate) fn bound_by(&self, limits: Bounds) {
        self.books.send_modify(|books| books.limits = limits);
    }

    /// Says this of links that move to a network of this class.
    pub(crate) fn says_of(&self, class: &'static str, place: Result<Place, Refused>) {
        self.books.send_modify(|books| {
            books.places.insert(class, place);
        });
    }

    /// Has sessions without a link held from now on.
    pub(crate) fn hold_for(&self, hold_s: u32) {
        self.books.send_modify(|books| books.hold_s = hold_s);
    }

    /// Has no time for anybody from now on, and says for how long.
    pub(crate) fn busy_for(&self, span: Duration) {
        self.books.send_modify(|books| books.busy_for = Some(span));
    }

    /// Has grants renewed so soon after an attach.
    pub(crate) fn renew_after(&self, span: Duration) {
        self.books.send_modify(|books| books.renew_after = Some(span));
    }

    /// Has whoever asks for a grant panic.
    pub(crate) fn panics(&self) {
        self.books.send_modify(|books| books.panics = true);
    }

    /// Ends a session on the books; afterwards it is opened no more.
    pub(crate) fn end(&self, sid: SessionId) {
        self.books.send_modify(|books| {
            books.sessions.get_mut(&sid).expect("a session").ended = true;
        });
    }
}

#[async_trait]
impl Broker for Bookkeeper {
    async fn redeem(&self, request: RedeemRequest) -> Result<Redeemed, Refused> {
        let mut answer = Err(Refused::Code(Code::SessionEnded));
        self.books.send_modify(|books| {
            books.asked += 1;
            answer = books.redeem(&request);
        });
        let _may_answer = self.answering.read().await;
        answer
    }

    async fn moved(&self, report: Moved) -> Result<Place, Refused> {
        let mut answer = Err(Refused::Busy { retry_after: PATIENCE });
        self.books.send_modify(|books| {
            let place = books.places.get(report.class.as_str()).copied();
            books.moved.push(report);
            answer = place.unwrap_or(answer);
        });
        answer
    }

    async fn renew(&self, renewal: Renewal) -> Option<Renewed> {
        let panics = self.books.borrow().panics;
        assert!(!panics, "as asked");
        let (mut renewed, mut renew_after) = (0, PATIENCE);
        self.books.send_modify(|books| {
            books.renewed.push(renewal);
            renewed = books.renewed.len();
            renew_after = books.renew_after.unwrap_or(PATIENCE);
        });
        let _may_answer = self.renewing.read().await;
        let grant = Secret::new(format!("grant {renewed}"));
        Some(Renewed { grant, renew_after })
    }

    async fn attached(&self, report: Reached) {
        let _may_commit = self.committing.read().await;
        self.books.send_modify(|books| books.attached.push(report.sid));
    }

    async fn unreachable(&self, report: Unreachable) {
        self.books.send_modify(|books| books.unreachable.push(report));
    }

    async fn detached(&self, report: LinkReport) {
        self.books.send_modify(|books| books.reports.push(report));
    }

    fn broke_off(&self, report: LinkReport) {
        self.books.send_modify(|books| books.reports.push(report));
    }

    async fn refused(&self, report: RefusedAttach) {
        self.books.send_modify(|books| books.refused.push(report));
    }
}

impl Books {
    fn redeem(&mut self, request: &RedeemRequest) -> Result<Redeemed, Refused> {
        if let Some(retry_after) = self.busy_for {
            return Err(Refused::Busy { retry_after });
        }
        let session = self.sessions.get_mut(&request.claims.sid);
        let session = session.ok_or(Refused::Code(Code::SessionEnded))?;
        if session.ended {
            return Err(Refused::Code(Code::SessionEnded));
        }
        match &request.right {
            Right::Ticket(_) if !self.used.insert(request.claims.jti) => {
                return Err(Refused::Code(Code::TicketUsed));
            }
            Right::Ticket(_) | Right::Grant(_) => {}
        }
        if request.link <= session.highest {
            return Err(Refused::Code(Code::LinkStale));
        }
        session.highest = request.link;
        session.incarnation = request.resume.unwrap_or(Incarnation(request.link.0));
        Ok(Redeemed {
            epoch: request.claims.epoch,
            target: session.target,
            protocol: Protocol::Tcp,
            policy: Policy::default(),
            limits: self.limits,
            incarnation: session.incarnation,
            lease_s: 30,
            hold_s: self.hold_s,
            grant: None,
            renew_after: self.renew_after.unwrap_or(PATIENCE),
        })
    }
}

/// A gateway in service, and everything around it.
pub(crate) struct Office {
    pub(crate) broker: Arc<Bookkeeper>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) signer: Key,
    pub(crate) registry: Registry,
    pub(crate) closing: CancellationToken,
    /// How the next agent comes.
    pub(crate) by: Transport,
    /// What it brings along, if that is by QUIC.
    pub(crate) transport: Arc<quinn::TransportConfig>,
    address: SocketAddr,
    client: quinn::Endpoint,
    running: JoinSet<()>,
    _dir: TempDir,
}

impl Office {
    /// Opens a gateway that dials every port of loopback. Agents come `by` that.
    pub(crate) fn open(by: Transport) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let signer = Key::new();
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let sessions = Sessions::new(metrics.clone());
        let (books, answering) = (watch::Sender::new(Books::default()), RwLock::new(()));
        let (committing, renewing) = (RwLock::default(), RwLock::default());
        let broker = Arc::new(Bookkeeper { books, answering, committing, renewing });
        let loopback = "127.0.0.1/32".parse().expect("a prefix");
        let office = NetworkClass::new("office").expect("a name");
        let classes = NetworkClasses::new([(office, vec![loopback])]).expect("distinct prefixes");
        let classes = Arc::new(classes);
        let gateway = Gateway {
            identity: Identity {
                id: GatewayId::new("gw-1").expect("a name"),
                group: GatewayGroup::new("default").expect("a name"),
                boot: uuid(0xb007),
                direct_addresses: vec!["192.0.2.1:443".parse().expect("an address")],
            },
            keys: TokenKeys::new(ISSUER, [(KID.to_owned(), signer.public())]),
            classes: Arc::clone(&classes),
            targets: TargetPolicy::new([TargetRule { prefix: loopback, ports: 1024..=65535 }]),
            broker: broker.clone(),
            sessions: sessions.clone(),
            metrics,
        };
        let (chain, key) = certificate(&dir);
        let certificate = RoleCertificate::load(Party::Gateway, chain, key).expect("a certificate");
        let endpoint = Endpoint::bind(
            EndpointConfig {
                listen: "127.0.0.1:0".parse().expect("an address"),
                reset_key: [7; 64],
                limits: Limits::default(),
                grace: PATIENCE,
                balancers: Vec::new(),
            },
            vec![Role {
                alpn: ALPN_SESSION,
                certificate: Arc::new(certificate),
                handler: Arc::new(gateway),
            }],
            EdgeMetrics::register(&mut registry),
        )
        .expect("an endpoint");
        let address = endpoint.local_addr();
        let closing = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(endpoint.run(closing.clone()));
        let watched = sessions.clone();
        running.spawn(async move { watched.watch_places(&classes).await });
        let client =
            quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
        let transport = Arc::default();
        Self {
            broker,
            sessions,
            signer,
            registry,
            closing,
            by,
            transport,
            address,
            client,
            running,
            _dir: dir,
        }
    }

    /// Waits until the endpoint has drained.
    pub(crate) async fn closed(mut self) {
        within(self.running.join_next()).await.expect("one task").expect("no panic");
    }

    /// Returns how many sessions without a link are held.
    pub(crate) fn held(&self) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix("gateway_held "));
        line.expect("a gauge").parse().expect("a number")
    }

    /// Has the agents go on from another port, as after a change of networks.
    pub(crate) fn roam(&self) {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        self.client.rebind(socket).expect("a socket that can be used");
    }

    /// Has the agents go on from a network of the class `other`.
    pub(crate) fn leave(&self) {
        let socket = std::net::UdpSocket::bind("127.0.0.2:0").expect("a socket");
        self.client.rebind(socket).expect("a socket that can be used");
    }

    /// Logs a person in to a desktop.
    pub(crate) fn person(&self, n: u128, target: SocketAddr) -> Person {
        let key = Key::new();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: GatewayGroup::new("default").expect("a name"),
            sub: format!("honsho/{n}").parse().expect("a user"),
            sid: SessionId(uuid(n)),
            epoch: Epoch(3),
            jti: TicketId(uuid(0x1000 + n)),
            iat: now.as_secs(),
            exp: now.as_secs() + 30,
            cnf: Confirmation { jkt: thumbprint(&key.public()) },
        };
        let said = serde_json::to_value(&claims).expect("JSON");
        let ticket = self.signer.token(&header(TYP_TICKET), &said);
        let grant = self.signer.token(&header(TYP_RESUME), &said);
        let (highest, incarnation) = (LinkNumber::LOGIN, Incarnation(0));
        let session = Session { target, highest, incarnation, ended: false };
        self.broker.books.send_modify(|books| {
            books.sessions.insert(claims.sid, session);
        });
        Person { sid: claims.sid, key, ticket, grant, claims }
    }

    /// Opens a connection and its control stream.
    pub(crate) async fn call(&self) -> Call {
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_SESSION.to_vec()];
        let (connection, exporter) = match self.by {
            Transport::Quic => self.call_by_quic(config).await,
            Transport::Tcp => {
                let socket = within(TcpStream::connect(self.address)).await.expect("it listens");
                let streams = Streams::connect(socket, Arc::new(config), EXPORTER_LABEL);
                let streams = within(streams).await.expect("a handshake");
                let exporter = streams.exporter();
                (Connection::Tcp(streams), exporter)
            }
        };
        let (send, recv) = within(connection.open_bi()).await.expect("a stream");
        let (writer, reader) = (FrameWriter::new(send), FrameReader::new(recv));
        Call { connection, exporter, writer, reader, acked: 0 }
    }

    async fn call_by_quic(&self, config: rustls::ClientConfig) -> (Connection, [u8; 32]) {
        let config = QuicClientConfig::try_from(config).expect("a QUIC suite");
        let mut config = quinn::ClientConfig::new(Arc::new(config));
        config.transport_config(self.transport.clone());
        let connecting = self.client.connect_with(config, self.address, "gateway");
        let connection = within(connecting.expect("an address")).await.expect("a handshake");
        let mut exporter = [0; 32];
        connection
            .export_keying_material(&mut exporter, EXPORTER_LABEL, b"")
            .expect("a finished handshake");
        (Connection::Quic(connection), exporter)
    }

    /// Takes a person all the way to their desktop.
    pub(crate) async fn seat(
        &self,
        person: &Person,
        desktop: &TcpListener,
    ) -> (Call, Line, TcpStream) {
        let mut call = self.call().await;
        call.attach(person.attach(person.ticket(), 1, &call.exporter)).await;
        let (attached, accepted) = tokio::join!(call.attached(), within(desktop.accept()));
        assert_eq!((attached.sid, attached.link), (person.sid, LinkNumber(1)));
        let line = call.open().await;
        (call, line, accepted.expect("a connection").0)
    }
}

/// Listens as a desktop does.
pub(crate) async fn desktop() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

fn certificate(dir: &TempDir) -> (PathBuf, PathBuf) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    let uri = "tegata:gateway/gw-1".try_into().expect("ASCII");
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    let certificate = params.self_signed(&key).expect("a certificate");
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.expect("a file").write_all(text.as_bytes()).expect("room");
        path
    };
    (write("chain.pem", certificate.pem()), write("key.pem", key.serialize_pem()))
}

/// Believes every certificate: who the gateway is is not the matter here.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
