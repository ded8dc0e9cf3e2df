//! Who may go on to a resource that serves only so many at once: the others
//! wait in a fair [`Queue`], and are told how long.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::queue::{Full, Joined, Queue};

/// How much one more observation moves the mean: one part in so many.
const SMOOTHING: u32 = 8;

/// A gate before something that serves `slots` at once.
///
/// Whoever passes holds a slot until [`Gate::leaves`]. `T` names a caller.
#[derive(Debug)]
pub struct Gate<S, T> {
    slots: usize,
    taken: usize,
    queue: Queue<S, (), T>,
    limit: usize,
    /// How long a slot was held lately, on average.
    held: Option<Duration>,
}

/// What a caller does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered<T> {
    /// Goes on, with a slot.
    Passes,
    /// Waits, until [`Gate::leaves`] names them.
    Waits,
    /// Waits in the place of this one, who is sent away.
    WaitsInsteadOf(T),
}

impl<S: PartialEq, T: PartialEq> Gate<S, T> {
    /// Makes a gate with `slots`, at least one, where at most `limit` wait.
    pub fn new(slots: usize, limit: usize) -> Self {
        Self { slots: slots.max(1), taken: 0, queue: Queue::new(), limit, held: None }
    }

    /// Lets a caller in, or makes them wait.
    ///
    /// # Errors
    ///
    /// Refuses where the queue is full, as [`Queue::join`] does.
    pub fn arrives(
        &mut self,
        (source, share): (S, NonZeroU32),
        caller: T,
    ) -> Result<Entered<T>, Full> {
        if self.taken < self.slots && self.queue.is_empty() {
            self.taken += 1;
            return Ok(Entered::Passes);
        }
        Ok(match self.queue.join((source, share, ()), caller, self.limit)? {
            Joined::Waits => Entered::Waits,
            Joined::InsteadOf(other) => Entered::WaitsInsteadOf(other),
        })
    }

    /// Takes a slot back, and returns who has it next, if anybody waits. `held`
    /// is for how long it was used, where it was used for what it is there for.
    pub fn leaves(&mut self, held: Option<Duration>) -> Option<T> {
        if let Some(held) = held {
            let mean = self.held.unwrap_or(held);
            self.held = Some((mean * (SMOOTHING - 1) + held) / SMOOTHING);
        }
        let next = self.queue.take_next();
        if next.is_none() {
            self.taken = self.taken.saturating_sub(1);
        }
        next
    }

    /// Forgets somebody who waits no more.
    pub fn gives_up(&mut self, caller: &T) {
        self.queue.leave(caller);
    }

    /// Returns a caller's place, and how long it is expected to take, where
    /// anything is known about that.
    pub fn place(&self, caller: &T) -> Option<(usize, Option<Duration>)> {
        let place = self.queue.place(caller)?;
        let slots = u32::try_from(self.slots).unwrap_or(u32::MAX);
        let turns = u32::try_from(place).unwrap_or(u32::MAX);
        Some((place, self.held.map(|held| held.saturating_mul(turns) / slots)))
    }

    /// Returns how many wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Returns how many have a slot.
    pub fn taken(&self) -> usize {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: (&str, NonZeroU32) = ("home", NonZeroU32::MIN);
    const CROWD: (&str, NonZeroU32) = ("crowd", NonZeroU32::MIN);

    #[test]
    fn no_more_than_the_slots_pass_and_each_that_leaves_lets_one_in() {
        let mut gate = Gate::new(2, 10);
        for caller in 1..=4 {
            let entered = gate.arrives(CROWD, caller).unwrap();
            assert_eq!(entered == Entered::Passes, caller <= 2, "{caller}");
        }
        gate.arrives(HOME, 5).unwrap();
        assert_eq!(gate.leaves(None), Some(3));
        assert_eq!(gate.leaves(None), Some(5), "the crowd had its turn");
        gate.gives_up(&4);
        assert_eq!((gate.taken(), gate.waiting()), (2, 0));
        assert_eq!((gate.leaves(None), gate.leaves(None), gate.leaves(None)), (None, None, None));
        assert_eq!(gate.taken(), 0, "a slot too many is not made up");
        assert_eq!(gate.arrives(HOME, 6), Ok(Entered::Passes));
    }

    #[test]
    fn whoever_comes_does_not_pass_those_who_wait() {
        let mut gate = Gate::new(1, 1);
        gate.arrives(HOME, 1).unwrap();
        assert_eq!(gate.arrives(HOME, 2), Ok(Entered::Waits));
        assert_eq!(gate.arrives(HOME, 3), Err(Full));
        assert_eq!(gate.leaves(None), Some(2));
        assert_eq!(gate.arrives(HOME, 3), Ok(Entered::Waits), "2 has the slot");
    }

    #[test]
    fn the_wait_is_expected_from_how_long_slots_were_held() {
        let mut gate = Gate::new(2, 10);
        for caller in 1..=6 {
            gate.arrives(HOME, caller).unwrap();
        }
        assert_eq!(gate.place(&6), Some((4, None)), "nothing is known yet");
        gate.leaves(Some(Duration::from_millis(100)));
        let (place, expected) = gate.place(&6).unwrap();
        assert_eq!((place, expected), (3, Some(Duration::from_millis(150))));
        gate.leaves(Some(Duration::from_millis(900)));
        let (_, expected) = gate.place(&6).unwrap();
        assert_eq!(expected, Some(Duration::from_millis(200)), "one slow call moves it a little");
    }
}
