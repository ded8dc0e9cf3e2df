//! The model test: random days in an office, judged by what is really so; and
//! the stories of days that went wrong once.

mod building;
mod day;
mod dice;
mod office;

use std::collections::BTreeMap;
use std::time::Duration;

use tegata_domain::desktop::{Quarantine, State};
use tegata_domain::pool::{Kind, Reuse, Rules};
use tegata_domain::session::{self, Cause, Event};
use tegata_proto::claims::Claims;
use tegata_proto::code::Code;
use tegata_proto::id::{DesktopId, LinkNumber, SessionId};

use crate::day::{Day, grant_of};
use crate::dice::Dice;

const GRACE: Duration = Duration::from_hours(8);
const ALMOST_GRACE: Duration = Duration::from_secs(8 * 3_600 - 5);
const FLOATING: Rules = Rules { kind: Kind::Floating, reuse: Reuse::AfterLogoff, grace: GRACE };
const FLOATING_NEVER: Rules = Rules { reuse: Reuse::Never, ..FLOATING };
const DEDICATED: Rules = Rules { kind: Kind::Dedicated, ..FLOATING };
const DEDICATED_NEVER: Rules = Rules { reuse: Reuse::Never, ..DEDICATED };

/// How long a session may be in some of the pools.
const TIME_LIMIT: Duration = Duration::from_mins(3);

/// How many days are tried, and how many things happen on each.
const DAYS: u64 = 150;
const STEPS: u32 = 800;

/// Says which day it was when a check fails.
struct Diary {
    seed: u64,
    step: u32,
}

impl Drop for Diary {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}, step {}", self.seed, self.step);
        }
    }
}

#[test]
fn no_day_in_the_office_breaks_an_invariant() {
    let (mut handed_on, mut redeemed, mut ends) = (0, 0, BTreeMap::new());
    let (mut returned, mut resumed) = (0, 0);
    for seed in 0..DAYS {
        let mut diary = Diary { seed, step: 0 };
        let mut dice = Dice::new(seed);
        let mut day = Day::begin([FLOATING, FLOATING_NEVER, DEDICATED, DEDICATED_NEVER]);
        for pool in [1, 2] {
            day.office.terms[pool].session = Some(TIME_LIMIT);
        }
        for pool in [0, 0, 0, 1, 1, 1, 2, 2, 3] {
            day.install(pool, None);
        }
        day.install(2, Some("sato"));
        for step in 0..STEPS {
            diary.step = step;
            day.happens(&mut dice);
            day.building.inspect(&day.office);
            if dice.once_in(200) {
                let mut later = day.clone();
                later.evening();
                later.building.inspect(&later.office);
                assert_eq!(later.stuck(), None, "I13: a desktop has no way out");
            }
        }
        let epochs = day.office.seats.values().map(|seat| seat.desktop.epoch.0);
        handed_on += epochs.filter(|epoch| *epoch > 1).count();
        returned += day.returns.0;
        resumed += day.returns.1;
        for stay in day.office.stays.values() {
            redeemed += u32::from(stay.highest_link.0 > 0);
            if let session::State::Ended { cause } = stay.state {
                *ends.entry(cause).or_insert(0) += 1;
            }
        }
    }
    // A walk in which nothing happens would prove nothing.
    assert!(handed_on > 100, "only {handed_on} desktops changed hands");
    assert!(redeemed > 1_000, "only {redeemed} tickets were redeemed");
    assert!(returned > 1_000, "only {returned} grants opened a link");
    assert!(resumed > 100, "only {resumed} links went on with the wire that was kept");
    assert!(ends.len() == 7 && ends.values().all(|n| *n > 50), "only these ends: {ends:?}");
}

/// One floating pool with this many desktops.
fn office_of(desktops: usize) -> (Day, Vec<DesktopId>) {
    let mut day = Day::begin([FLOATING]);
    let ids = (0..desktops).map(|_| day.install(0, None)).collect();
    (day, ids)
}

/// Logs in, redeems, attaches and logs on.
fn works(day: &mut Day, person: &'static str) -> (DesktopId, SessionId) {
    let (desktop, claims) = dials(day, person);
    day.dialled(claims.sid);
    day.settle();
    day.building.logs_on(claims.sid);
    (desktop, claims.sid)
}

fn dials(day: &mut Day, person: &'static str) -> (DesktopId, Claims) {
    let claims = day.log_in(person, 0).expect("there is a desktop");
    (day.redeem(&claims).expect("the ticket is good"), claims)
}

#[test]
fn a_desktop_survives_a_short_outage_but_not_a_long_one() {
    let (mut day, _) = office_of(2);
    let (desktop, sid) = works(&mut day, "sato");
    day.link_ends(sid, Event::LinkLost);
    day.settle();
    day.office.wait(ALMOST_GRACE);
    day.due();
    let (again, sid) = works(&mut day, "sato");
    assert_eq!(again, desktop, "five seconds before the end of grace");

    day.link_ends(sid, Event::LinkLost);
    day.settle();
    day.office.wait(GRACE);
    day.due();
    day.settle();
    assert_eq!(day.office.stays[&sid].state, session::State::Ended { cause: Cause::GraceExpired });
    assert!(day.building.machine(desktop).logged_on.is_empty(), "Sato was logged off");
    assert!(matches!(day.office.state(desktop), Some(State::Ready { .. })));
}

#[test]
fn nobody_gets_a_desktop_before_its_last_holder_was_seen_logged_off() {
    let (mut day, ids) = office_of(1);
    let (_, sid) = works(&mut day, "sato");
    day.link_ends(sid, Event::LoggedOff);
    day.settle();
    assert_eq!(day.log_in("tanaka", 0), None, "the viewer said so, the desktop did not");

    day.building.machine(ids[0]).logged_on.clear();
    day.due();
    day.settle();
    assert!(day.log_in("tanaka", 0).is_some());
}

#[test]
fn a_desktop_whose_gateway_never_said_it_attached_still_counts_as_used() {
    let (mut day, ids) = office_of(1);
    let (_, claims) = dials(&mut day, "sato");
    day.dialled(claims.sid);
    day.building.logs_on(claims.sid);
    day.gateway_restarts();
    day.settle();
    day.office.wait(GRACE);
    day.due();
    for order in std::mem::take(&mut day.orders) {
        day.carry_out(order);
    }
    day.hear_all();
    // The order to log Sato off is lost as well.
    day.orders.clear();
    assert!(matches!(day.office.state(ids[0]), Some(State::Recycling { .. })));
    assert_eq!(day.log_in("tanaka", 0), None);
}

#[test]
fn a_desktop_is_not_handed_on_while_its_gateway_has_not_let_go() {
    let (mut day, ids) = office_of(1);
    let (_, sid) = works(&mut day, "sato");
    day.building.machine(ids[0]).logged_on.clear();
    day.hear(sid, Event::Disconnected);
    day.orders.clear();
    day.ask(ids[0]);
    day.settle();
    assert_eq!(day.log_in("tanaka", 0), None, "the order to close the link was lost");

    day.hear(sid, Event::EndWanted(Cause::Administrator));
    day.orders.clear();
    day.ask(ids[0]);
    day.settle();
    assert_eq!(day.log_in("tanaka", 0), None, "and so was the next");

    day.due();
    day.settle();
    assert!(day.log_in("tanaka", 0).is_some(), "the pass repeats it");
}

#[test]
fn an_answer_from_before_the_person_came_back_frees_nothing() {
    let (mut day, ids) = office_of(1);
    let (_, sid) = works(&mut day, "sato");
    day.building.machine(ids[0]).logged_on.clear();
    day.link_ends(sid, Event::LoggedOff);
    day.hear_all();
    day.orders.clear();
    day.ask(ids[0]);
    let late = day.answers.pop().expect("the desktop says that nobody is on");

    day.office.wait(Duration::from_secs(1));
    let (_, sid) = works(&mut day, "sato");
    day.link_ends(sid, Event::LinkLost);
    day.hear_all();
    day.learn(&late, false);
    assert!(day.office.live(ids[0]).contains(&sid), "the session goes on");
    assert_eq!(day.log_in("tanaka", 0), None);
}

#[test]
fn whoever_comes_back_as_the_grace_ends_is_not_logged_off() {
    let (mut day, ids) = office_of(1);
    let (_, sid) = works(&mut day, "sato");
    day.link_ends(sid, Event::LinkLost);
    day.settle();
    day.office.wait(ALMOST_GRACE);
    let ticket = day.log_in("sato", 0).expect("it is still Sato's");
    day.office.wait(Duration::from_secs(5));
    day.due();
    day.settle();
    assert!(day.building.machine(ids[0]).logged_on.contains("sato"));
    assert_eq!(day.redeem(&ticket), Ok(ids[0]));
}

#[test]
fn the_second_device_takes_over_when_it_redeems_and_not_when_it_logs_in() {
    let (mut day, _) = office_of(2);
    let (desktop, first) = works(&mut day, "sato");
    let ticket = day.log_in("sato", 0).expect("it is Sato's own");
    assert_eq!(day.office.stays[&first].state, session::State::Active);
    assert_eq!(day.redeem(&ticket), Ok(desktop));
    day.settle();
    let taken_over = session::State::Ended { cause: Cause::TakenOver };
    assert_eq!(day.office.stays[&first].state, taken_over);
    assert_eq!(day.redeem(&ticket), Err(Code::TicketUsed));
}

#[test]
fn a_desktop_that_never_answered_is_left_and_one_with_work_on_it_is_not() {
    let (mut day, ids) = office_of(2);
    day.building.machine(ids[0]).answers = false;
    let (fresh, claims) = dials(&mut day, "sato");
    assert_eq!(fresh, ids[0]);
    let waiting = day.log_in("sato", 0).expect("the first window has not told them yet");
    day.dialled(claims.sid);
    day.settle();
    let unreachable = session::State::Ended { cause: Cause::DesktopUnreachable };
    assert_eq!(day.office.stays[&claims.sid].state, unreachable);
    assert_eq!(day.redeem(&waiting), Err(Code::SessionEnded), "nor is its other session good");
    let reason = Quarantine::Unreachable;
    assert!(
        matches!(day.office.state(fresh), Some(State::Quarantined { reason: r, .. }) if r == reason)
    );

    let (second, sid) = works(&mut day, "sato");
    assert_eq!(second, ids[1]);
    day.link_ends(sid, Event::LinkLost);
    day.settle();
    day.building.machine(second).answers = false;
    let (_, claims) = dials(&mut day, "sato");
    day.dialled(claims.sid);
    day.settle();
    day.building.machine(second).answers = true;
    assert_eq!(dials(&mut day, "sato").0, second, "Sato's work is still there");
}

#[test]
fn a_dial_that_fails_once_does_not_lock_the_persons_own_desktop_away() {
    let mut day = Day::begin([FLOATING_NEVER]);
    let desktop = day.install(0, None);
    let (_, sid) = works(&mut day, "sato");
    day.link_ends(sid, Event::LinkLost);
    day.settle();
    day.building.machine(desktop).answers = false;
    let (_, claims) = dials(&mut day, "sato");
    day.dialled(claims.sid);
    day.settle();
    day.building.machine(desktop).answers = true;
    assert_eq!(works(&mut day, "sato").0, desktop);
}

#[test]
fn a_late_word_about_yesterday_does_not_touch_the_next_holder() {
    let (mut day, ids) = office_of(1);
    let (_, sid) = works(&mut day, "sato");
    day.building.machine(ids[0]).logged_on.clear();
    day.link_ends(sid, Event::LoggedOff);
    day.settle();
    let ticket = day.log_in("tanaka", 0).expect("Sato is gone");
    for event in [
        Event::DialFailed,
        Event::NotDialled,
        Event::LinkLost,
        Event::DesktopClosed,
        Event::LoggedOff,
        Event::Closed,
        Event::Attached,
        Event::EndWanted(Cause::Administrator),
        Event::Returned,
        Event::Tick,
    ] {
        day.hear(sid, event);
        assert_eq!(day.office.holder(ids[0]).as_deref(), Some("tanaka"), "after {event:?}");
    }
    assert_eq!(day.redeem(&ticket), Ok(ids[0]));
}

#[test]
fn a_dedicated_desktop_stays_its_owners() {
    let mut day = Day::begin([DEDICATED]);
    let own = day.install(0, Some("sato"));
    assert_eq!(day.log_in("tanaka", 0), None);
    day.building.machine(own).answers = false;
    let (_, claims) = dials(&mut day, "sato");
    day.dialled(claims.sid);
    day.settle();
    day.building.machine(own).answers = true;
    let (desktop, sid) = works(&mut day, "sato");
    assert_eq!(desktop, own, "after a failed dial");
    day.link_ends(sid, Event::LinkLost);
    day.settle();
    day.office.wait(GRACE * 2);
    day.due();
    day.settle();
    assert!(day.building.machine(own).logged_on.contains("sato"), "nobody needs the desktop");
    assert_eq!(works(&mut day, "sato").0, own, "after the grace");
}

#[test]
fn a_used_desktop_of_a_pool_without_reuse_waits_for_an_administrator() {
    let mut day = Day::begin([FLOATING_NEVER]);
    let desktop = day.install(0, None);
    let (_, sid) = works(&mut day, "sato");
    day.building.machine(desktop).logged_on.clear();
    day.link_ends(sid, Event::LoggedOff);
    day.settle();
    day.ask(desktop);
    day.probe(desktop);
    day.settle();
    for person in ["sato", "tanaka"] {
        assert_eq!(day.log_in(person, 0), None);
    }
    day.office.withdraw(desktop);
    day.building.inspect(&day.office);
    day.install(0, None);
    assert!(day.log_in("tanaka", 0).is_some(), "taken out and put in again");
}

#[test]
fn a_desktop_that_drains_leaves_after_its_holder_or_stays_if_it_is_listed_again() {
    let (mut day, ids) = office_of(2);
    let (first, sid) = works(&mut day, "sato");
    let (second, other) = works(&mut day, "tanaka");
    for id in &ids {
        day.office.withdraw(*id);
    }
    day.office.administer(second, tegata_domain::desktop::Event::Listed);
    for (id, sid) in [(first, sid), (second, other)] {
        day.building.machine(id).logged_on.clear();
        day.link_ends(sid, Event::LoggedOff);
    }
    day.settle();
    assert_eq!(day.office.state(first), None);
    assert!(matches!(day.office.state(second), Some(State::Ready { .. })));
}

#[test]
fn whoever_comes_back_in_time_goes_on_with_the_wire_that_was_kept() {
    let (mut day, _) = office_of(1);
    let (desktop, sid) = works(&mut day, "sato");
    let ticket = day.tickets[0].clone();
    for link in 2..5 {
        day.link_breaks(sid);
        day.settle();
        assert!(matches!(day.office.stays[&sid].state, session::State::Detached { .. }));
        assert_eq!(day.comes_back(&ticket, true), Ok(desktop));
        day.dialled(sid);
        day.settle();
        assert_eq!(day.office.stays[&sid].state, session::State::Active);
        assert_eq!(day.office.stays[&sid].highest_link, LinkNumber(link));
    }
    assert_eq!(day.returns, (3, 3));
}

#[test]
fn a_desktop_whose_wire_is_kept_is_not_handed_on_though_nobody_is_logged_on() {
    let (mut day, ids) = office_of(1);
    let (_, sid) = works(&mut day, "sato");
    day.link_breaks(sid);
    day.settle();
    day.building.machine(ids[0]).logged_on.clear();
    day.office.wait(Duration::from_secs(1));
    day.ask(ids[0]);
    let seen = day.answers.pop().expect("the desktop says that nobody is on");
    day.learn(&seen, false);
    day.orders.clear();
    assert_eq!(day.log_in("tanaka", 0), None, "the order to let it go was lost");
    assert_eq!(day.comes_back(&day.tickets[0].clone(), true), Err(Code::SessionEnded));

    day.due();
    day.settle();
    assert!(day.log_in("tanaka", 0).is_some(), "the pass repeats it");
}

#[test]
fn the_end_of_a_link_is_heard_after_the_next_one_is_there_and_changes_nothing() {
    let (mut day, _) = office_of(1);
    let (_, sid) = works(&mut day, "sato");
    let ticket = day.tickets[0].clone();
    // The gateway has not noticed that the link is gone, and knows once the next is there.
    day.comes_back(&ticket, true).expect("the session lives");
    let early = (sid, LinkNumber::FIRST, Event::LoggedOff);
    day.hear_report(early);
    day.dialled(sid);
    day.reports.reverse();
    day.settle();
    assert_eq!(day.office.stays[&sid].state, session::State::Active);
    // So is the gateway's word that it has closed the second, after the third is let in.
    day.hear(sid, Event::Disconnected);
    for order in std::mem::take(&mut day.orders) {
        day.carry_out(order);
    }
    day.comes_back(&ticket, false).expect("the desktop is still theirs");
    day.hear_all();
    day.dialled(sid);
    day.settle();
    assert_eq!(day.office.stays[&sid].state, session::State::Active);
}

#[test]
fn a_desktop_that_does_not_answer_whoever_comes_back_stays_theirs() {
    let (mut day, ids) = office_of(2);
    let (desktop, sid) = works(&mut day, "sato");
    let ticket = day.tickets[0].clone();
    for resumes in [true, false] {
        day.building.machine(desktop).answers = false;
        day.building.lets_go(sid);
        day.comes_back(&ticket, resumes).expect("the session lives");
        day.dialled(sid);
        day.settle();
        assert!(matches!(day.office.stays[&sid].state, session::State::Detached { .. }));
        assert_eq!(day.office.holder(desktop).as_deref(), Some("sato"));
    }
    day.building.machine(desktop).answers = true;
    assert_eq!(day.comes_back(&ticket, false), Ok(desktop));
    let tanakas = day.log_in("tanaka", 0).map(|claims| day.office.stays[&claims.sid].desktop);
    assert_eq!(tanakas, ids.into_iter().find(|id| *id != desktop));
}

#[test]
fn a_grant_opens_nothing_before_its_ticket_nor_after_the_end_nor_on_an_old_number() {
    let (mut day, _) = office_of(1);
    let ticket = day.log_in("sato", 0).expect("there is a desktop");
    assert_eq!(day.comes_back(&ticket, false), Err(Code::ResumeLost));
    day.redeem(&ticket).expect("the ticket is as good as before");
    day.dialled(ticket.sid);
    day.settle();
    for link in [0, 1] {
        let stale = day.shows_grant(&grant_of(&ticket), LinkNumber(link), true);
        assert_eq!(stale, Err(Code::LinkStale), "{link}");
    }
    assert_eq!(day.office.stays[&ticket.sid].state, session::State::Active, "nothing happened");
    day.hear(ticket.sid, Event::EndWanted(Cause::Administrator));
    let ended = Err(Code::EndedByAdministrator);
    assert_eq!(day.comes_back(&ticket, true), ended, "it ends");
    day.settle();
    assert_eq!(day.comes_back(&ticket, true), ended, "it is over");
}

#[test]
fn a_return_that_nobody_hears_of_again_leaves_a_session_without_a_link() {
    let (mut day, _) = office_of(1);
    let (desktop, sid) = works(&mut day, "sato");
    let ticket = day.tickets[0].clone();
    day.comes_back(&ticket, false).expect("the session lives");
    day.office.wait(session::STARTING_LIMIT);
    day.due();
    day.settle();
    assert!(matches!(day.office.stays[&sid].state, session::State::Detached { .. }));
    assert!(day.building.attempts.is_empty() && day.building.wires.is_empty());
    assert_eq!(day.comes_back(&ticket, false), Ok(desktop));
}
