//! A table of fixed size, whose rows are forgotten when they mean nothing more.
//!
//! Each row says until when it means something. Where a newcomer finds the table
//! full, the row that would have been forgotten next goes early: what is lost is
//! the little that was left of it, nobody is refused for want of room, and a row
//! that weighs much outlives one that weighs little.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How many forgettable rows are cleared away with each change, so that a table
/// shrinks faster than it can grow.
const CLEARED_AT_ONCE: usize = 2;

/// Rows by key.
///
/// INVARIANT: at most `limit` rows, and each stands in `by_end` once.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    rows: BTreeMap<K, (Duration, V)>,
    by_end: BTreeSet<(Duration, K)>,
    limit: usize,
}

impl<K: Ord + Clone, V: Default> Table<K, V> {
    pub(super) fn new(limit: usize) -> Self {
        Self { rows: BTreeMap::new(), by_end: BTreeSet::new(), limit }
    }

    /// Changes a row, made if it is missing. The change returns what the caller
    /// wants to know, and until when the row means something.
    pub(super) fn change<R>(
        &mut self,
        key: &K,
        now: Duration,
        change: impl FnOnce(&mut V) -> (R, Duration),
    ) -> R {
        let mut value = match self.rows.remove(key) {
            Some((end, value)) => {
                self.by_end.remove(&(end, key.clone()));
                value
            }
            None => V::default(),
        };
        let (answer, end) = change(&mut value);
        for _ in 0..CLEARED_AT_ONCE {
            if self.by_end.first().is_some_and(|(end, _)| *end <= now) {
                self.drop_first();
            }
        }
        if end > now {
            if self.rows.len() >= self.limit {
                self.drop_first();
            }
            self.rows.insert(key.clone(), (end, value));
            self.by_end.insert((end, key.clone()));
        }
        answer
    }

    #[cfg(test)]
    fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key).map(|(_, value)| value)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.rows.values().map(|(_, value)| value)
    }

    fn drop_first(&mut self) {
        if let Some((_, key)) = self.by_end.pop_first() {
            self.rows.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_full_table_forgets_what_means_least_and_never_grows() {
        let mut table: Table<u32, u32> = Table::new(3);
        let put = |table: &mut Table<_, _>, key, end, now| {
            table.change(&key, s(now), |row: &mut u32| {
                *row += 1;
                ((), s(end))
            });
        };
        for (key, end) in [(1, 90), (2, 10), (3, 50)] {
            put(&mut table, key, end, 0);
        }
        put(&mut table, 4, 60, 0);
        assert_eq!((table.get(&2), table.get(&1)), (None, Some(&1)), "the soonest over went");
        put(&mut table, 1, 95, 0);
        assert_eq!((table.len(), table.get(&1)), (3, Some(&2)), "a known key needs no room");
        put(&mut table, 5, 200, 70);
        assert_eq!(table.len(), 2, "what is over is cleared away");
        put(&mut table, 5, 70, 70);
        assert_eq!((table.len(), table.by_end.len()), (1, 1), "so is a row that is over at once");
    }
}
