//! A session as the agent sees it: a link to a gateway, its control
//! conversation, and the stream of the desktop's bytes.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use tegata_proto::PROTOCOL_VERSION;
use tegata_proto::code::Code;
use tegata_proto::encoding::Secret;
use tegata_proto::frame::{LIMIT_AFTER, LIMIT_BEFORE};
use tegata_proto::id::LinkNumber;
use tegata_proto::login::{Failure, TicketAnswer};
use tegata_proto::proof::Purpose;
use tegata_proto::session::{
    AgentMessage, Attach, Attached, Channel, GatewayMessage, Mode, Open, Right,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::agent::Agent;
use crate::attach::{Attempts, Next, Shown};
use crate::identity::{Identity, token_digest};
use crate::link::{self, Candidate, Frames, LinkError};
use crate::trust::Expected;

/// How long an attach may be silent before another is begun beside it.
pub const SILENCE: Duration = Duration::from_secs(1);

/// How long an attach may take: a redeem and the dial of a desktop.
pub const ATTACH_DEADLINE: Duration = Duration::from_secs(15);

/// How long the last bytes may take to arrive when the agent closes.
const FAREWELL: Duration = Duration::from_secs(1);

/// A live session.
#[derive(Debug)]
pub struct Session {
    /// What the gateway answered.
    pub attached: Attached,
    /// Where the gateway is.
    pub gateway: SocketAddr,
    /// Carries bytes to the desktop.
    pub send: SendStream,
    /// Carries bytes from the desktop.
    pub recv: RecvStream,
    /// The conversation with the gateway.
    pub control: Control,
}

/// The control conversation of a session.
#[derive(Debug)]
pub struct Control {
    connection: Connection,
    say: SendStream,
    hear: Frames,
}

/// Why no session came of a ticket.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No gateway was reached or believed, or all were lost.
    #[error("no link to a gateway")]
    Link(#[source] LinkError),
    /// A gateway said so.
    #[error("the gateway answered {}", .0.code)]
    Refused(Failure),
}

impl From<LinkError> for AttachError {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

impl AttachError {
    /// Returns the failure that the run ends with.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Link(error) => error.code().into(),
            Self::Refused(failure) => *failure,
        }
    }

    /// Returns the code that the run ends with.
    pub fn code(&self) -> Code {
        self.failure().code
    }
}

/// What came of one attach.
enum Answer {
    Attached(Box<Attached>, Control),
    Refused(Failure),
    Unanswered(LinkError),
}

impl Agent {
    /// Takes a ticket to one of its gateways and opens the desktop's stream.
    ///
    /// Handshakes race; attaches go one at a time, and a second one beside a
    /// silent first only where there is another address.
    ///
    /// # Errors
    ///
    /// Says why there is no session.
    pub async fn attach(
        &self,
        identity: &Identity,
        answer: &TicketAnswer,
    ) -> Result<Session, AttachError> {
        let candidates = candidates(answer);
        let arrived = Instant::now();
        let mut attempts = Attempts::default();
        let mut answers = JoinSet::new();
        // When to connect next, and to whom; and which attach is being timed.
        let mut dial = Some((Instant::now(), candidates.clone()));
        let mut timed: Option<(LinkNumber, SocketAddr, Instant)> = None;
        loop {
            let dialling = async {
                let (when, candidates) = dial.as_ref()?;
                sleep_until(*when).await;
                Some(link::race(&self.endpoint, &self.authority, &self.transport, candidates).await)
            };
            let silence = async {
                let (link, address, since) = timed?;
                sleep_until(since + SILENCE).await;
                Some((link, address))
            };
            tokio::select! {
                Some(connected) = dialling => {
                    dial = None;
                    match connected {
                        Ok((candidate, connection)) => {
                            let Some((shown, link)) = attempts.begin() else {
                                return Err(AttachError::Refused(Code::LinkStale.into()));
                            };
                            timed = Some((link, candidate.address, Instant::now()));
                            let wish = wish(identity, answer, shown, link, &connection)?;
                            answers.spawn(async move {
                                let asked = ask(connection, &wish).await;
                                (link, candidate.address, asked)
                            });
                        }
                        Err(_) if attempts.is_waiting() => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Some(joined) = answers.join_next() => {
                    let (link, address, answered) = match joined {
                        Ok(joined) => joined,
                        Err(error) => std::panic::resume_unwind(error.into_panic()),
                    };
                    let elapsed = arrived.elapsed();
                    let next = match answered {
                        Answer::Attached(attached, control) => {
                            return opened(*attached, address, control).await;
                        }
                        Answer::Refused(failure) => attempts.refused(link, failure, elapsed),
                        Answer::Unanswered(LinkError::Frame(error)) => {
                            return Err(LinkError::Frame(error).into());
                        }
                        Answer::Unanswered(error) => {
                            tracing::debug!(%link, %error, "An attach was not answered");
                            attempts.unanswered(link, elapsed)
                        }
                    };
                    match next {
                        Next::Wait => {}
                        Next::Again(pause) => {
                            timed = None;
                            dial = Some((Instant::now() + pause, candidates.clone()));
                        }
                        Next::Stop(failure) => return Err(AttachError::Refused(failure)),
                    }
                }
                Some((link, silent)) = silence => {
                    timed = None;
                    let others: Vec<_> =
                        candidates.iter().filter(|other| other.address != silent).cloned().collect();
                    if attempts.fell_silent(link) && !others.is_empty() {
                        dial = Some((Instant::now(), others));
                    }
                }
            }
        }
    }
}

/// Returns every address of every gateway, the gateways in the broker's order.
fn candidates(answer: &TicketAnswer) -> Vec<Candidate> {
    let mut all: Vec<_> = answer
        .gateways
        .iter()
        .flat_map(|gateway| {
            let id = gateway.id.clone();
            let expected = Expected::Gateway { id, spki_sha256: gateway.spki_sha256 };
            link::interleave(gateway.addresses.iter().copied())
                .into_iter()
                .map(move |address| Candidate { address, expected: expected.clone() })
        })
        .collect();
    all.truncate(link::ADDRESSES_MAX);
    all
}

fn wish(
    identity: &Identity,
    answer: &TicketAnswer,
    shown: Shown,
    link: LinkNumber,
    connection: &Connection,
) -> Result<AgentMessage, LinkError> {
    let (right, purpose) = match shown {
        Shown::Ticket => {
            let ticket: Secret = answer.ticket.clone();
            let purpose = Purpose::Ticket(token_digest(&ticket));
            (Right::Ticket(ticket), purpose)
        }
        Shown::Grant => {
            let grant: Secret = answer.grant.clone();
            let purpose = Purpose::Resume(token_digest(&grant));
            (Right::Grant(grant), purpose)
        }
    };
    let proof = identity.prove(purpose, &link::exporter(connection)?, link);
    Ok(AgentMessage::Attach(Attach {
        v: PROTOCOL_VERSION,
        right,
        key: identity.public_key(),
        link,
        proof,
        resume: None,
    }))
}

async fn ask(connection: Connection, wish: &AgentMessage) -> Answer {
    let asked = async {
        let (mut say, hear) = connection.open_bi().await.map_err(LinkError::Lost)?;
        link::say(&mut say, wish, LIMIT_BEFORE).await?;
        let mut hear = Frames::new(hear);
        let heard = hear.next::<GatewayMessage>(LIMIT_AFTER).await?;
        Ok::<_, LinkError>((say, hear, heard))
    };
    let asked = match timeout(ATTACH_DEADLINE, asked).await {
        Ok(asked) => asked,
        Err(_) => Err(LinkError::Silent),
    };
    let malformed = Answer::Refused(Code::Malformed.into());
    let answer = match asked {
        Ok((say, hear, GatewayMessage::Attached(attached))) => {
            // No link of this agent has anything to resume yet.
            if attached.mode == Mode::Fresh {
                let control = Control { connection: connection.clone(), say, hear };
                return Answer::Attached(attached, control);
            }
            malformed
        }
        Ok((_, _, GatewayMessage::Error(failure))) => Answer::Refused(failure),
        Ok((
            _,
            _,
            GatewayMessage::Ack { .. }
            | GatewayMessage::Notice { .. }
            | GatewayMessage::Grant { .. }
            | GatewayMessage::Policy { .. }
            | GatewayMessage::End { .. }
            | GatewayMessage::Unsupported,
        )) => malformed,
        Err(error) => Answer::Unanswered(error),
    };
    link::close(&connection);
    answer
}

async fn opened(
    attached: Attached,
    gateway: SocketAddr,
    control: Control,
) -> Result<Session, AttachError> {
    let (mut send, recv) = control.connection.open_bi().await.map_err(LinkError::Lost)?;
    link::say(&mut send, &Open { channel: Channel::Rdp }, LIMIT_BEFORE).await?;
    Ok(Session { attached, gateway, send, recv, control })
}

impl Session {
    /// Ends the session from this side: says why, waits a bounded while until
    /// the gateway has all that was sent, and closes the connection.
    pub async fn bye(self, code: Code) {
        let Self { mut send, mut control, .. } = self;
        let _ = send.finish();
        let arrived = send.stopped();
        let told = async {
            control.bye(code).await;
            let _ = arrived.await;
        };
        let _ = timeout(FAREWELL, pin!(told)).await;
        control.close();
    }
}

impl Control {
    /// Returns the gateway's next message. Loses nothing when it is dropped
    /// half-way.
    ///
    /// # Errors
    ///
    /// The link is lost, or the gateway said what is not a message.
    pub async fn next(&mut self) -> Result<GatewayMessage, LinkError> {
        self.hear.next(LIMIT_AFTER).await
    }

    /// Says why the agent closes, and waits until the gateway has it.
    ///
    /// The caller bounds the wait.
    pub async fn bye(&mut self, code: Code) {
        if link::say(&mut self.say, &AgentMessage::Bye { code }, LIMIT_AFTER).await.is_ok() {
            let _ = self.say.finish();
            let _ = self.say.stopped().await;
        }
    }

    /// Closes the connection at once.
    pub fn close(&self) {
        link::close(&self.connection);
    }
}
