//! A stream joined to a desktop's TCP socket, as a handler has it: how it begins,
//! how each direction ends, and how both are ended. The driver carries the bytes;
//! see [`super::joined`].

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Weak};
use std::task::Poll;

use quinn_proto::{ConnectionError, VarInt};
use tegata_proto::replay::BadOffset;

use super::connection::{Connection, Shared};
use super::desktop_side::DesktopSide;
use super::joined::Joined;
use super::stream::{RecvStream, SendStream};
use super::traffic::Traffic;

/// Code of a stream whose session has ended.
const ENDED: VarInt = VarInt::from_u32(0);

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
    /// The agent's connection is gone.
    #[error("the connection is lost")]
    Lost {
        /// Why.
        source: ConnectionError,
        /// The desktop's, unchanged.
        side: Box<DesktopSide>,
    },
    /// The desktop's socket cannot be watched. It is reset.
    #[error("the desktop's socket cannot be watched")]
    Socket(#[source] io::Error),
}

/// Looks at a splice without keeping it.
#[derive(Clone)]
pub struct Account {
    shared: Weak<Shared>,
}

impl Account {
    /// Tells whether the desktop's bytes could be sent again from this offset on. Once
    /// the splice is over, they could not.
    pub fn may_resume(&self, received: u64) -> bool {
        let Some(shared) = self.shared.upgrade() else { return false };
        let mut state = shared.state();
        state.joined.as_mut().is_some_and(|joined| joined.side().may_resume(received))
    }
}

/// A stream and a desktop, joined. Dropped, both directions end at once: the
/// desktop's connection is reset, the stream too, and what is in them is lost.
/// Nothing is carried once that has returned.
pub struct Splice {
    shared: Arc<Shared>,
}

impl Connection {
    /// Joins a stream of this connection to a desktop, and counts what is carried.
    ///
    /// # Errors
    ///
    /// Fails when the connection is lost by now, or the socket cannot be watched.
    pub fn splice(
        &self,
        to_agent: SendStream,
        from_agent: RecvStream,
        side: DesktopSide,
        traffic: Arc<Traffic>,
    ) -> Result<Splice, NotJoined> {
        let shared = Arc::clone(&self.shared);
        let joined = Joined::new(side, from_agent.into_id(), to_agent.into_id(), traffic);
        let mut state = shared.state();
        if let Some(lost) = state.lost.clone() {
            drop(state);
            let side = Box::new(joined.into_side().0);
            return Err(NotJoined::Lost { source: lost, side });
        }
        shared.doorbell().watch(joined.socket(), shared.key()).map_err(NotJoined::Socket)?;
        state.joined = Some(Box::new(joined));
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

    /// Returns what others may see of it.
    pub fn account(&self) -> Account {
        Account { shared: Arc::downgrade(&self.shared) }
    }

    /// Notes how many of the desktop's bytes the agent has written onward. Without a
    /// splice it changes nothing.
    ///
    /// # Errors
    ///
    /// Refuses what was never sent.
    pub fn acknowledged(&self, received: u64) -> Result<(), BadOffset> {
        let mut state = self.shared.state();
        let Some(joined) = &mut state.joined else { return Ok(()) };
        let may_go_on = joined.acknowledged(received)?;
        drop(state);
        if may_go_on {
            self.shared.ring();
        }
        Ok(())
    }

    /// Waits until at least so many bytes were written onward to the desktop that the
    /// agent has not been told of.
    pub async fn owed(&self, bytes: u64) {
        poll_fn(|cx| {
            let mut state = self.shared.state();
            let Some(joined) = &mut state.joined else { return Poll::Pending };
            joined.poll_owed(bytes, cx.waker())
        })
        .await;
    }

    /// Returns how many bytes the agent is to be told of, and notes that it is.
    pub fn say(&self) -> u64 {
        let mut state = self.shared.state();
        state.joined.as_mut().map_or(0, |joined| joined.side().receipt.say())
    }

    /// Ends both directions and closes the desktop's connection in order: what was
    /// written to it still arrives.
    pub fn close(self) {
        if let Some(joined) = self.part() {
            joined.into_side().0.close();
        }
    }

    /// Ends both directions and gives the desktop's connection back, to be joined to
    /// another stream. Where viewer or desktop has ended what it says, it is closed in
    /// order instead.
    pub fn detach(self) -> Option<DesktopSide> {
        let (side, goes_on) = self.part()?.into_side();
        self.shared.doorbell().forget(side.socket());
        if goes_on {
            return Some(side);
        }
        side.close();
        None
    }

    /// Takes the splice apart, once.
    fn part(&self) -> Option<Box<Joined>> {
        let mut state = self.shared.state();
        let joined = state.joined.take()?;
        if state.lost.is_none() {
            // Both fail where the agent has everything, or has ended them itself.
            let (from_agent, to_agent) = joined.streams();
            let _ = state.quic.recv_stream(from_agent).stop(ENDED);
            let _ = state.quic.send_stream(to_agent).reset(ENDED);
        }
        drop(state);
        self.shared.ring();
        Some(joined)
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        self.part();
    }
}
