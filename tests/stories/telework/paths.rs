//! Paths that are as bad as they are told to be: every byte of a session arrives all the same.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use tegata_parts::port::free_udp;
use tegata_parts::wire::Wire;
use tegata_tests::chaos::relay::Relay;
use tegata_tests::chaos::schedule::{Schedule, Step};
use tegata_tests::chaos::tally::Tallies;
use tegata_tests::chaos::weather::Weather;
use tegata_tests::dice::{Dice, long};
use tegata_tests::site::program;
use tegata_tests::staff::echo;
use tegata_tests::wait;

use super::{Office, PASSWORD, carry, count, redeemed};

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

/// How many attaches meet a path that brings nothing back, and how long after one another: from
/// their handshake, over the answer to the attach, to the desktop's first bytes.
const LOST_ANSWERS: u32 = 6;
const LOST_EVERY: Duration = Duration::from_millis(80);

/// Moments between the handshake's answer and that to the attach, in milliseconds.
const BETWEEN: [u64; 3] = [200, 250, 300];

/// How long nothing comes back: longer than an answer is waited for.
const LOST_FOR: Duration = Duration::from_secs(20);

/// A path so long that a handshake, an attach and its answer are told apart.
const LONG_WAY: Weather = Weather { delay_ms: 150, ..Weather::CLEAR };

/// An office at the end of a path with faults.
struct BadPath {
    relay: Relay,
    office: Office,
}

impl BadPath {
    /// Without a fault, the path only takes a while.
    const CALM: Weather = Weather { delay_ms: 5, ..Weather::CLEAR };

    fn open(seed: u64) -> Result<Self> {
        let [here, listen] =
            [free_udp()?, free_udp()?].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let relay = Relay::start(here, listen, seed, Schedule::steady(Self::CALM))?;
        let office = Office::open(|site| site.behind(listen, relay.address()))?;
        Ok(Self { relay, office })
    }

    /// Sato attaches while nothing comes back by UDP, from so long after the ticket on. Tells
    /// whether the answer was lost for good: the ticket was used, and the grant opened the link.
    ///
    /// Where the broker dies, it does so once it has used the ticket up, and is started again.
    fn loses_answers(&mut self, after: Duration, dies: bool) -> Result<bool> {
        let _tcp = Wire::between(self.relay.address().port(), self.office.site.listen().port())?;
        self.relay.set(Schedule::steady(LONG_WAY))?;
        let door = self.relay.address().to_string();
        // A viewer that types one word, and may be started again.
        let script = self.office.site.scratch().join("viewer");
        fs::write(&script, "echo typed >&3\nexec cat <&3 >/dev/null\n")?;
        let viewer = format!("sh {}", script.display());
        let device = self.office.site.device("sato", PASSWORD).server(&door);
        let mut sato = device.exec(&viewer).start()?;
        sato.event("ticket")?;
        let begins = u64::try_from(after.as_millis())?.max(1);
        let ends = begins + u64::try_from(LOST_FOR.as_millis())?;
        let step = |at_ms, dark| {
            let back = Weather { dark, ..LONG_WAY };
            Step { at_ms, there: LONG_WAY, back, moves: false }
        };
        let steps = vec![step(0, false), step(begins, true), step(ends, false)];
        self.relay.set(Schedule::new(steps)?)?;
        let is_used = || Ok((redeemed(&self.office.site)? == 1).then_some(()));
        wait::until("the ticket to be used", is_used).with_context(|| sato.log())?;
        if dies {
            self.office.site.kill()?;
            self.office.site.start()?;
            self.relay.set(Schedule::steady(LONG_WAY))?;
        }
        let attached = sato.event("attached")?;
        sato.event("first_byte")?;
        let sessions = wait::until("Sato to be at work", || {
            let sessions = self.office.site.api()?.sessions()?;
            Ok(sessions.iter().any(|session| session["state"] == "active").then_some(sessions))
        })
        .with_context(|| sato.log())?;
        assert_eq!(sessions.len(), 1, "{sessions:?}");
        assert_eq!(count(&sato, "authenticated"), 1, "no password asked again: {}", sato.log());
        assert_eq!(redeemed(&self.office.site)?, 1, "the ticket was used once");
        let (link, by) = (&attached["link"], &attached["transport"]);
        println!("{}", serde_json::json!({ "dark_after_ms": begins, "link": link, "by": by }));
        assert_eq!(sato.leave()?, Some(50), "{}", sato.log());
        // Two with the ticket, at least.
        Ok(link.as_u64().is_some_and(|link| link > 2))
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

#[test]
fn an_answer_that_is_lost_while_sato_attaches_costs_no_second_login() -> Result<()> {
    let moments: Vec<_> = (0..LOST_ANSWERS).map(|n| LOST_EVERY * n).collect();
    answers_are_lost(&moments, false)
}

#[test]
fn a_broker_that_dies_with_its_answer_to_an_attach_costs_no_second_login() -> Result<()> {
    answers_are_lost(&BETWEEN.map(Duration::from_millis), true)
}

/// Has Sato attach once for each moment, all at the same time.
fn answers_are_lost(moments: &[Duration], dies: bool) -> Result<()> {
    let mut paths: Vec<_> =
        (0..).zip(moments).map(|(n, _)| BadPath::open(n)).collect::<Result<_>>()?;
    let lost = thread::scope(|scope| {
        let attaching = paths.iter_mut().zip(moments);
        let attaching: Vec<_> = attaching
            .map(|(path, after)| scope.spawn(move || path.loses_answers(*after, dies)))
            .collect();
        attaching.into_iter().try_fold(0, |lost, path| {
            let is_lost = path.join().map_err(|_| anyhow!("a path panicked"))??;
            anyhow::Ok(lost + usize::from(is_lost))
        })
    })?;
    println!("{}", serde_json::json!({ "attaches": moments.len(), "answers_lost": lost }));
    ensure!(lost > 0, "no answer was lost");
    Ok(())
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
