//! One connection, shared between the thread that drives it and its handler.
//!
//! Both look at the same state under one lock, so a handler's word takes effect
//! before it goes on: what it closes or ends carries nothing afterwards. What is
//! on its way waits in the connection's own windows and nowhere else.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::crypto::rustls::HandshakeData;
use quinn_proto::{ConnectionError, Dir, Event, StreamEvent, StreamId, VarInt};
use tegata_proto::proof::{EXPORTER_LABEL, EXPORTER_LEN};
use tokio::sync::Notify;

use super::doorbell::Doorbell;
use super::joined::Joined;
use super::stream::{RecvStream, SendStream};
use crate::endpoint::WIDE_WINDOW;

/// What both sides know of a connection.
pub(super) struct Shared {
    key: usize,
    doorbell: Arc<Doorbell>,
    /// Whether it is in the doorbell's list.
    rung: AtomicBool,
    opened: Notify,
    closed: Notify,
    state: Mutex<State>,
}

/// The connection, and who waits for what.
pub(super) struct State {
    pub(super) quic: quinn_proto::Connection,
    /// Why nothing more will come.
    pub(super) lost: Option<ConnectionError>,
    pub(super) readers: Waiting,
    pub(super) writers: Waiting,
    /// The desktop that one of its streams is joined to.
    pub(super) joined: Option<Box<Joined>>,
}

/// Who waits for a stream. A connection has a handful of streams at most.
#[derive(Default)]
pub(super) struct Waiting(Vec<(StreamId, Waker)>);

/// What a look at a connection's events found, for those outside it.
#[derive(Default)]
pub(super) struct News {
    pub(super) connected: bool,
    pub(super) lost: bool,
}

/// A connection of a peer, its handshake complete. Clones are the same one.
#[derive(Clone)]
pub struct Connection {
    pub(super) shared: Arc<Shared>,
}

impl Connection {
    /// Waits for the next stream that the peer opens.
    ///
    /// # Errors
    ///
    /// Tells why there will be none.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        loop {
            let opened = {
                let mut state = self.shared.state();
                if let Some(id) = state.quic.streams().accept(Dir::Bi) {
                    let shared = &self.shared;
                    let streams = (SendStream::new(shared, id), RecvStream::new(shared, id));
                    return Ok(streams);
                }
                if let Some(lost) = &state.lost {
                    return Err(lost.clone());
                }
                self.shared.opened.notified()
            };
            opened.await;
        }
    }

    /// Waits until the connection is lost or closed, by whichever side.
    pub async fn closed(&self) -> ConnectionError {
        loop {
            let closed = {
                let state = self.shared.state();
                if let Some(lost) = &state.lost {
                    return lost.clone();
                }
                self.shared.closed.notified()
            };
            closed.await;
        }
    }

    /// Closes the connection at once and tells the peer why. Bytes that it has not
    /// received are lost. May be repeated.
    pub fn close(&self, code: VarInt, reason: &[u8]) {
        let mut state = self.shared.state();
        if state.lost.is_none() {
            state.quic.close(Instant::now(), code, Bytes::copy_from_slice(reason));
            state.lose(ConnectionError::LocallyClosed);
            drop(state);
            self.shared.tell(&News { connected: false, lost: true });
            self.shared.ring();
        }
    }

    /// Lets the peer send as far ahead as a session needs.
    pub(crate) fn widen(&self) {
        let window = VarInt::from_u32(WIDE_WINDOW);
        self.shared.state().quic.set_receive_window(window);
        self.shared.ring();
    }

    /// Returns where the peer is now. It may move.
    pub fn remote_address(&self) -> SocketAddr {
        self.shared.state().quic.remote_address()
    }

    /// Returns how long a packet and its answer take now.
    pub fn rtt(&self) -> Duration {
        self.shared.state().quic.rtt()
    }

    /// Returns the TLS exporter (RFC 8446 §7.5) that proofs are bound to.
    pub(crate) fn exporter(&self) -> Option<[u8; EXPORTER_LEN]> {
        let mut exporter = [0; EXPORTER_LEN];
        let state = self.shared.state();
        let session = state.quic.crypto_session();
        session.export_keying_material(&mut exporter, EXPORTER_LABEL, b"").ok()?;
        Some(exporter)
    }

    /// Returns the ALPN that was agreed on.
    pub(crate) fn alpn(&self) -> Option<Vec<u8>> {
        let data = self.shared.state().quic.crypto_session().handshake_data()?;
        data.downcast::<HandshakeData>().ok()?.protocol
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("key", &self.shared.key).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(
        key: usize,
        doorbell: Arc<Doorbell>,
        quic: quinn_proto::Connection,
    ) -> Arc<Self> {
        let (readers, writers) = (Waiting::default(), Waiting::default());
        let state = State { quic, lost: None, readers, writers, joined: None };
        Arc::new(Self {
            key,
            doorbell,
            rung: AtomicBool::new(false),
            opened: Notify::new(),
            closed: Notify::new(),
            state: Mutex::new(state),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Where the driver panicked, the connection is marked as lost.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the driver look at the connection soon.
    pub(super) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.doorbell.ring(self.key);
        }
    }

    /// Notes that the driver is about to look.
    pub(super) fn heard(&self) {
        self.rung.store(false, Ordering::Release);
    }

    /// Wakes those who wait for the connection as a whole.
    pub(super) fn tell(&self, news: &News) {
        if news.lost {
            self.opened.notify_waiters();
            self.closed.notify_waiters();
        }
    }

    pub(super) fn key(&self) -> usize {
        self.key
    }

    pub(super) fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }
}

impl State {
    /// Takes the connection's events and wakes those who wait for its streams.
    pub(super) fn news(&mut self, shared: &Shared) -> News {
        let mut news = News::default();
        while let Some(event) = self.quic.poll() {
            match event {
                Event::Connected => news.connected = true,
                Event::ConnectionLost { reason } => {
                    self.lost.get_or_insert(reason);
                    news.lost = true;
                }
                Event::Stream(StreamEvent::Opened { .. }) => shared.opened.notify_waiters(),
                Event::Stream(StreamEvent::Readable { id }) => {
                    if let Some(joined) = &mut self.joined {
                        joined.readable(id);
                    }
                    self.readers.wake(id);
                }
                Event::Stream(
                    StreamEvent::Writable { id }
                    | StreamEvent::Finished { id }
                    | StreamEvent::Stopped { id, .. },
                ) => {
                    if let Some(joined) = &mut self.joined {
                        joined.writable(id);
                    }
                    self.writers.wake(id);
                }
                Event::HandshakeDataReady
                | Event::DatagramReceived
                | Event::DatagramsUnblocked
                | Event::Stream(StreamEvent::Available { .. }) => {}
            }
        }
        news
    }

    /// Notes that nothing more will come.
    pub(super) fn lose(&mut self, why: ConnectionError) {
        self.lost.get_or_insert(why);
        self.wake_all();
    }

    /// Wakes whoever waits for a stream.
    pub(super) fn wake_all(&mut self) {
        self.readers.wake_all();
        self.writers.wake_all();
    }
}

impl Waiting {
    /// Has `waker` woken for a stream, instead of whoever waited for it before.
    pub(super) fn insert(&mut self, id: StreamId, waker: &Waker) {
        match self.0.iter_mut().find(|(of, _)| *of == id) {
            Some((_, known)) => known.clone_from(waker),
            None => self.0.push((id, waker.clone())),
        }
    }

    pub(super) fn remove(&mut self, id: StreamId) {
        self.0.retain(|(of, _)| *of != id);
    }

    fn wake(&mut self, id: StreamId) {
        if let Some(at) = self.0.iter().position(|(of, _)| *of == id) {
            self.0.swap_remove(at).1.wake();
        }
    }

    fn wake_all(&mut self) {
        for (_, waker) in self.0.drain(..) {
            waker.wake();
        }
    }
}
