//! What a session has carried.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;

use super::Way;

/// How many bytes went onward, and when the last did.
#[derive(Debug)]
pub struct Traffic {
    up: AtomicU64,
    down: AtomicU64,
    /// Milliseconds since 1970; 0 is never.
    last: AtomicU64,
    total_up: Counter,
    total_down: Counter,
}

impl Traffic {
    /// Starts at nothing; every byte is also counted into the two totals.
    pub fn new(total_up: Counter, total_down: Counter) -> Self {
        let (up, down, last) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self { up, down, last, total_up, total_down }
    }

    /// Returns how many bytes were written onward to the desktop.
    pub fn up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }

    /// Returns how many bytes were handed to the agent's connection.
    pub fn down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }

    /// Returns when the last byte was carried, to the millisecond.
    pub fn last_byte_at(&self) -> Option<SystemTime> {
        match self.last.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(SystemTime::UNIX_EPOCH + Duration::from_millis(ms)),
        }
    }

    pub(crate) fn carried(&self, way: Way, bytes: usize) {
        let (own, total) = match way {
            Way::Up => (&self.up, &self.total_up),
            Way::Down => (&self.down, &self.total_down),
        };
        own.fetch_add(bytes as u64, Ordering::Relaxed);
        total.inc_by(bytes as u64);
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(ms, Ordering::Relaxed);
    }
}
