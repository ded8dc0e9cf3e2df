//! Verifies tickets and resume grants, with public keys only.
//!
//! One algorithm, one header shape, one claims shape. Whether the token's time
//! has come or gone, and whether it was used, is the broker's to judge. The
//! broker calls the same function.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use tegata_proto::claims::{Claims, TOKEN_MAX, TYP_RESUME, TYP_TICKET};
use tegata_proto::key::PublicKey;
use tegata_proto::session::Right;

/// Longest id of a key, in bytes.
pub const KEY_ID_MAX: usize = 64;

/// Which of the two tokens is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Starts a session's first link.
    Ticket,
    /// Comes back to a desktop that is still held.
    Resume,
}

impl TokenKind {
    /// Returns the kind that a right claims to be.
    pub fn of(right: &Right) -> Self {
        match right {
            Right::Ticket(_) => Self::Ticket,
            Right::Grant(_) => Self::Resume,
        }
    }

    fn typ(self) -> &'static str {
        match self {
            Self::Ticket => TYP_TICKET,
            Self::Resume => TYP_RESUME,
        }
    }
}

/// Why a token is not one of ours. The agent is told `ticket_invalid`.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Longer than any token of ours.
    #[error("token of {length} bytes, allowed are {TOKEN_MAX}")]
    Length {
        /// How long it is.
        length: usize,
    },
    /// The header is not exactly `alg`, `typ` and `kid`, or not what they must be.
    #[error("the token's header is not ours")]
    Header,
    /// No broker of ours signs with that key.
    #[error("the token's key is not known")]
    UnknownKey,
    /// The signature, the claims or the issuer is wrong.
    #[error("the token is not signed by our brokers, or not as it must be")]
    Invalid(#[source] jsonwebtoken::errors::Error),
}

/// The public keys that brokers sign with, by their ids, and the issuer they
/// sign for.
///
/// A clone shares the keys; [`TokenKeys::replace`] is seen by all.
#[derive(Clone)]
pub struct TokenKeys {
    validation: Arc<Validation>,
    keys: Arc<ArcSwap<BTreeMap<String, DecodingKey>>>,
}

/// The whole header of a token of ours. `jwk`, `jku`, `x5u`, `x5c`, `crit` and
/// every other member that could name another key or rule is refused by not
/// being here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

impl TokenKeys {
    /// Starts with the keys of one deployment.
    pub fn new(issuer: &str, keys: impl IntoIterator<Item = (String, PublicKey)>) -> Self {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["iss"]);
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        let keys = Arc::new(ArcSwap::from_pointee(collect(keys)));
        Self { validation: Arc::new(validation), keys }
    }

    /// Takes these keys in place of all before.
    pub fn replace(&self, keys: impl IntoIterator<Item = (String, PublicKey)>) {
        self.keys.store(Arc::new(collect(keys)));
    }

    /// Returns the claims of a token of this kind whose signature and issuer are
    /// right. The caller judges audience, times and use.
    ///
    /// # Errors
    ///
    /// Refuses every other text.
    pub fn verify(&self, token: &str, kind: TokenKind) -> Result<Claims, TokenError> {
        if token.len() > TOKEN_MAX {
            return Err(TokenError::Length { length: token.len() });
        }
        let header = read_header(token).ok_or(TokenError::Header)?;
        if header.alg != "EdDSA" || header.typ != kind.typ() || header.kid.len() > KEY_ID_MAX {
            return Err(TokenError::Header);
        }
        let keys = self.keys.load();
        let key = keys.get(&header.kid).ok_or(TokenError::UnknownKey)?;
        let token = jsonwebtoken::decode(token, key, &self.validation);
        token.map(|token| token.claims).map_err(TokenError::Invalid)
    }
}

fn collect(keys: impl IntoIterator<Item = (String, PublicKey)>) -> BTreeMap<String, DecodingKey> {
    keys.into_iter().map(|(kid, key)| (kid, DecodingKey::from_ed_der(key.bytes()))).collect()
}

fn read_header(token: &str) -> Option<Header> {
    use base64::Engine as _;
    let (header, _) = token.split_once('.')?;
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).ok()?;
    serde_json::from_slice(&header).ok()
}
