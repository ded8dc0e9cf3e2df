//! The broker's side of a login: whatever an agent says and when, no password is
//! tried before a proven hello and a frame of its own, one at most is, nothing is
//! signed that is not durable, and nothing is said after the end.

mod office;

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};
use tegata_agent::identity::Identity;
use tegata_broker::flows::login::{CHOICE_DEADLINE, HELLO_DEADLINE, Line, PASSWORD_DEADLINE};
use tegata_proto::PROTOCOL_VERSION;
use tegata_proto::encoding::Bytes;
use tegata_proto::frame::{self, Decoder, LIMIT_AFTER};
use tegata_proto::id::LinkNumber;
use tegata_proto::key::PublicKey;
use tegata_proto::login::{AgentMessage, BrokerMessage, Hello, Transaction};
use tegata_proto::proof::{EXPORTER_LEN, Proof, Purpose};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use self::office::Office;
use super::script::Script;

/// Most that an agent does in one run.
const EVENTS: usize = 40;

/// Longer than all deadlines of a login together, with what directory, store and queues may
/// take.
const LONGEST: Duration = HELLO_DEADLINE
    .saturating_add(PASSWORD_DEADLINE)
    .saturating_add(CHOICE_DEADLINE)
    .saturating_add(Duration::from_mins(6));

/// How long an agent stays that says nothing more.
const AGES: Duration = Duration::from_hours(1);

/// What fits onto the line before somebody reads.
const LINE: usize = 512;

const EXPORTER: [u8; EXPORTER_LEN] = [3; EXPORTER_LEN];

const TXN: Transaction = Bytes([5; 16]);

/// Reads the bytes as what directory and store answer, and then as what an agent does.
pub fn run(bytes: &[u8]) {
    held(bytes);
}

/// The same; returns for how long the broker went on with the login.
pub fn held(bytes: &[u8]) -> Duration {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // Nobody waits in earnest: time goes on when there is nothing else to do.
    let runtime = runtime.enable_time().start_paused(true).build().expect("a clock");
    runtime.block_on(login(Script::new(bytes)))
}

async fn login(mut script: Script<'_>) -> Duration {
    let office = Office::of(&mut script);
    let desk = Office::desk(&office).await;
    let reads = script.pick(&[true, false]);
    let (line, agent) = tokio::io::duplex(LINE);
    let (receive, send) = tokio::io::split(line);
    let (hear, say) = tokio::io::split(agent);
    let wire = Wire { gone: watch::Sender::new(false), closing: watch::Sender::new(false) };

    let began = Instant::now();
    let held = async {
        let held = timeout(LONGEST, desk.hold(&wire, receive, send, TXN, began)).await;
        assert!(held.is_ok(), "a login without an end");
        began.elapsed()
    };
    let speaks = speaks(say, &office, &wire, script);
    let (held, (), heard) = tokio::join!(held, speaks, hears(hear, reads));
    check(&heard, &office);
    held
}

/// The connection, apart from its stream.
struct Wire {
    gone: watch::Sender<bool>,
    closing: watch::Sender<bool>,
}

impl Line for Wire {
    fn address(&self) -> IpAddr {
        [192, 0, 2, 1].into()
    }

    fn exporter(&self) -> &[u8; EXPORTER_LEN] {
        &EXPORTER
    }

    fn admit(&self) {}

    async fn closing(&self) {
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    async fn closed(&self) {
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }
}

async fn speaks(
    mut say: WriteHalf<DuplexStream>,
    office: &Arc<Office>,
    wire: &Wire,
    mut script: Script<'_>,
) {
    for _ in 0..EVENTS {
        let Some(what) = script.byte() else { break };
        let bytes = match what % 11 {
            0 => framed(&hello()),
            1 => framed(&spoilt_hello(&mut script)),
            2 => framed(&password(&mut script)),
            3 => {
                let pool = script.pick(&["keiri", "soumu", "jinji"]);
                framed(&json!({"type": "choose", "pool": pool}))
            }
            4 => {
                let body = script.line();
                let length = u32::try_from(body.len()).expect("a short line");
                [&length.to_be_bytes(), body].concat()
            }
            5 => {
                let count = script.byte().unwrap_or_default();
                script.bytes(usize::from(count)).to_vec()
            }
            6 => {
                sleep(Duration::from_millis(script.pick(&[100, 700, 6_000, 130_000]))).await;
                continue;
            }
            7 => {
                office.revoke(script.pick(&[true, false]));
                continue;
            }
            8 => {
                wire.closing.send_replace(true);
                continue;
            }
            9 => {
                wire.gone.send_replace(true);
                continue;
            }
            _ => break,
        };
        // Before it is on its way, so that nobody acts on what was not said.
        office.says(&bytes);
        if say.write_all(&bytes).await.is_err() {
            return;
        }
    }
    if script.pick(&[false, true]) {
        let _ = say.shutdown().await;
    }
    // Whoever stays is waited for as long as the deadlines say.
    sleep(AGES).await;
}

/// Returns every message of the broker's. An agent that reads nothing hears what was
/// on the line.
async fn hears(mut hear: ReadHalf<DuplexStream>, reads: bool) -> Vec<BrokerMessage> {
    if !reads {
        sleep(AGES).await;
    }
    let (mut heard, mut decoder, mut piece) = (Vec::new(), Decoder::new(), [0; LINE]);
    while let Ok(length @ 1..) = hear.read(&mut piece).await {
        let mut piece = &piece[..length];
        while let Some(body) = decoder.take(&mut piece, LIMIT_AFTER).expect("a frame") {
            heard.push(frame::read(&body).expect("a message"));
        }
    }
    heard
}

/// What a broker says is in order, and only what it may say.
fn check(heard: &[BrokerMessage], office: &Office) {
    let said = office.said();
    let (mut welcomed, mut offered, mut assigned, mut over) = (false, None, false, false);
    for message in heard {
        assert!(!over, "{message:?} after the end");
        match message {
            BrokerMessage::Welcome(welcome) => {
                assert!(!welcomed && offered.is_none() && welcome.txn == TXN);
                assert!(matches!(&said[..], [AgentMessage::Hello(hello), ..] if is_proven(hello)));
                welcomed = true;
            }
            BrokerMessage::Queued { .. } => assert!(welcomed && !assigned),
            BrokerMessage::Pools { pools, .. } => {
                assert!(welcomed && offered.is_none() && office.is_known(), "pools for nobody");
                assert!(!pools.is_empty(), "nothing to choose from");
                offered = Some(pools.clone());
            }
            BrokerMessage::Progress { .. } => {
                assert!(offered.is_some() && !assigned);
                assigned = true;
            }
            BrokerMessage::Ticket(answer) => {
                let offered = offered.as_deref().unwrap_or_default();
                assert!(assigned && !answer.ticket.expose().is_empty());
                let chosen = match (offered, said.get(2)) {
                    ([only], _) => &only.name,
                    (_, Some(AgentMessage::Choose { pool })) => pool,
                    _ => unreachable!("nobody has chosen"),
                };
                assert!(offered.iter().any(|offer| offer.name == *chosen), "not offered");
                assert_eq!(office.assigned().as_ref(), Some(chosen), "another pool");
                over = true;
            }
            BrokerMessage::Error(failure) => {
                assert_ne!(failure.code.exit(), 0, "a login does not end well by an error");
                over = true;
            }
            BrokerMessage::Unsupported => unreachable!("it is never sent"),
        }
    }
}

/// Tells whether a hello is of the one who has the key, on this connection.
fn is_proven(hello: &Hello) -> bool {
    let (key, proof) = proven();
    hello.v == PROTOCOL_VERSION && hello.key == *key && hello.proof == *proof
}

fn proven() -> &'static (PublicKey, Proof) {
    static PROVEN: OnceLock<(PublicKey, Proof)> = OnceLock::new();
    PROVEN.get_or_init(|| {
        let identity = Identity::generate().expect("a key");
        (identity.public_key(), identity.prove(Purpose::Login, &EXPORTER, LinkNumber::LOGIN))
    })
}

fn hello() -> Value {
    let (key, proof) = proven();
    json!({
        "type": "hello", "v": PROTOCOL_VERSION, "agent_version": "1.0.0", "locale": "ja",
        "key": key, "proof": proof,
    })
}

fn spoilt_hello(script: &mut Script<'_>) -> Value {
    let mut hello = hello();
    let long = "x".repeat(129);
    let (name, text) = script.pick(&[
        ("v", "0"),
        ("agent_version", "0.0.9"),
        ("agent_version", "new"),
        ("locale", "\u{7}"),
        ("device_id", &long),
        ("proof", ""),
    ]);
    hello[name] = match name {
        "v" => json!(0),
        "proof" => json!(Bytes([0; 64])),
        _ => json!(text),
    };
    hello
}

fn password(script: &mut Script<'_>) -> Value {
    let txn = script.pick(&[TXN, TXN, Bytes([0; 16])]);
    let name = script.pick(&["sato", "tanaka", "nobody", "", "no\0body"]);
    let password = script.pick(&["right", "wrong", "", "\0right"]);
    let realm = script.pick(&[None, Some("honsho"), Some("gaikyoku")]);
    json!({"type": "password", "txn": txn, "realm": realm, "name": name, "password": password})
}

fn framed(message: &Value) -> Vec<u8> {
    frame::write(message, LIMIT_AFTER).expect("a short one")
}
