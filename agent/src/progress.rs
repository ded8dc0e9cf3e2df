//! What happens, told to a person or to a program: events, and the two front
//! ends that write them.

mod lines;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write};
use std::net::SocketAddr;
use std::time::Instant;

use serde::Serialize;
use tegata_proto::code::Code;
use tegata_proto::id::{GatewayId, LinkNumber, PoolName, SeatName, SessionId};
use tegata_proto::login::{OfferState, PoolOffer};

use crate::link::Transport;
use crate::words::{Language, Phrase};

pub use lines::Lines;

/// Something that happened on the way to the desktop, or on it.
///
/// Written by `--progress json` as one object a line; the last line of a run is
/// always `ended` or `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The broker's addresses are being tried.
    Connecting {
        /// Host and port, as asked for.
        server: String,
    },
    /// A broker answered and is believed.
    Connected {
        /// Where it is.
        address: SocketAddr,
        /// What carries the login.
        transport: Transport,
    },
    /// The directory said yes.
    Authenticated {
        /// The person's name for showing.
        display_name: String,
    },
    /// The login waits for the directory or for a desktop.
    Queued {
        /// Place in the queue, from 1.
        place: u32,
        /// How long the wait is expected to be.
        expected_ms: u64,
    },
    /// The desktop is being started.
    Starting {
        /// How long that is expected to take.
        #[serde(skip_serializing_if = "Option::is_none")]
        expected_ms: Option<u64>,
    },
    /// The desktop is the person's.
    Assigned,
    /// The ticket is there.
    Ticket {
        /// The desktop's seat.
        desktop: SeatName,
    },
    /// A gateway carries the session.
    Attached {
        /// The session.
        session: SessionId,
        /// The gateway's name.
        gateway: GatewayId,
        /// Where it is.
        address: SocketAddr,
        /// What carries the link.
        transport: Transport,
        /// The number of the link.
        link: LinkNumber,
        /// Where `--forward` waits for its one connection.
        #[serde(skip_serializing_if = "Option::is_none")]
        forward: Option<SocketAddr>,
    },
    /// The desktop sent its first byte.
    FirstByte,
    /// The connection to the gateway is gone, or silent; another is being tried.
    LinkLost,
    /// The session goes on where it stopped.
    Resumed {
        /// How long it stood still.
        gap_ms: u64,
        /// What carries it now.
        transport: Transport,
    },
    /// This machine is on another network, and the connection has gone with it; or it
    /// has changed from TCP to QUIC.
    Migrated {
        /// How long that took.
        gap_ms: u64,
        /// What carries it now.
        transport: Transport,
    },
    /// The gateway, an administrator or this agent has something to tell.
    Notice {
        /// What.
        code: String,
        /// What the text needs.
        args: BTreeMap<String, String>,
    },
    /// The session is over.
    Ended {
        /// Why.
        code: Code,
    },
    /// There was no session, or it went wrong.
    Error {
        /// Why.
        code: Code,
        /// When to try again.
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
        /// This machine's clock is the likely cause.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        clock_suspect: bool,
        /// The whole story in English, for whoever looks into it.
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
}

/// Whoever is told and asked during a run.
pub trait Person: Send {
    /// Hears of an event.
    fn tell(&mut self, event: &Event);

    /// Chooses one of several pools; `None` where nobody can be asked.
    fn choose(&mut self, pools: &[PoolOffer]) -> impl Future<Output = Option<PoolName>> + Send;
}

/// Writes one JSON object a line, for a program that watches.
#[derive(Debug)]
pub struct Json<W> {
    out: W,
    start: Instant,
}

impl<W: Write + Send> Json<W> {
    /// Writes to `out`, counting time from `start`.
    pub fn new(out: W, start: Instant) -> Self {
        Self { out, start }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    event: &'a Event,
    elapsed_ms: u64,
}

impl<W: Write + Send> Person for Json<W> {
    fn tell(&mut self, event: &Event) {
        let elapsed_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let Ok(mut line) = serde_json::to_string(&Line { event, elapsed_ms }) else { return };
        line.push('\n');
        // A reader that went away is no reason to end a session.
        let _ = self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush());
    }

    async fn choose(&mut self, _pools: &[PoolOffer]) -> Option<PoolName> {
        None
    }
}

/// Writes sentences in the person's language, and asks on the terminal.
#[derive(Debug)]
pub struct Plain<W> {
    out: W,
    language: Language,
}

impl<W: Write + Send> Plain<W> {
    /// Writes to `out` in this language.
    pub fn new(out: W, language: Language) -> Self {
        Self { out, language }
    }

    fn line(&mut self, text: &str) {
        // Text of a peer must not drive the terminal.
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        let _ = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
    }

    fn phrase(&mut self, phrase: Phrase, value: &dyn ToString) {
        let text = phrase.with(self.language, &value.to_string());
        self.line(&text);
    }
}

impl<W: Write + Send> Person for Plain<W> {
    fn tell(&mut self, event: &Event) {
        match event {
            Event::Connecting { server } => self.phrase(Phrase::Connecting, server),
            Event::Connected { address, .. } => self.phrase(Phrase::Connected, address),
            Event::Authenticated { display_name } => {
                self.phrase(Phrase::Authenticated, display_name);
            }
            Event::Queued { place, .. } => self.phrase(Phrase::Queued, place),
            Event::Starting { .. } => self.phrase(Phrase::Starting, &""),
            Event::Assigned => self.phrase(Phrase::Assigned, &""),
            Event::Ticket { desktop } => self.phrase(Phrase::Ticket, desktop),
            Event::Attached { gateway, forward, .. } => {
                self.phrase(Phrase::Attached, gateway);
                if let Some(forward) = forward {
                    self.phrase(Phrase::Forwarding, forward);
                }
            }
            Event::FirstByte => self.phrase(Phrase::FirstByte, &""),
            Event::LinkLost => self.phrase(Phrase::LinkLost, &""),
            Event::Resumed { .. } => self.phrase(Phrase::Resumed, &""),
            Event::Migrated { .. } => self.phrase(Phrase::Migrated, &""),
            Event::Notice { code, args } => {
                let text = crate::words::notice(code, args, self.language);
                self.line(&text);
            }
            Event::Ended { code } => {
                let text = crate::words::reason(*code, self.language);
                self.line(text);
            }
            Event::Error { code, retry_after_ms, clock_suspect, detail } => {
                let text = crate::words::reason(*code, self.language);
                self.line(text);
                if *clock_suspect {
                    self.phrase(Phrase::ClockSuspect, &"");
                }
                if let Some(wait) = retry_after_ms {
                    self.phrase(Phrase::TryAgainIn, &wait.div_ceil(1000));
                }
                if let Some(detail) = detail {
                    self.line(&format!("({detail})"));
                }
            }
        }
    }

    async fn choose(&mut self, pools: &[PoolOffer]) -> Option<PoolName> {
        if !io::stdin().is_terminal() {
            return None;
        }
        self.phrase(Phrase::ChoosePool, &"");
        for (at, offer) in pools.iter().enumerate() {
            let state = match offer.state {
                OfferState::Ready => Phrase::PoolReady,
                OfferState::Yours => Phrase::PoolYours,
                OfferState::Full => Phrase::PoolFull,
            };
            let state = state.with(self.language, "");
            self.line(&format!("{}. {} {} ({state})", at + 1, offer.name, offer.label));
        }
        let line = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            io::stdin().read_line(&mut line).map(|_| line)
        });
        let line = line.await.ok()?.ok()?;
        pick(pools, line.trim())
    }
}

/// Reads an answer: a number of the list, or a pool's name.
fn pick(pools: &[PoolOffer], answer: &str) -> Option<PoolName> {
    let by_number = answer.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    by_number
        .and_then(|at| pools.get(at))
        .or_else(|| pools.iter().find(|offer| offer.name.as_str() == answer))
        .map(|offer| offer.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn an_event_is_one_line_of_json_with_its_code_and_time() {
        let mut out = Vec::new();
        let mut person = Json::new(&mut out, Instant::now());
        person.tell(&Event::Ended { code: Code::LoggedOff });
        person.tell(&Event::FirstByte);
        person.tell(&Event::Resumed { gap_ms: 250, transport: Transport::Tcp });
        let text = String::from_utf8(out).expect("JSON is UTF-8");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(
            (&lines[0]["event"], &lines[0]["code"]),
            (&"ended".into(), &"logged_off".into())
        );
        assert_eq!(lines[1]["event"], "first_byte");
        assert!(lines[1]["elapsed_ms"].is_u64());
        assert_eq!((&lines[2]["event"], &lines[2]["gap_ms"]), (&"resumed".into(), &250.into()));
        assert_eq!(lines[2]["transport"], "tcp");
    }

    #[test]
    fn a_reader_that_went_away_is_no_reason_to_stop() {
        Json::new(Broken, Instant::now()).tell(&Event::Assigned);
        Plain::new(Broken, Language::Ja).tell(&Event::Assigned);
    }

    #[test]
    fn text_of_a_peer_does_not_drive_the_terminal() {
        let mut out = Vec::new();
        let display_name = "sato\u{1b}[2J\u{7}\nroot".into();
        Plain::new(&mut out, Language::En).tell(&Event::Authenticated { display_name });
        let text = String::from_utf8(out).expect("UTF-8");
        assert_eq!(text.matches(char::is_control).collect::<Vec<_>>(), ["\n"], "{text:?}");
    }

    #[test]
    fn a_pool_is_chosen_by_number_or_name() {
        let offer = |name: &str| PoolOffer {
            name: PoolName::new(name).expect("a name"),
            label: name.to_uppercase(),
            state: OfferState::Ready,
        };
        let pools = [offer("keiri"), offer("soumu")];
        for (answer, chosen) in [
            ("1", Some("keiri")),
            ("2", Some("soumu")),
            ("soumu", Some("soumu")),
            ("0", None),
            ("3", None),
            ("", None),
            ("SOUMU", None),
        ] {
            assert_eq!(pick(&pools, answer).as_ref().map(PoolName::as_str), chosen, "{answer}");
        }
    }
}
