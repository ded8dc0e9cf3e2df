//! What each source has done lately: two buckets that fill again over a minute
//! (the generic cell rate algorithm, ITU-T I.371, in its virtual-time form).

use std::num::NonZeroU32;
use std::time::Duration;

use super::SourceLimits;
use super::table::Table;

/// Most sources that are remembered; some 10 MB. Only one whose tries of the
/// last minute are not forgiven yet has to be.
pub const SOURCES_MAX: usize = 65_536;

/// How long a bucket takes to be full again.
const MINUTE: Duration = Duration::from_mins(1);

/// A source is over one of its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many tries, the next is possible in {retry_after:?}")]
pub struct Throttled {
    /// How long until one more is allowed.
    pub retry_after: Duration,
}

#[derive(Debug)]
pub(super) struct Sources<S>(Table<S, Source>);

#[derive(Debug, Default)]
struct Source {
    logins: Bucket,
    failures: Bucket,
    /// The limit that the failures were judged by last.
    failure_every: Duration,
}

/// The moment at which the bucket will be full again.
#[derive(Debug, Default, Clone, Copy)]
struct Bucket(Duration);

impl Bucket {
    /// Returns how long until there is one more, nothing where there is.
    fn wait(self, every: Duration, now: Duration) -> Duration {
        (self.0 + every).saturating_sub(now + MINUTE)
    }

    fn take(&mut self, every: Duration, now: Duration) {
        // No deeper than empty, so that a burst is forgiven in a minute.
        self.0 = (self.0.max(now) + every).min(now + MINUTE);
    }
}

fn every(per_minute: NonZeroU32) -> Duration {
    MINUTE / per_minute.get()
}

fn after(retry_after: Duration) -> Result<(), Throttled> {
    if retry_after.is_zero() { Ok(()) } else { Err(Throttled { retry_after }) }
}

impl<S: Ord + Copy> Sources<S> {
    pub(super) fn new() -> Self {
        Self(Table::new(SOURCES_MAX))
    }

    pub(super) fn arrives(
        &mut self,
        source: S,
        limits: &SourceLimits,
        now: Duration,
    ) -> Result<(), Throttled> {
        self.0.change(&source, now, |row| {
            row.failure_every = every(limits.failures_per_minute);
            let retry_after = row
                .failures
                .wait(row.failure_every, now)
                .max(row.logins.wait(every(limits.logins_per_minute), now));
            let outcome = after(retry_after);
            if outcome.is_ok() {
                row.logins.take(every(limits.logins_per_minute), now);
            }
            (outcome, row.full_at())
        })
    }

    pub(super) fn may_try(
        &mut self,
        source: S,
        limits: &SourceLimits,
        now: Duration,
    ) -> Result<(), Throttled> {
        self.0.change(&source, now, |row| {
            row.failure_every = every(limits.failures_per_minute);
            let outcome = after(row.failures.wait(row.failure_every, now));
            (outcome, row.full_at())
        })
    }

    pub(super) fn refused(&mut self, source: S, limits: &SourceLimits, now: Duration) {
        self.0.change(&source, now, |row| {
            row.failure_every = every(limits.failures_per_minute);
            row.failures.take(row.failure_every, now);
            ((), row.full_at())
        });
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn throttled(&self, now: Duration) -> usize {
        let over = |row: &&Source| !row.failures.wait(row.failure_every, now).is_zero();
        self.0.values().filter(over).count()
    }
}

impl Source {
    fn full_at(&self) -> Duration {
        self.logins.0.max(self.failures.0)
    }
}
