//! A stream joined to a desktop's TCP socket, as a handler has it: how it begins,
//! how each direction ends, and how both are ended. The transport's own code
//! carries the bytes.

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Weak};
use std::task::Poll;

use super::carrying::Carrying;
use super::hearing::{Acknowledges, Hearing, NotHeard};
use super::{Connection, DesktopSide, Lost, RecvStream, SendStream, Traffic};
use crate::wire::FrameReader;

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
        source: Lost,
        /// The desktop's, unchanged.
        side: Box<DesktopSide>,
    },
    /// The desktop's socket cannot be watched. It is reset.
    #[error("the desktop's socket cannot be watched")]
    Socket(#[source] io::Error),
}

/// What an agent says beside its bytes.
pub struct Control {
    /// Where it says so, as far as it was read.
    pub reader: FrameReader,
    /// Which of its frames only acknowledge bytes.
    pub acknowledges: Acknowledges,
}

/// A connection, as what joins one of its streams to a desktop sees it.
pub(crate) trait Seam: Send + Sync {
    /// Shows what is carried, if something still is. Nothing moves meanwhile.
    fn look(&self, at: &mut dyn FnMut(&mut Carrying));

    /// Has it carried on soon.
    fn ring(&self);

    /// Ends both directions of the stream and gives back what was carried, once.
    /// Nothing moves any more when this has returned.
    fn part(&self) -> Option<Carrying>;
}

/// Returns what a look found; nothing where nothing is carried.
fn look<T>(seam: &dyn Seam, at: impl FnOnce(&mut Carrying) -> T) -> Option<T> {
    let (mut at, mut found) = (Some(at), None);
    seam.look(&mut |carrying| found = at.take().map(|at| at(carrying)));
    found
}

/// Looks at a splice without keeping it.
#[derive(Clone)]
pub struct Account {
    seam: Weak<dyn Seam>,
}

impl Account {
    /// Tells whether the desktop's bytes could be sent again from this offset on; nothing
    /// once the splice is over.
    pub fn may_resume(&self, received: u64) -> Option<bool> {
        look(&*self.seam.upgrade()?, |carrying| carrying.side().may_resume(received))
    }
}

/// A stream and a desktop, joined. Dropped, both directions end at once: the
/// desktop's connection is reset, the stream too, and what is in them is lost.
/// Nothing is carried once that has returned.
pub struct Splice {
    seam: Arc<dyn Seam>,
}

impl Connection {
    /// Joins a stream of this connection to a desktop, and counts what is carried. What
    /// the agent says meanwhile is heard by the [`Splice`].
    ///
    /// # Errors
    ///
    /// Fails when the connection is lost by now, or the socket cannot be watched.
    pub fn splice(
        &self,
        to_agent: SendStream,
        from_agent: RecvStream,
        control: Control,
        side: DesktopSide,
        traffic: Arc<Traffic>,
    ) -> Result<Splice, NotJoined> {
        let Control { reader, acknowledges } = control;
        let (control, decoder) = reader.into_parts();
        let carrying = Carrying::new(side, traffic, Hearing::new(decoder, acknowledges));
        let seam: Arc<dyn Seam> = match (self, to_agent, from_agent, control) {
            (
                Self::Quic(quic),
                SendStream::Quic(to_agent),
                RecvStream::Quic(from_agent),
                RecvStream::Quic(control),
            ) => quic.join(to_agent, from_agent, control, carrying)?,
            (
                Self::Tcp(tcp),
                SendStream::Tcp(to_agent),
                RecvStream::Tcp(from_agent),
                RecvStream::Tcp(control),
            ) => tcp.join(to_agent, from_agent, control, carrying)?,
            (Self::Quic(_) | Self::Tcp(_), ..) => {
                unreachable!("a connection gives out streams of its own transport only")
            }
        };
        seam.ring();
        Ok(Splice { seam })
    }
}

impl Splice {
    /// Waits until one direction has come to its end, and tells how, once.
    pub async fn parted(&self, way: Way) -> Parted {
        poll_fn(|cx| {
            look(&*self.seam, |carrying| carrying.end(way).poll(cx.waker()))
                .unwrap_or(Poll::Pending)
        })
        .await
    }

    /// Returns what others may see of it.
    pub fn account(&self) -> Account {
        Account { seam: Arc::downgrade(&self.seam) }
    }

    /// Waits for the body of the next frame of the agent's that does not only
    /// acknowledge bytes. Loses nothing when it is dropped half-way.
    ///
    /// # Errors
    ///
    /// Nothing more comes, or what came is no frame or acknowledges what was never sent.
    pub async fn heard(&self) -> Result<Vec<u8>, NotHeard> {
        let heard = poll_fn(|cx| {
            look(&*self.seam, |carrying| carrying.hearing().poll(cx.waker()))
                .unwrap_or(Poll::Pending)
        })
        .await;
        // The next one is not heard before this one is taken.
        self.seam.ring();
        heard
    }

    /// Waits until at least so many bytes were written onward to the desktop that the
    /// agent has not been told of.
    pub async fn owed(&self, bytes: u64) {
        poll_fn(|cx| {
            look(&*self.seam, |carrying| carrying.poll_owed(bytes, cx.waker()))
                .unwrap_or(Poll::Pending)
        })
        .await;
    }

    /// Returns how many of the desktop's bytes the agent has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        look(&*self.seam, |carrying| carrying.side().replay.acknowledged()).unwrap_or(0)
    }

    /// Returns how many bytes the agent is to be told of, and notes that it is.
    pub fn say(&self) -> u64 {
        look(&*self.seam, |carrying| carrying.side().receipt.say()).unwrap_or(0)
    }

    /// Ends both directions and closes the desktop's connection in order: what was
    /// written to it still arrives.
    pub fn close(self) {
        if let Some(carrying) = self.seam.part() {
            carrying.into_side().close();
        }
    }

    /// Ends both directions and gives the desktop's connection back, to be joined to
    /// another stream. What viewer or desktop has ended ends on that one again.
    pub fn detach(self) -> Option<DesktopSide> {
        self.seam.part().map(Carrying::into_side)
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        self.seam.part();
    }
}
