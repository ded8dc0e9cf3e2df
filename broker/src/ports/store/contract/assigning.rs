//! Who gets which desktop.

use std::collections::BTreeSet;

use tegata_domain::placement::candidates;
use tegata_domain::session::{Cause, REQUESTED_LIMIT, State};
use tokio::task::JoinSet;

use super::{Bench, Office, dedicated, user};
use crate::ports::store::{AssignError, Followup, REQUESTED_MAX};

pub(crate) async fn sixty_four_people_share_ten_desktops_without_quarrel<B: Bench>() {
    let mut office = Office::<B>::with_desktops(10).await;
    let mut people = JoinSet::new();
    for n in 0..64 {
        let (store, wish) = (office.store(), office.wish(&format!("person-{n}")));
        people.spawn(async move { store.assign(wish).await });
    }
    let (mut got, mut left_out) = (Vec::new(), 0);
    while let Some(answer) = people.join_next().await {
        match answer.unwrap() {
            Ok(assigned) => got.push(assigned.desktop),
            Err(AssignError::Exhausted) => left_out += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((got.len(), left_out), (10, 54));
    assert_eq!(got.into_iter().collect::<BTreeSet<_>>().len(), 10, "each has one of their own");
}

pub(crate) async fn the_desktop_that_is_idle_longest_is_given_first<B: Bench>() {
    let mut office = Office::<B>::with_desktops(5).await;
    let pool = "keiri".parse().unwrap();
    for name in ["sato", "suzuki", "sato", "tanaka", "ito", "abe"] {
        let before = office.desktops(&pool).await;
        let (held, idle) =
            candidates(&user(name), before.iter().map(|record| (record.id, &record.desktop)));
        let login = office.login(name).await.unwrap();
        assert_eq!(Some(login.assigned.desktop), held.or(idle), "{name}");
    }
}

pub(crate) async fn whoever_holds_a_desktop_gets_that_one_again<B: Bench>() {
    let mut office = Office::<B>::with_desktops(3).await;
    let first = office.login("sato").await.unwrap();
    let again = office.login("sato").await.unwrap();
    assert!(!first.assigned.returning && again.assigned.returning);
    assert_eq!(again.assigned.desktop, first.assigned.desktop);
    assert_eq!(again.assigned.epoch, first.assigned.epoch, "it did not change hands");
    assert_ne!(again.sid, first.sid);
}

pub(crate) async fn a_desktop_that_never_showed_its_certificate_is_not_given<B: Bench>() {
    let mut office = Office::<B>::open().await;
    office.put(dedicated("sato")).await.unwrap();
    let refused = office.login("sato").await.unwrap_err();
    assert!(matches!(refused, AssignError::NotProbed(name) if name.as_str() == "keiri-0001"));
    office.probe_all(&"keiri".parse().unwrap()).await;
    assert!(office.login("sato").await.unwrap().assigned.pin.is_some());
}

pub(crate) async fn the_oldest_of_too_many_unused_logins_is_forgotten<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let mut logins = Vec::new();
    for _ in 0..=REQUESTED_MAX {
        logins.push(office.login("sato").await.unwrap());
    }
    let cause = Cause::NeverAttached;
    assert_eq!(office.state(logins[0].sid).await, State::Ended { cause });
    for login in &logins[1..] {
        assert!(matches!(office.state(login.sid).await, State::Requested { .. }));
    }
    assert!(office.redeem(&logins[8]).await.is_ok(), "the desktop is still theirs");
}

pub(crate) async fn a_desktop_whose_ticket_nobody_used_is_free_again<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.login("sato").await.unwrap();
    assert!(matches!(office.login("tanaka").await, Err(AssignError::Exhausted)));
    office.wait(REQUESTED_LIMIT / 2);
    assert_eq!(office.store().due(office.now, 10).await.unwrap(), []);
    office.wait(REQUESTED_LIMIT / 2);
    let followups = office.store().due(office.now, 10).await.unwrap();
    assert_eq!(followups, [Followup::Freed("keiri".parse().unwrap())]);
    assert_eq!(office.state(login.sid).await, State::Ended { cause: Cause::NeverAttached });
    let next = office.login("tanaka").await.unwrap();
    assert!(next.assigned.epoch > login.assigned.epoch);
}

pub(crate) async fn a_pool_that_is_not_there_is_named_as_such<B: Bench>() {
    let mut office = Office::<B>::open().await;
    assert!(matches!(office.login("sato").await, Err(AssignError::NoSuchPool)));
}
