//! A peer's connection as a handler has it, whichever transport it came by.
//!
//! Each type here is one of two: of QUIC, which [`crate::driver`] carries, or of TLS
//! on TCP, which [`crate::tcp`] carries. Both mean the same by every word: what a
//! handler ends carries nothing once the call has returned. A desktop's side knows
//! neither, so a session goes on over the other one.

pub(crate) mod carrying;
mod desktop_side;
pub(crate) mod hearing;
pub(crate) mod saying;
mod splice;
mod stream;
mod traffic;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};
use quinn_proto::VarInt;
use tegata_proto::proof::EXPORTER_LEN;

use crate::{driver, tcp};

pub use self::desktop_side::{DesktopSide, REPLAY};
pub use self::hearing::{Acknowledges, NotHeard};
pub use self::saying::Acknowledgement;
pub(crate) use self::splice::Seam;
pub use self::splice::{Account, Control, NotJoined, Parted, Splice, Way};
pub use self::stream::{NotOpen, RecvStream, SendStream};
pub use self::traffic::Traffic;

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// QUIC on UDP.
    Quic,
    /// HTTP/2 streams in TLS on TCP.
    Tcp,
}

impl Transport {
    /// Returns its name, as metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

impl EncodeLabelValue for Transport {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        fmt::Write::write_str(encoder, self.as_str())
    }
}

/// Why nothing more comes over a connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// QUIC says so.
    #[error(transparent)]
    Quic(#[from] quinn_proto::ConnectionError),
    /// TLS on TCP has ended.
    #[error(transparent)]
    Tcp(#[from] tcp::Lost),
}

/// A connection of a peer, its handshake complete. Clones are the same one.
#[derive(Debug, Clone)]
pub enum Connection {
    /// By QUIC.
    Quic(driver::Connection),
    /// By TLS on TCP.
    Tcp(tcp::Connection),
}

impl Connection {
    /// Returns what carries it.
    pub fn transport(&self) -> Transport {
        match self {
            Self::Quic(_) => Transport::Quic,
            Self::Tcp(_) => Transport::Tcp,
        }
    }

    /// Waits for the next stream that the peer opens.
    ///
    /// # Errors
    ///
    /// Tells why there will be none.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), Lost> {
        match self {
            Self::Quic(quic) => {
                let (send, recv) = quic.accept_bi().await?;
                Ok((SendStream::Quic(send), RecvStream::Quic(recv)))
            }
            Self::Tcp(tcp) => {
                let (send, recv) = tcp.accept_bi().await?;
                Ok((SendStream::Tcp(send), RecvStream::Tcp(recv)))
            }
        }
    }

    /// The peer has shown a right to a session, and may from now on send as far ahead of its
    /// readers as one needs. Before, and for whoever never has one, that is a few kilobytes.
    pub fn widen(&self) {
        match self {
            Self::Quic(quic) => quic.widen(),
            Self::Tcp(tcp) => tcp.widen(),
        }
    }

    /// Waits until the connection is lost or closed, by whichever side.
    pub async fn closed(&self) -> Lost {
        match self {
            Self::Quic(quic) => quic.closed().await.into(),
            Self::Tcp(tcp) => tcp.closed().await.into(),
        }
    }

    /// Closes the connection at once and tells the peer why, as far as its transport
    /// can. Bytes that it has not received are lost. May be repeated.
    pub fn close(&self, code: VarInt, reason: &[u8]) {
        match self {
            Self::Quic(quic) => quic.close(code, reason),
            Self::Tcp(tcp) => tcp.close(code),
        }
    }

    /// Returns where the peer is now. Over QUIC it may move.
    pub fn remote_address(&self) -> SocketAddr {
        match self {
            Self::Quic(quic) => quic.remote_address(),
            Self::Tcp(tcp) => tcp.remote_address(),
        }
    }

    /// Returns how long a packet and its answer take now, where that is known.
    pub fn rtt(&self) -> Option<Duration> {
        match self {
            Self::Quic(quic) => Some(quic.rtt()),
            Self::Tcp(_) => None,
        }
    }

    /// Returns the TLS exporter that proofs on this connection are bound to.
    pub(crate) fn exporter(&self) -> Option<[u8; EXPORTER_LEN]> {
        match self {
            Self::Quic(quic) => quic.exporter(),
            Self::Tcp(tcp) => Some(tcp.exporter()),
        }
    }

    /// Returns the ALPN that was agreed on.
    pub(crate) fn alpn(&self) -> Option<Vec<u8>> {
        match self {
            Self::Quic(quic) => quic.alpn(),
            Self::Tcp(tcp) => Some(tcp.alpn().to_vec()),
        }
    }
}
