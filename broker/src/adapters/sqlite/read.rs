//! What is only read: on connections of its own, which see what is committed.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::SqlitePool;
use tegata_domain::pool::{Pool, RawPool};
use tegata_domain::time::Timestamp;
use tegata_proto::id::{DesktopId, PoolName, SeatName, SessionId, UserId};

use super::row::{self, Columns, desktop_columns};
use crate::ports::store::{
    AuditRecord, Census, DesktopRecord, FAMILIAR_FOR, LogOff, OccupancyTarget, PROBE_HELD,
    PROBE_LATER, PROBE_SOON, PoolStanding, ProbeTarget, SessionRecord, StoreError,
};

pub(super) async fn pools(readers: &SqlitePool) -> Result<Vec<Pool>, StoreError> {
    let rows = sqlx::query("SELECT spec FROM pools ORDER BY name").fetch_all(readers).await?;
    rows.iter().map(row::pool).collect()
}

pub(super) async fn desktops(
    readers: &SqlitePool,
    pool: &PoolName,
    after: Option<&SeatName>,
    limit: u32,
) -> Result<Vec<DesktopRecord>, StoreError> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        desktop_columns!(),
        " FROM desktops d WHERE d.pool = ? AND d.name > ? ORDER BY d.name LIMIT ?"
    ))
    .bind(pool.as_str())
    .bind(after.map_or("", SeatName::as_str))
    .bind(limit)
    .fetch_all(readers)
    .await?;
    rows.iter().map(row::desktop).collect()
}

/// Completes the query for sessions by its `WHERE`.
macro_rules! sessions {
    ($where:literal) => {
        concat!(
            "SELECT s.sid, s.user, u.display_name, s.pool, s.desktop, s.seat, s.state, \
             s.deadline, s.cause, s.created_at, s.ends_at, s.class, s.epoch, s.link, s.gateway, s.key \
             FROM sessions s JOIN people u ON u.user = s.user ",
            $where
        )
    };
}

pub(super) async fn sessions(
    readers: &SqlitePool,
    before: Option<SessionId>,
    limit: u32,
) -> Result<Vec<SessionRecord>, StoreError> {
    let rows = sqlx::query(sessions!(
        "WHERE s.state <> 'ended' AND s.sid < ? ORDER BY s.sid DESC LIMIT ?"
    ))
    .bind(before.map_or([u8::MAX; 17].to_vec(), |sid| row::bytes(sid.0)))
    .bind(limit)
    .fetch_all(readers)
    .await?;
    rows.iter().map(row::session).collect()
}

pub(super) async fn session(
    readers: &SqlitePool,
    sid: SessionId,
) -> Result<Option<SessionRecord>, StoreError> {
    sqlx::query(sessions!("WHERE s.sid = ?"))
        .bind(row::bytes(sid.0))
        .fetch_optional(readers)
        .await?
        .map(|row| row::session(&row))
        .transpose()
}

pub(super) async fn is_familiar(
    readers: &SqlitePool,
    user: &UserId,
    source: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let last = sqlx::query("SELECT last_seen FROM familiar WHERE user = ? AND source = ?")
        .bind(user.to_string())
        .bind(source)
        .fetch_optional(readers)
        .await?;
    let Some(row) = last else { return Ok(false) };
    let last = Columns::of("familiar", &row).time("last_seen")?;
    Ok(now.since(last) < FAMILIAR_FOR)
}

pub(super) async fn standing(
    readers: &SqlitePool,
    user: &UserId,
    pools: &[PoolName],
) -> Result<BTreeMap<PoolName, PoolStanding>, StoreError> {
    let rows = sqlx::query(
        "SELECT p.name, \
         EXISTS (SELECT 1 FROM desktops WHERE pool = p.name AND holder = ?) AS held, \
         EXISTS (SELECT 1 FROM desktops WHERE pool = p.name AND state = 'ready') AS ready \
         FROM pools p WHERE p.name IN (SELECT value FROM json_each(?))",
    )
    .bind(user.to_string())
    .bind(row::json(&pools)?)
    .fetch_all(readers)
    .await?;
    rows.iter()
        .map(|row| {
            let columns = Columns::of("pool", row);
            let standing =
                PoolStanding { held: columns.get("held")?, ready: columns.get("ready")? };
            Ok((columns.parse("name")?, standing))
        })
        .collect()
}

pub(super) async fn detached(
    readers: &SqlitePool,
    after: Option<SessionId>,
    limit: u32,
) -> Result<Vec<(SessionId, OccupancyTarget)>, StoreError> {
    let rows = sqlx::query(
        "SELECT s.sid, d.id, d.name, d.address, d.account \
         FROM sessions s JOIN desktops d ON d.id = s.desktop \
         WHERE s.state <> 'ended' AND s.state = 'detached' AND s.sid > ? ORDER BY s.sid LIMIT ?",
    )
    .bind(after.map_or_else(Vec::new, |sid| row::bytes(sid.0)))
    .bind(limit)
    .fetch_all(readers)
    .await?;
    rows.iter()
        .map(|row| {
            let columns = Columns::of("desktop", row);
            let target = OccupancyTarget {
                desktop: DesktopId(columns.id("id")?),
                name: columns.parse("name")?,
                address: columns.parse("address")?,
                account: columns.get("account")?,
            };
            Ok((SessionId(columns.id("sid")?), target))
        })
        .collect()
}

pub(super) async fn is_log_off_due(
    readers: &SqlitePool,
    log_off: &LogOff,
) -> Result<bool, StoreError> {
    let found = sqlx::query(
        "SELECT 1 FROM desktops WHERE id = ? AND state = 'recycling' AND epoch = ? \
         AND since = ? AND account IS ?",
    )
    .bind(row::bytes(log_off.target.desktop.0))
    .bind(row::number(log_off.epoch))
    .bind(row::millis(log_off.since))
    .bind(log_off.target.account.as_deref())
    .fetch_optional(readers)
    .await?;
    Ok(found.is_some())
}

pub(super) async fn to_probe(
    readers: &SqlitePool,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<ProbeTarget>, StoreError> {
    let before = |span: Duration| {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        row::millis(Timestamp::from_millis(now.as_millis().saturating_sub(span)))
    };
    // The pools' few specifications apart, not one with each of many desktops.
    let pools: BTreeMap<PoolName, RawPool> =
        pools(readers).await?.into_iter().map(|pool| (pool.name().clone(), pool.into())).collect();
    let rows = sqlx::query(
        "SELECT * FROM (SELECT id, pool, name, address, TRUE AS in_doubt, probed_at \
           FROM desktops WHERE state IN ('starting', 'quarantined') \
             AND (state = 'starting' OR reason = 'unreachable') AND probed_at <= ?1 \
           ORDER BY probed_at LIMIT ?4) \
         UNION SELECT * FROM (SELECT id, pool, name, address, \
             state IN ('starting', 'quarantined'), probed_at \
           FROM desktops WHERE holder IS NULL AND probed_at <= ?2 AND reason IS NOT 'used' \
           ORDER BY probed_at LIMIT ?4) \
         UNION SELECT * FROM (SELECT id, pool, name, address, FALSE, probed_at \
           FROM desktops WHERE holder IS NOT NULL AND probed_at <= ?3 \
           ORDER BY probed_at LIMIT ?4) \
         UNION SELECT * FROM (SELECT id, pool, name, address, \
             state IN ('starting', 'quarantined'), probed_at \
           FROM desktops WHERE holder IS NULL AND probed_at > ?5 AND reason IS NOT 'used' \
           ORDER BY probed_at LIMIT ?4) \
         ORDER BY probed_at LIMIT ?4",
    )
    .bind(before(PROBE_SOON))
    .bind(before(PROBE_LATER))
    .bind(before(PROBE_HELD))
    .bind(limit)
    .bind(row::millis(now))
    .fetch_all(readers)
    .await?;
    rows.iter()
        .map(|row| {
            let columns = Columns::of("desktop", row);
            let pool: PoolName = columns.parse("pool")?;
            let pool = pools.get(&pool).ok_or_else(|| columns.corrupt())?;
            Ok(ProbeTarget {
                desktop: DesktopId(columns.id("id")?),
                name: columns.parse("name")?,
                address: columns.parse("address")?,
                protocol: pool.protocol,
                security: pool.security,
                in_doubt: columns.get("in_doubt")?,
            })
        })
        .collect()
}

pub(super) async fn audit_after(
    readers: &SqlitePool,
    seq: i64,
    limit: u32,
) -> Result<Vec<(i64, AuditRecord)>, StoreError> {
    let rows = sqlx::query(
        "SELECT seq, at, action, actor, sid, desktop, detail FROM audit WHERE seq > ? \
         ORDER BY seq LIMIT ?",
    )
    .bind(seq)
    .bind(limit)
    .fetch_all(readers)
    .await?;
    rows.iter().map(row::audit).collect()
}

pub(super) async fn census(readers: &SqlitePool) -> Result<Census, StoreError> {
    let desktops =
        sqlx::query("SELECT pool, state, count(*) AS number FROM desktops GROUP BY pool, state")
            .fetch_all(readers)
            .await?;
    let sessions = sqlx::query(
        "SELECT class, state, count(*) AS number FROM sessions WHERE state <> 'ended' \
         GROUP BY class, state",
    )
    .fetch_all(readers)
    .await?;
    let mut census = Census::default();
    for row in &desktops {
        let columns = Columns::of("desktop", row);
        let key = (columns.parse("pool")?, columns.get("state")?);
        census.desktops.insert(key, columns.unsigned("number")?);
    }
    for row in &sessions {
        let columns = Columns::of("session", row);
        let key = (columns.get("class")?, columns.get("state")?);
        census.sessions.insert(key, columns.unsigned("number")?);
    }
    Ok(census)
}
