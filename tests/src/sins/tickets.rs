//! Sins of the attach: tickets that are forged, altered or not the shower's, and
//! proofs for something else. Where a ticket must be validly signed and wrong all
//! the same, the site's own key signs it.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tegata_proto::claims::TYP_RESUME;
use tegata_proto::code::Code;
use tegata_proto::encoding::Secret;
use tegata_proto::id::LinkNumber;
use tegata_proto::login::{BrokerMessage, TicketAnswer};
use tegata_proto::proof::Purpose;
use tegata_proto::session::{AgentMessage, Attach, Right};
use tegata_proto::{ALPN_LOGIN, ALPN_SESSION};

use super::Answer;
use super::change::{Change, spoil};
use super::conversation::{Act, Sin, sin};
use super::place::{PASSWORD, Place};
use crate::stranger::{HERE, Keys, Line, Transport, grant_purpose, login_over, ticket_purpose};

/// What is wrong with an attach. By default, nothing.
#[derive(Debug, Clone)]
pub struct Forgery {
    /// What becomes of the ticket's header.
    pub header: Change,
    /// What becomes of its claims.
    pub claims: Change,
    /// By how many seconds its times are moved back.
    pub older_by: i64,
    /// Who signs what came of it.
    pub signer: Signer,
    /// What is shown, and as what.
    pub shown: Shown,
    /// What the proof is made of.
    pub proof: Proof,
    /// The number of the link.
    pub link: u64,
    /// What becomes of the message.
    pub message: Change,
}

/// Who signs a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    /// The site's own key.
    Site,
    /// Nobody anew: the signature is the one that it had.
    Kept,
    /// Some other key.
    Stranger,
    /// HMAC with the site's public key as the secret.
    PublicKey,
    /// Nobody: the signature is empty.
    Nobody,
    /// 64 bytes of 0.
    Zeros,
    /// The site's own key, one byte cut off.
    Truncated,
}

/// What an attach shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// The ticket as a ticket.
    Ticket,
    /// The grant as a ticket.
    GrantAsTicket,
    /// The ticket as a grant.
    TicketAsGrant,
    /// The grant as a grant.
    Grant,
}

/// What an attach proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// What it should.
    Honest,
    /// A login.
    OfLogin,
    /// The other token.
    OfOtherToken,
    /// The other kind of token.
    OfOtherKind,
    /// Another link number.
    OfLink(u64),
    /// Another connection, as one that is replayed.
    OfOtherConnection,
    /// The right thing, by a key that is not the one shown.
    ByOtherKey,
    /// The right thing, by another key, which is shown.
    WithOtherKey,
}

impl Default for Forgery {
    fn default() -> Self {
        Self {
            header: Change::Nothing,
            claims: Change::Nothing,
            older_by: 0,
            signer: Signer::Kept,
            shown: Shown::Ticket,
            proof: Proof::Honest,
            link: 1,
            message: Change::Nothing,
        }
    }
}

/// A good login: what it gave, and the key that it is bound to.
pub struct Held {
    keys: Keys,
    answer: TicketAnswer,
}

/// Logs a person in.
///
/// # Errors
///
/// When they are refused.
pub async fn right(
    place: &Place,
    transport: Transport,
    from: Ipv4Addr,
    name: &str,
) -> Result<Held> {
    let mut line = Line::open_by(transport, from, place.site.listen(), ALPN_LOGIN).await?;
    let keys = Keys::generate()?;
    match login_over(&mut line, &keys, name, PASSWORD).await? {
        BrokerMessage::Ticket(answer) => Ok(Held { keys, answer: *answer }),
        other => bail!("{name} is not let in: {other:?}"),
    }
}

/// Writes an attach for this connection.
///
/// # Errors
///
/// When the site's key cannot be read.
pub async fn attach(place: &Place, held: &Held, forgery: &Forgery, line: &Line) -> Result<String> {
    let (token, other) = match forgery.shown {
        Shown::Ticket | Shown::TicketAsGrant => (&held.answer.ticket, &held.answer.grant),
        Shown::GrantAsTicket | Shown::Grant => (&held.answer.grant, &held.answer.ticket),
    };
    let token = Secret::new(forge(place, token.expose(), forgery)?);
    let right = match forgery.shown {
        Shown::Ticket | Shown::GrantAsTicket => Right::Ticket(token.clone()),
        Shown::TicketAsGrant | Shown::Grant => Right::Grant(token.clone()),
    };
    let is_ticket = matches!(right, Right::Ticket(_));
    let purpose = match forgery.proof {
        Proof::OfLogin => Purpose::Login,
        Proof::OfOtherToken => ticket_purpose(other),
        Proof::OfOtherKind if is_ticket => grant_purpose(&token),
        Proof::OfOtherKind => ticket_purpose(&token),
        _ if is_ticket => ticket_purpose(&token),
        _ => grant_purpose(&token),
    };
    let exporter = match forgery.proof {
        Proof::OfOtherConnection => {
            let to = place.site.listen();
            Line::open_by(line.transport(), HERE, to, ALPN_SESSION).await?.exporter()?
        }
        _ => line.exporter()?,
    };
    let number = LinkNumber(forgery.link);
    let signed = match forgery.proof {
        Proof::OfLink(other) => LinkNumber(other),
        _ => number,
    };
    let thief = Keys::generate()?;
    let (known, prover) = match forgery.proof {
        Proof::ByOtherKey => (&held.keys, &thief),
        Proof::WithOtherKey => (&thief, &thief),
        _ => (&held.keys, &held.keys),
    };
    let proof = prover.prove(purpose, &exporter, signed);
    let attach = Attach { v: 1, right, key: known.public(), link: number, proof, resume: None };
    Ok(forgery.message.write(&serde_json::to_value(AgentMessage::Attach(attach))?))
}

/// Takes a token apart and puts it together again.
fn forge(place: &Place, token: &str, forgery: &Forgery) -> Result<String> {
    let unchanged = forgery.header == Change::Nothing
        && forgery.claims == Change::Nothing
        && forgery.older_by == 0;
    if unchanged && forgery.signer == Signer::Kept {
        return Ok(token.to_owned());
    }
    let mut parts = token.split('.');
    let mut part = || parts.next().context("no JWT");
    let (header, claims, signature) = (part()?, part()?, part()?);
    let read = |part: &str| -> Result<Value> {
        Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part)?)?)
    };
    let mut claims = read(claims)?;
    for time in ["iat", "exp"] {
        let moved = claims[time].as_i64().context("no time")? - forgery.older_by;
        claims[time] = moved.into();
    }
    let header = forgery.header.write(&read(header)?);
    let claims = forgery.claims.write(&claims);
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));

    let key = PrivatePkcs8KeyDer::from_pem_file(place.site.path("signing.key"))?;
    let key = Ed25519KeyPair::from_pkcs8(key.secret_pkcs8_der())?;
    let bytes = signed.as_bytes();
    let signature = match forgery.signer {
        Signer::Kept => URL_SAFE_NO_PAD.decode(signature)?,
        Signer::Site => key.sign(bytes).as_ref().to_vec(),
        Signer::Stranger => Ed25519KeyPair::generate()?.sign(bytes).as_ref().to_vec(),
        Signer::PublicKey => {
            let secret = hmac::Key::new(hmac::HMAC_SHA256, key.public_key().as_ref());
            hmac::sign(&secret, bytes).as_ref().to_vec()
        }
        Signer::Nobody => vec![],
        Signer::Zeros => vec![0; 64],
        Signer::Truncated => key.sign(bytes).as_ref()[..63].to_vec(),
    };
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

fn row(name: impl Into<String>, forgery: Forgery, gets: Code) -> Sin {
    sin(name, vec![Act::Attach(Box::new(forgery))], Answer::Code(gets))
}

/// The rows of tickets.
pub fn forged() -> Vec<Sin> {
    let site = || Forgery { signer: Signer::Site, ..Forgery::default() };
    let header = |name, value| Forgery { header: Change::Set(name, value), ..site() };
    let claim = |name, value| Forgery { claims: Change::Set(name, value), ..site() };
    let signed = |signer| Forgery { signer, ..Forgery::default() };
    let alg = |alg: &str, signer| Forgery { signer, ..header("alg", json!(alg)) };
    let invalid = Code::TicketInvalid;
    let session = "0190e6c7-0000-7000-8000-000000000001";
    let mut rows = vec![
        sin("none: an honest one", vec![Act::Attach(Box::default())], Answer::Served),
        sin("none: one signed anew", vec![Act::Attach(Box::new(site()))], Answer::Served),
        row("expired 200 s ago", Forgery { older_by: 230, ..site() }, Code::TicketExpired),
        row("from an hour ahead", Forgery { older_by: -3_600, ..site() }, invalid),
        row("good for a hundred years", claim("exp", json!(4_900_000_000_u64)), invalid),
        row("ends before it begins", claim("exp", json!(1)), invalid),
        row("alg none, unsigned", alg("none", Signer::Nobody), invalid),
        row("alg None, signed", alg("None", Signer::Site), invalid),
        row("alg HS256, keyed by the public key", alg("HS256", Signer::PublicKey), invalid),
        row("alg EdDSA, keyed by the public key", signed(Signer::PublicKey), invalid),
        row("alg RS256", alg("RS256", Signer::Site), invalid),
        row("alg ES256", alg("ES256", Signer::Zeros), invalid),
        row("an unknown kid", header("kid", json!("2031-a")), invalid),
        row("a kid that is a path", header("kid", json!("../../signing.key")), invalid),
        row("the typ of a grant", header("typ", json!(TYP_RESUME)), invalid),
        row("the typ of any JWT", header("typ", json!("JWT")), invalid),
        row("a jwk of its own", header("jwk", json!({"kty": "OKP", "crv": "Ed25519"})), invalid),
        row("a jku", header("jku", json!("http://127.0.0.1:1/keys")), invalid),
        row("a crit", header("crit", json!(["exp"])), invalid),
        row("an unknown claim", claim("admin", json!(true)), invalid),
        row("an nbf", claim("nbf", json!(1)), invalid),
        row("another group", claim("aud", json!("other")), Code::WrongGroup),
        row("another issuer", claim("iss", json!("tegata-other")), invalid),
        row("another person", claim("sub", json!("honsho/somebody")), invalid),
        row("another session", claim("sid", json!(session)), Code::SessionEnded),
        row("another epoch", claim("epoch", json!(u64::MAX)), Code::SessionEnded),
        row("another key's", claim("cnf", json!({"jkt": "A".repeat(43)})), Code::WrongKey),
        row("two keys", claim("cnf", json!({"jkt": "A".repeat(43), "kid": "x"})), invalid),
        row("signed by a stranger", signed(Signer::Stranger), invalid),
        row("a signature of zeros", signed(Signer::Zeros), invalid),
        row("a signature cut short", signed(Signer::Truncated), invalid),
        row("no signature", signed(Signer::Nobody), invalid),
        row(
            "claims changed under the signature",
            Forgery { signer: Signer::Kept, ..claim("epoch", json!(9)) },
            invalid,
        ),
        row("a token of 2 KiB and more", claim("iss", json!("x".repeat(1_500))), invalid),
        row(
            "the grant as a ticket",
            Forgery { shown: Shown::GrantAsTicket, ..Forgery::default() },
            invalid,
        ),
        row(
            "the ticket as a grant",
            Forgery { shown: Shown::TicketAsGrant, ..Forgery::default() },
            invalid,
        ),
    ];
    for (what, change) in spoil(&["alg", "typ", "kid"]) {
        rows.push(row(format!("header {what}"), Forgery { header: change, ..site() }, invalid));
    }
    let claims = ["iss", "aud", "sub", "sid", "epoch", "jti", "iat", "exp", "cnf"];
    for (what, change) in spoil(&claims) {
        rows.push(row(format!("claim {what}"), Forgery { claims: change, ..site() }, invalid));
    }
    rows
}

/// The rows of proofs.
pub fn unproven() -> Vec<Sin> {
    let proof = |proof| Forgery { proof, ..Forgery::default() };
    let wrong = Code::WrongKey;
    let key = json!({"kty": "OKP", "crv": "Ed25519", "x": "A".repeat(43)});
    vec![
        row("a proof of a login", proof(Proof::OfLogin), wrong),
        row("a proof of the grant", proof(Proof::OfOtherToken), wrong),
        row("a proof of a resume", proof(Proof::OfOtherKind), wrong),
        row("a proof of link 2", proof(Proof::OfLink(2)), wrong),
        row("a proof of link 0", proof(Proof::OfLink(0)), wrong),
        row("a proof from another connection", proof(Proof::OfOtherConnection), wrong),
        row("a proof by another key", proof(Proof::ByOtherKey), wrong),
        row("another key, honestly proven", proof(Proof::WithOtherKey), wrong),
        row(
            "a key without an order",
            Forgery { message: Change::Set("key", key), ..Forgery::default() },
            wrong,
        ),
        row(
            "a proof of zeros",
            Forgery { message: Change::Set("proof", json!("A".repeat(86))), ..Forgery::default() },
            wrong,
        ),
        row("link 0", Forgery { link: 0, ..Forgery::default() }, Code::LinkStale),
    ]
}
