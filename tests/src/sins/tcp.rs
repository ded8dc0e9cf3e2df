//! Sins by TLS on TCP: before TLS, within it, and against HTTP/2.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tegata_parts::streams::raw::{
    CONTINUATION, Cut, DATA, END_HEADERS, GOAWAY, HEADERS, PING, PREFACE, PUSH_PROMISE, REQUEST,
    RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, frame, open,
};
use tegata_parts::streams::{Closed, Streams};
use tegata_proto::proof::EXPORTER_LABEL;
use tegata_proto::{ALPN_LOGIN, ALPN_SESSION};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::conversation::framed;
use super::place::Place;
use super::{Answer, DEADLINE, SLACK};
use crate::stranger::credulous_tls;

/// Error codes of HTTP/2 (RFC 9113 §7).
const PROTOCOL_ERROR: u64 = 1;
const FLOW_CONTROL_ERROR: u64 = 3;
const STREAM_CLOSED: u64 = 5;
const FRAME_SIZE_ERROR: u64 = 6;
const COMPRESSION_ERROR: u64 = 9;
const ENHANCE_YOUR_CALM: u64 = 11;

/// A header of the PROXY protocol, version 2: from 10.0.0.1 to 127.0.0.1.
const PROXY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x7f\0\0\x01\x12\x34\x01\xbb";

/// How many frames a flood has.
const FLOOD: usize = 100_000;

/// One sin.
pub struct Sin {
    /// What it is.
    pub name: &'static str,
    /// What is said, and how.
    pub says: Says,
    /// What it gets.
    pub gets: Answer,
}

/// How something is said.
pub enum Says {
    /// Without TLS.
    Bare(Vec<u8>),
    /// Within TLS.
    InTls(Vec<u8>),
    /// Within TLS, a byte a second.
    Trickled(Vec<u8>),
    /// Within TLS, over and over, by somebody who reads nothing.
    Deafly(Vec<u8>),
}

/// The rows.
pub fn table() -> Vec<Sin> {
    let mut rows = before_http();
    rows.extend(against_streams());
    rows.extend(against_frames());
    rows.extend(floods());
    rows.extend([
        Sin {
            name: "a byte a second",
            says: Says::Trickled(PREFACE.to_vec()),
            gets: Answer::Closed,
        },
        Sin {
            name: "pings without end, and nobody who reads",
            says: Says::Deafly([PREFACE, &frame(PING, 0, 0, &[1; 8]).repeat(1_000)].concat()),
            gets: Answer::Closed,
        },
    ]);
    rows
}

/// Without TLS, and within it without HTTP/2.
fn before_http() -> Vec<Sin> {
    let bare =
        |name, bytes: &[u8]| Sin { name, says: Says::Bare(bytes.to_vec()), gets: Answer::Closed };
    let in_tls =
        |name, bytes: &[u8]| Sin { name, says: Says::InTls(bytes.to_vec()), gets: Answer::Closed };
    vec![
        bare("nothing", b""),
        bare("one byte of a hello", b"\x16"),
        bare(
            "half a hello",
            &[&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..], &[7; 40]].concat(),
        ),
        bare("HTTP", b"GET / HTTP/1.1\r\nHost: tegata\r\n\r\n"),
        bare("the preface of HTTP/2", PREFACE),
        bare("another protocol's banner", b"SSH-2.0-OpenSSH_9.2p1\r\n"),
        bare("zeros", &[0; 4096]),
        bare("a record of 64 KiB", b"\x16\x03\x01\xff\xff\x01"),
        bare("a PROXY header from nobody's balancer", PROXY),
        bare("the text of a PROXY header", b"PROXY TCP4 10.0.0.1 127.0.0.1 4660 443\r\n"),
        in_tls("silence", b""),
        in_tls("HTTP/1", b"POST / HTTP/1.1\r\nHost: tegata\r\n\r\n"),
        in_tls("half a preface", &PREFACE[..12]),
        in_tls("a PROXY header within TLS", PROXY),
        in_tls("a frame of ours without HTTP/2", &framed(b"{\"type\":\"hello\"}")),
    ]
}

/// Streams that are none.
fn against_streams() -> Vec<Sin> {
    let literal = |name: &[u8], value: &[u8]| {
        let length = |text: &[u8]| u8::try_from(text.len()).unwrap_or(u8::MAX);
        [&[0, length(name)][..], name, &[length(value)], value].concat()
    };
    let headers = |more: &[u8]| frame(HEADERS, END_HEADERS, 1, &[REQUEST, more].concat());
    vec![
        http("no stream", vec![], Answer::Closed),
        http("a stream and no frame", open(1), Answer::Closed),
        http("a frame beyond 64 KiB", b"\x01\0\x01\0\0\0\0\0\x01", told(FRAME_SIZE_ERROR)),
        http("bytes on no stream", frame(DATA, 0, 1, b"x"), told(PROTOCOL_ERROR)),
        http("a stream with the server's number", open(2), told(PROTOCOL_ERROR)),
        http("a stream with a number below", [open(3), open(1)].concat(), Answer::Endured),
        http("no headers", frame(HEADERS, END_HEADERS, 1, b""), Answer::Endured),
        http(
            "headers that are no HPACK",
            frame(HEADERS, END_HEADERS, 1, &[0xff; 20]),
            either(COMPRESSION_ERROR),
        ),
        http(
            "a header of a proxy's",
            headers(&literal(b"x-forwarded-for", b"10.0.0.1")),
            told(PROTOCOL_ERROR),
        ),
        http(
            "another method",
            frame(HEADERS, END_HEADERS, 1, b"\x82\x87\x84\x01\x06tegata"),
            told(PROTOCOL_ERROR),
        ),
        http(
            "another place",
            frame(HEADERS, END_HEADERS, 1, b"\x83\x87\x84\x01\x07example"),
            told(PROTOCOL_ERROR),
        ),
        http("headers without end", opened(frame(HEADERS, 0, 3, b"\x83")), Answer::Closed),
        http(
            "a thousand pieces of headers",
            [frame(HEADERS, 0, 1, b"\x83"), many(1_000, |_| frame(CONTINUATION, 0, 1, b""))]
                .concat(),
            told(ENHANCE_YOUR_CALM),
        ),
        http(
            "headers of a megabyte",
            [
                frame(HEADERS, 0, 1, b"\x83"),
                many(80, |_| frame(CONTINUATION, 0, 1, &literal(b"x", &[b'y'; 120]).repeat(100))),
            ]
            .concat(),
            Answer::EitherTransport(ENHANCE_YOUR_CALM, COMPRESSION_ERROR),
        ),
    ]
}

/// Frames that break a rule.
fn against_frames() -> Vec<Sin> {
    let setting = |id: u16, value: u32| {
        frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
    };
    vec![
        http(
            "a promise",
            opened(frame(PUSH_PROMISE, 4, 1, &[0, 0, 0, 2, 0x82])),
            told(PROTOCOL_ERROR),
        ),
        http("room for nothing", opened(frame(WINDOW_UPDATE, 0, 0, &[0; 4])), told(PROTOCOL_ERROR)),
        http(
            "room beyond all bounds",
            opened(frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()).repeat(2)),
            told(FLOW_CONTROL_ERROR),
        ),
        http("a window beyond all bounds", setting(4, u32::MAX), either(FLOW_CONTROL_ERROR)),
        http("a frame size of nothing", setting(5, 0), told(PROTOCOL_ERROR)),
        http("a setting cut short", frame(SETTINGS, 0, 0, &[0, 4, 0]), either(FRAME_SIZE_ERROR)),
        http("a ping cut short", frame(PING, 0, 0, &[0; 7]), either(FRAME_SIZE_ERROR)),
        http("a reset of no stream", frame(RST_STREAM, 0, 1, &[0; 4]), told(PROTOCOL_ERROR)),
        http("an end, and then more", frame(GOAWAY, 0, 0, &[0; 8]), Answer::Endured),
        http(
            "more than everybody's window",
            second(frame(DATA, 0, 3, &[0; 32 * 1024]).repeat(33)),
            Answer::Endured,
        ),
        http(
            "bytes after the end",
            second([frame(DATA, 1, 3, b"x"), frame(DATA, 0, 3, b"x")].concat()),
            either(STREAM_CLOSED),
        ),
        http("hundreds of streams", many(300, |n| open(2 * n + 1)), told(ENHANCE_YOUR_CALM)),
    ]
}

/// Frames behind the preface.
fn http(name: &'static str, frames: impl AsRef<[u8]>, gets: Answer) -> Sin {
    Sin { name, says: Says::InTls([PREFACE, frames.as_ref()].concat()), gets }
}

fn told(error: u64) -> Answer {
    Answer::Transport(error)
}

/// What the RFC asks for, or what says less.
fn either(error: u64) -> Answer {
    Answer::EitherTransport(error, PROTOCOL_ERROR)
}

fn opened(more: impl AsRef<[u8]>) -> Vec<u8> {
    [&open(1), more.as_ref()].concat()
}

/// Opens the login's stream with the start of a frame, so that it does not end for
/// want of one yet, and another stream that nobody reads.
fn second(more: impl AsRef<[u8]>) -> Vec<u8> {
    [&opened(frame(DATA, 0, 1, &[0, 0])), &open(3), more.as_ref()].concat()
}

fn many(count: usize, each: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..u32::try_from(count).unwrap_or(u32::MAX)).flat_map(each).collect()
}

/// Floods of small things.
fn floods() -> Vec<Sin> {
    let flood = |name, start: Vec<u8>, each: &dyn Fn(u32) -> Vec<u8>, gets| {
        http(name, [start, many(FLOOD, each)].concat(), gets)
    };
    let busy = || opened(frame(DATA, 0, 1, &[0, 0]));
    let calm = Answer::Transport(ENHANCE_YOUR_CALM);
    vec![
        flood(
            "a flood of streams that are given up at once",
            vec![],
            &|n| [open(2 * n + 1), frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8])].concat(),
            calm,
        ),
        flood("a flood of pings", busy(), &|_| frame(PING, 0, 0, &[1; 8]), Answer::Endured),
        flood("a flood of settings", busy(), &|_| frame(SETTINGS, 0, 0, b""), Answer::Endured),
        flood("a flood of empty frames", second([]), &|_| frame(DATA, 0, 3, b""), calm),
        flood("a flood of single bytes", second([]), &|_| frame(DATA, 0, 3, b"x"), Answer::Closed),
        flood(
            "a flood of room",
            busy(),
            &|_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
            Answer::Endured,
        ),
        flood(
            "a flood of resets of one stream",
            second([]),
            &|_| frame(RST_STREAM, 0, 3, &[0, 0, 0, 8]),
            Answer::Endured,
        ),
        flood(
            "a flood of frames that nobody knows",
            busy(),
            &|_| frame(0xee, 0, 0, b"x"),
            Answer::Endured,
        ),
    ]
}

async fn connect(from: Ipv4Addr, to: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    Ok(timeout(DEADLINE + SLACK, socket.connect(to)).await.context("nobody accepts")??)
}

/// Commits a sin, and returns what came of it.
///
/// # Errors
///
/// When the broker does not end it in time.
pub async fn commit(place: &Place, sin: &Sin) -> Result<Answer> {
    let mut socket = connect(place.caller(), place.site.listen()).await?;
    let tls = Arc::new(credulous_tls(&[ALPN_LOGIN])?);
    let answered = async {
        let closed = match &sin.says {
            Says::Bare(bytes) => {
                // What the broker has closed takes no more.
                let _ = socket.write_all(bytes).await;
                while !matches!(socket.read(&mut [0; 256]).await, Ok(0) | Err(_)) {}
                Closed::Cut
            }
            Says::InTls(bytes) => Raw::connect(socket, tls).await?.say(bytes).await,
            Says::Trickled(bytes) => {
                let raw = Raw::connect(socket, tls).await?;
                raw.trickle(bytes, Duration::from_secs(1)).await
            }
            Says::Deafly(bytes) => {
                Raw::connect(socket, tls).await?.say_deafly(bytes).await;
                Closed::Cut
            }
        };
        Ok(match closed {
            Closed::Cut => Answer::Closed,
            // The broker's own codes begin there; what it says in them is not the matter.
            Closed::Said(0 | 0x100..) => Answer::Closed,
            Closed::Said(error) => Answer::Transport(error.into()),
        })
    };
    // Both handshake and first frame have a deadline.
    timeout(2 * DEADLINE + SLACK, answered).await.context("it is still held")?
}

/// Commits each sin.
///
/// # Errors
///
/// Names every sin that got something else.
pub async fn commit_all(place: &Arc<Place>, lanes: usize, sins: Vec<Sin>) -> Result<()> {
    let sins = Arc::new(sins);
    let mut sinners = JoinSet::new();
    for lane in 0..lanes {
        let (place, sins) = (Arc::clone(place), Arc::clone(&sins));
        sinners.spawn(async move {
            let mut wrong = Vec::new();
            for sin in sins.iter().skip(lane).step_by(lanes) {
                match commit(&place, sin).await {
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
    let wrong = sinners.join_all().await.concat();
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), sins.len(), wrong.join("\n"));
    Ok(())
}

/// Bytes that an honest client sends up to its first frame: hello and finish of TLS,
/// preface and settings, headers, and the frame.
const CONVERSATION: usize = 700;

/// Lets so many peers go silent, each after other bytes, and waits until the broker has
/// ended all of them.
///
/// # Errors
///
/// Names the peers that are still held when their deadlines are long over.
pub async fn gathers(place: &Place, count: usize) -> Result<()> {
    let mut peers = JoinSet::new();
    for n in 0..count {
        let (from, to) = (place.caller(), place.site.listen());
        let bytes = 1 + n * CONVERSATION / count.max(1);
        let alpn = if n % 2 == 0 { ALPN_LOGIN } else { ALPN_SESSION };
        let tls = Arc::new(credulous_tls(&[alpn])?);
        peers.spawn(async move {
            let ended = timeout(3 * DEADLINE + SLACK, goes_silent(from, to, tls, bytes)).await;
            match ended {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("after {bytes} bytes: {error:#}")),
                Err(_) => Some(format!("after {bytes} bytes: it is still held")),
            }
        });
    }
    let held: Vec<_> = peers.join_all().await.into_iter().flatten().collect();
    ensure!(held.is_empty(), "{}:\n{}", held.len(), held.join("\n"));
    Ok(())
}

async fn goes_silent(
    from: Ipv4Addr,
    to: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    bytes: usize,
) -> Result<()> {
    let socket = connect(from, to).await?;
    let local = socket.local_addr()?;
    let streams = Streams::over(Cut::after(socket, bytes), local, tls, EXPORTER_LABEL).await;
    // Whoever does not get as far has been ended.
    let Ok(streams) = streams else { return Ok(()) };
    let stream = streams.open().await;
    if let Ok((mut send, _receive)) = stream {
        // A frame that is longer than what is said of it.
        let frame = [&[0, 0, 0, 99][..], &[b' '; 90]].concat();
        let _ = send.write_all(&frame).await;
        streams.closed().await;
    }
    Ok(())
}

/// Connects so many times from a few addresses, and says nothing.
///
/// # Errors
///
/// When nobody accepts.
pub async fn stand_half_way(place: &Place, count: usize) -> Result<Vec<TcpStream>> {
    const FROM: usize = 64;
    let callers: Vec<_> = (0..FROM).map(|_| place.caller()).collect();
    let mut standing = Vec::with_capacity(count);
    for n in 0..count {
        // One that was turned away by now does not stand there.
        standing.extend(connect(callers[n % FROM], place.site.listen()).await.ok());
    }
    Ok(standing)
}

/// Waits until the broker has closed every one of them.
///
/// # Errors
///
/// When one still stands after `limit`.
pub async fn are_gone(standing: Vec<TcpStream>, limit: Duration) -> Result<()> {
    let gone = timeout(limit, async {
        for mut socket in standing {
            while !matches!(socket.read(&mut [0; 256]).await, Ok(0) | Err(_)) {}
        }
    });
    gone.await.context("some still stand there")
}

/// Is greeted by TCP as an honest client is, by its HTTP/2 at least.
///
/// # Errors
///
/// When it is kept out.
pub async fn comes_in(place: &Place) -> Result<()> {
    let socket = connect(place.caller(), place.site.listen()).await?;
    let tls = Arc::new(credulous_tls(&[ALPN_LOGIN])?);
    let streams = Streams::connect(socket, tls, EXPORTER_LABEL).await?;
    let (mut send, mut receive) = streams.open().await?;
    send.write_all(&framed(br#"{"type":"dance"}"#)).await?;
    let mut head = [0; 4];
    timeout(DEADLINE, receive.read_exact(&mut head)).await.context("no answer")??;
    Ok(())
}
