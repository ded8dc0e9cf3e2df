//! What a person sees and has on the screen while they go from one place to another: `FreeRDP` on
//! a desktop of xrdp, judged by its pixels.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use serde_json::json;
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

#[test]
fn sato_takes_the_notebook_home_and_the_clipboard_stays_in_the_office() -> Result<()> {
    let network = Network::builder().start()?;
    let ca = TestCa::new("places")?;
    let (machine, site) = network.server().inside(|| {
        let machine = Xrdp::builder(Server::Xvnc)
            .account("sato", PASSWORD, SATO)
            .start(&ca.issue_loopback()?)?;
        let desktop: SocketAddr = (Ipv4Addr::LOCALHOST, machine.port()).into();
        let mut keiri = rdp_pool("keiri", "keiri", &[desktop]);
        keiri["policy"] = json!({"clipboard": true, "drive": true, "sound": true});
        keiri["by_class"] =
            json!([{"class": "telework", "policy": {"sound": true, "profile": "telework"}}]);
        let builder = Site::builder().people(&[("sato", PASSWORD, &["keiri"])])?.pool(keiri);
        let site = networks(builder).start()?;
        site.api()?.wait_for_desktops("keiri", "ready", 1)?;
        Ok((machine, site))
    })?;
    let sessions = || network.server().inside(|| site.api()?.sessions());
    let (screen, mut sato) = network.client().inside(|| {
        let screen = Screen::start(1024, 768)?;
        let sato = site.device("sato", PASSWORD).on(&screen).start()?;
        Ok((screen, sato))
    })?;
    screen.wait_for_colour(CORNER.0, CORNER.1, SATO, wait::LIMIT)?;
    let at_the_desk = viewer_told(&sato, &["+clipboard", "/sound"])?;
    let window = machine.session("sato")?;
    let before = sessions()?;
    assert_eq!((before.len(), &before[0]["class"]), (1, &"desk".into()), "{before:?}");

    network.switch_to(Uplink::Lte)?;
    let at_home = viewer_told(&sato, &["-clipboard", "/sound", "/client-hostname:telework"])?;
    assert_ne!(at_home, at_the_desk);
    let told: Vec<_> = sato.events().iter().map(|event| event["event"].to_string()).collect();
    let place = |name: &str| told.iter().rposition(|told| told.contains(name));
    assert_eq!(notices(&sato, "policy_changed"), 1, "{told:?}");
    assert!(place("notice") < place("attached"), "the person is told first: {told:?}");
    assert_eq!(machine.session("sato")?, window, "the same desktop");
    let after = sessions()?;
    assert_eq!((after.len(), &after[0]["class"]), (1, &"telework".into()), "{after:?}");
    assert_eq!(after[0]["id"], before[0]["id"], "and no login");
    let attached = || sato.events().iter().filter(|e| e["event"] == "attached").count();
    assert_eq!(attached(), 2, "the viewer was started once more");

    network.switch_to(Uplink::Wifi)?;
    viewer_told(&sato, &["+clipboard", "/sound"])?;
    assert_eq!(machine.session("sato")?, window);
    assert_eq!(sato.leave()?, Some(50), "{}", sato.log());
    Ok(())
}
