//! Whether a link still lives, judged by what arrives over it.
//!
//! Decides only, and only while something is owed: an idle link is not watched,
//! and wakes nobody. What arrives is counted in datagrams by QUIC; any of them is
//! a sign of life.

use std::time::Duration;

use tokio::time::Instant;

/// How long what was sent may stay without any answer, at least.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How many round trips it may.
const PATIENCE_RTT: u32 = 3;

/// How long a probe after a network change may take beyond one round trip.
const CHANGE_PATIENCE: Duration = Duration::from_millis(300);

/// How many looks there are until then; after the first the link is probed, because
/// what was sent may have been answered before the watch began.
const LOOKS: u32 = 3;

/// How often a link is looked at after a change of network.
const LOOK_CLOSELY: Duration = Duration::from_millis(20);

/// How often one is that was called silent.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What a look at a link shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// Something arrived since the watch began; it is over.
    Alive,
    /// Not yet.
    Waiting,
    /// Not yet, and something has to be sent that is answered.
    Doubtful,
    /// Nothing arrived for too long; the watch goes on.
    Silent,
}

/// The watch over one link.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Watch {
    /// What had arrived when it began.
    heard: u64,
    since: Instant,
    patience: Duration,
    is_probed: bool,
    step: Duration,
    next: Instant,
}

impl Pulse {
    /// Something was sent that has to be answered; `heard` datagrams have arrived.
    pub(crate) fn sent(&mut self, heard: u64, rtt: Duration, now: Instant) {
        if self.watch.is_none() {
            let patience = PATIENCE.max(rtt * PATIENCE_RTT);
            let step = patience / LOOKS;
            let next = now + step;
            let is_probed = false;
            self.watch = Some(Watch { heard, since: now, patience, is_probed, step, next });
        }
    }

    /// The way to the gateway changes, and a probe is sent on the new one; `heard`
    /// datagrams had arrived before.
    pub(crate) fn moved(&mut self, heard: u64, rtt: Duration, now: Instant) {
        let (patience, step) = (rtt + CHANGE_PATIENCE, LOOK_CLOSELY);
        let next = now + step;
        self.watch = Some(Watch { heard, since: now, patience, is_probed: true, step, next });
    }

    /// Tells whether a watch is on.
    pub(crate) fn is_watching(&self) -> bool {
        self.watch.is_some()
    }

    /// Returns when to look next; nothing while nobody watches.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.watch.as_ref().map(|watch| watch.next)
    }

    /// Looks at the link; `heard` datagrams have arrived. Nothing while nobody
    /// watches.
    pub(crate) fn look(&mut self, heard: u64, now: Instant) -> Option<Sign> {
        let watch = self.watch.as_mut()?;
        if heard != watch.heard {
            self.watch = None;
            return Some(Sign::Alive);
        }
        let verdict = watch.since + watch.patience;
        let sign = if now >= verdict {
            watch.step = LOOK_AGAIN;
            Sign::Silent
        } else if watch.is_probed {
            Sign::Waiting
        } else {
            watch.is_probed = true;
            Sign::Doubtful
        };
        watch.next = now + watch.step;
        if now < verdict {
            watch.next = watch.next.min(verdict);
        }
        Some(sign)
    }

    /// Returns since when what was sent is without an answer.
    pub(crate) fn silent_since(&self) -> Option<Instant> {
        self.watch.as_ref().map(|watch| watch.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(40);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Looks whenever it is due, and returns when the link was first called silent.
    fn silent_after(pulse: &mut Pulse, heard: u64, start: Instant) -> Duration {
        loop {
            let now = pulse.due().expect("it is watched");
            match pulse.look(heard, now).expect("it is watched") {
                Sign::Silent => return now - start,
                Sign::Waiting | Sign::Doubtful => {}
                Sign::Alive => panic!("nothing has arrived"),
            }
        }
    }

    #[test]
    fn nobody_wakes_for_a_link_that_owes_nothing() {
        let mut pulse = Pulse::default();
        assert_eq!((pulse.due(), pulse.look(7, Instant::now())), (None, None));
        pulse.sent(7, RTT, Instant::now());
        assert_eq!(pulse.look(8, Instant::now()), Some(Sign::Alive));
        assert_eq!((pulse.due(), pulse.is_watching()), (None, false));
    }

    #[test]
    fn what_was_sent_may_be_unanswered_for_a_while_or_three_round_trips() {
        let start = Instant::now();
        for (rtt, after) in [(RTT, PATIENCE), (ms(900), ms(2700))] {
            let mut pulse = Pulse::default();
            pulse.sent(7, rtt, start);
            pulse.sent(7, rtt, start + ms(100));
            assert_eq!(silent_after(&mut pulse, 7, start), after, "from the first that was sent");
            assert_eq!(pulse.silent_since(), Some(start));
        }
    }

    #[test]
    fn a_link_is_probed_once_before_it_is_called_silent() {
        let start = Instant::now();
        let mut pulse = Pulse::default();
        pulse.sent(7, RTT, start);
        let signs: Vec<_> = std::iter::from_fn(|| {
            let now = pulse.due()?;
            pulse.look(7, now).filter(|sign| *sign != Sign::Silent)
        })
        .collect();
        assert_eq!(signs, [Sign::Doubtful, Sign::Waiting]);
    }

    #[test]
    fn after_a_change_of_network_the_first_probe_decides_whatever_was_watched() {
        let start = Instant::now();
        let mut pulse = Pulse::default();
        pulse.sent(7, RTT, start);
        pulse.moved(7, RTT, start + ms(400));
        assert_eq!(silent_after(&mut pulse, 7, start), ms(400) + RTT + CHANGE_PATIENCE);
    }

    #[test]
    fn a_silent_link_is_looked_at_until_it_lives() {
        let start = Instant::now();
        let mut pulse = Pulse::default();
        pulse.sent(7, RTT, start);
        let silent = start + silent_after(&mut pulse, 7, start);
        assert_eq!(pulse.due(), Some(silent + LOOK_AGAIN));
        assert_eq!(pulse.look(7, silent + LOOK_AGAIN), Some(Sign::Silent));
        assert_eq!(pulse.look(8, silent + LOOK_AGAIN * 2), Some(Sign::Alive));
        assert_eq!(pulse.due(), None);
    }
}
