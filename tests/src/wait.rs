//! Bounded waiting. Nothing in a story waits in any other way.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Longest time that anything in a story may take.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until there is an answer.
///
/// # Errors
///
/// Whatever the look fails with, at once; or that there was none within
/// [`LIMIT`].
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = look()? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("waited {} s for {what}", LIMIT.as_secs());
        }
        thread::sleep(LOOK_EVERY);
    }
}
