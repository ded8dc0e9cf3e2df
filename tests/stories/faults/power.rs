//! The broker is killed in the rush of nine o'clock, again and again, and comes
//! back on the same store; so do the people.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tegata_parts::fake::FakeDesktop;
use tegata_proto::code::Code;
use tegata_tests::crowd::{Farewell, Stay, Witness, stay};
use tegata_tests::dice::{Dice, long};
use tegata_tests::evidence::{integrity, judge, tamper};
use tegata_tests::history::{Heard, Violation};
use tegata_tests::site::{Site, crowd_name, pool, program};
use tegata_tests::wait;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{PASSWORD, tell};

/// Tells whether a violation is the one that was planted.
type IsIt = fn(&Violation) -> bool;

/// What has to live as long as the site.
type Parts = (Vec<FakeDesktop>, TempDir);

const PEOPLE: usize = 12;

/// Most words that clients hear between two kills.
const WORDS_MAX: u64 = 60;

/// An office whose desktops change hands all day: whoever logs off is seen logged
/// off at once, and the next one may have the desktop.
fn office() -> Result<(Site, Parts)> {
    let desktops = (0..PEOPLE).map(|_| FakeDesktop::echo(b"")).collect::<Result<Vec<_>>>()?;
    let addresses: Vec<SocketAddr> = desktops.iter().map(FakeDesktop::address).collect();
    let (program, folder) = nobody_is_logged_on()?;
    let mut keiri = pool("keiri", "keiri", &addresses);
    keiri["reuse"] = "after-logoff".into();
    keiri["queue_wait_ms"] = 500.into();
    let site = Site::builder()
        .crowd(1..=PEOPLE, PASSWORD, "keiri")?
        .pool(keiri)
        .occupancy(program)
        .start()?;
    site.api()?.wait_for_desktops("keiri", "ready", PEOPLE)?;
    Ok((site, (desktops, folder)))
}

/// A site's program by whose word nobody is logged on anywhere, in its folder.
fn nobody_is_logged_on() -> Result<(PathBuf, TempDir)> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("nobody");
    fs::write(&program, "#!/bin/sh\necho '{\"logged_on\": []}'\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok((program, folder))
}

/// One person's day: in, to work, out, one way or another, and in again.
async fn day(
    site: SocketAddr,
    name: String,
    mut dice: Dice,
    witness: Arc<Witness>,
    mut power: watch::Receiver<bool>,
) -> u64 {
    let mut stays = 0;
    while power.has_changed().is_ok() {
        let farewell = match dice.below(10) {
            0..6 => Farewell::LogsOff,
            6..9 => Farewell::Vanishes,
            _ => Farewell::NeverComes,
        };
        let person = (name.as_str(), PASSWORD);
        tokio::select! {
            biased;
            // Whatever they were about is cut off with the power.
            _ = power.wait_for(|on| !on) => {}
            done = stay(site, person, farewell, &witness) => stays += u64::from(done.is_ok()),
        }
        if power.wait_for(|on| *on).await.is_err() {
            break;
        }
    }
    stays
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_in_the_rush_loses_nothing_and_gives_no_desktop_twice() -> Result<()> {
    let mut dice = Dice::new();
    let rounds = if long() { 200 } else { 5 };
    let (mut site, _parts) = tokio::task::spawn_blocking(office).await??;
    let (listen, witness) = (site.listen(), Arc::new(Witness::default()));
    let (power, _) = watch::channel(true);
    let mut people = JoinSet::new();
    for n in 1..=PEOPLE {
        let own = Dice::of(dice.seed().wrapping_add(n as u64));
        people.spawn(day(listen, crowd_name(n), own, Arc::clone(&witness), power.subscribe()));
    }
    let mut ready = Vec::new();
    for _ in 0..rounds {
        // At a random word of the conversations: just when it is heard, or a moment after.
        witness.hears(usize::try_from(dice.below(WORDS_MAX))? + 1).await?;
        let moment = dice.below(2) * dice.below(20_000);
        tokio::time::sleep(Duration::from_micros(moment)).await;
        let killed = tokio::task::spawn_blocking(move || {
            site.kill()?;
            anyhow::Ok(site)
        });
        site = killed.await??;
        power.send_replace(false);
        let restarted = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            site.start()?;
            anyhow::Ok((site, began.elapsed()))
        });
        let took;
        (site, took) = restarted.await??;
        ready.push(took);
        power.send_replace(true);
    }
    drop(power);
    let mut stays = 0;
    while let Some(done) = people.join_next().await {
        stays += done?;
    }
    let mut back = JoinSet::new();
    for n in 1..=PEOPLE {
        back.spawn(come_back(listen, crowd_name(n), Arc::clone(&witness)));
    }
    while let Some(came) = back.join_next().await {
        came??;
    }
    ready.sort_unstable();
    let (trail, found) = tokio::task::spawn_blocking(move || {
        let (ended, log) = site.stop()?;
        ensure!(ended == Some(0), "the broker drains: {log}");
        ensure!(integrity(&site.store())? == "ok", "{}", integrity(&site.store())?);
        judge(&site, &witness.heard())
    })
    .await??;
    tell(&json!({
        "story": "killed", "seed": dice.seed(), "rounds": rounds, "stays": stays,
        "records": trail.len(), "violations": found.len(),
        "ready_p50_ms": ready[ready.len() / 2].as_millis(),
        "ready_max_ms": ready.last().map(Duration::as_millis),
    }));
    assert_eq!(found, vec![], "seed {}", dice.seed());
    let changed_hands = trail.iter().filter(|record| record.action == "session.starting").count();
    assert!(changed_hands > PEOPLE, "hardly anybody worked: {changed_hands}");
    Ok(())
}

/// Everybody gets in again, and logs off.
async fn come_back(site: SocketAddr, name: String, witness: Arc<Witness>) -> Result<()> {
    let back = async {
        loop {
            match stay(site, (&name, PASSWORD), Farewell::LogsOff, &witness).await {
                Ok(Stay::Done) => return Ok(()),
                // The desktop is being taken away from whoever had it before.
                Ok(Stay::Refused(Code::PoolExhausted)) => {}
                other => ensure!(other.is_ok(), "{other:?}"),
            }
        }
    };
    timeout(wait::LIMIT, back).await.with_context(|| format!("{name} does not come back"))?
}

#[test]
fn a_store_that_was_tampered_with_is_found_out() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let (mut site, _parts) = office()?;
    let witness = Witness::default();
    for n in 1..=3 {
        let (name, farewell) = (crowd_name(n), [Farewell::LogsOff, Farewell::Vanishes][n % 2]);
        let done = runtime.block_on(stay(site.listen(), (&name, PASSWORD), farewell, &witness))?;
        assert_eq!(done, Stay::Done);
    }
    assert_eq!(site.stop()?.0, Some(0));
    let heard = witness.heard();
    assert_eq!(judge(&site, &heard)?.1, vec![], "as the broker left it");

    // All of it into the one file, to be put back after each plant.
    tamper(&site.store(), "PRAGMA wal_checkpoint(TRUNCATE)")?;
    let whole = fs::read(site.store())?;
    let plants: [(&str, IsIt); 6] = [
        (
            "UPDATE audit SET desktop = (SELECT desktop FROM audit WHERE seq = \
             (SELECT min(seq) FROM audit WHERE action = 'session.requested')) WHERE seq = \
             (SELECT max(seq) FROM audit WHERE action = 'session.requested')",
            |found| matches!(found, Violation::HeldTwice { .. }),
        ),
        (
            "DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit WHERE action = 'session.active')",
            |found| matches!(found, Violation::Gap { .. }),
        ),
        ("DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)", |found| {
            matches!(found, Violation::StoreDiffers { .. })
        }),
        (
            "UPDATE audit SET actor = json_object('user', 'honsho/somebody') WHERE seq = \
             (SELECT max(seq) FROM audit WHERE action = 'session.requested')",
            |found| matches!(found, Violation::Lost { .. }),
        ),
        ("DELETE FROM tickets", |found| matches!(found, Violation::StoreDiffers { .. })),
        (
            "UPDATE desktops SET state = 'assigned', holder = 'honsho/somebody', epoch = epoch + 1 \
             WHERE id = (SELECT min(id) FROM desktops)",
            |found| matches!(found, Violation::StoreDiffers { .. }),
        ),
    ];
    for (sql, is_it) in plants {
        tamper(&site.store(), sql)?;
        let (_, found) = judge(&site, &heard)?;
        assert!(found.iter().any(is_it), "after {sql}: {found:?}");
        let (ended, told) = by_hand(&site, &heard)?;
        ensure!(ended == Some(1) && told["violations"] != json!([]), "after {sql}: {told}");
        fs::write(site.store(), &whole)?;
    }
    let (trail, found) = judge(&site, &heard)?;
    assert_eq!(found, vec![], "as it was");
    let (ended, told) = by_hand(&site, &heard)?;
    ensure!(ended == Some(0) && told["records"] == trail.len(), "{told}");
    Ok(())
}

/// Judges as somebody at a keyboard does, and returns the program's exit number and its words.
fn by_hand(site: &Site, heard: &[Heard]) -> Result<(Option<i32>, Value)> {
    let [audit, ears] = ["audit.jsonl", "heard.jsonl"].map(|name| site.scratch().join(name));
    let mut export = Command::new(program("tegata-broker")?);
    export.args(["audit-export", "--config"]).arg(site.path("broker.toml"));
    ensure!(export.stdout(File::create(&audit)?).status()?.success(), "no trail");
    let lines = heard.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    fs::write(&ears, lines.join("\n"))?;
    let mut judge = Command::new(program("tegata-history")?);
    let output = judge.args([audit, ears, site.store()]).output()?;
    Ok((output.status.code(), serde_json::from_slice(&output.stdout)?))
}
