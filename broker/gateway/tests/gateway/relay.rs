//! What crosses, and what a desktop or an agent that misbehaves can do.

use std::time::Duration;

use serde_json::json;
use tegata_gateway::proof::sha256;
use tegata_gateway::redeem::LinkEnd;
use tegata_proto::code::Code;
use tegata_proto::frame;
use tegata_proto::session::{AgentMessage, GatewayMessage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::open;
use crate::office::{Call, Line, Office, Person, desktop, take, within};

pub(crate) const MIB: usize = 1024 * 1024;

/// More than all buffers on a way together: windows of QUIC, sockets, one read.
const ALL_BUFFERS: usize = 48 * MIB;

/// How long a write that gets nowhere is taken for stuck.
const STUCK: Duration = Duration::from_secs(1);

pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(&mut next).take(length).collect()
}

/// Sees bytes cross both ways.
pub(crate) async fn echo(line: &mut Line, desktop: &mut TcpStream) {
    let mut heard = [0; 4];
    line.send.write_all(b"ping").await.expect("room");
    within(desktop.read_exact(&mut heard)).await.expect("four bytes");
    desktop.write_all(b"pong").await.expect("room");
    within(line.recv.read_exact(&mut heard)).await.expect("four bytes");
    assert_eq!(&heard, b"pong");
}

pub(crate) async fn seated(office: &Office, n: u128) -> (Person, Call, Line, TcpStream) {
    let (listener, target) = desktop().await;
    let person = office.person(n, target);
    let (call, line, socket) = office.seat(&person, &listener).await;
    (person, call, line, socket)
}

#[tokio::test]
async fn no_byte_passes_before_the_broker_knows_that_the_desktop_was_reached() {
    let office = open();
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let held = office.broker.hold_books().await;
    let (mut call, mut line, mut desktop) = office.seat(&person, &listener).await;
    desktop.write_all(b"early").await.expect("room");
    let mut heard = [0; 5];
    let early = timeout(STUCK, line.recv.read_exact(&mut heard)).await;
    assert!(early.is_err(), "nothing before the books are written");
    drop(held);
    within(line.recv.read_exact(&mut heard)).await.expect("five bytes");
    assert_eq!(&heard, b"early");
    office.broker.until(|books| (books.attached == [person.sid]).then_some(())).await;
    call.bye(Code::Disconnected).await;
}

#[tokio::test]
async fn many_bytes_cross_both_ways_at_once_and_none_changes() {
    let office = open();
    let (up, down) = (noise(9 * MIB + 7, 1), noise(17 * MIB + 3, 2));
    let digests = (sha256(&up), sha256(&down));
    let lengths = (up.len(), down.len());
    // Only now: nothing moves here while bytes are made up.
    let (person, mut call, mut line, mut desktop) = seated(&office, 1).await;
    let (mut desktop_read, mut desktop_write) = desktop.split();
    let (mut at_desktop, mut at_agent) = (vec![0; up.len()], vec![0; down.len()]);
    let all = async {
        tokio::join!(
            async { line.send.write_all(&up).await.expect("room") },
            // Sizes that are no multiple of anything.
            async {
                for piece in down.chunks(70_001) {
                    desktop_write.write_all(piece).await.expect("room");
                }
            },
            async { desktop_read.read_exact(&mut at_desktop).await.expect("all") },
            take(&mut line.recv, &mut call, 0, &mut at_agent),
        )
    };
    within(all).await;
    assert!((sha256(&at_desktop), sha256(&at_agent)) == digests);
    call.bye(Code::Disconnected).await;
    let report = office.broker.report(person.sid).await;
    assert_eq!((report.bytes_up, report.bytes_down), (lengths.0 as u64, lengths.1 as u64));
}

#[tokio::test]
async fn small_pieces_cross_one_by_one() {
    let office = open();
    let (_, _call, mut line, mut desktop) = seated(&office, 1).await;
    for _ in 0..200 {
        echo(&mut line, &mut desktop).await;
    }
}

#[tokio::test]
async fn an_agent_that_has_finished_still_hears_the_desktop_out() {
    let office = open();
    let (person, mut call, mut line, mut desktop) = seated(&office, 1).await;
    line.send.write_all(b"question").await.expect("room");
    line.send.finish().expect("open");
    let mut question = Vec::new();
    within(desktop.read_to_end(&mut question)).await.expect("the end comes through");
    assert_eq!(question, b"question");
    let answer = noise(3 * MIB, 5);
    let mut read = vec![0; answer.len()];
    let (written, ()) = tokio::join!(
        async {
            desktop.write_all(&answer).await.expect("room");
            desktop.shutdown().await
        },
        take(&mut line.recv, &mut call, 0, &mut read),
    );
    written.expect("open");
    assert!(read == answer);
    assert!(within(line.recv.read_to_end(1)).await.expect("an end").is_empty());
    call.bye(Code::Disconnected).await;
    let report = office.broker.report(person.sid).await;
    assert_eq!(report.end, LinkEnd::AgentBye(Code::Disconnected), "the agent ended first");
}

#[tokio::test]
async fn a_desktop_that_has_finished_still_hears_the_agent_out() {
    let office = open();
    let answer = noise(3 * MIB, 7);
    let (person, mut call, mut line, mut desktop) = seated(&office, 1).await;
    desktop.write_all(b"last words").await.expect("room");
    desktop.shutdown().await.expect("open");
    assert_eq!(within(line.recv.read_to_end(100)).await.expect("the end"), b"last words");
    assert_eq!(call.hear().await, GatewayMessage::End { cause: Code::DesktopLost });
    let mut heard = Vec::new();
    let (written, read) = tokio::join!(
        async {
            line.send.write_all(&answer).await.expect("room");
            line.send.finish()
        },
        within(desktop.read_to_end(&mut heard)),
    );
    written.expect("open");
    read.expect("all of it");
    assert!(heard == answer);
    call.bye(Code::LoggedOff).await;
    let report = office.broker.report(person.sid).await;
    assert_eq!(report.end, LinkEnd::DesktopClosed { viewer: Some(Code::LoggedOff) });
    assert_eq!(report.bytes_up, answer.len() as u64);
}

#[tokio::test]
async fn a_hundred_agents_that_do_not_read_take_little_and_hold_up_nobody() {
    let mut office = open();
    let roomy = office.transport.clone();
    // So that little is on the way to them, and all of it with the gateway.
    let mut narrow = quinn::TransportConfig::default();
    narrow.stream_receive_window(16_384_u32.into());
    office.transport = narrow.into();
    let mut slow = Vec::new();
    for n in 0..100 {
        let (_, call, line, desktop) = seated(&office, n).await;
        slow.push((call, line, desktop));
    }
    office.transport = roomy;
    let piece = noise(MIB, 10);
    let down = noise(4 * MIB, 11);
    let mut flooding = tokio::task::JoinSet::new();
    let mut lines = Vec::new();
    for (call, line, mut desktop) in slow {
        let piece = piece.clone();
        flooding.spawn(async move { while desktop.write_all(&piece).await.is_ok() {} });
        lines.push((call, line));
    }
    let (person, mut call, mut line, mut desktop) = seated(&office, 1000).await;
    let mut read = vec![0; down.len()];
    let reading = take(&mut line.recv, &mut call, 0, &mut read);
    let (written, ()) = tokio::join!(desktop.write_all(&down), reading);
    written.expect("room");
    assert!(read == down);
    echo(&mut line, &mut desktop).await;
    for link in office.sessions.live().iter().filter(|link| link.sid != person.sid) {
        assert!(link.bytes_down < 2 * MIB as u64, "{} bytes of one", link.bytes_down);
    }
    flooding.shutdown().await;
}

#[tokio::test]
async fn a_desktop_that_closes_first_is_reported_with_the_viewers_word() {
    let office = open();
    let (person, mut call, mut line, mut desktop) = seated(&office, 1).await;
    desktop.write_all(b"last words").await.expect("room");
    drop(desktop);
    let said = within(line.recv.read_to_end(100)).await.expect("all of it");
    assert_eq!(said, b"last words");
    assert_eq!(call.hear().await, GatewayMessage::End { cause: Code::DesktopLost });
    call.bye(Code::LoggedOff).await;
    let report = office.broker.report(person.sid).await;
    assert_eq!(report.end, LinkEnd::DesktopClosed { viewer: Some(Code::LoggedOff) });
    assert_eq!(report.bytes_down, 10);
}

#[tokio::test]
async fn an_agent_that_takes_long_for_a_desktops_last_bytes_gets_them_all() {
    let office = open();
    let last = noise(600_000, 8);
    let (person, mut call, mut line, mut desktop) = seated(&office, 1).await;
    desktop.write_all(&last).await.expect("room");
    drop(desktop);
    assert_eq!(call.hear().await, GatewayMessage::End { cause: Code::DesktopLost });
    let mut read = vec![0; last.len()];
    let mut before = 0;
    // Longer than its farewell.
    for piece in read.chunks_mut(last.len() / 12) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        take(&mut line.recv, &mut call, before, piece).await;
        before += piece.len() as u64;
    }
    assert!(read == last);
    assert!(within(line.recv.read_to_end(1)).await.expect("an end").is_empty());
    call.bye(Code::LoggedOff).await;
    let report = office.broker.report(person.sid).await;
    assert_eq!(report.end, LinkEnd::DesktopClosed { viewer: Some(Code::LoggedOff) });
}

#[tokio::test]
async fn a_desktop_that_resets_ends_its_own_session_only() {
    let office = open();
    let (person, mut call, mut line, desktop) = seated(&office, 1).await;
    let (_, _call, mut other_line, mut other_desktop) = seated(&office, 2).await;
    desktop.set_zero_linger().expect("an option");
    drop(desktop);
    assert_eq!(call.hear().await, GatewayMessage::End { cause: Code::DesktopLost });
    assert!(within(line.recv.read_to_end(100)).await.expect("an end").is_empty());
    call.connection.close(0_u32.into(), b"");
    let report = office.broker.report(person.sid).await;
    assert_eq!(report.end, LinkEnd::DesktopClosed { viewer: None });
    echo(&mut other_line, &mut other_desktop).await;
    assert_eq!(office.sessions.live().len(), 1);
}

#[tokio::test]
async fn a_desktop_that_sends_without_end_is_held_back_by_an_agent_that_does_not_read() {
    let office = open();
    let (person, mut call, mut line, mut desktop) = seated(&office, 1).await;
    let (_, _call, mut other_line, mut other_desktop) = seated(&office, 2).await;
    let piece = noise(MIB, 3);
    let mut sent = Vec::new();
    // Until the desktop can write no more.
    while let Ok(written) = timeout(STUCK, desktop.write(&piece)).await {
        sent.extend_from_slice(&piece[..written.expect("open")]);
        assert!(sent.len() < ALL_BUFFERS, "somewhere on the way it piles up");
    }
    echo(&mut other_line, &mut other_desktop).await;
    let taken =
        office.sessions.live().iter().find(|l| l.sid == person.sid).expect("live").bytes_down;
    assert!(taken < 4 * MIB as u64, "the gateway took {taken} bytes");

    desktop.shutdown().await.expect("open");
    let mut read = vec![0; sent.len()];
    take(&mut line.recv, &mut call, 0, &mut read).await;
    assert!(within(line.recv.read_to_end(1)).await.expect("an end").is_empty());
    assert!(sha256(&read) == sha256(&sent), "nothing was lost in the jam");
    call.bye(Code::Disconnected).await;
    office.broker.report(person.sid).await;
}

#[tokio::test]
async fn an_agent_that_sends_without_end_is_held_back_by_a_desktop_that_does_not_read() {
    let office = open();
    let (_, _flooding, mut line, mut desktop) = seated(&office, 1).await;
    let (_, _call, mut other_line, mut other_desktop) = seated(&office, 2).await;
    let piece = noise(MIB, 4);
    let mut sent = Vec::new();
    while let Ok(written) = timeout(STUCK, line.send.write(&piece)).await {
        sent.extend_from_slice(&piece[..written.expect("open")]);
        assert!(sent.len() < ALL_BUFFERS, "somewhere on the way it piles up");
    }
    echo(&mut other_line, &mut other_desktop).await;
    line.send.finish().expect("open");
    let mut read = Vec::new();
    within(desktop.read_to_end(&mut read)).await.expect("all of it");
    assert!(sha256(&read) == sha256(&sent), "nothing was lost in the jam");
}

#[tokio::test]
async fn an_agent_that_is_gone_takes_its_desktops_connection_with_it() {
    let office = open();
    let (person, call, mut line, mut desktop) = seated(&office, 1).await;
    echo(&mut line, &mut desktop).await;
    call.connection.close(0_u32.into(), b"");
    let report = office.broker.report(person.sid).await;
    assert_eq!(report.end, LinkEnd::AgentGone);
    assert_eq!(within(desktop.read(&mut [0; 1])).await.expect("closed in order"), 0);
    assert!(office.sessions.live().is_empty());
}

#[tokio::test]
async fn what_an_agent_sent_before_its_bye_reaches_the_desktop() {
    let office = open();
    let (person, mut call, mut line, mut desktop) = seated(&office, 1).await;
    let last = noise(100_000, 6);
    line.send.write_all(&last).await.expect("room");
    call.bye(Code::Disconnected).await;
    line.send.finish().expect("open");
    let mut read = Vec::new();
    within(desktop.read_to_end(&mut read)).await.expect("all of it");
    assert!(read == last);
    let report = office.broker.report(person.sid).await;
    assert_eq!(report.end, LinkEnd::AgentBye(Code::Disconnected));
}

#[tokio::test]
async fn a_second_channel_is_refused_and_the_first_goes_on() {
    let office = open();
    let (_, call, mut line, mut desktop) = seated(&office, 1).await;
    for _ in 0..20 {
        let (mut send, mut recv) = call.connection.open_bi().await.expect("a stream");
        // It may be refused before anything is said on it.
        let _ = send.write_all(b"more").await;
        let refused = within(recv.read_to_end(100)).await;
        assert!(refused.is_err(), "reset, not finished");
    }
    echo(&mut line, &mut desktop).await;
}

#[tokio::test]
async fn a_channel_that_opens_with_anything_else_is_a_fault() {
    let office = open();
    for (n, first) in [json!({"channel": "usb"}), json!({}), json!("rdp")].iter().enumerate() {
        let (listener, target) = desktop().await;
        let person = office.person(n as u128, target);
        let mut call = office.call().await;
        call.attach(person.attach(person.ticket(), 1, &call.exporter)).await;
        call.attached().await;
        let (mut send, _recv) = call.connection.open_bi().await.expect("a stream");
        let frame = frame::write(first, frame::LIMIT_AFTER).expect("a frame");
        send.write_all(&frame).await.expect("room");
        assert_eq!(call.refused().await, Code::Malformed, "{first}");
        let report = office.broker.report(person.sid).await;
        assert_eq!(report.end, LinkEnd::AgentFault(Code::Malformed));
        drop(listener);
    }
}

#[tokio::test]
async fn a_control_frame_of_a_newer_agent_is_answered_and_harms_nothing() {
    let office = open();
    let (_, mut call, mut line, mut desktop) = seated(&office, 1).await;
    call.ack(0).await;
    call.say(&json!({"type": "dance", "steps": 3})).await;
    assert_eq!(call.hear().await, GatewayMessage::Error(Code::Unsupported.into()));
    echo(&mut line, &mut desktop).await;
}

#[tokio::test]
async fn a_control_frame_that_breaks_the_rules_ends_the_link() {
    let office = open();
    let (second_attach, _, _, _) = seated(&office, 90).await;
    let again = |call: &Call| {
        let attach = second_attach.attach(second_attach.ticket(), 2, &call.exporter);
        serde_json::to_value(AgentMessage::Attach(attach)).expect("JSON")
    };
    let frames: [&dyn Fn(&Call) -> serde_json::Value; 3] =
        [&again, &|_| json!({"type": "bye"}), &|_| json!([1, 2, 3])];
    for (n, frame) in frames.iter().enumerate() {
        let (person, mut call, _line, mut desktop) = seated(&office, n as u128).await;
        let frame = frame(&call);
        call.say(&frame).await;
        assert_eq!(call.refused().await, Code::Malformed);
        let report = office.broker.report(person.sid).await;
        assert_eq!(report.end, LinkEnd::AgentFault(Code::Malformed));
        assert!(within(desktop.read(&mut [0; 1])).await.is_err(), "the desktop is reset");
    }
}
