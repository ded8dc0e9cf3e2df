//! A ticket is used up, or a grant opens a link again.

use async_trait::async_trait;
use sqlx::SqliteConnection;
use tegata_domain::assignment::Refused;
use tegata_domain::pool::terms::{Takeover, Terms};
use tegata_domain::session::Event;
use tegata_domain::ticket::{Standing, judge, judge_grant};
use tegata_proto::code::Code;
use tegata_proto::id::{Incarnation, SessionId};

use super::assignment::{Facts, Loaded, corrupt};
use super::batch::Batch;
use super::events::{event_name, load};
use super::row::{self, Columns};
use super::writer::Command;
use crate::ports::signer::TokenKind;
use crate::ports::store::{Actor, AuditRecord, Redeem, RedeemError, Redeemed, StoreError};

/// How a ticket was used before.
struct Use {
    same: bool,
    incarnation: Incarnation,
}

#[async_trait]
impl Command for Redeem {
    type Answer = Result<Redeemed, RedeemError>;

    async fn perform(&self, tx: &mut SqliteConnection) -> Result<Self::Answer, StoreError> {
        let used = match self.kind {
            TokenKind::Ticket => self.earlier_use(tx).await?,
            TokenKind::Resume => None,
        };
        // A session without its desktop is over.
        let loaded = load(tx, self.claims.sid).await?.and_then(|(_, loaded)| loaded);
        let redeemed = match (loaded, used) {
            (Some(loaded), Some(used)) => self.repeated(&loaded, &used),
            (None, Some(_)) => Err(Code::TicketUsed),
            (Some(loaded), None) => self.open(loaded, tx).await?,
            (None, None) => Err(Code::SessionEnded),
        };
        Ok(redeemed.map_err(RedeemError::Refused))
    }
}

impl Redeem {
    async fn earlier_use(&self, tx: &mut SqliteConnection) -> Result<Option<Use>, StoreError> {
        let row =
            sqlx::query("SELECT sid, boot, exporter, link, incarnation FROM tickets WHERE jti = ?")
                .bind(row::bytes(self.claims.jti.0))
                .fetch_optional(tx)
                .await?;
        let Some(row) = row else { return Ok(None) };
        let columns = Columns::of("ticket", &row);
        Ok(Some(Use {
            same: SessionId(columns.id("sid")?) == self.claims.sid
                && columns.id("boot")? == self.boot
                && columns.optional_digest("exporter")? == Some(self.exporter)
                && columns.get::<i64>("link")?.cast_unsigned() == self.link.0,
            incarnation: Incarnation(columns.unsigned("incarnation")?),
        }))
    }

    /// The first answer once more, if the same asks while the session lives.
    fn repeated(&self, loaded: &Loaded, used: &Use) -> Result<Redeemed, Code> {
        let lives =
            loaded.assignment.sessions.get(&self.claims.sid).is_some_and(|state| state.is_live());
        if used.same && lives {
            let facts = loaded.facts.get(&self.claims.sid).ok_or(Code::SessionEnded)?;
            Ok(self.answer(loaded, facts, used.incarnation))
        } else {
            Err(Code::TicketUsed)
        }
    }

    async fn open(
        &self,
        mut loaded: Loaded,
        tx: &mut SqliteConnection,
    ) -> Result<Result<Redeemed, Code>, StoreError> {
        let sid = self.claims.sid;
        let (Some(facts), Some(state)) =
            (loaded.facts.get(&sid).cloned(), loaded.assignment.sessions.get(&sid).copied())
        else {
            return Ok(Err(Code::SessionEnded));
        };
        let standing = Standing { user: &facts.user, state, highest_link: facts.link };
        let desktop = &loaded.record.desktop;
        let judged = match self.kind {
            TokenKind::Ticket => judge(&self.claims, self.link, &standing, desktop, self.now),
            TokenKind::Resume => judge_grant(&self.claims, self.link, &standing, desktop, self.now),
        };
        match judged {
            Ok(()) => {}
            Err(Code::LinkStale) if self.repeats(&facts) => {
                return Ok(Ok(self.answer(&loaded, &facts, facts.incarnation)));
            }
            Err(code) => return Ok(Err(code)),
        }
        let terms = loaded.pool.terms(&self.class);
        if let Err(code) = self.judge_place(&terms, &facts, &loaded) {
            return Ok(Err(code));
        }
        let Some(incarnation) = self.incarnation(&facts, &terms) else {
            return Ok(Err(Code::ResumeLost));
        };
        let rules = loaded.pool.rules();
        let (event, moved) = match self.kind {
            TokenKind::Ticket => {
                (Event::Redeemed, loaded.assignment.redeemed(sid, rules, self.now))
            }
            TokenKind::Resume => {
                (Event::Returned, loaded.assignment.returned(sid, rules, self.now))
            }
        };
        let effects = match moved {
            Ok(effects) => effects,
            Err(Refused::Session(_)) => return Ok(Err(Code::SessionEnded)),
            Err(refused @ (Refused::NotHere(_) | Refused::Desktop(_))) => {
                return Err(corrupt(refused));
            }
        };
        let followups = loaded.followups(effects);
        let mut batch = Batch::new();
        self.save(incarnation, &terms, &facts, &mut batch)?;
        loaded.acts_on(sid);
        let actor = Actor::User(facts.user.clone());
        loaded.save(&mut batch, &actor, event_name(event), self.now, |of, audit| {
            if of == sid {
                self.note(audit);
            }
        })?;
        batch.run(tx).await?;
        Ok(Ok(Redeemed { followups, ..self.answer(&loaded, &facts, incarnation) }))
    }

    /// Judges whether the session may have a link from where this one comes, and this
    /// one beside those of others.
    fn judge_place(&self, terms: &Terms, facts: &Facts, loaded: &Loaded) -> Result<(), Code> {
        terms.judge(facts.arrival, self.now)?;
        let takes_over = match self.kind {
            TokenKind::Ticket => loaded.assignment.is_carried_beside(self.claims.sid),
            TokenKind::Resume => false,
        };
        match loaded.pool.raw().takeover {
            Takeover::Refuse if takes_over => Err(Code::InUse),
            Takeover::Refuse | Takeover::Allow => Ok(()),
        }
    }

    /// Tells whether the session's last link was let in by this very grant.
    fn repeats(&self, facts: &Facts) -> bool {
        self.kind == TokenKind::Resume
            && facts.link == self.link
            && facts.boot == Some(self.boot)
            && facts.exporter == Some(self.exporter)
    }

    /// Returns which connection to the desktop the link is on: the one that is to
    /// be gone on with, if this gateway has it and it was made for what the thin
    /// client may do now, or else a new one.
    fn incarnation(&self, facts: &Facts, terms: &Terms) -> Option<Incarnation> {
        match (self.kind, self.resume) {
            (TokenKind::Ticket | TokenKind::Resume, None) => {
                Some(Incarnation(facts.incarnation.0 + 1))
            }
            (TokenKind::Resume, Some(kept)) => {
                let is_there = kept == facts.incarnation && facts.boot == Some(self.boot);
                (is_there && facts.policy == Some(terms.policy)).then_some(kept)
            }
            (TokenKind::Ticket, Some(_)) => None,
        }
    }

    fn note(&self, audit: &mut AuditRecord) {
        row::note(audit, "jti", self.claims.jti);
        row::note(audit, "link", self.link);
        row::note(audit, "gateway", &self.gateway);
        row::note(audit, "class", &self.class);
        match self.kind {
            TokenKind::Ticket => {}
            TokenKind::Resume => row::note(audit, "resumed", self.resume.is_some()),
        }
    }

    fn answer(&self, loaded: &Loaded, facts: &Facts, incarnation: Incarnation) -> Redeemed {
        let (pool, terms) = (loaded.pool.raw(), loaded.pool.terms(&self.class));
        Redeemed {
            sid: self.claims.sid,
            epoch: loaded.record.desktop.epoch,
            target: loaded.record.address,
            protocol: pool.protocol,
            policy: terms.policy,
            idle: terms.idle,
            ends_at: terms.ends_at(facts.arrival),
            gateways: pool.gateways.clone(),
            incarnation,
            hold: loaded.pool.hold(),
            grace: loaded.pool.grace(),
            followups: vec![],
        }
    }

    fn save(
        &self,
        incarnation: Incarnation,
        terms: &Terms,
        facts: &Facts,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        let sid = row::bytes(self.claims.sid.0);
        let incarnation = i64::try_from(incarnation.0).unwrap_or(i64::MAX);
        let link = self.link.0.cast_signed();
        match self.kind {
            // The primary key is the arbiter of I4.
            TokenKind::Ticket => {
                batch
                    .add(
                        "INSERT INTO tickets \
                         (jti, sid, boot, exporter, link, incarnation, redeemed_at) \
                         VALUES (?, ?, ?, ?, ?, ?, ?)",
                        1,
                    )
                    .bind(row::bytes(self.claims.jti.0))
                    .bind(sid.clone())
                    .bind(row::bytes(self.boot))
                    .bind(self.exporter.0.to_vec())
                    .bind(link)
                    .bind(incarnation)
                    .bind(row::millis(self.now));
            }
            TokenKind::Resume => {}
        }
        batch
            .add(
                "UPDATE sessions SET link = ?, gateway = ?, boot = ?, class = ?, \
                 incarnation = ?, key = ?, exporter = ?, policy = ?, ends_at = ? \
                 WHERE sid = ?",
                1,
            )
            .bind(link)
            .bind(self.gateway.to_string())
            .bind(row::bytes(self.boot))
            .bind(self.class.clone())
            .bind(incarnation)
            .bind(self.claims.cnf.jkt.0.to_vec())
            .bind(self.exporter.0.to_vec())
            .bind(row::json(&terms.policy)?)
            .bind(terms.ends_at(facts.arrival).map(row::millis))
            .bind(sid);
        Ok(())
    }
}
