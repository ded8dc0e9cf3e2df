//! Whoever comes back goes first: after an outage new logins wait while sessions
//! return, since these need no directory and are people in the middle of their work.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tegata_domain::rush::Rush;
use tegata_proto::id::SessionId;
use tokio::time::{Instant, sleep};

/// Longest time that a login waits for returns.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How often a login that waits looks again.
const LOOK: Duration = Duration::from_millis(100);

/// The returns of lately.
pub struct Returns {
    since: Instant,
    rush: Mutex<Rush>,
}

impl Returns {
    /// Starts with none.
    pub fn new() -> Self {
        Self { since: Instant::now(), rush: Mutex::default() }
    }

    /// Notes that a session has returned.
    pub fn returned(&self, sid: SessionId) {
        self.rush().returned(sid, self.since.elapsed());
    }

    /// Waits until no rush of them is on, and not longer than [`PATIENCE`]. Tells whether
    /// there was one.
    pub async fn let_pass(&self) -> bool {
        let until = Instant::now() + PATIENCE;
        let is_held_back = self.is_rush();
        while self.is_rush() && Instant::now() < until {
            sleep(LOOK).await;
        }
        is_held_back
    }

    fn is_rush(&self) -> bool {
        self.rush().is_on(self.since.elapsed())
    }

    fn rush(&self) -> MutexGuard<'_, Rush> {
        // Each change is whole, so a poisoned lock hides nothing.
        self.rush.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Returns {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use tegata_domain::rush::{MANY, SPAN};
    use uuid::Uuid;

    use super::*;

    fn rush_of(returns: &Returns) {
        (0..MANY as u128).for_each(|n| returns.returned(SessionId(Uuid::from_u128(n))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_waits_for_a_rush_of_returns_and_not_for_ever() {
        let returns = Returns::new();
        let begun = Instant::now();
        assert!(!returns.let_pass().await);
        assert_eq!(begun.elapsed(), Duration::ZERO, "nobody returns");
        rush_of(&returns);
        assert!(returns.let_pass().await);
        let waited = begun.elapsed();
        assert!((SPAN..SPAN + 2 * LOOK).contains(&waited), "{waited:?}");

        let begun = Instant::now();
        let rush = async {
            loop {
                rush_of(&returns);
                sleep(SPAN / 2).await;
            }
        };
        tokio::select! {
            biased;
            () = rush => {}
            _ = returns.let_pass() => {}
        }
        assert!((PATIENCE..PATIENCE + 2 * LOOK).contains(&begun.elapsed()));
    }
}
