//! A session that is found to come from another network.

use std::collections::BTreeMap;

use tegata_proto::policy::Policy;
use tegata_proto::session::{Attached, GatewayMessage, Notice};

use super::lost::{comes, links};
use super::*;
use crate::office::{Desk, attached};

const LESS: Policy = Policy {
    clipboard: false,
    drive: false,
    printer: false,
    usb: false,
    sound: true,
    profile: None,
};

/// A gateway that says this over the first link once it is carried, and cuts a link that it
/// has nothing to say over. Over every further one, the thin client may do less.
fn saying(office: &mut Office, desk: &Desk, words: Vec<GatewayMessage>) -> Gateway {
    let desk = desk.clone();
    office.gateway(move |number, mut peer: Peer| {
        let (desk, words) = (desk.clone(), words.clone());
        async move {
            if number > 0 {
                desk.forget(b"again".to_vec());
            }
            let attached = desk.answer(&mut peer).await?;
            if number > 0 {
                let attached = Attached { policy: LESS, ..attached };
                return desk.carry(&mut peer, attached, None).await;
            }
            let (mut send, _recv) = peer.carry_as(attached).await?;
            let _ = send.write_chunk(bytes::Bytes::from_static(b"x")).await;
            if words.is_empty() {
                peer.connection.close(1_u8.into(), b"");
            }
            for word in words {
                peer.say(&word).await?;
            }
            peer.connection.closed().await;
            Ok(())
        }
    })
}

/// Runs until a gateway that says this has been told of and the desktop is shown again; returns
/// what came of it, and whether each link asked for the connection that was.
async fn shown_again(words: Vec<GatewayMessage>) -> (Report, Vec<bool>) {
    let mut office = Office::new();
    let desk = Desk::sending(b"x".to_vec());
    let gateway = saying(&mut office, &desk, words);
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let agent = office.agent();
    let stop = CancellationToken::new();
    let run = to(broker, Viewer::Nothing);
    let report = beside(&agent, run, &stop, async |mut watch: Receiver<Event>| {
        comes(&mut watch, "notice").await;
        comes(&mut watch, "attached").await;
        comes(&mut watch, "first_byte").await;
        stop.cancel();
    })
    .await;
    assert_eq!(report.code, Code::Disconnected);
    assert_eq!((links(&report, "attached"), links(&report, "notice")), (2, 1));
    let held = desk.held();
    (report, held.attaches.iter().map(|attach| attach.resume.is_some()).collect())
}

#[tokio::test]
async fn other_redirections_are_a_notice_and_the_desktop_from_its_beginning() {
    let notice = GatewayMessage::Notice { code: "policy_changed".into(), args: BTreeMap::new() };
    let policy = GatewayMessage::Policy { policy: LESS, input_every_ms: None };
    let (report, asked) = shown_again(vec![notice, policy]).await;
    assert_eq!(links(&report, "link_lost"), 0, "nothing was lost");
    assert_eq!(asked, [false, false], "not the connection that it was");
}

#[tokio::test]
async fn who_comes_back_from_an_outage_to_other_redirections_is_told_before_the_desktop() {
    let (report, asked) = shown_again(vec![]).await;
    assert_eq!(asked, [false, true, false], "the connection that it was is asked for first");
    let code = Notice::PolicyChanged.as_str();
    let told = |event: &Event| matches!(event, Event::Notice { code: told, .. } if told == code);
    assert!(report.events.iter().any(told), "{:?}", report.names());
}

#[tokio::test]
async fn the_same_redirections_are_nothing_to_a_viewer() {
    let mut office = Office::new();
    let policy = attached(LinkNumber::FIRST).policy;
    let desk = Desk::sending(b"x".to_vec());
    let words = vec![
        GatewayMessage::Policy { policy, input_every_ms: Some(1_000) },
        GatewayMessage::End { cause: Code::IdleLimit },
    ];
    let gateway = saying(&mut office, &desk, words);
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
    assert_eq!((report.code, report.code.exit()), (Code::IdleLimit, 51));
    assert_eq!(links(&report, "attached"), 1);
    assert!(matches!(report.last(), Event::Ended { code: Code::IdleLimit }));
}

#[tokio::test]
async fn who_does_not_get_in_after_other_redirections_is_told_of_an_outage() {
    let mut office = Office::new();
    let gateway = office.gateway(|number, mut peer: Peer| async move {
        let attach = peer.attach().await?;
        if number == 0 {
            let (mut send, _recv) = peer.carry(attach.link).await?;
            let _ = send.write_chunk(bytes::Bytes::from_static(b"x")).await;
            let policy = GatewayMessage::Policy { policy: LESS, input_every_ms: None };
            peer.say(&policy).await?;
        }
        // The next one is never answered.
        peer.connection.closed().await;
        Ok(())
    });
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let agent = office.agent();
    let stop = CancellationToken::new();
    let run = to(broker, Viewer::Nothing);
    let report = beside(&agent, run, &stop, async |mut watch: Receiver<Event>| {
        comes(&mut watch, "link_lost").await;
        stop.cancel();
    })
    .await;
    assert_eq!(report.code, Code::Disconnected);
    assert_eq!(links(&report, "link_lost"), 1);
}
