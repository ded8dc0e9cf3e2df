//! A bad path for datagrams: `tegata-chaos --listen ADDRESS --server ADDRESS`.
//!
//! Each line of its input is a schedule in JSON, which begins when it is read:
//! `[{"there": {"delay_ms": 20}, "back": {"dark": true}}, {"at_ms": 3000}]`. An empty
//! line changes nothing. It prints one JSON object when it listens and one for each
//! line, with what became of all datagrams so far. It ends with its input, but not
//! before the time that `--for` says.

use std::io::{BufRead as _, Read as _};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use serde_json::json;
use tegata_tests::chaos::relay::Relay;
use tegata_tests::chaos::schedule::{FAULTS_MAX, Schedule};
use tegata_tests::chaos::weather::Weather;
use tegata_tests::dice::Dice;

/// Longest line of the input, in bytes.
const LINE_MAX: u64 = 16 * 1024 * 1024;

/// A path between clients and a server that is as bad as it is told to be.
#[derive(Parser)]
struct Arguments {
    /// Where clients send to.
    #[arg(long)]
    listen: SocketAddr,
    /// Whose clients they are.
    #[arg(long)]
    server: SocketAddr,
    /// What luck depends on; drawn and printed when it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// The schedule to begin with, in JSON.
    #[arg(long, value_parser = schedule, conflicts_with = "faults")]
    schedule: Option<Schedule>,
    /// Begin with so many seconds of faults, drawn by the seed.
    #[arg(long)]
    faults: Option<u64>,
    /// Run for so many seconds at least.
    #[arg(long = "for", default_value_t = 0)]
    least: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let began = Instant::now();
    let seed = arguments.seed.unwrap_or_else(|| Dice::new().seed());
    let first = match (arguments.schedule, arguments.faults) {
        (Some(schedule), _) => schedule,
        (None, Some(seconds)) => {
            Schedule::faults(seed, Duration::from_secs(seconds).min(FAULTS_MAX), Weather::CLEAR)
        }
        (None, None) => Schedule::steady(Weather::CLEAR),
    };
    let relay = Relay::start(arguments.listen, arguments.server, seed, first)?;
    println!("{}", json!({ "listening": relay.address(), "seed": seed }));

    let mut input = std::io::stdin().lock();
    loop {
        let mut line = String::new();
        if input.by_ref().take(LINE_MAX).read_line(&mut line)? == 0 {
            break;
        }
        if !line.trim().is_empty() {
            relay.set(schedule(&line).context("a line is no schedule")?)?;
        }
        println!("{}", serde_json::to_string(&relay.tallies()?)?);
    }
    thread::sleep(Duration::from_secs(arguments.least).saturating_sub(began.elapsed()));
    println!("{}", serde_json::to_string(&relay.tallies()?)?);
    Ok(())
}

fn schedule(text: &str) -> serde_json::Result<Schedule> {
    serde_json::from_str(text)
}
