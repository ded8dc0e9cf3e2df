//! Hundreds of people who do not read what their desktops send, beside people who
//! work.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use tegata_parts::fake::FakeDesktop;
use tegata_tests::crowd::{Seat, Witness, sit_down};
use tegata_tests::dice::long;
use tegata_tests::site::{Site, crowd_name, pool};
use tegata_tests::wait;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::{PASSWORD, tell};

/// What one slow session may cost the broker, in KiB.
const SLOW_KIB_MAX: u64 = 2 * 1024;

/// Lines that each fast one sends and gets back.
const LINES: usize = 40;

/// Logins at once, while people sit down.
const AT_ONCE: usize = 4;

/// How often somebody tries whose machine is too busy for a handshake in time.
const TRIES: usize = 3;

#[test]
fn slow_readers_by_the_hundred_cost_little_and_hold_up_nobody() -> Result<()> {
    let (slow, fast) = if long() { (1_000, 100) } else { (100, 10) };
    let floods = (0..slow).map(|_| FakeDesktop::flood()).collect::<Result<Vec<_>>>()?;
    let echoes = (0..fast).map(|_| FakeDesktop::echo(b"")).collect::<Result<Vec<_>>>()?;
    let addresses = |all: &[FakeDesktop]| all.iter().map(FakeDesktop::address).collect::<Vec<_>>();
    let everybody = slow + fast;
    let site = Site::builder()
        .crowd(1..=slow, PASSWORD, "slow")?
        .crowd(slow + 1..=everybody, PASSWORD, "fast")?
        .pool(pool("flood", "slow", &addresses(&floods)))
        .pool(pool("echo", "fast", &addresses(&echoes)))
        .start()?;
    let api = site.api()?;
    wait::until("all desktops to be ready", || {
        let metrics = api.metrics()?;
        let all = [("echo", fast), ("flood", slow)].iter().all(|(pool, count)| {
            let labels = format!("{{pool=\"{pool}\",state=\"ready\"}}");
            metrics.contains(&format!("tegata_desktops{labels} {count}\n"))
        });
        Ok(all.then_some(()))
    })?;
    let (runtime, witness) = (Runtime::new()?, Arc::new(Witness::default()));
    let frozen = Builder::new_current_thread().enable_all().build()?;
    let listen = site.listen();
    let sit_all = |runtime: &Runtime, numbers: RangeInclusive<usize>| -> Result<Vec<Seat>> {
        runtime.block_on(async {
            let (mut sitting, mut seats) = (JoinSet::new(), Vec::new());
            for n in numbers {
                if sitting.len() >= AT_ONCE {
                    let sat: Result<Seat> = sitting.join_next().await.context("nobody")??;
                    seats.push(sat?);
                }
                let (name, witness) = (crowd_name(n), Arc::clone(&witness));
                sitting.spawn(async move {
                    let mut sat = sit_down(listen, (&name, PASSWORD), &witness).await;
                    for _ in 1..TRIES {
                        if sat.is_ok() {
                            break;
                        }
                        sat = sit_down(listen, (&name, PASSWORD), &witness).await;
                    }
                    sat
                });
            }
            while let Some(sat) = sitting.join_next().await {
                seats.push(sat??);
            }
            Ok(seats)
        })
    };

    let seats = sit_all(&runtime, slow + 1..=everybody)?;
    let (seats, alone) = runtime.block_on(work(seats))?;

    let before = u64::from(site.resident_kib()?);
    // One half receives and does not read. The other, once it sits, does not run
    // at all any more, like a notebook whose lid was closed.
    let half = slow / 2;
    let unread = [sit_all(&runtime, 1..=half)?, sit_all(&frozen, half + 1..=slow)?];
    // Until nothing more is taken from any of the desktops.
    let mut last = 0;
    wait::until("every window to be full", || {
        let carried = carried_down(&api.metrics()?)?;
        let full = carried > 0 && carried == last;
        last = carried;
        std::thread::sleep(Duration::from_millis(300));
        Ok(full.then_some(()))
    })?;
    let each = u64::from(site.resident_kib()?).saturating_sub(before) / u64::try_from(slow)?;

    let (seats, beside) = runtime.block_on(work(seats))?;
    let p99 = |took: &[Duration]| took[took.len() * 99 / 100].as_micros();
    tell(&json!({
        "story": "slow readers", "slow": slow, "fast": fast, "kib_per_slow_session": each,
        "echo_p50_us": beside[beside.len() / 2].as_micros(), "echo_p99_us": p99(&beside),
        "echo_p50_us_before": alone[alone.len() / 2].as_micros(), "echo_p99_us_before": p99(&alone),
    }));
    assert_eq!(beside.len(), fast * LINES, "every line of every fast one came back");
    assert!(each <= SLOW_KIB_MAX, "{each} KiB for each slow session");
    drop((seats, unread));
    Ok(())
}

/// Has everybody send lines and wait for each; returns how long that took, the
/// quickest first.
async fn work(seats: Vec<Seat>) -> Result<(Vec<Seat>, Vec<Duration>)> {
    let mut working = JoinSet::new();
    for mut seat in seats {
        working.spawn(async move {
            let mut took = Vec::new();
            for n in 0..LINES {
                let began = Instant::now();
                seat.echo(&format!("{n:064}")).await?;
                took.push(began.elapsed());
            }
            anyhow::Ok((seat, took))
        });
    }
    let (mut seats, mut all) = (Vec::new(), Vec::new());
    while let Some(worked) = working.join_next().await {
        let (seat, took) = worked??;
        seats.push(seat);
        all.extend(took);
    }
    all.sort_unstable();
    Ok((seats, all))
}

fn carried_down(metrics: &str) -> Result<u64> {
    let name = "tegata_gateway_carried_down_bytes_total ";
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    Ok(value.context("no such counter")?.parse()?)
}
