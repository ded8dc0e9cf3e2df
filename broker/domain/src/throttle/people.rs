//! How many binds as one person may still fail.
//!
//! Strangers have [`STRANGERS_TRIES`] in [`WINDOW`]; [`KEPT_FOR_FAMILIAR`] more
//! are kept for sources that the person has logged in from, whatever strangers
//! do. A good password gives no try back: the directory may forgive failures by
//! it, and a stranger must not profit from that.

use std::time::Duration;

use tegata_proto::id::UserId;

use super::table::Table;

/// How long a failed bind counts.
pub const WINDOW: Duration = Duration::from_mins(15);

/// Binds as one person that may fail within [`WINDOW`] before strangers get no
/// further one.
pub const STRANGERS_TRIES: usize = 3;

/// Binds that may fail beyond those, from sources the person has logged in from.
/// The sum has to be below the directory's own threshold.
pub const KEPT_FOR_FAMILIAR: usize = 2;

/// How long a source stays one that a person has logged in from.
pub const FAMILIAR_FOR: Duration = Duration::from_hours(30 * 24);

/// How long a bind without an answer keeps its place: the directory may have
/// counted it as a failure, or may be far from well.
pub const DOUBT: Duration = Duration::from_mins(1);

/// Most people whose failures are remembered; some 20 MB. More than the people
/// of a ministry, so it is full only where more of them than that are tried in
/// 15 minutes, and then the oldest failures are forgotten first.
pub const PEOPLE_MAX: usize = 65_536;

/// What may be done about a person's password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Try {
    /// Bind, then say how it ended.
    Go,
    /// The budget is held by binds that are on their way.
    Wait,
    /// It is held by binds to which the directory gave no answer.
    Doubtful,
    /// The budget is spent.
    Spent,
}

/// How a bind ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The password was right.
    Right,
    /// The directory said no.
    Wrong,
    /// The directory did not get to it.
    NotDone,
    /// It was sent, and what came of it is not known.
    Unknown,
}

#[derive(Debug)]
pub(super) struct People(Table<UserId, Tries>);

/// INVARIANT: failures and places held are together no more than the budget of
/// a familiar source.
#[derive(Debug, Default)]
struct Tries {
    /// When each of the failed binds was seen to fail.
    failed: Vec<Duration>,
    /// Until when each bind without an outcome keeps its place.
    doubtful: Vec<Duration>,
    in_flight: usize,
}

impl People {
    pub(super) fn new() -> Self {
        Self(Table::new(PEOPLE_MAX))
    }

    pub(super) fn reserve(&mut self, user: &UserId, familiar: bool, now: Duration) -> Try {
        let allowed = STRANGERS_TRIES + if familiar { KEPT_FOR_FAMILIAR } else { 0 };
        self.0.change(user, now, |tries| {
            tries.forget(now);
            let spent = tries.failed.len() + tries.doubtful.len();
            let answer = if tries.failed.len() >= allowed {
                Try::Spent
            } else if spent >= allowed {
                Try::Doubtful
            } else if spent + tries.in_flight >= allowed {
                Try::Wait
            } else {
                tries.in_flight += 1;
                Try::Go
            };
            (answer, tries.end())
        })
    }

    pub(super) fn settle(&mut self, user: &UserId, outcome: Outcome, now: Duration) {
        self.0.change(user, now, |tries| {
            tries.forget(now);
            tries.in_flight = tries.in_flight.saturating_sub(1);
            match outcome {
                Outcome::Right | Outcome::NotDone => {}
                Outcome::Wrong => tries.failed.push(now),
                Outcome::Unknown => tries.doubtful.push(now + DOUBT),
            }
            ((), tries.end())
        });
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Tries {
    fn forget(&mut self, now: Duration) {
        self.failed.retain(|at| *at + WINDOW > now);
        self.doubtful.retain(|until| *until > now);
    }

    /// When the row means nothing more; never, while a bind is on its way.
    fn end(&self) -> Duration {
        if self.in_flight > 0 {
            return Duration::MAX;
        }
        let failed = self.failed.iter().map(|at| *at + WINDOW);
        failed.chain(self.doubtful.iter().copied()).max().unwrap_or(Duration::ZERO)
    }
}
