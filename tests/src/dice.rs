//! Chance that can be repeated: `TEGATA_SEED` says which.

use std::time::{SystemTime, UNIX_EPOCH};

/// A generator of random numbers (`SplitMix64`).
#[derive(Debug, Clone)]
pub struct Dice {
    seed: u64,
    state: u64,
}

impl Dice {
    /// Takes the seed of `TEGATA_SEED`, or one of the time of day.
    pub fn new() -> Self {
        let named = std::env::var("TEGATA_SEED").ok().and_then(|text| text.parse().ok());
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::of(named.unwrap_or_else(|| u64::from(since.subsec_nanos()) | since.as_secs() << 30))
    }

    /// Takes this seed.
    pub fn of(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// Returns the seed, for whoever wants the same again.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns a number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}

/// Tells whether the long runs are wanted.
pub fn long() -> bool {
    std::env::var_os("TEGATA_LONG").is_some()
}
