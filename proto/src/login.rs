//! The login conversation, ALPN `tegata-login/1`, on one stream that the agent
//! opens.
//!
//! ```text
//! agent: hello, password, (choose)
//! broker: welcome, (queued …), pools, (queued …), (progress …), ticket | error
//! ```

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::encoding::{Bytes, Secret, Sha256};
use crate::id::{GatewayId, PoolName, RealmName, SeatName};
use crate::key::PublicKey;
use crate::policy::{Policy, Protocol, Security, SignOn};
use crate::proof::Proof;

/// Longest name that a person may type, in bytes.
pub const LOGIN_NAME_MAX: usize = 256;

/// Longest password, in bytes.
pub const PASSWORD_MAX: usize = 1024;

/// Names one login in log and audit; used in no proof.
pub type Transaction = Bytes<16>;

/// What an agent says during a login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AgentMessage {
    /// The first frame.
    Hello(Hello),
    /// The only frame with a secret; one a connection.
    Password(Password),
    /// Which of several pools.
    Choose {
        /// One of the names that `pools` offered.
        pool: PoolName,
    },
    /// A type of a newer peer; answered by `error unsupported`. Never sent.
    #[serde(other, skip_serializing)]
    Unsupported,
}

/// Who asks, and with which key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the conversation.
    pub v: u16,
    /// Version of the agent, as in its package.
    pub agent_version: String,
    /// Language of the person, as BCP 47, as in `ja`.
    pub locale: String,
    /// The device's own name for itself, unproven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// The key of this run.
    pub key: PublicKey,
    /// Signature of purpose `Login` with link number 0.
    pub proof: Proof,
}

/// Name and password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Password {
    /// The transaction that `welcome` named.
    pub txn: Transaction,
    /// Needed where the broker serves several realms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub realm: Option<RealmName>,
    /// The name as typed.
    pub name: String,
    /// The password as typed.
    pub password: Secret,
}

/// What a broker says during a login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BrokerMessage {
    /// The answer to `hello`.
    Welcome(Welcome),
    /// The login waits for the directory or for a desktop.
    Queued {
        /// Place in the queue; the next to be served has 1.
        place: u32,
        /// How long the wait is expected to be, in milliseconds.
        expected_ms: u64,
    },
    /// The person is known; these pools are open to them.
    Pools {
        /// The person's name for showing.
        display_name: String,
        /// In the order of the broker; never empty.
        pools: Vec<PoolOffer>,
    },
    /// A step on the way to the desktop.
    Progress {
        /// Which step.
        phase: Phase,
        /// How long the step is expected to take, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expected_ms: Option<u64>,
    },
    /// The end of a good login.
    Ticket(Box<TicketAnswer>),
    /// The end of a bad one.
    Error(Failure),
    /// A type of a newer peer. Never sent.
    #[serde(other, skip_serializing)]
    Unsupported,
}

/// What the broker offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Version of the conversation.
    pub v: u16,
    /// Names this login.
    pub txn: Transaction,
    /// The broker's clock, in milliseconds of Unix time.
    pub server_time_ms: u64,
    /// Realms that a person may be of; never empty.
    pub realms: Vec<RealmName>,
    /// Ways to authenticate.
    pub methods: Vec<Method>,
    /// The oldest agent that the broker accepts.
    pub minimum_agent: String,
}

/// A way to authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Name and password.
    Password,
    /// A way of a newer broker. Never sent.
    #[serde(other, skip_serializing)]
    Unknown,
}

/// A pool that a person may choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolOffer {
    /// Its name.
    pub name: PoolName,
    /// Its name for showing.
    pub label: String,
    /// How it stands now.
    pub state: OfferState,
}

/// How a pool stands for the person who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OfferState {
    /// A desktop is free, or can be made ready.
    Ready,
    /// The person holds a desktop there.
    Yours,
    /// Every desktop is taken.
    Full,
}

/// A step between a good password and a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The desktop is being started.
    Starting,
    /// The desktop is the person's.
    Assigned,
    /// A step of a newer broker. Never sent.
    #[serde(other, skip_serializing)]
    Unknown,
}

/// Everything needed to reach the desktop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketAnswer {
    /// The ticket, compact JWT.
    pub ticket: Secret,
    /// The resume grant, compact JWT; opens nothing until the ticket is redeemed.
    pub grant: Secret,
    /// Where to take the ticket, best first; never empty.
    pub gateways: Vec<Gateway>,
    /// What waits there.
    pub desktop: Desktop,
    /// What the pool allows.
    pub policy: Policy,
    /// Where the desktop's password comes from.
    pub sign_on: SignOn,
}

/// A gateway that takes the ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// Its name, as in its certificate.
    pub id: GatewayId,
    /// Where it listens, best first; never empty.
    pub addresses: Vec<SocketAddr>,
    /// SHA-256 of its certificate's `SubjectPublicKeyInfo`.
    pub spki_sha256: Sha256,
}

/// The desktop, as far as the agent needs to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desktop {
    /// Its seat's name, for showing.
    pub name: SeatName,
    /// What it speaks.
    pub protocol: Protocol,
    /// How an RDP connection is secured; absent where the protocol is not RDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security: Option<Security>,
    /// SHA-256 of the certificate it must show, over its DER; absent where the
    /// protocol is not RDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_sha256: Option<Sha256>,
    /// The account to log on with, from the directory; never what was typed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_hint: Option<String>,
}

/// Why a conversation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The reason.
    pub code: Code,
    /// When to try again, in milliseconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self { code, retry_after_ms: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;

    fn hello() -> AgentMessage {
        AgentMessage::Hello(Hello {
            v: 1,
            agent_version: "0.1.0".into(),
            locale: "ja".into(),
            device_id: None,
            key: PublicKey::new([1; 32]),
            proof: Bytes([2; 64]),
        })
    }

    #[test]
    fn a_message_is_read_back_as_written() {
        let bytes = frame::write(&hello(), frame::LIMIT_BEFORE).expect("a short message");
        let body = &bytes[frame::HEADER_LEN..];
        assert_eq!(frame::read::<AgentMessage>(body).expect("its own text"), hello());
        assert!(body.starts_with(br#"{"type":"hello","v":1,"agent_version":"0.1.0""#));
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_types_told_apart() {
        let more = br#"{"type":"choose","pool":"keiri","colour":{"deep":[1]}}"#;
        let choose = AgentMessage::Choose { pool: PoolName::new("keiri").expect("a name") };
        assert_eq!(frame::read::<AgentMessage>(more).expect("a known type"), choose);
        let newer = br#"{"type":"passkey","assertion":"x"}"#;
        let read = frame::read::<AgentMessage>(newer).expect("any type");
        assert_eq!(read, AgentMessage::Unsupported);
        assert!(frame::read::<AgentMessage>(br#"{"pool":"keiri"}"#).is_err(), "no type");
        assert!(frame::read::<AgentMessage>(br#"{"type":"choose"}"#).is_err(), "no pool");
        let twice = br#"{"type":"choose","pool":"keiri","pool":"soumu"}"#;
        assert!(frame::read::<AgentMessage>(twice).is_err(), "two pools");
    }

    #[test]
    fn a_password_does_not_show_itself() {
        let message = AgentMessage::Password(Password {
            txn: Bytes([0; 16]),
            realm: None,
            name: "sato".into(),
            password: Secret::new("hunter2"),
        });
        assert!(!format!("{message:?}").contains("hunter2"));
    }
}
