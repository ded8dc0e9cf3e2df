//! What a peer may take, and what it costs one that takes too much.

use std::time::Duration;

use quinn::{ConnectionError, TransportErrorCode, VarInt};
use tegata_edge::Limits;
use tegata_edge::connection::Transport;
use tegata_edge::metrics::{ConnectionLabels, Refusal};

use crate::house::{FIRST, House, ask, loopback, until, within};

fn is_refusal(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ConnectionClosed(close)
        if close.error_code == TransportErrorCode::CONNECTION_REFUSED)
}

#[tokio::test]
async fn a_peer_has_four_streams_both_ways_none_one_way_and_no_datagrams() {
    let house = House::new();
    let server = house.open(Limits::default());
    let connection = house.visitor(&[FIRST]).connect(server.address).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(within(connection.open_bi()).await.unwrap());
    }
    // Credit comes with the handshake, so a stream that may be opened opens at once.
    let at_once = Duration::from_millis(200);
    assert!(tokio::time::timeout(at_once, connection.open_bi()).await.is_err(), "no fifth stream");
    assert!(tokio::time::timeout(at_once, connection.open_uni()).await.is_err(), "none one way");
    assert_eq!(connection.max_datagram_size(), None);
    streams.clear();
    ask(&connection, "hello").await.expect("and the connection goes on");
}

#[tokio::test]
async fn under_load_a_peer_is_asked_for_its_address_and_comes_in() {
    let house = House::new();
    let server = house.open(Limits { retry_above: 0, ..Limits::default() });
    let connection = house.visitor(&[FIRST]).connect(server.address).await;
    ask(&connection, "hello").await.unwrap();
    assert_eq!(house.metrics.retried.get(), 1);
}

#[tokio::test]
async fn a_source_that_is_full_is_refused_until_one_of_it_leaves() {
    let house = House::new();
    let server = house.open(Limits { connections_per_source: 1, ..Limits::default() });
    let (first, second) = (house.visitor(&[FIRST]), house.visitor(&[FIRST]));
    let held = first.connect(server.address).await;
    ask(&held, "hello").await.unwrap();

    let refused = second.try_connect(server.address).await.unwrap_err();
    assert!(is_refusal(&refused), "{refused:?}");
    assert_eq!(house.refused(Refusal::SourceFull), 1);
    let elsewhere = house.visitor_at(([127, 0, 0, 2], 0).into()).connect(server.address).await;
    ask(&elsewhere, "hello").await.expect("another source has room of its own");

    held.close(VarInt::from_u32(0), b"");
    elsewhere.close(VarInt::from_u32(0), b"");
    until(|| open(&house) == 0).await;
    ask(&second.connect(server.address).await, "hello").await.expect("there is room again");
}

fn open(house: &House) -> i64 {
    let alpn = String::from_utf8_lossy(FIRST).into_owned();
    house.metrics.open.get_or_create(&ConnectionLabels { alpn, transport: Transport::Quic }).get()
}

#[tokio::test]
async fn a_full_server_refuses_everybody() {
    let house = House::new();
    let server = house.open(Limits { connections: 1, ..Limits::default() });
    let held = house.visitor(&[FIRST]).connect(server.address).await;
    ask(&held, "hello").await.unwrap();
    let elsewhere = house.visitor_at(([127, 0, 0, 2], 0).into());
    let refused = elsewhere.try_connect(server.address).await.unwrap_err();
    assert!(is_refusal(&refused), "{refused:?}");
    assert_eq!(house.refused(Refusal::Full), 1);
}

#[tokio::test]
async fn a_handshake_that_stops_half_way_is_dropped_and_holds_up_nobody() {
    let house = House::new();
    let limits = Limits { handshakes_per_source: 1, ..Limits::default() };
    let server = house.open(limits);
    let silent = house.relay(server.address, false).await;
    let stuck = house.visitor(&[FIRST]);
    let _never = stuck.connecting(silent.address);
    let elsewhere = house.visitor_at(([127, 0, 0, 2], 0).into());
    ask(&elsewhere.connect(server.address).await, "hello").await.expect("others come in meanwhile");

    until(|| house.refused(Refusal::TooSlow) == 1).await;
    // It would begin again by itself.
    let nowhere = std::net::UdpSocket::bind(loopback()).unwrap();
    silent.target.send_replace(nowhere.local_addr().unwrap());
    let visitor = house.visitor(&[FIRST]);
    ask(&visitor.connect(server.address).await, "hello").await.expect("its place is free again");
}

#[tokio::test]
async fn handshakes_of_few_that_stop_half_way_shut_out_nobody_else() {
    const PLACES: usize = 4;
    /// Lets a Retry through and no server's hello.
    const SHORT: usize = 600;
    let house = House::new();
    // Everybody has to show its address, and the silent do.
    let server = house.open(Limits {
        handshakes: PLACES,
        handshakes_per_source: PLACES,
        retry_above: 0,
        ..Limits::default()
    });
    let silent = house.visitor(&[FIRST]);
    let mut stuck = Vec::new();
    for _ in 0..2 * PLACES {
        let path = house.relay_at(([127, 0, 0, 2], 0).into(), server.address, SHORT).await;
        stuck.push((silent.connecting(path.address), path));
    }
    until(|| house.refused(Refusal::SourceHandshakes) > 0).await;
    // All places are taken; others come in until one is closed that has made room.
    let visitor = house.visitor(&[FIRST]);
    within(async {
        while house.refused(Refusal::Handshakes) == 0 {
            ask(&visitor.connect(server.address).await, "hello").await.expect("there is room");
        }
    })
    .await;
}

#[tokio::test]
async fn a_panic_ends_its_own_connection_only_and_is_counted() {
    let house = House::new();
    let server = house.open(Limits::default());
    let visitor = house.visitor(&[FIRST]);
    let good = visitor.connect(server.address).await;
    let bad = visitor.connect(server.address).await;
    ask(&bad, "panic").await.unwrap_err();
    within(bad.closed()).await;
    assert_eq!(house.metrics.panics.get(), 1);
    ask(&good, "hello").await.expect("the other connection goes on");
    ask(&visitor.connect(server.address).await, "hello").await.expect("and others come in");
}

#[tokio::test]
async fn a_panic_of_the_ports_own_thread_ends_one_connection_only() {
    let house = House::new();
    let server = house.open(Limits::default());
    let visitor = house.visitor(&[FIRST]);
    let good = visitor.connect(server.address).await;
    for round in 1..=3 {
        let bad = visitor.connect(server.address).await;
        // Here: from now on its streams are traps.
        ask(&bad, "be deaf").await.unwrap();
        let (mut send, mut receive) = bad.open_bi().await.unwrap();
        send.write_all(b"x").await.unwrap();
        within(receive.read_exact(&mut [0; 3])).await.unwrap();
        send.write_all(&[0; 600]).await.unwrap();
        // It is forgotten at once, so the next packet is answered by a reset.
        until(|| house.metrics.panics.get() == round).await;
        // An acknowledgement of its own may have had that answer already.
        let _ = send.write_all(&[0; 600]).await;
        assert_eq!(within(bad.closed()).await, ConnectionError::Reset);
        ask(&good, "hello").await.expect("the other connection goes on");
    }
    until(|| open(&house) == 1).await;
    ask(&visitor.connect(server.address).await, "hello").await.expect("and others come in");
    assert!(!*server.stopped.borrow());
}

#[tokio::test]
async fn an_agent_of_the_process_before_is_told_at_once() {
    let house = House::new();
    let (before, after) = (house.open(Limits::default()), house.open(Limits::default()));
    let path = house.relay(before.address, true).await;
    let connection = house.visitor(&[FIRST]).connect(path.address).await;
    ask(&connection, "hello").await.unwrap();

    // From here on the old process is as dead as by kill -9: nothing of it is heard.
    path.target.send_replace(after.address);
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&[0; 600]).await.unwrap();
    assert_eq!(within(connection.closed()).await, ConnectionError::Reset);
}

#[tokio::test]
async fn both_address_families_can_have_the_same_port() {
    let house = House::new();
    let six = house.open_at("[::1]:0".parse().unwrap(), Limits::default(), Duration::ZERO);
    let any_six = format!("[::]:{}", house.open(Limits::default()).address.port());
    house.open_at(any_six.parse().unwrap(), Limits::default(), Duration::ZERO);

    let visitor = house.visitor_at("[::1]:0".parse().unwrap());
    let connection = visitor.connect(six.address).await;
    let remote = ask(&connection, "remote").await.unwrap();
    assert!(remote.as_str().unwrap().starts_with("[::1]:"), "{remote}");
}
