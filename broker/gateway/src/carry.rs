//! Carries an accepted link from the dial to its last byte, and reports it.
//!
//! Everything that carries lives in one future. Ending a link drops that future
//! and with it both directions, the desktop's socket and the stream's buffers;
//! only then is anybody told.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use quinn_proto::VarInt;
use tegata_edge::connection::{
    self, DesktopSide, NotHeard, NotJoined, RecvStream, SendStream, Splice, Way,
};
use tegata_edge::network::NetworkClass;
use tegata_edge::wire::{FrameReader, FrameWriter, WireError};
use tegata_edge::{Connection, Link};
use tegata_proto::code::Code;
use tegata_proto::encoding::Secret;
use tegata_proto::frame::{self, LIMIT_AFTER};
use tegata_proto::id::{Epoch, Incarnation};
use tegata_proto::key::Thumbprint;
use tegata_proto::login::Failure;
use tegata_proto::replay::ACK_DELAY;
use tegata_proto::session::{
    AgentMessage, Attached, Channel, GatewayMessage, GatewaySelf, Mode, Open,
};
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{info, warn};

use crate::dial::DialError;
use crate::handler::{Begun, Gateway, LINGER, close, fault, last_word, stopping};
use crate::redeem::{
    self, Broker, DialFailure, LinkEnd, LinkReport, Place, Redeemed, Renewal, Renewed, Unreachable,
};
use crate::relay::Progress;
use crate::sessions::Registration;
use crate::standing::{Standing, Turn, input_every_ms};

/// By when an agent must have opened its channel after `attached`.
pub const CHANNEL_DEADLINE: Duration = Duration::from_secs(5);

/// How long a control frame may take to be handed to the agent's connection.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// What an agent hears where the gateway has nothing left to dial its desktop with.
const EXHAUSTED: Failure = Failure { code: Code::Unavailable, retry_after_ms: Some(5_000) };

/// When a broker is asked again that had no younger grant.
const RENEW_AGAIN: Duration = Duration::from_mins(1);

/// Least time between two grants, however short their pool has them live.
const RENEW_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// Code of a stream that is not wanted.
const STREAM_REFUSED: VarInt = VarInt::from_u32(1);

/// A link that the broker has redeemed.
pub(crate) struct Course {
    /// What the broker said.
    pub(crate) redeemed: Redeemed,
    /// What the agent has of the desktop's bytes, where its session is resumed.
    pub(crate) received: Option<u64>,
    /// The thumbprint of the agent's key.
    pub(crate) jkt: Thumbprint,
    /// The kind of network that the broker was asked about.
    pub(crate) class: NetworkClass,
}

/// How a link went.
enum Outcome {
    /// The desktop could not be dialled.
    Unreachable(DialError),
    /// What was to be resumed has gone meanwhile.
    ResumeLost,
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
    /// Nothing of it: the link may not go on.
    Over(LinkEnd),
}

/// What is known of a link that must outlive the future that carries it.
#[derive(Default)]
struct Kept {
    attached_at: Option<Instant>,
    /// The desktop's side and what the agent is told by, before and after they are joined
    /// to the agent's stream.
    side: Option<DesktopSide>,
    writer: Option<FrameWriter>,
    splice: Option<Splice>,
}

/// How an agent is heard and told: directly, or where its bytes are carried.
enum Line<'a> {
    Frames(&'a mut FrameReader, &'a mut FrameWriter),
    Splice(&'a Splice),
}

/// Reports a link whose handling breaks off, as by a panic of it or of what moves its
/// bytes: its session would count as carried for ever.
struct Watch<'a> {
    gateway: &'a Gateway,
    registration: &'a Registration,
    epoch: Epoch,
    begun: Instant,
    /// Whether the broker has heard how it ended.
    told: bool,
}

/// The control conversation of a link.
struct Control<'a> {
    renewing: Renewing<'a>,
    standing: Standing<'a>,
    /// What its attach said that it has of the desktop's bytes.
    named: u64,
}

/// What a link needs of its redeeming once its desktop is there.
struct Reached {
    renewal: Renewal,
    renew_at: Instant,
    incarnation: Incarnation,
    class: NetworkClass,
    place: Place,
    named: u64,
}

/// Keeps an agent's resume grant young.
struct Renewing<'a> {
    broker: &'a dyn Broker,
    renewal: Renewal,
    at: Instant,
    asked: Option<Answer<'a>>,
}

type Answer<'a> = Pin<Box<dyn Future<Output = Option<Renewed>> + Send + 'a>>;

impl Kept {
    /// Takes the desktop's side and what the agent is told by apart from the link.
    fn part(&mut self) {
        if let Some((side, writer)) = self.splice.take().map(Splice::part) {
            (self.side, self.writer) = (Some(side), Some(writer));
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.registration.leave();
            let (end, begun) = (LinkEnd::BrokenOff, self.begun.elapsed());
            self.gateway.metrics.link_ended(end);
            let report = report_of(self.registration, self.epoch, end, begun);
            self.gateway.broker.broke_off(report);
        }
    }
}

/// Tells the story of a link that has ended.
fn report_of(
    registration: &Registration,
    epoch: Epoch,
    end: LinkEnd,
    attached_for: Duration,
) -> LinkReport {
    let ((sid, link), traffic) = (registration.id(), registration.traffic());
    LinkReport {
        sid,
        epoch,
        link,
        end,
        bytes_up: traffic.up(),
        bytes_down: traffic.down(),
        attached_for,
        last_byte_at: traffic.last_byte_at(),
        input_minutes: registration.input_minutes(),
    }
}

impl Renewing<'_> {
    /// Returns the next grant when it is due. Loses nothing when it is dropped half-way.
    async fn next(&mut self) -> Secret {
        loop {
            if self.asked.is_none() {
                sleep_until(self.at).await;
            }
            let asked = self.asked.get_or_insert_with(|| self.broker.renew(self.renewal));
            let renewed = asked.await;
            self.asked = None;
            match renewed {
                Some(Renewed { grant, renew_after }) => {
                    self.at = Instant::now() + renew_after.max(RENEW_AT_MOST_EVERY);
                    return grant;
                }
                None => self.at = Instant::now() + RENEW_AGAIN,
            }
        }
    }
}

impl Gateway {
    /// Carries a link that the broker has redeemed, tells its agent how it
    /// ended, and reports it exactly once.
    pub(crate) async fn carry(&self, begun: Box<Begun>) {
        let Begun { link, reader, writer, registration, course } = *begun;
        let course = Box::new(course);
        let (sid, number) = registration.id();
        let Redeemed { epoch, incarnation, hold_s, .. } = course.redeemed;
        let mut watch = Watch {
            gateway: self,
            registration: &registration,
            epoch,
            begun: Instant::now(),
            told: false,
        };
        let mut kept = Kept { writer: Some(writer), ..Kept::default() };
        let outcome = tokio::select! {
            biased;
            stop = stopping(&registration, &link) => Outcome::Ended(stop.end()),
            outcome = self.run(&link, reader, &registration, course, &mut kept) => outcome,
        };
        kept.part();
        let Kept { side, writer, .. } = kept;
        let attached_at = kept.attached_at;
        let end = match outcome {
            Outcome::Ended(end) => end,
            Outcome::ResumeLost => LinkEnd::AgentFault(Code::ResumeLost),
            Outcome::Unreachable(failed) => {
                registration.leave();
                warn!(error = &failed as &dyn std::error::Error, "Desktop not reached");
                let report = Unreachable { sid, epoch, link: number, why: failed.failure() };
                // Before the agent is told, so that its next login finds another desktop.
                self.broker.unreachable(report).await;
                watch.told = true;
                let error = match report.why {
                    DialFailure::Exhausted => EXHAUSTED,
                    DialFailure::NotAllowed | DialFailure::Silent | DialFailure::Refused => {
                        Code::DesktopUnreachable.into()
                    }
                };
                return self.refuse(&link, writer.expect("it is not joined"), error.into()).await;
            }
        };
        // What is not kept carries nothing from here on.
        let side = side.filter(|_| end.may_resume());
        let hold = Duration::from_secs(hold_s.into());
        let left = side.and_then(|side| registration.shelve(incarnation, side, hold));
        if let (Some(side), LinkEnd::AgentGone | LinkEnd::DesktopClosed { .. }) = (left, end) {
            side.close();
        }
        registration.leave();
        let attached_for = attached_at.map_or(Duration::ZERO, |at: Instant| at.elapsed());
        let report = report_of(&registration, epoch, end, attached_for);
        info!(end = end.as_str(), up = report.bytes_up, down = report.bytes_down, "Link ended");
        let farewell = self.part(&link, writer, end, attached_at.is_some());
        let telling = async {
            self.report(report).await;
            watch.told = true;
        };
        tokio::join!(telling, farewell);
    }

    async fn run(
        &self,
        link: &Link,
        reader: FrameReader,
        registration: &Registration,
        course: Box<Course>,
        kept: &mut Kept,
    ) -> Outcome {
        let reached = match self.reach(link, registration, course, kept).await {
            Ok(reached) => reached,
            Err(outcome) => return outcome,
        };
        let Reached { renewal, renew_at, incarnation, class, place, named } = reached;
        let epoch = renewal.epoch;
        let renewing = Renewing { broker: &*self.broker, renewal, at: renew_at, asked: None };
        registration.watch(link.connection.clone());
        let standing = Standing::new(&*self.broker, registration, epoch, class, place);
        let mut control = Control { renewing, standing, named };
        let joined = join(&link.connection, reader, &mut control, registration, kept).await;
        let splice = match joined {
            Ok(splice) => splice,
            Err(end) => return Outcome::Ended(end),
        };
        registration.carries(incarnation, splice.account());
        let end = carried(&link.connection, &mut control, splice).await;
        if end.is_orderly() && !end.may_resume() {
            kept.part();
            if let Some(side) = kept.side.take() {
                side.close();
            }
        }
        Outcome::Ended(end)
    }

    /// Gets the desktop's side of a link and tells its agent, before anything is carried.
    async fn reach(
        &self,
        link: &Link,
        registration: &Registration,
        course: Box<Course>,
        kept: &mut Kept,
    ) -> Result<Reached, Outcome> {
        let Course { redeemed, received, jkt, class } = *course;
        if let Err(stop) = registration.accept(redeemed.epoch, redeemed.target).await {
            return Err(Outcome::Ended(stop.end()));
        }
        let begun = Instant::now();
        let held = registration.unshelve(received.map(|_| redeemed.incarnation));
        let side = match (held, received) {
            (Some(mut side), Some(received)) => {
                if side.resume(received).is_err() {
                    // It has gone on since it was asked; it is kept for a better attach.
                    kept.side = Some(side);
                    return Err(Outcome::ResumeLost);
                }
                side
            }
            (None, Some(_)) => return Err(Outcome::ResumeLost),
            (_, None) => {
                let dialled = tokio::select! {
                    _ = link.connection.closed() => {
                        return Err(Outcome::Ended(LinkEnd::AgentGone));
                    }
                    dialled = self.targets.dial(redeemed.target) => dialled,
                };
                match dialled.and_then(|socket| Ok(socket.into_std()?)) {
                    Ok(socket) => DesktopSide::new(socket),
                    Err(failed) => return Err(Outcome::Unreachable(failed)),
                }
            }
        };
        let took = begun.elapsed();
        if received.is_none() {
            self.metrics.dialled(took);
        }

        let (sid, number) = registration.id();
        let (epoch, incarnation) = (redeemed.epoch, redeemed.incarnation);
        let renewal = Renewal { sid, epoch, link: number, jkt };
        let renew_after = redeemed.renew_after;
        let place = Place { policy: redeemed.policy, limits: redeemed.limits };
        let report = redeem::Attached { sid, epoch, link: number, took };
        let attached = self.attached(registration, redeemed, received.map(|_| side.received()));
        kept.side = Some(side);
        let attached = GatewayMessage::Attached(Box::new(attached));
        let writer = kept.writer.as_mut().expect("it is not joined yet");
        let told = writer.write(&attached, LIMIT_AFTER, Instant::now() + WRITE_DEADLINE);
        // Both at once: the agent opens its channel while the broker commits.
        let ((), told) = tokio::join!(self.broker.attached(report), told);
        if told.is_err() {
            return Err(Outcome::Ended(LinkEnd::AgentGone));
        }
        kept.attached_at = Some(Instant::now());
        let mode = if received.is_some() { Mode::Resumed } else { Mode::Fresh };
        self.metrics.attached(mode);
        info!(resumed = received.is_some(), "Link attached");
        let renew_at = Instant::now() + renew_after;
        let named = received.unwrap_or(0);
        Ok(Reached { renewal, renew_at, incarnation, class, place, named })
    }

    /// Returns the answer to an agent; `received` is what was written to the desktop of
    /// a session that is resumed.
    fn attached(
        &self,
        registration: &Registration,
        redeemed: Redeemed,
        received: Option<u64>,
    ) -> Attached {
        let (sid, link) = registration.id();
        Attached {
            sid,
            link,
            incarnation: redeemed.incarnation,
            received: [(Channel::Rdp, received.unwrap_or(0))].into(),
            mode: if received.is_some() { Mode::Resumed } else { Mode::Fresh },
            gateway: GatewaySelf {
                id: self.identity.id.clone(),
                direct_addresses: self.identity.direct_addresses.clone(),
            },
            lease_s: redeemed.lease_s,
            hold_s: redeemed.hold_s,
            policy: redeemed.policy,
            input_every_ms: Some(input_every_ms(redeemed.limits)),
            grant: redeemed.grant,
        }
    }

    /// Tells an agent what ended its link, where it cannot know, and closes.
    async fn part(&self, link: &Link, writer: Option<FrameWriter>, end: LinkEnd, attached: bool) {
        let (word, code) = match end {
            LinkEnd::Ended(cause) => (GatewayMessage::End { cause }, cause),
            LinkEnd::Superseded => {
                (GatewayMessage::End { cause: Code::Superseded }, Code::Superseded)
            }
            LinkEnd::Draining | LinkEnd::Undecided | LinkEnd::Outdated => {
                (GatewayMessage::Error(Code::Unavailable.into()), Code::Unavailable)
            }
            LinkEnd::AgentFault(code) => (GatewayMessage::Error(code.into()), code),
            LinkEnd::DesktopClosed { .. } => return close(link, Code::DesktopLost),
            LinkEnd::AgentGone | LinkEnd::Unanswered | LinkEnd::BrokenOff => {
                return close(link, Code::Disconnected);
            }
            LinkEnd::AgentBye(code) => {
                // It closes by itself, having said so.
                let _ = timeout_at(Instant::now() + LINGER, link.connection.closed()).await;
                return close(link, code);
            }
        };
        match writer {
            Some(writer) if attached => last_word(link, writer, &word, code).await,
            Some(writer) => self.refuse(link, writer, code.into()).await,
            // It went with its connection.
            None => close(link, code),
        }
    }
}

/// Opens the agent's channel and joins it to its desktop, and listens to the agent
/// meanwhile.
async fn join<'a>(
    connection: &Connection,
    mut reader: FrameReader,
    control: &mut Control<'_>,
    registration: &Registration,
    kept: &'a mut Kept,
) -> Result<&'a Splice, LinkEnd> {
    let desktop_closed = Notify::new();
    let opened = {
        let writer = kept.writer.as_mut().expect("it is not joined yet");
        let line = Line::Frames(&mut reader, writer);
        // A channel that is open is carried, though its agent may have taken its
        // leave by now.
        tokio::select! {
            biased;
            channel = open_channel(connection) => channel,
            heard = control.listen(line, &desktop_closed) => return Err(heard.into()),
        }
    };
    let (send, recv) =
        opened.map_err(|error| fault(&error).map_or(LinkEnd::AgentGone, LinkEnd::AgentFault))?;
    let writer = kept.writer.take().expect("it is there until this");
    let traffic = Arc::clone(registration.traffic());
    let side = kept.side.take().expect("it was put there before this");
    let heard = connection::Control { reader, writer, acknowledges, acknowledgement };
    match connection.splice(send, recv, heard, side, traffic) {
        Ok(splice) => Ok(kept.splice.insert(splice)),
        Err(NotJoined::Lost { side, .. }) => {
            kept.side = Some(*side);
            Err(LinkEnd::AgentGone)
        }
        Err(failed @ NotJoined::Socket(_)) => {
            warn!(error = &failed as &dyn std::error::Error, "Desktop not joined");
            Err(LinkEnd::DesktopClosed { viewer: None })
        }
    }
}

/// Waits until what is carried has come to its end.
async fn carried(connection: &Connection, control: &mut Control<'_>, splice: &Splice) -> LinkEnd {
    let desktop_closed = Notify::new();
    let mut progress = Progress::default();
    let (mut up, mut down) = (pin!(splice.parted(Way::Up)), pin!(splice.parted(Way::Down)));
    let mut heard = pin!(control.listen(Line::Splice(splice), &desktop_closed));
    let mut gone = pin!(refuse_streams(connection));
    while !progress.is_over() {
        // What carries comes first, so that the last bytes are not lost to
        // the news that their sender has gone.
        tokio::select! {
            biased;
            parted = &mut up, if progress.is_open(Way::Up) => {
                progress.parted(Way::Up, &parted, splice.acknowledged(), Instant::now());
            }
            parted = &mut down, if progress.is_open(Way::Down) => {
                let acknowledged = splice.acknowledged();
                if progress.parted(Way::Down, &parted, acknowledged, Instant::now()) {
                    desktop_closed.notify_one();
                }
            }
            heard = &mut heard, if progress.is_listening() => match heard {
                Heard::Bye(code) => progress.bye(code, Instant::now()),
                Heard::Gone => break,
                Heard::Fault(code) => return LinkEnd::AgentFault(code),
                Heard::Over(end) => return end,
            },
            () = &mut gone => break,
            () = at(progress.until()) => {
                if !progress.is_put_off(splice.acknowledged(), Instant::now()) {
                    break;
                }
            }
        }
    }
    progress.end()
}

impl From<Heard> for LinkEnd {
    fn from(heard: Heard) -> Self {
        match heard {
            Heard::Bye(code) => Self::AgentBye(code),
            Heard::Gone => Self::AgentGone,
            Heard::Fault(code) => Self::AgentFault(code),
            Heard::Over(end) => end,
        }
    }
}

impl Control<'_> {
    /// Reads control frames until the agent leaves or breaks a rule, and tells it
    /// what it has to know: how much reached its desktop, when that has closed, each
    /// new grant, and what holds where it is now.
    async fn listen(&mut self, mut line: Line<'_>, desktop_closed: &Notify) -> Heard {
        let Self { renewing, standing, named } = self;
        let splice = line.splice();
        let mut owed_until = None;
        loop {
            consume_budget().await;
            let word = tokio::select! {
                () = desktop_closed.notified() => GatewayMessage::End { cause: Code::DesktopLost },
                grant = renewing.next() => GatewayMessage::Grant { grant },
                turn = standing.turn() => match turn {
                    Turn::Say(word) => word,
                    Turn::End(end) => return Heard::Over(end),
                },
                () = owed(splice), if owed_until.is_none() => {
                    owed_until = Some(Instant::now() + ACK_DELAY);
                    continue;
                }
                () = at(owed_until) => {
                    owed_until = None;
                    if let Some(splice) = splice {
                        splice.acknowledge();
                    }
                    continue;
                }
                message = line.next() => match message {
                    Ok(AgentMessage::Bye { code }) => return Heard::Bye(code),
                    // Nothing has passed yet: it says again what its attach said, and may be
                    // quicker than the channel it has opened.
                    Ok(AgentMessage::Ack { channel: Channel::Rdp, received })
                        if received <= *named => continue,
                    Ok(AgentMessage::Input { idle_ms }) => {
                        standing.input(Duration::from_millis(idle_ms));
                        continue;
                    }
                    Ok(AgentMessage::Unsupported) => {
                        GatewayMessage::Error(Code::Unsupported.into())
                    }
                    Ok(AgentMessage::Attach(_) | AgentMessage::Ack { .. })
                    | Err(NotHeard::Offset(_)) => return Heard::Fault(Code::Malformed),
                    Err(NotHeard::Wire(error)) => {
                        return fault(&error).map_or(Heard::Gone, Heard::Fault);
                    }
                },
            };
            let deadline = Instant::now() + WRITE_DEADLINE;
            if let Err(error) = line.say(&word, deadline).await {
                return fault(&error).map_or(Heard::Gone, Heard::Fault);
            }
        }
    }
}

impl<'a> Line<'a> {
    /// Waits for what the agent says next, but for how far it has got with what is carried.
    async fn next(&mut self) -> Result<AgentMessage, NotHeard> {
        match self {
            Self::Frames(reader, _) => Ok(reader.next(LIMIT_AFTER).await?),
            Self::Splice(splice) => {
                let body = splice.heard().await?;
                Ok(frame::read(&body).map_err(WireError::Malformed)?)
            }
        }
    }

    async fn say(&mut self, word: &GatewayMessage, deadline: Instant) -> Result<(), WireError> {
        match self {
            Self::Frames(_, writer) => writer.write(word, LIMIT_AFTER, deadline).await,
            Self::Splice(splice) => splice.say(word, LIMIT_AFTER, deadline).await,
        }
    }

    fn splice(&self) -> Option<&'a Splice> {
        match self {
            Self::Frames(..) => None,
            Self::Splice(splice) => Some(splice),
        }
    }
}

/// Waits until the agent has to be told how much reached its desktop.
async fn owed(splice: Option<&Splice>) {
    match splice {
        Some(splice) => splice.owed().await,
        None => std::future::pending().await,
    }
}

/// Returns how far an agent has got, if it says only that.
fn acknowledges(body: &[u8]) -> Option<u64> {
    match frame::read(body) {
        Ok(AgentMessage::Ack { channel: Channel::Rdp, received }) => Some(received),
        Ok(_) | Err(_) => None,
    }
}

/// Returns the frame that tells an agent how much reached its desktop.
fn acknowledgement(received: u64) -> Vec<u8> {
    let word = GatewayMessage::Ack { channel: Channel::Rdp, received };
    frame::write(&word, LIMIT_AFTER).expect("a number fits into a frame")
}

/// A stream whose channel is being opened: it is cut where nothing comes of that, and not
/// finished, which an agent would take for its desktop's end.
struct Opening(Option<SendStream>);

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(send) = &mut self.0 {
            // Fails only where the agent has given it up.
            let _ = send.reset(STREAM_REFUSED);
        }
    }
}

/// Accepts the one stream that carries the desktop.
async fn open_channel(connection: &Connection) -> Result<(SendStream, RecvStream), WireError> {
    let deadline = Instant::now() + CHANNEL_DEADLINE;
    let opened = timeout_at(deadline, connection.accept_bi()).await;
    let (send, recv) = opened.map_err(|_| WireError::TooSlow)?.map_err(|_| WireError::Closed)?;
    let mut opening = Opening(Some(send));
    let mut reader = FrameReader::new(recv);
    let Open { channel: Channel::Rdp } = reader.read(LIMIT_AFTER, deadline).await?;
    let send = opening.0.take().expect("nobody else takes it");
    Ok((send, reader.into_inner()))
}

/// Waits until then, or for ever.
pub(crate) async fn at(until: Option<Instant>) {
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
