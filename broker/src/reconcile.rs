//! What heals by itself: passes that take no input, woken by a timer.
//!
//! [`Passes::deadlines`] settles what is overdue and repeats what was left
//! undone; [`Passes::detached`] asks after people without a link;
//! [`Passes::probes`] looks at desktops; [`Passes::bookkeeping`] writes what is
//! counted in between. Each may be run at any time, any number of times.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use crate::ports::clock::Jump;
use crate::ports::prober::Prober;
use crate::ports::store::Followup;
use tegata_edge::operations::Condition;

use self::watch::Watch;

mod detached;
mod probes;
#[cfg(test)]
mod tests;
mod watch;

/// Time between two passes.
const EVERY: Duration = Duration::from_secs(1);

/// How long the store may take to write before it counts as gone.
const STORE_LIMIT: Duration = Duration::from_secs(2);

/// How long nothing is settled after the store has refused a write, so that what could not
/// be told meanwhile is heard first: a session whose attach was not recorded is at work.
const AFTER_OUTAGE: Duration = TELL_AGAIN.saturating_mul(2).saturating_add(EVERY);

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
    /// When it did not.
    pub outage: Outage,
}

/// When the store has refused a write last. One that is only slow has refused none.
#[derive(Debug, Default)]
pub struct Outage(Mutex<Option<Instant>>);

impl Outage {
    fn is_seen(&self) {
        *self.last() = Some(Instant::now());
    }

    /// Tells whether all that was told in vain has been told again by now.
    fn is_over(&self) -> bool {
        self.last().is_none_or(|last| last.elapsed() >= AFTER_OUTAGE)
    }

    fn last(&self) -> MutexGuard<'_, Option<Instant>> {
        // Each change is whole, so a poisoned lock hides nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Passes {
    /// Settles deadlines and repeats undone work until cancelled.
    pub async fn deadlines(self: Arc<Self>, cancelled: CancellationToken) {
        let mut asked: HashMap<(DesktopId, bool), Instant> = HashMap::new();
        let mut watch = self.look();
        let mut timer = ticker();
        while tick(&mut timer, &cancelled).await {
            let seen = self.look();
            if !self.outage.is_over() || !self.allow_for(watch.jump(seen), seen.wall).await {
                continue;
            }
            watch = seen;
            let due = match self.followups.store.due(seen.wall, BATCH).await {
                Ok(due) => due,
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "Deadlines not settled");
                    self.outage.is_seen();
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

    /// Has deadlines allow for a clock that was set; tells whether that is done.
    async fn allow_for(&self, jump: Option<Jump>, now: Timestamp) -> bool {
        let Some(jump) = jump else { return true };
        warn!(?jump, "The clock was set, deadlines are to allow for it");
        if let Err(error) = self.followups.store.clock_jumped(jump, now).await {
            warn!(error = &error as &dyn std::error::Error, "Deadlines do not allow for it yet");
            self.outage.is_seen();
            return false;
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
                    self.outage.is_seen();
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
