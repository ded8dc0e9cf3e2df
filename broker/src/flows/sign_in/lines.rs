//! How many lines of the log strangers can have written.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Most lines a minute; metrics and the audit trail count the rest.
pub(super) const LINES_MAX: u32 = 20;

/// The lines of one minute.
#[derive(Debug, Default)]
pub(super) struct Lines(Mutex<Minute>);

#[derive(Debug, Default)]
struct Minute {
    number: u64,
    lines: u32,
}

impl Lines {
    /// Tells whether one more may be written, and counts it. Time is a span since a fixed
    /// point.
    pub(super) fn may_write(&self, now: Duration) -> bool {
        let number = now.as_secs() / 60;
        // Each change is whole, so a poisoned lock hides nothing.
        let mut minute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if minute.number != number {
            *minute = Minute { number, lines: 0 };
        }
        let may = minute.lines < LINES_MAX;
        minute.lines += u32::from(may);
        may
    }
}
