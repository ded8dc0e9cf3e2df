//! Where a peer is, and what may be sent to a host that nobody has shown to be its own.
//!
//! Until a host has answered, it gets three bytes for each that came from there at most
//! (RFC 9000 §8.1 and §8.2). The library lets the datagram that crosses that bound go
//! whole, and pads whatever looks for a path to 1,200 bytes: a stranger with a connection
//! could have them sent to anybody for 40 bytes of its own. Another port of the same host
//! is no other host: address translation changes ports, and says so with what the person
//! types next.

use std::net::IpAddr;

/// Bytes that may be sent for each that was received.
const AMPLIFICATION_MAX: usize = 3;

/// Longest datagram that looks for a path, in bytes (RFC 9000 §8.2.1).
const CHALLENGE: usize = 1_200;

/// Where one peer is.
pub(super) struct Path {
    here: IpAddr,
    /// The host that the peer has shown to be its own, and the one before.
    shown: Option<IpAddr>,
    before: Option<IpAddr>,
    claimed: Option<Box<Claim>>,
}

/// A host from which datagrams came that anybody could have sent.
struct Claim {
    host: IpAddr,
    received: usize,
    sent: usize,
    /// How many answers to challenges the connection had when the host was first seen.
    answers: Option<u64>,
}

impl Path {
    /// Begins with whoever sent a first datagram of so many bytes; `proven` if it has
    /// answered before.
    pub(super) fn new(here: IpAddr, received: usize, proven: bool) -> Self {
        let claimed = (!proven).then(|| Box::new(Claim { received, ..Claim::of(here) }));
        Self { here, shown: proven.then_some(here), before: None, claimed }
    }

    /// Notes a datagram of the peer's, and tells whether it may be looked at. From another
    /// host it may not, until as much has come from there as an answer may cost.
    pub(super) fn admits(&mut self, from: IpAddr, bytes: usize) -> bool {
        if self.is_shown(from) {
            return true;
        }
        let claim = match &mut self.claimed {
            Some(claim) if claim.host == from => claim,
            other => other.insert(Box::new(Claim::of(from))),
        };
        claim.received = claim.received.saturating_add(bytes);
        from == self.here || claim.covers(CHALLENGE)
    }

    /// The handshake is complete: whoever sent its last message has read the others.
    pub(super) fn shake_hands(&mut self) {
        self.is_own(self.here);
    }

    /// The library sends to this host now, and has had so many answers to challenges.
    ///
    /// It looks only at the right answer, and we see only that there was one. One that is
    /// made up is of 1,200 bytes at least, so that it pays for what it could gain.
    fn look(&mut self, here: IpAddr, answers: impl FnOnce() -> u64) {
        self.here = here;
        let Some(claim) = self.claim_of(here) else { return };
        let answers = answers();
        let before = *claim.answers.get_or_insert(answers);
        if answers > before && claim.received >= CHALLENGE + CHALLENGE / AMPLIFICATION_MAX {
            self.is_own(here);
        }
    }

    /// Sees where the library sends to now.
    pub(super) fn look_at(&mut self, quic: &quinn_proto::Connection) {
        self.look(quic.remote_address().ip(), || quic.stats().frame_rx.path_response);
    }

    /// Tells whether nothing bounds what is sent.
    pub(super) fn is_proven(&self) -> bool {
        self.is_shown(self.here)
    }

    /// Tells whether a datagram of at most so many bytes may be sent.
    pub(super) fn covers(&self, bytes: usize) -> bool {
        let claim = self.claimed.as_ref().filter(|claim| claim.host == self.here);
        self.is_proven() || claim.is_some_and(|claim| claim.covers(bytes))
    }

    /// Tells whether a datagram that the library has written may go, and counts it if so.
    ///
    /// An answer to a challenge goes to where that came from, wherever the peer is by now,
    /// and many may have come before the first is answered.
    pub(super) fn lets_out(&mut self, to: IpAddr, bytes: usize) -> bool {
        if self.is_shown(to) {
            return true;
        }
        match self.claim_of(to) {
            Some(claim) if claim.covers(bytes) => {
                claim.sent = claim.sent.saturating_add(bytes);
                true
            }
            Some(_) | None => false,
        }
    }

    fn is_shown(&self, host: IpAddr) -> bool {
        [self.shown, self.before].contains(&Some(host))
    }

    fn claim_of(&mut self, host: IpAddr) -> Option<&mut Claim> {
        self.claimed.as_deref_mut().filter(|claim| claim.host == host)
    }

    fn is_own(&mut self, host: IpAddr) {
        self.claimed = None;
        if self.shown != Some(host) {
            self.before = self.shown.replace(host);
        }
    }
}

impl Claim {
    fn of(host: IpAddr) -> Self {
        Self { host, received: 0, sent: 0, answers: None }
    }

    fn covers(&self, bytes: usize) -> bool {
        let most = self.received.saturating_mul(AMPLIFICATION_MAX);
        self.sent.saturating_add(bytes) <= most
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const TRAIN: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
    const VICTIM: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));

    fn at_home() -> Path {
        let mut path = Path::new(HOME, 1_200, false);
        path.shake_hands();
        path
    }

    #[test]
    fn before_its_handshake_a_peer_gets_three_times_what_it_sent() {
        let mut path = Path::new(HOME, 1_200, false);
        assert!(!path.is_proven() && path.covers(3_600) && !path.covers(3_601));
        assert!(path.lets_out(HOME, 3_000));
        assert!(path.covers(600) && !path.covers(601));
        assert!(path.admits(HOME, 100), "it is where it was");
        assert!(path.covers(900) && !path.covers(901));
        path.shake_hands();
        assert!(path.is_proven() && path.covers(100_000));
        assert!(Path::new(HOME, 1_200, true).is_proven(), "it has answered a Retry");
    }

    #[test]
    fn from_another_host_nothing_counts_before_an_answer_is_paid_for() {
        let mut path = at_home();
        assert!(!path.admits(VICTIM, 40));
        assert!(!path.admits(VICTIM, 359), "in all");
        assert!(path.admits(VICTIM, 1), "400 bytes are worth 1,200");
        assert!(!path.admits(TRAIN, 40) && !path.admits(VICTIM, 40), "one after the other");
        assert!(path.admits(HOME, 1), "where it is nothing has changed");
        assert!(path.covers(100_000));
    }

    #[test]
    fn a_peer_that_moves_is_bounded_until_it_has_answered_from_there() {
        let mut path = at_home();
        assert!(path.admits(TRAIN, 400));
        path.look(TRAIN, || 7);
        assert!(!path.is_proven() && path.covers(1_200) && !path.covers(1_201));
        assert!(path.lets_out(HOME, 1_200) && path.lets_out(TRAIN, 1_200));
        assert!(!path.covers(1) && !path.lets_out(TRAIN, 1) && path.lets_out(HOME, 1_200));
        assert!(path.admits(HOME, 30), "what was on its way");
        assert!(path.admits(TRAIN, 30));
        path.look(TRAIN, || 8);
        assert!(!path.is_proven(), "no answer is as short");
        assert!(path.admits(TRAIN, 1_200));
        path.look(TRAIN, || 8);
        assert!(path.is_proven());
        assert!(path.admits(HOME, 30), "it may go back");
        path.look(HOME, || 8);
        assert!(path.is_proven());
    }

    #[test]
    fn a_move_that_failed_may_be_tried_again_from_what_has_come() {
        let mut path = at_home();
        assert!(path.admits(TRAIN, 1_000));
        path.look(TRAIN, || 0);
        assert!(path.lets_out(TRAIN, 1_200));
        path.look(HOME, || 0);
        assert!(path.is_proven(), "it is where it was");
        assert!(path.admits(TRAIN, 40), "1,040 bytes are worth 3,120");
        path.look(TRAIN, || 0);
        assert!(path.covers(1_920) && !path.covers(1_921));
    }

    #[test]
    fn what_was_taken_in_together_is_answered_only_as_far_as_it_is_paid_for() {
        let mut path = at_home();
        assert!(path.admits(VICTIM, 400));
        for _ in 0..15 {
            assert!(path.admits(VICTIM, 40), "nothing has been answered yet");
        }
        assert!(path.is_proven(), "only a move changes where it is");
        let out = (0..16).filter(|_| path.lets_out(VICTIM, CHALLENGE)).count();
        assert_eq!(out, 2, "1,000 bytes are worth 3,000");
        assert!(!path.admits(TRAIN, 40));
        assert!(!path.lets_out(VICTIM, CHALLENGE), "nor once somebody else is claimed to be");
        assert!(path.lets_out(HOME, CHALLENGE));
    }
}
