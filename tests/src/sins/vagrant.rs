//! A peer that shakes hands where it is, and then writes from hosts that it is not at.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::BytesMut;
use quinn_proto::{Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, Event, StreamId};

/// By when a handshake must be over.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long an answer is waited for at a time.
const WAIT: Duration = Duration::from_millis(10);

/// A connection whose datagrams may be sent from anywhere.
pub struct Vagrant {
    endpoint: Endpoint,
    connection: Connection,
    handle: ConnectionHandle,
    home: UdpSocket,
    stream: Option<StreamId>,
}

/// Begins a frame that is as long as one may be, and longer than anything here.
const FRAME: [u8; 4] = [0, 0, 0x0f, 0xff];

impl Vagrant {
    /// Connects from where it is.
    ///
    /// # Errors
    ///
    /// When there is no handshake in time.
    pub fn connect(
        config: quinn_proto::ClientConfig,
        from: Ipv4Addr,
        to: SocketAddr,
    ) -> Result<Self> {
        let home = UdpSocket::bind((from, 0))?;
        home.connect(to)?;
        home.set_read_timeout(Some(WAIT))?;
        let mut endpoint = Endpoint::new(std::sync::Arc::default(), None, false, None);
        let (handle, connection) = endpoint.connect(Instant::now(), config, to, "tegata")?;
        let mut vagrant = Self { endpoint, connection, handle, home, stream: None };
        let end = Instant::now() + DEADLINE;
        // Its handshake is confirmed by what follows it.
        let mut is_connected = false;
        while !is_connected || vagrant.connection.is_handshaking() {
            vagrant.exchange(to)?;
            while let Some(event) = vagrant.connection.poll() {
                match event {
                    Event::Connected => is_connected = true,
                    Event::ConnectionLost { reason } => bail!("no handshake: {reason}"),
                    _ => {}
                }
            }
            if Instant::now() > end {
                bail!("the handshake does not end");
            }
        }
        for _ in 0..5 {
            vagrant.exchange(to)?;
        }
        Ok(vagrant)
    }

    /// Returns a datagram with nothing but a PING.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn ping(&mut self) -> Result<Vec<u8>> {
        self.connection.ping();
        self.written().pop_front().context("nothing is sent")
    }

    /// Returns a datagram with so many bytes more of a frame.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn say(&mut self, bytes: usize) -> Result<Vec<u8>> {
        let stream = if let Some(stream) = self.stream {
            stream
        } else {
            let stream = self.connection.streams().open(Dir::Bi).context("no stream")?;
            self.connection.send_stream(stream).write(&FRAME)?;
            *self.stream.insert(stream)
        };
        self.connection.send_stream(stream).write(&vec![b' '; bytes])?;
        self.written().pop_front().context("nothing is sent")
    }

    fn written(&mut self) -> VecDeque<Vec<u8>> {
        let mut datagrams = VecDeque::new();
        let mut out = Vec::new();
        while let Some(sent) = self.connection.poll_transmit(Instant::now(), 1, &mut out) {
            datagrams.push_back(out[..sent.size].to_vec());
            out.clear();
        }
        datagrams
    }

    /// Sends what there is, and takes what comes for a while.
    fn exchange(&mut self, to: SocketAddr) -> Result<()> {
        for datagram in self.written() {
            self.home.send(&datagram)?;
        }
        let mut datagram = [0; 2048];
        while let Ok(length) = self.home.recv(&mut datagram) {
            let bytes = BytesMut::from(&datagram[..length]);
            let (now, mut answer) = (Instant::now(), Vec::new());
            let event = self.endpoint.handle(now, to, None, None, bytes, &mut answer);
            if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
                self.connection.handle_event(event);
            }
        }
        let now = Instant::now();
        if self.connection.poll_timeout().is_some_and(|at| at <= now) {
            self.connection.handle_timeout(now);
        }
        while let Some(event) = self.connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                self.connection.handle_event(event);
            }
        }
        Ok(())
    }
}
