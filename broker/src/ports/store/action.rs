//! What is written into the audit trail, by name.
//!
//! One act is one record: what it did to a session's desktop stands in the
//! session's record, and `desktop.…` records tell of what befell a desktop by
//! itself. An act that touches several sessions has one record for each.

use tegata_domain::session::State;

/// A pool is new. `desktops` counts them.
pub const POOL_CREATED: &str = "pool.created";
/// A pool is as it was put. `added`, `removed`, `draining` and `relisted` count
/// desktops; `reason` is the administrator's.
pub const POOL_UPDATED: &str = "pool.updated";
/// An administrator gave a certificate: `old` where one was known, `new`, `reason`.
pub const PIN_ACCEPTED: &str = "desktop.pin_accepted";
/// A held desktop showed its certificate for the first time: `pin`.
pub const PIN_LEARNT: &str = "desktop.pin_learnt";
/// A used desktop has nobody logged on any more. It is looked at before it is free.
pub const DESKTOP_RECYCLED: &str = "desktop.recycled";
/// A desktop is free, by a probe.
pub const DESKTOP_READY: &str = "desktop.ready";
/// A free desktop did not answer its probe.
pub const DESKTOP_SILENT: &str = "desktop.silent";
/// A desktop is kept from use: `reason`.
pub const DESKTOP_QUARANTINED: &str = "desktop.quarantined";
/// A person got a desktop: `txn`, `pool`, `seat`, `epoch`, `returning`.
pub const SESSION_REQUESTED: &str = "session.requested";
/// A ticket was redeemed: `jti`, `link`, `gateway`, `class`.
pub const SESSION_STARTING: &str = "session.starting";
/// A grant opened a link: `jti`, `link`, `gateway`, `class`, and `resumed` if it goes
/// on with the connection to the desktop that its gateway has kept.
pub const SESSION_RETURNED: &str = "session.returned";
/// A link was found to come from another network: `link`, the classes `from` and `to`,
/// and `code` where the session may not go on from there.
pub const SESSION_CLASS_CHANGED: &str = "session.class_changed";
/// A link carries a session.
pub const SESSION_ACTIVE: &str = "session.active";
/// No link carries a session any more: `event` says why.
pub const SESSION_DETACHED: &str = "session.detached";
/// Somebody has the links of a session closed, and what its gateway keeps for the
/// next one; the desktop stays the person's.
pub const SESSION_DISCONNECTING: &str = "session.disconnecting";
/// Somebody has a session ended that is ending already: its links are closed again.
pub const SESSION_TERMINATING: &str = "session.terminating";
/// A session is to end: `cause`.
pub const SESSION_ENDING: &str = "session.ending";
/// A session is over: `cause`, and `desktop_state` where it changed.
pub const SESSION_ENDED: &str = "session.ended";
/// A ticket that we signed was refused: `jti`, `code`, `link`, `gateway`. Where it
/// was not shown by its own key over its own connection, the broker is the actor
/// and `user` and `prefix` tell whose it is and where it was shown.
pub const TICKET_REFUSED: &str = "ticket.refused";
/// The same of a resume grant.
pub const GRANT_REFUSED: &str = "grant.refused";
/// The broker's clock was set, and deadlines allow for it: `ahead_ms` or `back_ms`.
pub const CLOCK_JUMPED: &str = "clock.jumped";
/// Logins were refused within a minute: `prefix`, `code`, `count`.
pub const LOGIN_REFUSED: &str = "login.refused";
/// The same of attaches whose ticket is none of ours, and of those whose refusal
/// has its own record already.
pub const ATTACH_REFUSED: &str = "attach.refused";

/// Returns the action of a session that reaches a state.
pub fn of_session(state: State) -> &'static str {
    match state {
        State::Requested { .. } => SESSION_REQUESTED,
        State::Starting { .. } => SESSION_STARTING,
        State::Active => SESSION_ACTIVE,
        State::Returning { .. } => SESSION_RETURNED,
        State::Detached { .. } => SESSION_DETACHED,
        State::Ending { .. } => SESSION_ENDING,
        State::Ended { .. } => SESSION_ENDED,
    }
}
