//! When a ticket opens a link.
//!
//! Signature, audience and proof are checked before; here the claims meet the
//! session and the desktop as they stand at this instant, inside the transaction
//! that redeems.

use std::time::Duration;

use tegata_proto::claims::{Claims, LEEWAY_S, TICKET_LIFE_S};
use tegata_proto::code::Code;
use tegata_proto::id::{LinkNumber, UserId};

use crate::desktop::{self, Desktop};
use crate::session;
use crate::time::Timestamp;

/// Longest life of a resume grant; the pool's grace is the other bound.
pub const GRANT_LIFE_MAX: Duration = Duration::from_hours(12);

/// A session, as far as a redeem looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing<'a> {
    /// Whose it is.
    pub user: &'a UserId,
    /// Where it stands.
    pub state: session::State,
    /// The highest link number accepted, or 0.
    pub highest_link: LinkNumber,
}

/// Judges a ticket that was not used before (invariants I4 and I5).
///
/// # Errors
///
/// The code is what the agent is told.
pub fn judge(
    claims: &Claims,
    link: LinkNumber,
    session: &Standing<'_>,
    desktop: &Desktop,
    now: Timestamp,
) -> Result<(), Code> {
    let now_s = now.as_secs();
    let life = claims.exp.checked_sub(claims.iat);
    if claims.iat > now_s.saturating_add(LEEWAY_S) || life.is_none_or(|life| life > TICKET_LIFE_S) {
        return Err(Code::TicketInvalid);
    }
    if claims.exp.saturating_add(LEEWAY_S) < now_s {
        return Err(Code::TicketExpired);
    }
    if claims.sub != *session.user {
        return Err(Code::TicketInvalid);
    }
    match session.state {
        session::State::Requested { until } if now < until => {}
        session::State::Requested { .. } => return Err(Code::TicketExpired),
        session::State::Starting { .. }
        | session::State::Active
        | session::State::Detached { .. } => return Err(Code::TicketUsed),
        session::State::Ending { .. } | session::State::Ended { .. } => {
            return Err(Code::SessionEnded);
        }
    }
    let held = match desktop.state {
        desktop::State::Assigned | desktop::State::Draining => desktop.is_held_by(session.user),
        desktop::State::Starting
        | desktop::State::Ready { .. }
        | desktop::State::Recycling { .. }
        | desktop::State::Quarantined { .. } => false,
    };
    if !held || claims.epoch != desktop.epoch {
        return Err(Code::SessionEnded);
    }
    if link <= session.highest_link {
        return Err(Code::LinkStale);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
