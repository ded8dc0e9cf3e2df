//! Which files are taken for a role's certificate.

use std::fs;

use prometheus_client::metrics::counter::Counter;
use tegata_edge::metrics::RoleLabels;
use tegata_edge::supervisor::Tasks;
use tegata_edge::tls::{CertificateError, Party, RoleCertificate, keep_fresh};
use tokio_util::sync::CancellationToken;

use crate::house::{FIRST, House, Paper, chmod, until};

fn refusal(house: &House, paper: &Paper) -> CertificateError {
    let (chain, key) = house.issue("odd", paper);
    RoleCertificate::load(Party::Broker, chain, key).expect_err("refused")
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let house = House::new();
    let (chain, key) = house.issue("broker", &Paper::of("tegata:broker/b1"));
    for mode in [0o640, 0o604, 0o660, 0o644] {
        chmod(&key, mode);
        let refused = RoleCertificate::load(Party::Broker, &chain, &key);
        assert!(matches!(refused, Err(CertificateError::KeyExposed { .. })), "{mode:o}");
    }
    chmod(&key, 0o400);
    RoleCertificate::load(Party::Broker, &chain, &key).expect("for its owner only");
}

#[test]
fn the_certificate_must_name_its_holder_once_and_as_the_role_wants() {
    let house = House::new();
    for uris in [
        &[][..],
        &["tegata:gateway/g1"],
        &["tegata:broker/"],
        &["https://broker/b1"],
        &["tegata:broker/b1", "tegata:broker/b2"],
        &["tegata:broker/b1", "tegata:gateway/g1"],
    ] {
        let refused = refusal(&house, &Paper { uris: uris.to_vec(), last_year: 2200 });
        assert!(matches!(refused, CertificateError::Holder { .. }), "{uris:?}: {refused}");
    }
}

#[test]
fn a_certificate_that_has_ended_is_refused() {
    let house = House::new();
    let refused = refusal(&house, &Paper { last_year: 2001, ..Paper::of("tegata:broker/b1") });
    assert!(matches!(refused, CertificateError::NotNow { .. }), "{refused}");
}

#[test]
fn a_bad_replacement_leaves_the_old_certificate_in_use() {
    let house = House::new();
    let certificate = house.broker();
    let key_before = certificate.spki_sha256();

    house.issue("broker", &Paper::of("tegata:broker/b2"));
    let other = certificate.reload().expect_err("another broker's");
    assert!(matches!(other, CertificateError::OtherHolder { .. }), "{other}");

    let (chain, _) = house.issue("broker", &Paper::of("tegata:broker/b1"));
    let (_, foreign_key) = house.issue("foreign", &Paper::of("tegata:broker/b1"));
    fs::copy(foreign_key, chain.with_extension("key")).unwrap();
    let mixed = certificate.reload().expect_err("half replaced");
    assert!(matches!(mixed, CertificateError::Key { .. }), "{mixed}");

    fs::write(&chain, "not a certificate").unwrap();
    let garbage = certificate.reload().expect_err("not PEM");
    assert!(matches!(garbage, CertificateError::Pem { .. }), "{garbage}");
    fs::remove_file(&chain).unwrap();
    let gone = certificate.reload().expect_err("no file");
    assert!(matches!(gone, CertificateError::File { .. }), "{gone}");

    assert_eq!(certificate.spki_sha256(), key_before);
}

#[tokio::test]
async fn new_files_are_found_without_being_told_and_the_end_is_shown() {
    let house = House::new();
    let certificate = house.broker();
    let key_before = certificate.spki_sha256();
    house.issue("broker", &Paper { last_year: 2100, ..Paper::of("tegata:broker/b1") });

    let tasks = Tasks::new(Counter::default());
    let roles = vec![(FIRST, certificate.clone())];
    tasks.spawn("fresh", keep_fresh(roles, house.metrics.clone(), CancellationToken::new()));
    until(|| certificate.spki_sha256() != key_before).await;
    let labels = RoleLabels { alpn: String::from_utf8_lossy(FIRST).into_owned() };
    let end = || house.metrics.certificate_ends.get_or_create(&labels).get();
    // 2100-01-01T00:00:00Z.
    until(|| (end() - 4_102_444_800.0).abs() < 1.0).await;
}
