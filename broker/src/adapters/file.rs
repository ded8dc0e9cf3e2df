//! A realm kept in a TOML file, for small sites and the demonstration.
//!
//! Answers from memory; the file is read when the directory is opened and when
//! [`FileDirectory::reload`] is called. A file with any fault is not taken, and
//! the people of the last good one stay. Never writes the file.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use tegata_proto::id::RealmName;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::ports::directory::{
    Directory, DirectoryError, Found, LoginName, NonEmptyPassword, Reason, Verdict,
};

pub use password::{HashError, Memory, PasswordHash, hash_password};
pub use roster::{Fault, Faults};
use roster::{Roster, User};

mod password;
mod roster;
#[cfg(test)]
mod tests;

/// Passwords that are checked at once. Each takes a core for some 20 ms and
/// the memory that its hash names.
const CHECKS_AT_ONCE: usize = 2;

/// Passwords that may be checked or wait; a further one is refused at once.
const CHECKS_AND_WAITING: usize = 256;

/// How long a password waits for its check to begin.
const WAIT: Duration = Duration::from_secs(3);

/// How often the files are read again.
const RELOAD_EVERY: Duration = Duration::from_mins(1);

/// Longest file, in bytes.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// A realm whose people are listed in a file.
pub struct FileDirectory {
    realm: RealmName,
    path: PathBuf,
    roster: ArcSwap<Roster>,
    /// Checked for a name that nobody has, so that it costs what a name costs.
    nobody: PasswordHash,
    checks: Arc<Semaphore>,
    /// Of the checks that nobody is at; never more than there are checks at once.
    memories: Arc<Mutex<Vec<Memory>>>,
    queue: Semaphore,
}

/// Why a file of people was not taken.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("file of users {path} cannot be read")]
    Unreadable {
        /// The file, as configured.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: std::io::Error,
    },
    /// The file is read, and is wrong.
    #[error("file of users {path} is wrong")]
    Faulty {
        /// The file, as configured.
        path: PathBuf,
        /// All that is wrong with it.
        #[source]
        source: Faults,
    },
    /// The operating system gave no random bytes.
    #[error("file of users {path} cannot be served")]
    NoRandomness {
        /// The file, as configured.
        path: PathBuf,
        /// Why no password can be hashed.
        #[source]
        source: HashError,
    },
}

impl FileDirectory {
    /// Reads a realm's people from a file.
    ///
    /// # Errors
    ///
    /// Tells all faults of the file at once.
    pub fn open(realm: RealmName, path: PathBuf) -> Result<Self, FileError> {
        let roster = read(&realm, &path)?;
        let nobody = PasswordHash::of_nobody()
            .map_err(|source| FileError::NoRandomness { path: path.clone(), source })?;
        Ok(Self {
            realm,
            path,
            roster: ArcSwap::from_pointee(roster),
            nobody,
            checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
            memories: Arc::default(),
            queue: Semaphore::new(CHECKS_AND_WAITING),
        })
    }

    /// Reads the file again. Logins under way see the old people or the new.
    ///
    /// Blocks for as long as the file takes to read.
    ///
    /// # Errors
    ///
    /// Tells all faults of the file at once, and keeps the people it had.
    pub fn reload(&self) -> Result<(), FileError> {
        self.roster.store(Arc::new(read(&self.realm, &self.path)?));
        Ok(())
    }

    async fn check(
        &self,
        hash: &PasswordHash,
        password: &NonEmptyPassword,
    ) -> Result<bool, DirectoryError> {
        let busy = || DirectoryError::Busy { realm: self.realm.clone() };
        let _place = self.queue.try_acquire().map_err(|_| busy())?;
        let turn = timeout(WAIT, Arc::clone(&self.checks).acquire_owned()).await;
        let turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        let (hash, password) = (hash.clone(), password.clone());
        let memories = Arc::clone(&self.memories);
        let check = tokio::task::spawn_blocking(move || {
            // Held here, because a caller that gives up does not end the check.
            let _turn = turn;
            let kept = || memories.lock().unwrap_or_else(PoisonError::into_inner);
            let mut memory = kept().pop().unwrap_or_default();
            let right = hash.is_of(&password, &mut memory);
            kept().push(memory);
            right
        });
        check.await.map_err(|source| DirectoryError::Unavailable {
            realm: self.realm.clone(),
            source: source.into(),
        })
    }
}

/// Reads the files of these realms again every minute, until cancelled. A bad
/// file is reported each time, and the people of the last good one stay.
pub async fn keep_fresh(realms: Vec<Arc<FileDirectory>>, cancelled: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = cancelled.cancelled() => return,
            () = tokio::time::sleep(RELOAD_EVERY) => {}
        }
        for directory in &realms {
            let reading = Arc::clone(directory);
            let read = tokio::task::spawn_blocking(move || reading.reload()).await;
            if let Ok(Err(error)) = read {
                let error = &error as &dyn std::error::Error;
                warn!(realm = %directory.realm, error, "People not read again, the old ones stay");
            }
        }
    }
}

fn read(realm: &RealmName, path: &PathBuf) -> Result<Roster, FileError> {
    use std::io::Read as _;

    let unreadable = |source| FileError::Unreadable { path: path.clone(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    let parsed = if text.len() as u64 > FILE_MAX {
        Err(Faults::of_file(format!("longer than {FILE_MAX} bytes")))
    } else {
        Roster::parse(realm, &text)
    };
    parsed.map_err(|source| FileError::Faulty { path: path.clone(), source })
}

#[async_trait]
impl Directory for FileDirectory {
    fn realm(&self) -> &RealmName {
        &self.realm
    }

    fn serves_at_once(&self) -> usize {
        CHECKS_AT_ONCE
    }

    async fn find(&self, name: &LoginName) -> Result<Option<Found>, DirectoryError> {
        let roster = self.roster.load_full();
        let Some(user) = roster.by_name(name.as_str()) else {
            self.check(&self.nobody, &PasswordHash::guess_of_nobody()).await?;
            return Ok(None);
        };
        let person = user.person.clone();
        Ok(Some(Found::new(person.user.id().to_owned(), person)))
    }

    async fn verify(
        &self,
        found: &Found,
        password: &NonEmptyPassword,
    ) -> Result<Verdict, DirectoryError> {
        let roster = self.roster.load_full();
        let user = roster.by_id(found.locator());
        let hash = user.map_or(&self.nobody, |user: &User| &user.password_hash);
        let right = self.check(hash, password).await?;
        Ok(match user {
            None => Verdict::Wrong { reason: Reason::Replaced },
            Some(_) if !right => Verdict::Wrong { reason: Reason::Password },
            Some(user) if user.disabled => Verdict::Wrong { reason: Reason::Disabled },
            Some(user) => Verdict::Correct(user.person.clone()),
        })
    }

    async fn probe(&self) -> Result<(), DirectoryError> {
        Ok(())
    }
}
