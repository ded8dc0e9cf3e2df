//! A stream joined to a desktop's TCP socket, as a handler has it: how it begins,
//! how each direction ends, and how both are ended. The driver carries the bytes;
//! see [`super::joined`].

use std::future::poll_fn;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::task::Poll;

use quinn_proto::{ConnectionError, VarInt};

use super::connection::{Connection, Shared};
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
        let mut joined = Joined::new(desktop, from_agent.into_id(), to_agent.into_id(), traffic);
        let mut state = shared.state();
        if let Some(lost) = state.lost.clone() {
            drop(state);
            joined.abandon();
            return Err(NotJoined::Lost(lost));
        }
        shared.doorbell().watch(joined.desktop(), shared.key()).map_err(NotJoined::Socket)?;
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
        if state.lost.is_none() {
            // Both fail where the agent has everything, or has ended them itself.
            let (from_agent, to_agent) = joined.streams();
            let _ = state.quic.recv_stream(from_agent).stop(ENDED);
            let _ = state.quic.send_stream(to_agent).reset(ENDED);
        }
        drop(state);
        self.shared.ring();
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        self.part(false);
    }
}
