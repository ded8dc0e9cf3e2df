//! Connections to brokers and gateways, and frames on their streams.
//!
//! A [`connection`] is QUIC, or TLS on TCP where a network lets no UDP pass; what is
//! said over it does not know which. [`dialler`] makes them. Every limit of a
//! connection is set here or in [`quic`] and [`tcp`], and none is inherited. Knows
//! neither logins nor sessions.

mod connection;
mod dialler;
mod patience;
mod quic;
mod tcp;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use quinn::{ConnectionError, TransportErrorCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tegata_proto::code::Code;
use tegata_proto::frame::{self, FrameError};
use tegata_proto::login::Gateway;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::trust::{Distrust, Expected};

pub use connection::{RecvStream, SendStream};
pub use quic::endpoint;

pub(crate) use connection::Connection;
pub(crate) use dialler::{Dialler, Field};
#[cfg(test)]
pub(crate) use tcp::server_side;

/// How long a connection may be silent before it is lost.
pub const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// How often a silent connection says that it is there.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long a handshake may take.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a peer may take to let a stream be opened, or a frame be sent on it: both
/// wait for nothing but its limits.
pub const LET_WITHIN: Duration = Duration::from_secs(5);

/// Most addresses that one race is over.
pub const ADDRESSES_MAX: usize = 32;

/// How many bytes of one stream the peer may send before they are read.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;

/// How many bytes of all streams the peer may send before they are read.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW + 64 * 1024;

/// How many bytes may wait: for the peer's acknowledgement by QUIC, and to be written
/// to the socket by TCP.
const SEND_WINDOW: u32 = 2 * 1024 * 1024;

/// Longest piece read from a stream at once, in bytes.
pub(crate) const CHUNK_MAX: usize = 256 * 1024;

/// The name in the handshake's SNI; servers choose by ALPN and do not look.
const SERVER_NAME: &str = "tegata";

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// QUIC, on UDP.
    Quic,
    /// TLS on TCP.
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "QUIC",
            Self::Tcp => "TCP",
        })
    }
}

/// How a connection came to nothing, or ended, as its transport says it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// By QUIC.
    #[error(transparent)]
    Quic(ConnectionError),
    /// By TCP, or TLS on it.
    #[error(transparent)]
    Socket(std::io::Error),
    /// By HTTP/2, which carries the streams on TCP.
    #[error(transparent)]
    Streams(h2::Error),
    /// The peer did not answer in time.
    #[error("timed out")]
    TimedOut,
    /// The peer speaks TLS, and not what was asked for.
    #[error("the peer does not speak the protocol")]
    OtherProtocol,
    /// It was closed on this side.
    #[error("closed")]
    Closed,
}

impl Fault {
    /// Tells whether the peer is there and takes nobody in now (RFC 9000 §20.1).
    fn is_refusal(&self) -> bool {
        let Self::Quic(ConnectionError::ConnectionClosed(close)) = self else { return false };
        close.error_code == TransportErrorCode::CONNECTION_REFUSED
    }
}

/// Why there is no connection, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// None of the addresses answered in time.
    #[error("none of {tried} addresses answered")]
    Unreachable {
        /// How many.
        tried: usize,
        /// Why the last one did not, or that one takes nobody in.
        #[source]
        source: Option<Fault>,
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
        source: Fault,
    },
    /// The connection ended.
    #[error("the connection was lost")]
    Lost(#[source] Fault),
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
            Self::Unreachable { source: Some(fault), .. } if fault.is_refusal() => {
                Code::Unavailable
            }
            Self::Unreachable { .. } | Self::Lost(_) | Self::Silent => Code::Unreachable,
            Self::Distrusted { .. } | Self::Handshake { .. } => Code::TlsFailed,
            Self::Frame(_) => Code::Malformed,
            Self::Tls(_) => Code::Internal,
        }
    }

    /// Returns what the peer said when it closed the connection, if it did.
    pub(crate) fn farewell(&self) -> Option<Code> {
        // By TCP nobody says anything beside what the streams have brought.
        let Self::Lost(Fault::Quic(ConnectionError::ApplicationClosed(close))) = self else {
            return None;
        };
        Code::ALL.iter().copied().find(|code| code.as_str().as_bytes() == close.reason)
    }

    /// Tells whether somebody of our authority answered who is not the one expected.
    pub(crate) fn is_replaced(&self) -> bool {
        let Self::Distrusted { source, .. } = self else { return false };
        match source {
            Distrust::Role { .. } | Distrust::Key => true,
            Distrust::Authority(_) | Distrust::Clock { .. } => false,
        }
    }

    /// Tells whether this machine's clock is the likely cause.
    pub fn is_clock_suspect(&self) -> bool {
        matches!(self, Self::Distrusted { source: Distrust::Clock { .. }, .. })
    }
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

/// Waits until the next of these is over. One that panics takes whoever waits along.
pub(crate) async fn next_of<T: 'static>(running: &mut JoinSet<T>) -> Option<T> {
    match running.join_next().await?.map_err(JoinError::try_into_panic) {
        Ok(outcome) => Some(outcome),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // Nobody but a runtime that ends cuts them off, and then nobody waits any more.
        Err(Err(_)) => std::future::pending().await,
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

impl LinkError {
    fn or_worse(self, other: Self, tried: usize) -> Self {
        match (self, other) {
            (Self::Unreachable { source: old, .. }, Self::Unreachable { source, .. }) => {
                // By TCP the same peer can only hang up.
                let source = match old {
                    Some(refusal) if refusal.is_refusal() => Some(refusal),
                    old => source.or(old),
                };
                Self::Unreachable { tried, source }
            }
            (Self::Unreachable { .. }, worse) => worse,
            (known, _) => known,
        }
    }
}

/// Sends one frame, if the peer lets it be sent in time; what stood in it is cleared from
/// memory.
pub(crate) async fn say<M: Serialize>(
    stream: &mut SendStream,
    message: &M,
    limit: usize,
) -> Result<(), LinkError> {
    let bytes = Zeroizing::new(frame::write(message, limit)?);
    let said = timeout(LET_WITHIN, stream.write_chunk(Bytes::from_owner(bytes)));
    said.await.map_err(|_| LinkError::Silent)?
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
        self.begin_padded(message, 0)
    }

    /// Begins a frame of at least so many bytes, once the one before has been said.
    pub(crate) fn begin_padded<M: Serialize>(
        &mut self,
        message: &M,
        least: usize,
    ) -> Result<(), LinkError> {
        debug_assert!(self.is_idle(), "a frame would be cut");
        self.pending = frame::write_padded(message, least, frame::LIMIT_AFTER)?.into();
        Ok(())
    }

    /// Goes on with what was begun. Loses nothing when it is dropped half-way.
    pub(crate) async fn flush(&mut self) -> Result<(), LinkError> {
        while !self.pending.is_empty() {
            self.stream.write(&mut self.pending).await?;
        }
        Ok(())
    }

    /// Finishes the stream, and waits until the peer has everything.
    pub(crate) async fn finish(&mut self) {
        self.stream.finish();
        self.stream.arrived().await;
    }
}

/// The frames of one stream.
#[derive(Debug)]
pub(crate) struct Frames {
    stream: RecvStream,
    decoder: frame::Decoder,
    pending: Bytes,
}

impl Frames {
    pub(crate) fn new(stream: RecvStream) -> Self {
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
            self.pending = self.stream.read(wanted).await?.ok_or(LinkError::Silent)?;
        }
    }
}

#[cfg(test)]
impl Frames {
    /// Gives the stream back, after a frame that was followed by nothing yet.
    pub(crate) fn into_rest(self) -> RecvStream {
        assert!(self.pending.is_empty(), "bytes of the stream would be lost");
        self.stream
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
}
