//! Tickets and grants: no text is one that we did not sign, and of those that we
//! signed only the ones that say exactly what a token of ours says.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tegata_gateway::verify::{TokenKeys, TokenKind};
use tegata_proto::claims::{TOKEN_MAX, TYP_RESUME, TYP_TICKET};
use tegata_proto::key::PublicKey;

use super::script::Script;

const ISSUER: &str = "tegata";
const KID: &str = "fuzz";

/// Reads the bytes as a whole token, or as header and claims, a line each, that
/// are signed with our key.
pub fn run(bytes: &[u8]) {
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("32 bytes");
    let mut public = [0; 32];
    public.copy_from_slice(key.public_key().as_ref());
    let keys = TokenKeys::new(ISSUER, [(KID.to_owned(), PublicKey::new(public))]);

    let mut script = Script::new(bytes);
    if script.pick(&[false, true]) {
        let (header, claims) = (script.line(), script.rest());
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let signed = format!("{}.{}", part(header), part(claims));
        let token = format!("{signed}.{}", part(key.sign(signed.as_bytes()).as_ref()));
        judge_signed(&keys, &token, header, claims);
    } else if let Ok(token) = std::str::from_utf8(script.rest()) {
        for kind in [TokenKind::Ticket, TokenKind::Resume] {
            assert!(keys.verify(token, kind).is_err(), "nobody signed it");
        }
    }
}

fn judge_signed(keys: &TokenKeys, token: &str, header: &[u8], claims: &[u8]) {
    for (kind, typ) in [(TokenKind::Ticket, TYP_TICKET), (TokenKind::Resume, TYP_RESUME)] {
        let Ok(said) = keys.verify(token, kind) else { continue };
        assert!(token.len() <= TOKEN_MAX);
        let header: Value = serde_json::from_slice(header).expect("its header was read");
        assert_eq!(header, json!({"alg": "EdDSA", "typ": typ, "kid": KID}));
        let claims: Value = serde_json::from_slice(claims).expect("its claims were read");
        assert_eq!(said.iss, ISSUER);
        let said = serde_json::to_value(said).expect("claims are JSON");
        let names = |value: &Value| value.as_object().map(serde_json::Map::len);
        assert_eq!(names(&said), names(&claims), "none missing, none unknown, none twice");
        for name in ["iss", "aud", "sub", "epoch", "iat", "exp"] {
            assert_eq!(said[name], claims[name], "{name}");
        }
    }
}
