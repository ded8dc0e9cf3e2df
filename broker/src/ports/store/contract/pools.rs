//! What an administrator may change.

use std::time::Duration;

use tegata_domain::desktop::{Probe, Quarantine, State};
use tegata_domain::pool::{Kind, Reuse};
use tegata_domain::session::{self, Cause, Event};
use tegata_domain::time::Timestamp;
use tegata_proto::encoding::Sha256;
use tegata_proto::id::PoolName;

use super::{Bench, Office, PIN, dedicated, keiri, listed, user};
use crate::ports::store::{PROBE_HELD, PROBE_LATER, PROBE_SOON, PoolChange, PutPoolError};

fn name() -> PoolName {
    "keiri".parse().unwrap()
}

pub(crate) async fn a_pool_is_created_then_updated_then_unchanged<B: Bench>() {
    let mut office = Office::<B>::open().await;
    assert_eq!(office.put(keiri(2)).await.unwrap(), PoolChange::Created);
    office.probe_all(&name()).await;
    let before = office.desktops(&name()).await;
    assert_eq!(office.put(keiri(2)).await.unwrap(), PoolChange::Unchanged);
    let mut renamed = keiri(3);
    renamed.label = "経理課".into();
    assert_eq!(office.put(renamed).await.unwrap(), PoolChange::Updated);
    let after = office.desktops(&name()).await;
    assert_eq!((after.len(), &after[..2]), (3, &before[..]), "known ones keep their state");
    let pools = office.store().pools().await.unwrap();
    assert_eq!((pools.len(), pools[0].raw().label.as_str()), (1, "経理課"));
    let mut put = keiri(1);
    put.kind = Kind::Dedicated;
    assert!(matches!(office.put(put).await, Err(PutPoolError::Fixed("kind"))));
    let (actions, _) = office.actions(0).await;
    let of_pools = actions.iter().filter(|action| action.starts_with("pool.")).count();
    assert_eq!(of_pools, 2, "{actions:?}");
}

pub(crate) async fn a_held_desktop_that_is_no_longer_listed_drains<B: Bench>() {
    let mut office = Office::<B>::with_desktops(2).await;
    let login = office.work("sato").await;
    office.put(keiri(0)).await.unwrap();
    assert!(matches!(office.desktop().await.desktop.state, State::Draining), "the free one left");
    office.tell(login.sid, Event::LoggedOff).await.unwrap();
    assert_eq!(office.desktops(&name()).await, []);
    let session = office.store().session(login.sid).await.unwrap().unwrap();
    assert_eq!(session.desktop_name.as_str(), "keiri-0001", "the history stays");
    let late = office.tell(login.sid, Event::Attached).await.unwrap();
    assert_eq!(late.len(), 1, "a late attach is closed");
}

pub(crate) async fn a_held_desktop_keeps_its_address_and_owner<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    office.work("sato").await;
    let mut moved = keiri(1);
    moved.desktops[0].address = "10.9.9.9:3389".parse().unwrap();
    let refused = office.put(moved).await.unwrap_err();
    assert!(matches!(refused, PutPoolError::InUse(seat) if seat.as_str() == "keiri-0001"));
    let mut renamed = keiri(0);
    renamed.desktops.push(listed("other", 1));
    let refused = office.put(renamed).await.unwrap_err();
    assert!(matches!(refused, PutPoolError::InUse(_)), "its address is taken while it drains");
}

pub(crate) async fn a_changed_certificate_needs_a_reason<B: Bench>() {
    let office = Office::<B>::with_desktops(1).await;
    let id = office.desktop().await.id;
    let other = Sha256([8; 32]);
    office.store().probed(id, Some(Probe::Answered(Some(other))), office.now).await.unwrap();
    assert!(!office.is_ready().await, "another certificate is not believed");
    let mut accepted = keiri(1);
    accepted.desktops[0].certificate_sha256 = Some(other);
    let refused = office.put(accepted.clone()).await.unwrap_err();
    assert!(matches!(refused, PutPoolError::ReasonMissing(_)));
    assert_eq!(office.desktop().await.desktop.pin, Some(PIN));
    let (_, seq) = office.actions(0).await;
    office.put_because(accepted, Some("new machine")).await.unwrap();
    assert_eq!(office.actions(seq).await.0, ["pool.updated", "desktop.pin_accepted"]);
    office.store().probed(id, Some(Probe::Answered(Some(other))), office.now).await.unwrap();
    assert!(office.is_ready().await);
}

pub(crate) async fn names_and_addresses_belong_to_one_pool<B: Bench>() {
    let office = Office::<B>::with_desktops(2).await;
    let mut other = keiri(0);
    other.name = "jinji".parse().unwrap();
    other.desktops = vec![listed("jinji", 2)];
    let refused = office.put(other.clone()).await.unwrap_err();
    assert!(matches!(refused, PutPoolError::Elsewhere(seat) if seat.as_str() == "jinji-0002"));
    other.desktops = vec![listed("keiri", 9)];
    office.put(other.clone()).await.unwrap();
    let refused = office.put(keiri(9)).await.unwrap_err();
    assert!(matches!(refused, PutPoolError::Elsewhere(seat) if seat.as_str() == "keiri-0009"));
    assert_eq!(office.desktops(&name()).await.len(), 2, "nothing of a refused wish is done");
}

pub(crate) async fn free_desktops_may_swap_addresses<B: Bench>() {
    let office = Office::<B>::with_desktops(2).await;
    let before = office.desktops(&name()).await;
    let mut swapped = keiri(2);
    swapped.desktops[0].address = before[1].address;
    swapped.desktops[1].address = before[0].address;
    office.put(swapped).await.unwrap();
    let after = office.desktops(&name()).await;
    assert_eq!((after[0].address, after[1].address), (before[1].address, before[0].address));
    assert!(after.iter().all(|record| record.desktop.state == State::Starting), "as new");
}

pub(crate) async fn an_owners_desktop_is_theirs_from_the_start<B: Bench>() {
    let mut office = Office::<B>::open().await;
    office.put(dedicated("sato")).await.unwrap();
    office.probe_all(&name()).await;
    let standing = office.store().standing(&user("sato"), &[name()]).await.unwrap();
    assert!(standing[&name()].held);
    let taken = office.login("tanaka").await.unwrap();
    assert_eq!(taken.assigned.name.as_str(), "keiri-0002");
    let own = office.login("sato").await.unwrap();
    assert_eq!((own.assigned.name.as_str(), own.assigned.returning), ("keiri-0001", true));
    let mut second = dedicated("sato");
    second.desktops[1].owner = Some(user("ito"));
    assert!(matches!(office.put(second).await, Err(PutPoolError::InUse(_))), "tanaka has it");
}

pub(crate) async fn another_grace_is_also_theirs_who_are_without_a_link<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let login = office.work("sato").await;
    office.tell(login.sid, Event::LinkLost).await.unwrap();
    let lost = office.now;
    let hours = |n| Duration::from_hours(n);
    office.wait(hours(2));
    for grace in [hours(12), hours(3), hours(1)] {
        let mut pool = keiri(1);
        pool.grace_ms = u64::try_from(grace.as_millis()).unwrap();
        office.put(pool).await.unwrap();
        let until = lost.after(grace);
        assert_eq!(office.state(login.sid).await, session::State::Detached { until });
    }
    office.store().due(office.now, 10).await.unwrap();
    let cause = Cause::GraceExpired;
    assert_eq!(office.state(login.sid).await, session::State::Ending { cause });
}

pub(crate) async fn desktops_are_probed_by_need_and_age<B: Bench>() {
    let mut office = Office::<B>::open().await;
    office.put(keiri(3)).await.unwrap();
    let records = office.desktops(&name()).await;
    let store = office.store();
    let due = async |now| -> Vec<_> {
        let targets = store.to_probe(now, 10).await.unwrap();
        targets.into_iter().map(|target| (target.desktop, target.in_doubt)).collect()
    };
    assert_eq!(due(office.now).await.len(), 3, "those never probed");
    store.probed(records[0].id, Some(Probe::Answered(Some(PIN))), office.now).await.unwrap();
    store.probed(records[1].id, Some(Probe::Failed), office.now).await.unwrap();
    assert_eq!(due(office.now).await, [(records[2].id, true)]);
    office.wait(PROBE_SOON);
    assert_eq!(due(office.now).await, [(records[2].id, true), (records[1].id, true)]);
    office.wait(PROBE_LATER.saturating_sub(PROBE_SOON));
    assert_eq!(due(office.now).await.len(), 3);
    assert!(due(office.now).await.contains(&(records[0].id, false)));
    store.probed(records[0].id, None, office.now).await.unwrap();
    assert_eq!(due(office.now).await.len(), 2, "a mere connection counts as a probe");
    assert_eq!(store.to_probe(office.now, 1).await.unwrap().len(), 1, "the limit holds");
    let set_back = Timestamp::from_millis(office.now.as_millis() - 3_600_000);
    assert_eq!(due(set_back).await.len(), 3, "a clock that was wrong is not waited for");
    store.probed(records[0].id, None, set_back).await.unwrap();
    assert!(!due(set_back).await.contains(&(records[0].id, false)), "once is enough");
}

pub(crate) async fn a_used_desktop_is_looked_at_no_more<B: Bench>() {
    let mut office = Office::<B>::open().await;
    let mut never = keiri(1);
    never.reuse = Reuse::Never;
    office.put(never).await.unwrap();
    office.probe_all(&name()).await;
    let login = office.work("sato").await;
    office.wait(PROBE_LATER);
    assert!(office.store().to_probe(office.now, 10).await.unwrap().is_empty(), "it is held");
    office.wait(PROBE_HELD.saturating_sub(PROBE_LATER));
    let held = office.store().to_probe(office.now, 10).await.unwrap();
    assert_eq!(
        held.iter().map(|target| target.in_doubt).collect::<Vec<_>>(),
        [false],
        "it is still held"
    );
    office.tell(login.sid, Event::LoggedOff).await.unwrap();
    office.tell(login.sid, Event::Closed).await.unwrap();
    let used = State::Quarantined { reason: Quarantine::Used, since: office.now };
    assert_eq!(office.desktop().await.desktop.state, used);
    office.wait(PROBE_LATER);
    assert!(office.store().to_probe(office.now, 10).await.unwrap().is_empty());
}
