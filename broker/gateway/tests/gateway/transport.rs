//! One connection of an agent's, by QUIC or by TLS on TCP.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use quinn::VarInt;
use tegata_edge::connection::Transport;
use tegata_parts::streams::{self, Streams};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

pub(crate) enum Connection {
    Quic(quinn::Connection),
    Tcp(Streams),
}

pub(crate) enum SendStream {
    Quic(quinn::SendStream),
    Tcp(streams::Send),
}

pub(crate) enum RecvStream {
    Quic(quinn::RecvStream),
    Tcp(streams::Receive),
}

impl Connection {
    pub(crate) fn transport(&self) -> Transport {
        match self {
            Self::Quic(_) => Transport::Quic,
            Self::Tcp(_) => Transport::Tcp,
        }
    }

    pub(crate) async fn open_bi(&self) -> io::Result<(SendStream, RecvStream)> {
        match self {
            Self::Quic(quic) => {
                let (send, recv) = quic.open_bi().await?;
                Ok((SendStream::Quic(send), RecvStream::Quic(recv)))
            }
            Self::Tcp(tcp) => {
                let (send, recv) = tcp.open().await?;
                Ok((SendStream::Tcp(send), RecvStream::Tcp(recv)))
            }
        }
    }

    pub(crate) fn close(&self, code: VarInt, reason: &[u8]) {
        match self {
            Self::Quic(quic) => quic.close(code, reason),
            Self::Tcp(tcp) => tcp.cut(),
        }
    }

    /// Waits for its end, and returns what the gateway gave as its reason.
    pub(crate) async fn closed(&self) -> String {
        match self {
            Self::Quic(quic) => quic.closed().await.to_string(),
            Self::Tcp(tcp) => format!("{:?}", tcp.closed().await),
        }
    }
}

impl SendStream {
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Quic(quic) => quic.finish().map_err(io::Error::other),
            Self::Tcp(tcp) => tcp.finish(),
        }
    }
}

impl RecvStream {
    /// Reads to the stream's end.
    pub(crate) async fn read_to_end(&mut self, limit: usize) -> io::Result<Vec<u8>> {
        let mut read = Vec::new();
        self.take(limit as u64 + 1).read_to_end(&mut read).await?;
        assert!(read.len() <= limit, "more than {limit} bytes");
        Ok(read)
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Quic(quic) => AsyncWrite::poll_write(Pin::new(quic), cx, bytes),
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().finish())
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(quic) => AsyncRead::poll_read(Pin::new(quic), cx, buf),
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
        }
    }
}
