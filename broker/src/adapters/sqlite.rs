//! The store in one `SQLite` file, for one broker.
//!
//! [`open`] gives the [`SqliteStore`] that callers hold and the [`Writer`] that
//! has to run for it to answer. All that changes goes through that one task, all
//! that only reads through a few connections of its own.
//!
//! `writer` groups commits; `assign`, `redeem`, `moved`, `events`, `desktops`
//! and `pools` are the commands, `assignment` what they share; `schema` has the tables. A
//! `PostgreSQL` adapter keeps the tables and their unique indexes, locks the rows
//! that a command loads, and needs no writer.

mod assign;
mod assignment;
mod batch;
mod desktops;
mod events;
mod moved;
mod pools;
mod read;
mod redeem;
mod row;
mod schema;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prometheus_client::registry::Registry;
use rustix::fs::{FlockOperation, flock};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, SqliteConnection};
use tegata_domain::desktop::{Observation, Probe};
use tegata_domain::pool::Pool;
use tegata_domain::time::Timestamp;
use tegata_proto::id::{DesktopId, PoolName, SeatName, SessionId, UserId};
use uuid::Uuid;

pub use self::schema::SchemaError;
pub use self::writer::Writer;

use self::batch::Batch;
use self::desktops::{Observed, Probed};
use self::events::{Due, Jumped, Recover};
use self::writer::{Command, Commands};
use crate::ports::clock::Jump;
use crate::ports::store::{
    Assign, AssignError, Assigned, AuditRecord, Census, DesktopRecord, EventError, Familiarity,
    Followup, LogOff, Moved, MovedError, OccupancyTarget, Place, PoolChange, PoolStanding,
    ProbeTarget, PutPool, PutPoolError, Redeem, RedeemError, Redeemed, SessionEvent, SessionRecord,
    Store, StoreError,
};

/// How many connections read at once.
const READERS: u32 = 4;

/// How long a statement may wait for a lock, as while a backup is taken.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// How long a reader may wait for one of the connections.
const READER_LIMIT: Duration = Duration::from_secs(5);

/// Pages of the log after which it is written back to the file; at 4 KiB, 32 MiB.
const CHECKPOINT_PAGES: &str = "8192";

/// The writer's page cache, in KiB (negative by `SQLite`'s convention).
const CACHE_KIB: &str = "-32768";

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{0} is used by another process; several brokers need PostgreSQL")]
    InUse(PathBuf),
    /// The file cannot be read or made.
    #[error("{0} cannot be opened")]
    File(PathBuf, #[source] io::Error),
    /// It is not a database that can be used.
    #[error("{0} cannot be used as a store")]
    Database(PathBuf, #[source] sqlx::Error),
    /// Its tables are not those of this program.
    #[error("{0} is not a store for this program")]
    Schema(PathBuf, #[source] SchemaError),
}

/// The right to use the file, kept as long as store or writer live.
struct FileLock(#[expect(dead_code, reason = "held, not read")] File);

/// Opens a store, making or upgrading the file as needed.
///
/// # Errors
///
/// Refuses a file that another process uses, and one of a newer version.
pub async fn open(path: &Path) -> Result<(SqliteStore, Writer), OpenError> {
    let lock = Arc::new(lock(path)?);
    let broken = |error| OpenError::Database(path.to_owned(), error);
    private(path, "").map_err(|error| OpenError::File(path.to_owned(), error))?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .foreign_keys(true)
        .busy_timeout(BUSY_LIMIT)
        .disable_statement_logging();
    let writing = options
        .clone()
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        .pragma("cache_size", CACHE_KIB);
    let mut connection = writing.connect().await.map_err(broken)?;
    schema::migrate(&mut connection)
        .await
        .map_err(|error| OpenError::Schema(path.to_owned(), error))?;
    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(READER_LIMIT)
        .test_before_acquire(false)
        .connect_with(options.read_only(true))
        .await
        .map_err(broken)?;
    let (commands, writer) = Writer::new(writing, connection, lock.clone());
    Ok((SqliteStore { commands, readers, _lock: lock }, writer))
}

/// The audit trail of a store, read beside the broker that writes it or after it
/// has ended. Nothing is locked and nothing is changed.
pub struct AuditTrail(SqlitePool);

impl AuditTrail {
    /// Opens a store for reading.
    ///
    /// # Errors
    ///
    /// Refuses a file that is not there, and one of another version.
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        let broken = |error| OpenError::Database(path.to_owned(), error);
        let options = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .busy_timeout(BUSY_LIMIT)
            .disable_statement_logging();
        let readers = SqlitePoolOptions::new().max_connections(1).connect_with(options);
        let readers = readers.await.map_err(broken)?;
        schema::check(&readers).await.map_err(|error| OpenError::Schema(path.to_owned(), error))?;
        Ok(Self(readers))
    }

    /// Lists records after a sequence number, oldest first.
    ///
    /// # Errors
    ///
    /// Fails where the file cannot be read, or has a record that is not one.
    pub async fn after(&self, seq: i64, limit: u32) -> Result<Vec<(i64, AuditRecord)>, StoreError> {
        read::audit_after(&self.0, seq, limit).await
    }
}

/// Locks a file beside the database, since `SQLite` itself lets many in.
fn lock(path: &Path) -> Result<FileLock, OpenError> {
    let file = private(path, ".lock").map_err(|error| OpenError::File(path.to_owned(), error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(FileLock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse(path.to_owned())),
        Err(error) => Err(OpenError::File(path.to_owned(), error.into())),
    }
}

/// Opens a file that only its owner can read, and makes it if need be.
fn private(path: &Path, suffix: &str) -> io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(name)
}

/// The broker's memory in a `SQLite` file.
pub struct SqliteStore {
    commands: Commands,
    readers: SqlitePool,
    _lock: Arc<FileLock>,
}

impl SqliteStore {
    /// Has what the store counts shown.
    pub fn register(&self, registry: &mut Registry) {
        self.commands.register(registry);
    }
}

#[async_trait]
impl Familiarity for SqliteStore {
    async fn is_familiar(
        &self,
        user: &UserId,
        source: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        read::is_familiar(&self.readers, user, source, now).await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn put_pool(&self, put: PutPool) -> Result<PoolChange, PutPoolError> {
        self.commands.send(put).await?
    }

    async fn pools(&self) -> Result<Vec<Pool>, StoreError> {
        read::pools(&self.readers).await
    }

    async fn desktops(
        &self,
        pool: &PoolName,
        after: Option<&SeatName>,
        limit: u32,
    ) -> Result<Vec<DesktopRecord>, StoreError> {
        read::desktops(&self.readers, pool, after, limit).await
    }

    async fn sessions(
        &self,
        before: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<SessionRecord>, StoreError> {
        read::sessions(&self.readers, before, limit).await
    }

    async fn session(&self, sid: SessionId) -> Result<Option<SessionRecord>, StoreError> {
        read::session(&self.readers, sid).await
    }

    async fn standing(
        &self,
        user: &UserId,
        pools: &[PoolName],
    ) -> Result<BTreeMap<PoolName, PoolStanding>, StoreError> {
        read::standing(&self.readers, user, pools).await
    }

    async fn assign(&self, assign: Assign) -> Result<Assigned, AssignError> {
        self.commands.send(assign).await?
    }

    async fn redeem(&self, redeem: Redeem) -> Result<Redeemed, RedeemError> {
        self.commands.send(redeem).await?
    }

    async fn moved(&self, moved: Moved) -> Result<Place, MovedError> {
        self.commands.send(moved).await?
    }

    async fn session_event(&self, event: SessionEvent) -> Result<Vec<Followup>, EventError> {
        self.commands.send(event).await?
    }

    async fn probed(
        &self,
        desktop: DesktopId,
        found: Option<Probe>,
        now: Timestamp,
    ) -> Result<Vec<Followup>, StoreError> {
        self.commands.send(Probed { desktop, found, now }).await
    }

    async fn observed(
        &self,
        desktop: DesktopId,
        observation: Observation,
        now: Timestamp,
    ) -> Result<Vec<Followup>, StoreError> {
        self.commands.send(Observed { desktop, observation, now }).await
    }

    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<Followup>, StoreError> {
        self.commands.send(Due { now, limit }).await
    }

    async fn clock_jumped(&self, jump: Jump, now: Timestamp) -> Result<(), StoreError> {
        self.commands.send(Jumped { jump, now }).await
    }

    async fn detached(
        &self,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<(SessionId, OccupancyTarget)>, StoreError> {
        read::detached(&self.readers, after, limit).await
    }

    async fn is_log_off_due(&self, log_off: &LogOff) -> Result<bool, StoreError> {
        read::is_log_off_due(&self.readers, log_off).await
    }

    async fn to_probe(&self, now: Timestamp, limit: u32) -> Result<Vec<ProbeTarget>, StoreError> {
        read::to_probe(&self.readers, now, limit).await
    }

    async fn recover(&self, boot: Uuid, now: Timestamp) -> Result<u32, StoreError> {
        self.commands.send(Recover { boot, now }).await
    }

    async fn audit(&self, records: Vec<AuditRecord>) -> Result<(), StoreError> {
        self.commands.send(Records(records)).await
    }

    async fn audit_after(
        &self,
        seq: i64,
        limit: u32,
    ) -> Result<Vec<(i64, AuditRecord)>, StoreError> {
        read::audit_after(&self.readers, seq, limit).await
    }

    async fn census(&self) -> Result<Census, StoreError> {
        read::census(&self.readers).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.commands.send(Pulse).await
    }
}

/// Audit records of no other change.
struct Records(Vec<AuditRecord>);

#[async_trait]
impl Command for Records {
    type Answer = ();

    async fn perform(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        for record in &self.0 {
            let mut batch = Batch::new();
            row::save_audit(&mut batch, record)?;
            batch.run(tx).await?;
        }
        Ok(())
    }
}

/// A write that changes nothing of meaning.
struct Pulse;

#[async_trait]
impl Command for Pulse {
    type Answer = ();

    async fn perform(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.add("UPDATE pulse SET beats = beats + 1", 1);
        batch.run(tx).await
    }
}
