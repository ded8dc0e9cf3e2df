//! `idle`: what a session costs that nobody works on, in the broker's memory and processor time.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use tegata_agent::Session;
use tegata_proto::session::GatewayMessage;
use tokio::task::JoinSet;

use super::arguments::Arguments;
use super::machine;
use super::office::{Office, configuration};
use super::programs::Programs;
use super::relay::clients;
use super::report::{Report, all_rounded, median, rounded};
use super::visitor::Visitor;
use crate::desktops::Desktops;
use crate::site::Site;

/// How many sessions there are.
const SESSIONS: u32 = 5_000;
/// For a quick look.
const SESSIONS_QUICK: u32 = 20;

/// How many log in at once, each on a socket of its own.
const AGENTS: u32 = 32;

/// How long everything may settle after the last attach.
const SETTLING: Duration = Duration::from_secs(15);
/// For a quick look.
const SETTLING_QUICK: Duration = Duration::from_secs(1);

/// What one run came to.
struct Run {
    kib_per_session: f64,
    cpu_percent: f64,
    resident_kib: [u32; 2],
}

pub(super) fn run(programs: &Programs, arguments: &Arguments) -> Result<()> {
    // Settling and this are the minute after the last attach, three keep-alives of it measured.
    let (runs, span) = (arguments.runs(3), arguments.span(45));
    let settling = if arguments.quick { SETTLING_QUICK } else { SETTLING };
    let sessions = arguments.count(SESSIONS, SESSIONS_QUICK);
    let office = Office::open(arguments)?;
    let desktops = Desktops::start(1)?;
    let mut report = None;
    let mut all = Vec::new();
    for _ in 0..runs {
        let site = office.site(programs, &desktops, sessions)?;
        if report.is_none() {
            let more = json!({
                "seconds_after_the_last_attach": (settling + span).as_secs(),
                "seconds_of_processor_time": span.as_secs(),
            });
            report = Some(Report::begin("idle", programs, &configuration(&site)?, more)?);
        }
        all.push(once(&site, sessions, settling, span)?);
    }
    let report = report.context("no run")?;
    let memory: Vec<_> = all.iter().map(|run| run.kib_per_session).collect();
    let cpu: Vec<_> = all.iter().map(|run| run.cpu_percent).collect();
    let resident: Vec<_> = all.iter().map(|run| run.resident_kib).collect();
    report.line(json!({
        "figure": "memory", "kib_per_session": rounded(median(&memory), 2), "sessions": sessions,
        "runs": all.len(), "each": all_rounded(&memory, 2), "resident_kib": resident,
    }));
    report.line(json!({
        "figure": "cpu", "idle_cpu_percent": rounded(median(&cpu), 2), "sessions": sessions,
        "runs": all.len(), "each": all_rounded(&cpu, 2),
    }));
    report.summary(json!({
        "kib_per_session": rounded(median(&memory), 2),
        "idle_cpu_percent": rounded(median(&cpu), 2), "sessions": sessions,
    }));
    Ok(())
}

fn once(site: &Site, sessions: u32, settling: Duration, span: Duration) -> Result<Run> {
    let broker = site.process()?;
    let without = site.resident_kib()?;
    let runtime = clients()?;
    runtime.block_on(async {
        let held = attach(site, sessions).await?;
        tokio::time::sleep(settling).await;
        let (began, before) = (Instant::now(), machine::cpu(broker)?);
        tokio::time::sleep(span).await;
        let (used, passed) = (machine::cpu(broker)?.saturating_sub(before), began.elapsed());
        let with = site.resident_kib()?;
        for mut session in held {
            anyhow::ensure!(still_there(&mut session).await, "a session was lost meanwhile");
        }
        Ok(Run {
            kib_per_session: (f64::from(with) - f64::from(without)) / f64::from(sessions),
            cpu_percent: 100.0 * used.as_secs_f64() / passed.as_secs_f64(),
            resident_kib: [without, with],
        })
    })
}

/// Logs everybody in and keeps them.
pub(super) async fn attach(site: &Site, sessions: u32) -> Result<Vec<Session>> {
    let mut working = JoinSet::new();
    for agent in 0..AGENTS {
        let visitor = Visitor::new(site)?;
        working.spawn(async move {
            let mut held = Vec::new();
            for person in (agent..sessions).step_by(AGENTS as usize) {
                held.push(visitor.log_in(person).await?);
            }
            anyhow::Ok(held)
        });
    }
    let mut held = Vec::new();
    while let Some(one) = working.join_next().await {
        held.extend(one??);
    }
    Ok(held)
}

/// Tells whether the gateway has said nothing that ends a session.
async fn still_there(session: &mut Session) -> bool {
    loop {
        tokio::select! {
            biased;
            heard = session.control.next() => match heard {
                Ok(GatewayMessage::Ack { .. } | GatewayMessage::Grant { .. }) => {}
                _ended => return false,
            },
            () = std::future::ready(()) => return true,
        }
    }
}
