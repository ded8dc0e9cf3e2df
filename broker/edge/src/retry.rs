//! When to try again, told to many at the same moment.

use std::time::Duration;

use aws_lc_rs::rand;

/// Returns `base` and up to as long again, by chance: whoever is told to come back
/// comes back apart from the others.
pub fn spread(base: Duration) -> Duration {
    let mut dice = [0; 4];
    // Without random bytes everybody comes at once, which is no worse than before.
    let _ = rand::fill(&mut dice);
    base + base.mul_f64(f64::from(u32::from_ne_bytes(dice)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn hints_differ_and_none_is_shorter_than_asked_or_twice_as_long() {
        let base = Duration::from_secs(1);
        let hints: BTreeSet<_> = (0..100).map(|_| spread(base)).collect();
        assert!(hints.len() > 90, "{hints:?}");
        assert!(hints.iter().all(|hint| (base..=base * 2).contains(hint)));
        assert_eq!(spread(Duration::ZERO), Duration::ZERO);
    }
}
