use tegata_proto::claims::Confirmation;
use tegata_proto::encoding::Bytes;
use tegata_proto::id::{Epoch, SessionId, TicketId};
use uuid::Uuid;

use super::*;
use crate::desktop::{Holder, Quarantine};
use crate::session::{Cause, REQUESTED_LIMIT};

/// When the ticket of these tests is issued, in Unix seconds.
const ISSUED_S: u64 = 1_000;

/// A good ticket at a good moment. Each test spoils one thing.
struct Case {
    claims: Claims,
    link: LinkNumber,
    owner: UserId,
    state: session::State,
    highest_link: LinkNumber,
    desktop: Desktop,
    now: Timestamp,
}

fn user(text: &str) -> UserId {
    text.parse().expect("a user")
}

fn good() -> Case {
    let sato = user("honsho/sato");
    let issued = Timestamp::from_millis(ISSUED_S * 1_000);
    Case {
        claims: Claims {
            iss: "tegata".into(),
            aud: "default".parse().expect("a name"),
            sub: sato.clone(),
            sid: SessionId(Uuid::from_u128(1)),
            epoch: Epoch(3),
            jti: TicketId(Uuid::from_u128(2)),
            iat: ISSUED_S,
            exp: ISSUED_S + TICKET_LIFE_S,
            cnf: Confirmation { jkt: Bytes([0; 32]) },
        },
        link: LinkNumber::FIRST,
        owner: sato.clone(),
        state: session::State::requested(issued),
        highest_link: LinkNumber(0),
        desktop: Desktop {
            state: desktop::State::Assigned,
            holder: Some(Holder { user: sato, account: None }),
            epoch: Epoch(3),
            session: None,
            used: false,
            pin: None,
        },
        now: issued,
    }
}

/// A good grant: its session has had one link, and wants the next.
fn good_grant() -> Case {
    let mut case = good();
    case.claims.exp = ISSUED_S + GRANT_LIFE_MAX.as_secs();
    case.state = session::State::Active;
    case.highest_link = LinkNumber::FIRST;
    case.link = LinkNumber(2);
    case.desktop.session = Some(case.claims.sid);
    case.desktop.used = true;
    case
}

fn verdict(spoil: impl FnOnce(&mut Case)) -> Result<(), Code> {
    let mut case = good();
    spoil(&mut case);
    let session =
        Standing { user: &case.owner, state: case.state, highest_link: case.highest_link };
    judge(&case.claims, case.link, &session, &case.desktop, case.now)
}

fn grant_verdict(spoil: impl FnOnce(&mut Case)) -> Result<(), Code> {
    let mut case = good_grant();
    spoil(&mut case);
    let session =
        Standing { user: &case.owner, state: case.state, highest_link: case.highest_link };
    judge_grant(&case.claims, case.link, &session, &case.desktop, case.now)
}

#[test]
fn a_good_ticket_is_good() {
    assert_eq!(verdict(|_| ()), Ok(()));
}

#[test]
fn a_ticket_of_another_person_or_epoch_opens_nothing() {
    assert_eq!(verdict(|c| c.claims.sub = user("honsho/tanaka")), Err(Code::TicketInvalid));
    assert_eq!(verdict(|c| c.claims.sub = user("gaikyoku/sato")), Err(Code::TicketInvalid));
    for epoch in [0, 2, 4, u64::MAX] {
        assert_eq!(verdict(|c| c.claims.epoch = Epoch(epoch)), Err(Code::SessionEnded), "{epoch}");
        assert_eq!(verdict(|c| c.desktop.epoch = Epoch(epoch)), Err(Code::SessionEnded), "{epoch}");
    }
}

#[test]
fn the_desktop_has_to_be_the_persons_now() {
    let since = Timestamp::from_millis(1);
    let in_state = |state| verdict(|c| c.desktop.state = state);
    assert_eq!(in_state(desktop::State::Assigned), Ok(()));
    assert_eq!(in_state(desktop::State::Draining), Ok(()), "what runs is finished");
    for state in [
        desktop::State::Starting,
        desktop::State::Ready { since },
        desktop::State::Recycling { since },
        desktop::State::Quarantined { reason: Quarantine::Unreachable, since },
        desktop::State::Quarantined { reason: Quarantine::CertificateChanged, since },
        desktop::State::Quarantined { reason: Quarantine::Used, since },
    ] {
        assert_eq!(in_state(state), Err(Code::SessionEnded), "{state:?}");
    }
    let tanaka = Holder { user: user("honsho/tanaka"), account: None };
    assert_eq!(verdict(|c| c.desktop.holder = Some(tanaka)), Err(Code::SessionEnded));
    assert_eq!(verdict(|c| c.desktop.holder = None), Err(Code::SessionEnded));
}

#[test]
fn only_a_session_that_waits_for_its_ticket_takes_one() {
    let until = Timestamp::from_millis(u64::MAX);
    let in_state = |state| verdict(|c| c.state = state);
    for (state, code) in [
        (session::State::Starting { until }, Code::TicketUsed),
        (session::State::Active, Code::TicketUsed),
        (session::State::Returning { until }, Code::TicketUsed),
        (session::State::Detached { until }, Code::TicketUsed),
        (session::State::Ending { cause: Cause::TakenOver }, Code::TakenOver),
        (session::State::Ended { cause: Cause::NeverAttached }, Code::SessionEnded),
    ] {
        assert_eq!(in_state(state), Err(code), "{state:?}");
    }
}

#[test]
fn the_session_waits_for_its_ticket_as_long_as_the_ticket_lives_and_no_longer() {
    let at = |millis: u64| verdict(|c| c.now = Timestamp::from_millis(millis));
    let end = ISSUED_S * 1_000 + u64::try_from(REQUESTED_LIMIT.as_millis()).expect("it fits");
    assert_eq!(end, 1_035_000);
    assert_eq!(at(end - 1), Ok(()));
    assert_eq!(at(end), Err(Code::TicketExpired));
}

#[test]
fn a_clock_may_be_off_by_the_leeway_and_not_by_a_second_more() {
    // The session's own deadline is out of the way, so that the claims decide.
    let at = |seconds: u64, spoil: fn(&mut Claims)| {
        verdict(|c| {
            c.state = session::State::Requested { until: Timestamp::from_millis(u64::MAX) };
            c.now = Timestamp::from_millis(seconds * 1_000 + 999);
            spoil(&mut c.claims);
        })
    };
    let untouched = |_: &mut Claims| ();
    assert_eq!(at(ISSUED_S - LEEWAY_S, untouched), Ok(()), "signed five seconds from now");
    assert_eq!(at(ISSUED_S - LEEWAY_S - 1, untouched), Err(Code::TicketInvalid));

    let end = ISSUED_S + TICKET_LIFE_S;
    assert_eq!(at(end, untouched), Ok(()));
    assert_eq!(at(end + LEEWAY_S, untouched), Ok(()), "over for five seconds");
    assert_eq!(at(end + LEEWAY_S + 1, untouched), Err(Code::TicketExpired));
}

#[test]
fn a_ticket_lives_from_its_issue_and_no_longer_than_the_limit() {
    let with_exp = |exp: u64| verdict(|c| c.claims.exp = exp);
    assert_eq!(with_exp(ISSUED_S), Ok(()), "a second is a life");
    assert_eq!(with_exp(ISSUED_S - 1), Err(Code::TicketInvalid), "ends before it begins");
    assert_eq!(with_exp(ISSUED_S + TICKET_LIFE_S + 1), Err(Code::TicketInvalid), "lives too long");
    assert_eq!(with_exp(u64::MAX), Err(Code::TicketInvalid));
    assert_eq!(verdict(|c| c.claims.iat = u64::MAX), Err(Code::TicketInvalid));
    assert_eq!(verdict(|c| c.claims.iat = 0), Err(Code::TicketInvalid));
}

#[test]
fn a_link_needs_a_number_above_the_highest() {
    let judged = |link, highest| {
        verdict(|c| {
            c.link = LinkNumber(link);
            c.highest_link = LinkNumber(highest);
        })
    };
    assert_eq!(judged(0, 0), Err(Code::LinkStale), "the number of a login's proof");
    assert_eq!(judged(1, 0), Ok(()));
    assert_eq!(judged(1, 1), Err(Code::LinkStale));
    assert_eq!(judged(2, 1), Ok(()));
    assert_eq!(judged(9, 1), Ok(()), "attempts that never arrived leave gaps");
    assert_eq!(judged(u64::MAX, u64::MAX), Err(Code::LinkStale));
}

#[test]
fn a_good_grant_is_good_as_often_as_it_is_shown() {
    assert_eq!(grant_verdict(|_| ()), Ok(()));
    assert_eq!(grant_verdict(|_| ()), Ok(()));
}

#[test]
fn a_grant_of_another_person_epoch_or_session_opens_nothing() {
    let other = |c: &mut Case| c.claims.sub = user("honsho/tanaka");
    assert_eq!(grant_verdict(other), Err(Code::TicketInvalid));
    for epoch in [0, 2, 4, u64::MAX] {
        let judged = grant_verdict(|c| c.claims.epoch = Epoch(epoch));
        assert_eq!(judged, Err(Code::SessionEnded), "{epoch}");
        let judged = grant_verdict(|c| c.desktop.epoch = Epoch(epoch));
        assert_eq!(judged, Err(Code::SessionEnded), "{epoch}");
    }
    for session in [None, Some(SessionId(Uuid::from_u128(9)))] {
        let judged = grant_verdict(|c| c.desktop.session = session);
        assert_eq!(judged, Err(Code::SessionEnded), "the links are {session:?}'s");
    }
}

#[test]
fn a_grant_needs_the_desktop_to_be_the_persons_now() {
    let since = Timestamp::from_millis(1);
    let in_state = |state| grant_verdict(|c| c.desktop.state = state);
    assert_eq!(in_state(desktop::State::Assigned), Ok(()));
    assert_eq!(in_state(desktop::State::Draining), Ok(()), "what runs is finished");
    for state in [
        desktop::State::Starting,
        desktop::State::Ready { since },
        desktop::State::Recycling { since },
        desktop::State::Quarantined { reason: Quarantine::Used, since },
    ] {
        assert_eq!(in_state(state), Err(Code::SessionEnded), "{state:?}");
    }
    let tanaka = Holder { user: user("honsho/tanaka"), account: None };
    let judged = grant_verdict(|c| c.desktop.holder = Some(tanaka));
    assert_eq!(judged, Err(Code::SessionEnded));
}

#[test]
fn a_grant_opens_nothing_before_its_ticket_and_nothing_after_the_end() {
    let now = good_grant().now;
    let later = Timestamp::from_millis(now.as_millis() + 1);
    for (state, judged) in [
        (session::State::Requested { until: later }, Err(Code::ResumeLost)),
        (session::State::Requested { until: now }, Err(Code::SessionEnded)),
        (session::State::Starting { until: later }, Ok(())),
        (session::State::Starting { until: now }, Err(Code::SessionEnded)),
        (session::State::Active, Ok(())),
        (session::State::Returning { until: later }, Ok(())),
        // The attach before this one takes too long, and this one takes its place.
        (session::State::Returning { until: now }, Ok(())),
        (session::State::Detached { until: later }, Ok(())),
        (session::State::Detached { until: now }, Err(Code::SessionEnded)),
    ] {
        assert_eq!(grant_verdict(|c| c.state = state), judged, "{state:?}");
    }
}

#[test]
fn whoever_was_away_when_their_session_ended_is_told_who_ended_it() {
    for (cause, code) in [
        (Cause::LoggedOff, Code::SessionEnded),
        (Cause::NeverAttached, Code::SessionEnded),
        (Cause::DesktopUnreachable, Code::SessionEnded),
        (Cause::GraceExpired, Code::SessionEnded),
        (Cause::TakenOver, Code::TakenOver),
        (Cause::Administrator, Code::EndedByAdministrator),
        (Cause::TimeLimit, Code::TimeLimit),
    ] {
        for state in [session::State::Ending { cause }, session::State::Ended { cause }] {
            assert_eq!(grant_verdict(|c| c.state = state), Err(code), "{state:?}");
            assert_eq!(verdict(|c| c.state = state), Err(code), "{state:?}");
            let other = grant_verdict(|c| {
                c.state = state;
                c.claims.sub = user("honsho/tanaka");
            });
            assert_eq!(other, Err(Code::TicketInvalid), "only to themselves");
        }
    }
}

#[test]
fn a_grant_lives_for_hours_and_not_longer_than_the_limit() {
    let at =
        |seconds: u64| grant_verdict(|c| c.now = Timestamp::from_millis(seconds * 1_000 + 999));
    for early in [ISSUED_S - 1, ISSUED_S - LEEWAY_S - 1, 0] {
        assert_eq!(at(early), Ok(()), "the clock was set back to {early}");
    }
    let end = ISSUED_S + GRANT_LIFE_MAX.as_secs();
    assert_eq!(at(end + LEEWAY_S), Ok(()), "over for five seconds");
    assert_eq!(at(end + LEEWAY_S + 1), Err(Code::TicketExpired));

    let with_exp = |exp: u64| grant_verdict(|c| c.claims.exp = exp);
    assert_eq!(with_exp(end + 1), Err(Code::TicketInvalid), "lives too long");
    assert_eq!(with_exp(ISSUED_S - 1), Err(Code::TicketInvalid), "ends before it begins");
    assert_eq!(with_exp(u64::MAX), Err(Code::TicketInvalid));
    assert_eq!(verdict(|c| c.claims.exp = end), Err(Code::TicketInvalid), "no life for a ticket");
}

#[test]
fn whoever_comes_with_a_grant_that_has_run_out_is_told_first_what_became_of_the_session() {
    let end = ISSUED_S + GRANT_LIFE_MAX.as_secs() + LEEWAY_S + 1;
    let now = Timestamp::from_millis(end * 1_000);
    let later = Timestamp::from_millis(now.as_millis() + 1);
    let late = |spoil: &dyn Fn(&mut Case)| {
        grant_verdict(|c| {
            c.now = now;
            spoil(c);
        })
    };
    let ended = |cause| session::State::Ended { cause };
    for (state, code) in [
        // The lid was closed for longer than the desktop is kept.
        (session::State::Detached { until: now }, Code::SessionEnded),
        (session::State::Detached { until: later }, Code::TicketExpired),
        (session::State::Active, Code::TicketExpired),
        (session::State::Starting { until: now }, Code::SessionEnded),
        (ended(Cause::GraceExpired), Code::SessionEnded),
        (ended(Cause::TakenOver), Code::TakenOver),
        (ended(Cause::Administrator), Code::EndedByAdministrator),
        (ended(Cause::TimeLimit), Code::TimeLimit),
    ] {
        assert_eq!(late(&|c| c.state = state), Err(code), "{state:?}");
        let other = late(&|c| {
            c.state = state;
            c.claims.sub = user("honsho/tanaka");
        });
        assert_eq!(other, Err(Code::TicketInvalid), "only to themselves: {state:?}");
    }
    let gone = late(&|c| c.desktop.epoch = Epoch(4));
    assert_eq!(gone, Err(Code::SessionEnded), "the desktop is somebody else's by now");
    let elsewhere = late(&|c| c.desktop.session = Some(SessionId(Uuid::from_u128(9))));
    assert_eq!(elsewhere, Err(Code::SessionEnded));
    let long = late(&|c| c.claims.exp = end + 1);
    assert_eq!(long, Err(Code::TicketInvalid), "never one of ours");
}

#[test]
fn a_grant_needs_a_number_above_the_highest() {
    let judged = |link, highest| {
        grant_verdict(|c| {
            c.link = LinkNumber(link);
            c.highest_link = LinkNumber(highest);
        })
    };
    for (link, highest, wanted) in [
        (0, 1, Err(Code::LinkStale)),
        (1, 1, Err(Code::LinkStale)),
        (2, 1, Ok(())),
        (9, 1, Ok(())),
        (8, 9, Err(Code::LinkStale)),
        (u64::MAX, u64::MAX, Err(Code::LinkStale)),
    ] {
        assert_eq!(judged(link, highest), wanted, "{link} after {highest}");
    }
}
