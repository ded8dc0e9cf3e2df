//! Who sends by a relay, and from which port the server hears each of them.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};

use super::prepare;
use crate::chaos::path::Path;
use crate::dice::Dice;

/// A client, with its luck both ways.
pub(super) struct Client {
    pub(super) address: SocketAddr,
    /// What the server sees.
    pub(super) socket: UdpSocket,
    pub(super) heard: Duration,
    pub(super) there: Path,
    pub(super) back: Path,
}

/// The clients of a server, each with the number that its events have.
///
/// INVARIANT: never more than `most`.
pub(super) struct Clients {
    most: usize,
    seed: u64,
    server: SocketAddr,
    by_number: BTreeMap<u64, Client>,
    numbers: BTreeMap<SocketAddr, u64>,
    /// How many there were.
    count: u64,
}

impl Clients {
    /// Nobody yet, and never more than `most`, which is not 0.
    pub(super) fn new(most: usize, server: SocketAddr, seed: u64) -> Self {
        let (by_number, numbers) = (BTreeMap::new(), BTreeMap::new());
        Self { most, seed, server, by_number, numbers, count: 0 }
    }

    /// Returns the number of the client that is heard from an address, who may be new; then the
    /// events of its socket are waited for.
    pub(super) fn heard(
        &mut self,
        address: SocketAddr,
        epoll: &OwnedFd,
        now: Duration,
    ) -> io::Result<u64> {
        if let Some(number) = self.numbers.get(&address) {
            if let Some(client) = self.by_number.get_mut(number) {
                client.heard = now;
            }
            return Ok(*number);
        }
        if self.by_number.len() >= self.most {
            let silent = self.by_number.iter().min_by_key(|(_, client)| client.heard);
            if let Some((number, address)) = silent.map(|(n, client)| (*n, client.address)) {
                self.numbers.remove(&address);
                self.by_number.remove(&number);
            }
        }
        let number = self.count;
        let socket = upstream(self.server, epoll, number)?;
        self.count += 1;
        // Each way of each client has a luck of its own.
        let mut dice = Dice::of(self.seed.wrapping_add(number));
        let [there, back] = std::array::from_fn(|_| Path::new(dice.below(u64::MAX)));
        self.by_number.insert(number, Client { address, socket, heard: now, there, back });
        self.numbers.insert(address, number);
        Ok(number)
    }

    /// Gives every client another source port.
    pub(super) fn move_all(&mut self, epoll: &OwnedFd) -> io::Result<()> {
        for (number, client) in &mut self.by_number {
            // The old socket is closed only after the new one is there, so the ports differ.
            client.socket = upstream(self.server, epoll, *number)?;
        }
        Ok(())
    }

    pub(super) fn with_number(&mut self, number: u64) -> Option<&mut Client> {
        self.by_number.get_mut(&number)
    }

    /// Returns how many there were, those included that were forgotten.
    pub(super) fn count(&self) -> u64 {
        self.count
    }
}

/// Opens a socket to the server whose events have a number.
fn upstream(server: SocketAddr, epoll: &OwnedFd, number: u64) -> io::Result<UdpSocket> {
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    // As behind a NAT, only the server's own datagrams come back.
    socket.connect(server)?;
    prepare(&socket)?;
    epoll::add(epoll, &socket, EventData::new_u64(number), EventFlags::IN)?;
    Ok(socket)
}
