//! How often names and passwords may be tried, and by whom.
//!
//! A login passes three counters in this order: that of its source
//! ([`Throttle::arrives`]), which knows no user and alone is told as
//! `throttled`; the search, by which a spelling becomes a user; and that of the
//! user ([`Throttle::reserve`]), whose budget is smaller than the directory's
//! own, so that nobody is locked out there by a stranger. A bind holds its place
//! in the budget from before it is sent until its outcome is known.
//!
//! Everything is in memory of fixed size. What happens where a table is full is
//! told there: [`table`]. Time is a span since any fixed point of a clock that
//! never goes back.

mod people;
mod sources;
mod suspects;
mod table;
#[cfg(test)]
mod tests;

use std::num::NonZeroU32;
use std::time::Duration;

use tegata_proto::id::{RealmName, UserId};

use people::People;
use sources::Sources;
use suspects::Suspects;

pub use people::{
    DOUBT, FAMILIAR_FOR, KEPT_FOR_FAMILIAR, Outcome, PEOPLE_MAX, STRANGERS_TRIES, Try, WINDOW,
};
pub use sources::{SOURCES_MAX, Throttled};
pub use suspects::{SUSPECT_FOR, SUSPECT_SLOTS};

/// What one source may do. A source is what `S` says, as one IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceLimits {
    /// Logins that it may begin a minute, good and bad.
    pub logins_per_minute: NonZeroU32,
    /// Refused ones among them, whatever the reason of the refusal.
    pub failures_per_minute: NonZeroU32,
    /// Turns it gets in a queue where another source gets one.
    pub share: NonZeroU32,
}

impl Default for SourceLimits {
    /// Fits a household, a hotel, a telephone network's shared address; not an
    /// office of thousands, which is a class of its own.
    fn default() -> Self {
        const fn number(n: u32) -> NonZeroU32 {
            NonZeroU32::new(n).expect("the constants are not zero")
        }
        Self {
            logins_per_minute: const { number(300) },
            failures_per_minute: const { number(30) },
            share: const { number(1) },
        }
    }
}

/// All counters of one broker.
#[derive(Debug)]
pub struct Throttle<S> {
    sources: Sources<S>,
    people: People,
    suspects: Suspects,
}

/// How full the tables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Sources that are remembered, of [`SOURCES_MAX`].
    pub sources: usize,
    /// Those among them that are throttled.
    pub throttled: usize,
    /// People with recent failures, of [`PEOPLE_MAX`].
    pub people: usize,
    /// Slots of names with recent failures, of [`SUSPECT_SLOTS`].
    pub suspects: usize,
}

impl<S: Ord + Copy> Throttle<S> {
    /// Starts with a clean slate. The seed is secret and random: whoever knew it
    /// could choose names that are taken for others.
    pub fn new(seed: [u64; 2]) -> Self {
        Self { sources: Sources::new(), people: People::new(), suspects: Suspects::new(seed) }
    }

    /// Counts a login that begins.
    ///
    /// # Errors
    ///
    /// The source is over one of its limits; this try is not counted.
    pub fn arrives(
        &mut self,
        source: S,
        limits: &SourceLimits,
        now: Duration,
    ) -> Result<(), Throttled> {
        self.sources.arrives(source, limits, now)
    }

    /// Asks once more, before a directory is asked for a login that has waited: its
    /// source may have used up its failures meanwhile. Counts nothing.
    ///
    /// # Errors
    ///
    /// The source is over its limit of failures.
    pub fn may_try(
        &mut self,
        source: S,
        limits: &SourceLimits,
        now: Duration,
    ) -> Result<(), Throttled> {
        self.sources.may_try(source, limits, now)
    }

    /// Counts a refusal for its source.
    ///
    /// A bad password, an unknown name and a spent budget count alike, so that
    /// what a source is told says nothing about a name.
    pub fn refused(&mut self, source: S, limits: &SourceLimits, now: Duration) {
        self.sources.refused(source, limits, now);
    }

    /// Notes a name, as it was typed, that was refused.
    pub fn suspect(&mut self, realm: &RealmName, name: &str, now: Duration) {
        self.suspects.mark(realm, name, now);
    }

    /// Tells whether the name was refused lately. An innocent name may be taken
    /// for one that was; all it costs is the other queue.
    pub fn is_suspect(&self, realm: &RealmName, name: &str, now: Duration) -> bool {
        self.suspects.is_marked(realm, name, now)
    }

    /// Asks for one bind as the user. `familiar` says whether they have logged in
    /// from this source within [`FAMILIAR_FOR`].
    ///
    /// After [`Try::Go`] the bind holds its place until [`Throttle::settle`].
    pub fn reserve(&mut self, user: &UserId, familiar: bool, now: Duration) -> Try {
        self.people.reserve(user, familiar, now)
    }

    /// Says how a bind that was reserved ended.
    pub fn settle(&mut self, user: &UserId, outcome: Outcome, now: Duration) {
        self.people.settle(user, outcome, now);
    }

    /// Counts what is remembered.
    pub fn fill(&self, now: Duration) -> Fill {
        Fill {
            sources: self.sources.len(),
            throttled: self.sources.throttled(now),
            people: self.people.len(),
            suspects: self.suspects.len(now),
        }
    }
}
