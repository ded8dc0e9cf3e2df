//! What has to be done outside after a commit.
//!
//! Everything here may be done twice. What fails is left: the store still shows
//! it as undone, and the next pass of [`crate::reconcile`] tries again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tegata_domain::desktop::Observation;
use tegata_domain::session::Event;
use tegata_domain::time::Timestamp;
use tegata_edge::supervisor::Tasks;
use tegata_gateway::sessions::Sessions;
use tegata_proto::id::{DesktopId, SessionId};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use crate::flows::waiting::WaitingRooms;
use crate::ports::clock::Clock;
use crate::ports::occupancy::Occupancy;
use crate::ports::store::{Actor, Followup, LogOff, OccupancyTarget, SessionEvent, Store};

/// How many times what was carried out may lead to more. An end that is
/// confirmed may free a desktop; nothing is known to lead further.
const ROUNDS_MAX: usize = 8;

/// Most desktops that are asked or logged off at once.
pub const ASKED_AT_ONCE: usize = 8;

/// Most questions that are being asked or wait for their turn; a pass asks again
/// what did not get in.
pub const QUESTIONS_MAX: usize = 256;

/// Carries out what the store asks for.
#[derive(Clone)]
pub struct Followups {
    /// Where outcomes are written.
    pub store: Arc<dyn Store>,
    /// The gateway's live sessions.
    pub sessions: Arc<Sessions>,
    /// How desktops are asked.
    pub occupancy: Arc<dyn Occupancy>,
    /// Who waits for a desktop.
    pub rooms: Arc<WaitingRooms>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where what may take seconds is done.
    pub tasks: Tasks,
    /// What is being asked.
    pub asking: Asking,
}

/// The questions to desktops that have no answer yet. Clones share one list.
///
/// INVARIANT: each desktop stands here at most once for each kind of question,
/// and [`QUESTIONS_MAX`] of them at most, so a site's program that never ends in
/// time leaves no growing line behind it.
#[derive(Clone)]
pub struct Asking {
    list: Arc<Mutex<HashSet<(DesktopId, bool)>>>,
    turns: Arc<Semaphore>,
}

/// A session whose links were closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Which one.
    pub sid: SessionId,
    /// When its last byte was carried, if it had a link and that carried any.
    pub last_byte_at: Option<Timestamp>,
}

/// One question; dropping it takes it off the list.
struct Question {
    asking: Asking,
    what: (DesktopId, bool),
}

impl Followups {
    /// Does what is quick now, and starts what may take seconds. Returns the sessions
    /// that carry nothing from now on.
    pub async fn carry_out(&self, followups: Vec<Followup>) -> Vec<Closed> {
        let (mut left, mut closed) = (followups, Vec::new());
        for _ in 0..ROUNDS_MAX {
            if left.is_empty() {
                return closed;
            }
            left = self.round(left, &mut closed).await;
        }
        warn!(left = left.len(), "Follow-ups led to ever more, the rest is left to a pass");
        closed
    }

    /// Carries out all of these, and returns what they led to.
    async fn round(&self, followups: Vec<Followup>, closed: &mut Vec<Closed>) -> Vec<Followup> {
        let mut led_to = Vec::new();
        for followup in followups {
            match followup {
                Followup::CloseLinks { sid, link, code } => {
                    let ended = self.sessions.end(sid, code).await;
                    debug!(session.id = %sid, links = ended.is_some(), "Links closed");
                    let last_byte_at =
                        ended.and_then(|ended| ended.last_byte_at).map(Timestamp::from);
                    closed.push(Closed { sid, last_byte_at });
                    let event = SessionEvent {
                        sid,
                        event: Event::Closed,
                        link: Some(link),
                        carried: None,
                        actor: Actor::Broker,
                        now: self.clock.now(),
                    };
                    match self.store.session_event(event).await {
                        Ok(more) => led_to.extend(more),
                        Err(error) => warn!(session.id = %sid, %error, "End not recorded"),
                    }
                }
                Followup::Freed(pool) => self.rooms.freed(&pool),
                Followup::AskOccupancy(target) => self.ask(target, None),
                Followup::LogOff(log_off) => self.ask(log_off.target.clone(), Some(log_off)),
            }
        }
        led_to
    }

    /// Asks a desktop who is logged on, after logging its holder off if wanted.
    ///
    /// Not while the same is being asked: a pass asks again.
    fn ask(&self, target: OccupancyTarget, log_off: Option<LogOff>) {
        let what = (target.desktop, log_off.is_some());
        let Some(question) = self.asking.begin(what) else { return };
        let this = self.clone();
        self.tasks.spawn("occupancy", async move {
            let until_answered = question;
            let turns = Arc::clone(&this.asking.turns);
            let Ok(turn) = turns.acquire().await else { return };
            if let Some(log_off) = log_off
                && !this.log_off(&log_off).await
            {
                return;
            }
            let asked = this.clock.now();
            let logged_on = match this.occupancy.logged_on(&target).await {
                Ok(logged_on) => logged_on,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    debug!(desktop = %target.name, error, "Occupancy unknown");
                    return;
                }
            };
            let observation = Observation { logged_on, asked };
            let now = this.clock.now();
            let observed = this.store.observed(target.desktop, observation, now).await;
            // What the answer leads to may be another question to the same desktop.
            drop((until_answered, turn));
            match observed {
                // A pass picks up what asks for the same desktop again.
                Ok(more) => {
                    let quick = |f: &Followup| {
                        matches!(f, Followup::Freed(_) | Followup::CloseLinks { .. })
                    };
                    Box::pin(this.carry_out(more.into_iter().filter(quick).collect())).await;
                }
                Err(error) => warn!(desktop = %target.name, %error, "Occupancy not recorded"),
            }
        });
    }
}

impl Followups {
    /// Logs a desktop's holder off, if that is still due after the wait for a
    /// turn; tells whether it was.
    async fn log_off(&self, log_off: &LogOff) -> bool {
        let target = &log_off.target;
        match self.store.is_log_off_due(log_off).await {
            Ok(true) => {}
            Ok(false) => {
                info!(desktop = %target.name, "Log-off is due no longer");
                return false;
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(desktop = %target.name, error, "Not known whether a log-off is due");
                return false;
            }
        }
        if let Err(error) = self.occupancy.log_off(target).await {
            let error = &error as &dyn std::error::Error;
            warn!(desktop = %target.name, error, "Not logged off");
        }
        true
    }
}

impl Default for Asking {
    fn default() -> Self {
        Self { list: Arc::default(), turns: Arc::new(Semaphore::new(ASKED_AT_ONCE)) }
    }
}

impl Asking {
    fn begin(&self, what: (DesktopId, bool)) -> Option<Question> {
        let mut list = self.list();
        let begins = list.len() < QUESTIONS_MAX && list.insert(what);
        begins.then(|| Question { asking: self.clone(), what })
    }

    fn list(&self) -> MutexGuard<'_, HashSet<(DesktopId, bool)>> {
        // Each change is whole, so a poisoned lock hides nothing.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.asking.list().remove(&self.what);
    }
}
