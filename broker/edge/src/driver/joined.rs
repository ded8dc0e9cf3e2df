//! A stream of QUIC as the driver shows it to what carries between it and a desktop.

use std::collections::VecDeque;

use bytes::Bytes;
use quinn_proto::{ReadError, StreamId, WriteError};
use rustix::event::epoll::EventFlags;

use crate::connection::carrying::{Agent, Carrying, Given, PIECES_MAX, Scratch, Taken, Turn};
use crate::connection::hearing::Said;

/// What the driver keeps of a splice.
pub(super) struct Joined {
    pub(super) carrying: Carrying,
    from_agent: StreamId,
    to_agent: StreamId,
    control: StreamId,
}

/// Both directions of a stream, and what is said beside them.
struct Stream<'a> {
    quic: &'a mut quinn_proto::Connection,
    from_agent: StreamId,
    to_agent: StreamId,
    control: StreamId,
}

impl Joined {
    pub(super) fn new(
        carrying: Carrying,
        from_agent: StreamId,
        to_agent: StreamId,
        control: StreamId,
    ) -> Self {
        Self { carrying, from_agent, to_agent, control }
    }

    /// Returns the stream from the agent and the one to it.
    pub(super) fn streams(&self) -> (StreamId, StreamId) {
        (self.from_agent, self.to_agent)
    }

    /// Returns the stream by which the agent and we say something to each other.
    pub(super) fn control(&self) -> StreamId {
        self.control
    }

    /// Notes what has changed at the desktop's socket.
    pub(super) fn desktop_changed(&mut self, flags: EventFlags) {
        let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        let readable = flags.contains(EventFlags::IN);
        let writable = broken || flags.contains(EventFlags::OUT);
        let hung_up = broken || flags.contains(EventFlags::RDHUP);
        self.carrying.desktop_changed(readable, writable, hung_up);
    }

    /// Notes that a stream may have bytes.
    pub(super) fn readable(&mut self, id: StreamId) {
        if id == self.from_agent {
            self.carrying.agent_readable();
        } else if id == self.control {
            self.carrying.hearing().is_readable();
        }
    }

    /// Notes that a stream may take bytes.
    pub(super) fn writable(&mut self, id: StreamId) {
        if id == self.to_agent {
            self.carrying.agent_writable();
        }
    }

    /// Carries what can be carried in one turn, both ways.
    pub(super) fn turn(
        &mut self,
        quic: &mut quinn_proto::Connection,
        scratch: &mut Scratch,
        lost: bool,
    ) -> Turn {
        let Self { carrying, from_agent, to_agent, control } = self;
        let (from_agent, to_agent, control) = (*from_agent, *to_agent, *control);
        carrying.turn(&mut Stream { quic, from_agent, to_agent, control }, scratch, lost)
    }
}

impl Agent for Stream<'_> {
    fn hear(&mut self, most: usize) -> Said {
        let mut stream = self.quic.recv_stream(self.control);
        let Ok(mut chunks) = stream.read(true) else { return Said::Over };
        let said = match chunks.next(most) {
            Ok(Some(chunk)) => Said::Bytes(chunk.bytes),
            Ok(None) | Err(ReadError::Reset(_)) => Said::Over,
            Err(ReadError::Blocked) => Said::Nothing,
        };
        // The turn ends with sending, whatever credit there is to give.
        let _ = chunks.finalize();
        said
    }

    fn say(&mut self, bytes: &[u8]) -> Given {
        match self.quic.send_stream(self.control).write(bytes) {
            Ok(written) => Given::Some(written),
            Err(WriteError::Blocked) => Given::Full,
            Err(WriteError::Stopped(_) | WriteError::ClosedStream) => Given::Gone,
        }
    }

    fn take(&mut self, into: &mut VecDeque<Bytes>) -> Taken {
        let mut stream = self.quic.recv_stream(self.from_agent);
        let Ok(mut chunks) = stream.read(true) else { return Taken::Gone };
        let mut taken = Taken::More;
        while taken == Taken::More && into.len() < PIECES_MAX {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => into.push_back(chunk.bytes),
                Ok(None) => taken = Taken::Finished,
                Err(ReadError::Reset(_)) => taken = Taken::Gone,
                Err(ReadError::Blocked) => taken = Taken::Empty,
            }
        }
        // The turn ends with sending, whatever credit there is to give.
        let _ = chunks.finalize();
        taken
    }

    /// Credit was given when the bytes were taken.
    fn carried(&mut self, _: usize) {}

    fn give(&mut self, mut chunk: Bytes) -> Given {
        let mut stream = self.quic.send_stream(self.to_agent);
        match stream.write_chunks(std::slice::from_mut(&mut chunk)) {
            Ok(written) => Given::Some(written.bytes),
            Err(WriteError::Blocked) => Given::Full,
            Err(WriteError::Stopped(_) | WriteError::ClosedStream) => Given::Gone,
        }
    }

    fn finish(&mut self) -> bool {
        // Fails only where the agent has stopped the stream already.
        self.quic.send_stream(self.to_agent).finish().is_ok()
    }
}
