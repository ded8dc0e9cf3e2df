//! When a grant opens a link again.

use tegata_domain::desktop;
use tegata_domain::session::{Cause, Event, STARTING_LIMIT, State};
use tegata_domain::time::Timestamp;
use tegata_proto::code::Code;
use tegata_proto::encoding::{Bytes, Sha256};
use tegata_proto::id::{Epoch, Incarnation, LinkNumber};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::redeeming::code;
use super::{BOOT, Bench, GRACE, Office};
use crate::ports::store::{Followup, Redeem, action};

/// What a session becomes whose grant is shown at this time.
fn returning(now: Timestamp) -> State {
    State::Returning { until: now.after(STARTING_LIMIT) }
}

/// What it becomes when that link is lost at this time.
fn detached(now: Timestamp) -> State {
    State::Detached { until: now.after(GRACE) }
}

pub(crate) async fn a_grant_opens_one_link_after_the_other<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.login("sato").await.unwrap();
    let first = office.redeem(&login).await.unwrap();
    let (_, mut seq) = office.actions(0).await;
    // From a link that is attaching, from one whose end nobody has noticed, from one
    // that is coming back itself, and from none.
    let before = [None, Some(Event::Attached), None, Some(Event::LinkLost)];
    for (event, link) in before.into_iter().zip([2, 3, 5, 6]) {
        if let Some(event) = event {
            office.tell(login.sid, event).await.unwrap();
            (_, seq) = office.actions(seq).await;
        }
        let mut grant = office.grant_of(&login, link);
        grant.gateway = format!("gw-{link}").parse().unwrap();
        grant.claims.cnf.jkt = Bytes([u8::try_from(link).unwrap(); 32]);
        let again = office.store().redeem(grant).await.unwrap();
        assert_eq!((again.epoch, again.target), (first.epoch, first.target));
        assert_eq!(again.followups, []);
        let record = office.store().session(login.sid).await.unwrap().unwrap();
        assert_eq!(record.state, returning(office.now));
        assert_eq!(record.link, LinkNumber(link));
        assert_eq!(record.gateway.unwrap().as_str(), format!("gw-{link}"));
        assert_eq!(record.key, Some(Bytes([u8::try_from(link).unwrap(); 32])));

        let records = office.store().audit_after(seq, 10).await.unwrap();
        let [(last, record)] = &records[..] else { panic!("{records:?}") };
        seq = *last;
        assert_eq!(record.action, action::SESSION_RETURNED);
        let wanted = [link.to_string(), format!("gw-{link}"), "telework".into(), "false".into()];
        assert_eq!(
            ["link", "gateway", "class", "resumed"].map(|n| &record.detail[n]),
            wanted.each_ref()
        );

        for old in [0, 1, link - 1, link] {
            let mut stale = office.grant_of(&login, old);
            stale.exporter = Sha256([9; 32]);
            assert_eq!(code(office.store().redeem(stale).await), Code::LinkStale, "{old}");
        }
        assert_eq!(office.actions(seq).await.0, [""; 0], "a refusal is no change");
        assert_eq!(office.state(login.sid).await, returning(office.now));
    }
}

pub(crate) async fn a_grant_raced_by_a_hundred_opens_one_link<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.work("sato").await;
    let mut racers = JoinSet::new();
    for n in 0..100 {
        let (store, mut grant) = (office.store(), office.grant_of(&login, 2));
        grant.exporter = Sha256([n; 32]);
        racers.spawn(async move { store.redeem(grant).await });
    }
    let mut opened = 0;
    while let Some(answer) = racers.join_next().await {
        match answer.unwrap() {
            Ok(_) => opened += 1,
            refused => assert_eq!(code(refused), Code::LinkStale),
        }
    }
    assert_eq!(opened, 1);
}

pub(crate) async fn a_grant_opens_nothing_before_its_ticket_and_nothing_after_the_end<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.login("sato").await.unwrap();
    let (_, seq) = office.actions(0).await;
    assert_eq!(code(office.come_back(&login, 1).await), Code::ResumeLost);
    assert_eq!(office.actions(seq).await.0, [""; 0]);
    office.redeem(&login).await.expect("the ticket is as good as before");

    let mut other = office.grant_of(&login, 2);
    other.claims.epoch = Epoch(other.claims.epoch.0 + 1);
    assert_eq!(code(office.store().redeem(other).await), Code::SessionEnded);
    let mut other = office.grant_of(&login, 2);
    other.claims.sub = super::user("tanaka");
    assert_eq!(code(office.store().redeem(other).await), Code::TicketInvalid);
    let mut expired = office.grant_of(&login, 2);
    expired.claims.iat -= 2 * GRACE.as_secs();
    expired.claims.exp -= 2 * GRACE.as_secs();
    assert_eq!(code(office.store().redeem(expired).await), Code::TicketExpired);

    office.tell(login.sid, Event::EndWanted(Cause::Administrator)).await.unwrap();
    let ended = Code::EndedByAdministrator;
    assert_eq!(code(office.come_back(&login, 2).await), ended, "it ends");
    office.tell(login.sid, Event::Closed).await.unwrap();
    assert_eq!(code(office.come_back(&login, 2).await), ended, "it is over");
}

pub(crate) async fn a_link_goes_on_with_what_its_gateway_has_kept<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.login("sato").await.unwrap();
    let ticket = Redeem { resume: Some(Incarnation(0)), ..office.redeem_of(&login) };
    assert_eq!(code(office.store().redeem(ticket).await), Code::ResumeLost, "no ticket does");
    let first = office.redeem(&login).await.unwrap();
    office.tell(login.sid, Event::Attached).await.unwrap();

    let (_, seq) = office.actions(0).await;
    let kept =
        |link, incarnation| Redeem { resume: Some(incarnation), ..office.grant_of(&login, link) };
    let same = office.store().redeem(kept(2, first.incarnation)).await.unwrap();
    assert_eq!(same.incarnation, first.incarnation);
    let records = office.store().audit_after(seq, 10).await.unwrap();
    assert_eq!(records[0].1.detail["resumed"], "true");

    let lost = [
        kept(3, Incarnation(first.incarnation.0 + 1)),
        kept(3, Incarnation(first.incarnation.0 - 1)),
        Redeem { boot: Uuid::from_u128(1), ..kept(3, first.incarnation) },
    ];
    for lost in lost {
        assert_eq!(code(office.store().redeem(lost).await), Code::ResumeLost);
        let record = office.store().session(login.sid).await.unwrap().unwrap();
        assert_eq!(record.link, LinkNumber(2), "nothing changed");
    }
    let fresh = office.come_back(&login, 3).await.unwrap();
    assert_eq!(fresh.incarnation, Incarnation(first.incarnation.0 + 1), "it was dialled anew");
    let old = office.store().redeem(kept(4, first.incarnation)).await;
    assert_eq!(code(old), Code::ResumeLost);
}

pub(crate) async fn the_same_return_gets_the_same_answer_and_no_record<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.work("sato").await;
    let grant = Redeem { exporter: Sha256([4; 32]), ..office.grant_of(&login, 2) };
    let first = office.store().redeem(grant.clone()).await.unwrap();
    let (_, seq) = office.actions(0).await;
    assert_eq!(office.store().redeem(grant.clone()).await.unwrap(), first);
    assert_eq!(office.actions(seq).await.0, [""; 0], "nothing changed");
    let others = [
        Redeem { boot: Uuid::from_u128(1), ..grant.clone() },
        Redeem { exporter: Sha256([9; 32]), ..grant.clone() },
        Redeem { link: LinkNumber(1), ..grant.clone() },
    ];
    for other in others {
        assert_eq!(code(office.store().redeem(other).await), Code::LinkStale);
    }
    office.tell(login.sid, Event::LoggedOff).await.unwrap();
    assert_eq!(code(office.store().redeem(grant).await), Code::SessionEnded, "over is over");
}

pub(crate) async fn what_is_told_of_the_link_before_changes_nothing<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.work("sato").await;
    office.come_back(&login, 2).await.unwrap();
    let late =
        [Event::Attached, Event::LinkLost, Event::DesktopClosed, Event::LoggedOff, Event::Closed];
    let now = office.now;
    for state in [returning(now), State::Active] {
        if state == State::Active {
            let second = Some(LinkNumber(2));
            office.tell_of_link(login.sid, Event::Attached, second).await.unwrap();
        }
        let (_, seq) = office.actions(0).await;
        for event in late {
            let told = office.tell_of_link(login.sid, event, Some(LinkNumber::FIRST)).await;
            assert_eq!(told.unwrap(), [], "{event:?}");
            assert_eq!(office.state(login.sid).await, state, "{event:?}");
        }
        assert_eq!(office.actions(seq).await.0, [""; 0]);
    }
    office.tell_of_link(login.sid, Event::LinkLost, Some(LinkNumber(2))).await.unwrap();
    assert_eq!(office.state(login.sid).await, detached(now));
}

pub(crate) async fn a_return_to_a_silent_desktop_leaves_it_to_its_person<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.work("sato").await;
    office.tell(login.sid, Event::LinkLost).await.unwrap();
    for link in 2..5 {
        office.wait(STARTING_LIMIT);
        office.come_back(&login, link).await.unwrap();
        let link = Some(LinkNumber(link));
        assert_eq!(office.tell_of_link(login.sid, Event::DialFailed, link).await.unwrap(), []);
        assert_eq!(office.state(login.sid).await, detached(office.now));
    }
    let desktop = office.desktop().await.desktop;
    assert_eq!((desktop.state, desktop.session), (desktop::State::Assigned, Some(login.sid)));
}

pub(crate) async fn a_return_that_takes_too_long_is_closed_and_leaves_the_session<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.work("sato").await;
    office.come_back(&login, 2).await.unwrap();
    assert_eq!(office.store().due(office.now, 10).await.unwrap(), []);
    let began = office.now;
    office.wait(STARTING_LIMIT);
    let (_, seq) = office.actions(0).await;
    let (link, code) = (LinkNumber(2), Code::Unavailable);
    let close = [Followup::CloseLinks { sid: login.sid, link, code }];
    for _ in 0..2 {
        assert_eq!(office.store().due(office.now, 10).await.unwrap(), close);
        assert_eq!(office.state(login.sid).await, returning(began));
    }
    office.tell_of_link(login.sid, Event::Closed, Some(link)).await.unwrap();
    assert_eq!(office.state(login.sid).await, detached(office.now));
    assert_eq!(office.actions(seq).await.0, [action::SESSION_DETACHED]);
    office.come_back(&login, 3).await.expect("and they may come back");
}

pub(crate) async fn a_new_login_takes_over_from_whoever_came_back<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let first = office.work("sato").await;
    let second = office.login("sato").await.unwrap();
    office.come_back(&first, 2).await.expect("nothing is taken over at login");
    assert!(matches!(office.state(second.sid).await, State::Requested { .. }));

    let taken = office.redeem(&second).await.unwrap();
    let (link, why) = (LinkNumber(2), Code::TakenOver);
    assert_eq!(taken.followups, [Followup::CloseLinks { sid: first.sid, link, code: why }]);
    assert_eq!(code(office.come_back(&first, 3).await), why);
    office.come_back(&second, 2).await.expect("the second has the desktop now");
}

pub(crate) async fn a_return_is_there_after_a_crash<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.work("sato").await;
    office.come_back(&login, 2).await.unwrap();
    let before = office.store().session(login.sid).await.unwrap();
    office.bench = office.bench.reopen().await;
    assert_eq!(office.store().session(login.sid).await.unwrap(), before);
    assert_eq!(before.unwrap().state, returning(office.now));
    assert_eq!(office.store().recover(BOOT, office.now).await.unwrap(), 0);
    office.come_back(&login, 2).await.expect("a repeat is answered from what is kept");
    assert_eq!(office.store().recover(Uuid::from_u128(1), office.now).await.unwrap(), 1);
    assert_eq!(office.state(login.sid).await, detached(office.now));
    office.come_back(&login, 3).await.expect("the grant outlives its gateway");
}
