//! One connection and its streams, whichever transport carries them.

use std::time::Duration;

use bytes::Bytes;
use quinn::{ReadError, VarInt, WriteError};
use rustls::pki_types::CertificateDer;
use tegata_proto::encoding::Sha256;
use tegata_proto::proof::{EXPORTER_LABEL, EXPORTER_LEN};
use tokio::time::timeout;

use super::{CHUNK_MAX, Fault, LET_WITHIN, LinkError, Transport, tcp};
use crate::trust::key_of;

/// Application code of a connection that is closed in good order, and of a stream that
/// is given up.
const CLOSE: VarInt = VarInt::from_u32(0);

/// How often QUIC tries a size before it gives it up.
const SIZE_TRIES: u64 = 3;

/// A connection that is made and believed. It ends with its last clone.
#[derive(Debug, Clone)]
pub(crate) struct Connection(Carrier);

#[derive(Debug, Clone)]
enum Carrier {
    Quic(quinn::Connection),
    Tcp(tcp::Connection),
}

/// Carries bytes to the peer. Dropped before it is [finished](Self::finish), it is
/// reset, so that nobody takes a cut for an end.
#[derive(Debug)]
pub struct SendStream {
    out: Out,
    is_finished: bool,
}

#[derive(Debug)]
enum Out {
    Quic(quinn::SendStream),
    Tcp(tcp::SendStream),
}

/// Carries bytes from the peer.
#[derive(Debug)]
pub struct RecvStream(In);

#[derive(Debug)]
enum In {
    Quic(quinn::RecvStream),
    Tcp(tcp::RecvStream),
}

impl From<quinn::Connection> for Connection {
    fn from(connection: quinn::Connection) -> Self {
        Self(Carrier::Quic(connection))
    }
}

impl From<tcp::Connection> for Connection {
    fn from(connection: tcp::Connection) -> Self {
        Self(Carrier::Tcp(connection))
    }
}

impl Connection {
    /// Returns what carries it.
    pub(crate) fn transport(&self) -> Transport {
        match &self.0 {
            Carrier::Quic(_) => Transport::Quic,
            Carrier::Tcp(_) => Transport::Tcp,
        }
    }

    /// Opens the next stream, if the peer lets it be opened in time; it counts them in
    /// the order of this.
    pub(crate) async fn open(&self) -> Result<(SendStream, RecvStream), LinkError> {
        timeout(LET_WITHIN, self.open_in_turn()).await.map_err(|_| LinkError::Silent)?
    }

    async fn open_in_turn(&self) -> Result<(SendStream, RecvStream), LinkError> {
        match &self.0 {
            Carrier::Quic(connection) => {
                let (send, recv) = connection
                    .open_bi()
                    .await
                    .map_err(|error| LinkError::Lost(Fault::Quic(error)))?;
                Ok((send.into(), recv.into()))
            }
            Carrier::Tcp(connection) => {
                let (send, recv) = connection.open().await?;
                Ok((send.into(), recv.into()))
            }
        }
    }

    /// Returns the bytes that bind a proof to this connection.
    pub(crate) fn exporter(&self) -> Result<[u8; EXPORTER_LEN], LinkError> {
        match &self.0 {
            Carrier::Quic(connection) => {
                let mut bytes = [0; EXPORTER_LEN];
                connection.export_keying_material(&mut bytes, EXPORTER_LABEL, b"").map_err(
                    |_| {
                        let early = "no exporter before the handshake is over";
                        LinkError::Tls(rustls::Error::General(early.into()))
                    },
                )?;
                Ok(bytes)
            }
            Carrier::Tcp(connection) => Ok(connection.exporter()),
        }
    }

    /// Returns the SHA-256 of the key in the peer's certificate.
    pub(crate) fn peer_key(&self) -> Option<Sha256> {
        match &self.0 {
            Carrier::Quic(connection) => {
                let shown = connection.peer_identity()?.downcast::<Vec<CertificateDer<'_>>>();
                shown.ok()?.first().and_then(key_of)
            }
            Carrier::Tcp(connection) => connection.peer_key(),
        }
    }

    /// Closes it in good order: by QUIC at once, by TCP once what was written has been
    /// sent, within a bounded while.
    pub(crate) fn close(&self) {
        match &self.0 {
            Carrier::Quic(connection) => connection.close(CLOSE, b""),
            Carrier::Tcp(connection) => connection.close(),
        }
    }

    /// Returns how long an answer takes at best, as last measured.
    pub(crate) fn rtt(&self) -> Duration {
        match &self.0 {
            Carrier::Quic(connection) => connection.rtt(),
            Carrier::Tcp(connection) => connection.rtt(),
        }
    }

    /// Returns a number that grows with everything that arrives: datagrams by QUIC,
    /// bytes by TCP.
    pub(crate) fn heard(&self) -> u64 {
        match &self.0 {
            Carrier::Quic(connection) => connection.stats().udp_rx.datagrams,
            Carrier::Tcp(connection) => connection.heard(),
        }
    }

    /// Returns a number that grows with everything that is sent, in the same units.
    pub(crate) fn sent(&self) -> u64 {
        match &self.0 {
            Carrier::Quic(connection) => connection.stats().udp_tx.datagrams,
            Carrier::Tcp(connection) => connection.sent(),
        }
    }

    /// Asks for a sign of life where what is sent has none of its own: QUIC
    /// acknowledges everything, and of what the kernel hears by TCP nobody is told.
    pub(crate) fn probe(&self) {
        match &self.0 {
            Carrier::Quic(_) => {}
            Carrier::Tcp(connection) => connection.probe(),
        }
    }

    /// Tells whether the way carries datagrams of the size that it is [measured] for;
    /// nothing until that is known, and by TCP, where the kernel sees to it.
    ///
    /// [measured]: super::Dialler::measuring
    pub(crate) fn carries(&self, datagram: u16) -> Option<bool> {
        let Carrier::Quic(connection) = &self.0 else { return None };
        let path = connection.stats().path;
        let is_carried = path.current_mtu >= datagram;
        (is_carried || path.lost_plpmtud_probes >= SIZE_TRIES).then_some(is_carried)
    }
}

impl From<quinn::SendStream> for SendStream {
    fn from(stream: quinn::SendStream) -> Self {
        Self { out: Out::Quic(stream), is_finished: false }
    }
}

impl From<tcp::SendStream> for SendStream {
    fn from(stream: tcp::SendStream) -> Self {
        Self { out: Out::Tcp(stream), is_finished: false }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        match &mut self.out {
            // Fails only where the peer has given it up.
            Out::Quic(stream) => drop(stream.reset(CLOSE)),
            Out::Tcp(stream) => stream.reset(),
        }
    }
}

impl SendStream {
    /// Sends all of it.
    ///
    /// # Errors
    ///
    /// The connection is lost, or the peer takes no more of this stream.
    pub async fn write_chunk(&mut self, mut bytes: Bytes) -> Result<(), LinkError> {
        while !bytes.is_empty() {
            self.write(&mut bytes).await?;
        }
        Ok(())
    }

    /// Sends the beginning of it, as far as there is room, takes that off and returns
    /// its length. Loses nothing when it is dropped half-way.
    ///
    /// # Errors
    ///
    /// The connection is lost, or the peer takes no more of this stream.
    pub async fn write(&mut self, bytes: &mut Bytes) -> Result<usize, LinkError> {
        match &mut self.out {
            Out::Quic(stream) => {
                let written = stream.write_chunks(std::slice::from_mut(bytes)).await;
                written.map(|written| written.bytes).map_err(unsent)
            }
            Out::Tcp(stream) => stream.write(bytes).await,
        }
    }

    /// Says that nothing follows.
    pub fn finish(&mut self) {
        self.is_finished = true;
        match &mut self.out {
            Out::Quic(stream) => drop(stream.finish()),
            Out::Tcp(stream) => stream.finish(),
        }
    }

    /// Tells whether it was said that nothing follows.
    pub(crate) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Waits until the peer has everything, where only that keeps a close from
    /// cutting it off. The caller bounds the wait.
    pub async fn arrived(&mut self) {
        match &mut self.out {
            Out::Quic(stream) => drop(stream.stopped().await),
            // A close sends the rest.
            Out::Tcp(_) => {}
        }
    }
}

impl From<quinn::RecvStream> for RecvStream {
    fn from(stream: quinn::RecvStream) -> Self {
        Self(In::Quic(stream))
    }
}

impl From<tcp::RecvStream> for RecvStream {
    fn from(stream: tcp::RecvStream) -> Self {
        Self(In::Tcp(stream))
    }
}

impl RecvStream {
    /// Returns what comes next, at most `limit` bytes, and nothing at the end. Loses
    /// nothing when it is dropped half-way.
    ///
    /// # Errors
    ///
    /// The connection is lost, or the peer dropped the stream.
    pub async fn read(&mut self, limit: usize) -> Result<Option<Bytes>, LinkError> {
        match &mut self.0 {
            In::Quic(stream) => {
                let chunk = stream.read_chunk(limit.min(CHUNK_MAX), true).await;
                chunk.map(|chunk| chunk.map(|chunk| chunk.bytes)).map_err(unheard)
            }
            In::Tcp(stream) => stream.read(limit).await,
        }
    }
}

fn unsent(error: WriteError) -> LinkError {
    match error {
        WriteError::ConnectionLost(error) => LinkError::Lost(Fault::Quic(error)),
        // The peer closes what it has no use for any more, and says why elsewhere.
        WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => {
            LinkError::Silent
        }
    }
}

fn unheard(error: ReadError) -> LinkError {
    match error {
        ReadError::ConnectionLost(error) => LinkError::Lost(Fault::Quic(error)),
        ReadError::Reset(_)
        | ReadError::ClosedStream
        | ReadError::IllegalOrderedRead
        | ReadError::ZeroRttRejected => LinkError::Silent,
    }
}
