//! What strangers can have the server keep. Each test has a process of its own, whose
//! memory it looks at.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::congestion::NewRenoConfig;
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, TransportConfig,
};
use quinn_udp::UdpSocketState;
use serde_json::json;
use tegata_edge::Limits;
use tegata_parts::streams::Closed;
use tegata_parts::streams::raw::{self, Raw};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;

use crate::house::{FIRST, FRAME_LIMIT, House, loopback, within};

/// What a stranger may cost, and a margin for the allocator, in KiB.
const ENOUGH: u64 = 4 * 1024;

/// Returns the memory of this process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A client by QUIC that sends what it likes of what its library writes.
struct Fickle {
    endpoint: Endpoint,
    connection: Connection,
    handle: ConnectionHandle,
    socket: UdpSocket,
    to: SocketAddr,
}

impl Fickle {
    fn connect(tls: rustls::ClientConfig, to: SocketAddr) -> Self {
        let socket = UdpSocket::bind(loopback()).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let crypto = QuicClientConfig::try_from(tls).expect("a suite to start with");
        let mut config = ClientConfig::new(Arc::new(crypto));
        // It keeps no window: nothing that it sends later is acknowledged to it.
        let (mut congestion, mut transport) =
            (NewRenoConfig::default(), TransportConfig::default());
        congestion.initial_window(1 << 24);
        transport.congestion_controller_factory(Arc::new(congestion));
        config.transport_config(Arc::new(transport));
        let mut endpoint = Endpoint::new(Arc::default(), None, false, None);
        let (handle, connection) =
            endpoint.connect(Instant::now(), config, to, "localhost").expect("a good address");
        let mut fickle = Self { endpoint, connection, handle, socket, to };
        while fickle.connection.is_handshaking() {
            fickle.exchange();
        }
        // Its own last word, and what confirms it.
        fickle.exchange();
        fickle.exchange();
        fickle
    }

    fn write(&mut self) -> Option<Vec<u8>> {
        let mut datagram = Vec::new();
        let written = self.connection.poll_transmit(Instant::now(), 1, &mut datagram)?;
        datagram.truncate(written.size);
        Some(datagram)
    }

    /// Sends what there is, and takes what comes for a while.
    fn exchange(&mut self) {
        while let Some(datagram) = self.write() {
            self.socket.send_to(&datagram, self.to).expect("sent");
        }
        let mut datagram = [0; 2048];
        while let Ok(length) = self.socket.recv(&mut datagram) {
            let (now, bytes) = (Instant::now(), BytesMut::from(&datagram[..length]));
            let event = self.endpoint.handle(now, self.to, None, None, bytes, &mut Vec::new());
            if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
                self.connection.handle_event(event);
            }
            while let Some(event) = self.connection.poll_endpoint_events() {
                if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                    self.connection.handle_event(event);
                }
            }
        }
    }

    /// Sends every second byte of a stream, each behind as much of nothing as fits.
    fn sends_gaps(&mut self, count: usize) {
        const JUNK: usize = 1_000;
        let udp = UdpSocketState::new((&self.socket).into()).expect("a socket");
        let stream = self.connection.streams().open(Dir::Bi).expect("a stream");
        for n in 0..count {
            for is_sent in [false, true] {
                self.connection.send_stream(stream).write(b"x").expect("room");
                let byte = self.write().expect("a datagram");
                if is_sent {
                    let contents = [vec![0; 62 * JUNK], byte].concat();
                    // What finds no room is lost.
                    let _ = udp.try_send(
                        (&self.socket).into(),
                        &quinn_udp::Transmit {
                            destination: self.to,
                            ecn: None,
                            contents: &contents,
                            segment_size: Some(JUNK),
                            src_ip: None,
                        },
                    );
                }
            }
            if n % 2 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_out_of_order_keeps_no_more_than_its_own_datagram() {
    let house = House::new();
    let (server, tls) = (house.open(Limits::default()), house.tls(&[FIRST]));
    let grown = spawn_blocking(move || {
        let mut fickle = Fickle::connect(tls, server.address);
        let before = resident();
        fickle.sends_gaps(800);
        // Whoever sends it is closed soon.
        resident().saturating_sub(before)
    });
    let grown = within(grown).await.expect("no panic");
    println!("{grown} KiB");
    assert!(grown < ENOUGH, "{grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_by_tcp_is_closed_before_it_costs_much() {
    const UNKNOWN: u8 = 0xee;
    let house = House::new();
    let server = house.open(Limits::default());
    let socket = within(TcpStream::connect(server.address)).await.expect("it listens");
    let tls = Arc::new(house.tls(&[FIRST]));
    let mut stranger = within(Raw::connect(socket, tls)).await.expect("let in");
    // A frame that has begun, and a stream that waits behind it.
    let begun = [raw::PREFACE, &raw::open(1), &raw::frame(raw::DATA, 0, 1, &[0, 0]), &raw::open(3)];
    stranger.send(&begun.concat()).await.expect("it is heard");
    let byte = raw::frame(raw::DATA, 0, 3, b"x");
    let burst = [raw::frame(UNKNOWN, 0, 0, &[0; 8 * 1024]), byte].concat();
    let before = resident();
    let mut most = before;
    for _ in 0..3_000 {
        if within(stranger.send(&burst)).await.is_err() {
            break;
        }
        most = most.max(resident());
    }
    let grown = most - before;
    println!("{grown} KiB");
    assert!(grown < ENOUGH, "{grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_by_tcp_of_single_bytes_is_closed_before_it_costs_much() {
    /// HTTP/2's `ENHANCE_YOUR_CALM`.
    const CALM: u32 = 0xb;
    /// What the library may count up, and a margin for what it does not.
    const MUCH: u64 = 12 * 1024;
    let house = House::new();
    let server = house.open(Limits::default());
    let socket = within(TcpStream::connect(server.address)).await.expect("it listens");
    let tls = Arc::new(house.tls(&[FIRST]));
    let mut peer = within(Raw::connect(socket, tls)).await.expect("let in");
    let word = tegata_proto::frame::write(&json!({ "say": "widen" }), FRAME_LIMIT).expect("short");
    let asked = [raw::PREFACE, &raw::open(1), &raw::frame(raw::DATA, 0, 1, &word), &raw::open(3)];
    peer.send(&asked.concat()).await.expect("it is heard");
    // What follows is read at once, and the word has to be heard before it.
    tokio::time::sleep(Duration::from_secs(2)).await;

    let before = resident();
    let closed = within(peer.say(&raw::frame(raw::DATA, 0, 3, b"x").repeat(200_000))).await;
    assert_eq!(closed, Closed::Said(CALM));
    let grown = resident().saturating_sub(before);
    println!("{grown} KiB");
    assert!(grown < MUCH, "{grown} KiB");
}
