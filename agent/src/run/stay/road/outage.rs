//! A time in which nothing arrives, and what the person is told of it.

use std::time::Duration;

use tokio::time::Instant;

use super::Road;
use crate::progress::{Event, Person};

/// A time in which nothing is known to arrive.
#[derive(Clone, Copy)]
pub(super) struct Outage {
    pub(super) since: Instant,
    /// How long it may last before the person is told.
    pub(super) patience: Duration,
    pub(super) is_told: bool,
    /// Whether it began with a change of network.
    pub(super) has_moved: bool,
}

impl Outage {
    pub(super) fn new(since: Instant, patience: Duration) -> Self {
        Self { since, patience, is_told: false, has_moved: false }
    }

    /// Returns when the person is told of it.
    pub(super) fn tells_at(self) -> Instant {
        self.since + self.patience
    }
}

impl Road<'_> {
    /// Nothing arrives any more; the person is told once.
    pub(super) fn stands_still(&mut self, person: &mut impl Person) {
        let since = self.pulse.silent_since().unwrap_or_else(Instant::now);
        let outage = self.outage.get_or_insert(Outage::new(since, Duration::ZERO));
        if !outage.is_told {
            outage.is_told = true;
            person.tell(&Event::LinkLost);
        }
    }

    /// Something arrives again.
    pub(super) fn recovered(&mut self, person: &mut impl Person) {
        let Some(Outage { since, is_told, has_moved, .. }) = self.outage.take() else {
            return;
        };
        let (gap_ms, transport) = (self::since(since), self.transport());
        if has_moved {
            person.tell(&Event::Migrated { gap_ms, transport });
        } else if is_told {
            person.tell(&Event::Resumed { gap_ms, transport });
        }
    }
}

/// Returns for how many milliseconds something has lasted.
pub(super) fn since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}
