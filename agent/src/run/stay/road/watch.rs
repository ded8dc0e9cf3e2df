//! The watch over the link: whether what was sent is answered, and whether an idle one
//! is still there.

use std::time::Duration;

use tokio::time::Instant;

use super::{Link, Road};
use crate::comeback::Wish;
use crate::link::{Connection, KEEP_ALIVE};
use crate::progress::Person;
use crate::pulse::Sign;
use crate::session::Control;

/// How long after the desktop's bytes have stopped the gateway is asked whether it is
/// still there; once, and then by keep-alives.
const STOP_NOTICED: Duration = Duration::from_secs(1);

/// What an idle link is looked at for, now and then: whether its keep-alives are
/// answered.
pub(super) struct Tick {
    pub(super) at: Instant,
    sent: u64,
    heard: u64,
    /// What had been written to the viewer, and whether anything was since the last look.
    progress: u64,
    is_busy: bool,
}

impl Road<'_> {
    /// Watches whether what was just sent is answered.
    pub(super) fn watch(&mut self) {
        if let Some(Control { connection, .. }) = &self.link {
            if !self.pulse.is_watching() {
                connection.probe();
            }
            self.pulse.sent(connection.heard(), connection.rtt(), Instant::now());
        }
    }

    pub(super) fn look(&mut self, person: &mut impl Person) -> Link {
        let Some(Control { connection, say, .. }) = &self.link else { return Link::Kept };
        let is_free = say.is_idle();
        let sign = self.pulse.look(connection.heard(), Instant::now());
        if sign == Some(Sign::Doubtful) {
            connection.probe();
        }
        match sign {
            // A gateway that has the next attach may have ended this link already.
            Some(Sign::Alive) if self.is_bound() => {}
            Some(Sign::Alive) if self.is_leaving => {
                if self.outage.is_some_and(|outage| outage.is_told) {
                    self.recovered(person);
                }
                self.outage = None;
            }
            Some(Sign::Silent) if self.is_leaving => self.stands_still(person),
            // QUIC may wait for seconds yet before it sends again what was lost.
            Some(Sign::Alive) if self.race.is_some() && self.account.progress() == self.stood => {
                self.watch();
            }
            Some(Sign::Alive) => {
                self.race = None;
                self.recovered(person);
            }
            Some(Sign::Silent) if self.race.is_none() => {
                self.stands_still(person);
                self.come_back(Wish::Resume);
            }
            // What was said before is said again; any answer will do.
            Some(Sign::Doubtful) if is_free => return self.acknowledge(),
            Some(Sign::Silent | Sign::Waiting | Sign::Doubtful) | None => {}
        }
        Link::Kept
    }

    /// Watches a link whose keep-alive seems to be without an answer.
    pub(super) fn tick(&mut self) -> Link {
        let Some(Control { connection, say, .. }) = &self.link else { return Link::Kept };
        let (now, is_free) = (Tick::new(connection, self.account.progress()), say.is_idle());
        let is_unanswered = now.sent > self.tick.sent && now.heard == self.tick.heard;
        let has_stopped = self.tick.is_busy && now.progress == self.tick.progress;
        if is_unanswered {
            self.pulse.sent(now.heard, connection.rtt(), Instant::now());
            connection.probe();
        }
        let goes_on = self.tick.is_busy && !has_stopped;
        self.tick = now;
        if goes_on {
            self.tick.hurry();
        } else if has_stopped && is_free {
            // Nobody can tell a desktop that shows nothing new from a gateway that is gone,
            // and the person may only be looking.
            return self.acknowledge();
        }
        Link::Kept
    }
}

impl Tick {
    pub(super) fn new(connection: &Connection, progress: u64) -> Self {
        let (sent, heard) = (connection.sent(), connection.heard());
        Self { at: Instant::now() + KEEP_ALIVE, sent, heard, progress, is_busy: false }
    }

    /// Something has come: when it stops, that is to be noticed soon.
    pub(super) fn hurry(&mut self) {
        self.is_busy = true;
        self.at = self.at.min(Instant::now() + STOP_NOTICED);
    }
}
