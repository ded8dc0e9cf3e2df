//! The tries to come back to a session whose link is lost: what each asks for,
//! when the next one follows, and what ends them.
//!
//! Decides only; link numbers come from the run's [`crate::claim`], which also
//! makes the connections. The tries of a ticket are [`crate::attach`]'s.

use std::time::Duration;

use tegata_proto::claims::GRANT_LIFE_S;
use tegata_proto::code::Code;
use tegata_proto::id::LinkNumber;
use tegata_proto::login::Failure;

use crate::attach::Next;

/// How long after the loss the tries follow each other quickly.
pub const QUICK: Duration = Duration::from_secs(15);

/// Pause between quick tries.
pub const QUICK_PAUSE: Duration = Duration::from_millis(250);

/// Shortest pause between later tries, before half of it is left to chance.
const SLOW_MIN: Duration = Duration::from_millis(500);

/// Longest pause between later tries, before half of it is left to chance.
pub const SLOW_MAX: Duration = Duration::from_secs(10);

/// Longest pause that a gateway may ask for.
const ASKED_MAX: Duration = Duration::from_mins(1);

/// How long nobody but somebody else of our authority may answer for a gateway before
/// that is the end: one that was started again with another key never comes back.
const REPLACED_FOR: Duration = Duration::from_mins(1);

/// After how long the tries end in any case: no grant is good for longer.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(GRANT_LIFE_S);

/// How many attaches may be without an answer at a time.
const OPEN_MAX: usize = 2;

/// What an attach asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// To go on where the last link stopped.
    Resume,
    /// The desktop from the beginning, as its own login shows it.
    Fresh,
}

/// The attaches of one outage.
#[derive(Debug)]
pub struct Comeback {
    wish: Wish,
    open: Vec<LinkNumber>,
    pause: Duration,
    /// Since when each try has found somebody else in a gateway's place, counted from the
    /// loss.
    replaced_at: Option<Duration>,
}

impl Comeback {
    /// Begins with a wish.
    pub fn new(wish: Wish) -> Self {
        Self { wish, open: Vec::new(), pause: Duration::ZERO, replaced_at: None }
    }

    /// Returns what the next attach asks for.
    pub fn wish(&self) -> Wish {
        self.wish
    }

    /// Notes that an attach is on its way.
    pub fn begun(&mut self, link: LinkNumber) {
        self.open.push(link);
        self.replaced_at = None;
    }

    /// Tells whether an attach is without an answer.
    pub fn is_waiting(&self) -> bool {
        !self.open.is_empty()
    }

    /// An attach got no answer for a while. Tells whether another may be begun
    /// beside it: not where the gateway may be dialling the desktop for it.
    pub fn fell_silent(&self, link: LinkNumber) -> bool {
        match self.wish {
            Wish::Resume => self.open.contains(&link) && self.open.len() < OPEN_MAX,
            Wish::Fresh => false,
        }
    }

    /// An attach was refused, `elapsed` after the loss.
    pub fn refused(
        &mut self,
        link: LinkNumber,
        failure: Failure,
        elapsed: Duration,
        dice: u32,
    ) -> Next {
        self.closed(link);
        match failure.code {
            // A later attach of our own came first, or an earlier one comes late.
            Code::LinkStale | Code::Superseded if self.is_waiting() => Next::Wait,
            Code::LinkStale => self.again(Duration::ZERO, elapsed, dice),
            // What that one is told counts: it may have found the desktop's connection.
            Code::ResumeLost if self.wish == Wish::Resume && self.is_waiting() => Next::Wait,
            Code::ResumeLost if self.wish == Wish::Resume => {
                self.wish = Wish::Fresh;
                Next::Again(Duration::ZERO)
            }
            // The grant has run out, and nothing is said of the desktop.
            Code::TicketExpired => Next::Stop(Code::LoginAgain.into()),
            code if is_final(code) => Next::Stop(failure),
            _ => {
                let asked = failure.retry_after_ms.map_or(Duration::ZERO, Duration::from_millis);
                self.again(asked.min(ASKED_MAX), elapsed, dice)
            }
        }
    }

    /// An attach was cut, or waited for in vain, `elapsed` after the loss.
    pub fn unanswered(&mut self, link: LinkNumber, elapsed: Duration, dice: u32) -> Next {
        self.closed(link);
        self.unreached(elapsed, dice)
    }

    /// No connection was made, `elapsed` after the loss.
    pub fn unreached(&mut self, elapsed: Duration, dice: u32) -> Next {
        // Where nobody answers, nobody is in a gateway's place.
        self.replaced_at = None;
        if self.is_waiting() { Next::Wait } else { self.again(Duration::ZERO, elapsed, dice) }
    }

    /// Somebody of our authority answered, `elapsed` after the loss, who is not the
    /// gateway that was named. Strangers who answer do not count: a hotel's let nobody
    /// through until the person has dealt with them.
    pub fn replaced(&mut self, elapsed: Duration, dice: u32) -> Next {
        if self.is_waiting() {
            return Next::Wait;
        }
        let since = *self.replaced_at.get_or_insert(elapsed);
        if elapsed.saturating_sub(since) >= REPLACED_FOR {
            return Next::Stop(Code::TlsFailed.into());
        }
        self.again(Duration::ZERO, elapsed, dice)
    }

    fn closed(&mut self, link: LinkNumber) {
        self.open.retain(|open| *open != link);
    }

    /// Tries again, after `least` at the earliest.
    fn again(&mut self, least: Duration, elapsed: Duration, dice: u32) -> Next {
        if elapsed >= GIVEN_UP_AFTER {
            return Next::Stop(Code::ResumeLost.into());
        }
        Next::Again(self.pause(elapsed, dice).max(least))
    }

    fn pause(&mut self, elapsed: Duration, dice: u32) -> Duration {
        if elapsed < QUICK {
            return QUICK_PAUSE;
        }
        self.pause = (self.pause * 2).clamp(SLOW_MIN, SLOW_MAX);
        let half = self.pause / 2;
        half + half.mul_f64(f64::from(dice) / f64::from(u32::MAX))
    }
}

/// Tells whether a gateway that says this ends the session for this agent. After
/// any other word only the link is lost.
pub fn is_final(code: Code) -> bool {
    match code {
        Code::Busy
        | Code::Unavailable
        | Code::Throttled
        | Code::Unreachable
        | Code::Disconnected
        | Code::Superseded
        | Code::Timeout
        | Code::Internal => false,
        Code::LoggedOff
        | Code::Configuration
        | Code::TlsFailed
        | Code::PinMismatch
        | Code::AgentTooOld
        | Code::Refused
        | Code::FactorFailed
        | Code::PasswordExpired
        | Code::AccountDisabled
        | Code::TicketExpired
        | Code::NoEntitlement
        | Code::NotAllowedHere
        | Code::PoolExhausted
        | Code::InUse
        | Code::DesktopUnreachable
        | Code::DesktopLost
        | Code::ResumeLost
        | Code::SessionEnded
        | Code::IdleLimit
        | Code::TimeLimit
        | Code::LoginAgain
        | Code::TakenOver
        | Code::EndedByAdministrator
        | Code::DeviceRevoked
        | Code::TicketUsed
        | Code::TicketInvalid
        | Code::WrongKey
        | Code::WrongGroup
        | Code::LinkStale
        | Code::Malformed
        | Code::Unsupported
        | Code::Unknown => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(1);
    const LATE: Duration = Duration::from_secs(20);
    const HALF: u32 = u32::MAX / 2;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn begun(wish: Wish) -> Comeback {
        let mut comeback = Comeback::new(wish);
        comeback.begun(LinkNumber(2));
        comeback
    }

    fn refused(wish: Wish, code: Code) -> (Next, Wish) {
        let mut comeback = begun(wish);
        let next = comeback.refused(LinkNumber(2), code.into(), SOON, HALF);
        (next, comeback.wish())
    }

    #[test]
    fn what_is_lost_for_a_resumption_is_asked_for_from_the_beginning_once() {
        let again = Next::Again(Duration::ZERO);
        assert_eq!(refused(Wish::Resume, Code::ResumeLost), (again, Wish::Fresh));
        let mut two = begun(Wish::Resume);
        two.begun(LinkNumber(3));
        let lost = |two: &mut Comeback, link| {
            (two.refused(LinkNumber(link), Code::ResumeLost.into(), SOON, HALF), two.wish())
        };
        assert_eq!(lost(&mut two, 3), (Next::Wait, Wish::Resume), "the other may go on with it");
        assert_eq!(lost(&mut two, 2), (again, Wish::Fresh));
        let stop = Next::Stop(Code::ResumeLost.into());
        assert_eq!(refused(Wish::Fresh, Code::ResumeLost), (stop, Wish::Fresh));
    }

    #[test]
    fn every_code_ends_the_tries_or_is_followed_by_another_that_asks_the_same() {
        for wish in [Wish::Resume, Wish::Fresh] {
            for code in Code::ALL.iter().copied().chain([Code::Unknown]) {
                let (next, then) = refused(wish, code);
                let told = match code {
                    Code::ResumeLost if wish == Wish::Resume => continue,
                    Code::TicketExpired => Next::Stop(Code::LoginAgain.into()),
                    code if is_final(code) && code != Code::LinkStale => Next::Stop(code.into()),
                    _ => Next::Again(QUICK_PAUSE),
                };
                assert_eq!((next, then), (told, wish), "{code}");
            }
        }
        for code in [
            Code::SessionEnded,
            Code::EndedByAdministrator,
            Code::TakenOver,
            Code::TicketExpired,
            Code::DeviceRevoked,
        ] {
            assert!(is_final(code), "{code}");
        }
    }

    #[test]
    fn tries_are_quick_at_first_and_then_ever_slower_by_chance() {
        let mut comeback = Comeback::new(Wish::Resume);
        let mut unreached = |elapsed, dice| match comeback.unreached(elapsed, dice) {
            Next::Again(pause) => pause,
            other => panic!("{other:?}"),
        };
        assert_eq!(unreached(Duration::ZERO, 0), QUICK_PAUSE);
        assert_eq!(unreached(ms(14_999), u32::MAX), QUICK_PAUSE);
        let pauses: Vec<_> = (0..7).map(|_| unreached(QUICK, 0)).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 5000, 5000].map(ms));
        assert_eq!(unreached(LATE, u32::MAX), SLOW_MAX);
        let middle = unreached(LATE, HALF);
        assert!((ms(7499)..=ms(7500)).contains(&middle), "{middle:?}");
    }

    #[test]
    fn tries_end_when_no_grant_can_be_good_any_more() {
        let lost = Next::Stop(Code::ResumeLost.into());
        let just = ms(GRANT_LIFE_S * 1_000 - 1);
        let mut comeback = begun(Wish::Resume);
        assert_eq!(comeback.unreached(GIVEN_UP_AFTER, HALF), Next::Wait);
        assert_eq!(comeback.unanswered(LinkNumber(2), GIVEN_UP_AFTER, HALF), lost);
        assert!(matches!(comeback.unreached(just, HALF), Next::Again(_)));
        assert_eq!(comeback.unreached(GIVEN_UP_AFTER, HALF), lost);
        let busy =
            begun(Wish::Fresh).refused(LinkNumber(2), Code::Busy.into(), GIVEN_UP_AFTER, HALF);
        assert_eq!(busy, lost);
    }

    #[test]
    fn somebody_else_in_a_gateways_place_is_the_end_after_a_minute() {
        let mut comeback = Comeback::new(Wish::Resume);
        let goes_on = |next| matches!(next, Next::Again(_));
        assert!(goes_on(comeback.replaced(LATE, HALF)));
        assert!(goes_on(comeback.replaced(LATE + REPLACED_FOR / 2, HALF)));
        let outage = LATE + REPLACED_FOR;
        assert!(goes_on(comeback.unreached(outage, HALF)), "an outage says nothing");
        let hours = outage * 100;
        assert!(goes_on(comeback.replaced(hours, HALF)), "nor does it count to the minute");
        comeback.begun(LinkNumber(2));
        assert_eq!(comeback.replaced(hours + REPLACED_FOR, HALF), Next::Wait, "it is there");
        let later = hours + REPLACED_FOR * 2;
        assert!(goes_on(comeback.unanswered(LinkNumber(2), later, HALF)));
        assert!(goes_on(comeback.replaced(later, HALF)), "the minute was of the one just found");
        let end = later + REPLACED_FOR;
        assert_eq!(comeback.replaced(end, HALF), Next::Stop(Code::TlsFailed.into()));
    }

    #[test]
    fn a_pause_that_a_gateway_asks_for_is_kept_within_a_minute() {
        for (asked, kept) in [(0, 250), (100, 250), (700, 700), (u64::MAX, 60_000)] {
            let failure = Failure { code: Code::Busy, retry_after_ms: Some(asked) };
            let next = begun(Wish::Resume).refused(LinkNumber(2), failure, SOON, HALF);
            assert_eq!(next, Next::Again(ms(kept)), "{asked}");
        }
    }

    #[test]
    fn beside_a_silent_resumption_one_more_is_begun_and_beside_a_fresh_dial_none() {
        let mut comeback = begun(Wish::Resume);
        assert!(!comeback.fell_silent(LinkNumber(7)), "never begun");
        assert!(comeback.fell_silent(LinkNumber(2)));
        comeback.begun(LinkNumber(3));
        assert!(!comeback.fell_silent(LinkNumber(3)), "two are enough");
        let stale = comeback.refused(LinkNumber(2), Code::LinkStale.into(), SOON, HALF);
        assert_eq!(stale, Next::Wait, "the later one came first");
        assert_eq!(comeback.unanswered(LinkNumber(3), SOON, HALF), Next::Again(QUICK_PAUSE));
        assert!(!comeback.is_waiting());
        assert!(!begun(Wish::Fresh).fell_silent(LinkNumber(2)));
    }

    #[test]
    fn of_two_attaches_the_last_to_fail_is_followed_by_another() {
        let mut comeback = begun(Wish::Resume);
        comeback.begun(LinkNumber(3));
        assert_eq!(comeback.unanswered(LinkNumber(3), SOON, HALF), Next::Wait);
        assert_eq!(comeback.unanswered(LinkNumber(2), SOON, HALF), Next::Again(QUICK_PAUSE));
    }
}
