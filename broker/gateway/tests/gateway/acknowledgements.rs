//! What an agent that acknowledges too little or nothing holds up: its own desktop.

use std::time::Duration;

use tegata_edge::connection::REPLAY;
use tegata_proto::code::Code;
use tegata_proto::session::Mode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::open;
use super::relay::{MIB, echo, noise, seated};
use crate::office::{Line, desktop, take, within};

/// How long a desktop that gets nowhere is taken for held back.
const STUCK: Duration = Duration::from_secs(1);

/// What one read takes from a desktop at most, beyond the replay window's bytes.
const ONE_READ: usize = 256 * 1024;

/// More than the window and all buffers on the way together.
const FLOOD: usize = 48 * MIB;

fn replay() -> usize {
    usize::try_from(REPLAY).expect("a test's length")
}

/// Has a desktop say `said`, and reads what comes of it until nothing more does.
async fn read_all(line: &mut Line, desktop: &mut TcpStream, said: &[u8]) -> (usize, Vec<u8>) {
    let (mut read, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
    let mut written = 0;
    loop {
        tokio::select! {
            more = desktop.write(&said[written..]), if written < said.len() => {
                written += more.expect("open");
            }
            more = timeout(STUCK, line.recv.read(&mut piece)) => match more {
                Ok(more) => read.extend_from_slice(&piece[..more.expect("open")]),
                Err(_) => return (written, read),
            },
        }
    }
}

#[tokio::test]
async fn a_desktop_is_held_back_by_an_agent_that_reads_all_and_acknowledges_nothing() {
    let office = open();
    let said = noise(FLOOD, 12);
    let (person, mut call, mut line, mut desktop) = seated(&office, 1).await;
    let (_, _call, mut other_line, mut other_desktop) = seated(&office, 2).await;
    let (written, read) = read_all(&mut line, &mut desktop, &said).await;
    assert!(written < FLOOD, "somewhere on the way it piles up");
    assert!(read == said[..read.len()]);
    let window = replay()..=replay() + ONE_READ;
    assert!(window.contains(&read.len()), "{} bytes may have to be sent again", read.len());
    echo(&mut other_line, &mut other_desktop).await;
    line.send.write_all(b"typed").await.expect("room");
    within(desktop.read_exact(&mut [0; 5])).await.expect("what goes up is held back by nothing");
    let listed = office.sessions.live();
    assert!(listed.iter().any(|link| link.sid == person.sid), "nor is the link ended");

    // A word makes room for as much again, and the rest comes as it is acknowledged.
    let before = read.len();
    call.ack(before as u64).await;
    let (more, next) = read_all(&mut line, &mut desktop, &said[written..]).await;
    let written = written + more;
    assert!(window.contains(&next.len()), "{} bytes", next.len());
    assert!(next == said[before..before + next.len()]);
    let before = before + next.len();
    call.ack(before as u64).await;
    let mut rest = vec![0; written - before];
    take(&mut line.recv, &mut call, before as u64, &mut rest).await;
    assert!(rest == said[before..written], "no byte was lost in the jam");
    call.bye(Code::Disconnected).await;
}

#[tokio::test]
async fn what_was_never_acknowledged_makes_room_once_the_next_link_names_it() {
    let office = open();
    office.broker.hold_for(60);
    let (listener, target) = desktop().await;
    let person = office.person(1, target);
    let (call, mut line, mut desktop) = office.seat(&person, &listener).await;
    let said = noise(FLOOD, 13);
    let (written, read) = read_all(&mut line, &mut desktop, &said).await;
    call.connection.close(0_u32.into(), b"");
    office.broker.report(person.sid).await;

    let (before, has) = (read.len(), read.len() - 1_000);
    let mut call = office.call().await;
    call.attach(person.resume(2, &call.exporter, 1, has as u64)).await;
    assert_eq!(call.attached().await.mode, Mode::Resumed);
    let mut line = call.open().await;
    let (_, next) = read_all(&mut line, &mut desktop, &said[written..]).await;
    assert!(next.len() > replay(), "{} bytes after {before}", next.len());
    assert!(next == said[has..has + next.len()], "from the byte that it has named");
}
