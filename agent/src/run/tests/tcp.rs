//! Networks that let no UDP pass, or not always.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::lost::{arrived, comes, exchange, links};
use super::path::{Changing, behind_a_wire};
use super::*;
use crate::link::Transport;
use crate::office::{Desk, Guest, known};

fn reached_by_tcp() -> Office {
    let mut office = Office::new();
    office.has_tcp = true;
    office
}

/// Returns what carried each event of this name.
fn transports(report: &Report, name: &str) -> Vec<String> {
    let events = report.events.iter().map(|event| serde_json::to_value(event).expect("JSON"));
    events
        .filter(|event| event["event"] == name)
        .map(|event| event["transport"].as_str().expect("it is said").to_owned())
        .collect()
}

#[tokio::test]
async fn where_no_udp_passes_login_and_session_go_by_tcp() {
    let (up, down) = (known(3_000_000, 1), known(2_000_000, 2));
    let mut office = reached_by_tcp();
    let desk = Desk::sending(down.clone());
    let (gateway, _) = {
        let gateway = office.desk(&desk, vec![]);
        let (address, wire) = office.wire(gateway.addresses[0]);
        wire.set_udp_dark(true);
        (Gateway { addresses: vec![address], ..gateway }, wire)
    };
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let (broker, wire) = office.wire(broker);
    wire.set_udp_dark(true);
    let agent = office.agent();
    let stop = CancellationToken::new();
    let begun = Instant::now();
    let mut took = Duration::MAX;
    let report =
        beside(&agent, to(broker, forward()), &stop, async |mut watch: Receiver<Event>| {
            let mut viewer = forwarded(&mut watch).await;
            took = begun.elapsed();
            assert!(exchange(&mut viewer, &up, down.len()).await == down, "in order");
            arrived(&desk, &up).await;
        })
        .await;
    assert_eq!(report.code, Code::Disconnected);
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(transports(&report, "connected"), ["tcp"]);
    assert_eq!(transports(&report, "attached"), ["tcp"]);
    let held = desk.held();
    assert_eq!(held.attaches.len(), 1, "handshakes race, attaches do not");
    assert!(agent.dialler.is_udp_out(), "so that the next race begins with TCP");
}

#[tokio::test]
async fn where_udp_passes_tcp_is_not_even_begun() {
    let mut office = reached_by_tcp();
    let desk = Desk::sending(b"bytes".to_vec());
    let gateway = office.desk(&desk, vec![]);
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let agent = office.agent();
    let stop = CancellationToken::new();
    let report =
        beside(&agent, to(broker, forward()), &stop, async |mut watch: Receiver<Event>| {
            let mut viewer = forwarded(&mut watch).await;
            assert_eq!(exchange(&mut viewer, b"x", 5).await, b"bytes");
        })
        .await;
    assert_eq!(transports(&report, "connected"), ["quic"]);
    assert_eq!(transports(&report, "attached"), ["quic"]);
    assert!(!agent.dialler.is_udp_out());
    assert_eq!(office.tcp_comers.load(Ordering::Relaxed), 0, "QUIC is half a second ahead");
}

#[tokio::test]
async fn a_gateway_that_takes_an_attach_by_quic_and_is_silent_is_asked_by_tcp() {
    let mut office = reached_by_tcp();
    let desk = Desk::sending(b"bytes".to_vec());
    let taking = desk.clone();
    let gateway = office.gateway(move |_, mut peer: Peer| {
        let desk = taking.clone();
        async move {
            if let Guest::Quic(_) = peer.connection {
                peer.attach().await?;
                std::future::pending().await
            } else {
                let attached = desk.answer(&mut peer).await?;
                desk.carry(&mut peer, attached, None).await
            }
        }
    });
    let report = forwarded_by(&mut office, gateway, async |mut watch: Receiver<Event>| {
        let mut viewer = forwarded(&mut watch).await;
        assert_eq!(exchange(&mut viewer, b"x", 5).await, b"bytes");
    })
    .await;
    assert_eq!(transports(&report, "connected"), ["quic"]);
    assert_eq!(transports(&report, "attached"), ["tcp"]);
    let held = desk.held();
    assert_eq!(held.attaches[0].link, LinkNumber(2), "under the next number");
}

#[tokio::test]
async fn a_peer_by_tcp_is_judged_as_one_by_quic() {
    let mut office = reached_by_tcp();
    let hear = |_, mut peer: Peer| async move {
        peer.welcome().await?;
        panic!("the password was said");
    };
    let stranger = Ca::new().issue(&["tegata:broker/b1"]);
    let gateway = office.ca.issue(&["tegata:gateway/g1"]);
    let broker = office.ca.issue(&["tegata:broker/b1"]);
    for (leaf, alpn) in [
        (&stranger, tegata_proto::ALPN_LOGIN),
        (&gateway, tegata_proto::ALPN_LOGIN),
        (&broker, b"http/1.1"),
        (&broker, b""),
    ] {
        let address = office.serve(leaf, alpn, hear);
        let (address, wire) = office.wire(address);
        wire.set_udp_dark(true);
        let report = alone(&office.agent(), to(address, Viewer::Nothing)).await;
        assert_eq!((report.code, report.code.exit()), (Code::TlsFailed, 12), "{alpn:?}");
    }
}

#[tokio::test]
async fn a_session_goes_on_by_tcp_when_udp_stops_and_by_quic_when_it_is_back() {
    let (up, down) = (known(600_000, 1), known(300_000, 2));
    let mut office = reached_by_tcp();
    let desk = Desk::sending(down[..100_000].to_vec());
    let (broker, wire) = behind_a_wire(&mut office, &desk);
    let agent = office.agent();
    let stop = CancellationToken::new();
    let report =
        beside(&agent, to(broker, forward()), &stop, async |mut watch: Receiver<Event>| {
            let mut viewer = forwarded(&mut watch).await;
            let first = exchange(&mut viewer, &up[..200_000], 100_000).await;
            assert!(first == down[..100_000], "in order");
            wire.set_udp_dark(true);
            desk.send(&down[100_000..200_000]);
            let second = exchange(&mut viewer, &up[200_000..400_000], 100_000).await;
            assert!(second == down[100_000..200_000], "in order");
            comes(&mut watch, "resumed").await;
            arrived(&desk, &up[..400_000]).await;
            // The link by TCP is over before there is an answer by QUIC.
            desk.held().answers_after = Duration::from_millis(300);
            wire.set_udp_dark(false);
            comes(&mut watch, "migrated").await;
            desk.send(&down[200_000..]);
            let third = exchange(&mut viewer, &up[400_000..], 100_000).await;
            assert!(third == down[200_000..], "in order");
            arrived(&desk, &up).await;
        })
        .await;
    assert_eq!(report.code, Code::Disconnected);
    assert_eq!(transports(&report, "resumed"), ["tcp"]);
    assert_eq!(transports(&report, "migrated"), ["quic"]);
    assert_eq!(links(&report, "attached"), 1, "the viewer has noticed nothing");
    assert_eq!(links(&report, "link_lost"), 1, "going back is no loss");
    assert!(!agent.dialler.is_udp_out());
}

#[tokio::test]
async fn an_outage_of_everything_leaves_no_session_on_tcp() {
    let (up, down) = (known(100_000, 1), known(50_000, 2));
    let mut office = reached_by_tcp();
    let desk = Desk::sending(down.clone());
    let (broker, wire) = behind_a_wire(&mut office, &desk);
    let agent = office.agent();
    let stop = CancellationToken::new();
    let report =
        beside(&agent, to(broker, forward()), &stop, async |mut watch: Receiver<Event>| {
            let mut viewer = forwarded(&mut watch).await;
            assert!(exchange(&mut viewer, &up[..50_000], down.len()).await == down, "in order");
            wire.set_dark(true);
            viewer.write_all(&up[50_000..]).await.expect("it is kept");
            comes(&mut watch, "link_lost").await;
            // What TCP has begun in the dark goes on first when there is light.
            tokio::time::sleep(Duration::from_millis(1700)).await;
            wire.set_dark(false);
            comes(&mut watch, "resumed").await;
            arrived(&desk, &up).await;
        })
        .await;
    assert_eq!(transports(&report, "resumed"), ["quic"]);
    assert!(!agent.dialler.is_udp_out());
}

#[tokio::test]
async fn what_tcp_brings_while_quic_takes_over_is_not_brought_twice() {
    let (up, down) = (known(2_000, 1), known(300_000, 2));
    let (before, meanwhile) = down.split_at(50_000);
    let mut office = reached_by_tcp();
    let desk = Desk::sending(before.to_vec());
    let slow = desk.clone();
    let mut gateway = office.gateway(move |_, mut peer: Peer| {
        let desk = slow.clone();
        async move {
            let attach = peer.attach().await?;
            if let Guest::Quic(_) = peer.connection {
                desk.held().attaches.push(attach.clone());
                tokio::time::sleep(Duration::from_millis(700)).await;
            }
            let attached = desk.answer_to(&attach, &mut peer).await?;
            desk.carry(&mut peer, attached, None).await
        }
    });
    let (address, wire) = office.wire(gateway.addresses[0]);
    gateway.addresses = vec![address];
    wire.set_udp_dark(true);
    let report = forwarded_by(&mut office, gateway, async |mut watch: Receiver<Event>| {
        let mut viewer = forwarded(&mut watch).await;
        assert!(exchange(&mut viewer, &up[..1_000], before.len()).await == before, "in order");
        wire.set_udp_dark(false);
        while desk.held().attaches.len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // QUIC has been asked for, and TCP carries on.
        desk.send(meanwhile);
        let back = exchange(&mut viewer, &up[1_000..], meanwhile.len()).await;
        assert!(back == meanwhile, "once, in order");
        comes(&mut watch, "migrated").await;
        desk.send(b"the end");
        let mut rest = [0; 7];
        viewer.read_exact(&mut rest).await.expect("by QUIC");
        assert_eq!(&rest, b"the end");
        arrived(&desk, &up).await;
    })
    .await;
    assert_eq!((links(&report, "link_lost"), links(&report, "migrated")), (0, 1));
    assert_eq!(links(&report, "attached"), 1);
}

#[tokio::test]
async fn a_gateway_that_does_not_let_quic_take_over_is_left_on_tcp() {
    let (up, down) = (known(200_000, 1), known(50_000, 2));
    let mut office = reached_by_tcp();
    let desk = Desk::sending(down.clone());
    let refusing = desk.clone();
    let mut gateway = office.gateway(move |_, mut peer: Peer| {
        let desk = refusing.clone();
        async move {
            if let Guest::Quic(_) = peer.connection {
                peer.attach().await?;
                return peer.say(&GatewayMessage::Error(Code::Busy.into())).await;
            }
            let attached = desk.answer(&mut peer).await?;
            desk.carry(&mut peer, attached, None).await
        }
    });
    let (address, wire) = office.wire(gateway.addresses[0]);
    gateway.addresses = vec![address];
    wire.set_udp_dark(true);
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let agent = office.agent();
    let stop = CancellationToken::new();
    let report =
        beside(&agent, to(broker, forward()), &stop, async |mut watch: Receiver<Event>| {
            let mut viewer = forwarded(&mut watch).await;
            assert!(exchange(&mut viewer, &up[..100_000], down.len()).await == down, "in order");
            wire.set_udp_dark(false);
            // QUIC answers now, as is seen by what the agent knows of UDP.
            while agent.dialler.is_udp_out() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            viewer.write_all(&up[100_000..]).await.expect("it is carried");
            arrived(&desk, &up).await;
        })
        .await;
    assert_eq!(report.code, Code::Disconnected);
    assert_eq!((links(&report, "link_lost"), links(&report, "migrated")), (0, 0));
    assert_eq!(desk.held().attaches.len(), 1);
}

#[tokio::test]
async fn a_change_of_network_is_followed_by_another_link_where_tcp_carries() {
    let (up, down) = (known(100_000, 1), known(50_000, 2));
    let mut office = reached_by_tcp();
    let desk = Desk::sending(down.clone());
    let (broker, wire) = behind_a_wire(&mut office, &desk);
    wire.set_udp_dark(true);
    // The old link is over before there is an answer over the new one.
    desk.held().answers_after = Duration::from_millis(100);
    let agent = office.agent();
    let stop = CancellationToken::new();
    let source = Arc::new(Mutex::new(IpAddr::from(Ipv4Addr::new(192, 0, 2, 1))));
    let (change, changes) = mpsc::channel(1);
    let mut network = Changing { source: source.clone(), changes };
    let (mut person, mut watch) = Recorder::new();
    let run = to(broker, forward());
    let carried = Box::pin(run.carry_out_on(&mut network, &agent, &mut person, &stop));
    let doing = async {
        let mut viewer = forwarded(&mut watch).await;
        assert!(exchange(&mut viewer, &up[..50_000], down.len()).await == down, "in order");
        *source.lock().expect("no panic") = Ipv4Addr::new(198, 51, 100, 1).into();
        change.send(()).await.expect("it listens");
        let migrated = comes(&mut watch, "migrated").await;
        let Event::Migrated { transport, .. } = migrated else { panic!("{migrated:?}") };
        assert_eq!(transport, Transport::Tcp);
        viewer.write_all(&up[50_000..]).await.expect("it is carried");
        arrived(&desk, &up).await;
    };
    let (code, ()) = soon(async { tokio::join!(carried, doing) }).await;
    assert_eq!(code, Code::Disconnected);
    assert_eq!(desk.held().attaches.len(), 2, "it is another link");
    let report = Report { code, events: person.events };
    assert_eq!((links(&report, "link_lost"), links(&report, "migrated")), (0, 1));
}

#[tokio::test]
async fn a_change_of_network_is_followed_though_quic_was_about_to_take_over() {
    let (up, down) = (known(100_000, 1), known(50_000, 2));
    let mut office = reached_by_tcp();
    let desk = Desk::sending(down.clone());
    let silent = desk.clone();
    let mut gateway = office.gateway(move |_, mut peer: Peer| {
        let desk = silent.clone();
        async move {
            if let Guest::Quic(_) = peer.connection {
                let attach = peer.attach().await?;
                desk.held().attaches.push(attach);
                std::future::pending().await
            } else {
                let attached = desk.answer(&mut peer).await?;
                desk.carry(&mut peer, attached, None).await
            }
        }
    });
    let (address, wire) = office.wire(gateway.addresses[0]);
    gateway.addresses = vec![address];
    wire.set_udp_dark(true);
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let agent = office.agent();
    let stop = CancellationToken::new();
    let source = Arc::new(Mutex::new(IpAddr::from(Ipv4Addr::new(192, 0, 2, 1))));
    let (change, changes) = mpsc::channel(1);
    let mut network = Changing { source: source.clone(), changes };
    let (mut person, mut watch) = Recorder::new();
    let run = to(broker, forward());
    let carried = Box::pin(run.carry_out_on(&mut network, &agent, &mut person, &stop));
    let doing = async {
        let mut viewer = forwarded(&mut watch).await;
        assert!(exchange(&mut viewer, &up[..50_000], down.len()).await == down, "in order");
        wire.set_udp_dark(false);
        while desk.held().attaches.len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // QUIC has been asked for, and the place where it would have answered is left.
        *source.lock().expect("no panic") = Ipv4Addr::new(198, 51, 100, 1).into();
        change.send(()).await.expect("it listens");
        wire.set_udp_dark(true);
        let migrated = comes(&mut watch, "migrated").await;
        let Event::Migrated { transport, .. } = migrated else { panic!("{migrated:?}") };
        assert_eq!(transport, Transport::Tcp);
        viewer.write_all(&up[50_000..]).await.expect("it is carried");
        arrived(&desk, &up).await;
    };
    let (code, ()) = soon(async { tokio::join!(carried, doing) }).await;
    assert_eq!(code, Code::Disconnected);
    assert_eq!(desk.held().attaches.len(), 3, "it is another link");
}

#[tokio::test]
async fn a_link_by_tcp_that_falls_silent_is_noticed_by_what_does_not_come() {
    let (up, down) = (known(100_000, 1), known(50_000, 2));
    let mut office = reached_by_tcp();
    let desk = Desk::sending(down.clone());
    let (broker, wire) = behind_a_wire(&mut office, &desk);
    wire.set_udp_dark(true);
    let agent = office.agent();
    let stop = CancellationToken::new();
    let report =
        beside(&agent, to(broker, forward()), &stop, async |mut watch: Receiver<Event>| {
            let mut viewer = forwarded(&mut watch).await;
            assert!(exchange(&mut viewer, &up[..50_000], down.len()).await == down, "in order");
            arrived(&desk, &up[..50_000]).await;
            // Typed and answered, again and again: nothing is amiss.
            for (n, byte) in b"abcdefgh".iter().enumerate() {
                desk.send(&[*byte]);
                let key = &up[50_000 + n..=50_000 + n];
                assert_eq!(exchange(&mut viewer, key, 1).await, [*byte]);
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            // What is said then has no answer of its own.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            wire.set_dark(true);
            viewer.write_all(&up[50_008..]).await.expect("it is kept");
            comes(&mut watch, "link_lost").await;
            wire.set_dark(false);
            comes(&mut watch, "resumed").await;
            arrived(&desk, &up).await;
        })
        .await;
    assert_eq!(report.code, Code::Disconnected);
    assert_eq!((links(&report, "link_lost"), links(&report, "resumed")), (1, 1));
}
