//! A TCP socket that counts what passes it, and that closes without losing what was
//! written.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use super::Traffic;
use crate::link::IDLE_TIMEOUT;

/// How many bytes the kernel may hold back beside those that are on their way: the
/// rest waits where what is urgent can pass it.
const UNSENT_MAX: u32 = 128 * 1024;

/// Room for what is read and dropped at the end, in bytes.
const DROPPED: usize = 16 * 1024;

/// A connected socket.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    traffic: Arc<Traffic>,
    has_finished: bool,
}

/// Connects to an address.
pub(super) async fn connect(address: SocketAddr) -> io::Result<Socket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_nodelay(true)?;
    let options = SockRef::from(&socket);
    options.set_tcp_notsent_lowat(UNSENT_MAX)?;
    options.set_tcp_user_timeout(Some(IDLE_TIMEOUT))?;
    let stream = socket.connect(address).await?;
    Ok(Socket { stream, traffic: Arc::default(), has_finished: false })
}

impl Socket {
    pub(super) fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    fn sent(&self, sent: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(length)) = sent {
            self.traffic.sent.fetch_add(length as u64, Ordering::Relaxed);
        }
        sent
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let length = buffer.filled().len() - before;
        self.traffic.heard.fetch_add(length as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.sent(sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.sent(sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Says that nothing follows, and drops what comes until the peer says so too: a
    /// socket that is closed before it was read empty takes back what it has not sent
    /// yet (RFC 1122 §4.2.2.13).
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_finished {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.has_finished = true;
        }
        let mut room = [0; DROPPED];
        loop {
            let mut buffer = ReadBuf::new(&mut room);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
