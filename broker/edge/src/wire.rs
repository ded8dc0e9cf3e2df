//! Frames on the streams of a connection.
//!
//! [`FrameReader`] asks the stream for no byte beyond the frame, so the stream
//! can be taken back at any frame's end and carry raw bytes from there. What a
//! peer may send is decided by `tegata_proto::frame`; this module adds time.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tegata_proto::frame::{self, Decoder, FrameError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use crate::connection::{RecvStream, SendStream};

/// Most bytes taken from a stream at once. Small, because a reader that waits for
/// its next frame keeps room for them.
const PIECE: usize = 256;

/// Why no frame was read or written. The peer is closed in each case.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream or its connection has ended, perhaps in the middle of a frame.
    #[error("the peer has closed")]
    Closed,
    /// The deadline passed first.
    #[error("the peer was too slow")]
    TooSlow,
    /// The peer sent a frame that is none, or one too long.
    #[error("the peer sent a bad frame")]
    Malformed(#[source] FrameError),
    /// Our own message does not fit into a frame. Nothing was sent.
    #[error("a message does not fit into its frame")]
    Unsendable(#[source] FrameError),
}

/// Reads frames from a stream.
pub struct FrameReader<S = RecvStream> {
    stream: S,
    decoder: Decoder,
}

impl<S: AsyncRead + Send + Unpin> FrameReader<S> {
    /// Starts where the stream stands, which must be the start of a frame.
    pub fn new(stream: S) -> Self {
        Self { stream, decoder: Decoder::new() }
    }

    /// Waits for the next frame and reads it as an `M`.
    ///
    /// Dropping the future loses nothing: the next call goes on with the bytes
    /// that are already here.
    ///
    /// # Errors
    ///
    /// Refuses a body longer than `limit` bytes before it is received, and what
    /// is no `M`; ends when `deadline` passes or the peer closes.
    pub async fn read<M: DeserializeOwned>(
        &mut self,
        limit: usize,
        deadline: Instant,
    ) -> Result<M, WireError> {
        timeout_at(deadline, self.next(limit)).await.map_err(|_| WireError::TooSlow)?
    }

    /// Waits for the next frame for as long as the connection lives.
    ///
    /// For frames that may come at any time; see [`read`](Self::read) for the rest.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), without the deadline.
    pub async fn next<M: DeserializeOwned>(&mut self, limit: usize) -> Result<M, WireError> {
        loop {
            let wanted = self.decoder.wanted(limit).map_err(WireError::Malformed)?;
            let mut piece = [0; PIECE];
            let piece = &mut piece[..wanted.min(PIECE)];
            let read = self.stream.read(piece).await.unwrap_or(0);
            if read == 0 {
                return Err(WireError::Closed);
            }
            let body = self.decoder.take(&mut &piece[..read], limit);
            if let Some(body) = body.map_err(WireError::Malformed)? {
                return frame::read(&body).map_err(WireError::Malformed);
            }
        }
    }

    /// Gives the stream back. Between two frames nothing is left behind here.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Gives the stream back, and what has come of the next frame.
    pub(crate) fn into_parts(self) -> (S, Decoder) {
        (self.stream, self.decoder)
    }
}

impl<S> fmt::Debug for FrameReader<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The decoder may hold half a password.
        f.debug_struct("FrameReader").finish_non_exhaustive()
    }
}

/// Writes frames to a stream.
///
/// INVARIANT: nothing follows a frame that has begun but the rest of it, so the
/// peer never reads the head of one frame and the tail of another.
pub struct FrameWriter<S = SendStream> {
    stream: S,
    /// What is left of a frame that has begun.
    rest: Zeroizing<Vec<u8>>,
}

impl<S: AsyncWrite + Send + Unpin> FrameWriter<S> {
    /// Starts where the stream stands.
    pub fn new(stream: S) -> Self {
        Self { stream, rest: Zeroizing::default() }
    }

    /// Goes on after what is left of a frame that has begun.
    pub(crate) fn with_rest(stream: S, rest: Zeroizing<Vec<u8>>) -> Self {
        Self { stream, rest }
    }

    /// Writes a message as one frame and returns once the stream has taken all of it.
    ///
    /// When the deadline passes, or the future is dropped, the frame may have
    /// begun; the next call then finishes it before it begins its own. A frame of
    /// which nothing was taken is forgotten.
    ///
    /// # Errors
    ///
    /// Refuses a body longer than `limit` bytes; ends when `deadline` passes or
    /// the peer closes.
    pub async fn write<M: Serialize + Sync>(
        &mut self,
        message: &M,
        limit: usize,
        deadline: Instant,
    ) -> Result<(), WireError> {
        let frame = frame::write(message, limit).map_err(WireError::Unsendable)?;
        let frame = Zeroizing::new(frame);
        timeout_at(deadline, self.put(frame)).await.map_err(|_| WireError::TooSlow)?
    }

    async fn put(&mut self, frame: Zeroizing<Vec<u8>>) -> Result<(), WireError> {
        self.put_rest().await?;
        // A write that is dropped has taken nothing.
        let taken = take(&mut self.stream, &frame).await?;
        self.rest = frame;
        self.rest.drain(..taken);
        self.put_rest().await
    }

    async fn put_rest(&mut self) -> Result<(), WireError> {
        while !self.rest.is_empty() {
            let taken = take(&mut self.stream, &self.rest).await?;
            self.rest.drain(..taken);
        }
        // A writer that is silent keeps no room.
        self.rest = Zeroizing::default();
        Ok(())
    }

    /// Ends the stream, after a frame that has begun, and waits until it is done:
    /// for one of ours, until the peer has everything, or by TCP
    /// until everything is on its way.
    ///
    /// # Errors
    ///
    /// Ends when `deadline` passes, or the peer closes without having it all.
    pub async fn finish(mut self, deadline: Instant) -> Result<(), WireError> {
        timeout_at(deadline, self.put_rest()).await.map_err(|_| WireError::TooSlow)??;
        let shut = timeout_at(deadline, self.stream.shutdown()).await;
        shut.map_err(|_| WireError::TooSlow)?.map_err(|_| WireError::Closed)
    }

    /// Gives the stream back, for raw bytes after the last frame.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Gives the stream back, and what is left of a frame that has begun.
    pub(crate) fn into_parts(self) -> (S, Zeroizing<Vec<u8>>) {
        (self.stream, self.rest)
    }
}

impl<S> fmt::Debug for FrameWriter<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The rest may hold a ticket.
        f.debug_struct("FrameWriter").finish_non_exhaustive()
    }
}

/// Gives a stream as much as it takes now, at least one byte.
async fn take(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<usize, WireError> {
    match stream.write(bytes).await {
        Ok(0) | Err(_) => Err(WireError::Closed),
        Ok(taken) => Ok(taken),
    }
}
