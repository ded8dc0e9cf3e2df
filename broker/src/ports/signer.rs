//! The one key that makes tickets.

use tegata_proto::claims::Claims;
use tegata_proto::encoding::Secret;

/// What a token is for; its `typ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Starts a session.
    Ticket,
    /// Comes back to one.
    Resume,
}

/// Signs claims. Whoever implements it holds the private key.
pub trait Signer: Send + Sync + 'static {
    /// Returns the compact JWT.
    ///
    /// # Errors
    ///
    /// The key could not be used; nothing was signed.
    fn sign(&self, kind: TokenKind, claims: &Claims) -> Result<Secret, SignError>;
}

/// The signing key could not be used.
#[derive(Debug, thiserror::Error)]
#[error("the signing key cannot be used")]
pub struct SignError(#[source] pub Box<dyn std::error::Error + Send + Sync>);
