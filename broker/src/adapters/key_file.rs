//! The signing key as a file: Ed25519 in PKCS#8 (RFC 8410), PEM.

use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use tegata_proto::claims::{Claims, TYP_RESUME, TYP_TICKET};
use tegata_proto::encoding::Secret;

use crate::ports::signer::{SignError, Signer, TokenKind};

/// A signing key that was read from a file.
pub struct KeyFile {
    kid: String,
    public: [u8; 32],
    key: EncodingKey,
}

/// Why a file is not a signing key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It is not the PEM of a PKCS#8 key.
    #[error("it is not a PEM file with a PKCS#8 key")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// The key is not Ed25519.
    #[error("the key is not Ed25519")]
    NotEd25519,
}

impl KeyFile {
    /// Reads a key.
    ///
    /// # Errors
    ///
    /// Refuses a file that cannot be read or holds another kind of key.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let der = PrivatePkcs8KeyDer::from_pem_file(path).map_err(KeyFileError::Pem)?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der())
            .map_err(|_| KeyFileError::NotEd25519)?;
        let public = pair.public_key().as_ref();
        let public: [u8; 32] = public.try_into().map_err(|_| KeyFileError::NotEd25519)?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &public);
        let kid = URL_SAFE_NO_PAD.encode(&digest.as_ref()[..KID_BYTES]);
        Ok(Self { kid, public, key: EncodingKey::from_ed_der(der.secret_pkcs8_der()) })
    }

    /// Returns the name that tokens give the key: a part of its own hash.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Returns the public half, for the gateways.
    pub fn public(&self) -> [u8; 32] {
        self.public
    }
}

impl Signer for KeyFile {
    fn sign(&self, kind: TokenKind, claims: &Claims) -> Result<Secret, SignError> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(
            match kind {
                TokenKind::Ticket => TYP_TICKET,
                TokenKind::Resume => TYP_RESUME,
            }
            .to_owned(),
        );
        header.kid = Some(self.kid.clone());
        let token = jsonwebtoken::encode(&header, claims, &self.key);
        token.map(Secret::new).map_err(|error| SignError(error.into()))
    }
}

const KID_BYTES: usize = 12;

#[cfg(test)]
mod tests {
    use tegata_gateway::verify::{self, TokenKeys};
    use tegata_proto::claims::Confirmation;
    use tegata_proto::encoding::Bytes;
    use tegata_proto::id::{Epoch, SessionId, TicketId};
    use tegata_proto::key::PublicKey;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_gateway_takes_what_the_key_of_init_signed() {
        let folder = tempfile::tempdir().unwrap();
        crate::init::init(&folder.path().join("site")).unwrap();
        let key = KeyFile::read(&folder.path().join("site/signing.key")).unwrap();
        let claims = Claims {
            iss: "tegata".into(),
            aud: "default".parse().unwrap(),
            sub: "honsho/1".parse().unwrap(),
            sid: SessionId(Uuid::nil()),
            epoch: Epoch(1),
            jti: TicketId(Uuid::nil()),
            iat: 1,
            exp: 2,
            cnf: Confirmation { jkt: Bytes([0; 32]) },
        };
        let known = (key.kid().to_owned(), PublicKey::new(key.public()));
        let keys = TokenKeys::new("tegata", [known]);
        for (signed, taken, other) in [
            (TokenKind::Ticket, verify::TokenKind::Ticket, verify::TokenKind::Resume),
            (TokenKind::Resume, verify::TokenKind::Resume, verify::TokenKind::Ticket),
        ] {
            let token = key.sign(signed, &claims).unwrap();
            assert_eq!(keys.verify(token.expose(), taken).unwrap(), claims);
            assert!(keys.verify(token.expose(), other).is_err(), "one is not the other");
        }
    }
}
