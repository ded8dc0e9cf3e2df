//! Carries an accepted link from the dial to its last byte, and reports it.
//!
//! Everything that carries lives in one future. Ending a link drops that future
//! and with it both directions, the desktop's socket and the stream's buffers;
//! only then is anybody told.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use quinn_proto::VarInt;
use tegata_edge::driver::{NotJoined, RecvStream, SendStream, Way};
use tegata_edge::wire::{FrameReader, FrameWriter, WireError};
use tegata_edge::{Connection, Link};
use tegata_proto::code::Code;
use tegata_proto::frame::LIMIT_AFTER;
use tegata_proto::session::{
    AgentMessage, Attached, Channel, GatewayMessage, GatewaySelf, Mode, Open,
};
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{info, warn};

use crate::dial::DialError;
use crate::handler::{Gateway, LINGER, close, fault, last_word, stopping};
use crate::redeem::{self, LinkEnd, LinkReport, Redeemed, Unreachable};
use crate::relay::{Desktop, Progress};
use crate::sessions::Registration;

/// By when an agent must have opened its channel after `attached`.
pub const CHANNEL_DEADLINE: Duration = Duration::from_secs(5);

/// How long a control frame may take to be handed to the agent's connection.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// Code of a stream that is not wanted.
const STREAM_REFUSED: VarInt = VarInt::from_u32(1);

/// How a link went.
enum Outcome {
    /// The desktop could not be dialled.
    Unreachable(DialError),
    /// It was carried, or the agent did not wait for it.
    Ended(LinkEnd),
}

/// What an agent said on the control stream.
enum Heard {
    /// It takes its leave.
    Bye(Code),
    /// It has closed.
    Gone,
    /// It broke a rule.
    Fault(Code),
}

impl Gateway {
    /// Carries a link that the broker has redeemed, tells its agent how it
    /// ended, and reports it exactly once.
    pub(crate) async fn carry(
        &self,
        link: Link,
        mut reader: FrameReader,
        mut writer: FrameWriter,
        registration: Registration,
        redeemed: Redeemed,
    ) {
        let (sid, number) = registration.id();
        let epoch = redeemed.epoch;
        let mut attached_at = None;
        let outcome = tokio::select! {
            biased;
            stop = stopping(&registration, &link) => Outcome::Ended(stop.end()),
            outcome = self.run(
                &link, &mut reader, &mut writer, &registration, redeemed, &mut attached_at,
            ) => outcome,
        };
        registration.leave();
        let end = match outcome {
            Outcome::Ended(end) => end,
            Outcome::Unreachable(failed) => {
                warn!(error = &failed as &dyn std::error::Error, "Desktop unreachable");
                let report = Unreachable { sid, epoch, link: number, why: failed.failure() };
                // Before the agent is told, so that its next login finds another desktop.
                self.broker.unreachable(report).await;
                return self.refuse(&link, writer, Code::DesktopUnreachable.into()).await;
            }
        };
        let traffic = registration.traffic();
        let report = LinkReport {
            sid,
            epoch,
            link: number,
            end,
            bytes_up: traffic.up(),
            bytes_down: traffic.down(),
            attached_for: attached_at.map_or(Duration::ZERO, |at: Instant| at.elapsed()),
            last_byte_at: traffic.last_byte_at(),
        };
        info!(end = end.as_str(), up = report.bytes_up, down = report.bytes_down, "Link ended");
        let farewell = self.part(&link, writer, end, attached_at.is_some());
        tokio::join!(self.report(report), farewell);
    }

    async fn run(
        &self,
        link: &Link,
        reader: &mut FrameReader,
        writer: &mut FrameWriter,
        registration: &Registration,
        redeemed: Redeemed,
        attached_at: &mut Option<Instant>,
    ) -> Outcome {
        if let Err(stop) = registration.accept(redeemed.epoch, redeemed.target).await {
            return Outcome::Ended(stop.end());
        }
        let begun = Instant::now();
        let dialled = tokio::select! {
            _ = link.connection.closed() => return Outcome::Ended(LinkEnd::AgentGone),
            dialled = self.targets.dial(redeemed.target) => dialled,
        };
        let desktop = match dialled {
            Ok(socket) => Desktop::new(socket),
            Err(failed) => return Outcome::Unreachable(failed),
        };
        let took = begun.elapsed();
        self.metrics.dialled(took);

        let (sid, number) = registration.id();
        let report = redeem::Attached { sid, epoch: redeemed.epoch, link: number, took };
        let attached = GatewayMessage::Attached(Box::new(self.attached(registration, redeemed)));
        let told = writer.write(&attached, LIMIT_AFTER, Instant::now() + WRITE_DEADLINE);
        // Both at once: the agent opens its channel while the broker commits.
        let ((), told) = tokio::join!(self.broker.attached(report), told);
        if told.is_err() {
            return Outcome::Ended(LinkEnd::AgentGone);
        }
        *attached_at = Some(Instant::now());
        info!("Link attached");
        Outcome::Ended(converse(&link.connection, reader, writer, desktop, registration).await)
    }

    fn attached(&self, registration: &Registration, redeemed: Redeemed) -> Attached {
        let (sid, link) = registration.id();
        Attached {
            sid,
            link,
            incarnation: redeemed.incarnation,
            received: [(Channel::Rdp, 0)].into(),
            mode: Mode::Fresh,
            gateway: GatewaySelf {
                id: self.identity.id.clone(),
                direct_addresses: self.identity.direct_addresses.clone(),
            },
            lease_s: redeemed.lease_s,
            hold_s: redeemed.hold_s,
            policy: redeemed.policy,
            grant: redeemed.grant,
        }
    }

    /// Tells an agent what ended its link, where it cannot know, and closes.
    async fn part(&self, link: &Link, writer: FrameWriter, end: LinkEnd, attached: bool) {
        let (word, code) = match end {
            LinkEnd::Ended(cause) => (GatewayMessage::End { cause }, cause),
            LinkEnd::Superseded => {
                (GatewayMessage::End { cause: Code::Superseded }, Code::Superseded)
            }
            LinkEnd::Draining => {
                (GatewayMessage::Error(Code::Unavailable.into()), Code::Unavailable)
            }
            LinkEnd::AgentFault(code) => (GatewayMessage::Error(code.into()), code),
            LinkEnd::DesktopClosed { .. } => return close(link, Code::DesktopLost),
            LinkEnd::AgentGone | LinkEnd::Unanswered => return close(link, Code::Disconnected),
            LinkEnd::AgentBye(code) => {
                // It closes by itself, having said so.
                let _ = timeout_at(Instant::now() + LINGER, link.connection.closed()).await;
                return close(link, code);
            }
        };
        if attached {
            last_word(link, writer, &word, code).await;
        } else {
            self.refuse(link, writer, code.into()).await;
        }
    }
}

/// Opens the agent's channel, carries it, and listens to the agent meanwhile.
async fn converse(
    connection: &Connection,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
    desktop: Desktop,
    registration: &Registration,
) -> LinkEnd {
    let desktop_closed = Notify::new();
    let mut heard = pin!(listen(reader, writer, &desktop_closed));
    // A channel that is open is carried, though its agent may have taken its
    // leave by now.
    let channel = tokio::select! {
        biased;
        channel = open_channel(connection) => channel,
        heard = &mut heard => return heard.into(),
    };
    let (send, recv) = match channel {
        Ok(channel) => channel,
        Err(error) => return fault(&error).map_or(LinkEnd::AgentGone, LinkEnd::AgentFault),
    };
    let traffic = Arc::clone(registration.traffic());
    let splice = desktop.into_socket().map_err(NotJoined::Socket);
    let splice = splice.and_then(|socket| connection.splice(send, recv, socket, traffic));
    let splice = match splice {
        Ok(splice) => splice,
        Err(NotJoined::Lost(_)) => return LinkEnd::AgentGone,
        Err(failed @ NotJoined::Socket(_)) => {
            warn!(error = &failed as &dyn std::error::Error, "Desktop not joined");
            return LinkEnd::DesktopClosed { viewer: None };
        }
    };
    let mut progress = Progress::default();
    {
        let (mut up, mut down) = (pin!(splice.parted(Way::Up)), pin!(splice.parted(Way::Down)));
        let mut gone = pin!(refuse_streams(connection));
        while !progress.is_over() {
            // What carries comes first, so that the last bytes are not lost to
            // the news that their sender has gone.
            tokio::select! {
                biased;
                parted = &mut up, if progress.is_open(Way::Up) => {
                    progress.parted(Way::Up, &parted, Instant::now());
                }
                parted = &mut down, if progress.is_open(Way::Down) => {
                    if progress.parted(Way::Down, &parted, Instant::now()) {
                        desktop_closed.notify_one();
                    }
                }
                heard = &mut heard, if progress.is_listening() => match heard {
                    Heard::Bye(code) => progress.bye(code, Instant::now()),
                    Heard::Gone => break,
                    Heard::Fault(code) => return LinkEnd::AgentFault(code),
                },
                () = &mut gone => break,
                () = at(progress.until()) => break,
            }
        }
    }
    splice.close();
    progress.end()
}

impl From<Heard> for LinkEnd {
    fn from(heard: Heard) -> Self {
        match heard {
            Heard::Bye(code) => Self::AgentBye(code),
            Heard::Gone => Self::AgentGone,
            Heard::Fault(code) => Self::AgentFault(code),
        }
    }
}

/// Reads control frames until the agent leaves or breaks a rule, and tells it
/// when its desktop has closed.
async fn listen(
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
    desktop_closed: &Notify,
) -> Heard {
    loop {
        consume_budget().await;
        let word = tokio::select! {
            () = desktop_closed.notified() => GatewayMessage::End { cause: Code::DesktopLost },
            message = reader.next(LIMIT_AFTER) => match message {
                Ok(AgentMessage::Bye { code }) => return Heard::Bye(code),
                Ok(AgentMessage::Ack { .. }) => continue,
                Ok(AgentMessage::Unsupported) => GatewayMessage::Error(Code::Unsupported.into()),
                Ok(AgentMessage::Attach(_)) => return Heard::Fault(Code::Malformed),
                Err(error) => return fault(&error).map_or(Heard::Gone, Heard::Fault),
            },
        };
        if let Err(error) = writer.write(&word, LIMIT_AFTER, Instant::now() + WRITE_DEADLINE).await
        {
            return fault(&error).map_or(Heard::Gone, Heard::Fault);
        }
    }
}

/// Accepts the one stream that carries the desktop.
async fn open_channel(connection: &Connection) -> Result<(SendStream, RecvStream), WireError> {
    let deadline = Instant::now() + CHANNEL_DEADLINE;
    let opened = timeout_at(deadline, connection.accept_bi()).await;
    let (send, recv) = opened.map_err(|_| WireError::TooSlow)?.map_err(|_| WireError::Closed)?;
    let mut reader = FrameReader::new(recv);
    let Open { channel: Channel::Rdp } = reader.read(LIMIT_AFTER, deadline).await?;
    Ok((send, reader.into_inner()))
}

/// Waits until then, or for ever.
async fn at(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// Refuses every further stream, until the connection is gone.
async fn refuse_streams(connection: &Connection) {
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        // Fails only where the agent has given the stream up already.
        let _ = (send.reset(STREAM_REFUSED), recv.stop(STREAM_REFUSED));
        consume_budget().await;
    }
}
