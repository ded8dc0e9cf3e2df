//! Connections: the endpoint, the race over addresses, frames on a stream.
//!
//! Every limit of a connection is set here and none is inherited. Knows TLS and
//! QUIC, and neither logins nor sessions.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, ReadError, SendStream, TokioRuntime,
    TransportConfig, VarInt, WriteError,
};
use rustix::net::sockopt::set_ipv6_v6only;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tegata_proto::code::Code;
use tegata_proto::frame::{self, FrameError};
use tegata_proto::login::Gateway;
use tegata_proto::proof::{EXPORTER_LABEL, EXPORTER_LEN};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};
use zeroize::Zeroizing;

use crate::trust::{Authority, Distrust, Expected};

/// How long a connection may be silent before it is lost.
pub const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// How often a silent connection says that it is there.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long a handshake may take.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// How long one address is ahead of the next (RFC 8305 §5 recommends 250 ms and
/// allows 100 ms to 2 s).
pub const HEAD_START: Duration = Duration::from_millis(200);

/// How often an agent that insists begins another handshake, and how long each may
/// take: a packet that was lost in an outage is not waited for.
const INSIST_PAUSE: Duration = Duration::from_millis(250);
const INSIST_DEADLINE: Duration = Duration::from_millis(1500);

/// Most addresses that one race is over.
pub const ADDRESSES_MAX: usize = 32;

/// How many bytes of one stream the peer may send before they are read.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;

/// How many bytes of all streams the peer may send before they are read.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW + 64 * 1024;

/// How many bytes may wait for the peer's acknowledgement.
const SEND_WINDOW: u64 = 2 * 1024 * 1024;

/// Longest piece read from a stream at once, in bytes.
pub(crate) const CHUNK_MAX: usize = 256 * 1024;

/// The name in the handshake's SNI; servers choose by ALPN and do not look.
const SERVER_NAME: &str = "tegata";

/// Application code of a connection that is closed in good order.
const CLOSE: VarInt = VarInt::from_u32(0);

/// Why there is no connection, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// None of the addresses answered in time.
    #[error("none of {tried} addresses answered")]
    Unreachable {
        /// How many.
        tried: usize,
        /// Why the last one did not.
        #[source]
        source: Option<ConnectionError>,
    },
    /// An address answered, but not as the one expected.
    #[error("{address} cannot be trusted")]
    Distrusted {
        /// Which address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: Distrust,
    },
    /// An address answered, and TLS came to nothing.
    #[error("the handshake with {address} failed")]
    Handshake {
        /// Which address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: ConnectionError,
    },
    /// The connection ended.
    #[error("the connection was lost")]
    Lost(#[source] ConnectionError),
    /// The peer closed the stream, or said nothing in time.
    #[error("the peer said no more")]
    Silent,
    /// The peer sent what is not a frame.
    #[error("the peer sent a bad frame")]
    Frame(#[from] FrameError),
    /// This build's own TLS settings do not fit together.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

impl LinkError {
    /// Returns the code that a run ends with.
    pub fn code(&self) -> Code {
        match self {
            Self::Unreachable { .. } | Self::Lost(_) | Self::Silent => Code::Unreachable,
            Self::Distrusted { .. } | Self::Handshake { .. } => Code::TlsFailed,
            Self::Frame(_) => Code::Malformed,
            Self::Tls(_) => Code::Internal,
        }
    }

    /// Returns what the peer said when it closed the connection, if it did.
    pub(crate) fn farewell(&self) -> Option<Code> {
        let Self::Lost(ConnectionError::ApplicationClosed(close)) = self else { return None };
        Code::ALL.iter().copied().find(|code| code.as_str().as_bytes() == close.reason)
    }

    /// Tells whether this machine's clock is the likely cause.
    pub fn is_clock_suspect(&self) -> bool {
        matches!(self, Self::Distrusted { source: Distrust::Clock { .. }, .. })
    }
}

/// Opens an endpoint of its own for both address families, or for IPv4 where
/// there is no IPv6.
///
/// # Errors
///
/// Fails when the system gives no socket.
pub fn endpoint() -> io::Result<Endpoint> {
    let runtime = Arc::new(TokioRuntime);
    Endpoint::new(EndpointConfig::default(), None, socket()?, runtime)
}

/// Puts every connection of an endpoint on a new socket, from which they go on over
/// whatever way the system has now.
///
/// # Errors
///
/// Fails when the system gives no socket; the old one is kept then.
pub(crate) fn rebind(endpoint: &Endpoint) -> io::Result<()> {
    endpoint.rebind(socket()?)
}

fn socket() -> io::Result<UdpSocket> {
    let six = || {
        let kind = (AddressFamily::INET6, SocketType::DGRAM, SocketFlags::CLOEXEC);
        let socket = socket_with(kind.0, kind.1, kind.2, None)?;
        set_ipv6_v6only(&socket, false)?;
        bind(&socket, &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0))?;
        Ok(UdpSocket::from(socket))
    };
    six().or_else(|_: rustix::io::Errno| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
}

/// Returns the limits of the agent's connections.
pub(crate) fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().expect("a minute is a VarInt")));
    transport
}

/// One address, and who must be there.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) address: SocketAddr,
    pub(crate) expected: Expected,
}

impl Candidate {
    /// Returns a gateway at each of these addresses, in the order in which they are
    /// tried.
    pub(crate) fn of(
        gateway: &Gateway,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> Vec<Self> {
        let (id, spki_sha256) = (gateway.id.clone(), gateway.spki_sha256);
        let expected = Expected::Gateway { id, spki_sha256 };
        let ordered = interleave(addresses).into_iter();
        ordered.map(|address| Self { address, expected: expected.clone() }).collect()
    }
}

/// Puts addresses into the order in which they are tried: families alternate,
/// IPv6 first, each in the order given (RFC 8305 §4).
pub(crate) fn interleave(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let mut ordered = Vec::with_capacity(six.len() + four.len());
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    loop {
        let before = ordered.len();
        ordered.extend(six.next());
        ordered.extend(four.next());
        if ordered.len() == before {
            ordered.truncate(ADDRESSES_MAX);
            return ordered;
        }
    }
}

/// Connects to each candidate in turn, each [`HEAD_START`] ahead of the next,
/// and returns the first connection that is made and believed.
pub(crate) async fn race(
    endpoint: &Endpoint,
    authority: &Authority,
    transport: &Arc<TransportConfig>,
    candidates: &[Candidate],
) -> Result<(Candidate, Connection), LinkError> {
    let mut running = JoinSet::new();
    let mut rest = candidates.iter();
    // A peer that answered wrongly says more than one that did not answer.
    let mut worst = LinkError::Unreachable { tried: candidates.len(), source: None };
    loop {
        let started = rest.next();
        if let Some(candidate) = started {
            let dialled = dial(endpoint, authority, transport, candidate, HANDSHAKE_DEADLINE)?;
            running.spawn(dialled);
        } else if running.is_empty() {
            return Err(worst);
        }
        let more = rest.len() > 0;
        tokio::select! {
            Some(joined) = running.join_next() => match joined {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(error)) => worst = worst.or_worse(error, candidates.len()),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            () = sleep(HEAD_START), if more => {}
        }
    }
}

/// Connects to all candidates at once, again and again without waiting for the last
/// time to fail, until one is there and believed, or `until` has come.
pub(crate) async fn insist(
    endpoint: &Endpoint,
    authority: &Authority,
    transport: &Arc<TransportConfig>,
    candidates: &[Candidate],
    until: Instant,
) -> Result<(Candidate, Connection), LinkError> {
    let mut running = JoinSet::new();
    let mut beat = interval(INSIST_PAUSE);
    let mut worst = LinkError::Unreachable { tried: candidates.len(), source: None };
    loop {
        tokio::select! {
            biased;
            () = sleep_until(until) => return Err(worst),
            Some(joined) = running.join_next() => match joined {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(error)) => worst = worst.or_worse(error, candidates.len()),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            _ = beat.tick() => {
                for candidate in candidates {
                    let deadline = INSIST_DEADLINE;
                    running.spawn(dial(endpoint, authority, transport, candidate, deadline)?);
                }
            }
        }
    }
}

fn dial(
    endpoint: &Endpoint,
    authority: &Authority,
    transport: &Arc<TransportConfig>,
    candidate: &Candidate,
    deadline: Duration,
) -> Result<impl Future<Output = Result<(Candidate, Connection), LinkError>> + use<>, LinkError> {
    let (tls, verdict) = authority.client(candidate.expected.clone()).map_err(LinkError::Tls)?;
    let quic = QuicClientConfig::try_from(tls)
        .map_err(|_| LinkError::Tls(rustls::Error::General("no cipher for QUIC".into())))?;
    let mut config = quinn::ClientConfig::new(Arc::new(quic));
    config.transport_config(Arc::clone(transport));
    let connecting = endpoint.connect_with(config, candidate.address, SERVER_NAME);
    let candidate = candidate.clone();
    Ok(async move {
        let unreachable = |source| LinkError::Unreachable { tried: 1, source };
        let connecting = connecting.map_err(|_| unreachable(None))?;
        match timeout(deadline, connecting).await {
            Ok(Ok(connection)) => Ok((candidate, connection)),
            Ok(Err(source)) => Err(failed(candidate.address, &verdict, source)),
            Err(_) => Err(unreachable(Some(ConnectionError::TimedOut))),
        }
    })
}

/// Crypto errors are the codes 0x100 to 0x1ff (RFC 9000 §20.1).
const CRYPTO_ERRORS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;

fn failed(address: SocketAddr, verdict: &OnceLock<Distrust>, source: ConnectionError) -> LinkError {
    if let Some(distrust) = verdict.get() {
        return LinkError::Distrusted { address, source: distrust.clone() };
    }
    let crypto = match &source {
        ConnectionError::TransportError(error) => CRYPTO_ERRORS.contains(&error.code.into()),
        ConnectionError::ConnectionClosed(close) => {
            CRYPTO_ERRORS.contains(&close.error_code.into())
        }
        ConnectionError::VersionMismatch
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => false,
    };
    if crypto {
        LinkError::Handshake { address, source }
    } else {
        LinkError::Unreachable { tried: 1, source: Some(source) }
    }
}

impl LinkError {
    fn or_worse(self, other: Self, tried: usize) -> Self {
        match (self, other) {
            (Self::Unreachable { source: old, .. }, Self::Unreachable { source, .. }) => {
                Self::Unreachable { tried, source: source.or(old) }
            }
            (Self::Unreachable { .. }, worse) => worse,
            (known, _) => known,
        }
    }
}

/// Returns the bytes that bind a proof to this connection.
pub(crate) fn exporter(connection: &Connection) -> Result<[u8; EXPORTER_LEN], LinkError> {
    let mut bytes = [0; EXPORTER_LEN];
    connection.export_keying_material(&mut bytes, EXPORTER_LABEL, b"").map_err(|_| {
        LinkError::Tls(rustls::Error::General("no exporter before the handshake is over".into()))
    })?;
    Ok(bytes)
}

/// Closes a connection in good order.
pub(crate) fn close(connection: &Connection) {
    connection.close(CLOSE, b"");
}

/// Sends one frame; what stood in it is cleared from memory.
pub(crate) async fn say<M: Serialize>(
    stream: &mut SendStream,
    message: &M,
    limit: usize,
) -> Result<(), LinkError> {
    let bytes = Zeroizing::new(frame::write(message, limit)?);
    stream.write_all(&bytes).await.map_err(unsaid)
}

fn unsaid(error: WriteError) -> LinkError {
    match error {
        WriteError::ConnectionLost(error) => LinkError::Lost(error),
        WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => {
            LinkError::Silent
        }
    }
}

/// Frames on their way to one stream, a frame at a time.
#[derive(Debug)]
pub(crate) struct Voice {
    stream: SendStream,
    pending: Bytes,
}

impl Voice {
    pub(crate) fn new(stream: SendStream) -> Self {
        Self { stream, pending: Bytes::new() }
    }

    /// Tells whether all that was begun has been said.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Begins a frame, once the one before has been said.
    pub(crate) fn begin<M: Serialize>(&mut self, message: &M) -> Result<(), LinkError> {
        debug_assert!(self.is_idle(), "a frame would be cut");
        self.pending = frame::write(message, frame::LIMIT_AFTER)?.into();
        Ok(())
    }

    /// Goes on with what was begun. Loses nothing when it is dropped half-way.
    pub(crate) async fn flush(&mut self) -> Result<(), LinkError> {
        while !self.pending.is_empty() {
            let pending = std::slice::from_mut(&mut self.pending);
            self.stream.write_chunks(pending).await.map_err(unsaid)?;
        }
        Ok(())
    }

    /// Finishes the stream, and waits until the peer has everything.
    pub(crate) async fn finish(&mut self) {
        if self.stream.finish().is_ok() {
            let _ = self.stream.stopped().await;
        }
    }
}

/// The frames of one stream.
#[derive(Debug)]
pub(crate) struct Frames {
    stream: quinn::RecvStream,
    decoder: frame::Decoder,
    pending: Bytes,
}

impl Frames {
    pub(crate) fn new(stream: quinn::RecvStream) -> Self {
        Self { stream, decoder: frame::Decoder::new(), pending: Bytes::new() }
    }

    /// Returns the next message. Loses nothing when it is dropped half-way.
    pub(crate) async fn next<M: DeserializeOwned>(&mut self, limit: usize) -> Result<M, LinkError> {
        loop {
            let mut input = &self.pending[..];
            let body = self.decoder.take(&mut input, limit)?;
            let taken = self.pending.len() - input.len();
            let _ = self.pending.split_to(taken);
            if let Some(body) = body {
                return Ok(frame::read(&body)?);
            }
            let wanted = self.decoder.wanted(limit)?;
            match self.stream.read_chunk(wanted, true).await {
                Ok(Some(chunk)) => self.pending = chunk.bytes,
                Ok(None) => return Err(LinkError::Silent),
                Err(error) => return Err(lost(error)),
            }
        }
    }
}

#[cfg(test)]
impl Frames {
    /// Gives the stream back, after a frame that was followed by nothing yet.
    pub(crate) fn into_rest(self) -> quinn::RecvStream {
        assert!(self.pending.is_empty(), "bytes of the stream would be lost");
        self.stream
    }
}

/// Says what a failed read means.
pub(crate) fn lost(error: ReadError) -> LinkError {
    match error {
        ReadError::ConnectionLost(error) => LinkError::Lost(error),
        ReadError::Reset(_)
        | ReadError::ClosedStream
        | ReadError::IllegalOrderedRead
        | ReadError::ZeroRttRejected => LinkError::Silent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_alternate_and_ipv6_goes_first() {
        let parse = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let [a, b, c, d] = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "[2001:db8::1]:1"].map(parse);
        assert_eq!(interleave([a, b, c, d]), [d, a, b, c]);
        assert_eq!(interleave([]), []);
        assert_eq!(interleave(std::iter::repeat_n(a, 100)).len(), ADDRESSES_MAX);
    }

    #[tokio::test]
    async fn who_insists_does_not_wait_for_a_handshake_to_fail() {
        let office = crate::office::Office::new();
        let agent = office.agent();
        let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        nobody.set_nonblocking(true).expect("a socket");
        let leaf = office.ca.issue(&["tegata:gateway/g1"]);
        let address = nobody.local_addr().expect("bound");
        let id = tegata_proto::id::GatewayId::new("g1").expect("a name");
        let spki_sha256 = leaf.spki_sha256();
        let gateway = Gateway { id, addresses: vec![address], spki_sha256 };
        let candidates = Candidate::of(&gateway, gateway.addresses.clone());
        let until = Instant::now() + INSIST_PAUSE * 5 / 2;
        let outcome =
            insist(&agent.endpoint, &agent.authority, &agent.transport, &candidates, until).await;
        assert!(matches!(outcome, Err(LinkError::Unreachable { tried: 1, .. })));
        // RFC 9000 §17.2: the connection id that a client has drawn for the server.
        let mut handshakes = std::collections::BTreeSet::new();
        let mut datagram = [0; 2048];
        while let Ok(length) = nobody.recv(&mut datagram) {
            let id_length = usize::from(datagram[5]);
            assert!(length > 6 + id_length, "a long header");
            handshakes.insert(datagram[6..6 + id_length].to_vec());
        }
        assert_eq!(handshakes.len(), 3, "at once, and after one pause and two");
    }
}
