//! What becomes of each datagram that goes one way: decided by a seed, the weather
//! and the datagrams before it.

use std::time::Duration;

use super::weather::{CERTAIN, Weather};
use crate::dice::Dice;

/// How much later a datagram comes that others overtake.
pub const OVERTAKEN_BY: Duration = Duration::from_millis(15);

/// One way of one client's path.
///
/// Every datagram draws the same number of lots, so the luck of the n-th depends on
/// the seed alone, whatever the weather was before.
#[derive(Debug, Clone)]
pub struct Path {
    dice: Dice,
    is_bad: bool,
    /// When the last one that kept its place is due.
    last_due: Duration,
}

/// What becomes of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It never arrives.
    Lost(Cause),
    /// It arrives, perhaps twice.
    Carried {
        /// The datagram.
        first: Delivery,
        /// Its double, which is as it was sent.
        second: Option<Delivery>,
    },
}

/// Why a datagram never arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nothing arrives.
    Dark,
    /// It is longer than what passes.
    TooLong,
    /// It was one of those that are lost.
    Chance,
}

/// When and how a datagram arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// When, on the clock of the one who asked.
    pub due: Duration,
    /// Whether those behind it may overtake it.
    pub overtaken: bool,
    /// Which of its bits is wrong.
    pub flipped: Option<usize>,
}

/// What one datagram drew.
struct Lots {
    change: u32,
    loss: u32,
    jitter: u64,
    reorder: u32,
    duplicate: u32,
    corrupt: u32,
    bit: u64,
}

impl Path {
    /// A good path that is empty.
    pub fn new(seed: u64) -> Self {
        Self { dice: Dice::of(seed), is_bad: false, last_due: Duration::ZERO }
    }

    /// Decides about a datagram of so many bytes that sets out at `now`.
    pub fn fate(&mut self, weather: &Weather, length: usize, now: Duration) -> Fate {
        let drawn = Lots::draw(&mut self.dice);
        let change = if self.is_bad { weather.loss.recovers } else { weather.loss.worsens };
        self.is_bad ^= change.hits(drawn.change);
        let loss = if self.is_bad { weather.loss.bad } else { weather.loss.good };
        if weather.dark {
            return Fate::Lost(Cause::Dark);
        }
        if length > usize::from(weather.mtu) {
            return Fate::Lost(Cause::TooLong);
        }
        if loss.hits(drawn.loss) {
            return Fate::Lost(Cause::Chance);
        }

        let jitter = drawn.jitter % (u64::from(weather.jitter_ms) * 1000 + 1);
        let under_way = Duration::from_millis(weather.delay_ms.into());
        let in_line = self.last_due.max(now + under_way + Duration::from_micros(jitter));
        let overtaken = weather.reorder.hits(drawn.reorder);
        let due = if overtaken {
            in_line + OVERTAKEN_BY
        } else {
            self.last_due = in_line;
            in_line
        };
        let flipped = (length > 0 && weather.corrupt.hits(drawn.corrupt)).then(|| {
            let bits = length as u64 * 8;
            usize::try_from(drawn.bit % bits).expect("less than the length, which is one")
        });
        let doubled = weather.duplicate.hits(drawn.duplicate);
        Fate::Carried {
            first: Delivery { due, overtaken, flipped },
            second: doubled.then_some(Delivery { due, overtaken, flipped: None }),
        }
    }
}

impl Lots {
    fn draw(dice: &mut Dice) -> Self {
        let mut lot = || u32::try_from(dice.below(CERTAIN.into())).unwrap_or(CERTAIN);
        let [change, loss, reorder, duplicate, corrupt] = std::array::from_fn(|_| lot());
        let (jitter, bit) = (dice.below(u64::MAX), dice.below(u64::MAX));
        Self { change, loss, jitter, reorder, duplicate, corrupt, bit }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chaos::weather::{Chance, Loss};

    const SEED: u64 = 4;
    const COUNT: usize = 10_000;
    const NOW: Duration = Duration::from_secs(1);

    /// The fates of datagrams that set out a millisecond apart.
    fn fates(seed: u64, weather: Weather, length: usize) -> Vec<Fate> {
        let mut path = Path::new(seed);
        (0..COUNT as u64)
            .map(|n| path.fate(&weather, length, NOW + Duration::from_millis(n)))
            .collect()
    }

    fn first(fate: Fate) -> Delivery {
        match fate {
            Fate::Carried { first, .. } => first,
            Fate::Lost(cause) => panic!("lost: {cause:?}"),
        }
    }

    fn lost(fates: &[Fate]) -> usize {
        fates.iter().filter(|fate| matches!(fate, Fate::Lost(_))).count()
    }

    #[test]
    fn each_weather_does_what_it_says() {
        let clear = Weather::CLEAR;
        let now = Delivery { due: NOW, overtaken: false, flipped: None };
        let carried = |first| Fate::Carried { first, second: None };
        let table = [
            (clear, 1200, carried(now)),
            (Weather::DARK, 1200, Fate::Lost(Cause::Dark)),
            (Weather { mtu: 1199, ..clear }, 1200, Fate::Lost(Cause::TooLong)),
            (Weather { mtu: 1200, ..clear }, 1200, carried(now)),
            (
                Weather { loss: Loss::even(Chance::ALWAYS), ..clear },
                1200,
                Fate::Lost(Cause::Chance),
            ),
            (
                Weather { delay_ms: 40, ..clear },
                1200,
                carried(Delivery { due: NOW + Duration::from_millis(40), ..now }),
            ),
            (
                Weather { reorder: Chance::ALWAYS, ..clear },
                1200,
                carried(Delivery { due: NOW + OVERTAKEN_BY, overtaken: true, ..now }),
            ),
            (
                Weather { duplicate: Chance::ALWAYS, ..clear },
                1200,
                Fate::Carried { first: now, second: Some(now) },
            ),
            (Weather { corrupt: Chance::ALWAYS, ..clear }, 0, carried(now)),
        ];
        for (weather, length, fate) in table {
            assert_eq!(Path::new(SEED).fate(&weather, length, NOW), fate, "{weather:?}");
        }
    }

    #[test]
    fn even_loss_loses_as_many_as_it_says() {
        let weather = Weather { loss: Loss::even(Chance::percent(20)), ..Weather::CLEAR };
        let lost = lost(&fates(SEED, weather, 100));
        assert!((1_800..2_200).contains(&lost), "{lost} of {COUNT}");
    }

    #[test]
    fn loss_in_bursts_comes_in_bursts() {
        let weather = Weather { loss: Loss::bursts(Chance::percent(1), 20), ..Weather::CLEAR };
        let fates = fates(SEED, weather, 100);
        let bursts = fates.chunk_by(|a, b| matches!((a, b), (Fate::Lost(_), Fate::Lost(_))));
        let lengths: Vec<_> = bursts.filter(|burst| lost(burst) > 0).map(<[_]>::len).collect();
        let mean = lengths.iter().sum::<usize>() / lengths.len();
        assert!((10..30).contains(&mean), "bursts of {lengths:?}");
    }

    #[test]
    fn every_bit_may_be_the_wrong_one() {
        let weather = Weather { corrupt: Chance::ALWAYS, ..Weather::CLEAR };
        let mut flipped: Vec<_> =
            fates(SEED, weather, 2).into_iter().map(|fate| first(fate).flipped.unwrap()).collect();
        flipped.sort_unstable();
        flipped.dedup();
        assert_eq!(flipped, (0..16).collect::<Vec<_>>());
    }

    fn chance() -> impl Strategy<Value = Chance> {
        (0_u16..=1000).prop_map(Chance::per_mille)
    }

    prop_compose! {
        fn weather()(
            (delay_ms, jitter_ms, mtu) in (0_u16..500, 0_u16..500, 0_u16..1500),
            (worsens, recovers, good, bad) in (chance(), chance(), chance(), chance()),
            (reorder, duplicate, corrupt) in (chance(), chance(), chance()),
            dark in any::<bool>(),
        ) -> Weather {
            let loss = Loss { worsens, recovers, good, bad };
            Weather { delay_ms, jitter_ms, loss, reorder, duplicate, corrupt, mtu, dark }
        }
    }

    proptest! {
        #[test]
        fn the_same_seed_decides_the_same(
            seed: u64,
            datagrams in prop::collection::vec((weather(), 0_usize..1500, 0_u64..1000), 0..50),
        ) {
            let decide = || {
                let (mut path, mut now) = (Path::new(seed), NOW);
                datagrams.iter().map(|(weather, length, pause)| {
                    now += Duration::from_millis(*pause);
                    path.fate(weather, *length, now)
                }).collect::<Vec<_>>()
            };
            prop_assert_eq!(decide(), decide());
        }

        #[test]
        fn whoever_is_not_overtaken_arrives_in_order_and_in_time(
            seed: u64,
            weather in weather(),
            pauses in prop::collection::vec(0_u64..100, 0..50),
        ) {
            let (mut path, mut now, mut last) = (Path::new(seed), NOW, Duration::ZERO);
            let delay = Duration::from_millis(weather.delay_ms.into());
            let jitter = Duration::from_millis(weather.jitter_ms.into());
            for pause in pauses {
                now += Duration::from_millis(pause);
                let Fate::Carried { first, second } = path.fate(&weather, 100, now) else { continue };
                prop_assert!(first.flipped.is_none_or(|bit| bit < 800));
                prop_assert!(second.is_none_or(|second| second.due == first.due));
                let late = if first.overtaken { OVERTAKEN_BY } else { Duration::ZERO };
                prop_assert!(first.due >= now + delay + late);
                prop_assert!(first.due <= now + delay + jitter + late, "jitter is a bound");
                if !first.overtaken {
                    prop_assert!(first.due >= last);
                    last = first.due;
                }
            }
        }

        #[test]
        fn earlier_weather_changes_nobody_elses_luck(
            seed: u64,
            earlier in weather(),
            later in weather(),
        ) {
            // With one state only, nothing of the past is left but what is still under way.
            let later = Weather { loss: Loss::even(later.loss.good), ..later };
            let earlier = Weather { loss: Loss::even(earlier.loss.good), ..earlier };
            let (mut one, mut other) = (Path::new(seed), Path::new(seed));
            for _ in 0..10 {
                one.fate(&earlier, 100, Duration::ZERO);
                other.fate(&Weather::CLEAR, 100, Duration::ZERO);
            }
            let after = Duration::from_secs(10);
            prop_assert_eq!(one.fate(&later, 100, after), other.fate(&later, 100, after));
        }
    }
}
