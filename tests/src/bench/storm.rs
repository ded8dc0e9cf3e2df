//! `storm`: complete logins a second, by agents that begin the next one as soon as the last is over.

use std::collections::BTreeMap;
use std::process;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use serde_json::json;
use tegata_proto::code::Code;
use tokio::task::JoinSet;

use super::arguments::Arguments;
use super::line::Line;
use super::machine;
use super::office::{Office, configuration};
use super::programs::Programs;
use super::report::{Latencies, Report, all_rounded, median, rounded};
use super::visitor::Visitor;
use crate::desktops::{Desktops, ECHO};
use crate::site::Site;

/// How many agents log in at once.
const AGENTS: u32 = 64;
/// How many do for a quick look.
const AGENTS_QUICK: u32 = 4;

/// Threads of the agents, all 64 of them.
const THREADS: usize = 2;

/// How long they log in before it counts.
const WARM_UP: Duration = Duration::from_secs(2);

/// Desktops for each second, more than anybody could use up.
const DESKTOPS_A_SECOND: u32 = 1_500;
/// For a quick look, in all.
const DESKTOPS_QUICK: u32 = 500;

/// What one run came to.
struct Run {
    logins_per_s: f64,
    whole: Latencies,
    first_byte: Latencies,
    errors: BTreeMap<String, u32>,
    /// Milliseconds of processor time for each login: broker, directory, agents with desktops.
    cpu_ms: [f64; 3],
}

/// What one agent did.
#[derive(Default)]
struct Tally {
    whole: Latencies,
    first_byte: Latencies,
    errors: BTreeMap<String, u32>,
}

/// The part of a run that counts.
#[derive(Clone, Copy)]
struct Window {
    begins: Instant,
    ends: Instant,
}

pub(super) fn run(programs: &Programs, arguments: &Arguments) -> Result<()> {
    let (runs, span) = (arguments.runs(7), arguments.span(10));
    let agents = arguments.count(AGENTS, AGENTS_QUICK);
    let seconds = u32::try_from((span + WARM_UP).as_secs())?;
    let count = arguments.count(seconds * DESKTOPS_A_SECOND, DESKTOPS_QUICK);
    let office = Office::open(arguments)?;
    let desktops = Desktops::start(1)?;
    let mut report = None;
    let mut all = Vec::new();
    for _ in 0..runs {
        // A new site each time, so that each run finds the same.
        let site = office.site(programs, &desktops, count)?;
        if report.is_none() {
            let more = json!({
                "agents": agents, "seconds": span.as_secs(), "people": office.people, "desktops": count,
            });
            report = Some(Report::begin("storm", programs, &configuration(&site)?, more)?);
        }
        all.push(once(&office, &site, agents, span)?);
    }
    let report = report.context("no run")?;
    print(&report, &mut all);
    Ok(())
}

fn once(office: &Office, site: &Site, agents: u32, span: Duration) -> Result<Run> {
    let broker = site.process()?;
    let processes = [broker, office.directory.id().context("no directory")?, process::id()];
    let used =
        || -> Result<Vec<Duration>> { processes.iter().map(|id| machine::cpu(*id)).collect() };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let begins = Instant::now() + WARM_UP;
    let window = Window { begins, ends: begins + span };
    let (before, after, tally) = runtime.block_on(async {
        let mut working = JoinSet::new();
        for agent in 0..agents {
            let visitor = Visitor::new(site)?;
            let people = (agent..office.people).step_by(agents as usize).collect();
            working.spawn(log_in_and_off(visitor, people, window));
        }
        tokio::time::sleep_until(window.begins.into()).await;
        let before = used()?;
        tokio::time::sleep_until(window.ends.into()).await;
        let after = used()?;
        let mut all = Tally::default();
        while let Some(one) = working.join_next().await {
            let one = one?;
            all.whole.append(one.whole);
            all.first_byte.append(one.first_byte);
            for (code, count) in one.errors {
                *all.errors.entry(code).or_default() += count;
            }
        }
        anyhow::Ok((before, after, all))
    })?;
    let Tally { whole, first_byte, errors } = tally;
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let logins = whole.len() as f64;
    let mut cpu_ms = [0.0; 3];
    for (each, (after, before)) in cpu_ms.iter_mut().zip(after.into_iter().zip(before)) {
        *each = after.saturating_sub(before).as_secs_f64() * 1e3 / logins.max(1.0);
    }
    Ok(Run { logins_per_s: logins / span.as_secs_f64(), whole, first_byte, errors, cpu_ms })
}

/// What one agent does: everybody on its list in turn, and again from the start.
async fn log_in_and_off(visitor: Visitor, people: Vec<u32>, window: Window) -> Tally {
    let mut tally = Tally::default();
    for person in people.into_iter().cycle() {
        let began = Instant::now();
        if began >= window.ends {
            break;
        }
        let outcome = visit(&visitor, person, began).await;
        let counts = (window.begins..window.ends).contains(&Instant::now());
        match outcome {
            Ok(first_byte) if counts => {
                tally.first_byte.push(first_byte);
                tally.whole.push(began.elapsed());
            }
            Ok(_) => {}
            Err(code) => *tally.errors.entry(code.to_string()).or_default() += 1,
        }
    }
    tally
}

/// From login to log-off; returns when the first byte of the desktop was there.
async fn visit(visitor: &Visitor, person: u32, began: Instant) -> Result<Duration, Code> {
    let session = visitor.log_in(person).await.map_err(|refused| refused.0)?;
    let lost = |_| Code::DesktopLost;
    let mut line = Line::over_session(session, ECHO).await.map_err(lost)?;
    line.echo(&Bytes::from_static(b"?")).await.map_err(lost)?;
    let first_byte = began.elapsed();
    line.end().await;
    Ok(first_byte)
}

fn print(report: &Report, runs: &mut [Run]) {
    let count = runs.len();
    let each: Vec<_> = runs.iter().map(|run| run.logins_per_s).collect();
    let mut percentile = |of: fn(&mut Run) -> &mut Latencies, share: f64| -> Vec<f64> {
        runs.iter_mut().map(|run| of(run).percentile_us(share) / 1e3).collect()
    };
    let (p50, p99) =
        (percentile(|run| &mut run.whole, 0.5), percentile(|run| &mut run.whole, 0.99));
    let first = percentile(|run| &mut run.first_byte, 0.5);
    let first_p99 = percentile(|run| &mut run.first_byte, 0.99);
    let mut errors: BTreeMap<&str, u32> = BTreeMap::new();
    for (code, count) in runs.iter().flat_map(|run| &run.errors) {
        *errors.entry(code).or_default() += count;
    }
    report.line(json!({
        "figure": "logins", "logins_per_s": rounded(median(&each), 1), "runs": count,
        "each": all_rounded(&each, 1),
    }));
    report.line(json!({
        "figure": "latency", "p50_ms": rounded(median(&p50), 1), "p99_ms": rounded(median(&p99), 1),
        "first_byte_p50_ms": rounded(median(&first), 1),
        "first_byte_p99_ms": rounded(median(&first_p99), 1), "runs": count,
        "each_p99_ms": all_rounded(&p99, 1),
    }));
    for (at, program) in ["broker", "slapd", "agents and desktops"].into_iter().enumerate() {
        let each: Vec<_> = runs.iter().map(|run| run.cpu_ms[at]).collect();
        report.line(json!({
            "figure": "cpu", "program": program, "cpu_ms_per_login": rounded(median(&each), 3),
            "runs": count, "each": all_rounded(&each, 3),
        }));
    }
    report.line(json!({ "figure": "errors", "by_code": errors, "runs": count }));
    report.summary(json!({
        "logins_per_s": rounded(median(&each), 1), "p50_ms": rounded(median(&p50), 1),
        "p99_ms": rounded(median(&p99), 1), "errors": errors.values().sum::<u32>(),
    }));
}
