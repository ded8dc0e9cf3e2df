//! How the weather changes as time goes by.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::weather::{Chance, Loss, Weather};
use crate::dice::Dice;

/// Most steps of a schedule.
pub const STEPS_MAX: usize = 10_000;

/// Longest schedule of faults.
pub const FAULTS_MAX: Duration = Duration::from_mins(30);

/// How long a fault lasts, in milliseconds.
const FAULT_MS: (u64, u64) = (200, 3_000);

/// What is under way from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Step {
    /// When it begins, in milliseconds after the schedule does.
    pub at_ms: u64,
    /// The weather towards the server.
    pub there: Weather,
    /// The weather towards the clients.
    pub back: Weather,
    /// Whether every client's source port changes now, as the server sees it.
    pub moves: bool,
}

/// The weather from a first moment on.
///
/// INVARIANT: there are steps, at most [`STEPS_MAX`]; the first is at 0 and each
/// other one after the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Step>", into = "Vec<Step>")]
pub struct Schedule {
    steps: Vec<Step>,
}

/// Why steps make no schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoSchedule {
    /// Nothing is said about the first moment.
    #[error("the first step is not at 0")]
    NoBeginning,
    /// A step is not after the one before.
    #[error("the step at {0} ms is not after the one before")]
    OutOfOrder(u64),
    /// More than [`STEPS_MAX`].
    #[error("{0} steps are too many")]
    TooMany(usize),
}

impl Schedule {
    /// # Errors
    ///
    /// Refuses steps without a beginning, out of order, and too many.
    pub fn new(steps: Vec<Step>) -> Result<Self, NoSchedule> {
        if steps.first().is_none_or(|first| first.at_ms != 0) {
            return Err(NoSchedule::NoBeginning);
        }
        if steps.len() > STEPS_MAX {
            return Err(NoSchedule::TooMany(steps.len()));
        }
        if let Some(two) = steps.windows(2).find(|two| two[0].at_ms >= two[1].at_ms) {
            return Err(NoSchedule::OutOfOrder(two[1].at_ms));
        }
        Ok(Self { steps })
    }

    /// The same weather both ways, for ever.
    pub fn steady(weather: Weather) -> Self {
        Self { steps: vec![Step { there: weather, back: weather, ..Step::default() }] }
    }

    /// One fault after the other in weather that is calm otherwise, for so long, at
    /// most [`FAULTS_MAX`], and calm weather after it.
    pub fn faults(seed: u64, length: Duration, calm: Weather) -> Self {
        let mut dice = Dice::of(seed);
        let end = u64::try_from(length.min(FAULTS_MAX).as_millis()).unwrap_or_default();
        let (mut at_ms, mut steps) = (0, Vec::new());
        while at_ms < end {
            steps.push(Step { at_ms, ..fault(&mut dice, calm) });
            at_ms += between(&mut dice, FAULT_MS.0, FAULT_MS.1);
        }
        steps.push(Step { at_ms: end, there: calm, back: calm, moves: false });
        Self { steps }
    }

    /// Returns what is under way so long after the beginning.
    pub fn at(&self, since: Duration) -> &Step {
        &self.steps[self.begun(since) - 1]
    }

    /// Returns how often source ports have changed so long after the beginning.
    pub fn moves(&self, since: Duration) -> usize {
        self.steps[..self.begun(since)].iter().filter(|step| step.moves).count()
    }

    /// Returns the steps.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Counts the steps that have begun: one at least, since the first is at 0.
    fn begun(&self, since: Duration) -> usize {
        self.steps.partition_point(|step| Duration::from_millis(step.at_ms) <= since)
    }
}

impl TryFrom<Vec<Step>> for Schedule {
    type Error = NoSchedule;

    fn try_from(steps: Vec<Step>) -> Result<Self, NoSchedule> {
        Self::new(steps)
    }
}

impl From<Schedule> for Vec<Step> {
    fn from(schedule: Schedule) -> Self {
        schedule.steps
    }
}

/// One fault, towards the server, towards the clients or both ways.
fn fault(dice: &mut Dice, calm: Weather) -> Step {
    let (weather, moves) = match dice.below(10) {
        0 => (calm, true),
        1 => (Weather { dark: true, ..calm }, false),
        2 => (Weather { mtu: small(dice, 1_200, 1_400), ..calm }, false),
        3 => (Weather { loss: Loss::even(percent(dice, 20)), ..calm }, false),
        4 => {
            let loss = Loss::bursts(percent(dice, 5), small(dice, 2, 50));
            (Weather { loss, ..calm }, false)
        }
        5 => (Weather { reorder: percent(dice, 30), ..calm }, false),
        6 => (Weather { duplicate: percent(dice, 30), ..calm }, false),
        7 => (Weather { corrupt: percent(dice, 10), ..calm }, false),
        8 => {
            let (delay_ms, jitter_ms) = (small(dice, 10, 300), small(dice, 0, 100));
            (Weather { delay_ms, jitter_ms, ..calm }, false)
        }
        _ => {
            let weather = Weather {
                delay_ms: small(dice, 0, 100),
                jitter_ms: small(dice, 0, 30),
                loss: Loss::even(percent(dice, 5)),
                reorder: percent(dice, 5),
                duplicate: percent(dice, 5),
                corrupt: percent(dice, 2),
                ..calm
            };
            (weather, dice.below(2) == 0)
        }
    };
    let (there, back) = match dice.below(3) {
        0 => (weather, calm),
        1 => (calm, weather),
        _ => (weather, weather),
    };
    Step { at_ms: 0, there, back, moves }
}

fn percent(dice: &mut Dice, most: u16) -> Chance {
    Chance::per_mille(small(dice, 1, most * 10))
}

fn small(dice: &mut Dice, least: u16, most: u16) -> u16 {
    u16::try_from(between(dice, least.into(), most.into())).unwrap_or(most)
}

/// Draws a number from `least` to `most`, both included.
fn between(dice: &mut Dice, least: u64, most: u64) -> u64 {
    least + dice.below(most - least + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn at(at_ms: u64, moves: bool) -> Step {
        Step { at_ms, moves, ..Step::default() }
    }

    #[test]
    fn steps_hold_until_the_next_one() {
        let dark = Step { at_ms: 100, there: Weather::DARK, ..Step::default() };
        let schedule = Schedule::new(vec![at(0, true), dark, at(300, true)]).unwrap();
        for (since, step, moves) in
            [(0, 0, 1), (99, 0, 1), (100, 100, 1), (300, 300, 2), (999, 300, 2)]
        {
            let since = Duration::from_millis(since);
            assert_eq!((schedule.at(since).at_ms, schedule.moves(since)), (step, moves));
        }
    }

    #[test]
    fn steps_that_make_no_schedule_are_refused() {
        let too_many = (0..=STEPS_MAX as u64).map(|n| at(n, false)).collect();
        for (steps, why) in [
            (vec![], NoSchedule::NoBeginning),
            (vec![at(1, false)], NoSchedule::NoBeginning),
            (vec![at(0, false), at(5, false), at(5, false)], NoSchedule::OutOfOrder(5)),
            (vec![at(0, false), at(5, false), at(4, false)], NoSchedule::OutOfOrder(4)),
            (too_many, NoSchedule::TooMany(STEPS_MAX + 1)),
        ] {
            assert_eq!(Schedule::new(steps), Err(why));
        }
    }

    #[test]
    fn a_schedule_is_read_as_it_is_written() {
        let faults = Schedule::faults(4, MINUTE, Weather::CLEAR);
        let text = serde_json::to_string(&faults).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), faults);
        let dark =
            serde_json::from_str::<Schedule>(r#"[{}, {"at_ms": 5, "there": {"dark": true}}]"#);
        let dark = *dark.unwrap().at(Duration::from_millis(5));
        assert_eq!((dark.there, dark.back), (Weather::DARK, Weather::CLEAR));
        assert!(serde_json::from_str::<Schedule>("[]").is_err());
    }

    #[test]
    fn some_minutes_of_faults_have_every_fault_both_ways() {
        let steps: Vec<_> = (0..10)
            .flat_map(|seed| Schedule::faults(seed, MINUTE, Weather::CLEAR).steps().to_vec())
            .collect();
        assert!(steps.iter().any(|step| step.moves), "source ports change");
        for way in [|step: &Step| step.there, |step: &Step| step.back] {
            let has = |what: fn(Weather) -> bool| steps.iter().any(|step| what(way(step)));
            assert!(has(|weather| weather.dark), "nothing arrives");
            assert!(has(|weather| weather.mtu < 1_400), "long ones do not pass");
            assert!(has(|weather| weather.loss.good != Chance::NEVER), "some are lost");
            assert!(has(|weather| weather.loss.bad == Chance::ALWAYS), "bursts are lost");
            assert!(has(|weather| weather.reorder != Chance::NEVER), "some are overtaken");
            assert!(has(|weather| weather.duplicate != Chance::NEVER), "some come twice");
            assert!(has(|weather| weather.corrupt != Chance::NEVER), "some are damaged");
            assert!(has(|weather| weather.delay_ms > 100), "some are late");
        }
    }

    proptest! {
        #[test]
        fn faults_are_a_schedule_that_repeats_and_ends_in_calm_weather(
            seed: u64,
            seconds in 0_u64..4_000,
            delay_ms in 0_u16..50,
        ) {
            let (length, calm) = (Duration::from_secs(seconds), Weather { delay_ms, ..Weather::CLEAR });
            let faults = Schedule::faults(seed, length, calm);
            prop_assert_eq!(&faults, &Schedule::faults(seed, length, calm));
            prop_assert_eq!(Schedule::new(faults.steps().to_vec()), Ok(faults.clone()));
            let end = *faults.at(length);
            prop_assert_eq!((end.there, end.back, end.moves), (calm, calm, false));
            prop_assert_eq!(Duration::from_millis(end.at_ms), length.min(FAULTS_MAX));
            for step in faults.steps() {
                prop_assert!(step.there.mtu >= 1_200 && step.back.mtu >= 1_200, "QUIC needs so much");
            }
        }
    }
}
