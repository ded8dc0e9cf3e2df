//! When a ticket opens a link.

use tegata_domain::session::{Cause, Event, State};
use tegata_proto::code::Code;
use tegata_proto::encoding::Sha256;
use tegata_proto::id::{Epoch, LinkNumber, SessionId};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Bench, Office, Redeem};
use crate::ports::store::{Followup, RedeemError, Redeemed};

pub(super) fn code(answer: Result<Redeemed, RedeemError>) -> Code {
    match answer {
        Err(RedeemError::Refused(code)) => code,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn a_ticket_raced_by_a_hundred_opens_once<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.login("sato").await.unwrap();
    let mut racers = JoinSet::new();
    for n in 0..100 {
        let (store, mut redeem) = (office.store(), office.redeem_of(&login));
        redeem.exporter = Sha256([n; 32]);
        racers.spawn(async move { store.redeem(redeem).await });
    }
    let mut opened = 0;
    while let Some(answer) = racers.join_next().await {
        match answer.unwrap() {
            Ok(_) => opened += 1,
            refused => assert_eq!(code(refused), Code::TicketUsed),
        }
    }
    assert_eq!(opened, 1);
}

pub(crate) async fn the_same_redeem_gets_the_same_answer_while_the_session_lives<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.login("sato").await.unwrap();
    let redeem = office.redeem_of(&login);
    let first = office.store().redeem(redeem.clone()).await.unwrap();
    let (_, seq) = office.actions(0).await;
    assert_eq!(office.store().redeem(redeem.clone()).await.unwrap(), first);
    assert_eq!(office.actions(seq).await.0, [""; 0], "nothing changed");

    let others = [
        Redeem { boot: Uuid::from_u128(1), ..redeem.clone() },
        Redeem { exporter: Sha256([9; 32]), ..redeem.clone() },
        Redeem { link: LinkNumber(2), ..redeem.clone() },
    ];
    for other in others {
        assert_eq!(code(office.store().redeem(other).await), Code::TicketUsed);
    }
    office.tell(login.sid, Event::LoggedOff).await.unwrap();
    assert_eq!(code(office.store().redeem(redeem).await), Code::TicketUsed, "over is over");
}

pub(crate) async fn a_ticket_of_another_epoch_opens_nothing<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let mut login = office.login("sato").await.unwrap();
    login.assigned.epoch = Epoch(login.assigned.epoch.0 + 1);
    assert_eq!(code(office.redeem(&login).await), Code::SessionEnded);
    login.assigned.epoch = Epoch(login.assigned.epoch.0 - 1);
    assert!(office.redeem(&login).await.is_ok(), "and is as good as before");
}

pub(crate) async fn a_new_login_takes_over_when_its_ticket_is_redeemed<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let working = office.work("sato").await;
    let unused = office.login("sato").await.unwrap();
    let second = office.login("sato").await.unwrap();
    assert_eq!(office.state(working.sid).await, State::Active, "a login alone takes nothing");

    let (_, seq) = office.actions(0).await;
    let redeemed = office.redeem(&second).await.unwrap();
    let (link, code) = (LinkNumber::FIRST, Code::TakenOver);
    let close = Followup::CloseLinks { sid: working.sid, link, code };
    assert_eq!(redeemed.followups, [close], "only one of them had a link");
    let cause = Cause::TakenOver;
    assert_eq!(office.state(working.sid).await, State::Ending { cause });
    assert_eq!(office.state(unused.sid).await, State::Ended { cause });
    assert_eq!(office.desktop().await.desktop.session, Some(second.sid));
    let (mut actions, _) = office.actions(seq).await;
    actions.sort();
    assert_eq!(actions, ["session.ended", "session.ending", "session.starting"]);

    office.tell(working.sid, Event::Closed).await.unwrap();
    office.tell(second.sid, Event::Attached).await.unwrap();
    assert_eq!(office.state(working.sid).await, State::Ended { cause });
    assert_eq!(office.state(second.sid).await, State::Active, "the desktop was not released");
}

pub(crate) async fn a_refused_ticket_changes_nothing<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.login("sato").await.unwrap();
    let (_, seq) = office.actions(0).await;
    let mut expired = office.redeem_of(&login);
    expired.claims.iat -= 100;
    expired.claims.exp -= 100;
    assert_eq!(code(office.store().redeem(expired).await), Code::TicketExpired);
    assert_eq!(office.actions(seq).await.0, [""; 0], "who refuses writes it down, or counts it");
    assert!(matches!(office.state(login.sid).await, State::Requested { .. }));
}

pub(crate) async fn a_ticket_of_an_unknown_session_is_refused<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let mut login = office.login("sato").await.unwrap();
    login.sid = SessionId(office.id());
    assert_eq!(code(office.redeem(&login).await), Code::SessionEnded);
}
