//! The one way this crate waits: ask again until there is an answer, never longer than a limit.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long a part may take until it answers.
pub(crate) const READY: Duration = Duration::from_secs(30);

/// How long to wait between two questions.
const INTERVAL: Duration = Duration::from_millis(10);

/// Asks until `answer` has one, for at most `limit`.
///
/// # Errors
///
/// What `answer` fails with, at once; or that `what` did not come in time.
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    mut answer: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = answer()? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        thread::sleep(INTERVAL);
    }
}
