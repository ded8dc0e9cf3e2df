//! Whether the audit trail, what clients were told and what the store holds tell
//! one story, in which nobody shared a desktop and nothing was lost.
//!
//! [`check`] replays the trail in the order of commits with rules of its own: it
//! shares no code with the broker. It only compares; where the three accounts
//! come from is [`crate::evidence`]'s affair.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

mod replay;
#[cfg(test)]
mod tests;

/// One line of the audit trail, as `tegata-broker audit-export` prints it.
#[derive(Debug, Clone, Deserialize)]
pub struct Record {
    /// Its number; none is left out.
    pub seq: i64,
    /// What was done.
    pub action: String,
    /// Who did it.
    pub actor: serde_json::Value,
    /// The session that it is about.
    pub sid: Option<String>,
    /// The desktop that it is about.
    pub desktop: Option<String>,
    /// What else belongs to it.
    #[serde(default)]
    pub detail: BTreeMap<String, String>,
}

/// What a client saw with its own eyes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "heard", rename_all = "snake_case")]
pub enum Heard {
    /// A ticket: the assignment is acknowledged.
    Ticket {
        /// The person, as the ticket names them.
        user: String,
        /// The session.
        sid: String,
        /// The desktop's seat.
        seat: String,
        /// The assignment's fence.
        epoch: u64,
        /// The ticket's own id.
        jti: String,
    },
    /// A gateway carries the session from now on.
    Attached {
        /// The session.
        sid: String,
        /// The ticket that was shown.
        jti: String,
        /// Microseconds of the client's clock.
        at_us: u64,
    },
    /// The client starts to leave, or sees that its link is gone.
    Left {
        /// The session.
        sid: String,
        /// Microseconds of the client's clock.
        at_us: u64,
    },
}

/// What the store holds in the end.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// Every desktop.
    pub desktops: Vec<DesktopRow>,
    /// Every session, over or not.
    pub sessions: Vec<SessionRow>,
    /// Every ticket that was used.
    pub tickets: Vec<TicketRow>,
}

/// A desktop in the store.
#[derive(Debug, Clone, Deserialize)]
pub struct DesktopRow {
    /// Its id.
    pub id: String,
    /// Its state's name.
    pub state: String,
    /// Who has it.
    pub holder: Option<String>,
    /// Its fence.
    pub epoch: u64,
}

/// A session in the store.
#[derive(Debug, Clone, Deserialize)]
pub struct SessionRow {
    /// Its id.
    pub sid: String,
    /// Its state's name.
    pub state: String,
}

/// A used ticket in the store.
#[derive(Debug, Clone, Deserialize)]
pub struct TicketRow {
    /// Its id.
    pub jti: String,
    /// The session that it opened.
    pub sid: String,
}

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// I14: a number is missing, or stands twice.
    #[error("record {seq} does not follow {after}")]
    Gap {
        /// The record.
        seq: i64,
        /// The one before it.
        after: i64,
    },
    /// A record lacks what its action has to say.
    #[error("record {seq} does not say its {what}")]
    Incomplete {
        /// The record.
        seq: i64,
        /// What is missing.
        what: &'static str,
    },
    /// I1: a desktop was given away while somebody had it.
    #[error("record {seq} gives {desktop} to {user}, and {holder} has it")]
    HeldTwice {
        /// The record.
        seq: i64,
        /// The desktop.
        desktop: String,
        /// Who has it.
        holder: String,
        /// Who got it.
        user: String,
    },
    /// I1: a desktop was given away while a session on it was not over.
    #[error("record {seq} hands {desktop} on, and session {sid} is not over")]
    HandedOnEarly {
        /// The record.
        seq: i64,
        /// The desktop.
        desktop: String,
        /// The session.
        sid: String,
    },
    /// I1, as the clients saw it.
    #[error("sessions {one} and {other} of two people were carried to {seat} at once")]
    CarriedTwice {
        /// The seat.
        seat: String,
        /// The session that was carried.
        one: String,
        /// The session that came on top.
        other: String,
    },
    /// I2: a person has two desktops of one pool.
    #[error("record {seq} gives {user} a second desktop of {pool}")]
    SecondDesktop {
        /// The record.
        seq: i64,
        /// The person.
        user: String,
        /// The pool.
        pool: String,
    },
    /// I3: a desktop went on without the step before it having been seen.
    #[error("record {seq} makes {desktop} {to}, and it was {from}")]
    DesktopStep {
        /// The record.
        seq: i64,
        /// The desktop.
        desktop: String,
        /// The state that is known.
        from: String,
        /// The state that is said.
        to: String,
    },
    /// I4: a ticket was used twice.
    #[error("ticket {jti} was redeemed twice")]
    TicketTwice {
        /// The ticket.
        jti: String,
    },
    /// I5: an epoch did not rise with a new holder, or an old one was used.
    #[error("record {seq} has epoch {is} of {desktop}, after {was}")]
    Epoch {
        /// The record.
        seq: i64,
        /// The desktop.
        desktop: String,
        /// The epoch that is known.
        was: u64,
        /// The epoch that is said.
        is: u64,
    },
    /// An older link of a session came up again, by a grant or a ticket.
    #[error("record {seq} opens link {is} of session {sid}, after {was}")]
    OldLink {
        /// The record.
        seq: i64,
        /// The session.
        sid: String,
        /// The highest number that is known.
        was: u64,
        /// The number that is said.
        is: u64,
    },
    /// I14: a session went on without the step before it having been recorded.
    #[error("record {seq} makes session {sid} {to}, and it was {from}")]
    SessionStep {
        /// The record.
        seq: i64,
        /// The session.
        sid: String,
        /// The state that is known.
        from: String,
        /// The state that is said.
        to: String,
    },
    /// I11: an assignment that a client was told of is not there.
    #[error("session {sid} was acknowledged, and {what}")]
    Lost {
        /// The session.
        sid: String,
        /// How what is recorded differs.
        what: &'static str,
    },
    /// I14: a client saw something done that is not recorded.
    #[error("session {sid} was carried, and no record says so")]
    Unrecorded {
        /// The session.
        sid: String,
    },
    /// I14: the store is not as the records say.
    #[error("the store has {what} {id} as {is}, the records as {said}")]
    StoreDiffers {
        /// Which kind of row.
        what: &'static str,
        /// Which row.
        id: String,
        /// What the store holds.
        is: String,
        /// What the records amount to.
        said: String,
    },
}

/// Checks an audit trail against itself, against what clients heard, and against
/// what the store holds in the end, where that is known.
pub fn check(trail: &[Record], heard: &[Heard], standing: Option<&Standing>) -> Vec<Violation> {
    let mut replay = replay::Replay::default();
    for record in trail {
        replay.apply(record);
    }
    let (world, mut found) = replay.finish();
    acknowledged(&world, heard, &mut found);
    carried_at_once(&world, heard, &mut found);
    if let Some(standing) = standing {
        compare(&world, standing, &mut found);
    }
    found
}

/// What clients were told is recorded, and no ticket worked twice for them.
fn acknowledged(world: &replay::World, heard: &[Heard], found: &mut Vec<Violation>) {
    let mut attached = BTreeSet::new();
    for word in heard {
        match word {
            Heard::Ticket { user, sid, seat, epoch, .. } => {
                let lost = |what| Violation::Lost { sid: sid.clone(), what };
                match world.sessions.get(sid) {
                    None => found.push(lost("no record has it")),
                    Some(session) if session.user != *user => found.push(lost("it is another's")),
                    Some(session) if session.seat != *seat || session.epoch != *epoch => {
                        found.push(lost("it is of another desktop"));
                    }
                    Some(_) => {}
                }
            }
            Heard::Attached { sid, jti, .. } => {
                if !attached.insert(jti) {
                    found.push(Violation::TicketTwice { jti: jti.clone() });
                }
                if world.redeemed.get(jti) != Some(sid) {
                    found.push(Violation::Unrecorded { sid: sid.clone() });
                }
            }
            Heard::Left { .. } => {}
        }
    }
}

/// No two people were carried to one seat at the same time, by the clients' clock.
fn carried_at_once(world: &replay::World, heard: &[Heard], found: &mut Vec<Violation>) {
    let mut left: BTreeMap<&str, u64> = BTreeMap::new();
    for word in heard {
        if let Heard::Left { sid, at_us } = word {
            let first = left.entry(sid).or_insert(*at_us);
            *first = (*first).min(*at_us);
        }
    }
    let mut by_seat: BTreeMap<&str, Vec<(u64, u64, &str, &str)>> = BTreeMap::new();
    for word in heard {
        if let Heard::Attached { sid, at_us, .. } = word
            && let Some(session) = world.sessions.get(sid)
        {
            let until = left.get(sid.as_str()).copied().unwrap_or(u64::MAX);
            let stay = (*at_us, until, sid.as_str(), session.user.as_str());
            by_seat.entry(&session.seat).or_default().push(stay);
        }
    }
    for (seat, mut stays) in by_seat {
        stays.sort_unstable();
        let mut last: Option<(u64, &str, &str)> = None;
        for (from, until, sid, user) in stays {
            if let Some((busy, one, whose)) = last
                && busy > from
                && whose != user
            {
                let (seat, one, other) = (seat.to_owned(), one.to_owned(), sid.to_owned());
                found.push(Violation::CarriedTwice { seat, one, other });
            }
            if last.is_none_or(|(busy, _, _)| until >= busy) {
                last = Some((until, sid, user));
            }
        }
    }
}

/// The store holds what the records amount to, and nothing else.
fn compare(world: &replay::World, standing: &Standing, found: &mut Vec<Violation>) {
    let mut differs = |what, id: &str, is: String, said: String| {
        if is != said {
            found.push(Violation::StoreDiffers { what, id: id.to_owned(), is, said });
        }
    };
    let nothing = || "nothing".to_owned();
    for row in &standing.desktops {
        let is = of_desktop(&row.state, row.holder.as_deref(), row.epoch);
        let said = match world.desktops.get(&row.id) {
            Some(desktop) if desktop.is_uncertain() => continue,
            Some(d) => of_desktop(d.state_name(), d.holder.as_deref(), d.epoch),
            // Listed, and nothing has befallen it yet; an owner is the administrator's word.
            None if row.holder.is_some() => of_desktop("assigned", row.holder.as_deref(), 1),
            None => of_desktop("starting", None, 0),
        };
        differs("desktop", &row.id, is, said);
    }
    let listed: BTreeSet<_> = standing.desktops.iter().map(|row| &row.id).collect();
    for (id, desktop) in &world.desktops {
        if !listed.contains(id) && !desktop.is_uncertain() {
            differs("desktop", id, nothing(), desktop.state_name().to_owned());
        }
    }
    let kept: BTreeMap<_, _> = standing.sessions.iter().map(|s| (&s.sid, &s.state)).collect();
    for sid in kept.keys().copied().chain(world.sessions.keys()).collect::<BTreeSet<_>>() {
        let is = kept.get(sid).map_or_else(nothing, |state| (*state).clone());
        let said = world.sessions.get(sid).map_or_else(nothing, |s| s.state.clone());
        differs("session", sid, is, said);
    }
    let used: BTreeMap<_, _> = standing.tickets.iter().map(|t| (&t.jti, &t.sid)).collect();
    for jti in used.keys().copied().chain(world.redeemed.keys()).collect::<BTreeSet<_>>() {
        let is = used.get(jti).map_or_else(nothing, |sid| (*sid).clone());
        let said = world.redeemed.get(jti).cloned().unwrap_or_else(nothing);
        differs("ticket", jti, is, said);
    }
}

fn of_desktop(state: &str, holder: Option<&str>, epoch: u64) -> String {
    // The trail counts drained desktops and does not name them.
    let state = if state == "draining" { "assigned" } else { state };
    format!("{state} of {} at {epoch}", holder.unwrap_or("nobody"))
}
