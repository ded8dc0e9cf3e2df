//! One connection of a stranger's, by either transport.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tegata_parts::streams::{self, Streams};
use tegata_proto::code::Code;
use tegata_proto::frame;
use tegata_proto::proof::{EXPORTER_LABEL, EXPORTER_LEN};
use tegata_proto::session::{self, Channel, Open};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::{credulous, credulous_tls};

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

/// How a line goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// QUIC.
    Quic,
    /// HTTP/2 in TLS on TCP.
    Tcp,
}

/// One connection with its control stream.
pub struct Line {
    way: Way,
    send: Send,
    receive: Receive,
}

enum Way {
    Quic { _endpoint: quinn::Endpoint, connection: quinn::Connection },
    Tcp(Streams),
}

/// How a line was ended by the other side, or broke.
#[derive(Debug)]
pub enum Ended {
    /// By QUIC.
    Quic(quinn::ConnectionError),
    /// By TCP.
    Tcp(streams::Closed),
}

/// The half of a stream that is sent on.
#[derive(Debug)]
pub enum Send {
    /// By QUIC.
    Quic(quinn::SendStream),
    /// By TCP.
    Tcp(streams::Send),
}

/// The half that is received on.
#[derive(Debug)]
pub enum Receive {
    /// By QUIC.
    Quic(quinn::RecvStream),
    /// By TCP.
    Tcp(streams::Receive),
}

impl Line {
    /// Connects by QUIC without asking who answers.
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
        Self::open_by(Transport::Quic, from, to, alpn).await
    }

    /// The same by either transport.
    ///
    /// # Errors
    ///
    /// When nobody takes the connection.
    pub async fn open_by(
        transport: Transport,
        from: Ipv4Addr,
        to: SocketAddr,
        alpn: &[u8],
    ) -> Result<Self> {
        match transport {
            Transport::Quic => {
                let mut transport = quinn::TransportConfig::default();
                transport
                    .stream_receive_window(WINDOW.into())
                    .keep_alive_interval(Some(KEEP_ALIVE))
                    .max_idle_timeout(Some(IDLE.try_into()?));
                let mut config = quinn::ClientConfig::new(Arc::new(credulous(&[alpn])?));
                config.transport_config(Arc::new(transport));
                Self::open_with(config, from, to).await
            }
            Transport::Tcp => {
                let socket = TcpSocket::new_v4()?;
                socket.bind((from, 0).into())?;
                let connected = timeout(ANSWER, socket.connect(to)).await;
                let socket = connected.context("nobody accepts")??;
                let tls = Arc::new(credulous_tls(&[alpn])?);
                let streams = timeout(ANSWER, Streams::connect(socket, tls, EXPORTER_LABEL)).await;
                let streams = streams.context("no handshake")??;
                let (send, receive) = streams.open().await?;
                let (send, receive) = (Send::Tcp(send), Receive::Tcp(receive));
                Ok(Self { way: Way::Tcp(streams), send, receive })
            }
        }
    }

    /// Connects by QUIC from an address of this machine, in a way of its own.
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
        let way = Way::Quic { _endpoint: endpoint, connection };
        Ok(Self { way, send: Send::Quic(send), receive: Receive::Quic(receive) })
    }

    /// Returns how it goes.
    pub fn transport(&self) -> Transport {
        match self.way {
            Way::Quic { .. } => Transport::Quic,
            Way::Tcp(_) => Transport::Tcp,
        }
    }

    /// Returns QUIC's own side of it, where it goes by that.
    pub fn quic(&self) -> Option<&quinn::Connection> {
        match &self.way {
            Way::Quic { connection, .. } => Some(connection),
            Way::Tcp(_) => None,
        }
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
        match (&mut self.send, in_order) {
            (Send::Quic(send), true) => send.finish()?,
            (Send::Quic(send), false) => send.reset(0_u32.into())?,
            (Send::Tcp(send), true) => send.finish()?,
            (Send::Tcp(send), false) => send.reset(),
        }
        Ok(())
    }

    /// Returns the exporter that proofs on this connection are bound to.
    ///
    /// # Errors
    ///
    /// When TLS has none.
    pub fn exporter(&self) -> Result<[u8; EXPORTER_LEN]> {
        match &self.way {
            Way::Quic { connection, .. } => {
                let mut exporter = [0; EXPORTER_LEN];
                let done = connection.export_keying_material(&mut exporter, EXPORTER_LABEL, b"");
                done.ok().context("no exporter")?;
                Ok(exporter)
            }
            Way::Tcp(streams) => Ok(streams.exporter()),
        }
    }

    /// Sends one frame.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
    pub async fn say<M: Serialize>(&mut self, message: &M) -> Result<()> {
        self.send(&frame::write(message, frame::LIMIT_AFTER)?).await
    }

    /// Opens the stream that carries the desktop, after `attached`.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
    pub async fn desktop(&self) -> Result<(Send, Receive)> {
        let (mut send, receive) = match &self.way {
            Way::Quic { connection, .. } => {
                let (send, receive) = connection.open_bi().await?;
                (Send::Quic(send), Receive::Quic(receive))
            }
            Way::Tcp(streams) => {
                let (send, receive) = streams.open().await?;
                (Send::Tcp(send), Receive::Tcp(receive))
            }
        };
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
        self.end(true)?;
        match &mut self.send {
            Send::Quic(send) => drop(timeout(ANSWER, send.stopped()).await??),
            // What has arrived is told by nothing but what the other side does then.
            Send::Tcp(_) => drop(timeout(ANSWER, self.ended()).await?),
        }
        self.close();
        Ok(())
    }

    /// Closes it.
    pub fn close(&self) {
        match &self.way {
            Way::Quic { connection, .. } => connection.close(0_u32.into(), b""),
            Way::Tcp(streams) => streams.cut(),
        }
    }

    /// Tells whether it is known to have ended.
    pub fn is_closed(&self) -> bool {
        match &self.way {
            Way::Quic { connection, .. } => connection.close_reason().is_some(),
            Way::Tcp(streams) => streams.is_closed(),
        }
    }

    /// Waits until it has ended, and returns how.
    pub async fn ended(&self) -> Ended {
        match &self.way {
            Way::Quic { connection, .. } => Ended::Quic(connection.closed().await),
            Way::Tcp(streams) => Ended::Tcp(streams.closed().await),
        }
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
        timeout(ANSWER, async {
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

impl AsyncWrite for Send {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Quic(send) => AsyncWrite::poll_write(Pin::new(send), cx, bytes),
            Self::Tcp(send) => Pin::new(send).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(send) => Pin::new(send).poll_flush(cx),
            Self::Tcp(send) => Pin::new(send).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(send) => Pin::new(send).poll_shutdown(cx),
            Self::Tcp(send) => Pin::new(send).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Receive {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(receive) => AsyncRead::poll_read(Pin::new(receive), cx, buf),
            Self::Tcp(receive) => Pin::new(receive).poll_read(cx, buf),
        }
    }
}
