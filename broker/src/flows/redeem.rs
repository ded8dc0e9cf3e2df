//! What a gateway asks and reports: redeem, renew, attach, detach.
//!
//! The broker verifies everything again, because it does not trust the gateway,
//! and judges the times, because gateways have no say in them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tegata_domain::session::{Event, State};
use tegata_domain::time::Timestamp;
use tegata_edge::source::Prefix;
use tegata_gateway::proof::{purpose_of, sha256, thumbprint, verify_proof};
use tegata_gateway::redeem::{
    Attached, Broker, DialFailure, Limits, LinkEnd, LinkReport, Moved, Place, RedeemRequest,
    Redeemed, Refused, RefusedAttach, Renewal, Renewed, Shown, Unreachable,
};
use tegata_gateway::verify::{TokenKeys, TokenKind};
use tegata_proto::claims::Claims;
use tegata_proto::code::Code;
use tegata_proto::encoding::Secret;
use tegata_proto::id::{GatewayId, LinkNumber, SessionId};
use tegata_proto::session::Right;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::flows::catalogue::Catalogue;
use crate::flows::followup::Followups;
use crate::flows::refusals::{Door, Refusals};
use crate::flows::returns::Returns;
use crate::flows::tokens::{Bearer, Tokens, grant_life, until_renewal};
use crate::metrics::{Metrics, Phase};
use crate::ports::signer;
use crate::ports::store::action::{GRANT_REFUSED, TICKET_REFUSED};
use crate::ports::store::{
    self, Actor, AuditRecord, Carried, EventError, MovedError, Redeem, RedeemError, SessionEvent,
};

/// How long a gateway carries on without its broker. In one process it never
/// has to.
pub const LEASE: Duration = Duration::from_secs(30);

/// When to ask again after the store could not serve.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// When to tell the store again what it could not take.
pub(crate) const TELL_AGAIN: Duration = Duration::from_secs(2);

/// Serves the gateway in this process.
pub struct RedeemDesk {
    /// The keys that tickets and grants may be signed with.
    pub keys: TokenKeys,
    /// What signs younger grants.
    pub tokens: Tokens,
    /// The pools in memory.
    pub catalogue: Arc<Catalogue>,
    /// What is left to do after a commit; with the store and the clock.
    pub followups: Followups,
    /// The audit trail of refusals.
    pub refusals: Arc<Refusals>,
    /// Who comes back.
    pub returns: Arc<Returns>,
    /// Where results are counted.
    pub metrics: Metrics,
}

/// A right to attach that is refused, and what is known of its showing.
struct Showing<'a> {
    right: &'a Right,
    link: LinkNumber,
    gateway: &'a GatewayId,
    source: IpAddr,
}

impl RedeemDesk {
    fn verify(&self, request: &RedeemRequest) -> Result<(), Code> {
        let kind = TokenKind::of(&request.right);
        let claims = self.keys.verify(request.right.token().expose(), kind);
        let claims = claims.map_err(|_| Code::TicketInvalid)?;
        if claims != request.claims {
            return Err(Code::TicketInvalid);
        }
        if claims.cnf.jkt != thumbprint(&request.key) {
            return Err(Code::WrongKey);
        }
        let purpose = purpose_of(&request.right);
        verify_proof(&request.key, purpose, &request.exporter, request.link, &request.proof)
            .map_err(|_| Code::WrongKey)
    }

    async fn decide(&self, request: RedeemRequest) -> Result<Redeemed, Refused> {
        let (right, gateway) = (&request.right, &request.gateway);
        let showing = Showing { right, link: request.link, gateway, source: request.remote.ip() };
        let refused = |code| {
            self.audit(code, &showing);
            Refused::Code(code)
        };
        self.verify(&request).map_err(refused)?;
        let (claims, now) = (request.claims.clone(), self.followups.clock.now());
        let kind = match right {
            Right::Ticket(_) => signer::TokenKind::Ticket,
            Right::Grant(_) => signer::TokenKind::Resume,
        };
        let redeem = Redeem {
            kind,
            claims: request.claims.clone(),
            resume: request.resume,
            link: request.link,
            exporter: sha256(&request.exporter),
            gateway: gateway.clone(),
            boot: request.boot,
            class: request.class.to_string(),
            now,
        };
        let redeemed = self.followups.store.redeem(redeem).await.map_err(|error| match error {
            RedeemError::Refused(code) => refused(code),
            RedeemError::Store(error) => {
                warn!(error = &error as &dyn std::error::Error, "Ticket or grant not redeemed");
                Refused::Busy { retry_after: RETRY_AFTER }
            }
        })?;
        match kind {
            signer::TokenKind::Ticket => {}
            signer::TokenKind::Resume => self.returns.returned(redeemed.sid),
        }
        let (grant, renew_after) = self.younger(kind, claims, &redeemed, now);
        self.followups.carry_out(redeemed.followups).await;
        Ok(Redeemed {
            epoch: redeemed.epoch,
            target: redeemed.target,
            protocol: redeemed.protocol,
            policy: redeemed.policy,
            limits: limits(redeemed.idle, redeemed.ends_at, now),
            incarnation: redeemed.incarnation,
            lease_s: seconds(LEASE),
            hold_s: seconds(redeemed.hold),
            grant,
            renew_after,
        })
    }

    /// Returns a younger grant where the one that was shown is past half its life,
    /// and when to ask for the next one. Whoever shows a ticket has a grant that is
    /// as old.
    fn younger(
        &self,
        kind: signer::TokenKind,
        claims: Claims,
        redeemed: &store::Redeemed,
        now: Timestamp,
    ) -> (Option<Secret>, Duration) {
        let life = grant_life(redeemed.grace);
        let left = match kind {
            signer::TokenKind::Ticket => until_renewal(claims.iat, life, now),
            signer::TokenKind::Resume => {
                let shown = Duration::from_secs(claims.exp.saturating_sub(claims.iat));
                until_renewal(claims.iat, shown, now)
            }
        };
        if !left.is_zero() {
            return (None, left);
        }
        let bearer = Bearer {
            user: claims.sub,
            sid: claims.sid,
            epoch: redeemed.epoch,
            gateways: redeemed.gateways.clone(),
            key: claims.cnf.jkt,
        };
        match self.sign(&bearer, redeemed.grace, now) {
            Some(grant) => (Some(grant), life / 2),
            None => (None, Duration::ZERO),
        }
    }

    fn sign(&self, bearer: &Bearer, grace: Duration, now: Timestamp) -> Option<Secret> {
        let signed = self.tokens.grant(bearer, grace, now);
        signed
            .inspect_err(|error| {
                let error = error as &dyn std::error::Error;
                warn!(session.id = %bearer.sid, error, "Grant not signed");
            })
            .ok()
    }

    /// Puts a refusal into the audit trail: with a record of its own if we signed what
    /// is refused, unless the like was refused a moment ago.
    fn audit(&self, code: Code, showing: &Showing<'_>) {
        let Showing { right, link, gateway, source } = *showing;
        let count = move |refusals: &Refusals| refusals.count(Door::Attach, source, code);
        let token = right.token().expose();
        // It may be shown as what it is not.
        let signed = [(TokenKind::Ticket, TICKET_REFUSED), (TokenKind::Resume, GRANT_REFUSED)];
        let signed = signed
            .into_iter()
            .find_map(|(kind, action)| Some((self.keys.verify(token, kind).ok()?, action)));
        let Some((claims, action)) = signed else { return count(&self.refusals) };
        if !self.refusals.is_news(claims.jti, code) {
            return count(&self.refusals);
        }
        let detail = [
            ("jti", claims.jti.to_string()),
            ("code", code.to_string()),
            ("link", link.to_string()),
            ("gateway", gateway.to_string()),
            ("user", claims.sub.to_string()),
            ("prefix", Prefix::of(source).to_string()),
        ];
        let record = AuditRecord {
            at: self.followups.clock.now(),
            action: action.to_owned(),
            actor: Actor::Broker,
            sid: Some(claims.sid),
            desktop: None,
            detail: detail.map(|(name, value)| (name.to_owned(), value)).into(),
        };
        // Whoever hangs up now is written down all the same.
        let (store, refusals) = (Arc::clone(&self.followups.store), Arc::clone(&self.refusals));
        self.followups.tasks.spawn("audit", async move {
            if let Err(error) = store.audit(vec![record]).await {
                let error = &error as &dyn std::error::Error;
                warn!(error, "Refusal has no record of its own");
                count(&refusals);
            }
        });
    }

    async fn report(
        &self,
        sid: SessionId,
        link: LinkNumber,
        event: Event,
        carried: Option<Carried>,
    ) {
        let event = self.of_link(sid, link, event, carried);
        if !record(&self.followups, event.clone()).await {
            self.keep_telling(event, TELL_AGAIN);
        }
    }

    /// Returns what is told of a link.
    fn of_link(
        &self,
        sid: SessionId,
        link: LinkNumber,
        event: Event,
        carried: Option<Carried>,
    ) -> SessionEvent {
        let now = self.followups.clock.now();
        SessionEvent { sid, event, link: Some(link), carried, actor: Actor::Broker, now }
    }

    /// Has the store told until it has heard: without a report the session would hold its
    /// desktop for good. A broker that ends before finds the session by its boot id.
    fn keep_telling(&self, event: SessionEvent, first: Duration) {
        let followups = self.followups.clone();
        self.followups.tasks.spawn("report", async move {
            sleep(first).await;
            while !record(&followups, event.clone()).await {
                sleep(TELL_AGAIN).await;
            }
        });
    }

    /// Returns how a link ended, to be recorded.
    fn ended(&self, report: &LinkReport) -> (Event, Carried) {
        let event = match report.end {
            LinkEnd::AgentBye(Code::LoggedOff) => Event::LoggedOff,
            LinkEnd::DesktopClosed { viewer: Some(Code::LoggedOff) } => Event::LoggedOff,
            LinkEnd::DesktopClosed { .. } => Event::DesktopClosed,
            // That nothing is kept for a session which is ended is not a link's to say.
            LinkEnd::Ended(_)
            | LinkEnd::AgentBye(_)
            | LinkEnd::AgentGone
            | LinkEnd::AgentFault(_)
            | LinkEnd::Superseded
            | LinkEnd::Undecided
            | LinkEnd::Outdated
            | LinkEnd::Draining
            | LinkEnd::Unanswered
            | LinkEnd::BrokenOff => Event::LinkLost,
        };
        info!(
            session.id = %report.sid, link = %report.link, end = report.end.as_str(),
            up = report.bytes_up, down = report.bytes_down, "Link ended"
        );
        let now = self.followups.clock.now();
        let carried = Carried {
            up: report.bytes_up,
            down: report.bytes_down,
            last_byte_at: report.last_byte_at.map_or(now, Timestamp::from),
            input_minutes: report.input_minutes,
        };
        (event, carried)
    }
}

#[async_trait]
impl Broker for RedeemDesk {
    async fn redeem(&self, request: RedeemRequest) -> Result<Redeemed, Refused> {
        let began = Instant::now();
        let (sid, link) = (request.claims.sid, request.link);
        let outcome = self.decide(request).await;
        self.metrics.phase(Phase::Redeem, began.elapsed());
        match &outcome {
            Ok(_) => self.metrics.redeem(None),
            Err(Refused::Code(code)) => {
                // Whoever has one ticket can have it refused again and again; the audit
                // trail tells.
                debug!(session.id = %sid, %link, %code, "Redeem refused");
                self.metrics.redeem(Some(*code));
            }
            Err(Refused::Busy { .. }) => self.metrics.redeem(Some(Code::Busy)),
        }
        outcome
    }

    async fn moved(&self, report: Moved) -> Result<Place, Refused> {
        let (sid, link, now) = (report.sid, report.link, self.followups.clock.now());
        let moved =
            store::Moved { sid, epoch: report.epoch, link, class: report.class.to_string(), now };
        let place = self.followups.store.moved(moved).await.map_err(|error| match error {
            // A younger link is being let in, or an end is on its way, which tells why.
            MovedError::NotCarried => Refused::Busy { retry_after: RETRY_AFTER },
            MovedError::Store(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(session.id = %sid, %link, error, "Change of network not recorded");
                Refused::Busy { retry_after: RETRY_AFTER }
            }
        })?;
        let class = &report.class;
        info!(session.id = %sid, %link, %class, verdict = ?place.verdict, "Link moved");
        place.verdict.map_err(Refused::Code)?;
        Ok(Place { policy: place.policy, limits: limits(place.idle, place.ends_at, now) })
    }

    async fn renew(&self, renewal: Renewal) -> Option<Renewed> {
        let Renewal { sid, epoch, link, jkt } = renewal;
        let found = self.followups.store.session(sid).await.inspect_err(|error| {
            let error = error as &dyn std::error::Error;
            warn!(session.id = %sid, error, "Session not read, its grant is not renewed");
        });
        let session = found.ok().flatten()?;
        let carried = match session.state {
            State::Starting { .. } | State::Active | State::Returning { .. } => true,
            State::Requested { .. }
            | State::Detached { .. }
            | State::Ending { .. }
            | State::Ended { .. } => false,
        };
        let theirs = (session.epoch, session.link, session.key) == (epoch, link, Some(jkt));
        if !carried || !theirs {
            info!(session.id = %sid, %link, "Grant not renewed");
            return None;
        }
        let pool = self.catalogue.pool(&session.pool)?;
        let gateways = pool.raw().gateways.clone();
        let bearer = Bearer { user: session.user, sid, epoch, gateways, key: jkt };
        let grant = self.sign(&bearer, pool.grace(), self.followups.clock.now())?;
        Some(Renewed { grant, renew_after: grant_life(pool.grace()) / 2 })
    }

    async fn refused(&self, report: RefusedAttach) {
        let RefusedAttach { code, shown, remote, gateway } = report;
        match shown {
            Some(Shown { right, link }) => {
                let (right, gateway, source) = (&right, &gateway, remote.ip());
                self.audit(code, &Showing { right, link, gateway, source });
            }
            None => self.refusals.count(Door::Attach, remote.ip(), code),
        }
    }

    async fn attached(&self, report: Attached) {
        self.metrics.phase(Phase::Attach, report.took);
        self.report(report.sid, report.link, Event::Attached, None).await;
    }

    async fn unreachable(&self, report: Unreachable) {
        info!(session.id = %report.sid, why = ?report.why, "Desktop not reached");
        let event = match report.why {
            DialFailure::NotAllowed | DialFailure::Silent | DialFailure::Refused => {
                Event::DialFailed
            }
            DialFailure::Exhausted => Event::NotDialled,
        };
        self.report(report.sid, report.link, event, None).await;
    }

    async fn detached(&self, report: LinkReport) {
        let (event, carried) = self.ended(&report);
        self.report(report.sid, report.link, event, Some(carried)).await;
    }

    fn broke_off(&self, report: LinkReport) {
        let (event, carried) = self.ended(&report);
        let event = self.of_link(report.sid, report.link, event, Some(carried));
        self.keep_telling(event, Duration::ZERO);
    }
}

/// Records what happened to a session; tells whether the store has heard it.
async fn record(followups: &Followups, event: SessionEvent) -> bool {
    let (sid, link) = (event.sid, event.link);
    match followups.store.session_event(event).await {
        Ok(more) => drop(followups.carry_out(more).await),
        // The session was ended meanwhile; nothing is left to do.
        Err(EventError::Refused(_)) => {}
        Err(error @ EventError::NoSuchSession(_)) => {
            warn!(session.id = %sid, ?link, %error, "Report about no session of ours");
        }
        Err(EventError::Store(error)) => {
            let error = &error as &dyn std::error::Error;
            warn!(session.id = %sid, ?link, error, "Report not recorded, it is told again");
            return false;
        }
    }
    true
}

/// Says what bounds a link that is judged now.
fn limits(idle: Option<Duration>, ends_at: Option<Timestamp>, now: Timestamp) -> Limits {
    Limits { idle, ends_in: ends_at.map(|ends| ends.since(now)) }
}

fn seconds(span: Duration) -> u32 {
    u32::try_from(span.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
