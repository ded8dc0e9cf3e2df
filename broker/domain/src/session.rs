//! A user's stay on a desktop: from the ticket to the log-off.
//!
//! Decides what a session becomes when a link comes or goes, when somebody ends
//! it, and when a deadline passes. It knows neither the desktop nor the other
//! sessions on it; what they have to do comes out as [`Effect`]s, which
//! [`crate::assignment`] carries over to them.
//!
//! A gateway may keep a desktop connected after a link is gone, for the next one.
//! So a session that ever had a link is over only once the gateway has confirmed
//! that nothing of it is left there, whatever was wished in the meantime: a
//! desktop that is handed on has nobody left on its wire. Only a person's own
//! log-off, reported with the end of the link, needs no more than that.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use tegata_proto::code::Code;

use crate::pool::Rules;
use crate::time::Timestamp;

/// How long after a good login its ticket may still be redeemed: the ticket's
/// life and the leeway of the clocks.
pub const REQUESTED_LIMIT: Duration =
    Duration::from_secs(tegata_proto::claims::TICKET_LIFE_S + tegata_proto::claims::LEEWAY_S);

/// How long a gateway may take from redeem to attach before the link is given up.
pub const STARTING_LIMIT: Duration = Duration::from_secs(20);

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// A ticket was issued and not yet redeemed.
    Requested {
        /// Until when it can be.
        until: Timestamp,
    },
    /// The ticket was redeemed; the gateway connects to the desktop.
    Starting {
        /// Until when the gateway has to say how it went.
        until: Timestamp,
    },
    /// A link carries it.
    Active,
    /// Its person comes back: a grant opened a link, which is not attached yet. A
    /// gateway that takes too long has the link closed, and the session goes on
    /// without one.
    Returning {
        /// Until when the gateway has to say how it went.
        until: Timestamp,
    },
    /// No link carries it; the desktop is kept.
    Detached {
        /// Until when.
        until: Timestamp,
    },
    /// It is over; its gateway has not confirmed yet.
    Ending {
        /// Why.
        cause: Cause,
    },
    /// It is over.
    Ended {
        /// Why.
        cause: Cause,
    },
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The person logged off, by the viewer's or the desktop's word.
    LoggedOff,
    /// The ticket was not used in time, or the gateway never came through with it.
    NeverAttached,
    /// The desktop did not answer the gateway.
    DesktopUnreachable,
    /// Nobody came back within the pool's grace.
    GraceExpired,
    /// The same person came in by another login.
    TakenOver,
    /// An administrator ended it.
    Administrator,
    /// It was as long as its pool allows.
    TimeLimit,
}

impl Cause {
    /// Returns the code that the agent is told.
    pub fn code(self) -> Code {
        match self {
            Self::LoggedOff => Code::LoggedOff,
            Self::NeverAttached => Code::TicketExpired,
            Self::DesktopUnreachable => Code::DesktopUnreachable,
            Self::GraceExpired => Code::SessionEnded,
            Self::TakenOver => Code::TakenOver,
            Self::Administrator => Code::EndedByAdministrator,
            Self::TimeLimit => Code::TimeLimit,
        }
    }
}

/// What happened to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Its ticket was redeemed.
    Redeemed,
    /// A grant of it opened a link, whose number is above all before.
    Returned,
    /// The gateway reached the desktop and carries the link.
    Attached,
    /// The gateway could not reach the desktop, and has connected nobody to it.
    DialFailed,
    /// The gateway lacked the means to reach the desktop, and has connected nobody to it.
    NotDialled,
    /// The link is gone, and neither the desktop nor the person ended it.
    LinkLost,
    /// The link is gone, and the desktop closed first.
    DesktopClosed,
    /// The link is gone, and the viewer said that the person logged off; or the
    /// desktop was asked about a session without a link, and said so.
    LoggedOff,
    /// The link shall be closed; the desktop stays the person's.
    Disconnected,
    /// The session shall end.
    EndWanted(Cause),
    /// The gateway confirms that nothing of it is left there.
    Closed,
    /// Time passed; nothing else happened.
    Tick,
}

/// What has to be done after a change is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The gateway closes every link of the session and tells the agent why.
    CloseLinks(Code),
    /// The desktop is asked who is logged on.
    AskOccupancy,
    /// The desktop counts as used: a gateway reached it, or may have.
    Reached,
    /// The desktop is told that a gateway could not reach it.
    Unreachable,
    /// The desktop is handed back, unless another session of the same
    /// assignment lives.
    Release,
    /// Whoever is still logged on at the desktop is logged off there, where
    /// handing it back has to wait for that.
    LogOff,
}

/// An event that cannot happen to a session in its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} does not fit a session that is {state:?}")]
pub struct Refused {
    /// Where the session stands.
    pub state: State,
    /// What was said to have happened.
    pub event: Event,
}

impl State {
    /// Returns a session whose ticket is issued at `now`.
    pub fn requested(now: Timestamp) -> Self {
        Self::Requested { until: now.after(REQUESTED_LIMIT) }
    }

    /// Returns when the session has to be looked at again without an event.
    pub fn deadline(self) -> Option<Timestamp> {
        match self {
            Self::Requested { until }
            | Self::Starting { until }
            | Self::Returning { until }
            | Self::Detached { until } => Some(until),
            Self::Active | Self::Ending { .. } | Self::Ended { .. } => None,
        }
    }

    /// Tells whether the session's deadline has passed.
    pub fn is_overdue(self, now: Timestamp) -> bool {
        self.deadline().is_some_and(|until| until <= now)
    }

    /// Tells whether the session is over, or about to be, by its deadline alone.
    pub fn has_lapsed(self, now: Timestamp) -> bool {
        self.settled(now).is_some()
    }

    /// Returns the state with a deadline that may have been set by `now`. One that lies
    /// further ahead was set by a clock that has been set back since.
    #[must_use]
    pub fn within_reach(self, rules: Rules, now: Timestamp) -> Self {
        let at_most = |until: Timestamp, span| until.min(now.after(span));
        match self {
            Self::Requested { until } => Self::Requested { until: at_most(until, REQUESTED_LIMIT) },
            Self::Starting { until } => Self::Starting { until: at_most(until, STARTING_LIMIT) },
            Self::Returning { until } => Self::Returning { until: at_most(until, STARTING_LIMIT) },
            Self::Detached { until } => Self::Detached { until: at_most(until, rules.grace) },
            Self::Active | Self::Ending { .. } | Self::Ended { .. } => self,
        }
    }

    /// Tells whether two states are the same but for their deadlines.
    pub fn is_as(self, other: Self) -> bool {
        match (self, other) {
            (Self::Requested { .. }, Self::Requested { .. })
            | (Self::Starting { .. }, Self::Starting { .. })
            | (Self::Returning { .. }, Self::Returning { .. })
            | (Self::Detached { .. }, Self::Detached { .. }) => true,
            (one, other) => one == other,
        }
    }

    /// Tells whether the session still has a claim on its desktop.
    pub fn is_live(self) -> bool {
        !matches!(self, Self::Ended { .. })
    }

    /// Tells whether the session has a link, or is about to.
    pub fn is_carried(self) -> bool {
        match self {
            Self::Starting { .. } | Self::Active | Self::Returning { .. } => true,
            Self::Requested { .. }
            | Self::Detached { .. }
            | Self::Ending { .. }
            | Self::Ended { .. } => false,
        }
    }

    /// Moves the session on by one event, as seen at `now`.
    ///
    /// An overdue deadline is settled before the event is looked at, so the
    /// outcome never depends on whether the timer or the event got here first.
    ///
    /// # Errors
    ///
    /// Refuses an event that does not fit. The caller keeps the state it had; an
    /// overdue deadline is then settled by the next [`Event::Tick`].
    pub fn step(
        self,
        event: Event,
        rules: Rules,
        now: Timestamp,
    ) -> Result<(Self, Vec<Effect>), Refused> {
        let (settled, mut effects) = self.settled(now).unwrap_or((self, vec![]));
        let (next, more) = settled.moved(event, rules, now)?;
        effects.extend(more);

        // The word of a gateway may come late or never, and by then somebody may
        // have logged on. Only its word that nobody was connected says otherwise.
        let was_starting = matches!(self, Self::Starting { .. });
        let is_starting = matches!(next, Self::Starting { .. });
        let is_untouched = matches!(settled, Self::Starting { .. })
            && matches!(event, Event::DialFailed | Event::NotDialled);
        if was_starting && !is_starting && !is_untouched {
            effects.insert(0, Effect::Reached);
        }
        Ok((next, effects))
    }

    /// Returns what an overdue deadline makes of the session.
    fn settled(self, now: Timestamp) -> Option<(Self, Vec<Effect>)> {
        if !self.is_overdue(now) {
            return None;
        }
        match self {
            Self::Requested { .. } => Some(ended(Cause::NeverAttached)),
            Self::Starting { .. } => Some(ending(Cause::NeverAttached)),
            Self::Detached { .. } => Some(ending(Cause::GraceExpired)),
            // It has a link until the gateway says that it has none.
            Self::Returning { .. } => None,
            Self::Active | Self::Ending { .. } | Self::Ended { .. } => None,
        }
    }

    fn moved(
        self,
        event: Event,
        rules: Rules,
        now: Timestamp,
    ) -> Result<(Self, Vec<Effect>), Refused> {
        let detached = Self::Detached { until: now.after(rules.grace) };
        let moved = match (self, event) {
            (Self::Returning { .. }, Event::Tick) if self.is_overdue(now) => {
                (self, vec![Effect::CloseLinks(Code::Unavailable)])
            }
            (_, Event::Tick) => (self, vec![]),

            (Self::Requested { .. }, Event::Redeemed) => {
                (Self::Starting { until: now.after(STARTING_LIMIT) }, vec![])
            }
            (Self::Requested { .. }, Event::EndWanted(cause)) => ended(cause),

            // The gateway may not have noticed yet that the link before is gone.
            (
                Self::Starting { .. }
                | Self::Active
                | Self::Returning { .. }
                | Self::Detached { .. },
                Event::Returned,
            ) => (Self::Returning { until: now.after(STARTING_LIMIT) }, vec![]),

            (Self::Starting { .. } | Self::Returning { .. }, Event::Attached) => {
                (Self::Active, vec![])
            }
            (Self::Starting { .. }, Event::DialFailed) => (
                Self::Ended { cause: Cause::DesktopUnreachable },
                vec![Effect::Unreachable, Effect::Release],
            ),
            (Self::Starting { .. }, Event::NotDialled) => ended(Cause::NeverAttached),
            // The person was on that desktop before: it stays theirs.
            (Self::Returning { .. }, Event::DialFailed | Event::NotDialled) => (detached, vec![]),
            (
                Self::Starting { .. } | Self::Active | Self::Returning { .. },
                Event::LinkLost | Event::Closed,
            ) => (detached, vec![]),
            (
                Self::Starting { .. } | Self::Active | Self::Returning { .. },
                Event::DesktopClosed,
            ) => (detached, vec![Effect::AskOccupancy]),
            (Self::Starting { .. } | Self::Active | Self::Returning { .. }, Event::LoggedOff) => {
                ended(Cause::LoggedOff)
            }
            // One with a link is detached once the gateway has said that it is gone.
            (
                Self::Starting { .. }
                | Self::Active
                | Self::Returning { .. }
                | Self::Detached { .. },
                Event::Disconnected,
            ) => (self, vec![Effect::CloseLinks(Code::EndedByAdministrator)]),
            (
                Self::Starting { .. }
                | Self::Active
                | Self::Returning { .. }
                | Self::Detached { .. },
                Event::EndWanted(cause),
            ) => ending(cause),
            (Self::Detached { .. }, Event::LoggedOff) => ending(Cause::LoggedOff),

            // What a gateway reports twice, by its link and by its list.
            (Self::Detached { .. }, Event::LinkLost | Event::Closed) => (self, vec![]),
            (Self::Detached { .. }, Event::DesktopClosed) => (self, vec![Effect::AskOccupancy]),

            (Self::Ending { cause }, Event::Closed) => ended(cause),
            // The link is gone, and the desktop may still be kept for the next one.
            (
                Self::Ending { .. },
                Event::LinkLost
                | Event::DesktopClosed
                | Event::LoggedOff
                | Event::DialFailed
                | Event::NotDialled
                | Event::Disconnected,
            ) => (self, vec![]),
            // Whoever asks for the end hears of it when the gateway has confirmed; and
            // an attach may have been under way when the session was ended.
            (Self::Ending { cause }, Event::EndWanted(_) | Event::Attached)
            | (Self::Ended { cause }, Event::Attached) => {
                (self, vec![Effect::CloseLinks(cause.code())])
            }
            (
                Self::Ended { .. },
                Event::Closed
                | Event::LinkLost
                | Event::DesktopClosed
                | Event::LoggedOff
                | Event::DialFailed
                | Event::NotDialled
                | Event::EndWanted(_),
            ) => (self, vec![]),

            (
                Self::Requested { .. },
                Event::Returned
                | Event::Attached
                | Event::DialFailed
                | Event::NotDialled
                | Event::LinkLost
                | Event::DesktopClosed
                | Event::LoggedOff
                | Event::Disconnected
                | Event::Closed,
            )
            | (Self::Starting { .. } | Self::Active | Self::Returning { .. }, Event::Redeemed)
            | (Self::Active | Self::Detached { .. }, Event::DialFailed | Event::NotDialled)
            | (Self::Active, Event::Attached)
            | (Self::Detached { .. }, Event::Redeemed | Event::Attached)
            | (Self::Ending { .. }, Event::Redeemed | Event::Returned)
            | (Self::Ended { .. }, Event::Redeemed | Event::Returned | Event::Disconnected) => {
                return Err(Refused { state: self, event });
            }
        };
        Ok(moved)
    }
}

fn ended(cause: Cause) -> (State, Vec<Effect>) {
    let mut effects = vec![Effect::Release];
    // They have had their time to log off by themselves.
    if cause == Cause::GraceExpired {
        effects.push(Effect::LogOff);
    }
    (State::Ended { cause }, effects)
}

fn ending(cause: Cause) -> (State, Vec<Effect>) {
    (State::Ending { cause }, vec![Effect::CloseLinks(cause.code())])
}

#[cfg(test)]
mod tests;
