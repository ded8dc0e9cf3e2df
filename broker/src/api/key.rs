//! API keys: shown once, kept as SHA-256.
//!
//! A key is 32 random bytes; a fast hash is enough, since nothing that random
//! can be guessed. The file lists `name` and `sha256` of each.

use std::path::Path;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use tegata_proto::encoding::{Bytes, Secret, Sha256};

/// How a key begins, so that one is recognised where it should not be.
const PREFIX: &str = "tegata_";

/// Longest key that is looked at, in bytes.
const KEY_MAX: usize = 128;

/// One key, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Who holds it, for the audit record.
    pub name: String,
    /// SHA-256 of the key's text.
    pub sha256: Sha256,
}

/// All keys of a broker.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKeys {
    /// In no order.
    pub keys: Vec<ApiKey>,
}

/// Why a file of keys is not one.
#[derive(Debug, thiserror::Error)]
pub enum ApiKeysError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Unreadable(#[source] std::io::Error),
    /// It is not a list of keys. What is wrong is told without the text, which may
    /// be a key.
    #[error("it is no list of keys: {0}")]
    Malformed(String),
}

impl ApiKey {
    /// Makes a key; returns it, to be shown once, and the lines for the file.
    ///
    /// # Errors
    ///
    /// The machine has no random bytes.
    pub fn generate(name: &str) -> Result<(Secret, String), Unspecified> {
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes)?;
        let text = format!("{PREFIX}{}", Bytes(bytes));
        let hash = hash(&text);
        let lines = format!("[[keys]]\nname = \"{name}\"\nsha256 = \"{hash}\"\n");
        Ok((Secret::new(text), lines))
    }
}

impl ApiKeys {
    /// Reads a file of keys.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is no list of keys.
    pub fn read(path: &Path) -> Result<Self, ApiKeysError> {
        let text = std::fs::read_to_string(path).map_err(ApiKeysError::Unreadable)?;
        toml::from_str(&text).map_err(|error| ApiKeysError::Malformed(error.message().to_owned()))
    }

    /// Returns the name of the key that an `Authorization` header shows
    /// (RFC 6750 §2.1), if it is one of these.
    pub fn authenticate(&self, authorization: &str) -> Option<&str> {
        let (scheme, key) = authorization.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") || key.len() > KEY_MAX {
            return None;
        }
        let shown = hash(key);
        let mut found = None;
        for key in &self.keys {
            if verify_slices_are_equal(&key.sha256.0, &shown.0).is_ok() {
                found = Some(key.name.as_str());
            }
        }
        found
    }
}

fn hash(text: &str) -> Sha256 {
    let mut sha256 = Sha256([0; 32]);
    sha256.0.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    sha256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_itself_opens() {
        let (key, lines) = ApiKey::generate("first").unwrap();
        let keys: ApiKeys = toml::from_str(&lines).unwrap();
        let key = key.expose();
        assert!(!lines.contains(&key[PREFIX.len()..]), "the file does not hold the key");
        assert_eq!(keys.authenticate(&format!("Bearer {key}")), Some("first"));
        for wrong in [
            String::new(),
            key.to_owned(),
            format!("Basic {key}"),
            format!("Bearer {key}x"),
            format!("Bearer {}", &key[..key.len() - 1]),
            "Bearer ".to_owned(),
        ] {
            assert_eq!(keys.authenticate(&wrong), None, "{wrong}");
        }
        let none = ApiKeys::default();
        assert_eq!(none.authenticate(&format!("Bearer {key}")), None);
    }
}
