//! The two halves of a stream, as a handler on tokio has them.
//!
//! Dropped before it was shut down, a half that sends is reset by QUIC and finished by
//! TCP, and a half that receives takes nothing more; but not where it was joined to a
//! desktop meanwhile. Where the difference matters, it is reset by whoever gives it up.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use quinn_proto::VarInt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{driver, tcp};

/// A stream that has ended already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream has ended")]
pub struct NotOpen;

/// The half of a stream that the peer sends on.
pub enum RecvStream {
    /// By QUIC.
    Quic(driver::RecvStream),
    /// By TLS on TCP.
    Tcp(tcp::RecvStream),
}

/// The half of a stream that we send on.
pub enum SendStream {
    /// By QUIC.
    Quic(driver::SendStream),
    /// By TLS on TCP.
    Tcp(tcp::SendStream),
}

impl RecvStream {
    /// Takes nothing more, and drops what is here. The peer is told where its
    /// transport has a word for that.
    ///
    /// # Errors
    ///
    /// Fails when the stream has ended or was stopped before.
    pub fn stop(&mut self, code: VarInt) -> Result<(), NotOpen> {
        match self {
            Self::Quic(quic) => quic.stop(code).map_err(|_| NotOpen),
            Self::Tcp(tcp) => tcp.stop(),
        }
    }
}

impl SendStream {
    /// Gives the stream up; the peer may lose what it has not received.
    ///
    /// # Errors
    ///
    /// Fails when the peer has everything, or the stream was reset before.
    pub fn reset(&mut self, code: VarInt) -> Result<(), NotOpen> {
        match self {
            Self::Quic(quic) => quic.reset(code).map_err(|_| NotOpen),
            Self::Tcp(tcp) => tcp.reset(),
        }
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(quic) => Pin::new(quic).poll_read(cx, buf),
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Quic(quic) => Pin::new(quic).poll_write(cx, bytes),
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(quic) => Pin::new(quic).poll_flush(cx),
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
        }
    }

    /// Finishes the stream. Over QUIC it is done when the peer has received
    /// everything, over TCP when everything is on its way.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(quic) => Pin::new(quic).poll_shutdown(cx),
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
        }
    }
}
