//! Whose desktop it is: returned to, given back, kept, waited for, and never
//! seen by anybody else.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use tegata_parts::ca::TestCa;
use tegata_parts::colour::Colour;
use tegata_parts::fake::FakeDesktop;
use tegata_parts::screen::Screen;
use tegata_parts::shadow::Shadow;
use tegata_parts::xrdp::{Bare, Server, Xrdp};
use tegata_tests::site::{Site, pool, rdp_pool};
use tegata_tests::staff::echo;
use tegata_tests::wait;

const PASSWORD: &str = "Himitsu-1";
const SATO: Colour = Colour::new(0x20, 0x60, 0xa0);
const TANAKA: Colour = Colour::new(0xa0, 0x40, 0x20);
const EVERYBODY: [(&str, &str, &[&str]); 3] = [
    ("sato", PASSWORD, &["keiri"]),
    ("tanaka", PASSWORD, &["keiri"]),
    ("suzuki", PASSWORD, &["keiri"]),
];

/// Where on a screen only the desktop's background is.
const CORNER: (u32, u32) = (5, 5);

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A machine on which Sato and Tanaka have accounts.
fn machine(ca: &TestCa) -> Result<Xrdp> {
    Xrdp::builder(Server::Xvnc)
        .account("sato", PASSWORD, SATO)
        .account("tanaka", PASSWORD, TANAKA)
        .start(&ca.issue_loopback()?)
}

#[test]
fn two_people_work_on_two_machines_and_neither_sees_the_others_window() -> Result<()> {
    let ca = TestCa::new("desktops")?;
    let machines = [machine(&ca)?, machine(&ca)?];
    let addresses = machines.each_ref().map(|machine| loopback(machine.port()));
    let site =
        Site::builder().people(&EVERYBODY)?.pool(rdp_pool("keiri", "keiri", &addresses)).start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 2)?;

    let (at_satos, at_tanakas) = (Screen::start(1024, 768)?, Screen::start(1024, 768)?);
    let sato = site.device("sato", PASSWORD).on(&at_satos).start()?;
    at_satos.wait_for_colour(CORNER.0, CORNER.1, SATO, wait::LIMIT)?;
    let tanaka = site.device("tanaka", PASSWORD).on(&at_tanakas).start()?;
    at_tanakas.wait_for_colour(CORNER.0, CORNER.1, TANAKA, wait::LIMIT)?;
    assert!(!at_tanakas.has_colour(SATO)?, "Tanaka never sees Sato's window");
    assert!(!at_satos.has_colour(TANAKA)?, "nor the other way round");
    assert!(sato.is_running() && tanaka.is_running());
    let holders: Vec<_> = site.api()?.desktops("keiri")?;
    assert_ne!(holders[0]["user"], holders[1]["user"], "{holders:?}");
    let arguments = std::fs::read_dir("/proc")?
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok());
    for arguments in arguments {
        let shown = String::from_utf8_lossy(&arguments);
        let ours = shown.contains("xfreerdp") || shown.contains("tegata");
        assert!(!ours || !shown.contains(PASSWORD), "a password in an argument list: {shown}");
    }
    Ok(())
}

#[test]
fn a_desktop_that_asks_before_it_shows_anything_is_answered_for_its_person_only() -> Result<()> {
    let desktops =
        [Shadow::start(("sato", PASSWORD), SATO)?, Shadow::start(("sato", PASSWORD), SATO)?];
    let addresses = desktops.each_ref().map(|desktop| loopback(desktop.port()));
    let mut keiri = rdp_pool("keiri", "keiri", &addresses);
    keiri["security"] = "nla".into();
    let site = Site::builder().people(&EVERYBODY)?.pool(keiri).start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 2)?;

    let screen = Screen::start(1024, 768)?;
    let sato = site.device("sato", PASSWORD).on(&screen).start()?;
    screen.wait_for_colour(CORNER.0, CORNER.1, SATO, wait::LIMIT)?;
    assert!(sato.is_running());

    // Tanaka may have a desktop of this pool, and has no account on it.
    let screen = Screen::start(1024, 768)?;
    let mut tanaka = site.device("tanaka", PASSWORD).on(&screen).start()?;
    let told = tanaka.exit()?;
    // This server declines by closing, without a word why.
    assert!([20, 41].contains(&told), "{told}: {}", tanaka.log());
    assert!(!screen.has_colour(SATO)?, "and is shown nothing of it");
    Ok(())
}

#[test]
fn sato_comes_back_to_the_same_window_after_a_disconnect_and_after_a_restart() -> Result<()> {
    let ca = TestCa::new("desktops")?;
    let machine = machine(&ca)?;
    let mut site = Site::builder()
        .people(&EVERYBODY)?
        .pool(rdp_pool("keiri", "keiri", &[loopback(machine.port())]))
        .start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 1)?;

    let screen = Screen::start(1024, 768)?;
    let mut sato = site.device("sato", PASSWORD).on(&screen).start()?;
    screen.wait_for_colour(CORNER.0, CORNER.1, SATO, wait::LIMIT)?;
    let window = machine.session("sato")?;
    assert!(window.is_some());
    assert_eq!(sato.leave()?, Some(50), "{}", sato.log());

    let screen = Screen::start(1024, 768)?;
    let mut sato = site.device("sato", PASSWORD).on(&screen).start()?;
    screen.wait_for_colour(CORNER.0, CORNER.1, SATO, wait::LIMIT)?;
    assert_eq!(machine.session("sato")?, window, "the same window after a disconnect");

    let (ended, log) = site.stop()?;
    assert_eq!(ended, Some(0), "the broker drains: {log}");
    sato.event("link_lost")?;
    site.start()?;
    wait::until("Sato's agent to be back", || {
        let attached = sato.events().iter().filter(|event| event["event"] == "attached").count();
        Ok((attached == 2).then_some(()))
    })
    .with_context(|| sato.log())?;
    assert_eq!(sato.leave()?, Some(50), "{}", sato.log());
    let screen = Screen::start(1024, 768)?;
    let _sato = site.device("sato", PASSWORD).on(&screen).start()?;
    screen.wait_for_colour(CORNER.0, CORNER.1, SATO, wait::LIMIT)?;
    assert_eq!(machine.session("sato")?, window, "the same window after a restart");
    Ok(())
}

#[test]
fn logging_off_gives_the_desktop_back_once_it_was_seen_empty() -> Result<()> {
    let ca = TestCa::new("desktops")?;
    let machine = machine(&ca)?;
    let mut keiri = rdp_pool("keiri", "keiri", &[loopback(machine.port())]);
    keiri["reuse"] = "after-logoff".into();
    keiri["queue_wait_ms"] = 0.into();
    let site =
        Site::builder().people(&EVERYBODY)?.pool(keiri).occupancy(machine.occupancy()).start()?;
    let api = site.api()?;
    api.wait_for_desktops("keiri", "ready", 1)?;

    let screen = Screen::start(1024, 768)?;
    let mut sato = site.device("sato", PASSWORD).on(&screen).start()?;
    screen.wait_for_colour(CORNER.0, CORNER.1, SATO, wait::LIMIT)?;
    assert_eq!(sato.leave()?, Some(50), "{}", sato.log());
    let mut tanaka = site.login("tanaka", PASSWORD)?;
    assert_eq!(tanaka.exit()?, 31, "Sato is still logged on: {}", tanaka.log());

    let screen = Screen::start(1024, 768)?;
    let mut sato = site.device("sato", PASSWORD).on(&screen).start()?;
    screen.wait_for_colour(CORNER.0, CORNER.1, SATO, wait::LIMIT)?;
    machine.log_off("sato")?;
    let told = sato.exit()?;
    assert!([0, 50].contains(&told), "{told}: {}", sato.log());
    api.wait_for_desktops("keiri", "ready", 1)?;
    assert!(api.sessions()?.is_empty(), "{:?}", api.sessions()?);

    let screen = Screen::start(1024, 768)?;
    let _tanaka = site.device("tanaka", PASSWORD).on(&screen).start()?;
    screen.wait_for_colour(CORNER.0, CORNER.1, TANAKA, wait::LIMIT)?;
    assert!(!screen.has_colour(SATO)?);
    Ok(())
}

#[test]
fn a_desktop_that_is_never_reused_goes_to_nobody_else() -> Result<()> {
    let desktop = FakeDesktop::echo(b"")?;
    let mut keiri = pool("keiri", "keiri", &[desktop.address()]);
    keiri["queue_wait_ms"] = 0.into();
    keiri["hold_ms"] = 0.into();
    keiri["grace_ms"] = 1.into();
    let site = Site::builder().people(&EVERYBODY)?.pool(keiri).start()?;
    let api = site.api()?;
    api.wait_for_desktops("keiri", "ready", 1)?;
    let mut sato = site.login("sato", PASSWORD)?;
    echo(&mut sato.desktop()?, "mine")?;
    sato.exit()?;
    api.wait_for_desktops("keiri", "quarantined", 1)?;
    let mut tanaka = site.login("tanaka", PASSWORD)?;
    assert_eq!(tanaka.exit()?, 31, "{}", tanaka.log());
    assert_eq!(api.desktops("keiri")?[0]["reason"], "used");
    Ok(())
}

#[test]
fn a_dedicated_desktop_stays_its_owners() -> Result<()> {
    let desktops = [FakeDesktop::echo(b"")?, FakeDesktop::echo(b"")?];
    let addresses = desktops.each_ref().map(FakeDesktop::address);
    let mut keiri = pool("keiri", "keiri", &addresses);
    keiri["kind"] = "dedicated".into();
    keiri["hold_ms"] = 0.into();
    keiri["grace_ms"] = 1.into();
    keiri["queue_wait_ms"] = 0.into();
    let site = Site::builder().people(&EVERYBODY)?.pool(keiri).start()?;
    let api = site.api()?;
    api.wait_for_desktops("keiri", "ready", 2)?;

    let work = |name| -> Result<String> {
        let mut login = site.login(name, PASSWORD)?;
        echo(&mut login.desktop()?, name)?;
        login.exit()?;
        wait::until("the session to be over", || Ok(api.sessions()?.is_empty().then_some(())))?;
        let desktops = api.desktops("keiri")?;
        let own = desktops.iter().filter(|desktop| desktop["account"] == name);
        let own: Vec<_> = own.map(|desktop| desktop["name"].to_string()).collect();
        assert_eq!(own.len(), 1, "{desktops:?}");
        Ok(own[0].clone())
    };
    let satos = work("sato")?;
    let tanakas = work("tanaka")?;
    assert_ne!(satos, tanakas);
    assert_eq!(work("sato")?, satos, "days later");
    let mut suzuki = site.login("suzuki", PASSWORD)?;
    assert_eq!(suzuki.exit()?, 31, "both have owners: {}", suzuki.log());
    Ok(())
}

#[test]
fn the_third_of_three_people_waits_for_one_of_two_desktops() -> Result<()> {
    let desktops = [FakeDesktop::echo(b"")?, FakeDesktop::echo(b"")?];
    let addresses = desktops.each_ref().map(FakeDesktop::address);
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("nobody");
    std::fs::write(&script, "#!/bin/sh\necho '{\"logged_on\":[]}'\n")?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut keiri = pool("keiri", "keiri", &addresses);
    keiri["reuse"] = "after-logoff".into();
    keiri["queue_wait_ms"] = 3_000.into();
    let site = Site::builder().people(&EVERYBODY)?.pool(keiri).occupancy(script).start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 2)?;

    let sato = site.login("sato", PASSWORD)?;
    let mut at_satos = sato.desktop()?;
    echo(&mut at_satos, "sato")?;
    let tanaka = site.login("tanaka", PASSWORD)?;
    let mut at_tanakas = tanaka.desktop()?;
    echo(&mut at_tanakas, "tanaka")?;

    let mut suzuki = site.login("suzuki", PASSWORD)?;
    assert_eq!(suzuki.event("queued")?["place"], 1);
    assert_eq!(suzuki.exit()?, 31, "nobody left in time: {}", suzuki.log());

    let suzuki = site.login("suzuki", PASSWORD)?;
    suzuki.event("queued")?;
    // The desktop closes, and its machine says that nobody is logged on.
    desktops.iter().for_each(FakeDesktop::hang_up);
    for mut viewer in [at_satos, at_tanakas] {
        assert_eq!(viewer.read(&mut [0])?, 0, "the viewer sees the end, and closes");
    }
    echo(&mut suzuki.desktop()?, "suzuki")?;
    Ok(())
}

#[test]
fn a_desktop_that_shows_another_certificate_is_not_shown() -> Result<()> {
    let ca = TestCa::new("desktops")?;
    let mut desktop = Bare::start(&ca.issue_loopback()?, SATO)?;
    let site = Site::builder()
        .people(&EVERYBODY)?
        .pool(rdp_pool("keiri", "keiri", &[loopback(desktop.port())]))
        .start()?;
    let api = site.api()?;
    api.wait_for_desktops("keiri", "ready", 1)?;
    assert_eq!(api.desktops("keiri")?[0]["certificate_sha256"], desktop.sha256());

    desktop.change_certificate(&ca.issue_loopback()?)?;
    let screen = Screen::start(1024, 768)?;
    let mut sato = site.device("sato", PASSWORD).on(&screen).start()?;
    assert_eq!(sato.exit()?, 12, "{}", sato.log());
    assert!(!screen.has_colour(SATO)?, "nothing of it is shown");

    // An administrator accepts it, with a reason.
    let mut keiri = rdp_pool("keiri", "keiri", &[loopback(desktop.port())]);
    keiri["desktops"][0]["certificate_sha256"] = desktop.sha256().into();
    let answer = api.put("/v1/pools/keiri", &keiri)?;
    assert_eq!((answer.status, &answer.body["code"]), (409, &"reason_missing".into()));
    let answer = api.put("/v1/pools/keiri?reason=new%20image", &keiri)?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let _sato = site.device("sato", PASSWORD).on(&screen).start()?;
    screen.wait_for_colour(CORNER.0, CORNER.1, SATO, wait::LIMIT)?;
    Ok(())
}

#[test]
fn a_peer_that_wants_no_tls_is_left_at_once() -> Result<()> {
    let ca = TestCa::new("desktops")?;
    let mut desktop = Bare::start(&ca.issue_loopback()?, SATO)?;
    let site = Site::builder()
        .people(&EVERYBODY)?
        .pool(rdp_pool("keiri", "keiri", &[loopback(desktop.port())]))
        .start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 1)?;
    // Somebody else answers at the desktop's address, with standard RDP security.
    let port = desktop.port();
    desktop.switch_off()?;
    let _impostor = FakeDesktop::standard_rdp_security(port)?;
    let screen = Screen::start(1024, 768)?;
    let mut sato = site.device("sato", PASSWORD).on(&screen).start()?;
    assert_eq!(sato.exit()?, 12, "{}", sato.log());
    Ok(())
}

#[test]
fn a_desktop_that_is_gone_is_not_given_twice() -> Result<()> {
    let (gone, good) = (FakeDesktop::echo(b"")?, FakeDesktop::echo(b"")?);
    let keiri = pool("keiri", "keiri", &[gone.address(), good.address()]);
    let site = Site::builder().people(&EVERYBODY)?.pool(keiri).start()?;
    let api = site.api()?;
    api.wait_for_desktops("keiri", "ready", 2)?;
    drop(gone);
    let sato = site.login("sato", PASSWORD)?;
    echo(&mut sato.desktop()?, "on the other one")?;
    let tanaka = site.login("tanaka", PASSWORD)?;
    assert_eq!(tanaka.event("queued")?["place"], 1, "{}", tanaka.log());
    Ok(())
}
