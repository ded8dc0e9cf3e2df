//! The public key of one run of the agent, as a JWK (RFC 7517, RFC 8037).

use serde::{Deserialize, Serialize};

use crate::encoding::Bytes;

/// An Ed25519 public key: `{"kty":"OKP","crv":"Ed25519","x":"…"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublicKey {
    kty: KeyType,
    crv: Curve,
    x: Bytes<32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum KeyType {
    #[serde(rename = "OKP")]
    Okp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Curve {
    Ed25519,
}

impl PublicKey {
    /// Wraps the 32 bytes of an Ed25519 public key (RFC 8032 §5.1.5).
    pub fn new(bytes: [u8; 32]) -> Self {
        Self { kty: KeyType::Okp, crv: Curve::Ed25519, x: Bytes(bytes) }
    }

    /// Returns the 32 bytes of the key.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.x.0
    }

    /// Returns the text whose SHA-256 is the key's thumbprint (RFC 7638 §3.2).
    pub fn thumbprint_input(&self) -> String {
        format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, self.x)
    }
}

/// The SHA-256 of a key's [`PublicKey::thumbprint_input`], base64url: RFC 7638.
pub type Thumbprint = Bytes<32>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thumbprint_input_is_that_of_rfc_8037() {
        // RFC 8037, appendix A.3.
        let key: PublicKey = serde_json::from_str(
            r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
        )
        .expect("the key of the RFC");
        assert_eq!(
            key.thumbprint_input(),
            r#"{"crv":"Ed25519","kty":"OKP","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#
        );
    }

    #[test]
    fn another_curve_is_refused() {
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        for other in [
            format!(r#"{{"kty":"OKP","crv":"X25519","x":"{x}"}}"#),
            format!(r#"{{"kty":"EC","crv":"Ed25519","x":"{x}"}}"#),
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{}"}}"#, &x[1..]),
        ] {
            assert!(serde_json::from_str::<PublicKey>(&other).is_err(), "{other}");
        }
    }
}
