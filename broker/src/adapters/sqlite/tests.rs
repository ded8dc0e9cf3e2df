//! The contract on `SQLite`, and what is `SQLite`'s own.

mod crash;

use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Waker};

use async_trait::async_trait;
use sqlx::{Connection as _, SqliteConnection};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::batch::Batch;
use super::writer::Command;
use super::{OpenError, SchemaError, SqliteStore, open};
use crate::ports::store::contract::{Bench, Office, contract_tests};
use crate::ports::store::{Store, StoreError};

/// A store in a folder of its own.
pub(crate) struct Folder {
    place: TempDir,
    store: Arc<SqliteStore>,
    writer: JoinSet<()>,
    cancelled: CancellationToken,
}

impl Folder {
    async fn start_in(place: TempDir) -> Self {
        let (store, writer) = open(&file(&place)).await.unwrap();
        let cancelled = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(writer.run(cancelled.clone()));
        Self { place, store: Arc::new(store), writer: running, cancelled }
    }

    /// Ends the writer: from now on, whatever writes fails.
    pub(crate) async fn stop(&mut self) {
        self.cancelled.cancel();
        self.writer.join_next().await.unwrap().unwrap();
    }

    fn path(&self) -> PathBuf {
        file(&self.place)
    }

    /// A connection past the store.
    async fn connect(&self) -> SqliteConnection {
        SqliteConnection::connect(self.path().to_str().unwrap()).await.unwrap()
    }
}

fn file(folder: &TempDir) -> PathBuf {
    folder.path().join("tegata.db")
}

impl Bench for Folder {
    async fn start() -> Self {
        Self::start_in(TempDir::new().unwrap()).await
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn reopen(mut self) -> Self {
        self.writer.shutdown().await;
        drop(self.store);
        Self::start_in(self.place).await
    }
}

contract_tests!(Folder);

#[tokio::test]
async fn a_second_broker_on_the_same_file_refuses_to_start() {
    let folder = Folder::start().await;
    assert!(matches!(open(&folder.path()).await, Err(OpenError::InUse(_))));
    folder.reopen().await.store.probe().await.unwrap();
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder);
    drop(open(&path).await.unwrap());
    let mut conn = SqliteConnection::connect(path.to_str().unwrap()).await.unwrap();
    sqlx::query("PRAGMA user_version = 99").execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    let Err(OpenError::Schema(_, SchemaError::Newer { found, known })) = open(&path).await else {
        panic!("it was opened");
    };
    assert_eq!((found, known), (99, 7));
}

#[tokio::test]
async fn a_file_from_before_people_could_come_back_is_read_as_it_was_meant() {
    use std::time::Duration;
    use tegata_domain::session::State;
    let mut office = Office::<Folder>::with_desktops(1).await;
    let sato = office.work("sato").await;
    let mut conn = office.bench.connect().await;
    for statement in BACK_TO_4.into_iter().chain(BACK_TO_3).chain([
        "ALTER TABLE sessions DROP COLUMN key",
        "ALTER TABLE sessions DROP COLUMN exporter",
        "UPDATE pools SET spec = json_set(spec, '$.grace_ms', 60000)",
        "PRAGMA user_version = 2",
    ]) {
        sqlx::query(statement).execute(&mut conn).await.unwrap();
    }
    conn.close().await.unwrap();
    office.bench = office.bench.reopen().await;
    let pools = office.store().pools().await.unwrap();
    assert_eq!(pools[0].hold(), Duration::from_mins(1), "no longer than the grace");
    let session = office.store().session(sato.sid).await.unwrap().unwrap();
    assert_eq!((session.state, session.key), (State::Active, None));
    office.come_back(&sato, 2).await.expect("their grant is good");
    let session = office.store().session(sato.sid).await.unwrap().unwrap();
    assert!(matches!(session.state, State::Returning { .. }) && session.key.is_some());
}

/// What makes the tables of this version those of version 4.
const BACK_TO_4: [&str; 5] = [
    "ALTER TABLE sessions DROP COLUMN ahead",
    "DROP INDEX desktops_to_probe",
    "DROP INDEX desktops_to_probe_held",
    "CREATE INDEX desktops_to_probe ON desktops (probed_at)",
    "PRAGMA user_version = 4",
];

/// What makes the tables of version 4 those of version 3.
const BACK_TO_3: [&str; 7] = [
    "DROP TABLE moves",
    "DROP INDEX sessions_timed",
    "ALTER TABLE links DROP COLUMN input_minutes",
    "ALTER TABLE sessions DROP COLUMN policy",
    "ALTER TABLE sessions DROP COLUMN ends_at",
    "ALTER TABLE sessions DROP COLUMN password_at",
    "PRAGMA user_version = 3",
];

#[tokio::test]
async fn a_file_from_before_places_mattered_has_open_pools_and_passwords_as_old_as_sessions() {
    use std::time::Duration;
    use tegata_domain::pool::terms::{ByClass, Limits, Takeover};
    use tegata_proto::code::Code;

    use crate::ports::store::RedeemError;
    let mut office = Office::<Folder>::with_desktops(1).await;
    let sato = office.work("sato").await;
    let mut conn = office.bench.connect().await;
    for statement in BACK_TO_4.into_iter().chain(BACK_TO_3).chain([
        "UPDATE pools SET spec = json_remove(spec, '$.limits', '$.by_class', '$.takeover')",
    ]) {
        sqlx::query(statement).execute(&mut conn).await.unwrap();
    }
    conn.close().await.unwrap();
    office.bench = office.bench.reopen().await;
    let pools = office.store().pools().await.unwrap();
    let raw = pools[0].raw();
    assert_eq!((raw.limits, raw.takeover), (Limits::default(), Takeover::Allow));
    let session = office.store().session(sato.sid).await.unwrap().unwrap();
    assert_eq!(session.ends_at, None);

    let mut young = crate::ports::store::contract::keiri(1);
    young.by_class = vec![ByClass {
        class: "telework".into(),
        allowed: true,
        policy: None,
        limits: Limits::default(),
        password_age_ms: Some(1_000),
    }];
    office.put(young).await.unwrap();
    office.come_back(&sato, 2).await.expect("it was typed this very second");
    office.wait(Duration::from_millis(1_001));
    let refused = office.come_back(&sato, 3).await;
    assert!(matches!(refused, Err(RedeemError::Refused(Code::LoginAgain))), "{refused:?}");
}

#[tokio::test]
async fn a_file_where_a_password_had_to_be_of_no_age_still_lets_nobody_in() {
    let mut office = Office::<Folder>::with_desktops(1).await;
    let mut pool = crate::ports::store::contract::keiri(1);
    let by_class = r#"[{"class": "branch", "allowed": false},
                       {"class": "telework", "password_age_ms": 1000}]"#;
    pool.by_class = serde_json::from_str(by_class).unwrap();
    office.put(pool.clone()).await.unwrap();
    let mut conn = office.bench.connect().await;
    for statement in BACK_TO_4
        .into_iter()
        .chain(["UPDATE pools SET spec = json_set(spec, '$.by_class[1].password_age_ms', 0)"])
    {
        sqlx::query(statement).execute(&mut conn).await.unwrap();
    }
    conn.close().await.unwrap();
    office.bench = office.bench.reopen().await;
    pool.by_class[1].password_age_ms = Some(1);
    let pools = office.store().pools().await.unwrap();
    assert_eq!(pools[0].raw().by_class, pool.by_class);
}

#[tokio::test]
async fn where_a_link_went_and_its_minutes_of_input_are_kept_for_the_report() {
    use std::time::Duration;
    use tegata_domain::session::Event;
    use tegata_proto::id::LinkNumber;

    use crate::ports::store::Moved;
    let mut office = Office::<Folder>::with_desktops(1).await;
    let sato = office.work("sato").await;
    for (n, class) in ["office", "telework", "telework"].into_iter().enumerate() {
        office.wait(Duration::from_secs(n as u64));
        let moved = Moved {
            sid: sato.sid,
            epoch: sato.assigned.epoch,
            link: LinkNumber::FIRST,
            class: class.into(),
            now: office.now,
        };
        office.store().moved(moved).await.unwrap();
    }
    office.tell(sato.sid, Event::LinkLost).await.unwrap();
    let mut conn = office.bench.connect().await;
    let moves: Vec<(String, i64)> = sqlx::query_as(
        "SELECT m.class, m.at - l.started_at FROM moves m JOIN links l USING (sid, number)",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    assert_eq!(moves, [("office".to_owned(), 0), ("telework".to_owned(), 1_000)]);
    let (began, minutes): (String, i64) = sqlx::query_as("SELECT class, input_minutes FROM links")
        .fetch_one(&mut conn)
        .await
        .unwrap();
    assert_eq!((began.as_str(), minutes), ("telework", 2));
}

#[tokio::test]
async fn the_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::start().await;
    for entry in std::fs::read_dir(folder.place.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?}", entry.file_name());
    }
}

#[tokio::test]
async fn what_waits_is_done_before_the_writer_stops() {
    let mut folder = Folder::start().await;
    let mut waiting = [folder.store.probe(), folder.store.probe()];
    for call in &mut waiting {
        let sent = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(sent.is_pending());
    }
    folder.cancelled.cancel();
    folder.writer.join_next().await.unwrap().unwrap();
    for call in waiting {
        call.await.unwrap();
    }
    assert!(matches!(folder.store.probe().await, Err(StoreError::Unavailable(_))));
}

/// The rules hold for a decision that is wrong, too.
#[tokio::test]
async fn the_database_forbids_what_must_never_be() {
    let mut office = Office::<Folder>::with_desktops(3).await;
    let sato = office.work("sato").await;
    let tanaka = office.login("tanaka").await.unwrap();
    office.redeem(&tanaka).await.unwrap();
    let mut conn = office.bench.connect().await;
    let wrong = [
        ("UPDATE desktops SET holder = 'honsho/ito'", "I1: a held desktop changes hands"),
        (
            "UPDATE desktops SET state = 'assigned', holder = 'honsho/sato', epoch = 9 \
             WHERE state = 'ready'",
            "I2: a second desktop of the pool",
        ),
        ("UPDATE desktops SET epoch = epoch - 1 WHERE state = 'assigned'", "the epoch falls"),
        ("UPDATE desktops SET state = 'ready' WHERE state = 'assigned'", "free and held"),
        (
            "UPDATE sessions SET state = 'active', \
             desktop = (SELECT desktop FROM sessions ORDER BY sid LIMIT 1)",
            "I1: two sessions are carried to one desktop",
        ),
        (
            "INSERT INTO tickets SELECT jti, sid, boot, exporter, 9, 2, 0 FROM tickets",
            "I4: a ticket is used twice",
        ),
    ];
    for (statement, what) in wrong {
        let refused = sqlx::query(statement).execute(&mut conn).await.unwrap_err();
        assert!(
            matches!(StoreError::from(refused), StoreError::Corrupt { what: "rule" }),
            "{what}"
        );
    }
    assert_eq!(office.state(sato.sid).await, tegata_domain::session::State::Active);
}

/// A command that ends badly, after it wrote.
struct Bad(&'static str);

#[async_trait]
impl Command for Bad {
    type Answer = ();

    async fn perform(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.add("UPDATE pulse SET beats = beats + 1000", 1);
        batch.run(tx).await?;
        sqlx::query(self.0).execute(tx).await?;
        Ok(())
    }
}

#[tokio::test]
async fn one_bad_command_harms_no_other() {
    let folder = Folder::start().await;
    // A broken rule, a broken statement, and one that takes the transaction away.
    let bad = ["INSERT INTO pulse (beats) VALUES (NULL)", "NONSENSE", "ROLLBACK; NONSENSE"];
    let mut calls = JoinSet::new();
    for n in 0..90 {
        let store = folder.store.clone();
        calls.spawn(async move {
            match n % 9 {
                0 => assert!(store.commands.send(Bad(bad[n / 9 % 3])).await.is_err()),
                _ => store.probe().await.unwrap(),
            }
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    let mut conn = folder.connect().await;
    let beats: i64 =
        sqlx::query_scalar("SELECT beats FROM pulse").fetch_one(&mut conn).await.unwrap();
    assert_eq!(beats, 80, "all good ones, and nothing of the bad ones");
}

#[tokio::test]
async fn links_keep_their_interval_and_class() {
    use tegata_domain::session::Event;
    use tegata_proto::id::LinkNumber;
    let mut office = Office::<Folder>::with_desktops(1).await;
    let login = office.work("sato").await;
    let began = office.now;
    office.wait(std::time::Duration::from_mins(5));
    office.tell_of_link(login.sid, Event::LinkLost, Some(LinkNumber::FIRST)).await.unwrap();
    let mut conn = office.bench.connect().await;
    let link: (String, i64, i64, String, i64, i64) =
        sqlx::query_as("SELECT class, started_at, ended_at, ended_by, up, down FROM links")
            .fetch_one(&mut conn)
            .await
            .unwrap();
    let (began, ended) = (super::row::millis(began), super::row::millis(office.now));
    assert_eq!(link, ("telework".into(), began, ended, "link_lost".into(), 1, -1));
}

#[tokio::test]
async fn each_link_of_a_session_has_an_interval_of_its_own() {
    use tegata_domain::session::Event;
    use tegata_proto::id::LinkNumber;
    let mut office = Office::<Folder>::with_desktops(1).await;
    let login = office.work("sato").await;
    let mut home = office.grant_of(&login, 2);
    home.class = "office".into();
    office.store().redeem(home).await.unwrap();
    for (event, link) in [(Event::Attached, 2), (Event::LinkLost, 1), (Event::LoggedOff, 2)] {
        office.wait(std::time::Duration::from_mins(1));
        office.tell_of_link(login.sid, event, Some(LinkNumber(link))).await.unwrap();
    }
    let mut conn = office.bench.connect().await;
    let links: Vec<(i64, String, String)> =
        sqlx::query_as("SELECT number, class, ended_by FROM links ORDER BY number")
            .fetch_all(&mut conn)
            .await
            .unwrap();
    let wanted = [(1, "telework", "link_lost"), (2, "office", "logged_off")];
    assert_eq!(links, wanted.map(|(n, class, by)| (n, class.to_owned(), by.to_owned())));
}

#[tokio::test]
async fn sources_of_long_ago_are_forgotten_and_none_is_kept_beyond_the_limit() {
    use crate::ports::store::{Assign, FAMILIAR_FOR, FAMILIAR_MAX};
    let mut office = Office::<Folder>::with_desktops(1).await;
    for n in 0..2 * FAMILIAR_MAX {
        let wish = Assign { source: format!("192.0.2.{n}/32"), ..office.wish("sato") };
        office.store().assign(wish).await.unwrap();
    }
    let mut conn = office.bench.connect().await;
    let rows = "SELECT count(*) FROM familiar";
    let count: u32 = sqlx::query_scalar(rows).fetch_one(&mut conn).await.unwrap();
    assert_eq!(count, FAMILIAR_MAX);
    office.wait(FAMILIAR_FOR);
    office.store().due(office.now, 10).await.unwrap();
    let count: u32 = sqlx::query_scalar(rows).fetch_one(&mut conn).await.unwrap();
    assert_eq!(count, FAMILIAR_MAX - 10, "as many at once as was asked for");
}
