//! What a person sees and has on the screen while they go from one place to another: `FreeRDP` on
//! a desktop of xrdp, judged by its pixels.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tegata_parts::ca::TestCa;
use tegata_parts::colour::Colour;
use tegata_parts::netns::{Network, Uplink};
use tegata_parts::screen::Screen;
use tegata_parts::xrdp::{Server, Xrdp};
use tegata_tests::site::{Site, rdp_pool};
use tegata_tests::staff::Login;
use tegata_tests::wait;

use super::{PASSWORD, networks, notices};

const SATO: Colour = Colour::new(0x20, 0x60, 0xa0);

/// Where on a screen only the desktop's background is.
const CORNER: (u32, u32) = (5, 5);

/// Within the terminal of a session.
const TERMINAL: (u32, u32) = (200, 200);

/// What a desktop shows after each roam, and while nobody can see it.
const ROAMED: Colour = Colour::new(0xa0, 0x40, 0x20);
const BACK: Colour = Colour::new(0x80, 0x20, 0x80);
const UNSEEN: Colour = Colour::new(0x90, 0x90, 0x10);

/// What X calls `blue` and `green`.
const BLUE: Colour = Colour::new(0x00, 0x00, 0xff);
const GREEN: Colour = Colour::new(0x00, 0xff, 0x00);

/// Longer than a silent link is waited for.
const OUTAGE: Duration = Duration::from_secs(4);

/// The `FreeRDP` that an agent has started: its process, and what it was told.
fn viewer(agent: u32) -> Result<Option<(u32, Vec<String>)>> {
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name stands in brackets and may hold anything.
        let parent =
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split(' ').nth(2)?.parse().ok());
        let Ok(told) = fs::read(entry.path().join("cmdline")) else { continue };
        let told: Vec<_> = told
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into())
            .collect();
        let is_freerdp = told.first().is_some_and(|name: &String| name.contains("xfreerdp"));
        if parent == Some(agent) && is_freerdp {
            return Ok(Some((pid, told)));
        }
    }
    Ok(None)
}

/// Waits for a viewer that was told this, and returns its process.
fn viewer_told(sato: &Login, wanted: &[&str]) -> Result<u32> {
    let mut last = None;
    wait::until(&format!("a viewer that was told {wanted:?}"), || {
        last = viewer(sato.process())?;
        Ok(last.as_ref().and_then(|(pid, told)| {
            wanted.iter().all(|word| told.iter().any(|told| told == word)).then_some(*pid)
        }))
    })
    .with_context(|| format!("{last:?}\n{}", sato.log()))
}

/// A desktop of Sato's, and a broker, on the server's side of a network.
struct Ministry {
    network: Network,
    machine: Xrdp,
    site: Site,
    _ca: TestCa,
}

impl Ministry {
    /// `terms` are what the pool says beyond what every pool does.
    fn open(terms: &Value) -> Result<Self> {
        let network = Network::builder().start()?;
        let ca = TestCa::new("places")?;
        let (machine, site) = network.server().inside(|| {
            let machine = Xrdp::builder(Server::Xvnc)
                .account("sato", PASSWORD, SATO)
                .start(&ca.issue_loopback()?)?;
            let desktop: SocketAddr = (Ipv4Addr::LOCALHOST, machine.port()).into();
            let mut keiri = rdp_pool("keiri", "keiri", &[desktop]);
            for (key, value) in terms.as_object().context("terms are an object")? {
                keiri[key] = value.clone();
            }
            let builder = Site::builder().people(&[("sato", PASSWORD, &["keiri"])])?.pool(keiri);
            let site = networks(builder).start()?;
            site.api()?.wait_for_desktops("keiri", "ready", 1)?;
            Ok((machine, site))
        })?;
        Ok(Self { network, machine, site, _ca: ca })
    }

    /// Sato sits down, and sees the desktop.
    fn seat(&self) -> Result<(Screen, Login)> {
        let (screen, sato) = self.network.client().inside(|| {
            let screen = Screen::start(1024, 768)?;
            let sato = self.site.device("sato", PASSWORD).on(&screen).start()?;
            Ok((screen, sato))
        })?;
        shows(&screen, SATO, &sato)?;
        Ok((screen, sato))
    }

    fn sessions(&self) -> Result<Vec<Value>> {
        self.network.server().inside(|| self.site.api()?.sessions())
    }

    /// The desktop shows something else.
    fn paint(&self, colour: Colour) -> Result<()> {
        self.network.server().inside(|| self.machine.paint("sato", colour))
    }
}

fn shows(screen: &Screen, colour: Colour, sato: &Login) -> Result<()> {
    screen.wait_for_colour(CORNER.0, CORNER.1, colour, wait::LIMIT).with_context(|| sato.log())
}

fn types(screen: &Screen, line: &str) -> Result<()> {
    screen.type_text(line)?;
    screen.press("Return")
}

fn count(sato: &Login, event: &str) -> usize {
    sato.events().iter().filter(|told| told["event"] == event).count()
}

#[test]
fn sato_takes_the_notebook_home_and_the_clipboard_stays_in_the_office() -> Result<()> {
    let ministry = Ministry::open(&json!({
        "policy": {"clipboard": true, "drive": true, "sound": true},
        "by_class": [{"class": "telework", "policy": {"sound": true, "profile": "telework"}}],
    }))?;
    let Ministry { network, machine, .. } = &ministry;
    let (_screen, mut sato) = ministry.seat()?;
    let at_the_desk = viewer_told(&sato, &["+clipboard", "/sound"])?;
    let window = machine.session("sato")?;
    let before = ministry.sessions()?;
    assert_eq!((before.len(), &before[0]["class"]), (1, &"desk".into()), "{before:?}");

    network.switch_to(Uplink::Lte)?;
    let at_home = viewer_told(&sato, &["-clipboard", "/sound", "/client-hostname:telework"])?;
    assert_ne!(at_home, at_the_desk);
    let told: Vec<_> = sato.events().iter().map(|event| event["event"].to_string()).collect();
    let place = |name: &str| told.iter().rposition(|told| told.contains(name));
    assert_eq!(notices(&sato, "policy_changed"), 1, "{told:?}");
    assert!(place("notice") < place("attached"), "the person is told first: {told:?}");
    assert_eq!(machine.session("sato")?, window, "the same desktop");
    let after = ministry.sessions()?;
    assert_eq!((after.len(), &after[0]["class"]), (1, &"telework".into()), "{after:?}");
    assert_eq!(after[0]["id"], before[0]["id"], "and no login");
    assert_eq!(count(&sato, "attached"), 2, "the viewer was started once more");

    network.switch_to(Uplink::Wifi)?;
    viewer_told(&sato, &["+clipboard", "/sound"])?;
    assert_eq!(machine.session("sato")?, window);
    assert_eq!(sato.leave()?, Some(50), "{}", sato.log());
    Ok(())
}

#[test]
fn the_picture_goes_on_through_two_roams_and_an_outage_and_the_viewer_never_restarts() -> Result<()>
{
    let ministry = Ministry::open(&json!({}))?;
    let network = &ministry.network;
    let (screen, mut sato) = ministry.seat()?;
    let at_the_desk = viewer_told(&sato, &["/sec:tls"])?;
    let window = ministry.machine.session("sato")?;
    let before = ministry.sessions()?;
    screen.focus("xfreerdp")?;
    screen.click(TERMINAL.0, TERMINAL.1)?;
    types(&screen, "xsetroot -solid blue")?;
    shows(&screen, BLUE, &sato)?;

    for (uplink, colour, roams) in [(Uplink::Lte, ROAMED, 1), (Uplink::Wifi, BACK, 2)] {
        network.switch_to(uplink)?;
        ministry.paint(colour)?;
        shows(&screen, colour, &sato)?;
        // Until it has left the old way for good, an outage of the new one says nothing.
        wait::until("the agent to have moved", || {
            Ok((count(&sato, "migrated") == roams).then_some(()))
        })
        .with_context(|| sato.log())?;
    }

    network.cut(Uplink::Wifi)?;
    ministry.paint(UNSEEN)?;
    // What Sato types is kept as well.
    types(&screen, "xsetroot -solid green")?;
    thread::sleep(OUTAGE);
    sato.event("link_lost")?;
    let seen = screen.pixel(CORNER.0, CORNER.1)?;
    assert!(seen.looks_like(BACK), "nothing came through the cut: {seen}");
    network.mend(Uplink::Wifi)?;
    shows(&screen, GREEN, &sato)?;
    sato.event("resumed")?;
    ministry.paint(SATO)?;
    shows(&screen, SATO, &sato)?;

    assert_eq!(viewer_told(&sato, &["/sec:tls"])?, at_the_desk, "the same process");
    assert_eq!(ministry.machine.session("sato")?, window, "the same desktop");
    let told = (count(&sato, "authenticated"), count(&sato, "attached"));
    assert_eq!(told, (1, 1), "no login, no viewer started again: {}", sato.log());
    let after = ministry.sessions()?;
    assert_eq!((after.len(), &after[0]["id"]), (1, &before[0]["id"]), "{after:?}");
    assert_eq!(sato.leave()?, Some(50), "{}", sato.log());
    Ok(())
}
