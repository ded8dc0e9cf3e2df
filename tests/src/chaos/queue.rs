//! Datagrams under way, in the order in which they are due.

use std::collections::BTreeMap;
use std::time::Duration;

/// Most datagrams that are under way.
pub const DATAGRAMS_MAX: usize = 65_536;

/// Most bytes that are under way.
pub const BYTES_MAX: usize = 64 * 1024 * 1024;

/// Datagrams that wait for their time, each with where it goes.
///
/// INVARIANT: at most [`DATAGRAMS_MAX`], of at most [`BYTES_MAX`] together.
#[derive(Debug)]
pub struct Queue<To> {
    /// By time, and among those due together by arrival.
    waiting: BTreeMap<(Duration, u64), (To, Vec<u8>)>,
    bytes: usize,
    arrivals: u64,
}

/// There is no room for a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many datagrams are under way")]
pub struct Full;

impl<To> Queue<To> {
    /// One without datagrams.
    pub fn new() -> Self {
        Self { waiting: BTreeMap::new(), bytes: 0, arrivals: 0 }
    }

    /// Keeps a datagram until it is due.
    ///
    /// # Errors
    ///
    /// When there is no room; those that wait already keep their place.
    pub fn push(&mut self, due: Duration, to: To, datagram: Vec<u8>) -> Result<(), Full> {
        let bytes = self.bytes + datagram.len();
        if self.waiting.len() >= DATAGRAMS_MAX || bytes > BYTES_MAX {
            return Err(Full);
        }
        self.bytes = bytes;
        self.arrivals += 1;
        self.waiting.insert((due, self.arrivals), (to, datagram));
        Ok(())
    }

    /// Takes the next datagram that is due at `now`.
    pub fn pop(&mut self, now: Duration) -> Option<(To, Vec<u8>)> {
        self.next_due().filter(|due| *due <= now)?;
        let (_, (to, datagram)) = self.waiting.pop_first()?;
        self.bytes -= datagram.len();
        Some((to, datagram))
    }

    /// Returns when the next datagram is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }
}

impl<To> Default for Queue<To> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(1);
    const LATER: Duration = Duration::from_millis(2);

    #[test]
    fn datagrams_leave_when_they_are_due_and_in_order_of_arrival() {
        let mut queue = Queue::new();
        for (due, name) in [(LATER, "c"), (SOON, "a"), (SOON, "b"), (LATER, "d")] {
            queue.push(due, name, vec![0; 10]).unwrap();
        }
        assert_eq!(queue.pop(Duration::ZERO), None, "nothing is due yet");
        let mut left =
            |now| std::iter::from_fn(|| queue.pop(now)).map(|(to, _)| to).collect::<String>();
        assert_eq!(left(SOON), "ab");
        assert_eq!(left(LATER), "cd");
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn a_full_queue_takes_no_more_until_something_has_left() {
        let mut by_count = Queue::new();
        for _ in 0..DATAGRAMS_MAX {
            by_count.push(SOON, (), vec![]).unwrap();
        }
        assert_eq!(by_count.push(SOON, (), vec![]), Err(Full));
        assert!(by_count.pop(SOON).is_some());
        assert_eq!(by_count.push(SOON, (), vec![]), Ok(()));

        let mut by_size = Queue::new();
        by_size.push(SOON, (), vec![0; BYTES_MAX]).unwrap();
        assert_eq!(by_size.push(SOON, (), vec![0]), Err(Full));
        assert_eq!(by_size.push(SOON, (), vec![]), Ok(()), "it takes no room");
        assert!(by_size.pop(SOON).is_some());
        assert_eq!(by_size.push(SOON, (), vec![0]), Ok(()));
    }
}
