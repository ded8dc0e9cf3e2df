//! The login conversation, as the broker leads it (`tegata-login/1`).
//!
//! [`LoginDesk`] is the handler of its ALPN: it reads and writes frames in their
//! order and by their deadlines. Who the person is, is [`SignIn`]'s; which
//! desktop they get, [`Assignments`]'. A login becomes a ticket in
//! [`LoginDesk::admit`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use tegata_domain::pool::Pool;
use tegata_edge::endpoint::{CLOSE_DONE, Handler, Link};
use tegata_edge::network::{NetworkClass, NetworkClasses};
use tegata_edge::retry::spread;
use tegata_edge::source::Prefix;
use tegata_edge::wire::{FrameReader, FrameWriter, WireError};
use tegata_gateway::proof::{thumbprint, verify_proof};
use tegata_proto::PROTOCOL_VERSION;
use tegata_proto::claims::TICKET_LIFE_S;
use tegata_proto::code::{Code, TryAgain};
use tegata_proto::encoding::Bytes;
use tegata_proto::frame::{LIMIT_AFTER, LIMIT_BEFORE};
use tegata_proto::id::{LinkNumber, PoolName};
use tegata_proto::login::{
    AgentMessage, BrokerMessage, Failure, Hello, Method, OfferState, Password, Phase as Step,
    PoolOffer, Transaction, Welcome,
};
use tegata_proto::proof::{EXPORTER_LEN, Purpose};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{Instrument as _, debug, info, info_span, warn};

use crate::flows::assignment::{Applicant, Assignments};
use crate::flows::catalogue::Catalogue;
use crate::flows::refusals::{Door, Refusals};
use crate::flows::returns::Returns;
use crate::flows::revocations::Revocations;
use crate::flows::sign_in::{Denied, SignIn, SourceRules, Visitor};
use crate::flows::waiting::Queued;
use crate::metrics::Phase;
use crate::ports::directory::Person;

/// By when the first frame must be here.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// How long a person may take to type a password.
pub const PASSWORD_DEADLINE: Duration = Duration::from_mins(3);

/// How long a person may take to choose a pool.
pub const CHOICE_DEADLINE: Duration = Duration::from_mins(2);

/// How long an agent may take to receive one frame.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// How long an agent may take to close after it was refused.
pub const FAREWELL: Duration = Duration::from_secs(10);

/// The same after a ticket, which a line that loses much delivers late: as long as it is good.
const TICKET_FAREWELL: Duration = Duration::from_secs(TICKET_LIFE_S);

/// When to try again, where nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Longest `agent_version`, `locale` and `device_id`, in bytes.
const LABEL_MAX: usize = 128;

/// Leads logins.
pub struct LoginDesk {
    /// Who people are.
    pub sign_in: Arc<SignIn>,
    /// Which desktop they get; with the store, the clock and the counters.
    pub assignments: Assignments,
    /// Which pools there are.
    pub catalogue: Arc<Catalogue>,
    /// Where links come from.
    pub classes: Arc<NetworkClasses>,
    /// What the sources of links may do.
    pub sources: SourceRules,
    /// The audit trail of refusals.
    pub refusals: Arc<Refusals>,
    /// Who may not go on.
    pub revocations: Arc<Revocations>,
    /// Who goes first.
    pub returns: Arc<Returns>,
    /// The oldest agent that may log in.
    pub minimum_agent: Version,
}

/// A version as packages have it: three numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version([u32; 3]);

impl Version {
    /// Reads `1.2.3`; what follows a `-` or `+` is ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let core = text.split(['-', '+']).next()?;
        let mut numbers = core.split('.').map(|number| number.parse().ok());
        let version = [numbers.next()??, numbers.next()??, numbers.next()??];
        numbers.next().is_none().then_some(Self(version))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// How a conversation ends without a ticket.
enum Stopped {
    /// The agent is told why.
    Refused(Failure),
    /// There is nobody to tell.
    Gone,
}

impl From<Code> for Stopped {
    fn from(code: Code) -> Self {
        let later = code.try_again() == TryAgain::Later;
        let millis = u64::try_from(spread(RETRY_AFTER).as_millis()).unwrap_or(u64::MAX);
        Self::Refused(Failure { code, retry_after_ms: later.then_some(millis) })
    }
}

impl From<Denied> for Stopped {
    fn from(denied: Denied) -> Self {
        let Some(wait) = denied.retry_after else { return denied.code.into() };
        let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Self::Refused(Failure { code: denied.code, retry_after_ms: Some(millis) })
    }
}

impl From<WireError> for Stopped {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Closed => Self::Gone,
            WireError::TooSlow => Code::Timeout.into(),
            WireError::Malformed(_) => Code::Malformed.into(),
            WireError::Unsendable(_) => Code::Internal.into(),
        }
    }
}

/// A connection, as far as the conversation that is led over it depends on it.
pub trait Line: Sync {
    /// Returns where the agent is.
    fn address(&self) -> IpAddr;

    /// Returns the TLS exporter that the proof is bound to.
    fn exporter(&self) -> &[u8; EXPORTER_LEN];

    /// The agent has shown a right to be here.
    fn admit(&self);

    /// Waits until the broker is going out of service.
    fn closing(&self) -> impl Future<Output = ()> + Send;

    /// Waits until the agent has gone.
    fn closed(&self) -> impl Future<Output = ()> + Send;
}

impl Line for Link {
    fn address(&self) -> IpAddr {
        self.remote.ip()
    }

    fn exporter(&self) -> &[u8; EXPORTER_LEN] {
        &self.exporter
    }

    fn admit(&self) {
        self.stranger.admit();
    }

    async fn closing(&self) {
        self.closing.cancelled().await;
    }

    async fn closed(&self) {
        self.connection.closed().await;
    }
}

struct Talk<R, W> {
    reader: FrameReader<R>,
    writer: FrameWriter<W>,
}

impl<R: AsyncRead + Send + Unpin, W: AsyncWrite + Send + Unpin> Talk<R, W> {
    async fn say(&mut self, message: &BrokerMessage) -> Result<(), Stopped> {
        let deadline = Instant::now() + WRITE_DEADLINE;
        Ok(self.writer.write(message, LIMIT_AFTER, deadline).await?)
    }

    /// Tells the agent of its place while something waits in a queue. What it waits for
    /// goes on whether the agent takes its words or not: a turn that has come must not
    /// stand idle for one who does not read.
    async fn tell_while<T, E: Into<Stopped>>(
        &mut self,
        told: &mut watch::Receiver<Option<Queued>>,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Stopped> {
        // A place in a queue that was left already is no news.
        told.mark_unchanged();
        tokio::pin!(work);
        loop {
            let place = tokio::select! {
                biased;
                Ok(()) = told.changed() => *told.borrow_and_update(),
                outcome = &mut work => return outcome.map_err(Into::into),
            };
            let Some(Queued { place, expected }) = place else { continue };
            let expected_ms = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
            let queued = BrokerMessage::Queued { place, expected_ms };
            tokio::select! {
                biased;
                // The rest of a frame that has begun goes before the next one.
                outcome = &mut work => return outcome.map_err(Into::into),
                said = self.say(&queued) => said?,
            }
        }
    }

    async fn hear(&mut self, limit: usize, within: Duration) -> Result<AgentMessage, Stopped> {
        match self.reader.read(limit, Instant::now() + within).await? {
            AgentMessage::Unsupported => Err(Code::Unsupported.into()),
            known => Ok(known),
        }
    }
}

#[async_trait]
impl Handler for LoginDesk {
    async fn serve(&self, link: Link) {
        let mut txn = [0; 16];
        if SystemRandom::new().fill(&mut txn).is_err() {
            warn!("No random bytes for a login");
            return;
        }
        let txn = Bytes(txn);
        self.lead(link, txn).instrument(info_span!("login", %txn)).await;
    }
}

impl LoginDesk {
    async fn lead(&self, link: Link, txn: Transaction) {
        let began = Instant::now();
        let streams = timeout_at(began + HELLO_DEADLINE, link.connection.accept_bi()).await;
        let Ok(Ok((mut send, mut receive))) = streams else { return };
        // Its stream stays open while the agent takes the last word.
        if let Some(farewell) = self.hold(&link, &mut receive, &mut send, txn, began).await {
            // The agent closes. If it does not, the connection is closed before the stream is
            // dropped: that would take back a word that the agent has and did not read yet.
            let _closed = timeout(farewell, link.connection.closed()).await;
            link.connection.close(CLOSE_DONE, b"");
        }
    }

    /// Holds the conversation of a connection that `began` then, on its one stream. Returns
    /// how long the agent may take with the last word, if there was one.
    pub async fn hold(
        &self,
        line: &impl Line,
        receive: impl AsyncRead + Send + Unpin,
        send: impl AsyncWrite + Send + Unpin,
        txn: Transaction,
        began: Instant,
    ) -> Option<Duration> {
        let mut talk = Talk { reader: FrameReader::new(receive), writer: FrameWriter::new(send) };
        let outcome = tokio::select! {
            biased;
            () = line.closing() => Err(Code::Unavailable.into()),
            outcome = self.converse(line, &mut talk, txn, began) => outcome,
        };
        let outcome = match outcome {
            // Nothing follows it, so whoever does not take it cannot be told why either.
            Ok(ticket) => talk.say(&ticket).await.map_err(|_| Stopped::Gone),
            Err(stopped) => Err(stopped),
        };
        match outcome {
            Ok(()) => {
                self.assignments.metrics.login(None);
                Some(TICKET_FAREWELL)
            }
            Err(Stopped::Refused(failure)) => {
                self.assignments.metrics.login(Some(failure.code));
                self.refusals.count(Door::Login, line.address(), failure.code);
                debug!(code = %failure.code, "Login ended without a ticket");
                let said = talk.say(&BrokerMessage::Error(failure)).await;
                said.is_ok().then_some(FAREWELL)
            }
            Err(Stopped::Gone) => {
                self.assignments.metrics.login(Some(Code::Disconnected));
                None
            }
        }
    }

    /// Leads the conversation up to its last word.
    async fn converse(
        &self,
        line: &impl Line,
        talk: &mut Talk<impl AsyncRead + Send + Unpin, impl AsyncWrite + Send + Unpin>,
        txn: Transaction,
        began: Instant,
    ) -> Result<BrokerMessage, Stopped> {
        let left = HELLO_DEADLINE.saturating_sub(began.elapsed());
        let AgentMessage::Hello(hello) = talk.hear(LIMIT_BEFORE, left).await? else {
            return Err(Code::Malformed.into());
        };
        self.check(&hello, line)?;
        talk.say(&BrokerMessage::Welcome(Welcome {
            v: PROTOCOL_VERSION,
            txn,
            server_time_ms: self.assignments.clock.now().as_millis(),
            realms: self.sign_in.names(),
            methods: vec![Method::Password],
            minimum_agent: self.minimum_agent.to_string(),
        }))
        .await?;

        let AgentMessage::Password(password) = talk.hear(LIMIT_BEFORE, PASSWORD_DEADLINE).await?
        else {
            return Err(Code::Malformed.into());
        };
        if password.txn != txn {
            return Err(Code::Malformed.into());
        }
        // From here on the throttle and the queues bound what there is of it.
        line.admit();
        self.admit(line, talk, hello, password).await
    }

    fn check(&self, hello: &Hello, line: &impl Line) -> Result<(), Code> {
        if hello.v != PROTOCOL_VERSION {
            return Err(Code::Unsupported);
        }
        let device = hello.device_id.as_deref().unwrap_or_default();
        let labels = [&hello.agent_version, &hello.locale, device];
        if labels.iter().any(|text| text.len() > LABEL_MAX || text.contains(char::is_control)) {
            return Err(Code::Malformed);
        }
        let version = Version::parse(&hello.agent_version).ok_or(Code::Malformed)?;
        if version < self.minimum_agent {
            return Err(Code::AgentTooOld);
        }
        verify_proof(&hello.key, Purpose::Login, line.exporter(), LinkNumber::LOGIN, &hello.proof)
            .map_err(|_| Code::WrongKey)
    }

    /// Turns a login into a ticket: who is it, what is open to them, which
    /// desktop, and only then the signature.
    async fn admit(
        &self,
        line: &impl Line,
        talk: &mut Talk<impl AsyncRead + Send + Unpin, impl AsyncWrite + Send + Unpin>,
        hello: Hello,
        password: Password,
    ) -> Result<BrokerMessage, Stopped> {
        if self.returns.let_pass().await {
            self.assignments.metrics.held_back();
        }
        let began = Instant::now();
        let txn = password.txn;
        let class = self.classes.class_of(line.address());
        let limits = self.sources.of(class);
        let source = Prefix::of(line.address());
        let (tell, mut told) = watch::channel(None);
        let tell = |queued| {
            tell.send_replace(Some(queued));
        };
        let visitor = Visitor { source, limits };
        let mut revoked = self.revocations.listen();
        let signing_in = self.sign_in.authenticate(password, visitor, &tell);
        let person = talk.tell_while(&mut told, signing_in).await?;
        let password_at = self.assignments.clock.now();
        let user = person.user.clone();
        let pool = tokio::select! {
            biased;
            code = revoked.of(&user) => return Err(code.into()),
            pool = self.choose(talk, &person, class) => pool?,
        };
        let applicant = Applicant {
            pool,
            person,
            key: thumbprint(&hello.key),
            class: class.to_string(),
            source: (source, limits.share),
            password_at,
            device: hello.device_id,
            txn: txn.to_string(),
        };

        let assigning = async {
            tokio::select! {
                biased;
                () = line.closed() => Err(Stopped::Gone),
                code = revoked.of(&user) => Err(code.into()),
                outcome = self.assignments.assign(&applicant, &tell) => Ok(outcome?),
            }
        };
        let (sid, assigned) = talk.tell_while(&mut told, assigning).await?;
        talk.say(&BrokerMessage::Progress { phase: Step::Assigned, expected_ms: None }).await?;
        // What was stored too late to be found among the sessions that were ended gets no
        // ticket, and lapses by itself.
        if let Some(code) = revoked.has_come(&user) {
            return Err(code.into());
        }
        let answer = self.assignments.ticket(&applicant, sid, &assigned)?;
        self.assignments.metrics.phase(Phase::Login, began.elapsed());
        info!(
            session.id = %sid, user.id = %applicant.person.user, desktop.id = %assigned.desktop,
            pool = %applicant.pool.name(), returning = assigned.returning, "Ticket issued"
        );
        Ok(BrokerMessage::Ticket(Box::new(answer)))
    }

    /// Offers the pools that are open to the person where they are, and returns their
    /// choice.
    async fn choose(
        &self,
        talk: &mut Talk<impl AsyncRead + Send + Unpin, impl AsyncWrite + Send + Unpin>,
        person: &Person,
        class: &NetworkClass,
    ) -> Result<Arc<Pool>, Stopped> {
        let mut open = self.catalogue.open_to(&person.user, &person.groups);
        if open.is_empty() {
            info!(user.id = %person.user, "No pool is open to this person");
            return Err(Code::NoEntitlement.into());
        }
        open.retain(|pool| pool.terms(class.as_str()).allowed);
        if open.is_empty() {
            info!(user.id = %person.user, %class, "No pool is open to this person from here");
            return Err(Code::NotAllowedHere.into());
        }
        let names: Vec<PoolName> = open.iter().map(|pool| pool.name().clone()).collect();
        let standing =
            self.assignments.store.standing(&person.user, &names).await.map_err(|error| {
                warn!(error = &error as &dyn std::error::Error, "Store not read");
                Code::Unavailable
            })?;
        let offer = |pool: &Arc<Pool>| PoolOffer {
            name: pool.name().clone(),
            label: pool.raw().label.clone(),
            state: match standing.get(pool.name()) {
                Some(standing) if standing.held => OfferState::Yours,
                Some(standing) if standing.ready => OfferState::Ready,
                Some(_) | None => OfferState::Full,
            },
        };
        let pools = open.iter().map(offer).collect();
        let display_name = person.display_name.clone();
        talk.say(&BrokerMessage::Pools { display_name, pools }).await?;
        if let [only] = &open[..] {
            return Ok(Arc::clone(only));
        }
        let AgentMessage::Choose { pool } = talk.hear(LIMIT_BEFORE, CHOICE_DEADLINE).await? else {
            return Err(Code::Malformed.into());
        };
        let chosen = open.into_iter().find(|open| *open.name() == pool);
        chosen.ok_or_else(|| Code::NoEntitlement.into())
    }
}

#[cfg(test)]
mod tests;
