//! Which connection is served next, for how long, and when the thread may sleep.
//!
//! Decisions only: no socket, no clock. Whoever sends little is served before
//! everybody who sends much, so that a keystroke never waits behind more than one
//! turn of somebody else's download.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// A connection that moves more bytes than this within [`BULK_SPAN`] is bulk.
pub(crate) const BULK_BYTES: usize = 32 * 1024;

/// How long [`BULK_BYTES`] are counted for.
pub(crate) const BULK_SPAN: Duration = Duration::from_millis(5);

/// Most packets that one call hands to the kernel as one piece.
const SEGMENTS_MAX: usize = 44;

/// Most bytes of such a piece; a UDP payload has 65,507 at most.
const BATCH_MAX: usize = 65_000;

/// Most pieces that one connection sends in a turn.
pub(crate) const TRANSMITS_PER_TURN: usize = 2;

/// Returns how many packets of `mtu` bytes to send in one piece, to a kernel that
/// takes `supported`.
pub(crate) fn segments(mtu: u16, supported: usize) -> usize {
    (BATCH_MAX / usize::from(mtu).max(1)).min(SEGMENTS_MAX).min(supported).max(1)
}

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Sends little: served first.
    Interactive,
    /// Sends much: served one at a time.
    Bulk,
}

/// How much one connection has been moving.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    since: Instant,
    moved: usize,
    /// Whether the span before this one was full too.
    was_bulk: bool,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, moved: 0, was_bulk: false }
    }

    /// Counts what was moved in a turn.
    pub(crate) fn moved(&mut self, bytes: usize, now: Instant) {
        if now.duration_since(self.since) >= BULK_SPAN {
            self.was_bulk = self.class(now) == Class::Bulk;
            (self.since, self.moved) = (now, 0);
        }
        self.moved += bytes;
    }

    /// Returns the class as seen at `now`. Bulk ends with one span that was not full.
    pub(crate) fn class(&self, now: Instant) -> Class {
        let age = now.duration_since(self.since);
        let full = self.moved > BULK_BYTES;
        let bulk =
            if age < BULK_SPAN { full || self.was_bulk } else { full && age < 2 * BULK_SPAN };
        if bulk { Class::Bulk } else { Class::Interactive }
    }
}

/// The connections that have something to do, each once, by class.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    interactive: VecDeque<usize>,
    bulk: VecDeque<usize>,
    queued: Vec<bool>,
}

/// What is left of one round: those that were interactive at its beginning, and
/// one that was not.
#[derive(Debug)]
pub(crate) struct Round {
    interactive: usize,
    bulk: usize,
}

impl Ready {
    /// Queues a connection, unless it is queued already.
    pub(crate) fn add(&mut self, key: usize, class: Class) {
        if key >= self.queued.len() {
            self.queued.resize(key + 1, false);
        }
        if !std::mem::replace(&mut self.queued[key], true) {
            match class {
                Class::Interactive => self.interactive.push_back(key),
                Class::Bulk => self.bulk.push_back(key),
            }
        }
    }

    /// Begins a round. Between two rounds the sockets are looked at, so whoever
    /// became ready meanwhile waits for one round at most.
    pub(crate) fn round(&self) -> Round {
        Round { interactive: self.interactive.len(), bulk: 1 }
    }

    /// Takes the next connection of this round.
    pub(crate) fn next(&mut self, round: &mut Round) -> Option<usize> {
        let key = if round.interactive > 0 {
            round.interactive -= 1;
            self.interactive.pop_front()
        } else if round.bulk > 0 {
            round.bulk -= 1;
            self.bulk.pop_front()
        } else {
            None
        };
        if let Some(key) = key {
            self.queued[key] = false;
        }
        key
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.interactive.is_empty() && self.bulk.is_empty()
    }
}

/// When each connection wants to be looked at.
///
/// INVARIANT: at most one entry a connection, never later than it wants.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeSet<(Instant, usize)>,
    armed: Vec<Option<Instant>>,
}

impl Timers {
    /// Sets a connection's next time. One that only moves back stays as it is:
    /// looking too early is cheaper than moving it with every packet.
    pub(crate) fn set(&mut self, key: usize, at: Option<Instant>) {
        if key >= self.armed.len() {
            self.armed.resize(key + 1, None);
        }
        let armed = &mut self.armed[key];
        if let (Some(armed), Some(at)) = (*armed, at)
            && armed <= at
        {
            return;
        }
        if let Some(old) = std::mem::replace(armed, at) {
            self.due.remove(&(old, key));
        }
        if let Some(at) = at {
            self.due.insert((at, key));
        }
    }

    /// Takes one whose time has come.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<usize> {
        let (at, key) = *self.due.first()?;
        if at > now {
            return None;
        }
        self.due.pop_first();
        self.armed[key] = None;
        Some(key)
    }

    /// Returns when the next one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_as_large_as_segments_bytes_and_kernel_allow() {
        for (mtu, supported, expected) in [
            (1200, 64, 44),
            (1452, 64, 44),
            (1500, 64, 43),
            (9000, 64, 7),
            (65_527, 64, 1),
            (1452, 10, 10),
            (1452, 1, 1),
            (0, 0, 1),
        ] {
            assert_eq!(segments(mtu, supported), expected, "{mtu} {supported}");
        }
    }

    /// What is moved and when, in milliseconds; then when it counts as what.
    type Story = (&'static [(usize, u64)], &'static [(u64, Class)]);

    #[test]
    fn a_connection_is_bulk_while_it_fills_its_spans_and_no_longer() {
        use Class::{Bulk, Interactive};
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let stories: &[Story] = &[
            (&[], &[(0, Interactive), (100, Interactive)]),
            (&[(BULK_BYTES, 1)], &[(1, Interactive), (4, Interactive)]),
            (&[(BULK_BYTES, 1), (1, 4)], &[(4, Bulk), (9, Bulk), (10, Interactive)]),
            (&[(BULK_BYTES, 1), (1, 5)], &[(5, Interactive)]),
            (&[(BULK_BYTES + 1, 0), (1, 6)], &[(6, Bulk), (10, Bulk), (11, Interactive)]),
            (&[(BULK_BYTES + 1, 0), (1, 6), (1, 12)], &[(12, Interactive)]),
            (&[(BULK_BYTES + 1, 0), (1, 40)], &[(40, Interactive)]),
        ];
        for (moves, seen) in stories {
            let mut pace = Pace::new(start);
            for (bytes, at) in *moves {
                pace.moved(*bytes, ms(*at));
            }
            for (at, class) in *seen {
                assert_eq!(pace.class(ms(*at)), *class, "{moves:?} at {at} ms");
            }
        }
    }

    fn served(ready: &mut Ready) -> Vec<usize> {
        let mut round = ready.round();
        std::iter::from_fn(|| ready.next(&mut round)).collect()
    }

    #[test]
    fn a_round_serves_everybody_who_is_quiet_and_one_who_is_not() {
        let mut ready = Ready::default();
        for (key, class) in [
            (7, Class::Bulk),
            (8, Class::Bulk),
            (1, Class::Interactive),
            (2, Class::Interactive),
            (1, Class::Interactive),
            (7, Class::Interactive),
        ] {
            ready.add(key, class);
        }
        assert_eq!(served(&mut ready), [1, 2, 7]);
        ready.add(7, Class::Bulk);
        assert_eq!(served(&mut ready), [8], "bulk takes turns");
        assert_eq!(served(&mut ready), [7]);
        assert!(ready.is_empty());
        assert_eq!(served(&mut ready), [0; 0]);
    }

    #[test]
    fn who_comes_back_within_a_round_waits_for_the_next() {
        let mut ready = Ready::default();
        ready.add(1, Class::Interactive);
        ready.add(5, Class::Bulk);
        let mut round = ready.round();
        assert_eq!(ready.next(&mut round), Some(1));
        ready.add(1, Class::Interactive);
        assert_eq!(ready.next(&mut round), Some(5));
        assert_eq!(ready.next(&mut round), None);
        assert_eq!(served(&mut ready), [1]);
    }

    #[test]
    fn a_timer_is_never_late_and_there_is_one_a_connection() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        timers.set(3, Some(ms(30)));
        timers.set(1, Some(ms(50)));
        for at in [40, 35, 60, 30] {
            timers.set(3, Some(ms(at)));
        }
        assert_eq!((timers.next(), timers.due.len()), (Some(ms(30)), 2));
        timers.set(1, Some(ms(10)));
        assert_eq!((timers.next(), timers.due.len()), (Some(ms(10)), 2));
        assert_eq!(timers.expired(ms(9)), None);
        assert_eq!(timers.expired(ms(30)), Some(1));
        assert_eq!(timers.expired(ms(30)), Some(3));
        assert_eq!((timers.expired(ms(99)), timers.next()), (None, None));
        timers.set(3, Some(ms(5)));
        timers.set(3, None);
        assert_eq!(timers.next(), None);
    }
}
