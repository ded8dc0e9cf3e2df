//! Names and numbers that more than one program uses.
//!
//! Every id is a type of its own, so that a desktop is never passed where a
//! session is meant. Names are checked when they are made; a value that exists
//! is valid.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest pool, realm, gateway or desktop name, in bytes (a DNS label).
pub const NAME_MAX: usize = 63;

/// Longest immutable id that a directory may give a person, in bytes.
pub const DIRECTORY_ID_MAX: usize = 128;

/// Why a text is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name is 1 to 63 of a-z, 0-9, '-', and neither begins nor ends with '-'")]
pub struct InvalidName;

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= NAME_MAX
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        ///
        /// INVARIANT: 1 to 63 of `a-z`, `0-9` and `-`, not at either end `-`.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Checks a text and makes it a name.
            ///
            /// # Errors
            ///
            /// Refuses anything that is not a lower-case DNS label.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
                let text = text.into();
                if is_name(&text) { Ok(Self(text)) } else { Err(InvalidName) }
            }

            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }
    };
}

macro_rules! uuid {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub Uuid);

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $type {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    };
}

name!(
    /// A pool of interchangeable desktops, as in `keiri`.
    PoolName
);
name!(
    /// A directory and its people, as in `honsho`.
    RealmName
);
name!(
    /// A gateway, as written in its certificate.
    GatewayId
);
name!(
    /// The gateways that may serve a pool; the audience of its tickets.
    GatewayGroup
);
name!(
    /// A numbered place in a pool, as in `keiri-0042`.
    SeatName
);

uuid!(
    /// A user's stay on a desktop. `UUIDv7`, made by the broker.
    SessionId
);
uuid!(
    /// One ticket or grant (`jti`). `UUIDv7`, made by the broker.
    TicketId
);
uuid!(
    /// A desktop: one machine in one seat. `UUIDv7`, made by the broker.
    DesktopId
);

/// The fence of a desktop: rises by one each time the desktop changes hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// The number of a link within one key: a login's proof has 0, the first attach 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LinkNumber(pub u64);

impl LinkNumber {
    /// The number in the proof of a login.
    pub const LOGIN: Self = Self(0);
    /// The number of a session's first attach.
    pub const FIRST: Self = Self(1);

    /// Returns the number of the next attach, or nothing when all are used.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for LinkNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the connections that a session has had to its desktop, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// A person: a realm and the directory's immutable id there, never a spelling.
///
/// Written `realm/id`, which is also the `sub` of a ticket.
///
/// INVARIANT: the id has 1 to 128 printable ASCII characters and no space.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserId {
    realm: RealmName,
    id: String,
}

/// Why a text is not a [`UserId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a user is realm/id, with an id of 1 to 128 printable ASCII characters")]
pub struct InvalidUserId;

impl UserId {
    /// Joins a realm and the id that its directory gave a person.
    ///
    /// # Errors
    ///
    /// Refuses an id that is empty, too long, or not printable ASCII.
    pub fn new(realm: RealmName, id: impl Into<String>) -> Result<Self, InvalidUserId> {
        let id = id.into();
        let valid = !id.is_empty()
            && id.len() <= DIRECTORY_ID_MAX
            && id.bytes().all(|b| b.is_ascii_graphic());
        if valid { Ok(Self { realm, id }) } else { Err(InvalidUserId) }
    }

    /// Returns the realm whose directory knows the person.
    pub fn realm(&self) -> &RealmName {
        &self.realm
    }

    /// Returns the directory's immutable id.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.realm, self.id)
    }
}

impl FromStr for UserId {
    type Err = InvalidUserId;

    fn from_str(text: &str) -> Result<Self, InvalidUserId> {
        let (realm, id) = text.split_once('/').ok_or(InvalidUserId)?;
        Self::new(RealmName::new(realm).map_err(|_| InvalidUserId)?, id)
    }
}

impl TryFrom<String> for UserId {
    type Error = InvalidUserId;

    fn try_from(text: String) -> Result<Self, InvalidUserId> {
        text.parse()
    }
}

impl From<UserId> for String {
    fn from(user: UserId) -> Self {
        user.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_lower_case_dns_label() {
        for good in ["keiri", "a", "keiri-0042", "0"] {
            assert!(PoolName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "Keiri", "kei ri", "経理", "a/b", &"a".repeat(64)] {
            assert!(PoolName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_user_is_read_back_as_written() {
        let user: UserId = "honsho/0b2e/x".parse().expect("a slash may stand in the id");
        assert_eq!((user.realm().as_str(), user.id()), ("honsho", "0b2e/x"));
        assert_eq!(user.to_string().parse(), Ok(user));
        for bad in ["honsho", "honsho/", "/x", "honsho/a b", "honsho/\u{7f}", "HONSHO/x"] {
            assert_eq!(bad.parse::<UserId>(), Err(InvalidUserId), "{bad}");
        }
    }

    #[test]
    fn the_last_link_number_has_no_next() {
        assert_eq!(LinkNumber(1).next(), Some(LinkNumber(2)));
        assert_eq!(LinkNumber(u64::MAX).next(), None);
    }
}
