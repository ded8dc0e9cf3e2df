//! The passes on a real store, with desktops that do as told.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use prometheus_client::registry::Registry;
use tegata_domain::desktop::Probe;
use tegata_domain::session::{Cause, Event, STARTING_LIMIT, State};
use tegata_edge::operations::Readiness;
use tegata_proto::code::Code;
use tegata_proto::id::SessionId;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::detached::ROUND_EVERY;
use super::*;
use crate::adapters::sqlite::tests::Folder;
use crate::flows::refusals::Door;
use crate::flows::tests::{PATIENCE, followups};
use crate::ports::clock::Clock;
use crate::ports::occupancy::{Occupancy, Unknown};
use crate::ports::store::contract::{Bench as _, GRACE, Office};
use crate::ports::store::{OccupancyTarget, ProbeTarget, action};

/// Desktops where Sato is logged on when first asked, and nobody after that.
#[derive(Default)]
struct Leaving(AtomicUsize);

#[async_trait]
impl Occupancy for Leaving {
    async fn logged_on(&self, _target: &OccupancyTarget) -> Result<BTreeSet<String>, Unknown> {
        let first = self.0.fetch_add(1, Ordering::SeqCst) == 0;
        Ok(first.then(|| "sato".to_owned()).into_iter().collect())
    }

    async fn log_off(&self, _target: &OccupancyTarget) -> Result<(), Unknown> {
        Ok(())
    }
}

/// A clock that runs, and jumps when told.
struct Wall {
    set_to: Mutex<Timestamp>,
    running: Instant,
}

impl Wall {
    fn set_to(at: Timestamp) -> Arc<Self> {
        Arc::new(Self { set_to: Mutex::new(at), running: Instant::now() })
    }

    fn jumps(&self, by: Duration) {
        let mut set_to = self.set_to.lock().unwrap();
        *set_to = set_to.after(by);
    }
}

impl Clock for Wall {
    fn now(&self) -> Timestamp {
        self.set_to.lock().unwrap().after(self.running.elapsed())
    }
}

/// No desktop is ever looked at.
struct Blind;

#[async_trait]
impl Prober for Blind {
    async fn full(&self, _target: &ProbeTarget) -> Option<Probe> {
        None
    }

    async fn connect(&self, _target: &ProbeTarget) -> Option<Probe> {
        None
    }
}

fn passes(followups: Followups) -> Passes {
    Passes {
        catalogue: Arc::new(Catalogue::new(Arc::clone(&followups.store))),
        followups,
        prober: Arc::new(Blind),
        refusals: Arc::new(Refusals::new()),
        metrics: Metrics::register(&mut Registry::default()),
        store_answers: Readiness::new().condition("store"),
        outage: Outage::default(),
    }
}

#[tokio::test]
async fn whoever_logs_off_after_the_link_was_lost_gives_the_desktop_back() {
    let mut office = Office::<Folder>::with_desktops(1).await;
    let sato = office.work("sato").await;
    office.tell(sato.sid, Event::LinkLost).await.unwrap();
    office.wait(Duration::from_mins(1));
    let leaving = Arc::new(Leaving::default());
    let passes = passes(Followups { occupancy: leaving.clone(), ..followups(&office) });
    let cancelled = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(Arc::new(passes).detached(cancelled.clone()));

    let free = async {
        while office.desktop().await.desktop.holder.is_some() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE + ROUND_EVERY, free).await.expect("they are asked again");
    assert_eq!(office.state(sato.sid).await, State::Ended { cause: Cause::LoggedOff });
    let asked = leaving.0.load(Ordering::SeqCst);
    assert_eq!(asked, 3, "twice while it was kept for Sato, once when it was not any more");
    cancelled.cancel();
    running.join_next().await.unwrap().expect("it ends when it is told");
}

/// An office of two desktops, and a session there whose grace is over.
async fn with_somebody_late() -> (Office<Folder>, SessionId) {
    let mut office = Office::<Folder>::with_desktops(2).await;
    let late = office.work("suzuki").await;
    office.tell(late.sid, Event::LinkLost).await.unwrap();
    office.wait(GRACE);
    (office, late.sid)
}

/// Waits until the passes have ended a session, whose time is over.
async fn ends(office: &Office<Folder>, sid: SessionId) {
    let cause = Cause::GraceExpired;
    while office.state(sid).await != (State::Ended { cause }) {
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_ends_nobody_who_is_away() {
    let (mut office, late) = with_somebody_late().await;
    let away = office.work("sato").await;
    office.tell(away.sid, Event::LinkLost).await.unwrap();
    let clock = Wall::set_to(office.now);
    let passes = passes(Followups { clock: clock.clone(), ..followups(&office) });
    let cancelled = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(Arc::new(passes).deadlines(cancelled.clone()));
    timeout(PATIENCE, ends(&office, late)).await.expect("the pass is on");

    let (_, seq) = office.actions(0).await;
    clock.jumps(2 * GRACE);
    let seen = async {
        while office.actions(seq).await.0 != [action::CLOCK_JUMPED] {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, seen).await.expect("it is seen");
    sleep(2 * EVERY).await;
    assert_eq!(office.actions(seq).await.0, [action::CLOCK_JUMPED], "once, and nothing else");
    let until = office.now.after(GRACE + 2 * GRACE);
    let State::Detached { until: put_off } = office.state(away.sid).await else { panic!("ended") };
    assert!(put_off.since(until) + until.since(put_off) < Duration::from_secs(1), "{put_off}");
    cancelled.cancel();
    running.join_next().await.unwrap().expect("it ends when it is told");
}

#[tokio::test]
async fn what_was_told_in_vain_is_heard_before_anything_is_settled() {
    let (mut office, late) = with_somebody_late().await;
    let sato = office.login("sato").await.unwrap();
    office.redeem(&sato).await.unwrap();
    let clock = Wall::set_to(office.now.after(STARTING_LIMIT.saturating_sub(3 * EVERY)));
    let passes = Arc::new(passes(Followups { clock: clock.clone(), ..followups(&office) }));
    let cancelled = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(Arc::clone(&passes).deadlines(cancelled.clone()));
    timeout(PATIENCE, ends(&office, late)).await.expect("the pass is on");

    while clock.now() < office.now.after(STARTING_LIMIT + EVERY) {
        passes.outage.is_seen();
        sleep(Duration::from_millis(20)).await;
    }
    sleep(TELL_AGAIN).await;
    // As it was when it happened.
    office.tell(sato.sid, Event::Attached).await.unwrap();
    sleep(AFTER_OUTAGE).await;
    assert_eq!(office.state(sato.sid).await, State::Active);
    cancelled.cancel();
    running.join_next().await.unwrap().expect("it ends when it is told");
}

#[tokio::test]
async fn refusals_that_could_not_be_audited_are_audited_later() {
    let mut office = Office::<Folder>::with_desktops(1).await;
    let (_, seq) = office.actions(0).await;
    let refusals = Arc::new(Refusals::new());
    refusals.count(Door::Login, [192, 0, 2, 1].into(), Code::Refused);
    office.bench.stop().await;
    let write = async |office: &Office<Folder>| {
        let refusals = Arc::clone(&refusals);
        Passes { refusals, ..passes(followups(office)) }.write_refusals().await;
    };
    write(&office).await;
    refusals.count(Door::Login, [192, 0, 2, 1].into(), Code::Refused);
    office.bench = office.bench.reopen().await;
    write(&office).await;
    write(&office).await;
    let records = office.store().audit_after(seq, 10).await.unwrap();
    let [(_, record)] = &records[..] else { panic!("one record, not {records:?}") };
    assert_eq!(record.detail["count"], "2", "{record:?}");
}
