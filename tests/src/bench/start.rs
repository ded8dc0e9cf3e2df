//! `start`: how long a broker with many desktops takes until it serves.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tegata_proto::ALPN_LOGIN;

use super::arguments::Arguments;
use super::office::{Office, configuration};
use super::programs::Programs;
use super::report::{Report, all_rounded, median, rounded};
use crate::desktops::Desktops;
use crate::site::Site;
use crate::stranger::Line;

/// How many desktops the store has.
const DESKTOPS: u32 = 100_000;
/// For a quick look.
const DESKTOPS_QUICK: u32 = 1_000;

/// How often the operations port is asked.
const ASK_EVERY: Duration = Duration::from_millis(2);

/// How long a start may take.
const LIMIT: Duration = Duration::from_mins(1);

pub(super) fn run(programs: &Programs, arguments: &Arguments) -> Result<()> {
    let runs = arguments.runs(7);
    let count = arguments.count(DESKTOPS, DESKTOPS_QUICK);
    let office = Office::open(arguments)?;
    let desktops = Desktops::start(1)?;
    let mut site = office.site(programs, &desktops, count)?;
    site.stop()?;
    let report = Report::begin("start", programs, &configuration(&site)?, json!({}))?;
    let mut all = Vec::new();
    for _ in 0..runs {
        all.push(once(&mut site)?.as_secs_f64() * 1e3);
    }
    let ready = rounded(median(&all), 1);
    report.line(json!({
        "figure": "ready", "ready_ms": ready, "desktops": count, "runs": runs,
        "each": all_rounded(&all, 1),
    }));
    report.summary(json!({ "ready_ms": ready, "desktops": count }));
    Ok(())
}

/// Starts the broker, and takes the time until it says that it is ready and its public port has
/// completed a handshake.
fn once(site: &mut Site) -> Result<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let began = Instant::now();
    let mut broker = site.launch()?;
    while !is_ready(site.operations()) {
        ensure!(broker.is_running(), "the broker has ended: {}", broker.log());
        ensure!(began.elapsed() < LIMIT, "the broker is not ready: {}", broker.log());
        thread::sleep(ASK_EVERY);
    }
    let line = runtime.block_on(Line::open(site.listen(), ALPN_LOGIN))?;
    let took = began.elapsed();
    drop(line);
    broker.stop()?;
    Ok(took)
}

fn is_ready(operations: SocketAddr) -> bool {
    let asked = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(operations)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    asked().unwrap_or(false)
}
