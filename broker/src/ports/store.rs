//! Where everything that has to survive is kept.
//!
//! Each method is one transaction: it loads what the decision needs, lets
//! `tegata-domain` decide, writes the new state and exactly one audit record for
//! each change, and commits durably before it returns. What is left to do
//! outside comes back as [`Followup`]s; a broker that dies before doing them
//! finds them again through [`Store::due`].
//!
//! An implementation arbitrates by constraints, not by care: one holder a
//! desktop, one desktop a user and pool, one session that is carried a desktop,
//! one row a `jti`, an epoch that never falls.
//!
//! A caller that stops waiting takes nothing back: its call happened wholly or
//! not at all. The contract suite says the rest; [`action`] names what is audited.

pub mod action;
#[cfg(test)]
pub(crate) mod contract;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tegata_domain::desktop::{self, Observation, Probe};
use tegata_domain::pool::Pool;
use tegata_domain::session;
pub use tegata_domain::throttle::FAMILIAR_FOR;
use tegata_domain::time::Timestamp;
use tegata_proto::claims::Claims;
use tegata_proto::code::Code;
use tegata_proto::encoding::Sha256;
use tegata_proto::id::{
    DesktopId, Epoch, GatewayGroup, GatewayId, Incarnation, LinkNumber, PoolName, SeatName,
    SessionId, UserId,
};
use tegata_proto::key::Thumbprint;
use tegata_proto::policy::{Policy, Protocol, Security};
use uuid::Uuid;

use crate::ports::clock::Jump;
use crate::ports::signer::TokenKind;

/// Time between two probes of a desktop that could become ready.
pub const PROBE_SOON: Duration = Duration::from_secs(5);

/// Time between two probes of a desktop that is ready or withdrawn.
pub const PROBE_LATER: Duration = Duration::from_secs(30);

/// Time between two probes of a desktop that somebody holds: whatever they see, it stays
/// theirs, and once it is free it is looked at anew.
pub const PROBE_HELD: Duration = Duration::from_mins(5);

/// Where people have come from before.
#[async_trait]
pub trait Familiarity: Send + Sync + 'static {
    /// Tells whether the person has got a desktop from this source within the
    /// last [`FAMILIAR_FOR`], as far as is known: of each person the last
    /// [`FAMILIAR_MAX`] sources are kept.
    async fn is_familiar(
        &self,
        user: &UserId,
        source: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError>;
}

/// The broker's memory.
#[async_trait]
pub trait Store: Familiarity {
    /// Creates a pool or changes it to what is given: desktops that are no longer
    /// listed are withdrawn, new ones are added, known ones keep their state.
    /// One that gets another address, or an owner while it is free, is a new one.
    /// A pin that differs from the known one is an acceptance and needs a reason.
    async fn put_pool(&self, put: PutPool) -> Result<PoolChange, PutPoolError>;

    /// Lists every pool, by name, without its desktops: they may be many, and
    /// [`Store::desktops`] lists them.
    async fn pools(&self) -> Result<Vec<Pool>, StoreError>;

    /// Lists a pool's desktops after the given seat name, by name, at most `limit`.
    async fn desktops(
        &self,
        pool: &PoolName,
        after: Option<&SeatName>,
        limit: u32,
    ) -> Result<Vec<DesktopRecord>, StoreError>;

    /// Lists sessions that are not over, youngest first, before the given one.
    async fn sessions(
        &self,
        before: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<SessionRecord>, StoreError>;

    /// Returns one session, over or not.
    async fn session(&self, sid: SessionId) -> Result<Option<SessionRecord>, StoreError>;

    /// Tells how each pool stands for a person: whether they hold a desktop in it,
    /// and whether one is ready.
    async fn standing(
        &self,
        user: &UserId,
        pools: &[PoolName],
    ) -> Result<BTreeMap<PoolName, PoolStanding>, StoreError>;

    /// Gives a person a desktop of a pool, their own if they hold one, and makes a
    /// session in state `Requested` for it. Also remembers the person, and the
    /// source they came from.
    async fn assign(&self, assign: Assign) -> Result<Assigned, AssignError>;

    /// Uses a ticket up (invariants I4 and I5) and moves its session to `Starting`;
    /// other sessions of the same assignment end as taken over. Or opens a further
    /// link of a session by its grant, and moves it to `Returning`; a grant is not
    /// used up, and takes nothing over.
    ///
    /// The same redeem repeated (same ticket or session, boot, exporter hash and
    /// link) gets the first answer again. A refusal changes nothing and leaves no
    /// audit record: whoever asks writes it down, or counts it.
    async fn redeem(&self, redeem: Redeem) -> Result<Redeemed, RedeemError>;

    /// Decides anew for a link that is found to come from another network, and writes
    /// that down. Told again, it answers again and writes nothing.
    async fn moved(&self, moved: Moved) -> Result<Place, MovedError>;

    /// Applies one event to a session, and what follows from it to its desktop;
    /// opens or closes the link's interval where the event says so.
    async fn session_event(&self, event: SessionEvent) -> Result<Vec<Followup>, EventError>;

    /// Applies what a probe found to a desktop; nothing, where it only took a
    /// connection or could not be looked at. Either way it was probed at `now`. One that
    /// is gone is ignored.
    async fn probed(
        &self,
        desktop: DesktopId,
        found: Option<Probe>,
        now: Timestamp,
    ) -> Result<Vec<Followup>, StoreError>;

    /// Applies who was seen logged on at a desktop: a detached session whose
    /// person is not among them is to end as logged off, and a desktop that is being
    /// recycled becomes free. An answer to a question from before the link was
    /// lost changes nothing.
    async fn observed(
        &self,
        desktop: DesktopId,
        observation: Observation,
        now: Timestamp,
    ) -> Result<Vec<Followup>, StoreError>;

    /// Settles everything whose deadline has passed, forgets sources from which
    /// nobody has come for [`FAMILIAR_FOR`], and lists what has to be done
    /// again: sessions that are `Ending`, desktops that are `Recycling`. At most
    /// `limit` of each; who is left out comes in a later pass.
    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<Followup>, StoreError>;

    /// Allows for a clock that was set, and shows `now`. Where it has jumped ahead nobody has
    /// had that time: what was not due yet is put off. Limits and the age of a password count
    /// without a jump either way. Nothing is due later than it could be set now, as nobody
    /// without a link is waited for longer than their pool's grace.
    async fn clock_jumped(&self, jump: Jump, now: Timestamp) -> Result<(), StoreError>;

    /// Lists sessions without a link, with the desktops that may know more, after
    /// the given session, by id, at most `limit`.
    async fn detached(
        &self,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<(SessionId, OccupancyTarget)>, StoreError>;

    /// Tells whether a log-off is still due: the desktop is being recycled, by the
    /// same account, at the same epoch and since the same moment as when it was
    /// decided. False once its holder has come back.
    async fn is_log_off_due(&self, log_off: &LogOff) -> Result<bool, StoreError>;

    /// Lists the desktops that are due for a probe, those never probed first, then
    /// by age: after [`PROBE_SOON`] where one is not ready and could become so,
    /// after [`PROBE_HELD`] where somebody holds it, after [`PROBE_LATER`] otherwise; not
    /// those that are quarantined as used, which no probe brings back. One that nobody holds
    /// is due, too, where it was probed later than now, by a clock that has been set back
    /// since. At most `limit`.
    async fn to_probe(&self, now: Timestamp, limit: u32) -> Result<Vec<ProbeTarget>, StoreError>;

    /// Takes over from an earlier process: sessions that a gateway with another
    /// boot id carried lose their links, and are `Detached` from now on, or over
    /// where they were `Ending`. Returns how many.
    async fn recover(&self, boot: Uuid, now: Timestamp) -> Result<u32, StoreError>;

    /// Writes audit records that belong to no other change, as for a refusal.
    async fn audit(&self, records: Vec<AuditRecord>) -> Result<(), StoreError>;

    /// Lists audit records after a sequence number, oldest first.
    async fn audit_after(
        &self,
        seq: i64,
        limit: u32,
    ) -> Result<Vec<(i64, AuditRecord)>, StoreError>;

    /// Counts desktops by pool and state, and live sessions by class and state.
    async fn census(&self) -> Result<Census, StoreError>;

    /// Answers if a durable write would succeed now.
    async fn probe(&self) -> Result<(), StoreError>;
}

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot serve now: full, locked, unreachable. Nothing was changed, or
    /// it is not known whether it was; reading tells.
    #[error("the store cannot serve")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What it holds is not as it should be: a row that cannot be read, or a
    /// constraint that forbids what was decided. Nothing was changed.
    #[error("the store has a {what} that is not as it should be")]
    Corrupt {
        /// Which kind of row or rule.
        what: &'static str,
    },
}

/// Most sessions in state `Requested` that a person may have in one pool; one
/// more login ends the oldest as never attached.
pub const REQUESTED_MAX: u32 = 8;

/// Most sources that are kept of one person; the one they used longest ago goes.
pub const FAMILIAR_MAX: u32 = 16;

/// Who does something, for the audit record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// A staff member, by logging in or working.
    User(UserId),
    /// An administrator, by the name of the API key.
    ApiKey(String),
    /// The broker itself.
    Broker,
}

/// A wish to create or change a pool.
#[derive(Debug, Clone)]
pub struct PutPool {
    /// The pool as it shall be.
    pub pool: Pool,
    /// Who wishes.
    pub actor: Actor,
    /// Why; needed where a changed pin is accepted.
    pub reason: Option<String>,
    /// If the pool exists already, it is left as it is (bootstrap).
    pub only_if_absent: bool,
    /// The present.
    pub now: Timestamp,
}

/// What became of a [`PutPool`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolChange {
    /// It is new.
    Created,
    /// It was changed.
    Updated,
    /// It was as wished already, or existed and `only_if_absent` was set.
    Unchanged,
}

/// Why a pool was not changed.
#[derive(Debug, thiserror::Error)]
pub enum PutPoolError {
    /// A pin would change without a reason.
    #[error("the certificate of {0} changes, and no reason is given")]
    ReasonMissing(SeatName),
    /// The desktop is held, so neither its address nor its owner can change; or
    /// what is listed for it is that of another one that is held.
    #[error("{0} is in use")]
    InUse(SeatName),
    /// Another pool has a desktop of this name, or at the address given for it.
    #[error("{0} belongs to another pool")]
    Elsewhere(SeatName),
    /// Protocol and kind of a pool with desktops cannot change.
    #[error("the {0} of a pool cannot be changed")]
    Fixed(&'static str),
    /// The store could not serve.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A desktop, as an administrator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesktopRecord {
    /// Its id.
    pub id: DesktopId,
    /// Its pool.
    pub pool: PoolName,
    /// Its seat.
    pub name: SeatName,
    /// Where it listens.
    pub address: SocketAddr,
    /// What the decisions know of it.
    pub desktop: desktop::Desktop,
    /// When it was probed last.
    pub probed_at: Option<Timestamp>,
}

/// A session, as an administrator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its id.
    pub sid: SessionId,
    /// Whose it is.
    pub user: UserId,
    /// Their name for showing.
    pub display_name: String,
    /// The pool it is in.
    pub pool: PoolName,
    /// The desktop.
    pub desktop: DesktopId,
    /// The desktop's seat.
    pub desktop_name: SeatName,
    /// Where it stands.
    pub state: session::State,
    /// When it was requested.
    pub created_at: Timestamp,
    /// When it ends at the latest, where its pool limits that.
    pub ends_at: Option<Timestamp>,
    /// The network class of its last link, or of its login before the first.
    pub class: String,
    /// The epoch of its assignment.
    pub epoch: Epoch,
    /// The number of its last link, or 0.
    pub link: LinkNumber,
    /// The gateway of its last link.
    pub gateway: Option<GatewayId>,
    /// The thumbprint of the key that its last link was proven with.
    pub key: Option<Thumbprint>,
}

/// How a pool stands for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStanding {
    /// Whether they hold a desktop in it.
    pub held: bool,
    /// Whether one is ready for anybody.
    pub ready: bool,
}

/// A wish for a desktop, made after a good login.
#[derive(Debug, Clone)]
pub struct Assign {
    /// The session to be.
    pub sid: SessionId,
    /// The person.
    pub user: UserId,
    /// Their name for showing.
    pub display_name: String,
    /// Their account on the desktop, where the directory has one.
    pub account: Option<String>,
    /// Their unit, for the telework report.
    pub unit: Option<String>,
    /// The pool.
    pub pool: PoolName,
    /// Where the login came from.
    pub class: String,
    /// The address or network it came from, as the login counts them.
    pub source: String,
    /// The device's own name for itself.
    pub device: Option<String>,
    /// The login, as log and audit name it.
    pub txn: String,
    /// When the person's password was checked.
    pub password_at: Timestamp,
    /// The present.
    pub now: Timestamp,
}

/// A desktop that is the person's now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// Its id.
    pub desktop: DesktopId,
    /// Its seat.
    pub name: SeatName,
    /// The fence for the ticket.
    pub epoch: Epoch,
    /// The certificate it must show, where its protocol has one.
    pub pin: Option<Sha256>,
    /// Whether it was theirs already.
    pub returning: bool,
}

/// Why a person got no desktop.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    /// None is free. One may become so.
    #[error("no desktop of the pool is free")]
    Exhausted,
    /// The pool does not exist any more.
    #[error("there is no such pool")]
    NoSuchPool,
    /// Their own desktop has not shown its certificate yet.
    #[error("{0} has not answered yet")]
    NotProbed(SeatName),
    /// They work on it on another device, and the pool lets nobody take it over.
    #[error("{0} is in use on another device")]
    InUse(SeatName),
    /// The store could not serve.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A ticket or grant at a gateway, after its signature and its proof were checked.
#[derive(Debug, Clone)]
pub struct Redeem {
    /// Which of the two it is.
    pub kind: TokenKind,
    /// What it says.
    pub claims: Claims,
    /// The connection to the desktop that the gateway has kept and would go on
    /// with; grants only.
    pub resume: Option<Incarnation>,
    /// The number of the link.
    pub link: LinkNumber,
    /// SHA-256 of the link's TLS exporter.
    pub exporter: Sha256,
    /// Where the link is.
    pub gateway: GatewayId,
    /// Which start of that gateway.
    pub boot: Uuid,
    /// Where the link comes from, as the gateway saw it.
    pub class: String,
    /// The present.
    pub now: Timestamp,
}

/// What a gateway needs to carry the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redeemed {
    /// The session.
    pub sid: SessionId,
    /// The desktop's fence.
    pub epoch: Epoch,
    /// Where to connect.
    pub target: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
    /// What the pool allows from there.
    pub policy: Policy,
    /// How long nobody may touch the thin client there.
    pub idle: Option<Duration>,
    /// When the session ends at the latest.
    pub ends_at: Option<Timestamp>,
    /// The gateways that may serve it now.
    pub gateways: GatewayGroup,
    /// The number of this connection to the desktop.
    pub incarnation: Incarnation,
    /// How long the gateway keeps the desktop's connection without a link.
    pub hold: Duration,
    /// How long the session keeps its desktop without a link.
    pub grace: Duration,
    /// What else has to be done, as closing the links of sessions taken over.
    pub followups: Vec<Followup>,
}

/// Why a ticket or grant opened nothing.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// It is no good; the agent is told this.
    #[error("the ticket or grant is refused: {0}")]
    Refused(Code),
    /// The store could not serve; the ticket or grant is as good as before.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A link that is found to come from another network than before.
#[derive(Debug, Clone)]
pub struct Moved {
    /// The session.
    pub sid: SessionId,
    /// The epoch of its assignment.
    pub epoch: Epoch,
    /// The link.
    pub link: LinkNumber,
    /// The class of the network that it comes from now.
    pub class: String,
    /// The present.
    pub now: Timestamp,
}

/// What holds for a link where it comes from now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Whether the session may go on from there; if not, what the agent is told.
    pub verdict: Result<(), Code>,
    /// What the pool allows there.
    pub policy: Policy,
    /// How long nobody may touch the thin client there.
    pub idle: Option<Duration>,
    /// When the session ends at the latest.
    pub ends_at: Option<Timestamp>,
}

/// Why nothing was decided for a link.
#[derive(Debug, thiserror::Error)]
pub enum MovedError {
    /// It is not the link that carries the session.
    #[error("the link does not carry the session")]
    NotCarried,
    /// The store could not serve.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Something that happened to a session.
#[derive(Debug, Clone)]
pub struct SessionEvent {
    /// The session.
    pub sid: SessionId,
    /// What happened.
    pub event: session::Event,
    /// The link it happened to, where it is a link's event. An event of a link
    /// that is not the session's last one is recorded and changes nothing else.
    pub link: Option<LinkNumber>,
    /// What the link carried, where it is over.
    pub carried: Option<Carried>,
    /// Who did it.
    pub actor: Actor,
    /// The present.
    pub now: Timestamp,
}

/// What a link carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// Bytes from the thin client to the desktop.
    pub up: u64,
    /// Bytes from the desktop to the thin client.
    pub down: u64,
    /// When the last byte passed.
    pub last_byte_at: Timestamp,
    /// Minutes in which the person touched the thin client, where it told of that.
    pub input_minutes: Option<u32>,
}

/// Why an event was not applied.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// There is no such session.
    #[error("there is no session {0}")]
    NoSuchSession(SessionId),
    /// It does not fit the session's state.
    #[error(transparent)]
    Refused(#[from] session::Refused),
    /// The store could not serve.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What has to be done outside after a commit. Doing it twice is harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followup {
    /// The gateway closes every link of the session, tells the agent why, lets go
    /// of what it keeps for the next one, and confirms with
    /// [`session::Event::Closed`] of this link.
    CloseLinks {
        /// The session.
        sid: SessionId,
        /// Its last link so far. One that is let in later is fenced from the
        /// confirmation by its number.
        link: LinkNumber,
        /// What the agent is told.
        code: Code,
    },
    /// The desktop is asked who is logged on, then [`Store::observed`].
    AskOccupancy(OccupancyTarget),
    /// The desktop's holder is logged off there, unless that is due no longer
    /// ([`Store::is_log_off_due`]), then asked as above.
    LogOff(LogOff),
    /// A desktop of the pool became free.
    Freed(PoolName),
}

/// A desktop whose operating system is to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OccupancyTarget {
    /// Its id.
    pub desktop: DesktopId,
    /// Its seat, as the site's script knows it.
    pub name: SeatName,
    /// Where it listens.
    pub address: SocketAddr,
    /// The account of interest.
    pub account: Option<String>,
}

/// A log-off that was decided, and for which recycling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOff {
    /// Where, and whom.
    pub target: OccupancyTarget,
    /// The epoch of the assignment that is over.
    pub epoch: Epoch,
    /// Since when the desktop is being recycled.
    pub since: Timestamp,
}

/// A desktop that is to be probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeTarget {
    /// Its id.
    pub desktop: DesktopId,
    /// Its seat.
    pub name: SeatName,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
    /// How it is secured.
    pub security: Option<Security>,
    /// Whether it is out of use until a full probe says more.
    pub in_doubt: bool,
}

/// One line of who did what. Never holds a password, a key or a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// When.
    pub at: Timestamp,
    /// What, as in `session.ended`.
    pub action: String,
    /// Who.
    pub actor: Actor,
    /// About which session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sid: Option<SessionId>,
    /// About which desktop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desktop: Option<DesktopId>,
    /// What else belongs to it, in names and plain values.
    #[serde(default)]
    pub detail: BTreeMap<String, String>,
}

/// How many there are of what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// Desktops by pool and state, the state as in its JSON.
    pub desktops: BTreeMap<(PoolName, String), u64>,
    /// Sessions that are not over, by network class and state.
    pub sessions: BTreeMap<(String, String), u64>,
}
