//! What befalls desktops by themselves: probes and observations.

use async_trait::async_trait;
use sqlx::SqliteConnection;
use tegata_domain::desktop::{Observation, Probe};
use tegata_domain::time::Timestamp;
use tegata_proto::id::DesktopId;

use super::assignment::{Loaded, corrupt};
use super::batch::Batch;
use super::row;
use super::writer::Command;
use crate::ports::store::{Actor, Followup, StoreError};

/// Applies what a probe found.
pub(super) struct Probed {
    pub(super) desktop: DesktopId,
    pub(super) found: Option<Probe>,
    pub(super) now: Timestamp,
}

#[async_trait]
impl Command for Probed {
    type Answer = Vec<Followup>;

    async fn perform(&self, tx: &mut SqliteConnection) -> Result<Vec<Followup>, StoreError> {
        // The usual case, thousands of times a minute: nothing is to be decided.
        let Some(probe) = self.found else {
            sqlx::query("UPDATE desktops SET probed_at = ? WHERE id = ?")
                .bind(row::millis(self.now))
                .bind(row::bytes(self.desktop.0))
                .execute(tx)
                .await?;
            return Ok(vec![]);
        };
        let Some(mut loaded) = Loaded::of_desktop(tx, self.desktop).await? else {
            return Ok(vec![]);
        };
        let rules = loaded.pool.rules();
        let effects = loaded.assignment.probed(probe, rules, self.now).map_err(corrupt)?;
        let followups = loaded.followups(effects);
        let mut batch = Batch::new();
        loaded.save(&mut batch, &Actor::Broker, "probed", self.now, |_, _| {})?;
        batch
            .add("UPDATE desktops SET probed_at = ? WHERE id = ?", 1)
            .bind(row::millis(self.now))
            .bind(row::bytes(self.desktop.0));
        batch.run(tx).await?;
        Ok(followups)
    }
}

/// Applies who was seen logged on.
pub(super) struct Observed {
    pub(super) desktop: DesktopId,
    pub(super) observation: Observation,
    pub(super) now: Timestamp,
}

#[async_trait]
impl Command for Observed {
    type Answer = Vec<Followup>;

    async fn perform(&self, tx: &mut SqliteConnection) -> Result<Vec<Followup>, StoreError> {
        let Some(mut loaded) = Loaded::of_desktop(tx, self.desktop).await? else {
            return Ok(vec![]);
        };
        let rules = loaded.pool.rules();
        let effects = loaded
            .assignment
            .observed(self.observation.clone(), rules, self.now)
            .map_err(corrupt)?;
        let followups = loaded.followups(effects);
        let mut batch = Batch::new();
        loaded.save(&mut batch, &Actor::Broker, "observed", self.now, |_, _| {})?;
        batch.run(tx).await?;
        Ok(followups)
    }
}
