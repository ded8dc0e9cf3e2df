//! A process that is killed while it commits, and what its successor finds.

use std::env;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection as _, SqliteConnection};
use tegata_domain::session::{Event, State};
use tegata_domain::time::Timestamp;
use tegata_proto::id::{LinkNumber, SessionId};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::{SqliteStore, open, row};
use super::Folder;
use crate::ports::store::contract::{BOOT, GRACE, Office};
use crate::ports::store::{Actor, SessionEvent, Store};

/// This test, as the child is told to run it.
const NAME: &str = "adapters::sqlite::tests::crash::what_was_acknowledged_outlives_a_kill";

/// In the environment of a child, which is the one that commits.
const CHILD: &str = "TEGATA_CHILD_THAT_COMMITS";

/// How many people work at once in a child.
const PEOPLE: u16 = 16;

/// How many children are killed.
const KILLS: u64 = 4;

/// How long a child may take until it is killed.
const PATIENCE: Duration = Duration::from_mins(1);

/// A child is killed after at most so many acknowledgements.
const WORDS_MAX: u64 = 600;

/// Writes a line of a child that tells what was acknowledged.
fn say(what: &str, id: Uuid) {
    let line = format!("{what} {id}\n");
    // Past the test's own capture, and in one piece. Without a parent it ends.
    std::io::stdout().write_all(line.as_bytes()).expect("somebody listens");
}

/// Logs in, redeems and logs off, again and again, and says each time the store
/// has acknowledged it.
async fn work() {
    let mut office = Office::<Folder>::with_desktops(PEOPLE).await;
    println!("\npath {}", office.bench.path().display());
    loop {
        let mut logins = Vec::new();
        for n in 0..PEOPLE {
            let login = office.login(&format!("user{n}")).await.unwrap();
            say("assigned", login.sid.0);
            logins.push((office.redeem_of(&login), login));
        }
        let mut working = JoinSet::new();
        for (redeem, login) in logins {
            let (store, now) = (office.store(), office.now);
            working.spawn(async move {
                store.redeem(redeem).await.unwrap();
                say("redeemed", login.jti.0);
                for (event, word) in [(Event::Attached, None), (Event::LoggedOff, Some("ended"))] {
                    let event = SessionEvent {
                        sid: login.sid,
                        event,
                        link: Some(LinkNumber::FIRST),
                        carried: None,
                        actor: Actor::Broker,
                        now,
                    };
                    store.session_event(event).await.unwrap();
                    if let Some(word) = word {
                        say(word, login.sid.0);
                    }
                }
            });
        }
        while let Some(done) = working.join_next().await {
            done.unwrap();
        }
    }
}

fn id_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed()).unwrap()
}

/// Kills a child after so many acknowledgements; returns its store's path and
/// everything that it had said by then.
fn killed(mut child: Child, after: u64) -> (String, Vec<(String, Uuid)>) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let path = lines.find_map(|line| Some(line.strip_prefix("path ")?.to_owned()));
    let path = path.expect("the child has a store");
    let heard = |line: String| {
        let (what, id) = line.split_once(' ')?;
        Some((what.to_owned(), id.parse().ok()?))
    };
    let mut acknowledged: Vec<_> =
        lines.by_ref().take(usize::try_from(after).unwrap()).filter_map(heard).collect();
    kill_process(id_of(&child), Signal::KILL).unwrap();
    // What was in the pipe was acknowledged too; a last line may be cut short.
    acknowledged.extend(lines.filter_map(heard));
    assert!(!child.wait().unwrap().success());
    (path, acknowledged)
}

async fn is_sound(path: &Path) {
    let mut conn = SqliteConnection::connect(path.to_str().unwrap()).await.unwrap();
    let sound: Vec<String> =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_all(&mut conn).await.unwrap();
    assert_eq!(sound, ["ok"]);
    let dangling = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut conn).await.unwrap();
    assert!(dangling.is_empty());
    let numbers: (i64, i64) =
        sqlx::query_as("SELECT count(*), max(seq) FROM audit").fetch_one(&mut conn).await.unwrap();
    assert_eq!(numbers.0, numbers.1, "no record of the audit trail is missing");
}

/// Looks for one thing that was acknowledged.
async fn find(store: &SqliteStore, conn: &mut SqliteConnection, what: &str, id: Uuid) {
    let state = async || Some(store.session(SessionId(id)).await.unwrap()?.state);
    let there = match what {
        "assigned" => state().await.is_some(),
        "ended" => matches!(state().await, Some(State::Ended { .. })),
        "redeemed" => {
            let found = sqlx::query("SELECT 1 FROM tickets WHERE jti = ?").bind(row::bytes(id));
            found.fetch_optional(conn).await.unwrap().is_some()
        }
        other => panic!("the child says {other}"),
    };
    assert!(there, "{what} {id} was acknowledged and is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_outlives_a_kill() {
    if env::var_os(CHILD).is_some() {
        return work().await;
    }
    let seed = env::var("TEGATA_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("TEGATA_SEED={seed}");
    let folder = TempDir::new().unwrap();
    for kill in 1..=KILLS {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, "1")
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Knuth's multiplicative hashing spreads even small seeds.
        let after = 1 + seed.wrapping_mul(kill).wrapping_mul(0x9e37_79b9_7f4a_7c15) % WORDS_MAX;
        let pid = id_of(&child);
        let mut killing = tokio::task::spawn_blocking(move || killed(child, after));
        let Ok(killed) = timeout(PATIENCE, &mut killing).await else {
            // So that nobody waits for it for ever.
            kill_process(pid, Signal::KILL).unwrap();
            panic!("the child commits nothing");
        };
        let (path, acknowledged) = killed.unwrap();
        assert!(acknowledged.len() as u64 >= after, "it commits until it is killed");

        let path = Path::new(&path);
        let (store, writer) = open(path).await.unwrap();
        let mut writing = JoinSet::new();
        writing.spawn(writer.run(CancellationToken::new()));
        is_sound(path).await;
        let mut conn = SqliteConnection::connect(path.to_str().unwrap()).await.unwrap();
        for (what, id) in acknowledged {
            find(&store, &mut conn, &what, id).await;
        }
        conn.close().await.unwrap();

        // And it goes on from there.
        let later = Timestamp::from_millis(1_900_000_000_000).after(GRACE);
        store.recover(Uuid::from_u128(BOOT.as_u128() + 1), later).await.unwrap();
        store.due(later, 1_000).await.unwrap();
        store.probe().await.unwrap();
    }
}
