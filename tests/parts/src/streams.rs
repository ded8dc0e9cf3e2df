//! Streams in TLS on TCP, as a client opens them: HTTP/2 with prior knowledge, a stream
//! for each request, its body one way and that of the answer the other.

pub mod raw;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::{Reason, client};
use http::Request;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsConnector;

/// What every request asks for.
pub const URI: &str = "https://tegata/";

/// Bytes that the other side may send ahead on one stream.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// Bytes that it may send ahead on one connection.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW + 64 * 1024;

/// Largest frame that it may send.
const FRAME_MAX: u32 = 64 * 1024;

/// Bytes of one stream that wait here to be sent.
const SEND_BUFFER: usize = 256 * 1024;

/// A connection on which streams can be opened. Dropped, it is cut off.
#[derive(Debug)]
pub struct Streams {
    requests: client::SendRequest<Bytes>,
    exporter: [u8; 32],
    closed: watch::Receiver<Option<Closed>>,
    local: SocketAddr,
    driving: AbortHandle,
    _driver: JoinSet<()>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// In order, or with this error code (RFC 9113 §7).
    Said(u32),
    /// Without a word.
    Cut,
}

/// The half that is sent on.
#[derive(Debug)]
pub struct Send {
    stream: h2::SendStream<Bytes>,
}

/// The half that is received on.
#[derive(Debug)]
pub struct Receive {
    /// Until the answer is here.
    answer: Option<client::ResponseFuture>,
    body: Option<h2::RecvStream>,
    rest: Bytes,
}

impl Streams {
    /// Goes through the handshakes, over a socket that is connected. `label` names the exporter.
    ///
    /// # Errors
    ///
    /// When the server does not take part.
    pub async fn connect(
        socket: TcpStream,
        tls: Arc<rustls::ClientConfig>,
        label: &[u8],
    ) -> io::Result<Self> {
        let local = socket.local_addr()?;
        socket.set_nodelay(true)?;
        Self::over(socket, local, tls, label).await
    }

    /// The same, over anything.
    ///
    /// # Errors
    ///
    /// When the server does not take part.
    pub async fn over(
        socket: impl AsyncRead + AsyncWrite + std::marker::Send + Unpin + 'static,
        local: SocketAddr,
        tls: Arc<rustls::ClientConfig>,
        label: &[u8],
    ) -> io::Result<Self> {
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let tls = TlsConnector::from(tls).connect(name, socket).await?;
        let session = tls.get_ref().1;
        let exporter =
            session.export_keying_material([0; 32], label, Some(b"")).map_err(io::Error::other)?;
        let (requests, connection) = client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_MAX)
            .max_send_buffer_size(SEND_BUFFER)
            .handshake(tls)
            .await
            .map_err(io::Error::other)?;
        let (told, closed) = watch::channel(None);
        let mut driver = JoinSet::new();
        let driving = driver.spawn(async move {
            let how = match connection.await {
                Ok(()) => Closed::Said(0),
                Err(error) => match error.reason() {
                    Some(reason) if error.is_go_away() => Closed::Said(reason.into()),
                    Some(_) | None => Closed::Cut,
                },
            };
            told.send_replace(Some(how));
        });
        Ok(Self { requests, exporter, closed, local, driving, _driver: driver })
    }

    /// Opens a stream, once the server allows one more.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub async fn open(&self) -> io::Result<(Send, Receive)> {
        let mut request = Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static(URI);
        self.request(request).await
    }

    /// Opens a stream by any request.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub async fn request(&self, request: Request<()>) -> io::Result<(Send, Receive)> {
        let mut requests = self.requests.clone().ready().await.map_err(io::Error::other)?;
        let (answer, stream) = requests.send_request(request, false).map_err(io::Error::other)?;
        Ok((Send { stream }, Receive { answer: Some(answer), body: None, rest: Bytes::new() }))
    }

    /// Returns the TLS exporter.
    pub fn exporter(&self) -> [u8; 32] {
        self.exporter
    }

    /// Returns where this end is.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) -> Closed {
        let mut closed = self.closed.clone();
        let ended = closed.wait_for(Option::is_some).await;
        ended.ok().and_then(|how| *how).unwrap_or(Closed::Cut)
    }

    /// Tells whether the connection is known to have ended.
    pub fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    /// Cuts the connection off.
    pub fn cut(&self) {
        self.driving.abort();
    }
}

impl Send {
    /// Says that nothing more comes.
    ///
    /// # Errors
    ///
    /// When the stream is gone.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.send_data(Bytes::new(), true).map_err(io::Error::other)
    }

    /// Gives the stream up.
    pub fn reset(&mut self) {
        self.stream.send_reset(Reason::CANCEL);
    }
}

impl AsyncWrite for Send {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream } = self.get_mut();
        stream.reserve_capacity(bytes.len().min(SEND_BUFFER));
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let sent = stream.capacity().min(bytes.len());
        let piece = Bytes::copy_from_slice(&bytes[..sent]);
        Poll::Ready(stream.send_data(piece, false).map(|()| sent).map_err(io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().finish())
    }
}

impl AsyncRead for Receive {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(answer) = &mut this.answer {
            let answer = ready!(Pin::new(answer).poll(cx)).map_err(io::Error::other)?;
            (this.answer, this.body) = (None, Some(answer.into_body()));
        }
        let Some(body) = &mut this.body else { return Poll::Ready(Ok(())) };
        while this.rest.is_empty() {
            match ready!(body.poll_data(cx)) {
                Some(Ok(bytes)) => this.rest = bytes,
                Some(Err(error)) => {
                    let error = io::Error::new(io::ErrorKind::ConnectionReset, error);
                    return Poll::Ready(Err(error));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = this.rest.len().min(buf.remaining());
        buf.put_slice(&this.rest[..taken]);
        this.rest.advance(taken);
        // Fails only where nothing more comes.
        let _ = body.flow_control().release_capacity(taken);
        Poll::Ready(Ok(()))
    }
}
