use super::*;
use crate::pool::{Kind, Reuse};

/// What a session makes of an event.
#[derive(Debug, PartialEq)]
enum Outcome {
    Refuses,
    Stays(Vec<Effect>),
    Becomes(State, Vec<Effect>),
}

use Outcome::{Becomes, Refuses, Stays};

/// One of each event, in the order of the columns of [`row`].
const EVENTS: [Event; 12] = [
    Event::Redeemed,
    Event::Returned,
    Event::Attached,
    Event::DialFailed,
    Event::NotDialled,
    Event::LinkLost,
    Event::DesktopClosed,
    Event::LoggedOff,
    Event::Disconnected,
    Event::EndWanted(Cause::Administrator),
    Event::Closed,
    Event::Tick,
];

/// Breaks the build when an event is added: it needs a column.
fn column(event: Event) -> usize {
    match event {
        Event::Redeemed => 0,
        Event::Returned => 1,
        Event::Attached => 2,
        Event::DialFailed => 3,
        Event::NotDialled => 4,
        Event::LinkLost => 5,
        Event::DesktopClosed => 6,
        Event::LoggedOff => 7,
        Event::Disconnected => 8,
        Event::EndWanted(_) => 9,
        Event::Closed => 10,
        Event::Tick => 11,
    }
}

/// What follows from the end of a session by itself.
fn handed_back(cause: Cause) -> Vec<Effect> {
    match cause {
        Cause::GraceExpired => vec![Effect::Release, Effect::LogOff],
        Cause::LoggedOff
        | Cause::NeverAttached
        | Cause::DesktopUnreachable
        | Cause::TakenOver
        | Cause::Administrator
        | Cause::TimeLimit => vec![Effect::Release],
    }
}

/// The table: what a session that is not overdue makes of each of [`EVENTS`].
///
/// Breaks the build when a state is added: it needs a row.
#[rustfmt::skip]
#[expect(clippy::too_many_lines, reason = "a line for each event in each state")]
fn row(state: State) -> [Outcome; EVENTS.len()] {
    use Effect::{AskOccupancy, CloseLinks, Reached, Release, Unreachable};
    let starting = State::Starting { until: NOW.after(STARTING_LIMIT) };
    let returning = State::Returning { until: NOW.after(STARTING_LIMIT) };
    let detached = State::Detached { until: NOW.after(GRACE) };
    let ending = |cause| State::Ending { cause };
    let ended = |cause| State::Ended { cause };
    let (admin, off) = (Cause::Administrator, Cause::LoggedOff);
    match state {
        State::Requested { .. } => [
            /* Redeemed      */ Becomes(starting, vec![]),
            /* Returned      */ Refuses,
            /* Attached      */ Refuses,
            /* DialFailed    */ Refuses,
            /* NotDialled    */ Refuses,
            /* LinkLost      */ Refuses,
            /* DesktopClosed */ Refuses,
            /* LoggedOff     */ Refuses,
            /* Disconnected  */ Refuses,
            /* EndWanted     */ Becomes(ended(admin), vec![Release]),
            /* Closed        */ Refuses,
            /* Tick          */ Stays(vec![]),
        ],
        State::Starting { .. } => [
            /* Redeemed      */ Refuses,
            /* Returned      */ Becomes(returning, vec![Reached]),
            /* Attached      */ Becomes(State::Active, vec![Reached]),
            /* DialFailed    */ Becomes(ended(Cause::DesktopUnreachable), vec![Unreachable, Release]),
            /* NotDialled    */ Becomes(ended(Cause::NeverAttached), vec![Release]),
            /* LinkLost      */ Becomes(detached, vec![Reached]),
            /* DesktopClosed */ Becomes(detached, vec![Reached, AskOccupancy]),
            /* LoggedOff     */ Becomes(ended(off), vec![Reached, Release]),
            /* Disconnected  */ Stays(vec![CloseLinks(Code::EndedByAdministrator)]),
            /* EndWanted     */ Becomes(ending(admin), vec![Reached, CloseLinks(admin.code())]),
            /* Closed        */ Becomes(detached, vec![Reached]),
            /* Tick          */ Stays(vec![]),
        ],
        State::Active => [
            /* Redeemed      */ Refuses,
            /* Returned      */ Becomes(returning, vec![]),
            /* Attached      */ Refuses,
            /* DialFailed    */ Refuses,
            /* NotDialled    */ Refuses,
            /* LinkLost      */ Becomes(detached, vec![]),
            /* DesktopClosed */ Becomes(detached, vec![AskOccupancy]),
            /* LoggedOff     */ Becomes(ended(off), vec![Release]),
            /* Disconnected  */ Stays(vec![CloseLinks(Code::EndedByAdministrator)]),
            /* EndWanted     */ Becomes(ending(admin), vec![CloseLinks(admin.code())]),
            /* Closed        */ Becomes(detached, vec![]),
            /* Tick          */ Stays(vec![]),
        ],
        State::Returning { .. } => [
            /* Redeemed      */ Refuses,
            /* Returned      */ Becomes(returning, vec![]),
            /* Attached      */ Becomes(State::Active, vec![]),
            /* DialFailed    */ Becomes(detached, vec![]),
            /* NotDialled    */ Becomes(detached, vec![]),
            /* LinkLost      */ Becomes(detached, vec![]),
            /* DesktopClosed */ Becomes(detached, vec![AskOccupancy]),
            /* LoggedOff     */ Becomes(ended(off), vec![Release]),
            /* Disconnected  */ Stays(vec![CloseLinks(Code::EndedByAdministrator)]),
            /* EndWanted     */ Becomes(ending(admin), vec![CloseLinks(admin.code())]),
            /* Closed        */ Becomes(detached, vec![]),
            /* Tick          */ Stays(vec![]),
        ],
        State::Detached { .. } => [
            /* Redeemed      */ Refuses,
            /* Returned      */ Becomes(returning, vec![]),
            /* Attached      */ Refuses,
            /* DialFailed    */ Refuses,
            /* NotDialled    */ Refuses,
            /* LinkLost      */ Stays(vec![]),
            /* DesktopClosed */ Stays(vec![AskOccupancy]),
            /* LoggedOff     */ Becomes(ending(off), vec![CloseLinks(off.code())]),
            /* Disconnected  */ Stays(vec![CloseLinks(Code::EndedByAdministrator)]),
            /* EndWanted     */ Becomes(ending(admin), vec![CloseLinks(admin.code())]),
            /* Closed        */ Stays(vec![]),
            /* Tick          */ Stays(vec![]),
        ],
        State::Ending { cause } => [
            /* Redeemed      */ Refuses,
            /* Returned      */ Refuses,
            /* Attached      */ Stays(vec![CloseLinks(cause.code())]),
            /* DialFailed    */ Stays(vec![]),
            /* NotDialled    */ Stays(vec![]),
            /* LinkLost      */ Stays(vec![]),
            /* DesktopClosed */ Stays(vec![]),
            /* LoggedOff     */ Stays(vec![]),
            /* Disconnected  */ Stays(vec![]),
            /* EndWanted     */ Stays(vec![CloseLinks(cause.code())]),
            /* Closed        */ Becomes(ended(cause), handed_back(cause)),
            /* Tick          */ Stays(vec![]),
        ],
        State::Ended { cause } => [
            /* Redeemed      */ Refuses,
            /* Returned      */ Refuses,
            /* Attached      */ Stays(vec![CloseLinks(cause.code())]),
            /* DialFailed    */ Stays(vec![]),
            /* NotDialled    */ Stays(vec![]),
            /* LinkLost      */ Stays(vec![]),
            /* DesktopClosed */ Stays(vec![]),
            /* LoggedOff     */ Stays(vec![]),
            /* Disconnected  */ Refuses,
            /* EndWanted     */ Stays(vec![]),
            /* Closed        */ Stays(vec![]),
            /* Tick          */ Stays(vec![]),
        ],
    }
}

const NOW: Timestamp = Timestamp::from_millis(1_000_000);
const SOON: Timestamp = Timestamp::from_millis(1_000_001);
const GRACE: Duration = Duration::from_hours(8);
const RULES: Rules = Rules { kind: Kind::Floating, reuse: Reuse::AfterLogoff, grace: GRACE };

const CAUSES: [Cause; 7] = [
    Cause::LoggedOff,
    Cause::NeverAttached,
    Cause::DesktopUnreachable,
    Cause::GraceExpired,
    Cause::TakenOver,
    Cause::Administrator,
    Cause::TimeLimit,
];

/// One of each state, with a deadline of `until` where it has one.
fn states(until: Timestamp) -> Vec<State> {
    let mut states = vec![
        State::Requested { until },
        State::Starting { until },
        State::Active,
        State::Returning { until },
        State::Detached { until },
    ];
    states.extend(CAUSES.map(|cause| State::Ending { cause }));
    states.extend(CAUSES.map(|cause| State::Ended { cause }));
    states
}

fn outcome(state: State, event: Event) -> Outcome {
    match state.step(event, RULES, NOW) {
        Err(refused) => {
            assert_eq!(refused, Refused { state, event });
            Refuses
        }
        Ok((next, effects)) if next == state => Stays(effects),
        Ok((next, effects)) => Becomes(next, effects),
    }
}

#[test]
fn every_state_answers_every_event_as_the_table_says() {
    for state in states(SOON) {
        for (event, expected) in EVENTS.into_iter().zip(row(state)) {
            assert_eq!(EVENTS[column(event)], event, "the columns are in order");
            assert_eq!(outcome(state, event), expected, "{event:?} in {state:?}");
        }
    }
}

#[test]
fn an_overdue_deadline_is_settled_before_any_event() {
    use Effect::{CloseLinks, Reached, Release};
    let never = Cause::NeverAttached;
    for until in [NOW, Timestamp::from_millis(1)] {
        let overdue = [
            (State::Requested { until }, State::Ended { cause: never }, vec![Release]),
            (
                State::Starting { until },
                State::Ending { cause: never },
                vec![Reached, CloseLinks(Code::TicketExpired)],
            ),
            (
                State::Detached { until },
                State::Ending { cause: Cause::GraceExpired },
                vec![CloseLinks(Code::SessionEnded)],
            ),
        ];
        for (state, settled, first) in overdue {
            for (event, then) in EVENTS.into_iter().zip(row(settled)) {
                let joined = |then| first.iter().copied().chain(then).collect::<Vec<_>>();
                let expected = match then {
                    Refuses => None,
                    Stays(then) => Some((settled, joined(then))),
                    Becomes(next, then) => Some((next, joined(then))),
                };
                let got = state.step(event, RULES, NOW).ok();
                assert_eq!(got, expected, "{event:?} in overdue {state:?}");
            }
        }
    }
}

#[test]
fn a_return_that_takes_too_long_has_its_link_closed_and_ends_nothing() {
    for until in [NOW, Timestamp::from_millis(1)] {
        let late = State::Returning { until };
        for (event, expected) in EVENTS.into_iter().zip(row(late)) {
            // Again and again, until the gateway confirms.
            let close = Stays(vec![Effect::CloseLinks(Code::Unavailable)]);
            let expected = if event == Event::Tick { close } else { expected };
            assert_eq!(outcome(late, event), expected, "{event:?}");
        }
    }
    for event in EVENTS {
        let Ok((next, _)) = (State::Returning { until: SOON }).step(event, RULES, NOW) else {
            continue;
        };
        let wanted = matches!(event, Event::LoggedOff | Event::EndWanted(_));
        let ends = matches!(next, State::Ending { .. } | State::Ended { .. });
        assert_eq!(ends, wanted, "{event:?}");
    }
}

#[test]
fn only_the_gateways_word_or_its_persons_makes_a_session_over_that_had_a_link() {
    for state in states(SOON) {
        let word = match state {
            State::Active | State::Returning { .. } => Some(Event::LoggedOff),
            State::Ending { .. } => Some(Event::Closed),
            State::Detached { .. } => None,
            State::Requested { .. } | State::Starting { .. } | State::Ended { .. } => continue,
        };
        for event in EVENTS {
            let over = matches!(state.step(event, RULES, NOW), Ok((State::Ended { .. }, _)));
            assert_eq!(over, Some(event) == word, "{event:?} in {state:?}");
        }
    }
}

#[test]
fn a_state_is_overdue_from_its_deadline_on_and_not_a_millisecond_before() {
    let requested = State::requested(NOW);
    let last = Timestamp::from_millis(NOW.as_millis() + 34_999);
    assert_eq!(requested.deadline(), Some(NOW.after(REQUESTED_LIMIT)));
    let redeemed = requested.step(Event::Redeemed, RULES, last).expect("it is in time");
    assert_eq!(redeemed, (State::Starting { until: last.after(STARTING_LIMIT) }, vec![]));
    assert!(requested.step(Event::Redeemed, RULES, NOW.after(REQUESTED_LIMIT)).is_err());
}

#[test]
fn states_without_a_deadline_wait_for_a_gateway() {
    for state in states(SOON) {
        let waits_for_time = match state {
            State::Requested { .. }
            | State::Starting { .. }
            | State::Returning { .. }
            | State::Detached { .. } => true,
            State::Active | State::Ending { .. } | State::Ended { .. } => false,
        };
        assert_eq!(state.deadline().is_some(), waits_for_time, "{state:?}");
        assert_eq!(state.is_live(), !matches!(state, State::Ended { .. }), "{state:?}");
    }
}

#[test]
fn an_end_keeps_the_cause_that_came_first() {
    for cause in CAUSES {
        let (ending, effects) = State::Active.step(Event::EndWanted(cause), RULES, NOW).unwrap();
        assert_eq!(effects, [Effect::CloseLinks(cause.code())]);
        for other in CAUSES {
            let again = ending.step(Event::EndWanted(other), RULES, NOW);
            assert_eq!(again, Ok((ending, effects.clone())), "{other:?} after {cause:?}");
        }
        let over = ending.step(Event::Closed, RULES, NOW);
        assert_eq!(over, Ok((State::Ended { cause }, handed_back(cause))));
    }
}

#[test]
fn an_attach_that_comes_after_the_end_closes_the_link() {
    let starting = State::Starting { until: SOON };
    let (ending, _) =
        starting.step(Event::EndWanted(Cause::Administrator), RULES, NOW).expect("it may end");
    let close = vec![Effect::CloseLinks(Code::EndedByAdministrator)];
    assert_eq!(ending.step(Event::Attached, RULES, NOW), Ok((ending, close.clone())));

    let (ended, _) = ending.step(Event::Closed, RULES, NOW).expect("the gateway confirms");
    assert_eq!(ended.step(Event::Attached, RULES, NOW), Ok((ended, close)));
}

#[test]
fn only_a_dial_that_connects_nobody_leaves_the_desktop_unused() {
    for event in EVENTS {
        let Ok((next, effects)) = (State::Starting { until: SOON }).step(event, RULES, NOW) else {
            continue;
        };
        let left = !matches!(next, State::Starting { .. });
        let counts_as_used = effects.contains(&Effect::Reached);
        let connects_nobody = matches!(event, Event::DialFailed | Event::NotDialled);
        assert_eq!(counts_as_used, left && !connects_nobody, "{event:?}");
    }
}
