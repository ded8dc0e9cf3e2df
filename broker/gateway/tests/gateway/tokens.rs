//! Which texts are tickets: very few.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::{Value, json};
use tegata_gateway::verify::{TokenError, TokenKeys, TokenKind};
use tegata_proto::claims::{Claims, TOKEN_MAX, TYP_RESUME, TYP_TICKET};

use crate::office::{ISSUER, KID, Key, header, uuid};

fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "default", "sub": "honsho/1", "sid": uuid(1), "epoch": 3,
        "jti": uuid(2), "iat": 100, "exp": 130, "cnf": {"jkt": "A".repeat(43)},
    })
}

fn keys(issuer: &Key) -> TokenKeys {
    TokenKeys::new(ISSUER, [(KID.to_owned(), issuer.public())])
}

fn with(mut value: Value, name: &str, to: Value) -> Value {
    value[name] = to;
    value
}

fn verify(keys: &TokenKeys, token: &str) -> Result<Claims, TokenError> {
    keys.verify(token, TokenKind::Ticket)
}

#[test]
fn a_token_is_good_for_what_its_type_says_whatever_the_time() {
    let issuer = Key::new();
    let keys = keys(&issuer);
    let ticket = issuer.token(&header(TYP_TICKET), &claims());
    let grant = issuer.token(&header(TYP_RESUME), &claims());
    let said = verify(&keys, &ticket).expect("a good ticket, long expired");
    assert_eq!(serde_json::to_value(said).expect("JSON"), claims());
    assert!(keys.verify(&grant, TokenKind::Resume).is_ok());
    assert!(matches!(keys.verify(&grant, TokenKind::Ticket), Err(TokenError::Header)));
    assert!(matches!(keys.verify(&ticket, TokenKind::Resume), Err(TokenError::Header)));
}

#[test]
fn a_key_can_be_replaced() {
    let (old, new) = (Key::new(), Key::new());
    let keys = keys(&old);
    let ticket = old.token(&header(TYP_TICKET), &claims());
    let clone = keys.clone();
    keys.replace([("2026-b".to_owned(), new.public())]);
    assert!(matches!(verify(&clone, &ticket), Err(TokenError::UnknownKey)));
    let next = with(header(TYP_TICKET), "kid", json!("2026-b"));
    assert!(verify(&clone, &new.token(&next, &claims())).is_ok());
    assert!(verify(&clone, &old.token(&next, &claims())).is_err(), "the new name, the old key");
}

#[test]
fn the_header_names_our_algorithm_our_type_and_our_key_and_nothing_else() {
    let issuer = Key::new();
    let keys = keys(&issuer);
    let good = header(TYP_TICKET);
    for (name, value) in [
        ("alg", json!("none")),
        ("alg", json!("None")),
        ("alg", json!("HS256")),
        ("alg", json!("RS256")),
        ("alg", json!("ES256")),
        ("alg", json!("Ed25519")),
        ("alg", json!(["EdDSA"])),
        ("typ", json!("JWT")),
        ("typ", json!("VDI-ticket+jwt")),
        ("typ", json!(null)),
        ("kid", json!("2025-z")),
        ("kid", json!("../keys")),
        ("kid", json!("")),
        ("kid", json!("k".repeat(1000))),
        ("kid", json!(1)),
        ("jwk", json!({"kty": "OKP", "crv": "Ed25519", "x": "A"})),
        ("jku", json!("https://example.org/keys")),
        ("x5u", json!("https://example.org/chain")),
        ("x5c", json!(["AAAA"])),
        ("x5t", json!("AAAA")),
        ("crit", json!(["exp"])),
        ("b64", json!(false)),
        ("cty", json!("JWT")),
        ("zip", json!("DEF")),
    ] {
        let token = issuer.token(&with(good.clone(), name, value.clone()), &claims());
        let refused = verify(&keys, &token);
        assert!(
            matches!(refused, Err(TokenError::Header | TokenError::UnknownKey)),
            "{name} = {value}: {refused:?}"
        );
    }
    for name in ["alg", "typ", "kid"] {
        let mut without = good.clone();
        without.as_object_mut().expect("an object").remove(name);
        assert!(verify(&keys, &issuer.token(&without, &claims())).is_err(), "without {name}");
    }
    // A member twice: which one would count?
    let text = good.to_string();
    let doubled = format!(r#"{},"alg":"EdDSA"}}"#, &text[..text.len() - 1]);
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(doubled),
        URL_SAFE_NO_PAD.encode(claims().to_string())
    );
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()));
    assert!(verify(&keys, &format!("{signed}.{signature}")).is_err());
}

#[test]
fn no_other_signature_is_good() {
    let (issuer, stranger) = (Key::new(), Key::new());
    let keys = keys(&issuer);
    let ticket = issuer.token(&header(TYP_TICKET), &claims());
    let (signed, _) = ticket.rsplit_once('.').expect("three parts");

    // HS256 with the public key as the secret, under either name.
    let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, issuer.public().bytes());
    for alg in ["HS256", "EdDSA"] {
        let header = with(header(TYP_TICKET), "alg", json!(alg)).to_string();
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims().to_string())
        );
        let tag = aws_lc_rs::hmac::sign(&secret, signed.as_bytes());
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()));
        assert!(verify(&keys, &token).is_err(), "{alg}");
    }
    for signature in [&[][..], &[0; 64][..], &[0xff; 64][..], &[0; 65][..], &[0; 32][..]] {
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        assert!(verify(&keys, &token).is_err(), "{} bytes", signature.len());
    }
    assert!(verify(&keys, &stranger.token(&header(TYP_TICKET), &claims())).is_err());
    for text in ["", ".", "..", "a.b.c", signed, &format!("{ticket}.x"), &format!("{ticket}=")] {
        assert!(verify(&keys, text).is_err(), "{text}");
    }
}

#[test]
fn claims_of_another_issuer_or_shape_are_refused_though_we_signed_them() {
    let issuer = Key::new();
    let keys = keys(&issuer);
    let sign = |claims: &Value| issuer.token(&header(TYP_TICKET), claims);
    for name in claims().as_object().expect("an object").keys() {
        let mut without = claims();
        without.as_object_mut().expect("an object").remove(name);
        assert!(verify(&keys, &sign(&without)).is_err(), "without {name}");
        for wrong in [json!(null), json!(-1), json!(1.5), json!([]), json!({}), json!("")] {
            let other = with(claims(), name, wrong.clone());
            assert!(verify(&keys, &sign(&other)).is_err(), "{name} = {wrong}");
        }
    }
    for (name, value) in [
        ("iss", json!("tegata-other")),
        ("iss", json!([ISSUER])),
        ("aud", json!(["default"])),
        ("exp", json!("130")),
        ("nbf", json!(1)),
        ("admin", json!(true)),
    ] {
        let other = with(claims(), name, value.clone());
        assert!(verify(&keys, &sign(&other)).is_err(), "{name} = {value}");
    }
}

#[test]
fn a_token_too_long_is_not_even_looked_at() {
    let issuer = Key::new();
    let long = with(claims(), "iss", json!("x".repeat(TOKEN_MAX)));
    let token = issuer.token(&header(TYP_TICKET), &long);
    assert!(matches!(verify(&keys(&issuer), &token), Err(TokenError::Length { .. })));
}

proptest! {
    #[test]
    fn a_changed_ticket_is_no_ticket(
        at in any::<prop::sample::Index>(),
        to in prop::sample::select(&b"ABCXYZabcxyz0189-_.=+/ \0"[..]),
        how in 0..3_u8,
    ) {
        let issuer = Key::new();
        let ticket = issuer.token(&header(TYP_TICKET), &claims());
        let mut changed = ticket.clone().into_bytes();
        let at = at.index(changed.len());
        match how {
            0 => changed[at] = to,
            1 => changed.insert(at, to),
            _ => drop(changed.remove(at)),
        }
        let changed = String::from_utf8(changed).expect("ASCII");
        prop_assume!(changed != ticket);
        prop_assert!(verify(&keys(&issuer), &changed).is_err());
    }

    #[test]
    fn any_text_is_refused_without_a_panic(text in "\\PC{0,200}", dots in "[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,80}") {
        let keys = keys(&Key::new());
        prop_assert!(verify(&keys, &text).is_err());
        prop_assert!(verify(&keys, &dots).is_err());
    }

    #[test]
    fn any_json_we_signed_is_our_claims_or_refused(name in "[a-z]{1,4}", value in "\\PC{0,20}") {
        let issuer = Key::new();
        let other = with(claims(), &name, json!(value));
        if let Ok(said) = verify(&keys(&issuer), &issuer.token(&header(TYP_TICKET), &other)) {
            prop_assert_eq!(serde_json::to_value(said).expect("JSON"), other);
        }
    }
}
