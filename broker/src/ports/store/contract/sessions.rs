//! What becomes of sessions and their desktops.

use std::time::Duration;

use tegata_domain::desktop;
use tegata_domain::session::{Cause, Event, REQUESTED_LIMIT, State};
use tegata_domain::time::Timestamp;
use tegata_proto::code::Code;
use tegata_proto::id::{Epoch, LinkNumber};
use uuid::Uuid;

use super::{BOOT, Bench, GRACE, Login, Office, keiri};
use crate::ports::clock::Jump;
use crate::ports::store::{
    Actor, AssignError, EventError, Followup, LogOff, OccupancyTarget, action,
};

const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);
const YEAR: Duration = Duration::from_hours(365 * 24);

fn freed() -> Followup {
    Followup::Freed("keiri".parse().unwrap())
}

pub(crate) async fn a_day_leaves_one_record_for_each_change<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let (_, seq) = office.actions(0).await;
    let morning = office.work("sato").await;
    let link = Some(LinkNumber::FIRST);
    office.tell_of_link(morning.sid, Event::LinkLost, link).await.unwrap();
    office.wait(MINUTE);
    let back = office.work("sato").await;
    office.tell_of_link(morning.sid, Event::Closed, link).await.unwrap();
    let followups = office.tell_of_link(back.sid, Event::LoggedOff, link).await.unwrap();
    assert!(matches!(&followups[..], [Followup::AskOccupancy(target)]
        if target.account.as_deref() == Some("sato")));
    assert!(!office.is_ready().await, "not before the log-off was seen");
    office.wait(MINUTE);
    assert_eq!(office.observe(&["SATO"], office.now).await, [], "still there");
    assert_eq!(office.observe(&["root"], office.now).await, []);
    assert!(!office.is_ready().await, "not before it was looked at");
    assert_eq!(office.probe().await, [freed()]);
    assert!(office.is_ready().await);
    let wanted = [
        "session.requested",
        "session.starting",
        "session.active",
        "session.detached",
        "session.requested",
        "session.starting",
        "session.ending",
        "session.active",
        "session.ended",
        "session.ended",
        "desktop.recycled",
        "desktop.ready",
    ];
    let (mut actions, _) = office.actions(seq).await;
    // The two sessions of a takeover change in one instant.
    actions[5..7].sort_by(|a, b| b.cmp(a));
    assert_eq!(actions, wanted);
}

pub(crate) async fn the_end_of_an_older_link_changes_nothing<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.login("sato").await.unwrap();
    let mut redeem = office.redeem_of(&login);
    redeem.link = LinkNumber(2);
    office.store().redeem(redeem).await.unwrap();
    office.tell_of_link(login.sid, Event::Attached, Some(LinkNumber(2))).await.unwrap();
    let old = Some(LinkNumber::FIRST);
    assert_eq!(office.tell_of_link(login.sid, Event::LinkLost, old).await.unwrap(), []);
    assert_eq!(office.state(login.sid).await, State::Active);
    office.tell_of_link(login.sid, Event::LinkLost, Some(LinkNumber(2))).await.unwrap();
    assert!(matches!(office.state(login.sid).await, State::Detached { .. }));
}

pub(crate) async fn a_deadline_that_passed_is_settled_even_by_a_refused_event<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.login("sato").await.unwrap();
    office.wait(REQUESTED_LIMIT);
    let refused = office.tell(login.sid, Event::Disconnected).await;
    assert!(matches!(refused, Err(EventError::Refused(_))));
    assert_eq!(office.state(login.sid).await, State::Ended { cause: Cause::NeverAttached });
}

pub(crate) async fn what_lapsed_by_itself_is_nobodys_deed<B: Bench>() {
    let deed = |action: &str, actor| (action.to_owned(), actor);
    let first = Actor::ApiKey("first".into());
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.login("sato").await.unwrap();
    let (_, seq) = office.actions(0).await;
    office.wait(REQUESTED_LIMIT);
    let refused = office.order(login.sid, Event::Disconnected).await;
    assert!(matches!(refused, Err(EventError::Refused(_))));
    assert_eq!(office.deeds(seq).await, [deed(action::SESSION_ENDED, Actor::Broker)]);

    let login = office.work("sato").await;
    office.tell(login.sid, Event::LinkLost).await.unwrap();
    let (_, seq) = office.actions(0).await;
    office.wait(GRACE);
    let close = |code| Followup::CloseLinks { sid: login.sid, link: LinkNumber::FIRST, code };
    let done = office.order(login.sid, Event::Disconnected).await.unwrap();
    assert_eq!(done, [close(Code::SessionEnded)]);
    assert_eq!(office.deeds(seq).await, [deed(action::SESSION_ENDING, Actor::Broker)]);

    // Who has it ended now does so again, and hears of it when it is confirmed.
    let (_, seq) = office.actions(0).await;
    let end = Event::EndWanted(Cause::Administrator);
    assert_eq!(office.order(login.sid, end).await.unwrap(), [close(Code::SessionEnded)]);
    assert_eq!(office.deeds(seq).await, [deed(action::SESSION_TERMINATING, first)]);
}

pub(crate) async fn a_clock_that_is_set_back_keeps_no_desktop<B: Bench>() {
    let ahead = [(Event::LoggedOff, Duration::from_hours(1)), (Event::LinkLost, 365 * 24 * GRACE)];
    for (event, ahead) in ahead {
        let mut office = Office::<B>::with_desktops(1).await;
        let login = office.work("sato").await;
        let right = office.now;
        office.wait(ahead);
        office.probe().await;
        office.tell(login.sid, event).await.unwrap();
        let (_, seq) = office.actions(0).await;
        office.now = right;
        office.store().due(office.now, 10).await.unwrap();
        assert_eq!(office.actions(seq).await.0, [""; 0], "nothing has changed");
        if event == Event::LinkLost {
            let until = office.now.after(GRACE);
            assert_eq!(office.state(login.sid).await, State::Detached { until });
        } else {
            office.wait(Duration::from_secs(1));
            assert_eq!(office.observe(&[], office.now).await, []);
            let due = office.store().to_probe(office.now, 10).await.unwrap();
            assert_eq!(due.len(), 1, "though it was looked at later than now");
            assert_eq!(office.probe().await, [freed()]);
        }
    }
}

/// Returns when a session ends at the latest.
async fn ends_at<B: Bench>(office: &Office<B>, login: &Login) -> Option<Timestamp> {
    office.store().session(login.sid).await.unwrap().unwrap().ends_at
}

/// An office whose sessions last a day.
async fn by_the_day<B: Bench>(desktops: u16) -> Office<B> {
    let office = Office::<B>::with_desktops(desktops).await;
    let mut raw = keiri(desktops);
    raw.limits.session_ms = u64::try_from(DAY.as_millis()).ok();
    office.put(raw).await.unwrap();
    office
}

pub(crate) async fn a_clock_that_jumps_ahead_takes_no_time_from_anybody<B: Bench>() {
    let mut office = by_the_day::<B>(6).await;
    let begun = office.now;
    let at_work = office.work("sato").await;
    let late = office.work("suzuki").await;
    office.tell(late.sid, Event::LinkLost).await.unwrap();
    office.wait(MINUTE);
    let away = office.work("tanaka").await;
    office.tell(away.sid, Event::LinkLost).await.unwrap();
    let gone = office.work("kato").await;
    office.tell(gone.sid, Event::LoggedOff).await.unwrap();
    office.wait(GRACE.saturating_sub(MINUTE));
    let coming = office.login("ito").await.unwrap();

    office.wait(YEAR);
    let since = office.work("mori").await;
    let (_, seq) = office.actions(0).await;
    office.store().clock_jumped(Jump::Ahead(YEAR), office.now).await.unwrap();
    assert_eq!(office.actions(seq).await.0, [action::CLOCK_JUMPED]);
    let close = |login: &Login| {
        let (sid, link, code) = (login.sid, LinkNumber::FIRST, Code::SessionEnded);
        Followup::CloseLinks { sid, link, code }
    };
    let due = office.store().due(office.now, 10).await.unwrap();
    assert!(due.contains(&close(&late)), "it was due before: {due:?}");
    assert!(matches!(due[..], [_, _]), "{due:?}");
    assert!(due.iter().any(|f| matches!(f, Followup::AskOccupancy(_))), "no log-off: {due:?}");
    let until = begun.after(MINUTE + GRACE + YEAR);
    assert_eq!(office.state(away.sid).await, State::Detached { until });
    let until = office.now.after(REQUESTED_LIMIT);
    assert_eq!(office.state(coming.sid).await, State::Requested { until }, "and no longer");
    assert_eq!(ends_at(&office, &at_work).await, Some(begun.after(DAY + YEAR)));
    let back = office.come_back(&at_work, 2).await.unwrap();
    assert_eq!(back.ends_at, Some(begun.after(DAY + YEAR)), "nor by coming back");
    office.tell_of_link(at_work.sid, Event::Attached, Some(LinkNumber(2))).await.unwrap();
    assert_eq!(ends_at(&office, &since).await, Some(office.now.after(DAY)), "by the new clock");

    office.wait(MINUTE);
    let due = office.store().due(office.now, 10).await.unwrap();
    assert!(due.contains(&close(&away)), "{due:?}");
    assert!(due.iter().any(|f| matches!(f, Followup::LogOff(_))), "{due:?}");
}

pub(crate) async fn a_clock_that_is_set_right_again_gives_nobody_time<B: Bench>() {
    let mut office = by_the_day::<B>(4).await;
    let begun = office.now;
    let before = office.work("sato").await;
    office.wait(MINUTE);
    office.wait(YEAR);
    office.store().clock_jumped(Jump::Ahead(YEAR), office.now).await.unwrap();
    let meanwhile = office.work("tanaka").await;
    let away = office.work("kato").await;
    office.tell(away.sid, Event::LinkLost).await.unwrap();
    let coming = office.login("ito").await.unwrap();

    let set = async |office: &mut Office<B>, jump| {
        office.now = match jump {
            Jump::Ahead(by) => office.now.after(by),
            Jump::Back(by) => office.now.before(by),
        };
        office.store().clock_jumped(jump, office.now).await.unwrap();
    };
    set(&mut office, Jump::Back(YEAR)).await;
    for (login, begun) in [(&before, begun), (&meanwhile, begun.after(MINUTE))] {
        assert_eq!(ends_at(&office, login).await, Some(begun.after(DAY)));
        let back = office.come_back(login, 2).await.unwrap();
        assert_eq!(back.ends_at, Some(begun.after(DAY)));
        office.tell_of_link(login.sid, Event::Attached, Some(LinkNumber(2))).await.unwrap();
    }
    let until = office.now.after(GRACE);
    assert_eq!(office.state(away.sid).await, State::Detached { until });
    let until = office.now.after(REQUESTED_LIMIT);
    assert_eq!(office.state(coming.sid).await, State::Requested { until });

    // To and fro leaves everything as it was.
    office.wait(MINUTE);
    set(&mut office, Jump::Back(DAY)).await;
    set(&mut office, Jump::Ahead(DAY)).await;
    assert_eq!(ends_at(&office, &before).await, Some(begun.after(DAY)));
}

pub(crate) async fn links_closed_on_somebodys_word_are_a_record_each<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.work("sato").await;
    let (_, seq) = office.actions(0).await;
    for _ in 0..2 {
        let close = office.tell(login.sid, Event::Disconnected).await.unwrap();
        assert!(matches!(close[..], [Followup::CloseLinks { .. }]));
    }
    let (actions, seq) = office.actions(seq).await;
    assert_eq!(actions, [action::SESSION_DISCONNECTING; 2]);
    office.tell(login.sid, Event::LinkLost).await.unwrap();
    // There is no link left, and the gateway may keep the desktop for the next one.
    let close = office.tell(login.sid, Event::Disconnected).await.unwrap();
    assert!(matches!(close[..], [Followup::CloseLinks { .. }]));
    let wanted = [action::SESSION_DETACHED, action::SESSION_DISCONNECTING];
    assert_eq!(office.actions(seq).await.0, wanted);
}

pub(crate) async fn a_desktop_that_cannot_be_dialled_is_quarantined<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.login("sato").await.unwrap();
    office.redeem(&login).await.unwrap();
    let link = Some(LinkNumber::FIRST);
    office.tell_of_link(login.sid, Event::DialFailed, link).await.unwrap();
    let cause = Cause::DesktopUnreachable;
    assert_eq!(office.state(login.sid).await, State::Ended { cause });
    let desktop = office.desktop().await.desktop;
    assert!(matches!(desktop.state, desktop::State::Quarantined { .. }));
    assert!(matches!(office.login("tanaka").await, Err(AssignError::Exhausted)));
}

pub(crate) async fn an_answer_from_before_the_link_was_lost_frees_nothing<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.work("sato").await;
    let asked = office.now;
    office.wait(MINUTE);
    assert_eq!(office.observe(&[], asked).await, [], "a session with a link is never ended");
    office.tell(login.sid, Event::LinkLost).await.unwrap();
    assert_eq!(office.observe(&[], asked).await, []);
    assert!(matches!(office.state(login.sid).await, State::Detached { .. }));
}

pub(crate) async fn a_log_off_seen_on_the_desktop_ends_a_detached_session<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.work("sato").await;
    let asked = office.tell(login.sid, Event::DesktopClosed).await.unwrap();
    assert!(matches!(asked[..], [Followup::AskOccupancy(_)]));
    office.wait(MINUTE);
    assert_eq!(office.observe(&["sato"], office.now).await, []);
    let (_, seq) = office.actions(0).await;
    let (link, code) = (LinkNumber::FIRST, Code::LoggedOff);
    let close = Followup::CloseLinks { sid: login.sid, link, code };
    assert_eq!(office.observe(&[], office.now).await, [close]);
    assert_eq!(office.state(login.sid).await, State::Ending { cause: Cause::LoggedOff });
    assert_eq!(office.observe(&[], office.now).await, [], "a gateway may be connected");

    let asked = office.tell_of_link(login.sid, Event::Closed, Some(link)).await.unwrap();
    assert!(matches!(asked[..], [Followup::AskOccupancy(_)]));
    assert_eq!(office.observe(&[], office.now).await, []);
    assert_eq!(office.state(login.sid).await, State::Ended { cause: Cause::LoggedOff });
    assert_eq!(office.probe().await, [freed()]);
    assert!(office.is_ready().await);
    let wanted = ["session.ending", "session.ended", "desktop.recycled", "desktop.ready"];
    assert_eq!(office.actions(seq).await.0, wanted, "one act, one record");
}

pub(crate) async fn what_nobody_confirmed_is_due_again<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.work("sato").await;
    let (link, code) = (LinkNumber::FIRST, Code::EndedByAdministrator);
    let close = Followup::CloseLinks { sid: login.sid, link, code };
    let end = Event::EndWanted(Cause::Administrator);
    let close = [close];
    assert_eq!(office.tell(login.sid, end).await.unwrap(), close);
    assert_eq!(office.store().due(office.now, 10).await.unwrap(), close);
    assert_eq!(office.store().due(office.now, 10).await.unwrap(), close);
    // A link that is gone may have left its desktop to the next one.
    office.tell_of_link(login.sid, Event::LinkLost, Some(link)).await.unwrap();
    assert_eq!(office.store().due(office.now, 10).await.unwrap(), close);
    office.tell_of_link(login.sid, Event::Closed, Some(link)).await.unwrap();
    let asked = office.store().due(office.now, 10).await.unwrap();
    assert!(matches!(asked[..], [Followup::AskOccupancy(_)]));
    office.wait(GRACE);
    let overdue = office.store().due(office.now, 10).await.unwrap();
    assert!(matches!(overdue[..], [Followup::LogOff(_)]), "who does not log off is logged off");
    assert_eq!(office.store().due(office.now, 0).await.unwrap(), [], "the limit holds");
}

pub(crate) async fn whoever_never_came_back_is_logged_off_once_their_gateway_has_let_go<
    B: Bench,
>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.work("sato").await;
    office.tell(login.sid, Event::LinkLost).await.unwrap();
    office.wait(GRACE);
    let (link, code) = (LinkNumber::FIRST, Code::SessionEnded);
    let close = [Followup::CloseLinks { sid: login.sid, link, code }];
    assert_eq!(office.store().due(office.now, 10).await.unwrap(), close);
    let cause = Cause::GraceExpired;
    assert_eq!(office.state(login.sid).await, State::Ending { cause });
    assert_eq!(office.desktop().await.desktop.state, desktop::State::Assigned);

    let over = office.tell_of_link(login.sid, Event::Closed, Some(link)).await.unwrap();
    assert!(matches!(over[..], [Followup::LogOff(_)]), "{over:?}");
    assert_eq!(office.state(login.sid).await, State::Ended { cause });
}

pub(crate) async fn a_new_process_detaches_what_the_old_one_carried<B: Bench>() {
    let mut office = Office::<B>::with_desktops(4).await;
    let active = office.work("sato").await;
    let starting = office.login("tanaka").await.unwrap();
    office.redeem(&starting).await.unwrap();
    let returning = office.work("kato").await;
    office.come_back(&returning, 2).await.unwrap();
    let ending = office.work("ito").await;
    office.tell(ending.sid, Event::EndWanted(Cause::Administrator)).await.unwrap();
    assert_eq!(office.store().recover(BOOT, office.now).await.unwrap(), 0, "its own are its own");

    let next = Uuid::from_u128(0xb008);
    assert_eq!(office.store().recover(next, office.now).await.unwrap(), 4);
    for login in [&active, &starting, &returning] {
        assert!(matches!(office.state(login.sid).await, State::Detached { .. }));
    }
    assert_eq!(office.state(ending.sid).await, State::Ended { cause: Cause::Administrator });
    let records = office.desktops(&"keiri".parse().unwrap()).await;
    let used = records.iter().filter(|record| record.desktop.used).count();
    assert_eq!(used, 4, "the one that was starting may have been connected");
    assert_eq!(office.store().recover(next, office.now).await.unwrap(), 0);
}

pub(crate) async fn only_a_ticket_starts_a_session<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.login("sato").await.unwrap();
    let refused = office.tell(login.sid, Event::Redeemed).await;
    assert!(matches!(refused, Err(EventError::Refused(_))));
    assert!(matches!(office.state(login.sid).await, State::Requested { .. }));
    office.redeem(&login).await.unwrap();
    let refused = office.tell(login.sid, Event::Returned).await;
    assert!(matches!(refused, Err(EventError::Refused(_))), "and only a grant lets it return");
    assert!(matches!(office.state(login.sid).await, State::Starting { .. }));
}

pub(crate) async fn a_log_off_is_due_until_its_holder_comes_back<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.work("sato").await;
    office.tell(login.sid, Event::LoggedOff).await.unwrap();
    office.wait(GRACE);
    let due = async |office: &Office<B>| {
        let followups = office.store().due(office.now, 10).await.unwrap();
        let [Followup::LogOff(log_off)] = &followups[..] else { panic!("{followups:?}") };
        log_off.clone()
    };
    let first = due(&office).await;
    let is_due =
        async |office: &Office<B>, log_off| office.store().is_log_off_due(log_off).await.unwrap();
    assert!(is_due(&office, &first).await);
    let others = [
        LogOff { epoch: Epoch(first.epoch.0 + 1), ..first.clone() },
        LogOff {
            target: OccupancyTarget { account: None, ..first.target.clone() },
            ..first.clone()
        },
    ];
    for other in &others {
        assert!(!is_due(&office, other).await, "{other:?}");
    }

    let back = office.work("sato").await;
    assert!(!is_due(&office, &first).await, "they are back");
    office.tell(back.sid, Event::LoggedOff).await.unwrap();
    assert!(!is_due(&office, &first).await, "they have the grace once more");
    office.wait(GRACE);
    let second = due(&office).await;
    assert!(is_due(&office, &second).await);
    office.observe(&[], office.now).await;
    assert!(!is_due(&office, &second).await, "it is free");
}

pub(crate) async fn sessions_without_a_link_are_listed_in_order<B: Bench>() {
    let mut office = Office::<B>::with_desktops(5).await;
    let mut detached = Vec::new();
    for name in ["sato", "tanaka", "ito"] {
        let login = office.work(name).await;
        office.tell(login.sid, Event::LinkLost).await.unwrap();
        detached.push((login.sid, login.assigned.desktop, Some(name.to_owned())));
    }
    office.work("kato").await;
    office.login("yamada").await.unwrap();
    let over = detached.pop().unwrap();
    office.tell(over.0, Event::LoggedOff).await.unwrap();

    let mut listed = Vec::new();
    let mut after = None;
    loop {
        let page = office.store().detached(after, 1).await.unwrap();
        let Some((sid, target)) = page.into_iter().next() else { break };
        listed.push((sid, target.desktop, target.account));
        after = Some(sid);
    }
    assert_eq!(listed, detached);
    assert_eq!(office.store().detached(None, 10).await.unwrap().len(), 2);
}
