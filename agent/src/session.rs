//! A session as the agent sees it: a link to a gateway, its control
//! conversation, and the stream of the desktop's bytes.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use tegata_proto::PROTOCOL_VERSION;
use tegata_proto::code::Code;
use tegata_proto::frame::{LIMIT_AFTER, LIMIT_BEFORE};
use tegata_proto::id::{GatewayId, LinkNumber};
use tegata_proto::login::{Failure, TicketAnswer};
use tegata_proto::proof::Purpose;
use tegata_proto::replay::{ACK_BYTES, Receipt};
use tegata_proto::session::{
    AgentMessage, Attach, Attached, Channel, GatewayMessage, Mode, Open, Resume, Right,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::agent::Agent;
use crate::attach::{Attempts, Next, Shown};
use crate::identity::{Identity, token_digest};
use crate::link::{
    self, Candidate, Connection, Field, Frames, LinkError, RecvStream, SendStream, Transport,
    Voice, next_of,
};
use crate::trust::Expected;

/// Length of what is said first from another network, in bytes. A gateway answers three
/// bytes for each that came from there, and asks whether the agent is there with 1,200.
const FIRST_WORD: usize = 1_000;

/// How long an attach may be silent before another is begun beside it.
pub const SILENCE: Duration = Duration::from_secs(1);

/// How long an attach may take: a redeem and the dial of a desktop.
pub const ATTACH_DEADLINE: Duration = Duration::from_secs(15);

/// How long the last bytes may take to arrive when the agent closes.
pub(crate) const FAREWELL: Duration = Duration::from_secs(1);

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
    /// What the gateway proved to be.
    pub(crate) id: GatewayId,
    /// The offset of the first byte that `recv` brings.
    pub(crate) from: u64,
    /// The number of the next link; nothing when all are used.
    pub(crate) next: Option<LinkNumber>,
    /// What the caller of [`receive`](Self::receive) has.
    receipt: Receipt,
}

/// The control conversation of a session.
#[derive(Debug)]
pub struct Control {
    pub(crate) connection: Connection,
    /// When the link was asked for.
    pub(crate) asked: Instant,
    pub(crate) say: Voice,
    pub(crate) hear: Frames,
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
pub(crate) type Answer = Result<(Box<Attached>, Control), AttachError>;

impl Agent {
    /// Takes a ticket to one of its gateways and opens the desktop's stream.
    ///
    /// Handshakes race; attaches go one at a time, and a second one beside a
    /// silent first only where there is another address, or TCP where QUIC is silent.
    ///
    /// # Errors
    ///
    /// Says why there is no session.
    pub async fn attach(
        &self,
        identity: &Identity,
        answer: &TicketAnswer,
    ) -> Result<Session, AttachError> {
        let field = Field::of(candidates(answer));
        let arrived = Instant::now();
        let mut attempts = Attempts::default();
        let mut answers = JoinSet::new();
        // When to connect next, and to whom; and which attach is being timed.
        let mut dial = Some((Instant::now(), field.clone()));
        let mut timed: Option<(LinkNumber, (Candidate, Transport), Instant)> = None;
        loop {
            let dialling = async {
                let (when, field) = dial.as_ref()?;
                sleep_until(*when).await;
                Some(self.dialler.race(field).await)
            };
            let silence = async {
                let (link, silent, since) = timed.as_ref()?;
                sleep_until(*since + SILENCE).await;
                Some((*link, silent.clone()))
            };
            tokio::select! {
                Some(connected) = dialling => {
                    dial = None;
                    match connected {
                        Ok((candidate, connection)) => {
                            let Some((shown, link)) = attempts.begin() else {
                                return Err(AttachError::Refused(Code::LinkStale.into()));
                            };
                            let asked = (candidate.clone(), connection.transport());
                            timed = Some((link, asked, Instant::now()));
                            let right = match shown {
                                Shown::Ticket => Right::Ticket(answer.ticket.clone()),
                                Shown::Grant => Right::Grant(answer.grant.clone()),
                            };
                            let attach = attach(identity, right, link, None, &connection)?;
                            answers.spawn(async move {
                                let asked = ask(connection, attach, ATTACH_DEADLINE).await;
                                (link, candidate, asked)
                            });
                        }
                        Err(_) if attempts.is_waiting() => {}
                        Err(error) => match attempts.unreached(arrived.elapsed()) {
                            Some(pause) if error.code() == Code::Unreachable => {
                                tracing::debug!(%error, "No gateway was reached");
                                dial = Some((Instant::now() + pause, field.clone()));
                            }
                            Some(_) | None => return Err(error.into()),
                        },
                    }
                }
                Some((link, candidate, answered)) = next_of(&mut answers) => {
                    let came = match answered {
                        Ok((attached, control)) if attached.mode == Mode::Fresh => {
                            let next = attempts.next_link();
                            opened(*attached, &candidate, control, 0, next).await
                        }
                        // There is nothing yet that could be resumed.
                        Ok((_, control)) => {
                            control.close();
                            return Err(AttachError::Refused(Code::Malformed.into()));
                        }
                        Err(error) => Err(error),
                    };
                    let elapsed = arrived.elapsed();
                    let next = match came {
                        Ok(session) => return Ok(session),
                        Err(AttachError::Refused(failure)) => {
                            attempts.refused(link, failure, elapsed)
                        }
                        Err(AttachError::Link(LinkError::Frame(error))) => {
                            return Err(LinkError::Frame(error).into());
                        }
                        Err(AttachError::Link(error)) => {
                            tracing::debug!(%link, %error, "An attach was not answered");
                            match attempts.unanswered(link, elapsed) {
                                Next::Stop(_) => return Err(error.into()),
                                next => next,
                            }
                        }
                    };
                    match next {
                        Next::Wait => {}
                        Next::Again(pause) => {
                            timed = None;
                            dial = Some((Instant::now() + pause, field.clone()));
                        }
                        Next::Stop(failure) => return Err(AttachError::Refused(failure)),
                    }
                }
                Some((link, (silent, transport))) = silence => {
                    timed = None;
                    let others = field.without((&silent, transport));
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
        .flat_map(|gateway| Candidate::of(gateway, gateway.addresses.iter().copied()))
        .collect();
    all.truncate(link::ADDRESSES_MAX);
    all
}

/// Returns the first frame of a link over this connection.
pub(crate) fn attach(
    identity: &Identity,
    right: Right,
    link: LinkNumber,
    resume: Option<Resume>,
    connection: &Connection,
) -> Result<AgentMessage, LinkError> {
    let purpose = match &right {
        Right::Ticket(ticket) => Purpose::Ticket(token_digest(ticket)),
        Right::Grant(grant) => Purpose::Resume(token_digest(grant)),
    };
    let proof = identity.prove(purpose, &connection.exporter()?, link);
    let (v, key) = (PROTOCOL_VERSION, identity.public_key());
    Ok(AgentMessage::Attach(Attach { v, right, key, link, proof, resume }))
}

/// Says `attach` over a connection, and waits for the answer.
pub(crate) async fn ask(
    connection: Connection,
    attach: AgentMessage,
    deadline: Duration,
) -> Answer {
    let begun = Instant::now();
    let asked = async {
        let (mut say, hear) = connection.open().await?;
        link::say(&mut say, &attach, LIMIT_BEFORE).await?;
        let mut hear = Frames::new(hear);
        let heard = hear.next::<GatewayMessage>(LIMIT_AFTER).await?;
        Ok::<_, LinkError>((say, hear, heard))
    };
    let asked = match timeout(deadline, asked).await {
        Ok(asked) => asked,
        Err(_) => Err(LinkError::Silent),
    };
    let answer = match asked {
        Ok((say, hear, GatewayMessage::Attached(attached))) => {
            let (say, asked) = (Voice::new(say), begun);
            return Ok((attached, Control { connection, asked, say, hear }));
        }
        Ok((_, _, GatewayMessage::Error(failure))) => Err(AttachError::Refused(failure)),
        Ok((
            _,
            _,
            GatewayMessage::Ack { .. }
            | GatewayMessage::Notice { .. }
            | GatewayMessage::Grant { .. }
            | GatewayMessage::Policy { .. }
            | GatewayMessage::End { .. }
            | GatewayMessage::Unsupported,
        )) => Err(AttachError::Refused(Code::Malformed.into())),
        Err(error) => Err(AttachError::Link(error)),
    };
    connection.close();
    answer
}

/// Opens the desktop's stream of an attached link.
pub(crate) async fn opened(
    attached: Attached,
    candidate: &Candidate,
    control: Control,
    from: u64,
    next: Option<LinkNumber>,
) -> Result<Session, AttachError> {
    let (mut send, recv) = control.connection.open().await?;
    link::say(&mut send, &Open { channel: Channel::Rdp }, LIMIT_BEFORE).await?;
    let (gateway, receipt) = (candidate.address, Receipt::default());
    let Expected::Gateway { id, .. } = &candidate.expected else {
        return Err(AttachError::Refused(Code::TlsFailed.into()));
    };
    let id = id.clone();
    Ok(Session { attached, gateway, send, recv, control, id, from, next, receipt })
}

impl Session {
    /// Returns what the desktop sends next, at most `limit` bytes, and nothing at its
    /// end. The gateway is told now and then that the caller has what was returned,
    /// as it keeps the rest. Only for callers that never come back over another link.
    ///
    /// # Errors
    ///
    /// The link is lost, or the gateway dropped the stream.
    pub async fn receive(&mut self, limit: usize) -> Result<Option<Bytes>, LinkError> {
        if self.receipt.owed() >= ACK_BYTES && self.control.say.is_idle() {
            self.control.acknowledge(self.receipt.say())?;
        }
        self.control.say.flush().await?;
        let Some(bytes) = self.recv.read(limit).await? else { return Ok(None) };
        self.receipt.wrote(bytes.len() as u64);
        Ok(Some(bytes))
    }

    /// Ends the session from this side: says why, waits a bounded while until
    /// the gateway has all that was sent, and closes the connection.
    pub async fn bye(self, code: Code) {
        let Self { mut send, mut control, .. } = self;
        send.finish();
        let told = async {
            control.bye(code).await;
            send.arrived().await;
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

    /// Begins to say how many of the desktop's bytes were written onward.
    pub(crate) fn acknowledge(&mut self, received: u64) -> Result<(), LinkError> {
        self.say.begin(&AgentMessage::Ack { channel: Channel::Rdp, received })
    }

    /// Begins to say the same at [`FIRST_WORD`] bytes, on a new way to the gateway.
    pub(crate) fn acknowledge_from_elsewhere(&mut self, received: u64) -> Result<(), LinkError> {
        let ack = AgentMessage::Ack { channel: Channel::Rdp, received };
        self.say.begin_padded(&ack, FIRST_WORD)
    }

    /// Says why the agent closes, and waits until the gateway has it.
    ///
    /// The caller bounds the wait.
    pub async fn bye(&mut self, code: Code) {
        let told = async {
            self.say.flush().await?;
            self.say.begin(&AgentMessage::Bye { code })?;
            self.say.flush().await
        };
        if told.await.is_ok() {
            self.say.finish().await;
        }
    }

    /// Closes the connection at once.
    pub fn close(&self) {
        self.connection.close();
    }
}
