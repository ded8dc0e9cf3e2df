//! What is kept, and how it is listed.

use std::task::{Context, Waker};
use std::time::Duration;

use tegata_domain::session::{Event, State};
use tegata_proto::id::PoolName;

use super::{Bench, Office, keiri, user};
use crate::ports::store::{
    Actor, Assign, AuditRecord, FAMILIAR_FOR, FAMILIAR_MAX, PoolChange, PutPool,
};

pub(crate) async fn everything_acknowledged_is_there_after_a_crash<B: Bench>() {
    let mut office = Office::<B>::with_desktops(4).await;
    let pool: PoolName = "keiri".parse().unwrap();
    let active = office.work("sato").await;
    let requested = office.login("tanaka").await.unwrap();
    let desktops = office.desktops(&pool).await;
    let sessions = office.store().sessions(None, 10).await.unwrap();
    let audit = office.store().audit_after(0, 100).await.unwrap();

    office.bench = office.bench.reopen().await;
    assert_eq!(office.desktops(&pool).await, desktops);
    assert_eq!(office.store().sessions(None, 10).await.unwrap(), sessions);
    assert_eq!(office.store().audit_after(0, 100).await.unwrap(), audit);
    office.redeem(&requested).await.unwrap();
    assert!(office.redeem(&active).await.is_ok(), "a repeat is answered from what is kept");
    let put = PutPool {
        pool: keiri(9).try_into().unwrap(),
        actor: Actor::Broker,
        reason: None,
        only_if_absent: true,
        now: office.now,
    };
    assert_eq!(office.store().put_pool(put).await.unwrap(), PoolChange::Unchanged);
}

pub(crate) async fn a_caller_who_leaves_has_all_or_nothing_done<B: Bench>() {
    let mut office = Office::<B>::with_desktops(8).await;
    let mut sids = Vec::new();
    for n in 0..8 {
        let (store, wish) = (office.store(), office.wish(&format!("person-{n}")));
        sids.push(wish.sid);
        let mut call = store.assign(wish);
        // Sent, and left before the answer.
        let left = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(left.is_pending());
    }
    // What is asked after them is answered after them.
    office.store().probe().await.unwrap();
    let mut made = 0;
    for sid in sids {
        made += usize::from(office.store().session(sid).await.unwrap().is_some());
    }
    let records = office.desktops(&"keiri".parse().unwrap()).await;
    let held = records.iter().filter(|record| record.desktop.holder.is_some()).count();
    let (actions, _) = office.actions(0).await;
    let told = actions.iter().filter(|action| *action == "session.requested").count();
    assert_eq!((held, told), (made, made));
    assert!(office.login("sato").await.is_ok() || made == 8, "the store goes on");
}

pub(crate) async fn audit_records_are_numbered_in_order<B: Bench>() {
    let office = Office::<B>::open().await;
    let record = |action: &str| AuditRecord {
        at: office.now,
        action: action.into(),
        actor: Actor::ApiKey("first".into()),
        sid: None,
        desktop: None,
        detail: [("name".to_owned(), "値".to_owned())].into(),
    };
    let records: Vec<_> = ["one", "two", "three"].map(record).into();
    office.store().audit(records.clone()).await.unwrap();
    let first = office.store().audit_after(0, 2).await.unwrap();
    let rest = office.store().audit_after(first[1].0, 2).await.unwrap();
    assert!(first[0].0 < first[1].0 && first[1].0 < rest[0].0);
    let read: Vec<_> = first.into_iter().chain(rest).map(|(_, record)| record).collect();
    assert_eq!(read, records);
}

pub(crate) async fn lists_are_cut_into_pages<B: Bench>() {
    let mut office = Office::<B>::with_desktops(3).await;
    let pool: PoolName = "keiri".parse().unwrap();
    let first = office.store().desktops(&pool, None, 2).await.unwrap();
    let rest = office.store().desktops(&pool, Some(&first[1].name), 2).await.unwrap();
    let names: Vec<_> = first.iter().chain(&rest).map(|record| record.name.as_str()).collect();
    assert_eq!(names, ["keiri-0001", "keiri-0002", "keiri-0003"]);

    let over = office.work("ito").await;
    office.tell(over.sid, Event::LoggedOff).await.unwrap();
    let older = office.work("sato").await;
    let younger = office.login("tanaka").await.unwrap();
    let page = office.store().sessions(None, 1).await.unwrap();
    assert_eq!(page[0].sid, younger.sid, "youngest first");
    let page = office.store().sessions(Some(younger.sid), 5).await.unwrap();
    assert_eq!(page.iter().map(|session| session.sid).collect::<Vec<_>>(), [older.sid]);
    let session = &page[0];
    assert_eq!((session.display_name.as_str(), session.state), ("SATO", State::Active));
    assert_eq!((session.class.as_str(), session.link.0), ("telework", 1), "as the gateway saw");
}

pub(crate) async fn the_census_counts_what_is_there<B: Bench>() {
    let mut office = Office::<B>::with_desktops(3).await;
    office.work("sato").await;
    office.login("tanaka").await.unwrap();
    let census = office.store().census().await.unwrap();
    let pool: PoolName = "keiri".parse().unwrap();
    let desktops = [((pool.clone(), "assigned".into()), 2), ((pool, "ready".into()), 1)];
    assert_eq!(census.desktops, desktops.into());
    let sessions =
        [(("office".into(), "requested".into()), 1), (("telework".into(), "active".into()), 1)];
    assert_eq!(census.sessions, sessions.into());
}

impl<B: Bench> Office<B> {
    async fn comes_from(&mut self, name: &str, source: &str) {
        let wish = Assign { source: source.into(), ..self.wish(name) };
        self.store().assign(wish).await.unwrap();
    }

    async fn knows(&self, name: &str, source: &str) -> bool {
        self.store().is_familiar(&user(name), source, self.now).await.unwrap()
    }
}

pub(crate) async fn a_person_is_known_where_they_came_from_in_the_last_thirty_days<B: Bench>() {
    let mut office = Office::<B>::with_desktops(2).await;
    office.comes_from("sato", "192.0.2.1/32").await;
    office.comes_from("tanaka", "192.0.2.2/32").await;
    office.bench = office.bench.reopen().await;
    for (name, source, known) in [
        ("sato", "192.0.2.1/32", true),
        ("sato", "192.0.2.2/32", false),
        ("tanaka", "192.0.2.1/32", false),
        ("nobody", "192.0.2.1/32", false),
    ] {
        assert_eq!(office.knows(name, source).await, known, "{name} from {source}");
    }
    let second = Duration::from_secs(1);
    office.wait(FAMILIAR_FOR.saturating_sub(second));
    office.comes_from("tanaka", "192.0.2.2/32").await;
    assert!(office.knows("sato", "192.0.2.1/32").await);
    office.wait(second);
    assert!(!office.knows("sato", "192.0.2.1/32").await, "too long ago");
    office.store().due(office.now, 10).await.unwrap();
    assert!(!office.knows("sato", "192.0.2.1/32").await);
    assert!(office.knows("tanaka", "192.0.2.2/32").await, "who came again stays");
}

pub(crate) async fn only_so_many_sources_of_a_person_are_kept<B: Bench>() {
    let mut office = Office::<B>::with_desktops(1).await;
    let source = |n: u32| format!("2001:db8:0:{n:x}::/64");
    for n in 0..=FAMILIAR_MAX {
        office.comes_from("sato", &source(n)).await;
        office.wait(Duration::from_secs(1));
        // Their desk, which they come back to.
        office.comes_from("sato", "192.0.2.1/32").await;
        office.wait(Duration::from_secs(1));
    }
    assert!(office.knows("sato", "192.0.2.1/32").await);
    let mut known = 0;
    for n in 0..=FAMILIAR_MAX {
        known += u32::from(office.knows("sato", &source(n)).await);
    }
    assert_eq!(known, FAMILIAR_MAX - 1, "with the desk as many as there may be");
    assert!(!office.knows("sato", &source(0)).await, "the oldest went");
}
