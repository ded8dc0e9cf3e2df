//! `voice`: what a call suffers that goes through a desktop's stream, over a line with loss: in a
//! stream of its own beside somebody's bulk, and in one stream with a moving picture.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use tegata_parts::netns::{Network, Quality, SERVER, Uplink};
use tegata_parts::peer::Kind;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::arguments::Arguments;
use super::call::{Ear, PACKETS, SPEECH};
use super::counter::Counter;
use super::office::{Office, configuration};
use super::programs::Programs;
use super::relay::clients;
use super::report::{Report, all_rounded, median, percentile, rounded};
use super::way::{HAPROXY, Peers, TEGATA, Way};
use crate::desktops::{CALL, CALL_AND_PICTURE, Desktops, SOURCE};

/// The line: 40 ms there and back, one packet of a hundred lost each way, a home's speed.
const LINE: Quality = Quality {
    delay: Duration::from_millis(20),
    loss_per_mille: 10,
    rate_kbit: Some(20_000),
    ..Quality::PERFECT
};

/// How long it goes before it counts.
const WARM_UP: Duration = Duration::from_secs(2);

/// How long nothing may come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Desktops of the pool; each session uses one up.
const DESKTOPS: u32 = 200;

/// Who is on the line with the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// Another session carries all it can.
    Bulk,
    /// The desktop's picture moves, in the same stream.
    Picture,
}

/// What all runs of one way came to.
struct Figure {
    path: &'static str,
    beside: Beside,
    p50: Vec<f64>,
    p95: Vec<f64>,
    p99: Vec<f64>,
}

pub(super) fn run(programs: &Programs, arguments: &Arguments) -> Result<()> {
    let (runs, span) = (arguments.runs(5), arguments.span(20));
    let network = Network::builder().quality(Uplink::Wifi, LINE).start()?;
    let peers = [(HAPROXY, Kind::Haproxy { threads: 1, buffer: None })];
    let (office, site, peers, _desktops) = network.server().inside(|| {
        let (office, desktops) = (Office::open(arguments)?, Desktops::start(1)?);
        let address = IpAddr::from(SERVER);
        let site = office.site_at(address, programs, &desktops, DESKTOPS)?;
        let target = SocketAddr::new(address, desktops.address(0).port());
        let peers = Peers::start(&office, &peers, address, target)?;
        Ok((office, site, peers, desktops))
    })?;
    let more = json!({
        "rtt_ms": 2 * LINE.delay.as_millis(), "loss_per_mille": LINE.loss_per_mille,
        "rate_kbit": LINE.rate_kbit, "packets_per_s": PACKETS, "bytes_of_speech": SPEECH,
        "seconds": span.as_secs(), "peers": peers.versions(),
    });
    let report = Report::begin("voice", programs, &configuration(&site)?, more)?;
    let mut figures = network.client().inside(|| {
        let runtime = clients()?;
        let ours = {
            let _inside = runtime.enter();
            let half = office.people / 2;
            [Way::tegata(&site, &office, 0)?, Way::tegata_by_tcp(&site, &office, half)?]
        };
        let ways: Vec<_> = ours.into_iter().chain(peers.ways()).collect();
        let mut figures = Vec::new();
        for beside in [Beside::Picture, Beside::Bulk] {
            figures.extend(ways.iter().map(|way| Figure::of(way.name(), beside)));
        }
        for _ in 0..runs {
            for figure in &mut figures {
                let way = ways.iter().find(|way| way.name() == figure.path);
                let way = way.context("no such way")?;
                let gaps = runtime.block_on(listen(way, figure.beside, span))?;
                figure.push(&gaps);
            }
        }
        Ok(figures)
    })?;
    print(&report, &mut figures);
    Ok(())
}

/// Listens to a call, and returns how far apart its packets came.
async fn listen(way: &Way, beside: Beside, span: Duration) -> Result<Vec<f64>> {
    let mut bulk = JoinSet::new();
    let wish = match beside {
        Beside::Bulk => {
            bulk.spawn(way.open(SOURCE).await?.receive_all(Counter::default()));
            CALL
        }
        Beside::Picture => CALL_AND_PICTURE,
    };
    let mut call = way.open(wish).await?;
    let (mut ear, mut warm) = (Ear::default(), false);
    let begun = Instant::now();
    loop {
        let bytes = timeout(PATIENCE, call.take()).await.context("the call is dead")??;
        let now = Instant::now();
        if !warm && now - begun >= WARM_UP {
            warm = true;
            ear.forget();
        }
        if warm && now - begun >= WARM_UP + span {
            break;
        }
        ear.take(&bytes, now)?;
        if let Some(ended) = bulk.try_join_next() {
            ended??;
        }
    }
    Ok(ear.gaps_ms())
}

impl Figure {
    fn of(path: &'static str, beside: Beside) -> Self {
        Self { path, beside, p50: Vec::new(), p95: Vec::new(), p99: Vec::new() }
    }

    fn push(&mut self, gaps: &[f64]) {
        self.p50.push(percentile(gaps, 0.5));
        self.p95.push(percentile(gaps, 0.95));
        self.p99.push(percentile(gaps, 0.99));
    }
}

impl Beside {
    fn name(self) -> &'static str {
        match self {
            Self::Bulk => "bulk_of_another_session",
            Self::Picture => "moving_picture_in_the_same_stream",
        }
    }
}

fn print(report: &Report, figures: &mut [Figure]) {
    for Figure { path, beside, p50, p95, p99 } in &*figures {
        report.line(json!({
            "figure": "gap", "path": path, "beside": beside.name(),
            "p50_ms": rounded(median(p50), 2), "p95_ms": rounded(median(p95), 2),
            "p99_ms": rounded(median(p99), 2), "runs": p95.len(), "each_p95_ms": all_rounded(p95, 2),
        }));
    }
    let of =
        |path, beside| figures.iter().find(|figure| figure.path == path && figure.beside == beside);
    // The ratio of each run, since what disturbs one way of a run disturbs the other as well.
    let ratio = |beside, which: fn(&Figure) -> &[f64]| {
        let (Some(ours), Some(theirs)) = (of(TEGATA, beside), of(HAPROXY, beside)) else {
            return 0.0;
        };
        let each = which(ours).iter().zip(which(theirs));
        rounded(median(&each.map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>()), 3)
    };
    for beside in [Beside::Picture, Beside::Bulk] {
        report.line(json!({
            "figure": "ratio_to_tcp", "beside": beside.name(),
            "p95": ratio(beside, |figure| &figure.p95), "p99": ratio(beside, |figure| &figure.p99),
        }));
    }
    let gap = of(TEGATA, Beside::Bulk).map_or(0.0, |figure| median(&figure.p95));
    report.summary(json!({
        "gap_p95_ms": rounded(gap, 2), "ratio_to_tcp": ratio(Beside::Bulk, |figure| &figure.p95),
    }));
}
