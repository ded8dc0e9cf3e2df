//! What the broker signs: tickets, and the grants by which people come back.
//!
//! Who gets one, and whether it opens anything, is decided elsewhere; a token that
//! is signed here says only for whom, for which desktop, for which key and for how
//! long.

use std::sync::Arc;
use std::time::Duration;

use tegata_domain::ticket::GRANT_LIFE_MAX;
use tegata_domain::time::Timestamp;
use tegata_proto::claims::{Claims, Confirmation, TICKET_LIFE_S};
use tegata_proto::encoding::Secret;
use tegata_proto::id::{Epoch, GatewayGroup, SessionId, TicketId, UserId};
use tegata_proto::key::Thumbprint;
use uuid::Uuid;

use crate::ports::signer::{SignError, Signer, TokenKind};

/// Signs for one deployment.
#[derive(Clone)]
pub struct Tokens {
    /// Who signs.
    pub signer: Arc<dyn Signer>,
    /// `iss` of every token.
    pub issuer: String,
}

/// Who is to have a token.
#[derive(Debug, Clone)]
pub struct Bearer {
    /// The person.
    pub user: UserId,
    /// Their session.
    pub sid: SessionId,
    /// The epoch of its assignment.
    pub epoch: Epoch,
    /// The gateways that may serve it.
    pub gateways: GatewayGroup,
    /// The key that has to prove itself.
    pub key: Thumbprint,
}

/// Returns how long a grant lives that is signed for a pool with this grace.
pub fn grant_life(grace: Duration) -> Duration {
    grace.min(GRANT_LIFE_MAX)
}

/// Returns how far a token is from the half of its life, at which it is renewed.
pub fn until_renewal(issued_s: u64, life: Duration, now: Timestamp) -> Duration {
    (life / 2).saturating_sub(Duration::from_secs(now.as_secs().saturating_sub(issued_s)))
}

impl Tokens {
    /// Signs a ticket.
    ///
    /// # Errors
    ///
    /// The key could not be used.
    pub fn ticket(&self, bearer: &Bearer, now: Timestamp) -> Result<Secret, SignError> {
        self.sign(TokenKind::Ticket, bearer, Duration::from_secs(TICKET_LIFE_S), now)
    }

    /// Signs a resume grant for a pool with this grace.
    ///
    /// # Errors
    ///
    /// The key could not be used.
    pub fn grant(
        &self,
        bearer: &Bearer,
        grace: Duration,
        now: Timestamp,
    ) -> Result<Secret, SignError> {
        self.sign(TokenKind::Resume, bearer, grant_life(grace), now)
    }

    fn sign(
        &self,
        kind: TokenKind,
        bearer: &Bearer,
        life: Duration,
        now: Timestamp,
    ) -> Result<Secret, SignError> {
        let Bearer { user, sid, epoch, gateways, key } = bearer.clone();
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: gateways,
            sub: user,
            sid,
            epoch,
            jti: TicketId(Uuid::now_v7()),
            iat: now.as_secs(),
            exp: now.after(life).as_secs(),
            cnf: Confirmation { jkt: key },
        };
        self.signer.sign(kind, &claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_at_half_its_life_and_at_once_after_that() {
        let hour = Duration::from_hours(1);
        let after = |seconds: u64| {
            until_renewal(1_000, hour, Timestamp::from_millis((1_000 + seconds) * 1_000))
        };
        assert_eq!(after(0), hour / 2);
        assert_eq!(after(1_799), Duration::from_secs(1));
        assert_eq!(after(1_800), Duration::ZERO);
        assert_eq!(after(9_999), Duration::ZERO);
        let early = until_renewal(1_000, hour, Timestamp::from_millis(1));
        assert_eq!(early, hour / 2, "a clock that was set back");
    }
}
