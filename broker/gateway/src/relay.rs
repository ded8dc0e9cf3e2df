//! Carries bytes between one QUIC stream and one TCP socket.
//!
//! Knows no ticket, no session and no RDP. Each direction is a future of its
//! own that holds at most one read's bytes and waits for whoever is slower, so
//! a peer that reads nothing stops its own sender and nobody else. Dropping a
//! future stops its direction at once.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prometheus_client::metrics::counter::Counter;
use quinn::{RecvStream, SendStream, VarInt};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;

/// Most bytes that one read takes from a desktop.
pub const READ_MAX: usize = 256 * 1024;

/// Most pieces that one write gives to a desktop.
pub const PIECES_MAX: usize = 32;

thread_local! {
    /// Where a thread reads from desktops. It belongs to no session, so an idle
    /// one keeps nothing.
    static SCRATCH: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// How many bytes went onward, and when the last did.
#[derive(Debug)]
pub struct Traffic {
    up: AtomicU64,
    down: AtomicU64,
    /// Milliseconds since 1970; 0 is never.
    last: AtomicU64,
    total_up: Counter,
    total_down: Counter,
}

impl Traffic {
    /// Starts at nothing; every byte is also counted into the two totals.
    pub fn new(total_up: Counter, total_down: Counter) -> Self {
        let (up, down, last) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self { up, down, last, total_up, total_down }
    }

    /// Returns how many bytes were written onward to the desktop.
    pub fn up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }

    /// Returns how many bytes were handed to the agent's connection.
    pub fn down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }

    /// Returns when the last byte was carried, to the millisecond.
    pub fn last_byte_at(&self) -> Option<SystemTime> {
        match self.last.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(SystemTime::UNIX_EPOCH + Duration::from_millis(ms)),
        }
    }

    fn carried_up(&self, bytes: usize) {
        self.up.fetch_add(bytes as u64, Ordering::Relaxed);
        self.total_up.inc_by(bytes as u64);
        self.touch();
    }

    fn carried_down(&self, bytes: usize) {
        self.down.fetch_add(bytes as u64, Ordering::Relaxed);
        self.total_down.inc_by(bytes as u64);
        self.touch();
    }

    fn touch(&self) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(ms, Ordering::Relaxed);
    }
}

/// A desktop's connection. Dropped, it is reset, and what is still in it is lost.
pub struct Desktop {
    socket: TcpStream,
    in_order: bool,
}

impl Desktop {
    /// Takes a connection into keeping.
    pub fn new(socket: TcpStream) -> Self {
        Self { socket, in_order: false }
    }

    /// Returns the socket to carry with.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Closes the connection; what was written still arrives.
    pub fn close(mut self) {
        self.in_order = true;
    }
}

impl Drop for Desktop {
    fn drop(&mut self) {
        if !self.in_order {
            // A socket that refuses the option is closed in order instead.
            let _ = self.socket.set_zero_linger();
        }
    }
}

/// The stream to an agent. Dropped, it is reset, and what the agent has not yet
/// received is lost.
pub struct ToAgent(SendStream);

impl ToAgent {
    /// Takes a stream into keeping.
    pub fn new(stream: SendStream) -> Self {
        Self(stream)
    }

    /// Returns the stream to carry with.
    pub fn stream(&mut self) -> &mut SendStream {
        &mut self.0
    }
}

impl Drop for ToAgent {
    fn drop(&mut self) {
        // Fails where the agent has everything, or has stopped it.
        let _ = self.0.reset(VarInt::from_u32(0));
    }
}

/// How one direction came to its end.
#[derive(Debug)]
pub enum Parted {
    /// The agent's side finished in order; every byte before it was carried.
    AgentFinished,
    /// The agent's side was reset or stopped, or its connection is lost.
    AgentGone,
    /// The desktop's side finished in order; every byte before it was carried.
    DesktopFinished,
    /// The desktop's socket failed.
    DesktopFailed(io::Error),
}

/// Carries from the agent to the desktop until one of them has had enough, and
/// hands an orderly end on to the desktop.
pub async fn up(from: &mut RecvStream, to: &TcpStream, traffic: &Traffic) -> Parted {
    let mut pieces = [const { Bytes::new() }; PIECES_MAX];
    loop {
        let read = match from.read_chunks(&mut pieces).await {
            Ok(Some(read)) => read,
            Ok(None) => {
                return match SockRef::from(to).shutdown(Shutdown::Write) {
                    Ok(()) => Parted::AgentFinished,
                    Err(error) => Parted::DesktopFailed(error),
                };
            }
            Err(_) => return Parted::AgentGone,
        };
        if let Err(error) = write_all(to, &mut pieces[..read], traffic).await {
            return Parted::DesktopFailed(error);
        }
        consume_budget().await;
    }
}

/// Carries from the desktop to the agent until one of them has had enough, and
/// hands an orderly end on to the agent.
pub async fn down(from: &TcpStream, to: &mut SendStream, traffic: &Traffic) -> Parted {
    loop {
        let bytes = match read_some(from).await {
            Ok(bytes) if bytes.is_empty() => {
                // An error means that the agent has stopped the stream already.
                return to.finish().map_or(Parted::AgentGone, |()| Parted::DesktopFinished);
            }
            Ok(bytes) => bytes,
            Err(error) => {
                // What came before the failure still reaches the agent.
                let _ = to.finish();
                return Parted::DesktopFailed(error);
            }
        };
        let read = bytes.len();
        if to.write_chunk(bytes).await.is_err() {
            return Parted::AgentGone;
        }
        traffic.carried_down(read);
        consume_budget().await;
    }
}

/// Writes all pieces and leaves them empty.
async fn write_all(to: &TcpStream, pieces: &mut [Bytes], traffic: &Traffic) -> io::Result<()> {
    let mut first = 0;
    while first < pieces.len() {
        let written = {
            let mut slices = [IoSlice::new(&[]); PIECES_MAX];
            let count = pieces.len() - first;
            for (slice, piece) in slices.iter_mut().zip(&pieces[first..]) {
                *slice = IoSlice::new(piece);
            }
            match to.try_write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            }
        };
        if written == 0 {
            to.writable().await?;
            continue;
        }
        traffic.carried_up(written);
        let mut left = written;
        while left > 0 {
            let piece = &mut pieces[first];
            let taken = left.min(piece.len());
            piece.advance(taken);
            left -= taken;
            if piece.is_empty() {
                *piece = Bytes::new();
                first += 1;
            }
        }
    }
    Ok(())
}

/// Reads what is there, or waits; nothing means that the desktop has finished.
async fn read_some(from: &TcpStream) -> io::Result<Bytes> {
    loop {
        from.readable().await?;
        match SCRATCH.with_borrow_mut(|scratch| try_read(from, scratch)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

/// Reads once. A large read leaves with the scratch buffer it is in, a small one
/// as a copy, so that no chunk that waits for a slow agent pins more than twice
/// its own size.
fn try_read(from: &TcpStream, scratch: &mut BytesMut) -> io::Result<Bytes> {
    scratch.clear();
    scratch.reserve(READ_MAX);
    let read = from.try_read_buf(&mut scratch.limit(READ_MAX))?;
    if read >= READ_MAX / 2 {
        Ok(std::mem::take(scratch).freeze())
    } else {
        Ok(Bytes::copy_from_slice(scratch))
    }
}
