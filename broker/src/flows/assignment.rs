//! From a known person to a ticket: assign, commit, sign.
//!
//! A full pool is waited for here. The assignment, its session and the audit
//! record are durable before the ticket is signed (invariants I7 and I11).

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tegata_domain::pool::Pool;
use tegata_domain::time::Timestamp;
use tegata_edge::source::Prefix;
use tegata_proto::code::Code;
use tegata_proto::id::SessionId;
use tegata_proto::key::Thumbprint;
use tegata_proto::login::{Desktop, Gateway, TicketAnswer};
use tegata_proto::policy::Protocol;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};
use uuid::Uuid;

use crate::flows::tokens::{Bearer, Tokens};
use crate::flows::waiting::{Queued, WaitingRooms, Whence};
use crate::metrics::{Metrics, Phase};
use crate::ports::clock::Clock;
use crate::ports::directory::Person;
use crate::ports::signer::SignError;
use crate::ports::store::{Assign, AssignError, Assigned, Store};

/// How often somebody who waits looks for a free desktop without being woken.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What every ticket needs.
pub struct Assignments {
    /// Where assignments are kept.
    pub store: Arc<dyn Store>,
    /// What signs.
    pub tokens: Tokens,
    /// Who waits.
    pub rooms: Arc<WaitingRooms>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where durations are counted.
    pub metrics: Metrics,
    /// Where tickets are taken.
    pub gateways: Arc<dyn Fn() -> Vec<Gateway> + Send + Sync>,
}

/// A person who asks for a desktop.
pub struct Applicant {
    /// Who.
    pub person: Person,
    /// Of which pool; the person is entitled to it.
    pub pool: Arc<Pool>,
    /// The key of the agent's run.
    pub key: Thumbprint,
    /// Where they are.
    pub class: String,
    /// Which source that is, and its share of turns.
    pub source: (Prefix, NonZeroU32),
    /// When their password was checked.
    pub password_at: Timestamp,
    /// The device's own name for itself.
    pub device: Option<String>,
    /// The login, as log and audit name it.
    pub txn: String,
}

impl Applicant {
    fn whence(&self) -> Whence {
        (self.source.0, self.source.1, self.person.user.realm().clone())
    }
}

impl Assignments {
    /// Gives a person a desktop of the pool, waiting for one if need be; `tell`
    /// hears each change of their place.
    ///
    /// # Errors
    ///
    /// The code is what the agent is told. Nothing is assigned then.
    pub async fn assign(
        &self,
        applicant: &Applicant,
        mut tell: impl FnMut(Queued),
    ) -> Result<(SessionId, Assigned), Code> {
        let began = Instant::now();
        let sid = SessionId(Uuid::now_v7());
        let (pool, name) = (&applicant.pool, applicant.pool.name());
        if self.rooms.is_empty(name)
            && let Some(assigned) = self.try_assign(sid, applicant).await?
        {
            self.metrics.phase(Phase::Assign, began.elapsed());
            return Ok((sid, assigned));
        }
        // Their own desktop waits for nobody; a queue is for those without one.
        if let Some(assigned) = self.return_to_own(sid, applicant).await? {
            return Ok((sid, assigned));
        }

        let deadline = began + pool.queue_wait();
        let limit = pool.raw().queue_limit;
        let whence = applicant.whence();
        let place = self.rooms.join(name, whence, sid, limit).map_err(|_| Code::PoolExhausted)?;
        let _counted = Waiting::new(self.metrics.clone());
        let mut told = None;
        loop {
            // Before the look, so that what happens meanwhile is not missed.
            let moved = place.moved();
            let number = place.number().ok_or(Code::PoolExhausted)?;
            if told != Some(number) {
                let left = deadline.saturating_duration_since(Instant::now());
                let expected = place.expected(number).unwrap_or(left).min(left);
                tell(Queued { place: number, expected });
                told = Some(number);
            }
            if number == 1
                && let Some(assigned) = self.try_assign(sid, applicant).await?
            {
                drop(moved);
                place.served();
                self.metrics.phase(Phase::Assign, began.elapsed());
                return Ok((sid, assigned));
            }
            let look_again = (Instant::now() + LOOK_EVERY).min(deadline);
            let _woken_or_not = timeout_at(look_again, moved).await;
            if Instant::now() >= deadline {
                info!(pool = %name, "Nobody left the pool in time");
                return Err(Code::PoolExhausted);
            }
        }
    }

    /// Signs the ticket and the grant for an assignment that is durable.
    ///
    /// # Errors
    ///
    /// The code is what the agent is told; the assignment lapses by itself.
    pub fn ticket(
        &self,
        applicant: &Applicant,
        sid: SessionId,
        assigned: &Assigned,
    ) -> Result<TicketAnswer, Code> {
        let pool = applicant.pool.raw();
        let now = self.clock.now();
        let bearer = Bearer {
            user: applicant.person.user.clone(),
            sid,
            epoch: assigned.epoch,
            gateways: pool.gateways.clone(),
            key: applicant.key,
        };
        let failed = |error: SignError| {
            warn!(error = &error as &dyn std::error::Error, "Ticket not signed");
            Code::Internal
        };
        let grace = applicant.pool.grace();
        let rdp = pool.protocol == Protocol::Rdp;
        Ok(TicketAnswer {
            ticket: self.tokens.ticket(&bearer, now).map_err(failed)?,
            grant: self.tokens.grant(&bearer, grace, now).map_err(failed)?,
            gateways: (self.gateways)(),
            desktop: Desktop {
                name: assigned.name.clone(),
                protocol: pool.protocol,
                security: pool.security,
                certificate_sha256: assigned.pin.filter(|_| rdp),
                user_hint: applicant.person.account.clone(),
            },
            policy: applicant.pool.terms(&applicant.class).policy,
            sign_on: pool.sign_on,
        })
    }

    /// Tries once; `None` means that no desktop is free.
    async fn try_assign(
        &self,
        sid: SessionId,
        applicant: &Applicant,
    ) -> Result<Option<Assigned>, Code> {
        let person = &applicant.person;
        let assign = Assign {
            sid,
            user: person.user.clone(),
            display_name: person.display_name.clone(),
            account: person.account.clone(),
            unit: person.unit.clone(),
            pool: applicant.pool.name().clone(),
            class: applicant.class.clone(),
            source: applicant.source.0.to_string(),
            device: applicant.device.clone(),
            txn: applicant.txn.clone(),
            password_at: applicant.password_at,
            now: self.clock.now(),
        };
        match self.store.assign(assign).await {
            Ok(assigned) => Ok(Some(assigned)),
            Err(AssignError::Exhausted) => Ok(None),
            Err(AssignError::NoSuchPool) => Err(Code::NoEntitlement),
            Err(error @ AssignError::NotProbed(_)) => {
                info!(user.id = %person.user, %error, "Own desktop cannot be given");
                Err(Code::DesktopUnreachable)
            }
            Err(error @ AssignError::InUse(_)) => {
                info!(user.id = %person.user, %error, "Nobody is taken over");
                Err(Code::InUse)
            }
            Err(AssignError::Store(error)) => {
                warn!(error = &error as &dyn std::error::Error, "Assignment not stored");
                Err(Code::Unavailable)
            }
        }
    }

    async fn return_to_own(
        &self,
        sid: SessionId,
        applicant: &Applicant,
    ) -> Result<Option<Assigned>, Code> {
        let pool = applicant.pool.name();
        let pools = std::slice::from_ref(pool);
        let standing = self.store.standing(&applicant.person.user, pools).await;
        let standing = standing.map_err(|error| {
            warn!(error = &error as &dyn std::error::Error, "Store not read");
            Code::Unavailable
        })?;
        let held = standing.get(pool).is_some_and(|standing| standing.held);
        if held { self.try_assign(sid, applicant).await } else { Ok(None) }
    }
}

/// Counts somebody as waiting while it lives.
struct Waiting(Metrics);

impl Waiting {
    fn new(metrics: Metrics) -> Self {
        metrics.waiting(1);
        Self(metrics)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting(-1);
    }
}
