//! What a gateway asks its broker, and what it tells it.
//!
//! The broker decides: whether a ticket opens its session, and to which
//! address. The gateway carries bytes and reports how each link ended. In one
//! process the broker implements [`Broker`] itself.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tegata_edge::network::NetworkClass;
use tegata_proto::claims::Claims;
use tegata_proto::code::Code;
use tegata_proto::encoding::Secret;
use tegata_proto::id::{Epoch, GatewayId, Incarnation, LinkNumber, SessionId};
use tegata_proto::key::{PublicKey, Thumbprint};
use tegata_proto::policy::{Policy, Protocol};
use tegata_proto::proof::{EXPORTER_LEN, Proof};
use tegata_proto::session::Right;
use uuid::Uuid;

/// The broker, as a gateway sees it.
///
/// After each [`Redeemed`] the gateway reports [`Broker::attached`] if it reached
/// the desktop, and then exactly one end of that link, [`Broker::unreachable`] or
/// [`Broker::detached`], unless the process ends. Only where the link's handling breaks off
/// [`Broker::broke_off`] comes instead, or after a report that broke off.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Opens a session's link, at most once for a ticket.
    ///
    /// The gateway has verified everything that public keys can show. It has not
    /// judged the token's times, and the broker does not trust it.
    ///
    /// # Errors
    ///
    /// Refuses with the code that the agent is told, or cannot answer now.
    async fn redeem(&self, request: RedeemRequest) -> Result<Redeemed, Refused>;

    /// Decides anew for a link that comes from another network than before.
    ///
    /// # Errors
    ///
    /// Refuses with the code that the agent is told, or cannot answer now.
    async fn moved(&self, report: Moved) -> Result<Place, Refused>;

    /// Signs a younger resume grant for a session that goes on; nothing if it does not,
    /// or cannot be asked about now.
    async fn renew(&self, renewal: Renewal) -> Option<Renewed>;

    /// Learns that the desktop was reached. No byte of the desktop's passes before
    /// this returns, so a broker that dies knows which desktops were used.
    async fn attached(&self, report: Attached);

    /// Learns that the desktop did not answer, so the link never carried a byte.
    async fn unreachable(&self, report: Unreachable);

    /// Learns that a link has ended, after its last byte.
    async fn detached(&self, report: LinkReport);

    /// Learns that the handling of a link broke off, as by a panic. It carries nothing
    /// any more, and nobody is left who could wait for the answer.
    fn broke_off(&self, report: LinkReport);

    /// Learns of an attach that the gateway refused without asking, for the audit
    /// trail. The agent is answered after this returns, so it returns soon.
    async fn refused(&self, report: RefusedAttach);
}

/// A verified wish to carry a session, with everything the broker needs to
/// verify it again.
#[derive(Debug, Clone)]
pub struct RedeemRequest {
    /// The ticket or grant, as sent.
    pub right: Right,
    /// What it says. Its signature is good; its times are not judged.
    pub claims: Claims,
    /// The key that made the proof, and hashes to `cnf.jkt`.
    pub key: PublicKey,
    /// The number of the link.
    pub link: LinkNumber,
    /// The proof, as sent.
    pub proof: Proof,
    /// The exporter of the agent's TLS connection.
    pub exporter: [u8; EXPORTER_LEN],
    /// Who asks.
    pub gateway: GatewayId,
    /// Which run of it asks.
    pub boot: Uuid,
    /// Where the agent is.
    pub remote: SocketAddr,
    /// The class of the agent's network.
    pub class: NetworkClass,
    /// The connection to the desktop that is still here and goes on, for a session
    /// that is resumed; otherwise the desktop is dialled.
    pub resume: Option<Incarnation>,
}

/// A link of the claims' session that may be carried.
#[derive(Debug, Clone)]
pub struct Redeemed {
    /// The epoch of the desktop's assignment.
    pub epoch: Epoch,
    /// The desktop to dial.
    pub target: SocketAddr,
    /// What the desktop speaks.
    pub protocol: Protocol,
    /// What the pool allows here and now.
    pub policy: Policy,
    /// What bounds the link.
    pub limits: Limits,
    /// Which of its connections to the desktop the session is on: the one that is
    /// resumed, or a new one.
    pub incarnation: Incarnation,
    /// How long the gateway carries on without its broker, in seconds.
    pub lease_s: u32,
    /// How long the gateway keeps a session without a link, in seconds.
    pub hold_s: u32,
    /// A younger resume grant for the agent.
    pub grant: Option<Secret>,
    /// When the gateway should ask for the next one.
    pub renew_after: Duration,
}

/// What bounds a link; nothing where none is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// How long nobody may touch the thin client, by its own word.
    pub idle: Option<Duration>,
    /// After which time the session ends.
    pub ends_in: Option<Duration>,
}

/// A link that comes from another network than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The session.
    pub sid: SessionId,
    /// The epoch of its assignment.
    pub epoch: Epoch,
    /// The link.
    pub link: LinkNumber,
    /// Where the agent is now.
    pub remote: SocketAddr,
    /// The class of that network.
    pub class: NetworkClass,
}

/// What holds for a link where it comes from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// What the pool allows there.
    pub policy: Policy,
    /// What bounds the link there.
    pub limits: Limits,
}

/// A wish for a younger resume grant, for an agent whose link is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// The session.
    pub sid: SessionId,
    /// The epoch of its assignment.
    pub epoch: Epoch,
    /// The link that is carried.
    pub link: LinkNumber,
    /// The thumbprint of the key that its proof was made with.
    pub jkt: Thumbprint,
}

/// A younger resume grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// Compact JWT.
    pub grant: Secret,
    /// When to ask for the next one.
    pub renew_after: Duration,
}

/// Why a link may not be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The broker decided; the agent is told this code.
    #[error("the broker refused with {0}")]
    Code(Code),
    /// The broker could not decide now, and nothing was used up.
    #[error("the broker is busy for {retry_after:?}")]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
}

/// An attach that a gateway refused without asking its broker.
#[derive(Debug, Clone)]
pub struct RefusedAttach {
    /// What the agent is told.
    pub code: Code,
    /// What the agent showed, if it came that far. Nothing of it is known to be
    /// good.
    pub shown: Option<Shown>,
    /// Where the agent is.
    pub remote: SocketAddr,
    /// Who refused.
    pub gateway: GatewayId,
}

/// What an agent showed of its right to attach.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The ticket or grant.
    pub right: Right,
    /// The number of the link.
    pub link: LinkNumber,
}

/// A link whose desktop was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// The session.
    pub sid: SessionId,
    /// The epoch of its assignment.
    pub epoch: Epoch,
    /// The link.
    pub link: LinkNumber,
    /// From the broker's answer to the desktop's.
    pub took: Duration,
}

/// A desktop that could not be dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreachable {
    /// The session that wanted it.
    pub sid: SessionId,
    /// The epoch of its assignment.
    pub epoch: Epoch,
    /// The link that is refused.
    pub link: LinkNumber,
    /// What is wrong.
    pub why: DialFailure,
}

/// What is wrong with a desktop's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DialFailure {
    /// This gateway's own list does not allow it; the desktop was not asked.
    NotAllowed,
    /// Nothing answered in time.
    Silent,
    /// Something answered that nobody listens there, or no way leads there.
    Refused,
    /// This gateway has no file or memory left to connect with: that says nothing of the
    /// desktop.
    Exhausted,
}

/// The story of one link, told once, after it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkReport {
    /// The session.
    pub sid: SessionId,
    /// The epoch of its assignment.
    pub epoch: Epoch,
    /// The link that ended.
    pub link: LinkNumber,
    /// What ended it.
    pub end: LinkEnd,
    /// Bytes written onward to the desktop.
    pub bytes_up: u64,
    /// Bytes sent onward to the agent.
    pub bytes_down: u64,
    /// How long the link was attached; zero if it never was.
    pub attached_for: Duration,
    /// When the last byte was carried, if one was.
    pub last_byte_at: Option<SystemTime>,
    /// Minutes in which the person touched the thin client, where that told of it.
    pub input_minutes: Option<u32>,
}

/// What ended a link. It names the side that ended first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkEnd {
    /// The agent took its leave, with what its viewer told it.
    AgentBye(Code),
    /// The agent closed without a word, or its connection was lost.
    AgentGone,
    /// The agent broke the conversation's rules, or a deadline of it.
    AgentFault(Code),
    /// The desktop closed its connection or reset it.
    DesktopClosed {
        /// What the agent's viewer made of that, if the agent said so in time.
        viewer: Option<Code>,
    },
    /// A link with a higher number took its place.
    Superseded,
    /// The broker ended the session, or the link may not go on by what the broker said
    /// of it, for this reason.
    Ended(Code),
    /// Nobody decided in time whether it may go on from where it comes now.
    Undecided,
    /// Its desktop's connection was made for what the thin client may not do any more.
    Outdated,
    /// The gateway is going out of service.
    Draining,
    /// The broker's answer came after the agent had been told to try again.
    Unanswered,
    /// The gateway's handling of it broke off, as by a panic.
    BrokenOff,
}

impl LinkEnd {
    /// One of each, whatever its code.
    pub(crate) const KINDS: [Self; 11] = [
        Self::AgentBye(Code::Disconnected),
        Self::AgentGone,
        Self::AgentFault(Code::Malformed),
        Self::DesktopClosed { viewer: None },
        Self::Superseded,
        Self::Ended(Code::SessionEnded),
        Self::Undecided,
        Self::Outdated,
        Self::Draining,
        Self::Unanswered,
        Self::BrokenOff,
    ];

    /// Tells whether the session may go on over another link, with the same connection
    /// to its desktop. Where that has ended and the agent has not said that it knows, its
    /// last bytes may still be on their way.
    pub fn may_resume(self) -> bool {
        match self {
            Self::AgentGone
            | Self::AgentFault(_)
            | Self::DesktopClosed { viewer: None }
            | Self::Superseded
            | Self::Undecided => true,
            Self::AgentBye(_)
            | Self::DesktopClosed { viewer: Some(_) }
            | Self::Ended(_)
            | Self::Outdated
            | Self::Draining
            | Self::Unanswered
            | Self::BrokenOff => false,
        }
    }

    /// Tells whether one of the two that talk to each other ended it by itself, so that
    /// the other hears the end of what was said.
    pub fn is_orderly(self) -> bool {
        match self {
            Self::AgentBye(_) | Self::DesktopClosed { .. } => true,
            Self::AgentGone
            | Self::AgentFault(_)
            | Self::Superseded
            | Self::Ended(_)
            | Self::Undecided
            | Self::Outdated
            | Self::Draining
            | Self::Unanswered
            | Self::BrokenOff => false,
        }
    }

    /// Returns a short name for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AgentBye(_) => "agent_bye",
            Self::AgentGone => "agent_gone",
            Self::AgentFault(_) => "agent_fault",
            Self::DesktopClosed { .. } => "desktop_closed",
            Self::Superseded => "superseded",
            Self::Ended(_) => "ended",
            Self::Undecided => "undecided",
            Self::Outdated => "outdated",
            Self::Draining => "draining",
            Self::Unanswered => "unanswered",
            Self::BrokenOff => "broken_off",
        }
    }
}
