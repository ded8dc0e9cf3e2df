//! Somebody works from elsewhere: what is between the thin client and the broker is
//! a network of its own, or a path that is as bad as it is told to be.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use tegata_parts::fake::FakeDesktop;
use tegata_parts::netns::{Network, Quality, SERVER, SERVER_IPV6, Uplink};
use tegata_tests::dice::Dice;
use tegata_tests::evidence::audit_trail;
use tegata_tests::site::{Builder, Site, pool};
use tegata_tests::staff::{Login, echo};
use tegata_tests::wait;

mod paths;

const PASSWORD: &str = "Himitsu-1";

/// Bytes that are written at once.
const PIECE: usize = 16 * 1024;

/// Pieces that are under way at once, there and back together.
const PIECES_MAX: usize = 16;

/// A broker, and one desktop that sends back whatever it gets.
struct Office {
    site: Site,
    _desktop: FakeDesktop,
}

impl Office {
    fn open(site: impl FnOnce(Builder) -> Builder) -> Result<Self> {
        let desktop = FakeDesktop::echo(b"")?;
        let builder = Site::builder().people(&[("sato", PASSWORD, &["keiri"])])?.pool(pool(
            "keiri",
            "keiri",
            &[desktop.address()],
        ));
        let site = site(builder).start()?;
        site.api()?.wait_for_desktops("keiri", "ready", 1)?;
        Ok(Self { site, _desktop: desktop })
    }
}

/// Sends one piece after the other to a desktop that sends them back, checks each
/// that comes, and returns how many there were.
///
/// `goes_on` is asked before each, with the number of those before it.
fn carry(
    desktop: &TcpStream,
    mut dice: Dice,
    goes_on: impl Fn(usize) -> bool + Send,
) -> Result<usize> {
    let (mut up, mut down) = (desktop.try_clone()?, desktop.try_clone()?);
    up.set_write_timeout(Some(wait::LIMIT))?;
    let (expect, expected) = sync_channel::<Vec<u8>>(PIECES_MAX);
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<usize> {
            let mut sent = 0;
            while goes_on(sent) {
                let mut piece = Vec::with_capacity(PIECE);
                while piece.len() < PIECE {
                    piece.extend(dice.below(u64::MAX).to_le_bytes());
                }
                expect.send(piece.clone()).context("nobody reads any more")?;
                up.write_all(&piece)?;
                sent += 1;
            }
            up.shutdown(Shutdown::Write)?;
            Ok(sent)
        });
        let mut room = vec![0; PIECE];
        for (n, piece) in expected.into_iter().enumerate() {
            down.read_exact(&mut room).with_context(|| format!("piece {n}"))?;
            ensure!(room == piece, "piece {n} is not what was sent");
        }
        ensure!(down.read(&mut room)? == 0, "more came than was sent");
        sender.join().map_err(|_| anyhow!("the sender panicked"))?
    })
}

/// Has Sato log in at the thin client's place in the network.
fn sits_down(network: &Network, site: &Site) -> Result<(Login, TcpStream)> {
    network.client().inside(|| {
        let sato = site.login("sato", PASSWORD)?;
        let desktop = sato.desktop()?;
        Ok((sato, desktop))
    })
}

#[test]
fn sato_works_from_home_and_from_the_train_and_every_byte_arrives_both_ways() -> Result<()> {
    let network = Network::builder()
        .quality(Uplink::Wifi, Quality::WIFI)
        .quality(Uplink::Lte, Quality::LTE)
        .start()?;
    let office = network.server().inside(|| {
        Office::open(|site| {
            site.at(SERVER.into())
                .network("home", &format!("{}/32", Uplink::Wifi.address()))
                .network("train", &format!("{}/32", Uplink::Lte.address()))
        })
    })?;
    let site = &office.site;
    for (uplink, place) in [(Uplink::Wifi, "home"), (Uplink::Lte, "train")] {
        network.switch_to(uplink)?;
        let (mut sato, desktop) = sits_down(&network, site)?;
        let sessions = network.server().inside(|| site.api()?.sessions())?;
        assert_eq!(sessions.len(), 1, "{sessions:?}");
        assert_eq!(sessions[0]["class"], place, "the broker sees where Sato is");
        carry(&desktop, Dice::new(), |sent| sent < 16)?;
        assert_eq!(sato.exit()?, 50, "{}", sato.log());
    }
    Ok(())
}

#[test]
fn sato_goes_from_the_desk_to_the_meeting_room_and_no_byte_is_lost() -> Result<()> {
    let network = Network::builder().start()?;
    let office = network.server().inside(|| Office::open(|site| site.at(SERVER.into())))?;
    let site = &office.site;
    let (mut sato, desktop) = sits_down(&network, site)?;
    let sessions = || network.server().inside(|| site.api()?.sessions());
    let before = sessions()?;
    let roams = [Uplink::Lte, Uplink::Wifi, Uplink::Lte];
    let begun = Mutex::new(0);
    let end = Instant::now() + CROSSING;
    carry(&desktop, Dice::new(), |sent| {
        // In the middle of what is under way, and the next one once the last is over.
        if sent % 100 != 99 {
            return true;
        }
        let mut begun = begun.lock().unwrap();
        let is_between = count(&sato, "migrated") >= *begun;
        if is_between && let Some(uplink) = roams.get(*begun) {
            network.switch_to(*uplink).unwrap();
            *begun += 1;
            return true;
        }
        !is_between && Instant::now() < end
    })
    .with_context(|| sato.log())?;
    let after = sessions()?;
    assert_eq!((before.len(), after.len()), (1, 1), "{before:?}, {after:?}");
    assert_eq!(before[0]["id"], after[0]["id"], "no second login");
    assert_eq!(after[0]["link"], 1, "the connection has moved: no other was needed");
    assert_eq!(sato.exit()?, 50, "{}", sato.log());
    let told = ["migrated", "link_lost", "resumed"].map(|event| count(&sato, event));
    assert_eq!(told, [roams.len(), 0, 0], "{}", sato.log());
    Ok(())
}

#[test]
fn on_a_line_with_short_packets_every_byte_arrives_by_quic_and_by_tcp() -> Result<()> {
    let network = Network::builder().mtu(1280).start()?;
    let office = network.server().inside(|| Office::open(|site| site.at(SERVER.into())))?;
    for transport in ["quic", "tcp"] {
        if transport == "tcp" {
            network.forbid_udp()?;
        }
        let (mut sato, desktop) = sits_down(&network, &office.site)?;
        assert_eq!(carried_by(&sato, "attached").as_deref(), Some(transport));
        carry(&desktop, Dice::new(), |sent| {
            // On the other line as well, whose packets are as short.
            if sent == 128 && transport == "quic" {
                network.switch_to(Uplink::Lte).unwrap();
            }
            sent < 512
        })
        .with_context(|| sato.log())?;
        drop(desktop);
        assert_eq!(sato.exit()?, 50, "{}", sato.log());
        assert_eq!(count(&sato, "link_lost"), 0, "{}", sato.log());
    }
    Ok(())
}

/// Counts the events of a name.
fn count(login: &Login, event: &str) -> usize {
    login.events().iter().filter(|told| told["event"] == event).count()
}

/// How long a session may take to change its transport: two tries with QUIC, and some.
const CROSSING: Duration = Duration::from_secs(75);

/// Between two pieces, where it is not about how many there are.
const PACE: Duration = Duration::from_millis(5);

/// What carries the last event of this name; nothing where there was none.
fn carried_by(login: &Login, event: &str) -> Option<String> {
    let told = login.events();
    let last = told.iter().rev().find(|told| told["event"] == event)?;
    last["transport"].as_str().map(str::to_owned)
}

/// Counts the tickets that were redeemed at a site.
fn redeemed(site: &Site) -> Result<usize> {
    let trail = audit_trail(site)?;
    Ok(trail.iter().filter(|record| record.action == "session.starting").count())
}

#[test]
fn where_a_hotel_lets_no_udp_pass_sato_logs_in_and_works_all_the_same() -> Result<()> {
    let network = Network::builder().quality(Uplink::Wifi, Quality::WIFI).start()?;
    let office = network.server().inside(|| Office::open(|site| site.at(SERVER.into())))?;
    let site = &office.site;
    network.forbid_udp()?;
    let (mut sato, desktop) = sits_down(&network, site)?;
    let attached = sato.event("attached")?;
    println!("{}", serde_json::json!({ "attached_ms": attached["elapsed_ms"] }));
    let (connected, attached) = (carried_by(&sato, "connected"), carried_by(&sato, "attached"));
    assert_eq!((connected.as_deref(), attached.as_deref()), (Some("tcp"), Some("tcp")));
    carry(&desktop, Dice::new(), |sent| sent < 256).with_context(|| sato.log())?;
    drop(desktop);
    assert_eq!(sato.exit()?, 50, "{}", sato.log());
    assert_eq!(redeemed(site)?, 1, "handshakes race, attaches do not");
    Ok(())
}

#[test]
fn a_session_goes_on_by_tcp_when_udp_is_forbidden_and_by_quic_when_it_is_allowed() -> Result<()> {
    let network = Network::builder().quality(Uplink::Wifi, Quality::WIFI).start()?;
    let office = network.server().inside(|| Office::open(|site| site.at(SERVER.into())))?;
    let site = &office.site;
    let (mut sato, desktop) = sits_down(&network, site)?;
    assert_eq!(carried_by(&sato, "attached").as_deref(), Some("quic"));
    let mut allowed = None;
    let allowed = Mutex::new(&mut allowed);
    let end = Instant::now() + CROSSING;
    carry(&desktop, Dice::new(), |sent| {
        thread::sleep(PACE);
        if sent == 100 {
            network.forbid_udp().unwrap();
        }
        let mut allowed = allowed.lock().unwrap();
        if allowed.is_none() && carried_by(&sato, "resumed").as_deref() == Some("tcp") {
            network.allow_udp().unwrap();
            **allowed = Some(sent);
        }
        // Some more follows by QUIC.
        let is_back = carried_by(&sato, "migrated").as_deref() == Some("quic");
        (!is_back || sent % 100 != 99) && Instant::now() < end
    })
    .with_context(|| sato.log())?;
    assert!(allowed.lock().unwrap().is_some_and(|sent| sent > 100), "{}", sato.log());
    assert_eq!(carried_by(&sato, "migrated").as_deref(), Some("quic"), "{}", sato.log());
    drop(desktop);
    assert_eq!(sato.exit()?, 50, "{}", sato.log());
    let told = ["connected", "attached"].map(|event| count(&sato, event));
    assert_eq!(told, [1, 1], "no login, no new viewer");
    let told = ["link_lost", "resumed", "migrated"].map(|event| count(&sato, event));
    assert_eq!(told, [1, 1, 1], "{}", sato.log());
    assert_eq!(redeemed(site)?, 1);
    Ok(())
}

#[test]
fn where_ipv6_leads_nowhere_any_more_the_session_goes_on_by_ipv4() -> Result<()> {
    let network = Network::builder().ipv6().start()?;
    let office = network
        .server()
        .inside(|| Office::open(|site| site.at(SERVER.into()).and_at(SERVER_IPV6.into())))?;
    let site = &office.site;
    let door = SocketAddr::from((SERVER_IPV6, site.listen().port())).to_string();
    let (mut sato, desktop) = network.client().inside(|| {
        let sato = site.device("sato", PASSWORD).server(&door).start()?;
        let desktop = sato.desktop()?;
        Ok((sato, desktop))
    })?;
    assert_eq!(sato.event("attached")?["address"], door.as_str(), "IPv6 goes first");
    let end = Instant::now() + CROSSING;
    carry(&desktop, Dice::new(), |sent| {
        thread::sleep(PACE);
        if sent == 100 {
            network.forbid_ipv6().unwrap();
        }
        let is_back = carried_by(&sato, "resumed").is_some();
        (sent <= 100 || !is_back || sent % 100 != 99) && Instant::now() < end
    })
    .with_context(|| sato.log())?;
    assert_eq!(carried_by(&sato, "resumed").as_deref(), Some("quic"), "{}", sato.log());
    drop(desktop);
    assert_eq!(sato.exit()?, 50, "{}", sato.log());

    // And from the start, where only the ticket tells of IPv6.
    let (mut sato, desktop) = sits_down(&network, site)?;
    let attached = sato.event("attached")?;
    println!("{}", serde_json::json!({ "attached_ms": attached["elapsed_ms"] }));
    assert_eq!(attached["address"], site.listen().to_string());
    assert_eq!(attached["transport"], "quic", "IPv4 comes before TCP");
    drop(desktop);
    assert_eq!(sato.exit()?, 50, "{}", sato.log());
    Ok(())
}

#[test]
fn a_session_by_tcp_ends_as_one_by_quic_does() -> Result<()> {
    let network = Network::builder().start()?;
    let office = network.server().inside(|| Office::open(|site| site.at(SERVER.into())))?;
    let site = &office.site;
    network.forbid_udp()?;
    let sits_down = || {
        network.client().inside(|| {
            let sato = site.login("sato", PASSWORD)?;
            let mut desktop = sato.desktop()?;
            echo(&mut desktop, "here")?;
            Ok((sato, desktop))
        })
    };
    // The desktop is taken over on a second device, and an administrator ends that.
    let (mut first, _first) = sits_down()?;
    let (mut second, _second) = sits_down()?;
    assert_eq!(first.exit()?, 52, "{}", first.log());
    let sessions = network.server().inside(|| site.api()?.sessions())?;
    let here: Vec<_> = sessions.iter().filter(|session| session["state"] == "active").collect();
    let id = here[0]["id"].as_str().context("it has a number")?.to_owned();
    let whom = serde_json::json!({ "session_ids": [id] });
    network.server().inside(|| site.api()?.post("/v1/sessions/actions/terminate", &whom))?;
    assert_eq!(second.exit()?, 53, "{}", second.log());
    for login in [&first, &second] {
        assert_eq!(carried_by(login, "attached").as_deref(), Some("tcp"));
        let told = login.events();
        assert!(!told.iter().any(|event| event["event"] == "link_lost"), "{told:?}");
    }
    Ok(())
}

#[test]
fn on_another_network_without_udp_the_session_goes_on_over_another_link() -> Result<()> {
    let network = Network::builder().start()?;
    let office = network.server().inside(|| Office::open(|site| site.at(SERVER.into())))?;
    let site = &office.site;
    network.forbid_udp()?;
    let (mut sato, desktop) = sits_down(&network, site)?;
    let end = Instant::now() + CROSSING;
    carry(&desktop, Dice::new(), |sent| {
        thread::sleep(PACE);
        if sent == 100 {
            // What has the old network's address is left behind.
            network.switch_to(Uplink::Lte).unwrap();
            network.switch_off(Uplink::Wifi).unwrap();
        }
        let is_there = carried_by(&sato, "migrated").or_else(|| carried_by(&sato, "resumed"));
        (sent <= 100 || is_there.is_none() || sent % 100 != 99) && Instant::now() < end
    })
    .with_context(|| sato.log())?;
    drop(desktop);
    assert_eq!(sato.exit()?, 50, "{}", sato.log());
    let moved = carried_by(&sato, "migrated").or_else(|| carried_by(&sato, "resumed"));
    assert_eq!(moved.as_deref(), Some("tcp"), "{}", sato.log());
    let sessions = network.server().inside(|| site.api()?.sessions())?;
    assert!(sessions[0]["link"].as_u64().unwrap() > 1, "{sessions:?}");
    assert_eq!(redeemed(site)?, 1);
    Ok(())
}
