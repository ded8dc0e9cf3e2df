//! The machine's own clock.

use std::time::SystemTime;

use tegata_domain::time::Timestamp;

use crate::ports::clock::Clock;

/// Reads the machine's clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        // Where it is before 1970, tickets expire at once.
        SystemTime::now().into()
    }
}
