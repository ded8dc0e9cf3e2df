//! Many people who work by the protocol, and write down what they are told.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use tegata_proto::claims::Claims;
use tegata_proto::code::Code;
use tegata_proto::encoding::Secret;
use tegata_proto::id::SessionId;
use tegata_proto::login::{BrokerMessage, TicketAnswer};
use tegata_proto::session::GatewayMessage;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::history::Heard;
use crate::stranger::{self, Keys, Line};

/// Writes down what clients see, each thing when it is seen.
pub struct Witness {
    began: Instant,
    heard: Mutex<Vec<Heard>>,
    count: watch::Sender<usize>,
}

/// How somebody ends their stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// They log off.
    LogsOff,
    /// Their network goes.
    Vanishes,
    /// They never take their ticket to a gateway.
    NeverComes,
}

/// How a stay went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// As they wanted.
    Done,
    /// They were refused.
    Refused(Code),
}

/// An attached session with its desktop.
pub struct Seat {
    /// The connection and its control stream.
    pub line: Line,
    /// To the desktop.
    pub send: stranger::Send,
    /// From the desktop.
    pub receive: stranger::Receive,
    /// The session.
    pub sid: SessionId,
}

impl Default for Witness {
    fn default() -> Self {
        Self { began: Instant::now(), heard: Mutex::default(), count: watch::Sender::new(0) }
    }
}

impl Witness {
    /// Returns what was written down so far.
    pub fn heard(&self) -> Vec<Heard> {
        self.list().clone()
    }

    /// Waits until so much more was written down.
    ///
    /// # Errors
    ///
    /// When that takes too long.
    pub async fn hears(&self, more: usize) -> Result<()> {
        let mut count = self.count.subscribe();
        let until = *count.borrow_and_update() + more;
        timeout(crate::wait::LIMIT, count.wait_for(|count| *count >= until)).await??;
        Ok(())
    }

    fn note(&self, heard: impl FnOnce(u64) -> Heard) {
        let mut list = self.list();
        let at_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        list.push(heard(at_us));
        self.count.send_replace(list.len());
    }

    fn list(&self) -> MutexGuard<'_, Vec<Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a ticket down, and returns what it says.
    ///
    /// # Errors
    ///
    /// When it is no ticket.
    pub fn ticket(&self, answer: &TicketAnswer) -> Result<Claims> {
        let granted = claims(&answer.ticket)?;
        self.note(|_| Heard::Ticket {
            user: granted.sub.to_string(),
            sid: granted.sid.to_string(),
            seat: answer.desktop.name.to_string(),
            epoch: granted.epoch.0,
            jti: granted.jti.to_string(),
        });
        Ok(granted)
    }
}

/// Somebody at their desktop; writes down when that is over.
struct Present<'w> {
    witness: &'w Witness,
    sid: String,
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        let sid = std::mem::take(&mut self.sid);
        self.witness.note(|at_us| Heard::Left { sid, at_us });
    }
}

/// Reads what a ticket says, without asking who signed it.
///
/// # Errors
///
/// When it is no ticket.
pub fn claims(ticket: &Secret) -> Result<Claims> {
    let payload = ticket.expose().split('.').nth(1).context("the ticket has no claims")?;
    Ok(serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload)?)?)
}

/// Logs in, sends a line to the desktop and back, and leaves.
///
/// # Errors
///
/// When a conversation breaks off, or the desktop is not an echo.
pub async fn stay(
    site: SocketAddr,
    (name, password): (&str, &str),
    farewell: Farewell,
    witness: &Witness,
) -> Result<Stay> {
    let keys = Keys::generate()?;
    let answer = match stranger::login(site, &keys, name, password).await? {
        BrokerMessage::Ticket(answer) => answer,
        BrokerMessage::Error(failure) => return Ok(Stay::Refused(failure.code)),
        other => bail!("{other:?}"),
    };
    let granted = witness.ticket(&answer)?;
    if farewell == Farewell::NeverComes {
        return Ok(Stay::Done);
    }
    let (attached, line) = stranger::attach(site, &keys, &answer.ticket, 1).await?;
    match attached {
        GatewayMessage::Attached(_) => {}
        GatewayMessage::Error(failure) => return Ok(Stay::Refused(failure.code)),
        other => bail!("{other:?}"),
    }
    let (sid, jti) = (granted.sid.to_string(), granted.jti.to_string());
    witness.note(|at_us| Heard::Attached { sid: sid.clone(), jti, at_us });
    let present = Present { witness, sid };
    let (mut send, mut receive) = line.desktop().await?;
    echo(&mut send, &mut receive, name).await?;
    drop(present);
    if farewell == Farewell::LogsOff {
        line.bye(Code::LoggedOff).await?;
    }
    Ok(Stay::Done)
}

/// Logs in and sits down at the desktop.
///
/// # Errors
///
/// When that is refused.
pub async fn sit_down(
    site: SocketAddr,
    (name, password): (&str, &str),
    witness: &Witness,
) -> Result<Seat> {
    let keys = Keys::generate()?;
    let answer = stranger::ticket(site, &keys, name, password).await?;
    let granted = witness.ticket(&answer)?;
    match stranger::attach(site, &keys, &answer.ticket, 1).await? {
        (GatewayMessage::Attached(_), line) => {
            let (sid, jti) = (granted.sid.to_string(), granted.jti.to_string());
            witness.note(|at_us| Heard::Attached { sid, jti, at_us });
            let (send, receive) = line.desktop().await?;
            Ok(Seat { line, send, receive, sid: granted.sid })
        }
        (other, _) => bail!("{other:?}"),
    }
}

impl Seat {
    /// Sends a line to the desktop, and checks that it comes back.
    ///
    /// # Errors
    ///
    /// When something else comes back, or nothing.
    pub async fn echo(&mut self, line: &str) -> Result<()> {
        echo(&mut self.send, &mut self.receive, line).await
    }
}

/// Sends a line to a desktop that echoes, and checks what comes back.
///
/// # Errors
///
/// When something else comes back, or nothing.
pub async fn echo(
    send: &mut stranger::Send,
    receive: &mut stranger::Receive,
    line: &str,
) -> Result<()> {
    send.write_all(line.as_bytes()).await?;
    let mut back = vec![0; line.len()];
    timeout(crate::wait::LIMIT, receive.read_exact(&mut back)).await??;
    ensure!(back == line.as_bytes(), "{:?} came back", String::from_utf8_lossy(&back));
    Ok(())
}
