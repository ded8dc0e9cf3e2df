//! The two halves of a stream of HTTP/2: what the peer sends is the body of a request,
//! what we send that of its answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Shared;
use super::transport::SEND_BUFFER;
use crate::connection::NotOpen;

/// The half of a stream that the peer sends on.
pub struct RecvStream {
    body: Body,
    over: bool,
}

/// A request's body, and what was taken of it and is not used.
pub(super) struct Body {
    pub(super) stream: h2::RecvStream,
    pub(super) rest: Bytes,
}

/// The half of a stream that we send on.
pub struct SendStream {
    shared: Arc<Shared>,
    /// Nothing where the peer gave it up at once, or it is in other hands.
    stream: Option<h2::SendStream<Bytes>>,
    over: bool,
}

impl RecvStream {
    pub(super) fn new(stream: h2::RecvStream) -> Self {
        Self { body: Body { stream, rest: Bytes::new() }, over: false }
    }

    /// Takes nothing more. HTTP/2 has no word for that; what comes is dropped.
    pub(crate) fn stop(&mut self) -> Result<(), NotOpen> {
        if self.over || self.body.stream.is_end_stream() {
            return Err(NotOpen);
        }
        self.over = true;
        Ok(())
    }

    /// Gives the stream into other hands.
    pub(super) fn into_body(self) -> Body {
        self.body
    }
}

impl Body {
    /// Gives the peer room for as many bytes as were used up.
    pub(super) fn used(&mut self, bytes: usize) {
        // Fails only where nothing more comes anyway.
        let _ = self.stream.flow_control().release_capacity(bytes);
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { body, over } = self.get_mut();
        if *over || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        while body.rest.is_empty() {
            match ready!(body.stream.poll_data(cx)) {
                Some(Ok(bytes)) => body.rest = bytes,
                Some(Err(error)) => {
                    *over = true;
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error)));
                }
                None => {
                    *over = true;
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let taken = body.rest.len().min(buf.remaining());
        buf.put_slice(&body.rest[..taken]);
        body.rest.advance(taken);
        body.used(taken);
        Poll::Ready(Ok(()))
    }
}

impl SendStream {
    pub(super) fn new(shared: &Arc<Shared>, stream: Option<h2::SendStream<Bytes>>) -> Self {
        Self { shared: Arc::clone(shared), stream, over: false }
    }

    /// Gives the stream up, both halves of it; the peer may lose what it has not
    /// received.
    pub(crate) fn reset(&mut self) -> Result<(), NotOpen> {
        let stream = self.stream.as_mut().filter(|_| !self.over).ok_or(NotOpen)?;
        self.over = true;
        stream.send_reset(Reason::CANCEL);
        Ok(())
    }

    /// Gives the stream into other hands.
    pub(super) fn into_stream(mut self) -> Option<h2::SendStream<Bytes>> {
        self.over = true;
        self.stream.take()
    }
}

/// Sends as many of `bytes` as go now, at least one, as `cut` cuts them out. Nothing
/// means that the peer takes none any more.
pub(super) fn poll_send(
    stream: &mut h2::SendStream<Bytes>,
    cx: &mut Context<'_>,
    length: usize,
    cut: impl FnOnce(usize) -> Bytes,
) -> Poll<Option<usize>> {
    stream.reserve_capacity(length.min(SEND_BUFFER));
    while stream.capacity() == 0 {
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(None),
        }
    }
    let piece = cut(stream.capacity().min(length));
    let sent = piece.len();
    Poll::Ready(stream.send_data(piece, false).ok().map(|()| sent))
}

impl AsyncWrite for SendStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let closed = || Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        let Some(stream) = this.stream.as_mut().filter(|_| !this.over) else { return closed() };
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // What was closed here says nothing more, whatever HTTP/2 knows of it yet.
        if this.shared.is_lost() {
            return closed();
        }
        let cut = |length| Bytes::copy_from_slice(&bytes[..length]);
        match ready!(poll_send(stream, cx, bytes.len(), cut)) {
            Some(sent) => Poll::Ready(Ok(sent)),
            None => closed(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(stream) = this.stream.as_mut().filter(|_| !this.over) else {
            return Poll::Ready(Ok(()));
        };
        this.over = true;
        let finished = stream.send_data(Bytes::new(), true);
        Poll::Ready(finished.map_err(|_| io::ErrorKind::BrokenPipe.into()))
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.as_mut().filter(|_| !self.over) {
            // Fails only where the peer has given the stream up.
            let _ = stream.send_data(Bytes::new(), true);
        }
    }
}
