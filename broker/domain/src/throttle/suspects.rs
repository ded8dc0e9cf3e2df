//! Which typed names were refused lately, in memory of fixed size.
//!
//! Two slots of one array hold when a name was refused last, chosen by a keyed
//! hash. A name shares its slots with others, so a crowd of refused names makes
//! some innocent ones look refused too: they queue apart, and nothing else.

use std::hash::{DefaultHasher, Hasher as _};
use std::time::Duration;

use tegata_proto::id::RealmName;

/// How long a refused name is remembered.
pub const SUSPECT_FOR: Duration = Duration::from_mins(15);

/// Slots of the array, four bytes each. With 10,000 refused names one innocent
/// name in fifty looks refused.
pub const SUSPECT_SLOTS: usize = 1 << 17;

#[derive(Debug)]
pub(super) struct Suspects {
    seed: [u64; 2],
    /// When the slot was marked last, in seconds, plus one; 0 is never.
    slots: Box<[u32]>,
}

impl Suspects {
    pub(super) fn new(seed: [u64; 2]) -> Self {
        Self { seed, slots: vec![0; SUSPECT_SLOTS].into() }
    }

    pub(super) fn mark(&mut self, realm: &RealmName, name: &str, now: Duration) {
        for slot in self.slots_of(realm, name) {
            self.slots[slot] = second(now);
        }
    }

    pub(super) fn is_marked(&self, realm: &RealmName, name: &str, now: Duration) -> bool {
        self.slots_of(realm, name).iter().all(|slot| is_recent(self.slots[*slot], now))
    }

    pub(super) fn len(&self, now: Duration) -> usize {
        self.slots.iter().filter(|at| is_recent(**at, now)).count()
    }

    /// Spellings that differ in case or in the width of spaces are one name here.
    /// That is a guess at what the directory does; no budget depends on it.
    fn slots_of(&self, realm: &RealmName, name: &str) -> [usize; 2] {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed[0]);
        hasher.write_u64(self.seed[1]);
        hasher.write(realm.as_str().as_bytes());
        for word in name.split_whitespace() {
            hasher.write_u8(0);
            hasher.write(word.to_lowercase().as_bytes());
        }
        let hash = hasher.finish();
        [hash, hash >> 32].map(|hash| usize::try_from(hash % SUSPECT_SLOTS as u64).unwrap_or(0))
    }
}

fn second(now: Duration) -> u32 {
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX - 1) + 1
}

fn is_recent(marked: u32, now: Duration) -> bool {
    marked != 0 && u64::from(second(now) - marked.min(second(now))) < SUSPECT_FOR.as_secs()
}
