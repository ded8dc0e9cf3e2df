//! The tries at the gateways: which right goes with which link number, when to
//! try again and when to stop.
//!
//! Decides only. [`crate::session`] makes the connections, sends what is decided
//! here and reports what came of it.

use std::time::Duration;

use tegata_proto::claims::TICKET_LIFE_S;
use tegata_proto::code::Code;
use tegata_proto::id::LinkNumber;
use tegata_proto::login::Failure;

/// How long a ticket is good for at most, from when it arrived.
pub const TICKET_LIFE: Duration = Duration::from_secs(TICKET_LIFE_S);

/// Shortest and longest pause before a busy gateway is asked again.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Pause where a busy gateway names none.
const PAUSE: Duration = Duration::from_millis(500);

/// How many attaches with the ticket may be without an answer, one beside the other.
const SILENT_MAX: usize = 2;

/// Which of the two rights an attach shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// The ticket.
    Ticket,
    /// The resume grant.
    Grant,
}

/// What to do after an attach failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another attach is still without an answer: wait for it.
    Wait,
    /// Connect and attach again, after this pause.
    Again(Duration),
    /// Give up.
    Stop(Failure),
}

/// The attaches of one ticket.
#[derive(Debug)]
pub struct Attempts {
    shown: Shown,
    next: Option<LinkNumber>,
    open: Vec<LinkNumber>,
    /// Attaches with the ticket that were silent or cut, so that the ticket may
    /// be redeemed without our knowing.
    doubtful: Vec<LinkNumber>,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            shown: Shown::Ticket,
            next: Some(LinkNumber::FIRST),
            open: Vec::new(),
            doubtful: Vec::new(),
        }
    }
}

impl Attempts {
    /// Starts an attach, and returns what it shows and its number; nothing when
    /// all numbers are used.
    pub fn begin(&mut self) -> Option<(Shown, LinkNumber)> {
        let link = self.next?;
        self.next = link.next();
        self.open.push(link);
        Some((self.shown, link))
    }

    /// An attach got no answer for a while. Tells whether another may be begun
    /// beside it.
    pub fn fell_silent(&mut self, link: LinkNumber) -> bool {
        if !self.open.contains(&link) {
            return false;
        }
        self.doubt(link);
        let silent = self.open.iter().filter(|open| self.doubtful.contains(open)).count();
        self.shown == Shown::Ticket && silent < SILENT_MAX
    }

    /// No gateway was reached, `elapsed` after the ticket arrived. Whoever has reached one
    /// before tries on.
    pub fn unreached(&self, elapsed: Duration) -> Option<Duration> {
        let is_first = self.next == Some(LinkNumber::FIRST);
        (!is_first && elapsed < TICKET_LIFE).then(|| self.pause())
    }

    /// An attach was refused, `elapsed` after the ticket arrived.
    pub fn refused(&mut self, link: LinkNumber, failure: Failure, elapsed: Duration) -> Next {
        self.open.retain(|open| *open != link);
        let others = !self.open.is_empty();
        match failure.code {
            Code::Busy => {
                let pause = failure.retry_after_ms.map_or(PAUSE, Duration::from_millis);
                let pause = pause.clamp(PAUSE_MIN, PAUSE_MAX);
                let in_time = elapsed + pause < TICKET_LIFE;
                if in_time { Next::Again(pause) } else { Next::Stop(failure) }
            }
            // An earlier or a later attach of our own came first.
            Code::TicketUsed | Code::LinkStale | Code::Superseded if others => Next::Wait,
            Code::TicketUsed if self.shown == Shown::Ticket && !self.doubtful.is_empty() => {
                self.shown = Shown::Grant;
                Next::Again(Duration::ZERO)
            }
            // Nothing but a session ends well.
            code if code.exit() == 0 => Next::Stop(Code::Malformed.into()),
            _ => Next::Stop(failure),
        }
    }

    /// An attach was cut, or waited for in vain, `elapsed` after the ticket
    /// arrived.
    pub fn unanswered(&mut self, link: LinkNumber, elapsed: Duration) -> Next {
        self.open.retain(|open| *open != link);
        self.doubt(link);
        if !self.open.is_empty() {
            return Next::Wait;
        }
        if elapsed >= TICKET_LIFE {
            return Next::Stop(Code::Unreachable.into());
        }
        match self.shown {
            // It opens one link at most, however often it is shown.
            Shown::Ticket if self.doubtful.len() < 2 => Next::Again(Duration::ZERO),
            Shown::Ticket | Shown::Grant => Next::Again(self.pause()),
        }
    }

    /// Returns a pause that grows with how many attaches there were.
    fn pause(&self) -> Duration {
        let begun = self.next.map_or(u64::MAX, |next| next.0 - LinkNumber::FIRST.0);
        let doubled = u32::try_from(begun.saturating_sub(2)).unwrap_or(u32::MAX);
        PAUSE.saturating_mul(2_u32.saturating_pow(doubled)).min(PAUSE_MAX)
    }

    /// Returns the number of the next link; nothing when all are used.
    pub fn next_link(&self) -> Option<LinkNumber> {
        self.next
    }

    /// Tells whether an attach is without an answer.
    pub fn is_waiting(&self) -> bool {
        !self.open.is_empty()
    }

    fn doubt(&mut self, link: LinkNumber) {
        if self.shown == Shown::Ticket && !self.doubtful.contains(&link) {
            self.doubtful.push(link);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(1);
    const LATE: Duration = Duration::from_secs(30);

    fn begun() -> Attempts {
        let mut attempts = Attempts::default();
        assert_eq!(attempts.begin(), Some((Shown::Ticket, LinkNumber(1))));
        attempts
    }

    fn busy(retry_after_ms: Option<u64>) -> Failure {
        Failure { code: Code::Busy, retry_after_ms }
    }

    #[test]
    fn a_busy_gateway_is_asked_again_with_the_ticket_until_it_expires() {
        let mut attempts = begun();
        let next = attempts.refused(LinkNumber(1), busy(Some(700)), SOON);
        assert_eq!(next, Next::Again(Duration::from_millis(700)));
        assert_eq!(attempts.begin(), Some((Shown::Ticket, LinkNumber(2))));
        assert_eq!(attempts.refused(LinkNumber(2), busy(None), SOON), Next::Again(PAUSE));
        assert_eq!(attempts.begin(), Some((Shown::Ticket, LinkNumber(3))));
        let next = attempts.refused(LinkNumber(3), busy(None), LATE);
        assert_eq!(next, Next::Stop(busy(None)));
    }

    #[test]
    fn the_pause_of_a_busy_gateway_is_bounded_both_ways() {
        let next = begun().refused(LinkNumber(1), busy(Some(0)), SOON);
        assert_eq!(next, Next::Again(PAUSE_MIN));
        let next = begun().refused(LinkNumber(1), busy(Some(u64::MAX)), SOON);
        assert_eq!(next, Next::Again(PAUSE_MAX));
    }

    #[test]
    fn an_unanswered_ticket_is_tried_once_more_and_then_the_grant() {
        let mut attempts = begun();
        assert_eq!(attempts.unanswered(LinkNumber(1), SOON), Next::Again(Duration::ZERO));
        assert_eq!(attempts.begin(), Some((Shown::Ticket, LinkNumber(2))));
        let next = attempts.refused(LinkNumber(2), Code::TicketUsed.into(), SOON);
        assert_eq!(next, Next::Again(Duration::ZERO));
        assert_eq!(attempts.begin(), Some((Shown::Grant, LinkNumber(3))));
        let next = attempts.refused(LinkNumber(3), Code::ResumeLost.into(), SOON);
        assert_eq!(next, Next::Stop(Code::ResumeLost.into()));
    }

    #[test]
    fn an_unanswered_grant_is_tried_for_as_long_as_a_ticket_would_be() {
        let mut attempts = begun();
        attempts.unanswered(LinkNumber(1), SOON);
        attempts.begin();
        attempts.refused(LinkNumber(2), Code::TicketUsed.into(), SOON);
        assert_eq!(attempts.begin(), Some((Shown::Grant, LinkNumber(3))));
        assert_eq!(attempts.unanswered(LinkNumber(3), SOON), Next::Again(2 * PAUSE));
        assert_eq!(attempts.begin(), Some((Shown::Grant, LinkNumber(4))));
        let next = attempts.unanswered(LinkNumber(4), LATE);
        assert_eq!(next, Next::Stop(Code::Unreachable.into()));
    }

    #[test]
    fn an_unanswered_ticket_is_tried_until_it_expires() {
        let mut attempts = begun();
        assert_eq!(attempts.unanswered(LinkNumber(1), SOON), Next::Again(Duration::ZERO));
        for (link, pause_ms) in [(2, 500), (3, 1_000), (4, 2_000), (5, 4_000), (6, 5_000)] {
            let (link, pause) = (LinkNumber(link), Duration::from_millis(pause_ms));
            assert_eq!(attempts.begin(), Some((Shown::Ticket, link)));
            assert_eq!(attempts.unanswered(link, SOON), Next::Again(pause));
        }
        assert_eq!(attempts.begin(), Some((Shown::Ticket, LinkNumber(7))));
        let next = attempts.refused(LinkNumber(7), Code::TicketUsed.into(), SOON);
        assert_eq!(next, Next::Again(Duration::ZERO));
        assert_eq!(attempts.begin(), Some((Shown::Grant, LinkNumber(8))));
        let next = begun().unanswered(LinkNumber(1), LATE);
        assert_eq!(next, Next::Stop(Code::Unreachable.into()), "expired by now");
    }

    #[test]
    fn a_used_ticket_that_was_always_answered_is_the_end() {
        let next = begun().refused(LinkNumber(1), Code::TicketUsed.into(), SOON);
        assert_eq!(next, Next::Stop(Code::TicketUsed.into()), "somebody else used it");
    }

    #[test]
    fn beside_a_silent_attach_one_more_is_begun_and_its_refusal_is_no_end() {
        let mut attempts = begun();
        assert!(attempts.fell_silent(LinkNumber(1)));
        assert_eq!(attempts.begin(), Some((Shown::Ticket, LinkNumber(2))));
        let next = attempts.refused(LinkNumber(2), Code::TicketUsed.into(), SOON);
        assert_eq!(next, Next::Wait, "the first may still be answered");
        assert!(attempts.is_waiting());
        assert_eq!(attempts.unanswered(LinkNumber(1), SOON), Next::Again(Duration::ZERO));
    }

    #[test]
    fn beside_two_silent_attaches_no_other_is_begun() {
        let mut attempts = begun();
        assert!(attempts.fell_silent(LinkNumber(1)));
        attempts.begin();
        assert!(!attempts.fell_silent(LinkNumber(2)));
        assert!(!attempts.fell_silent(LinkNumber(7)), "never begun");
        assert_eq!(attempts.unanswered(LinkNumber(2), SOON), Next::Wait);
        assert_eq!(attempts.unanswered(LinkNumber(1), SOON), Next::Again(PAUSE));
        // Those are over, and the next one may be as silent as the first was.
        attempts.begin();
        assert!(attempts.fell_silent(LinkNumber(3)));
    }

    #[test]
    fn a_gateway_that_was_reached_once_is_dialled_until_the_ticket_expires() {
        assert_eq!(Attempts::default().unreached(SOON), None, "nobody answers there");
        let mut attempts = begun();
        attempts.unanswered(LinkNumber(1), SOON);
        assert_eq!(attempts.unreached(SOON), Some(PAUSE));
        assert_eq!(attempts.unreached(LATE), None);
    }

    #[test]
    fn every_other_code_ends_the_tries_and_none_ends_them_well() {
        for code in Code::ALL.iter().copied().chain([Code::Unknown]) {
            let next = begun().refused(LinkNumber(1), code.into(), SOON);
            match code {
                Code::Busy => assert_eq!(next, Next::Again(PAUSE)),
                Code::LoggedOff => assert_eq!(next, Next::Stop(Code::Malformed.into())),
                code => assert_eq!(next, Next::Stop(code.into())),
            }
        }
    }

    #[test]
    fn no_link_number_is_used_twice() {
        let mut attempts = Attempts { next: Some(LinkNumber(u64::MAX)), ..Attempts::default() };
        assert_eq!(attempts.begin(), Some((Shown::Ticket, LinkNumber(u64::MAX))));
        assert_eq!(attempts.begin(), None);
    }
}
