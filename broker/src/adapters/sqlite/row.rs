//! How values are written into columns and read back.

use std::fmt::Display;
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{Decode, Row as _, Type};
use tegata_domain::desktop::{self, Desktop, Holder};
use tegata_domain::pool::{Pool, RawPool};
use tegata_domain::session;
use tegata_domain::time::Timestamp;
use tegata_proto::encoding::{Bytes, Sha256};
use tegata_proto::id::{DesktopId, Epoch, LinkNumber, SessionId};
use tegata_proto::key::Thumbprint;
use uuid::Uuid;

use super::batch::Batch;
use crate::ports::store::{Actor, AuditRecord, DesktopRecord, SessionRecord, StoreError};

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let broken_rule = error.as_database_error().is_some_and(|error| {
            error.is_unique_violation()
                || error.is_check_violation()
                || error.is_foreign_key_violation()
                || error.code().is_some_and(|code| code == RAISED)
        });
        match error {
            _ if broken_rule => Self::Corrupt { what: "rule" },
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                Self::Corrupt { what: "column" }
            }
            other => Self::Unavailable(Box::new(other)),
        }
    }
}

/// `SQLITE_CONSTRAINT_TRIGGER`.
const RAISED: &str = "1811";

/// Writes a time; those past the column's range are its last.
pub(super) fn millis(time: Timestamp) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Writes an epoch; it rises by one a claim and never leaves the range.
pub(super) fn number(epoch: Epoch) -> i64 {
    i64::try_from(epoch.0).unwrap_or(i64::MAX)
}

/// Writes an id.
pub(super) fn bytes(id: Uuid) -> Vec<u8> {
    id.into_bytes().to_vec()
}

/// Writes a value that is one word in JSON.
pub(super) fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Writes a value as JSON.
pub(super) fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|_| StoreError::Corrupt { what: "value" })
}

/// Reads columns of one row.
pub(super) struct Columns<'r> {
    row: &'r SqliteRow,
    what: &'static str,
}

impl<'r> Columns<'r> {
    /// `what` is named where a column is not as it should be.
    pub(super) fn of(what: &'static str, row: &'r SqliteRow) -> Self {
        Self { row, what }
    }

    pub(super) fn corrupt(&self) -> StoreError {
        StoreError::Corrupt { what: self.what }
    }

    pub(super) fn get<T>(&self, column: &'static str) -> Result<T, StoreError>
    where
        T: Decode<'r, Sqlite> + Type<Sqlite>,
    {
        self.row.try_get(column).map_err(|_| self.corrupt())
    }

    pub(super) fn unsigned(&self, column: &'static str) -> Result<u64, StoreError> {
        u64::try_from(self.get::<i64>(column)?).map_err(|_| self.corrupt())
    }

    pub(super) fn time(&self, column: &'static str) -> Result<Timestamp, StoreError> {
        self.unsigned(column).map(Timestamp::from_millis)
    }

    pub(super) fn optional_time(
        &self,
        column: &'static str,
    ) -> Result<Option<Timestamp>, StoreError> {
        self.get::<Option<i64>>(column)?
            .map(|millis| u64::try_from(millis).map_err(|_| self.corrupt()))
            .transpose()
            .map(|millis| millis.map(Timestamp::from_millis))
    }

    pub(super) fn optional_id(&self, column: &'static str) -> Result<Option<Uuid>, StoreError> {
        self.get::<Option<&[u8]>>(column)?
            .map(|bytes| Uuid::from_slice(bytes).map_err(|_| self.corrupt()))
            .transpose()
    }

    pub(super) fn id(&self, column: &'static str) -> Result<Uuid, StoreError> {
        self.optional_id(column)?.ok_or_else(|| self.corrupt())
    }

    pub(super) fn optional_digest(
        &self,
        column: &'static str,
    ) -> Result<Option<Sha256>, StoreError> {
        self.get::<Option<&[u8]>>(column)?
            .map(|bytes| bytes.try_into().map(Sha256).map_err(|_| self.corrupt()))
            .transpose()
    }

    pub(super) fn optional_thumbprint(
        &self,
        column: &'static str,
    ) -> Result<Option<Thumbprint>, StoreError> {
        Ok(self.optional_digest(column)?.map(|Sha256(bytes)| Bytes(bytes)))
    }

    pub(super) fn parse<T: FromStr>(&self, column: &'static str) -> Result<T, StoreError> {
        self.get::<&str>(column)?.parse().map_err(|_| self.corrupt())
    }

    pub(super) fn optional<T: FromStr>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, StoreError> {
        self.get::<Option<&str>>(column)?
            .map(|text| text.parse().map_err(|_| self.corrupt()))
            .transpose()
    }

    pub(super) fn word<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        let text = self.get::<String>(column)?;
        serde_json::from_value(text.into()).map_err(|_| self.corrupt())
    }

    pub(super) fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        serde_json::from_str(self.get(column)?).map_err(|_| self.corrupt())
    }

    pub(super) fn optional_json<T: DeserializeOwned>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, StoreError> {
        self.get::<Option<&str>>(column)?
            .map(|text| serde_json::from_str(text).map_err(|_| self.corrupt()))
            .transpose()
    }
}

/// The columns of a desktop that [`desktop`] reads.
macro_rules! desktop_columns {
    () => {
        "d.id AS desktop_id, d.pool AS desktop_pool, d.name AS desktop_name, \
         d.address AS desktop_address, d.state AS desktop_state, d.since AS desktop_since, \
         d.reason AS desktop_reason, d.holder AS desktop_holder, d.account AS desktop_account, \
         d.epoch AS desktop_epoch, d.session AS desktop_session, d.used AS desktop_used, \
         d.pin AS desktop_pin, d.probed_at AS desktop_probed_at"
    };
}
pub(super) use desktop_columns;

/// Reads a desktop.
pub(super) fn desktop(row: &SqliteRow) -> Result<DesktopRecord, StoreError> {
    let columns = Columns::of("desktop", row);
    let state = match columns.get("desktop_state")? {
        "starting" => desktop::State::Starting,
        "ready" => desktop::State::Ready { since: columns.time("desktop_since")? },
        "assigned" => desktop::State::Assigned,
        "recycling" => desktop::State::Recycling { since: columns.time("desktop_since")? },
        "draining" => desktop::State::Draining,
        "quarantined" => desktop::State::Quarantined {
            reason: columns.word("desktop_reason")?,
            since: columns.time("desktop_since")?,
        },
        _ => return Err(columns.corrupt()),
    };
    let account = columns.get("desktop_account")?;
    let holder = columns.optional("desktop_holder")?.map(|user| Holder { user, account });
    let probed_at = columns.time("desktop_probed_at")?;
    Ok(DesktopRecord {
        id: DesktopId(columns.id("desktop_id")?),
        pool: columns.parse("desktop_pool")?,
        name: columns.parse("desktop_name")?,
        address: columns.parse("desktop_address")?,
        desktop: Desktop {
            state,
            holder,
            epoch: Epoch(columns.unsigned("desktop_epoch")?),
            session: columns.optional_id("desktop_session")?.map(SessionId),
            used: columns.get("desktop_used")?,
            pin: columns.optional_digest("desktop_pin")?,
        },
        probed_at: (probed_at.as_millis() > 0).then_some(probed_at),
    })
}

/// Returns the name of a desktop's state, as in its JSON.
pub(super) fn desktop_state(state: desktop::State) -> &'static str {
    match state {
        desktop::State::Starting => "starting",
        desktop::State::Ready { .. } => "ready",
        desktop::State::Assigned => "assigned",
        desktop::State::Recycling { .. } => "recycling",
        desktop::State::Draining => "draining",
        desktop::State::Quarantined { .. } => "quarantined",
    }
}

/// Writes what the decisions know of a desktop, if its epoch is still `fence`.
pub(super) fn save_desktop(batch: &mut Batch, id: DesktopId, desktop: &Desktop, fence: Epoch) {
    let Desktop { state, holder, epoch, session, used, pin } = desktop;
    let (since, reason) = match *state {
        desktop::State::Starting | desktop::State::Assigned | desktop::State::Draining => {
            (None, None)
        }
        desktop::State::Ready { since } | desktop::State::Recycling { since } => {
            (Some(since), None)
        }
        desktop::State::Quarantined { reason, since } => (Some(since), Some(word(reason))),
    };
    batch
        .add(
            "UPDATE desktops SET state = ?, since = ?, reason = ?, holder = ?, account = ?, \
             epoch = ?, session = ?, used = ?, pin = ? WHERE id = ? AND epoch = ?",
            1,
        )
        .bind(desktop_state(*state))
        .bind(since.map(millis))
        .bind(reason)
        .bind(holder.as_ref().map(|holder| holder.user.to_string()))
        .bind(holder.as_ref().and_then(|holder| holder.account.clone()))
        .bind(number(*epoch))
        .bind(session.map(|sid| bytes(sid.0)))
        .bind(*used)
        .bind(pin.map(|pin| pin.0.to_vec()))
        .bind(bytes(id.0))
        .bind(number(fence));
}

/// Has a desktop looked at by the next pass, whatever the clock said at the last look.
pub(super) fn probe_now(batch: &mut Batch, id: DesktopId) {
    batch.add("UPDATE desktops SET probed_at = 0 WHERE id = ?", 1).bind(bytes(id.0));
}

/// Removes a desktop, if its epoch is still `fence`.
pub(super) fn remove_desktop(batch: &mut Batch, id: DesktopId, fence: Epoch) {
    batch
        .add("DELETE FROM desktops WHERE id = ? AND epoch = ?", 1)
        .bind(bytes(id.0))
        .bind(number(fence));
}

/// Reads where a session stands.
pub(super) fn session_state(columns: &Columns<'_>) -> Result<session::State, StoreError> {
    Ok(match columns.get("state")? {
        "requested" => session::State::Requested { until: columns.time("deadline")? },
        "starting" => session::State::Starting { until: columns.time("deadline")? },
        "active" => match columns.optional_time("deadline")? {
            None => session::State::Active,
            Some(until) => session::State::Returning { until },
        },
        "detached" => session::State::Detached { until: columns.time("deadline")? },
        "ending" => session::State::Ending { cause: columns.word("cause")? },
        "ended" => session::State::Ended { cause: columns.word("cause")? },
        _ => return Err(columns.corrupt()),
    })
}

/// Returns the columns of a session's state: its name and its cause.
pub(super) fn session_words(state: session::State) -> (&'static str, Option<String>) {
    match state {
        session::State::Requested { .. } => ("requested", None),
        session::State::Starting { .. } => ("starting", None),
        // Told apart by its deadline.
        session::State::Active | session::State::Returning { .. } => ("active", None),
        session::State::Detached { .. } => ("detached", None),
        session::State::Ending { cause } => ("ending", Some(word(cause))),
        session::State::Ended { cause } => ("ended", Some(word(cause))),
    }
}

/// Reads a session as it is listed.
pub(super) fn session(row: &SqliteRow) -> Result<SessionRecord, StoreError> {
    let columns = Columns::of("session", row);
    Ok(SessionRecord {
        sid: SessionId(columns.id("sid")?),
        user: columns.parse("user")?,
        display_name: columns.get("display_name")?,
        pool: columns.parse("pool")?,
        desktop: DesktopId(columns.id("desktop")?),
        desktop_name: columns.parse("seat")?,
        state: session_state(&columns)?,
        created_at: columns.time("created_at")?,
        ends_at: columns.optional_time("ends_at")?,
        class: columns.get("class")?,
        epoch: Epoch(columns.unsigned("epoch")?),
        link: LinkNumber(columns.get::<i64>("link")?.cast_unsigned()),
        gateway: columns.optional("gateway")?,
        key: columns.optional_thumbprint("key")?,
    })
}

/// Reads a pool out of its `spec`; its desktops are left out.
pub(super) fn pool(row: &SqliteRow) -> Result<Pool, StoreError> {
    Columns::of("pool", row).json("spec")
}

/// Writes a pool without its desktops.
pub(super) fn spec(pool: &Pool) -> Result<String, StoreError> {
    // Not by cloning the pool: it may list a hundred thousand desktops.
    let raw = pool.raw();
    json(&RawPool {
        name: raw.name.clone(),
        label: raw.label.clone(),
        kind: raw.kind,
        reuse: raw.reuse,
        protocol: raw.protocol,
        security: raw.security,
        sign_on: raw.sign_on,
        policy: raw.policy,
        limits: raw.limits,
        by_class: raw.by_class.clone(),
        takeover: raw.takeover,
        entitlements: raw.entitlements.clone(),
        gateways: raw.gateways.clone(),
        hold_ms: raw.hold_ms,
        grace_ms: raw.grace_ms,
        queue_wait_ms: raw.queue_wait_ms,
        queue_limit: raw.queue_limit,
        desktops: vec![],
    })
}

/// Adds an audit record.
pub(super) fn save_audit(batch: &mut Batch, record: &AuditRecord) -> Result<(), StoreError> {
    batch
        .add(
            "INSERT INTO audit (at, action, actor, sid, desktop, detail) \
             VALUES (?, ?, ?, ?, ?, ?)",
            1,
        )
        .bind(millis(record.at))
        .bind(record.action.clone())
        .bind(json(&record.actor)?)
        .bind(record.sid.map(|sid| bytes(sid.0)))
        .bind(record.desktop.map(|id| bytes(id.0)))
        .bind(json(&record.detail)?);
    Ok(())
}

/// Reads an audit record and its number.
pub(super) fn audit(row: &SqliteRow) -> Result<(i64, AuditRecord), StoreError> {
    let columns = Columns::of("audit record", row);
    let record = AuditRecord {
        at: columns.time("at")?,
        action: columns.get("action")?,
        actor: columns.json("actor")?,
        sid: columns.optional_id("sid")?.map(SessionId),
        desktop: columns.optional_id("desktop")?.map(DesktopId),
        detail: columns.json("detail")?,
    };
    Ok((columns.get("seq")?, record))
}

/// Begins an audit record.
pub(super) fn record(action: &str, actor: &Actor, at: Timestamp) -> AuditRecord {
    AuditRecord {
        at,
        action: action.to_owned(),
        actor: actor.clone(),
        sid: None,
        desktop: None,
        detail: std::collections::BTreeMap::new(),
    }
}

/// Adds a detail to an audit record.
pub(super) fn note(record: &mut AuditRecord, name: &str, value: impl Display) {
    record.detail.insert(name.to_owned(), value.to_string());
}
