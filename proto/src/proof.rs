//! The bytes that an agent signs to show that a connection is its own.
//!
//! A proof is Ed25519 over these bytes. It names the very TLS connection by its
//! exporter, so a proof that is carried to another connection is worth nothing.

use crate::encoding::{Bytes, Sha256};
use crate::id::LinkNumber;

/// An Ed25519 signature over [`signed_bytes`].
pub type Proof = Bytes<64>;

/// Label of the TLS exporter that a proof is bound to (RFC 9266), with an empty
/// context, taken after the handshake is complete (RFC 8446 §7.5).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// How many bytes of the exporter are signed.
pub const EXPORTER_LEN: usize = 32;

const PREFIX: &[u8; 16] = b"tegata proof v1\0";

/// How many bytes [`signed_bytes`] returns.
pub const SIGNED_LEN: usize = PREFIX.len() + 1 + EXPORTER_LEN + 32 + 8;

/// What a proof opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A login. There is no token yet.
    Login,
    /// A session's first link, by the ticket with this SHA-256.
    Ticket(Sha256),
    /// A later link, by the resume grant with this SHA-256.
    Resume(Sha256),
}

/// Returns the bytes to sign for a proof on the connection with this exporter.
pub fn signed_bytes(
    purpose: Purpose,
    exporter: &[u8; EXPORTER_LEN],
    link: LinkNumber,
) -> [u8; SIGNED_LEN] {
    let (kind, token) = match purpose {
        Purpose::Login => (1, [0; 32]),
        Purpose::Ticket(digest) => (2, digest.0),
        Purpose::Resume(digest) => (3, digest.0),
    };
    let mut bytes = [0; SIGNED_LEN];
    let (prefix, rest) = bytes.split_at_mut(PREFIX.len());
    prefix.copy_from_slice(PREFIX);
    rest[0] = kind;
    rest[1..33].copy_from_slice(exporter);
    rest[33..65].copy_from_slice(&token);
    rest[65..].copy_from_slice(&link.0.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_laid_out_as_written_down() {
        let bytes = signed_bytes(Purpose::Ticket(Sha256([7; 32])), &[9; 32], LinkNumber(0x0102));
        assert_eq!(&bytes[..16], b"tegata proof v1\0");
        assert_eq!(bytes[16], 2);
        assert_eq!(bytes[17..49], [9; 32]);
        assert_eq!(bytes[49..81], [7; 32]);
        assert_eq!(bytes[81..], [0, 0, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn a_change_of_anything_changes_the_bytes() {
        let base = signed_bytes(Purpose::Ticket(Sha256([0; 32])), &[9; 32], LinkNumber(1));
        for other in [
            signed_bytes(Purpose::Login, &[9; 32], LinkNumber(1)),
            signed_bytes(Purpose::Resume(Sha256([0; 32])), &[9; 32], LinkNumber(1)),
            signed_bytes(Purpose::Ticket(Sha256([1; 32])), &[9; 32], LinkNumber(1)),
            signed_bytes(Purpose::Ticket(Sha256([0; 32])), &[8; 32], LinkNumber(1)),
            signed_bytes(Purpose::Ticket(Sha256([0; 32])), &[9; 32], LinkNumber(2)),
        ] {
            assert_ne!(base, other);
        }
    }
}
