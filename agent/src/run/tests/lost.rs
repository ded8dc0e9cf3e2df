//! Links that are lost, and what becomes of the session.

use std::path::PathBuf;

use tegata_proto::encoding::Secret;
use tegata_proto::id::Incarnation;
use tegata_proto::session::{Attached, Channel, Mode};

use super::*;
use crate::office::{Desk, attached, known};

/// Waits for an event of this name.
pub(super) async fn comes(watch: &mut Receiver<Event>, name: &str) -> Event {
    comes_one_of(watch, &[name]).await
}

/// Waits for an event of one of these names.
pub(super) async fn comes_one_of(watch: &mut Receiver<Event>, names: &[&str]) -> Event {
    loop {
        let event = watch.recv().await.expect("the run goes on");
        let json = serde_json::to_value(&event).expect("JSON");
        if json["event"].as_str().is_some_and(|name| names.contains(&name)) {
            return event;
        }
    }
}

/// Sends these bytes, and reads until so many have come.
pub(super) async fn exchange(viewer: &mut TcpStream, up: &[u8], down: usize) -> Vec<u8> {
    let (mut read, mut write) = viewer.split();
    let mut back = vec![0; down];
    let (sent, read) = tokio::join!(write.write_all(up), read.read_exact(&mut back));
    sent.expect("the viewer stays");
    read.expect("every byte comes");
    back
}

/// Waits until the desktop has as much as it should.
pub(super) async fn arrived(desk: &Desk, up: &[u8]) {
    soon(async {
        while desk.held().written.len() < up.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(desk.held().written == up, "every byte went up once, in order");
}

pub(super) fn links(report: &Report, name: &str) -> usize {
    report.names().iter().filter(|event| *event == name).count()
}

#[tokio::test]
async fn cuts_in_the_middle_of_a_transfer_lose_and_double_no_byte() {
    for seed in 1..=4_u32 {
        let (up, down) = (known(700_000, seed), known(900_000, seed + 100));
        // Somewhere in what passes, seeded.
        let cuts: Vec<usize> = known(3, seed + 7).iter().map(|n| usize::from(*n) * 1_100).collect();
        let mut office = Office::new();
        let desk = Desk::sending(down.clone());
        let gateway = office.desk(&desk, cuts.clone());
        let broker = admitting(&mut office, &answer(vec![gateway]));
        let agent = office.agent();
        let stop = CancellationToken::new();
        let report =
            beside(&agent, to(broker, forward()), &stop, async |mut watch: Receiver<Event>| {
                let mut viewer = forwarded(&mut watch).await;
                let back = exchange(&mut viewer, &up, down.len()).await;
                assert!(back == down, "every byte came down once, in order ({cuts:?})");
                arrived(&desk, &up).await;
            })
            .await;
        assert_eq!(report.code, Code::Disconnected, "{cuts:?}");
        let lost = links(&report, "link_lost");
        assert_eq!(
            (lost, links(&report, "resumed")),
            (cuts.len(), cuts.len()),
            "{cuts:?} {:?}",
            report.events
        );
        assert_eq!(links(&report, "attached"), 1, "the viewer noticed nothing");
        let numbers: Vec<u64> = desk.held().attaches.iter().map(|attach| attach.link.0).collect();
        assert_eq!(numbers, (1..=cuts.len() as u64 + 1).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn answers_that_are_lost_cost_a_number_each_and_no_byte() {
    let (up, down) = (known(100_000, 3), known(100_000, 4));
    let mut office = Office::new();
    let desk = Desk::sending(down.clone());
    let gateway = {
        let desk = desk.clone();
        office.gateway(move |number, mut peer: Peer| {
            let desk = desk.clone();
            async move {
                let attached = desk.answer(&mut peer).await?;
                match number {
                    0 => desk.carry(&mut peer, attached, Some(50_000)).await,
                    // The session is on this link, and its agent never learns of it.
                    1 => {
                        peer.connection.close(1_u8.into(), b"");
                        Ok(())
                    }
                    // Nor of this one, for a while.
                    2 => {
                        peer.connection.closed().await;
                        Ok(())
                    }
                    _ => desk.carry(&mut peer, attached, None).await,
                }
            }
        })
    };
    let report = forwarded_by(&mut office, gateway, async |mut watch: Receiver<Event>| {
        let mut viewer = forwarded(&mut watch).await;
        assert!(exchange(&mut viewer, &up, down.len()).await == down, "in order");
        arrived(&desk, &up).await;
    })
    .await;
    assert_eq!((links(&report, "link_lost"), links(&report, "resumed")), (1, 1));
    let numbers: Vec<u64> = desk.held().attaches.iter().map(|attach| attach.link.0).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
}

/// A viewer that writes down each start: its number, whether it has a secret, and
/// its process.
fn noting() -> (tempfile::TempDir, Viewer) {
    script(
        r#"secret=none
           if [ -n "${TEGATA_SECRET_FD:-}" ]; then secret=$(cat <&"$TEGATA_SECRET_FD"); fi
           printf x >&"$TEGATA_FD"
           echo "$$ $secret $TEGATA_USER" >>"$1/starts"
           exec cat <&"$TEGATA_FD" >>"$1/bytes.$$""#,
    )
}

pub(super) async fn starts(folder: &tempfile::TempDir, count: usize) -> Vec<String> {
    let path: PathBuf = folder.path().join("starts");
    soon(async {
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            if lines.len() >= count {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// The first answer of an RDP desktop, and what follows.
fn rdp(rest: &[u8]) -> Vec<u8> {
    [b"\x03\0\0\x13\x0e\xd0\0\0\0\0\0\x02\0\x08\0\x01\0\0\0", rest].concat()
}

#[tokio::test]
async fn the_viewers_process_stays_while_links_come_and_go() {
    let down = rdp(&known(900_000, 9));
    let mut office = Office::new();
    let desk = Desk::sending(down.clone());
    let gateway = office.desk(&desk, vec![100_000, 100_000, 100_000]);
    let broker = admitting(&mut office, &rdp_answer(vec![gateway]));
    let agent = office.agent();
    let stop = CancellationToken::new();
    let (folder, viewer) = noting();
    let report = beside(&agent, to(broker, viewer), &stop, async |mut watch: Receiver<Event>| {
        for _ in 0..3 {
            comes(&mut watch, "resumed").await;
        }
        soon(async {
            while desk.held().acknowledged < down.len() as u64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        // What was acknowledged is in the viewer's socket, and soon in its file.
        let pid = starts(&folder, 1).await[0].split(' ').next().expect("a number").to_owned();
        let file = folder.path().join(format!("bytes.{pid}"));
        soon(async {
            while std::fs::read(&file).map_or(0, |bytes| bytes.len()) < down.len() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert!(std::fs::read(&file).expect("written") == down, "one process has every byte once");
        stop.cancel();
    })
    .await;
    assert_eq!(report.code, Code::Disconnected);
    assert_eq!(starts(&folder, 1).await.len(), 1, "it was started once");
    assert_eq!(links(&report, "first_byte"), 1);
}

#[tokio::test]
async fn what_is_lost_for_good_begins_again_without_the_password() {
    let mut office = Office::new();
    let desk = Desk::sending(rdp(b"first"));
    let gateway = {
        let desk = desk.clone();
        office.gateway(move |number, mut peer: Peer| {
            let desk = desk.clone();
            async move {
                if number == 1 {
                    // The gateway was away for longer than it holds a desktop.
                    desk.forget(rdp(b"second"));
                }
                let attached = desk.answer(&mut peer).await?;
                desk.carry(&mut peer, attached, (number == 0).then_some(24)).await
            }
        })
    };
    let broker = admitting(&mut office, &rdp_answer(vec![gateway]));
    let agent = office.agent();
    let stop = CancellationToken::new();
    let (folder, viewer) = noting();
    let report = beside(&agent, to(broker, viewer), &stop, async |mut watch: Receiver<Event>| {
        comes(&mut watch, "link_lost").await;
        comes(&mut watch, "attached").await;
        comes(&mut watch, "first_byte").await;
        starts(&folder, 2).await;
        stop.cancel();
    })
    .await;
    assert_eq!(report.code, Code::Disconnected);
    let starts = starts(&folder, 2).await;
    assert!(starts[0].ends_with(" hunter2 sato"), "{starts:?}");
    assert!(starts[1].ends_with(" none sato"), "{starts:?}");
    let held = desk.held();
    let asked: Vec<_> = held.attaches.iter().map(|attach| attach.resume.is_some()).collect();
    assert_eq!(asked, [false, true, false]);
    assert_eq!(links(&report, "resumed"), 0);
}

#[tokio::test]
async fn a_forwards_one_connection_does_not_outlive_its_desktops() {
    let mut office = Office::new();
    let desk = Desk::sending(b"first".to_vec());
    let gateway = {
        let desk = desk.clone();
        office.gateway(move |number, mut peer: Peer| {
            let desk = desk.clone();
            async move {
                if number == 1 {
                    desk.forget(b"second".to_vec());
                }
                let attached = desk.answer(&mut peer).await?;
                desk.carry(&mut peer, attached, (number == 0).then_some(5)).await
            }
        })
    };
    let report = forwarded_by(&mut office, gateway, |mut watch| async move {
        let mut viewer = forwarded(&mut watch).await;
        let mut all = Vec::new();
        let _ = viewer.read_to_end(&mut all).await;
        assert!(b"first".starts_with(&all), "nothing of the second: {all:?}");
    })
    .await;
    assert_eq!((report.code, report.code.exit()), (Code::ResumeLost, 41));
}

/// Tokens that attaches have shown, in order.
fn tokens(desk: &Desk) -> Vec<String> {
    desk.held().attaches.iter().map(|attach| attach.right.token().expose().to_owned()).collect()
}

#[tokio::test]
async fn the_youngest_grant_is_shown() {
    let mut office = Office::new();
    let desk = Desk::sending(b"bytes".to_vec());
    let gateway = {
        let desk = desk.clone();
        office.gateway(move |number, mut peer: Peer| {
            let desk = desk.clone();
            async move {
                let mut attached = desk.answer(&mut peer).await?;
                match number {
                    0 => desk.carry(&mut peer, attached, Some(5)).await,
                    1 => {
                        attached.grant = Some(Secret::new("the.second.grant"));
                        desk.carry(&mut peer, attached, Some(0)).await
                    }
                    2 => {
                        peer.carry_as(attached).await?;
                        let grant = Secret::new("the.third.grant");
                        peer.say(&GatewayMessage::Grant { grant }).await?;
                        peer.say(&GatewayMessage::End { cause: Code::Superseded }).await
                    }
                    _ => {
                        peer.carry_as(attached).await?;
                        peer.say(&GatewayMessage::End { cause: Code::TimeLimit }).await
                    }
                }
            }
        })
    };
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
    assert_eq!(report.code, Code::TimeLimit);
    let shown = ["the.one.ticket", "the.resume.grant", "the.second.grant", "the.third.grant"];
    assert_eq!(tokens(&desk), shown);
}

/// A gateway that answers the first attach, then loses the link, and does this with
/// each later one.
pub(super) fn losing<F, D>(office: &mut Office, then: F) -> Gateway
where
    F: Fn(usize, Peer, LinkNumber) -> D + Copy + Send + Sync + 'static,
    D: Future<Output = Result<(), LinkError>> + Send + 'static,
{
    office.gateway(move |number, mut peer: Peer| async move {
        let attach = peer.attach().await?;
        if number > 0 {
            return then(number, peer, attach.link).await;
        }
        let (mut send, _recv) = peer.carry(attach.link).await?;
        let _ = send.write_chunk(bytes::Bytes::copy_from_slice(b"x")).await;
        let _: AgentMessage = peer.hear().await?;
        peer.connection.close(1_u8.into(), b"");
        Ok(())
    })
}

async fn lost(then: Code) -> Report {
    let mut office = Office::new();
    let codes = [Code::Busy, Code::Unavailable, then];
    let gateway = match then {
        Code::SessionEnded => losing(&mut office, move |number, mut peer, _| async move {
            peer.say(&GatewayMessage::Error(codes[number.min(3) - 1].into())).await
        }),
        _ => losing(&mut office, move |_, mut peer, _| async move {
            peer.say(&GatewayMessage::Error(then.into())).await
        }),
    };
    let broker = admitting(&mut office, &answer(vec![gateway]));
    alone(&office.agent(), to(broker, Viewer::Nothing)).await
}

#[tokio::test]
async fn a_code_ends_the_comeback_and_is_the_end_of_the_run() {
    for (code, end, exit) in [
        (Code::SessionEnded, Code::SessionEnded, 41),
        (Code::EndedByAdministrator, Code::EndedByAdministrator, 53),
        (Code::TakenOver, Code::TakenOver, 52),
        (Code::TicketExpired, Code::LoginAgain, 51),
    ] {
        let report = lost(code).await;
        assert_eq!((report.code, report.code.exit()), (end, exit));
        let names = report.names();
        assert!(names.contains(&"link_lost".into()), "{names:?}");
        assert!(!names.contains(&"resumed".into()), "{names:?}");
    }
}

#[tokio::test]
async fn what_a_gateway_says_as_it_closes_is_the_end_too() {
    let mut office = Office::new();
    let gateway = office.gateway(|_, mut peer: Peer| async move {
        let attach = peer.attach().await?;
        peer.carry(attach.link).await?;
        peer.connection.close(53_u8.into(), b"ended_by_administrator");
        Ok(())
    });
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
    assert_eq!(report.code, Code::EndedByAdministrator);
    assert!(!report.names().contains(&"link_lost".into()));
}

#[tokio::test]
async fn a_resumption_that_is_none_is_refused() {
    type Change = fn(&mut Attached);
    let wrong: [(Change, Code); 3] = [
        (|attached| attached.mode = Mode::Fresh, Code::Malformed),
        (|attached| attached.incarnation = Incarnation(2), Code::Malformed),
        (|attached| attached.link = LinkNumber(1), Code::Malformed),
    ];
    for (change, code) in wrong {
        let mut office = Office::new();
        let gateway = losing(&mut office, move |_, mut peer, link| async move {
            let mut attached = Attached { mode: Mode::Resumed, ..attached(link) };
            change(&mut attached);
            peer.say(&GatewayMessage::Attached(Box::new(attached))).await
        });
        let broker = admitting(&mut office, &answer(vec![gateway]));
        let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
        assert_eq!((report.code, report.code.exit()), (code, 70));
    }
}

#[tokio::test]
async fn an_offset_that_cannot_be_begins_the_desktop_again() {
    let mut office = Office::new();
    let gateway = losing(&mut office, move |number, mut peer, link| async move {
        if number == 1 {
            let received = [(Channel::Rdp, 7)].into();
            let attached = Attached { mode: Mode::Resumed, received, ..attached(link) };
            return peer.say(&GatewayMessage::Attached(Box::new(attached))).await;
        }
        peer.carry(link).await?;
        peer.say(&GatewayMessage::End { cause: Code::TimeLimit }).await
    });
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
    assert_eq!(report.code, Code::TimeLimit);
    assert_eq!((links(&report, "attached"), links(&report, "resumed")), (2, 0));
}

#[tokio::test]
async fn an_acknowledgement_of_what_was_never_sent_ends_the_run_with_70() {
    let mut office = Office::new();
    let gateway = office.gateway(|_, mut peer: Peer| async move {
        let attach = peer.attach().await?;
        peer.carry(attach.link).await?;
        let channel = Channel::Rdp;
        peer.say(&GatewayMessage::Ack { channel, received: 0 }).await?;
        peer.say(&GatewayMessage::Ack { channel, received: 1 }).await?;
        peer.connection.closed().await;
        Ok(())
    });
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
    assert_eq!((report.code, report.code.exit()), (Code::Malformed, 70));
}

#[tokio::test]
async fn a_gateway_that_acknowledges_nothing_stops_the_viewer_at_the_windows_size() {
    let mut office = Office::new();
    let gateway = office.gateway(|_, mut peer: Peer| async move {
        let attach = peer.attach().await?;
        let (_send, mut recv) = peer.carry(attach.link).await?;
        while let Ok(Some(_)) = recv.read(1 << 20).await {}
        Ok(())
    });
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let agent = office.agent();
    let stop = CancellationToken::new();
    beside(&agent, to(broker, forward()), &stop, async |mut watch: Receiver<Event>| {
        let mut viewer = forwarded(&mut watch).await;
        let piece = vec![7; 64 * 1024];
        let mut taken = 0;
        // What the system's own buffers take is some megabytes more.
        let moment = Duration::from_millis(500);
        while let Ok(written) = timeout(moment, viewer.write(&piece)).await {
            taken += written.expect("it is only slow");
            assert!(taken < 32 << 20, "the viewer is never stopped");
        }
        assert!(taken >= 1 << 20, "{taken}");
        stop.cancel();
    })
    .await;
}

#[tokio::test]
async fn what_the_viewer_has_is_acknowledged_within_a_moment() {
    let mut office = Office::new();
    let desk = Desk::sending(b"few".to_vec());
    let gateway = office.desk(&desk, vec![]);
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let agent = office.agent();
    let stop = CancellationToken::new();
    beside(&agent, to(broker, Viewer::Nothing), &stop, |_watch| async {
        while desk.held().acknowledged < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
    })
    .await;
}

#[tokio::test]
async fn a_stop_ends_a_run_that_is_on_its_way_back() {
    let mut office = Office::new();
    let gateway = losing(&mut office, |_, peer, _| async move {
        peer.connection.closed().await;
        Ok(())
    });
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let agent = office.agent();
    let stop = CancellationToken::new();
    let report =
        beside(&agent, to(broker, Viewer::Nothing), &stop, async |mut watch: Receiver<Event>| {
            comes(&mut watch, "link_lost").await;
            stop.cancel();
            drop(watch);
        })
        .await;
    assert_eq!((report.code, report.code.exit()), (Code::Disconnected, 50));
}

#[tokio::test]
async fn a_viewer_that_closes_meanwhile_ends_the_run() {
    let mut office = Office::new();
    let gateway = losing(&mut office, |_, peer, _| async move {
        peer.connection.closed().await;
        Ok(())
    });
    let report = forwarded_by(&mut office, gateway, |mut watch| async move {
        let viewer = forwarded(&mut watch).await;
        comes(&mut watch, "link_lost").await;
        drop(viewer);
    })
    .await;
    assert_eq!((report.code, report.code.exit()), (Code::Disconnected, 50));
}

#[tokio::test]
async fn a_desktops_first_answer_is_judged_as_a_whole_over_two_links() {
    // What the first link has brought is not brought otherwise by the second.
    let changed = [&known(10, 5), &rdp(b"more")[10..]].concat();
    for (second, secured) in [(rdp(b"more"), true), (known(40, 5), false), (changed, true)] {
        let mut office = Office::new();
        let first = rdp(b"more");
        let whole = first.clone();
        let gateway = office.gateway(move |number, mut peer: Peer| {
            let (first, second) = (first.clone(), second.clone());
            async move {
                let attach = peer.attach().await?;
                if number == 0 {
                    let (mut send, mut recv) = peer.carry(attach.link).await?;
                    let _ = recv.read(1).await;
                    let _ = send.write_chunk(bytes::Bytes::copy_from_slice(&first[..10])).await;
                    let _ = timeout(Duration::from_millis(100), send.arrived()).await;
                    peer.connection.close(1_u8.into(), b"");
                    return Ok(());
                }
                let resume = attach.resume.expect("the desktop's connection is here");
                assert_eq!(resume.received[&Channel::Rdp], 0, "the viewer has nothing yet");
                let received = [(Channel::Rdp, 1)].into();
                let attached = Attached { mode: Mode::Resumed, received, ..attached(attach.link) };
                let (mut send, _recv) = peer.carry_as(attached).await?;
                let _ = send.write_chunk(bytes::Bytes::copy_from_slice(&second)).await;
                peer.connection.closed().await;
                Ok(())
            }
        });
        let broker = admitting(&mut office, &rdp_answer(vec![gateway]));
        let agent = office.agent();
        let stop = CancellationToken::new();
        let report = beside(&agent, to(broker, forward()), &stop, |mut watch| async move {
            let mut viewer = forwarded(&mut watch).await;
            viewer.write_all(b"x").await.expect("it is carried");
            let mut back = vec![0; whole.len()];
            let read = viewer.read_exact(&mut back).await;
            assert_eq!(read.is_ok(), secured);
            assert_eq!(back == whole, secured, "nothing of what was not secured");
        })
        .await;
        let code = if secured { Code::Disconnected } else { Code::PinMismatch };
        assert_eq!(report.code, code);
    }
}

#[tokio::test]
async fn another_gateway_is_asked_only_when_the_desktops_own_has_been_for_a_while() {
    let mut office = Office::new();
    let other = office.gateway(|_, mut peer: Peer| async move {
        peer.attach().await?;
        panic!("it was asked at once");
    });
    let desk = Desk::sending(b"bytes".to_vec());
    let mut home = office.desk(&desk, vec![5]);
    home.id = tegata_proto::id::GatewayId::new("g1").expect("a name");
    let other = Gateway { id: tegata_proto::id::GatewayId::new("g2").expect("a name"), ..other };
    let broker = admitting(&mut office, &answer(vec![home, other]));
    let agent = office.agent();
    let stop = CancellationToken::new();
    let report =
        beside(&agent, to(broker, Viewer::Nothing), &stop, async |mut watch: Receiver<Event>| {
            comes(&mut watch, "resumed").await;
            stop.cancel();
            drop(watch);
        })
        .await;
    assert_eq!(report.code, Code::Disconnected);
    assert_eq!(tokens(&desk), ["the.one.ticket", "the.resume.grant"]);
}
