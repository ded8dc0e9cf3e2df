//! Whether the machine's clock was set.

use std::time::Duration;

use tegata_domain::time::Timestamp;
use tokio::time::Instant;

use crate::ports::clock::Jump;

/// How far the time of day may leave the time that passes, between two looks, without
/// having been set: as far as two machines' clocks may differ.
const LEEWAY: Duration = Duration::from_secs(tegata_proto::claims::LEEWAY_S);

/// What two clocks showed at the same moment: the one on the wall, which may be set, and
/// one that only runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch {
    pub(super) wall: Timestamp,
    pub(super) running: Instant,
}

impl Watch {
    /// Tells how the clock on the wall was set between `self` and `later`, if it was.
    pub(super) fn jump(self, later: Self) -> Option<Jump> {
        let due = self.wall.after(later.running.duration_since(self.running));
        let (ahead, back) = (later.wall.since(due), due.since(later.wall));
        if ahead > LEEWAY {
            Some(Jump::Ahead(ahead))
        } else {
            (back > LEEWAY).then_some(Jump::Back(back))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp::from_millis(1_800_000_000_000);
    const HOUR: Duration = Duration::from_hours(1);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_more_than_the_leeway_is_a_jump() {
        let start = Watch { wall: NOON, running: Instant::now() };
        let a_second_later = |wall| start.jump(Watch { wall, running: start.running + SECOND });
        let on_time = NOON.after(SECOND);
        for wall in [on_time, on_time.after(LEEWAY), on_time.before(LEEWAY)] {
            assert_eq!(a_second_later(wall), None);
        }
        assert_eq!(a_second_later(on_time.after(HOUR)), Some(Jump::Ahead(HOUR)));
        assert_eq!(a_second_later(on_time.before(HOUR)), Some(Jump::Back(HOUR)));
    }

    #[test]
    fn time_that_has_passed_is_no_jump() {
        let start = Watch { wall: NOON, running: Instant::now() };
        let later = Watch { wall: NOON.after(HOUR), running: start.running + HOUR };
        assert_eq!(start.jump(later), None, "a pass may be late");
    }

    #[test]
    fn a_clock_at_either_end_of_time_is_looked_at() {
        let running = Instant::now();
        let watch = |millis| Watch { wall: Timestamp::from_millis(millis), running };
        let all = Duration::from_millis(u64::MAX);
        assert_eq!(watch(0).jump(watch(u64::MAX)), Some(Jump::Ahead(all)));
        assert_eq!(watch(u64::MAX).jump(watch(0)), Some(Jump::Back(all)));
    }
}
