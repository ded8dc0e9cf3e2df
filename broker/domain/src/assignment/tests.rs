//! What comes out to be done. Who may hold what is judged by `tests/office`.

use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::pool::{Kind, Reuse};
use crate::session::Event;

const NOW: Timestamp = Timestamp::from_millis(1_000_000);
const GRACE: Duration = Duration::from_hours(8);
const RULES: Rules = Rules { kind: Kind::Floating, reuse: Reuse::AfterLogoff, grace: GRACE };
const FIRST: SessionId = SessionId(Uuid::from_u128(1));
const SECOND: SessionId = SessionId(Uuid::from_u128(2));

fn sato() -> Holder {
    Holder { user: "honsho/sato".parse().expect("a user"), account: Some("sato".into()) }
}

fn nobody(asked: Timestamp) -> Observation {
    Observation { logged_on: [].into(), asked }
}

/// A desktop that Sato works on.
fn at_work() -> Assignment {
    let mut assignment = Assignment::new(Desktop::listed(None, None), []);
    let freed = assignment.probed(Probe::Answered(None), RULES, NOW);
    assert_eq!(freed, Ok(vec![Effect::Freed]), "somebody may wait for it");
    assignment.assign(FIRST, sato(), RULES, NOW).expect("it is ready");
    assert_eq!(assignment.redeemed(FIRST, RULES, NOW), Ok(vec![]));
    assert_eq!(assignment.session_event(FIRST, Event::Attached, RULES, NOW), Ok(vec![]));
    assignment
}

#[test]
fn a_probe_frees_a_desktop_once() {
    let mut assignment = Assignment::new(Desktop::listed(None, None), []);
    assignment.probed(Probe::Answered(None), RULES, NOW).expect("it fits");
    assert_eq!(assignment.probed(Probe::Answered(None), RULES, NOW), Ok(vec![]));
}

#[test]
fn an_observed_log_off_frees_the_desktop_once_no_gateway_keeps_it_and_it_was_asked_again() {
    let mut assignment = at_work();
    let asks = assignment.session_event(FIRST, Event::DesktopClosed, RULES, NOW);
    assert_eq!(asks, Ok(vec![Effect::AskOccupancy]));
    let learnt = NOW.after(Duration::from_secs(5));
    let close = Effect::CloseLinks { sid: FIRST, code: Code::LoggedOff };
    assert_eq!(assignment.observed(nobody(NOW), RULES, learnt), Ok(vec![close]));
    assert_eq!(assignment.sessions[&FIRST], session::State::Ending { cause: Cause::LoggedOff });
    assert_eq!(assignment.observed(nobody(learnt), RULES, learnt), Ok(vec![]), "it is kept");

    let closed = learnt.after(Duration::from_secs(1));
    let asks = assignment.session_event(FIRST, Event::Closed, RULES, closed);
    assert_eq!(asks, Ok(vec![Effect::AskOccupancy]));
    assert_eq!(assignment.observed(nobody(learnt), RULES, closed), Ok(vec![]), "from before");
    assert_eq!(assignment.observed(nobody(closed), RULES, closed), Ok(vec![]));
    assert_eq!(assignment.desktop.state, desktop::State::Starting, "it is looked at first");
    let freed = assignment.probed(Probe::Answered(None), RULES, closed);
    assert_eq!(freed, Ok(vec![Effect::Freed]));
    assert_eq!(assignment.desktop.state, desktop::State::Ready { since: closed });
}

#[test]
fn a_clock_that_is_set_back_keeps_no_desktop_from_being_freed() {
    let later = NOW.after(Duration::from_hours(1));
    for (event, ends) in [(Event::LoggedOff, false), (Event::LinkLost, true)] {
        let mut assignment = at_work();
        assignment.session_event(FIRST, event, RULES, later).expect("it fits");
        let tick = NOW.after(Duration::from_secs(1));
        // Asked by the clock of before; and by that of now, before this was seen.
        for asked in [later, NOW.before(Duration::from_secs(1))] {
            assert_eq!(assignment.observed(nobody(asked), RULES, NOW), Ok(vec![]));
        }
        let effects = assignment.observed(nobody(tick), RULES, tick);
        let close = Effect::CloseLinks { sid: FIRST, code: Code::LoggedOff };
        assert_eq!(effects, Ok(if ends { vec![close] } else { vec![] }), "{event:?}");
        assert_eq!(assignment.desktop.holder.is_none(), !ends, "{event:?}");
    }
    // Nor does it give anybody more time.
    let mut assignment = at_work();
    assignment.session_event(FIRST, Event::LinkLost, RULES, later).expect("it fits");
    assignment.due(RULES, NOW).expect("it fits");
    let until = NOW.after(GRACE);
    assert_eq!(assignment.sessions[&FIRST], session::State::Detached { until });
}

#[test]
fn whoever_comes_back_by_a_grant_keeps_the_desktop_though_it_does_not_answer() {
    let mut assignment = at_work();
    for event in [Event::DialFailed, Event::NotDialled, Event::LinkLost, Event::Closed] {
        assert_eq!(assignment.returned(FIRST, RULES, NOW), Ok(vec![]), "from any state");
        assert_eq!(assignment.desktop.session, Some(FIRST));
        assert_eq!(assignment.session_event(FIRST, event, RULES, NOW), Ok(vec![]));
        let until = NOW.after(GRACE);
        assert_eq!(assignment.sessions[&FIRST], session::State::Detached { until });
        assert_eq!(assignment.desktop.state, desktop::State::Assigned);
    }
    // The same, where the first attach has never been heard of again.
    let mut assignment = Assignment::new(Desktop::listed(None, None), []);
    assignment.probed(Probe::Answered(None), RULES, NOW).expect("it fits");
    assignment.assign(FIRST, sato(), RULES, NOW).expect("it is ready");
    assert_eq!(assignment.redeemed(FIRST, RULES, NOW), Ok(vec![]));
    assert_eq!(assignment.returned(FIRST, RULES, NOW), Ok(vec![]));
    assert!(assignment.desktop.used, "the link before may have reached it");
    assert_eq!(assignment.session_event(FIRST, Event::DialFailed, RULES, NOW), Ok(vec![]));
    assert!(assignment.is_in_use() && assignment.desktop.is_held_by(&sato().user));
}

#[test]
fn a_grant_takes_nothing_over_and_a_ticket_takes_over_from_a_grant() {
    let mut assignment = at_work();
    assignment.assign(SECOND, sato(), RULES, NOW).expect("it is Sato's");
    assert_eq!(assignment.returned(FIRST, RULES, NOW), Ok(vec![]));
    let requested = session::State::requested(NOW);
    assert_eq!(assignment.sessions[&SECOND], requested, "it waits for its ticket as before");
    let close = Effect::CloseLinks { sid: FIRST, code: Code::TakenOver };
    assert_eq!(assignment.redeemed(SECOND, RULES, NOW), Ok(vec![close]));
    assert!(assignment.returned(FIRST, RULES, NOW).is_err(), "it is over");
}

#[test]
fn a_link_that_takes_too_long_is_closed_at_each_pass_until_its_gateway_confirms() {
    let mut assignment = at_work();
    assignment.returned(FIRST, RULES, NOW).expect("it fits");
    assert_eq!(assignment.due(RULES, NOW), Ok(vec![]));
    let late = NOW.after(session::STARTING_LIMIT);
    let close = Ok(vec![Effect::CloseLinks { sid: FIRST, code: Code::Unavailable }]);
    assert_eq!(assignment.due(RULES, late), close);
    assert_eq!(assignment.due(RULES, late), close);
    assert_eq!(assignment.session_event(FIRST, Event::Closed, RULES, late), Ok(vec![]));
    assert_eq!(assignment.due(RULES, late), Ok(vec![]));
    let until = late.after(GRACE);
    assert_eq!(assignment.sessions[&FIRST], session::State::Detached { until });
}

#[test]
fn a_new_login_is_no_reason_to_ask_and_a_redeem_closes_the_other_device() {
    let mut assignment = at_work();
    let epoch = assignment.desktop.epoch;
    assignment.assign(SECOND, sato(), RULES, NOW).expect("it is Sato's");
    assert_eq!(assignment.desktop.epoch, epoch, "it has not changed hands");
    let close = Effect::CloseLinks { sid: FIRST, code: Code::TakenOver };
    assert_eq!(assignment.redeemed(SECOND, RULES, NOW), Ok(vec![close]));
    assert_eq!(assignment.desktop.session, Some(SECOND));
    assert_eq!(assignment.due(RULES, NOW), Ok(vec![close]), "until the gateway confirms");
    assert_eq!(assignment.session_event(FIRST, Event::Closed, RULES, NOW), Ok(vec![]));
    assert_eq!(assignment.due(RULES, NOW), Ok(vec![]));
}

#[test]
fn a_recycling_desktop_is_asked_about_at_each_pass_and_logged_off_after_grace() {
    let mut assignment = at_work();
    let ask = Ok(vec![Effect::AskOccupancy]);
    assert_eq!(assignment.session_event(FIRST, Event::LoggedOff, RULES, NOW), ask);
    assert_eq!(assignment.due(RULES, NOW), ask);
    assert_eq!(assignment.due(RULES, NOW.after(GRACE)), Ok(vec![Effect::LogOff]));
}

#[test]
fn nobody_comes_back_in_time_and_is_logged_off_once_no_gateway_keeps_the_desktop() {
    let mut assignment = at_work();
    assignment.session_event(FIRST, Event::LinkLost, RULES, NOW).expect("it fits");
    let over = NOW.after(GRACE);
    let close = Effect::CloseLinks { sid: FIRST, code: Code::SessionEnded };
    assert_eq!(assignment.due(RULES, over), Ok(vec![close]));
    assert_eq!(assignment.due(RULES, over), Ok(vec![close]), "until the gateway confirms");
    assert_eq!(assignment.desktop.state, desktop::State::Assigned);
    let effects = assignment.session_event(FIRST, Event::Closed, RULES, over);
    assert_eq!(effects, Ok(vec![Effect::AskOccupancy, Effect::LogOff]));
}

#[test]
fn a_withdrawn_desktop_leaves_when_its_last_session_is_over() {
    let mut assignment = at_work();
    assert_eq!(assignment.withdrawn(RULES, NOW), Ok(vec![]));
    let remove = Ok(vec![Effect::Remove]);
    assert_eq!(assignment.session_event(FIRST, Event::LoggedOff, RULES, NOW), remove);
}

#[test]
fn a_session_of_another_desktop_is_not_here() {
    let mut assignment = at_work();
    let before = assignment.clone();
    assert_eq!(assignment.redeemed(SECOND, RULES, NOW), Err(Refused::NotHere(SECOND)));
    assert_eq!(assignment, before);
    let tanaka = Holder { user: "honsho/tanaka".parse().expect("a user"), account: None };
    assert!(assignment.assign(SECOND, tanaka, RULES, NOW).is_err(), "it is Sato's");
    assert_eq!(assignment, before);
}
