//! A person gets a desktop.

use async_trait::async_trait;
use sqlx::SqliteConnection;
use tegata_domain::assignment::Refused;
use tegata_domain::desktop::Holder;
use tegata_domain::placement::{Placement, place};
use tegata_domain::pool::Pool;
use tegata_domain::pool::terms::Takeover;
use tegata_domain::session;
use tegata_proto::id::SessionId;
use tegata_proto::policy::Protocol;

use super::assignment::{Loaded, corrupt, loaded_columns};
use super::batch::Batch;
use super::row::{self, Columns};
use super::writer::Command;
use crate::ports::store::{
    Actor, Assign, AssignError, Assigned, AuditRecord, DesktopRecord, REQUESTED_MAX, StoreError,
};

/// The pool, and with it the desktop that the person holds and the free one that
/// has been idle longest. (`PostgreSQL`: the second `FOR UPDATE SKIP LOCKED`.)
const CANDIDATES: &str = concat!(
    "WITH candidate (id, held) AS ( \
       SELECT id, TRUE FROM desktops WHERE pool = ?1 AND holder = ?2 \
       UNION ALL \
       SELECT * FROM (SELECT id, FALSE FROM desktops WHERE pool = ?1 AND state = 'ready' \
         ORDER BY since, id LIMIT 1)) \
     SELECT c.held, ",
    loaded_columns!(),
    " FROM pools p LEFT JOIN candidate c LEFT JOIN desktops d ON d.id = c.id \
     LEFT JOIN sessions s ON s.desktop = d.id AND s.state <> 'ended' \
     WHERE p.name = ?1"
);

#[async_trait]
impl Command for Assign {
    type Answer = Result<Assigned, AssignError>;

    async fn perform(&self, tx: &mut SqliteConnection) -> Result<Self::Answer, StoreError> {
        let Some((pool, held, idle)) = self.candidates(tx).await? else {
            return Ok(Err(AssignError::NoSuchPool));
        };
        let (mut chosen, returning) = match place(held, idle) {
            Placement::Return(own) => (own, true),
            Placement::Take(free) => (free, false),
            Placement::Wait => return Ok(Err(AssignError::Exhausted)),
        };
        let name = chosen.record.name.clone();
        let pin = chosen.record.desktop.pin;
        if pool.raw().protocol == Protocol::Rdp && pin.is_none() {
            return Ok(Err(AssignError::NotProbed(name)));
        }
        let may_take_over = pool.raw().takeover == Takeover::Allow;
        if !may_take_over && chosen.assignment.is_carried_beside(self.sid) {
            return Ok(Err(AssignError::InUse(name)));
        }
        let rules = pool.rules();
        let holder = Holder { user: self.user.clone(), account: self.account.clone() };
        chosen
            .assignment
            .assign(self.sid, holder, rules, self.now)
            .map_err(|refused| corrupt(Refused::Desktop(refused)))?;
        if let Some(oldest) = one_too_many(&chosen) {
            let event = session::Event::EndWanted(session::Cause::NeverAttached);
            chosen.assignment.session_event(oldest, event, rules, self.now).map_err(corrupt)?;
        }

        let mut batch = Batch::new();
        self.save(&chosen.record, &chosen, &mut batch);
        let actor = Actor::User(self.user.clone());
        chosen.save(&mut batch, &actor, "login", self.now, |sid, audit| {
            if sid == self.sid {
                self.note(&chosen, returning, audit);
            }
        })?;
        batch.run(tx).await?;
        let epoch = chosen.assignment.desktop.epoch;
        Ok(Ok(Assigned { desktop: chosen.record.id, name, epoch, pin, returning }))
    }
}

impl Assign {
    async fn candidates(
        &self,
        tx: &mut SqliteConnection,
    ) -> Result<Option<(Pool, Option<Loaded>, Option<Loaded>)>, StoreError> {
        let rows = sqlx::query(CANDIDATES)
            .bind(self.pool.as_str())
            .bind(self.user.to_string())
            .fetch_all(tx)
            .await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let pool = row::pool(first)?;
        let (mut held, mut idle) = (Vec::new(), Vec::new());
        for row in &rows {
            match Columns::of("desktop", row).get::<Option<bool>>("held")? {
                Some(true) => held.push(row),
                Some(false) => idle.push(row),
                None => {}
            }
        }
        Ok(Some((pool, Loaded::read(held)?, Loaded::read(idle)?)))
    }

    /// Writes the person, where they came from, and the new session.
    fn save(&self, record: &DesktopRecord, loaded: &Loaded, batch: &mut Batch) {
        let state = session::State::requested(self.now);
        batch
            .add(
                "INSERT INTO people (user, display_name, account, unit, first_seen, last_seen) \
                 VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (user) DO UPDATE SET \
                 display_name = excluded.display_name, account = excluded.account, \
                 unit = excluded.unit, last_seen = excluded.last_seen",
                1,
            )
            .bind(self.user.to_string())
            .bind(self.display_name.clone())
            .bind(self.account.clone())
            .bind(self.unit.clone())
            .bind(row::millis(self.now))
            .bind(row::millis(self.now));
        batch
            .add(
                "INSERT INTO familiar (user, source, last_seen) VALUES (?, ?, ?) \
                 ON CONFLICT (user, source) DO UPDATE SET last_seen = excluded.last_seen",
                1,
            )
            .bind(self.user.to_string())
            .bind(self.source.clone())
            .bind(row::millis(self.now));
        batch
            .add(
                "INSERT INTO sessions (sid, user, pool, desktop, seat, epoch, state, deadline, \
                 created_at, password_at, unit, device, txn, login_class, class, link, \
                 incarnation) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0)",
                1,
            )
            .bind(row::bytes(self.sid.0))
            .bind(self.user.to_string())
            .bind(self.pool.to_string())
            .bind(row::bytes(record.id.0))
            .bind(record.name.to_string())
            .bind(row::number(loaded.assignment.desktop.epoch))
            .bind(row::session_words(state).0)
            .bind(state.deadline().map(row::millis))
            .bind(row::millis(self.now))
            .bind(row::millis(self.password_at))
            .bind(self.unit.clone())
            .bind(self.device.clone())
            .bind(self.txn.clone())
            .bind(self.class.clone())
            .bind(self.class.clone());
    }

    fn note(&self, loaded: &Loaded, returning: bool, audit: &mut AuditRecord) {
        row::note(audit, "txn", &self.txn);
        row::note(audit, "pool", &self.pool);
        row::note(audit, "seat", &loaded.record.name);
        row::note(audit, "epoch", loaded.assignment.desktop.epoch.0);
        row::note(audit, "returning", returning);
    }
}

/// Names the oldest of too many sessions whose tickets nobody used.
fn one_too_many(loaded: &Loaded) -> Option<SessionId> {
    let mut waiting = loaded.facts.keys().filter(|sid| {
        loaded
            .assignment
            .sessions
            .get(sid)
            .is_some_and(|state| matches!(state, session::State::Requested { .. }))
    });
    let oldest = waiting.next().copied();
    let others = u32::try_from(waiting.count()).unwrap_or(u32::MAX);
    oldest.filter(|_| others + 1 >= REQUESTED_MAX)
}
