//! The time of day.

use std::time::Duration;

use tegata_domain::time::Timestamp;

/// Tells the time. Tests move it.
pub trait Clock: Send + Sync + 'static {
    /// Returns the present, UTC.
    fn now(&self) -> Timestamp;
}

/// How the time of day was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jump {
    /// It shows that much more time than has passed.
    Ahead(Duration),
    /// That much less.
    Back(Duration),
}
