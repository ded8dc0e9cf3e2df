//! The agent's side of a login: a message in, steps out.
//!
//! Decides what to say, what to tell the person and when the login is over.
//! Never connects, waits or prompts; [`crate::agent`] carries the steps out. The
//! conversation is written down in [`tegata_proto::login`].

use tegata_proto::PROTOCOL_VERSION;
use tegata_proto::code::Code;
use tegata_proto::encoding::Secret;
use tegata_proto::id::{PoolName, RealmName};
use tegata_proto::login::{
    AgentMessage, BrokerMessage, Failure, LOGIN_NAME_MAX, Method, PASSWORD_MAX, Password, Phase,
    PoolOffer, TicketAnswer, Transaction, Welcome,
};

use crate::progress::Event;

/// Version of this agent, as it says it in `hello`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Most pools that a broker may offer.
const POOLS_MAX: usize = 256;

/// Most gateways, and most addresses of one, that a ticket may name.
const GATEWAYS_MAX: usize = 16;

/// Who wants to log in, and to which pool.
///
/// INVARIANT: neither name nor password is empty or longer than a broker takes.
#[derive(Debug, Clone)]
pub struct Wishes {
    name: String,
    password: Secret,
    realm: Option<RealmName>,
    pool: Option<PoolName>,
}

/// Why a name and a password are not worth a try; an empty password is never
/// sent anywhere (RFC 4513 §5.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {what} is empty or too long")]
pub struct UnusableCredentials {
    /// `name` or `password`.
    pub what: &'static str,
}

impl Wishes {
    /// Takes a name and a password.
    ///
    /// # Errors
    ///
    /// Refuses an empty or overlong one of either.
    pub fn new(name: impl Into<String>, password: Secret) -> Result<Self, UnusableCredentials> {
        let name = name.into();
        if name.is_empty() || name.len() > LOGIN_NAME_MAX {
            return Err(UnusableCredentials { what: "name" });
        }
        let length = password.expose().len();
        if length == 0 || length > PASSWORD_MAX {
            return Err(UnusableCredentials { what: "password" });
        }
        Ok(Self { name, password, realm: None, pool: None })
    }

    /// Names the realm, where the broker serves several.
    pub fn with_realm(self, realm: Option<RealmName>) -> Self {
        Self { realm, ..self }
    }

    /// Names the pool, where several are open.
    pub fn with_pool(self, pool: Option<PoolName>) -> Self {
        Self { pool, ..self }
    }

    /// Returns the password, for the viewer.
    pub fn password(&self) -> &Secret {
        &self.password
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send this.
    Say(AgentMessage),
    /// Tell the person.
    Tell(Event),
    /// Let the person choose, and come back with [`Login::chosen`].
    Ask(Vec<PoolOffer>),
    /// The login is over, and good.
    Done(Box<TicketAnswer>),
}

/// Why a login came to nothing, as far as the conversation knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginRefused {
    /// The broker said so.
    #[error("the broker answered {}", .0.code)]
    Said(Failure),
    /// The broker speaks another version of the conversation.
    #[error("the broker speaks version {v} of the login")]
    OtherVersion {
        /// Its version.
        v: u16,
    },
    /// The broker wants a newer agent.
    #[error("the broker wants an agent of version {minimum}, this is {VERSION}")]
    TooOld {
        /// The oldest that it accepts.
        minimum: String,
    },
    /// The broker takes no password.
    #[error("the broker takes no password")]
    NoPassword,
    /// The realm has to be named, or named otherwise.
    #[error("the broker serves the realms {}", list(.realms))]
    Realm {
        /// Those there are.
        realms: Vec<RealmName>,
    },
    /// The pool wished for is not open to the person.
    #[error("pool {pool} is not among those open: {}", list(.open))]
    NotOpen {
        /// The wish.
        pool: PoolName,
        /// Those that are.
        open: Vec<PoolName>,
    },
    /// Several pools are open, and nobody there to choose.
    #[error("several pools are open, name one of {}", list(.open))]
    Undecided {
        /// Those there are.
        open: Vec<PoolName>,
    },
    /// The broker said what cannot be said at this point.
    #[error("the broker sent {message} out of order")]
    OutOfOrder {
        /// The type of the frame.
        message: &'static str,
    },
    /// The broker's answer is incomplete.
    #[error("the broker's {message} is incomplete")]
    Incomplete {
        /// The type of the frame.
        message: &'static str,
    },
}

fn list<T: ToString>(names: &[T]) -> String {
    names.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

impl LoginRefused {
    /// Returns the code that the run ends with.
    pub fn code(&self) -> Code {
        match self {
            Self::Said(failure) => failure.code,
            Self::OtherVersion { .. } | Self::NoPassword => Code::Unsupported,
            Self::TooOld { .. } => Code::AgentTooOld,
            Self::Realm { .. } | Self::Undecided { .. } => Code::Configuration,
            Self::NotOpen { .. } => Code::NoEntitlement,
            Self::OutOfOrder { .. } | Self::Incomplete { .. } => Code::Malformed,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// `hello` is said.
    Greeting,
    /// `password` is said.
    Identifying,
    /// Several pools are open.
    Choosing { open: Vec<PoolName> },
    /// The broker looks for a desktop.
    Assigning,
    /// `ticket` came, or something went wrong.
    Over,
}

/// One login, from `hello` to `ticket`.
#[derive(Debug)]
pub struct Login<'a> {
    wishes: &'a Wishes,
    state: State,
    chosen: Option<PoolName>,
}

impl<'a> Login<'a> {
    /// Starts where `hello` has been said.
    pub fn new(wishes: &'a Wishes) -> Self {
        Self { wishes, state: State::Greeting, chosen: None }
    }

    /// Returns the same wishes with the pool that was chosen, where the broker has said that
    /// the password is right and only the ticket has not come: what is lost then may be
    /// begun again.
    pub(crate) fn again(&self) -> Option<Wishes> {
        (self.state == State::Assigning).then(|| {
            let pool = self.chosen.as_ref().or(self.wishes.pool.as_ref());
            self.wishes.clone().with_pool(pool.cloned())
        })
    }

    /// Moves on by one message of the broker.
    ///
    /// # Errors
    ///
    /// The login came to nothing; every later message is out of order.
    pub fn heard(&mut self, message: BrokerMessage) -> Result<Vec<Step>, LoginRefused> {
        let state = std::mem::replace(&mut self.state, State::Over);
        let out_of_order = |message| Err(LoginRefused::OutOfOrder { message });
        match (state, message) {
            (State::Over, message) => out_of_order(name(&message)),
            (_, BrokerMessage::Error(failure)) if failure.code.exit() == 0 => {
                // Only a session can end well.
                out_of_order("error")
            }
            (_, BrokerMessage::Error(failure)) => Err(LoginRefused::Said(failure)),
            (State::Greeting, BrokerMessage::Welcome(welcome)) => self.welcomed(&welcome),
            (State::Identifying, BrokerMessage::Pools { display_name, pools }) => {
                self.offered(display_name, pools)
            }
            (
                state @ (State::Identifying | State::Assigning),
                BrokerMessage::Queued { place, expected_ms },
            ) => {
                self.state = state;
                Ok(vec![Step::Tell(Event::Queued { place, expected_ms })])
            }
            (State::Assigning, BrokerMessage::Progress { phase, expected_ms }) => {
                self.state = State::Assigning;
                Ok(match phase {
                    Phase::Starting => vec![Step::Tell(Event::Starting { expected_ms })],
                    Phase::Assigned => vec![Step::Tell(Event::Assigned)],
                    // A step of a newer broker; the ticket will come all the same.
                    Phase::Unknown => vec![],
                })
            }
            (State::Assigning, BrokerMessage::Ticket(answer)) => admitted(answer),
            (
                State::Greeting | State::Identifying | State::Choosing { .. } | State::Assigning,
                message @ (BrokerMessage::Welcome(_)
                | BrokerMessage::Queued { .. }
                | BrokerMessage::Pools { .. }
                | BrokerMessage::Progress { .. }
                | BrokerMessage::Ticket(_)
                | BrokerMessage::Unsupported),
            ) => out_of_order(name(&message)),
        }
    }

    /// Moves on by the person's choice; `None` means that nobody chose.
    ///
    /// # Errors
    ///
    /// Refuses a pool that was not offered.
    pub fn chosen(&mut self, pool: Option<PoolName>) -> Result<AgentMessage, LoginRefused> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Choosing { open } => {
                let Some(pool) = pool else { return Err(LoginRefused::Undecided { open }) };
                if !open.contains(&pool) {
                    return Err(LoginRefused::NotOpen { pool, open });
                }
                self.state = State::Assigning;
                self.chosen = Some(pool.clone());
                Ok(AgentMessage::Choose { pool })
            }
            State::Greeting | State::Identifying | State::Assigning | State::Over => {
                Err(LoginRefused::OutOfOrder { message: "choose" })
            }
        }
    }

    fn welcomed(&mut self, welcome: &Welcome) -> Result<Vec<Step>, LoginRefused> {
        judge(welcome)?;
        let realm = match &self.wishes.realm {
            Some(realm) if welcome.realms.contains(realm) => Some(realm.clone()),
            None if welcome.realms.len() == 1 => None,
            Some(_) | None => return Err(LoginRefused::Realm { realms: welcome.realms.clone() }),
        };
        self.state = State::Identifying;
        Ok(vec![Step::Say(self.password_message(welcome.txn, realm))])
    }

    fn password_message(&self, txn: Transaction, realm: Option<RealmName>) -> AgentMessage {
        AgentMessage::Password(Password {
            txn,
            realm,
            name: self.wishes.name.clone(),
            password: self.wishes.password.clone(),
        })
    }

    fn offered(
        &mut self,
        display_name: String,
        pools: Vec<PoolOffer>,
    ) -> Result<Vec<Step>, LoginRefused> {
        if pools.is_empty() || pools.len() > POOLS_MAX {
            return Err(LoginRefused::Incomplete { message: "pools" });
        }
        let open: Vec<PoolName> = pools.iter().map(|offer| offer.name.clone()).collect();
        let mut steps = vec![Step::Tell(Event::Authenticated { display_name })];
        match (&self.wishes.pool, open.len()) {
            (Some(pool), _) if !open.contains(pool) => {
                return Err(LoginRefused::NotOpen { pool: pool.clone(), open });
            }
            (_, 1) => self.state = State::Assigning,
            (Some(pool), _) => {
                steps.push(Step::Say(AgentMessage::Choose { pool: pool.clone() }));
                self.state = State::Assigning;
            }
            (None, _) => {
                steps.push(Step::Ask(pools));
                self.state = State::Choosing { open };
            }
        }
        Ok(steps)
    }
}

/// Decides whether a broker and this agent go together.
///
/// # Errors
///
/// Says why they do not.
pub(crate) fn judge(welcome: &Welcome) -> Result<(), LoginRefused> {
    if welcome.v != PROTOCOL_VERSION {
        return Err(LoginRefused::OtherVersion { v: welcome.v });
    }
    let (Some(minimum), Some(own)) = (version(&welcome.minimum_agent), version(VERSION)) else {
        return Err(LoginRefused::Incomplete { message: "welcome" });
    };
    if own < minimum {
        return Err(LoginRefused::TooOld { minimum: welcome.minimum_agent.clone() });
    }
    if welcome.methods.contains(&Method::Password) { Ok(()) } else { Err(LoginRefused::NoPassword) }
}

fn admitted(answer: Box<TicketAnswer>) -> Result<Vec<Step>, LoginRefused> {
    let fits = |count: usize| (1..=GATEWAYS_MAX).contains(&count);
    let complete = fits(answer.gateways.len())
        && answer.gateways.iter().all(|gateway| fits(gateway.addresses.len()));
    if !complete {
        return Err(LoginRefused::Incomplete { message: "ticket" });
    }
    let ticket = Event::Ticket { desktop: answer.desktop.name.clone() };
    Ok(vec![Step::Tell(ticket), Step::Done(answer)])
}

fn name(message: &BrokerMessage) -> &'static str {
    match message {
        BrokerMessage::Welcome(_) => "welcome",
        BrokerMessage::Queued { .. } => "queued",
        BrokerMessage::Pools { .. } => "pools",
        BrokerMessage::Progress { .. } => "progress",
        BrokerMessage::Ticket(_) => "ticket",
        BrokerMessage::Error(_) => "error",
        BrokerMessage::Unsupported => "a frame of unknown type",
    }
}

/// Reads `1.2.3`; what follows a `-` or `+` does not count.
fn version(text: &str) -> Option<[u32; 3]> {
    let text = text.split(['-', '+']).next()?;
    let mut parts = text.split('.').map(|part| part.parse().ok());
    let version = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests;
