use std::time::Duration;

use uuid::Uuid;

use super::*;

/// What a desktop makes of an event.
#[derive(Debug, PartialEq)]
enum Outcome {
    Refuses,
    Stays,
    StaysAnd(Effect),
    Becomes(State),
    BecomesAnd(State, Effect),
}

use Outcome::{Becomes, BecomesAnd, Refuses, Stays, StaysAnd};

const COLUMNS: usize = 16;

/// At least one of each event, in the order of the columns of [`row`].
fn events() -> [Event; COLUMNS] {
    [
        Event::Probed(Probe::Answered(Some(PIN))),
        Event::Probed(Probe::Answered(Some(OTHER_PIN))),
        Event::Probed(Probe::Answered(None)),
        Event::Probed(Probe::Failed),
        Event::Claimed(tanaka()),
        Event::Returned { account: Some("sato".into()) },
        Event::Redeemed(SID),
        Event::Attached,
        Event::DialFailed,
        Event::Released,
        Event::Observed(seen(&[], NOW)),
        Event::Observed(seen(&["sato"], NOW)),
        Event::Listed,
        Event::Withdrawn { in_use: true },
        Event::Withdrawn { in_use: false },
        Event::PinAccepted(OTHER_PIN),
    ]
}

/// Breaks the build when an event is added: it needs a column.
fn column(event: &Event) -> usize {
    match event {
        Event::Probed(Probe::Answered(Some(pin))) => usize::from(*pin != PIN),
        Event::Probed(Probe::Answered(None)) => 2,
        Event::Probed(Probe::Failed) => 3,
        Event::Claimed(_) => 4,
        Event::Returned { .. } => 5,
        Event::Redeemed(_) => 6,
        Event::Attached => 7,
        Event::DialFailed => 8,
        Event::Released => 9,
        Event::Observed(seen) => 10 + usize::from(!seen.logged_on.is_empty()),
        Event::Listed => 12,
        Event::Withdrawn { in_use } => 13 + usize::from(!in_use),
        Event::PinAccepted(_) => 15,
    }
}

/// The table: what a desktop of a floating pool with reuse after log-off makes of
/// each of [`events`]. A held one was used by Sato and shows [`PIN`].
///
/// Breaks the build when a state is added: it needs a row.
#[rustfmt::skip]
fn row(state: State) -> [Outcome; COLUMNS] {
    let ready = State::Ready { since: NOW };
    let recycling = State::Recycling { since: NOW };
    let changed = State::Quarantined { reason: Quarantine::CertificateChanged, since: NOW };
    match state {
        State::Starting => [
            /* probed: the same, another, no certificate, no answer */
            Becomes(ready), Becomes(changed), Becomes(changed), Stays,
            /* claimed, returned, redeemed */
            Refuses, Refuses, Refuses,
            /* attached, dial failed, released */
            Refuses, Stays, Stays,
            /* observed: nobody, Sato */
            Stays, Stays,
            /* listed, withdrawn in use, withdrawn, pin accepted */
            Stays, StaysAnd(Effect::Remove), StaysAnd(Effect::Remove), Stays,
        ],
        State::Ready { .. } => [
            Stays, Becomes(changed), Becomes(changed), Becomes(State::Starting),
            Becomes(State::Assigned), Refuses, Refuses,
            Refuses, Stays, Stays,
            Stays, Stays,
            Stays, StaysAnd(Effect::Remove), StaysAnd(Effect::Remove), Stays,
        ],
        State::Assigned => [
            Stays, Stays, Stays, Stays,
            Refuses, Stays, Stays,
            Stays, Stays, BecomesAnd(recycling, Effect::AskOccupancy),
            Stays, Stays,
            Stays, Becomes(State::Draining), StaysAnd(Effect::Remove), Stays,
        ],
        State::Recycling { .. } => [
            Stays, Stays, Stays, Stays,
            Refuses, Becomes(State::Assigned), Refuses,
            Stays, Stays, Stays,
            Becomes(State::Starting), Stays,
            Stays, StaysAnd(Effect::Remove), StaysAnd(Effect::Remove), Stays,
        ],
        State::Draining => [
            Stays, Stays, Stays, Stays,
            Refuses, Stays, Stays,
            Stays, Stays, StaysAnd(Effect::Remove),
            Stays, Stays,
            Becomes(State::Assigned), Stays, StaysAnd(Effect::Remove), Stays,
        ],
        State::Quarantined { reason: Quarantine::Unreachable, .. } => [
            Becomes(ready), Becomes(changed), Becomes(changed), Stays,
            Refuses, Refuses, Refuses,
            Refuses, Stays, Stays,
            Stays, Stays,
            Stays, StaysAnd(Effect::Remove), StaysAnd(Effect::Remove), Stays,
        ],
        State::Quarantined { reason: Quarantine::CertificateChanged, .. } => [
            Stays, Stays, Stays, Stays,
            Refuses, Refuses, Refuses,
            Refuses, Stays, Stays,
            Stays, Stays,
            Stays, StaysAnd(Effect::Remove), StaysAnd(Effect::Remove), Becomes(State::Starting),
        ],
        State::Quarantined { reason: Quarantine::Used, .. } => [
            Stays, Stays, Stays, Stays,
            Refuses, Refuses, Refuses,
            Refuses, Stays, Stays,
            Stays, Stays,
            Stays, StaysAnd(Effect::Remove), StaysAnd(Effect::Remove), Stays,
        ],
    }
}

const NOW: Timestamp = Timestamp::from_millis(1_000_000);
const EARLIER: Timestamp = Timestamp::from_millis(900_000);
const GRACE: Duration = Duration::from_hours(8);
const PIN: Sha256 = Sha256([1; 32]);
const OTHER_PIN: Sha256 = Sha256([2; 32]);
const SID: SessionId = SessionId(Uuid::from_u128(1));

const FLOATING: Rules = Rules { kind: Kind::Floating, reuse: Reuse::AfterLogoff, grace: GRACE };
const FLOATING_NEVER: Rules = Rules { reuse: Reuse::Never, ..FLOATING };
const DEDICATED: Rules = Rules { kind: Kind::Dedicated, ..FLOATING };
const DEDICATED_NEVER: Rules = Rules { reuse: Reuse::Never, ..DEDICATED };

const STATES: [State; 8] = [
    State::Starting,
    State::Ready { since: EARLIER },
    State::Assigned,
    State::Recycling { since: EARLIER },
    State::Draining,
    State::Quarantined { reason: Quarantine::Unreachable, since: EARLIER },
    State::Quarantined { reason: Quarantine::CertificateChanged, since: EARLIER },
    State::Quarantined { reason: Quarantine::Used, since: EARLIER },
];

fn holder(name: &str, account: Option<&str>) -> Holder {
    Holder {
        user: format!("honsho/{name}").parse().expect("a user"),
        account: account.map(str::to_owned),
    }
}

fn sato() -> Holder {
    holder("sato", Some("sato"))
}

fn tanaka() -> Holder {
    holder("tanaka", Some("tanaka"))
}

fn seen(accounts: &[&str], asked: Timestamp) -> Observation {
    Observation { logged_on: accounts.iter().map(|&name| name.to_owned()).collect(), asked }
}

fn is_held(state: State) -> bool {
    match state {
        State::Assigned | State::Recycling { .. } | State::Draining => true,
        State::Starting | State::Ready { .. } | State::Quarantined { .. } => false,
    }
}

/// A desktop in a state, as it gets there in a floating pool.
fn desktop(state: State) -> Desktop {
    let held = is_held(state);
    Desktop {
        state,
        holder: held.then(sato),
        epoch: Epoch(7),
        session: matches!(state, State::Assigned | State::Draining).then_some(SID),
        used: held || matches!(state, State::Quarantined { reason: Quarantine::Used, .. }),
        pin: Some(PIN),
    }
}

fn assigned(used: bool) -> Desktop {
    Desktop { used, ..desktop(State::Assigned) }
}

/// Steps a desktop that may not refuse, and returns it with its effects.
fn stepped(mut desktop: Desktop, event: Event, rules: Rules) -> (Desktop, Vec<Effect>) {
    let effects = desktop.step(event, rules, NOW).expect("the event fits");
    (desktop, effects)
}

#[test]
fn every_state_answers_every_event_as_the_table_says() {
    for state in STATES {
        for (n, (event, expected)) in events().into_iter().zip(row(state)).enumerate() {
            assert_eq!(column(&event), n, "the columns are in order");
            let before = desktop(state);
            let mut after = before.clone();
            let outcome = match after.step(event.clone(), FLOATING, NOW) {
                Err(refused) => {
                    assert_eq!(refused, Refused { state, event: event.clone() });
                    assert_eq!(after, before, "a refusal changes nothing");
                    Refuses
                }
                Ok(effects) => match (after.state == state, effects.as_slice()) {
                    (true, []) => Stays,
                    (true, [effect]) => StaysAnd(*effect),
                    (false, []) => Becomes(after.state),
                    (false, [effect]) => BecomesAnd(after.state, *effect),
                    (_, more) => panic!("{event:?} in {state:?} has effects {more:?}"),
                },
            };
            assert_eq!(outcome, expected, "{event:?} in {state:?}");

            let claimed = matches!(event, Event::Claimed(_)) && expected != Refuses;
            assert_eq!(after.holder.is_some(), is_held(after.state), "{event:?} in {state:?}");
            assert_eq!(after.epoch.0 - before.epoch.0, u64::from(claimed), "{event:?}");
            let kept_its_holder = before.holder == after.holder || after.holder.is_none();
            assert!(claimed || kept_its_holder, "only a claim brings a holder");
            let is_free = matches!(after.state, State::Starting | State::Ready { .. });
            assert!(!(is_free && after.used), "{event:?} in {state:?} frees a used desktop");
            assert!(is_held(after.state) || after.session.is_none(), "no holder, no session");
        }
    }
}

#[test]
fn what_becomes_of_a_desktop_that_is_handed_back_is_its_pools_rule() {
    let ready = State::Ready { since: NOW };
    let recycling = State::Recycling { since: NOW };
    let locked_away = State::Quarantined { reason: Quarantine::Used, since: NOW };
    for (rules, used, expected) in [
        (FLOATING, false, ready),
        (FLOATING, true, recycling),
        (FLOATING_NEVER, false, ready),
        (FLOATING_NEVER, true, locked_away),
        (DEDICATED, false, State::Assigned),
        (DEDICATED, true, State::Assigned),
        (DEDICATED_NEVER, false, State::Assigned),
        (DEDICATED_NEVER, true, State::Assigned),
    ] {
        let (after, effects) = stepped(assigned(used), Event::Released, rules);
        assert_eq!(after.state, expected, "{rules:?}, used: {used}");
        assert_eq!(after.holder.is_some(), is_held(expected));
        assert_eq!(after.session, None);
        assert_eq!(after.used, used, "handing back cleans nothing");
        assert_eq!(effects == [Effect::AskOccupancy], expected == recycling);
    }
}

#[test]
fn a_failed_dial_takes_away_only_what_was_never_used() {
    for rules in [FLOATING, FLOATING_NEVER, DEDICATED, DEDICATED_NEVER] {
        let (fresh, _) = stepped(assigned(false), Event::DialFailed, rules);
        let unreachable = State::Quarantined { reason: Quarantine::Unreachable, since: NOW };
        assert_eq!((fresh.state, fresh.holder), (unreachable, None));

        let (used, _) = stepped(assigned(true), Event::DialFailed, rules);
        assert_eq!(used, assigned(true), "the person's work is on it");
    }
    let owner = sato().user;
    let given = Desktop::listed(None, Some(owner.clone()));
    let (given, _) = stepped(given, Event::DialFailed, DEDICATED);
    assert!(given.is_held_by(&owner), "a dedicated desktop stays its owner's");
}

#[test]
fn an_attach_makes_a_desktop_used_until_it_is_free_again() {
    let (attached, _) = stepped(assigned(false), Event::Attached, FLOATING);
    assert!(attached.used);
    let (recycling, _) = stepped(attached, Event::Released, FLOATING);
    assert!(recycling.used);
    let (free, _) = stepped(recycling, Event::Observed(seen(&[], NOW)), FLOATING);
    assert_eq!((free.state, free.used), (State::Starting, false));
}

#[test]
fn a_holder_is_seen_logged_off_by_account_or_by_an_empty_desktop() {
    for (account, logged_on, expected) in [
        (Some("sato"), vec![], true),
        (Some("sato"), vec!["sato"], false),
        (Some("sato"), vec!["SATO"], false),
        (Some("Sato"), vec!["sATO"], false),
        (Some("MÜLLER"), vec!["müller"], false),
        (Some("sato"), vec!["tanaka"], true),
        (Some("sato"), vec!["sato2", "root"], true),
        (Some("sato"), vec!["root", "sato"], false),
        (None, vec![], true),
        (None, vec!["root"], false),
    ] {
        let mut desktop = desktop(State::Recycling { since: EARLIER });
        desktop.holder = Some(holder("sato", account));
        let (after, _) = stepped(desktop, Event::Observed(seen(&logged_on, NOW)), FLOATING);
        let freed = after.state == State::Starting;
        assert_eq!(freed, expected, "{account:?} among {logged_on:?}");
    }
}

#[test]
fn an_answer_to_an_older_question_frees_nothing() {
    let since = Timestamp::from_millis(950_000);
    for (asked, expected) in
        [(Timestamp::from_millis(949_999), State::Recycling { since }), (since, State::Starting)]
    {
        let recycling = desktop(State::Recycling { since });
        let (after, _) = stepped(recycling, Event::Observed(seen(&[], asked)), FLOATING);
        assert_eq!(after.state, expected, "asked at {asked}");
    }
}

#[test]
fn a_pool_that_stopped_reusing_locks_the_desktop_away_after_the_log_off() {
    let recycling = desktop(State::Recycling { since: EARLIER });
    let still_on = Event::Observed(seen(&["sato"], NOW));
    let (after, _) = stepped(recycling.clone(), still_on, FLOATING_NEVER);
    assert_eq!(after.state, recycling.state);
    let (after, _) = stepped(recycling, Event::Observed(seen(&[], NOW)), FLOATING_NEVER);
    let locked_away = State::Quarantined { reason: Quarantine::Used, since: NOW };
    assert_eq!((after.state, after.holder), (locked_away, None));
}

#[test]
fn a_desktop_waits_for_a_log_off_as_long_as_the_grace() {
    let since = EARLIER;
    let last = Timestamp::from_millis(since.after(GRACE).as_millis() - 1);
    for state in STATES {
        let waits = matches!(state, State::Recycling { .. });
        assert!(!desktop(state).is_overdue(FLOATING, last), "{state:?}");
        assert_eq!(desktop(state).is_overdue(FLOATING, since.after(GRACE)), waits, "{state:?}");
    }
}

#[test]
fn a_pin_is_learnt_once_and_then_only_an_administrator_changes_it() {
    let fresh = Desktop::listed(None, None);
    assert_eq!(fresh.state, State::Starting);
    let show = |desktop, pin| stepped(desktop, Event::Probed(Probe::Answered(pin)), FLOATING).0;

    let learnt = show(fresh, Some(PIN));
    assert_eq!((learnt.state, learnt.pin), (State::Ready { since: NOW }, Some(PIN)));

    for other in [Some(OTHER_PIN), None] {
        let changed = show(learnt.clone(), other);
        let quarantined = State::Quarantined { reason: Quarantine::CertificateChanged, since: NOW };
        assert_eq!((changed.state, changed.pin), (quarantined, Some(PIN)));
        let back = show(changed.clone(), Some(PIN));
        assert_eq!(back.state, quarantined, "the old one does not mend it");

        let (accepted, _) = stepped(changed, Event::PinAccepted(OTHER_PIN), FLOATING);
        assert_eq!((accepted.state, accepted.pin), (State::Starting, Some(OTHER_PIN)));
        let ready = show(accepted, Some(OTHER_PIN));
        assert_eq!(ready.state, State::Ready { since: NOW });
    }
}

#[test]
fn a_changed_pin_waits_until_the_desktop_is_free() {
    for state in [State::Assigned, State::Recycling { since: EARLIER }, State::Draining] {
        let changed = Event::Probed(Probe::Answered(Some(OTHER_PIN)));
        let (after, _) = stepped(desktop(state), changed, FLOATING);
        assert_eq!(after, desktop(state), "nothing changes in {state:?}");
    }
    let left = desktop(State::Recycling { since: EARLIER });
    let (free, _) = stepped(left, Event::Observed(seen(&[], NOW)), FLOATING);
    assert_eq!(free.state, State::Starting, "nobody has it before it is looked at");
    let (after, _) = stepped(free, Event::Probed(Probe::Answered(Some(OTHER_PIN))), FLOATING);
    let quarantined = State::Quarantined { reason: Quarantine::CertificateChanged, since: NOW };
    assert_eq!(after.state, quarantined);
    let mut held = desktop(State::Assigned);
    held.pin = None;
    let (after, _) = stepped(held, Event::Probed(Probe::Answered(Some(PIN))), FLOATING);
    assert_eq!(after.pin, Some(PIN), "a first one is learnt at any time");
}

#[test]
fn a_desktop_without_certificates_is_ready_when_it_answers() {
    let fresh = Desktop::listed(None, None);
    let (ready, _) = stepped(fresh, Event::Probed(Probe::Answered(None)), FLOATING);
    assert_eq!((ready.state, ready.pin), (State::Ready { since: NOW }, None));
}

#[test]
fn a_desktop_with_an_owner_is_theirs_from_the_start() {
    let owned = Desktop::listed(Some(PIN), Some(sato().user));
    assert_eq!((owned.state, owned.epoch), (State::Assigned, Epoch(1)));
    assert!(owned.is_held_by(&sato().user) && !owned.is_held_by(&tanaka().user));
    let free = Desktop::listed(None, None);
    assert_eq!((free.state, free.holder, free.epoch), (State::Starting, None, Epoch(0)));
}

#[test]
fn an_account_is_trusted_only_while_it_is_the_only_one_used() {
    for (rules, used, known, now, expected) in [
        (FLOATING, false, None, Some("sato"), Some("sato")),
        (FLOATING, false, Some("old"), Some("sato"), Some("sato")),
        (FLOATING, true, Some("sato"), Some("SATO"), Some("sato")),
        (FLOATING, true, Some("old"), Some("sato"), None),
        (FLOATING, true, None, Some("sato"), None),
        (FLOATING, true, Some("sato"), None, None),
        (DEDICATED, true, None, Some("sato"), Some("sato")),
        (DEDICATED, true, Some("old"), Some("sato"), Some("sato")),
    ] {
        let mut desktop = assigned(used);
        desktop.holder = Some(holder("sato", known));
        let returned = Event::Returned { account: now.map(str::to_owned) };
        let (after, _) = stepped(desktop, returned, rules);
        let account = after.holder.expect("it stays held").account;
        assert_eq!(account.as_deref(), expected, "{rules:?} {used} {known:?} {now:?}");
    }
}
