//! The waiting rooms before full pools.
//!
//! Who waits is kept in memory only: a person whose broker ends asks again. Turns
//! go round the sources and realms that people wait from, and whoever comes
//! while others wait does not pass them. How long it takes is told from how fast
//! desktops became free lately.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tegata_domain::pace::Pace;
use tegata_domain::queue::{Full, Joined, Queue};
use tegata_edge::source::Prefix;
use tegata_proto::id::{PoolName, RealmName, SessionId};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

/// A place in a queue, to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queued {
    /// The next to be served has 1.
    pub place: u32,
    /// How long it is expected to take.
    pub expected: Duration,
}

/// Whence somebody comes to a queue: turns go round the sources, a source of
/// many people may have several in a round, and within one round the realms.
pub type Whence = (Prefix, NonZeroU32, RealmName);

/// Most pools whose pace is remembered while nobody waits for them.
const PACES_MAX: usize = 1_024;

/// One room for each pool that somebody waits for, or lately left.
pub struct WaitingRooms {
    rooms: Mutex<HashMap<PoolName, Arc<Room>>>,
    began: Instant,
}

#[derive(Default)]
struct Room {
    queue: Mutex<Queue<Prefix, RealmName, SessionId>>,
    freed: Mutex<Pace>,
    moved: Notify,
}

/// A person's place in a room; leaving is dropping it.
pub struct Place {
    room: Arc<Room>,
    sid: SessionId,
    began: Instant,
}

impl Default for WaitingRooms {
    fn default() -> Self {
        Self { rooms: Mutex::default(), began: Instant::now() }
    }
}

impl WaitingRooms {
    /// Starts with nobody waiting.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells whether anybody waits for the pool.
    pub fn is_empty(&self, pool: &PoolName) -> bool {
        lock(&self.rooms).get(pool).is_none_or(|room| lock(&room.queue).is_empty())
    }

    /// Puts somebody into the pool's queue.
    ///
    /// # Errors
    ///
    /// Refuses when `limit` people wait already, and none of them from a source
    /// that has more waiting than the newcomer's.
    pub fn join(
        &self,
        pool: &PoolName,
        whence: Whence,
        sid: SessionId,
        limit: u32,
    ) -> Result<Place, Full> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let room = self.room(pool);
        match lock(&room.queue).join(whence, sid, limit)? {
            Joined::Waits => {}
            // That one finds itself without a place when it looks.
            Joined::InsteadOf(_) => room.moved.notify_waiters(),
        }
        Ok(Place { room, sid, began: self.began })
    }

    /// Wakes those who wait for the pool: one of its desktops became free.
    pub fn freed(&self, pool: &PoolName) {
        let room = self.room(pool);
        lock(&room.freed).arrived(self.began.elapsed());
        room.moved.notify_waiters();
    }

    fn room(&self, pool: &PoolName) -> Arc<Room> {
        let mut rooms = lock(&self.rooms);
        if rooms.len() >= PACES_MAX && !rooms.contains_key(pool) {
            rooms.retain(|_, room| !lock(&room.queue).is_empty());
        }
        Arc::clone(rooms.entry(pool.clone()).or_default())
    }
}

impl Place {
    /// Returns how many are served before this one, and this one; the next has
    /// 1. Nothing where somebody with a better right has the place now.
    pub fn number(&self) -> Option<u32> {
        let place = lock(&self.room.queue).place(&self.sid)?;
        Some(u32::try_from(place).unwrap_or(u32::MAX))
    }

    /// Returns how long it takes until so many desktops are free, if they become
    /// so as lately.
    pub fn expected(&self, number: u32) -> Option<Duration> {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        lock(&self.room.freed).expected(number, self.began.elapsed())
    }

    /// Leaves with a desktop, which moves the turn on to the next source.
    pub fn served(self) {
        lock(&self.room.queue).served(&self.sid);
    }

    /// Completes once somebody leaves the room or a desktop becomes free, from
    /// this call on, awaited or not.
    pub fn moved(&self) -> Notified<'_> {
        self.room.moved.notified()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.room.queue).leave(&self.sid);
        self.room.moved.notify_waiters();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change of a queue is whole, so a poisoned lock hides nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn from(address: &str) -> Whence {
        let source = Prefix::of(address.parse().unwrap());
        (source, NonZeroU32::MIN, RealmName::new("honsho").unwrap())
    }

    fn sid(n: u128) -> SessionId {
        SessionId(Uuid::from_u128(n))
    }

    #[tokio::test]
    async fn a_desktop_freed_between_look_and_wait_is_not_missed() {
        let (rooms, keiri) = (WaitingRooms::new(), PoolName::new("keiri").unwrap());
        let sato = rooms.join(&keiri, from("192.0.2.1"), sid(0), 1).unwrap();
        let moved = sato.moved();
        rooms.freed(&keiri);
        let woken = tokio::time::timeout(Duration::from_secs(5), moved).await;
        assert!(woken.is_ok(), "it was freed after the look began");
    }

    #[test]
    fn whoever_leaves_lets_the_others_move_up() {
        let (rooms, keiri) = (WaitingRooms::new(), PoolName::new("keiri").unwrap());
        let sato = rooms.join(&keiri, from("192.0.2.1"), sid(1), 2).unwrap();
        let tanaka = rooms.join(&keiri, from("192.0.2.1"), sid(2), 2).unwrap();
        assert!(rooms.join(&keiri, from("192.0.2.1"), sid(3), 2).is_err());
        assert_eq!((sato.number(), tanaka.number()), (Some(1), Some(2)));
        drop(sato);
        assert_eq!(tanaka.number(), Some(1));
        drop(tanaka);
        assert!(rooms.is_empty(&keiri));
    }

    #[test]
    fn a_crowd_from_one_place_costs_somebody_from_elsewhere_one_turn() {
        let (rooms, keiri) = (WaitingRooms::new(), PoolName::new("keiri").unwrap());
        let join = |address, n| rooms.join(&keiri, from(address), sid(n), 4).unwrap();
        let [first, second, third] = [1, 2, 3].map(|n| join("192.0.2.1", n));
        let home = join("198.51.100.7", 4);
        assert_eq!(home.number(), Some(2));
        first.served();
        assert_eq!((home.number(), second.number()), (Some(1), Some(2)));
        let other = join("203.0.113.7", 5);
        let late = join("203.0.113.8", 6);
        assert_eq!(third.number(), None, "it made room in a full queue");
        assert_eq!((second.number(), other.number(), late.number()), (Some(2), Some(3), Some(4)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_expected_wait_is_that_of_desktops_freed_lately() {
        let (rooms, keiri) = (WaitingRooms::new(), PoolName::new("keiri").unwrap());
        let place = rooms.join(&keiri, from("192.0.2.1"), sid(1), 4).unwrap();
        assert_eq!(place.expected(1), None);
        for _ in 0..3 {
            rooms.freed(&keiri);
            tokio::time::advance(Duration::from_secs(20)).await;
        }
        assert_eq!(place.expected(2), Some(Duration::from_mins(1)), "three in a minute, two to go");
    }
}
