//! On what terms a pool may be used from one kind of network.
//!
//! A pool says what holds everywhere, and a row of its `by_class` what holds
//! otherwise for the links of one class. [`Pool::terms`] joins the two. They are
//! looked at when somebody logs in, when a link attaches, and when a link is found
//! to come from another class; none of them knows how a class is told.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tegata_proto::code::Code;
use tegata_proto::policy::Policy;

use super::{Pool, RawPool, millis};
use crate::time::Timestamp;

/// Most rows of a pool's `by_class`.
pub const CLASSES_MAX: usize = 64;

/// Longest name of a network class, in bytes.
pub const CLASS_MAX: usize = 32;

/// Longest limit of idle time.
pub const IDLE_MAX: Duration = Duration::from_hours(24);

/// Longest limit of a session's time.
pub const SESSION_MAX: Duration = Duration::from_hours(168);

/// Oldest check of a password that a pool may ask for.
pub const PASSWORD_AGE_MAX: Duration = Duration::from_hours(30 * 24);

/// What holds otherwise for links of one network class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByClass {
    /// Which class.
    pub class: String,
    /// Whether the pool may be used from there.
    #[serde(default = "allowed")]
    pub allowed: bool,
    /// What the thin client may do there; it takes away from the pool's policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Limits that stand there instead of the pool's.
    #[serde(default, skip_serializing_if = "Limits::are_none")]
    pub limits: Limits,
    /// How old the last check of the person's password may be when a link attaches;
    /// of any age where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_age_ms: Option<u64>,
}

/// How long things may take at most; for ever where none is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// How long nobody may touch the thin client, by its own word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
    /// How long a session may be, from its login on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_ms: Option<u64>,
}

/// Whether a person's login takes the place of another one that is being used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Takeover {
    /// It does, and the first is told.
    #[default]
    Allow,
    /// It is refused while the other one has a link.
    Refuse,
}

/// What holds for links of one network class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Whether the pool may be used from there.
    pub allowed: bool,
    /// What the thin client may do.
    pub policy: Policy,
    /// How long nobody may touch the thin client.
    pub idle: Option<Duration>,
    /// How long a session may be.
    pub session: Option<Duration>,
    /// How old the last check of the password may be.
    pub password_age: Option<Duration>,
}

/// What terms are held against: when a session's person came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// When the session began.
    pub began: Timestamp,
    /// When the person's password was checked for it.
    pub password_at: Timestamp,
}

impl Pool {
    /// Returns what holds for links of a network class.
    pub fn terms(&self, class: &str) -> Terms {
        let RawPool { policy, limits, by_class, .. } = self.raw();
        let own = by_class.iter().find(|row| row.class == class);
        let own_limits = own.map_or_else(Limits::default, |row| row.limits);
        let span = |ms: Option<u64>| ms.map(Duration::from_millis);
        Terms {
            allowed: own.is_none_or(|row| row.allowed),
            policy: own.and_then(|row| row.policy).map_or(*policy, |own| policy.within(own)),
            idle: span(own_limits.idle_ms.or(limits.idle_ms)),
            session: span(own_limits.session_ms.or(limits.session_ms)),
            password_age: span(own.and_then(|row| row.password_age_ms)),
        }
    }
}

impl Terms {
    /// Judges whether a session may have a link on these terms.
    ///
    /// # Errors
    ///
    /// The code is what the agent is told.
    pub fn judge(&self, arrival: Arrival, now: Timestamp) -> Result<(), Code> {
        if !self.allowed {
            return Err(Code::NotAllowedHere);
        }
        if self.ends_at(arrival).is_some_and(|ends| ends <= now) {
            return Err(Code::TimeLimit);
        }
        let age = now.since(arrival.password_at);
        if self.password_age.is_some_and(|oldest| age > oldest) {
            return Err(Code::LoginAgain);
        }
        Ok(())
    }

    /// Returns when a session ends on these terms.
    pub fn ends_at(&self, arrival: Arrival) -> Option<Timestamp> {
        self.session.map(|span| arrival.began.after(span))
    }
}

impl Limits {
    fn are_none(&self) -> bool {
        *self == Self::default()
    }

    fn check(&self, mut fault: impl FnMut(&str, &'static str)) {
        match self.idle_ms {
            Some(0) => fault("idle_ms", "is zero"),
            Some(ms) if ms > millis(IDLE_MAX) => fault("idle_ms", "is longer than a day"),
            Some(_) | None => {}
        }
        match self.session_ms {
            Some(0) => fault("session_ms", "is zero"),
            Some(ms) if ms > millis(SESSION_MAX) => {
                fault("session_ms", "is longer than seven days");
            }
            Some(_) | None => {}
        }
    }
}

/// Names everything that is wrong with a pool's terms.
pub(super) fn check(raw: &RawPool, mut fault: impl FnMut(&str, &'static str)) {
    raw.limits.check(|key, problem| fault(&format!("limits.{key}"), problem));
    if raw.by_class.len() > CLASSES_MAX {
        fault("by_class", "are more than 64");
    }
    let mut classes = BTreeSet::new();
    for (n, row) in raw.by_class.iter().enumerate() {
        let mut fault = |key: &str, problem| fault(&format!("by_class[{n}].{key}"), problem);
        let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=CLASS_MAX).contains(&row.class.len()) || !row.class.chars().all(named) {
            fault("class", "is not 1 to 32 of a-z, 0-9 and '-'");
        } else if !classes.insert(&row.class) {
            fault("class", "stands twice in the pool");
        }
        row.limits.check(|key, problem| fault(&format!("limits.{key}"), problem));
        match row.password_age_ms {
            // No check of a password is as young as that.
            Some(0) => fault("password_age_ms", "is zero"),
            Some(ms) if ms > millis(PASSWORD_AGE_MAX) => {
                fault("password_age_ms", "is longer than 30 days");
            }
            Some(_) | None => {}
        }
    }
}

fn allowed() -> bool {
    true
}

#[cfg(test)]
mod tests;
