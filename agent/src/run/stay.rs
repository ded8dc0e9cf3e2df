//! A person's stay on their desktop, over one link after another, until something
//! ends it.
//!
//! The viewer stays while links come and go, and is started again only where the
//! desktop's own connection is gone. How links come and go is [`road`].

mod road;

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::pin::pin;
use std::time::Duration;

use tegata_proto::code::Code;
use tegata_proto::login::Failure;
use tegata_proto::policy::Policy;
use tegata_proto::session::{GatewayMessage, Notice};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::claim::Claim;
use crate::comeback::is_final;
use crate::input::{Input, Reports};
use crate::network::Network;
use crate::progress::{Event, Person};
use crate::relay::{Account, DesktopStream, End, Line, Side};
use crate::run::RunError;
use crate::run::stay::road::{Road, Turn};
use crate::session::{Control, Session};
use crate::viewer::{Scene, Shown, Stage, ViewerError};

/// How long a viewer may take to say what its desktop's end meant, after each byte that
/// it is still given anew.
const LAST_WORD: Duration = Duration::from_secs(5);

/// How long a desktop's bytes may still come after its end.
const LAST_BYTES: Duration = Duration::from_mins(1);

/// How long a gateway may take to say why a desktop's bytes ended.
const CAUSE_WAIT: Duration = Duration::from_secs(1);

/// Everything a stay needs beside the session.
pub(super) struct Stay<'a, P, N> {
    pub(super) agent: &'a Agent,
    pub(super) claim: &'a Claim,
    pub(super) person: &'a mut P,
    pub(super) stop: &'a CancellationToken,
    pub(super) network: &'a mut N,
    pub(super) input: &'a Input,
}

/// What became of one connection to the desktop.
enum Outcome {
    /// The stay is over.
    Ended(Code),
    /// It is lost, and the session has another one.
    Returned(Box<Session>),
}

/// What ends the showing of one connection to the desktop.
enum Ended {
    /// This side; the gateway is told.
    Here(Code),
    /// The gateway.
    There(Code),
    /// Another connection to the desktop.
    Returned(Box<Session>),
}

/// What happens next.
enum Next {
    Stopped,
    FirstByte(bool),
    Shown(Result<Shown, ViewerError>),
    Turn(Turn),
    Moved(Instant),
}

impl<P: Person, N: Network> Stay<'_, P, N> {
    /// Shows the desktop until the viewer, the gateway or the person ends it.
    pub(super) async fn last(
        mut self,
        mut session: Session,
        mut stage: Stage,
        mut scene: Scene,
    ) -> Result<Code, RunError> {
        let mut known = scene.policy;
        loop {
            self.person.tell(&Event::Attached {
                session: session.attached.sid,
                gateway: session.attached.gateway.id.clone(),
                address: session.gateway,
                transport: session.control.connection.transport(),
                link: session.attached.link,
                forward: stage.forward(),
            });
            let mut again = scene.without_secret();
            match self.show(session, &mut stage, scene, &mut known).await? {
                Outcome::Ended(code) => return Ok(code),
                Outcome::Returned(next) if stage.may_restart() => {
                    again.policy = next.attached.policy;
                    if again.policy != known {
                        // It changed while no gateway had a link to tell of it.
                        let code = Notice::PolicyChanged.as_str().to_owned();
                        self.person.tell(&Event::Notice { code, args: BTreeMap::new() });
                        known = again.policy;
                    }
                    (session, scene) = (*next, again);
                }
                Outcome::Returned(next) => {
                    next.bye(Code::Disconnected).await;
                    return Ok(Code::ResumeLost);
                }
            }
        }
    }

    /// Shows one connection to the desktop. `known` is what the person has been told that the
    /// thin client may do.
    async fn show(
        &mut self,
        session: Session,
        stage: &mut Stage,
        scene: Scene,
        known: &mut Policy,
    ) -> Result<Outcome, RunError> {
        let security = scene.rdp.map(|rdp| rdp.security);
        let shown = scene.policy;
        let Session { attached, gateway, send, recv, control, from, .. } = session;
        let account = Account::new(Line { link: attached.link, send, recv, from });
        let source = self.network.source(gateway);
        let reports = Reports::new(self.input, attached.input_every_ms);
        let mut road =
            Road::new(self.agent, self.claim, &account, control, gateway, source, reports);
        let (first_byte, mut first_byte_came) = oneshot::channel();
        let stream = DesktopStream { account: &account, security, first_byte };
        let mut showing = Box::pin(stage.show(stream, scene));
        let mut waits_for_first_byte = true;
        let ended = loop {
            let next = {
                let network = pin!(self.network.changed());
                let first_byte = async {
                    if !waits_for_first_byte {
                        return pending().await;
                    }
                    (&mut first_byte_came).await.is_ok()
                };
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => Next::Stopped,
                    came = first_byte => Next::FirstByte(came),
                    shown = &mut showing => Next::Shown(shown),
                    turn = road.turn() => Next::Turn(turn),
                    at = network => Next::Moved(at),
                }
            };
            match next {
                Next::Stopped => break Ended::Here(Code::Disconnected),
                Next::FirstByte(came) => {
                    waits_for_first_byte = false;
                    if came {
                        self.person.tell(&Event::FirstByte);
                    }
                }
                Next::Shown(shown) => break Ended::shown(shown?),
                // A viewer is what it is from its beginning on; the gateway has told the
                // person why another one follows.
                Next::Turn(Turn::Heard(Ok(GatewayMessage::Policy { policy, .. })))
                    if policy != shown =>
                {
                    *known = policy;
                    road.begin_again();
                }
                Next::Turn(turn) => match road.take(turn, self.person, self.network) {
                    Ok(()) => {}
                    Err(Ended::There(cause)) => {
                        account.close();
                        break Ended::There(tokio::select! {
                            biased;
                            () = self.stop.cancelled() => cause,
                            code = last_word(showing.as_mut(), &account, cause) => code,
                            never = road.acknowledge_rest() => match never {},
                        });
                    }
                    // It was asked for before the viewer had ended.
                    Err(Ended::Returned(session)) if account.has_ended() => {
                        account.close();
                        let lost = Code::ResumeLost;
                        let code = last_word(showing.as_mut(), &account, lost).await;
                        session.bye(goodbye(code)).await;
                        break Ended::There(code);
                    }
                    Err(ended @ (Ended::Here(_) | Ended::Returned(_))) => break ended,
                },
                Next::Moved(at) => road.moved(self.network, at),
            }
        };
        // Ends the viewer, if it is still there, before the stream goes.
        drop(showing);
        if waits_for_first_byte && first_byte_came.try_recv().is_ok() {
            self.person.tell(&Event::FirstByte);
        }
        Ok(self.leave(ended, road).await)
    }

    /// Says good-bye where it has to be said.
    async fn leave(&mut self, mut ended: Ended, mut road: Road<'_>) -> Outcome {
        road.give_up();
        // A gateway that ends a session cuts the bytes too; its word counts. One that only
        // ends the link, for one that was just given up, says nothing about the session.
        if let (Ended::Here(Code::DesktopLost), Some(control)) = (&ended, road.link()) {
            let said = timeout(CAUSE_WAIT, cause(control, self.person)).await;
            let said = said.ok().flatten().filter(|code| is_final(*code));
            ended = said.map_or(ended, Ended::There);
        }
        match ended {
            Ended::Here(code) => {
                road.bye(goodbye(code)).await;
                Outcome::Ended(code)
            }
            Ended::There(code) => {
                road.close();
                Outcome::Ended(code)
            }
            Ended::Returned(session) => {
                road.close();
                Outcome::Returned(session)
            }
        }
    }
}

impl Ended {
    fn shown(Shown { code, end }: Shown) -> Self {
        match end {
            Some(End::NotSecured(reason)) => {
                tracing::warn!(%reason, "The desktop's connection was cut");
            }
            Some(End::Viewer | End::Desktop | End::Lost) | None => {}
        }
        Self::Here(code)
    }
}

/// Returns what the gateway is told of an end.
fn goodbye(code: Code) -> Code {
    if code == Code::LoggedOff { code } else { Code::Disconnected }
}

/// A desktop's connection that is over may have been logged off, which only the
/// viewer knows; so it is given a moment to say so. What ended before its desktop was
/// found to be gone has not ended for that.
async fn last_word(
    mut showing: impl Future<Output = Result<Shown, ViewerError>> + Unpin,
    account: &Account,
    cause: Code,
) -> Code {
    match cause {
        Code::ResumeLost | Code::SessionEnded | Code::DesktopUnreachable if account.has_ended() => {
            match timeout(LAST_WORD, showing).await {
                Ok(Ok(Shown { code, .. })) => code,
                Ok(Err(_)) | Err(_) => cause,
            }
        }
        Code::DesktopLost | Code::LoggedOff => {
            let until = Instant::now() + LAST_BYTES;
            // A viewer that had finished by then has lost nothing.
            let has_finished =
                || cause == Code::DesktopLost && account.first_end() == Some(Side::Viewer);
            loop {
                let written = account.written();
                match timeout(LAST_WORD, &mut showing).await {
                    Ok(Ok(Shown { code, .. })) if is_last_word(code) || has_finished() => {
                        return code;
                    }
                    // What the desktop said before its end may be slower than the word of that.
                    Err(_) if account.written() > written && Instant::now() < until => {}
                    Ok(Ok(_) | Err(_)) | Err(_) => return cause,
                }
            }
        }
        cause => cause,
    }
}

/// Tells whether a viewer that says this knows more than that its desktop is gone.
fn is_last_word(code: Code) -> bool {
    matches!(code, Code::LoggedOff | Code::PinMismatch)
}

/// Listens for why the gateway ended the session; `None` when it says no more.
async fn cause<P: Person>(control: &mut Control, person: &mut P) -> Option<Code> {
    loop {
        match control.next().await {
            Ok(GatewayMessage::End { cause }) => return Some(cause),
            Ok(GatewayMessage::Error(Failure { code, .. })) => return Some(code),
            Ok(GatewayMessage::Notice { code, args }) => person.tell(&Event::Notice { code, args }),
            Ok(
                GatewayMessage::Attached(_)
                | GatewayMessage::Ack { .. }
                | GatewayMessage::Grant { .. }
                | GatewayMessage::Policy { .. }
                | GatewayMessage::Unsupported,
            ) => {}
            Err(error) => return error.farewell(),
        }
    }
}
