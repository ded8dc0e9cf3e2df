//! Work that may be held up for as long as it likes, done by a thread of its own.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often a thread is looked at that should have ended.
const LOOK: Duration = Duration::from_millis(10);

/// A thread, and the queue of what it has yet to do.
#[derive(Debug)]
pub(crate) struct Errands<T> {
    queue: SyncSender<T>,
    thread: JoinHandle<()>,
}

impl<T: Send + 'static> Errands<T> {
    /// Starts a thread that runs errands, for which so many may wait.
    ///
    /// # Errors
    ///
    /// Fails when the system gives no thread.
    pub(crate) fn start(
        name: &str,
        waiting: usize,
        run: impl FnOnce(&Receiver<T>) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, errands) = sync_channel(waiting);
        let thread = thread::Builder::new().name(name.into()).spawn(move || run(&errands))?;
        Ok(Self { queue, thread })
    }

    /// Leaves an errand to the thread.
    ///
    /// # Errors
    ///
    /// Gives it back where there is no room for it.
    pub(crate) fn leave(&self, errand: T) -> Result<(), T> {
        self.queue.try_send(errand).map_err(|error| match error {
            TrySendError::Full(errand) | TrySendError::Disconnected(errand) => errand,
        })
    }

    /// Leaves a last errand, if there is one, as soon as there is room for it, waits
    /// until it is done, and tells whether that was in time.
    pub(crate) fn finish(self, mut last: Option<T>, within: Duration) -> bool {
        let until = Instant::now() + within;
        while let Some(errand) = last.take() {
            last = self.leave(errand).err();
            if last.is_some() {
                if Instant::now() >= until {
                    return false;
                }
                thread::sleep(LOOK);
            }
        }
        drop(self.queue);
        while !self.thread.is_finished() {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(LOOK);
        }
        self.thread.join().is_ok()
    }
}
