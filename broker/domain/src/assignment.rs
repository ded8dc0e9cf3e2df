//! A desktop together with the sessions on it.
//!
//! Decides what a change of one means for the others: who is taken over, when
//! the desktop is handed back, and which late words no longer count. It adds no
//! state of its own; [`session`] and [`desktop`] hold the rules for each alone.
//!
//! A store loads an [`Assignment`] in a transaction, calls one method, writes
//! everything in it back, and commits. On an error it writes nothing.

use std::collections::BTreeMap;

use tegata_proto::code::Code;
use tegata_proto::id::SessionId;

use crate::desktop::{self, Desktop, Holder, Observation, Probe};
use crate::pool::Rules;
use crate::session::{self, Cause};
use crate::time::Timestamp;

/// A desktop, and the sessions that may still matter to it.
///
/// INVARIANT: while nobody holds the desktop, or it is recycling, every session
/// of it is over. So no session outlives the epoch that it was made in, and what
/// is reported late about an older one meets a session that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The desktop.
    pub desktop: Desktop,
    /// Every session on it that is not over, and the one that an event is about
    /// even if it is.
    pub sessions: BTreeMap<SessionId, session::State>,
    /// When those sessions end that may not go on for ever.
    pub ends: BTreeMap<SessionId, Timestamp>,
}

/// What has to be done after a change is committed. Doing it twice is harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The gateway closes every link of the session, tells the agent why, and
    /// confirms with [`session::Event::Closed`].
    CloseLinks {
        /// The session.
        sid: SessionId,
        /// What the agent is told.
        code: Code,
    },
    /// The desktop is asked who is logged on.
    AskOccupancy,
    /// The desktop's holder is logged off there, then asked about as above.
    LogOff,
    /// The desktop became ready: somebody who waits may have it.
    Freed,
    /// The desktop leaves the store.
    Remove,
}

/// Why a change cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The session is none of this desktop's.
    #[error("the desktop has no session {0}")]
    NotHere(SessionId),
    /// The session says no.
    #[error(transparent)]
    Session(#[from] session::Refused),
    /// The desktop says no.
    #[error(transparent)]
    Desktop(#[from] desktop::Refused),
}

impl Assignment {
    /// Joins a desktop and its sessions.
    pub fn new(
        desktop: Desktop,
        sessions: impl IntoIterator<Item = (SessionId, session::State)>,
    ) -> Self {
        Self { desktop, sessions: sessions.into_iter().collect(), ends: BTreeMap::new() }
    }

    /// Says when sessions end that may not go on for ever.
    #[must_use]
    pub fn with_ends(mut self, ends: impl IntoIterator<Item = (SessionId, Timestamp)>) -> Self {
        self.ends = ends.into_iter().collect();
        self
    }

    /// Gives the desktop to a person, or back to the one who holds it, with a
    /// new session that waits for its ticket.
    ///
    /// # Errors
    ///
    /// Refuses a desktop that is neither ready nor theirs.
    pub fn assign(
        &mut self,
        sid: SessionId,
        holder: Holder,
        rules: Rules,
        now: Timestamp,
    ) -> Result<(), desktop::Refused> {
        let event = if self.desktop.is_held_by(&holder.user) {
            desktop::Event::Returned { account: holder.account }
        } else {
            desktop::Event::Claimed(holder)
        };
        self.desktop.step(event, rules, now)?;
        self.sessions.insert(sid, session::State::requested(now));
        Ok(())
    }

    /// Starts the session whose ticket was judged good; every other session of the
    /// assignment is taken over.
    ///
    /// # Errors
    ///
    /// Refuses what [`crate::ticket::judge`] would have refused before.
    pub fn redeemed(
        &mut self,
        sid: SessionId,
        rules: Rules,
        now: Timestamp,
    ) -> Result<Vec<Effect>, Refused> {
        let mut effects = self.session_event(sid, session::Event::Redeemed, rules, now)?;
        self.tell(desktop::Event::Redeemed(sid), rules, now)?;
        effects.extend(self.end_others(sid, Cause::TakenOver, rules, now)?);
        Ok(effects)
    }

    /// Opens another link of a session whose grant was judged good. The other
    /// sessions of the assignment wait for their tickets as before.
    ///
    /// # Errors
    ///
    /// Refuses what [`crate::ticket::judge_grant`] would have refused before.
    pub fn returned(
        &mut self,
        sid: SessionId,
        rules: Rules,
        now: Timestamp,
    ) -> Result<Vec<Effect>, Refused> {
        self.session_event(sid, session::Event::Returned, rules, now)
    }

    /// Applies one event to a session, and what follows from it to the desktop
    /// and to the other sessions.
    ///
    /// # Errors
    ///
    /// Refuses an event that does not fit the session.
    pub fn session_event(
        &mut self,
        sid: SessionId,
        event: session::Event,
        rules: Rules,
        now: Timestamp,
    ) -> Result<Vec<Effect>, Refused> {
        let state = *self.sessions.get(&sid).ok_or(Refused::NotHere(sid))?;
        let event = match (state, event) {
            // A desktop that does not answer today has the person's work of
            // yesterday on it. It stays theirs, as after any lost link.
            (
                session::State::Starting { .. },
                session::Event::DialFailed | session::Event::NotDialled,
            ) if self.desktop.used => session::Event::LinkLost,
            (_, event) => event,
        };
        let (next, wishes) = state.step(event, rules, now)?;
        self.sessions.insert(sid, next);
        self.follow(sid, wishes, rules, now)
    }

    /// Applies what a probe found.
    ///
    /// # Errors
    ///
    /// Refuses only an assignment that breaks its invariant.
    pub fn probed(
        &mut self,
        probe: Probe,
        rules: Rules,
        now: Timestamp,
    ) -> Result<Vec<Effect>, Refused> {
        self.tell(desktop::Event::Probed(probe), rules, now)
    }

    /// Applies who was seen logged on: a session without a link whose person is
    /// not among them ends, and a desktop that waits for its holder's log-off
    /// becomes free. One that lost its session by this is asked about once more,
    /// when no gateway keeps it connected any longer.
    ///
    /// An answer to a question from before the link was lost counts for nothing:
    /// the person may have logged on after it. Nor does one to a question that was
    /// asked by a clock which has been set back since: nobody knows what it is older than.
    ///
    /// # Errors
    ///
    /// Refuses only an assignment that breaks its invariant.
    pub fn observed(
        &mut self,
        observation: Observation,
        rules: Rules,
        now: Timestamp,
    ) -> Result<Vec<Effect>, Refused> {
        self.put_within_reach(rules, now);
        if observation.asked > now {
            return Ok(vec![]);
        }
        let mut effects = vec![];
        let logged_off = self.desktop.is_seen_logged_off(&observation.logged_on);
        for (sid, state) in self.sessions.clone() {
            if let session::State::Detached { until } = state
                && observation.asked.after(rules.grace) >= until
                && logged_off
            {
                let logged_off = session::Event::LoggedOff;
                effects.extend(self.session_event(sid, logged_off, rules, now)?);
            }
        }
        effects.extend(self.tell(desktop::Event::Observed(observation), rules, now)?);
        Ok(effects)
    }

    /// Settles every deadline that has passed, and lists what has to be done
    /// again because nobody has confirmed it yet.
    ///
    /// # Errors
    ///
    /// Refuses only an assignment that breaks its invariant.
    pub fn due(&mut self, rules: Rules, now: Timestamp) -> Result<Vec<Effect>, Refused> {
        self.put_within_reach(rules, now);
        let mut effects = vec![];
        for (sid, state) in self.sessions.clone() {
            if let session::State::Ending { cause } = state {
                effects.push(Effect::CloseLinks { sid, code: cause.code() });
            }
            effects.extend(self.session_event(sid, session::Event::Tick, rules, now)?);
            if self.ends.get(&sid).is_some_and(|ends| *ends <= now) {
                let event = session::Event::EndWanted(Cause::TimeLimit);
                effects.extend(self.session_event(sid, event, rules, now)?);
            }
        }
        if self.desktop.is_overdue(rules, now) {
            effects.push(Effect::LogOff);
        } else if matches!(self.desktop.state, desktop::State::Recycling { .. })
            && !effects.contains(&Effect::AskOccupancy)
        {
            effects.push(Effect::AskOccupancy);
        }
        Ok(effects)
    }

    /// Takes the desktop out of its pool: now, or when its last session is over.
    ///
    /// # Errors
    ///
    /// Refuses only an assignment that breaks its invariant.
    pub fn withdrawn(&mut self, rules: Rules, now: Timestamp) -> Result<Vec<Effect>, Refused> {
        let in_use = self.is_in_use();
        self.tell(desktop::Event::Withdrawn { in_use }, rules, now)
    }

    /// Tells whether a session of the desktop is not over.
    pub fn is_in_use(&self) -> bool {
        self.sessions.values().any(|state| state.is_live())
    }

    /// Tells whether another session of the same desktop has a link, or is about to.
    pub fn is_carried_beside(&self, sid: SessionId) -> bool {
        self.sessions.iter().any(|(other, state)| *other != sid && state.is_carried())
    }

    /// A clock that was set back leaves times behind that would be waited for.
    fn put_within_reach(&mut self, rules: Rules, now: Timestamp) {
        for state in self.sessions.values_mut() {
            *state = state.within_reach(rules, now);
        }
        self.desktop.put_within_reach(now);
    }

    fn end_others(
        &mut self,
        sid: SessionId,
        cause: Cause,
        rules: Rules,
        now: Timestamp,
    ) -> Result<Vec<Effect>, Refused> {
        let mut effects = vec![];
        let others: Vec<_> = self.sessions.keys().copied().filter(|other| *other != sid).collect();
        for other in others {
            let event = session::Event::EndWanted(cause);
            effects.extend(self.session_event(other, event, rules, now)?);
        }
        Ok(effects)
    }

    /// Carries over to the desktop what a session wants of it.
    fn follow(
        &mut self,
        sid: SessionId,
        wishes: Vec<session::Effect>,
        rules: Rules,
        now: Timestamp,
    ) -> Result<Vec<Effect>, Refused> {
        let mut effects = vec![];
        for wish in wishes {
            match wish {
                session::Effect::CloseLinks(code) => {
                    effects.push(Effect::CloseLinks { sid, code });
                }
                session::Effect::AskOccupancy => effects.push(Effect::AskOccupancy),
                session::Effect::Reached => {
                    effects.extend(self.tell(desktop::Event::Attached, rules, now)?);
                }
                session::Effect::Unreachable => {
                    effects.extend(self.tell(desktop::Event::DialFailed, rules, now)?);
                    if self.desktop.holder.is_none() {
                        let cause = Cause::DesktopUnreachable;
                        effects.extend(self.end_others(sid, cause, rules, now)?);
                    }
                }
                session::Effect::Release => {
                    if !self.is_in_use() {
                        effects.extend(self.tell(desktop::Event::Released, rules, now)?);
                    }
                }
                session::Effect::LogOff => {
                    if matches!(self.desktop.state, desktop::State::Recycling { .. }) {
                        effects.push(Effect::LogOff);
                    }
                }
            }
        }
        Ok(effects)
    }

    fn tell(
        &mut self,
        event: desktop::Event,
        rules: Rules,
        now: Timestamp,
    ) -> Result<Vec<Effect>, Refused> {
        let is_ready = |desktop: &Desktop| matches!(desktop.state, desktop::State::Ready { .. });
        let was_ready = is_ready(&self.desktop);
        let wishes = self.desktop.step(event, rules, now)?;
        let mut effects: Vec<_> = wishes
            .into_iter()
            .map(|wish| match wish {
                desktop::Effect::AskOccupancy => Effect::AskOccupancy,
                desktop::Effect::Remove => Effect::Remove,
            })
            .collect();
        if !was_ready && is_ready(&self.desktop) {
            effects.push(Effect::Freed);
        }
        Ok(effects)
    }
}

#[cfg(test)]
mod tests;
