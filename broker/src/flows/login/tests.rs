//! What a login conversation does when its agent does not.

use std::num::NonZeroU32;

use tokio::io::{AsyncReadExt as _, duplex};

use super::*;
use crate::flows::turnstile::{Lane, Turned, Turnstile};

#[test]
fn versions_are_compared_as_numbers() {
    let version = |text| Version::parse(text);
    assert!(version("0.10.0") > version("0.9.9"));
    assert_eq!(version("1.2.3-rc1"), version("1.2.3+build"));
    for bad in ["", "1", "1.2", "1.2.3.4", "a.b.c", "-1.0.0", "1..2"] {
        assert_eq!(version(bad), None, "{bad}");
    }
}

impl From<Turned> for Stopped {
    fn from(_: Turned) -> Self {
        Self::Gone
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_read_their_place_holds_no_slot_of_the_directory() {
    let turnstile = Turnstile::new(1);
    let home = (Prefix::of([192, 0, 2, 1].into()), NonZeroU32::MIN);
    let working = turnstile.enter(Lane::Usual, home, |_| {}).await.unwrap();

    // A line that takes half a frame, and no more until somebody reads.
    let (line, mut agent) = duplex(8);
    let (receive, send) = tokio::io::split(line);
    let mut talk = Talk { reader: FrameReader::new(receive), writer: FrameWriter::new(send) };
    let (tell, mut told) = watch::channel(None);
    let tell = |queued| {
        tell.send_replace(Some(queued));
    };
    let deaf = async {
        let entering = turnstile.enter(Lane::Usual, home, tell);
        let Ok(pass) = talk.tell_while(&mut told, entering).await else { panic!("it is gone") };
        drop(pass);
        Instant::now()
    };
    let behind = async {
        drop(turnstile.enter(Lane::Usual, home, |_| {}).await.unwrap());
        Instant::now()
    };
    let leaves = async {
        // Long enough for a second word, and a third.
        tokio::time::sleep(Duration::from_secs(3)).await;
        drop(working);
        Instant::now()
    };
    let (deaf, behind, left) = tokio::join!(deaf, behind, leaves);
    assert_eq!((deaf, behind), (left, left), "nobody waits for one who does not read");

    let reads = async {
        let mut said = vec![0; 128];
        let mut length = 0;
        while !said[..length].ends_with(b"\"assigned\"}") {
            length += agent.read(&mut said[length..]).await.unwrap();
        }
        said.truncate(length);
        said
    };
    let assigned = BrokerMessage::Progress { phase: Step::Assigned, expected_ms: None };
    let says = talk.say(&assigned);
    let (said, outcome) = tokio::join!(reads, says);
    assert!(outcome.is_ok());
    let mut reader = FrameReader::new(&said[..]);
    let first: BrokerMessage = reader.read(LIMIT_AFTER, Instant::now()).await.unwrap();
    assert!(matches!(first, BrokerMessage::Queued { place: 1, .. }), "{first:?}");
    let second: BrokerMessage = reader.read(LIMIT_AFTER, Instant::now()).await.unwrap();
    assert_eq!(second, assigned, "the frame that had begun is whole");
}
