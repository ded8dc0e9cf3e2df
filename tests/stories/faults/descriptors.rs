//! The broker may have only so many files open.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tegata_parts::fake::FakeDesktop;
use tegata_tests::crowd::{Seat, Witness, sit_down};
use tegata_tests::evidence::audit_trail;
use tegata_tests::site::{Site, crowd_name, pool, program};
use tegata_tests::wait;
use tokio::runtime::Runtime;

use super::{PASSWORD, tell};

/// What is left for sessions of it, the broker reckons out by itself.
const OPEN_FILES: u64 = 416;

/// More people than that.
const PEOPLE: usize = 48;

/// Most lines that the broker may log about a hundred newcomers turned away.
const LINES_MAX: usize = 20;

/// Most lines about a login whose desktop cannot be connected to.
const LINES_EACH: usize = 5;

/// How long newcomers stand at a port without a file for them.
const STAND: Duration = Duration::from_secs(3);

/// A limit below what every broker has open.
const NONE_LEFT: usize = 8;

/// How many newcomers are turned away while the broker is looked at.
const KNOCKS: usize = 100;

struct Office {
    runtime: Runtime,
    site: Site,
    witness: Witness,
    _desktops: Vec<FakeDesktop>,
}

impl Office {
    fn open() -> Result<Self> {
        let desktops = (0..PEOPLE).map(|_| FakeDesktop::echo(b"")).collect::<Result<Vec<_>>>()?;
        let addresses: Vec<_> = desktops.iter().map(FakeDesktop::address).collect();
        let site = Site::builder()
            .crowd(1..=PEOPLE, PASSWORD, "keiri")?
            .pool(pool("keiri", "keiri", &addresses))
            .open_files(OPEN_FILES)
            .start()?;
        site.api()?.wait_for_desktops("keiri", "ready", PEOPLE)?;
        let (runtime, witness) = (Runtime::new()?, Witness::default());
        Ok(Self { runtime, site, witness, _desktops: desktops })
    }

    fn sit_down(&self, n: usize) -> Result<Seat> {
        let name = crowd_name(n);
        let sit = sit_down(self.site.listen(), (&name, PASSWORD), &self.witness);
        self.runtime.block_on(sit)
    }

    fn all_work(&self, seats: &mut [Seat], word: &str) -> Result<()> {
        for seat in seats {
            self.runtime.block_on(seat.echo(word))?;
        }
        Ok(())
    }

    fn open_files(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.site.process()?))?.count())
    }

    /// How long the broker has run on a processor, in hundredths of a second.
    fn cpu(&self) -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.site.process()?))?;
        let (_, numbers) = stat.rsplit_once(')').context("no stat")?;
        let field = |n: usize| numbers.split_whitespace().nth(n)?.parse::<u64>().ok();
        Some(field(11).context("utime")? + field(12).context("stime")?).context("no time")
    }

    fn may_open(&self, files: usize) -> Result<()> {
        let mut command = Command::new("prlimit");
        let limit = format!("--nofile={files}:");
        command.arg("--pid").arg(self.site.process()?.to_string()).arg(limit);
        ensure!(command.status()?.success(), "prlimit failed");
        Ok(())
    }

    /// Newcomers by TCP wait at both ports while there is no file for any of them.
    fn turns_away_by_tcp(&self) -> Result<()> {
        let (lines, cpu) = (self.lines(), self.cpu()?);
        let ports = [self.site.listen(), self.site.operations()];
        let mut waiting = Vec::new();
        for _ in 0..KNOCKS / 10 {
            for port in ports {
                waiting.push(TcpStream::connect(port)?);
            }
        }
        sleep(STAND);
        let (lines, cpu) = (self.lines() - lines, Duration::from_millis((self.cpu()? - cpu) * 10));
        tell(&json!({
            "story": "no descriptors by TCP", "waiting": waiting.len(), "lines": lines,
            "cpu_ms": cpu.as_millis(),
        }));
        ensure!(lines <= ports.len() * 2, "{lines} lines: {}", self.site.log());
        // Whoever asks the kernel again at once is on a processor all the time.
        ensure!(cpu < STAND / 2, "{cpu:?} in {STAND:?}");
        Ok(())
    }

    fn lines(&self) -> usize {
        self.site.log().lines().filter(|line| !line.contains(" DEBUG ")).count()
    }
}

#[test]
fn a_broker_short_of_descriptors_turns_newcomers_away_and_keeps_those_inside() -> Result<()> {
    let office = Office::open()?;
    let log = office.site.log();
    ensure!(log.contains("The limit of open files allows fewer connections"), "{log}");
    let mut seats = Vec::new();
    let turned_away = (1..=PEOPLE).find_map(|n| match office.sit_down(n) {
        Ok(seat) => {
            seats.push(seat);
            None
        }
        Err(error) => Some(error),
    });
    let turned_away = turned_away.context("everybody got in")?;
    assert!(!seats.is_empty(), "nobody got in: {turned_away:#}");
    ensure!(
        !office.site.log().contains("Too many open files"),
        "it ran out: {}",
        office.site.log()
    );
    let (mut lines, mut cpu, mut refused) = (office.lines(), office.cpu()?, 0);
    while refused < KNOCKS {
        let next = seats.len() + 1;
        ensure!(next < PEOPLE, "everybody gets in after all");
        // A login that has just ended may leave its place to one more.
        match office.sit_down(next) {
            Ok(seat) => {
                seats.push(seat);
                (lines, cpu, refused) = (office.lines(), office.cpu()?, 0);
            }
            Err(_) => refused += 1,
        }
    }
    let (lines, cpu) = (office.lines() - lines, office.cpu()? - cpu);
    tell(&json!({
        "story": "descriptors", "allowed": OPEN_FILES, "inside": seats.len(),
        "open": office.open_files()?, "turned_away": KNOCKS, "lines": lines, "cpu_ms": cpu * 10,
    }));
    assert!(lines <= LINES_MAX, "{lines} lines");
    office.all_work(&mut seats, "turned away")?;

    // As soon as there is room, people come in.
    seats.truncate(seats.len() / 2);
    let seat = wait::until("room for another", || Ok(office.sit_down(PEOPLE).ok()))?;
    seats.push(seat);
    office.all_work(&mut seats, "room again")
}

#[test]
fn a_broker_out_of_descriptors_goes_on_with_those_inside_and_recovers() -> Result<()> {
    let office = Office::open()?;
    let mut seats = (1..=4).map(|n| office.sit_down(n)).collect::<Result<Vec<_>>>()?;
    // As if something else had taken all that were left: every number below is in use.
    office.may_open(NONE_LEFT)?;
    let (lines, cpu) = (office.lines(), office.cpu()?);
    for n in 5..=10 {
        let error = office.sit_down(n).err().context("no desktop can be connected to")?;
        ensure!(format!("{error:#}").contains("Unavailable"), "{error:#}");
        office.all_work(&mut seats, "out of descriptors")?;
    }
    let (lines, cpu) = (office.lines() - lines, office.cpu()? - cpu);
    tell(&json!({ "story": "no descriptors", "lines": lines, "cpu_ms": cpu * 10 }));
    assert!(lines <= LINES_EACH * 6, "{lines} lines");
    office.turns_away_by_tcp()?;
    office.may_open(usize::try_from(OPEN_FILES)?)?;
    let failures = "tegata_edge_accept_failures_total ";
    let metrics = wait::until("the operations port to answer", || {
        Ok(office.site.api().and_then(|api| api.metrics()).ok())
    })?;
    let failures = metrics.lines().find_map(|line| line.strip_prefix(failures));
    ensure!(failures.is_some_and(|count| count != "0"), "{failures:?} failures are counted");
    let mut blamed = audit_trail(&office.site)?;
    blamed.retain(|record| {
        let state = record.detail.get("desktop_state").map(String::as_str);
        let is_ready = record.action == "desktop.ready";
        !is_ready && (state == Some("quarantined") || record.action.starts_with("desktop."))
    });
    ensure!(blamed.is_empty(), "no desktop is at fault: {blamed:?}");
    office.site.api()?.wait_for_desktops("keiri", "ready", PEOPLE - seats.len())?;
    let seat = wait::until("people to get in again", || Ok(office.sit_down(11).ok()))?;
    seats.push(seat);
    office.all_work(&mut seats, "recovered")
}

#[test]
fn a_broker_that_could_serve_nobody_does_not_start() -> Result<()> {
    let site = Site::builder().crowd(1..=1, PASSWORD, "keiri")?.start()?;
    let mut command = Command::new("prlimit");
    command.arg("--nofile=128:128").arg(program("tegata-broker")?).args(["run", "--config"]);
    let output = command.arg(site.path("broker.toml")).output()?;
    assert_eq!(output.status.code(), Some(70));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("the limit of open files is 128"), "{told}");
    Ok(())
}
