//! One run: login, session, viewer, and the code that it ends with.

use std::time::Duration;

use tegata_proto::code::Code;
use tegata_proto::login::{Failure, TicketAnswer};
use tegata_proto::session::GatewayMessage;
use tokio::net::lookup_host;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, LoginError};
use crate::arguments::Server;
use crate::identity::{Identity, NoKey};
use crate::login::Wishes;
use crate::progress::{Event, Person};
use crate::relay::{DesktopStream, End};
use crate::session::{AttachError, Control, Session};
use crate::viewer::{Scene, Shown, Stage, Viewer, ViewerError};

/// How long the system may take to look a name up.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(10);

/// How long a viewer may take to say what its desktop's end meant.
const LAST_WORD: Duration = Duration::from_secs(5);

/// How long a gateway may take to say why a desktop's bytes ended.
const CAUSE_WAIT: Duration = Duration::from_secs(1);

/// How long the peers may take to hear that their connections are closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a run is to do.
#[derive(Debug)]
pub struct Run {
    /// Where the broker is.
    pub server: Server,
    /// What shows the desktop.
    pub viewer: Viewer,
    /// Who logs in.
    pub wishes: Wishes,
}

/// Why there was no session.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The server's name is not known.
    #[error("{server} cannot be looked up")]
    Lookup {
        /// The name.
        server: Server,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No key could be made.
    #[error(transparent)]
    Key(#[from] NoKey),
    /// The viewer cannot show the desktop.
    #[error("the viewer cannot be used")]
    Viewer(#[from] ViewerError),
    /// There is no ticket.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// There is no session.
    #[error("no session came of the ticket")]
    Attach(#[from] AttachError),
}

impl RunError {
    /// Returns the failure that the run ends with.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Lookup { .. } => Code::Unreachable.into(),
            Self::Key(NoKey) => Code::Internal.into(),
            Self::Viewer(error) => error.code().into(),
            Self::Login(error) => error.failure(),
            Self::Attach(error) => error.failure(),
        }
    }

    fn event(&self) -> Event {
        let Failure { code, retry_after_ms } = self.failure();
        let clock_suspect = match self {
            Self::Login(LoginError::Link(error)) | Self::Attach(AttachError::Link(error)) => {
                error.is_clock_suspect()
            }
            Self::Lookup { .. }
            | Self::Key(_)
            | Self::Viewer(_)
            | Self::Login(LoginError::Refused(_))
            | Self::Attach(AttachError::Refused(_)) => false,
        };
        Event::Error { code, retry_after_ms, clock_suspect, detail: Some(story(self)) }
    }
}

/// Writes an error and everything under it as one line.
fn story(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

impl Run {
    /// Logs in, shows the desktop, and returns the code of the end, which has
    /// been told as the last event. `stop` ends the run from outside.
    pub async fn carry_out<P: Person>(
        self,
        agent: &Agent,
        person: &mut P,
        stop: &CancellationToken,
    ) -> Code {
        let (code, last) = match self.finish(agent, person, stop).await {
            Ok(code) => (code, closing(code)),
            Err(error) => (error.failure().code, error.event()),
        };
        person.tell(&last);
        let _ = timeout(FAREWELL, agent.farewell()).await;
        code
    }

    async fn finish<P: Person>(
        self,
        agent: &Agent,
        person: &mut P,
        stop: &CancellationToken,
    ) -> Result<Code, RunError> {
        let Self { server, viewer, wishes } = self;
        let stage = Stage::open(&viewer).await?;
        let reached = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Code::Disconnected),
            reached = reach(&server, agent, &stage, &wishes, person) => reached?,
        };
        let (session, scene) = reached;
        // From here on the password is the viewer's alone.
        drop(wishes);
        person.tell(&Event::Attached {
            session: session.attached.sid,
            gateway: session.attached.gateway.id.clone(),
            address: session.gateway,
            link: session.attached.link,
            forward: stage.forward(),
        });
        work(session, stage, scene, person, stop).await
    }
}

/// Logs in and attaches; once more from the start where the desktop turns out
/// not to answer.
async fn reach<P: Person>(
    server: &Server,
    agent: &Agent,
    stage: &Stage,
    wishes: &Wishes,
    person: &mut P,
) -> Result<(Session, Scene), RunError> {
    let mut may_repeat = true;
    loop {
        person.tell(&Event::Connecting { server: server.to_string() });
        let identity = Identity::generate()?;
        let answer = log_in(server, agent, &identity, wishes, person).await?;
        let mut scene = Scene::new(&answer, wishes.password())?;
        scene.policy = answer.policy;
        stage.suits(&scene)?;
        match agent.attach(&identity, &answer).await {
            Ok(session) => {
                scene.policy = session.attached.policy;
                return Ok((session, scene));
            }
            Err(error) if may_repeat && error.code() == Code::DesktopUnreachable => {
                tracing::info!("The desktop did not answer, logging in once more");
                may_repeat = false;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn log_in<P: Person>(
    server: &Server,
    agent: &Agent,
    identity: &Identity,
    wishes: &Wishes,
    person: &mut P,
) -> Result<TicketAnswer, RunError> {
    let unknown = |source| RunError::Lookup { server: server.clone(), source };
    let looked_up = timeout(LOOKUP_DEADLINE, lookup_host((server.host.as_str(), server.port)));
    let addresses = looked_up.await.map_err(|late| unknown(late.into()))?.map_err(unknown)?;
    let addresses: Vec<_> = addresses.collect();
    Ok(agent.login(&addresses, identity, wishes, person).await?)
}

/// Carries a session until the viewer, the gateway, the network or the person
/// ends it.
async fn work<P: Person>(
    mut session: Session,
    stage: Stage,
    scene: Scene,
    person: &mut P,
    stop: &CancellationToken,
) -> Result<Code, RunError> {
    let (first_byte, mut first_byte_came) = oneshot::channel();
    let security = scene.rdp.map(|rdp| rdp.security);
    let Session { send, recv, control, .. } = &mut session;
    let stream = DesktopStream { send, recv, security, first_byte };
    let mut showing = Box::pin(stage.show(stream, scene));
    let mut waits_for_first_byte = true;
    let ended = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break Ended::Here(Code::Disconnected),
            came = &mut first_byte_came, if waits_for_first_byte => {
                waits_for_first_byte = false;
                if came.is_ok() {
                    person.tell(&Event::FirstByte);
                }
            }
            shown = &mut showing => break Ended::shown(shown?),
            heard = control.next() => match heard {
                Ok(GatewayMessage::Notice { code, args }) => {
                    person.tell(&Event::Notice { code, args });
                }
                Ok(GatewayMessage::End { cause }) => {
                    break Ended::There(last_word(showing.as_mut(), cause).await);
                }
                Ok(GatewayMessage::Error(Failure { code, .. })) => break Ended::There(code),
                // Grants, policies and acknowledgements serve a session that goes
                // on over a second link, which this version never opens; nor does
                // a newer gateway's message concern it.
                Ok(
                    GatewayMessage::Grant { .. }
                    | GatewayMessage::Policy { .. }
                    | GatewayMessage::Ack { .. }
                    | GatewayMessage::Unsupported,
                ) => {}
                Ok(GatewayMessage::Attached(_)) => break Ended::Here(Code::Malformed),
                Err(error) => {
                    tracing::info!(%error, "The link to the gateway is gone");
                    break Ended::Lost(last_word(showing.as_mut(), Code::DesktopLost).await);
                }
            },
        }
    };
    // Ends the viewer, if it is still there, before the stream goes.
    drop(showing);
    let ended = match ended {
        // A gateway that ends a session cuts the bytes too; its word counts.
        Ended::Here(Code::DesktopLost) | Ended::Lost(Code::DesktopLost) => {
            let said = timeout(CAUSE_WAIT, cause(control, person)).await;
            said.ok().flatten().map_or(ended, Ended::There)
        }
        ended => ended,
    };
    if waits_for_first_byte && first_byte_came.try_recv().is_ok() {
        person.tell(&Event::FirstByte);
    }
    Ok(match ended {
        Ended::Here(code) => {
            let said = if code == Code::LoggedOff { code } else { Code::Disconnected };
            session.bye(said).await;
            code
        }
        Ended::There(code) => {
            session.control.close();
            code
        }
        Ended::Lost(code) => {
            session.control.close();
            if code == Code::DesktopLost {
                person.tell(&Event::LinkLost);
            }
            code
        }
    })
}

/// Which side ended a session, and why.
enum Ended {
    /// This one; the gateway is told.
    Here(Code),
    /// The gateway.
    There(Code),
    /// The network.
    Lost(Code),
}

impl Ended {
    fn shown(Shown { code, end }: Shown) -> Self {
        match end {
            Some(End::Lost(error)) => {
                tracing::info!(%error, "The link to the gateway is gone");
                Self::Lost(code)
            }
            Some(End::NotSecured(reason)) => {
                tracing::warn!(%reason, "The desktop's connection was cut");
                Self::Here(code)
            }
            Some(End::Viewer | End::Desktop) | None => Self::Here(code),
        }
    }
}

/// A desktop's connection that is over may have been logged off, which only the
/// viewer knows; so it is given a moment to say so.
async fn last_word(showing: impl Future<Output = Result<Shown, ViewerError>>, cause: Code) -> Code {
    match cause {
        Code::DesktopLost | Code::LoggedOff => match timeout(LAST_WORD, showing).await {
            Ok(Ok(Shown { code: code @ (Code::LoggedOff | Code::PinMismatch), .. })) => code,
            Ok(Ok(_) | Err(_)) | Err(_) => cause,
        },
        cause => cause,
    }
}

/// Listens for why the gateway ended the session; `None` when it says no more.
async fn cause<P: Person>(control: &mut Control, person: &mut P) -> Option<Code> {
    loop {
        match control.next().await.ok()? {
            GatewayMessage::End { cause } => return Some(cause),
            GatewayMessage::Error(Failure { code, .. }) => return Some(code),
            GatewayMessage::Notice { code, args } => person.tell(&Event::Notice { code, args }),
            GatewayMessage::Attached(_)
            | GatewayMessage::Ack { .. }
            | GatewayMessage::Grant { .. }
            | GatewayMessage::Policy { .. }
            | GatewayMessage::Unsupported => {}
        }
    }
}

/// Returns the last event of a run that had a session.
fn closing(code: Code) -> Event {
    match code {
        Code::LoggedOff
        | Code::Disconnected
        | Code::IdleLimit
        | Code::TimeLimit
        | Code::TakenOver
        | Code::EndedByAdministrator
        | Code::DeviceRevoked
        | Code::SessionEnded => Event::Ended { code },
        code => Event::Error { code, retry_after_ms: None, clock_suspect: false, detail: None },
    }
}

#[cfg(test)]
mod tests;
