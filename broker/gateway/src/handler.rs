//! Takes an agent from its first frame to an accepted link: verify, redeem,
//! carry. What is carried, and until when, is [`crate::carry`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use quinn_proto::VarInt;
use tegata_edge::network::NetworkClasses;
use tegata_edge::retry::spread;
use tegata_edge::wire::{FrameReader, FrameWriter, WireError};
use tegata_edge::{Handler, Link};
use tegata_proto::PROTOCOL_VERSION;
use tegata_proto::claims::Claims;
use tegata_proto::code::Code;
use tegata_proto::frame::LIMIT_BEFORE;
use tegata_proto::id::{GatewayGroup, GatewayId, LinkNumber};
use tegata_proto::login::Failure;
use tegata_proto::session::{AgentMessage, Attach, Channel, GatewayMessage};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{Instrument as _, Span, debug, info_span, warn};
use uuid::Uuid;

use crate::carry::Course;
use crate::dial::TargetPolicy;
use crate::metrics::Metrics;
use crate::proof::{purpose_of, thumbprint, verify_proof};
use crate::redeem::{
    Broker, LinkEnd, LinkReport, RedeemRequest, Redeemed, Refused, RefusedAttach, Shown,
};
use crate::sessions::{NotBegun, Registration, Sessions, Stop};
use crate::verify::{TokenKeys, TokenKind};

/// By when an agent must have sent its whole `attach`.
pub const ATTACH_DEADLINE: Duration = Duration::from_secs(5);

/// How long the broker may take before the agent is told to try again.
pub const REDEEM_DEADLINE: Duration = Duration::from_secs(5);

/// How long an answer is awaited after the agent was told to try again, so that
/// a link which the broker believes in can be reported as ended.
pub const REDEEM_PATIENCE: Duration = Duration::from_mins(1);

/// When an agent should try again after [`REDEEM_DEADLINE`].
pub const BUSY_RETRY: Duration = Duration::from_secs(1);

/// How long an agent may take to close after it was told that this is the end.
pub const LINGER: Duration = Duration::from_secs(2);

/// A gateway, assembled from its parts.
pub struct Gateway {
    /// Who it is.
    pub identity: Identity,
    /// The keys that tickets and grants are signed with.
    pub keys: TokenKeys,
    /// What kinds of networks agents are on.
    pub classes: Arc<NetworkClasses>,
    /// Where desktops are.
    pub targets: TargetPolicy,
    /// Who redeems.
    pub broker: Arc<dyn Broker>,
    /// The links of all sessions here.
    pub sessions: Arc<Sessions>,
    /// What is counted.
    pub metrics: Metrics,
}

/// How a gateway names itself.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name, as in its certificate.
    pub id: GatewayId,
    /// The group whose tickets it takes.
    pub group: GatewayGroup,
    /// This run of it.
    pub boot: Uuid,
    /// Addresses of its own, without a balancer.
    pub direct_addresses: Vec<SocketAddr>,
}

/// A link that the broker has redeemed, on its way to be carried.
pub(crate) struct Begun {
    pub(crate) link: Link,
    pub(crate) reader: FrameReader,
    pub(crate) writer: FrameWriter,
    pub(crate) registration: Registration,
    pub(crate) course: Course,
}

/// How a link that is not carried is answered.
pub(crate) enum Refusal {
    /// The agent is told.
    Tell(Failure),
    /// The agent is gone, or has said nothing that could be answered.
    Silent,
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Self::Tell(code.into())
    }
}

#[async_trait]
impl Handler for Gateway {
    async fn serve(&self, link: Link) {
        // One after the other: a link that is carried keeps nothing of how it was let in.
        if let Some((begun, span)) = Box::pin(self.let_in(link)).await {
            self.carry(begun).instrument(span).await;
        }
    }
}

impl Gateway {
    /// Hears an attach and has it redeemed. Whoever is not let in has been told why.
    async fn let_in(&self, link: Link) -> Option<(Box<Begun>, Span)> {
        let deadline = Instant::now() + ATTACH_DEADLINE;
        let control = tokio::select! {
            biased;
            () = link.closing.cancelled() => return None,
            control = timeout_at(deadline, link.connection.accept_bi()) => control,
        };
        let Ok(Ok((send, recv))) = control else {
            close(&link, Code::Timeout);
            return None;
        };
        let (mut reader, writer) = (FrameReader::new(recv), FrameWriter::new(send));
        let attach = tokio::select! {
            biased;
            () = link.closing.cancelled() => Err(busy(BUSY_RETRY).into()),
            attach = read_attach(&mut reader, deadline) => attach,
        };
        let attach = match attach {
            Ok(attach) => attach,
            Err(refusal) => {
                self.refuse_unasked(&link, writer, refusal, None).await;
                return None;
            }
        };
        match self.verify(&attach, &link) {
            Ok(claims) => {
                link.stranger.admit();
                link.connection.widen();
                let span = info_span!("session", session.id = %claims.sid, link = %attach.link);
                let attached = self.attach(link, reader, writer, attach, claims);
                Some((attached.instrument(span.clone()).await?, span))
            }
            Err(refusal) => {
                self.refuse_unasked(&link, writer, refusal, Some(attach)).await;
                None
            }
        }
    }

    /// Checks everything that needs nobody else: signature, audience, key and
    /// proof.
    fn verify(&self, attach: &Attach, link: &Link) -> Result<Claims, Refusal> {
        if attach.v != PROTOCOL_VERSION {
            return Err(Code::Unsupported.into());
        }
        let kind = TokenKind::of(&attach.right);
        let claims = self.keys.verify(attach.right.token().expose(), kind).map_err(|error| {
            debug!(error = &error as &dyn std::error::Error, "Token refused");
            Refusal::from(Code::TicketInvalid)
        })?;
        if claims.aud != self.identity.group {
            return Err(Code::WrongGroup.into());
        }
        let Attach { right, key, link: number, proof, .. } = attach;
        let proven = verify_proof(key, purpose_of(right), &link.exporter, *number, proof);
        if thumbprint(key) != claims.cnf.jkt || proven.is_err() {
            return Err(Code::WrongKey.into());
        }
        if *number < LinkNumber::FIRST {
            return Err(Code::LinkStale.into());
        }
        Ok(claims)
    }

    /// Has the broker redeem the right, and returns the link if it does.
    async fn attach(
        &self,
        link: Link,
        reader: FrameReader,
        writer: FrameWriter,
        attach: Attach,
        claims: Claims,
    ) -> Option<Box<Begun>> {
        let class = self.classes.class_of(link.remote.ip()).clone();
        // Registered first: from here on, an end of the session ends this too.
        let registration =
            match self.sessions.begin(claims.sid, attach.link, link.remote, class.clone()) {
                Ok(registration) => registration,
                Err(not_begun) => {
                    let refusal = not_begun.into();
                    self.refuse_unasked(&link, writer, refusal, Some(attach)).await;
                    return None;
                }
            };
        let resume = attach.resume.as_ref().map(|resume| {
            let received = resume.received.get(&Channel::Rdp).copied();
            (resume.incarnation, received.unwrap_or(0))
        });
        // A session that goes on elsewhere, or not at all, is left as it is.
        if resume.is_some_and(|(on, received)| !registration.may_resume(on, received)) {
            drop(registration);
            let lost = Code::ResumeLost.into();
            self.refuse_unasked(&link, writer, lost, Some(attach)).await;
            return None;
        }
        let Attach { right, key, link: number, proof, .. } = attach;
        let (sid, jkt) = (claims.sid, claims.cnf.jkt);
        let mut redeem = self.broker.redeem(RedeemRequest {
            right,
            claims,
            key,
            link: number,
            proof,
            exporter: link.exporter,
            gateway: self.identity.id.clone(),
            boot: self.identity.boot,
            remote: link.remote,
            class: class.clone(),
            resume: resume.map(|(incarnation, _)| incarnation),
        });
        let (refusal, end) = tokio::select! {
            biased;
            stop = stopping(&registration, &link) => (stop.code().into(), stop.end()),
            answer = &mut redeem => match answer {
                Ok(redeemed) => {
                    let received = resume.map(|(_, received)| received);
                    let course = Course { redeemed, received, jkt, class };
                    return Some(Box::new(Begun { link, reader, writer, registration, course }));
                }
                Err(refused) => {
                    drop(registration);
                    self.refuse(&link, writer, refused.into()).await;
                    return None;
                }
            },
            _ = link.connection.closed() => (Refusal::Silent, LinkEnd::AgentGone),
            () = sleep(REDEEM_DEADLINE) => {
                warn!("Broker is slow to redeem");
                (busy(BUSY_RETRY).into(), LinkEnd::Unanswered)
            }
        };
        let late_answer = async {
            if let Some(redeemed) = answered_late(registration, &link, redeem).await {
                let Redeemed { epoch, .. } = redeemed;
                self.report(LinkReport {
                    sid,
                    epoch,
                    link: number,
                    end,
                    bytes_up: 0,
                    bytes_down: 0,
                    attached_for: Duration::ZERO,
                    last_byte_at: None,
                    input_minutes: None,
                })
                .await;
            }
        };
        tokio::join!(self.refuse(&link, writer, refusal), late_answer);
        None
    }

    /// Tells the broker and the metrics how a link ended.
    pub(crate) async fn report(&self, report: LinkReport) {
        self.metrics.link_ended(report.end);
        self.broker.detached(report).await;
    }

    /// Refuses what the broker was not asked about, and lets it know unless the
    /// agent is only to try again.
    async fn refuse_unasked(
        &self,
        link: &Link,
        writer: FrameWriter,
        refusal: Refusal,
        attach: Option<Attach>,
    ) {
        if let Refusal::Tell(Failure { code, .. }) = refusal
            && code != Code::Busy
        {
            let shown = attach.map(|Attach { right, link, .. }| Shown { right, link });
            let (remote, gateway) = (link.remote, self.identity.id.clone());
            self.broker.refused(RefusedAttach { code, shown, remote, gateway }).await;
        }
        self.refuse(link, writer, refusal).await;
    }

    /// Tells the agent why its link is not carried, and closes.
    pub(crate) async fn refuse(&self, link: &Link, writer: FrameWriter, refusal: Refusal) {
        let Refusal::Tell(failure) = refusal else {
            return close(link, Code::Timeout);
        };
        debug!(code = %failure.code, "Attach refused");
        self.metrics.refused(failure.code);
        last_word(link, writer, &GatewayMessage::Error(failure), failure.code).await;
    }
}

/// Says one last thing, leaves the agent time to close, and closes.
pub(crate) async fn last_word(
    link: &Link,
    mut writer: FrameWriter,
    word: &GatewayMessage,
    code: Code,
) {
    let deadline = Instant::now() + LINGER;
    // An agent that does not take it finds the code in the close below.
    let _ = writer.write(word, LIMIT_BEFORE, deadline).await;
    let _ = timeout_at(deadline, link.connection.closed()).await;
    close(link, code);
}

/// Closes the connection, with the code's exit number and text.
pub(crate) fn close(link: &Link, code: Code) {
    link.connection.close(VarInt::from(code.exit()), code.as_str().as_bytes());
}

/// Waits until the link has to stop, whoever wants it.
pub(crate) async fn stopping(registration: &Registration, link: &Link) -> Stop {
    tokio::select! {
        biased;
        stop = registration.stopping() => stop,
        () = link.closing.cancelled() => Stop::Draining,
    }
}

/// Waits for an answer that nobody wants any more. A link that the broker believes in
/// has taken over from the session's older ones before it is over itself: what these
/// carried afterwards, the broker would not know of.
async fn answered_late(
    registration: Registration,
    link: &Link,
    mut redeem: impl Future<Output = Result<Redeemed, Refused>> + Unpin,
) -> Option<Redeemed> {
    let until = Instant::now() + REDEEM_PATIENCE;
    let answer = tokio::select! {
        biased;
        // An end of the session waits for nothing here.
        _ = stopping(&registration, link) => {
            drop(registration);
            return timeout_at(until, redeem).await.ok()?.ok();
        }
        answer = timeout_at(until, &mut redeem) => answer,
    };
    let redeemed = answer.ok()?.ok()?;
    let _ = registration.accept(redeemed.epoch, redeemed.target).await;
    Some(redeemed)
}

async fn read_attach(reader: &mut FrameReader, deadline: Instant) -> Result<Attach, Refusal> {
    match reader.read(LIMIT_BEFORE, deadline).await {
        Ok(AgentMessage::Attach(attach)) => Ok(attach),
        Ok(AgentMessage::Ack { .. } | AgentMessage::Bye { .. } | AgentMessage::Input { .. }) => {
            Err(Code::Malformed.into())
        }
        Ok(AgentMessage::Unsupported) => Err(Code::Unsupported.into()),
        Err(error) => Err(fault(&error).map_or(Refusal::Silent, Refusal::from)),
    }
}

/// Returns the rule that an agent broke; nothing if it has only gone.
pub(crate) fn fault(error: &WireError) -> Option<Code> {
    match error {
        WireError::Closed => None,
        WireError::TooSlow => Some(Code::Timeout),
        WireError::Malformed(_) => Some(Code::Malformed),
        WireError::Unsendable(_) => Some(Code::Internal),
    }
}

fn busy(retry_after: Duration) -> Failure {
    let retry_after_ms = u64::try_from(spread(retry_after).as_millis()).ok();
    Failure { code: Code::Busy, retry_after_ms }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Tell(failure)
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Code(code) => code.into(),
            Refused::Busy { retry_after } => busy(retry_after).into(),
        }
    }
}

impl From<NotBegun> for Refusal {
    fn from(not_begun: NotBegun) -> Self {
        match not_begun {
            NotBegun::Stale => Code::LinkStale.into(),
            NotBegun::TooMany | NotBegun::Draining => busy(BUSY_RETRY).into(),
        }
    }
}

impl Stop {
    /// Returns what the agent is told.
    pub(crate) fn code(self) -> Code {
        match self {
            Self::Ended(code) => code,
            Self::Superseded => Code::Superseded,
            Self::Draining => Code::Unavailable,
        }
    }

    /// Returns what the broker is told.
    pub(crate) fn end(self) -> LinkEnd {
        match self {
            Self::Ended(code) => LinkEnd::Ended(code),
            Self::Superseded => LinkEnd::Superseded,
            Self::Draining => LinkEnd::Draining,
        }
    }
}
