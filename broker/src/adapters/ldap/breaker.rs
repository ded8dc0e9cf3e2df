//! Whether a server is asked: the circuit breaker of one server.
//!
//! Knows no network and no clock. A server that leaves a caller waiting, fails
//! a request, or is not the one that was meant is left alone at once; one that
//! merely takes no connection is so after several times in a row. After a rest one caller tries it, while the
//! others still leave it alone; each rest is longer than the last, up to a limit.

use std::time::Duration;

use tokio::time::Instant;

use crate::ports::directory::Breaker as Standing;

/// Connections not had in a row after which a server is left alone.
const MISSED_MAX: u32 = 3;

/// How long a server that failed is left alone.
pub(super) const REST: Duration = Duration::from_secs(2);

/// Longest rest of one that goes on failing.
const REST_MAX: Duration = Duration::from_secs(8);

/// What befell a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It waited for nothing, had its request failed, or met a stranger.
    Grave,
    /// The connection could not be had, and that was clear at once.
    Light,
}

/// One server's breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Breaker {
    state: State,
    /// How long the next rest is.
    rest: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Everybody asks; so many connections could not be had in a row.
    Closed { missed: u32 },
    /// Nobody asks before `until`.
    Open { until: Instant },
    /// One caller asks. Another may from `until` on, if that one is not heard of.
    HalfOpen { until: Instant },
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self { state: State::Closed { missed: 0 }, rest: REST }
    }

    /// Tells whether the caller may ask the server.
    pub(super) fn lets_through(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } | State::HalfOpen { until } if until > now => false,
            State::Open { .. } | State::HalfOpen { .. } => {
                self.state = State::HalfOpen { until: now + REST };
                true
            }
        }
    }

    pub(super) fn answered(&mut self) {
        *self = Self::new();
    }

    pub(super) fn failed(&mut self, trouble: Trouble, now: Instant) {
        match (self.state, trouble) {
            (State::Closed { missed }, Trouble::Light) if missed + 1 < MISSED_MAX => {
                self.state = State::Closed { missed: missed + 1 };
            }
            // Callers that were under way when it opened say nothing new.
            (State::Open { .. }, _) => {}
            (State::Closed { .. } | State::HalfOpen { .. }, _) => {
                self.state = State::Open { until: now + self.rest };
                self.rest = (self.rest * 2).min(REST_MAX);
            }
        }
    }

    pub(super) fn standing(&self) -> Standing {
        match self.state {
            State::Closed { .. } => Standing::Closed,
            State::HalfOpen { .. } => Standing::HalfOpen,
            State::Open { .. } => Standing::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Ask(bool),
        Answered,
        Failed(Trouble),
    }

    use Event::{Answered, Ask, Failed};
    use Trouble::{Grave, Light};

    /// Plays what happens at which second, and checks whom it lets through.
    fn play(why: &str, day: &[(u64, Event)]) -> Standing {
        let (began, mut breaker) = (Instant::now(), Breaker::new());
        for (n, (second, event)) in day.iter().enumerate() {
            let now = began + Duration::from_secs(*second);
            match *event {
                Ask(through) => assert_eq!(breaker.lets_through(now), through, "{why}: event {n}"),
                Answered => breaker.answered(),
                Failed(trouble) => breaker.failed(trouble, now),
            }
        }
        breaker.standing()
    }

    #[test]
    fn every_state_answers_every_event_as_the_table_says() {
        let closed: &[(u64, Event)] = &[];
        let shaken: &[_] = &[(0, Failed(Light)), (0, Failed(Light))];
        let open: &[_] = &[(0, Failed(Grave))];
        let half: &[_] = &[(0, Failed(Grave)), (2, Ask(true))];
        let table = [
            (closed, Ask(true), Standing::Closed),
            (closed, Answered, Standing::Closed),
            (closed, Failed(Light), Standing::Closed),
            (closed, Failed(Grave), Standing::Open),
            (shaken, Ask(true), Standing::Closed),
            (shaken, Answered, Standing::Closed),
            (shaken, Failed(Light), Standing::Open),
            (shaken, Failed(Grave), Standing::Open),
            (open, Ask(true), Standing::HalfOpen),
            (open, Answered, Standing::Closed),
            (open, Failed(Light), Standing::Open),
            (open, Failed(Grave), Standing::Open),
            (half, Ask(false), Standing::HalfOpen),
            (half, Answered, Standing::Closed),
            (half, Failed(Light), Standing::Open),
            (half, Failed(Grave), Standing::Open),
        ];
        for (before, event, after) in table {
            let day: Vec<_> = before.iter().copied().chain([(2, event)]).collect();
            let why = format!("{before:?} then {event:?}");
            assert_eq!(play(&why, &day), after, "{why}");
        }
    }

    #[test]
    fn a_server_is_left_alone_and_then_tried_by_one() {
        play(
            "connections not had in a row",
            &[
                (0, Failed(Light)),
                (0, Failed(Light)),
                (0, Answered),
                (1, Failed(Light)),
                (1, Failed(Light)),
                (1, Ask(true)),
                (1, Failed(Light)),
                (2, Ask(false)),
                (3, Ask(true)),
                (3, Ask(false)),
            ],
        );
        play(
            "rests grow, to a limit",
            &[
                (0, Failed(Grave)),
                (1, Ask(false)),
                (2, Ask(true)),
                (2, Failed(Grave)),
                (5, Ask(false)),
                (6, Ask(true)),
                (6, Failed(Grave)),
                (13, Ask(false)),
                (14, Ask(true)),
                (14, Failed(Grave)),
                (21, Ask(false)),
                (22, Ask(true)),
                (22, Answered),
                (22, Failed(Grave)),
                (23, Ask(false)),
                (24, Ask(true)),
            ],
        );
        play(
            "many that waited together open it once",
            &[(0, Failed(Grave)), (0, Failed(Grave)), (0, Failed(Grave)), (2, Ask(true))],
        );
        play(
            "one who tries and is not heard of holds nobody up",
            &[(0, Failed(Grave)), (2, Ask(true)), (3, Ask(false)), (4, Ask(true))],
        );
    }
}
