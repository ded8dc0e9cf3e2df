//! When a conversation about a desktop that has begun to end is over. The bytes
//! themselves are carried by `tegata_edge::connection`.

use std::time::Duration;

use tegata_edge::connection::{Parted, Way};
use tegata_proto::code::Code;
use tokio::time::Instant;

use crate::redeem::LinkEnd;

/// How long an agent may take to receive the rest and to say goodbye after its
/// desktop has closed.
pub const FAREWELL: Duration = Duration::from_secs(10);

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
    /// When it ends even if nobody says more.
    until: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Agent,
    Desktop,
}

impl Progress {
    /// Notes that one direction has ended. Returns whether it was the desktop that
    /// ended first.
    pub(crate) fn parted(&mut self, way: Way, how: &Parted, now: Instant) -> bool {
        match way {
            Way::Up => self.up_done = true,
            Way::Down => self.down_done = true,
        }
        match (how, way) {
            // A side that has only finished may still want to hear the other.
            (Parted::AgentFinished, Way::Up) => self.ended_by(Side::Agent, None),
            (Parted::AgentFinished, Way::Down) | (Parted::AgentGone, _) => {
                self.ended_by(Side::Agent, Some(now + AFTERMATH));
            }
            (Parted::DesktopFinished | Parted::DesktopFailed(_), _) => {
                self.ended_by(Side::Desktop, Some(now + FAREWELL));
            }
        }
        self.first == Some(Side::Desktop)
    }

    /// Notes that the agent has taken its leave.
    pub(crate) fn bye(&mut self, code: Code, now: Instant) {
        self.bye = Some(code);
        self.ended_by(Side::Agent, Some(now + AFTERMATH));
    }

    fn ended_by(&mut self, side: Side, until: Option<Instant>) {
        self.first.get_or_insert(side);
        self.until = [self.until, until].into_iter().flatten().min();
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
        self.until
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
