//! Digests and signatures over the bytes that `proto` lays down. The gateway
//! verifies with these to refuse cheaply, the broker because it does not trust
//! the gateway.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use tegata_proto::encoding::{Bytes, Sha256};
use tegata_proto::id::LinkNumber;
use tegata_proto::key::{PublicKey, Thumbprint};
use tegata_proto::proof::{EXPORTER_LEN, Proof, Purpose, signed_bytes};
use tegata_proto::session::Right;

/// The proof was not made by this key for this purpose, link and connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the proof does not fit the key, the token or the connection")]
pub struct WrongProof;

/// Returns the SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> Sha256 {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    Sha256(out)
}

/// Returns the RFC 7638 thumbprint of a key, as it stands in `cnf.jkt`.
pub fn thumbprint(key: &PublicKey) -> Thumbprint {
    Bytes(sha256(key.thumbprint_input().as_bytes()).0)
}

/// Returns the purpose of a proof that goes with a ticket or a grant.
pub fn purpose_of(right: &Right) -> Purpose {
    let digest = sha256(right.token().expose().as_bytes());
    match right {
        Right::Ticket(_) => Purpose::Ticket(digest),
        Right::Grant(_) => Purpose::Resume(digest),
    }
}

/// Checks that `key` signed for this purpose and link on the connection with
/// this exporter.
///
/// # Errors
///
/// Refuses any other signature.
pub fn verify_proof(
    key: &PublicKey,
    purpose: Purpose,
    exporter: &[u8; EXPORTER_LEN],
    link: LinkNumber,
    proof: &Proof,
) -> Result<(), WrongProof> {
    let signed = signed_bytes(purpose, exporter, link);
    let key = UnparsedPublicKey::new(&ED25519, key.bytes());
    key.verify(&signed, &proof.0).map_err(|_| WrongProof)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    use tegata_proto::encoding::Secret;

    use super::*;

    #[test]
    fn the_thumbprint_is_that_of_rfc_8037() {
        // RFC 8037, appendices A.2 and A.3.
        let key: PublicKey = serde_json::from_str(
            r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
        )
        .expect("the key of the RFC");
        assert_eq!(thumbprint(&key).to_string(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn a_proof_is_good_for_one_key_purpose_link_and_connection() {
        let pair = Ed25519KeyPair::generate().expect("a key");
        let public = |pair: &Ed25519KeyPair| {
            PublicKey::new(pair.public_key().as_ref().try_into().expect("32 bytes"))
        };
        let ticket = purpose_of(&Right::Ticket(Secret::new("a.b.c")));
        let grant = purpose_of(&Right::Grant(Secret::new("a.b.c")));
        let (exporter, link) = ([7; EXPORTER_LEN], LinkNumber(3));
        let signature = pair.sign(&signed_bytes(ticket, &exporter, link));
        let proof = Bytes(signature.as_ref().try_into().expect("64 bytes"));
        let key = public(&pair);

        assert_eq!(verify_proof(&key, ticket, &exporter, link, &proof), Ok(()));
        let other = public(&Ed25519KeyPair::generate().expect("a key"));
        for (key, purpose, exporter, link) in [
            (&other, ticket, exporter, link),
            (&key, grant, exporter, link),
            (&key, Purpose::Login, exporter, link),
            (&key, ticket, [8; EXPORTER_LEN], link),
            (&key, ticket, exporter, LinkNumber(4)),
        ] {
            assert_eq!(verify_proof(key, purpose, &exporter, link, &proof), Err(WrongProof));
        }
        assert!(verify_proof(&key, ticket, &exporter, link, &Bytes([0; 64])).is_err());
    }
}
