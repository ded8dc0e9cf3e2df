//! The same connection, written frame by frame (RFC 9113 §4.1), for what no client would say.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Closed;

/// What a client says first (RFC 9113 §3.4), an empty SETTINGS behind it.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The headers of a stream of ours, as HPACK has them (RFC 7541): `POST`, `https`, `/` by their
/// numbers, and `tegata` in full.
pub const REQUEST: &[u8] = b"\x83\x87\x84\x01\x06tegata";

/// Kinds of frames.
pub const DATA: u8 = 0;
/// Opens a stream.
pub const HEADERS: u8 = 1;
/// Gives a stream up.
pub const RST_STREAM: u8 = 3;
/// Says how to be spoken to.
pub const SETTINGS: u8 = 4;
/// Promises an answer to what nobody asked.
pub const PUSH_PROMISE: u8 = 5;
/// Asks for a sign of life.
pub const PING: u8 = 6;
/// Says that this is the end.
pub const GOAWAY: u8 = 7;
/// Gives room.
pub const WINDOW_UPDATE: u8 = 8;
/// More of the headers.
pub const CONTINUATION: u8 = 9;

/// The flag of HEADERS and CONTINUATION that there is no more of them.
pub const END_HEADERS: u8 = 4;

/// A connection that says what it is told to.
#[derive(Debug)]
pub struct Raw {
    stream: TlsStream<TcpStream>,
}

/// Writes a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Writes the frame that opens a stream of ours.
pub fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, REQUEST)
}

impl Raw {
    /// Goes through TLS's handshake, and says nothing yet.
    ///
    /// # Errors
    ///
    /// When the server does not take part.
    pub async fn connect(socket: TcpStream, tls: Arc<rustls::ClientConfig>) -> io::Result<Self> {
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        Ok(Self { stream: TlsConnector::from(tls).connect(name, socket).await? })
    }

    /// Says this.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Returns the socket, with all that has come and was not read.
    pub fn into_socket(self) -> TcpStream {
        self.stream.into_inner().0
    }

    /// Says this, and nothing more, and reads until the server ends it.
    pub async fn say(self, bytes: &[u8]) -> Closed {
        let (mut hears, says) = tokio::io::split(self.stream);
        tokio::select! {
            never = say_only(says, bytes) => match never {},
            closed = goodbye(&mut hears) => closed,
        }
    }

    /// Says this over and over without reading, until the server takes no more.
    pub async fn say_deafly(mut self, bytes: &[u8]) {
        while self.stream.write_all(bytes).await.is_ok() {}
    }

    /// Says this a byte at a time, and reads until the server ends it.
    pub async fn trickle(self, bytes: &[u8], each: std::time::Duration) -> Closed {
        let (mut hears, mut says) = tokio::io::split(self.stream);
        let saying = async {
            for byte in bytes {
                let _ = says.write_all(&[*byte]).await;
                let _ = says.flush().await;
                tokio::time::sleep(each).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = saying => Closed::Cut,
            closed = goodbye(&mut hears) => closed,
        }
    }
}

/// A frame that was heard.
struct Frame {
    kind: u8,
    payload: Vec<u8>,
}

/// Says this, and stays.
async fn say_only(mut says: impl AsyncWrite + Unpin, bytes: &[u8]) -> Infallible {
    // What the server has closed takes no more.
    let _ = says.write_all(bytes).await;
    let _ = says.flush().await;
    std::future::pending().await
}

async fn next(hears: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let mut head = [0; 9];
    hears.read_exact(&mut head).await?;
    let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
    hears.read_exact(&mut payload).await?;
    Ok(Frame { kind: head[3], payload })
}

/// Reads a number of 32 bits.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// Reads frames to the end, and returns how it was told.
async fn goodbye(hears: &mut (impl AsyncRead + Unpin)) -> Closed {
    let mut told = Closed::Cut;
    while let Ok(frame) = next(hears).await {
        if let (GOAWAY, Some(code)) = (frame.kind, frame.payload.get(4..8)) {
            told = Closed::Said(number(code));
        }
    }
    told
}

/// A socket that takes so many bytes, and then takes more and sends none of them.
#[derive(Debug)]
pub struct Cut {
    socket: TcpStream,
    left: usize,
}

impl Cut {
    /// Sends so many bytes.
    pub fn after(socket: TcpStream, bytes: usize) -> Self {
        Self { socket, left: bytes }
    }
}

impl AsyncRead for Cut {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Cut {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Poll::Ready(Ok(bytes.len()));
        }
        let most = bytes.len().min(this.left);
        let sent = Pin::new(&mut this.socket).poll_write(cx, &bytes[..most]);
        if let Poll::Ready(Ok(sent)) = sent {
            this.left -= sent;
        }
        sent
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // It says nothing more, and stays.
        Poll::Ready(Ok(()))
    }
}
