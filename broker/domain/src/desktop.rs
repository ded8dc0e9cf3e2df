//! A desktop of a pool: who holds it, and when somebody else may.
//!
//! Keeps the first three invariants: one holder at a time, and a next one only
//! after the pool's rule for reuse was seen to be met. A log-off that was not
//! observed did not happen; a connection that was not ruled out did.
//!
//! The events of sessions reach a desktop through [`crate::assignment`], which
//! fences the late ones.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tegata_proto::encoding::Sha256;
use tegata_proto::id::{Epoch, SessionId, UserId};

use crate::pool::{Kind, Reuse, Rules};
use crate::time::Timestamp;

/// One desktop, as far as decisions go.
///
/// INVARIANT: `holder` is someone exactly while the state is `Assigned`,
/// `Recycling` or `Draining`; `epoch` never falls and rises with each new holder;
/// a desktop that is `Starting` or `Ready` is not `used`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desktop {
    /// Where it stands.
    pub state: State,
    /// Who has it.
    pub holder: Option<Holder>,
    /// Its fence.
    pub epoch: Epoch,
    /// The one session that may hold links to it.
    pub session: Option<SessionId>,
    /// Whether anybody may have been connected to it since it was last clean. A
    /// desktop that an administrator gave an owner counts as used from the start.
    pub used: bool,
    /// The certificate that it must show; learnt once.
    pub pin: Option<Sha256>,
}

/// Who has a desktop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The person.
    pub user: UserId,
    /// Their account in the desktop's operating system, where it is known.
    pub account: Option<String>,
}

/// Where a desktop stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// It has not answered a probe since it was last looked for, or used.
    Starting,
    /// It is free. A probe saw it answer, and none has failed since it is free.
    Ready {
        /// Since when; the longest idle is assigned first.
        since: Timestamp,
    },
    /// A person holds it.
    Assigned,
    /// Its last session is over, and its holder was not yet seen logged off.
    Recycling {
        /// Since when.
        since: Timestamp,
    },
    /// A person holds it, and it leaves the pool afterwards.
    Draining,
    /// It is kept from use until somebody or something mends it.
    Quarantined {
        /// Why.
        reason: Quarantine,
        /// Since when.
        since: Timestamp,
    },
}

/// Why a desktop is kept from use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quarantine {
    /// A gateway could not connect to it. Mended by a good probe.
    Unreachable,
    /// It showed another certificate. Mended by an administrator.
    CertificateChanged,
    /// It was used, and the pool never reuses. Mended by an administrator, who
    /// takes it out of the pool and puts it in again.
    Used,
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// It answered, with this certificate where its protocol has one.
    Answered(Option<Sha256>),
    /// It did not answer, or not as its protocol wants.
    Failed,
}

/// What a desktop's operating system said when it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The accounts that are logged on.
    pub logged_on: BTreeSet<String>,
    /// When it was asked, taken before the question left. The answer tells
    /// nothing of what came later.
    pub asked: Timestamp,
}

/// What happened to a desktop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It was probed.
    Probed(Probe),
    /// It is assigned to a person.
    Claimed(Holder),
    /// Its holder comes back by a new login.
    Returned {
        /// Their account in its operating system, as far as it is known now.
        account: Option<String>,
    },
    /// A ticket of its assignment was redeemed by this session.
    Redeemed(SessionId),
    /// A gateway connected to it, or may have.
    Attached,
    /// A gateway could not connect to it.
    DialFailed,
    /// No session of its assignment is left.
    Released,
    /// Its operating system was asked who is logged on.
    Observed(Observation),
    /// The pool lists it again.
    Listed,
    /// The pool lists it no longer. An administrator who does that answers for
    /// what is left on it: if it is listed again later, it is as new.
    Withdrawn {
        /// Whether a session on it is not over.
        in_use: bool,
    },
    /// An administrator accepts this certificate.
    PinAccepted(Sha256),
}

/// What has to be done after a change is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is asked who is logged on.
    AskOccupancy,
    /// It leaves the store.
    Remove,
}

/// An event that cannot happen to a desktop in its state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} does not fit a desktop that is {state:?}")]
pub struct Refused {
    /// Where the desktop stands.
    pub state: State,
    /// What was said to have happened.
    pub event: Event,
}

impl State {
    /// Tells whether two states are the same but for when a recycling began.
    pub fn is_as(self, other: Self) -> bool {
        match (self, other) {
            (Self::Recycling { .. }, Self::Recycling { .. }) => true,
            (one, other) => one == other,
        }
    }
}

impl Desktop {
    /// Returns a desktop that was just listed, with the pin and the owner that
    /// the administrator gave it.
    pub fn listed(pin: Option<Sha256>, owner: Option<UserId>) -> Self {
        let holder = owner.map(|user| Holder { user, account: None });
        let state = if holder.is_some() { State::Assigned } else { State::Starting };
        let used = holder.is_some();
        Self { state, holder, epoch: Epoch(u64::from(used)), session: None, used, pin }
    }

    /// Moves the desktop on by one event, as seen at `now`.
    ///
    /// # Errors
    ///
    /// Refuses an event that does not fit; the desktop is then unchanged.
    pub fn step(
        &mut self,
        event: Event,
        rules: Rules,
        now: Timestamp,
    ) -> Result<Vec<Effect>, Refused> {
        match event {
            Event::Probed(Probe::Answered(certificate)) => self.answered(certificate, now),
            Event::Probed(Probe::Failed) => self.silent(),
            Event::Claimed(holder) => return self.claimed(holder),
            Event::Returned { account } => return self.returned(account, rules),
            Event::Redeemed(session) => return self.redeemed(session),
            Event::Attached => return self.attached(),
            Event::DialFailed => self.dial_failed(now),
            Event::Released => return Ok(self.released(rules, now)),
            Event::Observed(observation) => self.observed(&observation, rules, now),
            Event::Listed => self.listed_again(),
            Event::Withdrawn { in_use } => return Ok(self.withdrawn(in_use)),
            Event::PinAccepted(pin) => self.pin_accepted(pin),
        }
        Ok(vec![])
    }

    /// Tells whether the person has this desktop and may come back to it.
    pub fn is_held_by(&self, user: &UserId) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.user == *user)
    }

    /// Tells whether its operating system has nobody of interest logged on.
    ///
    /// Where the holder's account is not known, nobody at all may be.
    pub fn is_seen_logged_off(&self, logged_on: &BTreeSet<String>) -> bool {
        match self.holder.as_ref().and_then(|holder| holder.account.as_ref()) {
            Some(account) => !logged_on.iter().any(|other| same_account(other, account)),
            None => logged_on.is_empty(),
        }
    }

    /// Tells whether its last holder has had the pool's grace since their last
    /// session to log off, and has to be logged off.
    pub fn is_overdue(&self, rules: Rules, now: Timestamp) -> bool {
        match self.state {
            State::Recycling { since } => since.after(rules.grace) <= now,
            State::Starting
            | State::Ready { .. }
            | State::Assigned
            | State::Draining
            | State::Quarantined { .. } => false,
        }
    }

    /// Puts the beginning of a recycling into reach of `now`. One that lies ahead was
    /// set by a clock that has been set back since: no answer would come after it.
    pub fn put_within_reach(&mut self, now: Timestamp) {
        match &mut self.state {
            State::Recycling { since } => *since = (*since).min(now),
            State::Starting
            | State::Ready { .. }
            | State::Assigned
            | State::Draining
            | State::Quarantined { .. } => {}
        }
    }

    fn answered(&mut self, certificate: Option<Sha256>, now: Timestamp) {
        let same = self.pin.is_none() || self.pin == certificate;
        self.pin = self.pin.or(certificate);
        match self.state {
            // A held desktop goes on under its old pin: viewers refuse the new
            // certificate by themselves. It is quarantined once it is free.
            State::Assigned | State::Recycling { .. } | State::Draining => {}
            State::Starting
            | State::Ready { .. }
            | State::Quarantined { reason: Quarantine::Unreachable, .. }
                if !same =>
            {
                self.quarantine(Quarantine::CertificateChanged, now);
            }
            State::Starting | State::Quarantined { reason: Quarantine::Unreachable, .. } => {
                self.state = State::Ready { since: now };
            }
            State::Ready { .. }
            | State::Quarantined {
                reason: Quarantine::CertificateChanged | Quarantine::Used,
                ..
            } => {}
        }
    }

    fn silent(&mut self) {
        match self.state {
            State::Ready { .. } => self.state = State::Starting,
            State::Starting
            | State::Assigned
            | State::Recycling { .. }
            | State::Draining
            | State::Quarantined { .. } => {}
        }
    }

    fn claimed(&mut self, holder: Holder) -> Result<Vec<Effect>, Refused> {
        match self.state {
            State::Ready { .. } => {
                self.state = State::Assigned;
                self.epoch.0 += 1;
                self.holder = Some(holder);
                Ok(vec![])
            }
            State::Starting
            | State::Assigned
            | State::Recycling { .. }
            | State::Draining
            | State::Quarantined { .. } => Err(self.refuse(Event::Claimed(holder))),
        }
    }

    fn returned(&mut self, account: Option<String>, rules: Rules) -> Result<Vec<Effect>, Refused> {
        match self.state {
            State::Assigned | State::Draining => {}
            State::Recycling { .. } => self.state = State::Assigned,
            State::Starting | State::Ready { .. } | State::Quarantined { .. } => {
                return Err(self.refuse(Event::Returned { account }));
            }
        }
        if let Some(holder) = &mut self.holder {
            holder.account = match (rules.kind, self.used) {
                (Kind::Dedicated, _) | (Kind::Floating, false) => account,
                // Two names of one person may both be logged on: then only a
                // desktop with nobody on it is seen logged off.
                (Kind::Floating, true) => holder
                    .account
                    .take()
                    .filter(|known| account.is_some_and(|now| same_account(&now, known))),
            };
        }
        Ok(vec![])
    }

    fn redeemed(&mut self, session: SessionId) -> Result<Vec<Effect>, Refused> {
        match self.state {
            State::Assigned | State::Draining => {
                self.session = Some(session);
                Ok(vec![])
            }
            State::Starting
            | State::Ready { .. }
            | State::Recycling { .. }
            | State::Quarantined { .. } => Err(self.refuse(Event::Redeemed(session))),
        }
    }

    fn attached(&mut self) -> Result<Vec<Effect>, Refused> {
        match self.state {
            State::Assigned | State::Recycling { .. } | State::Draining => {
                self.used = true;
                Ok(vec![])
            }
            State::Starting | State::Ready { .. } | State::Quarantined { .. } => {
                Err(self.refuse(Event::Attached))
            }
        }
    }

    fn dial_failed(&mut self, now: Timestamp) {
        match self.state {
            // What the person has on a used one is worth more than another try.
            State::Assigned if !self.used => self.quarantine(Quarantine::Unreachable, now),
            State::Assigned
            | State::Starting
            | State::Ready { .. }
            | State::Recycling { .. }
            | State::Draining
            | State::Quarantined { .. } => {}
        }
    }

    fn released(&mut self, rules: Rules, now: Timestamp) -> Vec<Effect> {
        match self.state {
            State::Assigned => {
                self.session = None;
                match (rules.kind, rules.reuse, self.used) {
                    (Kind::Dedicated, _, _) => vec![],
                    (Kind::Floating, _, false) => {
                        self.freed(State::Ready { since: now });
                        vec![]
                    }
                    (Kind::Floating, Reuse::Never, true) => {
                        self.quarantine(Quarantine::Used, now);
                        vec![]
                    }
                    (Kind::Floating, Reuse::AfterLogoff, true) => {
                        self.state = State::Recycling { since: now };
                        vec![Effect::AskOccupancy]
                    }
                }
            }
            State::Draining => vec![Effect::Remove],
            State::Starting
            | State::Ready { .. }
            | State::Recycling { .. }
            | State::Quarantined { .. } => vec![],
        }
    }

    fn observed(&mut self, observation: &Observation, rules: Rules, now: Timestamp) {
        match self.state {
            State::Recycling { since }
                if since <= observation.asked
                    && self.is_seen_logged_off(&observation.logged_on) =>
            {
                match rules.reuse {
                    // Nobody has it before a probe has seen its certificate: that of
                    // a held one may have changed, and was let be.
                    Reuse::AfterLogoff => self.freed(State::Starting),
                    // The pool's rule was changed meanwhile.
                    Reuse::Never => self.quarantine(Quarantine::Used, now),
                }
            }
            State::Starting
            | State::Ready { .. }
            | State::Assigned
            | State::Recycling { .. }
            | State::Draining
            | State::Quarantined { .. } => {}
        }
    }

    fn listed_again(&mut self) {
        match self.state {
            State::Draining => self.state = State::Assigned,
            State::Starting
            | State::Ready { .. }
            | State::Assigned
            | State::Recycling { .. }
            | State::Quarantined { .. } => {}
        }
    }

    fn withdrawn(&mut self, in_use: bool) -> Vec<Effect> {
        match self.state {
            State::Assigned | State::Draining if in_use => {
                self.state = State::Draining;
                vec![]
            }
            State::Starting
            | State::Ready { .. }
            | State::Assigned
            | State::Recycling { .. }
            | State::Draining
            | State::Quarantined { .. } => vec![Effect::Remove],
        }
    }

    fn pin_accepted(&mut self, pin: Sha256) {
        self.pin = Some(pin);
        match self.state {
            State::Quarantined { reason: Quarantine::CertificateChanged, .. } => {
                self.state = State::Starting;
            }
            State::Starting
            | State::Ready { .. }
            | State::Assigned
            | State::Recycling { .. }
            | State::Draining
            | State::Quarantined { reason: Quarantine::Unreachable | Quarantine::Used, .. } => {}
        }
    }

    fn freed(&mut self, state: State) {
        self.state = state;
        self.holder = None;
        self.session = None;
        self.used = false;
    }

    fn quarantine(&mut self, reason: Quarantine, since: Timestamp) {
        self.state = State::Quarantined { reason, since };
        self.holder = None;
        self.session = None;
    }

    fn refuse(&self, event: Event) -> Refused {
        Refused { state: self.state, event }
    }
}

/// Directories and operating systems disagree about case, and the case that
/// decides here is "still logged on".
fn same_account(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

#[cfg(test)]
mod tests;
