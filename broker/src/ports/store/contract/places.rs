//! Where people are, and for how long: what a pool says about that.

use std::time::Duration;

use tegata_domain::pool::terms::{ByClass, Limits, Takeover};
use tegata_domain::session::{Cause, Event, State};
use tegata_proto::code::Code;
use tegata_proto::id::{Incarnation, LinkNumber};
use tegata_proto::policy::Policy;

use super::{BOOT, Bench, GRACE, Login, Office, keiri};
use crate::ports::store::{
    AssignError, Followup, Moved, MovedError, Place, Redeem, RedeemError, Redeemed, action,
};

const HOUR: Duration = Duration::from_hours(1);

const ALL: Policy =
    Policy { clipboard: true, drive: true, printer: true, usb: true, sound: true, profile: None };

fn row(class: &str) -> ByClass {
    let (policy, limits) = (None, Limits::default());
    ByClass { class: class.into(), allowed: true, policy, limits, password_age_ms: None }
}

fn millis(span: Duration) -> Option<u64> {
    u64::try_from(span.as_millis()).ok()
}

/// An office whose pool has all redirections in the office and none elsewhere, is not
/// open from the street, and wants a young password on the train.
async fn open<B: Bench>() -> Office<B> {
    let office = Office::<B>::with_desktops(1).await;
    let mut raw = keiri(1);
    raw.policy = ALL;
    raw.by_class = vec![
        ByClass { policy: Some(Policy::default()), ..row("telework") },
        ByClass { allowed: false, ..row("street") },
        ByClass { password_age_ms: millis(HOUR), ..row("train") },
    ];
    office.put(raw).await.unwrap();
    office
}

fn from(class: &str, redeem: Redeem) -> Redeem {
    Redeem { class: class.into(), ..redeem }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, RedeemError>) -> Code {
    match answer.unwrap_err() {
        RedeemError::Refused(code) => code,
        RedeemError::Store(error) => panic!("{error}"),
    }
}

async fn comes<B: Bench>(
    office: &Office<B>,
    login: &Login,
    link: u64,
    class: &str,
) -> Result<Redeemed, RedeemError> {
    office.store().redeem(from(class, office.grant_of(login, link))).await
}

async fn moves<B: Bench>(
    office: &Office<B>,
    login: &Login,
    link: u64,
    class: &str,
) -> Result<Place, MovedError> {
    let (sid, epoch, class) = (login.sid, login.assigned.epoch, class.to_owned());
    let moved = Moved { sid, epoch, link: LinkNumber(link), class, now: office.now };
    office.store().moved(moved).await
}

pub(crate) async fn a_pool_that_is_not_open_from_a_network_opens_no_link_from_there<B: Bench>() {
    let mut office = open::<B>().await;
    let sato = office.login("sato").await.unwrap();
    let ticket = from("street", office.redeem_of(&sato));
    assert_eq!(refused(office.store().redeem(ticket).await), Code::NotAllowedHere);
    let redeemed = office.store().redeem(from("office", office.redeem_of(&sato))).await;
    assert_eq!(redeemed.unwrap().policy, ALL, "the ticket is as good as before");
    office.tell(sato.sid, Event::Attached).await.unwrap();
    office.tell(sato.sid, Event::LinkLost).await.unwrap();
    let before = office.state(sato.sid).await;
    assert_eq!(refused(comes(&office, &sato, 2, "street").await), Code::NotAllowedHere);
    assert_eq!(office.state(sato.sid).await, before, "it keeps its desktop as before");
    let back = comes(&office, &sato, 2, "telework").await.unwrap();
    assert_eq!(back.policy, Policy::default());
}

pub(crate) async fn a_password_that_is_too_old_for_a_network_is_asked_for_again<B: Bench>() {
    let mut office = open::<B>().await;
    let sato = office.work("sato").await;
    office.tell(sato.sid, Event::LinkLost).await.unwrap();
    office.wait(HOUR);
    comes(&office, &sato, 2, "train").await.expect("it is just young enough");
    office.tell(sato.sid, Event::Attached).await.unwrap();
    office.wait(Duration::from_millis(1));
    assert_eq!(refused(comes(&office, &sato, 3, "train").await), Code::LoginAgain);
    let again = office.login("sato").await.unwrap();
    assert_eq!(again.assigned.desktop, sato.assigned.desktop, "the desktop is still theirs");
    office.store().redeem(from("train", office.redeem_of(&again))).await.unwrap();
}

pub(crate) async fn a_link_that_moves_is_judged_again_and_written_down_once<B: Bench>() {
    let mut office = open::<B>().await;
    let sato = office.work("sato").await;
    let (_, seq) = office.actions(0).await;
    let office_ = moves(&office, &sato, 1, "office").await.unwrap();
    assert_eq!((office_.verdict, office_.policy), (Ok(()), ALL));
    let again = moves(&office, &sato, 1, "office").await.unwrap();
    assert_eq!(again, office_, "the answer was lost");
    let (actions, seq) = office.actions(seq).await;
    assert_eq!(actions, [action::SESSION_CLASS_CHANGED]);
    let record = office.store().session(sato.sid).await.unwrap().unwrap();
    assert_eq!(record.class, "office");

    let street = moves(&office, &sato, 1, "street").await.unwrap();
    assert_eq!(street.verdict, Err(Code::NotAllowedHere));
    let records = office.store().audit_after(seq, 10).await.unwrap();
    let detail = |name: &str| records[0].1.detail[name].as_str();
    assert_eq!(
        (detail("from"), detail("to"), detail("code")),
        ("office", "street", "not_allowed_here")
    );
    office.wait(HOUR + Duration::from_millis(1));
    let train = moves(&office, &sato, 1, "train").await.unwrap();
    assert_eq!(train.verdict, Err(Code::LoginAgain));

    for link in [0, 2] {
        let other = moves(&office, &sato, link, "office").await;
        assert!(matches!(other, Err(MovedError::NotCarried)), "link {link}");
    }
    office.tell(sato.sid, Event::LinkLost).await.unwrap();
    let gone = moves(&office, &sato, 1, "office").await;
    assert!(matches!(gone, Err(MovedError::NotCarried)));
}

pub(crate) async fn a_connection_is_gone_on_with_only_for_what_it_was_made_for<B: Bench>() {
    let mut office = open::<B>().await;
    let sato = office.login("sato").await.unwrap();
    office.store().redeem(from("office", office.redeem_of(&sato))).await.unwrap();
    office.tell(sato.sid, Event::Attached).await.unwrap();
    let kept = |link, class| {
        let resume = Some(Incarnation(1));
        from(class, Redeem { resume, boot: BOOT, ..office.grant_of(&sato, link) })
    };
    let other = refused(office.store().redeem(kept(2, "telework")).await);
    assert_eq!(other, Code::ResumeLost, "it was made with all redirections");
    let same = office.store().redeem(kept(2, "train")).await.unwrap();
    assert_eq!((same.incarnation, same.policy), (Incarnation(1), ALL));
    let fresh = comes(&office, &sato, 3, "telework").await.unwrap();
    assert_eq!((fresh.incarnation, fresh.policy), (Incarnation(2), Policy::default()));
}

pub(crate) async fn a_session_ends_when_its_time_is_over_and_not_before<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let mut raw = keiri(1);
    raw.limits = Limits { session_ms: millis(HOUR), idle_ms: Some(1_000) };
    let long = Limits { session_ms: millis(HOUR * 3), idle_ms: None };
    raw.by_class = vec![ByClass { limits: long, ..row("office") }];
    office.put(raw).await.unwrap();
    let sato = office.login("sato").await.unwrap();
    let redeemed = office.redeem(&sato).await.unwrap();
    let begun = office.now;
    assert_eq!(redeemed.ends_at, Some(begun.after(HOUR)));
    assert_eq!(redeemed.idle, Some(Duration::from_secs(1)));
    office.tell(sato.sid, Event::Attached).await.unwrap();
    office.wait(HOUR / 2);
    let place = moves(&office, &sato, 1, "office").await.unwrap();
    assert_eq!(place.ends_at, Some(begun.after(HOUR * 3)), "from its beginning on");

    office.wait(HOUR * 2);
    assert_eq!(office.store().due(office.now, 10).await.unwrap(), []);
    assert_eq!(office.state(sato.sid).await, State::Active);
    let place = moves(&office, &sato, 1, "telework").await.unwrap();
    assert_eq!(place.verdict, Err(Code::TimeLimit), "it is longer than one may be at home");
    let (sid, link, code) = (sato.sid, LinkNumber::FIRST, Code::TimeLimit);
    let close = Followup::CloseLinks { sid, link, code };
    let due = office.store().due(office.now, 10).await.unwrap();
    assert_eq!(due, std::slice::from_ref(&close));
    assert_eq!(office.state(sato.sid).await, State::Ending { cause: Cause::TimeLimit });
    assert_eq!(office.store().due(office.now, 10).await.unwrap(), [close], "nobody confirmed");
    office.tell(sato.sid, Event::Closed).await.unwrap();
    assert_eq!(office.state(sato.sid).await, State::Ended { cause: Cause::TimeLimit });
    assert_eq!(refused(office.come_back(&sato, 2).await), Code::TimeLimit);
    assert!(GRACE > HOUR * 3, "it was no other deadline");
}

pub(crate) async fn a_network_that_a_link_may_not_be_on_does_not_bound_its_session<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let mut raw = keiri(1);
    raw.limits = Limits { session_ms: millis(HOUR * 3), idle_ms: None };
    let short = Limits { session_ms: millis(HOUR), idle_ms: None };
    raw.by_class = vec![ByClass { allowed: false, limits: short, ..row("street") }];
    office.put(raw).await.unwrap();
    let sato = office.work("sato").await;
    let ends_at = office.now.after(HOUR * 3);
    let place = moves(&office, &sato, 1, "street").await.unwrap();
    assert_eq!(place.verdict, Err(Code::NotAllowedHere));
    office.tell(sato.sid, Event::LinkLost).await.unwrap();
    office.wait(HOUR);
    assert_eq!(office.store().due(office.now, 10).await.unwrap(), []);
    let back = comes(&office, &sato, 2, "office").await.unwrap();
    assert_eq!(back.ends_at, Some(ends_at));
}

pub(crate) async fn nobody_is_taken_over_where_the_pool_says_so<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let mut raw = keiri(1);
    raw.takeover = Takeover::Refuse;
    office.put(raw).await.unwrap();
    let first = office.work("sato").await;
    let refusal = office.login("sato").await.unwrap_err();
    assert!(matches!(refusal, AssignError::InUse(_)), "{refusal}");

    office.tell(first.sid, Event::LinkLost).await.unwrap();
    let second = office.login("sato").await.expect("nobody works there");
    office.come_back(&first, 2).await.expect("the first is back before");
    assert_eq!(refused(office.redeem(&second).await), Code::InUse);
    assert!(matches!(office.state(first.sid).await, State::Returning { .. }));
    office.tell(first.sid, Event::LinkLost).await.unwrap();
    office.redeem(&second).await.expect("nobody works there any more");
}
