//! The way to the gateway: the link there is, and the one that is to take its place.
//!
//! What is said over the link is [`talk`], how it is watched [`watch`], how it is lost and
//! the next one taken [`entry`], and what the person hears of that [`outage`].

mod entry;
mod outage;
mod talk;
mod watch;

use std::future::{Future, pending};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::time::Duration;

use tegata_proto::code::Code;
use tegata_proto::frame::LIMIT_AFTER;
use tegata_proto::login::Failure;
use tegata_proto::replay::{ACK_BYTES, ACK_DELAY};
use tegata_proto::session::GatewayMessage;
use tokio::time::{Instant, sleep_until, timeout};

use self::outage::Outage;
use self::watch::Tick;
use super::Ended;
use crate::agent::Agent;
use crate::claim::{Claim, Crossings};
use crate::comeback::Wish;
use crate::input::Reports;
use crate::link::{LinkError, SendStream, Transport};
use crate::network::Network;
use crate::progress::Person;
use crate::pulse::Pulse;
use crate::relay::Account;
use crate::session::{Control, FAREWELL, Session};

/// How long a gateway may take to say why the desktop's stream carries no more.
const CUT_PATIENCE: Duration = Duration::from_secs(1);

/// How long a gateway that has ended one link may take to let the next one in before
/// the person is told.
const ENTRY_PATIENCE: Duration = Duration::from_millis(500);

/// How long the desktop may take to be shown from its beginning before the person is told:
/// longer than a gateway needs to dial it.
const FRESH_PATIENCE: Duration = Duration::from_secs(3);

/// The way to the gateway.
pub(super) struct Road<'a> {
    agent: &'a Agent,
    claim: &'a Claim,
    account: &'a Account,
    /// The attached link; absent while it is lost.
    link: Option<Control>,
    gateway: SocketAddr,
    /// This machine's address on the way there.
    source: Option<IpAddr>,
    pulse: Pulse,
    outage: Option<Outage>,
    /// Another link, on its way.
    race: Option<Race<'a>>,
    /// Whether the race is for a link from another network: the present one stays
    /// where it is, and is left even if it lives.
    is_leaving: bool,
    /// When QUIC is tried next, beside a link by TCP.
    crossings: Option<Crossings>,
    crossing: Option<Crossing<'a>>,
    /// When a link is given up that carries no bytes, and whose gateway does not say
    /// why.
    patience: Option<Instant>,
    /// When the gateway must have word of what was written to the viewer.
    word_due: Option<Instant>,
    tick: Tick,
    /// When the gateway is told of the thin client's input.
    reports: Reports<'a>,
    /// What had arrived when the link began.
    began: u64,
    /// What had arrived when another one was begun beside it.
    stood: u64,
}

type Crossing<'a> = Pin<Box<dyn Future<Output = Option<Box<Session>>> + Send + 'a>>;
type Race<'a> = Pin<Box<dyn Future<Output = Result<Box<Session>, Failure>> + Send + 'a>>;

/// What the way wants.
pub(super) enum Turn {
    Heard(Result<GatewayMessage, LinkError>),
    Said(Result<(), LinkError>),
    /// Something was written to the viewer.
    Owed,
    /// The gateway must be told of that now.
    WordDue,
    /// Bytes were sent.
    Sent,
    /// The desktop's stream carries no more.
    Cut,
    /// And nobody has said why.
    CutForNoReason,
    LookDue,
    TickDue,
    /// The gateway is to be told of input.
    InputDue,
    Back(Result<Box<Session>, Failure>),
    /// One link is over, and the next one has not been let in.
    StillAway,
    /// QUIC must be tried beside TCP.
    CrossingDue,
    Crossed(Option<Box<Session>>),
}

/// Whether the link goes on.
#[derive(PartialEq, Eq)]
enum Link {
    Kept,
    Lost,
}

impl<'a> Road<'a> {
    /// Begins with a session's first link.
    pub(super) fn new(
        agent: &'a Agent,
        claim: &'a Claim,
        account: &'a Account,
        link: Control,
        gateway: SocketAddr,
        source: Option<IpAddr>,
        reports: Reports<'a>,
    ) -> Self {
        let progress = account.progress();
        let tick = Tick::new(&link.connection, progress);
        let crossings = match link.connection.transport() {
            Transport::Quic => None,
            Transport::Tcp => Some(Crossings::new(Instant::now())),
        };
        Self {
            agent,
            claim,
            account,
            link: Some(link),
            gateway,
            source,
            pulse: Pulse::default(),
            outage: None,
            race: None,
            is_leaving: false,
            crossings,
            crossing: None,
            patience: None,
            word_due: None,
            tick,
            reports,
            began: progress,
            stood: progress,
        }
    }

    /// Waits for what is to be done next. Loses nothing when it is dropped half-way.
    pub(super) async fn turn(&mut self) -> Turn {
        self.account.awaits_line(self.race.is_some());
        let is_bound = self.is_bound();
        if is_bound {
            // The word is put off, and not forgotten.
            self.word_due.get_or_insert_with(|| Instant::now() + ACK_DELAY);
        }
        let Self { link, race, account, pulse, patience, word_due, tick, reports, .. } = self;
        let (crossings, crossing) = (&self.crossings, &mut self.crossing);
        let may_cross = race.is_none() && crossing.is_none();
        let crossing_due = crossings.as_ref().map(Crossings::due).filter(|_| may_cross);
        let back = async {
            match race {
                Some(race) => race.await,
                None => pending().await,
            }
        };
        let crossed = async {
            match crossing {
                Some(crossing) => crossing.await,
                None => pending().await,
            }
        };
        let Some(Control { say, hear, .. }) = link else {
            let untold = self.outage.filter(|outage| !outage.is_told);
            let told_at = untold.map(Outage::tells_at);
            return tokio::select! {
                back = back => Turn::Back(back),
                crossed = crossed => Turn::Crossed(crossed),
                () = at(told_at) => Turn::StillAway,
            };
        };
        let (is_idle, is_watching) = (say.is_idle(), pulse.is_watching());
        let owed = if word_due.is_some() { ACK_BYTES } else { 1 };
        let may_owe = is_idle && !is_bound;
        tokio::select! {
            heard = hear.next(LIMIT_AFTER) => Turn::Heard(heard),
            said = say.flush(), if !is_idle => Turn::Said(said),
            () = account.owed(owed), if may_owe => match owed {
                ACK_BYTES => Turn::WordDue,
                _ => Turn::Owed,
            },
            () = at(*word_due), if is_idle => Turn::WordDue,
            () = account.sent(), if !is_watching => Turn::Sent,
            () = account.cut() => Turn::Cut,
            () = at(*patience) => Turn::CutForNoReason,
            () = at(pulse.due()) => Turn::LookDue,
            () = sleep_until(tick.at) => Turn::TickDue,
            () = reports.due(), if is_idle => Turn::InputDue,
            back = back => Turn::Back(back),
            () = at(crossing_due) => Turn::CrossingDue,
            crossed = crossed => Turn::Crossed(crossed),
        }
    }

    /// Does what is to be done.
    ///
    /// # Errors
    ///
    /// Tells what has ended the desktop's connection.
    pub(super) fn take(
        &mut self,
        turn: Turn,
        person: &mut impl Person,
        network: &impl Network,
    ) -> Result<(), Ended> {
        let link = match turn {
            Turn::Heard(heard) => self.heard(heard, person)?,
            Turn::Said(Ok(())) => Link::Kept,
            Turn::Said(Err(_)) | Turn::CutForNoReason => Link::Lost,
            Turn::Owed => {
                self.word_due = Some(Instant::now() + ACK_DELAY);
                self.tick.hurry();
                Link::Kept
            }
            Turn::WordDue => self.acknowledge(),
            Turn::Sent => {
                self.watch();
                Link::Kept
            }
            Turn::Cut => {
                self.patience = Some(Instant::now() + CUT_PATIENCE);
                Link::Kept
            }
            Turn::LookDue => self.look(person),
            Turn::TickDue => self.tick(),
            Turn::InputDue => self.tell_of_input(),
            Turn::Back(back) => {
                self.race = None;
                let session = back.map_err(|Failure { code, .. }| Ended::There(code))?;
                self.enter(session, person, network)?;
                Link::Kept
            }
            Turn::StillAway => {
                self.stands_still(person);
                Link::Kept
            }
            Turn::CrossingDue => {
                self.crossing = Some(Box::pin(self.claim.cross(self.agent, self.account)));
                Link::Kept
            }
            Turn::Crossed(Some(session)) => {
                self.crossing = None;
                self.enter(session, person, network)?;
                Link::Kept
            }
            Turn::Crossed(None) => {
                self.crossing = None;
                if let Some(crossings) = &mut self.crossings {
                    crossings.failed(Instant::now());
                }
                if self.link.is_some() && self.is_leaving && self.race.is_none() {
                    // The change of network has left this link to the crossing.
                    self.come_back(Wish::Resume);
                }
                if self.link.is_some() { Link::Kept } else { Link::Lost }
            }
        };
        if link == Link::Lost {
            self.lost(person);
        }
        Ok(())
    }

    /// The machine's networks changed at this time.
    pub(super) fn moved(&mut self, network: &impl Network, at: Instant) {
        let source = network.source(self.gateway);
        let before = std::mem::replace(&mut self.source, source);
        if source.is_none() || source == before {
            return;
        }
        if let Some(Control { connection, .. }) = &self.link {
            let fresh = Outage::new(at, ENTRY_PATIENCE);
            self.outage.get_or_insert(fresh).has_moved = true;
            self.pulse.moved(connection.heard(), connection.rtt(), Instant::now());
            connection.probe();
            // TCP stays with the address that it has begun with.
            self.is_leaving = connection.transport() == Transport::Tcp;
        }
        // QUIC probes the new way by itself.
        if let Err(error) = self.agent.dialler.rebind() {
            tracing::warn!(%error, "No new socket");
        }
        self.speak_up();
        if (self.race.is_some() || self.is_leaving) && !self.is_bound() {
            // Whatever was tried from the old place is tried from here.
            self.come_back(Wish::Resume);
        }
    }

    /// Has the desktop shown from its beginning, over this session's next link.
    pub(super) fn begin_again(&mut self) {
        self.close();
        // A link that only ever tells of another policy is no bad line.
        self.claim.lost(false);
        self.outage = Some(Outage::new(Instant::now(), FRESH_PATIENCE));
        self.come_back(Wish::Fresh);
    }

    /// Gives up the link that is on its way.
    pub(super) fn give_up(&mut self) {
        self.race = None;
        self.crossing = None;
    }

    /// Returns the attached link.
    pub(super) fn link(&mut self) -> Option<&mut Control> {
        self.link.as_mut()
    }

    /// Closes the attached link.
    pub(super) fn close(&mut self) {
        if let Some(link) = self.link.take() {
            link.close();
        }
        (self.pulse, self.patience, self.word_due) = (Pulse::default(), None, None);
    }

    /// Says why the agent closes, waits a bounded while until the gateway has all that
    /// was sent, and closes the link.
    pub(super) async fn bye(mut self, code: Code) {
        let Some(link) = &mut self.link else { return };
        let arrived = async {
            // What was cut off is no end: dropped, it is reset.
            if let Some(mut last) = self.account.last().filter(SendStream::is_finished) {
                last.arrived().await;
            }
        };
        let told = async { tokio::join!(link.bye(code), arrived) };
        let _ = timeout(FAREWELL, pin!(told)).await;
        link.close();
    }

    /// Tells whether an attach is on its way that names what the viewer has: the
    /// gateway must not forget what follows before it has answered.
    fn is_bound(&self) -> bool {
        (self.race.is_some() || self.crossing.is_some()) && self.claim.is_attaching()
    }

    fn transport(&self) -> Transport {
        let link = self.link.as_ref();
        link.map_or(Transport::Quic, |link| link.connection.transport())
    }
}

/// Waits until then, or for ever.
async fn at(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => pending().await,
    }
}
