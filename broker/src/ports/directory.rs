//! Port `Directory`: who a person is, whether the password is theirs, and which
//! groups they are in.
//!
//! A login asks twice: [`Directory::find`] says who a typed name means, so that
//! failures are counted for the person and never for a spelling, and
//! [`Directory::verify`] tries the password. The directory decides nothing about
//! pools, counts no failures and hides no timing; the login flow does.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tegata_proto::id::{RealmName, UserId};

pub use login::{InvalidLoginName, InvalidPassword, LoginName, NonEmptyPassword};
pub use tegata_domain::group::{GroupName, InvalidGroupName};

#[cfg(test)]
pub(crate) mod contract;
mod login;

/// Longest text that is taken from a person's entry, in bytes.
pub const TEXT_MAX: usize = 256;

/// Most groups a person may be in, nested ones included.
pub const GROUPS_MAX: usize = 1_000;

/// Deepest nesting of groups that is followed.
pub const GROUP_DEPTH_MAX: usize = 16;

/// One realm's directory.
///
/// Nothing is granted on an error: a caller that cannot ask has no answer.
/// Cancelling a call (dropping its future) is safe at every point.
#[async_trait]
pub trait Directory: Send + Sync {
    /// Returns the realm whose people these are.
    fn realm(&self) -> &RealmName;

    /// Returns how many logins it serves at once without making any of them wait.
    fn serves_at_once(&self) -> usize;

    /// Returns how its servers do, where it has any.
    fn servers(&self) -> Vec<ServerStanding> {
        Vec::new()
    }

    /// Returns whom a typed name means, or nothing when nobody goes by it.
    ///
    /// All spellings that the directory takes for one name (case, spaces) find
    /// one and the same user. A disabled person is found too.
    ///
    /// # Errors
    ///
    /// Besides what may befall any request: [`DirectoryError::Ambiguous`] when
    /// more than one entry goes by the name.
    async fn find(&self, name: &LoginName) -> Result<Option<Found>, DirectoryError>;

    /// Tries a password as the person that was found.
    ///
    /// At most one try reaches the directory, whatever happens to it, because
    /// the directory counts tries too.
    ///
    /// # Errors
    ///
    /// An error says nothing about the password. After [`DirectoryError::TimedOut`] and
    /// [`DirectoryError::CutOff`] the directory may have counted the try, after the
    /// others it has not.
    async fn verify(
        &self,
        found: &Found,
        password: &NonEmptyPassword,
    ) -> Result<Verdict, DirectoryError>;

    /// Returns once the directory has shown that it can serve.
    ///
    /// # Errors
    ///
    /// The same as a login would meet.
    async fn probe(&self) -> Result<(), DirectoryError>;
}

/// How one server of a directory does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerStanding {
    /// The server, as configured.
    pub server: String,
    /// Whether it is asked.
    pub breaker: Breaker,
}

/// Whether a server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breaker {
    /// By everybody.
    Closed,
    /// By one caller, to see whether it is well again.
    HalfOpen,
    /// By nobody, for a while after it has failed.
    Open,
}

/// An entry that goes by the typed name. Nobody has proved to be that person.
pub struct Found {
    locator: String,
    claimed: Person,
}

impl Found {
    /// Joins an entry's place in its directory with what is written there.
    ///
    /// Only the adapter that made the locator reads it again.
    pub fn new(locator: String, claimed: Person) -> Self {
        Self { locator, claimed }
    }

    /// Returns the user whose failures are to be counted.
    pub fn user(&self) -> &UserId {
        &self.claimed.user
    }

    /// Returns where the adapter finds the entry again.
    pub fn locator(&self) -> &str {
        &self.locator
    }

    /// Returns what the entry says, for the adapter that has seen the password
    /// to be right.
    pub fn claimed(&self) -> &Person {
        &self.claimed
    }
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("user", self.user()).finish_non_exhaustive()
    }
}

/// A person who has shown the right password, as the directory describes them.
#[derive(Clone, PartialEq, Eq)]
pub struct Person {
    /// Who they are, for good.
    pub user: UserId,
    /// Their name for showing; never empty.
    pub display_name: String,
    /// What their desktop calls them, where the realm configures an attribute.
    pub account: Option<String>,
    /// Where they work, for statistics, where the realm configures an attribute.
    pub unit: Option<String>,
    /// Every group they are in, directly or through another group.
    pub groups: BTreeSet<GroupName>,
}

impl fmt::Debug for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Person").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What a directory says about a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is this person's, who may log in now.
    Correct(Person),
    /// The person may not log in with it.
    Wrong {
        /// For log and audit only: told to a stranger, most of these would
        /// say that the password was right.
        reason: Reason,
    },
}

/// Why a person may not log in with a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is not theirs, or the directory does not say more.
    Password,
    /// Too many tries, or an administrator's lock.
    Locked,
    /// The account is disabled.
    Disabled,
    /// The password or the account has expired.
    Expired,
    /// The password has to be changed first.
    MustChange,
    /// Not at this hour, or not from this place.
    NotNow,
    /// The entry is no longer the one that was found.
    Replaced,
    /// Declined in words that say nothing about why.
    Declined,
}

impl Reason {
    /// Returns the reason as it is written in log and audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Locked => "locked",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::MustChange => "must_change",
            Self::NotNow => "not_now",
            Self::Replaced => "replaced",
            Self::Declined => "declined",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What lies behind a directory's failure.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a directory gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// No server could be reached, or the one that was broke off.
    #[error("directory of {realm} cannot be used")]
    Unavailable {
        /// Whose directory.
        realm: RealmName,
        /// What happened to the last server that was tried.
        #[source]
        source: Cause,
    },
    /// A server took the request and did not answer.
    #[error("directory of {realm} gave no answer within {waited:?}")]
    TimedOut {
        /// Whose directory.
        realm: RealmName,
        /// How long it was given.
        waited: Duration,
    },
    /// A password was sent to a server, which broke off before it answered.
    #[error("directory of {realm} broke off while it tried a password")]
    CutOff {
        /// Whose directory.
        realm: RealmName,
        /// What happened to the connection.
        #[source]
        source: Cause,
    },
    /// As many requests as allowed are under way, and as many wait.
    #[error("directory of {realm} has too many requests waiting")]
    Busy {
        /// Whose directory.
        realm: RealmName,
    },
    /// A server could not prove to be the one that was meant.
    #[error("directory server {server} of {realm} is not trusted")]
    Untrusted {
        /// Whose directory.
        realm: RealmName,
        /// The server, as configured.
        server: String,
        /// What is wrong with its certificate.
        #[source]
        source: Cause,
    },
    /// The directory answers, but not as the configuration expects: the service
    /// account is refused, a base is missing, an attribute cannot be read.
    #[error("directory of {realm} does not fit its configuration")]
    Misconfigured {
        /// Whose directory.
        realm: RealmName,
        /// What does not fit.
        #[source]
        source: Cause,
    },
    /// More than one entry goes by the name. To a stranger this is a refusal
    /// like any other, not an outage.
    #[error("more than one entry of {realm} goes by that name")]
    Ambiguous {
        /// Whose directory.
        realm: RealmName,
    },
}

impl DirectoryError {
    /// Tells whether the same request may succeed later, with nobody's help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. }
            | Self::TimedOut { .. }
            | Self::CutOff { .. }
            | Self::Busy { .. } => true,
            Self::Untrusted { .. } | Self::Misconfigured { .. } | Self::Ambiguous { .. } => false,
        }
    }
}

/// Returns a text of an entry if it can be shown and passed on: not blank, not
/// longer than [`TEXT_MAX`], without control characters.
pub(crate) fn presentable(text: &str) -> Option<&str> {
    let text = text.trim();
    let fits = !text.is_empty() && text.len() <= TEXT_MAX && !text.chars().any(char::is_control);
    fits.then_some(text)
}
