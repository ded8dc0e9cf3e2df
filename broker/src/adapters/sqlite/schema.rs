//! The tables, and how a file of an older version becomes one of this.
//!
//! The version of a file is its `user_version`: how many of [`VERSIONS`] were
//! applied. It changes in the transaction that changes the tables.

use std::cmp::Ordering;

use sqlx::{AssertSqlSafe, Connection as _, Row as _, SqliteConnection, SqlitePool};

/// What each version adds; never edited after a release, only added to.
const VERSIONS: [&str; 7] = [
    include_str!("schema/1.sql"),
    include_str!("schema/2.sql"),
    include_str!("schema/3.sql"),
    include_str!("schema/4.sql"),
    include_str!("schema/5.sql"),
    include_str!("schema/6.sql"),
    include_str!("schema/7.sql"),
];

/// Why a file's tables could not be made those of this version.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A newer program wrote it.
    #[error("it has version {found}, and this program knows only {known}")]
    Newer {
        /// The file's version.
        found: usize,
        /// The last one known here.
        known: usize,
    },
    /// It has not been upgraded to this program's tables yet.
    #[error("it has version {found}, and this program reads {known}; a broker upgrades it")]
    Older {
        /// The file's version.
        found: usize,
        /// The one that is read here.
        known: usize,
    },
    /// `SQLite` refused.
    #[error("its tables could not be made")]
    Database(#[from] sqlx::Error),
}

/// Brings the tables to this version, all steps or none.
pub(super) async fn migrate(conn: &mut SqliteConnection) -> Result<(), SchemaError> {
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
    let found: i64 = sqlx::query("PRAGMA user_version").fetch_one(&mut *tx).await?.try_get(0)?;
    let found = usize::try_from(found).unwrap_or(usize::MAX);
    let missing =
        VERSIONS.get(found..).ok_or(SchemaError::Newer { found, known: VERSIONS.len() })?;
    for version in missing {
        sqlx::raw_sql(*version).execute(&mut *tx).await?;
    }
    let known = VERSIONS.len();
    sqlx::raw_sql(AssertSqlSafe(format!("PRAGMA user_version = {known}")))
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(())
}

/// Checks that the tables are those of this version, and leaves them as they are.
pub(super) async fn check(readers: &SqlitePool) -> Result<(), SchemaError> {
    let found: i64 = sqlx::query("PRAGMA user_version").fetch_one(readers).await?.try_get(0)?;
    let (found, known) = (usize::try_from(found).unwrap_or(usize::MAX), VERSIONS.len());
    match found.cmp(&known) {
        Ordering::Less => Err(SchemaError::Older { found, known }),
        Ordering::Equal => Ok(()),
        Ordering::Greater => Err(SchemaError::Newer { found, known }),
    }
}
