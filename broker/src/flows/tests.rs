//! The flows on a real store, with desktops and people that do as told.

use std::collections::BTreeSet;
use std::future::pending;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tegata_domain::session::{Event, State};
use tegata_domain::time::Timestamp;
use tegata_edge::source::Prefix;
use tegata_edge::supervisor::Tasks;
use tegata_gateway::sessions::Sessions;
use tegata_proto::code::Code;
use tegata_proto::id::{Epoch, LinkNumber, SeatName, SessionId};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use uuid::Uuid;

use super::followup::{ASKED_AT_ONCE, Asking, Followups};
use super::waiting::WaitingRooms;
use crate::adapters::sqlite::tests::Folder;
use crate::ports::clock::Clock;
use crate::ports::occupancy::{Occupancy, Unknown};
use crate::ports::store::contract::{GRACE, Office};
use crate::ports::store::{DesktopRecord, Followup, LogOff, OccupancyTarget};

/// Far longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A clock that stands still.
pub(super) struct Noon(pub(super) Timestamp);

impl Clock for Noon {
    fn now(&self) -> Timestamp {
        self.0
    }
}

/// Desktops that never answer.
struct Deaf;

#[async_trait]
impl Occupancy for Deaf {
    async fn logged_on(&self, _target: &OccupancyTarget) -> Result<BTreeSet<String>, Unknown> {
        pending().await
    }

    async fn log_off(&self, _target: &OccupancyTarget) -> Result<(), Unknown> {
        pending().await
    }
}

/// Desktops that answer only when let, each question once, and say that
/// nobody is logged on.
struct Slow {
    may_answer: Semaphore,
    logged_off: Mutex<Vec<SeatName>>,
}

#[async_trait]
impl Occupancy for Slow {
    async fn logged_on(&self, _target: &OccupancyTarget) -> Result<BTreeSet<String>, Unknown> {
        self.may_answer.acquire().await.unwrap().forget();
        Ok(BTreeSet::new())
    }

    async fn log_off(&self, target: &OccupancyTarget) -> Result<(), Unknown> {
        self.logged_off.lock().unwrap().push(target.name.clone());
        Ok(())
    }
}

pub(crate) fn followups(office: &Office<Folder>) -> Followups {
    let metrics = tegata_gateway::metrics::Metrics::register(&mut Registry::default());
    Followups {
        store: office.store(),
        sessions: Sessions::new(metrics),
        occupancy: Arc::new(Deaf),
        rooms: Arc::new(WaitingRooms::new()),
        clock: Arc::new(Noon(office.now)),
        tasks: Tasks::new(Counter::default()),
        asking: Asking::default(),
    }
}

#[tokio::test]
async fn a_desktop_that_never_answers_is_not_asked_again_meanwhile() {
    let office = Office::<Folder>::with_desktops(1).await;
    let followups = followups(&office);
    let record = office.desktop().await;
    let target = OccupancyTarget {
        desktop: record.id,
        name: record.name,
        address: record.address,
        account: None,
    };
    for _ in 0..100 {
        let log_off = LogOff { target: target.clone(), epoch: Epoch(1), since: office.now };
        let both = vec![Followup::AskOccupancy(target.clone()), Followup::LogOff(log_off)];
        followups.carry_out(both).await;
    }
    assert_eq!(followups.tasks.len(), 2, "one question and one log-off");

    // The answer, or its end, lets it be asked again.
    followups.tasks.end(tokio::time::Instant::now()).await;
    let next = Followups { tasks: Tasks::new(Counter::default()), ..followups };
    next.carry_out(vec![Followup::AskOccupancy(target)]).await;
    assert_eq!(next.tasks.len(), 1);
}

#[tokio::test]
async fn all_of_many_follow_ups_are_carried_out() {
    let mut office = Office::<Folder>::with_desktops(1).await;
    let followups = followups(&office);
    let login = office.work("sato").await;
    let soumu = "soumu".parse().unwrap();
    let source = Prefix::of([192, 0, 2, 1].into());
    let whence = (source, NonZeroU32::MIN, "honsho".parse().unwrap());
    let place = followups.rooms.join(&soumu, whence, SessionId(Uuid::nil()), 1).unwrap();
    let moved = place.moved();

    let close = |sid| {
        let (link, code) = (LinkNumber::FIRST, Code::EndedByAdministrator);
        Followup::CloseLinks { sid, link, code }
    };
    let nobody = |n| close(SessionId(Uuid::from_u128(n)));
    let mut many: Vec<_> = (1_000..1_200).map(nobody).collect();
    many.push(close(login.sid));
    many.push(Followup::Freed(soumu.clone()));
    followups.carry_out(many).await;

    assert!(matches!(office.state(login.sid).await, State::Detached { .. }));
    timeout(PATIENCE, moved).await.expect("whoever waits is woken");
}

#[tokio::test]
async fn whoever_comes_back_while_a_log_off_waits_for_its_turn_stays_logged_on() {
    for comes_back in [true, false] {
        let mut office =
            Office::<Folder>::with_desktops(1 + u16::try_from(ASKED_AT_ONCE).unwrap()).await;
        let sato = office.work("sato").await;
        office.tell(sato.sid, Event::LoggedOff).await.unwrap();
        office.wait(GRACE);
        let log_off = office.store().due(office.now, 1).await.unwrap();
        assert!(matches!(log_off[..], [Followup::LogOff(_)]), "{log_off:?}");

        let slow = Arc::new(Slow { may_answer: Semaphore::new(0), logged_off: Mutex::default() });
        let followups = Followups { occupancy: slow.clone(), ..followups(&office) };
        let others = office.desktops(&"keiri".parse().unwrap()).await;
        let others = others.into_iter().filter(|record| record.name != sato.assigned.name);
        let ask = |record: DesktopRecord| {
            let DesktopRecord { id: desktop, name, address, .. } = record;
            Followup::AskOccupancy(OccupancyTarget { desktop, name, address, account: None })
        };
        followups.carry_out(others.map(ask).collect()).await;
        followups.carry_out(log_off).await;
        assert_eq!(followups.tasks.len(), 1 + ASKED_AT_ONCE);

        if comes_back {
            office.login("sato").await.unwrap();
        }
        slow.may_answer.add_permits(1 + ASKED_AT_ONCE);
        followups.tasks.end(tokio::time::Instant::now() + PATIENCE).await;
        let logged_off = slow.logged_off.lock().unwrap().clone();
        let wanted = if comes_back { vec![] } else { vec![sato.assigned.name] };
        assert_eq!(logged_off, wanted);
    }
}
