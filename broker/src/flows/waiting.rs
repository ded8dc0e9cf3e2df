//! The waiting rooms before full pools.
//!
//! Who waits is kept in memory only: a person whose broker ends asks again. The
//! order is that of arrival, and whoever comes while others wait goes behind
//! them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tegata_domain::queue::{Full, Queue};
use tegata_proto::id::{PoolName, SessionId};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// One room for each pool that somebody waits for.
#[derive(Default)]
pub struct WaitingRooms {
    rooms: Mutex<HashMap<PoolName, Arc<Room>>>,
}

#[derive(Default)]
struct Room {
    queue: Mutex<Queue<SessionId>>,
    moved: Notify,
}

/// A person's place in a room; leaving is dropping it.
pub struct Place {
    room: Arc<Room>,
    sid: SessionId,
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

    /// Puts somebody at the end of the pool's queue.
    ///
    /// # Errors
    ///
    /// Refuses when `limit` people wait already.
    pub fn join(&self, pool: &PoolName, sid: SessionId, limit: u32) -> Result<Place, Full> {
        let mut rooms = lock(&self.rooms);
        rooms.retain(|name, room| name == pool || !lock(&room.queue).is_empty());
        let room = Arc::clone(rooms.entry(pool.clone()).or_default());
        lock(&room.queue).join(sid, usize::try_from(limit).unwrap_or(usize::MAX))?;
        Ok(Place { room, sid })
    }

    /// Wakes those who wait for the pool: one of its desktops became free.
    pub fn freed(&self, pool: &PoolName) {
        if let Some(room) = lock(&self.rooms).get(pool) {
            room.moved.notify_waiters();
        }
    }
}

impl Place {
    /// Returns how many are served before this one, and this one; the next has 1.
    pub fn number(&self) -> u32 {
        let place = lock(&self.room.queue).place(&self.sid).unwrap_or(1);
        u32::try_from(place).unwrap_or(u32::MAX)
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

    #[tokio::test]
    async fn a_desktop_freed_between_look_and_wait_is_not_missed() {
        let (rooms, keiri) = (WaitingRooms::new(), PoolName::new("keiri").unwrap());
        let sato = rooms.join(&keiri, SessionId(Uuid::nil()), 1).unwrap();
        let moved = sato.moved();
        rooms.freed(&keiri);
        let woken = tokio::time::timeout(std::time::Duration::from_secs(5), moved).await;
        assert!(woken.is_ok(), "it was freed after the look began");
    }

    #[test]
    fn whoever_leaves_lets_the_others_move_up() {
        let (rooms, keiri) = (WaitingRooms::new(), PoolName::new("keiri").unwrap());
        let sid = |n| SessionId(Uuid::from_u128(n));
        let sato = rooms.join(&keiri, sid(1), 2).unwrap();
        let tanaka = rooms.join(&keiri, sid(2), 2).unwrap();
        assert!(rooms.join(&keiri, sid(3), 2).is_err());
        assert_eq!((sato.number(), tanaka.number()), (1, 2));
        drop(sato);
        assert_eq!(tanaka.number(), 1);
        drop(tanaka);
        assert!(rooms.is_empty(&keiri));
    }
}
