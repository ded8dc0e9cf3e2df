//! A link is found to come from another network than before.

use async_trait::async_trait;
use sqlx::SqliteConnection;
use tegata_proto::code::Code;

use super::assignment::{Facts, Loaded};
use super::batch::Batch;
use super::events::load;
use super::row;
use super::writer::Command;
use crate::ports::store::{Actor, Moved, MovedError, Place, StoreError, action};

#[async_trait]
impl Command for Moved {
    type Answer = Result<Place, MovedError>;

    async fn perform(&self, tx: &mut SqliteConnection) -> Result<Self::Answer, StoreError> {
        let Some((_, Some(loaded))) = load(tx, self.sid).await? else {
            return Ok(Err(MovedError::NotCarried));
        };
        let (Some(facts), Some(state)) =
            (loaded.facts.get(&self.sid), loaded.assignment.sessions.get(&self.sid))
        else {
            return Ok(Err(MovedError::NotCarried));
        };
        let is_last = facts.link == self.link && loaded.record.desktop.epoch == self.epoch;
        if !is_last || !state.is_carried() {
            return Ok(Err(MovedError::NotCarried));
        }
        let terms = loaded.pool.terms(&self.class);
        let ends_at = terms.ends_at(facts.arrival);
        let verdict = terms.judge(facts.arrival, self.now);
        // A link that may not go on is closed, and its session goes on from elsewhere: it
        // has the time that it had.
        let kept = match verdict {
            Ok(()) | Err(Code::TimeLimit) => ends_at,
            Err(_) => facts.ends_at,
        };
        // Told again, since the answer was lost.
        if facts.class != self.class {
            let mut batch = Batch::new();
            self.save(&loaded, facts, verdict.err(), &mut batch)?;
            batch
                .add("UPDATE sessions SET class = ?, ends_at = ? WHERE sid = ?", 1)
                .bind(self.class.clone())
                .bind(kept.map(row::millis))
                .bind(row::bytes(self.sid.0));
            batch.run(tx).await?;
        }
        Ok(Ok(Place { verdict, policy: terms.policy, idle: terms.idle, ends_at }))
    }
}

impl Moved {
    /// Writes the record, and where the link went on if it had begun.
    fn save(
        &self,
        loaded: &Loaded,
        facts: &Facts,
        refused: Option<Code>,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        let actor = Actor::User(facts.user.clone());
        let mut audit = row::record(action::SESSION_CLASS_CHANGED, &actor, self.now);
        audit.sid = Some(self.sid);
        audit.desktop = Some(loaded.record.id);
        row::note(&mut audit, "link", self.link);
        row::note(&mut audit, "from", &facts.class);
        row::note(&mut audit, "to", &self.class);
        if let Some(code) = refused {
            row::note(&mut audit, "code", code);
        }
        row::save_audit(batch, &audit)?;
        if facts.link_open == Some(true) {
            batch
                .add(
                    "INSERT INTO moves (sid, number, at, class) VALUES (?, ?, ?, ?) \
                     ON CONFLICT (sid, number, at) DO UPDATE SET class = excluded.class",
                    1,
                )
                .bind(row::bytes(self.sid.0))
                .bind(self.link.0.cast_signed())
                .bind(row::millis(self.now))
                .bind(self.class.clone());
        }
        Ok(())
    }
}
