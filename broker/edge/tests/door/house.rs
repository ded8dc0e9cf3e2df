//! A server with two roles, a CA to vouch for it, and its visitors.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use prometheus_client::metrics::counter::Counter;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, VarInt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tegata_edge::connection::RecvStream;
use tegata_edge::metrics::{EdgeMetrics, Refusal, RefusedLabels, registry};
use tegata_edge::supervisor::Tasks;
use tegata_edge::tls::{Party, RoleCertificate, provider};
use tegata_edge::wire::{FrameReader, FrameWriter, WireError};
use tegata_edge::{Endpoint, EndpointConfig, Handler, Limits, Link, Role};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// One role's ALPN.
pub(crate) const FIRST: &[u8] = b"test-first/1";
/// The other role's ALPN.
pub(crate) const SECOND: &[u8] = b"test-second/1";
/// Longest frame that the server takes, in bytes.
pub(crate) const FRAME_LIMIT: usize = 256;
/// Length of what no visitor takes without reading, in bytes.
pub(crate) const LONG: usize = 8 * 1024 * 1024;
/// The server's close after a bad frame.
pub(crate) const BAD_FRAME: VarInt = VarInt::from_u32(21);
/// The server's close when it drains.
pub(crate) const GOING_AWAY: VarInt = VarInt::from_u32(22);
/// The key that makes two servers the same node.
pub(crate) const NODE_KEY: [u8; 64] = [7; 64];

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for what must happen.
pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("this happens in time")
}

/// Waits until something is so.
pub(crate) async fn until(what: impl Fn() -> bool) {
    within(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// The CA, and the folder of certificates and keys.
pub(crate) struct House {
    folder: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
    pub(crate) metrics: EdgeMetrics,
    /// Told when a server has given up in the middle of a frame.
    pub(crate) stumbled: Arc<Notify>,
    tasks: Tasks,
}

/// Sets a file's permission bits.
pub(crate) fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("permissions");
}

/// What a certificate says.
#[derive(Clone)]
pub(crate) struct Paper {
    pub(crate) uris: Vec<&'static str>,
    pub(crate) last_year: i32,
}

impl Paper {
    pub(crate) fn of(uri: &'static str) -> Self {
        Self { uris: vec![uri], last_year: 2200 }
    }
}

impl House {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let ca = CertifiedIssuer::self_signed(params, key).expect("a CA");
        Self {
            folder: TempDir::new().expect("a folder"),
            ca,
            metrics: EdgeMetrics::register(&mut registry("test", "0")),
            stumbled: Arc::default(),
            tasks: Tasks::new(Counter::default()),
        }
    }

    /// Writes a certificate and its key, and returns their paths.
    pub(crate) fn issue(&self, name: &str, paper: &Paper) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        for uri in &paper.uris {
            let uri = (*uri).try_into().expect("an ASCII URI");
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(paper.last_year, 1, 1);
        let pair = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&pair, &self.ca).expect("a certificate");
        let chain = self.folder.path().join(format!("{name}.pem"));
        let key = self.folder.path().join(format!("{name}.key"));
        fs::write(&chain, certificate.pem()).expect("written");
        fs::write(&key, pair.serialize_pem()).expect("written");
        chmod(&key, 0o600);
        (chain, key)
    }

    pub(crate) fn broker(&self) -> Arc<RoleCertificate> {
        let (chain, key) = self.issue("broker", &Paper::of("tegata:broker/b1"));
        Arc::new(RoleCertificate::load(Party::Broker, chain, key).expect("a good certificate"))
    }

    fn gateway(&self) -> Arc<RoleCertificate> {
        let (chain, key) = self.issue("gateway", &Paper::of("tegata:gateway/g1"));
        Arc::new(RoleCertificate::load(Party::Gateway, chain, key).expect("a good certificate"))
    }

    /// Opens a server with both roles, each served by [`Echo`].
    pub(crate) fn open(&self, limits: Limits) -> Server {
        self.open_at(loopback(), limits, Duration::from_secs(10))
    }

    pub(crate) fn open_at(&self, listen: SocketAddr, limits: Limits, grace: Duration) -> Server {
        self.open_behind(listen, limits, grace, Vec::new())
    }

    /// Opens a server with balancers in front of it.
    pub(crate) fn open_behind(
        &self,
        listen: SocketAddr,
        limits: Limits,
        grace: Duration,
        balancers: Vec<IpNet>,
    ) -> Server {
        let (broker, gateway) = (self.broker(), self.gateway());
        let role = |alpn, certificate: &Arc<RoleCertificate>| {
            let certificate = Arc::clone(certificate);
            let handler = Arc::new(Echo { stumbled: Arc::clone(&self.stumbled) });
            Role { alpn, certificate, handler }
        };
        let roles = vec![role(FIRST, &broker), role(SECOND, &gateway)];
        let config = EndpointConfig { listen, reset_key: NODE_KEY, limits, grace, balancers };
        let endpoint = Endpoint::bind(config, roles, self.metrics.clone()).expect("a free port");
        let address = endpoint.local_addr();
        let stop = CancellationToken::new();
        let (ended, stopped) = watch::channel(false);
        let run = endpoint.run(stop.clone());
        self.tasks.spawn("server", async move {
            run.await;
            ended.send_replace(true);
        });
        Server { address, stop, stopped, broker, gateway }
    }

    /// Makes a visitor that offers these ALPNs, at any server of this house.
    pub(crate) fn visitor(&self, offer: &[&[u8]]) -> Visitor {
        Visitor::at(loopback(), self.ca.der(), offer)
    }

    pub(crate) fn visitor_at(&self, address: SocketAddr) -> Visitor {
        Visitor::at(address, self.ca.der(), &[FIRST])
    }

    /// Makes the TLS of a client that offers these ALPNs.
    pub(crate) fn tls(&self, offer: &[&[u8]]) -> rustls::ClientConfig {
        tls(self.ca.der(), offer)
    }

    pub(crate) fn refused(&self, reason: Refusal) -> u64 {
        self.metrics.refused.get_or_create(&RefusedLabels { reason }).get()
    }

    /// Carries datagrams between one visitor and a server that may change.
    pub(crate) async fn relay(&self, target: SocketAddr, replies: bool) -> Relay {
        self.relay_at(loopback(), target, if replies { usize::MAX } else { 0 }).await
    }

    /// Carries them as from another address, and of the replies only those of at most so
    /// many bytes.
    pub(crate) async fn relay_at(
        &self,
        address: SocketAddr,
        target: SocketAddr,
        longest: usize,
    ) -> Relay {
        let front = UdpSocket::bind(loopback()).await.expect("a socket");
        let back = UdpSocket::bind(address).await.expect("a socket");
        let address = front.local_addr().expect("bound");
        let (change, targets) = watch::channel(target);
        self.tasks.spawn("relay", async move {
            let (mut out, mut home) = ([0; 2048], [0; 2048]);
            let mut visitor = None;
            loop {
                tokio::select! {
                    Ok((length, from)) = front.recv_from(&mut out) => {
                        visitor = Some(from);
                        let target = *targets.borrow();
                        let _may_fail = back.send_to(&out[..length], target).await;
                    }
                    Ok((length, from)) = back.recv_from(&mut home) => {
                        let passes = length <= longest && from == *targets.borrow();
                        if let Some(visitor) = visitor.filter(|_| passes) {
                            let _may_fail = front.send_to(&home[..length], visitor).await;
                        }
                    }
                }
            }
        });
        Relay { address, target: change }
    }
}

/// Stands between a visitor and a server.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    pub(crate) target: watch::Sender<SocketAddr>,
}

/// A running server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) stopped: watch::Receiver<bool>,
    pub(crate) broker: Arc<RoleCertificate>,
    pub(crate) gateway: Arc<RoleCertificate>,
}

/// Sends back each frame it gets, with a few words that make it do other things.
struct Echo {
    stumbled: Arc<Notify>,
}

#[async_trait]
impl Handler for Echo {
    async fn serve(&self, link: Link) {
        let deaf = AtomicBool::new(false);
        let conversation = async {
            while let Ok((mut send, mut receive)) = link.connection.accept_bi().await {
                if deaf.load(Ordering::Relaxed) {
                    set_trap(&mut receive);
                    send.write_all(b"set").await.expect("a stream to answer on");
                    link.connection.closed().await;
                    return;
                }
                let (reader, writer) = (FrameReader::new(receive), FrameWriter::new(send));
                self.converse(&link, &deaf, reader, writer).await;
            }
        };
        tokio::select! {
            () = link.closing.cancelled() => {
                if deaf.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                link.connection.close(GOING_AWAY, b"");
            }
            () = conversation => {}
        }
    }
}

impl Echo {
    async fn converse(
        &self,
        link: &Link,
        deaf: &AtomicBool,
        mut reader: FrameReader,
        mut writer: FrameWriter,
    ) {
        loop {
            let deadline = Instant::now() + PATIENCE;
            let answer = match reader.read::<Value>(FRAME_LIMIT, deadline).await {
                Ok(word) if word["say"] == "panic" => {
                    // As if another task still held it.
                    std::mem::forget(link.connection.clone());
                    panic!("as asked")
                }
                Ok(word) if word["say"] == "be deaf" => {
                    deaf.store(true, Ordering::Relaxed);
                    word
                }
                Ok(word) if word["say"] == "widen" => {
                    link.connection.widen();
                    word
                }
                Ok(word) if word["say"] == "stumble" => {
                    stumble(&mut writer).await;
                    self.stumbled.notify_one();
                    word
                }
                Ok(word) if word["say"] == "exporter" => json!(link.exporter),
                Ok(word) if word["say"] == "remote" => json!(link.remote.to_string()),
                Ok(word) if word["say"] == "remote now" => {
                    json!(link.connection.remote_address().to_string())
                }
                Ok(word) => word,
                Err(WireError::Malformed(_)) => return link.connection.close(BAD_FRAME, b""),
                Err(WireError::Closed | WireError::TooSlow | WireError::Unsendable(_)) => return,
            };
            if writer.write(&answer, FRAME_LIMIT * 4, deadline).await.is_err() {
                return;
            }
        }
    }
}

/// Waits for bytes in such a way that whoever brings them panics.
fn set_trap(receive: &mut RecvStream) {
    struct Trap;
    impl Wake for Trap {
        fn wake(self: Arc<Self>) {
            panic!("as asked")
        }
    }
    let trap = Waker::from(Arc::new(Trap));
    let mut bytes = [0; 64];
    let mut poll = || {
        let mut room = ReadBuf::new(&mut bytes);
        Pin::new(&mut *receive).poll_read(&mut Context::from_waker(&trap), &mut room)
    };
    while poll().is_ready() {}
}

/// Gives up in the middle of a long frame and before a short one.
async fn stumble(writer: &mut FrameWriter) {
    for word in [json!("x".repeat(LONG)), json!("forgotten")] {
        let soon = Instant::now() + Duration::from_millis(100);
        let given_up = writer.write(&word, 2 * LONG, soon).await;
        assert!(matches!(given_up, Err(WireError::TooSlow)), "{given_up:?}");
    }
}

/// A client.
pub(crate) struct Visitor {
    endpoint: quinn::Endpoint,
}

impl Visitor {
    fn at(address: SocketAddr, ca: &CertificateDer<'static>, offer: &[&[u8]]) -> Self {
        let tls = QuicClientConfig::try_from(tls(ca, offer)).expect("a suite to start with");
        let mut endpoint = quinn::Endpoint::client(address).expect("a socket");
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
        Self { endpoint }
    }

    /// Goes on from another port.
    pub(crate) fn roam(&self) -> SocketAddr {
        let socket = std::net::UdpSocket::bind(loopback()).expect("a socket");
        self.endpoint.rebind(socket).expect("a socket that can be used");
        self.endpoint.local_addr().expect("bound")
    }

    pub(crate) fn connecting(&self, server: SocketAddr) -> quinn::Connecting {
        self.endpoint.connect(server, "localhost").expect("a good address")
    }

    pub(crate) async fn try_connect(
        &self,
        server: SocketAddr,
    ) -> Result<Connection, ConnectionError> {
        within(self.connecting(server)).await
    }

    pub(crate) async fn connect(&self, server: SocketAddr) -> Connection {
        self.try_connect(server).await.expect("let in")
    }
}

fn tls(ca: &CertificateDer<'static>, offer: &[&[u8]]) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.clone()).expect("our CA");
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = offer.iter().map(|alpn| alpn.to_vec()).collect();
    tls.enable_early_data = true;
    tls
}

/// Says one thing on a new stream and returns the answer.
pub(crate) async fn ask(connection: &Connection, word: &str) -> Result<Value, WireError> {
    let opened = within(connection.open_bi()).await;
    let (send, receive) = opened.map_err(|_| WireError::Closed)?;
    ask_on(send, receive, word).await
}

/// Says one thing on a stream and returns the answer.
pub(crate) async fn ask_on(
    send: impl AsyncWrite + Send + Unpin,
    receive: impl AsyncRead + Send + Unpin,
    word: &str,
) -> Result<Value, WireError> {
    let deadline = Instant::now() + PATIENCE;
    let mut writer = FrameWriter::new(send);
    writer.write(&json!({ "say": word }), FRAME_LIMIT, deadline).await?;
    let answer = FrameReader::new(receive).read(FRAME_LIMIT * 4, deadline).await?;
    writer.finish(deadline).await?;
    Ok(answer)
}
