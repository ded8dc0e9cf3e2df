//! The same door by TLS on TCP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tegata_edge::Limits;
use tegata_edge::connection::Transport;
use tegata_edge::metrics::{ConnectionLabels, Refusal};
use tegata_edge::wire::{FrameReader, FrameWriter, WireError};
use tegata_parts::streams::raw::{self, Raw};
use tegata_parts::streams::{Closed, Streams};
use tegata_proto::proof::EXPORTER_LABEL;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use crate::house::{
    BAD_FRAME, FIRST, FRAME_LIMIT, GOING_AWAY, House, LONG, SECOND, Server, ask, ask_on, loopback,
    until, within,
};

/// Where the server's own codes begin among those of HTTP/2.
const CODES_FROM: u64 = 0x100;

/// HTTP/2's `PROTOCOL_ERROR`.
const PROTOCOL_ERROR: u32 = 1;

/// How a close with that code reads.
fn said(code: quinn::VarInt) -> Closed {
    Closed::Said(u32::try_from(CODES_FROM + code.into_inner()).expect("a small code"))
}

impl House {
    async fn dial(&self, socket: TcpStream, offer: &[&[u8]]) -> io::Result<Streams> {
        within(Streams::connect(socket, Arc::new(self.tls(offer)), EXPORTER_LABEL)).await
    }

    async fn streams(&self, server: &Server) -> Streams {
        let socket = connect(server.address).await;
        self.dial(socket, &[FIRST]).await.expect("let in")
    }

    fn open_by_tcp(&self) -> i64 {
        let alpn = String::from_utf8_lossy(FIRST).into_owned();
        let labels = ConnectionLabels { alpn, transport: Transport::Tcp };
        self.metrics.open.get_or_create(&labels).get()
    }
}

async fn connect(server: SocketAddr) -> TcpStream {
    within(TcpStream::connect(server)).await.expect("it listens")
}

/// Connects from another address of this machine.
async fn connect_from(here: [u8; 4], server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((here, 0).into()).expect("an address of ours");
    within(socket.connect(server)).await.expect("it listens")
}

/// Says one thing on a new stream and returns the answer.
async fn say(streams: &Streams, word: &str) -> Result<Value, WireError> {
    let opened = within(streams.open()).await;
    let (send, receive) = opened.map_err(|_| WireError::Closed)?;
    ask_on(send, receive, word).await
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Waits until the server has closed, and tells whether it did so without a word.
async fn is_cut(mut socket: TcpStream) -> bool {
    within(async {
        let mut read = Vec::new();
        socket.read_to_end(&mut read).await.is_err() || read.is_empty()
    })
    .await
}

/// A header of the PROXY protocol, version 2, for IPv4.
fn header(command: u8, source: [u8; 4]) -> Vec<u8> {
    let fixed = [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[command, 0x11, 0, 12]].concat();
    [fixed.as_slice(), &source, &[127, 0, 0, 1, 0x12, 0x34, 1, 0xbb]].concat()
}

#[tokio::test]
async fn both_transports_have_one_port_and_one_conversation() {
    let house = House::new();
    let server = house.open(Limits::default());
    let by_tcp = house.streams(&server).await;
    let by_quic = house.visitor(&[FIRST]).connect(server.address).await;
    assert_eq!(say(&by_tcp, "hello").await.unwrap(), json!({ "say": "hello" }));
    assert_eq!(ask(&by_quic, "hello").await.unwrap(), json!({ "say": "hello" }));
    let remote = say(&by_tcp, "remote").await.unwrap();
    assert_eq!(remote, json!(by_tcp.local_addr().to_string()));
    assert_eq!(house.open_by_tcp(), 1);
    by_tcp.cut();
    until(|| house.open_by_tcp() == 0).await;
    ask(&by_quic, "hello").await.expect("the other one goes on");
}

#[tokio::test]
async fn both_sides_know_the_connection_by_the_same_exporter() {
    let house = House::new();
    let server = house.open(Limits::default());
    let (one, two) = (house.streams(&server).await, house.streams(&server).await);
    for streams in [&one, &two] {
        assert_eq!(say(streams, "exporter").await.unwrap(), json!(streams.exporter()));
    }
    assert_ne!(one.exporter(), two.exporter());
}

#[tokio::test]
async fn offers_are_taken_and_refused_as_by_quic() {
    let house = House::new();
    let server = house.open(Limits::default());
    for offer in [&[&b"h2"[..]][..], &[], &[FIRST, SECOND]] {
        let refused = house.dial(connect(server.address).await, offer).await;
        assert!(refused.is_err(), "{offer:?}");
    }
    until(|| house.refused(Refusal::Handshake) == 3).await;
    let taken = house.dial(connect(server.address).await, &[b"h2", SECOND]).await;
    say(&taken.expect("let in"), "hello").await.expect("one of ours among strangers");
}

#[tokio::test]
async fn frames_are_read_however_they_are_cut() {
    let house = House::new();
    let server = house.open(Limits::default());
    let streams = house.streams(&server).await;
    let (mut send, receive) = streams.open().await.unwrap();
    let mut answers = FrameReader::new(receive);
    let words = [json!({ "say": "one" }), json!({ "say": "two" })];
    let frames =
        words.each_ref().map(|word| tegata_proto::frame::write(word, FRAME_LIMIT).unwrap());
    for byte in frames.concat() {
        send.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    for word in words {
        assert_eq!(answers.read::<Value>(FRAME_LIMIT, soon()).await.unwrap(), word);
    }
}

#[tokio::test]
async fn a_bad_frame_ends_its_own_connection_only() {
    let house = House::new();
    let server = house.open(Limits::default());
    let other = house.streams(&server).await;
    for bad in [&u32::MAX.to_be_bytes()[..], &[0; 4], b"\0\0\0\x02{]", b"\0\0\0\x01\xff"] {
        let streams = house.streams(&server).await;
        let (mut send, _receive) = streams.open().await.unwrap();
        send.write_all(bad).await.unwrap();
        assert_eq!(within(streams.closed()).await, said(BAD_FRAME), "{bad:?}");
    }
    say(&other, "hello").await.expect("the other connection goes on");
}

#[tokio::test]
async fn a_frame_that_has_begun_is_finished_before_the_next() {
    let house = House::new();
    let server = house.open(Limits::default());
    let streams = house.streams(&server).await;
    let (send, receive) = streams.open().await.unwrap();
    let mut writer = FrameWriter::new(send);
    let stumble = json!({ "say": "stumble" });
    writer.write(&stumble, FRAME_LIMIT, soon()).await.unwrap();
    within(house.stumbled.notified()).await;
    let mut answers = FrameReader::new(receive);
    let long: Value = answers.read(2 * LONG, soon()).await.unwrap();
    assert_eq!(long.as_str().map(str::len), Some(LONG), "the frame that had begun is whole");
    let next: Value = answers.read(2 * LONG, soon()).await.unwrap();
    assert_eq!(next, stumble, "one that had not begun is forgotten");
}

/// A whole window of one stream, in bytes, and pieces as small as a mouse's movements.
const WINDOW: usize = 1024 * 1024;
const MOVEMENT: usize = 40;

#[tokio::test]
async fn a_whole_window_of_small_frames_may_wait_for_its_reader() {
    let house = House::new();
    let server = house.open(Limits::default());
    let streams = house.streams(&server).await;
    let (send, receive) = streams.open().await.unwrap();
    let (mut writer, mut answers) = (FrameWriter::new(send), FrameReader::new(receive));
    let word = json!({ "say": "widen" });
    writer.write(&word, FRAME_LIMIT, soon()).await.unwrap();
    assert_eq!(answers.read::<Value>(FRAME_LIMIT, soon()).await.unwrap(), word);

    // The server reads one stream after the other. What HTTP/2 carries in one of its
    // frames each are pieces of a frame of ours.
    let (mut send, receive) = streams.open().await.unwrap();
    let movements = json!({ "say": "x".repeat(6 * MOVEMENT - br#"....{"say":""}"#.len()) });
    let frame = tegata_proto::frame::write(&movements, FRAME_LIMIT).unwrap();
    let frames = WINDOW / frame.len();
    let said = async {
        for _ in 0..frames {
            for piece in frame.chunks(MOVEMENT) {
                send.write_all(piece).await.expect("nobody minds");
            }
        }
    };
    within(said).await;
    writer.write(&word, FRAME_LIMIT, soon()).await.unwrap();
    assert_eq!(answers.read::<Value>(FRAME_LIMIT, soon()).await.unwrap(), word);
    writer.finish(soon()).await.unwrap();
    let mut answers = FrameReader::new(receive);
    for n in 0..frames {
        let answer = answers.read::<Value>(FRAME_LIMIT, soon()).await;
        assert_eq!(answer.ok().as_ref(), Some(&movements), "frame {n}");
    }
}

#[tokio::test]
async fn whoever_has_shown_no_right_is_closed_long_before_a_window_is_full() {
    let house = House::new();
    let server = house.open(Limits::default());
    let streams = house.streams(&server).await;
    let (send, receive) = streams.open().await.unwrap();
    let (mut writer, mut answers) = (FrameWriter::new(send), FrameReader::new(receive));
    let word = json!({ "say": "I am not done" });
    writer.write(&word, FRAME_LIMIT, soon()).await.unwrap();
    assert_eq!(answers.read::<Value>(FRAME_LIMIT, soon()).await.unwrap(), word);

    let (mut send, _receive) = streams.open().await.unwrap();
    let said = async { while send.write_all(&[0; 1024]).await.is_ok() {} };
    let lost = answers.read::<Value>(FRAME_LIMIT, soon());
    let ((), lost) = within(async { tokio::join!(said, lost) }).await;
    assert!(matches!(lost, Err(WireError::Closed)), "{lost:?}");
}

#[tokio::test]
async fn a_peer_has_four_streams() {
    let house = House::new();
    let server = house.open(Limits::default());
    let streams = house.streams(&server).await;
    say(&streams, "hello").await.expect("the settings are here");
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(within(streams.open()).await.unwrap());
    }
    let fifth = async {
        let (_send, mut receive) = streams.open().await.unwrap();
        receive.read(&mut [0; 1]).await
    };
    let at_once = Duration::from_millis(200);
    assert!(timeout(at_once, fifth).await.is_err(), "no fifth stream");
    held.clear();
    say(&streams, "hello").await.expect("and the connection goes on");
}

#[tokio::test]
async fn places_are_counted_for_both_transports_together() {
    let house = House::new();
    let server = house.open(Limits { connections_per_source: 1, ..Limits::default() });
    let held = house.streams(&server).await;
    say(&held, "hello").await.unwrap();
    assert!(is_cut(connect(server.address).await).await, "closed at once");
    until(|| house.refused(Refusal::SourceFull) == 1).await;
    let refused = house.visitor(&[FIRST]).try_connect(server.address).await;
    assert!(refused.is_err(), "nor by QUIC");
    let elsewhere = connect_from([127, 0, 0, 2], server.address).await;
    let elsewhere = house.dial(elsewhere, &[FIRST]).await.expect("another source has room");
    say(&elsewhere, "hello").await.unwrap();
    held.cut();
    until(|| house.open_by_tcp() == 1).await;
    let back =
        async { while house.dial(connect(server.address).await, &[FIRST]).await.is_err() {} };
    within(Box::pin(back)).await;
}

#[tokio::test]
async fn a_connection_takes_two_files() {
    let house = House::new();
    let server = house.open(Limits { files: 3, ..Limits::default() });
    let held = house.streams(&server).await;
    say(&held, "hello").await.unwrap();
    assert!(is_cut(connect(server.address).await).await);
    until(|| house.refused(Refusal::Full) == 1).await;
    let by_quic = house.visitor(&[FIRST]).connect(server.address).await;
    ask(&by_quic, "hello").await.expect("there is one file left");
}

#[tokio::test]
async fn a_handshake_that_stops_anywhere_is_dropped_and_holds_up_nobody() {
    let house = House::new();
    let limits = Limits { handshakes_per_source: 2, ..Limits::default() };
    let server = house.open(limits);
    let mut silent = connect(server.address).await;
    silent.write_all(b"\x16\x03\x01\x02").await.unwrap();
    let unsaid = connect(server.address).await;
    let elsewhere = connect_from([127, 0, 0, 2], server.address).await;
    let elsewhere = house.dial(elsewhere, &[FIRST]).await.expect("others come in meanwhile");
    say(&elsewhere, "hello").await.unwrap();
    assert!(is_cut(connect(server.address).await).await, "their source has its handshakes");
    until(|| house.refused(Refusal::TooSlow) == 2).await;
    assert!(is_cut(silent).await && is_cut(unsaid).await);
    let streams = house.streams(&server).await;
    say(&streams, "hello").await.expect("their places are free again");
}

#[tokio::test]
async fn what_is_no_tls_is_refused_and_counted() {
    let house = House::new();
    let server = house.open(Limits::default());
    let proxied = header(0x21, [10, 9, 8, 7]);
    let garbage: [&[u8]; 3] = [b"GET / HTTP/1.1\r\nHost: tegata\r\n\r\n", &[0; 64], &proxied];
    for (n, bytes) in garbage.iter().enumerate() {
        let mut socket = connect(server.address).await;
        socket.write_all(bytes).await.unwrap();
        until(|| house.refused(Refusal::Handshake) == n as u64 + 1).await;
        let mut rest = Vec::new();
        // At most a TLS alert.
        let _may_be_reset = within(socket.read_to_end(&mut rest)).await;
        assert!(rest.len() <= 7, "{rest:?}");
    }
}

#[tokio::test]
async fn a_listed_balancer_says_where_its_peers_are() {
    let house = House::new();
    let behind = vec!["127.0.0.9/32".parse().unwrap()];
    let limits = Limits { connections_per_source: 1, ..Limits::default() };
    let server = house.open_behind(loopback(), limits, Duration::ZERO, behind);
    let mut held = Vec::new();
    for last in [7, 8] {
        let mut socket = connect_from([127, 0, 0, 9], server.address).await;
        socket.write_all(&header(0x21, [203, 0, 113, last])).await.unwrap();
        let streams = house.dial(socket, &[FIRST]).await.expect("let in");
        let remote = say(&streams, "remote").await.unwrap();
        assert_eq!(remote, json!(format!("203.0.113.{last}:4660")));
        held.push(streams);
    }
    // The peer's source is full, not the balancer's.
    let mut socket = connect_from([127, 0, 0, 9], server.address).await;
    socket.write_all(&header(0x21, [203, 0, 113, 7])).await.unwrap();
    assert!(is_cut(socket).await);
    assert_eq!(house.refused(Refusal::SourceFull), 1);
    // One that only looks is let go in order, and counts as nothing.
    let mut socket = connect_from([127, 0, 0, 9], server.address).await;
    socket.write_all(&header(0x20, [0; 4])).await.unwrap();
    assert_eq!(within(socket.read(&mut [0; 1])).await.expect("closed in order"), 0);
    assert_eq!(house.refused(Refusal::Balancer), 0);
    // One that does not say is refused, whatever else it says.
    for (n, bytes) in
        [&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03abcdefgh"[..], &[0xff; 16]].iter().enumerate()
    {
        let mut socket = connect_from([127, 0, 0, 9], server.address).await;
        socket.write_all(bytes).await.unwrap();
        assert!(is_cut(socket).await);
        until(|| house.refused(Refusal::Balancer) == n as u64 + 1).await;
    }
    // Everybody else is believed by nothing but their address.
    let other = house.dial(connect(server.address).await, &[FIRST]).await.expect("let in");
    let remote = say(&other, "remote").await.unwrap();
    assert_eq!(remote, json!(other.local_addr().to_string()));
}

#[tokio::test]
async fn a_panic_ends_its_own_connection_only_and_is_counted() {
    let house = House::new();
    let server = house.open(Limits::default());
    let (good, bad) = (house.streams(&server).await, house.streams(&server).await);
    say(&bad, "panic").await.unwrap_err();
    within(bad.closed()).await;
    assert_eq!(house.metrics.panics.get(), 1);
    say(&good, "hello").await.expect("the other connection goes on");
    let another = house.streams(&server).await;
    say(&another, "hello").await.expect("and others come in");
}

#[tokio::test]
async fn the_door_closes_politely() {
    let house = House::new();
    let mut server = house.open(Limits::default());
    let streams = house.streams(&server).await;
    say(&streams, "hello").await.unwrap();
    let stuck = connect(server.address).await;
    server.stop.cancel();
    assert_eq!(within(streams.closed()).await, said(GOING_AWAY));
    assert!(is_cut(stuck).await, "somebody in the middle of a handshake is let go");
    within(server.stopped.wait_for(|stopped| *stopped)).await.unwrap();
    assert!(within(TcpStream::connect(server.address)).await.is_err(), "nobody listens");
}

#[tokio::test]
async fn a_handler_that_does_not_end_is_dropped_after_the_grace_period() {
    let house = House::new();
    let mut server = house.open_at(loopback(), Limits::default(), Duration::from_millis(50));
    let streams = house.streams(&server).await;
    say(&streams, "be deaf").await.unwrap();
    server.stop.cancel();
    within(server.stopped.wait_for(|stopped| *stopped)).await.unwrap();
    within(streams.closed()).await;
}

#[tokio::test]
async fn a_request_that_is_no_stream_of_ours_ends_its_connection() {
    let house = House::new();
    let server = house.open(Limits::default());
    let requests = [
        http::Request::get("https://tegata/"),
        http::Request::post("https://elsewhere/"),
        http::Request::post("https://tegata/admin"),
        http::Request::post("https://tegata/").header("x-forwarded-for", "10.0.0.1"),
    ];
    for request in requests {
        let streams = house.streams(&server).await;
        let request = request.body(()).unwrap();
        let sent = within(streams.request(request)).await;
        assert_eq!(within(streams.closed()).await, Closed::Said(PROTOCOL_ERROR), "{sent:?}");
    }
}

#[tokio::test]
async fn a_peer_that_is_silent_for_a_minute_is_gone_and_one_that_is_not_stays() {
    let house = House::new();
    let server = house.open(Limits::default());
    let (silent, lively) = (house.streams(&server).await, house.streams(&server).await);
    for streams in [&silent, &lively] {
        say(streams, "hello").await.unwrap();
    }
    until(|| house.open_by_tcp() == 2).await;
    tokio::time::pause();
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(25)).await;
        tokio::time::resume();
        say(&lively, "hello").await.expect("a word within the minute");
        tokio::time::pause();
    }
    tokio::time::resume();
    assert_eq!(within(silent.closed()).await, Closed::Said(0));
    say(&lively, "hello").await.expect("the other one goes on");
}

#[tokio::test]
async fn what_a_peer_does_not_take_is_thrown_away_soon_after_the_close() {
    let house = House::new();
    let server = house.open(Limits::default());
    let socket = connect(server.address).await;
    let mut deaf = within(Raw::connect(socket, Arc::new(house.tls(&[FIRST])))).await.unwrap();
    let room = 1_u32 << 30;
    let stumble = tegata_proto::frame::write(&json!({ "say": "stumble" }), FRAME_LIMIT).unwrap();
    let said = [
        raw::PREFACE,
        &raw::frame(raw::SETTINGS, 0, 0, &[&[0, 4][..], &room.to_be_bytes()].concat()),
        &raw::frame(raw::WINDOW_UPDATE, 0, 0, &room.to_be_bytes()),
        &raw::open(1),
        &raw::frame(raw::DATA, 0, 1, &stumble),
    ];
    deaf.send(&said.concat()).await.unwrap();
    // It reads nothing: what is sent stays on the way.
    within(house.stumbled.notified()).await;
    server.stop.cancel();
    let mut stopped = server.stopped.clone();
    within(stopped.wait_for(|stopped| *stopped)).await.unwrap();
    // The kernel has thrown the rest away and told so, instead of keeping it for later.
    let mut heard = Vec::new();
    let ended = within(deaf.into_socket().read_to_end(&mut heard)).await;
    assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
}
