//! Sins of a session's conversation, apart from those of its ticket.

use serde_json::{Value, json};
use tegata_proto::code::Code;
use tegata_proto::frame::{LIMIT_AFTER, LIMIT_BEFORE};

use super::Answer;
use super::change::{Change, spoil};
use super::conversation::{Act, Sin, against_frames, sin};
use super::tickets::{Forgery, Shown};

/// Says a thousand times how long nobody has touched the thin client.
fn input_flood() -> Vec<Act> {
    let ages = (0..1_000_u64).map(|n| n.wrapping_mul(u64::MAX / 997));
    let words = ages.map(|age| Act::Says(format!(r#"{{"type":"input","idle_ms":{age}}}"#)));
    let dance = Act::Says(r#"{"type":"dance"}"#.to_owned());
    [Act::Attaches].into_iter().chain(words).chain([dance]).collect()
}

/// The rows.
pub fn table() -> Vec<Sin> {
    let malformed = Answer::Code(Code::Malformed);
    let unsupported = Answer::Code(Code::Unsupported);
    let says = |text: &str| Act::Says(text.to_owned());
    let attach = |message| vec![Act::Attach(Box::new(Forgery { message, ..Forgery::default() }))];
    let after = |act| vec![Act::Attaches, act];
    let too_long = u32::try_from(LIMIT_AFTER + 1).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    let grant = Forgery { shown: Shown::Grant, ..Forgery::default() };
    let resume = json!({"incarnation": 1, "received": {"rdp": 0}});
    let mut rows = against_frames();
    rows.extend([
        sin(
            "an ack before attach",
            vec![says(r#"{"type":"ack","channel":"rdp","received":1}"#)],
            malformed,
        ),
        sin("a bye before attach", vec![says(r#"{"type":"bye","code":"logged_off"}"#)], malformed),
        sin("input before attach", vec![says(r#"{"type":"input","idle_ms":1}"#)], malformed),
        sin("a hello to the gateway", vec![Act::Hello(Change::Set("v", json!(1)))], unsupported),
        sin(
            "an attach of 4 KiB and more",
            attach(Change::Set("x", json!("x".repeat(LIMIT_BEFORE)))),
            malformed,
        ),
        sin("a version to come", attach(Change::Set("v", json!(2))), unsupported),
        sin("a ticket and a grant", attach(Change::Set("grant", json!("a.b.c"))), malformed),
        sin("the grant alone", vec![Act::Attach(Box::new(grant))], Answer::Code(Code::ResumeLost)),
        sin(
            "a resume of nothing",
            attach(Change::Set("resume", resume)),
            Answer::Code(Code::ResumeLost),
        ),
        sin(
            "a resume of a wrong shape",
            attach(Change::Set("resume", json!({"received": []}))),
            malformed,
        ),
        sin("no channel after the attach", vec![Act::Attaches], Answer::Code(Code::Timeout)),
        sin("a second attach", after(says(r#"{"type":"attach","v":1}"#)), malformed),
        sin("a frame too long after the attach", after(Act::Bytes(too_long)), malformed),
        sin("no JSON after the attach", after(says("hello?")), malformed),
        sin("an unknown type after the attach", after(says(r#"{"type":"dance"}"#)), unsupported),
        sin(
            "an ack of no channel",
            after(says(r#"{"type":"ack","channel":"tape","received":1}"#)),
            malformed,
        ),
        sin("input ahead of now", after(says(r#"{"type":"input","idle_ms":-1}"#)), malformed),
        sin("input of no time", after(says(r#"{"type":"input","idle_ms":"long"}"#)), malformed),
        sin("a policy for the gateway", after(says(r#"{"type":"policy"}"#)), unsupported),
        sin(
            "a thousand words of input, each of another age, and then an unknown one",
            input_flood(),
            unsupported,
        ),
        sin(
            "an ack below nothing",
            after(says(r#"{"type":"ack","channel":"rdp","received":-1}"#)),
            malformed,
        ),
    ]);
    for (what, change) in spoil(&["v", "ticket", "key", "link", "proof"]) {
        let text = matches!(&change, Change::Set("ticket", Value::String(_)));
        let gets = if text { Answer::Code(Code::TicketInvalid) } else { malformed };
        rows.push(sin(format!("attach {what}"), attach(change), gets));
    }
    rows
}
