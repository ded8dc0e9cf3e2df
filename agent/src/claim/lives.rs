//! How long the links of a session live, and how long to wait before the next one: a
//! gateway that loses each of them soon is not asked without pause.
//!
//! Decides only, and takes the time as an argument.

use std::time::Duration;

use tokio::time::Instant;

use crate::comeback::{QUICK_PAUSE, SLOW_MAX};

/// How long a link has to live to have been one.
const SHORT_LIFE: Duration = Duration::from_secs(5);

/// Longest pause after a link that carried something: on a bad line somebody works for
/// as long as each link lives.
const WORKED_MAX: Duration = Duration::from_secs(2);

/// The lives of a session's links.
#[derive(Debug)]
pub(super) struct Lives {
    attached_at: Instant,
    is_lost: bool,
    /// How many links in a row were lost before [`SHORT_LIFE`].
    short: u32,
    /// Whether the last one that was lost had carried something.
    has_carried: bool,
}

impl Lives {
    /// Begins with a session's first link.
    pub(super) fn new(now: Instant) -> Self {
        Self { attached_at: now, is_lost: false, short: 0, has_carried: false }
    }

    /// Another link follows, in the place of the last one if that is not lost.
    pub(super) fn attached(&mut self, now: Instant) {
        if !self.is_lost && self.has_lived(now) {
            self.short = 0;
        }
        (self.attached_at, self.is_lost) = (now, false);
    }

    /// The link is lost. It counts once, however often that is said.
    pub(super) fn lost(&mut self, has_carried: bool, now: Instant) {
        if !std::mem::replace(&mut self.is_lost, true) {
            self.has_carried = has_carried;
            self.short = if self.has_lived(now) { 0 } else { self.short.saturating_add(1) };
        }
    }

    /// Returns how long to wait before the first try to come back: a link that is lost
    /// for the first time in a while is taken up at once.
    pub(super) fn first_pause(&self, now: Instant) -> Duration {
        let longest = if self.has_carried { WORKED_MAX } else { SLOW_MAX };
        match self.short {
            0 | 1 => Duration::ZERO,
            _ if self.has_lived(now) => Duration::ZERO,
            some => QUICK_PAUSE.saturating_mul(1 << (some - 2).min(8)).min(longest),
        }
    }

    fn has_lived(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.attached_at) >= SHORT_LIFE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session whose links have lived for a second each.
    fn unlucky(links: u32) -> (Lives, Instant) {
        let mut now = Instant::now();
        let mut lives = Lives::new(now);
        for link in 0..links {
            if link > 0 {
                // However long it takes to come back, it is no link's life.
                now += SHORT_LIFE * 2;
                lives.attached(now);
            }
            now += Duration::from_secs(1);
            lives.lost(false, now);
        }
        (lives, now)
    }

    fn pause_after(links: u32, has_carried: bool) -> u128 {
        let (mut lives, now) = unlucky(links - 1);
        lives.attached(now);
        lives.lost(has_carried, now);
        lives.first_pause(now).as_millis()
    }

    #[test]
    fn links_that_are_lost_at_once_time_after_time_are_followed_ever_more_slowly() {
        let pauses = [1, 2, 3, 4, 7, 8, 41].map(|links| pause_after(links, false));
        assert_eq!(pauses, [0, 250, 500, 1000, 8000, 10_000, 10_000]);
    }

    #[test]
    fn whoever_could_work_over_the_last_link_does_not_wait_long_for_the_next() {
        let pauses = [1, 2, 3, 4, 5, 6, 41].map(|links| pause_after(links, true));
        assert_eq!(pauses, [0, 250, 500, 1000, 2000, 2000, 2000]);
        let (mut lives, now) = unlucky(7);
        lives.attached(now);
        lives.lost(true, now);
        lives.attached(now);
        lives.lost(false, now);
        assert_eq!(lives.first_pause(now), SLOW_MAX, "the last one brought nothing");
    }

    #[test]
    fn a_link_that_has_lived_makes_up_for_the_ones_before_even_if_another_takes_its_place() {
        let (mut lives, now) = unlucky(5);
        lives.attached(now);
        let later = now + SHORT_LIFE;
        lives.lost(false, later);
        assert_eq!(lives.first_pause(later), Duration::ZERO, "lost");

        let (mut lives, now) = unlucky(5);
        let later = now + SHORT_LIFE;
        lives.attached(now);
        lives.attached(later);
        lives.lost(false, later);
        assert_eq!(lives.first_pause(later), Duration::ZERO, "replaced, and never lost");

        let (mut lives, now) = unlucky(5);
        lives.attached(now);
        lives.attached(now);
        lives.lost(false, now);
        assert_eq!(lives.first_pause(now), QUICK_PAUSE * 16, "replaced before it had lived");
    }

    #[test]
    fn a_link_is_lost_once_however_often_that_is_said() {
        let (mut lives, now) = unlucky(3);
        lives.lost(false, now);
        assert_eq!(lives.first_pause(now), QUICK_PAUSE * 2);
        lives.lost(false, now + SHORT_LIFE);
        assert_eq!(lives.first_pause(now), QUICK_PAUSE * 2, "nor does it live on");
    }
}
