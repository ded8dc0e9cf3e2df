//! The thread that owns a public port: it receives, decides who is served next,
//! carries what is joined to a desktop, and sends.
//!
//! QUIC itself is `quinn-proto`, which does no input or output. Everything that
//! waits for a person, a directory or a store is a handler on tokio; it reaches
//! its connection through [`crate::connection`]. Who may come in is decided by
//! [`crate::endpoint`], what is served next by [`schedule`].

mod connection;
mod doorbell;
mod joined;
mod newcomer;
mod path;
mod schedule;
mod socket;
mod splice;
mod stream;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::{ConnectionError, ConnectionHandle, DatagramEvent, EcnCodepoint, EndpointEvent};
use quinn_udp::RecvMeta;

use self::connection::{News, Shared};
use self::doorbell::Seen;
use self::newcomer::{Handshake, Newcomer};
use self::path::Path;
use self::schedule::{Class, Pace, Ready, TRANSMITS_PER_TURN, Timers, segments};
use self::socket::{RECEIVES, Socket, pieces};
use crate::connection::carrying::{Scratch, Turn};
use crate::endpoint::{CLOSE_DONE, Reception};
use crate::metrics::Refusal;

pub use self::connection::Connection;
pub use self::stream::{RecvStream, SendStream};

pub(crate) use self::doorbell::{Doorbell, Stage};
pub(crate) use self::newcomer::Arrival;

/// How long closed connections may take to say so before the socket goes.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long a peer may be told again that its connection was closed here.
const CLOSING_MAX: Duration = Duration::from_secs(3);

/// A public port and everybody who is connected to it.
pub(crate) struct Driver {
    quic: quinn_proto::Endpoint,
    socket: Socket,
    doorbell: Arc<Doorbell>,
    reception: Reception,
    entries: Vec<Option<Entry>>,
    /// Let in, and not yet begun with; the last is first, because whoever has waited
    /// for long has asked again or given up.
    newcomers: VecDeque<Newcomer>,
    ready: Ready,
    timers: Timers,
    scratch: Scratch,
    rung: Vec<usize>,
    /// Whose state is being changed, and half changed if that panics.
    at_work: Option<usize>,
    /// Whether the doorbell tells of room in the socket.
    awaits_room: bool,
    closing: Option<Instant>,
}

/// The driver's own part of a connection.
struct Entry {
    shared: Arc<Shared>,
    pace: Pace,
    handshake: Option<Box<Handshake>>,
    path: Path,
    /// When it was lost.
    lost: Option<Instant>,
    /// The connection's last word, kept back while a desktop is joined to it.
    drained: Option<EndpointEvent>,
    /// Whether its state cannot be trusted any more, and is not looked at.
    broken: bool,
}

impl Driver {
    /// Opens the port. Nobody is answered before [`run`](Self::run).
    pub(crate) fn open(
        listen: SocketAddr,
        config: quinn_proto::EndpointConfig,
        server: quinn_proto::ServerConfig,
        reception: Reception,
    ) -> io::Result<Self> {
        let socket = Socket::open(listen)?;
        let doorbell = Arc::new(Doorbell::new(&socket)?);
        let whole = !socket.may_fragment();
        let server = Some(Arc::new(server));
        let quic = quinn_proto::Endpoint::new(Arc::new(config), server, whole, None);
        Ok(Self {
            quic,
            socket,
            doorbell,
            reception,
            entries: Vec::new(),
            newcomers: VecDeque::new(),
            ready: Ready::default(),
            timers: Timers::default(),
            scratch: Scratch::default(),
            rung: Vec::new(),
            at_work: None,
            awaits_room: false,
            closing: None,
        })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    pub(crate) fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    /// Serves until it is ordered to close and everybody has been told.
    ///
    /// # Errors
    ///
    /// Ends when the socket is lost.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let (mut events, mut seen) = (Vec::new(), Seen::default());
        let mut metas = [RecvMeta::default(); RECEIVES];
        while !self.is_over() {
            let until = if self.has_work() { Some(Instant::now()) } else { self.next_time() };
            self.doorbell.sleep(until, &mut events, &mut seen)?;
            self.attend(&seen, &mut metas)?;
            let now = Instant::now();
            while let Some(key) = self.timers.expired(now) {
                self.queue(key, now);
            }
            if !self.socket.is_full() {
                self.round();
            }
            if self.socket.is_full() != self.awaits_room {
                self.awaits_room = !self.awaits_room;
                self.doorbell.await_room(&self.socket, self.awaits_room)?;
            }
        }
        Ok(())
    }

    /// Tells whether something can be done before anything else happens.
    fn has_work(&self) -> bool {
        let waiting = !self.ready.is_empty() || !self.newcomers.is_empty();
        waiting && !self.socket.is_full()
    }

    fn next_time(&self) -> Option<Instant> {
        let farewell = self.closing.map(|since| since + FAREWELL);
        [self.timers.next(), farewell].into_iter().flatten().min()
    }

    fn is_over(&self) -> bool {
        self.doorbell.stage() == Stage::Abandoned
            || self.closing.is_some_and(|since| {
                since.elapsed() >= FAREWELL || self.quic.open_connections() == 0
            })
    }

    /// Takes in what the sockets and the other threads have to say.
    fn attend(&mut self, seen: &Seen, metas: &mut [RecvMeta; RECEIVES]) -> io::Result<()> {
        let now = Instant::now();
        if seen.udp_out {
            self.socket.flush();
        }
        if seen.udp_in {
            self.receive(metas, now)?;
        }
        for (key, flags) in &seen.desktops {
            if let Some(Some(entry)) = self.entries.get(*key) {
                if let Some(joined) = &mut entry.shared.state().joined {
                    joined.desktop_changed(*flags);
                }
                self.queue(*key, now);
            }
        }
        if seen.rung {
            let mut rung = std::mem::take(&mut self.rung);
            self.doorbell.take(&mut rung);
            for key in &rung {
                if let Some(Some(entry)) = self.entries.get(*key) {
                    entry.shared.heard();
                    self.queue(*key, now);
                }
            }
            self.rung = rung;
            self.obey();
        }
        Ok(())
    }

    /// Does what a new stage asks for.
    fn obey(&mut self) {
        let stage = self.doorbell.stage();
        if stage >= Stage::Draining {
            self.quic.set_server_config(None);
            for Newcomer { incoming, .. } in std::mem::take(&mut self.newcomers) {
                self.refuse(incoming);
            }
        }
        if stage >= Stage::Closing && self.closing.is_none() {
            let now = Instant::now();
            self.closing = Some(now);
            for key in 0..self.entries.len() {
                if let Some(entry) = &mut self.entries[key] {
                    entry.close(now);
                    self.queue(key, now);
                }
            }
        }
    }

    fn queue(&mut self, key: usize, now: Instant) {
        if let Some(Some(entry)) = self.entries.get(key) {
            self.ready.add(key, entry.pace.class(now));
        }
    }

    fn receive(&mut self, metas: &mut [RecvMeta; RECEIVES], now: Instant) -> io::Result<()> {
        let count = self.socket.receive(metas)?;
        for (index, meta) in metas[..count].iter().enumerate() {
            for piece in pieces(meta.len, meta.stride) {
                let mut piece = self.socket.piece(index, piece);
                while !piece.is_empty() {
                    let datagram = piece.split_to(meta.stride.min(piece.len()));
                    self.contain(|driver| driver.datagram(meta, datagram, now));
                }
            }
        }
        Ok(())
    }

    fn datagram(&mut self, meta: &RecvMeta, bytes: BytesMut, now: Instant) {
        let ecn = meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
        // What waits for room keeps the buffer; an answer of this kind is only lost.
        let mut spare = Vec::new();
        let full = self.socket.is_full();
        let out = if full { &mut spare } else { &mut self.socket.out };
        out.clear();
        let received = bytes.len();
        match self.quic.handle(now, meta.addr, meta.dst_ip, ecn, bytes, out) {
            Some(DatagramEvent::ConnectionEvent(ConnectionHandle(key), event)) => {
                if let Some(Some(entry)) = self.entries.get_mut(key)
                    && !entry.broken
                    && entry.path.admits(meta.addr.ip(), received)
                {
                    self.at_work = Some(key);
                    let mut state = entry.shared.state();
                    state.quic.handle_event(event);
                    entry.path.look_at(&state.quic);
                    drop(state);
                    self.queue(key, now);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.judge(incoming, received, now),
            Some(DatagramEvent::Response(answer)) if !full => self.socket.send(answer),
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    /// Serves everybody who is quiet, one who is not, and one newcomer.
    fn round(&mut self) {
        let mut round = self.ready.round();
        while !self.socket.is_full()
            && let Some(key) = self.ready.next(&mut round)
        {
            self.contain(|driver| driver.serve(key));
        }
        self.contain(Self::turn_away_the_late);
        if !self.socket.is_full()
            && let Some(newcomer) = self.newcomers.pop_back()
        {
            self.contain(|driver| driver.begin(newcomer));
        }
    }

    /// Does something for one connection. If it panics, that connection ends and
    /// no other: what is known of it may be half changed, and is left alone.
    fn contain(&mut self, work: impl FnOnce(&mut Self)) {
        self.at_work = None;
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_ok() {
            return;
        }
        self.reception.panicked();
        let Some(key) = self.at_work else { return };
        let Some(Some(entry)) = self.entries.get_mut(key) else { return };
        entry.broken = true;
        entry.drained = Some(EndpointEvent::drained());
        let shared = Arc::clone(&entry.shared);
        if let Some(handshake) = entry.handshake.take() {
            self.reception.refused(handshake.remote, Refusal::Handshake);
        }
        let mut state = shared.state();
        state.lose(ConnectionError::LocallyClosed);
        if let Some(joined) = &mut state.joined {
            joined.carrying.lose_agent();
        }
        drop(state);
        shared.tell(&News { connected: false, lost: true });
        self.ready.add(key, Class::Interactive);
    }

    /// Gives one connection its turn.
    fn serve(&mut self, key: usize) {
        let now = Instant::now();
        let Some(Some(entry)) = self.entries.get_mut(key) else { return };
        if entry.broken {
            return self.bury(key);
        }
        self.at_work = Some(key);
        let shared = Arc::clone(&entry.shared);
        let mut guard = shared.state();
        let state = &mut *guard;
        if state.quic.poll_timeout().is_some_and(|at| at <= now) {
            state.quic.handle_timeout(now);
            entry.path.look_at(&state.quic);
        }
        if let Some((remote, reason)) = newcomer::give_up(&mut entry.handshake, now) {
            self.reception.refused(remote, reason);
            state.quic.close(now, CLOSE_DONE, Bytes::new());
            state.lose(ConnectionError::LocallyClosed);
        }
        while let Some(event) = state.quic.poll_endpoint_events() {
            if event.is_drained() {
                entry.drained = Some(event);
            } else if let Some(event) = self.quic.handle_event(ConnectionHandle(key), event) {
                state.quic.handle_event(event);
            }
        }
        let news = state.news(&shared);
        let lost = state.lost.is_some();
        let turn = match &mut state.joined {
            Some(joined) => joined.turn(&mut state.quic, &mut self.scratch, lost),
            None => Turn::default(),
        };
        if news.connected {
            entry.path.shake_hands();
        }
        let (sent, more) = transmit(&mut self.socket, &mut state.quic, &mut entry.path, now);
        // After the last bytes, so that they are not lost to this.
        if news.lost {
            state.wake_all();
        }
        let deadline = entry.handshake.as_ref().map(|handshake| handshake.next_look(now));
        let forgotten = state.lost.as_ref().map(|why| entry.forgotten(why, now));
        if forgotten.is_some_and(|at| at <= now) {
            entry.drained.get_or_insert_with(EndpointEvent::drained);
        }
        // One that is due waits for whoever has a desktop joined to it.
        let later = forgotten.filter(|at| *at > now);
        let times = [state.quic.poll_timeout(), deadline, later];
        let next = times.into_iter().flatten().min();
        let drained = entry.drained.is_some();
        drop(guard);

        shared.tell(&news);
        entry.pace.moved(turn.moved + sent, now);
        self.timers.set(key, next);
        if turn.more || more {
            self.ready.add(key, entry.pace.class(now));
        }
        if (news.connected || news.lost)
            && let Some(handshake) = entry.handshake.take()
        {
            let Handshake { remote, begun, slot } = *handshake;
            if news.connected {
                let (connection, took) = (Connection { shared }, now.duration_since(begun));
                self.reception.welcome(Arrival { connection, remote, slot, took });
            } else {
                self.reception.refused(remote, Refusal::Handshake);
            }
        }
        if drained {
            self.bury(key);
        }
    }

    /// Forgets a connection that has said its last word and that no desktop is
    /// joined to.
    fn bury(&mut self, key: usize) {
        let Some(Some(entry)) = self.entries.get_mut(key) else { return };
        if entry.shared.state().joined.is_some() {
            return;
        }
        if let Some(drained) = entry.drained.take() {
            self.timers.set(key, None);
            self.entries[key] = None;
            // A connection that is gone has nothing more to be told.
            let _ = self.quic.handle_event(ConnectionHandle(key), drained);
        }
    }
}

/// Sends what a connection has to send, and no more than one turn and its `path`
/// allow. Returns how much that was, and whether there may be more.
fn transmit(
    socket: &mut Socket,
    quic: &mut quinn_proto::Connection,
    path: &mut Path,
    now: Instant,
) -> (usize, bool) {
    let mtu = quic.current_mtu();
    let most = if path.is_proven() { segments(mtu, socket.segments()) } else { 1 };
    let mut sent = 0;
    for _ in 0..TRANSMITS_PER_TURN {
        // It goes on with the peer's next datagram.
        if !path.covers(mtu.into()) {
            return (sent, false);
        }
        socket.out.clear();
        let Some(transmit) = quic.poll_transmit(now, most, &mut socket.out) else {
            return (sent, false);
        };
        sent += transmit.size;
        // What may not go is lost on its way, as far as the library can tell.
        if path.lets_out(transmit.destination.ip(), transmit.size) {
            socket.send(transmit);
        }
        if socket.is_full() {
            break;
        }
    }
    (sent, true)
}

impl Entry {
    /// Returns when a connection that is lost is forgotten, whatever its own timers say:
    /// at once if the peer has left, who would only be told what it knows.
    ///
    /// Three times the probe time-out (RFC 9000 §10.2) may be half a minute for a
    /// connection that comes out of an outage, and after one they come by the hundred.
    fn forgotten(&mut self, why: &ConnectionError, now: Instant) -> Instant {
        let since = *self.lost.get_or_insert(now);
        match why {
            ConnectionError::ApplicationClosed(_)
            | ConnectionError::ConnectionClosed(_)
            | ConnectionError::Reset
            | ConnectionError::TimedOut => since,
            ConnectionError::LocallyClosed
            | ConnectionError::TransportError(_)
            | ConnectionError::VersionMismatch
            | ConnectionError::CidsExhausted => since + CLOSING_MAX,
        }
    }

    /// Closes the connection, whoever uses it.
    fn close(&mut self, now: Instant) {
        let mut state = self.shared.state();
        if state.lost.is_none() {
            state.quic.close(now, CLOSE_DONE, Bytes::new());
            state.lose(ConnectionError::LocallyClosed);
            drop(state);
            self.shared.tell(&News { connected: false, lost: true });
        }
    }
}
