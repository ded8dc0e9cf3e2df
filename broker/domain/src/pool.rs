//! What an administrator decides about a pool.
//!
//! [`Pool`] is checked as a whole: a pool that exists can be run. Durations are
//! whole milliseconds in JSON, so that the API and the store write one form. What
//! holds in one kind of network is [`terms`].

pub mod terms;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tegata_proto::encoding::Sha256;
use tegata_proto::id::{GatewayGroup, NAME_MAX, PoolName, SeatName, UserId};
use tegata_proto::policy::{Policy, Protocol, Security, SignOn};

use crate::entitlement::Entitlement;
use crate::group::GroupName;
use crate::pool::terms::{ByClass, Limits, Takeover};

/// Most desktops that one pool may list.
pub const DESKTOPS_MAX: usize = 100_000;

/// Most entitlements of one pool.
pub const ENTITLEMENTS_MAX: usize = 256;

/// Most people who may wait for a pool.
pub const QUEUE_MAX: u32 = 10_000;

/// Longest `queue_wait`.
pub const QUEUE_WAIT_MAX: Duration = Duration::from_mins(10);

/// Longest `hold`.
pub const HOLD_MAX: Duration = Duration::from_hours(1);

/// Longest `grace`.
pub const GRACE_MAX: Duration = Duration::from_hours(168);

/// Longest label, in bytes.
pub const LABEL_MAX: usize = 128;

/// Interchangeable desktops under one policy.
///
/// INVARIANT: `check` found no fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawPool", into = "RawPool")]
pub struct Pool(RawPool);

/// A pool as it is written, by people and in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPool {
    /// Its name.
    pub name: PoolName,
    /// Its name for showing.
    pub label: String,
    /// Whether desktops are shared over time.
    pub kind: Kind,
    /// When a used desktop may go to somebody else.
    pub reuse: Reuse,
    /// What its desktops speak.
    pub protocol: Protocol,
    /// How RDP is secured; required for `rdp`, absent for `tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security: Option<Security>,
    /// Where the desktop's password comes from; `prompt` for `tcp`.
    #[serde(default = "prompt")]
    pub sign_on: SignOn,
    /// What the thin client may do.
    #[serde(default)]
    pub policy: Policy,
    /// How long a session may be, and how long nobody may touch its thin client.
    #[serde(default)]
    pub limits: Limits,
    /// What holds otherwise in networks of one class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_class: Vec<ByClass>,
    /// Whether a second device of the same person takes the desktop over.
    #[serde(default)]
    pub takeover: Takeover,
    /// Who may use it.
    pub entitlements: Vec<Entitlement>,
    /// The gateways that may serve it.
    #[serde(default = "default_group")]
    pub gateways: GatewayGroup,
    /// How long a gateway keeps a session's desktop connection without a link; at
    /// most `grace_ms`.
    #[serde(default = "default_hold")]
    pub hold_ms: u64,
    /// How long a session without a link keeps its desktop.
    #[serde(default = "default_grace")]
    pub grace_ms: u64,
    /// How long a person may wait for a desktop of a full pool.
    #[serde(default = "default_queue_wait")]
    pub queue_wait_ms: u64,
    /// How many people may wait at once.
    #[serde(default = "default_queue_limit")]
    pub queue_limit: u32,
    /// The machines of provider `fixed`.
    pub desktops: Vec<FixedDesktop>,
}

/// Whether a pool's desktops are shared over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Whoever comes gets one that is free.
    Floating,
    /// The first who gets it keeps it.
    Dedicated,
}

/// When a used desktop may go to somebody else (invariant I3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reuse {
    /// Not before an administrator says so.
    Never,
    /// Once its operating system was seen to have nobody logged on.
    AfterLogoff,
}

/// One machine of provider `fixed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedDesktop {
    /// The seat's name.
    pub name: SeatName,
    /// Where it listens.
    pub address: SocketAddr,
    /// SHA-256 of its certificate, where the administrator knows it; otherwise
    /// it is learnt once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_sha256: Option<Sha256>,
    /// The person it belongs to from the start; dedicated pools only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<UserId>,
}

/// One reason why a pool cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct Fault {
    /// Path of the key, as in `desktops[3].owner`.
    pub key: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// All reasons why a pool cannot be; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Faults(pub Vec<Fault>);

impl Pool {
    /// Returns the pool as it is written.
    pub fn raw(&self) -> &RawPool {
        &self.0
    }

    /// Returns the pool's name.
    pub fn name(&self) -> &PoolName {
        &self.0.name
    }

    /// Returns how long a gateway keeps a session's desktop connection.
    pub fn hold(&self) -> Duration {
        Duration::from_millis(self.0.hold_ms)
    }

    /// Returns how long a session without a link keeps its desktop.
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.0.grace_ms)
    }

    /// Returns how long a person may wait for a desktop.
    pub fn queue_wait(&self) -> Duration {
        Duration::from_millis(self.0.queue_wait_ms)
    }

    /// Returns the rules for its desktops.
    pub fn rules(&self) -> Rules {
        Rules { kind: self.0.kind, reuse: self.0.reuse, grace: self.grace() }
    }

    /// Tells whether a person with these groups may use it.
    pub fn entitles(&self, user: &UserId, groups: &BTreeSet<GroupName>) -> bool {
        self.0.entitlements.iter().any(|right| right.covers(user, groups))
    }
}

/// The part of a pool that the state machines need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Whether desktops are shared over time.
    pub kind: Kind,
    /// When a used desktop may go to somebody else.
    pub reuse: Reuse,
    /// How long a session without a link keeps its desktop.
    pub grace: Duration,
}

impl TryFrom<RawPool> for Pool {
    type Error = Faults;

    fn try_from(raw: RawPool) -> Result<Self, Faults> {
        let faults = check(&raw);
        if faults.is_empty() { Ok(Self(raw)) } else { Err(Faults(faults)) }
    }
}

impl From<Pool> for RawPool {
    fn from(pool: Pool) -> Self {
        pool.0
    }
}

fn check(raw: &RawPool) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |key: &str, problem| faults.push(Fault { key: key.to_owned(), problem });

    if raw.label.is_empty() || raw.label.len() > LABEL_MAX || raw.label.contains(char::is_control) {
        fault("label", "must have 1 to 128 bytes and no control characters");
    }
    match (raw.protocol, raw.security) {
        (Protocol::Rdp, None) => fault("security", "is required for rdp"),
        (Protocol::Tcp, Some(_)) => fault("security", "has no meaning for tcp"),
        (Protocol::Rdp, Some(_)) | (Protocol::Tcp, None) => {}
    }
    if raw.protocol == Protocol::Tcp && raw.sign_on != SignOn::Prompt {
        fault("sign_on", "must be prompt for tcp");
    }
    terms::check(raw, &mut fault);
    if raw.entitlements.len() > ENTITLEMENTS_MAX {
        fault("entitlements", "are more than 256");
    }
    if raw.hold_ms > millis(HOLD_MAX) {
        fault("hold_ms", "is longer than an hour");
    } else if raw.hold_ms > raw.grace_ms {
        fault("hold_ms", "is longer than grace_ms");
    }
    if raw.grace_ms > millis(GRACE_MAX) {
        fault("grace_ms", "is longer than seven days");
    }
    if raw.queue_wait_ms > millis(QUEUE_WAIT_MAX) {
        fault("queue_wait_ms", "is longer than ten minutes");
    }
    if raw.queue_limit > QUEUE_MAX {
        fault("queue_limit", "is more than 10,000");
    }
    if raw.desktops.len() > DESKTOPS_MAX {
        fault("desktops", "are more than 100,000");
    }

    let (mut names, mut addresses, mut owners) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (n, desktop) in raw.desktops.iter().enumerate() {
        let mut fault = |key: &str, problem| fault(&format!("desktops[{n}].{key}"), problem);
        if !names.insert(&desktop.name) {
            fault("name", "stands twice in the pool");
        }
        if !addresses.insert(desktop.address) {
            fault("address", "stands twice in the pool");
        }
        if desktop.address.port() == 0 || desktop.address.ip().is_unspecified() {
            fault("address", "names no place to connect to");
        }
        if !is_canonical(desktop.address) {
            fault("address", "is to be written as a gateway dials it: IPv4 as such, no zone");
        }
        if desktop.certificate_sha256.is_some() && raw.protocol == Protocol::Tcp {
            fault("certificate_sha256", "has no meaning for tcp");
        }
        if let Some(owner) = &desktop.owner {
            if raw.kind == Kind::Floating {
                fault("owner", "has no meaning in a floating pool");
            }
            if !owners.insert(owner) {
                fault("owner", "owns two desktops of the pool");
            }
        }
    }
    faults
}

/// Tells whether the address is the only one that leads to its machine's port: two
/// rows must not be one desktop.
fn is_canonical(address: SocketAddr) -> bool {
    match address {
        SocketAddr::V4(_) => true,
        SocketAddr::V6(v6) => {
            let zone_matters = v6.ip().is_unicast_link_local();
            v6.ip().to_ipv4_mapped().is_none() && (v6.scope_id() == 0 || zone_matters)
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn prompt() -> SignOn {
    SignOn::Prompt
}

fn default_group() -> GatewayGroup {
    const { assert!(DEFAULT_GROUP.len() <= NAME_MAX) };
    GatewayGroup::new(DEFAULT_GROUP).expect("the constant is a name")
}

/// The gateway group where none is named.
pub const DEFAULT_GROUP: &str = "default";

fn default_hold() -> u64 {
    180_000
}

fn default_grace() -> u64 {
    8 * 3_600_000
}

fn default_queue_wait() -> u64 {
    60_000
}

fn default_queue_limit() -> u32 {
    100
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> RawPool {
        let desktop = |n: u8| FixedDesktop {
            name: format!("keiri-{n:04}").parse().unwrap(),
            address: format!("192.0.2.{n}:3389").parse().unwrap(),
            certificate_sha256: None,
            owner: None,
        };
        RawPool {
            name: "keiri".parse().unwrap(),
            label: "経理".into(),
            kind: Kind::Floating,
            reuse: Reuse::AfterLogoff,
            protocol: Protocol::Rdp,
            security: Some(Security::Tls),
            sign_on: SignOn::Prompt,
            policy: Policy::default(),
            limits: Limits::default(),
            by_class: vec![],
            takeover: Takeover::Allow,
            entitlements: vec![],
            gateways: default_group(),
            hold_ms: 1,
            grace_ms: 1,
            queue_wait_ms: 1,
            queue_limit: 1,
            desktops: vec![desktop(1), desktop(2)],
        }
    }

    #[test]
    fn a_pool_is_read_back_as_written() {
        let pool = Pool::try_from(raw()).unwrap();
        let text = serde_json::to_string(&pool).unwrap();
        assert_eq!(serde_json::from_str::<Pool>(&text).unwrap(), pool);
    }

    #[test]
    fn all_faults_are_named_at_once() {
        let sato: UserId = "honsho/1".parse().unwrap();
        let mut bad = raw();
        bad.label = "\n".into();
        bad.security = None;
        bad.grace_ms = u64::MAX;
        bad.desktops[1] = bad.desktops[0].clone();
        bad.desktops[1].owner = Some(sato);
        let Faults(faults) = Pool::try_from(bad).unwrap_err();
        let keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
        let wanted = [
            "label",
            "security",
            "grace_ms",
            "desktops[1].name",
            "desktops[1].address",
            "desktops[1].owner",
        ];
        assert_eq!(keys, wanted);
    }

    type Spoil<'a> = &'a dyn Fn(&mut RawPool);

    #[test]
    fn each_fault_is_found_alone() {
        let sato: UserId = "honsho/1".parse().unwrap();
        let faults: [(&str, Spoil<'_>); 17] = [
            ("label", &|pool| pool.label.clear()),
            ("label", &|pool| pool.label = "a".repeat(LABEL_MAX + 1)),
            ("security", &|pool| pool.security = None),
            ("security", &|pool| pool.protocol = Protocol::Tcp),
            ("hold_ms", &|pool| pool.hold_ms = 3_600_001),
            ("hold_ms", &|pool| pool.hold_ms = pool.grace_ms + 1),
            ("grace_ms", &|pool| pool.grace_ms = 7 * 24 * 3_600_000 + 1),
            ("queue_wait_ms", &|pool| pool.queue_wait_ms = 600_001),
            ("queue_limit", &|pool| pool.queue_limit = QUEUE_MAX + 1),
            ("entitlements", &|pool| {
                pool.entitlements = vec![Entitlement::User(sato.clone()); ENTITLEMENTS_MAX + 1];
            }),
            ("desktops[1].name", &|pool| pool.desktops[1].name = pool.desktops[0].name.clone()),
            ("desktops[1].address", &|pool| pool.desktops[1].address = pool.desktops[0].address),
            ("desktops[0].address", &|pool| pool.desktops[0].address.set_port(0)),
            ("desktops[1].address", &|pool| {
                pool.desktops[1].address = "[::ffff:192.0.2.1]:3389".parse().unwrap();
            }),
            ("desktops[1].address", &|pool| {
                pool.desktops[1].address = "[2001:db8::1%2]:3389".parse().unwrap();
            }),
            ("desktops[0].owner", &|pool| pool.desktops[0].owner = Some(sato.clone())),
            ("desktops[1].owner", &|pool| {
                pool.kind = Kind::Dedicated;
                pool.desktops.iter_mut().for_each(|desktop| desktop.owner = Some(sato.clone()));
            }),
        ];
        for (key, spoil) in faults {
            let mut bad = raw();
            spoil(&mut bad);
            let Faults(found) = Pool::try_from(bad).unwrap_err();
            let keys: Vec<_> = found.iter().map(|fault| fault.key.as_str()).collect();
            assert_eq!(keys, [key]);
        }
    }
}
