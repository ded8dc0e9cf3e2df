//! What a person types, checked before anything is asked.

use std::fmt;

use tegata_proto::encoding::Secret;
use tegata_proto::login::{LOGIN_NAME_MAX, PASSWORD_MAX};

/// A name as typed, fit to be looked up.
///
/// The directory decides which spellings are one name. What it might read in
/// two ways is refused rather than mended: white space at either end, and
/// control characters.
///
/// INVARIANT: 1 to 256 bytes, no control character, no white space at an end.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LoginName(String);

/// Why a text is not a [`LoginName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to 256 bytes, no control character, and no space at its ends")]
pub struct InvalidLoginName;

impl LoginName {
    /// Checks what was typed.
    ///
    /// # Errors
    ///
    /// Refuses what the invariant excludes.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidLoginName> {
        let text = text.into();
        let valid = !text.is_empty()
            && text.len() <= LOGIN_NAME_MAX
            && !text.chars().any(char::is_control)
            && text.trim().len() == text.len();
        if valid { Ok(Self(text)) } else { Err(InvalidLoginName) }
    }

    /// Returns the name as typed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names of people stay out of logs, so this prints `…`.
impl fmt::Debug for LoginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// A password that may be shown to a directory.
///
/// An LDAP server answers a bind with an empty password with success and means
/// nobody (RFC 4513 section 5.1.2); some take one that begins with NUL for empty.
///
/// INVARIANT: 1 to 1,024 bytes, none of them zero.
#[derive(Clone)]
pub struct NonEmptyPassword(Secret);

/// Why a text is not a [`NonEmptyPassword`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a password has 1 to 1024 bytes and no NUL")]
pub struct InvalidPassword;

impl NonEmptyPassword {
    /// Takes a password into keeping.
    ///
    /// # Errors
    ///
    /// Refuses what the invariant excludes.
    pub fn new(password: Secret) -> Result<Self, InvalidPassword> {
        let text = password.expose();
        let valid = !text.is_empty() && text.len() <= PASSWORD_MAX && !text.contains('\0');
        if valid { Ok(Self(password)) } else { Err(InvalidPassword) }
    }

    /// Shows the password to the one place that needs it.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl fmt::Debug for NonEmptyPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_be_read_in_two_ways_is_refused() {
        for good in ["sato", "SATO", "佐藤", "sa to", "*)(uid=*", &"a".repeat(256)] {
            assert!(LoginName::new(good).is_ok(), "{good}");
        }
        let bad = ["", " sato", "sato ", "sato\u{3000}", "sa\0to", "sato\n", "\u{1b}[31m"];
        for bad in bad.into_iter().chain([&*"a".repeat(257)]) {
            assert_eq!(LoginName::new(bad), Err(InvalidLoginName), "{bad:?}");
        }
    }

    #[test]
    fn a_password_that_a_server_may_take_for_empty_is_refused() {
        for good in ["x", " ", "パスワード", &"x".repeat(1024)] {
            assert!(NonEmptyPassword::new(Secret::new(good)).is_ok(), "{good}");
        }
        for bad in ["", "\0", "\0secret", "sec\0ret", &"x".repeat(1025)] {
            assert!(NonEmptyPassword::new(Secret::new(bad)).is_err(), "{bad:?}");
        }
    }
}
