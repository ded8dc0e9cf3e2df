//! A peer's socket beneath TLS: it notes when something came, and how it is closed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::endpoint::IDLE_TIMEOUT;

/// How long a peer may take to close after it was told that this is the end. What it
/// has not received by then is lost.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);

/// Most bytes that are taken at once of what nobody reads any more.
const UNREAD: usize = 4 * 1024;

/// Bytes that may come in all before the peer has shown a right to a session: both
/// handshakes and its longest frames several times over. HTTP/2 would keep a whole buffer
/// for each byte that nobody reads, between frames of a kind that it does not know.
const NARROW_MAX: usize = 64 * 1024;

/// A peer's socket.
pub(super) struct Line {
    socket: TcpStream,
    heard: Heard,
    wide: Arc<AtomicBool>,
    /// Bytes that may still come before it is wide.
    left: usize,
    /// Until when the peer may close by itself, once we have.
    parting: Option<Pin<Box<Sleep>>>,
    /// Whether what is left in the kernel is thrown away with the socket.
    abrupt: bool,
}

/// When something came last.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    since: Instant,
    /// Milliseconds.
    after: Arc<AtomicU64>,
}

impl Line {
    /// Begins narrow, and is `wide` when the peer has shown a right to a session.
    pub(super) fn new(socket: TcpStream, wide: Arc<AtomicBool>) -> Self {
        let heard = Heard { since: Instant::now(), after: Arc::default() };
        let (parting, abrupt, left) = (None, false, NARROW_MAX);
        Self { socket, heard, wide, left, parting, abrupt }
    }

    /// From now on a session's bytes may be in it: dropped before its peer has closed,
    /// it takes with it what has not been received.
    pub(super) fn established(&mut self) -> Heard {
        self.abrupt = true;
        self.heard.clone()
    }
}

impl Heard {
    fn something(&self) {
        let after = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.after.store(after, Ordering::Relaxed);
    }

    /// Waits until nothing has come for the idle timeout.
    pub(super) async fn silence(self) {
        loop {
            let after = Duration::from_millis(self.after.load(Ordering::Relaxed));
            let silent = self.since + after + IDLE_TIMEOUT;
            if silent <= Instant::now() {
                return;
            }
            sleep_until(silent).await;
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let line = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut line.socket).poll_read(cx, buf))?;
        let came = buf.filled().len() - before;
        if came > 0 {
            line.heard.something();
            if !line.wide.load(Ordering::Relaxed) {
                let Some(left) = line.left.checked_sub(came) else {
                    let error = "too much from a peer that has shown no right";
                    return Poll::Ready(Err(io::Error::other(error)));
                };
                line.left = left;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    /// Says that this is the end, and waits for the peer to close, for a while: closed
    /// with bytes unread, the kernel would throw away what the peer has yet to receive.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let line = self.get_mut();
        if line.parting.is_none() {
            ready!(Pin::new(&mut line.socket).poll_shutdown(cx))?;
            line.parting = Some(Box::pin(sleep(FAREWELL)));
        }
        let mut unread = [0; UNREAD];
        loop {
            let mut buf = ReadBuf::new(&mut unread);
            match Pin::new(&mut line.socket).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if buf.filled().is_empty() => {
                    line.abrupt = false;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        let Some(parting) = &mut line.parting else { return Poll::Ready(Ok(())) };
        parting.as_mut().poll(cx).map(Ok)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.abrupt {
            reset(&self.socket);
        }
    }
}

/// Has a socket thrown away with all that is in it once it is closed.
pub(super) fn reset(socket: &TcpStream) {
    // A socket that refuses the option is closed in order instead.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
