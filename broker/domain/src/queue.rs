//! Who waits, and who is next: fair between sources first, between realms
//! within a source, and by arrival within both.
//!
//! However many wait from one place, they cost somebody from elsewhere one turn.
//! A source of many people may have a greater share of turns than others.

use std::collections::VecDeque;
use std::num::NonZeroU32;

/// A bounded queue in which everybody knows their place.
#[derive(Debug)]
pub struct Queue<S, R, T> {
    /// In the order of their turns; none is empty.
    sources: VecDeque<Source<S, R, T>>,
    waiting: usize,
}

/// Those who wait from one source.
#[derive(Debug)]
struct Source<S, R, T> {
    name: S,
    /// Turns in a round.
    share: usize,
    /// Turns had in this round.
    had: usize,
    /// In the order of their turns; none is empty.
    realms: VecDeque<(R, VecDeque<T>)>,
}

/// What became of somebody who came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined<T> {
    /// They wait.
    Waits,
    /// They wait in the place of this one, who came last from the source that
    /// has most people waiting for its share.
    InsteadOf(T),
}

/// The queue has as many people as it may, and no source more than the
/// newcomer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full")]
pub struct Full;

impl<S, R, T> Default for Queue<S, R, T> {
    fn default() -> Self {
        Self { sources: VecDeque::new(), waiting: 0 }
    }
}

impl<S: PartialEq, R: PartialEq, T: PartialEq> Queue<S, R, T> {
    /// Makes an empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts somebody behind the others of their source and realm.
    ///
    /// # Errors
    ///
    /// Refuses where `limit` people wait already and the newcomer's source has
    /// as many of them, for its share, as any.
    pub fn join(
        &mut self,
        (source, share, realm): (S, NonZeroU32, R),
        person: T,
        limit: usize,
    ) -> Result<Joined<T>, Full> {
        let share = usize::try_from(share.get()).unwrap_or(usize::MAX);
        let mut joined = Joined::Waits;
        if self.waiting >= limit {
            let own = self.sources.iter().find(|other| other.name == source);
            let with_newcomer = (own.map_or(0, Source::len) + 1).div_ceil(share);
            let crowd = self.sources.iter_mut().max_by_key(|other| other.rounds()).ok_or(Full)?;
            if crowd.rounds() <= with_newcomer {
                return Err(Full);
            }
            joined = Joined::InsteadOf(crowd.pop_youngest().ok_or(Full)?);
            self.waiting -= 1;
        }
        self.waiting += 1;
        let found = self.sources.iter_mut().find(|other| other.name == source);
        let Some(found) = found else {
            let realms = VecDeque::from([(realm, VecDeque::from([person]))]);
            self.sources.push_back(Source { name: source, share, had: 0, realms });
            return Ok(joined);
        };
        match found.realms.iter_mut().find(|(other, _)| *other == realm) {
            Some((_, people)) => people.push_back(person),
            None => found.realms.push_back((realm, VecDeque::from([person]))),
        }
        Ok(joined)
    }

    /// Takes out whoever has the next turn, and moves the turn on.
    pub fn take_next(&mut self) -> Option<T> {
        let source = self.sources.front_mut()?;
        let (_, people) = source.realms.front_mut()?;
        let person = people.pop_front()?;
        self.waiting -= 1;
        source.realms.rotate_left(1);
        source.realms.retain(|(_, people)| !people.is_empty());
        source.had += 1;
        if source.realms.is_empty() {
            self.sources.pop_front();
        } else if source.had >= source.share {
            source.had = 0;
            self.sources.rotate_left(1);
        }
        Some(person)
    }

    /// Takes somebody out who has their turn; the same as [`Queue::take_next`]
    /// if they are next, and as [`Queue::leave`] if not.
    pub fn served(&mut self, person: &T) {
        if self.next() == Some(person) {
            self.take_next();
        } else {
            self.leave(person);
        }
    }

    /// Takes somebody out, wherever they stand; harmless if they are not there.
    pub fn leave(&mut self, person: &T) {
        for source in &mut self.sources {
            for (_, people) in &mut source.realms {
                let before = people.len();
                people.retain(|other| other != person);
                self.waiting -= before - people.len();
            }
            source.realms.retain(|(_, people)| !people.is_empty());
        }
        self.sources.retain(|source| !source.realms.is_empty());
    }

    /// Returns who has the next turn.
    pub fn next(&self) -> Option<&T> {
        self.sources.front()?.realms.front()?.1.front()
    }

    /// Returns how many turns it is until somebody has theirs, that one
    /// included, if nobody comes or leaves; the next has 1.
    pub fn place(&self, person: &T) -> Option<usize> {
        let (at, within) = self
            .sources
            .iter()
            .enumerate()
            .find_map(|(at, source)| Some((at, source.place(person)?)))?;
        let own = &self.sources[at];
        // Rounds that end before the turn, its own not counted.
        let rounds = (within - 1 + own.had) / own.share;
        let before = self.sources.iter().enumerate().filter(|(n, _)| *n != at).map(|(n, other)| {
            let rounds = rounds + usize::from(n < at);
            (other.share * rounds).saturating_sub(other.had).min(other.len())
        });
        Some(before.sum::<usize>() + within)
    }

    /// Returns how many wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Tells whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }
}

impl<S, R, T: PartialEq> Source<S, R, T> {
    fn len(&self) -> usize {
        self.realms.iter().map(|(_, people)| people.len()).sum()
    }

    /// Rounds until all of it are served.
    fn rounds(&self) -> usize {
        self.len().div_ceil(self.share)
    }

    /// Takes out whoever would wait longest: the last of the longest line.
    fn pop_youngest(&mut self) -> Option<T> {
        let line = self.realms.iter_mut().max_by_key(|(_, people)| people.len())?;
        let youngest = line.1.pop_back();
        self.realms.retain(|(_, people)| !people.is_empty());
        youngest
    }

    fn place(&self, person: &T) -> Option<usize> {
        let (at, ahead) = self.realms.iter().enumerate().find_map(|(at, (_, people))| {
            Some((at, people.iter().position(|other| other == person)?))
        })?;
        let others = self.realms.iter().enumerate().filter(|(n, _)| *n != at);
        let before = others.map(|(n, (_, people))| people.len().min(ahead + usize::from(n < at)));
        Some(before.sum::<usize>() + ahead + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NonZeroU32 = NonZeroU32::MIN;

    fn share(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    /// Everybody in the order of their turns.
    fn order<T: PartialEq + Copy>(mut queue: Queue<&str, &str, T>) -> Vec<T> {
        std::iter::from_fn(|| queue.take_next()).collect()
    }

    fn queue(
        people: &[(&'static str, u32, &'static str, u32)],
    ) -> Queue<&'static str, &'static str, u32> {
        let mut queue = Queue::new();
        for (source, turns, realm, person) in people {
            queue.join((*source, share(*turns), *realm), *person, 100).unwrap();
        }
        queue
    }

    #[test]
    fn places_move_up_when_somebody_leaves() {
        let mut queue = Queue::new();
        let office = ("office", ONE, "honsho");
        assert_eq!(queue.join(office, "sato", 2), Ok(Joined::Waits));
        assert_eq!(queue.join(office, "tanaka", 2), Ok(Joined::Waits));
        assert_eq!(queue.join(office, "suzuki", 2), Err(Full));
        queue.leave(&"sato");
        assert_eq!((queue.place(&"tanaka"), queue.place(&"sato")), (Some(1), None));
        assert_eq!(queue.join(office, "suzuki", 2), Ok(Joined::Waits));
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn turns_go_round_the_sources_and_within_each_round_the_realms() {
        let table: &[(&str, &[_], &[u32])] = &[
            ("by arrival", &[("a", 1, "x", 1), ("a", 1, "x", 2), ("a", 1, "x", 3)], &[1, 2, 3]),
            (
                "one from elsewhere waits for one turn",
                &[("a", 1, "x", 1), ("a", 1, "x", 2), ("a", 1, "x", 3), ("b", 1, "x", 4)],
                &[1, 4, 2, 3],
            ),
            (
                "realms of a source share its turns",
                &[("a", 1, "x", 1), ("a", 1, "x", 2), ("a", 1, "y", 3), ("b", 1, "y", 4)],
                &[1, 4, 3, 2],
            ),
            (
                "an office has its share",
                &[
                    ("a", 2, "x", 1),
                    ("a", 2, "x", 2),
                    ("a", 2, "x", 3),
                    ("b", 1, "x", 4),
                    ("b", 1, "x", 5),
                ],
                &[1, 2, 4, 3, 5],
            ),
        ];
        for (why, people, turns) in table {
            assert_eq!(order(queue(people)), *turns, "{why}");
        }
    }

    #[test]
    fn a_full_queue_makes_room_at_the_cost_of_the_crowd() {
        let mut queue = Queue::new();
        for person in 1..=3 {
            queue.join(("crowd", ONE, "x"), person, 4).unwrap();
        }
        queue.join(("home", ONE, "x"), 4, 4).unwrap();
        assert_eq!(queue.join(("other", ONE, "x"), 5, 4), Ok(Joined::InsteadOf(3)));
        assert_eq!(queue.join(("crowd", ONE, "x"), 6, 4), Err(Full), "not at its own cost");
        assert_eq!(queue.join(("third", ONE, "x"), 7, 4), Ok(Joined::InsteadOf(2)));
        assert_eq!(queue.join(("fourth", ONE, "x"), 8, 4), Err(Full), "one each is fair");
        assert_eq!((queue.len(), order(queue)), (4, vec![1, 4, 5, 7]));
    }

    /// A place is what happens if nobody comes or leaves: told by playing it out.
    #[test]
    fn a_place_is_the_number_of_turns_until_ones_own() {
        for seed in 0..500_u64 {
            let mut state = seed;
            let mut roll = |sides: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) % sides
            };
            let mut queue = Queue::new();
            for person in 0..40_u32 {
                let source = roll(5);
                let turns = share(if source == 0 { 3 } else { 1 });
                queue.join((source, turns, roll(2)), person, 100).unwrap();
                match roll(6) {
                    0 => drop(queue.take_next()),
                    1 => queue.leave(&person),
                    _ => {}
                }
            }
            let told: Vec<_> = (0..40).map(|person| queue.place(&person)).collect();
            for turn in 1.. {
                let Some(person) = queue.take_next() else { break };
                let told = told[usize::try_from(person).unwrap()];
                assert_eq!(told, Some(turn), "person {person}, seed {seed}");
            }
            assert!(queue.is_empty());
        }
    }
}
