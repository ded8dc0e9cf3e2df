//! One connection to a desktop, whichever way it takes.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use tegata_agent::Session;
use tegata_proto::code::Code;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::counter::Counter;

/// Most bytes that are read at once.
const READ_MAX: usize = 256 * 1024;

/// How long a desktop may take to answer anything.
const ANSWER: Duration = Duration::from_secs(20);

/// A connection whose first byte told the desktop what to do.
pub(super) struct Line {
    carrier: Carrier,
    buffer: Vec<u8>,
}

enum Carrier {
    Session(Box<Session>),
    Tls(Box<TlsStream<TcpStream>>),
    Plain(TcpStream),
}

impl Line {
    /// Asks the desktop at the other end of a session.
    pub(super) async fn over_session(session: Session, wish: u8) -> Result<Self> {
        Self::asking(Carrier::Session(Box::new(session)), wish).await
    }

    /// Asks the desktop at the other end of a TLS connection.
    pub(super) async fn over_tls(stream: TlsStream<TcpStream>, wish: u8) -> Result<Self> {
        Self::asking(Carrier::Tls(Box::new(stream)), wish).await
    }

    /// Asks the desktop itself.
    pub(super) async fn plain(stream: TcpStream, wish: u8) -> Result<Self> {
        Self::asking(Carrier::Plain(stream), wish).await
    }

    async fn asking(carrier: Carrier, wish: u8) -> Result<Self> {
        // A QUIC stream hands out its own buffers.
        let room = if matches!(carrier, Carrier::Session(_)) { 0 } else { READ_MAX };
        let mut line = Self { carrier, buffer: vec![0; room] };
        line.send(&Bytes::copy_from_slice(&[wish])).await?;
        Ok(line)
    }

    /// Sends all of it.
    pub(super) async fn send(&mut self, bytes: &Bytes) -> Result<()> {
        match &mut self.carrier {
            Carrier::Session(session) => session.send.write_chunk(bytes.clone()).await?,
            Carrier::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await?;
            }
            Carrier::Plain(stream) => stream.write_all(bytes).await?,
        }
        Ok(())
    }

    /// Receives what there is, at least a byte, and returns how much it was.
    pub(super) async fn receive(&mut self) -> Result<usize> {
        let count = match &mut self.carrier {
            Carrier::Session(session) => {
                session.receive(READ_MAX).await?.map_or(0, |bytes| bytes.len())
            }
            Carrier::Tls(stream) => stream.read(&mut self.buffer).await?,
            Carrier::Plain(stream) => stream.read(&mut self.buffer).await?,
        };
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof))
                .context("the desktop closed");
        }
        Ok(count)
    }

    /// Receives what there is, at least a byte.
    pub(super) async fn take(&mut self) -> Result<Bytes> {
        if let Carrier::Session(session) = &mut self.carrier {
            let bytes = session.receive(READ_MAX).await?.filter(|bytes| !bytes.is_empty());
            return bytes.context("the desktop closed");
        }
        let count = self.receive().await?;
        Ok(Bytes::copy_from_slice(&self.buffer[..count]))
    }

    /// Sends a piece and waits until as much came back.
    pub(super) async fn echo(&mut self, piece: &Bytes) -> Result<()> {
        let back = async {
            self.send(piece).await?;
            let mut missing = piece.len();
            while missing > 0 {
                missing = missing.saturating_sub(self.receive().await?);
            }
            Ok(())
        };
        timeout(ANSWER, back).await.context("a desktop does not answer")?
    }

    /// Receives and counts until it is dropped or fails.
    pub(super) async fn receive_all(mut self, counter: Counter) -> Result<()> {
        loop {
            counter.add(self.receive().await?);
        }
    }

    /// Sends until it is dropped or fails.
    pub(super) async fn send_all(mut self, piece: Bytes) -> Result<()> {
        loop {
            self.send(&piece).await?;
        }
    }

    /// Ends it, in good order where there is one.
    pub(super) async fn end(self) {
        if let Carrier::Session(session) = self.carrier {
            session.bye(Code::LoggedOff).await;
        }
    }
}
