//! When a ticket or a resume grant opens a link.
//!
//! Signature, audience and proof are checked before; here the claims meet the
//! session and the desktop as they stand at this instant, inside the transaction
//! that redeems. A ticket opens a session's first link, once. A grant opens any
//! further one, as often as it is shown: the session, the epoch and the link's
//! number fence it.

use std::time::Duration;

use tegata_proto::claims::{Claims, GRANT_LIFE_S, LEEWAY_S, TICKET_LIFE_S};
use tegata_proto::code::Code;
use tegata_proto::id::{LinkNumber, UserId};

use crate::desktop::{self, Desktop};
use crate::session::{self, Cause};
use crate::time::Timestamp;

/// Longest life of a resume grant; the pool's grace is the other bound.
pub const GRANT_LIFE_MAX: Duration = Duration::from_secs(GRANT_LIFE_S);

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
    if claims.iat > now.as_secs().saturating_add(LEEWAY_S) {
        return Err(Code::TicketInvalid);
    }
    judge_life(claims, Duration::from_secs(TICKET_LIFE_S))?;
    judge_expiry(claims, now)?;
    judge_person(claims, session)?;
    match session.state {
        session::State::Requested { .. } if !session.state.is_overdue(now) => {}
        session::State::Requested { .. } => return Err(Code::TicketExpired),
        session::State::Starting { .. }
        | session::State::Active
        | session::State::Returning { .. }
        | session::State::Detached { .. } => return Err(Code::TicketUsed),
        session::State::Ending { cause } | session::State::Ended { cause } => {
            return Err(ended_by(cause));
        }
    }
    judge_fences(claims, link, session, desktop)
}

/// Judges a resume grant (invariant I5). It opens nothing before its session's
/// ticket is redeemed, nor after the session has ended. One that was signed ahead of
/// `now`, by a clock that has been set back since, is as good as any: nobody could
/// work until the clock has caught up. One that has run out still tells its person what
/// became of the session; that it has run out is said only where the desktop is theirs.
///
/// # Errors
///
/// The code is what the agent is told.
pub fn judge_grant(
    claims: &Claims,
    link: LinkNumber,
    session: &Standing<'_>,
    desktop: &Desktop,
    now: Timestamp,
) -> Result<(), Code> {
    judge_life(claims, GRANT_LIFE_MAX)?;
    judge_person(claims, session)?;
    let overdue = session.state.is_overdue(now);
    match session.state {
        session::State::Active | session::State::Returning { .. } => {}
        session::State::Starting { .. } | session::State::Detached { .. } if !overdue => {}
        session::State::Requested { .. } if !overdue => return Err(Code::ResumeLost),
        session::State::Requested { .. }
        | session::State::Starting { .. }
        | session::State::Detached { .. } => return Err(Code::SessionEnded),
        session::State::Ending { cause } | session::State::Ended { cause } => {
            return Err(ended_by(cause));
        }
    }
    // Whoever redeemed a ticket of this assignment last has the desktop's links.
    if desktop.session != Some(claims.sid) {
        return Err(Code::SessionEnded);
    }
    judge_fences(claims, link, session, desktop)?;
    judge_expiry(claims, now)
}

/// What whoever was away when their session ended is told: who or what ended it, if
/// that was neither they themselves nor time without them.
fn ended_by(cause: Cause) -> Code {
    match cause {
        Cause::TakenOver | Cause::Administrator | Cause::TimeLimit => cause.code(),
        Cause::LoggedOff
        | Cause::NeverAttached
        | Cause::DesktopUnreachable
        | Cause::GraceExpired => Code::SessionEnded,
    }
}

/// Judges how long a token was meant to live.
fn judge_life(claims: &Claims, longest: Duration) -> Result<(), Code> {
    let life = claims.exp.checked_sub(claims.iat);
    if life.is_none_or(|life| life > longest.as_secs()) {
        return Err(Code::TicketInvalid);
    }
    Ok(())
}

/// Judges whether a token still lives.
fn judge_expiry(claims: &Claims, now: Timestamp) -> Result<(), Code> {
    if claims.exp.saturating_add(LEEWAY_S) < now.as_secs() {
        return Err(Code::TicketExpired);
    }
    Ok(())
}

/// Judges whether a token is for the session's person.
fn judge_person(claims: &Claims, session: &Standing<'_>) -> Result<(), Code> {
    if claims.sub != *session.user {
        return Err(Code::TicketInvalid);
    }
    Ok(())
}

/// Judges whether the desktop is still the one that was given, and the link the
/// next one.
fn judge_fences(
    claims: &Claims,
    link: LinkNumber,
    session: &Standing<'_>,
    desktop: &Desktop,
) -> Result<(), Code> {
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
