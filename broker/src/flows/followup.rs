//! What has to be done outside after a commit.
//!
//! Everything here may be done twice. What fails is left: the store still shows
//! it as undone, and the next pass of [`crate::reconcile`] tries again.

use std::collections::VecDeque;
use std::sync::Arc;

use tegata_domain::desktop::Observation;
use tegata_domain::session::Event;
use tegata_edge::supervisor::Tasks;
use tegata_gateway::sessions::Sessions;
use tracing::{debug, warn};

use crate::flows::waiting::WaitingRooms;
use crate::ports::clock::Clock;
use crate::ports::occupancy::Occupancy;
use crate::ports::store::{Actor, Followup, OccupancyTarget, SessionEvent, Store};

/// Most follow-ups that one commit may lead to, one after the other.
const CHAIN_MAX: usize = 64;

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
}

impl Followups {
    /// Does what is quick now, and starts what may take seconds.
    pub async fn carry_out(&self, followups: Vec<Followup>) {
        let mut left = VecDeque::from(followups);
        for _ in 0..CHAIN_MAX {
            let Some(followup) = left.pop_front() else { return };
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
                        Ok(more) => left.extend(more),
                        Err(error) => warn!(session.id = %sid, %error, "End not recorded"),
                    }
                }
                Followup::Freed(pool) => self.rooms.freed(&pool),
                Followup::AskOccupancy(target) => self.ask(target, false),
                Followup::LogOff(target) => self.ask(target, true),
            }
        }
    }

    /// Asks a desktop who is logged on, after logging its holder off if wanted.
    fn ask(&self, target: OccupancyTarget, log_off: bool) {
        let this = self.clone();
        self.tasks.spawn("occupancy", async move {
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
