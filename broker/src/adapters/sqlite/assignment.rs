//! A desktop with its sessions: loaded, moved on by the domain, written back.
//!
//! Every command that changes either goes through [`Loaded::save`], which finds
//! out by itself what changed and what the audit trail has to be told.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use tegata_domain::assignment::{Assignment, Effect, Refused};
use tegata_domain::desktop;
use tegata_domain::pool::Pool;
use tegata_domain::pool::terms::Arrival;
use tegata_domain::session;
use tegata_domain::time::Timestamp;
use tegata_proto::encoding::Sha256;
use tegata_proto::id::{DesktopId, Incarnation, LinkNumber, SessionId, UserId};
use tegata_proto::policy::Policy;
use uuid::Uuid;

use super::batch::Batch;
use super::row::{self, Columns};
use crate::ports::store::{
    Actor, AuditRecord, DesktopRecord, Followup, LogOff, OccupancyTarget, StoreError, action,
};

/// The columns that [`Loaded`] reads, of `d`, `p` and `s`.
macro_rules! loaded_columns {
    () => {
        concat!(
            "p.spec, s.sid, s.user, s.state, s.deadline, s.cause, s.link, s.boot, s.exporter, \
             s.incarnation, s.class, s.policy, s.created_at, s.password_at, s.ahead, s.ends_at, \
             (SELECT l.ended_at IS NULL FROM links l WHERE l.sid = s.sid AND l.number = s.link) \
                AS link_open, ",
            $crate::adapters::sqlite::row::desktop_columns!()
        )
    };
}
pub(super) use loaded_columns;

/// What the decisions do not look at, and the commands do.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) user: UserId,
    pub(super) link: LinkNumber,
    /// Whether the interval of that link is open; nothing where none began.
    pub(super) link_open: Option<bool>,
    pub(super) boot: Option<Uuid>,
    pub(super) exporter: Option<Sha256>,
    pub(super) incarnation: Incarnation,
    /// What the thin client may do over the desktop's present connection.
    pub(super) policy: Option<Policy>,
    /// The network class of the last link, or of the login before the first.
    pub(super) class: String,
    pub(super) arrival: Arrival,
    pub(super) ends_at: Option<Timestamp>,
}

/// An assignment as it was found and as it is to be.
pub(super) struct Loaded {
    pub(super) pool: Pool,
    /// The desktop as it was found.
    pub(super) record: DesktopRecord,
    pub(super) facts: BTreeMap<SessionId, Facts>,
    pub(super) assignment: Assignment,
    before: BTreeMap<SessionId, session::State>,
    /// The session that something was done to though its state may be the same.
    acted_on: Option<SessionId>,
    removed: bool,
}

impl Loaded {
    /// Reads rows of [`loaded_columns`] of one desktop, one row a session.
    pub(super) fn read<'r>(
        rows: impl IntoIterator<Item = &'r SqliteRow>,
    ) -> Result<Option<Self>, StoreError> {
        let mut rows = rows.into_iter().peekable();
        let Some(first) = rows.peek() else { return Ok(None) };
        if Columns::of("desktop", first).optional_id("desktop_id")?.is_none() {
            return Ok(None);
        }
        let (pool, record) = (row::pool(first)?, row::desktop(first)?);
        let (mut facts, mut before) = (BTreeMap::new(), BTreeMap::new());
        for row in rows {
            if let Some((sid, state, fact)) = read_session(row)? {
                before.insert(sid, state);
                facts.insert(sid, fact);
            }
        }
        let assignment = joined(&record, &before, &facts);
        let (acted_on, removed) = (None, false);
        Ok(Some(Self { pool, record, facts, assignment, before, acted_on, removed }))
    }

    /// Loads a desktop and the sessions on it that are not over.
    pub(super) async fn of_desktop(
        tx: &mut SqliteConnection,
        desktop: DesktopId,
    ) -> Result<Option<Self>, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            loaded_columns!(),
            " FROM desktops d JOIN pools p ON p.name = d.pool \
             LEFT JOIN sessions s ON s.desktop = d.id AND s.state <> 'ended' WHERE d.id = ?"
        ))
        .bind(row::bytes(desktop.0))
        .fetch_all(tx)
        .await?;
        Self::read(&rows)
    }

    /// Has a session recorded though its state should be the same: somebody may
    /// come back twice within a millisecond.
    pub(super) fn acts_on(&mut self, sid: SessionId) {
        self.acted_on = Some(sid);
    }

    /// Takes what was written meanwhile for what was found.
    pub(super) fn saved(&mut self) {
        self.record.desktop = self.assignment.desktop.clone();
        self.before = self.assignment.sessions.clone();
        self.removed = false;
    }

    /// Names what has to be done outside.
    pub(super) fn followups(&mut self, effects: Vec<Effect>) -> Vec<Followup> {
        let logs_off = effects.contains(&Effect::LogOff);
        let mut followups = Vec::new();
        for effect in effects {
            let followup = match effect {
                Effect::CloseLinks { sid, code } => {
                    let link = self.facts.get(&sid).map_or(LinkNumber(0), |facts| facts.link);
                    Followup::CloseLinks { sid, link, code }
                }
                // A log-off is asked about by itself.
                Effect::AskOccupancy if logs_off => continue,
                Effect::AskOccupancy => Followup::AskOccupancy(self.target()),
                Effect::LogOff => match self.log_off() {
                    Some(due) => Followup::LogOff(due),
                    None => continue,
                },
                Effect::Freed => Followup::Freed(self.record.pool.clone()),
                Effect::Remove => {
                    self.removed = true;
                    continue;
                }
            };
            if !followups.contains(&followup) {
                followups.push(followup);
            }
        }
        followups
    }

    fn target(&self) -> OccupancyTarget {
        let holder = self.assignment.desktop.holder.as_ref();
        OccupancyTarget {
            desktop: self.record.id,
            name: self.record.name.clone(),
            address: self.record.address,
            account: holder.and_then(|holder| holder.account.clone()),
        }
    }

    fn log_off(&self) -> Option<LogOff> {
        let desktop = &self.assignment.desktop;
        match desktop.state {
            desktop::State::Recycling { since } => {
                Some(LogOff { target: self.target(), epoch: desktop.epoch, since })
            }
            desktop::State::Starting
            | desktop::State::Ready { .. }
            | desktop::State::Assigned
            | desktop::State::Draining
            | desktop::State::Quarantined { .. } => None,
        }
    }

    /// Writes what changed, with a record for each session whose state did, or
    /// for the desktop where no session's did. `note` completes the record of
    /// the session that the command is about.
    ///
    /// A session that was not there before is the command's own to write.
    pub(super) fn save(
        &self,
        batch: &mut Batch,
        actor: &Actor,
        event: &str,
        now: Timestamp,
        note: impl Fn(SessionId, &mut AuditRecord),
    ) -> Result<(), StoreError> {
        let mut told = false;
        for (sid, state) in self.put_off() {
            save_session(batch, sid, state, now);
        }
        // Those that lose the desktop before the one that gets it, for the index.
        let sessions = &self.assignment.sessions;
        let (starting, others): (Vec<_>, Vec<_>) = sessions
            .iter()
            .filter(|(sid, state)| {
                self.acted_on == Some(**sid)
                    || self.before.get(sid).is_none_or(|before| !before.is_as(**state))
            })
            .partition(|(_, state)| matches!(state, session::State::Starting { .. }));
        for (sid, state) in others.into_iter().chain(starting) {
            let mut audit = self.session_record(*sid, *state, actor, event, now);
            note(*sid, &mut audit);
            row::save_audit(batch, &audit)?;
            told = true;
            if self.before.contains_key(sid) {
                save_session(batch, *sid, *state, now);
            }
        }
        let desktop = &self.assignment.desktop;
        if self.removed {
            row::remove_desktop(batch, self.record.id, self.record.desktop.epoch);
        } else if *desktop != self.record.desktop {
            row::save_desktop(batch, self.record.id, desktop, self.record.desktop.epoch);
            if desktop.state == desktop::State::Starting && self.record.desktop.used {
                row::probe_now(batch, self.record.id);
            }
            if let Some(audit) = self.desktop_record(now).filter(|_| !told) {
                row::save_audit(batch, &audit)?;
            }
        }
        Ok(())
    }

    /// Returns the sessions that stand where they stood, with another deadline.
    fn put_off(&self) -> impl Iterator<Item = (SessionId, session::State)> {
        let sessions = self.assignment.sessions.iter().map(|(sid, state)| (*sid, *state));
        sessions.filter(|(sid, state)| {
            let before = self.before.get(sid);
            before.is_some_and(|before| before != state && before.is_as(*state))
        })
    }

    fn session_record(
        &self,
        sid: SessionId,
        state: session::State,
        actor: &Actor,
        event: &str,
        now: Timestamp,
    ) -> AuditRecord {
        let mut audit = row::record(action::of_session(state), actor, now);
        audit.sid = Some(sid);
        audit.desktop = Some(self.record.id);
        row::note(&mut audit, "event", event);
        if let session::State::Ending { cause } | session::State::Ended { cause } = state {
            row::note(&mut audit, "cause", row::word(cause));
        }
        let desktop = &self.assignment.desktop;
        if self.removed {
            row::note(&mut audit, "desktop_state", "removed");
        } else if !desktop.state.is_as(self.record.desktop.state) {
            row::note(&mut audit, "desktop_state", row::desktop_state(desktop.state));
        }
        audit
    }

    /// What befell the desktop by itself, if it is worth a record.
    fn desktop_record(&self, now: Timestamp) -> Option<AuditRecord> {
        let (before, desktop) = (&self.record.desktop, &self.assignment.desktop);
        let learnt = desktop.pin.filter(|_| before.pin.is_none());
        let action = if desktop.state.is_as(before.state) {
            learnt.map(|_| action::PIN_LEARNT)?
        } else {
            match desktop.state {
                desktop::State::Ready { .. } => action::DESKTOP_READY,
                desktop::State::Quarantined { .. } => action::DESKTOP_QUARANTINED,
                desktop::State::Starting if before.used => action::DESKTOP_RECYCLED,
                desktop::State::Starting
                | desktop::State::Assigned
                | desktop::State::Recycling { .. }
                | desktop::State::Draining => action::DESKTOP_SILENT,
            }
        };
        let mut audit = row::record(action, &Actor::Broker, now);
        audit.desktop = Some(self.record.id);
        row::note(&mut audit, "seat", &self.record.name);
        if let Some(pin) = learnt {
            row::note(&mut audit, "pin", pin);
        }
        if let desktop::State::Quarantined { reason, .. } = desktop.state {
            row::note(&mut audit, "reason", row::word(reason));
        }
        Some(audit)
    }
}

/// Joins what was read, as the domain looks at it.
fn joined(
    record: &DesktopRecord,
    sessions: &BTreeMap<SessionId, session::State>,
    facts: &BTreeMap<SessionId, Facts>,
) -> Assignment {
    let ends = facts.iter().filter_map(|(sid, facts)| Some((*sid, facts.ends_at?)));
    Assignment::new(record.desktop.clone(), sessions.clone()).with_ends(ends)
}

/// An assignment that breaks its invariant, or a desktop that contradicts its
/// session.
pub(super) fn corrupt(_: Refused) -> StoreError {
    StoreError::Corrupt { what: "desktop or session" }
}

/// Reads one session, if the row has one.
pub(super) fn read_session(
    row: &SqliteRow,
) -> Result<Option<(SessionId, session::State, Facts)>, StoreError> {
    let columns = Columns::of("session", row);
    let Some(sid) = columns.optional_id("sid")? else { return Ok(None) };
    let ahead: i64 = columns.get("ahead")?;
    let by = Duration::from_millis(ahead.unsigned_abs());
    let since = |column| {
        let at = columns.time(column)?;
        Ok::<_, StoreError>(if ahead < 0 { at.before(by) } else { at.after(by) })
    };
    let (began, password_at) = (since("created_at")?, since("password_at")?);
    let facts = Facts {
        user: columns.parse("user")?,
        link: LinkNumber(columns.get::<i64>("link")?.cast_unsigned()),
        link_open: columns.get("link_open")?,
        boot: columns.optional_id("boot")?,
        exporter: columns.optional_digest("exporter")?,
        incarnation: Incarnation(columns.unsigned("incarnation")?),
        policy: columns.optional_json("policy")?,
        class: columns.get("class")?,
        arrival: Arrival { began, password_at },
        ends_at: columns.optional_time("ends_at")?,
    };
    Ok(Some((SessionId(sid), row::session_state(&columns)?, facts)))
}

fn save_session(batch: &mut Batch, sid: SessionId, state: session::State, now: Timestamp) {
    let (name, cause) = row::session_words(state);
    let over = matches!(state, session::State::Ended { .. });
    batch
        .add(
            "UPDATE sessions SET state = ?, deadline = ?, cause = ?, ended_at = ? WHERE sid = ?",
            1,
        )
        .bind(name)
        .bind(state.deadline().map(row::millis))
        .bind(cause)
        .bind(over.then(|| row::millis(now)))
        .bind(row::bytes(sid.0));
}
