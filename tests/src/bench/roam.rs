//! `roam`: how long a session stands still when the thin client changes its network, and after
//! an outage. The thin client and the site are hosts of their own, a round trip apart.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use tegata_agent::progress::Event;
use tegata_parts::netns::{Network, Quality, SERVER, Uplink};

use super::arguments::Arguments;
use super::flow::{Flow, TICK};
use super::office::{Office, configuration, name_of, password_of};
use super::programs::Programs;
use super::report::{Report, all_rounded, percentile, rounded};
use crate::desktops::Desktops;
use crate::fleet::{Fleet, Shown, Worker};
use crate::site::Site;

/// There and back over either uplink.
pub(super) const RTT: Duration = Duration::from_millis(40);

/// Either uplink.
const PATH: Quality =
    Quality { delay: Duration::from_millis(20), rate_kbit: Some(50_000), ..Quality::PERFECT };

/// How long a session may take to go on.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long things take, and how often they happen.
#[derive(Debug, Clone, Copy)]
struct Course {
    /// How many outages there are.
    runs: usize,
    /// How many changes there are for each outage, which takes longer.
    changes: usize,
    outage: Duration,
    /// How long the path is left alone after each case, so that cases do not meet.
    quiet: Duration,
}

impl Course {
    fn of(arguments: &Arguments) -> Self {
        let runs = arguments.runs(4);
        let (whole, quick) = (Duration::from_secs, Duration::from_millis);
        if arguments.quick {
            Self { runs, changes: 1, outage: quick(1_000), quiet: quick(300) }
        } else {
            Self { runs, changes: 4, outage: whole(10), quiet: whole(2) }
        }
    }
}

/// What happens to the thin client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    /// The system sends by the other uplink from now on, as a notebook does that has found a
    /// better network. The old one still carries.
    Change,
    /// The uplink is switched off, and the other one taken.
    SwitchedOff,
    /// Nothing passes for a while, and nobody is told; then it does again.
    Outage,
    /// The same, but it is the other uplink that passes in the end.
    OutageElsewhere,
}

impl Case {
    const ALL: [Self; 4] = [Self::Change, Self::SwitchedOff, Self::Outage, Self::OutageElsewhere];

    fn name(self) -> &'static str {
        match self {
            Self::Change => "address_change",
            Self::SwitchedOff => "uplink_switched_off",
            Self::Outage => "outage",
            Self::OutageElsewhere => "outage_then_other_uplink",
        }
    }

    /// Tells whether the stall is counted from the end of an outage.
    fn is_outage(self) -> bool {
        match self {
            Self::Change | Self::SwitchedOff => false,
            Self::Outage | Self::OutageElsewhere => true,
        }
    }

    fn runs(self, course: Course) -> usize {
        if self.is_outage() { course.runs } else { course.runs * course.changes }
    }
}

/// What all runs of one case came to, in milliseconds.
struct Figure {
    case: Case,
    nat: bool,
    stalls: Vec<f64>,
}

/// What became of a whole network's cases.
struct Round {
    figures: Vec<Figure>,
    lost: u64,
    logins: usize,
}

/// A thin client somewhere, at work.
struct Place<'a> {
    network: &'a Network,
    flow: Flow,
    on: Uplink,
    course: Course,
}

pub(super) fn run(programs: &Programs, arguments: &Arguments) -> Result<()> {
    let course = Course::of(arguments);
    let mut report = None;
    let (mut figures, mut lost) = (Vec::new(), 0);
    for nat in [false, true] {
        let network = Network::builder().quality(Uplink::Wifi, PATH).quality(Uplink::Lte, PATH);
        let network = if nat { network.nat() } else { network }.start()?;
        let (office, desktops, site) = network.server().inside(|| {
            let (office, desktops) = (Office::open(arguments)?, Desktops::start(1)?);
            let site = office.site_at(IpAddr::from(SERVER), programs, &desktops, 2)?;
            Ok((office, desktops, site))
        })?;
        let report = match &report {
            Some(report) => report,
            None => report.insert(Report::begin(
                "roam",
                programs,
                &configuration(&site)?,
                json!({
                    "rtt_ms": RTT.as_millis(), "outage_s": course.outage.as_secs(),
                    "tick_ms": TICK.as_millis(),
                }),
            )?),
        };
        let round = round(&network, &site, nat, course)?;
        drop((site, office, desktops));
        report.line(json!({
            "figure": "whole", "nat": nat, "bytes_lost": round.lost, "logins": round.logins,
        }));
        lost += round.lost;
        figures.extend(round.figures);
    }
    print(&report.context("no network")?, &figures, lost);
    Ok(())
}

/// Works through all cases over one login.
fn round(network: &Network, site: &Site, nat: bool, course: Course) -> Result<Round> {
    let (fleet, worker, desktop) = network.client().inside(|| {
        let fleet = Fleet::open(site, site.listen())?;
        let worker = fleet.log_in(&name_of(0), &password_of(0), Shown::Forwarded)?;
        let desktop = worker.desktop()?;
        Ok((fleet, worker, desktop))
    })?;
    let mut place = Place { network, flow: Flow::start(desktop)?, on: Uplink::Wifi, course };
    let mut figures = Vec::new();
    for case in Case::ALL {
        let mut stalls = Vec::new();
        for _ in 0..case.runs(course) {
            thread::sleep(course.quiet);
            let stall = place.suffer(case);
            let stall = stall.with_context(|| format!("{case:?}: {:?}", worker.story()))?;
            stalls.push(stall.as_secs_f64() * 1e3);
        }
        figures.push(Figure { case, nat, stalls });
    }
    let (sent, came) = place.flow.end()?;
    let logins = authentications(&worker) - 1;
    fleet.end(worker)?;
    Ok(Round { figures, lost: (sent - came) * 8, logins })
}

fn authentications(worker: &Worker) -> usize {
    worker.count(|event| matches!(event, Event::Authenticated { .. }))
}

impl Place<'_> {
    /// Lets it happen, and returns how long nothing came.
    fn suffer(&mut self, case: Case) -> Result<Duration> {
        let (here, there) = (self.on, other(self.on));
        let begun = Instant::now();
        match case {
            Case::Change => self.network.switch_to(there)?,
            Case::SwitchedOff => {
                self.network.switch_off(here)?;
                self.network.switch_to(there)?;
            }
            Case::Outage | Case::OutageElsewhere => {
                self.network.cut(here)?;
                thread::sleep(self.course.outage);
            }
        }
        // Counted from before it is over, as the program that carries may be quicker than its word.
        let over = Instant::now();
        match case {
            Case::Change | Case::SwitchedOff => {}
            Case::Outage => self.network.mend(here)?,
            Case::OutageElsewhere => self.network.switch_to(there)?,
        }
        let stall = if case.is_outage() {
            self.flow.next_arrival(over, PATIENCE)? - over
        } else {
            self.flow.next_arrival(over + RTT, PATIENCE)?;
            thread::sleep(self.course.quiet);
            self.flow.longest_gap(begun)
        };
        match case {
            Case::Outage => {}
            Case::Change => self.on = there,
            Case::SwitchedOff => {
                self.network.switch_on(here)?;
                self.on = there;
            }
            Case::OutageElsewhere => {
                self.network.mend(here)?;
                self.on = there;
            }
        }
        Ok(stall)
    }
}

fn other(uplink: Uplink) -> Uplink {
    match uplink {
        Uplink::Wifi => Uplink::Lte,
        Uplink::Lte => Uplink::Wifi,
    }
}

fn print(report: &Report, figures: &[Figure], lost: u64) {
    for Figure { case, nat, stalls } in figures {
        report.line(json!({
            "figure": "stall", "case": case.name(), "nat": nat, "rtt_ms": RTT.as_millis(),
            "p50_ms": rounded(percentile(stalls, 0.5), 1),
            "p95_ms": rounded(percentile(stalls, 0.95), 1),
            "runs": stalls.len(), "each_ms": all_rounded(stalls, 1),
        }));
    }
    let rtt = RTT.as_secs_f64() * 1e3;
    let over = |outage: bool, rtts: f64| {
        let of = figures.iter().filter(|figure| figure.case.is_outage() == outage);
        let all: Vec<_> = of.flat_map(|figure| &figure.stalls).map(|ms| ms - rtts * rtt).collect();
        rounded(percentile(&all, 0.95), 1)
    };
    report.summary(json!({
        "change_stall_over_2rtt_p95_ms": over(false, 2.0),
        "outage_stall_over_rtt_p95_ms": over(true, 1.0),
        "bytes_lost": lost,
    }));
}
