//! Asks the desktops of sessions without a link who is logged on, again and
//! again: the person may log off inside the desktop long after the link was lost.
//!
//! In rounds over all such sessions, a few desktops a pass. What an answer means
//! is decided by `tegata_domain::assignment`.

use std::sync::Arc;
use std::time::Duration;

use tegata_proto::id::SessionId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Passes, tick, ticker};
use crate::ports::store::Followup;

/// Most desktops that one pass asks. With a pass a second, up to 480 sessions
/// without a link are each asked once a minute; beyond that the rounds take longer.
const ASKED_PER_PASS: u32 = 8;

/// Shortest time from the beginning of a round to that of the next.
pub(super) const ROUND_EVERY: Duration = Duration::from_secs(10);

/// How far a round has come.
#[derive(Debug, Default)]
struct Round {
    began: Option<Instant>,
    /// The last session of it that was asked about; nothing between two rounds.
    after: Option<SessionId>,
}

impl Round {
    /// Tells whether somebody is to be asked now, and begins a round if so.
    fn goes_on(&mut self, now: Instant) -> bool {
        if self.after.is_some() {
            return true;
        }
        let rests = self.began.is_some_and(|began| now.duration_since(began) < ROUND_EVERY);
        if !rests {
            self.began = Some(now);
        }
        !rests
    }
}

impl Passes {
    /// Asks about sessions without a link until cancelled.
    pub async fn detached(self: Arc<Self>, cancelled: CancellationToken) {
        let mut round = Round::default();
        let mut timer = ticker();
        while tick(&mut timer, &cancelled).await {
            if !round.goes_on(Instant::now()) {
                continue;
            }
            let asked = match self.followups.store.detached(round.after, ASKED_PER_PASS).await {
                Ok(asked) => asked,
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "Sessions not listed");
                    continue;
                }
            };
            let full = asked.len() == ASKED_PER_PASS as usize;
            round.after = asked.last().map(|(sid, _)| *sid).filter(|_| full);
            let asked = asked.into_iter().map(|(_, target)| Followup::AskOccupancy(target));
            self.followups.carry_out(asked.collect()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_goes_on_to_its_end_and_the_next_one_waits() {
        let mut round = Round::default();
        let mut now = Instant::now();
        assert!(round.goes_on(now), "the first one begins at once");
        round.after = Some(SessionId(uuid::Uuid::nil()));
        assert!(round.goes_on(now), "it is not at its end");
        round.after = None;
        assert!(!round.goes_on(now));
        now += ROUND_EVERY;
        assert!(round.goes_on(now));
    }
}
