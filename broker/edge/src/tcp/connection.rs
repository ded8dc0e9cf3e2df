//! One connection, shared between the task that moves its bytes and its handler.
//!
//! What a handler closes or parts is over under the lock that the other side looks
//! under, so it carries nothing afterwards.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use quinn_proto::VarInt;
use tegata_proto::proof::EXPORTER_LEN;
use tokio::sync::Notify;

use super::joined::Joined;
use super::stream::{RecvStream, SendStream};
use super::transport::STREAMS;

/// Why nothing more comes over a connection by TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// We have closed it.
    #[error("closed by us")]
    ClosedHere,
    /// The peer has closed it, or its line has broken.
    #[error("closed by the peer")]
    Gone,
    /// The peer broke the rules of HTTP/2, or ours for it.
    #[error("the peer does not keep to the rules of its transport")]
    Malformed,
    /// Nothing came from the peer for too long.
    #[error("the peer was silent for too long")]
    Silent,
}

/// Who a peer is, as its handshake has it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) remote: SocketAddr,
    pub(super) alpn: Vec<u8>,
    pub(super) exporter: [u8; EXPORTER_LEN],
}

/// What both sides know of a connection.
pub(super) struct Shared {
    peer: Peer,
    /// Whether its line bounds no more what the peer sends in all.
    wide: Arc<AtomicBool>,
    opened: Notify,
    closed: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    /// Why nothing more will come.
    pub(super) lost: Option<Lost>,
    /// The code to close with, when it was closed here.
    pub(super) closing: Option<VarInt>,
    /// Opened by the peer, and not yet accepted by the handler.
    arrived: VecDeque<(SendStream, RecvStream)>,
    /// The desktop that one of its streams is joined to.
    pub(super) joined: Option<Box<Joined>>,
    /// Wakes the task that moves the bytes.
    pub(super) mover: Option<Waker>,
}

/// A connection of a peer by TLS on TCP, its handshake complete. Clones are the same
/// one.
#[derive(Clone)]
pub struct Connection {
    pub(super) shared: Arc<Shared>,
}

impl Connection {
    pub(crate) async fn accept_bi(&self) -> Result<(SendStream, RecvStream), Lost> {
        loop {
            let opened = {
                let mut state = self.shared.state();
                if let Some(streams) = state.arrived.pop_front() {
                    // There may be one more that found no room.
                    state.wake();
                    return Ok(streams);
                }
                if let Some(lost) = state.lost {
                    return Err(lost);
                }
                self.shared.opened.notified()
            };
            opened.await;
        }
    }

    pub(crate) async fn closed(&self) -> Lost {
        loop {
            let closed = {
                let state = self.shared.state();
                if let Some(lost) = state.lost {
                    return lost;
                }
                self.shared.closed.notified()
            };
            closed.await;
        }
    }

    /// Closes the connection at once. The peer is told the code alone: the library
    /// that speaks HTTP/2 has no place for a text.
    pub(crate) fn close(&self, code: VarInt) {
        self.shared.lose(Lost::ClosedHere, Some(code));
    }

    /// Lets the peer send as much as it likes, within its windows.
    pub(crate) fn widen(&self) {
        self.shared.wide.store(true, Ordering::Relaxed);
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.shared.peer.remote
    }

    pub(crate) fn exporter(&self) -> [u8; EXPORTER_LEN] {
        self.shared.peer.exporter
    }

    pub(crate) fn alpn(&self) -> &[u8] {
        &self.shared.peer.alpn
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.shared.peer).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(peer: Peer, wide: Arc<AtomicBool>) -> Arc<Self> {
        let (opened, closed) = (Notify::new(), Notify::new());
        Arc::new(Self { peer, wide, opened, closed, state: Mutex::default() })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic in there ends the task of this connection, and so the connection.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whether the connection is lost by now.
    pub(super) fn is_lost(&self) -> bool {
        self.state().lost.is_some()
    }

    /// Puts a stream there for the handler.
    pub(super) fn arrive(&self, streams: (SendStream, RecvStream)) {
        self.state().arrived.push_back(streams);
        self.opened.notify_waiters();
    }

    /// Notes that nothing more will come, and why. The first reason stands.
    pub(super) fn lose(&self, why: Lost, closing: Option<VarInt>) {
        let mut state = self.state();
        if state.lost.is_some() {
            return;
        }
        (state.lost, state.closing) = (Some(why), closing);
        let unheard = std::mem::take(&mut state.arrived);
        state.wake();
        drop(state);
        // A stream looks at the state when it is dropped.
        drop(unheard);
        self.opened.notify_waiters();
        self.closed.notify_waiters();
    }
}

impl State {
    /// Tells whether the handler takes so few streams that one more would wait here.
    pub(super) fn has_room(&self) -> bool {
        self.arrived.len() < STREAMS
    }

    /// Has the task that moves the bytes look again.
    pub(super) fn wake(&mut self) {
        if let Some(mover) = self.mover.take() {
            mover.wake();
        }
    }
}
