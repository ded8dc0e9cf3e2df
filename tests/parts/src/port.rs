//! Port numbers that nobody else on this machine uses.
//!
//! A number is reserved by a lock on a file, for the life of the test process, so that two tests
//! never get the same one between asking and listening. Numbers lie below the range from which
//! the kernel serves outgoing connections.

use std::{
    fs::{self, File},
    hash::{BuildHasher as _, RandomState},
    net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    ops::Range,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use rustix::process::geteuid;

/// Where ports for TCP alone are taken from.
const TCP_PORTS: Range<u16> = 20_000..26_000;

/// Where ports for both are taken from.
const PORTS: Range<u16> = 26_000..30_000;

/// The locks of everything this process has reserved.
static RESERVED: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// Returns a TCP port that is free on both loopback addresses and stays reserved for this process.
///
/// # Errors
///
/// When none is left.
pub fn free_tcp() -> Result<u16> {
    reserve("tcp", TCP_PORTS, is_free_by_tcp)
}

/// Returns a port that is free for UDP and for TCP on both loopback addresses, and stays reserved
/// for this process.
///
/// # Errors
///
/// When none is left.
pub fn free_udp() -> Result<u16> {
    reserve("udp", PORTS, |port| {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && (UdpSocket::bind((Ipv6Addr::LOCALHOST, port)).is_ok() || !has_ipv6())
            && is_free_by_tcp(port)
    })
}

fn is_free_by_tcp(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && (TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok() || !has_ipv6())
}

/// Tells whether something listens on a TCP port, without connecting: some parts answer a bare
/// connection badly.
///
/// # Errors
///
/// When the kernel's table of sockets cannot be read.
pub fn is_listening(port: u16) -> Result<bool> {
    const LISTEN: &str = "0A";
    // This thread's network: that of another one may be another host's.
    let tables = fs::read_to_string("/proc/thread-self/net/tcp").context("no table of sockets")?
        + &fs::read_to_string("/proc/thread-self/net/tcp6").unwrap_or_default();
    let suffix = format!(":{port:04X}");
    Ok(tables.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        columns.next().is_some_and(|local| local.ends_with(&suffix))
            && columns.nth(1) == Some(LISTEN)
    }))
}

/// Reserves a number of `numbers` that is `usable`, starting anywhere among them.
pub(crate) fn reserve(
    kind: &str,
    numbers: Range<u16>,
    usable: impl Fn(u16) -> bool,
) -> Result<u16> {
    let folder = std::env::temp_dir().join(format!("tegata-parts-{}", geteuid().as_raw()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let count = u64::from(numbers.end - numbers.start);
    let start = RandomState::new().hash_one(std::process::id()) % count;
    for step in 0..count {
        let number = numbers.start + u16::try_from((start + step) % count)?;
        let lock = File::create(folder.join(format!("{kind}-{number}")))?;
        if lock.try_lock().is_ok() && usable(number) {
            RESERVED.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
            return Ok(number);
        }
    }
    anyhow::bail!("no {kind} number is free in {numbers:?}")
}

fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_port_is_never_handed_out_twice() {
        let ports: HashSet<u16> = (0..50).map(|_| free_tcp().unwrap()).collect();
        assert_eq!(ports.len(), 50);
    }

    #[test]
    fn a_number_whose_lock_is_held_elsewhere_is_passed_over() {
        let range = 7..9;
        let first = reserve("passed-over", range.clone(), |_| true).unwrap();
        let second = reserve("passed-over", range.clone(), |_| true).unwrap();
        assert_ne!(first, second);
        assert!(reserve("passed-over", range, |_| true).is_err());
    }

    #[test]
    fn a_listener_is_seen_and_its_end_too() {
        let port = free_tcp().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(is_listening(port).unwrap());
        drop(listener);
        assert!(!is_listening(port).unwrap());
    }
}
