//! One run: login, session, viewer, and the code that it ends with.
//!
//! Leads to the desktop; what happens while the person is there is [`stay`].

mod stay;

use std::time::Duration;

use tegata_proto::code::Code;
use tegata_proto::login::{Failure, TicketAnswer};
use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, LOOKUP_DEADLINE, LoginError};
use crate::arguments::Server;
use crate::claim::Claim;
use crate::identity::{Identity, NoKey};
use crate::input::Input;
use crate::login::Wishes;
use crate::network::{Kernel, Network};
use crate::progress::{Event, Person};
use crate::run::stay::Stay;
use crate::session::{AttachError, Session};
use crate::viewer::{Scene, Stage, Viewer, ViewerError};

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
        self.carry_out_on(&mut Kernel::new(), agent, person, stop).await
    }

    async fn carry_out_on<P: Person>(
        self,
        network: &mut impl Network,
        agent: &Agent,
        person: &mut P,
        stop: &CancellationToken,
    ) -> Code {
        let (code, last) = match self.finish(network, agent, person, stop).await {
            Ok(code) => (code, closing(code)),
            Err(error) => (error.failure().code, error.event()),
        };
        person.tell(&last);
        let _ = timeout(FAREWELL, agent.farewell()).await;
        code
    }

    async fn finish<P: Person>(
        self,
        network: &mut impl Network,
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
        let Reached { claim, session, scene } = reached;
        // From here on the password is the viewer's alone.
        drop(wishes);
        let input = &Input::watch();
        let stay = Stay { agent, claim: &claim, person, stop, network, input };
        stay.last(session, stage, scene).await
    }
}

/// A session that has begun.
struct Reached {
    claim: Claim,
    session: Session,
    scene: Scene,
}

/// Logs in and attaches; once more from the start where the desktop turns out
/// not to answer.
async fn reach<P: Person>(
    server: &Server,
    agent: &Agent,
    stage: &Stage,
    wishes: &Wishes,
    person: &mut P,
) -> Result<Reached, RunError> {
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
                let claim = Claim::new(identity, answer, &session);
                return Ok(Reached { claim, session, scene });
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

/// Returns the last event of a run that had a session.
fn closing(code: Code) -> Event {
    match code {
        Code::LoggedOff
        | Code::Disconnected
        | Code::IdleLimit
        | Code::TimeLimit
        | Code::LoginAgain
        | Code::NotAllowedHere
        | Code::TakenOver
        | Code::EndedByAdministrator
        | Code::DeviceRevoked
        | Code::SessionEnded => Event::Ended { code },
        code => Event::Error { code, retry_after_ms: None, clock_suspect: false, detail: None },
    }
}

#[cfg(test)]
mod tests;
