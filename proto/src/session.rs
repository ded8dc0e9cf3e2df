//! The session conversation, ALPN `tegata-session/1`: control frames on the
//! first stream, and one further stream for each channel.
//!
//! ```text
//! agent:   attach                     …  ack, bye
//! gateway: attached | error           …  ack, notice, grant, policy, end
//! ```
//!
//! A channel's stream is opened by the agent after `attached`; its first frame
//! is an [`Open`], and everything after it is the channel's own bytes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::encoding::Secret;
use crate::id::{GatewayId, Incarnation, LinkNumber, SessionId};
use crate::key::PublicKey;
use crate::login::Failure;
use crate::policy::Policy;
use crate::proof::Proof;

/// A stream of bytes between viewer and desktop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// The desktop's own protocol.
    Rdp,
}

/// How many bytes of each channel arrived and were written onward.
pub type Received = BTreeMap<Channel, u64>;

/// What an agent says on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AgentMessage {
    /// The first frame.
    Attach(Attach),
    /// How many bytes of a channel were written onward to the viewer.
    Ack {
        /// Which channel.
        channel: Channel,
        /// Bytes since the desktop was dialled.
        received: u64,
    },
    /// When the thin client was last touched; only to a gateway that wants to know.
    Input {
        /// For how long nobody has touched it.
        idle_ms: u64,
    },
    /// The agent closes the link, and says why.
    Bye {
        /// `logged_off` or `disconnected`.
        code: Code,
    },
    /// A type of a newer peer; answered by `error unsupported`. Never sent.
    #[serde(other, skip_serializing)]
    Unsupported,
}

/// A wish to carry a session over this connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawAttach", into = "RawAttach")]
pub struct Attach {
    /// Version of the conversation.
    pub v: u16,
    /// The right to do so, written as `ticket` or as `grant`.
    pub right: Right,
    /// The key that the right is bound to.
    pub key: PublicKey,
    /// The number of this link.
    pub link: LinkNumber,
    /// Signature over the right, the link and this very connection.
    pub proof: Proof,
    /// Where the last link stopped, for a session that goes on.
    pub resume: Option<Resume>,
}

/// An [`Attach`] as it is written.
#[derive(Clone, Serialize, Deserialize)]
struct RawAttach {
    v: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ticket: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grant: Option<Secret>,
    key: PublicKey,
    link: LinkNumber,
    proof: Proof,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resume: Option<Resume>,
}

/// Why an `attach` cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an attach has exactly one of ticket and grant")]
struct NotOneRight;

impl TryFrom<RawAttach> for Attach {
    type Error = NotOneRight;

    fn try_from(raw: RawAttach) -> Result<Self, NotOneRight> {
        let right = match (raw.ticket, raw.grant) {
            (Some(ticket), None) => Right::Ticket(ticket),
            (None, Some(grant)) => Right::Grant(grant),
            (Some(_), Some(_)) | (None, None) => return Err(NotOneRight),
        };
        let RawAttach { v, key, link, proof, resume, .. } = raw;
        Ok(Self { v, right, key, link, proof, resume })
    }
}

impl From<Attach> for RawAttach {
    fn from(attach: Attach) -> Self {
        let Attach { v, right, key, link, proof, resume } = attach;
        let (ticket, grant) = match right {
            Right::Ticket(token) => (Some(token), None),
            Right::Grant(token) => (None, Some(token)),
        };
        Self { v, ticket, grant, key, link, proof, resume }
    }
}

/// A signed right to carry a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Right {
    /// Starts the session's first link; once.
    Ticket(Secret),
    /// Comes back to the desktop that is still held.
    Grant(Secret),
}

impl Right {
    /// Returns the compact JWT.
    pub fn token(&self) -> &Secret {
        match self {
            Self::Ticket(token) | Self::Grant(token) => token,
        }
    }
}

/// Where a session's last link stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The desktop's connection that the numbers count on.
    pub incarnation: Incarnation,
    /// What the agent has written onward.
    pub received: Received,
}

/// What a gateway says on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GatewayMessage {
    /// The session is carried.
    Attached(Box<Attached>),
    /// It is not, or no longer.
    Error(Failure),
    /// How many bytes of a channel were written onward to the desktop.
    Ack {
        /// Which channel.
        channel: Channel,
        /// Bytes since the desktop was dialled.
        received: u64,
    },
    /// Something to tell the person.
    Notice {
        /// What; see [`Notice`] for what is known.
        code: String,
        /// What the text needs.
        #[serde(default)]
        args: BTreeMap<String, String>,
    },
    /// A younger resume grant.
    Grant {
        /// Compact JWT.
        grant: Secret,
    },
    /// A policy that holds from now on.
    Policy {
        /// What is allowed.
        policy: Policy,
        /// How often the agent is to tell of the thin client's input.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        input_every_ms: Option<u64>,
    },
    /// The session is over.
    End {
        /// Why.
        cause: Code,
    },
    /// A type of a newer peer. Never sent.
    #[serde(other, skip_serializing)]
    Unsupported,
}

/// Something that the person is told, by a gateway unless it says otherwise here. A code of
/// a newer gateway is shown as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The thin client may do other things from now on, and the desktop is shown anew:
    /// `class` of the network. After an outage the agent tells it, without the class.
    PolicyChanged,
    /// The desktop may not be used from this network: its `class`.
    NotAllowedHere,
    /// The session ends by its pool's limit: `left_s`, in seconds.
    TimeLimitSoon,
    /// The link ends unless somebody touches the thin client: `left_s`, in seconds.
    IdleSoon,
}

impl Notice {
    /// Every notice.
    pub const ALL: &[Self] =
        &[Self::PolicyChanged, Self::NotAllowedHere, Self::TimeLimitSoon, Self::IdleSoon];

    /// Returns the notice as its code is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PolicyChanged => "policy_changed",
            Self::NotAllowedHere => "not_allowed_here",
            Self::TimeLimitSoon => "time_limit_soon",
            Self::IdleSoon => "idle_soon",
        }
    }

    /// Reads a code.
    pub fn of(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|notice| notice.as_str() == code)
    }
}

/// The answer to a good attach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The session.
    pub sid: SessionId,
    /// The link's number, as asked.
    pub link: LinkNumber,
    /// Which of its connections to the desktop the session is on.
    pub incarnation: Incarnation,
    /// What the gateway has written onward.
    pub received: Received,
    /// Whether the viewer goes on or starts.
    pub mode: Mode,
    /// Who answers, and where it can be reached without a balancer.
    pub gateway: GatewaySelf,
    /// How long the gateway carries on without its broker, in seconds.
    pub lease_s: u32,
    /// How long the gateway keeps a session without a link, in seconds.
    pub hold_s: u32,
    /// What the pool allows here and now.
    pub policy: Policy,
    /// How often the agent is to tell of the thin client's input; not at all where a
    /// gateway of before says nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_every_ms: Option<u64>,
    /// A younger resume grant, if the old one is past half its life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Secret>,
}

/// Whether a link begins a viewer's connection or goes on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A new connection to the desktop.
    Fresh,
    /// The same one; bytes go on where they stopped.
    Resumed,
}

/// A gateway, as it names itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewaySelf {
    /// Its name, as in its certificate.
    pub id: GatewayId,
    /// Addresses of its own.
    pub direct_addresses: Vec<SocketAddr>,
}

/// The first frame of a channel's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Which channel the stream carries.
    pub channel: Channel,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::Bytes;
    use crate::frame;

    #[test]
    fn an_attach_has_a_ticket_or_a_grant() {
        let attach = |right| {
            AgentMessage::Attach(Attach {
                v: 1,
                right,
                key: PublicKey::new([1; 32]),
                link: LinkNumber::FIRST,
                proof: Bytes([2; 64]),
                resume: None,
            })
        };
        for (right, name) in [
            (Right::Ticket(Secret::new("a.b.c")), "ticket"),
            (Right::Grant(Secret::new("d.e.f")), "grant"),
        ] {
            let message = attach(right);
            let bytes = frame::write(&message, frame::LIMIT_BEFORE).expect("a short message");
            let body = &bytes[frame::HEADER_LEN..];
            assert_eq!(frame::read::<AgentMessage>(body).expect("its own text"), message);
            let text = String::from_utf8_lossy(body);
            assert!(text.contains(&format!("\"{name}\":")), "{text}");

            let without = text.replace(name, "voucher");
            assert!(frame::read::<AgentMessage>(without.as_bytes()).is_err(), "without");
            let other = if name == "ticket" { "grant" } else { "ticket" };
            let both = format!("{},\"{other}\":\"x\"}}", &text[..text.len() - 1]);
            assert!(frame::read::<AgentMessage>(both.as_bytes()).is_err(), "{both}");
            let empty = r#","resume":{"incarnation":1,"received":{}}}"#;
            let resume = text[..text.len() - 1].to_owned() + empty;
            assert!(frame::read::<AgentMessage>(resume.as_bytes()).is_ok(), "{resume}");
        }
    }

    #[test]
    fn notices_are_distinct_and_read_back() {
        for notice in Notice::ALL {
            assert_eq!(Notice::of(notice.as_str()), Some(*notice));
        }
        assert_eq!(Notice::of("coffee_is_ready"), None);
    }

    #[test]
    fn what_a_gateway_of_before_says_is_understood() {
        let policy = r#"{"type":"policy","policy":{"clipboard":true}}"#;
        let message = frame::read::<GatewayMessage>(policy.as_bytes()).expect("a message");
        let allowed = Policy { clipboard: true, ..Policy::default() };
        assert_eq!(message, GatewayMessage::Policy { policy: allowed, input_every_ms: None });
    }

    #[test]
    fn offsets_are_written_by_channel() {
        let resume = Resume { incarnation: Incarnation(1), received: [(Channel::Rdp, 7)].into() };
        let text = serde_json::to_string(&resume).expect("JSON");
        assert_eq!(text, r#"{"incarnation":1,"received":{"rdp":7}}"#);
    }
}
