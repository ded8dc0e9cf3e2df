//! What happens to sessions after their tickets are redeemed.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use tegata_domain::assignment::Refused;
use tegata_domain::pool::GRACE_MAX;
use tegata_domain::session::{self, REQUESTED_LIMIT, STARTING_LIMIT};
use tegata_domain::time::Timestamp;
use tegata_proto::id::{DesktopId, LinkNumber, SessionId};
use uuid::Uuid;

use super::assignment::{Facts, Loaded, corrupt, loaded_columns, read_session};
use super::batch::Batch;
use super::row::{self, Columns};
use super::writer::Command;
use crate::ports::clock::Jump;
use crate::ports::store::{
    Actor, AuditRecord, EventError, FAMILIAR_FOR, Followup, SessionEvent, StoreError, action,
};

/// A session's own standing, over or not.
pub(super) type Own = (session::State, Facts);

/// Loads a session and, unless that has left the store, its desktop with all
/// sessions on it that are not over.
pub(super) async fn load(
    tx: &mut SqliteConnection,
    sid: SessionId,
) -> Result<Option<(Own, Option<Loaded>)>, StoreError> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        loaded_columns!(),
        " FROM (SELECT * FROM sessions WHERE sid = ?1 UNION ALL \
           SELECT o.* FROM sessions t JOIN sessions o ON o.desktop = t.desktop \
             AND o.state <> 'ended' AND o.sid <> ?1 WHERE t.sid = ?1) s \
         JOIN pools p ON p.name = s.pool LEFT JOIN desktops d ON d.id = s.desktop"
    ))
    .bind(row::bytes(sid.0))
    .fetch_all(tx)
    .await?;
    for row in &rows {
        if let Some((found, state, facts)) = read_session(row)?
            && found == sid
        {
            return Ok(Some(((state, facts), Loaded::read(&rows)?)));
        }
    }
    Ok(None)
}

#[async_trait]
impl Command for SessionEvent {
    type Answer = Result<Vec<Followup>, EventError>;

    async fn perform(&self, tx: &mut SqliteConnection) -> Result<Self::Answer, StoreError> {
        let Some(((state, facts), loaded)) = load(tx, self.sid).await? else {
            return Ok(Err(EventError::NoSuchSession(self.sid)));
        };
        if let Some(number) = self.link.filter(|number| *number != facts.link) {
            self.note_old_link(number, tx).await?;
            return Ok(Ok(vec![]));
        }
        // Only a ticket redeems, and only a grant returns.
        if matches!(self.event, session::Event::Redeemed | session::Event::Returned) {
            return Ok(Err(session::Refused { state, event: self.event }.into()));
        }
        let Some(mut loaded) = loaded else { return self.after_removal(state, facts.link) };
        let rules = loaded.pool.rules();
        let mut batch = Batch::new();
        // What lapsed by itself is nobody's deed, whoever comes first after it.
        let mut followups = vec![];
        if state.has_lapsed(self.now) {
            let tick = session::Event::Tick;
            let effects = loaded.assignment.session_event(self.sid, tick, rules, self.now);
            followups = loaded.followups(effects.map_err(corrupt)?);
            let name = event_name(tick);
            loaded.save(&mut batch, &Actor::Broker, name, self.now, |_, _| {})?;
            loaded.saved();
        }
        let before = loaded.assignment.sessions.get(&self.sid).copied();
        let answer = match loaded.assignment.session_event(self.sid, self.event, rules, self.now) {
            Ok(effects) => {
                self.save_link(&facts, &mut batch);
                let own = loaded.followups(effects);
                let name = event_name(self.event);
                loaded.save(&mut batch, &self.actor, name, self.now, |_, _| {})?;
                let stays = loaded.assignment.sessions.get(&self.sid).copied() == before;
                if let Some(asked) = self.asked().filter(|_| stays && !own.is_empty()) {
                    let mut audit = row::record(asked, &self.actor, self.now);
                    audit.sid = Some(self.sid);
                    audit.desktop = Some(loaded.record.id);
                    row::save_audit(&mut batch, &audit)?;
                }
                for more in own {
                    if !followups.contains(&more) {
                        followups.push(more);
                    }
                }
                Ok(followups)
            }
            Err(Refused::Session(refused)) => Err(EventError::Refused(refused)),
            Err(refused @ (Refused::NotHere(_) | Refused::Desktop(_))) => {
                return Err(corrupt(refused));
            }
        };
        batch.run(tx).await?;
        Ok(answer)
    }
}

impl SessionEvent {
    /// Late words about a session whose desktop has left the store: it is over,
    /// and all that is left is to say so to a gateway.
    fn after_removal(
        &self,
        state: session::State,
        link: LinkNumber,
    ) -> Result<Result<Vec<Followup>, EventError>, StoreError> {
        let session::State::Ended { cause } = state else {
            return Err(StoreError::Corrupt { what: "session without a desktop" });
        };
        let close = Followup::CloseLinks { sid: self.sid, link, code: cause.code() };
        Ok(Ok(if self.event == session::Event::Attached { vec![close] } else { vec![] }))
    }

    /// Names what somebody asks for that may have links closed without a change of
    /// state, which would be recorded.
    fn asked(&self) -> Option<&'static str> {
        match self.event {
            session::Event::Disconnected => Some(action::SESSION_DISCONNECTING),
            session::Event::EndWanted(_) => Some(action::SESSION_TERMINATING),
            session::Event::Redeemed
            | session::Event::Returned
            | session::Event::Attached
            | session::Event::DialFailed
            | session::Event::NotDialled
            | session::Event::LinkLost
            | session::Event::DesktopClosed
            | session::Event::LoggedOff
            | session::Event::Closed
            | session::Event::Tick => None,
        }
    }

    fn save_link(&self, facts: &Facts, batch: &mut Batch) {
        match facts.link_open {
            None if self.event == session::Event::Attached => open_link(batch, self.sid, self.now),
            Some(true) if closes_link(self.event) => self.close_link(facts.link, batch),
            None | Some(_) => {}
        }
    }

    /// A link that was superseded: its end is kept, and changes nothing else.
    async fn note_old_link(
        &self,
        number: LinkNumber,
        tx: &mut SqliteConnection,
    ) -> Result<(), StoreError> {
        let open =
            sqlx::query("SELECT 1 FROM links WHERE sid = ? AND number = ? AND ended_at IS NULL")
                .bind(row::bytes(self.sid.0))
                .bind(number.0.cast_signed())
                .fetch_optional(&mut *tx)
                .await?;
        let mut batch = Batch::new();
        if open.is_some() && closes_link(self.event) {
            self.close_link(number, &mut batch);
        }
        batch.run(tx).await
    }

    fn close_link(&self, number: LinkNumber, batch: &mut Batch) {
        batch
            .add(
                "UPDATE links SET ended_at = ?, ended_by = ?, up = ?, down = ?, last_byte_at = ?, \
                 input_minutes = ? \
                 WHERE sid = ? AND number = ?",
                1,
            )
            .bind(row::millis(self.now))
            .bind(event_name(self.event))
            .bind(self.carried.map(|carried| carried.up.cast_signed()))
            .bind(self.carried.map(|carried| carried.down.cast_signed()))
            .bind(self.carried.map(|carried| row::millis(carried.last_byte_at)))
            .bind(self.carried.and_then(|carried| carried.input_minutes))
            .bind(row::bytes(self.sid.0))
            .bind(number.0.cast_signed());
    }
}

/// Writes the beginning of a link's interval.
fn open_link(batch: &mut Batch, sid: SessionId, now: Timestamp) {
    batch
        .add(
            "INSERT INTO links (sid, number, gateway, boot, class, started_at) \
             SELECT sid, link, gateway, boot, class, ? FROM sessions WHERE sid = ?",
            1,
        )
        .bind(row::millis(now))
        .bind(row::bytes(sid.0));
}

/// Tells whether the link that an event happened to is over by it.
fn closes_link(event: session::Event) -> bool {
    match event {
        session::Event::DialFailed
        | session::Event::NotDialled
        | session::Event::LinkLost
        | session::Event::DesktopClosed
        | session::Event::LoggedOff
        | session::Event::Closed => true,
        session::Event::Redeemed
        | session::Event::Returned
        | session::Event::Attached
        | session::Event::Disconnected
        | session::Event::EndWanted(_)
        | session::Event::Tick => false,
    }
}

/// Names an event for the audit trail and for the end of a link.
pub(super) fn event_name(event: session::Event) -> &'static str {
    match event {
        session::Event::Redeemed => "redeemed",
        session::Event::Returned => "returned",
        session::Event::Attached => "attached",
        session::Event::DialFailed => "dial_failed",
        session::Event::NotDialled => "not_dialled",
        session::Event::LinkLost => "link_lost",
        session::Event::DesktopClosed => "desktop_closed",
        session::Event::LoggedOff => "logged_off",
        session::Event::Disconnected => "disconnected",
        session::Event::EndWanted(_) => "end_wanted",
        session::Event::Closed => "closed",
        session::Event::Tick => "tick",
    }
}

/// Settles what is overdue and lists what has to be done again.
pub(super) struct Due {
    pub(super) now: Timestamp,
    pub(super) limit: u32,
}

#[async_trait]
impl Command for Due {
    type Answer = Vec<Followup>;

    async fn perform(&self, tx: &mut SqliteConnection) -> Result<Vec<Followup>, StoreError> {
        // The last two are shuffled, so that those which never get done cannot keep
        // the others out of the limit for ever.
        let rows = sqlx::query(
            "SELECT * FROM (SELECT desktop FROM sessions WHERE deadline <= ?1 \
               ORDER BY deadline LIMIT ?2) \
             UNION SELECT * FROM (SELECT desktop FROM sessions WHERE deadline > ?3 \
               ORDER BY deadline DESC LIMIT ?2) \
             UNION SELECT * FROM (SELECT desktop FROM sessions WHERE ends_at <= ?1 \
               AND state <> 'ended' AND state <> 'ending' ORDER BY ends_at LIMIT ?2) \
             UNION SELECT * FROM (SELECT desktop FROM sessions WHERE state <> 'ended' \
               AND state = 'ending' ORDER BY random() LIMIT ?2) \
             UNION SELECT * FROM (SELECT id FROM desktops WHERE state = 'recycling' \
               ORDER BY random() LIMIT ?2)",
        )
        .bind(row::millis(self.now))
        .bind(self.limit)
        // No deadline is set so far ahead but by a clock that has been set back since.
        .bind(row::millis(self.now.after(GRACE_MAX)))
        .fetch_all(&mut *tx)
        .await?;
        sqlx::query(
            "DELETE FROM familiar WHERE (user, source) IN \
             (SELECT user, source FROM familiar WHERE last_seen <= ? ORDER BY last_seen LIMIT ?)",
        )
        .bind(row::millis(self.now.before(FAMILIAR_FOR)))
        .bind(self.limit)
        .execute(&mut *tx)
        .await?;
        let mut followups = Vec::new();
        for desktop in desktops(&rows)? {
            let Some(mut loaded) = Loaded::of_desktop(tx, desktop).await? else { continue };
            let rules = loaded.pool.rules();
            let effects = loaded.assignment.due(rules, self.now).map_err(corrupt)?;
            followups.extend(loaded.followups(effects));
            let mut batch = Batch::new();
            let name = event_name(session::Event::Tick);
            loaded.save(&mut batch, &Actor::Broker, name, self.now, |_, _| {})?;
            batch.run(tx).await?;
        }
        Ok(followups)
    }
}

/// Longer than a jump stays unseen while the store serves.
const MOMENTS: Duration = Duration::from_secs(10);

/// Allows for a clock that was set.
pub(super) struct Jumped {
    pub(super) jump: Jump,
    pub(super) now: Timestamp,
}

#[async_trait]
impl Command for Jumped {
    type Answer = ();

    async fn perform(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        let (what, by) = match self.jump {
            Jump::Ahead(by) => {
                self.put_off(tx, by).await?;
                ("ahead_ms", by)
            }
            Jump::Back(by) => {
                self.take_back(tx, by).await?;
                ("back_ms", by)
            }
        };
        // By the clock of before, or while nobody had looked.
        let short = REQUESTED_LIMIT.max(STARTING_LIMIT);
        sqlx::query(
            "UPDATE sessions SET deadline = min(deadline, iif(state = 'detached', ?1 + \
             (SELECT json_extract(spec, '$.grace_ms') FROM pools WHERE name = sessions.pool), ?2)) \
             WHERE deadline IS NOT NULL",
        )
        .bind(row::millis(self.now))
        .bind(row::millis(self.now.after(short)))
        .execute(&mut *tx)
        .await?;
        let mut batch = Batch::new();
        let record = AuditRecord {
            at: self.now,
            action: action::CLOCK_JUMPED.to_owned(),
            actor: Actor::Broker,
            sid: None,
            desktop: None,
            detail: [(what.to_owned(), by.as_millis().to_string())].into(),
        };
        row::save_audit(&mut batch, &record)?;
        batch.run(tx).await
    }
}

impl Jumped {
    /// What was due before stays so, and what began since the jump knows nothing of it.
    async fn put_off(&self, tx: &mut SqliteConnection, by: Duration) -> Result<(), StoreError> {
        let before = row::millis(self.now.before(by));
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        // A sum past the column's range is a REAL, and never the lesser of the two.
        sqlx::query("UPDATE sessions SET deadline = min(deadline + ?1, ?2) WHERE deadline > ?3")
            .bind(by)
            .bind(i64::MAX)
            .bind(before)
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "UPDATE sessions SET ahead = min(ahead + ?1, ?2), ends_at = min(ends_at + ?1, ?2) \
             WHERE state <> 'ended' AND state <> 'ending' AND created_at + ahead <= ?3 \
             AND (ends_at IS NULL OR ends_at > ?3)",
        )
        .bind(by)
        .bind(i64::MAX)
        .bind(before)
        .execute(&mut *tx)
        .await?;
        sqlx::query("UPDATE desktops SET since = min(since + ?1, ?2) WHERE state = 'recycling'")
            .bind(by)
            .bind(row::millis(self.now))
            .execute(tx)
            .await?;
        Ok(())
    }

    /// What began within the last moments did so by the clock as it is now.
    async fn take_back(&self, tx: &mut SqliteConnection, by: Duration) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE sessions SET ahead = max(ahead - ?1, ?2), ends_at = max(ends_at - ?1, 0) \
             WHERE state <> 'ended' AND state <> 'ending' AND NOT created_at BETWEEN ?3 AND ?4",
        )
        .bind(i64::try_from(by.as_millis()).unwrap_or(i64::MAX))
        .bind(-i64::MAX)
        .bind(row::millis(self.now.before(MOMENTS)))
        .bind(row::millis(self.now))
        .execute(tx)
        .await?;
        Ok(())
    }
}

/// Ends the links of gateways that are gone.
pub(super) struct Recover {
    pub(super) boot: Uuid,
    pub(super) now: Timestamp,
}

/// Why links ended that no gateway spoke of any more.
const GATEWAY_LOST: &str = "gateway_lost";

#[async_trait]
impl Command for Recover {
    type Answer = u32;

    async fn perform(&self, tx: &mut SqliteConnection) -> Result<u32, StoreError> {
        let rows = sqlx::query(
            "SELECT DISTINCT desktop FROM sessions WHERE state <> 'ended' \
             AND state IN ('starting', 'active', 'ending') AND boot <> ?",
        )
        .bind(row::bytes(self.boot))
        .fetch_all(&mut *tx)
        .await?;
        let mut changed = 0;
        for desktop in desktops(&rows)? {
            let Some(mut loaded) = Loaded::of_desktop(tx, desktop).await? else { continue };
            changed += self.lose_links(&mut loaded)?;
            let mut batch = Batch::new();
            loaded.save(&mut batch, &Actor::Broker, GATEWAY_LOST, self.now, |_, _| {})?;
            batch.run(tx).await?;
        }
        sqlx::query(
            "UPDATE links SET ended_at = ?, ended_by = ? WHERE ended_at IS NULL AND boot <> ?",
        )
        .bind(row::millis(self.now))
        .bind(GATEWAY_LOST)
        .bind(row::bytes(self.boot))
        .execute(tx)
        .await?;
        Ok(changed)
    }
}

impl Recover {
    fn lose_links(&self, loaded: &mut Loaded) -> Result<u32, StoreError> {
        let rules = loaded.pool.rules();
        let mut changed = 0;
        for (sid, facts) in loaded.facts.clone() {
            let carried = match loaded.assignment.sessions.get(&sid) {
                Some(
                    session::State::Starting { .. }
                    | session::State::Active
                    | session::State::Returning { .. }
                    | session::State::Ending { .. },
                ) => facts.boot.is_some_and(|boot| boot != self.boot),
                Some(
                    session::State::Requested { .. }
                    | session::State::Detached { .. }
                    | session::State::Ended { .. },
                )
                | None => false,
            };
            if carried {
                // Nothing of them is left there, nor is anything kept.
                let closed = session::Event::Closed;
                let effects = loaded
                    .assignment
                    .session_event(sid, closed, rules, self.now)
                    .map_err(corrupt)?;
                // What is to be done outside is found by the next pass.
                loaded.followups(effects);
                changed += 1;
            }
        }
        Ok(changed)
    }
}

fn desktops(rows: &[SqliteRow]) -> Result<BTreeSet<DesktopId>, StoreError> {
    rows.iter().map(|row| Columns::of("desktop", row).id("desktop").map(DesktopId)).collect()
}
