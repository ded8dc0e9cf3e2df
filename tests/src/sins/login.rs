//! Sins of a login.

use serde_json::{Value, json};
use tegata_proto::code::Code;
use tegata_proto::frame::LIMIT_BEFORE;

use super::Answer;
use super::change::{Change, spoil};
use super::conversation::{Act, Sin, against_frames, sin};

/// The rows.
pub fn table() -> Vec<Sin> {
    let malformed = Answer::Code(Code::Malformed);
    let refused = Answer::Code(Code::Refused);
    let says = |text: &str| Act::Says(text.to_owned());
    let honest = || Act::Hello(Change::Nothing);
    let hello = |name, value: Value| vec![Act::Hello(Change::Set(name, value))];
    let password = |name, value: Value| {
        vec![Act::Hello(Change::Nothing), Act::Password(Change::Set(name, value))]
    };
    let key = json!({"kty": "OKP", "crv": "Ed25519", "x": "A".repeat(43)});
    let other_key = json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"});
    let mut rows = against_frames();
    rows.extend([
        sin("a password before hello", vec![Act::Password(Change::Nothing)], malformed),
        sin("a choice before hello", vec![says(r#"{"type":"choose","pool":"keiri"}"#)], malformed),
        sin(
            "an attach to the login",
            vec![says(r#"{"type":"attach","v":1}"#)],
            Answer::Code(Code::Unsupported),
        ),
        sin("a second hello", vec![honest(), honest()], malformed),
        sin(
            "a choice before the password",
            vec![honest(), says(r#"{"type":"choose","pool":"keiri"}"#)],
            malformed,
        ),
        sin(
            "a hello of 4 KiB and more",
            hello("locale", json!("x".repeat(LIMIT_BEFORE))),
            malformed,
        ),
        sin("a version to come", hello("v", json!(2)), Answer::Code(Code::Unsupported)),
        sin(
            "an agent of old",
            hello("agent_version", json!("0.0.1")),
            Answer::Code(Code::AgentTooOld),
        ),
        sin("a version of words", hello("agent_version", json!("newest")), malformed),
        sin("a locale of 129 bytes", hello("locale", json!("x".repeat(129))), malformed),
        sin("a locale with an escape sequence", hello("locale", json!("\u{1b}[2J")), malformed),
        sin("a device with a line feed", hello("device_id", json!("a\nb")), malformed),
        sin("a key without an order", hello("key", key), Answer::Code(Code::WrongKey)),
        sin("a key of another kind", hello("key", other_key), malformed),
        sin(
            "a proof of zeros",
            hello("proof", json!("A".repeat(86))),
            Answer::Code(Code::WrongKey),
        ),
        sin("a proof of 65 bytes", hello("proof", json!("A".repeat(87))), malformed),
        sin("another transaction", password("txn", json!("A".repeat(22))), malformed),
        sin("an unknown realm", password("realm", json!("elsewhere")), refused),
        sin("a name of 10 kB", password("name", json!("x".repeat(10_000))), malformed),
        sin("a name of 257 bytes", password("name", json!("x".repeat(257))), refused),
        sin(
            "a name that ends a line",
            password("name", json!("a\r\n{\"level\":\"INFO\"}")),
            refused,
        ),
        sin("a name that clears the screen", password("name", json!("\u{1b}[2J\u{9b}2J")), refused),
        sin(
            "a name that looks something up",
            password("name", json!("${jndi:ldap://x/a}")),
            refused,
        ),
        sin("a name that turns around", password("name", json!("\u{202e}otas\u{2066}")), refused),
        sin("a name with NUL", password("name", json!("p0\0")), refused),
        sin("a password with NUL", password("password", json!("\0secret")), refused),
        sin(
            "never reading the answer",
            vec![Act::Hears(0), Act::Hello(Change::Set("device_id", json!("deaf")))],
            Answer::Closed,
        )
        .within(3),
        sin(
            "never reading the ticket",
            vec![Act::Hears(512), honest(), Act::Password(Change::Nothing), Act::ListensNoMore],
            Answer::Closed,
        ),
    ]);
    let members = ["v", "agent_version", "locale", "key", "proof"];
    for (what, change) in spoil(&members) {
        // A language that is not named is nobody's fault.
        if change != Change::Set("locale", json!("")) {
            rows.push(sin(format!("hello {what}"), vec![Act::Hello(change)], malformed));
        }
    }
    for (what, change) in spoil(&["txn", "name", "password"]) {
        let text = matches!(&change, Change::Set("name" | "password", Value::String(_)));
        let gets = if text { refused } else { malformed };
        rows.push(sin(format!("password {what}"), vec![honest(), Act::Password(change)], gets));
    }
    rows
}
