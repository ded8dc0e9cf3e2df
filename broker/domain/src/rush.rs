//! Whether so many sessions come back at this time that new logins are to wait.

use std::collections::VecDeque;
use std::time::Duration;

/// How many returns make a rush, if they come within [`SPAN`].
pub const MANY: usize = 16;

/// See [`MANY`]; also how long a rush is felt after its last return.
pub const SPAN: Duration = Duration::from_secs(1);

/// The latest returns, at most [`MANY`].
#[derive(Debug, Default)]
pub struct Rush(VecDeque<Duration>);

impl Rush {
    /// Notes a return. Time is a span since a fixed point.
    pub fn returned(&mut self, now: Duration) {
        if self.0.len() == MANY {
            self.0.pop_front();
        }
        self.0.push_back(now);
    }

    /// Tells whether there is one.
    pub fn is_on(&self, now: Duration) -> bool {
        self.0.len() == MANY && self.0.front().is_some_and(|first| *first + SPAN > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn many_within_a_second_are_a_rush_until_they_thin_out() {
        let mut rush = Rush::default();
        for n in 1..MANY as u64 {
            rush.returned(ms(n * 10));
            assert!(!rush.is_on(ms(n * 10)), "{n}");
        }
        rush.returned(ms(160));
        assert!(rush.is_on(ms(160)) && rush.is_on(ms(1_009)));
        assert!(!rush.is_on(ms(1_010)), "a second after the first of them");
        rush.returned(ms(1_500));
        assert!(!rush.is_on(ms(1_500)), "one more is none");
    }

    #[test]
    fn a_few_now_and_then_are_none_however_long_it_goes_on() {
        let mut rush = Rush::default();
        for n in 0..1_000 {
            rush.returned(ms(n * 100));
            assert!(!rush.is_on(ms(n * 100)));
        }
        assert_eq!(rush.0.len(), MANY);
    }
}
