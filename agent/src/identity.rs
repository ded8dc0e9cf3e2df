//! The key of one run, and what it signs.
//!
//! The key is made at start, lives in memory only and ends with the run. The
//! bytes that are signed are laid out in [`tegata_proto::proof`].

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use tegata_proto::encoding::{Bytes, Secret, Sha256};
use tegata_proto::id::LinkNumber;
use tegata_proto::key::PublicKey;
use tegata_proto::proof::{self, EXPORTER_LEN, Proof, Purpose};

/// The key pair of one run.
#[derive(Clone)]
pub struct Identity {
    pair: Arc<Ed25519KeyPair>,
    public: PublicKey,
}

/// The system gave no random bytes for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no key could be made")]
pub struct NoKey;

impl Identity {
    /// Makes a new key.
    ///
    /// # Errors
    ///
    /// Fails when the system gives no random bytes.
    pub fn generate() -> Result<Self, NoKey> {
        let pair = Ed25519KeyPair::generate().map_err(|_| NoKey)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| NoKey)?;
        Ok(Self { pair: Arc::new(pair), public: PublicKey::new(public) })
    }

    /// Returns the public key, as it travels beside every proof.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    /// Signs that the connection with this exporter is this key's own.
    pub fn prove(
        &self,
        purpose: Purpose,
        exporter: &[u8; EXPORTER_LEN],
        link: LinkNumber,
    ) -> Proof {
        let signature = self.pair.sign(&proof::signed_bytes(purpose, exporter, link));
        let mut bytes = [0; 64];
        bytes.copy_from_slice(signature.as_ref());
        Bytes(bytes)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("public", &self.public).finish_non_exhaustive()
    }
}

/// Returns the SHA-256 of a ticket or grant exactly as it is sent.
pub fn token_digest(token: &Secret) -> Sha256 {
    sha256(token.expose().as_bytes())
}

/// Returns the SHA-256 of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> Sha256 {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    Sha256(out)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    #[test]
    fn a_proof_holds_for_its_own_key_connection_and_link_only() {
        let identity = Identity::generate().expect("random bytes");
        let other = Identity::generate().expect("random bytes");
        let proof = identity.prove(Purpose::Login, &[7; 32], LinkNumber::LOGIN);
        let holds = |identity: &Identity, exporter: &[u8; 32], link| {
            UnparsedPublicKey::new(&ED25519, identity.public_key().bytes())
                .verify(&proof::signed_bytes(Purpose::Login, exporter, link), &proof.0)
                .is_ok()
        };
        assert!(holds(&identity, &[7; 32], LinkNumber::LOGIN));
        assert!(!holds(&other, &[7; 32], LinkNumber::LOGIN));
        assert!(!holds(&identity, &[8; 32], LinkNumber::LOGIN));
        assert!(!holds(&identity, &[7; 32], LinkNumber::FIRST));
    }

    #[test]
    fn a_tokens_digest_is_sha_256() {
        assert_eq!(
            token_digest(&Secret::new("abc")).to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "FIPS 180-2, appendix B.1"
        );
    }

    #[test]
    fn a_key_does_not_show_itself() {
        let text = format!("{:?}", Identity::generate().expect("random bytes"));
        assert!(text.starts_with("Identity { public:") && text.ends_with(", .. }"), "{text}");
    }
}
