//! Argon2id (RFC 9106), as PHC texts.

use std::fmt;

use argon2::password_hash::phc;
use argon2::{Algorithm, Argon2, Block, Params, PasswordHasher as _, Version};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use tegata_proto::encoding::Secret;

use crate::ports::directory::NonEmptyPassword;

/// Memory of a new hash, in KiB: 19 MiB, the least that OWASP recommends for
/// two passes, because a broker checks many.
const MEMORY_KIB: u32 = 19 * 1024;

/// Passes of a new hash.
const PASSES: u32 = 2;

/// Lanes of a new hash.
const LANES: u32 = 1;

/// Most memory that a hash of a file may ask for, in KiB.
const MEMORY_KIB_MAX: u32 = 256 * 1024;

/// Most passes that a hash of a file may ask for.
const PASSES_MAX: u32 = 16;

/// A password's argon2id hash, within what a check may cost.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(phc::PasswordHash);

/// The working memory of one check, kept for the next: as large as the largest
/// hash that was checked with it.
///
/// Memory of this size that is asked for anew by ever other threads stays with
/// the allocator, once for each of its arenas.
#[derive(Default)]
pub struct Memory(Vec<Block>);

/// Why a text is not a [`PasswordHash`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an argon2id hash of version 19, of at most 256 MiB and 16 passes")]
pub struct InvalidHash;

/// Why a password could not be hashed.
#[derive(Debug, thiserror::Error)]
#[error("password cannot be hashed")]
pub struct HashError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl PasswordHash {
    /// Reads a hash in PHC form.
    ///
    /// # Errors
    ///
    /// Refuses other algorithms, and parameters that would let one login cost
    /// too much.
    pub fn new(text: &str) -> Result<Self, InvalidHash> {
        let hash = phc::PasswordHash::new(text).map_err(|_| InvalidHash)?;
        let params = Params::try_from(&hash).map_err(|_| InvalidHash)?;
        let fits = hash.algorithm == Algorithm::Argon2id.ident()
            && hash.version == Some(Version::V0x13.into())
            && hash.salt.is_some()
            && hash.hash.is_some()
            && params.m_cost() <= MEMORY_KIB_MAX
            && params.t_cost() <= PASSES_MAX;
        if fits { Ok(Self(hash)) } else { Err(InvalidHash) }
    }

    /// Makes a hash that no password is checked against in earnest.
    pub(super) fn of_nobody() -> Result<Self, HashError> {
        hashed(&Self::guess_of_nobody())
    }

    /// Returns the password that stands for one typed to a name nobody has.
    pub(super) fn guess_of_nobody() -> NonEmptyPassword {
        NonEmptyPassword::new(Secret::new("nobody")).expect("six bytes, none zero")
    }

    /// Tells whether this is the password's hash. Takes a core for some 20 ms.
    pub fn is_of(&self, password: &NonEmptyPassword, memory: &mut Memory) -> bool {
        let (Some(salt), Some(hash)) = (self.0.salt.as_ref(), self.0.hash.as_ref()) else {
            return false;
        };
        let Ok(params) = Params::try_from(&self.0) else { return false };
        let Memory(blocks) = memory;
        if blocks.len() < params.block_count() {
            blocks.resize(params.block_count(), Block::new());
        }
        let mut computed = vec![0; hash.len()];
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let password = password.expose().as_bytes();
        argon2.hash_password_into_with_memory(password, salt, &mut computed, blocks).is_ok()
            && verify_slices_are_equal(&computed, hash.as_bytes()).is_ok()
    }
}

/// Hashes a password for a file of users, with a salt of its own.
///
/// # Errors
///
/// Fails where the operating system gives no random bytes.
pub fn hash_password(password: &NonEmptyPassword) -> Result<String, HashError> {
    hashed(password).map(|hash| hash.0.to_string())
}

fn hashed(password: &NonEmptyPassword) -> Result<PasswordHash, HashError> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).expect("constants argon2 allows");
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2.hash_password(password.expose().as_bytes());
    hash.map(PasswordHash).map_err(|e| HashError(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> NonEmptyPassword {
        NonEmptyPassword::new(Secret::new(text)).expect("a password")
    }

    #[test]
    fn a_hash_knows_its_password_and_no_other() {
        let text = hash_password(&password("himitsu")).expect("random bytes");
        assert!(text.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{text}");
        let hash = PasswordHash::new(&text).expect("its own text");
        // One memory for hashes of any size, one after the other.
        let mut memory = Memory::default();
        for (m, t) in [(19_456, 2), (8_192, 1), (32_768, 3)] {
            let params = Params::new(m, t, 1, None).expect("allowed");
            let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
            let other = argon2.hash_password(b"himitsu").expect("random bytes");
            let other = PasswordHash::new(&other.to_string()).expect("its own text");
            assert!(other.is_of(&password("himitsu"), &mut memory), "{m} KiB");
            assert!(!other.is_of(&password("himitsu "), &mut memory), "{m} KiB");
        }
        assert!(hash.is_of(&password("himitsu"), &mut memory));
        assert!(!hash.is_of(&password("himitsu "), &mut memory));
        assert_ne!(hash_password(&password("himitsu")).expect("random bytes"), text, "salted");
    }

    #[test]
    fn a_hash_of_another_kind_or_of_great_cost_is_refused() {
        let good =
            "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$3yu1PVBgv2FCVFBPFTX6tYwcRL+8RMl3Z9h3yQcPSsg";
        assert!(PasswordHash::new(good).is_ok());
        for bad in [
            "himitsu".to_owned(),
            good.replace("argon2id", "argon2i"),
            good.replace("v=19", "v=16"),
            good.replace("m=64", "m=1048576"),
            good.replace("t=1", "t=1000"),
            "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ".to_owned(),
            "$6$salt$hash".to_owned(),
        ] {
            assert_eq!(PasswordHash::new(&bad).err(), Some(InvalidHash), "{bad}");
        }
    }
}
