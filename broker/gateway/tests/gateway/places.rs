//! Where links come from, and how long they may go on.

use std::io::ErrorKind;
use std::time::Duration;

use tegata_gateway::redeem::{Limits, LinkEnd, Place, Refused};
use tegata_gateway::standing::{DECISION_DEADLINE, OUTDATED_DEADLINE};
use tegata_proto::code::Code;
use tegata_proto::policy::Policy;
use tegata_proto::session::{AgentMessage, GatewayMessage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval};

use super::open;
use crate::office::{Call, Line, desktop, within};

const OTHERWISE: Policy = Policy {
    clipboard: true,
    drive: false,
    printer: false,
    usb: false,
    sound: false,
    profile: None,
};

const ENDLESS: Limits = Limits { idle: None, ends_in: None };

/// Sends something both ways.
async fn is_carried(line: &mut Line, desktop: &mut TcpStream) {
    let mut heard = [0; 4];
    within(line.send.write_all(b"ping")).await.expect("it goes");
    within(desktop.read_exact(&mut heard)).await.expect("it comes");
    within(desktop.write_all(b"pong")).await.expect("it goes");
    within(line.recv.read_exact(&mut heard)).await.expect("it comes");
}

async fn notice(call: &mut Call) -> (String, Vec<(String, String)>) {
    let heard = call.hear().await;
    let GatewayMessage::Notice { code, args } = heard else { unreachable!("heard {heard:?}") };
    (code, args.into_iter().collect())
}

async fn is_reset(desktop: &mut TcpStream) -> bool {
    let broken = within(desktop.read(&mut [0; 64])).await;
    broken.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn a_link_that_comes_from_elsewhere_is_judged_again_and_goes_on() {
    let office = open();
    office.broker.says_of("other", Ok(Place { policy: Policy::default(), limits: ENDLESS }));
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (mut call, mut line, mut desktop) = office.seat(&person, &listener).await;
    assert_eq!(office.sessions.live()[0].class.as_str(), "office");

    office.leave();
    is_carried(&mut line, &mut desktop).await;
    let heard = call.hear().await;
    let policy = Policy::default();
    assert_eq!(heard, GatewayMessage::Policy { policy, input_every_ms: Some(60_000) });
    let moved = office.broker.until(|books| books.moved.first().cloned()).await;
    assert_eq!((moved.sid, moved.class.as_str()), (person.sid, "other"));
    assert_eq!(moved.remote.ip().to_string(), "127.0.0.2");
    let carried = &office.sessions.live()[0];
    assert_eq!((carried.class.as_str(), carried.remote), ("other", moved.remote));
    is_carried(&mut line, &mut desktop).await;
    assert_eq!(office.broker.until(|books| Some(books.moved.len())).await, 1, "told once");
}

#[tokio::test]
async fn a_link_that_changes_ports_all_the_time_is_seen_to_be_elsewhere() {
    let office = open();
    office.broker.says_of("other", Ok(Place { policy: Policy::default(), limits: ENDLESS }));
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (_call, mut line, mut desktop) = office.seat(&person, &listener).await;
    let wanders = async {
        // More often than the gateway looks.
        let mut beat = interval(Duration::from_millis(250));
        loop {
            beat.tick().await;
            office.leave();
            is_carried(&mut line, &mut desktop).await;
        }
    };
    let moved = office.broker.until(|books| books.moved.first().cloned());
    let moved = tokio::select! {
        () = wanders => unreachable!("it wanders for ever"),
        moved = moved => moved,
    };
    assert_eq!((moved.sid, moved.class.as_str()), (person.sid, "other"));
    let carried = &office.sessions.live()[0];
    assert_eq!((carried.class.as_str(), carried.remote.ip()), ("other", moved.remote.ip()));
}

#[tokio::test]
async fn a_desktops_connection_that_was_made_for_other_things_does_not_go_on() {
    let office = open();
    office.broker.says_of("other", Ok(Place { policy: OTHERWISE, limits: ENDLESS }));
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (mut call, mut line, mut desktop) = office.seat(&person, &listener).await;
    office.leave();
    is_carried(&mut line, &mut desktop).await;
    let class = ("class".to_owned(), "other".to_owned());
    assert_eq!(notice(&mut call).await, ("policy_changed".to_owned(), vec![class]));
    let told = Instant::now();
    let policy = GatewayMessage::Policy { policy: OTHERWISE, input_every_ms: Some(60_000) };
    assert_eq!(call.hear().await, policy);
    is_carried(&mut line, &mut desktop).await;
    // The agent does nothing about it.
    assert!(is_reset(&mut desktop).await);
    assert!(told.elapsed() + Duration::from_secs(1) > OUTDATED_DEADLINE);
    assert_eq!(call.refused().await, Code::Unavailable, "it may come back");
    assert_eq!(office.broker.report(person.sid).await.end, LinkEnd::Outdated);
    assert_eq!(office.held(), 0, "and not to the same connection");
}

#[tokio::test]
async fn a_session_that_may_not_be_used_from_there_is_told_so_and_ends() {
    let office = open();
    office.broker.says_of("other", Err(Refused::Code(Code::NotAllowedHere)));
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (mut call, mut line, mut desktop) = office.seat(&person, &listener).await;
    office.leave();
    is_carried(&mut line, &mut desktop).await;
    assert_eq!(notice(&mut call).await.0, "not_allowed_here");
    assert_eq!(call.hear().await, GatewayMessage::End { cause: Code::NotAllowedHere });
    assert!(is_reset(&mut desktop).await);
    let report = office.broker.report(person.sid).await;
    assert_eq!(report.end, LinkEnd::Ended(Code::NotAllowedHere));
    assert_eq!(office.held(), 0);
}

#[tokio::test]
async fn a_link_that_nobody_decides_on_is_closed_and_may_come_back() {
    let office = open();
    office.broker.hold_for(600);
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (mut call, mut line, mut desktop) = office.seat(&person, &listener).await;
    office.leave();
    is_carried(&mut line, &mut desktop).await;
    office.broker.until(|books| books.moved.first().cloned()).await;
    let asked = Instant::now();
    assert_eq!(call.refused().await, Code::Unavailable);
    assert!(asked.elapsed() + Duration::from_secs(1) > DECISION_DEADLINE);
    assert_eq!(office.broker.report(person.sid).await.end, LinkEnd::Undecided);
    assert_eq!(office.held(), 1, "the desktop's connection waits for the next link");
}

#[tokio::test]
async fn a_session_whose_time_is_over_ends_after_a_warning() {
    let office = open();
    let ends_in = Some(Duration::from_secs(11));
    office.broker.bound_by(Limits { idle: None, ends_in });
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (mut call, mut line, mut desktop) = office.seat(&person, &listener).await;
    let left = ("left_s".to_owned(), "10".to_owned());
    assert_eq!(notice(&mut call).await, ("time_limit_soon".to_owned(), vec![left]));
    is_carried(&mut line, &mut desktop).await;
    assert_eq!(call.hear().await, GatewayMessage::End { cause: Code::TimeLimit });
    assert!(is_reset(&mut desktop).await);
    assert_eq!(office.broker.report(person.sid).await.end, LinkEnd::Ended(Code::TimeLimit));
}

#[tokio::test]
async fn a_thin_client_that_nobody_touches_is_warned_and_ends_by_its_own_word() {
    let office = open();
    office.broker.bound_by(Limits { idle: Some(Duration::from_mins(1)), ends_in: None });
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let mut call = office.call().await;
    call.attach(person.attach(person.ticket(), 1, &call.exporter)).await;
    let (attached, accepted) = tokio::join!(call.attached(), within(listener.accept()));
    assert_eq!(attached.input_every_ms, Some(15_000));
    let (mut line, mut desktop) = (call.open().await, accepted.expect("a connection").0);
    for _ in 0..10_000 {
        call.say(&AgentMessage::Input { idle_ms: 0 }).await;
    }
    call.say(&AgentMessage::Input { idle_ms: 40_000 }).await;
    let left = ("left_s".to_owned(), "20".to_owned());
    assert_eq!(notice(&mut call).await, ("idle_soon".to_owned(), vec![left]), "and no more");
    is_carried(&mut line, &mut desktop).await;
    call.say(&AgentMessage::Input { idle_ms: u64::MAX }).await;
    assert_eq!(call.hear().await, GatewayMessage::End { cause: Code::IdleLimit });
    assert!(is_reset(&mut desktop).await);
    let report = office.broker.report(person.sid).await;
    assert_eq!(report.end, LinkEnd::Ended(Code::IdleLimit));
    assert_eq!(report.input_minutes, Some(1));
}
