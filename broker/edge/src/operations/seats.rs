//! Who is connected to the operations port, and who makes room for a newcomer.
//!
//! A connection costs whoever opens it nothing, so connections that only stand
//! there must not keep an operator out. When every seat is taken, the newcomer
//! gets the one of the connection that has been there longest without asking for
//! anything now; that one is closed. A request in progress is never given up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// All seats of a port.
#[derive(Debug)]
pub(super) struct Seats {
    limit: usize,
    taken: Mutex<Taken>,
    /// Something may have changed for a newcomer that found every seat busy.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    /// By the order of arrival.
    seats: BTreeMap<u64, Arc<State>>,
    next: u64,
}

#[derive(Debug, Default)]
struct State {
    busy: AtomicBool,
    given_up: CancellationToken,
}

/// One connection's seat; free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    number: u64,
    state: Arc<State>,
    seats: Arc<Seats>,
}

/// A request in progress on a seat.
#[derive(Debug)]
pub(super) struct Busy {
    state: Arc<State>,
    seats: Arc<Seats>,
}

impl Seats {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default(), changed: Notify::new() })
    }

    /// Returns a seat, once there is one that is free or idle.
    pub(super) async fn take(self: &Arc<Self>) -> Seat {
        loop {
            let changed = self.changed.notified();
            if let Some(seat) = self.try_take() {
                return seat;
            }
            changed.await;
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<Seat> {
        let mut taken = self.taken();
        if taken.seats.len() >= self.limit {
            let idle = taken.seats.iter().find(|(_, seat)| !seat.busy.load(Ordering::Acquire));
            let longest = idle.map(|(number, _)| *number)?;
            let given_up = taken.seats.remove(&longest)?;
            given_up.given_up.cancel();
        }
        let number = taken.next;
        taken.next += 1;
        let state = Arc::<State>::default();
        taken.seats.insert(number, Arc::clone(&state));
        drop(taken);
        Some(Seat { number, state, seats: Arc::clone(self) })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Nothing in here panics between two steps of one change.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Keeps the seat from being given up until the guard is dropped.
    pub(super) fn busy(&self) -> Busy {
        self.state.busy.store(true, Ordering::Release);
        Busy { state: Arc::clone(&self.state), seats: Arc::clone(&self.seats) }
    }

    /// Waits until somebody else has got the seat.
    pub(super) async fn given_up(&self) {
        self.state.given_up.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken().seats.remove(&self.number);
        self.seats.changed.notify_one();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.state.busy.store(false, Ordering::Release);
        self.seats.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_given_up(seat: &Seat) -> bool {
        seat.state.given_up.is_cancelled()
    }

    #[tokio::test]
    async fn the_longest_idle_makes_room_and_a_busy_one_never_does() {
        let seats = Seats::new(2);
        let (first, second) = (seats.take().await, seats.take().await);
        let asking = first.busy();
        let third = seats.take().await;
        assert!(!is_given_up(&first) && is_given_up(&second) && !is_given_up(&third));
        drop(asking);
        let fourth = seats.take().await;
        assert!(is_given_up(&first) && !is_given_up(&third) && !is_given_up(&fourth));
    }

    #[tokio::test]
    async fn where_everybody_asks_a_newcomer_waits_for_an_answer_or_an_end() {
        let seats = Seats::new(2);
        let (first, second) = (seats.take().await, seats.take().await);
        let (asking, _also) = (first.busy(), second.busy());
        assert!(seats.try_take().is_none(), "both are at work");
        let (third, ()) = tokio::join!(seats.take(), async { drop(asking) });
        assert!(is_given_up(&first));
        let _and_third = third.busy();
        drop(first);
        assert!(seats.try_take().is_none(), "its seat was given away before");
        let (_fourth, ()) = tokio::join!(seats.take(), async { drop(second) });
    }
}
