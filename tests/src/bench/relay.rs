//! `relay`: what carrying bytes costs the process that carries them, in processor time for each GB.
//!
//! Every way carries the same kind of bytes between the same desktops and clients of this process,
//! one way after the other within each run, so that what else the machine does falls on all alike.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tegata_parts::peer::Kind;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::arguments::Arguments;
use super::counter::Counter;
use super::machine;
use super::office::{Office, configuration};
use super::programs::Programs;
use super::report::{Report, all_rounded, median, rounded};
use super::way::{HAPROXY, Peers, TEGATA, TEGATA_TCP, Way};
use crate::desktops::{Desktops, SINK, SOURCE};

/// The peers. One thread costs `HAProxy` least; the larger buffer is beside it for comparison.
const PEERS: [(&str, Kind); 3] = [
    (HAPROXY, Kind::Haproxy { threads: 1, buffer: None }),
    ("haproxy-bufsize-65536", Kind::Haproxy { threads: 1, buffer: Some(65_536) }),
    ("stunnel", Kind::Stunnel),
];

/// How many sessions carry at once.
pub(super) const STREAMS: [usize; 2] = [1, 9];

/// How long bytes flow before they count.
const WARM_UP: Duration = Duration::from_millis(500);

/// Threads of the clients.
pub(super) const THREADS: usize = 2;

/// Bytes of one write of a client.
const PIECE: usize = 256 * 1024;

/// Desktops of the pool; each session uses one up.
pub(super) const DESKTOPS: u32 = 5_000;
/// For a quick look.
pub(super) const DESKTOPS_QUICK: u32 = 100;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Direction {
    /// From the desktop to the client.
    Down,
    /// From the client to the desktop.
    Up,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
        }
    }
}

/// What all runs of one figure came to.
struct Figure {
    path: &'static str,
    direction: Direction,
    streams: usize,
    cpu_s_per_gb: Vec<f64>,
    gbit_per_s: Vec<f64>,
}

pub(super) fn run(programs: &Programs, arguments: &Arguments) -> Result<()> {
    let (runs, span) = (arguments.runs(7), arguments.span(3));
    let office = Office::open(arguments)?;
    let desktops = Desktops::start(THREADS)?;
    let site = office.site(programs, &desktops, arguments.count(DESKTOPS, DESKTOPS_QUICK))?;
    let peers = Peers::start(&office, &PEERS, Ipv4Addr::LOCALHOST.into(), desktops.address(0))?;
    let runtime = clients()?;
    let ours = {
        let _inside = runtime.enter();
        // Two halves of the staff.
        [Way::tegata(&site, &office, 0)?, Way::tegata_by_tcp(&site, &office, office.people / 2)?]
    };
    let ways: Vec<_> = ours.into_iter().chain(peers.ways()).collect();
    let more = json!({
        "seconds": span.as_secs(), "cipher_peers": "TLS13_AES_128_GCM_SHA256", "peers": peers.versions(),
    });
    let report = Report::begin("relay", programs, &configuration(&site)?, more)?;

    let mut figures = Vec::new();
    for streams in STREAMS {
        for direction in [Direction::Down, Direction::Up] {
            figures.extend(ways.iter().map(|way| Figure {
                path: way.name(),
                direction,
                streams,
                cpu_s_per_gb: Vec::new(),
                gbit_per_s: Vec::new(),
            }));
        }
    }
    for _ in 0..runs {
        for figure in &mut figures {
            let way = ways.iter().find(|way| way.name() == figure.path).context("no such way")?;
            let carrying = carry(way, figure.direction, figure.streams, desktops.taken(), span);
            let (cpu, speed) = runtime.block_on(carrying)?;
            figure.cpu_s_per_gb.push(cpu);
            figure.gbit_per_s.push(speed);
        }
    }
    print(&report, &figures);
    Ok(())
}

/// Returns a runtime for clients.
pub(super) fn clients() -> Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("clients")
        .enable_all()
        .build()?;
    Ok(runtime)
}

/// Carries bytes for a while; returns processor seconds for each GB, and Gbit a second.
pub(super) async fn carry(
    way: &Way,
    direction: Direction,
    streams: usize,
    taken: Counter,
    span: Duration,
) -> Result<(f64, f64)> {
    let process = way.process().context("nobody carries")?;
    let mut carrying = JoinSet::new();
    let count = match direction {
        Direction::Down => {
            let received = Counter::default();
            for line in way.open_many(SOURCE, streams).await? {
                carrying.spawn(line.receive_all(received.clone()));
            }
            received
        }
        Direction::Up => {
            let piece = Bytes::from(vec![0; PIECE]);
            for line in way.open_many(SINK, streams).await? {
                carrying.spawn(line.send_all(piece.clone()));
            }
            taken
        }
    };
    let looked = || -> Result<_> { Ok((machine::cpu(process)?, count.read(), Instant::now())) };
    let measured = async {
        tokio::time::sleep(WARM_UP).await;
        let before = looked()?;
        tokio::time::sleep(span).await;
        anyhow::Ok((before, looked()?))
    };
    let (before, after) = tokio::select! {
        measured = measured => measured?,
        Some(ended) = carrying.join_next() => {
            ended??;
            anyhow::bail!("a line by {} ended", way.name());
        }
    };
    #[expect(clippy::cast_precision_loss, reason = "far fewer bytes than 2^52")]
    let bytes = (after.1 - before.1) as f64;
    anyhow::ensure!(bytes > 0.0, "{} carried nothing", way.name());
    let cpu = after.0.saturating_sub(before.0).as_secs_f64();
    let seconds = (after.2 - before.2).as_secs_f64();
    Ok((cpu / (bytes / 1e9), bytes * 8.0 / 1e9 / seconds))
}

fn print(report: &Report, figures: &[Figure]) {
    for figure in figures {
        report.line(json!({
            "path": figure.path, "direction": figure.direction.name(), "streams": figure.streams,
            "gateway_cpu_s_per_gb": rounded(median(&figure.cpu_s_per_gb), 3),
            "gbit_per_s": rounded(median(&figure.gbit_per_s), 2),
            "runs": figure.cpu_s_per_gb.len(), "each": all_rounded(&figure.cpu_s_per_gb, 3),
        }));
    }
    // The ratio of each run, since what disturbs one way of a run disturbs the other as well.
    let ratio = |path, direction, streams| {
        let of = |path| {
            figures
                .iter()
                .find(|f| f.path == path && f.direction == direction && f.streams == streams)
        };
        let (Some(ours), Some(theirs)) = (of(path), of(HAPROXY)) else { return 0.0 };
        let each = ours.cpu_s_per_gb.iter().zip(&theirs.cpu_s_per_gb);
        rounded(median(&each.map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>()), 3)
    };
    for streams in STREAMS {
        report.line(json!({
            "figure": "ratio_to_haproxy", "path": TEGATA, "direction": "up", "streams": streams,
            "ratio": ratio(TEGATA, Direction::Up, streams),
        }));
        for direction in [Direction::Down, Direction::Up] {
            report.line(json!({
                "figure": "ratio_to_haproxy", "path": TEGATA_TCP, "direction": direction.name(),
                "streams": streams, "ratio": ratio(TEGATA_TCP, direction, streams),
            }));
        }
    }
    report.summary(json!({
        "ratio_to_haproxy": ratio(TEGATA, Direction::Down, STREAMS[0]),
        "ratio_to_haproxy_9": ratio(TEGATA, Direction::Down, STREAMS[1]),
    }));
}
