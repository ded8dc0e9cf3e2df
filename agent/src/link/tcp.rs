//! Connections by TLS on TCP, for networks that let no UDP pass.
//!
//! The streams are HTTP/2's: each of ours is one request whose body is never over
//! before the stream is, and its response. A task for each connection moves its
//! bytes, keeps it alive and ends with it.

mod socket;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, PingPong};
use http::{Method, Request, StatusCode, Uri};
use rustls::pki_types::ServerName;
use tegata_proto::encoding::Sha256;
use tegata_proto::proof::{EXPORTER_LABEL, EXPORTER_LEN};
use tokio::sync::Notify;
use tokio::time::{Instant, interval_at, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::socket::{Socket, connect};
use super::patience::Patience;
use super::{
    CHUNK_MAX, CONNECTION_WINDOW, Candidate, Fault, HANDSHAKE_DEADLINE, IDLE_TIMEOUT, KEEP_ALIVE,
    LinkError, SEND_WINDOW, SERVER_NAME, STREAM_WINDOW,
};
use crate::trust::{Authority, Distrust, key_of};

/// Most streams at a time.
const STREAMS_MAX: usize = 4;

/// Longest frame that the peer may send, in bytes.
const FRAME_MAX: u32 = 64 * 1024;

/// Longest head of a response, in bytes; ours has none but its status.
const HEAD_MAX: u32 = 4 * 1024;

/// What frames that are far smaller than their own bookkeeping may cost while nobody
/// reads them, in bytes: a whole window of the desktop's may come in such frames while
/// a viewer stands still.
const SMALL_FRAMES_MAX: usize = 16 * 1024 * 1024;

/// How long a closed connection may take to send the rest.
const FLUSH: Duration = Duration::from_secs(1);

/// What every request of ours asks for.
const TARGET: &str = "https://tegata/";

/// A connection, which is closed with its last clone.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    _guard: Arc<DropGuard>,
}

/// What a connection and the task that moves its bytes have in common.
#[derive(Debug)]
struct Shared {
    /// Absent once it is closed.
    requests: Mutex<Option<SendRequest<Bytes>>>,
    exporter: [u8; EXPORTER_LEN],
    /// Of the peer's certificate.
    peer_key: Option<Sha256>,
    traffic: Arc<Traffic>,
    /// In microseconds.
    rtt: AtomicU64,
    probe: Notify,
    closing: CancellationToken,
}

/// What has passed the socket, in bytes.
#[derive(Debug, Default)]
struct Traffic {
    heard: AtomicU64,
    sent: AtomicU64,
}

/// Carries bytes to the peer.
#[derive(Debug)]
pub(crate) struct SendStream(h2::SendStream<Bytes>);

/// Carries bytes from the peer.
#[derive(Debug)]
pub(crate) struct RecvStream {
    response: Response,
    /// What has come and was not asked for yet.
    rest: Bytes,
}

#[derive(Debug)]
enum Response {
    Awaited(ResponseFuture),
    Here(h2::RecvStream),
}

/// Makes a connection to a candidate; `tasks` gets the task that moves its bytes.
pub(super) async fn dial(
    authority: Authority,
    tasks: TaskTracker,
    candidate: Candidate,
    patience: Patience,
) -> Result<super::Connection, LinkError> {
    let unreachable = |fault| LinkError::Unreachable { tried: 1, source: Some(fault) };
    let address = candidate.address;
    let (tls, verdict) = authority.client(candidate.expected).map_err(LinkError::Tls)?;
    let asked = tls.alpn_protocols.clone();
    let made = async {
        let begun = Instant::now();
        let answered = patience.answer(connect(address)).await;
        let (socket, _answered) = answered.ok_or_else(|| unreachable(Fault::TimedOut))?;
        let socket = socket.map_err(|error| unreachable(Fault::Socket(error)))?;
        // One round trip, but for what the kernels take.
        let rtt = begun.elapsed();
        let traffic = Arc::clone(socket.traffic());
        let name = ServerName::try_from(SERVER_NAME).expect("a DNS name");
        let connecting = TlsConnector::from(Arc::new(tls)).connect(name, socket);
        let tls = connecting.await.map_err(|error| failed(address, &verdict, error))?;
        // TLS lets a peer ignore what it was asked for (RFC 7301 §3.2); QUIC does not.
        let agreed = tls.get_ref().1.alpn_protocol();
        if !agreed.is_some_and(|agreed| asked.iter().any(|asked| asked == agreed)) {
            return Err(LinkError::Handshake { address, source: Fault::OtherProtocol });
        }
        let exporter = [0; EXPORTER_LEN];
        let exporter = tls
            .get_ref()
            .1
            .export_keying_material(exporter, EXPORTER_LABEL, Some(b""))
            .map_err(LinkError::Tls)?;
        begin(tls, exporter, rtt, traffic, &tasks)
            .await
            .map_err(|error| unreachable(Fault::Streams(error)))
    };
    match timeout(HANDSHAKE_DEADLINE, made).await {
        Ok(made) => Ok(made?.into()),
        Err(_) => Err(unreachable(Fault::TimedOut)),
    }
}

fn failed(address: SocketAddr, verdict: &OnceLock<Distrust>, error: io::Error) -> LinkError {
    if let Some(distrust) = verdict.get() {
        return LinkError::Distrusted { address, source: distrust.clone() };
    }
    let is_tls =
        error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>);
    let source = Fault::Socket(error);
    if is_tls {
        LinkError::Handshake { address, source }
    } else {
        LinkError::Unreachable { tried: 1, source: Some(source) }
    }
}

/// Begins with HTTP/2 where TLS is done.
async fn begin(
    tls: TlsStream<Socket>,
    exporter: [u8; EXPORTER_LEN],
    rtt: Duration,
    traffic: Arc<Traffic>,
    tasks: &TaskTracker,
) -> Result<Connection, h2::Error> {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(STREAMS_MAX)
        .max_concurrent_streams(0)
        .max_concurrent_reset_streams(STREAMS_MAX)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX)
        .max_header_list_size(HEAD_MAX)
        .max_send_buffer_size(SEND_WINDOW as usize)
        .data_frame_budget(SMALL_FRAMES_MAX);
    let certificates = tls.get_ref().1.peer_certificates();
    let peer_key = certificates.and_then(<[_]>::first).and_then(key_of);
    let (requests, mut connection) = builder.handshake(tls).await?;
    let pings = connection.ping_pong().expect("it is taken once");
    let closing = CancellationToken::new();
    let shared = Arc::new(Shared {
        requests: Mutex::new(Some(requests)),
        exporter,
        peer_key,
        traffic,
        rtt: AtomicU64::new(0),
        probe: Notify::new(),
        closing: closing.clone(),
    });
    shared.measured(rtt);
    tasks.spawn(carry(connection, pings, Arc::clone(&shared)));
    Ok(Connection { shared, _guard: Arc::new(closing.drop_guard()) })
}

/// Moves a connection's bytes until it is over.
async fn carry(
    mut connection: h2::client::Connection<TlsStream<Socket>, Bytes>,
    mut pings: PingPong,
    shared: Arc<Shared>,
) {
    let mut beat = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    let mut asked: Option<Instant> = None;
    let mut last = (shared.traffic.heard(), Instant::now());
    loop {
        let wanted = tokio::select! {
            biased;
            () = shared.closing.cancelled() => break,
            ended = &mut connection => {
                tracing::debug!(?ended, "A connection by TCP is over");
                shared.requests().take();
                return;
            }
            ponged = poll_fn(|cx| pings.poll_pong(cx)), if asked.is_some() => {
                if let (Ok(_), Some(asked)) = (ponged, asked.take()) {
                    shared.measured(asked.elapsed());
                }
                false
            }
            () = shared.probe.notified() => true,
            _ = beat.tick() => true,
        };
        let heard = shared.traffic.heard();
        if heard != last.0 {
            last = (heard, Instant::now());
        } else if last.1.elapsed() >= IDLE_TIMEOUT {
            tracing::debug!("A connection by TCP was silent for too long");
            // What is left of it has nowhere to go.
            shared.requests().take();
            return;
        }
        if wanted && asked.is_none() && pings.send_ping(Ping::opaque()).is_ok() {
            asked = Some(Instant::now());
        }
    }
    // Ends by itself once all streams are dropped and everything is sent.
    let _ = timeout(FLUSH, connection).await;
}

impl Connection {
    pub(super) async fn open(&self) -> Result<(SendStream, RecvStream), LinkError> {
        let requests = self.shared.requests().clone();
        let requests = requests.ok_or(LinkError::Lost(Fault::Closed))?;
        let mut requests = requests.ready().await.map_err(lost)?;
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(TARGET);
        let (response, send) = requests.send_request(request, false).map_err(lost)?;
        let response = Response::Awaited(response);
        Ok((SendStream(send), RecvStream { response, rest: Bytes::new() }))
    }

    pub(super) fn exporter(&self) -> [u8; EXPORTER_LEN] {
        self.shared.exporter
    }

    pub(super) fn peer_key(&self) -> Option<Sha256> {
        self.shared.peer_key
    }

    pub(super) fn close(&self) {
        self.shared.requests().take();
        self.shared.closing.cancel();
    }

    pub(super) fn rtt(&self) -> Duration {
        Duration::from_micros(self.shared.rtt.load(Ordering::Relaxed))
    }

    pub(super) fn heard(&self) -> u64 {
        self.shared.traffic.heard()
    }

    pub(super) fn sent(&self) -> u64 {
        self.shared.traffic.sent.load(Ordering::Relaxed)
    }

    /// Asks for an answer, unless one is awaited already.
    pub(super) fn probe(&self) {
        self.shared.probe.notify_one();
    }
}

impl Shared {
    fn measured(&self, rtt: Duration) {
        let rtt = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
        self.rtt.store(rtt, Ordering::Relaxed);
    }

    fn requests(&self) -> MutexGuard<'_, Option<SendRequest<Bytes>>> {
        // Nothing in it can panic half-way.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Traffic {
    fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

impl SendStream {
    pub(super) async fn write(&mut self, bytes: &mut Bytes) -> Result<usize, LinkError> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.0.reserve_capacity(bytes.len().min(CHUNK_MAX));
        // What is there from before is not told of again.
        let mut room = self.0.capacity();
        while room == 0 {
            match poll_fn(|cx| self.0.poll_capacity(cx)).await {
                Some(Ok(more)) => room = more,
                Some(Err(error)) => return Err(lost(error)),
                None => return Err(LinkError::Silent),
            }
        }
        let piece = bytes.split_to(room.min(bytes.len()));
        let length = piece.len();
        self.0.send_data(piece, false).map_err(lost)?;
        Ok(length)
    }

    pub(super) fn finish(&mut self) {
        let _ = self.0.send_data(Bytes::new(), true);
    }

    pub(super) fn reset(&mut self) {
        self.0.send_reset(h2::Reason::CANCEL);
    }
}

impl RecvStream {
    pub(super) async fn read(&mut self, limit: usize) -> Result<Option<Bytes>, LinkError> {
        while self.rest.is_empty() {
            let body = match &mut self.response {
                Response::Awaited(response) => {
                    let response = response.await.map_err(lost)?;
                    if response.status() != StatusCode::OK {
                        return Err(LinkError::Silent);
                    }
                    self.response = Response::Here(response.into_body());
                    continue;
                }
                Response::Here(body) => body,
            };
            let Some(bytes) = body.data().await else { return Ok(None) };
            self.rest = bytes.map_err(lost)?;
            body.flow_control().release_capacity(self.rest.len()).map_err(lost)?;
        }
        Ok(Some(self.rest.split_to(limit.min(self.rest.len()))))
    }
}

fn lost(error: h2::Error) -> LinkError {
    // The peer closes what it has no use for any more, and says why elsewhere.
    if error.is_reset() { LinkError::Silent } else { LinkError::Lost(Fault::Streams(error)) }
}

/// Returns a stream as a server has it.
#[cfg(test)]
pub(crate) fn server_side(
    send: h2::SendStream<Bytes>,
    recv: h2::RecvStream,
) -> (super::SendStream, super::RecvStream) {
    let response = Response::Here(recv);
    (SendStream(send).into(), RecvStream { response, rest: Bytes::new() }.into())
}
