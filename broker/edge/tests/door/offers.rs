//! Which offers are taken, and what the peer is shown.

use quinn::{Connection, ConnectionError};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;
use tegata_edge::Limits;
use tegata_proto::proof::EXPORTER_LABEL;

use crate::house::{FIRST, House, SECOND, ask, until, within};

/// TLS alert `no_application_protocol`, as QUIC carries it (RFC 9001 §4.8).
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;
/// TLS alert `access_denied`, as QUIC carries it.
const ACCESS_DENIED: u64 = 0x100 + 49;

fn shown(connection: &Connection) -> CertificateDer<'static> {
    let chain = connection.peer_identity().expect("a handshake");
    let chain = chain.downcast::<Vec<CertificateDer<'static>>>().expect("rustls's chain");
    chain.first().expect("a certificate").clone()
}

fn alert(refused: Result<Connection, ConnectionError>) -> u64 {
    match refused {
        Err(ConnectionError::ConnectionClosed(close)) => close.error_code.into(),
        other => unreachable!("not refused by the handshake: {other:?}"),
    }
}

#[tokio::test]
async fn each_alpn_is_shown_the_certificate_of_its_role() {
    let house = House::new();
    let server = house.open(Limits::default());
    for (alpn, party, certificate) in [
        (FIRST, "tegata:broker/b1", &server.broker),
        (SECOND, "tegata:gateway/g1", &server.gateway),
    ] {
        let connection = house.visitor(&[alpn]).connect(server.address).await;
        let leaf = shown(&connection);
        let text = String::from_utf8_lossy(&leaf).into_owned();
        assert!(text.contains(party), "{party}");
        assert!(party.ends_with(certificate.id()));
    }
    assert_ne!(server.broker.spki_sha256(), server.gateway.spki_sha256());
}

#[tokio::test]
async fn an_unknown_alpn_and_none_at_all_are_refused() {
    let house = House::new();
    let server = house.open(Limits::default());
    for offer in [&[&b"h3"[..]][..], &[]] {
        let refused = house.visitor(offer).try_connect(server.address).await;
        assert!([NO_APPLICATION_PROTOCOL, ACCESS_DENIED].contains(&alert(refused)));
    }
    until(|| house.refused(tegata_edge::metrics::Refusal::Handshake) == 2).await;
}

#[tokio::test]
async fn an_offer_of_two_roles_is_refused_and_one_among_strangers_is_taken() {
    let house = House::new();
    let server = house.open(Limits::default());
    let refused = house.visitor(&[FIRST, SECOND]).try_connect(server.address).await;
    assert_eq!(alert(refused), ACCESS_DENIED);
    let connection = house.visitor(&[b"h3", SECOND]).connect(server.address).await;
    assert_eq!(ask(&connection, "hello").await.unwrap(), json!({ "say": "hello" }));
}

#[tokio::test]
async fn both_sides_know_the_connection_by_the_same_exporter() {
    let house = House::new();
    let server = house.open(Limits::default());
    let visitor = house.visitor(&[FIRST]);
    let mut seen = Vec::new();
    for _ in 0..2 {
        let connection = visitor.connect(server.address).await;
        let mut exporter = [0_u8; 32];
        connection.export_keying_material(&mut exporter, EXPORTER_LABEL, b"").unwrap();
        assert_eq!(ask(&connection, "exporter").await.unwrap(), json!(exporter));
        seen.push(exporter);
    }
    assert_ne!(seen[0], seen[1], "two connections are two");
}

#[tokio::test]
async fn a_later_connection_starts_from_nothing() {
    let house = House::new();
    let server = house.open(Limits::default());
    let visitor = house.visitor(&[FIRST]);
    let first = visitor.connect(server.address).await;
    ask(&first, "hello").await.unwrap();
    // A ticket would have come before the second answer.
    ask(&first, "hello").await.unwrap();
    let early = visitor.connecting(server.address).into_0rtt();
    let connecting = early.err().expect("no early data");
    within(connecting).await.expect("a whole handshake");
}

#[tokio::test]
async fn a_new_certificate_is_shown_from_the_next_handshake_on() {
    let house = House::new();
    let server = house.open(Limits::default());
    let visitor = house.visitor(&[FIRST]);
    let before = visitor.connect(server.address).await;
    let old_key = server.broker.spki_sha256();

    let paper = crate::house::Paper::of("tegata:broker/b1");
    let (chain, _) = house.issue("broker", &paper);
    assert!(server.broker.reload().unwrap(), "the files are new");
    assert!(!server.broker.reload().unwrap(), "and are not new twice");
    assert_ne!(server.broker.spki_sha256(), old_key);

    let after = visitor.connect(server.address).await;
    assert_eq!(shown(&after), CertificateDer::from_pem_file(chain).unwrap());
    ask(&before, "hello").await.expect("the old connection goes on");
}
