//! Who comes back by a grant; what is refused, and how the audit trail tells of it.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use prometheus_client::registry::Registry;
use tegata_domain::session::Cause;
use tegata_edge::network::NetworkClass;
use tegata_proto::claims::{Claims, Confirmation};
use tegata_proto::encoding::{Bytes, Secret};
use tegata_proto::id::{Epoch, Incarnation};
use tegata_proto::key::PublicKey;
use tegata_proto::proof::signed_bytes;
use uuid::Uuid;

use super::*;
use crate::adapters::key_file::KeyFile;
use crate::adapters::sqlite::tests::Folder;
use crate::flows::tests::{Noon, PATIENCE, followups};
use crate::ports::store::contract::{BOOT, GRACE, Office};

const EXPORTER: [u8; 32] = [3; 32];

/// Somebody's agent, with what it may show.
struct Agent {
    key: Ed25519KeyPair,
    ticket: Right,
    grant: Right,
    claims: Claims,
    grant_claims: Claims,
}

struct Desk {
    desk: RedeemDesk,
}

impl Desk {
    async fn of(office: &Office<Folder>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        crate::init::init(&folder.path().join("site")).unwrap();
        let signer = KeyFile::read(&folder.path().join("site/signing.key")).unwrap();
        let known = (signer.kid().to_owned(), PublicKey::new(signer.public()));
        let catalogue = Arc::new(Catalogue::new(office.store()));
        catalogue.refresh().await.unwrap();
        let desk = RedeemDesk {
            keys: TokenKeys::new("tegata", [known]),
            tokens: Tokens { signer: Arc::new(signer), issuer: "tegata".into() },
            catalogue,
            followups: followups(office),
            refusals: Arc::new(Refusals::new()),
            returns: Arc::default(),
            metrics: Metrics::register(&mut Registry::default()),
        };
        Self { desk }
    }

    async fn agent(&self, office: &mut Office<Folder>) -> Agent {
        let login = office.login("sato").await.unwrap();
        let key = Ed25519KeyPair::generate().unwrap();
        let public = PublicKey::new(key.public_key().as_ref().try_into().unwrap());
        let cnf = Confirmation { jkt: thumbprint(&public) };
        let claims = Claims { cnf, ..office.claims(&login) };
        let grant_claims = Claims { exp: claims.iat + GRACE.as_secs(), ..claims.clone() };
        let sign = |kind, claims| self.desk.tokens.signer.sign(kind, claims).unwrap();
        let ticket = Right::Ticket(sign(signer::TokenKind::Ticket, &claims));
        let grant = Right::Grant(sign(signer::TokenKind::Resume, &grant_claims));
        Agent { key, ticket, grant, claims, grant_claims }
    }

    /// Lets the clock show another time from now on.
    fn at(&mut self, now: Timestamp) {
        self.desk.followups.clock = Arc::new(Noon(now));
    }

    async fn redeem(&self, request: RedeemRequest) -> Option<Code> {
        match self.desk.redeem(request).await {
            Ok(_) => None,
            Err(Refused::Code(code)) => Some(code),
            Err(Refused::Busy { .. }) => panic!("the store serves"),
        }
    }

    /// Waits until everything is written, and returns the records of refusals
    /// after a number: action, code and count.
    async fn refusals(self, office: &Office<Folder>, after: i64) -> Vec<(String, String, String)> {
        self.desk.followups.tasks.end(Instant::now() + PATIENCE).await;
        let mut records = office.store().audit_after(after, 1_000).await.unwrap();
        records.extend(self.desk.refusals.take().records(office.now).into_iter().map(|r| (0, r)));
        let mut told: Vec<_> = records
            .into_iter()
            .filter(|(_, record)| record.action.ends_with(".refused"))
            .map(|(_, mut record)| {
                let mut detail = |name| record.detail.remove(name).unwrap_or_default();
                (record.action.clone(), detail("code"), detail("count"))
            })
            .collect();
        told.sort();
        told
    }
}

impl Agent {
    fn request(&self, right: &Right, exporter: [u8; 32]) -> RedeemRequest {
        self.request_of_link(right, exporter, LinkNumber::FIRST)
    }

    /// The grant, for the link of this number.
    fn comes_back(&self, link: u64) -> RedeemRequest {
        self.request_of_link(&self.grant, EXPORTER, LinkNumber(link))
    }

    fn renewal(&self, link: u64) -> Renewal {
        let Claims { sid, epoch, cnf, .. } = self.claims.clone();
        Renewal { sid, epoch, link: LinkNumber(link), jkt: cnf.jkt }
    }

    fn request_of_link(
        &self,
        right: &Right,
        exporter: [u8; 32],
        link: LinkNumber,
    ) -> RedeemRequest {
        let claims = match right {
            Right::Ticket(_) => &self.claims,
            Right::Grant(_) => &self.grant_claims,
        };
        let signed = signed_bytes(purpose_of(right), &EXPORTER, link);
        RedeemRequest {
            right: right.clone(),
            claims: claims.clone(),
            key: PublicKey::new(self.key.public_key().as_ref().try_into().unwrap()),
            link,
            proof: Bytes(self.key.sign(&signed).as_ref().try_into().unwrap()),
            exporter,
            gateway: "gw-1".parse().unwrap(),
            boot: BOOT,
            remote: "192.0.2.1:50000".parse().unwrap(),
            class: NetworkClass::new("office").unwrap(),
            resume: None,
        }
    }
}

fn told(action: &str, code: Code, count: &str) -> (String, String, String) {
    (action.to_owned(), code.to_string(), count.to_owned())
}

#[tokio::test]
async fn what_we_signed_is_refused_with_one_record_and_repeats_are_counted() {
    let mut office = Office::<Folder>::with_desktops(1).await;
    let desk = Desk::of(&office).await;
    let sato = desk.agent(&mut office).await;
    let (_, seq) = office.actions(0).await;
    for _ in 0..3 {
        let stolen = sato.request(&sato.ticket, [4; 32]);
        assert_eq!(desk.redeem(stolen).await, Some(Code::WrongKey));
    }
    let grant = sato.request(&sato.grant, EXPORTER);
    assert_eq!(desk.redeem(grant).await, Some(Code::ResumeLost));
    let mut other = sato.request(&sato.ticket, EXPORTER);
    other.claims.epoch.0 += 1;
    assert_eq!(desk.redeem(other).await, Some(Code::TicketInvalid), "a gateway that lies");
    let good = sato.request(&sato.ticket, EXPORTER);
    assert_eq!(desk.redeem(good).await, None, "the ticket is still good");
    for _ in 0..500 {
        let again = RedeemRequest { boot: Uuid::nil(), ..sato.request(&sato.ticket, EXPORTER) };
        assert_eq!(desk.redeem(again).await, Some(Code::TicketUsed), "by its own key");
    }

    let wanted = [
        told("attach.refused", Code::TicketUsed, "499"),
        told("attach.refused", Code::WrongKey, "2"),
        told("grant.refused", Code::ResumeLost, ""),
        told("ticket.refused", Code::TicketInvalid, ""),
        told("ticket.refused", Code::TicketUsed, ""),
        told("ticket.refused", Code::WrongKey, ""),
    ];
    assert_eq!(desk.refusals(&office, seq).await, wanted);
}

#[tokio::test]
async fn what_a_gateway_refused_by_itself_is_in_the_audit_trail() {
    let mut office = Office::<Folder>::with_desktops(1).await;
    let desk = Desk::of(&office).await;
    let sato = desk.agent(&mut office).await;
    let (_, seq) = office.actions(0).await;
    let forged = Right::Ticket(Secret::new("a.b.c"));
    let swapped = Right::Ticket(sato.grant.token().clone());
    for (code, right) in [
        (Code::Malformed, None),
        (Code::TicketInvalid, Some(forged.clone())),
        (Code::TicketInvalid, Some(forged)),
        (Code::TicketInvalid, Some(swapped)),
        (Code::WrongKey, Some(sato.ticket.clone())),
    ] {
        let shown = right.map(|right| Shown { right, link: LinkNumber::FIRST });
        let (remote, gateway) = ("192.0.2.1:50000".parse().unwrap(), "gw-1".parse().unwrap());
        desk.desk.refused(RefusedAttach { code, shown, remote, gateway }).await;
    }
    let wanted = [
        told("attach.refused", Code::Malformed, "1"),
        told("attach.refused", Code::TicketInvalid, "2"),
        told("grant.refused", Code::TicketInvalid, ""),
        told("ticket.refused", Code::WrongKey, ""),
    ];
    assert_eq!(desk.refusals(&office, seq).await, wanted);
}

#[tokio::test]
async fn a_refusal_that_cannot_be_written_is_counted() {
    let mut office = Office::<Folder>::with_desktops(1).await;
    let desk = Desk::of(&office).await;
    let sato = desk.agent(&mut office).await;
    office.bench.stop().await;
    assert_eq!(desk.redeem(sato.request(&sato.ticket, [4; 32])).await, Some(Code::WrongKey));
    desk.desk.followups.tasks.end(Instant::now() + PATIENCE).await;
    let counted = desk.desk.refusals.take().records(office.now);
    assert_eq!(counted.len(), 1, "{counted:?}");
    assert_eq!(counted[0].detail["code"], Code::WrongKey.as_str());
}

#[tokio::test]
async fn a_ticket_then_its_grant_open_link_after_link_for_their_own_key() {
    let mut office = Office::<Folder>::with_desktops(1).await;
    let desk = Desk::of(&office).await;
    let sato = desk.agent(&mut office).await;
    let (_, seq) = office.actions(0).await;
    assert_eq!(desk.redeem(sato.comes_back(1)).await, Some(Code::ResumeLost), "not before it");
    assert_eq!(desk.redeem(sato.request(&sato.ticket, EXPORTER)).await, None);
    for link in [2, 3, 7] {
        assert_eq!(desk.redeem(sato.comes_back(link)).await, None);
    }
    let mut thief = desk.agent(&mut office).await;
    (thief.grant, thief.grant_claims) = (sato.grant.clone(), sato.grant_claims.clone());
    for (wrong, code) in [
        (RedeemRequest { resume: Some(Incarnation(9)), ..sato.comes_back(8) }, Code::ResumeLost),
        (sato.comes_back(6), Code::LinkStale),
        (RedeemRequest { link: LinkNumber(8), ..sato.comes_back(9) }, Code::WrongKey),
        (RedeemRequest { exporter: [4; 32], ..sato.comes_back(8) }, Code::WrongKey),
        (thief.comes_back(8), Code::WrongKey),
        (sato.request(&Right::Grant(sato.ticket.token().clone()), EXPORTER), Code::TicketInvalid),
    ] {
        assert_eq!(desk.redeem(wrong).await, Some(code));
    }
    assert_eq!(desk.redeem(sato.comes_back(8)).await, None, "none of them did any harm");
    let told = desk.refusals(&office, seq).await;
    let grants = told.iter().filter(|(action, ..)| action == "grant.refused");
    let codes: Vec<_> = grants.map(|(_, code, _)| code.as_str()).collect();
    assert_eq!(codes, ["link_stale", "resume_lost", "wrong_key"]);
}

#[tokio::test]
async fn a_grant_past_half_its_life_is_answered_with_a_younger_one() {
    let mut office = Office::<Folder>::with_desktops(1).await;
    let mut desk = Desk::of(&office).await;
    let sato = desk.agent(&mut office).await;
    let half = GRACE / 2;
    let first = desk.desk.redeem(sato.request(&sato.ticket, EXPORTER)).await.unwrap();
    assert_eq!((first.grant, first.renew_after), (None, half), "there is one with the ticket");

    let second = Duration::from_secs(1);
    for (link, age, left) in [
        (2, Duration::ZERO, Some(half)),
        (3, half.saturating_sub(second), Some(second)),
        (4, half, None),
        (5, GRACE, None),
    ] {
        let now = office.now.after(age);
        desk.at(now);
        let back = desk.desk.redeem(sato.comes_back(link)).await.unwrap();
        assert_eq!(back.renew_after, left.unwrap_or(half), "{age:?}");
        let Some(grant) = back.grant else {
            assert!(left.is_some(), "none after {age:?}");
            continue;
        };
        assert!(left.is_none(), "one after {age:?}");
        let younger = desk.desk.keys.verify(grant.expose(), TokenKind::Resume).unwrap();
        let (iat, exp) = (now.as_secs(), now.after(GRACE).as_secs());
        let wanted = Claims { jti: younger.jti, iat, exp, ..sato.claims.clone() };
        assert_eq!(younger, wanted);
        assert_ne!(younger.jti, sato.claims.jti);
    }
}

#[tokio::test]
async fn a_grant_is_renewed_for_the_link_that_is_carried_and_for_its_key_only() {
    let mut office = Office::<Folder>::with_desktops(1).await;
    let mut desk = Desk::of(&office).await;
    let sato = desk.agent(&mut office).await;
    assert_eq!(desk.desk.renew(sato.renewal(0)).await, None, "the ticket is not redeemed");
    desk.redeem(sato.request(&sato.ticket, EXPORTER)).await;
    desk.redeem(sato.comes_back(2)).await;
    let now = office.now.after(GRACE / 2);
    desk.at(now);
    let good = sato.renewal(2);
    for wrong in [
        Renewal { link: LinkNumber(1), ..good },
        Renewal { link: LinkNumber(3), ..good },
        Renewal { epoch: Epoch(good.epoch.0 + 1), ..good },
        Renewal { jkt: Bytes([0; 32]), ..good },
        Renewal { sid: SessionId(Uuid::nil()), ..good },
    ] {
        assert_eq!(desk.desk.renew(wrong).await, None, "{wrong:?}");
    }
    let renewed = desk.desk.renew(good).await.expect("it is carried");
    assert_eq!(renewed.renew_after, GRACE / 2);
    let younger = desk.desk.keys.verify(renewed.grant.expose(), TokenKind::Resume).unwrap();
    let (iat, exp) = (now.as_secs(), now.after(GRACE).as_secs());
    assert_eq!(younger, Claims { jti: younger.jti, iat, exp, ..sato.claims.clone() });
    for event in [Event::LinkLost, Event::EndWanted(Cause::Administrator), Event::Closed] {
        office.tell(good.sid, event).await.unwrap();
        assert_eq!(desk.desk.renew(good).await, None, "after {event:?}");
    }
}

#[tokio::test]
async fn a_link_that_was_ended_does_not_speak_for_what_its_gateway_keeps() {
    let mut office = Office::<Folder>::with_desktops(1).await;
    let desk = Desk::of(&office).await;
    let login = office.work("sato").await;
    let end = Event::EndWanted(Cause::Administrator);
    let close = office.tell(login.sid, end).await.unwrap();
    desk.desk
        .detached(LinkReport {
            sid: login.sid,
            epoch: login.assigned.epoch,
            link: LinkNumber::FIRST,
            end: LinkEnd::Ended(Code::EndedByAdministrator),
            bytes_up: 1,
            bytes_down: 2,
            attached_for: Duration::ZERO,
            last_byte_at: None,
            input_minutes: None,
        })
        .await;
    let cause = Cause::Administrator;
    assert_eq!(office.state(login.sid).await, State::Ending { cause });
    desk.desk.followups.carry_out(close).await;
    assert_eq!(office.state(login.sid).await, State::Ended { cause });
}

#[tokio::test]
async fn a_session_whose_link_broke_off_is_without_a_link_and_not_carried_for_ever() {
    let mut office = Office::<Folder>::with_desktops(1).await;
    let desk = Desk::of(&office).await;
    let login = office.work("sato").await;
    desk.desk.broke_off(LinkReport {
        sid: login.sid,
        epoch: login.assigned.epoch,
        link: LinkNumber::FIRST,
        end: LinkEnd::BrokenOff,
        bytes_up: 1,
        bytes_down: 2,
        attached_for: Duration::ZERO,
        last_byte_at: None,
        input_minutes: None,
    });
    let heard = async {
        while !matches!(office.state(login.sid).await, State::Detached { .. }) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.expect("it is told");
}
