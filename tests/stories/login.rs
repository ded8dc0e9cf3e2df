//! A staff member types a name and a password, and the directory says yes or no.

#![allow(clippy::unwrap_used, missing_docs)]

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::Result;
use tegata_parts::ca::TestCa;
use tegata_parts::fake::FakeDesktop;
use tegata_parts::slapd::{Group, Person, Slapd, group_dn};
use tegata_tests::site::{Builder, Site, pool};
use tegata_tests::staff::echo;

const PASSWORD: &str = "Himitsu-1";

/// The ministry's directory: Sato is in accounting by way of a section, Tanaka
/// is in no group.
fn directory(ca: &TestCa) -> Result<Slapd> {
    Slapd::builder()
        .person(Person::new("sato", "Sato Hanako", PASSWORD).unit("keiri-ka"))
        .person(Person::new("tanaka", "Tanaka Jiro", PASSWORD))
        .group(Group::new("section-1").member("sato"))
        .group(Group::new("keiri").group("section-1"))
        .start(ca)
}

fn ministry(desktop: &FakeDesktop) -> Builder {
    Site::builder().pool(pool("keiri", &group_dn("keiri"), &[desktop.address()]))
}

#[test]
fn sato_logs_in_over_ldaps_and_over_start_tls() -> Result<()> {
    let ca = TestCa::new("directory")?;
    let slapd = directory(&ca)?;
    for url in [slapd.ldaps_url(), slapd.ldap_url()] {
        let desktop = FakeDesktop::echo(b"")?;
        let site = ministry(&desktop).directory(&url, &ca.certificate()).start()?;
        site.api()?.wait_for_desktops("keiri", "ready", 1)?;

        let mut sato = site.login("sato", PASSWORD)?;
        echo(&mut sato.desktop()?, "a line through QUIC and back")?;
        for event in ["connected", "authenticated", "assigned", "ticket", "attached", "first_byte"]
        {
            let at = sato.event(event)?["elapsed_ms"].clone();
            assert!(at.is_u64(), "{event} at {at}");
        }
        assert_eq!(sato.exit()?, 50, "the viewer was closed without a log-off");
        let sessions = site.api()?.sessions()?;
        assert_eq!(sessions.len(), 1, "{sessions:?}");
        assert_eq!(sessions[0]["class"], "office");
        assert_eq!(sessions[0]["display_name"], "Sato Hanako");
        let user = format!("honsho/{}", slapd.entry_uuid("sato")?);
        assert_eq!(sessions[0]["user"], user, "the directory's own id");
    }
    Ok(())
}

#[test]
fn sato_reaches_a_broker_by_its_ipv6_address() -> Result<()> {
    let desktop = FakeDesktop::echo(b"")?;
    let site = Site::builder()
        .people(&[("sato", PASSWORD, &["keiri"])])?
        .pool(pool("keiri", "keiri", &[desktop.address()]))
        .at(Ipv6Addr::LOCALHOST.into())
        .start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 1)?;
    assert!(site.listen().to_string().starts_with("[::1]:"), "as --server is given");
    let mut sato = site.login("sato", PASSWORD)?;
    echo(&mut sato.desktop()?, "there and back")?;
    assert_eq!(sato.exit()?, 50);
    Ok(())
}

#[test]
fn a_person_without_entitlement_is_told_so() -> Result<()> {
    let ca = TestCa::new("directory")?;
    let slapd = directory(&ca)?;
    let desktop = FakeDesktop::echo(b"")?;
    let site = ministry(&desktop).slapd(&slapd, &ca.certificate()).start()?;
    let mut tanaka = site.login("tanaka", PASSWORD)?;
    assert_eq!(tanaka.exit()?, 30, "{}", tanaka.log());
    assert_eq!(tanaka.event("error")?["code"], "no_entitlement");
    assert!(site.api()?.sessions()?.is_empty());
    Ok(())
}

#[test]
fn a_wrong_password_an_unknown_name_and_a_locked_account_read_alike() -> Result<()> {
    let ca = TestCa::new("directory")?;
    let slapd = directory(&ca)?;
    slapd.lock("tanaka")?;
    let desktop = FakeDesktop::echo(b"")?;
    let site = ministry(&desktop).slapd(&slapd, &ca.certificate()).start()?;
    let mut told = Vec::new();
    for (name, password) in
        [("sato", "wrong"), ("nobody", PASSWORD), ("tanaka", PASSWORD), ("sato", " ")]
    {
        let mut agent = site.login(name, password)?;
        assert_eq!(agent.exit()?, 20, "{name}: {}", agent.log());
        let mut error = agent.event("error")?;
        error["elapsed_ms"].take();
        told.push(error);
    }
    assert!(told.windows(2).all(|two| two[0] == two[1]), "{told:?}");
    assert!(!site.log().contains(PASSWORD), "no password in the log");
    Ok(())
}

#[test]
fn an_empty_password_reaches_no_directory() -> Result<()> {
    let ca = TestCa::new("directory")?;
    let slapd = directory(&ca)?;
    let desktop = FakeDesktop::echo(b"")?;
    let site = ministry(&desktop).slapd(&slapd, &ca.certificate()).start()?;
    let mut sato = site.login("sato", "")?;
    assert_eq!(sato.exit()?, 20, "{}", sato.log());
    assert!(site.api()?.sessions()?.is_empty());
    Ok(())
}

#[test]
fn a_directory_of_another_authority_is_not_asked() -> Result<()> {
    let (ca, other) = (TestCa::new("directory")?, TestCa::new("other")?);
    let slapd = directory(&ca)?;
    let desktop = FakeDesktop::echo(b"")?;
    for url in [slapd.ldaps_url(), slapd.ldap_url()] {
        let site = ministry(&desktop).directory(&url, &other.certificate()).start()?;
        let mut sato = site.login("sato", PASSWORD)?;
        assert_eq!(sato.exit()?, 25, "{}", sato.log());
        assert!(site.api()?.sessions()?.is_empty());
    }
    Ok(())
}

#[test]
fn a_directory_that_is_away_grants_nothing_and_comes_back_by_itself() -> Result<()> {
    let ca = TestCa::new("directory")?;
    let mut slapd = directory(&ca)?;
    let desktop = FakeDesktop::echo(b"")?;
    let site = ministry(&desktop).slapd(&slapd, &ca.certificate()).start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 1)?;

    slapd.stop()?;
    let mut sato = site.login("sato", PASSWORD)?;
    assert_eq!(sato.exit()?, 25, "{}", sato.log());
    slapd.restart()?;
    slapd.pause()?;
    let mut sato = site.login("sato", PASSWORD)?;
    assert_eq!(sato.exit()?, 25, "accepts and is silent: {}", sato.log());
    slapd.resume();
    let sato = tegata_tests::wait::until("the directory to be used again", || {
        let mut sato = site.login("sato", PASSWORD)?;
        if sato.event("attached").is_ok() { Ok(Some(sato)) } else { sato.exit().map(|_| None) }
    })?;
    echo(&mut sato.desktop()?, "back")?;
    Ok(())
}

#[test]
fn a_broker_of_another_authority_gets_no_password() -> Result<()> {
    let ca = TestCa::new("directory")?;
    let slapd = directory(&ca)?;
    let desktop = FakeDesktop::echo(b"")?;
    let site = ministry(&desktop).slapd(&slapd, &ca.certificate()).start()?;
    let mut sato = site.device("sato", PASSWORD).trusting(ca.certificate()).start()?;
    assert_eq!(sato.exit()?, 12, "{}", sato.log());
    let nobody = SocketAddr::from(([127, 0, 0, 1], tegata_parts::port::free_udp()?));
    let mut sato = site.device("sato", PASSWORD).server(&nobody.to_string()).start()?;
    assert_eq!(sato.exit()?, 11, "{}", sato.log());
    Ok(())
}

#[test]
fn a_password_is_in_no_argument_list_and_no_file_of_the_broker() -> Result<()> {
    let desktop = FakeDesktop::echo(b"")?;
    let site = Site::builder()
        .people(&[("sato", PASSWORD, &["keiri"])])?
        .pool(pool("keiri", "keiri", &[desktop.address()]))
        .start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 1)?;
    let sato = site.login("sato", PASSWORD)?;
    echo(&mut sato.desktop()?, "hello")?;
    let arguments = std::fs::read(format!("/proc/{}/cmdline", sato.process()))?;
    assert!(!contains(&arguments, PASSWORD));
    for entry in std::fs::read_dir(site.path("."))? {
        let path = entry?.path();
        if path.is_file() {
            assert!(!contains(&std::fs::read(&path)?, PASSWORD), "{}", path.display());
        }
    }
    assert!(!site.log().contains(PASSWORD));
    Ok(())
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
