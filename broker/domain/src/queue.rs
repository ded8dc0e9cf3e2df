//! Who waits for a desktop of a full pool, in order of arrival.

use std::collections::VecDeque;

/// A bounded queue in which everybody knows their place.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: VecDeque<T>,
}

/// The queue has as many people as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full")]
pub struct Full;

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new() }
    }
}

impl<T: PartialEq> Queue<T> {
    /// Makes an empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts somebody at the end and returns their place; the first has 1.
    ///
    /// # Errors
    ///
    /// Refuses when `limit` people wait already.
    pub fn join(&mut self, person: T, limit: usize) -> Result<usize, Full> {
        if self.waiting.len() >= limit {
            return Err(Full);
        }
        self.waiting.push_back(person);
        Ok(self.waiting.len())
    }

    /// Takes somebody out, wherever they stand; harmless if they are not there.
    pub fn leave(&mut self, person: &T) {
        self.waiting.retain(|other| other != person);
    }

    /// Returns somebody's place; the first has 1.
    pub fn place(&self, person: &T) -> Option<usize> {
        self.waiting.iter().position(|other| other == person).map(|n| n + 1)
    }

    /// Tells whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_move_up_when_somebody_leaves() {
        let mut queue = Queue::new();
        assert_eq!((queue.join("sato", 2), queue.join("tanaka", 2)), (Ok(1), Ok(2)));
        assert_eq!(queue.join("suzuki", 2), Err(Full));
        queue.leave(&"sato");
        assert_eq!((queue.place(&"tanaka"), queue.place(&"sato")), (Some(1), None));
        assert_eq!(queue.join("suzuki", 2), Ok(2));
    }
}
