//! The machine's own clock.

use std::time::{SystemTime, UNIX_EPOCH};

use tegata_domain::time::Timestamp;

use crate::ports::clock::Clock;

/// Reads the machine's clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        // A clock before 1970 is broken; tickets then expire at once.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}
