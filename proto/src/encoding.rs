//! How bytes are written in JSON: base64url without padding, and SHA-256 as
//! lower-case hex. Any other spelling of the same bytes is refused, so that a
//! text can be compared where its bytes are meant.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Why a text does not spell bytes of the wanted length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not {expected} bytes in the one spelling allowed")]
pub struct InvalidBytes {
    /// How many bytes the text should have held.
    pub expected: usize,
}

/// Exactly `N` bytes, written as base64url without padding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Debug for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({self})")
    }
}

impl<const N: usize> fmt::Display for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl<const N: usize> FromStr for Bytes<N> {
    type Err = InvalidBytes;

    fn from_str(text: &str) -> Result<Self, InvalidBytes> {
        let wrong = InvalidBytes { expected: N };
        // The engine refuses padding, other alphabets and non-zero trailing bits.
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| wrong)?;
        bytes.try_into().map(Self).map_err(|_| wrong)
    }
}

impl<const N: usize> TryFrom<String> for Bytes<N> {
    type Error = InvalidBytes;

    fn try_from(text: String) -> Result<Self, InvalidBytes> {
        text.parse()
    }
}

impl<const N: usize> From<Bytes<N>> for String {
    fn from(bytes: Bytes<N>) -> Self {
        bytes.to_string()
    }
}

/// A SHA-256, written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256(pub [u8; 32]);

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Sha256 {
    type Err = InvalidBytes;

    fn from_str(text: &str) -> Result<Self, InvalidBytes> {
        let wrong = InvalidBytes { expected: 32 };
        let digit = |b: u8| match b {
            b'0'..=b'9' => Ok(b - b'0'),
            b'a'..=b'f' => Ok(b - b'a' + 10),
            _ => Err(wrong),
        };
        let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| wrong)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Sha256 {
    type Error = InvalidBytes;

    fn try_from(text: String) -> Result<Self, InvalidBytes> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(digest: Sha256) -> Self {
        digest.to_string()
    }
}

/// A text that must not be seen: a password, a ticket, a grant.
///
/// `Debug` prints `…`; the memory is cleared when the value is dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes a text into keeping.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Shows the text to the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_spelling() {
        assert_eq!(Bytes([0xfb, 0xff]).to_string(), "-_8");
        assert_eq!("-_8".parse(), Ok(Bytes([0xfb, 0xff])));
        for other in ["-_8=", "+/8", "-_9", "-_", "-_8A", ""] {
            assert!(other.parse::<Bytes<2>>().is_err(), "{other}");
        }
    }

    #[test]
    fn a_digest_is_lower_case_hex() {
        let text = "00ff".repeat(16);
        let digest: Sha256 = text.parse().expect("64 hex digits");
        assert_eq!(digest.to_string(), text);
        for other in [text.to_uppercase(), text[1..].to_owned(), format!("{text}0")] {
            assert!(other.parse::<Sha256>().is_err(), "{other}");
        }
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "…");
    }
}
