//! Sins of the two conversations: what is said on the control stream, and how.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use quinn::{ConnectionError, TransportConfig};
use serde_json::{Value, json};
use tegata_parts::streams::Closed;
use tegata_proto::ALPN_SESSION;
use tegata_proto::code::Code;
use tegata_proto::encoding::{Bytes, Secret};
use tegata_proto::id::LinkNumber;
use tegata_proto::login::{AgentMessage, BrokerMessage, Hello, Password};
use tegata_proto::proof::Purpose;
use tokio::time::{sleep, timeout};

use super::change::Change;
use super::place::{PASSWORD, Place};
use super::tickets::{self, Forgery, Held};
use super::{Answer, DEADLINE, SLACK};
use crate::crowd::echo;
use crate::stranger::{Ended, HERE, Keys, Line, Receive, Send, Transport, credulous};

/// One sin.
#[derive(Debug, Clone)]
pub struct Sin {
    /// What it is.
    pub name: String,
    /// What is done, in order.
    pub does: Vec<Act>,
    /// What it gets.
    pub gets: Answer,
    /// By when, without slack.
    pub within: Duration,
}

/// One thing that a client does.
#[derive(Debug, Clone)]
pub enum Act {
    /// Sends bytes as they are.
    Bytes(Vec<u8>),
    /// Sends a text in a frame.
    Says(String),
    /// Sends `hello`, and waits for `welcome` if nothing is wrong with it.
    Hello(Change),
    /// Sends `password`.
    Password(Change),
    /// Sends an `attach` that is not as it should be, after a login elsewhere.
    Attach(Box<Forgery>),
    /// Attaches as it should be, after a login elsewhere, and waits for `attached`.
    Attaches,
    /// Does that on a line of its own, and works there from then on. What is refused
    /// afterwards must not disturb that.
    Works,
    /// Sends an honest first frame, one byte a second.
    Trickles,
    /// Ends the stream.
    Finishes,
    /// Breaks the stream off.
    Resets,
    /// Takes no more bytes of an answer than so many at once. To be done first.
    Hears(u32),
    /// Reads nothing until the broker has closed the connection.
    ListensNoMore,
}

/// Makes a row.
pub fn sin(name: impl Into<String>, does: Vec<Act>, gets: Answer) -> Sin {
    Sin { name: name.into(), does, gets, within: DEADLINE }
}

impl Sin {
    /// Tells whether it can be committed by a transport. By TCP, a stream without a byte
    /// is a word already, and it is the connection that nobody reads: both are among
    /// [`tcp`](super::tcp)'s own.
    fn goes_by(&self, transport: Transport) -> bool {
        match transport {
            Transport::Quic => true,
            Transport::Tcp => !matches!(self.does.first(), None | Some(Act::Hears(_))),
        }
    }

    /// Grants the broker more deadlines than one.
    #[must_use]
    pub fn within(mut self, deadlines: u32) -> Self {
        self.within = DEADLINE * deadlines;
        self
    }
}

/// A frame's bytes, whatever its body is.
pub fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), body].concat()
}

/// Commits a sin by a transport and an ALPN as person `who`, and returns what came
/// of it.
///
/// # Errors
///
/// When nothing came in time, or what is honest in it did not work.
pub async fn commit(
    place: &Place,
    (transport, alpn): (Transport, &[u8]),
    who: usize,
    sin: &Sin,
) -> Result<Answer> {
    let (from, to) = (place.caller(), place.site.listen());
    let name = format!("p{who}");
    // Before the connection: a deadline of its own runs from there on.
    let attaches =
        sin.does.iter().any(|act| matches!(act, Act::Attach(_) | Act::Attaches | Act::Works));
    let held =
        if attaches { Some(tickets::right(place, transport, from, &name).await?) } else { None };
    let line = match (sin.does.first(), transport) {
        (Some(Act::Hears(most)), Transport::Quic) => {
            let mut config = quinn::ClientConfig::new(Arc::new(credulous(&[alpn])?));
            let mut deaf = TransportConfig::default();
            deaf.stream_receive_window((*most).into());
            config.transport_config(Arc::new(deaf));
            Line::open_with(config, from, to).await?
        }
        _ => Line::open_by(transport, from, to, alpn).await?,
    };
    let keys = Keys::generate()?;
    let within = sin.within;
    let mut sinner = Sinner { place, name, keys, held, line, within, txn: None, works: None };
    for act in &sin.does {
        // Whoever is closed in the middle of it hears why below.
        if let Err(error) = sinner.act(act).await
            && timeout(DEADLINE + SLACK, sinner.line.ended()).await.is_err()
        {
            return Err(error);
        }
    }
    let answer = timeout(sin.within + SLACK, sinner.answer()).await;
    let answer = answer.context("nothing came of it in time")??;
    if let Some((_, send, receive)) = sinner.works.as_mut().filter(|_| answer != Answer::Served) {
        echo(send, receive, "still mine").await.context("the session is disturbed")?;
    }
    sinner.line.close();
    Ok(answer)
}

struct Sinner<'a> {
    place: &'a Place,
    name: String,
    keys: Keys,
    /// What a login gave, where there was one.
    held: Option<Held>,
    line: Line,
    within: Duration,
    txn: Option<Bytes<16>>,
    /// A line where somebody is at work, and the desktop on it.
    works: Option<(Line, Send, Receive)>,
}

impl Sinner<'_> {
    async fn act(&mut self, act: &Act) -> Result<()> {
        match act {
            Act::Bytes(bytes) => self.line.send(bytes).await,
            Act::Says(text) => self.line.send(&framed(text.as_bytes())).await,
            Act::Hello(change) => {
                let hello = self.hello()?;
                self.line.send(&framed(change.write(&hello).as_bytes())).await?;
                if *change == Change::Nothing && self.txn.is_none() {
                    let BrokerMessage::Welcome(welcome) = self.line.hear().await? else {
                        bail!("not welcome");
                    };
                    self.txn = Some(welcome.txn);
                }
                Ok(())
            }
            Act::Password(change) => {
                let txn = self.txn.unwrap_or(Bytes([0; 16]));
                let (name, password) = (self.name.clone(), Secret::new(PASSWORD));
                let message = AgentMessage::Password(Password { txn, realm: None, name, password });
                let text = change.write(&serde_json::to_value(message)?);
                self.line.send(&framed(text.as_bytes())).await
            }
            Act::Attach(forgery) => {
                let attach = self.attach(forgery, &self.line).await?;
                self.line.send(&framed(attach.as_bytes())).await
            }
            Act::Attaches => {
                let attach = self.attach(&Forgery::default(), &self.line).await?;
                attached(&mut self.line, &attach).await
            }
            Act::Works => {
                let (by, to) = (self.line.transport(), self.place.site.listen());
                let mut line = Line::open_by(by, HERE, to, ALPN_SESSION).await?;
                let attach = self.attach(&Forgery::default(), &line).await?;
                attached(&mut line, &attach).await?;
                let (mut send, mut receive) = line.desktop().await?;
                echo(&mut send, &mut receive, "mine").await?;
                self.works = Some((line, send, receive));
                Ok(())
            }
            Act::Trickles => {
                let hello = framed(self.hello()?.to_string().as_bytes());
                for byte in hello {
                    if self.line.send(&[byte]).await.is_err() {
                        break;
                    }
                    tokio::select! {
                        () = sleep(Duration::from_secs(1)) => {}
                        _ = self.line.ended() => break,
                    }
                }
                Ok(())
            }
            Act::Finishes => self.line.end(true),
            Act::Resets => self.line.end(false),
            Act::Hears(_) => Ok(()),
            Act::ListensNoMore => {
                let ended = timeout(self.within + SLACK, self.line.ended()).await;
                ended.map(drop).context("the broker keeps the connection")
            }
        }
    }

    async fn attach(&self, forgery: &Forgery, line: &Line) -> Result<String> {
        let held = self.held.as_ref().context("nobody has logged in")?;
        tickets::attach(self.place, held, forgery, line).await
    }

    fn hello(&self) -> Result<Value> {
        let proof = self.keys.prove(Purpose::Login, &self.line.exporter()?, LinkNumber::LOGIN);
        Ok(serde_json::to_value(AgentMessage::Hello(Hello {
            v: 1,
            agent_version: "0.1.0".to_owned(),
            locale: "ja".to_owned(),
            device_id: None,
            key: self.keys.public(),
            proof,
        }))?)
    }

    /// Listens until there is an answer to all of it.
    async fn answer(&mut self) -> Result<Answer> {
        loop {
            let Ok(heard) = self.line.hear::<Value>().await else {
                return match self.line.ended().await {
                    Ended::Quic(why) => closed(&why),
                    // What HTTP/2 says of its own is below the broker's codes.
                    Ended::Tcp(Closed::Said(error @ 1..0x100)) => {
                        Ok(Answer::Transport(error.into()))
                    }
                    Ended::Tcp(_) => Ok(Answer::Closed),
                };
            };
            match heard["type"].as_str() {
                Some("error") => return Ok(Answer::Code(code(&heard["code"])?)),
                Some("end") => return Ok(Answer::Code(code(&heard["cause"])?)),
                Some("ticket" | "attached") => return Ok(Answer::Served),
                Some(_) => {}
                None => bail!("{heard}"),
            }
        }
    }
}

/// Sends an `attach` that is as it should be, and waits for `attached`.
async fn attached(line: &mut Line, attach: &str) -> Result<()> {
    line.send(&framed(attach.as_bytes())).await?;
    let heard: Value = line.hear().await?;
    if heard["type"] == "attached" { Ok(()) } else { bail!("not attached: {heard}") }
}

fn code(value: &Value) -> Result<Code> {
    Ok(serde_json::from_value(value.clone())?)
}

/// Returns what a closed connection means.
///
/// # Errors
///
/// When nobody closed it.
pub fn closed(why: &ConnectionError) -> Result<Answer> {
    match why {
        ConnectionError::ApplicationClosed(_) => Ok(Answer::Closed),
        ConnectionError::ConnectionClosed(close) => Ok(Answer::Transport(close.error_code.into())),
        other => bail!("the broker did not close: {other}"),
    }
}

/// The sins that both conversations know: those against a frame.
pub fn against_frames() -> Vec<Sin> {
    let bytes = |bytes: &[u8]| Act::Bytes(bytes.to_vec());
    let says = |text: &str| Act::Says(text.to_owned());
    let malformed = Answer::Code(Code::Malformed);
    let deep = format!("{}{}", "[".repeat(2_000), "]".repeat(2_000));
    let deep_member = json!({"type": "hello"}).to_string().replace('}', ",\"v\":") + &deep + "}";
    vec![
        sin("a frame of length 0", vec![bytes(&[0; 4])], malformed),
        sin("a frame one byte too long", vec![bytes(&4_097_u32.to_be_bytes())], malformed),
        sin("a frame of 4 GiB", vec![bytes(&[0xff; 4])], malformed),
        sin("a frame cut short", vec![bytes(&[0, 0, 0, 9, b'{']), Act::Finishes], Answer::Closed),
        sin("a length cut short", vec![bytes(&[0, 0]), Act::Finishes], Answer::Closed),
        sin("a frame broken off", vec![bytes(&[0, 0, 0, 9, b'{']), Act::Resets], Answer::Closed),
        sin("a stream without a byte", vec![Act::Finishes], Answer::Closed),
        sin("no JSON", vec![says("GET / HTTP/1.1\r\n")], malformed),
        sin("no UTF-8", vec![Act::Bytes(framed(b"{\"type\":\"\xff\xfe\"}"))], malformed),
        sin("NUL bytes", vec![Act::Bytes(framed(&[0; 64]))], malformed),
        sin("no object", vec![says("[1]")], malformed),
        sin("no type", vec![says("{}")], malformed),
        sin("a type that is a number", vec![says(r#"{"type":1}"#)], malformed),
        sin("two types", vec![says(r#"{"type":"hello","type":"attach"}"#)], malformed),
        sin("text after the object", vec![says(r#"{"type":"bye","code":"busy"} {}"#)], malformed),
        sin("a whole frame, nested 2,000 deep", vec![Act::Says(deep)], malformed),
        sin("a member nested 2,000 deep", vec![Act::Says(deep_member)], malformed),
        sin("an unknown type", vec![says(r#"{"type":"x"}"#)], Answer::Code(Code::Unsupported)),
        sin("no type, and the answer read late", vec![says("{}"), Act::ListensNoMore], malformed)
            .within(3),
        sin("silence", vec![], Answer::Closed),
        sin("one byte and silence", vec![bytes(&[0])], Answer::Code(Code::Timeout)),
        sin(
            "half a frame and silence",
            vec![bytes(b"\0\0\0\x20{\"type\":")],
            Answer::Code(Code::Timeout),
        ),
        sin("one byte a second", vec![Act::Trickles], Answer::Code(Code::Timeout)),
    ]
}

/// Commits a table of sins, in as many lanes as there are people, and checks
/// after each that the broker is well.
///
/// # Errors
///
/// Names every sin that got something else.
pub async fn commit_all(
    place: &Arc<Place>,
    way: (Transport, &'static [u8]),
    people: usize,
    sins: Vec<Sin>,
) -> Result<()> {
    let sins: Vec<_> = sins.into_iter().filter(|sin| sin.goes_by(way.0)).collect();
    let sins = Arc::new(sins);
    let mut lanes = tokio::task::JoinSet::new();
    for who in 0..people {
        let (place, sins) = (Arc::clone(place), Arc::clone(&sins));
        lanes.spawn(async move {
            let mut wrong = Vec::new();
            for sin in sins.iter().skip(who).step_by(people) {
                match commit(&place, way, who, sin).await {
                    Ok(answer) if sin.gets.is(answer) => {}
                    Ok(answer) => {
                        wrong.push(format!("{}: {answer:?}, not {:?}", sin.name, sin.gets));
                    }
                    Err(error) => wrong.push(format!("{}: {error:#}", sin.name)),
                }
                if let Err(error) = place.is_well().await {
                    wrong.push(format!("after {}: {error:#}", sin.name));
                }
            }
            wrong
        });
    }
    let wrong: Vec<_> = lanes.join_all().await.concat();
    println!("{} sins committed", sins.len());
    anyhow::ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), sins.len(), wrong.join("\n"));
    Ok(())
}
