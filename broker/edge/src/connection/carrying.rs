//! What is carried between an agent's stream and a desktop's socket, without a task
//! or a buffer while nothing moves. Both transports carry by it; each shows it the
//! stream as an [`Agent`].
//!
//! Knows no ticket, no session and no RDP. Upwards at most one read's bytes are held,
//! downwards what the agent has not acknowledged, up to [`REPLAY`](super::REPLAY);
//! then whoever is faster waits, so a peer that reads nothing stops its own sender and
//! nobody else.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::task::{Poll, Waker};

use super::hearing::{Hearing, Said};
use super::saying::Saying;
use super::{DesktopSide, Parted, Traffic, Way};
use bytes::{Buf as _, Bytes};
use rustix::buffer::spare_capacity;
use zeroize::Zeroizing;

/// Most bytes that one read takes from a desktop.
const READ_MAX: usize = 256 * 1024;

/// Most buffers that a thread remembers to use them again.
const BUFFERS_MAX: usize = 64;

/// Most pieces that one write gives to a desktop.
pub(crate) const PIECES_MAX: usize = 64;

/// Most times in a turn that an agent's bytes are taken or a desktop written to.
const STEPS_PER_TURN: usize = 8;

/// An agent's streams, as one turn sees them.
pub(crate) trait Agent {
    /// Takes what has arrived of what it says, at most so many bytes.
    fn hear(&mut self, most: usize) -> Said;

    /// Says as much of a frame as goes now.
    fn say(&mut self, bytes: &[u8]) -> Given;

    /// Takes what has arrived, until there are [`PIECES_MAX`] pieces.
    fn take(&mut self, into: &mut VecDeque<Bytes>) -> Taken;

    /// Notes that so many bytes of those pieces went onward.
    fn carried(&mut self, bytes: usize);

    /// Sends as much of `chunk` as goes now.
    fn give(&mut self, chunk: Bytes) -> Given;

    /// Says that nothing more comes, after everything before. Tells whether the agent
    /// still wants to hear it.
    fn finish(&mut self) -> bool;
}

/// What came of taking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// There may be more at once.
    More,
    /// More comes later.
    Empty,
    /// The agent has finished behind these pieces.
    Finished,
    /// The agent has given its stream up.
    Gone,
}

/// What came of giving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Given {
    /// So many bytes are on their way.
    Some(usize),
    /// Nothing goes now.
    Full,
    /// The agent wants nothing more.
    Gone,
}

/// What is carried, and how far.
pub(crate) struct Carrying {
    side: DesktopSide,
    traffic: Arc<Traffic>,
    hearing: Hearing,
    saying: Saying,
    up: Up,
    down: Down,
    /// Whether the desktop's socket may have bytes, may take some, and has told of
    /// its end. The kernel tells of each change once.
    readable: bool,
    writable: bool,
    hung_up: bool,
    /// Who waits for bytes to acknowledge.
    owed: Option<Waker>,
}

struct Up {
    ready: bool,
    /// What was read and not yet written; memory is kept while there is some.
    pieces: VecDeque<Bytes>,
    /// How the stream ended behind these pieces.
    last: Option<Parted>,
    end: End,
}

struct Down {
    ready: bool,
    end: End,
}

/// The end of one direction, and who waits for it.
pub(crate) enum End {
    Open(Option<Waker>),
    Reached(Parted),
    Told,
}

/// What a turn has done.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) moved: usize,
    /// Whether it ended with work left over.
    pub(crate) more: bool,
}

/// Where a thread reads from desktops. It belongs to no session, so an idle one
/// keeps nothing.
#[derive(Default)]
pub(crate) struct Scratch {
    buffer: Vec<u8>,
    /// What was read lately, the oldest first: its memory is used again once nobody else
    /// has it, since fresh pages cost the kernel more than reading into them.
    lent: VecDeque<Bytes>,
}

impl Carrying {
    /// Takes both ends into keeping; nothing is known of them yet.
    pub(crate) fn new(
        side: DesktopSide,
        traffic: Arc<Traffic>,
        hearing: Hearing,
        saying: Saying,
    ) -> Self {
        let up = Up { ready: true, pieces: VecDeque::new(), last: None, end: End::Open(None) };
        let down = Down { ready: true, end: End::Open(None) };
        let (readable, writable, hung_up, owed) = (true, true, false, None);
        Self { side, traffic, hearing, saying, up, down, readable, writable, hung_up, owed }
    }

    pub(crate) fn side(&mut self) -> &mut DesktopSide {
        &mut self.side
    }

    pub(crate) fn socket(&self) -> &Arc<TcpStream> {
        self.side.socket()
    }

    /// Gives the desktop's side back, and what is left of a frame that has begun.
    pub(crate) fn into_parts(self) -> (DesktopSide, Zeroizing<Vec<u8>>) {
        (self.side, self.saying.into_rest())
    }

    /// Is done when there is something to acknowledge to the agent.
    pub(crate) fn poll_owed(&mut self, waker: &Waker) -> Poll<()> {
        if self.side.receipt.owed() > 0 {
            return Poll::Ready(());
        }
        self.owed = Some(waker.clone());
        Poll::Pending
    }

    /// Notes what the desktop's socket may do from now on, and whether it has ended.
    pub(crate) fn desktop_changed(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.hung_up |= hung_up;
        self.readable |= readable || hung_up;
        self.writable |= writable;
    }

    /// Returns the ear for what the agent says.
    pub(crate) fn hearing(&mut self) -> &mut Hearing {
        &mut self.hearing
    }

    /// Returns the mouth for what the agent is told.
    pub(crate) fn saying(&mut self) -> &mut Saying {
        &mut self.saying
    }

    /// Notes that the agent's stream may have bytes.
    pub(crate) fn agent_readable(&mut self) {
        self.up.ready = true;
    }

    /// Notes that the stream to the agent may take bytes.
    pub(crate) fn agent_writable(&mut self) {
        self.down.ready = true;
    }

    /// Carries what can be carried in one turn, both ways.
    pub(crate) fn turn(
        &mut self,
        agent: &mut impl Agent,
        scratch: &mut Scratch,
        lost: bool,
    ) -> Turn {
        let mut turn = Turn::default();
        // What it acknowledges makes room for what is read below.
        self.hearing.hear(agent, &mut self.side.replay, lost, &mut turn);
        if self.up.end.is_open() {
            self.carry_up(agent, lost, &mut turn);
        }
        // Before the desktop's bytes, which take all the room there is.
        self.saying.say(agent, &mut self.side.receipt, lost);
        if self.down.end.is_open() {
            self.carry_down(agent, scratch, lost, &mut turn);
        }
        turn
    }

    fn carry_up(&mut self, agent: &mut impl Agent, lost: bool, turn: &mut Turn) {
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
                    None if self.up.ready => self.up.take(agent),
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
                    if let Some(waker) = self.owed.take() {
                        waker.wake();
                    }
                    agent.carried(written);
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
        agent: &mut impl Agent,
        scratch: &mut Scratch,
        lost: bool,
        turn: &mut Turn,
    ) {
        if lost {
            return self.down.end.reach(Parted::AgentGone);
        }
        let mut has_read = false;
        loop {
            if let Some(chunk) = self.side.replay.unsent() {
                if !self.down.ready {
                    return;
                }
                match agent.give(chunk) {
                    Given::Some(bytes) => {
                        self.side.replay.advance(bytes);
                        self.traffic.carried(Way::Down, bytes);
                    }
                    Given::Full => self.down.ready = false,
                    Given::Gone => return self.down.end.reach(Parted::AgentGone),
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
                    let heard = agent.finish();
                    let told = if heard { Parted::DesktopFinished } else { Parted::AgentGone };
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
                    agent.finish();
                    return self.down.end.reach(Parted::DesktopFailed(error));
                }
            }
        }
    }

    /// Ends both directions without another look at the agent's connection.
    pub(crate) fn lose_agent(&mut self) {
        self.hearing.lose_agent();
        self.saying.lose_agent();
        self.up.pieces = VecDeque::new();
        self.up.end.reach(Parted::AgentGone);
        self.down.end.reach(Parted::AgentGone);
    }

    pub(crate) fn end(&mut self, way: Way) -> &mut End {
        match way {
            Way::Up => &mut self.up.end,
            Way::Down => &mut self.down.end,
        }
    }
}

impl Up {
    /// Takes what the agent has sent, at most [`PIECES_MAX`] pieces.
    fn take(&mut self, agent: &mut impl Agent) {
        match agent.take(&mut self.pieces) {
            Taken::More => {}
            Taken::Empty => self.ready = false,
            Taken::Finished => self.last = Some(Parted::AgentFinished),
            Taken::Gone => self.last = Some(Parted::AgentGone),
        }
    }

    fn fail(&mut self, error: io::Error) {
        self.pieces = VecDeque::new();
        self.end.reach(Parted::DesktopFailed(error));
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

    pub(crate) fn poll(&mut self, waker: &Waker) -> Poll<Parted> {
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
        let Self { buffer, lent } = self;
        if buffer.capacity() == 0
            && let Some(oldest) = lent.pop_front_if(|oldest| oldest.is_unique())
        {
            *buffer = oldest.into();
        }
        buffer.clear();
        buffer.reserve_exact(READ_MAX);
        let read = loop {
            match rustix::io::read(from, spare_capacity(buffer)) {
                Err(rustix::io::Errno::INTR) => {}
                read => break read?,
            }
        };
        if read >= READ_MAX / 2 {
            let bytes = Bytes::from(std::mem::take(buffer));
            if lent.len() == BUFFERS_MAX {
                lent.pop_front();
            }
            lent.push_back(bytes.clone());
            Ok(bytes)
        } else {
            Ok(Bytes::copy_from_slice(buffer))
        }
    }
}
