//! What the operating system says of the way to a gateway.
//!
//! Any message about links, addresses or routes means: look again. The look asks
//! the kernel which address of its own it would use, and sends nothing.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::net::UnixDatagram;
use tokio::time::{Instant, sleep_until};

/// How long after its first message a change is looked at; they come in swarms.
const SETTLING: Duration = Duration::from_millis(50);

/// Links, IPv4 and IPv6 addresses and routes (`RTMGRP_*` of rtnetlink(7)).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Most messages that are dropped at once.
const SWARM_MAX: usize = 1024;

/// Room for what is read and dropped, in bytes.
const MESSAGE_MAX: usize = 512;

/// The networks that this machine is on.
pub(crate) trait Network: Send {
    /// Waits until something has changed, and returns when that was. Loses nothing
    /// when it is dropped half-way.
    fn changed(&mut self) -> impl Future<Output = Instant> + Send;

    /// Returns the address that packets to this one would have as their source;
    /// nothing where no way leads there.
    fn source(&self, towards: SocketAddr) -> Option<IpAddr>;
}

/// The networks as the kernel knows them.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Absent where the system has no netlink; then nothing is ever heard.
    socket: Option<UnixDatagram>,
    since: Option<Instant>,
}

impl Kernel {
    pub(crate) fn new() -> Self {
        let socket = listen().inspect_err(|error| {
            tracing::info!(%error, "Changes of the network are not heard of");
        });
        Self { socket: socket.ok(), since: None }
    }

    async fn heard(&mut self) {
        if let Some(socket) = &self.socket
            && socket.readable().await.is_ok()
        {
            return;
        }
        self.socket = None;
        std::future::pending::<()>().await;
    }

    /// Drops what is there; an overflow means no more than a message does.
    fn drop_messages(&self) {
        let Some(socket) = &self.socket else { return };
        let mut message = [0; MESSAGE_MAX];
        for _ in 0..SWARM_MAX {
            let dropped = socket.try_recv(&mut message);
            if dropped.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                return;
            }
        }
    }
}

impl Network for Kernel {
    async fn changed(&mut self) -> Instant {
        if self.since.is_none() {
            self.heard().await;
            self.since = Some(Instant::now());
        }
        let since = self.since.unwrap_or_else(Instant::now);
        sleep_until(since + SETTLING).await;
        self.drop_messages();
        self.since = None;
        since
    }

    fn source(&self, towards: SocketAddr) -> Option<IpAddr> {
        let any: IpAddr = match towards {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(towards).ok()?;
        Some(socket.local_addr().ok()?.ip())
    }
}

fn listen() -> io::Result<UnixDatagram> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    // Whoever only reads, and asks for no address, finds all datagram sockets alike.
    UnixDatagram::from_std(StdDatagram::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_names_its_own_address_for_each_family() {
        let network = Kernel::new();
        let source = |address: &str| network.source(address.parse().expect("an address"));
        assert_eq!(source("127.0.0.1:9"), Some(Ipv4Addr::LOCALHOST.into()));
        assert_ne!(source("[::1]:9"), Some(Ipv4Addr::LOCALHOST.into()));
    }

    #[tokio::test]
    async fn a_quiet_network_wakes_nobody_and_a_cut_wait_loses_nothing() {
        let mut network = Kernel::new();
        assert!(network.socket.is_some(), "this system has netlink");
        let since = Instant::now();
        network.since = Some(since);
        let cut = tokio::time::timeout(SETTLING / 5, network.changed()).await;
        assert!(cut.is_err(), "it has not settled yet");
        assert_eq!(network.changed().await, since);
        assert_eq!(network.since, None);
    }
}
