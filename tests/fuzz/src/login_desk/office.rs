//! What is behind a login: a directory, a store and a signer that answer as told, and
//! panic where they are asked what they must not be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use prometheus_client::registry::Registry;
use serde_json::json;
use tegata_broker::flows::assignment::Assignments;
use tegata_broker::flows::catalogue::Catalogue;
use tegata_broker::flows::login::{LoginDesk, Version};
use tegata_broker::flows::refusals::Refusals;
use tegata_broker::flows::returns::Returns;
use tegata_broker::flows::revocations::Revocations;
use tegata_broker::flows::sign_in::{SignIn, SourceRules};
use tegata_broker::flows::tokens::Tokens;
use tegata_broker::flows::waiting::WaitingRooms;
use tegata_broker::metrics::Metrics;
use tegata_broker::ports::clock::{Clock, Jump};
use tegata_broker::ports::directory::{
    Directory, DirectoryError, Found, LoginName, NonEmptyPassword, Person, Reason, Verdict,
};
use tegata_broker::ports::signer::{SignError, Signer, TokenKind};
use tegata_broker::ports::store::{
    Assign, AssignError, Assigned, AuditRecord, Census, DesktopRecord, EventError, Familiarity,
    Followup, LogOff, Moved, MovedError, OccupancyTarget, Place, PoolChange, PoolStanding,
    ProbeTarget, PutPool, PutPoolError, Redeem, RedeemError, Redeemed, SessionEvent, SessionRecord,
    Store, StoreError,
};
use tegata_domain::desktop::{Observation, Probe};
use tegata_domain::pool::Pool;
use tegata_domain::time::Timestamp;
use tegata_edge::network::NetworkClasses;
use tegata_proto::claims::Claims;
use tegata_proto::encoding::Secret;
use tegata_proto::frame::{self, Decoder, LIMIT_AFTER};
use tegata_proto::id::{DesktopId, Epoch, PoolName, RealmName, SeatName, SessionId, UserId};
use tegata_proto::login::AgentMessage;
use tokio::time::sleep;
use uuid::Uuid;

use super::super::script::Script;
use super::{TXN, is_proven};

/// Everything that a login asks, and what it has come to.
pub(super) struct Office {
    realm: RealmName,
    answers: Answers,
    revocations: Arc<Revocations>,
    state: Mutex<State>,
}

/// What is answered, and after how many milliseconds.
struct Answers {
    find: (u8, u64),
    verify: (u8, u64),
    standing: (u8, u64),
    assign: (u8, u64),
    signs: bool,
    /// How many pools are there.
    pools: usize,
    /// Whether many sessions return meanwhile.
    rush: bool,
}

#[derive(Default)]
struct State {
    said: Vec<u8>,
    searched: bool,
    tried: bool,
    known: bool,
    revoked: bool,
    assigned: Option<PoolName>,
}

impl Office {
    pub(super) fn of(script: &mut Script<'_>) -> Arc<Self> {
        let mut answer = || {
            let what = script.byte().unwrap_or_default();
            (what % 8, [0, 300, 3_900, 70_000][usize::from(what >> 6)])
        };
        let (find, verify, standing, assign) = (answer(), answer(), answer(), answer());
        let signs = script.pick(&[true, true, false]);
        let (pools, rush) = (script.pick(&[2, 1, 0]), script.pick(&[false, true]));
        let answers = Answers { find, verify, standing, assign, signs, pools, rush };
        Arc::new(Self {
            realm: "honsho".parse().expect("a name"),
            answers,
            revocations: Arc::default(),
            state: Mutex::default(),
        })
    }

    /// Puts a desk before it.
    pub(super) async fn desk(office: &Arc<Self>) -> LoginDesk {
        static METRICS: OnceLock<Metrics> = OnceLock::new();
        let metrics = METRICS.get_or_init(|| Metrics::register(&mut Registry::default()));
        let store: Arc<dyn Store> = Arc::<Self>::clone(office);
        let clock: Arc<dyn Clock> = Arc::<Self>::clone(office);
        let catalogue = Arc::new(Catalogue::new(Arc::clone(&store)));
        catalogue.refresh().await.expect("it is in memory");
        let returns = Returns::new();
        if office.answers.rush {
            (0..100).for_each(|n| returns.returned(SessionId(Uuid::from_u128(n))));
        }
        let directory: Arc<dyn Directory> = Arc::<Self>::clone(office);
        let familiarity: Arc<dyn Familiarity> = Arc::<Self>::clone(office);
        let sign_in =
            SignIn::new(vec![directory], [1, 2], familiarity, Arc::clone(&clock), metrics.clone());
        LoginDesk {
            sign_in: Arc::new(sign_in),
            assignments: Assignments {
                store,
                tokens: Tokens { signer: Arc::<Self>::clone(office), issuer: "tegata".to_owned() },
                rooms: Arc::new(WaitingRooms::new()),
                clock,
                metrics: metrics.clone(),
                gateways: Arc::new(Vec::new),
            },
            catalogue,
            classes: Arc::new(NetworkClasses::new([]).expect("there are none")),
            sources: SourceRules::default(),
            refusals: Arc::new(Refusals::new()),
            revocations: Arc::clone(&office.revocations),
            returns: Arc::new(returns),
            minimum_agent: Version::parse("0.1.0").expect("a version"),
        }
    }

    /// An agent is about to say so much more.
    pub(super) fn says(&self, bytes: &[u8]) {
        self.state().said.extend_from_slice(bytes);
    }

    /// Returns what an agent has said, up to the first that is no message.
    pub(super) fn said(&self) -> Vec<AgentMessage> {
        let (state, mut decoder) = (self.state(), Decoder::new());
        let mut rest = &state.said[..];
        let next =
            || decoder.take(&mut rest, LIMIT_AFTER).ok()?.and_then(|body| frame::read(&body).ok());
        std::iter::from_fn(next).collect()
    }

    /// Everybody's sessions are ended, or somebody else's.
    pub(super) fn revoke(&self, everybody: bool) {
        self.state().revoked |= everybody;
        self.revocations.tell((!everybody).then(|| user("suzuki")));
    }

    /// Tells whether the directory has seen that the password was right.
    pub(super) fn is_known(&self) -> bool {
        self.state().known
    }

    /// Returns which pool a desktop was given of.
    pub(super) fn assigned(&self) -> Option<PoolName> {
        self.state().assigned.clone()
    }

    /// Panics unless the agent has proven its key and then said this of a password.
    fn is_its_turn(&self, right: impl FnOnce(&str, &str) -> bool) {
        let said = self.said();
        let [AgentMessage::Hello(hello), AgentMessage::Password(password), ..] = &said[..] else {
            unreachable!("the directory is asked after {said:?}");
        };
        assert!(is_proven(hello), "nobody has proven to be there");
        assert_eq!(password.txn, TXN, "the password of another login");
        assert!(right(&password.name, password.password.expose()), "another password");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Directory for Office {
    fn realm(&self) -> &RealmName {
        &self.realm
    }

    fn serves_at_once(&self) -> usize {
        1
    }

    async fn find(&self, name: &LoginName) -> Result<Option<Found>, DirectoryError> {
        self.is_its_turn(|said, _| said == name.as_str());
        assert!(!std::mem::replace(&mut self.state().searched, true), "searched twice");
        let (what, after) = self.answers.find;
        sleep(Duration::from_millis(after)).await;
        let realm = self.realm.clone();
        match what {
            1 => Err(DirectoryError::Ambiguous { realm }),
            2 => Err(DirectoryError::Busy { realm }),
            _ if name.as_str() == "nobody" => Ok(None),
            _ => Ok(Some(Found::new(name.as_str().to_owned(), person(name.as_str())))),
        }
    }

    async fn verify(
        &self,
        found: &Found,
        password: &NonEmptyPassword,
    ) -> Result<Verdict, DirectoryError> {
        self.is_its_turn(|name, said| name == found.locator() && said == password.expose());
        assert!(!std::mem::replace(&mut self.state().tried, true), "a password is tried twice");
        let (what, after) = self.answers.verify;
        sleep(Duration::from_millis(after)).await;
        let realm = self.realm.clone();
        match what {
            1 => Err(DirectoryError::CutOff { realm, source: "gone".into() }),
            2 => Ok(Verdict::Correct(person("suzuki"))),
            _ if password.expose() != "right" => Ok(Verdict::Wrong { reason: Reason::Password }),
            _ => {
                let mut state = self.state();
                // Who was revoked before may come again.
                (state.known, state.revoked) = (true, false);
                Ok(Verdict::Correct(found.claimed().clone()))
            }
        }
    }

    async fn probe(&self) -> Result<(), DirectoryError> {
        Ok(())
    }
}

impl Clock for Office {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000)
    }
}

impl Signer for Office {
    fn sign(&self, _: TokenKind, claims: &Claims) -> Result<Secret, SignError> {
        let state = self.state();
        assert!(state.known && state.assigned.is_some(), "signed for {claims:?} (I7, I11)");
        assert!(!state.revoked, "signed for somebody who was revoked");
        if self.answers.signs { Ok(Secret::new("signed")) } else { Err(SignError("no key".into())) }
    }
}

#[async_trait]
impl Familiarity for Office {
    async fn is_familiar(&self, _: &UserId, _: &str, _: Timestamp) -> Result<bool, StoreError> {
        Ok(false)
    }
}

#[async_trait]
impl Store for Office {
    async fn pools(&self) -> Result<Vec<Pool>, StoreError> {
        static POOLS: OnceLock<[Pool; 2]> = OnceLock::new();
        let pools = POOLS.get_or_init(|| ["keiri", "soumu"].map(pool));
        Ok(pools[..self.answers.pools].to_vec())
    }

    async fn standing(
        &self,
        _: &UserId,
        pools: &[PoolName],
    ) -> Result<BTreeMap<PoolName, PoolStanding>, StoreError> {
        assert!(self.is_known(), "asked for nobody");
        let (what, after) = self.answers.standing;
        sleep(Duration::from_millis(after)).await;
        let standing = PoolStanding { held: what & 1 > 0, ready: what & 2 > 0 };
        match what {
            4 => Err(StoreError::Corrupt { what: "row" }),
            _ => Ok(pools.iter().map(|pool| (pool.clone(), standing)).collect()),
        }
    }

    async fn assign(&self, assign: Assign) -> Result<Assigned, AssignError> {
        let known = self.is_known() && !self.state().revoked;
        assert!(known && self.assigned().is_none(), "a desktop for nobody");
        let (what, after) = self.answers.assign;
        sleep(Duration::from_millis(after)).await;
        let name = SeatName::new("keiri-01").expect("a name");
        match what {
            1 => Err(AssignError::Exhausted),
            2 => Err(AssignError::NoSuchPool),
            3 => Err(AssignError::NotProbed(name)),
            4 => Err(AssignError::InUse(name)),
            5 => Err(StoreError::Corrupt { what: "row" }.into()),
            _ => {
                self.state().assigned = Some(assign.pool);
                let (desktop, epoch) = (DesktopId(Uuid::nil()), Epoch(1));
                Ok(Assigned { desktop, name, epoch, pin: None, returning: false })
            }
        }
    }

    async fn put_pool(&self, _: PutPool) -> Result<PoolChange, PutPoolError> {
        unasked()
    }

    async fn desktops(
        &self,
        _: &PoolName,
        _: Option<&SeatName>,
        _: u32,
    ) -> Result<Vec<DesktopRecord>, StoreError> {
        unasked()
    }

    async fn sessions(
        &self,
        _: Option<SessionId>,
        _: u32,
    ) -> Result<Vec<SessionRecord>, StoreError> {
        unasked()
    }

    async fn session(&self, _: SessionId) -> Result<Option<SessionRecord>, StoreError> {
        unasked()
    }

    async fn redeem(&self, _: Redeem) -> Result<Redeemed, RedeemError> {
        unasked()
    }

    async fn moved(&self, _: Moved) -> Result<Place, MovedError> {
        unasked()
    }

    async fn session_event(&self, _: SessionEvent) -> Result<Vec<Followup>, EventError> {
        unasked()
    }

    async fn probed(
        &self,
        _: DesktopId,
        _: Option<Probe>,
        _: Timestamp,
    ) -> Result<Vec<Followup>, StoreError> {
        unasked()
    }

    async fn observed(
        &self,
        _: DesktopId,
        _: Observation,
        _: Timestamp,
    ) -> Result<Vec<Followup>, StoreError> {
        unasked()
    }

    async fn clock_jumped(&self, _: Jump, _: Timestamp) -> Result<(), StoreError> {
        unasked()
    }

    async fn due(&self, _: Timestamp, _: u32) -> Result<Vec<Followup>, StoreError> {
        unasked()
    }

    async fn detached(
        &self,
        _: Option<SessionId>,
        _: u32,
    ) -> Result<Vec<(SessionId, OccupancyTarget)>, StoreError> {
        unasked()
    }

    async fn is_log_off_due(&self, _: &LogOff) -> Result<bool, StoreError> {
        unasked()
    }

    async fn to_probe(&self, _: Timestamp, _: u32) -> Result<Vec<ProbeTarget>, StoreError> {
        unasked()
    }

    async fn recover(&self, _: Uuid, _: Timestamp) -> Result<u32, StoreError> {
        unasked()
    }

    async fn audit(&self, _: Vec<AuditRecord>) -> Result<(), StoreError> {
        unasked()
    }

    async fn audit_after(&self, _: i64, _: u32) -> Result<Vec<(i64, AuditRecord)>, StoreError> {
        unasked()
    }

    async fn census(&self) -> Result<Census, StoreError> {
        unasked()
    }

    async fn probe(&self) -> Result<(), StoreError> {
        unasked()
    }
}

fn unasked<T>() -> T {
    unreachable!("no login asks this")
}

fn pool(name: &str) -> Pool {
    let entitlements = ["sato", "tanaka"].map(|name| json!({"user": user(name)}));
    let pool = json!({
        "name": name, "label": name, "kind": "floating", "reuse": "after-logoff",
        "protocol": "rdp", "security": "tls", "sign_on": "person",
        "entitlements": entitlements, "desktops": [],
    });
    serde_json::from_value(pool).expect("a pool")
}

fn person(name: &str) -> Person {
    Person {
        user: user(name),
        display_name: name.to_owned(),
        account: None,
        unit: None,
        groups: BTreeSet::new(),
    }
}

fn user(name: &str) -> UserId {
    format!("honsho/{name}").parse().expect("a person")
}
