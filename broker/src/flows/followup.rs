//! What has to be done outside after a commit.
//!
//! Everything here may be done twice. What fails is left: the store still shows
//! it as undone, and the next pass of [`crate::reconcile`] tries again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tegata_domain::desktop::Observation;
use tegata_domain::session::Event;
use tegata_edge::supervisor::Tasks;
use tegata_gateway::sessions::Sessions;
use tegata_proto::id::DesktopId;
use tracing::{debug, warn};

use crate::flows::waiting::WaitingRooms;
use crate::ports::clock::Clock;
use crate::ports::occupancy::Occupancy;
use crate::ports::store::{Actor, Followup, OccupancyTarget, SessionEvent, Store};

/// How many times what was carried out may lead to more. An end that is
/// confirmed may free a desktop; nothing is known to lead further.
const ROUNDS_MAX: usize = 8;

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
/// so a site's program that never ends in time leaves no growing line behind it.
#[derive(Clone, Default)]
pub struct Asking(Arc<Mutex<HashSet<(DesktopId, bool)>>>);

/// One question; dropping it takes it off the list.
struct Question {
    asking: Asking,
    what: (DesktopId, bool),
}

impl Followups {
    /// Does what is quick now, and starts what may take seconds.
    pub async fn carry_out(&self, followups: Vec<Followup>) {
        let mut left = followups;
        for _ in 0..ROUNDS_MAX {
            if left.is_empty() {
                return;
            }
            left = self.round(left).await;
        }
        warn!(left = left.len(), "Follow-ups led to ever more, the rest is left to a pass");
    }

    /// Carries out all of these, and returns what they led to.
    async fn round(&self, followups: Vec<Followup>) -> Vec<Followup> {
        let mut led_to = Vec::new();
        for followup in followups {
            match followup {
                Followup::CloseLinks { sid, code } => {
                    let ended = self.sessions.end(sid, code).await;
                    debug!(session.id = %sid, links = ended.is_some(), "Links closed");
                    let closed = SessionEvent {
                        sid,
                        event: Event::Closed,
                        link: None,
                        carried: None,
                        actor: Actor::Broker,
                        now: self.clock.now(),
                    };
                    match self.store.session_event(closed).await {
                        Ok(more) => led_to.extend(more),
                        Err(error) => warn!(session.id = %sid, %error, "End not recorded"),
                    }
                }
                Followup::Freed(pool) => self.rooms.freed(&pool),
                Followup::AskOccupancy(target) => self.ask(target, false),
                Followup::LogOff(target) => self.ask(target, true),
            }
        }
        led_to
    }

    /// Asks a desktop who is logged on, after logging its holder off if wanted.
    ///
    /// Not while the same is being asked: a pass asks again.
    fn ask(&self, target: OccupancyTarget, log_off: bool) {
        let Some(question) = self.asking.begin((target.desktop, log_off)) else { return };
        let this = self.clone();
        self.tasks.spawn("occupancy", async move {
            let _until_answered = question;
            if log_off && let Err(error) = this.occupancy.log_off(&target).await {
                warn!(desktop = %target.name, error = &error as &dyn std::error::Error, "Not logged off");
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
            match this.store.observed(target.desktop, observation, this.clock.now()).await {
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

impl Asking {
    fn begin(&self, what: (DesktopId, bool)) -> Option<Question> {
        self.list().insert(what).then(|| Question { asking: self.clone(), what })
    }

    fn list(&self) -> MutexGuard<'_, HashSet<(DesktopId, bool)>> {
        // Each change is whole, so a poisoned lock hides nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.asking.list().remove(&self.what);
    }
}
