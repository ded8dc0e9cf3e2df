//! The time of day.

use tegata_domain::time::Timestamp;

/// Tells the time. Tests move it.
pub trait Clock: Send + Sync + 'static {
    /// Returns the present, UTC.
    fn now(&self) -> Timestamp;
}
