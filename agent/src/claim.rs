//! An agent's claim to its session: what it needs to come back, and the way back.
//!
//! What a try asks for and when it is made is decided by [`crate::comeback`]; the change
//! of transport while a link carries is [`crossing`].

mod crossing;
mod lives;

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::rand;
use tegata_proto::claims::TOKEN_MAX;
use tegata_proto::code::Code;
use tegata_proto::encoding::Secret;
use tegata_proto::id::{GatewayId, Incarnation, LinkNumber};
use tegata_proto::login::{Failure, Gateway, TicketAnswer};
use tegata_proto::session::{AgentMessage, Attached, Channel, Mode, Resume, Right};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

pub(crate) use crossing::Crossings;

use crate::agent::Agent;
use crate::attach::Next;
use crate::claim::lives::Lives;
use crate::comeback::{Comeback, QUICK, Wish};
use crate::identity::Identity;
use crate::link::{self, Candidate, Connection, Field, LinkError, next_of};
use crate::relay::Account;
use crate::session::{self, ATTACH_DEADLINE, Answer, AttachError, Control, SILENCE, Session};

/// How long an attach that goes on with a session may take: longer than a gateway
/// waits for its broker.
const RESUME_DEADLINE: Duration = Duration::from_secs(6);

/// How many round trips a new connection may be without a sign of life.
const SILENCE_RTT: u32 = 3;

/// Most addresses of the last gateway that are tried at once.
const HOME_MAX: usize = 4;

/// The right to come back to one session, for as long as a run lasts.
#[derive(Debug)]
pub(crate) struct Claim {
    identity: Identity,
    gateways: Vec<Gateway>,
    kept: Mutex<Kept>,
}

/// What changes with each link.
#[derive(Debug)]
struct Kept {
    grant: Secret,
    next: Option<LinkNumber>,
    incarnation: Incarnation,
    /// The gateway that has the desktop's connection.
    home: GatewayId,
    /// Where that gateway may be, the last link's address first.
    addresses: Vec<SocketAddr>,
    is_attaching: bool,
    lives: Lives,
}

/// A grant that is longer than any of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the grant is too long")]
pub(crate) struct TooLong;

impl Claim {
    /// Claims what the session of this answer's ticket has.
    pub(crate) fn new(identity: Identity, answer: TicketAnswer, session: &Session) -> Self {
        let kept = Kept {
            grant: answer.grant,
            next: None,
            incarnation: session.attached.incarnation,
            home: session.id.clone(),
            addresses: Vec::new(),
            is_attaching: false,
            lives: Lives::new(Instant::now()),
        };
        let claim = Self { identity, gateways: answer.gateways, kept: Mutex::new(kept) };
        claim.attached(session);
        claim
    }

    /// Notes what a new link of the session has brought.
    pub(crate) fn attached(&self, session: &Session) {
        let Attached { incarnation, gateway, grant, .. } = &session.attached;
        let mut kept = self.kept();
        kept.next = kept.next.max(session.next);
        kept.incarnation = *incarnation;
        kept.is_attaching = false;
        kept.lives.attached(Instant::now());
        kept.home = session.id.clone();
        kept.addresses = vec![session.gateway];
        for address in gateway.direct_addresses.iter().take(link::ADDRESSES_MAX) {
            if !kept.addresses.contains(address) {
                kept.addresses.push(*address);
            }
        }
        drop(kept);
        if let Some(grant) = grant {
            // One that is too long leaves the older one.
            let _ = self.renew(grant.clone());
        }
    }

    /// Keeps a younger grant.
    ///
    /// # Errors
    ///
    /// Refuses one that could not be shown.
    pub(crate) fn renew(&self, grant: Secret) -> Result<(), TooLong> {
        if grant.expose().len() > TOKEN_MAX {
            return Err(TooLong);
        }
        self.kept().grant = grant;
        Ok(())
    }

    /// Notes that the session's link is over, whether it has carried something, and that
    /// another one is wanted.
    pub(crate) fn lost(&self, has_carried: bool) {
        self.kept().lives.lost(has_carried, Instant::now());
    }

    /// Tells whether an attach is on its way, which a gateway may have granted.
    pub(crate) fn is_attaching(&self) -> bool {
        self.kept().is_attaching
    }

    /// Connects and attaches until there is a link again. Dropped, it gives up what
    /// is on its way; the numbers of its links are not used again.
    ///
    /// # Errors
    ///
    /// Tells what has ended the session.
    pub(crate) async fn come_back(
        &self,
        agent: &Agent,
        account: &Account,
        wish: Wish,
    ) -> Result<Box<Session>, Failure> {
        let since = Instant::now();
        let mut comeback = Comeback::new(wish);
        let mut answers = JoinSet::new();
        let mut knock_at = Some(since + self.kept().lives.first_pause(since));
        let mut timed: Option<(LinkNumber, Instant)> = None;
        loop {
            let is_asking = comeback.is_waiting();
            if comeback.wish() == Wish::Fresh && account.has_ended() && !is_asking {
                // Nobody is left to be shown the desktop.
                return Err(Code::ResumeLost.into());
            }
            self.kept().is_attaching = is_asking;
            let knocking = async {
                sleep_until(knock_at?).await;
                Some(self.knock(agent, since).await)
            };
            let silence = async {
                let (link, begun) = timed?;
                sleep_until(begun + SILENCE).await;
                Some(link)
            };
            let next = tokio::select! {
                Some(connected) = knocking => match connected {
                    Ok((candidate, connection)) => {
                        let (link, grant) = self.another().ok_or(Code::LinkStale)?;
                        comeback.begun(link);
                        timed = Some((link, Instant::now()));
                        let resume = self.resume(comeback.wish(), account);
                        let attach = session::attach(
                            &self.identity, Right::Grant(grant), link, resume.clone(), &connection,
                        );
                        let attach = attach.map_err(|error| Failure::from(error.code()))?;
                        answers.spawn(async move {
                            let deadline = match resume {
                                Some(_) => RESUME_DEADLINE,
                                None => ATTACH_DEADLINE,
                            };
                            let answer = ask(connection, attach, deadline).await;
                            (link, candidate, resume, answer)
                        });
                        Next::Wait
                    }
                    Err(error) => {
                        tracing::debug!(%error, "No gateway was reached");
                        if error.is_replaced() {
                            comeback.replaced(since.elapsed(), dice())
                        } else {
                            comeback.unreached(since.elapsed(), dice())
                        }
                    }
                },
                Some((link, candidate, resume, answer)) = next_of(&mut answers) => {
                    let came = match answer {
                        Ok((attached, control)) => {
                            let resume = resume.as_ref();
                            self.taken(attached, control, link, &candidate, resume, account).await
                        }
                        Err(error) => Err(error),
                    };
                    let elapsed = since.elapsed();
                    match came {
                        Ok(session) => return Ok(Box::new(session)),
                        Err(AttachError::Refused(failure)) => {
                            tracing::debug!(%link, code = %failure.code, "A comeback was refused");
                            comeback.refused(link, failure, elapsed, dice())
                        }
                        Err(AttachError::Link(LinkError::Frame(_))) => {
                            Next::Stop(Code::Malformed.into())
                        }
                        Err(AttachError::Link(error)) => {
                            tracing::debug!(%link, %error, "A comeback was not answered");
                            comeback.unanswered(link, elapsed, dice())
                        }
                    }
                }
                Some(link) = silence => {
                    timed = None;
                    if comeback.fell_silent(link) {
                        knock_at = Some(Instant::now());
                    }
                    continue;
                }
            };
            match next {
                Next::Wait => knock_at = None,
                Next::Again(pause) => {
                    timed = None;
                    knock_at = Some(Instant::now() + pause);
                }
                Next::Stop(failure) => return Err(failure),
            }
        }
    }

    /// Takes a gateway's answer as the session's next link, if it is one to what was
    /// asked.
    async fn taken(
        &self,
        attached: Box<Attached>,
        control: Control,
        link: LinkNumber,
        candidate: &Candidate,
        resume: Option<&Resume>,
        account: &Account,
    ) -> Result<Session, AttachError> {
        let from = match fits(&attached, link, resume, account) {
            Ok(from) => from,
            Err(code) => {
                control.close();
                return Err(AttachError::Refused(code.into()));
            }
        };
        let next = self.kept().next;
        let session = session::opened(*attached, candidate, control, from, next).await?;
        self.attached(&session);
        Ok(session)
    }

    /// Connects to a gateway: quickly to the one that has the desktop's connection,
    /// and later to whichever answers.
    async fn knock(
        &self,
        agent: &Agent,
        since: Instant,
    ) -> Result<(Candidate, Connection), LinkError> {
        let quick_until = since + QUICK;
        if Instant::now() < quick_until {
            agent.dialler.insist(&Field::of(self.candidates(true)), quick_until).await
        } else {
            agent.dialler.race(&Field::of(self.candidates(false))).await
        }
    }

    fn candidates(&self, only_home: bool) -> Vec<Candidate> {
        let kept = self.kept();
        let (home, others): (Vec<_>, Vec<_>) =
            self.gateways.iter().partition(|gateway| gateway.id == kept.home);
        let mut all: Vec<_> = home
            .into_iter()
            .flat_map(|gateway| {
                let mut addresses = kept.addresses.clone();
                addresses.extend(&gateway.addresses);
                let mut known = Vec::new();
                addresses.retain(|address| {
                    let is_new = !known.contains(address);
                    known.push(*address);
                    is_new
                });
                Candidate::of(gateway, addresses)
            })
            .collect();
        if only_home {
            all.truncate(HOME_MAX);
        } else {
            let others = others.into_iter();
            all.extend(
                others.flat_map(|gateway| Candidate::of(gateway, gateway.addresses.clone())),
            );
            all.truncate(link::ADDRESSES_MAX);
        }
        all
    }

    /// Returns the next link's number and the youngest grant; nothing when all
    /// numbers are used.
    fn another(&self) -> Option<(LinkNumber, Secret)> {
        let mut kept = self.kept();
        let link = kept.next?;
        kept.next = link.next();
        Some((link, kept.grant.clone()))
    }

    fn resume(&self, wish: Wish, account: &Account) -> Option<Resume> {
        match wish {
            Wish::Resume => {
                let incarnation = self.kept().incarnation;
                Some(Resume { incarnation, received: [(Channel::Rdp, account.written())].into() })
            }
            Wish::Fresh => None,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Every change is whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells whether an answer is one to what was asked, and returns the offset of the
/// first byte that its stream brings.
fn fits(
    attached: &Attached,
    link: LinkNumber,
    resume: Option<&Resume>,
    account: &Account,
) -> Result<u64, Code> {
    let as_asked = match resume {
        Some(resume) => {
            attached.mode == Mode::Resumed && attached.incarnation == resume.incarnation
        }
        None => attached.mode == Mode::Fresh,
    };
    if !as_asked || attached.link != link {
        return Err(Code::Malformed);
    }
    let Some(resume) = resume else { return Ok(0) };
    let written_there = received(attached);
    if !account.may_resume(written_there) {
        tracing::warn!(offset = written_there, "The gateway is at an offset that cannot be");
        return Err(Code::ResumeLost);
    }
    Ok(resume.received.get(&Channel::Rdp).copied().unwrap_or(0))
}

/// Returns how many of the viewer's bytes a gateway has written onward.
pub(crate) fn received(attached: &Attached) -> u64 {
    attached.received.get(&Channel::Rdp).copied().unwrap_or(0)
}

/// Asks over a new connection, and does not wait for one that is dead.
async fn ask(connection: Connection, attach: AgentMessage, deadline: Duration) -> Answer {
    tokio::select! {
        answer = session::ask(connection.clone(), attach, deadline) => answer,
        () = silent(&connection) => {
            connection.close();
            Err(LinkError::Silent.into())
        }
    }
}

/// Waits until a connection that has just been spoken to has turned out to be dead:
/// nothing at all arrives over it.
async fn silent(connection: &Connection) {
    let before = connection.heard();
    connection.probe();
    sleep(SILENCE.max(connection.rtt() * SILENCE_RTT)).await;
    if connection.heard() != before {
        std::future::pending::<()>().await;
    }
}

/// Returns a number that nobody knows before.
fn dice() -> u32 {
    let mut bytes = [0; 4];
    // A system without random bytes has no key, and so no session, either.
    let _ = rand::fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}
