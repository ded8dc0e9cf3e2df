//! The agent as something that connects: one endpoint, one authority, any
//! number of logins and sessions.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use quinn::Endpoint;
use tegata_proto::PROTOCOL_VERSION;
use tegata_proto::code::Code;
use tegata_proto::frame::{LIMIT_AFTER, LIMIT_BEFORE};
use tegata_proto::id::LinkNumber;
use tegata_proto::login::{AgentMessage, BrokerMessage, Failure, Hello, TicketAnswer, Welcome};
use tegata_proto::proof::Purpose;
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use crate::identity::Identity;
use crate::link::{self, Candidate, Connection, Dialler, Field, Frames, LinkError, SendStream};
use crate::login::{Login, LoginRefused, Step, VERSION, Wishes};
use crate::progress::{Event, Person};
use crate::trust::{Authority, Expected};

/// How long a broker may take to say `welcome`. It waits for no `hello` that is later than
/// five seconds.
const WELCOME_DEADLINE: Duration = Duration::from_secs(6);

/// How often a login is begun that ends before `welcome`, and how often one whose ticket does
/// not arrive. A broker closes what a bad line delivers too late; before `welcome` nothing of
/// the person's was said yet, and before the ticket the password was found right.
const BEGINNINGS_MAX: u32 = 3;

/// Pause before a login is begun again.
const PAUSE: Duration = Duration::from_millis(250);

/// How long a broker may say nothing while it looks for a desktop; longer than a
/// pool's queue and the start of a machine take.
const PATIENCE: Duration = Duration::from_mins(10);

/// How long the system may take to look a name up.
pub(crate) const LOOKUP_DEADLINE: Duration = Duration::from_secs(10);

/// Makes connections for any number of runs.
#[derive(Debug, Clone)]
pub struct Agent {
    pub(crate) dialler: Dialler,
    locale: String,
}

/// Why a login came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The broker was not reached, not believed or lost.
    #[error("no login with the broker")]
    Link(#[source] LinkError),
    /// The conversation ended without a ticket.
    #[error("the login was refused")]
    Refused(#[source] LoginRefused),
}

impl From<LinkError> for LoginError {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

impl From<LoginRefused> for LoginError {
    fn from(refused: LoginRefused) -> Self {
        Self::Refused(refused)
    }
}

impl LoginError {
    /// Returns the failure that the run ends with.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Link(error) => error.code().into(),
            Self::Refused(LoginRefused::Said(failure)) => *failure,
            Self::Refused(refused) => refused.code().into(),
        }
    }

    /// Returns the code that the run ends with.
    pub fn code(&self) -> Code {
        self.failure().code
    }
}

impl Agent {
    /// Takes a socket of its own.
    ///
    /// # Errors
    ///
    /// Fails when the system gives no socket.
    pub fn new(authority: Authority) -> io::Result<Self> {
        Ok(Self::over(link::endpoint()?, authority))
    }

    /// Uses an endpoint that is already there.
    pub fn over(endpoint: Endpoint, authority: Authority) -> Self {
        Self { dialler: Dialler::new(endpoint, authority), locale: "en".into() }
    }

    /// Names the person's language to brokers, as BCP 47.
    pub fn with_locale(self, locale: impl Into<String>) -> Self {
        Self { locale: locale.into(), ..self }
    }

    /// Logs in with a broker at one of these addresses and returns its answer.
    ///
    /// # Errors
    ///
    /// Says why there is no ticket.
    pub async fn login<P: Person>(
        &self,
        servers: &[SocketAddr],
        identity: &Identity,
        wishes: &Wishes,
        person: &mut P,
    ) -> Result<TicketAnswer, LoginError> {
        let candidates: Vec<_> = link::interleave(servers.iter().copied())
            .into_iter()
            .map(|address| Candidate { address, expected: Expected::Broker })
            .collect();
        let field = Field::of(candidates);
        let (mut wishes, mut beginnings) = (wishes.clone(), 1);
        loop {
            let (connection, conversation) = self.begin(&field, identity, person).await?;
            let (mut login, since) = (Login::new(&wishes), Instant::now());
            let outcome = conversation.carry_on(&mut login, person).await;
            connection.close();
            let again = match &outcome {
                // Whoever has waited for as long as that waits in vain.
                Err(LoginError::Link(lost)) if is_lost(lost) && since.elapsed() < PATIENCE => {
                    login.again().filter(|_| beginnings < BEGINNINGS_MAX)
                }
                Ok(_) | Err(_) => None,
            };
            let Some(same) = again else { return outcome };
            info!("Login begun again, its ticket did not arrive");
            (wishes, beginnings) = (same, beginnings + 1);
            sleep(PAUSE).await;
        }
    }

    /// Begins a login, again while a broker that lets itself be reached is lost before its
    /// first word.
    async fn begin<P: Person>(
        &self,
        field: &Field,
        identity: &Identity,
        person: &mut P,
    ) -> Result<(Connection, Conversation), LinkError> {
        let mut beginnings = 1;
        loop {
            let (broker, connection) = self.dialler.race(field).await?;
            let transport = connection.transport();
            person.tell(&Event::Connected { address: broker.address, transport });
            let lost = match self.hello(&connection, identity).await {
                Ok(conversation) => return Ok((connection, conversation)),
                Err(lost) => lost,
            };
            connection.close();
            if !is_lost(&lost) || beginnings == BEGINNINGS_MAX {
                return Err(lost);
            }
            info!(error = &lost as &dyn std::error::Error, "Login begun again");
            beginnings += 1;
            sleep(PAUSE).await;
        }
    }

    /// Waits until the peers have been told that their connections are closed.
    pub async fn farewell(&self) {
        self.dialler.wait_idle().await;
    }

    /// Says hello to a broker, and returns its welcome; the login goes no further.
    pub(crate) async fn greet(
        &self,
        connection: &Connection,
        identity: &Identity,
    ) -> Result<Welcome, LoginError> {
        match self.hello(connection, identity).await?.first {
            BrokerMessage::Welcome(welcome) => Ok(welcome),
            BrokerMessage::Error(failure) => Err(LoginRefused::Said(failure).into()),
            BrokerMessage::Queued { .. }
            | BrokerMessage::Pools { .. }
            | BrokerMessage::Progress { .. }
            | BrokerMessage::Ticket(_)
            | BrokerMessage::Unsupported => {
                Err(LoginRefused::OutOfOrder { message: "something else" }.into())
            }
        }
    }

    /// Opens the conversation, and waits for the broker's first word.
    async fn hello(
        &self,
        connection: &Connection,
        identity: &Identity,
    ) -> Result<Conversation, LinkError> {
        let (mut say, hear) = connection.open().await?;
        let exporter = connection.exporter()?;
        let hello = AgentMessage::Hello(Hello {
            v: PROTOCOL_VERSION,
            agent_version: VERSION.into(),
            locale: self.locale.clone(),
            device_id: None,
            key: identity.public_key(),
            proof: identity.prove(Purpose::Login, &exporter, LinkNumber::LOGIN),
        });
        link::say(&mut say, &hello, LIMIT_BEFORE).await?;
        let mut hear = Frames::new(hear);
        let first = timeout(WELCOME_DEADLINE, hear.next(LIMIT_BEFORE)).await;
        Ok(Conversation { say, hear, first: first.map_err(|_| LinkError::Silent)?? })
    }
}

/// Tells whether a broker that was reached is so no more.
fn is_lost(error: &LinkError) -> bool {
    matches!(error, LinkError::Lost(_) | LinkError::Silent)
}

/// A login's stream, after the broker's first word.
struct Conversation {
    say: SendStream,
    hear: Frames,
    first: BrokerMessage,
}

impl Conversation {
    /// Goes through the login up to the ticket.
    async fn carry_on<P: Person>(
        self,
        login: &mut Login<'_>,
        person: &mut P,
    ) -> Result<TicketAnswer, LoginError> {
        let Self { mut say, mut hear, first: mut message } = self;
        loop {
            for step in login.heard(message)? {
                match step {
                    Step::Say(message) => link::say(&mut say, &message, LIMIT_BEFORE).await?,
                    Step::Tell(event) => person.tell(&event),
                    Step::Ask(pools) => {
                        let chosen = tokio::select! {
                            chosen = person.choose(&pools) => chosen,
                            // Before the choice a broker says nothing but why it ends.
                            said = hear.next::<BrokerMessage>(LIMIT_AFTER) => {
                                login.heard(said?)?;
                                None
                            }
                        };
                        let choice = login.chosen(chosen)?;
                        link::say(&mut say, &choice, LIMIT_BEFORE).await?;
                    }
                    Step::Done(answer) => return Ok(*answer),
                }
            }
            let next = timeout(PATIENCE, hear.next(LIMIT_AFTER)).await;
            message = next.map_err(|_| LinkError::Silent)??;
        }
    }
}
