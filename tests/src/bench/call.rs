//! A telephone on a desktop: packets of speech at a steady beat, alone in the desktop's stream or
//! between the pieces of a moving picture, each with a header that says what it is.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::interval;

/// Packets of speech in a second.
pub(crate) const PACKETS: u32 = 50;

/// Bytes of speech in each, as of a telephone with G.711 and packets of 20 ms.
pub(crate) const SPEECH: usize = 160;

/// Bytes of picture between two of them: 2 Mbit a second.
const PICTURE: usize = 5_000;

/// Kind and length of what follows.
const HEADER: usize = 1 + 2;

const KIND_SPEECH: u8 = b's';
const KIND_PICTURE: u8 = b'p';

/// What the desktop shows meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Picture {
    Still,
    Moving,
}

/// Speaks until nobody listens any more.
pub(crate) async fn speak(mut stream: TcpStream, picture: Picture) {
    let mut beat = interval(Duration::from_secs(1) / PACKETS);
    let mut packet = BytesMut::new();
    loop {
        // What was held up is sent at once, as a sound card goes on all the same.
        beat.tick().await;
        packet.clear();
        put(&mut packet, KIND_SPEECH, SPEECH);
        if picture == Picture::Moving {
            put(&mut packet, KIND_PICTURE, PICTURE);
        }
        if stream.write_all(&packet).await.is_err() {
            return;
        }
    }
}

fn put(packet: &mut BytesMut, kind: u8, length: usize) {
    packet.put_u8(kind);
    packet.put_u16(u16::try_from(length).unwrap_or(u16::MAX));
    packet.put_bytes(0, length);
}

/// The other end of a call: finds the packets of speech in what comes.
#[derive(Default)]
pub(crate) struct Ear {
    waiting: BytesMut,
    heard: Vec<Instant>,
}

impl Ear {
    /// Takes the next bytes of the stream, which came just now.
    pub(crate) fn take(&mut self, bytes: &Bytes, now: Instant) -> Result<()> {
        self.waiting.extend_from_slice(bytes);
        while self.waiting.len() >= HEADER {
            let kind = self.waiting[0];
            let length = usize::from(u16::from_be_bytes([self.waiting[1], self.waiting[2]]));
            ensure!([KIND_SPEECH, KIND_PICTURE].contains(&kind), "a packet of kind {kind}");
            if self.waiting.len() < HEADER + length {
                break;
            }
            self.waiting.advance(HEADER + length);
            if kind == KIND_SPEECH {
                self.heard.push(now);
            }
        }
        Ok(())
    }

    /// Forgets what was heard so far.
    pub(crate) fn forget(&mut self) {
        self.heard.clear();
    }

    /// Returns how far apart packets of speech came, in milliseconds.
    pub(crate) fn gaps_ms(&self) -> Vec<f64> {
        self.heard.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speech_is_found_between_pictures_however_the_bytes_are_cut() {
        let mut stream = BytesMut::new();
        for _ in 0..3 {
            put(&mut stream, KIND_SPEECH, SPEECH);
            put(&mut stream, KIND_PICTURE, PICTURE);
        }
        let stream = stream.freeze();
        for piece in [1, 2, 1_000, stream.len()] {
            let (mut ear, start) = (Ear::default(), Instant::now());
            let mut now = start;
            for (n, bytes) in stream.chunks(piece).enumerate() {
                now = start + Duration::from_millis(n as u64);
                ear.take(&stream.slice_ref(bytes), now).unwrap();
            }
            assert_eq!(ear.heard.len(), 3, "{piece}");
            assert!(ear.waiting.is_empty() && ear.gaps_ms().len() == 2);
            assert!(*ear.heard.last().unwrap() <= now);
        }
        assert!(Ear::default().take(&Bytes::from_static(b"xyz"), Instant::now()).is_err());
    }
}
