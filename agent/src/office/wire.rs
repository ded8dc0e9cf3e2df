//! A path that a test can darken, for UDP and TCP.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Duration, sleep};

use super::{Office, sockets};

/// Longest datagram that passes, in bytes.
const DATAGRAM_MAX: usize = 2048;

/// A path to one peer, as a test sees it.
#[derive(Clone, Default)]
pub(crate) struct Wire {
    is_dark: Arc<AtomicBool>,
    is_tcp_dark: Arc<AtomicBool>,
    /// How long each datagram takes, in milliseconds.
    delay: Arc<AtomicU64>,
    /// Darkens only those who came this far: what comes later passes.
    dark_below: Arc<AtomicU16>,
    comers: Arc<AtomicU16>,
}

impl Wire {
    /// Lets nothing pass from now on, or everything.
    pub(crate) fn set_dark(&self, is_dark: bool) {
        self.set_udp_dark(is_dark);
        self.is_tcp_dark.store(is_dark, Ordering::Relaxed);
    }

    /// Drops every datagram from now on, or none.
    pub(crate) fn set_udp_dark(&self, is_dark: bool) {
        self.is_dark.store(is_dark, Ordering::Relaxed);
    }

    /// Lets one datagram after the other take so long.
    pub(crate) fn set_delay(&self, delay: Duration) {
        let ms = u64::try_from(delay.as_millis()).expect("short");
        self.delay.store(ms, Ordering::Relaxed);
    }

    fn delay(&self) -> Duration {
        Duration::from_millis(self.delay.load(Ordering::Relaxed))
    }

    /// Drops what goes to and from every port that has been used so far.
    pub(crate) fn darken_old_ports(&self) {
        self.dark_below.store(self.comers.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn passes(&self, comer: u16) -> bool {
        !self.is_dark.load(Ordering::Relaxed) && comer >= self.dark_below.load(Ordering::Relaxed)
    }
}

impl Office {
    /// Lays a path to a peer, and returns where it begins.
    pub(crate) fn wire(&mut self, to: SocketAddr) -> (SocketAddr, Wire) {
        let wire = Wire::default();
        let (here, listener) = sockets(self.has_tcp);
        here.set_nonblocking(true).expect("a socket");
        let here = UdpSocket::from_std(here).expect("a runtime");
        let address = here.local_addr().expect("bound");
        self.tasks.spawn(carry(Arc::new(here), to, wire.clone()));
        if let Some(listener) = listener {
            self.tasks.spawn(pipe(listener, to, wire.clone()));
        }
        (address, wire)
    }
}

async fn carry(here: Arc<UdpSocket>, to: SocketAddr, wire: Wire) {
    let mut backward = JoinSet::new();
    let mut comers: Vec<(SocketAddr, Arc<UdpSocket>)> = Vec::new();
    let mut datagram = [0; DATAGRAM_MAX];
    loop {
        let Ok((length, from)) = here.recv_from(&mut datagram).await else { continue };
        sleep(wire.delay()).await;
        let known = comers.iter().position(|(comer, _)| *comer == from);
        let number = if let Some(known) = known {
            known
        } else {
            let there = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port"));
            there.connect(to).await.expect("it is here");
            let number = wire.comers.fetch_add(1, Ordering::Relaxed);
            let (here, back, wire) = (here.clone(), there.clone(), wire.clone());
            backward.spawn(async move {
                let mut datagram = [0; DATAGRAM_MAX];
                loop {
                    let Ok(length) = back.recv(&mut datagram).await else { continue };
                    sleep(wire.delay()).await;
                    if wire.passes(number) {
                        let _ = here.send_to(&datagram[..length], from).await;
                    }
                }
            });
            comers.push((from, there));
            usize::from(number)
        };
        if wire.passes(u16::try_from(number).expect("few ports")) {
            let _ = comers[number].1.send(&datagram[..length]).await;
        }
    }
}

async fn pipe(listener: TcpListener, to: SocketAddr, wire: Wire) {
    let mut ways = JoinSet::new();
    loop {
        let Ok((here, _)) = listener.accept().await else { continue };
        let Ok(there) = TcpStream::connect(to).await else { continue };
        let ((here, back), (answers, there)) = (here.into_split(), there.into_split());
        ways.spawn(pour(here, there, wire.clone()));
        ways.spawn(pour(answers, back, wire.clone()));
    }
}

/// Carries what comes; in the dark it stays where it is.
async fn pour(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, wire: Wire) {
    let mut room = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut room).await {
        while wire.is_tcp_dark.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(5)).await;
        }
        if to.write_all(&room[..length]).await.is_err() {
            return;
        }
    }
}
