//! How somebody comes in: judged at once, then one handshake begun in each round,
//! so that a rush of them holds up nobody who is in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::{ConnectionHandle, Incoming};
use tracing::debug;

use super::connection::Shared;
use super::path::Path;
use super::schedule::Pace;
use super::{Connection, Driver, Entry};
use crate::connection::Transport;
use crate::endpoint::{Answer, HANDSHAKE_DEADLINE, Slot};
use crate::metrics::Refusal;
use crate::source::canonical;

/// How long a newcomer may wait for its handshake to begin. A client sends its first
/// packet again after a second (RFC 9002 §6.2.2), and is then a newcomer anew.
const TURN_WAIT: Duration = Duration::from_secs(1);

/// How often a handshake in progress is looked at that may have had to make room. Those of
/// honest peers are over by then.
const LOOK: Duration = Duration::from_millis(500);

/// Somebody who has been let in, after its handshake.
pub(crate) struct Arrival {
    pub(crate) connection: Connection,
    pub(crate) remote: SocketAddr,
    pub(crate) slot: Slot,
    pub(crate) took: Duration,
}

/// Somebody who was let in, and whose handshake has not begun.
pub(super) struct Newcomer {
    pub(super) incoming: Incoming,
    handshake: Handshake,
    path: Path,
}

/// What is kept of a handshake in progress.
pub(super) struct Handshake {
    pub(super) remote: SocketAddr,
    pub(super) begun: Instant,
    pub(super) slot: Slot,
}

impl Driver {
    /// Decides about a newcomer, whose first datagram had so many bytes, at once:
    /// nobody waits here for a peer.
    pub(super) fn judge(&mut self, incoming: Incoming, received: usize, now: Instant) {
        let remote = canonical(incoming.remote_address());
        let proven = incoming.remote_address_validated();
        match self.reception.judge(remote, Transport::Quic, proven) {
            Answer::Accept(slot) => {
                let handshake = Handshake { remote, begun: now, slot };
                let path = Path::new(incoming.remote_address().ip(), received, proven);
                self.newcomers.push_back(Newcomer { incoming, handshake, path });
            }
            Answer::Retry if self.socket.is_full() => self.quic.ignore(incoming),
            Answer::Retry => {
                self.socket.out.clear();
                match self.quic.retry(incoming, &mut self.socket.out) {
                    Ok(transmit) => self.socket.send(transmit),
                    // An address that is not validated may always be asked.
                    Err(error) => self.quic.ignore(error.into_incoming()),
                }
            }
            Answer::Refuse(_) => self.refuse(incoming),
        }
    }

    /// Forgets those who have waited for too long, so that they can ask again.
    pub(super) fn turn_away_the_late(&mut self) {
        let is_late = |newcomer: &mut Newcomer| newcomer.handshake.begun.elapsed() > TURN_WAIT;
        while let Some(late) = self.newcomers.pop_front_if(is_late) {
            self.reception.refused(late.handshake.remote, Refusal::TooSlow);
            self.quic.ignore(late.incoming);
        }
    }

    pub(super) fn refuse(&mut self, incoming: Incoming) {
        if self.socket.is_full() {
            return self.quic.ignore(incoming);
        }
        self.socket.out.clear();
        let transmit = self.quic.refuse(incoming, &mut self.socket.out);
        self.socket.send(transmit);
    }

    /// Begins a handshake.
    pub(super) fn begin(&mut self, newcomer: Newcomer) {
        let Newcomer { incoming, handshake, path } = newcomer;
        if handshake.slot.is_displaced() {
            self.reception.refused(handshake.remote, Refusal::Handshakes);
            return self.quic.ignore(incoming);
        }
        self.socket.out.clear();
        let now = Instant::now();
        match self.quic.accept(incoming, now, &mut self.socket.out, None) {
            Ok((ConnectionHandle(key), quic)) => {
                if key >= self.entries.len() {
                    self.entries.resize_with(key + 1, || None);
                }
                let shared = Shared::new(key, Arc::clone(&self.doorbell), quic);
                let handshake = Some(Box::new(handshake));
                let pace = Pace::new(now);
                let (lost, drained, broken) = (None, None, false);
                let entry = Entry { shared, pace, handshake, path, lost, drained, broken };
                self.entries[key] = Some(entry);
                self.queue(key, now);
            }
            Err(error) => {
                debug!(remote = %handshake.remote, error = %error.cause, "Handshake failed");
                self.reception.refused(handshake.remote, Refusal::Handshake);
                if let Some(answer) = error.response {
                    self.socket.send(answer);
                }
            }
        }
    }
}

impl Handshake {
    fn deadline(&self) -> Instant {
        self.begun + HANDSHAKE_DEADLINE
    }

    /// Returns when it is to be looked at again at the latest.
    pub(super) fn next_look(&self, now: Instant) -> Instant {
        self.deadline().min(now + LOOK)
    }
}

/// Takes a handshake out that is late or had to make room. Returns whose it was, and why.
pub(super) fn give_up(
    handshake: &mut Option<Box<Handshake>>,
    now: Instant,
) -> Option<(SocketAddr, Refusal)> {
    let going = handshake.as_ref()?;
    let reason = if going.slot.is_displaced() {
        Refusal::Handshakes
    } else if going.deadline() <= now {
        Refusal::TooSlow
    } else {
        return None;
    };
    handshake.take().map(|gone| (gone.remote, reason))
}
