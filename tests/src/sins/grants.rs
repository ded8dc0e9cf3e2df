//! Sins against a session that somebody is at work in: grants that are forged, too
//! old or not the shower's, links that are not the next one, and a claim to what the
//! gateway does not have.

use serde_json::{Value, json};
use tegata_proto::claims::TYP_TICKET;
use tegata_proto::code::Code;

use super::Answer;
use super::change::Change;
use super::conversation::{Act, Sin, sin};
use super::tickets::{Forgery, Proof, Shown, Signer};

/// Long enough ago that no grant lives any more.
const YESTERDAY_S: i64 = 24 * 3_600;

/// The grant for the next link after the one that its ticket opened.
fn grant() -> Forgery {
    Forgery { shown: Shown::Grant, link: 2, ..Forgery::default() }
}

fn row(name: &str, forgery: Forgery, gets: Answer) -> Sin {
    sin(name, vec![Act::Works, Act::Attach(Box::new(forgery))], gets)
}

/// The rows.
pub fn table() -> Vec<Sin> {
    let site = || Forgery { signer: Signer::Site, ..grant() };
    let claim = |name, value| Forgery { claims: Change::Set(name, value), ..site() };
    let proof = |proof| Forgery { proof, ..grant() };
    let resume = |value: Value| Forgery { message: Change::Set("resume", value), ..grant() };
    let session = "0190e6c7-0000-7000-8000-000000000001";
    let mut rows = vec![
        row("none: an honest grant", grant(), Answer::Served),
        row("none: one signed anew", site(), Answer::Served),
        row("none: a number that is not the next", Forgery { link: 9, ..grant() }, Answer::Served),
        row(
            "none: one of an hour ahead, before the clock was set back",
            Forgery { older_by: -3_600, ..site() },
            Answer::Served,
        ),
        row(
            "none: one that goes on where it was",
            resume(json!({"incarnation": 1, "received": {"rdp": 4}})),
            Answer::Served,
        ),
    ];
    let refused = [
        ("the number of the link that is there", Forgery { link: 1, ..grant() }, Code::LinkStale),
        ("link 0", Forgery { link: 0, ..grant() }, Code::LinkStale),
        ("yesterday's", Forgery { older_by: YESTERDAY_S, ..site() }, Code::TicketExpired),
        ("good for a hundred years", claim("exp", json!(4_900_000_000_u64)), Code::TicketInvalid),
        ("another person's", claim("sub", json!("honsho/somebody")), Code::TicketInvalid),
        ("another session's", claim("sid", json!(session)), Code::SessionEnded),
        ("another epoch", claim("epoch", json!(u64::MAX)), Code::SessionEnded),
        ("another group", claim("aud", json!("other")), Code::WrongGroup),
        ("another key's", claim("cnf", json!({"jkt": "A".repeat(43)})), Code::WrongKey),
        (
            "the typ of a ticket",
            Forgery { header: Change::Set("typ", json!(TYP_TICKET)), ..site() },
            Code::TicketInvalid,
        ),
        (
            "signed by a stranger",
            Forgery { signer: Signer::Stranger, ..grant() },
            Code::TicketInvalid,
        ),
        ("the ticket again", Forgery { shown: Shown::Ticket, ..grant() }, Code::TicketUsed),
        (
            "the ticket as a grant",
            Forgery { shown: Shown::TicketAsGrant, ..grant() },
            Code::TicketInvalid,
        ),
        (
            "the grant as a ticket",
            Forgery { shown: Shown::GrantAsTicket, ..grant() },
            Code::TicketInvalid,
        ),
        ("a proof of the ticket", proof(Proof::OfOtherToken), Code::WrongKey),
        ("a proof as of a ticket", proof(Proof::OfOtherKind), Code::WrongKey),
        ("a proof of link 1", proof(Proof::OfLink(1)), Code::WrongKey),
        ("a proof from another connection", proof(Proof::OfOtherConnection), Code::WrongKey),
        ("a proof by another key", proof(Proof::ByOtherKey), Code::WrongKey),
        ("another key, honestly proven", proof(Proof::WithOtherKey), Code::WrongKey),
        (
            "a connection to the desktop before the first",
            resume(json!({"incarnation": 0, "received": {"rdp": 0}})),
            Code::ResumeLost,
        ),
        (
            "a connection to the desktop that is not there yet",
            resume(json!({"incarnation": 2, "received": {"rdp": 0}})),
            Code::ResumeLost,
        ),
        (
            "more than the desktop ever sent",
            resume(json!({"incarnation": 1, "received": {"rdp": 1_000_000}})),
            Code::ResumeLost,
        ),
        (
            "more than there are numbers for",
            resume(json!({"incarnation": 1, "received": {"rdp": u64::MAX}})),
            Code::ResumeLost,
        ),
    ];
    rows.extend(refused.map(|(name, forgery, code)| row(name, forgery, Answer::Code(code))));
    rows
}
