//! How the driver carries between a stream and a desktop's socket, without a task
//! or a buffer while nothing moves.
//!
//! Knows no ticket, no session and no RDP. Each direction holds at most one
//! read's bytes and waits for whoever is slower, so a peer that reads nothing
//! stops its own sender and nobody else.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use quinn_proto::{ReadError, StreamId, WriteError};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::EventFlags;
use socket2::SockRef;

use super::splice::{Parted, Way};
use super::traffic::Traffic;

/// Most bytes that one read takes from a desktop.
const READ_MAX: usize = 256 * 1024;

/// Most pieces that one write gives to a desktop.
const PIECES_MAX: usize = 64;

/// Most times in a turn that an agent's bytes are taken or a desktop written to.
const STEPS_PER_TURN: usize = 8;

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
pub(super) enum End {
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
    /// Takes both ends into keeping; nothing is known of them yet.
    pub(super) fn new(
        desktop: TcpStream,
        from_agent: StreamId,
        to_agent: StreamId,
        traffic: Arc<Traffic>,
    ) -> Self {
        let (up, down) = (Up::new(from_agent), Down::new(to_agent));
        Self { desktop, traffic, up, down, readable: true, writable: true, hung_up: false }
    }

    pub(super) fn desktop(&self) -> &TcpStream {
        &self.desktop
    }

    /// Returns the stream from the agent and the one to it.
    pub(super) fn streams(&self) -> (StreamId, StreamId) {
        (self.up.stream, self.down.stream)
    }

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

    /// Ends both directions without another look at the agent's connection.
    pub(super) fn lose_agent(&mut self) {
        self.up.pieces = VecDeque::new();
        self.up.end.reach(Parted::AgentGone);
        self.down.part(Parted::AgentGone);
    }

    /// Has the desktop's connection reset, not closed, when it goes.
    pub(super) fn abandon(&mut self) {
        // A socket that refuses the option is closed in order instead.
        let _ = SockRef::from(&self.desktop).set_linger(Some(Duration::ZERO));
    }

    pub(super) fn end(&mut self, way: Way) -> &mut End {
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

    pub(super) fn poll(&mut self, waker: &Waker) -> Poll<Parted> {
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
