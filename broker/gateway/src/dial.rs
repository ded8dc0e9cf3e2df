//! Dials desktops, and nothing else.
//!
//! An answer of the broker names an address; this list has the last word on it.
//! A connection is made once for an answer and never again by itself.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::redeem::DialFailure;

/// How long a desktop may take to accept a connection.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// How long a desktop may be silent before the kernel asks whether it is there.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);

/// How long the kernel waits between two such questions.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How many such questions stay unanswered before the connection is given up.
pub const KEEPALIVE_TRIES: u32 = 3;

/// Where desktops are: the prefixes and ports that a gateway may dial.
#[derive(Debug, Clone, Default)]
pub struct TargetPolicy {
    rules: Vec<TargetRule>,
}

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetRule {
    /// The addresses.
    pub prefix: IpNet,
    /// The ports at these addresses.
    pub ports: RangeInclusive<u16>,
}

/// Why there is no connection to a desktop.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The list does not have the address and port.
    #[error("the target is not in the list of desktops")]
    NotAllowed,
    /// The desktop did not accept in time.
    #[error("the desktop did not answer within {DIAL_DEADLINE:?}")]
    Silent,
    /// The desktop, or the network before it, said no.
    #[error("the desktop cannot be connected to")]
    Refused(#[source] io::Error),
    /// This machine has nothing left to connect with.
    #[error("no file or memory is left for a connection")]
    Exhausted(#[source] io::Error),
}

impl DialError {
    /// Returns what the broker is told.
    pub fn failure(&self) -> DialFailure {
        match self {
            Self::NotAllowed => DialFailure::NotAllowed,
            Self::Silent => DialFailure::Silent,
            Self::Refused(_) => DialFailure::Refused,
            Self::Exhausted(_) => DialFailure::Exhausted,
        }
    }
}

impl TargetPolicy {
    /// Allows these targets and no others.
    ///
    /// Loopback and link-local addresses are allowed only by a rule that lies
    /// wholly among them, so that a default route allows none. Unspecified,
    /// broadcast and multicast addresses and port 0 are never allowed.
    pub fn new(rules: impl IntoIterator<Item = TargetRule>) -> Self {
        Self { rules: rules.into_iter().collect() }
    }

    /// Tells whether this gateway may dial `target`.
    pub fn permits(&self, target: SocketAddr) -> bool {
        let ip = target.ip().to_canonical();
        let never = target.port() == 0
            || ip.is_unspecified()
            || ip.is_multicast()
            || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
        !never
            && self.rules.iter().any(|rule| {
                rule.ports.contains(&target.port())
                    && rule.prefix.contains(&ip)
                    && near(ip).is_none_or(|range| range.contains(&rule.prefix))
            })
    }

    /// Connects to a desktop, once.
    ///
    /// # Errors
    ///
    /// Refuses a target that is not listed without touching the network, and
    /// gives up on one that does not answer within [`DIAL_DEADLINE`].
    pub async fn dial(&self, target: SocketAddr) -> Result<TcpStream, DialError> {
        if !self.permits(target) {
            return Err(DialError::NotAllowed);
        }
        let canonical = SocketAddr::new(target.ip().to_canonical(), target.port());
        let target = if canonical.ip() == target.ip() { target } else { canonical };
        let connected = timeout(DIAL_DEADLINE, TcpStream::connect(target)).await;
        let stream = connected.map_err(|_| DialError::Silent)??;
        ready(&stream)?;
        Ok(stream)
    }
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        if lacks_means(&error) { Self::Exhausted(error) } else { Self::Refused(error) }
    }
}

/// Tells whether a connection came to nothing for want of a file or memory of this
/// machine, so that it says nothing of the peer.
pub fn lacks_means(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // The last one where as many files are watched as the system lets anybody.
    let own = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::NOSPC];
    Errno::from_io_error(error).is_some_and(|error| own.contains(&error))
}

fn ready(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_TRIES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Returns the range of the gateway's own neighbourhood that holds `ip`.
fn near(ip: IpAddr) -> Option<IpNet> {
    ["127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10"]
        .iter()
        .map(|text| text.parse::<IpNet>().expect("a literal prefix"))
        .find(|range| range.contains(&ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: &[(&str, RangeInclusive<u16>)]) -> TargetPolicy {
        TargetPolicy::new(rules.iter().map(|(prefix, ports)| TargetRule {
            prefix: prefix.parse().expect("a prefix"),
            ports: ports.clone(),
        }))
    }

    #[test]
    fn only_listed_prefixes_and_ports_are_dialled() {
        let policy = policy(&[
            ("10.20.0.0/16", 3389..=3389),
            ("2001:db8:7::/48", 3389..=3390),
            ("127.0.0.1/32", 4000..=4010),
            ("0.0.0.0/0", 22..=22),
            ("::/0", 22..=22),
        ]);
        for (target, allowed) in [
            ("10.20.1.2:3389", true),
            ("[::ffff:10.20.1.2]:3389", true),
            ("10.20.1.2:3390", false),
            ("10.21.1.2:3389", false),
            ("[2001:db8:7::1]:3390", true),
            ("[2001:db8:8::1]:3390", false),
            ("127.0.0.1:4005", true),
            ("127.0.0.2:4005", false),
            ("127.0.0.1:4011", false),
            ("192.0.2.1:22", true),
            // What a default route does not open.
            ("127.0.0.1:22", false),
            ("[::ffff:127.0.0.1]:22", false),
            ("[::1]:22", false),
            ("169.254.169.254:22", false),
            ("[fe80::1]:22", false),
            ("0.0.0.0:22", false),
            ("[::]:22", false),
            ("255.255.255.255:22", false),
            ("224.0.0.1:22", false),
            ("[ff02::1]:22", false),
        ] {
            let address = target.parse().expect("an address");
            assert_eq!(policy.permits(address), allowed, "{target}");
        }
        assert!(!TargetPolicy::default().permits("192.0.2.1:22".parse().expect("an address")));
        let all = self::policy(&[("0.0.0.0/0", 0..=65535)]);
        assert!(!all.permits("192.0.2.1:0".parse().expect("an address")));
    }
}
