//! `side`: one of the two that [`replay`](super::replay) compares. Measures what each line of
//! standard input asks for, and answers with a line of figures.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tegata_parts::peer::Kind;

use super::arguments::Arguments;
use super::echo::{Pair, Rooms, beside_bulk, echoes};
use super::office::{Office, configuration};
use super::programs::Programs;
use super::relay::{DESKTOPS, DESKTOPS_QUICK, Direction, STREAMS, THREADS, carry};
use super::report::Report;
use super::way::{HAPROXY, Peers, TEGATA, TEGATA_TCP, Way};
use crate::desktops::Desktops;

/// The ways that bytes are carried.
const PATHS: [&str; 3] = [TEGATA, TEGATA_TCP, HAPROXY];

/// Those that echoes take.
const ECHO_PATHS: [&str; 2] = [TEGATA, HAPROXY];

/// The one that is the same on both sides.
const PEERS: [(&str, Kind); 1] = [(HAPROXY, Kind::Haproxy { threads: 1, buffer: None })];

/// A line of standard input.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Wish {
    /// What it costs to carry, as `relay` measures it.
    Carry { path: String, direction: Direction, streams: usize },
    /// How long echoes take, as `echo` measures it.
    Echo { path: String, beside_bulk: bool },
}

/// A line of standard output: each figure by its name, all better when they are less.
pub(super) type Figures = BTreeMap<String, f64>;

impl Wish {
    /// Returns everything that is compared.
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for path in PATHS {
            for direction in [Direction::Down, Direction::Up] {
                let carry = |streams| Self::Carry { path: path.to_owned(), direction, streams };
                all.extend(STREAMS.map(carry));
            }
        }
        for path in ECHO_PATHS {
            let echo = |beside_bulk| Self::Echo { path: path.to_owned(), beside_bulk };
            all.extend([false, true].map(echo));
        }
        all
    }
}

pub(super) fn run(programs: &Programs, arguments: &Arguments) -> Result<()> {
    let span = arguments.span(1);
    let office = Office::open(arguments)?;
    let desktops = Desktops::start(THREADS)?;
    let site = office.site(programs, &desktops, arguments.count(DESKTOPS, DESKTOPS_QUICK))?;
    let peers = Peers::start(&office, &PEERS, Ipv4Addr::LOCALHOST.into(), desktops.address(0))?;
    let peer = peers.ways().next().context("no peer")?;
    let rooms = Rooms::new()?;
    // Each of our ways has a third of the staff.
    let third = office.people / 3;
    let (quic, tcp) = {
        let _inside = rooms.bulk.enter();
        (Way::tegata(&site, &office, 0)?, Way::tegata_by_tcp(&site, &office, third)?)
    };
    let echo = {
        let _inside = rooms.echo.enter();
        Way::tegata(&site, &office, 2 * third)?
    };
    let pairs =
        [Pair { echo, bulk: quic.clone() }, Pair { echo: peer.clone(), bulk: peer.clone() }];
    let ways = [quic, tcp, peer];
    let more = json!({
        "seconds": span.as_secs(), "cipher_peers": "TLS13_AES_128_GCM_SHA256", "peers": peers.versions(),
    });
    Report::begin("side", programs, &configuration(&site)?, more)?;

    for line in io::stdin().lines() {
        let mut figures = Figures::new();
        match serde_json::from_str(&line?)? {
            Wish::Carry { path, direction, streams } => {
                let way = ways.iter().find(|way| way.name() == path).context("no such way")?;
                let carrying = carry(way, direction, streams, desktops.taken(), span);
                let (cpu, _) = rooms.bulk.block_on(carrying)?;
                figures.insert("gateway_cpu_s_per_gb".to_owned(), cpu);
            }
            Wish::Echo { path, beside_bulk: bulk } => {
                let pair = pairs.iter().find(|pair| pair.echo.name() == path);
                let pair = pair.context("no such way")?;
                let latencies = if bulk {
                    beside_bulk(pair, &rooms, span)?.0
                } else {
                    rooms.echo.block_on(echoes(&pair.echo, span))?
                };
                figures.insert("p50_us".to_owned(), latencies.percentile_us(0.5));
                figures.insert("p99_us".to_owned(), latencies.percentile_us(0.99));
            }
        }
        println!("{}", serde_json::to_string(&figures)?);
    }
    Ok(())
}
