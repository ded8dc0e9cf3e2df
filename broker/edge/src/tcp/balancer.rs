//! What a balancer says of the peer that it brings: the PROXY protocol, version 2
//! (haproxy's `proxy-protocol.txt`, section 2.2). Asked of listed balancers only, and
//! of nobody else believed.

use std::io;
use std::net::SocketAddr;

use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::source::canonical;

/// Bytes of a header before the block whose length they tell.
const FIXED: usize = 16;

/// Most bytes of that block: two addresses, and what a balancer adds to them.
const BLOCK_MAX: usize = 1024;

/// Where the command stands, and the one of a balancer that speaks for itself.
const COMMAND: usize = 12;
const COMMAND_LOCAL: u8 = 0x20;

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A peer, at this canonical address.
    Peer(SocketAddr),
    /// The balancer itself, which only looks whether we are there.
    Balancer,
}

/// What a balancer said is no header of version 2, or does not tell of a peer's TCP.
#[derive(Debug, thiserror::Error)]
#[error("no PROXY header")]
pub(super) struct NoHeader;

impl From<io::Error> for NoHeader {
    fn from(_: io::Error) -> Self {
        Self
    }
}

/// Reads a header and not one byte more.
pub(super) async fn origin(socket: &mut TcpStream) -> Result<Origin, NoHeader> {
    let mut header = vec![0; FIXED];
    socket.read_exact(&mut header).await?;
    let block = usize::from(u16::from_be_bytes([header[FIXED - 2], header[FIXED - 1]]));
    if block > BLOCK_MAX {
        return Err(NoHeader);
    }
    header.resize(FIXED + block, 0);
    socket.read_exact(&mut header[FIXED..]).await?;
    read(&header)
}

/// Reads a whole header.
fn read(header: &[u8]) -> Result<Origin, NoHeader> {
    let rules = ParseConfig { include_tlvs: false, allow_v1: false, allow_v2: true };
    let (parsed, length) = ProxyHeader::parse(header, rules).map_err(|_| NoHeader)?;
    if length != header.len() {
        return Err(NoHeader);
    }
    match parsed.proxied_address() {
        Some(told) if told.protocol == Protocol::Stream => Ok(Origin::Peer(canonical(told.source))),
        None if header[COMMAND] == COMMAND_LOCAL => Ok(Origin::Balancer),
        // Of datagrams, of a socket that has no address, of nothing.
        Some(_) | None => Err(NoHeader),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a header by hand.
    fn header(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, block].concat()
    }

    #[test]
    fn a_balancer_tells_where_a_peer_is() {
        let four = [203, 0, 113, 7, 10, 0, 0, 1, 0x12, 0x34, 0x01, 0xbb];
        let mapped: [&[u8]; 5] =
            [&[0; 10], &[0xff, 0xff, 203, 0, 113, 7], &[0; 16], &[0x12, 0x34], &[0x01, 0xbb]];
        let six: [&[u8]; 5] =
            [&[0x20, 0x01, 0x0d, 0xb8], &[0; 11], &[9], &[0; 16], &[0x12, 0x34, 0x01, 0xbb]];
        let (mapped, six) = (mapped.concat(), six.concat());
        let with_more = [&four[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        for (command, family, block, expected) in [
            (0x21, 0x11, &four[..], Some("203.0.113.7:4660")),
            (0x21, 0x11, &with_more, Some("203.0.113.7:4660")),
            (0x21, 0x21, &mapped, Some("203.0.113.7:4660")),
            (0x21, 0x21, &six, Some("[2001:db8::9]:4660")),
            (0x20, 0x00, &[], None),
            (0x20, 0x11, &four, None),
        ] {
            let origin = read(&header(command, family, block)).expect("a header");
            let expected = match expected {
                Some(peer) => Origin::Peer(peer.parse().unwrap()),
                None => Origin::Balancer,
            };
            assert_eq!(origin, expected, "{command:#x} {family:#x}");
        }
    }

    #[test]
    fn what_tells_of_no_peer_is_no_header() {
        let four = [203, 0, 113, 7, 10, 0, 0, 1, 0x12, 0x34, 0x01, 0xbb];
        for (what, bad) in [
            ("version 1", b"PROXY TCP4 203.0.113.7 10.0.0.1 4660 443\r\n".to_vec()),
            ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcde".to_vec()),
            ("another version", header(0x31, 0x11, &four)),
            ("another command", header(0x22, 0x11, &four)),
            ("a datagram", header(0x21, 0x12, &four)),
            ("no address", header(0x21, 0x00, &[])),
            ("a path", header(0x21, 0x31, &[0; 216])),
            ("an unknown family", header(0x21, 0x41, &four)),
            ("half an address", header(0x21, 0x11, &four[..6])),
            ("something behind it", [header(0x21, 0x11, &four), vec![0]].concat()),
        ] {
            assert!(read(&bad).is_err(), "{what}");
        }
    }

    #[test]
    fn nothing_else_passes_for_a_header() {
        for command in 0..=u8::MAX {
            for family in 0..=u8::MAX {
                for length in [0, 11, 12, 13, 35, 36, 37, 215, 216] {
                    let shortest = match family {
                        0x00 => 0,
                        0x11 | 0x12 => 12,
                        0x21 | 0x22 => 36,
                        0x31 | 0x32 => 216,
                        _ => usize::MAX,
                    };
                    let tells = match command {
                        0x20 => length >= shortest,
                        0x21 => length >= shortest && matches!(family, 0x11 | 0x21),
                        _ => false,
                    };
                    let read = read(&header(command, family, &vec![7; length]));
                    assert_eq!(read.is_ok(), tells, "{command:#x} {family:#x} {length}");
                }
            }
        }
    }
}
