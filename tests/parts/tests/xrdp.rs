//! Real desktops show what the tests of Tegata rely on, to a real viewer on a real screen.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result};
use tegata_parts::{
    ca::TestCa,
    colour::Colour,
    freerdp,
    process::Child,
    screen::Screen,
    xrdp::{Bare, Server, Xrdp},
};

const PAINTED: Duration = Duration::from_secs(40);
const ENDED: Duration = Duration::from_secs(20);

const RED: Colour = Colour::new(0xaa, 0x22, 0x22);
const BLUE: Colour = Colour::new(0x22, 0x44, 0xaa);
/// What X calls `green`.
const GREEN: Colour = Colour::new(0x00, 0xff, 0x00);

/// A corner of the background, far from every window.
const CORNER: (u32, u32) = (10, 700);
/// Within the terminal of every session.
const TERMINAL: (u32, u32) = (200, 200);

const BLACK: Colour = Colour::new(0, 0, 0);

fn screen() -> Result<Screen> {
    Screen::start(1024, 768)
}

fn wait_for(screen: &Screen, viewer: &Child, colour: Colour) -> Result<()> {
    screen
        .wait_for_colour(CORNER.0, CORNER.1, colour, PAINTED)
        .with_context(|| format!("the viewer wrote: {}", viewer.log()))
}

fn occupancy(xrdp: &Xrdp, arguments: &[&str]) -> Result<String> {
    let output = Command::new(xrdp.occupancy()).arg("keiri-1").args(arguments).output()?;
    assert!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

fn two_people_and_their_sessions(server: Server) -> Result<()> {
    let ca = TestCa::new("desktops")?;
    let xrdp = Xrdp::builder(server)
        .account("sato", "sakura-1", RED)
        .account("tanaka", "momiji-2", BLUE)
        .start(&ca.issue_loopback()?)?;
    let desktop = (xrdp.port(), xrdp.sha256());
    assert_eq!(occupancy(&xrdp, &["logged_on"])?, r#"{"logged_on":[]}"#);

    let (satos, tanakas) = (screen()?, screen()?);
    let mut sato = freerdp::show(&satos, desktop, ("sato", "sakura-1"))?;
    wait_for(&satos, &sato, RED)?;
    let tanaka = freerdp::show(&tanakas, desktop, ("tanaka", "momiji-2"))?;
    wait_for(&tanakas, &tanaka, BLUE)?;
    assert!(!tanakas.has_colour(RED)?, "Tanaka never sees Sato's window");
    assert_eq!(xrdp.logged_on()?, ["sato", "tanaka"]);
    let session = xrdp.session("sato")?;
    assert!(session.is_some());

    // Sato changes something that only this session has.
    satos.focus("xfreerdp")?;
    satos.click(TERMINAL.0, TERMINAL.1)?;
    satos.type_text("xsetroot -solid green")?;
    satos.press("Return")?;
    wait_for(&satos, &sato, GREEN)?;
    sato.stop()?;
    drop(satos);
    assert_eq!(xrdp.logged_on()?, ["sato", "tanaka"], "a closed viewer logs nobody off");

    let satos = screen()?;
    let mut sato = freerdp::show(&satos, desktop, ("sato", "sakura-1"))?;
    wait_for(&satos, &sato, GREEN)?;
    assert_eq!(xrdp.session("sato")?, session, "the very same session");

    // Tanaka is logged off by the site's script, Sato leaves by the terminal.
    assert_eq!(
        occupancy(&xrdp, &["logged_on"])?,
        r#"{"logged_on":["sato","tanaka"]}"#,
        "{}",
        xrdp.log()
    );
    assert_eq!(occupancy(&xrdp, &["log_off", "tanaka"])?, r#"{"logged_on":["sato"]}"#);
    satos.focus("xfreerdp")?;
    satos.click(TERMINAL.0, TERMINAL.1)?;
    satos.type_text("exit")?;
    satos.press("Return")?;
    sato.wait(ENDED)?;
    xrdp.log_off("sato")?;
    assert_eq!(xrdp.logged_on()?, [""; 0]);
    Ok(())
}

#[test]
fn two_accounts_have_sessions_of_their_own_in_xorg() -> Result<()> {
    two_people_and_their_sessions(Server::Xorg)
}

#[test]
fn two_accounts_have_sessions_of_their_own_in_xvnc() -> Result<()> {
    two_people_and_their_sessions(Server::Xvnc)
}

#[test]
fn two_machines_run_side_by_side_and_know_different_people() -> Result<()> {
    let ca = TestCa::new("desktops")?;
    let certificate = ca.issue_loopback()?;
    let start = |colour| {
        Xrdp::builder(Server::Xvnc).account("sato", "sakura-1", colour).start(&certificate)
    };
    let (first, second) = (start(RED)?, start(BLUE)?);
    let screen = screen()?;
    let viewer = freerdp::show(&screen, (second.port(), second.sha256()), ("sato", "sakura-1"))?;
    wait_for(&screen, &viewer, BLUE)?;
    assert_eq!(second.logged_on()?, ["sato"]);
    assert_eq!(first.logged_on()?, [""; 0]);
    assert_eq!(occupancy(&first, &["logged_on"])?, r#"{"logged_on":[]}"#);

    // Everything of the machine ends with it.
    let session = second.session("sato")?.map(|process| format!("/proc/{process}"));
    drop(second);
    let session = session.expect("Sato is logged on");
    assert!(!std::path::Path::new(&session).exists(), "no session outlives its machine");
    Ok(())
}

#[test]
fn bare_desktops_differ_in_colour_and_certificate() -> Result<()> {
    let ca = TestCa::new("desktops")?;
    let mut red = Bare::start(&ca.issue_loopback()?, RED)?;
    let blue = Bare::start(&ca.issue_loopback()?, BLUE)?;
    assert_ne!(red.sha256(), blue.sha256());
    for (desktop, colour) in [(&red, RED), (&blue, BLUE)] {
        let screen = screen()?;
        let viewer =
            freerdp::show(&screen, (desktop.port(), desktop.sha256()), ("anybody", "anything"))?;
        wait_for(&screen, &viewer, colour)?;
    }

    let old = red.sha256().to_owned();
    red.change_certificate(&ca.issue_loopback()?)?;
    let screen = screen()?;
    let mut viewer = freerdp::show(&screen, (red.port(), &old), ("anybody", "anything"))?;
    assert_eq!(viewer.wait(ENDED)?.code(), Some(freerdp::WRONG_CERTIFICATE), "{}", viewer.log());
    assert_eq!(screen.pixel(CORNER.0, CORNER.1)?, BLACK, "nothing was painted");
    let viewer = freerdp::show(&screen, (red.port(), red.sha256()), ("anybody", "anything"))?;
    wait_for(&screen, &viewer, RED)?;
    Ok(())
}

#[test]
fn a_bare_desktop_can_be_switched_off_and_on() -> Result<()> {
    let ca = TestCa::new("desktops")?;
    let mut desktop = Bare::start(&ca.issue_loopback()?, GREEN)?;
    let screen = screen()?;
    let pin = desktop.sha256().to_owned();
    desktop.switch_off()?;
    let mut viewer = freerdp::show(&screen, (desktop.port(), &pin), ("anybody", "anything"))?;
    assert!(!viewer.wait(ENDED)?.success());
    desktop.switch_on()?;
    let viewer = freerdp::show(&screen, (desktop.port(), &pin), ("anybody", "anything"))?;
    wait_for(&screen, &viewer, GREEN)?;
    Ok(())
}
