//! How a viewer or its desktop ends, and what is still carried then.

use std::path::PathBuf;

use tegata_proto::session::{Attached, Channel, Mode};

use super::lost::{arrived, comes, losing, starts};
use super::*;
use crate::office::{Desk, attached, known};

/// A viewer that writes down each start, ends well once it is told to, and is told by a
/// file of this name.
fn ending() -> (tempfile::TempDir, PathBuf, Viewer) {
    let (folder, viewer) = script(
        r#"printf x >&"$TEGATA_FD"
           echo "$$ none $TEGATA_USER" >>"$1/starts"
           until [ -e "$1/over" ]; do sleep 0.02; done
           exit 0"#,
    );
    let over = folder.path().join("over");
    (folder, over, viewer)
}

/// A gateway that answers the first attach, and loses the link once the viewer has said
/// something; then the desktop's connection is gone. The viewer ends before this attach
/// is answered, and what the agent says as it leaves is written down.
fn gone_for_good(office: &mut Office, over: PathBuf, ends_at: usize, byes: &Byes) -> Gateway {
    let byes = Arc::clone(byes);
    office.gateway(move |number, mut peer: Peer| {
        let (over, byes) = (over.clone(), Arc::clone(&byes));
        async move {
            let attach = peer.attach().await?;
            if number == ends_at {
                std::fs::write(&over, b"").expect("room");
                tokio::time::sleep(Duration::from_millis(1_500)).await;
            }
            match number {
                0 => {
                    let (_send, mut recv) = peer.carry(attach.link).await?;
                    let _ = recv.read(1).await;
                    peer.connection.close(1_u8.into(), b"");
                    Ok(())
                }
                1 => peer.say(&GatewayMessage::Error(Code::ResumeLost.into())).await,
                _ => {
                    assert!(attach.resume.is_none(), "there is nothing to go on with");
                    let (_send, _recv) = peer.carry(attach.link).await?;
                    loop {
                        if let AgentMessage::Bye { code } = peer.hear.next(1024).await? {
                            byes.lock().expect("no panic").push(code);
                            return Ok(());
                        }
                    }
                }
            }
        }
    })
}

#[tokio::test]
async fn a_viewer_that_has_ended_is_not_started_again() {
    // It ends before its desktop's connection turns out to be gone, or after that.
    for (ends_at, said) in [(1, &[][..]), (2, &[Code::LoggedOff])] {
        let mut office = Office::new();
        let byes = Byes::default();
        let (folder, over, viewer) = ending();
        let gateway = gone_for_good(&mut office, over, ends_at, &byes);
        let broker = admitting(&mut office, &answer(vec![gateway]));
        let report = alone(&office.agent(), to(broker, viewer)).await;
        assert_eq!(starts(&folder, 1).await.len(), 1, "it was started once ({ends_at})");
        assert_eq!((report.code, report.code.exit()), (Code::LoggedOff, 0), "{ends_at}");
        assert_eq!(*byes.lock().expect("no panic"), said, "{ends_at}");
    }
}

#[tokio::test]
async fn a_forward_that_is_closed_before_its_desktop_is_gone_ends_as_a_disconnect() {
    let mut office = Office::new();
    let gateway = losing(&mut office, |_, mut peer, _| async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        peer.say(&GatewayMessage::Error(Code::ResumeLost.into())).await
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
async fn a_viewer_that_has_finished_hears_its_desktop_out() {
    let mut office = Office::new();
    let desk = Desk::sending(vec![]);
    let broker = {
        let gateway = office.desk(&desk, vec![]);
        admitting(&mut office, &answer(vec![gateway]))
    };
    let agent = office.agent();
    let stop = CancellationToken::new();
    let report =
        beside(&agent, to(broker, forward()), &stop, async |mut watch: Receiver<Event>| {
            let mut viewer = forwarded(&mut watch).await;
            viewer.write_all(b"tell me").await.expect("it is carried");
            viewer.shutdown().await.expect("it is open");
            arrived(&desk, b"tell me").await;
            for byte in b"answer" {
                tokio::time::sleep(Duration::from_secs(1)).await;
                desk.send(&[*byte]);
                assert_eq!(viewer.read_u8().await.expect("it comes"), *byte);
            }
        })
        .await;
    assert_eq!(report.code, Code::Disconnected);
}

#[tokio::test]
async fn a_viewer_that_finished_before_its_desktop_went_has_not_lost_it() {
    // The desktop goes while the viewer's words are on their way over the next link, and
    // its gateway says so before the viewer is heard out.
    for says_so in [false, true] {
        let mut office = Office::new();
        let transport = Arc::get_mut(&mut office.transport).expect("nothing is started");
        transport.stream_receive_window(64_000_u32.into());
        let gateway = office.gateway(move |number, mut peer: Peer| async move {
            let attach = peer.attach().await?;
            if number == 0 {
                let (_send, _recv) = peer.carry(attach.link).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                peer.connection.close(1_u8.into(), b"");
                return Ok(());
            }
            let attached = Attached { mode: Mode::Resumed, ..attached(attach.link) };
            let (mut send, _recv) = peer.carry_as(attached).await?;
            if says_so {
                peer.connection.close(1_u8.into(), Code::DesktopLost.as_str().as_bytes());
            } else {
                send.finish();
            }
            Ok(())
        });
        let report = forwarded_by(&mut office, gateway, |mut watch| async move {
            let mut viewer = forwarded(&mut watch).await;
            viewer.write_all(&vec![7; 500_000]).await.expect("it is kept");
            viewer.shutdown().await.expect("it is open");
            comes(&mut watch, "resumed").await;
            let _ = viewer.read(&mut [0]).await;
        })
        .await;
        assert_eq!((report.code, report.code.exit()), (Code::Disconnected, 50), "{says_so}");
    }
}

#[tokio::test]
async fn the_last_words_of_a_viewer_arrive_as_a_whole_or_are_no_end() {
    // A desktop that takes them one after the other, and one that takes none for long.
    for (pause, before) in [(Duration::from_millis(2), 0), (Duration::ZERO, 8)] {
        let mut office = Office::new();
        let transport = Arc::get_mut(&mut office.transport).expect("nothing is started");
        transport.stream_receive_window(64_000_u32.into());
        let taken: Arc<Mutex<Option<(usize, bool)>>> = Arc::default();
        let gateway = {
            let taken = Arc::clone(&taken);
            office.gateway(move |_, mut peer: Peer| {
                let taken = Arc::clone(&taken);
                async move {
                    let attach = peer.attach().await?;
                    let (mut send, mut recv) = peer.carry(attach.link).await?;
                    let picture = async {
                        let piece = bytes::Bytes::from(vec![7; 10_000]);
                        while send.write_chunk(piece.clone()).await.is_ok() {}
                    };
                    let words = async {
                        tokio::time::sleep(Duration::from_secs(before)).await;
                        let (mut count, mut is_end) = (0, false);
                        while let Ok(bytes) = recv.read(64_000).await {
                            is_end = bytes.is_none();
                            let Some(bytes) = bytes else { break };
                            count += bytes.len();
                            let (channel, received) = (Channel::Rdp, count as u64);
                            let _ = peer.say(&GatewayMessage::Ack { channel, received }).await;
                            tokio::time::sleep(pause).await;
                        }
                        *taken.lock().expect("no panic") = Some((count, is_end));
                    };
                    tokio::join!(picture, words);
                    Ok(())
                }
            })
        };
        let broker = admitting(&mut office, &answer(vec![gateway]));
        let agent = office.agent();
        // It is gone as soon as its words are in the socket.
        let (_folder, viewer) = script(r#"head -c 500000 /dev/zero >&"$TEGATA_FD"; exit 0"#);
        let report = alone(&agent, to(broker, viewer)).await;
        assert_eq!(report.code, Code::LoggedOff);
        let taken = soon(async {
            loop {
                if let Some(taken) = *taken.lock().expect("no panic") {
                    return taken;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        match before {
            0 => assert_eq!(taken, (500_000, true)),
            _ => assert!(!taken.1, "a cut is no end: {taken:?}"),
        }
    }
}

#[tokio::test]
async fn what_a_desktop_sent_before_its_end_arrives_over_a_slow_line() {
    let down = known(600_000, 11);
    let acknowledged = Arc::new(Mutex::new(0));
    let mut office = Office::new();
    let mut gateway = {
        let (down, acknowledged) = (down.clone(), Arc::clone(&acknowledged));
        office.gateway(move |_, mut peer: Peer| {
            let (down, acknowledged) = (down.clone(), Arc::clone(&acknowledged));
            async move {
                let attach = peer.attach().await?;
                let (mut send, _recv) = peer.carry(attach.link).await?;
                // All of it is on its way at once, and the word passes it.
                send.write_chunk(down.into()).await?;
                send.finish();
                peer.say(&GatewayMessage::End { cause: Code::DesktopLost }).await?;
                loop {
                    if let AgentMessage::Ack { received, .. } = peer.hear.next(1024).await? {
                        *acknowledged.lock().expect("no panic") = received;
                    }
                }
            }
        })
    };
    let (address, wire) = office.wire(gateway.addresses[0]);
    gateway.addresses = vec![address];
    let report = forwarded_by(&mut office, gateway, async |mut watch: Receiver<Event>| {
        let mut viewer = forwarded(&mut watch).await;
        // About 50 kilobytes a second.
        wire.set_delay(Duration::from_millis(25));
        let mut all = Vec::new();
        viewer.read_to_end(&mut all).await.expect("an orderly end");
        assert!(all == down, "{} of {} bytes came", all.len(), down.len());
    })
    .await;
    assert_eq!((report.code, report.code.exit()), (Code::DesktopLost, 41));
    let acknowledged = *acknowledged.lock().expect("no panic");
    assert!(acknowledged > 500_000, "the gateway hears how far it is: {acknowledged}");
}

#[tokio::test]
async fn a_viewer_that_a_script_has_started_ends_with_the_script() {
    let mut office = Office::new();
    let gateway = echoing(&mut office, &Byes::default());
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let agent = office.agent();
    let stop = CancellationToken::new();
    let (folder, viewer) =
        script(r#"sleep 600 & echo $! >"$1/new" && mv "$1/new" "$1/pid"; wait; true"#);
    let file = folder.path().join("pid");
    let report = beside(&agent, to(broker, viewer), &stop, |_watch| async {
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
    })
    .await;
    assert_eq!(report.code, Code::Disconnected);
    let pid = std::fs::read_to_string(file).expect("written");
    soon(async {
        let state = format!("/proc/{}/stat", pid.trim());
        // Gone, or waiting to be collected.
        while std::fs::read_to_string(&state).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
