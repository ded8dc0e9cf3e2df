//! A UDP path that a test can darken.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::Office;

/// Longest datagram that passes, in bytes.
const DATAGRAM_MAX: usize = 2048;

/// A path to one peer, as a test sees it.
#[derive(Clone, Default)]
pub(crate) struct Wire {
    is_dark: Arc<AtomicBool>,
    /// Darkens only those who came this far: what comes later passes.
    dark_below: Arc<AtomicU16>,
    comers: Arc<AtomicU16>,
}

impl Wire {
    /// Drops everything from now on, or nothing.
    pub(crate) fn set_dark(&self, is_dark: bool) {
        self.is_dark.store(is_dark, Ordering::Relaxed);
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
    pub(crate) async fn wire(&mut self, to: SocketAddr) -> (SocketAddr, Wire) {
        let wire = Wire::default();
        let here = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = here.local_addr().expect("bound");
        self.tasks.spawn(carry(Arc::new(here), to, wire.clone()));
        (address, wire)
    }
}

async fn carry(here: Arc<UdpSocket>, to: SocketAddr, wire: Wire) {
    let mut backward = JoinSet::new();
    let mut comers: Vec<(SocketAddr, Arc<UdpSocket>)> = Vec::new();
    let mut datagram = [0; DATAGRAM_MAX];
    loop {
        let Ok((length, from)) = here.recv_from(&mut datagram).await else { continue };
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
