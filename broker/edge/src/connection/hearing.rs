//! What a peer says beside the bytes that are carried for it, heard by whoever carries
//! them. How far it has got is noted at once, without waking anybody; every other frame
//! waits for the handler, one at a time, and what follows waits in the stream's window.

use std::task::{Poll, Waker};

use bytes::Bytes;
use tegata_proto::frame::{Decoder, LIMIT_AFTER};
use tegata_proto::replay::{BadOffset, Replay};

use super::carrying::{Agent, Turn};
use crate::wire::WireError;

/// After how many bytes a turn hears no further frame.
const BYTES_PER_TURN: usize = 4 * 1024;

/// Returns how many bytes were written onward, if a frame's body says only that.
pub type Acknowledges = fn(&[u8]) -> Option<u64>;

/// Why no more is heard.
#[derive(Debug, thiserror::Error)]
pub enum NotHeard {
    /// What came is no frame, or nothing more comes.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It acknowledges what was never sent.
    #[error(transparent)]
    Offset(#[from] BadOffset),
}

/// What came of listening.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// The next bytes, as many as were asked for at most.
    Bytes(Bytes),
    /// More comes later.
    Nothing,
    /// Nothing more comes.
    Over,
}

/// The ear for one control stream.
pub(crate) struct Hearing {
    decoder: Decoder,
    acknowledges: Acknowledges,
    /// Whether the stream may have bytes.
    ready: bool,
    /// What the handler has not taken yet; after an error nothing is heard any more.
    heard: Option<Result<Vec<u8>, NotHeard>>,
    is_over: bool,
    waiting: Option<Waker>,
}

impl Hearing {
    /// Goes on where the handler's own reading of the stream has stopped.
    pub(crate) fn new(decoder: Decoder, acknowledges: Acknowledges) -> Self {
        let (ready, heard, is_over, waiting) = (true, None, false, None);
        Self { decoder, acknowledges, ready, heard, is_over, waiting }
    }

    /// Notes that the stream may have bytes.
    pub(crate) fn is_readable(&mut self) {
        self.ready = true;
    }

    /// Hears what there is, and what that acknowledges.
    pub(crate) fn hear(
        &mut self,
        agent: &mut impl Agent,
        replay: &mut Replay,
        lost: bool,
        turn: &mut Turn,
    ) {
        let until = turn.moved + BYTES_PER_TURN;
        while self.heard.is_none() && !self.is_over {
            match self.frame(agent, turn) {
                Ok(Some(body)) => match (self.acknowledges)(&body) {
                    Some(received) => {
                        if let Err(error) = replay.acknowledge(received) {
                            self.tell(Err(error.into()));
                        }
                    }
                    None => self.tell(Ok(body)),
                },
                Ok(None) if lost => self.tell(Err(WireError::Closed.into())),
                Ok(None) => return,
                Err(error) => self.tell(Err(error.into())),
            }
            if turn.moved >= until {
                turn.more = true;
                return;
            }
        }
    }

    /// Takes the next frame, as far as it is here.
    fn frame(
        &mut self,
        agent: &mut impl Agent,
        turn: &mut Turn,
    ) -> Result<Option<Vec<u8>>, WireError> {
        while self.ready {
            let wanted = self.decoder.wanted(LIMIT_AFTER).map_err(WireError::Malformed)?;
            match agent.hear(wanted) {
                Said::Bytes(bytes) => {
                    turn.moved += bytes.len();
                    let body = self.decoder.take(&mut &bytes[..], LIMIT_AFTER);
                    if let Some(body) = body.map_err(WireError::Malformed)? {
                        return Ok(Some(body));
                    }
                }
                Said::Nothing => self.ready = false,
                Said::Over => return Err(WireError::Closed),
            }
        }
        Ok(None)
    }

    /// Hears no more, without another look at the stream.
    pub(crate) fn lose_agent(&mut self) {
        if self.heard.is_none() && !self.is_over {
            self.tell(Err(WireError::Closed.into()));
        }
    }

    fn tell(&mut self, heard: Result<Vec<u8>, NotHeard>) {
        self.is_over = heard.is_err();
        self.heard = Some(heard);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    /// Is done with the next frame that is no acknowledgement, or once nothing more is
    /// heard.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Poll<Result<Vec<u8>, NotHeard>> {
        if let Some(heard) = self.heard.take() {
            return Poll::Ready(heard);
        }
        self.waiting = Some(waker.clone());
        Poll::Pending
    }
}
