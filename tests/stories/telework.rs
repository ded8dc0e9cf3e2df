//! Somebody works from elsewhere: what is between the thin client and the broker is
//! a network of its own, or a path that is as bad as it is told to be.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use tegata_parts::fake::FakeDesktop;
use tegata_parts::netns::{Network, Quality, SERVER, SERVER_IPV6, Uplink};
use tegata_parts::port::free_udp;
use tegata_tests::chaos::relay::Relay;
use tegata_tests::chaos::schedule::Schedule;
use tegata_tests::chaos::tally::Tallies;
use tegata_tests::chaos::weather::Weather;
use tegata_tests::dice::{Dice, long};
use tegata_tests::evidence::audit_trail;
use tegata_tests::site::{Builder, Site, pool, program};
use tegata_tests::staff::{Login, echo};
use tegata_tests::wait;

const PASSWORD: &str = "Himitsu-1";

/// Bytes that are written at once.
const PIECE: usize = 16 * 1024;

/// Pieces that are under way at once, there and back together.
const PIECES_MAX: usize = 16;

/// Schedules of faults: how many paths have one side by side, how many each has one
/// after the other, and how long each lasts.
struct Faults {
    paths: u64,
    rounds: u64,
    length: Duration,
}

impl Faults {
    fn of_this_run() -> Self {
        if long() {
            Self { paths: 50, rounds: 20, length: Duration::from_mins(1) }
        } else {
            Self { paths: 20, rounds: 1, length: Duration::from_secs(10) }
        }
    }

    /// How far one piece of a path's is behind the other, so that all of them together
    /// do not take more than the machine has.
    fn pace(&self) -> Duration {
        Duration::from_millis(5 * self.paths)
    }
}

/// Schedules that once lost a session, or its last bytes: their faults follow each other
/// just so.
const NOTORIOUS: [u64; 2] = [96, 1_928_099_138_370_057_671];

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
        let (mut sato, desktop) = network.client().inside(|| {
            let sato = site.login("sato", PASSWORD)?;
            let desktop = sato.desktop()?;
            Ok((sato, desktop))
        })?;
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
    let (mut sato, desktop) = network.client().inside(|| {
        let sato = site.login("sato", PASSWORD)?;
        let desktop = sato.desktop()?;
        Ok((sato, desktop))
    })?;
    let sessions = || network.server().inside(|| site.api()?.sessions());
    let before = sessions()?;
    let roams = Mutex::new([Uplink::Lte, Uplink::Wifi, Uplink::Lte].into_iter());
    carry(&desktop, Dice::new(), |sent| {
        // In the middle of what is under way, at each hundredth piece.
        if sent > 0
            && sent.is_multiple_of(100)
            && let Some(uplink) = roams.lock().unwrap().next()
        {
            network.switch_to(uplink).unwrap();
        }
        sent < 450
    })
    .with_context(|| sato.log())?;
    assert!(roams.lock().unwrap().next().is_none(), "three roams");
    let after = sessions()?;
    assert_eq!((before.len(), after.len()), (1, 1), "{before:?}, {after:?}");
    assert_eq!(before[0]["id"], after[0]["id"], "no second login");
    assert_eq!(sato.exit()?, 50, "{}", sato.log());
    let told: Vec<_> = sato.events().iter().map(|event| event["event"].to_string()).collect();
    let back = |event: &&String| [r#""migrated""#, r#""resumed""#].contains(&event.as_str());
    assert!(told.iter().filter(back).count() >= 1, "{told:?}");
    Ok(())
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
    let (mut sato, desktop) = network.client().inside(|| {
        let sato = site.login("sato", PASSWORD)?;
        let desktop = sato.desktop()?;
        Ok((sato, desktop))
    })?;
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
    let (mut sato, desktop) = network.client().inside(|| {
        let sato = site.login("sato", PASSWORD)?;
        let desktop = sato.desktop()?;
        Ok((sato, desktop))
    })?;
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
    let told = sato.events();
    let count = |name: &str| told.iter().filter(|event| event["event"] == name).count();
    assert_eq!((count("connected"), count("attached")), (1, 1), "no login, no new viewer");
    assert_eq!((count("link_lost"), count("resumed"), count("migrated")), (1, 1, 1), "{told:?}");
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
    let (mut sato, desktop) = network.client().inside(|| {
        let sato = site.login("sato", PASSWORD)?;
        let desktop = sato.desktop()?;
        Ok((sato, desktop))
    })?;
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
    let (mut sato, desktop) = network.client().inside(|| {
        let sato = site.login("sato", PASSWORD)?;
        let desktop = sato.desktop()?;
        Ok((sato, desktop))
    })?;
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

#[test]
fn a_lid_that_was_closed_for_a_while_opens_on_the_same_connection() -> Result<()> {
    let path = BadPath::open(1)?;
    let door = path.relay.address().to_string();
    let mut sato = path.office.site.device("sato", PASSWORD).server(&door).start()?;
    let mut desktop = sato.desktop()?;
    echo(&mut desktop, "before")?;
    path.relay.set(Schedule::steady(Weather::DARK))?;
    // Typed into the dark: it is kept until there is a link again.
    desktop.write_all(b"typed in the dark\n")?;
    let lost = sato.event("link_lost")?;
    assert!(lost["elapsed_ms"].is_u64(), "{lost}");
    path.relay.set(Schedule::steady(BadPath::CALM))?;
    let back = sato.event("resumed")?;
    assert!(back["gap_ms"].as_u64().unwrap() >= 1_000, "{back}");
    let mut line = [0; 18];
    desktop.read_exact(&mut line)?;
    assert_eq!(&line, b"typed in the dark\n");
    echo(&mut desktop, "after")?;
    let sessions = path.office.site.api()?.sessions()?;
    assert_eq!((sessions.len(), &sessions[0]["state"]), (1, &"active".into()), "{sessions:?}");
    let attached = sato.events().iter().filter(|event| event["event"] == "attached").count();
    assert_eq!(attached, 1, "the viewer was not started again");
    drop(desktop);
    assert_eq!(sato.exit()?, 50, "{}", sato.log());
    Ok(())
}

#[test]
fn a_session_carries_every_byte_through_every_fault_of_its_path() -> Result<()> {
    let faults = Faults::of_this_run();
    let first = Dice::new().seed();
    println!("TEGATA_SEED={first}");
    // One after the other, since ports are taken; then all at once.
    let paths: Vec<_> = (0..faults.paths).map(BadPath::open).collect::<Result<_>>()?;
    thread::scope(|scope| {
        let work = |n: u64, path: &BadPath| {
            (0..faults.rounds).try_fold(0, |harmed, round| {
                let notorious = usize::try_from(n).ok().and_then(|n| NOTORIOUS.get(n));
                let seed = match (notorious, round) {
                    (Some(seed), 0) => *seed,
                    _ => first.wrapping_add(n * faults.rounds + round),
                };
                let met = path.carries(seed, &faults);
                anyhow::Ok(harmed + met.with_context(|| format!("TEGATA_SEED={seed}"))?)
            })
        };
        let numbered = (0..).zip(&paths);
        let paths: Vec<_> = numbered.map(|(n, path)| scope.spawn(move || work(n, path))).collect();
        let mut harmed = 0;
        for (n, path) in paths.into_iter().enumerate() {
            harmed += path.join().map_err(|_| anyhow!("path {n} panicked"))??;
        }
        ensure!(harmed > 0, "no datagram met a fault");
        let (schedules, seconds) = (faults.paths * faults.rounds, faults.length.as_secs());
        println!(
            "{}",
            serde_json::json!({
                "schedules": schedules, "seconds": seconds, "datagrams_harmed": harmed, "bytes_lost": 0,
            })
        );
        Ok(())
    })
}

/// An office at the end of a path with faults.
struct BadPath {
    relay: Relay,
    office: Office,
}

impl BadPath {
    /// Without a fault, the path only takes a while.
    const CALM: Weather = Weather { delay_ms: 5, ..Weather::CLEAR };

    fn open(seed: u64) -> Result<Self> {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_udp()?));
        let here = (Ipv4Addr::LOCALHOST, 0).into();
        let relay = Relay::start(here, listen, seed, Schedule::steady(Self::CALM))?;
        let office = Office::open(|site| site.behind(listen, relay.address()))?;
        Ok(Self { relay, office })
    }

    /// Works while one fault follows the other, and returns how many datagrams met one.
    fn carries(&self, seed: u64, faults: &Faults) -> Result<u64> {
        let before = self.relay.tallies()?;
        let door = self.relay.address().to_string();
        let mut sato = self.office.site.device("sato", PASSWORD).server(&door).start()?;
        let desktop = sato.desktop()?;
        self.relay.set(Schedule::faults(seed, faults.length, Self::CALM))?;
        let end = Instant::now() + faults.length;
        let goes_on = |_| {
            thread::sleep(faults.pace());
            Instant::now() < end
        };
        let pieces = carry(&desktop, Dice::of(seed), goes_on).with_context(|| {
            let exit = sato.exit();
            format!("{:?}\nexit {exit:?}\n{}", self.relay.tallies(), sato.log())
        })?;
        assert_eq!(sato.exit()?, 50, "{}", sato.log());
        let after = self.relay.tallies()?;
        let harmed = |path: &Tallies| path.there.harmed() + path.back.harmed();
        let harmed = harmed(&after) - harmed(&before);
        println!("{}", serde_json::json!({ "seed": seed, "pieces": pieces, "harmed": harmed }));
        Ok(harmed)
    }
}

#[test]
fn the_program_is_a_path_that_is_told_what_to_do() -> Result<()> {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    server.set_read_timeout(Some(wait::LIMIT))?;
    let mut chaos = Command::new(program("tegata-chaos")?)
        .args(["--listen", "127.0.0.1:0", "--server", &server.local_addr()?.to_string()])
        .args(["--seed", "4", "--schedule", r#"[{"there": {"dark": true}}]"#])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // It ends with its input, so it does not outlive this test.
    let mut input = chaos.stdin.take().context("no input")?;
    let mut output = BufReader::new(chaos.stdout.take().context("no output")?);
    let mut told = || -> Result<Value> {
        let mut line = String::new();
        output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("{line:?} is no JSON"))
    };
    let first = told()?;
    assert_eq!(first["seed"], 4);
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    client.connect(first["listening"].as_str().context("no address")?)?;

    client.send(b"lost")?;
    wait::until("the datagram to be lost", || {
        input.write_all(b"\n")?;
        Ok((told()?["there"]["dark"] == 1).then_some(()))
    })?;
    input.write_all(b"[{\"there\": {\"duplicate\": 1}}]\n")?;
    assert_eq!(told()?["there"]["left"], 0);
    client.send(b"twice")?;
    for _ in 0..2 {
        let mut room = [0; 8];
        assert_eq!(server.recv(&mut room)?, 5);
    }
    input.write_all(b"[{\"at_ms\": 1}]\n")?;
    drop(input);
    let ended = chaos.wait_with_output()?;
    assert!(!ended.status.success());
    let why = String::from_utf8(ended.stderr)?;
    assert!(why.contains("the first step is not at 0"), "{why}");
    Ok(())
}
