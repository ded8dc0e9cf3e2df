//! What heals by itself: passes that take no input, woken by a timer.
//!
//! [`Passes::deadlines`] settles what is overdue and repeats what was left
//! undone; [`Passes::detached`] asks after people without a link;
//! [`Passes::probes`] looks at desktops; [`Passes::bookkeeping`] writes what is
//! counted in between. Each may be run at any time, any number of times.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tegata_domain::time::Timestamp;
use tegata_proto::id::DesktopId;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::flows::catalogue::Catalogue;
use crate::flows::followup::Followups;
use crate::flows::redeem::TELL_AGAIN;
use crate::flows::refusals::Refusals;
use crate::metrics::Metrics;
use crate::ports::prober::Prober;
use crate::ports::store::Followup;
use tegata_edge::operations::Condition;

use self::watch::{Jump, Watch};

mod detached;
mod probes;
#[cfg(test)]
mod tests;
mod watch;

/// Time between two passes.
const EVERY: Duration = Duration::from_secs(1);

/// How long the store may take to write before it counts as gone.
const STORE_LIMIT: Duration = Duration::from_secs(2);

/// How long nothing is settled after the store was gone, so that what could not be told
/// meanwhile is heard first: a session whose attach was not recorded is at work.
const AFTER_OUTAGE: Duration = TELL_AGAIN.saturating_add(EVERY);

/// Most sessions or desktops that one pass settles.
const BATCH: u32 = 64;

/// Time between two questions, or two log-offs, of one desktop that is being
/// recycled.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Most desktops whose last question or full probe is remembered.
const REMEMBERED_MAX: usize = 200_000;

/// How many passes of bookkeeping lie between two counts.
const CENSUS_EVERY: u32 = 5;

/// How many lie between two audit records of the same refusal.
const BOOKS_EVERY: u32 = 60;

/// The passes and what they need.
pub struct Passes {
    /// How what is due is carried out; with the store and the clock.
    pub followups: Followups,
    /// How desktops are looked at.
    pub prober: Arc<dyn Prober>,
    /// The pools in memory.
    pub catalogue: Arc<Catalogue>,
    /// What is to be audited each minute.
    pub refusals: Arc<Refusals>,
    /// What is to be counted.
    pub metrics: Metrics,
    /// Whether the store answers, for `/readyz`.
    pub store_answers: Condition,
}

impl Passes {
    /// Settles deadlines and repeats undone work until cancelled.
    pub async fn deadlines(self: Arc<Self>, cancelled: CancellationToken) {
        let mut asked: HashMap<(DesktopId, bool), Instant> = HashMap::new();
        let mut watch = self.look();
        let (mut answered, mut settle_from) = (false, watch.running);
        let mut timer = ticker();
        while tick(&mut timer, &cancelled).await {
            let seen = self.look();
            if self.store_answers.holds() {
                answered = true;
            } else if answered {
                settle_from = seen.running + AFTER_OUTAGE;
            }
            if seen.running < settle_from || !self.allow_for(watch.jump(seen), seen.wall).await {
                continue;
            }
            watch = seen;
            let due = match self.followups.store.due(seen.wall, BATCH).await {
                Ok(due) => due,
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "Deadlines not settled");
                    continue;
                }
            };
            let now = Instant::now();
            asked.retain(|_, at| now.duration_since(*at) < ASK_AGAIN);
            let mut first = |what| {
                let first = asked.len() < REMEMBERED_MAX && !asked.contains_key(&what);
                first && asked.insert(what, now).is_none()
            };
            let due = due.into_iter().filter(|followup| match followup {
                Followup::AskOccupancy(target) => first((target.desktop, false)),
                Followup::LogOff(log_off) => first((log_off.target.desktop, true)),
                Followup::CloseLinks { .. } | Followup::Freed(_) => true,
            });
            self.followups.carry_out(due.collect()).await;
        }
    }

    fn look(&self) -> Watch {
        Watch { wall: self.followups.clock.now(), running: Instant::now() }
    }

    /// Puts off what is not due yet where the clock has jumped ahead; tells whether that
    /// is done. What a clock that was set back has left is mended where it is met.
    async fn allow_for(&self, jump: Option<Jump>, now: Timestamp) -> bool {
        match jump {
            None => return true,
            Some(Jump::Ahead(by)) => {
                if let Err(error) = self.followups.store.postpone(by, now).await {
                    warn!(error = &error as &dyn std::error::Error, "Deadlines not put off");
                    return false;
                }
                warn!(?by, "The clock jumped ahead, what was not due yet is put off");
            }
            Some(Jump::Back(by)) => warn!(?by, "The clock was set back"),
        }
        self.metrics.clock_jumped();
        true
    }

    /// Keeps memory, metrics and the audit trail of refusals in step with the
    /// store until cancelled.
    pub async fn bookkeeping(self: Arc<Self>, cancelled: CancellationToken) {
        let mut timer = ticker();
        let mut pass: u32 = 0;
        while tick(&mut timer, &cancelled).await {
            let answers = timeout(STORE_LIMIT, self.followups.store.probe()).await;
            self.store_answers.set(matches!(answers, Ok(Ok(()))));
            match answers {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    warn!(error = &error as &dyn std::error::Error, "Store does not answer");
                }
                Err(_) => warn!("Store takes too long to answer"),
            }
            if let Err(error) = self.catalogue.refresh().await {
                debug!(%error, "Pools not read");
            }
            if pass.is_multiple_of(CENSUS_EVERY) {
                self.count().await;
            }
            if pass.is_multiple_of(BOOKS_EVERY) {
                self.write_refusals().await;
            }
            pass = pass.wrapping_add(1);
        }
        self.write_refusals().await;
    }

    async fn count(&self) {
        match self.followups.store.census().await {
            Ok(census) => {
                // Milliseconds of our time are far below 2^52.
                #[allow(clippy::cast_precision_loss)]
                let at = self.followups.clock.now().as_millis() as f64 / 1_000.0;
                self.metrics.census(&census, at);
            }
            Err(error) => debug!(%error, "Desktops and sessions not counted"),
        }
    }

    async fn write_refusals(&self) {
        let counts = self.refusals.take();
        let records = counts.records(self.followups.clock.now());
        if !records.is_empty()
            && let Err(error) = self.followups.store.audit(records).await
        {
            warn!(error = &error as &dyn std::error::Error, "Refusals not audited yet");
            self.refusals.put_back(counts);
        }
    }
}

fn ticker() -> tokio::time::Interval {
    let mut timer = interval(EVERY);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

/// Waits for the next pass; tells whether there is one.
async fn tick(timer: &mut tokio::time::Interval, cancelled: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = cancelled.cancelled() => false,
        _ = timer.tick() => true,
    }
}
