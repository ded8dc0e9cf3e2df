//! How fast something comes, as the desktops of a pool become free.

use std::collections::VecDeque;
use std::time::Duration;

/// How many arrivals are remembered.
const REMEMBERED: usize = 16;

/// How long an arrival says something about the next.
const RECENT: Duration = Duration::from_mins(10);

/// The recent arrivals.
#[derive(Debug, Default)]
pub struct Pace(VecDeque<Duration>);

impl Pace {
    /// Notes one. Time is a span since a fixed point.
    pub fn arrived(&mut self, now: Duration) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(now);
    }

    /// Returns how long it takes until so many more have come, if they go on as
    /// lately; nothing where fewer than two came lately.
    pub fn expected(&self, more: usize, now: Duration) -> Option<Duration> {
        let mut recent = self.0.iter().filter(|at| **at + RECENT > now);
        let first = *recent.next()?;
        let later = u32::try_from(recent.count()).ok().filter(|later| *later > 0)?;
        // The time since the last one counts too, so that a pool from which
        // nobody leaves any more is not praised for its past.
        let interval = now.saturating_sub(first) / later;
        Some(interval.saturating_mul(u32::try_from(more).unwrap_or(u32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_wait_follows_from_the_arrivals_of_the_last_ten_minutes() {
        let mut pace = Pace::default();
        assert_eq!(pace.expected(1, s(0)), None);
        pace.arrived(s(0));
        assert_eq!(pace.expected(1, s(5)), None, "one says nothing about a pace");
        for at in [10, 20, 30] {
            pace.arrived(s(at));
        }
        assert_eq!(pace.expected(1, s(30)), Some(s(10)));
        assert_eq!(pace.expected(4, s(30)), Some(s(40)));
        assert_eq!(pace.expected(1, s(300)), Some(s(100)), "it gets slower by silence");
        assert_eq!(pace.expected(1, s(625)), None, "what is long ago does not count");
    }

    #[test]
    fn only_so_many_are_remembered() {
        let mut pace = Pace::default();
        for at in 0..1_000 {
            pace.arrived(s(at));
        }
        assert_eq!((pace.0.len(), pace.expected(2, s(999))), (REMEMBERED, Some(s(2))));
    }
}
