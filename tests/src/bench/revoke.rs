//! `revoke`: how long bytes go on after all sessions were ended at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::json;
use tegata_agent::Session;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::arguments::Arguments;
use super::idle::attach;
use super::line::Line;
use super::office::{Office, configuration};
use super::programs::Programs;
use super::relay::clients;
use super::report::{Report, all_rounded, median, rounded};
use crate::desktops::{Desktops, TICK, TICKS};
use crate::site::Site;

/// How many sessions are ended.
const SESSIONS: u32 = 1_000;
/// For a quick look.
const SESSIONS_QUICK: u32 = 20;

/// How long all of them carry before.
const WARM_UP: Duration = Duration::from_secs(2);

/// How long a session may take to notice its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one run came to, in milliseconds after the request was sent.
struct Run {
    last_byte: f64,
    answered: f64,
    last_byte_confirmed: f64,
}

pub(super) fn run(programs: &Programs, arguments: &Arguments) -> Result<()> {
    let runs = arguments.runs(5);
    let sessions = arguments.count(SESSIONS, SESSIONS_QUICK);
    let office = Office::open(arguments)?;
    let desktops = Desktops::start(1)?;
    let mut report = None;
    let mut all = Vec::new();
    for _ in 0..runs {
        let site = office.site(programs, &desktops, sessions)?;
        if report.is_none() {
            let more = json!({ "ticks_of_each_desktop_per_s": TICKS });
            report = Some(Report::begin("revoke", programs, &configuration(&site)?, more)?);
        }
        all.push(once(&site, sessions)?);
    }
    let report = report.context("no run")?;
    let each = |of: fn(&Run) -> f64| all.iter().map(of).collect::<Vec<_>>();
    for (figure, values) in [
        ("last_byte", each(|run| run.last_byte)),
        ("answered", each(|run| run.answered)),
        ("last_byte_confirmed", each(|run| run.last_byte_confirmed)),
    ] {
        report.line(json!({
            "figure": figure, "ms": rounded(median(&values), 1), "sessions": sessions,
            "runs": values.len(), "each": all_rounded(&values, 1),
        }));
    }
    let last_byte = median(&each(|run| run.last_byte));
    report.summary(json!({ "last_byte_ms": rounded(last_byte, 1), "sessions": sessions }));
    Ok(())
}

fn once(site: &Site, sessions: u32) -> Result<Run> {
    let api = site.api()?;
    let runtime = clients()?;
    let held = runtime.block_on(attach(site, sessions))?;
    let ready = Arc::new(Barrier::new(held.len() + 1));
    let mut carrying = JoinSet::new();
    for session in held {
        let ready = Arc::clone(&ready);
        carrying.spawn_on(carry(session, ready), runtime.handle());
    }
    runtime.block_on(ready.wait());
    std::thread::sleep(WARM_UP);

    let (begun, clock) = (Instant::now(), Timestamp::now());
    let body = json!({ "everyone": true });
    let answer = api.post("/v1/sessions/actions/terminate-all", &body)?;
    let answered = begun.elapsed();
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    let items = answer.body["items"].as_array().context("no items")?;
    ensure!(items.len() == sessions as usize, "{} sessions were ended", items.len());
    let mut confirmed = 0.0_f64;
    for item in items {
        ensure!(item["result"] == "terminated", "{item}");
        let at = item["last_byte_at"].as_str().with_context(|| format!("no last byte: {item}"))?;
        let after = at.parse::<Timestamp>()?.duration_since(clock);
        confirmed = confirmed.max(after.as_secs_f64());
    }
    let last = runtime.block_on(async {
        let mut last = begun;
        while let Some(ended) = carrying.join_next().await {
            last = last.max(ended??);
        }
        anyhow::Ok(last)
    })?;
    Ok(Run {
        last_byte: last.saturating_duration_since(begun).as_secs_f64() * 1e3,
        answered: answered.as_secs_f64() * 1e3,
        last_byte_confirmed: confirmed * 1e3,
    })
}

/// Takes what comes until nothing does any more, and returns when the last of it came.
async fn carry(session: Session, ready: Arc<Barrier>) -> Result<Instant> {
    let mut line = Line::over_session(session, TICK).await?;
    line.receive().await?;
    ready.wait().await;
    let mut last = Instant::now();
    let ended = async {
        // However the end shows: a stream that is cut, or a connection that is closed.
        while line.receive().await.is_ok() {
            last = Instant::now();
        }
    };
    timeout(PATIENCE, ended).await.context("a session goes on")?;
    Ok(last)
}
