//! What is refused, and how the audit trail tells of it.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use prometheus_client::registry::Registry;
use tegata_edge::network::NetworkClass;
use tegata_proto::claims::{Claims, Confirmation};
use tegata_proto::encoding::{Bytes, Secret};
use tegata_proto::key::PublicKey;
use tegata_proto::proof::signed_bytes;
use uuid::Uuid;

use super::*;
use crate::adapters::key_file::KeyFile;
use crate::adapters::sqlite::tests::Folder;
use crate::flows::tests::{PATIENCE, followups};
use crate::ports::signer::{self, Signer as _};
use crate::ports::store::contract::{BOOT, Office};

const EXPORTER: [u8; 32] = [3; 32];

/// Somebody's agent, with what it may show.
struct Agent {
    key: Ed25519KeyPair,
    ticket: Right,
    grant: Right,
    claims: Claims,
}

struct Desk {
    desk: RedeemDesk,
    signer: KeyFile,
}

impl Desk {
    fn of(office: &Office<Folder>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        crate::init::init(&folder.path().join("site")).unwrap();
        let signer = KeyFile::read(&folder.path().join("site/signing.key")).unwrap();
        let known = (signer.kid().to_owned(), PublicKey::new(signer.public()));
        let desk = RedeemDesk {
            keys: TokenKeys::new("tegata", [known]),
            followups: followups(office),
            refusals: Arc::new(Refusals::new()),
            metrics: Metrics::register(&mut Registry::default()),
        };
        Self { desk, signer }
    }

    async fn agent(&self, office: &mut Office<Folder>) -> Agent {
        let login = office.login("sato").await.unwrap();
        let key = Ed25519KeyPair::generate().unwrap();
        let public = PublicKey::new(key.public_key().as_ref().try_into().unwrap());
        let cnf = Confirmation { jkt: thumbprint(&public) };
        let claims = Claims { cnf, ..office.claims(&login) };
        let sign = |kind| self.signer.sign(kind, &claims).unwrap();
        let ticket = Right::Ticket(sign(signer::TokenKind::Ticket));
        let grant = Right::Grant(sign(signer::TokenKind::Resume));
        Agent { key, ticket, grant, claims }
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
        let link = LinkNumber::FIRST;
        let signed = signed_bytes(purpose_of(right), &EXPORTER, link);
        RedeemRequest {
            right: right.clone(),
            claims: self.claims.clone(),
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
    let desk = Desk::of(&office);
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
    let again = RedeemRequest { boot: Uuid::nil(), ..sato.request(&sato.ticket, EXPORTER) };
    assert_eq!(desk.redeem(again).await, Some(Code::TicketUsed), "the store's own record");

    let wanted = [
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
    let desk = Desk::of(&office);
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
    let desk = Desk::of(&office);
    let sato = desk.agent(&mut office).await;
    office.bench.stop().await;
    assert_eq!(desk.redeem(sato.request(&sato.grant, EXPORTER)).await, Some(Code::ResumeLost));
    desk.desk.followups.tasks.end(Instant::now() + PATIENCE).await;
    let counted = desk.desk.refusals.take().records(office.now);
    assert_eq!(counted.len(), 1, "{counted:?}");
    assert_eq!(counted[0].detail["code"], Code::ResumeLost.as_str());
}
