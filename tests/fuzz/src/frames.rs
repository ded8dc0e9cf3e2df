//! Frames: however they are cut, the same bodies come out; no body is longer
//! than its limit; a message that is read is written back as the same message.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tegata_proto::frame::{self, Decoder, HEADER_LEN, LIMIT_AFTER, LIMIT_BEFORE};
use tegata_proto::{login, session};

use super::script::Script;

/// Reads the bytes as frames, in pieces: a limit, the length of a piece, bytes.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let limit = script.pick(&[16, 256, LIMIT_BEFORE, LIMIT_AFTER]);
    let piece = usize::from(script.byte().unwrap_or_default()).max(1);
    let bytes = script.rest();

    let whole = bodies(&[bytes], limit);
    let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
    assert_eq!(bodies(&pieces, limit), whole, "cut into pieces of {piece}");
    for body in whole {
        assert!((1..=limit).contains(&body.len()), "{} bytes", body.len());
        comes_back::<login::AgentMessage>(&body);
        comes_back::<login::BrokerMessage>(&body);
        comes_back::<session::AgentMessage>(&body);
        comes_back::<session::GatewayMessage>(&body);
        comes_back::<session::Open>(&body);
    }
}

fn bodies(pieces: &[&[u8]], limit: usize) -> Vec<Vec<u8>> {
    let mut decoder = Decoder::new();
    let mut found = Vec::new();
    for mut piece in pieces.iter().copied() {
        loop {
            match decoder.take(&mut piece, limit) {
                Ok(Some(body)) => found.push(body),
                Ok(None) => break,
                Err(_) => return found,
            }
        }
    }
    found
}

fn comes_back<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(body: &[u8]) {
    let Ok(message) = frame::read::<M>(body) else { return };
    // What a newer peer says is understood as such, and never said.
    let Ok(written) = frame::write(&message, usize::MAX) else { return };
    let again = frame::read::<M>(&written[HEADER_LEN..]).expect("our own text");
    assert_eq!(again, message);
}
