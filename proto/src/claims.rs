//! What a ticket or a resume grant says (RFC 7519, RFC 7800, RFC 9068 style).
//!
//! The header's `typ` tells the two apart; the claims have one shape. Every
//! claim is required, none other is allowed, and each has one JSON type: a
//! number is never a string and never a fraction.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, GatewayGroup, SessionId, TicketId, UserId};
use crate::key::Thumbprint;

/// Longest ticket or grant in its compact form, in bytes.
pub const TOKEN_MAX: usize = 2048;

/// `typ` of a ticket's header.
pub const TYP_TICKET: &str = "vdi-ticket+jwt";

/// `typ` of a resume grant's header.
pub const TYP_RESUME: &str = "vdi-resume+jwt";

/// Longest life of a ticket, in seconds.
pub const TICKET_LIFE_S: u64 = 30;

/// Longest life of a resume grant, in seconds.
pub const GRANT_LIFE_S: u64 = 12 * 60 * 60;

/// How far a clock may be off when times are judged, in seconds.
pub const LEEWAY_S: u64 = 5;

/// The claims of a ticket or a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The deployment whose brokers signed it.
    pub iss: String,
    /// The gateways that may take it.
    pub aud: GatewayGroup,
    /// The person.
    pub sub: UserId,
    /// The session that it opens or returns to.
    pub sid: SessionId,
    /// The epoch of the desktop's assignment.
    pub epoch: Epoch,
    /// Its own id.
    pub jti: TicketId,
    /// When it was signed, in Unix seconds.
    pub iat: u64,
    /// When it ends, in Unix seconds.
    pub exp: u64,
    /// The key that must prove itself.
    pub cnf: Confirmation,
}

/// RFC 7800: the key that a token is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// RFC 7638 thumbprint of the agent's key.
    pub jkt: Thumbprint,
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"iss":"tegata","aud":"default","sub":"honsho/1","sid":"0190e6c7-0000-7000-8000-000000000001","epoch":3,"jti":"0190e6c7-0000-7000-8000-000000000002","iat":100,"exp":130,"cnf":{"jkt":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}}"#;

    fn read(text: &str) -> Result<Claims, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn claims_are_read_back_as_written() {
        let claims = read(GOOD).expect("good claims");
        assert_eq!(serde_json::to_string(&claims).expect("claims are JSON"), GOOD);
    }

    #[test]
    fn each_claim_is_required_once_and_has_one_type() {
        let whole: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(GOOD).expect("an object");
        for name in whole.keys() {
            let mut without = whole.clone();
            without.remove(name);
            let text = serde_json::to_string(&without).expect("JSON");
            assert!(read(&text).is_err(), "without {name}");

            let doubled = format!("{},\"{name}\":{}}}", &GOOD[..GOOD.len() - 1], whole[name]);
            assert!(read(&doubled).is_err(), "{name} twice");

            for wrong in ["null", "-1", "1.5", "1e300", "[]", "[1]", "{}", "true", "\"\""] {
                let mut other = whole.clone();
                other[name] = serde_json::from_str(wrong).expect("JSON");
                let text = serde_json::to_string(&other).expect("JSON");
                let harmless = name == "iss" && wrong == "\"\"";
                assert!(harmless || read(&text).is_err(), "{name} = {wrong}");
            }
        }
        let more = format!("{},\"nbf\":1}}", &GOOD[..GOOD.len() - 1]);
        assert!(read(&more).is_err(), "an unknown claim");
    }
}
