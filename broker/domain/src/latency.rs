//! How long something takes nearly always: the 99th percentile of the recent
//! past, in memory of fixed size.

use std::time::Duration;

/// Buckets of a histogram; each is a fifteenth wider than the one before.
const BUCKETS: usize = 160;

/// Upper bound of the first bucket.
const FIRST: Duration = Duration::from_millis(1);

/// How long observations are gathered before the older ones are dropped.
const WINDOW: Duration = Duration::from_mins(2);

/// One in so many may take longer than the percentile.
const RARE: u32 = 100;

/// Two histograms: that of this window, and the last one before it that has
/// anything in it, so that a quiet hour does not make everything forgotten.
#[derive(Debug)]
pub struct Latency {
    since: Duration,
    now: Histogram,
    before: Histogram,
    /// What is assumed before anything was observed.
    assumed: Duration,
}

#[derive(Debug)]
struct Histogram([u32; BUCKETS]);

impl Latency {
    /// Starts knowing nothing.
    pub fn new(assumed: Duration) -> Self {
        let (now, before) = (Histogram([0; BUCKETS]), Histogram([0; BUCKETS]));
        Self { since: Duration::ZERO, now, before, assumed }
    }

    /// Notes one. `now` is a span since a fixed point.
    pub fn observed(&mut self, took: Duration, now: Duration) {
        if self.since + WINDOW <= now {
            if !self.now.is_empty() {
                std::mem::swap(&mut self.now, &mut self.before);
                self.now = Histogram([0; BUCKETS]);
            }
            self.since = now;
        }
        let count = &mut self.now.0[bucket(took)];
        *count = count.saturating_add(1);
    }

    /// Returns a time, at most a fifteenth too long, within which 99 of 100
    /// were done.
    pub fn p99(&self) -> Duration {
        let count = |n: usize| u64::from(self.now.0[n]) + u64::from(self.before.0[n]);
        let all: u64 = (0..BUCKETS).map(count).sum();
        if all == 0 {
            return self.assumed;
        }
        let mut rare = all / u64::from(RARE);
        for n in (0..BUCKETS).rev() {
            match rare.checked_sub(count(n)) {
                Some(less) => rare = less,
                None => return bound(n),
            }
        }
        bound(0)
    }
}

impl Histogram {
    fn is_empty(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }
}

/// Returns the bucket that a time falls into; the last one has no upper bound.
fn bucket(took: Duration) -> usize {
    let mut bounds = std::iter::successors(Some(FIRST), |bound| Some(*bound + *bound / 15));
    bounds.by_ref().take(BUCKETS - 1).take_while(|bound| *bound < took).count()
}

fn bound(bucket: usize) -> Duration {
    (0..bucket).fold(FIRST, |bound, _| bound + bound / 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Whether `told` is `true_one`, or at most a fifteenth more.
    fn is_about(told: Duration, true_one: Duration) -> bool {
        true_one <= told && told <= true_one + true_one / 15
    }

    #[test]
    fn before_anything_is_known_something_is_assumed() {
        let mut latency = Latency::new(ms(900));
        assert_eq!(latency.p99(), ms(900));
        latency.observed(ms(40), ms(0));
        assert!(is_about(latency.p99(), ms(40)), "{:?}", latency.p99());
    }

    #[test]
    fn one_in_a_hundred_may_take_longer() {
        let mut latency = Latency::new(ms(1));
        for n in 0..1_000 {
            latency.observed(if n % 100 == 0 { ms(3_000) } else { ms(20) }, ms(n));
        }
        assert!(is_about(latency.p99(), ms(20)), "{:?}", latency.p99());
        latency.observed(ms(3_000), ms(1_000));
        assert!(is_about(latency.p99(), ms(3_000)), "{:?}", latency.p99());
    }

    #[test]
    fn what_is_long_ago_is_forgotten_once_there_is_something_newer() {
        let mut latency = Latency::new(ms(1));
        latency.observed(ms(3_000), ms(0));
        let day = Duration::from_hours(24);
        latency.observed(ms(20), day);
        assert!(is_about(latency.p99(), ms(3_000)), "the last that was known before today");
        latency.observed(ms(20), day + WINDOW);
        assert!(is_about(latency.p99(), ms(20)), "{:?}", latency.p99());
    }

    #[test]
    fn every_time_has_a_bucket() {
        for took in [Duration::ZERO, FIRST, ms(17), ms(29_000), Duration::MAX] {
            let n = bucket(took);
            assert!(took <= bound(n) || n == BUCKETS - 1, "{took:?}");
            assert!(n == 0 || took > bound(n - 1), "{took:?}");
        }
    }
}
