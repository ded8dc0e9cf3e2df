//! Frames: a 4-byte big-endian length, then one JSON object tagged by `type`.
//!
//! [`Decoder`] takes bytes as they come and gives whole bodies; it never holds
//! more than its limit and refuses a length before anything is stored for it.
//! [`read()`] and [`write()`] turn a body into a message and back.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest body before authentication or attach, in bytes.
pub const LIMIT_BEFORE: usize = 4 * 1024;

/// Longest body afterwards, in bytes.
pub const LIMIT_AFTER: usize = 64 * 1024;

/// Length of the length, in bytes.
pub const HEADER_LEN: usize = 4;

/// Why a frame is not one.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The body is empty or longer than the limit that holds now.
    #[error("frame of {length} bytes, allowed are 1 to {limit}")]
    Length {
        /// The length that the header names.
        length: usize,
        /// The limit that holds.
        limit: usize,
    },
    /// The body is not the JSON of a message.
    #[error("frame is not a message")]
    Malformed(#[source] serde_json::Error),
}

/// Collects bytes until a frame is whole.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Starts with nothing received.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes from the front of `input` until one frame is whole, and
    /// returns its body; `None` means that `input` is used up.
    ///
    /// Never takes a byte beyond the frame: what stays in `input` belongs to the
    /// next one, or to the raw bytes that follow it.
    ///
    /// # Errors
    ///
    /// Refuses an empty body and one longer than `limit` as soon as its header
    /// is there. After an error the decoder is of no more use.
    pub fn take(&mut self, input: &mut &[u8], limit: usize) -> Result<Option<Vec<u8>>, FrameError> {
        loop {
            let wanted = self.wanted(limit)?;
            if wanted == 0 {
                let mut body = std::mem::take(&mut self.buffer);
                body.drain(..HEADER_LEN);
                return Ok(Some(body));
            }
            if input.is_empty() {
                return Ok(None);
            }
            let (taken, rest) = input.split_at(wanted.min(input.len()));
            self.buffer.extend_from_slice(taken);
            *input = rest;
        }
    }

    /// Returns how many bytes are missing: of the header first, then of the body;
    /// 0 when the frame is whole.
    ///
    /// # Errors
    ///
    /// Refuses an empty body and one longer than `limit`.
    pub fn wanted(&self, limit: usize) -> Result<usize, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() else {
            return Ok(HEADER_LEN - self.buffer.len());
        };
        let length = u32::from_be_bytes(*header) as usize;
        if length == 0 || length > limit {
            return Err(FrameError::Length { length, limit });
        }
        Ok(HEADER_LEN + length - self.buffer.len())
    }

    /// Tells whether a frame has begun and is not whole.
    pub fn is_partial(&self) -> bool {
        !self.buffer.is_empty()
    }
}

/// Reads a body as a message.
///
/// # Errors
///
/// Refuses what is not the JSON of an `M`.
pub fn read<M: DeserializeOwned>(body: &[u8]) -> Result<M, FrameError> {
    serde_json::from_slice(body).map_err(FrameError::Malformed)
}

/// Writes a message as a whole frame, header included.
///
/// # Errors
///
/// Refuses a message that is longer than `limit`, or that is never sent.
pub fn write<M: Serialize>(message: &M, limit: usize) -> Result<Vec<u8>, FrameError> {
    write_padded(message, 0, limit)
}

/// Writes a message as [`write()`] does, of at least so many bytes, header included:
/// spaces follow the object (RFC 8259 §2).
///
/// # Errors
///
/// Refuses what [`write()`] does, and a length above `limit`.
pub fn write_padded<M: Serialize>(
    message: &M,
    least: usize,
    limit: usize,
) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER_LEN];
    serde_json::to_writer(&mut frame, message).map_err(FrameError::Malformed)?;
    frame.resize(frame.len().max(least), b' ');
    let length = frame.len() - HEADER_LEN;
    let header = u32::try_from(length).ok().filter(|_| length <= limit);
    let header = header.ok_or(FrameError::Length { length, limit })?;
    frame[..HEADER_LEN].copy_from_slice(&header.to_be_bytes());
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{login, session};

    fn frame(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).expect("a short body");
        [&length.to_be_bytes(), body].concat()
    }

    #[test]
    fn an_empty_body_and_one_too_long_are_refused_at_the_header() {
        for length in [0_u32, 5, u32::MAX] {
            let mut decoder = Decoder::new();
            let refused = decoder.take(&mut &length.to_be_bytes()[..], 4);
            assert!(matches!(refused, Err(FrameError::Length { .. })), "{length}");
            assert!(decoder.buffer.capacity() < 64);
        }
    }

    #[test]
    fn what_follows_a_frame_is_left_alone() {
        let bytes = [frame(b"{}"), b"raw".to_vec()].concat();
        let mut input = &bytes[..];
        let body = Decoder::new().take(&mut input, 4).expect("a good frame");
        assert_eq!((body.as_deref(), input), (Some(&b"{}"[..]), &b"raw"[..]));
    }

    proptest! {
        #[test]
        fn frames_come_out_whole_however_they_are_cut(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 1..5),
            cut in 1_usize..20,
        ) {
            let bytes: Vec<u8> = bodies.iter().flat_map(|body| frame(body)).collect();
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            for mut piece in bytes.chunks(cut) {
                while let Some(body) = decoder.take(&mut piece, 64).expect("good frames") {
                    seen.push(body);
                }
            }
            prop_assert_eq!(seen, bodies);
            prop_assert!(!decoder.is_partial());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused_within_the_limit(
            bytes in prop::collection::vec(any::<u8>(), 0..2_000),
        ) {
            let mut decoder = Decoder::new();
            let mut input = &bytes[..];
            while let Ok(Some(body)) = decoder.take(&mut input, 256) {
                prop_assert!(body.len() <= 256);
                let _ = read::<login::AgentMessage>(&body);
            }
            prop_assert!(decoder.buffer.len() <= HEADER_LEN + 256);
        }

        #[test]
        fn any_json_is_a_message_or_refused(text in r#"\{("type":"(hello|password|choose|attach|ack|bye)",)?("[a-z]{1,8}":(null|-?[0-9]{1,20}|"[a-z]{0,9}"|\[\]|\{\}),){0,4}"v":1\}"#) {
            let _ = read::<login::AgentMessage>(text.as_bytes());
            let _ = read::<login::BrokerMessage>(text.as_bytes());
            let _ = read::<session::AgentMessage>(text.as_bytes());
            let _ = read::<session::GatewayMessage>(text.as_bytes());
        }
    }

    #[test]
    fn deep_json_is_refused() {
        let deep =
            format!(r#"{{"type":"choose","pool":{}{}}}"#, "[".repeat(2000), "]".repeat(2000));
        assert!(read::<login::AgentMessage>(deep.as_bytes()).is_err());
    }
}
