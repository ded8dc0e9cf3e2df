//! Everybody is on a bad line, or loses the link at the same moment and comes back: whole runs of
//! the agent library, by the hundred in one process, against the built broker.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tegata_agent::progress::Event;
use tegata_parts::port::free_udp;
use tegata_proto::code::Code;
use tegata_tests::chaos::relay::Relay;
use tegata_tests::chaos::schedule::Schedule;
use tegata_tests::chaos::weather::{Chance, Loss, Weather};
use tegata_tests::desktops::{Desktops, ECHO};
use tegata_tests::dice::{Dice, long};
use tegata_tests::fleet::{Fleet, Shown, Worker};
use tegata_tests::site::{Site, crowd_name, pool};
use tegata_tests::wait;

const PASSWORD: &str = "Himitsu-1";

/// How long everybody is in the dark: longer than a silent link is waited for.
const DARKNESS: Duration = Duration::from_secs(4);

/// How many log in one after the other; so many at a time do it at once.
const AT_ONCE: usize = 32;

/// By when people are back after a restart, as the customer has it.
const SOON: Duration = Duration::from_secs(5);

/// How often everybody is in the dark. What the first time takes is what a rush takes; each
/// further one has to do with that.
const OUTAGES: usize = 3;

/// How long what is left of old links may take to go.
const SETTLING: Duration = Duration::from_secs(5);

/// How much more of a broker's memory a session may have after the last outage than after the
/// one before it, in KiB: less than one connection has. Earlier, memory that is used again may
/// still grow.
const GROWTH_KIB: usize = 20;

/// How much more of it each may have after the first outage than before, in KiB: what is kept to
/// be sent again, memory that is used again, and what a second connection beside the first one
/// takes; the whole of a replay window would be four times that.
const FIRST_GROWTH_KIB: usize = 256;

/// A path that loses every fifth datagram, there and back.
const LOSSY: Weather =
    Weather { delay_ms: 10, loss: Loss::even(Chance::percent(20)), ..Weather::CLEAR };

/// By when everybody has shaken hands with the broker on such a path.
const LET_IN: Duration = Duration::from_secs(10);

/// A site with a desktop for everybody.
struct Office {
    site: Site,
    fleet: Fleet,
    workers: Vec<Worker>,
    _desktops: Desktops,
}

impl Office {
    /// Begins with everybody at work.
    fn open(people: usize, shown: Shown, path: Option<(SocketAddr, SocketAddr)>) -> Result<Self> {
        let mut office = Self::empty(people, shown, path)?;
        office.everybody_comes(people, shown)?;
        Ok(office)
    }

    /// `path` is where the broker listens, and where agents believe that it does.
    fn empty(people: usize, shown: Shown, path: Option<(SocketAddr, SocketAddr)>) -> Result<Self> {
        let desktops = Desktops::start(1)?;
        let numbers = 0..u32::try_from(people)?;
        let addresses: Vec<_> = match shown {
            Shown::Forwarded => numbers.map(|n| desktops.address(n)).collect(),
            // A picture that moves: people whose screen stands still notice when they touch it.
            Shown::Nowhere => numbers.map(|n| desktops.ticking_address(n)).collect(),
        };
        let builder = Site::builder()
            .crowd(1..=people, PASSWORD, "keiri")?
            .pool(pool("keiri", "keiri", &addresses))
            .log("info")
            .limits(
                "connections_per_source = 20000\nhandshakes = 4096\nhandshakes_per_source = 4096",
            );
        let site = match path {
            Some((listen, door)) => builder.behind(listen, door).start()?,
            None => builder.start()?,
        };
        let fleet = Fleet::open(&site, path.map_or(site.listen(), |(_, door)| door))?;
        Ok(Self { site, fleet, workers: Vec::new(), _desktops: desktops })
    }

    fn everybody_comes(&mut self, people: usize, shown: Shown) -> Result<()> {
        for n in 1..=people {
            self.workers.push(self.fleet.log_in(&crowd_name(n), PASSWORD, shown)?);
            if n % AT_ONCE == 0 {
                self.workers[n - AT_ONCE].attached(0)?;
            }
        }
        for worker in &self.workers {
            worker.attached(0)?;
        }
        Ok(())
    }

    /// Returns whose session is on which desktop, and in which state.
    fn sessions(&self) -> Result<BTreeMap<String, (String, String)>> {
        let text = |session: &Value, name: &str| session[name].as_str().unwrap_or("").to_owned();
        let sessions = self.site.api()?.all_sessions()?;
        let count = sessions.len();
        let of = |session: &Value| (text(session, "desktop_name"), text(session, "state"));
        let by_user: BTreeMap<_, _> =
            sessions.iter().map(|session| (text(session, "user"), of(session))).collect();
        ensure!(by_user.len() == count, "somebody has two sessions");
        Ok(by_user)
    }

    /// Lets nothing pass for a while, and returns how long it takes afterwards until everybody
    /// has what they typed meanwhile.
    fn goes_dark(&self, relay: &Relay, desktops: &[TcpStream], outage: usize) -> Result<Duration> {
        relay.set(Schedule::steady(Weather::DARK))?;
        let typed = |n: usize| format!("typed in the dark by {n}\n");
        for (n, desktop) in desktops.iter().enumerate() {
            say(desktop, &typed(n))?;
        }
        thread::sleep(DARKNESS);
        for worker in &self.workers {
            worker.event(outage, |event| *event == Event::LinkLost)?;
        }
        let light = Instant::now();
        relay.set(Schedule::steady(Weather::CLEAR))?;
        for (n, desktop) in desktops.iter().enumerate() {
            let heard = hear(desktop, &typed(n));
            heard.with_context(|| format!("{n}: {:?}", self.workers[n].story()))?;
        }
        let back = light.elapsed();
        for (n, desktop) in desktops.iter().enumerate() {
            say(desktop, "after\n")?;
            hear(desktop, "after\n").with_context(|| format!("{n}"))?;
        }
        Ok(back)
    }

    fn everybody_leaves(self) -> Result<()> {
        for worker in self.workers {
            assert_eq!(self.fleet.end(worker)?, Code::Disconnected);
        }
        Ok(())
    }
}

fn say(mut desktop: &TcpStream, line: &str) -> Result<()> {
    desktop.write_all(line.as_bytes())?;
    Ok(())
}

fn hear(mut desktop: &TcpStream, line: &str) -> Result<()> {
    let mut back = vec![0; line.len()];
    desktop.read_exact(&mut back)?;
    ensure!(back == line.as_bytes(), "{:?} came back", String::from_utf8_lossy(&back));
    Ok(())
}

#[test]
fn on_a_line_that_loses_every_fifth_datagram_everybody_gets_in() -> Result<()> {
    let people = if long() { 1_000 } else { 60 };
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_udp()?));
    let here = (Ipv4Addr::LOCALHOST, 0).into();
    let seed = Dice::new().seed();
    let relay = Relay::start(here, listen, seed, Schedule::steady(LOSSY))?;
    let mut office = Office::empty(people, Shown::Nowhere, Some((listen, relay.address())))?;
    office.everybody_comes(people, Shown::Nowhere)?;
    let mut waits = Vec::new();
    for worker in &office.workers {
        let (begun, _) = worker.event(0, |event| matches!(event, Event::Connecting { .. }))?;
        let (let_in, _) = worker.event(0, |event| matches!(event, Event::Connected { .. }))?;
        waits.push(let_in - begun);
    }
    waits.sort_unstable();
    let tallies = relay.tallies()?;
    println!(
        "{}",
        json!({
            "seed": seed, "handshakes": people, "p99_ms": waits[(people - 1) * 99 / 100].as_millis(),
            "last_ms": waits[people - 1].as_millis(),
            "lost": tallies.there.lost + tallies.back.lost,
        })
    );
    ensure!(waits[people - 1] <= LET_IN, "somebody waited for {:?}", waits[people - 1]);
    office.everybody_leaves()
}

#[test]
fn links_that_are_dropped_at_the_same_instant_all_come_back_and_memory_stays_flat() -> Result<()> {
    let people = if long() { 1_000 } else { 60 };
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_udp()?));
    let here = (Ipv4Addr::LOCALHOST, 0).into();
    let relay = Relay::start(here, listen, 1, Schedule::steady(Weather::CLEAR))?;
    let path = Some((listen, relay.address()));
    let office = Office::open(people, Shown::Forwarded, path)?;
    let desktops: Vec<_> = office.workers.iter().map(Worker::desktop).collect::<Result<_>>()?;
    for desktop in &desktops {
        say(desktop, std::str::from_utf8(&[ECHO])?)?;
        say(desktop, "before\n")?;
    }
    for desktop in &desktops {
        hear(desktop, "before\n")?;
    }
    let before = office.sessions()?;
    let mut kib = vec![usize::try_from(office.site.resident_kib()?)?];
    for outage in 0..OUTAGES {
        let back = office.goes_dark(&relay, &desktops, outage)?;
        thread::sleep(SETTLING);
        kib.push(usize::try_from(office.site.resident_kib()?)?);
        println!(
            "{}",
            json!({ "links": people, "all_back_ms": back.as_millis(), "resident_kib": kib })
        );
    }
    let (before_any, first) = (kib[0], kib[1]);
    let (one_before, last) = (kib[OUTAGES - 1], kib[OUTAGES]);
    let bound = before_any + people * FIRST_GROWTH_KIB;
    ensure!(first <= bound, "an outage takes more than it has to: {kib:?} KiB");
    ensure!(last <= one_before + people * GROWTH_KIB, "it grows with each outage: {kib:?} KiB");
    assert_eq!(office.sessions()?, before, "everybody is where they were");
    for worker in &office.workers {
        let logins = worker.count(|event| matches!(event, Event::Authenticated { .. }));
        let attached = worker.count(|event| matches!(event, Event::Attached { .. }));
        assert_eq!((logins, attached), (1, 1), "no password, and no viewer started again");
    }
    drop(desktops);
    Ok(())
}

#[test]
fn everybody_is_back_on_their_desktop_soon_after_the_broker_was_killed() -> Result<()> {
    let people = if long() { 500 } else { 40 };
    let mut office = Office::open(people, Shown::Nowhere, None)?;
    let desktops = |sessions: BTreeMap<String, (String, String)>| -> BTreeMap<_, _> {
        sessions.into_iter().map(|(user, (desktop, _))| (user, desktop)).collect()
    };
    let before = desktops(office.sessions()?);
    assert_eq!(before.len(), people);
    office.site.kill()?;
    let killed = Instant::now();
    office.site.start()?;
    let ready = Instant::now();
    let mut waits = Vec::new();
    for worker in &office.workers {
        let back = worker.attached(1).with_context(|| format!("{:?}", worker.story()))?;
        waits.push(back.saturating_duration_since(ready));
    }
    waits.sort_unstable();
    let soon = waits.iter().filter(|wait| **wait <= SOON).count();
    println!(
        "{}",
        json!({
            "sessions": people, "down_ms": (ready - killed).as_millis(),
            "back_within_5_s": soon, "p99_ms": waits[(people - 1) * 99 / 100].as_millis(),
            "last_ms": waits[people - 1].as_millis(),
        })
    );
    wait::until("every session to be active", || {
        let sessions = office.sessions()?;
        let active = sessions.values().filter(|(_, state)| state == "active").count();
        Ok((active == people).then_some(()))
    })?;
    assert_eq!(desktops(office.sessions()?), before, "everybody has the desktop they had");
    for worker in &office.workers {
        let logins = worker.count(|event| matches!(event, Event::Authenticated { .. }));
        assert_eq!(logins, 1, "nobody was asked for a password");
    }
    office.everybody_leaves()
}
