//! Who is logged on at a desktop. Only the desktop knows.

use std::collections::BTreeSet;

use async_trait::async_trait;

use crate::ports::store::OccupancyTarget;

/// Asks desktops, by whatever way the site has.
#[async_trait]
pub trait Occupancy: Send + Sync + 'static {
    /// Returns the accounts that are logged on, connected or not.
    ///
    /// # Errors
    ///
    /// The desktop did not say; nothing may be concluded from that.
    async fn logged_on(&self, target: &OccupancyTarget) -> Result<BTreeSet<String>, Unknown>;

    /// Asks for the account of interest to be logged off. Success means that the
    /// wish was taken, not that it has happened: ask again.
    ///
    /// # Errors
    ///
    /// The wish was not taken.
    async fn log_off(&self, target: &OccupancyTarget) -> Result<(), Unknown>;
}

/// The desktop did not say.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// No way to ask is configured.
    #[error("desktops cannot be asked at this site")]
    CannotBeAsked,
    /// Whom to log off is not known, and the way to ask needs a name.
    #[error("nobody is named who could be logged off")]
    NobodyNamed,
    /// The account is one that the way to ask would take for an option.
    #[error("the account begins like an option of the occupancy command")]
    LooksLikeAnOption,
    /// The way to ask could not be used.
    #[error("the occupancy command failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It ended and said that it does not know.
    #[error("the occupancy command ended with {0}")]
    Ended(std::process::ExitStatus),
    /// It did not end in time.
    #[error("the occupancy command took too long")]
    TimedOut,
    /// What it wrote is not an answer.
    #[error("the occupancy command wrote no answer")]
    Unreadable(#[source] serde_json::Error),
}
