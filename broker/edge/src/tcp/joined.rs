//! A stream of HTTP/2 joined to a desktop, as the task that moves its bytes has it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::Reason;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::connection::{Connection, Shared};
use super::stream::{Body, RecvStream, SendStream, poll_send};
use crate::connection::carrying::{Agent, Carrying, Given, PIECES_MAX, Scratch, Taken};
use crate::connection::hearing::Said;
use crate::connection::{self, NotJoined, Seam};

thread_local! {
    /// Where this thread reads from desktops.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What is kept of a splice.
pub(super) struct Joined {
    carrying: Carrying,
    from_agent: Body,
    hear: Body,
    /// Nothing where the peer gave it up at once, as for the next one.
    say: Option<h2::SendStream<Bytes>>,
    to_agent: Option<h2::SendStream<Bytes>>,
    desktop: AsyncFd<Arc<TcpStream>>,
    /// Whether the kernel has told that nothing more comes, and that nothing more is
    /// taken. Each is told once.
    read_closed: bool,
    write_closed: bool,
}

/// Both directions of a stream and what is said beside them, in one turn.
struct Stream<'a, 'b> {
    from_agent: &'a mut Body,
    hear: &'a mut Body,
    say: Option<&'a mut h2::SendStream<Bytes>>,
    to_agent: Option<&'a mut h2::SendStream<Bytes>>,
    cx: &'a mut Context<'b>,
}

impl Joined {
    /// Carries what can be carried in one turn, and has the task woken for more.
    pub(super) fn turn(&mut self, cx: &mut Context<'_>, lost: bool) {
        self.look(cx);
        let Self { carrying, from_agent, hear, say, to_agent, .. } = self;
        carrying.hearing().is_readable();
        carrying.agent_readable();
        carrying.agent_writable();
        let (say, to_agent) = (say.as_mut(), to_agent.as_mut());
        let mut stream = Stream { from_agent, hear, say, to_agent, cx };
        let turn = SCRATCH.with_borrow_mut(|scratch| carrying.turn(&mut stream, scratch, lost));
        if turn.more {
            cx.waker().wake_by_ref();
        }
    }

    /// Takes in what the kernel has to say of the desktop's socket, until it has said
    /// everything and the task is woken for the rest.
    fn look(&mut self, cx: &mut Context<'_>) {
        while !self.read_closed
            && let Poll::Ready(Ok(mut told)) = self.desktop.poll_read_ready(cx)
        {
            self.read_closed = told.ready().is_read_closed();
            self.carrying.desktop_changed(true, false, self.read_closed);
            told.clear_ready();
        }
        while !self.write_closed
            && let Poll::Ready(Ok(mut told)) = self.desktop.poll_write_ready(cx)
        {
            self.write_closed = told.ready().is_write_closed();
            self.carrying.desktop_changed(false, true, false);
            told.clear_ready();
        }
    }
}

/// Gives a stream as many bytes as go now.
fn send(
    stream: Option<&mut h2::SendStream<Bytes>>,
    cx: &mut Context<'_>,
    length: usize,
    cut: impl FnOnce(usize) -> Bytes,
) -> Given {
    let Some(stream) = stream else { return Given::Gone };
    match poll_send(stream, cx, length, cut) {
        Poll::Ready(Some(sent)) => Given::Some(sent),
        Poll::Ready(None) => Given::Gone,
        Poll::Pending => Given::Full,
    }
}

/// Has the runtime tell of changes at a socket.
#[expect(
    deprecated,
    reason = "the other way is unsafe for sockets that may be closed meanwhile; \
                               this one stays open for as long as anybody holds it"
)]
fn watch(socket: Arc<TcpStream>) -> io::Result<AsyncFd<Arc<TcpStream>>> {
    AsyncFd::with_interest(socket, Interest::READABLE | Interest::WRITABLE)
}

impl Agent for Stream<'_, '_> {
    fn hear(&mut self, most: usize) -> Said {
        let Self { hear, cx, .. } = self;
        while hear.rest.is_empty() {
            match hear.stream.poll_data(cx) {
                Poll::Ready(Some(Ok(bytes))) => hear.rest = bytes,
                Poll::Ready(Some(Err(_)) | None) => return Said::Over,
                Poll::Pending => return Said::Nothing,
            }
        }
        let bytes = hear.rest.split_to(most.min(hear.rest.len()));
        hear.used(bytes.len());
        Said::Bytes(bytes)
    }

    fn say(&mut self, bytes: &[u8]) -> Given {
        let cut = |length| Bytes::copy_from_slice(&bytes[..length]);
        send(self.say.as_deref_mut(), self.cx, bytes.len(), cut)
    }

    fn take(&mut self, into: &mut VecDeque<Bytes>) -> Taken {
        let Self { from_agent: Body { stream, rest }, cx, .. } = self;
        if !rest.is_empty() {
            into.push_back(std::mem::take(rest));
        }
        while into.len() < PIECES_MAX {
            match stream.poll_data(cx) {
                Poll::Ready(Some(Ok(bytes))) if bytes.is_empty() => {}
                Poll::Ready(Some(Ok(bytes))) => into.push_back(bytes),
                Poll::Ready(Some(Err(_))) => return Taken::Gone,
                Poll::Ready(None) => return Taken::Finished,
                Poll::Pending => return Taken::Empty,
            }
        }
        Taken::More
    }

    fn carried(&mut self, bytes: usize) {
        self.from_agent.used(bytes);
    }

    fn give(&mut self, chunk: Bytes) -> Given {
        send(self.to_agent.as_deref_mut(), self.cx, chunk.len(), |length| chunk.slice(..length))
    }

    fn finish(&mut self) -> bool {
        self.to_agent.as_mut().is_some_and(|stream| stream.send_data(Bytes::new(), true).is_ok())
    }
}

impl Connection {
    /// Joins a stream of this connection to a desktop; see
    /// [`splice`](crate::Connection::splice).
    pub(crate) fn join(
        &self,
        (to_agent, from_agent): (SendStream, RecvStream),
        (say, hear): (SendStream, RecvStream),
        carrying: Carrying,
    ) -> Result<Arc<dyn Seam>, NotJoined> {
        let shared = Arc::clone(&self.shared);
        let (from_agent, hear) = (from_agent.into_body(), hear.into_body());
        let (to_agent, say) = (to_agent.into_stream(), say.into_stream());
        let mut state = shared.state();
        if let Some(lost) = state.lost {
            drop(state);
            let (side, _) = carrying.into_parts();
            let side = Box::new(side);
            return Err(NotJoined::Lost { source: lost.into(), side });
        }
        let desktop = watch(Arc::clone(carrying.socket())).map_err(NotJoined::Socket)?;
        let (read_closed, write_closed) = (false, false);
        let joined = Joined {
            carrying,
            from_agent,
            hear,
            say,
            to_agent,
            desktop,
            read_closed,
            write_closed,
        };
        state.joined = Some(Box::new(joined));
        drop(state);
        Ok(shared)
    }
}

impl Seam for Shared {
    fn look(&self, at: &mut dyn FnMut(&mut Carrying)) {
        if let Some(joined) = &mut self.state().joined {
            at(&mut joined.carrying);
        }
    }

    fn ring(&self) {
        self.state().wake();
    }

    fn part(self: Arc<Self>) -> Option<(Carrying, connection::SendStream)> {
        let mut state = self.state();
        let joined = state.joined.take()?;
        state.wake();
        drop(state);
        let Joined { carrying, say, to_agent, .. } = *joined;
        if let Some(mut to_agent) = to_agent {
            // Without a word where both directions have ended.
            to_agent.send_reset(Reason::CANCEL);
        }
        let say = SendStream::new(&self, say);
        Some((carrying, connection::SendStream::Tcp(say)))
    }
}
