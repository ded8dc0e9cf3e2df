//! The flows on a real store, with desktops and people that do as told.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tegata_domain::session::State;
use tegata_domain::time::Timestamp;
use tegata_edge::supervisor::Tasks;
use tegata_gateway::sessions::Sessions;
use tegata_proto::code::Code;
use tegata_proto::id::SessionId;
use tokio::time::timeout;
use uuid::Uuid;

use super::followup::{Asking, Followups};
use super::waiting::WaitingRooms;
use crate::adapters::sqlite::tests::Folder;
use crate::ports::clock::Clock;
use crate::ports::occupancy::{Occupancy, Unknown};
use crate::ports::store::contract::Office;
use crate::ports::store::{Followup, OccupancyTarget};

/// Far longer than anything here takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

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

pub(super) fn followups(office: &Office<Folder>) -> Followups {
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
        let both = vec![Followup::AskOccupancy(target.clone()), Followup::LogOff(target.clone())];
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
    let place = followups.rooms.join(&soumu, SessionId(Uuid::nil()), 1).unwrap();
    let moved = place.moved();

    let nobody =
        |n| Followup::CloseLinks { sid: SessionId(Uuid::from_u128(n)), code: Code::Internal };
    let mut many: Vec<_> = (1_000..1_200).map(nobody).collect();
    many.push(Followup::CloseLinks { sid: login.sid, code: Code::EndedByAdministrator });
    many.push(Followup::Freed(soumu.clone()));
    followups.carry_out(many).await;

    assert!(matches!(office.state(login.sid).await, State::Detached { .. }));
    timeout(PATIENCE, moved).await.expect("whoever waits is woken");
}
