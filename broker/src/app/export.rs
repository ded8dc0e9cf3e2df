//! The audit trail, written out: one JSON object a line, in the order of commits.

use std::io::{self, Write};

use serde::Serialize;

use super::Config;
use crate::adapters::sqlite::{AuditTrail, OpenError};
use crate::ports::store::{AuditRecord, StoreError};

/// How many records are read at once.
const PAGE: u32 = 1_000;

/// Why the trail is not written out.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The store cannot be opened.
    #[error("the store cannot be opened")]
    Open(#[from] OpenError),
    /// The store has a record that cannot be read.
    #[error("the audit trail cannot be read")]
    Read(#[from] StoreError),
    /// Nobody takes what is written.
    #[error("the audit trail cannot be written out")]
    Write(#[from] io::Error),
}

#[derive(Serialize)]
struct Line<'a> {
    seq: i64,
    #[serde(flatten)]
    record: &'a AuditRecord,
}

/// Writes out every record of the configuration's store, oldest first.
///
/// # Errors
///
/// Stops at the first record that cannot be read or written.
pub async fn export_audit(config: &Config, out: &mut impl Write) -> Result<(), ExportError> {
    let trail = AuditTrail::open(&config.sqlite).await?;
    let mut last = 0;
    loop {
        let records = trail.after(last, PAGE).await?;
        let Some((end, _)) = records.last() else { break };
        last = *end;
        for (seq, record) in &records {
            serde_json::to_writer(&mut *out, &Line { seq: *seq, record })
                .map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
    }
    Ok(out.flush()?)
}
