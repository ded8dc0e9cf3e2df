//! How the driver carries between a stream and a desktop's socket, without a task
//! or a buffer while nothing moves.
//!
//! Knows no ticket, no session and no RDP. Upwards at most one read's bytes are held,
//! downwards what the agent has not acknowledged, up to [`REPLAY`]; then whoever is
//! faster waits, so a peer that reads nothing stops its own sender and nobody else.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::task::{Poll, Waker};

use bytes::{Buf as _, Bytes};
use quinn_proto::{ReadError, StreamId, WriteError};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::EventFlags;
use tegata_proto::replay::BadOffset;

use super::desktop_side::DesktopSide;
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
    side: DesktopSide,
    traffic: Arc<Traffic>,
    up: Up,
    down: Down,
    /// Whether the desktop's socket may have bytes, may take some, and has told of
    /// its end. The kernel tells of each change once.
    readable: bool,
    writable: bool,
    hung_up: bool,
    /// Who waits for bytes to acknowledge, and for how many.
    owed: Option<(u64, Waker)>,
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
    end: End,
}

/// The end of one direction, and who waits for it.
pub(super) enum End {
    Open(Option<Waker>),
    Reached(Parted),
    /// Whether it was the agent's connection that went.
    Told {
        agent_gone: bool,
    },
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
        side: DesktopSide,
        from_agent: StreamId,
        to_agent: StreamId,
        traffic: Arc<Traffic>,
    ) -> Self {
        let (up, down) = (Up::new(from_agent), Down::new(to_agent));
        let (readable, writable, hung_up, owed) = (true, true, false, None);
        Self { side, traffic, up, down, readable, writable, hung_up, owed }
    }

    pub(super) fn side(&mut self) -> &mut DesktopSide {
        &mut self.side
    }

    pub(super) fn socket(&self) -> &TcpStream {
        self.side.socket()
    }

    /// Gives the desktop's side back, and tells whether it can go on with another
    /// stream: neither viewer nor desktop has ended what it says.
    pub(super) fn into_side(self) -> (DesktopSide, bool) {
        let goes_on = self.up.end.may_go_on() && self.down.end.may_go_on();
        (self.side, goes_on)
    }

    /// Notes how far the agent has got. Tells whether the desktop may be read again.
    pub(super) fn acknowledged(&mut self, received: u64) -> Result<bool, BadOffset> {
        let had_room = self.side.replay.has_room();
        self.side.replay.acknowledge(received)?;
        Ok(!had_room && self.side.replay.has_room())
    }

    /// Is done when there are at least so many bytes to acknowledge to the agent.
    pub(super) fn poll_owed(&mut self, bytes: u64, waker: &Waker) -> Poll<()> {
        if self.side.receipt.owed() >= bytes {
            return Poll::Ready(());
        }
        let fewest = self.owed.take().map_or(bytes, |(others, _)| bytes.min(others));
        self.owed = Some((fewest, waker.clone()));
        Poll::Pending
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
                        let told = self.side.socket().shutdown(Shutdown::Write);
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
            match write(self.side.socket(), &mut self.up.pieces) {
                Ok(written) => {
                    self.traffic.carried(Way::Up, written);
                    self.side.receipt.wrote(written as u64);
                    let owed = self.side.receipt.owed();
                    if let Some((_, waker)) = self.owed.take_if(|(bytes, _)| owed >= *bytes) {
                        waker.wake();
                    }
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
            return self.down.end.reach(Parted::AgentGone);
        }
        let mut has_read = false;
        loop {
            let mut stream = quic.send_stream(self.down.stream);
            if let Some(mut chunk) = self.side.replay.unsent() {
                if !self.down.ready {
                    return;
                }
                match stream.write_chunks(std::slice::from_mut(&mut chunk)) {
                    Ok(written) => {
                        self.side.replay.advance(written.bytes);
                        self.traffic.carried(Way::Down, written.bytes);
                    }
                    Err(WriteError::Blocked) => self.down.ready = false,
                    Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                        return self.down.end.reach(Parted::AgentGone);
                    }
                }
                continue;
            }
            // What the agent acknowledges makes room.
            if has_read || !self.readable || !self.side.replay.has_room() {
                turn.more |= self.readable && self.side.replay.has_room();
                return;
            }
            match scratch.read(self.side.socket()) {
                Ok(bytes) if bytes.is_empty() => {
                    // An error means that the agent has stopped the stream already.
                    let told =
                        stream.finish().map_or(Parted::AgentGone, |()| Parted::DesktopFinished);
                    return self.down.end.reach(told);
                }
                Ok(bytes) => {
                    // Less than there was room for: the kernel has no more, and
                    // tells when it has.
                    self.readable = bytes.len() >= READ_MAX || self.hung_up;
                    self.side.replay.push(bytes);
                    has_read = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) => {
                    // What came before the failure still reaches the agent.
                    let _ = stream.finish();
                    return self.down.end.reach(Parted::DesktopFailed(error));
                }
            }
        }
    }

    /// Ends both directions without another look at the agent's connection.
    pub(super) fn lose_agent(&mut self) {
        self.up.pieces = VecDeque::new();
        self.up.end.reach(Parted::AgentGone);
        self.down.end.reach(Parted::AgentGone);
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
        Self { stream, ready: true, end: End::Open(None) }
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
            Self::Told { .. } => Poll::Pending,
            Self::Reached(how) => {
                let agent_gone = matches!(how, Parted::AgentGone);
                match std::mem::replace(self, Self::Told { agent_gone }) {
                    Self::Reached(how) => Poll::Ready(how),
                    Self::Open(_) | Self::Told { .. } => Poll::Pending,
                }
            }
        }
    }

    /// Tells whether the direction has not ended, or only with the agent's
    /// connection.
    fn may_go_on(&self) -> bool {
        match self {
            Self::Open(_) => true,
            Self::Reached(how) => matches!(how, Parted::AgentGone),
            Self::Told { agent_gone } => *agent_gone,
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
