//! A stream joined to a desktop's TCP socket, as a handler has it: how it begins,
//! how each direction ends, and how both are ended. The transport's own code
//! carries the bytes.

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Weak};
use std::task::Poll;

use serde::Serialize;
use tegata_proto::frame;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use super::carrying::Carrying;
use super::hearing::{Acknowledges, Hearing, NotHeard};
use super::saying::{Acknowledgement, Saying};
use super::{Connection, DesktopSide, Lost, RecvStream, SendStream, Traffic};
use crate::wire::{FrameReader, FrameWriter, WireError};

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

/// What an agent and we say to each other beside its bytes.
pub struct Control {
    /// Where it says so, as far as it was read.
    pub reader: FrameReader,
    /// Where we do.
    pub writer: FrameWriter,
    /// Which of its frames only acknowledge bytes.
    pub acknowledges: Acknowledges,
    /// The frame that acknowledges bytes.
    pub acknowledgement: Acknowledgement,
}

/// A connection, as what joins one of its streams to a desktop sees it.
pub(crate) trait Seam: Send + Sync {
    /// Shows what is carried, if something still is. Nothing moves meanwhile.
    fn look(&self, at: &mut dyn FnMut(&mut Carrying));

    /// Has it carried on soon.
    fn ring(&self);

    /// Ends both directions of the stream and gives back what was carried and where the
    /// agent is told, once. Nothing moves any more when this has returned.
    fn part(self: Arc<Self>) -> Option<(Carrying, SendStream)>;
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
    /// the agent says meanwhile is heard by the [`Splice`], and what it is told goes by it.
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
        let Control { reader, writer, acknowledges, acknowledgement } = control;
        let (hear, decoder) = reader.into_parts();
        let (say, rest) = writer.into_parts();
        let hearing = Hearing::new(decoder, acknowledges);
        let saying = Saying::new(acknowledgement, rest);
        let carrying = Carrying::new(side, traffic, hearing, saying);
        let seam: Arc<dyn Seam> = match (self, to_agent, from_agent, say, hear) {
            (
                Self::Quic(quic),
                SendStream::Quic(to_agent),
                RecvStream::Quic(from_agent),
                SendStream::Quic(say),
                RecvStream::Quic(hear),
            ) => quic.join((to_agent, from_agent), (say, hear), carrying)?,
            (
                Self::Tcp(tcp),
                SendStream::Tcp(to_agent),
                RecvStream::Tcp(from_agent),
                SendStream::Tcp(say),
                RecvStream::Tcp(hear),
            ) => tcp.join((to_agent, from_agent), (say, hear), carrying)?,
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

    /// Tells the agent something, and returns once its stream has taken all of it.
    /// Dropped half-way, the frame is forgotten or still told whole.
    ///
    /// # Errors
    ///
    /// Refuses a body longer than `limit` bytes; ends when `deadline` passes or the agent
    /// takes nothing any more.
    pub async fn say<M: Serialize + Sync>(
        &self,
        message: &M,
        limit: usize,
        deadline: Instant,
    ) -> Result<(), WireError> {
        let frame = frame::write(message, limit).map_err(WireError::Unsendable)?;
        let mut frame = Some(Zeroizing::new(frame));
        let said = poll_fn(|cx| {
            let had = frame.is_some();
            let said = look(&*self.seam, |carrying| carrying.saying().poll(&mut frame, cx.waker()));
            if had && frame.is_none() {
                self.seam.ring();
            }
            said.unwrap_or(Poll::Pending)
        });
        timeout_at(deadline, said).await.map_err(|_| WireError::TooSlow)?
    }

    /// Waits until bytes were written onward to the desktop that the agent has not been
    /// told of. [`ACK_BYTES`](tegata_proto::replay::ACK_BYTES) it is told of at once.
    pub async fn owed(&self) {
        poll_fn(|cx| {
            look(&*self.seam, |carrying| carrying.poll_owed(cx.waker())).unwrap_or(Poll::Pending)
        })
        .await;
    }

    /// Has the agent told of all that was written onward.
    pub fn acknowledge(&self) {
        look(&*self.seam, |carrying| carrying.saying().acknowledge());
        self.seam.ring();
    }

    /// Returns how many of the desktop's bytes the agent has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        look(&*self.seam, |carrying| carrying.side().replay.acknowledged()).unwrap_or(0)
    }

    /// Ends both directions and gives back the desktop's side, to be closed in order or
    /// joined to another stream, and what the agent is told by. What viewer or desktop has
    /// ended ends on another stream again.
    pub fn part(self) -> (DesktopSide, FrameWriter) {
        let parted = Arc::clone(&self.seam).part();
        let (carrying, stream) = parted.expect("nobody else parts it");
        let (side, rest) = carrying.into_parts();
        (side, FrameWriter::with_rest(stream, rest))
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        drop(Arc::clone(&self.seam).part());
    }
}
