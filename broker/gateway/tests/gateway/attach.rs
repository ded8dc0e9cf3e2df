//! Who is carried, and how the others are answered.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use tegata_gateway::proof::{purpose_of, thumbprint};
use tegata_gateway::redeem::{DialFailure, LinkEnd};
use tegata_gateway::sessions::LINKS_MAX;
use tegata_proto::claims::{Confirmation, TYP_TICKET};
use tegata_proto::code::Code;
use tegata_proto::encoding::{Bytes, Secret};
use tegata_proto::frame::LIMIT_BEFORE;
use tegata_proto::id::{GatewayGroup, Incarnation, LinkNumber};
use tegata_proto::proof::Purpose;
use tegata_proto::session::{AgentMessage, GatewayMessage, Mode, Resume, Right};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::open;
use crate::office::{Call, Key, Office, PATIENCE, Person, desktop, header, within};

#[tokio::test]
async fn a_good_ticket_is_attached_and_its_bytes_reach_the_desktop() {
    let office = open();
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let mut call = office.call().await;
    call.attach(person.attach(person.ticket(), 1, &call.exporter)).await;
    let attached = call.attached().await;
    assert_eq!(attached.mode, Mode::Fresh);
    assert_eq!(attached.gateway.id.as_str(), "gw-1");
    assert_eq!(attached.gateway.direct_addresses, ["192.0.2.1:443".parse().expect("an address")]);
    let (mut desktop, _) = within(listener.accept()).await.expect("dialled before attached");

    let listed = office.sessions.live();
    assert_eq!((listed.len(), listed[0].sid, listed[0].target), (1, person.sid, target));
    assert_eq!(listed[0].class.as_str(), "office");

    let mut line = call.open().await;
    line.send.write_all(b"hello").await.expect("room");
    let mut heard = [0; 5];
    within(desktop.read_exact(&mut heard)).await.expect("five bytes");
    assert_eq!(&heard, b"hello");
    desktop.write_all(b"world!").await.expect("room");
    let mut heard = [0; 6];
    within(line.recv.read_exact(&mut heard)).await.expect("six bytes");
    assert_eq!(&heard, b"world!");

    call.bye(Code::LoggedOff).await;
    line.send.finish().expect("open");
    let report = office.broker.report(person.sid).await;
    assert_eq!(report.end, LinkEnd::AgentBye(Code::LoggedOff));
    assert_eq!((report.bytes_up, report.bytes_down), (5, 6));
    assert!(report.last_byte_at.is_some());
    assert_eq!(within(desktop.read(&mut heard)).await.expect("closed in order"), 0);
    assert!(office.sessions.live().is_empty());

    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &office.registry).expect("text");
    for figure in [
        "gateway_sessions{class=\"office\"} 0",
        "gateway_link_ends_total{end=\"agent_bye\"} 1",
        "gateway_carried_up_bytes_total 5",
        "gateway_carried_down_bytes_total 6",
        "gateway_dial_seconds_count 1",
    ] {
        assert!(text.contains(figure), "{figure} in {text}");
    }
}

/// Attaches with something wrong, and returns how it was refused.
async fn refused(office: &Office, attach: impl FnOnce(&Call) -> AgentMessage) -> Code {
    let mut call = office.call().await;
    let message = attach(&call);
    call.say(&message).await;
    call.refused().await
}

fn signed(office: &Office, person: &Person, change: impl FnOnce(&mut Person)) -> Person {
    let mut other = Person {
        sid: person.sid,
        key: Key::new(),
        ticket: String::new(),
        grant: String::new(),
        claims: person.claims.clone(),
    };
    other.claims.cnf = Confirmation { jkt: thumbprint(&other.key.public()) };
    change(&mut other);
    let claims = serde_json::to_value(&other.claims).expect("JSON");
    other.ticket = office.signer.token(&header(TYP_TICKET), &claims);
    other
}

#[tokio::test]
async fn what_public_keys_can_refuse_never_reaches_the_broker() {
    let office = open();
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let ticket = |person: &Person, call: &Call| person.attach(person.ticket(), 1, &call.exporter);

    let forged = Key::new().token(&header(TYP_TICKET), &json!({}));
    let as_ticket = Right::Ticket(Secret::new(&person.grant));
    let as_grant = Right::Grant(Secret::new(&person.ticket));
    for right in [Right::Ticket(Secret::new(forged)), as_ticket, as_grant] {
        let code =
            refused(&office, |call| AgentMessage::Attach(person.attach(right, 1, &call.exporter)));
        assert_eq!(code.await, Code::TicketInvalid);
    }

    let elsewhere = signed(&office, &person, |other| {
        other.claims.aud = GatewayGroup::new("osaka").expect("a name");
    });
    let code = refused(&office, |call| AgentMessage::Attach(ticket(&elsewhere, call)));
    assert_eq!(code.await, Code::WrongGroup);

    // The ticket of somebody else, with one's own key and a good proof by it.
    let thief = signed(&office, &person, |_| {});
    let thief = Person { ticket: person.ticket.clone(), ..thief };
    let code = refused(&office, |call| AgentMessage::Attach(ticket(&thief, call)));
    assert_eq!(code.await, Code::WrongKey, "another key");

    // A proof that was made on another connection.
    let other = office.call().await;
    let code = refused(&office, |_| AgentMessage::Attach(ticket(&person, &other)));
    assert_eq!(code.await, Code::WrongKey, "another connection");

    let Purpose::Ticket(digest) = purpose_of(&person.ticket()) else {
        panic!("a ticket's proof is a ticket's");
    };
    for purpose in [Purpose::Login, Purpose::Resume(digest)] {
        let code = refused(&office, |call| {
            let (right, link) = (person.ticket(), LinkNumber::FIRST);
            AgentMessage::Attach(person.attach_proven(purpose, right, link, &call.exporter))
        });
        assert_eq!(code.await, Code::WrongKey, "another kind");
    }
    let code = refused(&office, |call| {
        let mut attach = ticket(&person, call);
        attach.link = LinkNumber(2);
        AgentMessage::Attach(attach)
    });
    assert_eq!(code.await, Code::WrongKey, "another link");
    let code = refused(&office, |call| {
        let mut attach = ticket(&person, call);
        attach.proof = Bytes([0; 64]);
        AgentMessage::Attach(attach)
    });
    assert_eq!(code.await, Code::WrongKey, "no signature");

    let code = refused(&office, |call| {
        AgentMessage::Attach(person.attach(person.ticket(), 0, &call.exporter))
    });
    assert_eq!(code.await, Code::LinkStale, "the login's number");
    let code = refused(&office, |call| {
        let mut attach = ticket(&person, call);
        attach.resume = Some(Resume { incarnation: Incarnation(1), received: [].into() });
        AgentMessage::Attach(attach)
    });
    assert_eq!(code.await, Code::ResumeLost);
    let code = refused(&office, |call| {
        let mut attach = ticket(&person, call);
        attach.v = 2;
        AgentMessage::Attach(attach)
    });
    assert_eq!(code.await, Code::Unsupported, "another version");

    assert_eq!(office.broker.asked(), 0);
    let told = office.broker.refused();
    let codes: Vec<_> = told.iter().map(|report| report.code).collect();
    assert_eq!(
        codes,
        [
            [Code::TicketInvalid; 3].as_slice(),
            &[Code::WrongGroup],
            &[Code::WrongKey; 6],
            &[Code::LinkStale, Code::ResumeLost, Code::Unsupported],
        ]
        .concat(),
        "the broker is told of each"
    );
    let stolen = told[4].shown.as_ref().expect("it showed a ticket");
    assert_eq!(stolen.right.token().expose(), person.ticket);
    office.seat(&person, &listener).await;
    assert_eq!(office.broker.asked(), 1, "and the ticket is still good");
    assert_eq!(office.broker.refused().len(), told.len());
}

#[tokio::test]
async fn a_first_frame_that_is_no_attach_is_refused() {
    let office = open();
    for (message, code) in [
        (json!({"type": "bye", "code": "logged_off"}), Code::Malformed),
        (json!({"type": "ack", "channel": "rdp", "received": 1}), Code::Malformed),
        (json!({"type": "attach"}), Code::Malformed),
        (json!("attach"), Code::Malformed),
        (json!({"type": "attach", "v": 1, "ticket": "x".repeat(5000)}), Code::Malformed),
        (json!({"type": "dance"}), Code::Unsupported),
    ] {
        let mut call = office.call().await;
        call.say(&message).await;
        assert_eq!(call.refused().await, code, "{message}");
    }
}

#[tokio::test]
async fn an_agent_that_keeps_us_waiting_is_sent_away() {
    let office = open();
    let silent = office.call().await;
    let Call { writer, mut reader, connection, .. } = office.call().await;
    let mut stream = writer.into_inner();
    stream.write_all(&[0, 0, 1]).await.expect("room");
    let deadline = Instant::now() + PATIENCE;
    let said: GatewayMessage = reader.read(LIMIT_BEFORE, deadline).await.expect("an answer");
    assert_eq!(said, GatewayMessage::Error(Code::Timeout.into()), "half a frame");
    within(connection.closed()).await;
    within(silent.connection.closed()).await;

    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let mut call = office.call().await;
    call.attach(person.attach(person.ticket(), 1, &call.exporter)).await;
    call.attached().await;
    within(listener.accept()).await.expect("a connection");
    assert_eq!(call.refused().await, Code::Timeout, "no channel");
    let report = office.broker.report(person.sid).await;
    assert_eq!(report.end, LinkEnd::AgentFault(Code::Timeout));
}

#[tokio::test]
async fn a_ticket_opens_one_link() {
    let office = open();
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (mut call, _line, _desktop) = office.seat(&person, &listener).await;
    let code = refused(&office, |call| {
        AgentMessage::Attach(person.attach(person.ticket(), 2, &call.exporter))
    });
    assert_eq!(code.await, Code::TicketUsed);
    call.bye(Code::Disconnected).await;
    office.broker.report(person.sid).await;
    let code = refused(&office, |call| {
        AgentMessage::Attach(person.attach(person.ticket(), 3, &call.exporter))
    });
    assert_eq!(code.await, Code::TicketUsed);
}

#[tokio::test]
async fn a_broker_that_is_slow_makes_the_agent_try_again() {
    let office = open();
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let held = office.broker.hold().await;
    let mut call = office.call().await;
    call.attach(person.attach(person.ticket(), 1, &call.exporter)).await;
    let GatewayMessage::Error(failure) = call.hear().await else {
        panic!("an error is expected");
    };
    assert_eq!(failure.code, Code::Busy);
    assert!(failure.retry_after_ms.is_some());
    drop(held);
    // The broker believes in the link: it has to hear that there is none.
    let report = office.broker.report(person.sid).await;
    assert_eq!((report.end, report.link), (LinkEnd::Unanswered, LinkNumber::FIRST));
    assert!(office.sessions.live().is_empty());
    drop(listener);
}

#[tokio::test]
async fn many_who_are_told_to_come_back_are_not_told_to_come_at_once() {
    const PEOPLE: u128 = 20;
    const ASKED: Duration = Duration::from_secs(10);
    let office = open();
    let (_listener, target) = desktop().await;
    office.broker.busy_for(ASKED);
    let mut hints = BTreeSet::new();
    for n in 0..PEOPLE {
        let person = office.person(n, target);
        let mut call = office.call().await;
        call.attach(person.attach(person.ticket(), 1, &call.exporter)).await;
        let heard = call.hear().await;
        let GatewayMessage::Error(failure) = heard else { panic!("{heard:?}") };
        assert_eq!(failure.code, Code::Busy);
        hints.insert(Duration::from_millis(failure.retry_after_ms.expect("a hint")));
    }
    assert!(hints.len() > 10, "{hints:?}");
    assert!(hints.iter().all(|hint| (ASKED..=ASKED * 2).contains(hint)), "{hints:?}");
}

#[tokio::test]
async fn an_agent_that_leaves_before_the_answer_is_reported() {
    let office = open();
    let (_listener, target) = desktop().await;
    let person = office.person(1, target);
    let held = office.broker.hold().await;
    let mut call = office.call().await;
    call.attach(person.attach(person.ticket(), 1, &call.exporter)).await;
    office.broker.until(|books| (books.asked == 1).then_some(())).await;
    call.connection.close(0_u32.into(), b"");
    drop(held);
    assert_eq!(office.broker.report(person.sid).await.end, LinkEnd::AgentGone);
    assert!(office.sessions.live().is_empty());
}

#[tokio::test]
async fn a_desktop_outside_the_list_is_not_dialled() {
    let office = open();
    let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.expect("a port");
    let person = office.person(1, listener.local_addr().expect("an address"));
    let code = refused(&office, |call| {
        AgentMessage::Attach(person.attach(person.ticket(), 1, &call.exporter))
    });
    assert_eq!(code.await, Code::DesktopUnreachable);
    let why = office.broker.until(|books| books.unreachable.first().map(|report| report.why));
    assert_eq!(why.await, DialFailure::NotAllowed);
    let waiting = std::future::poll_fn(|cx| std::task::Poll::Ready(listener.poll_accept(cx)));
    assert!(waiting.await.is_pending(), "nobody knocked");
}

#[tokio::test]
async fn a_desktop_that_does_not_listen_is_unreachable() {
    let office = open();
    let (listener, target) = desktop().await;
    drop(listener);
    let person = office.person(1, target);
    let code = refused(&office, |call| {
        AgentMessage::Attach(person.attach(person.ticket(), 1, &call.exporter))
    });
    assert_eq!(code.await, Code::DesktopUnreachable);
    let found = office.broker.until(|books| books.unreachable.first().copied()).await;
    assert_eq!((found.sid, found.why), (person.sid, DialFailure::Refused));
    assert!(office.sessions.live().is_empty());
}

#[tokio::test]
async fn a_session_has_few_links_at_a_time() {
    let office = open();
    let (_listener, target) = desktop().await;
    let person = office.person(1, target);
    let held = office.broker.hold().await;
    let mut calls = Vec::new();
    for link in 1..=LINKS_MAX {
        let mut call = office.call().await;
        call.attach(person.attach(person.grant(), link as u64, &call.exporter)).await;
        office.broker.until(|books| (books.asked == link).then_some(())).await;
        calls.push(call);
    }
    let code = refused(&office, |call| {
        AgentMessage::Attach(person.attach(person.grant(), 99, &call.exporter))
    });
    assert_eq!(code.await, Code::Busy);
    assert_eq!(office.broker.asked(), LINKS_MAX);
    drop(held);
}
