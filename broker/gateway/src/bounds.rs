//! How long a link may still go on, and how long nobody may touch its thin client.
//!
//! Decides only. Time is the gateway's own, which nobody sets. What is known of the
//! thin client's input is its own word, so an end for want of input follows such a
//! word alone: a device that says nothing is bounded by the session's time only, and
//! what really locks is the desktop itself.

use std::time::Duration;

use tokio::time::Instant;

use crate::redeem::Limits;

/// How long before the end of a session's time its person is told.
pub const TIME_WARNINGS: [Duration; 3] =
    [Duration::from_mins(5), Duration::from_mins(1), Duration::from_secs(10)];

/// How long before the end for want of input a person is told, where the limit is not
/// shorter than twice that.
pub const IDLE_WARNING: Duration = Duration::from_mins(2);

/// How often a thin client is to tell of its input, at the most and at the least.
pub const INPUT_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// What minutes of input are counted in.
const MINUTE: Duration = Duration::from_mins(1);

/// What bounds a link, and what of it has been told.
#[derive(Debug)]
pub(crate) struct Bounds {
    idle: Option<Duration>,
    is_idle_told: bool,
    ends: Option<Instant>,
    /// How many of the warnings are behind.
    told: usize,
    began: Instant,
    /// The last minute that somebody touched the thin client in.
    minute: Option<u64>,
    minutes: Option<u32>,
}

/// What has come of time or of its passing without input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// The session has so long to go.
    TimeSoon(Duration),
    /// The session's time is over.
    TimeOver,
    /// So long without input, and the link ends.
    IdleSoon(Duration),
    /// Nobody has touched the thin client for too long.
    IdleOver,
}

impl Bounds {
    /// Begins with a link.
    pub(crate) fn new(limits: Limits, now: Instant) -> Self {
        let mut bounds = Self {
            idle: None,
            is_idle_told: false,
            ends: None,
            told: 0,
            began: now,
            minute: None,
            minutes: None,
        };
        bounds.change(limits, now);
        bounds
    }

    /// Other limits hold from now on. What they would have warned of before is not
    /// made up for.
    pub(crate) fn change(&mut self, limits: Limits, now: Instant) {
        let Limits { idle, ends_in } = limits;
        (self.idle, self.is_idle_told) = (idle, false);
        // A time that no clock reaches is none.
        self.ends = ends_in.and_then(|left| now.checked_add(left));
        let left = ends_in.unwrap_or(Duration::MAX);
        self.told = TIME_WARNINGS.iter().take_while(|warning| **warning >= left).count();
    }

    /// Returns when time has to be looked at.
    pub(crate) fn next(&self) -> Option<Instant> {
        let ends = self.ends?;
        let warning = TIME_WARNINGS.get(self.told).and_then(|before| ends.checked_sub(*before));
        Some(warning.unwrap_or(ends))
    }

    /// Looks at time.
    pub(crate) fn look(&mut self, now: Instant) -> Option<Due> {
        let ends = self.ends?;
        if ends <= now {
            return Some(Due::TimeOver);
        }
        let left = ends - now;
        let passed = TIME_WARNINGS.iter().take_while(|warning| **warning >= left).count();
        let warns = passed > self.told;
        self.told = self.told.max(passed);
        warns.then_some(Due::TimeSoon(left))
    }

    /// The thin client says that nobody has touched it for so long.
    pub(crate) fn input(&mut self, idle: Duration, now: Instant) -> Option<Due> {
        self.count(idle, now);
        let limit = self.idle?;
        let left = limit.saturating_sub(idle);
        if left.is_zero() {
            return Some(Due::IdleOver);
        }
        let is_soon = left <= IDLE_WARNING.min(limit / 2);
        let warns = is_soon && !self.is_idle_told;
        self.is_idle_told = is_soon;
        warns.then_some(Due::IdleSoon(left))
    }

    /// Returns in how many minutes of the link somebody touched the thin client, if it
    /// has told of that.
    pub(crate) fn minutes(&self) -> Option<u32> {
        self.minutes
    }

    /// Returns how often the thin client is to tell of its input: so often that a
    /// warning comes before each end.
    pub(crate) fn input_every(limits: Limits) -> Duration {
        let (shortest, longest) = INPUT_EVERY;
        limits.idle.map_or(longest, |idle| (idle / 4).clamp(shortest, longest))
    }

    fn count(&mut self, idle: Duration, now: Instant) {
        let minutes = self.minutes.get_or_insert(0);
        let Some(since) = now.duration_since(self.began).checked_sub(idle) else { return };
        let minute = since.as_secs() / MINUTE.as_secs();
        if self.minute.is_none_or(|last| minute > last) {
            self.minute = Some(minute);
            *minutes = minutes.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn timed(seconds_left: u64, now: Instant) -> Bounds {
        Bounds::new(Limits { idle: None, ends_in: Some(seconds(seconds_left)) }, now)
    }

    /// What a person is told until the end, and how long before it.
    fn told(mut bounds: Bounds) -> Vec<Due> {
        let mut told = Vec::new();
        while let Some(at) = bounds.next() {
            let due = bounds.look(at).expect("it was due");
            told.push(due);
            if due == Due::TimeOver {
                break;
            }
        }
        told
    }

    #[test]
    fn an_end_is_told_five_minutes_one_minute_and_ten_seconds_before() {
        let now = Instant::now();
        let [five, one, ten] = TIME_WARNINGS.map(Due::TimeSoon);
        for (left, wanted) in [
            (3_600, vec![five, one, ten, Due::TimeOver]),
            (301, vec![five, one, ten, Due::TimeOver]),
            (300, vec![one, ten, Due::TimeOver]),
            (45, vec![ten, Due::TimeOver]),
            (10, vec![Due::TimeOver]),
            (0, vec![Due::TimeOver]),
        ] {
            assert_eq!(told(timed(left, now)), wanted, "{left} s");
        }
        assert_eq!(told(Bounds::new(Limits::default(), now)), []);
    }

    #[test]
    fn whoever_looks_late_is_told_what_is_left_and_only_once() {
        let now = Instant::now();
        let mut bounds = timed(3_600, now);
        assert_eq!(bounds.look(now + seconds(3_000)), None);
        let late = now + seconds(3_570);
        assert_eq!(bounds.look(late), Some(Due::TimeSoon(seconds(30))));
        assert_eq!(bounds.look(late), None);
        assert_eq!(bounds.next(), Some(now + seconds(3_590)));
        assert_eq!(bounds.look(now + seconds(9_999)), Some(Due::TimeOver));
    }

    #[test]
    fn another_limit_begins_with_what_is_left_of_it() {
        let now = Instant::now();
        let mut bounds = timed(3_600, now);
        bounds.change(Limits { idle: None, ends_in: Some(seconds(50)) }, now);
        assert_eq!(bounds.next(), Some(now + seconds(40)));
        bounds.change(Limits { idle: None, ends_in: Some(Duration::MAX) }, now);
        assert_eq!(bounds.next(), None, "for ever");
    }

    #[test]
    fn nobody_is_ended_for_want_of_input_without_a_warning_nor_without_a_word() {
        let now = Instant::now();
        for limit in [4, 60, 240, 900, 36_000] {
            let limits = Limits { idle: Some(seconds(limit)), ends_in: None };
            let every = Bounds::input_every(limits);
            let mut bounds = Bounds::new(limits, now);
            assert_eq!(bounds.next(), None);
            let mut told = Vec::new();
            for n in 0.. {
                match bounds.input(every * n, now + every * n) {
                    Some(Due::IdleOver) => break,
                    Some(due) => told.push(due),
                    None => {}
                }
            }
            let [Due::IdleSoon(left)] = told[..] else { panic!("{limit}: {told:?}") };
            assert!(left <= IDLE_WARNING && left <= seconds(limit) / 2, "{left:?} of {limit} s");
        }
    }

    #[test]
    fn whoever_touches_the_thin_client_after_a_warning_is_warned_again_later() {
        let now = Instant::now();
        let mut bounds = Bounds::new(Limits { idle: Some(seconds(60)), ends_in: None }, now);
        let soon = Some(Due::IdleSoon(seconds(20)));
        assert_eq!(bounds.input(seconds(40), now), soon);
        assert_eq!(bounds.input(seconds(45), now), None);
        assert_eq!(bounds.input(seconds(0), now), None);
        assert_eq!(bounds.input(seconds(40), now), soon);
        assert_eq!(bounds.input(Duration::MAX, now), Some(Due::IdleOver));
    }

    #[test]
    fn a_minute_counts_once_however_often_it_is_told_of() {
        let now = Instant::now();
        let mut bounds = Bounds::new(Limits::default(), now);
        assert_eq!(bounds.minutes(), None);
        for at in [1, 2, 59] {
            bounds.input(seconds(0), now + seconds(at));
        }
        assert_eq!(bounds.minutes(), Some(1));
        bounds.input(seconds(100), now + seconds(180));
        assert_eq!(bounds.minutes(), Some(2), "of the second minute");
        bounds.input(seconds(200), now + seconds(180));
        bounds.input(seconds(600), now + seconds(180));
        assert_eq!(bounds.minutes(), Some(2), "known already, and of before the link");
    }
}
