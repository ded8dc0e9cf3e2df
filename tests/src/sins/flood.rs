//! Packets from addresses that nobody has shown to be their own.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tegata_proto::ALPN_LOGIN;

use crate::stranger::credulous;

/// Length of a first datagram, and of the longest that a peer gets before its path
/// is known to carry more, in bytes.
pub const DATAGRAM: usize = 1_200;

/// Writes the first packets of handshakes, each of another connection.
pub struct Initials {
    endpoint: quinn_proto::Endpoint,
    config: quinn_proto::ClientConfig,
    to: SocketAddr,
}

impl Initials {
    /// Starts to write.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(to: SocketAddr) -> Result<Self> {
        let config = quinn_proto::ClientConfig::new(Arc::new(credulous(&[ALPN_LOGIN])?));
        let endpoint = Arc::new(quinn_proto::EndpointConfig::default());
        let endpoint = quinn_proto::Endpoint::new(endpoint, None, false, None);
        Ok(Self { endpoint, config, to })
    }

    /// Returns the next datagram, of 1,200 bytes.
    ///
    /// # Errors
    ///
    /// When none is made.
    pub fn write(&mut self) -> Result<Vec<u8>> {
        let (now, config) = (Instant::now(), self.config.clone());
        let (_, mut connection) = self.endpoint.connect(now, config, self.to, "tegata")?;
        let mut datagram = Vec::new();
        let sent = connection.poll_transmit(now, 1, &mut datagram).context("no first packet")?;
        datagram.truncate(sent.size);
        ensure!(datagram.len() == DATAGRAM, "a first packet of {} bytes", datagram.len());
        // What the endpoint keeps of a connection that is never heard of again is
        // nobody's concern: this one is dropped with the flood.
        Ok(datagram)
    }
}

/// Bytes that went and came on one address that was never validated.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// Bytes sent to the broker.
    pub sent: usize,
    /// Bytes that it sent back.
    pub received: usize,
    /// How many datagrams those were.
    pub answers: usize,
}

/// A socket that answers nothing.
pub struct Mute {
    socket: UdpSocket,
    exchange: Exchange,
}

impl Mute {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// When the address cannot be had.
    pub fn open(from: Ipv4Addr, to: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind((from, 0))?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, exchange: Exchange::default() })
    }

    /// Sends a datagram.
    ///
    /// # Errors
    ///
    /// When it cannot be sent.
    pub fn send(&mut self, datagram: &[u8]) -> Result<()> {
        // A full buffer loses a datagram, as any network does.
        match self.socket.send(datagram) {
            Ok(sent) => self.exchange.sent += sent,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Counts what has come by now.
    pub fn count(&mut self) -> Exchange {
        let mut datagram = [0; 2048];
        while let Ok(received) = self.socket.recv(&mut datagram) {
            self.exchange.received += received;
            self.exchange.answers += 1;
        }
        self.exchange
    }
}

/// Keeps counting what comes on every socket for this long.
pub async fn count_for(mutes: &mut [Mute], time: Duration) -> Vec<Exchange> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        for mute in &mut *mutes {
            mute.count();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    mutes.iter_mut().map(Mute::count).collect()
}
