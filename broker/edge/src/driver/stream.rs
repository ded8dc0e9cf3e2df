//! The two halves of a stream, as a handler on tokio has them.
//!
//! Dropped, a half that sends finishes and a half that receives asks the peer to
//! stop, unless it was joined to a desktop meanwhile.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn_proto::{ClosedStream, ReadError, StreamId, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Shared;

/// Code of a stream whose handler has gone.
const NOT_WANTED: VarInt = VarInt::from_u32(0);

/// The half of a stream that the peer sends on.
pub struct RecvStream {
    shared: Arc<Shared>,
    id: StreamId,
    /// Whether the stream's end has been read, or it is in other hands.
    over: bool,
}

/// The half of a stream that we send on.
pub struct SendStream {
    shared: Arc<Shared>,
    id: StreamId,
    over: bool,
}

impl RecvStream {
    pub(super) fn new(shared: &Arc<Shared>, id: StreamId) -> Self {
        Self { shared: Arc::clone(shared), id, over: false }
    }

    /// Asks the peer to send nothing more, and drops what is here.
    ///
    /// # Errors
    ///
    /// Fails when the stream has ended or was stopped before.
    pub fn stop(&mut self, code: VarInt) -> Result<(), ClosedStream> {
        let stopped = self.shared.state().quic.recv_stream(self.id).stop(code);
        self.over = true;
        self.shared.ring();
        stopped
    }

    /// Gives the stream into other hands.
    pub(super) fn into_id(mut self) -> StreamId {
        self.over = true;
        self.id
    }

    fn poll_chunk(&mut self, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.over || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.shared.state();
        let mut stream = state.quic.recv_stream(self.id);
        let mut chunks = stream.read(true).map_err(io::Error::other)?;
        let next = chunks.next(buf.remaining());
        let credit = chunks.finalize().should_transmit();
        let done = match next {
            Ok(Some(chunk)) => {
                buf.put_slice(&chunk.bytes);
                Ok(())
            }
            Ok(None) => {
                self.over = true;
                Ok(())
            }
            Err(reset @ ReadError::Reset(_)) => {
                self.over = true;
                Err(io::Error::new(io::ErrorKind::ConnectionReset, reset))
            }
            Err(ReadError::Blocked) => {
                if let Some(lost) = &state.lost {
                    return Poll::Ready(Err(lost.clone().into()));
                }
                state.readers.insert(self.id, cx.waker());
                return Poll::Pending;
            }
        };
        drop(state);
        if credit {
            self.shared.ring();
        }
        Poll::Ready(done)
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().poll_chunk(cx, buf)
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.readers.remove(self.id);
        if !self.over && state.lost.is_none() {
            // Fails only where it has ended by itself.
            let _ = state.quic.recv_stream(self.id).stop(NOT_WANTED);
            drop(state);
            self.shared.ring();
        }
    }
}

impl SendStream {
    pub(super) fn new(shared: &Arc<Shared>, id: StreamId) -> Self {
        Self { shared: Arc::clone(shared), id, over: false }
    }

    /// Gives the stream up; the peer may lose what it has not received.
    ///
    /// # Errors
    ///
    /// Fails when the peer has everything, or the stream was reset before.
    pub fn reset(&mut self, code: VarInt) -> Result<(), ClosedStream> {
        let reset = self.shared.state().quic.send_stream(self.id).reset(code);
        self.over = true;
        self.shared.ring();
        reset
    }

    /// Gives the stream into other hands.
    pub(super) fn into_id(mut self) -> StreamId {
        self.over = true;
        self.id
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.shared.state();
        if let Some(lost) = &state.lost {
            return Poll::Ready(Err(lost.clone().into()));
        }
        let written = match state.quic.send_stream(self.id).write(bytes) {
            Ok(written) => written,
            Err(WriteError::Blocked) => {
                state.writers.insert(self.id, cx.waker());
                return Poll::Pending;
            }
            Err(ended @ (WriteError::Stopped(_) | WriteError::ClosedStream)) => {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, ended)));
            }
        };
        drop(state);
        self.shared.ring();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Finishes the stream, and is done when the peer has received everything.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.over = true;
        let mut state = this.shared.state();
        let mut stream = state.quic.send_stream(this.id);
        let finished = stream.finish().is_ok();
        match stream.stopped() {
            // Nothing is known of a stream any more that has arrived.
            Err(ClosedStream { .. }) => return Poll::Ready(Ok(())),
            Ok(Some(_)) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Ok(None) => {}
        }
        if let Some(lost) = &state.lost {
            return Poll::Ready(Err(lost.clone().into()));
        }
        state.writers.insert(this.id, cx.waker());
        drop(state);
        if finished {
            this.shared.ring();
        }
        Poll::Pending
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.writers.remove(self.id);
        if self.over || state.lost.is_some() {
            return;
        }
        // Fails only where the peer has given it up.
        let _ = state.quic.send_stream(self.id).reset(NOT_WANTED);
        drop(state);
        self.shared.ring();
    }
}
