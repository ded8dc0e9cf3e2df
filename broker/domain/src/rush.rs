//! Whether so many sessions come back at this time that new logins are to wait.

use std::collections::VecDeque;
use std::time::Duration;

use tegata_proto::id::SessionId;

/// How many sessions make a rush, if they come within [`SPAN`].
pub const MANY: usize = 16;

/// See [`MANY`]; also how long a rush is felt after its last return.
pub const SPAN: Duration = Duration::from_secs(1);

/// The latest returns, each of another session, at most [`MANY`]: one that returns again
/// and again is no rush.
#[derive(Debug, Default)]
pub struct Rush(VecDeque<(SessionId, Duration)>);

impl Rush {
    /// Notes a return. Time is a span since a fixed point.
    pub fn returned(&mut self, sid: SessionId, now: Duration) {
        self.0.retain(|(known, _)| *known != sid);
        if self.0.len() == MANY {
            self.0.pop_front();
        }
        self.0.push_back((sid, now));
    }

    /// Tells whether there is one.
    pub fn is_on(&self, now: Duration) -> bool {
        self.0.len() == MANY && self.0.front().is_some_and(|(_, first)| *first + SPAN > now)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn session(n: u64) -> SessionId {
        SessionId(Uuid::from_u128(n.into()))
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn many_within_a_second_are_a_rush_until_they_thin_out() {
        let mut rush = Rush::default();
        for n in 1..MANY as u64 {
            rush.returned(session(n), ms(n * 10));
            assert!(!rush.is_on(ms(n * 10)), "{n}");
        }
        rush.returned(session(99), ms(160));
        assert!(rush.is_on(ms(160)) && rush.is_on(ms(1_009)));
        assert!(!rush.is_on(ms(1_010)), "a second after the first of them");
        rush.returned(session(100), ms(1_500));
        assert!(!rush.is_on(ms(1_500)), "one more is none");
    }

    #[test]
    fn a_few_now_and_then_are_none_however_long_it_goes_on() {
        let mut rush = Rush::default();
        for n in 0..1_000 {
            rush.returned(session(n), ms(n * 100));
            assert!(!rush.is_on(ms(n * 100)));
        }
        assert_eq!(rush.0.len(), MANY);
    }

    #[test]
    fn one_that_returns_again_and_again_makes_nobody_wait() {
        let mut rush = Rush::default();
        for n in 0..1_000 {
            rush.returned(session(n % 15), ms(n));
            assert!(!rush.is_on(ms(n)));
        }
    }
}
