//! Where a peer comes from, in the two shapes that are counted by.
//!
//! An address is canonical when an IPv4 peer is written as IPv4, whatever
//! socket it came in by. A prefix is what one household or one machine holds:
//! an IPv4 /32 or an IPv6 /64.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Length of an IPv6 prefix that counts as one source, in bits.
const IPV6_PREFIX_BITS: u32 = 64;

/// Writes an IPv4 peer of a dual-stack socket as IPv4, and drops flow and scope.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// One source: an IPv4 /32 or an IPv6 /64.
///
/// INVARIANT: the address is canonical, and its host part is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(IpAddr);

impl Prefix {
    /// Returns the source that an address belongs to.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => {
                let mask = u128::MAX << (u128::BITS - IPV6_PREFIX_BITS);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => write!(f, "{address}/32"),
            IpAddr::V6(address) => write!(f, "{address}/{IPV6_PREFIX_BITS}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(address: &str) -> String {
        Prefix::of(address.parse().unwrap()).to_string()
    }

    #[test]
    fn a_source_is_one_ipv4_address_or_one_ipv6_network() {
        assert_eq!(prefix("192.0.2.7"), "192.0.2.7/32");
        assert_eq!(prefix("::ffff:192.0.2.7"), "192.0.2.7/32");
        assert_eq!(prefix("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(prefix("2001:db8:1:2:ffff::1"), "2001:db8:1:2::/64");
    }

    #[test]
    fn an_ipv4_peer_of_a_dual_stack_socket_is_written_as_ipv4() {
        let mapped = "[::ffff:192.0.2.7]:443".parse().unwrap();
        assert_eq!(canonical(mapped).to_string(), "192.0.2.7:443");
        let scoped = "[fe80::1%3]:443".parse().unwrap();
        assert_eq!(canonical(scoped).to_string(), "[fe80::1]:443");
    }
}
