//! A stream joined to a desktop's TCP socket: the driver carries its bytes both
//! ways, without a task or a buffer while nothing moves.
//!
//! Knows no ticket, no session and no RDP. Each direction holds at most one
//! read's bytes and waits for whoever is slower, so a peer that reads nothing
//! stops its own sender and nobody else.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use bytes::{Buf as _, Bytes};
use prometheus_client::metrics::counter::Counter;
use quinn_proto::{ConnectionError, ReadError, StreamId, VarInt, WriteError};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::EventFlags;
use socket2::SockRef;

use super::connection::{Connection, Shared};
use super::stream::{RecvStream, SendStream};

/// Most bytes that one read takes from a desktop.
pub(super) const READ_MAX: usize = 256 * 1024;

/// Most pieces that one write gives to a desktop.
const PIECES_MAX: usize = 64;

/// Most times in a turn that an agent's bytes are taken or a desktop written to.
const STEPS_PER_TURN: usize = 8;

/// Code of a stream whose session has ended.
const ENDED: VarInt = VarInt::from_u32(0);

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

    fn carried(&self, way: Way, bytes: usize) {
        let (own, total) = match way {
            Way::Up => (&self.up, &self.total_up),
            Way::Down => (&self.down, &self.total_down),
        };
        own.fetch_add(bytes as u64, Ordering::Relaxed);
        total.inc_by(bytes as u64);
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(ms, Ordering::Relaxed);
    }
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the agent to the desktop.
    Up,
    /// From the desktop to the agent.
    Down,
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

/// Why a stream and a socket were not joined.
#[derive(Debug, thiserror::Error)]
pub enum NotJoined {
    /// The agent's connection is gone. The desktop's is reset.
    #[error("the connection is lost")]
    Lost(#[source] ConnectionError),
    /// The desktop's socket cannot be watched.
    #[error("the desktop's socket cannot be watched")]
    Socket(#[source] io::Error),
}

/// A stream and a desktop, joined. Dropped, both directions end at once: the
/// desktop's connection is reset, the stream too, and what is in them is lost.
/// Nothing is carried once that has returned.
pub struct Splice {
    shared: Arc<Shared>,
}

impl Connection {
    /// Joins a stream of this connection to a desktop's socket, which does not
    /// block, and counts what is carried.
    ///
    /// # Errors
    ///
    /// Fails when the connection is lost by now, or the socket cannot be watched.
    pub fn splice(
        &self,
        to_agent: SendStream,
        from_agent: RecvStream,
        desktop: TcpStream,
        traffic: Arc<Traffic>,
    ) -> Result<Splice, NotJoined> {
        let shared = Arc::clone(&self.shared);
        let (up, down) = (Up::new(from_agent.into_id()), Down::new(to_agent.into_id()));
        let (readable, writable, hung_up) = (true, true, false);
        let mut joined =
            Box::new(Joined { desktop, traffic, up, down, readable, writable, hung_up });
        let mut state = shared.state();
        if let Some(lost) = state.lost.clone() {
            drop(state);
            joined.abandon();
            return Err(NotJoined::Lost(lost));
        }
        shared.doorbell().watch(&joined.desktop, shared.key()).map_err(NotJoined::Socket)?;
        state.joined = Some(joined);
        drop(state);
        shared.ring();
        Ok(Splice { shared })
    }
}

impl Splice {
    /// Waits until one direction has come to its end, and tells how, once.
    pub async fn parted(&self, way: Way) -> Parted {
        poll_fn(|cx| {
            let mut state = self.shared.state();
            let Some(joined) = &mut state.joined else { return Poll::Pending };
            joined.end(way).poll(cx.waker())
        })
        .await
    }

    /// Ends both directions and closes the desktop's connection in order: what was
    /// written to it still arrives.
    pub fn close(self) {
        self.part(true);
    }

    fn part(&self, in_order: bool) {
        let mut state = self.shared.state();
        let Some(mut joined) = state.joined.take() else { return };
        if !in_order {
            joined.abandon();
        }
        // Both fail where the agent has everything, or has ended them itself.
        let _ = state.quic.send_stream(joined.down.stream).reset(ENDED);
        let _ = state.quic.recv_stream(joined.up.stream).stop(ENDED);
        drop(state);
        self.shared.ring();
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        self.part(false);
    }
}

/// What the driver keeps of a splice.
pub(super) struct Joined {
    desktop: TcpStream,
    traffic: Arc<Traffic>,
    up: Up,
    down: Down,
    /// Whether the desktop's socket may have bytes, may take some, and has told of
    /// its end. The kernel tells of each change once.
    readable: bool,
    writable: bool,
    hung_up: bool,
}

struct Up {
    stream: StreamId,
    ready: bool,
    /// What was read and not yet written; memory is kept while there is some.
    pieces: VecDeque<Bytes>,
    /// How the stream ended behind these pieces.
    last: Option<Parted>,
    end: End,
}

struct Down {
    stream: StreamId,
    ready: bool,
    chunk: Bytes,
    end: End,
}

/// The end of one direction, and who waits for it.
enum End {
    Open(Option<Waker>),
    Reached(Parted),
    Told,
}

/// What a turn has done.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Turn {
    pub(super) moved: usize,
    /// Whether it ended with work left over.
    pub(super) more: bool,
}

/// Where a thread reads from desktops. It belongs to no session, so an idle one
/// keeps nothing.
#[derive(Default)]
pub(super) struct Scratch(Vec<u8>);

impl Joined {
    /// Notes what has changed at the desktop's socket.
    pub(super) fn desktop_changed(&mut self, flags: EventFlags) {
        let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        self.hung_up |= broken || flags.contains(EventFlags::RDHUP);
        self.readable |= broken || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        self.writable |= broken || flags.contains(EventFlags::OUT);
    }

    /// Notes that the agent's stream may have bytes.
    pub(super) fn readable(&mut self, id: StreamId) {
        self.up.ready |= id == self.up.stream;
    }

    /// Notes that the stream to the agent may take bytes.
    pub(super) fn writable(&mut self, id: StreamId) {
        self.down.ready |= id == self.down.stream;
    }

    /// Carries what can be carried in one turn, both ways.
    pub(super) fn turn(
        &mut self,
        quic: &mut quinn_proto::Connection,
        scratch: &mut Scratch,
        lost: bool,
    ) -> Turn {
        let mut turn = Turn::default();
        if self.up.end.is_open() {
            self.carry_up(quic, lost, &mut turn);
        }
        if self.down.end.is_open() {
            self.carry_down(quic, scratch, lost, &mut turn);
        }
        turn
    }

    fn carry_up(&mut self, quic: &mut quinn_proto::Connection, lost: bool, turn: &mut Turn) {
        for _ in 0..STEPS_PER_TURN {
            if self.up.pieces.is_empty() {
                match self.up.last.take() {
                    Some(Parted::AgentFinished) => {
                        let told = self.desktop.shutdown(Shutdown::Write);
                        let told =
                            told.map_or_else(Parted::DesktopFailed, |()| Parted::AgentFinished);
                        return self.up.end.reach(told);
                    }
                    Some(other) => return self.up.end.reach(other),
                    None if self.up.ready => self.up.take(quic),
                    None if lost => return self.up.end.reach(Parted::AgentGone),
                    None => {
                        self.up.pieces = VecDeque::new();
                        return;
                    }
                }
                continue;
            }
            if !self.writable {
                return;
            }
            match write(&self.desktop, &mut self.up.pieces) {
                Ok(written) => {
                    self.traffic.carried(Way::Up, written);
                    turn.moved += written;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) => return self.up.fail(error),
            }
        }
        turn.more = true;
    }

    fn carry_down(
        &mut self,
        quic: &mut quinn_proto::Connection,
        scratch: &mut Scratch,
        lost: bool,
        turn: &mut Turn,
    ) {
        if lost {
            return self.down.part(Parted::AgentGone);
        }
        let mut has_read = false;
        loop {
            let mut stream = quic.send_stream(self.down.stream);
            if !self.down.chunk.is_empty() {
                if !self.down.ready {
                    return;
                }
                match stream.write_chunks(std::slice::from_mut(&mut self.down.chunk)) {
                    Ok(written) => self.traffic.carried(Way::Down, written.bytes),
                    Err(WriteError::Blocked) => self.down.ready = false,
                    Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                        return self.down.part(Parted::AgentGone);
                    }
                }
                continue;
            }
            self.down.chunk = Bytes::new();
            if has_read || !self.readable {
                turn.more |= self.readable;
                return;
            }
            match scratch.read(&self.desktop) {
                Ok(bytes) if bytes.is_empty() => {
                    // An error means that the agent has stopped the stream already.
                    let told =
                        stream.finish().map_or(Parted::AgentGone, |()| Parted::DesktopFinished);
                    return self.down.part(told);
                }
                Ok(bytes) => {
                    // Less than there was room for: the kernel has no more, and
                    // tells when it has.
                    self.readable = bytes.len() >= READ_MAX || self.hung_up;
                    self.down.chunk = bytes;
                    has_read = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) => {
                    // What came before the failure still reaches the agent.
                    let _ = stream.finish();
                    return self.down.part(Parted::DesktopFailed(error));
                }
            }
        }
    }

    /// Has the desktop's connection reset, not closed, when it goes.
    fn abandon(&mut self) {
        // A socket that refuses the option is closed in order instead.
        let _ = SockRef::from(&self.desktop).set_linger(Some(Duration::ZERO));
    }

    fn end(&mut self, way: Way) -> &mut End {
        match way {
            Way::Up => &mut self.up.end,
            Way::Down => &mut self.down.end,
        }
    }
}

impl Up {
    fn new(stream: StreamId) -> Self {
        Self { stream, ready: true, pieces: VecDeque::new(), last: None, end: End::Open(None) }
    }

    /// Takes what the agent has sent, at most [`PIECES_MAX`] pieces.
    fn take(&mut self, quic: &mut quinn_proto::Connection) {
        let mut stream = quic.recv_stream(self.stream);
        let Ok(mut chunks) = stream.read(true) else {
            self.last = Some(Parted::AgentGone);
            return;
        };
        while self.pieces.len() < PIECES_MAX {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => self.pieces.push_back(chunk.bytes),
                Ok(None) => {
                    self.last = Some(Parted::AgentFinished);
                    break;
                }
                Err(ReadError::Reset(_)) => {
                    self.last = Some(Parted::AgentGone);
                    break;
                }
                Err(ReadError::Blocked) => {
                    self.ready = false;
                    break;
                }
            }
        }
        // The turn ends with sending, whatever credit there is to give.
        let _ = chunks.finalize();
    }

    fn fail(&mut self, error: io::Error) {
        self.pieces = VecDeque::new();
        self.end.reach(Parted::DesktopFailed(error));
    }
}

impl Down {
    fn new(stream: StreamId) -> Self {
        Self { stream, ready: true, chunk: Bytes::new(), end: End::Open(None) }
    }

    fn part(&mut self, how: Parted) {
        self.chunk = Bytes::new();
        self.end.reach(how);
    }
}

impl End {
    fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    fn reach(&mut self, how: Parted) {
        if let Self::Open(Some(waker)) = std::mem::replace(self, Self::Reached(how)) {
            waker.wake();
        }
    }

    fn poll(&mut self, waker: &Waker) -> Poll<Parted> {
        match self {
            Self::Open(waiting) => {
                *waiting = Some(waker.clone());
                Poll::Pending
            }
            Self::Told => Poll::Pending,
            Self::Reached(_) => match std::mem::replace(self, Self::Told) {
                Self::Reached(how) => Poll::Ready(how),
                Self::Open(_) | Self::Told => Poll::Pending,
            },
        }
    }
}

/// Writes pieces, and takes out what the kernel has taken.
fn write(to: &TcpStream, pieces: &mut VecDeque<Bytes>) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); PIECES_MAX];
    let mut count = 0;
    for (slice, piece) in slices.iter_mut().zip(pieces.iter()) {
        *slice = IoSlice::new(piece);
        count += 1;
    }
    let written = match rustix::io::writev(to, &slices[..count]) {
        Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
        Ok(written) => written,
        Err(rustix::io::Errno::INTR) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut left = written;
    while let Some(first) = pieces.front_mut().filter(|_| left > 0) {
        let taken = left.min(first.len());
        first.advance(taken);
        left -= taken;
        if first.is_empty() {
            pieces.pop_front();
        }
    }
    Ok(written)
}

impl Scratch {
    /// Reads once; nothing means that the desktop has finished. A large read leaves
    /// with the buffer it is in, a small one as a copy, so that no chunk that waits
    /// for a slow agent pins more than twice its own size.
    fn read(&mut self, from: &TcpStream) -> io::Result<Bytes> {
        let Self(buffer) = self;
        buffer.clear();
        buffer.reserve_exact(READ_MAX);
        let read = loop {
            match rustix::io::read(from, spare_capacity(buffer)) {
                Err(rustix::io::Errno::INTR) => {}
                read => break read?,
            }
        };
        if read >= READ_MAX / 2 {
            Ok(Bytes::from(std::mem::take(buffer)))
        } else {
            Ok(Bytes::copy_from_slice(buffer))
        }
    }
}
