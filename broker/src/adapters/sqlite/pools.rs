//! A pool is put: what is listed is compared with what is there.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use aws_lc_rs::rand;
use sqlx::SqliteConnection;
use tegata_domain::desktop::{Desktop, Effect, Event};
use tegata_domain::pool::{FixedDesktop, Pool};
use tegata_domain::time::Timestamp;
use tegata_proto::encoding::Sha256;
use tegata_proto::id::SeatName;
use uuid::Uuid;

use super::batch::Batch;
use super::row::{self, Columns, desktop_columns};
use super::writer::Command;
use crate::ports::store::{
    AuditRecord, DesktopRecord, PoolChange, PutPool, PutPoolError, StoreError, action,
};

/// How many rows go into one statement.
const ROWS_AT_ONCE: usize = 1_000;

/// What has to become of a pool's desktops.
#[derive(Default)]
struct Plan<'p> {
    removed: Vec<DesktopRecord>,
    draining: Vec<DesktopRecord>,
    relisted: Vec<DesktopRecord>,
    accepted: Vec<(DesktopRecord, Option<Sha256>)>,
    added: Vec<&'p FixedDesktop>,
}

#[async_trait]
impl Command for PutPool {
    type Answer = Result<PoolChange, PutPoolError>;

    async fn perform(&self, tx: &mut SqliteConnection) -> Result<Self::Answer, StoreError> {
        let before = self.present(tx).await?;
        if before.is_some() && self.only_if_absent {
            return Ok(Ok(PoolChange::Unchanged));
        }
        let plan = match self.plan(before.as_ref(), tx).await {
            Ok(plan) => plan,
            Err(PutPoolError::Store(error)) => return Err(error),
            Err(refused) => return Ok(Err(refused)),
        };
        let spec = row::spec(&self.pool)?;
        let same_spec = match &before {
            Some(before) => row::spec(before)? == spec,
            None => false,
        };
        if same_spec && plan.is_empty() {
            return Ok(Ok(PoolChange::Unchanged));
        }
        let mut batch = Batch::new();
        batch
            .add(
                "INSERT INTO pools (name, spec) VALUES (?, ?) \
                 ON CONFLICT (name) DO UPDATE SET spec = excluded.spec",
                1,
            )
            .bind(self.pool.name().to_string())
            .bind(spec);
        row::save_audit(&mut batch, &self.record(before.is_some(), &plan))?;
        batch.run(tx).await?;
        if let Some(before) = &before {
            self.change_grace(before, tx).await?;
        }
        self.carry_out(&plan, tx).await?;
        Ok(Ok(if before.is_some() { PoolChange::Updated } else { PoolChange::Created }))
    }
}

impl PutPool {
    /// Returns the pool as it is now.
    async fn present(&self, tx: &mut SqliteConnection) -> Result<Option<Pool>, StoreError> {
        sqlx::query("SELECT spec FROM pools WHERE name = ?")
            .bind(self.pool.name().to_string())
            .fetch_optional(tx)
            .await?
            .map(|row| row::pool(&row))
            .transpose()
    }

    /// Whoever is without a link keeps their desktop for as long as those who lose
    /// theirs from now on.
    async fn change_grace(
        &self,
        before: &Pool,
        tx: &mut SqliteConnection,
    ) -> Result<(), StoreError> {
        let (old, new) = (before.raw().grace_ms, self.pool.raw().grace_ms);
        if old != new {
            sqlx::query(
                "UPDATE sessions SET deadline = max(deadline - ? + ?, 0) \
                 WHERE deadline IS NOT NULL AND state = 'detached' AND pool = ?",
            )
            .bind(old.cast_signed())
            .bind(new.cast_signed())
            .bind(self.pool.name().to_string())
            .execute(tx)
            .await?;
        }
        Ok(())
    }

    /// Finds out what has to change, and whether it may.
    async fn plan(
        &self,
        before: Option<&Pool>,
        tx: &mut SqliteConnection,
    ) -> Result<Plan<'_>, PutPoolError> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            desktop_columns!(),
            ", EXISTS (SELECT 1 FROM sessions s WHERE s.desktop = d.id AND s.epoch = d.epoch \
                AND s.state <> 'ended') AS in_use \
             FROM desktops d WHERE d.pool = ? ORDER BY d.name"
        ))
        .bind(self.pool.name().to_string())
        .fetch_all(&mut *tx)
        .await
        .map_err(StoreError::from)?;
        if let Some(before) = before.filter(|_| !rows.is_empty()) {
            if before.raw().kind != self.pool.raw().kind {
                return Err(PutPoolError::Fixed("kind"));
            }
            if before.raw().protocol != self.pool.raw().protocol {
                return Err(PutPoolError::Fixed("protocol"));
            }
        }
        let mut plan = Plan::default();
        let mut staying = Vec::new();
        let mut missing: BTreeMap<&SeatName, &FixedDesktop> =
            self.pool.raw().desktops.iter().map(|listed| (&listed.name, listed)).collect();
        for row in &rows {
            let record = row::desktop(row)?;
            let in_use = Columns::of("desktop", row).get("in_use")?;
            match missing.get(&record.name).copied() {
                None => self.plan_withdrawal(record, in_use, &mut plan, &mut staying)?,
                Some(listed) => {
                    if self.plan_listed(record, listed, &mut plan, &mut staying)? {
                        missing.remove(&listed.name);
                    }
                }
            }
        }
        plan.added = missing.into_values().collect();
        check_room(&plan.added, &staying)?;
        self.check_elsewhere(&plan.added, tx).await?;
        Ok(plan)
    }

    /// A desktop that the pool lists no longer.
    fn plan_withdrawal(
        &self,
        mut record: DesktopRecord,
        in_use: bool,
        plan: &mut Plan<'_>,
        staying: &mut Vec<DesktopRecord>,
    ) -> Result<(), StoreError> {
        let before = record.desktop.state;
        let effects = step(&mut record, Event::Withdrawn { in_use }, self)?;
        if effects.contains(&Effect::Remove) {
            plan.removed.push(record);
        } else {
            staying.push(record.clone());
            if record.desktop.state != before {
                plan.draining.push(record);
            }
        }
        Ok(())
    }

    /// A desktop that the pool lists still. Tells whether it stays the same one.
    fn plan_listed(
        &self,
        mut record: DesktopRecord,
        listed: &FixedDesktop,
        plan: &mut Plan<'_>,
        staying: &mut Vec<DesktopRecord>,
    ) -> Result<bool, PutPoolError> {
        let is_owners = listed.owner.as_ref().is_none_or(|owner| record.desktop.is_held_by(owner));
        if record.address != listed.address || !is_owners {
            if record.desktop.holder.is_some() {
                return Err(PutPoolError::InUse(record.name));
            }
            plan.removed.push(record);
            return Ok(false);
        }
        let (before, old) = (record.desktop.state, record.desktop.pin);
        step(&mut record, Event::Listed, self)?;
        if let Some(pin) = listed.certificate_sha256.filter(|pin| old != Some(*pin)) {
            if old.is_some() && self.reason.is_none() {
                return Err(PutPoolError::ReasonMissing(record.name));
            }
            step(&mut record, Event::PinAccepted(pin), self)?;
            plan.accepted.push((record.clone(), old));
        } else if record.desktop.state != before {
            plan.relisted.push(record.clone());
        }
        staying.push(record);
        Ok(true)
    }

    /// Refuses names and addresses that other pools have.
    async fn check_elsewhere(
        &self,
        added: &[&FixedDesktop],
        tx: &mut SqliteConnection,
    ) -> Result<(), PutPoolError> {
        for some in added.chunks(ROWS_AT_ONCE) {
            let names: Vec<_> = some.iter().map(|listed| &listed.name).collect();
            let addresses: Vec<_> = some.iter().map(|listed| listed.address.to_string()).collect();
            let taken = sqlx::query(
                "SELECT name, address FROM desktops WHERE pool <> ?1 \
                   AND name IN (SELECT value FROM json_each(?2)) \
                 UNION ALL SELECT name, address FROM desktops WHERE pool <> ?1 \
                   AND address IN (SELECT value FROM json_each(?3))",
            )
            .bind(self.pool.name().to_string())
            .bind(row::json(&names)?)
            .bind(row::json(&addresses)?)
            .fetch_optional(&mut *tx)
            .await
            .map_err(StoreError::from)?;
            let Some(taken) = taken else { continue };
            let columns = Columns::of("desktop", &taken);
            let (name, address): (SeatName, _) =
                (columns.parse("name")?, columns.parse("address")?);
            let listed = some.iter().find(|l| l.name == name || l.address == address);
            return Err(PutPoolError::Elsewhere(listed.map_or(name, |l| l.name.clone())));
        }
        Ok(())
    }

    /// Writes what was planned.
    async fn carry_out(
        &self,
        plan: &Plan<'_>,
        tx: &mut SqliteConnection,
    ) -> Result<(), StoreError> {
        for record in &plan.removed {
            let mut batch = Batch::new();
            row::remove_desktop(&mut batch, record.id, record.desktop.epoch);
            batch.run(tx).await?;
        }
        for record in plan.draining.iter().chain(&plan.relisted) {
            let mut batch = Batch::new();
            row::save_desktop(&mut batch, record.id, &record.desktop, record.desktop.epoch);
            batch.run(tx).await?;
        }
        for (record, old) in &plan.accepted {
            let mut batch = Batch::new();
            row::save_desktop(&mut batch, record.id, &record.desktop, record.desktop.epoch);
            row::save_audit(&mut batch, &self.acceptance(record, *old))?;
            batch.run(tx).await?;
        }
        for some in plan.added.chunks(ROWS_AT_ONCE) {
            self.insert(some, tx).await?;
        }
        Ok(())
    }

    async fn insert(
        &self,
        added: &[&FixedDesktop],
        tx: &mut SqliteConnection,
    ) -> Result<(), StoreError> {
        let rows = added
            .iter()
            .map(|listed| {
                let desktop = Desktop::listed(listed.certificate_sha256, listed.owner.clone());
                Ok((
                    new_id(self.now)?.simple().to_string(),
                    &listed.name,
                    listed.address.to_string(),
                    row::desktop_state(desktop.state),
                    desktop.holder.map(|holder| holder.user),
                    desktop.epoch,
                    desktop.pin,
                    desktop.used,
                ))
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        let mut batch = Batch::new();
        batch
            .add(
                "INSERT INTO desktops (id, pool, name, address, state, holder, epoch, pin, used, \
                 probed_at) \
                 SELECT unhex(value ->> 0), ?, value ->> 1, value ->> 2, value ->> 3, \
                 value ->> 4, value ->> 5, unhex(value ->> 6), value ->> 7, 0 FROM json_each(?)",
                rows.len() as u64,
            )
            .bind(self.pool.name().to_string())
            .bind(row::json(&rows)?);
        batch.run(tx).await
    }

    fn record(&self, known: bool, plan: &Plan<'_>) -> AuditRecord {
        let action = if known { action::POOL_UPDATED } else { action::POOL_CREATED };
        let mut audit = row::record(action, &self.actor, self.now);
        row::note(&mut audit, "pool", self.pool.name());
        let counts = [
            ("desktops", self.pool.raw().desktops.len()),
            ("added", plan.added.len()),
            ("removed", plan.removed.len()),
            ("draining", plan.draining.len()),
            ("relisted", plan.relisted.len()),
        ];
        for (name, count) in counts {
            row::note(&mut audit, name, count);
        }
        self.note_reason(&mut audit);
        audit
    }

    fn acceptance(&self, record: &DesktopRecord, old: Option<Sha256>) -> AuditRecord {
        let mut audit = row::record(action::PIN_ACCEPTED, &self.actor, self.now);
        audit.desktop = Some(record.id);
        row::note(&mut audit, "seat", &record.name);
        if let Some(old) = old {
            row::note(&mut audit, "old", old);
        }
        if let Some(new) = record.desktop.pin {
            row::note(&mut audit, "new", new);
        }
        self.note_reason(&mut audit);
        audit
    }

    fn note_reason(&self, audit: &mut AuditRecord) {
        if let Some(reason) = &self.reason {
            row::note(audit, "reason", reason);
        }
    }
}

impl Plan<'_> {
    fn is_empty(&self) -> bool {
        self.removed.is_empty()
            && self.draining.is_empty()
            && self.relisted.is_empty()
            && self.accepted.is_empty()
            && self.added.is_empty()
    }
}

fn step(
    record: &mut DesktopRecord,
    event: Event,
    put: &PutPool,
) -> Result<Vec<Effect>, StoreError> {
    record
        .desktop
        .step(event, put.pool.rules(), put.now)
        .map_err(|_| StoreError::Corrupt { what: "desktop of a pool that changes" })
}

/// Refuses a new desktop at the address of one that stays, or for an owner who
/// holds one that stays.
fn check_room(added: &[&FixedDesktop], staying: &[DesktopRecord]) -> Result<(), PutPoolError> {
    let addresses: BTreeSet<_> = staying.iter().map(|record| record.address).collect();
    let holders: BTreeSet<_> = staying
        .iter()
        .filter_map(|record| record.desktop.holder.as_ref())
        .map(|h| &h.user)
        .collect();
    let clash = added.iter().find(|listed| {
        addresses.contains(&listed.address)
            || listed.owner.as_ref().is_some_and(|owner| holders.contains(owner))
    });
    clash.map_or(Ok(()), |listed| Err(PutPoolError::InUse(listed.name.clone())))
}

/// Makes a `UUIDv7`.
fn new_id(now: Timestamp) -> Result<Uuid, StoreError> {
    let mut random = [0; 10];
    rand::fill(&mut random)
        .map_err(|_| StoreError::Unavailable("the system has no random bytes".into()))?;
    Ok(uuid::Builder::from_unix_timestamp_millis(now.as_millis(), &random).into_uuid())
}
