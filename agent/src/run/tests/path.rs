//! Paths that fall silent, come back, or lead from another network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::sync::mpsc;

use super::lost::{arrived, comes, comes_one_of, exchange, links};
use super::*;
use crate::network::Network;
use crate::office::{Desk, Wire, known};

/// A gateway behind a path that can be darkened.
pub(super) fn behind_a_wire(office: &mut Office, desk: &Desk) -> (SocketAddr, Wire) {
    let mut gateway = office.desk(desk, vec![]);
    let (address, wire) = office.wire(gateway.addresses[0]);
    gateway.addresses = vec![address];
    (admitting(office, &answer(vec![gateway])), wire)
}

#[tokio::test]
async fn a_path_that_falls_silent_is_raced_long_before_quic_gives_it_up() {
    let (up, down) = (known(200_000, 1), known(100_000, 2));
    let mut office = Office::new();
    let desk = Desk::sending(down.clone());
    let mut gateway = office.desk(&desk, vec![]);
    // The first address goes dark; the gateway's other one is reached as before.
    let (first, wire) = office.wire(gateway.addresses[0]);
    gateway.addresses.insert(0, first);
    let report = forwarded_by(&mut office, gateway, async |mut watch: Receiver<Event>| {
        let mut viewer = forwarded(&mut watch).await;
        assert!(exchange(&mut viewer, &up[..100_000], down.len()).await == down, "in order");
        wire.set_dark(true);
        let dark = tokio::time::Instant::now();
        viewer.write_all(&up[100_000..]).await.expect("it is kept");
        comes(&mut watch, "link_lost").await;
        let noticed = dark.elapsed();
        arrived(&desk, &up).await;
        let patience = Duration::from_millis(1400)..Duration::from_millis(2500);
        assert!(patience.contains(&noticed), "{noticed:?}");
        assert!(dark.elapsed() < Duration::from_secs(4), "{:?}", dark.elapsed());
    })
    .await;
    assert_eq!((links(&report, "link_lost"), links(&report, "resumed")), (1, 1));
}

#[tokio::test]
async fn what_the_old_link_brings_while_a_new_one_attaches_is_not_brought_twice() {
    let (up, down) = (known(2_000, 1), known(300_000, 2));
    let (before, meanwhile) = down.split_at(50_000);
    let mut office = Office::new();
    let desk = Desk::sending(before.to_vec());
    let mut gateway = {
        let desk = desk.clone();
        office.gateway(move |number, mut peer: Peer| {
            let desk = desk.clone();
            async move {
                let attach = peer.attach().await?;
                if number == 1 {
                    desk.held().attaches.push(attach.clone());
                    tokio::time::sleep(Duration::from_millis(700)).await;
                }
                let attached = desk.answer_to(&attach, &mut peer).await?;
                desk.carry(&mut peer, attached, None).await
            }
        })
    };
    let (first, wire) = office.wire(gateway.addresses[0]);
    gateway.addresses.insert(0, first);
    let report = forwarded_by(&mut office, gateway, async |mut watch: Receiver<Event>| {
        let mut viewer = forwarded(&mut watch).await;
        assert!(exchange(&mut viewer, &up[..1_000], before.len()).await == before, "in order");
        wire.set_dark(true);
        viewer.write_all(&up[1_000..]).await.expect("it is kept");
        while desk.held().attaches.len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The new link has been asked for, and the old one is back.
        wire.set_dark(false);
        desk.send(meanwhile);
        let mut back = vec![0; 100_000];
        viewer.read_exact(&mut back).await.expect("by the old link");
        assert!(!watch_has(&mut watch, "resumed"), "it is not the new one yet");
        comes(&mut watch, "resumed").await;
        assert_eq!(desk.held().attaches.len(), 3, "the new one has been answered");
        desk.send(b"the end");
        let mut rest = vec![0; meanwhile.len() - back.len() + 7];
        viewer.read_exact(&mut rest).await.expect("by the new link");
        assert!([back, rest].concat() == [meanwhile, b"the end"].concat(), "once, in order");
        arrived(&desk, &up).await;
    })
    .await;
    assert_eq!((links(&report, "link_lost"), links(&report, "resumed")), (1, 1));
    assert_eq!(links(&report, "attached"), 1);
}

/// Tells whether an event of this name is there already.
fn watch_has(watch: &mut Receiver<Event>, name: &str) -> bool {
    std::iter::from_fn(|| watch.try_recv().ok())
        .any(|event| serde_json::to_value(&event).expect("JSON")["event"] == name)
}

#[tokio::test]
async fn an_outage_that_ends_is_over_at_once_and_by_either_way() {
    for dark in [Duration::from_millis(700), Duration::from_secs(4)] {
        let (up, down) = (known(200_000, 1), known(100_000, 2));
        let mut office = Office::new();
        let desk = Desk::sending(down[..50_000].to_vec());
        let (broker, wire) = behind_a_wire(&mut office, &desk);
        let agent = office.agent();
        let stop = CancellationToken::new();
        let report =
            beside(&agent, to(broker, forward()), &stop, async |mut watch: Receiver<Event>| {
                let mut viewer = forwarded(&mut watch).await;
                let first = exchange(&mut viewer, &up[..100_000], 50_000).await;
                assert!(first == down[..50_000], "in order");
                arrived(&desk, &up[..100_000]).await;
                wire.set_dark(true);
                viewer.write_all(&up[100_000..]).await.expect("it is kept");
                tokio::time::sleep(dark).await;
                wire.set_dark(false);
                let light = tokio::time::Instant::now();
                arrived(&desk, &up).await;
                let took = light.elapsed();
                assert!(took < Duration::from_millis(1500), "{took:?} after {dark:?}");
            })
            .await;
        let told = (links(&report, "link_lost"), links(&report, "resumed"));
        assert_eq!(told.0, told.1, "whatever is told is told to be over");
        assert_eq!(told.0, usize::from(dark > Duration::from_secs(2)), "{dark:?}");
    }
}

#[tokio::test]
async fn the_last_words_of_a_viewer_wait_for_a_link_in_the_dark() {
    let (up, down) = (known(50_000, 1), known(50_000, 2));
    let mut office = Office::new();
    let desk = Desk::sending(down.clone());
    let (broker, wire) = behind_a_wire(&mut office, &desk);
    let agent = office.agent();
    let stop = CancellationToken::new();
    let report =
        beside(&agent, to(broker, forward()), &stop, async |mut watch: Receiver<Event>| {
            let mut viewer = forwarded(&mut watch).await;
            assert!(exchange(&mut viewer, &up[..40_000], down.len()).await == down, "in order");
            arrived(&desk, &up[..40_000]).await;
            wire.set_dark(true);
            viewer.write_all(&up[40_000..]).await.expect("it is kept");
            viewer.shutdown().await.expect("it is open");
            comes(&mut watch, "link_lost").await;
            tokio::time::sleep(Duration::from_secs(4)).await;
            wire.set_dark(false);
            arrived(&desk, &up).await;
        })
        .await;
    assert_eq!((links(&report, "link_lost"), links(&report, "resumed")), (1, 1));
}

/// A network whose changes a test makes.
pub(super) struct Changing {
    pub(super) source: Arc<Mutex<IpAddr>>,
    pub(super) changes: Receiver<()>,
}

impl Network for Changing {
    async fn changed(&mut self) -> tokio::time::Instant {
        match self.changes.recv().await {
            Some(()) => tokio::time::Instant::now(),
            None => std::future::pending().await,
        }
    }

    fn source(&self, _towards: SocketAddr) -> Option<IpAddr> {
        Some(*self.source.lock().expect("no panic"))
    }
}

#[tokio::test]
async fn a_change_of_network_takes_the_connection_along() {
    let (up, down) = (known(100_000, 1), known(50_000, 2));
    let mut office = Office::new();
    let desk = Desk::sending(down.clone());
    let (broker, wire) = behind_a_wire(&mut office, &desk);
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
        let first = exchange(&mut viewer, &up[..50_000], down.len()).await;
        assert!(first == down, "in order");
        // Somebody renews an address, and nothing changes.
        change.send(()).await.expect("it listens");
        // The old place is left: what it sends arrives no more.
        wire.darken_old_ports();
        *source.lock().expect("no panic") = Ipv4Addr::new(198, 51, 100, 1).into();
        change.send(()).await.expect("it listens");
        let migrated = comes(&mut watch, "migrated").await;
        let Event::Migrated { gap_ms, .. } = migrated else { panic!("{migrated:?}") };
        assert!(gap_ms < 300, "{gap_ms}");
        viewer.write_all(&up[50_000..]).await.expect("it is carried");
        arrived(&desk, &up).await;
    };
    let (code, ()) = soon(async { tokio::join!(carried, doing) }).await;
    assert_eq!(code, Code::Disconnected);
    assert_eq!(desk.held().attaches.len(), 1, "it is the same link");
    let report = Report { code, events: person.events };
    assert_eq!(links(&report, "link_lost"), 0);
    assert_eq!(links(&report, "migrated"), 1);
}

#[tokio::test]
async fn a_network_that_does_not_let_the_connection_along_is_left_by_a_new_link() {
    let (up, down) = (known(100_000, 1), known(50_000, 2));
    let mut office = Office::new();
    let desk = Desk::sending(down.clone());
    let (broker, wire) = behind_a_wire(&mut office, &desk);
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
        let first = exchange(&mut viewer, &up[..50_000], down.len()).await;
        assert!(first == down, "in order");
        wire.set_dark(true);
        *source.lock().expect("no panic") = Ipv4Addr::new(198, 51, 100, 1).into();
        change.send(()).await.expect("it listens");
        comes(&mut watch, "link_lost").await;
        wire.set_dark(false);
        viewer.write_all(&up[50_000..]).await.expect("it is kept");
        // They may arrive before the agent knows.
        tokio::join!(arrived(&desk, &up), comes_one_of(&mut watch, &["resumed", "migrated"]));
    };
    let (code, ()) = soon(async { tokio::join!(carried, doing) }).await;
    assert_eq!(code, Code::Disconnected);
    let report = Report { code, events: person.events };
    assert_eq!(links(&report, "link_lost"), 1);
    // The old link may live again while the attach of the next one is on its way.
    let ways = (links(&report, "resumed"), links(&report, "migrated"));
    assert!(matches!(ways, (1, 0 | 1) | (0, 1)), "{:?}", report.events);
}
