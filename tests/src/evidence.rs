//! Where the accounts that [`crate::history`] compares come from: the broker's own
//! export, the store's file, and what clients wrote down.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;

use crate::history::{Heard, Record, Standing, Violation, check};
use crate::site::{Site, program};

/// Reads JSON lines.
///
/// # Errors
///
/// Names the first line that is none.
pub fn lines<T: DeserializeOwned>(text: &str) -> Result<Vec<T>> {
    let read = |(n, line)| serde_json::from_str(line).with_context(|| format!("line {}", n + 1));
    text.lines().enumerate().map(read).collect()
}

/// Has the broker's program print the audit trail of a site.
///
/// # Errors
///
/// When it refuses.
pub fn audit_trail(site: &Site) -> Result<Vec<Record>> {
    let mut command = Command::new(program("tegata-broker")?);
    let output =
        command.args(["audit-export", "--config"]).arg(site.path("broker.toml")).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    lines(std::str::from_utf8(&output.stdout)?)
}

/// Reads what a store holds. Its broker should have ended.
///
/// # Errors
///
/// When the file cannot be read.
pub fn standing(store: &Path) -> Result<Standing> {
    // As text, ids are written the way the trail writes them.
    let uuid = |column: &str| {
        format!(
            "lower(substr(hex({column}), 1, 8) || '-' || substr(hex({column}), 9, 4) || '-' || \
             substr(hex({column}), 13, 4) || '-' || substr(hex({column}), 17, 4) || '-' || \
             substr(hex({column}), 21)) AS {column}"
        )
    };
    Ok(Standing {
        desktops: rows(
            store,
            &format!("SELECT {}, state, holder, epoch FROM desktops", uuid("id")),
        )?,
        sessions: rows(
            store,
            // Who comes back is kept as carried, with a deadline.
            &format!(
                "SELECT {}, CASE WHEN state = 'active' AND deadline IS NOT NULL \
                 THEN 'returned' ELSE state END AS state FROM sessions",
                uuid("sid")
            ),
        )?,
        tickets: rows(store, &format!("SELECT {}, {} FROM tickets", uuid("jti"), uuid("sid")))?,
    })
}

/// Returns what `SQLite` itself says of a store's file: `ok`, or what is wrong.
///
/// # Errors
///
/// When the file cannot be read at all.
pub fn integrity(store: &Path) -> Result<String> {
    Ok(sqlite(store, &[], "PRAGMA integrity_check")?.trim().to_owned())
}

/// Counts the rows of each table of a store. Its broker should have ended.
///
/// # Errors
///
/// When the file cannot be read.
pub fn row_counts(store: &Path) -> Result<BTreeMap<String, u64>> {
    let named = "SELECT name FROM sqlite_master WHERE type = 'table'";
    let count = |table: &str| {
        let rows = sqlite(store, &[], &format!("SELECT count(*) FROM \"{table}\""))?;
        Ok((table.to_owned(), rows.trim().parse()?))
    };
    sqlite(store, &[], named)?.lines().map(count).collect()
}

/// Changes a store behind the broker's back.
///
/// # Errors
///
/// When the statement is refused.
pub fn tamper(store: &Path, sql: &str) -> Result<()> {
    let output = Command::new("sqlite3").arg("-bail").arg(store).arg(sql).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Gathers all three accounts of a site whose broker has ended, and compares them.
///
/// # Errors
///
/// When one of them cannot be had.
pub fn judge(site: &Site, heard: &[Heard]) -> Result<(Vec<Record>, Vec<Violation>)> {
    let trail = audit_trail(site)?;
    let standing = standing(&site.store())?;
    let found = check(&trail, heard, Some(&standing));
    Ok((trail, found))
}

fn rows<T: DeserializeOwned>(store: &Path, sql: &str) -> Result<Vec<T>> {
    let text = sqlite(store, &["-json"], sql)?;
    // Without a row it prints nothing at all.
    if text.trim().is_empty() { Ok(vec![]) } else { Ok(serde_json::from_str(&text)?) }
}

fn sqlite(store: &Path, options: &[&str], sql: &str) -> Result<String> {
    let mut command = Command::new("sqlite3");
    let output = command.arg("-readonly").args(options).arg(store).arg(sql).output();
    let output = output.context("sqlite3 cannot be run; Debian: sqlite3")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
