//! `echo`: the latency that a gateway adds, alone and beside sessions that carry all they can.
//!
//! The one who waits for the echo, the desktop that gives it and the bulk beside it each have
//! threads and sockets of their own, as they are machines of their own outside of a bench.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use serde_json::json;
use tegata_parts::peer::Kind;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::arguments::Arguments;
use super::counter::Counter;
use super::office::{Office, configuration};
use super::programs::Programs;
use super::relay::clients;
use super::report::{Latencies, Report, all_rounded, median, rounded};
use super::way::{HAPROXY, Peers, TEGATA, Way};
use crate::desktops::{Desktops, ECHO, SOURCE};
use crate::site::Site;

/// The peers, each with the threads that suit it least and best.
const PEERS: [(&str, Kind); 3] = [
    (HAPROXY, Kind::Haproxy { threads: 1, buffer: None }),
    ("haproxy-2-threads", Kind::Haproxy { threads: 2, buffer: None }),
    ("stunnel", Kind::Stunnel),
];

/// Bytes of one echo.
const PIECE: usize = 64;

/// Sessions that carry bulk beside it.
const BULK: usize = 9;

/// How long it goes before it counts.
const WARM_UP: Duration = Duration::from_millis(300);

/// Desktops of the pool; each session uses one up.
const DESKTOPS: u32 = 5_000;
/// For a quick look.
const DESKTOPS_QUICK: u32 = 100;

/// What all runs of one way came to, in microseconds.
struct Figure {
    path: &'static str,
    idle: Percentiles,
    beside_bulk: Percentiles,
    bulk_gbit_per_s: Vec<f64>,
}

#[derive(Default)]
struct Percentiles {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Percentiles {
    fn push(&mut self, latencies: &Latencies) {
        self.p50.push(latencies.percentile_us(0.5));
        self.p99.push(latencies.percentile_us(0.99));
    }
}

/// A way for echoes and the same one for bulk, each with sockets of its own.
pub(super) struct Pair {
    pub(super) echo: Way,
    pub(super) bulk: Way,
}

/// Where clients wait for echoes, and where they carry.
pub(super) struct Rooms {
    pub(super) echo: Runtime,
    pub(super) bulk: Runtime,
}

impl Rooms {
    pub(super) fn new() -> Result<Self> {
        let echo = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { echo, bulk: clients()? })
    }
}

pub(super) fn run(programs: &Programs, arguments: &Arguments) -> Result<()> {
    let (runs, span) = (arguments.runs(7), arguments.span(3));
    let office = Office::open(arguments)?;
    let desktops = Desktops::start(1)?;
    let site = office.site(programs, &desktops, arguments.count(DESKTOPS, DESKTOPS_QUICK))?;
    let peers = Peers::start(&office, &PEERS, Ipv4Addr::LOCALHOST.into(), desktops.address(0))?;
    let rooms = Rooms::new()?;
    let ours = ours(&office, &site, &rooms)?;
    let theirs = peers.ways().map(|way| Pair { echo: way.clone(), bulk: way });
    let pairs: Vec<_> = [ours].into_iter().chain(theirs).collect();
    let direct = Way::Direct(desktops.address(0));
    let more = json!({
        "seconds": span.as_secs(), "bytes": PIECE, "bulk_sessions": BULK,
        "cipher_peers": "TLS13_AES_128_GCM_SHA256", "peers": peers.versions(),
    });
    let report = Report::begin("echo", programs, &configuration(&site)?, more)?;

    let mut alone = Percentiles::default();
    let mut figures: Vec<_> = pairs.iter().map(|pair| Figure::of(pair.echo.name())).collect();
    for _ in 0..runs {
        alone.push(&rooms.echo.block_on(echoes(&direct, span))?);
        for (pair, figure) in pairs.iter().zip(&mut figures) {
            figure.idle.push(&rooms.echo.block_on(echoes(&pair.echo, span))?);
        }
        for (pair, figure) in pairs.iter().zip(&mut figures) {
            let (latencies, speed) = beside_bulk(pair, &rooms, span)?;
            figure.beside_bulk.push(&latencies);
            figure.bulk_gbit_per_s.push(speed);
        }
    }
    print(&report, &alone, &figures)
}

/// Our way, twice: the halves are of one gateway and share no person.
fn ours(office: &Office, site: &Site, rooms: &Rooms) -> Result<Pair> {
    let way = |room: &Runtime, first| {
        let _inside = room.enter();
        Way::tegata(site, office, first)
    };
    Ok(Pair { echo: way(&rooms.echo, 0)?, bulk: way(&rooms.bulk, office.people / 2)? })
}

/// Sends pieces one by one and measures how long each takes to come back.
pub(super) async fn echoes(way: &Way, span: Duration) -> Result<Latencies> {
    let mut line = way.open(ECHO).await?;
    let piece = Bytes::from_static(&[b'.'; PIECE]);
    let begins = Instant::now() + WARM_UP;
    let ends = begins + span;
    let mut latencies = Latencies::default();
    loop {
        let sent = Instant::now();
        line.echo(&piece).await?;
        let came = Instant::now();
        if came >= ends {
            break;
        }
        if sent >= begins {
            latencies.push(came - sent);
        }
    }
    line.end().await;
    anyhow::ensure!(latencies.len() > 0, "no echo by {} in time", way.name());
    Ok(latencies)
}

/// The same while other sessions by that way carry bulk to their clients; also tells how fast.
pub(super) fn beside_bulk(pair: &Pair, rooms: &Rooms, span: Duration) -> Result<(Latencies, f64)> {
    let received = Counter::default();
    let mut carrying = JoinSet::new();
    for line in rooms.bulk.block_on(pair.bulk.open_many(SOURCE, BULK))? {
        carrying.spawn_on(line.receive_all(received.clone()), rooms.bulk.handle());
    }
    let (began, before) = (Instant::now(), received.read());
    let latencies = rooms.echo.block_on(echoes(&pair.echo, span))?;
    #[expect(clippy::cast_precision_loss, reason = "far fewer bytes than 2^52")]
    let bits = (received.read() - before) as f64 * 8.0;
    let speed = bits / 1e9 / began.elapsed().as_secs_f64();
    if let Some(ended) = carrying.try_join_next() {
        ended?.context("bulk ended early")?;
    }
    rooms.bulk.block_on(carrying.shutdown());
    Ok((latencies, speed))
}

impl Figure {
    fn of(path: &'static str) -> Self {
        let (idle, beside_bulk) = (Percentiles::default(), Percentiles::default());
        Self { path, idle, beside_bulk, bulk_gbit_per_s: Vec::new() }
    }
}

/// Prints how long echoes took by one way.
fn line(report: &Report, path: &str, bulk: Option<&[f64]>, figure: &Percentiles) {
    report.line(json!({
        "path": path, "beside_bulk": bulk.is_some(), "bulk_gbit_per_s": bulk.map(median),
        "p50_us": rounded(median(&figure.p50), 1), "p99_us": rounded(median(&figure.p99), 1),
        "runs": figure.p50.len(), "each_p50_us": all_rounded(&figure.p50, 1),
        "each_p99_us": all_rounded(&figure.p99, 1),
    }));
}

fn print(report: &Report, alone: &Percentiles, figures: &[Figure]) -> Result<()> {
    line(report, "direct", None, alone);
    for figure in figures {
        line(report, figure.path, None, &figure.idle);
        line(report, figure.path, Some(&figure.bulk_gbit_per_s), &figure.beside_bulk);
    }
    let of = |path| figures.iter().find(|figure| figure.path == path).context("no such way");
    let (ours, theirs) = (of(TEGATA)?, of(HAPROXY)?);
    let (bulk, others) = (&ours.beside_bulk, &theirs.beside_bulk);
    report.summary(json!({
        "added_p50_us": rounded(each(&ours.idle.p50, &alone.p50, |a, b| a - b), 1),
        "added_p99_us": rounded(each(&ours.idle.p99, &alone.p99, |a, b| a - b), 1),
        "bulk_p50_ratio_to_haproxy": rounded(each(&bulk.p50, &others.p50, |a, b| a / b), 3),
        "bulk_p99_ratio_to_haproxy": rounded(each(&bulk.p99, &others.p99, |a, b| a / b), 3),
    }));
    Ok(())
}

/// Compares run by run, since what disturbs one way of a run disturbs the others as well.
fn each(ours: &[f64], theirs: &[f64], compare: impl Fn(f64, f64) -> f64) -> f64 {
    median(&ours.iter().zip(theirs).map(|(a, b)| compare(*a, *b)).collect::<Vec<_>>())
}
