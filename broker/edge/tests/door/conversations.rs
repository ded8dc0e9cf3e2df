//! Frames on real streams, good and bad.

use std::time::Duration;

use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use serde_json::{Value, json};
use tegata_edge::Limits;
use tegata_edge::wire::{FrameReader, FrameWriter, WireError};
use tokio::time::{Instant, timeout};

use crate::house::{BAD_FRAME, FIRST, FRAME_LIMIT, House, LONG, Server, ask, within};

/// How long a write waits that finds no room.
const PAUSE: Duration = Duration::from_secs(2);

async fn talk(house: &House, server: &Server) -> (Connection, SendStream, RecvStream) {
    let connection = house.visitor(&[FIRST]).connect(server.address).await;
    let (send, receive) = connection.open_bi().await.unwrap();
    (connection, send, receive)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

#[tokio::test]
async fn a_bad_frame_ends_its_own_connection_only() {
    let house = House::new();
    let server = house.open(Limits::default());
    let other = house.visitor(&[FIRST]).connect(server.address).await;
    let too_long = u32::try_from(FRAME_LIMIT + 1).unwrap().to_be_bytes();
    for bad in [&too_long[..], &u32::MAX.to_be_bytes(), &[0; 4], b"\0\0\0\x02{]", b"\0\0\0\x01\xff"]
    {
        let (connection, mut send, _receive) = talk(&house, &server).await;
        send.write_all(bad).await.unwrap();
        let closed = within(connection.closed()).await;
        let code =
            matches!(&closed, ConnectionError::ApplicationClosed(c) if c.error_code == BAD_FRAME);
        assert!(code, "{bad:?}: {closed:?}");
    }
    ask(&other, "hello").await.expect("the other connection goes on");
}

#[tokio::test]
async fn frames_are_read_however_they_are_cut() {
    let house = House::new();
    let server = house.open(Limits::default());
    let (_connection, mut send, receive) = talk(&house, &server).await;
    let mut answers = FrameReader::new(receive);
    let words = [json!({ "say": "one" }), json!({ "say": "two" })];
    let frames =
        words.each_ref().map(|word| tegata_proto::frame::write(word, FRAME_LIMIT).unwrap());
    for byte in frames.concat() {
        send.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    for word in words {
        assert_eq!(answers.read::<Value>(FRAME_LIMIT, soon()).await.unwrap(), word);
    }
}

#[tokio::test]
async fn a_read_that_was_given_up_goes_on_where_it_was() {
    let house = House::new();
    let server = house.open(Limits::default());
    let (_connection, send, receive) = talk(&house, &server).await;
    let mut reader = FrameReader::new(receive);
    let passed = Instant::now();
    let nothing = reader.read::<Value>(FRAME_LIMIT, passed).await;
    assert!(matches!(nothing, Err(WireError::TooSlow)), "{nothing:?}");

    let mut writer = FrameWriter::new(send);
    writer.write(&json!({ "say": "hello" }), FRAME_LIMIT, soon()).await.unwrap();
    // Given up again and again, in the middle of the answer too.
    let answer = loop {
        let soon = Instant::now() + Duration::from_micros(50);
        match reader.read::<Value>(FRAME_LIMIT, soon).await {
            Err(WireError::TooSlow) => {}
            other => break other.unwrap(),
        }
    };
    assert_eq!(answer, json!({ "say": "hello" }));
}

#[tokio::test]
async fn what_follows_a_frame_is_left_on_the_stream() {
    let house = House::new();
    let server = house.open(Limits::default());
    let (_connection, mut send, receive) = talk(&house, &server).await;
    let frame = tegata_proto::frame::write(&json!({ "say": "raw" }), FRAME_LIMIT).unwrap();
    send.write_all(&[frame.clone(), frame.clone()].concat()).await.unwrap();
    let mut reader = FrameReader::new(receive);
    reader.read::<Value>(FRAME_LIMIT, soon()).await.unwrap();
    let mut rest = vec![0; frame.len()];
    within(reader.into_inner().read_exact(&mut rest)).await.unwrap();
    assert_eq!(rest, frame);
}

#[tokio::test]
async fn a_message_that_does_not_fit_is_not_sent() {
    let house = House::new();
    let server = house.open(Limits::default());
    let (_connection, send, receive) = talk(&house, &server).await;
    let mut writer = FrameWriter::new(send);
    let long = json!({ "say": "x".repeat(FRAME_LIMIT) });
    let refused = writer.write(&long, FRAME_LIMIT, soon()).await;
    assert!(matches!(refused, Err(WireError::Unsendable(_))), "{refused:?}");
    writer.write(&json!({ "say": "short" }), FRAME_LIMIT, soon()).await.unwrap();
    let answer: Value = FrameReader::new(receive).read(FRAME_LIMIT, soon()).await.unwrap();
    assert_eq!(answer, json!({ "say": "short" }));
}

#[tokio::test]
async fn a_stream_that_ends_is_closed_even_in_the_middle_of_a_frame() {
    let house = House::new();
    let server = house.open(Limits::default());
    for sent in [&b""[..], b"\0\0", b"\0\0\0\x09{\"say\""] {
        let (_connection, mut send, receive) = talk(&house, &server).await;
        send.write_all(sent).await.unwrap();
        send.finish().unwrap();
        let answer = FrameReader::new(receive).read::<Value>(FRAME_LIMIT, soon()).await;
        assert!(matches!(answer, Err(WireError::Closed)), "{answer:?}");
    }
}

#[tokio::test]
async fn a_frame_that_has_begun_is_finished_before_the_next() {
    let house = House::new();
    let server = house.open(Limits::default());
    let (_connection, send, receive) = talk(&house, &server).await;
    let mut writer = FrameWriter::new(send);
    let stumble = json!({ "say": "stumble" });
    writer.write(&stumble, FRAME_LIMIT, soon()).await.unwrap();
    // Nothing is read before the server has given up.
    within(house.stumbled.notified()).await;
    let mut answers = FrameReader::new(receive);
    let long: Value = answers.read(2 * LONG, soon()).await.unwrap();
    assert_eq!(long.as_str().map(str::len), Some(LONG), "the frame that had begun is whole");
    let next: Value = answers.read(2 * LONG, soon()).await.unwrap();
    assert_eq!(next, stumble, "one that had not begun is forgotten");
}

#[tokio::test]
async fn a_peer_that_moves_is_known_by_its_new_address() {
    let house = House::new();
    let server = house.open(Limits::default());
    let visitor = house.visitor(&[FIRST]);
    let connection = visitor.connect(server.address).await;
    ask(&connection, "hello").await.unwrap();
    for _ in 0..3 {
        let here = visitor.roam().to_string();
        // The first packet from there may be the question itself.
        while ask(&connection, "remote now").await.unwrap() != json!(here) {}
    }
    assert_ne!(
        ask(&connection, "remote").await.unwrap(),
        ask(&connection, "remote now").await.unwrap()
    );
}

#[tokio::test]
async fn whoever_has_shown_no_right_sends_two_frames_ahead_at_most() {
    /// Two of the longest frames that a stranger may send.
    const NARROW: usize = 8 * 1024;
    let house = House::new();
    let server = house.open(Limits::default());
    for (word, least, most) in [("I am not done", 1, NARROW), ("widen", 16 * NARROW, 64 * NARROW)] {
        let (connection, send, receive) = talk(&house, &server).await;
        let word = json!({ "say": word });
        let (mut writer, mut answers) = (FrameWriter::new(send), FrameReader::new(receive));
        writer.write(&word, FRAME_LIMIT, soon()).await.unwrap();
        assert_eq!(answers.read::<Value>(FRAME_LIMIT, soon()).await.unwrap(), word);

        // Nobody reads this one, and a write waits where there is no room for it.
        let (mut ahead, _receive) = connection.open_bi().await.unwrap();
        let mut bytes = 0;
        while let Ok(written) = timeout(PAUSE, ahead.write(&[0; 1024])).await {
            bytes += written.unwrap();
        }
        assert!((least..=most).contains(&bytes), "{bytes} bytes after {word}");
    }
}
