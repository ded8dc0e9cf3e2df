//! A session that goes on over another link.

use std::time::Duration;

use serde_json::json;
use tegata_gateway::redeem::LinkEnd;
use tegata_proto::code::Code;
use tegata_proto::encoding::Secret;
use tegata_proto::id::{Incarnation, LinkNumber};
use tegata_proto::session::{Channel, GatewayMessage, Mode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::open;
use crate::office::{Books, Call, Line, Office, Person, desktop, take, uuid, within};

/// A time in which something that must not happen would.
const SOON: Duration = Duration::from_millis(300);

/// Bytes of a long transfer; more than all windows hold.
const LONG: usize = 5_000_003;

/// One session with a desktop, at a gateway that holds it for a minute.
struct Seated {
    office: Office,
    listener: TcpListener,
    person: Person,
    call: Call,
    line: Line,
    desktop: TcpStream,
}

async fn seated() -> Seated {
    let office = open();
    office.broker.hold_for(60);
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (call, line, desktop) = office.seat(&person, &listener).await;
    Seated { office, listener, person, call, line, desktop }
}

/// Comes back over another link. Returns what has reached the desktop, too.
async fn resume(office: &Office, person: &Person, number: u64, received: u64) -> (Call, Line, u64) {
    let mut call = office.call().await;
    call.attach(person.resume(number, &call.exporter, 1, received)).await;
    let attached = call.attached().await;
    assert_eq!((attached.mode, attached.link), (Mode::Resumed, LinkNumber(number)));
    assert_eq!(attached.incarnation, Incarnation(1), "the same connection");
    let line = call.open().await;
    (call, line, attached.received[&Channel::Rdp])
}

impl Seated {
    async fn resume(&self, number: u64, received: u64) -> (Call, Line, u64) {
        resume(&self.office, &self.person, number, received).await
    }

    /// Tries to, and is refused.
    async fn refused(&self, number: u64, incarnation: u64, received: u64) -> Code {
        let mut call = self.office.call().await;
        call.attach(self.person.resume(number, &call.exporter, incarnation, received)).await;
        call.refused().await
    }

    /// Tells whether bytes cross both ways and no other connection was made.
    async fn is_whole(&mut self, line: &mut Line) {
        line.send.write_all(b"ping").await.expect("room");
        let mut four = [0; 4];
        within(self.desktop.read_exact(&mut four)).await.expect("four bytes");
        assert_eq!(&four, b"ping");
        self.desktop.write_all(b"pong").await.expect("room");
        within(line.recv.read_exact(&mut four)).await.expect("four bytes");
        assert_eq!(&four, b"pong");
        assert!(timeout(SOON, self.listener.accept()).await.is_err(), "dialled once");
    }
}

fn numbered(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| (at * 31 / 7).to_le_bytes()[0]).collect()
}

#[tokio::test]
async fn a_lost_link_is_followed_by_one_that_goes_on_at_the_last_byte() {
    let mut seated = seated().await;
    seated.desktop.write_all(&numbered(0, 1_000)).await.expect("room");
    within(seated.line.recv.read_exact(&mut [0; 1_000])).await.expect("a thousand");
    seated.line.send.write_all(&numbered(0, 500)).await.expect("room");
    within(seated.desktop.read_exact(&mut [0; 500])).await.expect("five hundred");
    seated.call.hear_acked(500).await;
    seated.call.connection.close(0_u32.into(), b"");
    let report = seated.office.broker.report(seated.person.sid).await;
    assert_eq!(report.end, LinkEnd::AgentGone);
    assert!(seated.office.sessions.live().is_empty());

    // Of a thousand bytes the viewer has had six hundred; more came meanwhile.
    seated.desktop.write_all(&numbered(1_000, 200)).await.expect("room");
    let (_call, mut line, received) = seated.resume(2, 600).await;
    assert_eq!(received, 500, "what reached the desktop");
    let mut rest = [0; 600];
    within(line.recv.read_exact(&mut rest)).await.expect("the rest");
    assert!(rest[..] == numbered(600, 600), "no byte lost or doubled");
    seated.is_whole(&mut line).await;
}

#[tokio::test]
async fn a_link_takes_over_from_one_that_seems_alive() {
    let mut seated = seated().await;
    seated.desktop.write_all(&numbered(0, 300)).await.expect("room");
    within(seated.line.recv.read_exact(&mut [0; 300])).await.expect("three hundred");
    let (_call, mut line, _) = seated.resume(2, 100).await;
    assert_eq!(seated.call.hear().await, GatewayMessage::End { cause: Code::Superseded });
    let mut rest = [0; 200];
    within(line.recv.read_exact(&mut rest)).await.expect("two hundred");
    assert!(rest[..] == numbered(100, 200));
    seated.is_whole(&mut line).await;
    let listed = seated.office.sessions.live();
    assert_eq!((listed.len(), listed[0].link), (1, LinkNumber(2)));
}

#[tokio::test]
async fn a_link_that_the_broker_learns_of_late_leaves_no_older_one_behind() {
    let mut seated = seated().await;
    let held = seated.office.broker.hold().await;
    // The store is slow; the agent gives up and finds its old link alive.
    assert_eq!(seated.refused(2, 1, 0).await, Code::Busy);
    seated.line.send.write_all(b"still here").await.expect("room");
    within(seated.desktop.read_exact(&mut [0; 10])).await.expect("ten bytes");
    drop(held);
    let ended = |books: &Books| {
        let ended = books.reports.iter().map(|report| (report.link, report.end));
        (books.reports.len() == 2).then(|| ended.collect::<Vec<_>>())
    };
    let ended = seated.office.broker.until(ended).await;
    assert!(ended.contains(&(LinkNumber(1), LinkEnd::Superseded)), "{ended:?}");
    assert!(ended.contains(&(LinkNumber(2), LinkEnd::Unanswered)), "{ended:?}");
    assert!(seated.office.sessions.live().is_empty(), "what the broker knows");
    let (_call, mut line, _) = seated.resume(3, 0).await;
    seated.is_whole(&mut line).await;
}

#[tokio::test]
async fn a_link_that_never_opened_its_channel_is_followed_by_one_that_goes_on() {
    let mut seated = seated().await;
    seated.desktop.write_all(&numbered(0, 300)).await.expect("room");
    within(seated.line.recv.read_exact(&mut [0; 300])).await.expect("three hundred");
    // The answer to it is lost on the way.
    let mut unheard = seated.office.call().await;
    unheard.attach(seated.person.resume(2, &unheard.exporter, 1, 100)).await;
    unheard.attached().await;
    let (_call, mut line, _) = seated.resume(3, 100).await;
    let mut rest = [0; 200];
    within(line.recv.read_exact(&mut rest)).await.expect("two hundred");
    assert!(rest[..] == numbered(100, 200));
    seated.is_whole(&mut line).await;
}

#[tokio::test]
async fn a_link_that_is_superseded_while_it_opens_its_channel_is_cut_and_not_ended() {
    let mut seated = seated().await;
    let mut call = seated.office.call().await;
    call.attach(seated.person.resume(2, &call.exporter, 1, 0)).await;
    call.attached().await;
    // The rest of what opens the channel is still on its way.
    let (mut send, mut recv) = call.connection.open_bi().await.expect("a stream");
    send.write_all(&[0]).await.expect("room");
    call.say(&json!({"type": "dance"})).await;
    assert_eq!(call.hear().await, GatewayMessage::Error(Code::Unsupported.into()));
    let (_call, mut line, _) = seated.resume(3, 0).await;
    let cut = within(recv.read(&mut [0; 1])).await;
    assert!(cut.is_err(), "an end would be the desktop's: {cut:?}");
    assert_eq!(call.hear().await, GatewayMessage::End { cause: Code::Superseded });
    seated.is_whole(&mut line).await;
}

#[tokio::test]
async fn what_an_attach_has_named_may_be_said_again_before_the_channel_is_open() {
    let mut seated = seated().await;
    seated.desktop.write_all(&numbered(0, 300)).await.expect("room");
    within(seated.line.recv.read_exact(&mut [0; 300])).await.expect("three hundred");
    let mut call = seated.office.call().await;
    call.attach(seated.person.resume(2, &call.exporter, 1, 200)).await;
    call.attached().await;
    call.ack(200).await;
    // Its answer shows that the word before it was heard.
    call.say(&json!({"type": "dance"})).await;
    assert_eq!(call.hear().await, GatewayMessage::Error(Code::Unsupported.into()));
    let mut line = call.open().await;
    let mut rest = [0; 100];
    within(line.recv.read_exact(&mut rest)).await.expect("a hundred");
    assert!(rest[..] == numbered(200, 100));
    seated.is_whole(&mut line).await;

    let mut call = seated.office.call().await;
    call.attach(seated.person.resume(3, &call.exporter, 1, 304)).await;
    call.attached().await;
    call.ack(305).await;
    assert_eq!(call.refused().await, Code::Malformed, "more than it has named");
}

#[tokio::test]
async fn what_was_acknowledged_is_forgotten_and_the_rest_is_not() {
    let mut seated = seated().await;
    seated.desktop.write_all(&numbered(0, 1_000)).await.expect("room");
    let mut read = [0; 800];
    take(&mut seated.line.recv, &mut seated.call, 0, &mut read).await;
    // The acknowledgement has been heard once what follows it is answered.
    seated.line.send.write_all(b"x").await.expect("room");
    seated.call.hear_acked(1).await;
    for (number, received) in [(2, 799), (3, 1_001), (4, u64::MAX)] {
        assert_eq!(seated.refused(number, 1, received).await, Code::ResumeLost, "{received}");
    }
    assert_eq!(seated.refused(5, 2, 800).await, Code::ResumeLost, "another connection");
    assert_eq!(seated.office.broker.asked(), 1, "and the broker is not asked");
    within(seated.line.recv.read_exact(&mut [0; 200])).await.expect("the live link goes on");
    let (_call, mut line, _) = seated.resume(6, 900).await;
    let mut rest = [0; 100];
    within(line.recv.read_exact(&mut rest)).await.expect("a hundred");
    assert!(rest[..] == numbered(900, 100));
}

#[tokio::test]
async fn many_links_in_a_row_carry_every_byte_once() {
    carry_over_many_links(|_, _| {}).await;
}

/// Sends a long transfer both ways over one link after another; `before_each` is told
/// the number of the next.
pub(crate) async fn carry_over_many_links(before_each: impl Fn(&mut Office, usize)) {
    let Seated { mut office, listener: _listener, person, call: _call, line: _line, desktop } =
        seated().await;
    let (up, down) = (numbered(0, LONG), numbered(5, LONG));
    let (mut desktop_read, mut desktop_write) = desktop.into_split();
    let mut at_desktop = tokio::task::JoinSet::new();
    let written = down.clone();
    at_desktop.spawn(async move {
        let mut read = vec![0; LONG];
        let reading = desktop_read.read_exact(&mut read);
        let (read_all, written_all) = tokio::join!(reading, desktop_write.write_all(&written));
        written_all.expect("room");
        read_all.expect("all of it");
        (read, desktop_read, desktop_write)
    });
    let mut at_viewer = Vec::new();
    let mut number = 1;
    while at_viewer.len() < LONG {
        number += 1;
        before_each(&mut office, number);
        let before = at_viewer.len();
        let (mut call, mut line, received) =
            resume(&office, &person, number as u64, before as u64).await;
        // More at each link, and never a multiple of anything; what the gateway has not
        // acknowledged is sent again.
        let received = usize::try_from(received).expect("a test's length");
        let upwards = &up[received..LONG.min(received + 50_001 * number)];
        let mut piece = vec![0; (70_001 * number).min(LONG - before)];
        let sending = within(line.send.write_all(upwards));
        let taking = take(&mut line.recv, &mut call, before as u64, &mut piece);
        tokio::join!(sending, taking).0.expect("room");
        at_viewer.extend(piece);
        if number % 2 == 0 {
            call.connection.close(0_u32.into(), b"");
        }
    }
    assert!(at_viewer == down, "down, over {number} links");
    let (mut call, mut line, received) =
        resume(&office, &person, number as u64 + 1, LONG as u64).await;
    let received = usize::try_from(received).expect("a test's length");
    within(line.send.write_all(&up[received..])).await.expect("room");
    call.hear_acked(LONG as u64).await;
    let at_desktop = within(at_desktop.join_next()).await.expect("one").expect("no panic").0;
    assert!(at_desktop == up, "up, over {number} links");
}

#[tokio::test]
async fn without_a_wish_to_resume_the_desktop_is_dialled_anew() {
    let mut seated = seated().await;
    seated.call.connection.close(0_u32.into(), b"");
    seated.office.broker.report(seated.person.sid).await;
    let mut call = seated.office.call().await;
    call.attach(seated.person.attach(seated.person.grant(), 2, &call.exporter)).await;
    let attached = call.attached().await;
    assert_eq!((attached.mode, attached.received[&Channel::Rdp]), (Mode::Fresh, 0));
    within(seated.listener.accept()).await.expect("a second connection");
    let read = within(seated.desktop.read(&mut [0; 1])).await;
    assert_eq!(read.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn an_ended_session_is_not_held() {
    for lost_first in [true, false] {
        let mut seated = seated().await;
        let sid = seated.person.sid;
        if lost_first {
            seated.call.connection.close(0_u32.into(), b"");
            seated.office.broker.report(sid).await;
        }
        seated.office.broker.end(sid);
        let ended = within(seated.office.sessions.end(sid, Code::EndedByAdministrator)).await;
        ended.expect("something of it was here");
        assert!(seated.office.sessions.end(sid, Code::SessionEnded).await.is_none(), "once");
        let read = within(seated.desktop.read(&mut [0; 1])).await;
        assert_eq!(read.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
        assert_eq!(seated.refused(2, 1, 0).await, Code::ResumeLost);
    }
}

/// How a desktop ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Finishes,
    Closes,
    Resets,
}

impl Ending {
    /// Has it end. Where it only finishes, it still has its connection.
    async fn of(self, mut desktop: TcpStream) -> Option<TcpStream> {
        match self {
            Self::Finishes => desktop.shutdown().await.expect("open"),
            Self::Closes => {}
            Self::Resets => desktop.set_zero_linger().expect("an option"),
        }
        Some(desktop).filter(|_| self == Self::Finishes)
    }
}

/// Hears over link 2 what a desktop has said last, and that it has ended.
async fn fetches_last_words(office: &Office, person: &Person) {
    let (mut call, mut line, _) = resume(office, person, 2, 5).await;
    let last = within(line.recv.read_to_end(100)).await.expect("all of it, and an end");
    assert_eq!(last, b"words");
    assert_eq!(call.hear().await, GatewayMessage::End { cause: Code::DesktopLost });
    call.ack(10).await;
    call.bye(Code::LoggedOff).await;
    let end = office.broker.until(|books| end_of(books, 2)).await;
    assert_eq!(end, LinkEnd::DesktopClosed { viewer: Some(Code::LoggedOff) });
    assert_eq!(office.held(), 0);
}

fn end_of(books: &Books, link: u64) -> Option<LinkEnd> {
    books.reports.iter().find(|report| report.link == LinkNumber(link)).map(|report| report.end)
}

#[tokio::test]
async fn the_last_words_of_a_desktop_that_has_ended_come_over_the_next_link() {
    for ending in [Ending::Finishes, Ending::Closes, Ending::Resets] {
        for by_loss in [true, false] {
            let Seated { office, person, mut call, mut line, mut desktop, .. } = seated().await;
            desktop.write_all(b"last words").await.expect("room");
            within(line.recv.read_exact(&mut [0; 10])).await.expect("ten bytes");
            let _desktop = ending.of(desktop).await;
            assert_eq!(call.hear().await, GatewayMessage::End { cause: Code::DesktopLost });
            if by_loss {
                call.connection.close(0_u32.into(), b"");
                let end = office.broker.until(|books| end_of(books, 1)).await;
                assert_eq!(end, LinkEnd::DesktopClosed { viewer: None }, "{ending:?}");
                assert_eq!(office.held(), 1, "{ending:?}");
            }
            fetches_last_words(&office, &person).await;
            if !by_loss {
                let end = office.broker.until(|books| end_of(books, 1)).await;
                assert_eq!(end, LinkEnd::Superseded, "{ending:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_desktop_that_ends_while_it_is_held_is_held_for_its_last_words() {
    for ending in [Ending::Finishes, Ending::Closes, Ending::Resets] {
        let Seated { office, person, call, mut line, mut desktop, .. } = seated().await;
        let sessions = office.sessions.clone();
        let mut watching = tokio::task::JoinSet::new();
        watching.spawn(async move { sessions.watch_holds().await });
        desktop.write_all(b"last words").await.expect("room");
        within(line.recv.read_exact(&mut [0; 10])).await.expect("ten bytes");
        call.connection.close(0_u32.into(), b"");
        assert_eq!(office.broker.report(person.sid).await.end, LinkEnd::AgentGone);
        let _desktop = ending.of(desktop).await;
        // Longer than from one look at those who are held to the next.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(office.held(), 1, "{ending:?}");
        fetches_last_words(&office, &person).await;
    }
}

#[tokio::test]
async fn a_desktop_that_owes_nothing_more_is_not_held() {
    let Seated { office, mut call, mut line, mut desktop, .. } = seated().await;
    desktop.write_all(b"last words").await.expect("room");
    within(line.recv.read_exact(&mut [0; 10])).await.expect("ten bytes");
    desktop.shutdown().await.expect("open");
    assert_eq!(call.hear().await, GatewayMessage::End { cause: Code::DesktopLost });
    call.ack(10).await;
    // Its answer shows that the word before it was heard.
    call.say(&json!({"type": "dance"})).await;
    assert_eq!(call.hear().await, GatewayMessage::Error(Code::Unsupported.into()));
    call.connection.close(0_u32.into(), b"");
    let end = office.broker.until(|books| end_of(books, 1)).await;
    assert_eq!(end, LinkEnd::DesktopClosed { viewer: None });
    assert_eq!(office.held(), 0);
    assert_eq!(within(desktop.read(&mut [0; 1])).await.expect("closed in order"), 0);
}

#[tokio::test]
async fn a_desktop_is_let_go_when_its_hold_is_over_or_it_has_closed() {
    let office = open();
    let (listener, target) = desktop().await;
    let sessions = office.sessions.clone();
    let mut watching = tokio::task::JoinSet::new();
    watching.spawn(async move { sessions.watch_holds().await });
    for (n, hold_s, owes, closes) in
        [(1, 1, false, false), (2, 600, false, true), (3, 1, true, true)]
    {
        office.broker.hold_for(hold_s);
        let person = office.person(n, target);
        let (call, mut line, mut desktop) = office.seat(&person, &listener).await;
        if owes {
            desktop.write_all(b"last words").await.expect("room");
            within(line.recv.read_exact(&mut [0; 10])).await.expect("ten bytes");
        }
        call.connection.close(0_u32.into(), b"");
        office.broker.report(person.sid).await;
        if closes {
            drop(desktop);
        } else {
            let read = within(desktop.read(&mut [0; 1])).await;
            assert_eq!(read.map_err(|e| e.kind()), Err(std::io::ErrorKind::ConnectionReset));
        }
        within(async {
            while office.held() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let mut call = office.call().await;
        call.attach(person.resume(2, &call.exporter, 1, 0)).await;
        assert_eq!(call.refused().await, Code::ResumeLost);
    }
}

#[tokio::test]
async fn what_answers_a_viewer_that_has_finished_may_come_over_another_link() {
    for answers_before in [true, false] {
        let Seated { office, person, mut call, mut line, mut desktop, .. } = seated().await;
        line.send.write_all(b"question").await.expect("room");
        line.send.finish().expect("open");
        let mut question = Vec::new();
        within(desktop.read_to_end(&mut question)).await.expect("the end comes through");
        desktop.write_all(b"half an ").await.expect("room");
        within(line.recv.read_exact(&mut [0; 8])).await.expect("eight bytes");
        call.hear_acked(8).await;
        call.connection.close(0_u32.into(), b"");
        assert_eq!(office.broker.report(person.sid).await.end, LinkEnd::AgentGone);
        let mut kept = Some(desktop);
        let mut answer = async || {
            let mut desktop = kept.take().expect("it answers once");
            desktop.write_all(b"answer").await.expect("room");
        };
        if answers_before {
            answer().await;
        }
        let (_call, mut line, received) = resume(&office, &person, 2, 4).await;
        assert_eq!(received, 8, "what reached the desktop");
        line.send.finish().expect("open");
        if !answers_before {
            answer().await;
        }
        let rest = within(line.recv.read_to_end(100)).await.expect("the rest, and an end");
        assert_eq!(rest, b" an answer");
    }
}

#[tokio::test]
async fn an_agent_that_acknowledges_what_was_never_sent_loses_its_link_and_not_its_session() {
    let mut seated = seated().await;
    seated.desktop.write_all(b"hello").await.expect("room");
    within(seated.line.recv.read_exact(&mut [0; 5])).await.expect("five bytes");
    seated.call.ack(6).await;
    assert_eq!(seated.call.refused().await, Code::Malformed);
    let report = seated.office.broker.report(seated.person.sid).await;
    assert_eq!(report.end, LinkEnd::AgentFault(Code::Malformed));
    let (_call, mut line, _) = seated.resume(2, 5).await;
    seated.is_whole(&mut line).await;
}

#[tokio::test]
async fn grants_are_renewed_while_a_link_is_carried() {
    let office = open();
    office.broker.renew_after(Duration::from_millis(50));
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (mut call, _line, _desktop) = office.seat(&person, &listener).await;
    // The next one in time too, however short they live.
    for grant in ["grant 1", "grant 2"] {
        assert_eq!(call.hear().await, GatewayMessage::Grant { grant: Secret::new(grant) });
    }
    let asked = office.broker.until(|books| books.renewed.first().copied()).await;
    assert_eq!(
        (asked.sid.0, asked.link, asked.jkt),
        (uuid(1), LinkNumber(1), person.claims.cnf.jkt)
    );
}

#[tokio::test]
async fn a_link_whose_handling_panics_is_reported_all_the_same() {
    let office = open();
    office.broker.renew_after(Duration::from_millis(50));
    office.broker.panics();
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (_call, _line, _desktop) = office.seat(&person, &listener).await;
    let report = office.broker.report(person.sid).await;
    assert_eq!((report.link, report.end), (LinkNumber(1), LinkEnd::BrokenOff));
}

#[tokio::test]
async fn a_grant_that_is_long_in_coming_is_asked_for_once_whatever_else_is_said() {
    let office = open();
    office.broker.renew_after(Duration::from_millis(50));
    let late = office.broker.hold_renewals().await;
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (mut call, _line, _desktop) = office.seat(&person, &listener).await;
    office.broker.until(|books| books.renewed.first().copied()).await;
    for _ in 0..3 {
        call.say(&json!({"type": "dance"})).await;
        assert_eq!(call.hear().await, GatewayMessage::Error(Code::Unsupported.into()));
    }
    drop(late);
    assert_eq!(call.hear().await, GatewayMessage::Grant { grant: Secret::new("grant 1") });
}

#[tokio::test]
async fn every_word_between_many_acknowledgements_is_heard_in_its_turn() {
    let mut seated = seated().await;
    for _ in 0..5 {
        for _ in 0..100 {
            seated.call.ack(0).await;
        }
        seated.call.say(&json!({"type": "dance"})).await;
    }
    for _ in 0..5 {
        assert_eq!(seated.call.hear().await, GatewayMessage::Error(Code::Unsupported.into()));
    }
    seated.line.send.write_all(b"still here").await.expect("room");
    within(seated.desktop.read_exact(&mut [0; 10])).await.expect("ten bytes");
}
