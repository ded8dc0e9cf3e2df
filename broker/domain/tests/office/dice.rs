//! Dice that fall the same way for the same seed (splitmix64).

/// A seeded source of choices.
pub(crate) struct Dice {
    state: u64,
}

impl Dice {
    /// Makes dice that any failure can be replayed with.
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Returns a number below `sides`, which is not 0.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let sides = u64::try_from(sides).expect("few sides");
        usize::try_from((z ^ (z >> 31)) % sides).expect("below sides")
    }

    /// Tells whether something happens that happens once in `n` times.
    pub(crate) fn once_in(&mut self, n: usize) -> bool {
        self.roll(n) == 0
    }

    /// Picks one, if there is any.
    pub(crate) fn pick<T: Clone>(&mut self, from: impl IntoIterator<Item = T>) -> Option<T> {
        let all: Vec<T> = from.into_iter().collect();
        if all.is_empty() { None } else { Some(all[self.roll(all.len())].clone()) }
    }
}
