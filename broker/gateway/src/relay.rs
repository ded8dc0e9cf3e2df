//! When a conversation about a desktop that has begun to end is over. The bytes
//! themselves are carried by `tegata_edge::connection`.

use std::time::Duration;

use tegata_edge::connection::{Parted, Way};
use tegata_proto::code::Code;
use tokio::time::Instant;

use crate::redeem::LinkEnd;

/// How long an agent may take to receive the rest and to say goodbye after its
/// desktop has closed; anew where it has acknowledged more meanwhile.
pub const FAREWELL: Duration = Duration::from_secs(10);

/// How long it may take at most.
pub const FAREWELL_MAX: Duration = Duration::from_mins(1);

/// How long bytes may still be on their way after the agent's side has ended.
pub const AFTERMATH: Duration = Duration::from_secs(2);

/// How far the conversation about one channel has come.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    up_done: bool,
    down_done: bool,
    /// Who ended first.
    first: Option<Side>,
    bye: Option<Code>,
    /// When it ends because the agent's side has.
    aftermath: Option<Instant>,
    farewell: Option<Farewell>,
}

/// The time that an agent has after its desktop has closed.
#[derive(Debug, Clone, Copy)]
struct Farewell {
    until: Instant,
    latest: Instant,
    /// What was acknowledged when it began, or began anew.
    acknowledged: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Agent,
    Desktop,
}

impl Progress {
    /// Notes that one direction has ended, when so much of the desktop's was acknowledged.
    /// Returns whether it was the desktop that ended first.
    pub(crate) fn parted(
        &mut self,
        way: Way,
        how: &Parted,
        acknowledged: u64,
        now: Instant,
    ) -> bool {
        match way {
            Way::Up => self.up_done = true,
            Way::Down => self.down_done = true,
        }
        match (how, way) {
            // A side that has only finished may still want to hear the other.
            (Parted::AgentFinished, Way::Up) => {
                self.first.get_or_insert(Side::Agent);
            }
            (Parted::AgentFinished, Way::Down) | (Parted::AgentGone, _) => self.agent_left(now),
            (Parted::DesktopFinished | Parted::DesktopFailed(_), _) => {
                self.first.get_or_insert(Side::Desktop);
                let (until, latest) = (now + FAREWELL, now + FAREWELL_MAX);
                self.farewell.get_or_insert(Farewell { until, latest, acknowledged });
            }
        }
        self.first == Some(Side::Desktop)
    }

    /// Notes that the agent has taken its leave.
    pub(crate) fn bye(&mut self, code: Code, now: Instant) {
        self.bye = Some(code);
        self.agent_left(now);
    }

    fn agent_left(&mut self, now: Instant) {
        self.first.get_or_insert(Side::Agent);
        self.aftermath.get_or_insert(now + AFTERMATH);
    }

    /// Notes how much is acknowledged when its time is up. Tells whether it goes on: the
    /// agent is still receiving what its desktop has said last.
    pub(crate) fn is_put_off(&mut self, acknowledged: u64, now: Instant) -> bool {
        let farewell = self.farewell.as_mut().filter(|farewell| {
            self.aftermath.is_none()
                && farewell.acknowledged < acknowledged
                && now < farewell.latest
        });
        let Some(farewell) = farewell else { return false };
        farewell.until = farewell.latest.min(now + FAREWELL);
        farewell.acknowledged = acknowledged;
        true
    }

    /// Tells whether a direction is still open.
    pub(crate) fn is_open(&self, way: Way) -> bool {
        match way {
            Way::Up => !self.up_done,
            Way::Down => !self.down_done,
        }
    }

    /// Tells whether the agent may still say something that matters.
    pub(crate) fn is_listening(&self) -> bool {
        self.bye.is_none()
    }

    /// Tells whether there is nothing left to wait for: the agent has said
    /// goodbye and everything it sent has gone onward.
    pub(crate) fn is_over(&self) -> bool {
        self.bye.is_some() && (self.up_done || self.first == Some(Side::Desktop))
    }

    /// Returns when it ends even if nobody says more.
    pub(crate) fn until(&self) -> Option<Instant> {
        let farewell = self.farewell.map(|farewell| farewell.until);
        [self.aftermath, farewell].into_iter().flatten().min()
    }

    /// Returns how the link has ended.
    pub(crate) fn end(&self) -> LinkEnd {
        match (self.first, self.bye) {
            (Some(Side::Desktop), viewer) => LinkEnd::DesktopClosed { viewer },
            (Some(Side::Agent) | None, Some(code)) => LinkEnd::AgentBye(code),
            (Some(Side::Agent) | None, None) => LinkEnd::AgentGone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has a desktop close, and returns how long its agent has that has acknowledged so
    /// much whenever its time is up.
    fn farewell(acknowledged: &[u64], gone: bool) -> Duration {
        let begun = Instant::now();
        let mut progress = Progress::default();
        assert!(progress.parted(Way::Down, &Parted::DesktopFinished, 100, begun));
        if gone {
            progress.parted(Way::Up, &Parted::AgentGone, 100, begun);
        }
        let mut acknowledged = acknowledged.iter();
        loop {
            let until = progress.until().expect("it is bounded");
            let so_far = acknowledged.next().expect("it is over before");
            if !progress.is_put_off(*so_far, until) {
                return until - begun;
            }
        }
    }

    #[test]
    fn a_farewell_lasts_while_the_agent_acknowledges_and_a_minute_at_most() {
        assert_eq!(farewell(&[100], false), FAREWELL);
        assert_eq!(farewell(&[101, 150, 150], false), 3 * FAREWELL);
        let without_end: Vec<u64> = (101..200).collect();
        assert_eq!(farewell(&without_end, false), FAREWELL_MAX);
        assert_eq!(farewell(&without_end, true), AFTERMATH);
    }
}
