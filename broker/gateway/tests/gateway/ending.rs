//! Ends that come from elsewhere: the kill list, a newer link, a drain.

use std::io::ErrorKind;
use std::time::Duration;

use tegata_edge::connection::Transport;
use tegata_gateway::redeem::LinkEnd;
use tegata_proto::code::Code;
use tegata_proto::id::{Incarnation, LinkNumber};
use tegata_proto::session::GatewayMessage;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::open;
use crate::office::{desktop, within};

/// Reads until the desktop's connection breaks; an orderly end is no reset.
async fn is_reset(desktop: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match within(desktop.read(&mut buffer)).await {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

#[tokio::test]
async fn an_ended_session_carries_nothing_more_and_its_desktop_is_reset() {
    let office = open();
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (mut call, mut line, mut desktop) = office.seat(&person, &listener).await;
    // Fill what there is to fill on the way to an agent that does not read.
    let piece = vec![7; 1024 * 1024];
    for _ in 0..2 {
        within(desktop.write_all(&piece)).await.expect("room");
    }
    within(line.recv.read_exact(&mut [0; 1])).await.expect("it flows");
    office.broker.end(person.sid);
    let ended = within(office.sessions.end(person.sid, Code::DeviceRevoked)).await;
    let ended = ended.expect("it was carried");
    assert!(office.sessions.live().is_empty());
    assert!(office.sessions.end(person.sid, Code::DeviceRevoked).await.is_none(), "once");

    let report = office.broker.report(person.sid).await;
    assert_eq!(report.end, LinkEnd::Ended(Code::DeviceRevoked));
    assert_eq!(report.last_byte_at, ended.last_byte_at);
    assert!(is_reset(&mut desktop).await);
    assert_eq!(call.hear().await, GatewayMessage::End { cause: Code::DeviceRevoked });
    let rest = within(line.recv.read_to_end(64 * 1024 * 1024)).await;
    let dropped = rest.expect_err("what was on its way is dropped");
    assert_eq!(dropped.kind(), ErrorKind::ConnectionReset);
    let closed = within(call.connection.closed()).await;
    let told = match call.connection.transport() {
        Transport::Quic => "device_revoked",
        // Its exit number; the word has come before.
        Transport::Tcp => "Said(310)",
    };
    assert!(closed.contains(told), "{closed}");
}

#[tokio::test]
async fn a_session_that_ends_while_all_is_full_writes_nothing_afterwards() {
    let office = open();
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (_call, mut line, mut desktop) = office.seat(&person, &listener).await;
    // Until neither side can write: nobody reads.
    let piece = vec![7; 1024 * 1024];
    let stuck = Duration::from_secs(1);
    while timeout(stuck, line.send.write(&piece)).await.is_ok() {}
    while timeout(stuck, desktop.write(&piece)).await.is_ok() {}
    office.broker.end(person.sid);
    within(office.sessions.end(person.sid, Code::EndedByAdministrator)).await.expect("carried");
    let report = office.broker.report(person.sid).await;
    // What the kernel still had for the desktop is dropped with the reset.
    let mut heard = 0;
    let mut buffer = vec![0; 1024 * 1024];
    let reset = loop {
        match within(desktop.read(&mut buffer)).await {
            Ok(0) => break false,
            Ok(read) => heard += read as u64,
            Err(error) => break error.kind() == ErrorKind::ConnectionReset,
        }
    };
    assert!(reset, "not closed in order");
    assert!(heard <= report.bytes_up, "{heard} bytes of {}", report.bytes_up);
    let refused = within(line.send.write_all(&piece)).await;
    assert!(refused.is_err(), "nor is anything taken from the agent");
}

#[tokio::test]
async fn ending_one_session_leaves_the_others() {
    let office = open();
    let (listener, target) = desktop().await;
    let (one, other) = (office.person(1, target), office.person(2, target));
    let (_call_1, _line_1, mut desktop_1) = office.seat(&one, &listener).await;
    let (_call_2, mut line_2, mut desktop_2) = office.seat(&other, &listener).await;
    within(office.sessions.end(one.sid, Code::EndedByAdministrator)).await.expect("carried");
    assert!(is_reset(&mut desktop_1).await);
    line_2.send.write_all(b"still here").await.expect("room");
    within(desktop_2.read_exact(&mut [0; 10])).await.expect("ten bytes");
    assert_eq!(office.sessions.live()[0].sid, other.sid);
}

#[tokio::test]
async fn a_session_that_ends_while_its_ticket_is_redeemed_never_comes_up() {
    let office = open();
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let held = office.broker.hold().await;
    let mut call = office.call().await;
    call.attach(person.attach(person.ticket(), 1, &call.exporter)).await;
    office.broker.until(|books| (books.asked == 1).then_some(())).await;

    // The broker has opened the link, and its answer is on the way.
    office.broker.end(person.sid);
    let ended = within(office.sessions.end(person.sid, Code::EndedByAdministrator)).await;
    assert_eq!(ended.expect("an attaching link is on the list").last_byte_at, None);
    drop(held);

    assert_eq!(call.refused().await, Code::EndedByAdministrator);
    let report = office.broker.report(person.sid).await;
    assert_eq!(report.end, LinkEnd::Ended(Code::EndedByAdministrator));
    assert!(report.attached_for.is_zero());
    assert!(office.sessions.live().is_empty());
    let waiting = std::future::poll_fn(|cx| std::task::Poll::Ready(listener.poll_accept(cx)));
    assert!(waiting.await.is_pending(), "the desktop was never dialled");
}

#[tokio::test]
async fn of_one_ticket_used_twice_at_once_nothing_survives_the_end_of_its_session() {
    let office = open();
    let (listener, target) = desktop().await;
    for n in 0..20 {
        let person = office.person(n, target);
        let (mut one, mut two) = tokio::join!(office.call(), office.call());
        let (first, second) = (
            person.attach(person.ticket(), 1, &one.exporter),
            person.attach(person.ticket(), 1, &two.exporter),
        );
        tokio::join!(one.attach(first), two.attach(second));
        let (one_heard, two_heard) = tokio::join!(one.hear(), two.hear());
        let attached =
            [&one_heard, &two_heard].map(|heard| matches!(heard, GatewayMessage::Attached(_)));
        assert!(attached[0] != attached[1], "{one_heard:?} {two_heard:?}");
        assert_eq!(office.sessions.live().len(), 1, "what is carried is listed");
        let mut desktop = within(listener.accept()).await.expect("one connection").0;

        office.broker.end(person.sid);
        within(office.sessions.end(person.sid, Code::SessionEnded)).await.expect("it was there");
        assert!(office.sessions.live().is_empty());
        assert!(is_reset(&mut desktop).await);
        for call in [one, two] {
            call.connection.close(0_u32.into(), b"");
        }
    }
}

#[tokio::test]
async fn a_higher_link_takes_the_place_of_the_lower() {
    let office = open();
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (mut old, _old, mut old_desktop) = office.seat(&person, &listener).await;

    let mut new = office.call().await;
    new.attach(person.attach(person.grant(), 2, &new.exporter)).await;
    let attached = new.attached().await;
    assert_eq!((attached.link, attached.incarnation), (LinkNumber(2), Incarnation(2)));
    let live = office.sessions.live();
    assert_eq!((live.len(), live[0].link), (1, LinkNumber(2)), "the old one is off the list");

    assert_eq!(old.hear().await, GatewayMessage::End { cause: Code::Superseded });
    assert!(is_reset(&mut old_desktop).await);
    within(old.connection.closed()).await;
    let report = office.broker.report(person.sid).await;
    assert_eq!((report.link, report.end), (LinkNumber(1), LinkEnd::Superseded));

    let mut new_desktop = within(listener.accept()).await.expect("dialled anew").0;
    let mut channel = new.open().await;
    channel.send.write_all(b"hello").await.expect("room");
    within(new_desktop.read_exact(&mut [0; 5])).await.expect("five bytes");
}

#[tokio::test]
async fn an_equal_or_lower_link_is_stale_and_does_no_harm() {
    let office = open();
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let mut call = office.call().await;
    call.attach(person.attach(person.ticket(), 5, &call.exporter)).await;
    call.attached().await;
    let mut desktop = within(listener.accept()).await.expect("a connection").0;
    let mut line = call.open().await;
    for link in [5, 4, 1] {
        let mut late = office.call().await;
        late.attach(person.attach(person.grant(), link, &late.exporter)).await;
        assert_eq!(late.refused().await, Code::LinkStale, "{link}");
    }
    assert_eq!(office.broker.asked(), 1, "the gateway knows by itself");
    line.send.write_all(b"hello").await.expect("room");
    within(desktop.read_exact(&mut [0; 5])).await.expect("five bytes");
}

#[tokio::test]
async fn a_lower_link_whose_answer_comes_late_does_not_come_up() {
    let office = open();
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let held = office.broker.hold().await;
    let (mut one, mut two) = (office.call().await, office.call().await);
    one.attach(person.attach(person.ticket(), 1, &one.exporter)).await;
    office.broker.until(|books| (books.asked == 1).then_some(())).await;
    two.attach(person.attach(person.grant(), 2, &two.exporter)).await;
    office.broker.until(|books| (books.asked == 2).then_some(())).await;
    drop(held);

    // Both are opened by the broker; in whatever order the answers come, the
    // second stays.
    two.attached().await;
    one.connection.close(0_u32.into(), b"");
    let report = office.broker.report(person.sid).await;
    assert_eq!((report.link, report.end), (LinkNumber(1), LinkEnd::Superseded));
    assert_eq!(office.sessions.live().iter().map(|l| l.link).collect::<Vec<_>>(), [LinkNumber(2)]);
    drop(listener);
}

#[tokio::test]
async fn a_draining_gateway_takes_nobody_and_finishes_what_runs() {
    let office = open();
    let (listener, target) = desktop().await;
    let (one, other) = (office.person(1, target), office.person(2, target));
    let (mut call, mut line, mut desktop) = office.seat(&one, &listener).await;
    office.sessions.drain();
    let mut late = office.call().await;
    late.attach(other.attach(other.ticket(), 1, &late.exporter)).await;
    assert_eq!(late.refused().await, Code::Busy);
    line.send.write_all(b"hello").await.expect("room");
    within(desktop.read_exact(&mut [0; 5])).await.expect("five bytes");

    within(office.sessions.end_all()).await;
    assert_eq!(call.hear().await, GatewayMessage::Error(Code::Unavailable.into()));
    assert_eq!(office.broker.report(one.sid).await.end, LinkEnd::Draining);
    assert!(is_reset(&mut desktop).await);
}

#[tokio::test]
async fn an_endpoint_that_drains_ends_its_links_and_reports_them() {
    let office = open();
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (mut call, _line, mut desktop) = office.seat(&person, &listener).await;
    office.closing.cancel();
    assert_eq!(call.hear().await, GatewayMessage::Error(Code::Unavailable.into()));
    assert!(is_reset(&mut desktop).await);
    let broker = office.broker.clone();
    office.closed().await;
    assert_eq!(broker.report(person.sid).await.end, LinkEnd::Draining);
}
