//! What a path does to the datagrams that go one way on it.

use serde::{Deserialize, Serialize};

/// What is certain to happen, in millionths.
pub const CERTAIN: u32 = 1_000_000;

/// Largest payload of a datagram, in bytes: of any.
pub const ANY_LENGTH: u16 = u16::MAX;

/// How likely something is. In JSON it is a number from 0 to 1.
///
/// INVARIANT: at most [`CERTAIN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Chance {
    millionths: u32,
}

/// Loss after Gilbert and Elliott: a path is good or bad, and loses more while it
/// is bad.
///
/// Before each datagram a good path may get worse and a bad one may recover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Loss {
    /// How likely a good path gets bad.
    pub worsens: Chance,
    /// How likely a bad path gets good.
    pub recovers: Chance,
    /// How likely a good path loses a datagram.
    pub good: Chance,
    /// How likely a bad path loses a datagram.
    pub bad: Chance,
}

/// What a path does to datagrams that go one way; by default, nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weather {
    /// How long each is under way, in milliseconds.
    pub delay_ms: u16,
    /// How much longer at most, in milliseconds; jitter keeps their order.
    pub jitter_ms: u16,
    /// How many are lost.
    pub loss: Loss,
    /// How likely one is overtaken by those behind it.
    pub reorder: Chance,
    /// How likely one arrives twice.
    pub duplicate: Chance,
    /// How likely one bit of it is wrong.
    pub corrupt: Chance,
    /// Largest payload that passes, in bytes.
    pub mtu: u16,
    /// Whether nothing arrives at all.
    pub dark: bool,
}

/// Why a number is no chance.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{0} is not between 0 and 1")]
pub struct NoChance(f64);

impl Chance {
    /// It never happens.
    pub const NEVER: Self = Self { millionths: 0 };

    /// It always happens.
    pub const ALWAYS: Self = Self { millionths: CERTAIN };

    /// So many in a hundred; all, where more are asked for.
    pub const fn percent(percent: u8) -> Self {
        Self::per_mille(percent as u16 * 10)
    }

    /// So many in a thousand; all, where more are asked for.
    pub const fn per_mille(per_mille: u16) -> Self {
        let millionths = per_mille as u32 * (CERTAIN / 1000);
        Self { millionths: if millionths > CERTAIN { CERTAIN } else { millionths } }
    }

    /// Tells whether it happens to whoever drew `lot`, a number below [`CERTAIN`].
    pub fn hits(self, lot: u32) -> bool {
        lot < self.millionths
    }
}

impl TryFrom<f64> for Chance {
    type Error = NoChance;

    fn try_from(share: f64) -> Result<Self, NoChance> {
        if !(0.0..=1.0).contains(&share) {
            return Err(NoChance(share));
        }
        // Between 0 and a million, as was checked.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let millionths = (share * f64::from(CERTAIN)).round() as u32;
        Ok(Self { millionths })
    }
}

impl From<Chance> for f64 {
    fn from(chance: Chance) -> Self {
        Self::from(chance.millionths) / Self::from(CERTAIN)
    }
}

impl Loss {
    /// Loses each datagram with the same chance.
    pub const fn even(chance: Chance) -> Self {
        Self { worsens: Chance::NEVER, recovers: Chance::NEVER, good: chance, bad: chance }
    }

    /// Loses everything now and then, for so many datagrams on average.
    pub const fn bursts(begin: Chance, length: u16) -> Self {
        let length = if length == 0 { 1 } else { length };
        let recovers = Chance { millionths: CERTAIN / length as u32 };
        Self { worsens: begin, recovers, good: Chance::NEVER, bad: Chance::ALWAYS }
    }
}

impl Weather {
    /// Everything arrives at once, in order, as it was sent.
    pub const CLEAR: Self = Self {
        delay_ms: 0,
        jitter_ms: 0,
        loss: Loss::even(Chance::NEVER),
        reorder: Chance::NEVER,
        duplicate: Chance::NEVER,
        corrupt: Chance::NEVER,
        mtu: ANY_LENGTH,
        dark: false,
    };

    /// Nothing arrives.
    pub const DARK: Self = Self { dark: true, ..Self::CLEAR };
}

impl Default for Weather {
    fn default() -> Self {
        Self::CLEAR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chance_hits_as_many_lots_as_it_says() {
        for (chance, hits) in [
            (Chance::NEVER, 0),
            (Chance::per_mille(5), 5_000),
            (Chance::percent(20), 200_000),
            (Chance::percent(200), CERTAIN),
            (Chance::ALWAYS, CERTAIN),
        ] {
            assert_eq!(
                u32::try_from((0..CERTAIN).filter(|&lot| chance.hits(lot)).count()),
                Ok(hits)
            );
        }
    }

    #[test]
    fn weather_is_read_as_it_is_written_and_says_only_what_is_unusual() {
        let weather: Weather =
            serde_json::from_str(r#"{"delay_ms": 20, "loss": {"good": 0.01}, "mtu": 1200}"#)
                .unwrap();
        let loss = Loss { good: Chance::percent(1), ..Loss::default() };
        assert_eq!(weather, Weather { delay_ms: 20, loss, mtu: 1200, ..Weather::CLEAR });
        let text = serde_json::to_string(&weather).unwrap();
        assert_eq!(serde_json::from_str::<Weather>(&text).unwrap(), weather);
    }

    #[test]
    fn weather_that_cannot_be_is_refused() {
        for text in [
            r#"{"corrupt": 1.01}"#,
            r#"{"corrupt": -0.1}"#,
            r#"{"delay_ms": -1}"#,
            r#"{"delay_ms": 65536}"#,
            r#"{"rain": 1}"#,
            r#"{"loss": {"ugly": 1}}"#,
        ] {
            assert!(serde_json::from_str::<Weather>(text).is_err(), "{text}");
        }
    }
}
