//! Sins of an open QUIC connection: frames that a peer may not send, and floods
//! of those that it may (RFC 9000 §12.4, §19, §21).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use quinn::congestion::NewRenoConfig;
use quinn::{ConnectionError, TransportConfig};
use tegata_proto::ALPN_LOGIN;
use tokio::time::timeout;

use super::conversation::closed;
use super::forge::{Filler, Forge, put_number};
use super::place::Place;
use super::{Answer, DEADLINE, SLACK};
use crate::stranger::{Line, credulous};

/// One sin: the frames of each packet, and what they get.
pub struct Sin {
    /// What it is.
    pub name: &'static str,
    /// What the packets hold.
    pub filler: Filler,
    /// What it gets.
    pub gets: Answer,
    /// How many full packets are sent.
    pub packets: usize,
}

/// Bytes of a full packet, as a client may send them before it knows more.
const PACKET: usize = 1_200;

/// Bytes that may be on their way: more than any flood has.
const WINDOW: u64 = 16 * 1024 * 1024;

/// How often a sinner asks whether its connection is still there.
const AGAIN: Duration = Duration::from_millis(500);

/// Transport errors (RFC 9000 §20.1).
const FLOW_CONTROL: u64 = 0x03;
const STREAM_LIMIT: u64 = 0x04;
const STREAM_STATE: u64 = 0x05;
const FINAL_SIZE: u64 = 0x06;
const FRAME_ENCODING: u64 = 0x07;
const CONNECTION_ID_LIMIT: u64 = 0x09;
const PROTOCOL_VIOLATION: u64 = 0x0a;
const CRYPTO_BUFFER_EXCEEDED: u64 = 0x0d;
/// TLS alert `unexpected_message`.
const UNEXPECTED_MESSAGE: u64 = 0x100 + 10;
/// TLS alert `decode_error`.
const DECODE_ERROR: u64 = 0x100 + 50;

/// A connection that is gone and says no more why. No error has this number.
const RESET: u64 = u64::MAX;

/// Writes a frame: its type, numbers, and bytes.
fn frame(kind: u64, numbers: &[u64], bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    put_number(&mut frame, kind);
    for number in numbers {
        put_number(&mut frame, *number);
    }
    frame.extend(bytes);
    frame
}

/// Fills a packet with what `next` makes for each of its places.
fn filled(each: usize, next: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static) -> Filler {
    Arc::new(move |packet, room| {
        let places = (room / each) as u64;
        (0..places).flat_map(|place| next(packet * (PACKET / each) as u64 + place)).collect()
    })
}

fn once(name: &'static str, frames: Vec<u8>, error: u64) -> Sin {
    let filler = Arc::new(move |_, _| frames.clone());
    Sin { name, filler, gets: Answer::Transport(error), packets: 2 }
}

/// Frames that are answered by the end of their connection.
pub fn forbidden() -> Vec<Sin> {
    let largest = (1 << 62) - 1;
    let stream = |id, offset, data: &[u8]| frame(0x0e, &[id, offset, data.len() as u64], data);
    let resized = [stream(0, 0, b""), frame(0x0f, &[0, 10, 0], b""), stream(0, 20, b"x")].concat();
    let cid = |sequence, retire, length: u8| {
        let id = vec![7; usize::from(length)];
        frame(0x18, &[sequence, retire], &[&[length][..], &id, &[9; 16]].concat())
    };
    let many_ids = (2..40).flat_map(|sequence| cid(sequence, 0, 8)).collect();
    vec![
        once("an unknown frame", frame(0x21, &[], b""), FRAME_ENCODING),
        once("the last of all frame types", frame(largest, &[], b""), FRAME_ENCODING),
        once("a frame cut short by its packet", vec![0x1a, 1, 2], FRAME_ENCODING).at_the_end(),
        once("a stream longer than its packet", frame(0x0e, &[0, 0, 60_000], b"x"), FRAME_ENCODING),
        once("HANDSHAKE_DONE from a client", frame(0x1e, &[], b""), PROTOCOL_VIOLATION),
        once("NEW_TOKEN from a client", frame(0x07, &[1], b"x"), PROTOCOL_VIOLATION),
        once("a datagram, which nobody allowed", frame(0x31, &[1], b"x"), PROTOCOL_VIOLATION),
        once("an answer on a stream never opened", stream(1, 0, b"x"), STREAM_STATE),
        once("a one-way stream", stream(2, 0, b"x"), STREAM_LIMIT),
        once("a fifth stream", stream(16, 0, b"x"), STREAM_LIMIT),
        once("a stream far beyond its window", stream(0, 1 << 30, b"x"), FLOW_CONTROL),
        once("a stream beyond what can be counted", stream(0, largest, b"x"), FRAME_ENCODING)
            .or(FLOW_CONTROL),
        once("data beyond the end of a stream", resized, FINAL_SIZE),
        once(
            "packets acknowledged that were never sent",
            frame(0x02, &[1 << 20, 0, 0, 0], b""),
            PROTOCOL_VIOLATION,
        ),
        once("acknowledgements below nothing", frame(0x02, &[3, 0, 0, 9], b""), FRAME_ENCODING),
        once("a connection id of no bytes", cid(2, 0, 0), FRAME_ENCODING),
        once("a connection id of 21 bytes", cid(2, 0, 21), FRAME_ENCODING),
        once("an id that retires later ones", cid(2, 3, 8), FRAME_ENCODING).or(PROTOCOL_VIOLATION),
        once("more connection ids than allowed", many_ids, CONNECTION_ID_LIMIT).or(RESET),
        once(
            "an id retired that was never given",
            frame(0x19, &[1 << 20], b""),
            PROTOCOL_VIOLATION,
        ),
        once("TLS out of turn", frame(0x06, &[0, 4], &[1, 0, 0, 0]), UNEXPECTED_MESSAGE)
            .or(DECODE_ERROR),
        once("TLS far ahead", frame(0x06, &[1 << 20, 1], b"x"), CRYPTO_BUFFER_EXCEEDED),
        once("more streams than there are", frame(0x12, &[largest], b""), FRAME_ENCODING),
    ]
}

/// Frames that may be sent, in numbers that may not matter.
pub fn floods(frames: usize) -> Vec<Sin> {
    let flood = |name, each: usize, filler| Sin {
        name,
        filler,
        gets: Answer::Endured,
        packets: frames.div_ceil(PACKET / each),
    };
    let challenge = |n: u64| frame(0x1a, &[], &n.to_be_bytes());
    // Within what a stranger may send ahead; beyond it, the first one is the last.
    let gapped = |n: u64| frame(0x0e, &[0, 2 * (n % 3_900) + (1 << 8), 1], b"x");
    let backwards = |n: u64| frame(0x0e, &[0, 8_000 - 2 * (n % 3_900), 1], b"x");
    let empty = |n: u64| frame(0x0e, &[0, 2 * (n % 4_000), 0], b"");
    let new_id = |n: u64| {
        // Each retires the one before, so that the number in use never rises.
        frame(0x18, &[n + 2, n + 1], &[&[8][..], &n.to_be_bytes(), &[9; 16]].concat())
    };
    let blocked = |n: u64| frame(0x16, &[n % 4], b"");
    vec![
        flood("path challenges", 9, filled(9, challenge)),
        flood("connection ids that replace one another", 34, filled(34, new_id)),
        flood("one byte at every second offset", 12, filled(12, gapped)),
        flood("one byte at every second offset, backwards", 12, filled(12, backwards)),
        flood("fragments of no byte", 12, filled(12, empty)),
        flood("pings", 1, filled(1, |_| vec![1])),
        flood("complaints of too few streams", 2, filled(2, blocked)),
    ]
}

/// Makes as much of a stream, but for its beginning, as a session may send ahead.
pub fn far_ahead() -> Sin {
    const AHEAD: u64 = 512 * 1024;
    const PIECE: usize = 1_000;
    /// With the frame's own bytes.
    const EACH: usize = PIECE + 16;
    let piece = |n: u64| frame(0x0e, &[0, n * PIECE as u64 + 8, PIECE as u64], &[0; PIECE]);
    Sin {
        name: "far ahead",
        filler: filled(EACH, piece),
        gets: Answer::Transport(FLOW_CONTROL),
        packets: usize::try_from(AHEAD).unwrap_or(usize::MAX) / PIECE,
    }
}

impl Sin {
    /// Names another error that is as good.
    fn or(mut self, error: u64) -> Self {
        self.gets = match self.gets {
            Answer::Transport(first) => Answer::EitherTransport(first, error),
            other => other,
        };
        self
    }

    /// Puts the frames at the very end of their packet.
    fn at_the_end(mut self) -> Self {
        let frames = self.filler;
        self.filler = Arc::new(move |packet, room| {
            let frames = frames(packet, room);
            let padding = room.saturating_sub(frames.len());
            [vec![0; padding], frames].concat()
        });
        self
    }
}

/// Commits a sin and returns what came of it.
///
/// # Errors
///
/// When the connection cannot be made, or nothing comes of it in time.
pub async fn commit(place: &Place, sin: &Sin) -> Result<Answer> {
    let forge = Forge { filler: Some(Arc::clone(&sin.filler)), ..Forge::default() };
    let mut config = forge.client(credulous(&[ALPN_LOGIN])?);
    // A sinner keeps no window: whoever is deaf to every answer would else fall
    // silent, and never hear that its connection is gone.
    let mut congestion = NewRenoConfig::default();
    congestion.initial_window(WINDOW);
    let mut transport = TransportConfig::default();
    transport.congestion_controller_factory(Arc::new(congestion));
    config.transport_config(Arc::new(transport));
    let mut line = Line::open_with(config, place.caller(), place.site.listen()).await?;
    forge.armed.store(true, Ordering::Relaxed);
    // What quinn believes to send: full packets, whose frames are others.
    let bytes = vec![0; PACKET];
    for _ in 0..sin.packets {
        if line.send(&bytes).await.is_err() {
            break;
        }
    }
    // Without a hello the broker ends it by its own deadline at the latest. Its
    // word of it may be lost in the flood; one more packet has it said again.
    let connection = line.quic().context("not by QUIC")?.clone();
    let why = timeout(DEADLINE + SLACK, async {
        let mut again = tokio::time::interval(AGAIN);
        loop {
            tokio::select! {
                biased;
                why = connection.closed() => return why,
                _ = again.tick() => drop(line.send(&bytes).await),
            }
        }
    })
    .await;
    match why.context("the broker did not close")? {
        // Its word was lost, or went to a connection id that it was told to use.
        ConnectionError::Reset => Ok(Answer::Transport(RESET)),
        why => closed(&why),
    }
}

/// Commits each sin, and checks what it gets and that the broker is well after it.
///
/// # Errors
///
/// Names every sin that got something else.
pub async fn commit_all(place: &Arc<Place>, sins: Vec<Sin>) -> Result<()> {
    let mut wrong = Vec::new();
    for sin in &sins {
        match commit(place, sin).await {
            Ok(answer) if sin.gets.is(answer) => {}
            Ok(answer) => wrong.push(format!("{}: {answer:x?}, not {:x?}", sin.name, sin.gets)),
            Err(error) => wrong.push(format!("{}: {error:#}", sin.name)),
        }
        if let Err(error) = place.is_well().await {
            wrong.push(format!("after {}: {error:#}", sin.name));
        }
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), sins.len(), wrong.join("\n"));
    Ok(())
}

/// How much a flood may cost while it lasts, in KiB: what a stranger may send ahead, and a
/// margin for the allocator.
pub const FLOOD_KIB: u64 = 4 * 1024;

/// Floods, and returns the most memory that was seen meanwhile beyond what there
/// was before, in KiB.
///
/// # Errors
///
/// When honest clients suffer, or the broker does not end it.
pub async fn flood(place: &Arc<Place>, sin: &Sin) -> Result<u64> {
    let before = place.memory_kib()?;
    let mut most = before;
    let committed = commit(place, sin);
    let mut watched = std::pin::pin!(place.meanwhile(committed));
    loop {
        tokio::select! {
            done = &mut watched => {
                let (answer, fared) = done.with_context(|| sin.name)?;
                println!("{}: {answer:x?}, {fared:?}, {} KiB", sin.name, most - before);
                return Ok(most - before);
            }
            () = tokio::time::sleep(Duration::from_millis(50)) => {
                most = most.max(place.memory_kib()?);
            }
        }
    }
}
